"""Top-down encoder-decoders: a MobileNet encoder, transposed convolutions that may be narrow, a 1x1 output.

SimpleBaseline (arXiv 1804.06208) with a light encoder, whose deconv channels are what is to be reduced
(arXiv 2111.04226). A network sees one person, upright in a crop whose width is three quarters of its height,
and gives one heatmap per joint. Two families share all rules but the encoder's blocks: ``deconv-mbv2``
(MobileNetV2, arXiv 1801.04381, table 2) and ``deconv-mbv3`` (MobileNetV3-Large, arXiv 1905.02244, table 1).

The network, in this module's terms (stages, blocks, deconv steps and outputs are counted from 0):

- ``stem``: 3x3 stride-2 convolution to ``stem_width`` (at 1/2);
- ``stage{i}``: ``depth`` inverted bottlenecks of ``width`` channels with a ``kernel`` x ``kernel`` depthwise
  convolution; the stages end at 1/32. Blocks of stage 0 have no expanding convolution. In MobileNetV3 some
  stages gate their hidden channels by squeeze-and-excitation;
- ``last``: 1x1 convolution to ``last_width``; there is none where that is 0;
- ``head.deconv0..2``: each doubles the resolution; a head of two steps has width and kernel 0 at the third;
- ``head.output1`` or ``head.output2``, by the last step: 1x1 convolution to the heatmaps, without bias, at
  1/8 or at 1/4 of the input.

Sizes that are odd somewhere on the way are rounded up in the encoder (192x144 is 12x9 at 1/16 and 6x5 at
1/32), and what a deconv step doubles is cropped to the encoder's size there, its upper left part, so that the
heatmaps always have 1/8 or 1/4 of the input's height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from search_spaces.arch import Arch, Family, Value
from search_spaces.errors import InputError
from search_spaces.files import check_keys
from search_spaces.layers import Activation, Block, Layer
from search_spaces.options import (
    Bounds,
    check_bounds,
    halved,
    make_divisible,
    per_part,
    positive_numbers,
    stage_dependencies,
    whole_numbers,
)
from search_spaces.space import Choice, SearchSpace

DECONVS = 3
"""Most deconv steps that a head has."""

FEWEST_DECONVS = 2

RESOLUTIONS = (128, 192, 256, 384)
MULTIPLIERS = (1.0, 0.75, 0.5)
DECONV_WIDTHS = (256, 192, 128, 96, 64, 48, 32)
DECONV_KERNELS = (4, 3, 2)

_SIZES = 5
"""How often the encoder halves the picture."""

_MAX_CHANNELS, _MAX_DEPTH, _MAX_EXPANSION, _MAX_PERCENT, _MAX_KERNEL = 4096, 64, 16, 400, 15
_SMALLEST_INPUT, _LARGEST_RESOLUTION, _STEP = 32, 4096, 32
_CHANNELS = "a number of channels"


@dataclass(frozen=True, slots=True)
class EncoderStage:
    """What is fixed about a stage of an encoder.

    Attributes
    ----------
    stride
        Of its first block.
    activation
        Behind its expanding and its depthwise convolutions.
    expands
        Whether its blocks begin with an expanding convolution; where not, their hidden channels are their
        input's.
    gated
        Whether its blocks have a squeeze-and-excitation behind the depthwise convolution.
    ratios
        Hidden channels per input channel of its blocks; further blocks have the last one's.
    """

    stride: int
    activation: Activation
    expands: bool = True
    gated: bool = False
    ratios: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class _Standard:
    """The encoder as published, multiplier 1."""

    stem: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    last: int


def squeeze_channels(hidden: int) -> int:
    """Return the channels that a squeeze-and-excitation of ``hidden`` channels reduces to: a quarter."""
    return make_divisible(hidden / 4)


class DeconvFamily(Family):
    """The construction rules of encoder-decoders with a deconv head; a subclass states the encoder.

    Values: ``resolution`` (height of the input, pixels, a multiple of 32; its width is three quarters of it),
    ``stem_width``, for each stage ``width``, ``depth`` (blocks), ``kernel`` (odd) and ``expansion`` (see the
    subclass), ``last_width`` (0: the encoder has no last convolution), for each of three deconv steps
    ``width`` and ``kernel`` (2, 3 or 4; of the third 0 both, where the head has two).
    """

    stages: ClassVar[tuple[EncoderStage, ...]]
    """The encoder's stages."""

    stem_activation: ClassVar[Activation]
    last_activation: ClassVar[Activation]

    standard: ClassVar[_Standard]
    """The encoder as published."""

    default_expansions: ClassVar[tuple[int, ...]]
    """Expansions that a space offers by default."""

    bounds: ClassVar[Bounds]
    """What every value may be."""

    @staticmethod
    @abstractmethod
    def hidden_channels(stage: int, block: int, c_in: int, expansion: int) -> int:
        """Return the channels of a block's depthwise convolution; a block of stage 0 has ``c_in``."""

    @property
    def value_names(self) -> tuple[str, ...]:
        return tuple(self.bounds)

    def check(self, values: Mapping[str, Value]) -> None:
        check_bounds(self.name, self.bounds, values)
        if int(values["resolution"]) % _STEP:
            raise InputError(
                f"{self.name} 'resolution' is a multiple of {_STEP}, so that three quarters of it are the"
                f" input's width, not {values['resolution']}"
            )
        width, kernel = values["head.deconv2.width"], values["head.deconv2.kernel"]
        if (width == 0) != (kernel == 0) or kernel == 1:
            raise InputError(
                f"{self.name} 'head.deconv2.kernel' is 2 to 4, or 0 where 'head.deconv2.width' is 0 (a head"
                f" of two steps), not {kernel} with width {width}"
            )

    def input_size(self, values: Mapping[str, Value]) -> tuple[int, int]:
        resolution = int(values["resolution"])
        return resolution, resolution * 3 // 4

    @staticmethod
    def deconv_steps(values: Mapping[str, Value]) -> int:
        """Return how many deconv steps a network has, 2 or 3."""
        return DECONVS if values["head.deconv2.width"] else FEWEST_DECONVS

    @classmethod
    def heatmap_stride(cls, values: Mapping[str, Value]) -> int:
        """Return how many pixels of the input one heatmap cell stands for along each axis: 4 or 8."""
        return 4 if cls.deconv_steps(values) == DECONVS else 8

    @staticmethod
    def feature_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return the (height, width) at 1/2, 1/4, 1/8, 1/16 and 1/32 of an input of that size, rounded up."""
        return halved(size, _SIZES)

    def block_dependencies(self, most: Mapping[str, Value]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: list[tuple[str, tuple[str, ...]]] = [("stem", ("resolution", "stem_width"))]
        found += stage_dependencies(len(self.stages), most)
        encoded = (f"stage{len(self.stages) - 1}.width", "last_width")
        found.append(("last", ("resolution", *encoded)))
        for i in range(DECONVS):
            sources = encoded if i == 0 else (f"head.deconv{i - 1}.width",)
            step = (f"head.deconv{i}.width", f"head.deconv{i}.kernel")
            found.append((f"head.deconv{i}", ("resolution", *sources, *step)))
        ends = ("resolution", "head.deconv1.width", "head.deconv2.width")
        found += [("head.output1", ends), ("head.output2", ("resolution", "head.deconv2.width"))]
        return tuple(found)

    def block(
        self, name: str, values: Mapping[str, Value], joints: int, size: tuple[int, int] | None = None
    ) -> Block | None:
        if joints < 1:
            raise InputError(f"the number of joints is at least 1, not {joints}")
        full = size or self.input_size(values)
        if min(full) < _SMALLEST_INPUT:
            raise InputError(
                f"a {self.name} input is at least {_SMALLEST_INPUT} px on each side, not {full[0]}x{full[1]}"
            )
        at = self.feature_sizes(full)
        if name == "stem":
            width = int(values["stem_width"])
            layer = Layer(
                "conv", 3, width, 3, 2, 1, *full, norm=True, activation=self.stem_activation, name="stem.conv"
            )
            return Block("stem", (layer,))
        if name == "last":
            return self._last(values, at[-1])
        room, _, part = name.partition(".")
        if room.startswith("stage"):
            return self._bottleneck(name, int(room[5:]), int(part[5:]), values, (full, *at))
        if part.startswith("deconv"):
            return self._deconv(name, int(part[6:]), values, at)
        return self._output(name, int(part[6:]), values, at, joints)

    def encoded_channels(self, values: Mapping[str, Value]) -> int:
        """Return the channels that the encoder hands to the head."""
        return int(values["last_width"]) or int(values[f"stage{len(self.stages) - 1}.width"])

    def _last(self, values: Mapping[str, Value], at: tuple[int, int]) -> Block | None:
        width = int(values["last_width"])
        if not width:
            return None
        c_in = int(values[f"stage{len(self.stages) - 1}.width"])
        layer = Layer(
            "conv", c_in, width, 1, 1, 1, *at, norm=True, activation=self.last_activation, name="last.conv"
        )
        return Block("last", (layer,))

    def _bottleneck(
        self,
        name: str,
        stage: int,
        index: int,
        values: Mapping[str, Value],
        at: Sequence[tuple[int, int]],
    ) -> Block | None:
        rules = self.stages[stage]
        width, kernel = int(values[f"stage{stage}.width"]), int(values[f"stage{stage}.kernel"])
        # The stem has halved the picture once, each stage before as often as its stride says.
        level = 1 + sum(before.stride == 2 for before in self.stages[:stage])
        if index == 0:
            c_in = int(values["stem_width" if stage == 0 else f"stage{stage - 1}.width"])
            stride, before = rules.stride, at[level]
        elif index >= int(values[f"stage{stage}.depth"]):
            return None
        else:
            c_in, stride, before = width, 1, at[level + (rules.stride == 2)]
        hidden = self.hidden_channels(stage, index, c_in, int(values[f"stage{stage}.expansion"]))
        after = (-(-before[0] // stride), -(-before[1] // stride))
        act = rules.activation
        layers = [
            Layer(
                "dwconv",
                hidden,
                hidden,
                kernel,
                stride,
                hidden,
                *before,
                norm=True,
                activation=act,
                name=f"{name}.depthwise",
            )
        ]
        if rules.expands:
            expand = Layer(
                "conv", c_in, hidden, 1, 1, 1, *before, norm=True, activation=act, name=f"{name}.expand"
            )
            layers.insert(0, expand)
        if rules.gated:
            squeeze = squeeze_channels(hidden)
            layers.append(
                Layer("se", hidden, hidden, 1, 1, 1, *after, bias=True, squeeze=squeeze, name=f"{name}.se")
            )
        layers.append(
            Layer(
                "conv",
                hidden,
                width,
                1,
                1,
                1,
                *after,
                norm=True,
                add=stride == 1 and c_in == width,
                name=f"{name}.project",
            )
        )
        return Block(name, tuple(layers))

    def _deconv(
        self, name: str, step: int, values: Mapping[str, Value], at: Sequence[tuple[int, int]]
    ) -> Block | None:
        width, kernel = int(values[f"{name}.width"]), int(values[f"{name}.kernel"])
        if not width:
            return None
        c_in = self.encoded_channels(values) if step == 0 else int(values[f"head.deconv{step - 1}.width"])
        layer = Layer(
            "deconv",
            c_in,
            width,
            kernel,
            2,
            1,
            *at[_SIZES - 1 - step],
            norm=True,
            activation="relu",
            name=f"{name}.up",
        )
        return Block(name, (layer,))

    def _output(
        self, name: str, index: int, values: Mapping[str, Value], at: Sequence[tuple[int, int]], joints: int
    ) -> Block | None:
        if index != self.deconv_steps(values) - 1:
            return None
        c_in, size = int(values[f"head.deconv{index}.width"]), at[_SIZES - 2 - index]
        return Block(name, (Layer("conv", c_in, joints, 1, 1, 1, *size, name=f"{name}.project"),))


def _bounds(stages: Sequence[EncoderStage], expansion: tuple[int, int, str], fixed: int) -> Bounds:
    """Return what a family's values may be; a stage that does not expand has the expansion ``fixed``."""
    own = (fixed, fixed, "not searched where nothing expands")
    found = {
        "resolution": (2 * _STEP, _LARGEST_RESOLUTION, "a height in pixels"),
        "stem_width": (1, _MAX_CHANNELS, _CHANNELS),
    }
    for i, stage in enumerate(stages):
        found[f"stage{i}.width"] = (1, _MAX_CHANNELS, _CHANNELS)
        found[f"stage{i}.depth"] = (1, _MAX_DEPTH, "a number of blocks")
        found[f"stage{i}.kernel"] = (1, _MAX_KERNEL, "an odd kernel size")
        found[f"stage{i}.expansion"] = expansion if stage.expands else own
    found["last_width"] = (0, _MAX_CHANNELS, f"{_CHANNELS} (0 for none)")
    for i in range(DECONVS):
        optional = i >= FEWEST_DECONVS
        told = " (0 for none)" if optional else ""
        found[f"head.deconv{i}.width"] = (0 if optional else 1, _MAX_CHANNELS, _CHANNELS + told)
        found[f"head.deconv{i}.kernel"] = (0 if optional else 2, 4, f"a kernel size{told}")
    return found


