"""ncnn on the CPU; layers and blocks get and hand over their activations packed, as in a network.

ncnn keeps 4, 8 or 16 channels of a pixel side by side (*packs* them) where the number of channels allows it,
and every layer decides for itself, so that a block runs alone as it runs in a network once its input comes
packed. Programs are written as ncnn networks by :mod:`latency_tables.runtimes.ncnn_writer`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latency_tables.runtimes.base import (
    Array,
    Prepared,
    Program,
    Runtime,
    check_picture_input,
    file_digest,
    random_picture,
)
from latency_tables.runtimes.ncnn_writer import network_text, program_network
from latency_tables.runtimes.ranges import Range, checked_ranges, kept_steps
from search_spaces.errors import InputError, UnavailableError
from search_spaces.layers import Layer, Piece

if TYPE_CHECKING:
    import ncnn

__all__ = ["NcnnRuntime", "program_network", "write_network"]


class NcnnRuntime(Runtime):
    """ncnn on the CPU: packed layouts, algorithms as ncnn picks them, activations from pools.

    What is computed in what is a matter of ncnn's options:

    - fp32: 32-bit floats stored and computed. Without being told otherwise, ncnn computes in 16 bits wherever
      a processor can; that is switched off, so that fp32 is fp32.
    - fp16: ncnn's own defaults. Weights and activations are stored and computed with in 16 bits where the
      processor and ncnn's kernels for it have them (ARM from 8.2 on); elsewhere, as on most x86 processors,
      this is fp32 with weights that were rounded. How weights are stored in a file changes nothing: those of
      fp32 are rounded when they are loaded, those of fp16 widened where they have to be.
    - int8: convolutions in 8 bits, see :mod:`latency_tables.runtimes.ncnn_writer`, all else as in fp32. A
      piece is handed floats, and turns them into 8 bits at its own expense, as a block does that reads what
      is added to its output; only between two convolutions are 8 bits handed over.

    Whole networks are ``.param`` files with their ``.bin`` beside them, or ``.onnx`` files, which pnnx
    converts, but not to 8 bits.
    """

    name: ClassVar[str] = "ncnn"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    packages: ClassVar[tuple[str, ...]] = ("ncnn",)
    install: ClassVar[str] = "install it with: pip install 'litepose-nas[ncnn]'"
    wheels: ClassVar[str] = "ncnn pnnx"

    def version(self) -> str:
        import ncnn

        return str(ncnn.__version__)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = Program.of(piece)
        text, numbers = _written(program, precision)
        with _network(text, numbers, threads, precision) as net:
            feeds = [_packed(x, net.opt) for x in program.inputs]
            yield _prepared(net, feeds)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        text = network_text(["Input in0 0 1 in0", "ReLU relu 1 1 in0 out0"])
        with _network(text, b"", threads, precision) as net:
            yield _prepared(net, [_mat(np.ones((1, 1, 1, 1), dtype=np.float32))])

    def network_files(self, path: Path) -> tuple[Path, ...]:
        return (path.with_suffix(".bin"), path) if path.suffix == ".param" else (path,)

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        self.check_network(path, threads, precision)
        numbers: bytes | Path
        if path.suffix == ".onnx":
            if precision == "int8":
                raise InputError(
                    f"ncnn times .param files in int8, not '{path}': write one with calibrated ranges"
                )
            text, numbers = _converted(path, size)
        elif path.suffix == ".param":
            text, numbers = path.read_text(encoding="utf-8", errors="replace"), path.with_suffix(".bin")
            if not path.with_suffix(".bin").is_file():
                raise InputError(f"the network '{path}' has no '{path.stem}.bin' beside it, its numbers")
            _check_stated_size(path, text, size)
            _check_bits(path, text, precision)
        else:
            raise InputError(f"ncnn times .param files (with their .bin) and .onnx files, not '{path}'")
        x = random_picture(size)
        try:
            with _network(text, numbers, threads, precision) as net:
                if len(net.input_names()) != 1:
                    raise _RefusedError(f"it has {len(net.input_names())} inputs, not one")
                with _prepared_network(net, x) as prepared:
                    yield prepared
        except _RefusedError as error:
            raise InputError(
                f"the network '{path}' does not run in ncnn on one picture of {size[0]}x{size[1]}: {error}"
            ) from None


def _check_stated_size(path: Path, text: str, size: tuple[int, int]) -> None:
    """Raise :class:`InputError` if an ncnn network says that it takes anything but a picture of that size."""
    wanted = {"0": size[1], "1": size[0], "2": 3}
    for line in text.splitlines():
        operator, *words = line.split() or [""]
        stated = dict(word.split("=", 1) for word in words if "=" in word) if operator == "Input" else {}
        if any(key in stated and stated[key] != str(value) for key, value in wanted.items()):
            found = "x".join(stated.get(key, "?") for key in ("2", "1", "0"))
            raise InputError(
                f"the network '{path}' takes {found}, not one picture of 3x{size[0]}x{size[1]}:"
                " state its size"
            )


def _check_bits(path: Path, text: str, precision: str) -> None:
    """Raise :class:`InputError` if an ncnn network is in 8 bits and should not be, or the other way round."""
    eight = any(
        line.startswith("Convolution")
        and any(word.startswith("8=") and word != "8=0" for word in line.split())
        for line in text.splitlines()
    )
    if eight != (precision == "int8"):
        found = "in int8" if eight else "in floats"
        raise InputError(
            f"the network '{path}' is {found}, so it is not timed in '{precision}': no file is quantised, nor"
            " the other way round, when it is read"
        )


class _RefusedError(Exception):
    """ncnn does not take a network; the reason in its words."""


def write_network(
    program: Program,
    path: Path,
    precision: str = "fp32",
    ranges: Mapping[int, Range] | None = None,
    keep: Iterable[str] = (),
) -> Path:
    """Write a piece or a whole network as a ``.param`` file with its ``.bin`` beside it; return the former.

    Neither ncnn nor pnnx is needed for it, but for int8 without ranges.

    Parameters
    ----------
    program
        What is written.
    path
        Of the ``.param`` file, which is written last, when its numbers are there.
    precision
        ``fp32``; ``fp16``: weights are stored in 16 bits (about half the size), and ncnn's options decide
        what is computed in; ``int8``: convolutions but for transposed ones in 8 bits, in the form of ncnn's
        own tools: weights with one scale per output channel, activations with one scale, symmetric (about
        a quarter of the size, but for the weights of transposed convolutions, half of theirs).
    ranges
        For int8: the range of every value, from :func:`latency_tables.runtimes.ranges.value_ranges` on
        calibration pictures. By default they come from a run of ncnn in fp32 on the program's own inputs:
        enough for timing, too little for accuracy.
    keep
        For int8: names of layers that compute in floats.

    Raises
    ------
    InputError
        If there is no such precision, a range is missing, no layer is called so, or 16 bits do not hold a
        layer's weights.
    UnavailableError
        If ranges would have to be found and ncnn is not installed.
    """
    if precision not in NcnnRuntime.precisions:
        raise InputError(f"ncnn has {', '.join(NcnnRuntime.precisions)}, not '{precision}'")
    from search_spaces.files import write_bytes  # needs yaml, which devices do without

    text, numbers = _written(program, precision, ranges, keep)
    write_bytes(path.with_suffix(".bin"), numbers)
    write_bytes(path, text.encode())
    return path


def _written(
    program: Program,
    precision: str,
    ranges: Mapping[int, Range] | None = None,
    keep: Iterable[str] = (),
) -> tuple[str, bytes]:
    """Return a program as the text and the numbers of an ncnn network in that precision."""
    kept = kept_steps(program, keep, precision)
    if precision != "int8":
        return program_network(program, halves=precision == "fp16")
    given = _own_ranges(program) if ranges is None else checked_ranges(program, ranges)
    return program_network(program, halves=True, ranges=given, keep=kept)


def _own_ranges(program: Program) -> dict[int, Range]:
    """Return the range of every value when the program runs in fp32 on its own inputs."""
    NcnnRuntime().check(1)
    first = len(program.inputs)
    every = Program(program.inputs, program.steps, tuple(range(first, first + len(program.steps))))
    with _network(*program_network(every), 1) as net:
        found = _extracted(net, [_mat(x) for x in program.inputs], packed=False)
        values = [*program.inputs, *(np.array(mat) for mat in found)]
        del found
    return {number: (float(y.min()), float(y.max())) for number, y in enumerate(values)}


@contextmanager
def _network(text: str, numbers: bytes | Path, threads: int, precision: str = "fp32") -> Iterator[ncnn.Net]:
    """Yield a loaded network that computes with so many threads; at the end all its memory is given back.

    Raises
    ------
    _RefusedError
        If ncnn cannot load it.
    """
    import ncnn

    net, blobs, workspace = ncnn.Net(), ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    options = net.opt
    options.num_threads = threads
    options.use_vulkan_compute = False
    options.use_packing_layout = True
    for width in ("fp16", "bf16"):
        for part in ("packed", "storage", "arithmetic"):
            if hasattr(options, f"use_{width}_{part}"):
                setattr(options, f"use_{width}_{part}", precision == width)
    options.blob_allocator, options.workspace_allocator = blobs, workspace
    try:
        with tempfile.TemporaryDirectory(prefix="litepose-nas-") as folder:
            file = Path(folder) / "network.bin"
            if isinstance(numbers, bytes):
                file.write_bytes(numbers)
            else:
                file = numbers
            heard: list[str] = []
            with _hearing(Path(folder) / "heard", heard):
                failed = net.load_param_mem(text) or net.load_model(str(file))
            if failed:
                raise _RefusedError(heard[0] if heard else "it cannot be loaded")
        yield net
    finally:
        net.clear()
        blobs.clear()
        workspace.clear()


@contextmanager
def _hearing(path: Path, heard: list[str]) -> Iterator[None]:
    """Gather the lines that ncnn would write to standard error, through a file at ``path``."""
    with path.open("w+b") as file:
        former = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(former, 2)
            os.close(former)
            file.seek(0)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
            heard += [line.strip() for line in lines if line.strip()]


def _prepared(net: ncnn.Net, feeds: Sequence[ncnn.Mat]) -> Prepared:
    """Return a piece ready to run; its outputs stay packed when it is timed."""

    def run() -> None:
        _extracted(net, feeds, packed=True)

    def outputs() -> tuple[Array, ...]:
        return tuple(np.array(mat, dtype=np.float32)[None] for mat in _extracted(net, feeds, packed=False))

    return Prepared(run, outputs)


def _extracted(net: ncnn.Net, feeds: Sequence[ncnn.Mat], *, packed: bool) -> list[ncnn.Mat]:
    """Run the network once; return its outputs, as the layers left them if ``packed``."""
    extractor = net.create_extractor()
    for name, feed in zip(net.input_names(), feeds, strict=True):
        extractor.input(name, feed)
    found = []
    for name in net.output_names():
        failed, mat = extractor.extract(name, int(packed))
        if failed:
            raise _RefusedError(f"its output '{name}' cannot be computed")
        found.append(mat)
    return found


@contextmanager
def _prepared_network(net: ncnn.Net, x: Array) -> Iterator[Prepared]:
    """Yield a network ready to run on pictures like ``x``; its outputs are unpacked, as users want them.

    Raises
    ------
    _RefusedError
        If it cannot be run.
    """
    feeds = [_mat(x)]
    last: list[ncnn.Mat] = []

    def feed(array: Array) -> None:
        feeds[0] = _mat(array)

    def run() -> None:
        last[:] = _extracted(net, feeds, packed=False)

    def fetch() -> tuple[Array, ...]:
        return tuple(np.array(mat, dtype=np.float32)[None] for mat in last)

    def outputs() -> tuple[Array, ...]:
        run()
        return fetch()

    try:
        run()
        yield Prepared(run, outputs, feed, fetch)
    finally:
        last.clear()  # their memory belongs to the network's pools


def _mat(array: Array) -> ncnn.Mat:
    """Return an (1, C, H, W) array as a matrix that owns its memory (a borrowed one may be overwritten)."""
    import ncnn

    return ncnn.Mat(np.ascontiguousarray(array[0])).clone()


def _packed(array: Array, options: Any) -> ncnn.Mat:
    """Return an (1, C, H, W) array packed as a layer before would hand it over."""
    import ncnn

    mat, channels = _mat(array), array.shape[1]
    one = Layer("conv", 1, channels, 1, 1, 1, 1, 1)
    precision = "fp16" if options.use_fp16_storage else "fp32"
    with _network(*program_network(Program.of(one)), options.num_threads, precision) as neighbour:
        extractor = neighbour.create_extractor()
        extractor.input("in0", _mat(np.ones((1, 1, 1, 1), dtype=np.float32)))
        _, handed = extractor.extract("out0", 1)
        pack, halves = handed.elempack, handed.elembits() == 16
        del handed, extractor
    if halves:
        mat = ncnn.cast_float32_to_float16(mat)
    return mat if pack == 1 else ncnn.convert_packing(mat, pack)


def _converted(path: Path, size: tuple[int, int]) -> tuple[str, bytes]:
    """Return an ONNX network as ncnn's, converted by pnnx with 32-bit weights; the last few are kept."""
    check_picture_input(path, size)
    return _conversion(path, file_digest(path), size)


