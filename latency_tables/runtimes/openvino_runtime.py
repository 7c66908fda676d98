"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latency_tables.runtimes.base import Array, Prepared, Program, Runtime
from latency_tables.runtimes.onnx_runtime import empty_model, program_model
from search_spaces.errors import InputError
from search_spaces.layers import Piece

_TELEMETRY = "openvino_telemetry"


class OpenvinoRuntime(Runtime):
    """OpenVINO's CPU plugin, set for latency: one stream with the given threads, computing in 32-bit floats.

    On processors with bfloat16 instructions OpenVINO would compute in those unless told otherwise; it is told.
    Calls are synchronous, inputs and outputs keep their memory. Whole networks are ``.onnx`` or ``.xml`` files.
    """

    name: ClassVar[str] = "openvino"
    install: ClassVar[str] = "install it with: pip install openvino onnx"

    def unavailable(self) -> str | None:
        for package in ("openvino", "onnx"):
            if importlib.util.find_spec(package) is None:
                return f"the package '{package}' is not installed"
        return None

    def version(self) -> str:
        return str(_openvino().__version__).partition("-")[0]

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        program = piece if isinstance(piece, Program) else Program.of(piece)
        model, _ = program_model(program, neighbours=False)
        yield _compiled(_openvino().Core().read_model(model.SerializeToString()), threads, program.inputs)

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        self.check(threads, precision)
        model = _openvino().Core().read_model(empty_model().SerializeToString())
        yield _compiled(model, threads, [np.ones(1, dtype=np.float32)])

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        self.check(threads, precision)
        if not path.is_file():
            raise InputError(f"the network '{path}' does not exist")
        openvino = _openvino()
        x = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
        try:
            model = openvino.Core().read_model(path)
            shapes = [each.partial_shape for each in model.inputs]
            fits = len(shapes) == 1 and shapes[0].compatible(openvino.PartialShape(list(x.shape)))
            prepared = None
            if fits:
                model.reshape(list(x.shape))
                prepared = _compiled(model, threads, [x])
        except RuntimeError as error:
            line = (str(error).strip().splitlines() or ["it says nothing"])[-1].strip()
            raise InputError(f"the network '{path}' does not run in OpenVINO: {line}") from None
        if prepared is None:
            found = "; ".join(str(shape) for shape in shapes) or "nothing"
            raise InputError(
                f"the network '{path}' takes {found}, not one picture of 1x3x{size[0]}x{size[1]}:"
                " state its size"
            )
        yield prepared


def _openvino() -> Any:
    """Import OpenVINO; on import it would send a message to its makers' statistics, which is not let happen.

    It does without the package that sends, if that is missing, so it is, for the moment of the import.
    """
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
    import openvino

    return openvino


def _compiled(model: Any, threads: int, inputs: Sequence[Array]) -> Prepared:
    """Return the model compiled for this processor, its inputs set."""
    openvino = _openvino()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # else two threads on one core's two processors would become one
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    for place, array in enumerate(inputs):
        request.set_input_tensor(place, openvino.Tensor(array, shared_memory=False))

    def run() -> None:
        request.infer(share_outputs=True)

    def outputs() -> tuple[Array, ...]:
        return tuple(np.array(y, dtype=np.float32) for y in request.infer().values())

    return Prepared(run, outputs)
