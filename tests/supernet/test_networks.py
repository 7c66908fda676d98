"""The contract of every family's networks: plain == supernet == what the search space says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces import InputError, get_arch, litepose_extended, litepose_native
from search_spaces.deconv import deconv_mbv2, deconv_mbv3
from supernet.base import param_count
from supernet.deconv import DeconvPose, DeconvSupernet
from supernet.litepose import LitePose, LitePoseSupernet
from supernet.registry import NETWORKS, SUPERNETS, build_network, build_supernet
from tests.supernet.networks import (
    DECONVS,
    SPACES,
    edge_archs,
    images,
    output_shapes,
    randomise,
    relative_error,
    settle,
)

TOLERANCE = 1e-5
_NETS: dict[str, nn.Module] = {}


def supernet_of(name):
    """Return the space's supernet with weights that matter; made once."""
    if name not in _NETS:
        _NETS[name] = randomise(build_supernet(SPACES[name]))
        if name in DECONVS:
            settle(_NETS[name], images(4, 96, 96, 3), *edge_archs(SPACES[name]), SPACES[name].largest())
    return _NETS[name]


# -- supernet == extracted -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(32, 75), width=st.integers(32, 75))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_extracted_equals_supernet(name, seed, height, width):
    space, net = SPACES[name], supernet_of(name).eval()
    arch, x = space.sample(np.random.default_rng(seed)), images(2, height, width, seed)
    with torch.no_grad():
        out = net(x, arch)
        plain = net.extract(arch)
        assert relative_error(plain(x), out) < TOLERANCE
    assert [each.shape for each in out] == output_shapes(arch, space.joints, 2, height, width)
    assert plain.arch == arch
    assert not plain.training


@pytest.mark.parametrize("name", list(SPACES))
def test_edge_archs_agree_in_evaluation_and_in_training(name):
    for arch in edge_archs(SPACES[name]):
        net = randomise(build_supernet(SPACES[name]), seed=1)
        x = images(3, 65, 47)
        with torch.no_grad():
            net.eval()
            assert relative_error(net.extract(arch)(x), net(x, arch)) < TOLERANCE
            net.train()
            plain = net.extract(arch)
            assert plain.training
            assert relative_error(plain(x), net(x, arch)) < TOLERANCE
            # Both updated their running statistics alike.
            again = net.extract(arch)
            for (key, own), theirs in zip(plain.named_buffers(), again.buffers(), strict=True):
                if "running" in key:
                    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5, msg=key)


def test_residual_follows_the_active_widths():
    """Stages 2 and 3 add where their active widths agree, whatever the widest ones are."""
    space, net = SPACES["extended"], supernet_of("extended")
    assert space.largest()["stage2.width"] != space.largest()["stage3.width"]
    same = space.arch({"stage2.width": 24, "stage3.width": 24})
    apart = space.arch({"stage2.width": 24, "stage3.width": 16})
    assert net.extract(same).get_submodule("stage3.block0").residual
    assert not net.extract(apart).get_submodule("stage3.block0").residual
    added = {layer.name for layer in same.layers(4) if layer.add} - {
        layer.name for layer in apart.layers(4) if layer.add
    }
    assert added == {"stage3.block0.project"}


def test_doubled_maps_lose_their_last_rows_and_columns_at_odd_sizes():
    """Cropped at the bottom and right, where rounding up added; the top left pixel stays the origin."""
    space = SPACES["extended"]
    net = randomise(build_network(space.largest(), space.joints)).eval()
    seen = {}
    for name in ("refined", "raw", "norm"):
        layer = net.get_submodule(f"head.deconv1.{name}")
        layer.register_forward_hook(lambda _, given, out, name=name: seen.update({name: (given[0], out)}))
    with torch.no_grad():
        net(images(1, 33, 52))
    doubled = seen["refined"][1] + seen["raw"][1]
    assert doubled.shape[-2:] == (10, 14)
    assert torch.equal(seen["norm"][0], doubled[..., :9, :13])


@pytest.mark.parametrize("name", DECONVS)
def test_residual_follows_the_active_widths_of_encoders(name):
    """Wherever a stage begins with stride 1, stage 0 included, which begins with what the stem gives."""
    space, net = SPACES[name], supernet_of(name)
    for one, other in (("stem_width", "stage0.width"), ("stage3.width", "stage4.width")):
        offered = {choice.name: choice.values for choice in space.choices}
        (small, large), block = offered[one], other.replace(".width", ".block0")
        for width, added in ((small, False), (large, True)):
            arch = space.arch({one: width, other: large})
            assert net.extract(arch).get_submodule(block).residual == added
            layers = {layer.name: layer.add for layer in arch.layers(space.joints)}
            assert layers[f"{block}.project"] == added


