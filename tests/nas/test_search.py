"""The search engine: budgets, every sampler's contract, what is never evaluated, what survives a kill."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.pareto import hypervolume
from nas.search import (
    AP,
    MACS,
    PARAMS,
    SAMPLERS,
    SIZE,
    Constraint,
    Evaluation,
    Objective,
    Pricing,
    Progress,
    SearchResult,
    latency,
    parse_constraints,
    parse_latency,
    parse_quantity,
    parse_size,
    search,
)
from nas.search import pricing as pricing_module
from nas.search import store as store_module
from search_spaces import (
    Arch,
    BudgetError,
    Genotypes,
    InputError,
    MissingLayerError,
    RunError,
    SearchSpace,
    get_arch,
    litepose_extended,
    litepose_native,
    space_from_config,
)
from tests.full_disk import room_for
from tests.nas.problems import Analytic, MacsPricer, Staged, analytic_ap, small_space

SPACE = small_space()
EVERYTHING = SPACE.genotypes()
BUDGET = Constraint(MACS, 0.7e9)
HEADS = {
    **{"kind": "deconv-mbv2", "base": "deconv-reduced", "joints": 14, "resolutions": [128]},
    **{"multipliers": [1], "depths": "base", "kernels": "base", "expansions": "base", "last_widths": "base"},
    **{"deconvs": [2, 3], "deconv_widths": [64, 32], "deconv_kernels": [2, 4]},
}


def run(storage: Path, evaluator: Any = None, **options: Any) -> SearchResult:
    settings: dict[str, Any] = {"trials": 24, "population": 8, "constraints": (BUDGET,), "seed": 3, **options}
    return search(SPACE, evaluator or Analytic(), storage=storage, **settings)


class Crash(BaseException):
    """The process ends here, as far as the search can tell."""


def course(result: SearchResult) -> list[tuple[Any, ...]]:
    """Everything that happened, but for trial numbers (a generation asked again takes new ones)."""
    return [(r.arch.id, r.ap, r.generation, r.origin, r.macs, r.feasible) for r in result.records]


def study_of(storage: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(storage))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


def trials_of(storage: Path) -> list[optuna.trial.FrozenTrial]:
    return study_of(storage).trials


# -- text that people write ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5G", 1_500_000_000), ("300M", 300_000_000), ("800k", 800_000), ("1e9", 10**9), (" 2 b ", 2 * 10**9)],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@given(st.integers(1, 999_999), st.sampled_from(["", "k", "M", "G"]))
def test_whole_quantities_are_exact(number: int, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") == number * 1000 ** ["", "k", "M", "G"].index(suffix)


def test_sizes_and_latencies() -> None:
    assert parse_size("2.5MB") == 2_500_000
    assert parse_size("1MiB") == 2**20
    assert parse_latency("30ms@pixel4-gpu") == (30.0, "pixel4-gpu")
    assert parse_latency("0.5s @ pi", targets=["pi"]) == (500.0, "pi")
    assert parse_latency("800µs", targets=["pi"]) == (pytest.approx(0.8), "pi")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_quantity("fast", "--max-macs"), "--max-macs takes a number above 0 .* not 'fast'"),
        (lambda: parse_quantity("-1G", "--max-macs"), "--max-macs .* not '-1G'"),
        (lambda: parse_quantity("0", "--max-macs"), "--max-macs .* not '0'"),
        (lambda: parse_quantity("1e400", "--max-macs"), "--max-macs .* not '1e400'"),
        (lambda: parse_quantity("1e30", "--max-macs"), "--max-macs .* '1e30'"),
        (
            lambda: parse_quantity("3X", "--max-params"),
            "--max-params takes the suffixes .* not 'x'",
        ),
        (lambda: parse_size("3ms", "--max-size"), "--max-size takes the suffixes .* not 'ms'"),
        (lambda: parse_latency("30@pi", "--max-latency"), "--max-latency takes a duration .* not '30@pi'"),
        (lambda: parse_latency("30ms", "--max-latency"), "--max-latency names the target"),
        (lambda: parse_latency("30ms@", targets=["pi"]), "names the target"),
        (lambda: parse_latency("30ms@p1", targets=["pi4", "tpu"]), "unknown target 'p1'; known: pi4, tpu"),
        (lambda: parse_constraints(max_latency=["1ms@a", "2ms@a"]), "bounds the target 'a' twice"),
        (lambda: Objective.parse("mac"), "unknown objective 'mac'; did you mean 'macs'"),
        (lambda: Objective.parse("latency"), r"names its target: latency\[TARGET\]"),
        (lambda: Objective.parse("macs[pi]"), "only a latency has a target"),
        (lambda: Constraint(AP, 0.5), "bounds a cost"),
        (lambda: Constraint(MACS, float("nan")), "above 0, not nan"),
    ],
)
def test_malformed_budgets_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_constraints_of_all_options() -> None:
    found = parse_constraints(max_macs="1.5G", max_params="3M", max_size="8MB", max_latency=["30ms@pi"])
    assert found == (
        *(Constraint(MACS, 1.5e9), Constraint(PARAMS, 3e6), Constraint(SIZE, 8e6)),
        Constraint(latency("pi"), 30.0),
    )
    assert [str(c) for c in found][::3] == ["macs <= 1.5 GMACs", "latency[pi] <= 30 ms"]


@pytest.mark.parametrize("objective", [AP, MACS, PARAMS, SIZE, latency("pixel4 gpu/fp16")])
def test_objectives_are_read_back(objective: Objective) -> None:
    assert Objective.parse(str(objective)) == objective


# -- pricing ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["priced whole", "too large"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of drawing, on the same space, whose answers are known."""
    if request.param == "too large":
        monkeypatch.setattr(pricing_module, "EXACT_LIMIT", 10)
    return str(request.param)


