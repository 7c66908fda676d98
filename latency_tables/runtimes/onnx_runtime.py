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

In 8 bits (see :mod:`latency_tables.runtimes.int8`) activations are unsigned bytes, channels last, and
transposed convolutions compute in floats: a layer is handed bytes by its neighbour, and hands over bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from latency_tables.runtimes.base import (
    Array,
    Prepared,
    Program,
    Runtime,
    Step,
    check_picture_input,
    conv_padding,
    deconv_padding,
    first_line,
    random_picture,
)
from latency_tables.runtimes.int8 import Range, Scale, int8_network, observed_ranges, quantised
from search_spaces.errors import InputError
from search_spaces.layers import Layer, Piece

if TYPE_CHECKING:
    import onnx

_OPSET, _IR_VERSION = 18, 10

PICTURE_CHANNELS = 4
"""A layer that reads at most so many channels reads the picture, in the plain layout."""

CONSUMER_CHANNELS = 4
"""A layer whose output channels are no multiple of this gives a network's output, in the plain layout."""

_BLOCKED = "com.microsoft.nchwc"
_PROVIDERS = ["CPUExecutionProvider"]


class OnnxRuntime(Runtime):
    """ONNX Runtime, CPU execution provider, sequential execution, one thread pool per session.

    Worker threads spin between parallel sections, the engine's default and therefore what a user's
    application sees. Inputs and outputs are bound once, so no copy is timed. (``run_with_iobinding`` is
    called without run options on purpose: with them a call costs 50 us in ONNX Runtime 1.31, without 3 us.)
    """

    name: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    install: ClassVar[str] = "install it with: pip install onnx onnxruntime"

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = Program.of(piece)
        cut = _timed_piece(program, precision)
        feeds = [edge.hand_over(x) for x, edge in zip(program.inputs, cut.inputs, strict=True)]
        prepared = _session(cut.model.SerializeToString(), threads, feeds)

        def outputs() -> tuple[Array, ...]:
            return tuple(
                edge.take(y, program.output.c_out)
                for y, edge in zip(prepared.outputs(), cut.outputs, strict=True)
            )

        yield Prepared(prepared.run, outputs)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        yield _session(empty_model().SerializeToString(), threads, [np.ones(1, dtype=np.float32)])

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        self.check_network(path, threads, precision)
        check_picture_input(path, size)
        try:
            model = str(path) if precision == "fp32" else int8_network(path, size)
            prepared = _session(model, threads, [random_picture(size)])
        except Exception as error:  # the engine's error classes have no common public base
            raise InputError(
                f"the network '{path}' does not run in ONNX Runtime: {first_line(error)}"
            ) from None
        yield prepared


class _Graph:
    """A growing ONNX graph; tensors are numbered."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self.scope: str | None = None  # what nodes are called by, before their operator

    def input(self, name: str, shape: Sequence[int]) -> str:
        self._inputs.append(tensor_info(name, shape))
        return name

    def output(self, name: str, shape: Sequence[int]) -> None:
        self._outputs.append(tensor_info(name, shape))

    def constant(self, array: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: Sequence[str], *, part: str = "", **attributes: Any) -> str:
        """Add a node; ``part`` tells two of one operator apart that belong to one layer."""
        from onnx import helper

        own = f"{self.scope}/{operator}{part and '_'}{part}"
        name = f"{operator}{len(self._nodes)}" if self.scope is None else own
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def model(self) -> onnx.ModelProto:
        from onnx import helper

        graph = helper.make_graph(self._nodes, "layer", self._inputs, self._outputs, self._constants)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )


def tensor_info(name: str, shape: Sequence[int], kind: int | None = None) -> Any:
    """Return a tensor's description, of 32-bit floats unless ``kind`` names another of ONNX's types."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, list(shape))


