"""Incidents and proposals as a terminal shows them: plain text, no colours, nothing heavy to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from agent.desk import words
from agent.desk.text import clean, moment, percent
from models.domain import Incident, Proposal, RemedyCard


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text under `head`, columns aligned; the last column runs free."""
    lines = [[clean(cell, 200) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def incident_table(incidents: Iterable[Incident]) -> str:
    """Return incidents as a terminal shows them."""
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
    return table(("incident", "status", "opened", "sure", "anomalous", "what"), rows)


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
    incident = shown.incident
    lines = [incident.headline, f"  {incident.gauge}", f"  {incident.summary}"]
    lines += [f"  {label}: {text}" for label, text in incident.facts]
    lines += [f"  {shown.status}", f"  Proposal {shown.decision_id}:"]
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
