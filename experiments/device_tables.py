"""Latency tables of Snapdragon 855, Raspberry Pi 4 and Jetson Nano from public measurements; their errors.

Nobody has published layer latencies of pose networks on these devices. Published are nine whole pose networks
on each of the three (LitePose's own figures, arXiv 2205.01271), and measurements of other networks, layers or
blocks in other runtimes. So a table is an estimate: milliseconds of a layer as a non-negative combination of
few of its features (`latency_tables.roofline`), or as a multiple of what a roofline fitted on those other
measurements of the device says, with coefficients that are fitted on the nine networks.

All candidate models are compared by the errors of each network, and of each family of networks (LitePose,
EfficientHRNet, HigherHRNet), left out of the fit; the one that carries over best to a family that it has not
seen makes the table. The error bar of a table leaves out the choice, too: each network is predicted by the
candidate that is chosen on the other eight, fitted on those. Told beside it: the same with a whole family
left out of both, and the errors on public timings of other networks on the same device in other runtimes.

Candidates price a narrower layer never above a wider one; that rules out padding with a coefficient of its
own.

The measurements are not part of the project; by default they are looked for in a folder `shared` beside the
repository.

Run: python experiments/device_tables.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy import stats

from latency_tables import Calibration, LatencyTable, Row, Target
from latency_tables.published import Published, published_file, published_text
from latency_tables.roofline import (
    FEATURES,
    TERMS,
    Roofline,
    Terms,
    conformal,
    features,
    fit_coefficients,
    left_out_errors,
)
from latency_tables.table import packaged_folder
from nas.plot_style import GRID, MUTED, STYLE, save_figure
from search_spaces import InputError, Layer, get_arch, litepose_native, named_archs
from search_spaces.files import make_folder, read_text, write_json, write_text
from search_spaces.layers import Piece

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish  # noqa: E402

DATA = HERE.parents[1] / "shared" / "latency"
MADE = "2026-11-22"
"""When the tables were last decided upon; equal data give equal files."""
DIGITS = 6
"""Significant digits that are kept; what differs between two machines' linear algebra lies far behind."""
RULES = {"LitePose": "litepose", "EfficientHRNet": "efficient-hrnet", "HigherHRNet": "higherhrnet"}
"""By family of the nine networks, how its networks are called here: a family, or rules of listed networks."""
LITEPOSE = {f"LitePose-{size}": f"litepose-{size.lower()}" for size in ("XS", "S", "M", "L")}
LITEPOSE_NETWORKS = [name for name in named_archs() if name.startswith("litepose")]
KINDS = {"conv": "conv", "fc": "conv", "dw": "dwconv", "deconv": "deconv"}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Device:
    """A device that gets a table.

    Attributes
    ----------
    target
        What the published figures hold for, as far as their source says.
    metric
        How the file of published figures calls it.
    title
        How people call it.
    runtime
        What is known of the runtime, in words.
    """

    target: Target
    metric: str
    title: str
    runtime: str


DEVICES = (
    Device(
        Target("snapdragon-855", "Snapdragon 855, CPU or GPU unstated", "unstated", "unstated", 0),
        "sd855",
        "Snapdragon 855",
        "unstated",
    ),
    Device(
        Target("raspberry-pi-4", "4 x Cortex-A72, threads and clock unstated", "unstated", "unstated", 0),
        "pi4",
        "Raspberry Pi 4",
        "unstated",
    ),
    Device(
        Target("jetson-nano", "128-core Maxwell GPU", "tvm", "unstated", 0),
        "nano",
        "Jetson Nano",
        "TVM auto-scheduler (by its author), version and precision unstated",
    ),
)
NOT_SHIPPED = {"Xavier": "Jetson AGX Xavier", "Orin": "Jetson AGX Orin and Orin Nano"}


# -- reading -------------------------------------------------------------------------------------------------


