"""What an export gains: PyTorch, ONNX Runtime, OpenVINO, ncnn and LiteRT side by side, and each rewrite.

Every network has random weights from a seed and batch-norm statistics of random pictures. All variants of it
stand ready in one process and are visited in turn, one untimed run and some timed ones each, so that the
machine's moods fall on all alike; the ratio to PyTorch's eager mode is taken within each round. Before
anything is timed the outputs of every variant are held against PyTorch's: fp32 must agree, rewritten models
with the plain export to 1e-5 of the largest value; of fewer bits the error is told. Runtimes that are not
installed are left out, by name.

Run: python experiments/benchmarks/exported.py [--record]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import command, finish, machine, parser, record, record_page
from numpy.typing import NDArray
from torch import nn

from latency_tables.runtimes import RUNTIMES
from latency_tables.runtimes.base import random_picture
from nas.console import print_table
from nas.latency import random_network, runnable
from search_spaces import get_arch
from supernet.base import Subnet
from supernet.export import OPSET, export_onnx, fold_batchnorm
from supernet.fusing import REWRITES, rewritten
from supernet.quantise import Quantiser, calibrate, saturates
from supernet.subpixel import subpixel_deconvs

Array = NDArray[np.float32]
Outputs = Callable[[], Sequence[Array]]
NETWORKS = ("litepose-xs", "litepose-s", "deconv-reduced")
EAGER, FOLDED = "PyTorch eager", "ONNX Runtime: batch norm folded"
FP32_ERROR, REWRITE_ERROR = 1e-3, 1e-5
COLUMNS = ("variant", "median ms", "10% to 90%", "times eager", "largest error")
PACKAGES = ("onnxruntime", "openvino", "ncnn", "ai-edge-litert")
TIMED_S, FEWEST, MOST = 0.06, 1, 6
"""A visit times runs for about so long, and at least and at most so many."""
DEAR_S = 0.4
"""What takes longer is neither visited in every round nor run untimed before."""


@dataclass
class Variant:
    """One way to run a network.

    Attributes
    ----------
    run
        Runs it once and returns its outputs, (1, C, H, W) each, or runs it and returns nothing.
    outputs
        Runs it once and returns copies of its outputs.
    exact
        Whether it computes in 32-bit floats.
    """

    run: Callable[[], Any]
    outputs: Outputs
    exact: bool = True
    error: float = math.nan
    rounds: dict[int, float] = field(default_factory=dict)


def joints_of(name: str | Path) -> int:
    """Return how many joints a network is given: CrowdPose's bottom-up, COCO's top-down."""
    return 14 if get_arch(name).family.name == "litepose" else 17


@torch.no_grad()
def made_network(name: str | Path) -> Subnet:
    """Return a network with random weights; its batch norms have the statistics of random pictures."""
    network = random_network(get_arch(name), joints_of(name))
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
            module.momentum = None
    network.train()
    network(torch.randn((2, 3, *network.arch.size), generator=generator))
    return network.eval()


def plain_export(network: Subnet, path: Path) -> Path:
    """Write a network as torch's exporter does when it is told nothing."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (torch.zeros(1, 3, *network.arch.size),),
                str(path),
                dynamo=True,
                input_names=["image"],
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    return path


def torch_variants(network: Subnet, image: Array) -> dict[str, Variant]:
    """Return PyTorch's ways: as the network is, channels last, folded."""

    def variant(module: nn.Module, last: bool) -> Variant:
        form = torch.channels_last if last else torch.contiguous_format
        made = module.to(memory_format=form)  # type: ignore[call-overload]
        x = torch.from_numpy(image).to(memory_format=form)

        def run() -> tuple[torch.Tensor, ...]:
            with torch.inference_mode():
                found = made(x)
            return (found,) if isinstance(found, torch.Tensor) else tuple(found)

        return Variant(run, lambda: [each.contiguous().numpy().copy() for each in run()])

    return {
        EAGER: variant(network, False),
        f"{EAGER}, channels last": variant(copy.deepcopy(network), True),
        f"{EAGER}, batch norm folded": variant(fold_batchnorm(network), False),
        f"{EAGER}, folded, channels last": variant(fold_batchnorm(network), True),
    }


