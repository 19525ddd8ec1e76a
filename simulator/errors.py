"""What Rucio and FTS write when a transfer or a deletion fails, with the names of the machines concerned."""

from __future__ import annotations

from simulator.topology import Storage

TIMED_OUT = "TRANSFER [110] TRANSFER Operation timed out"


def source_refuses(source: Storage) -> str:
    return (
        f"SOURCE [70] globus_xio: Unable to connect to {source.host}:2811 globus_xio: System error in connect: "
        "Connection refused globus_xio: A system call failed: Connection refused"
    )


def destination_refuses(destination: Storage, fts: str) -> str:
    return (
        "TRANSFER [70] DESTINATION OVERWRITE srm-ifce err: Communication error on send, err: [SE][srmRm][] "
        f"httpg://{destination.host}:8443/srm/managerv2: CGSI-gSOAP running on {fts} reports could not open connection "
        f"to {destination.host}:8443\n\n"
    )


def disk_full(destination: Storage) -> str:
    token = f"ATLAS{destination.name.rpartition('_')[2]}"
    return (
        "DESTINATION [28] SRM_PUT_TURL srm-ifce err: No space left on device, err: [SE][PrepareToPut]"
        f"[SRM_NO_FREE_SPACE] httpg://{destination.host}:8443/srm/managerv2: no free space in token {token}"
    )


def door_busy(side: str) -> str:
    return (
        f"{side} [70] globus_ftp_client: the server responded with an error 421 Service busy: Connection limit "
        "exceeded. Please try again later. Closing control connection."
    )


def deletion_refused(storage: Storage) -> str:
    return (
        "The requested service is not available at the moment.\nDetails: An unknown exception occurred.\nDetails: "
        f"srm-ifce err: Communication error on send, err: [SE][srmRm][] httpg://{storage.host}:8443/srm/v2/server: "
        f"CGSI-gSOAP running on rucio-daemon.example reports could not open connection to {storage.host}:8443"
    )


def mishaps(source: Storage, destination: Storage) -> tuple[str, ...]:
    """What goes wrong now and then on a grid that is well."""
    return (
        f"TRANSFER [5] SOURCE CHECKSUM MISMATCH User defined checksum and source checksum do not match at {source.host}",
        f"SOURCE [2] {source.host}: No such file or directory",
        "DESTINATION [17] Destination file exists and overwrite is not enabled",
        "TRANSFER [110] TRANSFER gsiftp performance marker timeout of 360 seconds has been exceeded",
        f"TRANSFER [70] TRANSFER an end-of-file was reached globus_xio: An end of file occurred at {destination.host}",
        TIMED_OUT,
    )
