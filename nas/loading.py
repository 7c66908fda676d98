"""``nas.load`` and ``nas load``: emitted networks back in Python, and what they are in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from nas.evaluation import load_model
from nas.model_card import check_told
from nas.predicting import open_model
from nas.run import RunDirectory
from nas.train import load_plain_network, network_file
from nas.watching import PredictSettings
from nas.written import SUFFIXES, WrittenNetwork
from search_spaces import InputError, arch_from_json
from search_spaces.listed import refuse_listed
from supernet.base import Subnet
from supernet.paradigms import paradigm_of
from supernet.pose.predictor import PersonPredictor, PosePredictor

__all__ = ["check_model", "describe_model", "load_subnet", "open_predictor"]

WEIGHTS: Final = (".safetensors", ".pth", ".pt")
"""Files that hold a network for torch; a research checkpoint may have either of the last two suffixes."""
EXPORTS: Final = (".onnx", ".param", ".bin", ".tflite", ".xml", ".pt2", ".engine")
_RESOLUTION: Final = 448
"""Of research checkpoints whose widths tell none; no weight depends on it."""


def check_model(path: Path, suffixes: tuple[str, ...] = WEIGHTS) -> None:
    """Refuse what cannot be a model, naming what it is and what would be one.

    Raises
    ------
    InputError
        If the path does not exist, is a run or another folder, or a file of another kind.
    """
    named = f"name an emitted folder, or a file that ends in {', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if RunDirectory.is_run(path):
        raise InputError(
            f"'{path}' is a run, which holds many networks; 'nas emit {path}' writes one of them"
        )
    if path.is_dir():
        if not network_file(path).is_file():
            raise InputError(f"'{path}' is no emitted network: it holds no model.safetensors")
        return
    if not path.exists():
        refuse_listed(str(path))
        raise InputError(f"there is no model '{path}'; {named}")
    if path.suffix not in suffixes:
        if path.suffix in EXPORTS:
            article = "an" if path.suffix == ".onnx" else "a"
            also = f"; nas.predictor runs {article} {path.suffix}" if path.suffix in SUFFIXES else ""
            raise InputError(
                f"'{path}' is an export, not a network for torch; take the folder that it was exported from,"
                f" or its model.safetensors{also}"
            )
        raise InputError(f"'{path}' is no model; {named}")


def load_subnet(path: Path) -> Subnet:
    """Return the plain network in an emitted folder or a file; see :func:`nas.load`."""
    check_model(path)
    check_told(network_file(path))
    return load_plain_network(path, _RESOLUTION).eval()


def open_predictor(
    path: Path,
    *,
    resolution: int | None = None,
    flip: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    skeleton: str | None = None,
) -> PosePredictor | PersonPredictor:
    """Return what finds the people in a picture; see :func:`nas.predictor`."""
    check_model(path, (*WEIGHTS, *SUFFIXES))
    check_told(network_file(path))
    settings = PredictSettings(
        resolution=resolution, flip=flip, threads=threads, device=device, skeleton=skeleton
    )
    return open_model(path, settings, boxes_with_pictures=True)


def describe_model(path: Path, skeleton: str | None = None) -> dict[str, Any]:
    """Carry out ``nas load``: return what a model is, from its weights and not from the card beside them.

    Raises
    ------
    InputError
        As :func:`nas.load`, or if the joints are not clear.
    """
    check_model(path, (*WEIGHTS, *SUFFIXES))
    check_told(network_file(path))
    network, joints, _ = load_model(path, skeleton, 1)
    if isinstance(network, WrittenNetwork):
        arch = arch_from_json(network.arch, f"model '{path}': its metadata 'arch'")
        outputs = network.output_names
        height, width = network.size
        python = f'nas.predictor("{path}")'
    else:
        if not isinstance(network, Subnet):
            raise TypeError("what is no exported file is a plain network")
        arch, outputs = network.arch, network.output_names
        height, width = arch.size
        python = f'nas.load("{path}")'
    cost = arch.cost(len(joints), (height, width))
    return {
        "id": arch.id,
        "family": arch.family.name,
        "paradigm": paradigm_of(network).name,
        "file": str(network_file(path)),
        "file_bytes": network_file(path).stat().st_size,
        "height": height,
        "width": width,
        "skeleton": joints.name,
        "joints": len(joints),
        "outputs": list(outputs),
        "params": cost.params,
        "macs": cost.macs,
        "macs_paper": cost.macs_paper,
        "python": f"import nas; network = {python}",
        "arch": arch.to_json(),
    }
