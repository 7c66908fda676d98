"""Plain networks on disk: our safetensors files, and the research code's ``.pth`` checkpoints.

One of our files holds the tensors, and in its header everything that is needed to build the network around
them: the arch, the number of joints, and free-form metadata. Nothing is ever unpickled: a research
checkpoint is read by torch's restricted loader, which knows tensors and plain containers only.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces import Arch, InputError, arch_from_json, litepose_arch, named_archs
from search_spaces.errors import did_you_mean, shown
from search_spaces.litepose import DECONVS, STAGES
from supernet.base import DEFAULT_SIGMA, Subnet
from supernet.litepose import OUTPUTS, LitePose
from supernet.registry import NETWORKS
from supernet.state import read_tensors, write_tensors

__all__ = [
    "export_research",
    "fill",
    "import_research",
    "load_network",
    "read_pth",
    "read_sigma",
    "save_network",
]

_KIND = "network"
_COUNTER = ".num_batches_tracked"
_MOST_JOINTS = 10_000
"""A whole body with face and hands has 133."""


# -- our own files -------------------------------------------------------------------------------------------


def save_network(path: str | Path, net: Subnet, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a plain network to a safetensors file, atomically.

    Parameters
    ----------
    path
        File to write.
    net
        The network; its arch and joints go into the header.
    metadata
        Anything JSON can say that should travel with the weights (``skeleton``, scores, ...).

    Raises
    ------
    InputError
        If the metadata cannot be written as JSON.
    RunError
        If the file cannot be written.
    """
    told = dict(metadata or {})
    try:
        json.dumps(told, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a network's metadata must be plain JSON values: {error}") from None
    header = {"kind": _KIND, "arch": net.arch.to_json(), "joints": net.joints, "metadata": told}
    write_tensors(Path(path), net.state_dict(), header)


def load_network(path: str | Path) -> tuple[Subnet, dict[str, Any]]:
    """Return the plain network in a file of :func:`save_network`, in evaluation mode, and its metadata.

    Raises
    ------
    InputError
        Naming the file and the culprit: missing, truncated or altered file, foreign header, a tensor that is
        missing, unknown, of another shape, or not finite.
    """
    path = Path(path)
    tensors, header = read_tensors(path, "network file")
    where = f"network file '{path}'"
    if header.get("kind") != _KIND:
        raise InputError(
            f"{where} holds a {header.get('kind')}, not a plain network; extract one with 'nas emit'"
        )
    arch = arch_from_json(header.get("arch"), f"{where}: 'arch'")
    joints, metadata = header.get("joints"), header.get("metadata", {})
    if not isinstance(joints, int) or isinstance(joints, bool) or not 1 <= joints <= _MOST_JOINTS:
        raise InputError(
            f"{where}: 'joints' is a positive whole number, not {shown(joints)} (at most {_MOST_JOINTS:,})"
        )
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: 'metadata' is a mapping, not {type(metadata).__name__}")
    with torch.device("meta"):  # shapes are checked before any memory is taken for them
        net = NETWORKS[arch.family.name](arch, joints)
    fill(net, tensors, where)
    net.sigma = read_sigma(metadata.get("sigma", DEFAULT_SIGMA), where)
    return net.eval(), metadata


def read_sigma(value: object, where: str) -> float:
    """Return the standard deviation of a network's Gaussians, in cells, from a file's metadata.

    Raises
    ------
    InputError
        If it is no number above 0 and at most 100.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 100:
        raise InputError(f"{where}: 'sigma' is a number of cells above 0 and at most 100, not {shown(value)}")
    return float(value)


def fill(
    net: nn.Module, tensors: Mapping[str, Tensor], where: str, name_of: Callable[[str], str] = str
) -> None:
    """Give a network on the meta device its tensors, after checking every name, shape and value.

    ``name_of`` returns the file's name of one of the network's tensors.
    """
    own = {name_of(name): tensor for name, tensor in net.state_dict().items()}
    absent = [name for name in own if name not in tensors and not name.endswith(_COUNTER)]
    if absent:
        raise InputError(f"{where} lacks {_listed(absent)}; it is incomplete, or of another network")
    odd = [name for name in tensors if name not in own]
    if odd:
        raise InputError(f"{where} has unknown {_listed(odd)}{did_you_mean(odd[0], own)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{where}: tensor '{name}' has the shape {tuple(tensor.shape)}, its arch needs"
                f" {tuple(own[name].shape)}"
            )
        if tensor.is_complex() or (tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())):
            raise InputError(f"{where}: tensor '{name}' holds values that are not finite real numbers")
    net.to_empty(device="cpu")
    for name, tensor in net.state_dict().items():
        if name_of(name) in tensors:
            tensor.copy_(tensors[name_of(name)])
        else:
            tensor.zero_()


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 1} more" if len(every) > 1 else ""
    return f"tensor '{every[0]}'{more}"


# -- the research code's checkpoints -------------------------------------------------------------------------


def _research_names(depths: Iterable[int]) -> dict[str, str]:
    """Return the research code's name of every convolution and normalisation by ours."""
    names = {
        "stem.conv": "first.0.0",
        "stem.conv_norm": "first.0.1",
        "stem.depthwise": "first.1.0",
        "stem.depthwise_norm": "first.1.1",
        "stem.project": "first.2",
        "stem.project_norm": "first.3",
    }
    for i, depth in enumerate(depths):
        for j in range(depth):
            for ours, theirs in (("expand", "inv"), ("depthwise", "depth_conv"), ("project", "point_conv")):
                names[f"stage{i}.block{j}.{ours}"] = f"stage.{i}.{j}.{theirs}.0"
                names[f"stage{i}.block{j}.{ours}_norm"] = f"stage.{i}.{j}.{theirs}.1"
    for i in range(DECONVS):
        names[f"head.deconv{i}.refined"] = f"deconv_refined.{i}"
        names[f"head.deconv{i}.raw"] = f"deconv_raw.{i}"
        names[f"head.deconv{i}.norm"] = f"deconv_bnrelu.{i}.0"
    for i in range(OUTPUTS):
        for branch in ("refined", "raw"):
            for ours, place in (("depthwise", 0), ("depthwise_norm", 1), ("project", 3)):
                names[f"head.output{i}.{branch}.{ours}"] = f"final_{branch}.{i}.conv.{place}"
    return names


def export_research(net: Subnet) -> dict[str, Tensor]:
    """Return the network's tensors under the research code's names (copies, on the CPU).

    Raises
    ------
    InputError
        If the network is not a LitePose.
    """
    if not isinstance(net, LitePose):
        raise InputError(f"only litepose networks have research names, not {net.arch.family.name}")
    names = _research_names(net.arch.number(f"stage{i}.depth") for i in range(STAGES))
    found = {}
    for key, tensor in net.state_dict().items():
        layer, _, part = key.rpartition(".")
        found[f"{names[layer]}.{part}"] = tensor.detach().cpu().contiguous().clone()
    return found


def import_research(path: str | Path, resolution: int | None = None) -> LitePose:
    """Return the LitePose network in a checkpoint of the research code, in evaluation mode.

    Widths, depths, kernels, expansions and joints are read off the shapes. The tensors may lie under
    ``state_dict`` or ``model``, and share a prefix such as ``module.`` or ``1.``.

    Parameters
    ----------
    path
        A ``.pth`` file. It is read without executing anything.
    resolution
        Side of the square input, pixels, which no tensor tells. By default that of the published network
        of the same widths.

    Raises
    ------
    InputError
        If the file is missing, truncated or refused; if a tensor is missing, unknown or of an impossible
        shape; if the resolution is needed and not given. The message names the culprit.
    """
    where = f"checkpoint '{path}'"
    tensors = _without_prefix(read_pth(Path(path), where), where)
    arch, joints = _infer(tensors, resolution, where)
    with torch.device("meta"):
        net = LitePose(arch, joints)
    names = _research_names(arch.number(f"stage{i}.depth") for i in range(STAGES))

    def name_of(key: str) -> str:
        layer, _, part = key.rpartition(".")
        return f"{names[layer]}.{part}"

    fill(net, tensors, where, name_of)
    return net.eval()


def read_pth(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors in a ``.pth`` file by name, without executing anything in it.

    They may lie under ``state_dict`` or ``model``.

    Raises
    ------
    InputError
        Beginning with ``where``: the file is missing, truncated, refused, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{where} does not exist or is not a file")
    _refuse_packed(path, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        reason = blocked[0] if blocked else "it is no checkpoint, or damaged"
        raise InputError(
            f"{where} is refused: only tensors are read, never code ({reason.rstrip('.')})"
        ) from None
    except Exception as error:  # torch.load raises nearly anything on damaged files
        raise InputError(
            f"{where} is truncated or not a torch checkpoint ({type(error).__name__}); fetch it again"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{where} must hold a mapping of names to tensors, not {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{where}: entry {shown(key)} is a {type(value).__name__}; a tensor is needed")
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise InputError(f"{where}: tensor {shown(key)} is sparse, quantised or without values")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"{where}: tensor {shown(key)} has the shape {tuple(value.shape)}, for which the file holds"
                " too few values"
            )
    return content


def _refuse_packed(path: Path, where: str) -> None:
    """Refuse an archive with compressed members: torch writes none, and few bytes could fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [
                each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED
            ]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the old form, or damaged: torch tells
    if packed:
        raise InputError(
            f"{where} is refused: its member {shown(packed[0])} is compressed, as torch writes none; save it"
            " again with torch"
        )


_ANCHOR = "first.0.0.weight"


def _without_prefix(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    anchors = [key for key in tensors if key == _ANCHOR or key.endswith(f".{_ANCHOR}")]
    if not anchors:
        some = ", ".join(list(tensors)[:3])
        raise InputError(f"{where} lacks tensor '{_ANCHOR}'; it is no LitePose (it begins with {some})")
    prefix = min(anchors, key=len).removesuffix(_ANCHOR)
    odd = [key for key in tensors if not key.startswith(prefix)]
    if odd:
        raise InputError(f"{where} has {_listed(odd)} outside of the prefix '{prefix}' of its network")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _infer(tensors: Mapping[str, Tensor], resolution: int | None, where: str) -> tuple[Arch, int]:
    """Return the arch and the number of joints that the shapes tell."""

    def shape(key: str) -> tuple[int, int, int, int]:
        if key not in tensors:
            raise InputError(f"{where} lacks tensor '{key}'")
        if tensors[key].dim() != 4:
            raise InputError(
                f"{where}: tensor '{key}' has {tensors[key].dim()} dimensions; a convolution has 4"
            )
        a, b, c, d = tensors[key].shape
        return a, b, c, d

    def same(what: str, stage: int, found: list[int]) -> int:
        if len(set(found)) > 1:
            raise InputError(
                f"{where}: the blocks of stage {stage} differ in {what} ({sorted(set(found))});"
                " an arch of this toolkit has one per stage"
            )
        return found[0]

    stem = shape("first.2.weight")[0]
    widths, depths, kernels, expansions = [], [], [], []
    for i in range(STAGES):
        depth = 0
        while any(key.startswith(f"stage.{i}.{depth}.") for key in tensors):
            depth += 1
        if depth == 0:
            raise InputError(f"{where} lacks tensor 'stage.{i}.0.inv.0.weight'")
        factors = []
        for j in range(depth):
            hidden, c_in, _, _ = shape(f"stage.{i}.{j}.inv.0.weight")
            if c_in < 1 or hidden < c_in or hidden % c_in:
                raise InputError(
                    f"{where}: tensor 'stage.{i}.{j}.inv.0.weight' expands {c_in} channels to {hidden};"
                    " the factor is a whole number"
                )
            factors.append(hidden // c_in)
        blocks = range(depth)
        depths.append(depth)
        expansions.append(same("expansion", i, factors))
        kernels.append(same("kernel", i, [shape(f"stage.{i}.{j}.depth_conv.0.weight")[2] for j in blocks]))
        widths.append(same("width", i, [shape(f"stage.{i}.{j}.point_conv.0.weight")[0] for j in blocks]))
    deconvs = [shape(f"deconv_refined.{i}.weight") for i in range(DECONVS)]
    joints = shape("final_refined.1.conv.3.weight")[0]
    try:
        arch = litepose_arch(
            resolution or 512,
            stem,
            widths,
            [width for _, width, _, _ in deconvs],
            depths=depths,
            kernels=kernels,
            expansions=expansions,
            deconv_kernels=[kernel for _, _, kernel, _ in deconvs],
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if resolution is None:
        known = [
            named for named in named_archs().values() if arch.replace(resolution=named["resolution"]) == named
        ]
        if len({named["resolution"] for named in known}) != 1:
            raise InputError(
                f"{where} does not tell its input resolution, and its widths are of no published network;"
                " give the resolution"
            )
        arch = known[0]
    return arch, joints
