"""The commands of the tutorials, run as they stand there, in order, on less data and smaller networks."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from supernet.pose.synthetic import write_dataset
from tests.nas import tiny
from tests.nas.test_workflow import call
from tests.test_readme import TINY, command_lines, fences

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARK = "<!-- executed -->\n```sh\n"
QUICK = {
    "search": ["--evaluations", "2", "--population", "2"],
    "profile": ["--seconds-per-layer", "0.004", "--rounds", "1", "--networks", "5", "--on-drift", "warn"],
    "eval": ["--bootstrap", "20"],
    "emit": [],
    "time": ["--rounds", "2", "--seconds", "0.02"],
    "export": ["--bootstrap", "20"],
    "verify": ["--rounds", "2", "--seconds", "0.1"],
}
"""What is added to commands here so that they take seconds."""


def commands(page: str) -> list[str]:
    """Return the command lines of the blocks that are marked as run by the tests."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(rf"{re.escape(MARK)}(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert text.count(MARK) == len(found) > 2
    return [line for block in found for line in block.splitlines()]


def run(line: str) -> str:
    """Run a command line as it stands; return what it printed."""
    program, *words = shlex.split(line, comments=True)
    assert program == "nas"
    told = call(*words, *QUICK.get(words[0], []))
    assert told.code == 0, f"{line}\n{told.err}"
    return told.out


def named(page: str, folder: str) -> list[str]:
    """Return the files in a folder that a page promises, as ``folder/name``."""
    return re.findall(rf"`({folder}/[\w./-]+)`", (DOCS / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _quiet(one_thread: None) -> None:
    """Small networks are faster with one thread."""


def test_own_data(tmp_path: Path) -> None:
    """``docs/own-data.md``: its recipe's data section and all marked commands."""
    page = "own-data.md"
    (recipe,) = (yaml.safe_load(block) for block in fences((DOCS / page).read_text(encoding="utf-8"), "yaml"))
    with contextlib.chdir(tmp_path):
        for seed, (name, images) in enumerate({"train": 24, "val": 6}.items()):
            source = recipe["data"][name]
            write_dataset(tmp_path / f"drawn-{name}", images, seed, size=(96, 96), people=(1, 2))
            Path(source["images"]).parent.mkdir(exist_ok=True)
            (tmp_path / f"drawn-{name}" / "annotations.json").rename(source["annotations"])
            (tmp_path / f"drawn-{name}" / "images").rename(source["images"])
        small = {**yaml.safe_load(TINY), "name": recipe["name"], "data": recipe["data"]}
        small["space"] |= {"resolutions": [64], "deconv_kernels": [4]}
        Path("mine.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
        said = {line: run(line) for line in commands(page)}
        assert [line.split()[1] for line in said] == [
            *(
                "data",
                "train",
                "profile",
                "search",
                "plot",
                "emit",
                "eval",
                "predict",
                "export",
                "verify",
                "report",
            )
        ]
        for path in (*named(page, "runs/mine"), *named(page, "tables"), *named(page, "found")):
            assert Path(path).exists(), path
        assert list(Path("checked").iterdir())
        assert {path.name for path in Path("runs/mine").iterdir()} >= {"metrics.csv", "validation.csv"}
        assert {path.name for path in Path("runs/mine/emitted/mynet").iterdir()} >= {
            *("arch.json", "model.safetensors", "model.onnx", "card.json")
        }
        assert list(Path("runs/mine/search").rglob("pareto.html"))
        assert len(list(Path("found/drawn").iterdir())) == 6


def test_ten_minutes(tmp_path: Path) -> None:
    """``docs/ten-minutes.md``: what is asked of the demo's run, here of a run of the tiny recipe."""
    with contextlib.chdir(tmp_path):
        assert call("train", tiny.write(tmp_path), "-o", "runs/demo").code == 0
        said = {line: run(line) for line in commands("ten-minutes.md")}
        assert [line.split()[1] for line in said] == ["search", "plot", "emit", "cost", "eval", "time"]
        assert {path.suffix for path in Path("timed").iterdir()} >= {".json", ".csv", ".png"}
        assert Path("small/model.onnx").exists()


def test_marked_commands_are_checked_like_all_others() -> None:
    known = {line for page, line in command_lines() if page in ("docs/own-data.md", "docs/ten-minutes.md")}
    assert {*commands("own-data.md"), *commands("ten-minutes.md")} <= known
