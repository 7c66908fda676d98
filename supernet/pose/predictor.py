"""People in single pictures, one at a time, as a camera or a folder of photos delivers them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from search_spaces.errors import InputError
from supernet.pose.boxes import Box, whole_image
from supernet.pose.inference import Inference, predict
from supernet.pose.maps import EvalConfig
from supernet.pose.skeleton import Skeleton
from supernet.pose.topdown import WHOLE_IMAGE, PersonPictures, TopDownConfig, predict_people
from supernet.pose.transforms import AffineTransform, letterbox

__all__ = ["LONGEST", "Found", "PersonPredictor", "PosePredictor", "shown_joints"]

LONGEST: Final = 16
"""Sides of a picture may differ by this factor: a longer strip would ask for unreasonable memory."""


@dataclass(frozen=True)
class Found:
    """The people in one picture.

    Attributes
    ----------
    people
        float64 (P, J, 3), best first: x, y in pixels of the picture (pixel centres at integers) and the
        heatmap's value there.
    scores
        float64 (P,), falling.
    seconds
        Wall-clock time of ``prepare`` (resizing, normalising, mapping back), ``network`` (with resizing of
        its maps) and ``decode`` (grouping).
    """

    people: NDArray[np.float64]
    scores: NDArray[np.float64]
    seconds: dict[str, float]


class _OnePicture:
    """A picture as the data set that inference takes; its only id is 0."""

    ids = (0,)

    def __init__(self, image: NDArray[np.uint8], skeleton: Skeleton) -> None:
        self._image = image
        self.skeleton = skeleton
        self.labelled = np.ones(len(skeleton), dtype=np.bool_)

    def load_image(self, index: int) -> NDArray[np.uint8]:
        return self._image

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        return {"info": {}, "images": [], "annotations": [], "categories": [{"id": 1}]}


class PosePredictor:
    """A network that finds people in one picture per call, as :func:`~supernet.pose.inference.predict` does.

    Parameters
    ----------
    network
        Returns ``(quarter, half)`` maps; it must lie on ``device``.
    skeleton
        The joints that it finds.
    config
        Resolution, flip test, grouping.
    device
        Where the network runs.
    size
        (height, width) of the only input that the network takes; pictures are fitted into it (see
        :func:`~supernet.pose.transforms.letterbox`). By default it takes any, and pictures keep their
        aspect.

    Raises
    ------
    InputError
        If several scales are asked of a network that takes one size.
    """

    def __init__(
        self,
        network: nn.Module,
        skeleton: Skeleton,
        config: EvalConfig,
        *,
        device: str | torch.device = "cpu",
        size: tuple[int, int] | None = None,
    ) -> None:
        if size is not None and len(config.scales) > 1:
            raise InputError(
                f"a network for {size[0]}x{size[1]} pixels only cannot see pictures at scales"
                f" {list(config.scales)}; take one for any size, or the scale 1 alone"
            )
        self.network = network.eval()
        self.skeleton = skeleton
        self.device = torch.device(device)
        self.size = size
        self.config = config if size is None else replace(config, resolution=min(size), multiple=1)

    def __call__(self, image: NDArray[np.uint8]) -> Found:
        """Return the people in a picture, RGB uint8 (H, W, 3).

        Raises
        ------
        InputError
            If its sides are too unequal, or if the network's joints are not the skeleton's.
        """
        start = time.perf_counter()
        height, width = image.shape[:2]
        if self.size is None and max(height, width) > LONGEST * min(height, width):
            raise InputError(
                f"a picture of {width}x{height} pixels is too long: one side may be at most {LONGEST} times"
                " the other; cut it into parts"
            )
        back: AffineTransform | None = None
        if self.size is not None:
            image, back = letterbox(image, self.size)
        result = predict(
            self.network, _OnePicture(image, self.skeleton), self.config, device=self.device, ids=(0,)
        )
        flat = np.array([each["keypoints"] for each in result.detections], dtype=np.float64)
        people = flat.reshape(-1, len(self.skeleton), 3)
        if back is not None:
            people[..., :2] = back(people[..., :2])
        scores = np.array([each["score"] for each in result.detections], dtype=np.float64)
        whole = time.perf_counter() - start
        seconds = {"network": result.seconds_network, "decode": result.seconds_decode}
        return Found(people, scores, {"prepare": max(0.0, whole - sum(seconds.values())), **seconds})


class _Given(PersonPictures):
    """Crops of one picture, the boxes given."""

    def __init__(self, picture: _OnePicture, boxes: Sequence[Box]) -> None:
        super().__init__(picture, 0)
        self._given = tuple(boxes)

    def _read(self, config: TopDownConfig) -> Mapping[int, tuple[Box, ...]]:
        return {0: self._given}


class PersonPredictor:
    """A top-down network that finds the joints of people whose boxes are known, one picture per call.

    Parameters
    ----------
    network
        Returns a tuple of heatmaps alone; it must lie on ``device``.
    skeleton
        The joints that it finds.
    config
        Resolution, flip test, decoding, suppression. Its boxes are not used: they come with each picture.
    device
        Where the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        skeleton: Skeleton,
        config: TopDownConfig,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = network.eval()
        self.skeleton = skeleton
        self.device = torch.device(device)
        # Given boxes may show one person twice, as a detector's do.
        self.config = replace(config, boxes=Path(WHOLE_IMAGE))

    def __call__(self, image: NDArray[np.uint8], boxes: Sequence[Box] | None = None) -> Found:
        """Return the people in a picture, RGB uint8 (H, W, 3); by default one, whom the whole picture shows.

        Raises
        ------
        InputError
            If the network's joints are not the skeleton's.
        """
        start = time.perf_counter()
        if boxes is None:
            boxes = (whole_image(*image.shape[:2]),)
        picture = _OnePicture(image, self.skeleton)
        inference = Inference(pictures=_Given(picture, boxes))
        result = predict_people(
            self.network, picture, self.config, device=self.device, ids=(0,), inference=inference
        )
        flat = np.array([each["keypoints"] for each in result.detections], dtype=np.float64)
        scores = np.array([each["score"] for each in result.detections], dtype=np.float64)
        whole = time.perf_counter() - start
        seconds = {"network": result.seconds_network, "decode": result.seconds_decode}
        return Found(
            flat.reshape(-1, len(self.skeleton), 3),
            scores,
            {"prepare": max(0.0, whole - sum(seconds.values())), **seconds},
        )


def shown_joints(people: NDArray[np.float64], height: int, width: int, threshold: float) -> NDArray[np.bool_]:
    """Return which joints are sure enough to be shown: above the threshold and within the picture, (P, J).

    Grouping fills in joints that it has not seen (``GroupingConfig.refine``); most of those have values
    near 0. They help average precision, but should not be shown as found.
    """
    xy = people[..., :2]
    inside = (xy >= -0.5) & (xy < np.array([width, height]) - 0.5)
    return np.asarray((people[..., 2] > threshold) & inside.all(axis=-1))
