"""A Slack of one's own, reachable from this machine alone.

`python slack_emulator.py BINARY CONFIG` prints the address of the emulator (npm: local-slack-linux-x64) when it answers,
and ends it at the end of its standard input. The emulator listens on every address it has, so it runs in a network
namespace of its own, where there is only a loopback; a listener that was bound outside before carries connections in.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41


def outside() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listener.fileno(), True)
    inside_of = [sys.executable, __file__, *sys.argv[1:], str(listener.fileno())]
    os.execvp("unshare", ["unshare", "--map-root-user", "--net", *inside_of])


def inside(binary: str, config: str, descriptor: int) -> None:
    listener = socket.socket(fileno=descriptor)
    port = listener.getsockname()[1]  # the same inside, because Slack tells clients where to connect
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP_RUNNING))
    files = Path(config).with_name("files")
    command = [binary, "--config", config, "--port", str(port), "--base-host", "127.0.0.1", "--files-dir", str(files)]
    emulator = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(port, emulator)
        sys.stdout.write(f"http://127.0.0.1:{port}\n")
        sys.stdout.flush()
        asyncio.run(carry(listener, port))
    finally:
        emulator.kill()
        emulator.wait()


def wait_for(port: int, emulator: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and emulator.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("the emulator does not answer")


async def carry(listener: socket.socket, port: int) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        except OSError:
            writer.close()

    server = await asyncio.start_server(connect, sock=listener)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        outside()
    else:
        inside(sys.argv[1], sys.argv[2], int(sys.argv[3]))
