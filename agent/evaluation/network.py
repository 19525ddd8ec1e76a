"""The network detector judged on recorded perfSONAR series: alarms as they stand, and faults put into them one at a time."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agent.daemon import wall_clock
from agent.evaluation.network_rules import RULES, Rule
from agent.evaluation.place import make_place
from agent.sources import READINGS
from agent.sources.files import FilesSource
from detectors.findings import QUANTITY, Finding, Trouble, Turn
from detectors.network import NetworkDetector
from models.domain import EntityKind, SourceError
from models.measurements import Paths

Columns = dict[str, NDArray[Any]]
Pair = tuple[str, str]

HOUR_S, DAY_S, WEEK_S = 3600.0, 86_400.0, 604_800.0
COUNTED = {"packet_loss": 20, "delay_mean": 20, "throughput": 3}  # readings of a pair's week that counts
COVERED, EARLIER = 3, {Trouble.THROUGHPUT: 10}  # readings within a fault, and before it
TRIES = 50  # to place a fault
LASTS_S = {
    Trouble.LOSS: 2 * HOUR_S,
    Trouble.DELAY: DAY_S,
    Trouble.THROUGHPUT: 3 * DAY_S,
    Trouble.CLOCK: DAY_S,
    Trouble.FIREWALL: DAY_S,
}
LOSS, STEP_MS, LEFT, JUMP_MS = 0.02, 15.0, 0.3, 200.0
_MONDAY_S = 4 * DAY_S  # 1970-01-05
_PAGE = 100_000
_TEXT = ("source_site", "destination_site", "source_host", "destination_host", "quantity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is put into a series: from `start`, for as long as its kind lasts."""

    trouble: Trouble
    pair: Pair
    start: float
    site: str  # whose clock it is, else ""
    ahead: float  # of that clock, ms

    @property
    def end(self) -> float:
        return self.start + LASTS_S[self.trouble]

    def touches(self, pair: Pair) -> bool:
        """Whether readings of the pair are other than without it."""
        return self.site in pair if self.site else pair == self.pair

    def meant(self, finding: Finding) -> bool:
        """Whether a finding is of what the fault changes."""
        return any(self.touches(_pair(path)) for path in finding.paths)

    def named(self, finding: Finding) -> bool:
        """Whether a finding says what the fault is, and blames the pair that it is on; a clock's site, or a path of it."""
        if finding.trouble is not self.trouble:
            return False
        if finding.culprit.kind is EntityKind.SITE:
            return finding.culprit.name == self.site
        return self.touches(_pair(finding.culprit.name))


class Recorded:
    """Readings of files in the order of their times, and by pair and quantity."""

    def __init__(self, files: Sequence[Path]) -> None:
        frame, self.read, self.refused = _read(files)
        self.columns: Columns = {
            name: frame[name].to_numpy(dtype=object if name in _TEXT else np.float64) for name in frame.columns
        }
        self.times: NDArray[np.float64] = self.columns["at"]
        wanted = [name in COUNTED for name in self.columns["quantity"]]
        groups: Mapping[Any, Any] = (
            frame[wanted].groupby(["quantity", "source_site", "destination_site"], sort=True).indices
        )
        places = np.flatnonzero(wanted)
        self.rows: dict[str, dict[Pair, NDArray[np.int64]]] = {quantity: {} for quantity in COUNTED}
        for (quantity, source, destination), inside in groups.items():
            self.rows[quantity][source, destination] = places[inside]

    def series(self, quantity: str, pair: Pair) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times and values of one pair."""
        rows = self.rows[quantity][pair]
        return self.times[rows], self.columns["value"][rows]

    def between(self, start: float, end: float) -> tuple[int, int]:
        """The places of the readings in [start, end)."""
        first, last = np.searchsorted(self.times, [start, end])
        return int(first), int(last)

    def cut(self, first: int, last: int) -> Columns:
        return {name: values[first:last] for name, values in self.columns.items()}

    def weeks(self) -> dict[str, set[tuple[Pair, int]]]:
        """The pairs' weeks that count, of each quantity."""
        counted: dict[str, set[tuple[Pair, int]]] = {}
        for quantity, pairs in self.rows.items():
            counted[quantity] = set()
            for pair, rows in pairs.items():
                weeks, counts = np.unique(week(self.times[rows]), return_counts=True)
                counted[quantity] |= {(pair, int(one)) for one in weeks[counts >= COUNTED[quantity]]}
        return counted


