"""Exported networks: ONNX Runtime and the folded network equal torch."""

import copy
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces import InputError, RunError, arch_from_json, get_arch, litepose_arch
from supernet.export import OPSET, export_onnx, fold_batchnorm
from supernet.registry import build_network, build_supernet
from tests.supernet.networks import DECONVS, SPACES, edge_archs, images, randomise, relative_error, settle

TINY = litepose_arch(
    64, 8, (8, 8, 8, 8), (8, 8, 8), depths=1, kernels=3, expansions=1, deconv_kernels=(4, 3, 2)
)


SIZE = (37, 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network, its file for any batch in a later operator set, and the report on it."""
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    net = randomise(build_network(TINY, 3)).eval()
    return net, path, export_onnx(net, path, SIZE, batch=None, opset=OPSET + 2)


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(torch.from_numpy(out) for out in session.run(None, {"image": x.numpy()}))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_folding_keeps_the_function(name, seed):
    space = SPACES[name]
    for arch in (space.sample(np.random.default_rng(seed)), edge_archs(space)[-1]):
        net = randomise(build_network(arch, space.joints), seed % 999)
        if name in DECONVS:
            settle(net, images(3, 96, 96, 1))
        folded = fold_batchnorm(net.double().train())
        x = images(1, 45, 64).double()
        with torch.no_grad():
            found = folded(x)
            assert net.training  # the original is left alone
            assert relative_error(found, net.eval()(x)) < 1e-12
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(
    ("name", "seed", "size"),
    [
        *(("native", 0, None), ("extended", 1, (53, 70))),
        *(("deconv-mbv2", 2, (96, 64)), ("deconv-mbv2", 3, (101, 70))),
        *(("deconv-mbv3", 4, (96, 64)), ("deconv-mbv3", 5, (101, 70))),
    ],
)
def test_exported_equals_supernet(name, seed, size, tmp_path, capfd):
    space = SPACES[name]
    supernet = randomise(build_supernet(space)).eval()
    arch = space.sample(np.random.default_rng(seed))
    if name in DECONVS:
        settle(supernet, images(3, 96, 96, 1), arch)
    path = tmp_path / "net.onnx"
    report = export_onnx(
        supernet.extract(arch), path, size, metadata={"skeleton": {"name": "x"}, "note": "y"}
    )
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    x = images(1, *(size or arch.size), seed=9)
    with torch.no_grad():
        # Top-down networks are deeper, and these of made-up weights enlarge what was rounded.
        tolerance = 1e-4 if name in DECONVS else 1e-5
        assert relative_error(run(path, x), supernet(x, arch)) < tolerance
    assert 0 < report.max_rel < tolerance
    assert (report.size, report.batch, report.opset) == (size or arch.size, 1, OPSET)
    assert report.size_bytes == path.stat().st_size
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(path)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert arch_from_json(json.loads(props["arch"])) == arch
    assert props["joints"] == str(space.joints)
    assert json.loads(props["skeleton"]) == {"name": "x"}
    assert props["note"] == "y"
    kinds = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in kinds
    odd = size is not None and any(side % 32 for side in size)
    assert ("Slice" in kinds) == odd  # multiples of 16 need no crop, in top-down networks multiples of 32
    assert not {"ScatterND", "Transpose"} & set(kinds)  # what is cropped is not written back into the whole
    layers = arch.layers(space.joints)
    convolutions = {"deconv": 0, "se": 2}
    assert sum(node.op_type == "Conv" for node in model.graph.node) == sum(
        convolutions.get(layer.kind, 1) for layer in layers
    )
    assert sum(node.op_type == "ConvTranspose" for node in model.graph.node) == sum(
        layer.kind == "deconv" for layer in layers
    )
    assert b".py" not in path.read_bytes()  # no trace of the machine that it was made on


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deconv-reduced", "simplebaseline-mbv3"])
def test_named_top_down_networks_are_exported_for_any_batch(name, tmp_path):
    arch = get_arch(name).replace(resolution=64)
    net = settle(randomise(build_network(arch, 17)), images(4, *arch.size, 1))
    report = export_onnx(net, tmp_path / "net.onnx", batch=None)
    assert (report.size, report.batch) == ((64, 48), None)
    for count in (1, 3):
        x = images(count, 64, 48, seed=count)
        with torch.no_grad():
            (expected,) = net(x)
            (found,) = run(tmp_path / "net.onnx", x)
        assert expected.shape == (count, 17, 16, 12)
        assert relative_error((found,), (expected,)) < 1e-4


def test_free_batch_and_later_operator_set(exported):
    net, path, report = exported
    assert report.batch is None
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET + 2]
    for count in (1, 2, 5):
        x = images(count, 37, 64)
        with torch.no_grad():
            assert relative_error(run(path, x), net(x)) < 1e-5


def nan(net):
    net.get_submodule("head.output1.raw.project").weight.fill_(float("nan"))


def slightly_other(net):
    net.get_submodule("head.output1.raw.project").weight.mul_(1.001)


@pytest.mark.parametrize("change", [nan, slightly_other])
def test_a_model_that_differs_is_not_written(change, exported, tmp_path, monkeypatch):
    """As if the exporter had written another network than it was given."""
    net, good, _ = exported
    monkeypatch.setattr("supernet.export._write", lambda net, path, *_: shutil.copyfile(good, path))
    path = tmp_path / "net.onnx"
    path.write_text("what was there")
    other = copy.deepcopy(net)
    with torch.no_grad():
        change(other)
    with pytest.raises(RunError, match="more than the tolerance"):
        export_onnx(other, path, SIZE, batch=None)
    assert path.read_text() == "what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    assert export_onnx(net, path, SIZE, batch=None).max_rel < 1e-5


@pytest.mark.parametrize(("options", "message"), [
    ({"size": (31, 64)}, "at least 32 px on each side, not 31x64"),
    ({"batch": 0}, "at least 1, or None to leave it free; not 0"),
    ({"opset": 17}, "lies in 18"),
    ({"opset": 999}, "not 999"),
    ({"metadata": {"x": {1, 2}}}, "plain JSON values"),
])  # fmt: skip
def test_impossible_exports_are_refused(options, message, tmp_path):
    net = build_network(TINY, 3)
    with pytest.raises(InputError, match=message):
        export_onnx(net, tmp_path / "net.onnx", **options)
    assert list(tmp_path.iterdir()) == []
