"""Choices of a space as pictures: what values are worth at equal cost, and what the front takes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.plot_choices import choice_marginals, cost_residuals, plot_choices
from nas.search import MACS, PARAMS, Constraint, SearchResult, search
from nas.search.importance import FEWEST, importances
from search_spaces import Arch, InputError, RunError, get_arch, litepose_native, space_from_config
from tests.nas.problems import Analytic, small_space

SPACE = small_space()


def result_of(tmp_path: Path, trials: int = 64) -> SearchResult:
    return search(
        SPACE, Analytic(), storage=tmp_path / "a.journal", trials=trials, population=8, sampler="random"
    )


def with_ap(result: SearchResult, ap: dict[str, float]) -> SearchResult:
    return replace(result, records=tuple(replace(r, ap=ap[r.arch.id]) for r in result.records))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return result_of(tmp_path_factory.mktemp("search"))


def values(svg: Path) -> list[str]:
    return [text.strip() for text in ElementTree.parse(svg).getroot().itertext() if text.strip()]


def test_what_cost_alone_buys_is_taken_out(result: SearchResult) -> None:
    def bought(arch: Arch) -> float:
        return 0.1 + 0.2 * np.log(SPACE.cost(arch).macs / 1e9)

    plain = with_ap(result, {r.arch.id: bought(r.arch) for r in result.records})
    assert cost_residuals(plain.evaluated, MACS) == pytest.approx(0.0, abs=1e-9)
    gifted = {
        r.arch.id: bought(r.arch) + (0.05 if r.arch["resolution"] == 320 else -0.05) for r in result.records
    }
    told = {each.name: each for each in choice_marginals(with_ap(result, gifted), MACS)}
    medians = {name: [np.median(v) for v in each.residuals.values()] for name, each in told.items()}
    gains = {name: max(found) - min(found) for name, found in medians.items()}
    assert max(gains, key=lambda name: gains[name]) == "resolution"
    assert medians["resolution"][1] - medians["resolution"][0] > 0.04
    # Held against another cost, residuals are others, and in all cases they average to none.
    assert cost_residuals(result.evaluated, PARAMS) != pytest.approx(cost_residuals(result.evaluated, MACS))
    assert cost_residuals(result.evaluated, PARAMS).mean() == pytest.approx(0, abs=1e-12)


def test_shares_are_counted(result: SearchResult) -> None:
    front = result.front(MACS)
    shown = choice_marginals(result, MACS)
    assert {each.name for each in shown} == {choice.name for choice in SPACE.searched}
    for each in shown:
        assert sum(each.evaluated.values()) == pytest.approx(1)
        assert list(each.evaluated) == list(each.front) == list(each.residuals) == sorted(each.residuals)
        for value, share in each.front.items():
            assert share == pytest.approx(sum(r.arch[each.name] == value for r in front) / len(front))
        assert sum(map(len, each.residuals.values())) == len(result.evaluated)
        assert each.importance is not None
    shares = [each.importance.share for each in shown if each.importance]
    assert shares == sorted(shares, reverse=True)
    bounded = choice_marginals(result, MACS, [Constraint(MACS, np.median([r.macs for r in front]))])
    assert bounded[0].front != shown[0].front


def test_few_networks_tell_less(result: SearchResult, tmp_path: Path) -> None:
    few = replace(result, records=result.records[: FEWEST - 1])
    assert all(each.importance is None for each in choice_marginals(few))
    (svg,) = plot_choices(few, tmp_path / "few.svg")
    assert any(f"cannot be told from {FEWEST - 1} networks" in text for text in values(svg))
    pair = replace(result, records=result.records[:2])
    assert cost_residuals(pair.evaluated, MACS).sum() == pytest.approx(0)
    one = replace(result, records=result.records[:1])
    assert choice_marginals(one) == () == choice_marginals(replace(result, records=()))
    with pytest.raises(RunError, match="do not differ, so there are no choices to draw"):
        plot_choices(one, tmp_path / "one")
    with pytest.raises(RunError, match="evaluated no network yet"):
        plot_choices(replace(result, records=()), tmp_path / "none")
    with pytest.raises(InputError, match=r"not as 'c\.pdf'"):
        plot_choices(result, tmp_path / "c.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["few.svg"]


def test_the_native_space_is_readable(tmp_path: Path) -> None:
    space = litepose_native(base=get_arch("litepose-s"), joints=17)
    found = search(
        space, Analytic(), storage=tmp_path / "a.journal", trials=40, population=20, sampler="random"
    )
    (svg,) = plot_choices(found, tmp_path / "choices.svg", title="mine")
    shown = values(svg)
    assert "mine" in shown and shown.index("mine") < shown.index("median")
    for choice in space.searched:
        assert choice.name in shown
    for fixed in ("stage0.kernel", "stage0.depth", "head.deconv0.kernel"):
        assert fixed not in shown
    (again,) = plot_choices(found, tmp_path / "again.svg", title="mine")
    assert again.read_bytes() == svg.read_bytes()


def test_a_part_that_may_be_absent_counts_once(tmp_path: Path) -> None:
    """Of a third deconv step, which has neither width nor kernel where absent, the kernel is worth nothing.

    Its absence shows in both values, but is a matter of the first alone.
    """
    space = space_from_config(
        {"kind": "deconv-mbv2", "base": "deconv-reduced", "resolutions": [128, 192], "multipliers": [1]}
        | {"depths": "base", "kernels": "base", "expansions": "base", "last_widths": "base"}
        | {"deconvs": [2, 3], "deconv_widths": [32, 64], "deconv_kernels": [2, 4]}
    )
    options = {"storage": tmp_path / "a.journal", "trials": 60, "population": 10, "sampler": "random"}
    found = search(space, Analytic(), **options)  # by widths and resolution
    told = importances(found.evaluated)
    assert told is not None
    assert list(told.choices["head.deconv2.width"].effects) == [0, 32, 64]
    assert list(told.choices["head.deconv2.kernel"].effects) == [2, 4]
    assert told.choices["head.deconv2.kernel"].share < 0.01 < 0.2 < told.choices["head.deconv2.width"].share
    shown = {each.name: each for each in choice_marginals(found)}
    assert list(shown["head.deconv2.kernel"].residuals) == [2, 4]
    absent = sum(record.arch["head.deconv2.width"] == 0 for record in found.evaluated)
    assert len(shown["head.deconv2.width"].residuals[0]) == absent > 0
    assert sum(map(len, shown["head.deconv2.kernel"].residuals.values())) == 60 - absent
    (path,) = plot_choices(found, tmp_path / "choices.png")
    assert path.is_file()
