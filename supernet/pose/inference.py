"""People in the images of a data set: images resized and batched, maps predicted, people grouped."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import InputError
from supernet.pose.decode import FloatArray
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.peaks import PickedPeaks, people_of, picked_by, refuse_passes
from supernet.pose.skeleton import Skeleton
from supernet.pose.transforms import AffineTransform, letterbox, normalise, resize_for_eval
from supernet.pose.workers import Decoded, DecodeWorkers, decode_maps

__all__ = [
    "EvaluationDataset",
    "FittedPictures",
    "Inference",
    "Pictures",
    "Predictions",
    "Progress",
    "in_picture",
    "predict",
    "predict_dataset",
    "side_by_side",
]

B = TypeVar("B")
R = TypeVar("R")

PICTURE_BYTES: Final = 2**30
"""Most resized images that are kept by default, bytes: 3,600 of 256 x 384 pixels."""
SIDE_PIXELS: Final = 2 * 256 * 384
"""Most input pixels of a batch that runs beside others, so that what follows a layer finds it in the cache.
The same on every machine, since batches of another size may be rounded differently."""

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
        Time in the network (with resizing of its maps) and in grouping, by the clock; what ran side by side
        is added up.
    """

    detections: list[dict[str, Any]]
    images: int
    seconds_network: float
    seconds_decode: float


class Pictures:
    """A data set's images as networks see them: read and resized once, and kept as far as they fit.

    Networks of one resolution share them. Where the limit is reached, the images of the resolutions that
    were not used for longest are dropped; what does not fit even then is made anew every time. May be used
    by several threads.

    Parameters
    ----------
    dataset
        Where images come from.
    limit_bytes
        Most that is kept.
    """

    def __init__(self, dataset: EvaluationDataset, limit_bytes: int = PICTURE_BYTES) -> None:
        self.dataset, self.limit_bytes = dataset, limit_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[Hashable, dict[int, tuple[NDArray[np.uint8], AffineTransform]]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, index: int, config: EvalConfig) -> tuple[NDArray[np.uint8], AffineTransform]:
        """Return image ``index`` as :func:`resize_for_eval` gives it; it must not be changed."""
        grid = config.input_grid
        return self._get(grid, index, lambda: resize_for_eval(self.dataset.load_image(index), *grid))

    def _get(
        self, key: Hashable, index: int, make: Callable[[], tuple[NDArray[np.uint8], AffineTransform]]
    ) -> tuple[NDArray[np.uint8], AffineTransform]:
        """Return what is kept under ``key`` and ``index``, or make it, and keep it if there is room."""
        with self._lock:
            group = self._kept.setdefault(key, {})
            self._kept.move_to_end(key)
            if index in group:
                return group[index]
        made = make()
        made[0].setflags(write=False)
        with self._lock:
            while self.held_bytes + made[0].nbytes > self.limit_bytes and next(iter(self._kept), key) != key:
                _, dropped = self._kept.popitem(last=False)
                self.held_bytes -= sum(image.nbytes for image, _ in dropped.values())
            if self.held_bytes + made[0].nbytes <= self.limit_bytes:
                group = self._kept.setdefault(key, {})
                if index not in group:
                    group[index] = made
                    self.held_bytes += made[0].nbytes
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images behind: where this is unpacked they are read anew."""
        return {"dataset": self.dataset, "limit_bytes": self.limit_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start empty."""
        self.__init__(**state)  # type: ignore[misc]


