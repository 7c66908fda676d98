"""What an emitted network finds in some val images, beside what is annotated there, as JPEG data."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from nas.run import RunDirectory
from search_spaces import RunError
from supernet.checkpoint import load_network
from supernet.pose.dataset import PoseDataset
from supernet.pose.draw import draw_people
from supernet.pose.finding import find_people
from supernet.pose.maps import EvalConfig

__all__ = ["Picture", "sample_pictures"]

PICTURES: Final = 6
_SIDE: Final = 360
"""Longest side of a picture in a report, pixels."""
_BYTES: Final = 60_000
_QUALITIES: Final = (88, 80, 70, 60, 45, 30)
_SURE: Final = 0.1
"""Value from which a joint, or a person, of a top-down network is drawn; as ``nas predict`` does."""


@dataclass(frozen=True)
class Picture:
    """One val image, drawn twice.

    Attributes
    ----------
    name
        Of its file, or its number.
    found, annotated
        How many people were found in it, and how many are annotated with joints.
    predicted, truth
        The drawn pictures, as ``data:image/jpeg;base64,...``.
    width, height
        Of both, pixels.
    """

    name: str
    found: int
    annotated: int
    predicted: str
    truth: str
    width: int
    height: int


def sample_pictures(
    run: RunDirectory, data: PoseDataset, model: Path, count: int = PICTURES
) -> list[Picture]:
    """Return what a network finds in ``count`` images that show people, spread evenly over the data set.

    Parameters
    ----------
    run
        Says how people are found.
    data
        The val images.
    model
        The network's ``.safetensors``.
    count
        How many images at most.

    Raises
    ------
    InputError
        If the file is missing or damaged, or an image cannot be read.
    """
    shown = data.with_people()
    ids = [shown.ids[i] for i in np.linspace(0, len(shown) - 1, min(count, len(shown))).round().astype(int)]
    network, _ = load_network(model)
    config = run.recipe.evaluation(network.arch.number("resolution"))
    sure = config.grouping.detection_threshold if isinstance(config, EvalConfig) else _SURE
    found = find_people(network, shown, config, ids=ids).detections
    pictures = []
    for image_id in ids:
        place = shown.ids.index(image_id)
        image = shown.load_image(place)
        boxes = _true_people(shown, image_id)
        people = [
            np.array(each["keypoints"], dtype=np.float64).reshape(-1, 3)
            for each in sorted(found, key=lambda each: -float(each["score"]))
            if each["image_id"] == image_id and each["score"] >= sure
        ]
        predicted, truth = (
            _drawn(image, drawn, shown, threshold)
            for drawn, threshold in ((people, sure), (boxes, 0.0))
        )  # fmt: skip
        name = shown.file_name(place) or str(image_id)
        height, width = predicted.shape[:2]
        pictures.append(Picture(name, len(people), len(boxes), _data(predicted), _data(truth), width, height))
    return pictures


def _true_people(data: PoseDataset, image_id: int) -> list[NDArray[np.float64]]:
    rows: list[dict[str, Any]] = data.ground_truth([image_id])["annotations"]
    people = [np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3) for row in rows]
    return [person for person in people if (person[:, 2] > 0).any()]


def _drawn(
    image: NDArray[np.uint8], people: list[NDArray[np.float64]], data: PoseDataset, threshold: float
) -> NDArray[np.uint8]:
    """Return an image at the size of the report with people drawn over it."""
    scale = _SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    joints = len(data.skeleton)
    every = np.stack(people) if people else np.zeros((0, joints, 3))
    every = every.copy()
    every[..., :2] = (every[..., :2] + 0.5) * scale - 0.5
    return draw_people(np.asarray(small, dtype=np.uint8), every, data.skeleton, threshold=threshold)


def _data(image: NDArray[np.uint8]) -> str:
    """Return an image as a JPEG in an address, of at most 60 kB if that can be."""
    encoded = b""
    for quality in _QUALITIES:
        done, buffer = cv2.imencode(
            ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        if not done:
            raise RunError("OpenCV cannot write JPEG here; leave the pictures out with --no-pictures")
        encoded = buffer.tobytes()
        if len(encoded) * 4 / 3 <= _BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode("ascii")
