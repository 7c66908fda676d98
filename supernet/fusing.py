"""ONNX models rewritten for speed: other operators, the same numbers.

What an exporter writes is what the network says, not what a runtime computes fastest. Three rewrites, each
exact but for the order of additions:

``phases``
    A stride-2 transposed convolution gives four kinds of output pixels: even and odd rows, even and odd
    columns. Each kind is a plain convolution of the input with the kernel's taps that fall on it, so four
    plain convolutions and one DepthToSpace do the same multiply-accumulates (Shi et al., arXiv 1609.07009).
    Where two transposed convolutions are added, as in LitePose's head, so are their phases, before they are
    put in place; the ReLU behind moves in front, too. Addition and ReLU then belong to the convolutions, and
    runtimes compute them at one go. Other than :mod:`supernet.subpixel`, nothing is computed to be cut off.
``interleave``
    DepthToSpace of four phases as two concatenations. ONNX Runtime's own is a general transposition in one
    thread, which moves single numbers.
``padding``
    The zeros around a wide depthwise convolution, written by a 1x1 depthwise convolution with weights 1. ONNX
    Runtime's kernels for x86 compute outputs whose window reaches beyond the left or right border one by one,
    all others three or more at once; a 7x7 kernel over 16 columns has 6 such outputs of 16.

Which of them pay depends on the runtime and the processor: :data:`FOR_RUNTIME`, :data:`FOR_X86`;
``experiments/benchmarks/rewrites.py`` times each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, did_you_mean
from supernet.subpixel import doubles

if TYPE_CHECKING:
    import onnx

__all__ = [
    "FOR_RUNTIME",
    "FOR_X86",
    "REWRITES",
    "check_rewrites",
    "interleave",
    "padding",
    "phases",
    "rewritten",
]

FOR_RUNTIME: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("phases", "interleave"),
    "openvino": (),
}
"""The rewrites to choose by runtime, for any processor; timed on x86 only, where OpenVINO gained nothing."""

FOR_X86: Final[Mapping[str, tuple[str, ...]]] = {
    **FOR_RUNTIME,
    "onnxruntime": ("phases", "interleave", "padding"),
}
"""Those to choose where the file is for x86: ``padding`` answers to ONNX Runtime's kernels for x86."""

WIDEST: Final = 32
"""Maps of more columns are not padded beforehand: too few of their outputs reach beyond the border."""
_KERNEL: Final = 5
"""Nor for smaller kernels."""

_TAPS: Final = {
    4: (((3, 1), 1, 0), ((2, 0), 0, 1)),
    3: (((1,), 0, 0), ((2, 0), 0, 1)),
    2: (((0,), 0, 0), ((1,), 0, 0)),
}
"""By kernel: for even and odd outputs the taps that fall on them, in the order of the inputs, and how many
zeros are before and after the inputs. Output o is the sum over i of x[i] w[o + p - 2 i], p the padding."""


