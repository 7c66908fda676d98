"""Stand-alone trainings: what networks of a space reach when each is trained by itself.

Each is a training like the supernet's, by the same :class:`supernet.training.Trainer`, of a space that holds
one network. What it begins from is what the supernet begins from: fresh weights by the same rule, or, where
the recipe names an ``init``, the part of that initialised supernet that makes up the network. Settings that
tell which networks a step trains, or that let them teach each other, are left out, so that runs which differ
in those alone share one folder of stand-alone trainings. An external teacher teaches here, too: it may be
the only one to tell of some images. The last (averaged) weights are scored exactly as
subnets are: batch norm recalibrated on the same images, AP on the search images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nas.config import to_plain
from nas.data import Datasets, open_datasets
from nas.recipe import Recipe
from nas.run import RunDirectory, differences
from nas.train import initialise, load_teacher, make_evaluator, network_file
from nas.trust.scores import Score
from search_spaces import Arch, InputError, RunError, SearchSpace, space_of
from search_spaces.files import read_json, write_json
from supernet.base import Supernet
from supernet.paradigms import TOP_DOWN
from supernet.registry import build_supernet
from supernet.state import load_weights
from supernet.training import Progress, TrainConfig, Trainer

__all__ = [
    "StandaloneFolder",
    "Task",
    "Workbench",
    "draw_archs",
    "single_arch_space",
    "standalone_config",
    "standalone_identity",
]

SUPERNET_ONLY: Final = ("rule", "random_archs", "draw", "full_share", "largest_share", "kernels")
"""Settings that tell which archs a step trains and how they share weights; one arch has no use for them."""
_NO_MATTER: Final = ("device", "workers", "cache_images_mb", "checkpoint_seconds", "validate_every")
"""Settings of a training that its result is not to depend on."""
_UNASKED: Final = ("decode_workers", "early_stop")
"""Settings of an evaluation that no AP depends on."""
_POOL: Final = 20_000
"""Networks from which those that are trained are drawn, where the space holds more."""


# -- which networks ------------------------------------------------------------------------------------------


def draw_archs(space: SearchSpace, count: int, seed: int) -> list[Arch]:
    """Return ``count`` different networks spread over the space, by rising MACs; the same for the same seed.

    The smallest and the largest are among them. For the others, all networks of the space (of a large one
    20,000 drawn at random) are sorted by MACs and cut into as many parts of equal size, and one is drawn from
    each part. So they are a random sample of the space as a search sees it, with no region of costs missing.

    Raises
    ------
    InputError
        If the space has fewer networks, or fewer than 3 are asked for.
    """
    if count < 3:
        raise InputError(f"a ranking is of at least 3 networks, not {count}")
    if space.count() < count:
        raise InputError(f"trust.archs is {count}, but the space holds {space.count()} different networks")
    rng = np.random.default_rng([seed, count])
    if space.count() <= _POOL:
        pool = space.genotypes()
    else:
        pool = np.unique(space.sample_genotypes(rng, _POOL), axis=0)
    ends = np.stack([space.encode(space.smallest()), space.encode(space.largest())])
    pool = pool[~(pool[:, None] == ends).all(axis=-1).any(axis=1)]
    pool = pool[np.argsort(space.costs(pool).macs, kind="stable")]
    inner = [part[rng.integers(len(part))] for part in np.array_split(pool, count - 2)]
    chosen = np.stack([ends[0], *inner, ends[1]])
    return [space.decode(genes) for genes in chosen[np.argsort(space.costs(chosen).macs, kind="stable")]]


def single_arch_space(arch: Arch, joints: int) -> SearchSpace:
    """Return the space that holds this network alone."""
    space = space_of(arch, joints)
    if space.count() != 1 or space.largest() != arch:
        raise InputError(f"the network {arch.id} cannot be trained alone: no space holds just it")
    return space


# -- what a training rests on --------------------------------------------------------------------------------


def standalone_config(recipe: Recipe) -> TrainConfig:
    """Return the settings of a stand-alone training: the supernet's, less what concerns several networks."""
    defaults = TrainConfig()
    epochs = recipe.trust.epochs or recipe.train.epochs
    distill = recipe.train.distill
    return replace(
        recipe.train,
        **{name: getattr(defaults, name) for name in SUPERNET_ONLY} | {"rule": "uniform"},
        distill=distill if distill.source == "teacher" else defaults.distill,
        epochs=epochs,
        validate_every=epochs,
        learning_rate=recipe.trust.learning_rate or recipe.train.learning_rate,
    )


