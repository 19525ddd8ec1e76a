"""What Rucio and FTS write when a transfer or a deletion fails, with the names of the machines concerned."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from simulator.topology import PROTOCOLS, Topology

_PORTS = {"davs": 443, "gsiftp": 2811, "srm": 8443}


class Code(enum.IntEnum):
    """Why something failed. Stable: records and recorded truths hold these numbers."""

    NONE = 0
    SOURCE_REFUSED = 1
    DESTINATION_REFUSED = 2
    NO_SPACE = 3
    SOURCE_CREDENTIALS = 4
    DESTINATION_CREDENTIALS = 5
    CHECKSUM = 6
    MISSING = 7
    SOURCE_BUSY = 8
    DESTINATION_BUSY = 9
    BLACK_HOLE = 10
    TIMED_OUT = 11
    STRAY_CHECKSUM = 12  # from here on: what goes wrong now and then on a grid that is well
    STRAY_MISSING = 13
    STRAY_EXISTS = 14
    STRAY_MARKER = 15
    STRAY_END_OF_FILE = 16
    STRAY_TIMEOUT = 17
    CANCELLED = 18
    DELETION_REFUSED = 20
    DELETION_NOT_FOUND = 21


def text(code: Code, topology: Topology, source: int, destination: int) -> str:
    """The reason as it stands in the message; "" for `Code.NONE`. `source` is -1 for deletions."""
    words = _WORDS.get(code)
    return "" if words is None else words(_Ends(topology, source, destination))


class _Ends:
    """The two storage elements of a transfer, as the words name them."""

    def __init__(self, topology: Topology, source: int, destination: int) -> None:
        self._topology = topology
        self._source = source
        self._destination = destination

    @property
    def source(self) -> str:
        return self._topology.hosts[self._source]

    @property
    def destination(self) -> str:
        return self._topology.hosts[self._destination]

    @property
    def fts(self) -> str:
        site = self._topology.rse_site[self._destination]
        return self._topology.fts[int(self._topology.site_fts[site])]

    @property
    def token(self) -> str:
        return f"ATLAS{self._topology.space[self._destination]}"

    def protocol(self, side: str) -> str:
        rse = self._source if side == "SOURCE" else self._destination
        return PROTOCOLS[self._topology.protocol[rse]]


def _source_refused(ends: _Ends) -> str:
    host = ends.source
    match ends.protocol("SOURCE"):
        case "davs":
            return f"SOURCE [113] Could not get the size of davs://{host}:443: Failed to connect: Connection refused"
        case "srm":
            return (
                f"SOURCE [70] srm-ifce err: Communication error on send, err: [SE][Ls][] httpg://{host}:8443/srm/managerv2: "
                f"CGSI-gSOAP running on {ends.fts} reports could not open connection to {host}:8443\n\n"
            )
        case _:
            return (
                f"SOURCE [70] globus_xio: Unable to connect to {host}:2811 globus_xio: System error in connect: "
                "Connection refused globus_xio: A system call failed: Connection refused"
            )


def _destination_refused(ends: _Ends) -> str:
    host = ends.destination
    if ends.protocol("DESTINATION") == "davs":
        return f"DESTINATION [113] DESTINATION MAKE_PARENT davs://{host}:443: Failed to connect: Connection refused"
    return (
        "TRANSFER [70] DESTINATION OVERWRITE srm-ifce err: Communication error on send, err: [SE][srmRm][] "
        f"httpg://{host}:8443/srm/managerv2: CGSI-gSOAP running on {ends.fts} reports could not open connection to {host}:8443\n\n"
    )


def _no_space(ends: _Ends) -> str:
    host = ends.destination
    if ends.protocol("DESTINATION") == "davs":
        return f"TRANSFER [28] DESTINATION davs://{host}:443: HTTP 507: Insufficient Storage, no free space in {ends.token}"
    return (
        "DESTINATION [28] SRM_PUT_TURL srm-ifce err: No space left on device, err: [SE][PrepareToPut]"
        f"[SRM_NO_FREE_SPACE] httpg://{host}:8443/srm/managerv2: no free space in token {ends.token}"
    )


def _credentials(ends: _Ends, side: str) -> str:
    host = ends.source if side == "SOURCE" else ends.destination
    if ends.protocol(side) == "davs":
        return f"{side} [13] {side} SSL handshake with {host}:443 failed: certificate has expired"
    return (
        f"{side} [13] globus_ftp_client: the server responded with an error 530 530-globus_xio: Authentication Error 530-"
        f"OpenSSL Error: in library: SSL routines: the certificate of {host} has expired 530 End."
    )


def _checksum(ends: _Ends) -> str:
    return (
        f"TRANSFER [5] SOURCE CHECKSUM MISMATCH User defined checksum and source checksum do not match at {ends.source}"
    )


def _missing(ends: _Ends) -> str:
    host = ends.source
    if ends.protocol("SOURCE") == "srm":
        return (
            "SOURCE [2] srm-ifce err: No such file or directory, err: [SE][Ls][SRM_INVALID_PATH] "
            f"httpg://{host}:8443/srm/managerv2: No such file or directory"
        )
    return f"SOURCE [2] {host}: No such file or directory"


def _busy(ends: _Ends, side: str) -> str:
    host = ends.source if side == "SOURCE" else ends.destination
    return (
        f"{side} [70] globus_ftp_client: the server responded with an error 421 Service busy: Connection limit "
        f"exceeded at {host}. Please try again later. Closing control connection."
    )


def _black_hole(ends: _Ends) -> str:
    return (
        "DESTINATION [5] DESTINATION SRM_PUT_TURL error on the turl request: [SE][StatusOfPutRequest][SRM_FAILURE] "
        f"httpg://{ends.destination}:8443/srm/managerv2: no write pool is online"
    )


def _timed_out(_: _Ends) -> str:
    return "TRANSFER [110] TRANSFER Operation timed out"


def _end_of_file(ends: _Ends) -> str:
    return (
        f"TRANSFER [70] TRANSFER an end-of-file was reached globus_xio: An end of file occurred at {ends.destination}"
    )


def _deletion_refused(ends: _Ends) -> str:
    host, port = ends.destination, _PORTS[ends.protocol("DESTINATION")]
    return (
        "The requested service is not available at the moment.\nDetails: An unknown exception occurred.\nDetails: "
        f"srm-ifce err: Communication error on send, err: [SE][srmRm][] httpg://{host}:{port}/srm/v2/server: "
        f"CGSI-gSOAP running on rucio-daemon.example reports could not open connection to {host}:{port}"
    )


_WORDS: Mapping[Code, Callable[[_Ends], str]] = {
    Code.SOURCE_REFUSED: _source_refused,
    Code.DESTINATION_REFUSED: _destination_refused,
    Code.NO_SPACE: _no_space,
    Code.SOURCE_CREDENTIALS: lambda ends: _credentials(ends, "SOURCE"),
    Code.DESTINATION_CREDENTIALS: lambda ends: _credentials(ends, "DESTINATION"),
    Code.CHECKSUM: _checksum,
    Code.MISSING: _missing,
    Code.SOURCE_BUSY: lambda ends: _busy(ends, "SOURCE"),
    Code.DESTINATION_BUSY: lambda ends: _busy(ends, "DESTINATION"),
    Code.BLACK_HOLE: _black_hole,
    Code.TIMED_OUT: _timed_out,
    Code.STRAY_CHECKSUM: _checksum,
    Code.STRAY_MISSING: _missing,
    Code.STRAY_EXISTS: lambda _: "DESTINATION [17] Destination file exists and overwrite is not enabled",
    Code.STRAY_MARKER: lambda _: (
        "TRANSFER [110] TRANSFER gsiftp performance marker timeout of 360 seconds has been exceeded"
    ),
    Code.STRAY_END_OF_FILE: _end_of_file,
    Code.STRAY_TIMEOUT: _timed_out,
    Code.CANCELLED: lambda _: "TRANSFER [125] TRANSFER Operation canceled by user",
    Code.DELETION_REFUSED: _deletion_refused,
    Code.DELETION_NOT_FOUND: lambda _: "File not found.\nDetails: The requested file was not found at the storage",
}