class _Graph:
    """A model's copy that is being rewritten, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = type(model)()
        self.model.CopyFrom(model)
        self.constants = {each.name: each for each in self.model.graph.initializer}
        self.outputs = {info.name for info in self.model.graph.output}
        self.writer = {name: node for node in self.model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """Return the node that reads a tensor, if there is one and nobody else sees the tensor."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant, unless it is there; return its name."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def array(self, name: str) -> NDArray[np.float32]:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self.constants[name]), np.float32)

    def shapes(self) -> dict[str, list[int]]:
        """Return the known shapes of tensors; 0 where a side is free."""
        import onnx

        graph = onnx.shape_inference.infer_shapes(self.model).graph
        return {
            info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            for info in (*graph.value_info, *graph.input, *graph.output)
        }

    def replaced(self, instead: Mapping[str, list[onnx.NodeProto]]) -> onnx.ModelProto:
        """Return the model; nodes whose first output is in ``instead`` give way to those there."""
        graph = self.model.graph
        nodes = []
        for node in graph.node:
            for each in instead.get(node.output[0], [node]):
                own = type(each)()
                own.CopyFrom(each)
                nodes.append(own)
        read = {name for node in nodes for name in node.input}
        needed = [constant for name, constant in self.constants.items() if name in read]
        kept = []
        for constant in needed:
            own_constant = type(constant)()
            own_constant.CopyFrom(constant)
            kept.append(own_constant)
        del graph.node[:], graph.value_info[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        return self.model


def phases(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy without transposed convolutions of stride 2, and the layers that they were.

    The weights of a layer ``head.deconv0.raw`` are found under ``head.deconv0.raw.even.odd`` and so on: even
    rows, odd columns. Transposed convolutions of another form stay as they are.
    """
    graph = _Graph(model)
    instead: dict[str, list[onnx.NodeProto]] = {}
    done: list[str] = []
    for node in graph.model.graph.node:
        terms = _terms(graph, node)
        if not terms:
            continue
        done += [_layer(term) for term in terms]
        (end,) = node.output
        # A ReLU behind, with or without a crop in between, moves in front of DepthToSpace.
        crop = graph.only_reader(end)
        relu = crop if crop is None or crop.op_type != "Slice" else graph.only_reader(crop.output[0])
        if relu is not None and relu.op_type == "Relu":
            instead[relu.output[0]] = []
            if crop is relu:
                end = relu.output[0]
            else:
                assert crop is not None  # it led to the ReLU
                own = type(crop)()
                own.CopyFrom(crop)
                own.output[0] = relu.output[0]
                instead[crop.output[0]] = [own]
        else:
            relu = None
        for term in terms:
            instead[term.output[0]] = []
        instead[node.output[0]] = _phased(graph, terms, end, rectified=relu is not None)
    return graph.replaced(instead), done


def _terms(graph: _Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the transposed convolutions that a node is, or adds; none where it is not to be rewritten."""

    def fits(each: onnx.NodeProto) -> bool:
        if each.op_type != "ConvTranspose" or not {*each.input[1:]} <= graph.constants.keys():
            return False
        return doubles(each, graph.array(each.input[1]))

    if node.op_type == "Add":
        writers = [graph.writer.get(name) for name in node.input]
        terms = [each for each in writers if each is not None]
        alone = all(graph.only_reader(each.output[0]) is node for each in terms)
        sides = {graph.constants[each.input[1]].dims[1] for each in terms if fits(each)}
        return terms if alone and all(map(fits, terms)) and len(terms) == 2 and len(sides) == 1 else []
    if not fits(node):
        return []
    reader = graph.only_reader(node.output[0])
    added = reader is not None and reader.op_type == "Add" and bool(_terms(graph, reader))
    return [] if added else [node]


def _layer(node: onnx.NodeProto) -> str:
    return str(node.input[1].removesuffix(".weight"))


def _phased(graph: _Graph, terms: list[onnx.NodeProto], end: str, rectified: bool) -> list[onnx.NodeProto]:
    """Return the nodes that write the sum of transposed convolutions, behind a ReLU or not, to ``end``."""
    from onnx import helper

    nodes: list[onnx.NodeProto] = []
    ends: list[str] = []
    shifts = [graph.array(term.input[2]) for term in terms if len(term.input) > 2]
    kinds = ("even", "odd")
    for row, y in enumerate(kinds):
        for column, x in enumerate(kinds):
            found = []
            for term in terms:
                weights = graph.array(term.input[1])
                (rows, top, bottom), (columns, left, right) = (
                    _TAPS[weights.shape[2]][at] for at in (row, column)
                )
                own = weights[:, :, list(rows)][:, :, :, list(columns)].transpose(1, 0, 2, 3)
                layer = f"{_layer(term)}.{y}.{x}"
                inputs = [term.input[0], graph.constant(f"{layer}.weight", own)]
                if term is terms[-1] and shifts:
                    inputs.append(graph.constant(f"{end}.bias", np.stack(shifts).sum(axis=0)))
                found.append(f"{term.output[0]}.{y}.{x}.conv")
                nodes.append(
                    helper.make_node(
                        "Conv",
                        inputs,
                        found[-1:],
                        name=f"{term.name}.{y}.{x}",
                        kernel_shape=list(own.shape[2:]),
                        strides=[1, 1],
                        pads=[top, left, bottom, right],
                        dilations=[1, 1],
                        group=1,
                    )
                )
            place = f"{end}.{y}.{x}"
            if len(found) > 1:
                nodes.append(helper.make_node("Add", found, [f"{place}.sum"], name=f"{place}.add"))
                found = [f"{place}.sum"]
            if rectified:
                nodes.append(helper.make_node("Relu", found, [place], name=f"{place}.relu"))
                found = [place]
            ends += found
    side = f"{end}.phases"
    nodes.append(helper.make_node("Concat", ends, [side], name=f"{side}.concat", axis=1))
    spread = f"{end}.spread"
    nodes.append(helper.make_node("DepthToSpace", [side], [end], name=spread, blocksize=2, mode="DCR"))
    return nodes


def interleave(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy in which the phases of :func:`phases` are put in place by concatenations, and the nodes.

    The model must be for one size of images; where it is not, nothing is changed. Their number may be free.
    """
    graph = _Graph(model)
    shapes = graph.shapes()
    instead: dict[str, list[onnx.NodeProto]] = {}
    done: list[str] = []
    for node in graph.model.graph.node:
        if node.op_type != "DepthToSpace":
            continue
        joined = graph.writer.get(node.input[0])
        if joined is None or not _joins_phases(graph, joined, node):
            continue
        shape = shapes.get(joined.input[0], [])
        if len(shape) != 4 or not all(shape[1:]):
            continue
        _, _, height, width = shape
        done.append(node.name)
        instead[joined.output[0]] = []
        instead[node.output[0]] = _interleaved(graph, list(joined.input), node.output[0], (height, width))
    return graph.replaced(instead), done


def _joins_phases(graph: _Graph, joined: onnx.NodeProto, spread: onnx.NodeProto) -> bool:
    """Return whether a node joins four phases for a DepthToSpace, and for nobody else."""
    from onnx import helper

    settings = {each.name: helper.get_attribute_value(each) for each in spread.attribute}
    return (
        joined.op_type == "Concat"
        and len(joined.input) == 4
        and helper.get_attribute_value(joined.attribute[0]) == 1
        and graph.only_reader(joined.output[0]) is spread
        and settings.get("blocksize") == 2
        and settings.get("mode", b"DCR") == b"DCR"
    )


def _interleaved(graph: _Graph, parts: list[str], end: str, size: tuple[int, int]) -> list[onnx.NodeProto]:
    """Return the nodes that write four phases of ``size`` to their places in ``end``."""
    from onnx import helper

    nodes = []

    def node(kind: str, inputs: list[str], output: str, **settings: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.{kind.lower()}", **settings))
        return output

    behind = graph.constant("interleave.axis", np.array([4], np.int64))
    doubled = graph.constant("interleave.columns", np.array([0, 0, 0, -1], np.int64))
    rows = []
    for place, pair in zip(("even", "odd"), (parts[:2], parts[2:]), strict=True):
        each = [node("Unsqueeze", [name, behind], f"{name}.single") for name in pair]
        both = node("Concat", each, f"{end}.{place}.pairs", axis=4)
        rows.append(node("Reshape", [both, doubled], f"{end}.{place}.rows"))
    # Two rows side by side are in memory where they belong: one below the other.
    wide = node("Concat", rows, f"{end}.wide", axis=3)
    shape = graph.constant(f"{end}.shape", np.array([0, 0, 2 * size[0], 2 * size[1]], np.int64))
    node("Reshape", [wide, shape], end)
    return nodes


def padding(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy in which large depthwise kernels over narrow maps find their zeros written; the layers.

    Of stride 1, at least 5 columns wide, on maps of at most :data:`WIDEST` columns; zeros above and below
    stay with the convolution. The weights 1 of a layer ``stage2.block0.depthwise`` are found under
    ``stage2.block0.depthwise.zeros.weight``.
    """
    from onnx import helper

    graph = _Graph(model)
    shapes = graph.shapes()
    instead: dict[str, list[onnx.NodeProto]] = {}
    done: list[str] = []
    for node in graph.model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in graph.constants:
            continue
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        channels, per_group, _, kernel = graph.constants[node.input[1]].dims
        top, left, bottom, right = settings.get("pads", [0] * 4)
        shape = shapes.get(node.input[0], [])
        if (
            settings.get("group", 1) != channels
            or per_group != 1
            or kernel < _KERNEL
            or list(settings.get("strides", [1, 1])) != [1, 1]
            or left + right < kernel // 2
            or len(shape) != 4
            or not 0 < shape[3] <= WIDEST
        ):
            continue
        layer = _layer(node)
        done.append(layer)
        padded = f"{node.output[0]}.padded"
        ones = graph.constant(f"{layer}.zeros.weight", np.ones((channels, 1, 1, 1), np.float32))
        before = helper.make_node(
            "Conv",
            [node.input[0], ones],
            [padded],
            name=f"{node.name}.zeros",
            kernel_shape=[1, 1],
            strides=[1, 1],
            pads=[0, left, 0, right],
            dilations=[1, 1],
            group=channels,
        )
        own = type(node)()
        own.CopyFrom(node)
        own.input[0] = padded
        for each in own.attribute:
            if each.name == "pads":
                each.ints[:] = [top, 0, bottom, 0]
        instead[node.output[0]] = [before, own]
    return graph.replaced(instead), done


REWRITES: Final[Mapping[str, Callable[[onnx.ModelProto], tuple[onnx.ModelProto, list[str]]]]] = {
    "phases": phases,
    "interleave": interleave,
    "padding": padding,
}
"""Every rewrite by its name, in the order in which they are made."""


def check_rewrites(wanted: Collection[str]) -> None:
    """Raise :class:`InputError` if one is no name of a rewrite."""
    for name in wanted:
        if name not in REWRITES:
            raise InputError(
                f"unknown rewrite '{name}'{did_you_mean(name, REWRITES)}; there are {', '.join(REWRITES)}"
            )


def rewritten(model: onnx.ModelProto, wanted: Collection[str]) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return a copy with the wanted rewrites, and how often each was made.

    Parameters
    ----------
    model
        As :func:`supernet.export.export_onnx` writes it, in 32-bit floats.
    wanted
        Names of :data:`REWRITES`, such as ``FOR_RUNTIME["onnxruntime"]``.

    Raises
    ------
    InputError
        If a name is unknown.
    """
    check_rewrites(wanted)
    found = model
    made: dict[str, int] = {}
    for name, rewrite in REWRITES.items():
        if name in wanted:
            found, places = rewrite(found)
            made[name] = len(places)
    return found, made
