"""The ledger's tables, the same on SQLite and PostgreSQL.

Incidents, decisions and actions are kept whole as a JSON document beside the columns that queries need; the JSON is text, so
that the order of keys, NaN and hostile characters come back as they went in.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.engine import Dialect

from models.domain import aware

HEAD = "0001"  # the newest revision in migrations/versions: the schema that this code reads and writes
VERSION_TABLE = "ledger_version"


class PlainText(TypeDecorator[str]):
    """Text that every database takes: NUL, which PostgreSQL refuses, becomes U+FFFD, and a lone surrogate `?`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  (fixed by the base)
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


class Moment(TypeDecorator[datetime]):
    """A time stored in UTC and returned aware; a naive one raises ValueError."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  (as above)
        return None if value is None else aware(value).astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  (as above)
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _row() -> Column[int]:
    """A place in the order of writing, never used twice: SQLite needs its own integer type and AUTOINCREMENT for that."""
    return Column("row", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


cursors = Table(
    "cursors",
    metadata,
    Column("source", PlainText, primary_key=True),
    Column("cursor", PlainText, nullable=False),  # JSON
    Column("watermark", Double),  # event time in seconds up to which the source is complete
)

seen_keys = Table(
    "seen_keys",
    metadata,
    _row(),
    Column("source", PlainText, nullable=False),
    Column("newest", Double, nullable=False),  # event time in seconds of the newest of the keys
    Column("packed", LargeBinary, nullable=False),  # little-endian uint64
    Index(None, "source", "newest"),
    sqlite_autoincrement=True,
)

refusals = Table(
    "refusals",
    metadata,
    _row(),
    Column("source", PlainText, nullable=False),
    Column("at", Moment),
    Column("reason", PlainText, nullable=False),
    Column("detail", PlainText, nullable=False),
    Column("document", PlainText, nullable=False),
    sqlite_autoincrement=True,
)

counts = Table(
    "counts",
    metadata,
    Column("source", PlainText, primary_key=True),
    Column("word", PlainText, primary_key=True),
    Column("n", BigInteger, nullable=False),
)

segments = Table(
    "segments",
    metadata,
    _row(),
    Column("stream", PlainText, nullable=False),
    Column("level", Integer, nullable=False),  # how often its rows have been merged
    Column("rows", Integer, nullable=False),
    Column("parquet", LargeBinary, nullable=False),
    Index(None, "stream", "row"),
    sqlite_autoincrement=True,
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", PlainText, primary_key=True),
    Column("kind", PlainText, nullable=False),
    Column("culprit", PlainText, nullable=False),
    Column("status", PlainText, nullable=False),
    Column("opened_at", Moment, nullable=False),
    Column("closed_at", Moment),
    Column("document", PlainText, nullable=False),
    Index(None, "opened_at"),
    Index(None, "status", "opened_at"),
    Index(None, "status", "closed_at"),
)

decisions = Table(
    "decisions",
    metadata,
    _row(),
    Column("id", PlainText, nullable=False, unique=True),
    Column("incident_id", PlainText, ForeignKey("incidents.id"), nullable=False),
    Column("made_at", Moment, nullable=False),
    Column("status", PlainText, nullable=False),
    Column("document", PlainText, nullable=False),
    Index(None, "incident_id", "row"),
    Index(None, "status", "row"),
    sqlite_autoincrement=True,
)

actions = Table(
    "actions",
    metadata,
    _row(),
    Column("id", PlainText, ForeignKey("decisions.id"), nullable=False, unique=True),
    Column("incident_id", PlainText, ForeignKey("incidents.id"), nullable=False),
    Column("status", PlainText, nullable=False),
    Column("due_at", Moment, nullable=False),
    Column("document", PlainText, nullable=False),
    Index(None, "status"),
    Index(None, "incident_id"),
    Index(None, "due_at"),
    sqlite_autoincrement=True,
)

answers = Table(
    "answers",
    metadata,
    _row(),
    Column("key", PlainText, nullable=False, unique=True),
    Column("by", PlainText, nullable=False),
    Column("via", PlainText, nullable=False),
    Column("kind", PlainText, nullable=False),
    Column("decision_id", PlainText, ForeignKey("decisions.id"), nullable=False),
    Column("option", Integer),
    Column("rating", PlainText),
    Column("settled_at", Moment),
    Column("note", PlainText, nullable=False, default=""),
    Index(None, "settled_at", "row"),
    sqlite_autoincrement=True,
)

feedback = Table(
    "feedback",
    metadata,
    _row(),
    Column("at", Moment, nullable=False),
    Column("decision_id", PlainText, ForeignKey("decisions.id"), nullable=False),
    Column("option", Integer, nullable=False),
    Column("source", PlainText, nullable=False),
    Column("value", PlainText, nullable=False),
    Column("by", PlainText, nullable=False),
    Column("propensity", Double),
    Index(None, "decision_id"),
    sqlite_autoincrement=True,
)

settings = Table(
    "settings",
    metadata,
    Column("key", PlainText, primary_key=True),
    Column("value", PlainText, nullable=False),  # JSON
)

posts = Table(
    "posts",
    metadata,
    Column("desk", PlainText, primary_key=True),
    Column("incident_id", PlainText, ForeignKey("incidents.id"), primary_key=True),
    Column("post", PlainText, nullable=False),  # JSON
)
