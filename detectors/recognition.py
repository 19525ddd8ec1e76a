"""Whether a suspect is what an open incident already is about, and what the incident is called by what the suspect shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detectors.degraded import known_ill
from detectors.kinship import akin, lies_within, shared_end
from detectors.localisation import COLUMNS_OF, PRICE, Suspect, bayes_factor, site_of
from detectors.naming import Name
from detectors.usual import Usual
from detectors.weather import Weather
from detectors.window import DELETING, Look, Signal, signal_of
from models.domain import Entity, EntityKind, Incident, IncidentKind

Flags = npt.NDArray[np.bool_]

# Share of an incident's bad transfers that a suspect has, to be what the incident is a part of; while it is young, and later.
PART_OF_YOUNG, PART_OF = 0.5, 0.7
SAME_CAUSE = 0.6  # share of a suspect's bad transfers that an open incident already explains
TOGETHER_S = 900.0  # between the first signs of one cause in several places
PART_KNOWN = 0.3  # share of a suspect's bad transfers that an older incident within it has to explain, to be the same
BETTER = 4.0  # log of Bayes's factor that another culprit has to explain more before an incident is put down to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A suspect as it is seen in a look, by its name. `own` are its bad transfers among the look's members."""

    name: Name
    suspect: Suspect
    own: Flags
    look: Look


class Recognition:
    """Knows incidents again. `usual` says which share of whose transfers is usually bad."""

    def __init__(self, usual: Mapping[Signal, Usual], weather: Weather) -> None:
        self._usual, self._weather = usual, weather

    def one_cause(self, incident: Incident, found: Found) -> bool:
        """Whether an open incident already explains the suspect's bad transfers, or is itself a part of what the suspect is."""
        culprit, look = incident.culprit, found.look
        names = found.name.culprit, found.suspect.entity
        if of_deletions(incident) is not (look.signal is DELETING):
            # What goes badly in both at one place has one cause; only an ill path is none of deletions, which take none.
            path = found.name.kind is IncidentKind.DEGRADED_NETWORK
            touched = of_deletions(incident) and not path and share(found.own, _blamed(culprit, look)) >= SAME_CAUSE
            return touched or any(akin(name, culprit) for name in names)
        storage = incident.kind is IncidentKind.FAILING_TRANSFERS and culprit.kind is EntityKind.RSE
        of_network = found.name.kind is IncidentKind.DEGRADED_NETWORK
        if storage and of_network and known_ill(found.suspect, look, self._weather):
            return False  # no storage that fails at one end makes the path lose packets
        if any(lies_within(name, culprit) for name in names) or self._common(incident, found) is not None:
            return True
        known = look.roles.badly(incident, look.blame)
        # Who is slow in one role may well be so in the other.
        explained = share(found.own, known if look.signal.failing else look.own(culprit))
        # What fails for a reason of its own may be late through another's fault.
        of_kind = signal_of(incident.kind) is look.signal
        part = any(lies_within(culprit, name) for name in names) or (
            of_kind and share(known, found.own) >= part_of(incident, look.at)
        )
        return explained >= SAME_CAUSE or (part and (young(incident, look.at) or explained >= PART_KNOWN))

    def _common(self, incident: Incident, found: Found) -> Entity | None:
        """What a young incident and a suspect have in common that rather is the cause: two are rare at once.

        Two storage elements of a site that fail are the site; two links that are slow are the end that they share, if it explains
        as much as both.
        """
        culprit, name, look = incident.culprit, found.name.culprit, found.look
        if not young(incident, look.at) or signal_of(incident.kind) is not look.signal or name == culprit:
            return None
        if look.signal.failing or look.signal is DELETING:
            site = site_of(name.name)
            both = culprit.kind is name.kind is EntityKind.RSE and site_of(culprit.name) == site
            return Entity(EntityKind.SITE, site) if both else None
        end = shared_end(culprit, found.suspect.entity)
        apart = found.suspect.ratio + self._ratio(culprit, look) - PRICE
        return end if end is not None and self._ratio(end, look) >= apart else None

    def renamed(self, incident: Incident, found: Found) -> Incident:
        """The incident as it is seen now: of another kind, or put down to who explains it better."""
        name, look = found.name, found.look
        if of_deletions(incident) and look.signal is not DELETING:
            return _turned(incident, name, role_of(name, found.suspect))
        if signal_of(incident.kind) is not look.signal:
            return incident
        common = self._common(incident, found)
        if common is not None:
            return replace(incident, culprit=common, evidence=replace(incident.evidence, role=""))
        says_more = _outranks(name.kind, incident.kind)
        if name.culprit == incident.culprit:
            return replace(incident, kind=name.kind) if says_more else incident
        within = lies_within(incident.culprit, name.culprit)
        wider = within and name.kind is incident.kind is IncidentKind.DEGRADED_NETWORK
        # What was put down to one culprit for long is not put down to another.
        if wider or (young(incident, look.at) and (self._explains_more(incident, found) or (says_more and within))):
            evidence = replace(incident.evidence, role=role_of(name, found.suspect))
            return replace(
                incident, culprit=name.culprit, kind=name.kind, confidence=name.confidence, evidence=evidence
            )
        return replace(incident, kind=name.kind) if says_more and akin(incident.culprit, name.culprit) else incident

    def _explains_more(self, incident: Incident, found: Found) -> bool:
        """Whether a suspect has most of an incident's bad transfers and more, and explains them much better or is wider."""
        look, own = found.look, found.own
        known = look.roles.badly(incident, look.blame)
        if (
            not known.any()
            or np.count_nonzero(own) < np.count_nonzero(known)
            or share(known, own) < part_of(incident, look.at)
        ):
            return False
        if lies_within(incident.culprit, found.name.culprit):
            return True
        return found.suspect.ratio >= self._ratio(incident.culprit, look) + BETTER

    def _ratio(self, culprit: Entity, look: Look) -> float:
        """How well a culprit explains what is bad, in the role in which it does so best."""
        shares, found = self._usual[look.signal].shares(look.roles, look.at), [0.0]
        for column in COLUMNS_OF[culprit.kind]:
            known = look.roles.known(column)
            if culprit.name in known:
                code = known.index(culprit.name)
                own = look.roles.touch(column, code)
                bad, total = np.array([np.count_nonzero(own & look.bad)]), np.array([np.count_nonzero(own)])
                found.append(float(bayes_factor(bad, total, shares[column][[code]])[0]))
        return max(found)


