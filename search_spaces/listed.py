"""Networks that are known by their layers alone: others' pose networks, to compare costs with.

They are no archs: no search space holds them, and nothing here trains or runs them. What they are made of
follows from a few numbers in ``listed.json`` beside this module and from the construction rules below, which
are those of the networks' own public code:

- ``hrnet``, ``higherhrnet``: HRNet (arXiv 1902.09212) with one output at 1/4, and HigherHRNet (arXiv
  1908.10357), whose branches at 1/4 to 1/32 exchange features after every module;
- ``efficient-hrnet``: EfficientHRNet (arXiv 2007.08090), an EfficientNet whose features feed the branches;
- ``lightweight-openpose``: Lightweight OpenPose (arXiv 1811.12004), a dilated MobileNet and two stages of
  heatmaps and part affinity fields.

Where a network does what :class:`search_spaces.layers.Layer` cannot say, this is how it is listed: swish and
ELU are left out (no count of multiply-accumulates has them), a dilated convolution is listed as an undilated
one of the same size, and what is not a convolution (upsampling, concatenation, a sum behind an upsampling) is
a :class:`Pass`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from search_spaces.errors import InputError
from search_spaces.layers import Activation, Cost, Layer
from search_spaces.options import make_divisible

__all__ = ["Layout", "ListedNetwork", "Pass", "Published", "listed_networks", "refuse_listed"]

Counted = Literal["true", "gibi", "output", "paper"]
PassKind = Literal["upsample", "concatenate", "add"]
Size = tuple[int, int]

SMALLEST_INPUT = 32
"""Pixels of the shorter side; no branch is then empty."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a tensor that belongs to no convolution: an upsampling, a concatenation, a sum.

    Attributes
    ----------
    kind
        ``upsample`` (to the nearest), ``concatenate`` or ``add``.
    channels, h, w
        Shape of the tensor that is written.
    relu
        Whether a ReLU follows.
    name
        Where it is; not part of its identity.
    """

    kind: PassKind
    channels: int
    h: int
    w: int
    relu: bool = False
    name: str = field(default="", compare=False)

    @property
    def values(self) -> int:
        """Values written."""
        return self.channels * self.h * self.w

    @property
    def macs_paper(self) -> int:
        """What the old profiler behind LitePose's tables counts: 1 per upsampled value and 1 per ReLU."""
        return self.values * ((self.kind == "upsample") + self.relu)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a listed network executes at one input size: layers in order, and the passes between them."""

    layers: tuple[Layer, ...]
    passes: tuple[Pass, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What a network's source says that it costs.

    Attributes
    ----------
    macs_g
        "GMACs" or "GFLOPs", as printed.
    counted
        What those are: ``true``, multiply-accumulates of the convolutions as they are done; ``gibi``, the
        same in units of 2^30 (HRNet's code); ``output``, transposed convolutions counted at output resolution
        (HigherHRNet's code); ``paper``, that with batch normalisation, activations and upsampling added
        (see :attr:`search_spaces.layers.Layer.macs_paper`). Found by comparing counts, but for ``gibi``,
        which HRNet's code shows.
    joints
        Keypoints of the network that was counted.
    source
        Citation.
    params_m
        Millions of parameters, where the source says.
    size
        Height and width in pixels; None: the network's usual ones.
    """

    macs_g: float
    counted: Counted
    joints: int
    source: str
    params_m: float | None = None
    size: Size | None = None


