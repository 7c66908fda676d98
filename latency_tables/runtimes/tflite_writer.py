"""Programs as TensorFlow Lite files, in the operators that a converter would emit.

Activations are (batch, height, width, channels). A convolution takes the operator's own SAME padding wherever
that is the layer's: our convolutions pad ``(kernel - 1) // 2`` before, and SAME pads half of what the last
window needs, rounded down. Both agree at stride 1, for odd sizes and for even kernels; an odd kernel at
stride 2 over an even size differs by one pixel, so a PAD stands before it, as converters from PyTorch write
it. A transposed convolution is SAME where kernel minus stride is even, else it is computed whole and its
first rows and columns are cut off. Additions and ReLUs are fused into what they follow: the ReLU into the
addition, or into the convolution where nothing is added. Hard-swish is an operator of its own; there is none
for hard-sigmoid, which is ``relu6(x + 3) * (1 / 6)``.

In int8 every value has one scale and zero point, from the range that it has in an fp32 run; weights have one
scale per output channel, biases are int32 (the scheme of TensorFlow Lite's full-integer quantisation). Layers
that are kept in float stand between a DEQUANTIZE and a QUANTIZE, one of each per value however many read it.

In fp16 the weights are stored in 16 bits, and a DEQUANTIZE before each turns them into 32-bit floats when the
file is loaded (the scheme of TensorFlow Lite's float16 quantisation); biases stay in 32 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_tables.runtimes.base import Array, Program, Step, conv_padding, deconv_padding
from latency_tables.runtimes.ranges import Range, inner_values
from search_spaces.errors import InputError, UnavailableError
from search_spaces.layers import Layer

__all__ = [
    "Quantisation",
    "named_quantisations",
    "nhwc",
    "range_quantisation",
    "value_name",
    "write_relu",
    "write_tflite",
]

_DESCRIPTION = "litepose-nas"
_SCHEMA = 3
_IDENTIFIER = b"TFL3"
_ROOM = 1 << 16
_INT8 = (-128, 127)
_LEAST_SCALE = 1e-30


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a value is held in int8: ``real = scale * (stored - zero_point)``."""

    scale: float
    zero_point: int

    def store(self, array: Array) -> npt.NDArray[np.int8]:
        """Return an array in int8, rounded, what lies beyond the range at its ends."""
        stored = np.clip(np.rint(array / self.scale) + self.zero_point, *_INT8)
        return np.asarray(stored, dtype=np.int8)

    def real(self, stored: npt.NDArray[np.int8]) -> Array:
        """Return the numbers that an int8 array stands for."""
        return ((stored.astype(np.float32) - self.zero_point) * self.scale).astype(np.float32)


