"""Weight gradients of depthwise convolutions: ours, and torch's own, over the layers that are trained.

The layers are the depthwise ones that supernet/depthwise.py takes over (kernels of 5 or more), of LitePose-S
and of the demo space's largest network; layers of equal shape are timed once. Inputs and gradients are random
numbers in channels-last layout, as in training. Torch's own is aten's convolution_backward, asked for the
weight's gradient alone. Both must agree to 1e-4 of the largest entry. One thread, as in each part of a batch.

Run: python experiments/benchmarks/depthwise.py [--contiguous] [--record]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from _common import Case, parser, tell
from torch import Tensor

from nas.recipe import load_recipe
from search_spaces import Arch, get_arch
from supernet.depthwise import FAST_FROM, weight_gradient
from supernet.pose.skeleton import get_skeleton

DEMO = Path(__file__).resolve().parents[2] / "nas/recipes/demo.yaml"
JOINTS = 17
TOLERANCE: Final = 1e-4

Shape = tuple[int, int, int, int, int]
"""Channels, height, width, kernel, stride."""


def shapes(arch: Arch, pixels: int) -> Counter[Shape]:
    """Return how many layers of each shape the network has at a resolution, of those that ours takes over."""
    return Counter(
        (layer.c_in, layer.h_in, layer.w_in, layer.kernel, layer.stride)
        for layer in arch.layers(JOINTS, (pixels, pixels))
        if layer.kind == "dwconv" and layer.kernel >= FAST_FROM
    )


def drawn(images: int, shape: Shape, seed: int, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Return a random input of such a layer and a random gradient of its output."""
    channels, height, width, _, stride = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (height, width), (-(-height // stride), -(-width // stride))
    x, grad = (torch.randn(images, channels, *size, generator=generator) for size in sizes)
    return x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)


def torchs_own(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the same as :func:`supernet.depthwise.weight_gradient`, as torch computes it."""
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, kernel, kernel)  # only its shape matters here
    steps, padding, only_weight = [stride] * 2, [kernel // 2] * 2, [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, steps, padding, [1, 1], False, [0, 0], channels, only_weight
    )[1]
    return found


def disagreement(baseline: Tensor, ours: Tensor) -> str | None:
    """Return in words how two gradients differ, None if they agree."""
    if baseline.shape != ours.shape:
        return f"shapes {tuple(baseline.shape)} and {tuple(ours.shape)}"
    off = float((baseline - ours).abs().max() / baseline.abs().max())
    return None if off <= TOLERANCE else f"they differ by {off:.2g} of the largest entry"


def case(name: str, images: int, shape: Shape, layers: int, layout: torch.memory_format) -> Case:
    """Return the comparison of both ways over one layer; it is told how many such layers there are."""
    channels, height, width, kernel, stride = shape
    x, grad = drawn(images, shape, 0, layout)

    def way(gradient: Callable[[Tensor, Tensor, int, int], Tensor]) -> Callable[[], Tensor]:
        return lambda: gradient(x, grad, kernel, stride)

    told = f"{channels} x {height}x{width}, kernel {kernel}, stride {stride}"
    title = f"{name}: {told} ({layers} layer{'s' * (layers > 1)})"
    return Case(title, way(torchs_own), way(weight_gradient), disagreement)


def main() -> None:
    """Measure, print, and record if asked."""
    options = parser("depthwise", __doc__.splitlines()[0], repeats=5)
    options.add_argument(
        "--contiguous", action="store_true", help="torch's default layout, not channels last"
    )
    options.add_argument("--demo", type=int, nargs=2, default=(6, 96), metavar=("IMAGES", "PIXELS"))
    options.add_argument("--litepose-s", type=int, nargs=2, default=(2, 256), metavar=("IMAGES", "PIXELS"))
    given = options.parse_args()
    layout = torch.contiguous_format if given.contiguous else torch.channels_last
    demo = load_recipe(DEMO).build_space(get_skeleton("coco17")).largest()
    cases = [
        case(f"{name}, {images} images", images, shape, layers, layout)
        for name, arch, (images, pixels) in (
            ("LitePose-S", get_arch("litepose-s"), given.litepose_s),
            ("demo", demo, given.demo),
        )
        for shape, layers in shapes(arch, pixels).items()
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tell(
            "depthwise",
            "Weight gradients of depthwise convolutions",
            f"weight gradients on the CPU, one thread, {str(layout).removeprefix('torch.')}",
            cases,
            options,
            given,
            [
                "*Baseline*: torch's own (aten's `convolution_backward`). *Ours*:"
                " `supernet.depthwise.weight_gradient`. Milliseconds for one layer and the images of one part"
                f" of a training batch; both agree to {TOLERANCE:g} of the largest entry.",
            ],
        )
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
