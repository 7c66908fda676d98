"""``nas verify``: the very file is timed where it will run, and held against what was promised."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nas.verifying
from latency_tables import RUNTIMES, LatencyTable, Target, local_target
from latency_tables.runtimes.base import file_digest
from latency_tables.table import Row
from nas.model_card import read_card, write_card
from nas.verifying import VerifySettings, verify
from search_spaces import Arch, InputError, RunError, UnavailableError, space_from_config
from search_spaces.files import write_yaml
from supernet.checkpoint import save_network
from supernet.export import export_onnx
from supernet.pose.skeleton import get_skeleton
from supernet.registry import build_network
from tests.latency_tables.devices import ssh_device
from tests.nas import top_down
from tests.nas.conftest import Outcome
from tests.supernet.tiny import space

SKELETON = get_skeleton("coco17")
TOLD = {"skeleton": SKELETON.to_json()}
QUICK = VerifySettings(seconds=0.05, rounds=2)


def emitted(folder: Path, arch: Arch) -> Path:
    network = build_network(arch, 17, torch.Generator().manual_seed(3)).eval()
    folder.mkdir(parents=True)
    save_network(folder / "model.safetensors", network, TOLD)
    export_onnx(network, folder / "model.onnx", metadata=TOLD)
    write_card(folder, {"id": arch.id, "arch": arch.to_json(), "skeleton": SKELETON.to_json()})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emitted(tmp_path_factory.mktemp("made") / "net", space().smallest())


@pytest.fixture
def net(made: Path, box: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An emitted folder ``net`` in the box."""
    monkeypatch.setattr(nas.verifying, "_DECODE_S", 0.01)
    shutil.copytree(made, box / "net")
    return Path("net")


def table(target: Target, ms: float, folder: Path = Path("tables")) -> None:
    """Write a table by which every layer of the network takes as long."""
    rows = {layer: Row(ms, ms, ms, 3, "measured-here", "test") for layer in space().smallest().layers(17)}
    LatencyTable(target=target, rows=rows).save(folder / f"{target.name}.csv")


def test_it_is_measured_and_held_against_prediction_and_budget(
    net: Path, nas_: Callable[..., Outcome]
) -> None:
    target = local_target("onnxruntime", 1)
    table(target, 1e-7)
    told = nas_("verify", net, target.name, "--max-ms", "1e-6", "--seconds", 0.05, "--rounds", 2)
    assert told.code == 1
    assert "NOT met: over it by" in told.out and "measured OUTSIDE of the interval" in told.out
    assert "1 person in the frame:" in told.out
    found = json.loads(nas_("verify", net, target.name, "--max-ms", "1e9", "--rounds", 2, "--json").out)
    assert found["budget"]["met"] and found["file"] == "model.onnx"
    assert found["predicted"]["provenance"] == "measured-here" and not found["within_interval"]
    assert found["measured"]["p10_ms"] <= found["measured"]["median_ms"] <= found["measured"]["p90_ms"]
    (decode,) = found["decode"]
    parts = found["measured"]["median_ms"] + decode["prepare_ms"] + decode["decode_ms"]
    assert decode["total_ms"] == pytest.approx(parts) and decode["figure_of_target"]
    assert read_card(net)["verified"] == [found]  # the newest of that file and target
    page = (net / "README.md").read_text()
    assert "## Verified on the target" in page and "Budget 1e+09 ms met: yes." in page


def test_the_cards_budget_counts_and_another_target_is_kept_beside(net: Path) -> None:
    target = local_target("onnxruntime", 1)
    card = read_card(net)
    budget = {"ms": 1e-6, "by": "this command", "upper_end_within": True, "measured_within": None}
    common = {"ms": 1.0, "low_ms": 1.0, "high_ms": 1.0, "provenance": "measured-here", "measured_here": None}
    write_card(net, {**card, "latency": {target.name: {**common, "budget": budget}}})
    first = verify(net, target.name, QUICK)
    assert first["budget"] == {"ms": 1e-6, "by": "nas emit", "met": False}
    assert first["predicted"] is None and first["within_interval"] is None
    second = verify(net / "model.safetensors", "this-machine", QUICK, runtime="torch", threads=1)
    assert second["budget"] is None and "written for torch from the weights" in second["notices"][0]
    assert [each["target"]["runtime"] for each in read_card(net)["verified"]] == ["onnxruntime", "torch"]


