"""Compiling kernels, and keeping them from one process to the next.

numba takes a kernel that it has kept for fresh as long as the kernel's own file is the same, whatever has become of the constants
and the kernels that it has from other files. So it keeps these where a digest of all those files is part of the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from numba import config, njit

MODULES: Final = (
    "draws",
    "engine",
    "errors",
    "flows",
    "queues",
    "records",
    "state",
    "topology",
)  # what kernels are made of

_HERE = Path(__file__).parent
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def _directory() -> str:
    """Where the user wants kernels to be kept, or else beside the code."""
    digest = hashlib.sha256(b"".join((_HERE / f"{name}.py").read_bytes() for name in MODULES)).hexdigest()
    return str(Path(config.CACHE_DIR or _HERE / "__pycache__") / f"kernels-{digest[:16]}")


_DIRECTORY = _directory()


def kernel(function: _Kernel, *, inline: str = "never") -> _Kernel:
    """Compile it when it is first called, or take what was kept; where nothing can be kept, numba's own ways apply."""
    before, config.CACHE_DIR = config.CACHE_DIR, _DIRECTORY
    try:
        compiled: _Kernel = njit(function, cache=True, inline=inline)
    finally:
        config.CACHE_DIR = before
    return compiled


inlined = partial(kernel, inline="always")
