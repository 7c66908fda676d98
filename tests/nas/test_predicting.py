"""``nas predict``: what is found in pictures and videos of every kind, and that nothing is ever lost.

The model is one whose answers are known (:mod:`tests.supernet.pose.beacon`), as an ONNX file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import nas.watching
from nas.cli import main
from nas.predicting import PredictSettings, predict_inputs
from search_spaces import InputError, RunError
from supernet.checkpoint import save_network
from supernet.pose.dataset import PoseDataset, read_image
from supernet.pose.inference import predict_dataset
from supernet.pose.maps import EvalConfig
from supernet.pose.metrics import keypoint_ap
from supernet.pose.predictor import Found, PosePredictor
from supernet.pose.skeleton import COCO17
from supernet.pose.synthetic import write_dataset
from supernet.pose.video import Camera, VideoFile
from supernet.registry import build_network
from tests.nas.conftest import Outcome
from tests.supernet import tiny
from tests.supernet.networks import randomise
from tests.supernet.pose.beacon import LIGHTS, picture, three_lights, write_onnx
from tests.supernet.pose.test_video import FakeCapture

Nas = Callable[..., Outcome]
LIGHTS_AT = three_lights(90, 120, 0.5)


@pytest.fixture
def model(box: Path) -> Path:
    """The model's file, in the folder in which the command works."""
    return write_onnx(box / "beacon.onnx")


def write(path: Path, image: NDArray[np.uint8], *options: int) -> Path:
    """Write a picture, RGB(A) or gray, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = {2: None, 3: cv2.COLOR_RGB2BGR}.get(image.ndim)
    if code is not None and image.shape[2] == 4:
        code = cv2.COLOR_RGBA2BGRA
    done, data = cv2.imencode(
        path.suffix.lower(), image if code is None else cv2.cvtColor(image, code), options
    )
    assert done
    path.write_bytes(data.tobytes())
    return path


def lights(path: Path, turn: float = 0.5, size: tuple[int, int] = (90, 120)) -> list[tuple[float, float]]:
    """Write a picture of three lights; return where they are."""
    places = three_lights(*size, turn)
    write(path, picture(*size, places))
    return places


def film(path: Path, frames: int = 12, fps: float = 10.0, size: tuple[int, int] = (90, 120)) -> Path:
    """Write a video of three lights that turn, 0.2 radians a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size[::-1])
    for number in range(frames):
        image = picture(*size, three_lights(*size, 0.2 * number))
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def load(output: Path, name: str = "predictions.json") -> Any:
    return json.loads((output / name).read_text())


def best(output: Path, name: str) -> NDArray[np.float64]:
    """Return the best person of a picture in the results, (J, 3)."""
    image = next(each for each in load(output)["images"] if each["file_name"] == name)
    rows = [each for each in load(output, "results.json") if each["image_id"] == image["id"]]
    return np.reshape(max(rows, key=lambda each: each["score"])["keypoints"], (3, 3))


