"""Devices without Python (phones): the runtime's own benchmark program, fed one network file per piece.

``benchmark_model`` of LiteRT (TensorFlow Lite) prints, in microseconds::

    count=52 first=19244 curr=19157 min=18898 max=20342 avg=19222.7 std=231
    Inference timings in us: Init: 11203, First inference: 24120, Warmup (avg): 19411, Inference (avg): 19222

once for the warm-up and once for the measurement; newer versions append ``p5= median= p95=`` to the first
line, ``count=1`` has no more than ``curr=``. The runs themselves are not told. So each call of the program
gives one sample, the median of its runs where it is told and their mean where not, and a visit calls it
several times: the percentiles of a table's row are those of such samples, over all rounds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from latency_tables.bench import Bench
from latency_tables.cores import cores_text, fastest_cores, parse_cores
from latency_tables.links.agent import ALL_CORES
from latency_tables.links.link import Finished, Link, LinkDownError, told
from latency_tables.links.remote import PATIENCE_S, insist
from latency_tables.machine import machine_state
from latency_tables.target import Target
from latency_tables.timing import Samples
from search_spaces.errors import InputError, RunError, UnavailableError
from search_spaces.layers import Piece

__all__ = ["DELEGATES", "PHONE_BINARY", "BinaryBench", "ModelWriter", "parse_benchmark"]

DELEGATES: Mapping[str, tuple[str, ...]] = {
    "xnnpack": ("--use_xnnpack=true",),
    "none": ("--use_xnnpack=false",),
    "gpu": ("--use_gpu=true", "--gpu_precision_loss_allowed={loss}"),
}
"""What computes, and how the program is told; a GPU may round to fp16 exactly if that is the precision."""

_PROGRAMS = PurePosixPath("/data/local/tmp")
"""Where Android lets the debugging shell put and run programs."""

PHONE_BINARY = f"{_PROGRAMS}/benchmark_model"
"""Where the program is looked for on a phone."""

_RUNS = re.compile(r"\bcount=(\d+) (?:first=\S+ )?curr=(\S+)([^\n]*)")
_MEAN = re.compile(r"Inference \(avg\): (\S+)")
_NOT_DELEGATED = "will not be executed by the delegate"
_SHARE_OF_WARMUP = 0.2
_MODEL_SECONDS_MOST = 150.0


class ModelWriter(Protocol):
    """Writes a piece as a network file of the runtime; None: one that computes next to nothing."""

    def __call__(self, piece: Piece | None) -> tuple[bytes, str]:
        """Return the file's content and its suffix, such as ``.tflite``."""
        ...


def parse_benchmark(output: str) -> tuple[float, int]:
    """Return milliseconds per run and the number of runs that one call of ``benchmark_model`` tells.

    Raises
    ------
    RunError
        If it tells none.
    """
    counts = _RUNS.findall(output)
    mean = _MEAN.search(output)
    if not counts or mean is None:
        raise RunError(f"the benchmark program told no timing: {told(output)}")
    count, _, rest = counts[-1]
    median = re.search(r"\bmedian=(\S+)", rest)
    try:
        us = float(median[1] if median else mean[1])
    except ValueError:
        us = 0.0
    if not 0 < us < float("inf"):
        raise RunError(f"the benchmark program told no timing: {told(output)}")
    return us / 1e3, int(count)


