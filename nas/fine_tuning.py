"""``nas emit --fine-tune``: the chosen network trained on alone, from its part of the supernet.

It is a training like the supernet's, by the same :class:`supernet.training.Trainer`, of a space that holds
this network alone. It begins with the extracted weights and recalibrated statistics, and learns from the
annotations and from a teacher: by default the supernet's own largest network. What it became is recalibrated
as every network is, and takes the former's place only if its AP on the *search* images is higher: the val
images, which are for the figures reported, decide nothing.

Everything lies in ``fine-tuned/ID-DIGEST`` of the run, the digest being of all that the result rests on. So
the same command continues a training that was stopped, and finds one that is finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nas.config import to_plain
from nas.data import Datasets
from nas.known import search_context
from nas.recipe import Recipe
from nas.run import RunDirectory
from nas.train import load_with_skeleton, make_evaluator
from nas.trust.standalone import single_arch_space, standalone_config
from search_spaces import Arch, InputError
from search_spaces.files import read_json, write_json
from supernet.base import Subnet, Supernet
from supernet.checkpoint import load_network, save_network
from supernet.distillation import Distillation, Teacher
from supernet.pose.bootstrap import Comparison, compare_ap
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import scored_joints
from supernet.pose.matching import match_detections
from supernet.registry import build_supernet
from supernet.state import load_weights
from supernet.training import Progress, TrainConfig, Trainer

__all__ = ["FineTuning", "Tuned", "fine_tune", "paired"]

LARGEST: Final = "largest"
NO_TEACHER: Final = "none"
RATE_SHARE: Final = 0.1
"""Default learning rate, as a share of the training's: the weights are good already."""
RESAMPLES: Final = 1000
_REMEDY: Final = "Nothing was emitted: give a lower --learning-rate, or leave --fine-tune out"
_RESULT: Final = "result.json"
_WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained on; checked before anything begins.

    Attributes
    ----------
    epochs
        Passes over the training images.
    teacher
        ``largest``: the supernet's largest network; ``none``; or the file of a trained network.
    learning_rate
        Peak; it decays to nearly nothing by a cosine. None: a tenth of the recipe's.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    epochs: int
    teacher: str = LARGEST
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"--fine-tune is a number of epochs, at least 1, not {self.epochs}")
        if not self.teacher.strip():
            raise InputError("--teacher is largest, none or the file of a network, not empty")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"--learning-rate is positive, not {self.learning_rate}")

    def config(self, recipe: Recipe) -> TrainConfig:
        """Return the settings of the training: the recipe's, less what concerns several networks."""
        distill = replace(
            recipe.train.distill,
            source="none" if self.teacher == NO_TEACHER else "teacher",
            teacher=None if self.teacher == NO_TEACHER else Path(self.teacher),
            start=0.0,
        )
        return replace(
            standalone_config(recipe),
            epochs=self.epochs,
            validate_every=self.epochs,
            learning_rate=self.learning_rate or RATE_SHARE * recipe.train.learning_rate,
            schedule="cosine",
            distill=distill,
        )

    def external(self, recipe: Recipe, data: Datasets) -> Teacher | None:
        """Return the teacher that is a file; None where it is none. Called before anything begins.

        Raises
        ------
        InputError
            If the file cannot be read, or its network cannot teach the run's.
        """
        self.config(recipe)
        if self.teacher in (LARGEST, NO_TEACHER):
            return None
        try:
            teacher = Teacher(*load_with_skeleton(self.teacher), data.skeleton)
            Distillation(self.config(recipe).distill, teacher, recipe.paradigm, recipe.train.sigma)
        except InputError as error:
            raise InputError(f"--teacher: {error}") from None
        return teacher


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuning came to.

    Attributes
    ----------
    network
        The network after it, recalibrated, on the CPU.
    kept
        Whether its AP on the search images is higher than before.
    told
        What a card says of it: epochs, steps, teacher, both APs on the search images and their paired
        difference with its interval.
    """

    network: Subnet
    kept: bool
    told: Mapping[str, Any]


def paired(
    data: PoseDataset,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    protocol: str,
    most: int,
    seed: int,
) -> Comparison:
    """Return AP after less AP before, from both networks' detections on the same images."""
    truth, joints = data.ground_truth(), scored_joints(data)
    first, second = (
        match_detections(truth, found, data.skeleton.sigmas, joints, protocol, most)  # type: ignore[arg-type]
        for found in (after, before)
    )
    return compare_ap(first, second, RESAMPLES, np.random.default_rng(seed))


