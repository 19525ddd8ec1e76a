"""What is shipped: the packages that were agreed on, their data, pinned dependencies, and no import of TensorFlow."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"agent", "detectors", "models", "ranking", "remedies", "simulator", "storage"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_agreed_packages_and_no_other(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


@pytest.mark.parametrize(
    "data",
    [
        "models/default/weights.npz",
        "models/default/manifest.json",
        "storage/migrations/env.py",
        "agent/desk/templates/",
    ],
)
def test_data_travels_with_the_wheel(wheel, data):
    assert any(name.startswith(data) for name in wheel)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_each_package_is_typed(wheel, package):
    assert f"{package}/py.typed" in wheel


def test_everything_is_pinned_and_no_registry_is_named():
    text = (ROOT / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][^ ;@/]*", pin) for pin in pins)
    pinned = {pin.split("==")[0] for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=!~;, ]", need, maxsplit=1)[0].lower() for need in wanted}
    assert names <= pinned


@pytest.mark.parametrize(
    "modules",
    ["agent.cli", "agent.service, agent.replay, agent.assembly", "models.forecaster", "storage.ledger"],
)
def test_tensorflow_is_imported_by_training_alone(modules):
    code = f"import {modules}, sys; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd="/").returncode == 0


@pytest.mark.parametrize(
    "heavy", ["pandas", "alembic", "apscheduler", "starlette", "slack_sdk", "pyarrow", "vowpalwabbit"]
)
def test_small_commands_import_little(heavy):
    modules = "agent.cli, agent.config, agent.desk.terminal, agent.desk.answers, storage.ledger, remedies.catalog"
    code = f"import {modules}, sys; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd="/").returncode == 0
