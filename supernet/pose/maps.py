"""From a network to one stack of heatmaps and tags: both outputs merged, flip test, projection."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.errors import InputError
from supernet.pose.decode import GroupingConfig

__all__ = ["EvalConfig", "predict_maps"]


@dataclass(frozen=True)
class EvalConfig:
    """How a network is evaluated.

    Attributes
    ----------
    resolution
        Short side of the network's input, pixels.
    flip
        Whether the mirrored image is run too: heatmaps are averaged, its tags become a second dimension.
    project
        Whether maps are resized to the input's size before grouping ("project2image" in the published
        test settings: slower, a little more accurate).
    batch_size
        Images that run through the network at once; they must have the same evaluated size.
    grouping
        Thresholds and stages of grouping.
    multiple
        Input sides are rounded up to a multiple of it, pixels.
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

    def __post_init__(self) -> None:
        for what in ("resolution", "batch_size", "multiple", "max_detections"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"evaluation: {what} must be a positive integer, not {value!r}")


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


@torch.no_grad()
def predict_maps(
    network: nn.Module, images: Tensor, flip_index: NDArray[np.int64] | None, config: EvalConfig
) -> tuple[Tensor, Tensor]:
    """Run a network and merge its outputs into one stack of maps, as HigherHRNet does.

    The 1/4 maps are resized (bilinearly) to 1/2 and their heatmaps averaged with the 1/2 heatmaps. With
    ``config.flip`` heatmaps are averaged with the mirrored image's (mirrored back, left and right joints
    exchanged), whose tags become a second tag dimension. With ``config.project`` all maps are then resized
    to the input's size.

    Parameters
    ----------
    network
        Returns ``(quarter (N, 2J, H/4, W/4), half (N, J, H/2, W/2))``; should be in eval mode.
    images
        Normalised images (N, 3, H, W).
    flip_index
        (J,): joint that each joint becomes in the mirror; needed with ``config.flip``.
    config
        ``flip`` and ``project`` are used.

    Returns
    -------
    det, tags
        (N, J, H', W') and (N, J, H', W', T), float32 on the images' device; T is 2 with flip, else 1.

    Raises
    ------
    InputError
        If flip is asked without ``flip_index`` or if the network's maps are not as stated.
    """
    det, first_tags = _heatmaps_and_tags(network, images)
    tags = [first_tags]
    if config.flip:
        if flip_index is None or len(flip_index) != det.shape[1]:
            raise InputError(
                f"flip test needs one mirrored joint for each of the network's {det.shape[1]} joints"
            )
        index = torch.as_tensor(flip_index, device=det.device)
        mirrored, mirrored_tags = _heatmaps_and_tags(network, images.flip(3))
        det = (det + mirrored.flip(3)[:, index]) / 2.0
        tags.append(mirrored_tags.flip(3)[:, index])
    if config.project:
        size = (images.shape[2], images.shape[3])
        det = _resize(det, size)
        tags = [_resize(each, size) for each in tags]
    # One contiguous plane per tag dimension: grouping reads whole planes.
    return det.float().contiguous(), torch.stack(tags, dim=2).float().movedim(2, -1)
