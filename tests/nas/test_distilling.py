"""Distillation by way of a recipe: the teacher's checkpoint is found, matched, used and noted."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nas.recipe import load_recipe
from nas.run import RunDirectory
from nas.train import load_teacher, prepare, train
from search_spaces import InputError, RunError, litepose_arch
from supernet.checkpoint import export_research, save_network
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton
from supernet.registry import build_network
from supernet.state import read_tensors
from tests.nas import tiny

SHORT: dict[str, Any] = {
    "data__train__synthetic__images": 12,
    "data__val__synthetic__images": 2,
    "evaluate__calibration_images": 2,
    "train__epochs": 1,
}


def write_teacher(path: Path, joints: Skeleton | None = COCO17, count: int = 17, seed: int = 3) -> Path:
    """Write a network of other widths and of another resolution than any of the recipe's space."""
    arch = litepose_arch(128, 8, [8, 24, 16, 16], [16, 8, 8], depths=[1, 2, 1, 1], kernels=3, expansions=2)
    network = build_network(arch, count, torch.Generator().manual_seed(seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save(export_research(network), path)
    else:
        save_network(path, network, {} if joints is None else {"skeleton": joints.to_json()})
    return path


def settings(teacher: str, **others: Any) -> dict[str, Any]:
    return {
        "train__distill": {"source": "teacher", "teacher": teacher, "share": 1.0},
        **SHORT,
        **others,
    }


def test_the_teacher_s_path_starts_at_the_recipe_s_folder_and_is_kept_absolute(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **settings("nets/teacher.safetensors"))
    assert recipe.train.distill.teacher == tmp_path / "nets" / "teacher.safetensors"
    run = RunDirectory.create(tmp_path / "run", recipe)
    kept = yaml.safe_load((run.folder / "recipe.yaml").read_text())["train"]["distill"]
    assert kept == {
        "source": "teacher",
        "share": 1.0,
        "tags": 1e-3,
        "teacher": str(tmp_path / "nets" / "teacher.safetensors"),
        "start": 0.0,
    }
    assert RunDirectory.open(run.folder).recipe == recipe


@pytest.mark.parametrize("name", ["emitted/model.safetensors", "teacher.pth"])
def test_a_run_is_taught_by_any_plain_network(tmp_path: Path, name: str) -> None:
    path = write_teacher(tmp_path / name)
    asked = name.removesuffix("/model.safetensors")
    recipe = tiny.recipe(tmp_path, **settings(asked))
    run = RunDirectory.create(tmp_path / "run", recipe)
    prepared = prepare(recipe)
    assert prepared.teacher is not None and bool(prepared.teacher.known.all())
    weights = {key: value.clone() for key, value in prepared.teacher.network.state_dict().items()}
    assert train(run, prepared).finished
    assert all(torch.equal(weights[k], v) for k, v in prepared.teacher.network.state_dict().items())
    _, said = read_tensors(run.folder / "checkpoints" / "last.safetensors")
    assert said["identity"]["distill"] == f"teacher {prepared.teacher.fingerprint}, share 1.0, tags 0.001"
    # Another teacher in the same place is noticed where the run goes on.
    write_teacher(path, seed=4)
    with pytest.raises(RunError, match="distill: checkpoint teacher"):
        train(run)


def test_in_place_by_recipe(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **SHORT, train__rule="sandwich", train__distill={"source": "largest"})
    run = RunDirectory.create(tmp_path / "run", recipe)
    prepared = prepare(recipe)
    assert prepared.teacher is None
    assert train(run, prepared).finished
    with (run.folder / "metrics.csv").open(newline="") as stream:
        found = [float(row["distill"]) for row in csv.DictReader(stream)]
    assert len(found) == 2 and any(value > 0 for value in found)


def test_a_teacher_of_some_of_the_joints_is_asked_for_those(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher.safetensors", CROWDPOSE14, 14)
    recipe = tiny.recipe(tmp_path, **settings("teacher.safetensors"))
    teacher = load_teacher(recipe, COCO17)
    assert teacher is not None
    assert [n for n, known in zip(COCO17.joints, teacher.known.tolist()) if not known] == list(
        COCO17.joints[:5]
    )


FINGERS = Skeleton.from_json({"name": "fingers", "joints": ["thumb", "index", "middle"]}, "test")


@pytest.mark.parametrize(
    ("joints", "count", "message"),
    [
        (FINGERS, 3, r"none of the teacher's joints \(thumb, index, middle\) is one of the data's"),
        (None, 3, "predicts 3 joints, but which\\? write them into the file with 'nas import-checkpoint"),
        (CROWDPOSE14, 17, "predicts 17 joints, but skeleton 'crowdpose14' has 14"),
    ],
)
def test_teachers_of_wrong_or_unknown_joints_are_refused(
    tmp_path: Path, joints: Skeleton | None, count: int, message: str
) -> None:
    write_teacher(tmp_path / "teacher.safetensors", joints, count)
    recipe = tiny.recipe(tmp_path, **settings("teacher.safetensors"))
    with pytest.raises(InputError, match=f"^train.distill.teacher: .*{message}") as told:
        load_teacher(recipe, COCO17)
    assert "\n" not in str(told.value)


def test_a_teacher_that_is_not_there_is_found_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, **settings("absent.safetensors"))
    with pytest.raises(InputError, match=r"train\.distill\.teacher: checkpoint '.*absent\.safetensors' does"):
        prepare(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__distill": {"source": "biggest"}}, "train.distill.source: unknown 'biggest'"),
        ({"train__distill": {"shares": 1}}, "unknown .*'shares'.*did you mean 'share'"),
        ({"train__distill": {"share": 2.0}}, "train.distill.share lies in 0..1, not at 2.0"),
        ({"train__distill": {"source": "teacher"}}, "train.distill.source: teacher needs a checkpoint"),
        ({"train__distill": {"teacher": "a.pth"}}, "train.distill.teacher names 'a.pth'"),
        ({"train__distill": {"source": "largest"}}, "source: largest needs train.rule: sandwich"),
    ],
)
def test_mistakes_in_a_recipe_are_one_clear_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as told:
        load_recipe(tiny.write(tmp_path, **changes))
    assert "\n" not in str(told.value)
    assert "train.distill: train.distill" not in str(told.value)
