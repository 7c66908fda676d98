"""ImageNet weights of MobileNetV2 (arXiv 1801.04381), in torchvision's names, as a LitePose backbone.

LitePose's backbone is made of the same blocks. What corresponds, stage by stage of equal resolution
(``features.N`` of torchvision; widths of MobileNetV2-1.0; kernels are 3, expansions 6, none in the stem):

| torchvision                                   | here                      | works at | channels | blocks |
|-----------------------------------------------|---------------------------|----------|----------|--------|
| ``features.0`` (3x3, stride 2)                | ``stem.conv``             | 1/2      | 32       |        |
| ``features.1`` (depthwise 3x3)                | ``stem.depthwise``        | 1/2      | 32       |        |
| ``features.1`` (pointwise)                    | ``stem.project``          | 1/2      | 16       |        |
| ``features.2`` to ``3`` (stride 2)            | ``stage0``                | 1/4      | 24       | 2      |
| ``features.4`` to ``6`` (stride 2)            | ``stage1``                | 1/8      | 32       | 3      |
| ``features.7`` to ``10`` (stride 2)           | ``stage2``                | 1/16     | 64       | 4      |
| ``features.11`` to ``13`` (stride 1)          | ``stage3``                | 1/16     | 96       | 3      |
| ``features.14`` to ``18``, ``classifier``     | nothing: they are at 1/32 |          |          |        |

Activations, residuals and the normalisation of images are the same, so the features are too. A head it has
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from search_spaces import InputError
from search_spaces.litepose import STAGES, STEM_CHANNELS, litepose_arch
from supernet.checkpoint import fill, read_pth
from supernet.litepose import LitePose

__all__ = ["import_mobilenet_v2", "in_backbone", "is_mobilenet_v2"]

FEATURES: Final = ((2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13))
"""Which of MobileNetV2's blocks each stage is made of."""
_STEM: Final = {"stem.conv": "0.0", "stem.depthwise": "1.conv.0.0", "stem.project": "1.conv.1"}
_PARTS: Final = {"expand": "conv.0.0", "depthwise": "conv.1.0", "project": "conv.2"}
_ANCHOR: Final = "1.conv.0.0.weight"
_LAST: Final = FEATURES[-1][-1]


def in_backbone(layer: str) -> bool:
    """Return whether MobileNetV2 has weights for the layer of that name; the head has none."""
    return not layer.startswith("head.")


def is_mobilenet_v2(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are MobileNetV2's tensors, whole or its features alone, under any prefix."""
    return any(key == _ANCHOR or key.endswith(f".{_ANCHOR}") for key in tensors)


def import_mobilenet_v2(path: str | Path, joints: int = 1) -> tuple[LitePose, tuple[str, ...]]:
    """Return the LitePose network with MobileNetV2's backbone, and the features that it has no place for.

    Its head is as small as can be, and all zeros.

    Parameters
    ----------
    path
        A ``.pth`` file of torchvision's. It is read without executing anything.
    joints
        Keypoints that the network is to have outputs for.

    Raises
    ------
    InputError
        If the file is missing, truncated or refused, or holds another network; the message names the culprit.
    """
    where = f"checkpoint '{path}'"
    tensors = read_pth(Path(path), where)
    anchors = [key for key in tensors if key == _ANCHOR or key.endswith(f".{_ANCHOR}")]
    if not anchors:
        raise InputError(f"{where} lacks tensor 'features.{_ANCHOR}'; it is no MobileNetV2")
    prefix = min(anchors, key=len).removesuffix(_ANCHOR)

    def shape(name: str) -> torch.Size:
        if prefix + name not in tensors:
            raise InputError(f"{where} lacks tensor '{prefix}{name}'")
        if tensors[prefix + name].dim() != 4:
            raise InputError(f"{where}: tensor '{prefix}{name}' is no convolution's")
        return tensors[prefix + name].shape

    stem = shape("0.0.weight")[0]
    if stem != STEM_CHANNELS:
        raise InputError(
            f"{where} begins with {stem} channels, LitePose with {STEM_CHANNELS}; take MobileNetV2-1.0"
        )
    try:
        arch = litepose_arch(
            256,
            shape("1.conv.1.weight")[0],
            [shape(f"{blocks[0]}.conv.2.weight")[0] for blocks in FEATURES],
            [1, 1, 1],
            depths=[len(blocks) for blocks in FEATURES],
            kernels=[shape(f"{blocks[0]}.conv.1.0.weight")[2] for blocks in FEATURES],
            expansions=[
                hidden // max(1, c_in)
                for hidden, c_in, *_ in (shape(f"{blocks[0]}.conv.0.0.weight") for blocks in FEATURES)
            ],
            deconv_kernels=2,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    names = {**_STEM, **{
        f"stage{i}.block{j}.{ours}": f"{number}.{theirs}"
        for i in range(STAGES) for j, number in enumerate(FEATURES[i]) for ours, theirs in _PARTS.items()
    }}  # fmt: skip
    with torch.device("meta"):
        net = LitePose(arch, joints)

    def name_of(key: str) -> str:
        layer, _, part = key.rpartition(".")
        if not in_backbone(layer):
            return key
        theirs = names[layer.removesuffix("_norm")]
        if layer.endswith("_norm"):  # a convolution's normalisation comes right after it
            room, _, place = theirs.rpartition(".")
            theirs = f"{room}.{int(place) + 1}"
        return f"{prefix}{theirs}.{part}"

    known, unused = {}, []
    for key, tensor in tensors.items():
        number = key.removeprefix(prefix).partition(".")[0] if key.startswith(prefix) else ""
        if number.isdigit() and int(number) <= _LAST:
            known[key] = tensor
        else:
            unused.append(f"features.{number}" if number.isdigit() else key.partition(".")[0])
    head = {
        key: torch.zeros(value.shape) for key, value in net.state_dict().items() if key.startswith("head.")
    }
    fill(net, {**known, **head}, where, name_of)
    return net.eval(), tuple(dict.fromkeys(unused))
