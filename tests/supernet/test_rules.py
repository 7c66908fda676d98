"""Rules against what their papers and their descriptions promise."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import InputError, SearchSpace, space_from_config
from supernet.rules import DRAWS, RULES, Draw, step_archs
from tests.supernet import tiny


@cache
def wide() -> SearchSpace:
    """Return a space of two to four values per choice."""
    base = {**tiny.SPACE["base"], "stages": [16, 32, 32, 32], "deconvs": [32, 32, 32]}
    return tiny.space(base=base, multipliers=[1, 0.75, 0.5, 0.25], expansions=[2, 3, 4])


def gene_draws(space: SearchSpace, draw: str, count: int) -> np.ndarray[Any, Any]:
    """Return genotypes of the whole space, (count, genes)."""
    sizes, rng = np.array(space.shape), np.random.default_rng(0)
    return np.array([DRAWS[draw](rng, np.zeros_like(sizes), sizes) for _ in range(count)])


@given(
    rule=st.sampled_from(sorted(RULES)),
    draw=st.sampled_from(sorted(DRAWS)),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 99),
    random_archs=st.integers(0, 4),
    full_share=st.floats(0, 0.99),
    largest_share=st.floats(0, 0.99),
)
def test_a_step_is_a_function_of_seed_and_step_and_of_the_space(
    rule: str, draw: str, seed: int, step: int, random_archs: int, full_share: float, largest_share: float
) -> None:
    space = wide()
    config = tiny.config(
        rule=rule,
        draw=draw,
        random_archs=random_archs,
        full_share=full_share,
        largest_share=largest_share,
    )
    resolution, archs = step_archs(space, seed, step, 100, config)
    assert (resolution, archs) == step_archs(space, seed, step, 100, config)
    assert resolution in (64, 96)
    assert archs and len(set(archs)) == len(archs)
    assert all(arch in space and arch["resolution"] == resolution for arch in archs)
    if rule == "sandwich":
        ends = [each.replace(resolution=resolution) for each in (space.largest(), space.smallest())]
        assert archs[:2] == ends and len(archs) <= 2 + random_archs
    else:
        assert len(archs) == 1
    if rule == "progressive" and step / 100 < full_share:
        assert archs == [space.largest().replace(resolution=resolution)]


def test_archs_at_random_are_the_draw_s() -> None:
    space = wide()
    for seed in range(30):
        drawn = {
            draw: Draw(space, np.random.default_rng(seed), 0.0, tiny.config(draw=draw)).arch()
            for draw in DRAWS
        }
        assert drawn["uniform"] == space.sample(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        level = rng.random()
        assert drawn["spread"] == space.decode(rng.binomial(np.array(space.shape) - 1, level))


@pytest.mark.parametrize("draw", sorted(DRAWS))
def test_every_value_of_every_choice_is_drawn_equally_often(draw: str) -> None:
    count = 3000
    drawn = gene_draws(wide(), draw, count)
    for place, choice in enumerate(wide().choices):
        size = len(choice.values)
        found = Counter(drawn[:, place].tolist())
        slack = 5 * math.sqrt((1 / size) * (1 - 1 / size) / count)
        for value in range(size):
            assert found[value] / count == pytest.approx(1 / size, abs=slack), (choice.name, value)


def test_spread_couples_choices_as_a_shared_level_does_and_uniform_does_not() -> None:
    """Of two choices of four values, given the level, each is Binomial(3, u): their correlation is 0.6."""
    sized = [i for i, c in enumerate(wide().choices) if len(c.values) == 4 and c.name != "resolution"]
    one, other = sized[:2]
    for draw, expected in (("uniform", 0.0), ("spread", 0.6)):
        drawn = gene_draws(wide(), draw, 3000)
        assert np.corrcoef(drawn[:, one], drawn[:, other])[0, 1] == pytest.approx(expected, abs=0.08), draw


def test_spread_covers_the_costs_that_uniform_hardly_ever_reaches() -> None:
    """The table of docs/training-rules.md."""
    expected = {
        ("litepose-native", "uniform"): (0.16, 0.42, 0.73),
        ("litepose-native", "spread"): (0.0, 0.42, 0.98),
        ("litepose-extended", "uniform"): (0.09, 0.21, 0.39),
        ("litepose-extended", "spread"): (0.0, 0.21, 0.92),
    }
    for (kind, draw), shares in expected.items():
        space = space_from_config({"kind": kind, "resolutions": [448]}, joints=14)
        macs = np.asarray(space.costs(gene_draws(space, draw, 3000)).macs, dtype=np.float64)
        least, most = (space.cost(each).macs for each in (space.smallest(), space.largest()))
        found = np.quantile((macs - least) / (most - least), [0.05, 0.5, 0.95])
        assert found == pytest.approx(shares, abs=0.03), (kind, draw)


@pytest.mark.parametrize("draw", sorted(DRAWS))
def test_progressive_opens_values_from_the_largest_down_under_both_draws(draw: str) -> None:
    space, steps = wide(), 500
    config = tiny.config(rule="progressive", draw=draw, full_share=0.2, largest_share=0.0)
    genes = np.array(
        [space.encode(step_archs(space, 1, step, steps, config)[1][0]) for step in range(100, steps)]
    )
    sizes = np.array(space.shape)
    widths = [i for i, choice in enumerate(space.choices) if len(choice.values) == 4]
    # All is open after half of the shrinking, 200 steps, of which each third opens another of four values.
    for begin, end, lowest in ((0, 66, 2), (67, 133, 1), (200, 400, 0)):
        assert (genes[begin:end, widths].min(axis=0) == lowest).all(), (begin, end)
    assert (genes[:, widths].max(axis=0) == sizes[widths] - 1).all()


def test_unknown_draws_are_refused() -> None:
    with pytest.raises(InputError, match=r"train\.draw: unknown 'spred'; did you mean 'spread'\?"):
        tiny.config(draw="spred")
