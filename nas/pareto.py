"""Pareto fronts and hypervolume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from search_spaces import InputError

if TYPE_CHECKING:
    from nas.search.objectives import Direction

__all__ = ["hypervolume", "pareto_front"]


def _losses(values: npt.ArrayLike, directions: Sequence[Direction]) -> npt.NDArray[np.float64]:
    """Return the values as losses (smaller is better), shape (n, objectives)."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return np.empty((0, len(directions)))
    if array.ndim != 2 or array.shape[1] != len(directions):
        raise InputError(
            f"values of shape (n, {len(directions)}) are needed for {len(directions)} directions,"
            f" not {array.shape}"
        )
    if np.isnan(array).any():
        raise InputError("a Pareto front needs comparable values, but some are NaN")
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise InputError(f"a direction is 'minimize' or 'maximize', not '{direction}'")
    signs = np.array([1.0 if d == "minimize" else -1.0 for d in directions])
    losses: npt.NDArray[np.float64] = array * signs
    return losses


def pareto_front(values: npt.ArrayLike, directions: Sequence[Direction]) -> npt.NDArray[np.intp]:
    """Return the indices of the points that no other point dominates, ascending.

    A point dominates another if it is at least as good in every objective and better in one; points equal in
    every objective do not dominate each other, so all copies of an optimal point are returned.

    Parameters
    ----------
    values
        Shape (n, objectives).
    directions
        ``minimize`` or ``maximize`` for every objective.
    """
    losses = _losses(values, directions)
    if len(losses) == 0:
        return np.empty(0, dtype=np.intp)
    unique, inverse = np.unique(losses, axis=0, return_inverse=True)
    # Rows are now in lexicographic order: a row can only be dominated by an earlier one.
    if unique.shape[1] == 1:
        optimal = np.zeros(len(unique), dtype=bool)
        optimal[0] = True
    elif unique.shape[1] == 2:
        best_before = np.minimum.accumulate(unique[:, 1])[:-1]
        optimal = np.concatenate([[True], unique[1:, 1] < best_before])
    else:
        optimal = np.ones(len(unique), dtype=bool)
        for i in range(len(unique)):
            if optimal[i]:
                later = unique[i + 1 :]
                optimal[i + 1 :] &= (later < unique[i]).any(axis=1)
    return np.flatnonzero(optimal[inverse.reshape(-1)])


def hypervolume(values: npt.ArrayLike, reference: npt.ArrayLike, directions: Sequence[Direction]) -> float:
    """Return the exact volume that the points dominate and the reference point bounds.

    Points that are not better than the reference in every objective add nothing. Two objectives are swept in
    O(n log n); more are sliced along the last one, recursively (While et al. 2006, "A faster algorithm for
    calculating hypervolume", section II: hypervolume by slicing objectives).

    Parameters
    ----------
    values
        Shape (n, objectives).
    reference
        Shape (objectives,): the worst value of interest for every objective.
    directions
        ``minimize`` or ``maximize`` for every objective.

    Raises
    ------
    InputError
        If a point that is better than the reference is not finite.
    """
    bound = _losses(np.atleast_2d(np.asarray(reference, dtype=np.float64)), directions)[0]
    losses = _losses(values, directions)
    losses = losses[(losses < bound).all(axis=1)]
    if len(losses) and not np.isfinite(losses).all():
        raise InputError("a hypervolume needs finite values")
    return _volume(losses, bound)


def _volume(losses: npt.NDArray[np.float64], bound: npt.NDArray[np.float64]) -> float:
    if len(losses) == 0:
        return 0.0
    if losses.shape[1] == 1:
        return float(bound[0] - losses.min())
    front = losses[pareto_front(losses, ["minimize"] * losses.shape[1])]
    if front.shape[1] == 2:
        front = np.unique(front, axis=0)
        widths = np.append(front[1:, 0], bound[0]) - front[:, 0]
        return float(widths @ (bound[1] - front[:, 1]))
    levels, start = np.unique(front[:, -1]), 0.0
    for level, above in zip(levels, np.append(levels[1:], bound[-1]), strict=True):
        start += (above - level) * _volume(front[front[:, -1] <= level, :-1], bound[:-1])
    return float(start)
