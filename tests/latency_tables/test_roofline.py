"""Rooflines: features, fits that find what is there, intervals that hold, files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables.roofline import (
    FEATURES,
    TERMS,
    Roofline,
    conformal,
    features,
    fit_coefficients,
    left_out_errors,
)
from search_spaces import Block, InputError, Layer, get_arch, litepose_native, named_archs

SPACE = litepose_native(14, resolutions=[256])
LAYERS = SPACE.distinct_layers()
TRUE = {"dense": 4.0, "pointwise": 5.0, "depthwise": 30.0, "deconv": 6.0, "read": 0.4, "layers": 0.01}
DEVICE = Roofline(TRUE, "layers", 100, 0.05, 0.1, 0.9)


def fitted(
    rows: dict[Any, float], terms: Sequence[Mapping[str, float]] | None = None, folds: int | None = 10
) -> Roofline:
    """A roofline of layers (or sums of their features), its error bar from what is left out in turn."""
    ordered = sorted(rows, key=lambda piece: piece.key)
    return fitted_on(features(ordered), [rows[piece] for piece in ordered], terms, folds)


def fitted_on(
    sums: Any, ms: Sequence[float], terms: Sequence[Mapping[str, float]] | None, folds: int | None
) -> Roofline:
    times = np.array(ms)
    of = None if folds is None else [i % folds for i in range(len(times))]
    errors = left_out_errors(sums, times, terms, of)
    coefficients = fit_coefficients(sums, times, terms)
    half_width, coverage = conformal(errors)
    median = float(np.median(np.abs(np.expm1(errors))))
    named = dict(zip(FEATURES, coefficients.tolist(), strict=True))
    return Roofline(named, "layers", len(times), median, half_width, coverage)


def noisy(seed: int, spread: float = 0.1) -> dict[Any, float]:
    rng = np.random.default_rng(seed)
    times = DEVICE.ms(LAYERS) * np.exp(rng.normal(0.0, spread, len(LAYERS)))
    return dict(zip(LAYERS, times.tolist(), strict=True))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    kind = draw(st.sampled_from(("conv", "dwconv", "deconv")))
    c_in = draw(st.integers(1, 64))
    c_out = c_in if kind == "dwconv" else draw(st.integers(1, 64))
    groups = c_in if kind == "dwconv" else 1
    kernel, stride, h, w = (draw(st.integers(1, most)) for most in (7, 2, 40, 40))
    return Layer(kind, c_in, c_out, kernel, stride, groups, h, w, add=draw(st.booleans()))  # type: ignore[arg-type]


@given(layers())
def test_features_are_what_the_layer_computes_and_moves(layer: Layer) -> None:
    found = dict(zip(FEATURES, features([layer])[0].tolist(), strict=True))
    kinds = [found[name] for name in ("dense", "pointwise", "depthwise", "deconv")]
    assert sum(kinds) == pytest.approx(layer.macs / 1e9)
    assert sum(value > 0 for value in kinds) == 1
    written = layer.c_out * layer.h_out * layer.w_out
    assert found["written"] == pytest.approx(written / 1e6)
    assert found["read"] == pytest.approx((layer.c_in * layer.h_in * layer.w_in + layer.add * written) / 1e6)
    assert found["weights"] == pytest.approx(replace(layer, bias=False, norm=False).params / 1e6)
    filled = layer
    if layer.kind != "dwconv":
        filled = replace(layer, c_in=-(-layer.c_in // 16) * 16, c_out=-(-layer.c_out // 16) * 16)
    assert sum(kinds) + found["idle"] == pytest.approx(filled.macs / 1e9)


def test_a_gate_is_two_pointwise_layers_that_read_their_input_twice() -> None:
    gate = Layer("se", 72, 72, 1, 1, 1, 32, 24, bias=True, squeeze=24)
    found = dict(zip(FEATURES, features([gate])[0].tolist(), strict=True))
    filled = 2 * 80 * 32 / 1e9  # both convolutions, channels filled up to multiples of 16
    assert found == pytest.approx(
        {
            **dict.fromkeys(FEATURES, 0.0),
            "pointwise": gate.macs / 1e9,
            "idle": filled - gate.macs / 1e9,
            "read": 2 * 72 * 32 * 24 / 1e6,
            "weights": 2 * 72 * 24 / 1e6,
            "written": 72 * 32 * 24 / 1e6,
            "layers": 4.0,
        }
    )


@pytest.mark.parametrize("name", ["litepose-xs", "simplebaseline-mbv3"])
def test_a_block_is_the_sum_of_its_layers(name: str) -> None:
    blocks = get_arch(name).blocks(14)
    assert any(len(block.layers) > 1 for block in blocks)
    found = features([*blocks, LAYERS[0]])
    for row, piece in zip(found, [*blocks, LAYERS[0]], strict=True):
        own = piece.layers if isinstance(piece, Block) else (piece,)
        np.testing.assert_allclose(row, features(own).sum(axis=0))
    assert features([]).shape == (0, len(FEATURES))


@given(layers(), st.dictionaries(st.sampled_from(FEATURES), st.floats(1e-3, 1e3), max_size=4))
def test_no_layer_is_free(layer: Layer, coefficients: dict[str, float]) -> None:
    try:
        found = Roofline(coefficients, "layers", 1, 0.0, 0.0, 0.5)
    except InputError as error:
        assert "prices every layer above 0" in str(error)
        assert not {"read", "weights", "written", "layers"} & set(coefficients)
        return
    assert found.ms([layer])[0] > 0


def test_layers_without_noise_are_found_again() -> None:
    found = fitted(noisy(0, 0.0))
    np.testing.assert_allclose(found.ms(LAYERS), DEVICE.ms(LAYERS), rtol=1e-6)
    assert found.median_error < 1e-6
    # And so are layers that no row showed: another resolution, another space's widths.
    others = get_arch("litepose-l").layers(17)
    np.testing.assert_allclose(found.ms(others), DEVICE.ms(others), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_fit_holds_nine_of_ten_new_layers(seed: int) -> None:
    found = fitted(noisy(seed))
    again = np.array(list(noisy(seed + 100).values()))
    held = np.abs(np.log(again / found.ms(LAYERS))) <= found.half_width
    assert found.coverage == 0.9
    assert 0.85 < held.mean() < 0.95
    assert found.half_width < 0.25  # and it is not just wide


def test_too_long_and_too_short_weigh_the_same() -> None:
    """Relative errors would put the constant of (1, 4) near 1.2, not at their geometric mean."""
    sums = np.zeros((2, len(FEATURES)))
    sums[:, FEATURES.index("layers")] = 1.0
    assert fit_coefficients(sums, np.array([1.0, 4.0]))[FEATURES.index("layers")] == pytest.approx(2.0)


def test_a_kind_that_no_row_shows_is_priced_like_the_dearest_like_it() -> None:
    rows = {layer: ms for layer, ms in noisy(0, 0.0).items() if layer.kind != "deconv"}
    found = fitted(rows).coefficients
    assert found["deconv"] == max(found["dense"], found["pointwise"]) > 0
    depthwise = {layer: ms for layer, ms in rows.items() if layer.kind == "dwconv"}
    only = fitted(depthwise).coefficients
    assert only["dense"] == only["deconv"] == only["depthwise"]


def test_whole_networks_tell_few_coefficients() -> None:
    macs = {"dense": 1.0, "pointwise": 1.0, "depthwise": 1.0, "deconv": 1.0, "idle": 1.0}
    true = Roofline({**dict.fromkeys(macs, 8.0), "read": 0.7}, "networks", 1, 0.0, 0.0, 0.5)
    sums = np.array(
        [
            features(arch.blocks(14)).sum(axis=0)
            for name, arch in named_archs().items()
            if name.startswith("litepose")
        ]
    )
    times = true.ms_of(sums).tolist()
    found = fitted_on(sums, times, TERMS, None)
    assert found.coefficients["dense"] == pytest.approx(8.0, rel=1e-6)
    assert found.coefficients["idle"] == found.coefficients["dense"]
    assert found.coefficients["read"] == pytest.approx(0.7, rel=1e-6)
    assert found.coverage == pytest.approx(len(times) / (len(times) + 1))
    scaled = fitted_on(sums, times, [dict(true.coefficients)], None)
    assert scaled.coefficients == pytest.approx(true.coefficients, rel=1e-6)


def test_families_are_left_out_together() -> None:
    """A family of its own speed is predicted well by its own kin and badly without them."""
    sums = features(LAYERS[:40])
    times = DEVICE.ms(LAYERS[:40]) * np.array([1.0] * 20 + [2.0] * 20)
    folds = ["one"] * 20 + ["other"] * 20
    terms = [dict(DEVICE.coefficients)]
    errors = left_out_errors(sums, times, terms, folds)
    np.testing.assert_allclose(errors[:20], np.log(2.0), atol=1e-9)
    np.testing.assert_allclose(errors[20:], -np.log(2.0), atol=1e-9)
    assert np.abs(left_out_errors(sums, times, terms)).max() < np.log(2.0)
    with pytest.raises(InputError, match="at least two folds"):
        left_out_errors(sums, times, terms, ["one"] * 40)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=60))
def test_conformal_ranks(errors: list[float]) -> None:
    half_width, coverage = conformal(errors)
    within = sum(abs(error) <= half_width for error in errors)
    assert within / (len(errors) + 1) >= coverage - 1e-12
    assert coverage == (0.9 if len(errors) >= 9 else len(errors) / (len(errors) + 1))


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(FEATURES), st.floats(0, 1e6), max_size=9), st.integers(1, 500))
def test_plain_values_round_trip(coefficients: dict[str, float], samples: int) -> None:
    found = Roofline({**coefficients, "layers": 0.5}, "networks", samples, 0.1, 0.2, 0.9)
    assert Roofline.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coefficients": {"dens": 1.0}}, ["coefficients", "dens", "did you mean 'dense'"]),
        ({"coefficients": {"read": -1.0}}, ["'read'", "not negative", "-1.0"]),
        ({"coefficients": {"read": "much"}}, ["'read'", "'much'"]),
        ({"coefficients": {"read": 10**400}}, ["'read'", "finite"]),
        ({"coefficients": {"dense": 1.0}}, ["prices every layer above 0", "{'dense': 1.0}"]),
        ({"coefficients": 3}, ["coefficients", "mapping", "int"]),
        ({"fitted_on": "blocks"}, ["fitted_on", "layers, networks", "'blocks'"]),
        ({"samples": 0}, ["samples", "0"]),
        ({"samples": True}, ["samples", "True"]),
        ({"half_width": 11.0}, ["half_width", "from 0 to 10", "11.0"]),
        ({"half_width": float("nan")}, ["half_width", "nan"]),
        ({"coverage": 0}, ["coverage", "0"]),
        ({"median_error": -0.1}, ["median_error", "not negative", "-0.1"]),
        ({"median": 0.1}, ["unknown key 'median'", "median_error"]),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Roofline.from_dict({**DEVICE.to_dict(), **changes}, "table 'x.yaml': roofline")
    for word in ["table 'x.yaml': roofline", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_and_what_is_too_little_is_named() -> None:
    lacking = {name: value for name, value in DEVICE.to_dict().items() if name != "half_width"}
    with pytest.raises(InputError, match="roofline lacks 'half_width'"):
        Roofline.from_dict(lacking)
    sums = features(get_arch("litepose-xs").layers(14))
    with pytest.raises(InputError, match="unknown feature 'reads'; did you mean 'read'"):
        fit_coefficients(sums, np.ones(len(sums)), [{"reads": 1.0}])
    with pytest.raises(InputError, match="at least two folds"):
        left_out_errors(sums, np.ones(len(sums)), folds=[0] * len(sums))


@pytest.mark.parametrize("n", [22, 40, 60])
def test_most_sets_of_errors_give_an_interval_that_holds_what_it_promises(n: int) -> None:
    """Not only on average over sets: of one set's interval the true coverage is known here."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        width, promised = conformal(rng.normal(0, 0.05, n))
        assert promised == 0.9
        held += math.erf(width / 0.05 / math.sqrt(2)) >= 0.9
    assert held / 400 > 0.86
