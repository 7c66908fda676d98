"""Error diagnosis on made-up people whose errors are known because they were put there."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from search_spaces.errors import InputError
from supernet.pose.diagnosis import JOINT_ERRORS, ErrorBreakdown, diagnose
from supernet.pose.metrics import keypoint_ap
from supernet.pose.skeleton import COCO17, Skeleton
from tests.supernet.pose.people import random_case, scorable

BODY = Skeleton(
    name="body",
    joints=("head", "left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_foot", "right_foot"),
    flip_pairs=((1, 2), (3, 4), (5, 6)),
    sigmas=(0.05,) * 7,
    limbs=(),
)
SHAPE = np.array([(50, 0), (20, 30), (80, 30), (30, 60), (70, 60), (25, 100), (75, 100)], float)
AREA = 5000.0
UNIT = 2 * 0.05 * AREA**0.5  # a joint's ks is exp(-.5) at this distance: .85 at .57 of it, .5 at 1.18


class Scene:
    """Two images of three people each, far apart and all found exactly, until a test spoils something."""

    def __init__(self) -> None:
        self.people = [SHAPE + np.array([300.0 * slot, 0.0]) for _ in range(2) for slot in range(3)]
        self.labelled = np.ones((6, 7), bool)
        self.found = [points.copy() for points in self.people]
        self.scores = [0.9 - 0.01 * number for number in range(6)]
        self.images = [1 + number // 3 for number in range(6)]
        self.crowds: list[int] = []

    def add(self, image: int, points: NDArray[np.float64], score: float) -> None:
        self.found.append(points)
        self.images.append(image)
        self.scores.append(score)

    def truth(self) -> dict[str, Any]:
        annotations = []
        for number, points in enumerate(self.people):
            flags = 2.0 * self.labelled[number]
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": 1 + number // 3,
                    "category_id": 1,
                    "bbox": [*points.min(axis=0).tolist(), 60.0, 100.0],
                    "area": AREA,
                    "iscrowd": int(number in self.crowds),
                    "keypoints": np.column_stack([points, flags]).ravel().tolist(),
                    "num_keypoints": int(self.labelled[number].sum()),
                }
            )
        images, categories = [{"id": 1}, {"id": 2}], [{"id": 1, "name": "person"}]
        return {"images": images, "annotations": annotations, "categories": categories}

    def detections(self) -> list[dict[str, Any]]:
        return [
            {
                "image_id": image,
                "category_id": 1,
                "keypoints": np.column_stack([points, np.ones(7)]).ravel().tolist(),
                "score": score,
            }
            for image, points, score in zip(self.images, self.found, self.scores, strict=True)
        ]

    def errors(self) -> ErrorBreakdown:
        found = diagnose(self.truth(), self.detections(), BODY).errors
        assert found.ap == pytest.approx(keypoint_ap(self.truth(), self.detections(), BODY.sigmas)["AP"])
        return found


def expect(errors: ErrorBreakdown, **kinds: list[int]) -> None:
    """Check that exactly these joints (given by index, once per occurrence) have errors of these kinds."""
    for kind in JOINT_ERRORS:
        counts = np.bincount(kinds.get(kind, []), minlength=7)
        assert errors.errors[kind].tolist() == counts.tolist(), kind


def test_perfect_detections_have_no_errors() -> None:
    scene = Scene()
    errors = scene.errors()
    expect(errors)
    assert errors.good.tolist() == [6] * 7
    assert (errors.people, errors.missed, errors.detections) == (6, 0, 6)
    assert (errors.duplicates, errors.background, errors.unfound.sum()) == (0, 0, 0)
    assert errors.ap == pytest.approx(1.0)
    assert errors.repaired == pytest.approx(dict.fromkeys(errors.repaired, 1.0))
    accuracy = diagnose(scene.truth(), scene.detections(), BODY).accuracy
    assert accuracy.of_found.tolist() == accuracy.of_all.tolist() == [1.0] * 7


@pytest.mark.parametrize(
    ("units", "kind"), [(0.5, None), (0.6, "jitter"), (1.1, "jitter"), (1.25, "miss"), (9.0, "miss")]
)
def test_a_joint_that_is_off_is_jitter_and_then_a_miss(units: float, kind: str | None) -> None:
    scene = Scene()
    scene.found[4][0] += (0.0, -units * UNIT)
    errors = scene.errors()
    expect(errors, **({kind: [0]} if kind else {}))
    assert errors.good[0] == 6 - bool(kind)
    if units > 1:  # below, the OKS is still above .95
        assert errors.ap < 1.0
        assert {k: v > errors.ap for k, v in errors.repaired.items()} == {
            **dict.fromkeys(errors.repaired, False),
            kind: True,
            "scoring": True,
        }
        assert errors.repaired[kind] == pytest.approx(1.0)


def test_left_for_right_is_an_inversion() -> None:
    scene = Scene()
    scene.found[1][[1, 2]] = scene.found[1][[2, 1]]  # both shoulders
    scene.found[5][5] = scene.people[5][6] + (0.3 * UNIT, 0.0)  # the left foot at the right one
    errors = scene.errors()
    expect(errors, inversion=[1, 2, 5])
    assert errors.ap < errors.repaired["inversion"] == pytest.approx(1.0)
    assert errors.repaired["miss"] == errors.ap


def test_the_other_side_must_be_labelled_to_be_taken_for_it() -> None:
    scene = Scene()
    scene.found[1][1] = scene.people[1][2]
    scene.labelled[1, 2] = False
    expect(scene.errors(), miss=[1])


@pytest.mark.parametrize("joint", [3, 4])
def test_another_persons_joint_is_a_swap(joint: int) -> None:
    """Also where it is that person's other hip."""
    scene = Scene()
    scene.found[0][3] = scene.people[2][joint] + (0.0, 0.3 * UNIT)
    errors = scene.errors()
    expect(errors, swap=[3])
    assert errors.repaired["swap"] == pytest.approx(1.0)


