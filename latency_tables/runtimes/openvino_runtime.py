"""OpenVINO on the CPU, layers and blocks in the memory layout that whole networks run in.

Within a network OpenVINO keeps activations with their channels last, where that suits the processor, and
converts at the edges. Measured for LitePose-XS, the conversions at the edges of its blocks take ten times as
long as the network's own. So a piece is handed its input with channels last, which costs nothing, and of its
output a single pixel is copied out, the rest stays where the layer wrote it. Where another layout is used,
which cannot be handed over, inputs are converted at the piece's expense. A picture is handed over in the
plain layout, and a network's outputs (a number of channels that is no multiple of 4) are turned into it, as
in a network.

In 8 bits (see :mod:`latency_tables.runtimes.int8`) what is handed over are bytes. Only a piece that does not
add its input to its output is handed floats, and turns them into bytes at its own expense.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from latency_tables.runtimes.base import (
    Array,
    Prepared,
    Program,
    Runtime,
    check_picture_input,
    random_picture,
)
from latency_tables.runtimes.int8 import Scale, int8_network, observed_ranges, quantised
from latency_tables.runtimes.onnx_runtime import (
    CONSUMER_CHANNELS,
    PICTURE_CHANNELS,
    empty_model,
    program_model,
    tensor_info,
)
from search_spaces.errors import InputError
from search_spaces.layers import Block, Piece

_TELEMETRY = "openvino_telemetry"


class OpenvinoRuntime(Runtime):
    """OpenVINO's CPU plugin, set for latency: one stream with the given threads.

    On processors with bfloat16 instructions OpenVINO would compute in those unless told otherwise; it is told
    to compute in 32-bit floats. Calls are synchronous, inputs and outputs keep their memory. Whole networks
    are ``.onnx`` or ``.xml`` files.
    """

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    install: ClassVar[str] = "install it with: pip install 'litepose-nas[openvino]'"
    wheels: ClassVar[str] = "openvino onnx"

    def version(self) -> str:
        return str(_openvino().__version__).partition("-")[0]

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = Program.of(piece)
        yield _prepared_piece(program, threads, precision)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        model = _core().read_model(empty_model().SerializeToString())
        yield _compiled(model, threads, [np.ones(1, dtype=np.float32)])

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        if precision == "int8":
            self.check_network(path, threads, precision)
            if path.suffix != ".onnx":
                _check_quantised(path)
                with self._ready(path, path, (1, 3, *size), threads) as prepared:
                    yield prepared
                return
            check_picture_input(path, size)
            with self._ready(path, int8_network(path, size), (1, 3, *size), threads) as prepared:
                yield prepared
            return
        with self.prepare_pictures(path, (1, 3, *size), threads) as prepared:
            yield prepared

    def network_files(self, path: Path) -> tuple[Path, ...]:
        return (path.with_suffix(".bin"), path) if path.suffix == ".xml" else (path,)

    @contextmanager
    def prepare_pictures(
        self, path: Path, shape: tuple[int, int, int, int], threads: int
    ) -> Iterator[Prepared]:
        """Make ready a network, as it is in its file, for pictures (N, 3, H, W).

        Raises
        ------
        InputError, UnavailableError
            As :meth:`prepare_model`.
        """
        self.check_network(path, threads)
        with self._ready(path, path, shape, threads) as prepared:
            yield prepared

    @contextmanager
    def _ready(
        self, path: Path, source: Path | bytes, shape: tuple[int, int, int, int], threads: int
    ) -> Iterator[Prepared]:
        openvino = _openvino()
        x = np.repeat(random_picture((shape[2], shape[3])), shape[0], axis=0)
        try:
            model = _core().read_model(source)
            shapes = [each.partial_shape for each in model.inputs]
            fits = len(shapes) == 1 and shapes[0].compatible(openvino.PartialShape(list(shape)))
            prepared = None
            if fits:
                model.reshape(list(shape))
                prepared = _compiled(model, threads, [x])
        except RuntimeError as error:
            raise InputError(f"the network '{path}' does not run in OpenVINO: {_said(error)}") from None
        if prepared is None:
            found = "; ".join(str(shape) for shape in shapes) or "nothing"
            what = "one picture" if shape[0] == 1 else "pictures"
            raise InputError(
                f"the network '{path}' takes {found}, not {what} of {'x'.join(map(str, shape))}:"
                " state its size"
            )
        yield prepared


def _said(error: RuntimeError) -> str:
    """Return what OpenVINO says is wrong: the end, for it begins with the places in its own code."""
    return (str(error).strip().splitlines() or ["it says nothing"])[-1].strip()


def _check_quantised(path: Path) -> None:
    """Raise :class:`InputError` unless a network in OpenVINO's own format is quantised already."""
    try:
        kinds = {node.get_type_name() for node in _core().read_model(path).get_ops()}
    except RuntimeError as error:
        raise InputError(f"the network '{path}' does not run in OpenVINO: {_said(error)}") from None
    if "FakeQuantize" not in kinds:
        raise InputError(
            f"the network '{path}' is in floats, so it is not timed in 'int8': .onnx networks are quantised"
            " when they are read, .xml networks are taken as they are"
        )