class FittedPictures(Pictures):
    """The same for a network that takes one size only: whole pictures fitted into it.

    Parameters
    ----------
    dataset
        Where images come from.
    size
        Height and width, pixels; see :func:`supernet.pose.transforms.letterbox`.
    limit_bytes
        Most that is kept.
    """

    def __init__(
        self, dataset: EvaluationDataset, size: tuple[int, int], limit_bytes: int = PICTURE_BYTES
    ) -> None:
        super().__init__(dataset, limit_bytes)
        self.size = size

    def get(self, index: int, config: EvalConfig) -> tuple[NDArray[np.uint8], AffineTransform]:
        """Return image ``index`` fitted into the size, whatever the settings say; it must not be changed."""
        return self._get(self.size, index, lambda: letterbox(self.dataset.load_image(index), self.size))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images behind: where this is unpacked they are read anew."""
        return {**super().__getstate__(), "size": self.size}


@dataclass
class _Batch:
    """Resized images of one size on their way to the network, and where each belongs in the results."""

    positions: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    back: list[AffineTransform] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


def _batches(
    pictures: Pictures, indices: Sequence[int], config: EvalConfig, most_pixels: float
) -> Iterator[_Batch]:
    """Yield batches of at most ``batch_size`` images of one size; full ones as soon as they are full."""
    waiting: dict[tuple[int, ...], _Batch] = {}
    for position, index in enumerate(indices):
        image, back = pictures.get(index, config)
        batch = waiting.setdefault(image.shape, _Batch())
        batch.positions.append(position)
        batch.indices.append(index)
        batch.images.append(image)
        batch.back.append(back)
        height, width = image.shape[:2]
        if len(batch) == config.batch_size or (len(batch) + 1) * height * width > most_pixels:
            yield waiting.pop(image.shape)
    yield from waiting.values()


def in_picture(
    people: FloatArray, scores: FloatArray, back: AffineTransform, zoom: NDArray[np.float64]
) -> list[tuple[list[float], float]]:
    """Return keypoints (flat x, y, value in pixels of the original image) and score of each person."""
    keypoints = people[:, :, :3].astype(np.float64)
    keypoints[..., :2] = back(keypoints[..., :2] * zoom)
    return [(person.ravel().tolist(), float(score)) for person, score in zip(keypoints, scores, strict=True)]


@dataclass(frozen=True)
class Inference:
    """How inference uses the machine; what it finds depends on none of it, but for rounding.

    Attributes
    ----------
    side_by_side
        Batches that run through the network at the same time, each by a thread of its own with one thread
        per operator, which then also decodes. For CPUs: layers of small networks are too small to be shared
        among threads. 1 runs one after the other in the calling thread.
    workers
        Processes that decode, while the network runs on; by default each batch is decoded where it was run.
    pictures
        Resized images that are kept from call to call.
    entering
        Told which images, by their index, go into the network next, in the thread in which they do.
    """

    side_by_side: int = 1
    workers: DecodeWorkers | None = None
    pictures: Pictures | None = None
    entering: Callable[[tuple[int, ...]], None] | None = None

    def __post_init__(self) -> None:
        if self.side_by_side < 1:
            raise InputError(f"at least 1 batch runs through the network at a time, not {self.side_by_side}")


def side_by_side(
    batches: Iterable[B], run: Callable[[B], R], count: int
) -> Generator[tuple[B, R], None, None]:
    """Run every batch, ``count`` at a time in threads of their own, and yield them in order with what came.

    ``run`` may set torch's number of threads; it is set back. On an error, or when iteration stops early,
    those not yet begun are dropped.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "inference")
    pending: deque[tuple[B, Future[R]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, pool.submit(run, batch)))
            if len(pending) > 2 * count:
                first, job = pending.popleft()
                yield first, job.result()
        while pending:
            first, job = pending.popleft()
            yield first, job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Ran:
    """A batch that has been through the network."""

    decoded: Future[Decoded] | Decoded
    zoom: NDArray[np.float64]
    seconds: float


def _is_decoded(ran: _Ran) -> bool:
    return isinstance(ran.decoded, Decoded) or ran.decoded.done()


