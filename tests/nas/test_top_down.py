"""The second family through the same commands: train, search, emit, eval, predict, trust."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from nas.data import open_datasets
from nas.known import search_context
from nas.person_boxes import read_person_boxes
from nas.recipe import load_recipe, recipe_from_mapping
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet, train
from search_spaces import InputError, read_arch
from supernet.paradigms import TOP_DOWN
from supernet.pose.boxes import Box
from supernet.pose.topdown import TopDownConfig
from tests.nas.test_workflow import Outcome, call
from tests.nas.top_down import RECIPE


def write(folder: Path, **settings: Any) -> Path:
    """Write the recipe with ``train__epochs=3`` style changes."""
    changed = copy.deepcopy(RECIPE)
    for key, value in settings.items():
        place = changed
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("top-down")
    outcome = call("train", write(folder), "-o", folder / "run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.fixture(scope="module")
def emitted(trained: Path) -> Path:
    """A network of it, found by a search and emitted."""
    assert call("search", trained, "--max-macs", "50M").code == 0
    outcome = call("emit", trained, "--max-macs", "50M", "-o", trained.parent / "net")
    assert outcome.code == 0, outcome.err
    return trained.parent / "net"


def test_training_tells_its_one_loss(trained: Path) -> None:
    with (trained / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {"total", "heatmap", "distill"} <= set(rows[0])
    assert "push" not in rows[0]
    assert all(float(row["total"]) == pytest.approx(float(row["heatmap"])) for row in rows)
    assert float(rows[-1]["total"]) < float(rows[0]["total"])


def test_an_epoch_sees_every_person_once(trained: Path) -> None:
    """Not every image: pictures show one or two people."""
    run = RunDirectory.open(trained)
    data = open_datasets(run.recipe)
    people = sum(len(data.train.joints(i)) for i in range(len(data.train)))
    assert people > len(data.train)
    with (trained / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == run.recipe.train.epochs * (people // run.recipe.train.batch_size)


def test_a_resumed_training_ends_as_one_straight_through(trained: Path, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", load_recipe(write(tmp_path)))

    def interrupt(step: int, steps: int, row: object) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with run.locked(), pytest.raises(KeyboardInterrupt):
        train(run, progress=interrupt)
    assert not run.trained
    outcome = call("train", tmp_path / "recipe.yaml", "-o", run.folder, "--resume")
    assert outcome.code == 0, outcome.err
    first = (trained / "checkpoints" / "last.safetensors").read_bytes()
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes() == first


def test_the_emitted_network_is_what_was_searched(trained: Path, emitted: Path) -> None:
    card = json.loads((emitted / "card.json").read_text())
    arch = read_arch(emitted / "arch.json")
    assert arch.family.name == "deconv-mbv2"
    assert (card["input"]["height"], card["input"]["width"]) == (64, 48)
    assert card["onnx"]["max_rel_error"] < 1e-3
    assert card["ap"]["decoding"] == "dark"
    assert card["ap"]["boxes"] == "annotated"
    run = RunDirectory.open(trained)
    data = open_datasets(run.recipe)
    evaluator = make_evaluator(run, data, open_supernet(run, run.recipe.build_space(data.skeleton)), on="val")
    assert card["ap"]["stats"]["AP"] == pytest.approx(evaluator.evaluate(arch).stats["AP"], abs=1e-4)


@pytest.mark.parametrize("file", ["", "model.safetensors", "model.onnx"])
def test_eval_gives_the_cards_ap(trained: Path, emitted: Path, file: str) -> None:
    card = json.loads((emitted / "card.json").read_text())
    report = call("eval", emitted / file, trained, "--json", "--bootstrap", 0).json
    assert report["stats"]["AP"] == pytest.approx(card["ap"]["stats"]["AP"], abs=1e-4)
    assert report["boxes"] == "annotated"


def test_eval_in_other_boxes(trained: Path, emitted: Path, tmp_path: Path) -> None:
    data = open_datasets(RunDirectory.open(trained).recipe).val
    truth = data.ground_truth()
    rows = [
        {"image_id": each["image_id"], "bbox": each["bbox"], "score": 0.9} for each in truth["annotations"]
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(rows))
    own = call("eval", emitted, trained, "--json", "--bootstrap", 0).json
    found = call("eval", emitted, trained, "--boxes", path, "--json", "--bootstrap", 0).json
    assert found["boxes"] == str(path)
    assert found["stats"]["AP"] == pytest.approx(own["stats"]["AP"], abs=0.05)
    whole = call("eval", emitted, trained, "--boxes", "whole-image", "--json", "--bootstrap", 0).json
    assert whole["people_found"] == len(data)
    quarter = call("eval", emitted, trained, "--decoding", "quarter", "--json", "--bootstrap", 0).json
    assert quarter["decoding"] == "quarter"
    assert "in boxes: annotated" in call("eval", emitted, trained, "--bootstrap", 0).out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scales", "0.5,1"], "bottom-up"),
        (["--project"], "bottom-up"),
        (["--decoding", "drak"], "did you mean 'dark'"),
        (["--boxes", "missing.json"], "missing.json"),
    ],
)
def test_eval_refuses_what_makes_no_sense(
    trained: Path, emitted: Path, options: list[str], words: str
) -> None:
    outcome = call("eval", emitted, trained, *options)
    assert outcome.code == 2
    assert words in outcome.err


def pictures(folder: Path, trained: Path) -> list[dict[str, Any]]:
    """Write the val images; return boxes of their people by file name."""
    data = open_datasets(RunDirectory.open(trained).recipe).val
    folder.mkdir()
    names = {}
    for index, image_id in enumerate(data.ids):
        names[image_id] = f"{image_id}.png"
        image = cv2.cvtColor(data.load_image(index), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / names[image_id]), image)
    return [
        {"file_name": names[each["image_id"]], "bbox": each["bbox"], "score": 0.9}
        for each in data.ground_truth()["annotations"]
    ]


def test_predict_in_boxes(trained: Path, emitted: Path, tmp_path: Path) -> None:
    rows = pictures(tmp_path / "photos", trained)
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    common = ("predict", emitted, tmp_path / "photos", "--json", "--threshold", 0, "--min-score", 0)
    found = call(*common, "-o", tmp_path / "a", "--boxes", tmp_path / "boxes.json").json
    assert found["pictures"] == 6
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert 0 < len(results) <= len(rows)
    assert call(*common, "-o", tmp_path / "b", "--boxes", "whole-image").code == 0
    model = emitted / "model.onnx"
    assert call("predict", model, *common[2:], "-o", tmp_path / "c", "--boxes", "whole-image").code == 0
    ours, theirs = (
        np.array([each["keypoints"] for each in json.loads((tmp_path / name / "results.json").read_text())])
        for name in ("b", "c")
    )
    assert len(ours) == 6  # one person in each picture
    assert np.abs(ours - theirs).max() < 0.5


def dataset_form(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the boxes as a COCO data set."""
    names = sorted({row["file_name"] for row in rows})
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": names.index(row["file_name"]), "bbox": row["bbox"]} for row in rows],
    }


