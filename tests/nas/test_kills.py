"""``nas train`` killed again and again, anywhere: it ends as if that had never been.

The moments are told by what the process does, not by the clock: the n-th call of any function, or a place in
the writing of the n-th checkpoint. So they are the same ones on a fast machine and on a busy one.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest

from tests.nas import tiny
from tests.supernet.ranks import context

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 2,
    "rule": "sandwich",
    "ema": 0.9,
    "validate_every": 1,
    "checkpoint_seconds": 1e-6,  # a checkpoint after every step
    "workers": 1,
}
IMAGES, STEPS = 12, 12

Moment = tuple[str, int]
"""``("call", n)``: at the n-th call of anything in the main thread. ``("cut", n)``: with two thirds of the
n-th checkpoint written. ``(NAME, n)``: right after the n-th time that a file was renamed to NAME."""

NEVER: Moment = ("call", sys.maxsize)
WRITES: tuple[Moment, ...] = (
    ("best.safetensors", 1),  # the validation that chose it is not noted yet, and done again
    ("previous.safetensors", 2),  # there is no last checkpoint now
    ("cut", 2),
    ("last.safetensors", 2),
)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nothing runs after SIGKILL")


class Doom:
    """Counts what this process does, and kills it at a moment."""

    def __init__(self, moment: Moment) -> None:
        self.what, self.left = moment

    def passed(self, what: str) -> bool:
        """Count one of these; return whether it is the one to die at."""
        self.left -= what == self.what
        return self.left == 0 and what == self.what

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and self.passed("call"):
            die()

    def arm(self) -> None:
        import supernet.state

        state: Any = supernet.state
        system: Any = os
        save_file, replace = state.save_file, os.replace

        def save(tensors: Any, path: Path, **named: Any) -> None:
            save_file(tensors, path, **named)
            if self.passed("cut"):
                os.truncate(path, path.stat().st_size * 2 // 3)
                die()

        def rename(source: Any, target: Any, **named: Any) -> None:
            replace(source, target, **named)
            if self.passed(Path(target).name):
                die()

        state.save_file = save
        system.replace = rename
        sys.setprofile(self.profile)


def nas(folder: str, arguments: list[str], moment: Moment, counted: Any) -> None:
    """Run the command in a fresh process until that moment; otherwise tell how many calls there were."""
    import torch

    from nas.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    doom = Doom(moment)
    doom.arm()
    try:
        main(arguments)
    finally:
        sys.setprofile(None)
        counted.put(moment[1] - doom.left)


def train(box: Path, *arguments: str, moment: Moment = NEVER) -> tuple[int, Any]:
    """Return how the process ended, and where it tells the number of its calls."""
    counted = context().SimpleQueue()
    process = context().Process(
        target=nas, args=(str(box), ["train", "tiny.yaml", *arguments], moment, counted)
    )
    process.start()
    process.join(300)
    return process.exitcode, counted


def without_speed(path: Path) -> list[str]:
    """Return the lines without their last column, images per second."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_killed_anywhere_and_in_the_middle_of_checkpoints(box: Path) -> None:
    tiny.write(box, train=SETTINGS, data__train__synthetic__images=IMAGES, evaluate__calibration_images=4)
    whole, cut = box / "whole", box / "cut"
    ended, counted = train(box, "-o", "whole")
    assert ended == 0
    calls = counted.get()
    rng = np.random.default_rng(4)
    reached = []
    for number, write in enumerate(WRITES):
        share = (number + rng.uniform()) / len(WRITES)  # from the first imports on to several steps
        for moment in (("call", 1 + int(0.4 * share * calls)), write):
            resume = ["--resume"] if (cut / "recipe.yaml").exists() else []
            ended, _ = train(box, "-o", "cut", *resume, moment=moment)
            metrics = cut / "metrics.csv"
            reached.append((moment, len(metrics.read_text().splitlines()) if metrics.exists() else 0))
            assert ended == -signal.SIGKILL, reached
    lines = [count for _, count in reached]  # one step is lost at most: the one whose checkpoint was cut
    assert all(later >= earlier - 1 for earlier, later in pairwise(lines)), reached
    assert not (cut / "trained.json").exists()
    ended, _ = train(box, "-o", "cut", "--resume")
    assert ended == 0, reached
    assert len(without_speed(whole / "metrics.csv")) == 1 + STEPS
    assert without_speed(cut / "metrics.csv") == without_speed(whole / "metrics.csv"), reached
    for name in ("validation.csv", "trained.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), reached
    for name in ("last", "previous", "best"):
        files = [run / "checkpoints" / f"{name}.safetensors" for run in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes(), (name, reached)
    for folder in (cut, cut / "checkpoints"):  # no half files
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in (whole / folder.relative_to(cut)).iterdir()
        }
