"""What is there of runs, read from their folders alone: nothing is opened, held or changed by looking."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from nas.run import RunDirectory, holder
from search_spaces import InputError, LitePoseNasError
from search_spaces.files import is_free, read_json, read_yaml, size_of

__all__ = [
    "RunStatus",
    "State",
    "StudyStatus",
    "checkpoint_facts",
    "find_runs",
    "images_of",
    "look_at",
    "metric_rows",
]

State = Literal["new", "training", "interrupted", "trained", "searching", "damaged"]
StudyState = Literal["searching", "interrupted", "done", "exhausted", "damaged", "deleted"]

_HEADER_BYTES: Final = 64 << 20
"""A longer header of a checkpoint is none."""

_META: Final = "litepose_nas"
_GO_ON: Final = ("last", "previous")
"""Checkpoints that a training goes on from; a finished one may do without."""


@dataclass(frozen=True)
class StudyStatus:
    """One search of a run.

    Attributes
    ----------
    name
        Of its folder.
    state
        ``searching`` now, ``interrupted`` (the same search goes on), ``done``, ``exhausted`` (no further
        network meets the budget), ``damaged``, or ``deleted``: pictures without a study.
    evaluated, trials
        Networks whose AP is known, of how many that may be looked at; None where no result says so.
    best_ap
        The highest AP, on the search images.
    problem
        What is wrong with a damaged one.
    """

    name: str
    state: StudyState
    evaluated: int | None = None
    trials: int | None = None
    best_ap: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class RunStatus:
    """What is there of a run.

    Attributes
    ----------
    folder, name
        Where it is; its recipe's name.
    state
        ``new`` (nothing trained yet), ``training`` or ``searching`` (a command is at work), ``interrupted``
        (in training), ``trained``, or ``damaged``.
    step, steps
        Of the training: done and in all; None where no checkpoint says so.
    busy
        Who holds the run now, in words; empty where nobody does.
    best_validation_ap
        The mean AP of the largest and smallest network in the best validation.
    best_search_ap
        The highest AP of a network in its studies, on the search images.
    studies, emitted
        Its searches; names of its emitted networks.
    size_bytes, changed
        Of everything in the folder; when a file of it was last written (UTC, ISO 8601).
    problems
        What cannot be read, a line each.
    """

    folder: Path
    name: str
    state: State
    step: int | None = None
    steps: int | None = None
    busy: str = ""
    best_validation_ap: float | None = None
    best_search_ap: float | None = None
    studies: tuple[StudyStatus, ...] = ()
    emitted: tuple[str, ...] = ()
    size_bytes: int = 0
    changed: str | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def progress(self) -> str:
        """The state in words, with the step where training is not done."""
        if self.state in ("training", "interrupted"):
            steps = "?" if self.steps is None else str(self.steps)
            return f"{self.state} at step {self.step or 0} of {steps}"
        return self.state

    def to_json(self) -> dict[str, Any]:
        """Return it as ``nas runs list --json`` prints it."""
        return {**asdict(self), "folder": str(self.folder)}


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the run directories among folders and in them, and the folders in them that are none.

    Parameters
    ----------
    folders
        Runs, or folders of runs.

    Raises
    ------
    InputError
        If a folder is not there or cannot be read.
    """
    runs: dict[Path, None] = {}
    others: dict[Path, None] = {}
    for folder in folders:
        if RunDirectory.is_run(folder):
            runs[folder] = None
            if (folder / "environment.json").is_file():
                continue  # else it may be a folder of runs in which somebody keeps a recipe
        if not folder.is_dir():
            raise InputError(f"'{folder}' is no folder; name a run directory, or a folder of such")
        try:
            below = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError as error:
            raise InputError(f"folder '{folder}' cannot be read: {error.strerror}") from None
        for path in below:
            if RunDirectory.is_run(path):
                runs[path] = None
            elif not path.name.startswith(".") and folder not in runs:
                others[path] = None
    return list(runs), list(others)


