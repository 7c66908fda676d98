"""The ``nas`` command. Thin: it reads options, calls the rooms below, prints what they return.

Everything heavy is imported inside the command that needs it, so that ``nas --help`` and ``nas cost`` answer
at once.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

from nas.data_cli import data_app
from nas.runs_cli import runs_app
from nas.stopping import Stops
from nas.tables_cli import tables_app
from search_spaces import (
    SPACES,
    Arch,
    InputError,
    LitePoseNasError,
    RunError,
    listed_networks,
    named_archs,
)
from search_spaces.errors import ToldElsewhereError
from search_spaces.files import MOST_PIXELS

if TYPE_CHECKING:
    from nas.run import RunDirectory
    from nas.searching import Studies, Study

app = typer.Typer(
    name="nas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Search pose networks that fit your device.

    Train a weight-sharing supernet once, search it under a MACs or latency budget, emit the network you
    choose.

    **First time here?** `nas demo` does the whole job on drawn people in a few minutes. Then, on your own
    data: `nas train RECIPE` → `nas profile this-machine --for RECIPE` → `nas search RUN --max-latency
    30ms@TARGET` → `nas emit RUN` → `nas export MODEL` → `nas verify MODEL TARGET` → `nas report RUN`.
    """,
)


def _version(wanted: bool) -> None:
    """Print which version this is, and on what it runs: what a report of an error should say."""
    if not wanted:
        return
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("litepose-nas", "torch"))
    print(f"{packages}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.add_typer(data_app, name="data")
app.add_typer(tables_app, name="tables")
app.add_typer(runs_app, name="runs")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a recipe setting, e.g. train.epochs=20. Repeatable."
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result goes.")]
Joints = Annotated[int, typer.Option(min=1, help="Keypoints that the network predicts.")]
MaxMacs = Annotated[
    str | None,
    typer.Option("--max-macs", metavar="MACS", help="Budget of true multiply-accumulates, e.g. 1.5G."),
]
MaxParams = Annotated[
    str | None, typer.Option("--max-params", metavar="N", help="Budget of parameters, e.g. 2M.")
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="BYTES", help="Budget of the weights as 32-bit floats, e.g. 8MB."),
]
MaxLatency = Annotated[
    list[str] | None,
    typer.Option(
        "--max-latency",
        metavar="MS@TARGET",
        help="Latency budget on a profiled target, e.g. 30ms@this-machine-onnxruntime-fp32-2t. Repeatable.",
    ),
]
MinAp = Annotated[
    str | None,
    typer.Option("--min-ap", metavar="AP", help="Good enough: the cheapest that reaches it is chosen."),
]
LikeArch = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="ARCH[*FACTOR]",
        help="As cheap as this network (name or arch file), times a factor, in what is traded off.",
    ),
]
Tables = Annotated[
    list[Path] | None,
    typer.Option(
        "--tables", help="Folder of latency tables (default: ./tables and the run's own). Repeatable."
    ),
]
StrictTables = Annotated[
    bool,
    typer.Option(
        "--strict-tables",
        help="Refuse networks for which a latency table holds estimates or fits, or nothing.",
    ),
]
Model = Annotated[
    Path,
    typer.Argument(
        help="An emitted folder, a .safetensors, a research .pth, or an .onnx, .xml, .param, .tflite."
    ),
]
ModelJoints = Annotated[
    str | None,
    typer.Option(help="Joints of the model: a known skeleton or a file; default: the model's own."),
]
Resolution = Annotated[int | None, typer.Option(min=32, help="Short side, px; default: the model's own.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")]
Boxes = Annotated[
    str | None,
    typer.Option(
        metavar="annotated|whole-image|FILE",
        help="For top-down networks: where people are, such as a detector's JSON of boxes.",
    ),
]
Decoding = Annotated[
    str | None,
    typer.Option(metavar="dark|quarter|argmax", help="For top-down networks: how heatmaps are read."),
]
Project = Annotated[bool, typer.Option("--project", help="Group at input resolution (slower).")]
Scales = Annotated[
    str | None,
    typer.Option(metavar="S,S,...", help="Average over these multiples of the resolution: 0.5,1,1.5."),
]


# -- costs and spaces --------------------------------------------------------------------------------------


@app.command()
def cost(
    arch: Annotated[str, typer.Argument(help="A named arch (see 'nas spaces') or an arch .json file.")],
    joints: Joints = 14,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Input size in pixels; default: the network's own.")
    ] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option("--latency", metavar="TARGET", help="Also the latency on it. Repeatable."),
    ] = None,
    tables: Tables = None,
    strict_tables: StrictTables = False,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    as_json: Json = False,
) -> None:
    """What a network costs: parameters, true MACs, MACs in the paper's convention, latency.

    The published LitePose MACs count stride-2 deconvs at output resolution, plus BN and ReLU; that figure is
    'macs_paper'. 'macs' is what the convolutions really do. Others' networks, such as higherhrnet-w48, have
    costs too, and on targets with a roofline latencies; that is all that is known of them.

    Example: nas cost litepose-s --joints 14 --json
    """
    from nas.console import print_json, print_table, show
    from nas.costs import cost_lines, cost_report, layer_rows

    report = cost_report(
        arch,
        joints,
        _size(size),
        latency=latency or (),
        tables=tables,
        strict=strict_tables,
        layers=layers,
    )
    if as_json:
        print_json(report)
        return
    if layers:
        print_table("layers", ("name", "layer", "MACs (M)", "parameters"), layer_rows(report))
    show(cost_lines(report))


