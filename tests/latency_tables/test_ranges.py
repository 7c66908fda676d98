"""Ranges of a program's values over pictures, against each layer computed by its definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from latency_tables import RUNTIMES
from latency_tables.networks import network_program
from latency_tables.runtimes import Program, Step
from latency_tables.runtimes.ranges import checked_ranges, inner_values, value_ranges
from search_spaces import InputError, Layer, piece_from_key
from tests.latency_tables.test_litert import SMALL, SMALL_DECONV
from tests.latency_tables.test_runtimes import BLOCKS, layer_reference

pytestmark = pytest.mark.skipif(
    RUNTIMES["onnxruntime"].unavailable() is not None, reason="ONNX Runtime is not installed"
)

Array = npt.NDArray[np.float64]


def pictures(program: Program, count: int = 3) -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    (x,) = program.inputs
    return [(rng.standard_normal(x.shape) * (1 + i)).astype(np.float32) for i in range(count)]


def seen(program: Program, picture: npt.NDArray[np.float32]) -> dict[int, Array]:
    """Every value of a program, and what is computed within its steps."""
    values: list[Array] = [picture.astype(np.float64)]
    inner: dict[tuple[int, str], Array] = {}
    for step in program.steps:
        layer, number = step.layer, len(values)
        x = values[step.x][0][:, : layer.h_in, : layer.w_in]
        other = None if step.other is None else values[step.other][..., : layer.h_out, : layer.w_out]
        if layer.kind == "se":
            reduce, shift, expand, rise = (each.astype(np.float64) for each in step.gate)
            mean = x.mean(axis=(1, 2))
            few = np.maximum(reduce[:, :, 0, 0] @ mean + shift, 0)
            logits = expand[:, :, 0, 0] @ few + rise
            gate = np.clip(logits / 6 + 0.5, 0, 1)
            parts = {"mean": mean, "few": few, "logits": logits, "gate": gate}
            inner |= {(number, part): value for part, value in parts.items()}
        bare: Step = replace(step, layer=replace(layer, activation="none"))
        if other is not None:
            inner[number, "sum"] = layer_reference(bare, x, None)
        if layer.activation == "hswish":
            inner[number, "linear"] = layer_reference(bare, x, other)
        values.append(layer_reference(step, x, other))
    numbers = inner_values(program)
    assert set(numbers) == set(inner)
    return dict(enumerate(values)) | {numbers[key]: value for key, value in inner.items()}


def chain(*keys: str) -> Program:
    """Layers one after the other; what is added is the chain's input."""
    rng = np.random.default_rng(2)
    programs = [Program.of(Layer.from_key(key), rng) for key in keys]
    steps = [
        replace(program.steps[0], x=place, other=None if program.steps[0].other is None else 0)
        for place, program in enumerate(programs)
    ]
    return Program(programs[0].inputs[:1], tuple(steps))


@pytest.mark.parametrize(
    "program",
    [
        Program.of(piece_from_key(BLOCKS[1])),
        Program.of(piece_from_key(BLOCKS[7])),
        chain("conv_k1_s1_g1_8x6x5_8+bn+relu", "conv_k1_s1_g1_8x6x5_8+add+bn+hswish"),
        chain("conv_k1_s1_g1_8x6x5_8+bn", "deconv_k4_s2_g1_8x6x5_8+bn+hswish"),
        network_program(SMALL_DECONV["mbv3"], 5),  # maps are cropped in its head
        network_program(SMALL, 5, (36, 40)),
    ],
    ids=["residual", "gate", "hswish-of-a-sum", "hswish-of-a-deconv", "deconv-mbv3", "litepose"],
)
def test_ranges_are_those_of_the_layers_by_definition(program: Program) -> None:
    given = pictures(program)
    every = [seen(program, picture) for picture in given]
    extremes = {n: [(float(v[n].min()), float(v[n].max())) for v in every] for n in every[0]}
    for method, of in (("minmax", (min, max)), ("mean", (np.mean, np.mean))):
        ranges = value_ranges(program, iter(given), method=method)  # type: ignore[arg-type]
        assert list(ranges) == sorted(extremes)
        low: Any
        high: Any
        low, high = of
        for number, found in ranges.items():
            wanted = low([a for a, _ in extremes[number]]), high([b for _, b in extremes[number]])
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4, err_msg=str(number))
        assert checked_ranges(program, ranges) == ranges


def test_what_gives_no_ranges_is_refused() -> None:
    program = Program.of(piece_from_key(BLOCKS[1]))
    (picture,) = pictures(program, 1)
    with pytest.raises(InputError, match="at least one calibration picture"):
        value_ranges(program, [])
    with pytest.raises(InputError, match="picture 1 is 1x8x9x6, and the network takes 1x8x9x7"):
        value_ranges(program, [picture, picture[..., :6]])
    with pytest.raises(InputError, match="picture 0 gives values that are not finite"):
        value_ranges(program, [np.full_like(picture, np.nan)])
    with pytest.raises(InputError, match="did you mean 'mean'"):
        value_ranges(program, [picture], method="means")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="programs of one input, not of 2"):
        value_ranges(Program.of(piece_from_key(BLOCKS[3])), [picture])


def test_ranges_that_do_not_fit_are_named() -> None:
    program = network_program(SMALL, 5)
    ranges = value_ranges(program, pictures(program, 1))
    last = max(ranges)
    for number, what in (
        (0, "input 0"),
        (1, r"the output of layer 'stem\.conv'"),
        (last, "the sum of layer"),
    ):
        lacking = {key: value for key, value in ranges.items() if key != number}
        with pytest.raises(InputError, match=rf"range of {what}.* is missing"):
            checked_ranges(program, lacking)
        for bad in ((1.0, -1.0), (0.0, np.inf), (np.nan, 1.0)):
            with pytest.raises(InputError, match=rf"range of {what}.* is {bad[0]} to"):
                checked_ranges(program, ranges | {number: bad})