def look_at(folder: Path) -> RunStatus:
    """Return what is there of the run in ``folder``; what is damaged is told in it, and stops nothing."""
    problems: list[str] = []
    name = folder.resolve().name
    try:
        name = str(RunDirectory.open(folder).recipe.name)
    except LitePoseNasError as error:
        problems.append(str(error))
        name = _name(folder) or name
    lock = folder / ".lock"
    held = lock.exists() and not is_free(lock)
    busy = (holder(lock) or "a command") if held else ""
    facts = checkpoint_facts(folder / "checkpoints" / "last.safetensors") or checkpoint_facts(
        folder / "checkpoints" / "previous.safetensors"
    )
    step, steps = _number(facts.get("step")), _number(facts.get("identity", {}).get("steps"))
    if not facts and any((folder / "checkpoints" / f"{name}.safetensors").exists() for name in _GO_ON):
        problems.append(f"the checkpoints in '{folder / 'checkpoints'}' cannot be read")
    studies = tuple(
        _study(path) for path in sorted((folder / "search").glob("*/")) if not path.name.startswith(".")
    )
    problems += [f"study '{study.name}': {study.problem}" for study in studies if study.problem]
    trained = (folder / "trained.json").is_file()
    state: State = "trained" if trained else "interrupted" if facts else "new"
    if held:
        state = "training" if not trained else state
    if any(study.state == "searching" for study in studies):
        state = "searching"
    if any(problem.startswith("recipe") for problem in problems):
        state = "damaged"
    cards = sorted((folder / "emitted").glob("*/card.json"))
    validations = [row["AP_mean"] for row in metric_rows(folder / "validation.csv") if "AP_mean" in row]
    known = [study.best_ap for study in studies if study.best_ap is not None]
    return RunStatus(
        folder=folder,
        name=name,
        state=state,
        step=step,
        steps=steps,
        busy=busy,
        best_validation_ap=max(validations, default=None),
        best_search_ap=max(known, default=None),
        studies=studies,
        emitted=tuple(card.parent.name for card in cards if not card.parent.name.startswith(".")),
        size_bytes=size_of(folder),
        changed=_changed(folder),
        problems=tuple(problems),
    )


def _name(folder: Path) -> str | None:
    """Return the name in a recipe that is otherwise no longer sound."""
    try:
        values = read_yaml(folder / "recipe.yaml", "recipe")
    except InputError:
        return None
    return str(values["name"]) if isinstance(values, dict) and values.get("name") else None


def _number(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdigit() and len(text) < 16 else None


def _study(folder: Path) -> StudyStatus:
    journal, result = folder / "study.journal", folder / "result.json"
    driver = journal.with_name(f"{journal.name}.driver")
    searching = driver.exists() and not is_free(driver)
    if not result.is_file():
        if not journal.is_file():
            return StudyStatus(folder.name, "deleted")
        return StudyStatus(folder.name, "searching" if searching else "interrupted")
    try:
        told = read_json(result, "search result")
        aps = [
            float(record["ap"])
            for record in told["records"]
            if record.get("ap") is not None and not record.get("partial")
        ]
        trials, stopped = int(told["trials"]), str(told["stopped"])
    except InputError as error:
        return StudyStatus(folder.name, "damaged", problem=str(error))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        return StudyStatus(folder.name, "damaged", problem=f"'{result}' is damaged ({error!r})")
    states: dict[str, StudyState] = {"interrupted": "interrupted", "exhausted": "exhausted"}
    state = "searching" if searching else states.get(stopped, "done")
    if state in ("done", "exhausted") and _asked_since(folder):
        state = "interrupted"
    return StudyStatus(folder.name, state, len(aps), trials, max(aps, default=None))


def _asked_since(folder: Path) -> bool:
    """Return whether a search was begun that did not come to its result: killed while it was continued."""
    request, result = folder / "request.json", folder / "result.json"
    try:
        told = read_json(request, "request") if request.is_file() else {}
        return bool(told.get("trials", 0) > read_json(result, "search result")["trials"])
    except (InputError, AttributeError, KeyError, TypeError):
        return False


def _changed(folder: Path) -> str | None:
    """Return when a file in the folder was last written; a lock that is only held counts for nothing."""
    latest = 0.0
    for path in folder.rglob("*"):
        try:
            if path.name != ".lock" and path.is_file():
                latest = max(latest, path.lstat().st_mtime)
        except OSError:
            continue
    return datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds") if latest else None


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's header says (step, identity, best), without its weights; {} for none."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _HEADER_BYTES:
                return {}
            header = json.loads(stream.read(length))
        told = json.loads(header["__metadata__"][_META])
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not isinstance(told, dict) or not isinstance(told.get("identity", {}), dict):
        return {}
    return told


def metric_rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of one of the training's CSV files; what is no number is left out, no file is empty."""
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                numbers = {}
                for name, text in row.items():
                    try:
                        numbers[str(name)] = float(text)
                    except (TypeError, ValueError):
                        continue
                rows.append(numbers)
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return rows


def images_of(folder: Path) -> dict[str, str]:
    """Return what a run noted of its images when it was trained, by part: number and digest.

    Runs from before there was ``data.json`` tell their training images alone, in the checkpoint.
    """
    path = folder / "data.json"
    if path.is_file():
        try:
            told = read_json(path, "note of the data")
            return {str(part): str(images) for part, images in told["images"].items()}
        except (InputError, AttributeError, KeyError, TypeError):
            return {}
    images = checkpoint_facts(folder / "checkpoints" / "last.safetensors").get("identity", {}).get("images")
    return {} if images is None else {"train": str(images)}
