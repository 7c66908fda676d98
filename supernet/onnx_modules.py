"""Plain networks through ONNX Runtime on a CPU: their parts written as ONNX graphs and run in their place.

What a part computes is read off by tracing it (:mod:`torch.fx`), so that only its operators must be known
here, not how a family puts them together. A part with an operator that is not known stays what it is.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from supernet.base import Subnet, crop_like

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["OnnxModule", "through_onnx"]

_OPSET, _IR_VERSION = 18, 10

_BINARY: Final[Mapping[str, tuple[Callable[..., Any], ...]]] = {
    "Add": (operator.add, torch.add),
    "Mul": (operator.mul, torch.mul),
}
_UNARY: Final[Mapping[str, tuple[Callable[..., Any], Mapping[str, float]]]] = {
    "Relu": (F.relu, {}),
    "HardSwish": (F.hardswish, {}),
    "HardSigmoid": (F.hardsigmoid, {"alpha": 1 / 6, "beta": 0.5}),
}
"""The functions that ONNX nodes compute, of two tensors and of one, with the nodes' attributes."""


class _UnknownOperatorError(Exception):
    """A part has an operator that no ONNX node is known for."""


class _Recorder(fx.Tracer):
    """Notes what goes into each part and what comes out while it traces."""

    def __init__(self, parts: Mapping[nn.Module, str]) -> None:
        super().__init__(autowrap_functions=(crop_like,))
        self._parts = parts
        self.calls: dict[str, list[tuple[list[fx.Node], Any]]] = {name: [] for name in parts.values()}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace the call of a module."""
        found = super().call_module(m, forward, args, kwargs)
        name = self._parts.get(m)
        if name is not None:
            self.calls[name].append(([proxy.node for proxy in _leaves((args, kwargs))], found))
        return found


def _leaves(values: Any) -> Iterator[Any]:
    """Yield the tensors (or what stands for them) in nested sequences, in order."""
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        for value in values:
            yield from _leaves(value)
    elif isinstance(values, Tensor | fx.Proxy):
        yield values


class _Graph:
    """An ONNX graph that grows node by node; tensors carry the names of the traced nodes.

    Parameters
    ----------
    network
        Where the weights are.
    inputs
        The traced nodes that are the graph's inputs.
    """

    def __init__(self, network: nn.Module, inputs: list[fx.Node]) -> None:
        self._network = network
        self._names = {node: _input(place) for place, node in enumerate(inputs)}
        self._inputs = list(self._names.values())
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def model(self, outputs: list[fx.Node]) -> bytes:
        """Return the model that computes ``outputs``."""
        from onnx import TensorProto, helper

        names = [self._written(node) for node in outputs]
        ends = [self._add("Identity", [name]) if name in self._inputs else name for name in names]
        inputs, results = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in names]
            for names in (self._inputs, ends)
        )
        graph = helper.make_graph(self._nodes, "part", inputs, results, self._constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        return bytes(model.SerializeToString())

    def _add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _written(self, node: fx.Node) -> str:
        """Return the name of a traced node's tensor, after writing all that it depends on."""
        waiting = [node]
        while waiting:  # no recursion: networks are deep
            last = waiting[-1]
            before = [each for each in last.all_input_nodes if each not in self._names]
            if last in self._names or not before:
                waiting.pop()
                self._names[last] = self._names.get(last) or self._write(last)
            else:
                waiting += before
        return self._names[node]

    def _write(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self._network.get_submodule(str(node.target))
            (x,) = (self._names[each] for each in node.all_input_nodes)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                return self._convolution(module, x)
            if isinstance(module, nn.Identity):
                return x
        elif node.op == "call_function":
            operands = [self._names[each] for each in node.all_input_nodes]
            if node.target is crop_like:
                return self._crop(*operands)
            for kind, targets in _BINARY.items():
                if node.target in targets and len(operands) == len(node.args) == 2:
                    return self._add(kind, operands)
            for kind, (target, attributes) in _UNARY.items():
                if node.target is target:
                    return self._add(kind, operands, **attributes)
            if node.target is F.relu6:
                limits = [self._constant(np.array(limit, np.float32)) for limit in (0, 6)]
                return self._add("Clip", [*operands, *limits])
            if node.target is F.adaptive_avg_pool2d and node.args[1:] == (1,) and not node.kwargs:
                return self._add("GlobalAveragePool", operands)
        raise _UnknownOperatorError(node.format_node())

    def _convolution(self, module: nn.Conv2d | nn.ConvTranspose2d, x: str) -> str:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise _UnknownOperatorError(str(module))
        attributes: dict[str, Any] = {
            "kernel_shape": module.kernel_size,
            "strides": module.stride,
            "pads": module.padding * 2,
            "dilations": module.dilation,
            "group": module.groups,
        }
        kind = "Conv"
        if isinstance(module, nn.ConvTranspose2d):
            kind, attributes["output_padding"] = "ConvTranspose", module.output_padding
        weights = [each for each in (module.weight, module.bias) if each is not None]
        return self._add(kind, [x, *(self._constant(w.detach().numpy()) for w in weights)], **attributes)

    def _crop(self, x: str, like: str) -> str:
        first, axes = (self._constant(np.array(values, np.int64)) for values in ([0, 0], [2, 3]))
        return self._add("Slice", [x, first, self._add("Shape", [like], start=2), axes])


class OnnxModule(nn.Module):
    """A part of a network that ONNX Runtime computes; may be called by several threads at once.

    Each call uses one core: what runs side by side are the callers. The engine makes the model ready when
    it is first called.

    Parameters
    ----------
    model
        A serialised ONNX model.
    several
        Whether the part returns a tuple of tensors, not one.
    """

    def __init__(self, model: bytes, several: bool) -> None:
        super().__init__()
        self._model, self._several = model, several
        self._lock = threading.Lock()

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])

    def forward(self, *inputs: Any) -> Any:
        """Return what the part returns: a tensor, or a tuple of tensors; in torch's default layout."""
        with self._lock:
            session = self._session
        arrays = [tensor.contiguous().numpy() for tensor in _leaves(inputs)]
        found = session.run(None, {_input(place): array for place, array in enumerate(arrays)})
        tensors = tuple(torch.from_numpy(array) for array in found)
        return tensors if self._several else tensors[0]


def through_onnx(network: Subnet, *, transposed: bool = False) -> Subnet:
    """Let ONNX Runtime compute the parts of a network: its direct children, as far as all is known in them.

    Their outputs equal torch's but for rounding.

    Parameters
    ----------
    network
        Plain, on a CPU, its normalisations folded; it is changed, and returned.
    transposed
        Whether parts with transposed convolutions are taken, too. Torch computes those faster (on x86 the
        head of LitePose-M in 0.7 of the time).
    """
    parts = {child: name for name, child in network.named_children()}
    recorder = _Recorder(parts)
    try:
        recorder.trace(network)
    except fx.proxy.TraceError:  # what it does depends on its input
        return network
    for part, name in parts.items():
        if not transposed and any(isinstance(module, nn.ConvTranspose2d) for module in part.modules()):
            continue
        if len(recorder.calls[name]) == 1:  # not what is never called, or in several ways
            ((inputs, output),) = recorder.calls[name]
            with contextlib.suppress(_UnknownOperatorError):
                model = _Graph(network, inputs).model([proxy.node for proxy in _leaves(output)])
                setattr(network, name, OnnxModule(model, not isinstance(output, fx.Proxy)))
    return network


def _input(place: int) -> str:
    """Return the name of a model's input."""
    return f"input{place}"
