"""``nas train``: from a run directory's recipe to a trained supernet in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from nas.data import Datasets, open_datasets
from nas.recipe import Recipe
from nas.run import RunDirectory
from search_spaces import Arch, InputError, RunError, SearchSpace
from supernet.base import Subnet, Supernet
from supernet.bn_cache import StatisticsCache
from supernet.checkpoint import import_research, load_network
from supernet.distillation import Teacher
from supernet.evaluator import CalibrationImages, EarlyStop, SubnetEvaluator
from supernet.importance import order_channels_by_importance
from supernet.pose.skeleton import SKELETONS, Skeleton, get_skeleton
from supernet.registry import build_supernet
from supernet.state import load_weights
from supernet.training import Progress, Trainer, TrainReport, pick_device

__all__ = [
    "Prepared",
    "initialise",
    "load_plain_network",
    "load_teacher",
    "load_with_skeleton",
    "make_evaluator",
    "open_supernet",
    "prepare",
    "skeleton_of",
    "train",
]

_WRITE_SKELETON: Final = "write them into the file with 'nas import-checkpoint FILE --skeleton ...'"


def load_plain_network(path: str | Path, resolution: int | None = None) -> Subnet:
    """Return the plain network in one of our ``.safetensors`` files or in a research ``.pth``.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another kind.
    """
    return _load_plain(Path(path), resolution)[0]


def _load_plain(path: Path, resolution: int | None) -> tuple[Subnet, dict[str, Any]]:
    """Return the plain network in a file, and what the file says beside it."""
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(f"checkpoint '{path}' does not exist")
    if path.suffix == ".safetensors":
        return load_network(path)
    return import_research(path, resolution), {}


def skeleton_of(
    joints: int,
    metadata: Mapping[str, Any],
    wanted: str | None = None,
    way: str = "name them with --skeleton",
) -> Skeleton:
    """Return the joints that a model predicts: as asked, as its file says, or the only ones that fit.

    Raises
    ------
    InputError
        If that is not clear (``way`` tells how to say it), or they are not ``joints`` many.
    """
    if wanted is not None:
        skeleton = get_skeleton(wanted)
    elif isinstance(metadata.get("skeleton"), dict):
        skeleton = Skeleton.from_json(metadata["skeleton"], "the model's skeleton")
    else:
        fitting = [s for s in SKELETONS.values() if len(s) == joints]
        if len(fitting) != 1:
            raise InputError(f"the model predicts {joints} joints, but which? {way}")
        skeleton = fitting[0]
    if len(skeleton) != joints:
        raise InputError(
            f"the model predicts {joints} joints, but skeleton '{skeleton.name}' has {len(skeleton)}"
        )
    return skeleton


def load_with_skeleton(
    path: str | Path, wanted: str | None = None, way: str = "name them with --skeleton"
) -> tuple[Subnet, Skeleton]:
    """Return the plain network in a file (see :func:`load_plain_network`) and the joints that it predicts.

    Raises
    ------
    InputError
        As :func:`load_plain_network` and :func:`skeleton_of`.
    """
    # A research checkpoint does not tell its resolution, which changes no weight.
    network, metadata = _load_plain(Path(path), 448)
    return network, skeleton_of(network.joints, metadata, wanted, way)


def load_teacher(recipe: Recipe, skeleton: Skeleton) -> Teacher | None:
    """Return the network that the recipe's ``train.distill`` names, answering for the joints of ``skeleton``.

    Raises
    ------
    InputError
        If the checkpoint cannot be read, or shares no joint with ``skeleton``.
    """
    path = recipe.train.distill.teacher
    if path is None:
        return None
    try:
        return Teacher(*load_with_skeleton(path, way=_WRITE_SKELETON), skeleton)
    except InputError as error:
        raise InputError(f"train.distill.teacher: {error}") from None


def initialise(recipe: Recipe, space: SearchSpace) -> Supernet:
    """Return a fresh supernet of the space, started from the recipe's ``init`` where it names one.

    Raises
    ------
    InputError
        If the checkpoint cannot be read or is no network of the space.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    supernet = build_supernet(space, generator)
    if recipe.init is not None:
        # Any resolution of the space will do: weights do not depend on it.
        resolution = space.largest().number("resolution")
        network = load_plain_network(recipe.init, resolution)
        # Narrow subnets take the first channels: put the important ones there. The function stays the same.
        supernet.load_plain(order_channels_by_importance(network))
    return supernet