def empty_model() -> onnx.ModelProto:
    """Return the least model that can be run: one number, made positive."""
    graph = _Graph()
    graph.output(graph.node("Relu", [graph.input("x", (1,))]), (1,))
    return graph.model()


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
        picture = bool(reading) and array.shape[1] <= PICTURE_CHANNELS
        make = before if neighbours and not plain and not picture else alone
        values.append(make(f"x{number}", array.shape))
    for step in program.steps:
        values.append(_add_layer(graph, step, values))
    last, y = program.output, values[-1]
    if not neighbours or last.kind == "deconv" or last.c_out % CONSUMER_CHANNELS:
        bare.add(y)
    else:
        ones = graph.constant(np.ones((last.c_out, 1, 1, 1), dtype=np.float32))
        y = graph.node("Conv", [y, ones], kernel_shape=[1, 1], group=last.c_out)
    graph.output(y, (1, last.c_out, last.h_out, last.w_out))
    return graph.model(), frozenset(bare)


def named_model(program: Program, names: Sequence[str]) -> onnx.ModelProto:
    """Return a piece's or a network's model, without neighbours, whose nodes tell which layer they belong to.

    ``names`` are those of the steps; the nodes of one called ``stem/0`` are ``stem/0/Conv``, ``stem/0/Clip``.
    """
    graph = _Graph()
    values = [graph.input(f"x{number}", array.shape) for number, array in enumerate(program.inputs)]
    sizes = [array.shape[2:] for array in program.inputs]
    for step, name in zip(program.steps, names, strict=True):
        graph.scope = name
        layer, read = step.layer, list(values)
        size = (layer.h_in, layer.w_in)
        if sizes[step.x] != size:
            ends, axes = np.array(size, dtype=np.int64), np.array([2, 3], dtype=np.int64)
            start = np.zeros(2, dtype=np.int64)
            read[step.x] = graph.node("Slice", [values[step.x], *map(graph.constant, (start, ends, axes))])
        values.append(_add_layer(graph, step, read))
        sizes.append((layer.h_out, layer.w_out))
    for number in program.results:
        layer = program.steps[number - len(program.inputs)].layer
        graph.output(values[number], (1, layer.c_out, layer.h_out, layer.w_out))
    return graph.model()


def _add_layer(graph: _Graph, step: Step, values: Sequence[str]) -> str:
    """Add the nodes of one layer, in the operators of torch's exporter; return the name of its output."""
    layer = step.layer
    if layer.kind == "se":
        return _add_gate(graph, step, values[step.x])
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
    elif layer.activation == "hswish":
        y = graph.node("HardSwish", [y])
    return y


def _add_gate(graph: _Graph, step: Step, x: str) -> str:
    """Add the nodes of a squeeze-and-excitation; return the name of its output."""
    reduce, shift, expand, rise = map(graph.constant, step.gate)
    axes = graph.constant(np.array([-1, -2], dtype=np.int64))
    mean = graph.node("ReduceMean", [x, axes], keepdims=1)
    squeezed = graph.node("Relu", [graph.node("Conv", [mean, reduce, shift], kernel_shape=[1, 1])])
    excited = graph.node("Conv", [squeezed, expand, rise], kernel_shape=[1, 1], part="expand")
    return graph.node("Mul", [x, graph.node("HardSigmoid", [excited], alpha=1 / 6, beta=0.5)])


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
class _Edge:
    """How a tensor looks that a neighbour hands over or takes.

    Attributes
    ----------
    layout
        ``plain`` (N, C, H, W), ``blocked`` (see :func:`_to_blocks`) or ``last`` (N, H, W, C).
    scale
        Of its 8-bit numbers; None for 32-bit floats.
    """

    layout: Literal["plain", "blocked", "last"] = "plain"
    scale: Scale | None = None

    def hand_over(self, array: Array) -> npt.NDArray[Any]:
        """Return an (1, C, H, W) array as it looks here."""
        if self.layout == "blocked":
            array = _to_blocks(array)
        elif self.layout == "last":
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        return array if self.scale is None else self.scale.numbers(array)

    def take(self, found: npt.NDArray[Any], channels: int) -> Array:
        """Return what was found here as an (1, C, H, W) array."""
        array = found if self.scale is None else self.scale.values(found)
        if self.layout == "blocked":
            return _from_blocks(array, channels)
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if self.layout == "last" else array


@dataclass(frozen=True, slots=True)
class _Cut:
    """A model to be timed, and how its inputs and outputs look."""

    model: onnx.ModelProto
    inputs: tuple[_Edge, ...]
    outputs: tuple[_Edge, ...]


