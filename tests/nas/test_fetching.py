"""nas data fetch against a server of our own: whole data sets, kills at every point, the command itself."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas.config import build, to_plain
from nas.download import Patience
from nas.fetching import Fetched, fetch, survey
from nas.public_data import Part, PublicData, find_public_data
from search_spaces import InputError, RunError, UnavailableError
from search_spaces.files import locked, write_json
from supernet.pose.dataset import PoseDataset
from supernet.pose.synthetic import write_dataset
from tests.nas.conftest import Outcome
from tests.nas.web import Fault, Web, serve

QUICK = Patience(timeout_s=5, attempts=3, first_wait_s=0.001, longest_wait_s=0.002)


def zipped(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny COCO, by name: two archives of images and one of annotations."""
    annotations: dict[str, bytes] = {"annotations/instances_val2017.json": b"{}" * 999}
    files = {}
    for seed, split in enumerate(("train", "val")):
        folder = tmp_path_factory.mktemp(split)
        write_dataset(folder, 3 + 2 * seed, seed=seed, size=(96, 96), people=(1, 2))
        (found,) = folder.glob("*.json")
        annotations[f"annotations/person_keypoints_{split}2017.json"] = found.read_bytes()
        images = {f"{split}2017/": b""}
        for entry in json.loads(found.read_bytes())["images"]:
            (path,) = folder.rglob(Path(entry["file_name"]).name)
            images[f"{split}2017/{entry['file_name']}"] = path.read_bytes()
        files[f"zips/{split}2017.zip"] = zipped(images)
    files["annotations/annotations_trainval2017.zip"] = zipped(annotations)
    return files


@pytest.fixture
def coco(web: Web, people: dict[str, bytes]) -> PublicData:
    """COCO as the package describes it, but small and served by us."""
    _, real = find_public_data("coco")
    plain = to_plain(real)
    for name, part in plain["parts"].items():
        path = part["url"].removeprefix("http://images.cocodataset.org/")
        body = people[path]
        part |= {"url": web.put(f"/{path}", body), "size_bytes": len(body)}
        part |= {kind: hashlib.new(kind, body).hexdigest() for kind in ("md5", "sha256")}
        part["files"] = {"annotations": 2, "train": 3, "val": 5}[name]
    return build(PublicData, plain, "coco")


@pytest.fixture
def crowd(web: Web) -> PublicData:
    """A data set like CrowdPose: no checksum is known, and a file that is no archive."""
    listed = json.dumps({"images": [{"id": i} for i in range(4)]}).encode()
    pictures = zipped({f"images/{i}.jpg": bytes([i]) * 400 for i in range(4)})
    plain = {
        "title": "Crowd",
        "homepage": "https://example.test",
        "licence": "research only",
        "parts": {
            "val": {
                "url": web.put("/download?id=7", listed), "file": "crowd_val.json", "images": 4,
                "makes": ["annotations/crowd_val.json"], "files": 1, "most_bytes": 10_000,
            },
            "images": {
                "url": web.put("/download?id=8", pictures),
                "file": "images.zip", "makes": ["images"], "files": 4, "most_bytes": 10_000,
                "page": "https://example.test/view",
            },
        },
        "recipe": {
            "data": {"val": {"annotations": "annotations/crowd_val.json", "images": "images"}},
            "evaluate": {"protocol": "crowdpose"},
        },
    }  # fmt: skip
    return build(PublicData, plain, "crowd")


def get(source: PublicData, folder: Path, **options: Any) -> Fetched:
    return fetch(source, "mini", folder, patience=QUICK, **options)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def states(source: PublicData, folder: Path) -> dict[str, str]:
    return {status.name: status.state for status in survey(source, "mini", folder)}


# -- the plain way -----------------------------------------------------------------------------------------


