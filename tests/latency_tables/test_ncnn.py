"""ncnn beyond the runtimes' contract: the layers written, whole networks, files, the converter."""

from __future__ import annotations

import importlib.util
import subprocess
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
from tests.latency_tables.test_litert import SMALL, SMALL_DECONV, stirred, weights_of
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
