"""What ``nas predict`` looks at: pictures, folders, patterns, videos, a camera; each with a name."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import cv2

from search_spaces import InputError
from supernet.pose.video import full_name

__all__ = ["DRAWN", "PARTIAL", "PICTURES", "PREDICTIONS", "VIDEOS", "Input", "find_inputs"]

PICTURES: Final = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
VIDEOS: Final = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm"}
    | {".wmv"}
)
"""Suffixes by which folders and patterns are searched."""
DRAWN: Final = "drawn"
PREDICTIONS: Final = "predictions.json"
PARTIAL: Final = "predictions.partial.jsonl"
"""Names in an output folder: the drawn pictures; what was found; the same while it is being found."""


@dataclass(frozen=True)
class Input:
    """One thing to look at.

    Attributes
    ----------
    kind
        What it is.
    path
        The file, absolute; for a camera what the user wrote.
    name
        Where it lies below the deepest folder that holds all that was given, with forward slashes: no two
        inputs have the same.
    camera
        The camera's number.
    """

    kind: Literal["picture", "video", "camera"]
    path: Path
    name: str
    camera: int = 0


def find_inputs(arguments: Sequence[str]) -> tuple[list[Input], Path]:
    """Return what the arguments stand for, and the folder below which the names start.

    An argument is a file, a folder (searched with its subfolders, in order of names), a pattern with ``*``,
    ``?`` or ``[...]``, a camera (``0`` or ``camera:0``), or ``-`` for a list of such lines on standard input.
    Hidden files, and pictures that an earlier run has drawn, are not taken from folders and patterns. A file
    named twice is taken once.

    Raises
    ------
    InputError
        If something does not exist, or nothing is left to look at; before anything else happens.
    """
    words = [word for argument in arguments for word in (_lines() if argument == "-" else [argument])]
    cameras = [(word, number) for word in words if (number := _camera(word)) is not None]
    if cameras:
        if len(words) > 1:
            raise InputError(f"a camera is watched alone; '{cameras[0][0]}' came with other inputs")
        word, number = cameras[0]
        return [Input("camera", Path(word), f"camera-{number}", number)], Path.cwd()
    # Folders are resolved, so that no name holds a '..'; links to files keep the name that they have here.
    files: dict[Path, None] = {}
    bases: list[Path] = []
    for word in words:
        found = [path.parent.resolve() / path.name for path in _expand(word)]
        files.update(dict.fromkeys(found))
        bases += [Path(word).resolve()] if Path(word).is_dir() else [path.parent for path in found]
    if not files:
        raise InputError("there is nothing to look at: the list on standard input is empty")
    root = Path(os.path.commonpath(bases))
    return [Input(_kind(path), path, path.relative_to(root).as_posix()) for path in files], root


def _lines() -> list[str]:
    return [line for raw in sys.stdin if (line := raw.rstrip("\r\n"))]


def _camera(word: str) -> int | None:
    match = re.fullmatch(r"(camera:)?([0-9]{1,3})", word)
    return None if match is None or (match[1] is None and Path(word).exists()) else int(match[2])


def _expand(word: str) -> Iterator[Path]:
    path = Path(word)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        raise InputError(f"input {word[:200]!r} cannot be read: {error}") from None
    if exists:
        yield from _files(path)
        return
    if not glob.has_magic(word):
        raise InputError(f"input '{word}' does not exist")
    found = map(Path, sorted(glob.glob(word, recursive=True)))  # noqa: PTH207 (of a whole path, not of a folder)
    matches = [path for path in found if path.is_file() and _wanted(path)]
    matches = [path for path in matches if not any(map(_is_drawn, path.parents))]
    if not matches:
        raise InputError(f"pattern '{word}' matches no picture or video (what was drawn here does not count)")
    yield from matches


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or the pictures and videos of a folder."""
    if not path.is_dir():
        yield path
        return
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise InputError(f"folder '{error.filename}' cannot be read: {error.strerror}")

    for folder, below, names in os.walk(path, onerror=refuse):
        here = Path(folder)
        below[:] = [name for name in below if not name.startswith(".") and not _is_drawn(here / name)]
        found += [here / name for name in names if not name.startswith(".") and _wanted(here / name)]
    if not found:
        raise InputError(
            f"folder '{path}' holds no picture or video; suffixes: {' '.join(sorted(PICTURES | VIDEOS))}"
        )
    yield from sorted(found, key=lambda each: each.parts)


def _wanted(path: Path) -> bool:
    return path.suffix.lower() in PICTURES | VIDEOS


def _is_drawn(folder: Path) -> bool:
    """Return whether a folder holds what this command has drawn: it lies beside what it has found."""
    return folder.name == DRAWN and any((folder.parent / name).exists() for name in (PREDICTIONS, PARTIAL))


def _kind(path: Path) -> Literal["picture", "video"]:
    """Tell pictures and videos apart: by suffix, else by content; what is neither fails as a picture."""
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return "video"
    if suffix in PICTURES or not path.is_file():
        return "picture"
    try:
        name = full_name(path)
    except InputError:
        return "picture"
    return "video" if not cv2.haveImageReader(name) and cv2.VideoCapture(name).isOpened() else "picture"
