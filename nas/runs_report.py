"""What the ``nas runs`` commands tell people, and programs as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.console import note, print_json, print_table, printable, show
from nas.run import RunDirectory
from nas.runs import RunStatus, find_runs, images_of, look_at
from search_spaces import InputError
from search_spaces.files import size_of

__all__ = [
    "bytes_told",
    "list_runs",
    "print_comparison",
    "prune_and_tell",
    "relocate_and_tell",
    "resume_and_tell",
    "show_run",
]


def bytes_told(count: int) -> str:
    """Return a number of bytes as people say it: ``0 B``, ``1.3 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes all")


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def list_runs(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print what there is of every run among and in the folders."""
    if list(folders) == [Path("runs")] and not Path("runs").is_dir():
        raise InputError("there is no folder 'runs' here; name the folder of your runs")
    found, others = find_runs(folders)
    statuses = [look_at(folder) for folder in found]
    if as_json:
        print_json({"runs": [s.to_json() for s in statuses], "no_runs": [str(path) for path in others]})
        return
    rows = [
        (
            printable(str(s.folder)),
            s.progress,
            "yes" if s.busy else "",
            _ap(s.best_validation_ap),
            _ap(s.best_search_ap),
            _studies(s),
            len(s.emitted),
            bytes_told(s.size_bytes),
            "-" if s.changed is None else s.changed[:16].replace("T", " "),
        )
        for s in statuses
    ]
    columns = (
        *("run", "state", "busy", "AP (validation)", "AP (searches)", "searches", "networks", "size"),
        "last change (UTC)",
    )
    print_table(f"{len(rows)} run{'' if len(rows) == 1 else 's'}", columns, rows)
    for status in statuses:
        for problem in status.problems:
            note(f"{status.folder}: {problem}")
    if others:
        some = ", ".join(path.name for path in others[:5]) + (", ..." if len(others) > 5 else "")
        note(f"no runs, left out: {some}")


def _studies(status: RunStatus) -> str:
    there = [study for study in status.studies if study.state != "deleted"]
    stopped = sum(study.state == "interrupted" for study in there)
    return f"{len(there)}" + (f" ({stopped} interrupted)" if stopped else "")


def show_run(folder: Path, *, as_json: bool) -> None:
    """Print what there is of one run."""
    if not RunDirectory.is_run(folder):
        raise InputError(
            f"'{folder}' is no run directory (it has no recipe.yaml); 'nas runs list' finds some"
        )
    status = look_at(folder)
    parts = {
        path.name: size_of(path) for path in sorted(folder.iterdir()) if path.is_dir() and size_of(path) > 0
    }
    if as_json:
        print_json({**status.to_json(), "images": images_of(folder), "sizes": parts})
        return
    lines = {
        "run": str(folder),
        "recipe": status.name,
        "state": status.progress,
        "at work now": status.busy or "no command",
        "AP in validation": f"{_ap(status.best_validation_ap)} (mean of largest and smallest network, best)",
        "images": ", ".join(f"{name} {told}" for name, told in images_of(folder).items()) or "not noted",
        "emitted": ", ".join(status.emitted) or "none",
        "size": f"{bytes_told(status.size_bytes)}"
        + "".join(f", {name} {bytes_told(size)}" for name, size in parts.items()),
        "last change": status.changed or "-",
    }
    show(lines)
    if status.studies:
        rows = [
            (
                study.name,
                study.state,
                "-" if study.evaluated is None else f"{study.evaluated} of {study.trials}",
                _ap(study.best_ap),
            )
            for study in status.studies
        ]
        title = f"{len(rows)} search{'' if len(rows) == 1 else 'es'}"
        print_table(title, ("study", "state", "networks", "best AP"), rows)
    for problem in status.problems:
        note(problem)


def print_comparison(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print what runs were made with and what came of it."""
    from nas.comparing import LAST_STEPS, compare_runs

    found = compare_runs(folders)
    if as_json:
        print_json(found.to_json())
        return
    names = [outcome.run for outcome in found.outcomes]
    rows = [(name, *("-" if v is None else v for v in values)) for name, values in found.differences.items()]
    if rows:
        print_table(f"{len(rows)} settings differ", ("setting", *names), rows)
    else:
        print("the recipes are the same")
    outcomes = [
        (
            o.run,
            o.state,
            "-" if o.loss is None else f"{o.loss:.6f}",
            _ap(o.ap_largest),
            _ap(o.ap_smallest),
            f"{o.studies}",
            f"{o.networks}",
            f"{o.front}",
            _ap(o.best_search_ap),
        )
        for o in found.outcomes
    ]
    columns = (
        *("run", "state", f"loss (mean of {LAST_STEPS} last steps)", "AP largest", "AP smallest"),
        *("searches", "networks", "on the front", "best AP"),
    )
    print_table("what came of them", columns, outcomes)
    if found.why_not:
        print(printable(f"APs cannot be compared: {found.why_not}"))
    else:
        print("APs were measured on the same images in the same way")


def resume_and_tell(folder: Path, *, as_json: bool) -> None:
    """Go on with what was stopped in a run, and print what that was."""
    from nas.resuming import resume_run

    done = resume_run(folder)
    if as_json:
        print_json({"trained": done.trained, "searched": done.searched, "left": list(done.left)})
        return
    if done.trained is not None:
        show({"trained": str(folder), **done.trained})
    for name, summary in done.searched.items():
        chosen = summary["chosen"]
        told = "no network meets its budget" if chosen is None else f"AP {chosen['ap']:.4f}, {chosen['id']}"
        print(f"search '{name}': {summary['evaluated']} networks evaluated; {told}")
    if done.trained is None and not done.searched:
        print("nothing was interrupted that goes on by itself")
    print("".join(f"{line}\n" for line in done.left), end="")


def prune_and_tell(
    folder: Path, keep: Sequence[str], also: Sequence[str], *, remove: bool, as_json: bool
) -> None:
    """List what a run can do without, or remove it."""
    from nas.pruning import prune_run

    found = prune_run(folder, keep=keep, also=also, remove=remove)
    total = sum(each.size_bytes for each in found)
    if as_json:
        listed = [{"kind": e.kind, "path": str(e.path), "size_bytes": e.size_bytes} for e in found]
        print_json({"removed": remove, "size_bytes": total, "files": listed})
        return
    if not found:
        print("there is nothing to remove")
        return
    rows = [(each.kind, printable(str(each.path)), bytes_told(each.size_bytes)) for each in found]
    print_table("removed" if remove else "can be removed", ("kind", "file or folder", "size"), rows)
    print(f"{bytes_told(total)} {'freed' if remove else 'in all; --yes removes it'}")


def relocate_and_tell(folder: Path, moves: Sequence[str], *, as_json: bool) -> None:
    """Tell a run where its files are now; without moves, list them."""
    from nas.relocating import Moved, paths_of, relocate_run

    done = relocate_run(folder, moves) if moves else Moved(tuple(paths_of(folder)), {}, {}, ())
    if as_json:
        print_json(
            {
                "paths": [{"setting": p.setting, "path": p.path, "there": p.there} for p in done.paths],
                "changed": {name: list(paths) for name, paths in done.changed.items()},
                "same_images": done.images,
                "not_noted": list(done.unknown),
            }
        )
        return
    rows = [(p.setting, printable(p.path), "yes" if p.there else "no") for p in done.paths]
    print_table(f"{len(rows)} paths in the recipe of {folder}", ("setting", "path", "there"), rows)
    if done.images:
        print("the same images: " + ", ".join(f"{name} {told}" for name, told in done.images.items()))
    if done.unknown and done.changed:
        print(f"what they were was not noted: {', '.join(done.unknown)}")
