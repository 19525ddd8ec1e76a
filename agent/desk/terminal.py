"""Incidents and proposals as a terminal shows them: plain text, no colours, nothing heavy to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from agent.desk import words
from agent.desk.text import clean, moment, percent
from models.domain import Incident, ModelError, Proposal, RemedyCard

if TYPE_CHECKING:
    from models.versions import Versions


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text under `head`, columns aligned; the last column runs free."""
    lines = [[clean(cell, 200) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def incident_table(incidents: Iterable[Incident]) -> str:
    """Return incidents as a terminal shows them; "" of none."""
    rows = [
        (
            incident.id,
            incident.status,
            moment(incident.opened_at),
            percent(incident.confidence),
            str(incident.anomalous),
            words.of_incident(incident).headline,
        )
        for incident in incidents
    ]
    return table(("incident", "status", "opened", "sure", "anomalous", "what"), rows) if rows else ""


def incident_text(incident: Incident) -> str:
    """Return everything about an incident as a terminal shows it."""
    shown = words.of_incident(incident)
    return "\n".join([*_about(shown), *(f"  For example {example}" for example in shown.examples)])


def _about(incident: words.IncidentWords) -> list[str]:
    facts = [f"  {label}: {text}" for label, text in incident.facts]
    return [incident.headline, f"  {incident.gauge}", f"  {incident.summary}", *facts]


def proposal_table(proposals: Iterable[Proposal]) -> str:
    """Return proposals as a terminal shows them, a line each."""
    rows = []
    for proposal in proposals:
        shown = words.of_proposal(proposal, {})
        best = next((remedy.name for remedy in shown.remedies if remedy.recommended), "-")
        rows.append((shown.decision_id, shown.state, best, shown.incident.headline))
    return table(("proposal", "state", "recommended", "what"), rows)


def proposal_text(proposal: Proposal, cards: Mapping[str, RemedyCard] = MappingProxyType({})) -> str:
    """Return everything about a proposal as a terminal shows it; `cards` by name of remedy, as far as known."""
    shown = words.of_proposal(proposal, cards)
    lines = [*_about(shown.incident), f"  {shown.status}", f"  Proposal {shown.decision_id}:"]
    for remedy in shown.remedies:
        notes = [
            note
            for note, holds in (
                ("recommended", remedy.recommended),
                ("chosen", remedy.chosen),
                (f"rated {remedy.rating}", remedy.rating),
                (f"cannot be approved: {remedy.blocked}", remedy.blocked),
            )
            if holds
        ]
        lines.append(f"  - {remedy.name}: {remedy.title}" + (f" [{'; '.join(notes)}]" if notes else ""))
        touches = f"acts on {remedy.touches}" if remedy.touches else ""
        lines += [f"      {text}" for text in (remedy.what, touches, remedy.why, remedy.safety) if text]
    return "\n".join(lines)


def version_table(known: Versions, *, pinned: str | None) -> str:
    """Return the versions of the forecaster as a terminal shows them; `pinned` is the model that the configuration names."""
    from models.versions import PUT_INTO_SERVICE, called  # noqa: PLC0415  (it imports numpy and pandas)

    standing, history = known.standing(), known.history()
    whys = {event.version: event.why for event in history if event.what in PUT_INTO_SERVICE}
    whys[standing.version] = standing.why
    rows = []
    for version in (None, *known.names()):
        since = f"since {moment(standing.since)}" if standing.since else "yes"
        in_service = since if version == standing.version else "-"
        rows.append((called(version), *_learned(known, version), in_service, whys.get(version, "-")))
    parts = [table(("version", "transfers", "from", "to", "pinball", "coverage", "in service", "why"), rows)]
    retrained = [event for event in history if event.what not in PUT_INTO_SERVICE]
    if retrained:
        last = retrained[-1]
        parts.append(f"Last retraining, {moment(last.at)}: {last.what}: {clean(last.why, 500)}")
    if pinned is not None:
        parts.append(
            f"The daemon uses forecast.model ({pinned}) and none of these; write `default` there to have versions"
        )
    return "\n\n".join(parts)


def _learned(known: Versions, version: str | None) -> tuple[str, str, str, str, str]:
    """How many transfers a version has learnt from, from when and to when, and how good it was on those held out."""
    try:
        manifest = known.manifest(version)
    except ModelError:
        return ("cannot be used", "-", "-", "-", "-")
    data, metrics = manifest.data, manifest.metrics.get("model", {})
    first, last = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}" for at in (data.first_start, data.last_end))
    pinball, coverage = metrics.get("pinball"), metrics.get("coverage90")
    return (
        f"{data.transfers:,}",
        first,
        last,
        "-" if pinball is None else f"{pinball:.4f}",
        "-" if coverage is None else percent(coverage),
    )
