"""What layers and blocks take that nobody measured, from those of the same device that somebody did.

Two steps. A roofline (:mod:`latency_tables.roofline`), whose features of a block are the sums over its
layers, says how time grows with work and traffic. What it gets wrong (engines have kernels that like some
shapes better than others) is alike for pieces of one *form*, so its logarithmic error is interpolated between
the measured pieces of that form, in the logarithms of channels and sizes, by radial basis functions (SciPy's
``RBFInterpolator``). What is of a form that was never measured, or more than twice as large or small as what
was, has no answer: its cost is unknown, not small.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator

from latency_tables.roofline import FEATURES, conformal, features, fit_coefficients
from search_spaces.errors import InputError, shown
from search_spaces.files import check_keys
from search_spaces.layers import Block, Piece, layers_of

__all__ = ["FEWEST_CHECKS", "FEWEST_PIECES", "FitRecord", "Form", "PieceFit", "distances", "form_of"]

Floats = npt.NDArray[np.float64]

Form = tuple[object, ...]
"""What pieces have in common that are compared: branches, each layer's kind, kernel and stride, hard-swish.

Engines have kernels of their own for some of these (one takes twenty times as long for 7x7 as for 5x5), so
nothing is inferred from one to the other."""

FEWEST_PIECES = 20
FEWEST_CHECKS = 10
"""Fewest randomly drawn pieces that the errors of a fit are told of."""

_FEWEST_OF_A_FORM = 6
_NEIGHBOURS = 24
_SMOOTHING = 0.05
_FOLDS = 10
_BEYOND = math.log(2.0) + 1e-9
_LARGEST, _WIDEST = 1e6, 10.0
"""Largest sensible error, and logarithm of an interval's factor."""
_FURTHEST = 0.7
"""Largest logarithmic correction of the roofline, a factor of 2."""


def form_of(piece: Piece) -> Form:
    """Return the form of a piece: the same for what differs in channels and sizes alone."""
    branches = piece.branches if isinstance(piece, Block) else ()
    # Engines fuse ReLUs into convolutions, of hard-swish many make an operator of its own.
    return (
        branches,
        *(
            (x.kind, x.kernel, x.stride, x.groups > 1, *([x.activation] if x.activation == "hswish" else []))
            for x in layers_of(piece)
        ),
    )


def _shape(piece: Piece) -> list[float]:
    """Return the logarithms of a piece's channels and sizes."""
    numbers = [n for x in layers_of(piece) for n in (x.c_in, x.squeeze or x.c_out)]
    first = layers_of(piece)[0]
    return [math.log(n) for n in (*numbers, first.h_in, first.w_in)]


def distances(pieces: Sequence[Piece], others: Sequence[Piece]) -> Floats:
    """Return how far pieces of one form are from others of it, shape (pieces, others).

    The distance is the largest difference of the logarithms of channels and sizes.
    """
    a = np.array([_shape(piece) for piece in pieces])
    b = np.array([_shape(piece) for piece in others])
    found = np.zeros((len(a), len(b)))
    for mine, theirs in zip(a.T, b.T, strict=True):
        np.maximum(found, np.abs(mine[:, None] - theirs[None]), out=found)
    return found


@dataclass(frozen=True, slots=True)
class FitRecord:
    """How far the fitted rows of a table can be believed; kept with it.

    Attributes
    ----------
    samples
        Measured pieces that the fit rests on.
    checks
        Those of them, each left out of the fit in its turn, that the errors are told of.
    random
        Whether these are a random sample of all pieces. If not (fewer than 10 were), they are all that were
        measured: most of them were chosen, so what they say of the others is a guess.
    median_error
        Median of ``|predicted / measured - 1|`` of the checks.
    half_width, coverage
        A fitted piece takes between its estimate divided and multiplied by ``exp(half_width)`` with
        probability ``coverage``.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    samples: int
    checks: int
    random: bool
    median_error: float
    half_width: float
    coverage: float

    def __post_init__(self) -> None:
        for what in ("samples", "checks"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"a fit's {what} is a whole number from 1, not {shown(value)}")
        if self.checks > self.samples:
            raise InputError(f"a fit's checks are some of its {self.samples} samples, not {self.checks}")
        if not isinstance(self.random, bool):
            raise InputError(f"a fit's random is true or false, not {shown(self.random)}")
        for what, most in (("median_error", _LARGEST), ("half_width", _WIDEST), ("coverage", 1.0)):
            value = getattr(self, what)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= most:
                raise InputError(f"a fit's {what} is a number from 0 to {most:g}, not {shown(value)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for YAML and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object, where: str = "fit") -> FitRecord:
        """Return the record that a mapping describes; errors (:class:`InputError`) name ``where``."""
        names = [field.name for field in fields(cls)]
        given = check_keys(value, set(names), where)
        if lacking := [name for name in names if name not in given]:
            raise InputError(f"{where} lacks '{lacking[0]}'")
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True)
class _Corrections:
    """The roofline's logarithmic errors for the pieces of one form."""

    mean: float
    surface: RBFInterpolator | None
    varying: npt.NDArray[np.intp]

    @classmethod
    def of(cls, pieces: Sequence[Piece], errors: Floats) -> _Corrections:
        points = np.array([_shape(piece) for piece in pieces])
        varying = np.flatnonzero(np.ptp(points, axis=0) > 0)
        mean = float(errors.mean())
        if len(pieces) < max(_FEWEST_OF_A_FORM, len(varying) + 2) or not len(varying):
            return cls(mean, None, varying)
        surface = RBFInterpolator(
            points[:, varying],
            errors - mean,
            neighbors=min(_NEIGHBOURS, len(pieces)),
            kernel="linear",
            degree=0,
            smoothing=_SMOOTHING,
        )
        return cls(mean, surface, varying)

    def __call__(self, pieces: Sequence[Piece]) -> Floats:
        found = np.full(len(pieces), self.mean)
        if self.surface is not None:
            found += self.surface(np.array([_shape(piece) for piece in pieces])[:, self.varying])
        return np.asarray(np.clip(found, -_FURTHEST, _FURTHEST))


