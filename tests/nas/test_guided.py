"""Predictor-guided search: what it predicts, how sure it is, whether it proposes what is worth measuring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.pareto import hypervolume
from nas.search import (
    AP,
    MACS,
    PARAMS,
    SAMPLERS,
    Constraint,
    Known,
    Objective,
    Pricing,
    Sampler,
    SearchResult,
    latency,
    search,
)
from nas.search import guided as guided_module
from nas.search import pricing as pricing_module
from nas.search.accuracy import AccuracyPredictor
from nas.search.guided import improvements
from nas.search.pricing import key
from search_spaces import Genotypes, InputError, get_arch, litepose_extended
from search_spaces.space import Choice
from tests.nas.problems import Analytic, MacsPricer, Staged, analytic_ap, small_space

SPACE = small_space()
EVERYTHING = SPACE.genotypes()
APS = np.array([analytic_ap(SPACE.decode(genotype)) for genotype in EVERYTHING])
DIRECTIONS = ("minimize", "maximize")


def measured(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(EVERYTHING), size=n, replace=False)


def go(storage: Path, sampler: str, **options: Any) -> SearchResult:
    return search(SPACE, Analytic(), storage=storage, sampler=sampler, **options)


def fitted(n: int, seed: int = 0, noise: float = 0.0) -> AccuracyPredictor:
    numbers = measured(n, seed)
    off = np.random.default_rng(seed + 1).normal(0.0, noise, n)
    return AccuracyPredictor.fit(SPACE.choices, EVERYTHING[numbers], APS[numbers] + off)


# -- the predictor -----------------------------------------------------------------------------------------


def test_a_whole_space_is_looked_up_in_the_space_s_order() -> None:
    predictor = fitted(30)
    for surface in (predictor.expected(), predictor.sample(np.random.default_rng(0))):
        np.testing.assert_allclose(surface.everywhere(), surface.at(EVERYTHING), rtol=0, atol=1e-12)


def test_named_options_are_learned_too() -> None:
    choices = (
        Choice("block", ("plain", "shuffle", "ghost"), 3),
        Choice("width", (8, 16, 24), 3),
        Choice("kernel", (7,), 1),
    )
    genotypes = np.indices((3, 3, 1)).reshape(3, -1).T
    aps = np.array([0.3, 0.5, 0.1])[genotypes[:, 0]] + 0.05 * genotypes[:, 1]
    surface = AccuracyPredictor.fit(choices, genotypes, aps).expected()
    np.testing.assert_allclose(surface.everywhere(), aps, atol=0.01)
    np.testing.assert_allclose(surface.at(genotypes), surface.everywhere(), atol=1e-12)


def test_ranks_networks_that_were_not_measured_better_than_macs() -> None:
    rest = np.setdiff1d(np.arange(len(EVERYTHING)), measured(40))
    predicted = fitted(40).expected().at(EVERYTHING[rest])
    agreement = np.corrcoef(predicted, APS[rest])[0, 1]
    assert agreement > 0.98
    assert agreement > np.corrcoef(np.log(SPACE.costs(EVERYTHING[rest]).macs), APS[rest])[0, 1] + 0.02


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_knows_how_far_it_can_be_wrong(noise: float) -> None:
    inside, wrong, told, sharper = [], [], [], []
    for seed in range(6):
        predictor = fitted(40, seed, noise)
        off, deviation = predictor.expected().at(EVERYTHING) - APS, predictor.deviation(EVERYTHING)
        inside.append(np.mean(np.abs(off) < 1.645 * deviation))
        wrong.append(np.mean(off**2))
        told.append(np.mean(deviation**2))
        sharper.append(deviation[measured(40, seed)].mean() / deviation.mean())
    assert np.mean(inside) > 0.8
    assert np.sqrt(np.mean(told)) < max(3.0 * np.sqrt(np.mean(wrong)), 0.002), "nor does it play safe"
    assert max(sharper) < 0.95, "it is surer of the networks that it has seen"


def test_learns_how_noisy_measurements_are() -> None:
    learned = [
        np.sqrt(np.mean([(p.scale**2) * p.noise for p in (fitted(150, seed, noise) for seed in range(4))]))
        for noise in (0.005, 0.02)
    ]
    assert 0.0035 < learned[0] < 0.007
    assert 0.014 < learned[1] < 0.028


def test_noise_as_large_as_what_genes_do_is_not_taken_for_it() -> None:
    for seed in range(4):
        predictor = fitted(100, seed, noise=0.03)
        assert predictor.scale * np.sqrt(predictor.noise) > 0.02
        assert np.std(predictor.expected().everywhere() - APS) < 0.7 * np.std(APS)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_samples_are_of_the_posterior(noise: float) -> None:
    predictor, rng = fitted(30, noise=noise), np.random.default_rng(0)
    some = EVERYTHING[np.concatenate([np.arange(0, len(EVERYTHING), 37), measured(30)[:6]])]
    samples = np.stack([predictor.sample(rng).at(some) for _ in range(300)])
    mean, deviation = predictor.expected().at(some), predictor.deviation(some)
    assert np.abs((samples.mean(axis=0) - mean) / deviation).max() < 5 / np.sqrt(300) + 0.1
    ratio = samples.std(axis=0) / deviation
    assert ratio.min() > 0.8 and ratio.max() < 1.2 and abs(ratio.mean() - 1) < 0.08


def test_a_network_measured_less_well_than_others_weighs_less() -> None:
    """An estimate is followed as far as its standard error lets it be; samples vary as the posterior does."""
    numbers = measured(60)
    aps, errors, odd = APS[numbers].copy(), np.zeros(60), EVERYTHING[numbers[:1]]
    true, lie = aps[0], aps[0] - 0.1
    aps[0] = lie
    off = []
    for error in (0.001, 0.03, 1.0):
        errors[0] = error
        predictor = AccuracyPredictor.fit(SPACE.choices, EVERYTHING[numbers], aps, errors)
        off.append(abs(predictor.expected().at(odd)[0] - lie))
        samples = [predictor.sample(np.random.default_rng(s)).at(odd)[0] for s in range(200)]
        assert np.std(samples) == pytest.approx(predictor.deviation(odd)[0], rel=0.25)
    assert off[0] < off[1] < off[2] and abs(off[2] - (true - lie)) < 0.02
    exact = AccuracyPredictor.fit(SPACE.choices, EVERYTHING[numbers], APS[numbers])
    same = AccuracyPredictor.fit(SPACE.choices, EVERYTHING[numbers], APS[numbers], np.zeros(60))
    assert np.array_equal(exact.expected().everywhere(), same.expected().everywhere())


@pytest.mark.parametrize("errors", [[0.1], [0.1, -0.1], [0.1, np.nan]])
def test_standard_errors_that_make_no_sense_are_refused(errors: list[float]) -> None:
    with pytest.raises(InputError, match="2 APs take as many standard errors"):
        AccuracyPredictor.fit(SPACE.choices, EVERYTHING[:2], [0.1, 0.2], errors)


def test_the_same_measurements_give_the_same_predictor() -> None:
    one, other = fitted(200), fitted(200)
    assert (one.expected().everywhere() == other.expected().everywhere()).all()
    draws = [p.sample(np.random.default_rng(5)).everywhere() for p in (one, other)]
    assert (draws[0] == draws[1]).all()


def test_equal_aps_and_a_single_gene_s_difference_are_no_trouble() -> None:
    flat = AccuracyPredictor.fit(SPACE.choices, EVERYTHING[:2], [0.25, 0.25])
    np.testing.assert_allclose(flat.expected().everywhere(), 0.25)
    many = AccuracyPredictor.fit(SPACE.choices, EVERYTHING[[0] * 9], np.linspace(0.1, 0.2, 9))
    assert abs(many.expected().at(EVERYTHING[:1])[0] - 0.15) < 0.01


@pytest.mark.parametrize(
    ("n", "aps"), [(1, [0.5]), (0, []), (3, [0.1, 0.2]), (2, [0.1, float("nan")]), (2, [[0.1, 0.2]])]
)
def test_too_little_to_learn_from_is_refused(n: int, aps: list[float]) -> None:
    with pytest.raises(InputError, match=f"from 2 networks up with a finite AP each, not from {n} networks"):
        AccuracyPredictor.fit(SPACE.choices, EVERYTHING[:n], aps)


# -- what a network adds ------------------------------------------------------------------------------------

_POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=7)


@given(_POINTS, _POINTS)
@settings(max_examples=60, deadline=None)
def test_an_improvement_is_the_hypervolume_that_is_added(
    networks: list[tuple[int, int]], rivals: list[tuple[int, int]]
) -> None:
    new, old = np.array(networks, dtype=float), np.array(rivals, dtype=float)
    found = improvements(new[:, 0], new[:, 1], old[:, 0], old[:, 1], 8.0, 1.0)
    before = hypervolume(old, (8.0, 1.0), DIRECTIONS)
    expected = [hypervolume([*old, point], (8.0, 1.0), DIRECTIONS) - before for point in new]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_along_directions_nearly_the_best_of_three_objectives_is_found() -> None:
    rng = np.random.default_rng(1)
    costs, guess = rng.uniform(1, 9, (400, 2)), rng.uniform(0, 1, 400)
    rivals, aps = costs[:5], guess[:5]
    most, three = np.array([9.5, 9.5]), ("minimize", "minimize", "maximize")
    places, gains = guided_module._along_directions(costs, guess, rivals, aps, most, 0.0, rng)

    def volume(points: np.ndarray) -> float:
        return hypervolume(points, (*most, 0.0), three)

    def exact(chosen: np.ndarray) -> np.ndarray:
        old = np.column_stack([rivals, aps])
        return np.array([volume(np.vstack([old, [*costs[i], guess[i]]])) for i in chosen]) - volume(old)

    assert exact(places[[gains.argmax()]])[0] > 0.85 * exact(np.arange(len(costs))).max()
    assert np.corrcoef(gains, exact(places))[0, 1] > 0.9


# -- proposals -----------------------------------------------------------------------------------------------


def known(
    numbers: np.ndarray, objectives: tuple[Objective, ...] = (AP, MACS), max_macs: float | None = None
) -> Known:
    constraints = [] if max_macs is None else [Constraint(MACS, max_macs)]
    pricing = Pricing(SPACE, constraints, [MacsPricer()])
    numbers = numbers[pricing.feasible(pricing.prices(EVERYTHING[numbers]))]
    genotypes = EVERYTHING[numbers]
    return Known(pricing, objectives, genotypes, APS[numbers], {key(genotype) for genotype in genotypes})


@pytest.fixture(params=["priced whole", "too large"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of looking over a space, on the same one."""
    if request.param == "too large":
        monkeypatch.setattr(pricing_module, "EXACT_LIMIT", 10)
        monkeypatch.setattr(pricing_module, "_SAMPLE_ROUNDS", 2)  # more are in vain: the space is small
    return str(request.param)


