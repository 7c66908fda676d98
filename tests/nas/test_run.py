"""Run directories: made once, held by one command at a time, never mistaken for something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nas.run import RunDirectory, differences
from search_spaces import InputError, RunError
from tests.nas import tiny


def everything(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_is_opened_as_it_was_made(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    made = RunDirectory.create(tmp_path / "deep" / "run", recipe)
    opened = RunDirectory.open(tmp_path / "deep" / "run")
    assert opened.recipe == made.recipe == recipe
    assert not opened.trained
    assert opened.studies() == []
    assert set(everything(made.folder)) == {"recipe.yaml", "environment.json"}


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    run = RunDirectory.create(tmp_path / "run", recipe)
    before = everything(run.folder)
    assert RunDirectory.create(tmp_path / "run", recipe).recipe == recipe
    assert everything(run.folder) == before


def test_a_run_killed_while_it_was_made_is_completed(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    run = RunDirectory.create(tmp_path / "run", recipe)
    (run.folder / "environment.json").unlink()
    RunDirectory.create(tmp_path / "run", recipe)
    assert (run.folder / "environment.json").is_file()


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    before = everything(tmp_path / "run")
    changed = tiny.recipe(tmp_path, train__epochs=3, seed=4)
    with pytest.raises(RunError) as told:
        RunDirectory.create(tmp_path / "run", changed)
    message = str(told.value)
    assert "train.epochs: 2 -> 3" in message and "seed: 0 -> 4" in message and "--output" in message
    assert "\n" not in message
    assert everything(tmp_path / "run") == before


def test_many_differences_are_cut_short(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    augmentation = {"rotation": 1, "translate": 2, "flip": 0.1, "brightness": 0.2, "contrast": 0.3}
    changed = tiny.recipe(tmp_path, train__augmentation=augmentation, seed=5, train__epochs=7)
    with pytest.raises(RunError, match=r"(; [^;]+){5}; \.\.\.\)"):
        RunDirectory.create(tmp_path / "run", changed)


def test_differences_look_into_every_depth() -> None:
    old = {"a": {"b": 1, "c": {}}, "d": [1, 2]}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 1, "c": {"x": 0}}, "d": [1, 3]}) == [
        "a.c: {} -> None",
        "d: [1, 2] -> [1, 3]",
        "a.c.x: None -> 0",
    ]


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def foreign_file(path: Path) -> None:
    path.write_text("years of work")


@pytest.mark.parametrize("make", [foreign_folder, foreign_file])
def test_what_is_no_run_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "mine")
    before = everything(tmp_path)
    recipe = tiny.recipe(tmp_path / "recipes")
    with pytest.raises(RunError, match=r"mine' exists and is no run directory; choose another --output"):
        RunDirectory.create(tmp_path / "mine", recipe)
    assert {k: v for k, v in everything(tmp_path).items() if not k.startswith("recipes")} == before


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write to"):
        RunDirectory.create(tmp_path / "file" / "run", tiny.recipe(tmp_path))
    if os.geteuid() == 0:
        return  # root writes anywhere
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot write to"):
        RunDirectory.create(tmp_path / "locked" / "run", tiny.recipe(tmp_path))


@pytest.mark.parametrize("content", ["", "- 1\n", "name: [", "name: x\n", "surprise: 1\n"])
def test_a_damaged_recipe_is_named(tmp_path: Path, content: str) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    (run.folder / "recipe.yaml").write_text(content)
    with pytest.raises(InputError, match=r"recipe '.*run/recipe\.yaml'"):
        RunDirectory.open(run.folder)


def test_no_run_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError, match=r"is no run directory .*nas train"):
            RunDirectory.open(folder)


def test_overrides_are_for_one_use(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    changed = RunDirectory.open(run.folder, ["search.evaluations=9", "evaluate.images=3"])
    assert (changed.recipe.search.evaluations, changed.recipe.evaluate.images) == (9, 3)
    assert RunDirectory.open(run.folder).recipe == run.recipe
    with pytest.raises(InputError, match="did you mean 'search'"):
        RunDirectory.open(run.folder, ["saerch.evaluations=9"])


# -- the lock ----------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from nas.run import RunDirectory
with RunDirectory.open(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_commands_never_work_on_one_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another command is at work on"), run.locked():
            pass
        other.kill()  # however a command ends, its lock ends with it
        other.wait()
        with run.locked():
            pass
    finally:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked(), pytest.raises(RunError, match="another command"), run.locked():
        pass


def test_a_run_that_vanished_cannot_be_locked(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "gone", tiny.recipe(tmp_path))
    with pytest.raises(RunError, match="cannot write to"), run.locked():
        pass


# -- what it keeps -----------------------------------------------------------------------------------------


def test_the_environment_says_what_matters_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2-5f3e"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "API_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setattr(sys, "argv", ["/home/someone/.venv/bin/nas", "train", "r.yaml", "--set", "seed=3"])
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    text = (run.folder / "environment.json").read_text()
    said = json.loads(text)
    assert said["command"] == "nas train r.yaml --set seed=3"
    assert {"litepose-nas", "torch", "numpy", "optuna", "onnxruntime"} <= set(said["versions"])
    assert said["python"] == ".".join(map(str, sys.version_info[:3]))
    for private in (secret, "/home/someone"):
        assert private not in text
    assert not any(name in text for name in ("TOKEN", "SECRET", "API_KEY"))


def test_the_recipe_is_kept_whole(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    kept = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert kept == run.recipe.to_plain()
    order = ["name", "seed", "data", "space", "init", "init_order", "train", "evaluate", "search", "trust"]
    assert list(kept) == order


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a b", "x" * 300, ".hidden", "é"])
def test_names_of_studies_stay_inside_the_run(tmp_path: Path, name: str) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    with pytest.raises(InputError, match="a study's name"):
        run.study(name)


def test_studies_are_those_with_a_result_oldest_first(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path))
    for age, name in enumerate(["b", "a", "unfinished"]):
        run.study(name).mkdir(parents=True)
        if name != "unfinished":
            (run.study(name) / "result.json").write_text("{}")
            os.utime(run.study(name) / "result.json", (age, age))
    assert run.studies() == ["b", "a"]
