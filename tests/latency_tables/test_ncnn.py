"""ncnn beyond the runtimes' contract: the layers written, whole networks, files, the converter."""

from __future__ import annotations

import importlib.util
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from latency_tables import RUNTIMES, measure_model
from latency_tables.networks import network_program
from latency_tables.runtimes import Program, Step, ncnn_runtime, onnx_runtime
from search_spaces import InputError, Layer, UnavailableError, piece_from_key
from supernet.registry import build_network
from tests.latency_tables.test_litert import SMALL, SMALL_DECONV, calibrated, stirred, weights_of
from tests.latency_tables.test_runtimes import BLOCKS, layer_reference, needs, save_doubler

NCNN = RUNTIMES["ncnn"]
pytestmark = pytest.mark.skipif(NCNN.unavailable() is not None, reason="ncnn is not installed")


# -- pieces --------------------------------------------------------------------------------------------


def test_blocks_are_the_layers_that_its_converter_writes(tmp_path: Path) -> None:
    """Operators and parameters of a block alone are those of the same block within a converted network."""
    needs("pnnx")
    for key in (BLOCKS[0], BLOCKS[1], BLOCKS[3], *BLOCKS[5:]):
        program = Program.of(piece_from_key(key))
        built, numbers = ncnn_runtime.program_network(program)
        path = tmp_path / "network.onnx"
        model, _ = onnx_runtime.program_model(program, neighbours=False)
        onnx.save(model, path)
        shapes = ",".join(f"[1,{x.shape[1]},{x.shape[2]},{x.shape[3]}]" for x in program.inputs)
        command = [str(ncnn_runtime._converter()), path.name, f"inputshape={shapes}", "fp16=0"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        converted = (tmp_path / "network.ncnn.param").read_text()
        assert parameters(built) == parameters(converted)
        assert len(numbers) == (tmp_path / "network.ncnn.bin").stat().st_size


def parameters(text: str) -> list[tuple[str, list[str]]]:
    """The layers of an ncnn network, sorted: operator, and its parameters but for defaults.

    Inputs, whose shapes only our own files state, are left out.
    """
    rows = [line.split() for line in text.splitlines()[2:] if not line.startswith("Input")]
    default = {"11", "12", "13", "14", "15", "16", "18=0", "19=0", "2=1", "5=0", "1=6.000000e+00", "0=0"}
    found = []
    for operator, _, inputs, outputs, *rest in rows:
        given = [word.replace("6.000000e+00", "6.0") for word in rest[int(inputs) + int(outputs) :]]
        kept = [w for w in given if w not in default and w.partition("=")[0] not in default]
        found.append((operator, sorted(kept)))
    return sorted(found)


def test_it_times_its_own_files(tmp_path: Path) -> None:
    program = Program.of(piece_from_key(BLOCKS[0]))
    text, numbers = ncnn_runtime.program_network(program)
    path = tmp_path / "network.param"
    path.write_text(text)
    with pytest.raises(InputError, match=r"'network\.bin' beside it"):
        measure_model(NCNN, path, (16, 24), 1)
    path.with_suffix(".bin").write_bytes(numbers)
    assert measure_model(NCNN, path, (16, 24), 1, seconds=0.02).median_ms > 0
    path.write_text(text.replace("ConvolutionDepthWise", "Nonsense"))
    with pytest.raises(InputError, match=r"does not run in ncnn.*Nonsense"):
        measure_model(NCNN, path, (16, 24), 1)
    with pytest.raises(InputError, match=r"\.param files.*\.onnx"):
        path.rename(tmp_path / "network.mnn")
        measure_model(NCNN, tmp_path / "network.mnn", (16, 24), 1)


# -- whole networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (75, 90)])  # odd sizes are cropped in the head
@pytest.mark.parametrize("deconv_kernel", [4, 3, 2])
def test_the_written_network_is_the_torch_network(
    tmp_path: Path, size: tuple[int, int], deconv_kernel: int
) -> None:
    values = SMALL.as_dict() | {f"head.deconv{i}.kernel": deconv_kernel for i in range(3)}
    arch = SMALL.family.arch(values)
    net = build_network(arch, 5, torch.Generator().manual_seed(0)).eval()
    program = network_program(arch, 5, size, weights=weights_of(net, arch))
    path = ncnn_runtime.write_network(program, tmp_path / "network.param")
    # prepare_model's picture is that of a generator seeded with 0, as is the program's.
    with NCNN.prepare_model(path, size, 1) as prepared:
        outputs = prepared.outputs()
    with torch.no_grad():
        wanted = [y.numpy() for y in net(torch.from_numpy(program.inputs[0]))]
    assert [y.shape for y in outputs] == [y.shape for y in wanted]
    for y, expected in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", list(SMALL_DECONV))
def test_deconv_networks_are_written_as_torch_computes_them(tmp_path: Path, name: str) -> None:
    arch = SMALL_DECONV[name]
    net = stirred(arch)
    program = network_program(arch, 5, weights=weights_of(net, arch))
    path = ncnn_runtime.write_network(program, tmp_path / "network.param")
    with NCNN.prepare_model(path, arch.size, 1) as prepared:
        (y,) = prepared.outputs()
    with torch.no_grad():
        (wanted,) = (y.numpy() for y in net(torch.from_numpy(program.inputs[0])))
    np.testing.assert_allclose(y, wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_part_that_several_read_is_cropped_once() -> None:
    """Values are read whole, in parts of two sizes and as an output, by one or by several."""
    program = Program.of(Layer.from_key("conv_k1_s1_g1_8x9x9_8+bn"), np.random.default_rng(0))
    wide = Program.of(Layer.from_key("conv_k1_s1_g1_8x9x9_8+bn"), np.random.default_rng(1)).steps[0]
    part = Program.of(Layer.from_key("conv_k3_s1_g1_8x8x9_8+add+bn+relu6"), np.random.default_rng(2)).steps[0]
    (first,) = program.steps
    steps = (first, reading(wide, 1), reading(part, 1, 1), reading(part, 2, 1), reading(part, 3, 3))
    program = Program(program.inputs, steps, outputs=(1, 3, 4, 5))
    text, _ = ncnn_runtime.program_network(program)
    rows = [line.split() for line in text.splitlines()[2:]]
    assert [row[0] for row in rows].count("Crop") == 2  # the second step's output, and the first's
    values = [x.astype(np.float64) for x in program.inputs]
    for step in steps:
        layer = step.layer
        x, other = (
            None if number is None else values[number][..., : size[0], : size[1]]
            for number, size in (
                (step.x, (layer.h_in, layer.w_in)),
                (step.other, (layer.h_out, layer.w_out)),
            )
        )
        assert x is not None
        values.append(layer_reference(step, x[0], other))
    with NCNN.prepare(program, 1) as prepared:
        outputs = prepared.outputs()
    for number, y in zip(program.outputs, outputs, strict=True):
        np.testing.assert_allclose(y, values[number], rtol=1e-4, atol=5e-5)


def reading(step: Step, x: int, other: int | None = None) -> Step:
    """The step with other sources."""
    return Step(step.layer, step.weight, step.bias, x, other)


def test_a_written_network_states_its_size(tmp_path: Path) -> None:
    path = ncnn_runtime.write_network(network_program(SMALL, 5), tmp_path / "network.param")
    with pytest.raises(InputError, match=r"takes 3x64x64, not one picture of 3x64x96: state its size"):
        measure_model(NCNN, path, (64, 96), 1)


# -- 16 and 8 bits -------------------------------------------------------------------------------------

NETWORKS = {"litepose": SMALL, "deconv-mbv2": SMALL_DECONV["mbv2"], "deconv-mbv3": SMALL_DECONV["mbv3"]}


def outputs(path: Path, size: tuple[int, int], precision: str) -> tuple[Any, ...]:
    with NCNN.prepare_model(path, size, 1, precision) as prepared:
        found = prepared.outputs()
        assert prepared.feed is not None
        assert prepared.fetch is not None
        prepared.feed(np.zeros((1, 3, *size), dtype=np.float32))
        prepared.run()
        assert any((a != b).any() for a, b in zip(prepared.fetch(), found, strict=True))
    return found


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_in_sixteen_and_eight_bits(tmp_path: Path, name: str) -> None:
    arch = NETWORKS[name]
    program, ranges = calibrated(arch)
    paths = {
        precision: ncnn_runtime.write_network(program, tmp_path / f"{precision}.param", precision, given)
        for precision, given in (("fp32", None), ("fp16", None), ("int8", ranges))
    }
    sizes = {precision: path.with_suffix(".bin").stat().st_size for precision, path in paths.items()}
    assert sizes["int8"] < sizes["fp16"] < 0.6 * sizes["fp32"]
    wanted = outputs(paths["fp32"], arch.size, "fp32")
    for y, expected in zip(outputs(paths["fp16"], arch.size, "fp16"), wanted, strict=True):
        assert 0 < np.abs(y - expected).max() < 5e-3 * np.abs(expected).max()
    for y, expected in zip(outputs(paths["int8"], arch.size, "int8"), wanted, strict=True):
        assert np.corrcoef(y.ravel(), expected.ravel())[0, 1] > 0.95
    every = [step.layer.name for step in program.steps]
    path = ncnn_runtime.write_network(program, tmp_path / "kept.param", "int8", ranges, every[1:])
    assert path.read_text().count(" 8=") == 1  # a file without any would not be one in int8
    errors = [
        max(np.abs(y - x).max() / np.abs(x).max() for y, x in zip(found, wanted, strict=True))
        for found in (outputs(path, arch.size, "int8"), outputs(paths["int8"], arch.size, "int8"))
    ]
    assert errors[0] < min(0.03, errors[1])


def eight_bits(step: Step, x: Any, step_x: float) -> Any:
    """A convolution's outcome from integers, in float64, by its definition."""
    layer = step.layer
    most = 31 if (layer.kernel, layer.stride, layer.groups) == (3, 1, 1) else 127
    scale = most / np.abs(step.weight).reshape(step.layer.c_out, -1).max(axis=1).astype(np.float64)
    along = scale[:, None, None, None]
    weight = np.rint(step.weight * along) / along
    stored = np.clip(np.rint(x[0] / step_x), -127, 127) * step_x
    return layer_reference(replace(step, weight=weight), stored, None)


@pytest.mark.parametrize(
    "key",
    [
        "conv_k1_s1_g1_64x6x5_24+bn+relu6",
        "conv_k1_s1_g1_20x7x5_7+bias",
        "conv_k3_s1_g1_32x9x8_32+bn+relu",  # what ncnn computes by Winograd's algorithm
        "conv_k3_s1_g1_16x30x25_64+bn",
        "conv_k3_s2_g1_3x16x16_16+bn+relu6",
        "dwconv_k7_s1_g48_48x9x7_48+bn",
        "dwconv_k3_s2_g8_8x9x9_8+bn",
    ],
)
def test_eight_bits_are_summed_without_overflow(key: str) -> None:
    """As the largest numbers show best, which 16 bits would not hold; what is written is what is meant."""
    given = Program.of(piece_from_key(key), np.random.default_rng(1))
    (step,) = given.steps
    most = np.abs(step.weight).reshape(step.layer.c_out, -1).max(axis=1)[:, None, None, None]
    largest = replace(step, weight=np.broadcast_to(most, step.weight.shape).astype(np.float32))
    for now, x in ((step, given.inputs[0]), (largest, np.full_like(given.inputs[0], 1.5))):
        program = Program((x,), (now,))
        with NCNN.prepare(program, 1, "int8") as prepared:
            (y,) = prepared.outputs()
        wanted = eight_bits(now, x, float(np.abs(x).max()) / 127)
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=2e-4 * np.abs(wanted).max())


def test_eight_bits_are_handed_from_convolution_to_convolution() -> None:
    """Not to what adds, crops or gives out what they computed, nor to a layer in floats."""
    program = Program.of(piece_from_key(BLOCKS[1]))
    ranges = dict.fromkeys(range(4), (-1.0, 2.0))
    assert terms(ncnn_runtime.program_network(program, ranges=ranges)[0]) == ["102", "101", "2"]
    kept = ncnn_runtime.program_network(program, ranges=ranges, keep=[1])[0]
    assert terms(kept) == ["2", None, "2"]
    outside = replace(program, outputs=(1, 3))
    assert terms(ncnn_runtime.program_network(outside, ranges=ranges)[0]) == ["2", "101", "2"]
    hard = Program.of(piece_from_key(BLOCKS[7]))  # hard-swish is no part of a convolution, nor is a gate
    ranges = dict.fromkeys(range(5), (-1.0, 2.0))
    assert terms(ncnn_runtime.program_network(hard, ranges=ranges)[0]) == ["2", "1", None, None, "2"]


def terms(text: str) -> list[str | None]:
    """Return the form of scales of every convolution."""
    rows = [line.split() for line in text.splitlines() if line.startswith("Convolution")]
    return [next((word[2:] for word in row if word.startswith("8=")), None) for row in rows]


def test_files_are_not_timed_in_what_they_are_not(tmp_path: Path) -> None:
    program = network_program(SMALL, 5)
    for held, asked in (("int8", "fp32"), ("int8", "fp16"), ("fp32", "int8"), ("fp16", "int8")):
        path = ncnn_runtime.write_network(program, tmp_path / f"{held}.param", held)
        with pytest.raises(InputError, match=rf"not timed in '{asked}'"):
            measure_model(NCNN, path, SMALL.size, 1, precision=asked)
    # Weights in 16 bits are widened, and those in 32 rounded, as ncnn's options say.
    path = ncnn_runtime.write_network(program, tmp_path / "fp16.param", "fp16")
    assert measure_model(NCNN, path, SMALL.size, 1, seconds=0.01).median_ms > 0
    save_doubler("ncnn", tmp_path / "network.onnx")
    with pytest.raises(InputError, match=r"\.param files in int8"):
        measure_model(NCNN, tmp_path / "network.onnx", (8, 12), 1, precision="int8")


def test_files_are_written_without_ncnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, ranges = calibrated(SMALL)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ncnn" else find_spec(name))
    for precision, given in (("fp32", None), ("fp16", None), ("int8", ranges)):
        ncnn_runtime.write_network(program, tmp_path / f"{precision}.param", precision, given)
    with pytest.raises(UnavailableError, match=r"pip install 'litepose-nas\[ncnn\]'"):
        ncnn_runtime.write_network(program, tmp_path / "own.param", "int8")
    assert len(list(tmp_path.iterdir())) == 6


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    program, ranges = calibrated(SMALL)
    path = tmp_path / "network.param"
    with pytest.raises(InputError, match=r"no layer 'stem\.convs'; did you mean 'stem\.conv'"):
        ncnn_runtime.write_network(program, path, "int8", ranges, ["stem.convs"])
    with pytest.raises(InputError, match="in fp32 none computes in 8 bits"):
        ncnn_runtime.write_network(program, path, keep=["stem.conv"])
    with pytest.raises(InputError, match=r"'stem\.conv' .* is missing"):
        ncnn_runtime.write_network(program, path, "int8", {0: (0.0, 1.0)})
    with pytest.raises(InputError, match="fp32, fp16, int8, not 'int4'"):
        ncnn_runtime.write_network(program, path, "int4")
    weights = dict(weights_of(stirred(SMALL), SMALL))
    weights["stem.conv"] = weights["stem.conv"][0] * np.float32(1e6), weights["stem.conv"][1]
    with pytest.raises(InputError, match=r"layer 'stem\.conv' has weights up to .* 16 bits do not hold"):
        ncnn_runtime.write_network(network_program(SMALL, 5, weights=weights), path, "fp16")
    assert not list(tmp_path.iterdir())


# -- the converter -------------------------------------------------------------------------------------


def test_ncnn_without_its_converter_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_doubler("ncnn", tmp_path / "network.onnx")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pnnx" else find_spec(name))
    with pytest.raises(UnavailableError, match="pip install pnnx"):
        measure_model(NCNN, tmp_path / "network.onnx", (8, 12), 1)


def test_a_network_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is visited; anew, if another one is written there."""
    needs("pnnx")
    commands: list[Any] = []
    run = subprocess.run

    def counting(command: Any, **settings: Any) -> Any:
        commands.append(command)
        return run(command, **settings)

    monkeypatch.setattr(subprocess, "run", counting)
    path = tmp_path / "network.onnx"
    for number, seed in enumerate((0, 0, 1), 1):
        program = Program.of(piece_from_key(BLOCKS[0]), np.random.default_rng(seed))
        onnx.save(onnx_runtime.program_model(program, neighbours=False)[0], path)
        with NCNN.prepare_model(path, (16, 24), 1) as prepared:
            prepared.run()
        assert len(commands) == (1 if number < 3 else 2)
