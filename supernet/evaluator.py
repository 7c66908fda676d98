"""Scoring a subnet as it will be shipped: extracted, its BN statistics recomputed, AP on held-out images."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces import Arch, InputError
from supernet.base import Subnet, Supernet
from supernet.bn import recalibrate
from supernet.bn_cache import StatisticsCache
from supernet.export import fold_batchnorm
from supernet.onnx_modules import through_onnx
from supernet.paradigms import BOTTOM_UP, Paradigm
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import EvalResult, scored_joints
from supernet.pose.finding import find_people, pictures_for
from supernet.pose.inference import Inference, Predictions
from supernet.pose.maps import EvalConfig
from supernet.pose.matching import Matches, match_detections
from supernet.pose.metrics import keypoint_ap
from supernet.pose.scoring import ScoringProtocol, check_protocol
from supernet.pose.topdown import TopDownConfig
from supernet.pose.transforms import Augmentation, normalise
from supernet.pose.workers import DecodeWorkers
from supernet.racing import EarlyStop, Look, Looks, Rival, Verdict
from supernet.shared import SharedStages

__all__ = ["CalibrationImages", "SubnetEvaluator", "SubnetResult"]

_MOST_WORKERS: Final = 8

_Sides = tuple[dict[str, Any], list[dict[str, Any]], Sequence[float], list[int] | None, ScoringProtocol, int]
"""Ground truth, detections, sigmas, joints, protocol, detections per image."""


class CalibrationImages:
    """Training images for BN statistics: a fixed random choice, varied as in training, made once.

    A layer sees inputs that the layers before it normalised by the batch, so batches must be large for the
    statistics to be those of the population; they hold up to ``batch_pixels``.

    Parameters
    ----------
    dataset
        Training images; never those that AP is measured on. Its sources come in the shares of training.
    count
        How many are used. Where the data set has fewer, images are used again, varied anew.
    seed
        Picks and varies them.
    augmentation
        How they vary; the training's own gives the statistics that the weights were trained with. None takes
        the centred square of each.
    batch_pixels
        Most input pixels per forward pass; bounds the memory.
    paradigm
        That of the networks: what one of the images is, a whole picture or a person's part of it.
    """

    def __init__(
        self,
        dataset: PoseDataset,
        count: int,
        seed: int,
        augmentation: Augmentation | None = None,
        batch_pixels: int = 128 * 192 * 192,
        *,
        paradigm: Paradigm = BOTTOM_UP,
    ) -> None:
        if count < 1 or len(dataset) == 0:
            raise InputError(
                f"BN recalibration needs at least one training image; got {count} of {len(dataset)}"
            )
        self.seed, self.batch_pixels, self.paradigm = seed, batch_pixels, paradigm
        self.dataset = paradigm.examples(dataset)
        self.augmentation = augmentation or Augmentation.none()
        order = self.dataset.epoch_order(np.random.default_rng([seed, len(self.dataset)]))
        self.indices: list[int] = [int(order[i % len(order)]) for i in range(count)]
        self._images: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what decides about the images: which they are, how they vary, how they are batched."""
        facts = (self.dataset.fingerprint, self.indices, self.seed, self.augmentation, self.batch_pixels)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _at(self, resolution: int) -> NDArray[np.uint8]:
        if resolution not in self._images:
            made = []
            for place, index in enumerate(self.indices):
                rng = np.random.default_rng([self.seed, place, index])
                at = index % len(self.dataset)
                made.append(self.paradigm.image(self.dataset, at, resolution, self.augmentation, rng))
            self._images[resolution] = np.stack(made)
        return self._images[resolution]

    def batches(self, resolution: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield normalised images (N, 3, H, W), the same ones every time, in batches of equal size (+-1)."""
        images = self._at(resolution)
        parts = max(1, -(-images.size // 3 // self.batch_pixels))
        for part in np.array_split(images, min(parts, len(images))):
            yield normalise(part).to(device)


@dataclass(frozen=True)
class SubnetResult(EvalResult):
    """What evaluating a subnet found.

    With early stopping, ``stats`` also holds the AP on each share of the images, such as ``AP@0.5``.

    Attributes
    ----------
    looks
        What was seen of the network on each share of the images, so that others can be held against it.
    verdict
        Where the evaluation ended early, why: all figures are then those of the first ``images`` images.
    """

    looks: Looks = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def partial(self) -> bool:
        """Whether the evaluation ended early."""
        return self.verdict is not None

    @property
    def estimate(self) -> float:
        """The AP on all images; an estimate where the evaluation ended early."""
        return self.stats["AP"] if self.verdict is None else self.verdict.estimate


class SubnetEvaluator:
    """AP of any arch of a supernet, the same figure that the extracted and exported network has.

    Resized images are kept for the next arch of the same resolution. On a CPU networks run in ONNX Runtime
    as far as it is faster, and as many batches as torch has threads run side by side, each of them then
    decoded by its thread; beside a GPU processes decode. What is found depends on none of that.

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
    fixed
        Whether the supernet's weights stay what they are, as in a search: networks that begin alike then
        share the outputs of their first stages (on a CPU).
    early_stop
        When an evaluation that a rival is named for ends early; None never ends one.
    decode_workers
        Processes that decode while the network runs on. By default none on a CPU, whose cores the network
        uses already, and beside a GPU one for each core but one, up to 8. They start when they are first
        needed; :meth:`close` ends them.
    statistics
        Where recalibrated BN statistics are kept, and taken from where a network has some already.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration: CalibrationImages,
        dataset: PoseDataset,
        config: EvalConfig | TopDownConfig,
        device: torch.device | str = "cpu",
        protocol: ScoringProtocol = "coco",
        *,
        fixed: bool = False,
        early_stop: EarlyStop | None = None,
        decode_workers: int | None = None,
        statistics: StatisticsCache | None = None,
    ) -> None:
        if protocol != "coco":
            check_protocol(dataset.ground_truth(), protocol)
        self.protocol = protocol
        self.supernet, self.calibration, self.dataset = supernet, calibration, dataset
        self.config, self.device = config, torch.device(device)
        self.shared = SharedStages() if fixed and self.device.type == "cpu" else None
        self.early_stop = early_stop
        self.decode_workers = _default_workers(self.device) if decode_workers is None else decode_workers
        self.statistics = statistics
        self.pictures = pictures_for(config, dataset)
        self._workers: DecodeWorkers | None = None

    def subnet(self, arch: Arch) -> Subnet:
        """Return the extracted network of ``arch`` with its own BN statistics, in eval mode."""
        network = self.supernet.extract(arch)
        network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.statistics is None:
            self._recalibrate(network)
        else:
            key = self.statistics.key(network, self.calibration.fingerprint)
            if not self.statistics.restore(network, key):
                self._recalibrate(network)
                self.statistics.keep(network, key)
        return network.eval()

    def _recalibrate(self, network: Subnet) -> None:
        resolution = network.arch.number("resolution")
        batches = self.calibration.batches(resolution, self.device)
        if self.shared is None:
            recalibrate(network, batches)
        else:
            with self.shared.calibrating(network, resolution) as entering:
                recalibrate(network, batches, entering=entering)

    def evaluate(
        self,
        arch: Arch,
        progress: Callable[[int, int], None] | None = None,
        rival: Rival | None = None,
    ) -> SubnetResult:
        """Return AP and the detections of ``arch``; deterministic.

        Parameters
        ----------
        arch
            A network of the supernet.
        progress
            Called with the images done and the images in all.
        rival
            What is known of a network of the same evaluator that costs no more: the evaluation ends once this
            one has surely lost against it.
        """
        config = replace(self.config, resolution=arch.number("resolution"))
        network = fold_batchnorm(self.subnet(arch), in_place=True)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu":
            through_onnx(network)
        with contextlib.ExitStack() as stack:
            inference = self._inference()
            if self.shared is not None:
                entering = stack.enter_context(self.shared.inferring(network, _preparation(config)))
                inference = replace(inference, entering=entering)
            return self._scored(network, config, inference, progress, rival)

    def _scored(
        self,
        network: Subnet,
        config: EvalConfig | TopDownConfig,
        inference: Inference,
        progress: Callable[[int, int], None] | None,
        rival: Rival | None,
    ) -> SubnetResult:
        """Look at the images, share after share, and compare with the rival in between."""
        found: list[Predictions] = []
        looks: dict[str, Look] = {}
        for (_, done), (name, until) in pairwise([("", 0), *self._looks.items(), ("", len(self._order))]):
            part = find_people(
                network,
                self.dataset,
                config,
                device=self.device,
                ids=self._order[done:until],
                inference=inference,
                progress=progress and partial(_further, progress, done, len(self._order)),
            )
            found.append(part)
            if self.early_stop is None or not name:
                continue
            ids = self._order[:until]
            matches = match_detections(*self._sides(ids, _detections(found, ids)))
            looks[name] = self.early_stop.look(matches)
            verdict = None if rival is None else self.verdict(looks, rival)
            if verdict is not None:
                return _result(found, _detections(found, ids), matches.stats(), looks, verdict)
        detections = _detections(found, self.dataset.ids)
        return _result(found, detections, keypoint_ap(*self._sides(self.dataset.ids, detections)), looks)

    def verdict(self, looks: Looks, rival: Rival) -> Verdict | None:
        """Return whether and where a network of which this was seen loses against a rival.

        An evaluation against that rival would have ended, or will end, just there; see
        :meth:`EarlyStop.verdict`.
        """
        if self.early_stop is None:
            return None
        return self.early_stop.verdict(looks, rival, self._looks, len(self._order))

    @cached_property
    def _order(self) -> list[int]:
        """The images' ids in the order in which they are evaluated."""
        ids = list(self.dataset.ids)
        return ids if self.early_stop is None else self.early_stop.order(ids)

    @cached_property
    def _looks(self) -> dict[str, int]:
        """After how many images the AP so far is compared, by name; not while they show nobody."""
        if self.early_stop is None:
            return {}
        index = {image_id: at for at, image_id in enumerate(self.dataset.ids)}
        shows = [len(self.dataset.joints(index[image_id])) > 0 for image_id in self._order]
        return {name: n for name, n in self.early_stop.looks(len(shows)).items() if any(shows[:n])}

    def matches(self, result: EvalResult) -> Matches:
        """Return the detections of an evaluation of all images matched to people, for bootstrap resamples."""
        return match_detections(*self._sides(self.dataset.ids, result.detections))

    def _sides(self, ids: Sequence[int], detections: list[dict[str, Any]]) -> _Sides:
        """Return what scoring takes."""
        joints, sigmas = scored_joints(self.dataset), self.dataset.skeleton.sigmas
        truth = self.dataset.ground_truth(ids)
        return truth, detections, sigmas, joints, self.protocol, self.config.max_detections

    def _inference(self) -> Inference:
        if self.decode_workers and self._workers is None:
            self._workers = DecodeWorkers(self.decode_workers)
            self._end = weakref.finalize(self, self._workers.close)
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        return Inference(threads, self._workers, self.pictures)

    def close(self) -> None:
        """End the processes that decode, if there are any; the next evaluation starts new ones."""
        if self._workers is not None:
            self._end()
            self._workers = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave processes behind: where this is unpacked it starts its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_end"} | {"_workers": None}


