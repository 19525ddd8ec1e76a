"""perfSONAR readings: one columnar form, the map from perfSONAR sites to RSEs, and what was known of a path when.

A batch of readings is a pandas DataFrame with exactly the columns of `READING_COLUMNS`; a reading of several quantities is
several rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.columns import Column, FloatArray, Rows, numbers, seconds, texts
from models.domain import ConfigError, aware
from models.events import AHEAD, LONGEST_NAME, Refusal, RefusalReason, refusal

READING_COLUMNS = (
    "source_site",
    "destination_site",
    "source_host",
    "destination_host",
    "quantity",  # one of QUANTITIES
    "value",
    "at",  # seconds since 1970-01-01 UTC
)
QUANTITIES = {
    "packet_loss": "fraction, 0..1",
    "delay_mean": "ms; negative where clocks are off",
    "delay_sd": "ms",
    "throughput": "bit/s",
    "retransmits": "count",
    "hops": "count of a traced route",
    "rtt": "ms, of a traced route's end",
}
PATH_COLUMNS = ("path_loss", "path_delay_ms", "path_throughput_bps")  # NaN where nothing fresh is known
# How well these are known: NaN where nothing fresh is, and no readings then.
STANDING_COLUMNS = (
    "path_loss_recent",  # mean of the readings of the last hour, or else the last reading
    "path_loss_count",  # readings in the last hour, or else the last one
    "path_loss_age_s",  # of the last reading
    "path_rtt_ms",  # there and back
    "path_rtt_age_s",  # of the older of the readings that it is made of
    "path_throughput_recent",  # bit/s, mean of the tests of the last day, or else the last test
    "path_throughput_count",  # tests in the last day, or else the last one
    "path_throughput_age_s",  # of the last test
)
LOSS_HOLDS_S, THROUGHPUT_HOLDS_S = 6 * 3600.0, 7 * 86400.0  # how long a reading holds, of delay as of loss
LONGEST_RTT_MS = 400.0  # of what one direction alone tells: what is longer is a clock's, and no route's

# Our column: the names under which it is found, the best first: `ps_*`, the camel case of 2017, tables, and our own. The
# median delay is left out: its collector computes it wrongly from an even number of samples.
READING_ALIASES: Mapping[str, tuple[str, ...]] = {
    "source_site": ("src_site", "srcSite", "source_site"),
    "destination_site": ("dest_site", "destSite", "destination_site"),
    "source_host": ("src_host", "srcHost", "source_host", "src"),
    "destination_host": ("dest_host", "destHost", "destination_host", "dest", "dst"),
    "at": ("timestamp", "time_utc", "@timestamp", "at"),
    "packet_loss": ("packet_loss", "packetLoss", "packet_loss_frac"),
    "delay_mean": ("delay_mean", "delayMean", "delay_mean_ms"),
    "delay_sd": ("delay_sd", "delaySd", "delay_sd_ms"),
    "throughput": ("throughput", "throughput_bps"),
    "retransmits": ("retransmits",),
    "hops": ("n_hops", "nHops"),
    "rtt": ("rtt",),  # of documents it is taken from their list of `rtts`
}
KNOWN_FIELDS = frozenset(("quantity", "value", *itertools.chain.from_iterable(READING_ALIASES.values())))
_HIGHEST = {"packet_loss": 1.0, "delay_mean": 1e7, "delay_sd": 1e7, "throughput": 1e15}
_LOWEST = {"delay_mean": -1e7}

# The column of a path: the quantity that it shows, and for how many seconds a reading of that holds.
_PATHS: Mapping[str, tuple[str, float]] = {
    "path_loss": ("packet_loss", LOSS_HOLDS_S),
    "path_delay_ms": ("delay_mean", LOSS_HOLDS_S),
    "path_throughput_bps": ("throughput", THROUGHPUT_HOLDS_S),
}
_LOSS_RECENT_S, _THROUGHPUT_RECENT_S = 3600.0, 86_400.0
_TIME_BITS = 42  # of milliseconds, up to the year 2109
_TIME_MASK = (1 << _TIME_BITS) - 1
_MOST_READINGS = 1 << 19  # kept of one quantity
_MOST_HOSTS = 1 << 16
_STEPS = 1e13  # from nothing to the highest value of a quantity: sums are of whole steps, so that their order changes no digit
_MERGE_SHARE = 0.02  # of the long array: a short one that is longer is merged with it


def decode_readings(documents: Sequence[object], *, now: datetime) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read `ps_*` documents (or rows of tables as documents) of any kind; several quantities in one become several rows.

    A document that yields no row is refused; every other one yields at least one. Rows stand in the order of the documents.
    A site may be "" where its host is known (`Paths` fills it in when another document tells).
    """
    good = [document for document in documents if isinstance(document, dict)]
    refusals = [
        refusal(RefusalReason.NOT_AN_OBJECT, f"it is of type {type(document).__name__}", document)
        for document in documents
        if not isinstance(document, dict)
    ]
    present = KNOWN_FIELDS.intersection(set().union(*good))
    columns: dict[str, Column] = {name: [document.get(name) for document in good] for name in present}
    if any("rtts" in document for document in good):
        columns["rtt"] = [_rtt(document) for document in good]
    readings, refused = _assemble(columns, len(good), now=now, document=good.__getitem__)
    return readings, refusals + refused


