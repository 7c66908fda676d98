"""The benchmark of searches: its problems are what they claim, it counts rightly and records what it says."""

from __future__ import annotations

import importlib
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from nas.pareto import hypervolume
from nas.search import Evaluation
from nas.search.tabular import Table, write_table
from tests.nas.problems import analytic_ap, small_space

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the benchmark's script defines."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "search.py")))


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("_search_problems")


@pytest.fixture
def table() -> Table:
    space = small_space()
    genotypes = space.genotypes()[::11]
    evaluations = tuple(Evaluation(analytic_ap(space.decode(genotype)), {}, 1.0) for genotype in genotypes)
    return Table("small", space, {}, {}, genotypes, evaluations)


def test_the_made_up_ap_is_no_sum_of_single_effects(problems: ModuleType) -> None:
    problem = problems.Analytic()
    aps = problem.aps.reshape([size for size in problem.space.shape if size > 1])
    assert 0.1 < aps.min() < aps.max() < 0.8
    additive = aps.mean() + sum(
        aps.mean(axis=tuple(set(range(aps.ndim)) - {gene}), keepdims=True) - aps.mean()
        for gene in range(aps.ndim)
    )
    assert (aps - additive).std() > 0.1 * aps.std()
    for gene in range(1, aps.ndim):
        assert (np.diff(aps, axis=gene) > 0).all(), "a wider network is a better one"
    gains = np.diff(aps, axis=5) / np.diff([40, 80, 120, 160]).reshape(-1, 1, 1, 1)
    assert (np.diff(gains, axis=5) < 0).all(), "with diminishing returns"
    assert len(problem.front) > 100


def test_noise_and_budget(problems: ModuleType) -> None:
    problem = problems.Analytic(0.005, 3e9)
    off = [problem.measured(place, 1) - problem.aps[place] for place in range(0, 60_000, 100)]
    assert abs(np.std(off) / 0.005 - 1) < 0.15
    assert problem.measured(7, 1) == problem.measured(7, 1) != problem.measured(7, 2)
    assert problem.macs[problem.offered].max() <= 3e9 < problem.macs.max()
    assert problem.front[:, 0].max() <= 3e9
    genotype = problem.space.genotypes(4711, 4712)[0]
    assert problem.find(genotype) == 4711


def test_a_course_counts_hypervolume_repeats_and_what_is_not_on_offer(problems: ModuleType) -> None:
    problem = problems.Analytic(0.0, 3e9)
    offered = np.flatnonzero(problem.offered)
    rng = np.random.default_rng(0)
    places = [*rng.choice(offered, 30), int(np.flatnonzero(~problem.offered)[0])]
    course = problems.Course(problem, 0.99)
    for number, place in enumerate([*places, *places[:3]]):
        course.add(int(place))
        points = np.column_stack([problem.macs, problem.aps])[places[: min(number + 1, 30)]]
        share = hypervolume(points, problem.reference, ("minimize", "maximize")) / problem.volume
        assert course.shares[-1] == pytest.approx(share, abs=1e-12)
    assert (course.repeated, course.outside) == (3, 1)
    assert course.needed(course.shares[9]) == 1 + int(np.argmax(np.array(course.shares) >= course.shares[9]))
    assert course.needed(0.9999) is None and not course.done
    for macs, ap in problem.front:
        course.add(int(np.flatnonzero((problem.macs == macs) & (problem.aps == ap))[0]))
    assert course.shares[-1] == pytest.approx(1.0) and course.done


def test_every_way_reaches_the_end_of_a_table(script: SimpleNamespace, table: Table) -> None:
    problem = script.Tabular(table)
    found = script.needed(problem, 2, 1000, lambda: None)
    assert found["limit"] == found["networks"] == len(table.aps)
    for name, way in found["ways"].items():
        assert all(share >= 0.99 for share in way["reached"]) or "NSGA-II" in name
        assert max(way["measured"]) <= len(table.aps)
        assert way["repeated"] == way["outside"] == [0, 0], "in a table only new networks count"
        for levels in zip(*way["evaluations"].values(), strict=True):
            reached = [level for level in levels if level is not None]
            assert reached == sorted(reached)
    assert sum(found["ways"]["guided"]["evaluations"]["0.99"]) < sum(
        found["ways"]["random"]["evaluations"]["0.99"]
    )


def test_plain_optuna_pays_for_repeats_and_for_what_exceeds_the_budget(script: SimpleNamespace) -> None:
    problem = script.Analytic(0.0, 1e9)
    course = script.Course(problem, 0.99)
    script.optuna_s(12)(problem, 0, course, 150)
    assert len(course.shares) == 150
    assert course.outside > 30 and course.repeated > 0


def test_medians_know_of_searches_that_did_not_get_there(script: SimpleNamespace) -> None:
    assert script.spread([30, 10, 20]) == (20, 10, 30)
    assert script.spread([30, None, None]) == (math.inf, 30, math.inf)
    assert script.count(math.inf, 2000) == "> 2,000" and script.count(1234.0, 2000) == "1,234"
    ways = {
        name: {
            "evaluations": {"0.9": [each], "0.95": [each], "0.99": [each]},
            **{"repeated": [2], "outside": [3], "measured": [50]},
        }
        for name, each in ((script.PLAIN, None), ("guided", 80))
    }
    rows = script.evaluation_rows({"limit": 2000, "ways": ways})
    assert rows[0][1:] == ["> 2,000 (> 2,000 to > 2,000)"] * 3 + ["10%", "-"]
    assert rows[1][1:] == ["80 (80 to 80)"] * 3 + ["10%", "> 25.0"]


def test_it_prints_and_records(table: Table, tmp_path: Path) -> None:
    write_table(tmp_path / "tables" / "small.jsonl.gz", table)
    words = ["--seeds", "1", "--limit", "13", "--repeats", "1", "--problems", "small", "analytic"]
    words += ["--tables", str(tmp_path / "tables"), "--record", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "search.py"), *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "search.json").read_text())
    assert list(report["problems"]) == ["small", "analytic"]
    assert report["command"].endswith(
        "search.py --repeats 1 --seeds 1 --limit 13 --problems small analytic --tables tables"
    )
    ours = [each for each in report["prediction"] if "ours" in each["predictor"]]
    assert ours[-1]["rmse"][0] < ours[0]["rmse"][0]
    for each in report["speed"]:
        assert each["predicted_per_second"] * each["cpu_seconds"]["predict"] == pytest.approx(
            245_760, rel=0.01
        )
    page = (tmp_path / "search.md").read_text()
    assert page.count("| guided |") == 2 and report["machine"]["processor"] in page
    assert str(tmp_path) not in page + json.dumps(report)
    assert (tmp_path / "search.png").stat().st_size > 10_000
    wrong = subprocess.run(
        [sys.executable, str(FOLDER / "search.py"), "--problems", "other"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and "--problems: unknown other; there are analytic," in wrong.stderr
