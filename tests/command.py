"""The real console script, as users run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GRIDMEDIC = Path(sys.executable).with_name("gridmedic")


def gridmedic(*arguments, cwd, patience_s=60):
    """Run the command in `cwd` to its end. Whatever it is asked, it must not answer with a trace."""
    done = subprocess.run(
        [GRIDMEDIC, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=patience_s, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def refused(*arguments, cwd):
    """Run a command that must end with exit status 2 and one message; return that."""
    done = gridmedic(*arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr


def free_port():
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
