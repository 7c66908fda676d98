"""The papers' studies: variants of one network, each trained alone, beside what the papers published.

- ``kernels``: depthwise kernels of 3, 5, 7 and 9 in all stages (arXiv 2205.01271: 41.7, 50.7, 54.7, 53.3 AP);
- ``fusion``: the fusion deconv head, and the head that sees the last features alone (54.7 and 47.1 AP);
- ``deconv``: deconvolutions of 256, 128, 64 and 32 channels (arXiv 2111.04226: fewer cost no accuracy);
- ``shrinking``: the four configurations of HigherHRNet's gradual shrinking; costs alone, nothing is trained.

What is varied is the largest network of the recipe's space; by default a small one on drawn people. Its own
figures and those that the paper published of its own network stand side by side: they are of other networks
on other images, so what can be compared is what a variant gains or loses, not its AP.

Trainings are kept in ``--out`` and taken up again by the same command; variants that two studies share are
trained once.

Run: python experiments/studies.py kernels [--recipe RECIPE] [--set KEY=VALUE] [--epochs N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nas.console import note, print_table, progress_bar
from nas.data import Datasets, open_datasets
from nas.latency import load_predictors
from nas.plot_style import FAINT, GRID, MUTED, STYLE, picture_files, save_figure
from nas.recipe import DataSource, Recipe, load_recipe
from nas.trust.jobs import train_all, usual_jobs
from nas.trust.scores import Score
from nas.trust.standalone import StandaloneFolder, Task, standalone_identity
from search_spaces import LITEPOSE, UNFUSED, Arch, InputError, RunError, get_arch, listed_networks
from search_spaces.deconv import DeconvFamily
from search_spaces.errors import did_you_mean
from search_spaces.files import locked, make_folder, write_json, write_text
from search_spaces.litepose import STAGES
from supernet.pose.bootstrap import compare_resamples, interval_of, resample_ap

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import finish, machine, record_page  # noqa: E402

STUDIES = ("kernels", "fusion", "deconv", "shrinking")
RECIPES = {
    "kernels": HERE / "recipes" / "study-people.yaml",
    "fusion": HERE / "recipes" / "study-people.yaml",
    "deconv": HERE / "recipes" / "study-people-deconv.yaml",
}
RESAMPLES = 1000
LEARNED = 0.05
"""An AP below which a network has not learned enough to be compared."""
KERNELS = {3: (3.77, 41.7), 5: (4.14, 50.7), 7: (4.69, 54.7), 9: (5.33, 53.3)}
"""Published GMACs and AP on CrowdPose, by kernel: arXiv 2205.01271."""
FUSION = {"fused": (4.69, 54.7), "unfused": (4.06, 47.1)}
SHRINKING = (50.4, 51.0, 51.8, 53.0)
"""Published AP on CrowdPose of the four configurations."""
DECONVS = (256, 128, 64, 32)


@dataclass(frozen=True)
class Published:
    """What a paper says of its own variant: billions of operations, in its count, and AP."""

    macs_g: float
    ap: float
    ours_g: float
    """Our count of the paper's network, in the paper's way."""


@dataclass(frozen=True)
class Variant:
    """One network of a study."""

    name: str
    arch: Arch
    published: Published | None = None


def kernels(base: Arch) -> list[Variant]:
    """Return the base with each depthwise kernel in all stages."""
    _must_be_litepose(base, "kernels")
    paper = get_arch("litepose-prune-s")

    def with_kernel(arch: Arch, kernel: int) -> Arch:
        return arch.replace(**{f"stage{i}__kernel": kernel for i in range(STAGES)})

    return [
        Variant(
            f"{k}x{k}",
            with_kernel(base, k),
            Published(*KERNELS[k], with_kernel(paper, k).cost(14).macs_paper / 1e9),
        )
        for k in KERNELS
    ]


def fusion(base: Arch) -> list[Variant]:
    """Return the base with the fusion head and without."""
    _must_be_litepose(base, "fusion")
    found = []
    for name, family, paper in (
        ("unfused", UNFUSED, "prune-s-unfused"),
        ("fused", LITEPOSE, "litepose-prune-s"),
    ):
        published = Published(*FUSION[name], get_arch(paper).cost(14).macs_paper / 1e9)
        found.append(Variant(name, family.arch(base.as_dict()), published))
    return found


def _must_be_litepose(base: Arch, study: str) -> None:
    if base.family not in (LITEPOSE, UNFUSED):
        raise InputError(
            f"the study '{study}' varies a LitePose network, but the recipe's space is of {base.family.name}"
        )


def deconv(base: Arch) -> list[Variant]:
    """Return the base with deconvolutions of each width."""
    if not isinstance(base.family, DeconvFamily):
        raise InputError(
            f"the study 'deconv' varies a deconv network, but the recipe's space is of {base.family.name}"
        )
    there = [i for i in range(3) if base.number(f"head.deconv{i}.width")]
    return [
        Variant(f"{len(there)} x {w}", base.replace(**{f"head__deconv{i}__width": w for i in there}))
        for w in DECONVS
    ]


MAKE = {"kernels": kernels, "fusion": fusion, "deconv": deconv}
BASELINE = {"kernels": "3x3", "fusion": "unfused", "deconv": None}
"""What differences are taken to; None: the first."""


def trained(
    recipe: Recipe, data: Datasets, variants: Sequence[Variant], out: Path, jobs: int | None
) -> dict[Task, Score]:
    """Train what is not trained yet; return the scores of all trainings.

    Raises
    ------
    RunError
        If the folder's trainings rest on other settings, another command is at work in it, or one fails.
    """
    kept = StandaloneFolder(out / "trainings")
    seeds = range(recipe.trust.seed, recipe.trust.seed + recipe.trust.repeats)
    tasks = [Task(variant.arch, seed) for seed in seeds for variant in variants]
    make_folder(kept.folder)
    with locked(
        kept.folder / ".lock", f"another command trains into '{kept.folder}'; wait for it or stop it"
    ):
        try:
            kept.check(standalone_identity(recipe, data, recipe.build_space(data.skeleton)))
        except RunError as error:
            raise RunError(str(error).replace("--standalone", "--out")) from None
        names = {variant.arch.id: variant.name for variant in variants}
        number = jobs or usual_jobs(recipe)
        lacking = sum(kept.score(task) is None for task in tasks)
        note(f"{lacking} of {len(tasks)} networks are to be trained, {number} at a time")
        with progress_bar("trainings") as bar:
            steps_done: dict[Task, int] = {}

            def told(task: Task, done: int, steps: int) -> None:
                steps_done[task] = done
                bar.update(sum(steps_done.values()), lacking * steps, names[task.arch.id])

            train_all(recipe, kept, tasks, number, told, data)
        found = {task: kept.score(task) for task in tasks}
    whole = {task: score for task, score in found.items() if score is not None}
    if len(whole) < len(tasks):
        raise RunError(f"trainings in '{kept.folder}' vanished meanwhile; start again")
    return whole


def row_of(
    variant: Variant,
    baseline: Variant,
    scores: Mapping[Task, Score],
    seeds: Sequence[int],
    joints: int,
    latency: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the figures of one variant: costs, AP with interval, difference to the baseline."""
    cost = variant.arch.cost(joints)

    def drawn(arch: Arch) -> tuple[float, np.ndarray]:
        """AP and resamples, means over the seeds; the same images in every resample."""
        every = [scores[Task(arch, seed)] for seed in seeds]
        resampled = [resample_ap(s.matches, RESAMPLES, np.random.default_rng(0)) for s in every]
        return float(np.mean([s.ap for s in every])), np.mean(resampled, axis=0)

    value, resampled = drawn(variant.arch)
    interval = interval_of(value, resampled)
    other, others = drawn(baseline.arch)
    compared = compare_resamples(value - other, resampled - others)
    return {
        "variant": variant.name,
        "arch": variant.arch.to_json(),
        "params": cost.params,
        "macs": cost.macs,
        "macs_paper": cost.macs_paper,
        "ms": {name: p.predict(variant.arch.blocks(joints)).ms for name, p in latency.items()},
        "ap": value,
        "ap_low": interval.low,
        "ap_high": interval.high,
        "aps": [scores[Task(variant.arch, seed)].ap for seed in seeds],
        "less_baseline": value - other,
        "less_baseline_low": compared.low,
        "less_baseline_high": compared.high,
        "published": None
        if variant.published is None
        else {
            "macs_g": variant.published.macs_g,
            "our_count_g": round(variant.published.ours_g, 6),
            "ap": variant.published.ap,
        },
    }


