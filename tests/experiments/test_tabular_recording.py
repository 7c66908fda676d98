"""The script that records tables: which networks it takes, and that a stopped recording goes on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nas.search import Evaluation
from search_spaces import Arch, InputError, SearchSpace, litepose_extended, litepose_native
from tests.nas.problems import Analytic, small_space

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tabular", ROOT / "experiments" / "tabular.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tabular"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("space", "n"), [(small_space(), 40), (litepose_native(joints=14), 300)])
def test_networks_are_spread_over_the_range_of_macs(script: ModuleType, space: SearchSpace, n: int) -> None:
    drawn = script.stratified(space, n, 0)
    assert len(np.unique(drawn, axis=0)) == len(drawn) == n
    assert (script.stratified(space, n, 0) == drawn).all()
    assert (script.stratified(space, n, 1) != drawn).any()
    macs = space.costs(drawn).macs
    assert (macs.min(), macs.max()) == (space.cost(space.smallest()).macs, space.cost(space.largest()).macs)
    at_random = space.costs(space.sample_genotypes(np.random.default_rng(0), n)).macs
    quarters = np.histogram(np.log(macs), 4)[0]
    assert quarters.min() > np.histogram(np.log(at_random), 4, np.log([macs.min(), macs.max()]))[0].min()
    assert quarters.min() >= n / 10


def test_the_whole_of_a_space_and_a_huge_one(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    space = small_space()
    assert len(np.unique(script.stratified(space, space.count(), 0), axis=0)) == space.count()
    monkeypatch.setattr(script, "POOL", 500)
    assert len(script.stratified(litepose_extended(joints=14), 30, 0)) == 30
    for n in (1, 513):
        with pytest.raises(InputError, match=rf"--networks lies in 2\.\.512 for this space, not {n}"):
            script.stratified(space, n, 0)


def test_a_part_of_a_space(script: ModuleType) -> None:
    whole = litepose_native(joints=14)
    config = {"kind": "litepose-native", "joints": 14}
    part = script.part_of(whole, config, ["resolutions=[256]", "multipliers=[1, 0.5]"])
    genotypes = script.drawn(part, "all", 0)
    assert len(np.unique(genotypes, axis=0)) == part.count() == 256
    assert all(part.decode(genotype) in whole for genotype in genotypes)
    assert len(script.drawn(part, "20", 0)) == 20
    with pytest.raises(InputError, match=r"--space: 'resolution' would be \[192\], but the run's space has"):
        script.part_of(whole, config, ["resolutions=[192, 256]"])
    with pytest.raises(InputError, match="--networks is a number or 'all', not 'most'"):
        script.drawn(part, "most", 0)


def test_a_stopped_recording_goes_on(script: ModuleType, tmp_path: Path) -> None:
    class Stopped(Analytic):
        def evaluate(self, arch: Arch) -> Evaluation:
            if len(self.asked) == 5:
                raise KeyboardInterrupt
            return super().evaluate(arch)

    space, path = small_space(), tmp_path / "t.jsonl.gz"
    drawn = script.stratified(space, 12, 0)
    with pytest.raises(KeyboardInterrupt):
        script.record(path, "t", space, drawn, {"images": "x"}, {"seed": 0}, Stopped())
    assert not path.exists() and (tmp_path / "t.jsonl").exists()
    rest = Analytic()
    table = script.record(path, "t", space, drawn, {"images": "x"}, {"seed": 0}, rest)
    assert len(rest.asked) == 7
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert (table.genotypes == drawn).all()
    expected = [Analytic().evaluate(space.decode(genotype)).ap for genotype in drawn]
    assert table.aps.tolist() == expected


def test_folders_are_left_out_of_what_is_published(script: ModuleType) -> None:
    told = "92 of /home/me/my data/coco/val.json (12ab), {'multiple': 32}"
    assert script.PATHS.sub("", "92 of /home/me/coco/val.json (12ab)") == "92 of val.json (12ab)"
    assert "/home" not in script.PATHS.sub("", told)
    assert script.PATHS.sub("", "1/4 of 3 images") == "1/4 of 3 images"
