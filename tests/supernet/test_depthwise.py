"""Depthwise convolution: torch's forward pass to the bit, and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from supernet.depthwise import depthwise_conv2d, weight_gradient


def drawn(seed: int, images: int, channels: int, size: tuple[int, int], kernel: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, *size, generator=generator)
    return x, torch.randn(channels, 1, kernel, kernel, generator=generator)


def gradients(
    x: Tensor, weight: Tensor, stride: int, ours: bool, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the gradients by input and weight of a random linear function of it."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    channels, kernel = x.shape[1], weight.shape[-1]
    y = (
        depthwise_conv2d(x, weight, stride)
        if ours
        else F.conv2d(x, weight, None, stride, kernel // 2, groups=channels)
    )
    factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    (y * factor).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and weight.grad is not None
    return y.detach(), x.grad, weight.grad


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 4),
    channels=st.integers(1, 20),
    height=st.integers(1, 34),
    width=st.integers(1, 34),
    kernel=st.sampled_from([3, 5, 7, 9]),
    stride=st.sampled_from([1, 2]),
    last=st.booleans(),
)
def test_gradients_are_those_in_double_precision(
    seed: int, images: int, channels: int, height: int, width: int, kernel: int, stride: int, last: bool
) -> None:
    x, weight = drawn(seed, images, channels, (height, width), kernel)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    y, by_x, by_weight = gradients(x, weight, stride, ours=True)
    assert torch.equal(y, gradients(x, weight, stride, ours=False)[0])
    _, exact_x, exact_weight = gradients(x.double(), weight.double(), stride, ours=False)
    # Sums of random terms may nearly cancel, so errors are told by the size of the terms.
    terms = weight_gradient(x.abs().double(), torch.ones_like(y).double(), kernel, stride).max()
    assert error(by_x, exact_x) < 1e-4
    assert float((by_weight.double() - exact_weight).abs().max() / terms.clamp(min=1e-6)) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_large_maps_one_image_at_a_time(stride: int) -> None:
    x, weight = drawn(1, 2, 3, (75, 113), 5)
    assert (
        error(gradients(x, weight, stride, True)[2], gradients(x.double(), weight.double(), stride, False)[2])
        < 1e-4
    )


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, weight = drawn(2, 2, 6, (12, 12), 5)
    depthwise_conv2d(x, weight.requires_grad_(), 1).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is None and weight.grad is not None
    frozen = weight.detach()
    depthwise_conv2d(x.requires_grad_(), frozen, 1).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and frozen.grad is None
    with torch.no_grad():
        assert not depthwise_conv2d(x, weight, 1).requires_grad


def test_other_precisions_are_torchs_own() -> None:
    x, weight = drawn(3, 2, 6, (12, 12), 5)
    for ours, theirs in zip(
        gradients(x.double(), weight.double(), 1, True),
        gradients(x.double(), weight.double(), 1, False),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, weight.requires_grad_(), 1).dtype == torch.bfloat16