def test_predict_takes_boxes_of_a_data_set(trained: Path, emitted: Path, tmp_path: Path) -> None:
    rows = pictures(tmp_path / "photos", trained)
    (tmp_path / "list.json").write_text(json.dumps([{**row, "score": 1.0} for row in rows]))
    (tmp_path / "set.json").write_text(json.dumps(dataset_form(rows)))
    found = []
    for name in ("list", "set"):
        outcome = call(
            *("predict", emitted, tmp_path / "photos", "-o", tmp_path / name),
            *("--boxes", tmp_path / f"{name}.json", "--no-draw"),
        )
        assert outcome.code == 0, outcome.err
        found.append((tmp_path / name / "results.json").read_text())
    assert found[0] == found[1]


def _in_dataset(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Return the boxes as a COCO data set whose first annotation has other values."""
    whole = dataset_form(rows)
    return whole | {"annotations": [whole["annotations"][0] | changes, *whole["annotations"][1:]]}


def test_crowds_and_dogs_are_no_boxes_of_people(tmp_path: Path) -> None:
    """As in COCO's own files of instances, whose categories are many."""
    of = {"bbox": [1, 2, 30, 40], "image_id": 5}
    content = {
        "images": [{"id": 5, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {**of, "category_id": 1, "iscrowd": 1},
            {**of, "category_id": 18, "iscrowd": 0},
            {**of, "category_id": 1, "iscrowd": 0, "bbox": [3, 4, 50, 60]},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    found = read_person_boxes(str(tmp_path / "boxes.json")).of(Path("photos/a.jpg"), 100, 100)
    assert found == (Box(3.0, 4.0, 50.0, 60.0),)


BOXES: list[tuple[Callable[[list[dict[str, Any]]], Any], str]] = [
    (lambda rows: "text", "must be a list"),
    (lambda rows: [1], "entry 0 must be a mapping"),
    (lambda rows: [{**rows[0], "file_name": 3}], "entry 0 has the file_name 3"),
    (lambda rows: [rows[0], {**rows[0], "bbox": [1, 2, 3]}], "entry 1 needs a 'bbox'"),
    (lambda rows: [{**rows[0], "bbox": [0, 0, -1, 5]}], "entry 0: "),
    (lambda rows: [{**rows[0], "bbox": [0, 0, float("nan"), 5]}], "entry 0: "),
    (lambda rows: [{**rows[0], "score": "high"}], "entry 0 needs a 'bbox'"),
    (lambda rows: [{**rows[0], "file_name": "elsewhere.png"}], "none of the pictures is in"),
    (lambda rows: [{**rows[0], "bbox": [0, 0, 10**400, 5]}], "entry 0 needs a 'bbox' of"),
    (lambda rows: [{**rows[0], "score": 10**400}], "entry 0 needs a 'bbox' of x"),
    (lambda rows: _in_dataset(rows, image_id=[1]), "entry 0 has the image_id [1]"),
    (lambda rows: {**dataset_form(rows), "categories": [{"id": 1}, {"id": 2}]}, "has 2 categories"),
    (lambda rows: {"images": []}, "lacks a list of images or annotations"),
    (lambda rows: {"images": [{"id": 1}], "annotations": []}, "image 0 needs"),
]


@pytest.mark.parametrize(("spoil", "words"), BOXES, ids=[words for _, words in BOXES])
def test_predict_refuses_damaged_boxes(
    trained: Path,
    emitted: Path,
    tmp_path: Path,
    spoil: Callable[[list[dict[str, Any]]], Any],
    words: str,
) -> None:
    rows = pictures(tmp_path / "photos", trained)
    (tmp_path / "boxes.json").write_text(json.dumps(spoil(rows)))
    outcome = call(
        *("predict", emitted, tmp_path / "photos", "-o", tmp_path / "out"),
        *("--boxes", tmp_path / "boxes.json"),
    )
    assert outcome.code == 2
    assert words in outcome.err
    assert "boxes.json" in outcome.err
    assert not (tmp_path / "out").exists()


def test_predict_asks_for_boxes(trained: Path, emitted: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "photos", trained)
    outcome = call("predict", emitted, tmp_path / "photos", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "--boxes whole-image" in outcome.err


def test_boxes_are_refused_where_whole_pictures_are_seen() -> None:
    from tests.nas import tiny

    values = tiny.values(data__val__boxes="whole-image")
    with pytest.raises(InputError, match=r"data\.val\.boxes: networks of the space 'litepose-extended'"):
        recipe_from_mapping(values, "recipe", Path())
    values = copy.deepcopy(RECIPE)
    values["data"]["train"]["boxes"] = "whole-image"
    with pytest.raises(InputError, match=r"data\.train\.boxes: people are learned"):
        recipe_from_mapping(values, "recipe", Path())


def test_a_detectors_boxes_belong_to_what_an_ap_rests_on(trained: Path, tmp_path: Path) -> None:
    """Other boxes, another context; LitePose's contexts know nothing of it."""
    run = RunDirectory.open(trained)
    data = open_datasets(run.recipe)
    assert "dark" in search_context(run, data)["evaluation"]
    recipe = load_recipe(write(tmp_path), ["evaluate.top_down.decoding=quarter", "data.val.boxes=found.json"])
    assert recipe.paradigm is TOP_DOWN
    config = recipe.evaluation(64)
    assert isinstance(config, TopDownConfig)
    assert (config.decoding, config.boxes) == ("quarter", tmp_path / "found.json")
    synthetic = {"images": 4, "seed": 3, "size": [96, 96]}
    contexts = []
    for content in ("[]", "[ ]"):
        (tmp_path / "boxes.json").write_text(content)
        searched = load_recipe(write(tmp_path, data__search={"synthetic": synthetic, "boxes": "boxes.json"}))
        contexts.append(search_context(SimpleNamespace(recipe=searched, best=run.best), data))  # type: ignore[arg-type]
    assert contexts[0]["boxes"] != contexts[1]["boxes"]


def test_trust_trains_networks_alone(trained: Path, tmp_path: Path) -> None:
    outcome = call("trust", trained, "--set", "trust.archs=3", "--set", "trust.epochs=1")
    assert outcome.code == 0, outcome.err


def test_distillation(tmp_path: Path, emitted: Path) -> None:
    """In place from the largest, and from an emitted network."""
    for name, settings in (
        ("largest", {"train__rule": "sandwich", "train__distill": {"source": "largest"}}),
        ("teacher", {"train__distill": {"source": "teacher", "teacher": str(emitted)}}),
    ):
        recipe = write(tmp_path / name, train__epochs=1, **settings)
        outcome: Outcome = call("train", recipe, "-o", tmp_path / name / "run")
        assert outcome.code == 0, outcome.err
