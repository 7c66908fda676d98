"""LitePose (arXiv 2205.01271) in torch: the plain network of an arch, and the supernet of a space.

Modules carry the names of :mod:`search_spaces.litepose`: a layer ``stage0.block1.depthwise`` is the module of
that name, and its batch normalisation is ``stage0.block1.depthwise_norm``. Normalisation and activation:
ReLU6 in the backbone, none after projections, ReLU in the head. Networks of ``litepose-unfused`` are the same
without the head's ``raw`` branches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import Arch, InputError, LitePoseSpace, SearchSpace
from search_spaces.litepose import (
    DECONVS,
    LITEPOSE,
    OUTPUT_KERNEL,
    STAGE_STRIDES,
    STAGES,
    STEM_CHANNELS,
    LitePoseFamily,
)
from supernet.base import Channels, Subnet, Supernet, crop_like
from supernet.elastic import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticConvTranspose2d,
    ElasticDepthwiseConv2d,
    deconv,
)

__all__ = ["LitePose", "LitePoseSupernet"]

OUTPUTS = DECONVS - 1


def _output_layers(fused: bool) -> tuple[str, ...]:
    branches = ("refined", "raw") if fused else ("refined",)
    return tuple(f"head.output{i}.{branch}.project" for i in range(OUTPUTS) for branch in branches)


def _conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def _output_channels(index: int, joints: int) -> int:
    """Channels of output ``index``: heatmaps and tags at 1/4, heatmaps at 1/2."""
    return 2 * joints if index == 0 else joints


# -- the plain network ---------------------------------------------------------------------------------------


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(3, STEM_CHANNELS, 3, stride=2)
        self.conv_norm: nn.Module = nn.BatchNorm2d(STEM_CHANNELS)
        self.depthwise = _conv(STEM_CHANNELS, STEM_CHANNELS, 3, groups=STEM_CHANNELS)
        self.depthwise_norm: nn.Module = nn.BatchNorm2d(STEM_CHANNELS)
        self.project = _conv(STEM_CHANNELS, width)
        self.project_norm: nn.Module = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.conv_norm(self.conv(x)), inplace=True)
        x = F.relu6(self.depthwise_norm(self.depthwise(x)), inplace=True)
        return cast(Tensor, self.project_norm(self.project(x)))


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.residual = stride == 1 and c_in == width
        self.expand = _conv(c_in, hidden)
        self.expand_norm: nn.Module = nn.BatchNorm2d(hidden)
        self.depthwise = _conv(hidden, hidden, kernel, stride, groups=hidden)
        self.depthwise_norm: nn.Module = nn.BatchNorm2d(hidden)
        self.project = _conv(hidden, width)
        self.project_norm: nn.Module = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand_norm(self.expand(x)), inplace=True)
        y = F.relu6(self.depthwise_norm(self.depthwise(y)), inplace=True)
        y = self.project_norm(self.project(y))
        return cast(Tensor, x + y if self.residual else y)


class _Deconv(nn.Module):
    """One step of the fusion deconv head; ``raw`` is 0 where there is no fusion."""

    def __init__(self, refined: int, raw: int, width: int, kernel: int) -> None:
        super().__init__()
        self.refined = deconv(refined, width, kernel)
        self.raw = deconv(raw, width, kernel) if raw else None
        self.norm: nn.Module = nn.BatchNorm2d(width)

    def forward(self, refined: Tensor, raw: Tensor, like: Tensor) -> Tensor:
        whole = self.refined(refined) + self.raw(raw) if self.raw is not None else self.refined(refined)
        x = crop_like(whole, like)
        # Folded, the norm is none: written in place into a part, an export would scatter it into the whole.
        return F.relu(self.norm(x), inplace=x is whole)


class _Separable(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.depthwise = _conv(c_in, c_in, OUTPUT_KERNEL, groups=c_in)
        self.depthwise_norm: nn.Module = nn.BatchNorm2d(c_in)
        self.project = _conv(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise_norm(self.depthwise(x)), inplace=True)
        return cast(Tensor, self.project(x))


class _Output(nn.Module):
    """One output; ``raw`` is 0 where there is no fusion."""

    def __init__(self, refined: int, raw: int, c_out: int) -> None:
        super().__init__()
        self.refined = _Separable(refined, c_out)
        self.raw = _Separable(raw, c_out) if raw else None

    def forward(self, refined: Tensor, raw: Tensor) -> Tensor:
        x = self.refined(refined)
        return cast(Tensor, x + self.raw(raw) if self.raw is not None else x)


class _Head(nn.Module):
    """Three fusion deconv steps; an output after the second (at 1/4) and the third (at 1/2)."""

    def __init__(self, values: Mapping[str, int], joints: int, fused: bool) -> None:
        super().__init__()
        for i in range(DECONVS):
            refined, raw = values[LITEPOSE.refined_source(i)], values[LITEPOSE.raw_source(i)] * fused
            width, kernel = values[f"head.deconv{i}.width"], values[f"head.deconv{i}.kernel"]
            self.add_module(f"deconv{i}", _Deconv(refined, raw, width, kernel))
            if i > 0:
                source = values[LITEPOSE.output_source(i - 1)] * fused
                self.add_module(f"output{i - 1}", _Output(width, source, _output_channels(i - 1, joints)))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return both outputs; ``features`` are those of the stem and the stages."""
        refined, outputs = features[-1], []
        for i in range(DECONVS):
            raw, like = features[STAGES - 1 - i], features[STAGES - 2 - i]
            refined = self.get_submodule(f"deconv{i}")(refined, raw, like)
            if i > 0:
                outputs.append(self.get_submodule(f"output{i - 1}")(refined, like))
        return outputs[0], outputs[1]


