"""Whether two image files show the same picture: same bytes, or nearly the same pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Match", "Print", "image_print", "likeness"]

_SIDE: Final = 32
"""Pictures are compared at this size, pixels."""
_BANDS: Final = 8
_MOST_BITS: Final = _BANDS - 1
"""Hashes that differ in at most this many bits agree in one of the bands, which is how they are found."""
_AT_ONCE: Final = 64
"""Thumbnails that are worked on at once."""
_LARGEST_DIFFERENCE: Final = 6.0
"""Mean absolute difference of two alike pictures' thumbnails, of 255 levels."""
_LEAST_CONTRAST: Final = 8.0
"""Standard deviation of a thumbnail below which it says too little to be compared."""


Kind = Literal["path", "bytes", "name", "pixels"]
"""One file; equal bytes; equal name and length, where the bytes were not read; or, a suspicion, nearly equal
pixels."""


@dataclass(frozen=True)
class Print:
    """What identifies one image file.

    Attributes
    ----------
    image_id
        Its id in the annotation file.
    path
        The file, absolute; relative for a picture whose file is not at hand.
    size
        Its length in bytes, -1 where that is unknown.
    digest
        Of its bytes; empty unless they were read.
    thumbnail
        uint8 (32, 32), gray; None unless it was decoded.
    """

    image_id: int
    path: Path
    size: int = -1
    digest: bytes = b""
    thumbnail: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Match:
    """Two images that show the same.

    Attributes
    ----------
    first, second
        Positions in the two lists compared.
    kind
        See :data:`Kind`.
    """

    first: int
    second: int
    kind: Kind


def image_print(image_id: int, path: Path, data: bytes, image: NDArray[np.uint8]) -> Print:
    """Return the print of a decoded image, RGB (H, W, 3), and of the bytes of its file."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Print(image_id, path, len(data), digest, np.asarray(small, dtype=np.uint8))


@cache
def _cosines() -> NDArray[np.float64]:
    """Return the 8 lowest non-constant rows of the DCT-II of length 32."""
    order, place = np.arange(1, 9)[:, None], np.arange(_SIDE)
    return np.cos(np.pi * order * (2 * place + 1) / (2 * _SIDE))


def _hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return 64 bits per thumbnail: which of its low frequencies are above their median."""
    hashes = np.empty(len(thumbnails), dtype=np.uint64)
    for start in range(0, len(thumbnails), _AT_ONCE):
        some = thumbnails[start : start + _AT_ONCE].astype(np.float64)
        flat = (_cosines() @ some @ _cosines().T).reshape(len(some), 64)
        bits = flat > np.median(flat, axis=1, keepdims=True)
        hashes[start : start + len(some)] = np.packbits(bits, axis=1).view(np.uint64).ravel()
    return hashes


_KEYS: Final[Mapping[Kind, Callable[[Print], object]]] = {
    "path": lambda each: each.path if each.path.is_absolute() else None,
    "bytes": lambda each: each.digest or None,
    "name": lambda each: (
        None if each.digest else (each.path.name if each.size >= 0 else each.path, each.size)
    ),
}


def likeness(first: Sequence[Print], second: Sequence[Print] | None = None) -> list[Match]:
    """Return the images of ``first`` that ``second`` shows too; without it, those that ``first`` shows twice.

    Files are compared by their paths, by their bytes or, where those were not read, by name and length. Of
    the pictures decoded, those are suspected to be the same whose perceptual hashes (which of the 8 x 8
    lowest non-constant DCT coefficients are above their median) differ in at most 7 bits of 64 and whose
    32 x 32 gray thumbnails differ by at most 6 of 255 levels on average. Pictures of next to no contrast are
    not compared.

    Returns
    -------
    list of Match
        The surest match of each image of ``first`` (within one list: with one before it), in order.
    """
    within = second is None
    others = first if second is None else second
    found: dict[int, Match] = {}

    def note(one: int, other: int, kind: Kind) -> None:
        a, b = (max(one, other), min(one, other)) if within else (one, other)
        if a not in found and (not within or a != b):
            found[a] = Match(a, b, kind)

    for kind, key in _KEYS.items():
        places: dict[object, int] = {}
        for place, each in reversed(list(enumerate(others))):
            places[key(each)] = place
        for place, each in enumerate(first):
            if key(each) is not None and key(each) in places:
                note(place, places[key(each)], kind)
    for one, other in _alike(first, others, within):
        note(one, other, "pixels")
    return [found[place] for place in sorted(found)]


def _alike(first: Sequence[Print], second: Sequence[Print], within: bool) -> list[tuple[int, int]]:
    """Return for each position of ``first`` one of ``second`` whose picture looks the same."""
    mine, my_thumbnails = _telling(first)
    theirs, their_thumbnails = (mine, my_thumbnails) if within else _telling(second)
    if not len(mine) or not len(theirs):
        return []
    my_hashes = _hashes(my_thumbnails)
    their_hashes = my_hashes if within else _hashes(their_thumbnails)
    shifts = np.arange(0, 64, 64 // _BANDS, dtype=np.uint64)[:, None]
    low = np.uint64(2 ** (64 // _BANDS) - 1)
    my_keys, their_keys = ((hashes >> shifts & low).astype(np.int64) for hashes in (my_hashes, their_hashes))
    # Per band the places in the order of their keys, and where each key's begin.
    orders = np.argsort(their_keys, axis=1, kind="stable")
    ordered = their_hashes[orders]
    begins = np.stack([np.searchsorted(np.sort(keys), np.arange(int(low) + 2)) for keys in their_keys])
    ranks = np.argsort(orders, axis=1) if within else None
    pairs = []
    for place, code in enumerate(my_hashes):
        for band, key in enumerate(my_keys[:, place].tolist()):
            begin = begins[band, key]
            end = begins[band, key + 1] if ranks is None else ranks[band, place]  # within: those before it
            bits = np.bitwise_count(ordered[band, begin:end] ^ code)
            near = orders[band, begin:end][bits <= _MOST_BITS]
            other = _first_alike(my_thumbnails[place], their_thumbnails, near)
            if other is not None:
                pairs.append((int(mine[place]), int(theirs[other])))
                break  # one is enough: in a film any two frames may be alike
    return pairs


def _first_alike(
    thumbnail: NDArray[np.uint8], thumbnails: NDArray[np.uint8], places: NDArray[np.int64]
) -> int | None:
    """Return the first of ``places`` whose thumbnail is nearly ``thumbnail``."""
    for some in np.split(places, range(_AT_ONCE, len(places), _AT_ONCE)):
        difference = np.abs(thumbnail.astype(np.int16) - thumbnails[some]).mean(axis=(1, 2))
        alike = np.flatnonzero(difference <= _LARGEST_DIFFERENCE)
        if len(alike):
            return int(some[alike[0]])
    return None


def _telling(prints: Sequence[Print]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the positions of the pictures that can be compared, and their thumbnails (N, 32, 32)."""
    kept = [
        (place, each.thumbnail)
        for place, each in enumerate(prints)
        if each.thumbnail is not None and each.thumbnail.std() >= _LEAST_CONTRAST
    ]
    thumbnails = [thumbnail for _, thumbnail in kept]
    shape = (len(kept), _SIDE, _SIDE)
    stacked = np.concatenate(thumbnails).reshape(shape) if kept else np.empty(shape, dtype=np.uint8)
    return np.array([place for place, _ in kept], dtype=np.int64), stacked
