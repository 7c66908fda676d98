"""``nas profile``: options against target files, whose networks are measured, what is told of fits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from latency_tables import local_target
from latency_tables.fit import FitRecord
from nas.latency import _fit_report, draw_networks, work_list
from search_spaces import get_arch, litepose_native, space_from_config
from tests.nas import tiny
from tests.nas.conftest import Outcome

HERE = local_target("onnxruntime", 1)
SMALL = litepose_native(joints=14, resolutions=(64,), multipliers=(0.5, 0.25))
OTHER = litepose_native(joints=17, resolutions=(96,), multipliers=(0.5, 0.25))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--runtime", "ncnn"),
            "contradicts the target file 'own.yaml', which says 'runtime: onnxruntime'",
        ),
        (("--precision", "int8"), "--precision int8 contradicts the target file"),
        (("--threads", 2), "which says 'threads: 1'; leave the option out, or change the file"),
        # Equal values are fine; then it is what shall be measured that is wrong.
        (("--threads", 1, "--runtime", "onnxruntime", "--precision", "fp32"), "'nothing' is no space"),
    ],
)
def test_options_and_target_files(
    options: tuple[object, ...], told: str, box: Path, nas_: Callable[..., Outcome]
) -> None:
    (box / "own.yaml").write_text(yaml.safe_dump(HERE.to_dict()))
    found = nas_("profile", "own.yaml", "--for", "nothing", *options)
    assert (found.code, found.out) == (2, "") and told in found.err
    assert found.err.count("\n") == 1


def test_another_processor_without_a_link_is_refused(box: Path, nas_: Callable[..., Outcome]) -> None:
    (box / "pi.yaml").write_text(yaml.safe_dump({**HERE.to_dict(), "processor": "Cortex-A76"}))
    found = nas_("profile", "pi.yaml", "--for", "litepose-xs", "--networks", 0)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    for words in ("'pi.yaml'", "'Cortex-A76'", f"'{HERE.processor}'", "add a 'link'", "this-machine"):
        assert words in found.err
    assert not (box / "tables").exists()


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (-1, "lies above 0 and is at most 1, not -1"),
        (1.2, "lies above 0 and is at most 1, not 1.2"),
        (0.8, "but a fit needs 20: take --share 1, all of them"),
    ],
)
def test_a_share_that_cannot_be(share: float, words: str, box: Path, nas_: Callable[..., Outcome]) -> None:
    found = nas_("profile", "--for", "litepose-xs", "--networks", 0, "--share", share)
    assert found.code == 2 and words in found.err.splitlines()[-1]
    assert "-100%" not in found.err and "or more" not in found.err


def test_joints_that_contradict_a_recipe_are_refused(box: Path, nas_: Callable[..., Outcome]) -> None:
    tiny.write(box)
    found = nas_("profile", "--for", "tiny.yaml", "--joints", 14)
    assert found.code == 2
    assert "--joints 14 contradicts 'tiny.yaml', whose networks have 17 joints" in found.err


DESCRIBED = """device: kitchen
processor: Cortex-A76
runtime: {runtime}
precision: fp32
threads: 4
link:
  ssh: pi@kitchen
"""


def test_a_description_heeds_what_it_is_told(
    box: Path, nas_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.describe_device", lambda _, runtime: DESCRIBED.format(runtime=runtime))
    describe = ("profile", "ssh:pi@kitchen", "--describe")
    assert nas_(*describe).out == DESCRIBED.format(runtime="onnxruntime")
    told = nas_(*describe, "--runtime", "openvino", "--precision", "int8", "--threads", 2)
    wanted = {"runtime": "openvino", "precision": "int8", "threads": 2}
    assert yaml.safe_load(told.out) == yaml.safe_load(DESCRIBED) | wanted
    assert json.loads(nas_(*describe, "--json").out)["link"] == {"ssh": "pi@kitchen"}
    for options, reason in (
        (("--threads", 5), "'ssh:pi@kitchen' has 4 processors, so not 5 threads"),
        (("--runtime", "torch", "--precision", "int8"), "'torch' is timed in fp32, not in 'int8'"),
        (("--runtime", "ncn"), "did you mean 'ncnn'?"),
        (("--networks", 12), "--networks has no meaning with it"),
        (("--for", "litepose-s"), "--for has no meaning with it"),
        (("-o", "x"), "--output has no meaning with it"),
    ):
        told = nas_(*describe, *options)
        assert (told.code, told.out) == (2, "") and reason in told.err


def test_networks_come_evenly_from_every_space() -> None:
    named = [(get_arch("litepose-xs"), 14)]
    found = draw_networks((SMALL, OTHER), named, 8)
    assert found[0] == named[0] and len(set(found)) == len(found) == 8
    joints = Counter(joints for arch, joints in found[1:])
    assert joints == {14: 4, 17: 3}
    for arch, number in found[1:]:
        assert arch in (SMALL if number == 14 else OTHER)
    # More networks add to those that may have been measured.
    assert draw_networks((SMALL, OTHER), named, 5) == found[:5]
    assert draw_networks((), named, 5) == named
    assert draw_networks((SMALL,), named, 0) == named


def test_a_space_gives_each_network_once() -> None:
    few = litepose_native(joints=14, resolutions=(64, 96), multipliers=(0.25,))
    found = draw_networks((few,), (), 50)
    assert len(found) == len(set(found)) == few.count() < 50


def test_every_space_named_is_profiled(box: Path) -> None:
    tiny.write(box)
    own = space_from_config(tiny.RECIPE["space"], joints=17)
    weights, named, spaces = work_list(["litepose-xs", "tiny.yaml", "litepose-native", "tiny.yaml"], 14)
    assert named == [(get_arch("litepose-xs"), 14)]
    assert spaces == (own, litepose_native(14))
    once, _, _ = work_list(["tiny.yaml"], 14)
    assert all(weights[block] >= often for block, often in once.items())
    assert sum(weights.values()) == pytest.approx(
        sum(own.block_frequencies().values())
        + sum(litepose_native(14).block_frequencies().values())
        + len(get_arch("litepose-xs").blocks(14))
    )


FIT = FitRecord(60, 12, True, 0.04, 0.2, 0.9)


def test_what_is_told_of_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert _fit_report(FIT) == {
        **{"fit_samples": 60, "fit_checks": 12, "fit_checks_random": True, "fit_median_error": 0.04},
        **{"fit_interval_factor": 1.2214, "fit_interval_coverage": 0.9},
    }
    assert capsys.readouterr().err == ""
    assert _fit_report(replace(FIT, random=False))["fit_checks_random"] is False
    assert "fewer than 10 of them were drawn at random" in capsys.readouterr().err
    assert _fit_report(None) == {} and "is not known" in capsys.readouterr().err