@lru_cache(maxsize=4)
def _conversion(path: Path, _digest: str, size: tuple[int, int]) -> tuple[str, bytes]:
    """Convert a network, whose content the digest tells."""
    with tempfile.TemporaryDirectory(prefix="litepose-nas-") as folder:
        # pnnx writes a dozen files beside the one that it reads.
        shutil.copy(path, Path(folder) / "network.onnx")
        command = [str(_converter()), "network.onnx", f"inputshape=[1,3,{size[0]},{size[1]}]", "fp16=0"]
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        text, numbers = Path(folder) / "network.ncnn.param", Path(folder) / "network.ncnn.bin"
        if done.returncode or not text.is_file() or not numbers.is_file():
            lines = done.stdout.decode("utf-8", errors="replace").strip().splitlines() or ["it says nothing"]
            raise InputError(f"pnnx does not convert the network '{path}' for ncnn: {lines[-1].strip()}")
        return text.read_text(encoding="utf-8"), numbers.read_bytes()


def _converter() -> Path:
    """Return pnnx's program; its Python package is not imported, for it imports torch."""
    spec = importlib.util.find_spec("pnnx")
    name = "pnnx.exe" if os.name == "nt" else "pnnx"
    places: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    for place in places:
        if (program := Path(place) / name).is_file():
            return program
    raise UnavailableError(
        "ncnn times .onnx files after pnnx has converted them, and the package 'pnnx' is not installed;"
        " install it with: pip install pnnx"
    )