def fp32_files(network: Subnet, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return a network's ONNX files in 32 bits by what they are, and what is to be told of them."""
    files = {"plain export": plain_export(network, folder / "plain.onnx")}
    files["batch norm folded"] = folder / "folded.onnx"
    export_onnx(network, files["batch norm folded"], tolerance=FP32_ERROR)
    folded = onnx.load(files["batch norm folded"])
    told: dict[str, Any] = {
        "nodes_of_the_plain_export": len(onnx.load(files["plain export"]).graph.node),
        "nodes_of_the_folded_export": len(folded.graph.node),
        "rewritten_places": {},
    }
    names: tuple[str, ...] = ()
    for name in REWRITES:
        model, made = rewritten(folded, (*names, name))
        told["rewritten_places"][name] = made[name]
        if made[name]:
            names = (*names, name)
            files[", ".join(names)] = folder / f"{'-'.join(names)}.onnx"
            onnx.save(model, files[", ".join(names)])
    return files, told


def int8_files(folded: onnx.ModelProto, image: Array, folder: Path) -> dict[str, Path]:
    """Return a network's ONNX files in 8 bits by what they are, their ranges those of one picture."""
    files = {}
    spread, _ = subpixel_deconvs(folded)
    ranges = calibrate(spread, [image])
    for bits in (7, 8):
        files[f"int8, weights of {bits} bits"] = folder / f"int8-{bits}.onnx"
        onnx.save(Quantiser(spread, ranges, bits).int8(), files[f"int8, weights of {bits} bits"])
    return files


def add_runtime(
    variants: dict[str, Variant],
    stack: contextlib.ExitStack,
    name: str,
    files: Mapping[str, tuple[Path, str]],
    size: tuple[int, int],
    threads: int,
) -> None:
    """Add what a runtime makes of files, given by name with the precision that they are opened in."""
    runtime = RUNTIMES[name]
    for told, (path, precision) in files.items():
        prepared = stack.enter_context(runtime.prepare_model(path, size, threads, precision))
        variants[told] = Variant(
            prepared.run, prepared.outputs, exact=not any(word in told for word in ("int8", "fp16"))
        )


def bf16(path: Path, image: Array, threads: int) -> Variant | None:
    """Return OpenVINO's computing in bfloat16, where the processor has instructions for it."""
    from latency_tables.runtimes.openvino_runtime import _core, _openvino

    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    request = _core().compile_model(_core().read_model(path), "CPU", settings).create_infer_request()
    request.set_input_tensor(0, _openvino().Tensor(image, shared_memory=False))

    def run() -> None:
        request.infer(share_outputs=True)

    def outputs() -> list[Array]:
        run()
        return [np.array(each.data) for each in request.output_tensors]

    return Variant(run, outputs, exact=False)


def all_variants(
    network: Subnet, runtimes: Sequence[str], threads: int, stack: contextlib.ExitStack
) -> tuple[dict[str, Variant], dict[str, Any]]:
    """Return every way to run a network, and what is to be told of its files."""
    size = network.arch.size
    image = random_picture(size)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litepose-nas-")))
    variants = torch_variants(network, image)
    files, told = fp32_files(network, folder)
    files |= int8_files(onnx.load(files["batch norm folded"]), image, folder)
    if "onnxruntime" in runtimes:
        ours = {f"ONNX Runtime: {what}": (path, "fp32") for what, path in files.items()}
        add_runtime(variants, stack, "onnxruntime", ours, size, threads)
    if "openvino" in runtimes:
        wanted = ["plain export", "batch norm folded", "phases"]
        wanted += [name for name in files if name.startswith("int8")]
        ours = {f"OpenVINO: {what}": (files[what], "fp32") for what in wanted if what in files}
        add_runtime(variants, stack, "openvino", ours, size, threads)
        half = bf16(files["batch norm folded"], image, threads)
        if half is not None:
            variants["OpenVINO: bf16"] = half
        else:
            told["bf16"] = "this processor has no instructions for it"
    for name, called in (("ncnn", "ncnn"), ("litert", "LiteRT")):
        if name not in runtimes:
            continue
        for precision in RUNTIMES[name].precisions:
            path = runnable(name, network, folder / f"{name}-{precision}", size, precision)
            add_runtime(variants, stack, name, {f"{called}: {precision}": (path, precision)}, size, threads)
    return variants, told


def held_against_torch(variants: Mapping[str, Variant]) -> None:
    """Note every variant's largest error, relative to the largest value of an output.

    Raises
    ------
    SystemExit
        If what computes in 32-bit floats gives something else.
    """
    expected = variants[EAGER].outputs()
    folded = variants[FOLDED].outputs() if FOLDED in variants else None
    for name, variant in variants.items():
        found = variant.outputs()
        variant.error = _difference(expected, found)
        if variant.exact and not variant.error <= FP32_ERROR:
            raise SystemExit(f"{name}: the outputs are off by {variant.error:.2g} of the largest value")
        if folded is not None and any(each in name for each in REWRITES):
            off = _difference(folded, found)
            if name.startswith("ONNX") and not off <= REWRITE_ERROR:
                raise SystemExit(f"{name}: rewritten, the outputs are off by {off:.2g} of the largest value")


def _difference(expected: Sequence[Array], found: Sequence[Array]) -> float:
    if [each.shape for each in expected] != [each.shape for each in found]:
        return math.inf
    return max(
        float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-30))
        for a, b in zip(expected, found, strict=True)
    )