class DeconvMbv2Family(DeconvFamily):
    """Encoder MobileNetV2 (arXiv 1801.04381): ReLU6; ``expansion`` is a whole factor, 1 in stage 0."""

    name: ClassVar[str] = "deconv-mbv2"
    stages: ClassVar[tuple[EncoderStage, ...]] = tuple(
        EncoderStage(stride, "relu6", expands=i > 0) for i, stride in enumerate((1, 2, 2, 2, 1, 2, 1))
    )
    stem_activation: ClassVar[Activation] = "relu6"
    last_activation: ClassVar[Activation] = "relu6"
    standard: ClassVar[_Standard] = _Standard(
        32, (16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), (3,) * 7, (1, *(6,) * 6), 1280
    )
    default_expansions: ClassVar[tuple[int, ...]] = (3, 4, 6)
    bounds: ClassVar[Bounds] = _bounds(stages, (1, _MAX_EXPANSION, "a whole expansion factor"), 1)

    @staticmethod
    def hidden_channels(stage: int, block: int, c_in: int, expansion: int) -> int:
        return c_in * expansion


class DeconvMbv3Family(DeconvFamily):
    """Encoder MobileNetV3-Large (arXiv 1905.02244, table 1): hard-swish, squeeze-and-excitation.

    ``expansion`` is a percentage of the published ratios of hidden to input channels, 100 in stage 0; hidden
    channels are rounded to multiples of 8. Where two percentages round to the same channels in all blocks of
    a stage, their archs differ and their networks do not: a space refuses to offer both.
    """

    name: ClassVar[str] = "deconv-mbv3"
    stages: ClassVar[tuple[EncoderStage, ...]] = (
        EncoderStage(1, "relu", expands=False),
        EncoderStage(2, "relu", ratios=(4, 3)),
        EncoderStage(2, "relu", gated=True, ratios=(3,)),
        EncoderStage(2, "hswish", ratios=(6, 2.5, 2.3)),
        EncoderStage(1, "hswish", gated=True, ratios=(6,)),
        EncoderStage(2, "hswish", gated=True, ratios=(6,)),
    )
    stem_activation: ClassVar[Activation] = "hswish"
    last_activation: ClassVar[Activation] = "hswish"
    standard: ClassVar[_Standard] = _Standard(
        16, (16, 24, 40, 80, 112, 160), (1, 2, 3, 4, 2, 3), (3, 3, 5, 3, 3, 5), (100,) * 6, 960
    )
    default_expansions: ClassVar[tuple[int, ...]] = (50, 75, 100)
    bounds: ClassVar[Bounds] = _bounds(
        stages, (10, _MAX_PERCENT, "a percentage of the published expansion"), 100
    )

    @staticmethod
    def hidden_channels(stage: int, block: int, c_in: int, expansion: int) -> int:
        rules = DeconvMbv3Family.stages[stage]
        if not rules.expands:
            return c_in
        ratio = rules.ratios[min(block, len(rules.ratios) - 1)]
        return make_divisible(ratio * c_in * expansion / 100)


