"""ONNX Runtime on the CPU, timed in the memory layout that whole networks run in.

On x86 (and some ARM) processors ONNX Runtime keeps activations in a blocked layout, NCHWc, between
convolutions, and converts at the edges of a network. A model of a single convolution has both edges, and the
conversions cost as much as the layer itself (measured for LitePose-XS: the sum over layers came out 1.6 times
the network's time). So a layer is timed like this:

1. build ``convolution -> layer -> convolution``, so that the layer has neighbours;
2. let ONNX Runtime optimise it, which fuses activation and addition and picks the layouts;
3. cut the neighbours and the edges' conversions off; what remains is the layer as a network executes it, fed
   in the layout that its neighbour would hand it.

A conversion that the layer itself needs stays in. A transposed convolution has no blocked form, so it pays
for turning its input into the plain layout, as in a network; its output is not charged, for it is added to
another's before the next conversion. A layer with at most 4 input channels reads the picture, so it has no
neighbour before it; one whose output channels are no multiple of 4 has no blocked consumer (it is a
network's output), so it pays for turning its output into the plain layout.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latency_tables.runtimes.base import (
    Array,
    Prepared,
    Program,
    Runtime,
    Step,
    conv_padding,
    deconv_padding,
)
from search_spaces.errors import InputError
from search_spaces.layers import Layer, Piece

if TYPE_CHECKING:
    import onnx

_OPSET, _IR_VERSION = 18, 10
_BLOCKED = "com.microsoft.nchwc"
_PICTURE_CHANNELS = 4
_CONSUMER_CHANNELS = 4
_PROVIDERS = ["CPUExecutionProvider"]


class OnnxRuntime(Runtime):
    """ONNX Runtime, CPU execution provider, sequential execution, one thread pool per session.

    Worker threads spin between parallel sections, the engine's default and therefore what a user's
    application sees. Inputs and outputs are bound once, so no copy is timed. (``run_with_iobinding`` is
    called without run options on purpose: with them a call costs 50 us in ONNX Runtime 1.31, without 3 us.)
    """

    name: ClassVar[str] = "onnxruntime"
    install: ClassVar[str] = "install it with: pip install onnx onnxruntime"

    def unavailable(self) -> str | None:
        for package in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                return f"the package '{package}' is not installed"
        return None

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = piece if isinstance(piece, Program) else Program.of(piece)
        model, bare = program_model(program)
        cut = _cut_edges(_optimised(model), bare)
        prepared = _session(
            cut.model.SerializeToString(),
            threads,
            [_to_blocks(a) if b else a for a, b in zip(program.inputs, cut.blocked_inputs, strict=True)],
        )

        def outputs() -> tuple[Array, ...]:
            return tuple(
                _from_blocks(y, program.output.c_out) if blocked else y
                for y, blocked in zip(prepared.outputs(), cut.blocked_outputs, strict=True)
            )

        yield Prepared(prepared.run, outputs)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        graph = _Graph()
        graph.output(graph.node("Relu", [graph.input("x", (1,))]), (1,))
        yield _session(graph.model().SerializeToString(), threads, [np.ones(1, dtype=np.float32)])

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        self.check(threads, precision)
        if not path.is_file():
            raise InputError(f"the network '{path}' does not exist")
        _check_picture_input(path, size)
        x = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
        try:
            prepared = _session(str(path), threads, [x])
        except Exception as error:  # the engine's error classes have no common public base
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the network '{path}' does not run in ONNX Runtime: {line}") from None
        yield prepared


class _Graph:
    """A growing ONNX graph; tensors are numbered."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Sequence[int]) -> str:
        self._inputs.append(_tensor_info(name, shape))
        return name

    def output(self, name: str, shape: Sequence[int]) -> None:
        self._outputs.append(_tensor_info(name, shape))

    def constant(self, array: Array) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def model(self) -> onnx.ModelProto:
        from onnx import helper

        graph = helper.make_graph(self._nodes, "layer", self._inputs, self._outputs, self._constants)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )


