"""Stride-2 transposed convolutions of an ONNX model as plain convolutions that compute the same.

Runtimes have few kernels for transposed convolutions: ONNX Runtime has none in 8 bits for CPUs. Each of
the four output pixels that stem from one input pixel is a 2x2 convolution of the input (Shi et al.,
arXiv 1609.07009), so one convolution to four times the channels followed by DepthToSpace gives the same
numbers with as many multiply-accumulates (but for one more row and column).

With a 4x4 kernel w, stride 2 and padding 1, output o is the sum over i of x[i] w[o + 1 - 2i] (per axis).
For o = 2t - 1 that is x[t-1] w[2] + x[t] w[0], for o = 2t it is x[t-1] w[3] + x[t] w[1]. A convolution
with 2 taps over x padded by 1 on both sides gives both for t = 0..H; DepthToSpace puts them at 2t and 2t
+ 1, that is, one place late, and the first and the last place are cut off. A 3x3 kernel with padding 1
and output padding 1 is a 4x4 one whose last tap is 0; a 2x2 kernel without padding is a 1x1 convolution
and needs no cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

__all__ = ["doubles", "subpixel_deconvs", "subpixel_weights"]

Array = NDArray[np.float32]
_CUT = ("subpixel.first", "subpixel.last", "subpixel.axes")


def subpixel_weights(weights: Array) -> Array:
    """Return the weights of the convolution that stands for a stride-2 transposed one.

    Parameters
    ----------
    weights
        (C_in, C_out, k, k) as ConvTranspose takes them, k = 2 (padding 0), 3 (padding 1, output padding 1)
        or 4 (padding 1).

    Returns
    -------
    ndarray
        (4 C_out, C_in, 2, 2), or (4 C_out, C_in, 1, 1) for k = 2. Channels come as DepthToSpace (mode CRD)
        takes them: by output channel, then row, then column within the four pixels.
    """
    kernel = weights.shape[2]
    if kernel == 2:
        phases = weights.transpose(1, 2, 3, 0)[..., None, None]
    else:
        full = np.pad(weights, ((0, 0), (0, 0), (0, 4 - kernel), (0, 4 - kernel)))
        # Row a of the four pixels takes taps (2, 0) for a = 0, (3, 1) for a = 1, of x[t-1] and x[t].
        taps = np.array([[2, 0], [3, 1]])
        picked = full[:, :, taps[:, None, :, None], taps[None, :, None, :]]  # (C_in, C_out, a, b, 2, 2)
        phases = picked.transpose(1, 2, 3, 0, 4, 5)
    c_out, c_in = weights.shape[1], weights.shape[0]
    return np.ascontiguousarray(phases.reshape(4 * c_out, c_in, *phases.shape[-2:]), dtype=np.float32)


def subpixel_deconvs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy of a model with its transposed convolutions written as convolutions, and their layers.

    Layers keep their names. A transposed convolution of another form (stride, groups, padding) stays as it
    is.
    """
    from onnx import helper, numpy_helper

    copy = type(model)()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {constant.name: constant for constant in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: list[str] = []
    cut = False
    for node in graph.node:
        weights = constants.get(node.input[1]) if node.op_type == "ConvTranspose" else None
        if weights is None or not doubles(node, numpy_helper.to_array(weights)):
            nodes.append(node)
            continue
        values = subpixel_weights(numpy_helper.to_array(weights))
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        side = values.shape[2]
        inputs = list(node.input)
        if len(inputs) > 2:
            bias = constants[inputs[2]]
            repeated = np.repeat(numpy_helper.to_array(bias), 4)
            bias.CopyFrom(numpy_helper.from_array(repeated, bias.name))
        (end,) = node.output
        wide, spread = f"{end}.wide", f"{end}.spread" if side == 2 else end
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [wide],
                name=node.name,
                kernel_shape=[side, side],
                strides=[1, 1],
                pads=[side - 1] * 4,
                dilations=[1, 1],
                group=1,
            )
        )
        nodes.append(
            helper.make_node(
                "DepthToSpace", [wide], [spread], name=f"{node.name}.spread", blocksize=2, mode="CRD"
            )
        )
        if side == 2:
            cut = True
            nodes.append(helper.make_node("Slice", [spread, *_CUT], [end], name=f"{node.name}.cut"))
        done.append(inputs[1].removesuffix(".weight"))
    if cut:
        for name, ends in zip(_CUT, ([1, 1], [-1, -1], [2, 3]), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array(ends, np.int64), name))
    copies = []
    for node in nodes:
        own = type(node)()
        own.CopyFrom(node)
        copies.append(own)
    del graph.node[:], graph.value_info[:]  # shapes of what was replaced among them
    graph.node.extend(copies)
    return copy, done


def doubles(node: onnx.NodeProto, weights: Array) -> bool:
    """Return whether a transposed convolution doubles its input in a form that can be written otherwise."""
    from onnx import helper

    given: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    kernel = weights.shape[2]
    padding = {2: (0, 0), 3: (1, 1), 4: (1, 0)}.get(kernel)
    return (
        padding is not None
        and weights.shape[2] == weights.shape[3]
        and list(given.get("strides", [1, 1])) == [2, 2]
        and list(given.get("pads", [0] * 4)) == [padding[0]] * 4
        and list(given.get("output_padding", [0, 0])) == [padding[1]] * 2
        and list(given.get("dilations", [1, 1])) == [1, 1]
        and given.get("group", 1) == 1
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and "output_shape" not in given
    )
