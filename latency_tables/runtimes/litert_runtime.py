"""LiteRT (TensorFlow Lite) on the CPU, through its interpreter with the XNNPACK delegate.

Pieces and whole networks are written as TensorFlow Lite files by this package itself (see
:mod:`latency_tables.runtimes.tflite_writer`), for converting them from PyTorch takes ``litert-torch``, which
pulls JAX and other releases of what is pinned here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from latency_tables.runtimes.base import (
    Array,
    Prepared,
    Program,
    Runtime,
    first_line,
    random_picture,
)
from latency_tables.runtimes.ranges import Range, checked_ranges, kept_steps
from latency_tables.runtimes.tflite_writer import (
    Quantisation,
    named_quantisations,
    nhwc,
    range_quantisation,
    value_name,
    write_relu,
    write_tflite,
)
from search_spaces.errors import InputError
from search_spaces.layers import Piece

__all__ = ["LiteRuntime", "write_network"]


class LiteRuntime(Runtime):
    """LiteRT's interpreter with its default delegate, XNNPACK, batch 1, activations (N, H, W, C).

    Worker threads are those of the interpreter. In int8 weights, activations, inputs and outputs are int8;
    the ranges of activations come from a run in fp32 on the program's own inputs. In fp16 weights are stored
    in 16 bits and the delegate computes in 32, as it does by default on every processor: what is timed is
    what such a file costs, which is fp32's time at half the size. A file is timed in the
    precision that it has; nothing is converted when it is read.

    Depthwise kernels of more than 25 weights are slow in LiteRT 2.3.0 on x86: 96 channels at 64x64 took
    0.7 ms with 5x5 and 29 to 60 ms with 7x7, one thread of a busy machine. That is the delegate's doing
    (LiteRT's kernels without it took 10 ms), and what an application gets by default, so it is what is timed.
    In int8 the delegate leaves hard-swish to LiteRT's own kernel.
    """

    name: ClassVar[str] = "litert"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    packages: ClassVar[tuple[str, ...]] = ("ai_edge_litert", "flatbuffers")
    install: ClassVar[str] = "install it with: pip install 'litepose-nas[litert]'"
    wheels: ClassVar[str] = "ai-edge-litert flatbuffers"

    def version(self) -> str:
        from importlib.metadata import version

        return version("ai-edge-litert")

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = Program.of(piece)
        yield _prepared(_interpreter(_written(program, precision), threads), program.inputs)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        x = np.ones((1, 1, 1, 1), dtype=np.float32)
        yield _prepared(_interpreter(write_relu(x.shape), threads), [x])

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        self.check_network(path, threads, precision)
        content = path.read_bytes()
        _check_precision(path, _held_in(path, content), precision)
        try:
            interpreter = _interpreter(content, threads)
        except (ValueError, RuntimeError) as error:  # operators that it does not know, shapes that do not fit
            raise InputError(f"the network '{path}' does not run in LiteRT: {first_line(error)}") from None
        _check_picture_input(path, interpreter, size)
        x = random_picture(size)
        yield _prepared(interpreter, [x])


def write_network(
    program: Program,
    path: Path,
    precision: str = "fp32",
    ranges: Mapping[int, Range] | None = None,
    keep: Iterable[str] = (),
) -> Path:
    """Write a piece or a whole network as a ``.tflite`` file; return its path.

    Parameters
    ----------
    program
        What is written.
    path
        Where; the file is there wholly or not at all.
    precision
        ``fp32``; ``fp16``: weights are stored in 16 bits, and computed with in 32 (about half the size);
        ``int8``: static full-integer quantisation, activations in 8 bits with one scale and zero point each,
        weights in 8 bits with one scale per output channel, biases in 32 (about a quarter of the size). The
        picture and what comes out are int8 too: their scales and zero points stand in the file.
    ranges
        For int8: the range of every value, from :func:`latency_tables.runtimes.ranges.value_ranges` on
        calibration pictures. By default they come from a run in fp32 on the program's own inputs: enough for
        timing, too little for accuracy.
    keep
        For int8: names of layers that stay in float. They cost a conversion wherever a neighbour is in 8
        bits, and an output that such a layer computes is in 32-bit floats.

    Raises
    ------
    UnavailableError
        Naming a layer that TensorFlow Lite has no operators for; or if LiteRT is not installed, or does not
        offer the precision.
    InputError
        If a range is missing, no layer is called so, or 16 bits do not hold a layer's weights.
    """
    LiteRuntime().check(1, precision)
    from search_spaces.files import write_bytes  # needs yaml, which devices do without

    kept = kept_steps(program, keep, precision)
    write_bytes(path, _written(program, precision, ranges, kept))
    return path


def piece_file(piece: Piece | None, precision: str = "fp32") -> tuple[bytes, str]:
    """Return a piece as a file, and the file's suffix; of None: a call that computes next to nothing.

    It is what LiteRT's benchmark program is given on devices without Python. In int8 the ranges of values
    come from a run on this machine.
    """
    LiteRuntime().check(1, precision)
    content = write_relu((1,)) if piece is None else _written(Program.of(piece), precision)
    return content, ".tflite"


def _written(
    program: Program,
    precision: str,
    ranges: Mapping[int, Range] | None = None,
    kept: Collection[int] = (),
) -> bytes:
    if precision != "int8":
        return write_tflite(program, halves=precision == "fp16")
    if ranges is None:
        return write_tflite(program, _ranges(program), keep=kept)
    given = named_quantisations(program, checked_ranges(program, ranges))
    return write_tflite(program, given, keep=kept)


def _ranges(program: Program) -> dict[str, Quantisation]:
    """Return the quantisation of every value, from its range when the program runs in fp32."""
    interpreter = _interpreter(write_tflite(program, every=True), 1)
    for detail, x in zip(interpreter.get_input_details(), program.inputs, strict=True):
        interpreter.set_tensor(detail["index"], nhwc(x))
    interpreter.invoke()
    found = {value_name(i): range_quantisation(x.min(), x.max()) for i, x in enumerate(program.inputs)}
    for detail in interpreter.get_output_details():
        y = interpreter.get_tensor(detail["index"])
        found[detail["name"]] = range_quantisation(float(y.min()), float(y.max()))
    return found


def _interpreter(content: bytes, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with _quiet():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def _prepared(interpreter: Any, inputs: Sequence[Array]) -> Prepared:
    """Return a prepared interpreter whose inputs hold the (N, C, H, W) arrays."""
    given, results = interpreter.get_input_details(), interpreter.get_output_details()

    def set_input(detail: dict[str, Any], x: Array) -> None:
        stored: npt.NDArray[Any] = nhwc(x)
        if detail["dtype"] == np.int8:
            stored = _quantisation(detail).store(nhwc(x))
        interpreter.set_tensor(detail["index"], stored)

    for detail, x in zip(given, inputs, strict=True):
        set_input(detail, x)
    run: Callable[[], None] = interpreter.invoke
    run()  # the delegate packs weights when it first runs

    def fetch() -> tuple[Array, ...]:
        return tuple(_real(interpreter.get_tensor(detail["index"]), detail) for detail in results)

    def outputs() -> tuple[Array, ...]:
        run()
        return fetch()

    return Prepared(run, outputs, lambda x: set_input(given[0], x), fetch)


def _real(y: npt.NDArray[Any], detail: dict[str, Any]) -> Array:
    """Return an output as fp32, (N, C, H, W) if it is a map."""
    real: Array = _quantisation(detail).real(y) if y.dtype == np.int8 else y.astype(np.float32)
    return np.ascontiguousarray(real.transpose(0, 3, 1, 2)) if real.ndim == 4 else real


def _quantisation(detail: dict[str, Any]) -> Quantisation:
    scale, zero_point = detail["quantization"]
    return Quantisation(float(scale), int(zero_point))


def _held_in(path: Path, content: bytes) -> str:
    """Return the precision of a file: int8 if that is what it takes, fp16 if it stores such numbers.

    Raises
    ------
    InputError
        Unless the content is a whole TensorFlow Lite file: on less the interpreter would crash.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        if content[4:8] != b"TFL3":
            raise ValueError
        graph = schema.ModelT.InitFromPackedBuf(content).subgraphs[0]
        taken = [graph.tensors[i].type for i in graph.inputs]
        held = {tensor.type for tensor in graph.tensors}
    except Exception:  # whatever reading beyond the end, or at a wrong place, comes to
        raise InputError(f"the network '{path}' is no TensorFlow Lite file, or a damaged one") from None
    names = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    kinds = schema.TensorType
    if taken and taken[0] != kinds.FLOAT32:
        return "int8" if taken[0] == kinds.INT8 else names.get(taken[0], "unknown numbers")
    return "fp16" if kinds.FLOAT16 in held else "fp32"


def _check_precision(path: Path, found: str, precision: str) -> None:
    if found != precision:
        raise InputError(
            f"the network '{path}' is in {found}, so it is not timed in '{precision}': nothing is converted"
            " when a file is read"
        )


def _check_picture_input(path: Path, interpreter: Any, size: tuple[int, int]) -> None:
    """Raise :class:`InputError` unless the network takes exactly one picture of that size."""
    shapes = [tuple(int(n) for n in detail["shape"]) for detail in interpreter.get_input_details()]
    if shapes != [(1, *size, 3)]:
        found = "; ".join("x".join(map(str, shape)) for shape in shapes) or "nothing"
        raise InputError(
            f"the network '{path}' takes {found}, not one picture of 1x{size[0]}x{size[1]}x3: state its size"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the interpreter's own notes, which it writes past Python, off standard error."""
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        saved = os.dup(2)
        stack.callback(os.close, saved)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 2)
        stack.callback(os.dup2, saved, 2)
        yield
