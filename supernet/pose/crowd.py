"""Maps of crowds that were never photographed: what a good network would answer for so many people.

Maps of random weights show nobody, and photographs with exactly so many people are rare. Whoever wants to
know how long grouping takes draws the maps. They hold what a network's hold: a Gaussian per joint with one
person's tag around it, one joint in seven too weak to be a peak, bumps where nobody is, and a background
whose values span five orders of magnitude. How those values are spread was read off LitePose-M's maps of
photographs.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from search_spaces.errors import InputError
from supernet.pose.decode import FloatArray
from supernet.pose.skeleton import COCO17, Skeleton, joint_map
from supernet.pose.synthetic import generate

__all__ = ["crowd_maps", "draw_crowd", "network_outputs"]

_WEAK: Final = 1 / 7
"""Share of joints that are too weak to be a peak."""
_LEAST_SIDE: Final = 8
_TAG_RANGE: Final = 12.0


def draw_crowd(
    skeleton: Skeleton, people: int, size: tuple[int, int], rng: np.random.Generator, *, places: int = 1
) -> NDArray[np.float64]:
    """Return the joints of drawn people strewn over a map, x and y in its pixels: (P, J, 2).

    The bodies are :func:`supernet.pose.synthetic.generate`'s, a quarter to a half of the map's short side
    tall. A joint that these lack lies anywhere within its person. Each takes the one of ``places`` random
    places where the same joints of those before are farthest: with a few, even crowds stand apart.

    Raises
    ------
    InputError
        If there are fewer than 0 people, or the map has a side below 8 pixels.
    """
    if people < 0 or min(size) < _LEAST_SIDE:
        raise InputError(
            f"a crowd has 0 people or more on a map of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels, not"
            f" {people} on {size[0]}x{size[1]}"
        )
    source = joint_map(COCO17, skeleton)
    known = source >= 0
    placed = np.zeros((people, len(skeleton), 2))
    if not people:
        return placed
    inner = np.array(size[::-1]) - 1
    for number, (_, _, drawn) in enumerate(generate(people, seed=11, people=(1, 1))):
        person = placed[number]
        coco = np.reshape(drawn[0]["keypoints"], (17, 3))[:, :2]
        shoulders = coco[5:7].mean(axis=0)
        person[known] = coco[source[known]]
        for joint in np.flatnonzero(~known):
            match skeleton.joints[joint]:  # what COCO lacks, but its joints tell
                case "head":
                    person[joint] = 2 * coco[0] - shoulders
                case "neck":
                    person[joint] = shoulders
                case _:
                    person[joint] = rng.uniform(coco.min(axis=0), coco.max(axis=0))
        person -= person.min(axis=0)
        person *= min(size) * rng.uniform(0.25, 0.5) / person.max()
        offered = person + rng.uniform(0, inner - person.max(axis=0), (places, 1, 2))
        gaps = np.linalg.norm(offered[:, None] - placed[None, :number], axis=-1)
        placed[number] = offered[gaps.min(axis=(1, 2), initial=np.inf).argmax()]
    return placed


def crowd_maps(
    joints: NDArray[np.float64],
    size: tuple[int, int],
    sigma: float,
    rng: np.random.Generator,
    *,
    tag_range: float = _TAG_RANGE,
    highest_bump: float = 1.0,
) -> tuple[FloatArray, FloatArray]:
    """Return merged maps, as grouping takes them, of people whose joints lie there.

    Parameters
    ----------
    joints
        x, y in pixels of the map, (P, J, 2).
    size
        (height, width) of the map.
    sigma
        Standard deviation of the Gaussians, pixels.
    rng
        Of strengths, tags and background.
    tag_range
        People's tags are spread evenly over it. Grouping tells people apart whose tags differ by 1.
    highest_bump
        Where nobody is, no value exceeds it. Below the detection threshold nobody is seen there, and the maps
        show just these people.

    Returns
    -------
    det, tags
        Heatmaps (J, H, W) and tags (J, H, W, 1).
    """
    people, count, _ = joints.shape
    height, width = size
    own = rng.permutation(people) * tag_range / max(people, 1) - tag_range / 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rough = rng.normal(size=(count, height, width)).astype(np.float32)
    det, tags = np.zeros_like(rough), np.zeros_like(rough)
    for joint in range(count):
        field = cv2.GaussianBlur(rough[joint], (0, 0), sigma)
        field = (field - field.mean()) / field.std()
        # A sixteenth of the pixels above .0003, a sixty-fourth above .003, a few bumps above .1.
        bumps = 3e-4 * np.exp(3.7 * (field - 1.53))
        heat = np.minimum(bumps / (1 + 2.5 * bumps), np.float32(highest_bump))
        nearest = np.full(size, np.inf, np.float32)
        for person in range(people):
            px, py = joints[person, joint]
            square = (x - px) ** 2 + (y - py) ** 2
            top = rng.uniform(0.01, 0.09) if rng.random() < _WEAK else rng.uniform(0.3, 0.95)
            heat = np.maximum(heat, top * np.exp(-square / (2 * sigma**2)))
            closer = square < nearest
            tags[joint][closer], nearest[closer] = own[person], square[closer]
        det[joint] = heat - 1e-5
        tags[joint] = cv2.GaussianBlur(tags[joint], (0, 0), sigma / 2)
    tags += rng.normal(0, 0.05, tags.shape).astype(np.float32)
    return det, tags[..., None]


def network_outputs(det: FloatArray, tags: FloatArray, quarter: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the outputs of a network that :func:`supernet.pose.maps.predict_maps` merges to these maps.

    Parameters
    ----------
    det, tags
        Merged maps at 1/2 of the input, (J, H, W) and (J, H, W, 1).
    quarter
        (height, width) of the 1/4 output.

    Returns
    -------
    quarter, half
        (1, 2J, h, w), heatmaps and tags, and (1, J, H, W). The heatmaps merge to ``det`` but for rounding,
        the tags to a smoothed ``tags``: a network has none at 1/2.
    """
    half = torch.from_numpy(det)[None]
    both = torch.cat([half, torch.from_numpy(tags[..., 0])[None]], dim=1)
    low = functional.interpolate(both, quarter, mode="area")
    size = det.shape[1], det.shape[2]
    up = functional.interpolate(low[:, : len(det)], size, mode="bilinear", align_corners=False)
    return low, 2.0 * half - up
