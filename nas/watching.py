"""Pictures, videos and a camera brought through a network one by one; a kill loses nothing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from nas.console import note, progress_bar
from nas.inputs import DRAWN, Input
from nas.person_boxes import PersonBoxes
from search_spaces import InputError
from search_spaces.files import make_folder, remove_leftovers, write_bytes
from search_spaces.jsonl import JsonLines, damaged
from supernet.pose.coco_json import FoundPicture
from supernet.pose.dataset import read_image
from supernet.pose.decode import GroupingConfig
from supernet.pose.draw import draw_caption, draw_people
from supernet.pose.heatmaps import read_decoding
from supernet.pose.maps import EvalConfig
from supernet.pose.pipeline import WriteBehind, read_ahead
from supernet.pose.predictor import Found, PersonPredictor, PosePredictor, shown_joints
from supernet.pose.topdown import TopDownConfig
from supernet.pose.video import CODECS, Camera, Frame, VideoFile, VideoSink, check_codec

__all__ = ["STAGES", "PredictSettings", "Watch"]

STAGES: Final = ("read", "prepare", "network", "decode", "draw", "write")
"""What a picture goes through, each timed by itself."""
_WRITABLE: Final = frozenset({".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of pictures that are drawn in their own format; others become .png."""
_PACE: Final = 30
"""Frames over which the shown fps is averaged."""


@dataclass(frozen=True)
class PredictSettings:
    """How people are looked for, and what is made of them.

    Attributes
    ----------
    resolution
        Short side of the network's input, pixels; None takes the model's own.
    flip, project, scales
        As in :class:`~supernet.pose.maps.EvalConfig`.
    threshold
        Heatmap value above which a joint is found. Joints at or below it are neither drawn nor annotated.
    min_score
        People with a lower score are neither drawn nor annotated.
    max_people
        People kept per picture, by score.
    skeleton
        Joints of the model, where its file does not say.
    draw, labels
        Whether pictures are drawn, and people's scores written beside them.
    every, max_frames
        Of videos: only each such frame, and at most so many.
    fps, codec
        Of drawn videos: frames per second (None: as filmed) and one of :data:`supernet.pose.video.CODECS`.
    device, threads
        Where the network runs (``auto``, ``cpu``, ``cuda``, ``cuda:N``), and with how many CPU threads.
    boxes
        Where a top-down network looks: ``whole-image``, or a JSON file (see
        :func:`nas.person_boxes.read_person_boxes`).
    decoding
        How a top-down network's heatmaps are read: ``dark`` (None), ``quarter`` or ``argmax``.
    """

    resolution: int | None = None
    flip: bool = False
    project: bool = False
    scales: tuple[float, ...] = (1.0,)
    threshold: float = GroupingConfig().detection_threshold
    min_score: float = 0.1
    max_people: int = 20
    skeleton: str | None = None
    draw: bool = True
    labels: bool = False
    every: int = 1
    max_frames: int | None = None
    fps: float | None = None
    codec: str | None = None
    device: str = "auto"
    threads: int | None = None
    boxes: str | None = None
    decoding: str | None = None

    def __post_init__(self) -> None:
        if self.decoding is not None:
            read_decoding(self.decoding, "--decoding")
        for name in ("threshold", "min_score"):
            if not 0 <= getattr(self, name) <= 1:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} is a number from 0 to 1, not {getattr(self, name)}")
        if self.fps is not None and not 0.1 <= self.fps <= 1000:
            raise InputError(f"--fps is a number from 0.1 to 1000, not {self.fps}")
        if self.codec is not None:
            check_codec(self.codec)

    def top_down(self, height: int, sigma: float) -> TopDownConfig:
        """Return how people are found in their boxes by a network whose input is that many pixels high.

        ``sigma`` is the standard deviation of its Gaussians, in cells.
        """
        for name in ("project", "scales"):
            if getattr(self, name) not in (False, (1.0,)):
                raise InputError(
                    f"--{name} is for bottom-up networks; a top-down one sees one person at one scale"
                )
        if self.boxes is None:
            raise InputError(
                "a top-down network needs to know where people are: --boxes whole-image where each picture"
                " shows one person, or --boxes FILE with a detector's boxes"
            )
        return TopDownConfig(
            height,
            flip=self.flip,
            decoding=read_decoding(self.decoding or "dark"),
            max_detections=self.max_people,
            sigma=sigma,
        )

    def evaluation(self, side: int) -> EvalConfig:
        """Return how maps are made and grouped at a short side of that many pixels."""
        if self.boxes is not None or self.decoding is not None:
            raise InputError(
                "--boxes and --decoding are for top-down networks; this one looks at whole pictures"
            )
        if side % 16:
            raise InputError(f"--resolution is a multiple of 16 pixels, not {side}")
        grouping = GroupingConfig(detection_threshold=self.threshold)
        return EvalConfig(
            side,
            flip=self.flip,
            project=self.project,
            scales=self.scales,
            batch_size=1,
            grouping=replace(grouping, max_people=max(grouping.max_people, self.max_people)),
            multiple=math.gcd(side, 64),
            max_detections=self.max_people,
        )


