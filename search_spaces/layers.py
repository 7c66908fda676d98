"""Layers and blocks: what a network executes, with exact shapes, and what it costs.

MACs, parameters, latency keys and the profiler's work list are all derived from these two classes, so
there is one truth about cost.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from search_spaces.errors import InputError, shown

Kind = Literal["conv", "dwconv", "deconv", "se"]
Activation = Literal["none", "relu", "relu6", "hswish"]

_KINDS, _ACTIVATIONS = get_args(Kind), get_args(Activation)

_N = "[0-9]{1,9}"
_KEY = re.compile(
    rf"(?P<kind>conv|dwconv|deconv|se)_k(?P<kernel>{_N})_s(?P<stride>{_N})_g(?P<groups>{_N})"
    rf"(?:_q(?P<squeeze>[1-9][0-9]{{0,8}}))?"
    rf"_(?P<c_in>{_N})x(?P<h_in>{_N})x(?P<w_in>{_N})_(?P<c_out>{_N})"
    r"(?P<epilogue>(?:\+(?:bias|add|bn|relu6|relu|hswish))*)"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution-like operation with its exact shapes and what is fused behind it.

    The operation computes ``activation(norm(convolution(x)) [+ other])`` or, in the fusion head,
    ``activation(norm(convolution(x) + other))``; both cost the same.

    A squeeze-and-excitation (arXiv 1709.01507, in MobileNetV3's form) is one layer, too: channel c of the
    input is multiplied by ``hsigmoid(expand(relu(reduce(mean(x)))))[c]``, where the mean is over all pixels,
    ``reduce`` and ``expand`` are 1x1 convolutions with bias to ``squeeze`` channels and back, and
    ``hsigmoid(t) = relu6(t + 3) / 6``.

    Attributes
    ----------
    kind
        ``conv`` (pointwise is kernel 1), ``dwconv`` (depthwise: groups == c_in == c_out), ``deconv``
        (transposed convolution that multiplies height and width by ``stride``) or ``se``
        (squeeze-and-excitation: c_in == c_out; kernel, stride and groups 1, with bias, nothing behind it).
    c_in, c_out
        Channels.
    kernel, stride, groups
        Square kernel size, stride and groups. Convolutions pad so that the output is ``ceil(size / stride)``.
    h_in, w_in
        Input height and width in pixels, batch 1.
    bias
        Whether the convolution itself has a bias.
    norm
        Whether batch normalisation follows.
    activation
        ``none``, ``relu``, ``relu6`` or ``hswish`` (``x * relu6(x + 3) / 6``, arXiv 1905.02244, section 5.2).
    add
        Whether another tensor of the output's shape is added (residual or fusion).
    name
        Where the layer sits in the network; not part of its identity.
    squeeze
        Channels that a squeeze-and-excitation reduces to; 0 for all other kinds.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    kind: Kind
    c_in: int
    c_out: int
    kernel: int
    stride: int
    groups: int
    h_in: int
    w_in: int
    bias: bool = False
    norm: bool = False
    activation: Activation = "none"
    add: bool = False
    name: str = field(default="", compare=False)
    squeeze: int = 0

    def __post_init__(self) -> None:
        for what, known in (("kind", _KINDS), ("activation", _ACTIVATIONS)):
            if getattr(self, what) not in known:
                raise InputError(
                    f"a layer's {what} is one of {', '.join(known)}, not {shown(getattr(self, what))}"
                )
        for what in ("c_in", "c_out", "kernel", "stride", "groups", "h_in", "w_in"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"a layer's {what} is a positive integer, not {value!r}")
        if self.c_in % self.groups or self.c_out % self.groups:
            raise InputError(
                f"a layer's groups ({self.groups}) must divide c_in {self.c_in} and c_out {self.c_out}"
            )
        if self.kind == "dwconv" and not self.groups == self.c_in == self.c_out:
            raise InputError(
                f"a depthwise layer has groups == c_in == c_out, not {self.groups}, {self.c_in}, {self.c_out}"
            )
        self._check_squeeze()

    def _check_squeeze(self) -> None:
        """Raise unless what makes a squeeze-and-excitation is there exactly where the layer is one."""
        value = self.squeeze
        if self.kind != "se":
            if isinstance(value, bool) or value != 0:
                raise InputError(f"a layer's squeeze is 0 but for the kind 'se', not {shown(value)}")
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"a squeeze-and-excitation's squeeze is a positive integer, not {shown(value)}: the channels"
                " that it reduces to"
            )
        if self.c_in != self.c_out or (self.kernel, self.stride, self.groups) != (1, 1, 1):
            raise InputError(
                "a squeeze-and-excitation has c_out == c_in and kernel, stride and groups of 1, not"
                f" {self.c_out} of {self.c_in}, {self.kernel}, {self.stride} and {self.groups}"
            )
        if not self.bias or self.norm or self.add or self.activation != "none":
            raise InputError(
                "a squeeze-and-excitation has a bias and neither norm, addition nor activation behind it"
            )

    @property
    def h_out(self) -> int:
        """Output height in pixels."""
        return self.h_in * self.stride if self.kind == "deconv" else -(-self.h_in // self.stride)

    @property
    def w_out(self) -> int:
        """Output width in pixels."""
        return self.w_in * self.stride if self.kind == "deconv" else -(-self.w_in // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolution, batch 1 (transposed: once per *input* pixel).

        Of a squeeze-and-excitation those of its two convolutions; mean and multiplication are not counted.
        """
        if self.kind == "se":
            return 2 * self.c_in * self.squeeze
        pixels = self.h_in * self.w_in if self.kind == "deconv" else self.h_out * self.w_out
        return pixels * self.kernel**2 * self.c_in * self.c_out // self.groups

    @property
    def macs_paper(self) -> int:
        """MACs as LitePose's tables count them: an old profiler's convention, reproduced for comparison.

        A transposed convolution is counted at output resolution (``stride**2`` times too much), batch
        normalisation adds 2 per output element and an activation 1 (arXiv 2205.01271; the convention
        reproduces its 1.2/5.0/7.8/13.7 G). A squeeze-and-excitation's two activations see one pixel each.
        """
        if self.kind == "se":
            return self.macs + self.squeeze + self.c_out
        elements = self.c_out * self.h_out * self.w_out
        convolution = self.macs * (self.stride**2 if self.kind == "deconv" else 1)
        return convolution + elements * (2 * self.norm + (self.activation != "none"))

    @property
    def params(self) -> int:
        """Trainable parameters: weights, bias, and the two vectors of batch normalisation."""
        if self.kind == "se":
            return self.macs + self.squeeze + self.c_out
        return self.kernel**2 * self.c_in * self.c_out // self.groups + self.c_out * (
            self.bias + 2 * self.norm
        )

    @property
    def key(self) -> str:
        """Stable text form of everything but the name, e.g. ``dwconv_k7_s2_g96_96x224x224_96+bn+relu6``."""
        epilogue = "".join(
            f"+{word}"
            for word, present in (("bias", self.bias), ("add", self.add), ("bn", self.norm))
            if present
        )
        if self.activation != "none":
            epilogue += f"+{self.activation}"
        return (
            f"{self.kind}_k{self.kernel}_s{self.stride}_g{self.groups}"
            + (f"_q{self.squeeze}" if self.kind == "se" else "")
            + f"_{self.c_in}x{self.h_in}x{self.w_in}_{self.c_out}{epilogue}"
        )

    @classmethod
    def from_key(cls, key: str, name: str = "") -> Layer:
        """Return the layer that ``key`` describes.

        Raises
        ------
        InputError
            If the text is not a layer key.
        """
        match = _KEY.fullmatch(key)
        words = [word for word in match["epilogue"].split("+") if word] if match else []
        activations = [word for word in words if word in _ACTIVATIONS]
        if match is None or len(set(words)) != len(words) or len(activations) > 1:
            raise InputError(
                f"{shown(key)} is not a layer key; one looks like 'dwconv_k7_s2_g96_96x224x224_96+bn+relu6'"
            )
        numbers = {n: int(match[n]) for n in ("c_in", "c_out", "kernel", "stride", "groups", "h_in", "w_in")}
        return cls(
            kind=match["kind"],  # type: ignore[arg-type]
            **numbers,
            bias="bias" in words,
            norm="bn" in words,
            activation=activations[0] if activations else "none",  # type: ignore[arg-type]
            add="add" in words,
            name=name,
            squeeze=int(match["squeeze"] or 0),
        )