@dataclass(frozen=True)
class ListedNetwork:
    """A network of which only the layers are known.

    Attributes
    ----------
    name, title
        As commands and as people call it.
    rules
        Construction rules: ``hrnet``, ``higherhrnet``, ``efficient-hrnet`` or ``lightweight-openpose``.
    settings
        Their numbers.
    size
        Height and width in pixels that it is usually run at.
    source
        Where the definition comes from.
    published
        What its source says that it costs.
    also
        Other names under which its latencies were published.
    """

    name: str
    title: str
    rules: str
    settings: Mapping[str, Any]
    size: Size
    source: str
    published: tuple[Published, ...]
    also: tuple[str, ...] = ()

    def layout(self, joints: int, size: Size | None = None) -> Layout:
        """Return what the network executes for ``joints`` keypoints.

        ``size`` overrides the input's (height, width).

        Raises
        ------
        InputError
            If there are no joints, or the input is too small.
        """
        pixels = size or self.size
        if joints < 1:
            raise InputError(f"the number of joints is at least 1, not {joints}")
        if min(pixels) < SMALLEST_INPUT:
            raise InputError(
                f"an input of {self.name} is at least {SMALLEST_INPUT} px on each side, not"
                f" {pixels[0]}x{pixels[1]}"
            )
        listing = _Listing()
        _RULES[self.rules](listing, joints, pixels, **self.settings)
        return Layout(tuple(listing.layers), tuple(listing.passes))

    def layers(self, joints: int, size: Size | None = None) -> tuple[Layer, ...]:
        """Return every layer that the network executes, in order."""
        return self.layout(joints, size).layers

    def cost(self, joints: int, size: Size | None = None) -> Cost:
        """Return parameters and MACs for ``joints`` keypoints.

        Passes have no parameters and no multiply-accumulates; the paper's convention counts some of them.
        """
        layout = self.layout(joints, size)
        found = Cost.of(layout.layers)
        return replace(found, macs_paper=found.macs_paper + sum(each.macs_paper for each in layout.passes))

    def counted_g(self, published: Published) -> float:
        """Return our count of what ``published`` counts, in its way and its unit."""
        cost = self.cost(published.joints, published.size)
        if published.counted == "paper":
            return cost.macs_paper / 1e9
        if published.counted == "gibi":
            return cost.macs / 2**30
        if published.counted == "true":
            return cost.macs / 1e9
        layers = self.layers(published.joints, published.size)
        return sum(x.macs * (x.stride**2 if x.kind == "deconv" else 1) for x in layers) / 1e9


@cache
def listed_networks() -> Mapping[str, ListedNetwork]:
    """Return all listed networks by name."""
    text = resources.files("search_spaces").joinpath("listed.json").read_text(encoding="utf-8")
    found = {}
    for name, given in json.loads(text).items():
        published = tuple(
            Published(**{**each, "size": _size(each["size"]) if "size" in each else None})
            for each in given["published"]
        )
        found[name] = ListedNetwork(
            name,
            given["title"],
            given["rules"],
            MappingProxyType(given["settings"]),
            _size(given["size"]),
            given["source"],
            published,
            tuple(given.get("also", ())),
        )
    return MappingProxyType(found)


def _size(sides: Sequence[int]) -> Size:
    height, width = sides
    return height, width


def refuse_listed(name: str) -> None:
    """Raise if ``name`` is a listed network, saying what can be done with it.

    Raises
    ------
    InputError
        If it is one.
    """
    if name in listed_networks():
        raise InputError(
            f"'{name}' is known by its layers alone: 'nas cost {name}' tells what it costs, but it cannot be"
            " trained, searched, measured or drawn; 'nas spaces' lists the networks that can"
        )


# -- construction --------------------------------------------------------------------------------------------


