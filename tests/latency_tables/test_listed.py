"""Latency of networks that are known by their layers alone: rooflines answer, measurements do not."""

from __future__ import annotations

import numpy as np
import pytest

from latency_tables import LatencyPredictor, LatencyTable, Row
from latency_tables.published import published_for
from latency_tables.roofline import FEATURES, features, pass_features
from latency_tables.table import packaged_folder
from search_spaces import UnavailableError, listed_networks
from search_spaces.listed import Pass
from tests.latency_tables.fakes import LAYERS, TARGET

NETWORKS = listed_networks()
MEASURED = LatencyTable(TARGET, {LAYERS[0]: Row(1.0, 0.9, 1.1, 50, "measured-here", "test")})


def packaged(name: str) -> LatencyTable:
    return LatencyTable.load(packaged_folder() / f"{name}.yaml")


def test_a_pass_reads_and_writes_and_computes_nothing() -> None:
    found = dict(zip(FEATURES, pass_features([Pass("add", 100, 20, 30)])[0].tolist(), strict=True))
    assert {name: value for name, value in found.items() if value} == {
        "read": 0.06,
        "written": 0.06,
        "layers": 1.0,
    }
    assert pass_features([]).shape == (0, len(FEATURES))


@pytest.mark.parametrize("name", NETWORKS)
def test_rooflines_price_layers_and_passes(name: str) -> None:
    table = packaged("raspberry-pi-4-unstated-unstated")
    layout = NETWORKS[name].layout(14)
    found = LatencyPredictor(table).predict_layout(layout)
    assert table.roofline is not None
    sums = np.concatenate([features(layout.layers), pass_features(layout.passes)]).sum(axis=0)
    assert found.ms == pytest.approx(float(table.roofline.ms_of(sums[None])[0]))
    assert found.ms > table.roofline.ms(layout.layers).sum() or not layout.passes
    assert 0 < found.low_ms < found.ms < found.high_ms
    assert found.provenance == "calibrated-estimate"
    gated = any(layer.kind == "se" for layer in layout.layers)
    assert ("squeeze-and-excitation" in found.beyond) == gated


def test_what_is_much_slower_than_anything_known_says_so() -> None:
    table = packaged("raspberry-pi-4-unstated-unstated")
    found = LatencyPredictor(table).predict_layout(NETWORKS["higherhrnet-w48"].layout(17))
    assert "beyond the 9 networks" in found.beyond
    assert found.coverage is None


def test_measured_tables_and_strict_predictions_refuse() -> None:
    layout = NETWORKS["higherhrnet-w16"].layout(14)
    with pytest.raises(UnavailableError, match="says nothing of upsampling"):
        LatencyPredictor(MEASURED).predict_layout(layout)
    with pytest.raises(UnavailableError, match="measurements alone"):
        LatencyPredictor(packaged("jetson-nano-tvm-unstated"), strict=True).predict_layout(layout)


def test_published_latencies_are_found_by_any_of_a_networks_names() -> None:
    found = published_for(NETWORKS["higherhrnet-w24"], "raspberry-pi-4")
    assert found is not None
    assert found.ms == 1414.0
    other = published_for(NETWORKS["efficienthrnet-h-3"], "jetson-nano")
    assert other is not None
    assert other.ms == pytest.approx(111.24)
    assert published_for(NETWORKS["higherhrnet-w48"], "raspberry-pi-4") is None
