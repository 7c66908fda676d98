"""``nas eval`` and ``nas import-checkpoint``: models that exist already, and data sets to score them on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.console import progress_bar
from nas.data import open_source
from nas.recipe import DataSource, EvaluateConfig, SyntheticData, load_recipe
from nas.run import RunDirectory
from nas.train import load_plain_network
from search_spaces import InputError
from search_spaces.errors import did_you_mean
from supernet.checkpoint import import_research, load_network, save_network
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import evaluate
from supernet.pose.maps import EvalConfig
from supernet.pose.skeleton import SKELETONS, Skeleton, get_skeleton

__all__ = ["OnnxNetwork", "evaluate_model", "import_model", "load_model"]

PROTOCOLS = ("coco", "crowdpose")


class OnnxNetwork(nn.Module):
    """An exported model run by ONNX Runtime, with the call of the torch network it came from.

    It takes images of the exported size only.

    Raises
    ------
    InputError
        If the file is missing or no model of ours.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        import onnxruntime

        if not path.is_file():
            raise InputError(f"model '{path}' does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"model '{path}' is no ONNX model that ONNX Runtime can load: {line}") from None
        entry = self.session.get_inputs()[0]
        if len(entry.shape) != 4 or len(self.session.get_outputs()) != 2:
            raise InputError(f"model '{path}' has not the image input and two outputs of a LitePose network")
        self.path, self.input = path, entry.name
        self.size = entry.shape[2], entry.shape[3]
        self.batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two output maps of images of the exported size, shape (N, 3, H, W)."""
        if tuple(images.shape[2:]) != self.size:
            raise InputError(
                f"model '{self.path}' takes images of {self.size[0]}x{self.size[1]} pixels, not"
                f" {images.shape[2]}x{images.shape[3]}; evaluate the .safetensors on pictures of other shapes"
            )
        step = self.batch or len(images)
        rows = [
            self.session.run(None, {self.input: np.ascontiguousarray(images[i : i + step].numpy())})
            for i in range(0, len(images), step)
        ]
        quarter, half = (torch.from_numpy(np.concatenate(maps)) for maps in zip(*rows))
        return quarter, half


def _skeleton_of(joints: int, metadata: dict[str, Any], wanted: str | None) -> Skeleton:
    """Return the joints that a model predicts: as asked, as its file says, or the only ones that fit."""
    if wanted is not None:
        skeleton = get_skeleton(wanted)
    elif isinstance(metadata.get("skeleton"), dict):
        skeleton = Skeleton.from_json(metadata["skeleton"], "the model's skeleton")
    else:
        fitting = [s for s in SKELETONS.values() if len(s) == joints]
        if len(fitting) != 1:
            raise InputError(f"the model predicts {joints} joints, but which? name them with --skeleton")
        skeleton = fitting[0]
    if len(skeleton) != joints:
        raise InputError(
            f"the model predicts {joints} joints, but skeleton '{skeleton.name}' has {len(skeleton)}"
        )
    return skeleton


def load_model(path: Path, skeleton: str | None = None, threads: int = 0) -> tuple[nn.Module, Skeleton, int]:
    """Return a model, the joints that it predicts, and its resolution (the short side, pixels).

    Parameters
    ----------
    path
        An emitted folder, a ``.safetensors``, an ``.onnx`` or a research ``.pth``.
    skeleton
        Joints that it predicts, where the file does not say.
    threads
        Threads of ONNX Runtime for an ``.onnx``; 0 leaves it to the runtime. The others take torch's.

    Raises
    ------
    InputError
        If the file cannot be read, or its joints are unknown.
    """
    if path.suffix == ".onnx":
        import json

        network = OnnxNetwork(path, threads)
        try:
            joints = int(network.metadata["joints"])
            metadata = {"skeleton": json.loads(network.metadata.get("skeleton", "null"))}
        except (KeyError, ValueError):
            raise InputError(
                f"model '{path}' does not say what it predicts; was it written by 'nas emit'?"
            ) from None
        return network, _skeleton_of(joints, metadata, skeleton), min(network.size)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix == ".safetensors":
        plain, metadata = load_network(path)
    else:
        plain, metadata = load_plain_network(path, 448), {}
    return plain, _skeleton_of(plain.joints, metadata, skeleton), plain.arch.number("resolution")


def _dataset(text: str, images: Path | None, skeleton: Skeleton) -> tuple[PoseDataset, EvaluateConfig | None]:
    """Return the data set, and how AP is measured on it where a recipe says so."""
    path = Path(text)
    if text == "synthetic":
        return open_source(DataSource(synthetic=SyntheticData(images=200, seed=10_001)), skeleton), None
    if RunDirectory.is_run(path) or path.suffix in (".yaml", ".yml"):
        recipe = RunDirectory.open(path).recipe if path.is_dir() else load_recipe(path)
        return open_source(recipe.data.val, skeleton), recipe.evaluate
    if path.is_dir():
        raise InputError(f"the data set '{text}' is a folder, but no run directory; name the annotation file")
    if images is None:
        raise InputError(f"the data set '{text}' needs the folder of its images: --images FOLDER")
    return PoseDataset(path, images, skeleton), None


def evaluate_model(
    model: Path,
    dataset: str,
    *,
    images: Path | None = None,
    skeleton: str | None = None,
    resolution: int | None = None,
    flip: bool = False,
    project: bool = False,
    protocol: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Carry out ``nas eval``; return the stats and how they were measured.

    On the val images of a recipe or run, what is not asked for is done as the recipe says.

    Raises
    ------
    InputError
        If the model or the data set cannot be read, or they do not fit each other.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise InputError(f"--protocol: unknown '{protocol}'{did_you_mean(protocol, PROTOCOLS)}")
    network, joints, own = load_model(model, skeleton)
    data, settings = _dataset(dataset, images, joints)
    if limit is not None and limit < len(data):
        data = data.subset(data.ids[:limit])
    network.eval()
    side = resolution or own
    if side % 16:
        raise InputError(f"--resolution is a multiple of 16 pixels, not {side}")
    config = EvalConfig(side) if settings is None else settings.at(side)
    if side % config.multiple:
        config = replace(config, multiple=next(m for m in (64, 32, 16) if side % m == 0))
    if settings is not None:
        flip, project, protocol = (
            flip or config.flip,
            project or config.project,
            protocol or settings.protocol,
        )
    # One image at a time, as the network will run: its time is then that of batch 1.
    config = replace(config, flip=flip, project=project, batch_size=1)
    protocol = protocol or "coco"
    with progress_bar("evaluating", len(data)) as bar:
        result = evaluate(
            network,
            data,
            config,
            protocol="crowdpose" if protocol == "crowdpose" else "coco",
            progress=lambda done, total: bar.update(done, total),
        )
    return {
        "stats": result.stats,
        "images": result.images,
        "people_found": len(result.detections),
        "resolution": config.resolution,
        "flip": flip,
        "project": project,
        "protocol": protocol,
        "joints_scored": [name for name, given in zip(joints.joints, data.labelled) if given],
        "network_ms_per_image": round(1e3 * result.seconds_network / max(1, result.images), 2),
        "decode_ms_per_image": round(1e3 * result.seconds_decode / max(1, result.images), 2),
    }


def import_model(
    file: Path, output: Path | None, resolution: int | None, skeleton: str | None
) -> dict[str, Any]:
    """Carry out ``nas import-checkpoint``; return what was found and written.

    Raises
    ------
    InputError
        If the file is no research checkpoint, or its resolution or joints cannot be inferred.
    """
    network = import_research(file, resolution)
    joints = _skeleton_of(network.joints, {}, skeleton)
    target = output or file.with_suffix(".safetensors")
    save_network(target, network, {"skeleton": joints.to_json(), "source": file.name})
    cost = network.arch.cost(network.joints)
    return {
        "written": str(target),
        "joints": network.joints,
        "skeleton": joints.name,
        "resolution": network.arch["resolution"],
        "params": cost.params,
        "macs": cost.macs,
        "arch": network.arch.to_json(),
    }
