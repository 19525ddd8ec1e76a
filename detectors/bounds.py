"""What a transfer may take by other evidence than transfers: what perfSONAR says the network allows, and FTS's own timeout.

perfSONAR is read with care, since it measures other machines than those that transfer:

- loss is one packet of a few hundred in most tests that see any, so the mean of the last hour counts. All packets lost is a firewall, through
  which transfers may well pass;
- the round trip is the sum of the delays there and back, in which clocks that are off cancel;
- a reading weighs less the older it is, down to nothing at the end of the time that it holds for, and less where there are few:
  `(1 - age / holds) * n / (n + few)`;
- what transfers really took on the link says more than a test or two. So n readings raise no limit beyond `TRUST * n` times the norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.columns import Rows
from models.measurements import LOSS_HOLDS_S, PATH_COLUMNS, STANDING_COLUMNS, THROUGHPUT_HOLDS_S

Floats = npt.NDArray[np.float64]

MSS_BYTES: Final = 1460
STREAMS: Final = 8  # parallel TCP streams that a transfer is assumed to have
SLACK: Final = 2.0  # a transfer may take this many times what the measured network allows
TRUST: Final = 4.0  # one reading raises no limit beyond this many times the norm
FIREWALL: Final = 0.5  # of the packets: who loses more than that keeps probes out
FEW_LOSS: Final = 2.0  # readings in the last hour with which loss has half of its weight
FEW_THROUGHPUT: Final = 1.0  # tests in the last day with which throughput has half of its weight


def fts_timeout(size: Floats) -> Floats:
    """Seconds after which FTS itself gives up: 600 s and 2 s for each MiB. `size` in bytes; NaN counts as none.

    >>> fts_timeout(np.array([0.0, 1024.0**3]))
    array([ 600., 2648.])
    """
    return 600.0 + 2.0 * np.nan_to_num(size) / 1024.0**2


def mathis_rate(loss: Floats, rtt_ms: Floats) -> Floats:
    """Bytes/s that `STREAMS` TCP streams reach at most: C * MSS / (RTT * sqrt(loss)), C = sqrt(3/2).

    Mathis, Semke, Mahdavi and Ott, «The macroscopic behavior of the TCP congestion avoidance algorithm», 1997. NaN where
    loss or RTT is not known; infinite without loss.

    >>> mathis_rate(np.array([0.01]), np.array([100.0])).round(-3)
    array([1431000.])
    """
    with np.errstate(divide="ignore"):
        rate: Floats = STREAMS * np.sqrt(1.5) * MSS_BYTES / (rtt_ms / 1e3 * np.sqrt(loss))
    return rate


def weight(age_s: Floats, holds_s: float, count: Floats, few: float) -> Floats:
    """What readings weigh, 0..1, by the age of the last one and by how many there are; 0 where there is none.

    >>> weight(np.array([0.0, 3.0, 6.0, np.nan]), 6.0, np.array([2.0, 2.0, 2.0, 0.0]), 2.0)
    array([0.5 , 0.25, 0.  , 0.  ])
    """
    fresh = np.clip(1.0 - np.nan_to_num(age_s, nan=holds_s) / holds_s, 0.0, 1.0)
    found: Floats = fresh * count / (count + few)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What one kind of measurement says of transfers; every array has shape (n,)."""

    needs_s: Floats  # what the path needs at least; 0 where nothing is known
    count: Floats  # readings that say so
    weight: Floats  # what they weigh, 0..1

    def raised(self, limit: Floats, expected: Floats) -> Floats:
        """The limit in seconds that this allows where transfers are expected to take `expected`: `limit` or more.

        >>> lossy = Bound(needs_s=np.array([400.0] * 3), count=np.array([1.0, 2.0, 2.0]), weight=np.array([1.0, 1.0, 0.5]))
        >>> lossy.raised(np.full(3, 200.0), np.full(3, 100.0))
        array([400., 800., 400.])
        """
        allowed = np.minimum(SLACK * self.needs_s, TRUST * self.count * expected)
        raised: Floats = limit * (np.maximum(allowed, limit) / limit) ** self.weight
        return raised


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What perfSONAR says of the paths of transfers."""

    loss: Bound  # and round trip: Mathis
    throughput: Bound

    @property
    def needs_s(self) -> Floats:
        """What each path needs at least, by the worse of both; 0 where nothing is known. Shape (n,)."""
        needed: Floats = np.maximum(self.loss.needs_s, self.throughput.needs_s)
        return needed


def network(rows: Rows) -> Network:
    """`rows`: transfers with the columns of `models.measurements.STANDING_COLUMNS`, as of their start.

    Rows that the ledger kept have but PATH_COLUMNS: their readings count as fresh, and as one of each kind.
    """
    size = np.asarray(rows["bytes"], dtype=np.float64)
    known = _standing(rows)
    loss = np.where(known["path_loss_recent"] > FIREWALL, np.nan, known["path_loss_recent"])
    age = np.fmax(known["path_loss_age_s"], known["path_rtt_age_s"])
    tests, tested = known["path_throughput_count"], known["path_throughput_age_s"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no size, no rate: no bound
        seconds = (size / mathis_rate(loss, known["path_rtt_ms"]), size / (known["path_throughput_recent"] / 8.0))
    lossy, slow = (np.nan_to_num(needed, nan=0.0, posinf=0.0) for needed in seconds)
    count = known["path_loss_count"]
    return Network(
        loss=Bound(needs_s=lossy, count=count, weight=weight(age, LOSS_HOLDS_S, count, FEW_LOSS)),
        throughput=Bound(needs_s=slow, count=tests, weight=weight(tested, THROUGHPUT_HOLDS_S, tests, FEW_THROUGHPUT)),
    )


def _standing(rows: Rows) -> dict[str, Floats]:
    if "path_rtt_ms" in rows:
        return {name: np.asarray(rows[name], dtype=np.float64) for name in STANDING_COLUMNS}
    loss, delay, throughput = (np.asarray(rows[name], dtype=np.float64) for name in PATH_COLUMNS)
    fresh = np.zeros(len(loss))
    return {
        "path_loss_recent": loss,
        "path_loss_count": np.isfinite(loss).astype(np.float64),
        "path_loss_age_s": fresh,
        "path_rtt_ms": 2.0 * delay,
        "path_rtt_age_s": fresh,
        "path_throughput_recent": throughput,
        "path_throughput_count": np.isfinite(throughput).astype(np.float64),
        "path_throughput_age_s": fresh,
    }