@app.command()
def spaces(
    joints: Joints = 14,
    as_json: Json = False,
) -> None:
    """The search spaces and the named networks, with their costs; and others' networks to compare with.

    Example: nas spaces --joints 17
    """
    from nas.console import print_json, print_table
    from nas.costs import listed_json, named_rows

    offered = [make(joints) for make in SPACES.values()]
    archs = named_archs()
    if as_json:
        print_json(
            {
                "spaces": [
                    {
                        "kind": space.name,
                        "networks": space.count(),
                        "nominal": space.nominal_count(),
                        "choices": {c.name: list(c.values) for c in space.searched},
                    }
                    for space in offered
                ],
                "archs": {name: {"arch": a.to_json(), **_plain_cost(a, joints)} for name, a in archs.items()},
                "listed": {
                    name: {**listed_json(name), **asdict(network.cost(joints))}
                    for name, network in listed_networks().items()
                },
            }
        )
        return
    for space in offered:
        rows = [(choice.name, "  ".join(map(str, choice.values))) for choice in space.searched]
        title = f"{space.name}: {space.count():,} distinct networks ({space.nominal_count():,} nominal)"
        print_table(title, ("choice", "values"), rows)
    columns = ("named network", "input", "params (M)", "MACs (G)", "paper's MACs (G)")
    print_table(f"{len(archs)} named networks, {joints} joints", columns, named_rows(joints))
    others = named_rows(joints, listed=True)
    print_table(f"{len(others)} networks known by their layers alone, to compare costs with", columns, others)


