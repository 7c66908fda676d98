"""Checkpoints of a training: weights, optimiser moments and averages as safetensors, never pickles."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import InputError, RunError, SearchSpace
from search_spaces.files import atomic_path

__all__ = [
    "TrainingState",
    "load_state",
    "load_weights",
    "read_tensors",
    "save_state",
    "save_weights",
    "write_tensors",
]

_META = "litepose_nas"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and metadata as a safetensors file that :func:`read_tensors` reads, atomically."""
    with atomic_path(path) as temporary:
        contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={_META: json.dumps(meta)})


def read_tensors(path: Path, what: str = "checkpoint") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of one of our safetensors files.

    Raises
    ------
    InputError
        If the file is missing, truncated, or not ours.
    """
    if not path.is_file():
        raise InputError(f"{what} '{path}' does not exist or is not a file")
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            meta = json.loads((stream.metadata() or {}).get(_META, "null"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError, ValueError) as error:
        raise InputError(f"{what} '{path}' is damaged or no safetensors file ({error})") from None
    if not isinstance(meta, dict):
        raise InputError(f"{what} '{path}' was not written by this toolkit (it has no '{_META}' entry)")
    return tensors, meta


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training needs to go on as if it had never stopped."""

    tensors: Mapping[str, Tensor]
    step: int
    best: float
    identity: Mapping[str, str]

    @classmethod
    def capture(
        cls,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Mapping[str, Tensor],
        *,
        step: int,
        best: float,
        identity: Mapping[str, str],
    ) -> TrainingState:
        """Collect the state; tensors are referenced, not copied."""
        tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
        for name, parameter in network.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}:{key}"] = value
        return cls(tensors, step, best, dict(identity))

    def restore(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, average: Mapping[str, Tensor]
    ) -> None:
        """Put the state back, in place."""
        prefix = "model."
        model = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        network.load_state_dict(model)
        for name, tensor in average.items():
            tensor.copy_(self.tensors[f"average.{name}"])
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in self.tensors.items():
            if key.startswith("optimizer."):
                name, _, what = key.removeprefix("optimizer.").rpartition(":")
                moments.setdefault(name, {})[what] = value
        for name, parameter in network.named_parameters():
            if name in moments:
                optimizer.state[parameter] = {
                    what: value.clone() if value.ndim == 0 else torch.empty_like(parameter).copy_(value)
                    for what, value in moments[name].items()
                }


def save_state(folder: Path, state: TrainingState) -> None:
    """Write ``last.safetensors``; the one before it stays as ``previous.safetensors``."""
    last = folder / "last.safetensors"
    meta = {
        "kind": "training",
        "step": state.step,
        "best": None if math.isnan(state.best) else state.best,
        "identity": dict(state.identity),
    }
    if last.exists():
        last.replace(folder / "previous.safetensors")
    write_tensors(last, state.tensors, meta)


def load_state(folder: Path, identity: Mapping[str, str]) -> TrainingState | None:
    """Return the newest readable training state of the folder, None if there is none at all.

    Where the last one is damaged, the previous one takes its place.

    Raises
    ------
    RunError
        If every state there is damaged, or the newest readable one is of another training; the message lists
        what differs.
    """
    damaged: list[str] = []
    for name in ("last.safetensors", "previous.safetensors"):
        path = folder / name
        if not path.exists():
            continue
        try:
            tensors, meta = read_tensors(path)
        except InputError as error:
            damaged.append(str(error))
            continue
        found = meta.get("identity", {})
        differing = [
            f"{key}: checkpoint {found.get(key)}, now {value}"
            for key, value in identity.items()
            if found.get(key) != value
        ]
        if differing:
            raise RunError(
                f"'{path}' belongs to another training ({'; '.join(differing)});"
                " use the recipe that it was begun with, or another run directory"
            )
        if damaged:  # or the next checkpoint would push the damaged one over the good one
            path.replace(folder / "last.safetensors")
        best = meta.get("best")
        return TrainingState(
            tensors, int(meta["step"]), float("nan") if best is None else float(best), identity
        )
    if damaged:
        raise RunError(f"no readable checkpoint: {'; '.join(damaged)}; remove the files to start anew")
    return None


def save_weights(
    path: Path, network: nn.Module, space: SearchSpace, step: int, scores: Mapping[str, float]
) -> None:
    """Write the supernet's weights alone, with the space that they belong to."""
    meta = {
        "kind": "supernet",
        "space": space.config(),
        "fingerprint": space.fingerprint,
        "step": step,
        "scores": dict(scores),
    }
    write_tensors(path, network.state_dict(), meta)


def load_weights(path: Path, network: nn.Module, space: SearchSpace) -> dict[str, Any]:
    """Load weights written by :func:`save_weights` into a supernet of the same space; return their metadata.

    Raises
    ------
    InputError
        If the file is missing, damaged or not a supernet's.
    RunError
        If it belongs to another space; the message lists the differing settings.
    """
    tensors, meta = read_tensors(path)
    if meta.get("kind") != "supernet":
        raise InputError(f"'{path}' holds a {meta.get('kind')}, not a supernet's weights")
    if meta.get("fingerprint") != space.fingerprint:
        theirs, ours = meta.get("space", {}), space.config()
        differing = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in ours.items() if theirs.get(k) != v]
        raise RunError(f"'{path}' is a supernet of another space ({'; '.join(differing)})")
    network.load_state_dict(tensors)
    return meta
