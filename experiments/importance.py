"""Which order of channels loses least when a trained network is cut: criteria of importance compared.

The published LitePose-M has its channels ordered by each criterion (and at random, twice), then one width is
cut, and its heatmaps and tags on validation images are compared with those of the whole network. Told is the
mean squared error over the variance of the whole network's maps: 0 is no loss, 1 what the mean alone says.

What the cut does to the inputs of the normalisations is put right first: by how much their means and
variances on training images differ between the whole and the cut network. (Statistics computed anew on so few
images would differ from the checkpoint's own by more than the cut does.)

The pictures and weights are not part of the project; by default they are looked for in a folder ``shared``
beside the repository.

Run: python experiments/importance.py [--record]
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.console import print_table
from search_spaces import Arch, InputError
from search_spaces.errors import did_you_mean
from search_spaces.files import write_json, write_text
from supernet.base import Subnet
from supernet.bn import recalibrate
from supernet.checkpoint import import_research
from supernet.evaluator import CalibrationImages
from supernet.importance import CRITERIA, order_channels_by_importance, permute_channels
from supernet.pose.dataset import PoseDataset
from supernet.transfer import cut_to

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, command, finish, machine, record_page  # noqa: E402

SHARED = HERE.parents[1] / "shared"
CUTS = {
    "deconv1 40 to 32": {"head__deconv1__width": 32},
    "deconv0 64 to 48": {"head__deconv0__width": 48},
    "stage0 24 to 16": {"stage0__width": 16},
    "stage2 72 to 56": {"stage2__width": 56},
    "stage3 120 to 88": {"stage3__width": 88},
    "expansion of stage1 6 to 4": {"stage1__expansion": 4},
    "expansion of stage3 6 to 4": {"stage3__expansion": 4},
}
RANDOM = 2
ORDERS = (*(f"random {seed}" for seed in range(RANDOM)), "as trained", *CRITERIA)


def shuffled(net: Subnet, seed: int) -> Subnet:
    """Return a copy of the network with its channels in random order."""
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for channels in net.channels():
            norm = net.get_submodule(channels.kept[0])
            permute_channels(net, channels, torch.randperm(len(norm.weight), generator=generator))  # type: ignore[arg-type]
    return net


def recalibrated(net: Subnet, calibration: list[Tensor]) -> Subnet:
    """Return a copy of the network with statistics of the images."""
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recalibrate(net, calibration)
    return net


@torch.no_grad()
def corrected(net: Subnet, arch: Arch, calibration: list[Tensor], measured: Subnet) -> Subnet:
    """Return the network cut to ``arch``, its statistics moved as those on the images move by the cut.

    ``measured`` is the whole network with its statistics on the images.
    """
    cut, before = cut_to(net, arch), cut_to(measured, arch)
    after = recalibrated(cut, calibration)
    for name, layer in cut.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            old, new = before.get_submodule(name), after.get_submodule(name)
            layer.running_mean += new.running_mean - old.running_mean  # type: ignore[operator, assignment]
            layer.running_var *= (new.running_var + layer.eps) / (old.running_var + layer.eps)  # type: ignore[operator]
    return cut


@torch.no_grad()
def maps(net: Subnet, images: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the network's heatmaps at 1/4, tags and heatmaps at 1/2 of the images."""
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = [net(batch) for batch in images]
    quarter, half = (torch.cat(parts) for parts in zip(*found, strict=True))
    return quarter[:, : net.joints], quarter[:, net.joints :], half


def loss(found: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> list[float]:
    """Return the squared error of every kind of map over its variance."""
    return [float((a - b).square().mean() / b.var()) for a, b in zip(found, whole, strict=True)]


def ordered_networks(
    net: Subnet, calibration: list[Tensor], wanted: Sequence[str] | None
) -> dict[str, Subnet]:
    """Return the network with its channels in each of the orders."""
    makers: dict[str, Callable[[], Subnet]] = {
        **{f"random {seed}": partial(shuffled, net, seed) for seed in range(RANDOM)},
        "as trained": lambda: net,
        **{by: partial(order_channels_by_importance, net, by, calibration) for by in CRITERIA},
    }
    return {name: make() for name, make in makers.items() if not wanted or name in wanted}


def page(report: dict[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the record for people."""
    return record_page(
        "Orders of channels: what a cut costs",
        f"The published LitePose-M at {report['resolution']} px, {report['calibration']} images for"
        f" statistics, {report['images']} that maps are compared on.",
        columns,
        rows,
        (
            "Told is the mean squared error of heatmaps and tags over the variance of the whole network's"
            " (mean of the three kinds of maps): 0 is no loss, 1 what the mean alone says. What the cut does"
            " to the inputs of the normalisations is put right first.",
        ),
        report,
    )


def main() -> int:
    """Run the comparison; return the exit code."""
    parse = argparse.ArgumentParser(prog="python experiments/importance.py", description=__doc__)
    parse.add_argument("--shared", type=Path, default=SHARED, help="folder of pictures and weights")
    parse.add_argument("--resolution", type=int, default=256)
    parse.add_argument("--calibration", type=int, default=32, help="images for the statistics")
    parse.add_argument("--images", type=int, default=16, help="images that the maps are compared on")
    parse.add_argument("--cuts", nargs="*", choices=list(CUTS), default=list(CUTS))
    parse.add_argument("--orders", nargs="*", help="orders that are compared; by default all")
    parse.add_argument("--record", action="store_true", help="write importance.json and importance.md")
    parse.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    told = parse.parse_args()
    for name in told.orders or ():
        if name not in ORDERS:
            raise InputError(f"--orders: there is no order '{name}'{did_you_mean(name, ORDERS)}")
    coco = told.shared / "data" / "coco"
    train, val = (
        PoseDataset(coco / "annotations" / f"person_keypoints_{split}.json", coco / "images" / split)
        for split in ("train", "val")
    )
    calibration = list(CalibrationImages(train, told.calibration, 0).batches(told.resolution))
    chosen = CalibrationImages(val, told.images, 1, batch_pixels=8 * told.resolution**2)
    images = list(chosen.batches(told.resolution))
    net = import_research(told.shared / "weights" / "litepose-m-crowdpose.reference.pth")
    orders = ordered_networks(net, calibration, told.orders)
    whole = maps(copy.deepcopy(net), images)
    measured = {name: recalibrated(ordered, calibration) for name, ordered in orders.items()}
    found: dict[str, dict[str, list[float]]] = {}
    for cut in told.cuts:
        arch = net.arch.replace(**CUTS[cut])
        found[cut] = {
            name: loss(maps(corrected(ordered, arch, calibration, measured[name]), images), whole)
            for name, ordered in orders.items()
        }
        print(cut, {name: [round(x, 4) for x in each] for name, each in found[cut].items()}, flush=True)
    report = {
        "command": f"{command(parse, told)} --record",
        **{"resolution": told.resolution, "calibration": told.calibration, "images": told.images},
        "cuts": found,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    columns = ("cut", *orders)
    rows = [
        (cut, *(f"{sum(values) / len(values):.4f}" for values in each.values()))
        for cut, each in found.items()
    ]
    print_table("error over variance", columns, rows)
    if told.record:
        write_json(told.results / "importance.json", report)
        write_text(told.results / "importance.md", page(report, columns, rows))
        print("recorded in importance.json and .md")
    return 0


if __name__ == "__main__":
    finish(main)
