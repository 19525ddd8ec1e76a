"""Classes of transfer errors: what an FTS reason text is really about.

The scheme follows what operators of the experiments use: source (permission, missing, error), transfer (timeout, error),
destination (permission, path, space, error). The text beats the prefix: «TRANSFER [70] DESTINATION OVERWRITE» is about
the destination.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_REASON = 2_000

_SIDE = re.compile(
    r"^\s*(SOURCE|DESTINATION|TRANSFER|GENERAL_FAILURE)\b\W*(?:\[?\d*\]?\s*)?(SOURCE|DESTINATION)?", re.IGNORECASE
)
_WHAT: Sequence[tuple[str, re.Pattern[str]]] = [
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("checksum", r"checksum mismatch|checksum.{0,40}do not match|user and (?:source|destination) checksum"),
        ("space", r"no.?(?:free)?.?space|SRM_NO_FREE_SPACE|disk quota|ENOSPC|storage full"),
        ("exists", r"file exists|already exists|overwrite is not enabled|SRM_DUPLICATION_ERROR"),
        ("missing", r"no such file|file not found|SRM_INVALID_PATH|does not exist|not ONLINE"),
        (
            "credential",
            r"(?:proxy|certificate|credential|CRL).{0,40}(?:expired|invalid)|authenticat|SRM_AUTHENTICATION",
        ),
        ("permission", r"permission denied|not permitted|SRM_AUTHORIZATION_FAILURE|\b403\b|forbidden"),
        ("overload", r"\b421\b|service busy|connection limit|too many|SRM_INTERNAL_ERROR|overload"),
        ("timeout", r"timed? ?out|timeout|performance marker"),
        (
            "connection",
            r"connect|communication error|name or service not known|end of file|broken pipe|unreachable|refused",
        ),
    )
]


@functools.lru_cache(maxsize=4096)
def error_class(reason: str) -> str:
    """Name the class of a reason text, as `side-what`.

    >>> error_class("TRANSFER [70] DESTINATION OVERWRITE srm-ifce err: Communication error on send")
    'destination-connection'
    >>> error_class("TRANSFER [110] TRANSFER Operation timed out")
    'transfer-timeout'
    >>> error_class("")
    'unknown'
    """
    text = reason[:MAX_REASON]
    if not text.strip():
        return "unknown"
    what = next((name for name, pattern in _WHAT if pattern.search(text)), "error")
    return f"{_side(text, what)}-{what}"


def _side(text: str, what: str) -> str:
    if what == "checksum":
        return "source" if re.search(r"source checksum", text, re.IGNORECASE) else "destination"
    match = _SIDE.match(text)
    if match is None:
        return "transfer"
    side = (match.group(2) or match.group(1)).lower()
    return side if side in {"source", "destination"} else "transfer"


def error_classes(reasons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Class of each reason; a text that comes again is not looked at again."""
    return np.array([error_class(reason) for reason in reasons], dtype=object)


def is_timeout(classes: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Which of these classes say no more than that it took too long; shape (n,)."""
    return np.fromiter((name.endswith("-timeout") for name in classes), dtype=np.bool_, count=len(classes))


_SIDES = {"source": 1, "destination": 2}


def sides(classes: npt.NDArray[np.object_]) -> npt.NDArray[np.int8]:
    """At which end these classes say that it went wrong: 1 at the source, 2 at the destination, 0 at neither; shape (n,)."""
    return np.fromiter((_SIDES.get(name.partition("-")[0], 0) for name in classes), dtype=np.int8, count=len(classes))
