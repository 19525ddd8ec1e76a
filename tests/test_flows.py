"""Max-min fairness: nobody can get more without taking it from someone who has no more."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import kernels
from simulator.flows import USES, share


def shared(uses, limits, capacity):
    rates = np.zeros(len(limits))
    padded = np.full((len(limits), USES), -1, dtype=np.int64)
    for flow, used in enumerate(uses):
        padded[flow, : len(used)] = used
    share(padded, np.array(limits, dtype=float), np.array(capacity, dtype=float), rates)
    return rates


def test_a_flow_alone_gets_the_least_of_its_limit_and_its_resources():
    assert shared([[0, 1]], [5.0], [10.0, 3.0]) == pytest.approx([3.0])
    assert shared([[0, 1]], [2.0], [10.0, 3.0]) == pytest.approx([2.0])


def test_what_one_cannot_use_is_given_to_the_others():
    assert shared([[0], [0], [0]], [1.0, 100.0, 100.0], [10.0]) == pytest.approx([1.0, 4.5, 4.5])
    # The classic chain: one flow over both resources, one on each; the tighter resource decides.
    assert shared([[0, 1], [0], [1]], [99.0] * 3, [2.0, 10.0]) == pytest.approx([1.0, 1.0, 9.0])


def test_no_flows_and_no_capacity():
    assert len(shared([], [], [1.0])) == 0
    assert shared([[0]], [5.0], [0.0]) == pytest.approx([0.0])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_shares_are_max_min_fair(data):
    resources = data.draw(st.integers(1, 6))
    flows = data.draw(st.integers(1, 12))
    capacity = data.draw(st.lists(st.floats(0.1, 100), min_size=resources, max_size=resources))
    limits = data.draw(st.lists(st.floats(0.1, 100), min_size=flows, max_size=flows))
    one = st.lists(st.integers(0, resources - 1), min_size=1, max_size=USES, unique=True)
    uses = data.draw(st.lists(one, min_size=flows, max_size=flows))
    rates = shared(uses, limits, capacity)
    used = np.zeros(resources)
    for flow, path in enumerate(uses):
        used[path] += rates[flow]
    assert (used <= np.array(capacity) * (1 + 1e-9)).all()
    assert (rates <= np.array(limits) * (1 + 1e-9)).all()
    for flow, path in enumerate(uses):  # each is held by its own limit, or by a full resource on which nobody has more
        held = rates[flow] >= limits[flow] * (1 - 1e-9) or any(
            used[one] >= capacity[one] * (1 - 1e-9)
            and rates[flow] >= max(rates[other] for other in range(flows) if one in uses[other]) * (1 - 1e-9)
            for one in path
        )
        assert held


def test_kernels_are_kept_by_all_that_they_are_made_of():
    """numba compares only a kernel's own file: what it takes from others must be told of."""
    folder, found = Path(kernels.__file__).parent, set(kernels.MODULES)
    for name in kernels.MODULES:
        tree = ast.parse((folder / f"{name}.py").read_text())
        imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        found |= {module.removeprefix("simulator.") for module in imported if module.startswith("simulator.")}
        decorated = {ast.unparse(each) for node in tree.body for each in getattr(node, "decorator_list", [])}
        assert "njit" not in " ".join(decorated)
    assert found - {"kernels"} == set(kernels.MODULES)
