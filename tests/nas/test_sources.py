"""Recipes that train on several data sets: how they are read, divided, checked and trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.data import open_datasets, open_source, open_training
from nas.recipe import DataSource, load_recipe, recipe_from_mapping
from search_spaces import InputError
from supernet.evaluator import CalibrationImages
from supernet.pose.synthetic import write_dataset
from tests.nas import tiny
from tests.nas.conftest import Outcome


def drawn(seed: int, images: int = 24, **more: Any) -> dict[str, Any]:
    return {"synthetic": {"images": images, "seed": seed, "size": [96, 96], "people": [1, 2]}, **more}


def told(tmp_path: Path, **settings: Any) -> str:
    """Return how a recipe with these changes is refused, without its file's name."""
    path = tiny.write(tmp_path, **settings)
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"recipe '{path}': ")


def test_one_source_or_a_list_of_sources(tmp_path: Path) -> None:
    one = tiny.recipe(tmp_path, data__train=drawn(1))
    several = tiny.recipe(tmp_path, data__train=[drawn(1, share=2), drawn(5, labels=["nose"], share=1)])
    assert list(one.data.training) == ["train"]
    assert list(several.data.training) == ["train[0]", "train[1]"]
    assert several.data.training["train[1]"].labels == ("nose",)
    for recipe in (one, several):
        again = recipe_from_mapping(json.loads(json.dumps(recipe.to_plain())), "again", tmp_path)
        assert again == recipe
    folder = tmp_path / "recipes"
    listed = [{"annotations": "a.json", "images": "a"}, {"annotations": "/b.json", "images": "../b"}]
    named = tiny.recipe(folder, data__train=listed).data.training
    assert [each.annotations for each in named.values()] == [folder / "a.json", Path("/b.json")]
    assert named["train[1]"].images == folder / "../b"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data__train": []}, "data.train is a source or a list of sources, not an empty list"),
    ({"data__train": [drawn(1), 3]}, "data.train[1] must be a mapping"),
    ({"data__train": [drawn(1), {}]}, "data.train[1]: a data source names both"),
    ({"data__train": [drawn(1), drawn(5, labls="all")]}, "data.train[1] has an unknown key 'labls'"),
    ({"data__train": [drawn(1), drawn(5, labels="som")]}, "data.train[1].labels: unknown 'som'"),
    ({"data__train": [drawn(1), drawn(5, labels=[])]}, "'labels' is all, none or a list of different joints"),
    ({"data__train": [drawn(1), drawn(5, labels=["nose", "nose"])]}, "list of different joints"),
    ({"data__train": [drawn(1), drawn(5, complete=1)]}, "data.train[1].complete is true or false, not 1"),
    ({"data__train": [drawn(1, share=0), drawn(5)]}, "data.train[0]: 'share' is positive, not 0"),
    ({"data__train": [drawn(1, share=1), drawn(5)]}, "data.train[1] has no 'share' but others have"),
    (
        {"data__train": [drawn(1), drawn(1)]},
        "data.train[0] and data.train[1] show the same images; a 'share'",
    ),
    ({"data__train": [drawn(1), drawn(2)]}, "data.train[1] and data.val show the same images; AP on them"),
    ({"data__train": [drawn(1, complete=False)]}, "data.search is needed: no source of data.train has"),
    ({"data__val": drawn(2, labels="none")}, "data.val is scored: it needs 'complete' annotations"),
    ({"data__search": drawn(3, complete=False)}, "data.search is scored"),
    ({"data__val": drawn(2, share=1)}, "data.val.share: only sources of data.train are mixed"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_mistakes_name_the_source(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in told(tmp_path, **changes)


def test_images_without_labels_need_a_teacher(tmp_path: Path) -> None:
    sources = [drawn(1), drawn(5, labels="none")]
    assert "data.train[1].labels is none, so nothing is learned from its images without a teacher" in told(
        tmp_path, data__train=sources
    )
    distill = {"source": "teacher", "teacher": "teacher.pth"}
    recipe = tiny.recipe(tmp_path, data__train=sources, train__distill=distill)
    assert recipe.train.distill.teacher == tmp_path / "teacher.pth", "relative to the recipe"
    assert "data.train[1].labels is none, so nothing is learned from its images until the teacher" in told(
        tmp_path, data__train=sources, train__distill={**distill, "start": 0.3}
    )


def test_each_source_is_held_out_from_as_far_as_it_can_be_scored(tmp_path: Path) -> None:
    recipe = tiny.recipe(
        tmp_path,
        data__train=[drawn(1, 40), drawn(5, 60, complete=False), drawn(6, 30, labels=["left_wrist"])],
        data__search_fraction=0.3,
        evaluate__calibration_images=12,
    )
    data = open_datasets(recipe)
    parts = [part.sources() for part in (data.train, data.calibrate, data.search)]
    train, calibrate, search = ([set(each.original_ids()) for each in part] for part in parts)
    assert not search[1] and search[0] and search[2]
    alone = open_datasets(tiny.recipe(tmp_path, data__train=drawn(1, 40), data__search_fraction=0.3))
    assert search[0] == set(alone.search.ids), "as if it were the only source"
    for place, count in enumerate((40, 60, 30)):
        assert not search[place] & (train[place] | calibrate[place])
        assert train[place] | calibrate[place] | search[place] <= set(range(1, count + 1))
    assert train[1] | calibrate[1] == set(range(1, 61))
    wrist = data.skeleton.joints.index("left_wrist")
    third = data.train.sources()[2]
    assert [np.flatnonzero(third.labelled_joints(i)).tolist() for i in range(2)] == [[wrist], [wrist]]


@pytest.mark.parametrize("shares", [None, (3, 1)])
def test_statistics_come_from_the_mixture_that_is_trained_on(
    tmp_path: Path, shares: tuple[int, int] | None
) -> None:
    one, other = ({}, {}) if shares is None else ({"share": share} for share in shares)
    recipe = tiny.recipe(
        tmp_path,
        data__train=[drawn(1, 20, **one), drawn(5, 60, **other)],
        evaluate__calibration_images=40,
        data__calibrate_fraction=0.1,
    )
    data = open_datasets(recipe)
    images = CalibrationImages(data.calibrate, 40, recipe.seed, recipe.train.augmentation)
    first = len(data.calibrate.sources()[0])
    from_first = sum(index % len(data.calibrate) < first for index in images.indices)
    expected = 10 if shares is None else 30
    assert abs(from_first - expected) <= 3
    assert len(images.batches(64).__next__()) == 40


def test_joints_of_a_source_are_mapped_and_masked(tmp_path: Path) -> None:
    sources = [drawn(1, 6), drawn(5, 6, labels=["left_hip", "right_hip"])]
    data = open_training(tiny.recipe(tmp_path, data__train=sources, data__skeleton="crowdpose14").data)
    assert data.labelled.tolist() == [True] * 12 + [False] * 2
    assert data.labelled_joints(0).sum() == 12 and data.labelled_joints(6).sum() == 2
    with pytest.raises(InputError, match="has no joint 'nose'"):
        open_source(DataSource(**{**vars(load_recipe(tiny.write(tmp_path)).data.val), "labels": ("nose",)}),
                    data.skeleton)  # fmt: skip


def test_a_training_on_several_sources(tmp_path: Path, nas_: Callable[..., Outcome]) -> None:
    recipe = tiny.write(
        tmp_path,
        data__train=[drawn(1, 12, share=1), drawn(5, 12, complete=False, share=3)],
        data__skeleton="crowdpose14",
    )
    run = tmp_path / "run"
    assert nas_("train", recipe, "-o", run).code == 0
    losses = np.genfromtxt(run / "metrics.csv", delimiter=",", names=True)
    assert np.isfinite(losses["total"]).all() and (losses["total"] > 0).all()
    told = nas_("train", recipe, "-o", run, "--resume", "--set", "data.calibrate_fraction=0.1")
    assert told.code == 2, "another recipe"
    assert nas_("search", run, "--evaluations", "2").code == 0


def test_a_check_looks_at_every_source(tmp_path: Path, nas_: Callable[..., Outcome]) -> None:
    for name, seed in (("a", 1), ("b", 2), ("val", 3)):
        write_dataset(tmp_path / name, 10, seed=seed, size=(96, 96))
    files = {
        name: {"annotations": f"{tmp_path}/{name}/annotations.json", "images": f"{tmp_path}/{name}/images"}
        for name in ("a", "b", "val")
    }  # fmt: skip
    path = tiny.write(tmp_path, data={"train": [files["a"], files["b"]], "val": files["val"]},
                      data__search_fraction=0.4)  # fmt: skip
    sound = nas_("data", "check", path, "--json")
    value = json.loads(sound.out)
    assert sound.code == 0 and set(value["data_sets"]) == {"train[0]", "train[1]", "val"}
    assert value["split"]["train"] + value["split"]["search"] <= 20
    # One picture of the second source is in val too, and all of the first one's are the same.
    content = (tmp_path / "val/images").iterdir().__next__().read_bytes()
    next((tmp_path / "b/images").iterdir()).write_bytes(content)
    pictures = sorted((tmp_path / "a/images").iterdir())
    for other in pictures[1:]:
        other.write_bytes(pictures[0].read_bytes())
    broken = nas_("data", "check", path, "--json", "-o", tmp_path / "out")
    value = json.loads(broken.out)
    assert broken.code != 0 and not value["sound"]
    between = {tuple(each["between"]) for each in value["shared"] if each["code"] == "leak-bytes"}
    assert ("train[0]", "search[0]") in between
    assert ("train[1]", "val") in between or ("search[1]", "val") in between
    assert ("train[0]", "train[1]") not in between
    assert (tmp_path / "out/shared-train[0]-search[0]-leak-bytes.jpg").is_file()