def _preparation(config: EvalConfig | TopDownConfig) -> Hashable:
    """Return what tells how images become inputs."""
    if isinstance(config, EvalConfig):
        return config.input_grid
    return (config.size, config.padding, config.box_source)


def _default_workers(device: torch.device) -> int:
    """Return how many processes decode where that is left to us."""
    if device.type == "cpu" or multiprocessing.current_process().daemon:
        return 0
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 1)


def _further(progress: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    """Tell the progress of a part of the images as that of all."""
    progress(before + done, total)


def _detections(found: Sequence[Predictions], ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the detections of several parts of the images in the order of ``ids``."""
    place = {image_id: at for at, image_id in enumerate(ids)}
    return sorted((each for part in found for each in part.detections), key=lambda d: place[d["image_id"]])


def _result(
    found: Sequence[Predictions],
    detections: list[dict[str, Any]],
    stats: dict[str, float],
    looks: Looks,
    verdict: Verdict | None = None,
) -> SubnetResult:
    """Return the sum of the parts; with a verdict where the others were not looked at."""
    return SubnetResult(
        {**stats, **{name: look.ap for name, look in looks.items()}},
        detections,
        sum(part.images for part in found),
        sum(part.seconds_network for part in found),
        sum(part.seconds_decode for part in found),
        looks=looks,
        verdict=verdict,
    )
