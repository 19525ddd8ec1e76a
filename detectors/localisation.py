"""Who is to blame: which one source, destination, link, site or FTS server best explains good and bad transfers together.

Each suspect is scored by the binomial log-likelihood ratio of its transfers going bad at their own rate against the rate of
everything else. The best suspect is taken out with all its transfers before the next is looked for, so that a partner of a
bad storage element is not blamed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.domain import Entity, EntityKind, Link

MIN_BAD = 5  # fewer bad transfers than this are anecdotes
MIN_SHARE = 0.3  # of a suspect's transfers that must be bad
MIN_RATIO = 12.0  # log-likelihood ratio: about one in ten million by chance, for some thousand suspects a minute
SITE_MARGIN = 6.0  # what a whole site must explain more than the best of its storage elements alone
MAX_SUSPECTS = 8

NEW_ROLES = ("link", "source_site", "destination_site")
ROLE_COLUMNS = (*NEW_ROLES, "source", "destination", "fts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An entity, in the role in which its transfers went bad, and how well it explains them."""

    entity: Entity
    column: str  # of `roles`: source, destination, link, fts, source_site or destination_site
    bad: int
    total: int
    ratio: float
    confidence: float


def site_of(rse: str) -> str:
    """The site that a storage element belongs to, by ATLAS's form of names.

    >>> site_of("UKI-LT2-QMUL_SCRATCHDISK")
    'UKI-LT2-QMUL'
    """
    return rse.rpartition("_")[0] or rse


def roles(transfers: pd.DataFrame) -> pd.DataFrame:
    """Columns by which a transfer can be blamed on something, one row a transfer."""
    source, destination = transfers["source"], transfers["destination"]
    sites = {name: site_of(name) for name in pd.concat([source, destination]).unique()}
    return pd.DataFrame(
        {
            "link": source + ">" + destination,
            "source": source,
            "destination": destination,
            "source_site": source.map(sites),
            "destination_site": destination.map(sites),
            "fts": transfers["fts"],
        },
        index=transfers.index,
    )


def touches(entity: Entity, role: pd.DataFrame) -> pd.Series:
    """Which of the transfers (rows of `roles`) the entity took part in."""
    match entity.kind:
        case EntityKind.LINK:
            return role["link"] == entity.name
        case EntityKind.RSE:
            return (role["source"] == entity.name) | (role["destination"] == entity.name)
        case EntityKind.SITE:
            return (role["source_site"] == entity.name) | (role["destination_site"] == entity.name)
        case EntityKind.NETWORK:
            link = entity.link
            return (role["source_site"] == link.source) & (role["destination_site"] == link.destination)
        case EntityKind.FTS:
            return role["fts"] == entity.name
        case _:
            return pd.Series(data=False, index=role.index)


def localise(role: pd.DataFrame, bad: pd.Series, *, expected_share: float) -> list[Suspect]:
    """Suspects, the worst first. `expected_share` of bad transfers is usual and needs nobody to blame."""
    suspects: list[Suspect] = []
    while len(suspects) < MAX_SUSPECTS and int(bad.sum()) >= MIN_BAD:
        best = _best(role, bad, expected_share)
        if best is None:
            break
        suspects.append(best)
        rest = role[best.column] != best.entity.name
        role, bad = role[rest], bad[rest]
    return suspects


_COLUMNS: Sequence[tuple[str, EntityKind]] = (
    ("link", EntityKind.LINK),  # the narrowest first: it wins where nothing tells two suspects apart
    ("source", EntityKind.RSE),
    ("destination", EntityKind.RSE),
    ("source_site", EntityKind.SITE),
    ("destination_site", EntityKind.SITE),
    ("fts", EntityKind.FTS),
)


def _best(role: pd.DataFrame, bad: pd.Series, expected_share: float) -> Suspect | None:
    tables = [_scored(role, bad, column, expected_share) for column, _ in _COLUMNS]
    table = pd.concat(tables, ignore_index=True)
    table = table[
        (table["bad"] >= MIN_BAD) & (table["bad"] >= MIN_SHARE * table["total"]) & (table["ratio"] >= MIN_RATIO)
    ]
    if table.empty:
        return None
    handicap = np.where(table["column"].str.endswith("_site"), SITE_MARGIN, 0.0)
    score = table["ratio"].to_numpy(np.float64) - handicap
    row = table.iloc[int(np.argmax(score))]
    rivals = np.exp(np.clip(score - score.max(), -50.0, 0.0) / 2.0).sum()
    kind = dict(_COLUMNS)[row["column"]]
    return Suspect(
        entity=Entity(kind, str(row["name"])),
        column=str(row["column"]),
        bad=int(row["bad"]),
        total=int(row["total"]),
        ratio=float(row["ratio"]),
        confidence=float(min(0.99, 1.0 / rivals)),
    )


def _scored(role: pd.DataFrame, bad: pd.Series, column: str, expected_share: float) -> pd.DataFrame:
    """Bad and total transfers of each value of `column`, and its log-likelihood ratio against all the others."""
    table = bad.groupby(role[column]).agg(["sum", "count"])
    k, n = table["sum"].to_numpy(np.float64), table["count"].to_numpy(np.float64)
    all_bad, everything = float(bad.sum()), float(len(bad))
    outside = (all_bad - k) / np.maximum(everything - n, 1.0)
    usual = np.clip(np.maximum(outside, expected_share), 1e-6, 0.99)
    own = np.clip(k / n, 1e-6, 1.0 - 1e-6)
    ratio = k * np.log(own / usual) + (n - k) * np.log((1.0 - own) / (1.0 - usual))
    return pd.DataFrame(
        {
            "column": column,
            "name": table.index.astype(str),
            "bad": k,
            "total": n,
            "ratio": np.where(own > usual, ratio, 0.0),
        }
    )


def partners(entity: Entity, role: pd.DataFrame, bad: pd.Series) -> dict[Link, int]:
    """Links of the entity with their bad transfers, the worst first."""
    counts = role.loc[touches(entity, role) & bad, "link"].value_counts()
    return {Link(*str(name).split(">", 1)): int(n) for name, n in counts.items()}
