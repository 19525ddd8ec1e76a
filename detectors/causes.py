"""Which symptoms have one cause: the series that show them, the finding that they make while it is open."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from detectors.delays import SAME_SHARE, STEP_MS, DelaySeries
from detectors.findings import QUANTITY, Symptom, Trouble
from detectors.series import DAY_S, LossSeries, ThroughputSeries
from models.domain import Entity, EntityKind

Series: TypeAlias = "LossSeries | DelaySeries | ThroughputSeries"

# What begins within so much of each other may have one cause; of throughput a test comes a few times a day.
TOGETHER_S = {"packet_loss": 6 * 3600.0, "delay_mean": 6 * 3600.0, "throughput": 3 * DAY_S}
_STAYING = {Trouble.LOSS, Trouble.FIREWALL, Trouble.CLOCK}  # what else a path shows of them while they last is the same
_TIMES = 64  # of each series, by which repeated readings are known


@dataclass(slots=True, kw_only=True, eq=False)
class Track:
    """A series, the sites that it is of now, and the symptom last seen."""

    quantity: str
    source: str
    destination: str
    series: Series
    symptom: Symptom | None = None
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))

    @property
    def path(self) -> str:
        return f"{self.source}>{self.destination}"

    def peer(self, site: str) -> str:
        return self.destination if self.source == site else self.source


@dataclass(slots=True, kw_only=True, eq=False)
class Case:
    """A finding while it is open."""

    id: str
    trouble: Trouble
    culprit: Entity
    opened_at: float
    tracks: list[Track]  # that show it now
    seen: dict[str, None]  # paths that have shown it
    first: Symptom

    def covers(self, track: Track) -> bool:
        if self.culprit.kind is EntityKind.SITE:
            return self.culprit.name in {track.source, track.destination}
        return self.culprit.name == track.path


def agrees(track: Track, symptom: Symptom) -> bool:
    """Whether a series shows the same as another one's symptom since about then, or begins to."""
    series, own = track.series, track.series.symptom
    if own is not None and abs(own.since - symptom.since) > TOGETHER_S[track.quantity]:
        return False
    if isinstance(series, DelaySeries):
        return series.leans(symptom.since, symptom.now - (symptom.before or 0.0))
    # One test of throughput in seven is low by chance, so that a beginning says too little.
    return own is not None or (isinstance(series, LossSeries) and series.leans(symptom.since))


def one_cause(case: Case, track: Track, trouble: Trouble, culprit: Entity, symptom: Symptom) -> bool:
    """Whether a new symptom belongs to an open finding; so it does to that of the way back, if that began then."""
    if not akin(case.trouble, trouble):
        return False
    if case.covers(track) and trouble in _STAYING and case.trouble in _STAYING:
        return True
    if case.trouble is trouble and case.culprit == culprit and near(case, symptom):
        return True
    like = trouble is not Trouble.DELAY or case.trouble is not Trouble.DELAY or alike(case.first, symptom)
    return (like and near(case, symptom)) and (
        case.covers(track)
        or (case.trouble is trouble and case.culprit.name == f"{track.destination}>{track.source}")
        or (culprit.kind is EntityKind.SITE and within(case, culprit.name))
    )


def akin(one: Trouble, other: Trouble) -> bool:
    """Whether one may turn out to be the other."""
    return QUANTITY[one] == QUANTITY[other]


def alike(one: Symptom, other: Symptom) -> bool:
    """Whether two delays moved by about the same."""
    step, like = (symptom.now - (symptom.before or 0.0) for symptom in (one, other))
    return abs(step - like) <= max(STEP_MS / 2.0, SAME_SHARE * abs(step))


def near(case: Case, symptom: Symptom) -> bool:
    return abs(case.first.since - symptom.since) <= TOGETHER_S[QUANTITY[case.trouble]]


def within(case: Case, site: str) -> bool:
    """Whether a finding is of a path of the site, or of the site."""
    if case.culprit.kind is EntityKind.SITE:
        return case.culprit.name == site
    link = case.culprit.link
    return site in {link.source, link.destination}
