"""``nas trust`` from the command line."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nas.trust.checking
import nas.trust.jobs
import nas.trust.standalone
from nas.data import open_datasets
from nas.known import search_context
from nas.recipe import TrustConfig
from nas.run import RunDirectory
from nas.train import open_supernet
from nas.trust.report import TrustReport, verdict_of
from nas.trust.scores import Score
from nas.trust.standalone import Task
from nas.trust.statistics import ClosePairs
from search_spaces import Arch, RunError
from supernet.state import save_weights
from tests.nas import tiny
from tests.nas.conftest import Outcome
from tests.nas.trust.made import with_ap
from tests.nas.trust.made_up import report as made_up_report
from tests.supernet.tiny import same_checkpoint
from tests.supernet.tiny import space as tiny_space

Command = Callable[..., Outcome]
QUICK = ("--jobs", 1, "--set", "trust.epochs=1", "--set", "trust.archs=12", "--set", "trust.resamples=200")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Arch]]]:
    """Instead of networks that learnt nothing: APs that rise with the MACs, noisily; nothing is trained.

    Gives what was scored: (``subnet`` or ``alone``, arch).
    """
    asked: list[tuple[str, Arch]] = []

    def measure(evaluator: Any, arch: Arch, **about: Any) -> Score:
        kind = "alone" if "seed" in about else "subnet"
        asked.append((kind, arch))
        noise = int(arch.id, 16) * (7 if kind == "alone" else 1) % 10
        matches = with_ap(min(0.9, arch.cost(17).macs / 2e7) + noise / 100, seed=noise)
        return Score(arch, matches.stats(), matches, about)

    def train(bench: Any, task: Any, progress: Any = None) -> Score:
        score = measure(None, task.arch, seed=task.seed, steps=4, seconds=1.0)
        score.save(bench.folder.place(task))
        return score

    monkeypatch.setattr(Score, "measure", measure)
    monkeypatch.setattr(nas.trust.standalone.Workbench, "train", train)
    yield asked


def test_the_report_says_how_rankings_agree(
    trained: Path, nas_: Command, made_up: list[tuple[str, Arch]]
) -> None:
    told = nas_("trust", trained, *QUICK)
    assert told.code == 0, told.err
    assert "12 networks in the supernet and trained alone" in told.out
    assert "12 of 12 trained" in told.err
    for word in ("Kendall tau", "Spearman rho", "MACs alone", "regret", "trust.repeats=2 tells"):
        assert word in told.out
    report = TrustReport.load(trained)
    assert report is not None
    assert [a.macs for a in report.archs] == sorted(a.macs for a in report.archs)
    found = report.statistics
    assert 0 < found.supernet.kendall.low < found.supernet.kendall.value < 1
    assert found.supernet.kendall != found.macs.kendall
    assert all(each in told.out for each in report.verdict)
    assert report.verdict == verdict_of(found)
    assert TrustReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    with (trained / "trust" / "trust.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [a.arch.id for a in report.archs]
    assert [float(row["supernet_ap"]) for row in rows] == [a.supernet.value for a in report.archs]
    assert [float(row["standalone_ap_seed_0"]) for row in rows] == [a.standalone_ap for a in report.archs]
    assert all(
        int(row["head.deconv0.width"]) == a.arch["head.deconv0.width"] for row, a in zip(rows, report.archs)
    )

    # Again: nothing is done anew, and the same is told.
    assert len(made_up) == 24
    again = nas_("trust", trained, *QUICK)
    assert len(made_up) == 24
    assert again.out == told.out
    assert TrustReport.load(trained) == report

    # A second seed: the first one's trainings stay.
    more = nas_("trust", trained, *QUICK, "--set", "trust.repeats=2", "--json")
    assert [kind for kind, _ in made_up[24:]] == ["alone"] * 12
    said = json.loads(more.out)
    assert said["report"] == str(trained / "trust" / "trust.json")
    assert (said["statistics"]["repeats"], said["statistics"]["ceiling"]["basis"]) == (2, "seeds")
    assert "Two stand-alone trainings of these networks agree with each other" in " ".join(said["verdict"])


def test_another_supernet_is_scored_anew_and_its_old_report_is_stale(
    trained: Path, nas_: Command, made_up: list[tuple[str, Arch]]
) -> None:
    assert nas_("trust", trained, *QUICK).code == 0
    run = RunDirectory.open(trained)
    report = TrustReport.load(trained)
    assert report is not None
    data = open_datasets(run.recipe)
    assert report.stale(search_context(run, data)) == []
    space = run.recipe.build_space(data.skeleton)
    supernet = open_supernet(run, space)
    with torch.no_grad():
        next(supernet.parameters()).add_(1)
    save_weights(run.best, supernet, space, 1, {})
    assert report.stale(search_context(run, data)) == ["supernet"]
    made_up.clear()
    assert nas_("trust", trained, *QUICK).code == 0
    assert [kind for kind, _ in made_up] == ["subnet"] * 12
    renewed = TrustReport.load(trained)
    assert renewed is not None and renewed.stale(search_context(run, data)) == []


def test_a_supernet_that_is_trained_on_meanwhile_is_the_one_that_is_scored(
    trained: Path, made_up: list[tuple[str, Arch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-alone trainings take hours; the report is of the weights that it names."""
    run = RunDirectory.open(trained)
    run = RunDirectory(run.folder, replace(run.recipe, trust=TrustConfig(archs=3, epochs=1, resamples=100)))
    data = open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    supernet = open_supernet(run, space)
    train_alone, score = nas.trust.checking.train_standalone, Score.measure
    scored: list[torch.Tensor] = []

    def slow(*args: Any, **settings: Any) -> Any:
        with torch.no_grad():
            next(supernet.parameters()).add_(1)
        save_weights(run.best, supernet, space, 1, {})
        return train_alone(*args, **settings)

    def measure(evaluator: Any, arch: Arch, **about: Any) -> Score:
        if evaluator is not None:
            scored.append(next(evaluator.supernet.parameters()).clone())
        return score(evaluator, arch, **about)

    monkeypatch.setattr(nas.trust.checking, "train_standalone", slow)
    monkeypatch.setattr(Score, "measure", measure)
    report = nas.trust.checking.check_trust(run, jobs=1, data=data)
    assert report.stale(search_context(run, data)) == []
    assert len(scored) == 3 and all(torch.equal(each, next(supernet.parameters())) for each in scored)