def write_network(model: bytes, path: Path, told: Mapping[str, str], *, half: bool = False) -> None:
    """Write an ONNX model as an ``.xml`` file with its ``.bin`` beside it; not atomically.

    Parameters
    ----------
    model
        Serialised.
    path
        The ``.xml``.
    told
        What the file is to say under ``litepose_nas`` in its runtime information.
    half
        Keep weights in 16-bit floats.

    Raises
    ------
    InputError
        If OpenVINO cannot read the model.
    """
    try:
        read = _core().read_model(model)
    except RuntimeError as error:
        raise InputError(f"OpenVINO does not take the network: {_said(error)}") from None
    for key, value in told.items():
        read.set_rt_info(value, ["litepose_nas", key])
    _openvino().save_model(read, str(path), compress_to_fp16=half)


def _openvino() -> Any:
    """Import OpenVINO; on import it would send a message to its makers' statistics, which is not let happen.

    It does without the package that sends, if that is missing, so it is, for the moment of the import.
    """
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
    import openvino

    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


@dataclass(frozen=True, slots=True)
class _Source:
    """A program as a model whose edges are real numbers or, where it is in 8 bits, bytes.

    Attributes
    ----------
    model
        Serialised ONNX.
    inputs, output
        Scales of what is bytes; None for real numbers.
    """

    model: bytes
    inputs: tuple[Scale | None, ...]
    output: Scale | None


def _prepared_piece(program: Program, threads: int, precision: str) -> Prepared:
    """Return a program ready to be timed without the conversions at its edges."""
    source = _source(program, precision)
    last = _channels_last(precision)
    inner = [last and x.shape[1] > PICTURE_CHANNELS for x in program.inputs]
    feeds: list[npt.NDArray[Any]] = []
    for x, scale, turned in zip(program.inputs, source.inputs, inner, strict=True):
        array = x if scale is None else scale.numbers(x)
        feeds.append(np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if turned else array)
    output = program.output
    ends = output.c_out % CONSUMER_CHANNELS != 0
    timed = _compiled(_read(source.model, inner, whole=ends), threads, feeds)

    def outputs() -> tuple[Array, ...]:
        every = timed if ends else _compiled(_read(source.model, inner, whole=True), threads, feeds)
        scale = source.output
        return tuple(y if scale is None else scale.values(y) for y in every.outputs())

    return Prepared(timed.run, outputs)


