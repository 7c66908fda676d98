"""Programs as ncnn networks: the text of a ``.param`` file and the numbers of its ``.bin``.

Layers are those that ncnn's own converter, pnnx, would write: activations fused into convolutions but for
hard-swish, and into nothing behind an addition. The numbers are in one of three forms:

fp32
    As they are.
fp16
    Weights in 16 bits, biases in 32. What ncnn computes in is not in the file but among its options.
int8
    The form of ncnn's own tool, ncnn2int8. Convolutions, depthwise ones too, are in 8 bits: their weights
    with one scale per output channel, what they read with one scale, both symmetric. 127 stands for the
    largest absolute value; among the weights of 3x3 convolutions of stride 1 it is 31, as ncnn's tools have
    it, for ncnn may compute those by Winograd's algorithm in 16 bits, which overflow with larger ones.
    Biases and scales are in 32 bits. A convolution turns what it reads into 8 bits itself and gives 32-bit
    floats, unless all that read it are such convolutions: then it gives them their 8 bits.

    In floats are computed transposed convolutions, for which ncnn has no 8 bits; convolutions in groups of
    several channels, which come out as nonsense in ncnn 1.0.20261020 on x86; squeeze-and-excitations, whose
    convolutions see one pixel; and layers that are kept. Their weights are stored in 16 bits, as ncnn2int8
    stores them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency_tables.runtimes.base import Array, Program, Step, conv_padding, deconv_padding
from latency_tables.runtimes.ranges import Range
from search_spaces.errors import InputError
from search_spaces.layers import Layer

__all__ = ["network_text", "program_network"]

_MAGIC = 7767517
"""First line of every ncnn network."""

_Part = tuple[int, tuple[int, int]]
"""A value's number, and the height and width of the upper left part that is read."""

_HARD = f"0={np.float32(1 / 6):.9g} 1=0.5"
"""Slope and offset of hard-sigmoid and hard-swish; ncnn's own default is another slope."""

_FLOAT32, _FLOAT16, _INT8 = 0, 0x01306B47, 0x000D4B38
"""What precedes weights, by how they are stored."""

_MOST, _WINOGRAD = 127, 31
"""Largest stored number; largest weight where sums are Winograd's, which overflow with larger ones."""

_REQUANTISED = 100
"""Added to a convolution's form of scales where it gives 8 bits."""


def program_network(
    program: Program,
    *,
    halves: bool = False,
    ranges: Mapping[int, Range] | None = None,
    keep: Collection[int] = (),
) -> tuple[str, bytes]:
    """Return a program as the text (``.param``) and the numbers (``.bin``) of an ncnn network.

    Its inputs are called ``in0``, ``in1``, ..., its outputs ``out0``, ``out1``, ...

    Parameters
    ----------
    program
        A piece or a whole network.
    halves
        Whether weights are stored in 16 bits.
    ranges
        Of every value, by number: int8. By default all is in floats.
    keep
        Places of steps that compute in floats, although there are ranges.

    Raises
    ------
    InputError
        Naming a layer whose weights 16 bits do not hold.
    """
    wires = _Wires(program)
    scales = {} if ranges is None else _scales(program, ranges, keep)
    lines = wires.lines
    for number, array in enumerate(program.inputs):
        channels, height, width = array.shape[1:]
        lines.append(f"Input in{number} 0 1 in{number} 0={width} 1={height} 2={channels}")
        wires.give(number, f"in{number}")
    for place, step in enumerate(program.steps):
        layer = step.layer
        number = len(program.inputs) + place
        y = wires.name(number)
        x = wires.take(step.x, (layer.h_in, layer.w_in))
        if layer.kind == "se":
            lines += _gate(layer, place, x, y)
        elif step.other is None:
            # pnnx fuses ReLUs into convolutions, and leaves hard-swish a layer of its own.
            alone = layer.activation == "hswish"
            z, given = f"z{place}" if alone else y, scales.get(place)
            lines.append(_convolution(step, f"conv{place}", x, z, given, fused=not alone))
            if alone:
                lines.append(_activation(layer, place, f"z{place}", y))
        else:
            other = wires.take(step.other, (layer.h_out, layer.w_out))
            end = y if layer.activation == "none" else f"sum{place}"
            given = scales.get(place)
            lines.append(_convolution(step, f"conv{place}", x, f"z{place}", given, fused=False))
            lines.append(f"BinaryOp add{place} 2 1 {other} z{place} {end} 0=0")
            if layer.activation != "none":
                lines.append(_activation(layer, place, end, y))
        wires.give(number, y)
    chunks = (_numbers(step, scales.get(place), halves=halves) for place, step in enumerate(program.steps))
    return network_text(lines), b"".join(chunk for found in chunks for chunk in found)


