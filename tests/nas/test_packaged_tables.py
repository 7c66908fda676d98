"""Tables that come with the package, as commands tell of them and hold budgets against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables import LatencyPredictor, Target, find_table
from nas.asked import Asked
from nas.latency import UpperEnd, full_bounds, load_predictors
from nas.search.budgets import Like
from nas.search.objectives import latency, parse_constraints
from search_spaces import InputError, MissingLayerError, litepose_native
from tests.nas.conftest import Outcome

Nas = Callable[..., Outcome]
DEVICES = ("jetson-nano", "raspberry-pi-4", "snapdragon-855")
FULL = "raspberry-pi-4-unstated-unstated"


@pytest.mark.parametrize("device", DEVICES)
def test_cost_tells_estimate_interval_provenance_and_the_published_figure(
    box: Path, nas_: Nas, device: str
) -> None:
    told = nas_("cost", "litepose-s", "--latency", device, "--json")
    assert (told.code, told.err) == (0, "")
    ((name, found),) = json.loads(told.out)["latency"].items()
    assert name.startswith(device)
    assert found["low_ms"] < found["ms"] < found["high_ms"]
    assert (found["coverage"], found["provenance"]) == (0.9, "calibrated-estimate")
    published = found["published"]
    assert found["low_ms"] < published["ms"] < found["high_ms"]
    assert (published["provenance"], published["fitted_on_it"]) == ("measured-by-others", True)
    words = " ".join(nas_("cost", "litepose-s", "--latency", device).out.split())
    for word in (
        f"latency on {name} {found['ms']:.2f} ms ({found['low_ms']:.2f} to {found['high_ms']:.2f}",
        "with probability 90%, as far as 9 networks tell), calibrated-estimate",
        f"published on {device} {published['ms']:g} ms (measured-by-others",
        "; the estimate was fitted on it, too): ",
        "arXiv:2205.01271",
    ):
        assert word in words


def test_networks_beyond_those_that_an_estimate_was_fitted_on_are_told(box: Path, nas_: Nas) -> None:
    """The nine networks of the Raspberry Pi 4 take 109 to 1,414 ms; half of XS's pixels take less."""
    within = nas_("cost", "litepose-xs", "--latency", "raspberry-pi-4").out
    assert "as far as 9 networks tell" in within and "beyond" not in within
    told = nas_("cost", "litepose-xs", "--size", "128x128", "--latency", "raspberry-pi-4")
    words = " ".join(told.out.split())
    assert "beyond the 9 networks of 109 to 1.41e+03 ms that the interval rests on" in words
    assert "with probability" not in words
    found = json.loads(
        nas_("cost", "litepose-xs", "--size", "128x128", "--latency", "raspberry-pi-4", "--json").out
    )["latency"][FULL]
    assert found["coverage"] is None and found["networks"] == 9 and found["low_ms"] < found["high_ms"]


def test_a_published_figure_is_told_of_its_own_network_alone(box: Path, nas_: Nas) -> None:
    chart = " ".join(nas_("cost", "litepose-l", "--latency", "jetson-nano").out.split())
    assert "published on jetson-nano about 211.2 ms" in chart and "read off a chart" in chart
    for arguments in (("litepose-prune-s",), ("litepose-m", "--size", "256x256")):
        told = nas_("cost", *arguments, "--latency", "raspberry-pi-4", "--json")
        assert json.loads(told.out)["latency"][FULL]["published"] is None
        assert "published on" not in nas_("cost", *arguments, "--latency", "raspberry-pi-4").out


def test_an_unknown_device_is_told_the_known_ones(box: Path, nas_: Nas) -> None:
    told = nas_("cost", "litepose-s", "--latency", "raspbery-pi-4")
    assert told.code == 2 and told.err.count("\n") == 1
    for word in ("did you mean 'raspberry-pi-4'", *DEVICES, "nas profile"):
        assert word in told.err


