"""Depthwise convolution whose weight gradient is fast on CPUs.

oneDNN computes the gradient of a depthwise kernel of size 5 or more at a tenth or less of the speed of the
convolution itself (as torch 2.13 brings it, single precision), which makes it half of the time of a LitePose
training step. But the gradient is a depthwise convolution, too: with stride s,

    dW[c, i, j] = sum over n, y, x of X[n, c, s y + i - p, s x + j - p] * dY[n, c, y, x],

that is, the padded input of an image convolved by the output's gradient as kernel, of dilation s, which the
fast code of the convolution takes as well. ``experiments/benchmarks/depthwise.py`` compares both.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["FAST_FROM", "depthwise_conv2d", "weight_gradient"]

FAST_FROM: Final = 5
"""Kernel size from which on this is faster; for 3 oneDNN has code of its own."""
_SMALL: Final = 196
"""Pixels of an output up to which all images are done at once: below, calls cost more than copies."""


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the depthwise convolution of ``x`` (N, C, H, W) by ``weight`` (C, 1, k, k), k odd.

    Its padding is k // 2. The same as ``F.conv2d(x, weight, None, stride, k // 2, groups=C)``, to the bit.
    Where gradients of weights in single precision are needed on a CPU, they are :func:`weight_gradient`'s.
    """
    padding = weight.shape[-1] // 2
    fast = (
        torch.is_grad_enabled()
        and weight.requires_grad
        and weight.shape[-1] >= FAST_FROM
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    if fast:
        y: Tensor = _Depthwise.apply(x, weight, stride)  # type: ignore[no-untyped-call]
        return y
    return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad[:2]
        kernel, channels = weight.shape[-1], x.shape[1]
        if for_x:
            for_x = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                None,
                [ctx.stride] * 2,
                [kernel // 2] * 2,
                [1, 1],
                False,
                [0, 0],
                channels,
                [True, False, False],
            )[0]
        return (
            for_x if ctx.needs_input_grad[0] else None,
            weight_gradient(x, grad, kernel, ctx.stride) if for_weight else None,
            None,
        )


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the gradient of a depthwise convolution by its weight.

    Parameters
    ----------
    x
        The convolution's input (N, C, H, W). Fastest in channels-last layout.
    grad
        Gradient of its output, (N, C, ceil(H / stride), ceil(W / stride)).
    kernel, stride
        Odd kernel size, with padding ``kernel // 2``; stride.

    Returns
    -------
    Tensor
        (C, 1, kernel, kernel).
    """
    _, channels, height, width = x.shape
    if grad.shape[2] * grad.shape[3] <= _SMALL:
        # All images in one call, as further channels.
        x = x.permute(2, 3, 0, 1).reshape(1, height, width, -1).permute(0, 3, 1, 2)
        grad = grad.reshape(1, -1, *grad.shape[2:])
    total = x.new_zeros(x.shape[1], kernel, kernel)
    for image, kernels in zip(torch.split(x, 1), grad, strict=True):
        found = F.conv2d(
            image, kernels.unsqueeze(1), None, 1, kernel // 2, dilation=stride, groups=image.shape[1]
        )
        total += found[0, :, :kernel, :kernel]  # a last row or column that no output saw is cut off
    return total.reshape(-1, channels, kernel, kernel).sum(0).unsqueeze(1)
