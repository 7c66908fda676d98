"""Outputs of first stages that networks of one supernet have in common, of every family with such stages."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from search_spaces import Arch, SearchSpace
from supernet.base import Subnet
from supernet.bn import recalibrate
from supernet.export import fold_batchnorm
from supernet.onnx_modules import through_onnx
from supernet.registry import build_supernet
from supernet.shared import SharedStages
from tests.supernet.networks import DECONVS, SPACES, images, randomise

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES = [images(4, 64, 64, seed) for seed in range(2)]
"""Training images, and those that are looked at."""


def relatives(space: SearchSpace) -> list[Arch]:
    """Return archs of which each agrees with an earlier one up to some stage."""
    largest, least = space.largest(), space.smallest()
    last = max(int(name[5]) for name in largest if name.startswith("stage"))
    found = [largest]
    for name in ("head.deconv1.width", "last_width", f"stage{last}.width", "stage2.depth", "stage1.width"):
        if name in largest:
            found.append(largest.replace(**{name: least[name]}))
    return [*found, least, largest]


@torch.no_grad()
def looked_at(network: Subnet, shared: SharedStages | None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return a network's statistics after recalibration, and its outputs, as an evaluation computes them."""
    with shared.calibrating(network, 64) if shared else nullcontext() as entering:
        recalibrate(network, BATCHES, entering=entering)
    statistics = {name: value.clone() for name, value in network.state_dict().items()}
    through_onnx(fold_batchnorm(network, in_place=True))
    outputs: list[Tensor] = []
    with shared.inferring(network, 64) if shared else nullcontext() as entering:
        for number, batch in enumerate(BATCHES):
            if entering is not None:
                entering(number)
            for x in (batch, batch.flip(3)):  # the mirrored image is another call
                outputs += network(x)
    return statistics, outputs


@pytest.mark.parametrize("name", ["native", *DECONVS])
def test_networks_that_begin_alike_give_the_same_bits_as_alone(name: str) -> None:
    space = SPACES[name]
    supernet, shared = randomise(build_supernet(space)), SharedStages()
    held = []
    for arch in relatives(space):
        (statistics, outputs) = looked_at(supernet.extract(arch), None)  # type: ignore[union-attr, operator]
        (theirs, found) = looked_at(supernet.extract(arch), shared)  # type: ignore[union-attr, operator]
        assert all(torch.equal(theirs[key], value) for key, value in statistics.items())
        assert all(torch.equal(a, b) for a, b in zip(found, outputs, strict=True))
        held.append(shared.held_bytes)
    # The head belongs to no stage, and of the first network all stages are known at the end.
    assert 0 < held[0] == held[1] < held[-2] == held[-1]
