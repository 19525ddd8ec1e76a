"""What the author of a remedy writes: one class that declares what it is, plans purely, and acts only through `run.grid`.

Light on purpose: every action starts a process that imports this file.
"""

from __future__ import annotations

import enum
import inspect
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from models.domain import BlastRadius, Entity, Incident, IncidentKind, Outcome, RemedyCard, RemedyError, Safety
from models.grid import Grid

BASELINE = "wait"  # the remedy that every other must beat; the only one that does nothing at all
LONGEST = timedelta(days=7)  # of a cooldown and of a settle time; the ledger is asked no further back
MAX_SUMMARY = 300
MAX_REMEMBERED = 64 * 1024  # bytes of JSON

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Parameters(BaseModel):
    """Base of every remedy's parameters. Each field needs a description: operators see it where they change the value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Parameters)


class Applied(enum.StrEnum):
    """Whether an effect is in place. Partly is NO where `apply` may simply be called again to complete it."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Generic[P]):
    """What exactly would be done to what: `targets` are entities (`link:A>B`, `rse:X`, …) or `rule:ID`, all of them."""

    params: P
    targets: tuple[str, ...]
    summary: str  # one line: what happens if it is approved


class Run:
    """What a remedy has at hand while it acts. `key` is the id of the decision behind it: give it to every act."""

    def __init__(
        self,
        *,
        grid: Grid,
        key: str,
        memory: Mapping[str, Any] | None = None,
        keep: Callable[[str, Any], None] | None = None,
        log: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.grid = grid
        self.key = key
        self._memory = dict(memory or {})
        self._keep = keep
        self._log = log

    @property
    def memory(self) -> Mapping[str, Any]:
        """What was remembered for this action, also by an attempt that was cut off."""
        return self._memory

    def remember(self, name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON
        """Keep what stands before the effect, durably, and return it.

        Call it before the act: when it returns, the value is in the ledger. The first value of a name stands, so that an
        attempt that is repeated does not take its own effect for what was there before. Raise RemedyError where `value`
        is not JSON or too large.
        """
        if name in self._memory:
            return self._memory[name]
        value = self._as_json(name, value)
        if self._keep is not None:
            self._keep(name, value)
        self._memory[name] = value
        return value

    def log(self, word: str, **facts: Any) -> None:  # noqa: ANN401 - any JSON
        """Say something in the daemon's log: a fixed machine word, and facts."""
        if self._log is not None:
            self._log(word, facts)

    @staticmethod
    def _as_json(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RemedyError(
                f"run.remember({name!r}, …): the value is not JSON ({error}); give plain values"
            ) from error
        if len(text) > MAX_REMEMBERED:
            raise RemedyError(f"run.remember({name!r}, …): {len(text)} bytes; keep no more than {MAX_REMEMBERED}")
        return json.loads(text)


class Remedy(ABC, Generic[P]):
    """One way to help. A subclass declares the attributes and writes the methods; it is checked when it is defined.

    `apply` is called with a grid on which the same act with the same key has its effect once, but a real backend may carry
    no keys: look first, `run.remember` what is there, then act. Every act sets an absolute value, so that doing it again
    changes nothing. Errors of the grid (GridError, GridUnreachable) are let through: the runner knows what they mean.
    """

    name: ClassVar[str]  # as in the configuration and the ledger; never changes
    title: ClassVar[str]  # what it does, in an operator's words
    addresses: ClassVar[frozenset[IncidentKind]]
    safety: ClassVar[Safety]
    blast_radius: ClassVar[BlastRadius]
    cooldown: ClassVar[timedelta]  # before it may be done to the same target again
    settle_time: ClassVar[timedelta]  # until its effect can be judged
    prior: ClassVar[float]  # how often it is the right thing to do, 0..1, by the author's guess
    Params: type[P]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        problems = list(_problems(cls))
        if problems:
            raise RemedyError(f"remedy {cls.__module__}:{cls.__qualname__}: {'; '.join(problems)}")

    @abstractmethod
    def plan(self, incident: Incident) -> Plan[P] | None:
        """Say what would be done about the incident, from the incident alone; None where it makes no sense."""

    @abstractmethod
    def apply(self, params: P, run: Run) -> None:
        """Do it. Called again with the same key after a crash, it completes what is missing and repeats nothing."""

    @abstractmethod
    def applied(self, params: P, run: Run) -> Applied:
        """Say whether the effect is in place, by looking at the grid. Changes nothing."""

    def verify(self, params: P, run: Run) -> Outcome | None:
        """Lower the core's verdict after the settle time, or leave it with None; it is never raised. Changes nothing.

        As it stands: what is no longer in place cannot be what helped.
        """
        return None if self.applied(params, run) is Applied.YES else Outcome.UNKNOWN

    def undo(self, params: P, run: Run) -> None:
        """Put back what `run.memory` holds, wherever the effect still stands; leave what others have changed since."""
        raise NotImplementedError(f"{self.name} has no undo")

    @classmethod
    def card(cls, *, builtin: bool) -> RemedyCard:
        """What is known of the remedy without running it."""
        return RemedyCard(
            name=cls.name,
            title=cls.title,
            spec=f"{cls.__module__}:{cls.__qualname__}",
            builtin=builtin,
            addresses=cls.addresses,
            safety=cls.safety,
            blast_radius=cls.blast_radius,
            cooldown=cls.cooldown,
            settle_time=cls.settle_time,
            prior=cls.prior,
            params_schema=cls.Params.model_json_schema(),
        )


_RANK = {Outcome.WORSE: 0, Outcome.UNCHANGED: 1, Outcome.UNKNOWN: 2, Outcome.FIXED: 3}


def lower(core: Outcome, said: Outcome | None) -> Outcome:
    """The core's verdict after what the remedy's own `verify` said: the worse of the two.

    >>> lower(Outcome.UNCHANGED, Outcome.FIXED).value
    'unchanged'
    """
    return core if said is None else min(core, said, key=_RANK.__getitem__)


def check_plan(remedy: type[Remedy[P]], plan: object) -> Plan[P]:
    """Return the plan if it is one that can be shown and carried out; raise RemedyError that says what is wrong."""
    where = f"remedy {remedy.name}: plan"
    if not isinstance(plan, Plan):
        raise RemedyError(f"{where} returned {plan!r}; return a Plan or None")
    if type(plan.params) is not remedy.Params:
        raise RemedyError(f"{where} has parameters of {type(plan.params)!r}; they must be {remedy.Params.__name__}")
    again = remedy.Params.model_validate(json.loads(plan.params.model_dump_json()))
    if again != plan.params:
        raise RemedyError(f"{where} has parameters that change on their way through JSON: {plan.params!r} to {again!r}")
    if not isinstance(plan.targets, tuple) or len(set(plan.targets)) != len(plan.targets):
        raise RemedyError(f"{where} has targets {plan.targets!r}; give a tuple that names each once")
    for target in plan.targets:
        check_target(target, where=where)
    if not isinstance(plan.summary, str) or not plan.summary.strip() or len(plan.summary) > MAX_SUMMARY:
        raise RemedyError(
            f"{where} has summary {plan.summary!r}; say in one line, of up to {MAX_SUMMARY} characters, "
            "what would happen"
        )
    if not plan.summary.isprintable():
        raise RemedyError(f"{where} has summary {plan.summary!r}; leave out line breaks and control characters")
    return plan


def check_target(target: object, *, where: str) -> None:
    """Raise RemedyError unless `target` is an entity or `rule:ID`."""
    cure = "write an entity (kind:name) or rule:ID"
    if not isinstance(target, str):
        raise RemedyError(f"{where} has target {target!r}; {cure}")
    kind, _, name = target.partition(":")
    if kind == "rule" and name:
        return
    try:
        Entity.parse(target)
    except ValueError as error:
        raise RemedyError(f"{where} has target {target!r}; {cure}: {error}") from error


def _problems(cls: type[Remedy[Any]]) -> Iterator[str]:
    """What is wrong with a definition, each with its cure."""
    yield from _wrong_values(cls)
    yield from _wrong_params(getattr(cls, "Params", None))
    for method in ("plan", "apply", "applied"):
        if getattr(getattr(cls, method), "__isabstractmethod__", False):
            yield f"{method} is missing; write it"
    for method in ("plan", "apply", "applied", "verify", "undo"):
        if inspect.iscoroutinefunction(getattr(cls, method)):
            yield f"{method} is a coroutine, which nobody would await; write a plain function"
    if getattr(cls, "safety", None) is Safety.REVERSIBLE and cls.undo is Remedy.undo:
        yield "it is declared reversible and has no undo; write undo, or declare it disruptive"


def _wrong_values(cls: type[Remedy[Any]]) -> Iterator[str]:
    value = {name: getattr(cls, name, None) for name in Remedy.__annotations__}
    if not isinstance(value["name"], str) or _NAME.fullmatch(value["name"]) is None:
        yield f"name is {value['name']!r}; use up to 40 lower-case letters, digits and _, a letter first"
    if not isinstance(value["title"], str) or not value["title"].strip() or not value["title"].isprintable():
        yield f"title is {value['title']!r}; say in one line what it does"
    kinds = value["addresses"]
    if not isinstance(kinds, frozenset) or not kinds or not all(isinstance(kind, IncidentKind) for kind in kinds):
        yield f"addresses is {kinds!r}; give a frozenset of at least one IncidentKind"
    if not isinstance(value["safety"], Safety):
        yield f"safety is {value['safety']!r}; use a member of Safety"
    if not isinstance(value["blast_radius"], BlastRadius):
        yield f"blast_radius is {value['blast_radius']!r}; use a member of BlastRadius"
    for name in ("cooldown", "settle_time"):
        least = timedelta(0) if name == "cooldown" else timedelta(seconds=1)
        time = value[name]
        if not isinstance(time, timedelta) or not least <= time <= LONGEST:
            yield f"{name} is {time!r}; use a timedelta from {least} to {LONGEST}"
    prior = value["prior"]
    if isinstance(prior, bool) or not isinstance(prior, int | float) or not (math.isfinite(prior) and 0 < prior < 1):
        yield f"prior is {prior!r}; use a number between 0 and 1, both excluded"


def _wrong_params(params: object) -> Iterator[str]:
    if not (isinstance(params, type) and issubclass(params, Parameters)):
        yield f"Params is {params!r}; use a subclass of remedies.contract.Parameters"
        return
    schema = params.model_json_schema()
    for model in (schema, *schema.get("$defs", {}).values()):
        for name, of in model.get("properties", {}).items():
            if not str(of.get("description", "")).strip():
                yield f"{params.__name__}.{name} has no description; write Field(description=…)"
