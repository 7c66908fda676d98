"""The command line: what it prints, and that every mistake is one clear line with exit code 2."""

from __future__ import annotations

import errno
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import nas.searching
from latency_tables import LatencyTable, Target
from latency_tables.table import Row
from nas.cli import app, main
from search_spaces import get_arch, write_arch
from supernet.checkpoint import save_network
from supernet.pose.synthetic import write_dataset
from supernet.registry import build_network
from tests.nas import tiny
from tests.nas.conftest import Outcome

COMMANDS = (
    *("demo", "train", "trust", "search", "profile", "plot", "emit", "cost", "eval", "spaces"),
    *("load", "verify", "predict", "time", "quantise", "export", "import-checkpoint"),
    *("data check", "data fetch"),
    *("tables export-trtexec", "tables import-trtexec"),
    "report",
    *(f"tables {word}" for word in ("list", "show", "validate", "diff", "merge")),
    *(f"runs {word}" for word in ("list", "show", "compare", "resume", "prune", "relocate")),
)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file's content by name; a lock that is free says nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# -- help --------------------------------------------------------------------------------------------------


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"litepose-nas {metadata.version('litepose-nas')}, torch ")


def test_the_commands_are_those_promised() -> None:
    groups = {"": app, **{f"{group.name} ": group.typer_instance for group in app.registered_groups}}
    names = {
        prefix + (command.name or (command.callback.__name__ if command.callback else ""))
        for prefix, group in groups.items()
        if group is not None
        for command in group.registered_commands
    }
    assert names == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_the_parser_takes(nas_: Callable[..., Outcome], command: str) -> None:
    told = nas_(*command.split(), "--help")
    assert told.code == 0 and told.err == ""
    text = " ".join(told.out.split())
    found = re.search(rf"Example: nas ({command}(?: [^ ╭─]+)*)", text)
    assert found is not None
    options = re.findall(r"--[a-z-]+", found.group(1))
    assert all(re.search(rf"{option}\b", text[found.end() :]) for option in options)


def test_help_of_the_whole(nas_: Callable[..., Outcome]) -> None:
    told = nas_("--help")
    assert told.code == 0
    assert all(command.split()[0] in told.out for command in COMMANDS)
    assert "nas demo" in told.out


