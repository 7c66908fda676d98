"""Pictures for the eye: people's joints and limbs drawn over an image, and sheets of many images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from supernet.pose.skeleton import Skeleton, canonical_joint

__all__ = ["contact_sheet", "draw_people"]

_LEFT: Final = (255, 148, 40)
_RIGHT: Final = (60, 170, 255)
_MIDDLE: Final = (120, 225, 90)


def _colour(skeleton: Skeleton, joints: Sequence[int]) -> tuple[int, int, int]:
    sides = {canonical_joint(skeleton.joints[joint]).split("_")[0] for joint in joints}
    if "left" in sides and "right" not in sides:
        return _LEFT
    if "right" in sides and "left" not in sides:
        return _RIGHT
    return _MIDDLE


def draw_people(
    image: NDArray[np.uint8],
    people: NDArray[np.floating],
    skeleton: Skeleton,
    threshold: float = 0.0,
    thickness: int | None = None,
) -> NDArray[np.uint8]:
    """Draw people over a copy of an image: left limbs orange, right limbs blue, the middle green.

    Parameters
    ----------
    image
        RGB, uint8 (H, W, 3).
    people
        Shape (P, J, 3 or more): x, y in pixels and a visibility or score.
    skeleton
        Names and limbs of the J joints.
    threshold
        Joints whose third value is not above this are left out, with their limbs.
    thickness
        Width of the lines in pixels; by default it follows the image's size.

    Raises
    ------
    InputError
        If the joints are not those of the skeleton.
    """
    if people.ndim != 3 or people.shape[1] != len(skeleton) or people.shape[2] < 3:
        raise InputError(
            f"people must have shape (people, {len(skeleton)}, 3 or more) for skeleton '{skeleton.name}', "
            f"got {people.shape}"
        )
    canvas = image.copy()
    width = thickness or max(1, round(min(image.shape[:2]) / 160))
    for person in people:
        shown = (person[:, 2] > threshold) & np.isfinite(person[:, :2]).all(axis=1)
        fixed = np.where(shown[:, None], person[:, :2] * 16 + 0.5, 0).astype(np.int32).tolist()
        for limb in skeleton.limbs:
            if shown[list(limb)].all():
                a, b = fixed[limb[0]], fixed[limb[1]]
                cv2.line(canvas, a, b, _colour(skeleton, limb), width, cv2.LINE_AA, 4)
        for joint in np.flatnonzero(shown).tolist():
            radius = round(16 * (width + 0.5))
            cv2.circle(canvas, fixed[joint], radius, _colour(skeleton, [joint]), -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, fixed[joint], radius, (255, 255, 255), 1, cv2.LINE_AA, 4)
    return canvas


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], columns: int, gap: int = 4, background: int = 255
) -> NDArray[np.uint8]:
    """Lay images out in rows of ``columns``; each is centred in a cell of the largest image's size.

    Raises
    ------
    InputError
        If there is no image or no column.
    """
    if not images or columns < 1:
        raise InputError(f"a contact sheet needs images and columns, got {len(images)} and {columns}")
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, background, dtype=np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap) + (height - image.shape[0]) // 2
        left = gap + index % columns * (width + gap) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet
