"""Another version of the forecaster in service: taken over without a restart, and as if it had been there from the start."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from structlog.testing import capture_logs

from agent.archive import COLUMNS, Archive, finished
from agent.challenge import window
from agent.watch import QUANTILE_COLUMNS, VERSION_LENGTH
from models.domain import IncidentStatus, ModelError, SourceError
from models.forecaster import Forecaster
from models.measurements import PATH_COLUMNS
from models.registry import MANIFEST, default_model
from models.versions import IN_SERVICE, Versions
from storage.ledger import Ledger
from tests.forecasters import bent
from tests.worlds import START, SickWorld


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def known(tmp_path):
    return Versions(tmp_path / "models")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return bent(tmp_path_factory.mktemp("trained"), shift=0.2, stretch=1.3)


def read(url, stream="observed"):
    ledger = Ledger.open(url)
    try:
        with ledger.begin(write=False) as tx:
            return tx.rows(stream)
    finally:
        ledger.close()


class Killed(BaseException):
    """The process is gone: nothing after this point runs."""


@contextmanager
def killed(agent, step):
    """Let the agent's process die when it comes to this step of a pass."""
    with pytest.MonkeyPatch.context() as patch:

        def die(*_, **__):
            raise Killed

        patch.setattr(agent, step, die)
        with pytest.raises(Killed):
            yield agent


def test_a_process_killed_at_every_pass_is_where_one_is_that_runs_on(known, trained, tmp_path):
    """Two promotions and a rollback on the way: forecasts, verdicts and incidents are equal, and no incident is lost."""
    name = known.add(trained, at=START)
    one_url, other_url = (f"sqlite:///{tmp_path}/{file}.db" for file in ("one", "other"))
    with ExitStack() as stack:
        world = SickWorld()
        one = world.agent(stack, one_url, versions=known)
        for step in range(14):
            world.advance(minutes=21)
            if step in {4, 11}:
                known.promote(name, why="test", at=world.now)
            if step == 8:
                known.rollback(why="test", at=world.now)
            one.run_once(world.now)
            with ExitStack() as short:
                # Before it saw anything, when it had seen all, and when all was written.
                point = ("_poll", "_record", "_compact")[step % 3]
                with killed(world.agent(short, other_url, versions=known), point) as doomed:
                    doomed.run_once(world.now)
                world.agent(short, other_url, versions=known).run_once(world.now)
        with one.ledger.begin(write=False) as tx:
            incidents = tx.incidents()
    expected, found = read(one_url), read(other_url)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
    ledger = Ledger.open(other_url)
    with ledger.begin(write=False) as tx:
        others = tx.incidents()
    ledger.close()
    assert [(i.id, i.status, i.opened_at) for i in others] == [(i.id, i.status, i.opened_at) for i in incidents]
    assert incidents
    hashes = [known.manifest(version).weights_hash[:VERSION_LENGTH] for version in (None, name)]
    assert list(dict.fromkeys(expected["model"])) == hashes
    changes = (expected["model"] != expected["model"].shift()).sum()
    assert changes == 4


