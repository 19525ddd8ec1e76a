"""An emulated Slack workspace: how to get it, how to start it, and hands to press its buttons with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from slack_sdk import WebClient

from agent.desk.answers import Operators
from agent.desk.slack import SlackDesk, web_client

EMULATOR = "local-slack-linux-x64"
VERSION = "0.1.8"
OPERATORS = Operators.named({"U01ADA": "ada"})
CHANNEL = "C01OPS"


class Unavailable(Exception):
    """The emulator cannot be had or started here."""


class Emulator:
    """An emulated workspace, and hands to press its buttons with."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, timeout=10, trust_env=False)
        self.web = web_client("xoxb-test", f"{url}/api/")

    def messages(self, thread=None):
        found = self.http.get(f"/_control/messages/{CHANNEL}").json()["messages"]
        return [m for m in found if m.get("thread_ts") == thread and m.get("subtype") != "ephemeral"]

    def ephemeral(self):
        found = self.http.get(f"/_control/messages/{CHANNEL}").json()["messages"]
        return [(m["ephemeral_to"], m["text"]) for m in found if m.get("subtype") == "ephemeral"]

    def click(self, button, user="U01ADA"):
        message = self.messages()[0]
        told = {"channel": CHANNEL, "messageTs": message["ts"], "user": user, "action": button | {"block_id": "b"}}
        assert self.http.post("/_control/interact", json=told).json() == {"ok": True}


def installed(cache: Path, scratch: Path) -> Path:
    """The emulator's program, from `cache` or else from the npm registry by way of `scratch`."""
    missing = [tool for tool in ("npm", "unshare") if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"the Slack emulator needs {' and '.join(missing)}")
    binary = cache / "local-slack"
    if not binary.exists():
        command = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(scratch)]
        done = subprocess.run([*command, f"{EMULATOR}@{VERSION}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"npm cannot install the Slack emulator: {done.stderr.strip()[-300:]}")
        whole = binary.with_name(f"{binary.name}-{os.getpid()}")
        shutil.copy2(scratch / "node_modules" / EMULATOR / "bin" / "local-slack", whole)
        whole.replace(binary)  # at once: another worker may be at it, too
    return binary


@contextmanager
def running(binary: Path, scratch: Path) -> Iterator[Emulator]:
    """A workspace of its own, with its configuration in `scratch`."""
    config = scratch / "workspace.yaml"
    config.write_text(
        "app: {appId: A01APP, botUserId: U0BOT, botName: gridmedic, botToken: xoxb-test, appToken: xapp-test, mode: socket}\n"
        "users: [{id: U01ADA, name: ada}, {id: U02EVE, name: eve}]\n"
        f"channels: [{{id: {CHANNEL}, name: ops, members: [U01ADA, U02EVE, U0BOT]}}]\n"
    )
    script = Path(__file__).with_name("slack_emulator.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(binary), str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = process.stdout.readline().strip()
    if not url:
        _, complaint = process.communicate()
        raise Unavailable(f"the Slack emulator cannot be started in a namespace of its own: {complaint.strip()[-300:]}")
    workspace = Emulator(url)
    try:
        yield workspace
    finally:
        workspace.http.close()
        process.communicate()


def desk_for(ledger, web: WebClient, *, cards, channel: str = CHANNEL) -> SlackDesk:
    return SlackDesk(ledger, web=web, app_token="xapp-test", channel=channel, operators=OPERATORS, cards=cards)


@contextmanager
def connected(desk: SlackDesk) -> Iterator[SlackDesk]:
    """A desk that takes clicks."""
    desk.start()
    try:
        wait_until(lambda: desk._socket is not None and desk._socket.is_connected())
        yield desk
    finally:
        desk.stop()


def texts(blocks):
    for block in blocks:
        for text in [block.get("text"), *block.get("elements", [])]:
            if text and "mrkdwn" in text.get("type", ""):
                yield text["text"]


def buttons(blocks, action=""):
    found = [element for block in blocks if block["type"] == "actions" for element in block["elements"]]
    return [button for button in found if button["action_id"].startswith(action)]


def wait_until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
