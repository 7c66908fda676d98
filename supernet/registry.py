"""Building networks by family: explicit tables, and a deterministic initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from search_spaces import Arch, InputError, SearchSpace
from search_spaces.errors import did_you_mean
from supernet.base import Subnet, Supernet
from supernet.deconv import DeconvPose, DeconvSupernet
from supernet.elastic import ElasticDepthwiseConv2d
from supernet.litepose import LitePose, LitePoseSupernet

__all__ = ["NETWORKS", "SUPERNETS", "build_network", "build_supernet", "initialise"]

NETWORKS: Mapping[str, type[Subnet]] = {
    "litepose": LitePose,
    "litepose-unfused": LitePose,
    "deconv-mbv2": DeconvPose,
    "deconv-mbv3": DeconvPose,
}
"""The class of plain networks of each family."""

SUPERNETS: Mapping[str, type[Supernet]] = {
    "litepose": LitePoseSupernet,
    "litepose-unfused": LitePoseSupernet,
    "deconv-mbv2": DeconvSupernet,
    "deconv-mbv3": DeconvSupernet,
}
"""The class of supernets of each family."""

OUTPUT_STD = 1e-3
"""Standard deviation of the output layers' first weights, as in HigherHRNet: heatmaps start near zero."""


def build_network(arch: Arch, joints: int, generator: torch.Generator | None = None) -> Subnet:
    """Return the plain network of an arch with fresh weights (see :func:`initialise`)."""
    net = NETWORKS[_known(arch.family.name, NETWORKS)](arch, joints)
    initialise(net, generator)
    return net


def build_supernet(
    space: SearchSpace, generator: torch.Generator | None = None, kernels: str = "crop"
) -> Supernet:
    """Return the supernet of a space with fresh weights (see :func:`initialise`).

    ``kernels`` says how small depthwise kernels follow from large ones: ``crop`` or ``transform``. Either way
    the fresh supernet computes the same.

    Raises
    ------
    InputError
        If no supernet is known for the space's family, or no such way of sharing.
    """
    net = SUPERNETS[_known(space.family.name, SUPERNETS)](space, kernels)
    initialise(net, generator)
    return net


def _known(family: str, table: Mapping[str, object]) -> str:
    if family not in table:
        raise InputError(f"no network is known for the family '{family}'{did_you_mean(family, table)}")
    return family


@torch.no_grad()
def initialise(net: Subnet | Supernet, generator: torch.Generator | None = None) -> None:
    """Set fresh weights and statistics, the same for the same state of the generator.

    Convolutions: normal, truncated at two standard deviations, with variance 2 / fan-in (He et al.,
    arXiv 1502.01852, eq. 10), where a transposed convolution's fan-in is what reaches one output pixel;
    output layers: normal with :data:`OUTPUT_STD`; biases 0; normalisations: scale 1, shift 0, mean 0,
    variance 1; learned transforms of kernels: crops.

    Parameters
    ----------
    net
        On the CPU.
    generator
        A CPU generator; by default a new one with seed 0.
    """
    generator = generator or torch.Generator().manual_seed(0)
    outputs = set(net.output_layers)
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if isinstance(module, ElasticDepthwiseConv2d):
                module.reset_transforms()
            if module.bias is not None:
                module.bias.zero_()
            if name in outputs:
                nn.init.normal_(module.weight, std=OUTPUT_STD, generator=generator)
                continue
            fan_in: float = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.weight[:, 0].numel() / math.prod(module.stride)
            std = math.sqrt(2 / fan_in)
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
