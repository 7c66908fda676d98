"""Drawn crowds: grouping finds exactly the people who were drawn, where they were drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from search_spaces import InputError
from supernet.pose.crowd import crowd_maps, draw_crowd, network_outputs
from supernet.pose.decode import GroupingConfig, decode
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton, get_skeleton

SIZE = (96, 128)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", ["coco17", "crowdpose14"])
@pytest.mark.parametrize("people", [0, 1, 4])
def test_the_people_drawn_are_the_people_found(name: str, people: int) -> None:
    skeleton = get_skeleton(name)
    joints = draw_crowd(skeleton, people, SIZE, rng(people), places=32)
    maps = crowd_maps(joints, SIZE, 2.0, rng(1), highest_bump=0.09)
    found, scores = decode(*maps, GroupingConfig(refine=False), skeleton.grouping_order)
    sure = found[scores >= 0.1]
    assert len(sure) == people
    seen = sure[:, None, :, 2] > 0
    off = np.linalg.norm(sure[:, None, :, :2] - joints[None] - 0.5, axis=-1)
    cost = np.where(seen, off, 0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    rows, columns = linear_sum_assignment(cost)
    assert (cost[rows, columns] < 1.0).all()  # each where one of them was drawn, to a pixel


def test_outputs_merge_to_the_maps_that_they_were_made_of() -> None:
    joints = draw_crowd(CROWDPOSE14, 3, SIZE, rng())
    det, tags = crowd_maps(joints, SIZE, 2.0, rng(1))
    outputs = network_outputs(det, tags, (SIZE[0] // 2, SIZE[1] // 2))
    assert [tuple(each.shape) for each in outputs] == [(1, 28, 48, 64), (1, 14, 96, 128)]

    class Same(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return outputs

    merged, _ = predict_maps(Same(), torch.zeros(1, 3, 192, 256), None, EvalConfig(192))
    np.testing.assert_allclose(merged[0].numpy(), det, atol=1e-6)


def test_bumps_stay_below_what_is_asked() -> None:
    nobody = draw_crowd(COCO17, 0, SIZE, rng())
    assert crowd_maps(nobody, SIZE, 2.0, rng(1))[0].max() > 0.1
    assert crowd_maps(nobody, SIZE, 2.0, rng(1), highest_bump=0.09)[0].max() <= 0.09


def test_a_choice_of_places_keeps_people_apart() -> None:
    def nearest(places: int) -> float:
        joints = draw_crowd(COCO17, 20, SIZE, rng(3), places=places)
        gaps = np.linalg.norm(joints[:, None] - joints[None], axis=-1).min(axis=-1)
        return float(gaps[~np.eye(20, dtype=bool)].min())

    assert nearest(32) > nearest(1)


def test_joints_that_coco_lacks_lie_within_the_map() -> None:
    hand = Skeleton(
        "hand", tuple(f"finger{i}" for i in range(6)), flip_pairs=(), sigmas=(0.05,) * 6, limbs=()
    )
    joints = draw_crowd(hand, 5, SIZE, rng())
    assert joints.shape == (5, 6, 2)
    assert (joints >= 0).all() and (joints < SIZE[::-1]).all()
    assert len(np.unique(joints.reshape(-1, 2), axis=0)) == 30


@pytest.mark.parametrize(("people", "size"), [(-1, SIZE), (1, (7, 64))])
def test_what_cannot_be_drawn_is_refused(people: int, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="a crowd has 0 people or more"):
        draw_crowd(COCO17, people, size, rng())
