"""Forward and backward passes of one step: the gradients of a batch over the archs that the step trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from search_spaces import Arch
from supernet.distillation import Distillation
from supernet.pose.loader import Batch
from supernet.pose.losses import LossWeights
from supernet.precision import Forward, Precision

__all__ = ["Shards"]


class Shards:
    """Forward and backward passes of the parts of a batch, side by side where that is faster.

    Every part has a replica of the network: the same parameters (the same memory), but gradients and running
    statistics of its own. The running statistics of the first part are the network's.

    Parameters
    ----------
    network
        What is trained.
    count
        Parts of a batch.
    distillation
        What the losses are; by default of the annotations alone.
    precision
        How passes compute; by default in float32.
    """

    def __init__(
        self,
        network: nn.Module,
        count: int,
        distillation: Distillation | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.distillation = distillation or Distillation()
        self.networks = [network]
        for _ in range(count - 1):
            replica = copy.deepcopy(network)
            for own, shared in zip(replica.parameters(), network.parameters(), strict=True):
                own.data = shared.data
            self.networks.append(replica)
        device = next(network.parameters()).device
        precision = precision or Precision("fp32", device)
        self._forwards = [precision.forward(each) for each in self.networks]
        self._pool = ThreadPoolExecutor(count, "shard") if device.type == "cpu" and count > 1 else None

    def train(self) -> None:
        """Put the network and its replicas in training mode."""
        for network in self.networks:
            network.train()

    def backward(
        self,
        batch: Batch,
        archs: Sequence[Arch],
        weights: LossWeights,
        of: int | None = None,
        done: float = 0.0,
    ) -> dict[str, float]:
        """Set the gradients of the batch's mean loss over the archs; return the terms of that loss.

        Where the batch is some images of a larger one, ``of`` is how many that has: the gradients and terms
        are then its share of the larger batch's. ``done`` is the share of the run's steps that came before:
        a teacher may be heard only later.
        """
        distillation = self.distillation.at(done)
        parts = batch.split(len(self.networks))
        whole = len(batch) if of is None else of
        jobs = [
            partial(_backward, forward, part, archs, weights, len(part) / whole, distillation)
            for forward, part in zip(self._forwards, parts, strict=False)
        ]
        if self._pool is None:
            found = [job() for job in jobs]
        else:
            threads = torch.get_num_threads()
            try:
                found = [each.result() for each in [self._pool.submit(_alone, job) for job in jobs]]
            finally:
                torch.set_num_threads(threads)
        self._gather()
        return {name: sum(each[name] for each in found) for name in self.distillation.terms}

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
    forward: Forward,
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
    told: list[Tensor] = []
    terms = distillation.terms
    targets = distillation.targets(batch, batch.images)
    for place, arch in enumerate(archs):
        outputs = forward(batch.images, arch)
        losses = distillation.loss(outputs, targets, weights)
        (losses["total"] * (share / len(archs))).backward()  # type: ignore[no-untyped-call]
        told.append(torch.stack([losses[name].detach() for name in terms]))
        if place == 0 and len(archs) > 1:
            targets = distillation.later_targets(batch, targets, outputs)
    # Read at the end: a GPU has then been given all of its work.
    rows = [[value * share / len(archs) for value in row] for row in torch.stack(told).tolist()]
    return {name: sum(column) for name, column in zip(terms, zip(*rows, strict=True), strict=True)}


def _alone(job: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Do a part's job with one thread per operator: the parts already keep the cores busy."""
    torch.set_num_threads(1)
    return job()
