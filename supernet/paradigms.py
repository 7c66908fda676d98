"""Bottom-up and top-down: where the two ways to find people differ, for everything that trains networks.

A *bottom-up* network sees a whole picture and finds everybody's joints in it; tags tell whose they are. A
*top-down* network sees one person, cut out of the picture, and finds that person's joints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import InputError
from supernet.pose.crops import PersonCache, PersonCrops, augment_person, gather_people
from supernet.pose.dataset import PoseDataset
from supernet.pose.lessons import Lesson, tag_distance, teach
from supernet.pose.loader import Gather, SampleCache, gather
from supernet.pose.losses import LossWeights, PoseTargets, heatmap_mse, pose_loss, teach_heatmaps
from supernet.pose.transforms import Augmentation, augment

__all__ = [
    "BOTTOM_UP",
    "PARADIGMS",
    "TOP_DOWN",
    "BottomUp",
    "Examples",
    "Outputs",
    "Paradigm",
    "TopDown",
    "paradigm_of",
]

Outputs = tuple[Tensor, ...]
"""What a network returns."""

Examples = PoseDataset | PersonCrops
"""What a training sees, one by one."""


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

    def __reduce__(self) -> tuple[Any, ...]:
        """Stay the one of its name in another process."""
        return _named, (self.name,)

    @abstractmethod
    def loss(self, outputs: Outputs, targets: PoseTargets, weights: LossWeights) -> dict[str, Tensor]:
        """Return all terms of the training loss: unweighted, and ``total``, their weighted sum."""

    @abstractmethod
    def teach(
        self,
        batch: PoseTargets,
        outputs: Outputs,
        share: float,
        known: Tensor | None = None,
        *,
        sigma: float = 2.0,
    ) -> PoseTargets:
        """Return a batch's targets with a teacher's outputs worked in.

        ``share`` is the weight of its heatmaps, ``known``, bool (J,), the joints that it tells of, ``sigma``
        the standard deviation of the targets' Gaussians, in cells.
        """

    @abstractmethod
    def lesson_distance(self, outputs: Outputs, targets: PoseTargets) -> Tensor | None:
        """Return what a teacher adds to the loss as a term of its own; None where it adds none."""

    @abstractmethod
    def examples(self, dataset: PoseDataset) -> Examples:
        """Return the data set of training examples: one per picture, or one per person."""

    @abstractmethod
    def gather(self, examples: Examples, cache_bytes: int = 0) -> Gather:
        """Return what makes batches of :meth:`examples`, decoded pictures kept up to so many bytes."""

    @abstractmethod
    def image(
        self,
        examples: Examples,
        index: int,
        resolution: int,
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        """Return the input that one of :meth:`examples` makes, RGB uint8 (H, W, 3), varied as in training."""


class BottomUp(Paradigm):
    """Whole pictures; two scales of heatmaps, and tags that are grouped."""

    name: ClassVar[str] = "bottom-up"
    loss_terms: ClassVar[tuple[str, ...]] = ("total", "heatmap_quarter", "heatmap_half", "push", "pull")

    def loss(self, outputs: Outputs, targets: PoseTargets, weights: LossWeights) -> dict[str, Tensor]:
        """Return the terms of :func:`supernet.pose.losses.pose_loss`."""
        quarter, half = outputs
        return pose_loss((quarter, half), targets, weights)

    def teach(
        self,
        batch: PoseTargets,
        outputs: Outputs,
        share: float,
        known: Tensor | None = None,
        *,
        sigma: float = 2.0,
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

    def gather(self, examples: Examples, cache_bytes: int = 0) -> Gather:
        """Return what gathers pictures, see :func:`supernet.pose.loader.gather`."""
        return partial(gather, SampleCache(_pictures(examples), cache_bytes))

    def image(
        self,
        examples: Examples,
        index: int,
        resolution: int,
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        """Return a square part of a picture."""
        pictures = _pictures(examples)
        return augment(pictures.load(index), resolution, augmentation, rng, pictures.skeleton.flip_index)[0]


class TopDown(Paradigm):
    """People cut out of pictures; one scale of heatmaps."""

    name: ClassVar[str] = "top-down"
    loss_terms: ClassVar[tuple[str, ...]] = ("total", "heatmap")

    def loss(self, outputs: Outputs, targets: PoseTargets, weights: LossWeights) -> dict[str, Tensor]:
        """Return the terms of :func:`supernet.pose.losses.heatmap_mse`."""
        return heatmap_mse(outputs, targets, weights)

    def teach(
        self,
        batch: PoseTargets,
        outputs: Outputs,
        share: float,
        known: Tensor | None = None,
        *,
        sigma: float = 2.0,
    ) -> PoseTargets:
        """Return the targets of :func:`supernet.pose.losses.teach_heatmaps`."""
        (maps,) = outputs
        return teach_heatmaps(batch, maps, share, known, sigma=sigma)

    def lesson_distance(self, outputs: Outputs, targets: PoseTargets) -> Tensor | None:
        """Return None: all that a teacher tells is in the targets."""
        return None

    def examples(self, dataset: PoseDataset) -> PersonCrops:
        """Return the people of the data set."""
        return PersonCrops(dataset)

    def gather(self, examples: Examples, cache_bytes: int = 0) -> Gather:
        """Return what gathers people, see :func:`supernet.pose.crops.gather_people`."""
        return partial(gather_people, PersonCache(_people(examples), cache_bytes))

    def image(
        self,
        examples: Examples,
        index: int,
        resolution: int,
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        """Return a person's part of a picture."""
        people = _people(examples)
        return augment_person(people.load(index), resolution, augmentation, rng, people.skeleton)[0]


def _pictures(examples: Examples) -> PoseDataset:
    if not isinstance(examples, PoseDataset):
        raise TypeError(f"bottom-up examples are a PoseDataset, not {type(examples).__name__}")
    return examples


def _people(examples: Examples) -> PersonCrops:
    if not isinstance(examples, PersonCrops):
        raise TypeError(f"top-down examples are PersonCrops, not {type(examples).__name__}")
    return examples


BOTTOM_UP: Final = BottomUp()

TOP_DOWN: Final = TopDown()

PARADIGMS: Final[Mapping[str, Paradigm]] = {BOTTOM_UP.name: BOTTOM_UP, TOP_DOWN.name: TOP_DOWN}
"""Every paradigm by name."""


def paradigm_of(network: Any) -> Paradigm:
    """Return the paradigm of a network (plain or elastic, an instance or its class) by its ``paradigm``.

    What does not say is taken to be bottom-up.

    Raises
    ------
    InputError
        If it names one that is not known.
    """
    plain = getattr(network, "plain", network)  # of a supernet the class of its plain networks
    name = getattr(plain, "paradigm", BOTTOM_UP.name)
    return _named(name)


def _named(name: str) -> Paradigm:
    if name not in PARADIGMS:
        raise InputError(f"unknown paradigm '{name}'; known are {', '.join(PARADIGMS)}")
    return PARADIGMS[name]