def test_samples_meet_the_budget_are_distinct_and_new(limit: str) -> None:
    pricing = Pricing(SPACE, [BUDGET, Constraint(latency("toy"), 13.0)], [MacsPricer()])
    rng = np.random.default_rng(0)
    seen: set[bytes] = set()
    for n in (1, 5, 20):
        drawn = pricing.sample(rng, n, seen)
        keys = {pricing_module.key(genotype) for genotype in drawn}
        assert len(keys) == len(drawn) == n
        assert not keys & seen
        assert pricing.feasible(pricing.prices(drawn)).all()
        seen |= keys


def test_every_feasible_network_can_be_drawn(limit: str) -> None:
    pricing = Pricing(SPACE, [Constraint(MACS, 0.42e9)])
    everything = SPACE.genotypes()
    expected = int((SPACE.costs(everything).macs <= 0.42e9).sum())
    drawn = pricing.sample(np.random.default_rng(0), expected + 7, set())
    if limit == "priced whole":
        assert len(drawn) == expected == pricing.feasible_count()
    assert 0.8 * expected <= len(drawn) <= expected


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_a_draw_within_a_budget_is_like_one_by_rejection_in_a_huge_space_too(share: float) -> None:
    space, rng, n = litepose_extended(joints=14), np.random.default_rng(0), 400
    everything = space.sample_genotypes(rng, 60_000)
    macs = space.costs(everything).macs
    budget = float(np.quantile(macs, share))
    within = everything[macs <= budget]
    drawn = Pricing(space, [Constraint(MACS, budget)]).sample(rng, n, set())

    def unlike(one: Genotypes, other: Genotypes) -> float:
        """Total variation between two samples' values of a gene, the mean over genes."""
        apart = 0.0
        for gene, size in enumerate(space.shape):
            counts = [np.bincount(sample[:, gene], minlength=size) for sample in (one, other)]
            apart += 0.5 * np.abs(counts[0] - counts[1]).sum() / n
        return apart / len(space.shape)

    assert unlike(drawn, within[n : 2 * n]) < 1.5 * unlike(within[:n], within[n : 2 * n])
    ours, theirs = (np.quantile(space.costs(g).macs, [0.25, 0.5, 0.75]) for g in (drawn, within))
    np.testing.assert_allclose(ours, theirs, rtol=0.08)


def test_a_tight_budget_in_a_huge_space_needs_no_luck() -> None:
    space = litepose_extended(joints=14)
    assert space.count() > 10**12
    pricing = Pricing(space, [])
    least = pricing.smallest(MACS)
    assert not least.exact
    assert least.value <= space.cost(space.smallest()).macs
    # Far fewer than one random network in a million meets this.
    tight = Pricing(space, [Constraint(MACS, 1.1 * least.value)])
    started = time.perf_counter()
    drawn = tight.sample(np.random.default_rng(0), 40, set())
    assert time.perf_counter() - started < 20
    assert len({pricing_module.key(g) for g in drawn}) == 40
    assert tight.feasible(tight.prices(drawn)).all()


def test_the_smallest_is_the_smallest(limit: str) -> None:
    @dataclass(frozen=True)
    class Apart(MacsPricer):
        """The number of genes unlike those of a network that no descent begins at."""

        def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> np.ndarray:
            return 1.0 + (genotypes != EVERYTHING[300]).sum(axis=1)

    pricing = Pricing(SPACE, pricers=[MacsPricer(), Apart("apart")])
    prices = pricing.prices(SPACE.genotypes())
    for objective in pricing.objectives:
        least = pricing.smallest(objective)
        assert least.value == prices[objective].min()
        assert pricing.prices(least.genotype[None])[objective][0] == least.value


def test_neighbours_differ_from_a_parent() -> None:
    pricing = Pricing(SPACE)
    parents = SPACE.genotypes(0, 3)
    mutants = pricing.neighbours(parents, np.random.default_rng(0), 200)
    changed = (mutants[:, None, :] != parents[None]).any(axis=2)
    assert changed.all() or not (mutants == parents[:, None]).all(axis=2).all(axis=0).any()
    assert ((mutants >= 0) & (mutants < np.array(SPACE.shape))).all()
    assert len(np.unique(mutants, axis=0)) > 20