def test_a_whole_data_set_stands_as_a_recipe_wants_it(coco: PublicData, web: Web, tmp_path: Path) -> None:
    fetched = get(coco, tmp_path)
    assert fetched.anew == ("annotations", "val", "train")
    names = {re.sub(r"\d+\.(png|jpg)", "N", name) for name in files(tmp_path)}
    assert names == {
        ".fetch.lock",
        "fetched.json",
        "annotations/person_keypoints_train2017.json",
        "annotations/person_keypoints_val2017.json",
        "train2017/N",
        "val2017/N",
    }
    assert not list(tmp_path.glob(".fetch-*")) and not (tmp_path / "downloads").exists()
    recipe = coco.recipe_in(tmp_path)
    for split, count in (("train", 3), ("val", 5)):
        opened = PoseDataset(**recipe["data"][split])
        assert len(opened) == count
        assert all(opened.load(i).image.shape == (96, 96, 3) for i in range(count))
    record = json.loads((tmp_path / "fetched.json").read_text())
    assert record["data_set"] == "mini"
    val = record["parts"]["val"]
    assert val["sha256"] == coco.parts["val"].sha256
    assert val["held_against"] == "published sha256 and md5"
    assert val["makes"] == {"val2017": {"files": 5}}


def test_what_is_complete_is_not_touched_again(coco: PublicData, web: Web, tmp_path: Path) -> None:
    get(coco, tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    web.log.clear()
    (tmp_path / "val2017" / "Thumbs.db").write_text("of a file manager")
    again = get(coco, tmp_path)
    assert again.anew == () and web.log == []
    assert again.record["val"]["sha256"] == coco.parts["val"].sha256
    del before[".fetch.lock"]
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before


def test_parts_come_one_after_the_other(coco: PublicData, web: Web, tmp_path: Path) -> None:
    assert get(coco, tmp_path, parts=["annotations", "val"]).anew == ("annotations", "val")
    assert states(coco, tmp_path) == {"annotations": "complete", "val": "complete", "train": "missing"}
    assert coco.recipe_in(tmp_path) == {}, "the train images lack"
    assert get(coco, tmp_path).anew == ("train",)
    assert len(web.log) == 3
    assert coco.recipe_in(tmp_path)


def test_archives_are_kept_if_asked(coco: PublicData, tmp_path: Path) -> None:
    get(coco, tmp_path, keep_archives=True)
    kept = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in (tmp_path / "downloads").iterdir()}
    assert kept == {part.name: part.md5 for part in coco.parts.values()}


def test_a_mirror_stands_in_for_the_host(coco: PublicData, people: dict[str, bytes], tmp_path: Path) -> None:
    with serve() as other:
        for path, body in people.items():
            other.put(f"/pub/coco/{path}", body)
        fetched = get(coco, tmp_path, mirror=other.url + "/pub/coco/")
        assert len(other.log) == 3
    assert fetched.record["train"]["url"] == f"{other.url}/pub/coco/zips/train2017.zip"


def test_on_a_mirror_what_has_a_query_goes_by_its_name(crowd: PublicData) -> None:
    assert crowd.parts["images"].address("https://m.test/x/") == "https://m.test/x/images.zip"
    assert crowd.parts["images"].address(None).endswith("/download?id=8")


# -- checksums ---------------------------------------------------------------------------------------------


def test_a_wrong_checksum_stops_before_unpacking_and_deletes_nothing(
    coco: PublicData, web: Web, people: dict[str, bytes], tmp_path: Path
) -> None:
    good = people["zips/val2017.zip"]
    bad = bytearray(good)
    bad[500] ^= 1
    web.put("/zips/val2017.zip", bytes(bad))
    found, published = hashlib.sha256(bad).hexdigest(), coco.parts["val"].sha256
    for _ in range(2):
        with pytest.raises(
            RunError, match=f"val2017.zip' has the sha256 {found}, and {published} is published"
        ):
            get(coco, tmp_path, parts=["val"])
        assert (tmp_path / "downloads/val2017.zip").read_bytes() == bad
        assert not (tmp_path / "val2017").exists()
    assert len(web.log) == 1
    web.put("/zips/val2017.zip", good)
    (tmp_path / "downloads/val2017.zip").unlink()
    assert get(coco, tmp_path, parts=["val"]).anew == ("val",)


