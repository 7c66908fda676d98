"""Training data of top-down networks: people cut out of pictures, one by one.

As in :mod:`supernet.pose.loader` threads decode and warp, and what they make (:class:`RawPeople`) is
normalised and drawn where the training runs. What becomes of a person depends on (seed, epoch, index) only.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.errors import InputError, LitePoseNasError, RunError
from supernet.pose.boxes import (
    PADDING,
    Box,
    annotated_boxes,
    box_of_joints,
    crop_size,
    crop_transform,
    unlabelled_boxes,
)
from supernet.pose.dataset import PoseDataset, repeated_order
from supernet.pose.loader import Batch
from supernet.pose.skeleton import Skeleton, canonical_joint
from supernet.pose.transforms import (
    MEAN_COLOUR,
    TRANSLATE_UNIT,
    AffineTransform,
    Augmentation,
    colour_change,
    normalise,
)

__all__ = [
    "MAP_STRIDES",
    "Person",
    "PersonCache",
    "PersonCrops",
    "RawPeople",
    "augment_person",
    "cut_out",
    "draw_joints",
    "gather_people",
    "lower_joints",
]

MAP_STRIDES: Final = (4, 8)
"""Input pixels per cell of the heatmaps that top-down networks may give."""
_LOWER: Final = frozenset({"hip", "knee", "ankle", "foot", "heel", "toe", "pelvis", "leg"})
"""Words in the names of joints of the lower body."""
_ENOUGH: Final = 8
"""Labelled joints from which on half a body may be shown; in small skeletons half of their joints do."""
_FEWEST: Final = 3
"""Labelled joints that a half must have."""
_NOTHING: Final = 1e-6
"""Below this a Gaussian is 0: products of such values would be denormal, on which CPUs are slow."""


@dataclass(frozen=True)
class Person:
    """One person in a picture.

    Attributes
    ----------
    image
        The whole picture: RGB, uint8 (H, W, 3).
    joints
        float32 (J, 3): x, y in pixels and v: 0 unlabelled, 1 occluded, 2 visible.
    box
        Where in the picture the person is.
    padding
        How much is shown around the box; see :func:`supernet.pose.boxes.crop_transform`.
    """

    image: NDArray[np.uint8]
    joints: NDArray[np.float32]
    box: Box
    padding: float = PADDING


class PersonCrops:
    """The people of a data set, one entry per person, in the order of the images and their annotations.

    People without labelled joints, and crowds, are no entries. But in the pictures of a source that has no
    reliable label at all everybody with a box is one: of them a network learns from a teacher
    (:meth:`supernet.pose.dataset.PoseDataset.trainable`).

    Parameters
    ----------
    dataset
        Pictures and annotations.
    boxes
        Boxes by image id, as many as the image has labelled people (:meth:`PoseDataset.joints`) and in their
        order; by default the annotated ones (:func:`supernet.pose.boxes.annotated_boxes`).
    padding
        How much is shown around a box.

    Attributes
    ----------
    dataset, padding
        As given.
    skeleton
        The joints of everybody.
    left_out
        Count of annotated people who are no entries since none of their joints is labelled.

    Raises
    ------
    InputError
        If there is nobody, or an image has not as many boxes as people.
    """

    def __init__(
        self,
        dataset: PoseDataset,
        boxes: Mapping[int, Sequence[Box]] | None = None,
        padding: float = PADDING,
    ) -> None:
        self.dataset, self.padding = dataset, padding
        self.skeleton: Skeleton = dataset.skeleton
        truth = dataset.ground_truth()
        given = annotated_boxes(truth) if boxes is None else boxes
        unlabelled = unlabelled_boxes(truth)
        self._entries: list[tuple[int, int]] = []
        """Position of the image, and which of its labelled people; -1 for somebody without labels."""
        self._boxes: list[Box] = []
        for index, image_id in enumerate(dataset.ids):
            people, mine = len(dataset.joints(index)), given.get(image_id, ())
            if len(mine) != people:
                raise InputError(
                    f"image {image_id} of {dataset.where} has {people} labelled people but {len(mine)} boxes;"
                    " each of them needs one"
                )
            self._entries += [(index, person) for person in range(people)]
            self._boxes += mine
            if not people and not dataset.labelled_joints(index).any():
                self._entries += [(index, -1)] * len(unlabelled[image_id])
                self._boxes += unlabelled[image_id]
        if not self._entries:
            raise InputError(f"{dataset.where} has nobody with a labelled joint to train on")
        self.left_out = sum(not each["iscrowd"] for each in truth["annotations"]) - len(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def where(self) -> str:
        """What the data set is called in messages."""
        return self.dataset.where

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which joints the data set annotates at all, bool (J,)."""
        return self.dataset.labelled

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data set and of the boxes, not of the pixels."""
        boxes = [(each.x, each.y, each.width, each.height) for each in self._boxes]
        facts = ("people", self.dataset.fingerprint, self.padding, boxes)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

    def picture(self, index: int) -> int:
        """Return the position in the data set of the picture that shows the ``index``-th person."""
        return self._entries[index][0]

    def box(self, index: int) -> Box:
        """Return the ``index``-th person's box."""
        return self._boxes[index]

    def file_name(self, index: int) -> str:
        """Return the file name of the picture that shows the ``index``-th person."""
        return self.dataset.file_name(self.picture(index))

    def joints(self, index: int) -> NDArray[np.float32]:
        """Return the ``index``-th person's joints, float32 (J, 3), without loading the picture."""
        picture, person = self._entries[index]
        if person < 0:
            return np.zeros((len(self.skeleton), 3), dtype=np.float32)
        joints: NDArray[np.float32] = self.dataset.joints(picture)[person]
        return joints

    def labelled_joints(self, index: int) -> NDArray[np.bool_]:
        """Return which joints of the ``index``-th person are annotated, bool (J,)."""
        return self.joints(index)[:, 2] > 0

    def load(self, index: int) -> Person:
        """Return the ``index``-th person, the picture decoded anew."""
        return self.of_picture(index, self.dataset.load_image(self.picture(index)))

    def of_picture(self, index: int, image: NDArray[np.uint8]) -> Person:
        """Return the ``index``-th person in a picture that has been decoded already."""
        return Person(image, self.joints(index), self._boxes[index], self.padding)

    def epoch_order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return as many positions as there are people, in random order: who is seen in an epoch.

        Shares of sources and repetitions are as in
        :meth:`supernet.pose.dataset.PoseDataset.epoch_order`, with people in the place of images.
        """
        pictures = np.array([picture for picture, _ in self._entries], dtype=np.int64)
        return repeated_order(self.dataset.source_places()[pictures], self.dataset.shares, rng)


class PersonCache:
    """People whose pictures are decoded once, as long as there is room; any thread may ask.

    The counterpart of :class:`supernet.pose.loader.SampleCache`: nothing is ever evicted. People of one
    picture share it, and no masks are made, which crops do not need.

    Parameters
    ----------
    people
        Who is asked for.
    limit
        Most bytes of pictures to keep.
    """

    def __init__(self, people: PersonCrops, limit: int) -> None:
        if limit < 0:
            raise InputError(f"a cache of images has room for at least 0 bytes, not {limit}")
        self.dataset, self.limit, self.held = people, limit, 0
        self._pictures: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def load(self, index: int) -> Person:
        """Return what ``people.load(index)`` does."""
        picture = self.dataset.picture(index)
        image = self._pictures.get(picture)
        if image is None:
            image = self.dataset.dataset.load_image(picture)
            if image.flags.writeable:  # else the data set holds it in memory itself
                with self._lock:
                    if picture not in self._pictures and self.held + image.nbytes <= self.limit:
                        self._pictures[picture] = image
                        self.held += image.nbytes
        return self.dataset.of_picture(index, image)


# -- one person ----------------------------------------------------------------------------------------------


def lower_joints(skeleton: Skeleton) -> NDArray[np.bool_] | None:
    """Return which joints belong to the lower body by their names, bool (J,); None where no name tells."""
    words = [set(canonical_joint(joint).split("_")) for joint in skeleton.joints]
    lower = np.array([bool(each & _LOWER) for each in words])
    return lower if lower.any() and not lower.all() else None


def _half(joints: NDArray[np.float32], skeleton: Skeleton, upper: bool) -> Box | None:
    """Return the box around a person's upper or lower joints, None where too few are labelled.

    Where the wanted half has too few labelled joints it is the other one. Where the joints' names do not tell
    of halves, the halves are those above and below the middle one of the person's labelled joints.
    """
    labelled = joints[:, 2] > 0
    if labelled.sum() < min(_ENOUGH, len(joints) / 2):
        return None
    lower = lower_joints(skeleton)
    if lower is None:
        lower = joints[:, 1] > np.median(joints[labelled, 1])
    halves = [labelled & ~lower, labelled & lower] if upper else [labelled & lower, labelled & ~lower]
    for half in halves:
        if half.sum() >= _FEWEST:
            return box_of_joints(joints[half])
    return None


def cut_out(image: NDArray[np.uint8], transform: AffineTransform, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a crop, uint8 of ``size`` (height, width); outside of the picture it has the mean colour.

    As in :func:`supernet.pose.transforms.letterbox`, that is what the network's own padding looks like.
    """
    crop = cv2.warpAffine(
        image, transform.matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=MEAN_COLOUR
    )
    return np.asarray(crop, dtype=np.uint8)


