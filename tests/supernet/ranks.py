"""Processes that share a training, started quickly: they are forked from a server that has imported torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from search_spaces.errors import LitePoseNasError
from supernet.distributed import Ranks, joined

Work = Callable[[Ranks, Path], Any]
"""What a rank does: it gets a folder and returns something that JSON can say; a function of a module."""


def context() -> Any:
    """Return the server's way of starting processes."""
    found = multiprocessing.get_context("forkserver")
    later = ["torch._dynamo", "onnx", "onnxruntime"]  # loaded where first used, by optimisers and evaluations
    found.set_forkserver_preload(["tests.supernet.tiny", "tests.nas.tiny", "nas.cli", "nas.train", *later])
    return found


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def _work(work: Work, rank: int, size: int, port: int, folder: Path, timeout_s: float) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    try:
        with joined("cpu", timeout_s) as ranks:
            told = {"returned": work(ranks, folder)}
    except KeyboardInterrupt:
        told = {"error": "KeyboardInterrupt", "message": ""}
    except LitePoseNasError as error:
        told = {"error": type(error).__name__, "message": str(error)}
    (folder / f"rank{rank}.json").write_text(json.dumps(told))


class Started:
    """Ranks at work in a folder."""

    def __init__(self, work: Work, folder: Path, size: int = 2, timeout_s: float = 60.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for rank in range(size):
            (folder / f"rank{rank}.json").unlink(missing_ok=True)
        port = free_port()
        self.processes: list[BaseProcess] = [
            context().Process(target=_work, args=(work, rank, size, port, folder, timeout_s), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def end(self, within_s: float = 120.0) -> list[dict[str, Any]]:
        """Wait for all; return what each told, nothing for one that was killed."""
        deadline = time.monotonic() + within_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in hanging:
            self.processes[rank].kill()
        assert not hanging, f"ranks {hanging} did not end"
        files = [self.folder / f"rank{rank}.json" for rank in range(len(self.processes))]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]