# -- train ---------------------------------------------------------------------------------------------------


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe .yaml (see experiments/recipes).")],
    sets: Sets = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run directory; default: runs/<the recipe's name>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train a supernet once; everything it makes lands in a run directory.

    Stopped by Ctrl-C, kill -9 or a power cut? The same command with --resume continues to the same result.
    Several processes share a training: torchrun --nproc-per-node 2 -m nas train RECIPE --set train.shards=2

    Example: nas train experiments/recipes/coco-from-crowdpose.yaml --set train.epochs=20
    """
    from nas.console import print_json, show
    from nas.recipe import load_recipe
    from nas.run import RunDirectory
    from nas.train_command import train_into

    if RunDirectory.is_run(recipe):
        raise InputError(f"'{recipe}' is a run, not a recipe; 'nas runs resume {recipe}' goes on with it")
    loaded = load_recipe(recipe, sets)
    folder = output or Path("runs") / loaded.name
    if RunDirectory.is_run(folder) and not resume and _is_first():
        raise RunError(
            f"'{folder}' holds a run already; continue it with --resume, or choose another --output"
        )
    run, summary = train_into(folder, loaded)
    if not _is_first():
        return
    report = {"run": str(run.folder), **summary}
    if as_json:
        print_json(report)
    else:
        show(report)


def _is_first() -> bool:
    """Return whether this is the one process that writes and tells; torchrun numbers those that it starts."""
    return os.environ.get("RANK", "0") == "0"


# -- search --------------------------------------------------------------------------------------------------


@app.command()
def search(
    run: Annotated[
        Path, typer.Argument(metavar="RECIPE_OR_RUN", help="A run directory, or a recipe to train first.")
    ],
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    min_ap: MinAp = None,
    like: LikeArch = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="BOUNDS",
            help="A budget in one: 'macs<=1G, latency@TARGET<=40ms, ap>=0.4, like litepose-s*0.8'. Repeated:"
            " one search each, which share their evaluations; the other bounds hold for all.",
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="COST",
            help="What AP is traded off against: macs, params, size or latency@TARGET; ap: nothing."
            " Repeatable; default: macs, or the latency that is bounded.",
        ),
    ] = None,
    tables: Tables = None,
    strict_tables: StrictTables = False,
    evaluations: Annotated[
        int | None,
        typer.Option(
            min=1, help="Networks that a search looks at, reused evaluations included; default: the recipe's."
        ),
    ] = None,
    population: Annotated[int | None, typer.Option(min=2, help="Networks per generation.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="guided, nsga2, random or exhaustive; default: the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the recipe's.")] = None,
    executor: Annotated[str, typer.Option(help="in-process or ray.")] = "in-process",
    workers: Annotated[int, typer.Option(min=1, help="Networks evaluated at once (ray).")] = 2,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster; default: start one here.")
    ] = None,
    cpus_per_worker: Annotated[
        float, typer.Option(min=0, help="CPUs that each worker reserves, and its threads (ray).")
    ] = 1,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs that each worker reserves (ray), such as 0.25; default: none without a GPU here.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study; default: made from the budget.")
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Search a trained supernet for the networks that trade AP against cost best within a budget.

    Networks over the budget are never evaluated, nor is any network twice, in this or another search of the
    run. BN statistics are recomputed for every candidate on training images; AP is measured on the search
    split. Stopped? The same command continues.

    Example: nas search runs/synthetic --max-macs 300M --max-latency 5ms@this-machine-onnxruntime-fp32-2t
    """
    from nas.console import print_json
    from nas.search import BudgetText
    from nas.searching import run_search, run_searches

    if budget and name is not None:
        raise InputError("--name names one study, but each --budget has one of its own; leave it out")
    directory = _run_or_recipe(run, sets)
    common = BudgetText(max_macs, max_params, max_size, tuple(max_latency or ()), min_ap, like)
    settings: dict[str, Any] = {
        **{"objectives": objective or [], "tables": tables, "strict_tables": strict_tables},
        **{"evaluations": evaluations, "population": population, "sampler": sampler, "seed": seed},
        **{"executor": executor, "workers": workers, "ray_address": ray_address},
        **{"cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker},
    }
    if budget:
        found = run_searches(directory, budget, common=common, **settings)
        if as_json:
            print_json(found.summary())
        else:
            _print_answers(found)
        return
    result = run_search(directory, **asdict(common), name=name, **settings)
    if as_json:
        print_json(result.summary())
    else:
        _print_front(result)


_TRAINED_WITH = ("name", "seed", "data", "init", "space", "train")
"""Parts of a recipe that a trained run cannot change any more."""


def _run_or_recipe(path: Path, sets: list[str] | None) -> RunDirectory:
    """Return the run at ``path``; a recipe's run is trained first where it is not."""
    from nas.recipe import load_recipe
    from nas.run import RunDirectory

    if path.is_dir():
        for item in sets or []:
            name = item.partition("=")[0].strip()
            if name.partition(".")[0] in _TRAINED_WITH and name != "train.device":
                raise InputError(
                    f"--set {name}: the supernet of '{path}' is trained already; of a run only search.*,"
                    " evaluate.*, trust.* and train.device can be changed (the search's own seed is --seed)"
                )
        return RunDirectory.open(path, sets)
    if not path.exists():
        raise InputError(f"run or recipe '{path}' does not exist; 'nas runs list' finds runs")
    from nas.train_command import train_into

    recipe = load_recipe(path, sets)
    folder = Path("runs") / recipe.name
    run = RunDirectory.find(folder, recipe)
    if run is None or not run.trained:
        run, _ = train_into(folder, recipe)
    return run


def _print_front(study: Study) -> None:
    from nas.console import print_table
    from nas.search.analysis import seconds_of
    from nas.search.noise import steps
    from nas.search_report import cost_words, gain_words

    result, front = study.result, study.result.front()
    best, answer = study.chosen, study.answer
    gains = {step.dearer.trial: gain_words(step) for step in steps(front)}
    rows = []
    for record in front:
        mark = ""
        if best is not None and record.arch == best.arch:
            own = answer.chosen is not None and answer.chosen.arch == best.arch
            mark = "chosen" if own else "the best of these"
        latencies = [f"{record.latency_ms[target]:.2f}" for target in result.targets]
        figures = (f"{record.ap:.4f}", f"{record.macs / 1e6:.1f}", f"{record.params / 1e6:.3f}", *latencies)
        figures = (figures[0], gains.get(record.trial, ""), *figures[1:])
        rows.append((record.arch.id, record.arch["resolution"], *figures, mark))
    columns = (
        "network",
        "px",
        "AP (search)",
        "gain over the one above [95%]",
        "MACs (M)",
        "params (M)",
        *(f"ms {t}, upper end" for t in result.targets),
        "",
    )
    title = f"Pareto front of {len(result.evaluated)} evaluated networks; {study.folder}"
    print_table(title, columns, rows)
    elsewhere = answer.beside(best)
    print("\n".join([cost_words(seconds_of(result)), *([elsewhere] if elsewhere else []), *study.caveats()]))


def _print_answers(studies: Studies) -> None:
    """Print the network chosen for each of several budgets, and what is next to it."""
    from nas.console import print_table
    from nas.search.noise import interval
    from nas.search_report import cost_words

    targets = tuple(studies.predictors)
    answers = [study.answer for study in studies.studies]
    rows = []
    for answer in answers:
        record, beside = answer.chosen, answer.neighbours
        if record is None or beside is None or answer.found is None:
            rows.append((str(answer.budget), "none", *[""] * (6 + len(targets))))
            continue
        known = interval(record)
        ap = f"{record.ap:.4f}" + ("" if known is None else f" [{known.low:.4f}, {known.high:.4f}]")
        latencies = [f"{record.latency_ms[target]:.2f}" for target in targets]
        figures = (f"{record.macs / 1e6:.1f}", f"{record.params / 1e6:.3f}", *latencies)
        sides = (beside.words("cheaper"), beside.words("dearer"))
        chosen = (record.arch.id, str(record.arch["resolution"]), ap)
        rows.append((str(answer.budget), *chosen, *figures, *sides, answer.found.study))
    columns = (
        *("budget", "chosen", "px", "AP (search) [95%]", "MACs (M)", "params (M)"),
        *(f"ms {target}" for target in targets),
        *("next cheaper: AP", "next dearer: AP", "found in"),
    )
    print_table(f"{len(rows)} budgets, {len(studies.known)} networks of the run known", columns, rows)
    print(cost_words(studies.seconds()))
    for study in studies.studies:
        told = [*([study.answer.why] if study.answer.why else []), *study.notes]
        print("\n".join(f"{study.budget}: {line}" for line in told), end="\n" if told else "")
    print(f"supernet's ranking: {studies.studies[0].trust.line()}")


# -- trust -------------------------------------------------------------------------------------------------


@app.command()
def trust(
    run: Annotated[
        Path, typer.Argument(metavar="RECIPE_OR_RUN", help="A run directory, or a recipe to train first.")
    ],
    standalone: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the stand-alone trainings, which runs of the same data and space can share;"
            " default: within the run.",
        ),
    ] = None,
    only_standalone: Annotated[
        bool,
        typer.Option(
            "--only-standalone", help="Stop after the stand-alone trainings; they need no trained supernet."
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stand-alone trainings at a time; default: one per core.")
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """How far the supernet's ranking can be trusted: networks trained alone, against the supernet's APs.

    The recipe's section 'trust' says how many networks are trained, and for how long. Stopped? The same
    command continues; once all is done, it prints the report again.

    Example: nas trust runs/synthetic --jobs 2 --set trust.archs=20 --set trust.epochs=6
    """
    from nas.trust.command import run_trust

    directory = _untrained(run, sets) if only_standalone else _run_or_recipe(run, sets)
    run_trust(directory, standalone, only_standalone=only_standalone, jobs=jobs, as_json=as_json)


def _untrained(path: Path, sets: list[str] | None) -> RunDirectory:
    """Return the run at ``path``; or a recipe's, which need not be there."""
    from nas.recipe import load_recipe
    from nas.run import RunDirectory

    if path.is_dir():
        return _run_or_recipe(path, sets)
    recipe = load_recipe(path, sets)
    folder = Path("runs") / recipe.name
    return RunDirectory.find(folder, recipe) or RunDirectory(folder, recipe)


# -- profile, plot, emit, eval -----------------------------------------------------------------------------


@app.command()
def profile(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            help="'this-machine', or a target .yaml (device, processor, runtime, threads; link to a device)."
        ),
    ] = "this-machine",
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="SPACE|RECIPE|RUN|ARCH",
            help="Whose blocks are measured: a kind of space, a recipe, a run, or a named arch. Repeatable.",
        ),
    ] = None,
    joints: Annotated[
        int | None,
        typer.Option(min=1, help="Keypoints, for a kind of space or a named arch; default: 14."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime, openvino, ncnn, litert or torch; default: the target file's, else onnxruntime."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32; int8 (onnxruntime, openvino, ncnn, litert): weights and activations in 8 bits; fp16"
            " (ncnn: computed in 16 bits where the processor can; litert: weights in 16 bits);"
            " default: the target file's, else fp32."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads; default: the target file's, else all processors."),
    ] = None,
    networks: Annotated[
        int,
        typer.Option(
            min=0,
            help="Whole networks measured to fit total = a + b x sum of blocks, drawn evenly from the spaces;"
            " 0: none.",
        ),
    ] = 12,
    share: Annotated[
        float,
        typer.Option(
            help="Share of the blocks to measure, the most telling ones; the others are fitted and marked."
        ),
    ] = 1.0,
    seconds_per_layer: Annotated[
        float, typer.Option(min=0.001, help="Time spent on each block; four times that on a network.")
    ] = 0.25,
    rounds: Annotated[
        int, typer.Option(min=1, help="Visits to each block, each round in another order.")
    ] = 5,
    on_drift: Annotated[
        str,
        typer.Option(
            metavar="refuse|warn",
            help="If the machine's speed changed meanwhile: save nothing, or save and say so.",
        ),
    ] = "refuse",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path("tables"),
    describe: Annotated[
        bool,
        typer.Option(
            "--describe",
            help="TARGET is ssh:user@host: only print a target .yaml for it, with --runtime, --precision and"
            " --threads as given.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how long a target takes for the blocks of networks (batch 1): a table for search and cost.

    Blocks and some whole networks are timed in interleaved rounds with a canary measured throughout, what
    varies in further rounds; the networks fit what a sum of blocks misses. Stopped? The same command
    continues with what it has.

    Example: nas profile this-machine --for runs/synthetic --threads 2
    """
    from latency_tables import ProfileSettings
    from nas.console import print_json, show
    from nas.latency import describe_target, run_profile
    from search_spaces.files import yaml_text

    if describe:
        _only_describe(context)
        told = describe_target(target, runtime, precision, threads)
        if as_json:
            print_json(told)
        else:
            print(yaml_text(told), end="")
        return
    report = run_profile(
        target,
        space or ["litepose-native"],
        joints=joints,
        runtime=runtime,
        precision=precision,
        threads=threads,
        networks=networks,
        folder=output,
        share=share,
        settings=ProfileSettings(
            seconds_per_layer=seconds_per_layer,
            seconds_per_network=4 * seconds_per_layer,
            rounds=rounds,
            max_rounds=2 * rounds,
            on_drift=_drift(on_drift),
        ),
    )
    if as_json:
        print_json(report)
    else:
        show(report)


_DESCRIBES = ("target", "runtime", "precision", "threads", "describe", "as_json")
"""Parameters of ``nas profile`` that mean something with ``--describe``."""


def _only_describe(context: typer.Context) -> None:
    """Refuse options that measuring alone heeds."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _DESCRIBES and source is not None and source.name == "COMMANDLINE":
            raise InputError(
                f"--describe only prints a target file and measures nothing; {parameter.opts[0]} has no"
                " meaning with it: leave it out"
            )


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="A run directory that was searched.")],
    study: Annotated[str | None, typer.Option(help="One study; default: all.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: the study's own.")
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            help="Published LitePose networks. costs: where they lie on the axes; published: their APs, too,"
            " apart from yours if they were measured on other images; none."
        ),
    ] = "costs",
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Draw a run's searches: fronts, progress and choices (PNG and SVG), and each front as a page (HTML).

    Of several studies a front of all their networks together is drawn, too.

    Example: nas plot runs/synthetic
    """
    from nas.console import print_json
    from nas.drawing import draw_study, draw_together
    from nas.run import RunDirectory

    directory = RunDirectory.open(run)
    names = _studies(directory, study)
    with directory.locked() if output is None else nullcontext():  # elsewhere it can be drawn at any time
        made = [path for name in names for path in draw_study(directory, name, output, tables, reference)]
        made += draw_together(directory, names, output, tables, reference)
    if as_json:
        print_json({"files": [str(path) for path in made]})
    else:
        print("\n".join(str(path) for path in made))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory, in whatever state.")],
    study: Annotated[
        str | None, typer.Option(help="The study whose front is shown; default: all that go together.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="ID|NAME",
            help="The network in the middle: an emitted one by its folder's name, or any by its id; default:"
            " the best that was chosen.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html file; default: report.html in the run.")
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Leave out the val images and what is found in them.")
    ] = False,
    open_: Annotated[
        bool, typer.Option("--open", help="Show it in the browser; by default nothing is opened.")
    ] = False,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Write everything that a run can tell as one page, which needs no network to be read or sent on.

    The front to point at, the chosen network as a diagram, its time block by block, what it finds in val
    images, how far the ranking can be trusted, and the commands that make it again. What is missing is said,
    with the command that makes it. A search may be at work meanwhile.

    Example: nas report runs/synthetic --output report.html
    """
    from nas.console import note, print_json
    from nas.report.page import write_report
    from nas.run import RunDirectory

    told = write_report(
        RunDirectory.open(run), output, study=study, network=network, tables=tables, pictures=not no_pictures
    )
    for line in told["problems"]:
        note(f"not in the report: {line}")
    if open_:
        import webbrowser

        webbrowser.open(Path(told["file"]).resolve().as_uri())
    if as_json:
        print_json(told)
    else:
        print(told["file"])


