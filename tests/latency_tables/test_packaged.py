"""Tables that come with the package: sound, found after the user's own, called by their device."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables import (
    LatencyPredictor,
    LatencyTable,
    Target,
    available_tables,
    find_table,
    validate_table,
)
from latency_tables.catalogue import catalogue, describe
from latency_tables.compare import compare_tables, merge_tables
from latency_tables.published import Published, published_for, published_text, read_published
from latency_tables.roofline import Roofline
from latency_tables.table import device_table, is_packaged
from search_spaces import (
    InputError,
    MissingLayerError,
    get_arch,
    listed_networks,
    litepose_native,
    named_archs,
)
from search_spaces.deconv import DECONV_MBV2, DECONV_MBV3, deconv_arch

DEVICES = ("jetson-nano", "raspberry-pi-4", "snapdragon-855")
LITEPOSES = [arch for name, arch in named_archs().items() if name.startswith("litepose")]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=DEVICES)
def table(request: pytest.FixtureRequest) -> LatencyTable:
    return find_table(request.param)


def test_devices_are_all_there_is() -> None:
    packaged = {find_table(path).target.device for path in available_tables().values() if is_packaged(path)}
    assert packaged == set(DEVICES)


def test_they_hold_the_native_space_and_are_sound(table: LatencyTable) -> None:
    needed = [layer for joints in (14, 17) for layer in litepose_native(joints).distinct_layers()]
    needed += [layer for arch in LITEPOSES for layer in arch.layers(17)]
    path = device_table(table.target.device)
    assert path is not None and is_packaged(path)
    findings = validate_table(path, needed)
    assert [finding.message for finding in findings if finding.level == "error"] == []
    assert {finding.rule for finding in findings} == {"calibration"}  # few networks, and their error


def test_they_say_what_they_are(table: LatencyTable) -> None:
    assert table.provenances == {"calibrated-estimate": len(table)}
    assert {row.runs for row in table.rows.values()} == {0}
    assert table.target.runtime in ("tvm", "unstated") and table.target.threads == 0
    (session,) = table.sessions
    assert any("arXiv:2205.01271" in source for source in session["sources"])
    assert table.calibration is not None and table.roofline is not None
    assert (table.calibration.networks, table.calibration.coverage) == (9, 0.9)
    assert table.calibration.half_width == table.roofline.half_width
    # Of nine networks left out, the interval is as wide as the worst of them demands.
    assert np.exp(table.calibration.half_width) - 1 >= 0.999 * min(table.calibration.worst_error, 0.25)


def test_rows_are_the_rooflines(table: LatencyTable) -> None:
    assert table.roofline is not None
    rows = list(table.rows.items())[::50]
    np.testing.assert_allclose(
        [row.median_ms for _, row in rows], table.roofline.ms(x for x, _ in rows), rtol=1e-5
    )


def test_published_networks_lie_within_the_interval(table: LatencyTable) -> None:
    figures = [each for each in read_published() if each.device == table.target.device]
    assert len(figures) == 9
    own = [each for each in figures if each.arch]
    assert len(own) == 4
    for each in own:
        found = LatencyPredictor(table).predict(get_arch(each.arch).layers(14))
        assert found.low_ms <= each.ms <= found.high_ms
        assert found.provenance == "calibrated-estimate"


def test_a_users_own_table_of_the_device_answers_first(tmp_path: Path) -> None:
    packaged = find_table("raspberry-pi-4")
    own = replace(packaged, target=Target("raspberry-pi-4", "Cortex-A72", "ncnn", "fp32", 4))
    path = own.save(tmp_path / f"{own.name}.csv")
    assert device_table("raspberry-pi-4", [tmp_path]) == path
    assert find_table("raspberry-pi-4", [tmp_path]).target.runtime == "ncnn"
    assert find_table(packaged.name, [tmp_path]).target.runtime == "unstated"
    other = replace(own, target=replace(own.target, threads=2))
    other.save(tmp_path / f"{other.name}.csv")
    with pytest.raises(InputError, match=f"several.*'raspberry-pi-4': {other.name}, {own.name}; name one"):
        find_table("raspberry-pi-4", [tmp_path])
    # A name that is the beginning of a device's is not the device.
    assert device_table("raspberry-pi", [tmp_path]) is None
    same = packaged.save(tmp_path / "mine" / f"{packaged.name}.csv")
    assert find_table("raspberry-pi-4", [tmp_path / "mine"]) == packaged
    hidden = {
        entry.path: entry.hidden
        for entry in catalogue([tmp_path / "mine"])
        if entry.path.stem == packaged.name
    }
    assert [hidden.pop(same), *hidden.values()] == [False, True]


def test_an_unknown_device_is_told_which_there_are() -> None:
    with pytest.raises(InputError) as caught:
        find_table("jetson-orin")
    for word in ("'jetson-orin'", *DEVICES, "nas profile"):
        assert word in str(caught.value)


def test_every_data_file_travels_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    packages = {path.parent for path in (ROOT / "latency_tables").rglob("*.py")}
    for path in (ROOT / "latency_tables").rglob("*.*"):
        if path.suffix not in (".csv", ".yaml", ".json"):
            continue
        home = next(parent for parent in path.parents if parent in packages)
        assert any(fnmatch.fnmatch(str(path.relative_to(home)), pattern) for pattern in patterns), path


# -- rooflines in tables ----------------------------------------------------------------------------------


def test_a_tables_roofline_is_saved_compared_and_merged(table: LatencyTable, tmp_path: Path) -> None:
    path = table.save(tmp_path / "x.csv")
    assert LatencyTable.load(path) == table
    without = replace(table, roofline=None)
    assert compare_tables(table, table).same
    assert set(compare_tables(table, without).metadata) == {"roofline"}
    assert table.roofline is not None
    assert describe(table)["roofline"] == table.roofline.to_dict()
    assert merge_tables([table, table]).table.roofline == table.roofline
    mixed = merge_tables([table, without])
    assert mixed.table.roofline is None and mixed.rooflines_dropped == (0,)


def test_a_damaged_roofline_is_a_fault_of_the_file(table: LatencyTable, tmp_path: Path) -> None:
    path = table.save(tmp_path / "x.csv").with_suffix(".yaml")
    path.write_text(path.read_text().replace("fitted_on: networks", "fitted_on: guesses"))
    with pytest.raises(InputError, match=r"x.yaml': roofline: .*fitted_on.*'guesses'"):
        LatencyTable.load(path)
    assert [each.field for each in validate_table(path) if each.level == "error"] == ["roofline"]


# -- published figures --------------------------------------------------------------------------------------


def test_published_figures_are_found_by_network_and_device() -> None:
    found = published_for(get_arch("litepose-s"), "raspberry-pi-4")
    assert found is not None
    assert (found.model, found.ms, found.kind) == ("LitePose-S", 420.0, "table")
    assert found.to_dict()["provenance"] == "measured-by-others"
    large = published_for(get_arch("litepose-l"), "jetson-nano")
    assert large is not None and large.kind == "chart"
    assert published_for(get_arch("litepose-prune-s"), "raspberry-pi-4") is None
    assert published_for(get_arch("litepose-s"), "raspberry-pi-5") is None
    assert published_for(get_arch("litepose-s").replace(resolution=256), "raspberry-pi-4") is None


def test_published_figures_round_trip(tmp_path: Path) -> None:
    figures = read_published()
    assert len(figures) == 27 and {each.device for each in figures} == set(DEVICES)
    (tmp_path / "p.csv").write_text(published_text(figures))
    assert read_published(tmp_path / "p.csv") == figures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace(",420.0,", ",-1.0,"), ["ms", "-1.0", "line"]),
        (lambda text: text.replace(",420.0,", ",fast,"), ["ms", "'fast'", "line"]),
        (lambda text: text.replace(",table,", ",rumour,", 1), ["kind", "table, chart", "'rumour'"]),
        (lambda text: text.replace("model,", "modell,", 1), ["line 1", "columns", "model, arch"]),
        (lambda text: text + "a,b\n", ["7 fields"]),
        (lambda text: text.replace("jetson-nano", "", 1), ["device", "''"]),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: Callable[[str], str], words: list[str]) -> None:
    path = tmp_path / "p.csv"
    path.write_text(change(published_text(read_published())))
    with pytest.raises(InputError) as caught:
        read_published(path)
    for word in ["p.csv", *words]:
        assert word in str(caught.value)


def test_a_published_figure_needs_a_source() -> None:
    with pytest.raises(InputError, match="source is a text, not ''"):
        Published("X", "", "pi", 1.0, "table", "unstated", "")


def test_other_shapes_are_priced_by_the_roofline(table: LatencyTable) -> None:
    """The estimate goes on smoothly to sizes that the table has no rows for."""
    roofline = table.roofline
    assert isinstance(roofline, Roofline)
    ms = [
        float(roofline.ms(get_arch("litepose-s").layers(14, (size, size))).sum()) for size in (448, 480, 512)
    ]
    assert ms[0] < ms[1] < ms[2]
    assert ms[2] / ms[0] == pytest.approx((512 / 448) ** 2, rel=0.02)


def test_a_predictor_prices_what_has_no_row_by_the_roofline(table: LatencyTable) -> None:
    blocks = get_arch("litepose-s").blocks(14, (300, 400))
    assert table.missing(blocks) and table.roofline is not None and table.calibration is not None
    found = LatencyPredictor(table).predict(blocks)
    layers = [layer for block in blocks for layer in block.layers]
    assert found.ms == pytest.approx(table.roofline.ms(layers).sum(), rel=1e-4)
    assert found.high_ms / found.ms == pytest.approx(np.exp(table.calibration.half_width))
    assert found.provenance == "calibrated-estimate"
    with pytest.raises(MissingLayerError, match="lacks"):
        LatencyPredictor(table, strict=True).predict(blocks)


def test_operators_that_no_row_has_are_said_to_be_guesses(table: LatencyTable) -> None:
    """The rows are LitePose's: they know nothing of gates and hard-swish, however long the network takes."""
    predictor = LatencyPredictor(table)
    large = deconv_arch(DECONV_MBV3, 1024, (256,) * 3).blocks(17)
    found = predictor.predict(large)
    assert "no row of the table has hard-swish or squeeze-and-excitation" in found.beyond
    assert found.coverage is None and found.fitted == pytest.approx(1.0)
    plain = deconv_arch(DECONV_MBV2, 1024, (256,) * 3).blocks(17)
    assert "no row" not in predictor.predict(plain).beyond
    assert predictor.unseen(get_arch("litepose-s").blocks(17)) == ""