@pytest.mark.parametrize(
    ("objective", "value", "near", "up"),
    [
        (MACS, 1_247_879_168, "1.248 GMACs", "1.248 GMACs"),
        (MACS, 1_234_100_001, "1.234 GMACs", "1.235 GMACs"),
        (MACS, 24_700_300, "24.7 MMACs", "24.71 MMACs"),
        (MACS, 99_999_999, "100 MMACs", "100 MMACs"),
        (latency("pi"), 2.4101, "2.41 ms", "2.411 ms"),
        (latency("pi"), 2.41, "2.41 ms", "2.41 ms"),
        (PARAMS, 2_353_496, "2.353 M parameters", "2.354 M parameters"),
    ],
)
def test_values_are_told_with_four_digits_and_upwards_where_they_are_advice(
    objective: Objective, value: float, near: str, up: str
) -> None:
    assert objective.format(value).startswith(near.split(" ")[0])
    assert objective.format(value, up=True).startswith(up.split(" ")[0])
    assert objective.format(value).split(" ")[1][:2] == near.split(" ")[1][:2]


def test_a_result_s_front_is_over_the_cost_that_was_searched(tmp_path: Path) -> None:
    class Opposed(MacsPricer):
        """The more MACs, the faster."""

        def latency_ms(self, space: SearchSpace, genotypes: Any) -> Any:
            return 1e3 - super().latency_ms(space, genotypes)

    by_latency = run(
        tmp_path / "a.journal", trials=20, objectives=(AP, latency("toy")), pricers=[Opposed("toy")]
    )
    assert by_latency.axis() == latency("toy")
    assert by_latency.front() == by_latency.front("latency[toy]") != by_latency.front("macs")
    assert (by_latency.hypervolumes() == by_latency.hypervolumes("latency[toy]")).all()
    assert run(tmp_path / "b.journal", trials=4).axis() == MACS
    read = SearchResult.from_json(json.loads(json.dumps(by_latency.to_json())))
    assert read == by_latency


def test_an_impossible_budget_names_the_smallest_and_evaluates_nothing(limit: str, tmp_path: Path) -> None:
    evaluator = Analytic()
    smallest = SPACE.cost(SPACE.smallest()).macs
    with pytest.raises(BudgetError, match=r"meets macs <= 0\.1 GMACs: the smallest achievable is") as caught:
        run(tmp_path / "study.journal", evaluator, constraints=[Constraint(MACS, 1e8)])
    told = MACS.format(smallest, up=True)
    assert f"the smallest achievable is {told}" in str(caught.value)
    assert f"by the network {SPACE.smallest().id} at {SPACE.smallest()['resolution']} px" in str(caught.value)
    # The number told is a budget that can be met.
    (budget,) = parse_constraints(max_macs=told.removesuffix("MACs").replace(" ", ""))
    assert budget.holds(smallest)
    assert ("descent" in str(caught.value)) == (limit == "too large")
    assert not evaluator.asked
    assert not list(tmp_path.iterdir())


def test_budgets_that_exclude_each_other_are_refused_together(limit: str, tmp_path: Path) -> None:
    class Opposed(MacsPricer):
        """Faster the more is computed."""

        def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> np.ndarray:
            return 1e10 / space.costs(genotypes).macs

    constraints = [Constraint(MACS, 0.4e9), Constraint(latency("toy"), 10.0)]
    with pytest.raises(BudgetError, match="together, though each alone can be met; the nearest has macs = "):
        run(tmp_path / "s.journal", constraints=constraints, pricers=[Opposed()])


def test_a_missing_layer_comes_through(tmp_path: Path) -> None:
    class Lacking(MacsPricer):
        def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> np.ndarray:
            raise MissingLayerError("the table 'toy' lacks conv 3x3")

    with pytest.raises(MissingLayerError, match="lacks conv 3x3"):
        run(tmp_path / "s.journal", pricers=[Lacking()])


def test_a_table_that_prices_nothing_is_refused(tmp_path: Path) -> None:
    class Free(MacsPricer):
        def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> np.ndarray:
            return np.zeros(len(genotypes))

    with pytest.raises(InputError, match="'toy' prices a network at 0 ms"):
        run(tmp_path / "s.journal", pricers=[Free()])


