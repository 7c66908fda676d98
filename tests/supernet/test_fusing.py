"""Models rewritten for speed compute the same."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from search_spaces import InputError, litepose_arch
from supernet.export import export_onnx
from supernet.fusing import FOR_RUNTIME, FOR_X86, REWRITES, WIDEST, interleave, padding, phases, rewritten
from supernet.quantise import OnnxMaps, half_precision, layer_macs
from supernet.registry import build_network
from tests.supernet.networks import images, randomise, relative_error
from tests.supernet.test_subpixel import PADS, transposed

ALL = tuple(REWRITES)
NET = litepose_arch(
    64, 8, (8, 16, 8, 8), (8, 16, 8), depths=1, kernels=(3, 5, 7, 7), expansions=2, deconv_kernels=(4, 3, 2)
)
SIZE = (53, 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network with a crop in its head, and its model for any number of images."""
    net = randomise(build_network(NET, 3)).eval()
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    export_onnx(net, path, SIZE, batch=None)
    return net, onnx.load(path)


def kinds(model):
    return Counter(node.op_type for node in model.graph.node)


def step(kernel, c_in, c_out, size, rng, *, pair, relu, crop):
    """Return a model of one deconv step: one or two transposed convolutions, a crop, a ReLU."""
    padding, extra = PADS[kernel]
    nodes, constants, ends, sums = [], [], [], []
    for place in range(2 if pair else 1):
        weights = rng.normal(size=(c_in + place, c_out, kernel, kernel)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"up{place}.weight"))
        read = [f"x{place}", f"up{place}.weight"]
        if place == 0:
            shift = numpy_helper.from_array(rng.normal(size=c_out).astype(np.float32), "up0.bias")
            constants.append(shift)
            read.append("up0.bias")
        options = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [padding] * 4}
        sums.append(f"y{place}")
        nodes.append(
            helper.make_node(
                "ConvTranspose", read, sums[-1:], name=f"up{place}", output_padding=[extra] * 2, **options
            )
        )
        shape = [1, c_in + place, *size]
        ends.append(helper.make_tensor_value_info(f"x{place}", TensorProto.FLOAT, shape))
    at = sums[0]
    if pair:
        nodes.append(helper.make_node("Add", sums, ["sum"], name="sum"))
        at = "sum"
    if crop:
        for name, value in (("from", 0), ("to", 2 * size[0] - 1), ("axis", 2)):
            constants.append(numpy_helper.from_array(np.array([value], np.int64), name))
        nodes.append(helper.make_node("Slice", [at, "from", "to", "axis"], ["cropped"], name="crop"))
        at = "cropped"
    if relu:
        nodes.append(helper.make_node("Relu", [at], ["positive"], name="relu"))
        at = "positive"
    output = helper.make_tensor_value_info(at, TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(nodes, "step", ends, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model, feeds):
    """Return the outputs as ONNX Runtime computes them."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@given(
    kernel=st.sampled_from((2, 3, 4)),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pair=st.booleans(),
    relu=st.booleans(),
    crop=st.booleans(),
    spread=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=30, deadline=None)
def test_phases_compute_the_same(kernel, widths, size, pair, relu, crop, spread, seed):
    rng = np.random.default_rng(seed)
    model = step(kernel, *widths, size, rng, pair=pair, relu=relu, crop=crop)
    found, layers = phases(model)
    assert layers == (["up0", "up1"] if pair else ["up0"])
    if spread:
        found, places = interleave(found)
        assert len(places) == 1
        assert "DepthToSpace" not in kinds(found)
    onnx.checker.check_model(found, full_check=True)
    assert "ConvTranspose" not in kinds(found)
    assert kinds(found)["Conv"] == 4 * len(layers)
    assert kinds(found)["Relu"] == 4 * relu
    feeds = {
        info.name: rng.normal(size=[d.dim_value for d in info.type.tensor_type.shape.dim]).astype(np.float32)
        for info in model.graph.input
    }
    (expected,), (ours,) = run(model, feeds), run(found, feeds)
    assert expected.shape == ours.shape
    assert np.abs(expected - ours).max(initial=0) <= 1e-5 * max(np.abs(expected).max(initial=0), 1)


@given(
    channels=st.integers(1, 9),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from((5, 7, 9)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_zeros_written_beforehand_are_the_same_zeros(channels, size, kernel, seed):
    rng = np.random.default_rng(seed)
    model = depthwise(rng.normal(size=(channels, 1, kernel, kernel)), size)
    found, layers = padding(model)
    assert layers == ["wide"]
    onnx.checker.check_model(found, full_check=True)
    x = rng.normal(size=(1, channels, *size)).astype(np.float32)
    (expected,), (ours,) = run(model, {"image": x}), run(found, {"image": x})
    assert np.abs(expected - ours).max() <= 1e-5 * np.abs(expected).max()


def depthwise(weights, size, stride=1, group=None):
    """Return a model of one convolution with zeros all around."""
    kernel = weights.shape[2]
    channels = weights.shape[0] if group is None else group * weights.shape[1]
    node = helper.make_node(
        "Conv",
        ["image", "wide.weight"],
        ["out"],
        name="wide",
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[kernel // 2] * 4,
        group=channels if group is None else group,
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, channels, *size]), ("out", [None] * 4))
    ]
    constants = [numpy_helper.from_array(weights.astype(np.float32), "wide.weight")]
    graph = helper.make_graph([node], "wide", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ((4, 1, 3, 3), {}),
        ((4, 1, 7, 7), {"stride": 2}),
        ((4, 2, 7, 7), {"group": 2}),
        ((4, 1, 7, 7), {"size": (4, WIDEST + 1)}),
    ],
    ids=["kernel", "stride", "groups", "width"],
)
def test_other_convolutions_keep_their_padding(weights, options):
    model = depthwise(np.ones(weights), **({"size": (8, 8)} | options))
    found, layers = padding(model)
    assert layers == []
    assert found.graph.node == model.graph.node


@pytest.mark.parametrize(
    ("kernel", "options"),
    [(4, {"stride": 1}), (4, {"pads": (0, 0)}), (5, {}), (2, {"group": 2}), (3, {"pads": (1, 0)})],
    ids=["stride", "padding", "kernel", "groups", "output padding"],
)
def test_other_transposed_convolutions_stay_as_they_are(kernel, options):
    model = transposed(np.ones((4, 2, kernel, kernel), np.float32), **options)
    found, layers = phases(model)
    assert layers == []
    assert found.graph.node == model.graph.node


def test_a_sum_that_is_seen_elsewhere_is_still_there():
    """An output that a ReLU reads, too: the phases end before the ReLU."""
    model = step(4, 2, 3, (4, 5), np.random.default_rng(0), pair=True, relu=True, crop=False)
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None] * 4))
    found, _ = phases(model)
    assert kinds(found)["Relu"] == 1
    rng = np.random.default_rng(1)
    feeds = {f"x{place}": rng.normal(size=(1, 2 + place, 4, 5)).astype(np.float32) for place in range(2)}
    for expected, ours in zip(run(model, feeds), run(found, feeds), strict=True):
        np.testing.assert_allclose(expected, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wanted", [FOR_RUNTIME["onnxruntime"], FOR_X86["onnxruntime"], ("phases",), ("padding",)]
)
def test_networks_compute_the_same(wanted, exported):
    net, model = exported
    found, made = rewritten(model, wanted)
    onnx.checker.check_model(found, full_check=True)
    assert list(made) == [name for name in REWRITES if name in wanted]
    assert all(made.values())
    if "phases" in wanted:
        assert "ConvTranspose" not in kinds(found)
        assert kinds(found)["Relu"] == kinds(model)["Relu"] + 3 * 3
    for count in (1, 3):
        x = images(count, *SIZE, seed=count)
        with torch.no_grad():
            assert relative_error(OnnxMaps(found, 1)(x), net(x)) < 1e-5


def test_as_many_multiply_accumulates(exported):
    """Phases leave nothing out and add nothing; a 3x3 kernel's phases have 4, 2, 2 and 1 of its taps."""
    _, model = exported
    found, _ = rewritten(model, ("phases",))
    assert sum(layer_macs(found).values()) == sum(layer_macs(model).values())
    assert {name.split(".even")[0].split(".odd")[0] for name in layer_macs(found)} == set(layer_macs(model))


def test_fp16_of_a_rewritten_model(exported):
    net, model = exported
    x = images(1, *SIZE)
    found = half_precision(rewritten(model, ALL)[0])
    with torch.no_grad():
        assert relative_error(OnnxMaps(found, 1)(x), net(x)) < 0.03


def test_the_model_given_is_not_changed(exported):
    _, model = exported
    before = model.SerializeToString()
    rewritten(model, ALL)
    assert model.SerializeToString() == before


def test_without_a_size_phases_are_spread_by_one_node(exported):
    _, model = exported
    free = rewritten(model, ("phases",))[0]
    for place in (2, 3):
        free.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"side{place}"
    found, places = interleave(free)
    assert places == []
    assert kinds(found)["DepthToSpace"] == 3


def test_an_export_tells_its_rewrites(tmp_path, exported, monkeypatch):
    net, plain = exported
    monkeypatch.setattr("supernet.export._write", lambda net, path, *_: onnx.save(plain, path))
    wanted = FOR_X86["onnxruntime"]
    report = export_onnx(net, tmp_path / "net.onnx", SIZE, batch=None, rewrites=wanted)
    assert report.max_rel < 1e-5
    model = onnx.load(tmp_path / "net.onnx")
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["rewrites"]) == {"phases": 6, "interleave": 3, "padding": 5}
    assert "ConvTranspose" not in kinds(model)


def test_an_unknown_rewrite_is_refused(tmp_path, exported):
    net, _ = exported
    with pytest.raises(InputError, match="unknown rewrite 'phase'; did you mean 'phases'"):
        export_onnx(net, tmp_path / "net.onnx", SIZE, rewrites=("phase",))
    assert list(tmp_path.iterdir()) == []
