"""One network as a drawing: what runs one after the other, how large it is, and what is joined to what.

Every block is a slab, as wide as it has channels and as high as its outputs are (on a logarithmic scale). Its
colour tells what it costs. Lines above are what a head takes from the backbone, lines below what skips an
output. Both families are drawn from their blocks alone, so one of your own is, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nas.markup import Markup, number, tag
from nas.plot_style import INK
from search_spaces import Arch, InputError
from search_spaces.files import write_text
from search_spaces.layers import Block

__all__ = ["block_words", "network_svg", "shade", "write_network"]

_LIGHT: Final = (0xD3, 0xEB, 0xE6)
_DARK: Final = (0x0B, 0x4F, 0x6C)
_JOIN: Final = "#b45309"
_GAP: Final = 3
_WIDEST: Final = 22.0
_NARROWEST: Final = 3.0
_LEAST_HEIGHT: Final = 22.0
_HEIGHT_PER_DOUBLING: Final = 19.0
_LETTER: Final = 6.6
"""Width of a letter of 11 px, at most."""
_LINE: Final = 14
_BETWEEN: Final = 20
_MARGIN: Final = 16
_ARC: Final = 13


def block_words(block: Block) -> str:
    """Return what a block is: ``24 channels, 3x3, expansion 6, 64x64``."""
    parts = _Parts.of(block)
    squeezed = "squeeze-and-excitation" if any(layer.kind == "se" for layer in block.layers) else ""
    told = [f"{parts.channels} channels", parts.kernel, parts.expansion, squeezed, f"{parts.h}x{parts.w}"]
    return ", ".join(filter(None, told))


@dataclass(frozen=True)
class _Parts:
    """What is told of a block: its outputs, and its largest kernel."""

    channels: int
    h: int
    w: int
    kernel: str
    expansion: str

    @classmethod
    def of(cls, block: Block) -> _Parts:
        last = block.layers[-1]
        side = max(layer.kernel for layer in block.layers)
        widths = [layer for layer in block.layers if layer.kind == "dwconv"]
        first = block.layers[0]
        residual = first.kind == "conv" and len(widths) == 1 and block.branches == (len(block.layers),)
        grown = widths[0].c_out / first.c_in if residual and first.kernel == 1 else None
        return cls(
            last.c_out,
            last.h_out,
            last.w_out,
            f"{side}x{side}",
            "" if grown is None else f"expansion {number(grown)}",
        )


@dataclass(frozen=True)
class _Group:
    """Blocks that stand together: a stage, or one block alone."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def lines(self) -> list[str]:
        """What stands below it."""
        last = _Parts.of(self.blocks[-1])
        channels = f"{last.channels} ch"
        if len(self.blocks) > 1:
            channels += f" \N{MULTIPLICATION SIGN} {len(self.blocks)}"
        every = [_Parts.of(block) for block in self.blocks]
        kernels = "/".join(dict.fromkeys(part.kernel for part in every))
        grown = [part.expansion.removeprefix("expansion ") for part in every if part.expansion]
        expansions = f", exp. {'/'.join(dict.fromkeys(grown))}" if grown else ""
        return [_title(self.name), channels, _times(last.h, last.w), _crossed(kernels) + expansions]


def _title(name: str) -> str:
    """Return a group's name as people say it: ``deconv 0`` for ``head.deconv0``."""
    word = name.removeprefix("head.")
    return f"{word.rstrip('0123456789')} {word[len(word.rstrip('0123456789')) :]}".strip()


def _times(height: int, width: int) -> str:
    return f"{height}\N{MULTIPLICATION SIGN}{width}"


def _crossed(text: str) -> str:
    return text.replace("x", "\N{MULTIPLICATION SIGN}")


def _groups(blocks: Sequence[Block]) -> list[_Group]:
    found = []
    for name, members in itertools.groupby(blocks, lambda block: _group_of(block.name)):
        found.append(_Group(name, tuple(members)))
    return found


def _group_of(name: str) -> str:
    before, _, last = name.rpartition(".")
    return before if last.startswith("block") else name


