"""Recalibration of batch normalisation: exact statistics of a set of images, for weights that are done.

On a CPU a batch goes through the network in small parts, each by a thread of its own, that wait for each
other at every normalisation: there the statistics of all parts are pooled, so the function is the one that
the whole batch at once would see. A part is small enough to stay in the processor's cache between a
convolution and what follows it, and parts keep several cores busy where one layer would not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces import InputError

__all__ = ["recalibrate"]

_PART_PIXELS: Final = 2 * 256 * 256
"""Input pixels of a part: the same on every machine, since sums of parts are rounded."""


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations per channel, merged part by part in double precision."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    deviations: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def merge(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Add ``count`` values per channel (Chan et al., 1979)."""
        total = self.count + count
        step = mean - self.mean
        self.deviations = self.deviations + deviations + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total


class _Lockstep:
    """Runs the parts of one batch, of which ``workers`` are at work while the others wait at a normalisation.

    Parameters
    ----------
    pools
        Where each layer's statistics are gathered, over all batches.
    parts
        How many parts there are.
    workers
        How many compute at the same time.
    """

    def __init__(self, pools: Sequence[_Moments], parts: int, workers: int) -> None:
        self._pools = pools
        self._turn = threading.Semaphore(workers)
        self._barrier = threading.Barrier(parts, self._pool_parts)
        self._place = threading.local()
        self._found: list[tuple[int, int, Tensor, Tensor] | None] = [None] * parts
        self._layers: Sequence[_BatchNorm] = ()
        self._affine: tuple[Tensor, Tensor] | None = None

    def run(self, network: nn.Module, layers: Sequence[_BatchNorm], parts: Sequence[Tensor]) -> None:
        """Run every part through the network; an error of one ends all."""
        self._layers = layers
        if len(parts) == 1:
            self._part(network, 0, parts[0])
            return
        with ThreadPoolExecutor(len(parts), "recalibrate") as pool:
            try:
                jobs = [pool.submit(self._alone, network, place, part) for place, part in enumerate(parts)]
                errors = [job.exception() for job in jobs]
            except BaseException:  # an interrupt: the parts that wait for each other must not wait for ever
                self._barrier.abort()
                raise
        told = [error for error in errors if error is not None]
        # Those that were waiting when one failed only say so.
        for error in sorted(told, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
            raise error

    def _alone(self, network: nn.Module, place: int, part: Tensor) -> None:
        """Do one part with one thread per operator: the parts already keep the cores busy."""
        torch.set_num_threads(1)
        try:
            self._part(network, place, part)
        except BaseException:
            self._barrier.abort()
            raise

    def _part(self, network: nn.Module, place: int, part: Tensor) -> None:
        self._place.value = place
        with torch.no_grad(), self._turn:
            network(part)

    def normalise(self, number: int, x: Tensor) -> Tensor:
        """Stand in for layer ``number``: normalise ``x`` by the statistics of all parts together."""
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        self._found[self._place.value] = (number, x.numel() // x.shape[1], mean, variance)
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
        assert self._affine is not None
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        scale, shift = (each.view(shape) for each in self._affine)
        return torch.addcmul(shift, x, scale)

    def _pool_parts(self) -> None:
        """Pool what the parts found at the layer where all of them now wait."""
        batch, numbers = _Moments(), set()
        for found in self._found:
            assert found is not None
            number, count, mean, variance = found
            numbers.add(number)
            batch.merge(count, mean.double().cpu(), variance.double().cpu() * count)
        if len(numbers) != 1:
            raise RuntimeError("the parts of a batch took different ways through the network")
        layer = self._layers[number]
        self._pools[number].merge(batch.count, batch.mean, batch.deviations)
        scale = torch.rsqrt(batch.deviations / batch.count + layer.eps)
        if layer.weight is not None:
            scale = scale * layer.weight.double().cpu()
        shift = -batch.mean * scale
        if layer.bias is not None:
            shift = shift + layer.bias.double().cpu()
        self._affine = scale.to(mean), shift.to(mean)


@contextmanager
def _standing_in(layers: Sequence[_BatchNorm], lockstep: Callable[[], _Lockstep]) -> Iterator[None]:
    """While entered, every layer normalises by the batch, in lockstep."""

    def forward(number: int, x: Tensor) -> Tensor:
        return lockstep().normalise(number, x)

    try:
        for number, layer in enumerate(layers):
            layer.forward = partial(forward, number)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor], workers: int | None = None) -> int:
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
    workers
        Parts of a batch that are computed at the same time on a CPU; by default torch's number of threads.
        The statistics do not depend on it.

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
    pools = [_Moments() for _ in layers]
    threads = torch.get_num_threads()
    images = 0
    steps: list[_Lockstep] = []
    try:
        with _standing_in(layers, lambda: steps[-1]):
            for batch in batches:
                if len(batch) == 0:
                    continue
                parts = _parts(batch)
                if batch.device.type == "cpu":
                    torch.set_num_threads(1)
                steps[:] = [_Lockstep(pools, len(parts), workers or threads)]
                steps[0].run(network, layers, parts)
                images += len(batch)
    finally:
        torch.set_num_threads(threads)
    if images == 0:
        raise InputError("recalibration needs at least one image of training data, not 0")
    for layer, pool in zip(layers, pools, strict=True):
        if pool.count:  # a layer that the network does not execute keeps what it has
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.copy_(pool.mean)
            layer.running_var.copy_(pool.deviations / max(1, pool.count - 1))
    return images


def _parts(batch: Tensor) -> Sequence[Tensor]:
    """Return a batch in parts of nearly equal size; the whole one where it is not on a CPU."""
    if batch.device.type != "cpu":
        return [batch]
    pixels = math.prod(batch.shape[2:])
    count = -(-len(batch) // max(1, _PART_PIXELS // pixels))
    return torch.tensor_split(batch, count)