def _changed(settings: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that are not at their defaults: one that a later version adds changes nothing."""
    changed = _unlike(to_plain(settings), to_plain(type(settings)()))
    return {name: value for name, value in changed.items() if name not in without}


def _unlike(own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _unlike(value, usual[name]) if isinstance(value, dict) else value
        for name, value in own.items()
        if value != usual[name]
    }


def _digest(path: Path, what: str) -> str:
    path = network_file(path)
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be read: {error.strerror}") from None


def _train_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the trainings; a teacher is told by its content, wherever it lies."""
    config = standalone_config(recipe)
    found = _changed(config, _NO_MATTER)
    if config.distill.teacher is not None:
        teacher = _digest(config.distill.teacher, "train.distill.teacher")
        found["distill"] = {**found["distill"], "teacher": teacher}
    return found


def standalone_identity(recipe: Recipe, data: Datasets, space: SearchSpace) -> dict[str, Any]:
    """Return what stand-alone APs rest on, but for the network and the seed; others cannot be compared."""
    unused = () if recipe.paradigm is TOP_DOWN else ("top_down",)
    return {
        "space": space.fingerprint,
        "init": None if recipe.init is None else f"{_digest(recipe.init, 'init')} ({recipe.init_order})",
        "train": _train_identity(recipe),
        "evaluate": _changed(recipe.evaluate, (*_UNASKED, *unused)),
        "images": {
            "train": f"{len(data.train)} ({data.train.fingerprint})",
            "calibrate": f"{len(data.calibrate)} ({data.calibrate.fingerprint})",
            "calibrate_seed": recipe.seed,
            "search": f"{len(data.search)} ({data.search.fingerprint})",
        },
    }


@dataclass(frozen=True)
class Task:
    """One stand-alone training: a network and the seed of its training."""

    arch: Arch
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.arch.id}-{self.seed}"


def tasks_of(recipe: Recipe, archs: Sequence[Arch]) -> list[Task]:
    """Return the trainings that a recipe asks for, one seed after the other, large networks first."""
    seeds = range(recipe.trust.seed, recipe.trust.seed + recipe.trust.repeats)
    return [Task(arch, seed) for seed in seeds for arch in reversed(archs)]


class StandaloneFolder:
    """Where stand-alone trainings are kept: ``identity.json``, and a folder ``<arch id>-<seed>`` for each.

    Several runs may share one folder if what the trainings rest on is the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, identity: Mapping[str, Any], *, write: bool = True) -> None:
        """Hold what the trainings rest on against what the folder's rest on; note it in a new folder.

        Raises
        ------
        RunError
            If the folder's trainings rest on something else; the message tells what.
        """
        path = self.folder / "identity.json"
        if not path.is_file():
            if write:
                write_json(path, dict(identity))
            return
        found = read_json(path, "identity of stand-alone trainings")
        changed = differences(found, dict(identity))
        if changed:
            raise RunError(
                f"the stand-alone trainings in '{self.folder}' rest on other settings"
                f" ({'; '.join(changed[:6])}{'; ...' if len(changed) > 6 else ''});"
                " choose another folder (--standalone)"
            )

    def place(self, task: Task) -> Path:
        """Return the folder of one training."""
        return self.folder / task.name

    def score(self, task: Task) -> Score | None:
        """Return what a finished training reached, None before it is finished."""
        return Score.load(self.place(task))


# -- the training itself -------------------------------------------------------------------------------------


class Workbench:
    """What one process needs for any number of stand-alone trainings: the data, opened once."""

    def __init__(self, recipe: Recipe, folder: StandaloneFolder, data: Datasets | None = None) -> None:
        self.recipe, self.folder = recipe, folder
        self.data = data or open_datasets(recipe)
        self.space = recipe.build_space(self.data.skeleton)
        self.config = standalone_config(recipe)
        self.teacher = load_teacher(replace(recipe, train=self.config), self.data.skeleton)

    def network(self, task: Task) -> Supernet:
        """Return the weights that a training begins with, as the supernet of its network alone."""
        alone = single_arch_space(task.arch, self.space.joints)
        network = build_supernet(alone, torch.Generator().manual_seed(task.seed))
        if self.recipe.init is not None:
            # What the supernet begins with, as far as this network has it.
            network.load_plain(
                initialise(replace(self.recipe, seed=task.seed), self.space, self.data.skeleton).extract(
                    task.arch
                )
            )
        return network

    def train(self, task: Task, progress: Progress | None = None) -> Score:
        """Train one network from where it was left, score and keep it; return the score.

        Raises
        ------
        RunError
            If its loss is not finite, or its checkpoint is of other settings.
        """
        found = self.folder.score(task)
        if found is not None:
            return found
        place, network = self.folder.place(task), self.network(task)
        trainer = Trainer(
            network, self.data.train, self.config, seed=task.seed, folder=place, teacher=self.teacher
        )
        began = trainer.resume()
        report = trainer.run(progress)
        load_weights(trainer.checkpoints / "best.safetensors", network, network.space)
        evaluator = make_evaluator(
            RunDirectory(place, self.recipe), self.data, network, keep_statistics=False
        )
        score = Score.measure(
            evaluator,
            task.arch,
            seed=task.seed,
            steps=report.steps,
            seconds=round(report.seconds, 2),
            seconds_from_step=began,
        )
        evaluator.close()
        score.save(place)
        for name in ("last", "previous"):  # nothing is left to be resumed; the weights stay
            (trainer.checkpoints / f"{name}.safetensors").unlink(missing_ok=True)
        return score
