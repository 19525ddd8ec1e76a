"""A challenger of the forecaster in service: trained on the newest transfers, compared with it, promoted if it is better.

This runs in a process of its own, `gridmedic retrain`: what goes wrong here leaves the version in service where it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from agent.archive import Archive, finished
from agent.assembly import archive, versions
from agent.config import Config
from agent.loop import ARCHIVED, OBSERVED
from models.comparison import gain
from models.domain import ConfigError, ModelError
from models.events import FINISHED
from models.forecaster import Forecaster
from models.history import retained
from models.metrics import pinball_losses
from models.versions import Event, Versions, What, called
from storage.ledger import Ledger

VERDICT = "verdict.json"
FEWEST = 500  # transfers to learn from
FEWEST_HELD_OUT = 100
MOST = 2_000_000  # transfers, the newest: what a challenger learns from is held in memory
ORPHANED = 3  # exit status

_DAY_S = 86_400.0

Table = NDArray[np.float64]


class Verdict(BaseModel):
    """What a retraining ended with; `version` is the challenger's where it was promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: What
    version: str | None
    why: str


class Train(Protocol):
    def __call__(self, transfers: pd.DataFrame, out: Path, *, start: Path, seed: int) -> None:
        """Train on finished transfers in the order in which they ended, from `start` on, and leave a model in `out`."""


def retrain(config: Config, *, at: datetime) -> Verdict:
    """Train a challenger now and promote it if it is better. Raises a GridmedicError for whatever is in the way."""
    if config.forecast.pinned:
        raise ConfigError(
            f"forecast.model names {config.forecast.model!r}, and nothing is promoted over that; "
            "write `default` there to have versions, or train with `gridmedic train`"
        )
    with _alone(directory(config)) as scratch:
        known = versions(config)
        with closing(Ledger.open(config.ledger_url)) as ledger:
            transfers = window(ledger, archive(config), days=config.forecast.retrain.window_days)
        verdict = challenge(transfers, known=known, scratch=scratch / "challenger", at=at, train=train)
        part = scratch / f"{VERDICT}.part"
        part.write_text(verdict.model_dump_json() + "\n", encoding="utf-8")
        part.replace(scratch / VERDICT)
        with suppress(ModelError):  # the verdict holds, whether it can be noted and others swept out or not
            known.record(Event(at=at, what=verdict.what, version=verdict.version, why=verdict.why))
            known.prune(keep=config.forecast.retrain.keep_versions)
    return verdict


def directory(config: Config) -> Path:
    """Where a retraining has its challenger, its log and its verdict."""
    return config.state_dir / "retraining"


def window(ledger: Ledger, older: Archive, *, days: float) -> pd.DataFrame:
    """The finished transfers of the last `days` before the newest one, each once, in the order in which they ended."""
    with ledger.begin(write=False) as tx:
        rows, archived = finished(tx.rows(OBSERVED)), int(tx.setting(ARCHIVED) or 0)
    if not len(rows):
        return rows
    since = float(rows["ended_at"].max()) - days * _DAY_S
    parts = [older.rows(until=archived, since=since), rows[rows["ended_at"] >= since]]
    whole = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return whole.sort_values("ended_at", kind="stable", ignore_index=True).tail(MOST).reset_index(drop=True)


def split(transfers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Transfers to learn from, and those held out: the newest day, or the last fifth of less than five days."""
    ended = transfers["ended_at"].to_numpy(np.float64)
    if not len(ended):
        return transfers, transfers
    since = ended[-1] - min(_DAY_S, (ended[-1] - ended[0]) / 5)
    first = int(np.searchsorted(ended, since))
    return transfers.iloc[:first], transfers.iloc[first:]


def challenge(transfers: pd.DataFrame, *, known: Versions, scratch: Path, at: datetime, train: Train) -> Verdict:
    """Train on the older transfers, compare on the newest, and promote if the whole interval of the gain lies above 0."""
    learned, held_out = split(transfers)
    if len(learned) < FEWEST or len(held_out) < FEWEST_HELD_OUT:
        why = f"{len(transfers):,} finished transfers are too few to learn from and to compare on"
        return Verdict(what=What.SKIPPED, version=None, why=why)
    standing = known.standing()
    shutil.rmtree(scratch, ignore_errors=True)
    champion = known.directory_of(standing.version)
    train(learned, scratch, start=champion, seed=int(at.timestamp() // _DAY_S))
    warm = learned[retained(learned)]
    actual = np.log1p((held_out["ended_at"] - held_out["started_at"]).to_numpy(np.float64))
    losses = [pinball_losses(actual, _forecasts(model, warm, held_out)) for model in (champion, scratch)]
    found = gain(losses[0], losses[1], held_out["ended_at"].to_numpy(np.float64), seed=0)
    why = f"pinball loss {losses[1].mean():.4g} against {losses[0].mean():.4g} of {called(standing.version)}: gain {found}"
    better = found.share.low > 0
    if not better:
        return Verdict(what=What.KEPT_OUT, version=None, why=why)
    name = known.add(scratch, at=at)
    try:
        known.promote(name, why=why, at=at, instead_of=standing)
    except ModelError as error:
        return Verdict(what=What.KEPT_OUT, version=None, why=f"{error}; {why}")
    return Verdict(what=What.SUCCEEDED, version=name, why=why)


def train(transfers: pd.DataFrame, out: Path, *, start: Path, seed: int) -> None:
    """Go on from the model in `start` with finished transfers in the order in which they ended; leave a model in `out`."""
    from models.training import train as train_on  # noqa: PLC0415 - TensorFlow takes seconds to import

    train_on([[transfers.assign(type=FINISHED[0])]], out=out, start=start, seed=seed)


def attach() -> None:
    """Belong to the daemon at the other end of standard input: go when it goes, let it run first, and die before it does."""
    os.nice(19)
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w", encoding="ascii") as score:
        score.write("1000")
    threading.Thread(target=_listen, daemon=True).start()


def _listen() -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(ORPHANED)


def _forecasts(model: Path, warm: pd.DataFrame, held_out: pd.DataFrame) -> Table:
    forecaster = Forecaster.load(model)
    forecaster.absorb(warm.assign(failed=False))
    return forecaster.score(held_out.assign(failed=False))


@contextmanager
def _alone(directory: Path) -> Iterator[Path]:
    """Hold the directory, and clear the last verdict from it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ModelError(f"another retraining is at work in {directory}; wait for it to end") from None
            (directory / VERDICT).unlink(missing_ok=True)
            yield directory
    except OSError as error:
        raise ModelError(
            f"{directory}: {error.strerror or error}; see to its rights and to space on its disk"
        ) from error
