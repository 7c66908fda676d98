"""Exported networks in fewer bits: 16-bit floats, or 8-bit integers with chosen layers left in float.

int8 is static post-training quantisation, the scheme that ONNX Runtime advises for processors: activations in
unsigned, weights in signed 8 bits with one symmetric scale for each output channel, the ranges of activations
observed on calibration images, all of it written as QuantizeLinear and DequantizeLinear nodes around the
operators (Jacob et al., arXiv 1712.05877; Q/DQ is how ONNX Runtime, OpenVINO and TensorRT take it).

A *layer* here is one of the network's layers by its name (:class:`search_spaces.layers.Layer`, and the two
convolutions of a squeeze-and-excitation), with all that follows it up to the next convolution: activation,
addition. It computes in 8 bits or in float as a whole.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import InputError, RunError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

__all__ = [
    "METHODS",
    "WEIGHT_BITS",
    "LayerNodes",
    "OnnxMaps",
    "Quantiser",
    "calibrate",
    "executed_in",
    "free_shapes",
    "half_precision",
    "layer_macs",
    "layer_nodes",
    "open_shapes",
    "saturates",
]

Array = NDArray[np.float32]
_Proto = TypeVar("_Proto")
Range = tuple[float, float]
"""Least and largest value that 8-bit numbers of a tensor stand for."""
METHODS: Final = ("minmax", "percentile", "entropy")
"""Ways to a range: the least and largest value seen; the 99.999% of values nearest the middle of the
histogram; or the range whose 8-bit histogram diverges least from that seen."""
PERCENTILE: Final = 99.999
WEIGHT_BITS: Final = (7, 8)
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
_QUANTISED: Final = (*_CONVOLUTIONS, "Add", "Relu", "Clip", "DepthToSpace", "Slice")
"""Operators that are put between Q/DQ nodes. Others of a layer (the gates of squeeze-and-excitation,
hard-swish) compute in float between them."""
_SIZED: Final = frozenset(("Reshape", "Expand", "Resize", "Tile", "ConstantOfShape"))
"""Operators into which an exporter writes sizes of the images."""
_WRITTEN: Final = "_QuantizeLinear_Input"
"""What ONNX Runtime's quantiser adds to the name of a model's output before it is rounded."""


@dataclass(frozen=True, slots=True)
class LayerNodes:
    """The nodes of a layer in an ONNX model.

    Attributes
    ----------
    kind
        ``dwconv``, ``pwconv`` (1x1), ``conv`` or ``deconv``, however the latter is written.
    nodes
        Names of its nodes, the convolution first.
    output
        Whether it writes an output of the model.
    """

    kind: str
    nodes: tuple[str, ...]
    output: bool


def layer_nodes(model: onnx.ModelProto) -> dict[str, LayerNodes]:
    """Return a model's layers by name, in the order in which they run.

    A layer's name is that of its weights: ``stem.conv`` of ``stem.conv.weight``. A node without weights
    belongs to the layer that runs last of those that it takes its inputs from.

    Raises
    ------
    InputError
        If the weights of a convolution are not named like this, or a node's name is not unique: the model was
        not written by :func:`supernet.export.export_onnx`.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    outputs = {info.name for info in model.graph.output}
    writers: set[str] = set()
    kinds: dict[str, str] = {}
    nodes: dict[str, list[str]] = {}
    order: dict[str, int] = {}
    origin: dict[str, str] = {}
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            raise InputError(f"node '{node.name}' of the ONNX model has no name of its own; export it anew")
        seen.add(node.name)
        if node.op_type in _CONVOLUTIONS:
            weight = node.input[1]
            layer = weight.removesuffix(".weight")
            if weight not in constants or layer == weight or layer in nodes:
                raise InputError(
                    f"the ONNX model's weights '{weight}' do not name a layer; quantise a model that was"
                    " exported by this toolkit"
                )
            order[layer], nodes[layer] = len(order), [node.name]
            kinds[layer] = _kind(node, constants[weight].dims)
        else:
            before = [origin[name] for name in node.input if name in origin]
            if not before:  # constants, and what works on the image itself
                continue
            layer = max(before, key=order.__getitem__)
            nodes[layer].append(node.name)
            if node.op_type == "DepthToSpace":
                kinds[layer] = "deconv"
        for name in node.output:
            origin[name] = layer
            if name in outputs:
                writers.add(layer)
    return {layer: LayerNodes(kinds[layer], tuple(names), layer in writers) for layer, names in nodes.items()}