class LitePose(Subnet):
    """The plain network of one LitePose arch.

    Parameters
    ----------
    arch
        A litepose arch.
    joints
        Number of keypoints J.

    Raises
    ------
    InputError
        If the arch is of another family or ``joints`` is less than 1.
    """

    output_names: ClassVar[tuple[str, ...]] = ("quarter", "half")

    def __init__(self, arch: Arch, joints: int) -> None:
        super().__init__(arch, joints)
        values = _numbers(arch, joints)
        self.stem = _Stem(values["stem_width"])
        c_in = values["stem_width"]
        for i, stride in enumerate(STAGE_STRIDES):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            width, kernel = values[f"stage{i}.width"], values[f"stage{i}.kernel"]
            for j in range(values[f"stage{i}.depth"]):
                blocks[f"block{j}"] = _Bottleneck(
                    c_in, width, kernel, stride if j == 0 else 1, values[f"stage{i}.expansion"]
                )
                c_in = width
            self.add_module(f"stage{i}", nn.Sequential(blocks))
        self.head = _Head(values, joints, _fused(arch))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output maps.

        Parameters
        ----------
        x
            Normalised images, shape (N, 3, H, W), each side at least 32.

        Returns
        -------
        tuple of Tensor
            ``quarter`` (N, 2 J, h, w) with J heatmaps and J tag maps, and ``half`` (N, J, H', W') with J
            heatmaps; H' = ceil(H / 2), h = ceil(H' / 2), widths likewise.
        """
        features = [self.stem(x)]
        for i in range(STAGES):
            features.append(self.get_submodule(f"stage{i}")(features[-1]))
        return cast(tuple[Tensor, Tensor], self.head(features))

    def norm_sources(self) -> Mapping[str, tuple[str, ...]]:
        """Return for every normalisation the convolutions whose sum it normalises, by name."""
        found: dict[str, tuple[str, ...]] = {}
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                room, _, own = name.rpartition(".")
                if own == "norm":
                    raw = (f"{room}.raw",) if _fused(self.arch) else ()
                    found[name] = (f"{room}.refined", *raw)
                else:
                    found[name] = (name.removesuffix("_norm"),)
        return found

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the input per cell of each output: 4 and 2."""
        return 4, 2

    @property
    def output_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that write the network's outputs."""
        return _output_layers(_fused(self.arch))

    def beginnings(self) -> Mapping[str, tuple[tuple[str, Any], ...]]:
        """Return the four stages, and the values that each depends on: its own and all before them."""
        found, values = {}, [("stem_width", self.arch["stem_width"])]
        for i in range(STAGES):
            values += [(name, value) for name, value in self.arch.values if name.startswith(f"stage{i}.")]
            found[f"stage{i}"] = tuple(values)
        return found

    def channels(self) -> tuple[Channels, ...]:
        """Return every set of channels whose order is free; the stem's first 32 are left as they are."""
        number = self.arch.number
        found = []
        # Channels of the stem and of the stages; a residual between stages makes their channels one set.
        trunk = [["stem.project"]] + [
            [f"stage{i}.block{j}.project" for j in range(number(f"stage{i}.depth"))] for i in range(STAGES)
        ]
        readers: list[list[str]] = [["stage0.block0.expand"]] + [
            [f"stage{i}.block{j}.expand" for j in range(1, number(f"stage{i}.depth"))]
            + ([f"stage{i + 1}.block0.expand"] if i + 1 < STAGES else [])
            for i in range(STAGES)
        ]
        alone: list[list[str]] = [[f"{name}_norm" for name in names] for names in trunk]
        fused = _fused(self.arch)
        for i in range(DECONVS if fused else 0):
            readers[STAGES - 1 - i].append(f"head.deconv{i}.raw")
        readers[STAGES].append("head.deconv0.refined")
        for index, source in ((0, 1), (1, 0)) if fused else ():
            readers[source].append(f"head.output{index}.raw.project")
            alone[source] += [f"head.output{index}.raw.{part}" for part in ("depthwise", "depthwise_norm")]
        for i in range(STAGES, 0, -1):
            first = self.get_submodule(f"stage{i - 1}.block0")
            if cast(_Bottleneck, first).residual:
                for lists in (trunk, readers, alone):
                    lists[i - 1] += lists.pop(i)
        for written, kept, read in zip(trunk, alone, readers, strict=True):
            found.append(Channels(tuple(written), tuple(kept), tuple(read)))
        for i in range(STAGES):
            for j in range(number(f"stage{i}.depth")):
                at = f"stage{i}.block{j}"
                kept = [f"{at}.expand_norm", f"{at}.depthwise", f"{at}.depthwise_norm"]
                found.append(Channels((f"{at}.expand",), tuple(kept), (f"{at}.project",)))
        for i in range(DECONVS):
            at = f"head.deconv{i}"
            kept, read = [f"{at}.norm"], []
            if i + 1 < DECONVS:
                read.append(f"head.deconv{i + 1}.refined")
            if i > 0:
                branch = f"head.output{i - 1}.refined"
                kept += [f"{branch}.depthwise", f"{branch}.depthwise_norm"]
                read.append(f"{branch}.project")
            branches = (f"{at}.refined", f"{at}.raw") if fused else (f"{at}.refined",)
            found.append(Channels(branches, tuple(kept), tuple(read)))
        return tuple(found)