def _studies(run: RunDirectory, wanted: str | None) -> list[str]:
    from search_spaces.errors import did_you_mean

    names = run.studies()
    if not names:
        raise InputError(f"'{run.folder}' was not searched yet; run 'nas search {run.folder} --max-macs ...'")
    if wanted is None:
        return names
    if wanted not in names:
        raise InputError(f"'{run.folder}' has no study '{wanted}'{did_you_mean(wanted, names)}")
    return [wanted]


@app.command()
def emit(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    min_ap: MinAp = None,
    like: LikeArch = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="BOUNDS", help="The budget in one, as 'nas search' takes it."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="COST",
            help="What --like bounds, and of what the cheapest that reaches --min-ap is taken, as in"
            " 'nas search'. Repeatable.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="ARCH",
            help="This network instead of the best one: a file, a name, or the id of a searched one.",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="Choose from this study only, without a budget by its own; default: all that the run's"
            " studies evaluated."
        ),
    ] = None,
    tables: Tables = None,
    strict_tables: StrictTables = False,
    fine_tune: Annotated[
        int | None,
        typer.Option(
            "--fine-tune", metavar="EPOCHS", help="Train it on alone for so many epochs; resumable."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="largest|none|FILE",
            help="Whom it learns from as it is fine-tuned; default: the supernet's largest network.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Peak of the fine-tuning; default: a tenth of the training's."),
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Write the best network within a budget as a folder that runs: arch, weights, ONNX, card.

    It is chosen among all networks that any search of the run evaluated with the present weights, images and
    settings, extracted from the supernet, its BN statistics are recomputed on training images, and its AP is
    measured on the val images from the files written. Where a latency table is of this very machine, the
    network is timed, too, and held against the budget.

    Fine-tuned, it is kept only if its AP on the search images rises. Stopped? The same command continues.

    Example: nas emit runs/synthetic --max-macs 300M -o mynet
    """
    from nas.console import note, print_json, show
    from nas.emitting import emit_from_run
    from nas.eval_report import interval_words
    from nas.fine_tuning import FineTuning
    from nas.known import find_arch
    from nas.latency_report import emitted_lines
    from nas.run import RunDirectory
    from nas.search import BudgetText
    from nas.search_report import chosen_words, ties_words

    if fine_tune is None and (teacher is not None or learning_rate is not None):
        raise InputError("--teacher and --learning-rate are of a fine-tuning; add --fine-tune EPOCHS")
    tuning = None if fine_tune is None else FineTuning(fine_tune, teacher or "largest", learning_rate)
    directory = RunDirectory.open(run)
    emitted = emit_from_run(
        directory,
        **asdict(BudgetText(max_macs, max_params, max_size, tuple(max_latency or ()), min_ap, like)),
        budget=budget,
        objectives=objective or [],
        arch=None if arch is None else find_arch(directory, arch),
        study=study,
        tables=tables,
        strict_tables=strict_tables,
        folder=output,
        tuning=tuning,
    )
    if as_json:
        print_json({"folder": str(emitted.folder), **emitted.card})
        return
    card, ap = emitted.card, emitted.card["ap"]
    note(f"wrote {emitted.folder}")
    lines = {
        "network": card["id"],
        "AP (val)": f"{ap['stats']['AP']:.4f} ({interval_words(ap['interval'])}) on {ap['on']}",
        "MACs": f"{card['cost']['macs'] / 1e9:.4f} G",
        "parameters": f"{card['cost']['params']:,}",
    }
    for name, value in card["latency"].items():
        lines |= emitted_lines(name, value)
    lines["supernet's ranking"] = card["trust"]["says"]
    if card["fine_tuned"] is not None:
        tuned, kept = card["fine_tuned"]["val"], card["fine_tuned"]["kept"]
        lines["fine-tuned"] = (
            f"AP {tuned['before']:.4f} to {tuned['after']:.4f} on val (difference:"
            f" {interval_words(tuned['difference'], signed=True)}), {'kept' if kept else 'not kept'}"
        )
    if "within_noise" in card["chosen"]:
        lines["chosen"] = chosen_words(card["chosen"])
        lines["networks like it"] = ties_words(card["chosen"]["within_noise"])
    show(lines)


@app.command()
def load(
    model: Model,
    skeleton: ModelJoints = None,
    as_json: Json = False,
) -> None:
    """What a model is, in a few lines, and the line of Python that gives it back.

    Everything is told from the weights themselves, so it holds for any emitted folder, .safetensors, research
    .pth or .onnx.

    Example: nas load runs/synthetic/emitted/mynet
    """
    from nas.console import print_json, show
    from nas.loading import describe_model

    found = describe_model(model, skeleton)
    if as_json:
        print_json(found)
        return
    show(
        {
            "network": f"{found['id']}, {found['family']} ({found['paradigm']})",
            "file": f"{found['file']} ({found['file_bytes']:,} bytes)",
            "input": f"{found['height']} x {found['width']} pixels",
            "finds": f"{found['joints']} joints ({found['skeleton']}), in {', '.join(found['outputs'])}",
            "MACs": f"{found['macs'] / 1e9:.4f} G (paper's count: {found['macs_paper'] / 1e9:.4f} G)",
            "parameters": f"{found['params']:,}",
            "in Python": found["python"],
        }
    )


@app.command()
def verify(
    model: Annotated[
        Path, typer.Argument(help="An emitted folder, a file of one (its exports, too), or a .safetensors.")
    ],
    target: Annotated[
        str,
        typer.Argument(help="this-machine, a target file (.yaml) with its link, or a target with a table."),
    ],
    max_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Budget of the network; default: the card's for that target."),
    ] = None,
    people: Annotated[
        int, typer.Option(min=0, max=30, help="People in the frame, for fps with decoding.")
    ] = 1,
    runtime: Annotated[
        str | None, typer.Option(help="Of this-machine: default onnxruntime. Other targets say it.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Of this-machine: default fp32.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of this-machine: default all processors.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for the network, all rounds together.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Visits that the time is spread over.")] = 5,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Measure an emitted network on its target: what was promised, against what it takes.

    The very file is timed by the target's runtime, here or over the link of the target file, and held against
    the prediction and the budget. The result goes into the card. Exit code 1 if the budget is not met.

    Example: nas verify runs/synthetic/emitted/mynet this-machine --max-ms 40
    """
    from nas.console import note, print_json, show
    from nas.verifying import VerifySettings, verified_lines
    from nas.verifying import verify as verify_model

    report = verify_model(
        model,
        target,
        VerifySettings(max_ms, people, seconds, rounds),
        runtime=runtime,
        precision=precision,
        threads=threads,
        tables=tables,
    )
    if as_json:
        print_json(report)
    else:
        for line in report["notices"]:
            note(line)
        show(verified_lines(report))
    if report["budget"] is not None and not report["budget"]["met"]:
        raise typer.Exit(1)


@app.command("eval")
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            help="An emitted folder, a .safetensors, an .onnx, a research .pth; or a .json of COCO results."
        ),
    ],
    dataset: Annotated[
        str, typer.Argument(help="COCO-format .json, a recipe or run (its val images), or 'synthetic'.")
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, for a .json and a model.")
    ] = None,
    skeleton: ModelJoints = None,
    resolution: Resolution = None,
    flip: Flip = False,
    project: Project = False,
    scales: Scales = None,
    protocol: Annotated[
        str | None, typer.Option(help="coco or crowdpose; default: the recipe's, else coco.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, metavar="N", help="Resamples for the AP's interval; 0: none.")
    ] = 1000,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Another one, on the same images: the difference, with interval."),
    ] = None,
    detections: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the people found as COCO results.")
    ] = None,
    boxes: Boxes = None,
    decoding: Decoding = None,
    as_json: Json = False,
) -> None:
    """AP of a model on a data set with its confidence interval, what goes wrong, and how long it takes.

    Joints that the data set lacks are left out of the score. On a recipe's or run's val images, AP is
    measured as the recipe says. A .json of COCO results in the model's place is scored as it is.

    Example: nas eval mynet annotations/val.json --images images/val --flip --compare runs/a/emitted/b
    """
    from nas.console import print_json
    from nas.eval_report import print_evaluation
    from nas.evaluation import EvalOptions, evaluate_model, parse_scales

    sizes = None if scales is None else parse_scales(scales)
    report = evaluate_model(
        model,
        dataset,
        EvalOptions(resolution, flip, project, protocol, limit, bootstrap, sizes, boxes, decoding),
        images=images,
        skeleton=skeleton,
        compare=compare,
        detections=detections,
    )
    if as_json:
        print_json(report)
    else:
        print_evaluation(report)


