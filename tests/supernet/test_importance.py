"""Re-ordered channels: the same function, the important channels first."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces import InputError, litepose_arch, litepose_extended
from supernet.checkpoint import import_research
from supernet.importance import CRITERIA, order_channels_by_importance
from supernet.registry import build_network, build_supernet
from tests.supernet.networks import DECONVS, SPACES, edge_archs, images, randomise, relative_error


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("name", list(SPACES))
def test_function_is_unchanged(name, seed):
    space = SPACES[name]
    for arch in (space.sample(np.random.default_rng(seed)), edge_archs(space)[seed % len(edge_archs(space))]):
        net = randomise(build_network(arch, space.joints), seed % 999).double().eval()
        ordered = order_channels_by_importance(net)
        x = images(1, 47, 64).double()
        with torch.no_grad():
            assert relative_error(ordered(x), net(x)) < 1e-12
        moved = sum(
            not torch.equal(a, b) for a, b in zip(net.parameters(), ordered.parameters(), strict=True)
        )
        assert moved > 20


def test_every_channel_is_in_exactly_one_set():
    """Each convolution is written and read once, each per-channel layer kept once; only the ends are not."""
    for space in SPACES.values():
        for arch in edge_archs(space):
            net = build_network(arch, space.joints)
            sets = net.channels()
            written = [name for group in sets for name in group.written]
            read = [name for group in sets for name in group.read]
            kept = [name for group in sets for name in group.kept]
            convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
            depthwise = {n for n, m in convs.items() if m.groups > 1}
            norms = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
            dense = set(convs) - depthwise
            first = {"stem.conv"}
            fixed = {"stem.depthwise", "stem.conv_norm", "stem.depthwise_norm"}
            if space.family.name.startswith(
                "litepose"
            ):  # the first 32 channels of its stem are left as they are
                assert sorted(written) == sorted(dense - first - {*net.output_layers})
                assert sorted(read) == sorted(dense - first - {"stem.project"})
                assert sorted(kept) == sorted((depthwise | norms) - fixed)
            else:
                assert sorted(written) == sorted(dense - {*net.output_layers})
                assert sorted(read) == sorted(dense - first)
                assert sorted(kept) == sorted(depthwise | norms)


def test_importance_descends_and_narrow_subnets_keep_the_best():
    arch = litepose_arch(64, 16, (16, 16, 24, 32), (16, 16, 16), depths=(2, 1, 2, 2), expansions=2)
    net = randomise(build_network(arch, 4)).eval()
    with torch.no_grad():  # hidden channel 30 of 32 is what matters in this block
        net.get_submodule("stage0.block1.project").weight[:, 30] *= 100
    ordered = order_channels_by_importance(net)
    weight = ordered.get_submodule("stage0.block1.project").weight
    strength = weight.abs().sum((0, 2, 3))
    assert torch.all(strength[:-1] >= strength[1:])
    space = litepose_extended(
        4, base=arch, resolutions=(64,), kernels=(7,), depths=[[2], [1], [2], [2]], expansions=(1, 2)
    )
    supernet = build_supernet(space)
    supernet.load_plain(ordered)
    narrow = supernet.extract(space.arch({"stage0.expansion": 1, "stage0.width": 16}))
    best = net.get_submodule("stage0.block1.depthwise").weight[30]
    assert torch.equal(narrow.get_submodule("stage0.block1.depthwise").weight[0], best)


def test_reference_network_is_unchanged(shared):
    net = import_research(shared / "weights" / "litepose-m-crowdpose.reference.pth").double()
    x = images(1, 96, 128).double()
    with torch.no_grad():
        assert relative_error(order_channels_by_importance(net)(x), net(x)) < 1e-12


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3, deadline=None)
@pytest.mark.parametrize("by", CRITERIA)
@pytest.mark.parametrize("name", ["extended-small-kernels", *DECONVS])
def test_no_criterion_changes_the_function(name, by, seed):
    space = SPACES[name]
    net = randomise(build_network(space.sample(np.random.default_rng(seed)), space.joints), seed % 999)
    net, x = net.double().eval(), images(1, 47, 64).double()
    ordered = order_channels_by_importance(net, by, [images(2, 48, 48, 1).double()])
    with torch.no_grad():
        assert relative_error(ordered(x), net(x)) < 1e-12
    for one, other in zip(net.parameters(), ordered.parameters(), strict=True):
        torch.testing.assert_close(one.detach().flatten().sort()[0], other.detach().flatten().sort()[0])


@pytest.mark.parametrize("by", ["activation", "variance"])
def test_what_is_never_active_comes_last(by):
    """Whatever its weights are; the weights alone would put it first."""
    net = randomise(build_network(SPACES["native"].largest(), 5)).eval()
    at = "stage1.block1"
    with torch.no_grad():
        net.get_submodule(f"{at}.depthwise_norm").weight[3] = 0.0
        net.get_submodule(f"{at}.depthwise_norm").bias[3] = -1.0  # ReLU6 lets nothing through
        net.get_submodule(f"{at}.project").weight[:, 3] = 50.0

    def place(by, batches=()):
        ordered = order_channels_by_importance(net, by, batches)
        return int(ordered.get_submodule(f"{at}.project").weight[0].flatten().argmax())

    hidden = net.get_submodule(f"{at}.project").in_channels
    assert place("reading") == 0
    assert place("scale") == hidden - 1
    assert place(by, [images(2, 64, 64)]) > hidden // 2  # others may be silent on these images too


def test_criteria_are_checked():
    net = build_network(SPACES["native"].smallest(), 5)
    with pytest.raises(InputError, match=r"ordered by .*not 'varience'; did you mean 'variance'"):
        order_channels_by_importance(net, "varience")
    with pytest.raises(InputError, match="at least one is needed, not 0"):
        order_channels_by_importance(net, "activation")
