"""A real Elasticsearch server for the tests: Maven Central's minimal distribution, run on the loopback address."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "8.19.21"
ARTIFACT = f"org.elasticsearch.distribution.integ-test-zip:elasticsearch:{VERSION}:zip"


class Unavailable(Exception):
    """The server cannot be had on this machine; the message says what is missing."""


@contextmanager
def running_server() -> Iterator[str]:
    """Install and start a server; yield its URL; stop it and remove what it wrote. Raise Unavailable."""
    needed = ["mvn", "java", *(["setpriv"] if os.geteuid() == 0 else [])]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        raise Unavailable(f"Elasticsearch needs {' and '.join(missing)} on the path")
    with tempfile.TemporaryDirectory(prefix="gridmedic-elasticsearch-") as folder:
        base = Path(folder)
        base.chmod(0o755)  # the server runs as another user
        port = _free_port()
        try:
            home = _unpacked(base)
            _configure(home, port)
            pid_file = _started(base, home)
        except (OSError, subprocess.TimeoutExpired, zipfile.BadZipFile) as error:
            raise Unavailable(f"Elasticsearch cannot be installed or started: {error}") from error
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(int(pid_file.read_text()))


def _archive() -> Path:
    """The distribution's zip in the local Maven repository, fetched if it is not there."""
    fetch = ["mvn", "-q", "-B", "dependency:get", "-Dtransitive=false", f"-Dartifact={ARTIFACT}"]
    where = ["mvn", "-q", "-B", "help:evaluate", "-Dexpression=settings.localRepository", "-DforceStdout"]
    place = Path("org/elasticsearch/distribution/integ-test-zip/elasticsearch", VERSION, f"elasticsearch-{VERSION}.zip")
    usual = Path.home() / ".m2/repository" / place
    if usual.exists():
        return usual
    fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=240, check=False)
    if fetched.returncode:
        raise Unavailable(f"Maven cannot fetch {ARTIFACT}: {fetched.stdout.strip()[-500:]}")
    if usual.exists():
        return usual
    told = subprocess.run(where, capture_output=True, text=True, timeout=120, check=False).stdout.strip()
    if not (Path(told) / place).exists():
        raise Unavailable(f"{place} is not in the local Maven repository {told!r}")
    return Path(told) / place


def _unpacked(base: Path) -> Path:
    with zipfile.ZipFile(_archive()) as archive:
        archive.extractall(base)
    home = base / f"elasticsearch-{VERSION}"
    for program in (*(home / "bin").iterdir(), *home.glob("modules/**/bin/*"), *home.glob("lib/**/*spawn*")):
        program.chmod(0o755)
    return home


def _configure(home: Path, port: int) -> None:
    (home / "config/elasticsearch.yml").write_text(
        f"""network.host: 127.0.0.1
http.port: {port}
transport.port: {_free_port()}
discovery.type: single-node
xpack.security.enabled: false
cluster.routing.allocation.disk.threshold_enabled: false
"""
    )
    options = home / "config/jvm.options.d"
    options.mkdir(exist_ok=True)
    (options / "tests.options").write_text("-Xms512m\n-Xmx512m\n-XX:TieredStopAtLevel=1\n")  # the last: a quicker start


def _started(base: Path, home: Path) -> Path:
    scratch, pid_file = base / "scratch", base / "run" / "pid"
    scratch.mkdir()
    pid_file.parent.mkdir()
    command = [str(home / "bin/elasticsearch"), "-d", "-p", str(pid_file)]
    if os.geteuid() == 0:  # the server refuses to run as root
        for path in (base, *base.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
    java = Path(shutil.which("java") or "java").resolve().parent.parent
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(scratch),
        "ES_JAVA_HOME": str(java),
        "ES_TMPDIR": str(scratch),
    }
    log = base / "start.log"
    with log.open("wb") as out:  # a file: the daemon would hold a pipe open
        done = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=120, check=False)
    if done.returncode or not pid_file.exists():
        raise Unavailable(f"Elasticsearch does not start: {log.read_text(errors='replace').strip()[-800:]}")
    return pid_file


def _stop(pid: int) -> None:
    """End the server and wait until it is gone: it is no child of ours, so that nobody waits for it."""
    for stop, patience_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                os.kill(pid, stop)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