def range_quantisation(low: float, high: float) -> Quantisation:
    """Return the quantisation whose 256 steps span a range; 0 is always in it, and exactly held."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    if scale < _LEAST_SCALE:  # all but zero
        scale = 1.0
    return Quantisation(scale, int(np.clip(round(-128 - low / scale), *_INT8)))


def value_name(number: int) -> str:
    """Return the tensor's name of a program's value."""
    return f"value{number}"


def _sum_name(number: int) -> str:
    """Return the tensor's name of a step's convolution before something is added to it."""
    return f"value{number}_convolution"


def _linear_name(number: int) -> str:
    """Return the tensor's name of what a step's hard-swish reads."""
    return f"value{number}_linear"


def named_quantisations(program: Program, ranges: Mapping[int, Range]) -> dict[str, Quantisation]:
    """Return the quantisation of every tensor by name, from the ranges of :func:`value_ranges`."""
    found = {value_name(i): ranges[i] for i in range(len(program.inputs) + len(program.steps))}
    for (value, part), number in inner_values(program).items():
        low, high = ranges[number]
        if part == "logits":  # 3 is added to them, and relu6 limits the sum
            found[f"{value_name(value)}_raised"] = min(max(low + 3, 0.0), 6.0), min(max(high + 3, 0.0), 6.0)
        name = {"sum": _sum_name, "linear": _linear_name}.get(part)
        found[name(value) if name else f"{value_name(value)}_{part}"] = low, high
    return {name: range_quantisation(low, high) for name, (low, high) in found.items()}


def nhwc(array: Array) -> Array:
    """Return an (N, C, H, W) array as (N, H, W, C)."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def write_tflite(
    program: Program,
    quantisations: Mapping[str, Quantisation] | None = None,
    *,
    every: bool = False,
    halves: bool = False,
    keep: Collection[int] = (),
) -> bytes:
    """Return the program as a TensorFlow Lite file.

    Parameters
    ----------
    program
        A piece or a whole network.
    quantisations
        Quantisation of every value, and of every sum before it is one, by tensor name: int8. By default fp32.
    every
        Whether all values are outputs, for their ranges to be known.
    halves
        Whether the weights of what computes in float are stored in 16 bits.
    keep
        Places of the steps that compute in float, although there are quantisations.

    Raises
    ------
    UnavailableError
        Naming a layer that TensorFlow Lite has no operators for.
    InputError
        Naming a layer whose weights 16 bits do not hold.
    """
    graph = _Graph(quantisations, halves=halves)
    values = [graph.value(value_name(i), _shape(x)) for i, x in enumerate(program.inputs)]
    shapes = [_shape(x) for x in program.inputs]
    inputs = list(values)
    for place, step in enumerate(program.steps):
        number = len(values)
        graph.enter(step.layer.name or step.layer.key, floating=quantisations is None or place in keep)
        x = graph.read(values[step.x], shapes[step.x], (step.layer.h_in, step.layer.w_in))
        out = (1, step.layer.h_out, step.layer.w_out, step.layer.c_out)
        other = None if step.other is None else graph.read(values[step.other], shapes[step.other], out[1:3])
        values.append(_add_step(graph, step, number, x, other))
        shapes.append(out)
    outputs = [values[i] for i in program.results]
    if every:
        outputs = [y for y in graph.activations if y not in inputs]
    return graph.file(inputs, outputs)


def write_relu(shape: Sequence[int], *, doubled: bool = False) -> bytes:
    """Return a file of the least that can be run: a ReLU, ``doubled`` if it is to be added to itself."""
    graph = _Graph(None)
    x = graph.value("x", shape)
    y = graph.value("y", shape)
    graph.operator("RELU", [x], y)
    if doubled:
        double = graph.value("double", shape)
        graph.operator("ADD", [y, y], double, graph.options("AddOptions", fusedActivationFunction=0))
        y = double
    return graph.file([x], [y])


def _shape(array: Array) -> tuple[int, ...]:
    n, c, h, w = array.shape
    return n, h, w, c