class BinaryBench(Bench):
    """Times on a device with the runtime's benchmark program, over any link.

    Parameters
    ----------
    link
        The way to the device; closed with the bench.
    target
        What is measured there.
    writer
        Writes pieces as files of the runtime.
    binary
        The program's path on the device.
    folder
        Where files are put on the device, one at a time; by default ``litepose-nas`` beside the program.
    cores
        Processors to pin the program to (``4-7``); ``all``: none; by default the fastest ones.
    delegate
        One of :data:`DELEGATES`.
    calls
        Calls of the program per visit.
    patience
        Longest wait for an answer, in seconds, beyond ten times what was to be measured.
    sleep
        Waits some seconds.

    Raises
    ------
    UnavailableError
        If the program is not on the device, or cannot be run.
    InputError
        If the delegate is unknown, or there are fewer processors than threads.
    RunError
        If the device cannot be reached.
    """

    def __init__(
        self,
        link: Link,
        target: Target,
        writer: ModelWriter,
        *,
        binary: str = PHONE_BINARY,
        folder: str = "",
        cores: str = "",
        delegate: str = "xnnpack",
        calls: int = 3,
        patience: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if delegate not in DELEGATES:
            raise InputError(f"a delegate is one of {', '.join(DELEGATES)}, not '{delegate}'")
        folder = folder or f"{PurePosixPath(binary).parent}/litepose-nas"
        if not (binary.startswith("/") and folder.startswith("/")):
            raise InputError(
                f"'binary' and 'folder' are whole paths on the device, not '{binary}', '{folder}'"
            )
        self.runtime = target.runtime
        self._link, self._target, self._writer = link, target, writer
        self._binary, self._folder, self._calls = binary, folder.rstrip("/"), calls
        self._patience, self._sleep = patience, sleep
        self._scratch = tempfile.TemporaryDirectory()
        self._facts = self._probe()
        self._prefix, self._pinned = self._pin(cores)
        loss = str(target.precision != "fp32").lower()
        self._flags = (
            f"--num_threads={target.threads}",
            *(flag.format(loss=loss) for flag in DELEGATES[delegate]),
        )
        self._delegate = delegate

    def version(self) -> str:
        return f"benchmark_model sha256:{self._facts['digest'][:16]}"

    def system(self) -> Mapping[str, str]:
        facts = self._facts
        return {
            "processor": facts["processor"],
            "system": facts["system"],
            "pinned": self._pinned,
            "benchmark": " ".join(self._flags),
            "samples": "one for each call of the program: the median of its runs where told, else the mean",
        }

    def machine(self) -> Mapping[str, Any]:
        return insist(
            self._link.name, "asking for the machine's state", self._machine_there, sleep=self._sleep
        )

    def time(self, piece: Piece | None, seconds: float, min_runs: int) -> Samples:
        data, suffix = self._writer(piece)
        path = Path(self._scratch.name) / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
        path.write_bytes(data)
        try:
            return self._timed(path, "the empty call" if piece is None else piece.key, seconds, min_runs)
        finally:
            path.unlink()

    def time_model(self, path: Path, size: tuple[int, int], seconds: float, min_runs: int) -> Samples:
        if not path.is_file():
            raise InputError(f"the network '{path}' does not exist")
        return self._timed(path, f"the network '{path.name}'", seconds, min_runs)

    def close(self) -> None:
        self._scratch.cleanup()
        self._link.close()

    def _timed(self, path: Path, what: str, seconds: float, min_runs: int) -> Samples:
        return insist(
            self._link.name,
            f"timing {what}",
            lambda: self._attempt(path, what, seconds, min_runs),
            sleep=self._sleep,
        )

    def _attempt(self, path: Path, what: str, seconds: float, min_runs: int) -> Samples:
        """Push the file, call the program on it a few times, remove the file."""
        there = f"{self._folder}/{path.name}"
        self._link.push(path, there)
        share = seconds / self._calls
        call = shlex.join(
            [
                *self._prefix,
                self._binary,
                f"--graph={there}",
                *self._flags,
                "--warmup_runs=1",
                f"--warmup_min_secs={share * _SHARE_OF_WARMUP:.4f}",
                f"--num_runs={-(-min_runs // self._calls)}",
                f"--min_secs={share * (1 - _SHARE_OF_WARMUP):.4f}",
                f"--max_secs={max(_MODEL_SECONDS_MOST, self._patience):.0f}",
            ]
        )
        numbers = " ".join(map(str, range(self._calls)))
        file = shlex.quote(there)
        done = self._link.run(
            f"for i in {numbers}; do echo {_CALL}; {call} 2>&1 || {{ code=$?; rm -f {file}; exit $code; }};"
            f" done; rm -f {file}",
            timeout=self._patience + 10 * seconds,
        )
        return self._samples(done, what)

    def _samples(self, done: Finished, what: str) -> Samples:
        name = self._link.name
        if done.code != 0:
            raise UnavailableError(
                f"the benchmark program on {name} cannot time {what} (code {done.code}):"
                f" {told(done.out + done.err)}"
            )
        if _NOT_DELEGATED in done.out:
            raise UnavailableError(
                f"the delegate '{self._delegate}' on {name} does not execute {what}, which would be timed"
                " without it: choose another 'delegate' in the target file"
            )
        calls = [parse_benchmark(text) for text in done.out.split(_CALL)[1:]]
        if len(calls) != self._calls:
            raise LinkDownError(f"{name} told {len(calls)} of {self._calls} timings of {what}")
        return Samples(tuple(ms for ms, _ in calls), min(runs for _, runs in calls))

    def _probe(self) -> dict[str, Any]:
        """Ask what the device is, and whether the program is there."""
        binary = shlex.quote(self._binary)
        done = self._link.run(
            f"mkdir -p {shlex.quote(self._folder)} || exit 74;"
            f" test -f {binary} || exit 69; test -x {binary} || exit 77;"
            f' echo "digest $(sha256sum {binary})"; echo "taskset $(command -v taskset)";'
            ' echo "model $(getprop ro.product.model 2>/dev/null)";'
            ' echo "soc $(getprop ro.soc.model 2>/dev/null)"; echo "machine $(uname -m)";'
            ' echo "android $(getprop ro.build.version.release 2>/dev/null)"; echo "kernel $(uname -sr)";'
            " for f in /sys/devices/system/cpu/cpu[0-9]*; do"
            ' echo "cpu ${f##*cpu} $(cat $f/cpufreq/cpuinfo_max_freq 2>/dev/null)"; done'
        )
        name = self._link.name
        if done.code == 74:
            raise self._link.refused(f"the folder '{self._folder}'", done.err or done.out)
        if done.code in (69, 77):
            how = "is not there" if done.code == 69 else "may not be executed"
            raise UnavailableError(
                f"the benchmark program '{self._binary}' {how} on {name}: get LiteRT's benchmark_model for"
                f" the device's processor, then: {self._link.by_hand('benchmark_model', self._binary)}; or"
                " name its path as 'binary' in the target file"
            )
        facts: dict[str, Any] = {"clocks": {}}
        for line in done.out.splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "cpu":
                number, _, khz = rest.partition(" ")
                if number.isdigit():
                    facts["clocks"][int(number)] = int(khz) if khz.strip().isdigit() else 0
            elif word:
                facts[word] = rest.strip()
        if not facts.get("digest"):
            raise RunError(f"{name} does not tell what its benchmark program is: {told(done.out + done.err)}")
        machine, android = facts["machine"], facts["android"]
        return {
            **facts,
            "processor": " ".join(filter(None, (facts["model"], facts["soc"]))) or machine,
            "system": f"Android {android} {facts['machine']}"
            if android
            else f"{facts['kernel']} {facts['machine']}",
        }

    def _pin(self, cores: str) -> tuple[tuple[str, ...], str]:
        """Return what goes before the program's call, and what the table's metadata says of it."""
        clocks: dict[int, int] = self._facts["clocks"]
        wanted = parse_cores(cores) if cores not in ("", ALL_CORES) else tuple(clocks)
        if not set(wanted) <= set(clocks):
            raise InputError(
                f"{self._link.name} has the processors {cores_text(clocks)}, not all of '{cores}':"
                " correct 'cores' in the target file"
            )
        chosen = fastest_cores(self._target.threads, {core: clocks[core] for core in wanted})
        if cores == ALL_CORES:
            return (), "not pinned, as asked"
        if not self._facts.get("taskset"):
            return (), "not pinned: the device has no taskset"
        chosen = wanted if cores else chosen
        mask = sum(1 << core for core in chosen)
        return ("taskset", f"{mask:x}"), f"processors {cores_text(chosen)}, by taskset"

    def _machine_there(self) -> dict[str, Any]:
        """Bring over the few files that tell, and read them as if they were here."""
        done = self._link.run(
            "for f in /proc/loadavg /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
            " /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
            " /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq"
            " /sys/class/thermal/thermal_zone[0-9]*/temp;"
            ' do [ -r $f ] && echo "$f $(cat $f 2>/dev/null)"; done; true'
        )
        with tempfile.TemporaryDirectory() as scratch:
            for line in done.out.splitlines():
                path, _, text = line.strip().partition(" ")
                if re.fullmatch(r"/(?:proc|sys)/[\w/]+", path):
                    copy = Path(scratch + os.fspath(path))
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_text(text, encoding="utf-8")
            return machine_state(Path(scratch) / "sys", Path(scratch) / "proc")


_CALL = "litepose-nas-call"