def read(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of one of the public measurements' files."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"'{path}' does not exist; --data names the folder of the public measurements")
    return list(csv.DictReader(io.StringIO(read_text(path, "public measurements"), newline="")))


@dataclass(frozen=True)
class PoseNet:
    """One of the nine published networks: family, and features summed over its layers, shape (9,)."""

    name: str
    family: str
    sums: Floats


def pose_networks(data: Path) -> list[PoseNet]:
    """Return the nine networks whose layers are known.

    Sums of two tensors, as a pass over one more tensor, count what is read; in LitePose that is what
    ``Layer.add`` counts.
    """
    sums: dict[str, Floats] = {}
    shapes: dict[str, list[Layer]] = {}
    for row in read(data, "pose_net_layers.csv"):
        total = sums.setdefault(row["model"], np.zeros(len(FEATURES)))
        if row["t"] == "elt":
            total[FEATURES.index("read")] += int(row["ci"]) * int(row["hi"]) * int(row["wi"]) / 1e6
            continue
        c_in, c_out, kernel, stride, groups, h, w = (
            int(row[x]) for x in ("ci", "co", "k", "s", "g", "hi", "wi")
        )
        kind: Any = KINDS[row["t"]]
        layer = Layer(kind, c_in, c_out, kernel, stride, groups, h, w)
        if layer.macs != int(row["macs"]):
            raise InputError(
                f"{row['model']}, row {row['i']}: {row['macs']} MACs, but {layer.key} has {layer.macs}"
            )
        total += features([layer])[0]
        shapes.setdefault(row["model"], []).append(layer)
    for model, arch in LITEPOSE.items():
        ours = [
            replace(x, norm=False, activation="none", bias=False, add=False)
            for x in get_arch(arch).layers(14)
        ]
        if ours != shapes[model] or not np.allclose(
            sums[model], features(get_arch(arch).layers(14)).sum(axis=0)
        ):
            raise InputError(f"the layers of {model} are not those of {arch}")
    return [PoseNet(name, name.split("-")[0], found) for name, found in sums.items()]


def published(data: Path) -> list[Published]:
    """Return the published latencies of the nine networks: from a table, or else read off the chart."""
    found: dict[tuple[str, str], Published] = {}
    devices = {device.metric: device for device in DEVICES}
    for row in read(data, "litepose_published.csv"):
        if row["metric"] not in devices:
            continue
        device = devices[row["metric"]]
        printed = row["kind"] == "published_table"
        if printed or (row["model"], row["metric"]) not in found:
            found[row["model"], row["metric"]] = Published(
                row["model"],
                LITEPOSE.get(row["model"], ""),
                device.target.device,
                float(row["value"]),
                "table" if printed else "chart",
                device.runtime,
                row["source"],
            )
    return sorted(found.values(), key=lambda each: (each.device, each.model))


def classifier_layers(data: Path) -> dict[str, tuple[list[Layer], list[float]]]:
    """Return for each of 102 CNNs its convolutions and their milliseconds on a Pixel 4's GPU.

    Inputs are listed as padded; a layer's input is taken from its output.
    """
    found: dict[str, tuple[list[Layer], list[float]]] = {}
    for row in read(data, "qed_tflite_cnn_ops_gpu.csv"):
        layers, times = found.setdefault(row["model"], ([], []))
        operation, c_in = row["operation"], int(row["input_channel"])
        if operation == "FULLY_CONNECTED":
            layer = Layer("conv", c_in, int(row["filter"]), 1, 1, 1, 1, 1)
        elif operation in ("CONV_2D", "CONV_2D_GROUP", "DEPTHWISE_CONV_2D"):
            kernel, stride = int(row["kernel"]), int(row["stride"])
            size = int(row["output_shape"]) * stride
            if operation == "DEPTHWISE_CONV_2D":
                layer = Layer("dwconv", c_in, c_in, kernel, stride, c_in, size, size)
            else:
                groups = int(row["group"]) if operation == "CONV_2D_GROUP" else 1
                layer = Layer("conv", c_in, int(row["filter"]), kernel, stride, groups, size, size)
        else:
            continue
        layers.append(layer)
        times.append(float(row["pixel4|gpu|float"]) / 1e3)
    return found


# -- other networks on the same devices ----------------------------------------------------------------------

NAMES = {
    **{"resnet18": "resnet18", "ResNet18": "resnet18", "squeezenet1_0": "squeezenet_v1_0"},
    **{"squeezenet1_1": "squeezenet_v1_1", "squeezenet": "squeezenet_v1_1", "densenet121": "densenet121"},
    **{"densenet169": "densenet169", "mobilenet": "mobilenet_w1", "MobileNetV1": "mobilenet_w1"},
    **{"MobileNet v1 1.0X": "mobilenet_w1", "mobilenet_v2": "mobilenetv2_w1"},
    **{"MobileNetV2": "mobilenetv2_w1", "MobileNet v2 1.0X": "mobilenetv2_w1"},
    **{"mobilenet_v3": "mobilenetv3_large_w1", "MobileNetV3-large": "mobilenetv3_large_w1"},
    **{"MobileNetV3_large_x1_0": "mobilenetv3_large_w1", "MobileNet v3 Large": "mobilenetv3_large_w1"},
    **{"MobileNetV3-small": "mobilenetv3_small_w1", "MobileNetV3_small_x1_0": "mobilenetv3_small_w1"},
    **{"MobileNet v3 Small": "mobilenetv3_small_w1", "regnety_400m": "regnety004"},
}
"""Networks that public timings name, as the file with layers calls them; others' layers are not at hand."""


@dataclass(frozen=True)
class Group:
    """Whole networks in one runtime on one device: what it is, their names and milliseconds."""

    device: str
    what: str
    models: tuple[str, ...]
    ms: tuple[float, ...]


def other_networks(data: Path, known: Mapping[str, Any]) -> list[Group]:
    """Return public timings of whole networks whose layers are at hand, at 224 x 224, fp32 or fp16."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    places = {
        "Snapdragon 855": "snapdragon-855",
        "Raspberry Pi 4": "raspberry-pi-4",
        "Jetson Nano": "jetson-nano",
    }
    places |= {"Xavier": "Xavier", "Orin": "Orin"}

    def add(where: str, what: str, name: str, ms: float) -> None:
        device = next((device for word, device in places.items() if word in where), None)
        model = name if name in known and "TFLite 2.10" in what else NAMES.get(name)
        if device is not None and model is not None:
            found.setdefault((device, what), {}).setdefault(model, ms)

    for row in read(data, "published_latency.csv"):
        precision, size = row["precision"].lower(), row["input"]
        if "int8" in precision or not size.startswith("224"):
            continue
        told = next((word for word in ("fp32", "fp16") if word in precision), "unstated")
        runtime = row["runtime"].removesuffix(f" {told}")
        if "Paddle" in runtime:
            runtime += " ARMv7" if "ARMV7" in row["precision"] else ""
        word = row["device"].strip()
        add(word, f"{runtime} {told}, {row['processor']}, {word}", row["model"], float(row["ms"]))
    for row in read(data, "ncnn_benchncnn.csv"):
        if not row["gpu"]:
            continue
        processor = f"CPU, {row['threads']} threads" if float(row["gpu"]) < 0 else "GPU"
        word = row["device"].split(" (")[0].split(" Broadcom")[0]
        add(row["device"], f"ncnn, {processor}, {word}", row["model"], float(row["avg_ms"]))
    return [
        Group(device, what, tuple(times), tuple(times.values()))
        for (device, what), times in sorted(found.items())
        if len(times) >= 3
    ]


# -- candidate models ----------------------------------------------------------------------------------------


def together(*names: str) -> dict[str, float]:
    """Return the term in which features share one coefficient."""
    return dict.fromkeys(names, 1.0)


MACS = together("dense", "pointwise", "depthwise", "deconv")
PADDED = {**MACS, "idle": 1.0}
READ, LAYERS = together("read"), together("layers")
MOVED = together("read", "written")
TRAFFIC = together("read", "weights", "written")
SHAPES: dict[str, Terms] = {
    "MACs": [MACS],
    "MACs + layers": [MACS, LAYERS],
    "MACs + read": [MACS, READ],
    "MACs + read and written": [MACS, MOVED],
    "MACs + all traffic": [MACS, TRAFFIC],
    "MACs + all traffic + layers": [MACS, TRAFFIC, LAYERS],
    "padded MACs": [PADDED],
    "padded MACs + layers": [PADDED, LAYERS],
    "padded MACs + read": TERMS,
    "padded MACs + read and written": [PADDED, MOVED],
    "padded MACs + read + layers": [PADDED, READ, LAYERS],
    "all traffic": [TRAFFIC],
    "dense MACs + 1x1 and depthwise MACs": [together("dense", "deconv"), together("pointwise", "depthwise")],
    "depthwise MACs + other MACs": [together("depthwise"), together("dense", "pointwise", "deconv")],
    "dense MACs + 1x1 and depthwise MACs + read": [
        together("dense", "deconv"),
        together("pointwise", "depthwise"),
        READ,
    ],
}
"""Models with coefficients on features alone; three at most, for nine networks."""
EXTRAS: dict[str, Terms] = {
    "": [],
    " + layers": [LAYERS],
    " + MACs": [MACS],
    " + padded MACs": [PADDED],
    " + read": [READ],
}
"""What stands beside a multiple of what other measurements of the device say."""


WHOLE = {
    "snapdragon-855": ("TFLite 2.10 fp16, GPU",),
    "raspberry-pi-4": ("ncnn, CPU, 4 threads",),
    "jetson-nano": ("TensorRT fp16, GPU, Jetson Nano", "ncnn, GPU"),
}
"""Public timings of whole networks that a model may scale: those on the processor of the published figures.
HigherHRNet-W24 in 289 ms is 166 GFLOP/s, more than the Snapdragon's four big cores can do in fp32 (161), and
in 1414 ms on the Raspberry Pi 34, more than two of its cores can."""


def priors(
    device: str, data: Path, known: Mapping[str, tuple[list[Layer], list[float]]], groups: Sequence[Group]
) -> dict[str, dict[str, float]]:
    """Return rooflines, as one term each, fitted on other public measurements of the device."""
    found: dict[str, Floats] = {}
    ops = [pair for layers, times in known.values() for pair in zip(layers, times, strict=True)]
    pixel = fit_coefficients(features(x for x, _ in ops), np.array([ms for _, ms in ops]))
    if device == "raspberry-pi-4":
        found["HW-NAS-Bench blocks"] = fit_coefficients(*blocks(data))
    else:  # nobody has measured layers on a Nano: those of another GPU stand in
        found["Pixel 4 GPU layers"] = pixel
    for group in groups:
        if group.device == device and group.what.startswith(WHOLE[device]):
            sums = np.array([features(known[model][0]).sum(axis=0) for model in group.models])
            found[f"whole networks ({group.what})"] = fit_coefficients(sums, np.array(group.ms), TERMS)
    return {name: dict(zip(FEATURES, found[name].tolist(), strict=True)) for name in found}


def blocks(data: Path) -> tuple[Floats, Floats]:
    """Return features and milliseconds of FBNet's blocks on a Raspberry Pi 4, where they are absolute."""
    sums, times = [], []
    for row in read(data, "hwnasbench_fbnet_blocks_recovered.csv"):
        if row["device"] != "raspi4" or row["op"] != "ConvBlock" or not row["ms_kind"].startswith("absolute"):
            continue
        c_in, c_out, size, stride, kernel, groups = (
            int(row[x]) for x in ("Cin", "Cout", "H", "stride", "kernel", "group")
        )
        middle, after = c_in * int(row["expansion"]), -(-size // stride)
        layers = (
            Layer("conv", c_in, middle, 1, 1, groups, size, size),
            Layer("dwconv", middle, middle, kernel, stride, middle, size, size),
            Layer("conv", middle, c_out, 1, 1, groups, after, after, add=c_in == c_out and stride == 1),
        )
        sums.append(features(layers).sum(axis=0))
        times.append(float(row["ms"]))
    return np.array(sums), np.array(times)


def candidates(device: str, known_priors: Mapping[str, Mapping[str, float]]) -> dict[str, Terms]:
    """Return every model that is compared for a device, by name."""
    scaled: dict[str, Terms] = {
        f"multiple of {name}{extra}": [term, *terms]
        for name, term in known_priors.items()
        for extra, terms in EXTRAS.items()
    }
    return {**SHAPES, **scaled}


# -- comparing them ------------------------------------------------------------------------------------------


def rms(errors: Floats) -> float:
    """Return the root mean square of logarithmic errors: what candidates are compared by."""
    return float(np.sqrt(np.mean(np.square(errors))))


def best(models: Mapping[str, Terms], sums: Floats, ms: Floats, families: Sequence[str]) -> str:
    """Return the name of the model with the least error of families left out; of equal ones the first."""
    found = {name: rounded(rms(left_out_errors(sums, ms, models[name], families))) for name in models}
    return min(models, key=lambda name: (found[name], len(models[name])))


def chosen_errors(
    models: Mapping[str, Terms],
    sums: Floats,
    ms: Floats,
    families: Sequence[str],
    folds: Sequence[Hashable],
) -> Floats:
    """Return the errors of what is left out of the choice of the model as well as of its fit."""
    errors = np.empty(len(ms))
    for fold in dict.fromkeys(folds):
        out = np.array([each == fold for each in folds])
        others = [family for family, left in zip(families, out, strict=True) if not left]
        model = models[best(models, sums[~out], ms[~out], others)]
        predicted = sums[out] @ fit_coefficients(sums[~out], ms[~out], model)
        errors[out] = np.log(predicted / ms[out])
    return errors


def told(errors: Floats) -> dict[str, float]:
    """Return what errors (logarithms of predicted over published) come to."""
    relative = np.abs(np.expm1(errors))
    return {
        "median_error": rounded(float(np.median(relative))),
        "worst_error": rounded(float(relative.max())),
        "rms_log_error": rounded(rms(errors)),
        "worst_factor": rounded(float(np.exp(np.abs(errors).max()))),
    }


def rounded(value: float) -> float:
    """Return a number with the digits that are kept."""
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Found:
    """What was found for one device: the table, and everything that is told of it."""

    device: Device
    table: LatencyTable
    report: dict[str, Any]


def study(
    device: Device,
    networks: Sequence[PoseNet],
    figures: Sequence[Published],
    known: Mapping[str, tuple[list[Layer], list[float]]],
    groups: Sequence[Group],
    data: Path,
) -> Found:
    """Return a device's table and its errors."""
    name = device.target.device
    mine = {each.model: each for each in figures if each.device == name}
    sums = np.array([net.sums for net in networks])
    ms = np.array([mine[net.name].ms for net in networks])
    families = [net.family for net in networks]
    models = candidates(name, priors(name, data, known, groups))
    compared = []
    for model, terms in models.items():
        left, by_family = (left_out_errors(sums, ms, terms, folds) for folds in (None, families))
        compared.append(
            {
                "model": model,
                "coefficients": len(terms),
                "left_out": told(left),
                "family_left_out": told(by_family),
            }
        )
    model = best(models, sums, ms, families)
    fitted = fit_coefficients(sums, ms, models[model])
    errors = chosen_errors(models, sums, ms, families, range(len(ms)))
    family_errors = chosen_errors(models, sums, ms, families, families)
    half_width, coverage = conformal(errors)
    summary = told(errors)
    roofline = Roofline(
        coefficients={key: rounded(value) for key, value in zip(FEATURES, fitted.tolist(), strict=True)},
        fitted_on="networks",
        samples=len(ms),
        median_error=summary["median_error"],
        half_width=rounded(half_width),
        coverage=coverage,
        families={
            RULES[family]: told(family_errors[[each == family for each in families]])["worst_factor"]
            for family in dict.fromkeys(families)
        },
    )
    predicted = roofline.ms_of(sums)
    lite = np.array([family == "LitePose" for family in families])
    report = {
        "device": name,
        "target": device.target.to_dict(),
        "model": model,
        "coefficients": roofline.to_dict()["coefficients"],
        "left_out_with_the_choice": summary,
        "left_out_with_the_choice_litepose_only": told(errors[lite]),
        "family_left_out_with_the_choice": {
            family: told(family_errors[[each == family for each in families]])
            for family in dict.fromkeys(families)
        },
        "interval_factor": rounded(math.exp(half_width)),
        "coverage": coverage,
        "networks": [
            {
                "model": net.name,
                "published_ms": float(ms[i]),
                "kind": mine[net.name].kind,
                "fitted_ms": rounded(float(predicted[i])),
                "left_out_ms": rounded(float(ms[i] * np.exp(errors[i]))),
                "family_left_out_ms": rounded(float(ms[i] * np.exp(family_errors[i]))),
            }
            for i, net in enumerate(networks)
        ],
        "candidates": sorted(compared, key=lambda each: each["family_left_out"]["rms_log_error"]),  # type: ignore[index]
        "other_runtimes": [against(group, roofline, known) for group in groups if group.device == name],
    }
    session = {
        "date": MADE,
        "command": "python experiments/device_tables.py",
        "runtime_version": device.runtime,
        "made": "estimated: nobody has measured these layers; coefficients fitted on nine published networks",
        "model": model,
        "interval": "from networks left out of the choice of the model and of its fit, one at a time",
        "family_left_out_worst_factor": rounded(float(np.exp(np.abs(family_errors).max()))),
        "sources": [*dict.fromkeys(each.source for each in mine.values()), *sources_of(model)],
    }
    calibration = Calibration(
        a_ms=0.0,
        b=1.0,
        networks=len(ms),
        median_error=summary["median_error"],
        worst_error=summary["worst_error"],
        raw_error=summary["median_error"],
        half_width=roofline.half_width,
        coverage=coverage,
        least_ms=float(ms.min()),
        most_ms=float(ms.max()),
    )
    table = LatencyTable(device.target, rows_of(roofline), (session,), calibration, roofline)
    return Found(device, table, report)


def sources_of(model: str) -> list[str]:
    """Return the citations of other measurements that a model scales."""
    cited = {
        "Pixel 4": "qed-usc/mobile-ml-benchmark@40ba833a dataset (MIT)",
        "HW-NAS-Bench": "GATECH-EIC/HW-NAS-Bench FBNet table (MIT), recovered from HELP's data (MIT)",
        "ncnn": "Tencent/ncnn benchmark/README.md @a4d2ea1d (BSD-3-Clause)",
        "TensorRT": "NVIDIA-AI-IOT/torch2trt README (MIT)",
        "XNNPACK": "google/XNNPACK README (BSD-3)",
    }
    return [source for word, source in cited.items() if word in model]


def rows_of(roofline: Roofline) -> dict[Piece, Row]:
    """Return rows for every layer of LitePose's native space and its named networks, 14 and 17 joints."""
    layers: dict[Layer, None] = {}
    for joints in (14, 17):
        layers.update(dict.fromkeys(litepose_native(joints).distinct_layers()))
        for name in LITEPOSE_NETWORKS:
            layers.update(dict.fromkeys(get_arch(name).layers(joints)))
    factor = math.exp(roofline.half_width)
    found: dict[Piece, Row] = {}
    for layer, ms in zip(layers, roofline.ms(layers).tolist(), strict=True):
        low, middle, high = (rounded(value) for value in (ms / factor, ms, ms * factor))
        found[layer] = Row(middle, low, high, 0, "calibrated-estimate", "experiments/device_tables.py")
    return found


def against(
    group: Group, roofline: Roofline, known: Mapping[str, tuple[list[Layer], list[float]]]
) -> dict[str, Any]:
    """Return how a table compares with whole networks in another runtime."""
    sums = np.array([features(known[model][0]).sum(axis=0) for model in group.models])
    errors = np.log(roofline.ms_of(sums) / np.array(group.ms))
    shift = float(np.median(errors))
    return {
        "what": group.what,
        "networks": len(group.ms),
        "median_error": rounded(float(np.median(np.abs(np.expm1(errors))))),
        "median_ratio": rounded(math.exp(shift)),
        "median_error_after_one_factor": rounded(float(np.median(np.abs(np.expm1(errors - shift))))),
        "spearman": rounded(float(stats.spearmanr(roofline.ms_of(sums), group.ms).statistic)),
    }


# -- devices without a table ---------------------------------------------------------------------------------


def without_table(
    data: Path,
    networks: Sequence[PoseNet],
    figures: Sequence[Published],
    known: Mapping[str, tuple[list[Layer], list[float]]],
    groups: Sequence[Group],
) -> dict[str, Any]:
    """Return how much is published about devices that get no table, and what came of it on one that does."""
    whole, names = read(data, "published_latency.csv"), {net.name for net in networks}
    parts = [row["device"] for row in read(data, "hwnasbench_fbnet_blocks_recovered.csv")]
    parts += [column for row in read(data, "qed_tflite_cnn_ops_gpu.csv") for column in row]
    rows = [row["device"] for row in whole]
    rows += [row["device"] for row in read(data, "ncnn_benchncnn.csv")]
    devices = {
        title: {
            "timings_of_whole_networks": sum(word in device for device in rows),
            "timings_with_layers_at_hand": sum(len(g.ms) for g in groups if g.device == word),
            "pose_networks_with_layers_at_hand": sum(
                word in row["device"] and row["model"] in names for row in whole
            ),
            "layers_or_blocks_measured": sum(word.lower() in device.lower() for device in parts),
        }
        for word, title in NOT_SHIPPED.items()
    }
    trials = []
    truth = np.array(
        [next(p.ms for p in figures if p.device == "jetson-nano" and p.model == n.name) for n in networks]
    )
    sums = np.array([net.sums for net in networks])
    for group in groups:
        if group.device == "jetson-nano" and len(group.ms) >= 4:
            theirs = np.array([features(known[model][0]).sum(axis=0) for model in group.models])
            coefficients = fit_coefficients(theirs, np.array(group.ms), TERMS)
            trials.append(
                {
                    "fitted_on": group.what,
                    "networks": len(group.ms),
                    **told(np.log(sums @ coefficients / truth)),
                }
            )
    return {"devices": devices, "the_same_attempt_on_a_jetson_nano": trials}


# -- telling -------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """Return a share for people."""
    return f"{value:.1%}" if value < 1 else f"{value:.0%}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines."""
    return [
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def page(found: Sequence[Found], absent: Mapping[str, Any]) -> str:
    """Return the record for people."""
    lines = [
        "# Latency tables of three devices from public measurements",
        "",
        "How the tables in `latency_tables/devices` were made, and how far they can be believed."
        " Nothing here was"
        " measured by this project. What they are held against are the nine networks of LitePose's"
        " paper (arXiv"
        " 2205.01271) on each device: from its tables where printed there, else read off its chart.",
        "",
        "Of the models compared, the one with the least error on families left out of its fit makes"
        " the table."
        " *Left out*: each network predicted by the model that is so chosen on the other eight,"
        " fitted on those."
        " The error bar of a table is the largest of these nine errors, which holds a tenth network with"
        " probability 0.9 if it is like the nine. *Family left out*: the same with all networks of"
        " its family left"
        " out of choice and fit, which leaves two families to choose by; that is what to expect of"
        " networks unlike"
        " LitePose, EfficientHRNet and HigherHRNet, and it is not within the error bar.",
        "",
    ]
    rows = []
    for each in found:
        r = each.report
        left, lite = r["left_out_with_the_choice"], r["left_out_with_the_choice_litepose_only"]
        worst = max(f["worst_factor"] for f in r["family_left_out_with_the_choice"].values())
        rows.append(
            (
                each.device.title, r["model"], percent(left["median_error"]), percent(left["worst_error"]),
                percent(lite["median_error"]), f"{r['interval_factor']:.2f}", f"{worst:.2f}",
            )
        )  # fmt: skip
    lines += markdown(
        (
            "device", "model", "left out, median", "worst", "of LitePose's four, median",
            "error bar: factor", "family left out: worst factor",
        ),
        rows,
    )  # fmt: skip
    for each in found:
        lines += device_page(each)
    lines += ["## No table for Xavier and Orin", "", absent_words(absent), ""]
    columns = (
        "device",
        "timings of whole networks",
        "with layers at hand",
        "pose networks",
        "layers measured",
    )
    lines += markdown(
        columns, [(title, *map(str, counts.values())) for title, counts in absent["devices"].items()]
    )
    lines += [
        "What would come of it can be tried where the truth is known. A model of padded MACs and values read,"
        " fitted on the same kind of timings of a Jetson Nano, and held against the nine pose"
        " networks there:",
        "",
    ]
    lines += markdown(
        ("fitted on", "networks", "median error", "worst factor"),
        [
            (
                each["fitted_on"],
                str(each["networks"]),
                percent(each["median_error"]),
                f"{each['worst_factor']:.2f}",
            )
            for each in absent["the_same_attempt_on_a_jetson_nano"]
        ],
    )
    lines += [f"Made {MADE} by `python experiments/device_tables.py`."]
    return "\n".join(lines) + "\n"


def absent_words(absent: Mapping[str, Any]) -> str:
    """Return why there is no table, in words."""
    return (
        "Among the public measurements is no latency of a pose network whose layers are known on"
        " them, nor of any"
        " layer or block; there are classifiers and detectors in TensorRT and ncnn. A table made of"
        " those could"
        " not be checked, so none is shipped. Measure: `nas profile`."
    )


def device_page(found: Found) -> list[str]:
    """Return what is told of one device."""
    r, title = found.report, found.device.title
    coefficients = ", ".join(f"{value:.4g} {name}" for name, value in r["coefficients"].items())
    families = ", ".join(
        f"{family} {percent(each['median_error'])} (worst factor {each['worst_factor']:.2f})"
        for family, each in r["family_left_out_with_the_choice"].items()
    )
    lines = [
        f"## {title}", "",
        f"Model: {r['model']}; ms per 10^9 MACs, 10^6 values, or layer: {coefficients}. Median error"
        " of a family"
        f" left out: {families}. Table: `{found.table.name}`; runtime: {found.device.runtime}.", "",
        f"![predicted against published](device-tables-{r['device']}.png)", "",
    ]  # fmt: skip
    lines += markdown(
        ("network", "published, ms", "from", "table says", "left out", "family left out"),
        [
            (
                each["model"], f"{each['published_ms']:g}", each["kind"], f"{each['fitted_ms']:.0f}",
                f"{each['left_out_ms']:.0f}", f"{each['family_left_out_ms']:.0f}",
            )
            for each in r["networks"]
        ],
    )  # fmt: skip
    lines += [
        "All models compared, best first (errors of what is left out of the fit, not of the choice):",
        "",
    ]
    lines += markdown(
        (
            "model", "coefficients", "network left out: rms of log error", "median", "worst",
            "family left out: rms", "worst factor",
        ),
        [
            (
                each["model"], str(each["coefficients"]), f"{each['left_out']['rms_log_error']:.3f}",
                percent(each["left_out"]["median_error"]), percent(each["left_out"]["worst_error"]),
                f"{each['family_left_out']['rms_log_error']:.3f}",
                f"{each['family_left_out']['worst_factor']:.2f}",
            )
            for each in r["candidates"]
        ],
    )  # fmt: skip
    lines += [
        "Held against public timings of whole networks on the same device in other runtimes (224 x"
        " 224; a factor"
        " between runtimes is to be expected):",
        "",
    ]
    lines += markdown(
        ("runtime", "networks", "median error", "predicted / measured", "error after one factor", "Spearman"),
        [
            (
                each["what"], str(each["networks"]), percent(each["median_error"]),
                f"{each['median_ratio']:.2f}",
                percent(each["median_error_after_one_factor"]), f"{each['spearman']:.3f}",
            )
            for each in r["other_runtimes"]
        ],
    )  # fmt: skip
    return lines


LABELS = {"53.6mAP": "H-2", "46.1mAP": "H-3"}
"""What the paper calls the networks that its chart tells by their AP."""
_ROOM = 13.0
"""Points between a name and what else is there."""
COLOURS = {"LitePose": "#0b6e99", "EfficientHRNet": "#c8553d", "HigherHRNet": "#6a8d2f"}


def label(axes: Any, networks: Sequence[Mapping[str, Any]], low: float, high: float) -> None:
    """Write each network's name beside its dot, where neither another dot nor another name is."""

    def place_of(each: Mapping[str, Any]) -> Floats:
        point = np.log([each["published_ms"], each["left_out_ms"]])
        return np.asarray((point - math.log(low)) / math.log(high / low) * (400, 355))  # points, nearly

    dots = [place_of(each) for each in networks]
    names: list[Floats] = []
    for i, each in enumerate(networks):
        family, _, name = each["model"].partition("-")
        ways = [(dx, dy) for dy in (0, 12, -12) for dx in (17, -17, 0) if dx or dy]
        others = [dot for j, dot in enumerate(dots) if j != i] + names
        # A name is wider than it is high, so that what is beside it is nearer than what is above.
        room = [
            min(float(np.hypot(*((dots[i] + way - other) / (1.5, 1)))) for other in others) for way in ways
        ]
        way = next(
            (way for way, free in zip(ways, room, strict=True) if free > _ROOM), ways[int(np.argmax(room))]
        )
        names.append(dots[i] + way)
        point = (each["published_ms"], each["left_out_ms"])
        axes.annotate(
            LABELS.get(name, name), point, way, textcoords="offset points",
            ha="center", va="center", fontsize=8, color=COLOURS[family],
        )  # fmt: skip


def plot(found: Found, path: Path) -> None:
    """Draw predicted against published milliseconds of the nine networks, each left out."""
    import matplotlib

    r = found.report
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 5.6), layout="constrained")
        axes = figure.add_subplot()
        every = [x for each in r["networks"] for x in (each["published_ms"], each["left_out_ms"])]
        low, high = min(every) / 1.5, max(every) * 1.5
        ends, factor = np.array([low, high]), r["interval_factor"]
        axes.fill_between(
            ends, ends / factor, ends * factor, color=GRID, label=f"error bar, factor {factor:.2f}"
        )
        axes.plot(ends, ends, color=MUTED, linewidth=0.8)
        labelled: set[str] = set()
        for each in r["networks"]:
            family = each["model"].split("-")[0]
            colour, point = COLOURS[family], (each["published_ms"], each["left_out_ms"])
            axes.plot(*point, "o", color=colour, label=None if family in labelled else family)
            labelled.add(family)
            axes.plot(each["published_ms"], each["fitted_ms"], "o", mfc="none", color=colour, alpha=0.6)
        label(axes, r["networks"], low, high)
        axes.plot([], [], "o", mfc="none", color=MUTED, label="as the table says (fitted on all nine)")
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        ticks = [t for t in (10, 20, 50, 100, 200, 500, 1000, 2000) if low <= t <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks)
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="published, ms", ylabel="predicted with the network left out, ms")
        median = r["left_out_with_the_choice"]["median_error"]
        axes.set_title(f"{found.device.title}: median error {median:.0%}")
        axes.legend(loc="upper left", frameon=False, fontsize=8.5)
        save_figure(figure, [path])


