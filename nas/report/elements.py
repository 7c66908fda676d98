"""What the parts of a report are made of: tables, pairs, figures with intervals, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nas.markup import Markup, join, tag
from nas.report.facts import Card

__all__ = [
    "ap_of",
    "brief",
    "in_parentheses",
    "missing",
    "more",
    "ms_of",
    "number_of",
    "pairs",
    "plain",
    "sides",
    "size_of",
    "table",
    "with_ends",
]


def missing(said: str, command: str = "") -> Markup:
    """Return what stands where facts are missing: what they are, and what makes them."""
    return join(tag("p", said, class_="missing"), tag("code", command) if command else None)


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str | Markup]], *, texts: bool = False
) -> Markup:
    """Return a table; the first cell of each row is its heading. ``texts``: of words rather than figures."""
    head = tag("tr", [tag("th", name, scope="col") for name in columns])
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", body),
        class_="texts" if texts else None,
    )
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def pairs(pairs: Mapping[str, str | Markup]) -> Markup:
    """Return names and what they stand for."""
    return tag(
        "dl", [join(tag("dt", name), tag("dd", value)) for name, value in pairs.items()], class_="pairs"
    )


def more(summary: str, *inside: Markup | None, opened: bool = False) -> Markup:
    return tag("details", tag("summary", summary), *inside, open=opened)


def number_of(value: object, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def ap_of(card: Card) -> tuple[str, str]:
    """Return a card's AP and its interval: ``0.523`` and ``0.489 to 0.556``; empty where there are none."""
    measured = card.part("ap")
    stats, bounds = measured.get("stats"), measured.get("interval")
    value = stats.get("AP") if isinstance(stats, Mapping) else None
    ends = (
        [number_of(bounds.get(end), 3) for end in ("low", "high")] if isinstance(bounds, Mapping) else ["-"]
    )
    return ("" if value is None else number_of(value, 3)), ("" if "-" in ends else f"{ends[0]} to {ends[1]}")


def in_parentheses(value: str, interval: str) -> str:
    return f"{value} ({interval})" if value and interval else value


def brief(text: str) -> str:
    """Return a text whose quoted paths are names of files alone."""
    return re.sub(r"'[^']*/([^'/]+)'", r"'\1'", text)


def sides(size: tuple[int, int]) -> str:
    """Return (height, width) as it is written everywhere in a report: ``256x192``, height first."""
    return f"{size[0]}\N{MULTIPLICATION SIGN}{size[1]}"


def with_ends(value: object, digits: int) -> str:
    """Return a figure with the ends of its interval, as far as they are there."""
    if not isinstance(value, Mapping):
        return number_of(value, digits)
    told = number_of(value.get("value"), digits)
    ends = [number_of(value.get(key), digits) for key in ("low", "high")]
    return told if "-" in ends else f"{told} ({ends[0]} to {ends[1]})"


def plain(value: object) -> str:
    """Return any value of a card in a few words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return "-" if value is None else str(value)


def size_of(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def ms_of(value: float) -> str:
    """Return milliseconds in three digits; what no clock would see is 0."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-4 else "0"
