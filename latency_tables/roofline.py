"""Roofline: milliseconds of any layer from what it computes and moves, with coefficients that were fitted.

A table answers for the layers in it. What a layer of another shape takes is estimated from a few quantities
that cost time on every device: multiply-accumulates by kind of layer, those that vector lanes spend on
padding, values read and written, and the start of a layer. Their coefficients are not negative. They are
fitted either to layers that were measured or, where nobody has measured layers, to whole networks. The model
is the additive form of the roofline model (Williams, Waterman and Patterson, 2009): a sum where the original
takes the larger of computing and moving, as on devices that do not overlap the two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from search_spaces.errors import InputError, did_you_mean, shown
from search_spaces.files import check_keys
from search_spaces.layers import Block, Layer, Piece, layers_of
from search_spaces.listed import Pass

__all__ = [
    "FEATURES",
    "TERMS",
    "Roofline",
    "conformal",
    "features",
    "fit_coefficients",
    "left_out_errors",
    "pass_features",
]

Floats = npt.NDArray[np.float64]
Terms = Sequence[Mapping[str, float]]
FittedOn = Literal["layers", "networks"]

FEATURES = (
    "dense", "pointwise", "depthwise", "deconv", "idle", "read", "weights", "written", "layers",
)  # fmt: skip
"""What a layer is described by. ``dense`` to ``deconv``: its multiply-accumulates (10^9), under its kind
alone; ``idle``: those (10^9) that are spent on padding when channels (of a group) are filled up to multiples
of 16, none for depthwise layers, whose channels are the vectors; ``read``, ``weights``, ``written``:
activations read (those of an added tensor too), weights read, activations written (10^6 values); ``layers``:
1. A squeeze-and-excitation counts as two pointwise layers on one pixel that read their input twice, for its
mean and for its product, and as four layers."""

_KINDS = FEATURES[:4]
_MATRIX_KINDS = ("dense", "pointwise", "deconv")
_ALWAYS = ("read", "weights", "written", "layers")
"""Features that no layer has 0 of."""

_GATE_LAYERS = 4
"""What a squeeze-and-excitation is made of: a mean, two convolutions, a product."""

LANES = 16
"""Channels that a device is taken to compute at once."""

TERMS: Terms = (MappingProxyType(dict.fromkeys((*_KINDS, "idle"), 1.0)), MappingProxyType({"read": 1.0}))
"""Two coefficients for where a handful of networks is all there is: of padded multiply-accumulates, and of
values read. See ``experiments/results/device-tables.md`` for what it was compared with."""

_COVERAGE, _CONFIDENCE = 0.9, 0.9
_CONFIDENCE = 0.9
_ROUNDS = 30
_WIDEST = 10.0
_TINY = 1e-6


def features(pieces: Iterable[Piece]) -> Floats:
    """Return the features of layers and blocks, shape (n, 9), columns as in :data:`FEATURES`.

    A block's are the sums over its layers.
    """
    every = tuple(pieces)
    if not any(isinstance(piece, Block) for piece in every):
        return _of_layers([layer for piece in every for layer in layers_of(piece)])
    owner = np.array([i for i, piece in enumerate(every) for _ in layers_of(piece)])
    found = np.zeros((len(every), len(FEATURES)))
    np.add.at(found, owner, _of_layers([layer for piece in every for layer in layers_of(piece)]))
    return found


def pass_features(passes: Iterable[Pass]) -> Floats:
    """Return the features of passes over tensors (:mod:`search_spaces.listed`), shape (n, 9).

    A pass reads and writes its tensor once and computes nothing that counts.
    """
    values = np.array([each.values for each in passes], dtype=np.float64) / 1e6
    found = np.zeros((len(values), len(FEATURES)))
    for name, column in (("read", values), ("written", values), ("layers", np.ones(len(values)))):
        found[:, FEATURES.index(name)] = column
    return found


def _of_layers(every: Sequence[Layer]) -> Floats:
    column = {name: i for i, name in enumerate(FEATURES)}
    found = np.zeros((len(every), len(FEATURES)))
    if not every:
        return found
    shapes = np.array(
        [
            (
                x.c_in,
                x.c_out,
                x.groups,
                x.h_in * x.w_in,
                x.h_out * x.w_out,
                x.macs,
                x.kernel**2,
                x.add,
                x.squeeze,
            )
            for x in every
        ],
        dtype=np.float64,
    )
    c_in, c_out, groups, pixels_in, pixels_out, macs, taps, add, squeeze = shapes.T
    gated = squeeze > 0
    kinds = np.array([column[_kind(layer)] for layer in every])
    found[np.arange(len(every)), kinds] = macs / 1e9
    own_in, own_out = c_in / groups, np.where(gated, squeeze, c_out) / groups
    padded = np.ceil(own_in / LANES) * np.ceil(own_out / LANES) * LANES**2 / (own_in * own_out)
    found[:, column["idle"]] = np.where(kinds == column["depthwise"], 0.0, macs * (padded - 1)) / 1e9
    found[:, column["read"]] = (c_in * pixels_in * (1 + gated) + add * c_out * pixels_out) / 1e6
    found[:, column["weights"]] = taps * c_in * own_out * (1 + gated) / 1e6
    found[:, column["written"]] = c_out * pixels_out / 1e6
    found[:, column["layers"]] = np.where(gated, _GATE_LAYERS, 1.0)
    return found


def _kind(layer: Layer) -> str:
    if layer.kind == "dwconv":
        return "depthwise"
    if layer.kind == "deconv":
        return "deconv"
    return "pointwise" if layer.kernel == 1 else "dense"


@dataclass(frozen=True, slots=True)
class Roofline:
    """Fitted coefficients, and how far they can be believed.

    Attributes
    ----------
    coefficients
        Milliseconds per unit of each of :data:`FEATURES`; none is negative. What is left out is 0.
    fitted_on
        ``layers`` or ``networks``: what was left out in turn to find the errors below.
    samples
        How many of them.
    median_error
        Median of ``|predicted / measured - 1|`` of what was left out of the fit.
    half_width
        What is measured lies within the prediction divided and multiplied by ``exp(half_width)``, for a share
        ``coverage`` of new layers (or new whole networks, by ``fitted_on``): conformal, from the errors of
        what was left out.
    coverage
        See above.
    families
        Of which families of networks it was fitted on, by name, and the worst factor between predicted and
        measured of each, left out as a whole: what to expect of networks of yet another one. Empty where that
        is not noted.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong; also if the coefficients would price some layer at 0.
    """

    coefficients: Mapping[str, float]
    fitted_on: FittedOn
    samples: int
    median_error: float
    half_width: float
    coverage: float
    families: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.coefficients.items():
            if name not in FEATURES:
                raise InputError(
                    f"a roofline has no coefficient {shown(name)}{did_you_mean(str(name), FEATURES)}"
                )
            if not _is_number(value) or value < 0:
                raise InputError(
                    f"a roofline's coefficient '{name}' is a finite number, not negative, not {shown(value)}"
                )
        given = {name: float(self.coefficients.get(name, 0.0)) for name in FEATURES}
        object.__setattr__(self, "coefficients", MappingProxyType(given))
        if not any(given[name] for name in _ALWAYS) and not all(given[name] for name in _KINDS):
            raise InputError(
                f"a roofline prices every layer above 0: one of {', '.join(_ALWAYS)}, or all of"
                f" {', '.join(_KINDS)}, are above 0, not {shown({k: v for k, v in given.items() if v})}"
            )
        if self.fitted_on not in get_args(FittedOn):
            raise InputError(
                f"a roofline's fitted_on is one of {', '.join(get_args(FittedOn))},"
                f" not {shown(self.fitted_on)}"
            )
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise InputError(f"a roofline's samples is a whole number from 1, not {shown(self.samples)}")
        for what, most in (("median_error", math.inf), ("half_width", _WIDEST), ("coverage", 1.0)):
            value = getattr(self, what)
            if not _is_number(value) or not 0 <= value <= most or (what == "coverage" and value == 0):
                rule = "not negative" if most == math.inf else f"from 0 to {most:g}"
                raise InputError(f"a roofline's {what} is a number {rule}, not {shown(value)}")
        if not isinstance(self.families, Mapping):
            raise InputError(f"a roofline's families are a mapping, not {shown(self.families)}")
        for name, value in self.families.items():
            if not isinstance(name, str) or not _is_number(value) or value < 1:
                raise InputError(
                    "a roofline's families are names with factors of at least 1, not"
                    f" {shown(name)}: {shown(value)}"
                )
        object.__setattr__(self, "families", MappingProxyType(dict(self.families)))

    # -- using it ---------------------------------------------------------------------------------------

    def ms(self, pieces: Iterable[Piece]) -> Floats:
        """Return the milliseconds of each layer or block, shape (n,); all above 0."""
        return self.ms_of(features(pieces))

    def ms_of(self, sums: npt.ArrayLike) -> Floats:
        """Return the milliseconds of rows of features (of layers, or summed over networks), shape (n,)."""
        weights = np.array([self.coefficients[name] for name in FEATURES])
        return np.asarray(np.asarray(sums, dtype=np.float64) @ weights)

    # -- files ------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for YAML and JSON; coefficients of 0, and no families, are left out."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        given["coefficients"] = {name: value for name, value in self.coefficients.items() if value}
        families = dict(given.pop("families"))
        return {**given, **({"families": families} if families else {})}

    @classmethod
    def from_dict(cls, value: object, where: str = "roofline") -> Roofline:
        """Return the roofline that a mapping describes; errors (:class:`InputError`) name ``where``."""
        names = {each.name for each in fields(cls)}
        given = check_keys(value, names, where)
        for name in sorted(names - {"families"} - given.keys()):
            raise InputError(f"{where} lacks '{name}'")
        check_keys(given["coefficients"], set(FEATURES), f"{where}: coefficients")
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _matrix(terms: Terms) -> Floats:
    """Return terms as rows of weights, shape (terms, 9)."""
    for term in terms:
        for name in term:
            if name not in FEATURES:
                raise InputError(
                    f"a term has the unknown feature {shown(name)}{did_you_mean(name, FEATURES)}"
                )
    return np.array([[term.get(name, 0.0) for name in FEATURES] for term in terms])


def fit_coefficients(sums: Floats, times: Floats, terms: Terms | None = None) -> Floats:
    """Return the coefficients of :data:`FEATURES` that fit measured times best, shape (9,).

    Least squares of ``log(predicted / measured)``, so that twice as long and half as long weigh the same;
    relative errors would favour too short predictions. Found by non-negative linear least squares, repeated
    with such weights that the gradients of both agree where the repetition ends.

    Parameters
    ----------
    sums
        Features of layers, or of networks (summed over their layers), shape (n, 9).
    times
        Milliseconds, shape (n,), positive.
    terms
        What shares a coefficient; by default each feature has its own.
    """
    basis = np.eye(len(FEATURES)) if terms is None else _matrix(terms)
    columns = sums @ basis.T
    weights = 1.0 / times
    found = np.zeros(len(basis))
    for _ in range(_ROUNDS):
        weighted = columns * weights[:, None]
        scale = np.abs(weighted).max(axis=0)
        scale[scale == 0] = 1.0
        before, found = found, np.asarray(optimize.nnls(weighted / scale, times * weights)[0]) / scale
        if np.allclose(found, before, rtol=1e-10, atol=0.0):
            break
        predicted = np.maximum(columns @ found, _TINY * times)
        excess = predicted / times - 1.0
        slope = np.where(np.abs(excess) < _TINY, 1.0, np.log1p(excess) / np.where(excess == 0, 1.0, excess))
        weights = np.sqrt(slope / (times * predicted))
    coefficients = np.asarray(found @ basis)
    return _with_unseen(coefficients, sums) if terms is None else coefficients


def _with_unseen(coefficients: Floats, sums: Floats) -> Floats:
    """Return coefficients in which a kind of layer that no sample shows has another kind's."""
    shown_by = {name: bool(sums[:, i].any()) for i, name in enumerate(FEATURES)}
    matrices = [FEATURES.index(name) for name in _MATRIX_KINDS if shown_by[name]]
    known = matrices or [FEATURES.index(name) for name in _KINDS if shown_by[name]]
    filled = coefficients.copy()
    for i, name in enumerate(FEATURES):
        if name in _KINDS and not shown_by[name] and known:
            filled[i] = coefficients[known].max()
    return filled


