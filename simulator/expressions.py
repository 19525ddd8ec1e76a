r"""Rucio's RSE expressions, as far as rules use them here: names, `*`, `site=X`, `type=DISK`, `|`, `&`, `\`, brackets.

Operators have no precedence: they apply from left to right, as in Rucio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from models.domain import GridError
from simulator.topology import Storage

_TOKEN = re.compile(r"\s*([()&|\\]|[^()&|\\\s]+)\s*")


def matching(expression: str, storages: Mapping[str, Storage]) -> frozenset[str]:
    r"""Names of the storage elements that the expression selects; raise GridError if it cannot be read or selects none.

    `*\A` is everything but A.
    """
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != "".join(expression.split()) or not tokens:
        raise GridError(f"RSE expression {expression!r} cannot be read; write names joined by | & or \\")
    found = _union(tokens, expression, storages)
    if tokens:
        raise GridError(f"RSE expression {expression!r} cannot be read at {tokens[0]!r}")
    if not found:
        raise GridError(f"RSE expression {expression!r} selects no RSE")
    return found


def _union(tokens: list[str], expression: str, storages: Mapping[str, Storage]) -> frozenset[str]:
    found = _term(tokens, expression, storages)
    while tokens and tokens[0] in "|&\\":
        operator = tokens.pop(0)
        other = _term(tokens, expression, storages)
        found = found | other if operator == "|" else found & other if operator == "&" else found - other
    return found


def _term(tokens: list[str], expression: str, storages: Mapping[str, Storage]) -> frozenset[str]:
    word = tokens.pop(0) if tokens else ""
    if word == "(":
        found = _union(tokens, expression, storages)
        if not tokens or tokens.pop(0) != ")":
            raise GridError(f"RSE expression {expression!r} lacks a closing bracket")
        return found
    if word == "*":
        return frozenset(storages)
    if word in storages:
        return frozenset((word,))
    key, equals, value = word.partition("=")
    if equals and key in {"site", "type"}:
        return frozenset(s.name for s in storages.values() if value == (s.site if key == "site" else s.kind))
    raise GridError(f"RSE expression {expression!r} names {word!r}, which is no RSE and no site= or type=")
