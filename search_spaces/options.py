"""What search spaces are declared with: lists of options, checked; channels rounded as MobileNetV2 does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.errors import InputError, did_you_mean

__all__ = [
    "Bounds",
    "check_bounds",
    "half",
    "halved",
    "make_divisible",
    "per_part",
    "positive_numbers",
    "stage_dependencies",
    "whole_numbers",
]

_LARGEST_OPTION = 1_000_000
"""No option comes near it; what lies beyond, infinity included, could not be computed with."""

Bounds = Mapping[str, tuple[int, int, str]]
"""Of every value of a family: the least and the largest number that it may be, and what it is."""


def make_divisible(value: float, divisor: int = 8) -> int:
    """Return ``value`` rounded to a multiple of ``divisor``: at least one, and never more than 10% down.

    The channel rounding of MobileNetV2, which LitePose uses: 0.75 x 24 = 18 becomes 24, not 16.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def half(size: int) -> int:
    """Return half of a size in pixels, rounded up."""
    return -(-size // 2)


def halved(size: tuple[int, int], times: int) -> tuple[tuple[int, int], ...]:
    """Return (height, width) halved once, twice, and so on, rounded up each time."""
    sizes = []
    for _ in range(times):
        size = (half(size[0]), half(size[1]))
        sizes.append(size)
    return tuple(sizes)


def stage_dependencies(stages: int, most: Mapping[str, int | str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the blocks of an encoder's stages, and the values that each depends on, in execution order.

    The first block of a stage reads the stage before it, of stage 0 the stem; each further one reads a block
    like itself. ``most`` holds the largest depths.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    for i in range(stages):
        own = (f"stage{i}.width", f"stage{i}.kernel", f"stage{i}.expansion")
        source = "stem_width" if i == 0 else f"stage{i - 1}.width"
        found.append((f"stage{i}.block0", ("resolution", source, *own)))
        found.extend(
            (f"stage{i}.block{j}", ("resolution", *own, f"stage{i}.depth"))
            for j in range(1, int(most[f"stage{i}.depth"]))
        )
    return found


def check_bounds(family: str, bounds: Bounds, values: Mapping[str, object]) -> None:
    """Raise :class:`InputError` naming the value that is unknown, missing, no whole number or out of range.

    A stage's kernel must be odd.
    """
    for name in values:
        if name not in bounds:
            raise InputError(f"a {family} arch has no value '{name}'{did_you_mean(str(name), bounds)}")
    for name, (low, high, rule) in bounds.items():
        if name not in values:
            raise InputError(f"the {family} arch lacks '{name}' ({rule})")
        value = values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            span = f"from {low} to {high}" if low < high else f"and always {low} here"
            raise InputError(f"{family} '{name}' is {rule} {span}, not {value!r}")
        if name.startswith("stage") and name.endswith("kernel") and value % 2 == 0:
            raise InputError(f"{family} '{name}' is an odd number, not {value}")


def positive_numbers(values: Sequence[float], what: str) -> tuple[float, ...]:
    """Return options that are numbers above 0, at least one; errors name ``what``."""
    if not values or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < _LARGEST_OPTION for v in values
    ):
        raise InputError(f"'{what}' is a list of positive numbers, not {list(values)!r}")
    return tuple(values)


def whole_numbers(values: Sequence[float], what: str) -> tuple[int, ...]:
    """Return options that are whole numbers above 0, at least one; errors name ``what``."""
    if any(value != int(value) for value in positive_numbers(values, what)):
        raise InputError(f"'{what}' is a list of whole numbers, not {list(values)!r}")
    return tuple(int(value) for value in values)


def per_part(given: Sequence[Any], parts: int, what: str) -> tuple[tuple[int, ...], ...]:
    """Return one tuple of options per stage or deconv step; a flat list of numbers stands for all of them."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(
            f"'{what}' is a list of options, or one such list for each of {parts} parts, not {given!r}"
        )
    if all(isinstance(options, Sequence) and not isinstance(options, str) for options in given):
        if len(given) != parts:
            raise InputError(
                f"'{what}' has one list of options for each of the {parts} parts, not {len(given)}"
            )
        return tuple(whole_numbers(options, what) for options in given)
    return (whole_numbers(given, what),) * parts
