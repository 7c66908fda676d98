"""LiteRT beyond the runtimes' contract: the operators written, int8, whole networks, bad files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import RUNTIMES, measure_model
from latency_tables.networks import Weights, network_program, weight_names
from latency_tables.runtimes import Program
from latency_tables.runtimes.litert_runtime import write_network
from latency_tables.runtimes.ranges import Range, value_ranges
from latency_tables.runtimes.tflite_writer import Quantisation, range_quantisation, write_tflite
from search_spaces import (
    DECONV_MBV2,
    DECONV_MBV3,
    InputError,
    Layer,
    SearchSpace,
    UnavailableError,
    deconv_arch,
    deconv_mbv2,
    deconv_mbv3,
    layers_of,
    litepose_extended,
    piece_from_key,
)
from search_spaces.arch import Arch
from search_spaces.litepose import litepose_arch
from supernet.export import fold_batchnorm
from supernet.registry import build_network
from tests.latency_tables.test_runtimes import BLOCKS, KEYS, reference

LITERT = RUNTIMES["litert"]
pytestmark = pytest.mark.skipif(LITERT.unavailable() is not None, reason="LiteRT is not installed")

SMALL_DECONV = {
    "mbv2": deconv_arch(
        DECONV_MBV2, 64, (16, 8, 24), stem=8, stages=(8, 16, 16, 24, 24, 32, 40),
        depths=(2, 2, 1, 1, 2, 1, 1), last=48, deconv_kernels=(4, 3, 2),
    ),
    "mbv2-two-steps": deconv_arch(
        DECONV_MBV2, 96, (16, 8), stem=8, stages=(8, 16, 16, 24, 24, 32, 40), depths=1, kernels=5, last=0,
    ),
    "mbv3": deconv_arch(
        DECONV_MBV3, 96, (16, 8, 24), stem=8, stages=(8, 16, 24, 32, 40, 48), depths=(1, 2, 2, 2, 1, 2),
        last=48, deconv_kernels=(3, 4, 4),
    ),
}  # fmt: skip
"""Small networks of the deconv families; 96x72 is odd at 1/16, where the head's maps are cropped."""

SMALL = litepose_arch(64, 8, (16, 16, 24, 24), (16, 8, 8), depths=(2, 1, 2, 1), kernels=3)


