"""Frames from video files and cameras, and video files from frames, through OpenCV."""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, RunError, UnavailableError, did_you_mean

__all__ = [
    "CODECS",
    "Camera",
    "Capture",
    "Frame",
    "VideoFile",
    "VideoSink",
    "can_write",
    "check_codec",
    "choose_codec",
    "full_name",
    "quiet_opencv",
]

CODECS: Final[Mapping[str, str]] = MappingProxyType(
    {"mp4v": ".mp4", "avc1": ".mp4", "MJPG": ".avi", "XVID": ".avi"}
)
"""Codecs (FourCC) that may be asked for, and the container that each is written into."""
_EVERYWHERE: Final = "MJPG"
"""OpenCV brings its own encoder and decoder for it."""
_DEFAULT_FPS: Final = 30.0
_SANE_FPS: Final = (0.1, 1000.0)
_PACE_FRAMES: Final = 8
"""Frames of a live video whose pace decides how fast it will be played."""


class Capture(Protocol):
    """What is needed of ``cv2.VideoCapture``; tests bring their own."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def grab(self) -> bool: ...
    def retrieve(self) -> tuple[bool, Any]: ...
    def get(self, prop: int) -> float: ...
    def release(self) -> None: ...


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes
    ----------
    index
        Its number, from 0, among all frames of the file or of the camera.
    at
        Seconds since the beginning.
    image
        RGB, uint8 (H, W, 3).
    read_seconds
        Time that reading and decoding took.
    """

    index: int
    at: float
    image: NDArray[np.uint8]
    read_seconds: float


def _backend() -> int:
    """Return FFmpeg where OpenCV has it: other backends would take names with a % for picture series."""
    backends = cv2.videoio_registry.getBackends()
    return int(cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in backends else cv2.CAP_ANY)