def test_a_training_process_that_is_gone_is_no_broken_pipe() -> None:
    mine, its = multiprocessing.Pipe()
    its.close()
    nas.trust.jobs._hand(mine, Task(tiny_space().smallest(), 0))
    with pytest.raises(EOFError):
        mine.recv()


def test_networks_that_learnt_nothing_are_no_ranking(trained: Path, nas_: Command) -> None:
    """The real way, with nothing made up: trainings of 4 steps leave an AP of 0."""
    told = nas_(
        *("trust", trained, "--standalone", "alone", "--jobs", 1),
        *("--set", "trust.epochs=1", "--set", "trust.archs=3", "--set", "trust.resamples=100"),
    )
    assert told.code == 0, told.err
    assert "All 3 networks score alike when trained alone" in told.out
    assert not (trained / "trust" / "standalone").exists()
    assert len(list(Path("alone").glob("*/score.json"))) == 3


def test_mistakes_are_told_in_a_line(trained: Path, nas_: Command) -> None:
    recipe = trained.parent / "tiny.yaml"
    for arguments, message in (
        ((recipe, "--only-standalone"), "there is no run 'runs/tiny' to keep stand-alone trainings in"),
        ((trained, "--set", "train.epochs=3"), "is trained already"),
        ((trained, "--set", "trust.archs=2"), "trust.archs is at least 3, not 2"),
        ((trained, "--set", "trust.archs=513"), "the space holds 512 different networks"),
        ((trained, "--set", "trust.probes=513"), "trust.probes is 513, but the space holds 512"),
        ((trained, "--set", "trust.epoch=3"), "did you mean 'epochs'"),
    ):
        told = nas_("trust", *arguments)
        assert told.code == 2 and told.err.startswith("error: ") and message in told.err
        assert told.err.count("\n") == 1
    (trained / "checkpoints" / "best.safetensors").unlink()
    told = nas_("trust", trained)
    assert told.code == 2 and "has no trained supernet" in told.err