DECONV_MBV2 = DeconvMbv2Family()
"""The one instance of the family with MobileNetV2's encoder."""

DECONV_MBV3 = DeconvMbv3Family()
"""The one instance of the family with MobileNetV3-Large's encoder."""


def deconv_arch(
    family: DeconvFamily,
    resolution: int,
    deconvs: Sequence[int],
    *,
    stem: int | None = None,
    stages: Sequence[int] | None = None,
    depths: int | Sequence[int] | None = None,
    kernels: int | Sequence[int] | None = None,
    expansions: Sequence[int] | None = None,
    last: int | None = None,
    deconv_kernels: int | Sequence[int] = 4,
) -> Arch:
    """Return a network of a deconv family; of the encoder, what is not given is as published.

    Parameters
    ----------
    family
        :data:`DECONV_MBV2` or :data:`DECONV_MBV3`.
    resolution
        Height of the input, pixels; its width is three quarters of it.
    deconvs
        Channels of the two or three deconv steps.
    stem, stages, last
        Channels of the stem, of the stages and of the encoder's last convolution (0: there is none).
    depths, kernels, expansions
        Per stage; of depths and kernels a single number stands for all.
    deconv_kernels
        Per deconv step; a single number stands for all.

    Raises
    ------
    InputError
        If a list has the wrong length or a value is out of range.
    """
    own, count = family.standard, len(family.stages)
    steps = len(deconvs)
    if not FEWEST_DECONVS <= steps <= DECONVS:
        raise InputError(f"a {family.name} head has {FEWEST_DECONVS} or {DECONVS} deconv steps, not {steps}")
    values: dict[str, Value] = {
        "resolution": resolution,
        "stem_width": own.stem if stem is None else stem,
        "last_width": own.last if last is None else last,
    }
    for what, given, length, prefix in (
        ("width", own.widths if stages is None else stages, count, "stage"),
        ("depth", own.depths if depths is None else depths, count, "stage"),
        ("kernel", own.kernels if kernels is None else kernels, count, "stage"),
        ("expansion", own.expansions if expansions is None else expansions, count, "stage"),
        ("width", deconvs, steps, "head.deconv"),
        ("kernel", deconv_kernels, steps, "head.deconv"),
    ):
        numbers = [given] * length if isinstance(given, int) else list(given)
        if len(numbers) != length:
            raise InputError(
                f"{family.name} has {length} values '{prefix}{{i}}.{what}' here, not {len(numbers)}:"
                f" {numbers}"
            )
        values.update({f"{prefix}{i}.{what}": number for i, number in enumerate(numbers)})
    for i in range(steps, DECONVS):
        values |= {f"head.deconv{i}.width": 0, f"head.deconv{i}.kernel": 0}
    return family.arch(values)


