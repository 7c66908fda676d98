"""A network whose answers are known: it finds a red, a green and a blue light, one per joint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from supernet.pose.skeleton import Skeleton
from supernet.pose.transforms import IMAGENET_MEAN, IMAGENET_STD

LIGHTS = Skeleton(
    "lights", ("red", "green", "blue"), flip_pairs=(), sigmas=(0.1, 0.1, 0.1), limbs=((0, 1), (1, 2))
)


class Beacon(nn.Module):
    """Heatmaps show how far colours are above half; all tags are 0, so there is one person."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        colours = functional.relu(2 * (images * self.std + self.mean) - 1)
        quarter = functional.avg_pool2d(colours, 4)
        return torch.cat([quarter, torch.zeros_like(quarter)], dim=1), functional.avg_pool2d(colours, 2)


def write_onnx(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    """Write the same network as ``nas emit`` writes one: of one input size, its joints in the metadata."""
    height, width = size
    pools = [
        helper.make_node("AveragePool", ["colours"], [name], kernel_shape=[side] * 2, strides=[side] * 2)
        for name, side in (("low", 4), ("half", 2))
    ]
    constants = {
        "double": 2 * np.array(IMAGENET_STD, np.float32).reshape(1, 3, 1, 1),
        "above": 2 * np.array(IMAGENET_MEAN, np.float32).reshape(1, 3, 1, 1) - 1,
        "zero": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["images", "double"], ["scaled"]),
            helper.make_node("Add", ["scaled", "above"], ["raised"]),
            helper.make_node("Relu", ["raised"], ["colours"]),
            *pools,
            helper.make_node("Mul", ["low", "zero"], ["tags"]),
            helper.make_node("Concat", ["low", "tags"], ["quarter"], axis=1),
        ],
        "beacon",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, height, width])],
        [
            helper.make_tensor_value_info("quarter", TensorProto.FLOAT, [1, 6, height // 4, width // 4]),
            helper.make_tensor_value_info("half", TensorProto.FLOAT, [1, 3, height // 2, width // 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    helper.set_model_props(model, {"joints": "3", "skeleton": json.dumps(LIGHTS.to_json())})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def picture(
    height: int, width: int, lights: Sequence[tuple[float, float]], spread: float | None = None
) -> NDArray[np.uint8]:
    """Return a black picture, RGB, with a soft light of each colour at (x, y) in pixels."""
    spread = spread or min(height, width) / 16
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [
        np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * spread**2)) if at is not None else 0 * x
        for at in lights
    ]
    return (255 * np.stack(planes, axis=-1) + 0.5).astype(np.uint8)


def three_lights(height: int, width: int, turn: float = 0.0) -> list[tuple[float, float]]:
    """Return places for the lights: on a triangle about the middle, ``turn`` radians round."""
    radius = 0.3 * min(height, width)
    angles = [turn + third * 2 * np.pi / 3 for third in range(3)]
    return [(width / 2 + radius * np.cos(a), height / 2 + radius * np.sin(a)) for a in angles]
