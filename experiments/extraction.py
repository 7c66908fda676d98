"""Is a network taken out of its supernet the network that was in it?

For the smallest, the largest and random archs of a trained run, AP is measured in each form that the weights
take on their way to a device, with the same BN statistics, recalibrated once:

- *supernet*: the supernet's own forward pass, ``supernet(images, arch)``, with those statistics put in place;
- *extracted*: the plain network that extraction gives;
- *reloaded*: the same, written as safetensors and read back;
- *searched*: what a search sees, batch normalisation folded, run as the search runs it;
- *ONNX*: the exported file in ONNX Runtime.

All detections of all people are compared, too: how many there are and the furthest that a joint moves, pixels
of the image. The exit code is 1 if an AP differs in its first five digits.

Run: python experiments/extraction.py RUN [--archs 20] [--record]
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.console import print_table, progress_bar
from nas.data import Datasets, open_datasets
from nas.evaluation import OnnxNetwork
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet
from nas.trust.sensitivity import probe_archs
from search_spaces import Arch, SearchSpace
from search_spaces.files import write_json, write_text
from supernet.base import Subnet, Supernet
from supernet.checkpoint import load_network, save_network
from supernet.elastic import ElasticBatchNorm2d
from supernet.evaluator import SubnetEvaluator
from supernet.export import export_onnx
from supernet.pose.evaluate import evaluate

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine, record_page  # noqa: E402

FORMS = ("supernet", "extracted", "reloaded", "searched", "ONNX")
DIGITS = 5
Detections = Sequence[dict[str, Any]]


class InSupernet(nn.Module):
    """The supernet's forward pass of one arch, as a network."""

    def __init__(self, supernet: Supernet, arch: Arch) -> None:
        super().__init__()
        self.supernet, self.arch = supernet, arch

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the arch."""
        outputs: tuple[Tensor, ...] = self.supernet(images, self.arch)
        return outputs


class InOnnx(nn.Module):
    """A network in ONNX Runtime, exported once for each size of images, since a file takes one size."""

    def __init__(self, network: Subnet, folder: Path) -> None:
        super().__init__()
        self.source, self.folder = [network], folder  # in a list: its weights are not this module's
        self.files: dict[tuple[int, int], OnnxNetwork] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of ONNX Runtime."""
        size = int(images.shape[2]), int(images.shape[3])
        if size not in self.files:
            path = self.folder / f"{size[0]}x{size[1]}.onnx"
            export_onnx(self.source[0], path, size=size)
            self.files[size] = OnnxNetwork(path)
        return self.files[size].forward(images)


def put_statistics(supernet: Supernet, network: Subnet) -> None:
    """Give the supernet the running statistics of a subnet, in the channels that the subnet uses."""
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            layer = supernet.get_submodule(name)
            if not isinstance(layer, ElasticBatchNorm2d):
                raise TypeError(f"layer '{name}' of the supernet is no elastic normalisation")
            for key, part in layer.parts(module).items():
                if key.startswith("running_"):
                    part.copy_(getattr(module, key))


@dataclass(frozen=True)
class Parity:
    """What one arch reached in each form.

    Attributes
    ----------
    arch, macs
        The network.
    ap
        By form.
    people
        Detections by form.
    moved_px
        The furthest that a joint of any detection lies from the extracted network's, by form; infinite where
        their numbers differ.
    """

    arch: Arch
    macs: int
    ap: dict[str, float]
    people: dict[str, int]
    moved_px: dict[str, float]

    @property
    def off(self) -> float:
        """The largest difference of an AP from the extracted network's."""
        return max(abs(ap - self.ap["extracted"]) for ap in self.ap.values())

    @property
    def equal(self) -> bool:
        """Whether all APs agree in their first five digits."""
        return bool(self.off < 0.5 * 10**-DIGITS)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON-able mapping."""
        moved = {form: None if np.isinf(px) else px for form, px in self.moved_px.items()}
        return {
            **{"id": self.arch.id, "arch": self.arch.to_json(), "macs": self.macs, "ap": self.ap},
            **{"people": self.people, "moved_px": moved, "equal": self.equal},
        }


def moved(found: Detections, reference: Detections) -> float:
    """Return the largest distance of a joint from where the reference has it."""
    places = [(one["image_id"], other["image_id"]) for one, other in zip(found, reference, strict=False)]
    if len(found) != len(reference) or any(one != other for one, other in places):
        return float("inf")
    joints = [np.array([d["keypoints"] for d in side]).reshape(-1, 3)[:, :2] for side in (found, reference)]
    return float(np.abs(joints[0] - joints[1]).max(initial=0.0))


def measure(
    arch: Arch, supernet: Supernet, evaluator: SubnetEvaluator, data: Datasets, space: SearchSpace, onnx: bool
) -> Parity:
    """Return AP and detections of one arch in each form; ``supernet`` is changed in its statistics."""
    network = evaluator.subnet(arch)
    put_statistics(supernet, network)
    config = replace(evaluator.config, resolution=arch.number("resolution"))
    found: dict[str, tuple[float, Detections]] = {}

    def score(form: str, model: nn.Module, device: torch.device | str = evaluator.device) -> None:
        model.to(device).eval()
        result = evaluate(model, evaluator.dataset, config, protocol=evaluator.protocol, device=device)
        found[form] = result.stats["AP"], result.detections

    score("supernet", InSupernet(supernet, arch))
    score("extracted", network)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "model.safetensors"
        save_network(weights, copy.deepcopy(network).to("cpu"), {"skeleton": data.skeleton.to_json()})
        reloaded, _ = load_network(weights)
        score("reloaded", copy.deepcopy(reloaded))
        searched = evaluator.evaluate(arch)
        found["searched"] = searched.stats["AP"], searched.detections
        if onnx:
            score("ONNX", InOnnx(reloaded, Path(scratch)), "cpu")
    return Parity(
        arch,
        space.cost(arch).macs,
        {form: ap for form, (ap, _) in found.items()},
        {form: len(detections) for form, (_, detections) in found.items()},
        {form: moved(detections, found["extracted"][1]) for form, (_, detections) in found.items()},
    )


COLUMNS = ("network", "px", "MACs (M)", *(f"AP {form}" for form in FORMS), "people", "moved (px)", "equal")


def row_of(each: Parity) -> tuple[str, ...]:
    """Return a table's row."""
    return (
        each.arch.id,
        str(each.arch["resolution"]),
        f"{each.macs / 1e6:.1f}",
        *(f"{each.ap[form]:.{DIGITS}f}" if form in each.ap else "-" for form in FORMS),
        str(each.people["extracted"]),
        f"{max(each.moved_px.values()):.2g}",
        "yes" if each.equal else f"no: {each.off:.1e}",
    )


