"""What the tests of the commands share: running one, a trained run, a web server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nas.searching
from nas.cli import main
from nas.run import RunDirectory
from nas.search import Evaluation
from nas.train import train
from search_spaces import Arch
from tests.conftest import single_thread
from tests.nas import tiny
from tests.nas.web import Web, serve


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def nas_(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), told.out, told.err)

    return run


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server on this machine, which no proxy stands before."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that nobody may change; take :func:`trained`."""
    folder = tmp_path_factory.mktemp("trained")
    run = RunDirectory.create(folder / "run", tiny.recipe(folder))
    with run.locked(), single_thread():
        train(run)
    return run.folder


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the command works."""
    folder = tmp_path / "box"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def trained(trained_once: Path, box: Path) -> Path:
    """The folder ``run`` in the box: a trained run of the tiny recipe, which lies beside it."""
    shutil.copytree(trained_once, box / "run")
    tiny.write(box)
    return box / "run"


@pytest.fixture
def asked(trained: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A trained run whose networks have a known AP with noise; what is evaluated is listed."""
    from tests.nas.scored import evaluation

    asked: list[str] = []

    def evaluate(self: Any, arch: Arch, rival: object = None) -> Evaluation:
        asked.append(arch.id)
        return evaluation(arch)

    monkeypatch.setattr(nas.searching.SearchEvaluator, "evaluate", evaluate)
    monkeypatch.setattr(nas.searching, "draw_study", lambda *arguments, **options: None)
    return asked
