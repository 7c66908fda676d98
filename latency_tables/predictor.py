"""LatencyPredictor: whole-network milliseconds from a table of layers, with an interval.

The sum of single-layer times misses what happens between layers (cold weights, layout conversions,
scheduling) and so is off by a nearly constant factor on one target; an affine fix fitted on a few measured
networks removes it: ``t = a + b * sum``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import optimize

from latency_tables.fit import FEWEST_PIECES, PieceFit
from latency_tables.roofline import conformal, features, pass_features
from latency_tables.selection import random_part
from latency_tables.table import Calibration, LatencyTable, Provenance, Row, weakest
from search_spaces.errors import InputError, MissingLayerError, UnavailableError
from search_spaces.layers import Block, Piece, layers_of
from search_spaces.listed import Layout
from search_spaces.space import SearchSpace

Floats = npt.NDArray[np.float64]

FEWEST_NETWORKS = 5
"""Fewest measured networks for a calibration."""

_NAMED = 5
_DECIMALS = 7
_SOFT_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one network is expected to take, milliseconds: its median, on the machine as it was when profiled.

    The interval knows nothing of a machine that becomes faster or slower afterwards.

    Attributes
    ----------
    ms
        The expectation.
    low_ms, high_ms
        With a calibration: a conformal interval that holds a new network with probability ``coverage``,
        widened by what is fitted. Without one: the sums of the rows' 10th and 90th percentiles, which tell
        the spread of the runs and nothing about the error of summing.
    coverage
        See above; None without a calibration, and beyond the networks that it was fitted on.
    provenance
        The weakest among the rows used.
    calibrated
        Whether the affine fix was applied.
    fitted
        Share of the time that rests on fitted pieces: rows that are fits, and pieces that the table lacks.
    networks
        How many measured networks the interval rests on: with n, its coverage is no better known than to
        1 / (n + 1). None without a calibration.
    beyond
        What to know where the network is much faster or slower than all of those, or computes what a table of
        estimates has no row of, or is of a family that such a table was not fitted on: then nothing supports
        the interval's width. Else empty.
    """

    ms: float
    low_ms: float
    high_ms: float
    coverage: float | None
    provenance: Provenance
    calibrated: bool
    fitted: float = 0.0
    networks: int | None = None
    beyond: str = ""


@dataclass(frozen=True, slots=True)
class PieceTime:
    """What a table says of one piece of a network, milliseconds, before the affine fix.

    Attributes
    ----------
    ms
        Its median.
    fitted_ms
        How much of that rests on fits rather than on rows that were measured or estimated.
    provenance
        The weakest among the rows used.
    """

    ms: float
    fitted_ms: float
    provenance: Provenance


@dataclass(frozen=True)
class Predictions:
    """Predictions for many networks, milliseconds: float64 arrays of shape (n,)."""

    ms: Floats
    low_ms: Floats
    high_ms: Floats


@dataclass(frozen=True, slots=True)
class _Price:
    """What a piece takes by the table, and how much of that is fitted rather than measured."""

    median: float
    low: float
    high: float
    fitted: float
    provenance: Provenance


