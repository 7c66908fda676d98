"""``nas runs resume``: a run's training and searches go on where they were stopped, with their settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nas.console import note
from nas.run import RunDirectory
from nas.runs import RunStatus, StudyStatus, look_at
from search_spaces import InputError, RunError
from search_spaces.files import read_json

__all__ = ["Resumed", "resume_run"]

_REQUEST: Final = "request.json"


@dataclass(frozen=True)
class Resumed:
    """What was gone on with, and what was left.

    Attributes
    ----------
    trained
        What the training reported; None where it was done before.
    searched
        Studies that were gone on with, with their summaries.
    left
        What another command goes on with, a line each.
    """

    trained: dict[str, Any] | None
    searched: dict[str, dict[str, Any]]
    left: tuple[str, ...]


def resume_run(folder: Path) -> Resumed:
    """Go on with whatever was interrupted in a run: its training, then its searches.

    Raises
    ------
    InputError
        If there is no run, or its recipe is damaged.
    RunError
        If another command is at work on it.
    """
    run = RunDirectory.open(folder)
    status = look_at(folder)
    if status.busy:
        with run.locked():  # says who holds it
            pass
    trained = None
    if not run.trained:
        from nas.train_command import train_into

        where = f"from step {status.step} of {status.steps} on" if status.step else "from its beginning"
        note(f"training of '{folder}' goes on {where}")
        trained = train_into(folder, run.recipe)[1]
    searched: dict[str, dict[str, Any]] = {}
    left = list(_left(status))
    for study in status.studies:
        if study.state != "interrupted":
            continue
        request = _request(run, study)
        if request is None:
            left.append(
                f"the study '{study.name}' does not say how it was begun (an earlier version wrote it): give"
                " its 'nas search' command again"
            )
            continue
        searched[study.name] = _search(folder, study, request)
    return Resumed(trained, searched, tuple(left))


def _left(status: RunStatus) -> list[str]:
    """Return what was interrupted that is not gone on with here, with the command that does."""
    trust = status.folder / "trust"
    begun = any(trust.glob("standalone/*/")) or any(trust.glob("*.partial.jsonl"))
    if begun and not (trust / "trust.json").is_file():
        return [f"a trust check was begun: 'nas trust {status.folder}' goes on with it"]
    return []


def _request(run: RunDirectory, study: StudyStatus) -> dict[str, Any] | None:
    path = run.study(study.name) / _REQUEST
    if not path.is_file():
        return None
    told = read_json(path, "search request")
    if not isinstance(told, dict) or told.get("format") != 1 or not isinstance(told.get("budget"), dict):
        raise RunError(
            f"search request '{path}' is damaged or of another version: give the 'nas search' command again"
        )
    return told


def _search(folder: Path, study: StudyStatus, told: dict[str, Any]) -> dict[str, Any]:
    from nas.searching import run_search

    path = folder / "search" / study.name / _REQUEST
    try:
        overrides = [str(item) for item in told["overrides"]]
        budget = {str(name): value for name, value in told["budget"].items()}
        tables = None if told["tables"] is None else [Path(each) for each in told["tables"]]
        options: dict[str, Any] = {
            **{"objectives": list(told["objectives"]), "tables": tables},
            **{"strict_tables": bool(told["strict_tables"]), "evaluations": int(told["trials"])},
            **{name: told[name] for name in ("population", "sampler", "seed", "executor", "workers")},
            **{name: told[name] for name in ("ray_address", "cpus_per_worker", "gpus_per_worker")},
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(f"search request '{path}' is damaged ({error!r}): give its command again") from None
    note(f"the search '{study.name}' goes on: {told['sampler']}, {told['trials']} networks")
    run = RunDirectory.open(folder, overrides)
    try:
        found = run_search(run, name=study.name, **budget, **options)
    except TypeError as error:
        raise InputError(f"search request '{path}' is damaged ({error}): give its command again") from None
    return found.summary()