def _kind(node: onnx.NodeProto, shape: Sequence[int]) -> str:
    if node.op_type == "ConvTranspose":
        return "deconv"
    groups = next((each.i for each in node.attribute if each.name == "group"), 1)
    return "dwconv" if groups > 1 else "pwconv" if tuple(shape[2:]) == (1, 1) else "conv"


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of each layer for one image of the model's size.

    Raises
    ------
    InputError
        If the model's size of images is not fixed.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    weights = {constant.name: constant.dims for constant in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in _CONVOLUTIONS:
            # A convolution uses each weight once per output pixel, a transposed one once per input pixel.
            tensor = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
            pixels = math.prod(shapes.get(tensor, [0, 0, 0, 0])[2:])
            if not pixels:
                raise InputError(f"the ONNX model does not say how large '{tensor}' is; fix its input's size")
            found[node.input[1].removesuffix(".weight")] = pixels * math.prod(weights[node.input[1]])
    return found


def free_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that takes images of any number and size that the network takes.

    Raises
    ------
    InputError
        If the size is part of the graph: images of another size would be computed wrongly.
    """
    from onnx import numpy_helper

    copy = _copied(model)
    constants = {constant.name: constant for constant in copy.graph.initializer}
    for node in copy.graph.node:
        ends = constants.get(node.input[2]) if node.op_type == "Slice" and len(node.input) > 2 else None
        if node.op_type in _SIZED or (ends is not None and (numpy_helper.to_array(ends) >= 0).any()):
            raise InputError(
                f"the ONNX model's node '{node.name}' ({node.op_type}) is made for one size of images, so it"
                " cannot take others; give the resolution that it was exported for"
            )
    del copy.graph.value_info[:]
    for place, info in enumerate((*copy.graph.input, *copy.graph.output)):
        names = ("batch", None, f"height{place}", f"width{place}")
        for dim, name in zip(info.type.tensor_type.shape.dim, names, strict=True):
            if name is not None:
                dim.dim_param = name
    return copy


def open_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that takes images of any number and size, or of its own size where that is in the graph.

    The latter are top-down networks whose picture has odd sizes on the way (192x144): all their images have
    one size anyhow.
    """
    try:
        return free_shapes(model)
    except InputError:
        return _copied(model)


