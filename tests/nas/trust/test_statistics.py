"""Agreement of rankings, against SciPy and by hand."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from nas.trust.statistics import (
    Bootstrap,
    ClosePairs,
    Measured,
    TrustStatistics,
    close_pairs,
    kendall_tau,
    spearman_rho,
    statistics,
    top_regret,
    trusted_difference,
)
from search_spaces import InputError
from tests.nas.trust.made import measured

Scores = NDArray[np.float64]
AGREEMENTS = [(kendall_tau, kendalltau), (spearman_rho, spearmanr)]


@st.composite
def two_scores(draw: st.DrawFn) -> tuple[Scores, Scores, NDArray[np.int64]]:
    """Return two scores of as many networks, with ties, and how often each network counts."""
    n = draw(st.integers(3, 12))
    tenths = st.lists(st.integers(0, 6), min_size=n, max_size=n)
    first, second = (np.array(draw(tenths)) / 10 for _ in range(2))
    counts = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(lambda each: sum(each) > 1))
    return first, second, np.array(counts)


def test_scipy_agrees() -> None:
    """Also where networks are drawn several times: as if each was listed so often."""

    @given(two_scores())
    def check(drawn: tuple[Scores, Scores, NDArray[np.int64]]) -> None:
        first, second, counts = drawn
        a, b = np.repeat(first, counts), np.repeat(second, counts)
        for own, theirs in AGREEMENTS:
            (found,) = own(first, second, counts)
            if np.ptp(a) == 0 or np.ptp(b) == 0:
                assert found == 0
            else:
                assert found == pytest.approx(theirs(a, b).statistic, abs=1e-9)

    check()


@pytest.mark.parametrize("own", [kendall_tau, spearman_rho])
def test_scores_that_differ_between_resamples_are_compared_row_by_row(own) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    first, second, weights = rng.normal(size=(5, 6)), rng.normal(size=(5, 6)), rng.integers(0, 3, (5, 6))
    rows = [own(a, b, w)[0] for a, b, w in zip(first, second, weights, strict=True)]
    assert own(first, second, weights) == pytest.approx(rows)
    assert own(first, second)[3] == pytest.approx(own(first[3], second[3])[0])
    assert own(first[0], second)[3] == pytest.approx(own(first[0], second[3])[0])


def test_rounding_makes_no_order() -> None:
    assert kendall_tau(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.1 + 0.2, 0.6 / 2]))[0] == 0


def test_regret_by_hand() -> None:
    truth = np.array([0.1, 0.5, 0.3, 0.4])
    assert top_regret(truth, truth, 1) == 0
    assert top_regret(truth, -truth, 1) == pytest.approx(0.4)
    assert top_regret(truth, -truth, 3) == pytest.approx(0.1)
    assert top_regret(truth, -truth, 4) == 0
    assert top_regret(truth, np.array([1, 0, 3, 2]), 2) == pytest.approx(0.1)
    with pytest.raises(InputError, match="1 to 4 of 4 networks, not 5"):
        top_regret(truth, truth, 5)


def test_a_ranking_has_no_credit_for_ties() -> None:
    truth = np.array([0.5, 0.1, 0.3])
    assert top_regret(truth, np.zeros(3), 1) == pytest.approx(0.4)
    assert top_regret(truth, np.array([1.0, 1.0, 0.0]), 1) == pytest.approx(0.4)


def test_trusted_difference_by_hand() -> None:
    truth = np.array([0.1, 0.2, 0.3])
    assert trusted_difference(truth, truth) == pytest.approx(0.1)
    # The pair of 0.01 is wrong, the two others are right.
    assert trusted_difference(truth, np.array([0.21, 0.2, 0.5])) == pytest.approx(0.29)
    assert trusted_difference(truth, np.array([0.21, 0.2, 0.5]), share=0.6) == pytest.approx(0.01)
    assert trusted_difference(truth, -truth) is None
    assert trusted_difference(truth, np.zeros(3)) is None  # no order, so half right


def test_close_pairs_by_hand() -> None:
    macs = np.array([1.0, 1.3, 1.69, 10.0])
    truth = np.array([0.1, 0.2, 0.3, 0.9])
    assert close_pairs(truth, truth, macs) == (2, 2)
    assert close_pairs(truth, macs, macs) == (2, 2)
    assert close_pairs(truth, np.array([0.2, 0.1, 0.3, 0.0]), macs) == (2, 1)  # the last has no like
    assert close_pairs(truth, np.array([0.1, 0.1, 0.3, 0.0]), macs) == (2, 1.5)
    assert close_pairs(truth, truth, np.array([1.0, 2, 4, 8])) == (0, 0)


def found(*sides: object, resamples: int = 400) -> TrustStatistics:
    return statistics(measured(*sides), resamples, np.random.default_rng(0))  # type: ignore[arg-type]


RISING = [i / 20 for i in range(1, 13)]
NOISY = [RISING[i ^ 1] for i in range(12)]
"""Every second pair of neighbours swapped: 6 of 66 pairs."""


def test_a_good_ranking() -> None:
    told = found(NOISY, [RISING], [1.0, 5, 3, 2, 4, 9, 8, 7, 10, 12, 6, 11])
    assert told.supernet.kendall.value == pytest.approx(1 - 2 * 6 / 66)
    assert told.supernet.spearman.value == pytest.approx(spearmanr(NOISY, RISING).statistic)
    assert 0.5 < told.supernet.kendall.low < told.supernet.kendall.value < told.supernet.kendall.high < 1
    assert told.supernet.regret == {1: pytest.approx(0.05), 3: 0, 5: 0}
    assert told.macs.kendall.value == pytest.approx(
        kendalltau([1.0, 5, 3, 2, 4, 9, 8, 7, 10, 12, 6, 11], RISING).statistic
    )
    assert told.gain.value == pytest.approx(told.supernet.kendall.value - told.macs.kendall.value)
    assert told.gain.low < told.gain.value < told.gain.high
    assert told.gain.probability > 0.8
    assert (told.networks, told.repeats, told.grade) == (12, 1, "fair")
    assert told.close == ClosePairs(12, 10, 6)  # of the pairs swapped, 8 and 7, 10 and 12 have similar MACs
    assert told.shift == pytest.approx(0) and told.spread == pytest.approx(0.05 * math.sqrt(12 / 11))


def test_the_difference_from_macs_is_paired() -> None:
    """Two rankings that are the same differ by nothing in any resample, however wide each one's interval."""
    told = found(NOISY, [RISING], NOISY)
    assert (told.gain.value, told.gain.low, told.gain.high, told.gain.probability) == (0, 0, 0, 0.5)
    assert told.supernet.kendall.high - told.supernet.kendall.low > 0.05
    assert told.grade == "low"


