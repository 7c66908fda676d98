"""What ``nas trust`` tells people."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nas.console import note, print_json, print_table, progress_bar
from nas.run import RunDirectory
from nas.trust.checking import Standalone, judged, train_standalone
from nas.trust.plots import plot_sensitivity, plot_trust
from nas.trust.report import TrustReport, report_path
from nas.trust.sensitivity import Sensitivity, measure_sensitivity
from search_spaces import InputError, space_from_config

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
    if only_standalone:
        with run.locked() if standalone is None else nullcontext():
            trained = train_standalone(run, standalone, jobs=jobs)
        _print_standalone(trained, as_json)
        return
    _check_probes(run)
    with run.locked():
        report = judged(run, standalone, jobs=jobs)
        sensitivity = _sensitivity(run)
        made = draw(run, report, sensitivity)
    if as_json:
        told = None if sensitivity is None else sensitivity.to_json()
        files = [str(path) for path in made]
        print_json(
            {
                **{"report": str(report_path(run.folder)), "files": files},
                **report.to_json(),
                "sensitivity": told,
            }
        )
        return
    print_report(report)
    if sensitivity is not None:
        print_table("AP against calibration images", Sensitivity.COLUMNS, sensitivity.rows())
        print(sensitivity.line())
    note(f"wrote {report_path(run.folder).parent}")


def _check_probes(run: RunDirectory) -> None:
    """Refuse more probes than there are networks, before hours of training."""
    networks = space_from_config(run.recipe.space, "space").count()
    if run.recipe.trust.probes > networks:
        raise InputError(
            f"trust.probes is {run.recipe.trust.probes}, but the space holds {networks} different networks"
        )


def _sensitivity(run: RunDirectory) -> Sensitivity | None:
    """Return how AP depends on the number of calibration images, unless the recipe leaves that out."""
    probes = run.recipe.trust.probes
    if probes == 0:
        return None
    with progress_bar("AP against calibration images") as bar:
        return measure_sensitivity(run, networks=probes, progress=bar.update)


def draw(run: RunDirectory, report: TrustReport, sensitivity: Sensitivity | None) -> list[Path]:
    """Draw what was found as ``RUN/trust/trust`` and ``sensitivity``, PNG and SVG; return the files."""
    folder = report_path(run.folder).parent
    made = [*plot_trust(report, folder / "trust", f"{run.recipe.name}: can the ranking be trusted?")]
    if sensitivity is not None:
        made += plot_sensitivity(sensitivity, folder / "sensitivity")
    return made


def _print_standalone(trained: Standalone, as_json: bool) -> None:
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


def print_report(report: TrustReport) -> None:
    """Print the networks with both APs, the agreement of the rankings, and the verdict."""
    by_supernet, by_standalone = map(_places, _aps(report))
    rows = []
    for i, each in enumerate(report.archs):
        rows.append(
            (
                each.arch.id,
                each.arch["resolution"],
                f"{each.macs / 1e6:.1f}",
                f"{each.supernet.value:.4f}",
                f"{each.supernet.low:.3f} to {each.supernet.high:.3f}",
                by_supernet[i],
                f"{each.standalone_ap:.4f}",
                by_standalone[i],
            )
        )
    columns = ("network", "px", "MACs (M)", "AP in the supernet", "95%", "place", "AP alone", "place")
    print_table(f"{len(rows)} networks in the supernet and trained alone", columns, rows)
    found = report.statistics
    rankings = {"the supernet's AP": found.supernet, "MACs alone": found.macs}
    tops = list(found.supernet.regret)
    figures = [
        (
            name,
            *(f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in (r.kendall, r.spearman)),
            *(f"{r.regret[top]:.4f}" for top in tops),
        )
        for name, r in rankings.items()
    ]
    regrets = [f"regret of the first {top}" if top > 1 else "regret of the first" for top in tops]
    title = "Agreement with the stand-alone ranking, 95% intervals; regret in AP"
    print_table(title, ("ranking by", "Kendall tau", "Spearman rho", *regrets), figures)
    print("\n".join(report.verdict))


def _aps(report: TrustReport) -> tuple[list[float], list[float]]:
    return [a.supernet.value for a in report.archs], [a.standalone_ap for a in report.archs]


def _places(values: list[float]) -> list[int]:
    """Return the place of each value, the highest first; equal ones share the better place."""
    return [1 + sum(other > value for other in values) for value in values]
