"""Files of records: what was complete survives a kill, what was not is cut off, others are refused."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import RunError
from search_spaces.jsonl import open_lines, read_lines
from tests.full_disk import room_for

HEADER = {"model": "m", "sizes": [1, 2]}
WORDS = {"doing": "counting", "what": "count"}


def records(path: Path) -> list[dict[str, object]]:
    return [record for number, record in read_lines(path) if number > 1]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    with open_lines(path, HEADER, **WORDS) as lines:
        lines.write({"n": 1})
        assert [record for _, record in lines.records()] == [{"n": 1}]
    with open_lines(path, HEADER, **WORDS) as lines:
        lines.write({"n": 2, "name": "Zoë\n"})
        assert list(lines.records()) == [(2, {"n": 1}), (3, {"n": 2, "name": "Zoë\n"})]
        lines.remove()
    assert not path.exists()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_kill_anywhere_loses_the_torn_line_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("kill") / "a.jsonl"
    with open_lines(path, HEADER, **WORDS) as lines:
        for n in range(4):
            lines.write({"n": n, "text": "é" * n})
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = max(whole[:cut].count(b"\n") - 1, 0)
    with open_lines(path, HEADER, **WORDS) as lines:
        lines.write({"n": "new"})
    assert [record["n"] for record in records(path)] == [*range(kept), "new"]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open_lines(path, HEADER, **WORDS):
        pass
    before = path.read_bytes()
    with (
        pytest.raises(RunError, match=r"unfinished count .*\(model m there, other now\)"),
        open_lines(path, {**HEADER, "model": "other"}, **WORDS),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["[1]", "{", "7", "\x00"])
def test_damage_is_located(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    with open_lines(path, HEADER, **WORDS) as lines:
        lines.write({"n": 1})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RunError, match="damaged at line 3"):
        records(path)
    path.write_text(line + "\n")
    with pytest.raises(RunError, match="damaged at line 1"), open_lines(path, HEADER, **WORDS):
        pass


def _try(path: Path, answers: multiprocessing.SimpleQueue[str]) -> None:
    try:
        with open_lines(path, HEADER, **WORDS):
            answers.put("opened")
    except RunError as error:
        answers.put(str(error))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with open_lines(path, HEADER, **WORDS):
        process = context.Process(target=_try, args=(path, answers))
        process.start()
        process.join()
    assert answers.get().startswith("another process is counting into")


@pytest.mark.parametrize("room", [0, 30, 75, 90, 1000])
def test_a_full_disk_is_told_and_keeps_what_was_complete(tmp_path: Path, room: int) -> None:
    """The header takes 53 bytes, a record 9; then a long one comes that does not fit, whatever the room."""
    path = tmp_path / "a.jsonl"
    written = 0
    with (
        room_for(room),
        pytest.raises(RunError) as caught,
        open_lines(path, HEADER, **WORDS) as lines,
    ):
        for n in range(4):
            lines.write({"n": n})
            written += 1
        lines.write({"n": "x" * 2000})
    for words in (f"cannot write the journal '{path}': File too large", "is kept", "free space", "again"):
        assert words in str(caught.value)
    left = path.read_bytes()
    assert left.endswith(b"\n") or not left, "no torn line stays"
    with open_lines(path, HEADER, **WORDS) as lines:
        lines.write({"n": "new"})
    assert [record["n"] for record in records(path)] == [*range(written), "new"]


def test_a_disk_that_fills_up_does_not_hide_what_went_wrong_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyError, match="first"), open_lines(path, HEADER, **WORDS):
        monkeypatch.setattr("os.fsync", full)
        raise KeyError("first")
    with (
        pytest.raises(RunError, match="No space left on device; what was done before is kept in it: free"),
        open_lines(path, HEADER, **WORDS),
    ):
        pass
