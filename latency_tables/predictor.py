"""LatencyPredictor: whole-network milliseconds from a table of layers, with an interval.

The sum of single-layer times misses what happens between layers (cold weights, layout conversions,
scheduling) and so is off by a nearly constant factor on one target; an affine fix fitted on a few measured
networks removes it: ``t = a + b * sum``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize

from latency_tables.table import Calibration, LatencyTable, Provenance, weakest
from search_spaces.errors import InputError
from search_spaces.layers import Block, Layer
from search_spaces.space import SearchSpace

Floats = npt.NDArray[np.float64]

FEWEST_NETWORKS = 5
"""Fewest measured networks for a calibration."""

_COVERAGE = 0.9
_SOFT_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one network is expected to take, milliseconds.

    Attributes
    ----------
    ms
        The expectation.
    low_ms, high_ms
        With a calibration: a conformal interval that holds a new network with probability ``coverage``.
        Without one: the sums of the layers' 10th and 90th percentiles, which tell the spread of the runs and
        nothing about the error of summing.
    coverage
        See above; None without a calibration.
    provenance
        The weakest among the rows used.
    calibrated
        Whether the affine fix was applied.
    """

    ms: float
    low_ms: float
    high_ms: float
    coverage: float | None
    provenance: Provenance
    calibrated: bool


@dataclass(frozen=True)
class Predictions:
    """Predictions for many networks, milliseconds: float64 arrays of shape (n,)."""

    ms: Floats
    low_ms: Floats
    high_ms: Floats


class LatencyPredictor:
    """Predicts from one table; strict: a layer that the table lacks is an error that names it.

    Parameters
    ----------
    table
        The table; its calibration is used if it has one, else a = 0 and b = 1.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        self._medians = {layer: row.median_ms for layer, row in table.rows.items()}
        self._lows = {layer: row.p10_ms for layer, row in table.rows.items()}
        self._highs = {layer: row.p90_ms for layer, row in table.rows.items()}

    @property
    def name(self) -> str:
        """The target's name."""
        return self.table.name

    @property
    def calibrated(self) -> bool:
        """Whether the table carries an affine fix fitted on whole networks."""
        return self.table.calibration is not None

    def predict(self, layers: Iterable[Layer]) -> Prediction:
        """Return the prediction for a network that executes ``layers``.

        Raises
        ------
        MissingLayerError
            Naming the layers that the table lacks.
        InputError
            If there is no layer.
        """
        wanted = tuple(layers)
        if not wanted:
            raise InputError("a network has at least one layer")
        self.table.require(wanted)
        sums = [
            np.array([math.fsum(of[layer] for layer in wanted)])
            for of in (self._medians, self._lows, self._highs)
        ]
        found = self._intervals(*sums)
        calibration = self.table.calibration
        return Prediction(
            ms=float(found.ms[0]),
            low_ms=float(found.low_ms[0]),
            high_ms=float(found.high_ms[0]),
            coverage=None if calibration is None else calibration.coverage,
            provenance=weakest(self.table.rows[layer].provenance for layer in wanted),
            calibrated=calibration is not None,
        )

    def predict_genotypes(self, space: SearchSpace, genotypes: npt.ArrayLike) -> Predictions:
        """Return predictions for many networks of a space at once.

        Parameters
        ----------
        space
            The search space.
        genotypes
            Shape (n, genes).

        Raises
        ------
        MissingLayerError
            Naming the layers that these genotypes execute and the table lacks.
        """
        genes = np.atleast_2d(np.asarray(genotypes))
        needed: dict[Layer, None] = {}

        def median(block: Block) -> float:
            needed.update(dict.fromkeys(block.layers))
            return math.fsum(self._medians.get(layer, math.nan) for layer in block.layers)

        medians = space.price(genes, median)
        self.table.require(needed)
        if self.calibrated:
            return self._intervals(medians, medians, medians)
        lows = space.price(genes, lambda block: math.fsum(self._lows[layer] for layer in block.layers))
        highs = space.price(genes, lambda block: math.fsum(self._highs[layer] for layer in block.layers))
        return self._intervals(medians, lows, highs)

    def latency_ms(self, space: SearchSpace, genotypes: npt.ArrayLike) -> Floats:
        """Return the expected milliseconds of many networks, shape (n,)."""
        return self.predict_genotypes(space, genotypes).ms

    def upper_ms(self, space: SearchSpace, genotypes: npt.ArrayLike) -> Floats:
        """Return the upper ends of the intervals, shape (n,): what a latency budget is held against."""
        return self.predict_genotypes(space, genotypes).high_ms

    def _intervals(self, medians: Floats, lows: Floats, highs: Floats) -> Predictions:
        calibration = self.table.calibration
        if calibration is None:
            return Predictions(medians, lows, highs)
        ms = calibration.a_ms + calibration.b * medians
        factor = math.exp(calibration.half_width)
        return Predictions(ms, ms / factor, ms * factor)


