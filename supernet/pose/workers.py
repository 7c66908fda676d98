"""Processes that group people while the network runs on: maps reach them through shared memory.

Decoding is Python and NumPy; beside a GPU, which takes milliseconds per batch, one process cannot keep up.
This module imports no torch, so that a worker starts in a fraction of a second and stays small.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np

from search_spaces.errors import InputError, RunError
from supernet.pose.decode import FloatArray, GroupingConfig, decode_batch

__all__ = ["DecodeWorkers", "Decoded", "decode_maps"]

_SLOTS_PER_WORKER: Final = 2
"""Batches that wait or are worked on per worker; more are not taken in."""
_LOST: Final = (
    "a process that groups people died (killed, or out of memory?); run again,"
    " or do without them: evaluate.decode_workers=0"
)


@dataclass(frozen=True)
class Decoded:
    """The people in a batch of maps.

    Attributes
    ----------
    people
        For each image people and scores as :func:`supernet.pose.decode.decode` returns them, best first.
    seconds
        Wall-clock time that decoding took.
    """

    people: list[tuple[FloatArray, FloatArray]]
    seconds: float


def decode_maps(
    det: FloatArray,
    tags: FloatArray,
    config: GroupingConfig,
    order: Sequence[int] | None,
    most: int | None = None,
) -> Decoded:
    """Return the best people in a batch of maps.

    Parameters
    ----------
    det, tags
        (N, J, H, W) and (N, J, H, W, T).
    config, order
        As for :func:`supernet.pose.decode.decode`.
    most
        People kept per image, by score; None keeps all, as they were found.
    """
    start = time.perf_counter()
    found = decode_batch(det, tags, config, order, most)
    return Decoded(found, time.perf_counter() - start)


class _Slot:
    """A piece of shared memory that grows with what it must hold."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def fill(self, det: FloatArray, planes: FloatArray) -> str:
        """Copy maps in; return the name under which a worker finds them."""
        size = det.nbytes + planes.nbytes
        if self._memory is None or self._memory.size < size:
            self.release()
            self._memory = SharedMemory(create=True, size=size)
        np.ndarray(det.shape, np.float32, self._memory.buf)[...] = det
        np.ndarray(planes.shape, np.float32, self._memory.buf, det.nbytes)[...] = planes
        return self._memory.name

    def release(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None


class DecodeWorkers:
    """Processes that decode maps. Use it as a context, or call :meth:`close`.

    Parameters
    ----------
    count
        How many processes. They start with the first maps and stay until closed.

    Raises
    ------
    InputError
        If there is none, or if this process may not have processes of its own.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise InputError(f"at least 1 process decodes maps, not {count}")
        if multiprocessing.current_process().daemon:
            raise InputError(
                "a daemonic process can have no decoding processes of its own: evaluate.decode_workers=0"
            )
        # Spawned: a process that uses a GPU or threads must not be forked.
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)
        self._slots = [_Slot() for _ in range(_SLOTS_PER_WORKER * count)]
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._closed = False

    def submit(
        self,
        det: FloatArray,
        tags: FloatArray,
        config: GroupingConfig,
        order: Sequence[int] | None,
        most: int | None = None,
    ) -> Future[Decoded]:
        """Copy a batch of maps and have it decoded; see :func:`decode_maps`.

        Waits while all workers are busy and as many batches again are waiting.

        Raises
        ------
        RunError
            If a process died.
        """
        slot = self._free.get()
        try:
            planes = np.moveaxis(tags, -1, 2)
            name = slot.fill(det, planes)
            with _deaf_children():  # the first call starts them
                job = self._pool.submit(_decode_shared, name, det.shape, planes.shape, config, order, most)
        except BrokenProcessPool:
            self._free.put(slot)
            raise RunError(_LOST) from None
        except BaseException:
            self._free.put(slot)
            raise
        job.add_done_callback(lambda _: self._free.put(slot))
        return job

    @staticmethod
    def result(job: Future[Decoded]) -> Decoded:
        """Return what became of a batch; errors of the worker are raised here.

        Raises
        ------
        RunError
            If the process died.
        """
        try:
            return job.result()
        except BrokenProcessPool:
            raise RunError(_LOST) from None

    def close(self) -> None:
        """End the processes, after what they are at, and give the memory back."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown(wait=True, cancel_futures=True)
            for slot in self._slots:
                slot.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """While entered, processes are started that neither Ctrl-C reaches nor the end of the terminal.

    Here both are dealt with on leaving.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- In the workers ------------------------------------------------------------------------------------------


def _begin() -> None:
    """Do not outlive the parent, however it ends. (It alone hears Ctrl-C, and then closes the pool.)"""
    cv2.setNumThreads(0)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def _decode_shared(
    name: str,
    shape: tuple[int, ...],
    planes: tuple[int, ...],
    config: GroupingConfig,
    order: Sequence[int] | None,
    most: int | None,
) -> Decoded:
    memory = SharedMemory(name)
    det = np.ndarray(shape, np.float32, memory.buf)
    tags = np.ndarray(planes, np.float32, memory.buf, det.nbytes)
    try:
        return decode_maps(det, np.moveaxis(tags, 2, -1), config, order, most)
    finally:
        del det, tags
        with contextlib.suppress(BufferError):  # an error's traceback still holds the arrays
            memory.close()
