"""Numbers of half the width in forward and backward passes; weights, sums and losses stay in float32.

``bf16`` and ``fp16`` are torch's autocast: convolutions take and give numbers of 16 bits, batch normalisation
computes its statistics in 32. The network's outputs are widened before any loss sees them. Small gradients
would be 0 in fp16, so they are multiplied where they enter the network and divided again before the optimiser
steps (loss scaling; Micikevicius et al., arXiv 1710.03740): a step whose gradients overflow is skipped, and
the factor halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from search_spaces import Arch, InputError

__all__ = ["PRECISIONS", "Forward", "Precision"]

PRECISIONS: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

Forward = Callable[[Tensor, Arch], tuple[Tensor, Tensor]]
"""What runs an arch of a supernet on images: the supernet itself, or it in another precision."""


class _Scaled(torch.autograd.Function):
    """The same tensor; its gradient is multiplied by ``factor`` on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grad * factor, None


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    return cast(Tensor, _Scaled.apply(x, factor))  # type: ignore[no-untyped-call]


class Precision:
    """How forward and backward passes compute on a device.

    Parameters
    ----------
    name
        ``fp32``, ``bf16`` or ``fp16``.
    device
        Where the network is.
    """

    MOST_SKIPPED: Final = 24
    """Steps in a row that loss scaling may skip: by then the factor has gone from 65,536 to 1/256."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device, self.dtype = name, device, PRECISIONS[name]
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.skipped = 0

    @staticmethod
    def check(name: str, device: torch.device) -> None:
        """Raise :class:`InputError` where the device computes nothing useful in that precision."""
        if name == "fp16" and device.type == "cpu":
            raise InputError(
                "train.precision is fp16, which is for GPUs; on a CPU take fp32 (or bf16, if the CPU has it)"
            )
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise InputError(f"train.precision is bf16, which '{device}' lacks; take fp16 or fp32")

    def forward(self, network: nn.Module) -> Forward:
        """Return what runs the network in this precision; its outputs are float32."""
        if self.dtype == torch.float32:
            return network

        def run(images: Tensor, arch: Arch) -> tuple[Tensor, Tensor]:
            # Weights cast for one arch are of no use to the next: other parts of them, and views cast anew.
            with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
                quarter, half = network(images, arch)
            if self._scaler is None:
                return quarter.float(), half.float()
            factor = self._scaler.scale(torch.ones((), device=self.device))
            return _scaled(quarter.float(), factor), _scaled(half.float(), factor)

        return run

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the factor that they were multiplied by."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *, finite: bool) -> bool:
        """Let the optimiser step, unless gradients overflowed; return whether it did."""
        if self._scaler is None:
            optimizer.step()
            return True
        self._scaler.step(optimizer)
        self._scaler.update()
        self.skipped = 0 if finite else self.skipped + 1
        return finite

    @property
    def scales(self) -> bool:
        """Whether losses are scaled, so that now and then a step overflows and is skipped."""
        return self._scaler is not None

    @property
    def factor(self) -> float:
        """What gradients are multiplied by at present; 1 without loss scaling."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed training needs: nothing without loss scaling."""
        if self._scaler is None:
            return {}
        told = self._scaler.state_dict()
        return {
            "scale": torch.tensor(float(told["scale"]), dtype=torch.float64),
            "growth": torch.tensor(int(told["_growth_tracker"])),
            "skipped": torch.tensor(self.skipped),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        if self._scaler is None or not state:
            return
        told = self._scaler.state_dict()
        told["scale"], told["_growth_tracker"] = float(state["scale"]), int(state["growth"])
        self._scaler.load_state_dict(told)
        self.skipped = int(state["skipped"])
