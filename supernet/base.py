"""What every family's networks have in common: the plain Subnet, and the weight-sharing Supernet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from search_spaces import Arch, InputError, SearchSpace
from search_spaces.errors import did_you_mean
from supernet.elastic import (
    KERNEL_SHARING,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticConvTranspose2d,
    ElasticDepthwiseConv2d,
    ElasticLayer,
)

__all__ = ["Channels", "Subnet", "Supernet", "crop_like", "param_count"]

_PLAIN_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
_ELASTIC_LAYERS = (ElasticConv2d, ElasticDepthwiseConv2d, ElasticConvTranspose2d, ElasticBatchNorm2d)


DEFAULT_SIGMA = 2.0
"""Of the Gaussians in heatmaps, where nothing else is said: LitePose's and SimpleBaseline's."""


class Channels(NamedTuple):
    """One set of channels of a network, and every layer that it passes through.

    Attributes
    ----------
    written
        Names of the convolutions whose outputs the channels are (several where outputs are added).
    kept
        Names of the depthwise convolutions and normalisations that work on each channel by itself.
    read
        Names of the convolutions that take the channels as inputs.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    read: tuple[str, ...]


class Subnet(nn.Module, ABC):
    """A plain static network of one arch.

    Its convolutions are found under the names of the arch's layers: ``net.get_submodule(layer.name)``.

    Attributes
    ----------
    arch, joints
        The network's description and number of keypoints.
    output_names
        Names of the tensors that ``forward`` returns, in order.
    paradigm
        ``bottom-up``: everybody in a picture at once, to be told apart afterwards. ``top-down``: one person's
        crop in, that person's joints out.
    sigma
        Standard deviation, in cells, of the Gaussians that it was trained to give; reading heatmaps finely
        rests on it. Files of networks keep it as ``sigma`` in their metadata.
    """

    output_names: ClassVar[tuple[str, ...]]
    paradigm: ClassVar[Literal["bottom-up", "top-down"]] = "bottom-up"

    def __init__(self, arch: Arch, joints: int) -> None:
        super().__init__()
        self.arch = arch
        self.joints = joints
        self.sigma = DEFAULT_SIGMA

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the network's outputs for images ``x``, shape (N, 3, H, W)."""

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Pixels of the input per cell of each output, along either side."""

    @abstractmethod
    def norm_sources(self) -> Mapping[str, tuple[str, ...]]:
        """Return for every normalisation the convolutions whose sum it normalises, by name."""

    @abstractmethod
    def channels(self) -> tuple[Channels, ...]:
        """Return every set of channels whose order is free, so that a permutation keeps the function."""

    @property
    @abstractmethod
    def output_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that write the network's outputs."""

    def beginnings(self) -> Mapping[str, tuple[tuple[str, Any], ...]]:
        """Return the stages, in order, that equal archs begin with, and all values that each depends on.

        By the name of the module, which takes one tensor and returns one; its own values and those of the
        stages before it. Networks of one supernet that agree in them compute the same up to there.
        """
        return {}


