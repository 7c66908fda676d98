"""The predictor: affine fix, intervals that hold what they promise, whole spaces at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_tables import LatencyPredictor, LatencyTable, Row, Target, calibrate
from latency_tables.table import Provenance
from search_spaces import (
    Block,
    InputError,
    Layer,
    MissingLayerError,
    SearchSpace,
    deconv_mbv2,
    deconv_mbv3,
    litepose_native,
)

SPACE = litepose_native(joints=14, resolutions=(64, 96))
PI = Target("raspberry-pi-4", "Cortex-A72", "ncnn", threads=4)


def layer_ms(layer: Layer) -> float:
    return 0.01 + layer.macs / 4e6


def make_table(layers: Sequence[Layer] = SPACE.distinct_layers()) -> LatencyTable:
    return LatencyTable(
        PI,
        {
            layer: Row(layer_ms(layer), 0.9 * layer_ms(layer), 1.2 * layer_ms(layer), 9, "measured-here", "x")
            for layer in layers
        },
    )


TABLE = make_table()


POOL = tuple(SPACE.layers(SPACE.decode(g)) for g in SPACE.sample_genotypes(np.random.default_rng(9), 60))
SUMS = tuple(sum(map(layer_ms, layers)) for layers in POOL)


def networks(
    n: int, a: float, b: float, noise: float, seed: int = 0
) -> list[tuple[tuple[Layer, ...], float]]:
    """Networks of the space whose time is ``(a + b * sum) * lognormal(noise)``."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(POOL), n, replace=False)
    return [(POOL[i], (a + b * SUMS[i]) * float(np.exp(noise * rng.standard_normal()))) for i in chosen]


def test_without_calibration_it_is_the_sum_and_says_so() -> None:
    predictor = LatencyPredictor(TABLE)
    layers = SPACE.layers(SPACE.largest())
    prediction = predictor.predict(layers)
    total = sum(map(layer_ms, layers))
    assert prediction.ms == pytest.approx(total)
    assert (prediction.low_ms, prediction.high_ms) == pytest.approx((0.9 * total, 1.2 * total))
    assert (prediction.calibrated, prediction.coverage) == (False, None)
    assert predictor.name == PI.name


def test_calibration_finds_the_affine_law() -> None:
    table = calibrate(TABLE, networks(12, a=2.0, b=1.3, noise=0.0))
    assert table.calibration is not None
    assert table.calibration.a_ms == pytest.approx(2.0, rel=1e-4)
    assert table.calibration.b == pytest.approx(1.3, rel=1e-4)
    assert table.calibration.worst_error < 1e-4 < table.calibration.raw_error
    layers = SPACE.layers(SPACE.smallest())
    assert LatencyPredictor(table).predict(layers).ms == pytest.approx(
        2 + 1.3 * sum(map(layer_ms, layers)), rel=1e-3
    )


def test_one_network_measured_in_a_bad_moment_does_not_bend_the_fit() -> None:
    measured = networks(12, a=1.0, b=1.2, noise=0.0)
    measured[3] = (measured[3][0], 3 * measured[3][1])
    calibration = calibrate(TABLE, measured).calibration
    assert calibration is not None
    predicted = [calibration.a_ms + calibration.b * TABLE.latency_ms(layers) for layers, _ in measured]
    errors = [abs(p / ms - 1) for p, (_, ms) in zip(predicted, measured, strict=True)]
    assert max(errors[:3] + errors[4:]) < 0.03
    assert calibration.worst_error > 0.5


def test_the_intercept_is_never_negative() -> None:
    calibration = calibrate(TABLE, networks(12, a=-1.0, b=1.5, noise=0.01)).calibration
    assert calibration is not None
    assert calibration.a_ms == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("n", "coverage", "repeats"), [(5, 5 / 6, 60), (9, 0.9, 40), (19, 0.9, 20)])
def test_intervals_cover_new_networks_as_promised(n: int, coverage: float, repeats: int) -> None:
    """On average over many calibrations, each tried on networks whose noise it has not seen."""
    held = []
    for seed in range(repeats):
        table = calibrate(TABLE, networks(n, a=1.0, b=1.2, noise=0.05, seed=seed))
        assert table.calibration is not None
        assert table.calibration.coverage == pytest.approx(coverage)
        predictor = LatencyPredictor(table)
        for layers, ms in networks(20, a=1.0, b=1.2, noise=0.05, seed=1000 + seed):
            prediction = predictor.predict(layers)
            assert prediction.low_ms < prediction.ms < prediction.high_ms
            held.append(prediction.low_ms <= ms <= prediction.high_ms)
    assert abs(np.mean(held) - coverage) < 0.06


def test_the_range_of_the_networks_is_noted_and_what_lies_beyond_is_told() -> None:
    measured = networks(12, a=1.0, b=1.2, noise=0.02)
    table = calibrate(TABLE, measured)
    calibration = table.calibration
    assert calibration is not None
    times = [ms for _, ms in measured]
    assert (calibration.least_ms, calibration.most_ms) == (min(times), max(times))
    predictor = LatencyPredictor(table)
    inside = predictor.predict(measured[0][0])
    assert (inside.beyond, inside.coverage, inside.networks) == ("", 0.9, 12)
    for pieces, side in ((measured[0][0] * 40, "much slower"), (measured[0][0][:2], "much faster")):
        beyond = predictor.predict(pieces)
        assert beyond.coverage is None and beyond.low_ms < beyond.ms < beyond.high_ms, side
        assert "beyond the 12 networks of" in beyond.beyond and "nothing supports" in beyond.beyond
    unnoted = replace(table, calibration=replace(calibration, least_ms=None, most_ms=None))
    assert LatencyPredictor(unnoted).predict(measured[0][0] * 40).coverage == 0.9
    assert calibration.reaches(max(times) * 1.24) and not calibration.reaches(max(times) * 1.26)
    assert calibration.reaches(min(times) / 1.24) and not calibration.reaches(min(times) / 1.26)