class LatencyPredictor:
    """Predicts from one table.

    A block takes what its row says; where it has none, what the rows of its layers say together. In a table
    of measured blocks such a sum is a makeshift: it is taken where no fit knows the block's form, counts as
    fitted, and a strict predictor refuses it. What the table lacks altogether is fitted from what it holds
    (:class:`latency_tables.fit.PieceFit`) if pieces of that form were measured, and the interval grows
    accordingly; or from the roofline that made the rows, if
    the table has one. A form that the table does not know, or
    anything that is lacking from a strict predictor's table, is an error that names it.

    Parameters
    ----------
    table
        The table; its calibration is used if it has one, else a = 0 and b = 1.
    strict
        Refuse what is not measured: pieces without a row, and rows that are estimates.
    priced
        All pieces that will be asked for, where that is known; by default those that the table has rows for.
        The interval of fits comes from measured pieces that are a random sample of these.
    """

    def __init__(self, table: LatencyTable, *, strict: bool = False, priced: Iterable[Piece] = ()) -> None:
        self.table, self.strict, self._all = table, strict, tuple(priced)
        self._prices: dict[Piece, _Price] = {}

    @property
    def name(self) -> str:
        """The target's name."""
        return self.table.name

    @property
    def calibrated(self) -> bool:
        """Whether the table carries an affine fix fitted on whole networks."""
        return self.table.calibration is not None

    @cached_property
    def _fit(self) -> PieceFit | None:
        """The fit to what was measured, to blocks if the table has any; None if there is too little."""
        rows = {piece: row for piece, row in self.table.rows.items() if not is_fitted(row)}
        blocks = {piece: row for piece, row in rows.items() if isinstance(piece, Block)}
        chosen = (
            blocks if len(blocks) >= FEWEST_PIECES else {p: row for p, row in rows.items() if p not in blocks}
        )
        kinds = {type(piece) for piece in chosen}
        if len(chosen) < FEWEST_PIECES:
            return None
        every = dict.fromkeys(self._all or self.table.rows)
        checks = set(random_part((piece for piece in every if type(piece) in kinds), chosen))
        return PieceFit({piece: row.median_ms for piece, row in chosen.items()}, checks)

    @cached_property
    def _usual_share(self) -> float:
        """Median share of fitted time among the networks that the calibration was fitted on."""
        shares = []
        for network in self.table.networks:
            known = self._priced(network.blocks)
            prices = [known[block] for block in network.blocks]
            shares.append(math.fsum(p.fitted for p in prices) / math.fsum(p.median for p in prices))
        return float(np.median(shares)) if shares else 0.0

    def predict(self, pieces: Iterable[Piece], family: str = "") -> Prediction:
        """Return the prediction for a network that executes these blocks (or layers).

        Parameters
        ----------
        pieces
            What it executes.
        family
            Of which it is: ``arch.family.name``. Empty: of one that a table of estimates was fitted on.

        Raises
        ------
        MissingLayerError
            Naming what the table lacks and cannot answer for.
        InputError
            If there is nothing.
        """
        wanted = tuple(pieces)
        if not wanted:
            raise InputError("a network has at least one layer")
        prices = self._priced(wanted)
        of = [prices[piece] for piece in wanted]
        sums = [
            np.array([math.fsum(values)])
            for values in zip(*((p.median, p.low, p.high, p.fitted) for p in of), strict=True)
        ]
        found = self._intervals(*sums)
        calibration = self.table.calibration
        beyond = "; ".join(filter(None, (self.unseen(wanted, family), self.beyond(float(found.ms[0])))))
        return Prediction(
            ms=float(found.ms[0]),
            low_ms=float(found.low_ms[0]),
            high_ms=float(found.high_ms[0]),
            coverage=None if calibration is None or beyond else calibration.coverage,
            provenance=weakest(price.provenance for price in of),
            calibrated=calibration is not None,
            fitted=float(sums[3][0] / sums[0][0]),
            networks=None if calibration is None else calibration.networks,
            beyond=beyond,
        )

    def predict_layout(self, layout: Layout, family: str = "") -> Prediction:
        """Return the prediction for a network that is known by its layers alone.

        All of it is priced by the table's roofline, its passes between layers too. ``family``: by which rules
        it is made, as of :meth:`predict`.

        Raises
        ------
        UnavailableError
            If the table has no roofline, or only what was measured is accepted.
        """
        roofline = self.table.roofline
        if roofline is None or self.strict:
            why = (
                "strict predictions take measurements alone"
                if self.strict
                else "it holds what was measured of other networks, which says nothing of upsampling and"
                " concatenation"
            )
            raise UnavailableError(
                f"the latency table '{self.name}' cannot answer for a network that is known by its layers"
                f" alone: {why}; tables with a roofline can, such as those that come with the package"
                " (jetson-nano-tvm-unstated, raspberry-pi-4-unstated-unstated,"
                " snapdragon-855-unstated-unstated)"
            )
        sums = np.concatenate([features(layout.layers), pass_features(layout.passes)]).sum(axis=0)
        ms = roofline.ms_of(sums[None])
        factor = math.exp(roofline.half_width)
        found = self._intervals(ms, ms / factor, ms * factor)
        calibration = self.table.calibration
        unseen = self.unseen(layout.layers, family)
        beyond = "; ".join(filter(None, (unseen, self.beyond(float(found.ms[0])))))
        return Prediction(
            ms=float(found.ms[0]),
            low_ms=float(found.low_ms[0]),
            high_ms=float(found.high_ms[0]),
            coverage=None if calibration is None or beyond else calibration.coverage,
            provenance="calibrated-estimate",
            calibrated=calibration is not None,
            fitted=1.0,
            networks=None if calibration is None else calibration.networks,
            beyond=beyond,
        )

    def times(self, pieces: Iterable[Piece]) -> tuple[PieceTime, ...]:
        """Return what the table says of each piece by itself, without the affine fix, which is of networks.

        Raises
        ------
        MissingLayerError
            As :meth:`predict`.
        """
        wanted = tuple(pieces)
        prices = self._priced(wanted)
        return tuple(PieceTime(p.median, p.fitted, p.provenance) for p in (prices[x] for x in wanted))

    def beyond(self, ms: float) -> str:
        """Return what to know of networks that are predicted to take so long; empty where it is tried."""
        calibration = self.table.calibration
        if calibration is None or calibration.reaches(ms):
            return ""
        return (
            f"beyond the {calibration.networks} networks of {calibration.least_ms:.3g} to"
            f" {calibration.most_ms:.3g} ms that the interval rests on: nothing supports its width"
        )

    def unseen(self, pieces: Iterable[Piece], family: str = "") -> str:
        """Return what to know of a network that is unlike those of a table of estimates; else empty.

        That is one with operators of which the table has no row, or of a ``family`` that is none of those
        fitted on (as of :meth:`predict`). A table of measurements refuses such pieces. A roofline prices
        whatever has a shape, gates and hard-swish too, but what it was fitted on may say nothing of them.
        """
        roofline = self.table.roofline
        if roofline is None:
            return ""
        names = dict.fromkeys(name for piece in pieces for name in _operators(piece))
        new = [name for name in names if name not in self._operators]
        told = [f"no row of the table has {' or '.join(new)}: nothing supports the estimate"] if new else []
        if family and roofline.families and family not in roofline.families:
            told.append(
                f"fitted on {', '.join(roofline.families)}, not on {family}: of a family left out of the fit"
                f" the error was up to a factor of {max(roofline.families.values()):.3g}, and nothing"
                " supports the interval"
            )
        return "; ".join(told)

    @cached_property
    def _operators(self) -> frozenset[str]:
        return frozenset(name for piece in self.table.rows for name in _operators(piece))

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
            Naming what these genotypes execute and the table lacks and cannot answer for.
        """
        genes = np.atleast_2d(np.asarray(genotypes))
        needed: dict[Piece, None] = {}
        space.price(genes, lambda block: float(needed.setdefault(block) or 0.0))
        prices = self._priced(tuple(needed))
        columns = ["median"] if self.calibrated else ["median", "low", "high"]
        if any(prices[block].fitted for block in needed):
            columns.append("fitted")
        found = {}
        for what in columns:
            values = {block: float(getattr(prices[block], what)) for block in needed}
            found[what] = space.price(genes, values.__getitem__)
        medians = found["median"]
        return self._intervals(
            medians, found.get("low", medians), found.get("high", medians), found.get("fitted")
        )

    def latency_ms(self, space: SearchSpace, genotypes: npt.ArrayLike) -> Floats:
        """Return the expected milliseconds of many networks, shape (n,)."""
        return self.predict_genotypes(space, genotypes).ms

    def upper_ms(self, space: SearchSpace, genotypes: npt.ArrayLike) -> Floats:
        """Return the upper ends of the intervals, shape (n,): what a latency budget is held against."""
        return self.predict_genotypes(space, genotypes).high_ms

    def _priced(self, pieces: Sequence[Piece]) -> dict[Piece, _Price]:
        """Return the price of each piece; what is fitted is fitted together."""
        lacking = []
        for piece in dict.fromkeys(pieces):
            if piece not in self._prices:
                rows = self._rows(piece)
                if rows is None:
                    lacking.append(piece)
                else:
                    self._prices[piece] = _sum_of(rows)
        if lacking:
            self._fit_in(lacking)
        return self._prices

    def _rows(self, piece: Piece) -> tuple[Row, ...] | None:
        """Return the rows that answer for a piece; None if there are none that this predictor accepts."""
        if self._makeshift(piece):
            return None
        rows = self.table.answers(piece)
        if self.strict and rows is not None and _guessed(rows):
            known = self.table.rows
            rows = tuple(known[layer] for layer in layers_of(piece) if layer in known)
            return rows if len(rows) == len(layers_of(piece)) and not _guessed(rows) else None
        return rows

    @cached_property
    def _has_blocks(self) -> bool:
        """Whether blocks were measured as blocks, the roofline's tables apart."""
        rows = self.table.rows.items()
        return self.table.roofline is None and any(
            isinstance(piece, Block) and not is_fitted(row) for piece, row in rows
        )

    def _makeshift(self, piece: Piece) -> bool:
        """Return whether a piece is a block without a row in a table whose other blocks have theirs."""
        return self._has_blocks and isinstance(piece, Block) and piece not in self.table.rows

    def _fit_in(self, lacking: Sequence[Piece]) -> None:
        """Price pieces without a row by the fit, or raise :class:`MissingLayerError`.

        Where the table holds single layers, those of a block that have a row are taken from there.
        """
        roofline = None if self.strict else self.table.roofline
        if roofline is not None:  # what made the rows made these: the calibration's interval is theirs, too
            factor = math.exp(roofline.half_width)
            for piece, ms in zip(lacking, roofline.ms(lacking).tolist(), strict=True):
                self._prices[piece] = _Price(ms, ms / factor, ms * factor, ms, "calibrated-estimate")
            return
        fit = None if self.strict else self._fit
        parts: dict[Piece, tuple[Piece, ...]] = {
            piece: (piece,) if fit is not None and fit.knows(piece) else layers_of(piece) for piece in lacking
        }
        absent = [
            part
            for part in dict.fromkeys(part for every in parts.values() for part in every)
            if self._rows(part) is None
        ]
        unknown = [part for part in absent if fit is None or not fit.knows(part)]
        if unknown or (fit is None and absent) or self.strict:
            self.table.require([piece for piece in lacking if set(parts[piece]) & set(unknown)])
            guessed = unknown or lacking
            named = ", ".join(piece.key for piece in guessed[:_NAMED])
            raise MissingLayerError(
                f"the latency table '{self.name}' has estimates instead of measurements for {len(guessed)} of"
                f" the layers and blocks needed: {named}; strict predictions need a table that is measured"
                " throughout ('nas profile --share 1')"
            )
        if fit is not None and absent:
            factor = math.exp(fit.half_width)
            for part, ms in zip(absent, fit.ms(absent).tolist(), strict=True):
                self._prices[part] = _Price(ms, ms / factor, ms * factor, ms, "calibrated-estimate")
        for piece in lacking:
            own = [self._prices.get(part) or _sum_of(self._rows(part) or ()) for part in parts[piece]]
            summed = self._makeshift(piece) and parts[piece] != (piece,)
            self._prices[piece] = _Price(
                math.fsum(price.median for price in own),
                math.fsum(price.low for price in own),
                math.fsum(price.high for price in own),
                math.fsum(price.median if summed else price.fitted for price in own),
                "calibrated-estimate" if summed else weakest(price.provenance for price in own),
            )

    def _intervals(
        self, medians: Floats, lows: Floats, highs: Floats, fitted: Floats | None = None
    ) -> Predictions:
        calibration = self.table.calibration
        if calibration is None:
            return Predictions(medians, lows, highs)
        ms = calibration.a_ms + calibration.b * medians
        width = np.full(len(ms), calibration.half_width)
        if fitted is not None and fitted.any() and self.table.roofline is None:
            # A network whose fitted blocks are all off the same way is off by their share; the calibration
            # has seen that of as large a share as its own networks had.
            fit = self._fit
            excess = np.maximum(fitted / medians - self._usual_share, 0.0)
            width += excess * (fit.half_width if fit is not None else 0.0)
        factor = np.exp(width)
        return Predictions(ms, ms / factor, ms * factor)