def full_name(path: Path) -> str:
    """Return the name by which OpenCV opens a file: in full, for FFmpeg takes ``a:b`` for a protocol.

    Raises
    ------
    InputError
        If the name is not UTF-8, which OpenCV does not survive.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"OpenCV cannot open '{path}', whose name is not UTF-8; rename it") from None
    return name


def _open_file(path: str) -> Capture:
    capture: Capture = cv2.VideoCapture(path, _backend())
    return capture


def _open_camera(number: int) -> Capture:
    capture: Capture = cv2.VideoCapture(number)
    return capture


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own messages off standard error meanwhile; the errors raised say what went wrong.

    FFmpeg reads its level from the environment when OpenCV first calls it, and keeps it.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    logging: Any = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def _rgb(image: Any) -> NDArray[np.uint8]:
    """Return a frame as OpenCV delivers it (BGR, or gray from some cameras) as RGB."""
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 or image.shape[2] == 1 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)


class _Source:
    """What files and cameras have in common: a capture, and which of its frames are wanted."""

    live: bool
    error: str | None = None

    def __init__(self, capture: Capture, every: int, limit: int | None) -> None:
        self._capture, self.every, self.limit = capture, every, limit
        self.frames_read = 0
        self.exhausted = False
        self._stop = False

    def _rate(self) -> float | None:
        """Return the frames per second that the capture claims, where they make sense."""
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        return rate if _SANE_FPS[0] <= rate <= _SANE_FPS[1] else None

    def _at(self, index: int, grabbed: float) -> float:
        """Return the seconds since the beginning of a frame, taken when the clock showed ``grabbed``."""
        raise NotImplementedError

    def _next(self) -> Frame | None:
        """Return the next frame that is wanted; None where there is no further one."""
        start = time.perf_counter()
        while not self._stop and self._capture.grab():
            grabbed = time.perf_counter()
            index = self.frames_read
            self.frames_read += 1
            if index % self.every:
                continue
            got, image = self._capture.retrieve()
            if not got:
                break
            # Waiting for a camera is no work.
            since = grabbed if self.live else start
            return Frame(index, self._at(index, grabbed), _rgb(image), time.perf_counter() - since)
        return None


class VideoFile(_Source):
    """The frames of a video file, upright as the file says.

    Parameters
    ----------
    path
        The file.
    every
        Only each such frame is delivered, beginning with the first.
    limit
        Most frames that are delivered.

    Attributes
    ----------
    fps
        Frames per second according to the file; 30 where it says nothing sensible.
    announced
        Frames that the file says it has, or None; for some formats an estimate.
    frames_read
        Frames read so far, those skipped included.
    exhausted
        Whether reading came to where no further frame could be read.

    Raises
    ------
    InputError
        If the file is missing, or is no video that this OpenCV can read.
    """

    live = False

    def __init__(
        self,
        path: str | Path,
        every: int = 1,
        limit: int | None = None,
        opener: Callable[[str], Capture] = _open_file,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"video '{path}' does not exist")
        super().__init__(opener(full_name(self.path)), every, limit)
        if not self._capture.isOpened():
            raise InputError(
                f"video '{path}' ({self.path.stat().st_size} bytes) is damaged, or of a kind that OpenCV"
                " cannot read; convert it to .mp4 (H.264)"
            )
        self.fps = self._rate() or _DEFAULT_FPS
        count = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.announced = int(count) if math.isfinite(count) and 0 < count < 1e9 else None

    def _at(self, index: int, grabbed: float) -> float:
        return index / self.fps

    def __iter__(self) -> Iterator[Frame]:
        delivered = 0
        while self.limit is None or delivered < self.limit:
            frame = self._next()
            if frame is None:
                self.exhausted = True
                return
            delivered += 1
            yield frame

    def close(self) -> None:
        """Give the file back."""
        self._capture.release()


class Camera(_Source):
    """The frames of a camera: always the newest, so that what is shown is what happens.

    A thread takes every frame that the camera delivers; those that come while nobody waits are let go.

    Parameters
    ----------
    number
        The camera's number, from 0.
    every, limit
        As for :class:`VideoFile`; ``every`` counts the frames that the camera delivers.

    Attributes
    ----------
    fps
        Frames per second that the camera claims, or None.
    frames_read
        Frames that the camera delivered so far.
    error
        What the camera failed with, if it did; its frames then end.

    Raises
    ------
    UnavailableError
        If there is no such camera.
    """

    live = True
    announced = None

    def __init__(
        self,
        number: int,
        every: int = 1,
        limit: int | None = None,
        opener: Callable[[int], Capture] = _open_camera,
    ) -> None:
        super().__init__(opener(number), every, limit)
        if not self._capture.isOpened():
            raise UnavailableError(
                f"camera {number} cannot be opened; is it plugged in, free, and may you use it?"
            )
        self.number = number
        self.fps = self._rate()
        self._begin = 0.0
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._thread: threading.Thread | None = None

    def _at(self, index: int, grabbed: float) -> float:
        return grabbed - self._begin

    def _take(self) -> None:
        try:
            self._begin = time.perf_counter()
            while (frame := self._next()) is not None:
                with self._changed:
                    self._newest = frame
                    self._changed.notify()
        except Exception as error:  # whatever a driver throws; what was seen so far is not lost
            self.error = str(error) or type(error).__name__
        finally:
            with self._changed:
                self.exhausted = True
                self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        self._thread = threading.Thread(target=self._take, name="camera", daemon=True)
        self._thread.start()
        delivered = 0
        while self.limit is None or delivered < self.limit:
            with self._changed:
                while self._newest is None and not self.exhausted:
                    self._changed.wait()
                frame, self._newest = self._newest, None
            if frame is None:
                return
            delivered += 1
            yield frame

    def close(self) -> None:
        """Give the camera back; one that hangs is left to the system."""
        self._stop = True
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            if self._thread.is_alive():
                return
        self._capture.release()


def _writer(path: Path, codec: str, fps: float, size: tuple[int, int]) -> Any:
    """Return a ``cv2.VideoWriter`` for frames of (height, width)."""
    # As a fraction, MPEG-4 takes denominators up to 65535 only.
    fps = round(fps, 3 - (fps > 65) - (fps > 655))
    return cv2.VideoWriter(
        full_name(path), _backend(), cv2.VideoWriter.fourcc(*codec), fps, (size[1], size[0])
    )


def can_write(codec: str) -> bool:
    """Return whether this OpenCV writes that codec, and reads back what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe{CODECS[codec]}"
        writer = _writer(path, codec, 10.0, (64, 64))
        if not writer.isOpened():
            return False
        for shade in (40, 200):
            writer.write(np.full((64, 64, 3), shade, np.uint8))
        writer.release()
        try:
            video = VideoFile(path)
        except InputError:
            return False
        shades = [float(frame.image.mean()) for frame in video]
        video.close()
        return len(shades) == 2 and abs(shades[0] - 40) < 20 and abs(shades[1] - 200) < 20