def decode_readings_table(table: pd.DataFrame, *, now: datetime) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read a table of readings: one column for each quantity, or our own `quantity` and `value`."""
    columns: dict[str, Column] = {}
    for position, name in enumerate(table.columns):
        if name in KNOWN_FIELDS:
            columns.setdefault(str(name), table.iloc[:, position])
    return _assemble(columns, len(table), now=now, document=lambda row: table.iloc[row].to_dict())


def reading_keys(readings: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Durable keys, uint64 [n], of path, quantity and time: a reading found in two documents has one key."""
    stamp = readings["at"].round(3).astype("str")
    told_by = readings["quantity"] + "\x1f" + stamp
    for name in ("source_host", "destination_host", "source_site", "destination_site"):
        told_by = told_by + "\x1f" + readings[name]
    return pd.util.hash_array(told_by.to_numpy(dtype=object), categorize=False)


def lately(readings: pd.DataFrame, newest: int) -> npt.NDArray[np.bool_]:
    """Say which readings to keep: the newest by order, and a quarter as many tests of throughput, which are rare and judged by weeks of them."""
    keep = np.zeros(len(readings), dtype=np.bool_)
    keep[-newest:] = True
    keep[np.flatnonzero(readings["quantity"] == "throughput")[-newest // 4 :]] = True
    return keep


def empty_readings() -> pd.DataFrame:
    """No readings, in the form of a batch."""
    return decode_readings_table(pd.DataFrame(), now=datetime.fromisoformat("2000-01-01T00:00:00+00:00"))[0]


class SiteMap:
    """Which ATLAS site a perfSONAR site and an RSE belong to. Names compare without regard to case.

    An RSE's name starts with its site's name; of several that fit, the longest is meant. What the map does not know stands for
    itself: a perfSONAR site as it is, an RSE by its name up to the last `_`.
    """

    def __init__(self, pairs: Mapping[str, str] | None = None) -> None:
        self._sites = {name.casefold(): site for name, site in (pairs or {}).items()}
        self._atlas = {site.casefold(): site for site in (pairs or {}).values()}

    @classmethod
    def load(cls, path: Path) -> SiteMap:
        """Read lines of two columns: the name that perfSONAR gives, and the ATLAS site; raise ConfigError for another file."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: the map of sites cannot be read ({error}); name a text file of two columns"
            ) from error
        pairs = {}
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].replace(",", " ").split()
            if len(words) not in {0, 2}:
                raise ConfigError(
                    f"{path}, line {number}: {line[:80]!r} is not two names; write the site as perfSONAR gives it, a blank, "
                    "and the ATLAS site"
                )
            if words:
                pairs[words[0]] = words[1]
        return cls(pairs)

    def of_site(self, name: str) -> str:
        """The ATLAS site of a perfSONAR site."""
        return self._sites.get(name.casefold()) or self._atlas.get(name.casefold(), name)

    def of_rse(self, rse: str) -> str:
        """The ATLAS site of an RSE."""
        folded = rse.casefold()
        for end in range(len(folded), 0, -1):
            whole_words = end == len(folded) or not folded[end].isalnum()
            if whole_words and folded[:end] in self._atlas:
                return self._atlas[folded[:end]]
        return rse.rpartition("_")[0] or rse


class Paths:
    """What perfSONAR had last measured on the path between two sites, as of any moment. Memory is bounded."""

    def __init__(self, sites: SiteMap | None = None) -> None:
        self._site_map = sites or SiteMap()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._hosts: dict[str, str] = {}  # the site of a host, as some document told
        self._sites: dict[str, str] = {}  # folded name of the ATLAS site of an RSE; a cache
        self._codes: dict[str, int] = {}  # of pairs of sites
        self._tables = {column: _AsOf(_HIGHEST[quantity] / _STEPS) for column, (quantity, _) in _PATHS.items()}

    def site(self, name: str) -> str:
        """The ATLAS site of the RSEs whose names begin so."""
        return self._site_map.of_rse(f"{name}_")

    def locate(self, readings: pd.DataFrame) -> pd.DataFrame:
        """Return `readings` with ATLAS sites; "" where neither the reading nor an earlier one tells the site of its host."""
        source, destination = self._located(readings)
        return readings.assign(
            source_site=pd.Series(source, index=readings.index, dtype="str"),
            destination_site=pd.Series(destination, index=readings.index, dtype="str"),
        )

    def absorb(self, readings: pd.DataFrame) -> None:
        """Take note of readings, in any order, late and repeated ones too."""
        source, destination = self._located(readings)
        quantities, at, values = (readings[name].to_numpy() for name in ("quantity", "at", "value"))
        placed = np.fromiter((a != "" and b != "" for a, b in zip(source, destination, strict=True)), bool, len(source))
        outgrown = False
        for column, (quantity, _) in _PATHS.items():
            chosen = np.flatnonzero((quantities == quantity) & placed)
            pairs = [_pair(source[row], destination[row]) for row in chosen]
            codes = [self._codes.setdefault(pair, len(self._codes)) for pair in pairs]
            outgrown |= self._tables[column].insert(np.array(codes, dtype=np.int64), at[chosen], values[chosen])
        if outgrown:
            self._forget_pairs()

    def attach(self, events: pd.DataFrame) -> pd.DataFrame:
        """Return `events` with PATH_COLUMNS: the last reading strictly before `started_at`, NaN if that is too old.

        Loss and delay hold for six hours, throughput for seven days.
        """
        return events.assign(**self.of(events))

    def of(self, events: Rows) -> dict[str, FloatArray]:
        """The columns that `attach` adds, of shape (n,) each."""
        there, _ = self._pairs(events)
        started = _started(events)
        loss, delay, throughput = (self._last(column, there, started) for column in PATH_COLUMNS)
        return _path_columns(loss, delay, throughput)

    def standing(self, events: Rows) -> dict[str, FloatArray]:
        """PATH_COLUMNS and STANDING_COLUMNS as of the start of each transfer, of shape (n,) each.

        A clock that is off adds to the delay in one direction what it takes from that in the other. So the round trip is the sum of
        both where both are known, were they negative, and unknown where the sum is; else it is twice the one that is known, up to
        LONGEST_RTT_MS.
        """
        (there, back), started = self._pairs(events), _started(events)
        loss, delay, throughput = (self._last(column, there, started) for column in PATH_COLUMNS)
        rtt_ms, rtt_age_s = _round_trip(delay, self._last("path_delay_ms", back, started))
        columns = _path_columns(loss, delay, throughput)
        for name, last, table, recent_s in (
            ("path_loss", loss, "path_loss", _LOSS_RECENT_S),
            ("path_throughput", throughput, "path_throughput_bps", _THROUGHPUT_RECENT_S),
        ):
            count, total = self._tables[table].since(there, started, recent_s=recent_s)
            several = count > 0
            columns |= {
                f"{name}_recent": np.where(several, total / np.maximum(count, 1.0), last.value),
                f"{name}_count": np.where(several, count, np.isfinite(last.value)),
                f"{name}_age_s": last.age_s,
            }
        return columns | {"path_rtt_ms": rtt_ms, "path_rtt_age_s": rtt_age_s}

    def _last(self, column: str, codes: npt.NDArray[np.int64], started: FloatArray) -> _Last:
        return self._tables[column].look_up(codes, started, longest_s=_PATHS[column][1])

    def _pairs(self, events: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Codes of the pairs of sites of each transfer, there and back; -1 for those without readings."""
        sites = [self._of_rses(np.asarray(events[end], dtype=object)) for end in ("source", "destination")]
        ends = list(zip(*sites, strict=True))
        known = {(a, b): (self._codes.get(f"{a}>{b}", -1), self._codes.get(f"{b}>{a}", -1)) for a, b in set(ends)}
        codes = np.array([known[pair] for pair in ends], dtype=np.int64).reshape(-1, 2)
        return codes[:, 0], codes[:, 1]

    def _located(self, readings: pd.DataFrame) -> tuple[list[str], list[str]]:
        """The ATLAS sites of both ends, "" where they are not known; remembers what the readings tell of their hosts."""
        ends = [
            (readings[site].to_numpy(dtype=object), readings[host].to_numpy(dtype=object))
            for site, host in (("source_site", "source_host"), ("destination_site", "destination_host"))
        ]
        for sites, hosts in ends:
            self._hosts.update({host: site for host, site in zip(hosts, sites, strict=True) if host and site})
        source, destination = (
            [site or self._hosts.get(host, "") for site, host in zip(*end, strict=True)] for end in ends
        )
        while len(self._hosts) > _MOST_HOSTS:
            del self._hosts[next(iter(self._hosts))]
        atlas = {name: self._site_map.of_site(name) for name in {*source, *destination}}
        return [atlas[name] for name in source], [atlas[name] for name in destination]

    def _of_rses(self, names: npt.NDArray[np.object_]) -> list[str]:
        """The ATLAS site of each RSE, folded: names of pairs are."""
        if len(self._sites) > _MOST_HOSTS:
            self._sites.clear()
        for name in set(names).difference(self._sites):
            self._sites[name] = self._site_map.of_rse(name).casefold()
        return [self._sites[name] for name in names]

    def _forget_pairs(self) -> None:
        """Keep only the pairs of which there still are readings."""
        used = np.unique(np.concatenate([table.codes for table in self._tables.values()]))
        names = list(self._codes)
        self._codes = {names[code]: place for place, code in enumerate(used)}
        for table in self._tables.values():
            table.renumber(used)


class _AsOf:
    """Values by (pair, time), as sorted arrays of keys: pair's code << 42 | milliseconds.

    Two of them, a long one and a short one of what came since that was last merged: a few readings put into a million
    would move all of these.
    """

    def __init__(self, step: float) -> None:
        """`step`: what values are counted in where they are summed."""
        self._nothing = _Sorted(keys=np.empty(0, dtype=np.int64), values=np.empty(0), step=step)
        self._long = self._short = self._nothing

    def __len__(self) -> int:
        return len(self._long.keys) + len(self._short.keys)

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """Codes of the pairs that there are readings of."""
        return np.unique(np.concatenate([part.keys >> _TIME_BITS for part in (self._long, self._short)]))

    def insert(self, codes: npt.NDArray[np.int64], at: FloatArray, values: FloatArray) -> bool:
        """Add readings; return whether old ones had to go."""
        if len(codes) == 0:
            return False
        keys = codes << _TIME_BITS | np.ceil(at * 1000).astype(np.int64)
        self._long, new = self._long.corrected(keys, values)
        if not new.any():
            return False
        self._short = self._short.with_newer(keys[new], values[new])
        if len(self._short.keys) > _MERGE_SHARE * len(self._long.keys):
            self._long, self._short = self._long.with_newer(self._short.keys, self._short.values), self._nothing
            if len(self._long.keys) > 2 * _MOST_READINGS:
                self._long = self._long.newest(_MOST_READINGS)
                return True
        return False

    def look_up(self, codes: npt.NDArray[np.int64], at: FloatArray, *, longest_s: float) -> _Last:
        """The last readings strictly before `at`, NaN if they are older than `longest_s`."""
        moment = _milliseconds(at)
        wanted = codes << _TIME_BITS | moment
        key, value = self._long.before(wanted)
        newer_key, newer_value = self._short.before(wanted)
        newer = newer_key >= key
        key, value = np.where(newer, newer_key, key), np.where(newer, newer_value, value)
        age = moment - (key & _TIME_MASK)
        fresh = (codes >= 0) & (key >> _TIME_BITS == codes) & (age <= longest_s * 1000)
        return _Last(value=np.where(fresh, value, np.nan), age_s=np.where(fresh, age / 1000.0, np.nan))

    def since(self, codes: npt.NDArray[np.int64], at: FloatArray, *, recent_s: float) -> tuple[FloatArray, FloatArray]:
        """How many readings there are in the last so many seconds before `at`, and their sum; both of shape (n,)."""
        moment = _milliseconds(at)
        first = np.maximum(moment - int(recent_s * 1000), 0)
        known = codes >= 0
        begin, end = codes << _TIME_BITS | first, codes << _TIME_BITS | moment
        (n, total), (more, rest) = self._long.between(begin, end), self._short.between(begin, end)
        return np.where(known, n + more, 0.0), np.where(known, total + rest, 0.0)

    def renumber(self, used: npt.NDArray[np.int64]) -> None:
        """Give each code its place in `used`."""
        self._long, self._short = self._long.renumbered(used), self._short.renumbered(used)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    """The last readings as of some moments; NaN where there is none that is fresh. Both of shape (n,)."""

    value: FloatArray
    age_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class _Sorted:
    """Readings in the order of their keys; both of shape (n,)."""

    keys: npt.NDArray[np.int64]
    values: FloatArray
    step: float

    @functools.cached_property
    def sums(self) -> npt.NDArray[np.int64]:
        """Of the first so many values, 0 to n of them, in steps; shape (n + 1,). They may well overflow: differences do not."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.rint(self.values / self.step).astype(np.int64))])

    def with_newer(self, keys: npt.NDArray[np.int64], values: FloatArray) -> _Sorted:
        """These and others: of several with one key the newest counts."""
        keys = np.concatenate([self.keys, keys])
        order = np.argsort(keys, kind="stable")
        last = np.append(np.diff(keys[order]) != 0, True)
        kept = order[last]
        return dataclasses.replace(self, keys=keys[kept], values=np.concatenate([self.values, values])[kept])

    def corrected(self, keys: npt.NDArray[np.int64], values: FloatArray) -> tuple[_Sorted, npt.NDArray[np.bool_]]:
        """These with the values of the keys that they have, and which of `keys` they do not have."""
        if not len(self.keys):
            return self, np.ones(len(keys), dtype=np.bool_)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        new = self.keys[place] != keys
        if new.all():
            return self, new
        changed = self.values.copy()
        changed[place[~new]] = values[~new]
        return dataclasses.replace(self, values=changed), new

    def before(self, wanted: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """The last key strictly before each of `wanted`, and its value; -1 and NaN where there is none."""
        if not len(self.keys):
            return np.full(len(wanted), -1, dtype=np.int64), np.full(len(wanted), np.nan)
        place = np.searchsorted(self.keys, wanted) - 1
        return np.where(place >= 0, self.keys[place], -1), np.where(place >= 0, self.values[place], np.nan)

    def between(
        self, first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """How many keys there are from `first` on and before `end`, and the sum of their values."""
        begin, stop = np.searchsorted(self.keys, first), np.searchsorted(self.keys, end)
        total: FloatArray = (self.sums[stop] - self.sums[begin]).astype(np.float64) * self.step
        return (stop - begin).astype(np.int64), total

    def newest(self, count: int) -> _Sorted:
        kept = np.sort(np.argpartition(self.keys & _TIME_MASK, -count)[-count:])
        return dataclasses.replace(self, keys=self.keys[kept], values=self.values[kept])

    def renumbered(self, used: npt.NDArray[np.int64]) -> _Sorted:
        codes = np.searchsorted(used, self.keys >> _TIME_BITS)
        return dataclasses.replace(self, keys=codes << _TIME_BITS | self.keys & _TIME_MASK)


def _started(events: Rows) -> FloatArray:
    return np.asarray(events["started_at"], dtype=np.float64)


def _milliseconds(at: FloatArray) -> npt.NDArray[np.int64]:
    return np.floor(np.nan_to_num(at, nan=0.0) * 1000).astype(np.int64)


def _path_columns(loss: _Last, delay: _Last, throughput: _Last) -> dict[str, FloatArray]:
    # A negative delay says that a clock is off and nothing of the delay, so that the one before is outdated too.
    positive = np.where(delay.value < 0, np.nan, delay.value)
    return dict(zip(PATH_COLUMNS, (loss.value, positive, throughput.value), strict=True))


def _round_trip(there: _Last, back: _Last) -> tuple[FloatArray, FloatArray]:
    """Milliseconds, and the age in seconds of what they are made of; NaN where they are not known."""
    both = there.value + back.value
    alone = np.minimum(2.0 * np.fmax(there.value, back.value), LONGEST_RTT_MS)
    rtt_ms = np.where(np.isnan(both), alone, both)
    known = rtt_ms > 0
    return np.where(known, rtt_ms, np.nan), np.where(known, np.fmax(there.age_s, back.age_s), np.nan)


def _pair(source: str, destination: str) -> str:
    return f"{source.casefold()}>{destination.casefold()}"


def _rtt(document: dict[str, object]) -> object:
    """The round trip to the end of a traced route, if the route reached it."""
    rtts = document.get("rtts")
    reached = document.get("destination_reached") is not False and isinstance(rtts, list) and len(rtts) > 0
    return rtts[-1] if reached and isinstance(rtts, list) else document.get("rtt")


def _assemble(
    columns: Mapping[str, Column], rows: int, *, now: datetime, document: Callable[[int], object]
) -> tuple[pd.DataFrame, list[Refusal]]:
    path = _path(columns, rows)
    at = seconds(columns, READING_ALIASES["at"], rows)
    values = _values(columns, rows)
    usable = ~np.isnan(np.column_stack(list(values.values())))
    nameless = ((path["source_site"] == "") & (path["source_host"] == "")) | (
        (path["destination_site"] == "") & (path["destination_host"] == "")
    )
    markup = (path["source_site"] + path["destination_site"]).str.contains(r"[<>]")
    faults = [
        (RefusalReason.NO_LINK, "it names no site and no host of one end", nameless.to_numpy(dtype=bool)),
        (RefusalReason.BAD_NAME, "its site cannot be one", markup.to_numpy(dtype=bool)),
        (RefusalReason.BAD_TIME, "it has no time", np.isnan(at)),
        (RefusalReason.FROM_THE_FUTURE, f"more than {AHEAD} after {now:%Y-%m-%d %H:%M:%S}", at > _horizon(now)),
        (RefusalReason.NO_VALUE, "it measures nothing that is known and in its range", ~usable.any(axis=1)),
    ]
    refused = np.select([fault for _, _, fault in faults], list(range(len(faults))), default=-1)
    refusals = [
        refusal(faults[refused[row]][0], faults[refused[row]][1], document(int(row)))
        for row in np.flatnonzero(refused >= 0)
    ]
    taken, which = np.nonzero(usable & (refused < 0)[:, None])  # in the order of documents, then of quantities
    readings = path.take(taken).reset_index(drop=True)
    readings["quantity"] = pd.Series(np.array(list(QUANTITIES), dtype=object)[which], dtype="str")
    readings["value"] = np.column_stack(list(values.values()))[taken, which]
    readings["at"] = at[taken]
    return readings, refusals


def _horizon(now: datetime) -> float:
    return (aware(now) + AHEAD).timestamp()


def _path(columns: Mapping[str, Column], rows: int) -> pd.DataFrame:
    """The two sites and hosts. Beside a `dst` (the documents say `dest`), `src` and `dst` name sites, as in tables of site pairs."""
    path = pd.DataFrame(
        {name: texts(columns, READING_ALIASES[name], rows, longest=LONGEST_NAME) for name in READING_COLUMNS[:4]}
    )
    if "dst" in columns:
        by_site = texts(columns, ("dst",), rows, longest=LONGEST_NAME) != ""
        for site, host, name in (
            ("source_site", "source_host", "src"),
            ("destination_site", "destination_host", "dst"),
        ):
            named = texts(columns, (name,), rows, longest=LONGEST_NAME)
            path[site] = path[site].where(~by_site | (path[site] != ""), named)
            path[host] = path[host].where(~by_site | (path[host] != named), "")
    return path


def _values(columns: Mapping[str, Column], rows: int) -> dict[str, FloatArray]:
    """A column of each quantity, NaN where it was not measured or cannot be true."""
    quantity = texts(columns, ("quantity",), rows, longest=LONGEST_NAME).to_numpy(dtype=object)
    long_form = numbers(columns, ("value",), rows)
    values = {}
    for name in QUANTITIES:
        value = np.where(quantity == name, long_form, numbers(columns, READING_ALIASES[name], rows))
        possible = (value >= _LOWEST.get(name, 0.0)) & (value <= _HIGHEST.get(name, 1e6))
        values[name] = np.where(possible, value, np.nan)
    return values