def test_people_of_other_images_and_crowds_are_no_swap() -> None:
    scene = Scene()
    scene.people[3] += (0.0, 400.0)  # image 2: its first person stands elsewhere
    scene.found[3] = scene.people[3].copy()
    scene.found[0][3] = scene.people[3][3]
    scene.found[4][0] = scene.people[5][0]
    scene.crowds = [5]
    expect(scene.errors(), miss=[3, 0])


def test_the_nearer_of_two_wrong_places_decides() -> None:
    for shift, kind in ((0.2, "swap"), (0.8, "inversion")):
        scene = Scene()
        # The second person's left shoulder is one unit left of the first person's right shoulder.
        scene.people[1] += scene.people[0][2] - scene.people[1][1] + np.array([UNIT, 0.0])
        scene.found[1] = scene.people[1].copy()
        scene.found[0][1] = scene.people[0][2] + ((1 - shift) * UNIT, 0.0)
        expect(scene.errors(), **{kind: [1]})


def test_missed_people_ghosts_and_doubles_are_counted() -> None:
    scene = Scene()
    scene.labelled[2, 6] = False
    for each in (scene.found, scene.images, scene.scores):
        del each[2]  # the third person is missed
    scene.add(1, SHAPE + np.array([0.0, 700.0]), 0.99)  # nobody is there
    scene.add(2, scene.people[4] + (0.1 * UNIT, 0.0), 0.5)  # the fifth person again
    errors = scene.errors()
    expect(errors)
    assert (errors.people, errors.missed, errors.detections) == (6, 1, 7)
    assert (errors.background, errors.duplicates) == (1, 1)
    assert errors.unfound.tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert errors.good.tolist() == [5] * 7
    for kind in ("missed", "background"):
        assert errors.repaired[kind] > errors.ap + 0.05
    without = copy.deepcopy(scene)
    for each in (without.found, without.images, without.scores):
        del each[5]
    assert errors.repaired["background"] == pytest.approx(without.errors().ap)
    # The double comes last, so it costs nothing; the joints are right.
    assert {errors.repaired[kind] for kind in ("duplicates", *JOINT_ERRORS)} == {errors.ap}


def test_detections_on_crowds_are_no_errors() -> None:
    scene = Scene()
    scene.crowds = [2]
    scene.add(1, scene.people[2] + 0.1 * UNIT, 0.4)
    errors = scene.errors()
    assert (errors.people, errors.missed, errors.background, errors.duplicates) == (5, 0, 0, 0)
    assert errors.good.tolist() == [5] * 7


def test_scores_in_the_wrong_order_are_repaired() -> None:
    scene = Scene()
    scene.add(1, SHAPE + np.array([0.0, 700.0]), 0.99)
    errors = scene.errors()
    assert errors.ap < errors.repaired["scoring"] == pytest.approx(1.0)


def test_leaving_out_a_better_double_costs() -> None:
    """A first detection, by score, of an OKS of .6 has taken the person; a later one is exact."""
    scene = Scene()
    scene.add(1, scene.people[0].copy(), 0.1)
    scene.found[0] += UNIT
    errors = scene.errors()
    assert errors.duplicates == 1
    assert errors.repaired["duplicates"] < errors.ap < errors.repaired["scoring"] == pytest.approx(1.0)


