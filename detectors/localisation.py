"""Who is to blame: which one source, destination, link, site, network, FTS server or activity best explains good and bad transfers together.

A suspect's transfers are held against two accounts of them: that they go bad as they usually do, and that they go bad at a rate of
their own. With n transfers of which k are bad, a usual share p that is worth `TRUST` transfers, and nothing known of the rate of
what is sick, Bayes's factor between the two is

    B(k + 1, n - k + 1) / (B(k + p TRUST, n - k + (1 - p) TRUST) / B(p TRUST, (1 - p) TRUST))

(beta-binomial; Kass and Raftery, «Bayes factors», 1995). It is exact for few transfers as for many, and a usual share that is not
known exactly is no proof of anything. The best suspect is taken out with all its transfers before the next is looked for, so that a
partner of a bad storage element is not blamed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import betaln

from models.columns import Rows
from models.domain import Entity, EntityKind, Incident

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Names = npt.NDArray[np.object_]

MIN_BAD = 5  # fewer bad transfers than this are anecdotes
MIN_SHARE = 0.25  # of a suspect's transfers that must be bad
MIN_RATIO = (
    12.0  # log of Bayes's factor: six in a million, for some thousand suspects a minute that are hardly independent
)
TRUST = 40.0  # transfers that a usual share is worth
SICK_END = 5.0  # log of Bayes's factor beyond which an end of a link is sick on its other links, too
ONE_SIDED = 0.8  # share of a link's bad transfers that are of a kind for which only one end can be blamed
# Of a network of which there is doubt anyway less has to be seen: by the log of the odds that the doubt brings, down to the last.
DOUBTED_BAD, DOUBTED_SHARE, DOUBTED_RATIO = 3, 0.1, 1.5
MAX_SUSPECTS = 8
WIDE = ("source", "destination", "rse", "source_site", "destination_site", "site", "fts")
WIDE_SHARE = 0.5  # of its transfers that have to be bad, to be what several suspects have in common
PRICE = 7.0  # log of the odds against one more cause
PART = 0.9  # of a suspect's bad transfers, to be a part of what is wider
ONE_PLACE = (
    0.5  # of an activity's bad transfers: with more of them at one end or site, it is that, and not the activity
)

# Each way in which transfers can be grouped, what it blames, and how much more than a narrower one it has to explain.
_COLUMNS: Mapping[str, tuple[EntityKind, float]] = {
    "link": (EntityKind.LINK, 0.0),
    "network": (EntityKind.NETWORK, 1.0),
    "source": (EntityKind.RSE, 3.0),
    "destination": (EntityKind.RSE, 3.0),
    "rse": (EntityKind.RSE, 4.0),
    "source_site": (EntityKind.SITE, 7.0),
    "destination_site": (EntityKind.SITE, 7.0),
    "site": (EntityKind.SITE, 7.0),
    "fts": (EntityKind.FTS, 8.0),
    "activity": (EntityKind.ACTIVITY, 9.0),
}
COLUMNS = tuple(_COLUMNS)
COLUMNS_OF = {kind: tuple(name for name, (one, _) in _COLUMNS.items() if one is kind) for kind in EntityKind}
_EITHER = {"rse": ("source", "destination"), "site": ("source_site", "destination_site")}  # in one role or the other


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Suspect:
    """An entity, in the role in which its transfers went bad, and how well it explains them."""

    entity: Entity
    column: str  # of `COLUMNS`
    bad: int
    total: int
    ratio: float  # log of Bayes's factor
    confidence: float
    explains: Flags  # which of the transfers: its bad ones that no worse suspect explains; shape (n,)


def site_of(rse: str) -> str:
    """The site that a storage element belongs to, by ATLAS's form of names.

    >>> site_of("UKI-LT2-QMUL_SCRATCHDISK")
    'UKI-LT2-QMUL'
    """
    return rse.rpartition("_")[0] or rse


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Which transfers went bad in a way for which their source, or their destination, may be to blame; shape (n,)."""

    source: Flags
    destination: Flags

    @property
    def any(self) -> Flags:
        return self.source | self.destination

    def of(self, column: str) -> Flags:
        """Those for which a name of this column may be blamed; a link, a network and a server for all."""
        if column in {"source", "source_site"}:
            return self.source
        return self.destination if column in {"destination", "destination_site"} else self.any

    def among(self, some: Flags) -> Blame:
        return Blame(source=self.source & some, destination=self.destination & some)

    def take(self, rows: Ints) -> Blame:
        return Blame(source=self.source[rows], destination=self.destination[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """By what transfers can be blamed: small whole numbers for the names of each column, every array of shape (n,)."""

    codes: Mapping[str, Ints]
    names: Mapping[str, Sequence[str]]  # by code

    @classmethod
    def of(cls, transfers: Rows) -> Roles:
        """Of rows; those that do not say of which activity they are have none."""
        sources, destinations, servers = (
            np.asarray(transfers[name], dtype=object) for name in ("source", "destination", "fts")
        )
        blank = np.full(len(sources), "", dtype=object)
        activities = np.asarray(transfers["activity"], dtype=object) if "activity" in transfers else blank
        return cls.of_names(sources, destinations, servers, activities)

    @classmethod
    def of_names(cls, sources: Names, destinations: Names, servers: Names, activities: Names) -> Roles:
        """The same of the names of sources, destinations, FTS servers and activities, each of shape (n,)."""
        ends, rses = pd.factorize(np.concatenate([sources, destinations]))
        source, destination = ends[: len(sources)], ends[len(sources) :]
        of_site, sites = pd.factorize(np.array([site_of(str(rse)) for rse in rses], dtype=object))
        fts, hosts = pd.factorize(servers)
        activity, purposes = pd.factorize(activities)
        link, links = _pairs(source, destination, rses)
        network, networks = _pairs(of_site[source], of_site[destination], sites)
        return cls(
            codes={
                "link": link,
                "network": network,
                "source": source,
                "destination": destination,
                "source_site": of_site[source],
                "destination_site": of_site[destination],
                "fts": fts,
                "activity": activity,
            },
            names={
                "link": links,
                "network": networks,
                "rse": list(rses),
                "site": list(sites),
                "fts": list(hosts),
                "activity": list(purposes),
            },
        )

    def take(self, rows: Ints) -> Roles:
        """The same of some of the transfers, by their places."""
        return Roles(codes={column: codes[rows] for column, codes in self.codes.items()}, names=self.names)

    def known(self, column: str) -> Sequence[str]:
        """The names of a column, by code."""
        return self.names[_VOCABULARY.get(column, column)]

    def count(self, column: str, of: Flags) -> Floats:
        """How many of some transfers each name of the column took part in."""
        return self.blamed(column, Blame(source=of, destination=of))

    def blamed(self, column: str, blame: Blame) -> Floats:
        """For how many transfers each name of the column may be blamed."""
        size = len(self.known(column))
        if column not in _EITHER:
            rows = blame.of(column)
            return np.bincount(self.codes[column][rows], minlength=size).astype(np.float64)
        one, other = _EITHER[column]
        both = np.bincount(self.codes[one][blame.source], minlength=size) + np.bincount(
            self.codes[other][blame.destination], minlength=size
        )
        within = blame.source & blame.destination & (self.codes[one] == self.codes[other])
        found: Floats = (both - np.bincount(self.codes[one][within], minlength=size)).astype(np.float64)
        return found

    def sum(self, column: str, amounts: Floats) -> Floats:
        """What each name of the column took part in, of an amount of each transfer."""
        size, ends = len(self.known(column)), _EITHER.get(column, (column,))
        found = np.zeros(size)
        for end in ends:
            found += np.bincount(self.codes[end], weights=amounts, minlength=size)
        if len(ends) == 2:
            one, other = (self.codes[end] for end in ends)
            found -= np.bincount(one, weights=np.where(one == other, amounts, 0.0), minlength=size)
        return found

    def touch(self, column: str, code: int) -> Flags:
        """Which of the transfers the name with that code took part in, in the column's role; shape (n,)."""
        found = np.zeros(len(self.codes["link"]), dtype=np.bool_)
        for end in _EITHER.get(column, (column,)):
            found |= self.codes[end] == code
        return found

    def of_name(self, column: str, name: str) -> Flags:
        """Which of the transfers have that name in the column; shape (n,)."""
        known = self.known(column)
        return self.touch(column, known.index(name) if name in known else -1)

    def touched(self, entity: Entity) -> Flags:
        """Which of the transfers the entity took part in; shape (n,)."""
        if entity.kind.value in self.names:
            return self.of_name(entity.kind, entity.name)
        return np.zeros(len(self.codes["link"]), dtype=np.bool_)

    def in_part_of(self, incident: Incident) -> Flags:
        """Which of the transfers the incident's culprit took part in, in the role that it is blamed for; shape (n,)."""
        role = incident.evidence.role
        return self.of_name(role, incident.culprit.name) if role in COLUMNS else self.touched(incident.culprit)

    def badly(self, incident: Incident, blame: Blame) -> Flags:
        """Which of the transfers went bad in a way for which the culprit may be blamed, in its role; shape (n,)."""
        return self.in_part_of(incident) & blame.of(incident.evidence.role)


_VOCABULARY = {"source": "rse", "destination": "rse", "source_site": "site", "destination_site": "site"}


def _pairs(one: Ints, other: Ints, names: Sequence[str] | npt.NDArray[Any]) -> tuple[Ints, Sequence[str]]:
    """Codes and names of pairs that there are."""
    codes, pairs = pd.factorize(one.astype(np.int64) * len(names) + other)
    return codes, [f"{names[pair // len(names)]}>{names[pair % len(names)]}" for pair in pairs.tolist()]


def localise(
    roles: Roles,
    bad: Blame,
    usual: Mapping[str, Floats],
    *,
    columns: Sequence[str] = COLUMNS,
    doubt: Callable[[str], float] = lambda _: 0.0,
) -> list[Suspect]:
    """Suspects, the worst first, for which transfers went bad.

    `usual` says of each column which share of each name's transfers is usually bad, `columns` by which of them they can be blamed,
    `doubt` how much doubt of a network there is anyway, the log of its odds; 0 for none.
    """
    left = np.ones(len(bad.source), dtype=np.bool_)
    suspects: list[Suspect] = []
    while len(suspects) < MAX_SUSPECTS and np.count_nonzero(bad.any & left) >= DOUBTED_BAD:
        scores = {column: _score(roles, column, bad, left, usual[column]) for column in columns}
        if "network" in scores:
            scores["network"] = _doubted(scores["network"], roles.known("network"), doubt)
        if "activity" in scores:
            scores["activity"] = _everywhere(scores["activity"], roles, bad, left, usual["link"])
        best = _best(scores)
        if best is None:
            break
        column, code, confidence = best
        if column in {"link", "network"} and not scores[column].doubt[code]:
            column, code = _end_of(roles, column, code, bad, left, usual)
        score = scores[column]
        suspects.append(
            Suspect(
                entity=Entity(_COLUMNS[column][0], roles.known(column)[code]),
                column=column,
                bad=int(score.bad[code]),
                total=int(score.total[code]),
                ratio=float(score.ratio[code]),
                confidence=confidence,
                explains=bad.of(column) & left & roles.touch(column, code),
            )
        )
        left &= ~roles.touch(column, code)
    return _gathered(suspects, roles, bad, usual, [column for column in WIDE if column in columns])


def _gathered(
    suspects: list[Suspect], roles: Roles, bad: Blame, usual: Mapping[str, Floats], wide: Sequence[str]
) -> list[Suspect]:
    """Several suspects of one site or one server are that, if it explains the bad transfers as well: two causes are rare at once."""
    everyone = np.ones(len(bad.source), dtype=np.bool_)
    while len(suspects) > 1:
        found: list[tuple[float, str, int, list[Suspect]]] = []
        for column in wide:
            score = _score(roles, column, bad, everyone, usual[column])
            share = score.bad >= WIDE_SHARE * score.total
            for code in np.flatnonzero(share & (score.ratio >= MIN_RATIO)).tolist():
                whole = roles.touch(column, code)
                parts = [one for one in suspects if _lies(roles, one, whole, bad)]
                apart = sum(one.ratio for one in parts) - PRICE * (len(parts) - 1)
                if len(parts) > 1 and score.ratio[code] >= apart:
                    found.append((float(score.ratio[code]) - apart, column, code, parts))
        if not found:
            break
        _, column, code, parts = max(found, key=lambda entry: entry[0])
        score = _score(roles, column, bad, everyone, usual[column])
        one = Suspect(
            entity=Entity(_COLUMNS[column][0], roles.known(column)[code]),
            column=column,
            bad=int(score.bad[code]),
            total=int(score.total[code]),
            ratio=float(score.ratio[code]),
            confidence=max(part.confidence for part in parts),
            explains=bad.of(column) & roles.touch(column, code),
        )
        suspects = [one, *(other for other in suspects if other not in parts)]
    return suspects


def _lies(roles: Roles, suspect: Suspect, whole: Flags, bad: Blame) -> bool:
    """Whether what is bad of a suspect is a part of a whole."""
    own = bad.of(suspect.column) & roles.touch(suspect.column, roles.known(suspect.column).index(suspect.entity.name))
    return bool(np.count_nonzero(own & whole) >= PART * np.count_nonzero(own))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Score:
    """Of each name of a column; every array has shape (names,)."""

    bad: Floats
    total: Floats
    ratio: Floats
    doubt: Floats  # log of the odds that there are anyway

    @property
    def beyond_doubt(self) -> Flags:
        enough: Flags = (self.bad >= MIN_BAD) & (self.bad >= MIN_SHARE * self.total) & (self.ratio >= MIN_RATIO)
        doubted: Flags = (
            (self.doubt > 0)
            & (self.bad >= DOUBTED_BAD)
            & (self.bad >= DOUBTED_SHARE * self.total)
            & (self.ratio >= np.maximum(DOUBTED_RATIO, MIN_RATIO - self.doubt))
        )
        return enough | doubted


def _doubted(score: _Score, names: Sequence[str], doubt: Callable[[str], float]) -> _Score:
    """The same, with those of which there is doubt anyway."""
    found = score.doubt.copy()
    for code in np.flatnonzero((score.bad >= DOUBTED_BAD) & (score.ratio >= DOUBTED_RATIO)).tolist():
        found[code] = doubt(names[code])
    return replace(score, doubt=found)


def _everywhere(score: _Score, roles: Roles, bad: Blame, left: Flags, usual: Floats) -> _Score:
    """The same of activities, without those that are no cause by themselves: one whose bad transfers are mostly of one place, or on
    whose links others go badly, too, or hardly run.
    """
    ratio = score.ratio.copy()
    for code in np.flatnonzero(score.beyond_doubt).tolist():
        own = roles.touch("activity", code) & left
        sick = own & bad.any
        at_one = max(
            np.bincount(roles.codes[column][sick]).max()
            for column in ("source", "destination", "source_site", "destination_site")
        )
        others = left & ~own & np.isin(roles.codes["link"], roles.codes["link"][sick])
        n, k = np.count_nonzero(others), np.count_nonzero(others & bad.any)
        if at_one > ONE_PLACE * np.count_nonzero(sick) or n < MIN_BAD or k > max(1.0, 2.0 * float(usual.mean()) * n):
            ratio[code] = 0.0
    return replace(score, ratio=ratio)


def bayes_factor(bad: Floats, total: Floats, usual: Floats) -> Floats:
    """Log of Bayes's factor for a rate of its own against the usual share; 0 where fewer than usual are bad.

    >>> bayes_factor(np.array([6.0, 1.0]), np.array([6.0, 20.0]), np.array([0.05, 0.05])).round(1)
    array([12.,  0.])
    """
    share = np.clip(usual, 1e-3, 0.9)
    a, b = share * TRUST, (1.0 - share) * TRUST
    ratio = betaln(bad + 1.0, total - bad + 1.0) - betaln(bad + a, total - bad + b) + betaln(a, b)
    found: Floats = np.where(bad > share * total, np.maximum(ratio, 0.0), 0.0)
    return found


def _score(roles: Roles, column: str, bad: Blame, left: Flags, usual: Floats) -> _Score:
    k, n = roles.blamed(column, bad.among(left)), roles.count(column, left)
    # Where all the rest goes badly, too, what is bad here needs no other reason.
    all_bad, everything = float(np.count_nonzero(bad.any & left)), float(np.count_nonzero(left))
    outside = (all_bad - k + usual * TRUST) / (everything - n + TRUST)
    named = np.fromiter((bool(name.strip(">")) for name in roles.known(column)), dtype=np.bool_, count=len(k))
    ratio = np.where(named, bayes_factor(k, n, np.maximum(usual, outside)), 0.0)
    return _Score(bad=k, total=n, ratio=ratio, doubt=np.zeros(len(k)))


def _best(scores: Mapping[str, _Score]) -> tuple[str, int, float] | None:
    """Column and code of the name that explains most, and how sure it is among its rivals; None if none is beyond doubt."""
    found: list[tuple[float, str, int]] = []
    for column, score in scores.items():
        ratio = score.ratio - _COLUMNS[column][1] + score.doubt
        found += [(float(ratio[code]), column, int(code)) for code in np.flatnonzero(score.beyond_doubt)]
    if not found:
        return None
    most, column, code = max(found, key=lambda entry: entry[0])  # of equals the first: the narrowest
    rivals = np.exp(np.clip(np.array([entry[0] for entry in found]) - most, -50.0, 0.0) / 2.0).sum()
    return column, code, float(min(0.99, 1.0 / rivals))


def _end_of(
    roles: Roles, column: str, code: int, bad: Blame, left: Flags, usual: Mapping[str, Floats]
) -> tuple[str, int]:
    """The same, or the end of the link that is rather to blame: a link is so only if its ends are well elsewhere.

    An end that goes bad on its other links, too, is sick. An end whose other links say nothing may be: storage breaks more often than
    the way between two, so that it is blamed if it is the only such end.
    """
    own = roles.touch(column, code)
    transfer = int(np.flatnonzero(own & left)[0])
    at_fault = bad.among(own & left)
    sick: list[tuple[float, str, int]] = []
    unknown: list[tuple[str, int]] = []
    for end in ("source", "destination"):
        place = int(roles.codes[end][transfer])
        score = _score(roles, end, bad, left & ~own, usual[end])
        if score.ratio[place] >= SICK_END and score.bad[place] >= MIN_SHARE * score.total[place]:
            sick.append((float(score.ratio[place]), end, place))
        of_end = np.count_nonzero(at_fault.of(end) & (roles.codes[end] == place))
        all_of_link = np.count_nonzero(at_fault.any)
        if score.total[place] < MIN_BAD and of_end >= ONE_SIDED * all_of_link:
            unknown.append((end, place))
    if sick:
        _, end, place = max(sick)
        return end, place
    if column == "link" and len(unknown) == 1:
        return unknown[0]
    one_sided = [
        end
        for end, other in (("source", "destination"), ("destination", "source"))
        if np.count_nonzero(at_fault.of(other)) <= (1.0 - ONE_SIDED) * np.count_nonzero(at_fault.any)
    ]
    if column == "link" and one_sided:
        return one_sided[0], int(roles.codes[one_sided[0]][transfer])
    return column, code