def _tensor_info(name: str, shape: Sequence[int]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def program_model(program: Program, *, neighbours: bool = True) -> tuple[onnx.ModelProto, frozenset[str]]:
    """Return the program as a model, and the names of the inputs and outputs that have no neighbour.

    The neighbour before an input is a 1x1 convolution of three channels, the one after the output a 1x1
    depthwise convolution: both take or give the blocked layout wherever there is one. Without neighbours the
    model computes just the program.
    """
    graph = _Graph()
    bare: set[str] = set()

    def alone(name: str, shape: tuple[int, ...]) -> str:
        bare.add(name)
        return graph.input(name, shape)

    def before(name: str, shape: tuple[int, ...]) -> str:
        _, channels, height, width = shape
        weight = graph.constant(np.ones((channels, 3, 1, 1), dtype=np.float32))
        return graph.node("Conv", [graph.input(name, (1, 3, height, width)), weight], kernel_shape=[1, 1])

    values = []
    for number, array in enumerate(program.inputs):
        # The picture has no neighbour; nor has what a transposed convolution adds: another one's output.
        adding = [step.layer for step in program.steps if step.other == number]
        reading = [step for step in program.steps if step.x == number]
        plain = not reading and all(layer.kind == "deconv" for layer in adding)
        picture = bool(reading) and array.shape[1] <= _PICTURE_CHANNELS
        make = before if neighbours and not plain and not picture else alone
        values.append(make(f"x{number}", array.shape))
    for step in program.steps:
        values.append(_add_layer(graph, step, values))
    last, y = program.output, values[-1]
    if not neighbours or last.kind == "deconv" or last.c_out % _CONSUMER_CHANNELS:
        bare.add(y)
    else:
        ones = graph.constant(np.ones((last.c_out, 1, 1, 1), dtype=np.float32))
        y = graph.node("Conv", [y, ones], kernel_shape=[1, 1], group=last.c_out)
    graph.output(y, (1, last.c_out, last.h_out, last.w_out))
    return graph.model(), frozenset(bare)


def _add_layer(graph: _Graph, step: Step, values: Sequence[str]) -> str:
    """Add the nodes of one layer; return the name of its output."""
    layer = step.layer
    operands = [values[step.x], graph.constant(step.weight)]
    if step.bias is not None:
        operands.append(graph.constant(step.bias))
    attributes: dict[str, Any] = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "group": layer.groups,
    }
    if layer.kind == "deconv":
        padding, extra = deconv_padding(layer)
        y = graph.node(
            "ConvTranspose", operands, pads=[padding] * 4, output_padding=[extra] * 2, **attributes
        )
    else:
        first, last = conv_padding(layer)
        y = graph.node("Conv", operands, pads=[first, first, last, last], **attributes)
    if step.other is not None:
        y = graph.node("Add", [y, values[step.other]])
    if layer.activation == "relu":
        y = graph.node("Relu", [y])
    elif layer.activation == "relu6":
        limits = [graph.constant(np.array(v, dtype=np.float32)) for v in (0.0, 6.0)]
        y = graph.node("Clip", [y, *limits])
    return y


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as ONNX Runtime would execute it on this processor."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="litepose-nas-") as folder:
        path = Path(folder) / "optimised.onnx"
        options = _options(1)
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS)
        return onnx.load(path)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A model to be timed, and which of its inputs and outputs are in the blocked layout."""

    model: onnx.ModelProto
    blocked_inputs: tuple[bool, ...]
    blocked_outputs: tuple[bool, ...]


def _cut_edges(model: onnx.ModelProto, bare: frozenset[str]) -> _Piece:
    """Return the optimised model without the neighbours and the layout conversions around them.

    From each input the chain of nodes up to and including the neighbour is dropped, likewise from the output
    backwards; inputs and outputs named in ``bare`` have no neighbour and stay as they are.
    """
    graph = model.graph
    padded = {constant.name: constant.dims[0] for constant in graph.initializer if constant.dims}
    producer = {name: node for node in graph.node for name in node.output}
    consumer = {name: node for node in graph.node for name in node.input}
    dropped: set[str] = set()

    def cut(info: Any, forward: bool) -> bool:
        """Replace one input or output by the tensor beyond its neighbour; return whether it is blocked."""
        if info.name in bare:
            return False
        node = consumer[info.name] if forward else producer[info.name]
        dropped.add(node.output[0])
        while node.op_type != "Conv":
            node = consumer[node.output[0]] if forward else producer[node.input[0]]
            dropped.add(node.output[0])
        batch, _, height, width = (d.dim_value for d in info.type.tensor_type.shape.dim)
        beyond = node.output[0] if forward else node.input[0]
        # Both neighbours' weights have one row per channel of the layer, padded to whole blocks if blocked.
        info.CopyFrom(_tensor_info(beyond, (batch, padded[node.input[1]], height, width)))
        return bool(node.domain == _BLOCKED)

    blocked_inputs = tuple(cut(info, True) for info in graph.input)
    blocked_outputs = tuple(cut(info, False) for info in graph.output)
    kept = [node for node in graph.node if node.output[0] not in dropped]
    used = {name for node in kept for name in node.input}
    constants = [constant for constant in graph.initializer if constant.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    return _Piece(model, blocked_inputs, blocked_outputs)


@cache
def _block() -> int:
    """Return how many channels one block of the blocked layout holds on this processor."""
    layer = Layer("conv", 3, 1, 3, 1, 1, 4, 4)
    model, _ = program_model(Program.of(layer))
    # The weights of a convolution to one channel are padded to one block.
    return max(int(c.dims[0]) for c in _optimised(model).graph.initializer if len(c.dims) == 4)


def _to_blocks(array: Array) -> Array:
    """Return an (1, C, H, W) array in the blocked layout: channels padded with zeros, blocks innermost."""
    size = _block()
    _, channels, height, width = array.shape
    padded = -(-channels // size) * size
    full = np.zeros((1, padded, height, width), dtype=np.float32)
    full[:, :channels] = array
    blocks = full.reshape(1, padded // size, size, height, width).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(blocks).reshape(1, padded, height, width)


def _from_blocks(array: Array, channels: int) -> Array:
    """Return the first ``channels`` channels of a blocked array as (1, C, H, W)."""
    size = _block()
    _, padded, height, width = array.shape
    blocks = array.reshape(1, padded // size, height, width, size).transpose(0, 1, 4, 2, 3)
    return np.ascontiguousarray(blocks.reshape(1, padded, height, width)[:, :channels])


def _session(model: bytes | str, threads: int, inputs: Sequence[Array]) -> Prepared:
    """Return a session of ``model`` (bytes, or a path) with its inputs and outputs bound to fixed memory."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, _options(threads), providers=_PROVIDERS)
    names = [info.name for info in session.get_inputs()]
    feeds = dict(zip(names, inputs, strict=True))
    outputs = [info.name for info in session.get_outputs()]
    binding = session.io_binding()
    given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    results = [onnxruntime.OrtValue.ortvalue_from_numpy(y) for y in session.run(outputs, feeds)]
    for name, value in zip(outputs, results, strict=True):
        binding.bind_ortvalue_output(name, value)

    def run() -> None:
        session.run_with_iobinding(binding)

    def feed(array: Array) -> None:
        given[names[0]].update_inplace(np.ascontiguousarray(array))

    def fetch() -> tuple[Array, ...]:
        return tuple(np.array(value.numpy(), dtype=np.float32) for value in results)

    def computed() -> tuple[Array, ...]:
        run()
        return fetch()

    return Prepared(run, computed, feed, fetch)


def _check_picture_input(path: Path, size: tuple[int, int]) -> None:
    """Raise :class:`InputError` unless the model takes exactly one float picture of that size."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # protobuf's own error class is not public
        raise InputError(f"the network '{path}' is no ONNX file, or a damaged one") from None
    constants = {constant.name for constant in graph.initializer}
    inputs = [info for info in graph.input if info.name not in constants]
    shapes = [[d.dim_value or None for d in info.type.tensor_type.shape.dim] for info in inputs]
    wanted = (1, 3, *size)
    if len(shapes) != 1 or len(shapes[0]) != 4 or any(h not in (None, w) for h, w in zip(shapes[0], wanted)):
        found = "; ".join("x".join(str(d or "?") for d in shape) for shape in shapes) or "nothing"
        raise InputError(
            f"the network '{path}' takes {found}, not one picture of 1x3x{size[0]}x{size[1]}: state its size"
        )
