"""Peaks picked within ONNX models: nodes appended to an exported network, so that no maps leave it.

Of a bottom-up network the outputs become, for each joint, its highest local maxima: what
:func:`supernet.pose.decode.find_peaks` finds in the maps that :func:`supernet.pose.maps.predict_maps` merges,
and where in its pixel each lies (``quarter`` of :func:`supernet.pose.decode.adjust`). Of a top-down network
they become each joint's highest cell, read as ``quarter`` of
:func:`supernet.pose.heatmaps.decode_heatmaps` reads it.
:mod:`supernet.pose.peaks` makes people of both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from supernet.pose.peaks import PickedPeaks

if TYPE_CHECKING:
    import onnx

__all__ = ["PEAK_OUTPUTS", "with_peaks"]

PEAK_OUTPUTS: Final = {
    "bottom-up": ("peak_values", "peak_places", "peak_tags"),
    "top-down": ("joint_values", "joint_places"),
}
"""Names of the outputs, by paradigm: (N, J, K), (N, J, K, 2) and (N, J, K); or (N, J) and (N, J, 2)."""


class _Nodes:
    """Nodes appended to a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph

    def add(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Append a node; return the name of its first output."""
        from onnx import helper

        name = f"peaks/{kind}{len(self.graph.node)}"
        ends = list(outputs) or [name]
        self.graph.node.append(helper.make_node(kind, list(inputs), ends, name=name, **attributes))
        return ends[0]

    def constant(self, values: Any, kind: type[np.generic] = np.int64) -> str:
        """Append a constant; return its name."""
        from onnx import numpy_helper

        name = f"peaks/constant{len(self.graph.initializer)}"
        array: NDArray[Any] = np.array(values, dtype=kind)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        """Append one 32-bit number; return its name."""
        return self.constant(value, np.float32)

    def part(self, x: str, axis: int, start: int, end: int) -> str:
        """Append a slice along one axis."""
        return self.add("Slice", x, self.constant([start]), self.constant([end]), self.constant([axis]))


def with_peaks(
    model: onnx.ModelProto, *, most: int = 30, kernel: int = 5, threshold: float = 0.1
) -> onnx.ModelProto:
    """Return a copy of an exported network that returns peaks in the place of maps.

    A bottom-up network's maps are merged as for grouping: those at 1/4 brought to 1/2 (bilinearly), heatmaps
    averaged. A pixel is a peak if it is above the threshold and none in its window is higher; of equal ones
    in a window the first is taken. (:func:`~supernet.pose.decode.find_peaks` may keep further ones of a
    plateau that is broader than the window.) The metadata's entry ``peaks`` tells the maps' size and how
    peaks are picked (:class:`~supernet.pose.peaks.PickedPeaks`).

    Parameters
    ----------
    model
        As :func:`supernet.export.export_onnx` writes it, for any batch; its size is fixed.
    most
        Peaks kept of each joint (K), by falling value; beyond the last, values are 0, and places and tags say
        nothing. Places are x, y in pixels of the maps at 1/2 (of a top-down network: in cells), in the frame
        in which pixel ``i`` covers ``[i, i + 1)``.
    kernel
        Odd side in pixels of the window in which a peak must be the maximum.
    threshold
        Peaks at or below it are none. Not used of top-down networks.

    Raises
    ------
    InputError
        If the outputs are not those of a pose network of fixed size, or a number is out of its range.
    """
    if most < 1 or kernel < 1 or kernel % 2 == 0 or not threshold >= 0:
        raise InputError(
            "peaks: 'most' is at least 1, 'kernel' odd and positive, 'threshold' at least 0, not"
            f" {most}, {kernel} and {threshold}"
        )
    copy = type(model)()
    copy.CopyFrom(model)
    shapes = [[d.dim_value for d in info.type.tensor_type.shape.dim] for info in copy.graph.output]
    if len(shapes) not in (1, 2) or any(len(shape) != 4 or not all(shape[1:]) for shape in shapes):
        raise InputError("peaks are picked in a pose network's one or two outputs, of fixed size")
    nodes = _Nodes(copy)
    ends = (
        _top_down(nodes, shapes[0])
        if len(shapes) == 1
        else _bottom_up(nodes, shapes, most, kernel, threshold)
    )
    batch = copy.graph.output[0].type.tensor_type.shape.dim[0]
    free = batch.dim_param or batch.dim_value
    picked = PickedPeaks(
        (shapes[-1][2], shapes[-1][3]), most if len(shapes) == 2 else 1, kernel, float(threshold)
    )
    entry = copy.metadata_props.add()
    entry.key, entry.value = "peaks", json.dumps(picked.to_json())
    from onnx import TensorProto, helper

    del copy.graph.output[:], copy.graph.value_info[:]
    for name, shape in ends.items():
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [free, *shape]))
    return copy


def _bottom_up(
    nodes: _Nodes, shapes: Sequence[Sequence[int]], most: int, kernel: int, threshold: float
) -> dict[str, list[int]]:
    quarter, half = (info.name for info in nodes.graph.output)
    (_, both, *_), (_, joints, height, width) = shapes
    if both != 2 * joints:
        raise InputError(f"a tagging network gives 2J and J maps, not {both} and {joints}")
    most = min(most, height * width)
    # As torch's bilinear interpolation without aligned corners.
    grown = nodes.add(
        *("Resize", quarter, "", "", nodes.constant([height, width])),
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    heat = nodes.add("Mul", nodes.add("Add", nodes.part(grown, 1, 0, joints), half), nodes.number(0.5))
    tags = nodes.part(grown, 1, joints, both)
    reach = kernel // 2
    highest = nodes.add("MaxPool", heat, kernel_shape=[kernel] * 2, pads=[reach] * 4)
    peak = nodes.add(
        "And", nodes.add("Equal", heat, highest), nodes.add("Greater", heat, nodes.number(threshold))
    )
    kept = nodes.add("Where", peak, heat, nodes.number(0.0))
    # Of equal pixels in one window the first in the map: each is ranked by how late it comes.
    late = np.arange(height * width, 0, -1, dtype=np.float32).reshape(1, 1, height, width)
    rank = nodes.add("Where", peak, nodes.constant(late, np.float32), nodes.number(0.0))
    first = nodes.add("MaxPool", rank, kernel_shape=[kernel] * 2, pads=[reach] * 4)
    alone = nodes.add("Where", nodes.add("Equal", rank, first), kept, nodes.number(0.0))
    flat = nodes.constant([0, 0, height * width])
    values, at = "peak_values", "peaks/at"
    nodes.add(
        *("TopK", nodes.add("Reshape", alone, flat), nodes.constant([most])),
        outputs=[values, at],
        axis=2,
    )
    nodes.add("GatherElements", nodes.add("Reshape", tags, flat), at, outputs=["peak_tags"], axis=2)
    _places(nodes, nodes.add("Reshape", heat, flat), at, (height, width), "peak_places", inner=False)
    return {values: [joints, most], "peak_places": [joints, most, 2], "peak_tags": [joints, most]}


def _top_down(nodes: _Nodes, shape: Sequence[int]) -> dict[str, list[int]]:
    (heat,) = (info.name for info in nodes.graph.output)
    _, joints, height, width = shape
    flat = nodes.add("Reshape", heat, nodes.constant([0, 0, height * width]))
    at = nodes.add("ArgMax", flat, axis=2, keepdims=1)
    value = nodes.add("GatherElements", flat, at, axis=2)
    axis = nodes.constant([2])
    nodes.add("Squeeze", value, axis, outputs=["joint_values"])
    places = _places(nodes, flat, at, (height, width), "peaks/places", inner=True)
    nodes.add("Squeeze", places, axis, outputs=["joint_places"])
    return {"joint_values": [joints], "joint_places": [joints, 2]}


def _places(nodes: _Nodes, flat: str, at: str, size: tuple[int, int], end: str, *, inner: bool) -> str:
    """Append what places each pixel a quarter of a pixel toward its higher neighbours, in x and in y.

    Of pixels at the border the outer neighbour is the pixel itself; with ``inner`` they stay in the middle,
    as do those between equal neighbours, which otherwise go down.
    """
    height, width = size
    row = nodes.add("Div", at, nodes.constant(width))
    column = nodes.add("Sub", at, nodes.add("Mul", row, nodes.constant(width)))
    found = []
    for place, step, last in ((column, 1, width - 1), (row, width, height - 1)):
        before = nodes.add("Greater", place, nodes.constant(0))
        behind = nodes.add("Less", place, nodes.constant(last))
        if inner:
            before = behind = nodes.add("And", before, behind)
        sides = [
            nodes.add(
                "GatherElements",
                flat,
                nodes.add("Add", at, nodes.add("Where", inside, nodes.constant(move), nodes.constant(0))),
                axis=2,
            )
            for inside, move in ((behind, step), (before, -step))
        ]
        difference = nodes.add("Sub", *sides)
        if inner:
            quarter = nodes.add("Mul", nodes.add("Sign", difference), nodes.number(0.25))
        else:
            higher = nodes.add("Greater", difference, nodes.number(0.0))
            quarter = nodes.add("Where", higher, nodes.number(0.25), nodes.number(-0.25))
        middle = nodes.add("Add", nodes.add("Cast", place, to=1), nodes.number(0.5))
        found.append(nodes.add("Unsqueeze", nodes.add("Add", middle, quarter), nodes.constant([3])))
    return nodes.add("Concat", *found, outputs=[end], axis=3)