@dataclass(frozen=True)
class _Seen:
    """What was found in one picture or frame, as the journal keeps it.

    Coordinates are rounded to 1e-4 pixels and values to 1e-6, so that it makes no difference whether a run
    was interrupted.
    """

    height: int
    width: int
    people: NDArray[np.float64]
    scores: NDArray[np.float64]
    ms: dict[str, float]
    index: int = 0
    at: float = 0.0

    @classmethod
    def of(cls, image: NDArray[np.uint8], found: Found, ms: Mapping[str, float], **frame: Any) -> Self:
        people = np.concatenate([np.round(found.people[..., :2], 4), np.round(found.people[..., 2:], 6)], -1)
        return cls(image.shape[0], image.shape[1], people, np.round(found.scores, 6), dict(ms), **frame)

    def to_json(self) -> dict[str, Any]:
        return {
            **{key: value for key, value in self.__dict__.items() if key not in ("people", "scores")},
            "people": self.people.tolist(),
            "scores": self.scores.tolist(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], joints: int) -> Self:
        return cls(
            int(record["height"]),
            int(record["width"]),
            np.asarray(record["people"], np.float64).reshape(-1, joints, 3),
            np.asarray(record["scores"], np.float64),
            {str(stage): float(ms) for stage, ms in record["ms"].items()},
            int(record["index"]),
            float(record["at"]),
        )


@dataclass(frozen=True)
class _Loaded:
    """A picture on its way to the network, or why it cannot be read."""

    source: Input
    image: NDArray[np.uint8] | InputError
    stamp: list[int]
    ms: float


def _load(source: Input) -> _Loaded:
    start = time.perf_counter()
    stamp: list[int] = []
    image: NDArray[np.uint8] | InputError
    try:
        stamp = _stamp(source.path)
        image = read_image(source.path, upright=True)
    except InputError as error:
        image = error
    return _Loaded(source, image, stamp, _ms(time.perf_counter() - start))


