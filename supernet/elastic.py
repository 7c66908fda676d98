"""Layers whose active part is chosen at every call: small subclasses of the torch layers that they stretch.

Every layer holds the weights of its widest form. A call says how many output channels and which kernel are
active; the active input channels are those of the tensor that comes in. The active part of a weight is its
first channels and the crop of its kernel that keeps the alignment (the centre, for odd kernels). It is a
view: only the active part is computed, and gradients and running statistics reach only it.

The state of a call lives in its arguments, so one set of weights can serve several archs in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import InputError

__all__ = [
    "DECONV_GEOMETRY",
    "ElasticBatchNorm2d",
    "ElasticConv2d",
    "ElasticConvTranspose2d",
    "ElasticDepthwiseConv2d",
    "ElasticLayer",
    "deconv",
]

DECONV_GEOMETRY: Mapping[int, tuple[int, int]] = {2: (0, 0), 3: (1, 1), 4: (1, 0)}
"""``(padding, output padding)`` of each kernel with which a transposed convolution of stride 2 doubles."""


def deconv(c_in: int, c_out: int, kernel: int) -> nn.ConvTranspose2d:
    """Return a plain transposed convolution that doubles height and width; kernel 2, 3 or 4, no bias."""
    padding, extra = _deconv_geometry(kernel)
    return nn.ConvTranspose2d(
        c_in, c_out, kernel, stride=2, padding=padding, output_padding=extra, bias=False
    )


def _deconv_geometry(kernel: int) -> tuple[int, int]:
    if kernel not in DECONV_GEOMETRY:
        raise InputError(f"a doubling transposed convolution has kernel 2, 3 or 4, not {kernel}")
    return DECONV_GEOMETRY[kernel]


def _check(what: str, value: int, most: int) -> None:
    # Slicing beyond the end would silently return less than was asked for.
    if not 1 <= value <= most:
        raise InputError(f"an elastic layer of {most} {what} cannot run with {value}; ask for 1 to {most}")


class ElasticConv2d(nn.Conv2d):
    """Dense convolution without bias and with odd kernel, elastic in both widths and in kernel size.

    Parameters
    ----------
    c_in, c_out, kernel
        The largest of each.
    stride
        Stride; the output is ``ceil(size / stride)`` for every kernel.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, kernel // 2, bias=False)

    def active(self, c_out: int, c_in: int, kernel: int) -> Tensor:
        """Return the active part of the weight, a view of shape (c_out, c_in, kernel, kernel)."""
        _check("output channels", c_out, self.out_channels)
        _check("input channels", c_in, self.in_channels)
        _check("kernel", kernel, self.kernel_size[0])
        start = (self.kernel_size[0] - kernel) // 2
        return self.weight[:c_out, :c_in, start : start + kernel, start : start + kernel]

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return views of the tensors that stand for those of ``plain``, by their names in it."""
        c_out, c_in, kernel, _ = _weight(plain, nn.Conv2d).shape
        return {"weight": self.active(c_out, c_in, kernel)}

    def forward(self, x: Tensor, c_out: int | None = None, kernel: int | None = None) -> Tensor:
        """Return the convolution of ``x`` (N, c_in, H, W) by the active part; None stands for the largest."""
        kernel = kernel or self.kernel_size[0]
        weight = self.active(self.out_channels if c_out is None else c_out, x.shape[1], kernel)
        return F.conv2d(x, weight, None, self.stride, kernel // 2)


class ElasticDepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution without bias and with odd kernel, elastic in width and in kernel size."""

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)

    def active(self, channels: int, kernel: int) -> Tensor:
        """Return the active part of the weight, a view of shape (channels, 1, kernel, kernel)."""
        _check("channels", channels, self.out_channels)
        _check("kernel", kernel, self.kernel_size[0])
        start = (self.kernel_size[0] - kernel) // 2
        return self.weight[:channels, :, start : start + kernel, start : start + kernel]

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return views of the tensors that stand for those of ``plain``, by their names in it."""
        channels, _, kernel, _ = _weight(plain, nn.Conv2d).shape
        return {"weight": self.active(channels, kernel)}

    def forward(self, x: Tensor, kernel: int | None = None) -> Tensor:
        """Return the active part applied to ``x`` (N, channels, H, W); None stands for the largest kernel."""
        kernel = kernel or self.kernel_size[0]
        channels = x.shape[1]
        return F.conv2d(x, self.active(channels, kernel), None, self.stride, kernel // 2, groups=channels)


class ElasticConvTranspose2d(nn.ConvTranspose2d):
    """Doubling transposed convolution without bias (kernel 2, 3 or 4), elastic in widths and kernel.

    A smaller kernel is the crop of the larger one whose taps reach the same output pixels: input pixel i
    meets output pixel ``2 i + tap - padding``, so the crop starts at the difference of the paddings.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 4) -> None:
        padding, extra = _deconv_geometry(kernel)
        super().__init__(c_in, c_out, kernel, 2, padding, extra, bias=False)

    def active(self, c_in: int, c_out: int, kernel: int) -> Tensor:
        """Return the active part of the weight, a view of shape (c_in, c_out, kernel, kernel)."""
        _check("input channels", c_in, self.in_channels)
        _check("output channels", c_out, self.out_channels)
        _check("kernel", kernel, self.kernel_size[0])
        start = _deconv_geometry(self.kernel_size[0])[0] - _deconv_geometry(kernel)[0]
        return self.weight[:c_in, :c_out, start : start + kernel, start : start + kernel]

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return views of the tensors that stand for those of ``plain``, by their names in it."""
        c_in, c_out, kernel, _ = _weight(plain, nn.ConvTranspose2d).shape
        return {"weight": self.active(c_in, c_out, kernel)}

    def forward(  # type: ignore[override]  # the torch layer takes an output size here
        self, x: Tensor, c_out: int | None = None, kernel: int | None = None
    ) -> Tensor:
        """Return the active part applied to ``x`` (N, c_in, H, W): (N, c_out, 2 H, 2 W)."""
        kernel = kernel or self.kernel_size[0]
        weight = self.active(x.shape[1], self.out_channels if c_out is None else c_out, kernel)
        padding, extra = _deconv_geometry(kernel)
        return F.conv_transpose2d(x, weight, None, 2, padding, extra)


class ElasticBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the channels that come in: the first ones of its parameters and statistics.

    In training it normalises by the batch and updates the running statistics of these channels only (with
    the layer's momentum); in evaluation it uses their running statistics. A channel's statistics are shared
    by every arch that has it, so a subnet needs :func:`supernet.bn.recalibrate` before it is judged.
    """

    def active(self, channels: int) -> dict[str, Tensor]:
        """Return views of weight, bias, running_mean and running_var, each of shape (channels,)."""
        _check("channels", channels, self.num_features)
        assert self.running_mean is not None and self.running_var is not None
        return {
            "weight": self.weight[:channels],
            "bias": self.bias[:channels],
            "running_mean": self.running_mean[:channels],
            "running_var": self.running_var[:channels],
        }

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return views of the tensors that stand for those of ``plain``, by their names in it."""
        return self.active(len(_weight(plain, nn.BatchNorm2d)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, channels, H, W) normalised."""
        part = self.active(x.shape[1])
        return F.batch_norm(
            x,
            part["running_mean"],
            part["running_var"],
            part["weight"],
            part["bias"],
            self.training,
            self.momentum if self.momentum is not None else 0.1,
            self.eps,
        )


ElasticLayer = ElasticConv2d | ElasticDepthwiseConv2d | ElasticConvTranspose2d | ElasticBatchNorm2d
"""Any of the layers above."""


def _weight(plain: nn.Module, kind: type[Any]) -> Tensor:
    if not isinstance(plain, kind):
        raise InputError(f"a {kind.__name__} is needed to fill from or into, not a {type(plain).__name__}")
    weight: Tensor = plain.weight
    return weight
