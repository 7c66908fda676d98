"""What stands beside a search: published networks at their true costs, their APs where these compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latency_tables import Calibration, LatencyPredictor, LatencyTable, Target
from latency_tables.table import Row
from nas.beside import Beside, beside, landmarks, latency_spans, published_data, same_images
from nas.latency import UpperEnd, load_predictors
from nas.recipe import DataSource, Recipe
from nas.search import MACS, PARAMS, SIZE, SearchResult, latency, search
from search_spaces import InputError, get_arch, space_from_config
from tests.nas import tiny
from tests.nas.problems import Noisy, small_space

SNAPDRAGON = "snapdragon-855-unstated-unstated"
PHONE = Target("pixel-9", "a phone", "litert", threads=4)


def phone(half_width: float = 0.1, ms_per_gmac: float = 20.0) -> LatencyPredictor:
    """Return a predictor for a phone that nothing was published for."""
    rows = {
        layer: Row(*[max(layer.macs / 1e9 * ms_per_gmac, 1e-6)] * 3, 9, "measured-here", "a test")
        for layer in small_space().distinct_layers()
    }
    fit = Calibration(0.0, 1.0, 20, 0.01, 0.02, 0.01, half_width, 0.9)
    return LatencyPredictor(LatencyTable(PHONE, rows, calibration=fit))


def of_one_layer() -> LatencyPredictor:
    """Return a predictor that can answer for no network."""
    layer = small_space().distinct_layers()[0]
    return LatencyPredictor(LatencyTable(PHONE, {layer: Row(1.0, 1.0, 1.0, 9, "measured-here", "a test")}))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny.recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return search(
        small_space(), Noisy(), storage=tmp_path_factory.mktemp("search") / "a.journal", trials=12,
        population=6, sampler="random", pricers=[UpperEnd(phone())],
    )  # fmt: skip


def test_published_networks_lie_where_they_cost(result: SearchResult) -> None:
    found = {mark.name: mark for mark in landmarks(MACS, result, {})}
    assert list(found) == ["litepose-xs", "litepose-s", "litepose-m", "litepose-l"]
    true = {"litepose-xs": 0.8829, "litepose-s": 3.6141, "litepose-m": 5.2637, "litepose-l": 9.9620}
    for name, mark in found.items():
        assert mark.cost / 1e9 == pytest.approx(true[name], abs=5e-5)
        assert mark.basis == "exact"
    crowd = published_data(14)
    assert crowd is not None and crowd.ap["litepose-s"] == found["litepose-s"].ap == 0.583
    coco = published_data(17)
    assert coco is not None and coco.ap["litepose-s"] == 0.568
    params = landmarks(PARAMS, result, {})
    assert params[0].cost == 1_675_552 and landmarks(SIZE, result, {})[0].cost == 4 * 1_675_552
    # A skeleton that nothing was published for: the costs are known, APs are not.
    other = landmarks(MACS, replace(result, joints=16), {})
    assert len(other) == 4 and all(mark.ap is None for mark in other)


def test_published_latencies_come_before_predicted_ones(result: SearchResult) -> None:
    predictors = {**load_predictors([SNAPDRAGON]), PHONE.name: phone()}
    known = landmarks(latency(SNAPDRAGON), result, predictors)
    assert [(mark.cost, mark.basis) for mark in known][:3] == [(each, "published") for each in (27, 76, 97)]
    assert known[1].words(latency(SNAPDRAGON)) == "litepose-s, 76 ms published"
    guessed = landmarks(latency(PHONE.name), result, predictors)
    # What the table can neither look up nor fit is left out.
    assert [mark.name for mark in guessed] == ["litepose-xs", "litepose-s"]
    expected = predictors[PHONE.name].predict(get_arch("litepose-s").blocks(14)).high_ms
    assert guessed[1].cost == pytest.approx(expected) and guessed[1].basis == "predicted"
    # Without a table, or with one that knows too little, nothing is made up.
    assert landmarks(latency("unknown"), result, predictors) == ()
    assert landmarks(latency(PHONE.name), result, {PHONE.name: of_one_layer()}) == ()


def test_intervals_are_those_of_the_table_that_the_search_saw(result: SearchResult) -> None:
    found, changed = latency_spans(result, {PHONE.name: phone()})
    assert changed == () and set(found[PHONE.name]) == {record.arch.id for record in result.evaluated}
    for record in result.evaluated:
        told = Beside(found).prediction(record, latency(PHONE.name))
        assert told is not None and told.high_ms == pytest.approx(record.latency_ms[PHONE.name])
        assert told.low_ms < told.ms < told.high_ms
        assert Beside(found).prediction(record, MACS) is None
    # Measured again since: the intervals would not be about what was searched.
    assert latency_spans(result, {PHONE.name: phone(ms_per_gmac=21)}) == ({}, (PHONE.name,))
    assert latency_spans(result, {PHONE.name: of_one_layer()}) == ({}, (PHONE.name,))
    assert latency_spans(result, {}) == ({}, ())


def test_aps_compare_on_the_same_images_only(result: SearchResult, recipe: Recipe) -> None:
    def made(file: str, count: int, **changes: object) -> bool:
        source = DataSource(annotations=Path("a") / file, images=Path("images"))
        evaluate = replace(recipe.evaluate, **{"protocol": "crowdpose", **changes})  # type: ignore[arg-type]
        own = replace(recipe, data=replace(recipe.data, search=source), evaluate=evaluate)
        told = {"images": f"{count} of annotation file '{file}' (0123)"}
        return same_images(own, replace(result, context=told))

    assert made("crowdpose_test.json", 8000)
    assert not made("crowdpose_val.json", 2000)
    assert not made("crowdpose_test.json", 7999)
    assert not made("crowdpose_test.json", 8000, protocol="coco")
    assert not made("crowdpose_test.json", 8000, images=500)
    assert not made("person_keypoints_val2017.json", 5000)  # of 17 joints, which this search has not
    assert not same_images(recipe, result)  # held out of the training images


def test_what_is_asked_for_is_shown(result: SearchResult, recipe: Recipe) -> None:
    predictors = {PHONE.name: phone()}
    around, changed = beside(result, recipe, predictors)
    assert changed == () and set(around.landmarks) == {MACS, PARAMS, latency(PHONE.name)}
    assert around.data is None and not around.comparable
    around, _ = beside(result, recipe, predictors, "published")
    assert around.data == published_data(14) and not around.comparable
    around, _ = beside(result, recipe, predictors, "none")
    assert not around.landmarks and around.latencies[PHONE.name]
    with pytest.raises(InputError, match=r"--reference is one of costs, published, none, not 'cost'"):
        beside(result, recipe, predictors, "cost")
    with pytest.raises(InputError, match="published for 14 and 17 joints, not 16"):
        beside(replace(result, joints=16, records=()), recipe, {}, "published")


def test_litepose_is_not_drawn_among_networks_of_another_family(recipe: Recipe, tmp_path: Path) -> None:
    """They see whole pictures, those of the deconv families one person whose place is told."""
    space = space_from_config(
        {
            "kind": "deconv-mbv2",
            "base": "deconv-reduced",
            "resolutions": [128],
            "multipliers": [1],
            "joints": 17,
        }
        | {"depths": "base", "kernels": "base", "expansions": "base", "last_widths": "base"}
    )
    found = search(space, Noisy(), storage=tmp_path / "a.journal", trials=4, population=2, sampler="random")
    source = DataSource(annotations=Path("person_keypoints_val2017.json"), images=Path("images"))
    coco = replace(recipe, data=replace(recipe.data, search=source))
    there = replace(found, context={"images": "5000 of annotation file 'person_keypoints_val2017.json'"})
    assert not same_images(coco, there)
    around, _ = beside(there, coco, {})
    assert not around.landmarks and around.data is None and not around.comparable
    with pytest.raises(
        InputError, match="LitePose's networks were published, and this search is of deconv-mbv2"
    ):
        beside(there, coco, {}, "published")
