"""int8 models: an ONNX model's convolutions and additions in 8 bits, calibrated on given inputs.

The scheme is the one that ONNX Runtime advises for processors, static quantisation with Q/DQ nodes:
activations in unsigned, weights in signed 8 bits, one scale for each output channel, ranges from the least
and the largest value seen. Transposed convolutions compute in 32-bit floats: ONNX Runtime
has no 8-bit kernel for them. So do hard-swish, and the means and products of a squeeze-and-excitation, whose
convolutions are in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latency_tables.runtimes.base import Array, file_digest, random_picture

if TYPE_CHECKING:
    import onnx

_QUANTISED = ["Conv", "Add", "Relu", "Clip"]
_EIGHT_BITS = frozenset(("DequantizeLinear", "QLinearConv", "ConvInteger"))
_TYPED = 1  # onnx.TensorProto.FLOAT

Range = tuple[float, float]
"""Least and largest value of a tensor."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How 8-bit numbers stand for real ones: ``real = step * (number - zero)``."""

    step: float
    zero: int

    def numbers(self, values: Array) -> npt.NDArray[np.uint8]:
        """Return real values as 8-bit numbers, those beyond the range at its ends."""
        found: npt.NDArray[np.uint8] = np.clip(np.rint(values / self.step) + self.zero, 0, 255).astype(
            np.uint8
        )
        return found

    def values(self, numbers: npt.NDArray[Any]) -> Array:
        """Return what 8-bit numbers stand for."""
        return (numbers.astype(np.float32) - np.float32(self.zero)) * np.float32(self.step)

    @classmethod
    def of(cls, model: onnx.ModelProto, step: str, zero: str) -> Scale:
        """Return the scale that two constants of a model hold, by their names."""
        from onnx import numpy_helper

        held = {c.name: c for c in model.graph.initializer if c.name in (step, zero)}
        return cls(
            float(numpy_helper.to_array(held[step]).item()), int(numpy_helper.to_array(held[zero]).item())
        )


@lru_cache(maxsize=1)
def sums_overflow() -> bool:
    """Return whether this processor's sums of 8-bit products overflow in ONNX Runtime, found by trying.

    x86 processors without VNNI add pairs of products of unsigned and signed bytes in 16 bits, which do not
    hold the largest. Networks run there as fast as they would, but what they find is less exact than 8 bits
    allow, and less than on the processors that they are made for.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    channels, largest = 32, 200
    constants = {
        "x_step": np.float32(1),
        "x_zero": np.uint8(0),
        "w": np.full((8, channels, 1, 1), 127, dtype=np.int8),
        "w_step": np.float32(1),
        "w_zero": np.int8(0),
        "y_step": np.float32(channels * 255 * 127 / largest),
        "y_zero": np.uint8(0),
    }
    names = ["x", "x_step", "x_zero", "w", "w_step", "w_zero", "y_step", "y_zero"]
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", names, ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, channels, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, (1, 8, 4, 4))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full((1, channels, 4, 4), 255, dtype=np.uint8)})
    return bool((np.abs(y.astype(np.int64) - largest) > 1).any())


def observed_ranges(model: onnx.ModelProto, inputs: Sequence[Array]) -> dict[str, Range]:
    """Return the range of every tensor of a model when it runs on ``inputs``, by the tensors' names."""
    import onnxruntime
    from onnx import helper

    copy = type(model)()
    copy.CopyFrom(model)
    given = {info.name for info in copy.graph.output}
    every = [name for node in copy.graph.node for name in node.output if name]
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, _TYPED, None) for name in every if name not in given
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {info.name: x for info, x in zip(session.get_inputs(), inputs, strict=True)}
    seen = {**feeds, **dict(zip(every, session.run(every, feeds), strict=True))}
    return {name: (float(values.min()), float(values.max())) for name, values in seen.items()}


def quantised(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """Return the model with Q/DQ nodes around what runs in 8 bits; ``ranges`` holds every activation's."""
    from onnxruntime.quantization import (
        CalibrationMethod,
        QDQQuantizer,
        QuantType,
        TensorData,
        TensorsData,
    )

    copy = type(model)()
    copy.CopyFrom(model)
    data = {
        name: TensorData(lowest=np.float32(least), highest=np.float32(largest))
        for name, (least, largest) in ranges.items()
    }
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=_QUANTISED,
        extra_options={},
    )
    quantizer.quantize_model()
    found: onnx.ModelProto = quantizer.model.model
    return found


def int8_network(path: Path, size: tuple[int, int]) -> bytes:
    """Return the network of an ONNX file in 8 bits, calibrated on a random picture of that size.

    One that is quantised already is returned as it is. The last few are kept: quantising takes seconds.
    """
    return _int8_network(path, file_digest(path), size)


@lru_cache(maxsize=4)
def _int8_network(path: Path, _digest: str, size: tuple[int, int]) -> bytes:
    """Quantise a network, whose content the digest tells."""
    import onnx

    model = onnx.load(path)
    if all(node.op_type not in _EIGHT_BITS for node in model.graph.node):
        model = quantised(model, observed_ranges(model, [random_picture(size)]))
    content: bytes = model.SerializeToString()
    return content