# -- the contract of every sampler -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", list(SAMPLERS))
class TestEverySampler:
    def test_uses_the_budget_without_repetition_and_within_bounds(self, sampler: str, tmp_path: Path) -> None:
        evaluator = Analytic()
        objectives = (AP, MACS, latency("toy"))
        result = run(
            tmp_path / "s.journal", evaluator, sampler=sampler, objectives=objectives, pricers=[MacsPricer()],
            trials=50,
        )  # fmt: skip
        assert result.stopped == "budget"
        assert len(evaluator.asked) == len(set(evaluator.asked)) == len(result.evaluated) == 50
        for record in result.evaluated:
            assert record.macs <= BUDGET.upper
            assert record.ap == analytic_ap(record.arch)
            assert (record.macs, record.params) == (
                SPACE.cost(record.arch).macs,
                SPACE.cost(record.arch).params,
            )
        assert all(r.macs > BUDGET.upper and r.ap is None for r in result.infeasible)
        with pytest.raises(RunError, match="priced only"):
            replace(result.evaluated[0], ap=None).require_ap()

    def test_the_same_seed_gives_the_same_search(self, sampler: str, tmp_path: Path) -> None:
        first = run(tmp_path / "a.journal", sampler=sampler)
        assert first == run(tmp_path / "b.journal", sampler=sampler)
        other = run(tmp_path / "c.journal", sampler=sampler, seed=4)
        assert (course(other) != course(first)) == (sampler != "exhaustive")

    def test_a_finished_search_is_read_back_without_evaluating(self, sampler: str, tmp_path: Path) -> None:
        first = run(tmp_path / "a.journal", sampler=sampler)
        evaluator = Analytic()
        assert run(tmp_path / "a.journal", evaluator, sampler=sampler) == first
        assert not evaluator.asked

    def test_more_trials_go_on_from_there(self, sampler: str, tmp_path: Path) -> None:
        first = run(tmp_path / "a.journal", sampler=sampler, trials=13)
        evaluator = Analytic()
        second = run(tmp_path / "a.journal", evaluator, sampler=sampler, trials=30)
        assert len(evaluator.asked) == 17
        assert len(second.evaluated) == 30
        assert course(second)[: len(first.records)] == course(first)

    def test_stops_when_nothing_new_is_left(self, sampler: str, tmp_path: Path) -> None:
        budget = Constraint(MACS, 0.42e9)
        evaluator = Analytic()
        result = run(tmp_path / "a.journal", evaluator, sampler=sampler, trials=10_000, constraints=[budget])
        affordable = {a.id for a in SPACE if SPACE.cost(a).macs <= budget.upper}
        assert result.stopped == "exhausted"
        assert Counter(evaluator.asked) == Counter(affordable)

    def test_an_interrupted_search_ends_as_it_would_have_ended(self, sampler: str, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"sampler": sampler, "early_stop": True, "trials": 33}
        whole = run(tmp_path / "whole.journal", Staged(), **settings)

        class Killed(Staged):
            def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
                if len(self.asked) == 9:
                    raise Crash
                return super().evaluate(arch, rival)

        for _ in range(3):
            with pytest.raises(Crash):
                run(tmp_path / "cut.journal", Killed(), **settings)
        resumed = run(tmp_path / "cut.journal", Staged(), **settings)
        assert course(resumed) == course(whole)
        assert len(resumed.evaluated) + len(resumed.partial) == 33

    def test_heads_of_two_and_of_three_deconv_steps_are_one_space(self, sampler: str, tmp_path: Path) -> None:
        """A gene that sets two values of an arch goes through proposals, the journal and back."""
        space = space_from_config(HEADS)
        bound = Constraint(MACS, float(np.median(space.costs(space.genotypes()).macs)))
        affordable = {arch.id for arch in space if space.cost(arch).macs <= bound.upper}
        settings: dict[str, Any] = {"trials": 1000, "population": 8, "constraints": [bound], "seed": 3}
        evaluator = Analytic()
        storage, whole = tmp_path / "a.journal", {"sampler": sampler, **settings}
        result = search(space, evaluator, storage=storage, **whole)
        assert result.stopped == "exhausted"
        assert Counter(evaluator.asked) == Counter(affordable)
        steps = Counter(record.arch["head.deconv2.width"] == 0 for record in result.evaluated)
        assert steps[True] > 0 < steps[False]
        again = Analytic()
        assert search(space, again, storage=storage, **whole).evaluated == result.evaluated
        assert not again.asked

    def test_one_objective_and_a_space_too_large_to_be_priced_whole(
        self, sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pricing_module, "EXACT_LIMIT", 10)
        monkeypatch.setattr(pricing_module, "_SAMPLE_ROUNDS", 2)  # more are in vain: the space is small
        settings: dict[str, Any] = {"sampler": sampler, "objectives": [AP], "pricers": [MacsPricer()]}
        settings["constraints"] = [BUDGET, Constraint(latency("toy"), 14.0)]
        if sampler == "exhaustive":
            with pytest.raises(InputError, match="'exhaustive' goes through spaces of up to"):
                run(tmp_path / "a.journal", **settings)
            return
        result = run(tmp_path / "a.journal", **settings)
        assert len({record.arch.id for record in result.evaluated}) == 24
        assert all(c.holds(r.value(c.objective)) for r in result.evaluated for c in settings["constraints"])

    def test_given_archs_come_first(self, sampler: str, tmp_path: Path) -> None:
        seeds = [SPACE.smallest(), SPACE.largest(), get_arch("litepose-xs")]
        result = run(tmp_path / "a.journal", sampler=sampler, seeds=seeds, trials=10)
        assert result.evaluated[0].arch == SPACE.smallest()
        assert result.evaluated[0].origin == "seed"
        (dear,) = [r for r in result.records if r.arch == SPACE.largest()]
        assert (dear.feasible, dear.ap, dear.origin) == (False, None, "seed")
        assert len(result.evaluated) == 10

    def test_no_more_given_archs_are_evaluated_than_asked_for(self, sampler: str, tmp_path: Path) -> None:
        drawn = [SPACE.sample(np.random.default_rng(i)) for i in range(3)]
        seeds = [SPACE.largest(), SPACE.smallest(), *drawn]
        settings: dict[str, Any] = {"sampler": sampler, "seeds": seeds, "constraints": ()}
        first = run(tmp_path / "a.journal", trials=2, **settings)
        assert [r.arch for r in first.evaluated] == seeds[:2]
        second = run(tmp_path / "a.journal", trials=10, **settings)
        assert [r.arch for r in second.evaluated[:5]] == seeds
        assert [r.origin == "seed" for r in second.evaluated] == [True] * 5 + [False] * 5

    def test_the_study_says_what_each_trial_was(self, sampler: str, tmp_path: Path) -> None:
        result = run(tmp_path / "a.journal", sampler=sampler, trials=60)
        trials = trials_of(tmp_path / "a.journal")
        status = Counter(trial.user_attrs["status"] for trial in trials)
        assert status["evaluated"] == 60
        assert status["duplicate"] == result.duplicates
        for trial in trials:
            violated = trial.constraints["macs"] > 0
            assert violated == (trial.user_attrs["status"] == "infeasible")
            if trial.user_attrs["status"] == "evaluated":
                assert trial.values == [trial.user_attrs["result"]["ap"], trial.user_attrs["costs"]["macs"]]
            elif violated:
                assert trial.values[0] == store_module.NOT_EVALUATED_AP
            else:
                assert trial.state == optuna.trial.TrialState.PRUNED
                original = trials[trial.user_attrs["duplicate_of"]]
                assert original.user_attrs["arch"] == trial.user_attrs["arch"]