def test_the_file_that_fits_the_target_is_taken_or_the_command_that_makes_it_named(net: Path) -> None:
    table(Target("pi", "a processor", "onnxruntime"), 1.0)
    for target, options, why in (
        ("this-machine", {"runtime": "ncnn"}, "--format ncnn --precision fp32' makes one"),
        (
            "this-machine",
            {"precision": "int8"},
            "nas export net --data RECIPE --format onnx --precision int8",
        ),
        ("this-machine-onnxruntime-fp32-1t", {"threads": 2}, "--threads: the target"),
        ("pi-onnxruntime-fp32-1t", {}, "name its target file, such as pi.yaml, whose 'link'"),
        ("pi", {}, "name its target file, such as pi.yaml, whose 'link'"),
        ("this-machin", {}, "there is no target 'this-machin'; did you mean 'this-machine'"),
    ):
        if RUNTIMES[options.get("runtime", "onnxruntime")].unavailable():
            continue
        with pytest.raises(InputError, match=why):
            verify(net, target, QUICK, **options)
    with pytest.raises(InputError, match=r"is no file for onnxruntime, which takes \.onnx"):
        (net / "model.tflite").write_bytes(b"TFL3")
        verify(net / "model.tflite", "this-machine", QUICK)
    with pytest.raises(InputError, match="there is no model 'nowhere'"):
        verify(Path("nowhere"), "this-machine", QUICK)
    shutil.copy(net / "model.onnx", "alone.onnx")
    assert verify(Path("alone.onnx"), "this-machine", QUICK)["file"] == "alone.onnx"
    assert "verified" not in read_card(net)


def test_a_file_that_is_not_the_certified_one_is_not_timed_under_its_name(net: Path) -> None:
    (net / "exports").mkdir()
    file = net / "exports" / "model-fp32.onnx"
    shutil.copy(net / "model.onnx", file)
    digests = {file.name: file_digest(file), "model-fp32.bin": "0" * 64}
    told = {"format": "onnx", "runtime": "onnxruntime 1.2.3", "precision": "fp32", "within_tolerance": True}
    export: dict[str, Any] = {**told, "file": "exports/model-fp32.onnx", "sha256": digests}
    card = read_card(net)
    write_card(net, {**card, "exports": [export]})
    for model in (net, file):
        with pytest.raises(InputError, match=r"model-fp32\.bin' is gone.*make it again by the same"):
            verify(model, "this-machine", QUICK, threads=1)
    del digests["model-fp32.bin"]
    write_card(net, {**card, "exports": [export]})
    assert verify(net, "this-machine", QUICK, threads=1)["file"] == "exports/model-fp32.onnx"
    assert "made again since" not in (net / "README.md").read_text()
    # Another file in its place: a verification of the former one is marked, and the new one not timed.
    file.write_bytes(file.read_bytes() + b"\0")
    for model in (net, file):
        with pytest.raises(InputError, match=r"model-fp32\.onnx' is not the file that was certified"):
            verify(model, "this-machine", QUICK, threads=1)
    card = read_card(net)
    card["exports"][0]["sha256"] = {file.name: file_digest(file)}
    write_card(net, card)
    assert "made again since: this is of the former one" in (net / "README.md").read_text()


def test_an_export_is_taken_as_it_is_unless_it_missed_its_tolerance(net: Path) -> None:
    (net / "exports").mkdir()
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(net / "model.onnx", net / "exports" / name)

    def entry(file: str, within: bool, **more: Any) -> dict[str, Any]:
        told = {"format": "onnx", "runtime": "onnxruntime 1.2.3", "precision": "int8", "date": "2026"}
        return {"file": file, **told, "within_tolerance": within, **more}

    shutil.copy(net / "model.onnx", net / "exports" / "c.onnx")
    size = list(space().smallest().size)
    exports = [
        entry("a.onnx", True, size=size, batch=1, peaks=False),
        entry("exports/b.onnx", False),
        entry("../net.onnx", True),
        entry("exports/c.onnx", True, date="2027", peaks=True),
    ]
    write_card(net, {**read_card(net), "exports": exports})
    found = verify(net, "this-machine", QUICK, precision="int8", threads=1)
    assert found["file"] == "exports/a.onnx" and found["target"]["precision"] == "int8"
    by_name = verify(net / "exports" / "b.onnx", "this-machine", QUICK, precision="int8", threads=1)
    assert by_name["file"] == "exports/b.onnx"
    with pytest.raises(InputError, match=r"is in int8, but the target '.*' in fp32"):
        verify(net / "exports" / "b.onnx", "this-machine", QUICK)
    write_card(net, {**read_card(net), "exports": exports[1:]})
    with pytest.raises(InputError, match="has no int8 file for onnxruntime"):
        verify(net, "this-machine", QUICK, precision="int8")