def contents(output: Path) -> dict[str, bytes]:
    """Return what a run left, but for its summary of times."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != "summary.json"
    }


# -- pictures ----------------------------------------------------------------------------------------------


def exif(data: bytes, orientation: int) -> bytes:
    """Return a JPEG with a note of its orientation."""
    note = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation]) + b"\0" * 6
    return data[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]


def test_pictures_of_every_kind_are_found_and_drawn(nas_: Nas, box: Path, model: Path) -> None:
    image = picture(90, 120, LIGHTS_AT)
    alpha = np.dstack([image, np.full((90, 120), 77, np.uint8)])
    write(box / "in/plain.png", image)
    write(box / "in/a b ü.JPG", image, cv2.IMWRITE_JPEG_QUALITY, 95)
    write(box / "in/rgba.png", alpha)
    write(box / "in/deep.png", image.astype(np.uint16) * 257)
    write(box / "in/deep.tif", image.astype(np.uint16) * 257)
    write(box / "in/sub/plain.png", image)
    write(box / "in/web.webp", image, cv2.IMWRITE_WEBP_QUALITY, 101)
    write(box / "in/anim.gif", image)
    turned = write(box / "in/turned.jpg", np.ascontiguousarray(np.rot90(image)), cv2.IMWRITE_JPEG_QUALITY, 95)
    turned.write_bytes(exif(turned.read_bytes(), 6))
    gray = write(box / "in/gray.png", image.max(axis=2))
    told = nas_("predict", model, "in", "-o", "out", "--threads", 1)
    assert told.code == 0, told.err
    predicted = load(box / "out")
    assert {each["file_name"] for each in predicted["images"]} == {
        *("plain.png", "a b ü.JPG", "rgba.png", "deep.png", "deep.tif", "sub/plain.png", "web.webp"),
        *("anim.gif", "turned.jpg", "gray.png"),
    }
    drawn = {path.relative_to(box / "out/drawn").as_posix() for path in (box / "out/drawn").rglob("*.*")}
    assert drawn == {each["file_name"] for each in predicted["images"]} - {"anim.gif"} | {"anim.gif.png"}
    for each in predicted["images"]:
        assert (each["width"], each["height"]) == (120, 90), each
        if each["file_name"] != "gray.png":
            np.testing.assert_allclose(best(box / "out", each["file_name"])[:, :2], LIGHTS_AT, atol=4)
    assert read_image(gray).shape == (90, 120, 3) and len(best(box / "out", "gray.png")) == 3
    shown = read_image(box / "out/drawn/plain.png")
    assert shown.shape == (90, 120, 3) and (shown != image).any(axis=2).mean() > 0.01
    assert "pictures  10\n" in told.out and "people    12\n" in told.out  # in gray, each light is each joint


def test_joints_in_both_files_are_those_of_predict_dataset(nas_: Nas, box: Path) -> None:
    """The whole chain on files against the whole chain on the data set, with and without flip test."""
    annotations = write_dataset(box / "data", 2, 3, size=(96, 128), people=(1, 2))
    images = annotations.parent / "images"
    network = randomise(build_network(tiny.space().largest(), 17), seed=3).eval()
    save_network(box / "emitted/model.safetensors", network, {"skeleton": COCO17.to_json()})
    data = PoseDataset(annotations, images)
    for options, config in (
        (["--resolution", 96], EvalConfig(96, multiple=32)),
        (["--flip", "--resolution", 64], EvalConfig(64, flip=True)),
    ):
        told = nas_("predict", "emitted", images, "-o", "out", "--max-people", 7, "--no-draw", *options)
        assert told.code == 0, told.err
        ids = {each["file_name"]: each["id"] for each in load(box / "out")["images"]}
        expected = predict_dataset(network, data, config)
        results = load(box / "out", "results.json")
        for index, image_id in enumerate(data.ids):
            theirs = [each for each in expected if each["image_id"] == image_id][:7]
            ours = [each for each in results if each["image_id"] == ids[data.file_name(index)]]
            assert len(ours) == len(theirs) > 0
            for a, b in zip(ours, theirs):
                x, y = np.reshape(a["keypoints"], (17, 3)), np.reshape(b["keypoints"], (17, 3))
                np.testing.assert_allclose(x[:, :2], y[:, :2], atol=1e-3)
                np.testing.assert_allclose(x[:, 2], y[:, 2], atol=1e-4)
                assert a["score"] == pytest.approx(b["score"], abs=1e-4)
    assert not (box / "out/drawn").exists()


def test_results_can_be_scored_by_coco_numbers(nas_: Nas, box: Path, model: Path) -> None:
    """COCO names its images by their ids, which is how results find their annotations."""
    numbers = (139, 285, 632)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": list(LIGHTS.joints), "skeleton": []}],
    }
    for turn, number in enumerate(numbers):
        places = lights(box / f"photos/{number:012d}.png", turn)
        keypoints = [value for at in places for value in (*at, 2)]
        truth["images"].append({"id": number, "file_name": f"{number:012d}.png", "height": 90, "width": 120})
        truth["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "keypoints": keypoints, "num_keypoints": 3}
            | {"bbox": [30, 15, 60, 60], "area": 3600, "iscrowd": 0}
        )
    assert nas_("predict", model, "photos", "-o", "out").code == 0
    assert [each["id"] for each in load(box / "out")["images"]] == list(numbers)
    assert keypoint_ap(truth, load(box / "out", "results.json"), LIGHTS.sigmas)["AP"] == 1.0
    data = PoseDataset(box / "out/predictions.json", box / "photos")
    assert data.ids == numbers and all(len(data.load(index).joints) == 1 for index in range(3))


def test_unreadable_files_are_named_and_the_others_done(nas_: Nas, box: Path, model: Path) -> None:
    for name in ("a.png", "c.png"):
        lights(box / "in" / name)
    whole = (box / "in/a.png").read_bytes()
    (box / "in/b.png").write_bytes(whole[: len(whole) // 2])
    (box / "in/empty.jpg").touch()
    (box / "in/text.jpg").write_text("no picture")
    (box / "in/film.mp4").write_text("no video")
    (box / "in/gone.png").symlink_to(box / "nowhere.png")
    told = nas_("predict", model, "in", "-o", "out", "--json")
    assert told.code == 2
    summary = json.loads(told.out)
    assert summary["pictures"] == 2 and summary["people"] == 2
    assert [each["input"] for each in summary["failed"]] == [
        "b.png",
        "empty.jpg",
        "gone.png",
        "text.jpg",
        "film.mp4",
    ]
    *_, last = told.err.splitlines()
    assert last.startswith("error: 5 of 7 inputs could not be read, the others are done (see 'out'): image ")
    for each in summary["failed"]:
        assert each["input"] in each["reason"] and f"skipped: {each['reason']}" in told.err
    assert [each["file_name"] for each in load(box / "out")["images"]] == ["a.png", "c.png"]
    assert [each["id"] for each in load(box / "out")["images"]] == [1, 3], "numbers do not move"
    assert not (box / "out/predictions.partial.jsonl").exists()


def test_nothing_readable_leaves_nothing(nas_: Nas, box: Path, model: Path) -> None:
    (box / "in").mkdir()
    (box / "in/text.jpg").write_text("no picture")
    told = nas_("predict", model, "in", "-o", "out")
    assert told.code == 2 and told.out == ""
    assert "error: not one of 1 inputs could be read: image '" in told.err
    assert not (box / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jpg"], "input 'nothing.jpg' does not exist"),
        (["in", "--resolution", "72"], "beacon.onnx' was exported for 64x64 pixels only"),
        (["in", "--device", "cuda"], "--device: an .onnx runs on the CPU here, not on 'cuda'"),
        (["in", "--threshold", "1.5"], "--threshold is a number from 0 to 1, not 1.5"),
        (["in", "--min-score", "-1"], "--min-score is a number from 0 to 1, not -1"),
        (["in", "--fps", "0"], "--fps is a number from 0.1 to 1000, not 0.0"),
        (["in", "--every", "0"], "--every"),
        (["in", "--skeleton", "coco17"], "predicts 3 joints, but skeleton 'coco17' has 17"),
        (["empty"], "folder 'empty' holds no picture or video"),
        (["in/a.png", "--codec", "h264"], "--codec: unknown 'h264'; known: MJPG, XVID, avc1, mp4v"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    nas_: Nas, box: Path, model: Path, arguments: list[str], message: str
) -> None:
    lights(box / "in/a.png")
    (box / "empty").mkdir()
    told = nas_("predict", model, *arguments, "-o", "out")
    assert told.code == 2 and told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (box / "out").exists()


def test_foreign_files_and_inputs_are_never_overwritten(nas_: Nas, box: Path, model: Path) -> None:
    lights(box / "in/a.png")
    (box / "mine").mkdir()
    (box / "mine/predictions.json").write_text("{}")
    told = nas_("predict", model, "in", "-o", "mine")
    assert told.code == 2 and "holds a predictions.json that this command has not written" in told.err
    assert (box / "mine/predictions.json").read_text() == "{}"
    lights(box / "out/drawn/a.png")
    before = (box / "out/drawn/a.png").read_bytes()
    told = nas_("predict", model, "out/drawn/a.png", "-o", "out")
    assert told.code == 2 and "would take the place of an input" in told.err
    assert (box / "out/drawn/a.png").read_bytes() == before
    (box / "file").touch()
    assert nas_("predict", model, "in", "-o", "file").code == 2


@pytest.mark.parametrize("output", ["in/out", "in"])
def test_a_run_does_not_eat_what_it_has_drawn(nas_: Nas, box: Path, model: Path, output: str) -> None:
    lights(box / "in/a.png")
    lights(box / "in/b/a.png")
    for _ in range(2):
        told = nas_("predict", model, "in", "-o", output, "--json")
        assert told.code == 0, told.err
        assert json.loads(told.out)["pictures"] == 2
        assert [each["file_name"] for each in load(box / output)["images"]] == ["a.png", "b/a.png"]


def test_what_is_unsure_is_not_drawn_but_kept_in_the_results(nas_: Nas, box: Path, model: Path) -> None:
    image = picture(90, 120, LIGHTS_AT)
    image[..., 2] = image[..., 2] * 0.7
    write(box / "a.png", image)
    assert nas_("predict", model, "a.png", "-o", "out", "--threshold", 0.5).code == 0
    (annotation,) = load(box / "out")["annotations"]
    assert annotation["num_keypoints"] == 2 and annotation["keypoints"][6:] == [0, 0, 0]
    (result,) = load(box / "out", "results.json")
    assert 0.1 < result["keypoints"][8] < 0.5 and result["keypoints"][6] > 0
    assert nas_("predict", model, "a.png", "-o", "out", "--min-score", 0.9).code == 0
    assert load(box / "out")["annotations"] == [] and len(load(box / "out", "results.json")) == 1
    np.testing.assert_array_equal(read_image(box / "out/drawn/a.png"), image)


def test_summaries_tell_every_stage(nas_: Nas, box: Path, model: Path) -> None:
    for name in "abc":
        lights(box / f"in/{name}.png")
    told = nas_("predict", model, "in", "-o", "out", "--show-times", "--labels")
    for word in ("read", "prepare", "network", "decode", "draw", "write", "median", "90th percentile"):
        assert word in told.out
    summary = load(box / "out", "summary.json")
    assert all(0 <= each["median"] <= each["p90"] * 1.0001 for each in summary["ms"].values())
    assert summary["ms"]["network"]["median"] > 0 and summary["fps"] > 0
    assert summary["resolution"] == 64 and summary["device"] == "cpu"
    told = nas_("predict", model, "in", "-o", "out", "--no-draw", "--json")
    assert set(json.loads(told.out)["ms"]) == {"read", "prepare", "network", "decode"}


# -- interruption ------------------------------------------------------------------------------------------


class Stopping:
    """Lets a predictor work some times, then stops it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, error: type[BaseException]) -> None:
        self.calls, self.after, self.error = 0, after, error
        original = PosePredictor.__call__

        def call(predictor: PosePredictor, image: NDArray[np.uint8]) -> Found:
            self.calls += 1
            if self.calls > self.after:
                raise self.error
            return original(predictor, image)

        monkeypatch.setattr(PosePredictor, "__call__", call)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_run_continues_and_ends_as_if_nothing_had_been(
    nas_: Nas, box: Path, model: Path, after: int
) -> None:
    for number in range(5):
        lights(box / f"in/{number}b.png", number)
    film(box / "in/film.avi", 4)
    assert nas_("predict", model, "in", "-o", "straight").code == 0
    with pytest.MonkeyPatch.context() as patch:
        Stopping(patch, after, KeyboardInterrupt)
        told = nas_("predict", model, "in", "-o", "out")
    assert told.code == 130 and "the same command continues" in told.err
    assert not (box / "out/predictions.json").exists()
    assert (box / "out/predictions.partial.jsonl").exists() == (after > 0)
    with pytest.MonkeyPatch.context() as patch:
        counting = Stopping(patch, 1000, KeyboardInterrupt)
        told = nas_("predict", model, "in", "-o", "out", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["taken_over"] == after
    assert counting.calls == 9 - after
    a, b = contents(box / "straight"), contents(box / "out")
    assert a.pop("drawn/film.avi.mp4") and b.pop("drawn/film.avi.mp4")  # shows times
    assert a == b


def test_only_what_still_holds_is_taken_over(nas_: Nas, box: Path, model: Path) -> None:
    for number in range(4):
        lights(box / f"in/{number}b.png")
    with pytest.MonkeyPatch.context() as patch:
        Stopping(patch, 3, KeyboardInterrupt)
        assert nas_("predict", model, "in", "-o", "out").code == 130
    places = lights(box / "in/0b.png", 2.0)  # another picture
    (box / "out/drawn/1b.png").unlink()
    told = nas_("predict", model, "in", "-o", "out", "--json")
    assert json.loads(told.out)["taken_over"] == 1
    np.testing.assert_allclose(best(box / "out", "0b.png")[:, :2], places, atol=4)
    assert len(list((box / "out/drawn").iterdir())) == 4


def test_other_settings_do_not_continue(nas_: Nas, box: Path, model: Path) -> None:
    for number in range(3):
        lights(box / f"in/{number}b.png")
    with pytest.MonkeyPatch.context() as patch:
        Stopping(patch, 2, KeyboardInterrupt)
        assert nas_("predict", model, "in", "-o", "out").code == 130
    told = nas_("predict", model, "in", "-o", "out", "--flip")
    assert told.code == 2 and "unfinished prediction with other settings" in told.err
    assert "flip False there, True now" in told.err
    journal = box / "out/predictions.partial.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], '{"kind": "picture"}']) + "\n")
    told = nas_("predict", model, "in", "-o", "out")
    assert told.code == 2 and "damaged at line 2" in told.err


def test_a_run_that_was_killed_loses_nothing(nas_: Nas, box: Path, model: Path) -> None:
    """By kill -9, while pictures are being looked at, in a process of its own."""
    for number in range(150):
        lights(box / f"in/{number:03d}x.png", number / 10, (120, 160))
    command = [sys.executable, "-m", "nas.cli", "predict", str(model), "in", "-o", "out", "--threads", "1"]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    journal = box / "out/predictions.partial.jsonl"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 10 <= done < 150, "killed on the way"
    told = nas_("predict", model, "in", "-o", "out", "--threads", 1, "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["taken_over"] == done
    assert nas_("predict", model, "in", "-o", "straight", "--threads", 1).code == 0
    assert contents(box / "out") == contents(box / "straight")


def test_a_full_disk_is_told_and_the_run_can_go_on(
    nas_: Nas, box: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        lights(box / f"in/{number}b.png")

    def refuse(path: Path, data: bytes) -> None:
        if path.name == "2b.png":
            raise RunError(f"cannot write {path}: No space left on device; nothing was changed")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nas.watching, "write_bytes", refuse)
        told = nas_("predict", model, "in", "-o", "out")
    assert told.code == 2 and told.err.splitlines()[-1].startswith("error: cannot write ")
    told = nas_("predict", model, "in", "-o", "out", "--json")
    assert told.code == 0 and json.loads(told.out)["taken_over"] == 2


# -- videos ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_videos_are_found_frame_by_frame_and_drawn(nas_: Nas, box: Path, model: Path, suffix: str) -> None:
    film(box / f"Zoë 1{suffix}")
    told = nas_("predict", model, f"Zoë 1{suffix}", "-o", "out", "--show-times")
    assert told.code == 0, told.err
    predicted = load(box / "out")
    assert predicted["videos"] == [
        {"id": 1, "name": f"Zoë 1{suffix}", "width": 120, "height": 90, "fps": 10.0, "frames_read": 12}
    ]
    for number, each in enumerate(predicted["images"]):
        assert each["file_name"] == f"Zoë 1{suffix}/{number:06d}.jpg" and each["video_id"] == 1
        assert each["frame_id"] == number and each["timestamp_ms"] == pytest.approx(100.0 * number)
        places = three_lights(90, 120, 0.2 * number)
        np.testing.assert_allclose(best(box / "out", each["file_name"])[:, :2], places, atol=5)
    name = "Zoë 1.mp4" if suffix == ".mp4" else "Zoë 1.avi.mp4"
    drawn = VideoFile(box / "out/drawn" / name)
    frames = list(drawn)
    assert len(frames) == 12 and drawn.fps == pytest.approx(10.0)
    plain = list(VideoFile(box / f"Zoë 1{suffix}"))
    changed = np.abs(frames[5].image.astype(int) - plain[5].image).max(axis=2) > 60
    assert changed[:12].any(), "times and fps at the top"
    x, y = np.mean(three_lights(90, 120, 1.0)[:2], axis=0).round().astype(int)
    assert changed[y - 3 : y + 4, x - 3 : x + 4].any(), "a limb between red and green"
    assert not list((box / "out").rglob("*.partial*"))


def test_steps_limits_rates_and_codecs_of_videos(nas_: Nas, box: Path, model: Path) -> None:
    film(box / "a.mp4")
    film(box / "b.mp4", 3)
    lights(box / "c.png")
    options = ("--every", 3, "--max-frames", 2, "--codec", "MJPG")
    told = nas_("predict", model, "a.mp4", "b.mp4", "c.png", "-o", "out", *options, "--json")
    assert told.code == 0, told.err
    summary = json.loads(told.out)
    assert (summary["videos"], summary["frames"], summary["pictures"]) == (2, 3, 1)
    images = load(box / "out")["images"]
    assert [each["file_name"] for each in images] == [
        "a.mp4/000000.jpg",
        "a.mp4/000003.jpg",
        "b.mp4/000000.jpg",
        "c.png",
    ]
    assert [each.get("video_id") for each in images] == [1, 1, 2, None]
    assert [each["id"] for each in images] == [1, 2, 3, 4]
    drawn = VideoFile(box / "out/drawn/a.mp4.avi")
    assert len(list(drawn)) == 2 and drawn.fps == pytest.approx(10 / 3, abs=0.01)
    assert nas_("predict", model, "b.mp4", "-o", "fast", "--fps", 50).code == 0
    assert VideoFile(box / "fast/drawn/b.mp4").fps == pytest.approx(50)
    assert nas_("predict", model, "b.mp4", "-o", "bare", "--no-draw").code == 0
    assert not (box / "bare/drawn").exists() and len(load(box / "bare")["images"]) == 3


def test_videos_without_frames_and_videos_that_end_early(nas_: Nas, box: Path, model: Path) -> None:
    whole = film(box / "whole.avi", 40).read_bytes()
    (box / "cut.avi").write_bytes(whole[: len(whole) // 2])
    writer = cv2.VideoWriter(str(box / "none.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    writer.release()
    told = nas_("predict", model, "cut.avi", "none.avi", "-o", "out", "--json")
    assert told.code == 2
    summary = json.loads(told.out)
    assert [each["input"] for each in summary["failed"]] == ["none.avi"]
    assert 5 < summary["frames"] < 40
    assert any("cut.avi' ended after" in each and "announces 40" in each for each in summary["notes"])
    assert "none.avi" in told.err and "Traceback" not in told.err


def test_strips_are_named_and_the_others_done(nas_: Nas, box: Path) -> None:
    save_network(box / "m.safetensors", randomise(build_network(tiny.space().largest(), 3), seed=0), {})
    skeleton = box / "three.yaml"
    skeleton.write_text("joints: [a, b, c]")
    film(box / "in" / "strip.avi", 3, size=(10, 170))
    write(box / "in" / "strip.png", np.zeros((10, 170, 3), np.uint8))
    film(box / "in" / "x.avi", 3)
    lights(box / "in" / "b.png")
    told = nas_("predict", "m.safetensors", "in", "-o", "out", "--json", "--skeleton", "three.yaml")
    assert told.code == 2
    summary = json.loads(told.out)
    assert summary["pictures"] == summary["videos"] == 1
    failed = {each["input"]: each["reason"] for each in summary["failed"]}
    assert set(failed) == {"strip.avi", "strip.png"}
    for name, reason in failed.items():
        assert f"in/{name}': a picture of 170x10 pixels is too long" in reason
        assert f"skipped: {reason}" in told.err
    assert next(each["file_name"] for each in load(box / "out")["images"]) == "b.png"
    assert not list((box / "out").rglob("*partial*"))


def test_names_that_are_not_utf8(nas_: Nas, box: Path, model: Path) -> None:
    (box / "in").mkdir()
    lights(box / "plain.png")
    for name in (b"\xff.png", b"\xfe"):
        (box / "in" / os.fsdecode(name)).write_bytes((box / "plain.png").read_bytes())
    film(box / "a.mp4").rename(box / "in" / os.fsdecode(b"\xff.mp4"))
    told = nas_("predict", model, "in", box / "in" / os.fsdecode(b"\xfe"), "-o", "out", "--json")
    assert told.code == 2 and "whose name is not UTF-8; rename it" in told.err.splitlines()[-1]
    assert json.loads(told.out)["pictures"] == 2 and len(json.loads(told.out)["failed"]) == 1
    assert (box / "out/drawn" / os.fsdecode(b"\xff.png")).is_file()
    film(box / "b.mp4")
    told = nas_("predict", model, "b.mp4", "-o", os.fsdecode(b"\xfd"))
    assert told.code == 2 and "whose name is not UTF-8" in told.err.splitlines()[-1]


def test_an_interrupted_video_can_be_played_and_begins_anew(nas_: Nas, box: Path, model: Path) -> None:
    film(box / "a.mp4", 12)
    film(box / "b.mp4", 12)
    with pytest.MonkeyPatch.context() as patch:
        Stopping(patch, 18, KeyboardInterrupt)
        assert nas_("predict", model, "a.mp4", "b.mp4", "-o", "out").code == 130
    assert len(list(VideoFile(box / "out/drawn/a.mp4"))) == 12
    assert len(list(VideoFile(box / "out/drawn/b.partial.mp4"))) == 6
    assert not (box / "out/drawn/b.mp4").exists()
    with pytest.MonkeyPatch.context() as patch:
        counting = Stopping(patch, 1000, KeyboardInterrupt)
        told = nas_("predict", model, "a.mp4", "b.mp4", "-o", "out", "--json")
    assert told.code == 0 and json.loads(told.out)["taken_over"] == 1 and counting.calls == 12
    assert json.loads(told.out)["frames"] == 24
    assert len(list(VideoFile(box / "out/drawn/b.mp4"))) == 12
    assert not list((box / "out").rglob("*.partial*"))


# -- cameras: a stand-in; no real camera was there to be tested --------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch, frames: int, pause: float = 0.004) -> FakeCapture:
    """Put a stand-in for a camera, which turns three lights, where OpenCV would open one."""
    images = [picture(90, 120, three_lights(90, 120, 0.2 * number)) for number in range(frames)]
    capture = FakeCapture([cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in images], pause=pause)
    monkeypatch.setattr(nas.watching, "Camera", partial(Camera, opener=lambda number: capture))
    return capture


def test_a_camera_is_watched_until_ctrl_c(
    nas_: Nas, box: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = watched(monkeypatch, 100_00 // 10)
    Stopping(monkeypatch, 12, KeyboardInterrupt)
    told = nas_("predict", model, "camera:0", "-o", "out", "--json")
    assert told.code == 0, told.err
    assert "watching camera 0; Ctrl-C ends it" in told.err
    assert json.loads(told.out)["frames"] == 12 and capture.released
    images = load(box / "out")["images"]
    assert len(images) == 12
    for each in images:
        places = three_lights(90, 120, 0.2 * each["frame_id"])
        np.testing.assert_allclose(best(box / "out", each["file_name"])[:, :2], places, atol=4)
    assert sorted(images, key=lambda each: each["timestamp_ms"]) == images
    assert len(list(VideoFile(box / "out/drawn/camera-0.mp4"))) == 12


def test_a_camera_that_ends_or_has_a_limit(
    nas_: Nas, box: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, 30)
    told = nas_("predict", model, "0", "-o", "out", "--max-frames", 5, "--json")
    assert told.code == 0 and json.loads(told.out)["frames"] == 5
    watched(monkeypatch, 3, pause=0.2)
    told = nas_("predict", model, "0", "-o", "out", "--json")
    assert told.code == 0 and json.loads(told.out)["frames"] == 3
    watched(monkeypatch, 3, pause=0.2).error = OSError("unplugged")
    told = nas_("predict", model, "0", "-o", "out", "--json")
    assert told.code == 0 and json.loads(told.out)["notes"] == ["camera 0 failed after 3 frames: unplugged"]
    assert len(list(VideoFile(box / "out/drawn/camera-0.mp4"))) == 3
    watched(monkeypatch, 0)
    told = nas_("predict", model, "0", "-o", "none")
    assert told.code == 2 and "camera 0 delivered no frame" in told.err
    assert not (box / "none").exists()


@pytest.mark.skipif(Path("/dev/video9").exists(), reason="there is such a camera")
def test_a_camera_that_is_not_there(nas_: Nas, box: Path, model: Path) -> None:
    told = nas_("predict", model, "camera:9", "-o", "out")
    assert told.code == 2 and not (box / "out").exists()
    assert told.err.splitlines() == [
        "error: camera 9 cannot be opened; is it plugged in, free, and may you use it?"
    ]


# -- Python ------------------------------------------------------------------------------------------------


def test_the_command_is_a_function_too(box: Path, model: Path) -> None:
    lights(box / "a.png")
    summary = predict_inputs(model, ["a.png"], box / "out", PredictSettings(draw=False))
    assert summary == load(box / "out", "summary.json") and summary["people"] == 1
    with pytest.raises(InputError, match="--resolution is a multiple of 16 pixels, not 40"):
        PredictSettings().evaluation(40)
    assert [PredictSettings().evaluation(side).multiple for side in (448, 96, 48)] == [64, 32, 16]
    with pytest.raises(SystemExit):
        main(["predict", str(model), "a.png"])