@pytest.mark.parametrize(
    "objectives", [(AP,), (AP, MACS), (PARAMS, AP), (AP, MACS, latency("toy"))], ids=lambda o: str(len(o))
)
def test_proposals_are_new_distinct_and_within_the_budget(
    limit: str, objectives: tuple[Objective, ...]
) -> None:
    told = known(measured(40), objectives, max_macs=0.8e9)
    proposed = SAMPLERS["guided"].propose(told, np.random.default_rng(0), 8)
    keys = {key(genotype) for genotype in proposed}
    assert len(keys) == len(proposed) > 0
    assert not keys & told.seen
    assert told.pricing.feasible(told.pricing.prices(proposed)).all()
    again = SAMPLERS["guided"].propose(told, np.random.default_rng(0), 8)
    assert (again == proposed).all()


def test_proposals_lie_on_the_true_front_and_along_it(limit: str) -> None:
    macs = SPACE.costs(EVERYTHING).macs
    told = known(measured(60))
    proposed = SAMPLERS["guided"].propose(told, np.random.default_rng(0), 10)
    numbers = np.ravel_multi_index(tuple(proposed.T), SPACE.shape)
    best = np.array([APS[macs <= macs[number]].max() for number in numbers])
    assert np.mean(best - APS[numbers] < 0.005) >= 0.7
    spread = np.sort(macs[numbers])
    assert spread[-1] > 1.8 * spread[0]


