"""Training steps: ours, and straightforward eager training of the same archs on the same batches.

A step is LitePose's sandwich (largest, smallest, one random arch) on one batch. Straightforward: tensors in
torch's default layout (contiguous), torch's own gradients, one arch after the other, the heatmap loss joint
by joint and the embedding loss person by person, an optimiser that loops over the parameters, all threads in
every operator. Ours is what the trainer does: channels last, the gradients of depthwise kernels by a
convolution, the batch in parts side by side on the CPU's cores, one loss for all joints, the fused optimiser.
Both start from the same weights; the losses of all steps must agree to 1e-4. A part of a batch is normalised
by itself, so the straightforward way, too, goes through the parts one by one; --parts 1 compares without any.

With --device cuda the batch is not cut; peak memory is told, and what bounds a step: whether the GPU waits
for the CPU that launches its work.

Run: python experiments/benchmarks/training.py [--device cuda --precision bf16] [--record]
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from _common import Case, parser, tell
from _straightforward import loop_embedding_loss, plain_heatmap_loss
from torch import Tensor, nn

from nas.console import print_table
from nas.recipe import load_recipe
from search_spaces import Arch, SearchSpace, get_arch
from search_spaces.litepose import litepose_native
from supernet import elastic
from supernet.passes import Shards
from supernet.pose.loader import Batch, collate
from supernet.pose.losses import LossWeights
from supernet.pose.skeleton import get_skeleton
from supernet.pose.synthetic import SyntheticPeople
from supernet.precision import PRECISIONS, Precision
from supernet.registry import build_supernet
from supernet.rules import step_archs
from supernet.training import TrainConfig

DEMO = Path(__file__).resolve().parents[2] / "nas/recipes/demo.yaml"
CONFIG = TrainConfig(rule="sandwich", random_archs=1, learning_rate=1e-3, weight_decay=1e-4)
JOINTS = 17


def plain_loss(outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
    """Return the default loss as its formulas read: joint by joint, picture by picture, person by person."""
    quarter, half = outputs
    total = quarter.new_zeros(())
    for maps, target, mask in zip((quarter[:, :JOINTS], half), batch.heatmaps, batch.masks, strict=True):
        joints = [plain_heatmap_loss(maps[:, j : j + 1], target[:, j : j + 1], mask) for j in range(JOINTS)]
        total = total + sum(joints) / JOINTS
    push, pull = loop_embedding_loss(quarter[:, JOINTS:], batch.tags)
    weights = LossWeights()
    return total + weights.push * push + weights.pull * pull


def plain_depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return torch's depthwise convolution, with torch's gradients."""
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1])


def contiguous(batch: Batch) -> Batch:
    """Return the batch in torch's default layout."""
    maps = tuple(each.contiguous() for each in batch.heatmaps)
    return Batch(batch.images.contiguous(), maps, batch.masks, batch.tags, batch.labelled)


class Work:
    """Some steps on drawn people: archs, batches, and the supernet that both ways start from."""

    def __init__(self, space: SearchSpace, resolution: int, size: int, steps: int, device: str) -> None:
        self.device, self.size = device, size
        data = SyntheticPeople(size * steps, 0, size=(resolution, resolution), people=(1, 3))
        self.archs: list[list[Arch]] = []
        self.batches: list[Batch] = []
        for step in range(steps):
            drawn = step_archs(space, 0, step, steps, CONFIG)[1]
            self.archs.append([arch.replace(resolution=resolution) for arch in drawn])
            places = list(range(step * size, (step + 1) * size))
            self.batches.append(collate(data, places, resolution, None, 0, 0).to(device))
        self.network = build_supernet(space, torch.Generator().manual_seed(0)).to(device).train()

    def _optimizer(self, network: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            network.parameters(),
            lr=CONFIG.learning_rate,
            weight_decay=CONFIG.weight_decay,
            fused=fused,
            foreach=False,
        )

    def plain(self, parts: int) -> Callable[[], list[float]]:
        """Return what trains the straightforward way and returns the loss of every step."""
        batches = [contiguous(batch) for batch in self.batches]

        def run() -> list[float]:
            network = copy.deepcopy(self.network)
            optimizer = self._optimizer(network, fused=False)
            losses = []
            for batch, archs in zip(batches, self.archs, strict=True):
                optimizer.zero_grad()
                told = 0.0
                for part in batch.split(parts):
                    for arch in archs:
                        share = len(part) / len(batch) / len(archs)
                        with patch.object(elastic, "depthwise_conv2d", plain_depthwise):
                            outputs = network(part.images, arch)
                        loss = plain_loss(outputs, part) * share
                        loss.backward()  # type: ignore[no-untyped-call]
                        told += loss.item()
                optimizer.step()
                losses.append(told)
            return losses

        return run

    def ours(self, parts: int, precision: str = "fp32") -> Callable[[], list[float]]:
        """Return what trains as the trainer does."""

        def run() -> list[float]:
            network: Any = copy.deepcopy(self.network)
            network = network.to(memory_format=torch.channels_last)
            how = Precision(precision, torch.device(self.device))
            shards = Shards(network, parts, precision=how)
            optimizer = self._optimizer(network, fused=True)
            losses = []
            for batch, archs in zip(self.batches, self.archs, strict=True):
                optimizer.zero_grad(set_to_none=True)
                losses.append(shards.backward(batch, archs, LossWeights())["total"])
                how.unscale(optimizer)
                how.step(optimizer, finite=True)
            return losses

        return run


