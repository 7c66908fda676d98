"""What the network is to answer: Gaussian heatmaps, and where each person's joints lie in the tag maps.

The conventions are those of associative embedding as HigherHRNet and LitePose train it. A joint's cell is
its map coordinate truncated toward zero; a joint whose cell is outside the map, or with v = 0, has no target.
Both functions take whole batches, padded with people whose joints all have v = 0.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import InputError

__all__ = ["draw_heatmaps", "tag_indices"]

_SINGLE_THREADED: Final = 32768
"""Elements below which torch's operators on a CPU start no threads, which belong to the training."""


def _cells(
    joints: NDArray[np.floating], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cell x, y of every joint and whether it has a target, each of shape (..., P, J)."""
    if joints.ndim < 3 or joints.shape[-1] < 3:
        raise InputError(f"joints must have shape (..., people, joints, 3), got {joints.shape}")
    x, y = np.trunc(joints[..., 0]).astype(np.int64), np.trunc(joints[..., 1]).astype(np.int64)
    valid = (joints[..., 2] > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    return x, y, valid


def draw_heatmaps(
    joints: NDArray[np.floating],
    height: int,
    width: int,
    sigma: float = 2.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one heatmap per image and joint with a Gaussian at every person's joint; the highest one counts.

    What travels to ``device`` is four numbers per joint; the Gaussians' values are the same on every device.

    Parameters
    ----------
    joints
        x, y, v in map coordinates, shape (N, P, J, 3).
    height, width
        Size of the maps.
    sigma
        Standard deviation of the Gaussian in cells. It is cut to a square of ``6 sigma + 3`` cells.
    device
        Where the maps are drawn.

    Returns
    -------
    float32 (N, J, height, width), channels last in memory as the network's are; 1 at a joint's cell.

    Raises
    ------
    InputError
        If the shape or sigma is wrong.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"heatmaps need a positive sigma, got {sigma}")
    if joints.ndim != 4:
        raise InputError(f"a batch of joints must have shape (N, people, joints, 3), got {joints.shape}")
    xs, ys, valid = _cells(joints, height, width)
    image, _, joint = np.nonzero(valid)
    count, channels = joints.shape[0], joints.shape[2]
    radius = math.ceil(3 * sigma) + 1
    offsets = np.arange(-radius, radius + 1)
    gaussian = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2)).astype(np.float32)

    maps = _zeros((count, height, width, channels), device)
    flat = maps.view(-1)
    patch, reach = (torch.from_numpy(each).to(device) for each in (gaussian, offsets))
    places = torch.from_numpy(np.stack([image, joint, ys[valid], xs[valid]])).to(device, non_blocking=True)
    at_once = max(1, _SINGLE_THREADED // patch.numel()) if maps.device.type == "cpu" else places.shape[1]
    for image_, joint_, y, x in (part[..., None] for part in torch.split(places, max(at_once, 1), dim=1)):
        rows, columns = y + reach, x + reach
        row_inside = (rows >= 0) & (rows < height)
        column_inside = (columns >= 0) & (columns < width)
        # What lies outside becomes a 0 at the border, and a 0 is never the highest.
        begins = (image_ * height + rows.clamp_(0, height - 1)) * (width * channels)
        steps = columns.clamp_(0, width - 1) * channels + joint_
        values = (patch * row_inside[:, :, None]).mul_(column_inside[:, None])
        flat.scatter_reduce_(0, (begins[:, :, None] + steps[:, None]).view(-1), values.view(-1), "amax")
    return maps.permute(0, 3, 1, 2)


def _zeros(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Return float32 zeros; NumPy asks the system for large pages, with which a CPU gets them far sooner."""
    if torch.device(device).type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, device=device)


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
        x, y, v in map coordinates, shape (P, J, 3), or (N, P, J, 3) for a batch.
    height, width
        True size of the tag maps.
    max_people
        Rows of the result. Of more people those with most joints in the map are kept, in their order.
    tag_per_joint
        Whether every joint has a tag map of its own (LitePose); else all share one.

    Returns
    -------
    int64 (max_people, J, 2), or (N, max_people, J, 2): flat index ``joint*height*width + y*width + x``
    (without the first term where the joints share one map) and 1. A row's targets come first, in the order of
    joints; the rest is 0.

    Raises
    ------
    InputError
        If the shape or ``max_people`` is wrong.
    """
    if max_people < 1:
        raise InputError(f"tag targets need room for at least one person, got max_people={max_people}")
    xs, ys, valid = _cells(joints, height, width)
    flat = ys * width + xs
    if tag_per_joint:
        flat = flat + np.arange(joints.shape[-2]) * (height * width)
    if valid.shape[-2] > max_people:
        keep = np.argsort(-valid.sum(axis=-1), axis=-1, kind="stable")[..., :max_people]
        keep = np.sort(keep, axis=-1)[..., None]
        flat, valid = np.take_along_axis(flat, keep, axis=-2), np.take_along_axis(valid, keep, axis=-2)
    out = np.zeros((*valid.shape[:-2], max_people, valid.shape[-1], 2), dtype=np.int64)
    slots = np.cumsum(valid, axis=-1)[valid] - 1
    *row, _ = np.nonzero(valid)
    out[(*row, slots)] = np.stack([flat[valid], np.ones_like(slots)], axis=-1)
    return out