class OnnxMaps(nn.Module):
    """An ONNX model in memory, called like the torch network that it came from.

    Parameters
    ----------
    model
        Takes one batch of images.
    threads
        Threads of ONNX Runtime; 0 leaves it to the runtime.
    simulated
        Compute in float what Q/DQ nodes have rounded, instead of with int8 kernels: what kernels give that
        lose nothing else.

    Raises
    ------
    RunError
        If ONNX Runtime cannot run the model.
    InputError
        When called, if the images are not of the size that the model is made for.
    """

    def __init__(self, model: onnx.ModelProto, threads: int = 0, simulated: bool = False) -> None:
        super().__init__()
        level = "ORT_DISABLE_ALL" if simulated else "ORT_ENABLE_ALL"
        self.session = _session(model.SerializeToString(), threads, level=level)
        (entry,) = self.session.get_inputs()
        self.input: str = entry.name
        self._shape: tuple[object, ...] = tuple(entry.shape)  # numbers, and names where any number will do

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the output maps of images (N, 3, H, W)."""
        if any(isinstance(w, int) and w != n for w, n in zip(self._shape, images.shape, strict=True)):
            raise InputError(
                f"the ONNX model is made for images {'x'.join(map(str, self._shape))} (N, C, H, W), not"
                f" {'x'.join(map(str, images.shape))}; give the resolution that it was exported for"
            )
        found = self.session.run(None, {self.input: np.ascontiguousarray(images.numpy())})
        return tuple(torch.from_numpy(maps) for maps in found)


def calibrate(
    model: onnx.ModelProto,
    images: Iterable[Array],
    method: str = "minmax",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Range]:
    """Return the range of every float tensor of a model, by the tensors' names.

    Parameters
    ----------
    model
        In fp32.
    images
        Batches (n, 3, H, W), normalised, of the sizes that the model takes.
    method
        One of :data:`METHODS`.
    progress
        Told how many batches were seen.

    Raises
    ------
    InputError
        If the method is unknown, there is no image, or a value is not finite.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    if method not in METHODS:
        raise InputError(
            f"calibration method: unknown '{method}'{did_you_mean(method, METHODS)}; there are"
            f" {', '.join(METHODS)}"
        )
    extra = {"symmetric": False} | ({"percentile": PERCENTILE} if method == "percentile" else {})
    kind = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[method]
    name = model.graph.input[0].name
    count = 0
    with tempfile.TemporaryDirectory() as folder, _unwarned():
        import onnx

        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=extra,
        )
        for count, batch in enumerate(images, start=1):
            calibrator.collect_data(_Once({name: np.ascontiguousarray(batch)}))
            if progress is not None:
                progress(count)
        if not count:
            raise InputError("calibration needs at least one image")
        data = calibrator.compute_data()
    ranges = {
        tensor: (float(np.min(d.range_value[0])), float(np.max(d.range_value[1])))
        for tensor, d in data.items()
    }
    for tensor, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                f"calibration: tensor '{tensor}' takes values from {low} to {high}; check the weights"
            )
    return ranges


class _Once:
    """One batch, as ONNX Runtime's calibrators read them."""

    def __init__(self, feed: dict[str, Array]) -> None:
        self._feeds = [feed]

    def get_next(self) -> dict[str, Array] | None:
        """Return the batch the first time, then nothing."""
        return self._feeds.pop() if self._feeds else None


