"""Spaces and networks that the tests of this folder share: small, but with every edge case in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces import Arch, SearchSpace, litepose_arch, litepose_extended, litepose_native

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
}


def edge_archs(space: SearchSpace) -> list[Arch]:
    """Return the extremes of a space, and archs with and without a residual between stages 2 and 3."""
    widths = {c.name: c.values for c in space.choices if c.name in ("stage2.width", "stage3.width")}
    both = sorted(set(widths["stage2.width"]) & set(widths["stage3.width"]), key=str)
    found = [space.smallest(), space.largest()]
    found += [space.arch({"stage2.width": width, "stage3.width": width}) for width in both]
    return found


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
    return net


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return normal noise of shape (n, 3, height, width)."""
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def relative_error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest ``max |difference| / max |expected|`` over the outputs."""
    assert [out.shape for out in found] == [out.shape for out in expected]
    worst = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    assert all(value == value for value in worst)
    return max(worst)
