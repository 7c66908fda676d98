"""Layers whose active part is chosen at every call: small subclasses of the torch layers that they stretch.

Every layer holds the weights of its widest form. A call says how many output channels and which kernel are
active; the active input channels are those of the tensor that comes in. The active part of a weight is its
first channels and the crop of its kernel that keeps the alignment (the centre, for odd kernels). It is a
view: only the active part is computed, and gradients and running statistics reach only it. A depthwise
convolution can instead make its smaller kernels by learned transforms of the larger ones.

The state of a call lives in its arguments, so one set of weights can serve several archs in turn.

Every layer answers the same two questions about a plain layer that it stands for: :meth:`parts`, the tensors
that the plain one would have, and :meth:`take`, which writes the plain one's into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import InputError
from supernet.depthwise import depthwise_conv2d

__all__ = [
    "DECONV_GEOMETRY",
    "KERNEL_SHARING",
    "ElasticBatchNorm2d",
    "ElasticConv2d",
    "ElasticConvTranspose2d",
    "ElasticDepthwiseConv2d",
    "ElasticLayer",
    "deconv",
    "first_part",
]

DECONV_GEOMETRY: Mapping[int, tuple[int, int]] = {2: (0, 0), 3: (1, 1), 4: (1, 0)}
"""``(padding, output padding)`` of each kernel with which a transposed convolution of stride 2 doubles."""

KERNEL_SHARING: Final = ("crop", "transform")
"""How a smaller depthwise kernel follows from the widest: its centre, or that times a learned matrix."""


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


def _centre(weight: Tensor, kernel: int) -> Tensor:
    """Return the view of the middle of odd kernels, shape (..., kernel, kernel)."""
    start = (weight.shape[-1] - kernel) // 2
    return weight[..., start : start + kernel, start : start + kernel]


class _Elastic:
    """What every layer here can do, beside running."""

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that stand for those of ``plain``, by their names in it."""
        raise NotImplementedError

    @torch.no_grad()
    def take(self, plain: nn.Module, *, around: bool = False) -> None:
        """Become ``plain`` where the layer is run at its widths and kernel; :meth:`parts` then equal it.

        Parameters
        ----------
        plain
            A layer that is nowhere larger than this one.
        around
            Set what surrounds its kernel in the widest one to zero, so that larger kernels do the same.
        """
        for name, part in self.parts(plain).items():
            if around and name == "weight":
                self._surroundings(plain).zero_()
            part.copy_(getattr(plain, name))

    def _surroundings(self, plain: nn.Module) -> Tensor:
        """Return the view of the weight that has the widths of ``plain``, and the widest kernel."""
        return self.parts(plain)["weight"]