def page(title: str, found: Sequence[Parity], record: dict[str, Any]) -> str:
    """Return the record for people."""
    equal = sum(each.equal for each in found)
    return record_page(
        "A network taken out of its supernet",
        f"{title}, trained for {record['recipe']['train']['epochs']} epochs by the rule"
        f" '{record['recipe']['train']['rule']}' (weights {record['weights']}; the JSON file holds the whole"
        f" recipe): in {equal} of {len(found)} networks every AP agrees in its first {DIGITS} digits; the"
        f" largest difference is {max(each.off for each in found):.1e}.",
        COLUMNS,
        [row_of(each) for each in found],
        (
            "*supernet*: the supernet's own forward pass with the network's recalibrated statistics."
            " *extracted*: the plain network. *reloaded*: from its safetensors file. *searched*: as a search"
            " scores it, batch normalisation folded. *ONNX*: the exported file in ONNX Runtime. *people*:"
            " detections of the extracted network; *moved*: the furthest that a joint of any of them lies"
            " elsewhere in another form.",
        ),
        record,
    )


def main() -> int:
    """Measure, tell and record."""
    options = argparse.ArgumentParser(prog="python experiments/extraction.py", description=__doc__)
    options.add_argument("run", type=Path, help="a run directory with a trained supernet")
    options.add_argument("--archs", type=int, default=20, help="how many networks (default: %(default)s)")
    options.add_argument("--on", choices=("search", "val"), default="val", help="images that are scored")
    options.add_argument("--onnx", type=int, help="export only the first networks (default: all)")
    options.add_argument("--seed", type=int, default=0, help="draws the networks")
    options.add_argument("--record", action="store_true", help="write extraction.json and extraction.md")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    given = options.parse_args()
    run = RunDirectory.open(given.run)
    data = open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    supernet = open_supernet(run, space)
    evaluator = make_evaluator(run, data, supernet, on=given.on, keep_statistics=False)
    played = copy.deepcopy(supernet)  # takes other statistics for every network
    archs = probe_archs(space, given.archs, given.seed)
    exported = len(archs) if given.onnx is None else given.onnx
    found = []
    with torch.no_grad(), progress_bar("networks", len(archs)) as bar:
        for place, arch in enumerate(archs):
            found.append(measure(arch, played, evaluator, data, space, place < exported))
            bar.update(place + 1)
    evaluator.close()
    title = f"{len(found)} networks of '{run.recipe.name}' on {len(evaluator.dataset)} {given.on} images"
    print_table(title, COLUMNS, [row_of(each) for each in found])
    if given.record:
        more = "" if given.onnx is None else f" --onnx {given.onnx}"
        more += f" --seed {given.seed}" if given.seed else ""
        record = {
            "command": f"python experiments/extraction.py RUN --archs {len(found)} --on {given.on}{more}"
            " --record",
            "weights": hashlib.sha256(run.best.read_bytes()).hexdigest()[:12],
            "recipe": run.recipe.to_plain(),
            **{"run": run.recipe.name, "on": given.on, "images": len(evaluator.dataset), "seed": given.seed},
            "networks": [each.to_json() for each in found],
            "machine": machine(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        write_json(given.results / "extraction.json", record)
        write_text(given.results / "extraction.md", page(title, found, record))
        print("recorded in extraction.json and .md")
    return 0 if all(each.equal for each in found) else 1


if __name__ == "__main__":
    finish(main)
