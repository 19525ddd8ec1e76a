"""Columns of anything made into columns of text, numbers and times. What does not fit becomes "" or NaN, never an error.

A `Column` is a list of whatever JSON can hold, or a pandas Series of any dtype. Several names may hold the same quantity: in
each row the first of them that has a usable value counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

Column: TypeAlias = "list[object] | pd.Series[object]"
FloatArray = npt.NDArray[np.float64]
Rows: TypeAlias = "pd.DataFrame | Mapping[str, npt.NDArray[Any]]"  # columns by name, in either form

_EARLIEST = 946_684_800.0  # 2000-01-01
_LATEST = 4_102_444_800.0  # 2100-01-01
_MILLISECONDS = 1e11  # seconds of the year 5138, milliseconds of 1973: what is above counts milliseconds
_SHORTEST_TIME = len("2017-06-08 09:45")


def texts(columns: Mapping[str, Column], names: Sequence[str], rows: int, *, longest: int) -> pd.Series[str]:
    """Text as dtype `str`, stripped and cut to `longest` characters; "" where absent or not text."""
    found: pd.Series[str] | None = None
    for name in names:
        if name in columns:
            column = _as_text(columns[name]).str.strip().str.slice(0, longest)
            found = column if found is None else found.where(found != "", column)
    return pd.Series([""] * rows, dtype="str") if found is None else found


def numbers(columns: Mapping[str, Column], names: Sequence[str], rows: int) -> FloatArray:
    """Finite numbers as float64, read from text where they stand in text; NaN where absent or not a number."""
    return _first(columns, names, rows, _as_number)


def seconds(columns: Mapping[str, Column], names: Sequence[str], rows: int) -> FloatArray:
    """Times as seconds since 1970-01-01 UTC; NaN where absent, no time, or outside of the years 2000 to 2099.

    Read are ISO 8601 (a blank for the T, fractions and zone as may be; UTC where none is given), epoch seconds and epoch
    milliseconds (as numbers or as text), and datetimes.
    """
    return _first(columns, names, rows, _as_seconds)


def clean_text(text: str) -> str:
    """Replace what no database or file takes: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


def _first(
    columns: Mapping[str, Column], names: Sequence[str], rows: int, read: Callable[[Column], FloatArray]
) -> FloatArray:
    found: FloatArray | None = None
    for name in names:
        if name in columns and (found is None or np.isnan(found).any()):
            column = read(columns[name])
            found = column if found is None else np.where(np.isnan(found), column, found)
    return np.full(rows, np.nan) if found is None else found


def _as_text(column: Column) -> pd.Series[str]:
    if isinstance(column, pd.Series) and isinstance(column.dtype, pd.StringDtype):
        series = column.reset_index(drop=True).astype("str").fillna("")
    else:
        values = [value if type(value) is str else "" for value in column]
        try:
            series = pd.Series(values, dtype="str")
        except UnicodeEncodeError:
            series = pd.Series([clean_text(value) for value in values], dtype="str")
    return series.str.replace("\x00", "\ufffd", regex=False)


def _as_number(column: Column) -> FloatArray:
    if isinstance(column, pd.Series) and isinstance(column.dtype, pd.StringDtype):
        found = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    elif isinstance(column, pd.Series) and pd.api.types.is_bool_dtype(column.dtype):
        found = np.full(len(column), np.nan)
    elif isinstance(column, pd.Series) and pd.api.types.is_numeric_dtype(column.dtype):
        found = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        found = np.fromiter(map(_number, column), dtype=np.float64, count=len(column))
    return np.where(np.isfinite(found), found, np.nan)


def _number(value: object) -> float:
    if type(value) not in {int, float, str}:  # a bool is no number here
        return np.nan
    try:
        return float(value)  # type: ignore[arg-type] # narrowed by the line above, which mypy does not follow
    except (ValueError, OverflowError):
        return np.nan


def _as_seconds(column: Column) -> FloatArray:
    if isinstance(column, pd.Series) and pd.api.types.is_datetime64_any_dtype(column.dtype):
        found = _epoch(column)
    elif isinstance(column, pd.Series) and pd.api.types.is_numeric_dtype(column.dtype):
        found = _as_number(column)
    else:
        text = _as_text(column)
        iso = text.where(text.str.len() >= _SHORTEST_TIME)
        found = _epoch(pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce"))
        missing = np.isnan(found)
        if missing.any():  # what stands as a number, or as a number in text
            found[missing] = _as_number(list(itertools.compress(column, missing)))
    found = np.where(np.abs(found) > _MILLISECONDS, found / 1000.0, found)
    return np.where((found >= _EARLIEST) & (found < _LATEST), found, np.nan)


def _epoch(moments: pd.Series[Any]) -> FloatArray:
    naive = (
        moments.dt.tz_convert("UTC").dt.tz_localize(None) if isinstance(moments.dtype, pd.DatetimeTZDtype) else moments
    )
    values = naive.to_numpy()
    return np.where(np.isnat(values), np.nan, values.astype("datetime64[us]").astype(np.int64) / 1e6)
