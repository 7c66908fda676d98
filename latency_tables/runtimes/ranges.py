"""Ranges of a program's values over calibration pictures: what 8-bit files are written with.

A network in 8 bits is written with the least and the largest value that each of its tensors takes.
:func:`value_ranges` runs the program in 32-bit floats on real pictures; nothing but two numbers of each value
leaves the engine, so that memory does not grow with the network's depth nor with the number of pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from latency_tables.runtimes.base import Array, Program, Step
from search_spaces.errors import InputError, did_you_mean

__all__ = ["METHODS", "Range", "checked_ranges", "inner_values", "kept_steps", "value_ranges"]

Range = tuple[float, float]
"""Least and largest value."""

METHODS: Final = ("minmax", "mean")

_NODES: Final = {
    "sum": "Conv",
    "linear": "Conv",
    "mean": "ReduceMean",
    "few": "Relu",
    "logits": "Conv_expand",
    "gate": "HardSigmoid",
}
"""By part of a step: the node of its model that computes it."""


def inner_values(program: Program) -> dict[tuple[int, str], int]:
    """Return the numbers of what is computed within steps, by the number of the step's value and the part.

    They follow those of the program's values. The parts: ``sum``, a convolution before something is added to
    it; ``linear``, what a hard-swish reads; of a squeeze-and-excitation ``mean``, ``few`` (what its first
    convolution finds, after the ReLU), ``logits`` and ``gate``.
    """
    first = len(program.inputs)
    parts = [(first + i, part) for i, step in enumerate(program.steps) for part in _parts(step)]
    return {key: first + len(program.steps) + i for i, key in enumerate(parts)}


def _parts(step: Step) -> tuple[str, ...]:
    if step.layer.kind == "se":
        return "mean", "few", "logits", "gate"
    added = ("sum",) if step.other is not None else ()
    return (*added, "linear") if step.layer.activation == "hswish" else added


def value_ranges(
    program: Program,
    pictures: Iterable[Array],
    threads: int = 1,
    method: Literal["minmax", "mean"] = "minmax",
) -> dict[int, Range]:
    """Return the range of every value of a program, run in fp32 by ONNX Runtime.

    Parameters
    ----------
    program
        A whole network, or a piece with one input.
    pictures
        Calibration pictures, each of the input's shape, (1, 3, H, W), prepared as for the network; they are
        read once, one after the other.
    threads
        Worker threads.
    method
        ``minmax``: the extremes over all pictures. ``mean``: the mean of each picture's extremes, which
        rare outliers stretch less; what lies beyond is cut off.

    Returns
    -------
    dict
        Range by number: of the program's values (:class:`Step` numbers them), then of what is computed within
        steps (:func:`inner_values`).

    Raises
    ------
    InputError
        If there is no picture, one has another shape, or a value is not finite.
    UnavailableError
        If ONNX Runtime is not installed.
    """
    from latency_tables.runtimes.onnx_runtime import OnnxRuntime

    OnnxRuntime().check(threads)
    if method not in METHODS:
        raise InputError(f"unknown method '{method}'{did_you_mean(method, METHODS)}; {' or '.join(METHODS)}")
    if len(program.inputs) != 1:
        raise InputError(f"ranges are found for programs of one input, not of {len(program.inputs)}")
    shape = program.inputs[0].shape
    session, count = _session(program, threads), 0
    least: Any = np.full(len(session.get_outputs()) // 2, np.inf)
    largest: Any = -least
    if method == "mean":
        least, largest = np.zeros_like(least), np.zeros_like(largest)
    for picture in pictures:
        if picture.shape != shape:
            raise InputError(
                f"calibration picture {count} is {_times(picture.shape)},"
                f" and the network takes {_times(shape)}"
            )
        found = np.array(session.run(None, {"x0": np.ascontiguousarray(picture, dtype=np.float32)}))
        if not np.isfinite(found).all():
            raise InputError(f"calibration picture {count} gives values that are not finite")
        low, high = found[0::2].astype(np.float64), found[1::2].astype(np.float64)
        if method == "mean":
            least, largest = least + low, largest + high
        else:
            least, largest = np.minimum(least, low), np.maximum(largest, high)
        count += 1
    if not count:
        raise InputError("ranges need at least one calibration picture")
    if method == "mean":
        least, largest = least / count, largest / count
    return {i: (float(low), float(high)) for i, (low, high) in enumerate(zip(least, largest, strict=True))}


def checked_ranges(program: Program, ranges: Mapping[int, Range]) -> Mapping[int, Range]:
    """Return ranges that are one of every value of a program.

    Raises
    ------
    InputError
        If one is missing, turned round or not finite; the message names its layer.
    """
    first = len(program.inputs)
    inner = {number: key for key, number in inner_values(program).items()}
    for number in range(first + len(program.steps) + len(inner)):
        low, high = ranges.get(number, (np.nan, np.nan))
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            value, part = inner.get(number, (number, "output"))
            layer = None if value < first else program.steps[value - first].layer
            name = f"input {value}" if layer is None else f"the {part} of layer '{layer.name or layer.key}'"
            held = f"is {low} to {high}" if number in ranges else "is missing"
            raise InputError(f"the range of {name} (value {number}) {held}; ranges come from value_ranges")
    return ranges


def kept_steps(program: Program, keep: Iterable[str], precision: str) -> frozenset[int]:
    """Return the places of the steps whose layers are named, which stay in float in an int8 file.

    Raises
    ------
    InputError
        If a program has no such layer, or the precision is another one.
    """
    names = {step.layer.name: place for place, step in enumerate(program.steps) if step.layer.name}
    wanted = list(keep)
    if wanted and precision != "int8":
        raise InputError(f"layers are kept in float in int8 files; in {precision} none computes in 8 bits")
    for name in wanted:
        if name not in names:
            raise InputError(f"keep: the program has no layer '{name}'{did_you_mean(name, names)}")
    return frozenset(names[name] for name in wanted)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _session(program: Program, threads: int) -> Any:
    """Return a session of the program whose outputs are least and largest of its values, by number."""
    import onnxruntime
    from onnx import helper

    from latency_tables.runtimes.onnx_runtime import named_model, tensor_info

    first = len(program.inputs)
    names = [f"value{first + i}" for i in range(len(program.steps))]
    model = named_model(program, names)
    ends = [f"x{i}" for i in range(first)]
    own = dict.fromkeys(names, "")
    for node in model.graph.node:  # a step's last node gives its value
        if (step := node.name.partition("/")[0]) in own and node.op_type != "Slice":
            own[step] = node.output[0]
    ends += own.values()
    for value, part in inner_values(program):
        step = program.steps[value - first]
        operator = _NODES[part]
        if part in ("sum", "linear") and step.layer.kind == "deconv":
            operator = "ConvTranspose"
        if part == "linear" and step.other is not None:
            operator = "Add"
        ends.append(f"value{value}/{operator}")
    graph = model.graph
    del graph.output[:]
    for number, name in enumerate(ends):
        for operator in ("ReduceMin", "ReduceMax"):
            y = f"{operator}{number}"
            graph.node.append(helper.make_node(operator, [name], [y], keepdims=0))
            graph.output.append(tensor_info(y, ()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
