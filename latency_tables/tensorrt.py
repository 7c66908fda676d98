"""TensorRT through its own tool: models and a script for ``trtexec``, and its exported profiles as tables.

TensorRT runs on NVIDIA devices only, so it is no :class:`~latency_tables.Runtime`: :func:`write_work` writes
a folder of ONNX models and the script that builds and times them, the folder is copied to the device and the
script run there, and :func:`read_work` makes a table of what it left.

*This was not run on a Jetson by us.* The formats are those of TensorRT's published sources and examples
(github.com/NVIDIA/TensorRT, ``samples/common/sampleReporting.cpp``):

- ``--exportProfile``: a list; first ``{"count": N}``, then for each of the engine's layers ``name``,
  ``timeMs`` (the sum over N runs), ``averageMs``, in later releases ``medianMs``, and ``percentage``;
- ``--exportTimes``: a list of runs with ``computeMs``, ``latencyMs`` and others;
- ``--exportLayerInfo``: ``Layers``, each with ``Name`` and, with detailed profiling, ``Metadata`` that names
  the nodes it came from: ``[ONNX Layer: stem/0/Conv]``.

How a layer of the engine finds its way back: every node of our models is called by its block, its place in
the block and its operator, ``stage0.block1/2/Conv``, and TensorRT joins the names of what it fuses:
``stem/0/Conv + PWN(stem/0/Clip)``. ``{ForeignNode[A...B]}`` stands for all layers from A to B. A name that
tells nothing is looked up in the layer information. What it took belongs to the block; where it joins
several blocks, those get no row from that network, and the report says so. Reformatting counts to the layer
that it serves, but not at the edges of a block timed alone, where a network has a neighbour instead of an
edge (the picture's reformatting stays: there a network has an edge, too).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables.networks import network_program
from latency_tables.runtimes.base import Program
from latency_tables.table import LatencyTable, MeasuredNetwork, Provenance, Row
from latency_tables.target import Target
from search_spaces.arch import Arch
from search_spaces.errors import InputError, shown
from search_spaces.files import (
    check_keys,
    make_folder,
    read_json,
    read_text,
    write_bytes,
    write_json,
    write_text,
)
from search_spaces.layers import Block, Piece, layers_of, piece_from_key
from search_spaces.registry import arch_from_json

__all__ = [
    "PRECISIONS",
    "RUNTIME",
    "Imported",
    "LayerTime",
    "Profile",
    "read_layer_info",
    "read_profile",
    "read_times",
    "read_work",
    "write_work",
]

RUNTIME = "tensorrt"
"""What targets call it."""

PRECISIONS: Mapping[str, str] = {"fp32": "--noTF32", "fp16": "--fp16"}
"""Options of ``trtexec`` by precision."""

_FORMAT = 1
_WORK = "work.json"
_PIECE = "piece"
_NODE = re.compile(r"([A-Za-z0-9_.]*[A-Za-z0-9_])/(\d+)/[A-Za-z_]+")
_RANGE = re.compile(r"ForeignNode\[(.+?)\.\.\.(.+?)\]")
_EDGE = re.compile(r"Reformatting CopyNode for (Input|Output) Tensor \d+ to ")
_VERSION = re.compile(r"\[TensorRT v(\d+)\]")
_DATE = re.compile(r"\[(\d\d)/(\d\d)/(\d{4})-\d\d:\d\d:\d\d\]")
_ROUNDING = 1e-3
"""trtexec writes six digits."""
_MOST_UNNAMED = 0.1
_PICTURE_CHANNELS = 4

_SCRIPT = """\
#!/bin/sh
# Builds and times every model of this folder with TensorRT. Copy the folder to the device, set its clocks
# (Jetson: sudo nvpmodel -m 0; sudo jetson_clocks), run this script, and copy the folder back. Run it again
# after an interruption: what is there stays. Another trtexec: TRTEXEC=/path/to/trtexec sh run.sh
set -u
cd "$(dirname "$0")" || exit 2
TRTEXEC=${{TRTEXEC:-trtexec}}
command -v "$TRTEXEC" > /dev/null || TRTEXEC=/usr/src/tensorrt/bin/trtexec
command -v "$TRTEXEC" > /dev/null || {{ echo "there is no trtexec: set TRTEXEC to its path" >&2; exit 2; }}
mkdir -p out
"$TRTEXEC" --help > out/help.txt 2>&1
known() {{ grep -q -e "$1" out/help.txt && echo "$1$2"; }}
DETAILED=$(known --profilingVerbosity =detailed)
SEPARATE=$(known --separateProfileRun "")
failed=0
for model in models/*.onnx; do
  name=$(basename "$model" .onnx)
  if [ ! -s "out/$name.engine" ]; then
    echo "building $name"
    "$TRTEXEC" --onnx="$model" --saveEngine=out/part.engine {option} $DETAILED \\
      $(known --exportLayerInfo "=out/$name.layers.json") > "out/$name.build.log" 2>&1 \\
      && mv out/part.engine "out/$name.engine" \\
      || {{ echo "cannot build $name: see out/$name.build.log" >&2; failed=1; continue; }}
  fi
  i=1
  while [ $i -le {repeats} ]; do
    if [ ! -s "out/$name.$i.profile.json" ]; then
      echo "timing $name, $i of {repeats}"
      "$TRTEXEC" --loadEngine="out/$name.engine" --warmUp=500 --duration=3 --dumpProfile $SEPARATE \\
        --exportTimes="out/$name.$i.times.json" --exportProfile=out/part.json > "out/$name.$i.log" 2>&1 \\
        && mv out/part.json "out/$name.$i.profile.json" \\
        || {{ echo "cannot time $name: see out/$name.$i.log" >&2; failed=1; }}
    fi
    i=$((i + 1))
  done
done
exit $failed
"""


# -- the work --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    """One model: a piece alone, or a whole network.

    Attributes
    ----------
    name
        Of its files.
    pieces
        What it executes, by the name that its nodes carry.
    arch, joints
        The network; None and 0 of a piece.
    """

    name: str
    pieces: Mapping[str, Piece]
    arch: Arch | None = None
    joints: int = 0

    @classmethod
    def of_network(cls, arch: Arch, joints: int) -> _Job:
        blocks = {block.name: block for block in arch.blocks(joints)}
        return cls(f"network-{arch.id}-{joints}", blocks, arch, joints)

    @property
    def layers(self) -> list[str]:
        """Names of the steps, in order."""
        return [f"{name}/{i}" for name, piece in self.pieces.items() for i in range(len(layers_of(piece)))]

    def program(self) -> Program:
        """Return what is timed."""
        if self.arch is not None:
            return network_program(self.arch, self.joints)
        return Program.of(self.pieces[_PIECE])

    def edges(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the steps of a piece whose inputs, and those whose outputs a network would hand on."""
        if self.arch is not None:
            return frozenset(), frozenset()
        piece = self.pieces[_PIECE]
        chains = piece.chains if isinstance(piece, Block) else ((piece,),)
        first, number = set(), 0
        for chain in chains:
            if chain[0].c_in > _PICTURE_CHANNELS:
                first.add(f"{_PIECE}/{number}")
            number += len(chain)
        last = f"{_PIECE}/{number - 1}"
        if layers_of(piece)[-1].add and len(chains) == 1:
            first.add(last)  # the residual is the input, too
        return frozenset(first), frozenset({last})


def write_work(
    folder: Path,
    pieces: Sequence[Piece],
    networks: Sequence[tuple[Arch, int]],
    *,
    precision: str = "fp16",
    repeats: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write models, the list of them and the script that times them with ``trtexec``; return the script.

    Parameters
    ----------
    folder
        A new or an empty folder.
    pieces
        Blocks and layers to time alone.
    networks
        Whole networks (with their joints): one profile of a network gives a row for each of its blocks, in
        the midst of its neighbours, and the whole's time besides.
    precision
        ``fp32`` or ``fp16``.
    repeats
        Times that each engine is timed; the spread of a row is that among them.
    progress
        Called with (models written, models in all).

    Raises
    ------
    InputError
        If there is nothing to do, a setting is wrong, or the folder holds something.
    """
    if precision not in PRECISIONS:
        raise InputError(f"TensorRT is timed in {', '.join(PRECISIONS)}, not in {shown(precision)}")
    if repeats < 1:
        raise InputError(f"the number of repeats is at least 1, not {repeats}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' holds something already; choose a new folder")
    jobs = {job.name: job for job in (_Job.of_network(*each) for each in networks)}
    jobs |= {f"piece-{i:05}": _Job(f"piece-{i:05}", {_PIECE: p}) for i, p in enumerate(dict.fromkeys(pieces))}
    if not jobs:
        raise InputError("there is nothing to time: no network and no block")
    from latency_tables.runtimes.onnx_runtime import named_model

    models = make_folder(folder / "models")
    for done, job in enumerate(jobs.values(), 1):
        content = named_model(job.program(), job.layers).SerializeToString()
        write_bytes(models / f"{job.name}.onnx", content)
        if progress is not None:
            progress(done, len(jobs))
    told = []
    for job in jobs.values():
        arch = None if job.arch is None else job.arch.to_json()
        what = {"piece": job.pieces[_PIECE].key} if arch is None else {"arch": arch, "joints": job.joints}
        told.append({"name": job.name, **what})
    work = {"format": _FORMAT, "precision": precision, "repeats": repeats, "models": told}
    write_json(folder / _WORK, work)
    script = folder / "run.sh"
    write_text(script, _SCRIPT.format(option=PRECISIONS[precision], repeats=repeats))
    return script


def _read_jobs(folder: Path) -> tuple[str, int, list[_Job]]:
    """Return precision, repeats and jobs of a folder of work."""
    path = folder / _WORK
    where = f"work list '{path}'"
    given = check_keys(read_json(path, "work list"), {"format", "precision", "repeats", "models"}, where)
    for key in ("format", "precision", "repeats", "models"):
        if key not in given:
            raise InputError(f"{where} lacks '{key}'")
    if given["format"] != _FORMAT:
        raise InputError(f"{where}: format is {_FORMAT}, not {shown(given['format'])}")
    if given["precision"] not in PRECISIONS:
        raise InputError(f"{where}: precision is {' or '.join(PRECISIONS)}, not {shown(given['precision'])}")
    repeats = given["repeats"]
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise InputError(f"{where}: repeats is a whole number from 1, not {shown(repeats)}")
    if not isinstance(given["models"], list) or not given["models"]:
        raise InputError(f"{where}: models is a list of models, not {shown(given['models'])}")
    jobs = []
    for number, each in enumerate(given["models"]):
        at = f"{where}: models[{number}]"
        model = check_keys(each, {"name", "piece", "arch", "joints"}, at)
        name, joints = model.get("name"), model.get("joints")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9.-]+", name):
            raise InputError(f"{at}: name is a file's name without a suffix, not {shown(name)}")
        if isinstance(model.get("piece"), str):
            jobs.append(_Job(name, {_PIECE: piece_from_key(model["piece"])}))
        elif isinstance(joints, int) and not isinstance(joints, bool) and joints > 0:
            arch = arch_from_json(model.get("arch"), f"{at}: arch")
            jobs.append(_Job(name, _Job.of_network(arch, joints).pieces, arch, joints))
        else:
            raise InputError(f"{at} is neither a piece nor an arch with a number of joints")
    return given["precision"], repeats, jobs


# -- what trtexec exports ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer of an engine: its name, and what it takes in milliseconds per run."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What ``trtexec --exportProfile`` wrote.

    Attributes
    ----------
    count
        Runs behind it.
    layers
        The engine's layers, in order.
    statistic
        ``median`` over the runs, or ``average`` where the release tells no median.
    """

    count: int
    layers: tuple[LayerTime, ...]
    statistic: str


def read_profile(path: str | Path) -> Profile:
    """Return the profile in a file of ``trtexec --exportProfile``.

    Raises
    ------
    InputError
        Naming the file, the record, the field and the value that is wrong; so if an average is not the sum
        over the count.
    """
    where = f"TensorRT profile '{path}'"
    given = read_json(path, "TensorRT profile")
    if not isinstance(given, list) or not given:
        raise InputError(f"{where} is a list of records, not {shown(given)}")
    count = given[0].get("count") if isinstance(given[0], dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{where}: the first record is {{'count': runs}}, not {shown(given[0])}")
    layers, medians = [], 0
    for number, record in enumerate(given[1:], 1):
        at = f"{where}: record {number}"
        if not isinstance(record, dict) or not isinstance(record.get("name"), str):
            raise InputError(f"{at} has a 'name', a text, not {shown(record)}")
        at = f"{at} ({shown(record['name'])})"
        total, average = (_milliseconds(record, key, at) for key in ("timeMs", "averageMs"))
        if abs(average * count - total) > _ROUNDING * max(total, average * count):
            raise InputError(f"{at}: averageMs {average} over {count} runs is not timeMs {total}")
        ms = average
        if "medianMs" in record:
            ms, medians = _milliseconds(record, "medianMs", at), medians + 1
        layers.append(LayerTime(record["name"], ms))
    if not layers:
        raise InputError(f"{where} holds no layer")
    if medians not in (0, len(layers)):
        raise InputError(f"{where}: {medians} of {len(layers)} records have 'medianMs'; all have it or none")
    return Profile(count, tuple(layers), "median" if medians else "average")


def _milliseconds(record: Mapping[str, Any], key: str, at: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{at}: {key} is a number of milliseconds, not {shown(value)}")
    return float(value)


def read_times(path: str | Path) -> tuple[float, ...]:
    """Return ``computeMs`` of each run in a file of ``trtexec --exportTimes``: the GPU's time, no transfers.

    Raises
    ------
    InputError
        Naming the file, the run and the value that is wrong.
    """
    where = f"TensorRT times '{path}'"
    given = read_json(path, "TensorRT times")
    if not isinstance(given, list) or not given:
        raise InputError(f"{where} is a list of runs, not {shown(given)}")
    found = []
    for number, record in enumerate(given):
        at = f"{where}: run {number}"
        if not isinstance(record, dict):
            raise InputError(f"{at} is a mapping, not {shown(record)}")
        ms = _milliseconds(record, "computeMs", at)
        if ms == 0:
            raise InputError(f"{at}: computeMs is positive, not 0")
        found.append(ms)
    return tuple(found)


def read_layer_info(path: str | Path) -> dict[str, str]:
    """Return what a file of ``trtexec --exportLayerInfo`` says of each layer's origin, by the layer's name.

    Without detailed profiling it says nothing: layers are then mere names.

    Raises
    ------
    InputError
        If the file is of another form.
    """
    given = read_json(path, "TensorRT layer information")
    layers = given.get("Layers") if isinstance(given, dict) else None
    if not isinstance(layers, list):
        raise InputError(f"TensorRT layer information '{path}' has a list 'Layers', not {shown(given)}")
    found = {}
    for layer in layers:
        if isinstance(layer, dict) and isinstance(layer.get("Name"), str):
            found[layer["Name"]] = str(layer.get("Metadata") or "")
    return found


# -- from names to pieces ----------------------------------------------------------------------------------


def _steps(job: _Job, name: str, metadata: Mapping[str, str]) -> frozenset[str]:
    """Return the steps that a layer of the engine executes, or serves; none where nothing tells."""
    order = job.layers
    for text in (name, metadata.get(name, "")):
        found = {f"{block}/{i}" for block, i in _NODE.findall(text.replace("...", " ... "))} & set(order)
        for ends in _RANGE.findall(text):
            steps = [f"{m[1]}/{m[2]}" for m in map(_NODE.search, ends) if m is not None]
            for first, last in pairwise(step for step in steps if step in found):
                found |= set(order[order.index(first) : order.index(last) + 1])
        if found:
            return frozenset(found)
    return frozenset()


def _is_edge(job: _Job, name: str, steps: frozenset[str]) -> bool:
    """Return whether a record is a conversion at an edge that a network would not have."""
    match = _EDGE.match(name)
    if match is None:
        return False
    inputs, outputs = job.edges()
    return bool(steps & (inputs if match[1] == "Input" else outputs))


@dataclass(frozen=True, slots=True)
class _Shares:
    """What one profile says: milliseconds by piece's name, and names of pieces that share a layer."""

    ms: Mapping[str, float]
    spanning: frozenset[str]


def _shares(job: _Job, profile: Profile, metadata: Mapping[str, str], where: str) -> _Shares:
    ms = dict.fromkeys(job.pieces, 0.0)
    told: set[str] = set()
    spanning: set[str] = set()
    unnamed, total = [], 0.0
    for layer in profile.layers:
        steps = _steps(job, layer.name, metadata)
        total += layer.ms
        if not steps:
            unnamed.append(layer)
            continue
        if _is_edge(job, layer.name, steps):
            continue
        if _EDGE.match(layer.name) is None:
            told |= steps
        pieces = {step.rpartition("/")[0] for step in steps}
        if len(pieces) == 1:
            ms[pieces.pop()] += layer.ms
        elif layer.ms > 0:
            spanning |= pieces
    absent = [step for step in job.layers if step not in told]
    if absent:
        raise InputError(
            f"{where}: no record names the layer '{absent[0]}'"
            f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''}; profile the engine of"
            f" models/{job.name}.onnx with --profilingVerbosity=detailed, which run.sh does"
        )
    lost = sum(layer.ms for layer in unnamed)
    if lost > _MOST_UNNAMED * total:
        worst = max(unnamed, key=lambda layer: layer.ms)
        raise InputError(
            f"{where}: records that name no layer take {lost / total:.0%} of the time, most of it"
            f" {shown(worst.name)}; at most {_MOST_UNNAMED:.0%} may be lost"
        )
    for name, value in ms.items():
        if value == 0 and name not in spanning:
            raise InputError(f"{where}: '{name}' takes 0 ms, which nothing does")
    return _Shares(ms, frozenset(spanning))


# -- the table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What became of a folder of profiles.

    Attributes
    ----------
    table
        The table: a row for each block, and the whole networks.
    unmeasured
        Models without a profile.
    spanning
        Blocks that share a layer of an engine with others, and got no row from that network, by model.
    """

    table: LatencyTable
    unmeasured: tuple[str, ...]
    spanning: Mapping[str, tuple[str, ...]]


@dataclass
class _Samples:
    """Times of one piece, or of a network, and the runs behind them."""

    ms: list[float] = field(default_factory=list)
    runs: int = 0

    def row(self, provenance: Provenance, source: str) -> Row:
        p10, median, p90 = (float(np.percentile(self.ms, q)) for q in (10, 50, 90))
        return Row(median, min(p10, median), max(p90, median), self.runs, provenance, source)


def read_work(
    folder: Path,
    target: Target,
    source: str,
    *,
    own_device: bool = False,
    version: str | None = None,
    command: str = "",
) -> Imported:
    """Return the table that the profiles of a folder of work make.

    A row is the median over all profiles that hold the block, p10 and p90 are those among them: with a
    single profile there is no spread to tell. Whole networks are kept with the times of ``computeMs``.

    Parameters
    ----------
    folder
        What :func:`write_work` wrote and ``run.sh`` filled.
    target
        The device; its runtime is ``tensorrt``.
    source
        Whose measurement it is, in a few words, for every row.
    own_device
        Whether the user measured it: rows are ``measured-here``, else ``measured-by-others``.
    version
        TensorRT's, where the logs do not tell it.
    command
        What the user typed, for the metadata.

    Raises
    ------
    InputError
        If nothing was measured, target and work do not fit, a file is wrong (named with field and value), or
        a profile lacks a layer of its model.
    """
    precision, repeats, jobs = _read_jobs(folder)
    for what, given, wanted in (
        ("runtime", target.runtime, RUNTIME),
        ("precision", target.precision, precision),
    ):
        if given != wanted:
            raise InputError(f"the target's {what} is '{given}', but the models of '{folder}' are '{wanted}'")
    if not source.strip():
        raise InputError("the source says whose measurement it is, in a few words; it is empty")
    pieces: dict[Piece, _Samples] = {}
    networks: dict[str, _Samples] = {}
    statistics: set[str] = set()
    spanning: dict[str, tuple[str, ...]] = {}
    unmeasured = []
    for job in jobs:
        profiles = [
            (path, number)
            for number in range(1, repeats + 1)
            if (path := folder / "out" / f"{job.name}.{number}.profile.json").is_file()
        ]
        if not profiles:
            unmeasured.append(job.name)
        information = folder / "out" / f"{job.name}.layers.json"
        metadata = read_layer_info(information) if information.is_file() else {}
        for path, number in profiles:
            profile = read_profile(path)
            statistics.add(profile.statistic)
            found = _shares(job, profile, metadata, f"TensorRT profile '{path}'")
            if found.spanning:
                spanning[job.name] = tuple(sorted(found.spanning))
            for name, ms in found.ms.items():
                if name not in found.spanning:
                    samples = pieces.setdefault(job.pieces[name], _Samples())
                    samples.ms.append(ms)
                    samples.runs += profile.count
            if job.arch is not None:
                times = read_times(folder / "out" / f"{job.name}.{number}.times.json")
                whole = networks.setdefault(job.name, _Samples())
                whole.ms += times
                whole.runs += len(times)
    if not pieces:
        told = "all their blocks share layers of the engine" if spanning else "run run.sh on the device first"
        raise InputError(f"there is no profile of a block in '{folder / 'out'}': {told}")
    provenance: Provenance = "measured-here" if own_device else "measured-by-others"
    session, version = _session(folder, jobs, version)
    session |= {
        "command": command,
        "layers": len(pieces),
        "networks": len(networks),
        "runtime_version": version,
        "statistic": " and ".join(sorted(statistics)),
        "repeats": repeats,
        "unmeasured": len(unmeasured),
    }
    rows = {piece: samples.row(provenance, source) for piece, samples in pieces.items()}
    whole_networks = tuple(
        MeasuredNetwork(job.arch, job.joints, networks[job.name].row(provenance, source))
        for job in jobs
        if job.arch is not None and job.name in networks
    )
    table = LatencyTable(target, rows, (session,), networks=whole_networks)
    return Imported(table, tuple(unmeasured), spanning)


def _session(folder: Path, jobs: Sequence[_Job], version: str | None) -> tuple[dict[str, Any], str]:
    """Return date and circumstances from the logs, and TensorRT's version."""
    versions: set[str] = set()
    dates: set[str] = set()
    for text in _logs(folder, jobs):
        versions |= set(_VERSION.findall(text))
        dates |= {f"{year}-{month}-{day}" for month, day, year in _DATE.findall(text)}
    if version is None:
        if len(versions) != 1:
            told = f"tell {', '.join(sorted(versions))}" if versions else "do not tell it"
            raise InputError(
                f"TensorRT's version is needed, and the logs of '{folder / 'out'}' {told}: state it"
            )
        (version,) = versions
    today = datetime.now(UTC).date().isoformat()
    return {"date": min(dates, default=today), "imported": today}, version


def _logs(folder: Path, jobs: Sequence[_Job]) -> Iterator[str]:
    for job in jobs:
        for path in sorted((folder / "out").glob(f"{job.name}.*log")):
            yield read_text(path, "TensorRT log")
