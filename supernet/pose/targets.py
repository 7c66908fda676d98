"""What the network is to answer: Gaussian heatmaps, and where each person's joints lie in the tag maps.

The conventions are those of associative embedding as HigherHRNet and LitePose train it. A joint's cell is
its map coordinate truncated toward zero; a joint whose cell is outside the map, or with v = 0, has no target.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError

__all__ = ["heatmaps", "tag_indices"]


def _cells(
    joints: NDArray[np.floating], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cell x, y of every joint and whether it has a target, each of shape (P, J)."""
    if joints.ndim != 3 or joints.shape[2] < 3:
        raise InputError(f"joints must have shape (people, joints, 3), got {joints.shape}")
    x, y = np.trunc(joints[..., 0]).astype(np.int64), np.trunc(joints[..., 1]).astype(np.int64)
    valid = (joints[..., 2] > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    return x, y, valid


def heatmaps(
    joints: NDArray[np.floating], height: int, width: int, sigma: float = 2.0
) -> NDArray[np.float32]:
    """Return one heatmap per joint with a Gaussian at every person's joint; the highest one counts.

    Parameters
    ----------
    joints
        x, y, v in map coordinates, shape (P, J, 3).
    height, width
        Size of the map.
    sigma
        Standard deviation of the Gaussian in cells. It is cut to a square of ``6 sigma + 3`` cells.

    Returns
    -------
    float32 (J, height, width), 1 at a joint's cell.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"heatmaps need a positive sigma, got {sigma}")
    xs, ys, valid = _cells(joints, height, width)
    radius = math.ceil(3 * sigma) + 1
    offsets = np.arange(-radius, radius + 1, dtype=np.float64)
    patch = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2)).astype(np.float32)
    side = len(offsets)
    # A margin around the maps spares the clipping of every patch: a joint costs one slice and one maximum.
    canvas = np.zeros((joints.shape[1], height + 2 * radius, width + 2 * radius), dtype=np.float32)
    for person, joint in zip(*np.nonzero(valid), strict=True):
        y, x = int(ys[person, joint]), int(xs[person, joint])
        window = canvas[joint, y : y + side, x : x + side]
        np.maximum(window, patch, out=window)
    return canvas[:, radius : radius + height, radius : radius + width]


def tag_indices(
    joints: NDArray[np.floating],
    height: int,
    width: int,
    max_people: int = 30,
    *,
    tag_per_joint: bool = True,
) -> NDArray[np.int64]:
    """Return where in the tag maps each person's joints are read.

    Parameters
    ----------
    joints
        x, y, v in map coordinates, shape (P, J, 3).
    height, width
        True size of the tag maps.
    max_people
        Rows of the result. Of more people those with most joints in the map are kept, in their order.
    tag_per_joint
        Whether every joint has a tag map of its own (LitePose); else all share one.

    Returns
    -------
    int64 (max_people, J, 2): flat index ``joint*height*width + y*width + x`` (without the first term where
    the joints share one map) and 1. A row's targets come first, in the order of joints; the rest is 0.
    """
    if max_people < 1:
        raise InputError(f"tag targets need room for at least one person, got max_people={max_people}")
    xs, ys, valid = _cells(joints, height, width)
    if len(valid) > max_people:
        keep = np.sort(np.argsort(-valid.sum(axis=1), kind="stable")[:max_people])
        xs, ys, valid = xs[keep], ys[keep], valid[keep]
    flat = ys * width + xs
    if tag_per_joint:
        flat = flat + np.arange(joints.shape[1]) * (height * width)
    out = np.zeros((max_people, joints.shape[1], 2), dtype=np.int64)
    person, joint = np.nonzero(valid)
    slot = np.cumsum(valid, axis=1)[person, joint] - 1
    out[person, slot, 0] = flat[person, joint]
    out[person, slot, 1] = 1
    return out
