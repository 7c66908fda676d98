"""The agent: what runs on the device, answers requests on its standard input, and times what they name.

It travels as one file (:mod:`latency_tables.links.archive`) and needs Python, NumPy and the runtime there,
nothing else: what this module imports, anywhere in the street, may need no further package.

The protocol, version :data:`PROTOCOL`: one JSON object a line. A request has an ``id``, an ``op`` and the
op's values; its reply has the same ``id`` and either ``ok`` or ``error`` (``kind``, ``message``). Operations:

========== ==================================== ===========================================================
op         values                               ok
========== ==================================== ===========================================================
describe                                        hostname, processor, system, python, cores
hello      runtime, threads, precision          protocol, version, and what ``describe`` says
machine                                         see :func:`latency_tables.machine.machine_state`
watch      keys                                 nothing; these are timed around all that follows
time       key (null: the empty call), seconds, ms, loop, canaries
           min_runs
model      file, size, seconds, min_runs        the same; ``absent`` if the file has to be pushed first
bye                                             nothing; files that were pushed are removed, the agent ends
========== ==================================== ===========================================================

The agent ends when its input does, in the middle of a timing if need be, so that no orphan disturbs the
agent that comes after a dropped link.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latency_tables.cores import cores_text, fastest_cores, highest_clocks, parse_cores
from search_spaces.errors import InputError, LitePoseNasError, RunError, UnavailableError

if TYPE_CHECKING:
    from latency_tables.bench import Bench

__all__ = ["ALL_CORES", "MODELS", "PROTOCOL", "main"]

PROTOCOL = 2

MODELS = "models"
"""Folder of pushed networks, in the agent's."""

ALL_CORES = "all"
"""What ``--cores`` says where nothing is to be pinned."""

_IDLE_S = 900.0
_TAKE_OVER_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer requests until the input ends; return the exit code."""
    parser = argparse.ArgumentParser(prog="litepose-nas agent")
    parser.add_argument("--session", required=True, help="who asks: a successor may end this agent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="", help="0-3; all: not pinned; default: the fastest")
    given = parser.parse_args(arguments)
    # Whatever a runtime prints goes where it disturbs nobody; the protocol keeps the real output.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    replies.write("\n")  # ends a line that a login script left open
    requests = _requests(sys.stdin)
    agent: _Agent | None = None
    while (line := _next(requests)) is not None:
        request: dict[str, Any] = {}
        try:
            request = json.loads(line)
            if agent is None:
                agent = _Agent(Path.cwd(), given.session, given.threads, given.cores)
            reply: dict[str, Any] = {"ok": agent.answer(request)}
        except LitePoseNasError as error:
            reply = {"error": {"kind": type(error).__name__, "message": str(error)}}
        except Exception as error:  # a defect, or a device out of memory or disk: the profiler tells
            traceback.print_exc()
            reply = {"error": {"kind": "RunError", "message": f"{type(error).__name__}: {error}"}}
        replies.write(json.dumps({"id": request.get("id"), **reply}) + "\n")
        replies.flush()
        if request.get("op") == "bye":
            break
    return 0


def _requests(stream: TextIO) -> queue.SimpleQueue[str]:
    """Read lines in a thread of its own; the end of the input ends the process, whatever it is doing."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _next(requests: queue.SimpleQueue[str]) -> str | None:
    try:
        return requests.get(timeout=_IDLE_S)
    except queue.Empty:  # the network vanished, and with it the end of the input
        return None