def agreement(tolerance: float) -> Callable[[Sequence[float], Sequence[float]], str | None]:
    """Return what compares the losses of both ways, step by step."""

    def agree(plain: Sequence[float], ours: Sequence[float]) -> str | None:
        for step, (a, b) in enumerate(zip(plain, ours, strict=True)):
            if not abs(a - b) <= tolerance * abs(a):
                return f"the loss of step {step} is {a:.8g} and {b:.8g}"
        return None

    return agree


def gpu_bound(work: Work, precision: str) -> dict[str, Any]:
    """Return peak memory, and how a step's time divides between the GPU's work and its waiting."""
    run = work.ours(1, precision)
    run()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return {
        "precision": precision,
        "images_per_s": len(work.batches) * work.size / seconds,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "gpu_busy_share": busy / seconds,
        "bound_by": "the GPU" if busy / seconds > 0.8 else "the CPU, which launches the GPU's work",
    }


def main() -> None:
    """Measure, print, and record if asked."""
    options = parser("training", __doc__.splitlines()[0], repeats=5)
    options.add_argument("--steps", type=int, default=2, help="training steps per timed run")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--precision", choices=[*PRECISIONS], default="fp32", help="ours, on a GPU")
    options.add_argument(
        "--parts", type=int, default=2, help="parts of a batch, computed side by side on a CPU"
    )
    options.add_argument("--demo", type=int, nargs=2, default=(12, 96), metavar=("IMAGES", "PIXELS"))
    options.add_argument("--litepose-s", type=int, nargs=2, default=(4, 256), metavar=("IMAGES", "PIXELS"))
    given = options.parse_args()
    on_gpu = torch.device(given.device).type == "cuda"
    parts = 1 if on_gpu else given.parts
    spaces = {
        "demo space": (load_recipe(DEMO).build_space(get_skeleton("coco17")), *given.demo),
        "around LitePose-S": (litepose_native(joints=JOINTS, base=get_arch("litepose-s")), *given.litepose_s),
    }
    cases, bounds = [], {}
    tolerance = 1e-4 if given.precision == "fp32" else 5e-2
    for name, (space, size, resolution) in spaces.items():
        work = Work(space, resolution, size, given.steps, given.device)
        title = f"{name}: {size} images of {resolution} px"
        cases.append(
            Case(
                title,
                work.plain(parts),
                work.ours(parts, given.precision),
                agreement(tolerance),
                given.steps * size,
            )
        )
        if on_gpu:
            bounds[title] = gpu_bound(work, given.precision)
    threads = torch.get_num_threads()
    notes = [
        "*Baseline*: contiguous tensors, one arch after the other, losses in loops, an optimiser that loops"
        f" over parameters. *Ours*: channels last, {parts} part(s) of the batch side by side, the fused"
        f" optimiser, {given.precision}. Milliseconds per image of a step that trains three archs;"
        f" losses agree to {tolerance:g}. torch had {threads} threads.",
        *(
            f"{title}: {told['images_per_s']:.0f} images/s, {told['peak_mib']:.0f} MiB at most, the GPU busy"
            f" {told['gpu_busy_share']:.0%} of the time: bound by {told['bound_by']}."
            for title, told in bounds.items()
        ),
    ]
    if not on_gpu:
        notes.append(
            "Measured on a CPU; with `--device cuda` the same is told of a GPU, with memory and bound."
        )
    report = tell(
        "training",
        "Training steps",
        f"sandwich steps on {given.device}, {threads} threads",
        cases,
        options,
        given,
        notes,
        {"threads": threads, "gpu": bounds},
    )
    rows = [
        (name, *(f"{1e3 / case[way]['median']:.3g}" for way in ("baseline_ms", "ours_ms")))
        for name, case in report["cases"].items()
    ]
    print_table("images per second", ("case", "baseline", "ours"), rows)


if __name__ == "__main__":
    main()
