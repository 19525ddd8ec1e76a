"""Bad input at the command line: one clear message and exit status 2, never a trace; and a daemon that goes on and stops when asked."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import yaml

from agent.cli import commands
from agent.config import checked, parse
from models.domain import ConfigError
from storage.ledger import Ledger
from tests.command import GRIDMEDIC, free_port, gridmedic, refused
from tests.desk_stories import decision, incident, record

ROOT = Path(__file__).parent.parent
NEED_A_CONFIG = [
    ("run",),
    ("run", "--once"),
    ("demo",),
    ("grid",),
    ("incidents",),
    ("explain", "x"),
    ("proposals",),
    ("approve", "dec-1"),
    ("reject", "dec-1"),
    ("rate", "dec-1", "good"),
    ("pause",),
    ("resume",),
    ("config", "check"),
]


def every_command(group=commands, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def configured(folder, **settings):
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def desk(tmp_path):
    """A directory with a configuration and a ledger that holds one open proposal."""
    configured(tmp_path)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/var/ledger.db")
    record(ledger, incident(), decision())
    ledger.close()
    return tmp_path


@contextmanager
def daemon(folder, *, said, patience_s=30):
    """`gridmedic run` in `folder`, once it has `said` something in its log; yields the process and what it logs."""
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen([GRIDMEDIC, "run"], cwd=folder, stdout=log, stderr=log)
        try:
            until = time.monotonic() + patience_s
            while said not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.1)
            yield process, folder / "log"
        finally:
            process.kill()
            process.wait()


def ended(process, number, *, within_s=8):
    process.send_signal(number)
    return process.wait(within_s)


# Help


def test_every_command_stands_in_the_readme():
    shown = set(
        re.findall(
            r"^ {4}\.venv/bin/gridmedic ([a-z]+(?: (?:check|loop|forecast|detection|network|list|promote|rollback|add))?)",
            (ROOT / "README.md").read_text(),
            re.MULTILINE,
        )
    )
    assert shown == {" ".join(path) for path, _ in every_command()}


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*found, id=" ".join(found[0])) for found in every_command()]
)
def test_every_command_and_option_says_what_it_does(path, command):
    with click.Context(command, info_name=" ".join(path)) as context:
        shown = command.get_help(context)
        assert not command.get_short_help_str(60).endswith("...")
    assert shown.startswith("Usage: ")
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


def test_help_and_version(tmp_path):
    assert "replay" in gridmedic("--help", cwd=tmp_path).stdout
    assert gridmedic("--version", cwd=tmp_path).stdout.startswith("gridmedic, version ")
    assert gridmedic("nonsense", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


# The configuration


@pytest.mark.parametrize("command", NEED_A_CONFIG, ids=" ".join)
def test_without_a_configuration_every_command_says_what_to_do(tmp_path, command):
    said = refused(*command, cwd=tmp_path)
    assert said == "Error: config.yaml does not exist; name the file with --config, or copy config.yaml here\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"poll: [", "is not YAML"),
        (b"- 1\n", "holds a list where settings by name are expected"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: &a [*a]\n", "hold themselves"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b'x: !!python/object/apply:os.system ["true"]\n', "is not YAML"),
        (b"polls: {every_s: 5}\n", "  polls: there is no such setting"),
        (b"desk: {slack: {token: xoxb-1-secret}}\n", "desk.slack.token: secrets come from the environment"),
        (b"ledger: mysql://me:xoxb-secret@h/x\n", "ledger: "),
        (b"1: 2\n", "  1: there is no such setting"),
        (b"base: /elsewhere\n", "  base: there is no such setting"),
        (b"state: config.yaml\n", "state: 'config.yaml' is not a directory"),
    ],
)
@pytest.mark.parametrize("command", [("config", "check"), ("proposals",)], ids=" ".join)
def test_a_broken_configuration(tmp_path, text, said, command):
    (tmp_path / "config.yaml").write_bytes(text)
    message = refused(*command, cwd=tmp_path)
    assert said in message
    assert "secret" not in message.replace("secrets come", "").replace("holds a secret", "")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_configuration_that_is_a_directory(tmp_path):
    assert "is a directory" in refused("proposals", "--config", tmp_path, cwd=tmp_path)


def test_config_check_finds_everything_at_once(tmp_path):
    (tmp_path / "map.txt").write_text("one two three\n")
    configured(
        tmp_path,
        poll={"every_s": -1},
        grid={"url": "http://127.0.0.1"},
        events=[{"kind": "elasticsearch", "url": "es.example.org", "index": ""}],
        measurements=[{"kind": "elasticsearch", "url": "https://es.example.org:9200", "index": "x", "user": "me"}],
        remedies={"outside": ["magic"], "disabled": ["prayer", "wait"]},
        desk={"console": {"operator": "autonomy"}},
        site_map="map.txt",
        forecast={"model": "."},
        autonomy={"safety_cap": "destructive"},
    )
    said = refused("config", "check", cwd=tmp_path)
    assert said.startswith("Error: config.yaml has 12 problems:\n")
    for problem in (
        "poll.every_s: ",
        "grid.url: a URL has a scheme, a host and a port",
        "events.0.url: ",
        "events.0.index: ",
        "measurements: a source names the user 'me', but GRIDMEDIC_ELASTICSEARCH_PASSWORD is not in the environment",
        "remedies.outside: no installed package registers 'magic'",
        "remedies.disabled: 'wait' cannot be disabled",
        "remedies.disabled: there is no remedy 'prayer'; known: boost_rule, ",
        "desk.console.operator: 'autonomy' stands for choices that no operator made",
        "site_map: map.txt, line 1: ",
        "forecast.model: ",
        "autonomy.safety_cap: ",
    ):
        assert f"\n  {problem}" in said, said


def test_a_good_configuration(tmp_path):
    (tmp_path / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    assert gridmedic("config", "check", cwd=tmp_path).stdout == "config.yaml is good\n"


@pytest.mark.parametrize("name", ["", " ", "autonomy", "Autonomy", "a\nb", "x" * 61, "\u202eevil", " ada"])
def test_who_cannot_be_an_operator(name):
    for section in ({"console": {"operator": name}}, {"slack": {"operators": {"U1": name}}}):
        with pytest.raises(ConfigError, match="desk"):
            parse({"desk": section}, base=ROOT, where="here")


def test_what_is_sound_is_checked_although_another_section_is_not():
    config, problems = checked({"poll": {"limit": "many"}, "desk": {"console": {"host": "0.0.0.0"}}}, base=ROOT)
    assert [problem.split(":")[0] for problem in problems] == ["poll.limit", "desk.console.host"]
    assert config.poll.limit == 5000


# Incidents


def test_incidents_are_listed_told_one_by_one_and_said_to_be_none(desk, tmp_path_factory):
    assert "inc-1" in gridmedic("incidents", cwd=desk).stdout
    told = gridmedic("incidents", "inc-1", cwd=desk).stdout
    assert "NEBULA-T2_DATADISK" in told
    assert "Share: " in told
    assert "there is no incident 'nix'" in refused("incidents", "nix", cwd=desk)
    well = configured(tmp_path_factory.mktemp("well"))
    assert gridmedic("incidents", cwd=well).stdout == "no incident is open\n"
    assert gridmedic("incidents", "--all", cwd=well).stdout == "no incident is known\n"


# Answers


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("proposals", "nix"), 2, "there is no decision 'nix'"),
        (("approve", "nix"), 1, "there is no proposal 'nix'"),
        (("reject", "nix"), 1, "there is no proposal 'nix'"),
        (("rate", "nix", "good"), 1, "there is no proposal 'nix'"),
        (("approve", "dec-1", "nix"), 1, "has no remedy 'nix'; it has wait, "),
        (("rate", "dec-1", "good", "nix"), 1, "has no remedy 'nix'; it has wait, "),
        (("approve", "dec-1", "throttle_link"), 1, "throttle_link cannot be approved"),
        (("rate", "dec-1", "superb"), 2, "is not one of 'good', 'wrong', 'not-applicable'"),
        (("approve", b"\xff<b>"), 1, "there is no proposal"),
        (("approve", "dec-1", b"\xff"), 1, "has no remedy"),
        (("proposals", b"\xff"), 2, "there is no decision"),
        (("approve",), 2, "Missing argument 'PROPOSAL'"),
    ],
)
def test_answers_that_cannot_be_taken(desk, command, status, said):
    arguments = [word if isinstance(word, str) else word.decode("utf-8", "surrogateescape") for word in command]
    done = gridmedic(*arguments, cwd=desk)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_nobody_answers_under_a_name_that_is_none(desk):
    for command in (("approve", "dec-1"), ("reject", "dec-1"), ("rate", "dec-1", "good"), ("pause",), ("resume",)):
        assert "'autonomy' stands for" in refused(*command, "--as", "autonomy", cwd=desk)
    for name in ("", "two\nlines"):
        assert "Invalid value for '--as'" in refused("approve", "dec-1", "--as", name, cwd=desk)
    with Ledger.open(f"sqlite:///{desk}/var/ledger.db").begin(write=False) as tx:
        assert tx.unsettled_answers() == []


def test_answers_that_can(desk):
    assert gridmedic("rate", "dec-1", "good", "wait", "--as", "Ada", cwd=desk).stdout.startswith(
        "Noted: Ada finds wait"
    )
    assert "is paused" in gridmedic("pause", cwd=desk).stdout
    assert "paused by operator" in gridmedic("approve", "dec-1", cwd=desk).stderr
    assert "goes on" in gridmedic("resume", cwd=desk).stdout
    assert "approves exclude_storage" in gridmedic("approve", "dec-1", cwd=desk).stdout
    assert "has approved already" in gridmedic("reject", "dec-1", cwd=desk).stderr


def test_a_reader_that_has_seen_enough(desk):
    with subprocess.Popen(
        [GRIDMEDIC, "proposals"], cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


# The ledger


def broken_ledger(kind, folder):
    (folder / "text").write_text("no database, but some text that is long enough to be looked at\n")
    match kind:
        case "no-directory":
            return "sqlite:////proc/none/ledger.db"
        case "below-a-file":
            return "sqlite:///text/ledger.db"
        case "a-directory":
            return "sqlite:///."
        case "another-file":
            return "sqlite:///text"
        case "no-server":
            return f"postgresql+psycopg://me@127.0.0.1:{free_port()}/x"
        case _:
            Ledger.open(f"sqlite:///{folder}/newer.db").close()
            with sqlite3.connect(folder / "newer.db") as database:
                database.execute("UPDATE ledger_version SET version_num = '9999'")
            database.close()
            return "sqlite:///newer.db"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no-directory", "name a path that can be written"),
        ("below-a-file", "name a path that can be written"),
        ("a-directory", "check that the database is there, can be written"),
        ("another-file", "the file is something else: name another path"),
        ("no-server", "Connection refused"),
        ("newer", "a newer gridmedic has written it"),
    ],
)
def test_a_ledger_that_cannot_be_used(tmp_path, kind, said):
    configured(tmp_path, ledger=broken_ledger(kind, tmp_path))
    for command in (("proposals",), ("pause",)):
        assert said in refused(*command, cwd=tmp_path)
    if kind == "newer":
        assert said in refused("run", cwd=tmp_path)


# The daemon


def simulated(folder, port):
    here = {"kind": "simulated", "url": f"http://127.0.0.1:{port}"}
    return configured(
        folder,
        grid={"url": here["url"]},
        events=[here],
        measurements=[here],
        desk={"console": {"port": free_port()}},
        poll={"every_s": 0.5},
    )


def searching(folder, port):
    return configured(
        folder,
        events=[{"kind": "elasticsearch", "url": f"http://127.0.0.1:{port}", "index": "rucio-*"}],
        measurements=[],
        desk={"console": {"port": free_port()}},
        poll={"every_s": 0.5},
    )


def test_once_without_its_source_is_an_error(tmp_path):
    port = free_port()
    said = refused("run", "--once", cwd=simulated(tmp_path, port))
    assert f"the simulated grid at http://127.0.0.1:{port} does not answer" in said
    assert "start it with `gridmedic grid`" in said
    said = refused("run", "--once", cwd=searching(tmp_path, port))
    error = said.splitlines()[-1]
    assert error.startswith(f"Error: http://127.0.0.1:{port} (index 'rucio-*'): does not answer")
    assert error.endswith("check that it runs and that the URL is right")
    configured(tmp_path, events=[{"kind": "files", "paths": ["none.csv"]}], measurements=[])
    assert "none.csv: cannot be read" in refused("run", "--once", cwd=tmp_path)


def test_unknown_remedies_stop_the_daemon_before_it_starts(tmp_path):
    configured(tmp_path, remedies={"outside": ["magic"]})
    assert "registers 'magic'" in refused("run", cwd=tmp_path)
    configured(tmp_path, remedies={"disabled": ["prayer"]})
    assert "there is no remedy 'prayer'; known: " in refused("run", cwd=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_goes_on_without_a_grid_and_stops_when_asked(tmp_path, number):
    with daemon(simulated(tmp_path, free_port()), said="does not answer") as (process, log):
        tries = log.read_text().count("does not answer")
        time.sleep(1.5)
        assert log.read_text().count("does not answer") > tries
        assert ended(process, number) == 0
        assert "daemon-stopped" in log.read_text()
        assert "Traceback" not in log.read_text()


def test_the_daemon_goes_on_without_elasticsearch(tmp_path):
    with daemon(searching(tmp_path, free_port()), said="source-unreachable") as (process, log):
        assert ended(process, signal.SIGTERM) == 0
        assert "Traceback" not in log.read_text()


def test_an_elasticsearch_that_never_answers_does_not_hold_up_the_end(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with daemon(searching(tmp_path, port), said="daemon-started") as (process, log):
            time.sleep(0.5)  # it waits for an answer by now
            assert ended(process, signal.SIGTERM, within_s=15) == 0
            assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("after_s", [0.25, 0.8])
def test_a_daemon_that_is_stopped_while_it_starts(tmp_path, after_s):
    with daemon(simulated(tmp_path, free_port()), said="") as (process, log):
        time.sleep(after_s)
        assert ended(process, signal.SIGTERM) == 0
        assert "Traceback" not in log.read_text()


def test_the_port_of_the_console_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        configured(tmp_path, desk={"console": {"port": port}})
        said = refused("run", cwd=tmp_path)
    assert f"127.0.0.1:{port}" in said
    assert "choose another port" in said


def test_the_grid_stays_on_the_loopback_address(tmp_path):
    for host in ("0.0.0.0", "192.0.2.1"):
        configured(tmp_path, grid={"url": f"http://{host}:8850"})
        assert f"{host} is not a loopback address" in refused("grid", cwd=tmp_path)


def test_the_port_of_the_grid_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        configured(tmp_path, grid={"url": f"http://127.0.0.1:{port}"})
        assert f"port {port} on 127.0.0.1 cannot be used" in refused("grid", cwd=tmp_path)


@pytest.mark.parametrize("speed", ["0", "nan", "fast", "1e9"])
def test_a_grid_at_no_speed(tmp_path, speed):
    assert "speed" in refused("grid", "--speed", speed, cwd=configured(tmp_path))


# Training


def test_hours_that_are_no_number(tmp_path):
    for hours in ("nan", "inf", "-1", "many"):
        assert "--simulated-hours" in refused("train", "--simulated-hours", hours, "--out", "m", cwd=tmp_path)
