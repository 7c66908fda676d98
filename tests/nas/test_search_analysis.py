"""What a search's records say: importances with known answers, hypervolume over time, seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from nas.pareto import hypervolume
from nas.search import AP, MACS, PARAMS, SIZE, SearchResult, latency, search
from nas.search import importance as importance_module
from nas.search.analysis import analyse, joint_hypervolumes, seconds_of
from nas.search.importance import FEWEST, importances
from nas.search.objectives import Direction
from nas.search.result import Record
from tests.nas.problems import Analytic, MacsPricer, analytic_ap, small_space

SPACE = small_space()
EFFECTS = {"resolution": 0.10, "stage0.width": 0.20, "head.deconv1.width": 0.0}


def records(count: int, noise: float = 0.0, seed: int = 0, skew: bool = False) -> list[Record]:
    """Return networks whose AP rises by a known amount where a choice takes its larger value."""
    rng = np.random.default_rng(seed)
    archs = [SPACE.decode(g) for g in SPACE.sample_genotypes(rng, count)]
    if skew:  # as a search does: the better half again and again
        archs = [
            a if a["resolution"] == 320 else SPACE.arch({**dict(a.values), "stage0.width": 16}) for a in archs
        ]
    largest = SPACE.largest()
    aps = [0.3 + sum(e for n, e in EFFECTS.items() if a[n] == largest[n]) for a in archs]
    return [
        Record(arch, 1, 1, {}, True, i, 0, "sample", ap + noise * float(rng.normal()))
        for i, (arch, ap) in enumerate(zip(archs, aps, strict=True))
    ]


def test_what_is_explained_is_of_networks_left_out() -> None:
    rng = np.random.default_rng(0)
    design, ap = rng.integers(0, 2, (25, 9)).astype(float), rng.normal(size=25)
    errors = []
    for i in range(25):
        others = np.arange(25) != i
        # The ridge of the whole fit, its columns centred on the whole, as the closed form has it.
        columns = design - design.mean(axis=0)
        left = np.column_stack([np.ones(24), columns[others]])
        penalty = np.diag([0.0, *[3.0] * 9])
        weights = np.linalg.solve(left.T @ left + penalty, left.T @ ap[others])
        errors.append(ap[i] - weights @ [1.0, *columns[i]])
    assert importance_module._left_out(design, ap, 3.0) == pytest.approx(np.mean(np.square(errors)))


@pytest.mark.parametrize("skew", [False, True])
def test_importances_are_those_that_the_aps_were_made_with(skew: bool) -> None:
    found = importances(records(60, noise=0.01, skew=skew))
    assert found is not None and found.explained > 0.9
    shares = {name: each.share for name, each in found.choices.items()}
    assert sum(shares.values()) == pytest.approx(1)
    # Variances of two equally likely values that differ by 0.2 and 0.1: four to one.
    assert list(shares)[:2] == ["stage0.width", "resolution"]
    assert shares["stage0.width"] == pytest.approx(0.8, abs=0.08)
    assert shares["resolution"] == pytest.approx(0.2, abs=0.08)
    first = found.choices["stage0.width"]
    assert first.low <= first.share <= first.high and first.low > 0.5
    assert found.choices["head.deconv1.width"].share < 0.02
    low, high = (first.effects[value] for value in sorted(first.effects))
    assert high - low == pytest.approx(0.2, abs=0.03) and low + high == pytest.approx(0)
    assert importances(records(60, noise=0.01, skew=skew)) == found


def test_noise_is_told_as_what_it_is() -> None:
    pure = [replace(r, ap=ap) for r, ap in zip(records(40), np.random.default_rng(1).random(40), strict=True)]
    found = importances(pure)
    assert found is not None and found.explained < 0.3
    assert all(each.low < 0.3 for each in found.choices.values())


def test_too_little_says_nothing() -> None:
    assert importances(records(FEWEST - 1)) is None
    assert importances([replace(r, ap=0.5) for r in records(FEWEST)]) is None
    assert importances([records(1)[0]] * FEWEST) is None


def found(folder: Path, **options: Any) -> SearchResult:
    given: dict[str, Any] = {"trials": 30, "population": 8, "seed": 1, **options}
    return search(SPACE, Analytic(seconds=0.001), storage=folder / "study.journal", **given)


def test_the_hypervolume_over_time_is_that_of_what_was_known_then(tmp_path: Path) -> None:
    objectives = (AP, PARAMS, latency("toy"))
    result = found(tmp_path, objectives=objectives, pricers=[MacsPricer()])
    told = analyse(result)["hypervolume"]
    assert set(told) == {"params", "latency[toy]", "joint"}
    directions: list[Direction] = ["maximize", "minimize", "minimize"]
    reference = [0.0, *told["joint"]["reference"].values()]
    for place in (0, 7, 29):
        values = [[r.value(o) for o in objectives] for r in result.evaluated[: place + 1]]
        assert told["joint"]["values"][place] == pytest.approx(hypervolume(values, reference, directions))
        for column, name in ((1, "params"), (2, "latency[toy]")):
            pair = [[row[0], row[column]] for row in values]
            bound = [0.0, told[name]["reference"][name]]
            assert told[name]["values"][place] == pytest.approx(hypervolume(pair, bound, directions[:2]))
    # An implementation that is not ours agrees on all of them together.
    losses = np.array([[-r.require_ap(), r.params, r.latency_ms["toy"]] for r in result.evaluated])
    assert told["joint"]["values"][-1] == pytest.approx(compute_hypervolume(losses, np.array(reference)))


@settings(max_examples=40, deadline=None)
@given(points=st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=1, max_size=14))
def test_four_objectives_agree_with_optuna(points: list[tuple[int, ...]]) -> None:
    directions: list[Direction] = ["minimize"] * 4
    ours = hypervolume(points, [9.5] * 4, directions)
    assert ours == pytest.approx(compute_hypervolume(np.array(points, dtype=float), np.full(4, 9.5)))


def test_nothing_evaluated_is_no_error(tmp_path: Path) -> None:
    result = found(tmp_path, objectives=(AP, MACS, SIZE), trials=2)
    empty = replace(result, records=())
    assert joint_hypervolumes(empty) == [] and analyse(empty)["importances"] is None
    assert analyse(empty)["seconds"]["made"] == 0
    assert empty.to_csv() == "trial\n" and empty.rows() == []


def test_rows_are_what_a_data_frame_takes(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    result = found(tmp_path, pricers=[MacsPricer()], objectives=(AP, latency("toy")))
    result = replace(result, records=(replace(result.records[0], reused=True), *result.records[1:]))
    frame = pandas.DataFrame(result.rows())
    (tmp_path / "result.csv").write_text(result.to_csv())
    read = pandas.read_csv(tmp_path / "result.csv", dtype={"id": str})
    assert list(read.columns) == list(frame.columns) and len(read) == len(result.records)
    for name in ("ap", "macs", "latency[toy]", "hypervolume", "best_ap", "seconds", "stage0.width", "ap50"):
        assert np.array_equal(read[name], frame[name], equal_nan=True), name
    assert frame["hypervolume"].tolist() == analyse(result)["hypervolume"]["latency[toy]"]["values"]
    assert frame["best_ap"].tolist() == np.maximum.accumulate(frame["ap"]).tolist()
    assert set(frame.loc[frame["on_front"] == 1, "id"]) == {r.arch.id for r in result.front()}
    assert frame["reused"].tolist() == [1] + [0] * 29
    seconds = seconds_of(result)
    assert (seconds["made"], seconds["reused"], seconds["saved"]) == (29, 1, 0.001)
    assert seconds["sum"] == pytest.approx(0.029) and seconds["median"] == 0.001
    assert [analytic_ap(r.arch) for r in result.evaluated] == frame["ap"].tolist()