class Quantiser:
    """A calibrated network, from which int8 models with any layers in float are made.

    Parameters
    ----------
    model
        In fp32, as exported.
    ranges
        From :func:`calibrate`, of this model.
    weight_bits
        8, or 7: numbers from -64 to 64, which no processor's kernels cut off (see :func:`saturates`).

    Attributes
    ----------
    layers
        Its layers by name, in order.

    Raises
    ------
    InputError
        If the model was not written by this toolkit, or weights are to have another number of bits.
    """

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, Range], weight_bits: int = 7) -> None:
        if weight_bits not in WEIGHT_BITS:
            raise InputError(f"weights of an int8 model have 7 or 8 bits, not {weight_bits}")
        self.fp32, self.weight_bits = model, weight_bits
        self.layers = layer_nodes(model)
        self._ranges = dict(ranges)

    @cached_property
    def _whole(self) -> _Rounding:
        """The model with all its layers in 8 bits, as ONNX Runtime's quantiser writes it."""
        import onnx
        from onnxruntime.quantization import (
            CalibrationMethod,
            QDQQuantizer,
            QuantType,
            TensorData,
            TensorsData,
        )

        data = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in self._ranges.items()
        }
        with _unwarned():
            quantizer = QDQQuantizer(
                onnx.shape_inference.infer_shapes(self.fp32),
                per_channel=True,
                reduce_range=self.weight_bits == 7,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=sorted(n for found in self.layers.values() for n in found.nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=list(_QUANTISED),
                extra_options={},
            )
            quantizer.quantize_model()
        return _Rounding(quantizer.model.model)

    def checked(self, layers: Collection[str]) -> frozenset[str]:
        """Return names of layers as a set.

        Raises
        ------
        InputError
            If one is none of the network's.
        """
        for name in layers:
            if name not in self.layers:
                raise InputError(f"the network has no layer '{name}'{did_you_mean(name, self.layers)}")
        return frozenset(layers)

    def int8(self, kept: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with all layers in 8 bits but those that are kept in float.

        A tensor that an int8 layer writes is in 8 bits for everybody who reads it, as ONNX Runtime's kernels
        write it. One that a float layer (or the image) writes is rounded for its int8 readers alone.

        Raises
        ------
        InputError
            If a layer is unknown.
        """
        kept = self.checked(kept)
        wanted = {n for layer, found in self.layers.items() if layer not in kept for n in found.nodes}
        return self._whole.part(self.fp32, wanted) if wanted else _copied(self.fp32)


class _Rounding:
    """How ONNX Runtime's quantiser rounds the tensors of a whole model; parts of that put into the model.

    Quantising takes seconds, most of it for the weights' scales, which are the same whatever else is rounded.

    Parameters
    ----------
    whole
        The model with Q/DQ nodes around all that is to be rounded.
    """

    def __init__(self, whole: onnx.ModelProto) -> None:
        self._whole = whole
        self._nodes = {node.name: node for node in whole.graph.node}
        self._constants = {constant.name: constant for constant in whole.graph.initializer}
        pairs = ("QuantizeLinear", "DequantizeLinear")
        self._q, self._dq = (
            {node.output[0]: node for node in whole.graph.node if node.op_type == kind} for kind in pairs
        )
        self._q_of = {node.input[0]: node for node in self._q.values()}
        self._dq_of = {node.input[0]: node for node in self._dq.values()}

    def part(self, model: onnx.ModelProto, wanted: Collection[str]) -> onnx.ModelProto:
        """Return ``model`` with what is wanted, by the nodes' names, put between Q/DQ nodes."""
        nodes: list[onnx.NodeProto] = []
        rounded: dict[str, str] = {}  # by what a float node reads in the model: what it reads now
        done: set[str] = set()

        def pair(q: onnx.NodeProto) -> None:
            nodes.extend((q, self._dq_of[q.output[0]]))
            done.add(q.output[0])

        def ready(name: str) -> None:
            """Make a rounded tensor that an int8 node reads."""
            dq = self._dq.get(name)
            if dq is None or dq.input[0] in done:
                return
            q = self._q.get(dq.input[0])
            if q is None:  # weights
                nodes.append(dq)
                done.add(dq.input[0])
                return
            if q.input[0].endswith(_WRITTEN):
                raise RunError(
                    f"output '{name}' of the model is read inside of it; leave its reader in float"
                )
            pair(q)

        for node in model.graph.node:
            if node.name not in wanted:
                own = _copied(node)
                for place, name in enumerate(own.input):
                    own.input[place] = rounded.get(name, name)
                nodes.append(own)
                continue
            own = self._nodes.get(node.name)
            if own is None:  # an activation: the rounding of what goes into it ends where it does
                continue
            for name in own.input:
                ready(name)
            nodes.append(own)
            for name in own.output:
                q = self._q_of.get(name)
                if q is not None:
                    pair(q)
                    rounded[name.removesuffix(_WRITTEN)] = self._dq_of[q.output[0]].output[0]
        return self._model(model, _guarded(nodes))

    def _model(self, model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        copy = _copied(model)
        read = {name for node in nodes for name in node.input} - {
            name for node in nodes for name in node.output
        }
        constants = self._constants | {c.name: c for c in model.graph.initializer}
        del copy.graph.node[:], copy.graph.value_info[:], copy.graph.initializer[:]
        copy.graph.node.extend(nodes)
        copy.graph.initializer.extend(c for name, c in constants.items() if name in read)
        del copy.opset_import[:]
        copy.opset_import.extend(self._whole.opset_import)
        return copy


def _guarded(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes with a LeakyRelu of slope 1 after each float convolution between rounded tensors.

    It changes nothing, and ONNX Runtime computes it with the convolution. Without it ONNX Runtime (1.31)
    takes such a convolution for one that was to be quantised: it rounds its weights by itself, with one scale
    for all channels, and computes it in 8 bits (its optimiser "WeightBiasQuantization"). LitePose-M with its
    depthwise layers in float and all 1x1 convolutions in 8 bits then finds nobody.
    """
    from onnx import helper

    rounded = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_rounded(name: str) -> bool:
        """Return whether a tensor is rounded, at once or after an activation."""
        return any(
            node.op_type == "QuantizeLinear"
            or (node.op_type in ("Relu", "Clip") and is_rounded(node.output[0]))
            for node in readers.get(name, [])
        )

    guarded: list[onnx.NodeProto] = []
    for node in nodes:
        float_weights = node.op_type in _CONVOLUTIONS and node.input[1] not in rounded
        if not (float_weights and node.input[0] in rounded and is_rounded(node.output[0])):
            guarded.append(node)
            continue
        own = _copied(node)
        (end,) = own.output
        own.output[0] = f"{end}.float"
        guard = helper.make_node("LeakyRelu", [own.output[0]], [end], name=f"{node.name}.float", alpha=1.0)
        guarded += [own, guard]
    return guarded


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights and arithmetic in 16-bit floats; its inputs and outputs stay 32-bit.

    Runtimes without such arithmetic (ONNX Runtime on x86) convert around each operator instead: what they
    compute is rounded alike, but nothing becomes faster.

    Raises
    ------
    InputError
        If a weight is beyond what 16-bit floats hold (65,504).
    """
    from onnx import TensorProto, numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    most = float(np.finfo(np.float16).max)
    for constant in model.graph.initializer:
        if constant.data_type == TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(constant)).max(initial=0.0))
            if not largest <= most:
                raise InputError(
                    f"'{constant.name}' holds {largest:g}, but 16-bit floats end at {most:g}; check the"
                    " weights"
                )
    with _unwarned():  # of weights that become 0, which the measured AP tells better
        found: onnx.ModelProto = convert_float_to_float16(_copied(model), keep_io_types=True)
        OnnxModel(found).topological_sort()  # the casts of the inputs are appended at the end
    return found


Execution = Literal["int8", "float"]


def executed_in(model: onnx.ModelProto, layers: Mapping[str, LayerNodes]) -> dict[str, Execution]:
    """Return in what ONNX Runtime's CPU kernels compute each layer of an int8 model.

    Read off the graph that ONNX Runtime makes of it: a layer whose convolution became QLinearConv or
    ConvInteger computes in 8 bits. Any other has its weights converted back and computes in float, whatever
    Q/DQ nodes stand around it.

    Parameters
    ----------
    model
        From :meth:`Quantiser.int8`.
    layers
        Of that quantiser.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        # The last level only changes layouts, and with them names.
        _session(model.SerializeToString(), 1, path, "ORT_ENABLE_EXTENDED")
        optimised = onnx.load(path)
    whole = {
        node.name.partition("_token_")[0]
        for node in optimised.graph.node
        if node.op_type in ("QLinearConv", "ConvInteger")
    }
    return {name: "int8" if layer.nodes[0] in whole else "float" for name, layer in layers.items()}


def saturates() -> bool:
    """Return whether this machine's int8 kernels cut off sums of products of 8-bit weights.

    x86 processors without VNNI add two products of u8 activations and s8 weights in 16 bits, which
    255 x 127 x 2 exceeds. Found out by trying it.
    """
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 64, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 64, 8, 8])
    weights = numpy_helper.from_array(np.ones((64, 64, 1, 1), np.float32), "layer.weight")
    node = helper.make_node("Conv", ["image", "layer.weight"], ["out"], name="conv", kernel_shape=[1, 1])
    graph = helper.make_graph([node], "trial", [image], [out], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    trial = Quantiser(model, {"image": (0.0, 1.0), "out": (0.0, 64.0)}, 8).int8()
    ones = torch.ones(1, 64, 8, 8)
    found, expected = (OnnxMaps(trial, 1, simulated)(ones)[0] for simulated in (False, True))
    return bool((found - expected).abs().max() > 1.0)


def _session(model: bytes, threads: int, optimised: Path | None = None, level: str = "ORT_ENABLE_ALL") -> Any:
    """Return an ONNX Runtime session; with ``optimised`` the graph that it runs is written there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"ONNX Runtime cannot run the quantised model: {line}") from None


def _copied(proto: _Proto) -> _Proto:
    copy = type(proto)()
    copy.CopyFrom(proto)  # type: ignore[attr-defined]
    return copy


@contextmanager
def _unwarned() -> Iterator[None]:
    """Keep the libraries' advice and their own progress off the terminal."""
    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
