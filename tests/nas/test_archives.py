"""Hostile and damaged archives: nothing outside the folder, nothing more than declared, no half truths."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.archives import members, safe_path, unpack
from search_spaces import RunError

MOST = 10**7


def archive(path: Path, content: Mapping[str, bytes | zipfile.ZipInfo]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in content.items():
            if isinstance(data, zipfile.ZipInfo):
                opened.writestr(data, b"/etc/passwd")
            else:
                opened.writestr(name, data)
    return path


def patched(path: Path, old: bytes, new: bytes, last: bool = False) -> Path:
    """Replace bytes of a file, all of them or the last occurrence, by as many others."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    at = data.rindex(old)
    path.write_bytes(data[:at] + new + data[at + len(new) :] if last else data.replace(old, new))
    return path


def test_only_what_is_wanted_comes_out(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip",
        {
            "val/": b"",
            "val/1.jpg": b"one",
            "val/deep/2.jpg": b"two" * 999,
            "value.txt": b"no",
            "b/x.json": b"{}",
        },
    )
    entries = members(path, ["val", "b/x.json"], MOST)
    told: list[int] = []
    unpack(path, entries, tmp_path / "out", told.append)
    out = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert out == {"val/1.jpg": b"one", "val/deep/2.jpg": b"two" * 999, "b/x.json": b"{}"}
    assert told == [1, 2, 3]


HOSTILE = [
    "../evil",
    "val/../../evil",
    "/evil",
    "C:/evil",
    "val//evil",
    "./evil",
    "val/..",
    "..\\evil",
    "val\\..\\x",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_are_refused_even_if_not_wanted(tmp_path: Path, name: str) -> None:
    stand_in = "@" * len(name)
    path = patched(
        archive(tmp_path / "a.zip", {"val/1.jpg": b"one", stand_in: b"x"}), stand_in.encode(), name.encode()
    )
    with pytest.raises(RunError, match=r"a\.zip' is refused: its member .*leads out of the folder"):
        members(path, ["val"], MOST)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("val/link")
    entry.external_attr = (kind | 0o777) << 16
    with pytest.raises(RunError, match="'val/link' is a link or a device"):
        members(archive(tmp_path / "a.zip", {"val/link": entry}), ["val"], MOST)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"val/1.jpg": b"one"})
    at = path.read_bytes().index(b"PK\x01\x02")
    data = bytearray(path.read_bytes())
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="is encrypted"):
        members(path, ["val"], MOST)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = patched(
        archive(tmp_path / "a.zip", {"val/1.jpg": b"one", "val/2.jpg": b"two"}), b"val/2", b"val/1"
    )
    with pytest.raises(RunError, match=r"'val/1\.jpg' is there twice"):
        members(path, ["val"], MOST)


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"val/x": b"one", "val/x/1": b"two"})
    with pytest.raises(RunError, match=r"a\.zip"):
        unpack(path, members(path, ["val"], MOST), tmp_path / "out")


def test_more_than_expected_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip", {"val/1.jpg": bytes(600), "val/2.jpg": bytes(401), "other": bytes(9999)}
    )
    assert len(members(path, ["val"], 1001)) == 2
    with pytest.raises(RunError, match="would unpack to 1,001 bytes, and at most 1,000 are expected"):
        members(path, ["val"], 1000)


def test_a_member_that_lies_about_its_size_is_stopped_there(tmp_path: Path) -> None:
    """A bomb that declares 10 bytes and holds 50 million: no more than 10 are ever written."""
    path = archive(tmp_path / "a.zip", {"val/1.jpg": bytes(50_000_000)})
    patched(path, (50_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    entries = members(path, ["val"], 1000)
    with pytest.raises(RunError, match="is damaged"):
        unpack(path, entries, tmp_path / "out")
    assert (tmp_path / "out/val/1.jpg").stat().st_size <= 10


def test_another_archive_is_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"val2014/1.jpg": b"one"})
    with pytest.raises(RunError, match="does not hold 'val', so it is another archive"):
        members(path, ["val"], MOST)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_archive_is_told(tmp_path: Path, keep: float) -> None:
    path = archive(tmp_path / "a.zip", {f"val/{i}.jpg": os.urandom(500) for i in range(5)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(RunError, match=r"a\.zip' is not a complete zip archive .*; delete it"):
        members(path, ["val"], MOST)


def test_a_flipped_bit_is_told(tmp_path: Path) -> None:
    content = os.urandom(500)
    path = archive(tmp_path / "a.zip", {"val/1.jpg": content})
    patched(path, content[100:110], bytes(b ^ 1 for b in content[100:110]))
    entries = members(path, ["val"], MOST)
    with pytest.raises(RunError, match=r"is damaged \(Bad CRC-32 for file 'val/1.jpg'\)"):
        unpack(path, entries, tmp_path / "out")


@given(st.binary(max_size=400), st.integers(0, 10**6), st.booleans())
def test_any_bytes_are_an_archive_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, insert: bool
) -> None:
    """An archive with some bytes overwritten or inserted unpacks to what was in it, or is refused."""
    folder = tmp_path_factory.mktemp("fuzz")
    content = {"val/1.jpg": b"one" * 50, "val/2.jpg": bytes(range(256))}
    path = archive(folder / "a.zip", content)
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + junk + data[at if insert else at + len(junk) :])
    try:
        unpack(path, members(path, ["val"], MOST), folder / "out")
    except RunError:
        return
    found = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert {path.read_bytes() for path in found} <= set(content.values())
    assert all(folder / "out" in path.resolve().parents for path in found)


@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "b c", "/", "\\", "C:", "\0", "x:y"])).map("/".join)
    | st.text()
)
def test_safe_paths_stay_below(name: str) -> None:
    path = safe_path(name)
    if path is not None:
        joined = os.path.normpath(os.path.join("/root-of-it", str(path)))  # noqa: PTH118
        assert joined.startswith("/root-of-it/")
        assert not path.is_absolute()
    else:
        assert not name.isalnum()
