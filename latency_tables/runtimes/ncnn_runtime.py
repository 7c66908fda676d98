"""ncnn on the CPU, at fp32; layers and blocks get and hand over their activations packed, as in a network.

ncnn keeps 4, 8 or 16 channels of a pixel side by side (*packs* them) where the number of channels allows it,
and every layer decides for itself, so that a block runs alone as it runs in a network once its input comes
packed. A program is written as the text and the numbers of an ncnn network, with the layers that ncnn's own
converter, pnnx, would write.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
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
    Step,
    check_picture_input,
    conv_padding,
    deconv_padding,
    file_digest,
    random_picture,
)
from search_spaces.errors import InputError, UnavailableError
from search_spaces.layers import Layer, Piece

if TYPE_CHECKING:
    import ncnn

_MAGIC = 7767517
"""First line of every ncnn network."""

_Part = tuple[int, tuple[int, int]]
"""A value's number, and the height and width of the upper left part that is read."""

_HARD = f"0={np.float32(1 / 6):.9g} 1=0.5"
"""Slope and offset of hard-sigmoid and hard-swish; ncnn's own default is another slope."""

_FLOAT32 = np.zeros(1, dtype="<u4").tobytes()
"""What precedes weights that are stored as 32-bit floats."""


class NcnnRuntime(Runtime):
    """ncnn on the CPU: 32-bit floats stored and computed, packed layouts, algorithms as ncnn picks them.

    Without being told otherwise, ncnn computes in 16 bits wherever a processor can; that is switched off, so
    that fp32 is fp32. Activations come from pools, as in ncnn's own benchmark.

    Whole networks are ``.param`` files with their ``.bin`` beside them, or ``.onnx`` files, which pnnx
    converts.
    int8 is not offered: what would quantise a network for ncnn is not in its Python package.
    """

    name: ClassVar[str] = "ncnn"
    packages: ClassVar[tuple[str, ...]] = ("ncnn",)
    install: ClassVar[str] = "install it with: pip install ncnn pnnx"

    def version(self) -> str:
        import ncnn

        return str(ncnn.__version__)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = Program.of(piece)
        text, numbers = program_network(program)
        with _network(text, numbers, threads) as net:
            feeds = [_packed(x, net.opt) for x in program.inputs]
            yield _prepared(net, feeds)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        text = _text(["Input in0 0 1 in0", "ReLU relu 1 1 in0 out0"])
        with _network(text, b"", threads) as net:
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
            text, numbers = _converted(path, size)
        elif path.suffix == ".param":
            text, numbers = path.read_text(encoding="utf-8", errors="replace"), path.with_suffix(".bin")
            if not path.with_suffix(".bin").is_file():
                raise InputError(f"the network '{path}' has no '{path.stem}.bin' beside it, its numbers")
            _check_stated_size(path, text, size)
        else:
            raise InputError(f"ncnn times .param files (with their .bin) and .onnx files, not '{path}'")
        x = random_picture(size)
        try:
            with _network(text, numbers, threads) as net:
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


class _RefusedError(Exception):
    """ncnn does not take a network; the reason in its words."""


def write_network(program: Program, path: Path) -> Path:
    """Write a piece or a whole network as a ``.param`` file with its ``.bin`` beside it; return the former.

    Neither ncnn nor pnnx is needed for it.
    """
    from search_spaces.files import write_bytes  # needs yaml, which devices do without

    text, numbers = program_network(program)
    write_bytes(path.with_suffix(".bin"), numbers)
    write_bytes(path, text.encode())
    return path


