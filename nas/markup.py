"""Elements of HTML and SVG whose texts cannot become markup: what people named is escaped where it enters.

>>> from nas.markup import tag
>>> tag("p", "a < b", tag("b", "c"), class_="note")
'<p class="note">a &lt; b<b>c</b></p>'
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["Markup", "join", "number", "tag"]

_EMPTY: Final = frozenset({"br", "col", "hr", "img", "meta"})
"""Elements of HTML that have no end."""
_NEVER: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""What no page may hold; names of files that are no UTF-8 come in as surrogates."""


class Markup(str):
    """A text that is markup already; every other one is escaped by :func:`tag`."""

    __slots__ = ()


Child = str | int | float | None | Iterable[Markup]
"""What an element may hold: texts (escaped), numbers, markup, nothing, or a row of markup."""


def tag(element: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Parameters
    ----------
    element
        Its name.
    children
        What it holds; texts are escaped, None is nothing.
    attributes
        By name, without a trailing ``_`` (``class_``) and with ``-`` for ``_`` (``stroke_width``). None and
        False leave one out, True gives it no value.
    """
    words = [element]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        written = name.rstrip("_").replace("_", "-")
        text = number(value) if isinstance(value, float) else str(value)
        words.append(written if value is True else f'{written}="{_escaped(text)}"')
    head = f"<{' '.join(words)}>"
    return Markup(head if element in _EMPTY else f"{head}{join(*children)}</{element}>")


def join(*children: Child) -> Markup:
    """Return what an element's children are as one piece of markup."""
    return Markup("".join(map(_child, children)))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return _escaped(child)
    if isinstance(child, int | float):
        return number(child)
    return "".join(child)


def _escaped(text: str) -> str:
    return html.escape(_NEVER.sub("\N{REPLACEMENT CHARACTER}", text))


def number(value: float) -> str:
    """Return a number for a drawing: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