def test_after_the_swap_forecasts_are_those_of_a_run_that_had_the_version_from_the_start(
    known, trained, stack, tmp_path
):
    world = SickWorld()
    swapped = world.agent(stack, f"sqlite:///{tmp_path}/swapped.db", versions=known)
    world.live(swapped, hours=3.5)
    with swapped.ledger.begin(write=False) as tx:
        before = tx.incidents(status=IncidentStatus.OPEN)
    assert before
    known.promote(known.add(trained, at=world.now), why="test", at=world.now)
    begun = world.now
    with capture_logs() as said:
        world.live(swapped, hours=0.5)
    assert [line["event"] for line in said if line["event"].startswith("model-")] == ["model-swapped"]
    rows = read(f"sqlite:///{tmp_path}/swapped.db")
    done = ~rows["failed"].to_numpy()
    late = done & (rows["model"] == Forecaster.load(trained).manifest.weights_hash[:VERSION_LENGTH]).to_numpy()
    assert late.sum() > 500
    assert rows["ended_at"][late].min() > begun.timestamp() - 600
    for mask, model in ((late, trained), (done & ~late, default_model())):
        expected = Forecaster.load(model).score(rows)[mask]
        assert np.abs(expected - rows.loc[mask, list(QUANTILE_COLUMNS)].to_numpy()).max() < 1e-4
    with swapped.ledger.begin(write=False) as tx:
        assert {i.id for i in before} <= {i.id for i in tx.incidents()}
    # Thresholds: those of one whose first version it was, on the same rows.
    fresh = world.agent(stack, f"sqlite:///{tmp_path}/fresh.db", versions=known)
    with fresh.ledger.begin(write=True) as tx:
        tx.append_rows("observed", rows.iloc[: len(rows) // 2].assign(model="unknown"))
        tx.append_rows("observed", rows.iloc[len(rows) // 2 :].drop(columns="model"))  # a ledger of an earlier release
    for agent in (fresh, swapped):
        agent._stale = True
        with agent._caches():
            pass
    judged = [agent._watch._threshold.judge(rows[done].tail(500)) for agent in (fresh, swapped)]
    np.testing.assert_allclose(judged[0].threshold_s, judged[1].threshold_s, rtol=1e-4)


def test_what_cannot_be_loaded_is_said_once_and_the_version_at_hand_goes_on(known, trained, stack, tmp_path):
    world = SickWorld()
    agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db", versions=known)
    name = known.add(trained, at=world.now)
    known.promote(name, why="test", at=world.now)
    shutil.move(known.directory / name / MANIFEST, tmp_path / MANIFEST)
    with capture_logs() as said:
        world.live(agent, hours=0.5)
    assert [line["event"] for line in said if line["log_level"] == "error"] == ["model-unusable"]
    complaint = next(line for line in said if line["event"] == "model-unusable")
    assert MANIFEST in complaint["error"]
    assert "gridmedic models rollback" in complaint["cure"]
    with pytest.raises(ModelError, match=MANIFEST):
        world.agent(stack, f"sqlite:///{tmp_path}/other.db", versions=known)
    whole = (known.directory / IN_SERVICE).read_text()
    (known.directory / IN_SERVICE).write_text("{")
    with capture_logs() as said:
        world.live(agent, hours=0.5)
    assert [line["event"] for line in said if line["log_level"] == "error"] == ["model-unusable"]
    (known.directory / IN_SERVICE).write_text(whole)
    shutil.move(tmp_path / MANIFEST, known.directory / name / MANIFEST)
    with capture_logs() as said:
        world.live(agent, hours=0.5)
    assert [line["event"] for line in said if line["event"].startswith("model")] == ["model-swapped"]
    models = read(f"sqlite:///{tmp_path}/ledger.db")["model"]
    assert (models != models.shift()).sum() == 2


def test_every_transfer_is_in_the_archive_or_in_the_ledger_and_in_one_of_them_once(stack, tmp_path, monkeypatch):
    """However often the process dies while it compacts, and wherever."""
    monkeypatch.setattr("agent.loop.RETAINED", 1000)
    monkeypatch.setattr("models.history.RETAINED", 1000)
    monkeypatch.setattr("models.history.RETAINED_PER_LINK", 4)
    world, url = SickWorld(), f"sqlite:///{tmp_path}/ledger.db"
    archive = Archive(tmp_path / "transfers", days=14.0)
    agent = world.agent(stack, url, archive=archive)
    deaths = iter([True, True, False] * 100)
    for _ in range(36):
        world.advance(minutes=6)
        keep = archive.keep

        def keep_and_die(rows, *, first, keep=keep):
            keep(rows, first=first)
            raise Killed

        with monkeypatch.context() as patch:
            if next(deaths):
                patch.setattr(archive, "keep", keep_and_die)
            try:
                agent.run_once(world.now)
            except Killed:
                agent = world.agent(stack, url, archive=archive)
    files = sorted(path.name for path in (tmp_path / "transfers").iterdir())
    assert len(files) >= 3
    twin_world = SickWorld()
    twin = twin_world.agent(stack, f"sqlite:///{tmp_path}/twin.db")
    monkeypatch.undo()
    while twin_world.now < world.now:
        twin_world.advance(minutes=6)
        twin.run_once(twin_world.now)
    expected = finished(read(f"sqlite:///{tmp_path}/twin.db"))
    found = window(agent.ledger, archive, days=14.0)
    told = [name for name in COLUMNS if name not in PATH_COLUMNS]  # readings are cut, too
    order = ["ended_at", "started_at", "bytes", "source", "destination"]
    pd.testing.assert_frame_equal(
        found[told].sort_values(order, ignore_index=True), expected[told].sort_values(order, ignore_index=True)
    )
    newest = found["ended_at"].max()
    recent = window(agent.ledger, archive, days=0.1)
    assert len(recent) == (found["ended_at"] >= newest - 8640).sum()


def test_many_rare_links_do_not_have_the_ledger_compacted_with_every_pass(stack, tmp_path, monkeypatch):
    """Each link's last 64 may be more than the newest rows are; then so many must come before it is done again."""
    monkeypatch.setattr("agent.loop.RETAINED", 500)
    monkeypatch.setattr("models.history.RETAINED", 500)
    world = SickWorld()
    agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db")
    with capture_logs() as said:
        world.live(agent, hours=2.0)
    compacted = [line for line in said if line["event"] == "ledger-compacted" and "observed" in line["streams"]]
    with agent.ledger.begin(write=False) as tx:
        assert tx.row_count("observed") > 1000
    assert 2 <= len(compacted) <= 2.0 * 3000 / 500


def rows_of(*ends):
    count = len(ends)
    texts = dict.fromkeys(COLUMNS[:7], "x")
    numbers = {name: np.arange(count, dtype=float) for name in COLUMNS[7:]}
    frame = pd.DataFrame({**texts, **numbers, "failed": False}, index=range(count)).astype(dict.fromkeys(texts, "str"))
    return frame.assign(ended_at=np.array(ends, dtype=float), started_at=np.array(ends, dtype=float) - 1)


def test_the_archive_forgets_whole_files_that_are_too_old(tmp_path):
    archive, day = Archive(tmp_path, days=2.0), 86_400.0
    last = 0
    for ends in ((0 * day, 1 * day), (2 * day, 2.5 * day), (3.2 * day, 4.4 * day)):
        last = archive.keep(rows_of(*ends), first=last)
    assert last == 6
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "000000000002-000000000004.parquet",
        "000000000004-000000000006.parquet",
    ]
    assert archive.rows(until=6, since=2.2 * day)["ended_at"].tolist() == [2.5 * day, 3.2 * day, 4.4 * day]
    assert len(archive.rows(until=5, since=0.0)) == 2  # the ledger does not know of the last file


def test_failed_transfers_and_empty_batches_leave_no_file(tmp_path):
    archive = Archive(tmp_path, days=2.0)
    assert archive.keep(rows_of(1.0, 2.0).assign(failed=True), first=7) == 7
    assert archive.keep(rows_of(), first=7) == 7
    assert list(tmp_path.iterdir()) == []
    assert list(archive.rows(until=7, since=0.0).columns) == list(COLUMNS)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: pd.DataFrame({"ended_at": [1.0]}).to_parquet(path), "has no column 'source'"),
        (lambda path: pd.DataFrame({"source": ["x"]}).to_parquet(path), "cannot be read"),
    ],
)
def test_a_file_of_the_archive_that_somebody_has_harmed_is_named(tmp_path, harm, match):
    archive = Archive(tmp_path, days=2.0)
    last = archive.keep(rows_of(1.0, 2.0), first=0)
    harm(tmp_path / "000000000000-000000000002.parquet")
    assert archive.keep(rows_of(3.0, 4.0), first=last) == 4  # the daemon goes on
    with pytest.raises(SourceError, match=rf"000000000000-000000000002\.parquet {match}.*remove the file"):
        archive.rows(until=4, since=0.0)


def test_without_space_for_the_archive_watching_goes_on(stack, tmp_path, monkeypatch):
    monkeypatch.setattr("agent.loop.RETAINED", 500)
    monkeypatch.setattr("models.history.RETAINED", 500)
    world = SickWorld()
    (tmp_path / "transfers").write_text("a file where the directory should be")
    agent = world.agent(stack, f"sqlite:///{tmp_path}/ledger.db", archive=Archive(tmp_path / "transfers", days=1.0))
    with capture_logs() as said:
        world.live(agent, hours=1.0)
    failures = [line for line in said if line["event"] == "archive-failed"]
    assert failures
    assert all(line["cure"] and line["lost"] for line in failures)
    with agent.ledger.begin(write=False) as tx:
        assert tx.row_count("observed") < 2 * 3000 + 1000
        assert tx.setting("archived-transfers") is None
    assert agent.run_once(world.now + timedelta(seconds=1)).caught_up