class _Agent:
    """Answers requests, one after the other; alone in its folder, pinned to its processors."""

    def __init__(self, folder: Path, session: str, threads: int, cores: str) -> None:
        self._folder = folder
        self._lock = _alone(folder, session)
        self._cores = _pin(threads, cores)
        self._bench: Bench | None = None
        self._watched = ExitStack()
        self._operations: Mapping[str, Callable[..., dict[str, Any]]] = {
            "describe": self._describe,
            "hello": self._hello,
            "machine": self._machine,
            "watch": self._watch,
            "time": self._time,
            "model": self._model,
            "bye": self._bye,
        }

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request.

        Raises
        ------
        InputError
            If there is no such operation.
        """
        values = {key: value for key, value in request.items() if key not in ("id", "op")}
        operation = self._operations.get(request["op"])
        if operation is None:
            raise InputError(f"the agent knows {', '.join(self._operations)}, not '{request['op']}'")
        return operation(**values)

    def _describe(self) -> dict[str, Any]:
        from latency_tables.machine import available_threads, processor_name, system_name

        return {
            "hostname": platform.node(),
            "processor": processor_name(),
            "system": system_name(),
            "python": platform.python_version(),
            "cores": available_threads(),
            "pinned": self._cores,
        }

    def _hello(self, runtime: str, threads: int, precision: str) -> dict[str, Any]:
        try:
            from latency_tables.bench import LocalBench
            from latency_tables.runtimes import get_runtime
        except ModuleNotFoundError as error:
            raise UnavailableError(
                f"the package '{error.name}' is not installed; install it with: pip install {error.name}"
            ) from None
        self._bench = LocalBench(get_runtime(runtime), threads, precision)
        return {"protocol": PROTOCOL, "version": self._bench.version(), **self._describe()}

    def _machine(self) -> dict[str, Any]:
        return dict(self._timer().machine())

    def _watch(self, keys: Sequence[str]) -> dict[str, Any]:
        from search_spaces.layers import piece_from_key

        self._watched.close()
        self._watched.enter_context(self._timer().watching([piece_from_key(key) for key in keys]))
        return {}

    def _time(self, key: str | None, seconds: float, min_runs: int) -> dict[str, Any]:
        from search_spaces.layers import piece_from_key

        piece = None if key is None else piece_from_key(key)
        return self._timer().time(piece, seconds, min_runs).to_dict()

    def _model(self, file: str, size: Sequence[int], seconds: float, min_runs: int) -> dict[str, Any]:
        path = self._folder / MODELS / Path(file).name
        if not path.is_file():
            return {"absent": True}
        height, width = size
        return self._timer().time_model(path, (height, width), seconds, min_runs).to_dict()

    def _bye(self) -> dict[str, Any]:
        self._watched.close()
        shutil.rmtree(self._folder / MODELS, ignore_errors=True)
        return {}

    def _timer(self) -> Bench:
        if self._bench is None:
            raise InputError("the agent times nothing before 'hello' has named a runtime")
        return self._bench


def _pin(threads: int, cores: str) -> str:
    """Bind this process, and every thread that it starts from now on, to processors; say which."""
    if not hasattr(os, "sched_setaffinity"):
        return "not pinned: this system cannot"
    allowed = os.sched_getaffinity(0)
    if cores == ALL_CORES:
        fastest_cores(threads, dict.fromkeys(allowed, 0))
        return "not pinned, as asked"
    wanted = parse_cores(cores) if cores else fastest_cores(threads, highest_clocks(allowed))
    if not allowed.issuperset(wanted):
        raise InputError(
            f"the processors {cores_text(allowed)} may be used, not all of '{cores}': correct 'cores'"
        )
    fastest_cores(threads, dict.fromkeys(wanted, 0))
    os.sched_setaffinity(0, wanted)
    return f"processors {cores_text(wanted)}"


def _alone(folder: Path, session: str) -> TextIO:
    """Hold the folder's lock; an agent that the same session has lost is ended first.

    Raises
    ------
    RunError
        If another profiler's agent holds it: the two would disturb each other.
    """
    stream = (folder / "agent.lock").open("a+", encoding="utf-8")
    deadline = time.monotonic() + _TAKE_OVER_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip()
            if _belongs(holder, session):
                os.kill(int(holder), signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RunError(
                    f"another profiler measures on this device (process {holder or 'unknown'}): wait for it,"
                    " or end it there; two at once would disturb each other"
                ) from None
            time.sleep(0.1)
    stream.truncate(0)
    stream.write(f"{os.getpid()}\n")
    stream.flush()
    return stream


def _belongs(process: str, session: str) -> bool:
    """Return whether a process of that number runs an agent of the session."""
    try:
        words = Path(f"/proc/{int(process)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return session.encode() in words
