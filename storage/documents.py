"""Domain objects as JSON text and back. What could not be read back is refused on the way in."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, TypeVar, cast

from models.domain import LedgerError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from pydantic import TypeAdapter

T = TypeVar("T")

_LOADED = 2048  # documents whose values are kept: a pass reads again what the one before it read


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415  (a tenth of a second that opening a ledger does not need)

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def dump(value: object) -> str:
    """Return `value`, an instance of one of the domain's dataclasses, as JSON; raise LedgerError if it is not a valid one."""
    adapter = _adapter(type(value))
    try:
        plain = adapter.dump_python(value, mode="json", warnings="none", fallback=_number)
        adapter.validate_python(plain)
    except ValueError as error:
        raise LedgerError(f"{value!r} cannot be kept: {error}; correct the field where it is made") from error
    return dump_json(plain)


def load(kind: type[T], document: str) -> T:
    """Return the `kind` that `document` holds; raise LedgerError if it does not hold one. Values are shared: change none."""
    return cast("T", _load(cast("Hashable", kind), document))


@functools.lru_cache(maxsize=_LOADED)
def _load(kind: type[Any], document: str) -> Any:  # noqa: ANN401 - an instance of `kind`
    try:
        return _adapter(kind).validate_python(json.loads(document))
    except ValueError as error:
        raise LedgerError(
            f"the ledger holds {document[:200]!r} where a {kind.__name__} should be: {error}; "
            "it was changed by hand or written by another version: restore it from a backup"
        ) from error


def dump_json(value: object) -> str:
    """Return plain JSON data as text. NaN and the infinities are kept, as Python's json spells them."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def load_json(text: str) -> Any:  # noqa: ANN401  (JSON is any of its types; callers know which they wrote)
    return json.loads(text)


def _number(value: Any) -> Any:  # noqa: ANN401  (called by pydantic with whatever it does not know)
    """Turn the scalars of numpy, which numbers from a DataFrame are, into Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise ValueError(f"{value!r} is of type {type(value).__name__}, which JSON does not have")
