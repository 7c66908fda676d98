"""Any chain of layers is the same to every runtime: what one engine computes, all compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import RUNTIMES
from latency_tables.runtimes import Program, Step
from latency_tables.runtimes.base import layer_weights
from search_spaces import Layer
from tests.latency_tables.test_ranges import seen

_HERE = [
    name for name in ("litert", "ncnn", "onnxruntime", "openvino") if RUNTIMES[name].unavailable() is None
]
_ACTIVATIONS = ("none", "relu", "relu6", "hswish")


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Chains of two to five layers on odd and even maps; some add what an earlier one of their shape gave."""
    channels, height, width = draw(st.integers(1, 9)), draw(st.integers(2, 9)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    x = rng.standard_normal((1, channels, height, width), dtype=np.float32)
    shapes, steps = [(channels, height, width)], []
    for _ in range(draw(st.integers(2, 5))):
        channels, height, width = shapes[-1]
        kind = draw(st.sampled_from(["conv", "dwconv", "deconv", "se"]))
        if kind == "se":
            layer = Layer("se", channels, channels, 1, 1, 1, height, width, bias=True, squeeze=3)
        else:
            stride = 2 if kind == "deconv" else draw(st.sampled_from([1, 1, 2]))
            kernel = draw(st.integers(2, 4)) if kind == "deconv" else draw(st.sampled_from([1, 3, 4, 5, 7]))
            out = channels if kind == "dwconv" else draw(st.integers(1, 9))
            layer = Layer(
                kind, channels, out, kernel, stride, channels if kind == "dwconv" else 1, height, width,
                norm=draw(st.booleans()), activation=draw(st.sampled_from(_ACTIVATIONS)),
            )  # fmt: skip
        shape = (layer.c_out, layer.h_out, layer.w_out)
        other = None
        if kind != "se" and shape in shapes and draw(st.booleans()):
            other = len(shapes) - 1 - shapes[::-1].index(shape)
            layer = replace(layer, add=True)
        own = layer_weights(layer, rng)
        steps.append(Step(layer, own.weight, own.bias, len(shapes) - 1, other, own.expand))
        shapes.append(shape)
    return Program((x,), tuple(steps))


@pytest.mark.skipif(not _HERE, reason="no engine is installed")
@settings(max_examples=15, deadline=None)
@given(programs())
def test_any_chain_is_the_same_to_every_runtime(program: Program) -> None:
    wanted = seen(program, program.inputs[0])[len(program.steps)]
    for name in _HERE:
        with RUNTIMES[name].prepare(program, 1) as prepared:
            (y,) = prepared.outputs()
        np.testing.assert_allclose(
            y, wanted, rtol=1e-3, atol=2e-4 * max(1.0, float(np.abs(wanted).max())), err_msg=name
        )
