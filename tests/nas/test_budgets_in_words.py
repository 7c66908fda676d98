"""Budgets as people write them, what they mean, and what is said where they cannot be met."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables import Calibration, LatencyPredictor, LatencyTable, Target
from latency_tables.table import Row, find_table
from nas.latency import UpperEnd
from nas.search import (
    AP,
    MACS,
    PARAMS,
    SIZE,
    Budget,
    BudgetText,
    Constraint,
    Objective,
    Pricing,
    SearchResult,
    latency,
    parse_budget,
    parse_objectives,
)
from nas.search.budgets import parse_like, parse_min_ap
from nas.search.result import Record
from nas.search_report import error_bar, neighbours, out_of_reach
from search_spaces import BudgetError, InputError, get_arch, litepose_native, write_arch
from search_spaces.deconv import deconv_mbv2, deconv_mbv3
from tests.nas.problems import MacsPricer, small_space

SPACE = small_space()

# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs<=1G", BudgetText(max_macs="1G")),
        (
            " macs <= 1G ,latency@pixel4<=40ms, ap>=.4 , latency[pi] < 1s",
            BudgetText(max_macs="1G", max_latency=("40ms@pixel4", "1s@pi"), min_ap=".4"),
        ),
        ("Params<2M,size<=8MB", BudgetText(max_params="2M", max_size="8MB")),
        ("latency<=30ms", BudgetText(max_latency=("30ms",))),
        ("like litepose-s*0.8, ap >= 0.3", BudgetText(like="litepose-s*0.8", min_ap="0.3")),
        ("like=nets/a.json", BudgetText(like="nets/a.json")),
    ],
)
def test_budgets_are_read(text: str, expected: BudgetText) -> None:
    assert parse_budget(text) == expected
    assert expected and not BudgetText()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_budget("1G"), "takes bounds with commas between, .* not '1G'"),
        (lambda: parse_budget(""), "takes bounds with commas between, .* not ''"),
        (lambda: parse_budget("macs<=1G,"), "not '' as in 'macs<=1G,'"),
        (lambda: parse_budget("macs<="), "not 'macs<='"),
        (lambda: parse_budget("mac<=1G"), "unknown 'mac' in 'mac<=1G'; did you mean 'macs'"),
        (lambda: parse_budget("macs>=1G"), "states an upper bound: 'macs<=1G', not 'macs>=1G'"),
        (lambda: parse_budget("ap<=0.4"), "states a least AP: 'ap>=0.4', not 'ap<=0.4'"),
        (lambda: parse_budget("macs=1G"), "states an upper bound"),
        (lambda: parse_budget("macs@pi<=1G"), "only a latency has a target; 'macs' cannot have '@pi'"),
        (lambda: parse_budget("macs<=1G, macs<=2G"), "states macs twice"),
        (lambda: parse_budget("ap>=.1, ap>=.2"), "states ap twice"),
        (lambda: parse_budget("like a, like b"), "states like twice"),
        (
            lambda: parse_budget("latency@a<=1ms, latency@a<=2ms").budget(),
            "bounds the target 'a' twice",
        ),
        (lambda: parse_budget("macs<=fast").budget(), "--max-macs takes a number above 0 .* not 'fast'"),
        (lambda: parse_budget("latency@p<=1ms").budget(["pi"]), "unknown target 'p'"),
        (lambda: parse_min_ap("40"), "--min-ap takes an AP between 0 and 1 such as 0.40, not '40'"),
        (lambda: parse_min_ap("0"), "between 0 and 1"),
        (lambda: parse_min_ap("good"), "not 'good'"),
        (lambda: parse_min_ap("nan"), "not 'nan'"),
        (lambda: parse_like("litepose-z"), "--like: 'litepose-z' is neither .* did you mean 'litepose-"),
        (lambda: parse_like("litepose-s*"), "a factor above 0 such as litepose-s\\*0.8, not 'litepose-s\\*'"),
        (lambda: parse_like("litepose-s*0"), "a factor above 0"),
        (lambda: parse_like("litepose-s*inf"), "a factor above 0"),
        (lambda: parse_objectives(["mac"]), "--objective: unknown objective 'mac'; did you mean 'macs'"),
        (lambda: parse_objectives(["latency"]), "--objective: a latency objective names its target"),
        (lambda: parse_objectives(["macs@pi"]), "--objective: only a latency has a target"),
        (lambda: parse_objectives(["macs", "macs"]), "--objective macs stands twice"),
        (
            lambda: parse_budget("macs<=1G").with_common(BudgetText(max_macs="2G"), "--budget 'macs<=1G'"),
            "--budget 'macs<=1G' and --max-macs 2G state the same",
        ),
    ],
)
def test_nonsense_is_refused_with_the_way_out(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@given(
    macs=st.integers(1, 10**12),
    ms=st.integers(1, 10**5),
    ap=st.integers(1, 99),
    order=st.permutations(range(4)),
)
def test_a_budget_written_in_any_order_is_the_same(macs: int, ms: int, ap: int, order: list[int]) -> None:
    parts = [f"macs<={macs}", f"latency@pi<={ms}ms", f"ap>={ap / 100}", "like litepose-xs*0.5"]
    budget = parse_budget(", ".join(parts[i] for i in order)).budget(["pi"])
    assert budget.constraints == (Constraint(MACS, macs), Constraint(latency("pi"), ms))
    assert budget.min_ap == ap / 100
    assert budget.like is not None and (budget.like.name, budget.like.factor) == ("litepose-xs", 0.5)


def test_common_bounds_are_added() -> None:
    common = BudgetText(max_size="8MB", max_latency=("1s@pi",), min_ap="0.3")
    merged = parse_budget("macs<=1G, latency@pixel<=9ms").with_common(common, "it")
    assert merged == BudgetText("1G", None, "8MB", ("9ms@pixel", "1s@pi"), "0.3")


# -- what they mean ----------------------------------------------------------------------------------------


def test_what_is_traded_off_by_default_and_by_name() -> None:
    bound = {"macs": Constraint(MACS, 1e9), "size": Constraint(SIZE, 8e6), "ms": Constraint(latency("pi"), 9)}

    def traded(*names: str, wanted: tuple[Objective, ...] = ()) -> tuple[Objective, ...]:
        return Budget(tuple(bound[name] for name in names)).objectives(wanted)

    assert traded() == traded("macs") == traded("size") == (AP, MACS)
    assert traded("ms") == traded("size", "ms") == (AP, latency("pi"))
    assert traded("macs", "ms") == (AP, MACS, latency("pi"))
    assert traded("macs", wanted=(PARAMS, AP)) == (AP, PARAMS)
    assert traded("macs", wanted=(AP,)) == (AP,)
    assert parse_objectives(["latency@pi", "size"]) == (latency("pi"), SIZE)


def test_like_is_that_networks_cost_in_what_is_traded_off(tmp_path: Path) -> None:
    cost = get_arch("litepose-s").cost(14)
    like = parse_budget("like litepose-s*0.8").budget()
    assert like.settled((), 14, {}).constraints == (Constraint(MACS, 0.8 * cost.macs),)
    upper = {"pi": lambda arch: 50.0 if arch == get_arch("litepose-s") else 0.0}
    settled = like.settled((PARAMS, SIZE, latency("pi"), AP), 14, upper)
    assert settled.constraints == (
        *(Constraint(PARAMS, 0.8 * cost.params), Constraint(SIZE, 0.8 * 4 * cost.params)),
        Constraint(latency("pi"), 40.0),
    )
    assert settled.like is None and settled.settled((), 14, {}) is settled
    write_arch(tmp_path / "s.json", get_arch("litepose-s"))
    by_file = parse_like(f"{tmp_path / 's.json'} * 2").bounds([MACS], 14, {})
    assert by_file == (Constraint(MACS, 2.0 * cost.macs),)
    # Another bound is kept beside it; the same one twice is refused.
    beside = parse_budget("like litepose-s, size<=8MB").budget().settled((), 14, {})
    assert beside.constraints == (Constraint(MACS, float(cost.macs)), Constraint(SIZE, 8e6))
    with pytest.raises(InputError, match="like litepose-s bounds macs, which is bounded already"):
        parse_budget("like litepose-s, macs<=1G").budget().settled((), 14, {})


BOUNDED = (MACS, PARAMS, SIZE, latency("toy"))


@pytest.mark.parametrize(
    "costs",
    [each for n in (1, 2, 3, 4) for each in itertools.combinations(BOUNDED, n)],
    ids=lambda costs: "+".join(map(str, costs)),
)
def test_every_combination_that_cannot_be_met_names_one_that_can(costs: tuple[Objective, ...]) -> None:
    """Each bound alone, and all below what any network has together with the others."""

    class Opposed(MacsPricer):
        """The more weights, the faster: a latency that the other bounds work against."""

        def latency_ms(self, space: Any, genotypes: Any) -> np.ndarray:
            return 1e8 / np.asarray(space.costs(genotypes).params, dtype=np.float64)

    prices = Pricing(SPACE, [], [Opposed()]).prices(SPACE.genotypes())
    for share in (0.5, 1.0, 1.02):  # of the least of each: impossible; possible alone; with some slack
        bounds = [Constraint(o, share * float(prices[o].min())) for o in costs]
        possible = np.all([prices[c.objective] <= c.upper for c in bounds], axis=0)
        pricing = Pricing(SPACE, bounds, [Opposed()])
        if possible.any():
            assert pricing.feasible(pricing.prices(pricing.anchor[None])).all()
            continue
        with pytest.raises(BudgetError) as caught:
            _ = pricing.anchor
        message = str(caught.value)
        assert "\n" not in message
        together = "together, though each alone can be met" in message
        assert together == (share >= 1)
        # The numbers named are ones that a network has.
        named = re.findall(r"(?:is|(?<!<)=) ([\d.]+(?:e[+-]?\d+)?) (MMACs|GMACs|M parameters|MB|ms)", message)
        units = {"MMACs": 1e6, "GMACs": 1e9, "M parameters": 1e6, "MB": 1e6, "ms": 1.0}
        found = [float(value) * units[unit] for value, unit in named]
        objectives = costs if together else costs[:1]
        assert len(found) == len(objectives)
        meets = [prices[o] <= value for o, value in zip(objectives, found, strict=True)]
        assert np.all(meets, axis=0).any()


# -- the AP that is good enough ----------------------------------------------------------------------------


def records(*points: tuple[float, float]) -> SearchResult:
    """Return a result with networks of (AP, GMACs)."""
    archs = [SPACE.decode(genotype) for genotype in SPACE.genotypes(0, len(points))]
    found = tuple(
        Record(arch, int(macs * 1e9), 10**6, {}, True, i, 0, "sample", ap)
        for i, (arch, (ap, macs)) in enumerate(zip(archs, points, strict=True))
    )
    none: Any = ()
    return SearchResult("s", SPACE.name, 14, (AP, MACS), none, none, "random", 0, 9, "budget", 0, found)


POINTS = ((0.30, 0.4), (0.41, 0.7), (0.41, 0.6), (0.45, 0.9), (0.39, 0.5))


def test_the_cheapest_that_is_good_enough_is_chosen() -> None:
    result = records(*POINTS)
    assert result.best().ap == 0.45
    assert replace(result, min_ap=0.4).best().trial == 2
    assert replace(result, min_ap=0.42).best().trial == 3
    assert replace(result, min_ap=0.1).best().trial == 0
    assert replace(result, min_ap=0.4, objectives=(AP, PARAMS)).best().trial == 3  # equal cost: the better AP
    read = SearchResult.from_json(json.loads(json.dumps(replace(result, min_ap=0.4).to_json())))
    assert read == replace(result, min_ap=0.4)
    old = result.to_json()
    del old["min_ap"]
    assert SearchResult.from_json(old) == result


def test_an_ap_that_none_reaches_is_answered_with_the_best_and_its_cost() -> None:
    result = replace(records(*POINTS), min_ap=0.5)
    message = r"no evaluated network .*of {}.* reaches AP 0\.5: the best has {} and costs {} GMACs"
    with pytest.raises(BudgetError, match=message.format(5, r"0\.4500", r"0\.9")):
        result.best()
    with pytest.raises(BudgetError, match=message.format(2, r"0\.3900", r"0\.5")):
        result.best([Constraint(MACS, 0.55e9)])


@given(
    points=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 50)), min_size=1, max_size=20),
    least=st.integers(1, 99),
)
def test_no_cheaper_network_is_good_enough(points: list[tuple[int, int]], least: int) -> None:
    result = replace(records(*((ap / 100, macs / 10) for ap, macs in points)), min_ap=least / 100)
    enough = [r for r in result.evaluated if r.require_ap() >= least / 100]
    if not enough:
        with pytest.raises(BudgetError, match="reaches AP"):
            result.best()
        return
    assert result.best() == min(enough, key=lambda r: (r.macs, -r.require_ap(), r.trial))


def test_neighbours_are_next_on_the_front() -> None:
    front = records(*POINTS).front()
    assert [r.trial for r in front] == [0, 4, 2, 3]
    beside = neighbours(front[2], front, MACS)
    assert beside.cheaper is not None and beside.dearer is not None
    assert (beside.cheaper.cheaper.trial, beside.dearer.dearer.trial) == (4, 3)
    assert beside.words("cheaper") == "0.5 GMACs: -0.0200"
    assert beside.words("dearer") == "0.9 GMACs: +0.0400"
    assert beside.to_json()["dearer"]["difference"] == pytest.approx(0.04)
    assert beside.to_json()["dearer"]["tie"] is None  # resamples were not kept
    ends = [neighbours(front[i], front, MACS) for i in (0, -1)]
    assert ends[0].cheaper is None and ends[1].dearer is None
    assert ends[0].words("cheaper") == "none"


# -- error bars --------------------------------------------------------------------------------------------

PHONE = Target("pixel-9", "a phone", "litert", threads=4)


def predictor(half_width: float) -> LatencyPredictor:
    """Return one whose networks take 1 ms per million MACs, times or over ``exp(half_width)``."""
    rows = {}
    for layer in SPACE.distinct_layers():
        ms = max(layer.macs / 1e6, 1e-6)
        rows[layer] = Row(ms, ms, ms, 9, "measured-here", "a test")
    fit = Calibration(0.0, 1.0, 20, 0.01, 0.02, 0.01, half_width, 0.9)
    return LatencyPredictor(LatencyTable(PHONE, rows, calibration=fit))


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (0.89, None),  # even at its lower end the fastest network misses it: refused, without a doubt
        (0.95, "inside the error bar"),
        (1.05, "inside the error bar"),
        (1.12, "within the table's error bar"),
        (1.29, "within the table's error bar"),
        (1.33, None),  # the interval is 0.9 to 1.11 of the prediction, 0.21 wide
        (3.0, None),
    ],
)
def test_a_budget_within_a_tables_error_bar_is_flagged(factor: float, told: str | None) -> None:
    known = predictor(np.log(1 / 0.9))
    fastest = Pricing(SPACE, [], [UpperEnd(known)]).smallest(latency(PHONE.name)).value * 0.9
    budget = Constraint(latency(PHONE.name), factor * fastest)
    pricing = Pricing(SPACE, [budget], [UpperEnd(known)])
    found = error_bar(budget, pricing, {PHONE.name: known})
    assert (found is None) if told is None else (found is not None and told in found)
    if found is not None:
        assert f"{fastest:.4g} ms ({0.9 * fastest:.4g} to {fastest / 0.9:.4g})" in found
        assert f"of {budget.upper:.4g} ms on {PHONE.name}" in found and "\n" not in found
    possible = pricing.feasible_count()
    assert (possible == 0) == (factor < 1 / 0.9)
    assert error_bar(Constraint(MACS, 1e9), pricing, {PHONE.name: known}) is None


@pytest.mark.parametrize(
    ("least", "most", "factor", "told"),
    [
        (0.5, 2.0, 0.9, False),
        (0.5, 2.0, 50.0, False),  # no network of the space uses that up
        (3.0, 9.0, 0.9, True),
        (0.001, 0.01, 50.0, True),
    ],
)
def test_a_budget_beyond_the_measured_networks_is_flagged(
    least: float, most: float, factor: float, told: bool
) -> None:
    slowest = predictor(0.1).predict(SPACE.largest().blocks(SPACE.joints)).ms
    table = predictor(0.1).table
    assert table.calibration is not None
    reach = replace(table.calibration, least_ms=least * slowest, most_ms=most * slowest)
    known = LatencyPredictor(replace(table, calibration=reach))
    budget = Constraint(latency(PHONE.name), factor * slowest)
    found = out_of_reach(budget, Pricing(SPACE, [budget], [UpperEnd(known)]), {PHONE.name: known})
    assert (found is not None) == told
    if found is not None:
        assert found.startswith(f"networks that use up {budget.upper:.4g} ms on {PHONE.name} are beyond the ")
    assert out_of_reach(Constraint(MACS, 1e9), Pricing(SPACE), {}) is None


def test_a_table_that_has_not_seen_the_operators_or_the_family_is_flagged() -> None:
    """Rows of LitePose tell nothing of gates and hard-swish, also where the latency lies among theirs."""
    known = LatencyPredictor(find_table("raspberry-pi-4"))
    options: dict[str, Any] = {"resolutions": [384], "multipliers": [1], "depths": "base", "kernels": "base"}
    options |= {"expansions": "base", "last_widths": "base", "deconv_widths": [32, 256]}
    spaces = {
        "no row of the table has hard": deconv_mbv3(**options),
        "fitted on litepose, ": deconv_mbv2(**options),
        "": litepose_native(joints=17, resolutions=(384,)),
    }
    for why, space in spaces.items():
        latencies = known.predict(space.largest().blocks(17))
        budget = Constraint(latency(known.name), latencies.ms)
        assert known.beyond(latencies.ms) == ""
        found = out_of_reach(budget, Pricing(space, [budget], [UpperEnd(known)]), {known.name: known})
        assert (found is not None) == bool(why)
        if found is not None:
            assert found.startswith(f"latencies on {known.name} are guesses: {why}")


def test_a_sharp_table_flags_only_what_is_close() -> None:
    known = predictor(1e-4)
    pricing = Pricing(SPACE, [], [UpperEnd(known)])
    fastest = pricing.smallest(latency(PHONE.name)).value
    for factor, flagged in ((1.0001, True), (1.01, False)):
        budget = Constraint(latency(PHONE.name), factor * fastest)
        assert (error_bar(budget, pricing, {PHONE.name: known}) is not None) == flagged
