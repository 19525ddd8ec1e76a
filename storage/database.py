"""One database behind the ledger: its URL, how its connections are set up, and what begins a transaction.

Writers take turns on both databases: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock that ends with the transaction.
So a pass and an answer from another process cannot deadlock, and rows are numbered in the order in which they are committed.
Readers see one snapshot and wait for nobody.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, exc, make_url
from sqlalchemy.engine import URL

from models.domain import LedgerError

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

    Insert = sqlite.Insert | postgresql.Insert

PATIENCE_S = 30.0  # how long a transaction waits for the one that is writing
_WRITERS = int.from_bytes(b"gridmedi", "big")  # the advisory lock that PostgreSQL's writers share
_FORMS = "write sqlite:///path/to/ledger.db or postgresql://user@host/database"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """An engine with what differs between the two databases."""

    engine: Engine
    insert: Callable[[Table], Insert]
    begin_reading: tuple[str, ...]
    begin_writing: tuple[str, ...]

    @classmethod
    def at(cls, text: str) -> Database:
        """Return the database that the URL names, not yet connected; raise LedgerError if it names none.

        The directory of a SQLite file is made if it is not there.
        """
        try:
            url = make_url(text)
        except (exc.ArgumentError, ValueError) as error:  # the text may hold a password, so it is not shown
            raise LedgerError(f"the ledger's address is not a database URL; {_FORMS}") from error
        if url.get_backend_name() == "sqlite":
            return cls._sqlite(url)
        if url.get_backend_name() in {"postgresql", "postgres"}:
            return cls._postgresql(url)
        raise LedgerError(f"the ledger cannot be kept in {url.drivername!r}; {_FORMS}")

    @classmethod
    def _sqlite(cls, url: URL) -> Database:
        from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415  (only the dialect in use is worth its import)

        if not url.database or url.database == ":memory:":
            raise LedgerError(f"a ledger in memory would be lost with the process; {_FORMS}")
        directory = Path(url.database).parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"the ledger's directory {str(directory)!r} cannot be made: {error}; name a path that can be written"
            ) from error
        engine = create_engine(url, connect_args={"timeout": PATIENCE_S})
        event.listen(engine, "connect", _set_up_sqlite)
        return cls(
            engine=engine,
            insert=insert,
            begin_reading=("PRAGMA query_only = 1", "BEGIN"),
            begin_writing=("PRAGMA query_only = 0", "BEGIN IMMEDIATE"),
        )

    @classmethod
    def _postgresql(cls, url: URL) -> Database:
        from sqlalchemy.dialects.postgresql import insert  # noqa: PLC0415  (as above)

        engine = create_engine(
            url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args={"connect_timeout": 10}
        )
        return cls(
            engine=engine,
            insert=insert,
            begin_reading=("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",),
            begin_writing=(
                f"SET LOCAL lock_timeout = {int(PATIENCE_S * 1000)}",
                f"SELECT pg_advisory_xact_lock({_WRITERS})",
            ),
        )

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Connection]:
        """Yield a connection in a transaction: committed at the end, rolled back on an error.

        Raises LedgerError for whatever the database refuses; nothing of the transaction is kept then.
        """
        try:
            with self.engine.connect() as connection, connection.begin():
                for statement in self.begin_writing if write else self.begin_reading:
                    connection.exec_driver_sql(statement)
                yield connection
        except exc.SQLAlchemyError as error:
            raise LedgerError(f"{self}: {_detail(error)}; {_cure(error)}") from error

    def __str__(self) -> str:
        return f"ledger {self.engine.url.render_as_string(hide_password=True)}"


def _set_up_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401  (the event's signature: a driver's connection)
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    _enter_wal(connection)
    # FULL: a decision must survive a loss of power before its effect leaves the machine. It costs one fsync a transaction.
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "journal_size_limit = 67108864"):
        connection.execute(f"PRAGMA {pragma}")


def _enter_wal(connection: Any) -> None:  # noqa: ANN401  (as above)
    """Put the file into write-ahead mode, once for all; SQLite's own patience does not cover two that do it at the same time."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _detail(error: exc.SQLAlchemyError) -> str:
    """Say what the driver said, on one line, without the statement and its values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _cure(error: exc.SQLAlchemyError) -> str:
    detail = _detail(error)
    if "locked" in detail or "lock timeout" in detail:
        return f"another process has been writing for more than {PATIENCE_S:.0f} s: find it, or try again"
    if "not a database" in detail:
        return "the file is something else: name another path"
    if "readonly" in detail or "read-only" in detail:
        return "begin the transaction with write=True, and see that this user may write the file and its directory"
    if "foreign key" in detail.lower():
        return "save an incident before its decisions, and a decision before its actions, answers and feedback"
    if isinstance(error, exc.OperationalError):
        return "check that the database is there, can be written, and has space"
    return "correct the value where it is made"