def _operators(piece: Piece) -> list[str]:
    """Return what a piece's layers compute: their kinds, and hard-swish, which many engines do not fuse."""
    kinds = {"se": "squeeze-and-excitation"}
    return [
        word
        for layer in layers_of(piece)
        for word in (kinds.get(layer.kind, layer.kind), "hard-swish" if layer.activation == "hswish" else "")
        if word
    ]


def _guessed(rows: Sequence[Row]) -> bool:
    return any(row.provenance == "calibrated-estimate" for row in rows)


def is_fitted(row: Row) -> bool:
    """Return whether a row was fitted from measured rows of its own table (see ``fill_table``)."""
    return row.provenance == "calibrated-estimate" and row.source.startswith(FITTED)


FITTED: Final = "fitted on "
"""How the source of a fitted row begins."""


def _sum_of(rows: Sequence[Row]) -> _Price:
    return _Price(
        math.fsum(row.median_ms for row in rows),
        math.fsum(row.p10_ms for row in rows),
        math.fsum(row.p90_ms for row in rows),
        math.fsum(row.median_ms for row in rows if is_fitted(row)),
        weakest(row.provenance for row in rows),
    )


def fill_table(table: LatencyTable, pieces: Iterable[Piece]) -> LatencyTable:
    """Return the table with a fitted row for every piece that it lacks.

    Fitted rows say so: provenance ``calibrated-estimate``, no runs, the fit's interval as 10th and 90th
    percentile, and what they were fitted on. Rows that were fitted before are fitted anew.

    Raises
    ------
    MissingLayerError
        If the table knows too little, or nothing of a piece's form.
    """
    pieces = tuple(pieces)
    rows = {piece: row for piece, row in table.rows.items() if not is_fitted(row)}
    measured = replace(table, rows=rows, fit=None)
    former = [piece for piece, row in table.rows.items() if is_fitted(row)]
    predictor = LatencyPredictor(measured, priced=(*former, *pieces))
    lacking = [piece for piece in dict.fromkeys((*former, *pieces)) if predictor._rows(piece) is None]
    if not lacking:
        return measured
    prices = predictor._priced(lacking)
    fit = predictor._fit
    told = "" if fit is None else f"{fit.samples} measured pieces, median error {fit.median_error:.1%}"
    for piece in lacking:
        price = prices[piece]
        median, low, high = (round(ms, _DECIMALS) for ms in (price.median, price.low, price.high))
        rows[piece] = Row(median, low, high, 0, "calibrated-estimate", FITTED + told)
    return replace(measured, rows=rows, fit=None if fit is None else fit.record)


