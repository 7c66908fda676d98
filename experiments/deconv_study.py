"""How much compute does reducing the deconvolutions save, and what does it cost in accuracy?

In a run of ``recipes/coco-lspet-deconv.yaml``, whose space differs in the widths of the deconvolutions alone:

1. *front*: every network of the space is evaluated on the search images (or the guided search looks at
   ``--evaluations`` of them); those on the front, and the uncut head, are measured on the val images of COCO
   and of LSPET, which nothing was chosen by: AP, AP50 and PCK with 95% intervals, and the difference to the
   uncut head on the same resamples of the images.
2. *emitted*: the best network within each of three budgets is emitted (``deconv-reduced-s``, ``-m``, ``-l``).
3. *decoding*: these and the uncut one with the heatmap's highest cell, a quarter cell from it, and DARK, with
   and without the mirrored picture.
4. *distilled*: the middle one trained by itself, for equally long, with and without the uncut network (as the
   supernet has it) for a teacher.

Every measurement is kept in the run's folder, so that the same command continues where it was stopped.

Run: python experiments/deconv_study.py RUN [--part front ...] [--record]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nas.console import note, print_table, progress_bar
from nas.data import Datasets, open_datasets, open_source
from nas.emitting import emit
from nas.plot_style import FAINT, GRID, INK, MUTED, STYLE, save_figure
from nas.recipe import DataSource, Recipe
from nas.run import RunDirectory
from nas.searching import run_searches
from nas.train import make_evaluator, open_supernet, prepare, train
from search_spaces import Arch, SearchSpace, arch_from_json, space_of
from search_spaces.files import read_json, write_json, write_text
from supernet.base import Subnet
from supernet.checkpoint import load_network
from supernet.export import fold_batchnorm
from supernet.pose.bootstrap import compare_resamples, interval_of, resample_ap
from supernet.pose.dataset import PoseDataset
from supernet.pose.diagnosis import diagnose
from supernet.pose.evaluate import scored_joints
from supernet.pose.matching import match_detections
from supernet.pose.topdown import TopDownConfig, predict_people

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine, record_page  # noqa: E402

PARTS = ("front", "emitted", "decoding", "distilled")
RESAMPLES = 1000
BUDGETS = {"s": 0.25, "m": 0.35, "l": 0.5}
"""MACs of the emitted networks, at most, as shares of the uncut network's."""
FRONT_COLUMNS = (
    *("deconvolutions", "MACs", "of the uncut", "AP search"),
    *("AP COCO", "less than uncut", "AP LSPET", "less than uncut", "PCK LSPET"),
)
DECODING_COLUMNS = ("network", "decoding", "mirrored too", "AP COCO", "AP LSPET", "PCK LSPET")
DISTILLED_COLUMNS = ("trained", "AP COCO", "95% interval", "AP LSPET", "95% interval", "PCK LSPET")


class Kept:
    """What was measured, each in a file of the run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is kept under a name, measured now where nothing is."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return dict(read_json(path, "measurement"))
        found = measure()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found


def measured(network: Subnet, data: PoseDataset, config: TopDownConfig) -> dict[str, Any]:
    """Return AP with resamples, AP50 and PCK (a fifth of the torso) of a network on a data set."""
    folded = fold_batchnorm(network.eval())
    with progress_bar(f"{network.arch.id} on {data.where}", len(data)) as bar:
        found = predict_people(folded, data, config, progress=lambda d, n: bar.update(d, n)).detections
    joints = scored_joints(data)
    matches = match_detections(
        data.ground_truth(), found, data.skeleton.sigmas, joints, "coco", config.max_detections
    )
    drawn = resample_ap(matches, RESAMPLES, np.random.default_rng(0))
    stats = matches.stats()
    accuracy = diagnose(
        data.ground_truth(), found, data.skeleton, joints, "coco", config.max_detections
    ).accuracy
    return {
        "AP": stats["AP"],
        "AP50": stats["AP50"],
        "PCK": accuracy.mean(accuracy.of_all),
        "pck_reference": f"{accuracy.fraction} of the {accuracy.reference}",
        "resampled": [None if math.isnan(each) else each for each in drawn.tolist()],
    }


def resamples_of(found: Mapping[str, Any]) -> np.ndarray:
    """Return the APs on resamples; of those that show nobody NaN."""
    return np.array([math.nan if each is None else each for each in found["resampled"]])


def ends(found: Mapping[str, Any]) -> tuple[float, float]:
    """Return the 95% interval of an AP."""
    interval = interval_of(found["AP"], resamples_of(found))
    return interval.low, interval.high


def difference(found: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the difference in AP on the same images, and its 95% interval."""
    value = found["AP"] - other["AP"]
    compared = compare_resamples(value, resamples_of(found) - resamples_of(other))
    return value, compared.low, compared.high


