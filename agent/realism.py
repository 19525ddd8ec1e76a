"""How real the simulated grid is: its transfers and measurements beside recorded ones, one by one and in how they hang together.

Marginals alone can be met by drawing from a table, so the structure counts as much: what transfers of one link have in common,
how sizes and durations go together, whether a classifier can tell both apart, and whether what is learnt here holds there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import ks_2samp, spearmanr

from models.domain import SourceError
from models.events import FINISHED, decode_table
from models.features import NUMBERS, blocks
from models.lessons import Lessons, finished_transfers, lessons_of
from models.measurements import decode_readings_table
from models.metrics import Baselines

FloatArray = npt.NDArray[np.float64]

SCENARIO = "atlas"
WARM_UP_H, HOURS = 4, 1  # simulated before, and then looked at
SAMPLE = 1200  # finished transfers of the hour: what was recorded is such a cut
LESSONS = 24  # more cuts of the hour, to learn from
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
BUSIEST = 10

_TRANSFERS, _READINGS = "rucio_transfer_done_2017-06-18.csv", "perfsonar_2016_site_pairs.csv.gz"
_LATER = datetime(2030, 1, 1, tzinfo=UTC)  # after everything that was recorded
_START = datetime(2017, 6, 18, tzinfo=UTC)
_LEFT_OUT = [part for name, part in blocks().items() if name in {"path", "week"}]  # unknown of what was recorded
_LEARNT = np.delete(np.arange(len(NUMBERS)), np.r_[*_LEFT_OUT])
_READ = {"perfsonar_loss": "packet_loss", "perfsonar_delay": "delay_mean", "perfsonar_throughput": "throughput"}

Report = dict[str, dict[str, Any]]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What can be known of a grid: finished transfers in the order of their ends (EVENT_COLUMNS), and READING_COLUMNS."""

    transfers: pd.DataFrame
    readings: pd.DataFrame


def recorded(directory: Path) -> Observed:
    """The reference data of `directory`; raise SourceError if it is not there."""
    for name in (_TRANSFERS, _READINGS):
        if not (directory / name).exists():
            raise SourceError(f"{directory}: there is no {name!r}; name the directory that holds the reference data")
    table = pd.read_csv(directory / _TRANSFERS, dtype=str, keep_default_na=False)
    events, _ = decode_table(table, now=_LATER)
    readings, _ = decode_readings_table(pd.read_csv(directory / _READINGS, dtype=str), now=_LATER)
    return Observed(transfers=finished_transfers(events), readings=readings)


def simulated(*, seed: int, told: Progress) -> Observed:
    """An hour of the scenario after its queues have filled: all transfers that finish in it, all readings since the start."""
    from simulator.scenario import load  # noqa: PLC0415 - with what follows it takes a second, and only this command needs it
    from simulator.world import World  # noqa: PLC0415

    world = World(load(SCENARIO), seed=seed, start=_START)
    events, readings = [], []
    for hour in range(1, WARM_UP_H + HOURS + 1):
        told(f"simulating hour {hour} of {WARM_UP_H + HOURS}")
        emitted = world.advance(_START + timedelta(hours=hour))
        readings.append(world.probes.frame(emitted.measurements))
        if hour > WARM_UP_H:
            frame = world.documents.frame(emitted.events)
            events.append(frame[frame["type"].isin(FINISHED)])
    transfers = pd.concat(events).drop_duplicates("request_id")
    return Observed(transfers=finished_transfers(transfers), readings=pd.concat(readings, ignore_index=True))


def compare(real: Observed, simulation: Observed, *, seed: int, told: Progress) -> Report:
    """`quantities` and `structure` of both; see docs/simulator.md for each."""
    told("comparing")
    cut = sample(simulation.transfers, np.random.default_rng(seed))
    quantities = {name: _beside(values, _quantities(cut)[name]) for name, values in _quantities(real.transfers).items()}
    quantities |= _readings_beside(real.readings, simulation.readings)
    one, other = _structure(real.transfers), _structure(cut)
    structure: dict[str, Any] = {name: {"real": one[name], "simulated": other[name]} for name in one}
    told("training a classifier to tell them apart")
    structure |= _told_apart(real.transfers, cut, seed=seed)
    told("learning from the simulation")
    structure["transfer_from_simulation"] = _learnt(real.transfers, simulation.transfers, seed=seed)
    return {"quantities": quantities, "structure": structure}


