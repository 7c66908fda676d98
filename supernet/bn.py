"""Recalibration of batch normalisation: exact statistics of a set of images, for weights that are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces import InputError

__all__ = ["recalibrate"]


@dataclass
class _Pool:
    """Count, mean and sum of squared deviations per channel, merged batch by batch in double precision."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    deviations: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def merge(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Add ``count`` values per channel with this mean and unbiased variance (Chan et al., 1979)."""
        mean, variance = mean.double().cpu(), variance.double().cpu()
        total = self.count + count
        step = mean - self.mean
        self.deviations = self.deviations + variance * (count - 1) + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total


def _collect(pool: _Pool, module: nn.Module, inputs: tuple[Any, ...], _output: Tensor) -> None:
    # With momentum 1 the running statistics are those of the batch that has just gone through.
    assert (
        isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    )
    x: Tensor = inputs[0]
    pool.merge(x.numel() // x.shape[1], module.running_mean, module.running_var)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch normalisation by those of the given images.

    Subnets share the statistics of their supernet, which belong to none of them; this gives a subnet its
    own. Each layer's mean and unbiased variance are those of all its inputs pooled, every pixel of every
    image with equal weight, so a smaller last batch counts for less and the spread between batches is part
    of the variance. While they are gathered, every layer normalises by the batch, as in training.

    Parameters
    ----------
    network
        A plain network, such as an extracted subnet. It is left in evaluation mode.
    batches
        Normalised training images, each tensor of shape (n, 3, H, W). Larger batches give better estimates.

    Returns
    -------
    int
        Number of images seen.

    Raises
    ------
    InputError
        If there are no images. The statistics are then, and after any other error, what they were.
    """
    network.eval()
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = [(m.momentum, {key: value.clone() for key, value in m.named_buffers()}) for m in layers]
    pools = [_Pool() for _ in layers]
    hooks = [
        layer.register_forward_hook(partial(_collect, pool))
        for layer, pool in zip(layers, pools, strict=True)
    ]
    images = 0
    done = False
    try:
        for layer in layers:
            layer.train()
            layer.momentum = 1.0
        for batch in batches:
            if len(batch):
                network(batch)
                images += len(batch)
        if images == 0:
            raise InputError("recalibration needs at least one image of training data, not 0")
        done = True
    finally:
        for hook in hooks:
            hook.remove()
        network.eval()
        for layer, (momentum, buffers), pool in zip(layers, before, pools, strict=True):
            layer.momentum = momentum
            for key, value in layer.named_buffers():
                value.copy_(buffers[key])
            # A layer that the network does not execute keeps what it has.
            if done and pool.count:
                assert layer.running_mean is not None and layer.running_var is not None
                layer.running_mean.copy_(pool.mean)
                layer.running_var.copy_(pool.deviations / max(1, pool.count - 1))
    return images
