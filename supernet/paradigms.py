"""Bottom-up and top-down: where the two ways to find people differ, for everything that trains networks.

A *bottom-up* network sees a whole picture and finds everybody's joints in it; tags tell whose they are. A
*top-down* network sees one person, cut out of the picture, and finds that person's joints.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from torch import Tensor

from search_spaces.errors import InputError
from supernet.pose.dataset import PoseDataset
from supernet.pose.lessons import Lesson, tag_distance, teach
from supernet.pose.loader import RawBatch, SampleCache, gather
from supernet.pose.losses import LossWeights, PoseTargets, pose_loss
from supernet.pose.transforms import Augmentation

__all__ = ["BOTTOM_UP", "PARADIGMS", "BottomUp", "Outputs", "Paradigm", "paradigm_of"]

Outputs = tuple[Tensor, ...]
"""What a network returns."""


class Paradigm(ABC):
    """One way to find people. Stateless.

    Attributes
    ----------
    name
        ``bottom-up`` or ``top-down``.
    loss_terms
        Names of what :meth:`loss` returns, ``total`` first.
    """

    name: ClassVar[str]
    loss_terms: ClassVar[tuple[str, ...]]

    @abstractmethod
    def loss(self, outputs: Outputs, targets: PoseTargets, weights: LossWeights) -> dict[str, Tensor]:
        """Return all terms of the training loss: unweighted, and ``total``, their weighted sum."""

    @abstractmethod
    def teach(
        self, batch: PoseTargets, outputs: Outputs, share: float, known: Tensor | None = None
    ) -> PoseTargets:
        """Return a batch's targets with a teacher's outputs worked in.

        ``share`` is the weight of its heatmaps, ``known``, bool (J,), the joints that it tells of.
        """

    @abstractmethod
    def lesson_distance(self, outputs: Outputs, targets: PoseTargets) -> Tensor | None:
        """Return what a teacher adds to the loss as a term of its own; None where it adds none."""

    @abstractmethod
    def examples(self, dataset: PoseDataset) -> PoseDataset:
        """Return the data set of training examples: one per picture, or one per person."""

    @abstractmethod
    def gather(
        self,
        source: PoseDataset | SampleCache,
        indices: Sequence[int],
        resolution: int,
        augmentation: Augmentation | None,
        seed: int,
        epoch: int,
        stop: threading.Event | None = None,
    ) -> RawBatch:
        """Return examples loaded and varied; see :func:`supernet.pose.loader.gather`."""


class BottomUp(Paradigm):
    """Whole pictures; two scales of heatmaps, and tags that are grouped."""

    name: ClassVar[str] = "bottom-up"
    loss_terms: ClassVar[tuple[str, ...]] = ("total", "heatmap_quarter", "heatmap_half", "push", "pull")

    def loss(self, outputs: Outputs, targets: PoseTargets, weights: LossWeights) -> dict[str, Tensor]:
        """Return the terms of :func:`supernet.pose.losses.pose_loss`."""
        quarter, half = outputs
        return pose_loss((quarter, half), targets, weights)

    def teach(
        self, batch: PoseTargets, outputs: Outputs, share: float, known: Tensor | None = None
    ) -> PoseTargets:
        """Return the lesson of :func:`supernet.pose.lessons.teach`."""
        quarter, half = outputs
        return teach(batch, (quarter, half), share, known)

    def lesson_distance(self, outputs: Outputs, targets: PoseTargets) -> Tensor | None:
        """Return the distance of the tags' differences from the teacher's."""
        if not isinstance(targets, Lesson):
            return None
        quarter, half = outputs
        return tag_distance(quarter[:, half.shape[1] :], targets)

    def examples(self, dataset: PoseDataset) -> PoseDataset:
        """Return the data set as it is: an example is a picture."""
        return dataset

    def gather(
        self,
        source: PoseDataset | SampleCache,
        indices: Sequence[int],
        resolution: int,
        augmentation: Augmentation | None,
        seed: int,
        epoch: int,
        stop: threading.Event | None = None,
    ) -> RawBatch:
        """Return pictures, see :func:`supernet.pose.loader.gather`."""
        return gather(source, indices, resolution, augmentation, seed, epoch, stop)


BOTTOM_UP: Final = BottomUp()

PARADIGMS: Final[Mapping[str, Paradigm]] = {BOTTOM_UP.name: BOTTOM_UP}
"""Every paradigm by name."""


def paradigm_of(network: Any) -> Paradigm:
    """Return the paradigm of a network (plain or elastic, an instance or its class) by its ``paradigm``.

    What does not say is taken to be bottom-up.

    Raises
    ------
    InputError
        If it names one that is not known.
    """
    name = getattr(network, "paradigm", BOTTOM_UP.name)
    if name not in PARADIGMS:
        raise InputError(f"unknown paradigm '{name}'; known are {', '.join(PARADIGMS)}")
    return PARADIGMS[name]