@dataclass(frozen=True, eq=False)
class DeconvSpace(SearchSpace):
    """Networks of a deconv family around a base encoder.

    Widths of stem and stages are the base's times each of ``multipliers``, rounded by
    :func:`make_divisible`, drawn independently. A list that holds one value fixes it.

    Attributes
    ----------
    base
        The encoder that multiplier 1 stands for; its resolution and its head are not read.
    resolutions
        Heights of the input, pixels.
    multipliers
        Width multipliers.
    depths, kernels, expansions
        Options of each stage.
    last_widths
        Channels of the encoder's last convolution; 0 is a network without one. Where it is narrower than the
        last stage, a network without it costs more: :meth:`largest` is then the widest, not the dearest.
    deconvs
        How many deconv steps the head has: 2, 3, or either. In the last case one choice, ``head.deconv2``,
        sets width and kernel of the third step: 0 both (``none``), or any pair of those offered.
    deconv_widths, deconv_kernels
        Options of each deconv step.
    joints
        Keypoints predicted.
    """

    base: Arch
    resolutions: tuple[int, ...]
    multipliers: tuple[float, ...]
    depths: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    expansions: tuple[tuple[int, ...], ...]
    last_widths: tuple[int, ...]
    deconvs: tuple[int, ...]
    deconv_widths: tuple[tuple[int, ...], ...]
    deconv_kernels: tuple[tuple[int, ...], ...]
    joints: int

    def __post_init__(self) -> None:
        if self.joints < 1:
            raise InputError(f"the number of joints is at least 1, not {self.joints}")
        # Every option must make a valid arch: the extremes of each choice prove it, but for those between.
        self.smallest()
        self.largest()
        for choice in self.choices:
            for gene in range(1, len(choice.values) - 1):
                self.arch(choice.setting(gene))
        self._check_expansions()

    def _check_expansions(self) -> None:
        """Raise if two expansions of a stage round to the same channels: they would be one network twice."""
        offered = {choice.name: choice.values for choice in self.choices}
        for i in range(len(self._family.stages)):
            source = "stem_width" if i == 0 else f"stage{i - 1}.width"
            for c_in in offered[source]:
                # Two that agree in the first block may differ in a further one, but there need not be one.
                found: dict[int, Value] = {}
                for expansion in offered[f"stage{i}.expansion"]:
                    channels = self._family.hidden_channels(i, 0, int(c_in), int(expansion))
                    if channels in found:
                        raise InputError(
                            f"'stage{i}.expansion' {found[channels]} and {expansion} both make"
                            f" {channels} channels of {c_in}: leave one out, or have wider stages"
                        )
                    found[channels] = expansion

    @property
    def _family(self) -> DeconvFamily:
        family = self.base.family
        if not isinstance(family, DeconvFamily):
            raise InputError(f"the base of a deconv space is a deconv arch, not {family.name}")
        return family

    @property
    def name(self) -> str:
        return self.family.name

    @property
    def family(self) -> Family:
        return self._family

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        def choice(name: str, options: Sequence[int]) -> Choice:
            return Choice(name, tuple(sorted(set(options))), len(options))

        def widths(name: str) -> Choice:
            base = self.base.number(name)
            return choice(name, [base if m == 1 else make_divisible(base * m) for m in self.multipliers])

        found = {"resolution": choice("resolution", self.resolutions), "stem_width": widths("stem_width")}
        for i in range(len(self._family.stages)):
            found[f"stage{i}.width"] = widths(f"stage{i}.width")
            found[f"stage{i}.depth"] = choice(f"stage{i}.depth", self.depths[i])
            found[f"stage{i}.kernel"] = choice(f"stage{i}.kernel", self.kernels[i])
            found[f"stage{i}.expansion"] = choice(f"stage{i}.expansion", self.expansions[i])
        found["last_width"] = choice("last_width", self.last_widths)
        for i in range(DECONVS):
            there = i < max(self.deconvs)
            for what, options in (("width", self.deconv_widths), ("kernel", self.deconv_kernels)):
                name = f"head.deconv{i}.{what}"
                found[name] = choice(name, options[i] if there else (0,))
        choices = tuple(found[name] for name in self._family.value_names)
        return choices if len(self.deconvs) == 1 else (*choices[:-2], _third_step(*choices[-2:]))

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "base": self.base.to_json(),
            "joints": self.joints,
            "resolutions": list(self.resolutions),
            "multipliers": list(self.multipliers),
            "depths": [list(options) for options in self.depths],
            "kernels": [list(options) for options in self.kernels],
            "expansions": [list(options) for options in self.expansions],
            "last_widths": list(self.last_widths),
            "deconvs": list(self.deconvs),
            "deconv_widths": [list(options) for options in self.deconv_widths],
            "deconv_kernels": [list(options) for options in self.deconv_kernels],
        }


