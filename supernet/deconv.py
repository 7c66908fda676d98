"""Top-down encoder-decoders in torch: the plain network of an arch, and the supernet of a space.

A family of :mod:`search_spaces.deconv` says which blocks a network executes, one after the other: stem,
stages of inverted bottlenecks, perhaps a last convolution, transposed convolutions, the heatmaps. Each block
is a chain of layers. So the networks here are built from those blocks and run them in that order, for every
family of this kind. A layer ``stage0.block1.depthwise`` is the module of that name, its batch normalisation
``stage0.block1.depthwise_norm``, and the two convolutions of a squeeze-and-excitation ``stage2.block0.se``
are ``stage2.block0.se.reduce`` and ``stage2.block0.se.expand``.

Sizes that are odd somewhere on the way are rounded up in the encoder, and what a deconv step doubles is
cropped to the encoder's size there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar, Final, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import Arch, Block, Family, InputError, Layer, SearchSpace
from search_spaces.deconv import DeconvFamily
from search_spaces.layers import Activation
from supernet.base import Channels, Subnet, Supernet, crop_like
from supernet.elastic import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticConvTranspose2d,
    ElasticDepthwiseConv2d,
    deconv,
)

__all__ = ["DeconvPose", "DeconvSupernet"]

_OPTIONAL: Final = {
    "last_width": "the last convolution of the encoder",
    "head.deconv2.width": "the third deconv step",
}
"""What a network lacks where the value is 0."""


def _own(layer: Layer) -> str:
    """Return the layer's name within its block."""
    return layer.name.rpartition(".")[2]


def _activate(x: Tensor, activation: Activation) -> Tensor:
    """Return the activation of what nobody else reads: it is written over."""
    if activation == "relu":
        return F.relu(x, inplace=True)
    if activation == "relu6":
        return F.relu6(x, inplace=True)
    if activation == "hswish":
        return F.hardswish(x, inplace=True)
    return x


@lru_cache(maxsize=256)
def _blocks(arch: Arch, joints: int) -> tuple[Block, ...]:
    """Return the blocks of an arch; the same ones are asked for at every step of a training."""
    return arch.blocks(joints)


def _room(block: Block) -> str:
    """Return which part of the network a block is in: ``stem``, a stage, ``last`` or ``head``."""
    return block.name.partition(".")[0]


