"""The pages under docs/: their Python runs as it stands there, and what they point at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nas.recipe import recipe_from_mapping
from search_spaces.files import parse_yaml
from tests.nas.top_down import RECIPE

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page: Path) -> None:
    """All blocks of a page make one program."""
    code = "\n".join(blocks(page, "python"))
    assert code or not re.search("run by the tests", page.read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_are_sound(page: Path) -> None:
    """Parts of recipes, put into a whole one."""
    for block in blocks(page, "yaml"):
        part = parse_yaml(block, str(page))
        assert isinstance(part, dict)
        recipe_from_mapping({**RECIPE, **part}, str(page), ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:search_spaces|supernet|latency_tables|nas|tests|experiments)/[\w/.]+)`",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
