"""One contract for every runtime: the layer it times is the layer that was asked for."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from latency_tables import RUNTIMES, Runtime, get_runtime, measure_model
from latency_tables.runtimes import Prepared, Program, Step, int8, onnx_runtime
from latency_tables.runtimes.base import random_picture
from latency_tables.runtimes.tflite_writer import write_relu
from latency_tables.timing import take_samples
from search_spaces import (
    InputError,
    Layer,
    Piece,
    UnavailableError,
    get_arch,
    layers_of,
    litepose_extended,
    piece_from_key,
)

Array = npt.NDArray[np.float64]
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

KEYS = (
    "conv_k3_s2_g1_3x32x40_32+bn+relu6",  # reads the picture
    "conv_k1_s1_g1_24x16x16_144+bn+relu6",  # channels that are no whole block
    "conv_k1_s1_g1_144x16x16_24+add+bn",  # residual
    "conv_k1_s1_g1_8x16x16_48+bn+relu6",  # fewer channels than a block
    "conv_k1_s1_g1_48x7x9_8+add+bn",  # odd sizes
    "dwconv_k7_s1_g96_96x8x8_96+bn+relu6",
    "dwconv_k5_s2_g24_24x17x16_24+bn+relu",
    "dwconv_k9_s1_g8_8x5x6_8",  # kernel larger than the map, no bias
    "dwconv_k1_s1_g16_16x4x4_16",
    "conv_k1_s1_g1_24x16x16_14+add",  # output head without bias
    "conv_k1_s1_g1_40x8x8_1+bias+add+relu",  # a single channel
    "conv_k3_s1_g4_32x8x8_64+bias",  # grouped
    "conv_k4_s2_g1_20x15x16_24+bias",  # even kernel
    "deconv_k4_s2_g1_32x8x8_16",
    "deconv_k4_s2_g1_80x8x6_16+add+bn+relu",
    "deconv_k3_s2_g1_24x5x7_16+bn",
    "deconv_k2_s2_g1_40x4x4_8+bias+relu6",
    "conv_k3_s2_g1_3x32x24_16+bn+hswish",
    "conv_k1_s1_g1_40x8x6_240+bn+hswish",
    "dwconv_k5_s2_g24_24x9x7_24+bn+hswish",
    "conv_k1_s1_g1_32x6x5_32+add+bn+hswish",
    "deconv_k4_s2_g1_24x5x6_16+bn+hswish",
    "se_k1_s1_g1_q24_72x9x7_72+bias",  # one row of pixels or many, channels that are no whole block or few
    "se_k1_s1_g1_q8_16x1x5_16+bias",
    "se_k1_s1_g1_q5_20x8x6_20+bias",
)


BLOCKS = (
    # a stem, a bottleneck with and without residual, a strided one with an even kernel
    "conv_k3_s2_g1_3x16x24_32+bn+relu6>dwconv_k3_s1_g32_32x8x12_32+bn+relu6>conv_k1_s1_g1_32x8x12_16+bn",
    "conv_k1_s1_g1_8x9x7_48+bn+relu6>dwconv_k7_s1_g48_48x9x7_48+bn+relu6>conv_k1_s1_g1_48x9x7_8+add+bn",
    "conv_k1_s1_g1_16x9x7_64+bn+relu6>dwconv_k4_s2_g64_64x9x7_64+bn+relu6>conv_k1_s1_g1_64x5x4_24+bn",
    # a deconv step, an output head
    "deconv_k4_s2_g1_24x5x6_16|deconv_k4_s2_g1_32x5x6_16+add+bn+relu",
    "dwconv_k5_s1_g16_16x9x8_16+bn+relu>conv_k1_s1_g1_16x9x8_34"
    "|dwconv_k5_s1_g24_24x9x8_24+bn+relu>conv_k1_s1_g1_24x9x8_34+add",
    # MobileNetV2's first stage, MobileNetV3's gates, strided and with a residual
    "dwconv_k3_s1_g32_32x16x12_32+bn+relu6>conv_k1_s1_g1_32x16x12_16+bn",
    "conv_k1_s1_g1_24x9x7_72+bn+relu>dwconv_k5_s2_g72_72x9x7_72+bn+relu>se_k1_s1_g1_q24_72x5x4_72+bias"
    ">conv_k1_s1_g1_72x5x4_40+bn",
    "conv_k1_s1_g1_16x8x6_96+bn+hswish>dwconv_k3_s1_g96_96x8x6_96+bn+hswish>se_k1_s1_g1_q24_96x8x6_96+bias"
    ">conv_k1_s1_g1_96x8x6_16+add+bn",
)


WRITTEN_QUANTISED = ("litert", "ncnn")
"""Runtimes that quantise no network when they read it: their files are written in 8 bits."""


def reference(program: Program) -> Array:
    """The program computed step by step in float64, from its definition."""
    values = [x.astype(np.float64) for x in program.inputs]
    for step in program.steps:
        values.append(
            layer_reference(step, values[step.x][0], None if step.other is None else values[step.other])
        )
    return values[-1]


def layer_reference(step: Step, x: Array, other: Array | None) -> Array:
    """One layer computed tap by tap."""
    layer, weight = step.layer, step.weight.astype(np.float64)
    if layer.kind == "se":
        reduce, shift, expand, rise = (each.astype(np.float64) for each in step.gate)
        squeezed = np.maximum(reduce[:, :, 0, 0] @ x.mean(axis=(1, 2)) + shift, 0)
        logits = expand[:, :, 0, 0] @ squeezed + rise
        return (x * (np.clip(logits + 3, 0, 6) / 6)[:, None, None])[None]
    k, s, groups = layer.kernel, layer.stride, layer.groups
    own_in, own_out = layer.c_in // groups, layer.c_out // groups
    y = np.zeros((layer.c_out, layer.h_out, layer.w_out))
    if layer.kind == "deconv":
        # Every input pixel adds a k x k stamp; then the margins that exceed size * stride are cut.
        full = np.zeros((layer.c_out, (layer.h_in - 1) * s + k + s, (layer.w_in - 1) * s + k + s))
        for i in range(k):
            for j in range(k):
                rows, columns = slice(i, i + layer.h_in * s, s), slice(j, j + layer.w_in * s, s)
                full[:, rows, columns] += np.einsum("chw,cd->dhw", x, weight[:, :, i, j])
        cut = (k - s + 1) // 2
        y = full[:, cut : cut + layer.h_out, cut : cut + layer.w_out]
    else:
        before = (k - 1) // 2
        padded = np.pad(x, ((0, 0), (before, k), (before, k)))
        for i in range(k):
            for j in range(k):
                seen = padded[:, i : i + layer.h_out * s : s, j : j + layer.w_out * s : s]
                for g in range(groups):
                    inputs, outputs = (
                        slice(g * own_in, (g + 1) * own_in),
                        slice(g * own_out, (g + 1) * own_out),
                    )
                    y[outputs] += np.einsum("chw,dc->dhw", seen[inputs], weight[outputs, :, i, j])
    if step.bias is not None:
        y = y + step.bias[:, None, None]
    if other is not None:
        y = y + other[0]
    if layer.activation == "hswish":
        y = y * np.clip(y + 3, 0, 6) / 6
    elif layer.activation != "none":
        y = np.clip(y, 0, 6 if layer.activation == "relu6" else None)
    return y[None]


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found = RUNTIMES[request.param]
    if reason := found.unavailable():
        pytest.skip(f"{reason}; {found.install}")
    return found


@pytest.mark.parametrize("key", [*KEYS, *BLOCKS])
def test_it_computes_the_piece(runtime: Runtime, key: str) -> None:
    piece = piece_from_key(key)
    assert piece.key == key
    program = Program.of(piece, np.random.default_rng(1))
    with runtime.prepare(program, 1) as prepared:
        (y,) = prepared.outputs()
    last = layers_of(piece)[-1]
    assert y.shape == (1, last.c_out, last.h_out, last.w_out)
    np.testing.assert_allclose(y, reference(program), rtol=1e-4, atol=5e-5)


def test_it_computes_layers_of_a_whole_space(runtime: Runtime) -> None:
    space = litepose_extended(joints=17, resolutions=(64,))
    layers, blocks = space.distinct_layers(), space.distinct_blocks()
    rng = np.random.default_rng(2)
    pieces: list[Piece] = [layers[i] for i in rng.permutation(len(layers))[:15]]
    pieces += [blocks[i] for i in rng.permutation(len(blocks))[:15]]
    for piece in pieces:
        program = Program.of(piece, np.random.default_rng(3))
        with runtime.prepare(program, 1) as prepared:
            (y,) = prepared.outputs()
        np.testing.assert_allclose(y, reference(program), rtol=1e-3, atol=1e-4, err_msg=piece.key)


def test_running_again_changes_nothing(runtime: Runtime) -> None:
    layer = Layer.from_key("conv_k1_s1_g1_24x8x8_24+add+bn+relu")
    with runtime.prepare(layer, 1) as prepared:
        (first,) = prepared.outputs()
        for _ in range(3):
            prepared.run()
        (second,) = prepared.outputs()
    assert np.ptp(first) > 0
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_several_pieces_are_held_ready_at_once(runtime: Runtime, network: Path, precision: str) -> None:
    """Canaries stay prepared while other pieces and networks come and go; nobody disturbs another."""
    if precision not in runtime.precisions:
        pytest.skip(f"{runtime.name} has no {precision}")
    keys = ("conv_k1_s1_g1_24x9x7_48+bn+relu6", "dwconv_k5_s1_g24_24x8x9_24+bn", BLOCKS[1])
    programs = [Program.of(piece_from_key(key), np.random.default_rng(7)) for key in keys]

    def check(number: int, prepared: Prepared) -> None:
        """It still computes what it is."""
        prepared.run()
        (y,) = prepared.outputs()
        assert decibels(reference(programs[number]), y) > fewest

    fewest = _fewest(precision)
    former = torch.get_num_threads()
    with runtime.prepare(programs[0], 1, precision) as first:
        with runtime.prepare(programs[1], 1, precision) as second:
            check(0, first)
            check(1, second)
            with runtime.prepare(programs[2], 1, precision) as third, runtime.prepare_empty(1) as nothing:
                for _ in range(3):
                    check(2, third)
                    nothing.run()
                    check(0, first)
                    check(1, second)
            held = {("litert", "fp16"), *((name, "int8") for name in WRITTEN_QUANTISED)}
            if (runtime.name, precision) not in held:  # their network is a file in fp32
                with runtime.prepare_model(network, (8, 12), 1, precision) as model:
                    (before,) = model.outputs()
                    check(0, first)
                    (after,) = model.outputs()
                    np.testing.assert_array_equal(before, after)
            check(0, first)
            check(1, second)
        gc.collect()
        check(0, first)
    assert torch.get_num_threads() == former
    assert not torch.is_inference_mode_enabled()


def test_times_are_positive_and_larger_for_what_is_much_larger(runtime: Runtime) -> None:
    """A thousand times the work takes longer, on however busy a machine."""
    small, large = Layer("conv", 8, 8, 1, 1, 1, 4, 4), Layer("conv", 96, 96, 3, 1, 1, 48, 48)
    fastest = []
    for layer in (small, large):
        with runtime.prepare(layer, 1) as prepared:
            samples = take_samples(prepared.run, seconds=0.02, min_runs=3)
        assert min(samples.ms) > 0
        fastest.append(min(samples.ms))
    assert fastest[1] > fastest[0]


@pytest.fixture(params=[name for name in sorted(RUNTIMES) if "int8" in RUNTIMES[name].precisions])
def quantising(request: pytest.FixtureRequest) -> Runtime:
    found = RUNTIMES[request.param]
    if reason := found.unavailable():
        pytest.skip(f"{reason}; {found.install}")
    return found


def needs(*packages: str) -> None:
    """Skip the test unless the packages are there; none is imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package '{package}' is not installed")


