"""The run directory: everything that the commands make of one recipe, kept in one place.

Layout::

    recipe.yaml          the recipe with every default written out
    environment.json     versions, machine, command of the first start
    data.json            the images by number and digest
    metrics.csv          one row per training step
    validation.csv       AP of the largest and smallest arch as training goes on
    tensorboard/         the same for TensorBoard
    checkpoints/         last, previous (resume from them), best (searched)
    evaluations.jsonl    every AP that a search measured, for all that follow
    search/NAME/         one study: journal, result.json, result.csv, plots
    emitted/NAME/        one emitted network
    fine-tuned/ID-DIGEST/  one network trained on alone: checkpoints, result
    bn-statistics/       recalibrated BN statistics by network, kept for the next command; may be deleted
    report.html          what 'nas report' told of it
    trust/               how far the ranking can be trusted; stand-alone trainings
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from nas.config import apply_overrides
from nas.recipe import Recipe, recipe_from_mapping
from search_spaces import InputError, RunError
from search_spaces.files import locked, read_yaml, sweep, write_json, write_yaml

__all__ = ["RunDirectory", "differences", "environment", "holder"]

_PACKAGES = ("torch", "numpy", "optuna", "onnxruntime", "opencv-python-headless", "faster-coco-eval", "ray")


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return what may matter when a result is looked at later: versions, machine, command, date (UTC)."""
    import torch

    versions = {}
    for package in ("litepose-nas", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(["nas", *command[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def differences(theirs: Any, ours: Any) -> list[str]:
    """Return ``key: theirs -> ours`` for every setting in which two plain recipes differ."""
    a, b = _flat(theirs), _flat(ours)
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key)]


_PLACES: Final = ("annotations", "images", "boxes", "init", "teacher", "skeleton", "base", "data.train")
"""Settings that say where files are; a list of sources is compared as one."""

_HELD: Final = ("checkpoints", "search", "search/*", "emitted", "emitted/*", "bn-statistics", "trust")
"""Folders of a run into which, as into its own, only who holds its lock writes."""


def _sign(stream: TextIO) -> None:
    """Write into a lock who holds it; that is for people alone, so a full disk does not matter."""
    command = " ".join(["nas", *sys.argv[1:]])
    who = {"command": command, "process": os.getpid(), "machine": platform.node()}
    with suppress(OSError, ValueError):
        stream.truncate(0)
        stream.write(json.dumps(who) + "\n")
        stream.flush()


def holder(lock: Path) -> str | None:
    """Return who holds a run's lock, in words: command, process, machine; None where that is not known."""
    try:
        who = json.loads(lock.read_text(encoding="utf-8"))
        command = " ".join(str(who["command"]).split())
        command = command if len(command) <= 80 else f"{command[:77]}..."
        return f"'{command}', process {int(who['process'])} on {who['machine']}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class RunDirectory:
    """A run directory that exists; make or find one with :meth:`create` and :meth:`open`."""

    def __init__(self, folder: Path, recipe: Recipe, overrides: Sequence[str] = ()) -> None:
        self.folder, self.recipe, self.overrides = folder, recipe, tuple(overrides)

    @classmethod
    def is_run(cls, folder: str | Path) -> bool:
        """Return whether ``folder`` is a run directory."""
        return (Path(folder) / "recipe.yaml").is_file()

    @classmethod
    def open(cls, folder: str | Path, overrides: list[str] | None = None) -> RunDirectory:
        """Return the run in ``folder``; ``overrides`` change settings for this use only.

        Raises
        ------
        InputError
            If there is no run, or its recipe is damaged.
        """
        folder = Path(folder)
        if not cls.is_run(folder):
            raise InputError(
                f"'{folder}' is no run directory (it has no recipe.yaml); make one with 'nas train'"
            )
        values = read_yaml(folder / "recipe.yaml", "recipe")
        if not isinstance(values, dict):
            raise InputError(f"recipe '{folder / 'recipe.yaml'}' must be a mapping of names to values")
        values = apply_overrides(values, overrides or [])
        recipe = recipe_from_mapping(values, f"recipe '{folder / 'recipe.yaml'}'", folder.resolve())
        return cls(folder, recipe, overrides or [])

    @classmethod
    def create(cls, folder: str | Path, recipe: Recipe) -> RunDirectory:
        """Return a new run directory, or the existing one of the same recipe.

        Raises
        ------
        RunError
            If the folder holds a run of another recipe (the differences are listed) or something else.
        """
        run = cls.find(folder, recipe)
        if run is None:
            run = cls(Path(folder), recipe)
            write_yaml(run.folder / "recipe.yaml", recipe.to_plain())
        if not (run.folder / "environment.json").exists():
            write_json(run.folder / "environment.json", environment(sys.argv))
        return run

    @classmethod
    def find(cls, folder: str | Path, recipe: Recipe) -> RunDirectory | None:
        """Return the run of this very recipe in ``folder``, None where a new one can be made; write nothing.

        Raises
        ------
        RunError
            As :meth:`create`.
        """
        folder = Path(folder)
        if cls.is_run(folder):
            found = cls.open(folder)
            changed = differences(found.recipe.to_plain(), recipe.to_plain())
            if changed:
                moved = all(each.partition(": ")[0].endswith(_PLACES) for each in changed)
                hint = f" (or, if only files have moved: nas runs relocate {folder} --data OLD=NEW)"
                raise RunError(
                    f"'{folder}' holds a run of another recipe ({'; '.join(changed[:6])}"
                    f"{'; ...' if len(changed) > 6 else ''}); choose another --output{hint if moved else ''}"
                )
            return found
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"'{folder}' exists and is no run directory; choose another --output")
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one command at a time; what kills have left half-written in it is cleared away.

        Raises
        ------
        RunError
            If another command is at work on it; which one is told where that is known.
        """
        with self.exclusively():
            self.tidy()
            yield

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the run as :meth:`locked` does, and leave in it what there is."""
        lock = self.folder / ".lock"
        who = holder(lock)
        told = "" if who is None else f" ({who})"
        busy = f"another command is at work on '{self.folder}'{told}; wait for it or stop it"
        with locked(lock, busy) as stream:
            _sign(stream)
            try:
                yield
            finally:
                with suppress(OSError):
                    stream.truncate(0)

    def tidy(self) -> int:
        """Remove what kills have left half-written; return the bytes. The run has to be held meanwhile.

        Folders that lie elsewhere, behind links, are left alone.
        """
        top = self.folder.resolve()
        below = (
            folder
            for pattern in _HELD
            for folder in self.folder.glob(pattern)
            if folder.is_dir() and folder.resolve().is_relative_to(top)
        )
        return sum(map(sweep, (self.folder, *below)))

    @property
    def best(self) -> Path:
        """The supernet's weights that are searched."""
        return self.folder / "checkpoints" / "best.safetensors"

    @property
    def evaluations(self) -> Path:
        """The AP evaluations that the run's studies share."""
        return self.folder / "evaluations.jsonl"

    @property
    def trained(self) -> bool:
        """Whether training reached its end."""
        return (self.folder / "trained.json").is_file()

    def mark_trained(self, summary: dict[str, Any]) -> None:
        """Note that training reached its end."""
        write_json(self.folder / "trained.json", summary)

    def study(self, name: str) -> Path:
        """Return the folder of one search.

        Raises
        ------
        InputError
            If the name is no name of a folder.
        """
        if not re.fullmatch(r"[A-Za-z0-9@_-][A-Za-z0-9.@_-]{0,199}", name):
            raise InputError(f"a study's name is letters, digits and any of '.@_-', not '{name}'")
        return self.folder / "search" / name

    def studies(self) -> list[str]:
        """Return the names of the searches that have a result, oldest first."""
        found = sorted((self.folder / "search").glob("*/result.json"), key=lambda p: p.stat().st_mtime)
        return [path.parent.name for path in found]

    def rng(self, stream: int) -> np.random.Generator:
        """Return a generator derived from the recipe's seed."""
        return np.random.default_rng([self.recipe.seed, 1000 + stream])
