"""Inference engines behind one interface (:class:`Runtime`); none is imported before it is used."""

from __future__ import annotations

from collections.abc import Mapping

from latency_tables.runtimes.base import Prepared, Program, Runtime, Step
from latency_tables.runtimes.litert_runtime import LiteRuntime
from latency_tables.runtimes.ncnn_runtime import NcnnRuntime
from latency_tables.runtimes.onnx_runtime import OnnxRuntime
from latency_tables.runtimes.openvino_runtime import OpenvinoRuntime
from latency_tables.runtimes.torch_runtime import TorchRuntime
from search_spaces.errors import InputError, did_you_mean

__all__ = ["RUNTIMES", "Prepared", "Program", "Runtime", "Step", "get_runtime"]

RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime
    for runtime in (OnnxRuntime(), TorchRuntime(), LiteRuntime(), NcnnRuntime(), OpenvinoRuntime())
}
"""Every runtime by name, installed or not."""


def get_runtime(name: str) -> Runtime:
    """Return the runtime called ``name``; whether it is installed is for :meth:`Runtime.check` to say.

    Raises
    ------
    InputError
        If there is none; the message names the nearest known one.
    """
    if name not in RUNTIMES:
        raise InputError(f"there is no runtime '{name}'{did_you_mean(name, RUNTIMES)}")
    return RUNTIMES[name]