def test_the_newest_export_is_the_one_with_the_latest_date(net: Path) -> None:
    (net / "exports").mkdir()
    for name in "abc":
        shutil.copy(net / "model.onnx", net / "exports" / f"{name}.onnx")
    told = {"format": "onnx", "runtime": "onnxruntime 1", "precision": "fp32", "within_tolerance": True}

    def newest(*dates: str | None) -> str:
        exports = [{**told, "file": f"exports/{name}.onnx", "date": date} for name, date in zip("abc", dates)]
        write_card(net, {**read_card(net), "exports": exports})
        found = nas.verifying._exported(net, space().smallest(), local_target("onnxruntime", 1))
        assert found is not None
        return found.stem

    assert newest("2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00", None) == "a"
    assert newest("2026-01-01", "2026-01-01", "2025-01-01") == "b"
    assert newest(None, None, None) == "c"


def test_the_card_tells_the_emitted_files_from_others(net: Path, nas_: Callable[..., Outcome]) -> None:
    digests = {name: file_digest(net / name) for name in ("model.onnx", "model.safetensors")}
    write_card(net, {**read_card(net), "sha256": digests})
    assert verify(net, "this-machine", QUICK, threads=1)["file_sha256"] == digests["model.onnx"]
    assert nas_("load", net).code == nas_("load", net / "model.onnx").code == 0
    (net / "model.onnx").write_bytes((net / "model.onnx").read_bytes() + b"\0")
    for words in (("verify", net, "this-machine"), ("verify", net / "model.onnx", "this-machine")):
        told = nas_(*words)
        assert told.code == 2 and "model.onnx' is not the file that was certified" in told.err
    assert "make it again by the same 'nas emit'" in nas_("load", net / "model.onnx").err
    assert nas_("load", net).code == 0
    network = build_network(space().smallest(), 17, torch.Generator().manual_seed(4)).eval()
    save_network(net / "model.safetensors", network, TOLD)
    for call in (nas.load, nas.predictor, lambda path: verify(path, "this-machine", QUICK, runtime="torch")):
        with pytest.raises(InputError, match=r"model\.safetensors' is not the file that was certified"):
            call(net)
    card = read_card(net)
    assert "made again since" not in (net / "README.md").read_text()
    write_card(net, {**card, "sha256": {"model.onnx": file_digest(net / "model.onnx")}})
    assert "made again since" in (net / "README.md").read_text()