def fine_tune(
    run: RunDirectory,
    data: Datasets,
    supernet: Supernet,
    arch: Arch,
    settings: FineTuning,
    *,
    teacher: Teacher | None = None,
    progress: Progress | None = None,
    noticed: Callable[[str], None] | None = None,
) -> Tuned:
    """Train one of the run's networks on, or continue; hold it against what it was. Call it in the run's
    lock.

    Parameters
    ----------
    run, data, supernet
        A trained run, its data, its weights.
    arch
        A network of the run's space.
    settings
        How.
    teacher
        What :meth:`FineTuning.external` gives.
    progress
        Told after every step.
    noticed
        Told what the user should know, such as that a damaged checkpoint was passed over.

    Raises
    ------
    RunError
        If the loss is not finite, or the folder cannot be written.
    """
    evaluator = make_evaluator(run, data, supernet)
    if settings.teacher == LARGEST:
        largest = evaluator.subnet(supernet.space.largest())
        largest.sigma = run.recipe.train.sigma  # a supernet does not say it
        teacher = Teacher(largest, data.skeleton, data.skeleton)
    start = evaluator.subnet(arch)
    config = settings.config(run.recipe)
    place = _place(run, data, arch, config, teacher)
    done = _finished(place)
    if done is not None:
        if noticed is not None:
            noticed(f"taken from '{place}', where this fine-tuning is finished")
        return done
    alone = build_supernet(
        single_arch_space(arch, supernet.space.joints), torch.Generator().manual_seed(run.recipe.seed)
    )
    alone.load_plain(start.to("cpu"))
    trainer = Trainer(
        alone, data.train, config, seed=run.recipe.seed, folder=place, teacher=teacher, remedy=_REMEDY
    )
    trainer.resume()
    if trainer.notice and noticed is not None:
        noticed(trainer.notice)
    report = trainer.run(progress)
    load_weights(trainer.checkpoints / "best.safetensors", alone, alone.space)
    own = make_evaluator(RunDirectory(place, run.recipe), data, alone, keep_statistics=False)
    try:
        before, after = evaluator.evaluate(arch), own.evaluate(arch)
        difference = paired(
            data.search,
            before.detections,
            after.detections,
            evaluator.protocol,
            evaluator.config.max_detections,
            run.recipe.seed,
        )
        tuned = own.subnet(arch).to("cpu")
    finally:
        own.close()
        evaluator.close()
    told = {
        "epochs": settings.epochs,
        "steps": report.steps,
        "teacher": _name(settings, supernet),
        "learning_rate": config.learning_rate,
        "kept": after.stats["AP"] > before.stats["AP"],
        "search": {
            "images": len(data.search),
            "before": before.stats["AP"],
            "after": after.stats["AP"],
            "difference": difference.to_json(),
        },
        "folder": place.name,
    }
    skeleton = data.skeleton.to_json()
    save_network(place / _WEIGHTS, tuned, {"skeleton": skeleton, "sigma": run.recipe.train.sigma})
    write_json(place / _RESULT, told)
    for name in ("last", "previous"):  # nothing is left to be resumed
        (trainer.checkpoints / f"{name}.safetensors").unlink(missing_ok=True)
    return Tuned(load_network(place / _WEIGHTS)[0], bool(told["kept"]), told)


def _name(settings: FineTuning, supernet: Supernet) -> str:
    if settings.teacher == LARGEST:
        return f"the supernet's largest network, {supernet.space.largest().id}"
    return "none" if settings.teacher == NO_TEACHER else f"'{Path(settings.teacher).name}'"


def _place(
    run: RunDirectory, data: Datasets, arch: Arch, config: TrainConfig, teacher: Teacher | None
) -> Path:
    """Return the folder of a fine-tuning, named by all that it rests on; a teacher by its weights."""
    settings = to_plain(config)
    for name in ("device", "workers", "cache_images_mb", "checkpoint_seconds"):
        settings.pop(name)
    settings["distill"].pop("teacher")
    rests_on = {
        **search_context(run, data),
        "train": f"{len(data.train)} ({data.train.fingerprint})",
        "settings": settings,
        "teacher": None if teacher is None else teacher.fingerprint,
        "seed": run.recipe.seed,
    }
    digest = hashlib.sha256(json.dumps(rests_on, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return run.folder / "fine-tuned" / f"{arch.id}-{digest}"


def _finished(place: Path) -> Tuned | None:
    """Return a fine-tuning that is finished; None where it is not, or its files are damaged."""
    if not (place / _RESULT).is_file():
        return None
    try:
        told = read_json(place / _RESULT, "result of a fine-tuning")
        if not {"before", "after", "difference"} <= told["search"].keys():
            return None
        return Tuned(load_network(place / _WEIGHTS)[0], bool(told["kept"]), told)
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None  # made anew, from the last checkpoint where there is one