@dataclass(frozen=True, slots=True)
class _Scales:
    """By what the numbers of one convolution are multiplied to become 8 bits.

    Attributes
    ----------
    weight
        Shape (c_out,).
    x
        Of what it reads.
    y
        Of what it gives, where that is 8 bits; None where it gives floats.
    """

    weight: Array
    x: np.float32
    y: np.float32 | None


def _scales(program: Program, ranges: Mapping[int, Range], keep: Collection[int]) -> dict[int, _Scales]:
    """Return the scales of every step that computes in 8 bits, by its place."""
    first = len(program.inputs)
    eight = {
        place for place, step in enumerate(program.steps) if _has_eight_bits(step.layer) and place not in keep
    }
    floats = set(program.results)  # values that something reads as floats, or in part
    sizes = [x.shape[2:] for x in program.inputs]
    for place, step in enumerate(program.steps):
        layer = step.layer
        if place not in eight or sizes[step.x] != (layer.h_in, layer.w_in):
            floats.add(step.x)
        if step.other is not None:
            floats.add(step.other)
        sizes.append((layer.h_out, layer.w_out))
    found = {}
    for place in sorted(eight):
        step, number = program.steps[place], first + place
        bare = step.other is None and step.layer.activation != "hswish"
        absolute = np.abs(step.weight).reshape(step.layer.c_out, -1).max(axis=1)
        y = _scale(ranges[number]) if bare and number not in floats else None
        winograd = (step.layer.kernel, step.layer.stride, step.layer.groups) == (3, 1, 1)
        most = _WINOGRAD if winograd else _MOST
        found[place] = _Scales(_per_unit(absolute, most), _scale(ranges[step.x]), y)
    return found


def _has_eight_bits(layer: Layer) -> bool:
    alone = layer.groups == 1 or layer.groups == layer.c_in == layer.c_out
    return layer.kind not in ("deconv", "se") and alone


def _per_unit(absolute: Array, most: int = _MOST) -> Array:
    """Return by what numbers are multiplied for the largest to become ``most``; 1 where all are 0."""
    largest = np.where(absolute > 0, absolute, np.float32(most))
    return (np.float32(most) / largest).astype(np.float32)


def _scale(given: Range) -> np.float32:
    return np.float32(_per_unit(np.array([max(map(abs, given))], dtype=np.float32))[0])


class _Wires:
    """The names under which a program's values are found; ncnn wants one name per reader.

    A value that several read is split, and what reads a part of a value gets it cropped: each part once,
    however many read it.
    """

    def __init__(self, program: Program) -> None:
        self.lines: list[str] = []
        self._results = {number: f"out{i}" for i, number in enumerate(program.results)}
        self._sizes = [x.shape[2:] for x in program.inputs]
        self._sizes += [(step.layer.h_out, step.layer.w_out) for step in program.steps]
        self._waiting: dict[_Part, list[str]] = {}
        self._readers: Counter[_Part] = Counter((number, self._sizes[number]) for number in program.results)
        for step in program.steps:
            layer = step.layer
            self._readers[step.x, (layer.h_in, layer.w_in)] += 1
            if step.other is not None:
                self._readers[step.other, (layer.h_out, layer.w_out)] += 1
        for number, size in list(self._readers):
            if size != self._sizes[number]:
                self._readers[number, self._sizes[number]] += 1  # the crop

    def name(self, number: int) -> str:
        """Return what a value is called where it is computed."""
        alone = self._readers[number, self._sizes[number]] == 1
        return self._results[number] if alone and number in self._results else f"y{number}"

    def give(self, number: int, name: str) -> None:
        """Make known that a value has been computed."""
        self._spread((number, self._sizes[number]), name)

    def take(self, number: int, size: tuple[int, int]) -> str:
        """Return the name under which the next reader finds a value's upper left part of that size."""
        part = number, size
        if part not in self._waiting:
            whole, name = self.take(number, self._sizes[number]), f"y{number}_{size[0]}x{size[1]}"
            ends = f"-23309=2,0,0 -23310=2,{size[0]},{size[1]} -23311=2,1,2"
            self.lines.append(f"Crop crop_{name} 1 1 {whole} {name} {ends}")
            self._spread(part, name)
        return self._waiting[part].pop(0)

    def _spread(self, part: _Part, name: str) -> None:
        count = self._readers[part]
        names = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        if count > 1:
            number, size = part
            if number in self._results and size == self._sizes[number]:
                names[-1] = self._results[number]
            self.lines.append(f"Split split_{name} 1 {count} {name} {' '.join(names)}")
        self._waiting[part] = names


def network_text(lines: Sequence[str]) -> str:
    """Return the text of a network: magic number, how many layers and values it has, and the layers."""
    values = sum(int(line.split()[3]) for line in lines)
    return "\n".join([str(_MAGIC), f"{len(lines)} {values}", *lines, ""])


