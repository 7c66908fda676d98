"""From a data set and a schedule to batches, the same ones whatever the number of workers.

Threads decode, warp and gather. What they make, bytes and joints (:class:`RawBatch`), is normalised and drawn
where the training runs: on a CPU by the same threads, while the step before is computed; on a GPU by the GPU,
so that a tenth of the bytes travels to it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import InputError, LitePoseNasError, RunError
from supernet.pose.dataset import PoseDataset, PoseSample
from supernet.pose.targets import draw_heatmaps, tag_indices
from supernet.pose.transforms import Augmentation, augment, normalise

__all__ = [
    "MAX_PEOPLE",
    "STRIDES",
    "Batch",
    "BatchLoader",
    "Gather",
    "Job",
    "RawBatch",
    "SampleCache",
    "Undrawn",
    "collate",
    "gather",
    "map_size",
]

MAX_PEOPLE: Final = 30
"""Most people per picture with tag targets (LitePose's recipe)."""
STRIDES: Final = (4, 2)
"""Input pixels per cell of the two heatmap scales; tags live at the first."""

Job = tuple[Sequence[int], int, int]
"""One batch of a schedule: positions in the data set, resolution, epoch."""


@dataclass(frozen=True)
class Batch:
    """What one training step needs. N pictures of R x R pixels, J joints.

    Attributes
    ----------
    images
        float32 (N, 3, R, R), normalised, channels last in memory.
    heatmaps
        Targets float32 (N, J, h, w) at 1/4 and at 1/2 of the resolution, channels last in memory.
    masks
        float32 (N, h, w) per scale: 1 where the loss counts.
    tags
        int64 (N, 30, J, 2) at the 1/4 scale: see :func:`supernet.pose.targets.tag_indices`.
    labelled
        bool (N, J): joints that are annotated in each picture; the others have no target there.
    """

    images: torch.Tensor
    heatmaps: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...]
    tags: torch.Tensor
    labelled: torch.Tensor

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            heatmaps=tuple(each.to(device, non_blocking=True) for each in self.heatmaps),
            masks=tuple(each.to(device, non_blocking=True) for each in self.masks),
            tags=self.tags.to(device, non_blocking=True),
            labelled=self.labelled.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> list[Batch]:
        """Return it cut into at most ``parts`` batches of nearly equal size, in order; views, not copies."""
        places = [each for each in np.array_split(np.arange(len(self)), parts) if len(each)]
        return [self._slice(slice(int(each[0]), int(each[-1]) + 1)) for each in places]

    def _slice(self, rows: slice) -> Batch:
        return replace(
            self,
            images=self.images[rows],
            heatmaps=tuple(each[rows] for each in self.heatmaps),
            masks=tuple(each[rows] for each in self.masks),
            tags=self.tags[rows],
            labelled=self.labelled[rows],
        )