class _Listing:
    """Layers and passes, listed one after the other."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.passes: list[Pass] = []

    def conv(
        self,
        name: str,
        c_in: int,
        c_out: int,
        size: Size,
        kernel: int = 3,
        stride: int = 1,
        *,
        activation: Activation = "relu",
        norm: bool = True,
        bias: bool = False,
        add: bool = False,
    ) -> Size:
        """List a convolution; return its output's size."""
        layer = Layer(
            "conv",
            c_in,
            c_out,
            kernel,
            stride,
            1,
            *size,
            bias=bias,
            norm=norm,
            activation=activation,
            add=add,
            name=name,
        )
        self.layers.append(layer)
        return layer.h_out, layer.w_out

    def depthwise(
        self,
        name: str,
        channels: int,
        size: Size,
        kernel: int = 3,
        stride: int = 1,
        *,
        activation: Activation = "relu",
        norm: bool = True,
    ) -> Size:
        """List a depthwise convolution; return its output's size."""
        layer = Layer(
            "dwconv",
            channels,
            channels,
            kernel,
            stride,
            channels,
            *size,
            norm=norm,
            activation=activation,
            name=name,
        )
        self.layers.append(layer)
        return layer.h_out, layer.w_out

    def over(self, kind: PassKind, name: str, channels: int, size: Size, relu: bool = False) -> None:
        """List a pass over a tensor."""
        self.passes.append(Pass(kind, channels, *size, relu=relu, name=name))

    def basic(self, name: str, channels: int, size: Size) -> None:
        """List HRNet's basic block: two 3x3 convolutions and a residual."""
        self.conv(f"{name}.conv0", channels, channels, size)
        self.conv(f"{name}.conv1", channels, channels, size, add=True)


def _halved(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)


def _module(
    listing: _Listing,
    name: str,
    widths: Sequence[int],
    blocks: Sequence[int],
    sizes: Sequence[Size],
    outputs: int,
) -> None:
    """List one module of HRNet: blocks in each branch, then the exchange between all of them.

    A branch without blocks has one 3x3 convolution (as in the code of LitePose's gradual shrinking).
    ``outputs`` is the number of branches that are computed by the exchange, the finest first.
    """
    for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if count == 0:
            listing.conv(f"{name}.branch{i}.conv", width, width, sizes[i])
        for j in range(count):
            listing.basic(f"{name}.branch{i}.block{j}", width, sizes[i])
    for i in range(outputs):
        for j in range(i):
            # The chain of strided convolutions that brings branch j down; its last one adds what is there.
            size = sizes[j]
            for step in range(i - j):
                at, last = f"{name}.sum{i}.from{j}.down{step}", step == i - j - 1
                ends = last and j == i - 1 and i == len(widths) - 1
                size = listing.conv(
                    at,
                    widths[j],
                    widths[i] if last else widths[j],
                    size,
                    3,
                    2,
                    activation="relu" if ends or not last else "none",
                    add=last,
                )
        for j in range(i + 1, len(widths)):
            at = f"{name}.sum{i}.from{j}"
            listing.conv(f"{at}.project", widths[j], widths[i], sizes[j], 1, activation="none")
            listing.over("upsample", at, widths[i], sizes[i])
            listing.over("add", at, widths[i], sizes[i], relu=j == len(widths) - 1)


def _stages(
    listing: _Listing,
    widths: Sequence[int],
    blocks: Sequence[Sequence[int]],
    modules: Sequence[int],
    sizes: Sequence[Size],
    transition: Callable[[int], None],
) -> None:
    """List the stages of two, three and four branches; of the last module only the finest output is used."""
    for stage, (count, depth) in enumerate(zip(modules, blocks, strict=True)):
        branches = stage + 2
        transition(stage)
        for m in range(count):
            final = stage == len(modules) - 1 and m == count - 1
            _module(
                listing,
                f"stage{stage + 1}.module{m}",
                widths[:branches],
                depth,
                sizes[:branches],
                1 if final else branches,
            )


