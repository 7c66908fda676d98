"""Re-ordering channels by importance, so that narrower subnets start from the most important ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from supernet.base import Channels, Subnet

__all__ = ["order_channels_by_importance"]


def order_channels_by_importance(net: Subnet) -> Subnet:
    """Return a copy of ``net`` that computes the same function with its channels in order of importance.

    A channel's importance is the L1 norm of the weights that read it, the criterion of once-for-all
    networks (arXiv 1908.09791, section 3.3), which LitePose's training recipe uses too. Subnets take the
    first channels, so those of a supernet that starts from the copy take the ones of largest norm. That is
    a start for training: cut without any, they are about as poor as those of the unordered network.
    """
    ordered = copy.deepcopy(net)
    with torch.no_grad():
        for channels in ordered.channels():
            order = torch.argsort(_importance(ordered, channels), descending=True, stable=True)
            _permute(ordered, channels, order)
    return ordered


def _input_axis(module: nn.Module) -> int:
    return 0 if isinstance(module, nn.ConvTranspose2d) else 1


def _weight(net: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
    module = net.get_submodule(name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return module, weight


def _importance(net: nn.Module, channels: Channels) -> Tensor:
    total = torch.zeros(())
    for name in channels.read:
        module, weight = _weight(net, name)
        axis = _input_axis(module)
        total = total + weight.abs().sum(dim=[d for d in range(weight.dim()) if d != axis])
    return total


def _permute(net: nn.Module, channels: Channels, order: Tensor) -> None:
    for name in channels.written:
        module, weight = _weight(net, name)
        weight.copy_(weight.index_select(1 - _input_axis(module), order))
    for name in channels.read:
        module, weight = _weight(net, name)
        weight.copy_(weight.index_select(_input_axis(module), order))
    for name in channels.kept:
        for tensor in net.get_submodule(name).state_dict().values():
            if tensor.dim():  # all but the counter of batches
                tensor.copy_(tensor.index_select(0, order))
