"""How incidents of transfers follow what perfSONAR says: what it adds to their evidence, and when one of the network is over."""

from __future__ import annotations

from detectors.findings import sentence
from detectors.localisation import Suspect, site_of
from detectors.naming import between_sites, path_of
from detectors.weather import Weather
from detectors.window import Look
from models.domain import Entity, EntityKind, Evidence

MAX_FINDINGS = 5


def known_ill(suspect: Suspect, look: Look, weather: Weather) -> bool:
    """Whether more than one reading has shown that the path is ill which a late suspect is: that lasts, whatever befell at once."""
    path = path_of(suspect.entity)
    return bool(path) and not look.signal.failing and weather.of(path, look.at).sure


def doubt(path: str, look: Look, weather: Weather) -> float:
    """Log of the odds that perfSONAR brings against a path for what is late."""
    return 0.0 if look.signal.failing else weather.of(path, look.at).doubt


def still_ill(culprit: Entity, weather: Weather, at: float) -> bool:
    """Whether perfSONAR says that the network that is to blame is ill."""
    return weather.sick(culprit.name, at) if culprit.kind is EntityKind.SITE else weather.of(culprit.name, at).sure


def findings_of(culprit: Entity, evidence: Evidence, weather: Weather, at: float) -> tuple[str, ...]:
    """What perfSONAR has found by itself on the paths of the culprit's bad transfers, the oldest first."""
    paths = {">".join(map(site_of, link.split(">"))) for link in evidence.links}
    places = [Entity(EntityKind.NETWORK, path) for path in sorted(paths) if between_sites(path)]
    if culprit.kind in {EntityKind.SITE, EntityKind.NETWORK}:
        places.append(culprit)
    found = {one.id: one for place in places for one in weather.found_of(place, at)}
    return tuple(map(sentence, sorted(found.values(), key=lambda one: (one.since, one.id))))[:MAX_FINDINGS]
