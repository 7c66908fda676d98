"""One training shared by several processes (ranks): each computes some of the parts of every batch.

``torchrun`` starts them and sets the environment that is read here. Gradients are added up with gloo on CPUs
and with NCCL on GPUs. All else, which archs a step trains and with which images, is a function of (seed,
step) and needs no exchange. The first rank alone writes, validates and tells; the others wait for it.

The result is that of one process with as many shards, to the bit for two ranks of one shard each, else up
to the order in which more than two numbers are added.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from search_spaces import InputError, RunError, UnavailableError
from search_spaces.errors import ToldElsewhereError

__all__ = ["ALONE", "Ranks", "joined"]

STEP_TIMEOUT_S: Final = 600.0
"""How long a rank waits for the others' gradients before it gives up."""
WAIT_TIMEOUT_S: Final = 24 * 3600.0
"""How long the others wait for the first rank's validation; if its process ends they know at once."""
BUCKET_BYTES: Final = 25 << 20
"""Most bytes of gradients that travel in one piece, so that the first are added while the next are packed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among those of the training; by default it is alone, and every exchange does nothing.

    Attributes
    ----------
    rank, size
        Its number, from 0, and how many there are.
    device
        Where its gradients are.
    waits
        The group in which the others wait for the first rank.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    waits: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and tells."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    def shards(self, shards: int) -> int:
        """Return how many of a batch's parts are each rank's.

        Raises
        ------
        InputError
            If they cannot be shared out evenly.
        """
        if shards % self.size:
            raise InputError(
                f"train.shards is {shards}, the parts of a batch that {self.size} processes share out evenly:"
                f" set it to {self.size} or a multiple (--set train.shards={self.size})"
            )
        return shards // self.size

    def part(self, images: Sequence[int], shards: int) -> list[int]:
        """Return which images of a batch, cut into ``shards`` parts, are this rank's: consecutive parts."""
        mine = self.shards(shards)
        parts = np.array_split(np.asarray(images), shards)[self.rank * mine : (self.rank + 1) * mine]
        found: list[int] = np.concatenate(parts).tolist()
        return found

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient that there is by the sum over all ranks; all ranks have the same ones."""
        if self.alone:
            return
        grads = [p.grad for p in parameters if p.grad is not None]

        def add() -> None:
            flying = []
            for bucket in _buckets(grads):
                flat = torch.cat([grad.reshape(-1) for grad in bucket])
                flying.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
            for bucket, flat, work in flying:
                work.wait()
                pieces = torch.split(flat, [grad.numel() for grad in bucket])
                for grad, piece in zip(bucket, pieces, strict=True):
                    grad.copy_(piece.view(grad.shape))

        self._exchange(add)

    def add(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, added in float64."""
        if self.alone:
            return [*values]
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        self._exchange(lambda: dist.all_reduce(told))
        sums: list[float] = told.tolist()
        return sums

    def wait(self) -> None:
        """Go on when every rank has come here."""
        if not self.alone:
            self._exchange(lambda: dist.barrier(group=self.waits))

    def share(self, data: bytes) -> bytes:
        """Return the first rank's bytes; what the others hand in is ignored."""
        if self.alone:
            return data
        size = torch.tensor([len(data)])
        self._exchange(lambda: dist.broadcast(size, 0, group=self.waits))
        held = bytearray(data) if self.first else bytearray(int(size))
        content = torch.frombuffer(held, dtype=torch.uint8)
        self._exchange(lambda: dist.broadcast(content, 0, group=self.waits))
        return bytes(held)

    def agree(self, told: Mapping[str, str]) -> None:
        """Raise :class:`RunError` naming what differs if the ranks do not do the same training."""
        if self.alone:
            return
        everyone: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(everyone, dict(told), group=self.waits))
        for rank, theirs in enumerate(everyone):
            differing = [
                f"{name}: {value} on rank 0, {theirs.get(name)} there"
                for name, value in everyone[0].items()
                if theirs.get(name) != value
            ]
            if differing:
                raise self.error(
                    f"the processes of a training need the same recipe, data and checkpoint, but rank {rank}"
                    f" differs ({'; '.join(differing)}); give every machine the same files"
                )

    def error(self, message: str) -> RunError:
        """Return an error that every rank raises at this point and the first one tells."""
        return RunError(message) if self.first else ToldElsewhereError(message)

    def _exchange(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RunError(
                f"another process of this training has ended or does not answer, noticed by rank {self.rank}"
                f" ({why[:160]}); its own message tells why. Start all of them again with --resume"
            ) from None


ALONE: Final = Ranks()
"""One process, no other."""


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for grad in grads:
        if bucket and held + grad.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, held = [], 0
        bucket.append(grad)
        held += grad.nbytes
    if bucket:
        yield bucket


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise InputError(f"the environment variable {name} is a number set by torchrun, not '{value}'")
    return int(value)


@contextmanager
def joined(device: str, timeout_s: float = STEP_TIMEOUT_S) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, and leave them at the end; alone where it did not.

    Parameters
    ----------
    device
        ``train.device``: with ``auto`` or ``cuda`` every process takes the GPU of its number on its machine.
    timeout_s
        How long the others' gradients are waited for.

    Raises
    ------
    InputError
        If one GPU is named for all processes.
    UnavailableError
        If there are more processes on this machine than GPUs.
    RunError
        If the others do not come.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    rank, size, local = _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK")
    if device.startswith("cuda:"):
        raise InputError(
            f"train.device is {device}, one GPU for {size} processes; take cuda, and each has its own"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda:
        if local >= torch.cuda.device_count():
            raise UnavailableError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; start one process"
                " per GPU (torchrun --nproc-per-node) or take train.device=cpu"
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
        waits = dist.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_TIMEOUT_S))
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {rank} cannot join the other processes ({str(error).splitlines()[0]});"
            " start them with torchrun"
        ) from None
    try:
        yield Ranks(rank, size, f"cuda:{local}" if cuda else "cpu", waits)
    finally:
        dist.destroy_process_group()