@dataclass(frozen=True, slots=True)
class Block:
    """A named group of layers that runs as one piece (stem, bottleneck, deconv step, output head).

    Layers stand in the order in which they run. A block is one chain, or several *branches* side by side,
    each a chain with an input of its own. What its last layer adds (where it adds at all) is the block's
    input if there is one branch (a residual), and the other branch's output if there are two.

    Attributes
    ----------
    name
        Where the block sits in the network; not part of its identity.
    layers
        Its layers, branch after branch.
    branches
        Layers of each branch; () stands for one branch of them all.

    Raises
    ------
    InputError
        On construction, if branches and layers do not fit together.
    """

    name: str = field(compare=False)
    layers: tuple[Layer, ...]
    branches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.branches:
            object.__setattr__(self, "branches", (len(self.layers),))
        if min(self.branches) < 1 or sum(self.branches) != len(self.layers) or len(self.branches) > 2:
            raise InputError(
                f"a block has one or two branches of at least one layer each, {len(self.layers)} layers in"
                f" all, not {self.branches}"
            )
        for chain in self.chains:
            for before, after in itertools.pairwise(chain):
                if (before.c_out, before.h_out, before.w_out) != (after.c_in, after.h_in, after.w_in):
                    raise InputError(
                        f"in a block, {before.key} hands over {before.c_out}x{before.h_out}x{before.w_out},"
                        f" which {after.key} does not take"
                    )
        if any(layer.add for layer in self.layers[:-1]):
            raise InputError("in a block only the last layer adds")
        last, first = self.layers[-1], self.layers[0]
        other = self.chains[0][-1] if len(self.branches) == 2 else None
        added = (
            (first.c_in, first.h_in, first.w_in) if other is None else (other.c_out, other.h_out, other.w_out)
        )
        if (other is not None and not last.add) or (
            last.add and added != (last.c_out, last.h_out, last.w_out)
        ):
            raise InputError(
                f"a block's last layer, {last.key}, must add"
                f" {'its input' if other is None else 'the other branch'}, {'x'.join(map(str, added))}"
            )

    @property
    def chains(self) -> tuple[tuple[Layer, ...], ...]:
        """The layers of each branch."""
        ends = tuple(itertools.accumulate(self.branches))
        return tuple(self.layers[end - count : end] for end, count in zip(ends, self.branches, strict=True))

    @property
    def key(self) -> str:
        """Stable text form of all but the name: layers' keys, ``>`` in a chain, ``|`` between branches.

        A block of a single layer stands in parentheses, so that a table keeps apart what was timed as a block
        of a network and what as a layer.
        """
        if len(self.layers) == 1:
            return f"({self.layers[0].key})"
        return "|".join(">".join(layer.key for layer in chain) for chain in self.chains)

    @classmethod
    def from_key(cls, key: str, name: str = "") -> Block:
        """Return the block that ``key`` describes.

        Raises
        ------
        InputError
            If the text is no block key, or its layers do not fit together.
        """
        alone = key[1:-1] if key.startswith("(") and key.endswith(")") else None
        if alone is not None:
            return cls(name, (Layer.from_key(alone),))
        chains = [[Layer.from_key(part) for part in chain.split(">")] for chain in key.split("|")]
        layers = tuple(layer for chain in chains for layer in chain)
        return cls(name, layers, tuple(len(chain) for chain in chains))


Piece = Layer | Block
"""What is timed, and what a latency table has a row for: a layer alone, or a block as a whole."""


def piece_from_key(key: str) -> Piece:
    """Return the layer or the block that ``key`` describes.

    Raises
    ------
    InputError
        If the text is neither's key.
    """
    return Block.from_key(key) if key[:1] == "(" or ">" in key or "|" in key else Layer.from_key(key)


def layers_of(piece: Piece) -> tuple[Layer, ...]:
    """Return a block's layers, or the layer alone."""
    return piece.layers if isinstance(piece, Block) else (piece,)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one network costs, batch 1.

    Attributes
    ----------
    params
        Trainable parameters, batch normalisation included.
    macs
        True multiply-accumulates of all convolutions.
    macs_paper
        The same in the convention of LitePose's published tables (see :attr:`Layer.macs_paper`).
    """

    params: int
    macs: int
    macs_paper: int

    @classmethod
    def of(cls, layers: Iterable[Layer]) -> Cost:
        """Return the summed cost of ``layers``."""
        every = list(layers)
        return cls(
            params=sum(layer.params for layer in every),
            macs=sum(layer.macs for layer in every),
            macs_paper=sum(layer.macs_paper for layer in every),
        )