class PieceFit:
    """A fit to measured pieces of one target.

    Parameters
    ----------
    rows
        Milliseconds of each measured layer or block; at least 20.
    checks
        Those of them that are a random sample of all pieces to be priced: the errors are told of these alone
        (of all, where there are fewer than 10).

    Attributes
    ----------
    samples
        How many pieces it was fitted on.
    checks, random
        How many pieces the errors are told of, and whether these are a random sample (see ``checks`` above).
    median_error
        Median of ``|predicted / measured - 1|`` of pieces left out of the fit, a tenth at a time.
    half_width, coverage
        A new piece of a known form takes between the estimate divided and multiplied by ``exp(half_width)``
        with probability ``coverage``: conformal, from the left-out errors.

    Raises
    ------
    InputError
        If there are too few rows, or a time is not positive.
    """

    def __init__(self, rows: Mapping[Piece, float], checks: Collection[Piece] = ()) -> None:
        if len(rows) < FEWEST_PIECES:
            raise InputError(
                f"a fit needs at least {FEWEST_PIECES} measured layers or blocks, not {len(rows)}"
            )
        pieces = sorted(rows, key=lambda piece: piece.key)
        times = np.array([rows[piece] for piece in pieces], dtype=np.float64)
        if not (np.isfinite(times).all() and (times > 0).all()):
            raise InputError("measured milliseconds are positive numbers")
        errors = np.full(len(pieces), np.nan)
        for fold in range(_FOLDS):
            out = np.arange(len(pieces)) % _FOLDS == fold
            self._fit([p for p, o in zip(pieces, out, strict=True) if not o], times[~out])
            left = [i for i in np.flatnonzero(out) if self.knows(pieces[i])]
            if left:
                errors[left] = np.log(self.ms([pieces[i] for i in left]) / times[left])
        known = np.isfinite(errors)
        among = known & np.array([piece in checks for piece in pieces])
        self.random = int(among.sum()) >= FEWEST_CHECKS
        told = errors[among if self.random else known]
        self._fit(pieces, times)
        self.samples, self.checks = len(pieces), len(told)
        self.median_error = float(np.median(np.abs(np.expm1(told)))) if len(told) else math.inf
        self.half_width, self.coverage = conformal(told) if len(told) else (math.log(2.0), 0.5)

    @property
    def record(self) -> FitRecord | None:
        """What a table keeps of it; None where no piece could be left out, so that no error is known."""
        if not self.checks:
            return None
        return FitRecord(
            samples=self.samples,
            checks=self.checks,
            random=self.random,
            median_error=round(min(self.median_error, _LARGEST), 6),
            half_width=round(min(self.half_width, _WIDEST), 6),
            coverage=self.coverage,
        )

    def _fit(self, pieces: Sequence[Piece], times: Floats) -> None:
        sums = _sums(pieces)
        self._coefficients = fit_coefficients(sums, times)
        errors = np.log(times / np.maximum(sums @ self._coefficients, 1e-12))
        by_form: dict[Form, list[int]] = {}
        for i, piece in enumerate(pieces):
            by_form.setdefault(form_of(piece), []).append(i)
        self._corrections = {
            form: _Corrections.of([pieces[i] for i in of], errors[of]) for form, of in by_form.items()
        }
        shapes = {form: np.array([_shape(pieces[i]) for i in of]) for form, of in by_form.items()}
        self._ranges = {form: (every.min(axis=0), every.max(axis=0)) for form, every in shapes.items()}

    def knows(self, piece: Piece) -> bool:
        """Return whether pieces of its form were measured whose channels and sizes are not far from its own.

        Far is more than twice the largest or less than half the smallest that was measured.
        """
        form = form_of(piece)
        if form not in self._ranges:
            return False
        (low, high), own = self._ranges[form], np.array(_shape(piece))
        return bool((own >= low - _BEYOND).all() and (own <= high + _BEYOND).all())

    def ms(self, pieces: Sequence[Piece]) -> Floats:
        """Return the estimates, milliseconds, shape (n,).

        Raises
        ------
        InputError
            If nothing that is like one of them was measured (see :meth:`knows`).
        """
        unknown = [piece for piece in pieces if not self.knows(piece)]
        if unknown:
            raise InputError(f"nothing like {unknown[0].key} was measured, so its time is unknown")
        found = _sums(pieces) @ self._coefficients if len(pieces) else np.zeros(0)
        by_form: dict[Form, list[int]] = {}
        for i, piece in enumerate(pieces):
            by_form.setdefault(form_of(piece), []).append(i)
        for form, of in by_form.items():
            found[of] *= np.exp(self._corrections[form]([pieces[i] for i in of]))
        return np.asarray(found)


def _sums(pieces: Iterable[Piece]) -> Floats:
    """Return each piece's features summed over its layers, shape (n, features)."""
    return np.array([features(layers_of(piece)).sum(axis=0) for piece in pieces]).reshape(-1, len(FEATURES))
