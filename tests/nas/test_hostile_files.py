"""Files that are meant to do harm, through the command itself: one line, exit 2, and nothing else happens."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.cli import main
from nas.console import printable

_PATIENCE_S = 60


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Turn a wait without an end into a failure."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits, or computes, without an end")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def refusal(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line that the command ends with, after checking that it is one and can be shown."""
    with in_time(), pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    told = capfd.readouterr().err
    assert ended.value.code == 2, told
    assert told.startswith("error: ") and told.count("\n") == 1
    assert told[:-1].isprintable() and len(told) < 5000
    return told


def bomb(merge: bool = False) -> str:
    """Return YAML of a few lines that stands for hundreds of millions of values."""
    lines = ["a: &a {x: 1}" if merge else "a: &a [x, x, x, x, x, x, x, x, x]"]
    for former, name in zip("abcdefgh", "bcdefghi", strict=True):
        nine = ", ".join([f"*{former}"] * 9)
        lines.append(f"{name}: &{name} {{<<: [{nine}]}}" if merge else f"{name}: &{name} [{nine}]")
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_in_recipes_cannot_grow_without_bounds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], merge: bool
) -> None:
    recipe = tmp_path / "bomb.yaml"
    recipe.write_text(bomb(merge))
    assert "aliases make" in refusal(capfd, "train", recipe, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


READERS: list[tuple[Any, ...]] = [
    ("cost", "{file}"),
    ("train", "{file}", "-o", "{folder}/run"),
    ("data", "check", "{file}"),
    ("eval", "{file}", "synthetic"),
    ("profile", "{file}", "-o", "{folder}/tables"),
    ("predict", "{file}", "{file}", "-o", "{folder}/out"),
    ("import-checkpoint", "{file}"),
    ("tables", "check", "{file}"),
    ("time", "{file}"),
    ("load", "{file}"),
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: " ".join(reader[:2]).replace("{file}", ""))
def test_pipes_devices_and_loops_are_refused_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], reader: tuple[str, ...]
) -> None:
    """A pipe nobody writes into would be waited for for ever, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("json", "yaml", "pth"):
        (tmp_path / f"pipe.{name}").symlink_to("pipe")
        (tmp_path / f"zero.{name}").symlink_to("/dev/zero")
        (tmp_path / f"loop.{name}").symlink_to(f"loop.{name}")
        for what in ("pipe", "zero", "loop"):
            words = [each.format(file=tmp_path / f"{what}.{name}", folder=tmp_path) for each in reader]
            refusal(capfd, *words)


@pytest.mark.parametrize("key", [r"\e[31mname", r"\e]0;title\a", r"\x9b2J", r"\u202ename", "na\\nme", "\\0"])
def test_names_in_files_cannot_steer_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'"{key}": 1\n')
    refusal(capfd, "train", recipe, "-o", tmp_path / "run")


def test_what_is_printable_stays_as_it_is() -> None:
    text = "Größe 30 °C, 人\tπ\n"
    assert printable(text) == text
    assert printable("a\x1b[2Jb\x9b\udcff\u202e\x00") == "a\\x1b[2Jb\\x9b\\udcff\\u202e\\x00"


def test_errors_do_not_repeat_endless_values(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arch = tmp_path / "arch.json"
    arch.write_text('{"family": "%s"}' % ("x" * 3_000_000))
    assert "arch.json" in refusal(capfd, "cost", arch)
