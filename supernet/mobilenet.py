"""ImageNet weights of MobileNetV2 (arXiv 1801.04381), in torchvision's names, as a backbone of our families.

The backbone of LitePose is made of the same blocks, the encoder of ``deconv-mbv2`` is that network. What
corresponds, stage by stage of equal resolution (``features.N`` of torchvision; widths of MobileNetV2-1.0;
kernels are 3, expansions 6, none in ``features.1``):

| torchvision               | litepose           | deconv-mbv2                 | at   | channels | blocks |
|---------------------------|--------------------|-----------------------------|------|----------|--------|
| ``features.0`` (3x3)      | ``stem.conv``      | ``stem.conv``               | 1/2  | 32       |        |
| ``features.1`` (3x3)      | ``stem.depthwise`` | ``stage0.block0.depthwise`` | 1/2  | 32       |        |
| ``features.1`` (1x1)      | ``stem.project``   | ``stage0.block0.project``   | 1/2  | 16       | 1      |
| ``features.2`` to ``3``   | ``stage0``         | ``stage1``                  | 1/4  | 24       | 2      |
| ``features.4`` to ``6``   | ``stage1``         | ``stage2``                  | 1/8  | 32       | 3      |
| ``features.7`` to ``10``  | ``stage2``         | ``stage3``                  | 1/16 | 64       | 4      |
| ``features.11`` to ``13`` | ``stage3``         | ``stage4``                  | 1/16 | 96       | 3      |
| ``features.14`` to ``16`` |                    | ``stage5``                  | 1/32 | 160      | 3      |
| ``features.17``           |                    | ``stage6``                  | 1/32 | 320      | 1      |
| ``features.18`` (1x1)     |                    | ``last.conv``               | 1/32 | 1280     |        |
| ``classifier``            |                    |                             |      |          |        |

An empty cell: there is no place for it. Activations, residuals and the normalisation of images are the same,
so the features are too. A head it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from search_spaces import Arch, Family, InputError
from search_spaces.deconv import DECONV_MBV2, deconv_arch
from search_spaces.litepose import LITEPOSE, STEM_CHANNELS, UNFUSED, litepose_arch
from supernet.base import Subnet
from supernet.checkpoint import fill, read_pth
from supernet.registry import NETWORKS

__all__ = ["import_mobilenet_v2", "in_backbone", "is_mobilenet_v2"]

FEATURES: Final = ((2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13), (14, 15, 16), (17,))
"""Which of MobileNetV2's blocks a stage is made of, each stage of those that expand."""
_LAST: Final = 18
_PARTS: Final = {"expand": "conv.0.0", "depthwise": "conv.1.0", "project": "conv.2"}
_ANCHOR: Final = "1.conv.0.0.weight"
_CLASSIFIER: Final = "classifier.1.weight"


class _Shapes(NamedTuple):
    """What the shapes of a checkpoint's tensors tell; of each stage that expands, in order."""

    stem: int
    first: int
    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    last: int


@dataclass(frozen=True)
class _Form:
    """How MobileNetV2 lies in a family's networks.

    Attributes
    ----------
    stages
        How many of :data:`FEATURES` have a place; they are the stages from ``offset`` on.
    first
        Our names of ``features.0`` and of the two layers of ``features.1``.
    last
        Our name of ``features.18``; None where there is no place for it.
    arch
        Returns the arch of a checkpoint, with a head as small as can be.
    """

    stages: int
    offset: int
    first: tuple[str, str, str]
    last: str | None
    arch: Callable[[_Shapes, str], Arch]

    @property
    def names(self) -> dict[str, str]:
        """The names of torchvision's convolutions, without a prefix, by ours."""
        found = dict(zip(self.first, ("0.0", "1.conv.0.0", "1.conv.1"), strict=True))
        for i, numbers in enumerate(FEATURES[: self.stages], start=self.offset):
            for j, number in enumerate(numbers):
                found |= {f"stage{i}.block{j}.{ours}": f"{number}.{at}" for ours, at in _PARTS.items()}
        return found if self.last is None else {**found, self.last: f"{_LAST}.0"}


def _litepose(found: _Shapes, where: str, fusion: bool = True) -> Arch:
    if found.stem != STEM_CHANNELS:
        raise InputError(
            f"{where} begins with {found.stem} channels, LitePose with {STEM_CHANNELS}; take MobileNetV2-1.0"
        )
    return litepose_arch(
        256,
        found.first,
        found.widths,
        [1, 1, 1],
        depths=[len(numbers) for numbers in FEATURES[:4]],
        kernels=found.kernels,
        expansions=found.expansions,
        deconv_kernels=2,
        fusion=fusion,
    )


def _deconv(found: _Shapes, where: str) -> Arch:
    return deconv_arch(
        DECONV_MBV2,
        256,
        (1, 1, 1),
        stem=found.stem,
        stages=(found.first, *found.widths),
        depths=(1, *(len(numbers) for numbers in FEATURES)),
        kernels=(3, *found.kernels),
        expansions=(1, *found.expansions),
        last=found.last,
        deconv_kernels=2,
    )