def decibels(wanted: Array, found: npt.NDArray[Any]) -> float:
    """Signal to noise."""
    return float(10 * np.log10(np.square(wanted).mean() / np.square(wanted - found).mean()))


def test_thread_settings_hold_inside_and_are_restored(runtime: Runtime) -> None:
    former = torch.get_num_threads()
    layer = Layer("conv", 8, 8, 1, 1, 1, 4, 4)
    for threads in (1, 2):
        with runtime.prepare(layer, threads) as prepared:
            if runtime.name == "torch":
                assert torch.get_num_threads() == threads
                assert torch.is_inference_mode_enabled()
            prepared.run()
        with runtime.prepare_empty(threads) as nothing:
            nothing.run()
    with pytest.raises(ZeroDivisionError), runtime.prepare(layer, 2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == former
    assert not torch.is_inference_mode_enabled()


def test_onnx_runtime_gets_the_number_of_threads() -> None:
    assert onnx_runtime._options(3).intra_op_num_threads == 3
    with (
        pytest.raises(InputError, match="at least 1, not 0"),
        RUNTIMES["onnxruntime"].prepare(Layer("conv", 8, 8, 1, 1, 1, 4, 4), 0),
    ):
        pass  # pragma: no cover


@pytest.mark.parametrize("arch", ["litepose-xs", "litepose-m"])
def test_onnx_runtime_times_one_fused_operation_per_convolution(arch: str) -> None:
    """No layout conversion and no separate activation or addition is timed with a convolution."""
    if onnx_runtime._block() == 1:
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    for layer in dict.fromkeys(get_arch(arch).layers(14, size=(64, 64))):
        model, bare = onnx_runtime.program_model(Program.of(layer))
        piece = onnx_runtime._cut_edges(onnx_runtime._optimised(model), bare)
        operators = [node.op_type for node in piece.model.graph.node]
        if layer.kind == "deconv":
            assert operators.count("ConvTranspose") == 1
        else:
            # Fewer input channels than a block are read in the plain layout; a network's outputs leave in it.
            convert = (layer.c_in < onnx_runtime._block() and layer.c_in > 3) or layer.c_out % 4 != 0
            assert operators in (
                ["Conv"],
                *([["Conv", "ReorderOutput"], ["ReorderOutput", "Conv"]] * convert),
            )


@pytest.mark.parametrize("channels", [1, 8, 16, 24, 48])
def test_the_blocked_layout_round_trips(channels: int) -> None:
    array = np.random.default_rng(0).random((1, channels, 3, 5), dtype=np.float32)
    blocked = onnx_runtime._to_blocks(array)
    assert blocked.shape[1] % onnx_runtime._block() == 0
    np.testing.assert_array_equal(onnx_runtime._from_blocks(blocked, channels), array)


# -- whole networks ------------------------------------------------------------------------------------


class Doubler(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 2


def save_doubler(runtime: str, path: Path) -> None:
    if runtime == "torch":
        torch.export.save(torch.export.export(Doubler().eval(), (torch.zeros(1, 3, 8, 12),)), path)
        return
    if runtime == "litert":
        path.write_bytes(write_relu((1, 8, 12, 3), doubled=True))
        return
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "r"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, "width"]) for n in "xy")
    graph = helper.make_graph(nodes, "network", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture(scope="module")
def doublers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network that doubles what is positive, 1x3x8x12, in each runtime's own format."""
    folder = tmp_path_factory.mktemp("networks")
    suffixes = {"torch": ".pt2", "litert": ".tflite"}
    paths = {name: folder / f"network{suffixes.get(name, '.onnx')}" for name in RUNTIMES}
    for name in ("torch", "onnxruntime", "litert"):
        if RUNTIMES[name].unavailable() is None:
            save_doubler(name, paths[name])
    return paths


@pytest.fixture
def network(runtime: Runtime, doublers: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(doublers[runtime.name], tmp_path))


def test_it_runs_whole_networks(runtime: Runtime, network: Path) -> None:
    with runtime.prepare_model(network, (8, 12), 1) as prepared:
        (y,) = prepared.outputs()
        assert y.shape == (1, 3, 8, 12)
        assert y.min() == 0 < y.max()
        assert prepared.feed is not None
        assert prepared.fetch is not None
        prepared.feed(np.full((1, 3, 8, 12), 2, dtype=np.float32))
        prepared.run()
        np.testing.assert_array_equal(prepared.fetch()[0], np.full((1, 3, 8, 12), 4))
    timing = measure_model(runtime, network, (8, 12), 1, seconds=0.02, min_runs=5)
    assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms
    assert timing.runs >= 5


def test_a_network_of_another_size_is_refused(runtime: Runtime, network: Path) -> None:
    with pytest.raises(InputError) as caught:
        measure_model(runtime, network, (9, 12), 1)
    assert str(network) in str(caught.value)
    assert "9x12" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_network_is_refused(runtime: Runtime, network: Path) -> None:
    network.write_bytes(network.read_bytes()[:-20])
    with pytest.raises(InputError) as caught:
        measure_model(runtime, network, (8, 12), 1)
    assert str(network) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_network_is_named(runtime: Runtime, network: Path) -> None:
    network.unlink()
    with pytest.raises(InputError, match="does not exist"):
        measure_model(runtime, network, (8, 12), 1)


def test_torch_points_to_the_right_runtime_for_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.pt2.*onnxruntime"):
        measure_model(RUNTIMES["torch"], tmp_path / "network.onnx", (8, 12), 1)


# -- the registry --------------------------------------------------------------------------------------


def test_an_unknown_runtime_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'onnxruntime'"):
        get_runtime("onnx-runtime")


def test_a_runtime_that_is_not_installed_says_how_to_get_it(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    package = {"litert": "ai_edge_litert"}.get(runtime.name, runtime.name)

    def without(name: str, *args: Any) -> ModuleSpec | None:
        return None if name == package else find_spec(name, *args)

    assert runtime.unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UnavailableError, match=rf"'{runtime.name}' is not available.*pip install") as error:
        runtime.check(1)
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert (f"'litepose-nas[{runtime.name}]'" in str(error.value)) == (runtime.name in extras)


def test_a_precision_that_is_not_offered_is_refused(runtime: Runtime) -> None:
    offered = ", ".join(runtime.precisions)
    with pytest.raises(UnavailableError, match=rf"{offered}, not in 'int4'"):
        runtime.check(1, "int4")


def test_int8_is_refused_where_there_is_none() -> None:
    with pytest.raises(UnavailableError, match=r"timed in fp32, not in 'int8'"):
        RUNTIMES["torch"].check(1, "int8")


# -- int8 ----------------------------------------------------------------------------------------------

_FEWEST_DECIBELS = 35.0
"""8 bits give about 6 dB each, less what rounding costs at every layer and the peaks that set the ranges."""


def _fewest(precision: str) -> float:
    """Where sums of bytes overflow, 8 bits are worth less; what is disturbed would be worth nothing."""
    return 10.0 if precision == "int8" and int8.sums_overflow() else _FEWEST_DECIBELS


@pytest.mark.parametrize("key", [*KEYS, *BLOCKS])
def test_int8_is_close_to_what_was_asked(quantising: Runtime, key: str) -> None:
    if quantising.name in ("onnxruntime", "openvino") and int8.sums_overflow() and key[:6] != "dwconv":
        pytest.skip(
            "sums of bytes overflow on this processor; that the models are right is held by"
            " test_quantised_models_stand_for_what_was_asked"
        )
    program = Program.of(piece_from_key(key), np.random.default_rng(1))
    with quantising.prepare(program, 1, "int8") as prepared:
        (y,) = prepared.outputs()
    wanted = reference(program)
    assert y.shape == wanted.shape
    assert decibels(wanted, y) > _FEWEST_DECIBELS
    floats = ("deconv", "_g4_") if quantising.name == "ncnn" else ("deconv",)
    if not any(each in key for each in floats) and key[:3] != "se_":  # those are in floats, wholly or nearly
        assert decibels(wanted, y) < 60, "this is not 8 bits"


@pytest.mark.parametrize("key", [*KEYS[::4], *BLOCKS])
def test_fp16_is_close_to_what_was_asked(runtime: Runtime, key: str) -> None:
    """Weights at least are rounded to 16 bits, whatever is computed in."""
    if "fp16" not in runtime.precisions:
        pytest.skip(f"{runtime.name} has no fp16")
    program = Program.of(piece_from_key(key), np.random.default_rng(1))
    with runtime.prepare(program, 1, "fp16") as prepared:
        (y,) = prepared.outputs()
    assert 50 < decibels(reference(program), y) < 110


@pytest.mark.parametrize("key", [key for key in (*KEYS, *BLOCKS) if "deconv" not in key])
def test_int8_runs_in_integers(key: str) -> None:
    """All that ONNX Runtime executes of a piece computes in bytes; nothing is converted at a neighbour."""
    piece = piece_from_key(key)
    cut = onnx_runtime._timed_piece(Program.of(piece), "int8")
    operators = [node.op_type for node in cut.model.graph.node]
    assert operators.count("QLinearConv") == sum(2 if x.kind == "se" else 1 for x in layers_of(piece))
    first, last = layers_of(piece)[0], layers_of(piece)[-1]
    allowed = {"QLinearConv"} | ({"QLinearAdd"} if last.add else set())
    if first.c_in <= 3:
        allowed |= {"QuantizeLinear", "Transpose"}
    if last.c_out % 4:
        allowed |= {"DequantizeLinear", "Transpose"}
    if "hswish" in key or "se_" in key:  # means, sigmoids and products compute in floats
        allowed |= {"DequantizeLinear", "HardSigmoid", "Mul", "QuantizeLinear", "ReduceMean"}
    assert set(operators) <= allowed


@pytest.mark.parametrize("key", [*KEYS, *BLOCKS])
def test_quantised_models_stand_for_what_was_asked(key: str) -> None:
    """Computed in floats, as processors without sums of bytes that overflow would compute them."""
    needs("onnxruntime")
    import onnxruntime

    program = Program.of(piece_from_key(key), np.random.default_rng(1))
    model, _ = onnx_runtime.program_model(program, neighbours=False)
    found = int8.quantised(model, int8.observed_ranges(model, program.inputs))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(found.SerializeToString(), options)
    names = [info.name for info in session.get_inputs()]
    (y,) = session.run(None, dict(zip(names, program.inputs, strict=True)))
    assert decibels(reference(program), y) > _FEWEST_DECIBELS


def test_a_network_is_quantised_and_a_quantised_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    model, _ = onnx_runtime.program_model(Program.of(piece_from_key(BLOCKS[0])), neighbours=False)
    onnx.save(model, path)
    quantised = onnx.load_from_string(int8.int8_network(path, (16, 24)))
    operators = [node.op_type for node in onnx_runtime._optimised(quantised).graph.node]
    assert operators.count("QLinearConv") == 3
    assert "Conv" not in operators
    onnx.save(quantised, path)
    assert onnx.load_from_string(int8.int8_network(path, (16, 24))) == quantised


def test_a_network_is_quantised_once(
    quantising: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is visited; anew, if another one is written there."""
    if quantising.name in WRITTEN_QUANTISED:
        pytest.skip("its files are quantised when they are written (test_litert.py, test_ncnn.py)")
    counted: list[int] = []

    def counting(model: onnx.ModelProto, ranges: Any) -> onnx.ModelProto:
        counted.append(len(model.graph.node))
        return quantised(model, ranges)

    quantised = int8.quantised
    monkeypatch.setattr(int8, "quantised", counting)
    path = tmp_path / "network.onnx"
    for number, seed in enumerate((0, 0, 1), 1):
        program = Program.of(piece_from_key(BLOCKS[0]), np.random.default_rng(seed))
        onnx.save(onnx_runtime.program_model(program, neighbours=False)[0], path)
        with quantising.prepare_model(path, (16, 24), 1, "int8") as prepared:
            prepared.run()
        assert len(counted) == (1 if number < 3 else 2)


def test_quantised_networks_run(quantising: Runtime, tmp_path: Path) -> None:
    if quantising.name in WRITTEN_QUANTISED:
        pytest.skip("its files are quantised when they are written (test_litert.py, test_ncnn.py)")
    path = tmp_path / "network.onnx"
    model, _ = onnx_runtime.program_model(Program.of(piece_from_key(BLOCKS[0])), neighbours=False)
    onnx.save(model, path)
    found = []
    for precision in ("fp32", "int8"):
        with quantising.prepare_model(path, (16, 24), 1, precision) as prepared:
            found += prepared.outputs()
    assert _fewest("int8") < decibels(found[0].astype(np.float64), found[1]) < 60
    with pytest.raises(InputError, match="17x24"), quantising.prepare_model(path, (17, 24), 1, "int8"):
        pass  # pragma: no cover


# -- OpenVINO ------------------------------------------------------------------------------------------


def test_openvino_does_not_call_home_when_it_is_imported(tmp_path: Path) -> None:
    needs("openvino")
    code = """
import sys
seen = []
def hook(event, arguments):
    if event.startswith("socket.") or event in ("os.mkdir", "subprocess.Popen"):
        seen.append(event)
sys.addaudithook(hook)
from latency_tables import get_runtime
print(get_runtime("openvino").version())
assert "openvino_telemetry" not in sys.modules and not seen, seen
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("key", [*BLOCKS[1:3], BLOCKS[4]])
def test_openvino_times_no_conversion_at_the_edges(precision: str, key: str) -> None:
    needs("openvino")
    from latency_tables.runtimes import openvino_runtime

    if not openvino_runtime._channels_last(precision):
        pytest.skip("OpenVINO does not keep channels last on this processor")
    program = Program.of(piece_from_key(key))
    source, inner = openvino_runtime._source(program, precision), [True] * len(program.inputs)
    core = openvino_runtime._core()
    core.set_property("CPU", {"PERF_COUNT": True})
    try:
        compiled = openvino_runtime._compile(openvino_runtime._read(source.model, inner, whole=False), 1)
    finally:
        core.set_property("CPU", {"PERF_COUNT": False})
    request = compiled.create_infer_request()
    request.infer()
    infos = [info for info in request.profiling_info if "EXECUTED" in str(info.status)]
    ran = {info.node_name: (info.node_type, info.exec_type) for info in infos}
    kernels = [kernel for kind, kernel in ran.values() if "Convolution" in kind]
    assert len(kernels) == len(program.steps)
    assert all(kernel.endswith("f32") == (precision == "fp32") for kernel in kernels), kernels
    # The pixel that is copied out may still be turned; nothing else is.
    conversions = [name for name, (kind, _) in ran.items() if kind in ("Reorder", "Transpose", "Convert")]
    assert not [name for name in conversions if name.startswith("x")], ran


def test_openvino_times_its_own_files_in_int8_if_they_are(tmp_path: Path) -> None:
    needs("openvino")
    from latency_tables.runtimes import openvino_runtime

    openvino, path = RUNTIMES["openvino"], tmp_path / "network.xml"
    model, _ = onnx_runtime.program_model(Program.of(piece_from_key(BLOCKS[0])), neighbours=False)
    openvino_runtime.write_network(model.SerializeToString(), path, {})
    with pytest.raises(InputError, match="is in floats, so it is not timed in 'int8'"):
        measure_model(openvino, path, (16, 24), 1, precision="int8")
    numbers = path.with_suffix(".bin")
    assert numbers.is_file() and openvino.network_files(path) == (numbers, path)  # what a device is sent
    whole = numbers.read_bytes()
    for precision in ("fp32", "int8"):  # the reason is told, not the place in OpenVINO's code
        numbers.write_bytes(whole[:-1])
        with pytest.raises(InputError, match=r"does not run in OpenVINO: (?!Exception from)"):
            measure_model(openvino, path, (16, 24), 1, precision=precision)
        numbers.write_bytes(whole)
    with openvino.prepare_model(path, (16, 24), 1) as prepared:
        (wanted,) = prepared.outputs()
    ranges = int8.observed_ranges(model, [random_picture((16, 24))])
    openvino_runtime.write_network(int8.quantised(model, ranges).SerializeToString(), path, {})
    with openvino.prepare_model(path, (16, 24), 1, "int8") as prepared:
        (y,) = prepared.outputs()
    assert _fewest("int8") < decibels(wanted.astype(np.float64), y) < 60
    path.write_text("<net/>")
    for precision in ("fp32", "int8"):
        with pytest.raises(InputError, match="does not run in OpenVINO"):
            measure_model(openvino, path, (8, 12), 1, precision=precision)
