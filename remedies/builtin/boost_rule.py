"""Serve the rules that suffer first: their transfers leave the queue before others."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from models.domain import BlastRadius, GridError, GridUnreachable, Incident, IncidentKind, RemedyError, Safety
from models.grid import Rule
from remedies.builtin.affected import some
from remedies.contract import Applied, Parameters, Plan, Remedy, Run

MAX_RULES = 5  # a boost for everybody is a boost for nobody

_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class BoostRuleParameters(Parameters):
    rules: Annotated[tuple[Annotated[str, Field(pattern=rf"^{_RULE.pattern}$")], ...], Field(min_length=1)] = Field(
        max_length=20, description="Ids of the Rucio rules to serve first."
    )
    priority: int = Field(
        default=5, ge=1, le=5, description="Priority that the rules are raised to: 5 is served first, 3 is the default."
    )


class BoostRule(Remedy[BoostRuleParameters]):
    name = "boost_rule"
    title = "Serve the affected rules first"
    addresses = frozenset({IncidentKind.SLOW_TRANSFERS, IncidentKind.STALLED_TRANSFERS})
    safety = Safety.REVERSIBLE
    blast_radius = BlastRadius.TRANSFER
    cooldown = timedelta(hours=2)
    settle_time = timedelta(minutes=30)
    prior = 0.25
    Params = BoostRuleParameters

    def plan(self, incident: Incident) -> Plan[BoostRuleParameters] | None:
        """The first rules that the evidence names; None where it names none."""
        rules = tuple(dict.fromkeys(rule for rule in incident.evidence.rules if _RULE.fullmatch(rule)))[:MAX_RULES]
        if not rules:
            return None
        params = BoostRuleParameters(rules=rules)
        return Plan(
            params=params,
            targets=tuple(f"rule:{rule}" for rule in rules),
            summary=f"Raise the priority of rule {some(rules)} to {params.priority}",
        )

    def apply(self, params: BoostRuleParameters, run: Run) -> None:
        rules = self._rules(params, run)
        if not rules:
            raise GridError(f"rule {some(params.rules)}: none is there any more, so there is nothing to boost")
        run.remember("priorities", {rule.id: rule.priority for rule in rules})
        for rule in rules:
            if rule.priority < params.priority:
                run.grid.update_rule(rule.id, priority=params.priority, key=run.key)

    def applied(self, params: BoostRuleParameters, run: Run) -> Applied:
        rules = self._rules(params, run)
        return Applied.YES if rules and all(rule.priority >= params.priority for rule in rules) else Applied.NO

    def undo(self, params: BoostRuleParameters, run: Run) -> None:
        if "priorities" not in run.memory:
            raise RemedyError("the priorities before were not remembered; set them by hand")
        for rule in self._rules(params, run):
            before = run.memory["priorities"].get(rule.id, rule.priority)
            if before < params.priority == rule.priority:
                run.grid.update_rule(rule.id, priority=before, key=run.key)

    @staticmethod
    def _rules(params: BoostRuleParameters, run: Run) -> list[Rule]:
        """Those that are still there: a rule that is done and gone keeps nobody from boosting the others."""
        rules = []
        for rule_id in params.rules:
            try:
                rules.append(run.grid.rule(rule_id))
            except GridUnreachable:
                raise
            except GridError:
                run.log("rule-gone", rule=rule_id)
        return rules