def _third_step(widths: Choice, kernels: Choice) -> Choice:
    """Return the choice of a third deconv step that may be absent, from what it may be where it is there."""
    pairs = [(width, kernel) for width in widths.values for kernel in kernels.values]
    return Choice(
        name=widths.name.removesuffix(".width"),
        values=("none", *(f"{width}k{kernel}" for width, kernel in pairs)),
        nominal=1 + widths.nominal * kernels.nominal,
        sets=(widths.name, kernels.name),
        settings=((0, 0), *pairs),
    )


BASE = "base"
"""Stands for the base's own values, one each, where a space takes lists of options."""


def _own(base: Arch, what: str) -> list[list[int]]:
    """Return the base's value of every stage, each the only option."""
    family = base.family
    assert isinstance(family, DeconvFamily)
    return [[base.number(f"stage{i}.{what}")] for i in range(len(family.stages))]


def _per_stage(given: Sequence[Any] | str, base: Arch, what: str) -> tuple[tuple[int, ...], ...]:
    """Return options per stage: as given, or the base's own; a flat list leaves out what does not expand."""
    name = what + "s"
    if given == BASE:
        given = _own(base, what)
    own = _own(base, what)
    found = per_part(given, len(own), name)
    flat = all(isinstance(option, int | float) for option in given)
    if what == "expansion" and flat:
        found = ((own[0][0],), *found[1:])
    return found


