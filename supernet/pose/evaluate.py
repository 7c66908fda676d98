"""From a network and a data set to average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from search_spaces.errors import InputError
from supernet.pose.bootstrap import Interval, bootstrap_ap
from supernet.pose.finding import find_people
from supernet.pose.inference import EvaluationDataset, Inference, Progress
from supernet.pose.maps import EvalConfig
from supernet.pose.matching import match_detections
from supernet.pose.metrics import ScoringProtocol, keypoint_ap
from supernet.pose.scoring import check_protocol
from supernet.pose.topdown import TopDownConfig

__all__ = ["EvalResult", "evaluate", "scored_joints"]


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
    interval
        Of the AP, where resamples were asked for.
    """

    stats: dict[str, float]
    detections: list[dict[str, Any]]
    images: int
    seconds_network: float
    seconds_decode: float
    interval: Interval | None = None


def evaluate(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig | TopDownConfig,
    *,
    joints: Sequence[int] | None = None,
    protocol: ScoringProtocol = "coco",
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
    resamples: int = 0,
    rng: np.random.Generator | None = None,
    inference: Inference | None = None,
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
    resamples
        Bootstrap resamples for the interval of the AP; with 0 there is none, and it costs nothing.
    rng
        Draws them; needed where there are any.
    inference
        As for :func:`supernet.pose.inference.predict`.

    Raises
    ------
    InputError
        As :func:`predict_dataset` and :func:`keypoint_ap` do.
    """
    if resamples and rng is None:
        raise InputError(f"{resamples} bootstrap resamples need a generator of random numbers (rng)")
    joints = scored_joints(dataset) if joints is None else joints
    truth = dataset.ground_truth(ids)
    check_protocol(truth, protocol)
    result = find_people(
        network, dataset, config, progress=progress, device=device, ids=ids, inference=inference
    )
    sides = truth, result.detections, dataset.skeleton.sigmas, joints, protocol, config.max_detections
    interval = None
    if resamples and rng is not None:
        interval = bootstrap_ap(match_detections(*sides), resamples, rng)
    return EvalResult(
        keypoint_ap(*sides),
        result.detections,
        result.images,
        result.seconds_network,
        result.seconds_decode,
        interval,
    )


def scored_joints(dataset: EvaluationDataset) -> list[int] | None:
    """Return the joints that a data set annotates, or None if that is all of them."""
    return None if np.all(dataset.labelled) else [int(joint) for joint in np.flatnonzero(dataset.labelled)]