def test_proposals_explore_where_little_is_known() -> None:
    told = known(measured(10))
    proposed = [SAMPLERS["guided"].propose(told, np.random.default_rng(seed), 6) for seed in range(3)]
    keys = [{key(genotype) for genotype in each} for each in proposed]
    assert len(set.union(*keys)) > 8, "each is drawn from a guess of its own"


def test_measured_networks_are_rivals_by_the_guess_and_not_by_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, rivals = guided_module._most_improving, list[np.ndarray]()

    def watched(*arguments: Any) -> int | None:
        rivals.append(arguments[4])
        return chosen(*arguments)

    monkeypatch.setattr(guided_module, "_most_improving", watched)
    numbers, noise = measured(100), np.random.default_rng(3).normal(0.0, 0.03, 100)
    told = replace(known(numbers), aps=APS[numbers] + noise)
    SAMPLERS["guided"].propose(told, np.random.default_rng(0), 4)
    assert [len(values) for values in rivals] == [100, 101, 102, 103], "those taken before are rivals, too"
    for values in rivals:
        assert np.std(values[:100] - APS[numbers]) < 0.8 * np.std(noise)


def test_a_huge_space_is_searched_by_breeding(tmp_path: Path) -> None:
    space = litepose_extended(joints=14)
    tight = Constraint(MACS, 1.5 * Pricing(space).smallest(MACS).value)
    result = search(
        space, Analytic(), storage=tmp_path / "a.journal", trials=30, population=10, constraints=[tight],
        sampler="guided",
    )  # fmt: skip
    assert len(result.evaluated) == 30
    assert sum(record.origin == "guided" for record in result.evaluated) >= 15
    volumes = result.hypervolumes(most=tight.upper)
    assert volumes[-1] > 1.02 * volumes[9]


