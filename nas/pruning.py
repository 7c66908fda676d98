"""``nas runs prune``: what a run can do without, because commands make it again or nobody reads it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nas.run import RunDirectory
from search_spaces import InputError, RunError
from search_spaces.errors import did_you_mean
from search_spaces.files import is_free, leftovers, size_of, sweep

__all__ = ["KINDS", "NAMED", "Removable", "prune_run", "removable"]

KINDS: Final = {
    "statistics": "recalibrated BN statistics; the next command computes them again",
    "previous": "the checkpoint before the last one; of use until the training is done",
    "leftovers": "half-written files and folders that kills have left",
    "deleted-studies": "pictures and locks of studies whose journal is gone",
}
"""What is removed unless it is kept, and why that can be."""

NAMED: Final = {
    "last": "the last checkpoint, with the optimiser's moments: from which a training goes on",
    "tensorboard": "the curves for TensorBoard; metrics.csv has the same figures",
    "study:NAME": "a search with its journal; its evaluations stay known to other searches",
    "emitted:NAME": "an emitted network",
}
"""What is removed if it is asked for by name."""


@dataclass(frozen=True)
class Removable:
    """One file or folder that may go: its kind, place and bytes."""

    kind: str
    path: Path
    size_bytes: int


def removable(run: RunDirectory, keep: Sequence[str] = (), also: Sequence[str] = ()) -> list[Removable]:
    """Return what can be removed from a run, less the kinds to ``keep``, and ``also`` what is named.

    Raises
    ------
    InputError
        If a kind or a name is unknown.
    RunError
        If what is named is needed yet.
    """
    for kind in keep:
        if kind not in KINDS:
            raise InputError(f"--keep: unknown '{kind}'{did_you_mean(kind, KINDS)}")
    found = [
        Removable(kind, path, size_of(path))
        for kind, paths in _usual(run)
        if kind not in keep
        for path in paths
    ]
    found += [Removable(name, _named(run, name), 0) for name in dict.fromkeys(also)]
    return [Removable(each.kind, each.path, size_of(each.path)) for each in found]


def _usual(run: RunDirectory) -> Iterator[tuple[str, list[Path]]]:
    folder = run.folder
    statistics = folder / "bn-statistics"
    yield "statistics", [statistics] if statistics.is_dir() and not statistics.is_symlink() else []
    previous = folder / "checkpoints" / "previous.safetensors"
    last = folder / "checkpoints" / "last.safetensors"
    yield "previous", [previous] if run.trained and previous.is_file() and last.is_file() else []
    yield "leftovers", [path for place in _places(folder) for path in leftovers(place)]
    top = folder.resolve()  # what lies elsewhere, behind a link, is not the run's
    studies = [
        path
        for path in sorted((folder / "search").glob("*"))
        if path.is_dir() and path.resolve().is_relative_to(top)
    ]
    gone = [path for path in studies if not path.name.startswith(".") and _is_gone(path)]
    yield "deleted-studies", gone


_OF_STUDIES: Final = (".png", ".svg", ".html", ".csv", ".driver", ".lock")
_REQUEST: Final = "request.json"


def _is_gone(study: Path) -> bool:
    """Return whether a study's folder holds nothing but what was drawn of it, or made for it."""
    names = [path for path in study.iterdir() if not path.name.startswith(".")]
    return all(path.is_file() and (path.suffix in _OF_STUDIES or path.name == _REQUEST) for path in names)


def _places(folder: Path) -> list[Path]:
    """Return every folder of the run that files are written into."""
    return [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir() and not path.is_symlink())]


def _named(run: RunDirectory, name: str) -> Path:
    kind, _, which = name.partition(":")
    if name == "last":
        path = run.folder / "checkpoints" / "last.safetensors"
        if not run.trained:
            raise RunError(f"training of '{run.folder}' is not done: it goes on from its last checkpoint")
    elif name == "tensorboard":
        path = run.folder / "tensorboard"
    elif kind == "study" and which:
        path = run.study(which)
    elif kind == "emitted" and which and which not in (".", "..") and "/" not in which:
        path = run.folder / "emitted" / which
        lock = path / "exports" / ".lock"
        if lock.exists() and not is_free(lock):
            raise RunError(f"an export is at work in '{path}'; wait for it or stop it")
    else:
        raise InputError(f"--also: unknown '{name}'; known: {', '.join(NAMED)}")
    if not path.exists():
        raise InputError(f"--also {name}: '{path}' does not exist")
    return path


def prune_run(
    folder: Path, *, keep: Sequence[str] = (), also: Sequence[str] = (), remove: bool = False
) -> list[Removable]:
    """Return what can be removed from a run; with ``remove`` it is gone afterwards.

    Raises
    ------
    InputError
        If there is no run, or a kind or name is unknown.
    RunError
        If another command is at work on the run, or something cannot be removed.
    """
    run = RunDirectory.open(folder)
    if not remove:
        return removable(run, keep, also)
    with run.exclusively():
        found = removable(run, keep, also)
        for place in {each.path.parent for each in found if each.kind == "leftovers"}:
            sweep(place)
        for each in found:
            _remove(each)
    return found


def _remove(each: Removable) -> None:
    if each.kind == "leftovers":
        return
    try:
        if each.path.is_dir() and not each.path.is_symlink():
            # Under a name that nothing reads, so that a kill leaves no half of it.
            aside = each.path.with_name(f".{each.path.name[:80]}-pruned00")
            with suppress(OSError):
                shutil.rmtree(aside)
            each.path.replace(aside)
            shutil.rmtree(aside)
        else:
            each.path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot remove '{each.path}': {error.strerror or error}") from None
