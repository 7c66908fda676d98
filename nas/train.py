"""``nas train``: from a run directory's recipe to a trained supernet in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from nas.context import images_told
from nas.data import Datasets, note_empty_boxes, open_datasets
from nas.recipe import DataSource, Recipe
from nas.run import RunDirectory
from search_spaces import Arch, InputError, RunError, SearchSpace
from search_spaces.files import write_json
from supernet.base import Subnet, Supernet
from supernet.bn_cache import StatisticsCache
from supernet.checkpoint import import_research, load_network, read_pth
from supernet.distillation import Teacher
from supernet.distributed import ALONE, Ranks
from supernet.evaluator import CalibrationImages, SubnetEvaluator
from supernet.mobilenet import import_mobilenet_v2, in_backbone, is_mobilenet_v2
from supernet.pose.skeleton import SKELETONS, Skeleton, get_skeleton
from supernet.precision import Precision
from supernet.racing import EarlyStop
from supernet.registry import build_supernet
from supernet.state import load_weights
from supernet.training import Progress, Trainer, TrainReport, Validate, pick_device
from supernet.transfer import start_from

__all__ = [
    "Prepared",
    "image_digests",
    "initialise",
    "load_plain_network",
    "load_teacher",
    "load_with_skeleton",
    "make_evaluator",
    "network_file",
    "open_supernet",
    "prepare",
    "skeleton_of",
    "start",
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


def network_file(path: Path) -> Path:
    """Return the file of a network that is named by itself, or by the folder that it was emitted into."""
    return path / "model.safetensors" if path.is_dir() else path


def _absent(path: Path) -> str:
    """Return what to say where there is no such file of a network."""
    folder = path.parent
    if path.name == network_file(folder).name and RunDirectory.is_run(folder):
        return f"'{folder}' is a run, which holds many networks; 'nas emit {folder}' writes one of them"
    if path.name == network_file(folder).name:
        return f"'{folder}' is no emitted network: '{path}' does not exist"
    return f"checkpoint '{path}' does not exist; name an emitted folder, a .safetensors or a research .pth"


def _load_plain(path: Path, resolution: int | None) -> tuple[Subnet, dict[str, Any]]:
    """Return the plain network in a file, and what the file says beside it."""
    path = network_file(path)
    if not path.is_file():
        raise InputError(_absent(path))
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
    try:
        return network, skeleton_of(network.joints, metadata, wanted, way)
    except InputError as error:
        raise InputError(f"model '{path}': {error}") from None


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


def initialise(recipe: Recipe, space: SearchSpace, skeleton: Skeleton | None = None) -> Supernet:
    """Return a fresh supernet of the space, started from the recipe's ``init`` where it names one.

    See :func:`start`, which also tells what was taken.
    """
    return start(recipe, space, skeleton)[0]


def start(
    recipe: Recipe, space: SearchSpace, skeleton: Skeleton | None = None
) -> tuple[Supernet, tuple[str, ...]]:
    """Return a fresh supernet of the space, and in words what it took from the recipe's ``init``.

    A plain network (ours or the research code's) may be smaller than the widest of the space, and predict
    other joints: they are matched by name. A file that does not name its joints is taken to predict the
    recipe's if they are as many. Of ImageNet weights of MobileNetV2 the backbone is taken, cut where the
    space is narrower.

    Parameters
    ----------
    recipe
        Names the checkpoint, the seed of fresh weights and the sharing of kernels.
    space
        The recipe's space.
    skeleton
        The joints to predict; None takes a network's joints as they are.

    Raises
    ------
    InputError
        If the checkpoint cannot be read, or does not fit the space.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    supernet = build_supernet(space, generator, recipe.train.kernels)
    path = recipe.init
    if path is None:
        return supernet, ()
    if path.suffix == ".pth" and is_mobilenet_v2(read_pth(path, f"checkpoint '{path}'")):
        backbone, unused = import_mobilenet_v2(path, space.joints, space.family)
        taken = start_from(supernet, backbone, layers=in_backbone, may_cut=True, by=recipe.init_order)
        return supernet, (
            f"starting from MobileNetV2 in '{path}': {taken.lines()[0]}",
            *taken.lines()[1:],
            "fresh: the head" + (f"; no place for {', '.join(unused)}" if unused else ""),
        )
    # Any resolution of the space will do: weights do not depend on it.
    network, metadata = _load_plain(path, space.largest().number("resolution"))
    joints = None
    if skeleton is not None and (metadata.get("skeleton") or network.joints != space.joints):
        source = skeleton_of(network.joints, metadata, way=f"{path}: {_WRITE_SKELETON}")
        joints = None if source.joints == skeleton.joints else (source, skeleton)
    try:
        taken = start_from(supernet, network, joints=joints, by=recipe.init_order)
    except InputError as error:
        raise InputError(f"init '{path}': {error}") from None
    return supernet, (f"starting from '{path}': {taken.lines()[0]}", *taken.lines()[1:])


def _search_source(recipe: Recipe) -> DataSource:
    """Return the source of the search images; what is held out of training has annotated boxes."""
    return recipe.data.search or next(iter(recipe.data.training.values()))


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
    images, source = (data.search, _search_source(recipe)) if on == "search" else (data.val, recipe.data.val)
    note_empty_boxes(images, source.boxes)
    return SubnetEvaluator(
        supernet,
        CalibrationImages(
            data.calibrate,
            recipe.evaluate.calibration_images,
            recipe.seed,
            recipe.train.augmentation,
            paradigm=recipe.paradigm,
        ),
        images,
        recipe.evaluation(64, source),
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
    supernet = build_supernet(space, torch.Generator().manual_seed(run.recipe.seed), run.recipe.train.kernels)
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
    started
        In words, line by line, what the supernet took from the recipe's ``init``.
    """

    data: Datasets
    supernet: Supernet
    teacher: Teacher | None = None
    started: tuple[str, ...] = ()


def prepare(recipe: Recipe, data: Datasets | None = None, *, begun: Path | None = None) -> Prepared:
    """Open what a recipe names; every mistake in it that can be found without training is found here.

    Parameters
    ----------
    recipe
        The recipe.
    data
        Its data sets, where they are open already.
    begun
        A run directory that may hold checkpoints. Where it does, the network that the training started from
        is not needed any more, and may be gone.

    Raises
    ------
    InputError
        If a file is missing or malformed, or the parts do not fit together.
    UnavailableError
        If its device is not there.
    """
    Precision.check(recipe.train.precision, pick_device(recipe.train.device))
    data = data or open_datasets(recipe)
    space = recipe.build_space(data.skeleton)
    gone = recipe.init is not None and not network_file(recipe.init).exists()
    if gone and begun is not None and _has_checkpoint(begun):
        fresh = replace(recipe, init=None, init_order=Recipe.init_order)
        supernet, _ = start(fresh, space, data.skeleton)
        started: tuple[str, ...] = (f"'{recipe.init}' is gone; the checkpoint holds what was taken from it",)
    else:
        supernet, started = start(recipe, space, data.skeleton)
    return Prepared(data, supernet, load_teacher(recipe, data.skeleton), started)


def _has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints" / f"{name}.safetensors").is_file() for name in ("last", "previous"))


def note_images(run: RunDirectory, data: Datasets) -> None:
    """Note which images a run has, by number and digest: where they are moved, they are known again."""
    path = run.folder / "data.json"
    if not path.exists():
        write_json(path, {"images": image_digests(data)})


def image_digests(data: Datasets) -> dict[str, str]:
    """Return what tells each part of a run's images from others."""
    parts = {"train": data.train, "calibrate": data.calibrate, "search": data.search, "val": data.val}
    return {name: images_told(len(part), part.fingerprint) for name, part in parts.items()}


def probes(space: SearchSpace) -> dict[str, Arch]:
    """Return the archs whose AP is followed during training."""
    return {"AP_largest": space.largest(), "AP_smallest": space.smallest()}


def train(
    run: RunDirectory,
    prepared: Prepared | None = None,
    *,
    progress: Progress | None = None,
    validated: Callable[[Mapping[str, float]], None] | None = None,
    noticed: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
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
    noticed
        Called with what the user should know, such as that a damaged checkpoint was passed over.
    ranks
        This process among those that share the training; only the first one writes.

    Raises
    ------
    RunError
        If a checkpoint does not fit, or the loss is not finite.
    """
    prepared = prepared or prepare(run.recipe)
    data, supernet = prepared.data, prepared.supernet
    space = supernet.space

    def trainer_of(validate: Validate | None) -> Trainer:
        return Trainer(
            supernet,
            data.train,
            run.recipe.train,
            seed=run.recipe.seed,
            folder=run.folder,
            validate=validate,
            teacher=prepared.teacher,
            ranks=ranks,
        )

    if not ranks.first:
        return trainer_of(None).run()
    note_images(run, data)
    evaluator = make_evaluator(run, data, supernet, keep_statistics=False)  # weights that soon are others

    def validate(network: nn.Module) -> dict[str, float]:
        found = {name: evaluator.evaluate(arch).stats["AP"] for name, arch in probes(space).items()}
        scores = {"AP_mean": sum(found.values()) / len(found), **found}
        if validated is not None:
            validated(scores)
        for name, value in scores.items():
            writer.add_scalar(f"validation/{name}", value, trainer.step)
        return scores

    trainer = trainer_of(validate)
    start = trainer.resume()
    if trainer.notice and noticed is not None:
        noticed(trainer.notice)
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
