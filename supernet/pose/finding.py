"""People in a data set's images, by whatever paradigm the settings are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from supernet.pose.inference import EvaluationDataset, Inference, Pictures, Predictions, Progress, predict
from supernet.pose.maps import EvalConfig
from supernet.pose.peaks import PickedPeaks, refuse_passes
from supernet.pose.topdown import PersonPictures, TopDownConfig, predict_people

__all__ = ["as_picked", "find_people", "pictures_for"]


def as_picked(config: EvalConfig | TopDownConfig, picked: PickedPeaks) -> EvalConfig | TopDownConfig:
    """Return the settings by which a network that picks peaks itself is really evaluated.

    Joints lie a quarter of a pixel from their pixels' middles, those that nobody's peak shows are not filled
    in, and peaks are those that the network picks.

    Raises
    ------
    InputError
        If the settings ask for what needs maps: the flip test, several scales, projection.
    """
    if isinstance(config, TopDownConfig):
        refuse_passes(flip=config.flip)
        return replace(config, decoding="quarter")
    refuse_passes(flip=config.flip, scales=config.scales, project=config.project)
    grouping = replace(
        config.grouping,
        adjust="quarter",
        refine=False,
        max_people=picked.most,
        nms_kernel=picked.kernel,
        detection_threshold=max(picked.threshold, config.grouping.detection_threshold),
    )
    return replace(config, grouping=grouping)


def find_people(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig | TopDownConfig,
    *,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
    inference: Inference | None = None,
) -> Predictions:
    """Find people as :func:`supernet.pose.inference.predict` (bottom-up) or
    :func:`supernet.pose.topdown.predict_people` does; which, is told by the type of the settings.
    """
    if isinstance(config, TopDownConfig):
        return predict_people(
            network, dataset, config, progress=progress, device=device, ids=ids, inference=inference
        )
    return predict(network, dataset, config, progress=progress, device=device, ids=ids, inference=inference)


def pictures_for(config: EvalConfig | TopDownConfig, dataset: EvaluationDataset) -> Pictures:
    """Return where a data set's images, prepared by such settings, are kept from call to call."""
    return PersonPictures(dataset) if isinstance(config, TopDownConfig) else Pictures(dataset)