def evaluate(data: Sequence[Path], *, seeds: int, plots: Path | None = None) -> dict[str, Any]:
    """Play the readings of `data`, then with each fault; return the object that `--report` writes.

    Raise SourceError if files cannot be read or hold no reading, ConfigError if there is no place for the plots.
    """
    if plots is not None:
        make_place(plots)
    recorded = Recorded(data)
    faults = sorted(_place(recorded, seeds), key=lambda fault: fault.start)
    turns, outcomes, counts = _play(recorded, faults)
    weeks = recorded.weeks()
    opened = [finding for finding in turns if finding.turn is Turn.OPENED]
    if plots is not None:
        from agent.evaluation.network_plots import draw  # noqa: PLC0415 - matplotlib, for plots alone

        draw(plots, recorded, opened)
    rules = {rule.trouble: _alarms(recorded, rule) for rule in RULES}
    return {
        "readings": {"read": recorded.read, "refused": recorded.refused, "judged": dict(sorted(counts.items()))},
        "pair_weeks": {quantity: len(found) for quantity, found in weeks.items()},
        "alarms_per_pair_week": {
            trouble.value: _rate([_alarm(one) for one in opened if one.trouble is trouble], trouble, weeks)
            for trouble in Trouble
        },
        "injected": _judged(faults, outcomes),
        "rules": {
            "alarms_per_pair_week": {
                trouble.value: _rate([(pair, at) for pair, times in alarms.items() for at in times], trouble, weeks)
                for trouble, alarms in rules.items()
            },
            "injected": _judged(faults, [_by_rule(recorded, rules, fault) for fault in faults]),
        },
        "alarms": [_told(one) for one in opened],
    }


def week(at: NDArray[np.float64]) -> NDArray[np.int64]:
    """The weeks, from Monday to Sunday, that times lie in."""
    return np.floor((at - _MONDAY_S) / WEEK_S).astype(np.int64)


def _read(files: Sequence[Path]) -> tuple[pd.DataFrame, int, dict[str, int]]:
    frames, read, refused = [], 0, Counter[str]()
    now, cursor, caught_up = wall_clock(), dict[str, object](), False
    located = Paths()
    with closing(FilesSource(name="measurements", paths=files, decoder=READINGS)) as source:
        while not caught_up:
            page = source.poll(cursor, limit=_PAGE, now=now)
            cursor, caught_up = dict(page.cursor), page.caught_up
            read += page.read
            refused.update(str(refusal.reason) for refusal in page.refusals)
            frames.append(located.locate(page.rows))
    frame = pd.concat(frames, ignore_index=True).sort_values("at", kind="stable", ignore_index=True)
    if not frame["quantity"].isin(list(COUNTED)).any():
        raise SourceError(
            f"{', '.join(map(str, files))}: holds no reading of loss, delay or throughput; name files that do"
        )
    return frame, read, dict(sorted(refused.items()))


def _place(recorded: Recorded, seeds: int) -> Iterator[Fault]:
    """One fault of each kind for each seed and pair, where there is a time at which enough is measured."""
    for seed in range(seeds):
        for number, trouble in enumerate(Trouble):
            for place, pair in enumerate(recorded.rows[QUANTITY[trouble]]):
                draw = np.random.default_rng([seed, number, place])
                at = recorded.series(QUANTITY[trouble], pair)[0]
                for start in draw.uniform(at[0], at[-1], TRIES).tolist():
                    before, after = np.searchsorted(at, [start, start + LASTS_S[trouble]])
                    if after - before >= COVERED and before >= EARLIER.get(trouble, 0):
                        clock = trouble is Trouble.CLOCK
                        yield Fault(
                            trouble=trouble,
                            pair=pair,
                            start=start,
                            site=pair[int(draw.integers(2))] if clock else "",
                            ahead=JUMP_MS * float(draw.choice([-1.0, 1.0])) if clock else 0.0,
                        )
                        break


