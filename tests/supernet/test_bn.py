"""Recalibration against statistics computed by hand."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces import InputError
from supernet import bn
from supernet.bn import recalibrate
from supernet.registry import build_supernet
from tests.supernet.networks import DECONVS, SPACES, images, randomise, relative_error


class TwoNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3, momentum=0.3)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.second = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.second(self.conv(F.relu(self.first(x)))))


def by_hand(tensors):
    """Return mean and unbiased variance of every channel over all values of all batches."""
    values = torch.cat([t.double().transpose(0, 1).flatten(1) for t in tensors], dim=1)
    return values.mean(1), values.var(1, correction=1)


def test_statistics_are_those_of_all_images_pooled():
    torch.manual_seed(0)
    net = randomise(TwoNorms())
    x = 3 * images(11, 9, 7) + 2
    batches = [x[:4], x[4:8], x[8:]]  # the last one is smaller
    with torch.no_grad():
        inner = []
        for batch in batches:  # the second layer sees what the first normalises by the batch
            mean = batch.mean((0, 2, 3), keepdim=True)
            var = batch.var((0, 2, 3), keepdim=True, correction=0)
            scale, shift = net.first.weight.view(1, -1, 1, 1), net.first.bias.view(1, -1, 1, 1)
            normal = (batch - mean) / torch.sqrt(var + net.first.eps) * scale + shift
            inner.append(net.conv(F.relu(normal)))
    unused = net.unused.running_mean.clone()
    assert recalibrate(net, iter(batches)) == 11
    for layer, seen in ((net.first, batches), (net.second, inner)):
        mean, var = by_hand(seen)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert not any(module.training for module in net.modules())
    assert (net.first.momentum, net.second.momentum) == (0.3, 0.1)
    assert torch.equal(net.unused.running_mean, unused)


def test_unequal_batches_weigh_by_their_images():
    """Not the plain average of batch statistics: a batch of one constant image would otherwise dominate."""
    net = nn.Sequential(nn.BatchNorm2d(1))
    zeros, ones = torch.zeros(9, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert recalibrate(net, [zeros, ones]) == 10
    assert net[0].running_mean.item() == pytest.approx(0.1)
    assert net[0].running_var.item() == pytest.approx(40 * 0.1 * 0.9 / 39)


def test_first_layers_statistics_do_not_depend_on_the_batches():
    x = images(12, 32, 32)
    found = []
    for size in (1, 5, 12):
        net = randomise(TwoNorms())
        recalibrate(net, x.split(size))
        found.append(net.first.running_var.clone())
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize("name", ["native", *DECONVS])
def test_same_images_give_the_same_bits_whatever_was_there_before(name):
    net = randomise(build_supernet(SPACES[name]))
    arch, x = SPACES[name].sample(np.random.default_rng(0)), images(6, 64, 64)
    first = net.extract(arch)
    recalibrate(first, x.split(4))
    with torch.no_grad():
        net.train()(5 * x, SPACES[name].largest())  # shared statistics move on
    second = net.extract(arch)
    recalibrate(second, x.split(4))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_subnet_then_works_on_its_own_statistics(name):
    """On the one batch it was recalibrated on, evaluation equals training mode."""
    net = randomise(build_supernet(SPACES[name]))
    arch, x = SPACES[name].sample(np.random.default_rng(1)), images(16, 64, 64)
    plain, counts = net.extract(arch), {}
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(
                lambda module, given: counts.update({module: given[0][:, 0].numel()})
            )
    with torch.no_grad():
        expected = plain.train()(x)
        assert relative_error(net.eval()(x, arch), expected) > 0.1
        assert recalibrate(plain, [x]) == 16
        for norm, count in counts.items():  # evaluation has the unbiased variance, training the biased one
            norm.running_var *= (count - 1) / count
        assert relative_error(plain(x), expected) < 1e-4


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 8, 8)]])
def test_no_images_are_refused_and_change_nothing(batches):
    net = randomise(TwoNorms())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(InputError, match="at least one image"):
        recalibrate(net, batches)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_an_interrupted_recalibration_changes_nothing():
    def interrupted():
        yield images(2, 9, 9)
        raise KeyboardInterrupt

    net = randomise(TwoNorms())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        recalibrate(net, interrupted())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.first.momentum == 0.3
    assert not net.first._forward_hooks


# -- parts in lockstep -------------------------------------------------------------------------------------


def statistics(net):
    return {name: value.clone() for name, value in net.state_dict().items() if "running" in name}


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of two images of 40 x 40 pixels."""
    monkeypatch.setattr(bn, "_PART_PIXELS", 2 * 40 * 40)


