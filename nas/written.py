"""Networks in files that inference engines run, with the call of the torch network that they came from."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latency_tables.runtimes import Prepared, get_runtime
from latency_tables.runtimes.base import check_contained, file_digest, first_line
from latency_tables.runtimes.openvino_runtime import OpenvinoRuntime
from search_spaces import InputError
from search_spaces.errors import shown
from search_spaces.files import MOST_PIXELS, read_json
from supernet.base import DEFAULT_SIGMA
from supernet.checkpoint import read_sigma
from supernet.onnx_peaks import PEAK_OUTPUTS
from supernet.paradigms import BOTTOM_UP, PARADIGMS, TOP_DOWN
from supernet.pose.peaks import PickedPeaks

__all__ = [
    "SIDECAR",
    "SUFFIXES",
    "OnnxNetwork",
    "RuntimeNetwork",
    "WrittenNetwork",
    "open_written",
    "sidecar_of",
]

Array = NDArray[np.float32]
_RUNTIMES: Final = {".xml": "openvino", ".param": "ncnn", ".tflite": "litert"}
SUFFIXES: Final = (".onnx", *_RUNTIMES)
"""Of the files that :func:`open_written` opens."""
SIDECAR: Final = "litepose-nas network"
"""What a file that tells what a network's file cannot tell says that it is."""


def sidecar_of(path: Path) -> Path:
    """Return where is told what a network's file itself cannot tell: joints, size, how it is run."""
    return path.with_name(f"{path.name}.json")


class WrittenNetwork(nn.Module, ABC):
    """A network in a file, called like the torch network that it came from; for images of one size.

    Attributes
    ----------
    path
        The file.
    size
        Height and width of the images that it takes, pixels.
    batch
        Images of one run; None where it takes any number.
    paradigm
        ``bottom-up`` or ``top-down``.
    sigma
        Standard deviation, in cells, of the Gaussians that it gives.
    peaks
        How it picks peaks itself, in the place of returning maps; None: it returns maps.
    told
        What the file, or the one beside it, says: ``joints``, ``skeleton``, ``arch`` and more.
    """

    path: Path
    size: tuple[int, int]
    batch: int | None
    paradigm: str
    sigma: float
    peaks: PickedPeaks | None = None
    told: Mapping[str, Any]

    @property
    def arch(self) -> Any:
        """What the file says of its network, as JSON; None where it says nothing."""
        told = self.told.get("arch")
        try:
            return json.loads(told) if isinstance(told, str) else told
        except (ValueError, RecursionError):
            return None

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of its outputs, in order."""

    @abstractmethod
    def run(self, images: Array) -> tuple[Array, ...]:
        """Return the outputs for as many images as the file takes at once."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, maps or peaks, for images of the file's size, shape (N, 3, H, W)."""
        if tuple(images.shape[2:]) != self.size:
            raise InputError(
                f"model '{self.path}' takes images of {self.size[0]}x{self.size[1]} pixels, not"
                f" {images.shape[2]}x{images.shape[3]}; evaluate the .safetensors on pictures of other shapes"
            )
        given = images.numpy()
        step = self.batch or len(given)
        rows = []
        for start in range(0, len(given), step):
            part = given[start : start + step]
            # A file for a fixed number of images is given the last one again.
            short = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            rows.append([each[: len(part)] for each in self.run(np.ascontiguousarray(short))])
        return tuple(torch.from_numpy(np.concatenate(maps)) for maps in zip(*rows, strict=True))


