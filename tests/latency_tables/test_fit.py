"""What was not measured: the fit, which blocks are measured for it, and predictions that rest on it."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables import (
    LatencyPredictor,
    LatencyTable,
    MeasuredNetwork,
    Row,
    Target,
    calibrate,
    fill_table,
    select_pieces,
)
from latency_tables.fit import FEWEST_CHECKS, FEWEST_PIECES, FitRecord, PieceFit, distances, form_of
from latency_tables.predictor import is_fitted
from latency_tables.selection import random_order, random_part
from search_spaces import (
    Block,
    InputError,
    MissingLayerError,
    Piece,
    layers_of,
    litepose_native,
    piece_from_key,
)

SPACE = litepose_native(joints=14, resolutions=(128, 192, 256))
WEIGHTS = SPACE.block_frequencies()
BLOCKS = tuple(WEIGHTS)
PI = Target("raspberry-pi-4", "Cortex-A72", "ncnn", threads=4)


def true_ms(piece: Piece) -> float:
    """A device that likes multiples of 16 channels and depthwise convolutions less than others."""
    found = 0.01
    for x in layers_of(piece):
        speed = (3.0 if x.kind == "dwconv" else 9.0) * (1.15 if x.c_out % 16 == 0 else 1.0)
        found += x.macs / 1e6 / speed + (x.c_in * x.h_in * x.w_in) / 4e6
    return found


def make_row(ms: float) -> Row:
    return Row(ms, 0.97 * ms, 1.05 * ms, 20, "measured-here", "ncnn 1")


def table_of(pieces: tuple[Piece, ...]) -> LatencyTable:
    return LatencyTable(PI, {piece: make_row(true_ms(piece)) for piece in pieces})


MEASURED = select_pieces(WEIGHTS, 0.3)
PART = table_of(MEASURED)
ARCH = SPACE.decode(SPACE.sample_genotypes(np.random.default_rng(5), 1)[0])
"""A network some of whose blocks were not measured."""


# -- selection ------------------------------------------------------------------------------------------


def test_frequencies_are_the_mean_over_all_networks() -> None:
    space = litepose_native(joints=17, resolutions=(64, 96), multipliers=(1, 0.5))
    genotypes = space.genotypes()
    counts = Counter(block for genes in genotypes for block in space.blocks(space.decode(genes)))
    assert space.block_frequencies() == pytest.approx(
        {block: count / len(genotypes) for block, count in counts.items()}
    )


def test_every_form_is_measured_and_the_share_is_kept() -> None:
    assert len(MEASURED) == math.ceil(0.3 * len(BLOCKS)) == len(set(MEASURED))
    forms = Counter(map(form_of, BLOCKS))
    chosen = Counter(map(form_of, MEASURED))
    assert all(chosen[form] >= min(4, count) for form, count in forms.items())
    assert set(select_pieces(WEIGHTS, 1.0)) == set(BLOCKS)
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="share of blocks to measure lies above 0"):
            select_pieces(WEIGHTS, share)
    with pytest.raises(InputError, match="nothing to select"):
        select_pieces({}, 0.5)


def test_selection_goes_on_from_what_is_measured() -> None:
    rest = select_pieces(WEIGHTS, 0.5, set(MEASURED))
    assert len(rest) + len(MEASURED) == math.ceil(0.5 * len(BLOCKS))
    assert not set(rest) & set(MEASURED)
    assert select_pieces(WEIGHTS, 0.2, set(MEASURED)) == ()


def test_a_fifth_is_drawn_at_random_and_the_rest_lies_apart() -> None:
    part = random_part(WEIGHTS, set(MEASURED))
    assert part == random_order(reversed(BLOCKS))[: len(part)]
    assert random_part(WEIGHTS, set(BLOCKS)) == random_order(BLOCKS)
    form = form_of(next(p for p in BLOCKS if p.name == "head.deconv1"))
    own = [p for p in BLOCKS if form_of(p) == form]
    chosen = [p for p in MEASURED if form_of(p) == form]
    at_random = random_order(own)[: len(chosen)]

    def missed(measured: list[Block]) -> float:
        """Mean work of a network in blocks, each times its distance to the nearest measured one."""
        gaps = distances(own, measured).min(axis=1)
        work = [WEIGHTS[p] * sum(layer.macs for layer in p.layers) for p in own]
        return float(np.average(gaps, weights=work))

    assert missed(chosen) < missed(at_random)


# -- the fit --------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_within_the_interval() -> None:
    checks = random_part(WEIGHTS, set(MEASURED))
    assert 0.15 * len(MEASURED) < len(checks) < 0.5 * len(MEASURED)
    fit = PieceFit({piece: true_ms(piece) for piece in MEASURED}, checks)
    rest = [block for block in BLOCKS if block not in set(MEASURED)]
    errors = np.log(fit.ms(rest) / np.array([true_ms(block) for block in rest]))
    assert np.median(np.abs(errors)) < 0.04
    assert (np.abs(errors) <= fit.half_width).mean() > 0.8
    assert (fit.samples, fit.checks, fit.random, fit.coverage) == (len(MEASURED), len(checks), True, 0.9)
    same = PieceFit({piece: true_ms(piece) for piece in reversed(MEASURED)}, checks)
    np.testing.assert_array_equal(same.ms(rest), fit.ms(rest))


def test_measured_pieces_are_met_better_than_by_the_roofline_alone() -> None:
    fit = PieceFit({piece: true_ms(piece) for piece in MEASURED})
    errors = np.abs(np.log(fit.ms(MEASURED) / np.array([true_ms(piece) for piece in MEASURED])))
    assert np.median(errors) < fit.median_error


def test_hard_swish_and_gates_make_forms_of_their_own() -> None:
    keys = [
        "conv_k1_s1_g1_40x8x6_240+bn+relu6",
        "conv_k1_s1_g1_40x8x6_240+bn+hswish",
        "se_k1_s1_g1_q64_240x8x6_240+bias",
        "(conv_k1_s1_g1_40x8x6_240+bn+relu6)",
    ]
    pieces = [piece_from_key(key) for key in keys]
    assert len({form_of(piece) for piece in pieces}) == len(keys)
    fused = [piece_from_key(key.replace("relu6", "relu")) for key in keys[:1]]
    assert form_of(fused[0]) == form_of(pieces[0])
    wider = piece_from_key(keys[2].replace("q64", "q128"))
    assert distances([pieces[2]], [wider])[0, 0] == pytest.approx(np.log(2))


def test_a_form_that_was_never_measured_has_no_time() -> None:
    bottlenecks = [p for p in MEASURED if "deconv" not in p.key]
    fit = PieceFit({piece: true_ms(piece) for piece in bottlenecks})
    deconv = next(p for p in BLOCKS if "deconv" in p.key)
    assert not fit.knows(deconv)
    with pytest.raises(InputError, match=r"nothing like deconv.* was measured"):
        fit.ms([bottlenecks[0], deconv])


def test_a_fit_needs_enough_positive_times() -> None:
    few = {piece: true_ms(piece) for piece in MEASURED[: FEWEST_PIECES - 1]}
    with pytest.raises(InputError, match=f"at least {FEWEST_PIECES} measured"):
        PieceFit(few)
    with pytest.raises(InputError, match="positive"):
        PieceFit(dict.fromkeys(MEASURED, 0.0))


def test_nothing_is_said_of_what_is_far_larger_or_smaller() -> None:
    fit = PieceFit({piece: true_ms(piece) for piece in MEASURED})
    arch = SPACE.largest()
    for side, known in ((256, True), (512, True), (64, True), (1024, False), (32, False)):
        assert all(map(fit.knows, arch.blocks(14, (side, side)))) == known, side
    with pytest.raises(MissingLayerError, match="measure them with 'nas profile'"):
        LatencyPredictor(PART).predict(arch.blocks(14, (1024, 1024)))


# -- predictions that rest on it ------------------------------------------------------------------------


def networks(n: int, seed: int = 0) -> tuple[MeasuredNetwork, ...]:
    rng = np.random.default_rng(seed)
    archs = [SPACE.decode(genes) for genes in SPACE.sample_genotypes(rng, n)]
    return tuple(
        MeasuredNetwork(a, 14, make_row(0.3 + 1.1 * sum(map(true_ms, SPACE.blocks(a))))) for a in archs
    )


def test_fitted_rows_say_so_and_are_fitted_anew() -> None:
    filled = fill_table(PART, WEIGHTS)
    assert set(filled.rows) == set(BLOCKS)
    made = {piece: row for piece, row in filled.rows.items() if is_fitted(row)}
    assert set(made) == set(BLOCKS) - set(MEASURED)
    one = next(iter(made.values()))
    assert (one.runs, one.provenance) == (0, "calibrated-estimate")
    assert one.source.startswith(f"fitted on {len(MEASURED)} measured pieces, median error ")
    assert one.p10_ms < one.median_ms < one.p90_ms
    assert fill_table(filled, WEIGHTS) == filled
    further = next(iter(made))
    more = replace(filled, rows={**filled.rows, further: make_row(true_ms(further))})
    assert not is_fitted(fill_table(more, ()).rows[further])
    assert fill_table(more, ()).rows.keys() == filled.rows.keys()
    assert fill_table(table_of(BLOCKS), WEIGHTS).rows.keys() == set(BLOCKS)


def test_a_table_keeps_how_good_its_fit_is(tmp_path: Path) -> None:
    filled = fill_table(PART, WEIGHTS)
    fit = PieceFit({p: true_ms(p) for p in MEASURED}, random_part(WEIGHTS, set(MEASURED)))
    assert filled.fit == fit.record and filled.fit is not None and filled.fit.random
    assert (filled.fit.samples, filled.fit.half_width) == (
        len(MEASURED),
        pytest.approx(fit.half_width, abs=1e-6),
    )
    assert LatencyTable.load(filled.save(tmp_path / "pi.csv")) == filled
    # Once all is measured, nothing is fitted, and nothing is said of a fit.
    measured = {piece: make_row(true_ms(piece)) for piece in BLOCKS}
    assert fill_table(replace(filled, rows=measured), WEIGHTS).fit is None


@pytest.mark.parametrize(
    ("line", "other", "told"),
    [
        ("samples: 60", "samples: 0", "samples is a whole number from 1, not 0"),
        ("checks: 12", "checks: 61", "checks are some of its 60 samples, not 61"),
        ("random: true", "random: 1", "random is true or false, not 1"),
        ("half_width: 0.2", "half_width: .nan", "half_width is a number from 0 to 10, not nan"),
        ("coverage: 0.9", "coverage: 1.1", "coverage is a number from 0 to 1, not 1.1"),
        ("median_error: 0.04", "median_error: -1", "median_error is a number from 0 to 1e+06, not -1"),
        ("  checks: 12\n", "", "fit lacks 'checks'"),
        ("checks: 12", "chekcs: 12", "chekcs"),
    ],
)
def test_damaged_records_of_fits_are_named(line: str, other: str, told: str, tmp_path: Path) -> None:
    path = replace(PART, fit=FitRecord(60, 12, True, 0.04, 0.2, 0.9)).save(tmp_path / "pi.csv")
    metadata = path.with_suffix(".yaml")
    text = metadata.read_text()
    assert text.count(line) == 1
    metadata.write_text(text.replace(line, other))
    with pytest.raises(InputError, match=re.escape(told)) as error:
        LatencyTable.load(path)
    assert "pi.yaml" in str(error.value)


def test_errors_of_few_random_pieces_are_those_of_all_and_say_so() -> None:
    rows = {piece: true_ms(piece) for piece in MEASURED[:60]}
    few = PieceFit(rows, MEASURED[: FEWEST_CHECKS - 1])
    assert not few.random and few.checks > FEWEST_CHECKS
    assert few.record is not None and few.record.random is False
    assert PieceFit(rows).half_width == few.half_width
    assert PieceFit(rows, MEASURED[:30]).random


@pytest.mark.parametrize(("wanted", "drawn"), [(21, 7), (30, 10), (45, 10), (100, 20)])
def test_of_few_pieces_more_are_drawn_at_random(wanted: int, drawn: int) -> None:
    chosen = select_pieces(WEIGHTS, wanted / len(WEIGHTS))
    assert chosen[:drawn] == tuple(random_order(WEIGHTS)[:drawn]) and len(chosen) == wanted
    assert chosen[: drawn + 1] != tuple(random_order(WEIGHTS)[: drawn + 1])


def test_predictions_that_rest_on_fits_say_how_much_and_are_wider_beyond_what_is_usual() -> None:
    whole = calibrate(replace(table_of(BLOCKS), networks=networks(20)))
    part = calibrate(replace(fill_table(PART, WEIGHTS), networks=networks(20)))
    assert whole.calibration is not None and part.calibration is not None
    exact, rough = (LatencyPredictor(table).predict(SPACE.blocks(ARCH)) for table in (whole, part))
    assert exact.fitted == 0 and exact.provenance == "measured-here"
    assert 0 < rough.fitted < 1 and rough.provenance == "calibrated-estimate"
    assert rough.ms == pytest.approx(exact.ms, rel=0.1)
    assert rough.high_ms / rough.ms >= math.exp(part.calibration.half_width) * (1 - 1e-9)
    # A resolution that was never measured: all of it is fitted, and none of the calibration's networks was.
    other = LatencyPredictor(whole).predict(ARCH.blocks(14, (224, 224)))
    assert other.fitted == pytest.approx(1.0)
    assert other.high_ms / other.ms > 1.01 * math.exp(whole.calibration.half_width)
    true = 0.3 + 1.1 * sum(map(true_ms, ARCH.blocks(14, (224, 224))))
    assert other.low_ms < true < other.high_ms


def test_nothing_is_inferred_from_one_kernel_to_another() -> None:
    fit = PieceFit({piece: true_ms(piece) for piece in MEASURED})
    block = next(piece for piece in MEASURED if "dwconv_k7" in piece.key)
    assert fit.knows(block)
    assert not fit.knows(piece_from_key(block.key.replace("dwconv_k7", "dwconv_k9")))
    with pytest.raises(MissingLayerError, match="dwconv_k9"):
        LatencyPredictor(PART).predict([piece_from_key(block.key.replace("dwconv_k7", "dwconv_k9"))])


def test_many_networks_have_the_prices_of_each_alone() -> None:
    genotypes = SPACE.sample_genotypes(np.random.default_rng(3), 50)
    for table in (PART, calibrate(replace(PART, networks=networks(12)))):
        many = LatencyPredictor(table).predict_genotypes(SPACE, genotypes)
        alone = LatencyPredictor(table)
        for i, genes in enumerate(genotypes):
            one = alone.predict(SPACE.blocks(SPACE.decode(genes)))
            assert (many.ms[i], many.low_ms[i], many.high_ms[i]) == pytest.approx(
                (one.ms, one.low_ms, one.high_ms)
            )


def test_strict_predictions_take_measurements_alone() -> None:
    blocks = SPACE.blocks(ARCH)
    with pytest.raises(MissingLayerError, match=r"lacks \d+ of the \d+ distinct blocks needed"):
        LatencyPredictor(PART, strict=True).predict(blocks)
    filled = fill_table(PART, WEIGHTS)
    assert LatencyPredictor(filled).predict(blocks).fitted > 0
    with pytest.raises(MissingLayerError, match=r"has estimates instead of measurements for .* --share 1"):
        LatencyPredictor(filled, strict=True).predict(blocks)
    assert LatencyPredictor(table_of(BLOCKS), strict=True).predict(blocks).fitted == 0


def test_an_unknown_form_is_an_error_that_names_it() -> None:
    table = table_of(tuple(p for p in MEASURED if "deconv" not in p.key))
    with pytest.raises(MissingLayerError, match="deconv_k4_s2"):
        LatencyPredictor(table).predict(SPACE.blocks(SPACE.largest()))
    with pytest.raises(MissingLayerError, match="deconv_k4_s2"):
        LatencyPredictor(table).latency_ms(SPACE, SPACE.encode(SPACE.largest()))


def test_a_block_is_the_sum_of_its_layers_where_only_they_were_measured() -> None:
    layers = SPACE.distinct_layers()
    table = table_of(layers)
    block = next(b for b in BLOCKS if b.name.startswith("stage"))
    assert LatencyPredictor(table).predict([block]).ms == pytest.approx(sum(map(true_ms, block.layers)))
    absent = block.layers[1]
    rest = table_of(tuple(layer for layer in layers if layer != absent))
    found = LatencyPredictor(rest).predict([block])
    assert found.ms == pytest.approx(sum(map(true_ms, block.layers)), rel=0.25)
    assert 0 < found.fitted < 1
    with pytest.raises(MissingLayerError, match="lacks 1 of the 1 distinct layers"):
        LatencyPredictor(rest, strict=True).predict([block])
    both = LatencyTable(PI, {**table.rows, block: make_row(7.0)})
    assert LatencyPredictor(both).predict([block]).ms == 7.0


def test_in_a_table_of_blocks_a_sum_of_layers_is_a_makeshift() -> None:
    """Engines fuse what is in a block: its layers' sum is no measurement of it."""
    first, second, *_ = (b for b in BLOCKS if b.name.startswith("stage"))
    layers = {layer: make_row(true_ms(layer)) for layer in first.layers}
    few = LatencyTable(PI, {second: make_row(true_ms(second)), **layers})
    found = LatencyPredictor(few).predict([first, second])
    total = sum(map(true_ms, first.layers))
    assert found.ms == pytest.approx(total + true_ms(second)), "nothing else is known of it"
    assert found.fitted == pytest.approx(total / found.ms) and found.provenance == "calibrated-estimate"
    with pytest.raises(MissingLayerError, match="estimates instead of measurements for 1 of"):
        LatencyPredictor(few, strict=True).predict([first, second])
    # Where blocks of its form were measured, the fit to them is better than the sum.
    absent = next(b for b in BLOCKS if b not in PART.rows and b.name.startswith("stage"))
    many = LatencyTable(PI, {**PART.rows, **{layer: make_row(9.0) for layer in absent.layers}})
    assert LatencyPredictor(many).predict([absent]).ms == pytest.approx(true_ms(absent), rel=0.3)
    assert is_fitted(fill_table(many, [absent]).rows[absent])


def test_blocks_are_what_they_hold_not_where_they_stand() -> None:
    block = BLOCKS[5]
    assert replace(block, name="elsewhere") == block and hash(replace(block, name="x")) == hash(block)
    assert Block.from_key(block.key) == block