@pytest.mark.parametrize("ends", [(1.0, None), (0.0, 1.0), (2.0, 1.0), (True, 2.0), (1.0, float("nan"))])
def test_a_range_is_two_times_in_order(ends: tuple[Any, Any]) -> None:
    calibration = calibrate(TABLE, networks(6, 1.0, 1.2, 0.02)).calibration
    assert calibration is not None
    with pytest.raises(InputError, match="least_ms"):
        replace(calibration, least_ms=ends[0], most_ms=ends[1])


def test_too_few_networks_are_refused() -> None:
    with pytest.raises(InputError, match="at least 5 measured networks, not 4"):
        calibrate(TABLE, networks(4, 0.0, 1.0, 0.0))


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(wrong: float) -> None:
    measured = networks(6, 0.0, 1.0, 0.0)
    measured[0] = (measured[0][0], wrong)
    with pytest.raises(InputError, match="positive"):
        calibrate(TABLE, measured)


@pytest.mark.parametrize("calibrated", [False, True])
def test_whole_spaces_are_priced_like_single_networks(calibrated: bool) -> None:
    table = calibrate(TABLE, networks(10, 1.0, 1.1, 0.03)) if calibrated else TABLE
    predictor = LatencyPredictor(table)
    genotypes = SPACE.sample_genotypes(np.random.default_rng(4), 40)
    many = predictor.predict_genotypes(SPACE, genotypes)
    for i, genes in enumerate(genotypes):
        one = predictor.predict(SPACE.layers(SPACE.decode(genes)))
        assert (many.ms[i], many.low_ms[i], many.high_ms[i]) == pytest.approx(
            (one.ms, one.low_ms, one.high_ms)
        )
    np.testing.assert_array_equal(predictor.latency_ms(SPACE, genotypes), many.ms)
    np.testing.assert_array_equal(predictor.upper_ms(SPACE, genotypes), many.high_ms)
    assert (many.high_ms > many.ms).all()


def test_a_missing_layer_is_an_error_only_where_a_network_needs_it() -> None:
    small = SPACE.arch({"resolution": 64})
    large = SPACE.arch({"resolution": 96})
    predictor = LatencyPredictor(make_table(SPACE.layers(small)), strict=True)
    assert predictor.latency_ms(SPACE, SPACE.encode(small)).shape == (1,)
    absent = SPACE.layers(large)[0]
    with pytest.raises(MissingLayerError) as caught:
        predictor.predict_genotypes(SPACE, np.stack([SPACE.encode(small), SPACE.encode(large)]))
    assert absent.key in str(caught.value)
    with pytest.raises(MissingLayerError, match=absent.key.replace("+", r"\+")):
        predictor.predict(SPACE.layers(large))


def test_the_provenance_is_that_of_the_rows_used() -> None:
    layers = SPACE.layers(SPACE.smallest())
    weak: Provenance = "measured-by-others"
    table = replace(TABLE, rows={**TABLE.rows, layers[5]: replace(TABLE.rows[layers[5]], provenance=weak)})
    assert LatencyPredictor(table).predict(layers).provenance == weak
    assert LatencyPredictor(table).predict(layers[:5]).provenance == "measured-here"


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="at least one layer"):
        LatencyPredictor(TABLE).predict([])


@pytest.mark.parametrize(
    "space",
    [
        deconv_mbv2(5, resolutions=(64, 96), deconvs=[2, 3], kernels=(3,), expansions=(6,)),
        deconv_mbv3(5, resolutions=(64,), kernels=(3, 5), multipliers=(1, 0.5)),
    ],
    ids=["mbv2", "mbv3"],
)
def test_tables_of_deconv_spaces_price_their_networks(space: SearchSpace, tmp_path: Path) -> None:
    """Gates, blocks of one layer (with rows of their own), heads of either depth, read from disk again."""

    def ms(block: Block) -> float:
        return round(0.05 + sum(map(layer_ms, block.layers)), 6)

    rows = {
        block: Row(ms(block), 0.9 * ms(block), 1.2 * ms(block), 9, "measured-here", "x")
        for block in space.distinct_blocks()
    }
    assert any(len(block.layers) == 1 for block in space.distinct_blocks())
    path = tmp_path / "table.csv"
    LatencyTable(PI, rows).save(path)
    predictor = LatencyPredictor(LatencyTable.load(path), strict=True)
    genotypes = space.sample_genotypes(np.random.default_rng(0), 50)
    found = predictor.predict_genotypes(space, genotypes)
    for genes, total in zip(genotypes, found.ms, strict=True):
        blocks = space.blocks(space.decode(genes))
        assert total == pytest.approx(sum(map(ms, blocks)))
        assert predictor.predict(blocks).ms == pytest.approx(total)
    lacking = next(block for block in rows if block.name == "head.deconv0")
    table = LatencyTable(PI, {block: row for block, row in rows.items() if block != lacking})
    with pytest.raises(MissingLayerError, match=re.escape(lacking.key)):
        LatencyPredictor(table, strict=True).predict([lacking])