def left_out_errors(
    sums: Floats, times: Floats, terms: Terms | None = None, folds: Sequence[Hashable] | None = None
) -> Floats:
    """Return ``log(predicted / measured)`` of each sample by the fit on the other folds, shape (n,).

    Parameters
    ----------
    sums, times, terms
        As for :func:`fit_coefficients`.
    folds
        Which fold each sample is in (a number, a family's name); by default each is in one of its own.
    """
    given = list(range(len(times)) if folds is None else folds)
    errors = np.empty(len(times))
    for fold in dict.fromkeys(given):
        out = np.array([each == fold for each in given])
        if out.all():
            raise InputError("errors of what is left out need at least two folds")
        predicted = sums[out] @ fit_coefficients(sums[~out], times[~out], terms)
        errors[out] = np.log(np.maximum(predicted, _TINY * times[out]) / times[out])
    return errors


def conformal(errors: npt.ArrayLike) -> tuple[float, float]:
    """Return the half width of an interval that holds what is new, and the share of it that it promises.

    A split conformal interval of the k-th smallest of n errors holds k / (n + 1) on average over all the
    networks that might have been measured; over those that were, its share is distributed as
    Beta(k, n + 1 - k) (Vovk 2012, *Conditional validity of inductive conformal predictors*), which for 20 of
    them is often far below. So k is the least for which that is 0.9 or more with probability 0.9 (from 22
    errors on the largest is, from 38 the second largest); with fewer the half width is the largest error, and
    the share promised is the mean's n / (n + 1) up to 0.9.

    Parameters
    ----------
    errors
        ``log(predicted / measured)`` of what was left out of the fit, shape (n,), n at least 1.
    """
    scores = np.sort(np.abs(np.asarray(errors, dtype=np.float64)))
    n = len(scores)
    # P(Beta(k, n + 1 - k) >= p) = P(Binomial(n, p) <= k - 1)
    rank = min(int(stats.binom.ppf(_CONFIDENCE, n, _COVERAGE)) + 1, n)
    return float(scores[rank - 1]), min(_COVERAGE, n / (n + 1))