def test_networks_whose_evaluation_ended_early_teach_by_their_estimates(tmp_path: Path) -> None:
    class Listening(Sampler):
        name = "listening"

        def propose(self, known: Known, rng: np.random.Generator, n: int) -> Genotypes:
            told.append(known)
            return super().propose(known, rng, n)

    told: list[Known] = []
    result = search(
        SPACE, Staged(), storage=tmp_path / "a.journal", trials=120, sampler=Listening(), early_stop=True
    )
    assert result.sampler == "listening" and len(result.partial) > 5
    last = told[-1]
    ended = {key(SPACE.encode(record.arch)) for record in result.partial}
    assert {key(genotype) for genotype in last.genotypes}.isdisjoint(ended)
    assert ended & last.seen, "they are not proposed again"
    assert last.losers is not None
    told_of = {key(genotype) for genotype in last.losers.genotypes}
    assert told_of and told_of <= ended, "and all of them are told but those of the last generation"
    estimates = {key(SPACE.encode(record.arch)): record.ap for record in result.partial}
    assert [estimates[key(g)] for g in last.losers.genotypes] == last.losers.aps.tolist()
    assert (last.losers.deviations > 0).all()
    genotypes, learned, errors = last.lessons()
    assert len(genotypes) == len(learned) == len(errors) == len(last.aps) + len(last.losers.aps)
    assert (errors > 0).sum() == len(last.losers.aps)
    aps = [analytic_ap(SPACE.decode(genotype)) for genotype in last.genotypes]
    np.testing.assert_allclose(last.aps, aps)


# -- going through a space -----------------------------------------------------------------------------------


def test_exhaustive_search_goes_up_in_cost_and_knows_the_front_so_far(tmp_path: Path) -> None:
    budget = Constraint(MACS, 0.6e9)
    result = search(
        SPACE,
        Analytic(),
        storage=tmp_path / "a.journal",
        trials=70,
        constraints=[budget],
        sampler="exhaustive",
    )
    macs = [record.macs for record in result.evaluated]
    affordable = np.sort(SPACE.costs(EVERYTHING).macs)
    assert macs == affordable[:70].tolist()
    by_params = search(
        SPACE,
        Analytic(),
        storage=tmp_path / "b.journal",
        trials=9,
        objectives=[PARAMS, AP],
        sampler="exhaustive",
    )
    assert [r.params for r in by_params.evaluated] == np.sort(SPACE.costs(EVERYTHING).params)[:9].tolist()


def test_exhaustive_search_refuses_what_it_cannot_list(tmp_path: Path) -> None:
    space = litepose_extended(joints=14)
    with pytest.raises(InputError, match=r"'exhaustive' goes through spaces of up to 2,097,152 networks"):
        search(space, Analytic(), storage=tmp_path / "a.journal", trials=9, sampler="exhaustive")
    assert not list(tmp_path.iterdir())


def test_everything_affordable_is_listed_with_its_costs() -> None:
    budget = Constraint(MACS, 0.5e9)
    pricing = Pricing(SPACE, [budget])
    listed = pricing.affordable([PARAMS, MACS])
    costs = SPACE.costs(EVERYTHING)
    within = np.flatnonzero(costs.macs <= budget.upper)
    assert (listed.numbers == within).all()
    assert (listed.costs == np.column_stack([costs.params, costs.macs])[within]).all()
    assert pricing.affordable([PARAMS, MACS]) is listed
    assert (listed.genotypes(np.array([3, 0])) == EVERYTHING[within[[3, 0]]]).all()
    seen = {key(EVERYTHING[within[0]]), key(EVERYTHING[within[5]]), key(SPACE.encode(SPACE.largest()))}
    assert set(range(len(within))) - set(listed.unseen(seen).tolist()) == {0, 5}
    assert len(listed.unseen(set())) == len(within)


def test_a_space_too_large_is_not_listed(limit: str) -> None:
    if limit == "priced whole":
        assert len(Pricing(SPACE).affordable([]).numbers) == SPACE.count()
    else:
        with pytest.raises(InputError, match="up to 10 networks are listed whole, not this litepose-native"):
            Pricing(SPACE).affordable([MACS])


def test_named_networks_are_evaluated_first_and_learned_from(tmp_path: Path) -> None:
    seeds = [get_arch("litepose-xs"), SPACE.smallest()]
    result = search(
        SPACE,
        Analytic(),
        storage=tmp_path / "a.journal",
        trials=24,
        population=8,
        seeds=seeds,
        sampler="guided",
    )
    assert [record.origin for record in result.evaluated[:2]] == ["seed", "seed"]
    assert {record.origin for record in result.evaluated[8:]} == {"guided"}


def test_a_space_that_is_known_whole_gets_no_proposals(limit: str) -> None:
    told = known(np.arange(len(EVERYTHING)))
    assert SAMPLERS["guided"].propose(told, np.random.default_rng(0), 8).shape == (0, len(SPACE.shape))
