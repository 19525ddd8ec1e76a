"""`gridmedic models` and `gridmedic retrain`, and a daemon that takes over what they put into service."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from models.features import FEATURES_VERSION
from models.registry import MANIFEST, default_model
from tests.command import GRIDMEDIC, free_port, gridmedic, refused
from tests.forecasters import bent


@pytest.fixture
def home(tmp_path):
    """A directory with a configuration that reads from files that are not there yet."""
    configured(tmp_path)
    return tmp_path


def configured(folder, **settings):
    content = {
        "events": [{"kind": "files", "paths": ["none-*.jsonl"]}],
        "measurements": [],
        "poll": {"every_s": 0.2},
        "desk": {"console": {"port": free_port()}},
        "log": {"format": "json"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content | settings))


@pytest.mark.parametrize(
    "command",
    [("models", "list"), ("models", "promote", "x"), ("models", "rollback"), ("models", "add", "x"), ("retrain",)],
    ids=" ".join,
)
def test_without_a_configuration_every_command_says_what_to_do(tmp_path, command):
    said = refused(*command, cwd=tmp_path)
    assert said == "Error: config.yaml does not exist; name the file with --config, or copy config.yaml here\n"
    assert list(tmp_path.iterdir()) == []


def shown(home):
    """The lines of `models list` by version, with how each is in service."""
    lines = gridmedic("models", "list", cwd=home).stdout.split("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: ("since" in line or " yes " in line) for line in lines}


def test_from_a_directory_into_service_and_back(home):
    assert shown(home) == {"shipped": True}
    assert not (home / "var").exists()
    bent(home / "first", shift=0.1)
    bent(home / "second", shift=0.2)
    said = gridmedic("models", "add", "first", "--promote", "--as", "ada", cwd=home).stdout
    first = re.search(r"In service: (\d{8}T\d{6}Z-[0-9a-f]{8})\n", said)[1]
    assert shown(home) == {"shipped": False, first: True}
    assert "promoted by ada" in gridmedic("models", "list", cwd=home).stdout
    second = gridmedic("models", "add", "second", cwd=home).stdout.removeprefix("Added: ").strip()
    assert shown(home) == {"shipped": False, first: True, second: False}
    gridmedic("models", "promote", second, cwd=home)
    assert shown(home)[second]
    assert gridmedic("models", "rollback", cwd=home).stdout == f"In service: {first}\n"
    assert gridmedic("models", "rollback", cwd=home).stdout == "In service: shipped\n"
    assert "nothing was in service before shipped" in refused("models", "rollback", cwd=home)
    assert f"it has shipped, {first}, {second}" in refused("models", "promote", "third", cwd=home)
    assert shown(home)["shipped"]


def test_a_model_of_other_features_is_refused_and_what_is_in_service_stays(home):
    path = bent(home / "old") / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features_version": FEATURES_VERSION + 1}))
    said = refused("models", "add", "old", "--promote", cwd=home)
    assert f"is of features version {FEATURES_VERSION + 1}, this gridmedic has {FEATURES_VERSION}" in said
    assert "gridmedic train" in said
    assert shown(home) == {"shipped": True}
    assert "none/weights.npz cannot be read" in refused("models", "add", "none", cwd=home)


def test_a_version_that_was_harmed_is_shown_as_such_and_no_daemon_starts_with_it(home):
    bent(home / "first", shift=0.1)
    version = gridmedic("models", "add", "first", cwd=home).stdout.removeprefix("Added: ").strip()
    gridmedic("models", "promote", version, cwd=home)
    (home / "var" / "models" / version / MANIFEST).write_text("{")
    assert "cannot be used" in gridmedic("models", "list", cwd=home).stdout
    for command in (("run",), ("config", "check")):
        assert MANIFEST in refused(*command, cwd=home)
    assert gridmedic("models", "rollback", cwd=home).returncode == 0
    assert gridmedic("config", "check", cwd=home).returncode == 0


def test_a_pinned_model_is_said_wherever_it_overrules(home):
    configured(home, forecast={"model": str(default_model())})
    bent(home / "first", shift=0.1)
    for command in (("models", "add", "first", "--promote"), ("models", "list"), ("models", "rollback")):
        assert "write `default` there to have versions" in gridmedic(*command, cwd=home).stdout
    assert "write `default` there to have versions" in refused("retrain", cwd=home)


def test_retraining_by_hand_says_what_it_came_to(home):
    said = gridmedic("retrain", cwd=home).stdout
    assert said == "skipped: 0 finished transfers are too few to learn from and to compare on\n"
    assert "Last retraining, " in gridmedic("models", "list", cwd=home).stdout


def test_a_daemon_takes_another_version_over_as_it_runs(home):
    bent(home / "first", shift=0.1)
    version = gridmedic("models", "add", "first", cwd=home).stdout.removeprefix("Added: ").strip()
    with (home / "log").open("w") as log:
        process = subprocess.Popen([GRIDMEDIC, "run"], cwd=home, stdout=log, stderr=log)

    def said(word, *, within_s=30):
        until = time.monotonic() + within_s
        while f'"event": "{word}"' not in (home / "log").read_text():
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.05)

    try:
        said("daemon-started")
        gridmedic("models", "promote", version, cwd=home)
        said("model-swapped")
        pointer = home / "var" / "models" / "in-service.json"
        pointer.write_text("{")
        said("model-unusable")
        time.sleep(1.0)  # five passes
        assert (home / "log").read_text().count("model-unusable") == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (home / "log").read_text()


def test_the_documentation_names_every_word_of_the_log():
    """Of those that have to do with versions."""
    root = Path(__file__).parent.parent
    files = [root / "agent" / f"{name}.py" for name in ("incumbent", "retraining", "loop")]
    words = {word for file in files for word in re.findall(r'log\.\w+\(\s*(?:#.*\s+)?"([a-z-]+)"', file.read_text())}
    assert {"archive-failed", "challenger-failed", "forecast-drifts", "model-swapped"} <= words
    told = (root / "docs" / "models.md").read_text()
    about = {"model", "challenger", "retraining", "forecast", "archive"}
    assert [word for word in sorted(words) if word.split("-")[0] in about and f"`{word}`" not in told] == []