@dataclass(frozen=True)
class _Run:
    """What every batch of one call has in common."""

    network: nn.Module
    skeleton: Skeleton
    config: EvalConfig
    device: torch.device
    inference: Inference

    def __call__(self, batch: _Batch) -> _Ran:
        """Run the network on a batch and decode its maps, or have them decoded."""
        images = normalise(np.stack(batch.images)).to(self.device)
        start = time.perf_counter()
        if self.inference.entering is not None:
            self.inference.entering(tuple(batch.indices))
        if (picked := picked_by(self.network)) is not None:
            return self._of_peaks(images, picked, start)
        det, tags = predict_maps(self.network, images, self.skeleton.flip_index, self.config)
        self._check_joints(det.shape[1])
        heat, tag = det.cpu().numpy(), tags.cpu().numpy()
        seconds = time.perf_counter() - start
        decoder = decode_maps if self.inference.workers is None else self.inference.workers.submit
        decoded = decoder(
            heat,
            tag,
            self.config.grouping,
            self.skeleton.grouping_order,
            self.config.max_detections,
        )
        zoom = np.array(images.shape[:1:-1]) / np.array(heat.shape[:1:-1])
        return _Ran(decoded, zoom, seconds)

    def _check_joints(self, found: int) -> None:
        if found != len(self.skeleton):
            raise InputError(
                f"the network finds {found} joints, but the data set's skeleton"
                f" '{self.skeleton.name}' has {len(self.skeleton)}; read the data set with the network's"
                " skeleton"
            )

    def _of_peaks(self, images: Tensor, picked: PickedPeaks, start: float) -> _Ran:
        """Make people of the peaks that the network itself picks."""
        config = self.config
        refuse_passes(flip=config.flip, scales=config.scales, project=config.project)
        with torch.no_grad():
            peaks = [each.cpu().numpy() for each in self.network(images)]
        self._check_joints(peaks[0].shape[1])
        middle = time.perf_counter()
        order, most = self.skeleton.grouping_order, config.max_detections
        rows = zip(*peaks, strict=True)
        people = [people_of(*own, config.grouping, order, most) for own in rows]  # type: ignore[call-arg]
        decoded = Decoded(people, time.perf_counter() - middle)
        zoom = np.array(images.shape[:1:-1]) / np.array(picked.maps[::-1])
        return _Ran(decoded, zoom, middle - start)

    def alone(self, batch: _Batch) -> _Ran:
        """Do the same with one thread per operator: the batches already keep the cores busy."""
        torch.set_num_threads(1)
        return self(batch)

    def all(self, batches: Iterable[_Batch]) -> Generator[tuple[_Batch, _Ran]]:
        """Run every batch, a few at a time, and yield them in order.

        On an error, or when iteration stops early, those not yet begun are dropped.
        """
        count = self.inference.side_by_side
        if count == 1:
            behind: deque[tuple[_Batch, _Ran]] = deque()
            for batch in batches:
                behind.append((batch, self(batch)))
                # What is decoded elsewhere is not waited for: its memory is bounded already.
                while behind and _is_decoded(behind[0][1]):
                    yield behind.popleft()
            yield from behind
            return
        yield from side_by_side(batches, self.alone, count)


def predict(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
    inference: Inference | None = None,
) -> Predictions:
    """Find the people in a data set's images and say how long it took; see :func:`predict_dataset`.

    ``inference`` says how the machine is used; by default one batch after the other, in this thread.
    """
    known = {image_id: index for index, image_id in enumerate(dataset.ids)}
    wanted = list(dataset.ids if ids is None else ids)
    for image_id in wanted:
        if image_id not in known:
            raise InputError(f"the data set has no image with id {image_id}")
    category = int(dataset.ground_truth(wanted[:1])["categories"][0]["id"])
    inference = inference or Inference()
    run = _Run(network, dataset.skeleton, config, torch.device(device), inference)
    batches = _batches(
        inference.pictures or Pictures(dataset, 0),
        [known[image_id] for image_id in wanted],
        config,
        math.inf if inference.side_by_side == 1 else SIDE_PIXELS,
    )
    found: list[list[tuple[list[float], float]]] = [[] for _ in wanted]
    seconds_network = seconds_decode = 0.0
    done = 0
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with contextlib.closing(run.all(batches)) as ran:
            for batch, result in ran:
                decoded = result.decoded
                if not isinstance(decoded, Decoded):
                    decoded = DecodeWorkers.result(decoded)
                for position, back, people in zip(batch.positions, batch.back, decoded.people, strict=True):
                    found[position] = in_picture(*people, back, result.zoom)
                seconds_network += result.seconds
                seconds_decode += decoded.seconds
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