def calibrate(
    table: LatencyTable, networks: Sequence[tuple[Sequence[Piece], float]] | None = None
) -> LatencyTable:
    """Return the table with an affine fix fitted on whole networks that were measured on its target.

    The fit minimises relative errors with a soft-L1 loss (scale 5%), so that a network measured in a bad
    moment does not bend it; a is at least 0.

    The interval is conformal (:func:`latency_tables.roofline.conformal`): each network is predicted by the
    fit on all others, and ``half_width`` is the largest of those errors, or one of the largest where there
    are 38 or more, so that 90% is held by most draws of networks, not only on average over them; with fewer
    than 9 networks ``coverage`` says n / (n + 1).

    Parameters
    ----------
    table
        The table.
    networks
        For each network its blocks (or layers) and its measured milliseconds, at least 5; by default those
        that the table holds.

    Raises
    ------
    InputError
        If there are fewer than 5 networks or a time is not positive.
    MissingLayerError
        If a network executes a layer that the table lacks.
    """
    if networks is None:
        networks = [(network.blocks, network.row.median_ms) for network in table.networks]
    if len(networks) < FEWEST_NETWORKS:
        raise InputError(
            f"a calibration needs at least {FEWEST_NETWORKS} measured networks, not {len(networks)};"
            " without one, predictions are plain sums and say that they are uncalibrated"
        )
    plain = LatencyPredictor(replace(table, calibration=None))
    sums = np.array([plain.predict(pieces).ms for pieces, _ in networks])
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
    half_width, coverage = conformal(np.log(left_out / measured))
    calibration = Calibration(
        a_ms=a,
        b=b,
        networks=n,
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
        raw_error=float(np.median(np.abs(sums / measured - 1))),
        half_width=half_width,
        coverage=coverage,
        least_ms=float(measured.min()),
        most_ms=float(measured.max()),
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