def operators(content: bytes) -> list[str]:
    """Return the operators of a file, in order."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromPackedBuf(content)
    return [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators]


# -- the operators -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("conv_k3_s1_g1_8x9x8_8+bn+relu6", ["CONV_2D"]),
        ("conv_k3_s2_g1_8x9x9_8+bn", ["CONV_2D"]),
        ("conv_k3_s2_g1_8x9x8_8+bn", ["PAD", "CONV_2D"]),
        ("conv_k4_s2_g1_8x8x8_8+bn", ["CONV_2D"]),
        ("conv_k1_s2_g1_8x8x8_8", ["CONV_2D"]),
        ("conv_k1_s1_g1_8x8x8_8+add+relu", ["CONV_2D", "ADD"]),
        ("dwconv_k7_s2_g8_8x8x8_8", ["PAD", "DEPTHWISE_CONV_2D"]),
        ("deconv_k4_s2_g1_8x5x5_8", ["TRANSPOSE_CONV"]),
        ("deconv_k2_s2_g1_8x5x5_8", ["TRANSPOSE_CONV"]),
        ("deconv_k3_s2_g1_8x5x5_8+add+relu", ["TRANSPOSE_CONV", "SLICE", "ADD"]),
    ],
)
def test_padding_is_the_operators_own_where_it_is_the_same(key: str, wanted: list[str]) -> None:
    assert operators(write_tflite(Program.of(piece_from_key(key)))) == wanted


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["conv", "dwconv", "deconv"]),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    epilogue=st.sampled_from(["", "+bias", "+bn+relu6", "+add+relu"]),
)
def test_any_geometry_is_computed_or_refused_by_name(
    kind: str, kernel: int, stride: int, size: tuple[int, int], epilogue: str
) -> None:
    groups = 4 if kind == "dwconv" else 1
    key = f"{kind}_k{kernel}_s{stride}_g{groups}_4x{size[0]}x{size[1]}_4{epilogue}"
    program = Program.of(piece_from_key(key), np.random.default_rng(0))
    if kind == "deconv" and stride > kernel:
        with pytest.raises(UnavailableError, match=key.replace("+", r"\+")):
            write_tflite(program)
        return
    with LITERT.prepare(program, 1) as prepared:
        (y,) = prepared.outputs()
    np.testing.assert_allclose(y, reference(program), rtol=1e-4, atol=5e-5)


def test_a_grouped_transposed_convolution_is_refused_by_name() -> None:
    layer = Layer.from_key("deconv_k4_s2_g2_8x5x5_8")
    with (
        pytest.raises(UnavailableError, match="groups, so deconv_k4_s2_g2_8x5x5_8"),
        LITERT.prepare(layer, 1),
    ):
        pass  # pragma: no cover


def test_everything_runs_in_the_delegate() -> None:
    """XNNPACK takes all of a block, but for hard-swish in int8; nothing else is left to slower kernels."""
    from latency_tables.runtimes.litert_runtime import _interpreter, _written

    for key in BLOCKS:
        for precision in LITERT.precisions:
            program = Program.of(piece_from_key(key))
            interpreter = _interpreter(_written(program, precision), 1)
            names = [detail["op_name"] for detail in interpreter._get_ops_details()]
            left = names.count("HARD_SWISH") if precision == "int8" else 0
            assert names.count("DELEGATE") == 1 + left
            assert names[-1] == "DELEGATE"  # appended behind all that it replaces


# -- int8 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*KEYS, *BLOCKS])
def test_int8_computes_the_piece_to_a_few_steps_of_its_scale(key: str) -> None:
    program = Program.of(piece_from_key(key), np.random.default_rng(1))
    with LITERT.prepare(program, 1, "int8") as prepared:
        (y,) = prepared.outputs()
    wanted = reference(program)
    step = (max(wanted.max(), 0) - min(wanted.min(), 0)) / 255
    # Each layer rounds once, and an addition has a scale of its own: measured, 3.2 steps at most.
    assert np.abs(y - wanted).max() < 5 * step
    assert np.sqrt(np.mean((y - wanted) ** 2)) < 1.5 * step
    # It is int8: no more than 256 values, all of them whole steps apart.
    assert len(np.unique(y)) <= 256


def test_int8_weights_have_a_scale_per_channel() -> None:
    """One loud channel does not drown the others."""
    program = Program.of(Layer.from_key("conv_k1_s1_g1_16x8x8_8"), np.random.default_rng(0))
    (step,) = program.steps
    step.weight[0] *= 100
    with LITERT.prepare(program, 1, "int8") as prepared:
        (y,) = prepared.outputs()
    wanted = reference(program)
    output_step = np.ptp(wanted) / 255
    assert np.abs(y - wanted)[:, 1:].max() < 0.75 * output_step


@given(low=st.floats(-1e3, 1e3), high=st.floats(-1e3, 1e3))
def test_a_range_is_held_with_zero_exact(low: float, high: float) -> None:
    low, high = sorted((low, high))
    quantisation = range_quantisation(low, high)
    ends = np.array([low, 0.0, high], dtype=np.float32)
    held = quantisation.real(quantisation.store(ends))
    assert held[1] == 0
    assert np.abs(held - ends).max() <= quantisation.scale * 0.5001 + 1e-6 * np.abs(ends).max()


def test_storing_saturates() -> None:
    stored = Quantisation(0.5, 3).store(np.array([-1e6, 0.0, 1.0, 1e6], dtype=np.float32))
    assert stored.tolist() == [-128, 3, 5, 127]


# -- whole networks ------------------------------------------------------------------------------------


def weights_of(net: Any, arch: Arch) -> Weights:
    """Return a torch network's numbers, normalisation folded."""
    folded = fold_batchnorm(net)
    found = {}
    for layer in arch.layers(net.joints):
        for name in weight_names(layer):
            conv = folded.get_submodule(name)
            bias = None if conv.bias is None else conv.bias.detach().numpy()
            found[name] = (conv.weight.detach().numpy(), bias)
    return found


