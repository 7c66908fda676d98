"""Passes in 16 bits, and the scaling of their gradients; on the CPU, where torch has all of it too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from search_spaces import InputError, RunError
from supernet.passes import Shards
from supernet.pose.loader import collate
from supernet.pose.losses import LossWeights
from supernet.precision import Precision
from supernet.state import read_tensors
from tests.supernet import tiny

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(name: str) -> tuple[dict[str, Tensor], dict[str, float], float]:
    """Return the gradients of one batch, unscaled, the terms of its loss, and their factor."""
    network = tiny.supernet().train()
    precision = Precision(name, CPU)
    batch = collate(tiny.people(), [0, 1, 2], 64, None, 0, 0)
    arch = network.space.largest().replace(resolution=64)
    terms = Shards(network, 1, precision=precision).backward(batch, [arch], LossWeights())
    factor = precision.factor
    precision.unscale(torch.optim.SGD(network.parameters()))
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}, terms, factor


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_gradients_are_those_of_float32_up_to_rounding(name: str, tolerance: float) -> None:
    exact, terms, _ = gradients("fp32")
    found, told, factor = gradients(name)
    assert factor == (65536.0 if name == "fp16" else 1.0)
    assert told["total"] == pytest.approx(terms["total"], rel=tolerance)
    assert found.keys() == exact.keys()
    a, b = (torch.cat([each[n].flatten() for n in exact]) for each in (exact, found))
    assert b.dtype == torch.float32
    assert float((a - b).norm() / a.norm()) < tolerance
    assert not torch.equal(a, b)


def test_outputs_are_wide_and_weights_stay_so() -> None:
    network = tiny.supernet()
    outputs = Precision("bf16", CPU).forward(network)(torch.randn(1, 3, 64, 64), network.space.largest())
    assert {each.dtype for each in outputs} == {torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert Precision("fp32", CPU).forward(network) is network


def test_training_in_bf16_and_resuming_it(tmp_path: Path) -> None:
    tiny.trainer(tmp_path / "fp32", epochs=2, ema=0.5).run()
    tiny.trainer(tmp_path / "bf16", epochs=2, ema=0.5, precision="bf16").run()
    files = [tmp_path / name / "checkpoints" / "last.safetensors" for name in ("fp32", "bf16")]
    assert not tiny.same_checkpoint(*files)
    with pytest.raises(RunError, match="precision: checkpoint bf16, now fp32"):
        tiny.trainer(tmp_path / "bf16", epochs=2, ema=0.5).resume()


def test_fp16_is_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^train\.precision is fp16.*on a CPU take fp32"):
        tiny.trainer(tmp_path, precision="fp16")


def test_precisions_have_names() -> None:
    with pytest.raises(InputError, match=r"^train\.precision: unknown 'bf6'; did you mean 'bf16'"):
        tiny.config(precision="bf6")


def scaled() -> tuple[nn.Linear, torch.optim.SGD, Precision]:
    layer = nn.Linear(1, 1, bias=False)
    return layer, torch.optim.SGD(layer.parameters(), lr=1.0), Precision("fp16", CPU)


def step(layer: nn.Linear, optimizer: torch.optim.SGD, precision: Precision, gradient: float) -> bool:
    precision.forward(_Net(layer))(torch.ones(1, 1), None)  # type: ignore[arg-type]  # makes the factor
    layer.weight.grad = torch.full((1, 1), gradient * precision.factor)
    precision.unscale(optimizer)
    return precision.step(optimizer, finite=bool(torch.isfinite(layer.weight.grad).all()))


class _Net(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, arch: object) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(x)


def test_a_step_that_overflows_is_skipped_and_the_factor_halves() -> None:
    layer, optimizer, precision = scaled()
    before = layer.weight.item()
    assert not step(layer, optimizer, precision, math.inf)
    assert (layer.weight.item(), precision.factor, precision.skipped) == (before, 32768.0, 1)
    assert step(layer, optimizer, precision, 0.25)
    assert (precision.factor, precision.skipped) == (32768.0, 0)
    assert layer.weight.item() == pytest.approx(before - 0.25)


def test_the_state_of_scaling_is_kept() -> None:
    layer, optimizer, precision = scaled()
    for gradient in (math.inf, 1.0, 1.0, math.inf):
        step(layer, optimizer, precision, gradient)
    other = Precision("fp16", CPU)
    other.restore(precision.state())
    assert other.state() == precision.state()
    assert (float(other.state()["scale"]), other.skipped) == (16384.0, 1)
    assert Precision("fp32", CPU).state() == {}


def overflowing(folder: Path, monkeypatch: pytest.MonkeyPatch, gradients: list[float]) -> tiny.Trainer:
    """Return a trainer in fp16 whose first weight gets these gradients, the last one ever after."""
    monkeypatch.setattr(Precision, "check", staticmethod(lambda name, device: None))
    trainer = tiny.trainer(folder, precision="fp16", epochs=20)
    left = iter(gradients)

    def spoil(grad: Tensor) -> Tensor:
        return torch.full_like(grad, next(left, gradients[-1]))

    trainer.network.get_parameter("head.output1.refined.project.weight").register_hook(spoil)
    return trainer


def test_a_training_survives_some_overflows_and_resumes_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = overflowing(tmp_path, monkeypatch, [math.inf, math.nan, 1.0])
    norms: list[float] = []
    seen: list[float] = []

    def progress(number: int, steps: int, row: object) -> None:
        norms.append(row["grad_norm"])  # type: ignore[index]
        seen.append(trainer.precision.factor)
        if number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress)
    assert [math.isfinite(each) for each in norms] == [False, False, True, True]
    assert seen == [32768.0, 16384.0, 16384.0, 16384.0]
    trainer._save()
    again = overflowing(tmp_path, monkeypatch, [1.0])
    assert again.resume() == 4
    assert again.precision.state() == trainer.precision.state()


def test_too_many_overflows_in_a_row_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = overflowing(tmp_path, monkeypatch, [math.inf])
    with pytest.raises(RunError, match=r"norm is (inf|nan) at step 25 of 60, after 25 steps in a row"):
        trainer.run()
    _, said = read_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert said["step"] == 24


def test_a_loss_that_is_no_number_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = overflowing(tmp_path, monkeypatch, [1.0])
    with torch.no_grad():
        trainer.network.get_parameter("head.output1.raw.project.weight")[0] = math.nan
    with pytest.raises(RunError, match=r"heatmap_half is nan.* at step 1 of 60"):
        trainer.run()
