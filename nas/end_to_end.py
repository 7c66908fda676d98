"""``nas time``: what a frame takes from its file to the people in it, by how many people are in it.

The network's part does not depend on what it sees, but grouping its maps into people does: that is why an
application slows down when people walk into the frame. So the network runs for real, and the maps that are
merged and grouped afterwards are drawn for exactly so many people (:mod:`supernet.pose.crowd`).
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latency_tables import Prediction, Runtime, Target, Timing, get_runtime, local_target
from latency_tables.machine import machine_state, system_name
from latency_tables.runtimes import Prepared
from latency_tables.timing import Samples, summarise, take_samples
from nas.console import note, progress_bar
from nas.evaluation import OnnxNetwork, load_model
from nas.inputs import find_inputs
from nas.latency import load_predictors, random_network, runnable
from nas.predicting import cpu_threads
from nas.run import RunDirectory
from nas.train import load_with_skeleton
from search_spaces import (
    Arch,
    InputError,
    UnavailableError,
    arch_from_json,
    get_arch,
    listed_networks,
    named_archs,
)
from search_spaces.errors import did_you_mean
from supernet.base import Subnet
from supernet.paradigms import TOP_DOWN, paradigm_of
from supernet.pose.crowd import crowd_maps, draw_crowd, network_outputs
from supernet.pose.dataset import read_image
from supernet.pose.decode import FloatArray, GroupingConfig
from supernet.pose.inference import in_picture
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.predictor import PosePredictor
from supernet.pose.skeleton import Skeleton, get_skeleton
from supernet.pose.synthetic import render
from supernet.pose.transforms import AffineTransform, letterbox, normalise, resize_for_eval
from supernet.pose.workers import Decoded, decode_maps
from supernet.registry import NETWORKS

__all__ = ["PEOPLE", "STAGES", "FrameTimes", "PhotoTimes", "TimeReport", "TimeSettings", "measure_frames"]

PEOPLE: Final = (0, 1, 2, 5, 10, 20, 30)
"""Numbers of people by default."""
STAGES: Final = ("read", "prepare", "network", "merge", "decode", "place")
"""What a frame goes through: its file is decoded; resized, normalised and handed to the runtime; the network
runs; its maps are handed back and merged; people are grouped; their joints are put into the frame."""
MIN_SCORE: Final = 0.1
"""People below it do not count as found: ``nas predict`` does not draw them either."""
_CROWDS = 3
_TRIES = 6
_PLACES = 32
_TAG_STEP = 2.0
_LEAST_TAG_RANGE = 12.0
_SIGMA = 2.0
_HIGHEST_BUMP = 0.09
_DRIFT = 0.15
_SEED = 20


@dataclass(frozen=True)
class TimeSettings:
    """What is timed, and how thoroughly.

    Attributes
    ----------
    people
        Numbers of people in the frame; None takes those of :data:`PEOPLE` that fit.
    frame
        (height, width) of the frame, pixels.
    size
        (height, width) of the network's input; None takes the model's own.
    runtime, threads
        What runs the network, and on how many threads everything runs; None takes all that there are.
    skeleton
        Joints of the model, where it does not say.
    max_people
        People kept per frame, by score, and peaks per joint: the decoder's limit.
    seconds
        Time per stage and number of people, all rounds together.
    rounds
        How often everything is visited, each time in another order.
    limit
        Only so many pictures of a folder.
    """

    people: tuple[int, ...] | None = None
    frame: tuple[int, int] = (480, 640)
    size: tuple[int, int] | None = None
    runtime: str = "onnxruntime"
    threads: int | None = None
    skeleton: str | None = None
    max_people: int = 30
    seconds: float = 1.0
    rounds: int = 5
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.max_people < 1 or self.rounds < 1 or not 0 < self.seconds < math.inf:
            raise InputError(
                "--max-people and --rounds are at least 1 and --seconds is positive, not"
                f" {self.max_people}, {self.rounds} and {self.seconds}"
            )
        if min(self.frame) < 32 or max(self.frame) > 16384:
            height, width = self.frame
            raise InputError(f"--frame has sides from 32 to 16384 pixels, not {width}x{height}")
        for count in self.people or ():
            if count < 0:
                raise InputError(f"--people are whole numbers from 0, not {count}")
            if count > self.max_people:
                raise InputError(
                    f"--people: the decoder keeps {self.max_people} people at most, so {count} cannot be"
                    f" timed; raise its limit with --max-people {count}"
                )
        if self.people is not None and not self.people:
            raise InputError("--people names at least one number of people, such as 0,1,5")

    @property
    def grouping(self) -> GroupingConfig:
        """How maps are grouped."""
        return GroupingConfig(max_people=self.max_people)


@dataclass(frozen=True)
class FrameTimes:
    """What a frame with so many people takes.

    Attributes
    ----------
    people
        People on the maps; the decoder found exactly so many.
    groups
        Groups of peaks that the decoder went through for them, median over the crowds drawn.
    stages
        Milliseconds of each of :data:`STAGES`, timed by itself.
    total
        Milliseconds from the frame's file to its people, in one piece.
    """

    people: int
    groups: float
    stages: Mapping[str, Timing]
    total: Timing

    @property
    def sum_ms(self) -> float:
        """Sum of the stages' medians."""
        return math.fsum(self.stages[name].median_ms for name in STAGES)

    @property
    def fps(self) -> float:
        """Frames per second, one after the other."""
        return 1e3 / self.total.median_ms

    @property
    def other_share(self) -> float:
        """Share of the sum of the stages that is not the network."""
        return 1.0 - self.stages["network"].median_ms / self.sum_ms

    def on_target(self, network: Prediction) -> dict[str, float]:
        """Return milliseconds and fps with the network's part replaced by a prediction for another target."""
        rest = self.sum_ms - self.stages["network"].median_ms
        ms, low, high = (rest + each for each in (network.ms, network.low_ms, network.high_ms))
        return {"ms": ms, "low_ms": low, "high_ms": high, "fps": 1e3 / ms, "here_ms": rest}


