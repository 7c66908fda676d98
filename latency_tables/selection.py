"""Which blocks of a space to measure where there is no time for all: those that the error depends on most.

The fit (:mod:`latency_tables.fit`) answers for the others. Its error in a network's time comes from the
blocks that many networks execute, that take long, and that are far from any block that was measured. So a
block's weight is how often a random network executes it times how long it takes, and the next one to be
measured is the one with the largest weight times distance to the nearest measured block of its form: farthest
point sampling (Gonzalez, 1985), weighted.

A fifth of the measured blocks is drawn at random instead; of few blocks up to a third, since ten are needed.
They are what the fit's interval is found from (:func:`random_part`): blocks chosen for their distance are no
sample of those that were not chosen.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from latency_tables.fit import FEWEST_CHECKS, Form, distances, form_of
from search_spaces.errors import InputError
from search_spaces.layers import Piece, layers_of

__all__ = ["random_order", "random_part", "select_pieces"]

PieceT = TypeVar("PieceT", bound=Piece)

_LEAST_OF_A_FORM = 4
_RANDOM_SHARE, _MOST_RANDOM = 0.2, 1 / 3


def select_pieces(
    weights: Mapping[PieceT, float], share: float, measured: Collection[Piece] = ()
) -> tuple[PieceT, ...]:
    """Return the pieces to measure, the most telling first.

    Parameters
    ----------
    weights
        Every piece, with how often a random network of the space executes it (``space.block_frequencies()``).
    share
        Share of the pieces to measure, above 0 and at most 1; pieces that are measured already count.
    measured
        Pieces that have been measured.

    Raises
    ------
    InputError
        If the share is out of range or there is no piece.
    """
    check_share(share)
    if not weights:
        raise InputError("there is nothing to select from")
    wanted = math.ceil(share * len(weights))
    enough = min(FEWEST_CHECKS, math.floor(_MOST_RANDOM * wanted))
    drawn = random_order(weights)[: max(math.ceil(_RANDOM_SHARE * wanted), enough)]
    taken = {*measured, *drawn}
    by_form: dict[Form, list[PieceT]] = {}
    for piece in sorted(weights, key=lambda piece: piece.key):
        by_form.setdefault(form_of(piece), []).append(piece)
    ranked: list[tuple[float, str, PieceT]] = []
    for pieces in by_form.values():
        ranked += _ranked(pieces, weights, taken)
    ranked.sort(key=lambda each: (-each[0], each[1]))
    chosen = [piece for piece in drawn if piece not in measured] + [piece for _, _, piece in ranked]
    return tuple(chosen[: max(0, wanted - sum(piece in measured for piece in weights))])


def check_share(share: float) -> None:
    """Raise :class:`InputError` for a share of the blocks that there cannot be."""
    if not 0 < share <= 1:
        raise InputError(f"the share of blocks to measure lies above 0 and is at most 1, not {share}")


def random_order(pieces: Iterable[PieceT]) -> list[PieceT]:
    """Return pieces in an order that has nothing to do with what they are, the same everywhere."""
    return sorted(pieces, key=lambda piece: hashlib.sha256(piece.key.encode()).digest())


def random_part(pieces: Iterable[PieceT], measured: Collection[Piece]) -> list[PieceT]:
    """Return the measured pieces that are a random sample: the random order up to the first unmeasured."""
    return list(itertools.takewhile(lambda piece: piece in measured, random_order(pieces)))


def _ranked(
    pieces: Sequence[PieceT], weights: Mapping[PieceT, float], measured: Collection[Piece]
) -> list[tuple[float, str, PieceT]]:
    """Return the pieces of one form that are not measured, in order, each with what measuring it is worth."""
    apart = distances(pieces, pieces)
    worth = np.sqrt([weights[p] * sum(layer.macs for layer in layers_of(p)) for p in pieces])
    nearest = np.full(len(pieces), np.inf)
    known = np.array([piece in measured for piece in pieces])
    for i in np.flatnonzero(known):
        nearest = np.minimum(nearest, apart[i])
    found: list[tuple[float, str, PieceT]] = []
    taken = known.copy()
    furthest = max(float(apart.max()), 1e-9)
    for _ in range(int((~known).sum())):
        gain = np.where(taken, -1.0, worth * np.minimum(nearest, 2 * furthest))
        best = int(gain.argmax())
        # The first few of a form come before all else: without them the fit does not know the form.
        first = math.inf if int(taken.sum()) < _LEAST_OF_A_FORM else float(gain[best])
        found.append((first, pieces[best].key, pieces[best]))
        taken[best] = True
        nearest = np.minimum(nearest, apart[best])
    return found
