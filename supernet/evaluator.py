"""Scoring a subnet as it will be shipped: extracted, its BN statistics recomputed, AP on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
import numpy as np
import torch
from torch import Tensor

from search_spaces import Arch, InputError
from supernet.base import Subnet, Supernet
from supernet.bn import recalibrate
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import EvalConfig, EvalResult, ScoringProtocol, evaluate
from supernet.pose.transforms import Augmentation, augment, normalise

__all__ = ["CalibrationImages", "SubnetEvaluator"]


class CalibrationImages:
    """Training images for BN statistics: a fixed random choice, centre-cropped, decoded once.

    Parameters
    ----------
    dataset
        Training images; never those that AP is measured on.
    count
        How many are used (all, if there are fewer).
    seed
        Picks them.
    batch_size
        Images per forward pass; the statistics do not depend on it, but for rounding.
    """

    def __init__(self, dataset: PoseDataset, count: int, seed: int, batch_size: int = 32) -> None:
        if count < 1 or len(dataset) == 0:
            raise InputError(
                f"BN recalibration needs at least one training image; got {count} of {len(dataset)}"
            )
        self.dataset, self.batch_size = dataset, batch_size
        order = np.random.default_rng([seed, len(dataset)]).permutation(len(dataset))
        self.indices = np.sort(order[:count]).tolist()
        self._images: dict[int, np.ndarray] = {}

    def _at(self, resolution: int) -> np.ndarray:
        if resolution not in self._images:
            plain, rng = Augmentation.none(), np.random.default_rng(0)
            flip = self.dataset.skeleton.flip_index
            self._images[resolution] = np.stack(
                [augment(self.dataset.load(i), resolution, plain, rng, flip)[0] for i in self.indices]
            )
        return self._images[resolution]

    def batches(self, resolution: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield normalised images (N, 3, R, R), the same ones every time."""
        images = self._at(resolution)
        for start in range(0, len(images), self.batch_size):
            yield normalise(images[start : start + self.batch_size]).to(device)


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
