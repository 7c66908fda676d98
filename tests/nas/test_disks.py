"""Commands on a run that is held, on a full disk and in folders that cannot be written: one line, no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import nas.trust.checking
from nas.run import RunDirectory
from search_spaces import RunError, write_arch
from search_spaces.files import atomic_folder, leftovers, locked, locked_folder, sweep
from tests.full_disk import room_for
from tests.nas import tiny
from tests.nas.conftest import Outcome

Nas = Callable[..., Outcome]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file's content by name, but for the curves and the locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".driver"
        and path.name != ".lock"
        and "tensorboard" not in path.parts
    }


def refused(told: Outcome, why: str) -> None:
    assert told.code == 2, told
    assert told.out == "" and "Traceback" not in told.err
    assert told.err.count("error: ") == 1 and told.err.splitlines()[-1].startswith("error: "), told.err
    assert why in told.err, told.err


@pytest.fixture
def searched(asked: list[str], trained: Path, nas_: Nas) -> Path:
    """A run with a search, and beside it what the commands below take."""
    assert nas_("search", "run", "--evaluations", 3, "--name", "first").code == 0
    run = RunDirectory.open("run")
    from search_spaces import space_from_config

    write_arch("smallest.json", space_from_config(run.recipe.space).smallest())
    cv2.imwrite("picture.png", np.zeros((64, 64, 3), np.uint8))
    return trained


WRITING = (
    "train tiny.yaml -o run --resume",
    "search run --evaluations 4 --name first",
    "search run --evaluations 4 --name second",
    "emit run --arch smallest.json",
    "emit run -o elsewhere",
    "plot run",
    "runs prune run --yes",
    "runs relocate run --data sources=sources",
)
READING = ("runs list .", "runs show run", "runs prune run", "runs relocate run", "plot run -o drawn")


def test_of_two_commands_on_a_run_one_is_refused(
    searched: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(searched)
    trained: list[object] = []
    monkeypatch.setattr(nas.trust.checking, "train_standalone", lambda *a, **k: trained.append(a))
    with RunDirectory.open("run").locked():
        for words in (*WRITING, "trust run", "trust run --only-standalone"):
            if "relocate" in words:
                continue  # this one has no paths in its recipe; tests/nas/test_runs.py moves some
            told = nas_(*words.split())
            refused(told, "another command is at work on 'run' (")
        assert snapshot(searched) == before and not trained  # before hours of it, not after
        for words in READING:
            assert nas_(*words.split()).code == 0, words
    assert snapshot(searched) == before


def test_a_network_whose_exports_are_being_written_is_left_alone(searched: Path, nas_: Nas) -> None:
    assert nas_("emit", "run", "--arch", "smallest.json", "-o", "run/emitted/net").code == 0
    (searched / "emitted" / "net" / "exports").mkdir()
    with locked(searched / "emitted" / "net" / "exports" / ".lock", "busy"):
        for words in (
            "emit run --arch smallest.json -o run/emitted/net",
            "runs prune run --also emitted:net --yes",
        ):
            refused(nas_(*words.split()), "an export is at work in 'run/emitted/net'")
    assert nas_("runs", "prune", "run", "--also", "emitted:net", "--yes").code == 0


def test_a_folder_is_held_without_a_file_in_it(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "out", "busy"):
        with pytest.raises(RunError, match="busy"), locked_folder(tmp_path / "out", "busy"):
            pass
        assert list((tmp_path / "out").iterdir()) == []
    with locked_folder(tmp_path / "out", "busy"):
        pass


# -- a folder that appears whole -----------------------------------------------------------------------------


def write_folder(path: Path, text: str) -> None:
    with atomic_folder(path) as building:
        (building / "a").write_text(text)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_folder(tmp_path / "net", "one")
    write_folder(tmp_path / "net", "two")
    assert (tmp_path / "net" / "a").read_text() == "two"
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "net") as building:
        (building / "a").write_text("three")
        assert leftovers(tmp_path) == []  # it is being written
        raise ZeroDivisionError
    with pytest.raises(RunError, match="nothing was changed"), atomic_folder(tmp_path / "net") as building:
        (building / "gone" / "a").write_text("four")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net" / "a").read_text() == "two"


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_kill_between_the_renamings_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    write_folder(tmp_path / "net", "one")
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        replace, count = Path.replace, [0]

        def dying(self: Path, target: Path) -> Path:
            if count[0] == renamed:
                os._exit(9)
            count[0] += 1
            return replace(self, target)

        Path.replace = dying  # type: ignore[method-assign,assignment]
        write_folder(tmp_path / "net", "two")
        os._exit(9)  # before anything is cleared away
    os.waitpid(pid, 0)
    other = tmp_path / ".other-abcdefgh"
    other.mkdir()
    sweep(tmp_path, "net")  # as the next one that writes it does
    other.rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net" / "a").read_text() == ("one" if renamed < 2 else "two")


# -- a full disk ---------------------------------------------------------------------------------------------

FULL = (
    *(
        "emit run --arch smallest.json",
        "plot run",
        "plot run -o drawn",
        "search run --evaluations 4 --name first",
    ),
    *("search run --evaluations 4 --name second", "train other.yaml -o new"),
    "data check run -o checked",
)


@pytest.mark.parametrize("words", FULL)
def test_a_full_disk_is_one_line_and_harms_nothing(
    searched: Path, nas_: Nas, words: str, one_thread: None
) -> None:
    tiny.write(Path(), train__epochs=1).rename("other.yaml")
    before = snapshot(Path())
    with room_for(5000):
        told = nas_(*words.split())
    refused(Outcome(told.code, "", told.err) if words.startswith("data") else told, "File too large")
    after = snapshot(Path())
    assert {name: after.get(name) for name in before} == before, words
    assert not [name for name in after if Path(name).name.startswith(".")], after.keys()
    resumed = ["--resume"] if words.startswith("train") and Path("new/recipe.yaml").exists() else []
    assert nas_(*words.split(), *resumed).code == 0


# -- a folder that cannot be written, and kills --------------------------------------------------------------

COMMANDS = """
import sys
from nas.cli import main
for words in sys.argv[1:]:
    print(f"-- {words}", file=sys.stderr, flush=True)
    try:
        main(words.split())
    except SystemExit as end:
        print(f"code {end.code}", file=sys.stderr, flush=True)
