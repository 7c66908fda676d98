"""The main job end to end, on networks and data so small that it takes seconds."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import nas.searching
from latency_tables import LatencyPredictor, LatencyTable, Target, find_table, local_target
from latency_tables.machine import available_threads
from latency_tables.table import Row
from nas.cli import main
from nas.known import known_networks, load_result
from nas.recipe import Recipe, recipe_from_mapping
from nas.run import RunDirectory
from nas.search import Evaluation, search
from nas.train import initialise
from search_spaces import Arch, InputError, SearchSpace, get_arch, litepose_native, read_arch
from supernet.checkpoint import export_research, load_network
from supernet.pose.dataset import PoseDataset
from supernet.pose.inference import predict_dataset
from supernet.pose.skeleton import Skeleton, get_skeleton
from supernet.pose.synthetic import write_dataset
from supernet.registry import build_network, build_supernet
from tests.nas import tiny
from tests.supernet.networks import images, randomise, relative_error
from tests.supernet.tiny import same_checkpoint

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def call(*arguments: object) -> Outcome:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def teach(folder: Path, model: Path, run: Path) -> None:
    """Make what a model finds in the pictures their truth, so that AP of hardly trained networks is not 0."""
    network, metadata = load_network(model)
    skeleton = Skeleton.from_json(metadata["skeleton"], "the model's skeleton")
    path = folder / "annotations.json"
    config = RunDirectory.open(run).recipe.evaluate.at(network.arch.number("resolution"))
    found = predict_dataset(network, PoseDataset(path, folder / "images", skeleton), config)
    content = json.loads(path.read_text())
    content["annotations"] = []
    for record in content["images"]:
        for place, detection in enumerate([d for d in found if d["image_id"] == record["id"]][:3]):
            joints = np.array(detection["keypoints"]).reshape(-1, 3)[:, :2]
            low, high = joints.min(axis=0), joints.max(axis=0)
            told = {joint: [*xy, 2] for joint, xy in zip(skeleton.joints, joints.tolist(), strict=True)}
            names = content["categories"][0]["keypoints"]
            content["annotations"].append(
                {
                    **{"id": 10 * record["id"] + place, "image_id": record["id"], "category_id": 1},
                    **{"bbox": [*low.tolist(), *(high - low).tolist()], "area": 3000.0, "iscrowd": 0},
                    "keypoints": [value for name in names for value in told.get(name, [0, 0, 0])],
                }
            )
    assert len(content["annotations"]) >= 6
    path.write_text(json.dumps(content))


# -- the whole story ---------------------------------------------------------------------------------------


@dataclass
class Story:
    """What every command of one run said."""

    folder: Path
    space: SearchSpace
    said: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, int] = field(default_factory=dict)

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    write_dataset(folder / "val", 6, 2, size=(96, 96), people=(1, 2))
    val = {"annotations": "val/annotations.json", "images": "val/images"}
    recipe = tiny.write(folder, data__val=val)
    patch = pytest.MonkeyPatch()
    with contextlib.chdir(folder), patch.context() as patched:
        own = nas.searching.SearchEvaluator.evaluate
        asked: list[Arch] = []

        def counted(self: Any, arch: Arch) -> Evaluation:
            asked.append(arch)
            return own(self, arch)

        patched.setattr(nas.searching.SearchEvaluator, "evaluate", counted)

        def step(name: str, *arguments: object) -> Any:
            asked.clear()
            told = call(*arguments, "--json")
            story.said[name] = told.json
            story.evaluations[name] = len(asked)
            return story.said[name]

        run = Path("run")
        story = Story(folder, tiny.recipe(folder / "copy").build_space(get_skeleton("coco17")))
        step("train", "train", recipe, "-o", run)
        step(
            *("profile", "profile", "this-machine", "--for", run, "--threads", 1, "--networks", 5),
            *("--seconds-per-layer", 0.01, "--rounds", 1, "--on-drift", "warn", "-o", run / "tables"),
        )
        target = story.said["profile"]["target"]
        predictor = LatencyPredictor(find_table(target, [run / "tables"]))
        extremes = [story.space.smallest(), story.space.largest()]
        costs = [story.space.cost(arch).macs for arch in extremes]
        macs = f"{sum(costs) / 2e6:.3f}M"
        upper = [predictor.predict(arch.blocks(17)).high_ms for arch in extremes]
        latency = f"{(upper[0] + max(upper)) / 2:.4f}ms@{target}"
        story.said["budgets"] = {"macs": macs, "latency": latency, "target": target}
        step("macs", "search", run, "--max-macs", macs)
        step("again", "search", run, "--max-macs", macs)
        step("more", "search", run, "--max-macs", macs, "--evaluations", 6)
        step("latency", "search", run, "--max-latency", latency, "--seed", 3)
        step("plot", "plot", run)
        study = Path(story.said["macs"]["study"]).name
        step("first", "emit", run, "--max-macs", macs, "--study", study, "-o", "net")
        teach(Path("val"), Path("net/model.safetensors"), run)
        step("emit", "emit", run, "--max-macs", macs, "--study", study, "-o", "net")
        step("emit fast", "emit", run, "--max-latency", latency)
        for model in ("net", "net/model.safetensors", "net/model.onnx"):
            step(model, "eval", model, run)
        step("by file", "eval", "net", "val/annotations.json", "--images", "val/images")
        step("cost", "cost", "net/arch.json", "--joints", 17, "--latency", target, "--tables", run / "tables")
    yield story


@pytest.mark.slow
def test_training_makes_a_complete_run(story: Story) -> None:
    assert story.said["train"]["run"] == "run"
    assert {path.name for path in story.path("run").iterdir()} >= {
        *("recipe.yaml", "environment.json", "metrics.csv", "validation.csv", "tensorboard"),
        *("checkpoints", "trained.json"),
    }
    with story.path("run", "metrics.csv").open() as stream:
        steps = [int(row["step"]) for row in csv.DictReader(stream)]
    assert steps == list(range(1, story.said["train"]["steps"] + 1))
    assert list(story.path("run", "tensorboard").iterdir())
    assert RunDirectory.open(story.path("run")).trained


@pytest.mark.slow
def test_profiling_covers_the_space(story: Story) -> None:
    said = story.said["profile"]
    assert said["target"] == "this-machine-onnxruntime-fp32-1t"
    assert (said["blocks"], said["fitted"]) == (len(story.space.distinct_blocks()), 0)
    assert (said["provenance"], said["networks"]) == ("measured-here", 5)
    table = find_table(said["target"], [story.path("run", "tables")])
    assert table.missing(story.space.distinct_blocks()) == ()


def bound(text: str) -> float:
    return float(text.partition("@")[0].removesuffix("ms").removesuffix("M"))


@pytest.mark.slow
def test_a_search_keeps_its_macs_budget(story: Story) -> None:
    said, upper = story.said["macs"], bound(story.said["budgets"]["macs"]) * 1e6
    assert (said["stopped"], said["evaluated"], story.evaluations["macs"]) == ("budget", 4, 4)
    result = json.loads(story.path(said["study"], "result.json").read_text())
    tried = [record for record in result["records"] if record["ap"] is not None]
    assert len(tried) == 6  # after 'more'
    assert all(record["macs"] <= upper for record in tried)
    assert len({record["id"] for record in tried}) == 6
    for record in tried:
        arch = Arch(story.space.family, tuple(story.space.arch(strip(record["arch"])).values))
        assert story.space.cost(arch).macs == record["macs"]
    assert said["best"]["ap"] == max(record["ap"] for record in tried[:4])


def strip(arch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arch.items() if key != "family"}


@pytest.mark.slow
def test_the_same_search_again_evaluates_nothing(story: Story) -> None:
    assert story.evaluations["again"] == 0
    assert story.said["again"] == story.said["macs"]
    assert story.evaluations["more"] == 2
    assert story.said["more"]["evaluated"] == 6
    assert story.said["more"]["study"] == story.said["macs"]["study"]


@pytest.mark.slow
def test_a_search_keeps_its_latency_budget_at_the_upper_end(story: Story) -> None:
    said, upper = story.said["latency"], bound(story.said["budgets"]["latency"])
    predictor = LatencyPredictor(find_table(story.said["budgets"]["target"], [story.path("run", "tables")]))
    assert predictor.calibrated
    assert said["evaluated"] == 4 and said["evaluations"]["made"] == story.evaluations["latency"]
    result = json.loads(story.path(said["study"], "result.json").read_text())
    for record in result["records"]:
        high = predictor.predict(story.space.arch(strip(record["arch"])).blocks(17)).high_ms
        assert record["latency_ms"][predictor.name] == pytest.approx(high)
        assert (record["ap"] is not None) == (high <= upper)


@pytest.mark.slow
def test_plots_are_pictures(story: Story) -> None:
    files = [story.path(name) for name in story.said["plot"]["files"]]
    # Of two studies front, progress and choices as PNG and SVG and the front as a page; of both together
    # front and choices.
    assert len(files) == len(set(files)) == 2 * 7 + 5
    starts = {".png": PNG, ".svg": b"<?xml", ".html": b"<!DOCTYPE html>"}
    for path in files:
        data = path.read_bytes()
        assert data.startswith(starts[path.suffix])
        assert len(data) > 5000


@pytest.mark.slow
def test_the_emitted_folder_is_complete_and_says_where_it_comes_from(story: Story) -> None:
    said, folder = story.said["emit"], story.path("net")
    assert {path.name for path in folder.iterdir()} - {".card.lock"} == {
        *("arch.json", "model.safetensors", "model.onnx", "card.json", "README.md"),
    }
    card = json.loads((folder / "card.json").read_text())
    assert {"folder": "net", **card} == said
    arch = read_arch(folder / "arch.json")
    assert arch == story.space.arch(strip(card["arch"])) and card["id"] == arch.id
    cost = story.space.cost(arch)
    assert card["cost"] == {"params": cost.params, "macs": cost.macs, "macs_paper": cost.macs_paper}
    assert cost.macs <= bound(story.said["budgets"]["macs"]) * 1e6
    assert card["chosen"]["by"] == f"search '{Path(story.said['macs']['study']).name}'"
    assert card["chosen"]["search_ap"] == story.said["more"]["best"]["ap"]
    assert len(card["chosen"]["budget"]) == 1 and card["chosen"]["budget"][0].startswith("macs <= ")
    assert card["supernet"]["space"] == story.space.config()
    assert card["ap"]["on"].startswith("6 images of annotation file '")
    assert card["ap"]["joints_scored"] == list(get_skeleton("coco17").joints)
    interval = card["ap"]["interval"]
    assert interval["low"] <= interval["value"] == pytest.approx(card["ap"]["stats"]["AP"])
    assert interval["low"] < interval["high"] and interval["resamples"] > 900
    assert card["onnx"]["max_rel_error"] < 1e-4
    assert card["environment"]["versions"]["torch"]
    assert card["calibration_images"] == 8
    assert not list(story.folder.glob(".net*"))  # nothing is left of the making


@pytest.mark.slow
def test_the_card_tells_latency_with_its_provenance(story: Story) -> None:
    target = story.said["budgets"]["target"]
    for name in ("emit", "emit fast"):
        told = story.said[name]["latency"][target]
        assert told["low_ms"] <= told["ms"] <= told["high_ms"]
        assert told["provenance"] == "measured-here" and told["calibrated"] is True
        assert told["target"]["threads"] == 1
        measured = told["measured_here"]
        assert 0 < measured["p10_ms"] <= measured["median_ms"] <= measured["p90_ms"]
    fast = story.said["emit fast"]
    assert fast["latency"][target]["high_ms"] <= bound(story.said["budgets"]["latency"])
    assert fast["folder"] == str(Path("run", "emitted", fast["id"]))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["net", "net/model.safetensors", "net/model.onnx", "by file"])
def test_every_form_of_the_network_has_the_cards_ap(story: Story, model: str) -> None:
    card = story.said["emit"]["ap"]["stats"]
    assert card["AP"] > 0.5  # or equality would say little
    assert story.said[model]["stats"] == pytest.approx(card, abs=2e-3)
    assert story.said[model]["images"] == 6


@pytest.mark.slow
def test_cost_of_the_emitted_network_is_the_cards(story: Story) -> None:
    target, card, cost = story.said["budgets"]["target"], story.said["emit"], story.said["cost"]
    assert {key: cost[key] for key in card["cost"]} == card["cost"]
    assert cost["latency"][target]["ms"] == pytest.approx(card["latency"][target]["ms"])


@pytest.mark.slow
def test_a_network_that_the_table_does_not_cover_is_refused(story: Story) -> None:
    with contextlib.chdir(story.folder):
        target = story.said["budgets"]["target"]
        told = call("cost", "litepose-xs", "--latency", target, "--tables", "run/tables", "--json")
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert f"error: the latency table '{target}' lacks" in told.err
    assert "(stage1.block1)" in told.err and "nas profile" in told.err


# -- files, another skeleton -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_job_on_files_with_joints_that_they_lack(box: Path, one_thread: None) -> None:
    for name, count, seed in (("train", 14, 1), ("val", 5, 2)):
        write_dataset(box / name, count, seed, size=(96, 128), people=(1, 2))
    data = {
        name: {"annotations": f"{name}/annotations.json", "images": f"{name}/images"}
        for name in ("train", "val")
    }
    tiny.write(
        box,
        data={**data, "skeleton": "crowdpose14", "search_fraction": 0.3},
        train={"epochs": 1, "batch_size": 4, "rule": "uniform"},
        search={"evaluations": 2, "population": 2},
        evaluate__grouping={"detection_threshold": 0.01},  # so little training raises no higher peaks
    )
    assert call("train", "tiny.yaml", "-o", "run", "--json").json["steps"] >= 1
    found = call("search", "run", "--json").json
    assert found["evaluated"] == 2
    card = call("emit", "run", "-o", "net", "--json").json
    skeleton = get_skeleton("crowdpose14")
    lacking = set(skeleton.joints) - set(get_skeleton("coco17").joints)
    assert len(lacking) == 2  # the head's top and the neck
    assert card["ap"]["joints_scored"] == [joint for joint in skeleton.joints if joint not in lacking]
    assert card["skeleton"] == skeleton.to_json()
    network, metadata = load_network("net/model.safetensors")
    assert network.joints == 14 and metadata["skeleton"] == skeleton.to_json()
    teach(Path("val"), Path("net/model.safetensors"), Path("run"))
    card = call("emit", "run", "-o", "net", "--json").json
    assert card["ap"]["stats"]["AP"] > 0.3
    told = call("eval", "net", "run", "--json").json
    assert told["stats"] == pytest.approx(card["ap"]["stats"], abs=2e-3)
    assert told["joints_scored"] == card["ap"]["joints_scored"]
    # An exported file has one input size; wider pictures are fitted into it, and it says so.
    fitted = call("eval", "net/model.onnx", "run", "--json").json
    assert fitted["fitted_into"] == list(network.arch.size)
    assert "fitted into" in call("eval", "net/model.onnx", "run").out


# -- stopped and gone on -----------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(stream)]


def wait_for_steps(process: subprocess.Popen[str], path: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while len(rows(path)) < steps:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_and_interrupted_training_ends_with_the_same_bits(box: Path, one_thread: None) -> None:
    tiny.write(
        box,
        train={
            "epochs": 8,
            "batch_size": 4,
            "rule": "uniform",
            "ema": 0.9,
            "validate_every": 4,
            "checkpoint_seconds": 0.03,
            "workers": 1,
        },
    )
    assert call("train", "tiny.yaml", "-o", "whole", "--json").code == 0
    total = len(rows(box / "whole" / "metrics.csv"))
    rng = np.random.default_rng()  # another moment every time
    first = int(rng.integers(2, total // 2))
    command = [sys.executable, "-m", "nas.cli", "train", "tiny.yaml", "-o", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *more], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    metrics = box / "cut" / "metrics.csv"
    with start() as process:
        wait_for_steps(process, metrics, first)
        time.sleep(float(rng.uniform(0, 0.05)))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with start("--resume", "--json") as process:
        wait_for_steps(process, metrics, first + int(rng.integers(1, total // 3)))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, ""), err
        assert err.splitlines()[-1] == "stopped; the same command continues (nas train: with --resume)"
        assert "Traceback" not in err
    stopped_at = len(rows(metrics))
    assert first < stopped_at < total
    assert not RunDirectory.open("cut").trained
    assert call("train", "tiny.yaml", "-o", "cut", "--resume", "--json").json["steps"] == total
    for name in ("metrics.csv", "validation.csv", "trained.json"):
        read: Callable[[Path], Any] = rows if name.endswith(".csv") else Path.read_text
        assert read(box / "cut" / name) == read(box / "whole" / name), (name, first, stopped_at)
    for name in ("last", "best"):
        files = [box / run / "checkpoints" / f"{name}.safetensors" for run in ("whole", "cut")]
        assert same_checkpoint(*files), (name, first, stopped_at)


def test_an_interrupted_search_goes_on(
    trained: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = nas.searching.SearchEvaluator.evaluate
    asked: list[str] = []

    def interrupted(self: Any, arch: Arch) -> Evaluation:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(arch.id)
        return own(self, arch)

    monkeypatch.setattr(nas.searching.SearchEvaluator, "evaluate", interrupted)
    told = call("search", "run", "--name", "s", "--json")
    assert (told.code, told.out) == (130, "")
    assert told.err.splitlines()[-1].startswith("stopped; the same command continues")
    assert call("plot", "run", "--json").code == 0  # what there is can be looked at
    monkeypatch.setattr(
        nas.searching.SearchEvaluator,
        "evaluate",
        lambda self, arch: (asked.append(arch.id), own(self, arch))[1],
    )
    whole = call("search", "run", "--name", "s", "--json").json
    assert len(asked) == len(set(asked)) == whole["evaluated"] == 4
    monkeypatch.setattr(nas.searching.SearchEvaluator, "evaluate", own)
    (trained / "evaluations.jsonl").unlink()  # or there would be nothing to evaluate
    straight = call("search", "run", "--name", "t", "--json").json
    assert [record["id"] for record in straight["front"]] == [record["id"] for record in whole["front"]]


def test_a_search_of_other_settings_needs_another_name(trained: Path, one_thread: None) -> None:
    assert call("search", "run", "--name", "s", "--evaluations", 2).code == 0
    told = call("search", "run", "--name", "s", "--evaluations", 2, "--seed", 9)
    assert told.code == 2 and "belongs to another search: seed is 0 there, 9 here" in told.err
    checkpoint = trained / "checkpoints" / "best.safetensors"
    network = build_supernet(tiny_space(), torch.Generator().manual_seed(5))
    from supernet.state import save_weights

    save_weights(checkpoint, network, tiny_space(), 1, {})
    told = call("search", "run", "--name", "s", "--evaluations", 2)
    assert told.code == 2 and "context supernet" in told.err


def tiny_space() -> SearchSpace:
    from search_spaces import space_from_config

    return space_from_config(tiny.RECIPE["space"], joints=17)


def test_the_upper_limit_of_images_per_evaluation(trained: Path) -> None:
    from nas.data import open_datasets

    data = open_datasets(RunDirectory.open(trained).recipe)
    limited = open_datasets(RunDirectory.open(trained, ["evaluate.images=2"]).recipe)
    assert len(data.search) > 2
    assert limited.search.ids == data.search.ids[:2]
    assert limited.train.ids == data.train.ids and limited.val.ids == data.val.ids
    assert not set(data.train.ids) & set(data.search.ids)


def test_ap_is_measured_on_held_out_images_and_statistics_come_from_training_ones(trained: Path) -> None:
    from nas.data import open_datasets
    from nas.train import make_evaluator, open_supernet

    run = RunDirectory.open(trained)
    data = open_datasets(run.recipe)
    for part, held_out in (("search", data.search), ("val", data.val)):
        evaluator = make_evaluator(run, data, open_supernet(run, tiny_space()), on=part)
        assert evaluator.dataset is held_out
        assert evaluator.calibration.dataset is data.calibrate
        assert len(evaluator.calibration) == run.recipe.evaluate.calibration_images


def test_searching_a_recipe_trains_it_first(box: Path, one_thread: None) -> None:
    tiny.write(box, train__epochs=1)
    found = call("search", "tiny.yaml", "--evaluations", 2, "--json").json
    assert found["study"].startswith("runs/tiny/search/")
    assert RunDirectory.open("runs/tiny").trained
    told = call("search", "tiny.yaml", "--evaluations", 2, "--json")
    assert told.json == found and "training" not in told.err


@pytest.mark.parametrize(
    "item", ["seed=7", "data.search_fraction=0.6", "train.epochs=99", "space.depths=[1]"]
)
def test_a_trained_run_keeps_what_it_was_trained_with(trained: Path, one_thread: None, item: str) -> None:
    told = call("search", "run", "--evaluations", 2, "--set", item)
    assert (
        told.code == 2 and f"--set {item.split('=')[0]}: the supernet of 'run' is trained already" in told.err
    )
    assert not (trained / "search").exists()


def test_emitting_leaves_out_studies_whose_aps_were_measured_otherwise(
    trained: Path, one_thread: None
) -> None:
    assert call("search", "run", "--evaluations", 2, "--name", "own").code == 0
    changed = ("--set", "evaluate.flip=true", "--name", "flip")
    assert call("search", "run", "--evaluations", 2, *changed).code == 0
    # How a search ends evaluations changes no AP that is chosen by.
    stopping = ("--set", "evaluate.early_stop=true", "--name", "stopping")
    assert call("search", "run", "--evaluations", 2, *stopping).code == 0
    known = known_networks(RunDirectory.open(trained))
    own, flip, stopping = (load_result(known.run, name) for name in ("own", "flip", "stopping"))
    assert {r.arch.id for r in known.records} == {r.arch.id for r in (*own.evaluated, *stopping.evaluated)}
    assert [known.found[r.arch.id].studies for r in own.evaluated] == [("own", "stopping")] * 2
    assert flip.evaluated and list(known.left_out) == ["flip"]
    told = call("emit", "run", "-o", "net", "--json")
    assert told.json["chosen"]["found_in"] == "own"
    left_out = "the study 'flip' was made with another evaluation"
    assert f"{left_out}; it is left out (--study takes it)" in told.err
    told = call("emit", "run", "--study", "flip", "-o", "net", "--json")
    assert told.json["chosen"]["by"] == "search 'flip'"
    assert told.json["chosen"]["search_ap"] == max(r.require_ap() for r in flip.evaluated)
    assert f"{left_out}\n" in told.err


def test_budgets_are_held_against_the_present_table(trained: Path, one_thread: None) -> None:
    space, target = tiny_space(), local_target("onnxruntime", 1)

    def table(ms: float) -> None:
        rows_ = dict.fromkeys(space.distinct_layers(), Row(ms, ms, ms, 9, "measured-here", "a test"))
        LatencyTable(target=target, rows=rows_).save(trained / "tables" / f"{target.name}.csv")

    table(0.1)
    budget = ("--max-latency", f"100ms@{target.name}")
    assert call("search", "run", "--evaluations", 2, "--name", "s", *budget).code == 0
    table(50.0)
    told = call("emit", "run", *budget, "-o", "net")
    assert told.code == 2 and "no network of this litepose-extended space" in told.err
    # Another target than the search's is priced just as well.
    table(0.2)
    assert call("search", "run", "--evaluations", 2, "--name", "m", "--max-macs", "1G").code == 0
    told = call("emit", "run", *budget, "--study", "m", "-o", "net", "--json")
    assert told.json["latency"][target.name]["high_ms"] <= 100


def split_recipe(box: Path, images: int, calibration_images: int, **data: object) -> Recipe:

    sources = {
        name: {"synthetic": {"images": count, "seed": seed, "size": [64, 64], "people": [1, 1]}}
        for seed, (name, count) in enumerate((("train", images), ("val", 4)))
    }
    evaluate = {**tiny.RECIPE["evaluate"], "calibration_images": calibration_images}
    mapping = {**tiny.RECIPE, "data": {**sources, **data}, "evaluate": evaluate}
    return recipe_from_mapping(mapping, "recipe", box)


def test_training_images_are_divided_into_three_parts_for_good(box: Path) -> None:
    from nas.data import open_datasets

    data = open_datasets(split_recipe(box, 200, 10, calibrate_fraction=0.2))
    parts = [set(part.ids) for part in (data.train, data.calibrate, data.search)]
    assert set.union(*parts) == set(range(1, 201))
    assert sum(map(len, parts)) == 200
    assert [len(part) / 200 for part in parts] == pytest.approx([0.6, 0.2, 0.2], abs=0.1)
    # The same in every process; what is held out for the search does not depend on the calibration's share.
    again = open_datasets(split_recipe(box, 200, 10, calibrate_fraction=0.2))
    assert (again.train.ids, again.calibrate.ids, again.search.ids) == (
        data.train.ids,
        data.calibrate.ids,
        data.search.ids,
    )
    other = open_datasets(split_recipe(box, 200, 10))
    assert other.search.ids == data.search.ids
    assert set(other.calibrate.ids) < set(data.calibrate.ids)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.05])
def test_few_calibration_images_are_filled_up_from_the_training_ones(box: Path, fraction: float) -> None:
    from nas.data import open_datasets

    data = open_datasets(split_recipe(box, 60, 20, calibrate_fraction=fraction))
    assert len(data.calibrate) == 20
    assert not set(data.calibrate.ids) & set(data.search.ids)
    held = set(data.calibrate.ids) - set(data.train.ids)
    assert bool(held) == (fraction == 0.05)
    assert held | set(data.train.ids) | set(data.search.ids) == set(range(1, 61))


def test_images_shared_under_another_file_name_are_refused(box: Path) -> None:
    from nas.data import open_datasets

    path = write_dataset(box / "people", 6, 0, size=(64, 64), people=(1, 1))
    copied = path.with_name("copy.json")
    copied.write_text(path.read_text())
    source = {"annotations": str(path), "images": str(path.parent / "images")}
    data = {"train": source, "val": {**source, "annotations": str(copied)}, "search_fraction": 0.5}
    recipe = recipe_from_mapping({**tiny.RECIPE, "data": data}, "recipe", box)
    with pytest.raises(InputError, match=r"the train and the val data share \d image files \(first '"):
        open_datasets(recipe)


def test_val_images_without_people_are_refused_before_training(box: Path) -> None:
    from nas.data import open_datasets

    sources = {}
    for seed, name in enumerate(("train", "val")):
        path = write_dataset(box / name, 6, seed, size=(64, 64), people=(1, 1))
        sources[name] = {"annotations": str(path), "images": str(path.parent / "images")}
    empty = json.loads(path.read_text())
    path.write_text(json.dumps({**empty, "annotations": []}))
    data = {**sources, "search_fraction": 0.5}
    recipe = recipe_from_mapping({**tiny.RECIPE, "data": data}, "recipe", box)
    with pytest.raises(InputError, match=r"data.val: annotation file '.*' shows no person with keypoints"):
        open_datasets(recipe)


def test_seed_archs_of_another_space_are_told(trained: Path, one_thread: None) -> None:
    told = call("search", "run", "--evaluations", 2, "--name", "s", "--set", "search.seed_archs=[litepose-s]")
    assert told.code == 0
    assert "'litepose-s' is left out; it is not in the space" in told.err


# -- emitting ----------------------------------------------------------------------------------------------


def test_emitting_tells_what_other_targets_tables_say(trained: Path, one_thread: None) -> None:
    space = tiny_space()
    row = Row(1.0, 0.9, 1.1, 9, "measured-by-others", "a test")
    rows_ = dict.fromkeys(space.distinct_layers(), row)
    here = local_target("onnxruntime", 1)
    others = {
        Target("raspberry-pi-9", "eight cores", "onnxruntime", threads=available_threads() + 7),
        Target(here.device, here.processor, "onnxruntime", threads=available_threads() + 7),
        local_target("torch", 1),
        Target("phone", "gpu", "ncnn"),
    }
    for target in others:
        LatencyTable(target=target, rows=rows_).save(trained / "tables" / f"{target.name}.csv")
    (trained / "tables" / "damaged.csv").write_text("key\n")
    (trained / "tables" / "damaged.yaml").write_text("format: 1\n")
    arch = space.smallest()
    (Path("smallest.json")).write_text(json.dumps(arch.to_json()))
    told = call("emit", "run", "--arch", "smallest.json", "--json")
    assert set(told.json["latency"]) == {target.name for target in others}
    layers = len(arch.layers(17))
    assert all(value["ms"] == pytest.approx(layers) for value in told.json["latency"].values())
    measured = {name for name, value in told.json["latency"].items() if value["measured_here"] is not None}
    assert measured == {local_target("torch", 1).name}
    assert "latency table left out: latency table '" in told.err


def test_a_failed_emission_leaves_the_former_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("net").mkdir()
    for name in ("card.json", "model.safetensors"):
        (Path("net") / name).write_text("{}")
    (Path("smallest.json")).write_text(json.dumps(tiny_space().smallest().to_json()))

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nas.emitting.export_onnx", full)
    told = call("emit", "run", "--arch", "smallest.json", "-o", "net", "--json")
    assert (
        told.code == 2
        and told.err.splitlines()[-1]
        == "error: cannot write net: No space left on device; nothing was changed"
    )
    assert {path.name for path in Path("net").iterdir()} == {"card.json", "model.safetensors"}
    assert [path.name for path in Path().iterdir() if path.name.startswith(".net")] == []


# -- starting from a checkpoint ----------------------------------------------------------------------------


def test_training_starts_from_a_plain_or_a_research_checkpoint(box: Path, one_thread: None) -> None:
    space = tiny_space()
    arch = space.largest()
    network = build_network(arch, 17, torch.Generator().manual_seed(4))
    randomise(network, 4)
    torch.save({"state_dict": export_research(network)}, box / "start.pth")
    told = call("import-checkpoint", "start.pth", "--resolution", 64, "--skeleton", "coco17", "--json").json
    assert told["written"] == "start.safetensors"
    assert told["params"] == space.cost(arch).params
    x = images(1, 64, 64)
    for file in ("start.safetensors", "start.pth"):
        recipe = tiny.recipe(box, init=file)
        supernet = initialise(recipe, space).eval()
        assert relative_error(supernet(x, arch.replace(resolution=64)), network.eval()(x)) < 1e-5
        # Important channels come first: a narrow subnet is another one than the plain first channels.
    settings = ("--set", "init=start.safetensors", "--set", "train.learning_rate=1e-12")
    tiny.write(box, train__epochs=1)
    assert call("train", "tiny.yaml", "-o", "run", *settings, "--json").code == 0
    kept = yaml.safe_load((box / "run" / "recipe.yaml").read_text())
    assert kept["init"] == str(box / "start.safetensors")
    from nas.train import open_supernet

    trained = open_supernet(RunDirectory.open("run"), space)
    fresh = initialise(tiny.recipe(box, init="start.safetensors"), space)
    for (name, p), q in zip(trained.named_parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), name


def test_the_published_checkpoint(shared: Path, box: Path) -> None:
    file = shared / "weights" / "litepose-m-crowdpose.reference.pth"
    told = call("import-checkpoint", file, "-o", "m.safetensors", "--json").json
    assert (told["joints"], told["skeleton"], told["resolution"]) == (14, "crowdpose14", 448)
    assert told["params"] == 3_533_808
    assert round(told["macs"] / 1e9, 4) == 5.2637
    network, metadata = load_network("m.safetensors")
    assert network.arch == get_arch("litepose-m")
    assert metadata["source"] == file.name and str(shared) not in json.dumps(metadata)
    golden = np.load(shared / "golden" / "litepose-m-crowdpose.npz")
    from supernet.pose.transforms import normalise

    with torch.no_grad():
        found = network(normalise(golden["image_rgb_uint8"][None]))
    expected = tuple(torch.from_numpy(golden[name]) for name in ("quarter", "half"))
    assert relative_error(found, expected) < 1e-4


# -- from Python -------------------------------------------------------------------------------------------


def test_ten_lines_in_a_notebook(tmp_path: Path) -> None:
    space = litepose_native(joints=14, base=get_arch("litepose-xs"))
    supernet = build_supernet(space, torch.Generator().manual_seed(0))
    network = supernet.extract(space.sample(np.random.default_rng(0)))

    class Wide:
        """Stands in for AP: wider is better."""

        def evaluate(self, arch: Arch) -> Evaluation:
            return Evaluation(arch.number("stem_width") / 64, {}, 0.0)

    from nas.search import MACS, Constraint

    result = search(space, Wide(), storage=tmp_path / "s", trials=20, constraints=[Constraint(MACS, 3e8)])
    assert len(result.evaluated) == 20 and result.best().macs <= 3e8
    assert network.arch in space
    assert result.best().ap == max(record.require_ap() for record in result.evaluated)
