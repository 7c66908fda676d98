"""What ``nas trust`` tells people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.console import print_json, print_table
from nas.run import RunDirectory
from nas.trust.checking import Standalone, train_standalone
from search_spaces import InputError

__all__ = ["run_trust"]


def run_trust(
    run: RunDirectory,
    standalone: Path | None,
    *,
    only_standalone: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Carry out ``nas trust`` and print what it found."""
    if standalone is None and not RunDirectory.is_run(run.folder):
        raise InputError(
            f"there is no run '{run.folder}' to keep stand-alone trainings in; name a folder (--standalone)"
        )
    trained = train_standalone(run, standalone, jobs=jobs)
    if only_standalone:
        _print_standalone(trained, run, as_json)


def _print_standalone(trained: Standalone, run: RunDirectory, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for arch in trained.archs:
        aps = [{"seed": score.about["seed"], "ap": score.ap} for score in trained.of(arch)]
        rows.append({"id": arch.id, "arch": arch.to_json(), "standalone": aps})
    if as_json:
        print_json({"archs": rows})
        return
    table = [
        (arch.id, arch["resolution"], *(f"{score.ap:.4f}" for score in trained.of(arch)))
        for arch in trained.archs
    ]
    seeds = [f"AP, seed {score.about['seed']}" for score in trained.of(trained.archs[0])]
    print_table(
        f"{len(table)} networks trained stand-alone, by rising MACs", ("network", "px", *seeds), table
    )
