"""PyTorch eager on the CPU: channels-last, inference mode."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latency_tables.runtimes.base import (
    Array,
    LayerTensors,
    Prepared,
    Runtime,
    conv_padding,
    deconv_padding,
    layer_tensors,
)
from search_spaces.errors import InputError
from search_spaces.layers import Layer

if TYPE_CHECKING:
    import torch


class TorchRuntime(Runtime):
    """PyTorch, one call per operation, in channels-last layout (LitePose-XS: 18 ms, contiguous 23 ms).

    Batch normalisation is folded into the convolution, as in an exported network. Whole networks are
    ``torch.export`` programs (``.pt2``).
    """

    name: ClassVar[str] = "torch"
    install: ClassVar[str] = "install it with: pip install torch"

    def unavailable(self) -> str | None:
        return None if importlib.util.find_spec("torch") else "the package 'torch' is not installed"

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    @contextmanager
    def prepare(self, layer: Layer, threads: int, tensors: LayerTensors | None = None) -> Iterator[Prepared]:
        import torch
        from torch.nn import functional

        self.check(threads)
        given = tensors or layer_tensors(layer, np.random.default_rng(0))
        with _settings(threads):
            x, weight = _channels_last(given.x), _channels_last(given.weight)
            bias = None if given.bias is None else torch.from_numpy(given.bias)
            other = None if given.other is None else _channels_last(given.other)
            stride, groups = layer.stride, layer.groups
            before, after = conv_padding(layer)
            deconv, extra = deconv_padding(layer)

            def convolve() -> torch.Tensor:
                if layer.kind == "deconv":
                    return functional.conv_transpose2d(x, weight, bias, stride, deconv, extra, groups)
                if before == after:
                    return functional.conv2d(x, weight, bias, stride, before, 1, groups)
                padded = functional.pad(x, (before, after, before, after))
                return functional.conv2d(padded, weight, bias, stride, 0, 1, groups)

            def forward() -> torch.Tensor:
                y = convolve()
                if other is not None:
                    y.add_(other)
                if layer.activation == "relu":
                    y.relu_()
                elif layer.activation == "relu6":
                    y.clamp_(0.0, 6.0)
                return y

            yield _prepared(forward)

    @contextmanager
    def prepare_empty(self, threads: int) -> Iterator[Prepared]:
        import torch

        self.check(threads)
        with _settings(threads):
            nothing = torch.zeros(1, 1, 1, 1)
            yield _prepared(lambda: nothing)

    @contextmanager
    def prepare_model(self, path: Path, size: tuple[int, int], threads: int) -> Iterator[Prepared]:
        import torch

        self.check(threads)
        if path.suffix != ".pt2":
            raise InputError(
                f"the torch runtime times programs of torch.export (.pt2), not '{path}';"
                " time an .onnx file with the onnxruntime runtime"
            )
        if not path.is_file():
            raise InputError(f"the network '{path}' does not exist")
        with _settings(threads):
            x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
            try:
                module = torch.export.load(path).module()
                module(x)
            except Exception as error:
                line = str(error).strip().splitlines() or [type(error).__name__]
                raise InputError(
                    f"the network '{path}' does not run on one picture of {size[0]}x{size[1]}: {line[0]}"
                ) from None
            yield _prepared(lambda: module(x))


def _prepared(forward: Callable[[], Any]) -> Prepared:
    import torch

    def outputs() -> tuple[Array, ...]:
        found = forward()
        every = (found,) if isinstance(found, torch.Tensor) else tuple(found)
        return tuple(np.array(y.contiguous().numpy(), dtype=np.float32) for y in every)

    def run() -> None:
        forward()

    return Prepared(run, outputs)


def _channels_last(array: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(array).contiguous(memory_format=torch.channels_last)


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
