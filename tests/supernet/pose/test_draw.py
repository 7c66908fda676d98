"""Drawings show what they are given, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces.errors import InputError
from supernet.pose.draw import contact_sheet, draw_caption, draw_people
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


def test_lines_follow_the_person_and_the_image() -> None:
    """A large figure in a large image has broad lines, a small one beside it narrow ones."""
    people = np.zeros((2, 17, 3))
    people[0, [5, 6]] = [[1700, 200, 1], [200, 200, 1]]
    people[1, [5, 6]] = [[500, 800, 1], [400, 800, 1]]
    drawn = draw_people(np.zeros((1200, 1900, 3), np.uint8), people, COCO17).any(axis=2)
    assert 8 <= drawn[:400, 950].sum() <= 25
    assert 1 <= drawn[700:900, 450].sum() <= 7
    tiny = np.zeros((1, 17, 3))
    tiny[0, [5, 6]] = [[80, 50, 1], [20, 50, 1]]
    assert draw_people(np.zeros((100, 100, 3), np.uint8), tiny, COCO17)[:, 50].any(axis=1).sum() <= 3


def test_the_best_person_lies_on_top() -> None:
    people = np.zeros((2, 17, 3))
    people[0, 5] = people[1, 6] = 32, 32, 1.0
    image = np.zeros((64, 64, 3), np.uint8)
    first = draw_people(image, people, COCO17)[32, 32].astype(int)
    second = draw_people(image, people[::-1], COCO17)[32, 32].astype(int)
    assert first[0] > first[2] and second[2] > second[0]


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (100, 100), (1080, 1920)])
def test_labels_and_captions_stay_within_images_of_any_size(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    joints = np.zeros((1, 17, 3))
    joints[0, 5] = -3, 2, 1.0
    for drawn in (
        draw_people(image, joints, COCO17, labels=["0.87"]),
        draw_caption(image, "network 12.3 ms   decode 4.5 ms   2 people   60.1 fps"),
    ):
        assert drawn.shape == image.shape
        assert (drawn != image).any() or size == (1, 1)
        assert (image == 200).all()
    captioned = draw_caption(image, "network")
    assert (captioned[size[0] // 2 + 40 :] == 200).all()


def test_labels_are_written_for_their_people_only() -> None:
    people = np.zeros((2, 17, 3))
    people[0, 5] = 150, 100, 1.0
    image = np.zeros((200, 300, 3), np.uint8)
    plain, labelled = (
        draw_people(image, people, COCO17),
        draw_people(image, people, COCO17, labels=["a", "b"]),
    )
    y, x = np.nonzero((plain != labelled).any(axis=2))
    assert len(x) and x.min() > 100 and x.max() < 200 and y.max() < 100
