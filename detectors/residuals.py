"""How transfers strayed from what was expected of them: means, spreads and tails for each link, shrunk to its ends and to all.

Most links are seen too rarely to say anything of their own. So what is known of a link counts as much as it has transfers, and
the rest is its source's and its destination's, and what these lack is that of all (empirical Bayes with a prior of a fixed worth; Efron and
Morris, «Stein's estimation rule and its competitors», 1973).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PRIOR_WEIGHT: Final = 16.0  # transfers that a parent's mean and spread are worth against a child's own
MEMORY: Final = 256.0  # transfers after which a link's older residuals count for little
OUTLYING: Final = 4.0  # residuals beyond this count as this much: one stuck transfer must not move a link's mean
TAIL_PRIOR: Final = 2.0  # transfers in the tail that a parent's share of them is worth against a child's own
TAIL_MEMORY: Final = 20_000.0  # transfers of a key after which its older ones count for little in its tail
TAIL_BOUND: Final = np.log(8.0)  # a tail counts as at most so many times heavier or lighter than that of all


class Keys:
    """What rows are grouped by, as whole numbers of shape (n,), with those that there are and how many rows each has."""

    def __init__(self, keys: Ints) -> None:
        self.keys = keys
        self.distinct, self.place, self.count = np.unique(keys, return_inverse=True, return_counts=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where transfers ran: codes of shape (n,) each."""

    source: Ints
    destination: Ints
    link: Ints

    def grouped(self) -> dict[str, Keys]:
        """All, and what they are grouped by."""
        return {
            "all": Keys(np.zeros(len(self.link), dtype=np.int64)),
            "source": Keys(self.source),
            "destination": Keys(self.destination),
            "link": Keys(self.link),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one group adds to what is said of a link."""

    of: str  # link, source, destination, all or prior
    transfers: float  # that count, the old ones less
    weight: float  # the weights of all parts make 1
    mean: float
    spread: float


class Group:
    """Running mean and spread of the residuals of each key of one kind."""

    def __init__(self) -> None:
        self._table = np.zeros((0, 3))  # count, mean, spread

    def absorb(self, keys: Keys, z: Floats) -> None:
        self._table = _grown(self._table, int(keys.distinct[-1]) + 1)
        n = keys.count
        known, mean, spread = self._table[keys.distinct].T
        weight = np.maximum(n / (known + n), 1.0 - (1.0 - 1.0 / MEMORY) ** n)
        mean = mean * (1.0 - weight) + np.bincount(keys.place, z) / n * weight
        away = np.bincount(keys.place, np.abs(z - mean[keys.place])) / n
        spread = np.where(known > 0, spread * (1.0 - weight) + away * weight, away)
        self._table[keys.distinct] = np.column_stack([np.minimum(known + n, MEMORY), mean, spread])

    def shrunk(self, keys: Ints, mean: Floats, spread: Floats) -> tuple[Floats, Floats]:
        """Means and spreads of `keys`, shrunk to their parents' `mean` and `spread`."""
        count, own_mean, own_spread = self.own(keys)
        share = count / (count + PRIOR_WEIGHT)
        return share * own_mean + (1.0 - share) * mean, share * own_spread + (1.0 - share) * spread

    def own(self, keys: Ints) -> tuple[Floats, Floats, Floats]:
        """Transfers that count, mean and spread of `keys` by themselves; noughts for those that were never seen."""
        self._table = _grown(self._table, int(keys.max(initial=-1)) + 1)
        count, mean, spread = self._table[keys].T
        return count, mean, spread


class Scale:
    """Means and spreads of one kind of residual on each link, shrunk to its ends and to all."""

    def __init__(self) -> None:
        self._groups = {name: Group() for name in ("all", "source", "destination", "link")}

    def centre(self, at: Places) -> tuple[Floats, Floats]:
        """Mean and spread of z for each transfer; both of shape (n,)."""
        n = len(at.link)
        groups = self._groups
        # Of all there is one mean and one spread.
        mean, spread = (
            np.full(n, value[0]) for value in groups["all"].shrunk(np.zeros(1, dtype=np.int64), np.zeros(1), np.ones(1))
        )
        of_source = groups["source"].shrunk(at.source, mean, spread)
        of_destination = groups["destination"].shrunk(at.destination, mean, spread)
        parent = [(a + b) / 2.0 for a, b in zip(of_source, of_destination, strict=True)]
        return groups["link"].shrunk(at.link, parent[0], parent[1])

    def absorb(self, grouped: dict[str, Keys], z: Floats) -> None:
        z = np.clip(z, -OUTLYING, OUTLYING)
        for name, group in self._groups.items():
            group.absorb(grouped[name], z)

    def parts(self, at: Places) -> tuple[Part, ...]:
        """What the mean and the spread of one transfer's link are made of."""
        keys = {"link": at.link, "source": at.source, "destination": at.destination, "all": np.zeros(1, dtype=np.int64)}
        own = {name: tuple(float(v[0]) for v in self._groups[name].own(key)) for name, key in keys.items()}
        share = {name: count / (count + PRIOR_WEIGHT) for name, (count, _, _) in own.items()}
        half = (1.0 - share["link"]) / 2.0
        rest = half * (2.0 - share["source"] - share["destination"])
        weights = {
            "link": share["link"],
            "source": half * share["source"],
            "destination": half * share["destination"],
            "all": rest * share["all"],
        }
        known = [
            Part(of=name, transfers=own[name][0], weight=weight, mean=own[name][1], spread=own[name][2])
            for name, weight in weights.items()
        ]
        return (*known, Part(of="prior", transfers=0.0, weight=rest * (1.0 - share["all"]), mean=0.0, spread=1.0))


class Tails:
    """How much heavier the tail of the scores is on a link than on all, as a logarithm: 0 where it is as heavy.

    What is counted is how many of a key's transfers lie in the tail, and how many would if it were as all are. With a gamma prior on
    the ratio of the two (its mean that of the parents) this is the mean of what is believed after it, (k + a * parent) / (expected + a).
    """

    def __init__(self) -> None:
        self._tables = {name: np.zeros((0, 2)) for name in ("source", "destination", "link")}  # expected, found
        self._seen, self._found = 0.0, 0.0  # of all

    def ratio(self, at: Places) -> Floats:
        """The logarithm of how many times the usual share of a link's transfers lies in the tail; shape (n,)."""
        source = self._shrunk("source", at.source, np.zeros(len(at.link)))
        destination = self._shrunk("destination", at.destination, np.zeros(len(at.link)))
        found = self._shrunk("link", at.link, (source + destination) / 2.0)
        return np.clip(found, -TAIL_BOUND, TAIL_BOUND)

    def absorb(self, grouped: dict[str, Keys], beyond: npt.NDArray[np.bool_]) -> None:
        """`beyond`: which of the rows lie in the tail."""
        kept = (1.0 - 1.0 / TAIL_MEMORY) ** len(beyond)
        self._seen, self._found = self._seen * kept + len(beyond), self._found * kept + np.count_nonzero(beyond)
        share = self._found / self._seen
        for name in self._tables:
            keys = grouped[name]
            table = self._tables[name] = _grown(self._tables[name], int(keys.distinct[-1]) + 1)
            left = (1.0 - 1.0 / TAIL_MEMORY) ** keys.count[:, None]
            new = np.column_stack([keys.count * share, np.bincount(keys.place, beyond)])
            table[keys.distinct] = table[keys.distinct] * left + new

    def _shrunk(self, name: str, keys: Ints, parent: Floats) -> Floats:
        table = self._tables[name] = _grown(self._tables[name], int(keys.max(initial=-1)) + 1)
        expected, found = table[keys].T
        ratio: Floats = np.log((found + TAIL_PRIOR * np.exp(parent)) / (expected + TAIL_PRIOR))
        return ratio


class Quantiles:
    """Quantiles of the scores of all transfers, the old ones counting less: a histogram that decays.

    It begins with so many made-up transfers whose scores are exponential: one in twenty lies above 3, one in a thousand above 8. Real
    transfers have tails like that, and a quantile of a few of them would be that of none so rare.
    """

    LOWEST: Final = -8.0
    BINS: Final = 2_400
    WIDTH: Final = 0.02
    HALF_LIFE: Final = 100_000.0  # transfers
    PRIOR: Final = 2_000.0  # transfers
    PRIOR_SCALE: Final = 5.0 / np.log(50.0)

    def __init__(self) -> None:
        edges = self.LOWEST + self.WIDTH * np.arange(self.BINS + 1)
        above = np.minimum(0.05 * np.exp((3.0 - edges) / self.PRIOR_SCALE), 1.0)
        self._histogram = -self.PRIOR * np.diff(above)

    def absorb(self, scores: Floats) -> None:
        places = np.clip((scores - self.LOWEST) / self.WIDTH, 0.0, self.BINS - 1.0).astype(np.int64)
        self._histogram *= 0.5 ** (len(scores) / self.HALF_LIFE)
        self._histogram += np.bincount(places, minlength=self.BINS)

    def limits(self, *shares: float) -> list[float]:
        """The scores that these shares of the transfers pass.

        >>> [round(limit) for limit in Quantiles().limits(0.05, 0.001)]
        [3, 8]
        """
        below = np.cumsum(self._histogram)
        places = np.searchsorted(below, (1.0 - np.array(shares)) * below[-1])
        limits: list[float] = (self.LOWEST + self.WIDTH * (places + 1)).tolist()
        return limits


def _grown(table: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """The table with at least so many rows."""
    if size <= len(table):
        return table
    return np.vstack([table, np.zeros((max(size, 2 * len(table)) - len(table), table.shape[1]))])
