"""Recalibration of batch normalisation: exact statistics of a set of images, for weights that are done.

On a CPU a batch goes through the network in small parts, each by a thread of its own, that wait for each
other at every normalisation: there the statistics of all parts are pooled, so the function is the one that
the whole batch at once would see. A part is small enough to stay in the processor's cache between a
convolution and what follows it, and parts keep several cores busy where one layer would not.

Where a 1x1 convolution widens what it reads, the statistics of its outputs follow from those of its inputs:
mean W m and variance diag(W C W^T), with the inputs' mean m and covariance C. So they are known before it
runs, with the normalisation in its weights, and the wide tensor is not gone through for them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces import InputError
from supernet.base import Subnet

__all__ = ["ALGORITHM", "recalibrate"]

ALGORITHM: Final = 1
"""Version of the way that statistics are computed in: raised whenever their last bits may change."""

_PART_PIXELS: Final = 2 * 256 * 256
"""Input pixels of a part: the same on every machine, since sums of parts are rounded."""
_VALUES: Final = 4096
"""Values of a channel that torch adds up at once in single precision; ten times as many cost a digit."""

_WIDENING: Final = 2
_MOST_CHANNELS: Final = 128
"""Outputs per input from which, and inputs to which, their products take less time than the outputs."""

_Block = tuple[int, Tensor, Tensor]
"""Count, mean and biased variance per channel; or count, sums and sums of products, in double precision."""
_Affine = tuple[Tensor, Tensor | None]
"""What normalises: scale and shift, or a convolution's weights and bias."""


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations per channel, in double precision."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    deviations: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @classmethod
    def of(cls, blocks: Sequence[_Block]) -> _Moments:
        """Return the moments of all blocks together."""
        counts = torch.tensor([count for count, _, _ in blocks], dtype=torch.float64)
        means = torch.stack([mean for _, mean, _ in blocks]).double().cpu()
        variances = torch.stack([variance for _, _, variance in blocks]).double().cpu()
        mean = counts @ means / counts.sum()
        return cls(int(counts.sum()), mean, counts @ (variances + (means - mean) ** 2))

    def add(self, other: _Moments) -> None:
        """Add the values that ``other`` stands for (Chan et al., 1979)."""
        total = self.count + other.count
        step = other.mean - self.mean
        self.deviations = self.deviations + other.deviations + step**2 * (self.count * other.count / total)
        self.mean = self.mean + step * (other.count / total)
        self.count = total


def _blocks(x: Tensor) -> list[_Block]:
    """Return the statistics of a layer's input (n, C, ...), a few rows of each image at a time."""
    blocks: list[Tensor] = [x]
    if x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        rows = max(1, _VALUES // x.shape[3])
        blocks = [
            x[image : image + 1, :, top : top + rows]
            for image in range(len(x))
            for top in range(0, x.shape[2], rows)
        ]
    return [
        (block.numel() // block.shape[1], *torch.batch_norm_update_stats(block, None, None, 0.0))
        for block in blocks
    ]


class _Layer:
    """A normalisation that goes through what it is given, twice: for the statistics and to apply them.

    Parameters
    ----------
    norm
        The layer.
    in_place
        Whether its input may be written over.
    """

    def __init__(self, norm: _BatchNorm, in_place: bool) -> None:
        self.norm, self.in_place = norm, in_place
        self.pool = _Moments()

    def look(self, x: Tensor) -> list[_Block]:
        """Return the statistics of a part."""
        return _blocks(x)

    def moments(self, blocks: Sequence[_Block]) -> _Moments:
        """Return the moments of what is normalised from the statistics of all parts."""
        return _Moments.of(blocks)

    def agree(self, blocks: Sequence[_Block]) -> _Affine:
        """Add a batch to the pool, and return what normalises it."""
        batch = self.moments(blocks)
        self.pool.add(batch)
        scale = torch.rsqrt(batch.deviations / batch.count + self.norm.eps)
        if self.norm.weight is not None:
            scale = scale * self.norm.weight.double().cpu()
        shift = -batch.mean * scale
        if self.norm.bias is not None:
            shift = shift + self.norm.bias.double().cpu()
        return self.affine(scale, shift, blocks[0][1])

    def affine(self, scale: Tensor, shift: Tensor, like: Tensor) -> _Affine:
        """Return scale and shift as :meth:`apply` needs them, on the device and of the type of ``like``."""
        return scale.to(like), shift.to(like)

    def apply(self, x: Tensor, affine: _Affine) -> Tensor:
        """Return ``x`` normalised."""
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        scale, shift = (each.view(shape) for each in affine if each is not None)
        return torch.addcmul(shift, x, scale, out=x if self.in_place else None)


class _Widening(_Layer):
    """A 1x1 convolution and its normalisation in one: the statistics are those of the convolution's input.

    Products are exact in double precision and added up in it, so small variances that are left of large
    covariances have as many digits as when they are computed from the outputs.
    """

    def __init__(self, norm: _BatchNorm, conv: nn.Conv2d) -> None:
        super().__init__(norm, False)
        self.conv = conv

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Return whether a convolution's outputs are better looked at through its inputs."""
        return (
            isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1)
            and conv.padding == (0, 0)
            and conv.out_channels >= _WIDENING * conv.in_channels
            and conv.in_channels <= _MOST_CHANNELS
            and conv.weight.device.type == "cpu"
        )

    def look(self, x: Tensor) -> list[_Block]:
        values = x.movedim(1, -1).flatten(0, -2).double()
        return [(len(values), values.sum(0), values.T @ values)]

    def moments(self, blocks: Sequence[_Block]) -> _Moments:
        count = sum(count for count, _, _ in blocks)
        mean = torch.stack([each for _, each, _ in blocks]).sum(0) / count
        products = torch.stack([each for _, _, each in blocks]).sum(0)
        weights = self.conv.weight.double().flatten(1)
        deviations = ((weights @ (products - count * torch.outer(mean, mean))) * weights).sum(1)
        bias = 0.0 if self.conv.bias is None else self.conv.bias.double()
        return _Moments(count, weights @ mean + bias, deviations.clamp(min=0))

    def affine(self, scale: Tensor, shift: Tensor, like: Tensor) -> _Affine:
        weight = self.conv.weight
        if self.conv.bias is not None:
            shift = shift + self.conv.bias.double() * scale
        return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight), shift.to(weight)

    def apply(self, x: Tensor, affine: _Affine) -> Tensor:
        return functional.conv2d(x, *affine)