def _references(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the parts of the encoder whose outputs have the sizes of the deconv steps' outputs, in order."""
    stride, last = 1, {}
    for block in blocks:
        if block.layers[0].kind == "deconv":
            break
        stride *= math.prod(layer.stride for layer in block.layers)
        last[stride] = _room(block)
    return tuple(last[stride] for stride in sorted(last, reverse=True)[1:])


# -- the plain network ---------------------------------------------------------------------------------------


class _SqueezeExcite(nn.Module):
    """Channels weighed by what all pixels of them say (arXiv 1709.01507; gate of arXiv 1905.02244)."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeeze, 1)
        self.expand = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)), inplace=True)
        return x * F.hardsigmoid(self.expand(gate))


class _Chain(nn.Module):
    """The layers of one block, one after the other, and what its last one adds: the block's input."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.residual = block.layers[-1].add
        self._steps = tuple((_own(layer), layer.norm, layer.activation) for layer in block.layers)
        for layer in block.layers:
            self.add_module(_own(layer), _plain(layer))
            if layer.norm:
                self.add_module(f"{_own(layer)}_norm", nn.BatchNorm2d(layer.c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name, norm, activation in self._steps:
            y = self.get_submodule(name)(y)
            if norm:
                y = self.get_submodule(f"{name}_norm")(y)
            y = _activate(y, activation)
        return x + y if self.residual else y


class _Up(_Chain):
    """One deconv step."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:  # type: ignore[override]  # it needs a size, too
        whole = self.get_submodule("up")(x)
        x = crop_like(whole, like)
        # Folded, the norm is none: written in place into a part, an export would scatter it into the whole.
        return F.relu(self.get_submodule("up_norm")(x), inplace=x is whole)


class _Head(nn.Sequential):
    """Deconv steps, one after the other, and the heatmaps."""

    def forward(self, x: Tensor, likes: list[Tensor]) -> Tensor:  # type: ignore[override]  # likewise
        *steps, output = self.children()
        for step, like in zip(steps, likes, strict=True):
            x = step(x, like)
        return cast(Tensor, output(x))


def _plain(layer: Layer) -> nn.Module:
    if layer.kind == "se":
        return _SqueezeExcite(layer.c_in, layer.squeeze)
    if layer.kind == "deconv":
        return deconv(layer.c_in, layer.c_out, layer.kernel)
    pad = layer.kernel // 2
    return nn.Conv2d(
        layer.c_in, layer.c_out, layer.kernel, layer.stride, pad, groups=layer.groups, bias=layer.bias
    )


class DeconvPose(Subnet):
    """The plain network of one arch of a top-down family.

    Parameters
    ----------
    arch
        An arch of one of the families of :mod:`search_spaces.deconv`.
    joints
        Number of keypoints J.

    Raises
    ------
    InputError
        If the arch is of another family or ``joints`` is less than 1.
    """

    output_names: ClassVar[tuple[str, ...]] = ("heatmaps",)
    paradigm: ClassVar[Literal["bottom-up", "top-down"]] = "top-down"

    def __init__(self, arch: Arch, joints: int) -> None:
        super().__init__(arch, joints)
        self._family = _family(arch.family)
        blocks = _blocks(arch, joints)
        steps = sum(block.layers[0].kind == "deconv" for block in blocks)
        self._references = _references(blocks)[:steps]
        for room, inside in groupby(blocks, _room):
            own: OrderedDict[str, nn.Module] = OrderedDict(
                (block.name.partition(".")[2], (_Up if block.layers[0].kind == "deconv" else _Chain)(block))
                for block in inside
            )
            if "" in own:  # one block is the whole part
                self.add_module(room, own[""])
            else:
                self.add_module(room, _Head(own) if room == "head" else nn.Sequential(own))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the output maps.

        Parameters
        ----------
        x
            Normalised crops, shape (N, 3, H, W), each side at least 32.

        Returns
        -------
        tuple of Tensor
            ``heatmaps`` (N, J, h, w): h = ceil(H / stride), with a stride of 4 or 8; widths likewise.
        """
        *encoder, (_, head) = self.named_children()
        features = {}
        for name, part in encoder:
            x = features[name] = part(x)
        return (head(x, [features[name] for name in self._references]),)

    def norm_sources(self) -> Mapping[str, tuple[str, ...]]:
        """Return for every normalisation the convolution whose output it normalises, by name."""
        return {f"{layer.name}_norm": (layer.name,) for layer in self._layers() if layer.norm}

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the input per cell of the heatmaps: 4 or 8."""
        return (self._family.heatmap_stride(self.arch.as_dict()),)

    @property
    def output_layers(self) -> tuple[str, ...]:
        """Name of the convolution that writes the heatmaps."""
        return (self._layers()[-1].name,)

    def beginnings(self) -> Mapping[str, tuple[tuple[str, Any], ...]]:
        """Return the stages and the last convolution, and the values that each depends on."""
        found, values = {}, [("stem_width", self.arch["stem_width"])]
        for room in self._modules:
            if room.startswith("stage"):
                values += [(name, value) for name, value in self.arch.values if name.startswith(f"{room}.")]
            elif room == "last":
                values.append(("last_width", self.arch["last_width"]))
            else:
                continue
            found[room] = tuple(values)
        return found

    def channels(self) -> tuple[Channels, ...]:
        """Return every set of channels whose order is free: all but the picture's and the heatmaps'."""
        found: list[_Set] = []
        flow: _Set | None = None
        for block in _blocks(self.arch, self.joints):
            entering = flow
            for layer in block.layers:
                norm = [f"{layer.name}_norm"] if layer.norm else []
                if layer.kind == "se":
                    assert flow is not None
                    reduce, expand = f"{layer.name}.reduce", f"{layer.name}.expand"
                    flow.written.append(expand)
                    flow.read.append(reduce)
                    found.append(_Set([reduce], [], [expand]))
                elif layer.kind == "dwconv":
                    assert flow is not None
                    flow.kept += [layer.name, *norm]
                else:
                    if flow is not None:
                        flow.read.append(layer.name)
                    flow = _Set([layer.name], norm, [])
                    found.append(flow)
            if block.layers[-1].add:  # added up, channels are one set
                assert entering is not None and flow is not None
                found.remove(flow)
                entering.written += flow.written
                entering.kept += flow.kept
                flow = entering
        return tuple(
            Channels(tuple(each.written), tuple(each.kept), tuple(each.read)) for each in found if each.read
        )

    def _layers(self) -> tuple[Layer, ...]:
        return tuple(layer for block in _blocks(self.arch, self.joints) for layer in block.layers)


class _Set:
    """A :class:`supernet.base.Channels` that still grows."""

    def __init__(self, written: list[str], kept: list[str], read: list[str]) -> None:
        self.written, self.kept, self.read = written, kept, read


def _family(family: Family) -> DeconvFamily:
    if not isinstance(family, DeconvFamily):
        raise InputError(f"a deconv network needs an arch of a deconv family, not one of {family.name}")
    return family


# -- the supernet --------------------------------------------------------------------------------------------


class _ElasticSqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.reduce = ElasticConv2d(channels, squeeze, bias=True)
        self.expand = ElasticConv2d(squeeze, channels, bias=True)

    def forward(self, x: Tensor, squeeze: int) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1), squeeze), inplace=True)
        return x * F.hardsigmoid(self.expand(gate, x.shape[1]))


class _ElasticChain(nn.Module):
    """The widest form of a block; which part of it runs, the block of an arch says."""

    def __init__(self, block: Block, transformed: int | None) -> None:
        super().__init__()
        for layer in block.layers:
            self.add_module(_own(layer), _elastic(layer, transformed))
            if layer.norm:
                self.add_module(f"{_own(layer)}_norm", ElasticBatchNorm2d(layer.c_out))

    def forward(self, x: Tensor, block: Block) -> Tensor:
        y = x
        for layer in block.layers:
            name = _own(layer)
            module = self.get_submodule(name)
            if layer.kind == "se":
                y = module(y, layer.squeeze)
            elif layer.kind == "dwconv":
                y = module(y, layer.kernel)
            else:
                y = module(y, layer.c_out, layer.kernel)
            if layer.norm:
                y = self.get_submodule(f"{name}_norm")(y)
            y = _activate(y, layer.activation)
        return x + y if block.layers[-1].add else y


class _ElasticUp(_ElasticChain):
    def forward(self, x: Tensor, block: Block, like: Tensor) -> Tensor:  # type: ignore[override]  # likewise
        (layer,) = block.layers
        x = crop_like(self.get_submodule("up")(x, layer.c_out, layer.kernel), like)
        return F.relu(self.get_submodule("up_norm")(x), inplace=True)


def _elastic(layer: Layer, transformed: int | None) -> nn.Module:
    if layer.kind == "se":
        return _ElasticSqueezeExcite(layer.c_in, layer.squeeze)
    if layer.kind == "deconv":
        return ElasticConvTranspose2d(layer.c_in, layer.c_out, layer.kernel)
    if layer.kind == "dwconv":
        return ElasticDepthwiseConv2d(layer.c_in, layer.kernel, layer.stride, transformed)
    return ElasticConv2d(layer.c_in, layer.c_out, layer.kernel, layer.stride, layer.bias)


class DeconvSupernet(Supernet):
    """The weights of every network of a top-down space, shared: the widest arch's.

    Width is the first channels, depth the first blocks, a depthwise kernel the centre of the largest, a
    deconv kernel the aligned crop of the largest, the hidden channels of a bottleneck and the squeezed ones
    of a squeeze-and-excitation the first so many as the family gives the *active* inputs; a bottleneck has a
    residual where its *active* widths agree and its stride is 1.

    What reads different things has weights of its own: the first deconv step of archs without the last
    convolution (``head.deconv0_without_last``) where a space has archs of both kinds, and the heatmaps of two
    deconv steps (``head.output1``) and of three (``head.output2``).

    Parameters
    ----------
    space
        A space of one of the families of :mod:`search_spaces.deconv`.
    kernels
        ``crop``: as above. ``transform``: depthwise kernels that are smaller than the widest are made by
        learned transforms, down to the smallest of their stage in the space; see
        :class:`supernet.elastic.ElasticDepthwiseConv2d`.
    """

    plain: ClassVar[type[Subnet]] = DeconvPose

    def __init__(self, space: SearchSpace, kernels: str = "crop") -> None:
        super().__init__(space, kernels)
        _family(space.family)
        least = space.smallest()
        self._lacking = tuple(name for name in _OPTIONAL if least[name] == 0)

        def chain(block: Block) -> nn.Module:
            if block.layers[0].kind == "deconv":
                return _ElasticUp(block, None)
            room = _room(block)
            varied = kernels == "transform" and room.startswith("stage")
            return _ElasticChain(block, least.number(f"{room}.kernel") if varied else None)

        for arch in self._forms():
            for block in _blocks(arch, space.joints):
                room, _, own = self.place(block.name, arch).partition(".")
                if room not in self._modules:
                    self.add_module(room, nn.ModuleDict() if own else chain(block))
                inside = self._modules[room]
                if isinstance(inside, nn.ModuleDict) and own not in inside:  # else the widest has it already
                    inside[own] = chain(block)

    def _forms(self) -> list[Arch]:
        """Return the widest arch, and it without what a space leaves out of some archs."""
        found = [self.widest]
        if "last_width" in self._lacking and self.widest["last_width"]:
            found.append(self.widest.replace(last_width=0))
        if "head.deconv2.width" in self._lacking and self.widest["head.deconv2.width"]:
            found.append(self.widest.replace(head__deconv2__width=0, head__deconv2__kernel=0))
        return found

    def place(self, layer: str, arch: Arch) -> str:
        """Return where the weights of a layer of the plain network of ``arch`` are, by name."""
        if not arch["last_width"] and self.widest["last_width"]:
            first, name, rest = layer.partition("head.deconv0")
            if not first and (not rest or rest.startswith(".")):
                return f"{name}_without_last{rest}"
        return layer

    def check(self, arch: Arch) -> None:
        """Raise :class:`InputError` naming every value of ``arch`` that the widest one has no weights for."""
        super().check(arch)
        for name, what in _OPTIONAL.items():
            if arch[name] == 0 and self.widest[name] and name not in self._lacking:
                raise InputError(
                    f"every network of this supernet has {what}; the arch has none ({name} = 0), and the"
                    " supernet no weights for what comes behind"
                )

    def forward(self, x: Tensor, arch: Arch) -> tuple[Tensor]:
        """Return what the plain network of ``arch`` returns (see :meth:`DeconvPose.forward`).

        Raises
        ------
        InputError
            If the arch does not fit into the supernet.
        """
        self.check(arch)
        blocks = _blocks(arch, self.space.joints)
        features: dict[str, Tensor] = {}
        references = iter(_references(blocks))
        for block in blocks:
            module = self.get_submodule(self.place(block.name, arch))
            if isinstance(module, _ElasticUp):
                x = module(x, block, features[next(references)])
            else:
                x = features[_room(block)] = module(x, block)
        return (x,)

    @property
    def output_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that write heatmaps, behind two deconv steps or three."""
        return tuple(
            dict.fromkeys(_blocks(arch, self.space.joints)[-1].layers[-1].name for arch in self._forms())
        )