def head_of(arch: Arch) -> str:
    """Return the widths and kernels of the deconvolutions: ``256-128-64 k4``."""
    number = arch.number
    there = [i for i in range(3) if number(f"head.deconv{i}.width")]
    kernels = {number(f"head.deconv{i}.kernel") for i in there}
    widths = "-".join(str(number(f"head.deconv{i}.width")) for i in there)
    return f"{widths} k{'/'.join(map(str, sorted(kernels)))}"


def scored_sets(recipe: Recipe, data: Datasets) -> dict[str, PoseDataset]:
    """Return the val images of COCO (the recipe's own) and of LSPET."""
    for source in recipe.data.training.values():
        assert source.annotations is not None and source.images is not None
        if "lspet" in str(source.annotations):
            val = DataSource(
                source.annotations.with_name(source.annotations.name.replace("train", "val")),
                source.images.with_name("val"),
            )
            return {"COCO": data.val, "LSPET": open_source(val, data.skeleton)}
    raise SystemExit("the recipe trains on no LSPET images")


class Study:
    """The parts of the study, in one run."""

    def __init__(self, run: RunDirectory, evaluations: int | None) -> None:
        self.run, self.recipe = run, run.recipe
        self.data = open_datasets(run.recipe)
        self.space: SearchSpace = run.recipe.build_space(self.data.skeleton)
        self.supernet = open_supernet(run, self.space)
        self.sets = scored_sets(run.recipe, self.data)
        self.kept = Kept(run.folder / "deconv-study")
        self.evaluations = evaluations or self.space.count()
        self.uncut = self.space.largest()

    def config(self, arch: Arch, **changes: Any) -> TopDownConfig:
        """Return the recipe's evaluation for a network."""
        config = self.recipe.evaluation(arch.number("resolution"))
        assert isinstance(config, TopDownConfig)
        return replace(config, **changes)

    def subnet(self, arch: Arch) -> Subnet:
        """Return a network of the supernet with its own statistics."""
        return make_evaluator(self.run, self.data, self.supernet, on="val").subnet(arch)

    def on_both(self, name: str, arch: Arch, network: Callable[[], Subnet], **changes: Any) -> dict[str, Any]:
        """Return what a network reaches on both sets of val images."""
        return {
            each: self.kept.get(
                f"{name}-{each.lower()}",
                lambda data=data: measured(network(), data, self.config(arch, **changes)),  # type: ignore[misc]
            )
            for each, data in self.sets.items()
        }

    def front(self) -> dict[str, Any]:
        """Search, and measure the front and the uncut head on val images."""
        sampler = "exhaustive" if self.evaluations >= self.space.count() else "guided"
        budget = f"macs<={self.space.cost(self.uncut).macs}"
        studies = run_searches(
            self.run, [budget], evaluations=self.evaluations, sampler=sampler, data=self.data
        )
        result = studies.together
        archs = {record.arch.id: record for record in result.front()}
        rows = []
        known = {record.arch.id: record for record in result.evaluated}
        for arch_id in dict.fromkeys([*archs, self.uncut.id]):
            record = known.get(arch_id)
            arch = self.uncut if record is None else record.arch
            found = self.on_both(f"front-{arch.id}", arch, lambda arch=arch: self.subnet(arch))  # type: ignore[misc]
            rows.append(
                {
                    "arch": arch.to_json(),
                    "head": head_of(arch),
                    "macs": self.space.cost(arch).macs,
                    "ap_search": None if record is None else record.ap,
                    **found,
                }
            )
        rows.sort(key=lambda row: int(row["macs"]))
        return {
            "rows": rows,
            "looked_at": len(result.evaluated),
            "sampler": sampler,
            "all": [[record.macs, record.ap] for record in result.evaluated],
        }

    def emitted(self) -> dict[str, Any]:
        """Emit the best known network within each budget; return the archs by name."""
        whole = self.space.cost(self.uncut).macs
        budgets = [f"macs<={int(share * whole)}" for share in BUDGETS.values()]
        studies = run_searches(
            self.run, budgets, evaluations=self.evaluations, sampler="exhaustive", data=self.data
        )
        found = {}
        for size, study in zip(BUDGETS, studies.studies, strict=True):
            record = study.answer.chosen
            assert record is not None
            name = f"deconv-reduced-{size}"
            folder = self.run.folder / "emitted" / name
            if not (folder / "card.json").is_file():
                emit(self.run, self.data, record.arch, folder)
            found[name] = {
                "arch": record.arch.to_json(),
                "head": head_of(record.arch),
                "macs": self.space.cost(record.arch).macs,
                "params": self.space.cost(record.arch).params,
                "ap_search": record.ap,
            }
        return found

    def networks(self) -> dict[str, Callable[[], Subnet]]:
        """Return the emitted networks, read from their files, and the uncut one."""
        folder = self.run.folder / "emitted"

        def load(name: str) -> Callable[[], Subnet]:
            return lambda: load_network(folder / name / "model.safetensors")[0]

        return {
            "uncut": lambda: self.subnet(self.uncut),
            **{f"deconv-reduced-{size}": load(f"deconv-reduced-{size}") for size in BUDGETS},
        }

    def decoding(self) -> list[dict[str, Any]]:
        """Measure every way to read heatmaps."""
        rows = []
        for name, network in self.networks().items():
            arch = network().arch
            for decoding in ("argmax", "quarter", "dark"):
                for flip in (False, True):
                    key = f"decoding-{name}-{arch.id}-{decoding}{'-flip' if flip else ''}"
                    found = self.on_both(key, arch, network, decoding=decoding, flip=flip)
                    rows.append({"network": name, "decoding": decoding, "flip": flip, **found})
        return rows

    def distilled(self, epochs: int) -> list[dict[str, Any]]:
        """Train the middle network by itself, with and without a teacher."""
        arch = arch_from_json(read_json(self.run.folder / "emitted/deconv-reduced-m/arch.json", "arch"))
        teacher = self.run.folder / "emitted" / "uncut"
        if not (teacher / "card.json").is_file():
            emit(self.run, self.data, self.uncut, teacher)
        rows = []
        base = replace(
            self.recipe,
            space=space_of(arch, len(self.data.skeleton)).config(),
            train=replace(self.recipe.train, rule="uniform", epochs=epochs, validate_every=epochs),
        )
        distill = base.train.distill
        for name, changed in (
            ("by annotations alone", distill),
            ("with the uncut network for a teacher", replace(distill, source="teacher", teacher=teacher)),
        ):
            place = "taught" if changed.source == "teacher" else "alone"
            recipe = replace(base, name=place, train=replace(base.train, distill=changed))
            folder = self.run.folder / "deconv-study" / f"{place}-{arch.id}-{epochs}"
            alone = RunDirectory.create(folder, recipe)
            if not alone.trained:
                with alone.locked(), progress_bar(f"training {place}") as bar:
                    train(
                        alone,
                        prepare(recipe, self.data),
                        progress=lambda s, n, row: bar.update(s, n, f"loss {row['total']:.5f}"),
                    )
            space = recipe.build_space(self.data.skeleton)
            evaluator = make_evaluator(alone, self.data, open_supernet(alone, space), on="val")
            found = self.on_both(f"distilled-{folder.name}", arch, lambda e=evaluator: e.subnet(arch))  # type: ignore[misc]
            rows.append({"trained": f"alone, {epochs} epochs, {name}", **found})
        own = self.on_both(f"distilled-supernet-{arch.id}", arch, lambda: self.subnet(arch))
        rows.append({"trained": "in the supernet", **own})
        return rows