def test_nsga2_proposes_repeats_and_infeasible_offspring_that_cost_nothing(tmp_path: Path) -> None:
    """Without this the two guarantees above would hold for want of temptation."""
    result = run(tmp_path / "a.journal", trials=60, sampler="nsga2")
    assert result.duplicates > 0
    assert result.infeasible
    assert {r.origin for r in result.evaluated} >= {"sample", "offspring", "mutation"}


def test_parents_are_listed_alike_the_first_time_and_when_asked_again(tmp_path: Path) -> None:
    run(tmp_path / "a.journal", sampler="nsga2", trials=40)
    study = study_of(tmp_path / "a.journal")
    sampler: Any = SAMPLERS["nsga2"].optuna_sampler(8, seed=0)
    for generation in (1, 2):
        kept = [trial.number for trial in sampler.get_parent_population(study, generation)]
        assert [trial.number for trial in sampler.select_parent(study, generation)] == kept
        assert len(kept) == 8


def test_every_generation_has_a_seed_of_its_own(tmp_path: Path) -> None:
    class Listening(type(SAMPLERS["nsga2"])):  # type: ignore[misc]
        name = "listening"

        def optuna_sampler(self, population: int, seed: int) -> optuna.samplers.BaseSampler:
            seeds.append(seed)
            return super().optuna_sampler(population, seed)

    seeds: list[int] = []
    run(tmp_path / "a.journal", sampler=Listening(), trials=40)
    assert len(set(seeds)) == len(seeds) == 5
    run(tmp_path / "b.journal", sampler=Listening(), trials=8, seed=4)
    assert seeds[5] not in seeds[:5]


def test_guided_beats_nsga2_with_half_the_evaluations_and_nsga2_beats_random(tmp_path: Path) -> None:
    """On the native space of 245,760 networks."""
    space = litepose_native(joints=14)
    bound = float(space.cost(space.largest()).macs)

    def volume(sampler: str, seed: int, trials: int) -> float:
        storage = tmp_path / f"{sampler}{seed}.journal"
        result = search(space, Analytic(), storage=storage, trials=trials, sampler=sampler, seed=seed)
        points = [(r.macs, r.require_ap()) for r in result.evaluated]
        return hypervolume(points, (bound, 0.0), ("minimize", "maximize"))

    guided = [volume("guided", seed, 48) for seed in range(2)]
    nsga2 = [volume("nsga2", seed, 150) for seed in range(2)]
    assert min(guided) > max(nsga2)
    assert sum(nsga2) > sum(volume("random", seed, 150) for seed in range(2))


def test_the_true_front_is_found_when_the_space_is_searched_through(tmp_path: Path) -> None:
    space = litepose_native(
        base=get_arch("litepose-xs"), joints=14, resolutions=(256,), multipliers=(1.0, 0.5)
    )
    result = search(space, Analytic(), storage=tmp_path / "a.journal", trials=space.count(), population=64)
    macs = space.costs(space.genotypes()).macs
    aps = [analytic_ap(arch) for arch in space]
    best, expected = -1.0, []
    for i in sorted(range(len(macs)), key=lambda i: (macs[i], -aps[i])):
        if aps[i] > best:
            best = aps[i]
            expected.append((int(macs[i]), aps[i]))
    assert len(expected) > 5
    assert [(r.macs, r.ap) for r in result.front("macs")] == expected
    assert result.best().ap == max(aps)


def test_one_objective_under_two_budgets(tmp_path: Path) -> None:
    constraints = [BUDGET, Constraint(latency("toy"), 12.0)]
    result = run(
        tmp_path / "a.journal", objectives=[AP], constraints=constraints, pricers=[MacsPricer()], trials=30
    )
    assert all(c.holds(r.value(c.objective)) for r in result.evaluated for c in constraints)


def test_a_space_of_one_network_is_searched_too(tmp_path: Path) -> None:
    space = litepose_native(joints=14, resolutions=(256,), multipliers=(0.5,))
    assert space.count() == 1
    result = search(space, Analytic(), storage=tmp_path / "a.journal", trials=5)
    assert (len(result.evaluated), result.stopped) == (1, "exhausted")