def test_every_published_checksum_counts(coco: PublicData, tmp_path: Path) -> None:
    plain = to_plain(coco)
    plain["parts"]["val"]["md5"] = "0" * 32
    with pytest.raises(RunError, match=f"has the md5 [0-9a-f]{{32}}, and {'0' * 32} is published"):
        get(build(PublicData, plain, "coco"), tmp_path, parts=["val"])


def test_without_a_published_checksum_the_first_download_is_noted(
    crowd: PublicData, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = get(crowd, tmp_path)
    digest = hashlib.sha256(web.files["/download?id=8"].body).hexdigest()
    assert (
        f"images.zip: no checksum is published; noted on first use: sha256 {digest}"
        in capsys.readouterr().err
    )
    assert fetched.record["images"]["sha256"] == digest
    assert fetched.record["images"]["held_against"].startswith("nothing")
    assert crowd.recipe_in(tmp_path)["evaluate"] == {"protocol": "crowdpose"}

    shutil.rmtree(tmp_path / "images")
    assert get(crowd, tmp_path).record["images"]["held_against"] == "the sha256 of the first download"

    shutil.rmtree(tmp_path / "images")
    changed = zipped({f"images/{i}.jpg": b"other" for i in range(4)})
    web.put("/download?id=8", changed)
    new = hashlib.sha256(changed).hexdigest()
    with pytest.raises(
        RunError, match=f"{new}, and {digest} was noted when it was first fetched.*'images' in"
    ):
        get(crowd, tmp_path)
    assert not (tmp_path / "images").exists()
    record = json.loads((tmp_path / "fetched.json").read_text())
    del record["parts"]["images"]
    write_json(tmp_path / "fetched.json", record)
    assert get(crowd, tmp_path).record["images"]["sha256"] == new


@pytest.mark.parametrize(
    ("part", "body", "told"),
    [
        ("val", b'{"images": [1, 2, 3]}', "it lists 3 images, and 4 images are expected"),
        ("val", b'{"annotations": []}', "it is no COCO-format file, and 4 images are expected"),
        ("val", b'{"images": [', "it is no COCO-format file, and 4 images are expected"),
        ("val", b'{"images": [' + b" " * 10_000, "it is 10,012 bytes long, and at most 10,000 are expected"),
        (
            "images",
            zipped({f"images/{i}.jpg": b"x" for i in range(3)}),
            "it holds 3 files, and 4 are expected",
        ),
        (
            "images",
            zipped({"images/1.jpg": bytes(10_001)}),
            "would unpack to 10,001 bytes, and at most 10,000",
        ),
        ("images", zipped({"images/../../1.jpg": b"x"}), "leads out of the folder"),
        ("images", zipped({f"images/{i}.jpg": b"x" for i in range(4)})[:-30], "not a complete zip archive"),
        ("images", b"<html>", "not a complete zip archive"),
    ],
)
def test_what_no_checksum_guards_is_judged_by_what_it_holds(
    crowd: PublicData, web: Web, tmp_path: Path, part: str, body: bytes, told: str
) -> None:
    path = {"val": "/download?id=7", "images": "/download?id=8"}[part]
    good = web.files[path].body
    web.put(path, body)
    with pytest.raises((RunError, InputError), match=told):
        get(crowd, tmp_path, parts=[part])
    name = crowd.parts[part].name
    assert files(tmp_path) == {".fetch.lock", f"downloads/{name}"}, "nothing is noted, nothing is unpacked"
    (tmp_path / "downloads" / name).unlink()
    web.put(path, good)
    assert get(crowd, tmp_path).anew == ("val", "images"), "the wrong one was not trusted on first use"


# -- by hand, and what else lies about ---------------------------------------------------------------------


def test_a_file_put_there_by_hand_is_verified_and_used(
    coco: PublicData, web: Web, people: dict[str, bytes], tmp_path: Path
) -> None:
    web.always = Fault(status=403)
    with pytest.raises(
        UnavailableError, match=f"403.* to '{tmp_path}/downloads/val2017.zip' and run the same"
    ):
        get(coco, tmp_path, parts=["val"])
    web.log.clear()
    (tmp_path / "downloads/val2017.zip").write_bytes(people["zips/val2017.zip"])
    assert states(coco, tmp_path)["val"] == "downloaded"
    assert get(coco, tmp_path, parts=["val"]).anew == ("val",)
    assert web.log == []


def test_the_page_to_open_is_named(crowd: PublicData, web: Web, tmp_path: Path) -> None:
    web.put("/download?id=8", b"<html><title>Quota exceeded</title>", kind="text/html")
    with pytest.raises(
        UnavailableError, match=r"'Quota exceeded'.*from https://example\.test/view to '.*images\.zip'"
    ):
        get(crowd, tmp_path)


def test_what_others_put_there_is_not_touched(coco: PublicData, web: Web, tmp_path: Path) -> None:
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "mine.txt").write_text("dear to me")
    with pytest.raises(
        RunError, match=r"val2017' is in the way, and was not fetched by this command: move it"
    ):
        get(coco, tmp_path, parts=["val"])
    assert web.log == []
    assert (tmp_path / "val2017" / "mine.txt").read_text() == "dear to me"


