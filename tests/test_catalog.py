"""Built-ins, and outside packages that are really installed: described in a child, never imported here."""

from __future__ import annotations

import re
import shutil
import site
import sys
import textwrap
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from models.domain import ConfigError, IncidentKind, Safety
from remedies.catalog import BUILTIN, Catalog
from remedies.contract import BASELINE
from remedies.executors import ChildProcess
from remedies.runner import Runner
from remedies.testing import incident

GOOD = """
    from datetime import timedelta
    from pydantic import Field
    from models.domain import BlastRadius, IncidentKind, Safety
    from remedies.contract import Applied, Parameters, Plan, Remedy

    class NoteParameters(Parameters):
        text: str = Field(default="hello", description="What is noted.")

    class Note(Remedy[NoteParameters]):
        name = "note"
        title = "Note it"
        addresses = frozenset({IncidentKind.SLOW_TRANSFERS})
        safety = Safety.READ_ONLY
        blast_radius = BlastRadius.TRANSFER
        cooldown = timedelta(minutes=1)
        settle_time = timedelta(minutes=1)
        prior = 0.1
        Params = NoteParameters

        def plan(self, incident):
            return Plan(params=NoteParameters(), targets=(str(incident.culprit),), summary="Note it")

        def apply(self, params, run): ...

        def applied(self, params, run):
            return Applied.YES
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> tuple[Path, Path]:
    """An interpreter with packages of its own beside ours: (python, its site-packages)."""
    root = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(root)
    packages = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "ours.pth").write_text("\n".join(p for p in [*site.getsitepackages(), *sys.path] if "-packages" in p))
    return root / "bin" / "python", packages


@pytest.fixture
def install(environment, monkeypatch):
    """Install a distribution that registers a remedy: `install(name, source, spec=…)`."""
    python, packages = environment
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.syspath_prepend(str(packages))
    made: list[Path] = []

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        made.append(path)

    def install(name: str, source: str, *, spec: str | None = None, package: str | None = None) -> None:
        package = package or f"outside_{name}"
        write(packages / f"{package}.py", source)
        info = packages / f"{package}-1.2.dist-info"
        write(info / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        spec = spec or f"{package}:Note"
        write(info / "entry_points.txt", f"[gridmedic.remedies]\n{name} = {spec}\n")

    yield install
    for path in made:
        path.unlink()
        sys.modules.pop(path.stem, None)
    shutil.rmtree(
        packages / "__pycache__", ignore_errors=True
    )  # another test's module may have the same size and second


def test_the_built_ins_are_there():
    catalog = Catalog.load()
    assert list(catalog.cards) == [remedy.name for remedy in BUILTIN]
    assert catalog.problems == ()
    assert all(card.builtin for card in catalog.cards.values())
    assert BASELINE in catalog.cards
    assert catalog.cards["exclude_storage"].safety is Safety.DISRUPTIVE


def test_the_hash_names_what_was_declared():
    catalog = Catalog.load()
    assert re.fullmatch(r"[0-9a-f]{16}", catalog.hash)
    assert catalog.hash == Catalog.load().hash
    dearer = {**catalog.cards, "wait": replace(catalog.cards["wait"], prior=0.31)}
    assert Catalog(cards=dearer).hash != catalog.hash
    assert Catalog(cards=catalog.cards, versions={"note": "note 1.2"}).hash != catalog.hash


def test_an_unknown_name_is_refused_with_those_that_are_known(install):
    with pytest.raises(ConfigError, match=r"no installed package registers 'nope' .*; known: none is installed"):
        Catalog.load(["nope"])
    install("note", GOOD)
    with pytest.raises(ConfigError, match=r"registers 'nope' under gridmedic.remedies; known: note"):
        Catalog.load(["note", "nope"])


def test_a_built_in_need_not_be_named():
    with pytest.raises(ConfigError, match="'wait' is built in, and always there; leave it out"):
        Catalog.load(["wait"])


def test_an_outside_remedy_is_described_and_planned_in_a_child(install):
    install("note", GOOD)
    catalog = Catalog.load(["note", "note"])
    assert catalog.problems == ()
    card = catalog.cards["note"]
    assert (card.spec, card.builtin, card.addresses) == (
        "outside_note:Note",
        False,
        frozenset({IncidentKind.SLOW_TRANSFERS}),
    )
    assert catalog.versions == {"note": "outside_note 1.2"}
    assert card.params_schema["properties"]["text"]["description"] == "What is noted."
    candidate = Runner(ChildProcess()).plan(card, incident(IncidentKind.SLOW_TRANSFERS, "rse:A"))
    assert candidate is not None
    assert (candidate.params, candidate.targets) == ({"text": "hello"}, ("rse:A",))
    assert "outside_note" not in sys.modules


def test_what_is_not_named_is_not_loaded(install):
    install("note", "raise SystemExit('imported')")
    assert list(Catalog.load().cards) == [remedy.name for remedy in BUILTIN]


@pytest.mark.parametrize(
    ("source", "spec", "problem"),
    [
        ("import no_such_module", None, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('bad day')", None, "RuntimeError: bad day"),
        ("import os; os._exit(4)", None, "ended with status 4 and without a result"),
        ("import sys; sys.exit()", None, "SystemExit"),
        ("import time; time.sleep(60)", None, "did not end within 2 s and was killed"),
        ("print('x' * 10**8); Note = 1", None, "name a subclass of remedies.contract.Remedy"),
        ("this is no Python", None, "SyntaxError"),
        ("", "outside_bad:Missing", "'outside_bad:Missing' is None; name a subclass"),
        (GOOD, None, "calls itself 'note'; register it under that name"),
        (GOOD.replace("prior = 0.1", "prior = 7"), None, "prior is 7; use a number between 0 and 1"),
        (GOOD + "\n    Note.prior = 'high'", None, "describes itself wrongly"),
    ],
)
def test_what_cannot_be_described_is_a_problem_of_its_own(install, source, spec, problem):
    install("bad", source, spec=spec)
    install("note", GOOD)
    catalog = Catalog.load(["bad", "note"], deadline_s=2.0)
    assert "note" in catalog.cards, "the others are taken in"
    assert "bad" not in catalog.cards
    (told,) = catalog.problems
    assert "'bad' of outside_bad 1.2" in told
    assert problem in told


def test_two_packages_with_one_name_are_a_problem(install):
    install("note", GOOD)
    install("note", GOOD, package="another")
    catalog = Catalog.load(["note"])
    assert catalog.problems == (
        "remedy 'note' is registered by another 1.2 and outside_note 1.2; uninstall all but one",
    )
