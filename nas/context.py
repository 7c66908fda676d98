"""What APs rest on, told so that it stays the same where a run and its images are moved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["images_told", "placeless"]

_IMAGES: Final = ("images", "calibration", "context images", "context calibration")
_PLACED: Final = re.compile(r"([0-9]+) of .*\(([0-9a-f]{12})\)", re.DOTALL)


def images_told(count: int, fingerprint: str) -> str:
    """Return how a context tells images: by their number and digest, not by where they lie."""
    return f"{count} ({fingerprint})"


def placeless(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a context without the places of images, which contexts told before they could be moved.

    >>> placeless({"images": "5 of annotation file '/data/val.json' (0123456789ab)"})
    {'images': '5 (0123456789ab)'}
    """
    told = dict(facts)
    for name in _IMAGES:
        found = _PLACED.fullmatch(str(told.get(name, "")))
        if found is not None:
            told[name] = images_told(int(found[1]), found[2])
    return told
