"""The ledger's schema, revision by revision, applied from code.

A new revision is a file in `versions/`; `HEAD` in `storage/tables.py` names the newest, so that an up-to-date ledger opens
without Alembic.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from models.domain import LedgerError
from storage.tables import HEAD


def upgrade(connection: Connection, found: str | None) -> None:
    """Bring the schema from revision `found` (None: an empty database) to HEAD, in the connection's transaction.

    Raises LedgerError if this version does not know `found`.
    """
    from alembic import command  # noqa: PLC0415  (0.2 s that an up-to-date ledger does not need)
    from alembic.config import Config  # noqa: PLC0415  (as above)
    from alembic.script import ScriptDirectory  # noqa: PLC0415  (as above)

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerError(
            f"the ledger is of revision {found!r}, which this version does not know (its newest is {HEAD!r}): a newer "
            "gridmedic has written it; install that version again, or name another ledger"
        )
    command.upgrade(config, HEAD)
