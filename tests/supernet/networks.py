"""Spaces and networks that the tests of this folder share: small, but with every edge case in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces import Arch, SearchSpace, litepose_arch, litepose_extended, litepose_native
from search_spaces.deconv import DECONV_MBV2, DECONV_MBV3, deconv_arch, deconv_mbv2, deconv_mbv3

SPACES: dict[str, SearchSpace] = {
    # Widths that coincide make residuals and fixed choices; 8, 16, 24 are distinct after rounding.
    "native": litepose_native(
        5,
        base=litepose_arch(64, 16, (16, 24, 32, 32), (32, 24, 16), depths=(1, 2, 2, 3), expansions=2),
        resolutions=(64, 96),
        multipliers=(1, 0.5),
    ),
    "extended": litepose_extended(
        4,
        base=litepose_arch(64, 16, (24, 16, 24, 32), (24, 16, 16), depths=(2, 3, 2, 3)),
        resolutions=(64, 96),
        multipliers=(1, 0.75, 0.5),
        depths=(1, 2, 3),
        kernels=(3, 5, 7, 9),
        expansions=(1, 2, 3),
        deconv_kernels=(2, 3, 4),
    ),
    # No 4x4 deconv: 2x2 is then a crop of 3x3.
    "extended-small-kernels": litepose_extended(
        3,
        base=litepose_arch(64, 8, (8, 8, 16, 16), (8, 8, 8), depths=(1, 1, 1, 2), kernels=3, expansions=2),
        resolutions=(64,),
        multipliers=(1,),
        depths=(1, 2),
        kernels=(1, 3),
        expansions=(2,),
        deconv_kernels=(2, 3),
    ),
    # A head that sees the backbone's last features alone.
    "unfused": litepose_native(
        4,
        base=litepose_arch(
            64, 16, (16, 24, 32, 32), (32, 24, 16), depths=(1, 2, 1, 2), expansions=2, fusion=False
        ),
        resolutions=(64, 96),
        multipliers=(1, 0.5),
    ),
    # Two or three deconv steps; with and without a last convolution, narrower than what comes before it.
    "deconv-mbv2": deconv_mbv2(
        5,
        base=deconv_arch(
            DECONV_MBV2, 64, (32, 32, 32), stem=16, stages=(16, 16, 24, 24, 24, 40, 40), depths=2, kernels=5
        ),
        resolutions=(64, 96),
        multipliers=(1, 0.5),
        depths=(1, 2),
        kernels=(3, 5),
        expansions=(1, 2),
        last_widths=(0, 24),
        deconvs=(2, 3),
        deconv_widths=(32, 24, 16),
        deconv_kernels=(2, 3, 4),
    ),
    # Two deconv steps; squeeze-and-excitation; a last convolution that is always there.
    "deconv-mbv3": deconv_mbv3(
        4,
        base=deconv_arch(
            DECONV_MBV3, 64, (32, 32), stem=16, stages=(16, 16, 24, 24, 24, 32), depths=2, kernels=5
        ),
        resolutions=(64,),
        multipliers=(1, 0.5),
        depths=(1, 2),
        kernels=(3, 5),
        expansions=(50, 100),
        last_widths=(32, 48),
        deconvs=2,
        deconv_widths=(32, 16),
        deconv_kernels=(2, 4),
    ),
}
DECONVS = tuple(name for name in SPACES if name.startswith("deconv"))

_JOINED = {
    "litepose": (("stage2.width", "stage3.width"),),
    "litepose-unfused": (("stage2.width", "stage3.width"),),
    "deconv-mbv2": (
        ("stem_width", "stage0.width"),
        ("stage3.width", "stage4.width"),
        ("stage5.width", "stage6.width"),
    ),
    "deconv-mbv3": (("stem_width", "stage0.width"), ("stage3.width", "stage4.width")),
}
"""Widths between which there is a residual where they are equal."""


def edge_archs(space: SearchSpace) -> list[Arch]:
    """Return the extremes of a space, and archs with and without a residual between stages."""
    offered = {choice.name: set(choice.values) for choice in space.choices}
    found = [space.smallest(), space.largest()]
    for one, other in _JOINED[space.family.name]:
        both = sorted(offered[one] & offered[other], key=str)
        found += [space.arch({one: width, other: width}) for width in both]
    if 0 in offered.get("last_width", ()):
        found.append(space.arch({"last_width": 0}))
    if "head.deconv2" in offered:
        found.append(space.arch({"head.deconv2.width": 0, "head.deconv2.kernel": 0}))
    return list(dict.fromkeys(found))


def with_kernels_of(arch: Arch, most: Arch) -> Arch:
    """Return an arch with the kernels of another one, as far as it has a layer for them."""
    return arch.replace(
        **{name.replace(".", "__"): most[name] for name in arch if name.endswith("kernel") and arch[name]}
    )


def output_shapes(arch: Arch, joints: int, n: int, height: int, width: int) -> list[tuple[int, ...]]:
    """Return the shapes of a network's outputs for ``n`` images of that size."""

    def at(stride: int) -> tuple[int, int]:
        return -(-height // stride), -(-width // stride)

    if arch.family.name.startswith("litepose"):
        return [(n, 2 * joints, *at(4)), (n, joints, *at(2))]
    return [(n, joints, *at(4 if arch["head.deconv2.width"] else 8))]


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network weights, scales, shifts and running statistics that all matter to its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(0.5 + torch.rand(shape, generator=generator))
                module.bias.copy_(0.5 * torch.randn(shape, generator=generator))
                module.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_in = module.weight[0].numel()
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * (1.5 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.5 * torch.randn(module.bias.shape, generator=generator))
    return net


@torch.no_grad()
def settle(net: nn.Module, x: Tensor, *archs: Arch) -> nn.Module:
    """Give a network its running statistics on images, a supernet those of archs, one after the other.

    With made-up statistics what an image changes fades on the way through a deep network, and with it what a
    test can tell of the first layers.
    """
    momenta = {norm: norm.momentum for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)}
    for norm in momenta:
        norm.momentum = 1.0
    net.train()
    for arch in archs:
        net(x, arch)
    if not archs:
        net(x)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    return net.eval()


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return normal noise of shape (n, 3, height, width)."""
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def relative_error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest ``max |difference| / max |expected|`` over the outputs."""
    assert [out.shape for out in found] == [out.shape for out in expected]
    worst = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    assert all(value == value for value in worst)
    return max(worst)