@pytest.mark.parametrize("name", DECONVS)
def test_doubled_maps_have_the_encoders_sizes(name):
    """Cropped at the bottom and right, as in LitePose's head, before they are normalised."""
    space = SPACES[name]
    net = randomise(build_network(space.largest(), space.joints)).eval()
    seen = {}
    for step in range(2):
        for part in ("up", "up_norm"):
            at = f"head.deconv{step}.{part}"
            layer = net.get_submodule(at)
            layer.register_forward_hook(
                lambda _, given, out, at=at: seen.update({at: (given[0], out.clone())})
            )
    with torch.no_grad():
        net(images(1, 130, 63))  # 65x32, 33x16, 17x8, 9x4, 5x2
    assert seen["head.deconv0.up"][0].shape[-2:] == (5, 2)
    assert seen["head.deconv0.up"][1].shape[-2:] == (10, 4)
    assert torch.equal(seen["head.deconv0.up_norm"][0], seen["head.deconv0.up"][1][..., :9, :4])
    assert torch.equal(seen["head.deconv1.up_norm"][0], seen["head.deconv1.up"][1][..., :17, :8])


@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_widest_kernel_and_channels_matter(name):
    """Growing any single choice changes the output: nothing is ignored."""
    space, net = SPACES[name], supernet_of(name).eval()
    x, smallest = images(1, 96, 128), space.smallest()
    if name in DECONVS:
        net = settle(randomise(build_supernet(space)), images(4, 96, 128, 3), *edge_archs(space), smallest)
    with torch.no_grad():
        base = net(x, smallest)
        for choice in space.searched:
            if choice.name == "resolution":
                continue
            most = choice.setting(len(choice.values) - 1)
            found = net(x, smallest.replace(**{name.replace(".", "__"): most[name] for name in most}))
            if found[0].shape != base[0].shape:  # another deconv step
                found = tuple(F.avg_pool2d(out, 2) for out in found)
            assert relative_error(found, base) > 1e-3, choice.name