def columns_of(report: Mapping[str, Any]) -> list[str]:
    """Return the table's columns."""
    rows = report["rows"]
    ms = [f"ms, {name}" for name in rows[0]["ms"]]
    published = rows[0]["published"] is not None
    paper = ("the paper's network, G", "by our count", "the paper's AP") if published else ()
    return [
        *("variant", "parameters", "MACs (M)", "paper's count (M)", *ms, "AP", "95%"),
        *(f"against {report['baseline']}", "95%", *paper),
    ]


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return a row's cells."""
    published = row["published"]
    paper = (
        (f"{published['macs_g']:.2f}", f"{published['our_count_g']:.2f}", f"{published['ap']:.1f}")
        if published
        else ()
    )
    return [
        row["variant"],
        f"{row['params']:,}",
        f"{row['macs'] / 1e6:.1f}",
        f"{row['macs_paper'] / 1e6:.1f}",
        *(f"{ms:.2f}" for ms in row["ms"].values()),
        f"{row['ap']:.3f}",
        f"{row['ap_low']:.3f} to {row['ap_high']:.3f}",
        f"{row['less_baseline']:+.3f}",
        f"{row['less_baseline_low']:+.3f} to {row['less_baseline_high']:+.3f}",
        *paper,
    ]


def draw(report: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    """Draw AP over MACs with intervals; beside it the paper's figures where it has them."""
    rows = report["rows"]
    published = [row for row in rows if row["published"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2 if published else 5.2, 4.0), layout="constrained")
        panels = figure.subplots(1, 2 if published else 1, squeeze=False)[0]
        own = [(row["macs"] / 1e6, row["ap"], row["variant"]) for row in rows]
        bars = [[row["ap"] - row["ap_low"] for row in rows], [row["ap_high"] - row["ap"] for row in rows]]
        panels[0].errorbar(
            [x for x, _, _ in own],
            [y for _, y, _ in own],
            bars,
            fmt="o",
            color="#1d6fa5",
            ecolor=FAINT,
            capsize=3,
        )
        panels[0].set(
            title=f"{report['study']}: trained here", xlabel="true MACs (M)", ylabel="AP (bars: 95%)"
        )
        _label(panels[0], own)
        if published:
            theirs = [(r["published"]["macs_g"], r["published"]["ap"] / 100, r["variant"]) for r in published]
            panels[1].plot([x for x, _, _ in theirs], [y for _, y, _ in theirs], "o", color="#b45309")
            panels[1].set(
                title="as the paper published it", xlabel="GMACs, the paper's count", ylabel="AP, CrowdPose"
            )
            _label(panels[1], theirs)
        return save_figure(figure, picture_files(path))


def _label(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.15)
    for x, y, name in points:
        axes.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8.5, color=MUTED)