def test_help_and_costs_answer_without_loading_torch() -> None:
    code = (
        "import sys; from nas.cli import main\n"
        "try: main(['cost', 'litepose-s', '--json'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "False"
    assert json.loads(found.stdout)["params"] == 2_731_240


# -- cost and spaces ---------------------------------------------------------------------------------------


def test_cost_prints_whole_numbers(nas_: Callable[..., Outcome]) -> None:
    told = nas_("cost", "litepose-s", "--joints", 14, "--json")
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    for key in ("params", "macs", "macs_paper", "resolution", "height", "width", "joints"):
        assert type(found[key]) is int, key
    assert found["params"] == 2_731_240
    assert round(found["macs"] / 1e9, 4) == 3.6141
    assert round(found["macs_paper"] / 1e9, 2) == pytest.approx(4.98, abs=0.011)
    assert found["resolution"] == found["height"] == found["width"] == 448


def test_cost_of_a_file_at_another_size_with_its_layers(box: Path, nas_: Callable[..., Outcome]) -> None:
    write_arch(box / "mine.json", get_arch("litepose-xs"))
    told = nas_("cost", "mine.json", "--size", "256x512", "--layers", "--json")
    found = json.loads(told.out)
    assert (found["resolution"], found["height"], found["width"]) == (256, 256, 512)
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    square = json.loads(nas_("cost", "litepose-xs", "--json").out)
    assert found["macs"] == 2 * square["macs"]


def test_cost_for_people(nas_: Callable[..., Outcome]) -> None:
    told = nas_("cost", "litepose-s")
    assert told.code == 0
    assert "2,731,240" in told.out and "3.6141 G" in told.out


def test_cost_of_a_network_that_is_known_by_its_layers_alone(nas_: Callable[..., Outcome]) -> None:
    target = "raspberry-pi-4-unstated-unstated"
    told = nas_("cost", "higherhrnet-w24", "--latency", target, "--layers", "--json")
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert found["arch"] is None and found["listed"]["published"][0]["macs_g"] == 25.3
    assert found["passes"] and found["height"] == found["resolution"] == 512
    assert found["latency"][target]["published"]["ms"] == 1414.0
    words = nas_("cost", "higherhrnet-w48", "--joints", 17).out
    assert "known by its layers alone" in words and "154.3 G" in words and "149.4688 G" in words
    assert "upsample of" in nas_("cost", "higherhrnet-w16", "--layers", "--size", "64x64").out


def test_spaces(nas_: Callable[..., Outcome]) -> None:
    told = nas_("spaces", "--json")
    found = json.loads(told.out)
    native = next(space for space in found["spaces"] if space["kind"] == "litepose-native")
    assert (native["networks"], native["nominal"]) == (245_760, 327_680)
    assert found["archs"]["litepose-xs"]["params"] == 1_675_552
    assert found["listed"]["higherhrnet-w48"]["size"] == [640, 640]
    words = nas_("spaces").out
    assert "245,760" in words and "lightweight-openpose" in words


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from nas.cli import main; main(['spaces', '--json'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


# -- mistakes ----------------------------------------------------------------------------------------------


def a_table(folder: Path) -> str:
    """Write a latency table that has few layers; return its target's name."""
    layers = get_arch("litepose-xs").layers(14)[:5]
    target = Target("test-phone", "a chip", "onnxruntime")
    row = Row(median_ms=1.0, p10_ms=0.9, p90_ms=1.1, runs=9, provenance="measured-by-others", source="a test")
    LatencyTable(target=target, rows=dict.fromkeys(layers, row)).save(folder / f"{target.name}.csv")
    return target.name


@pytest.fixture
def shop(box: Path, nas_: Callable[..., Outcome]) -> Path:
    """A folder full of things that look right and are not."""
    (box / "malformed.json").write_text('{"family": "litepose",\n  "resolution": }')
    (box / "list.json").write_text("[1, 2]")
    (box / "binary.json").write_bytes(b"\x89PNG\xff\xfe")
    arch = get_arch("litepose-xs").to_json()
    (box / "misspelt.json").write_text(json.dumps({**arch, "stem_witdh": 16}))
    (box / "incomplete.json").write_text(json.dumps({k: arch[k] for k in list(arch)[:-2]}))
    (box / "malformed.yaml").write_text("name: [1\ndata: 2\n")
    (box / "mine").mkdir()
    (box / "mine" / "thesis.tex").write_text("years of work")
    (box / "file").write_text("a file")
    (box / "empty").mkdir()
    (box / "other.csv").write_text("a,b\n1,2\n")
    (box / "other.yaml").write_text("format: 1\n")
    a_table(box / "tables")
    tiny.write(box)
    return box


COST: list[tuple[str, str]] = [
    ("cost", "Missing argument 'arch'; see 'nas cost --help'"),
    ("cost litepose-z", "'litepose-z' is neither a named arch nor an arch file; did you mean 'litepose-"),
    ("cost gone.json", "'gone.json' does not exist"),
    ("cost mine", "'mine' is a directory"),
    ("cost malformed.json", "'malformed.json' is not valid JSON: Expecting value at line 2, column 17"),
    ("cost list.json", "'list.json' must be a JSON object, not list"),
    ("cost binary.json", "'binary.json' is not a UTF-8 text file"),
    ("cost misspelt.json", "'stem_witdh'; did you mean 'stem_width'?"),
    ("cost incomplete.json", "incomplete.json"),
    (f"cost {'a' * 300}", "File name too long"),
    ("cost litepose-s --size 12y", "--size is HEIGHTxWIDTH in pixels such as 448x448, not '12y'"),
    ("cost litepose-s --size ²x4", "--size"),
    (f"cost litepose-s --size {'9' * 5000}", "--size"),
    ("cost litepose-s --size 0x0", "0"),
    ("cost litepose-s --joints 0", "--joints"),
    ("cost litepose-s --joints many", "--joints"),
    ("cost litepose-s --jsno", "--json"),
    ("cost litepose-s extra", "extra"),
    ("cost litepose-s --latency nowhere-onnxruntime-fp32-1t", "there is no latency table 'nowhere"),
    (
        "cost litepose-s --latency test-phone-onnxruntime-fp32-1",
        "did you mean 'test-phone-onnxruntime-fp32-1t'",
    ),
    ("cost litepose-s --latency test-phone-onnxruntime-fp32-1t", "lacks"),
    ("cost litepose-s --latency other --tables .", "other"),
    ("cost higherhrnet-w4", "did you mean 'higherhrnet-w48'?"),
    ("cost higherhrnet-w48 --size 31x64", "at least 32 px on each side, not 31x64"),
    ("cost higherhrnet-w48 --latency test-phone-onnxruntime-fp32-1t", "known by its layers alone"),
    ("profile this-machine --for higherhrnet-w48", "'higherhrnet-w48' is known by its layers alone"),
    ("time higherhrnet-w48", "'higherhrnet-w48' is known by its layers alone"),
    ("load higherhrnet-w48", "'higherhrnet-w48' is known by its layers alone"),
    ("spaces --joints -1", "--joints"),
    ("cots litepose-s", "Did you mean 'cost'"),
]
TRAIN: list[tuple[str, str]] = [
    ("train", "Missing argument"),
    ("train gone.yaml", "recipe 'gone.yaml' does not exist"),
    ("train mine", "recipe 'mine' is a directory"),
    ("train malformed.yaml", "'malformed.yaml' is not valid YAML"),
    ("train malformed.json", "recipe 'malformed.json': the recipe has an unknown key 'family'"),
    ("train tiny.yaml --set epochs", "--set takes key=value"),
    ("train tiny.yaml --set train.epohcs=3", "unknown key 'epohcs'; did you mean 'epochs'?"),
    ("train tiny.yaml --set train.epochs=three", "train.epochs is a whole number, not 'three'"),
    ("train tiny.yaml --set train.device=cuda:77", "device 'cuda:77' was asked for, but torch sees"),
    ("train tiny.yaml --set train.device=tpu", "unknown device 'tpu'"),
    ("train tiny.yaml --set data.skeleton=crowdpose41", "did you mean 'crowdpose14'?"),
    ("train tiny.yaml --set space.joints=14", "'joints' is 14, but the skeleton has 17"),
    ("train tiny.yaml --set init=gone.safetensors", "gone.safetensors' does not exist"),
    ("train tiny.yaml --set init=binary.json", "binary.json' is "),
    ("train tiny.yaml --set data.search_fraction=0.0001", "'search'"),
    ("train tiny.yaml -o mine", "'mine' exists and is no run directory; choose another --output"),
    ("train tiny.yaml -o file", "'file' exists and is no run directory; choose another --output"),
    ("train tiny.yaml -o file/run", "cannot write to"),
    ("train tiny.yaml --set name=a/b", "'a/b' cannot"),
]
PROFILE: list[tuple[str, str]] = [
    ("profile that-machine", "not 'that-machine'"),
    ("profile gone.yaml", "target file 'gone.yaml' does not exist"),
    ("profile tiny.yaml", "target file 'tiny.yaml' has an unknown key 'data'"),
    ("profile --runtime onxruntime --for tiny.yaml", "no runtime 'onxruntime'; did you mean 'onnxruntime'?"),
    ("profile --threads 999 --for tiny.yaml", "at most"),
    (
        "profile --for litepose-natvie",
        "--for: 'litepose-natvie' is no space, recipe, run or arch; did you mean",
    ),
    ("profile --for gone.yaml", "recipe 'gone.yaml' does not exist"),
    ("profile --for tiny.yaml --on-drift ignore", "--on-drift is 'refuse' or 'warn', not 'ignore'"),
    ("profile --for tiny.yaml --seconds-per-layer 0", "--seconds-per-layer"),
    ("profile --for tiny.yaml --seconds-per-layer nan", "--seconds-per-layer"),
    ("profile --for tiny.yaml --rounds 0", "--rounds"),
]
EVAL: list[tuple[str, str]] = [
    ("eval gone.safetensors tiny.yaml", "'gone.safetensors' does not exist"),
    ("eval gone.onnx tiny.yaml", "'gone.onnx' does not exist"),
    ("eval mine tiny.yaml", "'mine' is no emitted network: 'mine/model.safetensors' does not exist"),
    ("eval binary.json tiny.yaml", "binary.json' is "),
    ("eval broken.safetensors tiny.yaml", "broken.safetensors' is damaged"),
    ("eval foreign.safetensors tiny.yaml", "foreign.safetensors' was not written by this toolkit"),
    ("eval broken.onnx tiny.yaml", "'broken.onnx' is no ONNX model"),
    ("eval evil.pth tiny.yaml", "refused: only tensors are read, never code"),
    ("eval good.safetensors gone.yaml", "recipe 'gone.yaml' does not exist"),
    ("eval good.safetensors gone.json --images empty", "'gone.json' does not exist"),
    ("eval good.safetensors gone.json", "'gone.json' does not exist: name a recipe, a run or"),
    ("eval good.safetensors malformed.json", "--images FOLDER"),
    ("eval good.safetensors mine", "'mine' is a folder, but no run directory"),
    ("eval good.safetensors malformed.json --images empty", "not valid JSON"),
    ("eval good.safetensors list.json --images empty", "must be a COCO-format mapping, not list"),
    ("eval good.safetensors tiny.yaml --skeleton coc17", "did you mean 'coco17'?"),
    (
        "eval good.safetensors tiny.yaml --skeleton crowdpose14",
        "17 joints, but skeleton 'crowdpose14' has 14",
    ),
    ("eval good.safetensors tiny.yaml --protocol coc", "--protocol: unknown 'coc'; did you mean 'coco'?"),
    ("eval good.safetensors tiny.yaml --resolution 16", "--resolution"),
    ("eval good.safetensors tiny.yaml --resolution 100", "--resolution is a multiple of 16 pixels, not 100"),
    ("eval good.safetensors tiny.yaml --limit 0", "--limit"),
    ("eval odd.safetensors tiny.yaml", "5 joints, but which? name them with --skeleton"),
    ("import-checkpoint gone.pth", "'gone.pth' does not exist"),
    ("import-checkpoint binary.json", "binary.json' is "),
    ("import-checkpoint evil.pth", "refused: only tensors are read, never code"),
    ("import-checkpoint cut.pth", "truncated or not a torch checkpoint"),
    ("import-checkpoint other.pth", "lacks tensor 'first.0.0.weight'; it is no LitePose"),
]


class Evil:
    """Unpickling one writes a file."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


@pytest.fixture
def models(shop: Path) -> Path:
    """The shop with models in it; two of them are good."""
    arch = tiny.recipe(shop).build_space(tiny_skeleton()).smallest()
    save_network(shop / "good.safetensors", build_network(arch, 17, torch.Generator()))
    save_network(shop / "odd.safetensors", build_network(arch, 5, torch.Generator()))
    data = (shop / "good.safetensors").read_bytes()
    (shop / "broken.safetensors").write_bytes(data[: len(data) // 2])
    torch.save({"a.weight": torch.zeros(2)}, shop / "other.pth")
    cut = (shop / "other.pth").read_bytes()
    (shop / "cut.pth").write_bytes(cut[: len(cut) // 2])
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, shop / "foreign.safetensors")
    (shop / "broken.onnx").write_bytes(b"\x08\x09not onnx")
    (shop / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    return shop


def tiny_skeleton() -> Any:
    from supernet.pose.skeleton import get_skeleton

    return get_skeleton("coco17")


def refused(told: Outcome, culprit: str, *, lines: int = 1) -> None:
    """Check that a command ended as a user's mistake must."""
    assert told.code == 2, told
    assert told.out == ""
    assert "Traceback" not in told.err
    assert told.err.count("error: ") == 1
    assert told.err.splitlines()[-1].startswith("error: ")
    assert len(told.err.splitlines()) <= lines, told.err
    assert culprit in told.err


@pytest.mark.parametrize(("line", "culprit"), COST + TRAIN + PROFILE)
def test_mistakes_are_one_line_and_leave_nothing_behind(
    shop: Path, nas_: Callable[..., Outcome], line: str, culprit: str
) -> None:
    before = snapshot(shop)
    refused(nas_(*line.split(" ")), culprit)
    assert snapshot(shop) == before


@pytest.mark.parametrize(("line", "culprit"), EVAL)
def test_models_that_are_none(models: Path, nas_: Callable[..., Outcome], line: str, culprit: str) -> None:
    before = snapshot(models)
    refused(nas_(*line.split(" "), "--json"), culprit)
    assert snapshot(models) == before


RUN: list[tuple[str, str]] = [
    ("train tiny.yaml -o run", "'run' holds a run already; continue it with --resume"),
    ("train tiny.yaml -o run --resume --set train.epochs=9", "train.epochs: 2 -> 9"),
    ("train run", "'run' is a run, not a recipe; 'nas runs resume run' goes on with it"),
    ("search gone", "run or recipe 'gone' does not exist; 'nas runs list' finds runs"),
    ("eval run run", "'run' is a run, which holds many networks; 'nas emit run' writes one of them"),
    ("export run --data run", "'run' is a run, which holds many networks; 'nas emit run' writes one of them"),
    ("search mine", "'mine' is no run directory"),
    ("search untrained --max-macs 30M", "'untrained' has no trained supernet; run 'nas train' first"),
    ("search run --max-macs 1000", "the smallest achievable is 2.82 MMACs"),
    ("search run --max-params 10", "the smallest achievable is"),
    ("search run --max-macs lots", "--max-macs takes a number above 0 such as 1.5G or 300M, not 'lots'"),
    ("search run --max-macs -3G", "--max-macs"),
    ("search run --max-macs 0", "--max-macs"),
    ("search run --max-macs 1e999", "--max-macs"),
    ("search run --max-macs 3X", "--max-macs takes the suffixes K, M, G or T, not 'x'"),
    ("search run --max-macs nan", "--max-macs"),
    ("search run --max-latency 30", "--max-latency"),
    ("search run --max-latency 30ms@", "--max-latency"),
    ("search run --max-latency 30ms@nowhere", "; 'nas profile' makes its table, --tables names a"),
    ("search run --max-latency 30ms@test-phone-onnxruntime-fp32-1t", "lacks"),
    ("search run --executor rya", "--executor: unknown 'rya'; did you mean 'ray'?"),
    ("search run --sampler tpe", "unknown sampler 'tpe'"),
    ("search run --name ../up", "a study's name"),
    ("search run --population 1", "--population"),
    ("search run --seed -1", "--seed"),
    ("search run --evaluations 0", "--evaluations"),
    ("search run --set saerch.population=2", "did you mean 'search'?"),
    ("plot gone", "'gone' is no run directory"),
    ("plot run", "'run' was not searched yet; run 'nas search run --max-macs ...'"),
    ("emit gone", "'gone' is no run directory"),
    ("emit run", "no network of 'run' was evaluated with its present weights, images and settings"),
    ("emit run --max-macs 5M", "run 'nas search run'"),
    ("emit run --study macs", "'run' has no study 'macs'"),
    ("emit run --arch gone.json", "'gone.json' does not exist"),
    ("emit run --arch deadbeef", "an id of a searched network has 12 of the digits 0 to f"),
    ("emit run --arch litepose-s", "the arch is not in this run's space: resolution = 448"),
    ("emit run --arch smallest.json --max-macs 5M", "--arch names the network itself; leave out the budget"),
    (
        "emit run --arch smallest.json -o mine",
        "'mine' exists and is no emitted network; choose another --output",
    ),
    ("emit run --arch smallest.json -o file/x", "cannot write to 'file'"),
    ("emit untrained --arch smallest.json", "'untrained' has no trained supernet"),
    ("eval run/checkpoints/best.safetensors run", "holds a supernet, not a plain network"),
]


@pytest.fixture
def runs(shop: Path, trained: Path, nas_: Callable[..., Outcome]) -> Path:
    from nas.run import RunDirectory

    run = RunDirectory.open(trained)
    RunDirectory.create(shop / "untrained", run.recipe)
    write_arch(shop / "smallest.json", run.recipe.build_space(tiny_skeleton()).smallest())
    return shop


@pytest.mark.parametrize(("line", "culprit"), RUN)
def test_mistakes_about_runs(runs: Path, nas_: Callable[..., Outcome], line: str, culprit: str) -> None:
    before = snapshot(runs)
    refused(nas_(*line.split(" "), "--json"), culprit)
    assert snapshot(runs) == before


def test_checkpoints_that_are_damaged(runs: Path, nas_: Callable[..., Outcome]) -> None:
    checkpoints = runs / "run" / "checkpoints"
    for file in checkpoints.iterdir():
        file.write_bytes(file.read_bytes()[:-50])
    before = snapshot(runs)
    refused(nas_("search", "run", "--max-macs", "30M"), "best.safetensors' is damaged")
    refused(nas_("emit", "run", "--arch", "smallest.json"), "best.safetensors' is damaged")
    assert snapshot(runs) == before
    refused(nas_("train", "tiny.yaml", "-o", "run", "--resume"), "no readable checkpoint", lines=2)


def test_a_study_that_is_damaged(runs: Path, nas_: Callable[..., Outcome]) -> None:
    study = runs / "run" / "search" / "macs"
    study.mkdir(parents=True)
    for content in ("{", "[]", "{}", '{"format": 1}', '{"format": 1, "records": [{"arch": 3}]}'):
        (study / "result.json").write_text(content)
        for command in ("plot", "emit"):
            refused(nas_(command, "run"), "result.json'")


# -- data that are wrong -----------------------------------------------------------------------------------


@pytest.fixture
def photos(box: Path) -> Path:
    """Drawn people on disk, and a recipe for them."""
    for name, seed in (("train", 1), ("val", 2)):
        write_dataset(box / name, 8, seed, size=(96, 96), people=(1, 2))
    data = {
        name: {"annotations": f"{name}/annotations.json", "images": f"{name}/images"}
        for name in ("train", "val")
    }
    tiny.write(box, data={**data, "search_fraction": 0.4}, train__epochs=1)
    return box


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def fewer_joints(content: dict[str, Any]) -> None:
    content["annotations"][0]["keypoints"] = [1, 2, 2]


def no_categories(content: dict[str, Any]) -> None:
    del content["categories"]


def no_such_image(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "gone.png"


def no_people(content: dict[str, Any]) -> None:
    content["annotations"] = []


def strange_value(content: dict[str, Any]) -> None:
    content["annotations"][0]["keypoints"][0] = "left"


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (fewer_joints, "needs 51 keypoint values (x, y, v of 17 joints), got 3"),
        (no_categories, "lacks 'categories'"),
        (no_such_image, "first 'gone.png'"),
        (no_people, "show no person with keypoints"),
        (strange_value, "'keypoints' that are not numbers"),
    ],
)
def test_annotations_that_are_wrong(
    photos: Path, nas_: Callable[..., Outcome], change: Callable[[dict[str, Any]], None], culprit: str
) -> None:
    edit(photos / "train" / "annotations.json", change)
    before = snapshot(photos)
    refused(nas_("train", "tiny.yaml"), culprit)
    assert snapshot(photos) == before


def cut_json(photos: Path) -> None:
    path = photos / "val" / "annotations.json"
    path.write_bytes(path.read_bytes()[:500])


def no_folder(photos: Path) -> None:
    (photos / "val" / "images").rename(photos / "val" / "pictures")


def no_file(photos: Path) -> None:
    (photos / "train" / "annotations.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (cut_json, "val/annotations.json' is not valid JSON"),
        (no_folder, "val/images' does not exist"),
        (no_file, "train/annotations.json' does not exist"),
    ],
)
def test_data_files_that_are_missing_or_cut(
    photos: Path, nas_: Callable[..., Outcome], spoil: Callable[[Path], None], culprit: str
) -> None:
    spoil(photos)
    before = snapshot(photos)
    refused(nas_("train", "tiny.yaml"), culprit)
    assert snapshot(photos) == before


def test_an_image_that_is_cut_ends_the_training_and_can_be_mended(
    photos: Path, nas_: Callable[..., Outcome], one_thread: None
) -> None:
    victims = sorted((photos / "train" / "images").iterdir())
    whole = {path: path.read_bytes() for path in victims}
    for path in victims:
        path.write_bytes(whole[path][:200])
    refused(nas_("train", "tiny.yaml"), "is truncated or not an image", lines=3)
    for path in victims:
        path.write_bytes(whole[path])
    assert nas_("train", "tiny.yaml", "--resume", "--json").code == 0


def test_an_image_of_another_size(photos: Path, nas_: Callable[..., Outcome]) -> None:
    for path in (photos / "train" / "images").iterdir():
        cv2.imwrite(str(path), np.zeros((40, 50, 3), np.uint8))
    refused(nas_("train", "tiny.yaml"), "is 50x40 pixels but its annotations are for 96x96", lines=3)


def test_what_training_starts_from(shop: Path, nas_: Callable[..., Outcome]) -> None:
    arch = get_arch("litepose-xs")
    save_network(shop / "large.safetensors", build_network(arch, 17, torch.Generator()))
    small = tiny.recipe(shop).build_space(tiny_skeleton()).smallest()
    save_network(shop / "few.safetensors", build_network(small, 5, torch.Generator()))
    save_network(shop / "cut.safetensors", build_network(small, 17, torch.Generator()))
    (shop / "cut.safetensors").write_bytes((shop / "cut.safetensors").read_bytes()[:-9])
    before = snapshot(shop)
    for name, culprit in (
        ("large", "the arch does not fit into this supernet's widest: stem_width = 16 > 8"),
        ("few", "the model predicts 5 joints, but which?"),
        ("cut", "cut.safetensors' is damaged"),
    ):
        refused(nas_("train", "tiny.yaml", "--set", f"init={name}.safetensors"), culprit)
    assert snapshot(shop) == before


# -- what is not the user's mistake ------------------------------------------------------------------------


def test_ctrl_c_is_130_and_says_how_to_go_on(
    runs: Path, nas_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(nas.searching, "run_search", interrupted)
    told = nas_("search", "run", "--json")
    assert (told.code, told.out) == (130, "")
    assert told.err == "stopped; the same command continues (nas train: with --resume)\n"


def test_a_full_disk_is_one_line(
    runs: Path, nas_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "run/tensorboard/events")

    monkeypatch.setattr(nas.searching, "run_search", full)
    refused(nas_("search", "run"), "'run/tensorboard/events': No space left on device")


def test_a_message_of_many_lines_is_told_as_one(shop: Path, nas_: Callable[..., Outcome]) -> None:
    refused(nas_("train", "tiny.yaml", "--set", "name=[a,\nb"), "--set name")
    refused(nas_("cost", "no\nsuch"), "no such")


def test_a_defect_of_ours_is_not_hidden(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise KeyError("ours")

    monkeypatch.setattr(nas.searching, "run_search", broken)
    with pytest.raises(KeyError):
        main(["search", "run"])


def test_two_commands_on_one_run(runs: Path, nas_: Callable[..., Outcome]) -> None:
    from nas.run import RunDirectory

    with RunDirectory.open("run").locked():
        refused(nas_("search", "run", "--max-macs", "30M"), "another command is at work on 'run'")
        refused(nas_("emit", "run", "--arch", "smallest.json"), "another command is at work on 'run'")
        told = nas_("train", "tiny.yaml", "-o", "run", "--resume")
        refused(told, "another command is at work on 'run'", lines=2)


def test_the_installed_command_refuses_alike(shop: Path) -> None:
    command = Path(sys.executable).with_name("nas")
    if not command.exists():
        pytest.skip("the package is not installed with its command")
    found = subprocess.run(
        [str(command), "cost", "litepose-z", "--json"], capture_output=True, text=True, check=False
    )
    refused(Outcome(found.returncode, found.stdout, found.stderr), "did you mean 'litepose-")


def test_recipes_with_overrides_are_kept_as_they_were_run(
    shop: Path, nas_: Callable[..., Outcome], one_thread: None
) -> None:
    told = nas_(
        *("train", "tiny.yaml", "-o", "new", "--json", "--set", "train.epochs=1"),
        *("--set", "data.train.synthetic.images=10"),
    )
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert report["run"] == "new" and report["steps"] == 1
    kept = yaml.safe_load((shop / "new" / "recipe.yaml").read_text())
    assert kept["train"]["epochs"] == 1
    assert kept["data"]["train"]["synthetic"]["images"] == 10
    assert json.loads((shop / "new" / "trained.json").read_text())["steps"] == 1
