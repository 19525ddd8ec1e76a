"""The configuration: every setting documented, every problem named by its key path, no secret in the file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from agent.config import Config, load, parse
from models.domain import ConfigError

ROOT = Path(__file__).parent.parent


def problems(content):
    with pytest.raises(ConfigError) as caught:
        parse(content, base=ROOT, where="here.yaml")
    return str(caught.value)


def test_the_shipped_file_holds_every_setting_with_its_default():
    assert load(ROOT / "config.yaml") == parse({}, base=ROOT, where="nothing")
    written = yaml.safe_load((ROOT / "config.yaml").read_text())

    def paths(value, path=()):
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from paths(inner, (*path, key))
        else:
            yield ".".join(path)

    known = Config().model_dump(mode="json")
    assert set(paths(written)) == set(paths(known))


def test_every_setting_has_a_comment():
    lines = [line.strip() for line in (ROOT / "config.yaml").read_text().splitlines()]
    # A source's own settings are told at the head of the list of sources.
    settings = [
        (a, b)
        for a, b in itertools.pairwise(lines)
        if ": " in b and not b.startswith(("#", "- ")) and not a.startswith("- ")
    ]
    assert settings
    assert [setting for comment, setting in settings if not comment.startswith("#")] == []


def test_all_problems_at_once_by_key_path():
    text = problems(
        {
            "poll": {"every_s": -1, "twice": True},
            "events": [{"kind": "carrier-pigeon"}, {"kind": "files", "paths": 3}],
            "autonomy": {"safety_cap": "reckless"},
            "desk": {"console": {"port": "many"}},
        }
    )
    assert "here.yaml has 6 problems" in text
    for key in ("poll.every_s", "poll.twice", "events.0", "events.1.paths", "autonomy.safety_cap", "desk.console.port"):
        assert f"  {key}: " in text


@pytest.mark.parametrize(
    "content",
    [
        {"desk": {"slack": {"token": "xoxb-12-secret"}}},
        {"desk": {"slack": {"channel": "xoxb-12-secret"}}},
        {"ledger": "postgresql+psycopg://me:xoxb-12-secret@host/x"},
        {"events": [{"kind": "elasticsearch", "url": "https://me:xoxb-12-secret@es:9200", "index": "x"}]},
        {"events": [{"kind": "elasticsearch", "url": "https://es:9200", "index": "x", "api_key": "xoxb-12-secret"}]},
    ],
)
def test_secrets_are_refused_and_not_repeated(content):
    text = problems(content)
    assert "environment" in text
    assert "xoxb-12-secret" not in text


def test_the_console_stays_on_the_loopback_address():
    assert "desk.console.host: '0.0.0.0' is not a loopback address" in problems(
        {"desk": {"console": {"host": "0.0.0.0"}}}
    )


def test_destructive_autonomy_cannot_be_configured():
    assert "destructive remedies always ask" in problems({"autonomy": {"safety_cap": "destructive"}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poll: [", "is not YAML"),
        ("- 1\n- 2\n", "holds a list where settings by name are expected"),
        ("\x00\x01", "is not YAML"),
    ],
)
def test_a_broken_file_is_one_clear_message(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="--config"):
        load(tmp_path / "none.yaml")


def test_the_ledgers_password_comes_from_the_environment(monkeypatch):
    config = parse({"ledger": "postgresql+psycopg://me@host/db"}, base=ROOT, where="x")
    assert config.ledger_url == "postgresql+psycopg://me@host/db"
    monkeypatch.setenv("GRIDMEDIC_LEDGER_PASSWORD", "p@ss/word")
    assert config.ledger_url == "postgresql+psycopg://me:p%40ss%2Fword@host/db"


def test_relative_paths_start_at_the_file(tmp_path):
    config = parse({}, base=tmp_path, where="x")
    assert config.ledger_url == f"sqlite:///{tmp_path}/var/ledger.db"
    assert config.state_dir == tmp_path / "var"


def test_what_yaml_cannot_read_is_named_with_all_else(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "poll: {every_s: 2024-13-45}\nlog: {format: json}\nlog: {format: text}\n"
        "detection: {alarm_budget: -1}\ndesk: {token: 2024-14-01}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    told = str(caught.value)
    assert "poll.every_s: it is taken for a date and cannot be read as one" in told
    assert told.count("poll.every_s") == 1
    assert "log: it is given twice" in told
    assert "detection.alarm_budget" in told
    assert "2024-14-01" not in told