def stirred(arch: Arch, joints: int = 5) -> Any:
    """Return a random network whose norms and biases are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    net = build_network(arch, joints, torch.Generator().manual_seed(0)).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.bias, 0.3, 0.5, generator=generator)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.2, generator=generator)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
    return net


def run(path: Path, size: tuple[int, int], precision: str = "fp32") -> tuple[Any, ...]:
    with LITERT.prepare_model(path, size, 1, precision) as prepared:
        return prepared.outputs()


@pytest.mark.parametrize("size", [(64, 64), (75, 90)])  # odd sizes are cropped in the head
@pytest.mark.parametrize("deconv_kernel", [4, 3, 2])
def test_the_written_network_is_the_torch_network(
    tmp_path: Path, size: tuple[int, int], deconv_kernel: int
) -> None:
    values = SMALL.as_dict() | {f"head.deconv{i}.kernel": deconv_kernel for i in range(3)}
    arch = SMALL.family.arch(values)
    net = build_network(arch, 5, torch.Generator().manual_seed(0)).eval()
    program = network_program(arch, 5, size, weights=weights_of(net, arch))
    path = write_network(program, tmp_path / "network.tflite")
    # prepare_model's picture is that of a generator seeded with 0, as is the program's.
    outputs = run(path, size)
    with torch.no_grad():
        wanted = [y.numpy() for y in net(torch.from_numpy(program.inputs[0]))]
    assert [y.shape for y in outputs] == [y.shape for y in wanted]
    for y, expected in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(y, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", list(SMALL_DECONV))
def test_deconv_networks_are_written_as_torch_computes_them(tmp_path: Path, name: str) -> None:
    arch = SMALL_DECONV[name]
    net = stirred(arch)
    program = network_program(arch, 5, weights=weights_of(net, arch))
    assert program.inputs[0].shape == (1, 3, *arch.size)
    (y,) = run(write_network(program, tmp_path / "network.tflite"), arch.size)
    with torch.no_grad():
        (wanted,) = (y.numpy() for y in net(torch.from_numpy(program.inputs[0])))
    stride = arch.family.heatmap_stride(arch.as_dict())
    assert y.shape == wanted.shape == (1, 5, *(side // stride for side in arch.size))
    np.testing.assert_allclose(y, wanted, atol=2e-4 * np.abs(wanted).max())


def test_deconv_networks_in_int8(tmp_path: Path) -> None:
    for name, arch in SMALL_DECONV.items():
        program = network_program(arch, 5, weights=weights_of(stirred(arch), arch))
        paths = {p: write_network(program, tmp_path / f"{name}-{p}.tflite", p) for p in ("fp32", "int8")}
        (y,), (wanted,) = run(paths["int8"], arch.size, "int8"), run(paths["fp32"], arch.size)
        assert np.corrcoef(y.ravel(), wanted.ravel())[0, 1] > 0.98


def test_a_whole_network_in_int8(tmp_path: Path) -> None:
    program = network_program(SMALL, 5)
    paths = {p: write_network(program, tmp_path / f"{p}.tflite", p) for p in ("fp32", "int8")}
    assert paths["int8"].stat().st_size < 0.6 * paths["fp32"].stat().st_size
    for y, wanted in zip(run(paths["int8"], SMALL.size, "int8"), run(paths["fp32"], SMALL.size), strict=True):
        # Random weights through some thirty roundings: like, not equal.
        assert np.corrcoef(y.ravel(), wanted.ravel())[0, 1] > 0.98
    paths["fp16"] = write_network(program, tmp_path / "fp16.tflite", "fp16")
    for held, asked in (("fp32", "int8"), ("int8", "fp32"), ("fp16", "fp32"), ("fp32", "fp16")):
        with pytest.raises(InputError, match=rf"is in {held}, so .*'{asked}': nothing is converted"):
            measure_model(LITERT, paths[held], SMALL.size, 1, precision=asked)


def calibrated(arch: Arch) -> tuple[Program, dict[int, Range]]:
    """A network that was stirred, and its ranges over a few pictures."""
    if reason := RUNTIMES["onnxruntime"].unavailable():
        pytest.skip(reason)
    program = network_program(arch, 5, weights=weights_of(stirred(arch), arch))
    rng = np.random.default_rng(4)
    pictures = [rng.standard_normal(program.inputs[0].shape, dtype=np.float32) for _ in range(3)]
    return program, value_ranges(program, pictures)


@pytest.mark.parametrize("arch", [SMALL, SMALL_DECONV["mbv3"]], ids=["litepose", "deconv-mbv3"])
def test_weights_in_sixteen_bits(tmp_path: Path, arch: Arch) -> None:
    program = network_program(arch, 5, weights=weights_of(stirred(arch), arch))
    paths = {p: write_network(program, tmp_path / f"{p}.tflite", p) for p in ("fp32", "fp16")}
    assert 0.5 < paths["fp16"].stat().st_size / paths["fp32"].stat().st_size < 0.75
    found, wanted = run(paths["fp16"], arch.size, "fp16"), run(paths["fp32"], arch.size)
    for y, expected in zip(found, wanted, strict=True):
        assert 0 < np.abs(y - expected).max() < 5e-3 * np.abs(expected).max()
    held = {t.type for t in tensors(paths["fp16"]) if t.buffer and len(t.shape) == 4}
    assert len(held) == 1 + (arch is not SMALL)  # numbers of gates stay in 32 bits


def test_weights_that_sixteen_bits_do_not_hold_are_named(tmp_path: Path) -> None:
    weights = dict(weights_of(stirred(SMALL), SMALL))
    weight, bias = weights["stem.conv"]
    weights["stem.conv"] = weight * np.float32(1e6), bias
    with pytest.raises(InputError, match=r"layer 'stem\.conv' has weights up to .* 16 bits do not hold"):
        write_network(network_program(SMALL, 5, weights=weights), tmp_path / "network.tflite", "fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", [SMALL, SMALL_DECONV["mbv3"]], ids=["litepose", "deconv-mbv3"])
def test_given_ranges_are_those_of_the_file(tmp_path: Path, arch: Arch) -> None:
    program, ranges = calibrated(arch)
    path = write_network(program, tmp_path / "network.tflite", "int8", ranges)
    steps = {t.name.decode(): t.quantization.scale for t in tensors(path) if t.quantization is not None}
    for number in range(1 + len(program.steps)):
        low, high = ranges[number]
        wanted = (max(high, 0) - min(low, 0)) / 255
        assert steps[f"value{number}"][0] == pytest.approx(wanted, rel=1e-5)
    floats = run(write_network(program, tmp_path / "fp32.tflite"), arch.size)
    for y, wanted in zip(run(path, arch.size, "int8"), floats, strict=True):
        assert np.corrcoef(y.ravel(), wanted.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("arch", [SMALL, SMALL_DECONV["mbv3"]], ids=["litepose", "deconv-mbv3"])
def test_layers_are_kept_in_float(tmp_path: Path, arch: Arch) -> None:
    """One in the middle is converted around; with all of them kept only the picture is in 8 bits."""
    program, ranges = calibrated(arch)
    names = [step.layer.name for step in program.steps]
    floats = run(write_network(program, tmp_path / "fp32.tflite"), arch.size)

    def error(keep: list[str]) -> float:
        path = write_network(program, tmp_path / "network.tflite", "int8", ranges, keep)
        found = run(path, arch.size, "int8")
        return max(
            float(np.abs(y - wanted).max() / np.abs(wanted).max())
            for y, wanted in zip(found, floats, strict=True)
        )

    all_but_the_picture = error(names)
    count = Counter(operators((tmp_path / "network.tflite").read_bytes()))
    assert (count["DEQUANTIZE"], count["QUANTIZE"]) == (1, 0)
    nothing_kept = error([])
    assert Counter(operators((tmp_path / "network.tflite").read_bytes()))["DEQUANTIZE"] == 0
    assert all_but_the_picture < 0.03 < nothing_kept
    middle = next(step.layer.name for step in program.steps[5:] if step.layer.kind == "dwconv")
    error([middle])
    count = Counter(operators((tmp_path / "network.tflite").read_bytes()))
    assert (count["DEQUANTIZE"], count["QUANTIZE"]) == (1, 1)
    assert error([name for name in names if name != middle]) < nothing_kept


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    program, ranges = calibrated(SMALL)
    path = tmp_path / "network.tflite"
    with pytest.raises(InputError, match=r"no layer 'stem\.convs'; did you mean 'stem\.conv'"):
        write_network(program, path, "int8", ranges, ["stem.convs"])
    with pytest.raises(InputError, match="in fp16 none computes in 8 bits"):
        write_network(program, path, "fp16", keep=["stem.conv"])
    with pytest.raises(InputError, match=r"the output of layer 'stem\.conv' .* is missing"):
        write_network(program, path, "int8", {0: (0.0, 1.0)})
    assert not list(tmp_path.iterdir())


def tensors(path: Path) -> list[Any]:
    """Return the tensors of a file."""
    from ai_edge_litert import schema_py_generated as schema

    found: list[Any] = schema.ModelT.InitFromPackedBuf(path.read_bytes()).subgraphs[0].tensors
    return found


def test_the_program_has_the_operators_and_macs_of_the_network() -> None:
    net = build_network(SMALL, 5, torch.Generator().manual_seed(0))
    kinds = Counter(type(module) for module in net.modules())
    program = network_program(SMALL, 5)
    own = Counter(operators(write_tflite(program)))
    assert own["CONV_2D"] + own["DEPTHWISE_CONV_2D"] == kinds[torch.nn.Conv2d] == 29
    assert own["TRANSPOSE_CONV"] == kinds[torch.nn.ConvTranspose2d] == 6
    # Three residuals, three deconv steps, two outputs; even maps and kernels of 4 need no cut.
    assert (own["ADD"], own["SLICE"]) == (3 + 3 + 2, 0)
    # The stem and the first block of three stages halve an even map with an odd kernel.
    assert own["PAD"] == 4
    assert sum(own.values()) == 29 + 6 + 8 + 4
    assert sum(step.layer.macs for step in program.steps) == SMALL.cost(5).macs


@pytest.mark.parametrize(
    "space",
    [
        litepose_extended(joints=3, resolutions=(75,)),
        deconv_mbv2(3, resolutions=(96,), multipliers=(0.25,), deconvs=[2, 3]),
        deconv_mbv3(3, resolutions=(96,), multipliers=(0.5,), deconvs=2, expansions=(50, 100)),
    ],
    ids=["litepose", "deconv-mbv2", "deconv-mbv3"],
)
def test_every_step_reads_what_it_takes(space: SearchSpace) -> None:
    """In any network of a space: channels agree, and maps are at least as large as what is read of them."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        arch = space.sample(rng)
        program = network_program(arch, 3, rng=rng)
        assert [step.layer for step in program.steps] == list(arch.layers(3))
        shapes = [(3, *arch.size)] + [
            (layer.c_out, layer.h_out, layer.w_out) for layer in (step.layer for step in program.steps)
        ]
        for number, step in enumerate(program.steps, 1):
            layer = step.layer
            channels, *size = shapes[step.x]
            assert step.x < number
            assert channels == layer.c_in
            assert size[0] - layer.h_in in (0, 1)
            assert size[1] - layer.w_in in (0, 1)
            assert (step.other is not None) == layer.add
            if step.other is not None:
                assert shapes[step.other] == shapes[number]