def _hrnet_body(
    listing: _Listing,
    size: Size,
    width: int,
    stem: int,
    blocks: Sequence[Sequence[int]],
    modules: Sequence[int],
) -> Size:
    """List HRNet up to its features at 1/4; return their size.

    ``stem`` is the inner width of the four bottlenecks of the first stage (64; LitePose's code varies it).
    """
    at = listing.conv("stem.conv0", 3, 64, size, 3, 2)
    at = listing.conv("stem.conv1", 64, 64, at, 3, 2)
    c_in = 64
    for j in range(4):
        name = f"stage0.block{j}"
        listing.conv(f"{name}.reduce", c_in, stem, at, 1)
        listing.conv(f"{name}.conv", stem, stem, at)
        listing.conv(f"{name}.expand", stem, 4 * stem, at, 1, add=True)
        if j == 0:
            listing.conv(f"{name}.shortcut", c_in, 4 * stem, at, 1, activation="none")
        c_in = 4 * stem
    widths = [width * 2**i for i in range(4)]
    sizes = [at]
    for _ in range(3):
        sizes.append(_halved(sizes[-1]))

    def transition(stage: int) -> None:
        if stage == 0 and c_in != width:
            listing.conv("transition0.branch0", c_in, width, at)
        before = c_in if stage == 0 else widths[stage]
        listing.conv(f"transition{stage}.branch{stage + 1}", before, widths[stage + 1], sizes[stage], 3, 2)

    _stages(listing, widths, blocks, modules, sizes, transition)
    return at


def _higher_head(listing: _Listing, joints: int, at: Size, channels: int, width: int, blocks: int) -> None:
    """List HigherHRNet's head: heatmaps and tags at 1/4, a deconvolution on both, heatmaps at 1/2."""
    listing.conv("head.output0", channels, 2 * joints, at, 1, activation="none", norm=False, bias=True)
    together = channels + 2 * joints
    listing.over("concatenate", "head", together, at)
    layer = Layer("deconv", together, width, 4, 2, 1, *at, norm=True, activation="relu", name="head.deconv")
    listing.layers.append(layer)
    up = (layer.h_out, layer.w_out)
    for j in range(blocks):
        listing.basic(f"head.block{j}", width, up)
    listing.conv("head.output1", width, joints, up, 1, activation="none", norm=False, bias=True)


_BLOCKS = ((4,) * 2, (4,) * 3, (4,) * 4)
_MODULES = (1, 4, 3)


def _hrnet(listing: _Listing, joints: int, size: Size, *, width: int) -> None:
    at = _hrnet_body(listing, size, width, 64, _BLOCKS, _MODULES)
    listing.conv("head.output0", width, joints, at, 1, activation="none", norm=False, bias=True)


def _higherhrnet(
    listing: _Listing,
    joints: int,
    size: Size,
    *,
    width: int,
    stem: int = 64,
    blocks: Sequence[Sequence[int]] = _BLOCKS,
    deconv: int | None = None,
    head_blocks: int = 4,
) -> None:
    at = _hrnet_body(listing, size, width, stem, blocks, _MODULES)
    _higher_head(listing, joints, at, width, deconv or width, head_blocks)


# EfficientNet-B0 (arXiv 1905.11946, table 1): expansion, channels, blocks, stride, kernel.
_EFFICIENTNET = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
                 (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))  # fmt: skip
_TAPPED = (1, 2, 4, 6)
"""Groups of blocks whose outputs, at 1/4 to 1/32, feed the branches."""
_SCALE = 1.2455
"""Step of the branches' widths from one EfficientHRNet to the next."""


