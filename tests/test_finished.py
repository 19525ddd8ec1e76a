"""Files to learn from: what they must hold, and what is said if they do not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from agent.sources.files import files_of
from agent.sources.finished import Recording, check_columns
from models.domain import SourceError


def transfers(count: int = 20) -> pd.DataFrame:
    ends = pd.date_range("2026-03-01 10:00:00", periods=count, freq="min")
    return pd.DataFrame(
        {
            "request-id": [f"{number:032x}" for number in range(count)],
            "src-rse": "A_DATADISK",
            "dst-rse": "B_DATADISK",
            "bytes": 1e9,
            "submitted_at": ends.strftime("%Y-%m-%d %H:%M:%S"),
            "started_at": ends.strftime("%Y-%m-%d %H:%M:%S"),
            "transferred_at": (ends + pd.Timedelta(30, "s")).strftime("%Y-%m-%d %H:%M:%S"),
        }
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz"])
@pytest.mark.parametrize(
    ("column", "said"), [("bytes", "bytes or file-size"), ("started_at", "started_at"), ("dst-rse", "dst-rse")]
)
def test_a_table_without_a_column_is_named_with_it(tmp_path: Path, kind: str, column: str, said: str) -> None:
    good, bad = tmp_path / f"good.{kind}", tmp_path / f"bad.{kind}"
    for path, rows in ((good, transfers()), (bad, transfers().drop(columns=column))):
        rows.to_parquet(path, index=False) if kind == "parquet" else rows.to_csv(path, index=False)
    check_columns([good])
    with pytest.raises(SourceError, match=rf"bad\.{kind}: has no column {said}"):
        check_columns([good, bad])


def test_documents_have_no_columns_to_check(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event_type": "transfer-done"}\n')
    check_columns([path])


def test_nan_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    rows = transfers()
    rows.loc[:4, "bytes"] = float("nan")
    rows.to_parquet(path, index=False)
    recording = Recording({"data": [path]}, measurements=(), site_map=None)
    assert sum(map(len, recording.pages())) == 15
    account = recording.accounts["data"]
    assert (account.read, account.scored) == (20, 15)
    assert account.refusals() == "5 for no-size (nan bytes)"


def test_copies_of_a_document_count_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        transfers().to_parquet(tmp_path / f"{name}.parquet", index=False)
    recording = Recording({"data": files_of([tmp_path])}, measurements=(), site_map=None)
    assert sum(map(len, recording.pages())) == 20
    assert recording.accounts["data"].refused == {"repeated": 20}


def test_a_directory_stands_for_its_files_in_order(tmp_path: Path) -> None:
    for day in ("day=2026-03-02", "day=2026-03-01"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "part-0.parquet").touch()
    (tmp_path / "README").touch()
    found = files_of([tmp_path, Path("other.csv")])
    assert [str(path.relative_to(tmp_path)) for path in found[:2]] == [
        "day=2026-03-01/part-0.parquet",
        "day=2026-03-02/part-0.parquet",
    ]
    assert found[2] == Path("other.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: holds no"):
        files_of([tmp_path / "empty"])


def test_a_file_that_is_none_of_its_kind_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SourceError, match=r"events\.parquet: cannot be read"):
        check_columns([path])
