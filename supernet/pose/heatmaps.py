"""From the heatmaps of one person to places of joints.

Every map shows one joint of one person, so its highest cell is the joint; what remains is where in that cell
it lies. Coordinates are in the continuous frame in which cell ``i`` covers ``[i, i + 1)``, as in
:mod:`supernet.pose.decode`: the middle of cell ``i`` is at ``i + 0.5``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import InputError, did_you_mean
from supernet.pose.decode import FloatArray, IntArray, newton_steps

__all__ = ["HeatmapDecoding", "decode_heatmaps", "flip_maps", "read_decoding"]

HeatmapDecoding = Literal["argmax", "quarter", "dark"]


def read_decoding(text: str, what: str = "decoding") -> HeatmapDecoding:
    """Return the way to read heatmaps that a text names; ``what`` names the setting in the error.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    for known in get_args(HeatmapDecoding):
        if text == known:
            found: HeatmapDecoding = known
            return found
    raise InputError(f"{what}: unknown '{text}'{did_you_mean(text, get_args(HeatmapDecoding))}")


def decode_heatmaps(maps: FloatArray, method: HeatmapDecoding = "dark", sigma: float = 2.0) -> FloatArray:
    """Return where each map is highest, finer than its cells, and how high.

    ``argmax`` is the middle of the highest cell; of several equal ones the first in the map. ``quarter``
    moves from there a quarter cell toward the higher neighbour in x and in y; where both are equally high, or
    the cell is at the border, it does not. ``dark`` (arXiv 1910.06278) takes the map for a Gaussian and finds
    its top by a Newton step on the logarithm of the blurred map, see
    :func:`supernet.pose.decode.newton_steps`. The published code also scales the blurred map so that its
    maximum is the old one; that shifts the logarithm by a constant, so it changes no step. A step that is not
    to be believed (there is no maximum, or it is farther than ``sigma``) is not made. The published code does
    not move peaks next to the border either; here what lies beyond it is continued, since in small maps many
    joints are near it.

    Parameters
    ----------
    maps
        Heatmaps (N, J, h, w) of N people.
    method
        How a joint is placed within its cell.
    sigma
        Standard deviation, in cells, of the Gaussians in the maps and of ``dark``'s blur.

    Returns
    -------
    float32 (N, J, 3): x, y in cells (see the module's note on the frame) and the map's value there.

    Raises
    ------
    InputError
        If the shape, the method or sigma is wrong.
    """
    if maps.ndim != 4 or not maps.shape[2] * maps.shape[3]:
        raise InputError(f"heatmaps of people must be (N, J, h, w), not {maps.shape}")
    if method not in get_args(HeatmapDecoding):
        raise InputError(
            f"heatmaps are decoded by one of {', '.join(get_args(HeatmapDecoding))}, not {method!r}"
        )
    if not (0 < sigma <= 100 and math.isfinite(sigma)):
        raise InputError(f"decoding: sigma lies above 0 and is at most 100 cells, not {sigma}")
    count, joints, height, width = maps.shape
    planes = np.ascontiguousarray(maps, dtype=np.float32).reshape(-1, height, width)
    at = planes.reshape(len(planes), height * width).argmax(axis=1)
    y, x = np.divmod(at, width)
    plane = np.arange(len(planes))
    found = np.empty((len(planes), 3), np.float32)
    found[:, 0], found[:, 1], found[:, 2] = x + 0.5, y + 0.5, planes[plane, y, x]
    if method == "quarter":
        found[:, 0] += _quarter(planes, plane, x, y, 1)
        found[:, 1] += _quarter(planes, plane, x, y, 0)
    elif method == "dark":
        step_x, step_y, sure = newton_steps(planes, plane, x, y, sigma, reflect=True)
        found[:, 0] += np.where(sure, step_x, 0.0)
        found[:, 1] += np.where(sure, step_y, 0.0)
    return found.reshape(count, joints, 3)


def _quarter(planes: FloatArray, plane: IntArray, x: IntArray, y: IntArray, column: int) -> FloatArray:
    """Return the quarter step in x (``column`` 1) or in y (0)."""
    row, side = 1 - column, planes.shape[2 if column else 1]
    place = x if column else y
    inner = (place > 0) & (place < side - 1)
    step_x, step_y = column * inner, row * inner
    difference = planes[plane, y + step_y, x + step_x] - planes[plane, y - step_y, x - step_x]
    return np.asarray(0.25 * np.sign(difference), dtype=np.float32)


def flip_maps(maps: Tensor, flip_index: NDArray[np.int64]) -> Tensor:
    """Return the heatmaps of mirrored pictures as those of the pictures: mirrored back, sides exchanged.

    Cells of a map divide the input evenly, so mirroring the map carries cell onto cell, and maps of a picture
    and its mirror image can be averaged as they are.

    Parameters
    ----------
    maps
        Heatmaps (N, J, h, w).
    flip_index
        (J,): joint that each joint becomes in the mirror.

    Raises
    ------
    InputError
        If there are not as many joints as maps.
    """
    if len(flip_index) != maps.shape[1]:
        raise InputError(
            f"flip test needs one mirrored joint for each of the network's {maps.shape[1]} joints, not"
            f" {len(flip_index)}"
        )
    return maps.flip(3)[:, torch.as_tensor(flip_index, device=maps.device)]