def _fused(arch: Arch) -> bool:
    """Return whether a litepose arch's head adds the backbone's features."""
    return isinstance(arch.family, LitePoseFamily) and arch.family.fused


def _numbers(arch: Arch, joints: int) -> dict[str, int]:
    """Return the arch's values after checking family and joints."""
    if not isinstance(arch.family, LitePoseFamily):
        raise InputError(f"a litepose network needs a litepose arch, not one of {arch.family.name}")
    if joints < 1:
        raise InputError(f"the number of joints is at least 1, not {joints}")
    return {name: arch.number(name) for name in arch}


# -- the supernet --------------------------------------------------------------------------------------------


class _ElasticStem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ElasticConv2d(3, STEM_CHANNELS, 3, stride=2)
        self.conv_norm = ElasticBatchNorm2d(STEM_CHANNELS)
        self.depthwise = ElasticDepthwiseConv2d(STEM_CHANNELS, 3)
        self.depthwise_norm = ElasticBatchNorm2d(STEM_CHANNELS)
        self.project = ElasticConv2d(STEM_CHANNELS, width)
        self.project_norm = ElasticBatchNorm2d(width)

    def forward(self, x: Tensor, width: int) -> Tensor:
        x = F.relu6(self.conv_norm(self.conv(x)), inplace=True)
        x = F.relu6(self.depthwise_norm(self.depthwise(x)), inplace=True)
        return cast(Tensor, self.project_norm(self.project(x, width)))


class _ElasticBottleneck(nn.Module):
    def __init__(
        self, c_in: int, width: int, kernel: int, stride: int, expansion: int, transformed: int | None
    ) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.stride = stride
        self.expand = ElasticConv2d(c_in, hidden)
        self.expand_norm = ElasticBatchNorm2d(hidden)
        self.depthwise = ElasticDepthwiseConv2d(hidden, kernel, stride, transformed)
        self.depthwise_norm = ElasticBatchNorm2d(hidden)
        self.project = ElasticConv2d(hidden, width)
        self.project_norm = ElasticBatchNorm2d(width)

    def forward(self, x: Tensor, width: int, kernel: int, expansion: int) -> Tensor:
        y = F.relu6(self.expand_norm(self.expand(x, x.shape[1] * expansion)), inplace=True)
        y = F.relu6(self.depthwise_norm(self.depthwise(y, kernel)), inplace=True)
        y = self.project_norm(self.project(y, width))
        return cast(Tensor, x + y if self.stride == 1 and x.shape[1] == width else y)


class _ElasticDeconv(nn.Module):
    def __init__(self, refined: int, raw: int, width: int, kernel: int) -> None:
        super().__init__()
        self.refined = ElasticConvTranspose2d(refined, width, kernel)
        self.raw = ElasticConvTranspose2d(raw, width, kernel) if raw else None
        self.norm = ElasticBatchNorm2d(width)

    def forward(self, refined: Tensor, raw: Tensor, like: Tensor, width: int, kernel: int) -> Tensor:
        x = self.refined(refined, width, kernel)
        if self.raw is not None:
            x = x + self.raw(raw, width, kernel)
        return F.relu(self.norm(crop_like(x, like)), inplace=True)


