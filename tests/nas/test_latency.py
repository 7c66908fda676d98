"""What whole networks are timed from: files written from the arch, in place of an export."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from latency_tables import RUNTIMES, Target, measure_model
from latency_tables.runtimes import int8, ncnn_runtime, onnx_runtime
from nas.latency import network_file, random_network, runnable
from search_spaces import Arch, litepose_arch
from tests.latency_tables.test_litert import SMALL_DECONV
from tests.latency_tables.test_ncnn import parameters
from tests.latency_tables.test_runtimes import needs

ARCH = litepose_arch(
    64, 8, (8, 16, 16, 24), (16, 8, 16), depths=(1, 2, 1, 1), kernels=(7, 5, 3, 7), expansions=2
)


def operators(path: Path) -> Counter[str]:
    """What ONNX Runtime executes of a file, once it is optimised."""
    return Counter(node.op_type for node in onnx_runtime._optimised(onnx.load(path)).graph.node)


ARCHS = {
    "litepose": ARCH,
    **{name: each.replace(resolution=128) for name, each in SMALL_DECONV.items()},
    "cropped": SMALL_DECONV["mbv3"],
}


@pytest.fixture(scope="module", params=list(ARCHS))
def arch(request: pytest.FixtureRequest) -> Arch:
    return ARCHS[request.param]


@pytest.fixture(scope="module")
def exported(arch: Arch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network, generator = random_network(arch, 14), torch.Generator().manual_seed(1)
    for module in network.modules():
        bias = module.bias if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Conv2d) else None
        if bias is not None:  # as if trained: a bias of zeros would be left out
            torch.nn.init.normal_(bias, generator=generator)
    return runnable("onnxruntime", network, tmp_path_factory.mktemp("networks") / "exported")


def test_a_network_written_from_its_arch_executes_what_an_export_does(
    arch: Arch, exported: Path, tmp_path: Path
) -> None:
    target = Target("this-machine", "a processor", "onnxruntime")
    written = network_file(target, arch, 14, tmp_path)
    assert operators(written) == operators(exported)
    shapes = []
    for path in (written, exported):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        found = session.run(None, {given.name: np.zeros((1, 3, *arch.size), np.float32)})
        shapes.append(sorted(y.shape for y in found))
    assert shapes[0] == shapes[1]
    if arch == ARCH:
        assert shapes[0] == [(1, 14, 32, 32), (1, 28, 16, 16)]
    else:
        last = arch.layers(14)[-1]
        assert shapes[0] == [(1, 14, last.h_out, last.w_out)]


def test_a_network_written_for_ncnn_has_the_layers_of_a_converted_export(
    arch: Arch, exported: Path, tmp_path: Path
) -> None:
    """Operators and parameters are those that ncnn's own converter writes."""
    needs("pnnx")
    if arch == ARCHS["cropped"]:
        pytest.skip("torch crops between a deconv step and its ReLU, which pnnx then leaves on its own")
    written = network_file(Target("this-machine", "a processor", "ncnn"), arch, 14, tmp_path)
    converted, numbers = ncnn_runtime._converted(exported, arch.size)
    assert parameters(written.read_text()) == parameters(converted)
    assert written.with_suffix(".bin").stat().st_size == len(numbers)


@pytest.mark.parametrize(
    ("runtime", "suffix"),
    [("onnxruntime", ".onnx"), ("openvino", ".onnx"), ("ncnn", ".param"), ("litert", ".tflite")],
)
def test_files_are_in_the_form_that_the_runtime_reads(runtime: str, suffix: str, tmp_path: Path) -> None:
    path = network_file(Target("this-machine", "a processor", runtime), ARCH, 14, tmp_path)
    assert path.suffix == suffix and path.is_file()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_in_int8_are_quantised_when_they_are_written(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := RUNTIMES[runtime].unavailable():
        pytest.skip(reason)
    path = network_file(Target("this-machine", "a processor", runtime, "int8"), ARCH, 14, tmp_path)
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["DequantizeLinear"] > kinds["Conv"] > 0
    monkeypatch.setattr(int8, "quantised", None)  # not called any more
    assert measure_model(RUNTIMES[runtime], path, (64, 64), 1, precision="int8", seconds=0.02).median_ms > 0
