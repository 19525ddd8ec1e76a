"""Where Rucio's messages come from: the names and addresses of one grid, its clock, and its words for what went wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from models.domain import aware
from simulator.draws import Draws, FloatArray, For
from simulator.errors import Code, text
from simulator.records import Records, What
from simulator.texts import table
from simulator.topology import PROTOCOLS, Topology

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PORTS = {"davs": 443, "gsiftp": 2811, "srm": 8446}
_WRITE_S = 2.0  # mean time until a message is written
_POLL_S = (3.0, 45.0)  # until Rucio's poller sees that FTS has ended a transfer
_ENDED = (What.DONE, What.FAILED)


class Origin:
    """What the messages of one grid have in common. Times of records are seconds after `start`."""

    def __init__(self, topology: Topology, draws: Draws, start: datetime) -> None:
        self.topology = topology
        self.draws = draws
        protocols = [PROTOCOLS[number] for number in topology.protocol]
        self.rses = table(topology.rses)
        self.protocols = table(protocols)
        self.kinds = table("TAPE" if tape else "DISK" for tape in topology.tape)
        self.ids = table(draws.hex(For.TOPOLOGY, 9999, rse) for rse in range(len(topology.rses)))
        self.servers = table(topology.fts[topology.site_fts[site]] for site in topology.rse_site)
        self.folders = table(
            f"{protocol}://{host}:{_PORTS[protocol]}{'/srm/managerv2?SFN=' if protocol == 'srm' else ''}"
            f"/pnfs/{host.partition('.')[2]}/atlas{space.lower()}/rucio/"
            for protocol, host, space in zip(protocols, topology.hosts, topology.space, strict=True)
        )
        self._start = (aware(start) - _EPOCH) // timedelta(microseconds=1)
        self._reasons: dict[int, str] = {}

    def written(self, records: Records) -> FloatArray:
        """When each message's producer wrote it, in seconds after the start."""
        names = (For.DELIVERY, records["file"], records["tries"], records["what"])
        written: FloatArray = records["at"] + self.draws.exponentials(_WRITE_S, *names, 1)
        low, high = _POLL_S
        seen = low + (high - low) * self.draws.uniforms(*names, 10)
        return np.where(np.isin(records["what"], _ENDED), written + seen, written)

    def microseconds(self, at: FloatArray) -> npt.NDArray[np.int64]:
        """Seconds after the start as microseconds since 1970; NaN as 0."""
        found: npt.NDArray[np.int64] = self._start + np.rint(np.nan_to_num(at) * 1e6).astype(np.int64)
        return np.where(np.isnan(at), 0, found)

    def reasons(self, records: Records) -> tuple[list[str], npt.NDArray[np.intp]]:
        """The different reasons that the records have, and the place of each record's."""
        room = len(self.topology.rses) + 1
        told_by = (records["code"].astype(np.int64) * room + records["source"] + 1) * room + records["destination"] + 1
        found, places = np.unique(np.where(records["code"] == Code.NONE, 0, told_by), return_inverse=True)
        return [self._reason(int(number), room) for number in found], places

    def _reason(self, number: int, room: int) -> str:
        if number not in self._reasons:
            rest, destination = divmod(number, room)
            code, source = divmod(rest, room)
            self._reasons[number] = text(Code(code), self.topology, source - 1, destination - 1)
        return self._reasons[number]
