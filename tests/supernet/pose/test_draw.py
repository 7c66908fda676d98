"""Drawings show what they are given, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces.errors import InputError
from supernet.pose.draw import contact_sheet, draw_people
from supernet.pose.skeleton import COCO17


def person() -> np.ndarray:
    joints = np.zeros((1, 17, 3))
    joints[0, 5] = 70, 30, 1.0
    joints[0, 6] = 30, 30, 0.2
    return joints


def test_joints_above_the_threshold_are_drawn() -> None:
    image = np.zeros((64, 100, 3), np.uint8)
    drawn = draw_people(image, person(), COCO17, threshold=0.1)
    assert not image.any()
    assert drawn[30, 70].any()
    assert drawn[30, 30].any()
    assert drawn[30, 50].any(), "the limb between the shoulders"
    one = draw_people(image, person(), COCO17, threshold=0.5)
    assert one[30, 70].any()
    assert not one[:, :60].any()
    assert not draw_people(image, person(), COCO17, threshold=1.0).any()


def test_sides_have_colours_of_their_own() -> None:
    image = np.zeros((64, 100, 3), np.uint8)
    drawn = draw_people(image, person(), COCO17)
    left, right = drawn[30, 70].astype(int), drawn[30, 30].astype(int)
    assert left[0] > left[2]
    assert right[2] > right[0]


def test_joints_far_outside_do_no_harm() -> None:
    joints = person()
    joints[0, 5, :2] = np.nan, 1e4
    draw_people(np.zeros((64, 100, 3), np.uint8), joints, COCO17)


def test_other_skeletons_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(people, 17, 3 or more\)"):
        draw_people(np.zeros((8, 8, 3), np.uint8), np.zeros((1, 14, 3)), COCO17)


def test_contact_sheet_holds_every_image() -> None:
    images = [np.full((10 + i, 20 - i, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = contact_sheet(images, 3, gap=2, background=255)
    assert sheet.shape == (2 * 16 + 2, 3 * 22 + 2, 3)
    for i, image in enumerate(images):
        assert (sheet[..., 0] == 40 * (i + 1)).sum() == image[..., 0].size
    with pytest.raises(InputError, match="got 0 and 3"):
        contact_sheet([], 3)
