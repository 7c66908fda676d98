"""The whole way: its commands exist, and its page says what was recorded."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from search_spaces import RunError
from tests.test_readme import parse

ROOT = Path(__file__).resolve().parents[2]
FILLED = {
    "repository": "https://example.org/litepose-nas",
    "recipe": "nas/recipes/demo.yaml",
    "threads": "2",
    "epochs": "3",
    "onnx_target": "here-onnxruntime-int8-2t",
    "onnx_budget": "1.50ms@here-onnxruntime-int8-2t",
    "ncnn_target": "here-ncnn-int8-2t",
    "ncnn_budget": "2.50ms@here-ncnn-int8-2t",
}


@pytest.fixture(scope="module")
def way() -> ModuleType:
    spec = importlib.util.spec_from_file_location("whole_way", ROOT / "experiments" / "whole_way.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["whole_way"] = module
    spec.loader.exec_module(module)
    return module


def test_commands_parse_and_follow_each_other(way: ModuleType) -> None:
    lines = [line.format(**FILLED) for step in way.STEPS for line in step.commands]
    names = [parse(line)[0] for line in lines if line.startswith("nas ")]
    assert [*dict.fromkeys(names)] == ["train", "profile", "search", "emit", "export", "verify", "report"]
    assert (ROOT / way.RECIPE).is_file()


def test_the_page_tells_what_was_recorded(way: ModuleType) -> None:
    machine = {"cpus": 2, "processor": "a processor", "system": "Linux x86_64"}
    steps: list[dict[str, Any]] = [
        {
            "title": step.title,
            "commands": [
                {"command": line.format(**FILLED), "seconds": 30.0, "output": "AP 0.5 in /home/me/way/x.onnx"}
                for line in step.commands
            ],
        }
        for step in way.STEPS
    ]
    report = {"date": "2026-11-23T10:00:00+00:00", "machine": machine, "steps": steps}
    page = way.page(report)
    total = 30.0 * sum(len(step.commands) for step in way.STEPS)
    assert f"{total / 60:.0f} minutes in all" in page
    assert "AP 0.5 in .../x.onnx" in page and "/home/me" not in page
    assert page.count("\n## ") == len(way.STEPS)
    fenced = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    assert all(line.format(**FILLED) in "\n".join(fenced) for step in way.STEPS for line in step.commands)


def test_a_step_that_fails_ends_the_way(way: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'exit 3' ended with 3"):
        way.run_line("exit 3", tmp_path, tmp_path)


def test_it_begins_in_an_empty_folder(way: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(RunError, match="not empty"):
        way.main([str(tmp_path)])