def test_extracted_network_is_a_copy():
    net = randomise(build_supernet(SPACES["native"]))
    plain = net.extract(SPACES["native"].smallest())
    before = [p.clone() for p in net.parameters()]
    with torch.no_grad():
        for tensor in (*plain.parameters(), *plain.buffers()):
            tensor.fill_(3)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_channels_last_changes_nothing(name):
    net = randomise(build_supernet(SPACES[name])).eval()
    arch, x = SPACES[name].sample(np.random.default_rng(5)), images(2, 50, 64)
    with torch.no_grad():
        expected = net(x, arch)
        net.to(memory_format=torch.channels_last)
        last = x.to(memory_format=torch.channels_last)
        assert relative_error(net(last, arch), expected) < TOLERANCE
        assert relative_error(net.extract(arch)(last), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_only_active_weights_get_gradients(name):
    space, net = SPACES[name], randomise(build_supernet(SPACES[name]))
    arch = space.smallest()
    sum(out.square().mean() for out in net(images(2, 96, 96), arch)).backward()
    pairs = net._pairs(net.extract(arch))
    reached = {net.place(name, arch): part for name, _, part in pairs if "running" not in name}
    for name, parameter in net.named_parameters():
        if name not in reached:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            count = int(torch.count_nonzero(parameter.grad))
            assert 0 < count <= reached[name].numel(), name


# -- plain -> supernet ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_load_plain_gives_that_network_and_keeps_the_rest(name, seed):
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    plain = randomise(build_network(arch, space.joints), seed % 1000).eval()
    net = build_supernet(space).eval()
    fresh = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net.load_plain(plain)
    x = images(1, 45, 64)
    with torch.no_grad():
        assert relative_error(net(x, arch), plain(x)) < TOLERANCE
    changed = sum(
        int(torch.count_nonzero(tensor != fresh[key]))
        for key, tensor in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    held = sum(t.numel() for key, t in plain.state_dict().items() if not key.endswith("num_batches_tracked"))
    assert 0.99 * held < changed <= held


def test_load_plain_takes_a_network_of_another_resolution():
    space = SPACES["native"]
    plain = build_network(space.largest().replace(resolution=448), space.joints).eval()
    net = build_supernet(space).eval()
    net.load_plain(plain)
    x = images(1, 64, 64)
    with torch.no_grad():
        assert relative_error(net(x, space.largest()), plain(x)) < TOLERANCE


def test_what_does_not_fit_is_refused_by_name():
    space = SPACES["native"]
    net = build_supernet(space)
    before = [t.clone() for t in net.state_dict().values()]
    wide = space.largest().replace(stage1__width=40, stage2__depth=5)
    with pytest.raises(InputError, match=r"stage1\.width = 40 > 24; stage2\.depth = 5 > 2"):
        net(images(1, 64, 64), wide)
    with pytest.raises(InputError, match=r"stage1\.width = 40 > 24"):
        net.extract(wide)
    with pytest.raises(InputError, match=r"stage1\.width = 40 > 24"):
        net.load_plain(LitePose(wide, space.joints))
    with pytest.raises(InputError, match="predicts 5 joints, the network 7"):
        net.load_plain(LitePose(space.largest(), 7))
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


# -- network == layers ---------------------------------------------------------------------------------------


def executed(net, size):
    """Return what ``stated`` does, of every convolution that really runs."""
    found = []

    def hook(name):
        def record(module, inputs, output):
            kind = "deconv" if isinstance(module, nn.ConvTranspose2d) else "conv"
            if kind == "conv" and module.groups == module.in_channels > 1:
                kind = "dwconv"
            found.append((
                name, kind, module.in_channels, module.out_channels, *set(module.kernel_size),
                *set(module.stride), module.groups, *inputs[0].shape[-2:], *output.shape[-2:],
                module.bias is not None,
            ))  # fmt: skip

        return record

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        net.eval()(torch.empty(1, 3, *size, device=next(net.parameters()).device))
    return found


def stated(arch, joints, size):
    """Return name, kind, channels, kernel, stride, groups, sizes in and out, and bias of every layer.

    A squeeze-and-excitation is two convolutions of one pixel.
    """
    found = []
    for x in arch.layers(joints, size):
        if x.kind == "se":
            found += [
                (f"{x.name}.reduce", "conv", x.c_in, x.squeeze, 1, 1, 1, 1, 1, 1, 1, True),
                (f"{x.name}.expand", "conv", x.squeeze, x.c_out, 1, 1, 1, 1, 1, 1, 1, True),
            ]
        else:
            found.append((
                x.name, x.kind, x.c_in, x.c_out, x.kernel, x.stride, x.groups,
                x.h_in, x.w_in, x.h_out, x.w_out, x.bias,
            ))  # fmt: skip
    return found


def meta_network(arch, joints):
    with torch.device("meta"):
        return NETWORKS[arch.family.name](arch, joints)


NAMED = (
    *("litepose-xs", "litepose-s", "litepose-m", "litepose-l"),
    *("simplebaseline-mbv2", "simplebaseline-mbv3", "deconv-reduced"),
)


@pytest.mark.parametrize("joints", [14, 17])
@pytest.mark.parametrize("name", NAMED)
def test_named_networks_are_what_their_layers_say(name, joints):
    arch = get_arch(name)
    net = meta_network(arch, joints)
    assert executed(net, arch.size) == stated(arch, joints, arch.size)
    assert param_count(net) == arch.cost(joints).params


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(32, 200), width=st.integers(32, 200))
@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize(
    "space",
    [litepose_native(17), litepose_extended(), deconv_mbv2(17), deconv_mbv3(17, deconvs=2)],
    ids=lambda space: space.name,
)
def test_random_networks_are_what_their_layers_say(space, seed, height, width):
    arch, size = space.sample(np.random.default_rng(seed)), (height, width)
    net = meta_network(arch, space.joints)
    assert sorted(executed(net, size)) == sorted(stated(arch, space.joints, size))
    assert param_count(net) == space.cost(arch).params
    normed = {layer.name for layer in arch.layers(space.joints) if layer.norm}
    assert {sources[-1] for sources in net.norm_sources().values()} == normed


def fvcore_macs(arch, joints, size):
    count = FlopCountAnalysis(NETWORKS[arch.family.name](arch, joints).eval(), torch.zeros(1, 3, *size))
    return count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()["conv"]


@pytest.mark.parametrize(
    ("name", "joints"),
    [
        *(("litepose-xs", 14), ("litepose-xs", 17), ("litepose-s", 17), ("litepose-m", 14)),
        *(
            ("litepose-l", 14),
            ("simplebaseline-mbv2", 17),
            ("simplebaseline-mbv3", 17),
            ("deconv-reduced", 14),
        ),
    ],
)
def test_fvcore_counts_the_same_macs(name, joints):
    arch = get_arch(name)
    assert fvcore_macs(arch, joints, arch.size) == arch.cost(joints).macs


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("size", [(64, 64), (53, 70)])
def test_fvcore_counts_the_same_macs_of_random_networks(name, size):
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(3))
    assert fvcore_macs(arch, space.joints, size) == space.cost(arch, size).macs