def _timed_piece(program: Program, precision: str) -> _Cut:
    """Return the program as ONNX Runtime would execute it within a network."""
    model, bare = program_model(program)
    if precision == "int8":
        model = quantised(model, _ranges_with_neighbours(program, model, bare))
    return _cut_edges(_optimised(model), bare)


def _ranges_with_neighbours(
    program: Program, model: onnx.ModelProto, bare: frozenset[str]
) -> dict[str, Range]:
    """Return the ranges of a program's values on its own inputs, by their names in its model with neighbours.

    A neighbour before hands over the program's input; the one after changes nothing.
    """
    alone, _ = program_model(program, neighbours=False)
    seen = observed_ranges(alone, program.inputs)
    inputs = [info.name for info in model.graph.input]
    nodes = iter(model.graph.node)
    ranges = {name: seen[name] for name in inputs}
    ranges |= {next(nodes).output[0]: seen[name] for name in inputs if name not in bare}
    for node in alone.graph.node:
        ranges[next(nodes).output[0]] = seen[node.output[0]]
    for node in nodes:
        ranges[node.output[0]] = seen[alone.graph.output[0].name]
    return ranges


def _cut_edges(model: onnx.ModelProto, bare: frozenset[str]) -> _Cut:
    """Return the optimised model without the neighbours and the conversions around them.

    From each input the chain of nodes up to and including the neighbour is dropped, likewise from the output
    backwards; inputs and outputs named in ``bare`` have no neighbour and stay as they are, but for a
    transposed convolution's 8-bit output, which the layer that reads it turns into floats.
    """
    from onnx import TensorProto

    graph = model.graph
    constants = {constant.name: constant.dims for constant in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    consumer = {name: node for node in graph.node for name in node.input}
    transposed = any(node.op_type == "ConvTranspose" for node in graph.node)
    dropped: set[str] = set()

    def cut(info: Any, forward: bool) -> _Edge:
        """Replace one input or output by the tensor beyond its neighbour; return how that looks."""
        batch, channels, height, width = (d.dim_value for d in info.type.tensor_type.shape.dim)
        node = consumer[info.name] if forward else producer[info.name]
        if info.name in bare:
            if forward or not transposed or node.op_type != "DequantizeLinear":
                return _Edge()
            dropped.add(node.output[0])
            info.CopyFrom(tensor_info(node.input[0], (batch, channels, height, width), TensorProto.UINT8))
            return _Edge(scale=Scale.of(model, *node.input[1:3]))
        dropped.add(node.output[0])
        while node.op_type not in ("Conv", "QLinearConv"):
            node = consumer[node.output[0]] if forward else producer[node.input[0]]
            dropped.add(node.output[0])
        eight = node.op_type == "QLinearConv"
        beyond = node.output[0] if forward else node.input[0]
        # Both neighbours' weights have one row per channel of the layer, padded to whole blocks if blocked.
        (padded, *_) = constants[node.input[3 if eight else 1]]
        if not eight:
            info.CopyFrom(tensor_info(beyond, (batch, padded, height, width)))
            return _Edge("blocked" if node.domain == _BLOCKED else "plain")
        last = any(a.name == "channels_last" and a.i for a in node.attribute)
        shape = (batch, height, width, padded) if last else (batch, padded, height, width)
        info.CopyFrom(tensor_info(beyond, shape, TensorProto.UINT8))
        scale = Scale.of(model, *(node.input[6:8] if forward else node.input[1:3]))
        return _Edge("last" if last else "plain", scale)

    inputs = tuple(cut(info, True) for info in graph.input)
    outputs = tuple(cut(info, False) for info in graph.output)
    kept = [node for node in graph.node if node.output[0] not in dropped]
    used = {name for node in kept for name in node.input}
    needed = [constant for constant in graph.initializer if constant.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(needed)
    return _Cut(model, inputs, outputs)


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


def _session(model: bytes | str, threads: int, inputs: Sequence[npt.NDArray[Any]]) -> Prepared:
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
        return tuple(np.array(value.numpy()) for value in results)

    def computed() -> tuple[Array, ...]:
        run()
        return fetch()

    return Prepared(run, computed, feed, fetch)