def calibrate(table: LatencyTable, networks: Sequence[tuple[Sequence[Layer], float]]) -> LatencyTable:
    """Return the table with an affine fix fitted on whole networks that were measured on its target.

    The fit minimises relative errors with a soft-L1 loss (scale 5%), so that a network measured in a bad
    moment does not bend it; a is at least 0.

    The interval is conformal: each network is predicted by the fit on all others, and ``half_width`` is the
    k-th smallest ``|log(measured / predicted)|`` of those n, k = ceil(0.9 * (n + 1)). With fewer than 9
    networks that rank exceeds n; then the largest is taken and ``coverage`` says n / (n + 1) instead of 0.9.

    Parameters
    ----------
    table
        The table.
    networks
        For each network its layers and its measured milliseconds; at least 5.

    Raises
    ------
    InputError
        If there are fewer than 5 networks or a time is not positive.
    MissingLayerError
        If a network executes a layer that the table lacks.
    """
    if len(networks) < FEWEST_NETWORKS:
        raise InputError(
            f"a calibration needs at least {FEWEST_NETWORKS} measured networks, not {len(networks)};"
            " without one, predictions are plain sums and say that they are uncalibrated"
        )
    sums = np.array([table.latency_ms(layers) for layers, _ in networks])
    measured = np.array([ms for _, ms in networks], dtype=np.float64)
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise InputError(f"measured milliseconds are positive numbers, not {measured.tolist()}")
    n = len(measured)
    a, b = _fit(sums, measured)
    left_out = np.empty(n)
    for i in range(n):
        others = np.arange(n) != i
        own_a, own_b = _fit(sums[others], measured[others])
        left_out[i] = own_a + own_b * sums[i]
    errors = np.abs(left_out / measured - 1)
    scores = np.sort(np.abs(np.log(measured / left_out)))
    rank = math.ceil(_COVERAGE * (n + 1))
    calibration = Calibration(
        a_ms=a,
        b=b,
        networks=n,
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
        raw_error=float(np.median(np.abs(sums / measured - 1))),
        half_width=float(scores[min(rank, n) - 1]),
        coverage=_COVERAGE if rank <= n else n / (n + 1),
    )
    return replace(table, calibration=calibration)


def _fit(sums: Floats, measured: Floats) -> tuple[float, float]:
    """Return (a, b), a >= 0 and b > 0, minimising soft-L1 of ``(a + b * sum) / measured - 1``."""
    # Both columns get a comparable scale: a in units of the median time, b as it is.
    unit = float(np.median(measured))
    columns = np.stack((unit / measured, sums / measured), axis=1)

    def residuals(x: Floats) -> Floats:
        return np.asarray(columns @ x - 1)

    def slopes(_: Floats) -> Floats:
        return columns

    found = optimize.least_squares(
        residuals,
        x0=(0.0, float(np.median(measured / sums))),
        jac=slopes,
        bounds=((0.0, 1e-9), (np.inf, np.inf)),
        loss="soft_l1",
        f_scale=_SOFT_ERROR,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    )
    return float(found.x[0]) * unit, float(found.x[1])