@dataclass(frozen=True)
class PhotoTimes:
    """What one picture of a folder took: medians over the rounds, milliseconds.

    Attributes
    ----------
    name
        The file's name.
    people
        People found.
    total_ms
        From the file to its people.
    decode_ms
        Grouping alone.
    """

    name: str
    people: int
    total_ms: float
    decode_ms: float


@dataclass(frozen=True)
class TimeReport:
    """What ``nas time`` measured, and what that rests on.

    Attributes
    ----------
    model, trained, arch, skeleton, joints, size
        The model; whether it has trained weights; (height, width) of its input.
    target
        What ran it.
    settings
        How it was measured.
    frames
        One entry per number of people, rising.
    photos
        Pictures of the folder that was given, with the model's own maps.
    predictions
        What tables say of the network on other targets, by their names.
    circumstances
        Machine, versions, date, command.
    notices
        What makes the figures hard to believe, or was left out.
    """

    model: str
    trained: bool
    arch: Arch
    skeleton: str
    joints: int
    size: tuple[int, int]
    target: Target
    settings: TimeSettings
    frames: tuple[FrameTimes, ...]
    photos: tuple[PhotoTimes, ...] = ()
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


# -- the model -----------------------------------------------------------------------------------------------


def _is_arch(name: str) -> bool:
    """Return whether a name is of an architecture, without weights."""
    return name in named_archs() or name in listed_networks() or Path(name).suffix == ".json"


def _check_paradigm(arch: Arch, name: str) -> None:
    """Raise :class:`InputError` for networks whose frames are not timed here."""
    if paradigm_of(NETWORKS[arch.family.name]) is TOP_DOWN:
        raise InputError(
            f"'{name}' is a top-down network: it sees people whom a detector has found, and 'nas time' times"
            " frames of bottom-up networks alone; 'nas predict' tells its milliseconds per picture"
        )