@app.command()
def predict(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES|VIDEO|CAMERA...",
            help="Files, folders (with subfolders), quoted patterns, a camera (0 or camera:0), - for a list.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for drawings and JSON files.")],
    flip: Flip = False,
    project: Project = False,
    scales: Scales = None,
    resolution: Resolution = None,
    threshold: Annotated[float, typer.Option(help="Joints below this heatmap value are not found.")] = 0.1,
    min_score: Annotated[float, typer.Option(help="People below this score are not drawn.")] = 0.1,
    max_people: Annotated[int, typer.Option(min=1, help="People kept per image, by score.")] = 20,
    draw: Annotated[bool, typer.Option(help="Draw skeletons over copies of the images.")] = True,
    labels: Annotated[bool, typer.Option("--labels", help="Write people's scores beside them.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Of a video, each N-th frame only.")] = 1,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Of a video, N frames at most.")] = None,
    fps: Annotated[float | None, typer.Option(help="Of drawn videos; default: as filmed.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="Of drawn videos: mp4v (default), avc1, MJPG or XVID.")
    ] = None,
    skeleton: ModelJoints = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    show_times: Annotated[
        bool, typer.Option("--show-times", help="Milliseconds of reading, network, decoding, drawing.")
    ] = False,
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="whole-image|FILE",
            help="For top-down networks: each picture shows one person, or a JSON of people's boxes.",
        ),
    ] = None,
    decoding: Decoding = None,
    as_json: Json = False,
) -> None:
    """Find the people in pictures, videos or before a camera: drawn skeletons and COCO JSON.

    Pictures are taken upright, as people see them. A camera is watched until Ctrl-C; there is no window, the
    drawn video shows what it saw. Stopped among pictures? The same command continues.

    A top-down network needs to know where people are: --boxes whole-image, or a detector's JSON file.

    Example: nas predict mynet photos -o found
    """
    from nas.console import print_json, show
    from nas.evaluation import parse_scales
    from nas.predicting import PredictSettings, failure, predict_inputs, time_table

    settings = PredictSettings(
        resolution=resolution,
        flip=flip,
        project=project,
        scales=(1.0,) if scales is None else parse_scales(scales),
        threshold=threshold,
        min_score=min_score,
        max_people=max_people,
        skeleton=skeleton,
        draw=draw,
        labels=labels,
        every=every,
        max_frames=max_frames,
        fps=fps,
        codec=codec,
        device=device,
        threads=threads,
        boxes=boxes,
        decoding=decoding,
    )
    summary = predict_inputs(model, inputs, output, settings)
    if as_json:
        print_json(summary)
    else:
        if show_times:
            time_table(summary)
        show({key: summary[key] for key in ("pictures", "videos", "frames", "people", "fps", "output")})
    if reason := failure(summary):
        raise InputError(reason)


