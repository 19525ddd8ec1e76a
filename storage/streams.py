"""What the ledger keeps of each stream: how far it was read, what was seen, refused and counted, and the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select

from storage.documents import dump_json, load_json
from storage.statements import Statements
from storage.tables import counts, cursors, refusals, seen_keys, segments

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from models.events import Refusal

REFUSALS_KEPT = 1000
MERGE = 16  # so many segments of one level become one of the next
SEGMENT_ROWS = 65_536  # merging stops here: one write transaction never rewrites more


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refusal as the ledger keeps it. `document` is the refused text: hostile, escape it wherever it is shown."""

    source: str
    at: datetime | None
    reason: str
    detail: str
    document: str


class Streams(Statements):
    """Cursors, keys, refusals, counts and rows."""

    def cursor(self, source: str) -> dict[str, Any] | None:
        text = self._connection.scalar(select(cursors.c.cursor).where(cursors.c.source == source))
        return None if text is None else load_json(text)

    def watermark(self, source: str) -> float | None:
        """Return the event time in seconds up to which the source is complete; None if unknown."""
        return self._connection.scalar(select(cursors.c.watermark).where(cursors.c.source == source))

    def move_cursor(self, source: str, cursor: Mapping[str, object], watermark: float | None) -> None:
        self._put(cursors, {"source": source, "cursor": dump_json(cursor), "watermark": watermark})

    def remember_keys(self, source: str, keys: NDArray[np.uint64], newest: float) -> None:
        """Keep the keys of a batch; `newest` is the event time in seconds until which they may be needed again."""
        if len(keys):
            blob = keys.astype("<u8", copy=False).tobytes()
            self._connection.execute(insert(seen_keys).values(source=source, newest=newest, packed=blob))

    def known_keys(self, source: str) -> NDArray[np.uint64]:
        """Return every key remembered and not forgotten, uint64 [n], in the order of remembering."""
        import numpy as np  # noqa: PLC0415  (the desks' commands read a ledger without it)

        statement = select(seen_keys.c.packed).where(seen_keys.c.source == source).order_by(seen_keys.c.row)
        return np.frombuffer(b"".join(self._connection.scalars(statement)), dtype="<u8").astype(np.uint64)

    def forget_keys(self, source: str, before: float) -> None:
        """Drop the batches of keys whose `newest` is before this event time in seconds."""
        self._connection.execute(delete(seen_keys).where(seen_keys.c.source == source, seen_keys.c.newest < before))

    def quarantine(self, source: str, refused: Sequence[Refusal], at: datetime | None) -> None:
        """Keep the newest 1,000 refusals of all sources, and count each under the word `refused:REASON`."""
        if not refused:
            return
        words: dict[str, int] = {}
        for refusal in refused:
            words[f"refused:{refusal.reason}"] = words.get(f"refused:{refusal.reason}", 0) + 1
        self.count(source, words)
        rows = [
            {"source": source, "at": at, "reason": r.reason, "detail": r.detail, "document": r.document}
            for r in refused[-REFUSALS_KEPT:]
        ]
        self._connection.execute(insert(refusals), rows)
        row = refusals.c.row
        last_dropped = select(row).order_by(row.desc()).offset(REFUSALS_KEPT).limit(1).scalar_subquery()
        self._connection.execute(delete(refusals).where(row <= last_dropped))

    def quarantined(self, limit: int) -> list[Refused]:
        """Return the refusals that are kept, the newest first."""
        rows = self._connection.execute(select(refusals).order_by(refusals.c.row.desc()).limit(limit))
        return [
            Refused(source=row.source, at=row.at, reason=row.reason, detail=row.detail, document=row.document)
            for row in rows
        ]

    def count(self, source: str, words: Mapping[str, int]) -> None:
        """Add to the source's counts."""
        for word, n in words.items():
            statement = self._insert(counts).values(source=source, word=word, n=n)
            self._connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["source", "word"], set_={"n": counts.c.n + statement.excluded.n}
                )
            )

    def counts(self) -> dict[tuple[str, str], int]:
        """Return every count by (source, word)."""
        rows = self._connection.execute(select(counts.c.source, counts.c.word, counts.c.n))
        return {(source, word): n for source, word, n in rows}

    def append_rows(self, stream: str, rows: pd.DataFrame) -> None:
        """Add rows at the end of a stream. Their columns are the caller's; text, numbers and booleans are kept."""
        if len(rows):
            self._add_segment(stream, 0, rows)
            self._merge_segments(stream)

    def rows(self, stream: str) -> pd.DataFrame:
        """Return a stream's rows in the order in which they were added; a frame without columns if there are none."""
        packed = select(segments.c.parquet).where(segments.c.stream == stream).order_by(segments.c.row)
        return _unpack(self._connection.scalars(packed).all())

    def rows_since(self, stream: str, column: str, least: float) -> pd.DataFrame:
        """Return the rows of a stream whose `column` is at least that, in the order in which they were added."""
        found = self.rows(stream)
        return found[found[column] >= least].reset_index(drop=True) if len(found) else found

    def row_count(self, stream: str) -> int:
        return int(self._connection.scalar(select(func.sum(segments.c.rows)).where(segments.c.stream == stream)) or 0)

    def replace_rows(self, stream: str, rows: pd.DataFrame) -> None:
        """Put these rows in the place of all that the stream held."""
        self._connection.execute(delete(segments).where(segments.c.stream == stream))
        for start in range(0, len(rows), SEGMENT_ROWS):
            self._add_segment(stream, 1, rows.iloc[start : start + SEGMENT_ROWS])

    def _add_segment(self, stream: str, level: int, rows: pd.DataFrame) -> None:
        values = {"stream": stream, "level": level, "rows": len(rows), "parquet": _pack(rows)}
        self._connection.execute(insert(segments).values(values))

    def _merge_segments(self, stream: str) -> None:
        """Merge the last segments while they are `MERGE` of one level: thousands of small ones would be slow to read."""
        ours = segments.c.stream == stream
        columns = (segments.c.row, segments.c.level, segments.c.rows)
        while True:
            last = self._connection.execute(
                select(*columns).where(ours).order_by(segments.c.row.desc()).limit(MERGE)
            ).all()
            level = last[0].level
            if len(last) < MERGE or any(s.level != level for s in last) or sum(s.rows for s in last) > SEGMENT_ROWS:
                return
            tail = ours & (segments.c.row >= last[-1].row)
            packed = self._connection.scalars(select(segments.c.parquet).where(tail).order_by(segments.c.row))
            rows = _unpack(packed.all())
            self._connection.execute(delete(segments).where(tail))
            self._add_segment(stream, level + 1, rows)


def _pack(rows: pd.DataFrame) -> bytes:
    import pyarrow as pa  # noqa: PLC0415  (half a second that a ledger without rows does not need)
    import pyarrow.parquet as pq  # noqa: PLC0415  (as above)

    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return bytes(sink.getvalue())


def _unpack(packed: Sequence[bytes]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415  (as above)
    import pyarrow as pa  # noqa: PLC0415  (as above)
    import pyarrow.parquet as pq  # noqa: PLC0415  (as above)

    if not packed:
        return pd.DataFrame()
    tables = [pq.ParquetFile(pa.BufferReader(segment)).read() for segment in packed]
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return frame