def test_nobody_found_leaves_nothing_but_missed_people() -> None:
    scene = Scene()
    scene.found, scene.images, scene.scores = [], [], []
    found = diagnose(scene.truth(), scene.detections(), BODY)
    assert (found.errors.missed, found.errors.ap) == (6, 0.0)
    assert found.errors.repaired["missed"] == 1.0
    assert found.errors.unfound.tolist() == [6] * 7
    assert np.isnan(found.accuracy.of_found).all()
    assert found.accuracy.of_all.tolist() == [0.0] * 7
    json.dumps([found.errors.to_json(), found.accuracy.to_json()], allow_nan=False)


def test_pck_counts_what_is_near_enough() -> None:
    """Boxes are 60 x 100, so a fifth is 20 pixels; the torso, shoulder to opposite hip, is 58.3 long."""
    scene = Scene()
    scene.found[0][0] += (19.9, 0.0)
    scene.found[1][0] += (20.1, 0.0)
    scene.found[2][6] += (0.0, 11.8)
    scene.labelled[3, 0] = False
    scene.labelled[4, 1] = False  # no left shoulder: no torso
    scene.people.append(SHAPE + np.array([900.0, 0.0]))  # missed, on image 3
    scene.labelled = np.vstack([scene.labelled, np.ones(7, bool)])
    truth = scene.truth()
    truth["images"].append({"id": 3})

    box = diagnose(truth, scene.detections(), BODY).accuracy
    assert box.labelled.tolist() == [6, 6, 7, 7, 7, 7, 7]
    assert box.found.tolist() == [5, 5, 6, 6, 6, 6, 6]
    assert box.right.tolist() == [4, 5, 6, 6, 6, 6, 6]
    assert box.of_found[0] == pytest.approx(4 / 5) and box.of_all[0] == pytest.approx(4 / 6)
    assert box.mean(box.of_found) == pytest.approx((4 / 5 + 6) / 7)
    assert box.mean(box.of_all) == pytest.approx((4 / 6 + 5 / 6 + 5 * 6 / 7) / 7)

    torso = diagnose(truth, scene.detections(), BODY, reference="torso").accuracy
    assert torso.labelled.tolist() == [5, 6, 6, 6, 6, 6, 6]
    assert torso.right.tolist() == [2, 5, 5, 5, 5, 5, 4]
    half = diagnose(truth, scene.detections(), BODY, reference="torso", fraction=0.5).accuracy
    assert half.right.tolist() == [4, 5, 5, 5, 5, 5, 5]


def test_only_the_joints_scored_are_looked_at() -> None:
    scene = Scene()
    scene.found[1][[1, 2]] = scene.found[1][[2, 1]]
    scene.found[0][6] += 500.0
    found = diagnose(scene.truth(), scene.detections(), BODY, joints=[0, 1, 3, 4])
    assert found.errors.joints == found.accuracy.joints == ("head", "left_shoulder", "left_hip", "right_hip")
    # The right shoulder is not scored, so the left one at its place is a miss.
    assert found.errors.errors["miss"].tolist() == [0, 1, 0, 0]
    assert sum(int(found.errors.errors[kind].sum()) for kind in ("jitter", "inversion", "swap")) == 0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_everything_adds_up(seed: int, ties: bool) -> None:
    truth, detections = random_case(seed, 17, 5, ties=ties)
    if not scorable(truth):
        return
    found = diagnose(truth, detections, COCO17)
    errors, accuracy = found.errors, found.accuracy
    labelled = [
        np.reshape(each["keypoints"], (17, 3))[:, 2] > 0
        for each in truth["annotations"]
        if each["num_keypoints"] and not each["iscrowd"]
    ]
    assert (errors.found + errors.unfound).tolist() == np.sum(labelled, axis=0).tolist()
    assert accuracy.labelled.tolist() == np.sum(labelled, axis=0).tolist()
    assert accuracy.found.tolist() == errors.found.tolist()
    assert (accuracy.right <= accuracy.found).all()
    assert errors.people == len(labelled) and 0 <= errors.missed <= errors.people
    per_image = np.bincount([each["image_id"] for each in detections], minlength=6)
    assert errors.detections == np.minimum(per_image, 20).sum()
    assert errors.duplicates + errors.background + errors.people - errors.missed <= errors.detections
    assert errors.ap == pytest.approx(keypoint_ap(truth, detections, COCO17.sigmas)["AP"], abs=1e-9)
    assert all(0.0 <= value <= 1.0 + 1e-9 for value in errors.repaired.values())
    assert errors.repaired["background"] >= errors.ap - 1e-9


def test_what_makes_no_sense_is_refused() -> None:
    scene = Scene()
    with pytest.raises(InputError, match="fraction above 0, not 0"):
        diagnose(scene.truth(), scene.detections(), BODY, fraction=0)
    with pytest.raises(InputError, match="needs left_shoulder and right_hip among the joints"):
        diagnose(scene.truth(), scene.detections(), BODY, joints=[0, 1], reference="torso")