def young(incident: Incident, at: float) -> bool:
    """Whether so little time has passed since it opened that what looks new may be the same cause."""
    return at - incident.opened_at.timestamp() <= TOGETHER_S


def part_of(incident: Incident, at: float) -> float:
    """Which share of an incident's bad transfers a suspect must have, to be what the incident is a part of."""
    return PART_OF_YOUNG if young(incident, at) else PART_OF


def of_deletions(incident: Incident) -> bool:
    return incident.kind in DELETING.kinds


def _blamed(culprit: Entity, look: Look) -> Flags:
    """Which of the members went badly in a way for which a storage element or site may be blamed, at either end."""
    site, at = "_site" if culprit.kind is EntityKind.SITE else "", look.roles.of_name
    as_source, as_destination = (at(f"{end}{site}", culprit.name) for end in ("source", "destination"))
    return (as_source & look.blame.source) | (as_destination & look.blame.destination)


def _turned(incident: Incident, name: Name, role: str) -> Incident:
    """An incident of deletions as one of transfers, which have begun to go badly there, too. Whose deletions go badly is to blame, and
    no link or partner of it.
    """
    if not lies_within(incident.culprit, name.culprit):
        return replace(incident, kind=name.kind)
    evidence = replace(incident.evidence, role=role)
    return replace(incident, kind=name.kind, culprit=name.culprit, confidence=name.confidence, evidence=evidence)


_RANK = {IncidentKind.STALLED_TRANSFERS: 0, IncidentKind.SLOW_TRANSFERS: 1, IncidentKind.DEGRADED_NETWORK: 2}


def _outranks(kind: IncidentKind, other: IncidentKind) -> bool:
    """Whether one says more than the other of what is late."""
    return _RANK.get(kind, 0) > _RANK.get(other, 0)


def role_of(name: Name, suspect: Suspect) -> str:
    """In which role the culprit is blamed."""
    return suspect.column if name.culprit == suspect.entity else name.culprit.kind.value


def share(part: Flags, whole: Flags) -> float:
    """Which share of the one lies in the other; 0 of nothing."""
    n = np.count_nonzero(part)
    return np.count_nonzero(part & whole) / n if n else 0.0
