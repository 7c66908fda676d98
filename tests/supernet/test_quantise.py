"""Networks in fewer bits: which layers they have, what is rounded, what ONNX Runtime executes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from search_spaces import InputError, litepose_arch
from search_spaces.deconv import DECONV_MBV2, deconv_arch
from supernet.export import export_onnx
from supernet.quantise import (
    METHODS,
    OnnxMaps,
    Quantiser,
    calibrate,
    executed_in,
    free_shapes,
    half_precision,
    layer_macs,
    layer_nodes,
    open_shapes,
    saturates,
)
from supernet.registry import build_network
from supernet.subpixel import subpixel_deconvs
from tests.supernet.networks import randomise

ARCH = litepose_arch(
    64, 8, (8, 16, 8, 8), (8, 8, 8), depths=(1, 2, 1, 2), kernels=3, expansions=2, deconv_kernels=(4, 3, 2)
)
JOINTS = 3
DECONVS = [f"head.deconv{i}.{branch}" for i in range(3) for branch in ("refined", "raw")]


def pictures(count, size=(64, 64), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, 3, *size)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def network():
    return randomise(build_network(ARCH, JOINTS)).eval()


@pytest.fixture(scope="module")
def fp32(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantise") / "net.onnx"
    export_onnx(network, path)
    return onnx.load(path)


@pytest.fixture(scope="module")
def quantiser(fp32):
    return Quantiser(fp32, calibrate(fp32, pictures(3)))


def outputs(model, image, simulated=False):
    return [maps.numpy() for maps in OnnxMaps(model, 1, simulated)(torch.from_numpy(image))]


def snr(reference, found):
    """Return dB, the mean power of the reference over that of the error."""
    error = float(np.square(reference - found).mean())
    return math.inf if error == 0 else 10 * math.log10(float(np.square(reference).mean()) / error)


def test_layers_carry_the_names_and_costs_of_the_arch(fp32):
    expected = {layer.name: layer for layer in ARCH.layers(JOINTS)}
    found = layer_nodes(fp32)
    assert set(found) == set(expected)
    assert layer_macs(fp32) == {name: layer.macs for name, layer in expected.items()}
    assert {name for name, layer in found.items() if layer.kind == "deconv"} == set(DECONVS)
    assert {n for n, layer in found.items() if layer.kind == "dwconv"} == {
        n for n, layer in expected.items() if layer.kind == "dwconv"
    }
    # The sum that is an output belongs to the branch that runs last.
    assert {n for n, layer in found.items() if layer.output} == {
        "head.output0.raw.project",
        "head.output1.raw.project",
    }


def test_rewritten_deconvs_are_deconvs_still(fp32):
    rewritten, _ = subpixel_deconvs(fp32)
    before, after = layer_nodes(fp32), layer_nodes(rewritten)
    assert {name: (x.kind, x.output) for name, x in before.items()} == {
        name: (x.kind, x.output) for name, x in after.items()
    }
    macs, theirs = layer_macs(fp32), layer_macs(rewritten)
    changed = {name for name in macs if macs[name] != theirs[name]}
    assert changed == {name for name in DECONVS if "deconv2" not in name}  # a 2x2 kernel pads nothing


def test_a_model_of_somebody_else_is_refused(fp32):
    other = onnx.ModelProto()
    other.CopyFrom(fp32)
    other.graph.node[0].input[1] = "nobody"
    with pytest.raises(InputError, match="'nobody' do not name a layer"):
        layer_nodes(other)
    other.CopyFrom(fp32)
    other.graph.node[1].name = other.graph.node[0].name
    with pytest.raises(InputError, match="no name of its own"):
        layer_nodes(other)


def test_any_size_of_images(network, fp32):
    (image,) = pictures(1, (96, 128))
    batch = np.concatenate([image, -image])
    found = outputs(free_shapes(fp32), batch)
    with torch.no_grad():
        expected = network(torch.from_numpy(batch))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)


def test_a_graph_made_for_one_size_is_refused():
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in ("image", "out")]
    shape = numpy_helper.from_array(np.array([1, 3, 4, 4]), "shape")
    node = helper.make_node("Reshape", ["image", "shape"], ["out"], name="fixed")
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [shape]))
    with pytest.raises(InputError, match=r"'fixed' \(Reshape\) is made for one size"):
        free_shapes(model)


def test_a_network_whose_sizes_are_odd_on_the_way_takes_its_own_size(fp32, tmp_path):
    """Of 192x144 the encoder makes 6x5, so that a deconv step's output is cut to a size that is written."""
    widths = {"stem": 8, "stages": [8] * 7, "depths": 1, "last": 0}
    network = randomise(build_network(deconv_arch(DECONV_MBV2, 192, (8, 8, 8), **widths), JOINTS)).eval()
    export_onnx(network, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"\(Slice\) is made for one size"):
        free_shapes(model)
    (image,) = pictures(1, (192, 144))
    maps = OnnxMaps(open_shapes(model), 1)
    with torch.no_grad():
        (expected,) = network(torch.from_numpy(image))
    np.testing.assert_allclose(maps(torch.from_numpy(image))[0].numpy(), expected.numpy(), atol=1e-5)
    with pytest.raises(InputError, match=r"made for images .*3x192x144 \(N, C, H, W\), not 1x3x256x192"):
        maps(torch.zeros(1, 3, 256, 192))
    (other,) = pictures(1, (96, 128))  # where nothing is cut, any size will do
    assert OnnxMaps(open_shapes(fp32), 1)(torch.from_numpy(other))[0].shape[2:] == (24, 32)