def test_a_file_that_changes_while_it_is_timed_is_not_told_of(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = nas.verifying.measure_rounds

    def changing(*given: Any, **options: Any) -> Any:
        found = measure(*given, **options)
        (net / "model.onnx").write_bytes(b"made anew")
        return found

    monkeypatch.setattr(nas.verifying, "measure_rounds", changing)
    with pytest.raises(RunError, match=r"model\.onnx' was changed while it was timed"):
        verify(net, "this-machine", QUICK, threads=1)
    assert "verified" not in read_card(net)


def test_a_file_in_fp16_is_timed_as_it_is_under_fp32_only(net: Path) -> None:
    (net / "exports").mkdir()
    shutil.copy(net / "model.onnx", net / "exports" / "model-fp16.onnx")
    told = {"format": "onnx", "runtime": "onnxruntime 1", "precision": "fp16", "within_tolerance": True}
    write_card(net, {**read_card(net), "exports": [{**told, "file": "exports/model-fp16.onnx"}]})
    found = verify(net / "exports" / "model-fp16.onnx", "this-machine", QUICK, threads=1)
    assert "the file is in fp16, in which onnxruntime has no targets" in found["notices"][0]
    with pytest.raises(InputError, match=r"is in fp16, but the target '.*' in int8; name a target in fp32"):
        verify(net / "exports" / "model-fp16.onnx", "this-machine", QUICK, precision="int8")
    with pytest.raises(UnavailableError, match="name the file in fp16 itself, and a target in fp32"):
        verify(net, "this-machine", QUICK, precision="fp16")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"exports": [3]}, "'exports' is a list of mappings"),
        ({"verified": {"file": 1}}, "'verified' is a list of mappings"),
        ({"skeleton": None}, "'skeleton' is a mapping"),
        ({"latency": []}, "'latency' is a mapping"),
        ({"skeleton": {"joints": 17}}, "'joints' is a list of names, not 17"),
        ({"latency": {"NAME": {"budget": {"ms": "soon"}}}}, "the budget on '.*' is {'ms': 'soon'}"),
        ({"arch": {"family": "nobody"}}, "'arch'"),
    ],
)
def test_damaged_parts_of_a_card_are_named(net: Path, change: dict[str, Any], why: str) -> None:
    text = json.dumps(change).replace("NAME", local_target("onnxruntime", 1).name)
    card = {**json.loads((net / "card.json").read_text()), **json.loads(text)}
    (net / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=why):
        verify(net / "model.onnx", "this-machine", QUICK, threads=1)


def test_a_machine_that_is_not_this_one_is_not_measured_in_its_place(net: Path) -> None:
    table(replace(local_target("onnxruntime", 1), processor="another one"), 1.0)
    with pytest.raises(UnavailableError, match="was profiled on another processor, 'another one'"):
        verify(net, "this-machine-onnxruntime-fp32-1t", QUICK)


def test_a_top_down_network_runs_once_for_each_person(tmp_path: Path, box: Path) -> None:
    arch = space_from_config(top_down.SPACE, joints=17).smallest()
    emitted(box / "one", arch)
    found = verify(Path("one"), "this-machine", replace(QUICK, people=3), threads=1)
    (decode,) = found["decode"]
    assert decode["network_passes"] == 3
    assert decode["total_ms"] >= 3 * found["measured"]["median_ms"]


def test_over_ssh_it_is_the_devices_time_and_decoding_is_said_to_be_ours(
    net: Path, tmp_path_factory: pytest.TempPathFactory, nas_: Callable[..., Outcome]
) -> None:
    with ssh_device(tmp_path_factory.mktemp("device")) as device:
        target = Target("kitchen-pi", "a processor", "onnxruntime", threads=1)
        table(target, 1.0)
        link = {"ssh": "device", "python": sys.executable, "folder": str(device.home)}
        write_yaml("kitchen.yaml", {**target.to_dict(), "link": link})
        told = nas_("verify", net, "kitchen.yaml", "--seconds", 0.05, "--rounds", 2)
        assert told.code == 0, told.err
        assert "kitchen-pi-onnxruntime-fp32-1t (a processor), over device" in told.out
        assert "timed on THIS machine, not on the device" in " ".join(told.out.split())
        (found,) = read_card(net)["verified"]
        assert not found["decode"][0]["figure_of_target"] and found["over"] == "device"
        write_yaml("gone.yaml", {**target.to_dict(), "link": {**link, "ssh": "locked"}})
        told = nas_("verify", net, "gone.yaml")
        assert told.code == 2 and told.err.count("\n") >= 1
        assert read_card(net)["verified"] == [found]


def test_damaged_settings_and_cards_are_refused_by_name(net: Path, nas_: Callable[..., Outcome]) -> None:
    for options, why in (
        ({"max_ms": 0.0}, "--max-ms is a positive number"),
        ({"seconds": 0.0}, "--seconds is positive"),
        ({"people": 31}, "--people is a number from 0 to 30"),
    ):
        with pytest.raises(InputError, match=why):
            VerifySettings(**options)
    (net / "card.json").write_text("{")
    told = nas_("verify", net, "this-machine")
    assert told.code == 2 and "model card 'net/card.json' is not valid JSON" in told.err
