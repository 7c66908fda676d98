"""``nas runs``: what it tells of runs in every state, and what it does to them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas.pruning import prune_run, removable
from nas.relocating import paths_of, relocate_run
from nas.run import RunDirectory
from nas.runs import checkpoint_facts, find_runs, look_at
from nas.runs_report import bytes_told
from nas.train import train
from search_spaces import InputError, RunError
from supernet.pose.synthetic import write_dataset
from tests.nas import tiny
from tests.nas.conftest import Outcome

Nas = Callable[..., Outcome]


def ok(told: Outcome) -> Any:
    assert told.code == 0, told.err
    return json.loads(told.out)


# -- looking -----------------------------------------------------------------------------------------------


def test_states_of_a_run(tmp_path: Path, trained_once: Path) -> None:
    new = RunDirectory.create(tmp_path / "new", tiny.recipe(tmp_path)).folder
    assert look_at(new).state == "new"
    shutil.copytree(trained_once, tmp_path / "run")
    found = look_at(tmp_path / "run")
    assert (found.state, found.name, found.busy) == ("trained", "tiny", "")
    assert found.step == found.steps and found.step
    assert found.best_validation_ap is not None and found.best_search_ap is None
    assert found.size_bytes == sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    (tmp_path / "run" / "trained.json").unlink()
    assert look_at(tmp_path / "run").progress == f"interrupted at step {found.step} of {found.steps}"
    run = RunDirectory.open(tmp_path / "run")
    with run.locked():
        busy = look_at(run.folder)
        assert busy.state == "training" and f"process {os.getpid()}" in busy.busy
    assert look_at(run.folder).busy == ""
    (run.folder / "recipe.yaml").write_text("name: tiny\nspace: {}\n")
    broken = look_at(run.folder)
    assert broken.state == "damaged" and "recipe" in broken.problems[0] and broken.name == "tiny"


def test_a_list_of_runs_and_what_is_none(box: Path, nas_: Nas, trained_once: Path) -> None:
    shutil.copytree(trained_once, box / "runs" / "good")
    shutil.copytree(trained_once, box / "runs" / "broken")
    (box / "runs" / "broken" / "recipe.yaml").write_text("[")
    (box / "runs" / "thesis").mkdir()
    study = box / "runs" / "good" / "search" / "spoilt"
    study.mkdir(parents=True)
    (study / "result.json").write_text('{"records": 3}')
    (study.parent / "gone").mkdir()
    told = ok(nas_("runs", "list", "--json"))
    assert [Path(each["folder"]).name for each in told["runs"]] == ["broken", "good"]
    assert [each["state"] for each in told["runs"]] == ["damaged", "trained"]
    assert {each["name"]: each["state"] for each in told["runs"][1]["studies"]} == {
        "gone": "deleted",
        "spoilt": "damaged",
    }
    assert told["no_runs"] == ["runs/thesis"]
    people = nas_("runs", "list")
    assert people.code == 0 and "thesis" in people.err and "is damaged" in people.err
    assert "trained" in nas_("runs", "show", "runs/good").out
    assert find_runs([box / "runs" / "good"])[0] == [box / "runs" / "good"]


@pytest.mark.parametrize("words", ["list nowhere", "list", "show .", "resume .", "prune .", "relocate ."])
def test_what_is_no_run_is_one_line(box: Path, nas_: Nas, words: str) -> None:
    told = nas_("runs", *words.split())
    assert told.code == 2 and told.err.startswith("error: ") and told.err.count("\n") == 1


def test_damaged_checkpoints_say_nothing(tmp_path: Path, trained_once: Path) -> None:
    path = tmp_path / "last.safetensors"
    assert checkpoint_facts(path) == {}
    whole = (trained_once / "checkpoints" / "last.safetensors").read_bytes()
    path.write_bytes(whole)
    assert checkpoint_facts(path)["identity"]["steps"] == str(checkpoint_facts(path)["step"])
    for content in (whole[:5], whole[:200], b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]", b""):
        path.write_bytes(content)
        assert checkpoint_facts(path) == {}


def test_bytes_as_people_say_them() -> None:
    assert [bytes_told(n) for n in (0, 999, 1000, 123_456, 999_600, 5 << 30)] == [
        *("0 B", "999 B", "1 kB", "123 kB", "1 MB", "5.37 GB"),
    ]


# -- comparing ---------------------------------------------------------------------------------------------


def test_runs_side_by_side(box: Path, nas_: Nas, trained_once: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(trained_once, box / name)
    same = ok(nas_("runs", "compare", "one", "two", "--json"))
    assert same["recipe_differences"] == {} and same["aps_comparable"] is True
    assert same["runs"][0]["ap_largest"] == same["runs"][1]["ap_largest"]
    values = yaml.safe_load((box / "two" / "recipe.yaml").read_text())
    values["train"]["learning_rate"] = 0.125
    (box / "two" / "recipe.yaml").write_text(yaml.safe_dump(values))
    noted = json.loads((box / "two" / "data.json").read_text())
    noted["images"]["search"] = "5 (0123456789ab)"
    (box / "two" / "data.json").write_text(json.dumps(noted))
    other = ok(nas_("runs", "compare", "one", "two", "--json"))
    assert list(other["recipe_differences"]) == ["train.learning_rate"]
    assert other["recipe_differences"]["train.learning_rate"][1] == 0.125
    assert not other["aps_comparable"] and "different images" in other["why_not"]
    assert "APs cannot be compared" in nas_("runs", "compare", "one", "two").out
    assert nas_("runs", "compare", "one", "./one").code == 2


# -- pruning -----------------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_can_be_made_again_is_removed(trained: Path, nas_: Nas) -> None:
    for name in ("kept", "deleted"):
        (trained / "search" / name).mkdir(parents=True)
        (trained / "search" / name / "pareto.png").write_text("a picture")
    (trained / "search" / "kept" / "study.journal").write_text("")
    (trained / "emitted" / "net").mkdir(parents=True)
    (trained / "emitted" / "net" / "card.json").write_text("{}")
    (trained / "emitted" / "net" / ".model-abcd_123.onnx").touch()
    (trained / "emitted" / ".net-0123abcd").mkdir()
    (trained / "notes.txt").write_text("mine")
    (trained / "bn-statistics").mkdir(exist_ok=True)
    (trained / "bn-statistics" / "0.safetensors").write_bytes(b"12345678")
    before = files(trained)
    told = ok(nas_("runs", "prune", "run", "--json"))
    assert not told["removed"] and files(trained) == before
    assert {Path(each["path"]).name for each in told["files"]} == {
        *("bn-statistics", "previous.safetensors", "deleted", ".model-abcd_123.onnx", ".net-0123abcd"),
    }
    assert told["size_bytes"] == sum(each["size_bytes"] for each in told["files"]) > 8
    kept = ok(nas_("runs", "prune", "run", "--keep", "statistics", "--keep", "previous", "--yes", "--json"))
    assert {each["kind"] for each in kept["files"]} == {"leftovers", "deleted-studies"}
    assert (trained / "bn-statistics").is_dir() and not (trained / "emitted" / ".net-0123abcd").exists()
    assert nas_("runs", "prune", "run", "--yes").code == 0
    assert before - files(trained) >= {"checkpoints/previous.safetensors", "search/deleted/pareto.png"}
    assert files(trained) >= {
        *("recipe.yaml", "notes.txt", "trained.json", "emitted/net/card.json", "search/kept/study.journal"),
        *("checkpoints/best.safetensors", "checkpoints/last.safetensors", "search/kept/pareto.png"),
    }
    assert "nothing to remove" in nas_("runs", "prune", "run").out
    assert nas_("runs", "prune", "run", "--also", "study:kept", "--also", "emitted:net", "--yes").code == 0
    assert not (trained / "search" / "kept").exists() and not (trained / "emitted" / "net").exists()


@pytest.mark.parametrize(
    "words",
    [["--keep", "all"], ["--also", "best"], ["--also", "study:../.."], ["--also", "emitted:.."],
     ["--also", "emitted:gone"], ["--yes", "--dry-run"]],
)  # fmt: skip
def test_pruning_refuses_nonsense(trained: Path, nas_: Nas, words: list[str]) -> None:
    before = files(trained)
    assert nas_("runs", "prune", "run", *words).code == 2
    assert files(trained) == before


def test_pruning_waits_for_nobody(trained: Path) -> None:
    run = RunDirectory.open(trained)
    with run.locked(), pytest.raises(RunError, match="another command is at work"):
        prune_run(trained, remove=True)
    (trained / "trained.json").unlink()
    assert "previous" not in {each.kind for each in removable(run)}
    with pytest.raises(RunError, match="is not done"):
        removable(run, also=["last"])


def test_what_a_command_is_writing_is_no_leftover(trained: Path) -> None:
    path = trained / "checkpoints" / ".last-abcdefgh.safetensors"
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert prune_run(trained, keep=["statistics", "previous"], remove=True) == []
    assert path.exists()
    with RunDirectory.open(trained).locked():
        assert not path.exists()  # the next command clears it away


def test_a_finished_training_is_not_begun_anew_for_want_of_its_last_checkpoint(
    trained: Path, nas_: Nas
) -> None:
    """The option promises that it needs it no more."""
    assert nas_("runs", "prune", "run", "--yes", "--also", "last").code == 0
    files = (trained / "metrics.csv", trained / "checkpoints" / "best.safetensors")
    before = [path.read_bytes() for path in files]
    told = nas_("train", "tiny.yaml", "-o", "run", "--resume")
    assert told.code == 0 and "is done, and its last checkpoint was removed: nothing is trained" in told.err
    assert [path.read_bytes() for path in files] == before
    assert look_at(trained).problems == () and look_at(trained).state == "trained"


# -- resuming ----------------------------------------------------------------------------------------------


def test_nothing_to_resume(trained: Path, nas_: Nas) -> None:
    assert "nothing was interrupted" in nas_("runs", "resume", "run").out


def test_training_goes_on_without_the_network_that_it_started_from(
    box: Path, nas_: Nas, one_thread: None
) -> None:
    shutil.copytree(_emitted_once(box, nas_), box / "start")
    recipe = tiny.recipe(box, init="start")
    run = RunDirectory.create(box / "again", recipe)

    with run.locked(), pytest.raises(KeyboardInterrupt):
        train(run, progress=_interrupting())
    assert look_at(run.folder).state == "interrupted"
    shutil.rmtree(box / "start")
    told = ok(nas_("runs", "resume", "again", "--json"))
    assert told["trained"]["steps"] == look_at(run.folder).steps
    assert look_at(run.folder).state == "trained"


def ids(study: Path) -> list[str]:
    return [record["id"] for record in json.loads((study / "result.json").read_text())["records"]]


def _interrupting() -> Callable[..., None]:
    def stop(step: int, steps: int, row: object) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)  # noted, and heeded once the step is done

    return stop


def _emitted_once(box: Path, nas_: Nas) -> Path:
    from search_spaces import space_from_config
    from supernet.checkpoint import save_network
    from supernet.pose.skeleton import get_skeleton
    from supernet.registry import build_network

    space = space_from_config(tiny.RECIPE["space"], joints=len(get_skeleton("coco17")))
    folder = box / "made"
    folder.mkdir()
    save_network(
        folder / "model.safetensors",
        build_network(space.smallest(), space.joints),
        {"skeleton": get_skeleton("coco17").to_json()},
    )
    return folder


def test_a_killed_search_goes_on_with_its_own_settings(
    asked: list[str], trained: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--max-params", "1M", "--evaluations", 6, "--population", 3, "--sampler", "random", "--seed", 5)
    assert nas_("search", "run", *words, "--name", "whole").code == 0
    whole = ids(trained / "search" / "whole")
    (trained / "evaluations.jsonl").unlink()
    del asked[:]
    evaluate = __import__("nas.searching").searching.SearchEvaluator.evaluate

    def dying(self: Any, arch: Any, rival: object = None) -> Any:
        if len(asked) == 4:
            raise KeyboardInterrupt
        return evaluate(self, arch, rival)

    with monkeypatch.context() as patch:
        patch.setattr("nas.searching.SearchEvaluator.evaluate", dying)
        assert nas_("search", "run", *words, "--name", "cut").code == 130
    (trained / "search" / "cut" / "result.json").unlink()  # as kill -9 leaves it
    assert {s.name: s.state for s in look_at(trained).studies} == {"whole": "done", "cut": "interrupted"}
    told = ok(nas_("runs", "resume", "run", "--json"))
    assert list(told["searched"]) == ["cut"] and told["trained"] is None
    assert ids(trained / "search" / "cut") == whole
    assert look_at(trained).studies[0].state == "done"
    (trained / "search" / "cut" / "request.json").unlink()
    (trained / "search" / "cut" / "result.json").unlink()
    assert "nas search" in ok(nas_("runs", "resume", "run", "--json"))["left"][0]


# -- moving ------------------------------------------------------------------------------------------------


def test_a_run_and_its_images_move(
    box: Path, nas_: Nas, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.searching.draw_study", lambda *arguments, **options: None)
    there = box / "here"
    for name, seed in (("train", 1), ("val", 2)):
        write_dataset(there / "data" / name, 16 if name == "train" else 5, seed, size=(96, 96), people=(1, 1))
    sources = {
        name: {"annotations": f"data/{name}/annotations.json", "images": f"data/{name}/images"}
        for name in ("train", "val")
    }
    tiny.write(there, data=sources, train__epochs=1, evaluate__calibration_images=4)
    assert nas_("train", "here/tiny.yaml", "-o", "here/run").code == 0
    assert nas_("search", "here/run", "--evaluations", 2, "--name", "first").code == 0
    facts = json.loads((there / "run" / "search" / "first" / "result.json").read_text())["context"]
    assert str(box) not in json.dumps(facts)
    elsewhere = box / "else where"
    elsewhere.mkdir()
    (there / "run").rename(elsewhere / "moved")
    (there / "data").rename(elsewhere / "images é")
    told = nas_("search", "else where/moved", "--evaluations", 3, "--name", "first")
    assert told.code == 2 and "does not exist" in told.err
    listed = ok(nas_("runs", "relocate", "else where/moved", "--json"))
    assert len(listed["paths"]) == 4 and not any(each["there"] for each in listed["paths"])
    former, present = f"{there / 'data'}", f"{elsewhere / 'images é'}"
    assert nas_("runs", "relocate", "else where/moved", "--data", "/nowhere=/x").code == 2
    moved = ok(nas_("runs", "relocate", "else where/moved", "--data", f"{former}={present}", "--json"))
    assert set(moved["same_images"]) == {"train", "calibrate", "search", "val"}
    assert all(each["there"] for each in moved["paths"])
    more = ok(nas_("search", "else where/moved", "--evaluations", 3, "--name", "first", "--json"))
    assert more["evaluated"] == 3
    result = json.loads((elsewhere / "moved" / "search" / "first" / "result.json").read_text())
    assert result["context"] == facts  # the same study, of the same images
    assert nas_("emit", "else where/moved").code == 0
    assert nas_("plot", "else where/moved", "--study", "first").code == 0
    assert nas_("train", "here/tiny.yaml", "-o", "else where/moved", "--resume").code == 2


def test_other_images_are_not_taken_for_the_run_s(box: Path, nas_: Nas) -> None:
    for name, seed in (("one", 1), ("two", 3), ("val", 2)):
        write_dataset(box / name, 12, seed, size=(96, 96), people=(1, 1))
    sources = {
        name: {"annotations": f"{place}/annotations.json", "images": f"{place}/images"}
        for name, place in (("train", "one"), ("val", "val"))
    }
    run = RunDirectory.create(box / "run", tiny.recipe(box, data=sources))
    from nas.data import open_datasets
    from nas.train import image_digests

    (run.folder / "data.json").write_text(json.dumps({"images": image_digests(open_datasets(run.recipe))}))
    before = (run.folder / "recipe.yaml").read_bytes()
    with pytest.raises(RunError, match=r"not those of the run .*train: 9 \("):
        relocate_run(run.folder, [f"{box / 'one'}={box / 'two'}"])
    with pytest.raises(InputError, match="does not exist"):
        relocate_run(run.folder, [f"{box / 'one'}={box / 'gone'}"])
    for move in ("one", "=x", f"{box / 'one'}="):
        with pytest.raises(InputError, match="OLD=NEW"):
            relocate_run(run.folder, [move])
    assert (run.folder / "recipe.yaml").read_bytes() == before
    told = nas_("train", "tiny.yaml", "-o", "run", "--set", "data.val.images=two/images", "--resume")
    assert told.code == 2 and "nas runs relocate" in told.err


def test_every_path_of_a_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "arch.json").write_text("{}")
    values = {
        "data": {
            "train": [{"annotations": "a.json", "images": "i", "boxes": "annotated"}],
            "val": {"annotations": "v.json", "images": "i", "boxes": "boxes.json"},
            "search": None,
            "skeleton": "mine.yaml",
        },
        "space": {"base": "arch.json"},
        "init": "start.pth",
        "train": {"distill": {"teacher": "t.safetensors"}},
        "search": {"seed_archs": ["litepose-s", "arch.json"]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    found = {each.setting: each.there for each in paths_of(tmp_path)}
    assert found == {
        **{f"data.train[0].{name}": False for name in ("annotations", "images")},
        **{f"data.val.{name}": False for name in ("annotations", "images", "boxes")},
        **{"data.skeleton": False, "space.base": True, "init": False, "train.distill.teacher": False},
        "search.seed_archs[1]": True,
    }


# -- other tools -------------------------------------------------------------------------------------------


def test_tensorboard_and_optuna_read_what_runs_hold(asked: list[str], trained: Path, nas_: Nas) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = event_accumulator.EventAccumulator(str(trained / "tensorboard"))
    curves.Reload()
    assert {"train/total", "validation/AP_mean"} <= set(curves.Tags()["scalars"])
    assert nas_("search", "run", "--evaluations", 3, "--name", "seen").code == 0
    before = (trained / "search/seen/study.journal").read_bytes()
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(trained / "search/seen/study.journal")))
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.study_name == "seen" and study.n_trials == 3
    loaded = optuna.load_study(study_name="seen", storage=storage)
    assert loaded.metric_names == ["ap", "macs"] and len(loaded.best_trials) >= 1
    assert (trained / "search/seen/study.journal").read_bytes() == before


def test_a_command_that_is_listed_is_not_disturbed(trained: Path) -> None:
    """Looking at a lock holds it for an instant; a command that begins then waits that long."""
    code = "import sys, time\nfrom search_spaces.files import is_free\nfrom pathlib import Path\n" + (
        "print('on', flush=True)\nend = time.monotonic() + 20\n"
        "while time.monotonic() < end: is_free(Path(sys.argv[1]) / '.lock'); time.sleep(0.002)"
    )
    looking = subprocess.Popen([sys.executable, "-c", code, str(trained)], stdout=subprocess.PIPE, text=True)
    try:
        assert looking.stdout is not None and looking.stdout.readline() == "on\n"
        for _ in range(100):
            with RunDirectory.open(trained).exclusively():
                time.sleep(0)
    finally:
        looking.kill()
        looking.wait()
        assert looking.stdout is not None
        looking.stdout.close()