def _source(program: Program, precision: str) -> _Source:
    """Return a program as a model, its edges in bytes where a neighbour in 8 bits would hand over bytes."""
    from onnx import TensorProto

    model, _ = program_model(program, neighbours=False)
    if precision == "fp32":
        return _Source(model.SerializeToString(), (None,) * len(program.inputs), None)
    model = quantised(model, observed_ranges(model, program.inputs))
    graph = model.graph
    inputs: list[Scale | None] = []
    for place, info in enumerate(graph.input):
        first = [node for node in graph.node if info.name in node.input]
        # OpenVINO computes a layer that alone reads a network's bytes in floats, unless it makes them itself.
        added = any(step.other == place for step in program.steps)
        if not added or [node.op_type for node in first] != ["QuantizeLinear"]:
            inputs.append(None)
            continue
        inputs.append(Scale.of(model, *first[0].input[1:3]))
        shape = program.inputs[place].shape
        info.CopyFrom(tensor_info(first[0].output[0], shape, TensorProto.UINT8))
        graph.node.remove(first[0])
    (end,) = graph.output
    (final,) = (node for node in graph.node if end.name in node.output)
    output = program.output
    if final.op_type != "DequantizeLinear" or output.c_out % CONSUMER_CHANNELS:
        return _Source(model.SerializeToString(), tuple(inputs), None)
    scale = Scale.of(model, *final.input[1:3])
    shape = (1, output.c_out, output.h_out, output.w_out)
    end.CopyFrom(tensor_info(final.input[0], shape, TensorProto.UINT8))
    graph.node.remove(final)
    return _Source(model.SerializeToString(), tuple(inputs), scale)


def _read(source: bytes, inner: Sequence[bool], *, whole: bool) -> Any:
    """Return the model, some inputs channels last; unless ``whole``, one pixel of its output comes out."""
    openvino = _openvino()
    model = _core().read_model(source)
    if not whole:
        ends = [np.array(v, dtype=np.int64) for v in ((0, 0), (1, 1), (1, 1), (2, 3))]
        pixel = openvino.opset13.slice(model.output(0).get_node().input_value(0), *ends)
        model = openvino.Model([openvino.opset13.result(pixel)], model.get_parameters())
    steps = openvino.preprocess.PrePostProcessor(model)
    for place, turned in enumerate(inner):
        if turned:
            steps.input(place).tensor().set_layout(openvino.Layout("NHWC"))
            steps.input(place).model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


@cache
def _channels_last(precision: str) -> bool:
    """Return whether layers hand over their outputs with channels last on this processor."""
    key = "conv_k1_s1_g1_16x8x8_32+bn+relu6>conv_k1_s1_g1_32x8x8_32+bn+relu6"
    source = _source(Program.of(Block.from_key(key)), precision).model
    compiled = _compile(_read(source, [False], whole=True), 1)
    layouts = [
        str(information["outputLayouts"].astype(str))
        for node in compiled.get_runtime_model().get_ordered_ops()
        if str((information := node.get_rt_info())["layerType"].astype(str)) == "Convolution"
    ]
    return bool(layouts) and layouts[0].startswith("acdb")


def _compile(model: Any, threads: int) -> Any:
    """Return the model compiled for this processor and so many threads."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # else two threads on one core's two processors would become one
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return _core().compile_model(model, "CPU", settings)


def _compiled(model: Any, threads: int, inputs: Sequence[npt.NDArray[Any]]) -> Prepared:
    """Return the model compiled, its inputs set."""
    openvino = _openvino()
    request = _compile(model, threads).create_infer_request()
    tensors = [openvino.Tensor(array, shared_memory=False) for array in inputs]
    for place, tensor in enumerate(tensors):
        request.set_input_tensor(place, tensor)

    def run() -> None:
        request.infer(share_outputs=True)

    def feed(array: Array) -> None:
        tensors[0].data[:] = array

    def fetch() -> tuple[Array, ...]:
        return tuple(np.array(tensor.data) for tensor in request.output_tensors)

    def outputs() -> tuple[Array, ...]:
        run()
        return fetch()

    return Prepared(run, outputs, feed, fetch)
