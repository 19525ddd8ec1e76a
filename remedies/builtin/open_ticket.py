"""Tell the site's support, with the evidence: the remedy that changes nothing on the grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from pydantic import Field

from models.domain import BlastRadius, Example, Incident, IncidentKind, Safety, Share
from remedies.builtin.affected import plain
from remedies.contract import Applied, Parameters, Plan, Remedy, Run

_WHAT = {
    IncidentKind.SLOW_TRANSFERS: "Slow transfers",
    IncidentKind.FAILING_TRANSFERS: "Failing transfers",
    IncidentKind.STALLED_TRANSFERS: "Stalled transfers",
    IncidentKind.FAILING_DELETIONS: "Failing deletions",
    IncidentKind.DEGRADED_NETWORK: "Degraded network",
    IncidentKind.CLOCK_OFF: "Clock off",
}


class OpenTicketParameters(Parameters):
    culprit: str = Field(min_length=1, max_length=300, description="What the ticket is about, written kind:name.")
    title: str = Field(min_length=1, max_length=200, description="Title of the ticket.")
    body: str = Field(
        min_length=1, max_length=20_000, description="Text of the ticket: what is wrong, with the evidence."
    )


class OpenTicket(Remedy[OpenTicketParameters]):
    name = "open_ticket"
    title = "Open a ticket with the site's support"
    addresses = frozenset(_WHAT)  # all but a silent feed: there is no site to ask
    safety = Safety.READ_ONLY
    blast_radius = BlastRadius.TRANSFER
    cooldown = timedelta(hours=24)
    settle_time = timedelta(hours=4)
    prior = 0.3
    Params = OpenTicketParameters

    def plan(self, incident: Incident) -> Plan[OpenTicketParameters]:
        culprit = plain(str(incident.culprit), most=150)
        params = OpenTicketParameters(
            culprit=culprit, title=f"{_WHAT[incident.kind]}: {_escaped(culprit)[:150]}", body=body(incident)
        )
        return Plan(
            params=params,
            targets=(str(incident.culprit),),
            summary=f"Open the ticket «{params.title}» with the evidence; nothing on the grid changes",
        )

    def apply(self, params: OpenTicketParameters, run: Run) -> None:
        if not run.grid.tickets(mark=run.key):
            run.grid.open_ticket(params.culprit, params.title, params.body, key=run.key)

    def applied(self, params: OpenTicketParameters, run: Run) -> Applied:  # noqa: ARG002 - the contract's signature
        return Applied.YES if run.grid.tickets(mark=run.key) else Applied.NO


def body(incident: Incident) -> str:
    """What support needs, as plain text. Whatever comes from events stands on indented lines of its own, with `<` and `&`
    escaped: nothing in it is taken for markup, in Markdown or in HTML.
    """
    evidence = incident.evidence
    since, until = (f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (incident.opened_at, incident.updated_at))
    noun = "deletions" if incident.kind is IncidentKind.FAILING_DELETIONS else "transfers"
    bad = f"{evidence.anomalous} of {evidence.total} {noun} in {evidence.window_s / 60:.0f} minutes"
    lines = [
        f"{_WHAT[incident.kind]} since {since}, last seen {until}.",
        "",
        f"    incident: {_quoted(incident.id)}",
        f"    {_quoted(evidence.summary)}",
        f"    to blame: {_quoted(str(incident.culprit))} (confidence {incident.confidence:.0%})",
        f"    {bad}; elsewhere {evidence.background:.1%}",
        *_deletions(evidence.deletions),
        *_counted("Links, with anomalous transfers", evidence.links),
        *_counted("Errors", evidence.reasons),
        *_counted("Activities", evidence.activities),
        *_counted("Network, as perfSONAR measures it", evidence.network),
        *_counted("Times, medians in seconds", evidence.limits),
    ]
    if evidence.examples:
        lines += ["", "Examples:", ""]
        under_way = "not carried out" if noun == "deletions" else "still under way"
        lines += [f"    {line}" for example in evidence.examples[:10] for line in _shown(example, under_way)]
    return "\n".join(lines)


def _deletions(share: Share) -> Iterator[str]:
    if share.anomalous:
        yield f"    {share.anomalous} of {share.total} deletions there failed, crawled or waited, too"


def _counted(heading: str, numbers: Mapping[str, float]) -> Iterator[str]:
    if numbers:
        yield from ("", f"{heading}:", "")
        yield from (f"    {number:g}  {_quoted(name)}" for name, number in list(numbers.items())[:10])


def _shown(example: Example, under_way: str) -> Iterator[str]:
    end = under_way if example.ended_at is None else f"ended {example.ended_at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"request {_quoted(example.request_id)} {_quoted(example.link)} {end}"
    if example.duration_s is not None:
        expected = "" if example.expected_s is None else f" (expected {example.expected_s:.0f} s)"
        yield f"  took {example.duration_s:.0f} s{expected}"
    if example.reason:
        yield f"  {_quoted(example.reason)}"


def _quoted(text: str) -> str:
    return _escaped(plain(text, most=300))


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;")
