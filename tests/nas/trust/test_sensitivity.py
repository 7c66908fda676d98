"""AP against calibration images: what is enough, draws that are disjoint, and a measurement that goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nas.run import RunDirectory
from nas.trust.sensitivity import Sensitivity, draws_of, measure_sensitivity, probe_archs
from search_spaces import InputError, RunError
from supernet.evaluator import SubnetEvaluator
from tests.nas.conftest import Outcome
from tests.nas.trust import made_up
from tests.supernet import tiny


def of(aps: np.ndarray, given: int = 4, pool: int = 1000) -> Sensitivity:
    base = made_up.sensitivity(aps.shape[0])
    counts = tuple(2**power for power in range(aps.shape[1]))
    return Sensitivity(base.archs, base.macs, counts, aps, given, pool, 0.01)


def test_figures_by_hand() -> None:
    aps = np.array([[[0.2, 0.4], [0.50, 0.52], [0.50, 0.52]], [[0.1, 0.1], [0.30, 0.30], [0.30, 0.30]]])
    found = of(aps, given=2)
    assert found.means.tolist() == pytest.approx(np.array([[0.3, 0.51, 0.51], [0.1, 0.3, 0.3]]))
    # Variances .02, .0002, 0: pooled over the two networks.
    assert found.spreads.tolist() == pytest.approx([0.1, 0.01, 0.01])
    assert found.deviations[0] == pytest.approx(np.sqrt((0.31**2 + 0.11**2 + 2 * 0.2**2) / 4))
    assert found.deviations[1:].tolist() == pytest.approx([np.sqrt(2 * 0.01**2 / 4)] * 2)
    assert found.tolerance == pytest.approx(0.02)
    assert found.enough == 2
    assert "from 2 up; with the run's 2 it varies by 0.0100" in found.line()


def test_enough_is_where_all_larger_numbers_are_too() -> None:
    steady = np.array([0.5, 0.51, 0.49, 0.5])
    off = steady + 0.2
    assert of(np.array([[steady, off, steady, steady]])).enough == 4
    assert of(np.array([[steady, steady, steady]])).enough == 1
    worst = of(np.array([[off, off, steady]]))
    assert worst.enough == 4 and "with fewer is not within" in worst.line()
    nothing = of(np.zeros((2, 3, 3)))
    assert nothing.enough == 1 and nothing.line().startswith("AP is 0 throughout")
    assert not any("enough" in row[-1] for row in nothing.rows())


def test_draws_that_share_images_are_marked() -> None:
    found = of(np.array([[[0.2, 0.4], [0.50, 0.52], [0.50, 0.52]]]), pool=3)
    assert [row[-1] for row in found.rows()] == ["", "enough, draws overlap", "the run's, all 3 there are"]


def test_it_is_read_back() -> None:
    found = made_up.sensitivity()
    value = json.loads(json.dumps(found.to_json()))
    back = Sensitivity.from_json(value)
    assert back.archs == found.archs and (back.aps == found.aps).all() and back.line() == found.line()
    with pytest.raises(RunError, match="not of format"):
        Sensitivity.from_json({**value, "format": 0})
    damages: list[dict[str, object]] = [{"aps": [[1.0]]}, {"counts": None}, {"archs": [{}]}]
    for damage in damages:
        with pytest.raises(RunError, match="damaged"):
            Sensitivity.from_json({**value, **damage})


def test_probes_are_the_ends_and_others_between() -> None:
    space = tiny.space()
    archs = probe_archs(space, 5, 1)
    assert len(set(archs)) == 5 and {space.smallest(), space.largest()} <= set(archs)
    macs = [space.cost(arch).macs for arch in archs]
    assert macs == sorted(macs) and probe_archs(space, 5, 1) == archs
    for wrong in (1, 513):
        with pytest.raises(InputError, match="2 to 512 networks"):
            probe_archs(space, wrong, 1)


def test_draws_are_disjoint_while_there_are_enough_images() -> None:
    pool = tiny.people(12)
    for count, disjoint in ((2, True), (4, True), (5, False), (12, False), (20, False)):
        draws = [set(draw.ids) for draw in draws_of(pool, count, 3, 0)]
        assert [len(draw) for draw in draws] == [min(count, 12)] * 3
        assert (len(set.union(*draws)) == 3 * count) == disjoint
    assert [d.ids for d in draws_of(pool, 4, 3, 0)] == [d.ids for d in draws_of(pool, 4, 3, 0)]
    assert [d.ids for d in draws_of(pool, 4, 3, 0)] != [d.ids for d in draws_of(pool, 4, 3, 1)]


def test_a_killed_measurement_goes_on_and_a_finished_one_is_kept(
    trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(folder: str, stop: int | None = None) -> tuple[Sensitivity, int]:
        if not (tmp_path / folder).exists():
            shutil.copytree(trained_once, tmp_path / folder)
        run, seen = RunDirectory.open(tmp_path / folder), 0
        own = SubnetEvaluator.evaluate

        def counted(self: object, *arguments: object) -> object:
            nonlocal seen
            if seen == stop:
                raise KeyboardInterrupt
            seen += 1
            return own(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(SubnetEvaluator, "evaluate", counted)
            return measure_sensitivity(run, networks=2, factors=(0.25, 1.0), draws=2), seen

    whole, evaluations = measure("whole")
    assert evaluations == 2 * 2 * 2 and whole.counts == (2, 8) and whole.aps.shape == (2, 2, 2)
    with pytest.raises(KeyboardInterrupt):
        measure("cut", stop=3)
    cut, evaluations = measure("cut")
    assert evaluations == 5
    assert cut.to_json() == whole.to_json()
    again, evaluations = measure("cut")
    assert evaluations == 0 and again.to_json() == whole.to_json()
    assert [path.name for path in (tmp_path / "cut" / "trust").iterdir()] == ["sensitivity.json"]


def test_nas_trust_tells_and_draws_it(trained: Path, nas_: Callable[..., Outcome]) -> None:
    few = [f"trust.{each}" for each in ("epochs=1", "archs=3", "resamples=100", "probes=2")]
    told = nas_("trust", trained, "--jobs", 1, *(word for each in few for word in ("--set", each)))
    assert told.code == 0, told.err
    # So short a training finds nobody, and that is told instead of a number of images that would do.
    assert "AP against calibration images" in told.out and "AP is 0 throughout" in told.out
    names = {path.name for path in (trained / "trust").iterdir()}
    assert names >= {
        f"{name}{suffix}" for name in ("trust", "sensitivity") for suffix in (".png", ".svg", ".json")
    }


def test_what_cannot_be_measured_is_refused(trained_once: Path) -> None:
    run = RunDirectory.open(trained_once)
    for wrong in ({"draws": 1}, {"factors": ()}, {"factors": (0.0, 1.0)}):
        with pytest.raises(InputError, match="at least 2 draws and positive factors"):
            measure_sensitivity(run, **wrong)
