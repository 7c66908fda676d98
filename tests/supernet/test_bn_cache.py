"""BN statistics that are kept: found again to the bit, never for another network, never in the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import supernet.evaluator
from search_spaces import Arch
from supernet import bn
from supernet.base import Subnet
from supernet.bn import recalibrate
from supernet.bn_cache import StatisticsCache
from supernet.evaluator import CalibrationImages, SubnetEvaluator
from supernet.pose.maps import EvalConfig
from tests.supernet import tiny


def evaluator(statistics: StatisticsCache | None, *, images: int = 6, seed: int = 0) -> SubnetEvaluator:
    return SubnetEvaluator(
        tiny.supernet(),
        CalibrationImages(tiny.people(), images, seed),
        tiny.people(4, 2),
        EvalConfig(64, multiple=32),
        statistics=statistics,
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The archs that were recalibrated, not found."""
    own, seen = recalibrate, list[str]()

    def counting(network: Subnet, *arguments: Any, **named: Any) -> int:
        seen.append(network.arch.id)
        return own(network, *arguments, **named)

    monkeypatch.setattr(supernet.evaluator, "recalibrate", counting)
    return seen


def archs(count: int = 2) -> list[Arch]:
    rng = np.random.default_rng(4)
    return [tiny.space().sample(rng) for _ in range(count)]


def same(first: Subnet, second: Subnet) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a if not name.endswith("num_batches_tracked"))


def test_statistics_are_found_again_to_the_bit(tmp_path: Path, counted: list[str]) -> None:
    one, other = archs()
    computed = evaluator(None).subnet(one)
    first = evaluator(StatisticsCache(tmp_path / "bn"))
    assert same(first.subnet(one), computed)
    counted.clear()
    second = evaluator(StatisticsCache(tmp_path / "bn"))  # another process, say
    found = second.subnet(one)
    assert counted == [] and same(found, computed) and not found.training
    second.subnet(other)
    assert counted == [other.id]


def test_evaluations_are_the_same(tmp_path: Path) -> None:
    (arch,) = archs(1)
    plain = evaluator(None).evaluate(arch)
    cache = StatisticsCache(tmp_path / "bn")
    for _ in range(2):
        assert evaluator(cache).evaluate(arch).detections == plain.detections


def test_anything_that_they_follow_from_makes_them_others(tmp_path: Path, counted: list[str]) -> None:
    (arch,) = archs(1)
    cache = StatisticsCache(tmp_path / "bn")
    evaluator(cache).subnet(arch)
    for other in (evaluator(cache, seed=1), evaluator(cache, images=5)):
        counted.clear()
        other.subnet(arch)
        assert counted == [arch.id]
    counted.clear()
    trained = evaluator(cache)
    trained.subnet(arch)
    assert counted == []
    with torch.no_grad():  # the least change of one weight
        weight = next(trained.supernet.parameters())
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    trained.subnet(arch)
    assert counted == [arch.id]
    counted.clear()
    with torch.no_grad():  # statistics of the supernet itself, which recalibration replaces, do not count
        for name, buffer in trained.supernet.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(1)
    trained.subnet(arch)
    assert counted == []


def test_those_of_another_algorithm_are_not_found(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may differ in their last bits from what would be computed."""
    (arch,) = archs(1)
    cache = StatisticsCache(tmp_path / "bn")
    evaluator(cache).subnet(arch)
    monkeypatch.setattr(bn, "ALGORITHM", bn.ALGORITHM + 1)
    counted.clear()
    evaluator(cache).subnet(arch)
    assert counted == [arch.id]


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, counted: list[str]) -> None:
    (arch,) = archs(1)
    cache = StatisticsCache(tmp_path / "bn")
    whole = evaluator(cache).subnet(arch)
    (path,) = (tmp_path / "bn").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    counted.clear()
    assert same(evaluator(cache).subnet(arch), whole)
    assert counted == [arch.id]
    counted.clear()
    evaluator(cache).subnet(arch)  # written anew
    assert counted == []


def test_a_place_that_is_not_there_keeps_nothing(tmp_path: Path) -> None:
    (arch,) = archs(1)
    evaluator(StatisticsCache(tmp_path / "no" / "bn")).subnet(arch)
    (tmp_path / "file").write_text("")
    evaluator(StatisticsCache(tmp_path / "file")).subnet(arch)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_those_not_asked_for_longest_are_dropped(tmp_path: Path, counted: list[str]) -> None:
    one, two, three = archs(3)
    cache = StatisticsCache(tmp_path / "bn")
    at = evaluator(cache)
    made = {}
    for arch in (one, two, three):
        before = set((tmp_path / "bn").glob("*"))
        network = at.subnet(arch)
        (made[arch.id],) = set((tmp_path / "bn").iterdir()) - before
    for seconds, path in enumerate(made.values(), start=10**9):
        os.utime(path, (seconds, seconds))
    at.subnet(one)  # asked for now
    cache.limit_bytes = sum(path.stat().st_size for path in made.values()) - 1
    cache.keep(network, cache.key(network, at.calibration.fingerprint))
    assert [path.exists() for path in made.values()] == [True, False, True]
    cache.limit_bytes = 0  # the one just made stays
    counted.clear()
    at.subnet(two)
    assert counted == [two.id] and len(list((tmp_path / "bn").iterdir())) == 1
