"""Forward and backward passes of one step: the gradients of a batch over the archs that the step trains."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch import nn

from search_spaces import Arch
from supernet.distillation import Distillation
from supernet.pose.loader import Batch
from supernet.pose.losses import LossWeights

__all__ = ["LOSS_TERMS", "Shards"]

LOSS_TERMS: Final = ("total", "heatmap_quarter", "heatmap_half", "push", "pull", "distill")


class Shards:
    """Forward and backward passes of the parts of a batch, side by side where that is faster.

    Every part has a replica of the network: the same parameters (the same memory), but gradients and running
    statistics of its own. The running statistics of the first part are the network's.
    """

    def __init__(self, network: nn.Module, count: int, distillation: Distillation | None = None) -> None:
        self.distillation = distillation or Distillation()
        self.networks = [network]
        for _ in range(count - 1):
            replica = copy.deepcopy(network)
            for own, shared in zip(replica.parameters(), network.parameters(), strict=True):
                own.data = shared.data
            self.networks.append(replica)
        on_cpu = next(network.parameters()).device.type == "cpu"
        self._pool = ThreadPoolExecutor(count, "shard") if on_cpu and count > 1 else None

    def train(self) -> None:
        """Put the network and its replicas in training mode."""
        for network in self.networks:
            network.train()

    def backward(self, batch: Batch, archs: Sequence[Arch], weights: LossWeights) -> dict[str, float]:
        """Set the gradients of the batch's mean loss over the archs; return the terms of that loss."""
        parts = batch.split(len(self.networks))
        jobs = [
            (network, part, archs, weights, len(part) / len(batch), self.distillation)
            for network, part in zip(self.networks, parts, strict=False)
        ]
        if self._pool is None:
            found = [_backward(*job) for job in jobs]
        else:
            threads = torch.get_num_threads()
            try:
                found = [each.result() for each in [self._pool.submit(_alone, *job) for job in jobs]]
            finally:
                torch.set_num_threads(threads)
        self._gather()
        return {name: sum(each[name] for each in found) for name in LOSS_TERMS}

    @torch.no_grad()
    def _gather(self) -> None:
        """Add the replicas' gradients to the network's, always in the same order."""
        first = self.networks[0]
        for replica in self.networks[1:]:
            mine, theirs = [], []
            for own, copied in zip(first.parameters(), replica.parameters(), strict=True):
                if own.grad is not None and copied.grad is not None:
                    mine.append(own.grad)
                    theirs.append(copied.grad)
            if mine:
                torch._foreach_add_(mine, theirs)
            replica.zero_grad(set_to_none=True)


def _backward(
    network: nn.Module,
    batch: Batch,
    archs: Sequence[Arch],
    weights: LossWeights,
    share: float,
    distillation: Distillation,
) -> dict[str, float]:
    """Add the gradients of a part of a batch, weighed by its share of it; return the terms, so weighed.

    Every arch's gradients are added before the next arch runs: beside the targets, nothing is held for more
    than one arch.
    """
    sums = dict.fromkeys(LOSS_TERMS, 0.0)
    targets = distillation.targets(batch, batch.images)
    for place, arch in enumerate(archs):
        outputs = network(batch.images, arch)
        losses = distillation.loss(outputs, targets, weights)
        (losses["total"] * (share / len(archs))).backward()  # type: ignore[no-untyped-call]
        for name in LOSS_TERMS:
            sums[name] += float(losses[name].detach()) * share / len(archs)
        if place == 0 and len(archs) > 1:
            targets = distillation.later_targets(batch, targets, outputs)
    return sums


def _alone(
    network: nn.Module,
    batch: Batch,
    archs: Sequence[Arch],
    weights: LossWeights,
    share: float,
    distillation: Distillation,
) -> dict[str, float]:
    """Do the same with one thread per operator: the parts already keep the cores busy."""
    torch.set_num_threads(1)
    return _backward(network, batch, archs, weights, share, distillation)
