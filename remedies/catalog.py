"""Every remedy that may be proposed: the built-ins, and those of outside packages that the configuration names.

An outside package registers a class under the entry point group `gridmedic.remedies`, by the remedy's name. Its code never
runs in the daemon: a child process describes it, within a deadline, and runs it later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from models.domain import ConfigError, RemedyCard, RemedyError
from remedies.builtin.boost_rule import BoostRule
from remedies.builtin.exclude_storage import ExcludeStorage
from remedies.builtin.open_ticket import OpenTicket
from remedies.builtin.switch_source import SwitchSource
from remedies.builtin.throttle_link import ThrottleLink
from remedies.builtin.wait import Wait
from remedies.child import Job
from remedies.contract import Remedy
from remedies.executors import ChildProcess

log = structlog.get_logger()

GROUP = "gridmedic.remedies"
BUILTIN: tuple[type[Remedy[Any]], ...] = (Wait, SwitchSource, ThrottleLink, BoostRule, OpenTicket, ExcludeStorage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The remedies by name. `problems` has one sentence for each outside remedy that could not be taken in."""

    cards: Mapping[str, RemedyCard]
    versions: Mapping[str, str] = field(default_factory=dict)  # of outside remedies: distribution and version
    problems: tuple[str, ...] = ()

    @classmethod
    def load(cls, enabled_outside: Sequence[str] = (), *, deadline_s: float = 10.0) -> Catalog:
        """Take in the built-ins and the outside remedies that are named.

        Raise ConfigError for a name that no installed package registers. A remedy that is there and cannot be described
        within `deadline_s` is a problem of its own (logged), and the others are taken in.
        """
        cards = {remedy.name: remedy.card(builtin=True) for remedy in BUILTIN}
        versions: dict[str, str] = {}
        problems = []
        installed: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=GROUP):
            installed.setdefault(point.name, []).append(point)
        _check_names(enabled_outside, installed)
        for name in dict.fromkeys(enabled_outside):
            try:
                cards[name] = _describe(installed[name], deadline_s)
                versions[name] = _version(installed[name][0])
            except RemedyError as error:
                problems.append(str(error))
                log.error(  # noqa: TRY400 - the trace is of a child that is gone
                    "remedy-not-loaded", remedy=name, error=str(error), cure="mend or remove it, then restart"
                )
        return cls(cards=MappingProxyType(cards), versions=MappingProxyType(versions), problems=tuple(problems))

    @property
    def hash(self) -> str:
        """Names the catalogue in the ledger: it changes with every declaration and with every outside version."""
        cards = [_adapter.dump_python(card, mode="json") for _, card in sorted(self.cards.items())]
        for card in cards:
            card["addresses"].sort()
        shown = json.dumps([cards, dict(self.versions)], sort_keys=True)
        return hashlib.blake2b(shown.encode(), digest_size=8).hexdigest()


_adapter = TypeAdapter(RemedyCard)


def _check_names(enabled: Sequence[str], installed: Mapping[str, Sequence[EntryPoint]]) -> None:
    builtin = {remedy.name for remedy in BUILTIN}
    for name in enabled:
        if name in builtin:
            raise ConfigError(f"remedies.outside: {name!r} is built in, and always there; leave it out")
        if name not in installed:
            known = ", ".join(sorted(set(installed) - builtin)) or "none is installed"
            raise ConfigError(
                f"remedies.outside: no installed package registers {name!r} under {GROUP}; known: {known}"
            )


def _describe(points: Sequence[EntryPoint], deadline_s: float) -> RemedyCard:
    point, spec = points[0], f"{points[0].module}:{points[0].attr}"
    if len(points) > 1:
        several = " and ".join(sorted(map(_version, points)))
        raise RemedyError(f"remedy {point.name!r} is registered by {several}; uninstall all but one")
    where = f"remedy {point.name!r} of {_version(point)} ({spec})"
    report = ChildProcess(deadline_s=deadline_s).execute(Job(what="describe", spec=spec), keep=lambda _: None)
    if report.failed:
        raise RemedyError(f"{where} cannot be described: {report.message}")
    try:
        card: RemedyCard = _adapter.validate_python(report.value)
    except ValidationError as error:
        raise RemedyError(f"{where} describes itself wrongly: {' '.join(str(error).split())[:500]}") from error
    if card.name != point.name:
        raise RemedyError(f"{where} calls itself {card.name!r}; register it under that name")
    return replace(card, spec=spec, builtin=False)


def _version(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