class _Graph:
    """A growing model of one subgraph; tensors are numbered."""

    def __init__(self, quantisations: Mapping[str, Quantisation] | None, *, halves: bool = False) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.quantisations = quantisations
        self.floating = quantisations is None
        self.halves = halves
        self.activations: list[int] = []
        self._layer = ""
        self._turned: dict[int, int] = {}
        self._tensors: list[Any] = []
        self._quantised: list[Quantisation | None] = []
        self._buffers: list[Any] = [schema.BufferT()]
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._parts: dict[tuple[int, tuple[int, int]], int] = {}

    def enter(self, layer: str, *, floating: bool) -> None:
        """Begin a layer, which computes in float or in 8 bits."""
        self._layer, self.floating = layer, floating

    def read(self, x: int, shape: Sequence[int], size: tuple[int, int]) -> int:
        """Return a value's upper left part of that size, in the present layer's numbers."""
        if (self._quantised[x] is None) != self.floating:
            if x not in self._turned:
                name, operator = self._tensors[x].name, "DEQUANTIZE" if self.floating else "QUANTIZE"
                kind, version = self.options(f"{operator.title()}Options"), 2 if self.floating else 1
                self._turned[x] = self._activation(
                    f"{name}_{operator.lower()}d", shape, None if self.floating else self._own(name)
                )
                self.operator(operator, [x], self._turned[x], kind, version)
            x = self._turned[x]
        return self.part(x, shape, size)

    def _own(self, name: str) -> Quantisation | None:
        return None if self.quantisations is None else self.quantisations[name]

    def value(self, name: str, shape: Sequence[int], like: int | None = None) -> int:
        """Add an activation; its quantisation is that of its name, or of the tensor that it is ``like``."""
        if like is not None:
            return self._activation(name, shape, self._quantised[like])
        number = self._activation(name, shape, None if self.floating else self._own(name))
        self.activations.append(number)
        return number

    def _activation(self, name: str, shape: Sequence[int], quantised: Quantisation | None) -> int:
        kind = self.schema.TensorType.FLOAT32 if quantised is None else self.schema.TensorType.INT8
        scales = None if quantised is None else ([quantised.scale], [quantised.zero_point], 0)
        number = self._tensor(name, shape, kind, 0, scales)
        self._quantised[number] = quantised
        return number

    def constant(self, array: npt.NDArray[Any], scales: Array | None = None, axis: int = 0) -> int:
        """Add a constant; ``scales`` are those of its channels, which lie along ``axis``."""
        kinds = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "int8": "INT8"}
        kind = getattr(self.schema.TensorType, kinds[array.dtype.name])
        self._buffers.append(self.schema.BufferT(data=np.frombuffer(array.tobytes(), dtype=np.uint8)))
        given = None if scales is None else (scales, np.zeros(len(scales), dtype=np.int64), axis)
        name = f"constant{len(self._tensors)}"
        return self._tensor(name, array.shape, kind, len(self._buffers) - 1, given)

    def _tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: int,
        buffer: int,
        scales: tuple[Sequence[float] | Array, Sequence[int] | npt.NDArray[np.int64], int] | None,
    ) -> int:
        quantization = None
        if scales is not None:
            scale, zero, axis = scales
            quantization = self.schema.QuantizationParametersT(
                scale=np.asarray(scale, dtype=np.float32),
                zeroPoint=np.asarray(zero, dtype=np.int64),
                quantizedDimension=axis,
            )
        self._tensors.append(
            self.schema.TensorT(
                shape=np.asarray(shape, dtype=np.int32),
                type=kind,
                buffer=buffer,
                name=name,
                quantization=quantization,
            )
        )
        self._quantised.append(None)
        return len(self._tensors) - 1

    def weights(self, x: int, weight: Array, bias: Array | None, axis: int) -> tuple[int, int]:
        """Add a convolution's weight and bias (zeros, where it has none), as the tensor it reads is held."""
        channels = weight.shape[axis]
        shift = np.zeros(channels, dtype=np.float32) if bias is None else bias
        read = self._quantised[x]
        if read is None:
            return self._half(weight) if self.halves else self.constant(weight), self.constant(shift)
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scales = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
        scales[scales == 0] = 1.0
        along = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        stored = np.clip(np.rint(weight / along), -127, 127).astype(np.int8)
        both = (read.scale * scales.astype(np.float64)).astype(np.float32)
        limits = np.iinfo(np.int32)
        ints = np.clip(np.rint(shift.astype(np.float64) / both), limits.min, limits.max).astype(np.int32)
        return self.constant(stored, scales, axis), self.constant(ints, both)

    def _half(self, weight: Array) -> int:
        """Add a weight in 16 bits; return the tensor in 32 bits that it becomes when the file is loaded."""
        with np.errstate(over="ignore"):
            stored = weight.astype(np.float16)
        if not np.isfinite(stored).all():
            raise InputError(
                f"the layer '{self._layer}' has weights up to {np.abs(weight).max():g}, which 16 bits do not"
                " hold; write fp32"
            )
        x = self.constant(stored)
        y = self._tensor(
            f"{self._tensors[x].name}_wide", weight.shape, self.schema.TensorType.FLOAT32, 0, None
        )
        self.operator("DEQUANTIZE", [x], y, self.options("DequantizeOptions"), 3)
        return y

    def number(self, value: float) -> int:
        """Add a constant number above 0, held as activations are."""
        if self.floating:
            return self.constant(np.full((1, 1, 1, 1), value, dtype=np.float32))
        most = _INT8[1]
        scale = np.array([value / most], dtype=np.float32)
        return self.constant(np.full((1, 1, 1, 1), most, dtype=np.int8), scale)

    def options(self, kind: str, **fields: Any) -> tuple[int, Any]:
        """Return an operator's options with the number of their kind."""
        return getattr(self.schema.BuiltinOptions, kind), getattr(self.schema, f"{kind}T")(**fields)

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        output: int,
        options: tuple[int, Any] | None = None,
        version: int = 1,
    ) -> None:
        """Add an operator of that name and version."""
        code = self._codes.setdefault((name, version), len(self._codes))
        kind, content = options or (0, None)
        self._operators.append(
            self.schema.OperatorT(
                opcodeIndex=code,
                inputs=np.asarray(inputs, dtype=np.int32),
                outputs=np.asarray([output], dtype=np.int32),
                builtinOptionsType=kind,
                builtinOptions=content,
            )
        )

    def part(self, x: int, shape: Sequence[int], size: tuple[int, int], start: int = 0) -> int:
        """Return the part of a tensor that begins at row and column ``start``; itself, if that is all."""
        if tuple(shape[1:3]) == size:
            return x
        if (x, size) not in self._parts:
            found = (shape[0], *size, shape[3])
            y = self.value(f"{self._tensors[x].name}_part{len(self._parts)}", found, like=x)
            begin = self.constant(np.array([0, start, start, 0], dtype=np.int32))
            extent = self.constant(np.array(found, dtype=np.int32))
            self.operator("SLICE", [x, begin, extent], y, self.options("SliceOptions"), self.version(1, 2))
            self._parts[x, size] = y
        return self._parts[x, size]

    def version(self, fp32: int, int8: int) -> int:
        """Return the version of an operator that knows the present layer's number format."""
        return fp32 if self.floating else int8

    def file(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the model as a file's content."""
        import flatbuffers

        codes = []
        for name, version in self._codes:
            code = getattr(self.schema.BuiltinOperator, name)
            codes.append(
                self.schema.OperatorCodeT(
                    deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version
                )
            )
        subgraph = self.schema.SubGraphT(
            tensors=self._tensors,
            inputs=np.asarray(inputs, dtype=np.int32),
            outputs=np.asarray(outputs, dtype=np.int32),
            operators=self._operators,
            name="main",
        )
        model = self.schema.ModelT(
            version=_SCHEMA,
            operatorCodes=codes,
            subgraphs=[subgraph],
            description=_DESCRIPTION,
            buffers=self._buffers,
        )
        builder = flatbuffers.Builder(_ROOM)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())