def test_trainings_with_other_seeds_tell_what_is_within_reach() -> None:
    told = found(NOISY, [RISING, NOISY])
    assert told.ceiling.basis == "seeds"
    assert told.ceiling.kendall.value == pytest.approx(1 - 2 * 6 / 66)
    # The truth is their mean, in which the swapped neighbours are equal.
    mean = np.mean([RISING, NOISY], axis=0)
    assert told.supernet.kendall.value == pytest.approx(kendalltau(NOISY, mean).statistic)


def test_one_training_tells_of_the_noise_of_aps_alone() -> None:
    wide, narrow = found(RISING, [RISING]), found(RISING, [[0.5 + ap / 10 for ap in RISING]])
    assert wide.ceiling.basis == narrow.ceiling.basis == "images"
    assert 0 < narrow.ceiling.kendall.value < wide.ceiling.kendall.value - 0.2 < 0.8


def test_other_images_shake_aps_that_are_close() -> None:
    far, near = found(RISING, [RISING]), found([0.5 + ap / 10 for ap in RISING], [RISING])
    assert far.images.value == near.images.value == 1
    assert near.images.low < far.images.low - 0.1


@pytest.mark.parametrize(
    ("supernet", "standalone"),
    [([0.3] * 5, RISING[:5]), (RISING[:5], [0.3] * 5), ([0.0] * 5, [0.0] * 5), ([1.0] * 5, [1.0] * 5)],
)
def test_scores_that_are_all_equal_give_no_nan(supernet: list[float], standalone: list[float]) -> None:
    told = found(supernet, [standalone], resamples=100)
    text = json.dumps(told.to_json(), allow_nan=False)
    assert TrustStatistics.from_json(json.loads(text)) == told
    assert told.supernet.kendall.value == told.supernet.spearman.value == 0
    assert told.grade == "none"
    assert told.nothing_to_rank == (standalone[0] == standalone[1])


def test_json_keeps_everything() -> None:
    told = found(NOISY, [RISING, NOISY])
    assert TrustStatistics.from_json(json.loads(json.dumps(told.to_json()))) == told
    assert told.to_json()["grade"] == told.grade


def test_reports_of_before_close_pairs_were_counted_are_read() -> None:
    told = found(NOISY, [RISING]).to_json()
    del told["close"]
    assert TrustStatistics.from_json(told).close is None


def test_few_networks_are_no_proof() -> None:
    told = found(RISING[:4], [RISING[:4]], [1.0, 3, 2, 4])
    assert told.supernet.kendall.value == 1
    assert told.grade == "low"


def test_the_same_generator_gives_the_same_figures() -> None:
    assert found(NOISY, [RISING]) == found(NOISY, [RISING])


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (([0.1, 0.2], [[0.1, 0.2]]), "at least 3 networks, not 2"),
        (([0.1, 0.2, 0.3], []), "other numbers"),
        (([0.1, 0.2, 0.3], [[0.1, 0.2]]), "other numbers"),
    ],
)
def test_what_does_not_fit_is_refused(sides: tuple[list[float], list[list[float]]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        found(*sides)


def test_aps_are_finite() -> None:
    good = measured(RISING, [RISING])
    bad = Measured(
        good.macs, good.supernet * np.nan, good.standalone, good.supernet_matches, good.standalone_matches
    )
    with pytest.raises(InputError, match="supernet APs are not all finite"):
        statistics(bad, 100, np.random.default_rng(0))


def test_intervals_hold_the_truth() -> None:
    """Of bivariate normal scores tau is 2 / pi asin(rho) (Greiner); intervals of 95% hold it that often."""
    rng, tau, held = np.random.default_rng(5), 0.7, 0
    rho = math.sin(math.pi * tau / 2)
    for _ in range(100):
        truth = rng.normal(size=20)
        score = rho * truth + math.sqrt(1 - rho**2) * rng.normal(size=20)
        told, _ = Bootstrap.over(20, 200, rng)(partial(kendall_tau, truth, score))
        held += told.low <= tau <= told.high
    assert 88 <= held <= 100
