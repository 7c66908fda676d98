"""``nas data check``: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from nas.checking import check_files, check_recipe, write_report
from nas.recipe import load_recipe
from nas.run import RunDirectory
from supernet.pose.synthetic import write_dataset
from tests.nas import tiny
from tests.nas.conftest import Outcome


@pytest.fixture
def check(nas_: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Run ``nas data check``."""
    return lambda *arguments: nas_("data", "check", *arguments)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two sets of drawn people, train and val."""
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder / "train", 12, seed=1, size=(96, 96))
    write_dataset(folder / "val", 6, seed=2, size=(96, 96))
    return folder


@pytest.fixture
def copied(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "data")
    return tmp_path / "data"


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    edit(value)
    file.write_text(json.dumps(value))


def recipe(folder: Path, data: Path, **more: Any) -> Path:
    parts = {part: {"annotations": f"{data}/{part}/annotations.json", "images": f"{data}/{part}/images"}
             for part in ("train", "val")}  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**tiny.values(), "name": "mine", "data": {**parts, **more}}))
    return path


def test_sound_data(check: Callable[..., Outcome], drawn: Path) -> None:
    train = drawn / "train"
    told = check(train / "annotations.json", "--images", train / "images")
    assert told.code == 0
    assert "contents of data" in told.out and "left_shoulder" in told.out
    assert "0 kinds of errors" in told.out and "can be trained on and scored" in told.out
    assert "as far as can be told" not in told.out
    assert "images of data: 12/12" in told.err
    for unseen in (["--images", train / "images", "--no-pixels"], []):
        told = check(train / "annotations.json", *unseen)
        assert told.code == 0 and "as far as can be told without decoding the images" in told.out


def test_a_broken_copy(check: Callable[..., Outcome], copied: Path, tmp_path: Path) -> None:
    """Many things at once: all of them are told, and pictures and a report are written."""
    train = copied / "train"
    names = sorted(path.name for path in (train / "images").iterdir())
    (train / "images" / names[0]).unlink()
    half = (train / "images" / names[1]).read_bytes()
    (train / "images" / names[1]).write_bytes(half[: len(half) // 2])

    def break_it(value: dict[str, Any]) -> None:
        people = value["annotations"]
        people[0]["bbox"] = [0, 0, -1, 4]
        people[1]["id"] = people[2]["id"]
        people[-1]["keypoints"][0:3] = [5000, 5, 2]
        people[-2]["area"] = 0

    change(train / "annotations.json", break_it)
    out = tmp_path / "out"
    told = check(train / "annotations.json", "--images", train / "images", "-o", out)
    assert told.code == 1
    for text in (
        f"'{names[0]}' (image", f"image '{names[1]}' ({len(half) // 2} bytes) is truncated",
        "[0, 0, -1, 4]", "annotation ids that are there more than once", "nose at 5000, 5",
        "would be refused or scored wrongly",
    ):  # fmt: skip
        assert text in " ".join(told.out.replace("│", " ").split()), text
    report = json.loads((out / "report.json").read_text())
    assert not report["sound"]
    found = {each["code"]: each for each in report["data_sets"]["data"]["findings"]}
    errors = {code for code, each in found.items() if each["severity"] == "error"}
    assert errors == {"image-missing", "image-unreadable", "box", "annotation-id-twice", "area-zero"}
    (example,) = found["joint-outside-image"]["examples"]
    assert {"annotation_id", "image_id", "file_name", "value", "text"} <= set(example)
    written = {path.name for path in out.iterdir()}
    assert {"contact-sheet.jpg", "histograms.png", "problem-joint-outside-image.jpg"} <= written
    for name in written - {"report.json"}:
        image = cv2.imread(str(out / name))
        assert image is not None and image.std() > 5, name


def test_json_is_all_that_standard_output_has(check: Callable[..., Outcome], drawn: Path) -> None:
    train, val = drawn / "train", drawn / "val"
    told = check(
        train / "annotations.json", "--images", train / "images", "--against", val / "annotations.json",
        "--against-images", val / "images", "--json",
    )  # fmt: skip
    value = json.loads(told.out)
    assert told.code == 0 and value["sound"] and value["shared"] == []
    assert value["data_sets"]["data"]["contents"]["images"] == 12
    assert value["data_sets"]["against"]["contents"]["images"] == 6


def test_leaks_between_two_files(check: Callable[..., Outcome], copied: Path, tmp_path: Path) -> None:
    train, val = copied / "train", copied / "val"
    first = sorted((train / "images").iterdir())[0]
    second = sorted((val / "images").iterdir())
    shutil.copy(first, second[0])
    image = cv2.imread(str(sorted((train / "images").iterdir())[3]))
    cv2.imwrite(str(second[1]), cv2.GaussianBlur(image, (3, 3), 0))
    arguments = (
        train / "annotations.json", "--images", train / "images", "--against", val / "annotations.json",
        "--against-images", val / "images",
    )  # fmt: skip
    told = check(*arguments, "--json", "-o", tmp_path / "out")
    shared = {each["code"]: each for each in json.loads(told.out)["shared"]}
    assert told.code == 1
    assert {code: (each["severity"], each["count"]) for code, each in shared.items()} == {
        "leak-bytes": ("error", 1),
        "leak-pixels": ("warning", 1),
    }
    assert {each["between"][1] for each in shared.values()} == {"against"}
    assert (tmp_path / "out/shared-data-against-leak-pixels.jpg").is_file()
    assert check(*arguments, "--no-pixels").code == 0


def test_a_recipe_and_its_run(check: Callable[..., Outcome], drawn: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, drawn)
    told = check(path, "--json")
    value = json.loads(told.out)
    assert told.code == 0
    assert set(value["data_sets"]) == {"train", "val"}
    split = value["split"]
    assert set(split) == {"train", "calibrate", "search", "val"}
    assert split["val"] == 6 and split["train"] + split["search"] <= 12
    sizes = value["data_sets"]["train"]["contents"]["scale"]["pixels_at_resolution"]
    assert set(sizes) == set(map(str, tiny.RECIPE["space"]["resolutions"]))
    run = RunDirectory.create(tmp_path / "run", load_recipe(path))
    before = sorted(run.folder.iterdir())
    assert json.loads(check(run.folder, "--json").out) == value
    assert sorted(run.folder.iterdir()) == before, "nothing is written into the run"
    text = check(path).out
    assert "images by use" in text and "train and val share no image" in text


def test_a_recipe_of_drawn_people(check: Callable[..., Outcome], tmp_path: Path) -> None:
    told = check(tiny.write(tmp_path), "-o", tmp_path / "out")
    assert told.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "train", "val"}
    assert (tmp_path / "out/train/contact-sheet.jpg").is_file()


def test_a_recipe_whose_sets_share_files(check: Callable[..., Outcome], copied: Path, tmp_path: Path) -> None:
    """The search part of train is compared too: a picture twice in train is a leak where it falls apart."""
    train = copied / "train"
    names = [entry["file_name"] for entry in json.loads((train / "annotations.json").read_text())["images"]]
    for name in names[1:]:
        shutil.copy(train / "images" / names[0], train / "images" / name)
    path = recipe(tmp_path, copied)
    value = json.loads(check(path, "--json").out)
    (leak,) = [each for each in value["shared"] if each["between"] == ["train", "search"]]
    assert (leak["code"], leak["severity"]) == ("leak-bytes", "error") and not value["sound"]
    path = recipe(tmp_path, copied, search={"annotations": f"{copied}/val/annotations.json",
                                            "images": f"{copied}/val/images"})  # fmt: skip
    told = check(path)
    assert told.code == 2, "the same file twice is refused with the recipe"


def test_what_only_the_whole_shows_is_told(copied: Path, tmp_path: Path) -> None:
    """Each set is sound alone, but of so few images so small a share is none."""
    result = check_recipe(load_recipe(recipe(tmp_path, copied, search_fraction=1e-9)))
    assert not any(part.report.errors for part in result.parts.values())
    assert "split part 'search'" in result.refused and "is empty" in result.refused
    assert not result.sound and result.to_json()["refused"] == result.refused


def test_a_data_set_without_people_is_an_error(copied: Path, tmp_path: Path) -> None:
    change(copied / "val/annotations.json", lambda value: value.update(annotations=[]))
    result = check_recipe(load_recipe(recipe(tmp_path, copied)))
    assert [each.code for each in result.findings if each.severity == "error"] == ["nobody"]
    assert not result.refused and not result.sound


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "annotation file 'none.json' does not exist"),
        (["none.yaml"], "recipe 'none.yaml' does not exist"),
        (["."], "is no run directory"),
        (["half.json"], "is not valid JSON"),
        (["sound.json", "--images", "nowhere"], "image folder 'nowhere' does not exist"),
        (["sound.json", "--output", "half.json"], "--output is a folder for the report"),
        (["sound.json", "--skeleton", "coco71"], "did you mean 'coco17'"),
        (["sound.json", "--against-images", "."], "--against-images is the folder of --against"),
        (["mine.yaml", "--images", "."], "a recipe says itself what --images would"),
        (["mine.yaml", "--against", "sound.json"], "a recipe says itself what --against would"),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(
    check: Callable[..., Outcome],
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(drawn / "val/annotations.json", "sound.json")
    Path("half.json").write_text('{"images": [')
    recipe(tmp_path, drawn)
    told = check(*arguments, "--json")
    assert (told.code, told.out) == (2, "")
    assert told.err.count("\n") == 1 and told.err.startswith("error: ") and message in told.err


def test_names_that_look_like_markup_are_shown(
    check: Callable[..., Outcome], copied: Path, tmp_path: Path
) -> None:
    odd = "[red]odd[/] :smile: \ud800\x1b[31m.png"
    change(copied / "val/annotations.json", lambda value: value["images"][0].update(file_name=odd))
    told = check(copied / "val/annotations.json", "--images", copied / "val/images", "-o", tmp_path / "out")
    assert told.code == 1
    assert "[red]odd[/] :smile:" in told.out and "\x1b" not in told.out


def test_nothing_to_draw_from(tmp_path: Path) -> None:
    """No image folder, nobody labelled, no images at all: reports, and no pictures of nothing."""
    for number, content in enumerate(({}, {"images": [], "annotations": [], "categories": []})):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(content))
        result = check_files(file, None)
        write_report(result, tmp_path / f"out{number}")
        assert [path.name for path in (tmp_path / f"out{number}").iterdir()] == ["report.json"]
        assert not result.sound


def test_far_joints_and_boxes_are_drawn(drawn: Path, tmp_path: Path) -> None:
    """Whatever the numbers, a sheet is no larger than its cells."""
    shutil.copytree(drawn / "val", tmp_path / "val")

    def spread(value: dict[str, Any]) -> None:
        value["annotations"][0]["keypoints"][0:3] = [-9e5, 9e5, 2]
        value["annotations"][1]["bbox"] = [-8e5, 3, 9e5, 9e5]

    change(tmp_path / "val/annotations.json", spread)
    result = check_files(tmp_path / "val/annotations.json", tmp_path / "val/images")
    write_report(result, tmp_path / "out")
    sheets = [cv2.imread(str(path)) for path in (tmp_path / "out").glob("problem-*.jpg")]
    assert len(sheets) >= 3
    assert all(sheet is not None and max(sheet.shape) < 2000 and np.isfinite(sheet).all() for sheet in sheets)
