"""Runtime: what every inference engine offers the profiler, and the programs that all of them translate."""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError, UnavailableError, shown
from search_spaces.layers import Layer, Piece

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """Seeded random numbers for one layer.

    Attributes
    ----------
    x
        Input, shape (1, c_in, h_in, w_in).
    weight
        Shape (c_out, c_in / groups, k, k); for a transposed convolution (c_in, c_out / groups, k, k); of a
        squeeze-and-excitation that of its first convolution, (squeeze, c_in, 1, 1).
    bias
        Shape (c_out,), or None. Batch normalisation is folded: a layer with ``norm`` has a bias. Of a
        squeeze-and-excitation (squeeze,).
    other
        What is added, shape (1, c_out, h_out, w_out), or None.
    expand
        See :class:`LayerWeights`.
    """

    x: Array
    weight: Array
    bias: Array | None
    other: Array | None
    expand: tuple[Array, Array] | None = None


def _unit(rng: np.random.Generator, *size: int) -> Array:
    """Return uniform numbers with mean 0 and variance 1."""
    return (rng.random(size, dtype=np.float32) - np.float32(0.5)) * np.float32(12**0.5)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The constants of one layer.

    Attributes
    ----------
    weight, bias
        As in :class:`LayerTensors`.
    expand
        Weight (c_out, squeeze, 1, 1) and bias (c_out,) of a squeeze-and-excitation's second convolution; None
        for all other layers.
    """

    weight: Array
    bias: Array | None
    expand: tuple[Array, Array] | None = None


def layer_weights(layer: Layer, rng: np.random.Generator) -> LayerWeights:
    """Return random constants; a convolution's inputs of unit variance keep it."""
    if layer.kind == "se":
        reduce = _unit(rng, layer.squeeze, layer.c_in, 1, 1) / np.float32(np.sqrt(layer.c_in))
        bias = _unit(rng, layer.squeeze)
        expand = _unit(rng, layer.c_out, layer.squeeze, 1, 1) / np.float32(np.sqrt(layer.squeeze))
        return LayerWeights(reduce, bias, (expand, _unit(rng, layer.c_out)))
    own = layer.c_in // layer.groups
    if layer.kind == "deconv":
        shape = (layer.c_in, layer.c_out // layer.groups, layer.kernel, layer.kernel)
        fan = own * layer.kernel**2 / layer.stride**2
    else:
        shape = (layer.c_out, own, layer.kernel, layer.kernel)
        fan = own * layer.kernel**2
    weight = _unit(rng, *shape) / np.float32(np.sqrt(max(fan, 1.0)))
    return LayerWeights(weight, _unit(rng, layer.c_out) if layer.bias or layer.norm else None)


def layer_tensors(layer: Layer, rng: np.random.Generator) -> LayerTensors:
    """Return random tensors for ``layer``; outputs have about unit variance, so no denormals slow it down."""
    x = _unit(rng, 1, layer.c_in, layer.h_in, layer.w_in)
    own = layer_weights(layer, rng)
    other = _unit(rng, 1, layer.c_out, layer.h_out, layer.w_out) if layer.add else None
    return LayerTensors(x, own.weight, own.bias, other, own.expand)


def conv_padding(layer: Layer) -> tuple[int, int]:
    """Return the padding (before, after) of each axis that makes the output ``ceil(size / stride)``."""
    return (layer.kernel - 1) // 2, layer.kernel // 2


def deconv_padding(layer: Layer) -> tuple[int, int]:
    """Return (padding on both sides, extra rows at the end) that make the output ``size * stride``.

    From ``out = (size - 1) * stride - 2 * padding + kernel + extra``: kernel 4 pads 1, kernel 3 pads 1 and
    appends 1, kernel 2 pads nothing, all at stride 2.
    """
    surplus = layer.kernel - layer.stride
    padding = max(0, -(-surplus // 2))
    return padding, 2 * padding - surplus


def random_picture(size: tuple[int, int]) -> Array:
    """Return the picture that networks are timed on: (1, 3, height, width), mean 0, variance 1, seed 0."""
    return np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)


def file_digest(path: Path) -> str:
    """Return what tells a file's content from another's."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of an engine's error; its class, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def check_contained(path: Path) -> None:
    """Refuse an ONNX file whose numbers lie in other files, which it may name anywhere on the disk.

    Raises
    ------
    InputError
        If it is such a file, or none at all.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # protobuf's own error class is not public
        raise InputError(f"model '{path}' is no ONNX model that can be read, or a damaged one") from None
    _refuse_external(graph, path)


def _refuse_external(graph: onnx.GraphProto, path: Path) -> None:
    from onnx.external_data_helper import uses_external_data

    attributes = [each for node in graph.node for each in node.attribute]
    tensors = [*graph.initializer, *(each.t for each in attributes)]
    tensors += [each for attribute in attributes for each in attribute.tensors]
    tensors += [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
    for tensor in tensors:
        if uses_external_data(tensor):
            raise InputError(
                f"model '{path}' is refused: the values of {shown(tensor.name)} lie in another file; save it"
                " as one file"
            )
    for attribute in attributes:
        for part in (attribute.g, *attribute.graphs):
            if part.node or part.initializer:
                _refuse_external(part, path)


def check_picture_input(path: Path, size: tuple[int, int]) -> None:
    """Raise :class:`InputError` unless an ONNX file takes one float picture of ``size`` (height, width)."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # protobuf's own error class is not public
        raise InputError(f"the network '{path}' is no ONNX file, or a damaged one") from None
    _refuse_external(graph, path)
    constants = {constant.name for constant in graph.initializer}
    inputs = [info for info in graph.input if info.name not in constants]
    shapes = [[d.dim_value or None for d in info.type.tensor_type.shape.dim] for info in inputs]
    wanted = (1, 3, *size)
    if len(shapes) != 1 or len(shapes[0]) != 4 or any(h not in (None, w) for h, w in zip(shapes[0], wanted)):
        found = "; ".join("x".join(str(d or "?") for d in shape) for shape in shapes) or "nothing"
        raise InputError(
            f"the network '{path}' takes {found}, not one picture of 1x3x{size[0]}x{size[1]}: state its size"
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One layer of a program; values are numbered, inputs first, then the outputs of the steps in order.

    Attributes
    ----------
    layer
        What is computed.
    weight, bias
        As in :class:`LayerTensors`.
    x, other
        Numbers of the values that it reads and adds (None: nothing is added).
    expand
        As in :class:`LayerWeights`.
    """

    layer: Layer
    weight: Array
    bias: Array | None
    x: int
    other: int | None
    expand: tuple[Array, Array] | None = None

    @property
    def gate(self) -> tuple[Array, Array, Array, Array]:
        """Weight and bias of a squeeze-and-excitation's first convolution, then those of its second."""
        if self.expand is None or self.bias is None:
            raise InputError(f"the step of {self.layer.key} has no squeeze-and-excitation's weights")
        return self.weight, self.bias, *self.expand


@dataclass(frozen=True, slots=True)
class Program:
    """A layer or a block with its numbers: what every runtime translates into a network of its own.

    Whole networks are programs too (:func:`latency_tables.networks.network_program`); they are written to
    files, which :meth:`Runtime.prepare_model` takes.

    Attributes
    ----------
    inputs
        Arrays of shape (1, C, H, W): the layer's input (and what it adds), or the input of every branch.
    steps
        The layers in order. Where a value is larger than the step that reads it takes, the step reads its
        upper left part.
    outputs
        Numbers of the values that it returns; () stands for the last step's alone, as in every piece.
    """

    inputs: tuple[Array, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...] = ()

    @classmethod
    def of(cls, piece: Piece | Program, rng: np.random.Generator | None = None) -> Program:
        """Return the program of a layer or a block, with random tensors (seed 0); a program as it is."""
        if isinstance(piece, Program):
            return piece
        rng = rng or np.random.default_rng(0)
        if isinstance(piece, Layer):
            given = layer_tensors(piece, rng)
            other = 1 if given.other is not None else None
            read = (given.x,) if given.other is None else (given.x, given.other)
            return cls(read, (Step(piece, given.weight, given.bias, 0, other, given.expand),))
        inputs: list[Array] = []
        steps: list[Step] = []
        ends: list[int] = []
        count = len(piece.branches)
        for branch, chain in enumerate(piece.chains):
            source = branch
            for place, layer in enumerate(chain):
                given = layer_tensors(layer, rng)
                if place == 0:
                    inputs.append(given.x)
                other = None if not layer.add else (ends[0] if ends else 0)
                steps.append(Step(layer, given.weight, given.bias, source, other, given.expand))
                source = count + len(steps) - 1
            ends.append(source)
        return cls(tuple(inputs), tuple(steps))

    @property
    def output(self) -> Layer:
        """The layer whose output is a piece's."""
        return self.steps[-1].layer

    @property
    def results(self) -> tuple[int, ...]:
        """Numbers of the values that it returns."""
        return self.outputs or (len(self.inputs) + len(self.steps) - 1,)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A layer or a network that is ready to run.

    Attributes
    ----------
    run
        Runs it once, on inputs that were set before.
    outputs
        Runs it once and returns copies of its outputs as (N, C, H, W) arrays, whatever layout the runtime
        works in.
    feed
        Sets a network's picture, (1, 3, H, W). None for layers, and where the runtime cannot be fed anew.
    fetch
        Returns copies of the outputs of the last run, in the form of ``outputs``; None likewise.
    """

    run: Callable[[], None]
    outputs: Callable[[], tuple[Array, ...]]
    feed: Callable[[Array], None] | None = None
    fetch: Callable[[], tuple[Array, ...]] | None = None


class Runtime(ABC):
    """An inference engine on this machine, at batch 1.

    ``prepare*`` are context managers: inside the block the engine holds its resources and thread settings,
    at its end both are as before. Several blocks may be open at once, one within the other, with the same
    number of threads; what they prepared runs in any order.
    """

    name: ClassVar[str]
    """How targets and commands call it."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """Number formats it can be timed in."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What must be there to be imported."""

    install: ClassVar[str]
    """What to type to get it."""

    wheels: ClassVar[str] = ""
    """The same in packages for pip, for a device at the end of a link, which has no litepose-nas."""

    def unavailable(self) -> str | None:
        """Return why it cannot be used here, or None if it can."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"the package '{package.replace('_', '-')}' is not installed"
        return None

    @abstractmethod
    def version(self) -> str:
        """Return the engine's version."""

    @abstractmethod
    def prepare(
        self, piece: Piece | Program, threads: int, precision: str = "fp32"
    ) -> AbstractContextManager[Prepared]:
        """Make a layer or a block ready, with seeded random tensors or those of a program.

        A layer is timed as a network would execute it, neighbours left out; a block runs as one network,
        so that the engine may fuse what it can.
        """

    @abstractmethod
    def prepare_empty(self, threads: int, precision: str = "fp32") -> AbstractContextManager[Prepared]:
        """Make ready the least that can be run: its time is the cost of calling, not of computing."""

    @abstractmethod
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> AbstractContextManager[Prepared]:
        """Make ready an exported network for one picture of ``size`` (height, width) in pixels.

        Where the precision is not the file's, the runtime converts the network first.

        Raises
        ------
        InputError
            If the file is missing, is no network of this runtime's format or takes another input.
        """

    def network_files(self, path: Path) -> tuple[Path, ...]:
        """Return the files that make up a network, ``path`` last; all are called alike but for their suffix.

        A device at the end of a link is sent all of them.
        """
        return (path,)

    def check(self, threads: int, precision: str = "fp32") -> None:
        """Raise unless the runtime can be used here with these settings.

        Raises
        ------
        UnavailableError
            If it is not installed, or cannot compute in that precision.
        InputError
            If the number of threads is not positive.
        """
        reason = self.unavailable()
        if reason is not None:
            raise UnavailableError(f"the runtime '{self.name}' is not available: {reason}; {self.install}")
        if precision not in self.precisions:
            raise UnavailableError(
                f"the runtime '{self.name}' is timed in {', '.join(self.precisions)}, not in '{precision}'"
            )
        if threads < 1:
            raise InputError(f"the number of threads is at least 1, not {threads}")

    def check_network(self, path: Path, threads: int, precision: str = "fp32") -> None:
        """Raise unless the runtime can be used here with these settings, and there is such a file.

        Raises
        ------
        UnavailableError
            As :meth:`check`.
        InputError
            As :meth:`check`, or if the file does not exist.
        """
        self.check(threads, precision)
        if not path.is_file():
            raise InputError(f"the network '{path}' does not exist")
