"""From a data set and a schedule to batches, the same ones whatever the number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import torch

from search_spaces.errors import InputError
from supernet.pose.dataset import PoseDataset
from supernet.pose.targets import heatmaps, tag_indices
from supernet.pose.transforms import Augmentation, augment, normalise

__all__ = ["MAX_PEOPLE", "STRIDES", "Batch", "BatchLoader", "Job", "collate", "map_size"]

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
        Targets float32 (N, J, h, w) at 1/4 and at 1/2 of the resolution.
    masks
        float32 (N, h, w) per scale: 1 where the loss counts.
    tags
        int64 (N, 30, J, 2) at the 1/4 scale: see :func:`supernet.pose.targets.tag_indices`.
    labelled
        bool (J,): joints that the data set annotates; the others have no target.
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
        )


def map_size(resolution: int, stride: int) -> int:
    """Return the side of the map at ``stride`` 2 or 4: the input is halved once or twice, rounding up."""
    for _ in range(stride.bit_length() - 1):
        resolution = -(-resolution // 2)
    return resolution


def collate(
    dataset: PoseDataset,
    indices: Sequence[int],
    resolution: int,
    augmentation: Augmentation | None,
    seed: int,
    epoch: int,
    sigma: float = 2.0,
) -> Batch:
    """Load, augment and stack pictures; what becomes of one depends on (seed, epoch, its index) only.

    Parameters
    ----------
    dataset
        Where pictures come from.
    indices
        Positions in the data set, 0 to ``len(dataset) - 1``.
    resolution
        Side of the pictures in pixels.
    augmentation
        How pictures vary; None for the centred square of the short side.
    seed, epoch
        Non-negative numbers that pick the random variation.
    sigma
        Standard deviation of the heatmaps' Gaussians, in cells.

    Raises
    ------
    InputError
        If the batch is empty or a picture cannot be loaded.
    """
    if not indices or resolution < 1:
        raise InputError(f"a batch needs pictures and a resolution, got {len(indices)} and {resolution}")
    count, joint_count = len(indices), len(dataset.skeleton)
    sizes = [map_size(resolution, stride) for stride in STRIDES]
    images = np.empty((count, resolution, resolution, 3), dtype=np.uint8)
    maps = [np.empty((count, joint_count, size, size), dtype=np.float32) for size in sizes]
    masks = [np.empty((count, size, size), dtype=np.float32) for size in sizes]
    tags = np.empty((count, MAX_PEOPLE, joint_count, 2), dtype=np.int64)
    flip_index = dataset.skeleton.flip_index
    for row, index in enumerate(indices):
        rng = np.random.default_rng([seed, epoch, index])
        sample = dataset.load(index)
        images[row], joints, mask = augment(
            sample, resolution, augmentation or Augmentation.none(), rng, flip_index
        )
        for scale, (stride, size) in enumerate(zip(STRIDES, sizes, strict=True)):
            scaled = joints.copy()
            scaled[..., :2] /= stride
            maps[scale][row] = heatmaps(scaled, size, size, sigma)
            masks[scale][row] = mask[::stride, ::stride]
            if scale == 0:
                tags[row] = tag_indices(scaled, size, size, MAX_PEOPLE)
    return Batch(
        images=normalise(images),
        heatmaps=tuple(torch.from_numpy(each) for each in maps),
        masks=tuple(torch.from_numpy(each) for each in masks),
        tags=torch.from_numpy(tags),
        labelled=torch.from_numpy(dataset.labelled.copy()),
    )


class BatchLoader:
    """Iterate over the batches of a schedule, in its order, prepared ahead by a few threads.

    Threads suffice: decoding and warping release Python's lock, and nothing needs to be copied between
    processes. At most ``workers + prefetch`` batches are held; when iteration stops early, for whatever
    reason, those not yet begun are dropped and the threads end.

    Parameters
    ----------
    dataset, augmentation, seed, sigma
        As for :func:`collate`.
    schedule
        Batches to make: (positions, resolution, epoch). A generator is drawn from as far ahead as needed.
    workers
        Count of threads; 0 makes each batch when it is asked for.
    prefetch
        Batches kept ready beside those being made.
    """

    def __init__(
        self,
        dataset: PoseDataset,
        schedule: Iterable[Job],
        augmentation: Augmentation | None,
        seed: int,
        workers: int = 0,
        prefetch: int = 2,
        sigma: float = 2.0,
    ) -> None:
        if workers < 0 or prefetch < 0:
            raise InputError(f"workers and prefetch must be at least 0, got {workers} and {prefetch}")
        self.dataset = dataset
        self.schedule = schedule
        self.augmentation = augmentation
        self.seed = seed
        self.workers = workers
        self.prefetch = prefetch
        self.sigma = sigma

    def _make(self, job: Job) -> Batch:
        indices, resolution, epoch = job
        return collate(self.dataset, indices, resolution, self.augmentation, self.seed, epoch, self.sigma)

    def __iter__(self) -> Generator[Batch, None, None]:
        if self.workers == 0:
            for job in self.schedule:
                yield self._make(job)
            return
        # OpenCV's own threads, one pool per process, would fight ours for the cores.
        opencv_threads = cv2.getNumThreads()
        cv2.setNumThreads(0)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batch-loader")
        pending: deque[Future[Batch]] = deque()
        try:
            for job in self.schedule:
                pending.append(pool.submit(self._make, job))
                if len(pending) >= self.workers + self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            cv2.setNumThreads(opencv_threads)