def test_weights_of_gates_that_do_not_fit_are_named() -> None:
    arch = SMALL_DECONV["mbv3"]
    weights = weights_of(stirred(arch), arch)
    lacking = {name: value for name, value in weights.items() if name != "stage2.block1.se.expand"}
    with pytest.raises(InputError, match=r"lack the layer 'stage2\.block1\.se\.expand'"):
        network_program(arch, 5, weights=lacking)
    weight, _ = weights["stage4.block0.se.expand"]
    with pytest.raises(InputError, match=r"bias of the layer 'stage4\.block0\.se\.expand' is \d+, not none"):
        network_program(arch, 5, weights={**weights, "stage4.block0.se.expand": (weight, None)})


def test_weights_that_do_not_fit_are_named() -> None:
    weights = weights_of(build_network(SMALL, 5, torch.Generator().manual_seed(0)).eval(), SMALL)
    lacking = {name: value for name, value in weights.items() if name != "stage2.block0.expand"}
    with pytest.raises(InputError, match=r"lack the layer 'stage2\.block0\.expand'"):
        network_program(SMALL, 5, weights=lacking)
    weight, bias = weights["stem.conv"]
    with pytest.raises(InputError, match=r"weight of the layer 'stem.conv' is 32x3x3x3, not 31x3x3x3"):
        network_program(SMALL, 5, weights={**weights, "stem.conv": (weight[1:], bias)})
    with pytest.raises(InputError, match=r"bias of the layer 'stem.conv' is 32, not none"):
        network_program(SMALL, 5, weights={**weights, "stem.conv": (weight, None)})