def make_evaluator(
    run: RunDirectory,
    data: Datasets,
    supernet: Supernet,
    *,
    on: str = "search",
    fixed: bool = False,
    early_stop: bool = False,
    keep_statistics: bool = True,
) -> SubnetEvaluator:
    """Return the evaluator of the run's subnets on its ``search`` or ``val`` images.

    ``fixed`` weights are trained no further, so that subnets can share what they have in common. Unless
    ``keep_statistics`` is false, BN statistics are kept in the run's folder: no command computes again what
    another one has.
    """
    recipe = run.recipe
    device = pick_device(recipe.train.device)
    supernet.to(device)
    return SubnetEvaluator(
        supernet,
        CalibrationImages(
            data.calibrate, recipe.evaluate.calibration_images, recipe.seed, recipe.train.augmentation
        ),
        data.search if on == "search" else data.val,
        recipe.evaluate.at(64),
        device,
        protocol=recipe.evaluate.protocol,
        fixed=fixed,
        early_stop=EarlyStop() if early_stop else None,
        decode_workers=recipe.evaluate.decode_workers,
        statistics=StatisticsCache(run.folder / "bn-statistics") if keep_statistics else None,
    )


def open_supernet(run: RunDirectory, space: SearchSpace) -> Supernet:
    """Return the run's trained supernet (the best checkpoint by validation AP), in eval mode.

    Raises
    ------
    RunError
        If it is not trained yet, or its weights are of another space.
    """
    if not run.best.is_file():
        raise RunError(
            f"'{run.folder}' has no trained supernet; run 'nas train' first (with --resume where it was)"
        )
    supernet = build_supernet(space, torch.Generator().manual_seed(run.recipe.seed))
    try:
        load_weights(run.best, supernet, space)
    except InputError as error:
        raise InputError(f"{error}; delete it, and 'nas train' with --resume writes it anew") from None
    supernet.eval()
    return supernet


@dataclass(frozen=True)
class Prepared:
    """What a training needs, opened and checked before anything is written.

    Attributes
    ----------
    data
        The recipe's data sets.
    supernet
        Fresh, or started from the recipe's ``init``.
    teacher
        The network that ``train.distill`` names, where it names one.
    """

    data: Datasets
    supernet: Supernet
    teacher: Teacher | None = None


def prepare(recipe: Recipe, data: Datasets | None = None) -> Prepared:
    """Open what a recipe names; every mistake in it that can be found without training is found here.

    Raises
    ------
    InputError
        If a file is missing or malformed, or the parts do not fit together.
    UnavailableError
        If its device is not there.
    """
    pick_device(recipe.train.device)
    data = data or open_datasets(recipe)
    return Prepared(
        data, initialise(recipe, recipe.build_space(data.skeleton)), load_teacher(recipe, data.skeleton)
    )


def probes(space: SearchSpace) -> dict[str, Arch]:
    """Return the archs whose AP is followed during training."""
    return {"AP_largest": space.largest(), "AP_smallest": space.smallest()}


def train(
    run: RunDirectory,
    prepared: Prepared | None = None,
    *,
    progress: Progress | None = None,
    validated: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainReport:
    """Train the run's supernet, from its newest checkpoint where there is one.

    Parameters
    ----------
    run
        A run directory; call this within its lock.
    prepared
        What :func:`prepare` gives for its recipe, if that was done already. The supernet is trained in place.
    progress
        Called after every step.
    validated
        Called with every validation's scores.

    Raises
    ------
    RunError
        If a checkpoint does not fit, or the loss is not finite.
    """
    prepared = prepared or prepare(run.recipe)
    data, supernet = prepared.data, prepared.supernet
    space = supernet.space
    evaluator = make_evaluator(run, data, supernet, keep_statistics=False)  # weights that soon are others

    def validate(network: nn.Module) -> dict[str, float]:
        found = {name: evaluator.evaluate(arch).stats["AP"] for name, arch in probes(space).items()}
        scores = {"AP_mean": sum(found.values()) / len(found), **found}
        if validated is not None:
            validated(scores)
        for name, value in scores.items():
            writer.add_scalar(f"validation/{name}", value, trainer.step)
        return scores

    trainer = Trainer(
        supernet,
        data.train,
        run.recipe.train,
        seed=run.recipe.seed,
        folder=run.folder,
        validate=validate,
        teacher=prepared.teacher,
    )
    start = trainer.resume()
    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=start)

    def report(step: int, steps: int, row: Mapping[str, float]) -> None:
        if step % 10 == 0 or step == steps:
            for name, value in row.items():
                writer.add_scalar(f"train/{name}", value, step)
        if progress is not None:
            progress(step, steps, row)

    try:
        result = trainer.run(report)
    finally:
        writer.close()
    summary: dict[str, Any] = {
        "steps": result.steps,
        "best": None if result.best != result.best else result.best,
    }
    run.mark_trained(summary)
    return result
