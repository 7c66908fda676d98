"""Latency in the commands: which table answers for a target, and how this machine's tables are made."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from latency_tables import (
    Bench,
    LatencyPredictor,
    LatencyTable,
    LocalBench,
    NetworkJob,
    Prediction,
    ProfileSettings,
    Target,
    Timing,
    available_tables,
    calibrate,
    fill_table,
    find_table,
    get_runtime,
    local_target,
    measure_against,
    profile,
    select_pieces,
)
from latency_tables.fit import FEWEST_CHECKS, FEWEST_PIECES, FitRecord
from latency_tables.holding import held_table, settle_table
from latency_tables.links import LinkDescription, ModelWriter, describe_device, open_bench, read_linked_target
from latency_tables.machine import available_threads
from latency_tables.networks import Weights, network_program, weight_names
from latency_tables.predictor import FEWEST_NETWORKS, is_fitted
from latency_tables.published import published_for
from latency_tables.runtimes import Program, litert_runtime, ncnn_runtime
from latency_tables.runtimes.int8 import observed_ranges, quantised
from latency_tables.runtimes.onnx_runtime import named_model
from latency_tables.selection import check_share
from latency_tables.table import device_table, files_in, is_packaged
from latency_tables.target import processors_differ
from nas.console import note, progress_bar
from nas.recipe import load_recipe
from nas.run import RunDirectory
from nas.table_folders import given_folders, tell_elsewhere
from search_spaces import (
    SPACES,
    Arch,
    Block,
    InputError,
    ListedNetwork,
    LitePoseNasError,
    SearchSpace,
    get_arch,
    listed_networks,
    named_archs,
)
from search_spaces.errors import did_you_mean
from search_spaces.files import parse_yaml, write_bytes
from supernet.base import Subnet
from supernet.checkpoint import load_network
from supernet.export import export_onnx, fold_batchnorm
from supernet.registry import build_network

__all__ = [
    "MODEL_WRITERS",
    "UpperEnd",
    "bench_of",
    "describe_target",
    "described_target",
    "draw_networks",
    "full_bounds",
    "known_targets",
    "load_predictors",
    "measure_emitted",
    "network_file",
    "prediction_json",
    "profile_space",
    "published_json",
    "quantised_promise",
    "random_network",
    "run_profile",
    "runnable",
    "table_folders",
    "trained_weights",
    "why_not_here",
    "work_list",
]

MODEL_WRITERS: Mapping[str, Callable[[str], ModelWriter]] = {
    "litert": lambda precision: partial(litert_runtime.piece_file, precision=precision)
}
"""By runtime: what writes pieces, at a precision, as files for the runtime's benchmark program."""

_RUNTIME, _PRECISION, _JOINTS = "onnxruntime", "fp32", 14
"""What is profiled where neither an option nor a file says otherwise."""

_TRIES = 100
"""Draws at most for a network that was not drawn yet."""

NETWORK_WRITERS: Mapping[str, Callable[[Program, Path, str], Path]] = {
    "litert": lambda program, stem, precision: litert_runtime.write_network(
        program, stem.with_suffix(".tflite"), precision
    ),
    "ncnn": lambda program, stem, precision: ncnn_runtime.write_network(
        program, stem.with_suffix(".param"), precision
    ),
}
"""By runtime that reads a format of its own: what writes whole networks, at a precision, beside a stem."""


