"""Targets: names, YAML, and honest words about this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latency_tables import Target, local_target, read_target, write_target
from latency_tables.machine import available_threads, processor_name
from latency_tables.target import elsewhere
from search_spaces import InputError


def test_the_name_tells_everything_that_timings_depend_on() -> None:
    assert Target("raspberry-pi-4", "Cortex-A72", "ncnn", "int8", 4).name == "raspberry-pi-4-ncnn-int8-4t"


def test_threads_that_a_source_does_not_tell_are_not_made_up() -> None:
    assert Target("jetson-nano", "GPU", "tvm", "unstated", 0).name == "jetson-nano-tvm-unstated"


def test_yaml_round_trip(tmp_path: Path) -> None:
    target = Target("jetson-nano", "128 Maxwell cores: 0.92 GHz", "tensorrt", "fp16", 1)
    write_target(tmp_path / "target.yaml", target)
    assert read_target(tmp_path / "target.yaml") == target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "My Machine"}, ["device", "My Machine"]),
        ({"runtime": ""}, ["runtime"]),
        ({"processor": "two\nlines"}, ["processor"]),
        ({"threads": -1}, ["threads", "-1"]),
        ({"threads": True}, ["threads", "True"]),
        ({"threads": "2"}, ["threads", "'2'"]),
        ({"thread": 2}, ["thread", "did you mean 'threads'"]),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    given = {"device": "pi", "processor": "Cortex", "runtime": "ncnn", **changes}
    with pytest.raises(InputError) as caught:
        Target.from_dict(given, "target file 'x.yaml'")
    for word in ["x.yaml", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["device", "processor", "runtime"])
def test_a_missing_field_is_named(key: str) -> None:
    given = {"device": "pi", "processor": "Cortex", "runtime": "ncnn"}
    del given[key]
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        Target.from_dict(given)


def test_the_local_target_describes_this_machine() -> None:
    target = local_target("onnxruntime")
    assert target.threads == available_threads()
    assert target.processor == processor_name()
    assert target.name == f"this-machine-onnxruntime-fp32-{target.threads}t"


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(InputError, match=rf"at most {available_threads()} threads, not 4096"):
        local_target("onnxruntime", threads=4096)


def test_this_machine_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.target.processor_name", lambda: "Xeon(R) Gold 6130")
    monkeypatch.setattr("latency_tables.target.system_name", lambda: "Linux 6.6.31 x86_64")
    monkeypatch.setattr("latency_tables.target.available_threads", lambda: 4)
    here = Target("this-machine", "Xeon(R) Gold 6130", "onnxruntime", "fp32", 4)
    session = {"processor": "Xeon(R) Gold 6130", "system": "Linux 5.10.0 x86_64"}  # another kernel
    assert elsewhere(here, [session, {}]) == ""
    for target, sessions, words in (
        (replace(here, processor="Cortex-A72"), [], "measured on 'Cortex-A72', and here is 'Xeon"),
        (here, [session, {**session, "processor": "EPYC 7B13"}], "measured on 'EPYC 7B13'"),
        (here, [{**session, "system": "Darwin 23.1 arm64"}], "measured on 'Darwin 23.1 arm64'"),
        (here, [{**session, "system": ""}], "measured on ''"),
        (replace(here, threads=8), [session], "of 8 threads, and here are 4 processors"),
    ):
        assert words in elsewhere(target, sessions)
    assert elsewhere(replace(here, device="pi", processor="Cortex-A72"), []) == ""