class _ElasticSeparable(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.depthwise = ElasticDepthwiseConv2d(c_in, OUTPUT_KERNEL)
        self.depthwise_norm = ElasticBatchNorm2d(c_in)
        self.project = ElasticConv2d(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise_norm(self.depthwise(x)), inplace=True)
        return cast(Tensor, self.project(x))


class _ElasticOutput(nn.Module):
    def __init__(self, refined: int, raw: int, c_out: int) -> None:
        super().__init__()
        self.refined = _ElasticSeparable(refined, c_out)
        self.raw = _ElasticSeparable(raw, c_out) if raw else None

    def forward(self, refined: Tensor, raw: Tensor) -> Tensor:
        x = self.refined(refined)
        return cast(Tensor, x + self.raw(raw) if self.raw is not None else x)


class _ElasticHead(nn.Module):
    def __init__(self, most: Mapping[str, int], joints: int, fused: bool) -> None:
        super().__init__()
        for i in range(DECONVS):
            refined, raw = most[LITEPOSE.refined_source(i)], most[LITEPOSE.raw_source(i)] * fused
            width, kernel = most[f"head.deconv{i}.width"], most[f"head.deconv{i}.kernel"]
            self.add_module(f"deconv{i}", _ElasticDeconv(refined, raw, width, kernel))
            if i > 0:
                source = most[LITEPOSE.output_source(i - 1)] * fused
                self.add_module(
                    f"output{i - 1}", _ElasticOutput(width, source, _output_channels(i - 1, joints))
                )

    def forward(self, features: list[Tensor], values: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        refined, outputs = features[-1], []
        for i in range(DECONVS):
            raw, like = features[STAGES - 1 - i], features[STAGES - 2 - i]
            width, kernel = values[f"head.deconv{i}.width"], values[f"head.deconv{i}.kernel"]
            refined = self.get_submodule(f"deconv{i}")(refined, raw, like, width, kernel)
            if i > 0:
                outputs.append(self.get_submodule(f"output{i - 1}")(refined, like))
        return outputs[0], outputs[1]


class LitePoseSupernet(Supernet):
    """The weights of every network of a LitePose space, shared: the widest arch's.

    Width is the first channels, depth the first blocks, a depthwise kernel the centre of the largest, the
    hidden channels of a bottleneck the first ``active inputs x expansion``; a bottleneck has a residual
    where its *active* widths agree and its stride is 1.

    Parameters
    ----------
    space
        A LitePose space, native or extended.
    kernels
        ``crop``: as above. ``transform``: every stage's depthwise kernels that are smaller than the widest
        are made by learned transforms, down to the smallest kernel of the space; see
        :class:`supernet.elastic.ElasticDepthwiseConv2d`. Kernels that a space does not vary, those of the
        stem and the outputs among them, have none; those of the deconv steps are crops in either case.
    """

    plain: ClassVar[type[Subnet]] = LitePose

    def __init__(self, space: SearchSpace, kernels: str = "crop") -> None:
        super().__init__(space, kernels)
        if not isinstance(space, LitePoseSpace):
            raise InputError(f"a litepose supernet needs a litepose space, not {space.name}")
        most = _numbers(self.widest, space.joints)
        least = _numbers(space.smallest(), space.joints)
        self.stem = _ElasticStem(most["stem_width"])
        c_in = most["stem_width"]
        for i, stride in enumerate(STAGE_STRIDES):
            blocks = nn.ModuleDict()
            width, kernel = most[f"stage{i}.width"], most[f"stage{i}.kernel"]
            transformed = least[f"stage{i}.kernel"] if kernels == "transform" else None
            for j in range(most[f"stage{i}.depth"]):
                blocks[f"block{j}"] = _ElasticBottleneck(
                    c_in, width, kernel, stride if j == 0 else 1, most[f"stage{i}.expansion"], transformed
                )
                c_in = width
            self.add_module(f"stage{i}", blocks)
        self.head = _ElasticHead(most, space.joints, _fused(self.widest))

    def forward(self, x: Tensor, arch: Arch) -> tuple[Tensor, Tensor]:
        """Return what the plain network of ``arch`` returns (see :meth:`LitePose.forward`).

        Raises
        ------
        InputError
            If the arch does not fit into the supernet.
        """
        self.check(arch)
        values = {name: int(value) for name, value in arch.values}
        features = [self.stem(x, values["stem_width"])]
        for i in range(STAGES):
            x, blocks = features[-1], cast(nn.ModuleDict, self.get_submodule(f"stage{i}"))
            width, kernel = values[f"stage{i}.width"], values[f"stage{i}.kernel"]
            for j in range(values[f"stage{i}.depth"]):
                x = blocks[f"block{j}"](x, width, kernel, values[f"stage{i}.expansion"])
            features.append(x)
        return cast(tuple[Tensor, Tensor], self.head(features, values))

    @property
    def output_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that write the network's outputs."""
        return _output_layers(_fused(self.widest))
