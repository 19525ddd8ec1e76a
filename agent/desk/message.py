"""A proposal as a Slack message: Block Kit, within Slack's limits, with hostile text made harmless."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agent.desk.words import ProposalWords, RemedyWords
from models.domain import AnswerKind, Rating

SECTION = 2900  # characters; Slack takes 3,000
REMEDIES = 20  # two blocks each; Slack takes 50 in all
SIGN = {"waits": "🔔", "runs": "⏳", "fixed": "✅", "trouble": "⚠️", "quiet": "💤", "closed": "☑️"}
RATINGS = {"good": Rating.GOOD, "wrong": Rating.WRONG, "not applicable": Rating.NOT_APPLICABLE}
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

Block = dict[str, Any]


def escape(text: str, limit: int = SECTION) -> str:
    """Return `text` so that Slack shows it as it is, without links and mentions, cut to `limit` characters as escaped."""
    pieces: list[str] = []
    size = 0
    for character in text:
        piece = ESCAPES.get(character, character)
        size += len(piece)
        if size > limit - 1:
            return "".join(pieces) + "…"
        pieces.append(piece)
    return "".join(pieces)


def render(shown: ProposalWords) -> tuple[str, list[Block]]:
    """Return the text for notifications and the blocks of an incident's message."""
    incident = shown.incident
    text = f"{SIGN[shown.state]} {incident.headline}"
    remedies = shown.remedies[:REMEDIES]
    left_out = len(shown.remedies) - len(remedies)
    blocks = [
        _section(f"*{escape(text, 400)}*\n{escape(incident.gauge, 400)}\n{escape(incident.summary, 1800)}"),
        *_facts(shown),
        _section(f"*{escape(shown.status, 2000)}*"),
        *(block for remedy in remedies for block in _remedy(shown, remedy)),
    ]
    if left_out:
        blocks.append(_context(f"And {left_out} more remedies, in the console."))
    if shown.rejectable:
        blocks.append(
            {"type": "actions", "elements": [_button(shown, AnswerKind.REJECT, "Reject all", style="danger")]}
        )
    return escape(f"{text}. {shown.status}", 1000), blocks


def _facts(shown: ProposalWords) -> Iterator[Block]:
    facts = [f"{label}: {text}" for label, text in shown.incident.facts]
    if facts:
        yield _section(escape("\n".join(facts)))
    for example in shown.incident.examples[:2]:
        yield _context(f"For example {example}")


def _remedy(shown: ProposalWords, remedy: RemedyWords) -> Iterator[Block]:
    marks = [mark for mark, holds in (("recommended", remedy.recommended), ("chosen", remedy.chosen)) if holds]
    title = f"*{escape(remedy.title, 200)}*" + (f" · {', '.join(marks)}" if marks else "")
    blocked = f"Cannot be approved: {remedy.blocked}." if remedy.blocked else ""
    touches = f"Acts on {remedy.touches}" if remedy.touches else ""
    details = "\n".join(line for line in (remedy.what, touches, remedy.why, remedy.safety, blocked) if line)
    yield _section(f"{title}\n{escape(details, 2500)}")
    buttons = []
    if remedy.approvable:
        buttons.append(_approve(shown, remedy))
    if remedy.ratable:
        for label, rating in RATINGS.items():
            chosen = "✓ " if remedy.rating == label else ""
            buttons.append(
                _button(shown, AnswerKind.RATE, chosen + label.capitalize(), option=remedy.index, rating=rating)
            )
    if buttons:
        yield {"type": "actions", "elements": buttons}


def _approve(shown: ProposalWords, remedy: RemedyWords) -> Block:
    button = _button(shown, AnswerKind.APPROVE, "Approve", option=remedy.index)
    if remedy.recommended:
        button["style"] = "primary"
    if remedy.risky:
        button["confirm"] = {
            "title": _plain("Approve this?"),
            "text": _plain(escape(f"{remedy.what} ({remedy.safety})", 300)),
            "confirm": _plain("Approve"),
            "deny": _plain("Cancel"),
        }
    return button


def _button(
    shown: ProposalWords,
    kind: AnswerKind,
    label: str,
    *,
    option: int | None = None,
    rating: Rating | None = None,
    style: str | None = None,
) -> Block:
    button = {
        "type": "button",
        "action_id": f"{kind}:{rating}" if rating else str(kind),
        "text": _plain(label),
        "value": json.dumps({"decision": shown.decision_id, "option": option}),
    }
    return button | ({"style": style} if style else {})


def _section(markdown: str) -> Block:
    # `verbatim` keeps Slack from making links and mentions out of text that is none.
    return {"type": "section", "text": {"type": "mrkdwn", "text": markdown, "verbatim": True}}


def _context(text: str) -> Block:
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": escape(text), "verbatim": True}]}


def _plain(text: str) -> Block:
    return {"type": "plain_text", "text": text}
