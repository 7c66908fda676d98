"""Ray Tune: the same result as in-process, worker death survived, errors brought home."""

from __future__ import annotations

import builtins
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nas.search import MACS, Constraint, Evaluation, RayExecutor, SearchResult, search
from search_spaces import Arch, InputError, UnavailableError
from tests.nas.problems import Analytic, analytic_ap, small_space
from tests.nas.raced import course, finalists_are_whole, racing

SPACE = small_space()


@dataclass
class Fragile:
    """Kills its process the first time it meets each of a few archs, and logs who evaluated what.

    Attributes
    ----------
    folder
        Where the marks and the log lie.
    deadly
        Ids of the archs.
    """

    folder: Path
    deadly: frozenset[str]

    def evaluate(self, arch: Arch) -> Evaluation:
        mark = self.folder / f"died-{arch.id}"
        if arch.id in self.deadly and not mark.exists():
            mark.touch()
            os._exit(1)
        with (self.folder / "log").open("a") as stream:
            stream.write(f"{arch.id} {os.getpid()}\n")
        return Evaluation(analytic_ap(arch), {"ap50": min(1.0, analytic_ap(arch) * 1.2)}, 0.0)


class Refusing(Analytic):
    def evaluate(self, arch: Arch) -> Evaluation:
        raise InputError("the evaluation split has no image 'x.jpg'")


def run(
    path: Path, evaluator: Any, executor: RayExecutor | None = None, trials: int = 18, **options: Any
) -> SearchResult:
    return search(
        SPACE, evaluator, storage=path, trials=trials, population=6, constraints=[Constraint(MACS, 0.9e9)],
        executor=executor, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_ray_gives_the_in_process_result_though_workers_die(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    expected = run(tmp_path / "a.journal", Analytic())
    assert {record.origin for record in expected.evaluated} == {"sample", "guided"}
    deadly = frozenset(expected.evaluated[i].arch.id for i in (2, 7))
    # One Ray for all parts of this test: starting it is what takes the time.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        result = run(tmp_path / "b.journal", Fragile(tmp_path, deadly), RayExecutor(workers=2))
        assert result == expected
        log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        assert sorted(arch for arch, _ in log) == sorted(r.arch.id for r in result.evaluated)
        assert len({pid for _, pid in log}) >= 2
        assert str(os.getpid()) not in {pid for _, pid in log}
        assert {p.name for p in tmp_path.glob("died-*")} == {f"died-{arch}" for arch in deadly}

        with pytest.raises(InputError, match=r"no image 'x\.jpg'"):
            run(tmp_path / "c.journal", Refusing(), RayExecutor(workers=1))
        assert run(tmp_path / "c.journal", Analytic()) == expected

        # Rivals travel to the workers: these end the same evaluations.
        races: dict[str, Any] = {"early_stop": True, "trials": 30}
        raced_here = run(tmp_path / "e.journal", racing(), **races)
        raced = run(tmp_path / "f.journal", racing(), RayExecutor(workers=2), **races)
        assert course(raced) == course(raced_here)
        finalists_are_whole(raced)

        with pytest.raises(UnavailableError, match="each Ray worker asks for 3 GPU, but Ray offers 0 in all"):
            run(tmp_path / "d.journal", Analytic(), RayExecutor(gpus_per_worker=3))
        assert ray.is_initialized(), "a Ray that was running before is left running"
    finally:
        ray.shutdown()
    assert "Trial" not in capfd.readouterr().out


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ray" or name.startswith("ray."):
            raise ImportError(name)
        return real(name, *arguments, **options)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UnavailableError, match=r"pip install 'litepose-nas\[ray\]'"):
        run(tmp_path / "a.journal", Analytic(), RayExecutor())


@pytest.mark.parametrize("options", [{"workers": 0}, {"retries": -1}, {"gpus_per_worker": -1}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"Ray"):
        RayExecutor(**options)
