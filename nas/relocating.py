"""``nas runs relocate``: a run whose data lie elsewhere now goes on with them, once they are known again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from nas.data import open_datasets
from nas.recipe import recipe_from_mapping
from nas.run import RunDirectory
from nas.runs import images_of
from nas.train import image_digests
from search_spaces import InputError, RunError
from search_spaces.files import read_yaml, write_yaml

__all__ = ["Moved", "RecipePath", "paths_of", "relocate_run"]


@dataclass(frozen=True)
class RecipePath:
    """A file or folder that a run's recipe names: by which setting, and whether it is there."""

    setting: str
    path: str
    there: bool


@dataclass(frozen=True)
class Moved:
    """What became of a run's paths.

    Attributes
    ----------
    paths
        Every path of the recipe as it is now.
    changed
        Former and present path by setting.
    images
        The parts of the data that were found to be the same ones, by name: number and digest.
    unknown
        Parts of which the run had not noted what they are.
    """

    paths: tuple[RecipePath, ...]
    changed: dict[str, tuple[str, str]]
    images: dict[str, str]
    unknown: tuple[str, ...]


_FILES = (".json", ".yaml", ".yml")


def _places(values: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield setting, container and key of every value of a plain recipe that may be a path."""
    data = values.get("data")
    if isinstance(data, dict):
        for name in ("train", "val", "search"):
            sources = data.get(name)
            listed = enumerate(sources) if isinstance(sources, list) else [(None, sources)]
            for place, source in listed:
                if isinstance(source, dict):
                    where = f"data.{name}" if place is None else f"data.{name}[{place}]"
                    for key in ("annotations", "images", "boxes"):
                        yield f"{where}.{key}", source, key
        yield "data.skeleton", data, "skeleton"
    for section, key in (("space", "base"), (None, "init")):
        inside = values if section is None else values.get(section)
        if isinstance(inside, dict):
            yield key if section is None else f"{section}.{key}", inside, key
    train = values.get("train")
    if isinstance(train, dict) and isinstance(train.get("distill"), dict):
        yield "train.distill.teacher", train["distill"], "teacher"
    search = values.get("search")
    if isinstance(search, dict) and isinstance(search.get("seed_archs"), list):
        for place in range(len(search["seed_archs"])):
            yield f"search.seed_archs[{place}]", search["seed_archs"], place


def _path(setting: str, container: Any, key: Any) -> str | None:
    """Return the path that a setting holds; None where it holds a name, or nothing."""
    value = container[key] if isinstance(container, list) else container.get(key)
    if not isinstance(value, str):
        return None
    last = setting.rpartition(".")[2]
    if last == "boxes" and value in ("annotated", "whole-image"):
        return None
    named = last in ("skeleton", "base") or last.startswith("seed_archs")
    return None if named and not value.endswith(_FILES) else value


def paths_of(folder: Path) -> list[RecipePath]:
    """Return every file and folder that the recipe of the run in ``folder`` names.

    Raises
    ------
    InputError
        If there is no recipe, or it is no mapping.
    """
    return _listed(_values(folder), folder)


def _values(folder: Path) -> dict[str, Any]:
    if not RunDirectory.is_run(folder):
        raise InputError(f"'{folder}' is no run directory (it has no recipe.yaml)")
    values = read_yaml(folder / "recipe.yaml", "recipe")
    if not isinstance(values, dict):
        raise InputError(f"recipe '{folder / 'recipe.yaml'}' must be a mapping of names to values")
    return values


def _listed(values: dict[str, Any], folder: Path) -> list[RecipePath]:
    found = []
    for setting, container, key in _places(values):
        path = _path(setting, container, key)
        if path is not None:
            found.append(RecipePath(setting, path, (folder.resolve() / path).exists()))
    return found


def _moves(texts: Sequence[str]) -> list[tuple[PurePath, Path]]:
    moves = []
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise InputError(f"--data takes OLD=NEW, the former path and the present one, not '{text}'")
        moves.append((PurePath(old), Path(new).absolute()))
    return moves


def relocate_run(folder: Path, moves: Sequence[str]) -> Moved:
    """Let the recipe of a run name files where they are now, after checking that the images are the same.

    They are the same if each part of the data has the digest that the run noted in training: of image ids,
    file names, sizes and people. Pixels are not looked at. If anything is wrong, nothing is changed.

    Parameters
    ----------
    folder
        The run.
    moves
        ``OLD=NEW`` each: a path that begins with OLD begins with NEW now. The first that fits counts.

    Raises
    ------
    InputError
        If a move fits no path of the recipe, or data cannot be opened where they should be.
    RunError
        If the images are others than those of the run, or another command is at work on it.
    """
    values, pairs = _values(folder), _moves(moves)
    changed: dict[str, tuple[str, str]] = {}
    used: set[PurePath] = set()
    for setting, container, key in _places(values):
        path = _path(setting, container, key)
        if path is None:
            continue
        for old, new in pairs:
            if PurePath(path).is_relative_to(old):
                container[key] = str(new / PurePath(path).relative_to(old))
                changed[setting] = (path, container[key])
                used.add(old)
                break
    unused = [str(old) for old, _ in pairs if old not in used]
    if unused:
        paths = ", ".join(sorted({each.path for each in _listed(values, folder)})) or "none"
        raise InputError(f"no path of the recipe begins with '{unused[0]}'; its paths: {paths}")
    if not changed:
        return Moved(tuple(_listed(values, folder)), {}, {}, ())
    recipe = recipe_from_mapping(values, f"recipe '{folder / 'recipe.yaml'}', relocated", folder.resolve())
    run = RunDirectory(folder, recipe)
    with run.exclusively():
        noted, found = images_of(folder), image_digests(open_datasets(recipe))
        others = [
            f"{part}: {told} in the run, {found[part]} there"
            for part, told in noted.items()
            if part in found and found[part] != told
        ]
        if others:
            raise RunError(
                f"the images are not those of the run (number and digest of {'; '.join(others)}); nothing was"
                " changed"
            )
        write_yaml(folder / "recipe.yaml", recipe.to_plain())
    same = {part: found[part] for part in noted if part in found}
    unknown = tuple(part for part in found if part not in noted)
    return Moved(tuple(_listed(values, folder)), changed, same, unknown)