# -- registry and initialisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_initialisation_is_deterministic_and_sensible(name):
    space = SPACES[name]
    first, second = (build_supernet(space, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = build_supernet(space, torch.Generator().manual_seed(4))
    weight = "stem.conv.weight"
    assert not torch.equal(first.get_parameter(weight), other.get_parameter(weight))
    for name, module in first.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.weight.std() > 0
            assert (module.weight.std() < 2e-3) == (name in first.output_layers), name
            assert module.bias is None or not module.bias.any(), name
    with torch.no_grad():  # activations neither vanish nor explode, and heatmaps start near zero
        for out in first.train()(images(4, 64, 64), space.largest()):
            assert 0 < out.abs().max() < 0.1


@pytest.mark.parametrize("name", ["litepose-xs", "deconv-reduced", "simplebaseline-mbv3"])
def test_initialisation_leaves_a_training_signal_at_every_depth(name):
    net = build_network(get_arch(name), 14).train()
    sum(out.mean() for out in net(images(2, 64, 64))).backward()
    norms = [float(p.grad.norm()) for p in net.parameters() if p.dim() > 1]
    assert min(norms) > 0
    assert all(value == value for value in norms)


def test_registry_builds_by_family():
    space = SPACES["native"]
    assert set(NETWORKS) == set(SUPERNETS)
    assert isinstance(build_supernet(space), LitePoseSupernet)
    assert isinstance(build_network(space.smallest(), 5), LitePose)
    for name in DECONVS:
        assert isinstance(build_supernet(SPACES[name]), DeconvSupernet)
        assert isinstance(build_network(SPACES[name].smallest(), 5), DeconvPose)
        with pytest.raises(InputError, match="needs a litepose"):
            LitePoseSupernet(SPACES[name])
        with pytest.raises(InputError, match=f"this supernet is of the litepose family, not {name}"):
            build_supernet(space).extract(SPACES[name].smallest())
    with pytest.raises(InputError, match="an arch of a deconv family, not one of litepose"):
        DeconvSupernet(space)
    for each in (space, *(SPACES[name] for name in DECONVS)):
        with pytest.raises(InputError, match="joints is at least 1, not 0"):
            build_network(each.smallest(), 0)


@pytest.mark.parametrize("name", list(SPACES))
def test_networks_tell_what_they_look_at_and_how_coarse_their_outputs_are(name):
    space = SPACES[name]
    for arch in edge_archs(space):
        net = meta_network(arch, space.joints)
        assert net.paradigm == ("top-down" if name in DECONVS else "bottom-up")
        assert len(net.strides) == len(net.output_names)
        outputs = net(torch.empty(1, 3, 192, 96, device="meta"))
        assert [out.shape[-2:] for out in outputs] == [(192 // each, 96 // each) for each in net.strides]


# -- what a top-down network may lack ------------------------------------------------------------------------


def test_archs_with_and_without_the_last_convolution_share_all_but_the_step_behind_it():
    space = SPACES["deconv-mbv2"]
    net = randomise(build_supernet(space)).eval()
    with_last, without = space.largest(), space.arch({"last_width": 0})
    taken = {}
    for arch in (with_last, without):
        names = [name for name, _ in net.extract(arch).named_parameters()]
        taken[arch] = {net.place(name, arch) for name in names}
    assert {name.rpartition(".")[0] for name in taken[without] - taken[with_last]} == {
        "head.deconv0_without_last.up", "head.deconv0_without_last.up_norm",
    }  # fmt: skip
    assert {name.rpartition(".")[0] for name in taken[with_last] - taken[without]} == {
        "last.conv", "last.conv_norm", "head.deconv0.up", "head.deconv0.up_norm",
    }  # fmt: skip
    assert taken[with_last] | taken[without] == {
        name for name, _ in net.named_parameters() if not name.startswith("head.output1")
    }


def test_heatmaps_behind_two_steps_and_behind_three_have_weights_of_their_own():
    space = SPACES["deconv-mbv2"]
    net = randomise(build_supernet(space)).eval()
    assert net.output_layers == ("head.output2.project", "head.output1.project")
    two = space.arch({"head.deconv2.width": 0, "head.deconv2.kernel": 0})
    with torch.no_grad():
        three, coarse = net(images(1, 64, 64), space.largest()), net(images(1, 64, 64), two)
        net.get_parameter("head.output1.project.weight").zero_()
        assert torch.equal(net(images(1, 64, 64), space.largest())[0], three[0])
        assert coarse[0].any()
        assert not net(images(1, 64, 64), two)[0].any()


def test_what_a_supernet_has_no_weights_for_is_refused():
    net, space = build_supernet(SPACES["deconv-mbv3"]), SPACES["deconv-mbv3"]
    with pytest.raises(InputError, match=r"has the last convolution .*\(last_width = 0\)"):
        net.extract(space.largest().replace(last_width=0))
    with pytest.raises(InputError, match=r"head\.deconv2\.width = 16 > 0"):
        net.extract(space.largest().replace(head__deconv2__width=16, head__deconv2__kernel=2))
    space = deconv_mbv2(5, deconv_widths=(8,))
    with torch.device("meta"):
        net = DeconvSupernet(space)
    with pytest.raises(InputError, match=r"the third deconv step.*\(head\.deconv2\.width = 0\)"):
        net.check(space.largest().replace(head__deconv2__width=0, head__deconv2__kernel=0))
