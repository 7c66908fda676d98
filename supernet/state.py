"""Checkpoints of a training: weights, optimiser moments and averages as safetensors, never pickles."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from search_spaces import InputError, RunError, SearchSpace, space_from_config
from search_spaces.files import atomic_path

__all__ = [
    "TrainingState",
    "kernel_sharing",
    "load_state",
    "load_weights",
    "read_tensors",
    "save_state",
    "save_weights",
    "space_differences",
    "write_tensors",
]

_META = "litepose_nas"
_DIGEST = "sha256"
"""Within the metadata: a second entry of the header would come in any order, and files differ by it."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], former: Path | None = None
) -> None:
    """Write tensors and metadata as a safetensors file that :func:`read_tensors` reads, atomically.

    Where ``former`` is given, the file that was at ``path`` is kept under that name; until the new one is
    written, it stays where it is.

    Raises
    ------
    InputError
        If the metadata cannot be written as JSON.
    RunError
        If the file cannot be written.
    """
    try:
        meta = json.loads(json.dumps(meta))  # as it will be read: keys are strings
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata of '{path}' must be plain JSON values: {error}") from None
    if _DIGEST in meta:
        raise InputError(f"metadata of '{path}' must not have an entry '{_DIGEST}': that is the checksum's")
    with atomic_path(path) as temporary:
        contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        told = {**meta, _DIGEST: _digest(contiguous, meta)}
        try:
            save_file(contiguous, temporary, metadata={_META: json.dumps(told)})
        except SafetensorError as error:  # how a full disk is told there
            number = re.search(r"\(os error ([0-9]+)\)", str(error))
            if number is None:
                raise OSError(str(error)) from None
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        if former is not None and path.exists():
            path.replace(former)


