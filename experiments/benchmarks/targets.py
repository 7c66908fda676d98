"""Targets and losses of whole batches against loops over pictures, people and joints.

- *Heatmaps*: one call for a batch against a loop over the joints of each picture, stacked; the same bits.
- *Tag indices*: likewise.
- *Losses*: associative embedding and masked heatmap error, forward and backward, on outputs as the network
  makes them (channels last, tags a part of the first output), against a loop over people and the formula as
  it reads; values and gradients agree to single precision.

All on one thread, with people strewn over and a little beyond the map, seven joints of ten labelled.

Run: python experiments/benchmarks/targets.py [--record]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from _common import Case, parser, tell
from _straightforward import loop_embedding_loss, loop_heatmaps, loop_tags, plain_heatmap_loss
from numpy.typing import NDArray
from torch import Tensor

from supernet.pose.loader import STRIDES, map_size
from supernet.pose.losses import associative_embedding_loss, heatmap_loss
from supernet.pose.targets import draw_heatmaps, tag_indices

Found = tuple[Tensor, ...]


def strewn(images: int, people: int, joints: int, side: int) -> NDArray[np.float32]:
    """Return joints (images, people, joints, 3) in map coordinates, from a fixed seed."""
    rng = np.random.default_rng([people, joints, side])
    placed = rng.uniform(-0.05 * side, 1.05 * side, (images, people, joints, 3)).astype(np.float32)
    placed[..., 2] = rng.random((images, people, joints)) < 0.7
    return placed


def equal(plain: Tensor, ours: Tensor) -> str | None:
    """Return None where both hold the same bits."""
    return None if torch.equal(plain, ours) else f"{int((plain != ours).sum())} values differ"


def near(plain: Found, ours: Found) -> str | None:
    """Return None where values and gradients agree to 1e-5 of the largest."""
    for a, b in zip(plain, ours, strict=True):
        off = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-30)
        if not off < 1e-5:
            return f"by {off:.2g} of the largest"
    return None


def target_cases(images: int, people: int, joints: int, side: int) -> list[Case]:
    """Return the two kinds of targets for one size of batch."""
    placed = strewn(images, people, joints, side)

    def plain_maps() -> Tensor:
        return torch.from_numpy(np.stack([loop_heatmaps(each, side, side) for each in placed]))

    def plain_tags() -> Tensor:
        return torch.from_numpy(np.stack([loop_tags(each, side, side) for each in placed]))

    size = f"{people} people, {joints} joints, {side}x{side}"
    return [
        Case(f"heatmaps: {size}", plain_maps, lambda: draw_heatmaps(placed, side, side), equal, images),
        Case(
            f"tag indices: {size}",
            plain_tags,
            lambda: torch.from_numpy(tag_indices(placed, side, side)),
            equal,
            images,
        ),
    ]


def loss_cases(images: int, people: int, joints: int, resolution: int) -> list[Case]:
    """Return both losses, forward and backward, at the map sizes of one input resolution."""
    quarter, half = (map_size(resolution, stride) for stride in STRIDES)
    generator = torch.Generator().manual_seed(0)

    def output(channels: int, side: int) -> Tensor:
        made = torch.randn(images, channels, side, side, generator=generator)
        return made.to(memory_format=torch.channels_last).requires_grad_()

    first, second = output(2 * joints, quarter), output(joints, half)
    indices = torch.from_numpy(tag_indices(strewn(images, people, joints, quarter), quarter, quarter))
    target = draw_heatmaps(strewn(images, people, joints, half), half, half)
    mask = (torch.rand(images, half, half, generator=generator) < 0.9).float()

    def both_ways(leaf: Tensor, loss: Callable[[], Found]) -> Callable[[], Found]:
        def run() -> Found:
            leaf.grad = None
            terms = loss()
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            return (*(term.detach() for term in terms), leaf.grad)

        return run

    size = f"{people} people, {joints} joints, {resolution} px"
    # The target as the plain way has it in memory: joint by joint.
    plain_target = target.contiguous()
    return [
        Case(
            f"embedding loss: {size}",
            both_ways(first, lambda: loop_embedding_loss(first[:, joints:], indices)),
            both_ways(first, lambda: associative_embedding_loss(first[:, joints:], indices)),
            near,
            images,
        ),
        Case(
            f"heatmap loss at 1/2: {joints} joints, {resolution} px",
            both_ways(second, lambda: (plain_heatmap_loss(second, plain_target, mask),)),
            both_ways(second, lambda: (heatmap_loss(second, target, mask),)),
            near,
            images,
        ),
    ]


def main() -> None:
    """Run the benchmark that the command line describes."""
    options = parser("targets", __doc__.splitlines()[0], repeats=7)
    options.add_argument("--images", type=int, default=16, help="pictures per batch")
    options.add_argument("--people", type=int, nargs="+", default=[2, 10, 30])
    options.add_argument("--joints", type=int, nargs="+", default=[14, 17])
    options.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256], help="sides of the maps")
    given = options.parse_args()
    if min(given.images, *given.people, *given.joints) < 1 or min(given.sides) < 8 or max(given.people) > 30:
        options.error("--images, --people (at most 30) and --joints are at least 1, --sides at least 8")
    torch.set_num_threads(1)
    sizes = [(p, j, s) for s in given.sides for j in given.joints for p in given.people]
    cases = [case for size in sizes for case in target_cases(given.images, *size)]
    cases.sort(key=lambda case: case.name.split(":")[0])
    for side in given.sides[:2]:  # maps of 256 cells at a quarter are of no resolution that is searched
        cases += loss_cases(given.images, given.people[len(given.people) // 2], given.joints[-1], 4 * side)
    tell(
        "targets",
        "Targets and losses",
        f"Batches of {given.images} pictures, ms per picture, one thread",
        cases,
        options,
        given,
        notes=[
            "*Baseline*: loops over pictures, people and joints; a joint of a heatmap costs bounds, slices"
            " and a maximum, a person of the embedding loss a gather, a mean and a variance; the heatmap loss"
            " is the formula as it reads. *Ours*: one call per batch. Targets are the same to the bit, losses"
            " and their gradients to 1e-5 of the largest. Losses are timed forward and backward.",
        ],
    )


if __name__ == "__main__":
    main()