"""


def in_read_only(folder: Path, *commands: str) -> dict[str, list[str]]:
    """Return what commands say where a folder can only be read, as it is for root, too."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    try:
        told = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount, str(folder), sys.executable, "-c", COMMANDS, *commands],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("this system has no 'unshare'")
    if "-- " not in told.stderr:
        pytest.skip(f"no folder can be mounted for reading alone: {told.stderr.strip()}")
    parts = [part.splitlines() for part in told.stderr.split("-- ")[1:]]
    return {part[0]: part[1:] for part in parts}


def test_a_run_that_cannot_be_written(searched: Path) -> None:
    before = snapshot(searched)
    read = ("runs list run", "runs show run", "runs prune run", "runs relocate run", "plot run -o drawn")
    write = [each for each in WRITING if "relocate" not in each and "elsewhere" not in each]
    told = in_read_only(searched, *read, *write)
    for words in read:
        assert told[words][-1] == "code 0", told[words]
    for words in write:
        *_, line, code = told[words]
        assert code == "code 2" and line.startswith("error: "), told[words]
        assert sum(each.startswith("error: ") for each in told[words]) == 1
        assert "Read-only file system" in line, line
    assert snapshot(searched) == before


KILLED = """
import os, signal, sys
import supernet.export
from nas.cli import main
supernet.export._write = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
main(["emit", "run", "--arch", "smallest.json"])
"""


def test_a_kill_during_the_onnx_export_leaves_nothing_for_long(
    searched: Path, nas_: Nas, one_thread: None
) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (left,) = leftovers(searched / "emitted")
    assert any(path.name.startswith(".model-") for path in left.iterdir())
    assert nas_("runs", "show", "run").code == 0
    assert nas_("plot", "run", "--study", "first").code == 0  # any command that holds the run clears it away
    assert list((searched / "emitted").iterdir()) == []