def measure(variants: Mapping[str, Variant], rounds: int) -> None:
    """Visit the variants in turn; note the median milliseconds of each visit."""
    cost = {}
    for name, variant in variants.items():
        variant.run()
        start = time.perf_counter()
        variant.run()
        cost[name] = time.perf_counter() - start
    for turn in range(rounds):
        for name, variant in variants.items():
            # What is dear waits, but is visited three times at least; the others never.
            every = min(max(1, math.ceil(cost[name] / DEAR_S)), max(1, rounds // 3))
            if name != EAGER and turn % every:
                continue
            time.sleep(0.01)  # until the workers of the one before have fallen asleep
            if cost[name] < DEAR_S:
                variant.run()
            count = min(max(FEWEST, round(TIMED_S / max(cost[name], 1e-4))), MOST)
            taken = []
            for _ in range(count):
                start = time.perf_counter()
                variant.run()
                taken.append(1e3 * (time.perf_counter() - start))
            variant.rounds[turn] = statistics.median(taken)


def figures(variants: Mapping[str, Variant]) -> dict[str, dict[str, Any]]:
    """Return what is told of each variant."""
    eager = variants[EAGER].rounds
    told = {}
    for name, variant in variants.items():
        ms = np.array(list(variant.rounds.values()))
        ratios = np.array([eager[turn] / value for turn, value in variant.rounds.items()])
        low, median, high = (float(f"{value:.4g}") for value in np.percentile(ms, (10, 50, 90)))
        told[name] = {
            "median_ms": median,
            "p10_ms": low,
            "p90_ms": high,
            "visits": len(ms),
            "times_eager": float(f"{float(np.median(ratios)):.4g}"),
            "times_eager_p10_p90": [float(f"{value:.4g}") for value in np.percentile(ratios, (10, 90))],
            "largest_error": float(f"{variant.error:.3g}"),
        }
    return told


def rows_of(told: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table's rows."""
    rows = []
    for name, each in told.items():
        low, high = each["times_eager_p10_p90"]
        rows.append(
            (
                name,
                f"{each['median_ms']:.3g}",
                f"{each['p10_ms']:.3g} to {each['p90_ms']:.3g}",
                f"{each['times_eager']:.3g} ({low:.3g} to {high:.3g})",
                f"{each['largest_error']:.1e}",
            )
        )
    return rows


def one_network(name: str | Path, runtimes: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    """Return the figures of one network."""
    with contextlib.ExitStack() as stack:
        network = made_network(name)
        variants, told = all_variants(network, runtimes, threads, stack)
        held_against_torch(variants)
        measure(variants, rounds)
        found = {
            "size": list(network.arch.size),
            "joints": network.joints,
            "variants": figures(variants),
            **told,
        }
        del variants
    gc.collect()
    return found


def page(report: Mapping[str, Any]) -> str:
    """Return the record for people."""
    tables: list[str] = []
    networks = report["networks"]
    for name, found in networks.items():
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows_of(found["variants"])]
        height, width = found["size"]
        tables += [f"## {name}, {height}x{width}", "\n".join(lines)]
    first = next(iter(networks))
    left_out = [f"{name} ({why})" for name, why in report["left_out"].items()]
    notes = [
        *tables[2:],
        "*Times eager*: how many times faster than PyTorch's eager mode, taken within each round (median, 10%"
        " to 90% of rounds). *Largest error*: of any output value against PyTorch's, relative to the largest"
        " of that output. Weights are random, ranges of int8 come from the one picture that is timed: their"
        " errors tell what arithmetic loses, not what AP does (see `nas export`).",
        "*Plain export* is what torch's exporter writes of the network as it is, *batch norm folded* what"
        " `export_onnx` writes. The rewrites (`supernet/fusing.py`) add up: *phases* turns transposed"
        " convolutions into plain ones with addition and ReLU inside, *interleave* DepthToSpace into"
        f" concatenations, *padding* writes zeros before wide depthwise kernels; they give the outputs of the"
        f" folded export to {REWRITE_ERROR:g} of the largest value, or the benchmark fails.",
        "int8 weights of 8 bits saturate on this processor, which has no VNNI; those of 7 bits do not."
        if report["saturates"]
        else "This processor's int8 kernels lose nothing of weights of 8 bits.",
        "LiteRT's delegate is slow at depthwise kernels of more than 25 weights on x86, and LitePose's are"
        " 7x7: its times here say nothing about telephones.",
        f"Left out: {', '.join(left_out)}." if left_out else "Nothing was left out.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    height, width = networks[first]["size"]
    return record_page(
        "Exported networks, runtime by runtime",
        f"Batch 1, {report['threads']} thread(s); all variants of a network stand in one process and are"
        f" visited in turn, {report['rounds']} rounds.\n\n## {first}, {height}x{width}",
        COLUMNS,
        rows_of(networks[first]["variants"]),
        notes,
        report,
    )


def options_and_given() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and what it read."""
    options = parser("exported", (__doc__ or "").splitlines()[0], repeats=15)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names or files of archs")
    known = [name for name in RUNTIMES if name != "torch"]
    options.add_argument("--runtimes", nargs="+", default=known, choices=known, help="beside PyTorch")
    given = options.parse_args()
    given.networks = [Path(name) if Path(name).is_file() else name for name in given.networks]
    if min(given.repeats, given.threads) < 1:
        options.error("--repeats and --threads are at least 1")
    return options, given


def main() -> None:
    """Run the benchmark that the command line describes."""
    options, given = options_and_given()
    torch.set_num_threads(given.threads)
    left_out = {name: RUNTIMES[name].unavailable() for name in given.runtimes}
    there = [name for name, why in left_out.items() if why is None]
    report: dict[str, Any] = {
        "benchmark": "exported",
        "threads": given.threads,
        "rounds": given.repeats,
        "left_out": {name: why for name, why in left_out.items() if why is not None},
        "saturates": saturates(),
        "networks": {},
    }
    for name in given.networks:
        shown = Path(name).stem
        found = one_network(name, there, given.threads, given.repeats)
        report["networks"][shown] = found
        height, width = found["size"]
        print_table(
            f"{shown}, {height}x{width}, {given.threads} thread(s)", COLUMNS, rows_of(found["variants"])
        )
    report |= {
        "machine": machine(),
        "versions": {
            each: metadata.version(each)
            for each in PACKAGES
            if any(each == name or (each, name) == ("ai-edge-litert", "litert") for name in there)
        },
        "date": datetime.now(UTC).date().isoformat(),
        "command": command(options, given),
    }
    if given.record:
        record(given, "exported", report, page(report))


if __name__ == "__main__":
    finish(main)
