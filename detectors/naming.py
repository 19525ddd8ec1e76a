"""What a suspect is called: the kind of the incident, and whether its storage or the network is to blame.

Storage is slow on all paths, and a path is slow for all storage. So a single pair of sites whose ends are well elsewhere is a network,
unless perfSONAR has measured it meanwhile and found it well; and a storage element or site most of whose bad transfers took paths
that perfSONAR finds ill is no storage at fault.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from detectors.localisation import Suspect, site_of
from detectors.usual import Load
from detectors.weather import Sky, Weather
from detectors.window import Look
from models.domain import Entity, EntityKind, IncidentKind

ILL_SHARE = 0.6  # of the bad transfers whose path is measured
MUCH = 5e9  # bytes: less than this times that makes nobody share
# Of the transfers, or of the bytes, that are usual: a queue that is served at this pace is long, and no more.
PACE, PACE_OF_BYTES = 0.25, 0.3
TELLING = 1.5  # transfers that are expected, at least, before it says anything that none came
DRAINED_LEAST = 5  # transfers, at least, to say by their bytes at which pace a queue is served
DRAINED_SHARE = 0.35  # transfers that end while one is overdue, where what is usual is not known
ENDED_LEAST = 5  # bad transfers that have ended, at least, to say by them alone whether they ran slowly
ENDED_SHARE = 0.25  # of them
# How many times as long as would be slow half of the slow ones ran: many that share what there is are a little slow, too.
SLOWER, SLOWER_IF_ILL, FAR_SLOWER = 1.5, 1.15, 2.0
BUSY, BUSY_IN_BYTES = 2.5, 4.0  # times the usual number of transfers, or of bytes: no wonder that they take longer
WAITED_SHARE = 0.6  # of the bad transfers that ran no longer than usual, or have not ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What an incident of a suspect is called."""

    kind: IncidentKind
    culprit: Entity
    confidence: float


def name_of(suspect: Suspect, look: Look, weather: Weather, *, expected: Load | None) -> Name | None:
    """Name a suspect as of the minute of the look; None if it is no more than a queue.

    `expected` is what it moves as a rule in a time as long as the look's; None where that is not known.
    """
    if len(look.signal.kinds) == 1:
        (kind,) = look.signal.kinds
        return Name(kind=kind, culprit=suspect.entity, confidence=suspect.confidence)
    bad = look.role(suspect.column, suspect.entity.name) & look.bad
    codes, known = look.roles.codes["network"][bad].tolist(), look.roles.known("network")
    paths = Counter(path for path in (known[code] for code in codes) if between_sites(path))
    skies = {path: weather.of(path, look.at).sky for path in paths}
    ill = Counter({path: n for path, n in paths.items() if skies[path] is Sky.ILL})
    measured = sum(n for path, n in paths.items() if skies[path] is not Sky.UNKNOWN)
    over = np.count_nonzero(bad & look.over)
    told = bad & look.over if over >= max(ENDED_LEAST, ENDED_SHARE * np.count_nonzero(bad)) else bad
    ran_slow = told & look.ran_slow
    waited = np.count_nonzero(ran_slow) < (1.0 - WAITED_SHARE) * np.count_nonzero(told)
    excess = look.excess[ran_slow & ~np.isnan(look.excess)]
    times = float(np.median(excess)) if len(excess) else 0.0
    if ill and sum(ill.values()) >= ILL_SHARE * measured:
        path = ill.most_common(1)[0][0]
        if times >= SLOWER_IF_ILL or weather.of(path, look.at).sure:
            return Name(
                kind=IncidentKind.DEGRADED_NETWORK,
                culprit=weather.blamed(path, look.at),
                confidence=suspect.confidence,
            )
    if waited or suspect.entity.kind is EntityKind.FTS:
        if _moves(suspect, look, int(np.count_nonzero(bad)), expected):
            return None
        return Name(kind=IncidentKind.STALLED_TRANSFERS, culprit=suspect.entity, confidence=suspect.confidence)
    if times < SLOWER or (times < FAR_SLOWER and _busy(suspect, look, expected)):
        return None
    path, onset = path_of(suspect.entity), float(np.quantile(look.when[bad], 0.1))
    if path and weather.of(path, look.at, since=onset).sky is not Sky.WELL:
        return Name(
            kind=IncidentKind.DEGRADED_NETWORK,
            culprit=Entity(EntityKind.NETWORK, path),
            confidence=suspect.confidence,
        )
    return Name(kind=IncidentKind.SLOW_TRANSFERS, culprit=suspect.entity, confidence=suspect.confidence)


def _busy(suspect: Suspect, look: Look, expected: Load | None) -> bool:
    """Whether it moves so much more than usual that its transfers have to share."""
    if expected is None:
        return False
    drained = look.drained(suspect.column, suspect.entity.name)
    return suspect.total > BUSY * max(expected.transfers, 1.0) or drained.bytes > BUSY_IN_BYTES * max(
        expected.bytes, MUCH
    )


def _moves(suspect: Suspect, look: Look, waiting: int, expected: Load | None) -> bool:
    """Whether its queue is served about as fast as ever, and only long; or so little is usual that nobody can tell."""
    drained = look.drained(suspect.column, suspect.entity.name)
    if expected is None:
        return drained.transfers >= DRAINED_SHARE * waiting
    return (
        expected.transfers < TELLING
        or drained.transfers >= PACE * expected.transfers
        or (drained.transfers >= DRAINED_LEAST and drained.bytes >= PACE_OF_BYTES * expected.bytes)
    )


def path_of(entity: Entity) -> str:
    """The path between sites that a link or network is; "" for all else."""
    if entity.kind not in {EntityKind.LINK, EntityKind.NETWORK}:
        return ""
    ends = entity.name.split(">")
    path = ">".join(map(site_of, ends)) if entity.kind is EntityKind.LINK else entity.name
    return path if between_sites(path) else ""


def between_sites(path: str) -> bool:
    """Whether a path, written `S>T`, leads from one site to another."""
    source, _, destination = path.partition(">")
    return source != destination
