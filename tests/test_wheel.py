"""A built wheel holds the four packages with all of their files, and nothing else of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("latency_tables", "nas", "search_spaces", "supernet")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def files_of(folder: Path) -> set[str]:
    """Return the files of the packages below a folder, without what Python caches."""
    return {
        path.relative_to(folder).as_posix()
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel that is built without a network, from a copy of the repository."""
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed: it builds the wheel")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"setuptools {version} is older than pyproject.toml asks for (77)")
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "dist"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_packages(wheel: set[str]) -> None:
    """Recipes, pages and tables travel with the modules: a new kind of file needs its glob in pyproject."""
    assert {name for name in wheel if ".dist-info/" not in name} == files_of(ROOT)


def test_the_wheel_holds_what_commands_read_besides_modules(wheel: set[str]) -> None:
    """The comparison above finds files: some that commands would fail without, by name."""
    assert wheel >= {
        "nas/recipes/demo.yaml",
        "nas/pages/report.html",
        "nas/py.typed",
        "search_spaces/archs.json",
        "search_spaces/listed.json",
        "supernet/pose/skeletons.json",
        "latency_tables/devices/raspberry-pi-4-unstated-unstated.csv",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