def test_families_that_an_estimate_was_not_fitted_on_get_no_probability(table: LatencyTable) -> None:
    """The error bar is of LitePose and two others; what a family left out came to is told instead."""
    assert table.roofline is not None
    assert set(table.roofline.families) == {"litepose", "higherhrnet", "efficient-hrnet"}
    worst = max(table.roofline.families.values())
    assert worst == table.sessions[0]["family_left_out_worst_factor"]
    predictor = LatencyPredictor(table)
    s, other = get_arch("litepose-s"), get_arch("simplebaseline-mbv2")
    assert predictor.predict(s.blocks(14), s.family.name).coverage == 0.9
    found = predictor.predict(other.blocks(17, (448, 448)), other.family.name)
    assert found.coverage is None and found.beyond.startswith("fitted on ")
    told = f"not on deconv-mbv2: of a family left out of the fit the error was up to a factor of {worst:.3g}"
    assert told in found.beyond
    hrnet, higher = (listed_networks()[name] for name in ("hrnet-w32", "higherhrnet-w16"))
    assert "not on hrnet" in predictor.predict_layout(hrnet.layout(17), hrnet.rules).beyond
    assert predictor.predict_layout(higher.layout(14), higher.rules).coverage == 0.9
    assert Roofline.from_dict(table.roofline.to_dict()) == table.roofline
    with pytest.raises(InputError, match="factors of at least 1"):
        replace(table.roofline, families={"litepose": 0.5})