def test_they_are_listed_shown_and_sound(box: Path, nas_: Nas) -> None:
    listed = json.loads(nas_("tables", "list", "--json").out)["tables"]
    assert {each["name"] for each in listed if each["packaged"]} == {each["name"] for each in listed}
    assert len(listed) == 3
    assert nas_("tables", "list").out.count("comes with the package") == 3
    shown = nas_("tables", "show", "jetson-nano").out
    for word in (
        "comes with the package",
        "threads not known",
        "estimated from a roofline fitted on 9 networks",
    ):
        assert word in " ".join(shown.split())
    told = nas_("tables", "validate", *DEVICES, "--for", "litepose-native", "--for", "litepose-xs")
    assert (told.code, told.err) == (0, "")
    assert told.out.count("0 errors") == 3 and "calibration.networks: is 9" in told.out


def test_a_budget_names_a_device_and_is_held_by_the_upper_end(box: Path) -> None:
    (bound,) = full_bounds(["80ms@raspberry-pi-4"])
    assert bound == f"80ms@{FULL}"
    (constraint,) = parse_constraints(max_latency=[bound], targets=[FULL])
    assert constraint.objective.target == FULL
    (predictor,) = load_predictors(["raspberry-pi-4"]).values()
    space = litepose_native(14)
    genotypes = np.stack([space.encode(arch) for arch in (space.largest(), space.smallest())])
    found = UpperEnd(predictor).latency_ms(space, genotypes)
    middle = predictor.latency_ms(space, genotypes)
    assert (found > 1.2 * middle).all()
    assert constraint.holds(found[1]) and not constraint.holds(found[0])


def test_a_bound_without_a_target_means_the_users_only_table(box: Path) -> None:
    assert full_bounds(["30ms"]) == ["30ms"]  # three packaged ones are nobody's choice
    packaged = find_table("raspberry-pi-4")
    own = replace(packaged, target=Target("raspberry-pi-4", "Cortex-A72", "ncnn", "fp32", 4))
    own.save(box / "tables" / f"{own.name}.csv")
    assert full_bounds(["30ms"]) == [f"30ms@{own.name}"]
    assert full_bounds(["30ms@raspberry-pi-4", f"30ms@{FULL}"]) == [f"30ms@{own.name}", f"30ms@{FULL}"]
    assert full_bounds(["30ms@nowhere", "30ms@"]) == ["30ms@nowhere", "30ms@"]
    two = replace(own, target=replace(own.target, threads=2))
    two.save(box / "tables" / f"{two.name}.csv")
    with pytest.raises(InputError, match="several latency tables are of 'raspberry-pi-4'"):
        full_bounds(["30ms@raspberry-pi-4"])
    assert LatencyPredictor(find_table("jetson-nano")).calibrated


def test_strict_tables_refuse_estimates(box: Path, nas_: Nas) -> None:
    told = nas_("cost", "litepose-s", "--latency", "raspberry-pi-4", "--strict-tables")
    assert told.code == 2 and told.err.count("\n") == 1
    for word in (FULL, "estimates instead of measurements", "conv_k3_s2_g1_3x448x448_32", "--share 1"):
        assert word in told.err
    with pytest.raises(MissingLayerError, match="estimates instead of measurements"):
        predictor = load_predictors([FULL], strict=True)[FULL]
        space = litepose_native(joints=14)
        UpperEnd(predictor).latency_ms(space, space.sample_genotypes(np.random.default_rng(0), 3))


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_within_the_budget_of_being_like_itself(device: str) -> None:
    """However the search sums the milliseconds that the budget is told from."""
    space = litepose_native(joints=14)
    (target,) = (bound.partition("@")[2] for bound in full_bounds([f"1ms@{device}"], None, None))
    predictor = load_predictors([target])[target]
    genotypes = space.sample_genotypes(np.random.default_rng(0), 60)
    prices = UpperEnd(predictor).latency_ms(space, genotypes)
    told = Asked({}, (), {target: predictor})._upper_ends(space)
    for genotype, price in zip(genotypes, prices, strict=True):
        like = Like("it", space.decode(genotype))
        (bound,) = like.bounds([latency(target)], 14, told)
        assert bound.holds(price) and not bound.holds(1.000001 * price)
