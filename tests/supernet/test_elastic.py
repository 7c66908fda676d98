"""Elastic layers against the plain torch layers that they stand for."""

import pytest
import torch
from torch import nn

from search_spaces import InputError
from supernet.elastic import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticConvTranspose2d,
    ElasticDepthwiseConv2d,
    deconv,
    first_part,
)


def _noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_conv_runs_first_channels_and_kernel_centre(kernel, stride):
    layer = ElasticConv2d(6, 10, 7, stride)
    plain = nn.Conv2d(4, 5, kernel, stride, kernel // 2, bias=False)
    start = (7 - kernel) // 2
    with torch.no_grad():
        plain.weight.copy_(layer.weight[:5, :4, start : start + kernel, start : start + kernel])
    x = _noise(2, 4, 11, 14)
    torch.testing.assert_close(layer(x, 5, kernel), plain(x))
    assert torch.equal(layer.parts(plain)["weight"], plain.weight)


def test_conv_runs_first_biases():
    layer, plain = ElasticConv2d(6, 10, bias=True), nn.Conv2d(4, 5, 1)
    with torch.no_grad():
        layer.bias.copy_(_noise(10))
        for key, part in layer.parts(plain).items():
            getattr(plain, key).copy_(part)
        x = _noise(2, 4, 3, 3)
        torch.testing.assert_close(layer(x, 5), plain(x))
        torch.testing.assert_close(plain.bias, layer.bias[:5])
        plain.weight.fill_(2), plain.bias.fill_(3)
        before = layer.bias.clone()
        layer.take(plain)
    assert torch.equal(layer.bias, torch.cat([torch.full((5,), 3.0), before[5:]]))
    assert torch.equal(layer.weight[:5, :4], plain.weight)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_depthwise_runs_first_channels_and_kernel_centre(kernel, stride):
    layer = ElasticDepthwiseConv2d(8, 9, stride)
    plain = nn.Conv2d(5, 5, kernel, stride, kernel // 2, groups=5, bias=False)
    start = (9 - kernel) // 2
    with torch.no_grad():
        plain.weight.copy_(layer.weight[:5, :, start : start + kernel, start : start + kernel])
    x = _noise(2, 5, 13, 10)
    torch.testing.assert_close(layer(x, kernel), plain(x))
    assert layer(x, kernel).shape[-2:] == (-(-13 // stride), -(-10 // stride))


@pytest.mark.parametrize(("most", "kernel"), [(4, 4), (4, 3), (4, 2), (3, 3), (3, 2), (2, 2)])
def test_deconv_kernels_are_aligned_crops(most, kernel):
    """A tap that both kernels have reaches the same output pixel from the same input pixel."""
    layer = ElasticConvTranspose2d(1, 1, most)
    one = torch.zeros(1, 1, 5, 5)
    one[0, 0, 2, 2] = 1
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, most**2 + 1).view(1, 1, most, most))
        full, part = layer(one), layer(one, kernel=kernel)
    assert full.shape == part.shape == (1, 1, 10, 10)
    assert torch.count_nonzero(part) == kernel**2
    assert torch.equal(part[part != 0], full[part != 0])
    plain = deconv(1, 1, kernel)
    with torch.no_grad():
        plain.weight.copy_(layer.parts(plain)["weight"])
        assert torch.equal(plain(one), part)


def test_batch_norm_touches_active_channels_only():
    layer, plain = ElasticBatchNorm2d(6), nn.BatchNorm2d(4)
    with torch.no_grad():
        layer.weight.copy_(_noise(6))
        layer.bias.copy_(_noise(6))
        for key, part in layer.parts(plain).items():
            getattr(plain, key).copy_(part)
    x = _noise(3, 4, 5, 6) * 2 + 1
    torch.testing.assert_close(layer(x), plain(x))
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer, key)[:4], getattr(plain, key))
    assert torch.equal(layer.running_mean[4:], torch.zeros(2))
    assert torch.equal(layer.running_var[4:], torch.ones(2))
    layer.eval(), plain.eval()
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize(("elastic", "whole", "plain"), [
    (ElasticConv2d(6, 8, 5), nn.Conv2d(6, 8, 5, bias=False), nn.Conv2d(4, 3, 3, bias=False)),
    (ElasticConv2d(6, 8, 1, bias=True), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 3, 1)),
    (ElasticDepthwiseConv2d(6, 7), nn.Conv2d(6, 6, 7, groups=6, bias=False),
     nn.Conv2d(4, 4, 3, groups=4, bias=False)),
    *((ElasticConvTranspose2d(6, 8, 4), deconv(6, 8, 4), deconv(3, 5, kernel)) for kernel in (4, 3, 2)),
    (ElasticConvTranspose2d(6, 8, 3), deconv(6, 8, 3), deconv(3, 5, 2)),
    (ElasticBatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(2)),
])  # fmt: skip
def test_what_is_cut_from_a_plain_layer_is_what_an_elastic_one_runs(elastic, whole, plain):
    with torch.no_grad():
        for tensor in whole.state_dict().values():
            if tensor.dim():
                tensor.copy_(_noise(*tensor.shape))
    elastic.take(whole)
    found, expected = first_part(whole, plain), elastic.parts(plain)
    assert set(expected) == set(found) - {"num_batches_tracked"}
    for key, part in expected.items():
        assert torch.equal(found[key], part)
        assert part.shape == getattr(plain, key).shape
    with pytest.raises(InputError, match=r"1 to \d"):
        first_part(plain, whole)
    with pytest.raises(InputError, match="a Identity cannot be cut from a"):
        first_part(whole, nn.Identity())


def test_gradients_reach_the_active_part_only():
    layer = ElasticConv2d(4, 6, 5)
    layer(_noise(1, 2, 9, 9), 3, 3).sum().backward()
    active = torch.zeros_like(layer.weight, dtype=torch.bool)
    active[:3, :2, 1:4, 1:4] = True
    assert torch.all(layer.weight.grad[active] != 0)
    assert torch.all(layer.weight.grad[~active] == 0)


@pytest.mark.parametrize("call", [
    lambda: ElasticConv2d(4, 4)(torch.zeros(1, 4, 8, 8), 5),
    lambda: ElasticConv2d(4, 4)(torch.zeros(1, 5, 8, 8), 4),
    lambda: ElasticConv2d(4, 4, 3)(torch.zeros(1, 4, 8, 8), 4, 5),
    lambda: ElasticConv2d(4, 4)(torch.zeros(1, 4, 8, 8), 0),
    lambda: ElasticDepthwiseConv2d(4, 3)(torch.zeros(1, 5, 8, 8)),
    lambda: ElasticConvTranspose2d(4, 4)(torch.zeros(1, 4, 8, 8), 5),
    lambda: ElasticBatchNorm2d(4)(torch.zeros(1, 5, 8, 8)),
    lambda: ElasticConvTranspose2d(4, 4, 5),
])  # fmt: skip
def test_more_than_the_layer_holds_is_refused(call):
    with pytest.raises(InputError, match=r"1 to \d|kernel 2, 3 or 4"):
        call()