@dataclass(frozen=True)
class _Model:
    """A network in its runtime's form."""

    file: Path
    size: tuple[int, int]
    arch: Arch
    skeleton: Skeleton
    trained: bool

    @classmethod
    def open(cls, name: str, settings: TimeSettings, scratch: Path) -> Self:
        """Return the model called so; what must be exported first goes to ``scratch``.

        Raises
        ------
        InputError
            If there is none, or it is a top-down one, whose stages are others: people are found beforehand.
        """
        path, runtime = Path(name), settings.runtime
        if _is_arch(name):
            arch = get_arch(name)
            _check_paradigm(arch, name)
            skeleton = get_skeleton(settings.skeleton or "crowdpose14")
            return cls._exported(random_network(arch, len(skeleton)), skeleton, settings, scratch, False)
        if RunDirectory.is_run(path):
            raise InputError(
                f"'{name}' is a run, which holds many networks; 'nas emit {name}' writes one of them"
            )
        if not path.exists() and not path.suffix:
            raise InputError(
                f"there is no model '{name}': neither an emitted folder, a .safetensors or an .onnx, nor a"
                f" named network{did_you_mean(name, named_archs())}"
            )
        if path.suffix == ".onnx":
            return cls._onnx(path, settings)
        shipped = path / "model.onnx"
        if runtime == "onnxruntime" and shipped.is_file():
            model = cls._onnx(shipped, settings, any_size=True)
            if settings.size in (None, model.size):
                return model
        network, skeleton = load_with_skeleton(path, settings.skeleton)
        _check_paradigm(network.arch, name)
        return cls._exported(network, skeleton, settings, scratch, True)

    @classmethod
    def _onnx(cls, path: Path, settings: TimeSettings, any_size: bool = False) -> Self:
        network, skeleton, _ = load_model(path, settings.skeleton, 1)
        if not isinstance(network, OnnxNetwork):
            raise TypeError("an .onnx is run by ONNX Runtime")
        if network.peaks is not None:
            raise InputError(
                f"'{path}' picks peaks itself, so its stages cannot be timed one by one; take the file"
                " that was exported without --peaks"
            )
        try:
            told = json.loads(network.metadata.get("arch", "null"))
        except (ValueError, RecursionError):
            told = None
        arch = arch_from_json(told, f"model '{path}': its metadata 'arch'")
        _check_paradigm(arch, str(path))
        if settings.size not in (None, network.size) and not any_size:
            raise InputError(
                f"--size: '{path}' was exported for {network.size[0]}x{network.size[1]} pixels only; take the"
                " .safetensors for another size"
            )
        return cls(path, network.size, arch, skeleton, True)

    @classmethod
    def _exported(
        cls, network: Subnet, skeleton: Skeleton, settings: TimeSettings, scratch: Path, trained: bool
    ) -> Self:
        size = settings.size or network.arch.size
        network.arch.layers(network.joints, size)  # raises where the network cannot take the size
        note(f"exporting the network for {size[0]}x{size[1]} pixels")
        file = runnable(settings.runtime, network, scratch / "model", size)
        return cls(file, size, network.arch, skeleton, trained)


# -- the stages ----------------------------------------------------------------------------------------------


Outputs = tuple[Tensor, Tensor]
"""What a network returns: (1, 2J, H/4, W/4) and (1, J, H/2, W/2)."""


class _Handed(nn.Module):
    """The outputs of the network's last run; in their place drawn ones, where there are any."""

    def __init__(self, fetch: Callable[[], tuple[FloatArray, ...]]) -> None:
        super().__init__()
        self.fetch = fetch
        self.drawn: Outputs | None = None

    def forward(self, images: Tensor) -> Outputs:
        quarter, half = (torch.from_numpy(each) for each in self.fetch())
        return (quarter, half) if self.drawn is None else self.drawn


