"""The street of packages: who imports whom, held against ARCHITECTURE.md's table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "nas": {"nas", "supernet", "latency_tables", "search_spaces"},
    "supernet": {"supernet", "search_spaces"},
    "latency_tables": {"latency_tables", "search_spaces"},
    "search_spaces": {"search_spaces"},
}
TORCH_IN_TABLES = {"latency_tables/runtimes/torch_runtime.py"}
"""The one module of latency_tables that may import torch, and only inside its functions."""


def modules(room: str) -> list[Path]:
    """Return the room's modules that hold code."""
    return [path for path in sorted((ROOT / room).rglob("*.py")) if path.read_text().strip()]


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (top-level package, line, whether it is imported when the module is) of every import."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield name.name.split(".")[0], child.lineno, at_import
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                yield str(child.module).split(".")[0], child.lineno, at_import
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from walk(child, False)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(child, at_import and not function)

    yield from walk(ast.parse(path.read_text()), True)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_from_rooms_below(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {package}"
        for path in modules(room)
        for package, line, _ in imports(path)
        if package in ALLOWED and package not in ALLOWED[room]
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["search_spaces", "latency_tables"])
def test_torch_stays_out(room: str) -> None:
    found = {
        (str(path.relative_to(ROOT)), at_import)
        for path in modules(room)
        for package, _, at_import in imports(path)
        if package in ("torch", "torchvision")
    }
    assert found <= {(name, False) for name in TORCH_IN_TABLES}


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """The rules above rest on it."""
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "import torch.nn as nn\n"
        "if TYPE_CHECKING:\n    from nas.run import RunDirectory\n"
        "class A:\n    import supernet.base\n"
        "    def f(self):\n        if self:\n            from latency_tables.table import Row\n"
    )
    assert list(imports(source)) == [
        ("typing", 1, True),
        ("torch", 2, True),
        ("nas", 4, False),
        ("supernet", 6, True),
        ("latency_tables", 9, False),
    ]


def test_the_map_lists_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = set(re.findall(r"^\| `([a-z_/0-9]+\.py)` \|", text, flags=re.MULTILINE))
    existing = {
        str(path.relative_to(ROOT))
        for room in ALLOWED
        for path in modules(room)
        if path.name != "__init__.py"
    }
    assert listed == existing
