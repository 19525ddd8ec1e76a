"""Who is to blame: which one source, destination, link, site or FTS server best explains good and bad transfers together.

Each suspect is scored by the binomial log-likelihood ratio of its transfers going bad at their own rate against the rate of
everything else. The best suspect is taken out with all its transfers before the next is looked for, so that a partner of a
bad storage element is not blamed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.columns import Rows
from models.domain import Entity, EntityKind

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Names = npt.NDArray[np.object_]
Column = tuple[Ints, Ints]  # the place of each transfer's code among the codes that there are, and these

MIN_BAD = 8  # fewer bad transfers than this are anecdotes
MIN_SHARE = 0.3  # of a suspect's transfers that must be bad
MIN_RATIO = 16.0  # log-likelihood ratio: about one in ten million by chance, for some thousand suspects a minute
WIDE = frozenset({"source_site", "destination_site", "fts"})
WIDE_MARGIN = 6.0  # what these must explain more than the best single storage element or link does
ONE_OF_MANY = 0.6  # a storage element with this share of a wider suspect's bad transfers is to blame itself
MAX_SUSPECTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An entity, in the role in which its transfers went bad, and how well it explains them."""

    entity: Entity
    column: str  # of `Roles`: source, destination, link, fts, source_site or destination_site
    bad: int
    total: int
    ratio: float
    confidence: float


def site_of(rse: str) -> str:
    """The site that a storage element belongs to, by ATLAS's form of names.

    >>> site_of("UKI-LT2-QMUL_SCRATCHDISK")
    'UKI-LT2-QMUL'
    """
    return rse.rpartition("_")[0] or rse


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """By what transfers can be blamed: small whole numbers for the names of each column, every array of shape (n,)."""

    codes: Mapping[str, Ints]
    names: Mapping[str, Sequence[str]]  # by code; of links the codes of both ends, as `source * rses + destination`

    @classmethod
    def of(cls, transfers: Rows) -> Roles:
        return cls.of_names(*(np.asarray(transfers[name], dtype=object) for name in ("source", "destination", "fts")))

    @classmethod
    def of_names(cls, sources: Names, destinations: Names, servers: Names) -> Roles:
        """The same of the names of sources, destinations and FTS servers, each of shape (n,)."""
        ends, rses = pd.factorize(np.concatenate([sources, destinations]))
        source, destination = ends[: len(sources)], ends[len(sources) :]
        of_site, sites = pd.factorize(np.array([site_of(str(rse)) for rse in rses], dtype=object))
        fts, hosts = pd.factorize(servers)
        codes = {
            "link": source * len(rses) + destination,
            "source": source,
            "destination": destination,
            "source_site": of_site[source],
            "destination_site": of_site[destination],
            "fts": fts,
        }
        return cls(codes=codes, names={"rse": list(rses), "site": list(sites), "fts": list(hosts)})

    def take(self, rows: Ints) -> Roles:
        """The same of some of the transfers, by their places."""
        return Roles(codes={column: codes[rows] for column, codes in self.codes.items()}, names=self.names)

    def name(self, column: str, code: int) -> str:
        if column == "link":
            source, destination = divmod(code, len(self.names["rse"]))
            return f"{self.name('source', source)}>{self.name('destination', destination)}"
        return self.names[_VOCABULARY[column]][code]

    def of_name(self, column: str, name: str) -> Flags:
        """Which of the transfers have that name in the column; shape (n,)."""
        known = self.names[_VOCABULARY[column]]
        wanted = known.index(name) if name in known else -1
        same: Flags = self.codes[column] == wanted
        return same

    def touched(self, entity: Entity) -> Flags:
        """Which of the transfers the entity took part in; shape (n,)."""
        match entity.kind:
            case EntityKind.LINK:
                return self.of_name("source", entity.link.source) & self.of_name("destination", entity.link.destination)
            case EntityKind.RSE:
                return self.of_name("source", entity.name) | self.of_name("destination", entity.name)
            case EntityKind.SITE:
                return self.of_name("source_site", entity.name) | self.of_name("destination_site", entity.name)
            case EntityKind.NETWORK:
                source, destination = entity.link.source, entity.link.destination
                return self.of_name("source_site", source) & self.of_name("destination_site", destination)
            case EntityKind.FTS:
                return self.of_name("fts", entity.name)
            case _:
                return np.zeros(len(self.codes["link"]), dtype=np.bool_)


_VOCABULARY = {
    "source": "rse",
    "destination": "rse",
    "source_site": "site",
    "destination_site": "site",
    "fts": "fts",
}