class _Lockstep:
    """Runs the parts of one batch, of which ``workers`` are at work while the others wait at a normalisation.

    Parameters
    ----------
    layers
        The normalisations.
    parts
        How many parts there are.
    workers
        How many compute at the same time.
    entering
        Called with a part's number in the thread that computes it.
    """

    def __init__(
        self, layers: Sequence[_Layer], parts: int, workers: int, entering: Callable[[int], None]
    ) -> None:
        self._layers, self._entering = layers, entering
        self._turn = threading.Semaphore(workers)
        self._barrier = threading.Barrier(parts, self._pool_parts)
        self._place = threading.local()
        self._found: list[tuple[int, list[_Block]]] = [(-1, [])] * parts
        self._affine: _Affine | None = None

    def run(self, network: nn.Module, parts: Sequence[Tensor]) -> None:
        """Run every part through the network; an error of one ends all."""
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
            self._entering(place)
            network(part)

    def normalise(self, number: int, x: Tensor) -> Tensor:
        """Stand in for layer ``number``: normalise ``x`` by the statistics of all parts together."""
        self._found[self._place.value] = number, self._layers[number].look(x)
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()
        assert self._affine is not None
        return self._layers[number].apply(x, self._affine)

    def _pool_parts(self) -> None:
        """Pool what the parts found at the layer where all of them now wait."""
        number = self._found[0][0]
        if any(other != number for other, _ in self._found):
            raise RuntimeError("the parts of a batch took different ways through the network")
        self._affine = self._layers[number].agree([block for _, found in self._found for block in found])


@contextmanager
def _standing_in(network: nn.Module) -> Iterator[tuple[list[_Layer], list[_Lockstep]]]:
    """While entered, every layer normalises by the batch, in the lockstep that is in the list."""
    # What only convolutions write and a normalisation reads may be written over.
    own = network.norm_sources() if isinstance(network, Subnet) else {}
    layers: list[_Layer] = []
    steps: list[_Lockstep] = []
    replaced: list[nn.Module] = []

    def forward(number: int, x: Tensor) -> Tensor:
        return steps[0].normalise(number, x)

    def replace(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        replaced.append(module)
        module.forward = forward

    try:
        for name, norm in network.named_modules():
            if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
                continue
            sources = [network.get_submodule(source) for source in own.get(name, ())]
            through = partial(forward, len(layers))
            if len(sources) == 1 and _Widening.fits(sources[0]):
                layers.append(_Widening(norm, cast(nn.Conv2d, sources[0])))
                replace(sources[0], through)
                replace(norm, _same)
            else:
                layers.append(_Layer(norm, name in own))
                replace(norm, through)
        yield layers, steps
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)


def _same(x: Tensor) -> Tensor:
    """Return ``x``: it is normalised already."""
    return x


@torch.no_grad()
def recalibrate(
    network: nn.Module,
    batches: Iterable[Tensor],
    workers: int | None = None,
    entering: Callable[[tuple[int, int]], None] | None = None,
) -> int:
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
    entering
        Told the batch and the part of it, by number, that goes into the network next, in the thread in which
        it does.

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
    threads = torch.get_num_threads()
    images = 0
    try:
        with _standing_in(network) as (layers, steps):
            for number, batch in enumerate(batches):
                if len(batch) == 0:
                    continue

                def told(part: int, number: int = number) -> None:
                    if entering is not None:
                        entering((number, part))

                parts = _parts(batch)
                if batch.device.type == "cpu":
                    torch.set_num_threads(1)
                steps[:] = [_Lockstep(layers, len(parts), workers or threads, told)]
                steps[0].run(network, parts)
                images += len(batch)
    finally:
        torch.set_num_threads(threads)
    if images == 0:
        raise InputError("recalibration needs at least one image of training data, not 0")
    for layer in layers:
        if layer.pool.count:  # a layer that the network does not execute keeps what it has
            assert layer.norm.running_mean is not None and layer.norm.running_var is not None
            layer.norm.running_mean.copy_(layer.pool.mean)
            layer.norm.running_var.copy_(layer.pool.deviations / max(1, layer.pool.count - 1))
    return images


def _parts(batch: Tensor) -> Sequence[Tensor]:
    """Return a batch in parts of nearly equal size; the whole one where it is not on a CPU."""
    if batch.device.type != "cpu":
        return [batch]
    pixels = math.prod(batch.shape[2:])
    count = -(-len(batch) // max(1, _PART_PIXELS // pixels))
    return torch.tensor_split(batch, count)