def test_progress_counts_up(tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(tmp_path / "a.journal", progress=seen.append, trials=10)
    assert [p.evaluated for p in seen] == list(range(11))
    assert seen[0].latest is None
    assert seen[0].best_ap is None
    for before, after in itertools.pairwise(seen):
        assert after.latest is not None
        assert after.best_ap == max(before.best_ap or 0.0, after.latest.require_ap())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is a whole number from 1 up, not 0"),
        ({"population": 1}, "population .* not 1"),
        ({"seed": -1}, "seed .* not -1"),
        ({"sampler": "nsga3"}, "unknown sampler 'nsga3'; did you mean 'nsga2'"),
        ({"objectives": [MACS]}, "objectives are ap and any costs"),
        ({"objectives": [AP, latency("pi")]}, r"latency\[pi\] needs a latency table"),
        ({"constraints": [BUDGET, BUDGET]}, "each cost is bounded once"),
        ({"seeds": [get_arch("litepose-l")]}, "the arch is not in this litepose-native space"),
        ({"pricers": [MacsPricer(), MacsPricer()]}, "priced once"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "a.journal", **options)
    assert not (tmp_path / "a.journal").exists()


@pytest.mark.parametrize("ap", [-1.0, float("nan"), float("inf")])
def test_an_ap_that_is_none_is_refused_and_not_stored(ap: float, tmp_path: Path) -> None:
    class Broken(Analytic):
        def evaluate(self, arch: Arch) -> Evaluation:
            return Evaluation(ap)

    with pytest.raises(RunError, match="AP is a number from 0 up"):
        run(tmp_path / "a.journal", Broken())
    assert len(run(tmp_path / "a.journal").evaluated) == 24


# -- results ---------------------------------------------------------------------------------------------


def test_results_are_read_back_without_loss(tmp_path: Path) -> None:
    result = run(tmp_path / "a.journal", pricers=[MacsPricer()], trials=40)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [row["id"] for row in rows] == [r.arch.id for r in result.records]
    assert [row["ap"] for row in rows] == ["" if r.ap is None else repr(r.ap) for r in result.records]
    assert {row["stage0.width"] for row in rows} == {"8", "16"}
    volumes = result.hypervolumes("latency[toy]")
    assert len(volumes) == 40
    assert (np.diff(volumes) >= 0).all()
    with pytest.raises(InputError, match=r"targets priced: toy"):
        result.front("latency[pi]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.pop("records"), "lacks 'records'"),
        (lambda v: v.update(format=99), "not a search result of format 1"),
        (lambda v: v.update(stopped="bored"), "'stopped' is one of"),
        (lambda v: v.update(trials="many"), "damaged"),
        (lambda v: v["records"][0].pop("macs"), "lacks 'macs'"),
    ],
)
def test_damaged_results_are_named(damage: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    value = run(tmp_path / "a.journal", trials=2).to_json()
    damage(value)
    with pytest.raises(RunError, match=message):
        SearchResult.from_json(value, "search.json")


# -- continuing ------------------------------------------------------------------------------------------


def test_another_search_in_the_same_file_is_refused_with_the_differences(tmp_path: Path) -> None:
    run(tmp_path / "a.journal", pricers=[MacsPricer()], context={"checkpoint": "abc"})
    changes: dict[str, dict[str, Any]] = {
        "seed is 3 there, 5 here": {"seed": 5},
        "population is 8 there, 9 here": {"population": 9},
        "sampler is guided there, random here": {"sampler": "random"},
        r"objectives is ap, macs there, ap, params here": {"objectives": [AP, PARAMS]},
        r"constraints is macs <= 7.*there, none here": {"constraints": []},
        "context checkpoint is abc there, xyz here": {"context": {"checkpoint": "xyz"}},
        r"latency\[toy\] of 64 probe networks is [\d.]+ ms there": {"pricers": [MacsPricer(ms_per_gmac=21)]},
    }
    for message, change in changes.items():
        same: dict[str, Any] = {"pricers": [MacsPricer()], "context": {"checkpoint": "abc"}}
        with pytest.raises(RunError, match=message):
            run(tmp_path / "a.journal", **{**same, **change})
    other = run(tmp_path / "a.journal", seed=5, study_name="other")
    assert len(other.evaluated) == 24


def test_a_table_changed_anywhere_is_refused(tmp_path: Path) -> None:
    """Of every block that a network of the study executes: the probe networks do not execute them all."""

    @dataclass(frozen=True)
    class Changed(MacsPricer):
        number: int = -1

        def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> np.ndarray:
            changed = (genotypes == EVERYTHING[self.number]).all(axis=1)
            return super().latency_ms(space, genotypes) * np.where(changed, 1.0 + 1e-6, 1.0)

    settings: dict[str, Any] = {"constraints": (), "sampler": "random"}
    first = run(tmp_path / "a.journal", trials=12, pricers=[Changed()], **settings)
    for record in first.records:
        number = int(np.ravel_multi_index(tuple(SPACE.encode(record.arch)), SPACE.shape))
        with pytest.raises(RunError, match=r"latency\[toy\] of (the network|64 probe)"):
            run(tmp_path / "a.journal", trials=12, pricers=[Changed(number=number)], **settings)
    assert run(tmp_path / "a.journal", trials=12, pricers=[Changed()], **settings) == first


def test_a_foreign_study_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "a.journal"))
    foreign = optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="search",
                                  directions=["maximize", "minimize"])  # fmt: skip
    foreign.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.0), n_trials=1)
    with pytest.raises(RunError, match="was not made by this search"):
        run(tmp_path / "a.journal")
    (tmp_path / "b.journal").write_text("not a journal\nat all\n")
    with pytest.raises(RunError, match=r"b\.journal is damaged"):
        run(tmp_path / "b.journal")


