"""Noise in a search: resamples survive being kept, ties are told as ties, and differences as differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nas.search import Evaluation, Record
from nas.search.noise import RESAMPLES, compare, interval, pack, resampled, steps, tied, unpack
from search_spaces import RunError
from supernet.pose.bootstrap import bootstrap_ap, compare_ap
from supernet.pose.matching import Matches, match_detections
from tests.nas.problems import small_space

STEP = 0.5 / 65534
_ARCHS = [small_space().sample(np.random.default_rng(seed)) for seed in range(4)]


def record(place: int, ap: float, resamples: str = "") -> Record:
    return Record(
        arch=_ARCHS[place],
        macs=10**8 * (place + 1),
        params=10**6,
        latency_ms={},
        feasible=True,
        trial=place,
        generation=0,
        origin="sample",
        ap=ap,
        resamples=resamples,
    )


def matched(offsets: Sequence[float], noise: float, seed: int = 0, images: int = 40) -> list[Matches]:
    """Return matches on drawn people of detectors that miss each joint by ``offsets`` and some noise."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(20, 80, (images, 17, 2))
    hard = rng.exponential(1.0, (images, 1, 1))
    truth = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(images)],
        "annotations": [
            {
                **{"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "num_keypoints": 17},
                **{"bbox": [10, 10, 80, 80], "area": 3000.0},
                "keypoints": np.c_[joints[i], np.full(17, 2)].ravel().tolist(),
            }
            for i in range(images)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    made = []
    for offset in offsets:
        found = joints + rng.normal(0, noise + offset, joints.shape) * hard
        detections = [
            {
                **{"image_id": i, "category_id": 1, "score": float(rng.uniform())},
                "keypoints": np.c_[found[i], np.ones(17)].ravel().tolist(),
            }
            for i in range(images)
        ]
        made.append(match_detections(truth, detections, [0.05] * 17))
    return made


@given(hnp.arrays(np.float64, st.integers(0, 50), elements=st.floats(0, 1) | st.just(float("nan"))))
def test_resamples_survive_packing(values: np.ndarray) -> None:
    text = pack(values)
    back = unpack(text)
    assert back.shape == values.shape and (np.isnan(back) == np.isnan(values)).all()
    assert np.nanmax(np.abs(back - values), initial=0) <= STEP + 1e-12
    assert pack(back) == text  # so a study read back equals the one in memory


def test_what_is_no_packing_is_refused() -> None:
    with pytest.raises(RunError, match="resampled APs of a network are damaged"):
        unpack("!!")
    with pytest.raises(RunError, match="damaged"):
        unpack(pack(np.ones(3))[:-4] + "AAA=A")


def test_comparisons_are_those_of_the_matches() -> None:
    one, other = matched([0.0, 1.0], 2.0)
    a, b = (record(i, each.stats()["AP"], resampled(each)) for i, each in enumerate((one, other)))
    kept = compare(a, b)
    assert kept is not None and kept.resamples == RESAMPLES
    many = compare_ap(one, other, 20000, np.random.default_rng(5))
    assert kept.value == pytest.approx(many.value)
    width = many.high - many.low
    assert width > 0.02
    assert abs(kept.low - many.low) < 0.25 * width and abs(kept.high - many.high) < 0.25 * width
    own, wide = interval(a), bootstrap_ap(one, 20000, np.random.default_rng(6))
    assert own is not None and abs(own.low - wide.low) < 0.25 * (wide.high - wide.low)
    # Compared on the same images, the difference is sharper than the two figures suggest.
    second = interval(b)
    assert second is not None
    assert kept.high - kept.low < np.hypot(own.high - own.low, second.high - second.low)


def test_ties_are_ties_and_wins_are_wins() -> None:
    worst, middle, same, best = matched([3.0, 1.0, 1.0, 0.0], 1.0, images=80)
    front = [record(i, m.stats()["AP"], resampled(m)) for i, m in enumerate((worst, middle, same, best))]
    first, second, third = steps(front)
    assert (first.tie, second.tie, third.tie) == (False, True, False)
    assert first.gain is not None and first.gain.low > 0
    assert (first.cheaper, first.dearer) == (front[0], front[1])
    assert second.to_json()["tie"] is True and second.to_json()["cheaper"] == front[1].arch.id
    assert tied(front[1], front) == (front[2],)
    assert tied(front[3], front) == ()


def test_what_was_not_kept_is_not_judged() -> None:
    (known,) = matched([0.0], 1.0)
    old, new = record(0, 0.5), record(1, 0.5, resampled(known))
    other = record(2, 0.5, pack(np.full(3, 0.5)))  # of another number of resamples
    nobody = record(3, 0.5, pack(np.full(RESAMPLES, np.nan)))
    for first, second in ((old, new), (new, old), (new, other), (nobody, new), (old, old)):
        assert compare(first, second) is None
    (step,) = steps([old, new])
    assert not step.tie and step.to_json()["tie"] is None
    assert interval(old) is None and interval(nobody) is None
    assert tied(new, [old, other]) == ()
    assert steps([new]) == () == steps([])


def test_older_evaluations_and_records_are_read() -> None:
    value = Evaluation(0.5, {"AP50": 0.7}, 1.0, False, "AAAA").to_json()
    assert Evaluation.from_json(value).resamples == "AAAA"
    del value["resamples"]
    assert Evaluation.from_json(value) == Evaluation(0.5, {"AP50": 0.7}, 1.0)
    stored = record(0, 0.5, "AAAA").to_json()
    assert Record.from_json(stored) == record(0, 0.5, "AAAA")
    del stored["resamples"]
    assert Record.from_json(stored) == record(0, 0.5)
