from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

import storage.ledger
from models.domain import LedgerError
from storage import migrations, tables
from storage.database import Database
from storage.ledger import Ledger

OPEN = "import sys; from storage.ledger import Ledger; Ledger.open(sys.argv[1]).close()"


def table_names(url):
    database = Database.at(url)
    with database.begin(write=False) as connection:
        names = set(inspect(connection).get_table_names())
    database.engine.dispose()
    return names - {"sqlite_sequence"}


def set_revision(url, revision):
    database = Database.at(url)
    with database.begin(write=True) as connection:
        connection.exec_driver_sql(f"UPDATE {tables.VERSION_TABLE} SET version_num = '{revision}'")
    database.engine.dispose()


def test_head_is_the_newest_revision():
    script = ScriptDirectory(migrations.__path__[0])
    assert script.get_current_head() == tables.HEAD


def test_the_migrated_schema_is_the_one_that_the_code_uses(ledger_url):
    Ledger.open(ledger_url).close()
    database = Database.at(ledger_url)
    with database.begin(write=False) as connection:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        difference = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    database.engine.dispose()
    assert difference == []


def test_opening_again_changes_nothing_and_needs_no_alembic(ledger_url):
    Ledger.open(ledger_url).close()
    code = f"{OPEN}; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, ledger_url], check=False).returncode == 0


def test_many_processes_may_open_a_new_ledger_at_once(ledger_url):
    children = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", OPEN, ledger_url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [child.communicate()[1] for child in children] == [""] * 4
    assert [child.returncode for child in children] == [0] * 4
    assert table_names(ledger_url) == {*tables.metadata.tables, tables.VERSION_TABLE}


def test_a_migration_happens_whole_or_not_at_all(ledger_url, monkeypatch):
    def interrupted(connection, found):
        migrations.upgrade(connection, found)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage.ledger, "upgrade", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Ledger.open(ledger_url)
    assert table_names(ledger_url) == set()
    Ledger.open(ledger_url).close()
    assert table_names(ledger_url) == {*tables.metadata.tables, tables.VERSION_TABLE}


def test_a_ledger_of_a_newer_version_is_left_alone(ledger_url):
    Ledger.open(ledger_url).close()
    set_revision(ledger_url, "9999")
    with pytest.raises(LedgerError, match=r"revision '9999'.*newest is '0001'.*install that version"):
        Ledger.open(ledger_url)
    assert table_names(ledger_url) == {*tables.metadata.tables, tables.VERSION_TABLE}
    set_revision(ledger_url, tables.HEAD)
    Ledger.open(ledger_url).close()


def test_the_directory_of_a_new_ledger_is_made(tmp_path):
    Ledger.open(f"sqlite:///{tmp_path}/var/deep/ledger.db").close()
    assert (tmp_path / "var/deep/ledger.db").exists()


def test_a_name_with_a_percent_sign(tmp_path):
    Ledger.open(f"sqlite:///{tmp_path}/50% off/ledger.db").close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ledger.db", r"not a database URL; write sqlite:///"),
        ("", r"not a database URL; write sqlite:///"),
        ("sqlite://", r"in memory would be lost"),
        ("sqlite:///:memory:", r"in memory would be lost"),
        ("mysql://user:secret@host/x", r"cannot be kept in 'mysql'; write sqlite:///"),
        ("sqlite:////dev/null/ledger.db", r"'/dev/null' cannot be made.*name a path"),
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x: .*refused.*check that",
        ),
    ],
)
def test_what_is_no_ledger_is_refused_with_a_cure(url, said):
    with pytest.raises(LedgerError, match=said) as error:
        Ledger.open(url)
    assert "secret" not in str(error.value)


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_text("request-id,bytes\n" * 500)
    with pytest.raises(LedgerError, match=r"file is not a database; the file is something else"):
        Ledger.open(f"sqlite:///{path}")
    assert path.read_text() == "request-id,bytes\n" * 500


def test_a_directory_is_no_ledger(tmp_path):
    with pytest.raises(LedgerError, match=r"unable to open.*check that the database is there"):
        Ledger.open(f"sqlite:///{tmp_path}")