def localise(roles: Roles, guilty: Flags, *, expected_share: float) -> list[Suspect]:
    """Suspects, the worst first, for which transfers went bad. `expected_share` of them is usual and needs nobody to blame."""
    columns = {column: pd.factorize(roles.codes[column]) for column, _ in _COLUMNS}
    left = np.ones(len(guilty), dtype=np.bool_)
    suspects: list[Suspect] = []
    while len(suspects) < MAX_SUSPECTS and int((guilty & left).sum()) >= MIN_BAD:
        scores = {
            column: _scores(codes[left], guilty[left], len(names), expected_share)
            for column, (codes, names) in columns.items()
        }
        _spare_wide(scores, columns, guilty & left)
        best = _best(scores)
        if best is None:
            break
        column, place, confidence = best
        codes, names = columns[column]
        if column == "link":
            # A link is to blame only if its ends are healthy elsewhere.
            others = left & (codes != place)
            sick = _sick_end(columns, guilty, others, np.flatnonzero(left & (codes == place))[0], expected_share)
            if sick is not None:
                column, place = sick
                codes, names = columns[column]
        suspects.append(
            Suspect(
                entity=Entity(dict(_COLUMNS)[column], roles.name(column, int(names[place]))),
                column=column,
                bad=int(scores[column].bad[place]),
                total=int(scores[column].total[place]),
                ratio=float(scores[column].ratio[place]),
                confidence=confidence,
            )
        )
        left &= codes != place
    return suspects


_COLUMNS: Sequence[tuple[str, EntityKind]] = (
    ("link", EntityKind.LINK),  # the narrowest first: it wins where nothing tells two suspects apart
    ("source", EntityKind.RSE),
    ("destination", EntityKind.RSE),
    ("source_site", EntityKind.SITE),
    ("destination_site", EntityKind.SITE),
    ("fts", EntityKind.FTS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """Of each value of a column; every array has shape (values,)."""

    bad: Floats
    total: Floats
    ratio: Floats  # log-likelihood ratio against all the others


def _best(scores: Mapping[str, _Scores]) -> tuple[str, int, float] | None:
    """Column and place of the value that explains most, and how sure it is among its rivals; None if none is beyond doubt."""
    found: list[tuple[float, str, int]] = []
    for column, score in scores.items():
        beyond = _beyond_doubt(score)
        handicap = WIDE_MARGIN if column in WIDE else 0.0
        found += [(float(score.ratio[place]) - handicap, column, int(place)) for place in np.flatnonzero(beyond)]
    if not found:
        return None
    most, column, place = max(found, key=lambda entry: entry[0])  # of equals the first: the narrowest
    rivals = np.exp(np.clip(np.array([entry[0] for entry in found]) - most, -50.0, 0.0) / 2.0).sum()
    return column, place, float(min(0.99, 1.0 / rivals))


def _beyond_doubt(score: _Scores) -> Flags:
    return (score.bad >= MIN_BAD) & (score.bad >= MIN_SHARE * score.total) & (score.ratio >= MIN_RATIO)


def _spare_wide(scores: Mapping[str, _Scores], columns: Mapping[str, Column], bad: Flags) -> None:
    """Blame no site and no FTS server for a single storage element: none may take part in most of what went bad."""
    for wide in WIDE:
        whole = columns[wide][0][bad]
        for end in ("source", "destination"):
            part, n = columns[end][0][bad], len(columns[end][1])
            pairs, together = np.unique(whole * n + part, return_counts=True)
            most = np.zeros(len(scores[wide].bad))
            np.maximum.at(most, pairs // n, together)
            scores[wide].ratio[most >= ONE_OF_MANY * np.maximum(scores[wide].bad, 1.0)] = 0.0


def _sick_end(
    columns: Mapping[str, Column], guilty: Flags, others: Flags, transfer: int, expected_share: float
) -> tuple[str, int] | None:
    """Column and place of an end of the transfer's link that goes bad on other links, too; of both, the worse."""
    sick: list[tuple[float, str, int]] = []
    for column in ("source", "destination"):
        codes, names = columns[column]
        place = int(codes[transfer])
        score = _scores(codes[others], guilty[others], len(names), expected_share)
        if _beyond_doubt(score)[place]:
            sick.append((float(score.ratio[place]), column, place))
    if not sick:
        return None
    _, column, place = max(sick)
    return column, place


def _scores(codes: Ints, bad: Flags, values: int, expected_share: float) -> _Scores:
    k = np.bincount(codes, bad.astype(np.float64), minlength=values).astype(np.float64)
    n = np.bincount(codes, minlength=values).astype(np.float64)
    outside = (bad.sum() - k) / np.maximum(len(bad) - n, 1.0)
    usual = np.clip(np.maximum(outside, expected_share), 1e-6, 0.99)
    own = np.clip(k / np.maximum(n, 1.0), 1e-6, 1.0 - 1e-6)
    ratio = k * np.log(own / usual) + (n - k) * np.log((1.0 - own) / (1.0 - usual))
    return _Scores(bad=k, total=n, ratio=np.where(own > usual, ratio, 0.0))