def struck(columns: Columns, fault: Fault) -> Columns:
    """Readings as they would have been with the fault; all of them lie within it."""
    quantity, value = columns["quantity"], columns["value"].copy()
    source, destination = columns["source_site"], columns["destination_site"]
    own = (source == fault.pair[0]) & (destination == fault.pair[1])
    match fault.trouble:
        case Trouble.LOSS:
            hit = own & (quantity == "packet_loss")
            value[hit] = 1.0 - (1.0 - value[hit]) * (1.0 - LOSS)
        case Trouble.DELAY:
            value[own & (quantity == "delay_mean")] += STEP_MS
        case Trouble.THROUGHPUT:
            value[own & (quantity == "throughput")] *= LEFT
        case Trouble.CLOCK:
            delay = quantity == "delay_mean"
            value[delay & (source == fault.site)] -= fault.ahead
            value[delay & (destination == fault.site)] += fault.ahead
        case Trouble.FIREWALL:
            value[own & (quantity == "packet_loss")] = 1.0
            kept = ~(own & np.isin(quantity, ["delay_mean", "delay_sd"]))  # what does not arrive has no delay
            return {name: values[kept] for name, values in (columns | {"value": value}).items()}
    return columns | {"value": value}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    seconds: float  # to the detection; infinite: none
    named: bool


_MISSED = _Outcome(seconds=math.inf, named=False)


def _play(recorded: Recorded, faults: Sequence[Fault]) -> tuple[list[Finding], list[_Outcome], Counter[str]]:
    """Play all readings once; at each fault's start a copy of the detector goes on with the readings that the fault leaves.

    `faults` stand in the order of their starts.
    """
    detector, turns, place = NetworkDetector(), list[Finding](), 0
    copied: list[tuple[Fault, list[Finding]]] = []
    for fault in faults:
        first, last = recorded.between(fault.start, fault.end)
        turns += detector.absorb(recorded.cut(place, first))
        place = first
        copy: NetworkDetector = pickle.loads(pickle.dumps(detector))  # noqa: S301 - a copy within this process
        copied.append((fault, copy.absorb(struck(recorded.cut(first, last), fault))))
    turns += detector.absorb(recorded.cut(place, len(recorded.times)))
    anyway = {said for finding in turns for said in _said(finding)}
    return turns, [_outcome(fault, told, anyway) for fault, told in copied], detector.counts


def _said(finding: Finding) -> Iterator[tuple[str, ...]]:
    yield finding.id, finding.trouble, str(finding.culprit)
    for path in finding.paths:
        yield finding.id, path


def _outcome(fault: Fault, told: Sequence[Finding], anyway: Container[tuple[str, ...]]) -> _Outcome:
    """The first finding that by the fault alone is opened, named otherwise, or takes in a path of the fault.

    It is judged by the name that it had when last told of.
    """
    for finding in told:
        new = any(said not in anyway and (len(said) > 2 or fault.touches(_pair(said[1]))) for said in _said(finding))
        if new and finding.turn is not Turn.CLOSED:
            last = [one for one in told if one.id == finding.id][-1]
            if fault.meant(last):
                return _Outcome(seconds=finding.updated_at.timestamp() - fault.start, named=fault.named(last))
    return _MISSED


