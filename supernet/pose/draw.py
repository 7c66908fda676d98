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

__all__ = ["contact_sheet", "draw_caption", "draw_people"]

_LEFT: Final = (255, 148, 40)
_RIGHT: Final = (60, 170, 255)
_MIDDLE: Final = (120, 225, 90)
_RIM: Final = (25, 25, 25)
_FAR: Final = 2**19
"""Sixteenths of a pixel beyond which OpenCV's drawing could overflow."""


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
    labels: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Draw people over a copy of an image: left limbs orange, right limbs blue, the middle green.

    Parameters
    ----------
    image
        RGB, uint8 (H, W, 3).
    people
        Shape (P, J, 3 or more): x, y in pixels and a visibility or score. The first are drawn last, on top.
    skeleton
        Names and limbs of the J joints.
    threshold
        Joints whose third value is not above this are left out, with their limbs.
    thickness
        Width of the lines in pixels; by default it follows each person's size, within what suits the image.
    labels
        A short text per person, written above its topmost joint.

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
    for row in range(len(people) - 1, -1, -1):
        person = people[row]
        shown = (person[:, 2] > threshold) & np.isfinite(person[:, :2]).all(axis=1)
        if not shown.any():
            continue
        width = thickness or _line_width(person[shown, :2], image.shape)
        fixed = np.where(shown[:, None], person[:, :2] * 16 + 0.5, 0).clip(-_FAR, _FAR)
        _draw_person(canvas, fixed.astype(np.int32).tolist(), shown, skeleton, width)
        if labels is not None:
            top = person[shown][person[shown, 1].argmin()]
            _label(canvas, labels[row], (float(top[0]), float(top[1]) - 3 * width))
    return canvas


def _line_width(joints: NDArray[np.floating], shape: tuple[int, ...]) -> int:
    """Return the width of a person's lines: a fixed part of its size, but no more than suits the image."""
    extent = float(np.ptp(joints, axis=0).max())
    return max(1, min(round(extent / 50), math.ceil(math.sqrt(shape[0] * shape[1]) / 150)))


def _draw_person(
    canvas: NDArray[np.uint8],
    fixed: list[list[int]],
    shown: NDArray[np.bool_],
    skeleton: Skeleton,
    width: int,
) -> None:
    """Draw limbs and joints, at points in sixteenths of a pixel; wide lines get a dark rim."""
    limbs = [limb for limb in skeleton.limbs if shown[list(limb)].all()]
    if width > 1:
        rim = width + 2 * max(1, round(width / 4))
        for a, b in limbs:
            cv2.line(canvas, fixed[a], fixed[b], _RIM, rim, cv2.LINE_AA, 4)
    for limb in limbs:
        cv2.line(canvas, fixed[limb[0]], fixed[limb[1]], _colour(skeleton, limb), width, cv2.LINE_AA, 4)
    radius = round(16 * (width * 0.75 + 0.75))
    ring = max(1, round(width / 4))
    for joint in np.flatnonzero(shown).tolist():
        cv2.circle(canvas, fixed[joint], radius, _colour(skeleton, [joint]), -1, cv2.LINE_AA, 4)
        if width > 1:
            cv2.circle(canvas, fixed[joint], radius, (255, 255, 255), ring, cv2.LINE_AA, 4)


def _text_scale(shape: tuple[int, ...]) -> float:
    """Return the size of letters that can be read in an image and do not fill it."""
    return float(np.clip(min(shape[:2]) / 900, 0.3, 3.0))


def _label(canvas: NDArray[np.uint8], text: str, at: tuple[float, float]) -> None:
    """Write light letters with a dark rim, centred above a point and kept within the image."""
    scale = _text_scale(canvas.shape)
    width = max(1, round(2 * scale))
    (across, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
    x = int(np.clip(at[0] - across / 2, 0, max(0, canvas.shape[1] - across)))
    y = int(np.clip(at[1], height, max(height, canvas.shape[0] - below)))
    for colour, extra in ((_RIM, 2 * width), ((255, 255, 255), 0)):
        cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, width + extra, cv2.LINE_AA)


def draw_caption(image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Write a line of text over a darkened strip at the top of a copy of an image.

    The letters follow the image's size; where the line would not fit they become smaller.
    """
    canvas = image.copy()
    scale = _text_scale(image.shape)
    (across, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    room = 0.96 * image.shape[1]
    scale *= min(1.0, room / max(1, across))
    width = max(1, round(1.5 * scale))
    (_, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
    gap = max(2, height // 2)
    strip = canvas[: height + below + 2 * gap]
    strip[:] = strip // 3
    place = (max(1, round(0.02 * image.shape[1])), gap + height)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), width, cv2.LINE_AA)
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
