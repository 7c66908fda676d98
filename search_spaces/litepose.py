"""LitePose (arXiv 2205.01271): the family's construction rules, and its native and extended search spaces.

The network, in this module's terms (stages, deconv steps and outputs are counted from 0):

- ``stem``: 3x3 stride-2 convolution to 32 channels, 3x3 depthwise, pointwise to ``stem_width`` (at 1/2);
- ``stage0..3``: ``depth`` inverted bottlenecks of ``width`` channels with a ``kernel`` x ``kernel`` depthwise
  convolution; strides 2, 2, 2, 1, so that they work at 1/4, 1/8, 1/16, 1/16;
- ``head.deconv0..2``: the fusion deconv head; each step doubles the resolution of ``refined`` (from stage 3
  on) and of a backbone feature (stage 2, 1, 0), adds both, and normalises;
- ``head.output0`` (at 1/4: heatmaps and tags) and ``head.output1`` (at 1/2: heatmaps).

The family ``litepose-unfused`` is the same without the fusion: its head sees ``refined`` alone, as the
networks do that the paper compares its fusion deconv head with (its published 4.06 G is this head's count).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from search_spaces.arch import Arch, Family, Value
from search_spaces.errors import InputError, shown
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

STAGES = 4
DECONVS = 3
STAGE_STRIDES = (2, 2, 2, 1)
STEM_CHANNELS = 32
OUTPUT_KERNEL = 5

RESOLUTIONS = (256, 320, 384, 448, 512)
MULTIPLIERS = (1.0, 0.75, 0.5, 0.25)

_MAX_CHANNELS, _MAX_DEPTH, _MAX_EXPANSION, _MAX_KERNEL = 4096, 64, 16, 15
_SMALLEST_INPUT = 32


class LitePoseFamily(Family):
    """The construction rules of LitePose networks.

    Values: ``resolution`` (side of the square input, pixels), ``stem_width``, for each stage ``width``,
    ``depth`` (blocks), ``kernel`` (odd) and ``expansion`` (whole factor), for each deconv step ``width`` and
    ``kernel`` (2, 3 or 4).
    """

    name: ClassVar[str] = "litepose"
    fused: ClassVar[bool] = True
    """Whether the head adds the backbone's features."""

    @property
    def value_names(self) -> tuple[str, ...]:
        return _VALUE_NAMES

    def check(self, values: Mapping[str, Value]) -> None:
        check_bounds(self.name, _BOUNDS, values)

    def input_size(self, values: Mapping[str, Value]) -> tuple[int, int]:
        resolution = int(values["resolution"])
        return resolution, resolution

    def block_dependencies(self, most: Mapping[str, Value]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: list[tuple[str, tuple[str, ...]]] = [("stem", ("resolution", "stem_width"))]
        found += stage_dependencies(STAGES, most)
        for i in range(DECONVS):
            width, raw = f"head.deconv{i}.width", (self.raw_source(i),) if self.fused else ()
            sources = (self.refined_source(i), *raw)
            found.append((f"head.deconv{i}", ("resolution", *sources, width, f"head.deconv{i}.kernel")))
            if i > 0:
                other = (self.output_source(i - 1),) if self.fused else ()
                found.append((f"head.output{i - 1}", ("resolution", width, *other)))
        return tuple(found)

    def block_sources(self, blocks: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        trunk = [name for name in blocks if not name.startswith("head.")]
        found = dict(super().block_sources(trunk))
        # The last block at each place: the stem, then the stages.
        features = [
            [name for name in trunk if name.partition(".")[0] == room][-1]
            for room in ("stem", *(f"stage{i}" for i in range(STAGES)))
        ]
        refined = features[-1]
        for i in range(DECONVS):
            found[f"head.deconv{i}"] = (refined, *((features[STAGES - 1 - i],) if self.fused else ()))
            refined = f"head.deconv{i}"
            if i > 0:
                raw = (features[STAGES - 2 - i],) if self.fused else ()
                found[f"head.output{i - 1}"] = (refined, *raw)
        return found

    @staticmethod
    def refined_source(step: int) -> str:
        """Name of the value that holds the channels of deconv step ``step``'s refined input."""
        return f"stage{STAGES - 1}.width" if step == 0 else f"head.deconv{step - 1}.width"

    @staticmethod
    def raw_source(step: int) -> str:
        """Name of the value that holds the channels of deconv step ``step``'s backbone input."""
        return f"stage{STAGES - 2 - step}.width"

    @staticmethod
    def output_source(index: int) -> str:
        """Name of the value that holds the channels of output head ``index``'s backbone input."""
        return "stage0.width" if index == 0 else "stem_width"

    @staticmethod
    def feature_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return the (height, width) at 1/2, 1/4, 1/8 and 1/16 of an input of that size, rounded up.

        Where a size is odd, the head's doubled maps are cropped to the backbone's.
        """
        return halved(size, 4)

    def block(
        self, name: str, values: Mapping[str, Value], joints: int, size: tuple[int, int] | None = None
    ) -> Block | None:
        if joints < 1:
            raise InputError(f"the number of joints is at least 1, not {joints}")
        full = size or self.input_size(values)
        if min(full) < _SMALLEST_INPUT:
            raise InputError(
                f"a litepose input is at least {_SMALLEST_INPUT} px on each side, not {full[0]}x{full[1]}"
            )
        at = self.feature_sizes(full)
        if name == "stem":
            return self._stem(full, at[0], int(values["stem_width"]))
        room, _, part = name.partition(".")
        if room.startswith("stage"):
            return self._bottleneck(name, int(room[5:]), int(part[5:]), values, at)
        if part.startswith("deconv"):
            return self._deconv(name, int(part[6:]), values, at)
        return self._output(name, int(part[6:]), values, at, joints)

    @staticmethod
    def _stem(full: tuple[int, int], half: tuple[int, int], width: int) -> Block:
        mid = STEM_CHANNELS
        return Block(
            "stem",
            (
                Layer("conv", 3, mid, 3, 2, 1, *full, norm=True, activation="relu6", name="stem.conv"),
                Layer(
                    "dwconv", mid, mid, 3, 1, mid, *half, norm=True, activation="relu6", name="stem.depthwise"
                ),
                Layer("conv", mid, width, 1, 1, 1, *half, norm=True, name="stem.project"),
            ),
        )

    @staticmethod
    def _bottleneck(
        name: str, stage: int, index: int, values: Mapping[str, Value], at: Sequence[tuple[int, int]]
    ) -> Block | None:
        width, kernel = int(values[f"stage{stage}.width"]), int(values[f"stage{stage}.kernel"])
        if index == 0:
            c_in = int(values["stem_width" if stage == 0 else f"stage{stage - 1}.width"])
            stride, before = STAGE_STRIDES[stage], at[min(stage, 3)]
        elif index >= int(values[f"stage{stage}.depth"]):
            return None
        else:
            c_in, stride, before = width, 1, at[min(stage + 1, 3)]
        hidden = c_in * int(values[f"stage{stage}.expansion"])
        after = (-(-before[0] // stride), -(-before[1] // stride))
        act: Activation = "relu6"
        residual = stride == 1 and c_in == width
        return Block(
            name,
            (
                Layer(
                    "conv", c_in, hidden, 1, 1, 1, *before, norm=True, activation=act, name=f"{name}.expand"
                ),
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
                ),
                Layer(
                    "conv",
                    hidden,
                    width,
                    1,
                    1,
                    1,
                    *after,
                    norm=True,
                    add=residual,
                    name=f"{name}.project",
                ),
            ),
        )

    def _deconv(
        self, name: str, step: int, values: Mapping[str, Value], at: Sequence[tuple[int, int]]
    ) -> Block:
        width, kernel = int(values[f"{name}.width"]), int(values[f"{name}.kernel"])
        refined, before = int(values[self.refined_source(step)]), at[3 - step]
        if not self.fused:
            alone = Layer(
                "deconv",
                refined,
                width,
                kernel,
                2,
                1,
                *before,
                norm=True,
                activation="relu",
                name=f"{name}.refined",
            )
            return Block(name, (alone,))
        raw = int(values[self.raw_source(step)])
        return Block(
            name,
            (
                Layer("deconv", refined, width, kernel, 2, 1, *before, name=f"{name}.refined"),
                Layer(
                    "deconv",
                    raw,
                    width,
                    kernel,
                    2,
                    1,
                    *before,
                    norm=True,
                    activation="relu",
                    add=True,
                    name=f"{name}.raw",
                ),
            ),
            branches=(1, 1),
        )

    def _output(
        self, name: str, index: int, values: Mapping[str, Value], at: Sequence[tuple[int, int]], joints: int
    ) -> Block:
        channels = {"refined": int(values[f"head.deconv{index + 1}.width"])}
        if self.fused:
            channels["raw"] = int(values[self.output_source(index)])
        size = at[1 - index]
        outputs = 2 * joints if index == 0 else joints
        layers = []
        for branch, c in channels.items():
            layers.append(
                Layer(
                    "dwconv",
                    c,
                    c,
                    OUTPUT_KERNEL,
                    1,
                    c,
                    *size,
                    norm=True,
                    activation="relu",
                    name=f"{name}.{branch}.depthwise",
                )
            )
            layers.append(
                Layer(
                    "conv", c, outputs, 1, 1, 1, *size, add=branch == "raw", name=f"{name}.{branch}.project"
                )
            )
        return Block(name, tuple(layers), branches=(2,) * len(channels))


class UnfusedFamily(LitePoseFamily):
    """LitePose without the fusion: the head's deconvolutions and outputs see the refined features alone."""

    name: ClassVar[str] = "litepose-unfused"
    fused: ClassVar[bool] = False


_CHANNELS, _FACTOR = "a number of channels", "a whole expansion factor"
_BOUNDS: Bounds = {
    "resolution": (_SMALLEST_INPUT, 4096, "a side in pixels"),
    "stem_width": (1, _MAX_CHANNELS, _CHANNELS),
    **{
        f"stage{i}.{what}": rule
        for i in range(STAGES)
        for what, rule in (
            ("width", (1, _MAX_CHANNELS, _CHANNELS)),
            ("depth", (1, _MAX_DEPTH, "a number of blocks")),
            ("kernel", (1, _MAX_KERNEL, "an odd kernel size")),
            ("expansion", (1, _MAX_EXPANSION, _FACTOR)),
        )
    },
    **{
        f"head.deconv{i}.{what}": rule
        for i in range(DECONVS)
        for what, rule in (("width", (1, _MAX_CHANNELS, _CHANNELS)), ("kernel", (2, 4, "a kernel size")))
    },
}
_VALUE_NAMES = tuple(_BOUNDS)

LITEPOSE = LitePoseFamily()
"""The one instance of the family."""

UNFUSED = UnfusedFamily()
"""The one instance of the family without the fusion."""


def litepose_arch(
    resolution: int,
    stem: int,
    stages: Sequence[int],
    deconvs: Sequence[int],
    *,
    depths: Sequence[int] = (6, 8, 10, 10),
    kernels: int | Sequence[int] = 7,
    expansions: int | Sequence[int] = 6,
    deconv_kernels: int | Sequence[int] = 4,
    fusion: bool = True,
) -> Arch:
    """Return a LitePose arch from its widths, the way the paper's table writes them.

    Parameters
    ----------
    resolution
        Side of the square input, pixels.
    stem, stages, deconvs
        Channels of the stem, the four stages and the three deconv steps.
    depths, kernels, expansions
        Per stage; a single number stands for all four.
    deconv_kernels
        Per deconv step; a single number stands for all three.
    fusion
        Whether the head adds the backbone's features; without it, the arch is of ``litepose-unfused``.

    Raises
    ------
    InputError
        If a list has the wrong length or a value is out of range.
    """
    values: dict[str, Value] = {"resolution": resolution, "stem_width": stem}
    for what, given, count, prefix in (
        ("width", stages, STAGES, "stage"),
        ("depth", depths, STAGES, "stage"),
        ("kernel", kernels, STAGES, "stage"),
        ("expansion", expansions, STAGES, "stage"),
        ("width", deconvs, DECONVS, "head.deconv"),
        ("kernel", deconv_kernels, DECONVS, "head.deconv"),
    ):
        numbers = [given] * count if isinstance(given, int) else list(given)
        if len(numbers) != count:
            raise InputError(
                f"litepose has {count} values '{prefix}{{i}}.{what}', not {len(numbers)}: {numbers}"
            )
        values.update({f"{prefix}{i}.{what}": number for i, number in enumerate(numbers)})
    return (LITEPOSE if fusion else UNFUSED).arch(values)


FULL = litepose_arch(512, 24, (32, 64, 96, 160), (64, 48, 32))
"""The widest network of the paper's supernet: every multiplier 1, at 512 px."""


@dataclass(frozen=True, eq=False)
class LitePoseSpace(SearchSpace):
    """LitePose networks around a base network.

    Widths are the base's times each of ``multipliers``, rounded by :func:`make_divisible`, drawn
    independently for the stem, the stages and the deconv steps. A list that holds one value fixes it.
    Anchor a space at any network by giving it as ``base``.

    Attributes
    ----------
    base
        The network that multiplier 1 stands for; its resolution is not read. Its family, with the fusion or
        without, is the space's.
    resolutions
        Sides of the square input, pixels.
    multipliers
        Width multipliers.
    depths, kernels, expansions
        Options of each stage (four tuples).
    deconv_kernels
        Options of each deconv step's kernel (three tuples).
    joints
        Keypoints predicted.
    kind
        ``litepose-native`` or ``litepose-extended``: what was declared; it names the space.
    """

    base: Arch
    resolutions: tuple[int, ...]
    multipliers: tuple[float, ...]
    depths: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    expansions: tuple[tuple[int, ...], ...]
    deconv_kernels: tuple[tuple[int, ...], ...]
    joints: int
    kind: str

    def __post_init__(self) -> None:
        if self.joints < 1:
            raise InputError(f"the number of joints is at least 1, not {self.joints}")
        if not isinstance(self.base.family, LitePoseFamily):
            raise InputError(f"the base of a litepose space is a litepose arch, not {self.base.family.name}")
        # Every option must make a valid arch: the extremes of each choice prove it.
        self.smallest()
        self.largest()

    @property
    def name(self) -> str:
        return self.kind

    @property
    def family(self) -> Family:
        return self.base.family

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        def choice(name: str, options: Sequence[int]) -> Choice:
            return Choice(name, tuple(sorted(set(options))), len(options))

        def widths(name: str) -> Choice:
            base = self.base.number(name)
            return choice(name, [base if m == 1 else make_divisible(base * m) for m in self.multipliers])

        found = {"resolution": choice("resolution", self.resolutions), "stem_width": widths("stem_width")}
        for i in range(STAGES):
            found[f"stage{i}.width"] = widths(f"stage{i}.width")
            found[f"stage{i}.depth"] = choice(f"stage{i}.depth", self.depths[i])
            found[f"stage{i}.kernel"] = choice(f"stage{i}.kernel", self.kernels[i])
            found[f"stage{i}.expansion"] = choice(f"stage{i}.expansion", self.expansions[i])
        for i in range(DECONVS):
            found[f"head.deconv{i}.width"] = widths(f"head.deconv{i}.width")
            found[f"head.deconv{i}.kernel"] = choice(f"head.deconv{i}.kernel", self.deconv_kernels[i])
        return tuple(found[name] for name in LITEPOSE.value_names)

    def config(self) -> dict[str, Any]:
        native = {
            "kind": self.kind,
            "base": self.base.to_json(),
            "joints": self.joints,
            "resolutions": list(self.resolutions),
            "multipliers": list(self.multipliers),
        }
        if self.kind == "litepose-native":
            return native
        return {
            **native,
            "depths": [list(options) for options in self.depths],
            "kernels": [list(options) for options in self.kernels],
            "expansions": [list(options) for options in self.expansions],
            "deconv_kernels": [list(options) for options in self.deconv_kernels],
        }


def litepose_native(
    joints: int = 14,
    *,
    base: Arch = FULL,
    resolutions: Sequence[int] = RESOLUTIONS,
    multipliers: Sequence[float] = MULTIPLIERS,
) -> LitePoseSpace:
    """Return the space of the paper's code: resolution, and the widths of stem, stages and deconvs.

    With the default base it holds 327,680 nominal points and 245,760 distinct networks. Depth, kernel and
    expansion are the base's.

    Parameters
    ----------
    joints
        Keypoints that the networks predict.
    base
        The network that multiplier 1 stands for; its resolution is not read.
    resolutions
        Sides of the square input, pixels.
    multipliers
        Of the base's widths, drawn independently for stem, stages and deconvs.

    Raises
    ------
    InputError
        If an option is malformed or builds no network.
    """
    stages = range(STAGES)
    return LitePoseSpace(
        base=base,
        resolutions=whole_numbers(resolutions, "resolutions"),
        multipliers=positive_numbers(multipliers, "multipliers"),
        depths=tuple((base.number(f"stage{i}.depth"),) for i in stages),
        kernels=tuple((base.number(f"stage{i}.kernel"),) for i in stages),
        expansions=tuple((base.number(f"stage{i}.expansion"),) for i in stages),
        deconv_kernels=tuple((base.number(f"head.deconv{i}.kernel"),) for i in range(DECONVS)),
        joints=joints,
        kind="litepose-native",
    )


def litepose_extended(
    joints: int = 14,
    *,
    base: Arch = FULL,
    resolutions: Sequence[int] = RESOLUTIONS,
    multipliers: Sequence[float] = MULTIPLIERS,
    depths: Sequence[Any] | None = None,
    kernels: Sequence[Any] = (3, 5, 7, 9),
    expansions: Sequence[Any] = (3, 4, 6),
    deconv_kernels: Sequence[Any] = (2, 4),
) -> LitePoseSpace:
    """Return the native space widened by depthwise kernel, depth and expansion per stage, and deconv kernel.

    Parameters
    ----------
    joints, base, resolutions, multipliers
        As for :func:`litepose_native`.
    depths
        Options for all stages, or one list per stage. Default: the base's depth, two and four blocks fewer
        (at least one).
    kernels, expansions
        Likewise.
    deconv_kernels
        Kernels of the stride-2 transposed convolutions, of 2, 3 and 4; or one list per deconv step.
    """
    if depths is None:
        own = [base.number(f"stage{i}.depth") for i in range(STAGES)]
        depths = [sorted({max(1, depth - 4), max(1, depth - 2), depth}) for depth in own]
    return LitePoseSpace(
        base=base,
        resolutions=whole_numbers(resolutions, "resolutions"),
        multipliers=positive_numbers(multipliers, "multipliers"),
        depths=per_part(depths, STAGES, "depths"),
        kernels=per_part(kernels, STAGES, "kernels"),
        expansions=per_part(expansions, STAGES, "expansions"),
        deconv_kernels=per_part(deconv_kernels, DECONVS, "deconv_kernels"),
        joints=joints,
        kind="litepose-extended",
    )


_BASE_KEYS = {"stem", "stages", "deconvs", "depths", "kernels", "expansions", "deconv_kernels", "fusion"}


def base_from_config(value: object, where: str) -> Arch:
    """Return the arch that a recipe's ``base`` mapping describes (widths as in :func:`litepose_arch`)."""
    given = check_keys(value, _BASE_KEYS, where)
    for key in ("stem", "stages", "deconvs"):
        if key not in given:
            raise InputError(f"{where} lacks '{key}'")
    if not isinstance(given.get("fusion", True), bool):
        raise InputError(f"{where}: 'fusion' is true or false, not {shown(given['fusion'])}")
    try:
        return litepose_arch(resolution=512, **given)
    except TypeError:
        raise InputError(f"{where} holds something else than numbers and lists of numbers: {given}") from None
