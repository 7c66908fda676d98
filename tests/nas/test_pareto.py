"""Pareto fronts and hypervolumes against brute force, and the choice under a budget."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from nas.pareto import hypervolume, pareto_front
from nas.search import MACS, Constraint, Record, SearchResult, latency
from search_spaces import BudgetError, InputError, get_arch

DIRECTIONS = ("minimize", "maximize")


@st.composite
def points(draw: st.DrawFn, most: int = 12) -> tuple[np.ndarray, tuple[str, ...]]:
    """Small integer points, so that ties and copies are frequent."""
    objectives = draw(st.integers(1, 4))
    rows = draw(st.lists(st.tuples(*[st.integers(0, 5)] * objectives), min_size=0, max_size=most))
    directions = draw(st.tuples(*[st.sampled_from(DIRECTIONS)] * objectives))
    return np.array(rows, dtype=float).reshape(-1, objectives), directions


def losses(values: np.ndarray, directions: tuple[str, ...]) -> np.ndarray:
    return values * np.array([1 if d == "minimize" else -1 for d in directions])


@given(points(most=30))
def test_the_front_is_what_nothing_dominates(case: tuple[np.ndarray, Any]) -> None:
    values, directions = case
    loss = losses(values, directions)
    expected = [
        i
        for i, a in enumerate(loss)
        if not any((b <= a).all() and (b < a).any() for j, b in enumerate(loss) if j != i)
    ]
    assert pareto_front(values, directions).tolist() == expected


@settings(max_examples=60)
@given(points(most=8))
def test_the_hypervolume_counts_the_dominated_cells(case: tuple[np.ndarray, Any]) -> None:
    values, directions = case
    bound = np.array([6.0 if d == "minimize" else -1.0 for d in directions])
    loss, worst = losses(values, directions), losses(bound[None], directions)[0]
    # All coordinates are whole numbers: the volume is the number of unit cells with a dominated lower corner.
    corners = itertools.product(*(np.arange(w - 7, w) for w in worst))
    cells = sum(bool((loss <= np.array(corner)).all(axis=1).any()) for corner in corners)
    assert hypervolume(values, bound, directions) == pytest.approx(cells)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_the_hypervolume_agrees_with_optunas(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    for _ in range(20):
        values = rng.random((25, objectives))
        reference = np.full(objectives, 0.9)
        expected = compute_hypervolume(values[(values < reference).all(axis=1)], reference)
        assert hypervolume(values, reference, ["minimize"] * objectives) == pytest.approx(expected)


def test_a_front_of_nothing_is_empty_and_has_no_volume() -> None:
    assert pareto_front([], DIRECTIONS).tolist() == []
    assert hypervolume([], [1.0, 0.0], DIRECTIONS) == 0.0


def test_a_quarter_of_a_million_points_are_no_burden() -> None:
    values = np.random.default_rng(0).random((245_760, 2))
    front = pareto_front(values, DIRECTIONS)
    worst_cost = np.maximum.accumulate(values[np.lexsort((-values[:, 1], values[:, 0]))][:, 1])
    assert len(front) == len(np.unique(worst_cost))


@pytest.mark.parametrize(
    ("values", "directions", "message"),
    [
        ([[1.0, np.nan]], DIRECTIONS, "NaN"),
        ([[1.0, 2.0, 3.0]], DIRECTIONS, "2 directions"),
        ([[1.0, 2.0]], ("minimize", "up"), "'up'"),
    ],
)
def test_bad_values_are_named(values: Any, directions: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pareto_front(values, directions)


# -- the choice ------------------------------------------------------------------------------------------


def record(trial: int, ap: float | None, macs: int, ms: float = 10.0, params: int = 10) -> Record:
    arch = get_arch("litepose-s").replace(resolution=256 + 64 * trial)
    return Record(arch, macs, params, {"phone": ms}, True, trial, 0, "sample", ap)


def result_of(*records: Record) -> SearchResult:
    return SearchResult(
        *("study", "space", 14, (), (), ("phone",), "random", 0, len(records), "budget", 0, records)
    )


def test_the_best_meets_every_budget_and_ties_go_to_the_cheaper() -> None:
    result = result_of(
        record(0, 0.6, 900, ms=50.0), record(1, 0.5, 500), record(2, 0.5, 400), record(3, None, 100)
    )
    assert result.best().trial == 0
    assert result.best([Constraint(latency("phone"), 20.0)]).trial == 2
    assert result.best([Constraint(MACS, 900), Constraint(latency("phone"), 50)]).trial == 0


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    with pytest.raises(BudgetError, match=r"network .of 2. .* nearest is \w{12} with 0\.0004 MMACs"):
        result_of(record(0, 0.6, 900), record(1, 0.5, 400)).best([Constraint(MACS, 300)])
    with pytest.raises(BudgetError, match="no network was evaluated"):
        result_of(record(0, None, 900)).best()


def test_a_budget_on_an_unpriced_target_is_named() -> None:
    with pytest.raises(InputError, match=r"no latency\[watch\]; targets priced: phone"):
        result_of(record(0, 0.6, 900)).best([Constraint(latency("watch"), 1.0)])
