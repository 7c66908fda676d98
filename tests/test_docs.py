"""The pages under docs/: their Python runs as it stands there, and what they point at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nas.recipe import recipe_from_mapping
from search_spaces.files import parse_yaml
from supernet.pose.skeleton import COCO17
from tests.nas import tiny
from tests.nas.top_down import RECIPE
from tests.test_readme import NO_RECIPES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ELSEWHERE = ("python.md",)
"""Pages whose Python needs a recipe beside it: tests/test_readme.py."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name
)
def test_python_runs(page: Path) -> None:
    """All blocks of a page make one program."""
    code = "\n".join(blocks(page, "python"))
    assert code or not re.search("run by the tests", page.read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_are_sound(page: Path) -> None:
    """Parts of recipes, put into a whole one of their family."""
    for block in blocks(page, "yaml"):
        if block.startswith(tuple(f"# {name}\n" for name in NO_RECIPES)):
            continue
        part = parse_yaml(block, str(page))
        assert isinstance(part, dict)
        bottom_up = part.get("space", {}).get("kind", "").startswith("litepose")
        recipe = recipe_from_mapping({**(tiny.RECIPE if bottom_up else RECIPE), **part}, str(page), ROOT)
        recipe.build_space(COCO17)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:search_spaces|supernet|latency_tables|nas|tests|experiments)/[\w/.]+)`",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
