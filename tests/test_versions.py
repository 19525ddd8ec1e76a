"""Versions of the forecaster: whatever dies at whatever moment, one of them is in service, and it is one that works."""

from __future__ import annotations

import errno
import json
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest

from models.domain import ModelError
from models.features import FEATURES_VERSION
from models.registry import MANIFEST, WEIGHTS, default_model
from models.versions import HISTORY, IN_SERVICE, Event, Standing, Versions, What
from tests.forecasters import bent

NOW = datetime(2026, 3, 2, 3, tzinfo=UTC)


def hours(count):
    return NOW + timedelta(hours=count)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directories of models, as training leaves them."""
    home = tmp_path_factory.mktemp("trained")
    return [bent(home / str(number), shift=0.1 * number) for number in range(1, 5)]


@pytest.fixture
def known(tmp_path):
    return Versions(tmp_path / "models")


def test_the_shipped_one_stands_before_the_first(known, trained):
    assert known.in_service() is None
    assert known.names() == []
    assert not known.directory.exists()  # looking writes nothing
    first, second = (known.add(directory, at=hours(i)) for i, directory in enumerate(trained[:2]))
    assert known.names() == [first, second]
    assert first.startswith("20260302T030000Z-")
    assert known.in_service() is None
    known.promote(first, why="better", at=hours(2))
    known.promote(second, why="better still", at=hours(3))
    assert known.standing() == Standing(version=second, since=hours(3), why="better still", before=(None, first))
    assert known.rollback(why="no", at=hours(4)) == first
    assert known.rollback(why="no", at=hours(5)) is None
    with pytest.raises(ModelError, match="nothing was in service before shipped"):
        known.rollback(why="no", at=hours(6))
    assert [(event.what, event.version) for event in known.history()] == [
        (What.PROMOTED, first),
        (What.PROMOTED, second),
        (What.ROLLED_BACK, first),
        (What.ROLLED_BACK, None),
    ]


def test_a_version_is_a_copy_and_taken_in_once(known, trained):
    name = known.add(trained[0], at=NOW)
    assert known.add(trained[0], at=hours(9)) == name
    assert known.names() == [name]
    assert known.manifest(name).weights_hash.startswith(name.split("-")[1])
    assert known.directory_of(None) == default_model()


def test_promoting_what_is_in_service_changes_nothing(known, trained):
    name = known.add(trained[0], at=NOW)
    known.promote(name, why="one", at=NOW)
    known.promote(name, why="two", at=hours(1))
    assert known.standing().why == "one"
    known.rollback(why="three", at=hours(2))
    known.promote(None, why="four", at=hours(3))
    assert known.standing().why == "three"


def spoil(directory, **fields):
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda made: spoil(made, features_version=FEATURES_VERSION + 1), "features version"),
        (lambda made: spoil(made, weights_hash="0"), "not the file that"),
        (lambda made: (made / WEIGHTS).write_bytes(b"PK torn"), "not the file that"),
        (lambda made: (made / WEIGHTS).unlink(), WEIGHTS),
        (lambda made: (made / MANIFEST).write_text("{"), MANIFEST),
        (lambda made: (made / MANIFEST).unlink(), MANIFEST),
    ],
)
def test_what_cannot_be_used_is_refused_and_what_is_in_service_stays(known, trained, tmp_path, harm, match):
    good = known.add(trained[0], at=NOW)
    known.promote(good, why="good", at=NOW)
    bad = bent(tmp_path / "bad", shift=0.7)
    later = known.add(bad, at=hours(1))
    for made in (bad, known.directory / later):
        harm(made)
    (known.directory / later).rename(known.directory / "20260302T090000Z-00000000")
    with pytest.raises(ModelError, match=match):
        known.add(bad, at=hours(2))
    with pytest.raises(ModelError, match=match):
        known.promote("20260302T090000Z-00000000", why="bad", at=hours(2))
    assert known.in_service() == good
    assert len(known.names()) == 2


def test_what_is_not_there_cannot_be_promoted(known, trained):
    name = known.add(trained[0], at=NOW)
    for wrong in ("20260302T090000Z-00000000", "../models", "lock", ""):
        with pytest.raises(ModelError, match=f"it has shipped, {name}"):
            known.promote(wrong, why="?", at=NOW)
    assert known.in_service() is None


def test_a_writer_that_died_leaves_nothing_that_counts(known, trained):
    first = known.add(trained[0], at=NOW)
    known.promote(first, why="one", at=NOW)
    before = known.standing()
    half = known.directory / ".part-incoming"
    half.mkdir()
    (half / WEIGHTS).write_bytes((trained[1] / WEIGHTS).read_bytes()[:1000])
    (known.directory / f".part-{IN_SERVICE}").write_text('{"version": "2026')
    with (known.directory / HISTORY).open("a") as file:
        file.write('{"at": "2026-03-02T0')
    assert known.names() == [first]
    assert known.standing() == before
    assert [event.why for event in known.history()] == ["one"]
    second = known.add(trained[1], at=hours(1))
    known.promote(second, why="two", at=hours(1))
    assert [event.why for event in known.history()] == ["one", "two"]
    assert not list(known.directory.glob(".part*"))


@pytest.mark.parametrize("left", [b"", b"{", b'{"version": 3}', b"\xff\x00", b'{"version": null, "more": 1}'])
def test_a_file_that_was_tampered_with_is_said_and_can_be_mended(known, trained, left):
    name = known.add(trained[0], at=NOW)
    (known.directory / IN_SERVICE).write_bytes(left)
    with pytest.raises(ModelError, match=rf"{IN_SERVICE}.*gridmedic models promote"):
        known.in_service()
    with pytest.raises(ModelError):
        known.rollback(why="?", at=NOW)
    known.promote(name, why="mended", at=NOW)
    assert known.in_service() == name


@pytest.mark.parametrize("call", range(6))
def test_a_disk_that_fails_at_any_moment_leaves_one_of_the_two_in_service(known, trained, monkeypatch, call):
    first = known.add(trained[0], at=NOW)
    known.promote(first, why="one", at=NOW)
    calls, sync = iter(range(100)), os.fsync

    def failing(handle):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(ModelError, match=r"No space left on device.*space on its disk"):
            known.promote(known.add(trained[1], at=hours(1)), why="two", at=hours(1))
    assert known.in_service() in known.names()
    second = known.add(trained[1], at=hours(2))
    known.promote(second, why="three", at=hours(2))
    assert known.in_service() == second


def test_a_challenger_does_not_replace_what_it_was_not_compared_with(known, trained):
    first, second, third = (known.add(directory, at=NOW) for directory in trained[:3])
    known.promote(first, why="one", at=NOW)
    seen = known.standing()
    known.promote(second, why="by hand", at=hours(1))
    with pytest.raises(ModelError, match="came into service meanwhile"):
        known.promote(third, why="better than the first", at=hours(2), instead_of=seen)
    assert known.in_service() == second


def test_pruning_keeps_the_newest_the_one_in_service_and_the_one_before(known, trained):
    names = [known.add(directory, at=hours(i)) for i, directory in enumerate(trained)]
    for name in (names[1], names[0]):
        known.promote(name, why="", at=NOW)
    assert known.prune(keep=1) == [names[2]]
    assert known.names() == [names[0], names[1], names[3]]
    assert known.rollback(why="", at=NOW) == names[1]
    assert known.prune(keep=0) == [names[0], names[3]]
    assert known.rollback(why="", at=NOW) is None


def test_a_rollback_goes_over_what_was_pruned(known, trained):
    names = [known.add(directory, at=hours(i)) for i, directory in enumerate(trained[:3])]
    for name in names:
        known.promote(name, why="", at=NOW)
    assert known.prune(keep=0) == [names[0]]
    assert known.rollback(why="", at=NOW) == names[1]
    assert known.rollback(why="", at=NOW) is None


def test_writers_take_turns(known, trained):
    names = [known.add(directory, at=hours(i)) for i, directory in enumerate(trained[:2])]
    errors = []

    def promote():
        try:
            for i in range(20):
                Versions(known.directory).promote(names[i % 2], why="", at=hours(i))
                Versions(known.directory).record(Event(at=NOW, what=What.SKIPPED, version=None, why=""))
        except ModelError as error:
            errors.append(error)

    writers = [threading.Thread(target=promote) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert known.in_service() in {None, *names}  # a reader never finds a half-written file
    assert errors == []
    changes = [event for event in known.history() if event.what is What.PROMOTED]
    assert len(known.history()) == len(changes) + 60
    assert len(known.standing().before) == len(changes)
