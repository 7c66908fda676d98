"""People in the pictures of a data set, found one by one: boxes, crops, heatmaps, joints, suppression."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import InputError
from supernet.pose.boxes import (
    PADDING,
    Box,
    annotated_boxes,
    crop_extent,
    crop_size,
    crop_transform,
    read_boxes,
    whole_image,
)
from supernet.pose.crops import MAP_STRIDES, cut_out
from supernet.pose.decode import FloatArray
from supernet.pose.heatmaps import HeatmapDecoding, decode_heatmaps, flip_maps
from supernet.pose.inference import (
    PICTURE_BYTES,
    SIDE_PIXELS,
    EvaluationDataset,
    Inference,
    Pictures,
    Predictions,
    Progress,
    side_by_side,
)
from supernet.pose.peaks import picked_by, refuse_passes
from supernet.pose.skeleton import Skeleton
from supernet.pose.suppression import oks_nms, person_scores, soft_oks_nms
from supernet.pose.transforms import AffineTransform, normalise

__all__ = [
    "WHOLE_IMAGE",
    "Crop",
    "PersonPictures",
    "Suppression",
    "TopDownConfig",
    "predict_heatmaps",
    "predict_people",
]

Suppression = Literal["oks", "soft", "none"]
WHOLE_IMAGE: Final = "whole-image"
"""In the place of a file of boxes: every picture is of one person."""


@dataclass(frozen=True)
class TopDownConfig:
    """How a top-down network is evaluated.

    Attributes
    ----------
    resolution
        Height of the network's input, pixels; the width is 3/4 of it.
    flip
        Whether the mirrored crop is run too and the heatmaps averaged.
    batch_size
        Crops that run through the network at once.
    decoding
        How joints are placed within cells; see :func:`supernet.pose.heatmaps.decode_heatmaps`.
    suppression
        What becomes of people who were found more than once in a picture: with ``oks`` all but the one with
        the highest score are dropped, with ``soft`` their scores fall, with ``none`` they stay. Annotated
        boxes are of different people, and nobody is suppressed.
    suppression_threshold
        Likeness (OKS) above which two are one; see :mod:`supernet.pose.suppression`.
    padding
        How much of the picture is shown around a box.
    max_detections
        People kept per picture, by score; with annotated boxes all.
    boxes
        A detector's file (:func:`supernet.pose.boxes.read_boxes`), or "whole-image"; by default the annotated
        boxes.
    box_threshold
        Least score of a detector's box.
    max_boxes
        Most of a detector's boxes per picture, by score.
    sigma
        Standard deviation of the heatmaps' Gaussians, in cells, as in training.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    resolution: int
    flip: bool = False
    batch_size: int = 32
    decoding: HeatmapDecoding = "dark"
    suppression: Suppression = "oks"
    suppression_threshold: float = 0.9
    padding: float = PADDING
    max_detections: int = 20
    boxes: Path | None = None
    box_threshold: float = 0.0
    max_boxes: int = 100
    sigma: float = 2.0

    def __post_init__(self) -> None:
        for what in ("resolution", "batch_size", "max_detections", "max_boxes"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"evaluation: {what} must be a positive integer, not {value!r}")
        crop_size(self.resolution)
        for what, kind in (("decoding", HeatmapDecoding), ("suppression", Suppression)):
            if getattr(self, what) not in get_args(kind):
                raise InputError(
                    f"evaluation: {what} is one of {', '.join(get_args(kind))}, not {getattr(self, what)!r}"
                )
        if not 0 < self.suppression_threshold <= 1:
            raise InputError(
                "evaluation: suppression_threshold lies above 0 and is at most 1, not"
                f" {self.suppression_threshold}"
            )
        if not 0 < self.padding < math.inf:
            raise InputError(
                f"evaluation: padding is a positive factor such as {PADDING}, not {self.padding}"
            )
        if not 0 <= self.box_threshold < math.inf:
            raise InputError(f"evaluation: box_threshold must be at least 0, not {self.box_threshold}")
        if not 0 < self.sigma <= 100:
            raise InputError(f"evaluation: sigma lies above 0 and is at most 100 cells, not {self.sigma}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input, pixels."""
        return crop_size(self.resolution)

    @property
    def of_annotations(self) -> bool:
        """Whether the boxes are the annotated ones."""
        return self.boxes is None

    @property
    def box_source(self) -> tuple[object, ...]:
        """What decides which boxes there are."""
        if self.boxes is None or str(self.boxes) == WHOLE_IMAGE:
            return (str(self.boxes),)
        return (str(self.boxes), self.box_threshold, self.max_boxes)


class PersonPictures(Pictures):
    """The crops of a data set as networks see them, made once and kept as far as they fit.

    Networks of one resolution share them, and files of boxes are read once; see :class:`Pictures`.

    Parameters
    ----------
    dataset
        Where images come from.
    limit_bytes
        Most that is kept of crops.
    """

    def __init__(self, dataset: EvaluationDataset, limit_bytes: int = PICTURE_BYTES) -> None:
        super().__init__(dataset, limit_bytes)
        self._found: dict[tuple[object, ...], tuple[Mapping[int, tuple[Box, ...]], dict[int, int]]] = {}
        self._places = {image_id: index for index, image_id in enumerate(dataset.ids)}

    def boxes(self, config: TopDownConfig) -> Mapping[int, tuple[Box, ...]]:
        """Return the boxes of every image by its id.

        Raises
        ------
        InputError
            As :func:`supernet.pose.boxes.read_boxes` does.
        """
        return self._numbered(config)[0]

    def _numbered(self, config: TopDownConfig) -> tuple[Mapping[int, tuple[Box, ...]], dict[int, int]]:
        """Return the boxes of every image, and how many there are in the images before it."""
        source = config.box_source
        if source not in self._found:
            boxes = self._read(config)
            counts = [len(boxes[image_id]) for image_id in self.dataset.ids]
            before = np.cumsum([0, *counts[:-1]]).tolist()
            self._found[source] = (boxes, dict(zip(self.dataset.ids, before, strict=True)))
        return self._found[source]

    def _read(self, config: TopDownConfig) -> Mapping[int, tuple[Box, ...]]:
        truth = self.dataset.ground_truth()
        if config.boxes is None:
            return annotated_boxes(truth)
        if str(config.boxes) == WHOLE_IMAGE:
            return {image["id"]: (whole_image(image["height"], image["width"]),) for image in truth["images"]}
        return read_boxes(
            config.boxes,
            self.dataset.ids,
            category=int(truth["categories"][0]["id"]),
            threshold=config.box_threshold,
            most=config.max_boxes,
            subset=True,
        ).by_image

    def crops(self, image_id: int, config: TopDownConfig) -> Iterator[Crop]:
        """Yield the crops of an image's boxes, in order.

        The picture is decoded at most once, and not at all where its crops are kept.
        """
        boxes, before = self._numbered(config)
        key, picture = (config.size, config.padding, config.box_source), None
        for number, box in enumerate(boxes[image_id], start=before[image_id]):
            forth = crop_transform(box, config.size, config.padding)

            def make(forth: AffineTransform = forth) -> tuple[NDArray[np.uint8], AffineTransform]:
                nonlocal picture
                if picture is None:
                    picture = self.dataset.load_image(self._places[image_id])
                return cut_out(picture, forth, config.size), forth.inverse()

            image, back = self._get(key, number, make)
            yield Crop(number, box, image, back)


@dataclass(frozen=True)
class Crop:
    """What a network sees of one box.

    Attributes
    ----------
    number
        Of the box, among all of the data set's.
    box
        Where in the picture it is.
    image
        RGB, uint8 (H, W, 3); it must not be changed.
    back
        Maps coordinates in the crop to the picture's.
    """

    number: int
    box: Box
    image: NDArray[np.uint8]
    back: AffineTransform


@torch.no_grad()
def predict_heatmaps(
    network: nn.Module, images: Tensor, flip_index: NDArray[np.int64] | None = None
) -> Tensor:
    """Return a top-down network's heatmaps, averaged with those of the mirrored crops where that is wanted.

    Parameters
    ----------
    network
        Returns a tuple of one tensor: heatmaps (N, J, h, w) at 1/4 or 1/8 of the input. Should be in eval
        mode.
    images
        Normalised crops (N, 3, H, W).
    flip_index
        (J,): joint that each joint becomes in the mirror; None for no flip test.

    Returns
    -------
    float32 (N, J, h, w) on the images' device.

    Raises
    ------
    InputError
        If the network's output is not as stated.
    """
    maps = _heatmaps(network, images)
    if flip_index is not None:
        maps = (maps + flip_maps(_heatmaps(network, images.flip(3)), flip_index)) / 2.0
    return maps.float()


def _heatmaps(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images)
    if isinstance(output, Tensor) or len(output) != 1:
        got = "a tensor" if isinstance(output, Tensor) else f"{len(output)}"
        raise InputError(f"a top-down network gives a tuple of its heatmaps alone, not {got}")
    maps: Tensor = output[0]
    height, width = images.shape[2:]
    sizes = [(height // stride, width // stride) for stride in MAP_STRIDES]
    if maps.ndim != 4 or tuple(maps.shape[2:]) not in sizes:
        raise InputError(
            f"a top-down network's heatmaps have 1/4 or 1/8 of its input's size (here {sizes[0]} or"
            f" {sizes[1]}), not the shape {tuple(maps.shape)}"
        )
    return maps


@dataclass
class _Batch:
    """Crops on their way to the network, and the place of each one's picture among those wanted."""

    positions: list[int] = field(default_factory=list)
    crops: list[Crop] = field(default_factory=list)


def _batches(
    pictures: PersonPictures, ids: Sequence[int], config: TopDownConfig, most: int
) -> Iterator[_Batch]:
    """Yield the crops of the images in batches of at most ``most``."""
    batch = _Batch()
    for position, image_id in enumerate(ids):
        for crop in pictures.crops(image_id, config):
            batch.positions.append(position)
            batch.crops.append(crop)
            if len(batch.crops) == most:
                yield batch
                batch = _Batch()
    if batch.crops:
        yield batch


@dataclass(frozen=True)
class _Found:
    """What a batch's crops show: joints (N, J, 3) in pixels of the pictures, with values."""

    joints: NDArray[np.float64]
    seconds_network: float
    seconds_decode: float


@dataclass(frozen=True)
class _Run:
    """What every batch of one call has in common."""

    network: nn.Module
    skeleton: Skeleton
    config: TopDownConfig
    device: torch.device
    inference: Inference

    def __call__(self, batch: _Batch) -> _Found:
        """Run the network on a batch and find the joints."""
        images = normalise(np.stack([crop.image for crop in batch.crops])).to(self.device)
        start = time.perf_counter()
        if self.inference.entering is not None:
            self.inference.entering(tuple(crop.number for crop in batch.crops))
        picked = picked_by(self.network)
        if picked is not None:
            joints = self._picked(images)
            middle, size = time.perf_counter(), picked.maps
        else:
            index = self.skeleton.flip_index if self.config.flip else None
            heat = predict_heatmaps(self.network, images, index)
            self._check_joints(heat.shape[1])
            maps = heat.cpu().contiguous().numpy()
            middle, size = time.perf_counter(), (maps.shape[2], maps.shape[3])
            joints = decode_heatmaps(maps, self.config.decoding, self.config.sigma)
        placed = self._in_pictures(joints, size, batch)
        return _Found(placed, middle - start, time.perf_counter() - middle)

    def _check_joints(self, found: int) -> None:
        if found != len(self.skeleton):
            raise InputError(
                f"the network finds {found} joints, but the data set's skeleton"
                f" '{self.skeleton.name}' has {len(self.skeleton)}; read the data set with the network's"
                " skeleton"
            )

    def _picked(self, images: Tensor) -> FloatArray:
        """Return the joints that the network itself picks, (N, J, 3): x, y in cells, value."""
        refuse_passes(flip=self.config.flip)
        with torch.no_grad():
            values, places = (each.cpu().numpy() for each in self.network(images))
        self._check_joints(values.shape[1])
        return np.concatenate([places, values[..., None]], axis=2)

    def _in_pictures(self, found: FloatArray, maps: tuple[int, int], batch: _Batch) -> NDArray[np.float64]:
        """Return joints (N, J, 3) in cells of maps (height, width) in pixels of their pictures."""
        joints = found.astype(np.float64)
        stride = np.array(self.config.size[::-1]) / np.array(maps[::-1])
        # From the frame in which pixel 0 covers [0, 1) to the one in which its centre is 0.
        pixels = joints[..., :2] * stride - 0.5
        for row, place, crop in zip(joints, pixels, batch.crops, strict=True):
            row[:, :2] = crop.back(place)
        return joints

    def alone(self, batch: _Batch) -> _Found:
        """Do the same with one thread per operator: the batches already keep the cores busy."""
        torch.set_num_threads(1)
        return self(batch)

    def all(self, batches: Iterable[_Batch]) -> Generator[tuple[_Batch, _Found]]:
        """Run every batch, a few at a time, and yield them in order.

        On an error, or when iteration stops early, those not yet begun are dropped.
        """
        count = self.inference.side_by_side
        if count == 1:
            for batch in batches:
                yield batch, self(batch)
            return
        yield from side_by_side(batches, self.alone, count)


def _remaining(
    joints: NDArray[np.float64], boxes: Sequence[Box], skeleton: Skeleton, config: TopDownConfig
) -> list[tuple[list[float], float]]:
    """Return who remains of the people found in a picture: keypoints and score, by falling score.

    Areas, on which likeness depends, are those of the crops, as in SimpleBaseline's test code: its threshold
    belongs to them.
    """
    scores = person_scores(joints[..., 2], [box.score for box in boxes])
    areas = [math.prod(crop_extent(box, config.size, config.padding)) for box in boxes]
    order = np.argsort(-scores, kind="stable")
    if not config.of_annotations:
        if config.suppression == "oks":
            order = oks_nms(joints, scores, areas, skeleton.sigmas, config.suppression_threshold)
        elif config.suppression == "soft":
            order, lowered = soft_oks_nms(
                joints, scores, areas, skeleton.sigmas, config.suppression_threshold
            )
            scores[order] = lowered
        order = order[: config.max_detections]
    return [(joints[person].ravel().tolist(), float(scores[person])) for person in order]


def predict_people(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: TopDownConfig,
    *,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
    inference: Inference | None = None,
) -> Predictions:
    """Find the people in a data set's images, box by box.

    Results do not depend on ``batch_size``, nor on how the machine is used, beyond rounding. The network is
    put in eval mode meanwhile.

    Parameters
    ----------
    network
        See :func:`predict_heatmaps`; it must lie on ``device``.
    dataset
        Images, skeleton and, unless boxes come from elsewhere, boxes.
    config
        Resolution, boxes, flip test, decoding, suppression.
    progress
        Called after each batch with the images done and the images in all.
    device
        Where the network runs.
    ids
        Image ids; by default all.
    inference
        How the machine is used; by default one batch after the other, in this thread. Its ``pictures`` are
        crops that are kept where they are :class:`PersonPictures` of this data set. ``entering`` is told the
        numbers of the crops (:attr:`Crop.number`). ``workers`` are not needed: decoding takes little.

    Returns
    -------
    Predictions
        COCO results by image in the order of ``ids``, then by falling score. With annotated boxes there is
        one for every annotated person. A person's score is the box's times the mean value of the joints
        above 0.2. Decoding and suppression count as time of decoding; cutting crops out counts as neither.

    Raises
    ------
    InputError
        If an id is unknown, an image or the file of boxes cannot be read, or the network's output does not
        fit.
    """
    wanted, known = list(dataset.ids if ids is None else ids), frozenset(dataset.ids)
    for image_id in wanted:
        if image_id not in known:
            raise InputError(f"the data set has no image with id {image_id}")
    category = int(dataset.ground_truth(wanted[:1])["categories"][0]["id"])
    inference = inference or Inference()
    pictures = inference.pictures
    if not isinstance(pictures, PersonPictures) or pictures.dataset is not dataset:
        pictures = PersonPictures(dataset, 0)
    run = _Run(network, dataset.skeleton, config, torch.device(device), inference)
    most = config.batch_size
    if inference.side_by_side > 1:
        most = max(1, min(most, SIDE_PIXELS // math.prod(config.size)))
    boxes = pictures.boxes(config)
    found: list[list[NDArray[np.float64]]] = [[] for _ in wanted]
    seconds_network = seconds_decode = 0.0
    done = sum(not boxes[image_id] for image_id in wanted)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with contextlib.closing(run.all(_batches(pictures, wanted, config, most))) as ran:
            for batch, result in ran:
                for position, joints in zip(batch.positions, result.joints, strict=True):
                    found[position].append(joints)
                    done += len(found[position]) == len(boxes[wanted[position]])
                seconds_network += result.seconds_network
                seconds_decode += result.seconds_decode
                if progress is not None:
                    progress(done, len(wanted))
    finally:
        for module, training in modes:
            module.training = training
    start = time.perf_counter()
    detections: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category, "keypoints": keypoints, "score": score}
        for image_id, people in zip(wanted, found, strict=True)
        if people
        for keypoints, score in _remaining(np.stack(people), boxes[image_id], dataset.skeleton, config)
    ]
    seconds_decode += time.perf_counter() - start
    return Predictions(detections, len(wanted), seconds_network, seconds_decode)
