"""When evaluations end early: what is compared, the risk as it is kept, and what cannot be judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search_spaces import InputError
from supernet.racing import EarlyStop, Look, Rival
from tests.supernet.races import simulated

Floats = NDArray[np.float64]


def test_few_images_are_not_judged() -> None:
    rule = EarlyStop(shares=(0.1, 0.25, 0.5), least=20)
    assert rule.looks(100) == {"AP@0.25": 25, "AP@0.5": 50}
    assert rule.looks(30) == {}
    assert EarlyStop(least=1).looks(4) == {"AP@0.25": 1, "AP@0.5": 2}
    assert EarlyStop().looks(400) == {"AP@0.125": 50, "AP@0.25": 100, "AP@0.5": 200}
    assert rule.order(range(50)) == rule.order(range(50)) != list(range(50))
    assert sorted(rule.order(range(50))) == list(range(50))
    sure = {"AP@0.5": Look(0.0, np.zeros(9))}, Rival(0.9, {"AP@0.5": Look(0.9, np.full(9, 0.9))})
    assert rule.verdict(*sure, {"AP@0.5": 50}, 100) is not None
    assert rule.verdict(*sure, {"AP@0.5": 2}, 4) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shares": ()}, "ascending shares"),
        ({"shares": (0.5, 0.25)}, "ascending shares"),
        ({"shares": (0.5, 1.0)}, "between 0 and 1"),
        ({"level": 0.0}, "between 0 and .5, not 0.0"),
        ({"resamples": 0}, "at least 1"),
        ({"least": 0}, "at least 1"),
    ],
)
def test_rules_of_stopping_that_make_no_sense(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        EarlyStop(**wrong)


def test_two_rules_are_told_apart_in_words() -> None:
    rules = [EarlyStop(), EarlyStop(level=0.05), EarlyStop(shares=(0.5,)), EarlyStop(least=5)]
    rules += [EarlyStop(seed=1), EarlyStop(resamples=100)]
    assert len(set(map(str, rules))) == len(rules)
    assert "after 0.125, 0.25, 0.5 of the images, 40 at least, risk 0.01" in str(rules[0])


# -- what is expected of the images to come ----------------------------------------------------------------


@pytest.mark.parametrize("images", [3, 12, 60])
def test_the_estimate_is_the_regression_estimate_of_means(images: int) -> None:
    """Of figures that are means over images the resamples give what the textbook's formula gives."""
    rng, of = np.random.default_rng(images), 64
    rival = rng.normal(0.5, 0.1, of)
    own = 0.6 * rival + rng.normal(0, 0.05, of)
    x, y = own[:images], rival[:images]
    draws = rng.multinomial(images, np.full(images, 1 / images), 5_000) / images
    looks = [Look(float(each.mean()), draws @ each) for each in (x, y)]
    estimate, error = EarlyStop().judge(looks[0], looks[1], float(rival.mean()), images, of)
    slope = np.cov(x, y)[0, 1] / y.var(ddof=1)
    left = x - x.mean() - slope * (y - y.mean())
    # Cochran 1977, equations 7.1 and 7.29
    exact = np.sqrt((1 - images / of) / images * (left @ left) / max(images - 2, 1))
    scale = max(float(exact), 0.01)
    assert estimate == pytest.approx(x.mean() + slope * (rival.mean() - y.mean()), abs=scale)
    assert error == pytest.approx(exact, rel=0.1, abs=1e-4)


def test_a_network_is_no_loser_against_its_equal_nor_where_nothing_is_known() -> None:
    rule, rng = EarlyStop(), np.random.default_rng(0)
    counts, resampled = {"AP@0.25": 50}, rng.normal(0.4, 0.05, 400)
    look, shown = Look(0.4, resampled), np.full(400, np.nan)
    for ap in (0.3, 0.4, 0.45):
        assert rule.verdict({"AP@0.25": look}, Rival(ap, {"AP@0.25": look}), counts, 200) is None
    nobody = Look(0.0, shown)
    assert rule.verdict({"AP@0.25": nobody}, Rival(0.9, {"AP@0.25": look}), counts, 200) is None
    assert rule.verdict({"AP@0.25": look}, Rival(0.9, {"AP@0.5": look}), counts, 200) is None
    assert rule.verdict({}, Rival(0.9, {"AP@0.25": look}), counts, 200) is None
    # Some resamples that show nobody are left out.
    low = Look(0.1, resampled - 0.3)
    low.resampled[::7] = np.nan
    verdict = rule.verdict({"AP@0.25": low}, Rival(0.42, {"AP@0.25": look}), counts, 200)
    assert verdict is not None and verdict.estimate == pytest.approx(0.12) and verdict.images == 50


