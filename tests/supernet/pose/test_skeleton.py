"""Skeletons as data: published ones, files of the user's, matching by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.skeleton import (
    COCO17,
    CROWDPOSE14,
    DEFAULT_SIGMA,
    SKELETONS,
    Skeleton,
    canonical_joint,
    get_skeleton,
    joint_map,
)


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=list(SKELETONS))
class TestPublished:
    def test_flip_is_an_involution_that_changes_sides(self, skeleton: Skeleton) -> None:
        index = skeleton.flip_index
        assert (index[index] == np.arange(len(skeleton))).all()
        for joint, other in enumerate(index):
            name = skeleton.joints[joint]
            swapped = name.replace("left_", "right_") if "left_" in name else name.replace("right_", "left_")
            assert skeleton.joints[other] == swapped

    def test_mirrored_limbs_are_limbs(self, skeleton: Skeleton) -> None:
        limbs = {frozenset(limb) for limb in skeleton.limbs}
        assert {frozenset(int(skeleton.flip_index[joint]) for joint in limb) for limb in limbs} == limbs

    def test_grouping_order_is_a_permutation(self, skeleton: Skeleton) -> None:
        assert sorted(skeleton.grouping_order) == list(range(len(skeleton)))
        derived = dataclasses.replace(skeleton, order=()).grouping_order
        assert sorted(derived) == list(range(len(skeleton)))

    def test_json_round_trip(self, skeleton: Skeleton, tmp_path: Path) -> None:
        assert Skeleton.from_json(json.loads(json.dumps(skeleton.to_json()))) == skeleton
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(skeleton.to_json()))
        assert get_skeleton(path) == skeleton


def test_published_numbers() -> None:
    assert (len(COCO17), len(CROWDPOSE14)) == (17, 14)
    assert COCO17.grouping_order == (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
    assert CROWDPOSE14.grouping_order[:6] == (0, 1, 6, 7, 13, 12)  # from the torso outward
    assert COCO17.sigmas[COCO17.joints.index("left_hip")] == 0.107
    assert CROWDPOSE14.sigmas == (*COCO17.sigmas[5:], 0.079, 0.079)


def test_twelve_joints_are_shared() -> None:
    assert joint_map(COCO17, CROWDPOSE14).tolist() == [*range(5, 17), -1, -1]
    assert joint_map(CROWDPOSE14, COCO17).tolist() == [-1] * 5 + list(range(12))


def test_names_that_mean_the_same_elsewhere_stay_apart() -> None:
    """MPII tells the upper neck from the thorax; others have one neck."""
    torso = Skeleton("mpii", ("pelvis", "thorax", "upper_neck", "head_top"), (), (0.1,) * 4, ())
    assert joint_map(torso, torso).tolist() == [0, 1, 2, 3]
    assert joint_map(torso, CROWDPOSE14).tolist() == [-1] * 12 + [3, 2]
    assert joint_map(CROWDPOSE14, torso).tolist() == [-1, -1, 13, 12], "no joint is used twice"


@given(st.permutations(range(17)))
def test_joint_map_of_a_permuted_skeleton_inverts_it(order: list[int]) -> None:
    other = Skeleton("other", tuple(COCO17.joints[joint] for joint in order), (), (0.1,) * 17, ())
    mapping = joint_map(other, COCO17)
    assert [order[joint] for joint in mapping] == list(range(17))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("Left Shoulder", "left_shoulder"),
        ("R-Elbow", "right_elbow"),
        ("kneeLeft", "left_knee"),
        ("top_head", "head"),
        ("head", "head"),
        ("left", "left"),
        ("nose", "nose"),
    ],
)
def test_canonical_names(name: str, canonical: str) -> None:
    assert canonical_joint(name) == canonical


def test_skeleton_of_a_file_by_names(tmp_path: Path) -> None:
    path = tmp_path / "dog.yaml"
    path.write_text(
        "joints: [nose, left_paw, right_paw, tail]\nlimbs: [[nose, tail], [tail, left_paw], [3, 2]]\n"
    )
    dog = get_skeleton(path)
    assert dog.name == "dog"
    assert dog.flip_pairs == ((1, 2),)
    assert dog.sigmas == (0.026, DEFAULT_SIGMA, DEFAULT_SIGMA, DEFAULT_SIGMA)
    assert dog.limbs == ((0, 3), (3, 1), (3, 2))
    assert dog.grouping_order == (0, 3, 1, 2)


def test_category_with_wrong_limbs_gets_the_published_ones() -> None:
    category = {"keypoints": list(CROWDPOSE14.joints), "skeleton": [[16, 14], [17, 15]]}
    assert Skeleton.from_category(category, "file") is CROWDPOSE14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": ("a", "a", "c")}, "'a' is there more than once"),
        ({"flip_pairs": ((0, 3),)}, r"flip_pairs must be pairs of two different joints 0\.\.2, not \[0, 3\]"),
        ({"flip_pairs": ((0, 1), (1, 2))}, "one of the flip_pairs only"),
        ({"limbs": ((1, 1),)}, "limbs must be pairs"),
        ({"sigmas": (0.1, 0.1)}, "sigmas must be 3 positive numbers"),
        ({"sigmas": (0.1, 0.1, float("nan"))}, "sigmas must be 3 positive numbers"),
        ({"order": (0, 1, 1)}, "order must name every joint"),
        ({"joints": (), "sigmas": ()}, "at least one joint"),
    ],
)
def test_a_wrong_skeleton_is_refused(change: dict[str, Any], message: str) -> None:
    sound = Skeleton("abc", ("a", "b", "c"), ((0, 1),), (0.1, 0.1, 0.1), ((0, 2),))
    with pytest.raises(InputError, match=message):
        dataclasses.replace(sound, **change)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a mapping"),
        ({"joint": ["a"]}, "unknown key 'joint'; did you mean 'joints'"),
        ({"joints": "abc"}, "'joints' must be a list"),
        ({"joints": ["a", "b"], "limbs": [["a", "bb"]]}, "names joint 'bb'"),
        ({"joints": ["a", "b"], "limbs": [["a"]]}, "list of pairs"),
        ({"joints": ["a", "b"], "limbs": [[0, 0.5]]}, "joint names or 0-based indices"),
        ({"joints": ["a", "b"], "sigmas": ["x", 1]}, "'sigmas' must be a list of numbers"),
    ],
)
def test_wrong_json_is_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Skeleton.from_json(value)


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(InputError, match="did you mean 'coco17'"):
        get_skeleton("coco-17")
    with pytest.raises(InputError, match="does not exist"):
        get_skeleton("nowhere.json")