def deconv_space(
    family: DeconvFamily,
    joints: int = 17,
    *,
    base: Arch | None = None,
    resolutions: Sequence[int] = RESOLUTIONS,
    multipliers: Sequence[float] = MULTIPLIERS,
    depths: Sequence[Any] | str | None = None,
    kernels: Sequence[Any] | str = (3, 5, 7),
    expansions: Sequence[Any] | str | None = None,
    last_widths: Sequence[int] | str | None = None,
    deconvs: int | Sequence[int] = DECONVS,
    deconv_widths: Sequence[Any] = DECONV_WIDTHS,
    deconv_kernels: Sequence[Any] = DECONV_KERNELS,
) -> DeconvSpace:
    """Return the space of a deconv family around a base encoder.

    Parameters
    ----------
    family
        :data:`DECONV_MBV2` or :data:`DECONV_MBV3`.
    joints
        Keypoints predicted.
    base
        The encoder that multiplier 1 stands for; by default the published one.
    resolutions
        Heights of the input, pixels; its width is three quarters of them.
    multipliers
        Width multipliers of stem and stages, drawn independently.
    depths, kernels, expansions
        Options for all stages (expansions: for all but stage 0, where nothing expands), or one list per
        stage, or ``base``: the base's own. Default of the depths: the base's and one block fewer (at least
        one); of the expansions 3, 4 and 6, MobileNetV3's 50, 75 and 100 percent of the published ones.
    last_widths
        Channels of the encoder's last convolution, 0 for a network without one; ``base`` for the base's own.
        Default: the base's, and 0.
    deconvs
        How many deconv steps the head has: 2, 3, or the list of both to have it searched.
    deconv_widths, deconv_kernels
        Options for all deconv steps, or one list per step.

    Raises
    ------
    InputError
        Naming the argument or the value that is wrong.
    """
    base = _standard(family) if base is None else base
    if base.family != family:
        raise InputError(f"the base of a {family.name} space is a {family.name} arch, not {base.family.name}")
    steps = _steps(deconvs)
    if depths is None:
        depths = [sorted({max(1, depth - 1), depth}) for (depth,) in _own(base, "depth")]
    if expansions is None:
        expansions = family.default_expansions
    last = base.number("last_width")
    if last_widths is None:
        last_widths = sorted({0, last})
    elif last_widths == BASE:
        last_widths = [last]
    return DeconvSpace(
        base=base,
        resolutions=whole_numbers(resolutions, "resolutions"),
        multipliers=positive_numbers(multipliers, "multipliers"),
        depths=_per_stage(depths, base, "depth"),
        kernels=_per_stage(kernels, base, "kernel"),
        expansions=_per_stage(expansions, base, "expansion"),
        last_widths=_last_widths(last_widths),
        deconvs=steps,
        deconv_widths=per_part(deconv_widths, steps[-1], "deconv_widths"),
        deconv_kernels=per_part(deconv_kernels, steps[-1], "deconv_kernels"),
        joints=joints,
    )


