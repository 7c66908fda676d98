"""Atomic files: the old content or the new, never half of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from search_spaces import RunError
from search_spaces.files import (
    atomic_path,
    locked,
    make_folder,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)


def test_a_failing_writer_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_unwritable_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"ap": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_lock_has_one_holder_and_ends_with_its_block(tmp_path):
    path = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), locked(path, "busy"):
        raise ZeroDivisionError
    with locked(path, "busy") as stream:
        stream.write("kept\n")
        with pytest.raises(RunError, match=r"^somebody is at it$"), locked(path, "somebody is at it"):
            pass
    with locked(path, "busy") as stream:
        stream.write("appended\n")
    assert path.read_text() == "kept\nappended\n"


def test_a_lock_ends_with_its_process(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="busy"), locked(tmp_path / "lock", "busy"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path / "lock", "busy"):
        pass


_HOLDER = """
import sys, time
from search_spaces.files import locked
with locked(sys.argv[1], "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_place_that_cannot_be_locked_or_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "absent" / "lock", tmp_path / "file" / "lock", tmp_path):
        with pytest.raises(RunError, match="cannot write to"), locked(place, "busy"):
            pass
    with pytest.raises(RunError, match="cannot write to"):
        make_folder(tmp_path / "file" / "below")
    assert make_folder(tmp_path / "a" / "b").is_dir() and make_folder(tmp_path / "a" / "b").is_dir()


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        left = temporary.with_name(temporary.name)
        kept = left.read_bytes()
        raise KeyboardInterrupt
    left.write_bytes(kept)  # as if the process had been killed
    others = [tmp_path / name for name in (".a[1]-notes.json", ".a1-12345678.json", "a[1]-12345678.json")]
    for each in (*others, path):
        each.touch()
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, path])


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "from-windows.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"joints": 14}')
    assert read_json(path) == {"joints": 14}
