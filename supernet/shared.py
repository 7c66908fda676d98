"""What networks of one supernet that begin alike have in common: outputs of their first stages, kept.

Two archs with the same stem and first stages compute the same there, to the bit: the same slices of the same
weights, and statistics of the same training images. A search meets few beginnings and many endings, so the
outputs of stages are kept, for the training images that statistics are computed on and for the images that
AP is measured on, and the next network that begins alike goes on from there.

The supernet's weights must not change meanwhile.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from torch import Tensor, nn

from supernet.base import Subnet

__all__ = ["SharedStages"]

STAGE_BYTES: Final = 2**30
"""Most outputs of stages that are kept by default, bytes."""

Entering = Callable[[Hashable], None]
"""Told, in the thread that does it, which images go into the network next; by any name that tells them."""


@dataclass
class _Group:
    """Outputs of one stage, and the statistics of its normalisations where those came out of it."""

    outputs: dict[Hashable, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    held_bytes: int = 0
    whole: bool = True


def _stages(network: Subnet, images: Hashable) -> tuple[dict[str, nn.Module], dict[str, Hashable]]:
    """Return the stages that may be shared, the deepest first, and under which keys they are."""
    names = list(network.beginnings().items())[::-1]  # the first, which most networks share, is met last
    return (
        {name: network.get_submodule(name) for name, _ in names},
        {name: (images, name, values) for name, values in names},
    )


class SharedStages:
    """Outputs of stages, by what they depend on; the beginnings that were not met for longest are dropped.

    It serves one network at a time, which may look at several batches at once, each in a thread of its own.

    Parameters
    ----------
    limit_bytes
        Most that is kept, also while a network adds to it.
    """

    def __init__(self, limit_bytes: int = STAGE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def calibrating(self, network: Subnet, images: Hashable) -> Iterator[Entering]:
        """While entered, ``network`` is recalibrated, and its stages take from what is kept and add to it.

        All parts of a batch must go the same way, so a stage is taken over as a whole or not at all.

        Parameters
        ----------
        network
            Its stages that are known get their statistics here.
        images
            Tells the training images, such as their resolution.
        """
        stages, keys = _stages(network, ("calibration", images))
        known = {name: self._groups[key] for name, key in keys.items() if key in self._groups}
        groups = {name: known.get(name) or _Group() for name in stages}
        with self._standing_in(stages, keys, groups) as entering:
            yield entering
        for name, stage in stages.items():
            if name in known:
                for key, value in stage.named_buffers():
                    value.copy_(known[name].statistics[key])
            else:
                groups[name].statistics = {key: value.clone() for key, value in stage.named_buffers()}
            if groups[name].whole:
                self._keep(keys[name], groups[name])
            else:
                self.held_bytes -= groups[name].held_bytes

    @contextmanager
    def inferring(self, network: Subnet, images: Hashable) -> Iterator[Entering]:
        """While entered, ``network`` looks at images, and its stages take from what is kept and add to it.

        Parameters
        ----------
        network
            Recalibrated, in evaluation mode.
        images
            Tells how images are prepared, such as their resolution.
        """
        stages, keys = _stages(network, ("images", images))
        groups = {name: self._groups.get(key) or _Group() for name, key in keys.items()}
        with self._standing_in(stages, keys, groups) as entering:
            yield entering
        for name, key in keys.items():
            self._keep(key, groups[name])

    @contextmanager
    def _standing_in(
        self,
        stages: Mapping[str, nn.Module],
        keys: Mapping[str, Hashable],
        groups: Mapping[str, _Group],
    ) -> Iterator[Entering]:
        """While entered, every stage looks first for what it is about to compute.

        On an error the groups that are not kept yet are given up.
        """
        here = threading.local()

        def entering(images: Hashable) -> None:
            here.images, here.calls = images, dict.fromkeys(stages, 0)

        def forward(name: str, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            group, place = groups[name], (here.images, here.calls[name])
            here.calls[name] += 1  # the mirrored image, or another scale, is another call
            if place in group.outputs:
                return group.outputs[place]
            output = compute(x)
            with self._lock:
                if self._make_room(output.nbytes, keys.values()):
                    group.outputs[place] = output
                    group.held_bytes += output.nbytes
                    self.held_bytes += output.nbytes
                else:
                    group.whole = False
            return output

        try:
            for name, stage in stages.items():
                stage.forward = partial(forward, name, stage.forward)
            yield entering
        except BaseException:
            for name, key in keys.items():
                if self._groups.get(key) is not groups[name]:
                    self.held_bytes -= groups[name].held_bytes
            raise
        finally:
            for stage in stages.values():
                stage.__dict__.pop("forward", None)

    def _make_room(self, size: int, using: Collection[Hashable]) -> bool:
        """Drop groups that are not in use, the one met longest ago first, until so many bytes fit.

        Return False, and drop none, where they would not fit even then.
        """
        free = [key for key in self._groups if key not in using]
        if self.held_bytes - sum(self._groups[key].held_bytes for key in free) + size > self.limit_bytes:
            return False
        for key in free:
            if self.held_bytes + size <= self.limit_bytes:
                break
            self.held_bytes -= self._groups.pop(key).held_bytes
        return True

    def _keep(self, key: Hashable, group: _Group) -> None:
        """Keep a group, whose bytes are counted already, as the one met last."""
        self._groups.pop(key, None)
        self._groups[key] = group

    def copy(self) -> SharedStages:
        """Return another one that knows the same; what either adds, the other does not have."""
        other = SharedStages(self.limit_bytes)
        for key, group in self._groups.items():
            other._groups[key] = replace(group, outputs=dict(group.outputs))
        other.held_bytes = self.held_bytes
        return other

    def __getstate__(self) -> dict[str, int]:
        """Leave what is kept behind."""
        return {"limit_bytes": self.limit_bytes}

    def __setstate__(self, state: dict[str, int]) -> None:
        """Start empty."""
        self.__init__(**state)  # type: ignore[misc]