@app.command("time")
def time_(
    model: Annotated[
        str,
        typer.Argument(help="An emitted folder, a .safetensors, an .onnx; or a named arch (random weights)."),
    ],
    people: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="People in the frame; default: 0,1,2,5,10,20,30."),
    ] = None,
    frame: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels of the frame.")] = "640x480",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="The network's input, pixels; default: the model's own."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to time too, with the model's own maps.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N pictures.")] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option("--latency", metavar="TARGET", help="Network's part as its table predicts. Repeatable."),
    ] = None,
    tables: Tables = None,
    strict_tables: StrictTables = False,
    runtime: Annotated[str, typer.Option(help="What runs the network.")] = "onnxruntime",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    max_people: Annotated[int, typer.Option(min=1, help="People kept per frame: the decoder's limit.")] = 30,
    seconds: Annotated[float, typer.Option(help="Time per stage and number of people.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Visits to each, in random order.")] = 5,
    skeleton: ModelJoints = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for time.json, time.csv and a plot.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How long a frame takes from its file to the people in it, by how many are in it: stages, fps.

    The network runs for real; the maps that are then grouped are drawn for exactly so many people.

    Example: nas time mynet --people 0,1,5,20 --frame 1280x720 --threads 2
    """
    from nas.console import note, print_json
    from nas.end_to_end import TimeSettings, measure_frames
    from nas.end_to_end_report import print_report, report_json, write_report

    settings = TimeSettings(
        people=None if people is None else _counts(people),
        frame=_frame(frame),
        size=_size(size),
        runtime=runtime,
        threads=threads,
        skeleton=skeleton,
        max_people=max_people,
        seconds=seconds,
        rounds=rounds,
        limit=limit,
    )
    report = measure_frames(
        model, settings, images=images, latency=latency or [], tables=tables, strict_tables=strict_tables
    )
    if as_json:
        print_json(report_json(report))
    else:
        print_report(report)
    if output is not None:
        for path in write_report(report, output):
            note(f"wrote {path}")


@app.command()
def quantise(
    model: Annotated[Path, typer.Argument(help="An emitted folder or a .safetensors.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="RECIPE|RUN|JSON",
            help="Images: a recipe or run; or a COCO-format .json, which is split into parts to calibrate,"
            " to choose and to report.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the ONNX file and its figures.")],
    precision: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    tolerance: Annotated[float, typer.Option(help="Most AP that may be lost.")] = 0.005,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="A layer or block that stays in float in any case: head.deconv0. Repeatable.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Ranges of activations: minmax, percentile (99.999%) or entropy.")
    ] = "minmax",
    weight_bits: Annotated[
        int,
        typer.Option(
            help="7: computed alike by all processors; 8: a little more exact, but x86 without VNNI cuts sums"
            " off."
        ),
    ] = 7,
    by: Annotated[str, typer.Option(help="What is kept in float: single layers, or blocks.")] = "block",
    score: Annotated[
        str, typer.Option(help="ap; or heatmap: the outputs' error, relative to their spread.")
    ] = "ap",
    unit_scores: Annotated[
        bool,
        typer.Option("--unit-scores", help="Also the AP of each layer or block, alone and left out (slow)."),
    ] = False,
    deconvs: Annotated[
        str,
        typer.Option(help="convolution: deconvs as equal convolutions, which run in 8 bits; or transposed."),
    ] = "convolution",
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for a .json.")] = None,
    skeleton: ModelJoints = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="For the ranges.")] = 32,
    probe_images: Annotated[int, typer.Option(min=1, help="For the error of each layer.")] = 4,
    search_images: Annotated[
        int | None, typer.Option(min=1, help="Most images to choose by; default: all.")
    ] = None,
    val_images: Annotated[
        int | None, typer.Option(min=1, help="Most images to report on; default: all.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=1, metavar="N", help="Resamples for the intervals.")] = 1000,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """A network in 8-bit integers or 16-bit floats as ONNX, with its AP measured.

    int8: ranges come from training images. Which blocks stay in float is chosen by what each one's rounding
    does, measured, until AP on the search images is within the tolerance; what is reported is AP on the val
    images. A file that misses the tolerance there is not kept. Stopped? The same command continues.

    Example: nas quantise mynet --data recipe.yaml --precision int8 --tolerance 0.01 -o mynet-int8
    """
    from nas.console import print_json
    from nas.quantise_report import print_quantisation
    from nas.quantising import QuantiseSettings, quantise_model

    settings = QuantiseSettings(
        precision=precision,
        tolerance=tolerance,
        keep=tuple(keep or ()),
        method=method,
        weight_bits=weight_bits,
        by=by,
        score=score,
        unit_scores=unit_scores,
        deconvs=deconvs,
        calibration_images=calibration_images,
        probe_images=probe_images,
        search_images=search_images,
        val_images=val_images,
        resamples=bootstrap,
    )
    report = quantise_model(model, data, output, settings, images=images, skeleton=skeleton, sets=sets)
    if as_json:
        print_json(report)
    else:
        print_quantisation(report)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="An emitted folder, a .safetensors or a research .pth.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="RECIPE|RUN|JSON",
            help="Images: a recipe or run; or a COCO-format .json, which is split into parts to calibrate,"
            " to choose and to certify.",
        ),
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="onnx (the default), openvino, ncnn or litert. Repeatable."),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", help="fp32 (the default), fp16 or int8, of every format. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the files; default: exports in the emitted folder."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N|free", help="Pictures of one run.")] = "1",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Height and width of the pictures; default: the model's."),
    ] = None,
    tolerance_ap: Annotated[float, typer.Option(help="Most AP that a file may lose.")] = 0.01,
    tolerance_outputs: Annotated[
        float | None,
        typer.Option(help="Most error of fp32 outputs over their largest value; default: the format's."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="A layer or block that int8 leaves in float. Repeatable."),
    ] = None,
    method: Annotated[str, typer.Option(help="Ranges of int8: minmax, percentile or entropy.")] = "minmax",
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for a .json.")] = None,
    skeleton: ModelJoints = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most val images; default: all.")] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="For int8's ranges.")] = 32,
    search_images: Annotated[
        int | None, typer.Option(min=1, help="Most images that int8's float layers are chosen by.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=1, metavar="N", help="Resamples for the intervals.")] = 1000,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Keep the network's own operators where an engine computes others faster."
        ),
    ] = False,
    x86: Annotated[
        bool, typer.Option("--x86", help="Operators for x86 processors in the fp32 ONNX file.")
    ] = False,
    peaks: Annotated[
        bool,
        typer.Option("--peaks", help="Return peaks in the place of maps: onnx and openvino, own files."),
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Make anew what is certified already.")] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Files for inference engines, each loaded back and held against torch: output error, AP.

    A file that misses a tolerance is not kept, and the exit code is 2 after the others were made. The figures
    of all are in exports.json, and in the card of an emitted folder. Stopped? The same command continues.

    Example: nas export mynet --data recipe.yaml --format onnx --format openvino --precision int8
    """
    from nas.console import print_json
    from nas.exporting import ExportSettings, export_model
    from nas.exporting.report import failure, print_exports

    settings = ExportSettings(
        formats=tuple(formats or ("onnx",)),
        precisions=tuple(precisions or ("fp32",)),
        batch=_batch(batch),
        size=_size(size),
        tolerance_ap=tolerance_ap,
        tolerance_outputs=tolerance_outputs,
        keep=tuple(keep or ()),
        method=method,
        calibration_images=calibration_images,
        search_images=search_images,
        limit=limit,
        resamples=bootstrap,
        again=again,
        plain=plain,
        x86=x86,
        peaks=peaks,
    )
    report = export_model(model, data, output, settings, images=images, skeleton=skeleton, sets=sets)
    if as_json:
        print_json(report)
    else:
        print_exports(report)
    if reason := failure(report):
        raise RunError(reason)


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A LitePose checkpoint of the research code (.pth).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: the same name with .safetensors.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=32, help="Input side, px, where the widths are of no published network.")
    ] = None,
    skeleton: Annotated[
        str | None, typer.Option(help="Joints that it predicts; default: by their number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a research checkpoint (no pickle is executed), infer its arch, write it as .safetensors.

    Example: nas import-checkpoint litepose-m.pth -o litepose-m.safetensors
    """
    from nas.console import print_json, show
    from nas.evaluation import import_model

    report = import_model(file, output, resolution, skeleton)
    if as_json:
        print_json(report)
    else:
        show({key: value for key, value in report.items() if key != "arch"})


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Run directory.")] = Path("runs/demo"),
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """The main job end to end on drawn people: train, profile, search twice, plot, emit. Under ten minutes.

    Stopped? The same command continues.

    Example: nas demo --output runs/demo
    """
    from nas.console import print_json
    from nas.demo import run_demo

    report = run_demo(output, sets or [], quiet=as_json)
    if as_json:
        print_json(report)


# -- helpers -------------------------------------------------------------------------------------------------


def _plain_cost(arch: Arch, joints: int) -> dict[str, int]:
    found = arch.cost(joints)
    return {"params": found.params, "macs": found.macs, "macs_paper": found.macs_paper}


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text.strip())
    if match is None:
        raise InputError(f"--size is HEIGHTxWIDTH in pixels such as 448x448, not '{text}'")
    height, width = match.groups()
    return int(height), int(width or height)


def _batch(text: str) -> int | None:
    if text == "free":
        return None
    if not text.isdecimal() or len(text) > 5 or not int(text):
        raise InputError(f"--batch is a number of pictures, at least 1, or 'free', not '{text}'")
    return int(text)


def _frame(text: str) -> tuple[int, int]:
    """Return (height, width) of WIDTHxHEIGHT."""
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text.strip())
    if match is None:
        raise InputError(f"--frame is WIDTHxHEIGHT in pixels such as 640x480, not '{text}'")
    width, height = match.groups()
    return int(height), int(width)


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise InputError(
            f"--people are whole numbers with commas between, such as 0,1,5, not '{text}'"
        ) from None


def _drift(text: str) -> Literal["refuse", "warn"]:
    match text:
        case "refuse" | "warn":
            return text
    raise InputError(f"--on-drift is 'refuse' or 'warn', not '{text}'")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0, 1 for flawed data, 2 after a mistake of the user's, 130 after Ctrl-C.

    A mistake is one line on standard error, whoever found it: this toolkit, the option parser or the system.
    SIGTERM and a terminal that is closed end a command as Ctrl-C does, with 143 and 129.
    """
    from nas.console import begin, open_streams

    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # before OpenCV is imported
    open_streams()
    begin(sys.stdout, sys.stderr)
    with Stops() as stops:
        try:
            given = None if arguments is None else list(arguments)
            code = app(args=given, prog_name="nas", standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:  # one that came while typer dealt with another
            code = _INTERRUPTED
        except ToldElsewhereError:
            sys.exit(2)
        except LitePoseNasError as error:
            _fail(str(error))
        except _ClickException as error:
            _fail(_usage(error))
        except SystemExit as stop:  # how typer ends, with code 1, when the reader of our output left
            if isinstance(stop.__context__, OSError) and stop.__context__.errno == errno.EPIPE:
                sys.exit(_NO_READER)
            raise
        except OSError as error:
            _quiet_stdout()
            if stops.number is not None and error.errno in (errno.EIO, errno.EPIPE):  # the terminal is gone
                sys.exit(stops.code)
            if error.errno == errno.EPIPE:  # `nas spaces | head`
                sys.exit(_NO_READER)
            named = "" if error.filename is None else f"'{error.filename}': "
            _fail(f"{named}{error.strerror or error}")
        if code == _INTERRUPTED:  # typer turns KeyboardInterrupt into this
            with suppress(OSError):
                if _is_first():
                    print("stopped; the same command continues (nas train: with --resume)", file=sys.stderr)
            code = stops.code
    sys.exit(code if isinstance(code, int) else 0)


def _quiet_stdout() -> None:
    """Let what could not be written to standard output go, or Python would complain of it once more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: Any) -> str:
    """Return an error of the option parser's as one line."""
    context = getattr(error, "ctx", None)
    command = "nas" if context is None else context.command_path
    if type(error).__name__ == "NoArgsIsHelpError":  # `nas` or `nas data` alone
        return f"a command is needed; see '{command} --help'"
    return f"{error.format_message().rstrip('.')}; see '{command} --help'"


def _fail(message: str) -> NoReturn:
    from nas.console import printable

    # One line, whatever was passed on; spaces stay, since they may be a path's.
    line = printable(" ".join(filter(None, map(str.strip, message.splitlines()))))
    if len(line) > _LONGEST_ERROR:
        line = f"{line[: _LONGEST_ERROR // 2]} ... {line[-_LONGEST_ERROR // 2 :]}"
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


_INTERRUPTED = 130
_LONGEST_ERROR = 4000
"""Characters; a value of a file may be as long as the file."""
_NO_READER = 128 + signal.SIGPIPE
_ClickException = cast(
    "type[Exception]",
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)
"""Root of the option parser's errors, wherever typer keeps its copy of click."""


if __name__ == "__main__":
    main()