def shade(share: float) -> str:
    """Return the colour of a cost, as a share of the largest: light is little, dark is much."""
    mixed = (round(a + (b - a) * min(1.0, max(0.0, share))) for a, b in zip(_LIGHT, _DARK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def network_svg(
    arch: Arch,
    joints: int,
    costs: Mapping[str, float] | None = None,
    unit: str = "MMACs",
    *,
    name: str = "",
    page: bool = False,
) -> Markup:
    """Return a network as an SVG drawing.

    Parameters
    ----------
    arch, joints
        The network.
    costs
        By block, what it costs in ``unit``; by default its MACs, in millions.
    unit
        As above.
    name
        What it is called; by default its id.
    page
        Whether it becomes a part of an HTML page, whose colour of texts it then takes. Otherwise it can be a
        file of its own, dark on white.

    Raises
    ------
    InputError
        If ``costs`` lack a block.
    """
    blocks = arch.blocks(joints)
    told = {b.name: sum(x.macs for x in b.layers) / 1e6 for b in blocks} if costs is None else dict(costs)
    lacking = [block.name for block in blocks if block.name not in told]
    if lacking:
        raise InputError(f"the costs of a drawing lack the blocks {', '.join(lacking)}")
    drawing = _Drawing(arch, blocks, told, unit)
    body, width, height = drawing.drawn()
    heading = name or arch.id
    summary = (
        f"{heading}: {len(blocks)} blocks, from {arch.size[0]}x{arch.size[1]} pixels to"
        f" {' and '.join(drawing.outputs)}"
    )
    return tag(
        "svg",
        tag("title", summary),
        None if page else tag("rect", width=width, height=height, fill="#ffffff"),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=summary,
        class_="network",
        font_family="system-ui, 'DejaVu Sans', sans-serif",
        font_size="11",
        fill="currentColor",
        color=None if page else INK,
    )


def write_network(arch: Arch, joints: int, path: str | Path, *, name: str = "") -> Path:
    """Write the drawing of a network to an ``.svg`` file, coloured by MACs; return the file.

    Raises
    ------
    InputError
        If the file has another suffix.
    RunError
        If it cannot be written.
    """
    path = Path(path)
    path = path.with_suffix(".svg") if path.suffix == "" else path
    if path.suffix.lower() != ".svg":
        raise InputError(f"a network's diagram is written as .svg, not as '{path.name}'")
    write_text(path, network_svg(arch, joints, name=name) + "\n")
    return path


class _Drawing:
    """Where everything of one network stands."""

    def __init__(self, arch: Arch, blocks: tuple[Block, ...], costs: Mapping[str, float], unit: str) -> None:
        self.arch, self.costs, self.unit = arch, costs, unit
        self.groups = _groups(blocks)
        self.sources = arch.family.block_sources([block.name for block in blocks])
        read = {source for sources in self.sources.values() for source in sources}
        self.sinks = [block for block in blocks if block.name not in read]
        outputs = [b.layers[-1] for b in self.sinks]
        self.outputs = [f"{x.c_out} maps of {x.h_out}x{x.w_out}" for x in outputs]
        sides = [math.log2(b.layers[-1].h_out) for b in blocks]
        self.most_channels = max(block.layers[-1].c_out for block in blocks)
        self.least_side, self.most_side = min(sides), max(max(sides), math.log2(arch.size[0]))
        self.most_cost = max(costs[block.name] for block in blocks) or 1.0

    def height_of(self, side: int) -> float:
        """Return how high something of so many rows is drawn."""
        return _LEAST_HEIGHT + _HEIGHT_PER_DOUBLING * (math.log2(side) - self.least_side)

    def drawn(self) -> tuple[Markup, float, float]:
        """Return the drawing's parts, its width and its height."""
        above, below = self._joins()
        top = _MARGIN + _ARC * max(0, len(above) - 1)
        tallest = self.height_of(self.arch.size[0])
        middle = top + 10 + tallest / 2
        under = middle + tallest / 2 + 12 + _ARC * len(below)
        parts: list[Markup] = []
        places: dict[str, tuple[float, float]] = {}
        x = float(_MARGIN)
        x = self._picture(parts, x, middle, under)
        for group in self.groups:
            x, left, right = self._group(parts, group, x, middle, under)
            places[group.name] = (left, right)
        height = under + 5 * _LINE + 46
        joins = [
            *self._arcs(above, places, middle, level=lambda i: top - _ARC * i, up=True),
            *self._arcs(below, places, middle, level=lambda i: middle + tallest / 2 + 8 + _ARC * i, up=False),
        ]
        width = max(x - _BETWEEN + _MARGIN, 560.0)
        return (
            tag(
                "g",
                self._flow(places, middle),
                joins,
                parts,
                self._legend(height - 14, bool(above), bool(below)),
            ),
            width,
            height,
        )

    def _picture(self, parts: list[Markup], x: float, middle: float, under: float) -> float:
        """Draw the input."""
        height, width = self.arch.size
        tall = self.height_of(height)
        wide = 26.0
        left = x + (_width(_times(height, width)) - wide) / 2
        parts.append(
            tag(
                "rect", x=left, y=middle - tall / 2, width=wide, height=tall, rx=2, fill="none",
                stroke="currentColor", stroke_dasharray="3 2", opacity=0.6,
            )
        )  # fmt: skip
        lines = ["input", "RGB", _times(height, width)]
        room = max(wide, max(map(_width, lines)))
        parts += _label(lines, x + room / 2, under)
        return x + room + _BETWEEN

    def _group(
        self, parts: list[Markup], group: _Group, x: float, middle: float, under: float
    ) -> tuple[float, float, float]:
        """Draw one group; return where the next one begins, and where its slabs lie."""
        wide = [self._slab(block) for block in group.blocks]
        slabs = sum(wide) + _GAP * (len(wide) - 1)
        lines = group.lines
        cost = sum(self.costs[block.name] for block in group.blocks)
        room = max(slabs, max(map(_width, [*lines, self._cost(cost)])))
        left = at = x + (room - slabs) / 2
        for block, across in zip(group.blocks, wide, strict=True):
            tall = self.height_of(block.layers[-1].h_out)
            words = f"{block.name}: {block_words(block)}; {self._cost(self.costs[block.name])}"
            parts.append(
                tag(
                    "rect", tag("title", words), x=at, y=middle - tall / 2, width=across, height=tall, rx=1.5,
                    fill=shade(self.costs[block.name] / self.most_cost), stroke="currentColor",
                    stroke_opacity=0.55, stroke_width=0.8,
                )
            )  # fmt: skip
            at += across + _GAP
        parts += _label([*lines, self._cost(cost)], x + room / 2, under)
        return x + room + _BETWEEN, left, left + slabs

    def _slab(self, block: Block) -> float:
        return _NARROWEST + (_WIDEST - _NARROWEST) * block.layers[-1].c_out / self.most_channels

    def _cost(self, value: float) -> str:
        return f"{value:.3g} {self.unit}"

    def _joins(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return what is joined beyond neighbours, shortest first: to the head, and past an output."""
        order = [group.name for group in self.groups]
        above: list[tuple[str, str]] = []
        below: list[tuple[str, str]] = []
        for name, sources in self.sources.items():
            to = _group_of(name)
            for source in sources:
                start = _group_of(source)
                if order.index(to) - order.index(start) > 1:
                    (below if start.startswith("head.") else above).append((start, to))

        def span(join: tuple[str, str]) -> int:
            return order.index(join[1]) - order.index(join[0])

        return sorted(above, key=span), sorted(below, key=span)

    def _flow(self, places: Mapping[str, tuple[float, float]], middle: float) -> list[Markup]:
        """Draw lines between neighbours, where the one reads the other."""
        found = []
        for one, other in itertools.pairwise(self.groups):
            if one.blocks[-1].name in self.sources[other.blocks[0].name]:
                found.append(
                    tag(
                        "line", x1=places[one.name][1] + 2, x2=places[other.name][0] - 2, y1=middle,
                        y2=middle,                        stroke="currentColor", stroke_opacity=0.3,
                    )
                )  # fmt: skip
        return found

    def _arcs(
        self,
        joins: Sequence[tuple[str, str]],
        places: Mapping[str, tuple[float, float]],
        middle: float,
        level: Callable[[int], float],
        up: bool,
    ) -> list[Markup]:
        """Draw lines from groups to groups, each at its own height."""
        found = []
        heights = {g.name: self.height_of(g.blocks[-1].layers[-1].h_out) / 2 for g in self.groups}
        starts: dict[str, int] = {}
        for place, (start, to) in enumerate(joins):
            again = starts[start] = starts.get(start, -1) + 1
            # From the last slab of the one to the first of the other, a little apart where two begin.
            x0 = places[start][1] - 3 - 4 * again
            x1 = (places[to][0] + places[to][1]) / 2
            y = level(place)
            sign = -1 if up else 1
            y0, y1 = middle + sign * heights[start], middle + sign * heights[to]
            path = f"M{number(x0)},{number(y0)}V{number(y)}H{number(x1)}V{number(y1 + sign * 4)}"
            tip = f"{number(x1)},{number(y1 + sign * 1)}"
            left, right = (f"{number(x1 + side)},{number(y1 + sign * 7)}" for side in (-3, 3))
            found.append(
                tag(
                    "g",
                    tag("title", f"{_title(start)} to {_title(to)}"),
                    tag("path", d=path, fill="none", stroke=_JOIN, stroke_width=1.1, stroke_linejoin="round"),
                    tag("polygon", points=f"{tip} {left} {right}", fill=_JOIN),
                )
            )  # fmt: skip
        return found

    def _legend(self, y: float, above: bool, below: bool) -> list[Markup]:
        """Draw what the colours and lines mean."""
        steps = 16
        wide = 6.0
        parts = [
            tag("rect", x=_MARGIN + 8 + _width("0") + i * wide, y=y - 9, width=wide + 0.3, height=10,
                fill=shade(i / (steps - 1)))
            for i in range(steps)
        ]  # fmt: skip
        end = _MARGIN + 16 + _width("0") + steps * wide
        words = f"{self._cost(self.most_cost)} a block"
        parts += [
            tag("text", "0", x=_MARGIN, y=y, opacity=0.75),
            tag("text", words, x=end, y=y, opacity=0.75),
        ]
        if above or below:
            x = end + _width(words) + 26
            parts += [
                tag("path", d=f"M{number(x)},{number(y - 4)}h18", stroke=_JOIN, stroke_width=1.1),
                tag("text", "joined by the head" if above else "past an output", x=x + 24, y=y, opacity=0.75),
            ]
        return parts


def _width(text: str) -> float:
    return len(text) * _LETTER


def _label(lines: Sequence[str], x: float, top: float) -> list[Markup]:
    """Write lines below a group: its name and its cost strong."""
    return [
        tag(
            "text", line, x=x, y=top + 10 + _LINE * row, text_anchor="middle",
            font_weight="600" if row in (0, 4) else None, opacity=None if row in (0, 4) else 0.8,
        )
        for row, line in enumerate(lines)
    ]  # fmt: skip
