"""The few shapes of statement that the parts of a transaction share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table

if TYPE_CHECKING:
    from storage.database import Database


class Statements:
    """A connection in a transaction. The parts of `Transaction` derive from it."""

    def __init__(self, connection: Connection, database: Database) -> None:
        self._connection = connection
        self._insert = database.insert

    def _add(self, table: Table, values: Mapping[str, Any]) -> Any:  # noqa: ANN401  (the first key column's value)
        """Insert one row; return the first column of its key, or None if a row with the same key is there."""
        statement = self._insert(table).values(**values).on_conflict_do_nothing()
        return self._connection.scalar(statement.returning(*table.primary_key))

    def _put(self, table: Table, values: Mapping[str, Any]) -> None:
        """Insert one row, or replace the one with the same primary key."""
        statement = self._insert(table).values(**values)
        key = [column.name for column in table.primary_key]
        news = {name: statement.excluded[name] for name in values if name not in key}
        self._connection.execute(statement.on_conflict_do_update(index_elements=key, set_=news))
