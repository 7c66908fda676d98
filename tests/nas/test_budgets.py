"""Emitted networks on the targets of their budgets: predicted, held against the budget, measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_tables import LatencyTable, Target, Timing, get_runtime, local_target
from latency_tables.bench import LocalBench
from latency_tables.machine import available_threads
from latency_tables.profiler import CANARY, MEMORY_CANARY
from latency_tables.runtimes import OnnxRuntime
from latency_tables.table import Row
from nas import emitting
from nas.latency import measure_emitted, quantised_promise, random_network, why_not_here
from nas.latency_report import emitted_lines, published_line
from search_spaces import InputError, space_from_config
from supernet.checkpoint import save_network
from supernet.export import export_onnx
from tests.nas import tiny
from tests.nas.conftest import Outcome

SPACE = space_from_config(tiny.RECIPE["space"], joints=17)
FAST, INT8 = local_target("onnxruntime", 1), local_target("onnxruntime", 1, precision="int8")
PHONE = Target("pixel-9", "a phone", "litert", threads=4)


def save(run: Path, target: Target, ms: float, provenance: Any = "measured-here") -> None:
    row = Row(ms, ms, ms, 9, provenance, "a test")
    rows = dict.fromkeys(SPACE.distinct_layers(), row)
    LatencyTable(target, rows).save(run / "tables" / f"{target.name}.csv")


def test_the_budget_is_held_against_the_targets_own_runtime(
    trained: Path, nas_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(emitting, "measure_emitted", partial(measure_emitted, seconds=0.05))
    save(trained, FAST, 1e-8)  # so that nothing here is as fast as predicted
    save(trained, INT8, 50.0)
    save(trained, PHONE, 1.0)
    budgets = [f"1us@{FAST.name}", f"100s@{INT8.name}", f"1s@{PHONE.name}"]
    options = [each for budget in budgets for each in ("--max-latency", budget)]
    told = nas_("search", "run", "--evaluations", 2, "--name", "s", *options)
    assert (
        told.code == 0 and f"the budget on '{INT8.name}' is of int8, but AP is measured in fp32" in told.err
    )
    # The command's own budget goes before the study's; the others stay the study's.
    told = nas_("emit", "run", "--max-latency", f"2us@{FAST.name}", "-o", "net")
    card = json.loads(Path("net/card.json").read_text())
    assert card["notices"] == [quantised_promise(INT8)] and str(quantised_promise(INT8)) in told.err
    fast, int8, phone = (card["latency"][target.name] for target in (FAST, INT8, PHONE))
    assert fast["budget"] == {
        **{"ms": 0.002, "by": "this command"},
        **{"upper_end_within": True, "measured_within": False},
    }
    assert fast["measured_here"]["median_ms"] > 0.002 and not fast["measured_here"]["within_interval"]
    assert int8["budget"]["by"] == "search 's'" and int8["budget"]["measured_within"]
    assert int8["measured_here"]["median_ms"] > 0
    assert phone["measured_here"] is None and phone["budget"]["measured_within"] is None
    assert phone["not_measured"] == "it is another device, 'pixel-9'"
    said = dict(re.findall(rf"^(\w+) on {FAST.name} +(.*)$", told.out, re.MULTILINE))
    assert said["budget"] == "0.002 ms, by this command; the predicted upper end is within it"
    assert re.fullmatch(
        r"[\d.]+ ms here \(p10 .*, p90 .*, \d+ runs\): OVER the budget by [\d.]+%, above the predicted.*",
        said["measured"],
    )


def test_strict_tables_are_measurements_alone(trained: Path, nas_: Callable[..., Outcome]) -> None:
    save(trained, FAST, 0.1, "calibrated-estimate")
    budget = ("--max-latency", f"1s@{FAST.name}")
    assert nas_("search", "run", "--evaluations", 1, "--name", "s", *budget).code == 0
    told = nas_("emit", "run", *budget, "--strict-tables", "-o", "net")
    assert (told.code, told.out) == (2, "") and "has estimates instead of measurements" in told.err
    assert not Path("net").exists()


def test_a_budget_whose_table_is_gone_is_told() -> None:
    latencies: dict[str, Any] = {}
    lines = emitting._promises(latencies, {FAST.name: {"ms": 1.0, "by": "search 's'"}})
    assert lines == [
        f"the budget on '{FAST.name}', by search 's', could not be checked: no table answers for it any more"
    ]


@pytest.mark.parametrize("runtime", ["torch", "openvino", "ncnn", "litert"])
def test_every_runtime_times_what_was_emitted(runtime: str, tmp_path: Path, one_thread: None) -> None:
    if reason := get_runtime(runtime).unavailable():
        pytest.skip(reason)
    network = random_network(SPACE.smallest(), 17)
    save_network(tmp_path / "model.safetensors", network, {})
    export_onnx(network, tmp_path / "model.onnx")
    row = Row(1.0, 1.0, 1.0, 9, "measured-here", "a test")
    table = LatencyTable(local_target(runtime, 1), {SPACE.distinct_layers()[0]: row})
    found, pace = measure_emitted(tmp_path, table, seconds=0.05)
    assert pace is None, "the table does not tell its machine's speed"
    assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms and found.runs >= 10


def test_why_a_target_is_not_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    many, here = available_threads() + 1, FAST
    assert why_not_here(here) is None
    told = {
        Target("this-machine", "a 6502", "onnxruntime"): "another processor, 'a 6502'",
        Target("this-machine", here.processor, "onnxruntime", threads=many): f"it has {many} threads",
        Target("this-machine", here.processor, "onnxruntime", threads=0): "threads is at least 1",
        Target("this-machine", here.processor, "tensorrt"): "no runtime 'tensorrt'",
        Target("this-machine", here.processor, "torch", "int8"): "'torch' is timed in fp32",
    }
    for target, reason in told.items():
        assert reason in str(why_not_here(target))
    monkeypatch.setattr(OnnxRuntime, "unavailable", lambda self: "it is gone")
    assert "it is gone" in str(why_not_here(here))


PREDICTED = {
    **{"ms": 2.0, "low_ms": 1.8, "high_ms": 2.2, "coverage": 0.9, "provenance": "measured-here"},
    **{"calibrated": True, "fitted": 0.0, "target": FAST.to_dict(), "budget": None},
}


TABLE = LatencyTable(FAST, {SPACE.distinct_layers()[0]: Row(1.0, 1.0, 1.0, 9, "measured-here", "a test")})


def test_a_measurement_that_fails_leaves_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: object) -> Timing:
        raise InputError("no such operator")

    monkeypatch.setattr(emitting, "measure_emitted", fails)
    told = emitting._measured(tmp_path, PREDICTED, TABLE)
    assert told == {"measured_here": None, "not_measured": "no such operator"}


@pytest.mark.parametrize(
    ("budget", "median", "upper", "verdict"),
    [
        (2.5, 2.1, "within it", "within the budget, within the predicted interval"),
        (2.1, 2.15, "OVER it by 4.8%", "OVER the budget by 2.4%, within the predicted interval"),
        (2.5, 1.2, "within it", "within the budget, below the predicted interval"),
        (2.5, 2.3, "within it", "within the budget, above the predicted interval"),
    ],
)
def test_verdicts(
    budget: float, median: float, upper: str, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    latencies = {FAST.name: dict(PREDICTED)}
    assert emitting._promises(latencies, {FAST.name: {"ms": budget, "by": "this command"}}) == []
    monkeypatch.setattr(emitting, "measure_emitted", lambda *_: (Timing(median, median, median, 30), None))
    (value,) = latencies.values()
    lines = emitted_lines("T", value | emitting._measured(tmp_path, value, TABLE))
    assert lines["budget on T"].endswith(f"the predicted upper end is {upper}")
    assert f": {verdict}" in lines["measured on T"]


@pytest.mark.parametrize(
    ("median", "pace", "words"),
    [
        (
            2.4,
            1.2,
            "above the predicted interval: the machine is 20% slower than when it was profiled; at"
            " that speed it would be within",
        ),
        (3.4, 1.2, "at that speed it would be outside"),
        (1.5, 0.75, "below the predicted interval: the machine is 25% faster than when"),
        (2.4, 1.01, "above the predicted interval, though the machine is about as fast as when"),
    ],
)
def test_a_machine_at_another_speed_is_told(
    median: float, pace: float, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timing = Timing(median, median, median, 30)
    monkeypatch.setattr(emitting, "measure_emitted", lambda *_: (timing, pace))
    found = emitting._measured(tmp_path, PREDICTED, TABLE)
    assert words in emitted_lines("T", PREDICTED | found)["measured on T"]


def test_the_speed_now_is_held_against_the_tables(tmp_path: Path, one_thread: None) -> None:
    """A table whose canaries took half as long tells that the machine is slower now."""
    network = random_network(SPACE.smallest(), 17)
    save_network(tmp_path / "model.safetensors", network, {})
    export_onnx(network, tmp_path / "model.onnx")
    bench = LocalBench(get_runtime("onnxruntime"), 1)
    canaries = [bench.time(each, 0.02, 3) for each in (CANARY, MEMORY_CANARY)]
    times = [float(np.median(samples.ms)) / 2 for samples in canaries]
    speed = {
        **{"canaries": [CANARY.key, MEMORY_CANARY.key], "canaries_ms": times},
        **{"exponents": [0.5, 0.5], "network_exponents": [0.5, 0.5]},
    }
    table = replace(TABLE, sessions=({"date": "2026-01-01", "speed": speed},))
    _, pace = measure_emitted(tmp_path, table, seconds=0.05)
    assert pace is not None and 1.2 < pace < 4


def test_published_figures_are_told_as_exactly_as_they_are_known() -> None:
    value = {
        **{"ms": 1050.81, "provenance": "measured-by-others", "runtime": "unstated", "source": "slides"},
        **{"kind": "chart", "fitted_on_it": True},
    }
    assert published_line(value) == (
        "about 1051 ms (measured-by-others, read off a chart; runtime: unstated; the estimate was fitted on"
        " it, too): slides"
    )
    assert published_line({**value, "kind": "table", "ms": 27.0, "fitted_on_it": False}) == (
        "27 ms (measured-by-others; runtime: unstated): slides"
    )
