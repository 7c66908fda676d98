"""Export of plain networks to ONNX: batch normalisation folded away, checked against ONNX Runtime."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InputError, RunError
from search_spaces.files import atomic_path
from supernet.base import Subnet
from supernet.fusing import check_rewrites, rewritten

__all__ = ["OPSET", "ExportReport", "export_onnx", "fold_batchnorm"]

OPSET = 18
"""Default ONNX operator set: the one torch's exporter writes natively, which every current runtime reads."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how far it lies from the torch network.

    Attributes
    ----------
    path
        The file.
    size
        Input (height, width) in pixels.
    batch
        Images per run; None where it is free.
    opset
        ONNX operator set.
    size_bytes
        Size of the file.
    max_abs
        Largest absolute difference of any output value, over the checked inputs.
    max_rel
        The largest ``max |difference| / max |output|`` of any output.
    """

    path: Path
    size: tuple[int, int]
    batch: int | None
    opset: int
    size_bytes: int
    max_abs: float
    max_rel: float


@torch.no_grad()
def fold_batchnorm(net: Subnet, *, in_place: bool = False) -> Subnet:
    """Return a copy in evaluation mode whose normalisations are part of the convolutions before them.

    With scale s = weight / sqrt(variance + eps), a convolution's weights are multiplied by s per output
    channel and get the bias (shift - mean s). Where a sum of convolutions is normalised, all of them are
    scaled and the last one takes the bias. Its outputs equal those of ``net`` but for rounding. With
    ``in_place`` the network itself is changed and returned, which saves most of the time.
    """
    folded = (net if in_place else copy.deepcopy(net)).eval()
    for name, sources in net.norm_sources().items():
        norm = folded.get_submodule(name)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            raise TypeError(f"'{name}' is not a batch normalisation with running statistics")
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        for place, source in enumerate(sources):
            conv = folded.get_submodule(source)
            if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
                raise TypeError(f"'{source}' is not a convolution")
            along = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
            bias = torch.zeros_like(shift) if conv.bias is None else conv.bias.double() * scale
            if place == len(sources) - 1:
                bias = bias + shift
            conv.weight.copy_(conv.weight.double() * scale.view(along))
            if conv.bias is not None or place == len(sources) - 1:
                conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
        room, _, own = name.rpartition(".")
        setattr(folded.get_submodule(room), own, nn.Identity())
    return folded


def export_onnx(
    net: Subnet,
    path: str | Path,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    rewrites: Collection[str] = (),
) -> ExportReport:
    """Write a network as an fp32 ONNX model with normalisation folded, after ONNX Runtime agreed with torch.

    The input is called ``image``, shape (batch, 3, height, width), normalised as in training; the outputs
    carry the network's ``output_names``. The model's metadata holds ``arch`` (JSON), ``joints`` and the
    entries of ``metadata`` (JSON each, but for strings). Nothing is left at ``path`` on failure.

    Parameters
    ----------
    net
        A plain network; it is not changed, and exported as it is in evaluation mode.
    path
        File to write.
    size
        Input (height, width) in pixels; by default the arch's. The model accepts this size only.
    batch
        Images per run; None leaves it free.
    opset
        ONNX operator set, 18 or later.
    metadata
        Further entries, such as the skeleton.
    tolerance
        Largest ``max |difference| / max |output|`` that is accepted between ONNX Runtime and ``net``.
    rewrites
        Names of :data:`supernet.fusing.REWRITES`: how the model is written in other operators that some
        runtime computes faster. By default none, so that the model has the network's layers, as latency
        tables measure them and :mod:`supernet.quantise` names them. What was done is noted in the metadata.

    Raises
    ------
    InputError
        If the size, batch or operator set cannot be exported, a rewrite is unknown, or the metadata is no
        JSON.
    RunError
        If ONNX Runtime's outputs differ by more than the tolerance, or the file cannot be written.
    """
    import onnx

    size = size or net.arch.size
    net.arch.layers(net.joints, size)  # raises where the network cannot take the size
    if batch is not None and batch < 1:
        raise InputError(f"the batch of an ONNX model is at least 1, or None to leave it free; not {batch}")
    props = {"arch": json.dumps(net.arch.to_json()), "joints": str(net.joints)}
    try:
        for key, value in (metadata or {}).items():
            props[key] = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"an ONNX model's metadata must be plain JSON values: {error}") from None
    check_rewrites(rewrites)
    reference = copy.deepcopy(net).to(device="cpu", dtype=torch.float32).eval()
    with atomic_path(path) as temporary:
        # A free batch is traced with 2 images: 1 would be taken for a constant.
        _write(fold_batchnorm(reference), temporary, (batch or 2, 3, *size), batch is None, opset)
        model = onnx.load(temporary)
        _strip(model)
        if rewrites:
            model, made = rewritten(model, rewrites)
            props["rewrites"] = json.dumps(made)
        onnx.helper.set_model_props(model, props)
        onnx.checker.check_model(model)
        temporary.write_bytes(model.SerializeToString())
        max_abs = max_rel = 0.0
        generator = torch.Generator().manual_seed(0)
        for count in (batch,) if batch is not None else (1, 3):
            image = torch.randn((count, 3, *size), generator=generator)
            worst_abs, worst_rel = _compare(reference, temporary, image)
            max_abs, max_rel = max(max_abs, worst_abs), max(max_rel, worst_rel)
        if not max_rel <= tolerance:  # also where it is not a number
            raise RunError(
                f"ONNX Runtime's outputs for {Path(path).name} differ from torch's by {max_rel:.2g} of the"
                f" largest value, more than the tolerance {tolerance:g}; nothing was written"
            )
        size_bytes = temporary.stat().st_size
    return ExportReport(Path(path), size, batch, opset, size_bytes, max_abs, max_rel)


def _write(net: Subnet, path: Path, shape: tuple[int, int, int, int], free: bool, opset: int) -> None:
    """Export to ``path``; raise :class:`InputError` where the operator set cannot be written."""
    import onnx

    if opset < OPSET or opset > onnx.defs.onnx_opset_version():
        raise InputError(
            f"the ONNX operator set lies in {OPSET}..{onnx.defs.onnx_opset_version()}, not {opset}"
        )
    with _quiet():
        torch.onnx.export(
            net,
            (torch.zeros(shape),),
            str(path),
            dynamo=True,
            input_names=["image"],
            output_names=list(net.output_names),
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if free else None,
            external_data=False,
            verbose=False,
        )
    written = {entry.domain: entry.version for entry in onnx.load(path).opset_import}.get("")
    if written != opset:
        raise InputError(
            f"torch's exporter wrote operator set {written} instead of {opset}; ask for {written}"
        )


def _strip(model: Any) -> None:
    """Remove what the exporter notes about its source code (paths, stack traces) from the model."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _compare(net: nn.Module, path: Path, image: Tensor) -> tuple[float, float]:
    """Return the largest absolute and relative difference between ONNX Runtime's outputs and torch's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        expected = [cast(np.ndarray[Any, np.dtype[np.float32]], out.numpy()) for out in net(image)]
    worst_abs = worst_rel = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            return float("inf"), float("inf")
        difference = float(np.abs(ours - theirs).max())
        most = float(np.abs(ours).max())
        relative = difference / most if most > 0 else difference
        # max() would drop a NaN that comes second.
        if not np.isfinite(relative):
            return float("inf"), float("inf")
        worst_abs, worst_rel = max(worst_abs, difference), max(worst_rel, relative)
    return worst_abs, worst_rel


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on other packages and on its own progress off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