def test_who_finds_nobody_yet_has_lost_only_against_one_who_surely_finds_somebody() -> None:
    rule, rng = EarlyStop(), np.random.default_rng(1)
    none, counts = Look(0.0, np.zeros(400)), {"AP@0.5": 40}
    rare = Look(0.01, np.maximum(rng.normal(0.01, 0.01, 400), 0))
    often = Look(0.2, rng.normal(0.2, 0.03, 400))
    assert rule.verdict({"AP@0.5": none}, Rival(0.01, {"AP@0.5": rare}), counts, 80) is None
    lost = rule.verdict({"AP@0.5": none}, Rival(0.21, {"AP@0.5": often}), counts, 80)
    assert lost is not None and lost.estimate == pytest.approx(0.01) and lost.deviation > 0.01
    beyond = rule.verdict({"AP@0.5": none}, Rival(0.19, {"AP@0.5": often}), counts, 80)
    assert beyond is not None and beyond.estimate == 0.0


# -- the risk ----------------------------------------------------------------------------------------------

IMAGES = 160


class Outcomes:
    """Networks whose figure is the mean of an outcome per image: thousands of races in a second.

    ``alike`` is how much two networks agree in what they find hard; subnets of one supernet agree much. A
    share of the images is found by nobody, another one almost always.
    """

    def __init__(self, rule: EarlyStop, seed: int) -> None:
        self.rule, self.rng = rule, np.random.default_rng(seed)
        self.counts = rule.looks(IMAGES)
        self.draws = {
            name: self.rng.multinomial(n, np.full(n, 1 / n), rule.resamples) / n
            for name, n in self.counts.items()
        }

    def pair(self, alike: float, worse: float | None) -> tuple[Floats, Floats]:
        """Return outcomes of a network and its rival; without ``worse`` both means are the same, exactly."""
        hard = self.rng.normal(size=IMAGES)
        noise = self.rng.normal(size=(2, IMAGES))
        own, rival = 1 / (1 + np.exp(-2.5 * (np.sqrt(alike) * hard + np.sqrt(1 - alike) * noise)))
        return own - (own.mean() - rival.mean() if worse is None else worse), rival

    def looks(self, outcomes: Floats) -> dict[str, Look]:
        return {
            name: Look(float(outcomes[:n].mean()), self.draws[name] @ outcomes[:n])
            for name, n in self.counts.items()
        }

    def stopped(self, own: Floats, rival: Floats) -> tuple[bool, bool]:
        """Return whether a network is stopped, and whether it would be if the two were not paired.

        Unpaired, the upper end of its own interval is held against the rival's figure so far.
        """
        one, other = self.looks(own), self.looks(rival)
        verdict = self.rule.verdict(one, Rival(float(rival.mean()), other), self.counts, IMAGES)
        high = 1 - self.rule.level / len(self.counts)
        return verdict is not None, any(
            np.quantile(one[name].resampled, high) < other[name].ap for name in self.counts
        )


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("level", [0.01, 0.1])
def test_the_risk_is_kept_where_two_networks_are_equally_good(level: float, alike: float) -> None:
    """Every stop is wrong then: there is no harder case."""
    race, trials = Outcomes(EarlyStop(level=level, least=20, resamples=200), 5), 800
    assert len(race.counts) == 3
    wrong = sum(race.stopped(*race.pair(alike, None))[0] for _ in range(trials))
    assert wrong <= trials * level + 2 * np.sqrt(trials * level)
    assert wrong >= trials * level / 5, "it is kept by using it"


@pytest.mark.parametrize(("alike", "least"), [(0.0, 1.1), (0.5, 1.5), (0.9, 3.0)])
def test_at_the_same_risk_pairing_stops_more_networks(alike: float, least: float) -> None:
    race = Outcomes(EarlyStop(least=20, resamples=200), 6)
    found = np.array([race.stopped(*race.pair(alike, 0.06)) for _ in range(400)])
    paired, alone = found.sum(axis=0)
    assert paired >= least * alone and paired >= 40


@pytest.mark.parametrize(("worse", "alike"), [(0.0, 0.5), (0.8, 0.5)])
def test_of_average_precision_the_worse_lose_and_no_equals(worse: float, alike: float) -> None:
    """What holds of means holds of AP."""
    rule = EarlyStop(shares=(0.25, 0.5), least=20, resamples=100)
    rng, images = np.random.default_rng(3), 80
    counts, stopped, wrong = rule.looks(images), 0, 0
    for _ in range(24):
        hard = 0.8 * rng.normal(size=(images, 1)) + 0.6 * rng.normal(size=(images, 3))
        both = [simulated(rng, hard, alike, 0.9 - change) for change in (0, worse)]
        rival, own = ({name: rule.look(each.subset(range(n))) for name, n in counts.items()} for each in both)
        ap = [float(each.ap()[0]) for each in both]
        lost = rule.verdict(own, Rival(ap[0], rival), counts, images) is not None
        stopped += lost
        wrong += lost and ap[1] >= ap[0]
    assert wrong == 0
    assert stopped >= 20 if worse else stopped <= 5