def program_network(program: Program) -> tuple[str, bytes]:
    """Return a program as the text (``.param``) and the numbers (``.bin``) of an ncnn network.

    Its inputs are called ``in0``, ``in1``, ..., its outputs ``out0``, ``out1``, ...
    """
    wires = _Wires(program)
    lines = wires.lines
    for number, array in enumerate(program.inputs):
        channels, height, width = array.shape[1:]
        lines.append(f"Input in{number} 0 1 in{number} 0={width} 1={height} 2={channels}")
        wires.give(number, f"in{number}")
    for place, step in enumerate(program.steps):
        layer = step.layer
        number = len(program.inputs) + place
        y = wires.name(number)
        x = wires.take(step.x, (layer.h_in, layer.w_in))
        if layer.kind == "se":
            lines += _gate(layer, place, x, y)
        elif step.other is None:
            # pnnx fuses ReLUs into convolutions, and leaves hard-swish a layer of its own.
            alone = layer.activation == "hswish"
            lines.append(_convolution(step, f"conv{place}", x, f"z{place}" if alone else y, fused=not alone))
            if alone:
                lines.append(_activation(layer, place, f"z{place}", y))
        else:
            other = wires.take(step.other, (layer.h_out, layer.w_out))
            end = y if layer.activation == "none" else f"sum{place}"
            lines.append(_convolution(step, f"conv{place}", x, f"z{place}", fused=False))
            lines.append(f"BinaryOp add{place} 2 1 {other} z{place} {end} 0=0")
            if layer.activation != "none":
                lines.append(_activation(layer, place, end, y))
        wires.give(number, y)
    return _text(lines), b"".join(chunk for step in program.steps for chunk in _numbers(step))


class _Wires:
    """The names under which a program's values are found; ncnn wants one name per reader.

    A value that several read is split, and what reads a part of a value gets it cropped: each part once,
    however many read it.
    """

    def __init__(self, program: Program) -> None:
        self.lines: list[str] = []
        self._results = {number: f"out{i}" for i, number in enumerate(program.results)}
        self._sizes = [x.shape[2:] for x in program.inputs]
        self._sizes += [(step.layer.h_out, step.layer.w_out) for step in program.steps]
        self._waiting: dict[_Part, list[str]] = {}
        self._readers: Counter[_Part] = Counter((number, self._sizes[number]) for number in program.results)
        for step in program.steps:
            layer = step.layer
            self._readers[step.x, (layer.h_in, layer.w_in)] += 1
            if step.other is not None:
                self._readers[step.other, (layer.h_out, layer.w_out)] += 1
        for number, size in list(self._readers):
            if size != self._sizes[number]:
                self._readers[number, self._sizes[number]] += 1  # the crop

    def name(self, number: int) -> str:
        """Return what a value is called where it is computed."""
        alone = self._readers[number, self._sizes[number]] == 1
        return self._results[number] if alone and number in self._results else f"y{number}"

    def give(self, number: int, name: str) -> None:
        """Make known that a value has been computed."""
        self._spread((number, self._sizes[number]), name)

    def take(self, number: int, size: tuple[int, int]) -> str:
        """Return the name under which the next reader finds a value's upper left part of that size."""
        part = number, size
        if part not in self._waiting:
            whole, name = self.take(number, self._sizes[number]), f"y{number}_{size[0]}x{size[1]}"
            ends = f"-23309=2,0,0 -23310=2,{size[0]},{size[1]} -23311=2,1,2"
            self.lines.append(f"Crop crop_{name} 1 1 {whole} {name} {ends}")
            self._spread(part, name)
        return self._waiting[part].pop(0)

    def _spread(self, part: _Part, name: str) -> None:
        count = self._readers[part]
        names = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        if count > 1:
            number, size = part
            if number in self._results and size == self._sizes[number]:
                names[-1] = self._results[number]
            self.lines.append(f"Split split_{name} 1 {count} {name} {' '.join(names)}")
        self._waiting[part] = names


def _text(lines: Sequence[str]) -> str:
    """Return the text of a network: magic number, how many layers and values it has, and the layers."""
    values = sum(int(line.split()[3]) for line in lines)
    return "\n".join([str(_MAGIC), f"{len(lines)} {values}", *lines, ""])