def shrinking() -> list[list[str]]:
    """Return a row for each configuration of gradual shrinking: costs, and what was published."""
    rows = []
    for i, ap in enumerate(SHRINKING, 1):
        network = listed_networks()[f"gradual-shrinking-{i}"]
        cost, (published,) = network.cost(14), network.published
        blocks = network.settings.get("blocks", [[4] * n for n in (2, 3, 4)])
        rows.append(
            [
                str(i),
                str(network.settings["width"]),
                " / ".join("-".join(map(str, each)) for each in blocks),
                f"{cost.params / 1e6:.2f}",
                f"{cost.macs / 1e9:.2f}",
                f"{cost.macs_paper / 1e9:.2f}",
                f"{published.macs_g:.2f}",
                f"{ap:.1f}",
            ]
        )
    return rows


SHRINKING_COLUMNS = (
    *("configuration", "width", "blocks of each branch, by stage", "params (M)", "true MACs (G)"),
    *("paper's count (G)", "published (G)", "published AP"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one study; by default the one that the command line names."""
    made = argparse.ArgumentParser(prog="python experiments/studies.py", description=__doc__.split("\n")[0])
    made.add_argument("study", help=", ".join(STUDIES))
    made.add_argument("--recipe", type=Path, help="data, space and settings; default: drawn people")
    made.add_argument("--set", dest="sets", action="append", metavar="KEY=VALUE", help="change a setting")
    made.add_argument("--epochs", type=int, help="passes over the training images; default: the recipe's")
    made.add_argument("--repeats", type=int, help="trainings of each variant, with different seeds")
    made.add_argument("--jobs", type=int, help="trainings at a time; default: one per core")
    made.add_argument("--latency", action="append", metavar="TARGET", help="also milliseconds, from a table")
    made.add_argument("--tables", type=Path, action="append", help="folder of latency tables")
    made.add_argument("--out", type=Path, help="where everything goes; default: runs/studies/RECIPE")
    given = made.parse_args(arguments)
    if given.study not in STUDIES:
        raise InputError(f"there is no study '{given.study}'{did_you_mean(given.study, STUDIES)}")
    if given.study == "shrinking":
        print_table("gradual shrinking at 512 x 512, 14 joints", SHRINKING_COLUMNS, shrinking())
        note("counts alone: nothing is trained, the APs are the paper's; the blocks of 2 and 3 are inferred")
        return 0
    for option in ("epochs", "repeats", "jobs"):
        if (value := getattr(given, option)) is not None and value < 1:
            raise InputError(f"--{option} is at least 1, not {value}")
    recipe = load_recipe(given.recipe or RECIPES[given.study], given.sets)
    if given.repeats:
        recipe = replace(recipe, trust=replace(recipe.trust, repeats=given.repeats))
    if given.epochs:
        recipe = replace(recipe, trust=replace(recipe.trust, epochs=given.epochs))
    if recipe.init is not None and given.study != "deconv":
        raise InputError(
            f"the study '{given.study}' trains from fresh weights: what init names does not fit all variants;"
            " take 'init' out of the recipe"
        )
    latency = load_predictors(given.latency or (), given.tables)
    data = open_datasets(recipe)
    space = recipe.build_space(data.skeleton)
    variants = MAKE[given.study](space.largest())
    out = given.out or Path("runs") / "studies" / recipe.name
    scores = trained(recipe, data, variants, out, given.jobs)
    seeds = range(recipe.trust.seed, recipe.trust.seed + recipe.trust.repeats)
    name = BASELINE[given.study] or variants[0].name
    baseline = next(variant for variant in variants if variant.name == name)
    rows = [row_of(v, baseline, scores, seeds, space.joints, latency) for v in variants]
    report = {
        "study": given.study,
        "recipe": recipe.name,
        "joints": space.joints,
        "epochs": recipe.trust.epochs or recipe.train.epochs,
        "seeds": list(seeds),
        "images": {"train": len(data.train), "search": len(data.search)},
        "drawn": isinstance(recipe.data.train, DataSource) and recipe.data.train.synthetic is not None,
        "baseline": name,
        "rows": rows,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"{made.prog} {given.study} --recipe {(given.recipe or RECIPES[given.study]).name}"
        + "".join(f" --set {each}" for each in given.sets or ())
        + (f" --epochs {given.epochs}" if given.epochs else "")
        + (f" --repeats {given.repeats}" if given.repeats else ""),
    }
    print_table(
        f"{given.study}: {len(variants)} networks, each trained alone",
        columns_of(report),
        [cells_of(row) for row in rows],
    )
    for line in caveats(report):
        note(line)
    write_json(out / f"{given.study}.json", report)
    write_text(out / f"{given.study}.md", page(report))
    files = [
        out / f"{given.study}.json",
        out / f"{given.study}.md",
        *draw(report, out / f"{given.study}.png"),
    ]
    note(f"wrote {', '.join(map(str, files))}")
    return 0


def caveats(report: Mapping[str, Any]) -> list[str]:
    """Return what stands against taking the figures for a result."""
    told = []
    if report["drawn"]:
        told.append("The images are drawn people: a demonstration, and no result about photographs.")
    if all(row["ap"] < LEARNED for row in report["rows"]):
        told.append(
            f"No variant has learned to find people (all APs are below {LEARNED:g}), so nothing can be"
            " compared: train longer (--epochs), or on more images."
        )
    return told


def page(report: Mapping[str, Any]) -> str:
    """Return the record for people."""
    seeds = len(report["seeds"])
    times = "one training each" if seeds == 1 else f"means of {seeds} trainings each"
    images = report["images"]
    before = (
        f"Variants of one network, each trained alone at equal settings (recipe `{report['recipe']}`,"
        f" {report['epochs']} epochs of {images['train']} images, {times}); AP on {images['search']} images"
        " that no training has seen."
    )
    after = [
        *caveats(report),
        "*95%* is the interval over images (bootstrap, the same resamples for all variants). By how much"
        " another training would differ is not in it.",
    ]
    if report["rows"][0]["published"]:
        after.append(
            "The paper's figures are of another, larger network on CrowdPose: compare what a variant gains,"
            " not its AP."
        )
    return record_page(
        f"Study: {report['study']}",
        before,
        columns_of(report),
        [cells_of(row) for row in report["rows"]],
        after,
        report,
    )


if __name__ == "__main__":
    finish(main)