def _steps(given: int | Sequence[int]) -> tuple[int, ...]:
    listed = [given] if isinstance(given, int) else given
    if (
        isinstance(listed, str)
        or not _listed(listed)
        or any(isinstance(n, bool) or n not in (FEWEST_DECONVS, DECONVS) for n in listed)
    ):
        raise InputError(f"'deconvs' is {FEWEST_DECONVS}, {DECONVS} or the list of both, not {given!r}")
    return tuple(sorted(set(listed)))


def _listed(given: object) -> bool:
    """Return whether it is a sequence with something in it: recipes may hold anything."""
    return isinstance(given, Sequence) and len(given) > 0


def _last_widths(given: Sequence[int] | str) -> tuple[int, ...]:
    if isinstance(given, str) or not _listed(given):
        raise InputError(f"'last_widths' is a list of numbers of channels, 0 for none, not {given!r}")
    wide = [width for width in given if isinstance(width, bool) or width != 0]
    known = whole_numbers(wide, "last_widths") if wide else ()
    return (*known, *(0 for _ in range(len(given) - len(wide))))


def _standard(family: DeconvFamily) -> Arch:
    """Return the published encoder at 256x192 with three steps of 256 channels: SimpleBaseline's head."""
    return deconv_arch(family, 256, (256,) * DECONVS)