@pytest.mark.parametrize("damage", ["gone", "garbled", "early", "another"])
def test_lines_damaged_anywhere_are_told_or_change_nothing(damage: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trials": 8, "population": 4, "sampler": "random"}
    path, expected = tmp_path / "a.journal", run(tmp_path / "whole.journal", **settings)
    whole = (tmp_path / "whole.journal").read_bytes().splitlines(keepends=True)
    told = 0
    for at in range(1, len(whole), 1 if damage == "gone" else 5):
        lines = list(whole)
        line = lines.pop(at)
        if damage == "garbled":
            lines.insert(at, line.replace(b"evaluated", b"elevated").replace(b'"op_code":8', b'"op_code":9'))
        elif damage != "gone":
            lines.insert(at // 2, line if damage == "early" else b'{"op_code":8}\n')
        path.write_bytes(b"".join(lines))
        try:
            assert course(run(path, **settings)) == course(expected)
        except RunError as error:
            told += 1
            assert f"{path}" in str(error) and "\n" not in str(error)
    assert told >= 5


def test_ctrl_c_stops_with_what_there_is_and_continues(tmp_path: Path) -> None:
    class Interrupted(Analytic):
        def evaluate(self, arch: Arch) -> Evaluation:
            if len(self.asked) == 11:
                raise KeyboardInterrupt
            return super().evaluate(arch)

    partial = run(tmp_path / "a.journal", Interrupted())
    assert (partial.stopped, len(partial.evaluated)) == ("interrupted", 11)
    evaluator = Analytic()
    assert run(tmp_path / "a.journal", evaluator) == run(tmp_path / "b.journal")
    assert len(evaluator.asked) == 13


def test_a_crash_at_any_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write to the journal is lost, torn at a random byte, or the last thing that happens."""
    settings: dict[str, Any] = {"trials": 12, "population": 4}
    write, writes = store_module.Journal._write, 0
    rng = np.random.default_rng(0)

    def counting(journal: store_module.Journal, text: bytes) -> None:
        nonlocal writes
        writes += 1
        write(journal, text)

    monkeypatch.setattr(store_module.Journal, "_write", counting)
    expected = run(tmp_path / "whole.journal", **settings)
    total = writes
    assert total >= 12 + 3, "each evaluation and each generation is written once it is there"

    for where in range(1, total + 1):
        for kept in (0.0, rng.random(), 1.0):
            done, evaluator = 0, Analytic()

            def crashing(
                journal: store_module.Journal, text: bytes, where: int = where, kept: float = kept
            ) -> None:
                nonlocal done
                done += 1
                if done < where:
                    write(journal, text)
                elif done == where:
                    write(journal, text[: round(kept * len(text))])
                    raise Crash

            path = tmp_path / f"{where}-{kept}.journal"
            monkeypatch.setattr(store_module.Journal, "_write", crashing)
            with pytest.raises(Crash):
                run(path, evaluator, **settings)
            monkeypatch.setattr(store_module.Journal, "_write", write)
            resumed = run(path, evaluator, **settings)
            assert course(resumed) == course(expected), f"after a crash at write {where}, {kept:.0%} kept"
            assert len(evaluator.asked) <= 13, "the evaluation in flight may be lost, no more"
            assert len(evaluator.asked) == 12 or kept < 1
            trials = trials_of(path)
            assert all(trial.state.is_finished() for trial in trials)
            assert sum(t.user_attrs.get("status") == "evaluated" for t in trials) == 12


def test_a_disk_that_fills_up_is_told_and_the_search_goes_on_later(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trials": 12, "population": 4}
    expected = run(tmp_path / "whole.journal", **settings)
    size = (tmp_path / "whole.journal").stat().st_size
    for share in (0.4, 0.8):
        path, evaluator = tmp_path / f"{share}.journal", Analytic()
        with room_for(round(share * size)), pytest.raises(RunError) as caught:
            run(path, evaluator, **settings)
        for words in (f"cannot write the study '{path}'", "is kept in it: free space", "same command again"):
            assert words in str(caught.value)
        assert path.read_bytes().endswith(b"\n"), "no torn line stays"
        assert course(run(path, evaluator, **settings)) == course(expected)
        assert len(evaluator.asked) <= 13


_DRIVER = """
import sys
from pathlib import Path
from tests.nas.problems import Analytic
from tests.nas.test_search import run
folder = Path(sys.argv[1])
run(folder / "study.journal", Analytic(seconds=0.02, log=folder / "log"))
"""


def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """The driver is killed for real, several times, at moments of the clock's choosing."""
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _DRIVER, str(tmp_path)]
    kills = 0
    for begun in (3, 9, 17):
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("begin") >= begun:
                time.sleep(0.007 * (begun % 4))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    subprocess.run(command, env=environment, check=True, timeout=120)
    begun_archs = Counter(line.split()[1] for line in log.read_text().splitlines() if "begin" in line)
    assert sum(begun_archs.values()) - len(begun_archs) <= kills
    evaluator = Analytic()
    finished = run(tmp_path / "study.journal", evaluator)
    assert not evaluator.asked
    uninterrupted = run(tmp_path / "whole.journal")
    assert course(finished) == course(uninterrupted)
    assert set(begun_archs) == {r.arch.id for r in finished.evaluated}


def test_a_second_driver_is_turned_away(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = (
        "import sys, time; from pathlib import Path; from nas.search.store import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a.journal")],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"another process is searching in .*a\.journal"):
            run(tmp_path / "a.journal")
    finally:
        holder.kill()
        holder.wait()
    assert len(run(tmp_path / "a.journal").evaluated) == 24