def test_what_was_deleted_as_a_whole_is_fetched_anew(coco: PublicData, web: Web, tmp_path: Path) -> None:
    get(coco, tmp_path)
    shutil.rmtree(tmp_path / "val2017")
    assert states(coco, tmp_path) == {"annotations": "complete", "val": "missing", "train": "complete"}
    assert get(coco, tmp_path).anew == ("val",)


def test_what_was_deleted_in_part_is_told(coco: PublicData, tmp_path: Path) -> None:
    get(coco, tmp_path)
    next((tmp_path / "val2017").iterdir()).unlink()
    with pytest.raises(
        RunError, match=r"val2017' is not as it was fetched \(5 files then and 4 now\): move it"
    ):
        get(coco, tmp_path)
    path = tmp_path / "annotations/person_keypoints_val2017.json"
    shutil.rmtree(tmp_path / "val2017")
    path.write_text("{}")
    with pytest.raises(RunError, match=r"val2017.json' is not as it was .* bytes then and 2 now"):
        get(coco, tmp_path, parts=["annotations"])
    path.unlink()
    with pytest.raises(RunError, match=r"train2017.json' is in the way"):
        get(coco, tmp_path, parts=["annotations"])


def test_one_folder_holds_one_data_set(coco: PublicData, crowd: PublicData, tmp_path: Path) -> None:
    get(coco, tmp_path, parts=["val"])
    with pytest.raises(RunError, match="holds the data set 'mini'; choose another --output for 'crowd'"):
        fetch(crowd, "crowd", tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"parts": {}}', '{"data_set": "mini", "parts": {"val": 1}}'])
def test_a_damaged_record_is_told(coco: PublicData, tmp_path: Path, text: str) -> None:
    (tmp_path / "fetched.json").write_text(text)
    with pytest.raises(RunError, match=r"fetched\.json' is damaged; delete it"):
        get(coco, tmp_path)


def test_two_at_once_do_not_meet(coco: PublicData, web: Web, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".fetch.lock", "busy"),
        pytest.raises(RunError, match="another fetch is at work in"),
    ):
        get(coco, tmp_path)
    assert web.log == []
    get(coco, tmp_path)


# -- room, rights ------------------------------------------------------------------------------------------