def _add_step(graph: _Graph, step: Step, number: int, x: int, other: int | None) -> int:
    """Add the operators of one layer; return the tensor of its output."""
    layer = step.layer
    shape = (1, layer.h_out, layer.w_out, layer.c_out)
    activations = graph.schema.ActivationFunctionType
    if layer.kind == "se":
        return _gate(graph, step, x, value_name(number))
    fused = {"relu": activations.RELU, "relu6": activations.RELU6}
    activation = fused.get(layer.activation, activations.NONE)
    hard = layer.activation == "hswish"
    name = _linear_name(number) if hard else value_name(number)
    convolve = _transposed if layer.kind == "deconv" else _convolution
    if other is None:
        y = convolve(graph, step, x, name, activation)
    else:
        terms = [convolve(graph, step, x, _sum_name(number), activations.NONE), other]
        y = graph.value(name, shape)
        options = graph.options("AddOptions", fusedActivationFunction=activation)
        graph.operator("ADD", terms, y, options, graph.version(1, 2))
    if not hard:
        return y
    out = graph.value(value_name(number), shape)
    graph.operator("HARD_SWISH", [y], out, graph.options("HardSwishOptions"))
    return out


def _gate(graph: _Graph, step: Step, x: int, name: str) -> int:
    """Add the operators of a squeeze-and-excitation; return the tensor of its output."""
    layer, activations = step.layer, graph.schema.ActivationFunctionType
    channels, plain = (1, 1, 1, layer.c_out), activations.NONE

    def convolve(x: int, weight: Array, bias: Array, name: str, activation: int) -> int:
        constants = graph.weights(x, nhwc(weight), bias, 0)
        y = graph.value(name, (1, 1, 1, len(bias)))
        common = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        options = graph.options(
            "Conv2DOptions", padding=graph.schema.Padding.SAME, fusedActivationFunction=activation, **common
        )
        graph.operator("CONV_2D", [x, *constants], y, options, graph.version(1, 3))
        return y

    def combine(operator: str, terms: Sequence[int], y: int, activation: int) -> int:
        options = graph.options(f"{operator.title()}Options", fusedActivationFunction=activation)
        graph.operator(operator, terms, y, options, graph.version(1, 2))
        return y

    reduce, shift, expand, rise = step.gate
    mean = graph.value(f"{name}_mean", channels)
    axes = graph.constant(np.array([1, 2], dtype=np.int32))
    graph.operator(
        "MEAN", [x, axes], mean, graph.options("ReducerOptions", keepDims=True), graph.version(1, 2)
    )
    few = convolve(mean, reduce, shift, f"{name}_few", activations.RELU)
    logits = convolve(few, expand, rise, f"{name}_logits", activations.NONE)
    raised = graph.value(f"{name}_raised", channels)
    combine("ADD", [logits, graph.number(3.0)], raised, activations.RELU6)
    gate = combine("MUL", [raised, graph.number(1 / 6)], graph.value(f"{name}_gate", channels), plain)
    return combine("MUL", [x, gate], graph.value(name, (1, layer.h_out, layer.w_out, layer.c_out)), plain)