# -- early stopping ----------------------------------------------------------------------------------------


def test_early_stopping_saves_images_and_stops_none_that_matters(tmp_path: Path) -> None:
    staged = Staged()
    found = run(tmp_path / "a.journal", staged, early_stop=True, trials=150, population=12, constraints=())
    assert len(found.partial) == sum(images < 100 for images in staged.images) > 15
    assert sum(staged.images) < 0.95 * 150 * 100
    assert len(found.partial) + len(found.evaluated) == 150
    for record in found.partial:
        true = analytic_ap(record.arch)
        assert any(o.macs <= record.macs and o.params <= record.params and o.require_ap() > true
                   for o in found.evaluated)  # fmt: skip
        assert record.require_ap() < found.best().require_ap()
        assert record.stats["images"] < 100


def test_with_every_network_seen_early_stopping_changes_no_front(tmp_path: Path) -> None:
    """The order of evaluation then does not matter."""
    space = litepose_native(
        base=get_arch("litepose-xs"), joints=14, resolutions=(256,), multipliers=(1.0, 0.5)
    )
    results = [
        search(
            space,
            Staged(),
            storage=tmp_path / f"{stop}.journal",
            trials=10**4,
            population=40,
            early_stop=stop,
        )
        for stop in (False, True)
    ]
    assert [r.stopped for r in results] == ["exhausted", "exhausted"]
    assert len(results[1].partial) > 50 and not results[0].partial
    fronts = [[(r.arch.id, r.ap) for r in result.front()] for result in results]
    assert fronts[0] == fronts[1]
    assert results[0].best().arch == results[1].best().arch


def test_rivals_are_of_earlier_generations_and_cost_no_more(tmp_path: Path) -> None:
    class Watched(Staged):
        def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
            rivals[arch.id] = rival
            return super().evaluate(arch, rival)

    rivals: dict[str, Evaluation | None] = {}
    result = run(
        tmp_path / "a.journal", Watched(), early_stop=True, trials=40, constraints=(), pricers=[MacsPricer()]
    )
    ap = {r.arch.id: r.require_ap() for r in (*result.evaluated, *result.partial)}
    for record in result.records:
        earlier = [
            other
            for other in result.evaluated
            if other.generation < record.generation
            and other.macs <= record.macs
            and other.params <= record.params
            and other.latency_ms["toy"] <= record.latency_ms["toy"]
        ]
        expected = max((other.require_ap() for other in earlier), default=None)
        given_rival = rivals[record.arch.id]
        assert (None if given_rival is None else given_rival.ap) == expected
    assert any(rivals.values()) and len(ap) == 40


def test_a_stopped_network_is_told_and_kept_as_such(tmp_path: Path) -> None:
    result = run(tmp_path / "a.journal", Staged(), early_stop=True, trials=60, constraints=())
    assert result.partial
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [row["id"] for row in rows if row["partial"] == "1"] == [r.arch.id for r in result.partial]
    values = {t.user_attrs["arch"]: t.values for t in trials_of(tmp_path / "a.journal") if t.values}
    for record in result.partial:  # the sampler learns from the estimate
        assert values[record.arch.id][0] == record.ap
    assert not any(record.partial for record in result.front())
    # A journal and a result from before there was stopping.
    old = result.to_json()
    for record in old["records"]:
        del record["partial"]
    assert not SearchResult.from_json(old).partial
    assert not Evaluation.from_json({"ap": 0.5, "stats": {}, "seconds": 1}).partial


def test_a_study_is_not_continued_with_the_other_way_of_stopping(tmp_path: Path) -> None:
    run(tmp_path / "a.journal", Staged(), early_stop=True)
    with pytest.raises(RunError, match=r"early stop is a loss of 0\.03 there, absent here"):
        run(tmp_path / "a.journal", Staged())


def test_an_interrupted_search_stops_the_same_networks(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"early_stop": True, "trials": 48, "constraints": ()}
    whole = run(tmp_path / "whole.journal", Staged(), **settings)
    assert whole.partial

    class Killed(Staged):
        def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
            if len(self.asked) == 7:
                raise Crash
            return super().evaluate(arch, rival)

    for _ in range(6):
        with pytest.raises(Crash):
            run(tmp_path / "cut.journal", Killed(), **settings)
    resumed = run(tmp_path / "cut.journal", Staged(), **settings)
    assert course(resumed) == course(whole)
    assert [r.arch.id for r in resumed.partial] == [r.arch.id for r in whole.partial]
