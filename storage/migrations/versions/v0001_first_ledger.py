"""The first ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _row() -> sa.Column[int]:
    """Number rows in the order of writing; SQLite needs its own integer type for that."""
    return sa.Column("row", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False)


def upgrade() -> None:
    _streams()
    _incidents()
    _desks()


def _streams() -> None:
    op.create_table(
        "cursors",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.Column("watermark", sa.Double()),
        sa.PrimaryKeyConstraint("source", name="pk_cursors"),
    )
    op.create_table(
        "seen_keys",
        _row(),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("newest", sa.Double(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("row", name="pk_seen_keys"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_seen_keys_source_newest", "seen_keys", ["source", "newest"])
    op.create_table(
        "refusals",
        _row(),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("row", name="pk_refusals"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "counts",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "word", name="pk_counts"),
    )
    op.create_table(
        "segments",
        _row(),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("parquet", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("row", name="pk_segments"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_segments_stream_row", "segments", ["stream", "row"])


def _incidents() -> None:
    op.create_table(
        "incidents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("culprit", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_incidents"),
    )
    op.create_index("ix_incidents_opened_at", "incidents", ["opened_at"])
    op.create_index("ix_incidents_status_closed_at", "incidents", ["status", "closed_at"])
    op.create_index("ix_incidents_status_opened_at", "incidents", ["status", "opened_at"])
    op.create_table(
        "decisions",
        _row(),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("incident_id", sa.Text(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name="fk_decisions_incident_id"),
        sa.PrimaryKeyConstraint("row", name="pk_decisions"),
        sa.UniqueConstraint("id", name="uq_decisions_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_decisions_incident_id_row", "decisions", ["incident_id", "row"])
    op.create_index("ix_decisions_status_row", "decisions", ["status", "row"])
    op.create_table(
        "actions",
        _row(),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("incident_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["decisions.id"], name="fk_actions_id"),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name="fk_actions_incident_id"),
        sa.PrimaryKeyConstraint("row", name="pk_actions"),
        sa.UniqueConstraint("id", name="uq_actions_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_actions_due_at", "actions", ["due_at"])
    op.create_index("ix_actions_incident_id", "actions", ["incident_id"])
    op.create_index("ix_actions_status", "actions", ["status"])


def _desks() -> None:
    op.create_table(
        "answers",
        _row(),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("via", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("option", sa.Integer()),
        sa.Column("rating", sa.Text()),
        sa.Column("settled_at", sa.DateTime(timezone=True)),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], name="fk_answers_decision_id"),
        sa.PrimaryKeyConstraint("row", name="pk_answers"),
        sa.UniqueConstraint("key", name="uq_answers_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_answers_settled_at_row", "answers", ["settled_at", "row"])
    op.create_table(
        "feedback",
        _row(),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("option", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("propensity", sa.Double()),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], name="fk_feedback_decision_id"),
        sa.PrimaryKeyConstraint("row", name="pk_feedback"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_feedback_decision_id", "feedback", ["decision_id"])
    op.create_table(
        "settings",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_settings"),
    )
    op.create_table(
        "posts",
        sa.Column("desk", sa.Text(), nullable=False),
        sa.Column("incident_id", sa.Text(), nullable=False),
        sa.Column("post", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name="fk_posts_incident_id"),
        sa.PrimaryKeyConstraint("desk", "incident_id", name="pk_posts"),
    )
