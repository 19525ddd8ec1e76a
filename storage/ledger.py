"""The ledger: everything that must outlive the process, domain objects in and out, one transaction at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy import Connection, column, inspect, select, table

from storage.database import Database
from storage.desks import Answers, Desks, Proposals
from storage.incidents import Actions, Decisions, Incidents
from storage.migrations import upgrade
from storage.streams import Streams
from storage.tables import HEAD, VERSION_TABLE


class Transaction(Streams, Incidents, Decisions, Actions, Answers, Proposals, Desks):
    """What can be read and written between a begin and its end; `Ledger.begin` makes it.

    Its methods raise LedgerError for what cannot be kept or is not there.
    """


class Ledger:
    """A database of the current schema. It may be used by several threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at `sqlite:///PATH` or `postgresql://…`, made or migrated if need be.

        Raises LedgerError, with what to do, if it cannot be reached or was written by a newer version.
        """
        return cls.over(Database.at(url))

    @classmethod
    def over(cls, database: Database) -> Self:
        """The ledger that lies in this database, made or migrated if need be; raise LedgerError as `open` does."""
        try:
            with database.begin(write=False) as connection:
                found = _revision(connection)
            if found != HEAD:
                with database.begin(write=True) as connection:
                    found = _revision(connection)  # again: another process may have been first
                    if found != HEAD:
                        upgrade(connection, found)
        except BaseException:
            database.engine.dispose()
            raise
        return cls(database)

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Transaction]:
        """Yield a transaction: committed at the end, rolled back on an error.

        Writing waits for others that write, and makes them wait: keep it short. Reading sees one state throughout.
        """
        with self._database.begin(write=write) as connection:
            yield Transaction(connection, self._database)

    def close(self) -> None:
        self._database.engine.dispose()


def _revision(connection: Connection) -> str | None:
    """Return the schema's revision; None in a database that never held a ledger."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return revision
