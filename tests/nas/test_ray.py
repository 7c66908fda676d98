"""Ray Tune: the same result as in-process, worker death survived, errors brought home."""

from __future__ import annotations

import builtins
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nas.search import (
    MACS,
    Constraint,
    Evaluation,
    Executor,
    Kept,
    RayExecutor,
    SearchResult,
    open_shared,
    search,
)
from search_spaces import Arch, InputError, UnavailableError
from tests.nas.problems import Analytic, Staged, small_space

SPACE = small_space()


@dataclass
class Fragile(Staged):
    """Fails in its own way the first time it meets each of a few archs, and logs who evaluated what.

    Attributes
    ----------
    folder
        Where the marks and the log lie.
    deadly
        How to fail, by arch id: ``exit``, ``kill`` or ``raise``.
    """

    folder: Path = Path()
    deadly: Mapping[str, str] = field(default_factory=dict)

    def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
        mark = self.folder / f"died-{arch.id}"
        if (self.folder / "refuse").exists():
            raise InputError("the evaluation split has no image 'x.jpg'")
        if arch.id in self.deadly and not mark.exists():
            mark.write_text(str(os.getpid()))
            match self.deadly[arch.id]:
                case "exit":
                    os._exit(1)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case _:
                    raise ValueError("no such stage")
        with (self.folder / "log").open("a") as stream:
            stream.write(f"{arch.id} {os.getpid()}\n")
        return super().evaluate(arch, rival)


def run(
    path: Path, evaluator: Any, executor: Executor | None = None, trials: int = 18, **options: Any
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
    expected = run(tmp_path / "a.journal", Staged())
    assert {record.origin for record in expected.evaluated} == {"sample", "guided"}
    ways = {2: "exit", 7: "kill", 13: "raise"}
    deadly = {expected.evaluated[i].arch.id: way for i, way in ways.items()}
    evaluator = Fragile(folder=tmp_path, deadly=deadly)
    log = tmp_path / "log"
    # One Ray and one set of workers for all parts of this test: starting them is what takes the time.
    heard = signal.getsignal(signal.SIGTERM)
    with Kept(RayExecutor(workers=2)) as executor:
        assert signal.getsignal(signal.SIGTERM) is heard, "Ray would end a stopped search in its own way"
        with open_shared(tmp_path / "shared.jsonl") as shared:
            result = run(tmp_path / "b.journal", evaluator, executor, shared=shared)
            assert result == expected
            lines = [line.split() for line in log.read_text().splitlines()]
            assert sorted(arch for arch, _ in lines) == sorted(r.arch.id for r in result.evaluated)
            assert len({pid for _, pid in lines}) >= 2
            dead = {path.name.removeprefix("died-"): path.read_text() for path in tmp_path.glob("died-*")}
            assert dead.keys() == deadly.keys()
            assert str(os.getpid()) not in {pid for _, pid in lines}
            for arch, pid in lines:
                assert dead.get(arch) != pid, "a killed worker's arch is evaluated elsewhere"

            log.unlink()
            again = run(tmp_path / "c.journal", evaluator, executor, shared=shared, study_name="again")
            assert not log.exists(), "what is known is not sent to workers"
            assert all(record.reused for record in again.evaluated)
            assert list(again.front()) == [replace(record, reused=True) for record in expected.front()]

        (tmp_path / "refuse").touch()
        with pytest.raises(InputError, match=r"no image 'x\.jpg'"):
            run(tmp_path / "d.journal", evaluator, executor)
        (tmp_path / "refuse").unlink()
        assert run(tmp_path / "d.journal", evaluator, executor) == expected

        # The guided sampler proposes no networks that could be stopped so early.
        stopped: dict[str, Any] = {"early_stop": True, "trials": 30, "sampler": "nsga2"}
        stopping = run(tmp_path / "e.journal", Staged(), **stopped)
        assert stopping.partial
        assert run(tmp_path / "f.journal", evaluator, executor, **stopped) == stopping

        with pytest.raises(UnavailableError, match="each Ray worker asks for 3 GPU, but no machine of Ray's"):
            run(tmp_path / "g.journal", Analytic(), RayExecutor(gpus_per_worker=3))
        assert ray.is_initialized(), "a Ray that was running before is left running"
    assert not ray.is_initialized()
    assert capfd.readouterr().out == "", "standard output is the command's"


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ray" or name.startswith("ray."):
            raise ImportError(name)
        return real(name, *arguments, **options)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UnavailableError, match=r"pip install 'litepose-nas\[ray\]'"):
        run(tmp_path / "a.journal", Analytic(), RayExecutor())


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_named_at_once(tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:  # a port that is free once this is closed
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(
        UnavailableError, match=f"cannot be reached at '{address}': .*refused.*check the address"
    ):
        run(tmp_path / "a.journal", Analytic(), RayExecutor(address=address))


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"retries": -1}, {"gpus_per_worker": -1}, {"cpus_per_worker": 1.5}]
)
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"Ray"):
        RayExecutor(**options)