def augment_person(
    person: Person,
    resolution: int,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
    skeleton: Skeleton,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cut a person out of a picture: turned, scaled, shifted, mirrored, or half of the body only.

    Every call draws the same count of random numbers, whatever the settings.

    Parameters
    ----------
    person
        Picture, joints and box.
    resolution
        Height of the result, pixels; see :func:`supernet.pose.boxes.crop_size`.
    augmentation
        How much may change; None for the box as it is.
    rng
        Source of randomness.
    skeleton
        The joints.

    Returns
    -------
    image
        uint8 (H, W, 3).
    joints
        float32 (J, 3) in pixels of ``image``; joints that are unlabelled or outside of it have v = 0.
    """
    size = crop_size(resolution)
    changes = augmentation or Augmentation.none()
    turn, zoom, shift_x, shift_y, mirror, halve, upper, *colour = rng.random(12)
    box, joints = person.box, person.joints
    if halve < changes.half_body:
        box = _half(joints, skeleton, upper < 0.5) or box
    least, largest = changes.scale
    reach = changes.translate / TRANSLATE_UNIT
    mirrored = bool(mirror < changes.flip)
    transform = crop_transform(
        box,
        size,
        person.padding,
        rotation=(2 * turn - 1) * changes.rotation,
        scale=least + zoom * (largest - least),
        shift=((2 * shift_x - 1) * reach, (2 * shift_y - 1) * reach),
        flip=mirrored,
    )
    image = colour_change(changes, np.array(colour), cut_out(person.image, transform, size))
    moved = joints[skeleton.flip_index] if mirrored else joints.copy()
    moved[:, :2] = transform(moved[:, :2])
    inside = ((moved[:, :2] >= -0.5) & (moved[:, :2] <= np.array(size[::-1]) - 0.5)).all(axis=1)
    moved[:, 2] *= inside
    return image, moved


# -- batches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawPeople:
    """A batch of people before anything is drawn: what travels to the training device.

    Attributes
    ----------
    images
        uint8 (N, H, W, 3), RGB.
    joints
        float32 (N, J, 3): x, y, v in pixels of the images; v = 0 where there is no target.
    """

    images: Tensor
    joints: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.joints)

    def pin(self) -> RawPeople:
        """Return it in memory from which a GPU fetches while the CPU goes on."""
        return replace(self, images=self.images.pin_memory())

    def draw(self, sigma: float = 2.0, device: torch.device | str = "cpu") -> Batch:
        """Return the batch on ``device``: heatmaps at 1/4 and 1/8 of the input, Gaussians of ``sigma`` cells.

        Every cell counts (masks are 1), and nothing is tagged: ``tags`` is (N, 0, J, 2).
        """
        count, height, width = self.images.shape[:3]
        heatmaps = tuple(
            draw_joints(in_cells(self.joints, stride), height // stride, width // stride, sigma, device)
            for stride in MAP_STRIDES
        )
        masks = tuple(
            torch.from_numpy(np.ones((count, each.shape[2], each.shape[3]), dtype=np.float32)).to(device)
            for each in heatmaps
        )
        return Batch(
            images=normalise(self.images.to(device, non_blocking=True)),
            heatmaps=heatmaps,
            masks=masks,
            tags=torch.zeros((count, 0, self.joints.shape[1], 2), dtype=torch.int64, device=device),
            labelled=torch.from_numpy(self.joints[..., 2] > 0).to(device, non_blocking=True),
        )


def in_cells(joints: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Return joints (..., 3) in cells of maps with ``stride`` pixels per cell; cells' centres at integers.

    Cell 0 covers the pixels 0 to ``stride - 1``, so its centre lies between the middle ones of them.
    """
    moved = joints.copy()
    moved[..., :2] = (joints[..., :2] + 0.5) / stride - 0.5
    return moved


def draw_joints(
    joints: NDArray[np.float32],
    height: int,
    width: int,
    sigma: float = 2.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one heatmap per joint of one person each, with a Gaussian at the joint's exact place.

    The centre is not moved to a cell's (the unbiased encoding of DARK, arXiv 1910.06278): what a network
    learns can then be read more finely than in cells, and mirroring a target is mirroring the joints.

    Parameters
    ----------
    joints
        x, y, v in cells, centres at integers, shape (N, J, 3).
    height, width
        Size of the maps.
    sigma
        Standard deviation of the Gaussian in cells.
    device
        Where the maps are drawn.

    Returns
    -------
    float32 (N, J, height, width), channels last in memory as the network's are; 0 everywhere where v = 0.

    Raises
    ------
    InputError
        If the shape or sigma is wrong.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"heatmaps need a positive sigma, got {sigma}")
    if joints.ndim != 3 or joints.shape[2] != 3:
        raise InputError(f"a batch of people's joints must have shape (N, joints, 3), got {joints.shape}")
    columns, rows = (_profile(joints[..., axis], side, sigma) for axis, side in ((0, width), (1, height)))
    rows *= (joints[..., 2] > 0)[:, None]
    if torch.device(device).type == "cpu":  # in NumPy, as torch would start threads for it
        maps = torch.from_numpy(rows[:, :, None] * columns[:, None])
    else:
        high, wide = (torch.from_numpy(each).to(device, non_blocking=True) for each in (rows, columns))
        maps = high[:, :, None] * wide[:, None]
    return maps.permute(0, 3, 1, 2)


def _profile(centres: NDArray[np.float32], side: int, sigma: float) -> NDArray[np.float32]:
    """Return Gaussians of one dimension about centres (N, J): (N, side, J)."""
    offsets = np.arange(side, dtype=np.float32)[None, :, None] - centres[:, None]
    values = np.exp(np.square(offsets) * np.float32(-0.5 / sigma**2))
    values[values < _NOTHING] = 0
    return np.asarray(values, dtype=np.float32)


def gather_people(
    source: PersonCrops | PersonCache,
    indices: Sequence[int],
    resolution: int,
    augmentation: Augmentation | None,
    seed: int,
    epoch: int,
    stop: threading.Event | None = None,
) -> RawPeople:
    """Load people and cut them out; what becomes of one depends on (seed, epoch, its index) only.

    Parameters
    ----------
    source
        Where people come from.
    indices
        Positions, 0 to ``len(people) - 1``; those beyond begin again, with other variations.
    resolution
        Height of the crops in pixels.
    augmentation
        How crops vary; None for the boxes as they are.
    seed, epoch
        Non-negative numbers that pick the random variation.
    stop
        When set, the work is given up between two people.

    Raises
    ------
    InputError
        If the batch is empty, the resolution is none of a top-down network, or a picture cannot be loaded.
    RunError
        If something unforeseen happens to a picture; its file is named.
    """
    people = source.dataset if isinstance(source, PersonCache) else source
    if not indices:
        raise InputError("a batch needs people, got none")
    skeleton, count = people.skeleton, len(indices)
    images = np.empty((count, *crop_size(resolution), 3), dtype=np.uint8)
    joints = np.empty((count, len(skeleton), 3), dtype=np.float32)
    for row, index in enumerate(indices):
        if stop is not None and stop.is_set():
            raise RunError("the loading of a batch was stopped")
        rng = np.random.default_rng([seed, epoch, index])
        place = index % len(people)
        try:
            images[row], joints[row] = augment_person(
                source.load(place), resolution, augmentation, rng, skeleton
            )
        except LitePoseNasError:
            raise
        except Exception as error:
            raise RunError(
                f"image '{people.file_name(place)}' of {people.where} cannot be prepared:"
                f" {type(error).__name__}: {error}; look at the file and its annotations"
            ) from error
    return RawPeople(torch.from_numpy(images), joints)