def map_size(resolution: int, stride: int) -> int:
    """Return the side of the map at ``stride`` 2 or 4: the input is halved once or twice, rounding up."""
    return -(-resolution // stride)


@dataclass(frozen=True)
class RawBatch:
    """A batch before anything is drawn: what travels to the training device. N pictures of R x R pixels.

    Attributes
    ----------
    images
        uint8 (N, R, R, 3), RGB.
    joints
        float32 (N, P, J, 3): x, y, v in pixels of the images; pictures with fewer than P people are filled up
        with people whose joints all have v = 0.
    mask
        bool (N, h, w) at half the resolution: True where the loss counts.
    tags, labelled
        As in :class:`Batch`.
    """

    images: torch.Tensor
    joints: NDArray[np.float32]
    mask: torch.Tensor
    tags: torch.Tensor
    labelled: torch.Tensor

    def pin(self) -> RawBatch:
        """Return it in memory from which a GPU fetches while the CPU goes on."""
        moved = {name: getattr(self, name).pin_memory() for name in ("images", "mask", "tags", "labelled")}
        return replace(self, **moved)

    def draw(self, sigma: float = 2.0, device: torch.device | str = "cpu") -> Batch:
        """Return the batch on ``device``, normalised and drawn there; the same on every device."""
        resolution = self.images.shape[1]
        maps = []
        for stride in STRIDES:
            side = map_size(resolution, stride)
            maps.append(draw_heatmaps(_scaled(self.joints, stride), side, side, sigma, device))
        return Batch(
            images=normalise(self.images.to(device, non_blocking=True)),
            heatmaps=tuple(maps),
            masks=tuple(self._mask(stride, device) for stride in STRIDES),
            tags=self.tags.to(device, non_blocking=True),
            labelled=self.labelled.to(device, non_blocking=True),
        )

    def _mask(self, stride: int, device: torch.device | str) -> torch.Tensor:
        step = stride // STRIDES[-1]
        mask = self.mask[:, ::step, ::step]
        if torch.device(device).type == "cpu":  # in NumPy, as torch would start threads for it
            return torch.from_numpy(mask.numpy().astype(np.float32))
        return mask.to(device, non_blocking=True).float()


def _scaled(joints: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    return joints * np.array([1 / stride, 1 / stride, 1], dtype=np.float32)


class SampleCache:
    """Samples of a data set, kept decoded as long as there is room; any thread may ask.

    Nothing is ever evicted: every epoch shows every picture once, in another order, so whatever would be
    dropped is as likely to be needed next as what would take its place. Pictures that the data set holds in
    memory itself are not kept twice.

    Parameters
    ----------
    dataset
        Where samples come from.
    limit
        Most bytes to keep.
    """

    def __init__(self, dataset: PoseDataset, limit: int) -> None:
        if limit < 0:
            raise InputError(f"a cache of images has room for at least 0 bytes, not {limit}")
        self.dataset, self.limit, self.held = dataset, limit, 0
        self._samples: dict[int, PoseSample] = {}
        self._lock = threading.Lock()

    def load(self, index: int) -> PoseSample:
        """Return what ``dataset.load(index)`` does."""
        sample = self._samples.get(index)
        if sample is not None:
            return sample
        sample = self.dataset.load(index)
        size = sample.image.nbytes + sample.mask.nbytes + sample.joints.nbytes
        if sample.image.flags.writeable:
            with self._lock:
                if index not in self._samples and self.held + size <= self.limit:
                    self._samples[index] = sample
                    self.held += size
        return sample


def gather(
    source: PoseDataset | SampleCache,
    indices: Sequence[int],
    resolution: int,
    augmentation: Augmentation | None,
    seed: int,
    epoch: int,
    stop: threading.Event | None = None,
) -> RawBatch:
    """Load and augment pictures; what becomes of one depends on (seed, epoch, its index) only.

    Parameters
    ----------
    source
        Where pictures come from.
    indices
        Positions in the data set, 0 to ``len(dataset) - 1``; those beyond begin again, with other variations.
    resolution
        Side of the pictures in pixels.
    augmentation
        How pictures vary; None for the centred square of the short side.
    seed, epoch
        Non-negative numbers that pick the random variation.
    stop
        When set, the work is given up between two pictures.

    Raises
    ------
    InputError
        If the batch is empty or a picture cannot be loaded.
    RunError
        If something unforeseen happens to a picture; its file is named.
    """
    dataset = source.dataset if isinstance(source, SampleCache) else source
    if not indices or resolution < 1:
        raise InputError(f"a batch needs pictures and a resolution, got {len(indices)} and {resolution}")
    count, joint_count = len(indices), len(dataset.skeleton)
    quarter, half = (map_size(resolution, stride) for stride in STRIDES)
    images = np.empty((count, resolution, resolution, 3), dtype=np.uint8)
    mask = np.empty((count, half, half), dtype=np.bool_)
    labelled = np.empty((count, joint_count), dtype=np.bool_)
    people = []
    for row, index in enumerate(indices):
        if stop is not None and stop.is_set():
            raise RunError("the loading of a batch was stopped")
        rng = np.random.default_rng([seed, epoch, index])
        place = index % len(dataset)
        try:
            images[row], joints, mask[row], mirrored = augment(
                source.load(place),
                resolution,
                augmentation or Augmentation.none(),
                rng,
                dataset.skeleton.flip_index,
                mask_stride=STRIDES[-1],
            )
        except LitePoseNasError:
            raise
        except Exception as error:
            raise RunError(
                f"image '{dataset.file_name(place)}' of {dataset.where} cannot be prepared:"
                f" {type(error).__name__}: {error}; look at the file and its annotations"
            ) from error
        annotated = dataset.labelled_joints(place)
        labelled[row] = annotated[dataset.skeleton.flip_index] if mirrored else annotated
        people.append(joints)
    padded = np.zeros((count, max(map(len, people)), joint_count, 3), dtype=np.float32)
    for rows, joints in zip(padded, people, strict=True):
        rows[: len(joints)] = joints
    return RawBatch(
        images=torch.from_numpy(images),
        joints=padded,
        mask=torch.from_numpy(mask),
        tags=torch.from_numpy(tag_indices(_scaled(padded, STRIDES[0]), quarter, quarter, MAX_PEOPLE)),
        labelled=torch.from_numpy(labelled),
    )


_gather = gather


def collate(
    dataset: PoseDataset,
    indices: Sequence[int],
    resolution: int,
    augmentation: Augmentation | None,
    seed: int,
    epoch: int,
    sigma: float = 2.0,
) -> Batch:
    """Return the batch that :func:`gather` prepares, drawn with Gaussians of ``sigma`` cells."""
    return gather(dataset, indices, resolution, augmentation, seed, epoch).draw(sigma)


class Undrawn(Protocol):
    """A batch before anything is drawn, such as :class:`RawBatch`."""

    def pin(self) -> Undrawn:
        """Return it in memory from which a GPU fetches while the CPU goes on."""

    def draw(self, sigma: float = 2.0, device: torch.device | str = "cpu") -> Batch:
        """Return the batch on ``device``, normalised and drawn there."""


class Gather(Protocol):
    """What makes a batch, such as :func:`gather` of a certain source."""

    def __call__(
        self,
        indices: Sequence[int],
        resolution: int,
        augmentation: Augmentation | None,
        seed: int,
        epoch: int,
        stop: threading.Event | None = None,
    ) -> Undrawn: ...


class BatchLoader:
    """Iterate over the batches of a schedule, in its order, prepared ahead by a few threads.

    Threads suffice: decoding, warping and drawing release Python's lock, and nothing needs to be copied
    between processes. They live as long as the iteration, over all epochs of the schedule. At most
    ``workers + prefetch`` batches are held; when iteration stops early, for whatever reason, those not yet
    begun are dropped, those begun are given up at the next picture, and the threads end.

    Parameters
    ----------
    dataset
        Pictures; None where ``gather`` is given.
    augmentation, seed
        As for :func:`gather`.
    schedule
        Batches to make: (positions, resolution, epoch). A generator is drawn from as far ahead as needed.
    workers
        Count of threads; 0 makes each batch when it is asked for.
    prefetch
        Batches kept ready beside those being made.
    sigma
        Standard deviation of the heatmaps' Gaussians, in cells.
    device
        Where the batches are wanted.
    cache_bytes
        Most bytes of decoded pictures kept for the next epochs; see :class:`SampleCache`.
    gather
        Makes a batch; by default :func:`gather` of whole pictures, kept in a :class:`SampleCache`.
    """

    def __init__(
        self,
        dataset: PoseDataset | None,
        schedule: Iterable[Job],
        augmentation: Augmentation | None,
        seed: int,
        workers: int = 0,
        prefetch: int = 2,
        sigma: float = 2.0,
        device: torch.device | str = "cpu",
        cache_bytes: int = 0,
        gather: Gather | None = None,
    ) -> None:
        if workers < 0 or prefetch < 0:
            raise InputError(f"workers and prefetch must be at least 0, got {workers} and {prefetch}")
        if gather is None and dataset is None:
            raise InputError("a loader of batches needs a data set, or what gathers its batches")
        self.schedule = schedule
        self.augmentation = augmentation
        self.seed = seed
        self.workers = workers
        self.prefetch = prefetch
        self.sigma = sigma
        self.device = torch.device(device)
        self._gather: Gather
        if gather is not None:
            self._gather = gather
        elif dataset is not None:
            self._gather = partial(_gather, SampleCache(dataset, cache_bytes))

    def _prepare(self, job: Job, stop: threading.Event) -> Undrawn | Batch:
        """Do what the threads do for a batch."""
        indices, resolution, epoch = job
        raw = self._gather(indices, resolution, self.augmentation, self.seed, epoch, stop)
        if self.device.type == "cpu":
            return raw.draw(self.sigma)
        return raw.pin() if self.device.type == "cuda" else raw

    def _finish(self, batch: Undrawn | Batch) -> Batch:
        """Do what is left to the thread that asks for the batch."""
        return batch if isinstance(batch, Batch) else batch.draw(self.sigma, self.device)

    def __iter__(self) -> Generator[Batch, None, None]:
        stop = threading.Event()
        if self.workers == 0:
            for job in self.schedule:
                yield self._finish(self._prepare(job, stop))
            return
        # OpenCV's own threads, one pool per process, would fight ours for the cores.
        opencv_threads = cv2.getNumThreads()
        cv2.setNumThreads(0)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batch-loader")
        pending: deque[Future[Undrawn | Batch]] = deque()
        try:
            for job in self.schedule:
                pending.append(pool.submit(self._prepare, job, stop))
                if len(pending) >= self.workers + self.prefetch:
                    yield self._finish(pending.popleft().result())
            while pending:
                yield self._finish(pending.popleft().result())
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            cv2.setNumThreads(opencv_threads)