def _stamp(path: Path) -> list[int]:
    """Return size and time of a file: while they are the same, so is the picture."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"image '{path}' cannot be read: {error.strerror or error}") from None
    return [found.st_size, found.st_mtime_ns]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


class Watch:
    """The inputs of one command, looked at one after the other.

    Parameters
    ----------
    predictor
        Finds the people.
    settings
        What else is asked for.
    output
        Folder below which pictures are drawn.
    codec
        Of drawn videos; None draws none.
    lines
        Journal of what is done, and of what an interrupted run had done.
    boxes
        Where a top-down network looks; by default in whole images.

    Attributes
    ----------
    seen
        By input: what was found in the picture, or in the video's frames.
    videos
        By input: the fields of a finished video's record.
    failed
        By input: why it could not be read.
    notes
        What else the user should know.
    resumed
        Inputs that an interrupted run had finished.
    fresh
        Pictures and frames that this process has looked at.
    """

    def __init__(
        self,
        predictor: PosePredictor | PersonPredictor,
        settings: PredictSettings,
        output: Path,
        codec: str | None,
        lines: JsonLines,
        boxes: PersonBoxes | None = None,
    ) -> None:
        self.predictor, self.settings, self.output, self.boxes = predictor, settings, output, boxes
        self.codec, self.lines = codec, lines
        self.seen: dict[str, list[_Seen]] = {}
        self.videos: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []
        self.resumed = self.fresh = 0
        self.drawn: dict[str, Path] = {}

    # -- what is shown ---------------------------------------------------------------------------------------

    def shown(self, seen: _Seen) -> NDArray[np.bool_]:
        """Return which joints are shown, (P, J)."""
        sure = shown_joints(seen.people, seen.height, seen.width, self.settings.threshold)
        return sure & (seen.scores >= self.settings.min_score)[:, None]

    def _draw(self, image: NDArray[np.uint8], seen: _Seen) -> NDArray[np.uint8]:
        shown = self.shown(seen)
        people = np.dstack([seen.people[..., :2], shown])
        labels = [f"{score:.2f}" for score in seen.scores] if self.settings.labels else None
        return draw_people(image, people, self.predictor.skeleton, labels=labels)

    # -- beginning and continuing ----------------------------------------------------------------------------

    def run(self, inputs: Sequence[Input]) -> float:
        """Look at all inputs that an interrupted run has not finished; return the seconds that it took.

        Raises
        ------
        InputError
            If a drawn file would take the place of an input.
        """
        self._name_drawn(inputs)
        self._resume({each.name: each for each in inputs})
        self.resumed = len(self.seen)
        start = time.perf_counter()
        if pictures := [each for each in inputs if each.kind == "picture"]:
            self.pictures(pictures)
        for each in inputs:
            if each.kind != "picture":
                self.video(each)
        return time.perf_counter() - start

    def _name_drawn(self, inputs: Sequence[Input]) -> None:
        taken: set[str] = set()
        paths = {each.path for each in inputs}
        for each in inputs:
            name = _drawn_name(each, self.codec, taken)
            taken.add(name.casefold())
            self.drawn[each.name] = (self.output / DRAWN / name).resolve()
            if self.settings.draw and self.drawn[each.name] in paths:
                raise InputError(
                    f"what is drawn of '{each.path}' would take the place of an input; take another --output"
                )

    def _resume(self, inputs: Mapping[str, Input]) -> None:
        joints = len(self.predictor.skeleton)
        frames: list[_Seen] = []
        for number, record in self.lines.records():
            try:
                kind, name = record["kind"], record["input"]
                if kind == "video":
                    frames = []
                elif kind == "frame":
                    frames.append(_Seen.from_json(record, joints))
                elif self._still_holds(record, inputs.get(name)):
                    self.seen[name] = frames if kind == "end" else [_Seen.from_json(record, joints)]
                    if kind == "end":
                        self.videos[name] = dict(record["video"])
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                raise damaged(self.lines.path, number) from None

    def _still_holds(self, record: Mapping[str, Any], source: Input | None) -> bool:
        """Return whether a record is of this very file, and what was drawn of it is there."""
        if source is None or source.kind == "camera" or record["path"] != str(source.path):
            return False
        try:
            same = record["stamp"] == _stamp(source.path)
        except InputError:
            return False
        return same and (not self.settings.draw or self.drawn[source.name].is_file())

    def fail(self, source: Input, reason: str) -> None:
        """Note that an input cannot be read, at once and for the summary."""
        self.failed[source.name] = reason
        note(f"skipped: {reason}")

    def _people(self, source: Input, image: NDArray[np.uint8]) -> Found:
        try:
            if isinstance(self.predictor, PosePredictor):
                return self.predictor(image)
            boxes = (self.boxes or PersonBoxes()).of(source.path, *image.shape[:2])
            return self.predictor(image, boxes)
        except InputError as error:
            raise InputError(f"{source.kind} '{source.path}': {error}") from None

    # -- pictures --------------------------------------------------------------------------------------------

    def pictures(self, inputs: Sequence[Input]) -> None:
        """Look at all pictures that have not been seen yet; those that cannot be read are left out."""
        todo = [each for each in inputs if each.name not in self.seen]
        for each in todo:
            remove_leftovers(self.drawn[each.name])
        done = len(inputs) - len(todo)
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar("pictures", len(inputs)))
            finish = stack.enter_context(WriteBehind(self._finish_picture))
            for loaded in stack.enter_context(closing(read_ahead(map(_load, todo)))):
                done += 1
                try:
                    if isinstance(loaded.image, InputError):
                        raise loaded.image
                    found = self._people(loaded.source, loaded.image)
                except InputError as error:
                    self.fail(loaded.source, str(error))
                else:
                    finish((loaded, loaded.image, found))
                bar.update(done)

    def _finish_picture(self, item: tuple[_Loaded, NDArray[np.uint8], Found]) -> None:
        """Draw, write and record a picture; in a thread of its own."""
        loaded, image, found = item
        ms = {"read": loaded.ms, **{stage: _ms(seconds) for stage, seconds in found.seconds.items()}}
        seen = _Seen.of(image, found, ms)
        if self.settings.draw:
            start = time.perf_counter()
            drawn = self._draw(image, seen)
            middle = time.perf_counter()
            try:
                _write_picture(self.drawn[loaded.source.name], drawn)
            except cv2.error:
                self.fail(loaded.source, f"what is drawn of '{loaded.source.path}' cannot be written")
                return
            seen.ms.update(draw=_ms(middle - start), write=_ms(time.perf_counter() - middle))
        self.lines.write(
            {
                "kind": "picture",
                "input": loaded.source.name,
                "path": str(loaded.source.path),
                "stamp": loaded.stamp,
                **seen.to_json(),
            }
        )
        self.seen[loaded.source.name] = [seen]
        self.fresh += 1

    # -- videos ----------------------------------------------------------------------------------------------

    def video(self, source: Input) -> None:
        """Look at the frames of a video, or of a camera until Ctrl-C."""
        every, limit = self.settings.every, self.settings.max_frames
        frames: VideoFile | Camera
        if source.kind == "camera":
            frames = Camera(source.camera, every, limit)
            note(f"watching camera {source.camera}; Ctrl-C ends it and writes what was seen")
            stamp: list[int] = []
        else:
            if source.name in self.seen:
                return
            try:
                stamp = _stamp(source.path)
                frames = VideoFile(source.path, every, limit)
            except InputError as error:
                self.fail(source, str(error))
                return
        with closing(frames):
            self._watch(source, frames, stamp)

    def _watch(self, source: Input, frames: VideoFile | Camera, stamp: list[int]) -> None:
        self.lines.write({"kind": "video", "input": source.name})
        fps = self.settings.fps or (None if frames.live else (frames.fps or 0) / self.settings.every)
        sink = VideoSink(self.drawn[source.name], self.codec, fps) if self.codec else None
        seen = self.seen[source.name] = []
        try:
            self._run(source, frames, seen, sink)
        except BaseException as stop:
            if not (frames.live and isinstance(stop, KeyboardInterrupt)):
                self.seen.pop(source.name)
                if sink is not None:
                    sink.abandon()
                if isinstance(stop, InputError):  # frames that no network takes
                    self.fail(source, str(stop))
                    return
                raise
        if sink is not None:
            sink.close()
        if not seen:
            self.seen.pop(source.name)
            self.fail(
                source,
                f"camera {source.camera} delivered no frame"
                if frames.live
                else f"video '{source.path}' has no frame that can be read",
            )
            return
        if frames.error is not None:
            self.tell(f"camera {source.camera} failed after {len(seen)} frames: {frames.error}")
        if frames.announced is not None and frames.exhausted:
            lost = frames.announced - frames.frames_read
            if lost > max(2, frames.announced // 100):
                self.tell(
                    f"video '{source.path}' ended after {frames.frames_read} frames, though it announces"
                    f" {frames.announced}: it may be damaged"
                )
        self.videos[source.name] = {
            "name": source.name,
            "width": seen[0].width,
            "height": seen[0].height,
            "fps": frames.fps,
            "frames_read": frames.frames_read,
        }
        self.lines.write(
            {
                "kind": "end",
                "input": source.name,
                "path": str(source.path),
                "stamp": stamp,
                "video": self.videos[source.name],
            }
        )

    def _run(
        self, source: Input, frames: VideoFile | Camera, seen: list[_Seen], sink: VideoSink | None
    ) -> None:
        """Bring frames through the network, while others are read, drawn and written."""

        def finish(item: tuple[Frame, Found, float]) -> None:
            frame, found, fps = item
            ms = {"read": _ms(frame.read_seconds)}
            ms |= {stage: _ms(seconds) for stage, seconds in found.seconds.items()}
            one = _Seen.of(frame.image, found, ms, index=frame.index, at=round(frame.at, 6))
            if sink is not None:
                start = time.perf_counter()
                make_folder(sink.path.parent)
                drawn = draw_caption(self._draw(frame.image, one), self._caption(one, fps))
                middle = time.perf_counter()
                sink.write(drawn, frame.at)
                one.ms.update(draw=_ms(middle - start), write=_ms(time.perf_counter() - middle))
            self.lines.write({"kind": "frame", "input": source.name, **one.to_json()})
            seen.append(one)
            self.fresh += 1

        total = self.settings.max_frames
        if frames.announced is not None:
            total = min(total or frames.announced, -(-frames.announced // self.settings.every))
        ends: deque[float] = deque([time.perf_counter()], maxlen=_PACE + 1)
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar(source.name, total))
            behind = stack.enter_context(WriteBehind(finish))
            # A camera has a thread of its own that keeps the newest frame; a queue would only make it old.
            ahead = iter(frames) if frames.live else stack.enter_context(closing(read_ahead(frames)))
            for count, frame in enumerate(ahead, start=1):
                found = self._people(source, frame.image)
                ends.append(time.perf_counter())
                fps = (len(ends) - 1) / (ends[-1] - ends[0])
                behind((frame, found, fps))
                bar.update(count, text=f"{fps:.1f} fps")

    def _caption(self, seen: _Seen, fps: float) -> str:
        count = int(self.shown(seen).any(axis=1).sum())
        people = "1 person" if count == 1 else f"{count} people"
        network, decode = seen.ms["network"], seen.ms["decode"]
        return f"network {network:.1f} ms   decode {decode:.1f} ms   {people}   {fps:.1f} fps"

    def tell(self, text: str) -> None:
        """Note something, at once and for the summary."""
        self.notes.append(text)
        note(text)

    # -- results ---------------------------------------------------------------------------------------------

    def found(self, inputs: Sequence[Input]) -> list[FoundPicture]:
        """Return all pictures and frames in the order of the inputs, with their ids.

        Ids are the file names' numbers where all inputs are pictures named by different numbers, as COCO's
        are; otherwise 1, 2, 3, ... in the order of the inputs.
        """
        numbers = _numbers(inputs)
        clips = {name: number for number, name in enumerate(self.clips(inputs), start=1)}
        pictures: list[FoundPicture] = []
        number = 0
        for position, each in enumerate(inputs):
            frames = self.seen.get(each.name, [])
            for seen in frames:
                number += 1
                name, extra = each.name, {}
                if each.kind != "picture":
                    name = f"{each.name}/{seen.index:06d}.jpg"
                    extra = {
                        "video_id": clips[each.name],
                        "frame_id": seen.index,
                        "timestamp_ms": round(1e3 * seen.at, 3),
                    }
                image_id = numbers[position] if numbers else number
                shown, size = self.shown(seen), (seen.height, seen.width)
                pictures.append(FoundPicture(image_id, name, *size, seen.people, seen.scores, shown, extra))
            number += not frames  # what cannot be read keeps its place
        return pictures

    def clips(self, inputs: Sequence[Input]) -> dict[str, dict[str, Any]]:
        """Return the records of the finished videos in the order of the inputs."""
        return {each.name: self.videos[each.name] for each in inputs if each.name in self.videos}

    def times(self) -> dict[str, dict[str, float]]:
        """Return median and 90th percentile of each stage's milliseconds per picture or frame."""
        every = [seen.ms for frames in self.seen.values() for seen in frames]
        found: dict[str, dict[str, float]] = {}
        for stage in STAGES:
            values = [ms[stage] for ms in every if stage in ms]
            if values:
                median, p90 = np.percentile(values, (50, 90)).tolist()
                found[stage] = {"median": round(median, 3), "p90": round(p90, 3)}
        return found