@pytest.mark.parametrize("name", ["native", *DECONVS])
def test_parts_give_the_statistics_of_the_whole_batch(name, small_parts, monkeypatch):
    net, space = build_supernet(SPACES[name]), SPACES[name]
    randomise(net)
    plain = net.extract(space.sample(np.random.default_rng(2))).to(memory_format=torch.channels_last)
    x = images(9, 40, 40).to(memory_format=torch.channels_last)
    recalibrate(plain, [x])
    in_parts = statistics(plain)
    monkeypatch.setattr(bn, "_PART_PIXELS", 10**9)
    recalibrate(plain, [x])
    for name, whole in statistics(plain).items():
        spread = (in_parts[name.replace("mean", "var")].sqrt() if "mean" in name else whole) + 1e-6
        assert ((in_parts[name] - whole).abs() / spread).max() < 1e-4, name


@pytest.mark.parametrize("name", ["native", *DECONVS])
def test_statistics_are_those_of_torch_in_training(name, small_parts):
    """An independent witness: torch's own layers in training mode, on the whole batch in its own layout."""
    net = build_supernet(SPACES[name])
    randomise(net)
    arch, x = SPACES[name].sample(np.random.default_rng(4)), images(8, 40, 40)
    plain, witness = net.extract(arch), net.extract(arch)
    recalibrate(plain.to(memory_format=torch.channels_last), [x.to(memory_format=torch.channels_last)])
    for module in witness.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        witness.train()(x)
    expected = statistics(witness)
    for name, found in statistics(plain).items():
        spread = (expected[name.replace("mean", "var")].sqrt() if "mean" in name else found) + 1e-6
        assert ((found - expected[name]).abs() / spread).max() < 1e-3, name


def test_the_same_bits_whatever_the_number_of_workers_and_threads(small_parts):
    found = []
    before = torch.get_num_threads()
    try:
        for threads, workers in ((1, 1), (1, 2), (2, None), (1, 7)):
            torch.set_num_threads(threads)
            net = randomise(build_supernet(SPACES["native"])).extract(SPACES["native"].smallest())
            recalibrate(net, images(11, 40, 40).split(6), workers=workers)
            assert torch.get_num_threads() == threads
            found.append(statistics(net))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_large_means_leave_small_variances_exact(small_parts):
    """Sums of thousands of equal numbers lose digits in single precision."""
    net = nn.Sequential(nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    x = (images(6, 300, 300) * 0.1 + 30).to(memory_format=torch.channels_last)
    recalibrate(net, [x])
    mean, var = by_hand([x])
    torch.testing.assert_close(net[0].running_mean.double(), mean, rtol=3e-6, atol=0)
    torch.testing.assert_close(net[0].running_var.double(), var, rtol=1e-4, atol=0)


def test_the_images_given_are_left_alone(small_parts):
    x = images(6, 40, 40)
    before = x.clone()
    recalibrate(randomise(TwoNorms()), [x])
    recalibrate(randomise(build_supernet(SPACES["native"])).extract(SPACES["native"].smallest()), [x])
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_one_part_ends_all_and_changes_nothing(small_parts, kind):
    class Failing(TwoNorms):
        def forward(self, x):
            y = self.first(x)
            if (x == 7).any():
                raise kind("part")
            return self.second(self.conv(y))

    net = randomise(Failing())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = images(10, 40, 40)
    x[5, 0, 0, 0] = 7
    threads = threading.active_count()
    with pytest.raises(kind, match="part"):
        recalibrate(net, [x])
    assert threading.active_count() == threads
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert "forward" not in net.first.__dict__
    assert recalibrate(net, [images(10, 40, 40)]) == 10


def test_parts_that_take_different_ways_are_refused(small_parts):
    class Forked(TwoNorms):
        def forward(self, x):
            return self.first(x) if (x == 7).any() else self.second(self.conv(x))

    x = images(4, 40, 40)
    x[0, 0, 0, 0] = 7
    with pytest.raises(RuntimeError, match="different ways"):
        recalibrate(randomise(Forked()), [x])