def _convolution(step: Step, name: str, x: str, y: str, scales: _Scales | None, *, fused: bool) -> str:
    """Return the line of a convolution, with its activation if that is ``fused`` with it."""
    layer = step.layer
    operator = "Deconvolution" if layer.kind == "deconv" else "Convolution"
    given = {0: layer.c_out, 1: layer.kernel, 2: 1, 3: layer.stride, 5: int(step.bias is not None)}
    if layer.kind == "deconv":
        padding, extra = deconv_padding(layer)
        given |= {4: padding, 18: extra, 19: extra}
    else:
        before, after = conv_padding(layer)
        given |= {4: before, 14: before, 15: after, 16: after}
    given[6] = step.weight.size
    if layer.groups > 1:
        operator += "DepthWise"
        given[7] = layer.groups
    if scales is not None:
        # One scale per channel is called 1 by depthwise convolutions, and 2 by all others.
        given[8] = (1 if layer.groups > 1 else 2) + (0 if scales.y is None else _REQUANTISED)
    words = [f"{key}={value}" for key, value in sorted(given.items())]
    if fused and layer.activation == "relu":
        words.append("9=1")
    elif fused and layer.activation == "relu6":
        words += ["9=3", "-23310=2,0.0,6.0"]
    return f"{operator} {name} 1 1 {x} {y} {' '.join(words)}"


def _activation(layer: Layer, place: int, x: str, y: str) -> str:
    """Return the line of an activation that is a layer of its own."""
    what = {
        "relu": ("ReLU", ""),
        "relu6": ("Clip", " 0=0.0 1=6.0"),
        "hswish": ("HardSwish", f" {_HARD}"),
    }
    operator, words = what[layer.activation]
    return f"{operator} act{place} 1 1 {x} {y}{words}"


def _gate(layer: Layer, place: int, x: str, y: str) -> list[str]:
    """Return the lines of a squeeze-and-excitation, as pnnx converts torch's."""
    name, squeeze, channels = f"se{place}", layer.squeeze, layer.c_out
    size = squeeze * channels
    return [
        f"Split split_{name} 1 2 {x} {name}_x {name}_seen",
        f"Reduction mean_{name} 1 1 {name}_seen {name}_mean 0=3 1=0 -23303=2,2,1 4=1 5=1",
        f"Convolution reduce_{name} 1 1 {name}_mean {name}_few 0={squeeze} 1=1 3=1 4=0 5=1 6={size} 9=1",
        f"Convolution expand_{name} 1 1 {name}_few {name}_sum 0={channels} 1=1 3=1 4=0 5=1 6={size}",
        f"HardSigmoid act_{name} 1 1 {name}_sum {name}_gate {_HARD}",
        f"BinaryOp mul_{name} 2 1 {name}_x {name}_gate {y} 0=2",
    ]


def _numbers(step: Step, scales: _Scales | None, *, halves: bool) -> list[bytes]:
    """Return weights and bias as ncnn stores them: output channels before input channels, group by group."""
    layer, weight = step.layer, step.weight
    if layer.kind == "se":
        reduce, shift, expand, rise = step.gate
        return [*_stored(layer, reduce, halves), _plain(shift), *_stored(layer, expand, halves), _plain(rise)]
    if layer.kind == "deconv":
        groups = weight.reshape(layer.groups, layer.c_in // layer.groups, -1, layer.kernel**2)
        weight = groups.swapaxes(1, 2)
    bias = [] if step.bias is None else [_plain(step.bias)]
    if scales is None:
        return [*_stored(layer, weight, halves), *bias]
    units = weight.reshape(len(scales.weight), -1) * scales.weight[:, None]
    found = [_tagged(_INT8, np.clip(np.rint(units), -_MOST, _MOST).astype(np.int8)), *bias]
    ends = [scales.x] if scales.y is None else [scales.x, scales.y]
    return [*found, _plain(scales.weight), _plain(np.array(ends, dtype=np.float32))]


def _stored(layer: Layer, weight: Array, halves: bool) -> list[bytes]:
    """Return weights as floats, in 16 bits if ``halves``."""
    if not halves:
        return [_tagged(_FLOAT32, np.asarray(weight, dtype="<f4"))]
    with np.errstate(over="ignore"):
        stored = weight.astype("<f2")
    if not np.isfinite(stored).all():
        raise InputError(
            f"the layer '{layer.name or layer.key}' has weights up to {np.abs(weight).max():g}, which 16 bits"
            " do not hold; write fp32"
        )
    return [_tagged(_FLOAT16, stored)]


def _plain(array: Array) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()


def _tagged(tag: int, array: npt.NDArray[np.generic]) -> bytes:
    """Return numbers behind what tells their form, filled up to whole words of four bytes."""
    content = np.ascontiguousarray(array).tobytes()
    return tag.to_bytes(4, "little") + content + bytes(-len(content) % 4)