def _numbers(inputs: Sequence[Input]) -> list[int] | None:
    """Return the numbers that all inputs are named by, if they are pictures with different ones."""
    stems = [each.path.stem for each in inputs]
    if not all(
        each.kind == "picture" and stem.isascii() and stem.isdigit() and len(stem) <= 15
        for each, stem in zip(inputs, stems)
    ):
        return None
    numbers = [int(stem) for stem in stems]
    return numbers if len(set(numbers)) == len(numbers) and min(numbers) > 0 else None


def _drawn_name(source: Input, codec: str | None, taken: set[str]) -> str:
    """Return the name below ``drawn/``: the input's, with a suffix added where the format is another."""
    path = Path(source.name)
    if source.kind == "picture":
        suffix = path.suffix if path.suffix.lower() in _WRITABLE else ".png"
    else:
        suffix = CODECS[codec or "mp4v"]
    stem = path.name.removesuffix(suffix)
    name, number = path.with_name(stem + suffix), 2
    while name.as_posix().casefold() in taken:
        name, number = path.with_name(f"{stem}-{number}{suffix}"), number + 1
    return name.as_posix()


def _write_picture(path: Path, image: NDArray[np.uint8]) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg", ".jpe") else []
    done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise cv2.error(f"no encoder for {path.suffix}")
    write_bytes(path, data.tobytes())