def _digest(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a file says; safetensors itself would not notice a flipped bit."""
    found = hashlib.sha256(json.dumps(meta).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_tensors(path: Path, what: str = "checkpoint") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of one of our safetensors files.

    Raises
    ------
    InputError
        If the file is missing, truncated, altered since it was written, or not ours.
    """
    if not path.is_file():
        raise InputError(f"{what} '{path}' does not exist or is not a file")
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            header = stream.metadata() or {}
            meta = json.loads(header.get(_META, "null"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except RecursionError:
        raise InputError(f"{what} '{path}' is refused: its header is nested too deeply") from None
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"{what} '{path}' is damaged or no safetensors file ({error})") from None
    if not isinstance(meta, dict):
        raise InputError(f"{what} '{path}' was not written by this toolkit (it has no '{_META}' entry)")
    told = meta.pop(_DIGEST, None)
    if told is None:  # not let through: a flipped bit may have hit the checksum's own name
        raise InputError(
            f"{what} '{path}' has no checksum: it is damaged, or an early version wrote it; make it anew"
        )
    if told != _digest(tensors, meta):
        raise InputError(f"{what} '{path}' is damaged: its content is not what its checksum says")
    return tensors, meta


def space_differences(theirs: SearchSpace, ours: SearchSpace) -> list[str]:
    """Return in words how a checkpoint's space differs from the present one, choice by choice."""
    found = []
    for what, there, here in (
        ("family", theirs.family.name, ours.family.name),
        ("joints", theirs.joints, ours.joints),
    ):
        if there != here:
            found.append(f"{what}: {there} there, {here} here")
    a, b = ({choice.name: choice.values for choice in space.choices} for space in (theirs, ours))
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            there, here = (", ".join(map(str, each.get(name, ("none",)))) for each in (a, b))
            found.append(f"{name}: {there} there, {here} here")
    return found


def _known_differences(config: Any, ours: SearchSpace) -> list[str]:
    """Do the same for a space as a file describes it."""
    try:
        return space_differences(space_from_config(config), ours)
    except InputError:
        return ["its description cannot be read"]


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training needs to go on as if it had never stopped.

    Attributes
    ----------
    tensors
        Weights, running statistics, moments, averages, and what else was handed in, by prefixed names.
    step, best
        Steps done; the best validation score.
    identity
        What the training is of, setting by setting.
    space
        The search space, as :meth:`search_spaces.SearchSpace.config` tells it.
    notice
        What the user should know about where it comes from, empty where all is well.
    """

    tensors: Mapping[str, Tensor]
    step: int
    best: float
    identity: Mapping[str, str]
    space: Mapping[str, Any] = field(default_factory=dict)
    notice: str = ""

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
        space: Mapping[str, Any] | None = None,
        further: Mapping[str, Tensor] | None = None,
    ) -> TrainingState:
        """Collect the state; tensors are referenced, not copied. :meth:`further` gives ``further`` back."""
        tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
        for name, parameter in network.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}:{key}"] = value
        tensors |= {f"further.{name}": tensor for name, tensor in (further or {}).items()}
        return cls(tensors, step, best, dict(identity), dict(space or {}))

    def further(self) -> dict[str, Tensor]:
        """Return what :meth:`capture` was given beside network, optimiser and average."""
        prefix = "further."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def _told(self) -> dict[str, Any]:
        return {
            "kind": "training",
            "step": self.step,
            "best": None if math.isnan(self.best) else self.best,
            "identity": dict(self.identity),
            "space": dict(self.space),
        }

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], told: Mapping[str, Any], notice: str = "") -> TrainingState:
        try:
            return cls._read(tensors, told, notice)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(f"a checkpoint's header is unsound ({error!r}); it was not written so") from None

    @classmethod
    def _read(cls, tensors: Mapping[str, Tensor], told: Mapping[str, Any], notice: str) -> TrainingState:
        best = told.get("best")
        return cls(
            tensors,
            int(told["step"]),
            float("nan") if best is None else float(best),
            dict(told.get("identity", {})),
            dict(told.get("space", {})),
            notice,
        )

    def to_bytes(self) -> bytes:
        """Return it as bytes for another process."""
        told = json.dumps(self._told()).encode()
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in self.tensors.items()}
        return len(told).to_bytes(8, "little") + told + save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes) -> TrainingState:
        """Return what :meth:`to_bytes` was called on."""
        end = 8 + int.from_bytes(content[:8], "little")
        return cls._of(load(content[end:]), json.loads(content[8:end]))

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
                    what: torch.empty_like(
                        value if value.ndim == 0 else parameter, device=parameter.device
                    ).copy_(value)
                    for what, value in moments[name].items()
                }


def save_state(folder: Path, state: TrainingState) -> None:
    """Write ``last.safetensors``; the one before it stays as ``previous.safetensors``."""
    write_tensors(
        folder / "last.safetensors", state.tensors, state._told(), former=folder / "previous.safetensors"
    )


def load_state(
    folder: Path,
    identity: Mapping[str, str],
    space: SearchSpace | None = None,
    unsaid: Mapping[str, str] | None = None,
) -> TrainingState | None:
    """Return the newest readable training state of the folder, None if there is none at all.

    Where the last one is damaged, the previous one takes its place, and its ``notice`` says so.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    identity
        What the present training is of.
    space
        Its search space: differences are told choice by choice.
    unsaid
        What holds of a checkpoint that does not say, having been written before there was such a setting.

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
            state = TrainingState._of(tensors, meta)
        except InputError as error:
            damaged.append(str(error))
            continue
        said = {**(unsaid or {}), **state.identity}
        differing = []
        for key, value in identity.items():
            if said.get(key) == value:
                continue
            if key == "space" and space is not None and state.space:
                differing += [f"space.{each}" for each in _known_differences(state.space, space)]
            else:
                differing.append(f"{key}: checkpoint {said.get(key)}, now {value}")
        if differing:
            raise RunError(
                f"'{path}' belongs to another training ({'; '.join(differing)});"
                " use the recipe that it was begun with, or another run directory"
            )
        if damaged:  # or the next checkpoint would push the damaged one over the good one
            path.replace(folder / "last.safetensors")
            return replace(
                state, notice=f"{damaged[0]}; going on from the one before it, of step {state.step}"
            )
        return state
    if damaged:
        raise RunError(f"no readable checkpoint: {'; '.join(damaged)}; remove the files to start anew")
    return None


def kernel_sharing(network: nn.Module) -> str:
    """Return how the network shares depthwise kernels; one that does not say so crops them."""
    return str(getattr(network, "kernels", "crop"))


def save_weights(
    path: Path, network: nn.Module, space: SearchSpace, step: int, scores: Mapping[str, float]
) -> None:
    """Write the supernet's weights alone, with the space that they belong to and how they share kernels."""
    meta = {
        "kind": "supernet",
        "space": space.config(),
        "fingerprint": space.fingerprint,
        "kernels": kernel_sharing(network),
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
        If it belongs to another space, or shares kernels in another way; the message lists the differences.
    """
    tensors, meta = read_tensors(path)
    if meta.get("kind") != "supernet":
        raise InputError(f"'{path}' holds a {meta.get('kind')}, not a supernet's weights")
    if meta.get("fingerprint") != space.fingerprint:
        differing = _known_differences(meta.get("space"), space)
        raise RunError(
            f"'{path}' is a supernet of another space ({'; '.join(differing)}); take the recipe that it was"
            " trained with"
        )
    theirs = meta.get("kernels", "crop")  # files that do not say are from before there was a choice
    if theirs != kernel_sharing(network):
        raise RunError(
            f"'{path}' is a supernet that shares kernels by {theirs}, not by {kernel_sharing(network)};"
            f" set train.kernels to {theirs}, as in the recipe that it was trained with"
        )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise InputError(f"'{path}' does not hold the weights of its own space: {told[:300]}") from None
    return meta
