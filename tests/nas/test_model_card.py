"""Model cards: what is measured is told as such, what is not known is said, and a page is never older."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.data import open_datasets
from nas.model_card import CARD_FORMAT, changing_card, read_card, render, write_card
from nas.provenance import data_terms
from nas.recipe import recipe_from_mapping
from search_spaces import InputError, RunError
from search_spaces.files import locked
from tests.nas import tiny
from tests.nas.conftest import Outcome

INTERVAL = {"value": 0.41, "low": 0.38, "high": 0.44, "confidence": 0.95, "resamples": 1000}
PREDICTED: dict[str, Any] = {
    "ms": 30.0,
    "low_ms": 27.0,
    "high_ms": 34.0,
    "coverage": 0.9,
    "provenance": "calibrated-estimate",
    "calibrated": True,
    "fitted": 0.25,
    "beyond": "",
    "budget": {"ms": 32.0, "by": "this command", "upper_end_within": False, "measured_within": None},
    "measured_here": None,
    "not_measured": "it is another device, 'pi'",
}
CARD: dict[str, Any] = {
    "format": 1,
    "id": "0123456789ab",
    "paradigm": "bottom-up",
    "arch": {"family": "litepose"},
    "skeleton": {"name": "two", "joints": ["left_hand", "right_hand"]},
    "input": {"height": 64, "width": 64, "colour": "RGB", "normalised": "ImageNet"},
    "cost": {"params": 1_000_000, "macs": 500_000_000, "macs_paper": 800_000_000},
    "latency": {"pi-onnxruntime-fp32-4t": PREDICTED},
    "ap": {
        "on": "9 images of somewhere",
        "protocol": "coco",
        "flip": False,
        "joints_scored": ["left_hand"],
        "stats": {"AP": 0.41, "AP_large": -1.0},
        "interval": INTERVAL,
    },
    "exports": [
        {
            "file": "exports/net.int8.onnx",
            "files": ["exports/net.int8.onnx"],
            "format": "onnx",
            "runtime": "onnxruntime",
            "precision": "int8",
            "size_bytes": 1_100_000,
            "max_abs_error": 0.02,
            "max_rel_error": 0.05,
            "ap": {"value": 0.40, "low": 0.37, "high": 0.43},
            "torch_ap": {"value": 0.41, "low": 0.38, "high": 0.44},
            "difference": {"value": -0.01, "low": -0.02, "high": 0.0},
            "tolerance": 0.02,
            "within_tolerance": False,
            "images": 9,
            "date": "2026-01-01T00:00:00+00:00",
        }
    ],
    "notices": ["mind the <gap> | and *stars*"],
    "data": {
        "images": {"train": 5, "search": 2, "val": 9},
        "sources": [{"name": "data.train", "where": "file 'a'", "licence": None, "description": None}],
        "weights": None,
    },
}


def page(**changes: Any) -> str:
    return render({**copy.deepcopy(CARD), **changes})


def test_the_page_tells_what_is_measured_and_what_is_not() -> None:
    text = page()
    assert "AP 0.410 (95% interval 0.380 to 0.440), measured on 9 images of somewhere" in text
    assert "Not scored, since these images do not annotate them: right\\_hand." in text
    assert "an estimate: nothing was measured on this target with this toolkit; 25% of it fitted" in text
    assert "32 ms: **NO**" in text and "was not measured by 'nas emit': it is another device" in text
    assert "| -0.010 (-0.020 to +0.000) | **NO** (0.02) |" in text
    assert "not stated" in text and "A licence that is not stated is not a permission." in text
    assert "mind the \\<gap\\> \\| and \\*stars\\*" in text
    assert "0.5000 G" in text and "0.8000 G" in text and "none to find" in text
    assert "No latency table answered" in page(latency={})
    assert "measured on this target, with" in page(
        latency={"here": {**PREDICTED, "provenance": "measured-here", "budget": None}}
    )


def test_a_budget_that_the_measurement_misses_is_said_aloud() -> None:
    measured = {"median_ms": 33.0, "p10_ms": 32.0, "p90_ms": 35.0, "runs": 50}
    budget = {**PREDICTED["budget"], "upper_end_within": True, "measured_within": False}
    text = page(latency={"here": {**PREDICTED, "measured_here": measured, "budget": budget}})
    assert "32 ms: yes" in text and "**measured, it is over the budget** of 32 ms" in text


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(CARD))))
def test_a_card_that_lacks_anything_still_makes_a_page(missing: set[str]) -> None:
    """Cards of earlier versions have fewer entries."""
    text = render({key: value for key, value in CARD.items() if key not in missing})
    assert text.startswith("# Pose network ") and "None" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_no_text_breaks_a_table_or_becomes_a_heading(text: str) -> None:
    data = {**CARD["data"], "sources": [{"name": text, "where": text, "licence": text, "description": text}]}
    lines = render({**CARD, "data": data, "notices": [text]}).splitlines()
    (row,) = [line for line in lines[lines.index("## Training data") :] if line.startswith("| `")]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 5
    assert sum(line.startswith("#") for line in lines) == sum(
        line.startswith("#") for line in page().splitlines()
    )


def test_the_page_follows_the_card(tmp_path: Path) -> None:
    write_card(tmp_path, CARD)
    assert read_card(tmp_path) == CARD
    with changing_card(tmp_path) as card:
        card["id"] = "ffffffffffff"
        assert read_card(tmp_path)["id"] == CARD["id"]  # nothing is written before the end
    assert read_card(tmp_path)["id"] == "ffffffffffff"
    assert (tmp_path / "README.md").read_text().startswith("# Pose network ffffffffffff\n")
    with pytest.raises(ZeroDivisionError), changing_card(tmp_path) as card:
        card["id"] = 1 / 0
    assert read_card(tmp_path)["id"] == "ffffffffffff"
    with pytest.raises(InputError, match=r"model card of .* is malformed"), changing_card(tmp_path) as card:
        card["cost"] = {"macs": "many"}
    assert read_card(tmp_path)["cost"] == CARD["cost"]
    busy = locked(tmp_path / ".card.lock", "busy")
    with busy, pytest.raises(RunError, match="another command is writing"), changing_card(tmp_path):
        pass


def test_what_is_no_card_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it holds no card\.json; make one with 'nas emit'"):
        read_card(tmp_path)
    for text, why in {
        "[]": "is a mapping of names to values, not list",
        '{"format": "1"}': "'format' is a whole number, not '1'",
        f'{{"format": {CARD_FORMAT + 1}}}': "update litepose-nas",
        '{"id": ': "not valid JSON",
    }.items():
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(InputError, match=why):
            read_card(tmp_path)
    (tmp_path / "card.json").write_text('{"id": "of an early version"}')
    assert read_card(tmp_path) == {"id": "of an early version"}


def test_licences_are_the_recipes_or_the_files_or_not_stated(tmp_path: Path) -> None:
    def source(name: str, **told: Any) -> dict[str, str]:
        content = json.loads((tmp_path / "bare.json").read_text()) | told
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return {"annotations": str(tmp_path / f"{name}.json"), "images": str(tmp_path)}

    (tmp_path / "bare.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    listed = [{"id": 1, "name": "CC BY 4.0", "url": "https://x.test"}, {"id": 2, "name": "CC0"}, {"id": 3}]
    values = tiny.values()
    data = open_datasets(recipe_from_mapping(values, "r", tmp_path))
    values["data"] = {
        "train": [
            source("listed", licenses=listed, info={"description": "mine", "year": 2026}),
            {**source("own", licenses=listed), "licence": "ours alone"},
            source("silent", info="odd", licenses="odd"),
        ],
        "val": tiny.RECIPE["data"]["val"],
    }
    found = data_terms(recipe_from_mapping(values, "r", tmp_path), data)
    licences = {each["name"]: each["licence"] for each in found["sources"]}
    assert licences["data.train[0]"] == "each image has one of these: CC BY 4.0 (https://x.test); CC0"
    assert licences["data.train[1]"] == "ours alone"
    assert licences["data.train[2]"] is None
    assert licences["data.val"].startswith("none needed")
    assert found["sources"][0]["description"] == "mine" and found["sources"][2]["description"] is None
    assert found["images"] == {"train": len(data.train), "search": len(data.search), "val": 6}
    values["data"]["train"][0]["licence"] = "  "
    with pytest.raises(InputError, match="'licence' is empty"):
        recipe_from_mapping(values, "r", tmp_path)


def test_an_emitted_card_says_how_to_make_it_again(
    asked: list[str], box: Path, nas_: Callable[..., Outcome]
) -> None:
    """The commands on the card are such as the parser takes, and the last one emits the same network."""
    assert nas_("search", "run", "--max-macs", "20M").code == 0
    told = nas_("emit", "run", "--max-macs", "20M", "-o", "net", "--json")
    assert told.code == 0
    card = read_card(Path("net"))
    assert card["format"] == CARD_FORMAT and card["files"]["model.onnx"] > 0
    assert set(card["sha256"]) == {"model.onnx", "model.safetensors"}
    train, search, emit = (shlex.split(line) for line in card["reproduce"]["commands"])
    assert train == ["nas", "train", "run/recipe.yaml", "--output", "NEW-RUN"]
    studies = sorted(path.name for path in (box / "run" / "search").iterdir())
    assert search[3:5] == ["--max-macs", "20000000"]
    assert nas_(*search[1:]).code == 0  # it is the same study, finished
    assert sorted(path.name for path in (box / "run" / "search").iterdir()) == studies
    again = nas_(*emit[1:], "--json")
    assert again.code == 0 and json.loads(again.out)["id"] == card["id"]
    assert card["id"] in (box / "net" / "README.md").read_text()