class UpperEnd:
    """A target's pricer for the search: the upper end of the predictor's interval, so that budgets hold."""

    def __init__(self, predictor: LatencyPredictor) -> None:
        self.predictor = predictor

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.predictor.name

    def latency_ms(self, space: SearchSpace, genotypes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the upper end of each genotype's predicted latency, shape (n,)."""
        return self.predictor.upper_ms(space, genotypes)


def table_folders(tables: Sequence[Path] | None = None, run: RunDirectory | None = None) -> list[Path]:
    """Return the folders in which tables are looked for, first come first served.

    Raises
    ------
    InputError
        If a folder of ``tables`` does not exist, or holds a CSV file without its YAML file.
    """
    *given, default = given_folders(tables)
    for folder in given:
        for path in files_in(folder, ".csv"):
            if not path.with_suffix(".yaml").is_file():
                raise InputError(
                    f"--tables: '{path}' has no '{path.stem}.yaml' beside it; a latency table is both files"
                )
    own = [run.folder / "tables"] if run is not None else []
    return [*given, *own, default]


def load_predictors(
    targets: Sequence[str],
    tables: Sequence[Path] | None = None,
    run: RunDirectory | None = None,
    *,
    strict: bool = False,
) -> dict[str, LatencyPredictor]:
    """Return a predictor for each target named; a strict one refuses what is not measured.

    Raises
    ------
    InputError
        If there is no table for a target, or it is damaged.
    """
    folders = table_folders(tables, run)
    tables_ = [find_table(name, folders) for name in dict.fromkeys(targets)]
    tell_elsewhere(tables_)
    predictors = (LatencyPredictor(table, strict=strict) for table in tables_)
    return {predictor.name: predictor for predictor in predictors}


def full_bounds(
    max_latency: Sequence[str], tables: Sequence[Path] | None = None, run: RunDirectory | None = None
) -> list[str]:
    """Return latency bounds that name targets in full: ``80ms@raspberry-pi-4`` may name a device alone.

    A bound without any target gets the one that has a table of the user's own, if it is one. What names no
    table stays as it is: whoever reads it tells what is wrong with it.

    Raises
    ------
    InputError
        If several tables are of the device named.
    """
    folders = table_folders(tables, run)
    known = available_tables(folders)
    own = [name for name, path in known.items() if not is_packaged(path)]
    found = []
    for text in max_latency:
        duration, at, name = text.partition("@")
        name = name.strip()
        if not at and len(own) == 1:
            text = f"{duration}@{own[0]}"
        elif name and name not in known and (full := device_table(name, folders)) is not None:
            text = f"{duration}@{full.stem}"
        found.append(text)
    return found


def known_targets(tables: Sequence[Path] | None = None, run: RunDirectory | None = None) -> list[str]:
    """Return the names of all targets that have a table."""
    return sorted(available_tables(table_folders(tables, run)))


def prediction_json(predictor: LatencyPredictor, prediction: Prediction) -> dict[str, Any]:
    """Return a prediction with what it rests on, as commands print it and cards keep it."""
    return {**asdict(prediction), "target": predictor.table.target.to_dict()}


def published_json(network: Arch | ListedNetwork, predictor: LatencyPredictor) -> dict[str, Any] | None:
    """Return what others have published for this network on the predictor's device, with citation, if any.

    ``fitted_on_it`` tells whether the table was fitted on it, so that the two are no two witnesses.
    """
    found = published_for(network, predictor.table.target.device)
    if found is None:
        return None
    sources = [source for session in predictor.table.sessions for source in session.get("sources") or ()]
    return {**found.to_dict(), "fitted_on_it": found.source in sources}


def work_list(
    wanted: Sequence[str], joints: int
) -> tuple[dict[Block, float], list[tuple[Arch, int]], tuple[SearchSpace, ...]]:
    """Return the blocks to measure, the whole networks named, and the spaces to draw more from.

    Each block comes with how often a network executes it on average, named networks and random ones of
    spaces counting alike.

    Parameters
    ----------
    wanted
        Kinds of space, recipes, run directories, named archs or arch files.
    joints
        Keypoints, for what does not say how many.

    Raises
    ------
    InputError
        If something is none of these.
    """
    weights: dict[Block, float] = {}
    named: list[tuple[Arch, int]] = []
    spaces: list[SearchSpace] = []
    for text in wanted:
        path = Path(text)
        if text in SPACES:
            space = SPACES[text](joints)
        elif (own := _own_space(path)) is not None:
            space = own
        elif text in named_archs() or text in listed_networks() or path.suffix == ".json":
            arch = get_arch(text)  # which says why listed networks cannot be measured
            named.append((arch, joints))
            for block in arch.blocks(joints):
                weights[block] = weights.get(block, 0.0) + 1.0
            continue
        else:
            hint = did_you_mean(text, [*SPACES, *named_archs()])
            raise InputError(f"--for: '{text}' is no space, recipe, run or arch{hint}")
        if space in spaces:
            continue
        spaces.append(space)
        for block, often in space.block_frequencies().items():
            weights[block] = weights.get(block, 0.0) + often
    return weights, named, tuple(spaces)


def draw_networks(
    spaces: Sequence[SearchSpace], named: Sequence[tuple[Arch, int]], count: int
) -> list[tuple[Arch, int]]:
    """Return the networks named, and random ones, from each space in turn, until there are ``count``.

    None comes twice; spaces that hold fewer networks give what they have. The same call draws the same, and a
    larger count only adds to them.
    """
    rng = np.random.default_rng(0)
    found = dict.fromkeys(named)
    for turn in range(count - len(found) if spaces else 0):
        space = spaces[turn % len(spaces)]
        drawn = ((space.sample(rng), space.joints) for _ in range(_TRIES))
        new = next((each for each in drawn if each not in found), None)
        if new is not None:
            found[new] = None
    return list(found)


def _own_space(path: Path) -> SearchSpace | None:
    """Return the space of a run directory or a recipe, with its own joints; None for what is neither."""
    if RunDirectory.is_run(path):
        return _recipe_space(RunDirectory.open(path).recipe)
    return _recipe_space(load_recipe(path)) if path.suffix in (".yaml", ".yml") else None


def _recipe_space(recipe: Any) -> SearchSpace:
    """Return a recipe's space; its joints come from the skeleton, which may need the data's file."""
    from nas.data import open_source
    from supernet.pose.skeleton import get_skeleton

    if recipe.data.skeleton is not None:
        skeleton = get_skeleton(recipe.data.skeleton)
    elif (first := next(iter(recipe.data.training.values()))).synthetic is not None:
        skeleton = get_skeleton("coco17")
    else:
        skeleton = open_source(first).skeleton
    space: SearchSpace = recipe.build_space(skeleton)
    return space


def why_not_here(target: Target) -> str | None:
    """Return why nothing can be measured for a target on this machine, or None if it can."""
    here = local_target(target.runtime)
    if target.device != here.device:
        return f"it is another device, '{target.device}'"
    if target.processor != here.processor:
        return f"it was profiled on another processor, '{target.processor}'"
    if target.threads > available_threads():
        return f"it has {target.threads} threads, and this process may use {available_threads()} processors"
    try:
        get_runtime(target.runtime).check(target.threads, target.precision)
    except LitePoseNasError as error:
        return str(error)
    return None


def quantised_promise(target: Target) -> str | None:
    """Return what has to be said of a budget on a target that computes in other numbers than AP and files."""
    if target.precision in (_PRECISION, "unstated"):
        return None
    return (
        f"the budget on '{target.name}' is of {target.precision}, but AP is measured in {_PRECISION} and"
        f" 'nas emit' writes {_PRECISION} files: it is of the network quantised, whose AP is not known"
    )


def measure_emitted(folder: Path, table: LatencyTable, seconds: float = 2.0) -> tuple[Timing, float | None]:
    """Time an emitted network on this machine as a table's target says: its runtime, threads and precision.

    What the runtime does not read is written for it; where it computes in 8 bits, it quantises a copy first.
    Returned are the timing and the machine's speed, see :func:`latency_tables.measure_against`.

    Raises
    ------
    UnavailableError
        If the runtime is not installed, or does not offer the precision.
    InputError
        If the runtime cannot be given the network.
    """
    network, _ = load_network(folder / "model.safetensors")
    target = table.target
    with tempfile.TemporaryDirectory() as scratch:
        file = folder / "model.onnx"
        if target.runtime == "torch" or target.runtime in NETWORK_WRITERS:
            file = runnable(target.runtime, network, Path(scratch) / "model", precision=target.precision)
        return measure_against(table, file, network.arch.size, seconds=seconds)


def random_network(arch: Arch, joints: int) -> Subnet:
    """Return the network with random weights, on which no layer's time depends."""
    return build_network(arch, joints, torch.Generator().manual_seed(0))


def trained_weights(network: Subnet) -> Weights:
    """Return the numbers of a network's layers, normalisation folded."""
    folded, found = fold_batchnorm(network), {}
    for layer in network.arch.layers(network.joints):
        for name in weight_names(layer):
            module = folded.get_submodule(name)
            weight, bias = (
                None if value is None else cast(torch.Tensor, value).detach().float().cpu().numpy()
                for value in (module.weight, module.bias)
            )
            found[name] = (cast(Any, weight), bias)
    return found


def runnable(
    runtime: str,
    network: Subnet,
    stem: Path,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
) -> Path:
    """Write a network, for one picture of ``size`` (height, width), in the form that the runtime times.

    By default the size is the arch's. Where the runtime converts networks to the precision itself, the file
    is fp32. Returns the file.
    """
    size = size or network.arch.size
    if runtime in NETWORK_WRITERS:
        program = network_program(network.arch, network.joints, size, weights=trained_weights(network))
        return NETWORK_WRITERS[runtime](program, stem, precision)
    if runtime == "torch":
        folded = fold_batchnorm(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        path = stem.with_suffix(".pt2")
        image = torch.zeros(1, 3, *size).to(memory_format=torch.channels_last)
        torch.export.save(torch.export.export(folded, (image,)), path)
        return path
    path = stem.with_suffix(".onnx")
    export_onnx(network, path, size, tolerance=1e-2)
    return path


def network_file(target: Target, arch: Arch, joints: int, folder: Path) -> Path:
    """Write a network with random weights into a folder, in the form that the runtime times.

    It is written from the arch, in a tenth of a second: an export takes fifteen, and gives the same operators
    (``tests/nas/test_latency.py``).
    """
    stem = folder / f"{arch.id}-{joints}"
    if target.runtime == "torch":
        return runnable(target.runtime, random_network(arch, joints), stem)
    write = NETWORK_WRITERS.get(target.runtime, _write_onnx)
    return write(network_program(arch, joints), stem, target.precision)


def _write_onnx(program: Program, stem: Path, precision: str) -> Path:
    """Write a program as an ONNX file; in int8 quantised here, for it would be anew whenever it is timed."""
    path = stem.with_suffix(".onnx")
    model = named_model(program, [f"layer{i}" for i in range(len(program.steps))])
    if precision == "int8":
        model = quantised(model, observed_ranges(model, program.inputs))
    write_bytes(path, model.SerializeToString())
    return path


def profile_space(
    target: Target,
    weights: Mapping[Block, float],
    archs: Sequence[tuple[Arch, int]],
    folder: Path,
    *,
    share: float = 1.0,
    settings: ProfileSettings | None = None,
    bench: Bench | None = None,
) -> LatencyTable:
    """Measure blocks and whole networks on a target and save the calibrated table; resumable.

    Parameters
    ----------
    target
        What is measured.
    weights
        The blocks that the table must answer for, each with how often networks execute it; what the table
        holds already is kept.
    archs
        Networks (with their joints) measured whole for the affine fix; fewer than 5 leave the table
        uncalibrated. Their weights are random: a layer's time does not depend on them.
    folder
        Where tables live.
    share
        Share of the blocks to measure, the most telling ones; the others get fitted rows.
    settings
        How thoroughly to measure.
    bench
        Where it is timed; by default in this process.
    """
    path = folder / f"{target.name}.csv"
    settle_table(path)
    known = LatencyTable.load(path) if path.is_file() else None
    measured = [p for p, row in known.rows.items() if not is_fitted(row)] if known is not None else []
    chosen = [*select_pieces(weights, share, set(measured)), *(p for p in weights if p in set(measured))]
    if len(chosen) < min(len(weights), FEWEST_PIECES) and share < 1:
        least = math.ceil(100 * FEWEST_PIECES / len(weights)) / 100
        raise InputError(
            f"--share {share:g} of {len(weights)} blocks is {len(chosen)}, but a fit needs {FEWEST_PIECES}:"
            f" take --share {f'{least:g} or more' if least < 1 else '1, all of them'}"
        )
    with tempfile.TemporaryDirectory() as scratch, progress_bar("blocks") as bar:

        def job(arch: Arch, joints: int) -> NetworkJob:
            export = cache(partial(network_file, target, arch, joints, Path(scratch)))
            return NetworkJob(arch, joints, export)

        profile(
            target,
            chosen,
            out=folder,
            networks=[job(arch, joints) for arch, joints in archs],
            settings=settings,
            bench=bench,
            progress=lambda done, total, name: bar.update(done, total, name),
            command=" ".join(["nas", *sys.argv[1:]]),
        )
    with held_table(path):
        table = LatencyTable.load(path)
        filled = fill_table(table, weights)
        if len(filled.networks) >= FEWEST_NETWORKS:
            filled = calibrate(filled)
        if filled != table:
            filled.save(path)
    return filled


def described_target(
    target: str, runtime: str | None = None, precision: str | None = None, threads: int | None = None
) -> tuple[Target, LinkDescription | None]:
    """Return the target that a command names, and the link to it; None where it is this machine.

    Parameters
    ----------
    target
        ``this-machine``, or a ``.yaml`` file that describes a target.
    runtime, precision, threads
        What the command's options say, for ``this-machine``; a file says so itself.

    Raises
    ------
    InputError
        If it is neither, options contradict the file, or it describes another machine without a link.
    UnavailableError
        If this machine is meant, and the runtime is not installed or does not offer the precision.
    """
    link: LinkDescription | None = None
    if target == "this-machine":
        described = local_target(runtime or _RUNTIME, threads, precision=precision or _PRECISION)
    elif Path(target).suffix in (".yaml", ".yml"):
        described, link = read_linked_target(target)
        for option, given in (("runtime", runtime), ("precision", precision), ("threads", threads)):
            if given is not None and given != (told := getattr(described, option)):
                raise InputError(
                    f"--{option} {given} contradicts the target file '{target}', which says"
                    f" '{option}: {told}'; leave the option out, or change the file"
                )
    else:
        raise InputError(
            f"the target is 'this-machine' or a .yaml file that describes one, not '{target}';"
            " nas profile ssh:user@host --describe prints one"
        )
    if link is None:
        get_runtime(described.runtime).check(described.threads, described.precision)
        here = local_target(described.runtime, described.threads)  # refuses more threads than there are
        if processors_differ(described.processor, here.processor):
            raise InputError(
                f"the target file '{target}' is of the processor '{described.processor}', but without a"
                f" 'link' to that device what is measured is this machine, '{here.processor}': add a 'link',"
                " or correct the 'processor'; 'this-machine' as target needs no file"
            )
    return described, link


def run_profile(
    target: str,
    wanted: Sequence[str],
    *,
    joints: int | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    networks: int,
    folder: Path,
    precision: str | None = None,
    share: float = 1.0,
    settings: ProfileSettings | None = None,
) -> dict[str, Any]:
    """Carry out ``nas profile``; return what it made and how far it can be believed.

    Raises
    ------
    InputError
        If the target or what is to be profiled is unknown, or options contradict a file.
    UnavailableError
        If the runtime is not installed, or does not offer the precision.
    """
    _check_joints(wanted, joints)
    described, link = described_target(target, runtime, precision, threads)
    check_share(share)
    weights, named, spaces = work_list(wanted, _JOINTS if joints is None else joints)
    archs = draw_networks(spaces, named, networks)
    if len(archs) < networks and spaces:
        note(f"only {len(archs)} of {networks} different networks could be drawn")
    chosen = f", {share:.0%} of them measured" if share < 1 else ""
    note(f"{len(weights)} distinct blocks{chosen}, {len(archs)} whole networks on {described.name}")
    with bench_of(described, link) as bench:
        table = profile_space(described, weights, archs, folder, share=share, settings=settings, bench=bench)
    fitted = sum(map(is_fitted, table.rows.values()))
    report: dict[str, Any] = {
        "target": table.name,
        "table": str(folder / f"{table.name}.csv"),
        "blocks": len(table),
        "fitted": fitted,
        **(_fit_report(table.fit) if fitted else {}),
        "provenance": table.provenance,
        "processor": described.processor,
        "threads": described.threads,
    }
    if table.calibration is not None:
        c = table.calibration
        report |= {
            "networks": c.networks,
            "median_error": round(c.median_error, 4),
            "worst_error": round(c.worst_error, 4),
            "uncalibrated_median_error": round(c.raw_error, 4),
            "interval_factor": round(math.exp(c.half_width), 4),
            "interval_coverage": round(c.coverage, 4),
        }
    else:
        report["calibration"] = "none: fewer than 5 whole networks; predictions are plain sums of blocks"
    return report


def _fit_report(fit: FitRecord | None) -> dict[str, Any]:
    """Return how far the fitted rows of a table can be believed; what makes it hard to tell is noted."""
    if fit is None:
        note(
            "the error of the fitted blocks is not known: none could be left out of the fit; measure a larger"
            " --share"
        )
        return {}
    if not fit.random:
        note(
            f"the error of the fitted blocks is a guess: it is that of all {fit.checks} measured ones that"
            f" could be left out, and fewer than {FEWEST_CHECKS} of them were drawn at random; measure a"
            " larger --share"
        )
    return {
        "fit_samples": fit.samples,
        "fit_checks": fit.checks,
        "fit_checks_random": fit.random,
        "fit_median_error": round(fit.median_error, 4),
        "fit_interval_factor": round(math.exp(fit.half_width), 4),
        "fit_interval_coverage": round(fit.coverage, 4),
    }


def _check_joints(wanted: Sequence[str], joints: int | None) -> None:
    """Refuse a number of joints where all that is wanted says another itself."""
    own = [_own_space(Path(text)) for text in wanted] if joints is not None else []
    for text, space in zip(wanted, own, strict=False):
        if all(own) and space is not None and space.joints != joints:
            raise InputError(
                f"--joints {joints} contradicts '{text}', whose networks have {space.joints} joints; leave"
                " the option out"
            )


def bench_of(target: Target, link: LinkDescription | None) -> Bench:
    """Return where a target is measured: in this process, or at the other end of a link."""
    if link is None:
        return LocalBench(get_runtime(target.runtime), target.threads, target.precision)
    make = MODEL_WRITERS.get(target.runtime)
    return open_bench(target, link, None if make is None else make(target.precision))


def describe_target(
    device: str, runtime: str | None = None, precision: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Return what a target file says of a device: ``ssh:user@host``, or ``ssh:user@host:port``.

    Raises
    ------
    InputError
        If the device is written otherwise, or has fewer processors than ``threads``.
    """
    way, _, place = device.partition(":")
    host, _, port = place.partition(":")
    if way != "ssh" or not host or not (port.isdecimal() or not port):
        raise InputError(f"--describe needs a device such as ssh:pi@kitchen.local, not '{device}'")
    runtime = runtime or _RUNTIME
    offered = get_runtime(runtime).precisions
    if precision is not None and precision not in offered:
        raise InputError(
            f"--precision: the runtime '{runtime}' is timed in {', '.join(offered)}, not in '{precision}'"
        )
    link = LinkDescription(ssh=host, port=int(port) if port else None)
    told: dict[str, Any] = parse_yaml(describe_device(link, runtime), "target file")
    if threads is not None and threads > told["threads"]:
        raise InputError(f"--threads: '{device}' has {told['threads']} processors, so not {threads} threads")
    own = {"precision": precision or _PRECISION, "threads": threads or told["threads"]}
    return {**told, **own}