# -- all of it -----------------------------------------------------------------------------------------------


def build(
    data: Path, note: Callable[[str], None] = print
) -> tuple[list[Found], list[Published], dict[str, Any]]:
    """Return tables, published latencies, and what is told of devices without a table."""
    networks, figures, known = pose_networks(data), published(data), classifier_layers(data)
    groups = other_networks(data, known)
    found = []
    for device in DEVICES:
        found.append(study(device, networks, figures, known, groups, data))
        r = found[-1].report
        left = r["left_out_with_the_choice"]
        note(
            f"{device.title}: {r['model']}, {len(r['candidates'])} models compared; left out: median error"
            f" {left['median_error']:.1%}, worst {left['worst_error']:.1%}; error bar: factor"
            f" {r['interval_factor']:.2f}"
        )
    absent = without_table(data, networks, figures, known, groups)
    for title, counts in absent["devices"].items():
        note(
            f"{title}: no table; "
            + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items())
        )
    return found, figures, absent


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tables and the record of their errors; return the exit code."""
    parse = argparse.ArgumentParser(prog="python experiments/device_tables.py", description=__doc__)
    parse.add_argument("--data", type=Path, default=DATA, help="folder of the public measurements")
    parse.add_argument("--tables", type=Path, default=packaged_folder(), help="where the tables go")
    parse.add_argument("--published", type=Path, default=published_file(), help="where published figures go")
    parse.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    given = parse.parse_args(arguments)
    found, figures, absent = build(given.data)
    for folder in (given.tables, given.results):
        make_folder(folder)
    for each in found:
        print(each.table.save(given.tables / f"{each.table.name}.csv"))
        plot(each, given.results / f"device-tables-{each.report['device']}.png")
    write_text(given.published, published_text(figures))
    report = {"date": MADE, "devices": [each.report for each in found], "without_table": absent}
    write_json(given.results / "device-tables.json", report)
    write_text(given.results / "device-tables.md", page(found, absent))
    return 0


if __name__ == "__main__":
    finish(main)