def _by_rule(recorded: Recorded, alarms: Mapping[Trouble, Mapping[Pair, list[float]]], fault: Fault) -> _Outcome:
    rule = next(rule for rule in RULES if QUANTITY[rule.trouble] == QUANTITY[fault.trouble])
    found = []
    for pair, rows in recorded.rows[QUANTITY[rule.trouble]].items():
        if not fault.touches(pair):
            continue
        near = rows[slice(*np.searchsorted(recorded.times[rows], [fault.start - rule.memory_s, fault.end]))]
        inside = np.searchsorted(recorded.times[near], fault.start)
        columns = {name: values[near] for name, values in recorded.columns.items()}
        value = columns["value"].copy()
        value[inside:] = struck({name: values[inside:] for name, values in columns.items()}, fault)["value"]
        new = set(rule.alarms(columns["at"], value, since=fault.start)) - set(alarms[rule.trouble][pair])
        found += [at for at in new if at >= fault.start]
    if not found:
        return _MISSED
    return _Outcome(seconds=min(found) - fault.start, named=rule.trouble is fault.trouble)


def _alarms(recorded: Recorded, rule: Rule) -> dict[Pair, list[float]]:
    quantity = QUANTITY[rule.trouble]
    return {pair: rule.alarms(*recorded.series(quantity, pair), since=-math.inf) for pair in recorded.rows[quantity]}


def _judged(faults: Sequence[Fault], outcomes: Sequence[_Outcome]) -> dict[str, dict[str, float | int | None]]:
    judged: dict[str, dict[str, float | int | None]] = {}
    for trouble in Trouble:
        own = [outcome for fault, outcome in zip(faults, outcomes, strict=True) if fault.trouble is trouble]
        found = [outcome for outcome in own if math.isfinite(outcome.seconds)]
        middle = float(np.sort([outcome.seconds for outcome in own])[len(own) // 2]) / 60.0 if own else math.inf
        judged[trouble.value] = {
            "qualified": len(own),
            "recall": len(found) / len(own) if own else None,
            "named": sum(outcome.named for outcome in found) / len(found) if found else None,
            "minutes_to_detect": round(middle, 1) if math.isfinite(middle) else None,
        }
    return judged


def _rate(
    alarms: Sequence[tuple[Pair, float]], trouble: Trouble, weeks: Mapping[str, set[tuple[Pair, int]]]
) -> float | None:
    """Alarms in the pairs' weeks that count, by the number of these."""
    counted = weeks[QUANTITY[trouble]]
    inside = sum((pair, int(week(np.array([at]))[0])) in counted for pair, at in alarms)
    return inside / len(counted) if counted else None


def _alarm(finding: Finding) -> tuple[Pair, float]:
    """An alarm counts once, at the pair that showed it first, whatever it is put down to."""
    return _pair(finding.paths[0]), finding.opened_at.timestamp()


def _pair(path: str) -> Pair:
    source, _, destination = path.partition(">")
    return source, destination


def _told(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.trouble.value,
        "culprit": str(finding.culprit),
        "path": finding.paths[0],
        "since": finding.since.isoformat(),
        "opened_at": finding.opened_at.isoformat(),
        "before": finding.before,
        "now": finding.now,
        "readings": finding.readings,
        "confidence": round(finding.confidence, 3),
    }


def table(found: Mapping[str, Any]) -> str:
    """The report for people."""
    readings = found["readings"]
    refused = ", ".join(f"{reason} {count}" for reason, count in readings["refused"].items()) or "none"
    weeks = ", ".join(f"{quantity} {count}" for quantity, count in found["pair_weeks"].items())
    lines = [f"{readings['read']} documents read, refused: {refused}; weeks of pairs that count: {weeks}", ""]
    for who, what in (("detector", found), ("today's rules", found["rules"])):
        rates = what["alarms_per_pair_week"]
        whole = sum(rate or 0.0 for rate in rates.values())
        lines.append(f"{who:<14}{'faults':>8}{'recall':>9}{'named':>9}{'minutes':>9}{'alarms a pair and week':>25}")
        for kind, one in what["injected"].items():
            cells = (one["recall"], one["named"], one["minutes_to_detect"], rates.get(kind))
            recall, named, minutes, rate = ("-" if cell is None else f"{cell:.3f}" for cell in cells)
            lines.append(f"  {kind:<12}{one['qualified']:>8}{recall:>9}{named:>9}{minutes:>9}{rate:>25}")
        lines += [f"  {'all kinds':<60}{whole:>11.3f}", ""]
    return "\n".join(lines).rstrip()