def deconv_mbv2(joints: int = 17, **options: Any) -> DeconvSpace:
    """Return a space of MobileNetV2 encoders; see :func:`deconv_space`."""
    return deconv_space(DECONV_MBV2, joints, **options)


def deconv_mbv3(joints: int = 17, **options: Any) -> DeconvSpace:
    """Return a space of MobileNetV3-Large encoders; see :func:`deconv_space`."""
    return deconv_space(DECONV_MBV3, joints, **options)


def deconv_alone(arch: Arch, joints: int) -> DeconvSpace:
    """Return the space that holds this network alone."""
    family = arch.family
    if not isinstance(family, DeconvFamily):
        raise InputError(f"a deconv arch is needed, not {family.name}")
    steps = family.deconv_steps(arch.as_dict())
    return deconv_space(
        family,
        joints,
        base=arch,
        resolutions=(arch.number("resolution"),),
        multipliers=(1.0,),
        depths=BASE,
        kernels=BASE,
        expansions=BASE,
        last_widths=BASE,
        deconvs=steps,
        deconv_widths=[[arch.number(f"head.deconv{i}.width")] for i in range(steps)],
        deconv_kernels=[[arch.number(f"head.deconv{i}.kernel")] for i in range(steps)],
    )


_BASE_KEYS = {"stem", "stages", "depths", "kernels", "expansions", "last"}


def encoder_from_config(family: DeconvFamily, value: object, where: str) -> Arch:
    """Return the base that a recipe's ``base`` mapping describes, in the terms of :func:`deconv_arch`."""
    given = check_keys(value, _BASE_KEYS, where)
    try:
        return deconv_arch(family, 256, (256,) * DECONVS, **given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError:
        raise InputError(f"{where} holds something else than numbers and lists of numbers: {given}") from None
