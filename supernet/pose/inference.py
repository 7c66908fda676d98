"""People in the images of a data set: images resized and batched, maps predicted, people grouped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from search_spaces.errors import InputError
from supernet.pose.decode import FloatArray, decode
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.skeleton import Skeleton
from supernet.pose.transforms import AffineTransform, normalise, resize_for_eval

__all__ = ["EvaluationDataset", "Predictions", "Progress", "predict", "predict_dataset"]

Progress = Callable[[int, int], None]
"""Called as ``progress(images done, images in all)``."""


class EvaluationDataset(Protocol):
    """What evaluation needs of a data set; :class:`supernet.pose.dataset.PoseDataset` has it."""

    @property
    def skeleton(self) -> Skeleton:
        """The joints of a person."""

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which joints the data set annotates: bool (J,)."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The images' ids, in order."""

    def load_image(self, index: int) -> NDArray[np.uint8]:
        """Return image ``index``: RGB uint8 (H, W, 3)."""

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the annotations of some images in COCO's format and the data set's skeleton."""


@dataclass(frozen=True)
class Predictions:
    """People found in some images, and the time that it took.

    Attributes
    ----------
    detections
        COCO results, see :func:`predict_dataset`.
    images
        Number of images.
    seconds_network, seconds_decode
        Wall-clock time in the network (with resizing of its maps) and in grouping.
    """

    detections: list[dict[str, Any]]
    images: int
    seconds_network: float
    seconds_decode: float


@dataclass
class _Picture:
    """One resized image on its way to the network."""

    position: int
    image: NDArray[np.uint8]
    back: AffineTransform


def _batches(
    dataset: EvaluationDataset, indices: Sequence[int], config: EvalConfig
) -> Iterator[list[_Picture]]:
    """Yield lists of at most ``batch_size`` images of one size; full ones as soon as they are full."""
    waiting: dict[tuple[int, ...], list[_Picture]] = {}
    for position, index in enumerate(indices):
        image, back = resize_for_eval(dataset.load_image(index), config.resolution, config.multiple)
        same = waiting.setdefault(image.shape, [])
        same.append(_Picture(position, image, back))
        if len(same) == config.batch_size:
            yield waiting.pop(image.shape)
    yield from waiting.values()


def _results(
    people: FloatArray,
    scores: FloatArray,
    picture: _Picture,
    map_size: tuple[int, int],
    limit: int,
) -> list[tuple[list[float], float]]:
    """Return keypoints (flat x, y, value in pixels of the original image) and score of the best people."""
    best = np.argsort(-scores, kind="stable")[:limit]
    keypoints = people[best, :, :3].astype(np.float64)
    size = np.array(picture.image.shape[1::-1]) / np.array(map_size[::-1])
    keypoints[..., :2] = picture.back(keypoints[..., :2] * size)
    return [(person.ravel().tolist(), float(scores[at])) for at, person in zip(best, keypoints)]


def predict(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
) -> Predictions:
    """Find the people in a data set's images and say how long it took; see :func:`predict_dataset`."""
    known = {image_id: index for index, image_id in enumerate(dataset.ids)}
    wanted = list(dataset.ids if ids is None else ids)
    for image_id in wanted:
        if image_id not in known:
            raise InputError(f"the data set has no image with id {image_id}")
    category = int(dataset.ground_truth(wanted[:1])["categories"][0]["id"])
    skeleton = dataset.skeleton
    order = skeleton.grouping_order
    target = torch.device(device)
    found: list[list[tuple[list[float], float]]] = [[] for _ in wanted]
    seconds_network = seconds_decode = 0.0
    done = 0
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        for batch in _batches(dataset, [known[image_id] for image_id in wanted], config):
            images = normalise(np.stack([picture.image for picture in batch])).to(target)
            start = time.perf_counter()
            det, tags = predict_maps(network, images, skeleton.flip_index, config)
            if det.shape[1] != len(skeleton.joints):
                raise InputError(
                    f"the network finds {det.shape[1]} joints, but the data set's skeleton '{skeleton.name}' "
                    f"has {len(skeleton.joints)}; read the data set with the network's skeleton"
                )
            heat, tag = det.cpu().numpy(), tags.cpu().numpy()
            middle = time.perf_counter()
            for slot, picture in enumerate(batch):
                people, scores = decode(heat[slot], tag[slot], config.grouping, order)
                found[picture.position] = _results(
                    people, scores, picture, (heat.shape[2], heat.shape[3]), config.max_detections
                )
            seconds_network += middle - start
            seconds_decode += time.perf_counter() - middle
            done += len(batch)
            if progress is not None:
                progress(done, len(wanted))
    finally:
        for module, training in modes:
            module.training = training
    detections = [
        {"image_id": image_id, "category_id": category, "keypoints": keypoints, "score": score}
        for image_id, each in zip(wanted, found)
        for keypoints, score in each
    ]
    return Predictions(detections, len(wanted), seconds_network, seconds_decode)


def predict_dataset(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Find the people in a data set's images.

    Images of equal evaluated size run through the network together; results do not depend on
    ``batch_size`` beyond rounding. The network is put in eval mode meanwhile.

    Parameters
    ----------
    network
        Returns ``(quarter, half)`` maps, see :func:`predict_maps`; it must lie on ``device``.
    dataset
        Images and skeleton.
    config
        Resolution, flip test, grouping.
    progress
        Called after each batch with the images done and the images in all.
    device
        Where the network runs.
    ids
        Image ids; by default all.

    Returns
    -------
    list of dict
        COCO results, by image in the order of ``ids``, then by falling score: ``image_id``,
        ``category_id``, ``keypoints`` (x, y, value per joint, pixels of the original image), ``score``.

    Raises
    ------
    InputError
        If an id is unknown, an image cannot be read, or the network's joints are not the data set's.
    """
    return predict(network, dataset, config, progress=progress, device=device, ids=ids).detections
