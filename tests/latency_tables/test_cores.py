"""Lists of processors, and which of them are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_tables.cores import cores_text, fastest_cores, highest_clocks, parse_cores
from search_spaces import InputError

SNAPDRAGON = {0: 1785600, 1: 1785600, 2: 1785600, 3: 1785600, 4: 2419200, 5: 2419200, 6: 2419200, 7: 2841600}


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_are_read_as_written(cores: set[int]) -> None:
    assert parse_cores(cores_text(cores)) == tuple(sorted(cores))


def test_neighbours_are_joined() -> None:
    assert cores_text([6, 0, 1, 2, 3, 3]) == "0-3,6"
    assert parse_cores(" 4-5, 4 ,1") == (1, 4, 5)


@pytest.mark.parametrize("wrong", ["", "a", "3-1", "-1", "0-", "0;1", "1,,2", "12345"])
def test_what_is_no_list_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="cores are processor numbers such as 0-3"):
        parse_cores(wrong)


def test_big_processors_come_first_then_late_ones() -> None:
    assert fastest_cores(1, SNAPDRAGON) == (7,)
    assert fastest_cores(4, SNAPDRAGON) == (4, 5, 6, 7)
    assert fastest_cores(5, SNAPDRAGON) == (3, 4, 5, 6, 7)
    assert fastest_cores(3, dict.fromkeys(range(4), 0)) == (1, 2, 3)
    assert fastest_cores(2, {0: 5, 1: 5, 2: 3, 3: 3}) == (0, 1)
    with pytest.raises(InputError, match="5 threads need 5 processors, and 0-3 may be used"):
        fastest_cores(5, dict.fromkeys(range(4), 0))


def test_clocks_are_read_where_they_are_told(tmp_path: Path) -> None:
    for core, text in ((0, "1500000\n"), (1, "unknown")):
        folder = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(text)
    assert highest_clocks([0, 1, 2], tmp_path) == {0: 1500000, 1: 0, 2: 0}