def _convolution(step: Step, name: str, x: str, y: str, *, fused: bool) -> str:
    """Return the line of a convolution, with its activation if that is ``fused`` with it."""
    layer = step.layer
    operator = "Deconvolution" if layer.kind == "deconv" else "Convolution"
    given = {0: layer.c_out, 1: layer.kernel, 2: 1, 3: layer.stride, 5: int(step.bias is not None)}
    if layer.kind == "deconv":
        padding, extra = deconv_padding(layer)
        given |= {4: padding, 18: extra, 19: extra}
    else:
        before, after = conv_padding(layer)
        given |= {4: before, 14: before, 15: after, 16: after}
    given[6] = step.weight.size
    if layer.groups > 1:
        operator += "DepthWise"
        given[7] = layer.groups
    words = [f"{key}={value}" for key, value in sorted(given.items())]
    if fused and layer.activation == "relu":
        words.append("9=1")
    elif fused and layer.activation == "relu6":
        words += ["9=3", "-23310=2,0.0,6.0"]
    return f"{operator} {name} 1 1 {x} {y} {' '.join(words)}"


def _activation(layer: Layer, place: int, x: str, y: str) -> str:
    """Return the line of an activation that is a layer of its own."""
    what = {
        "relu": ("ReLU", ""),
        "relu6": ("Clip", " 0=0.0 1=6.0"),
        "hswish": ("HardSwish", f" {_HARD}"),
    }
    operator, words = what[layer.activation]
    return f"{operator} act{place} 1 1 {x} {y}{words}"


def _gate(layer: Layer, place: int, x: str, y: str) -> list[str]:
    """Return the lines of a squeeze-and-excitation, as pnnx converts torch's."""
    name, squeeze, channels = f"se{place}", layer.squeeze, layer.c_out
    size = squeeze * channels
    return [
        f"Split split_{name} 1 2 {x} {name}_x {name}_seen",
        f"Reduction mean_{name} 1 1 {name}_seen {name}_mean 0=3 1=0 -23303=2,2,1 4=1 5=1",
        f"Convolution reduce_{name} 1 1 {name}_mean {name}_few 0={squeeze} 1=1 3=1 4=0 5=1 6={size} 9=1",
        f"Convolution expand_{name} 1 1 {name}_few {name}_sum 0={channels} 1=1 3=1 4=0 5=1 6={size}",
        f"HardSigmoid act_{name} 1 1 {name}_sum {name}_gate {_HARD}",
        f"BinaryOp mul_{name} 2 1 {name}_x {name}_gate {y} 0=2",
    ]


def _numbers(step: Step) -> list[bytes]:
    """Return weights and bias as ncnn stores them: output channels before input channels, group by group."""
    layer, weight = step.layer, step.weight
    if layer.kind == "se":
        reduce, shift, expand, rise = (
            np.ascontiguousarray(each, dtype="<f4").tobytes() for each in step.gate
        )
        return [_FLOAT32, reduce, shift, _FLOAT32, expand, rise]
    if layer.kind == "deconv":
        groups = weight.reshape(layer.groups, layer.c_in // layer.groups, -1, layer.kernel**2)
        weight = groups.swapaxes(1, 2)
    found = [_FLOAT32, np.ascontiguousarray(weight, dtype="<f4").tobytes()]
    if step.bias is not None:
        found.append(step.bias.astype("<f4").tobytes())
    return found


@contextmanager
def _network(text: str, numbers: bytes | Path, threads: int) -> Iterator[ncnn.Net]:
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
                setattr(options, f"use_{width}_{part}", False)
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
    with _network(*program_network(Program.of(one)), options.num_threads) as neighbour:
        extractor = neighbour.create_extractor()
        extractor.input("in0", _mat(np.ones((1, 1, 1, 1), dtype=np.float32)))
        _, handed = extractor.extract("out0", 1)
        pack = handed.elempack
        del handed, extractor
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
