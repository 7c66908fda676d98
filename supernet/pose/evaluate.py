"""From a network and a data set to average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from supernet.pose.inference import EvaluationDataset, Progress, predict
from supernet.pose.maps import EvalConfig
from supernet.pose.metrics import ScoringProtocol, keypoint_ap

__all__ = ["EvalResult", "evaluate"]


@dataclass(frozen=True)
class EvalResult:
    """What :func:`evaluate` found.

    Attributes
    ----------
    stats
        Average precision and recall, see :func:`keypoint_ap`.
    detections
        COCO results, see :func:`predict_dataset`.
    images
        Number of images.
    seconds_network, seconds_decode
        Wall-clock time in the network (with resizing of its maps) and in grouping.
    """

    stats: dict[str, float]
    detections: list[dict[str, Any]]
    images: int
    seconds_network: float
    seconds_decode: float


def evaluate(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    joints: Sequence[int] | None = None,
    protocol: ScoringProtocol = "coco",
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
) -> EvalResult:
    """Find the people in a data set's images and score them against its annotations.

    Parameters
    ----------
    network, dataset, config, progress, device, ids
        As for :func:`predict_dataset`.
    joints
        Joints that are scored; by default those that the data set annotates.
    protocol
        ``coco`` or ``crowdpose``, see :func:`keypoint_ap`.

    Raises
    ------
    InputError
        As :func:`predict_dataset` and :func:`keypoint_ap` do.
    """
    if joints is None and not np.all(dataset.labelled):
        joints = [int(joint) for joint in np.flatnonzero(dataset.labelled)]
    truth = dataset.ground_truth(ids)
    result = predict(network, dataset, config, progress=progress, device=device, ids=ids)
    stats = keypoint_ap(
        truth, result.detections, dataset.skeleton.sigmas, joints, protocol, config.max_detections
    )
    return EvalResult(stats, result.detections, result.images, result.seconds_network, result.seconds_decode)