class Supernet(nn.Module, ABC):
    """The weight-sharing network of a search space: it holds the weights of the widest arch.

    ``supernet(x, arch)`` runs the part of the weights that makes up ``arch``, which is an argument and never
    state. Any arch that fits into the widest one can be run, also at a resolution that the space lacks.

    Layers have the same names as in the family's plain network, but for those that :meth:`place` names; that
    is what extraction rests on.

    Attributes
    ----------
    space
        The search space.
    kernels
        How depthwise kernels are shared: one of :data:`supernet.elastic.KERNEL_SHARING`.
    widest
        The arch with the largest value of every choice.
    """

    plain: ClassVar[type[Subnet]]
    """The class of the family's plain networks."""

    def __init__(self, space: SearchSpace, kernels: str = "crop") -> None:
        super().__init__()
        if kernels not in KERNEL_SHARING:
            raise InputError(
                f"kernels are shared by {' or '.join(KERNEL_SHARING)}, not '{kernels}'"
                f"{did_you_mean(kernels, KERNEL_SHARING)}"
            )
        self.space = space
        self.kernels = kernels
        self.widest = space.largest()

    @abstractmethod
    def forward(self, x: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Return the outputs of ``arch`` for images ``x``, shape (N, 3, H, W), any size of at least 32 px."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the tensors that ``forward`` returns, in order."""
        return self.plain.output_names

    @property
    @abstractmethod
    def output_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that write the network's outputs."""

    def place(self, layer: str, arch: Arch) -> str:
        """Return where the weights of a layer of the plain network of ``arch`` are, by name."""
        return layer

    def check(self, arch: Arch) -> None:
        """Raise :class:`InputError` naming every value of ``arch`` that exceeds the widest arch's."""
        if arch.family != self.space.family:
            raise InputError(
                f"this supernet is of the {self.space.family.name} family, not {arch.family.name}"
            )
        wrong = []
        for (name, value), (_, most) in zip(arch.values, self.widest.values, strict=True):
            if name == "resolution":
                continue
            if isinstance(value, int) and isinstance(most, int):
                if value > most:
                    wrong.append(f"{name} = {value} > {most}")
            elif value != most:
                wrong.append(f"{name} = {value}, not {most}")
        if wrong:
            raise InputError(f"the arch does not fit into this supernet's widest: {'; '.join(wrong)}")

    def extract(self, arch: Arch) -> Subnet:
        """Return the plain network of ``arch`` with copies of its weights and running statistics.

        Its output equals ``self(x, arch)``, in evaluation and in training mode.

        Raises
        ------
        InputError
            If the arch does not fit into the supernet.
        """
        self.check(arch)
        like = next(self.parameters())
        with torch.device("meta"):  # nothing is initialised that is overwritten right after
            net = self.plain(arch, self.space.joints)
        net.to_empty(device=like.device).to(like.dtype)
        with torch.no_grad():
            for buffer in net.buffers():
                buffer.zero_()
            for _, own, part in self._pairs(net):
                own.copy_(part)
        return net.train(self.training)

    def load_plain(
        self, net: Subnet, layers: Callable[[str], bool] | None = None, *, around: bool = False
    ) -> None:
        """Take over the weights and statistics of a plain network: ``self(x, net.arch)`` then equals it.

        Weights outside of that arch keep what they hold; learned transforms of the kernels that it uses
        become crops again, or the equality would not hold.

        Parameters
        ----------
        net
            A network that is nowhere larger than the widest one, in the space or not.
        layers
            Tells by name which layers are taken over; by default all.
        around
            Set what surrounds the network's kernels in larger ones to zero: archs that differ from the
            network's in larger kernels only then equal it too.

        Raises
        ------
        InputError
            If the network does not fit into the supernet, or has another number of joints; nothing changes.
        """
        self.check(net.arch)
        if net.joints != self.space.joints:
            raise InputError(f"this supernet predicts {self.space.joints} joints, the network {net.joints}")
        for name, plain, elastic in list(self._layers(net)):
            if layers is None or layers(name):
                elastic.take(plain, around=around)

    def _layers(self, net: Subnet) -> Iterator[tuple[str, nn.Module, ElasticLayer]]:
        """Yield name, layer of the plain network, and the layer that stands for it."""
        for name, module in net.named_modules():
            if not isinstance(module, _PLAIN_LAYERS):
                continue
            elastic = self.get_submodule(self.place(name, net.arch))
            if not isinstance(elastic, _ELASTIC_LAYERS):
                raise TypeError(f"layer '{name}' of {type(self).__name__} is not elastic")
            yield name, module, elastic

    def _pairs(self, net: Subnet) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (name, tensor of the plain network, the supernet's tensor that stands for it)."""
        for name, module, elastic in self._layers(net):
            for key, part in elastic.parts(module).items():
                yield f"{name}.{key}", getattr(module, key), part


def param_count(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def crop_like(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` cropped to the height and width of ``like``; untouched where they agree already."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return x[..., : like.shape[-2], : like.shape[-1]]
