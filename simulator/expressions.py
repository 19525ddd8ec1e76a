r"""Rucio's RSE expressions, as far as rules use them here: names, `*`, `site=X`, `type=DISK`, `|`, `&`, `\`, brackets.

Operators have no precedence: they apply from left to right, as in Rucio.
"""

from __future__ import annotations

import re

import numpy as np

from models.domain import GridError
from simulator.state import Array
from simulator.topology import Topology

_TOKEN = re.compile(r"\s*([()&|\\]|[^()&|\\\s]+)\s*")


def matching(expression: str, topology: Topology) -> Array:
    r"""Which storage elements the expression selects, bool[R]; raise GridError if it cannot be read or selects none.

    `*\A` is everything but A.
    """
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != "".join(expression.split()) or not tokens:
        raise GridError(f"RSE expression {expression!r} cannot be read; write names joined by | & or \\")
    found = _union(tokens, expression, topology)
    if tokens:
        raise GridError(f"RSE expression {expression!r} cannot be read at {tokens[0]!r}")
    if not found.any():
        raise GridError(f"RSE expression {expression!r} selects no RSE")
    return found


def _union(tokens: list[str], expression: str, topology: Topology) -> Array:
    found = _term(tokens, expression, topology)
    while tokens and tokens[0] in "|&\\":
        operator = tokens.pop(0)
        other = _term(tokens, expression, topology)
        found = found | other if operator == "|" else found & other if operator == "&" else found & ~other
    return found


def _term(tokens: list[str], expression: str, topology: Topology) -> Array:
    word = tokens.pop(0) if tokens else ""
    if word == "(":
        found = _union(tokens, expression, topology)
        if not tokens or tokens.pop(0) != ")":
            raise GridError(f"RSE expression {expression!r} lacks a closing bracket")
        return found
    if word == "*":
        return np.ones(len(topology.rses), dtype=np.bool_)
    if word in topology.rses:
        return np.arange(len(topology.rses)) == topology.rse(word)
    key, equals, value = word.partition("=")
    if equals and key == "site":
        return np.array([topology.sites[site] == value for site in topology.rse_site])
    if equals and key == "type":
        return topology.tape == (value == "TAPE") if value in {"DISK", "TAPE"} else np.zeros_like(topology.tape)
    raise GridError(f"RSE expression {expression!r} names {word!r}, which is no RSE and no site= or type=")
