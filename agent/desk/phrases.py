"""What each word of the vocabulary is called on a desk."""

from __future__ import annotations

from models.domain import BlastRadius, Block, EntityKind, IncidentKind, Option, Outcome, Permission, Safety

PROBLEM = {
    IncidentKind.SLOW_TRANSFERS: "Slow transfers",
    IncidentKind.FAILING_TRANSFERS: "Failing transfers",
    IncidentKind.STALLED_TRANSFERS: "Stalled transfers",
    IncidentKind.FAILING_DELETIONS: "Failing deletions",
    IncidentKind.DEGRADED_NETWORK: "Degraded network",
    IncidentKind.CLOCK_OFF: "Clock off",
    IncidentKind.SILENT_FEED: "No news",
}
PLACE = {
    EntityKind.RSE: "at",
    EntityKind.LINK: "on the link",
    EntityKind.SITE: "at the site",
    EntityKind.FTS: "through the FTS server",
    EntityKind.NETWORK: "on the path",
    EntityKind.ACTIVITY: "in the activity",
    EntityKind.FEED: "from the feed",
}
SAFETY = {
    Safety.READ_ONLY: "read-only: moves no data and changes no setting",
    Safety.REVERSIBLE: "reversible: what it changes is noted before and can be put back",
    Safety.DISRUPTIVE: "disruptive: work in progress may suffer, and nothing puts it back by itself",
    Safety.DESTRUCTIVE: "destructive: it cannot be put back",
}
REACH = {
    BlastRadius.TRANSFER: "reaches single transfers",
    BlastRadius.LINK: "reaches single links",
    BlastRadius.SITE: "reaches a whole site",
    BlastRadius.GRID: "reaches the whole grid",
}
BLOCK = {
    Block.PAUSED: "gridmedic is paused",
    Block.COOLDOWN: "it was done here a short while ago",
    Block.RATE_LIMIT: "the limit of actions per hour is reached",
    Block.TARGETS_EMPTY: "it would touch nothing",
    Block.TARGETS_TOO_MANY: "it would touch too much at once",
    Block.TARGET_BUSY: "another action on the same target is running or settling",
    Block.OPEN_PROPOSAL: "another proposal for the same target waits for an answer",
    Block.DOWNTIME: "the target is in a declared downtime or silence",
    Block.DISABLED: "the configuration switches it off",
    Block.AUTONOMY_OFF: "autonomy is off",
    Block.SAFETY_CAP: "it is riskier than what may run unasked",
    Block.BLAST_RADIUS_CAP: "it reaches further than what may run unasked",
    Block.NOT_TRUSTED: "it has not proven itself often enough yet",
    Block.NOT_BEST: "another remedy scores better",
    Block.LOW_CONFIDENCE: "it is not sure enough who is to blame",
    Block.INEFFECTIVE_BEFORE: "it did not help here before",
    Block.UNCLEAR_BEFORE: "nobody knows whether an earlier action here had its effect",
}
# Reasons against running unasked; an operator may approve in spite of them.
ONLY_UNASKED = frozenset(
    {
        Block.AUTONOMY_OFF,
        Block.SAFETY_CAP,
        Block.BLAST_RADIUS_CAP,
        Block.NOT_TRUSTED,
        Block.NOT_BEST,
        Block.LOW_CONFIDENCE,
        Block.INEFFECTIVE_BEFORE,
        Block.UNCLEAR_BEFORE,
    }
)
OUTCOME = {
    Outcome.FIXED: "it helped: the incident's signal is back to normal",
    Outcome.UNCHANGED: "it did not help enough",
    Outcome.WORSE: "it got worse afterwards",
    Outcome.UNKNOWN: "nobody can tell whether it helped",
}


def reasons(option: Option) -> str:
    """Return why an option is asked for and does not run by itself, or why it cannot even be approved."""
    skipped = option.permission is Permission.SKIP
    blocks = [block for block in option.blocks if not (skipped and block in ONLY_UNASKED)]
    return "; ".join(BLOCK[block] for block in blocks or option.blocks)