class OnnxNetwork(WrittenNetwork):
    """An exported model run by ONNX Runtime.

    Raises
    ------
    InputError
        If the file is missing or no model of ours.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        import onnxruntime

        if not path.is_file():
            raise InputError(f"model '{path}' does not exist")
        check_contained(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"model '{path}' is no ONNX model that ONNX Runtime can load: {line}") from None
        if len(self.session.get_inputs()) != 1:
            raise InputError(f"model '{path}' takes {len(self.session.get_inputs())} inputs, not one image")
        entry = self.session.get_inputs()[0]
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self.told = self.metadata
        names, paradigm = self.output_names, {1: TOP_DOWN.name, 2: BOTTOM_UP.name}.get(len(self.output_names))
        if "peaks" in self.metadata:
            self.peaks = PickedPeaks.from_json(_json(self.metadata["peaks"]), f"model '{path}'")
            paradigm = next((each for each, own in PEAK_OUTPUTS.items() if own == names), None)
        if len(entry.shape) != 4 or paradigm is None:
            raise InputError(
                f"model '{path}' has not the image input and the outputs of a pose network: two of a"
                " bottom-up one, one of a top-down one, or the peaks of 'nas export --peaks'"
            )
        count, colours, *sides = entry.shape
        if colours != 3 or entry.type != "tensor(float)" or not all(map(_counts, sides)):
            raise InputError(
                f"model '{path}' takes {entry.type} of {'x'.join(map(str, entry.shape))}, not images of three"
                " colours and one size in 32-bit floats; export it anew"
            )
        self.paradigm = paradigm
        self.path, self.input = path, entry.name
        self.size = sides[0], sides[1]
        self.batch = count if isinstance(count, int) else None
        _check_pixels(f"model '{path}'", self.size, self.batch)
        try:
            told = float(self.metadata.get("sigma", DEFAULT_SIGMA))
        except ValueError:
            told = math.nan
        self.sigma = read_sigma(told, f"model '{path}'")

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.session.get_outputs())

    def run(self, images: Array) -> tuple[Array, ...]:
        try:
            return tuple(self.session.run(None, {self.input: images}))
        except Exception as error:  # the engine's error classes have no common public base
            raise InputError(
                f"model '{self.path}' does not run in ONNX Runtime: {first_line(error)}"
            ) from None


class RuntimeNetwork(WrittenNetwork):
    """A file of OpenVINO, ncnn or LiteRT with the file beside it that says what it is (:func:`sidecar_of`).

    Parameters
    ----------
    path
        The ``.xml``, ``.param`` or ``.tflite``.
    threads
        Threads of the runtime; 0: as many as torch has.

    Raises
    ------
    InputError
        If a file is missing or damaged, or is not what the one beside it says.
    UnavailableError
        If the runtime is not installed.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        if not path.is_file():
            raise InputError(f"model '{path}' does not exist")
        self.path, self.told = path, _read_sidecar(path)
        self.size, self.batch = self.told["size"], self.told["batch"]
        self.paradigm, self.sigma = self.told["paradigm"], self.told["sigma"]
        self.peaks = self.told["peaks"]
        self._threads = threads or torch.get_num_threads()
        self._lock = threading.Lock()
        self._prepared: dict[int, Prepared] = {}
        self._open = contextlib.ExitStack()
        self._close: Callable[[], object] = weakref.finalize(self, self._open.close)
        self._at(self.batch or 1)

    def close(self) -> None:
        """Give back what the runtime holds; the network cannot be run afterwards."""
        self._prepared.clear()
        self._close()

    @property
    def output_names(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.told["outputs"]
        return names

    def run(self, images: Array) -> tuple[Array, ...]:
        with self._lock:
            prepared = self._at(len(images))
            if prepared.feed is None or prepared.fetch is None:
                raise TypeError(f"the runtime of '{self.path}' cannot be fed")
            prepared.feed(images)
            prepared.run()
            return prepared.fetch()

    def _at(self, count: int) -> Prepared:
        """Return the network ready for so many images; each number that is asked for stays ready."""
        if count not in self._prepared:
            ready = self._open.enter_context(self._ready(count))
            shapes = [y.shape[:2] for y in ready.fetch()] if ready.fetch is not None else []
            joints = self.told["joints"]
            wanted = {
                BOTTOM_UP.name: [(count, 2 * joints), (count, joints)],
                TOP_DOWN.name: [(count, joints)],
            }[self.paradigm]
            if self.peaks is not None:
                wanted = [(count, joints)] * len(PEAK_OUTPUTS[self.paradigm])
            if shapes != wanted:
                found = ", ".join("x".join(map(str, shape)) for shape in shapes) or "nothing"
                what = "maps" if self.peaks is None else "peaks"
                raise InputError(
                    f"model '{self.path}' returns {found} {what}, not those of a {self.paradigm} network of"
                    f" {joints} joints, as '{sidecar_of(self.path).name}' says; export it anew"
                )
            self._prepared[count] = ready
        return self._prepared[count]

    def _ready(self, count: int) -> AbstractContextManager[Prepared]:
        runtime = get_runtime(_RUNTIMES[self.path.suffix])
        if isinstance(runtime, OpenvinoRuntime):
            return runtime.prepare_pictures(self.path, (count, 3, *self.size), self._threads)
        return runtime.prepare_model(self.path, self.size, self._threads, self.told["runs_as"])


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return what is told beside a network's file, checked."""
    beside = sidecar_of(path)
    if not beside.is_file():
        raise InputError(
            f"model '{path}' has no '{beside.name}' beside it, which tells its joints and size: copy all"
            " files of an export, or export it anew with 'nas export'"
        )
    told, where = read_json(beside, "file"), f"file '{beside}'"
    if not isinstance(told, dict) or told.get("kind") != SIDECAR:
        raise InputError(f"{where} does not tell of a network; export it anew with 'nas export'")
    size, batch, joints = told.get("size"), told.get("batch"), told.get("joints")
    outputs = told.get("outputs")
    sides = size if isinstance(size, list) else []
    checks: dict[str, bool] = {
        "size": len(sides) == 2 and all(_counts(each) for each in sides),
        "batch": batch is None or _counts(batch),
        "joints": _counts(joints),
        "paradigm": told.get("paradigm") in list(PARADIGMS),
        "outputs": isinstance(outputs, list) and all(isinstance(each, str) for each in outputs),
        "runs_as": isinstance(told.get("runs_as"), str),
    }
    for field, sound in checks.items():
        if not sound:
            raise InputError(f"{where}: '{field}' cannot be {shown(told.get(field))}; export it anew")
    sigma = read_sigma(told.get("sigma", DEFAULT_SIGMA), where)
    peaks = PickedPeaks.from_json(told["peaks"], where) if told.get("peaks") is not None else None
    _check_pixels(where, (sides[0], sides[1]), batch)
    digests = told.get("sha256")
    if not isinstance(digests, dict) or path.name not in digests:  # engines may crash on files of two exports
        raise InputError(f"{where}: 'sha256' cannot be {shown(digests)}; export it anew")
    for name, digest in digests.items():
        part = path.with_name(Path(name).name)
        if not part.is_file():
            raise InputError(f"model '{path}' has no '{part.name}' beside it: copy all files of an export")
        if file_digest(part) != digest:
            raise InputError(
                f"'{part}' is not the file that '{beside.name}' tells of ('sha256'): copy all files of one"
                " export, or export it anew"
            )
    read = {"size": tuple(sides), "batch": batch, "outputs": tuple(outputs or ()), "sigma": sigma}
    return {**told, **read, "peaks": peaks}


def _check_pixels(where: str, size: tuple[int, int], batch: int | None) -> None:
    """Refuse pictures so large that memory for them would be asked for in vain, or in earnest."""
    if size[0] * size[1] * (batch or 1) > MOST_PIXELS:
        raise InputError(
            f"{where}: {batch or 1} images of {size[0]}x{size[1]} are more than {MOST_PIXELS:,} pixels;"
            " export it anew"
        )


def _json(text: str) -> object:
    """Return what a text says in JSON; None if it says nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20


def open_written(path: Path, threads: int = 0) -> WrittenNetwork:
    """Return the network in a file of an inference engine, by the file's suffix (:data:`SUFFIXES`).

    Raises
    ------
    InputError
        If the file is missing, or no network of ours.
    UnavailableError
        If what runs it is not installed.
    """
    return OnnxNetwork(path, threads) if path.suffix == ".onnx" else RuntimeNetwork(path, threads)