_STEM: Final = ("stem.conv", "stem.depthwise", "stem.project")
_FORMS: Final[Mapping[str, _Form]] = {
    LITEPOSE.name: _Form(4, 0, _STEM, None, _litepose),
    UNFUSED.name: _Form(4, 0, _STEM, None, partial(_litepose, fusion=False)),
    DECONV_MBV2.name: _Form(
        6, 1, ("stem.conv", "stage0.block0.depthwise", "stage0.block0.project"), "last.conv", _deconv
    ),
}


def in_backbone(layer: str) -> bool:
    """Return whether MobileNetV2 has weights for the layer of that name; the head has none."""
    return not layer.startswith("head.")


def is_mobilenet_v2(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are MobileNetV2's tensors, whole or its features alone, under any prefix."""
    return any(key == _ANCHOR or key.endswith(f".{_ANCHOR}") for key in tensors)


def import_mobilenet_v2(
    path: str | Path, joints: int = 1, family: Family = LITEPOSE
) -> tuple[Subnet, tuple[str, ...]]:
    """Return the network with MobileNetV2's backbone, and the features that it has no place for.

    Its head is as small as can be, and all zeros; but where it reads ``features.18``, it reads each of these
    channels as strongly as the file's classifier does (all alike if it has none), so that they can be put in
    the order of their importance.

    Parameters
    ----------
    path
        A ``.pth`` file of torchvision's. It is read without executing anything.
    joints
        Keypoints that the network is to have outputs for.
    family
        The family that the network is to be of.

    Raises
    ------
    InputError
        If the file is missing, truncated or refused, or holds another network; if the family has another
        backbone. The message names the culprit.
    """
    where = f"checkpoint '{path}'"
    if family.name not in _FORMS:
        raise InputError(
            f"{where} holds MobileNetV2, the backbone of {', '.join(_FORMS)}; {family.name} has another"
        )
    form = _FORMS[family.name]
    tensors = read_pth(Path(path), where)
    anchors = [key for key in tensors if key == _ANCHOR or key.endswith(f".{_ANCHOR}")]
    if not anchors:
        raise InputError(f"{where} lacks tensor 'features.{_ANCHOR}'; it is no MobileNetV2")
    prefix = min(anchors, key=len).removesuffix(_ANCHOR)
    try:
        arch = form.arch(_shapes(tensors, prefix, form, where), where)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    names = form.names
    with torch.device("meta"):
        net = NETWORKS[family.name](arch, joints)

    def name_of(key: str) -> str:
        layer, _, part = key.rpartition(".")
        if not in_backbone(layer):
            return key
        theirs = names[layer.removesuffix("_norm")]
        if layer.endswith("_norm"):  # a convolution's normalisation comes right after it
            room, _, place = theirs.rpartition(".")
            theirs = f"{room}.{int(place) + 1}"
        return f"{prefix}{theirs}.{part}"

    placed = {name.partition(".")[0] for name in names.values()}
    known, unused = {}, []
    for key, tensor in tensors.items():
        number = key.removeprefix(prefix).partition(".")[0] if key.startswith(prefix) else ""
        if number in placed:
            known[key] = tensor
        else:
            unused.append(f"features.{number}" if number.isdigit() else key.partition(".")[0])
    head = {
        key: torch.zeros(value.shape) for key, value in net.state_dict().items() if key.startswith("head.")
    }
    if form.last is not None:
        head["head.deconv0.up.weight"][:, 0, 0, 0] = _strengths(tensors, arch.number("last_width"))
    fill(net, {**known, **head}, where, name_of)
    return net.eval(), tuple(dict.fromkeys(unused))


def _shapes(tensors: Mapping[str, Tensor], prefix: str, form: _Form, where: str) -> _Shapes:
    """Return what the shapes tell of the part that has a place."""

    def shape(name: str) -> Sequence[int]:
        if prefix + name not in tensors:
            raise InputError(f"{where} lacks tensor '{prefix}{name}'")
        if tensors[prefix + name].dim() != 4:
            raise InputError(f"{where}: tensor '{prefix}{name}' is no convolution's")
        return tensors[prefix + name].shape

    begins = [numbers[0] for numbers in FEATURES[: form.stages]]
    return _Shapes(
        shape("0.0.weight")[0],
        shape("1.conv.1.weight")[0],
        tuple(shape(f"{number}.conv.2.weight")[0] for number in begins),
        tuple(shape(f"{number}.conv.1.0.weight")[2] for number in begins),
        tuple(
            hidden // max(1, c_in)
            for hidden, c_in, *_ in (shape(f"{number}.conv.0.0.weight") for number in begins)
        ),
        0 if form.last is None else shape(f"{_LAST}.0.weight")[0],
    )


def _strengths(tensors: Mapping[str, Tensor], channels: int) -> Tensor:
    """Return the L1 norm of what a classifier reads each channel with; ones where there is none."""
    classifier = tensors.get(_CLASSIFIER)
    if classifier is None or classifier.dim() != 2 or classifier.shape[1] != channels:
        return torch.ones(channels)
    return classifier.abs().sum(0)