def same_is_ours(layer: Layer) -> bool:
    """Return whether SAME pads as the layer does, before each axis; what is behind then follows."""
    before, _ = conv_padding(layer)
    for size, out in ((layer.h_in, layer.h_out), (layer.w_in, layer.w_out)):
        if max((out - 1) * layer.stride + layer.kernel - size, 0) // 2 != before:
            return False
    return True


def _convolution(graph: _Graph, step: Step, x: int, name: str, activation: int) -> int:
    layer, schema = step.layer, graph.schema
    padding = schema.Padding.SAME
    if not same_is_ours(layer):
        before, after = conv_padding(layer)
        sides = np.array([[0, 0], [before, after], [before, after], [0, 0]], dtype=np.int32)
        shape = (1, layer.h_in + before + after, layer.w_in + before + after, layer.c_in)
        padded = graph.value(f"{name}_padded", shape, like=x)
        options = graph.options("PadOptions")
        graph.operator("PAD", [x, graph.constant(sides)], padded, options, graph.version(1, 2))
        x, padding = padded, schema.Padding.VALID
    common = {
        "padding": padding,
        "strideH": layer.stride,
        "strideW": layer.stride,
        "fusedActivationFunction": activation,
        "dilationHFactor": 1,
        "dilationWFactor": 1,
    }
    if layer.kind == "dwconv":
        # (channels, 1, k, k) -> (1, k, k, channels)
        weight, axis = np.ascontiguousarray(step.weight.transpose(1, 2, 3, 0)), 3
        operator = "DEPTHWISE_CONV_2D"
        options = graph.options("DepthwiseConv2DOptions", depthMultiplier=1, **common)
    else:
        weight, axis = nhwc(step.weight), 0
        operator, options = "CONV_2D", graph.options("Conv2DOptions", **common)
    constants = graph.weights(x, weight, step.bias, axis)
    y = graph.value(name, (1, layer.h_out, layer.w_out, layer.c_out))
    graph.operator(operator, [x, *constants], y, options, graph.version(1, 3))
    return y


def _transposed(graph: _Graph, step: Step, x: int, name: str, activation: int) -> int:
    layer, schema = step.layer, graph.schema
    if layer.groups != 1:
        raise UnavailableError(
            f"TensorFlow Lite has no transposed convolution with groups, so {layer.key} has no translation"
        )
    cut, _ = deconv_padding(layer)
    surplus = layer.kernel - layer.stride
    whole = tuple((size - 1) * layer.stride + layer.kernel for size in (layer.h_in, layer.w_in))
    if surplus < 0:
        raise UnavailableError(
            f"TensorFlow Lite has no transposed convolution whose stride exceeds its kernel, so {layer.key}"
            " has no translation"
        )
    same = surplus // 2 == cut
    size = (layer.h_out, layer.w_out) if same else whole
    # (c_in, c_out, k, k) -> (c_out, k, k, c_in)
    weight = np.ascontiguousarray(step.weight.transpose(1, 2, 3, 0))
    constants = graph.weights(x, weight, step.bias, 0)
    out = graph.constant(np.array([1, *size, layer.c_out], dtype=np.int32))
    y = graph.value(name, (1, *size, layer.c_out))
    options = graph.options(
        "TransposeConvOptions",
        padding=schema.Padding.SAME if same else schema.Padding.VALID,
        strideH=layer.stride,
        strideW=layer.stride,
        fusedActivationFunction=activation,
    )
    graph.operator("TRANSPOSE_CONV", [out, constants[0], x, constants[1]], y, options, 4)
    return graph.part(y, (1, *size, layer.c_out), (layer.h_out, layer.w_out), start=cut)
