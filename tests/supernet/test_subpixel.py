"""Transposed convolutions written as convolutions compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from supernet.quantise import OnnxMaps
from supernet.subpixel import subpixel_deconvs, subpixel_weights

PADS = {2: (0, 0), 3: (1, 1), 4: (1, 0)}


def transposed(weights, bias=None, size=(5, 7), stride=2, group=1, pads=None):
    """Return a model of one transposed convolution."""
    c_in, kernel = weights.shape[0], weights.shape[2]
    padding, extra = PADS.get(kernel, (0, 0)) if pads is None else pads
    constants = [numpy_helper.from_array(weights, "up.weight")]
    if bias is not None:
        constants.append(numpy_helper.from_array(bias, "up.bias"))
    node = helper.make_node(
        "ConvTranspose",
        ["image", *(constant.name for constant in constants)],
        ["out"],
        name="up",
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[padding] * 4,
        output_padding=[extra] * 2,
        group=group,
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, c_in, *size]), ("out", [None] * 4))
    ]
    graph = helper.make_graph([node], "up", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@given(
    kernel=st.sampled_from((2, 3, 4)),
    c_in=st.integers(1, 5),
    c_out=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    biased=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_it_computes_the_same_as_torch(kernel, c_in, c_out, size, biased, seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(c_in, c_out, kernel, kernel)).astype(np.float32)
    bias = rng.normal(size=c_out).astype(np.float32) if biased else None
    image = torch.from_numpy(rng.normal(size=(1, c_in, *size)).astype(np.float32))
    found, layers = subpixel_deconvs(transposed(weights, bias, size))
    assert layers == ["up"]
    assert [node.op_type for node in found.graph.node][:2] == ["Conv", "DepthToSpace"]
    onnx.checker.check_model(found, full_check=True)
    padding, extra = PADS[kernel]
    expected = torch.nn.functional.conv_transpose2d(
        image,
        torch.from_numpy(weights),
        None if bias is None else torch.from_numpy(bias),
        stride=2,
        padding=padding,
        output_padding=extra,
    )
    torch.testing.assert_close(OnnxMaps(found, 1)(image)[0], expected, rtol=1e-4, atol=1e-4)


def test_as_many_multiply_accumulates_per_pixel():
    weights = np.ones((6, 3, 4, 4), np.float32)
    assert subpixel_weights(weights).size == weights.size
    assert subpixel_weights(weights[:, :, :2, :2]).shape == (12, 6, 1, 1)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [(4, {"stride": 1}), (4, {"pads": (0, 0)}), (5, {}), (2, {"group": 2}), (3, {"pads": (1, 0)})],
    ids=["stride", "padding", "kernel", "groups", "output padding"],
)
def test_other_forms_stay_as_they_are(kernel, options):
    model = transposed(np.ones((4, 2, kernel, kernel), np.float32), **options)
    found, layers = subpixel_deconvs(model)
    assert layers == []
    assert found.graph.node == model.graph.node


def test_the_model_given_is_not_changed():
    model = transposed(np.ones((2, 2, 4, 4), np.float32), np.ones(2, np.float32))
    before = model.SerializeToString()
    subpixel_deconvs(model)
    assert model.SerializeToString() == before
