"""Networks on disk: round trips, goldens, and files that must be refused."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from search_spaces import InputError, get_arch, litepose_arch, litepose_extended, litepose_native
from supernet.checkpoint import export_research, import_research, load_network, save_network
from supernet.registry import build_network, build_supernet
from supernet.state import read_tensors, write_tensors
from tests.supernet.networks import SPACES, images, randomise, relative_error

TINY = litepose_arch(
    64, 8, (8, 16, 16, 16), (8, 8, 16), depths=(1, 2, 1, 2), kernels=(3, 5, 7, 3), expansions=2
)


@pytest.fixture(scope="module")
def tiny():
    return randomise(build_network(TINY, 6)).eval()


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "weights" / "litepose-m-crowdpose.reference.pth"


# -- our own files -------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_saved_networks_come_back(name, seed, tmp_path_factory):
    space = SPACES[name]
    path = tmp_path_factory.mktemp("networks") / "net.safetensors"
    net = randomise(build_supernet(space)).extract(space.sample(np.random.default_rng(seed))).eval()
    metadata = {"skeleton": "crowdpose14", "scores": {"AP": 0.5}, "note": "ä"}
    save_network(path, net, metadata)
    again, found = load_network(path)
    assert (again.arch, again.joints, found) == (net.arch, net.joints, metadata)
    assert not again.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    with torch.no_grad():
        x = images(1, 45, 70)
        assert relative_error(again(x), net(x)) == 0


def test_channels_last_and_half_precision_files_load(tiny, tmp_path):
    path = tmp_path / "net.safetensors"
    other = build_network(TINY, 6)
    other.load_state_dict(tiny.state_dict())
    save_network(path, other.half().to(memory_format=torch.channels_last))
    again, metadata = load_network(path)
    assert metadata == {}
    assert all(p.dtype == torch.float32 for p in again.parameters())
    with torch.no_grad():
        assert relative_error(again(images(1, 64, 64)), tiny(images(1, 64, 64))) < 0.01


def test_metadata_that_json_cannot_say_is_refused_and_nothing_written(tiny, tmp_path):
    for bad in ({"path": tmp_path}, {"score": float("nan")}):
        with pytest.raises(InputError, match="plain JSON values"):
            save_network(tmp_path / "net.safetensors", tiny, bad)
    assert list(tmp_path.iterdir()) == []


def tampered(source, path, change):
    """Write ``source`` to ``path`` after ``change(tensors, header)``, with a checksum that fits."""
    tensors, header = read_tensors(source)
    change(tensors, header)
    write_tensors(path, tensors, header)


TAMPERED = {
    "missing tensor": (
        lambda tensors, header: tensors.pop("stem.conv.weight"),
        r"lacks tensor 'stem\.conv\.weight'",
    ),
    "unknown tensor": (
        lambda tensors, header: tensors.update({"stem.conv.wieght": torch.zeros(1)}),
        r"unknown tensor 'stem\.conv\.wieght'.*did you mean 'stem\.conv\.weight'",
    ),
    "other shape": (
        lambda tensors, header: tensors.update({"stem.project.weight": torch.zeros(8, 32, 3, 3)}),
        r"'stem\.project\.weight' has the shape \(8, 32, 3, 3\), its arch needs \(8, 32, 1, 1\)",
    ),
    "not a number": (
        lambda tensors, header: tensors["stem.project.weight"].fill_(float("nan")),
        r"'stem\.project\.weight' holds values that are not finite",
    ),
    "missing value": (lambda tensors, header: header["arch"].pop("stem_width"), "lacks 'stem_width'"),
    "unknown family": (
        lambda tensors, header: header["arch"].update(family="litepos"),
        "did you mean 'litepose'",
    ),
    "other arch": (lambda tensors, header: header["arch"].update({"stage0.width": 16}), "has the shape"),
    "huge arch": (
        lambda tensors, header: header["arch"].update(
            {"stage3.width": 4096, "stage3.depth": 64, "stage3.expansion": 16}
        ),
        "lacks tensor",
    ),
    "no arch": (lambda tensors, header: header.pop("arch"), "must be a JSON object"),
    "no joints": (
        lambda tensors, header: header.update(joints=0),
        "'joints' is a positive whole number, not 0",
    ),
    "metadata": (lambda tensors, header: header.update(metadata=[]), "'metadata' is a mapping"),
    "other kind": (
        lambda tensors, header: header.update(kind="supernet"),
        "holds a supernet, not a plain network",
    ),
}


@pytest.mark.parametrize(("change", "message"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_files_are_refused_by_name(tiny, tmp_path, change, message):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_network(good, tiny)
    tampered(good, bad, change)
    with pytest.raises(InputError, match=message) as caught:
        load_network(bad)
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_is_kept_as_json_says_it(tiny, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, tiny, {1: "a", "1": "b", "sizes": (1, 2), "what": "größer \ud800"})
    assert load_network(path)[1] == {"1": "b", "sizes": [1, 2], "what": "größer \ud800"}


def test_an_altered_weight_is_noticed(tiny, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, tiny)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"net\.safetensors' is damaged"):
        load_network(path)


def test_truncated_and_foreign_files_are_refused(tiny, tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_network(good, tiny)
    data = good.read_bytes()
    for cut in (0, 4, 8, 100, 5000, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            load_network(bad)
    save_file({"a": torch.zeros(2)}, bad)
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        load_network(bad)
    with pytest.raises(InputError, match="does not exist"):
        load_network(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="not a file"):
        load_network(tmp_path)


# -- research checkpoints ------------------------------------------------------------------------------------


def test_reference_network_reproduces_the_golden_outputs(shared, reference):
    net = import_research(reference)
    assert (net.arch, net.joints) == (get_arch("litepose-m"), 14)
    golden = np.load(shared / "golden" / "litepose-m-crowdpose.npz")
    x = torch.from_numpy(golden["image_rgb_uint8"]).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    expected = tuple(torch.from_numpy(golden[name]) for name in net.output_names)
    with torch.no_grad():
        assert relative_error(net(x.permute(2, 0, 1)[None]), expected) < 1e-4


@pytest.mark.parametrize("kind", [litepose_native, litepose_extended])
def test_reference_network_starts_a_supernet_anchored_at_it(reference, kind):
    net = import_research(reference)
    space = kind(14, base=get_arch("litepose-m"), resolutions=(256, 320))
    supernet = build_supernet(space).eval()
    supernet.load_plain(net)
    x = images(1, 97, 128)
    with torch.no_grad():
        assert relative_error(supernet(x, net.arch), net(x)) < 1e-5
        assert relative_error(supernet.extract(net.arch)(x), net(x)) < 1e-5


def test_research_state_round_trips_the_reference(reference):
    original = torch.load(reference, map_location="cpu", weights_only=True)
    again = export_research(import_research(reference))
    assert set(again) == set(original)
    assert all(torch.equal(again[key], original[key]) for key in original)


@pytest.mark.parametrize("prefix", ["", "module.", "1."])
@pytest.mark.parametrize("nest", [None, "state_dict"])
def test_any_arch_is_read_off_the_shapes(tiny, tmp_path, prefix, nest):
    state = {prefix + key: value for key, value in export_research(tiny).items()}
    torch.save({nest: state, "epoch": 3} if nest else state, tmp_path / "net.pth")
    net = import_research(tmp_path / "net.pth", resolution=64)
    assert (net.arch, net.joints) == (TINY, 6)
    with torch.no_grad():
        assert relative_error(net(images(1, 64, 50)), tiny(images(1, 64, 50))) == 0


def test_resolution_is_asked_for_where_no_published_network_tells_it(tiny, tmp_path):
    torch.save(export_research(tiny), tmp_path / "net.pth")
    with pytest.raises(InputError, match="give the resolution"):
        import_research(tmp_path / "net.pth")
    with pytest.raises(InputError, match="'resolution'"):
        import_research(tmp_path / "net.pth", resolution=3)


ODD = {
    "no stem": (
        lambda state: state.pop("first.0.0.weight"),
        r"lacks tensor 'first\.0\.0\.weight'; it is no LitePose",
    ),
    "missing convolution": (
        lambda state: state.pop("stage.1.1.depth_conv.0.weight"),
        r"lacks tensor 'stage\.1\.1\.depth_conv\.0\.weight'",
    ),
    "missing norm": (
        lambda state: state.pop("final_raw.0.conv.1.bias"),
        r"lacks tensor 'final_raw\.0\.conv\.1\.bias'",
    ),
    "fifth stage": (
        lambda state: state.update({"stage.4.0.inv.0.weight": torch.zeros(1)}),
        r"unknown tensor 'stage\.4\.0\.inv\.0\.weight'",
    ),
    "bias": (
        lambda state: state.update({"first.0.0.bias": torch.zeros(32)}),
        r"unknown tensor 'first\.0\.0\.bias'",
    ),
    "broken expansion": (
        lambda state: state.update({"stage.0.0.inv.0.weight": torch.zeros(20, 8, 1, 1)}),
        "expands 8 channels to 20",
    ),
    "two widths": (
        lambda state: state.update({"stage.1.1.point_conv.0.weight": torch.zeros(24, 32, 1, 1)}),
        "blocks of stage 1 differ in width",
    ),
    "matrix": (
        lambda state: state.update({"first.2.weight": torch.zeros(8, 32)}),
        r"'first\.2\.weight' has 2 dimensions",
    ),
    "other shape": (
        lambda state: state.update({"deconv_raw.1.weight": torch.zeros(3, 3, 4, 4)}),
        r"'deconv_raw\.1\.weight' has the shape",
    ),
    "no tensor": (
        lambda state: state.update({"first.3.bias": 3}),
        r"entry 'first\.3\.bias' is a int; a tensor is needed",
    ),
}


@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD)
def test_odd_research_files_are_refused_by_name(tiny, tmp_path, change, message):
    state = export_research(tiny)
    change(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=message) as caught:
        import_research(tmp_path / "odd.pth", 64)
    assert "odd.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batch_counters_may_be_absent(tiny, tmp_path):
    state = {k: v for k, v in export_research(tiny).items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pth")
    assert import_research(tmp_path / "net.pth", 64).get_buffer("stem.conv_norm.num_batches_tracked") == 0


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    target = tmp_path / "ran"
    torch.save({"first.0.0.weight": Malicious(target)}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad\.pth' is refused: only tensors are read, never code .*mkdir"):
        import_research(tmp_path / "bad.pth")
    assert not target.exists()


def test_truncated_research_files_are_refused(tiny, tmp_path):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(export_research(tiny), good)
    data = good.read_bytes()
    for cut in (0, 3, 1000, len(data) // 2, len(data) - 30):
        bad.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"bad\.pth' is (truncated|refused)") as caught:
            import_research(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        import_research(tmp_path / "none.pth")
    torch.save([1, 2], bad)
    with pytest.raises(InputError, match="must hold a mapping"):
        import_research(bad)
