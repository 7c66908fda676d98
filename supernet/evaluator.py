"""Scoring a subnet as it will be shipped: extracted, its BN statistics recomputed, AP on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces import Arch, InputError
from supernet.base import Subnet, Supernet
from supernet.bn import recalibrate
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import EvalResult, evaluate
from supernet.pose.maps import EvalConfig
from supernet.pose.metrics import ScoringProtocol
from supernet.pose.transforms import Augmentation, augment, normalise

__all__ = ["CalibrationImages", "SubnetEvaluator"]


class CalibrationImages:
    """Training images for BN statistics: a fixed random choice, varied as in training, made once.

    A layer sees inputs that the layers before it normalised by the batch, so batches must be large for the
    statistics to be those of the population; they hold up to ``batch_pixels``.

    Parameters
    ----------
    dataset
        Training images; never those that AP is measured on.
    count
        How many are used. Where the data set has fewer, images are used again, varied anew.
    seed
        Picks and varies them.
    augmentation
        How they vary; the training's own gives the statistics that the weights were trained with. None takes
        the centred square of each.
    batch_pixels
        Most input pixels per forward pass; bounds the memory.
    """

    def __init__(
        self,
        dataset: PoseDataset,
        count: int,
        seed: int,
        augmentation: Augmentation | None = None,
        batch_pixels: int = 128 * 192 * 192,
    ) -> None:
        if count < 1 or len(dataset) == 0:
            raise InputError(
                f"BN recalibration needs at least one training image; got {count} of {len(dataset)}"
            )
        self.dataset, self.seed, self.batch_pixels = dataset, seed, batch_pixels
        self.augmentation = augmentation or Augmentation.none()
        order = np.random.default_rng([seed, len(dataset)]).permutation(len(dataset))
        self.indices: list[int] = [int(order[i % len(order)]) for i in range(count)]
        self._images: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def _at(self, resolution: int) -> NDArray[np.uint8]:
        if resolution not in self._images:
            flip = self.dataset.skeleton.flip_index
            made = []
            for place, index in enumerate(self.indices):
                rng = np.random.default_rng([self.seed, place, index])
                sample = self.dataset.load(index)
                made.append(augment(sample, resolution, self.augmentation, rng, flip)[0])
            self._images[resolution] = np.stack(made)
        return self._images[resolution]

    def batches(self, resolution: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield normalised images (N, 3, R, R), the same ones every time, in batches of equal size (+-1)."""
        images = self._at(resolution)
        parts = max(1, -(-images.size // 3 // self.batch_pixels))
        for part in np.array_split(images, min(parts, len(images))):
            yield normalise(part).to(device)


class SubnetEvaluator:
    """AP of any arch of a supernet, the same figure that the extracted and exported network has.

    Parameters
    ----------
    supernet
        A trained supernet.
    calibration
        Training images for BN statistics.
    dataset
        Images that AP is measured on; must share none with training or calibration.
    config
        How AP is measured; its resolution is replaced by each arch's.
    device
        Where networks run.
    protocol
        ``coco`` or ``crowdpose``.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration: CalibrationImages,
        dataset: PoseDataset,
        config: EvalConfig,
        device: torch.device | str = "cpu",
        protocol: ScoringProtocol = "coco",
    ) -> None:
        self.protocol = protocol
        self.supernet, self.calibration, self.dataset = supernet, calibration, dataset
        self.config, self.device = config, torch.device(device)

    def subnet(self, arch: Arch) -> Subnet:
        """Return the extracted network of ``arch`` with its own BN statistics, in eval mode."""
        network = self.supernet.extract(arch)
        network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        recalibrate(network, self.calibration.batches(arch.number("resolution"), self.device))
        network.eval()
        return network

    def evaluate(self, arch: Arch, progress: Callable[[int, int], None] | None = None) -> EvalResult:
        """Return AP and the detections of ``arch``; deterministic."""
        config = replace(self.config, resolution=arch.number("resolution"))
        return evaluate(
            self.subnet(arch),
            self.dataset,
            config,
            protocol=self.protocol,
            device=self.device,
            progress=progress,
        )