def _efficient_hrnet(
    listing: _Listing,
    joints: int,
    size: Size,
    *,
    step: int,
    width: float,
    depth: float,
    modules: Sequence[int],
) -> None:
    """List an EfficientHRNet: ``step`` -1 for H-1, multipliers of EfficientNet-B0, modules of each stage."""

    def rounded(channels: int) -> int:
        return channels if width == 1 else make_divisible(channels * width)

    c_in = rounded(32)
    at = listing.conv("backbone.stem", 3, c_in, size, 3, 2, activation="none")
    features: list[tuple[int, Size]] = []
    for group, (expansion, channels, count, stride, kernel) in enumerate(_EFFICIENTNET):
        c_out = rounded(channels)
        for j in range(math.ceil(depth * count)):
            name, hidden = f"backbone.group{group}.block{j}", c_in * expansion
            if expansion > 1:
                listing.conv(f"{name}.expand", c_in, hidden, at, 1, activation="none")
            own = stride if j == 0 else 1
            at = listing.depthwise(f"{name}.depthwise", hidden, at, kernel, own, activation="none")
            gate = Layer(
                "se", hidden, hidden, 1, 1, 1, *at, bias=True, squeeze=max(1, c_in // 4), name=f"{name}.gate"
            )
            listing.layers.append(gate)
            residual = own == 1 and c_in == c_out
            listing.conv(f"{name}.project", hidden, c_out, at, 1, activation="none", add=residual)
            c_in = c_out
        if group in _TAPPED:
            features.append((c_in, at))
    widths = [math.ceil(32 * 2**i * _SCALE**step) for i in range(4)]
    sizes = [pixels for _, pixels in features]

    def transition(stage: int) -> None:
        for i in range(stage + 2):
            channels = features[i][0] if i == stage + 1 or stage == 0 else widths[i]
            listing.conv(f"transition{stage}.branch{i}", channels, widths[i], sizes[i], bias=True)

    _stages(listing, widths, [(2,) * n for n in (2, 3, 4)], modules, sizes, transition)
    _higher_head(listing, joints, sizes[0], widths[0], widths[0], 2)


# Lightweight OpenPose: channels and stride of the backbone's separable convolutions, the fifth on at 1/8.
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), *(((512, 1),) * 6))


def _lightweight_openpose(
    listing: _Listing, joints: int, size: Size, *, width: int, refinements: int
) -> None:
    """List Lightweight OpenPose: heatmaps of all keypoints and the background, two maps per limb.

    Its 18 keypoints (COCO's and the neck) have 19 limbs; of other skeletons, too, one more than keypoints is
    taken.
    """
    heatmaps, fields = joints + 1, 2 * (joints + 1)
    at, c_in = listing.conv("backbone.conv0", 3, 32, size, 3, 2), 32
    for i, (channels, stride) in enumerate(_MOBILENET):
        at = listing.depthwise(f"backbone.block{i}.depthwise", c_in, at, 3, stride)
        listing.conv(f"backbone.block{i}.project", c_in, channels, at, 1)
        c_in = channels

    def plain(name: str, c: int, c_out: int, kernel: int, activation: Activation = "relu") -> None:
        listing.conv(name, c, c_out, at, kernel, activation=activation, norm=False, bias=True)

    plain("neck.align", c_in, width, 1)
    for i in range(3):
        listing.depthwise(f"neck.block{i}.depthwise", width, at, norm=False, activation="none")
        listing.conv(f"neck.block{i}.project", width, width, at, 1, norm=False, activation="none", add=i == 2)
    plain("neck.conv", width, width, 3)
    for i in range(3):
        plain(f"initial.conv{i}", width, width, 3)
    for what, maps in (("heatmaps", heatmaps), ("fields", fields)):
        plain(f"initial.{what}.conv", width, 512, 1)
        plain(f"initial.{what}.output", 512, maps, 1, "none")
    for stage in range(refinements):
        c, name = width + heatmaps + fields, f"refinement{stage}"
        listing.over("concatenate", name, c, at)
        for i in range(5):
            plain(f"{name}.block{i}.align", c, width, 1)
            for k in range(2):
                listing.conv(f"{name}.block{i}.conv{k}", width, width, at, bias=True, add=k == 1)
            c = width
        for what, maps in (("heatmaps", heatmaps), ("fields", fields)):
            plain(f"{name}.{what}.conv", width, width, 1)
            plain(f"{name}.{what}.output", width, maps, 1, "none")


_RULES: Mapping[str, Callable[..., None]] = {
    "hrnet": _hrnet,
    "higherhrnet": _higherhrnet,
    "efficient-hrnet": _efficient_hrnet,
    "lightweight-openpose": _lightweight_openpose,
}
