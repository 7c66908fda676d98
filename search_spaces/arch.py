"""Arch: one frozen, validated network description; Family: the rules by which archs of one kind are built."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from search_spaces.errors import InputError, did_you_mean
from search_spaces.layers import Block, Cost, Layer

Value = int | str
"""What a choice can be set to: channels, kernels, depths, pixels (int), or a named option (str)."""


class Family(ABC):
    """The construction rules of one kind of network (LitePose, ...), without any search in them.

    A family is stateless: it names the values that describe a network, checks them, and lists the blocks
    that such a network executes. Each block depends on a few values only; that is what makes pricing a
    whole search space a handful of table look-ups.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def value_names(self) -> tuple[str, ...]:
        """Names of all values that describe a network, in canonical order."""

    @abstractmethod
    def check(self, values: Mapping[str, Value]) -> None:
        """Raise :class:`InputError` naming the value that is missing, unknown or out of range."""

    @abstractmethod
    def block_dependencies(self, most: Mapping[str, Value]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return ``(block name, names of the values it depends on)`` for every block, in execution order.

        ``most`` holds the largest value of each name that can occur; it bounds the number of blocks.
        """

    @abstractmethod
    def block(
        self, name: str, values: Mapping[str, Value], joints: int, size: tuple[int, int] | None = None
    ) -> Block | None:
        """Return the block ``name`` of the network with these ``values``; None where it is not executed.

        Only the values that :meth:`block_dependencies` lists for the block are read. ``size`` is the input's
        (height, width) in pixels; by default the one that the resolution states.
        """

    @abstractmethod
    def input_size(self, values: Mapping[str, Value]) -> tuple[int, int]:
        """Return the (height, width) in pixels that the values' resolution stands for."""

    def block_sources(self, blocks: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Return what each block's branches read: names of blocks, () for the picture.

        ``blocks`` are the names of all that one network executes, in order. Blocks that no other one reads
        are the network's outputs. By default each block reads the one before it.
        """
        return {name: tuple(blocks[max(0, i - 1) : i]) for i, name in enumerate(blocks)}

    def arch(self, values: Mapping[str, Value]) -> Arch:
        """Return the validated arch with these values (any order)."""
        self.check(values)
        return Arch(self, tuple((name, values[name]) for name in self.value_names))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@dataclass(frozen=True)
class Arch:
    """One network: a frozen, validated assignment of realised values (channels, kernels, ...).

    Two archs are equal exactly if they build the same network. Build one with :meth:`Family.arch`,
    :func:`search_spaces.get_arch`, :func:`search_spaces.arch_from_json` or a space's ``decode``/``sample``.

    Attributes
    ----------
    family
        The construction rules.
    values
        ``(name, value)`` pairs in the family's canonical order.

    Raises
    ------
    InputError
        On construction, if a value is missing, unknown or out of range.
    """

    family: Family
    values: tuple[tuple[str, Value], ...]

    def __post_init__(self) -> None:
        names = tuple(name for name, _ in self.values)
        self.family.check(dict(self.values))
        if names != self.family.value_names:
            raise InputError(f"an arch's values come in the order {', '.join(self.family.value_names)}")

    def __getitem__(self, name: str) -> Value:
        for key, value in self.values:
            if key == name:
                return value
        known = [key for key, _ in self.values]
        raise InputError(f"a {self.family.name} arch has no value '{name}'{did_you_mean(name, known)}")

    def number(self, name: str) -> int:
        """Return the value ``name``, which must be an integer."""
        value = self[name]
        if not isinstance(value, int):
            raise InputError(f"the value '{name}' of this {self.family.name} arch is '{value}', not a number")
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.values)

    def as_dict(self) -> dict[str, Value]:
        """Return the values by name."""
        return dict(self.values)

    def replace(self, **changes: Value) -> Arch:
        """Return a copy with some values changed; write ``.`` in a name as ``__`` (``stage0__width=24``)."""
        values = self.as_dict()
        for name, value in changes.items():
            self[name.replace("__", ".")]
            values[name.replace("__", ".")] = value
        return self.family.arch(values)

    @property
    def size(self) -> tuple[int, int]:
        """Input (height, width) in pixels."""
        return self.family.input_size(self.as_dict())

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that identify the network (the same on every machine)."""
        text = json.dumps([self.family.name, list(self.values)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def blocks(self, joints: int, size: tuple[int, int] | None = None) -> tuple[Block, ...]:
        """Return the blocks that the network executes, in order, for ``joints`` keypoints.

        ``size`` overrides the input's (height, width).
        """
        values = self.as_dict()
        every = (
            self.family.block(name, values, joints, size)
            for name, _ in self.family.block_dependencies(values)
        )
        return tuple(block for block in every if block is not None)

    def layers(self, joints: int, size: tuple[int, int] | None = None) -> tuple[Layer, ...]:
        """Return every layer that the network executes, in order."""
        return tuple(layer for block in self.blocks(joints, size) for layer in block.layers)

    def cost(self, joints: int, size: tuple[int, int] | None = None) -> Cost:
        """Return parameters and MACs for ``joints`` keypoints."""
        return Cost.of(self.layers(joints, size))

    def to_json(self) -> dict[str, Any]:
        """Return ``{"family": ..., <name>: <value>, ...}``."""
        return {"family": self.family.name, **dict(self.values)}

    def __str__(self) -> str:
        return f"{self.family.name}({', '.join(f'{name}={value}' for name, value in self.values)})"
