"""Averaged weights: an exponential moving average, which is what is evaluated and searched."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Exponential moving average of a network's parameters (Polyak & Juditsky, 1992); decay 0 keeps none.

    Parameters
    ----------
    network
        Its parameters are averaged.
    decay
        Share of the former average that stays, 0 to 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self.decay = network, decay
        named = network.named_parameters() if decay else ()
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in named}

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Add the parameters after step ``step`` (from 0)."""
        if not self.values:
            return
        # A short history is averaged over fewer steps, or the random start would dominate it.
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(self._network.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [named[n] for n in self.values], 1 - decay)

    def swapped(self) -> _Swapped:
        """Return a context in which the network holds its averaged weights."""
        return _Swapped(self._network, self.values)


class _Swapped:
    """While entered, the network's parameters are the given ones; afterwards its own again."""

    def __init__(self, network: nn.Module, values: Mapping[str, Tensor]) -> None:
        self._network, self._values = network, values
        self._own: dict[str, Tensor] = {}

    def __enter__(self) -> nn.Module:
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                if name in self._values:
                    self._own[name] = parameter.data
                    parameter.data = self._values[name]
        return self._network

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, parameter in self._network.named_parameters():
            if name in self._own:
                parameter.data = self._own[name]
        self._own.clear()
