"""From a network to one stack of heatmaps and tags: outputs merged, flip test, several scales, projection."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.errors import InputError
from supernet.pose.decode import GroupingConfig

__all__ = ["EvalConfig", "predict_maps"]


_LARGEST_SCALE: Final = 8.0
"""Beyond it an image needs gigabytes and the network has never seen people of that size."""


@dataclass(frozen=True)
class EvalConfig:
    """How a network is evaluated.

    Attributes
    ----------
    resolution
        Short side of the network's input, pixels.
    flip
        Whether the mirrored image is run too: heatmaps are averaged, its tags become a second dimension.
    scales
        Sizes at which every image is run, as multiples of ``resolution``; heatmaps are averaged, tags are
        those of scale 1. Each must make whole pixels of ``multiple``.
    project
        Whether maps are resized to the input's size before grouping ("project2image" in the published
        test settings: slower, a little more accurate).
    batch_size
        Images that run through the network at once; they must have the same evaluated size.
    grouping
        Thresholds and stages of grouping.
    multiple
        Input sides (of scale 1) are rounded up to a multiple of it, pixels.
    max_detections
        People kept per image, by score.
    """

    resolution: int
    flip: bool = False
    project: bool = False
    batch_size: int = 8
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    multiple: int = 64
    max_detections: int = 20
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for what in ("resolution", "batch_size", "multiple", "max_detections"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"evaluation: {what} must be a positive integer, not {value!r}")
        if 1.0 not in self.scales or len(set(self.scales)) < len(self.scales):
            raise InputError(
                "evaluation: scales must be different numbers and contain 1, from which tags are taken, not"
                f" {list(self.scales)}"
            )
        for scale in self.scales:
            side = scale * self.multiple
            if not (math.isfinite(scale) and 0 < scale <= _LARGEST_SCALE):
                raise InputError(
                    f"evaluation: a scale lies above 0 and is at most {_LARGEST_SCALE:g}, not at {scale}"
                )
            if side != int(side):
                raise InputError(
                    f"evaluation: every scale must make whole pixels of {self.multiple}"
                    f" ('multiple'), such as 0.5 or 1.5; {scale} makes {side:g}"
                )

    @property
    def input_grid(self) -> tuple[int, int]:
        """Short side and ``multiple`` of the images to resize for :func:`predict_maps`: the largest scale."""
        largest = max(self.scales)
        return math.ceil(self.resolution * largest), round(self.multiple * largest)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _heatmaps_and_tags(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of both heatmaps and the tags, (N, J, H/2, W/2) each."""
    quarter, half = network(images)
    joints = half.shape[1]
    if quarter.shape[1] != 2 * joints:
        raise InputError(f"a tagging network gives 2J and J maps, not {quarter.shape[1]} and {joints}")
    quarter = _resize(quarter, (half.shape[2], half.shape[3]))
    return (quarter[:, :joints] + half) / 2.0, quarter[:, joints:]


def _mirrored_too(
    network: nn.Module, images: Tensor, flip_index: NDArray[np.int64] | None
) -> tuple[Tensor, list[Tensor]]:
    """Return heatmaps, and tags of the image and, with ``flip_index``, of its mirror image."""
    det, tags = _heatmaps_and_tags(network, images)
    if flip_index is None:
        return det, [tags]
    if len(flip_index) != det.shape[1]:
        raise InputError(
            f"flip test needs one mirrored joint for each of the network's {det.shape[1]} joints, not"
            f" {len(flip_index)}"
        )
    index = torch.as_tensor(flip_index, device=det.device)
    mirrored, mirrored_tags = _heatmaps_and_tags(network, images.flip(3))
    return (det + mirrored.flip(3)[:, index]) / 2.0, [tags, mirrored_tags.flip(3)[:, index]]


@torch.no_grad()
def predict_maps(
    network: nn.Module, images: Tensor, flip_index: NDArray[np.int64] | None, config: EvalConfig
) -> tuple[Tensor, Tensor]:
    """Run a network and merge its outputs into one stack of maps, as HigherHRNet does.

    The 1/4 maps are resized (bilinearly) to 1/2 and their heatmaps averaged with the 1/2 heatmaps. With
    ``config.flip`` heatmaps are averaged with the mirrored image's (mirrored back, left and right joints
    exchanged), whose tags become a second tag dimension. With several ``config.scales`` the images are
    shrunk to each, and heatmaps averaged at the size of the largest's; tags are those of scale 1. With
    ``config.project`` all maps are instead resized to the input's size at scale 1.

    Parameters
    ----------
    network
        Returns ``(quarter (N, 2J, H/4, W/4), half (N, J, H/2, W/2))``; should be in eval mode.
    images
        Normalised images (N, 3, H, W) at the largest scale (``config.input_grid``).
    flip_index
        (J,): joint that each joint becomes in the mirror; needed with ``config.flip``.
    config
        ``flip``, ``scales`` and ``project`` are used.

    Returns
    -------
    det, tags
        (N, J, H', W') and (N, J, H', W', T), float32 on the images' device; T is 2 with flip, else 1.

    Raises
    ------
    InputError
        If flip is asked without ``flip_index`` or if the network's maps are not as stated.
    """
    if config.flip and flip_index is None:
        raise InputError("flip test needs one mirrored joint for each of the network's joints, not none")
    height, width = images.shape[2:]
    largest = max(config.scales)
    size = (round(height / largest), round(width / largest)) if config.project else None
    heats: list[Tensor] = []
    tags: list[Tensor] = []
    for scale in sorted(config.scales, reverse=True):
        scaled = images
        if scale != largest:
            sides = round(height * scale / largest), round(width * scale / largest)
            scaled = functional.interpolate(images, sides, mode="bilinear", antialias=True)
        det, own = _mirrored_too(network, scaled, flip_index if config.flip else None)
        size = size or (det.shape[2], det.shape[3])
        heats.append(_resize(det, size))
        if scale == 1.0:
            tags = [_resize(each, size) for each in own]
    det = heats[0] if len(heats) == 1 else torch.stack(heats).mean(dim=0)
    # One contiguous plane per tag dimension: grouping reads whole planes.
    return det.float().contiguous(), torch.stack(tags, dim=2).float().movedim(2, -1)
