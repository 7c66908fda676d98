"""Videos are read frame by frame and written whole or not at all; cameras are played by a stand-in.

No real camera was there when this was written: what is tested of cameras is everything above OpenCV.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import supernet.pose.video as video_module
from search_spaces.errors import InputError, RunError, UnavailableError
from supernet.pose.video import CODECS, Camera, VideoFile, VideoSink, can_write, choose_codec, quiet_opencv


class FakeCapture:
    """A camera or file that delivers given frames (BGR), some time apart, and then fails."""

    def __init__(
        self,
        frames: list[NDArray[np.uint8]],
        *,
        pause: float = 0.0,
        fps: float = 30.0,
        count: float = 0.0,
        error: Exception | None = None,
    ) -> None:
        self.frames, self.pause, self.error = frames, pause, error
        self.values = {cv2.CAP_PROP_FPS: fps, cv2.CAP_PROP_FRAME_COUNT: count}
        self.at = -1
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return not self.released

    def grab(self) -> bool:
        time.sleep(self.pause)
        self.at += 1
        if self.at == len(self.frames) and self.error is not None:
            raise self.error
        return self.at < len(self.frames)

    def retrieve(self) -> tuple[bool, Any]:
        return True, self.frames[self.at]

    def get(self, prop: int) -> float:
        return self.values[prop]

    def release(self) -> None:
        self.released = True


def shade(value: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """Return a frame of one colour, RGB: a gray with more red than blue."""
    return np.full((*size, 3), (min(255, value + 60), value, max(0, value - 20)), np.uint8)


def write_video(path: Path, frames: list[NDArray[np.uint8]], fps: float = 20.0) -> Path:
    """Write RGB frames."""
    sink = VideoSink(path, "mp4v" if path.suffix == ".mp4" else "MJPG", fps)
    for number, frame in enumerate(frames):
        sink.write(frame, number / fps)
    sink.close()
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_come_back_in_order_with_their_colours(tmp_path: Path, suffix: str) -> None:
    shades = list(range(20, 200, 12))
    path = write_video(tmp_path / f"Zoë's 100% clip:1{suffix}", [shade(value) for value in shades])
    video = VideoFile(path)
    assert video.fps == pytest.approx(20.0) and video.announced == len(shades)
    frames = list(video)
    video.close()
    assert video.exhausted and video.frames_read == len(shades)
    assert [frame.index for frame in frames] == list(range(len(shades)))
    np.testing.assert_allclose([frame.at for frame in frames], np.arange(len(shades)) / 20.0, atol=1e-9)
    for frame, value in zip(frames, shades, strict=True):
        assert frame.image.shape == (48, 64, 3)
        np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), shade(value)[0, 0], atol=6)


def test_every_nth_frame_and_no_more_than_asked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [shade(10 * n) for n in range(20)])
    video = VideoFile(path, every=3, limit=4)
    frames = list(video)
    assert [frame.index for frame in frames] == [0, 3, 6, 9]
    assert [round(float(frame.image[..., 1].mean()), -1) for frame in frames] == [0, 30, 60, 90]
    assert not video.exhausted
    assert [frame.index for frame in VideoFile(path, every=8)] == [0, 8, 16]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 300])
def test_files_that_are_no_videos_are_named(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with quiet_opencv(), pytest.raises(InputError, match=rf"bad.mp4' \({len(content)} bytes\) is damaged"):
        VideoFile(path)
    with pytest.raises(InputError, match=r"nothing\.mp4' does not exist"):
        VideoFile(tmp_path / "nothing.mp4")
    assert "WARN" not in capfd.readouterr().err


def test_damage_anywhere_ends_a_video_early_at_worst(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.avi", [shade(10 * n) for n in range(20)]).read_bytes()
    rng = np.random.default_rng(0)
    opened = 0
    for trial in range(60):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if trial % 2 else whole)
        for place in rng.integers(0, len(data), 30):
            data[place] = int(rng.integers(0, 256))
        path = tmp_path / "damaged.avi"
        path.write_bytes(bytes(data))
        with quiet_opencv():
            try:
                video = VideoFile(path)
            except InputError:
                continue
            opened += 1
            frames = list(video)
            video.close()
        assert all(frame.image.dtype == np.uint8 and frame.image.ndim == 3 for frame in frames)
    assert opened > 10


def test_rates_that_make_no_sense_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.touch()
    for rate in (0.0, float("nan"), 90_000.0, -3.0):
        capture = FakeCapture([shade(9)], fps=rate, count=float("nan"))
        video = VideoFile(path, opener=lambda _, capture=capture: capture)
        assert video.fps == 30.0 and video.announced is None


def test_gray_and_odd_frames_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.touch()
    frames: list[Any] = [np.full((4, 6), 70, np.uint8), np.full((4, 6, 1), 70, np.uint8)]
    video = VideoFile(path, opener=lambda _: FakeCapture(frames))
    assert all((frame.image == 70).all() and frame.image.shape == (4, 6, 3) for frame in video)


# -- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_write_here_or_are_refused(codec: str) -> None:
    with quiet_opencv():
        if can_write(codec):
            assert choose_codec(codec) == (codec, None)
        else:
            with pytest.raises(
                UnavailableError, match=f"cannot write '{codec}' on this machine; it can .*MJPG"
            ):
                choose_codec(codec)
    assert can_write("MJPG"), "OpenCV brings it along"


def test_codecs_unknown_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown 'mp4'; did you mean 'mp4v'"):
        choose_codec("mp4")
    monkeypatch.setattr(video_module, "can_write", lambda codec: codec == "MJPG")
    assert choose_codec(None) == ("MJPG", "OpenCV cannot write .mp4 here: MJPG in .avi instead")
    monkeypatch.setattr(video_module, "can_write", lambda codec: False)
    with pytest.raises(UnavailableError, match="--no-draw"):
        choose_codec(None)
    with pytest.raises(UnavailableError, match="no video at all"):
        choose_codec("MJPG")


def test_a_video_has_its_name_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"former")
    sink = VideoSink(path, "mp4v", 10.0)
    for value in (10, 60, 110):
        sink.write(shade(value), 0.0)
    assert path.read_bytes() == b"former" and sink.partial.name == "out.partial.mp4"
    sink.abandon()
    assert path.read_bytes() == b"former"
    assert len(list(VideoFile(sink.partial))) == 3, "what was written can be played"
    again = VideoSink(path, "mp4v", 10.0)
    again.write(shade(90), 0.0)
    again.close()
    assert len(list(VideoFile(path))) == 1
    assert not again.partial.exists()


def test_frames_of_another_size_are_fitted_and_odd_sizes_written(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sink = VideoSink(path, "mp4v", 10.0)
    for value, size in ((40, (75, 101)), (90, (20, 30)), (140, (200, 300))):
        sink.write(shade(value, size), 0.0)
    sink.close()
    frames = list(VideoFile(path))
    assert [round(float(frame.image[..., 1].mean()), -1) for frame in frames] == [40, 90, 140]
    assert all(frame.image.shape == (74, 100, 3) for frame in frames), "MPEG-4 has even sizes"


def test_a_live_video_is_played_as_fast_as_it_was_seen(tmp_path: Path) -> None:
    for count in (3, 20):
        sink = VideoSink(tmp_path / f"{count}.mp4", "mp4v", None)
        for number in range(count):
            sink.write(shade(10 * number), number / 5 if number else -7.0)  # the first frame came late
        sink.close()
        video = VideoFile(tmp_path / f"{count}.mp4")
        assert len(list(video)) == count
        if count > 8:
            assert video.fps == pytest.approx(5.0)


@pytest.mark.parametrize("codec", ["mp4v", "MJPG"])
@pytest.mark.parametrize(
    "fps", [0.1, 3.3333333, 23.976023976, 59.94005994, 81.123456789, 119.88, 700.12345, 1000.0]
)
def test_any_rate_can_be_written(tmp_path: Path, codec: str, fps: float) -> None:
    path = tmp_path / f"a{CODECS[codec]}"
    sink = VideoSink(path, codec, fps)
    for number in range(5):
        sink.write(shade(20 * number), number / fps)
    sink.close()
    video = VideoFile(path)
    assert len(list(video)) == 5 and video.fps == pytest.approx(fps, rel=1e-3, abs=1e-3)


def test_no_frame_leaves_no_file_and_no_disk_is_told(tmp_path: Path) -> None:
    VideoSink(tmp_path / "a.mp4", "mp4v", 10.0).close()
    VideoSink(tmp_path / "b.mp4", "mp4v", None).close()
    assert list(tmp_path.iterdir()) == []
    sink = VideoSink(tmp_path / "no folder" / "a.mp4", "mp4v", 10.0)
    with quiet_opencv(), pytest.raises(RunError, match=r"cannot write video .* 64x48 pixels as mp4v"):
        sink.write(shade(3), 0.0)
    sink = VideoSink(tmp_path / "c.mp4", "mp4v", 10.0)
    sink.write(shade(3), 0.0)
    sink._writer.release()
    sink.partial.write_bytes(b"cut short")
    with quiet_opencv(), pytest.raises(RunError, match="could not be completed; is the disk full"):
        sink.close()


# -- cameras -----------------------------------------------------------------------------------------------


def test_a_camera_that_is_not_there() -> None:
    gone = FakeCapture([])
    gone.released = True
    with pytest.raises(UnavailableError, match="camera 3 cannot be opened"):
        Camera(3, opener=lambda _: gone)


def test_a_slow_consumer_sees_the_newest_frame() -> None:
    capture = FakeCapture([shade(n) for n in range(60)], pause=0.002)
    camera = Camera(0, opener=lambda _: capture)
    seen = []
    for frame in camera:
        seen.append(frame.index)
        time.sleep(0.02)
    camera.close()
    assert seen == sorted(set(seen))
    assert len(seen) < 40, "frames that nobody waited for are let go"
    assert seen[-1] == 59 and camera.frames_read == 60 and camera.exhausted and capture.released
    assert np.diff(seen).max() > 1


def test_limits_and_steps_of_a_camera() -> None:
    capture = FakeCapture([shade(n) for n in range(1000)], pause=0.001)
    camera = Camera(0, every=4, limit=5, opener=lambda _: capture)
    seen = [frame.index for frame in camera]
    camera.close()
    assert len(seen) == 5 and all(index % 4 == 0 for index in seen)
    assert capture.released and capture.at < 999
    assert not [thread for thread in threading.enumerate() if thread.name == "camera"]


def test_a_camera_that_breaks_ends_and_says_why() -> None:
    capture = FakeCapture([shade(1)], error=RuntimeError("USB reset"))
    camera = Camera(0, opener=lambda _: capture)
    assert len(list(camera)) <= 1
    camera.close()
    assert camera.error == "USB reset" and camera.exhausted and capture.released


def test_a_camera_given_back_while_watched_ends() -> None:
    capture = FakeCapture([shade(1)] * 100_000, pause=0.001)
    camera = Camera(0, opener=lambda _: capture)
    stream = iter(camera)
    next(stream)
    camera.close()
    assert capture.released and capture.at < 99_999
    assert len(list(stream)) <= 1
