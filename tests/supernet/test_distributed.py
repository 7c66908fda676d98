"""A training shared by two processes: the same as in one, and none hangs when another ends."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import InputError, UnavailableError
from supernet import distributed
from supernet.distributed import ALONE, Ranks, joined
from supernet.training import Trainer
from tests.supernet import tiny
from tests.supernet.ranks import Started

SETTINGS: dict[str, Any] = {
    "rule": "sandwich",
    "shards": 2,
    "batch_size": 3,  # parts of two images and of one
    "ema": 0.9,
    "clip_norm": 0.5,
    "weight_decay": 0.01,
    "validate_every": 2,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make(folder: Path, ranks: Ranks = ALONE, seed: int = 0, **changes: Any) -> Trainer:
    """Return a trainer of 8 steps; only the first rank may touch the folder."""
    place = folder if ranks.first else folder / "not the first rank's"
    config = tiny.config(**{**SETTINGS, **changes})
    validate = tiny.weights_sum if ranks.first else None
    return Trainer(
        tiny.supernet(ranks.rank),  # only the first rank's weights count
        tiny.people(),
        config,
        seed=seed,
        folder=place,
        validate=validate,
        ranks=ranks,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(stream)]


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("metrics.csv", "validation.csv"):
        assert rows(first / name) == rows(second / name)
    for name in ("last", "best"):
        files = [folder / "checkpoints" / f"{name}.safetensors" for folder in (first, second)]
        assert tiny.same_checkpoint(*files), name


def whole(ranks: Ranks, folder: Path) -> int:
    return make(folder, ranks).run().steps


def interrupted_at_5(ranks: Ranks, folder: Path) -> int:
    """Run until Ctrl-C reaches the second rank alone."""

    def progress(step: int, steps: int, row: Any) -> None:
        if step == 5 and not ranks.first:
            os.kill(os.getpid(), signal.SIGINT)

    return make(folder, ranks).run(progress).steps


def resumed_and_killed_at_7(ranks: Ranks, folder: Path) -> int:
    """Go on until the second rank dies."""

    def progress(step: int, steps: int, row: Any) -> None:
        if step == 7 and not ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = make(folder, ranks, checkpoint_seconds=1e-6)
    assert trainer.resume() == (6 if ranks.first else 0)
    return trainer.run(progress).steps


def test_two_processes_do_what_one_does_with_two_shards(tmp_path: Path) -> None:
    assert make(tmp_path / "one").run().steps == 8
    assert Started(whole, tmp_path / "two").end() == [{"returned": 8}] * 2
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two" / "not the first rank's").exists()


def test_interrupted_and_killed_among_two_and_finished_by_one(tmp_path: Path) -> None:
    make(tmp_path / "one").run()
    cut = tmp_path / "cut"
    # The signal came to one rank after its fifth step; both end after the sixth.
    assert [each["error"] for each in Started(interrupted_at_5, cut).end()] == ["KeyboardInterrupt"] * 2
    began = time.monotonic()
    survivor, killed = Started(resumed_and_killed_at_7, cut).end()
    assert killed == {} and survivor["error"] == "RunError"
    assert "another process of this training has ended" in survivor["message"]
    assert "\n" not in survivor["message"]
    assert time.monotonic() - began < 50  # long before the timeout
    trainer = make(cut)
    assert trainer.resume() >= 6
    assert trainer.run().finished
    assert_same_run(tmp_path / "one", cut)


def spoilt(ranks: Ranks, folder: Path) -> int:
    return make(folder, ranks, learning_rate=1e30, warmup=0.0, epochs=20, clip_norm=0.0).run().steps


def test_numbers_that_are_not_finite_stop_all_and_one_tells(tmp_path: Path) -> None:
    first, second = Started(spoilt, tmp_path).end()
    assert (first["error"], second["error"]) == ("RunError", "ToldElsewhereError")
    assert first["message"].split("'")[0] == second["message"].split("'")[0]
    assert "is nan at step" in first["message"] or "is inf at step" in first["message"]


def of_other_seeds(ranks: Ranks, folder: Path) -> int:
    return make(folder, ranks, seed=ranks.rank).run().steps


def test_ranks_with_other_recipes_are_refused(tmp_path: Path) -> None:
    first, second = Started(of_other_seeds, tmp_path).end()
    assert "rank 1 differs (seed: 0 on rank 0, 1 there)" in first["message"]
    assert (first["error"], second["error"]) == ("RunError", "ToldElsewhereError")


def stuck(ranks: Ranks, folder: Path) -> int:
    def progress(step: int, steps: int, row: Any) -> None:
        if step == 2 and not ranks.first:
            time.sleep(4)

    return make(folder, ranks).run(progress).steps


def test_a_rank_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    told = Started(stuck, tmp_path, timeout_s=1.5).end()
    assert "does not answer" in told[0]["message"]
    assert told[1]["error"] == "RunError"


def test_parts_of_a_batch_are_shared_out_in_order() -> None:
    images = list(range(11))
    parts = [Ranks(rank, 2).part(images, 4) for rank in (0, 1)]
    assert parts == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]  # 3 and 3, 3 and 2
    assert ALONE.part(images, 4) == images


def test_what_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^train\.shards is 3, .*--set train\.shards=2"):
        Ranks(0, 2).shards(3)
    with pytest.raises(InputError, match="an image for each"):
        make(tmp_path, Ranks(0, 2), shards=8, batch_size=8)


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined("cpu") as ranks:
        assert ranks is ALONE and ranks.first and ranks.alone
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cuda:0") as ranks:
        assert ranks is ALONE


def test_environments_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"one GPU for 2 processes"), joined("cuda:0"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnavailableError, match="finds 1 GPUs"), joined("cuda"):
        pass
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(InputError, match="LOCAL_RANK"), joined("cpu"):
        pass


def test_gradients_travel_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 40)
    grads = [torch.zeros(n) for n in (4, 6, 1, 20, 1)]
    assert [len(bucket) for bucket in distributed._buckets(grads)] == [2, 1, 1, 1]