def _with_ends(found: Mapping[str, Any]) -> str:
    low, high = ends(found)
    return f"{found['AP']:.3f} ({low:.3f} to {high:.3f})"


def _signed(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def front_rows(front: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of the front; the last row is the uncut head."""
    rows, uncut = front["rows"], front["rows"][-1]
    return [
        (
            row["head"],
            f"{row['macs'] / 1e6:.1f} M",
            f"{row['macs'] / uncut['macs']:.0%}",
            "-" if row["ap_search"] is None else f"{row['ap_search']:.3f}",
            *(
                text
                for name in ("COCO", "LSPET")
                for text in (
                    _with_ends(row[name]),
                    "-" if row is uncut else _signed(difference(row[name], uncut[name])),
                )
            ),
            f"{row['LSPET']['PCK']:.3f}",
        )
        for row in rows
    ]


def draw(front: Mapping[str, Any], path: Path) -> None:
    """Draw what each network loses against the uncut head on val images, with the difference's interval."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        uncut = front["rows"][-1]
        for axes, name in zip(figure.subplots(1, 2), ("COCO", "LSPET"), strict=True):
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.axhline(0, color=FAINT, linewidth=1)
            labelled = -math.inf
            for row in front["rows"]:
                value, low, high = (0.0, 0.0, 0.0) if row is uncut else difference(row[name], uncut[name])
                share = 100 * row["macs"] / uncut["macs"]
                colour = "#b45309" if row is uncut else "#1d6fa5"
                bar = [[value - low], [high - value]]
                axes.errorbar(share, value, bar, fmt="o", color=colour, ecolor=FAINT, capsize=2.5)
                if row is not uncut and share - labelled < 6.5:
                    continue  # the table has them all
                labelled = share
                axes.annotate(
                    row["head"].partition(" ")[0],
                    (share, low),
                    xytext=(0, -4),
                    textcoords="offset points",
                    fontsize=7.5,
                    rotation=90,
                    ha="center",
                    va="top",
                    color=INK if row is uncut else MUTED,
                )
            lower, upper = axes.get_ylim()
            axes.set_ylim(lower - 0.3 * (upper - lower), upper)
            axes.set(
                title=f"{name} val: the uncut head has {uncut[name]['AP']:.3f} AP",
                xlabel="MACs, % of the uncut network's",
                ylabel="difference in AP (bars: 95%)",
            )
        save_figure(figure, (path,))


def page(report: Mapping[str, Any], name: str) -> str:
    """Return the record for people."""
    front = report["front"]
    uncut = front["rows"][-1]
    after = [
        "*AP search*: on the search images, by which the front was found. *less than uncut*: difference in AP"
        " on the same resamples of the val images, with its 95% interval. *PCK*: joints within"
        f" {uncut['LSPET']['pck_reference']} of their place. Boxes are the annotated ones, no mirrored"
        " picture, DARK decoding. AP is low: the networks saw few pictures, at 128 pixels, with LSPET's noisy"
        " annotations; what can be read off is how the heads compare.",
        f"![difference in AP over MACs]({name}.png)",
    ]

    def table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        after.append(
            "\n".join(
                [
                    *(f"## {heading}", ""),
                    "| " + " | ".join(columns) + " |",
                    "|---|" + "---:|" * (len(columns) - 1),
                    *("| " + " | ".join(row) + " |" for row in rows),
                ]
            )
        )

    if "emitted" in report:
        rows = [
            (
                each,
                row["head"],
                f"{row['macs'] / 1e6:.1f} M",
                f"{row['params'] / 1e6:.2f} M",
                f"{row['ap_search']:.3f}",
            )
            for each, row in report["emitted"].items()
        ]
        table("Emitted", ("network", "deconvolutions", "MACs", "parameters", "AP search"), rows)
    if "decoding" in report:
        table("Decoding", DECODING_COLUMNS, decoding_rows(report["decoding"]))
    if "distilled" in report:
        table("Distillation", DISTILLED_COLUMNS, distilled_rows(report["distilled"]))
    return record_page(
        "What reducing the deconvolutions saves",
        f"'{report['run']}' ({report['networks_in_space']} networks that differ in the widths of three"
        f" deconvolutions; {report['input']} pixels, where MACs are a fraction of those at 256x192), trained"
        f" for {report['steps']} steps of {report['batch']} people. {front['looked_at']} networks looked at"
        f" on {report['images']['search']} search images; measured on {report['images']['COCO']} val images"
        f" of COCO and {report['images']['LSPET']} of LSPET.",
        FRONT_COLUMNS,
        front_rows(front),
        after,
        report,
    )


def decoding_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table of decodings."""
    return [
        (
            row["network"],
            row["decoding"],
            "yes" if row["flip"] else "no",
            f"{row['COCO']['AP']:.3f}",
            f"{row['LSPET']['AP']:.3f}",
            f"{row['LSPET']['PCK']:.3f}",
        )
        for row in rows
    ]


def distilled_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table of trainings."""
    return [
        (
            row["trained"],
            *(
                text
                for name in ("COCO", "LSPET")
                for text in (f"{row[name]['AP']:.3f}", "{:.3f} to {:.3f}".format(*ends(row[name])))
            ),
            f"{row['LSPET']['PCK']:.3f}",
        )
        for row in rows
    ]


def _without_resamples(value: Any) -> Any:
    """Return a report without the thousands of APs on resamples; their intervals take their place."""
    if isinstance(value, Mapping):
        found = {key: _without_resamples(each) for key, each in value.items() if key != "resampled"}
        if "resampled" in value:
            found["interval"] = list(ends(value))
        return found
    return [_without_resamples(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Carry the study out, tell and record."""
    options = argparse.ArgumentParser(prog="python experiments/deconv_study.py", description=__doc__)
    options.add_argument("run", type=Path, help="a trained run of recipes/coco-lspet-deconv.yaml")
    options.add_argument("--part", action="append", choices=PARTS, help="only these (default: all)")
    options.add_argument("--evaluations", type=int, help="networks looked at (default: all of the space)")
    options.add_argument(
        "--epochs", type=int, default=6, help="of the trainings alone (default: %(default)s)"
    )
    options.add_argument("--record", action="store_true", help="write deconv.json, .md and .png")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    given = options.parse_args()
    study = Study(RunDirectory.open(given.run), given.evaluations)
    parts = given.part or PARTS
    recipe = study.recipe
    report: dict[str, Any] = {
        "run": recipe.name,
        "networks_in_space": study.space.count(),
        "input": "x".join(map(str, study.uncut.size)),
        "steps": read_json(study.run.folder / "trained.json", "note on the training")["steps"],
        "batch": recipe.train.batch_size,
        "images": {
            "search": len(study.data.search),
            **{name: len(data) for name, data in study.sets.items()},
        },
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python experiments/deconv_study.py RUN --epochs {given.epochs} --record",
        "front": study.front(),
    }
    print_table("front", FRONT_COLUMNS, front_rows(report["front"]))
    if "emitted" in parts:
        report["emitted"] = study.emitted()
    if "decoding" in parts:
        report["decoding"] = study.decoding()
        print_table("decoding", DECODING_COLUMNS, decoding_rows(report["decoding"]))
    if "distilled" in parts:
        report["distilled"] = study.distilled(given.epochs)
        print_table("distillation", DISTILLED_COLUMNS, distilled_rows(report["distilled"]))
    if given.record:
        draw(report["front"], given.results / "deconv.png")
        write_text(given.results / "deconv.md", page(report, "deconv"))
        write_json(given.results / "deconv.json", _without_resamples(report))
        note("recorded in deconv.json, .md and .png")


if __name__ == "__main__":
    finish(main)