def test_the_verdict_tells_of_networks_of_similar_macs() -> None:
    found = made_up_report().statistics

    def said(close: ClosePairs | None) -> list[str]:
        return [each for each in verdict_of(replace(found, close=close)) if "similar MACs" in each]

    assert said(None) == []
    (told,) = said(ClosePairs(7, 4.5, 6))
    assert "Of 7 pairs of networks" in told and "it orders 4.5" in told and "alone order 6 of them so" in told
    (told,) = said(ClosePairs(0, 0, 0))
    assert "No two networks" in told


def test_a_damaged_report_is_told(trained: Path) -> None:
    (trained / "trust").mkdir()
    for text in ("", "[]", '{"format": 9}', '{"format": 1}', '{"format": 1, "archs": 3}'):
        (trained / "trust" / "trust.json").write_text(text)
        with pytest.raises(RunError, match=r"trust report .*run 'nas trust' again"):
            TrustReport.load(trained)


# -- side by side --------------------------------------------------------------------------------------------


def start(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Start the command on the tiny recipe in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "nas.cli",
        "trust",
        "tiny.yaml",
        "--only-standalone",
        *map(str, arguments),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)


SIDE_BY_SIDE = {
    "trust__archs": 3,
    "trust__epochs": 8,
    "train__validate_every": 8,
    "train__workers": 0,
    "train__checkpoint_seconds": 0.01,
}
"""Trainings of 48 steps, each of which writes a checkpoint."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of the same trainings, one after another and never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = RunDirectory.create(folder / "run", tiny.recipe(folder, **SIDE_BY_SIDE))
    nas.trust.checking.train_standalone(run, folder / "one", jobs=1)
    return folder / "one"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_side_by_side_it_goes_on_to_the_same_end(
    tmp_path: Path, undisturbed: Path, one_thread: None, how: signal.Signals
) -> None:
    tiny.write(tmp_path, **SIDE_BY_SIDE)
    process = start(tmp_path, "--standalone", "two", "--jobs", 2)
    until = time.monotonic() + 240  # two starts of Python and torch, maybe beside other tests
    while len(list(tmp_path.glob("two/*/checkpoints/last.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(120)
    assert process.returncode == (-9 if how == signal.SIGKILL else 128 + how)
    time.sleep(1)
    steps = {path: path.read_bytes() for path in tmp_path.glob("two/*/metrics.csv")}
    time.sleep(1)  # its processes are gone with it
    assert steps == {path: path.read_bytes() for path in tmp_path.glob("two/*/metrics.csv")}
    assert len(list(tmp_path.glob("two/*/score.json"))) < 3, "it was finished before the signal came"
    run = RunDirectory.create(tmp_path / "run", tiny.recipe(tmp_path, **SIDE_BY_SIDE))
    nas.trust.checking.train_standalone(run, tmp_path / "two", jobs=1)
    places = sorted(path.parent.name for path in undisturbed.glob("*/score.json"))
    assert len(places) == 3
    for place in places:
        first, second = undisturbed / place, tmp_path / "two" / place
        assert same_checkpoint(*(p / "checkpoints" / "best.safetensors" for p in (first, second)))
        one, two = Score.load(first), Score.load(second)
        assert one is not None and two is not None and one.stats == two.stats
