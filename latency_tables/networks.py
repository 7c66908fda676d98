"""Whole networks as programs, so that a runtime that reads no exported file can be given one of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from latency_tables.runtimes.base import Array, LayerWeights, Program, Step, layer_weights
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.layers import Layer

__all__ = ["Weights", "network_program", "weight_names"]

Weights = Mapping[str, tuple[Array, Array | None]]
"""Weight and bias by :func:`weight_names`, normalisation folded; shapes as in :class:`LayerWeights`."""


def weight_names(layer: Layer) -> tuple[str, ...]:
    """Return under which names a layer's constants are found: its own, or of both its convolutions."""
    return (f"{layer.name}.reduce", f"{layer.name}.expand") if layer.kind == "se" else (layer.name,)


def network_program(
    arch: Arch,
    joints: int,
    size: tuple[int, int] | None = None,
    *,
    weights: Weights | None = None,
    rng: np.random.Generator | None = None,
) -> Program:
    """Return the program of a whole network on one random picture.

    Parameters
    ----------
    arch, joints
        The network.
    size
        Input (height, width) in pixels; by default the arch's.
    weights
        A trained network's numbers. By default they are random: a network's time does not depend on them.
    rng
        Source of the picture, and of random weights (seed 0 by default).

    Returns
    -------
    Program
        One input, (1, 3, height, width). One output for each block that no other reads, in order (LitePose:
        heatmaps and tags at 1/4, heatmaps at 1/2). Maps that are larger than what reads them are cropped.

    Raises
    ------
    InputError
        If the weights lack a layer, or one has another shape than the arch says.
    """
    rng = rng or np.random.default_rng(0)
    size = size or arch.size
    picture = rng.standard_normal((1, 3, *size), dtype=np.float32)
    blocks = arch.blocks(joints, size)
    sources = arch.family.block_sources([block.name for block in blocks])
    values: dict[str, int] = {}
    steps: list[Step] = []
    for block in blocks:
        starts = [values[name] for name in sources[block.name]] or [0]
        ends: list[int] = []
        for start, chain in zip(starts, block.chains, strict=True):
            at = start
            for layer in chain:
                own = layer_weights(layer, rng)
                if weights is not None:
                    own = _given(weights, layer, own)
                # As in Block: a last layer adds the other branch, or the block's input.
                other = None if not layer.add else (ends[0] if ends else start)
                steps.append(Step(layer, own.weight, own.bias, at, other, own.expand))
                at = len(steps)
            ends.append(at)
        values[block.name] = ends[-1]
    read = {name for names in sources.values() for name in names}
    outputs = tuple(values[block.name] for block in blocks if block.name not in read)
    return Program((picture,), tuple(steps), outputs)


def _given(weights: Weights, layer: Layer, own: LayerWeights) -> LayerWeights:
    """Return a layer's constants, which must have the shapes of the random ones."""
    first, *second = weight_names(layer)
    weight, bias = _checked(weights, first, own.weight, own.bias)
    if own.expand is None:
        return LayerWeights(weight, bias)
    expand, shift = _checked(weights, second[0], *own.expand)
    assert shift is not None  # it has the shape of the random one
    return LayerWeights(weight, bias, (expand, shift))


def _checked(weights: Weights, name: str, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """Return a convolution's constants, which must have the shapes of those."""
    if name not in weights:
        raise InputError(f"the weights lack the layer '{name}'")
    found = weights[name]
    for what, own, wanted in zip(("weight", "bias"), found, (weight, bias), strict=True):
        if (own is None) != (wanted is None) or (
            own is not None and wanted is not None and own.shape != wanted.shape
        ):
            shapes = ["none" if each is None else "x".join(map(str, each.shape)) for each in (wanted, own)]
            raise InputError(f"the {what} of the layer '{name}' is {shapes[0]}, not {shapes[1]}")
    return found