class _Chain:
    """A frame's way, stage by stage and in one piece.

    The stages do what :class:`~supernet.pose.predictor.PosePredictor` does, one after the other.

    Parameters
    ----------
    prepared
        The network.
    model, settings
        What it is, and how it is used.
    """

    def __init__(self, prepared: Prepared, model: _Model, settings: TimeSettings) -> None:
        if prepared.feed is None or prepared.fetch is None:
            raise UnavailableError(
                f"the runtime '{settings.runtime}' cannot be handed frames here; take --runtime onnxruntime"
            )
        self.run, self._feed = prepared.run, prepared.feed
        self.handed = _Handed(prepared.fetch)
        self.skeleton, self.size = model.skeleton, model.size
        config = EvalConfig(
            min(model.size),
            batch_size=1,
            grouping=settings.grouping,
            max_detections=settings.max_people,
        )
        self.predictor = PosePredictor(_Whole(self), model.skeleton, config, size=model.size)
        self.config = self.predictor.config
        self._images = torch.zeros(1, 3, *model.size)

    def feed(self, images: Tensor) -> None:
        """Hand a normalised picture (1, 3, H, W) to the runtime."""
        self._feed(np.ascontiguousarray(images.numpy()))

    def prepare(self, frame: NDArray[np.uint8]) -> tuple[AffineTransform, AffineTransform]:
        """Resize and normalise a frame, and hand it over; return the ways back into it, in order."""
        fitted, outer = letterbox(frame, self.size)
        image, inner = resize_for_eval(fitted, *self.config.input_grid)
        self.feed(normalise(np.stack([image])))
        return inner, outer

    def merge(self) -> tuple[FloatArray, FloatArray]:
        """Return the merged maps of the last run, (1, J, H', W') and (1, J, H', W', 1)."""
        det, tags = predict_maps(self.handed, self._images, None, self.config)
        return det.numpy(), tags.numpy()

    def decode(self, det: FloatArray, tags: FloatArray) -> Decoded:
        """Return the people on merged maps."""
        order, most = self.skeleton.grouping_order, self.config.max_detections
        return decode_maps(det, tags, self.config.grouping, order, most)

    def place(
        self, found: Decoded, det: FloatArray, back: Sequence[AffineTransform]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the people's joints (P, J, 3) in pixels of the frame, and their scores (P,)."""
        zoom = np.array(self.size[::-1]) / np.array(det.shape[:1:-1])
        rows = in_picture(*found.people[0], back[0], zoom)
        people = np.array([flat for flat, _ in rows], dtype=np.float64).reshape(-1, len(self.skeleton), 3)
        for way in back[1:]:
            people[..., :2] = way(people[..., :2])
        return people, np.array([score for _, score in rows], dtype=np.float64)


class _Whole(nn.Module):
    """The network as the predictor calls it: fed, run, read."""

    def __init__(self, chain: _Chain) -> None:
        super().__init__()
        self._chain = (chain,)  # in a tuple, so that it is no submodule

    def forward(self, images: Tensor) -> Outputs:
        (chain,) = self._chain
        chain.feed(images)
        chain.run()
        outputs: Outputs = chain.handed(images)
        return outputs


@dataclass(frozen=True)
class _Crowd:
    """Outputs that show so many people."""

    outputs: Outputs
    groups: int


def _draw(chain: _Chain, people: int, count: int) -> list[_Crowd]:
    """Return outputs that show exactly so many people, ``count`` different ones.

    Raises
    ------
    InputError
        If grouping does not tell so many apart on maps of that size.
    """
    quarter, half = (tuple(each.shape[2:]) for each in chain.handed(chain._images))
    tag_range = max(_LEAST_TAG_RANGE, _TAG_STEP * people)
    made: list[_Crowd] = []
    seen: list[int] = []
    for attempt in range(_TRIES * count):
        rng = np.random.default_rng([_SEED, people, attempt])
        joints = draw_crowd(chain.skeleton, people, half, rng, places=_PLACES)
        maps = crowd_maps(joints, half, _SIGMA, rng, tag_range=tag_range, highest_bump=_HIGHEST_BUMP)
        outputs = network_outputs(*maps, quarter)
        with _showing(chain, outputs):
            det, tags = chain.merge()
        every = decode_maps(det, tags, chain.config.grouping, chain.skeleton.grouping_order).people[0][1]
        seen.append(int((every >= MIN_SCORE).sum()))
        if seen[-1] == people:
            made.append(_Crowd(outputs, len(every)))
        if len(made) == count:
            return made
    raise InputError(
        f"--people: on this network's maps of {half[0]}x{half[1]} pixels {people} people cannot be told apart"
        f" (grouping finds {min(seen)} to {max(seen)}); ask for fewer, or for a larger input with --size"
    )


@contextmanager
def _showing(chain: _Chain, outputs: Outputs | None) -> Iterator[None]:
    """Let the network answer with these outputs meanwhile."""
    former, chain.handed.drawn = chain.handed.drawn, outputs
    try:
        yield
    finally:
        chain.handed.drawn = former


# -- measuring -----------------------------------------------------------------------------------------------


_Key = tuple[str, int | None]
"""A stage, or 'total', and the number of people; None where that does not matter."""


def measure_frames(
    name: str,
    settings: TimeSettings | None = None,
    *,
    images: Path | None = None,
    latency: Sequence[str] = (),
    tables: Sequence[Path] | None = None,
    strict_tables: bool = False,
) -> TimeReport:
    """Carry out ``nas time``: time a model on frames with so many people, and on a folder of pictures.

    Parameters
    ----------
    name
        An emitted folder, a ``.safetensors``, an ``.onnx`` or a research ``.pth``; or a named arch or an arch
        file, which gets random weights.
    settings
        What is timed.
    images
        Folder of pictures on which the model's own maps are grouped, too.
    latency, tables
        Targets whose tables predict the network's part, and where those are looked for.
    strict_tables
        Refuse a table that does not answer with measurements alone.

    Raises
    ------
    InputError
        If there is no such model, it is damaged, or it and the settings do not fit.
    MissingLayerError
        If a table lacks a layer of the network.
    UnavailableError
        If the runtime is not installed.
    """
    settings = settings or TimeSettings()
    runtime = get_runtime(settings.runtime)
    runtime.check(1 if settings.threads is None else settings.threads)
    target = local_target(settings.runtime, settings.threads)
    predictors = load_predictors(latency, tables, strict=strict_tables)
    if images is None and settings.limit is not None:
        raise InputError("--limit is for the pictures of --images; without them it has no meaning")
    if images is not None and _is_arch(name):
        raise InputError(
            f"--images: '{name}' has random weights, so it finds nobody in pictures; take a trained model"
        )
    files, unreadable = ([], []) if images is None else _pictures(images, settings.limit)
    for line in unreadable:
        note(line)
    before = machine_state()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder, cpu_threads(target.threads):
        model = _Model.open(name, settings, Path(folder))
        blocks = model.arch.blocks(len(model.skeleton), model.size)
        predictions = {n: p.predict(blocks, model.arch.family.name) for n, p in predictors.items()}
        with runtime.prepare_model(model.file, model.size, target.threads) as prepared:
            chain = _Chain(prepared, model, settings)
            prepared.run()
            frame = Path(folder) / "frame.jpg"
            _write_frame(frame, settings.frame)
            frames, notices = _time_frames(chain, frame, settings)
            photos = _time_photos(chain, files, settings.rounds) if files else ()
    notices = (*unreadable, *notices)
    if photos and not any(each.people for each in photos):
        notices += ("nobody was found in any picture, so their times are those of empty frames",)
    return TimeReport(
        model=name,
        trained=model.trained,
        arch=model.arch,
        skeleton=model.skeleton.name,
        joints=len(model.skeleton),
        size=model.size,
        target=target,
        settings=settings,
        frames=frames,
        photos=photos,
        predictions=predictions,
        circumstances=_circumstances(runtime, started, before),
        notices=notices,
    )


def _circumstances(runtime: Runtime, started: str, before: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "date": started,
        "command": " ".join(["nas", *sys.argv[1:]]),
        "system": system_name(),
        "runtime_version": runtime.version(),
        "versions": {each: metadata.version(each) for each in ("numpy", "torch", "scipy")}
        | {"opencv": cv2.__version__},
        "machine_before": dict(before),
        "machine_after": machine_state(),
    }


def _write_frame(path: Path, size: tuple[int, int]) -> None:
    """Write a drawn picture of (height, width) as a JPEG file."""
    image, _ = render(0, 0, size)
    fine, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not fine:
        raise InputError(f"--frame: a picture of {size[1]}x{size[0]} pixels cannot be written as a JPEG")
    path.write_bytes(data.tobytes())


def _crowds(chain: _Chain, settings: TimeSettings) -> tuple[dict[int, list[_Crowd]], list[str]]:
    """Return crowds for each number of people, rising; and which of the default numbers do not fit."""
    wanted = settings.people
    found: dict[int, list[_Crowd]] = {}
    left_out: list[str] = []
    offered = wanted if wanted is not None else [each for each in PEOPLE if each <= settings.max_people]
    for people in sorted(set(offered)):
        try:
            found[people] = _draw(chain, people, min(_CROWDS, settings.rounds))
        except InputError as error:
            if wanted is not None:
                raise
            left_out.append(f"left out: {str(error).removeprefix('--people: ')}")
    return found, left_out


def _visits(
    chain: _Chain, frame: Path, crowds: Mapping[int, Sequence[_Crowd]], turn: int
) -> dict[_Key, Callable[[], object]]:
    """Return everything that one round times."""
    image = read_image(frame, upright=True)
    back = chain.prepare(image)
    visits: dict[_Key, Callable[[], object]] = {
        ("read", None): lambda: read_image(frame, upright=True),
        ("prepare", None): lambda: chain.prepare(image),
        ("network", None): chain.run,
        ("merge", None): chain.merge,
    }

    def of_crowd(people: int, outputs: Outputs) -> None:
        with _showing(chain, outputs):
            det, tags = chain.merge()
        found = chain.decode(det, tags)

        def whole() -> None:
            with _showing(chain, outputs):
                chain.predictor(read_image(frame, upright=True))

        visits["decode", people] = lambda: chain.decode(det, tags)
        visits["place", people] = lambda: chain.place(found, det, back)
        visits["total", people] = whole

    for people, drawn in crowds.items():
        of_crowd(people, drawn[turn % len(drawn)].outputs)
    return visits


def _time_frames(
    chain: _Chain, frame: Path, settings: TimeSettings
) -> tuple[tuple[FrameTimes, ...], tuple[str, ...]]:
    """Return what frames take by the number of people, and what makes that hard to believe."""
    with progress_bar("drawing people's maps"):
        crowds, notices = _crowds(chain, settings)
    samples: dict[_Key, list[Samples]] = {}
    rng = np.random.default_rng(_SEED)
    with progress_bar("timing rounds", settings.rounds) as bar:
        for turn in range(settings.rounds):
            visits = _visits(chain, frame, crowds, turn)
            keys = list(visits)
            for place in rng.permutation(len(keys)):
                run = _forgetting(visits[keys[place]])
                taken = take_samples(run, seconds=settings.seconds / settings.rounds)
                samples.setdefault(keys[place], []).append(taken)
            bar.update(turn + 1)
    timings = {key: _summary(each) for key, each in samples.items()}
    frames = tuple(
        FrameTimes(
            people,
            float(np.median([each.groups for each in drawn])),
            {
                stage: timings[(stage, None) if (stage, None) in timings else (stage, people)]
                for stage in STAGES
            },
            timings["total", people],
        )
        for people, drawn in crowds.items()
    )
    drift = _drift(samples["network", None])
    if drift > _DRIFT:
        notices.append(
            f"the machine's speed drifted: the network's rounds left their median by up to {drift:.0%}; free"
            " the machine and time again"
        )
    return frames, tuple(notices)


def _forgetting(call: Callable[[], object]) -> Callable[[], None]:
    """Return the same call without what it returns."""

    def run() -> None:
        call()

    return run


def _summary(rounds: Sequence[Samples]) -> Timing:
    return summarise(
        [ms for each in rounds for ms in each.ms], sum(len(each.ms) * each.loop for each in rounds)
    )


def _drift(rounds: Sequence[Samples]) -> float:
    """Return how far a round's median lies from the median of all rounds, at most, as a share."""
    medians = np.array([np.median(each.ms) for each in rounds])
    return float(np.abs(medians / np.median(medians) - 1).max())


def _pictures(folder: Path, limit: int | None) -> tuple[list[Path], list[str]]:
    """Return the pictures of a folder that can be read, in order of names, and what is told of the others."""
    if not folder.is_dir():
        film = "; a film's frames are timed by 'nas predict --show-times'" if folder.is_file() else ""
        raise InputError(f"--images: '{folder}' is no folder{film}")
    found = [each.path for each in find_inputs([str(folder)])[0] if each.kind == "picture"]
    if not found:
        raise InputError(f"--images: folder '{folder}' holds no picture")
    fine, left_out = [], []
    for path in found[:limit]:
        try:
            read_image(path, upright=True)
        except InputError as error:
            left_out.append(f"picture left out: {str(error).partition('; ')[0]}")
        else:
            fine.append(path)
    if not fine:
        raise InputError(f"--images: no picture of '{folder}' can be read ({left_out[0]})")
    return fine, left_out


def _time_photos(chain: _Chain, files: Sequence[Path], rounds: int) -> tuple[PhotoTimes, ...]:
    """Return what pictures take with the network's own maps; each is read anew in every round."""
    rng = np.random.default_rng(_SEED)
    chain.predictor(read_image(files[0], upright=True))
    took = np.zeros((2, rounds, len(files)))
    people = np.zeros(len(files), dtype=int)
    with progress_bar("timing pictures", rounds * len(files)) as bar:
        for turn in range(rounds):
            for done, place in enumerate(rng.permutation(len(files)), start=turn * len(files) + 1):
                start = time.perf_counter()
                found = chain.predictor(read_image(files[place], upright=True))
                took[:, turn, place] = time.perf_counter() - start, found.seconds["decode"]
                people[place] = int((found.scores >= MIN_SCORE).sum())
                bar.update(done)
    total, decode = np.median(took, axis=1) * 1e3
    return tuple(
        PhotoTimes(file.name, int(count), float(whole), float(grouping))
        for file, count, whole, grouping in zip(files, people, total, decode, strict=True)
    )