def check_codec(asked: str) -> None:
    """Refuse a codec that is unknown (:class:`~search_spaces.errors.InputError`)."""
    if asked not in CODECS:
        raise InputError(f"--codec: unknown '{asked}'{did_you_mean(asked, CODECS)}")


def choose_codec(asked: str | None) -> tuple[str, str | None]:
    """Return the codec to write with, and a note where it is not the usual one.

    Raises
    ------
    InputError
        If a codec is asked for that is unknown.
    UnavailableError
        If this OpenCV cannot write the one asked for, or none at all.
    """
    if asked is not None:
        check_codec(asked)
        if can_write(asked):
            return asked, None
        able = [codec for codec in CODECS if can_write(codec)]
        raise UnavailableError(
            f"--codec: OpenCV cannot write '{asked}' on this machine; it can write"
            f" {', '.join(able) or 'no video at all (take --no-draw)'}"
        )
    for codec in ("mp4v", _EVERYWHERE):
        if can_write(codec):
            note = None if codec == "mp4v" else f"OpenCV cannot write .mp4 here: {codec} in .avi instead"
            return codec, note
    raise UnavailableError("OpenCV cannot write videos on this machine; take --no-draw")


class VideoSink:
    """A video file that grows frame by frame and gets its name when it is complete.

    Until :meth:`close` it is called ``NAME.partial.SUFFIX``. Call :meth:`abandon` when something went wrong:
    the partial file is then closed, so that it can be played, but keeps its name.

    Parameters
    ----------
    path
        The file; its suffix must be that of the codec's container.
    codec
        One of :data:`CODECS`.
    fps
        Frames per second at which it is played; None measures the pace of the first frames.
    """

    def __init__(self, path: Path, codec: str, fps: float | None) -> None:
        self.path, self.codec, self.fps = path, codec, fps
        self.partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self.frames = 0
        self._writer: Any = None
        self._size = (0, 0)
        self._held: list[tuple[NDArray[np.uint8], float]] = []

    def write(self, image: NDArray[np.uint8], at: float) -> None:
        """Append a frame, RGB uint8 (H, W, 3), seen ``at`` seconds; all get the first one's size.

        Raises
        ------
        RunError
            If the file cannot be written.
        """
        if self._writer is None and self.fps is None:
            self._held.append((image, at))
            if len(self._held) >= _PACE_FRAMES:
                self._release_held()
            return
        self._append(image)

    def _release_held(self) -> None:
        held, self._held = self._held, []
        spans = np.diff([at for _, at in held])
        span = float(np.median(spans)) if len(spans) else 0.0
        rate = 1.0 / span if span > 0 else _DEFAULT_FPS
        self.fps = float(np.clip(rate, 1.0, 120.0))
        for image, _ in held:
            self._append(image)

    def _append(self, image: NDArray[np.uint8]) -> None:
        if self._writer is None:
            self._size = (image.shape[0], image.shape[1])
            self._writer = _writer(self.partial, self.codec, self.fps or _DEFAULT_FPS, self._size)
            if not self._writer.isOpened():
                raise RunError(
                    f"cannot write video '{self.path}' of {image.shape[1]}x{image.shape[0]} pixels as"
                    f" {self.codec}; try --codec MJPG, or --no-draw"
                )
        if (image.shape[0], image.shape[1]) != self._size:
            image = np.asarray(
                cv2.resize(image, self._size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8
            )
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def abandon(self) -> None:
        """Close the partial file as it is."""
        if self._held:
            self._release_held()
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def close(self) -> None:
        """Complete the file and give it its name.

        Raises
        ------
        RunError
            If what was written cannot be read back: the disk is full, say.
        """
        self.abandon()
        if not self.frames:
            return
        try:
            check = VideoFile(self.partial)
            readable = next(iter(check), None) is not None
            check.close()
        except InputError:
            readable = False
        if not readable:
            raise RunError(f"video '{self.partial}' could not be completed; is the disk full?")
        self.partial.replace(self.path)
