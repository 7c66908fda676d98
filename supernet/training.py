"""Training a supernet: every choice is a pure function of (seed, step), so a stopped run resumes exactly.

What a step trains is told by :mod:`supernet.rules`, how fast by :mod:`supernet.schedules`.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import Arch, InputError, RunError, SearchSpace, UnavailableError
from search_spaces.errors import did_you_mean
from search_spaces.files import remove_leftovers
from supernet.averaging import Average
from supernet.distillation import Distillation, DistillConfig, Teacher
from supernet.distributed import ALONE, Ranks
from supernet.elastic import KERNEL_SHARING
from supernet.metric_log import MetricLog
from supernet.paradigms import paradigm_of
from supernet.passes import Shards
from supernet.pose.dataset import PoseDataset
from supernet.pose.loader import Batch, BatchLoader, Job
from supernet.pose.losses import LossWeights
from supernet.pose.transforms import Augmentation
from supernet.precision import PRECISIONS, Precision
from supernet.rules import DRAWS, RULES, step_archs
from supernet.schedules import SCHEDULES, learning_rate
from supernet.state import (
    TrainingState,
    kernel_sharing,
    load_state,
    read_tensors,
    save_state,
    save_weights,
)

__all__ = ["TrainConfig", "TrainReport", "Trainer", "Validate", "pick_device"]

_BEFORE_TERMS: Final = ("step", "epoch", "learning_rate", "resolution")
_AFTER_TERMS: Final = ("grad_norm", "images_per_s")
"""Columns of ``metrics.csv`` before and after those of the loss."""
_FREE: Final = ("device", "workers", "cache_images_mb", "checkpoint_seconds")
"""Settings that may change when a training is resumed."""
_REMEDY: Final = "Lower train.learning_rate or set train.clip_norm, and start anew with another --output"
_ORDER_STREAM = 3


@dataclass(frozen=True)
class TrainConfig:
    """How a supernet is trained.

    Attributes
    ----------
    epochs
        Passes over the training images.
    batch_size
        Images per step; the last, smaller batch of an epoch is dropped unless it is the only one.
    shards
        Parts that a batch is cut into. On a CPU they are computed side by side, each by a thread of its own;
        elsewhere one after another. Gradients are the whole batch's; a batch normalisation sees one part, as
        in distributed training. Small networks gain: their layers are too small to share among threads.
    rule
        ``sandwich``, ``progressive``, ``anchored`` or ``uniform``.
    random_archs
        Archs drawn beside the largest and smallest (sandwich only).
    draw
        How archs at random are drawn: ``uniform`` or ``spread``; see :mod:`supernet.rules`.
    full_share
        Share of the run that trains the largest arch alone (progressive only).
    largest_share
        Share of the other steps that train the largest arch (progressive and anchored).
    kernels
        How small depthwise kernels follow from large ones: ``crop`` (their centre) or ``transform`` (the
        centre, times matrices that are trained too); see :class:`supernet.elastic.ElasticDepthwiseConv2d`.
    optimizer
        ``adamw`` or ``adam``; weight decay is decoupled in the first and L2 in the second.
    learning_rate
        Peak learning rate.
    schedule
        ``cosine`` (to ``final_rate`` times the peak), ``step`` (x 0.1 at each of ``milestones``) or
        ``constant``.
    milestones
        Shares of the run at which ``step`` drops; LitePose's are 350/500 and 480/500.
    warmup
        Share of the run over which the rate rises linearly.
    final_rate
        Last learning rate of ``cosine``, as a share of the peak.
    weight_decay
        Applied to convolution weights, never to batch normalisation; transforms of kernels are pulled towards
        the crop.
    clip_norm
        Largest gradient norm; 0 does not clip.
    ema
        Decay of the averaged weights that are evaluated and searched; 0 keeps no average.
    validate_every
        Epochs between validations of the largest and smallest arch; the best checkpoint is chosen by them.
    checkpoint_seconds
        Longest time between two checkpoints.
    workers
        Threads that prepare batches.
    cache_images_mb
        Most MiB of decoded training images kept in memory, each decoded once; 0 keeps none.
    sigma
        Standard deviation of target Gaussians, in heatmap cells.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision
        ``fp32``, ``bf16`` or ``fp16`` (with loss scaling, on GPUs): see :mod:`supernet.precision`.
    augmentation, loss, distill
        How images vary; the factors of the loss terms; what is learned from beside the annotations.
    """

    epochs: int = 100
    batch_size: int = 16
    shards: int = 1
    rule: str = "sandwich"
    random_archs: int = 1
    draw: str = "uniform"
    full_share: float = 0.5
    largest_share: float = 0.5
    kernels: str = "crop"
    optimizer: str = "adamw"
    learning_rate: float = 4e-3
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.7, 0.96)
    warmup: float = 0.02
    final_rate: float = 0.01
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    validate_every: int = 10
    checkpoint_seconds: float = 120.0
    workers: int = 1
    cache_images_mb: int = 512
    sigma: float = 2.0
    device: str = "auto"
    precision: str = "fp32"
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossWeights = field(default_factory=LossWeights)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("shards", 1),
            ("random_archs", 0),
            ("validate_every", 1),
            ("workers", 0),
            ("cache_images_mb", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"train.{name} is at least {least}, not {getattr(self, name)}")
        for name, options in (
            ("rule", RULES),
            ("kernels", KERNEL_SHARING),
            ("draw", DRAWS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if value not in options:
                raise InputError(f"train.{name}: unknown '{value}'{did_you_mean(value, options)}")
        for name in ("learning_rate", "checkpoint_seconds", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"train.{name} is positive, not {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"train.{name} is at least 0, not {getattr(self, name)}")
        if self.shards > self.batch_size:
            raise InputError(
                f"train.shards cuts a batch into that many parts: at most batch_size ({self.batch_size}),"
                f" not {self.shards}"
            )
        for name in ("ema", "warmup", "final_rate", "full_share", "largest_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} lies in 0..1 (1 excluded), not {getattr(self, name)}")
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise InputError(f"train.milestones are ascending shares of the run, not {list(self.milestones)}")
        if self.distill.source == "largest" and self.rule != "sandwich":
            raise InputError(
                "train.distill.source: largest needs train.rule: sandwich, whose steps train the largest arch"
                f" beside others, not '{self.rule}'"
            )


OPTIMIZERS: Final[Mapping[str, type[torch.optim.Adam]]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def pick_device(name: str) -> torch.device:
    """Return the torch device of that name; ``auto`` is the first GPU where there is one, else the CPU.

    Raises
    ------
    UnavailableError
        If a GPU is asked for that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(
            f"device '{name}' was asked for, but torch sees {torch.cuda.device_count()} GPUs;"
            " take the CPU (--set train.device=cpu; nas predict: --device cpu)"
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:N")
    return device


class ElasticNetwork(Protocol):
    """What the trainer needs of a supernet."""

    space: SearchSpace

    def __call__(self, images: Tensor, arch: Arch) -> tuple[Tensor, ...]: ...


Validate = Callable[[nn.Module], Mapping[str, float]]
"""Scores of the (averaged) supernet by name; the first one chooses the best checkpoint, higher is better."""


@dataclass(frozen=True)
class TrainReport:
    """How a training ended.

    Attributes
    ----------
    steps, finished
        Steps done in all, and whether those are all steps of the recipe.
    best
        Best validation score, NaN before the first validation.
    seconds
        Time spent by this call.
    """

    steps: int
    finished: bool
    best: float
    seconds: float


class Progress(Protocol):
    """Told after every step; shows it or does not."""

    def __call__(self, step: int, steps: int, row: Mapping[str, float]) -> None: ...


class Trainer:
    """Trains a supernet in a folder: checkpoints, metrics and validation scores are kept there.

    Parameters
    ----------
    network
        A supernet (``network(images, arch)``), trained in place.
    dataset
        Training images.
    config, seed
        What is done, and the number that everything random is derived from.
    folder
        Where ``checkpoints/``, ``metrics.csv`` and ``validation.csv`` go; :meth:`resume` continues from them.
    validate
        Scores the network; None never validates, and the last weights count as the best.
    teacher
        The network that ``config.distill`` names, where it names one.
    remedy
        What the user can do where the loss is not finite, for the error.
    ranks
        This process among those that share the training (:func:`supernet.distributed.joined`). All of them
        are given the same; only the first one touches ``folder`` and validates.

    Attributes
    ----------
    notice
        What the user should know about where :meth:`resume` went on from; empty where all is well.

    Raises
    ------
    InputError
        If there are no images, or a batch cannot be shared out among the ranks.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: PoseDataset,
        config: TrainConfig,
        *,
        seed: int,
        folder: Path,
        validate: Validate | None = None,
        teacher: Teacher | None = None,
        remedy: str = _REMEDY,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.seed, self.folder, self.validate = config, seed, Path(folder), validate
        self.remedy = remedy
        self.paradigm = paradigm_of(network)
        self.dataset, self.ranks, self.notice = self.paradigm.examples(dataset), ranks, ""
        self.device = pick_device(config.device)
        Precision.check(config.precision, self.device)
        self.precision = Precision(config.precision, self.device)
        self.network = network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.space: SearchSpace = network.space  # type: ignore[assignment]
        if config.kernels != kernel_sharing(network):
            raise InputError(
                f"train.kernels is {config.kernels}, but the supernet shares kernels by"
                f" {kernel_sharing(network)}; build it with kernels='{config.kernels}'"
            )
        if len(self.dataset) == 0:
            raise InputError("the training data set holds no image")
        self.batch_size = min(config.batch_size, len(self.dataset))
        if not ranks.alone and self.batch_size < config.shards:
            raise InputError(
                f"train.shards cuts {self.batch_size} images, all of a step, into {config.shards} parts;"
                " processes that share a training need an image for each: take fewer of them, or more images"
            )
        self.epoch_steps = max(1, len(self.dataset) // config.batch_size)
        self.steps = config.epochs * self.epoch_steps
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        rest = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimizer = OPTIMIZERS[config.optimizer](
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.learning_rate,
            fused=True,
        )
        self.average = Average(self.network, config.ema)
        if teacher is not None:
            teacher.to(self.device, PRECISIONS[config.precision])
        self.distillation = Distillation(config.distill, teacher, self.paradigm, config.sigma)
        self._shards = Shards(self.network, ranks.shards(config.shards), self.distillation, self.precision)
        self._statistics = [b for b in self.network.buffers() if b.is_floating_point()]
        self._before = [b.clone() for b in self._statistics]
        self.step, self.best = 0, float("nan")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints: ``last``, ``previous`` and ``best``."""
        return self.folder / "checkpoints"

    def resume(self) -> int:
        """Continue from the newest readable checkpoint, if there is one; return its step.

        Of several ranks the first one reads it; :meth:`run` hands it to the others.

        Raises
        ------
        RunError
            If the checkpoint is of another space, seed, data set or recipe of training (the differences are
            listed), or none of the checkpoints can be read.
        """
        if not self.ranks.first:
            return 0
        # Settings that came later had no effect before: their defaults hold of older checkpoints.
        unsaid = self._settings(TrainConfig()) | {"distill": Distillation().identity}
        state = load_state(self.checkpoints, self._identity(), self.space, unsaid)
        if state is None:
            return 0
        self._restore(state)
        self.notice = state.notice
        return self.step

    def _restore(self, state: TrainingState) -> None:
        state.restore(self.network, self.optimizer, self.average.values)
        self.precision.restore(state.further())
        self.step, self.best = state.step, state.best

    @staticmethod
    def _settings(config: TrainConfig) -> dict[str, str]:
        return {
            entry.name: str(getattr(config, entry.name))
            for entry in fields(config)
            if entry.name not in _FREE
        }

    def _identity(self) -> dict[str, str]:
        return {
            "space": self.space.fingerprint,
            "seed": str(self.seed),
            "steps": str(self.steps),
            "images": f"{len(self.dataset)} ({self.dataset.fingerprint})",
            **self._settings(self.config),
            "distill": self.distillation.identity,
        }

    def _state(self) -> TrainingState:
        return TrainingState.capture(
            self.network,
            self.optimizer,
            self.average.values,
            step=self.step,
            best=self.best,
            identity=self._identity(),
            space=self.space.config(),
            further=self.precision.state(),
        )

    def _save(self) -> None:
        if self.ranks.first:
            save_state(self.checkpoints, self._state())

    def _begin(self) -> None:
        """Bring all ranks to the first one's state, and clear away what a kill has left."""
        self.ranks.agree(self._identity())
        if not self.ranks.alone:
            content = self.ranks.share(self._state().to_bytes() if self.ranks.first else b"")
            if not self.ranks.first:
                self._restore(TrainingState.from_bytes(content))
        if self.ranks.first:
            for name in ("last", "best"):
                remove_leftovers(self.checkpoints / f"{name}.safetensors")
            for name in ("metrics.csv", "validation.csv"):
                remove_leftovers(self.folder / name)
        self._shards.train()

    def _schedule(self) -> Iterator[Job]:
        for step in range(self.step, self.steps):
            epoch, place = divmod(step, self.epoch_steps)
            order = self.dataset.epoch_order(np.random.default_rng([self.seed, _ORDER_STREAM, epoch]))
            chosen = order[place * self.config.batch_size : (place + 1) * self.config.batch_size]
            resolution, _ = step_archs(self.space, self.seed, step, self.steps, self.config)
            yield self.ranks.part(chosen.tolist(), self.config.shards), resolution, epoch

    def _update(
        self, step: int, batch: Batch, archs: Sequence[Arch], stop: bool
    ) -> tuple[dict[str, float], bool]:
        """Do a step; return its row of metrics, and whether any rank was asked to stop."""
        rate = learning_rate(step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_copy_(self._before, self._statistics)
        terms = self._shards.backward(batch, archs, self.config.loss, self.batch_size, step / self.steps)
        self.ranks.add_gradients(self.network.parameters())
        *summed, stops = self.ranks.add([*terms.values(), float(stop)])
        sums = dict(zip(terms, summed, strict=True))
        self.precision.unscale(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm or math.inf))
        overflow = self.precision.scales and not math.isfinite(norm)
        if not all(map(math.isfinite, sums.values())) or not (math.isfinite(norm) or overflow):
            raise self._spoilt(step, archs, rate, {**sums, "the gradient's norm": norm})
        if self.precision.step(self.optimizer, finite=not overflow):
            self.average.move(step)
        elif self.precision.skipped > Precision.MOST_SKIPPED:
            raise self._spoilt(step, archs, rate, {**sums, "the gradient's norm": norm})
        return {"learning_rate": rate, **sums, "grad_norm": norm}, stops > 0

    def _spoilt(self, step: int, archs: Sequence[Arch], rate: float, values: Mapping[str, float]) -> RunError:
        """Save the state before a step whose numbers are not finite; return the error that tells of it."""
        torch._foreach_copy_(self._statistics, self._before)
        self._save()
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        if len(wrong) > 1:  # what is spoilt by another term need not be told
            wrong.pop("total", None)
        told = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        names = {self.space.largest().id: "largest", self.space.smallest().id: "smallest"}
        resolution = archs[0]["resolution"]
        whole = {arch: arch.replace(resolution=self.space.largest()["resolution"]).id for arch in archs}
        small = {arch: arch.replace(resolution=self.space.smallest()["resolution"]).id for arch in archs}
        which = ", ".join(names.get(whole[a]) or names.get(small[a]) or a.id for a in archs)
        tried = f", after {self.precision.skipped} steps in a row" if self.precision.skipped else ""
        return self.ranks.error(
            f"{told} at step {step + 1} of {self.steps}{tried} ({resolution} px, archs: {which}; learning"
            f" rate {rate:.3g}). The state before it is kept in '{self.checkpoints / 'last.safetensors'}',"
            f" the best of the validations in best.safetensors. {self.remedy}"
        )

    def run(self, progress: Progress | None = None) -> TrainReport:
        """Train to the end of the schedule.

        Ctrl-C (or SIGTERM) ends the step, writes a checkpoint and raises KeyboardInterrupt; after
        :meth:`resume` the same call continues. A second Ctrl-C stops at once.

        Raises
        ------
        RunError
            If the loss is not finite, or the folder cannot be written.
        """
        began = time.perf_counter()
        self._begin()
        loader = BatchLoader(
            None,
            self._schedule(),
            self.config.augmentation,
            self.seed,
            workers=self.config.workers,
            sigma=self.config.sigma,
            device=self.device,
            gather=self.paradigm.gather(self.dataset, self.config.cache_images_mb << 20),
        )
        first = self.ranks.first
        columns = (*_BEFORE_TERMS, *self.distillation.terms, *_AFTER_TERMS)
        saved, clock = time.monotonic(), time.perf_counter()
        with (
            MetricLog(self.folder / "metrics.csv", columns, self.step) if first else nullcontext() as metrics,
            closing(iter(loader)) as batches,
            _Stop(patient=not self.ranks.alone) as stop,
        ):
            for batch in batches:
                step = self.step
                resolution, archs = step_archs(self.space, self.seed, step, self.steps, self.config)
                row, stopping = self._update(step, batch, archs, stop.requested)
                self.step += 1
                now = time.perf_counter()
                row["images_per_s"], clock = self.batch_size / (now - clock), now
                if metrics is not None:
                    metrics.add(
                        {
                            "step": self.step,
                            "epoch": step // self.epoch_steps,
                            "resolution": resolution,
                            **row,
                        }
                    )
                if progress is not None:
                    progress(self.step, self.steps, row)
                if self._is_validation(self.step):
                    self._validate()
                    clock = time.perf_counter()
                # Several ranks stop at the same step; one alone heeds what came during the step, too.
                stopping = stopping or (self.ranks.alone and stop.requested)
                if stopping or time.monotonic() - saved > self.config.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                if stopping:
                    self.ranks.wait()  # none ends, and ends the others, before all is written
                    raise KeyboardInterrupt
        if first and self.step >= self.steps and not self._has_best():
            self.best = float("nan")  # whatever it was, its weights are lost: the last ones take their place
            self._score()
        self._save()
        self.ranks.wait()
        return TrainReport(self.step, self.step >= self.steps, self.best, time.perf_counter() - began)

    def _has_best(self) -> bool:
        try:
            read_tensors(self.checkpoints / "best.safetensors")
        except InputError:
            return False
        return True

    def _is_validation(self, step: int) -> bool:
        epoch, place = divmod(step, self.epoch_steps)
        return place == 0 and (epoch % self.config.validate_every == 0 or step == self.steps)

    def _validate(self) -> None:
        """Let the first rank score the network; the others wait."""
        if self.ranks.first:
            self._score()
        self._shards.train()
        self.ranks.wait()

    def _score(self) -> None:
        with self.average.swapped():
            scores: Mapping[str, float] = self.validate(self.network) if self.validate is not None else {}
            score = next(iter(scores.values()), float("nan"))
            better = not scores or math.isnan(self.best) or score > self.best
            if better:
                self.best = score
                save_weights(
                    self.checkpoints / "best.safetensors", self.network, self.space, self.step, scores
                )
        if scores:
            with MetricLog(self.folder / "validation.csv", ("step", *scores), self.step - 1) as log:
                log.add({"step": self.step, **scores})
        self._save()


_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stop:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is only noted, so that a step is never cut in half.

    The second one acts as usual, unless this is ``patient``: torchrun sends several.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.requested, self._patient = False, patient
        self._former: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        tell = getattr(self._former.get(number), "note", None)
        if tell is not None:  # whose handler it is wants to know which signal it was
            tell(number)
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {
                n: signal.signal(n, self._note) for n in _ASKING if signal.getsignal(n) is not signal.SIG_IGN
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
