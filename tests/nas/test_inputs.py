"""What the arguments of nas predict stand for: every file once, under a name of its own, in order."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.inputs import find_inputs
from search_spaces import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(*arguments: str | Path) -> list[str]:
    return [each.name for each in find_inputs([str(argument) for argument in arguments])[0]]


def test_folders_give_their_pictures_and_videos_in_order(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.jpg", "a.PNG", "sub/c.mp4", "sub/.hidden.jpg", ".git/x.jpg", "notes.txt", "sub/b/1.tiff"
    )
    inputs, root = find_inputs([str(tmp_path)])
    assert [each.name for each in inputs] == ["a.PNG", "b.jpg", "sub/b/1.tiff", "sub/c.mp4"]
    assert [each.kind for each in inputs] == ["picture", "picture", "picture", "video"]
    assert root == tmp_path.resolve()
    assert all(each.path == root / each.name for each in inputs)


def test_names_start_at_the_folder_that_was_given(tmp_path: Path) -> None:
    touch(tmp_path, "year/month/a.jpg")
    assert names(tmp_path / "year") == ["month/a.jpg"]
    assert names(tmp_path / "year/month/a.jpg") == ["a.jpg"]


def test_names_tell_equal_files_of_different_folders_apart(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/deep/a.jpg")
    assert names(tmp_path / "x/a.jpg", tmp_path / "y") == ["x/a.jpg", "y/a.jpg", "y/deep/a.jpg"]
    assert names(tmp_path / "y") == ["a.jpg", "deep/a.jpg"]
    assert names(tmp_path / "x", tmp_path / "y/deep") == ["x/a.jpg", "y/deep/a.jpg"]
    assert names(tmp_path / "y/a.jpg", tmp_path / "y/../y/a.jpg", tmp_path / "y") == ["a.jpg", "deep/a.jpg"]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.lists(
            st.text(
                st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=9
            ).map(lambda word: "_" + word),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_names_stay_apart_and_below_the_root(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    files = {folder.joinpath(*parts[:-1], parts[-1] + ".jpg") for parts in paths}
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    inputs, root = find_inputs([str(file) for file in sorted(files)])
    assert len({each.name for each in inputs}) == len(inputs) == len(files)
    assert all((root / each.name).samefile(each.path) and ".." not in each.name.split("/") for each in inputs)
    assert names(folder) == [
        each.relative_to(folder).as_posix() for each in sorted(files, key=lambda p: p.parts)
    ]


def test_patterns_and_names_that_look_like_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a1.jpg", "a2.jpg", "deep/a3.jpg", "a.txt", "b[1].jpg")
    monkeypatch.chdir(tmp_path)
    assert names("a*.jpg") == ["a1.jpg", "a2.jpg"]
    assert names("**/*.jpg") == ["a1.jpg", "a2.jpg", "b[1].jpg", "deep/a3.jpg"]
    assert names("b[1].jpg") == ["b[1].jpg"], "a file of that very name"
    with pytest.raises(InputError, match=r"pattern 'z\*' matches no picture"):
        find_inputs(["z*"])


def test_what_was_drawn_before_is_not_taken_from_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "out/drawn/a.jpg", "out/predictions.json", "mine/drawn/b.jpg")
    touch(tmp_path, "cut/drawn/c.jpg", "cut/predictions.partial.jsonl")
    assert names(tmp_path) == ["a.jpg", "mine/drawn/b.jpg"]
    monkeypatch.chdir(tmp_path)
    assert names("**/*.jpg") == ["a.jpg", "mine/drawn/b.jpg"]
    assert names(tmp_path / "out/drawn") == ["a.jpg"], "asked for by name"
    assert names(tmp_path / "out/drawn/a.jpg") == ["a.jpg"]


def test_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word, number in (("0", 0), ("camera:12", 12)):
        (only,), _ = find_inputs([word])
        assert (only.kind, only.camera, only.name) == ("camera", number, f"camera-{number}")
    touch(tmp_path, "0")
    assert names("0") == ["0"], "a file of that name is a file"
    assert find_inputs(["camera:0"])[0][0].kind == "camera"
    with pytest.raises(InputError, match="a camera is watched alone; 'camera:1'"):
        find_inputs(["0", "camera:1"])


def test_lists_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b c.jpg", "folder/d.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("a.jpg\nb c.jpg\r\n\nfolder\n"))
    assert names("-") == ["a.jpg", "b c.jpg", "folder/d.jpg"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(InputError, match="list on standard input is empty"):
        find_inputs(["-"])


def test_what_is_missing_is_named_before_anything_happens(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "text/notes.txt")
    with pytest.raises(InputError, match=r"input '.*b\.jpg' does not exist"):
        find_inputs([str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")])
    with pytest.raises(InputError, match=r"folder '.*text' holds no picture or video; suffixes: \.3gp"):
        find_inputs([str(tmp_path / "text")])
    for wrong in ("x\0y", "n" * 5000):
        with pytest.raises(InputError, match=r"cannot be read|does not exist"):
            find_inputs([wrong])


def test_links_are_followed_to_files_but_not_round_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "link.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    (tmp_path / "short").symlink_to(tmp_path / "real")
    assert names(tmp_path / "short") == ["a.jpg", "link.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folders_that_may_not_be_read_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.jpg")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            find_inputs([str(tmp_path)])
    finally:
        (tmp_path / "a").chmod(0o700)


def test_files_without_a_suffix_are_told_apart_by_content(tmp_path: Path) -> None:
    done, data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    assert done
    (tmp_path / "photo").write_bytes(data.tobytes())
    video = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (16, 16))
    video.write(np.zeros((16, 16, 3), np.uint8))
    video.release()
    (tmp_path / "film.avi").rename(tmp_path / "film")
    touch(tmp_path, "other")
    kinds = {
        each.name: each.kind
        for each in find_inputs([str(tmp_path / n) for n in ("photo", "film", "other")])[0]
    }
    assert kinds == {"photo": "picture", "film": "video", "other": "picture"}