class ElasticConv2d(_Elastic, nn.Conv2d):
    """Dense convolution with odd kernel, elastic in both widths and in kernel size.

    Parameters
    ----------
    c_in, c_out, kernel
        The largest of each.
    stride
        Stride; the output is ``ceil(size / stride)`` for every kernel.
    bias
        Whether it has a bias.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, bias: bool = False) -> None:
        super().__init__(c_in, c_out, kernel, stride, kernel // 2, bias=bias)

    def active(self, c_out: int, c_in: int, kernel: int) -> Tensor:
        """Return the active part of the weight, a view of shape (c_out, c_in, kernel, kernel)."""
        _check("output channels", c_out, self.out_channels)
        _check("input channels", c_in, self.in_channels)
        _check("kernel", kernel, self.kernel_size[0])
        return _centre(self.weight[:c_out, :c_in], kernel)

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that stand for those of ``plain``, by their names in it: views."""
        c_out, c_in, kernel, _ = _weight(plain, nn.Conv2d).shape
        found = {"weight": self.active(c_out, c_in, kernel)}
        if self.bias is not None:
            found["bias"] = self.bias[:c_out]
        return found

    def _surroundings(self, plain: nn.Module) -> Tensor:
        c_out, c_in, _, _ = _weight(plain, nn.Conv2d).shape
        return self.active(c_out, c_in, self.kernel_size[0])

    def forward(self, x: Tensor, c_out: int | None = None, kernel: int | None = None) -> Tensor:
        """Return the convolution of ``x`` (N, c_in, H, W) by the active part; None stands for the largest."""
        kernel = kernel or self.kernel_size[0]
        weight = self.active(self.out_channels if c_out is None else c_out, x.shape[1], kernel)
        bias = None if self.bias is None else self.bias[: len(weight)]
        return F.conv2d(x, weight, bias, self.stride, kernel // 2)


class ElasticDepthwiseConv2d(_Elastic, nn.Conv2d):
    """Depthwise convolution without bias and with odd kernel, elastic in width and in kernel size.

    A smaller kernel is the centre of the widest one. With ``transformed`` it is learned: the kernel of size
    k is the centre w of the one of size k + 2, flattened, times a matrix of k^2 x k^2 that all channels of
    the layer share (once-for-all networks, arXiv 1908.09791, section 3.3): the two kernels then need not be
    good at the same place. The chain goes from the widest to ``transformed``; what is smaller is cropped.

    A matrix is kept as its deviation from the identity, w + w D: it begins at zero, where the transform is
    the crop to the last bit, and weight decay pulls towards the crop instead of towards a kernel of zeros.

    Parameters
    ----------
    channels, kernel
        The largest of each.
    stride
        Stride; the output is ``ceil(size / stride)`` for every kernel.
    transformed
        Smallest kernel that is made by learned transforms; None makes none.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, transformed: int | None = None) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        sizes = range(kernel - 2, (kernel if transformed is None else transformed) - 1, -2)
        self.transforms = nn.ParameterDict(
            {str(size): nn.Parameter(torch.zeros(size**2, size**2)) for size in sizes}
        )

    def active(self, channels: int, kernel: int) -> Tensor:
        """Return the active weight, shape (channels, 1, kernel, kernel): a view where nothing transforms."""
        _check("channels", channels, self.out_channels)
        _check("kernel", kernel, self.kernel_size[0])
        weight = self.weight[:channels]
        for size, matrix in self._chain(kernel):
            flat = _centre(weight, size).flatten(1)
            # Kernels are as precise as parameters, whatever the convolution computes in.
            with torch.autocast(weight.device.type, enabled=False):
                weight = torch.addmm(flat, flat, matrix).view(channels, 1, size, size)
        return _centre(weight, kernel)

    def _chain(self, kernel: int) -> list[tuple[int, Tensor]]:
        """Return size and matrix of every transform between the widest kernel and ``kernel``, in order."""
        sizes = sorted((int(size) for size in self.transforms if int(size) >= kernel), reverse=True)
        return [(size, self.transforms[str(size)]) for size in sizes]

    @torch.no_grad()
    def reset_transforms(self, kernel: int = 1) -> None:
        """Make the transforms down to ``kernel`` crops again."""
        for _, matrix in self._chain(kernel):
            matrix.zero_()

    def parts(self, plain: nn.Module) -> dict[str, Tensor]:
        """Return the kernel that stands for that of ``plain``; no view where a transform makes it."""
        channels, _, kernel, _ = _weight(plain, nn.Conv2d).shape
        return {"weight": self.active(channels, kernel)}

    @torch.no_grad()
    def take(self, plain: nn.Module, *, around: bool = False) -> None:
        """Become ``plain`` (see :meth:`ElasticConv2d.take`); transforms that lead to its kernel are reset.

        They are shared by all channels, so where ``plain`` is narrower, the others too get crops again.
        """
        given = _weight(plain, nn.Conv2d)
        channels, kernel = len(given), given.shape[-1]
        _check("channels", channels, self.out_channels)
        _check("kernel", kernel, self.kernel_size[0])
        self.reset_transforms(kernel)
        if around:
            self.weight[:channels].zero_()
        _centre(self.weight[:channels], kernel).copy_(given)

    def forward(self, x: Tensor, kernel: int | None = None) -> Tensor:
        """Return the active part applied to ``x`` (N, channels, H, W); None stands for the largest kernel."""
        kernel = kernel or self.kernel_size[0]
        return depthwise_conv2d(x, self.active(x.shape[1], kernel), self.stride[0])


class ElasticConvTranspose2d(_Elastic, nn.ConvTranspose2d):
    """Doubling transposed convolution without bias (kernel 2, 3 or 4), elastic in widths and kernel.

    A smaller kernel is the crop of the larger one whose taps reach the same output pixels: input pixel i
    meets output pixel ``2 i + tap - padding``, so the crop starts at the difference of the paddings. It stays
    a crop whatever depthwise kernels do: at stride 2 each output phase has taps of its own, which a matrix
    over all taps would mix, and with every pair of channels having a kernel it would have to be applied
    to the largest weights of the network.
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
        """Return the tensors that stand for those of ``plain``, by their names in it: views."""
        c_in, c_out, kernel, _ = _weight(plain, nn.ConvTranspose2d).shape
        return {"weight": self.active(c_in, c_out, kernel)}

    def _surroundings(self, plain: nn.Module) -> Tensor:
        c_in, c_out, _, _ = _weight(plain, nn.ConvTranspose2d).shape
        return self.active(c_in, c_out, self.kernel_size[0])

    def forward(  # type: ignore[override]  # the torch layer takes an output size here
        self, x: Tensor, c_out: int | None = None, kernel: int | None = None
    ) -> Tensor:
        """Return the active part applied to ``x`` (N, c_in, H, W): (N, c_out, 2 H, 2 W)."""
        kernel = kernel or self.kernel_size[0]
        weight = self.active(x.shape[1], self.out_channels if c_out is None else c_out, kernel)
        padding, extra = _deconv_geometry(kernel)
        return F.conv_transpose2d(x, weight, None, 2, padding, extra)


class ElasticBatchNorm2d(_Elastic, nn.BatchNorm2d):
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
        """Return the tensors that stand for those of ``plain``, by their names in it: views."""
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


def first_part(whole: nn.Module, plain: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of one plain layer that a smaller one of its kind takes from it: views, by name.

    They are what an elastic layer with the weights of ``whole`` would run: the first channels, and the crop
    of the kernel that keeps its alignment.

    Raises
    ------
    InputError
        If the layers are of different kinds, or ``plain`` is anywhere larger.
    """
    if type(whole) is not type(plain):
        raise InputError(f"a {type(plain).__name__} cannot be cut from a {type(whole).__name__}")
    found = {}
    for name, own in plain.state_dict().items():
        part: Tensor = getattr(whole, name)
        if own.dim() == 4:
            kernel, most = own.shape[-1], part.shape[-1]
            _check("kernel", kernel, most)
            start = (most - kernel) // 2
            if isinstance(plain, nn.ConvTranspose2d):
                start = _deconv_geometry(most)[0] - _deconv_geometry(kernel)[0]
            part = part[..., start : start + kernel, start : start + kernel]
        for axis, size in enumerate(own.shape[:2]):
            _check("channels", size, part.shape[axis])
            part = part.narrow(axis, 0, size)
        found[name] = part
    return found


def _weight(plain: nn.Module, kind: type[Any]) -> Tensor:
    if not isinstance(plain, kind):
        raise InputError(f"a {kind.__name__} is needed to fill from or into, not a {type(plain).__name__}")
    weight: Tensor = plain.weight
    return weight
