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
    available_tables,
    calibrate,
    fill_table,
    find_table,
    get_runtime,
    local_target,
    measure_model,
    profile,
    select_pieces,
)
from latency_tables.fit import FEWEST_PIECES
from latency_tables.links import LinkDescription, ModelWriter, describe_device, open_bench, read_linked_target
from latency_tables.machine import available_threads
from latency_tables.networks import Weights, network_program
from latency_tables.predictor import FEWEST_NETWORKS, is_fitted
from latency_tables.published import published_for
from latency_tables.runtimes import Program, litert_runtime, ncnn_runtime
from latency_tables.runtimes.int8 import observed_ranges, quantised
from latency_tables.runtimes.onnx_runtime import named_model
from latency_tables.table import device_table, files_in, is_packaged
from nas.console import note, progress_bar
from nas.recipe import load_recipe
from nas.run import RunDirectory
from nas.tables import given_folders, tell_elsewhere
from search_spaces import SPACES, Arch, Block, InputError, SearchSpace, get_arch, named_archs
from search_spaces.errors import did_you_mean
from search_spaces.files import write_bytes
from supernet.base import Subnet
from supernet.export import export_onnx, fold_batchnorm
from supernet.registry import build_network

__all__ = [
    "MODEL_WRITERS",
    "UpperEnd",
    "bench_of",
    "describe_target",
    "full_bounds",
    "is_here",
    "known_targets",
    "load_predictors",
    "measure_onnx",
    "network_file",
    "prediction_json",
    "profile_space",
    "published_json",
    "random_network",
    "run_profile",
    "runnable",
    "table_folders",
    "work_list",
]

MODEL_WRITERS: Mapping[str, Callable[[str], ModelWriter]] = {
    "litert": lambda precision: partial(litert_runtime.piece_file, precision=precision)
}
"""By runtime: what writes pieces, at a precision, as files for the runtime's benchmark program."""