def sample(transfers: pd.DataFrame, draw: np.random.Generator) -> pd.DataFrame:
    """As many transfers as were recorded, at random, still in their order."""
    places = np.sort(draw.choice(len(transfers), min(SAMPLE, len(transfers)), replace=False))
    return transfers.iloc[places].reset_index(drop=True)


def write(report: Report, path: Path) -> None:
    """As JSON; what there is nothing to be said of is null."""
    path.write_text(json.dumps(_sayable(report), indent=2) + "\n", encoding="utf-8")


def table(report: Report) -> str:
    """Real and simulated side by side, as text."""
    head = "".join(f"{f'q{100 * level:02.0f}':>11}" for level in LEVELS)
    lines = [f"{'':<34}{head}{'KS':>8}"]
    for name, both in report["quantities"].items():
        for which in ("real", "simulated"):
            numbers = "".join(f"{both[which][key]:>11.4g}" for key in both[which])
            distance = f"{both['ks']:>8.3f}" if which == "simulated" else ""
            lines.append(f"{name + ', ' + which:<34}{numbers}{distance}")
    lines += ["", f"{'':<34}{'real':>11}{'simulated':>11}"]
    for name, both in report["structure"].items():
        more = "".join(
            f"   {key.replace('_', ' ')} {both[key]:.3f}" for key in both if key not in {"real", "simulated"}
        )
        lines.append(f"{name:<34}{both['real']:>11.3f}{both['simulated']:>11.3f}{more}")
    return "\n".join(lines)


def _sayable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, dict):
        return {name: _sayable(one) for name, one in value.items()}
    return value if math.isfinite(value) else None


def _seconds(transfers: pd.DataFrame, begin: str, end: str) -> FloatArray:
    """Whole seconds: what was recorded has no fractions."""
    seconds: FloatArray = np.floor((transfers[end] - transfers[begin]).to_numpy(dtype=np.float64).clip(min=0.0))
    return seconds


def _quantities(transfers: pd.DataFrame) -> dict[str, FloatArray]:
    duration = _seconds(transfers, "started_at", "ended_at")
    size = transfers["bytes"].to_numpy(dtype=np.float64)
    return {
        "log_duration": np.log1p(duration),
        "log_bytes": np.log1p(size),
        "log_rate": np.log1p(size / np.maximum(duration, 1.0)),
        "log_queue_delay": np.log1p(_seconds(transfers, "submitted_at", "started_at")),
    }


def _beside(real: FloatArray, simulation: FloatArray) -> dict[str, Any]:
    return {
        "real": _quantiles(real),
        "simulated": _quantiles(simulation),
        "ks": float(ks_2samp(real, simulation).statistic) if len(real) and len(simulation) else math.nan,
    }


def _quantiles(values: FloatArray) -> dict[str, float]:
    found = np.quantile(values, LEVELS) if len(values) else np.full(len(LEVELS), np.nan)
    return {f"q{100 * level:02.0f}": float(value) for level, value in zip(LEVELS, found, strict=True)}


def _readings_beside(real: pd.DataFrame, simulation: pd.DataFrame) -> dict[str, Any]:
    """Measurements of perfSONAR between the sites that both have."""
    one, other = _by_pair(real), _by_pair(simulation)
    common = set(one["pair"]) & set(other["pair"])
    found = {}
    for name, quantity in _READ.items():
        parts = [
            each.loc[each["pair"].isin(common) & (each["quantity"] == quantity), "value"].to_numpy(dtype=np.float64)
            for each in (one, other)
        ]
        found[name] = _beside(*parts)
    return found


def _by_pair(readings: pd.DataFrame) -> pd.DataFrame:
    pair = readings["source_site"].str.upper() + ">" + readings["destination_site"].str.upper()
    return readings.assign(pair=pair)


def _structure(transfers: pd.DataFrame) -> dict[str, float]:
    logs = _quantities(transfers)
    link = transfers["source"] + ">" + transfers["destination"]
    counts = link.value_counts().to_numpy()
    adjusted = _size_adjusted(logs["log_duration"], logs["log_bytes"])
    return {
        "spearman_bytes_duration": float(spearmanr(logs["log_bytes"], logs["log_duration"]).statistic),
        "icc_link": _intraclass(adjusted, link),
        "icc_source": _intraclass(adjusted, transfers["source"]),
        "icc_destination": _intraclass(adjusted, transfers["destination"]),
        "ten_busiest_links_share": float(counts[:BUSIEST].sum() / counts.sum()),
        "links_once_share": float((counts == 1).mean()),
    }


