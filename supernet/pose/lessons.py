"""Targets of bottom-up networks with a teacher's answer worked in; see :mod:`supernet.distillation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from search_spaces.errors import InputError
from supernet.pose.decode import GroupingConfig
from supernet.pose.losses import PoseTargets

__all__ = ["Lesson", "tag_distance", "teach"]

_SEEN: Final = GroupingConfig().detection_threshold
"""Height of a target heatmap above which grouping would read a tag."""


@dataclass(frozen=True)
class Lesson:
    """A batch's targets with a teacher's answer worked in; what :func:`supernet.pose.losses.pose_loss` takes.

    Attributes
    ----------
    heatmaps, masks, tags, labelled
        As in :class:`supernet.pose.loader.Batch`; the heatmaps are the annotations' and the teacher's in
        their shares, and joints that the teacher tells count as labelled.
    teacher_tags
        (N, J, h, w): the teacher's tags.
    places
        (N, J, h, w): where tags are compared; the weights of an image sum to 1, or to 0 where it shows
        nobody.
    """

    heatmaps: tuple[Tensor, ...]
    masks: Sequence[Tensor]
    tags: Tensor
    labelled: Tensor
    teacher_tags: Tensor
    places: Tensor


@torch.no_grad()
def teach(
    batch: PoseTargets, outputs: tuple[Tensor, Tensor], share: float, known: Tensor | None = None
) -> Lesson:
    """Return the targets of a batch with a teacher's answer worked in.

    Parameters
    ----------
    batch
        What the annotations tell.
    outputs
        The teacher's (N, 2J, H/4, W/4) heatmaps and tags, and (N, J, H/2, W/2) heatmaps. No gradient flows
        into them.
    share
        Weight of its heatmaps, where the annotations tell of the joint.
    known
        bool (J,): joints that the teacher tells of; ``None``: all.

    Raises
    ------
    InputError
        If the teacher's maps have not the sizes of the batch's.
    """
    quarter, half = outputs
    joints = half.shape[1]
    heat, tags = torch.split(quarter, [joints, quarter.shape[1] - joints], dim=1)
    told = torch.ones_like(batch.labelled) if known is None else known.expand_as(batch.labelled)
    shares = torch.where(batch.labelled, share, 1.0) * told
    blends = []
    for truth, said in zip(batch.heatmaps, (heat, half), strict=True):
        if truth.shape != said.shape:
            raise InputError(
                f"a teacher's heatmaps must be as large as the targets, {tuple(truth.shape)}, not"
                f" {tuple(said.shape)}"
            )
        weight = shares.expand(said.shape[:2])[:, :, None, None].to(truth.dtype)
        blends.append(truth.lerp(said.to(truth.dtype).clamp(0.0, 1.0), weight))
    places = torch.where(blends[0] > _SEEN, blends[0], 0.0) * batch.masks[0][:, None]
    places = places * told.expand(places.shape[:2])[:, :, None, None]
    total = places.sum(dim=(1, 2, 3), keepdim=True)
    places = places / torch.where(total > 0, total, 1.0)
    return Lesson(
        tuple(blends), batch.masks, batch.tags, batch.labelled | told, tags.to(places.dtype), places
    )


def tag_distance(tags: Tensor, lesson: Lesson) -> Tensor:
    """Return how far differences of tags are from the teacher's, a scalar in float32 or better.

    It is the variance of ``tags - teacher's tags`` over the places of an image, averaged over the images:
    half the mean square of ``(tag_i - tag_j) - (teacher_i - teacher_j)`` over all pairs of places. A shift of
    all tags of an image costs nothing.

    Parameters
    ----------
    tags
        Tag maps (N, J, h, w).
    lesson
        What the teacher says.
    """
    errors = tags.to(lesson.teacher_tags.dtype) - lesson.teacher_tags
    shift = (errors * lesson.places).sum(dim=(1, 2, 3), keepdim=True)
    return ((errors - shift).square() * lesson.places).sum(dim=(1, 2, 3)).mean()
