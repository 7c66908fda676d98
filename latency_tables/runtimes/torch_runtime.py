"""PyTorch eager on the CPU: channels-last, inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latency_tables.runtimes.base import (
    Array,
    Prepared,
    Program,
    Runtime,
    Step,
    conv_padding,
    deconv_padding,
    first_line,
    random_picture,
)
from search_spaces.errors import InputError
from search_spaces.layers import Piece

if TYPE_CHECKING:
    import torch


class TorchRuntime(Runtime):
    """PyTorch, one call per operation, in channels-last layout (LitePose-XS: 18 ms, contiguous 23 ms).

    Batch normalisation is folded into the convolution, as in an exported network. Whole networks are
    ``torch.export`` programs (``.pt2``), which torch opens by pickle: only those that this toolkit has
    written itself are to be given to it.
    """

    name: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    install: ClassVar[str] = "install it with: pip install torch"

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = Program.of(piece)
        with _settings(threads):
            inputs = [_channels_last(x) for x in program.inputs]
            steps = [_operation(step) for step in program.steps]

            def forward() -> torch.Tensor:
                values = [*inputs]
                for step, operation in zip(program.steps, steps, strict=True):
                    other = None if step.other is None else values[step.other]
                    values.append(operation(values[step.x], other))
                return values[-1]

            yield _prepared(forward)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        import torch

        self.check(threads, precision)
        with _settings(threads):
            nothing = torch.zeros(1, 1, 1, 1)
            yield _prepared(lambda: nothing)

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        import torch

        if path.suffix != ".pt2":
            raise InputError(
                f"the torch runtime times programs of torch.export (.pt2), not '{path}';"
                " time an .onnx file with the onnxruntime runtime"
            )
        self.check_network(path, threads, precision)
        with _settings(threads):
            x = torch.from_numpy(random_picture(size))
            try:
                module = torch.export.load(path).module()
                module(x)
            except Exception as error:
                raise InputError(
                    f"the network '{path}' does not run on one picture of {size[0]}x{size[1]}:"
                    f" {first_line(error)}"
                ) from None
            yield _prepared(lambda: module(x), x)


def _operation(step: Step) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """Return the step as a function of what it reads and what it adds."""
    from torch.nn import functional

    layer = step.layer
    if layer.kind == "se":
        reduce, shift, expand, rise = map(_channels_last, step.gate)

        def gated(x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
            mean = functional.adaptive_avg_pool2d(x, 1)
            squeezed = functional.conv2d(mean, reduce, shift).relu_()
            return x * functional.hardsigmoid(functional.conv2d(squeezed, expand, rise))

        return gated
    weight = _channels_last(step.weight)
    bias = None if step.bias is None else _channels_last(step.bias)
    stride, groups = layer.stride, layer.groups
    before, after = conv_padding(layer)
    deconv, extra = deconv_padding(layer)

    def convolve(x: torch.Tensor) -> torch.Tensor:
        if layer.kind == "deconv":
            return functional.conv_transpose2d(x, weight, bias, stride, deconv, extra, groups)
        if before == after:
            return functional.conv2d(x, weight, bias, stride, before, 1, groups)
        padded = functional.pad(x, (before, after, before, after))
        return functional.conv2d(padded, weight, bias, stride, 0, 1, groups)

    def operation(x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        y = convolve(x)
        if other is not None:
            y.add_(other)
        if layer.activation == "relu":
            y.relu_()
        elif layer.activation == "relu6":
            y.clamp_(0.0, 6.0)
        elif layer.activation == "hswish":
            functional.hardswish(y, inplace=True)
        return y

    return operation


def _prepared(forward: Callable[[], Any], x: torch.Tensor | None = None) -> Prepared:
    """Return ``forward`` ready to run; a network's picture ``x`` can be set, and its outputs read."""
    import torch

    last: list[Any] = [None]

    def fetch() -> tuple[Array, ...]:
        (found,) = last
        every = (found,) if isinstance(found, torch.Tensor) else tuple(found)
        return tuple(np.array(y.contiguous().numpy(), dtype=np.float32) for y in every)

    def run() -> None:
        last[0] = forward()

    def outputs() -> tuple[Array, ...]:
        run()
        return fetch()

    if x is None:
        return Prepared(run, outputs)
    picture = x

    def feed(array: Array) -> None:
        picture.copy_(torch.from_numpy(array))

    return Prepared(run, outputs, feed, fetch)


def _channels_last(array: Array) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(array)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """Inference mode with ``threads`` threads; the former number of threads is restored."""
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(former)
