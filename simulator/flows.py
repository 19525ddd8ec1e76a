"""Who gets how much bandwidth: max-min fairness over storage, uplinks and network paths, each flow up to its own limit.

The fluid model of progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): the fair share of every resource grows
until some flow can take no more, that flow is settled, and what it leaves is shared among the others.
"""

from __future__ import annotations

import numpy as np

from simulator.kernels import kernel
from simulator.state import Array

USES = 5  # resources of one flow: reading, writing, uplink out, uplink in, path


@kernel
def resource(use: int, source: int, destination: int, from_site: int, to_site: int, rses: int, sites: int) -> int:
    """The number of a resource: R read, R write, S out, S in, S * S paths; within a site there is no uplink (-1)."""
    if use == 0:
        return source
    if use == 1:
        return rses + destination
    if use == 4:
        return 2 * rses + 2 * sites + from_site * sites + to_site
    if from_site == to_site:
        return -1
    return 2 * rses + (from_site if use == 2 else sites + to_site)


@kernel
def share(uses: Array, limits: Array, capacity: Array, rates: Array) -> None:
    """Fill `rates` (f8[n], bytes a second) for n flows.

    `uses` i8[n, USES] are the resources of each (-1: none), `limits` f8[n] what each gets when alone, `capacity` f8[...] what
    each resource has.
    """
    flows = len(limits)
    left = np.empty(len(capacity))
    members = np.zeros(len(capacity), dtype=np.int64)
    for flow in range(flows):
        for use in range(USES):
            if uses[flow, use] >= 0:
                left[uses[flow, use]] = capacity[uses[flow, use]]
                members[uses[flow, use]] += 1
    open_flows = np.arange(flows)
    shares = np.empty(flows)
    count = flows
    while count:
        least, kept = np.inf, 0
        for place in range(count):
            flow = open_flows[place]
            fair = np.inf
            for use in range(USES):
                one = uses[flow, use]
                if one >= 0:
                    fair = min(fair, max(left[one], 0.0) / members[one])
            if limits[flow] <= fair:
                _settle(flow, limits[flow], uses, left, members, rates)
            else:
                shares[flow] = fair
                least = min(least, fair)
                open_flows[kept] = flow
                kept += 1
        if kept == count:  # nobody is held by its own limit: the tightest resource is shared out
            kept = 0
            for place in range(count):
                flow = open_flows[place]
                if shares[flow] <= least * (1 + 1e-12):
                    _settle(flow, least, uses, left, members, rates)
                else:
                    open_flows[kept] = flow
                    kept += 1
        count = kept


@kernel
def _settle(flow: int, rate: float, uses: Array, left: Array, members: Array, rates: Array) -> None:
    rates[flow] = rate
    for use in range(USES):
        one = uses[flow, use]
        if one >= 0:
            left[one] -= rate
            members[one] -= 1