NETWORK_WRITERS: Mapping[str, Callable[[Program, Path, str], Path]] = {
    "litert": lambda program, stem, precision: litert_runtime.write_network(
        program, stem.with_suffix(".tflite"), precision
    ),
    "ncnn": lambda program, stem, precision: ncnn_runtime.write_network(program, stem.with_suffix(".param")),
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


def published_json(arch: Arch, predictor: LatencyPredictor) -> dict[str, Any] | None:
    """Return what others have published for this network on the predictor's device, with citation, if any.

    ``fitted_on_it`` tells whether the table was fitted on it, so that the two are no two witnesses.
    """
    found = published_for(arch, predictor.table.target.device)
    if found is None:
        return None
    sources = [source for session in predictor.table.sessions for source in session.get("sources") or ()]
    return {**found.to_dict(), "fitted_on_it": found.source in sources}


def work_list(
    wanted: Sequence[str], joints: int
) -> tuple[dict[Block, float], list[tuple[Arch, int]], SearchSpace | None]:
    """Return the blocks to measure, the whole networks named, and the (last) space to draw more from.

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
    space: SearchSpace | None = None
    for text in wanted:
        path = Path(text)
        if text in SPACES:
            space = SPACES[text](joints)
        elif RunDirectory.is_run(path):
            space = _recipe_space(RunDirectory.open(path).recipe)
        elif path.suffix in (".yaml", ".yml"):
            space = _recipe_space(load_recipe(path))
        elif text in named_archs() or path.suffix == ".json":
            arch = get_arch(text)
            named.append((arch, joints))
            for block in arch.blocks(joints):
                weights[block] = weights.get(block, 0.0) + 1.0
            continue
        else:
            hint = did_you_mean(text, [*SPACES, *named_archs()])
            raise InputError(f"--for: '{text}' is no space, recipe, run or arch{hint}")
        for block, often in space.block_frequencies().items():
            weights[block] = weights.get(block, 0.0) + often
    return weights, named, space


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


def is_here(target: Target) -> bool:
    """Return whether the target is this very machine."""
    return target.threads <= available_threads() and target == local_target(
        target.runtime, target.threads, precision=target.precision
    )


def measure_onnx(path: Path, size: tuple[int, int], target: Target, seconds: float = 2.0) -> dict[str, float]:
    """Return the measured milliseconds of a whole network on this machine: median, p10, p90, runs."""
    timing = measure_model(
        get_runtime(target.runtime), path, size, target.threads, precision=target.precision, seconds=seconds
    )
    return {
        "median_ms": timing.median_ms,
        "p10_ms": timing.p10_ms,
        "p90_ms": timing.p90_ms,
        "runs": timing.runs,
    }


def random_network(arch: Arch, joints: int) -> Subnet:
    """Return the network with random weights, on which no layer's time depends."""
    return build_network(arch, joints, torch.Generator().manual_seed(0))


def _layer_weights(network: Subnet) -> Weights:
    """Return the numbers of a network's layers, normalisation folded."""
    folded, found = fold_batchnorm(network), {}
    for layer in network.arch.layers(network.joints):
        module = folded.get_submodule(layer.name)
        weight, bias = (
            None if value is None else cast(torch.Tensor, value).detach().float().cpu().numpy()
            for value in (module.weight, module.bias)
        )
        found[layer.name] = (cast(Any, weight), bias)
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
        program = network_program(network.arch, network.joints, size, weights=_layer_weights(network))
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
    known = LatencyTable.load(path) if path.is_file() else None
    measured = [p for p, row in known.rows.items() if not is_fitted(row)] if known is not None else []
    chosen = [*select_pieces(weights, share, set(measured)), *(p for p in weights if p in set(measured))]
    if len(chosen) < min(len(weights), FEWEST_PIECES) and share < 1:
        least = math.ceil(100 * FEWEST_PIECES / len(weights)) / 100
        raise InputError(
            f"--share {share:g} of {len(weights)} blocks is {len(chosen)}, but a fit needs {FEWEST_PIECES}:"
            f" take --share {min(least, 1.0):g} or more"
        )
    with tempfile.TemporaryDirectory() as scratch, progress_bar("blocks") as bar:

        def job(arch: Arch, joints: int) -> NetworkJob:
            export = cache(partial(network_file, target, arch, joints, Path(scratch)))
            return NetworkJob(arch, joints, export)

        table = profile(
            target,
            chosen,
            out=folder,
            networks=[job(arch, joints) for arch, joints in archs],
            settings=settings,
            bench=bench,
            progress=lambda done, total, name: bar.update(done, total, name),
            command=" ".join(["nas", *sys.argv[1:]]),
        )
    filled = fill_table(table, weights)
    if len(filled.networks) >= FEWEST_NETWORKS:
        filled = calibrate(filled)
    if filled != table:
        filled.save(path)
    return filled


def run_profile(
    target: str,
    wanted: Sequence[str],
    *,
    joints: int,
    runtime: str,
    threads: int | None,
    networks: int,
    folder: Path,
    precision: str = "fp32",
    share: float = 1.0,
    settings: ProfileSettings | None = None,
) -> dict[str, Any]:
    """Carry out ``nas profile``; return what it made and how far it can be believed.

    Raises
    ------
    InputError
        If the target or what is to be profiled is unknown.
    UnavailableError
        If the runtime is not installed, or does not offer the precision.
    """
    link: LinkDescription | None = None
    if target == "this-machine":
        described = local_target(runtime, threads, precision=precision)
    elif Path(target).suffix in (".yaml", ".yml"):
        described, link = read_linked_target(target)
    else:
        raise InputError(
            f"the target is 'this-machine' or a .yaml file that describes one, not '{target}';"
            " nas profile ssh:user@host --describe prints one"
        )
    if link is None:
        get_runtime(described.runtime).check(described.threads, described.precision)
        here = local_target(described.runtime, described.threads)  # refuses more threads than there are
        if described.processor != here.processor:
            note(
                f"'{target}' says that its processor is '{described.processor}'; what is measured is this"
                f" machine, '{here.processor}'. If that is another one, give the file a 'link' to the device"
            )
    weights, archs, space = work_list(wanted, joints)
    if space is not None and networks > len(archs):
        rng = np.random.default_rng(0)
        archs += [(space.sample(rng), space.joints) for _ in range(networks - len(archs))]
    chosen = f", {share:.0%} of them measured" if share < 1 else ""
    note(f"{len(weights)} distinct blocks{chosen}, {len(archs)} whole networks on {described.name}")
    with bench_of(described, link) as bench:
        table = profile_space(described, weights, archs, folder, share=share, settings=settings, bench=bench)
    report: dict[str, Any] = {
        "target": table.name,
        "table": str(folder / f"{table.name}.csv"),
        "blocks": len(table),
        "fitted": sum(map(is_fitted, table.rows.values())),
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
        }
    else:
        report["calibration"] = "none: fewer than 5 whole networks; predictions are plain sums of blocks"
    return report


def bench_of(target: Target, link: LinkDescription | None) -> Bench:
    """Return where a target is measured: in this process, or at the other end of a link."""
    if link is None:
        return LocalBench(get_runtime(target.runtime), target.threads, target.precision)
    make = MODEL_WRITERS.get(target.runtime)
    return open_bench(target, link, None if make is None else make(target.precision))


def describe_target(device: str, runtime: str) -> str:
    """Return a target file for a device: ``ssh:user@host``, or ``ssh:user@host:port``.

    Raises
    ------
    InputError
        If the device is written otherwise.
    """
    way, _, place = device.partition(":")
    host, _, port = place.partition(":")
    if way != "ssh" or not host or not (port.isdecimal() or not port):
        raise InputError(f"--describe needs a device such as ssh:pi@kitchen.local, not '{device}'")
    return describe_device(LinkDescription(ssh=host, port=int(port) if port else None), runtime)