def test_the_range_of_minmax_is_what_was_seen(fp32):
    first, second = pictures(2, seed=4)
    ranges = calibrate(fp32, [first, second])
    assert ranges["image"] == (min(first.min(), second.min()), max(first.max(), second.max()))
    outs = [outputs(fp32, image)[1] for image in (first, second)]
    least, most = min(o.min() for o in outs), max(o.max() for o in outs)
    assert ranges["half"] == pytest.approx((least, most), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", METHODS[1:])
def test_other_methods_stay_within_what_was_seen(fp32, method):
    images = pictures(2)
    wide, narrow = calibrate(fp32, images), calibrate(fp32, images, method)
    assert wide.keys() == narrow.keys()
    assert narrow != wide
    for name, (low, high) in narrow.items():
        slack = 1e-3 * (wide[name][1] - wide[name][0])
        assert wide[name][0] - slack <= low <= high <= wide[name][1] + slack


def test_percentiles_cut_outliers_off(fp32):
    images = pictures(3, (192, 192))
    images[0][0, 0, 0, 0] = 100
    assert calibrate(free_shapes(fp32), images)["image"][1] == 100
    assert calibrate(free_shapes(fp32), images, "percentile")["image"][1] < 50


def test_calibration_says_what_is_wrong(fp32):
    with pytest.raises(InputError, match="unknown 'minmx'; did you mean 'minmax'"):
        calibrate(fp32, pictures(1), "minmx")
    with pytest.raises(InputError, match="at least one image"):
        calibrate(fp32, [])
    with pytest.raises(InputError, match="takes values from"):
        calibrate(fp32, [np.full((1, 3, 64, 64), np.nan, np.float32)])


def test_nothing_is_rounded_where_all_layers_are_kept(fp32, quantiser):
    kept = quantiser.int8(quantiser.layers)
    assert kept == fp32


def test_everything_rounded_is_what_onnx_runtime_quantises(quantiser):
    """The parts put together are its quantiser's model, bit for bit."""
    (image,) = pictures(1, seed=5)
    whole = quantiser._whole._whole
    for ours, theirs in zip(outputs(quantiser.int8(), image, True), outputs(whole, image, True), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_layers_can_be_kept(quantiser, data):
    kept = data.draw(st.sets(st.sampled_from(sorted(quantiser.layers))))
    model = quantiser.int8(kept)
    onnx.checker.check_model(model, full_check=True)
    kinds = executed_in(model, quantiser.layers)
    assert all(kinds[layer] == "float" for layer in kept)
    expected = set(quantiser.layers).difference(kept, DECONVS)
    assert {layer for layer, kind in kinds.items() if kind == "int8"} == expected
    (image,) = pictures(1, seed=6)
    found = outputs(model, image)
    for ours, theirs in zip(outputs(quantiser.fp32, image), found, strict=True):
        assert snr(ours, theirs) > 10
    # ONNX Runtime rounds nothing by itself.
    for ours, theirs in zip(outputs(model, image, True), found, strict=True):
        assert snr(ours, theirs) > 25


def test_one_layer_alone_rounds_what_it_reads_for_itself_only(quantiser):
    """The stem's output goes to stage 0 and to the last head: only the head reads it rounded."""
    (image,) = pictures(1, seed=7)
    layer = "head.output1.raw.depthwise"
    model = quantiser.int8(set(quantiser.layers) - {layer})
    (quarter, half), (same, other) = outputs(quantiser.fp32, image), outputs(model, image)
    np.testing.assert_array_equal(quarter, same)
    assert 15 < snr(half, other) < math.inf
    assert executed_in(model, quantiser.layers)[layer] == "int8"


def test_rounding_less_errs_less(quantiser):
    (image,) = pictures(1, seed=8)
    reference = outputs(quantiser.fp32, image)[1]
    layers = list(quantiser.layers)
    found = [
        snr(reference, outputs(quantiser.int8(kept), image)[1]) for kept in ((), layers[:-4], layers[:-1])
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_deconvs_run_in_float_unless_they_are_written_as_convolutions(fp32, quantiser):
    assert {
        layer for layer, kind in executed_in(quantiser.int8(), quantiser.layers).items() if kind == "float"
    } == set(DECONVS)
    rewritten, layers = subpixel_deconvs(fp32)
    assert sorted(layers) == sorted(DECONVS)
    own = Quantiser(rewritten, calibrate(rewritten, pictures(3)))
    assert set(executed_in(own.int8(), own.layers).values()) == {"int8"}
    (image,) = pictures(1, seed=9)
    for ours, theirs in zip(outputs(fp32, image), outputs(own.int8(), image), strict=True):
        assert snr(ours, theirs) > 10


def test_weights_of_7_bits_compute_what_their_rounding_says(fp32, quantiser):
    """On processors without VNNI 8-bit weights do not."""
    model = quantiser.int8()
    weights = [
        numpy_helper.to_array(c) for c in model.graph.initializer if c.name.endswith("weight_quantized")
    ]
    assert len(weights) == len(quantiser.layers)
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == 64
    (image,) = pictures(1, seed=10)
    for kernels, simulated in zip(outputs(model, image), outputs(model, image, True), strict=True):
        assert snr(simulated, kernels) > 25
    eight = Quantiser(fp32, calibrate(fp32, pictures(3)), 8).int8()
    largest = max(
        int(np.abs(numpy_helper.to_array(c).astype(int)).max())
        for c in eight.graph.initializer
        if c.name.endswith("weight_quantized")
    )
    assert largest == 127
    if not saturates():
        for kernels, simulated in zip(outputs(eight, image), outputs(eight, image, True), strict=True):
            assert snr(simulated, kernels) > 25
    with pytest.raises(InputError, match="7 or 8 bits, not 4"):
        Quantiser(fp32, {}, 4)


def test_an_unknown_layer_is_named(quantiser):
    with pytest.raises(InputError, match=r"no layer 'stem\.conf'; did you mean 'stem\.conv'"):
        quantiser.int8(["stem.conf"])


def test_the_metadata_stays(fp32, quantiser):
    told = {entry.key: entry.value for entry in quantiser.int8().metadata_props}
    assert told == {entry.key: entry.value for entry in fp32.metadata_props}


def test_half_precision_keeps_its_ends(fp32):
    model = half_precision(fp32)
    onnx.checker.check_model(model, full_check=True)
    ends = (*model.graph.input, *model.graph.output)
    assert {info.type.tensor_type.elem_type for info in ends} == {TensorProto.FLOAT}
    kinds = {c.data_type for c in model.graph.initializer if c.name.endswith(".weight")}
    assert kinds == {TensorProto.FLOAT16}
    assert model.ByteSize() < 0.8 * fp32.ByteSize()
    (image,) = pictures(1)
    for ours, theirs in zip(outputs(fp32, image), outputs(model, image), strict=True):
        assert 40 < snr(ours, theirs) < math.inf


def test_a_weight_beyond_half_precision_is_refused(fp32):
    other = onnx.ModelProto()
    other.CopyFrom(fp32)
    constant = next(c for c in other.graph.initializer if c.name == "stem.conv.weight")
    values = numpy_helper.to_array(constant).copy()
    values[0] = 7e4
    constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    with pytest.raises(InputError, match=r"'stem.conv.weight' holds 70000, but .* end at 65504"):
        half_precision(other)