# -- files ---------------------------------------------------------------------------------------------


def test_damaged_files_are_refused_and_do_not_crash(tmp_path: Path) -> None:
    content = write_network(network_program(SMALL, 5), tmp_path / "whole.tflite").read_bytes()
    path = tmp_path / "network.tflite"
    rng = np.random.default_rng(0)
    for damaged in (b"", b"TFL3", b"\0" * 64, *(content[:n] for n in rng.integers(8, len(content) - 1, 12))):
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"network\.tflite' is no TensorFlow Lite file, or a damaged one"
        ):
            measure_model(LITERT, path, SMALL.size, 1)


def test_an_unknown_operator_is_told(tmp_path: Path) -> None:
    from latency_tables.runtimes.tflite_writer import _Graph

    graph = _Graph(None)
    x, y = (graph.value(name, (1, 8, 8, 3)) for name in "xy")
    graph.operator("RELU", [x], y, version=99)
    path = tmp_path / "network.tflite"
    path.write_bytes(graph.file([x], [y]))
    with pytest.raises(InputError, match=r"does not run in LiteRT: .*RELU") as caught:
        measure_model(LITERT, path, (8, 8), 1)
    assert "\n" not in str(caught.value)


def test_layers_are_all_translated() -> None:
    """Of a whole space, whatever kernels and depths it holds."""
    space = litepose_extended(joints=3, resolutions=(64,))
    rng = np.random.default_rng(0)
    blocks = space.distinct_blocks()
    for i in rng.permutation(len(blocks))[:60]:
        content = write_tflite(Program.of(blocks[i]))
        counted = Counter(operators(content))
        convolutions = counted["CONV_2D"] + counted["DEPTHWISE_CONV_2D"] + counted["TRANSPOSE_CONV"]
        assert convolutions == len(layers_of(blocks[i]))