def test_room_for_all_of_it_is_looked_for_first(
    coco: PublicData, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each archive is unpacked while it is still there, and goes before the next one comes."""
    sizes = [part.size_bytes or 0 for part in coco.parts.values()]
    need = max(2 * sizes[0], sizes[0] + 2 * sizes[1], sizes[0] + sizes[1] + 2 * sizes[2])
    free = need - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free))
    with pytest.raises(RunError, match=r"needs .* GB below .* GB are free; make room"):
        get(coco, tmp_path)
    assert web.log == []
    free = need
    with pytest.raises(RunError, match="needs"):
        get(coco, tmp_path, keep_archives=True)
    assert get(coco, tmp_path).anew == ("annotations", "val", "train")


def test_a_disk_that_fills_up_while_unpacking(
    coco: PublicData, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nas.fetching.unpack", _unpack_with(full))
        with pytest.raises(RunError, match=r"cannot unpack .*No space left on device; the archive is kept"):
            get(coco, tmp_path, parts=["val"])
    assert files(tmp_path) == {".fetch.lock", "downloads/val2017.zip"}, "what was unpacked takes no room"
    web.log.clear()
    assert get(coco, tmp_path, parts=["val"]).anew == ("val",)
    assert web.log == []


def _unpack_with(event: Callable[[int], None]) -> Callable[..., None]:
    """Return unpack() with something that happens after its second file."""
    from nas.archives import unpack

    def unpack_(archive: Path, entries: Any, folder: Path, progress: Any = None) -> None:
        unpack(archive, entries, folder, lambda done: event(done) if done == 2 else None)

    return unpack_


def test_a_folder_that_cannot_be_written_to(coco: PublicData, web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write to"):
        get(coco, tmp_path / "file" / "coco")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RunError, match="cannot write to"):
            get(coco, tmp_path / "closed")
    assert web.log == []


# -- stopped at any point ----------------------------------------------------------------------------------


class _Killed(BaseException):
    """What a kill is to the code that it meets: nothing that anybody handles."""


def _kill(*_: Any, **__: Any) -> Any:
    raise _Killed


POINTS: dict[str, tuple[str, Any]] = {
    "before the download": ("nas.fetching.download", _kill),
    "before verifying": ("nas.fetching._Fetch._verify", _kill),
    "before unpacking": ("nas.fetching.members", _kill),
    "while unpacking": ("nas.fetching.unpack", None),
    "after unpacking": ("nas.fetching.os.sync", _kill),
    "before moving": ("nas.fetching._Fetch._publish", _kill),
    "while moving": ("nas.fetching.make_folder", None),
    "before the archive goes": ("nas.fetching.Path.unlink", None),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_same_call_completes_it(
    coco: PublicData,
    web: Web,
    people: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    where, action = POINTS[point]
    with monkeypatch.context() as patch:
        if point == "while unpacking":
            action = _unpack_with(_kill)
        elif point == "while moving":  # the first of two files is in its place
            from search_spaces.files import make_folder

            seen: list[Path] = []

            def action(path: Path) -> Path:
                seen.append(Path(path))
                if seen.count(tmp_path / "annotations") == 2:
                    raise _Killed
                return make_folder(path)

        elif point == "before the archive goes":
            unlink = Path.unlink

            def action(self: Path, missing_ok: bool = False) -> None:
                if self.suffix == ".zip":
                    raise _Killed
                unlink(self, missing_ok=missing_ok)

        patch.setattr(where, action)
        with pytest.raises(_Killed):
            get(coco, tmp_path, parts=["annotations"])
    first = [r.status for r in web.log]
    assert first == ([] if point == "before the download" else [200])
    assert states(coco, tmp_path)["annotations"] == {
        "before the download": "missing",
        "before moving": "unpacked",
        "while moving": "unpacked",
        "before the archive goes": "complete",
    }.get(point, "downloaded")
    get(coco, tmp_path)
    assert [r.path for r in web.log].count("/annotations/annotations_trainval2017.zip") == 1
    found = {name for name in files(tmp_path) if name.startswith("annotations")}
    assert found == set(coco.parts["annotations"].makes)
    with zipfile.ZipFile(io.BytesIO(people["annotations/annotations_trainval2017.zip"])) as archive:
        assert all((tmp_path / name).read_bytes() == archive.read(name) for name in found)
    assert not list(tmp_path.glob(".fetch-*"))
    assert len(PoseDataset(**coco.recipe_in(tmp_path)["data"]["val"])) == 5


def test_unpacked_files_that_vanished_before_they_were_moved(
    coco: PublicData, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("nas.fetching._Fetch._publish", _kill)
        with pytest.raises(_Killed):
            get(coco, tmp_path, parts=["val"])
    shutil.rmtree(tmp_path / ".fetch-val")
    assert get(coco, tmp_path, parts=["val"]).anew == ("val",)
    assert len(list((tmp_path / "val2017").iterdir())) == 5


# -- descriptions of data sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "crowdpose"])
def test_the_known_data_sets_are_described_without_pretence(name: str) -> None:
    _, source = find_public_data(name)
    assert source.licence and source.homepage.startswith("https://")
    made = {path for part in source.parts.values() for path in part.makes}
    assert {path for data in source.recipe["data"].values() for path in data.values()} <= made
    assert list(source.recipe["data"]) == ["train", "val"]
    for part in source.parts.values():
        if part.published:
            assert part.size_bytes is not None and part.size_bytes < part.most_bytes
            assert all(kind in part.sources for kind in part.published), "says where each is from"
        else:
            assert "none is published" in part.sources
            assert part.page is not None and part.page.startswith("https://drive.google.com/")
            assert re.search(r"/d/([\w-]+)/", part.page)[1] in part.url  # type: ignore[index]
    assert len({part.name for part in source.parts.values()}) == len(source.parts)


def test_the_official_addresses_and_checksums_of_coco() -> None:
    """As PaddleDetection (md5) and torchvision (sha256) have them, and as the issue asks."""
    _, coco = find_public_data("coco")
    known = {
        "train": ("http://images.cocodataset.org/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2"),
        "val": ("http://images.cocodataset.org/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80"),
        "annotations": (
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            "f4bbac642086de4f52a3fdda2de5fa2c",
        ),
    }
    assert {name: (part.url, part.md5) for name, part in coco.parts.items()} == known


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"url": "ftp://a.test/f.zip"}, r"parts\.val: 'url' is a web address"),
        ({"makes": ["../x"]}, r"a path below the folder is needed, not '\.\./x'"),
        ({"makes": []}, "makes at least one path"),
        ({"file": "../../x.zip"}, "a path below the folder is needed"),
        ({"file": "a/x.zip"}, "makes at least one path|a path"),
        ({"file": "x.json", "makes": ["a", "b"]}, r"one that is no \.zip exactly one"),
        ({"sha256": "abc"}, "'sha256' is no such checksum in lower-case hexadecimal: 'abc'"),
        ({"md5": "G" * 32}, "'md5' is no such checksum"),
        ({"sizebytes": 3}, "unknown key 'sizebytes'; did you mean 'size_bytes'"),
        ({"most_bytes": "many"}, r"parts\.val\.most_bytes is a whole number, not 'many'"),
    ],
)
def test_descriptions_are_checked(
    coco: PublicData, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    plain = to_plain(coco)
    plain["parts"]["val"] |= change
    write_json(tmp_path / "mine.json", plain)
    with pytest.raises(InputError, match=told) as error:
        find_public_data(str(tmp_path / "mine.json"))
    assert "mine.json'" in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"parts": {}, "recipe": {"data": 3}}, "recipe.data is a mapping"),
        (
            {"recipe": {"data": {"val": {"annotations": "/etc/x", "images": "y"}}}},
            r"recipe\.data\.val\.annotations",
        ),
        ({"recipe": {"data": {"val": {"annotations": "x"}}}}, r"recipe\.data\.val\.images is a path below"),
        ({"recipe": None}, "recipe"),
    ],
)
def test_recipes_of_descriptions_are_checked(
    coco: PublicData, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**to_plain(coco), **change}))
    with pytest.raises(InputError, match=told):
        find_public_data(str(tmp_path / "mine.yaml"))


def test_names_of_parts_are_names() -> None:
    part = Part("http://a.test/x.zip", ("x",), 1, 1)
    for name in ("a/b", "a,b", "..", ""):
        with pytest.raises(InputError, match="is no name of a part"):
            PublicData("t", "h", "l", {name: part}, {})


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def described(coco: PublicData, tmp_path: Path) -> Path:
    """The small COCO as a file that the command takes."""
    write_json(tmp_path / "mini.json", to_plain(coco))
    return tmp_path / "mini.json"


def test_the_command_fetches_and_says_how_to_use_it(
    described: Path, nas_: Callable[..., Outcome], tmp_path: Path
) -> None:
    told = nas_("data", "fetch", described, "-o", tmp_path / "here")
    assert told.code == 0
    assert "licence: annotations CC BY 4.0" in told.err and "fetched annotations, val, train" in told.err
    snippet = yaml.safe_load(told.out.split("In a recipe:\n")[1].split("To see")[0])
    assert len(PoseDataset(**snippet["data"]["train"])) == 3
    checks = re.findall(r"^  (nas data check .*)$", told.out, flags=re.MULTILINE)
    assert len(checks) == 2 and f"{tmp_path}/here/val2017" in checks[1]
    assert nas_(*shlex.split(checks[1])[1:]).code == 0, "what it advises can be done"
    told = nas_("data", "fetch", described, "-o", tmp_path / "here")
    assert told.code == 0 and "everything asked for is there already" in told.err


def test_part_of_it_says_what_lacks(described: Path, nas_: Callable[..., Outcome], tmp_path: Path) -> None:
    told = nas_("data", "fetch", described, "-o", tmp_path / "here", "--parts", "annotations, val")
    assert told.code == 0
    assert "In a recipe" not in told.out and "run the command for train." in told.out


def test_list_tells_all_and_writes_nothing(
    described: Path, web: Web, nas_: Callable[..., Outcome], tmp_path: Path
) -> None:
    for option in ("--list", "--dry-run"):
        told = nas_("data", "fetch", described, "-o", tmp_path / "here", option)
        assert (told.code, told.err) == (0, "")
        assert f"{web.url}/zips/train2017.zip" in told.out and "licence: annotations CC BY 4.0" in told.out
        assert hashlib.sha256(web.files["/zips/train2017.zip"].body).hexdigest() in told.out
        assert "missing" in told.out
    assert web.log == [] and not (tmp_path / "here").exists()
    told = nas_("data", "fetch", "coco", "--list", "-o", tmp_path / "here", "--json")
    assert (told.code, told.err) == (0, "")
    facts = json.loads(told.out)
    assert facts["parts"]["train"]["size_bytes"] == 19_336_861_798
    assert facts["parts"]["train"]["state"] == "missing"
    assert facts["recipe"] == {} and facts["check"] == []


@pytest.mark.parametrize("parts", ["", " , "])
def test_no_part_is_not_everything(
    parts: str, described: Path, nas_: Callable[..., Outcome], tmp_path: Path
) -> None:
    told = nas_("data", "fetch", described, "--output", tmp_path / "here", "--parts", parts)
    assert told.code == 2 and "--parts names no part; known: annotations" in told.err
    assert not (tmp_path / "here").exists()


def test_json_tells_what_was_fetched(described: Path, nas_: Callable[..., Outcome], tmp_path: Path) -> None:
    told = nas_("data", "fetch", described, "-o", tmp_path / "here", "--json")
    assert told.code == 0
    facts = json.loads(told.out)
    assert {part["state"] for part in facts["parts"].values()} == {"complete"}
    assert facts["parts"]["val"]["fetched"]["held_against"] == "published sha256 and md5"
    assert len(PoseDataset(**facts["recipe"]["data"]["val"])) == 5
    assert [line.split()[:3] for line in facts["check"]] == [["nas", "data", "check"]] * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("cocoo", "no data set 'cocoo' can be fetched; did you mean 'coco'?"),
        ("lspet", "no data set 'lspet' can be fetched; known: coco, crowdpose"),
        ("none.json", "data set 'none.json' does not exist"),
        ("coco --parts vall", "'coco' has no part 'vall'; did you mean 'val'?"),
        ("coco --mirror example.test", "--mirror takes a web address (http or https), not 'example.test'"),
        ("coco --mirror file:///tmp", "--mirror takes a web address"),
        ("coco --mirror http://", "--mirror takes a web address"),
        ("coco --mirror http://[", "--mirror takes a web address"),
    ],
)
def test_mistakes_are_one_line(
    nas_: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = nas_("data", "fetch", *arguments.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {told}") and outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


COMMAND = [sys.executable, "-m", "nas.cli", "data", "fetch"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
ENVIRONMENT["no_proxy"] = "127.0.0.1"


@pytest.fixture
def slow(web: Web, tmp_path: Path) -> Path:
    """A described data set of one large archive, served slowly."""
    body = zipped({f"images/{i}.jpg": os.urandom(100_000) for i in range(8)})
    digest = hashlib.sha256(body).hexdigest()
    part = {
        "url": web.put("/images.zip", body), "makes": ["images"], "files": 8, "most_bytes": 10**7,
        "size_bytes": len(body), "sha256": digest,
    }  # fmt: skip
    facts = {"title": "Slow", "homepage": "https://example.test", "licence": "none"}
    write_json(tmp_path / "slow.json", {**facts, "parts": {"images": part}, "recipe": {}})
    web.bytes_per_s = 300_000
    return tmp_path / "slow.json"


def _begun(process: subprocess.Popen[bytes], part: Path, have: int) -> None:
    """Wait until so much has come, and not all."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if part.exists() and part.stat().st_size >= have:
            return
        time.sleep(0.01)
    raise AssertionError("the download never got that far")


def test_kill_9_and_the_same_command_asks_for_the_rest_only(slow: Path, web: Web, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    part = folder / "downloads/images.zip.part"
    command = [*COMMAND, str(slow), "-o", str(folder)]
    have = []
    for least in (150_000, 350_000):
        with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
            _begun(process, part, least)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        have.append(part.stat().st_size)
        assert not (folder / "images").exists()
    web.bytes_per_s = None
    body = web.files["/images.zip"].body
    assert 150_000 <= have[0] < have[1] < len(body)
    done = subprocess.run([*command, "--json"], env=ENVIRONMENT, capture_output=True, timeout=60, check=True)
    assert [r.range for r in web.log] == [None, f"bytes={have[0]}-", f"bytes={have[1]}-"]
    assert [r.status for r in web.log] == [200, 206, 206]
    assert web.log[2].sent == len(body) - have[1]
    told = json.loads(done.stdout)["parts"]["images"]
    assert told["state"] == "complete" and told["fetched"]["sha256"] == hashlib.sha256(body).hexdigest()
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        found = {f"images/{path.name}": path.read_bytes() for path in (folder / "images").iterdir()}
        assert found == {name: archive.read(name) for name in archive.namelist()}
    assert files(folder) == {*found, "fetched.json", ".fetch.lock"}


def test_ctrl_c_is_told_and_keeps_what_came(slow: Path, web: Web, tmp_path: Path) -> None:
    part = tmp_path / "here/downloads/images.zip.part"
    with subprocess.Popen(
        [*COMMAND, str(slow), "-o", str(tmp_path / "here")], env=ENVIRONMENT, stderr=subprocess.PIPE
    ) as process:
        _begun(process, part, 100_000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1].startswith("stopped; the same command continues")
    assert b"Traceback" not in err
    assert web.files["/images.zip"].body.startswith(part.read_bytes())


def test_two_commands_at_once(slow: Path, web: Web, tmp_path: Path) -> None:
    web.bytes_per_s = 20_000
    command = [*COMMAND, str(slow), "-o", str(tmp_path / "here")]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as first:
        _begun(first, tmp_path / "here/downloads/images.zip.part", 1)
        second = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
        first.kill()
    assert second.returncode == 2
    assert b"error: another fetch is at work in" in second.stderr.splitlines()[-1]