def _size_adjusted(log_duration: FloatArray, log_bytes: FloatArray) -> FloatArray:
    """What a parabola in log bytes does not explain."""
    return log_duration - np.polyval(np.polyfit(log_bytes, log_duration, 2), log_bytes)


def _intraclass(values: FloatArray, group: pd.Series) -> float:
    """Intraclass correlation by one-way analysis of variance, for groups of unequal size."""
    codes, names = pd.factorize(group)
    size = np.bincount(codes)
    mean = np.bincount(codes, values) / size
    between = float((size * (mean - values.mean()) ** 2).sum() / max(len(names) - 1, 1))
    within = float(((values - mean[codes]) ** 2).sum() / max(len(values) - len(names), 1))
    usual = (len(values) - (size**2).sum() / len(values)) / max(len(names) - 1, 1)
    return float((between - within) / (between + (usual - 1) * within))


def _told_apart(real: pd.DataFrame, cut: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """AUC of a classifier on bytes, duration and queue delay: of simulated against real ones, and of the real ones that ended
    first against those that ended last; and what it makes of each side's own columns shuffled.
    """
    names = ("log_bytes", "log_duration", "log_queue_delay")
    one, other = (np.stack([_quantities(each)[name] for name in names], axis=1) for each in (real, cut))
    draw = np.random.default_rng(seed)
    middle = len(one) // 2
    return {
        "classifier_auc": {
            "real": _auc(one[:middle], one[middle:]),
            "simulated": _auc(one, other),
        },
        "classifier_auc_columns_shuffled": {
            "real": _auc(one, draw.permuted(one, axis=0)),
            "simulated": _auc(other, draw.permuted(other, axis=0)),
        },
    }


def _auc(one: FloatArray, other: FloatArray) -> float:
    """Cross-validated, of gradient boosting that tells one from the other."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415 - slow to import
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: PLC0415

    inputs, answer = np.concatenate([one, other]), np.repeat([1, 0], [len(one), len(other)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chance = cross_val_predict(
        HistGradientBoostingClassifier(random_state=0), inputs, answer, cv=folds, method="predict_proba"
    )
    return float(roc_auc_score(answer, chance[:, 1]))


def _learnt(real: pd.DataFrame, simulation: pd.DataFrame, *, seed: int) -> dict[str, float]:
    """Mean error in log1p seconds on the real transfers: of their links' medians so far, and of boosting on simulated ones.

    The booster sees what is known when a transfer starts, its link's, source's and destination's past among it. It learns
    from cuts as thin as the recorded one, each with a past of its own, for a thicker past would be another thing to learn.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - slow to import

    draw = np.random.default_rng(seed + 1)
    cuts = [lessons_of(_whole(sample(simulation, draw))) for _ in range(LESSONS)]
    booster = HistGradientBoostingRegressor(loss="absolute_error", random_state=0, min_samples_leaf=40)
    booster.fit(np.concatenate([_inputs(cut) for cut in cuts]), np.concatenate([cut["log_duration"] for cut in cuts]))
    rows = _whole(real)
    known = lessons_of(rows)
    median = Baselines().score(rows)["link_median"][:, 2]
    return {
        "real": float(np.abs(median - known["log_duration"]).mean()),
        "simulated": float(np.abs(booster.predict(_inputs(known)) - known["log_duration"]).mean()),
    }


def _whole(transfers: pd.DataFrame) -> pd.DataFrame:
    """Times in whole seconds, as they were recorded; in the order in which transfers ended."""
    times = ["submitted_at", "started_at", "ended_at"]
    rows = finished_transfers(transfers.assign(**{name: np.floor(transfers[name]) for name in times}))
    return rows.sort_values("ended_at", kind="stable", ignore_index=True)


def _inputs(known: Lessons) -> npt.NDArray[np.float32]:
    inputs: npt.NDArray[np.float32] = known["numbers"][:, _LEARNT]
    return inputs


def run(directory: Path, *, seed: int, report: Path | None, told: Progress) -> Mapping[str, Any]:
    """Compare the scenario with the reference data of `directory`; return the report, written to `report` if given."""
    real = recorded(directory)
    found = compare(real, simulated(seed=seed, told=told), seed=seed, told=told)
    if report is not None:
        write(found, report)
    return found
