"""Training: schedules, what a step trains, checkpoints, and runs that are stopped and go on."""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Arch, InputError, RunError, UnavailableError, space_from_config
from supernet.base import Supernet
from supernet.metric_log import MetricLog
from supernet.pose.dataset import PoseDataset
from supernet.pose.loader import collate
from supernet.pose.losses import LossWeights, pose_loss
from supernet.pose.skeleton import get_skeleton
from supernet.registry import build_network, build_supernet
from supernet.rules import step_archs
from supernet.schedules import learning_rate
from supernet.state import read_tensors
from supernet.training import TrainConfig, Trainer, pick_device
from tests.supernet import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands in for kill -9: nothing of the trainer may run after it but what unwinding runs."""


def killer(at: int) -> Any:
    def progress(step: int, steps: int, row: Any) -> None:
        if step == at:
            raise Killed

    return progress


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(stream)]


# -- learning rate -----------------------------------------------------------------------------------------


def test_constant_rate() -> None:
    config = TrainConfig(schedule="constant", warmup=0, learning_rate=0.5)
    assert {learning_rate(step, 100, config) for step in range(100)} == {0.5}


def test_cosine_rate_starts_at_the_peak_and_ends_at_its_final_share() -> None:
    config = TrainConfig(schedule="cosine", warmup=0, learning_rate=2.0, final_rate=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(2.0 * 0.55)
    assert rates[25] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_step_rate_drops_tenfold_at_each_milestone_of_the_published_recipe() -> None:
    config = TrainConfig(schedule="step", warmup=0, learning_rate=4e-3, milestones=(0.7, 0.96))
    expected = {0: 4e-3, 349: 4e-3, 350: 4e-4, 479: 4e-4, 480: 4e-5, 499: 4e-5}
    assert {at: learning_rate(at, 500, config) for at in expected} == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone(schedule: str) -> None:
    warm = TrainConfig(schedule=schedule, warmup=0.1, learning_rate=1.1)
    cold = TrainConfig(schedule=schedule, warmup=0.0, learning_rate=1.1)
    assert [learning_rate(s, 100, warm) for s in range(10)] == pytest.approx(
        [0.1 * (s + 1) for s in range(10)]
    )
    after = range(10, 100)
    assert [learning_rate(s, 100, warm) for s in after] == [learning_rate(s, 100, cold) for s in after]


def test_metrics_hold_the_rate_that_the_optimiser_used(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, schedule="step", warmup=0.25, epochs=2)
    used: list[float] = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: used.append(optimizer.param_groups[0]["lr"])
    )
    trainer.run()
    assert used == [learning_rate(s, 6, trainer.config) for s in range(6)]
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "metrics.csv")] == pytest.approx(
        used, rel=1e-5
    )


# -- which archs a step trains -----------------------------------------------------------------------------


def test_steps_are_functions_of_seed_and_step_only() -> None:
    space, config = tiny.space(), tiny.config(rule="uniform")
    drawn = [step_archs(space, 3, step, 2000, config) for step in range(50)]
    assert [step_archs(space, 3, step, 2000, config) for step in reversed(range(50))] == drawn[::-1]
    assert [step_archs(space, 4, step, 2000, config) for step in range(50)] != drawn
    assert len({archs[0] for _, archs in drawn}) > 25


def test_uniform_rule_draws_every_value_of_every_choice_equally_often() -> None:
    space, config, steps = tiny.space(), tiny.config(rule="uniform"), 1500
    counts: dict[str, Counter[Any]] = {choice.name: Counter() for choice in space.searched}
    for step in range(steps):
        resolution, (arch,) = step_archs(space, 0, step, 2000, config)
        assert arch["resolution"] == resolution and arch in space
        for name, counter in counts.items():
            counter[arch[name]] += 1
    for choice in space.searched:
        share = 1 / len(choice.values)
        slack = 5 * math.sqrt(share * (1 - share) / steps)
        for value in choice.values:
            assert counts[choice.name][value] / steps == pytest.approx(share, abs=slack), choice.name


@pytest.mark.parametrize("k", [0, 1, 3])
def test_sandwich_is_the_largest_the_smallest_and_k_more_at_one_resolution(k: int) -> None:
    space, config = tiny.space(), tiny.config(rule="sandwich", random_archs=k)
    seen: set[Arch] = set()
    for step in range(40):
        resolution, archs = step_archs(space, 7, step, 2000, config)
        assert archs[0] == space.largest().replace(resolution=resolution)
        assert archs[1] == space.smallest().replace(resolution=resolution)
        assert all(arch["resolution"] == resolution and arch in space for arch in archs)
        assert 2 <= len(archs) <= 2 + k
        seen.update(archs[2:])
    assert len(seen) >= 30 * min(k, 1)


def test_anchored_is_the_largest_in_half_of_the_steps_and_one_of_any_in_the_others() -> None:
    space, config, steps = tiny.space(), tiny.config(rule="anchored"), 600
    largest, others = 0, set[Arch]()
    for step in range(steps):
        resolution, (arch,) = step_archs(space, 5, step, 2000, config)
        assert arch["resolution"] == resolution and arch in space
        if arch == space.largest().replace(resolution=resolution):
            largest += 1
        else:
            others.add(arch)
    assert largest / steps == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / steps))
    assert len(others) > 150


def test_progressive_is_the_largest_alone_and_then_opens_every_choice_from_the_top() -> None:
    wide = {**tiny.SPACE["base"], "stages": [16, 32, 32, 32]}
    space = tiny.space(base=wide, multipliers=[1, 0.75, 0.5, 0.25])
    config, steps = tiny.config(rule="progressive", full_share=0.4), 2000
    drawn = [step_archs(space, 5, step, steps, config) for step in range(steps)]
    assert all(arch["resolution"] == resolution and arch in space for resolution, (arch,) in drawn)
    full = [arch == space.largest().replace(resolution=resolution) for resolution, (arch,) in drawn]
    assert all(full[:800])
    assert sum(full[800:]) / 1200 == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 1200))

    def genes(first: int, last: int) -> np.ndarray[Any, Any]:
        return np.array([space.encode(arch) for _, (arch,) in drawn[first:last]])

    searched = [i for i, choice in enumerate(space.choices) if len(choice.values) > 1]
    width = next(i for i in searched if len(space.choices[i].values) == 4)
    # A third of the opening (half of the shrinking) opens the second of four widths, all of it the last.
    assert genes(800, 1000)[:, width].min() == 2
    assert genes(1000, 1200)[:, width].min() == 1
    last = genes(1400, 2000)
    for i in searched:
        assert set(last[:, i]) == set(range(len(space.choices[i].values))), space.choices[i].name


@pytest.mark.parametrize("rule", ["anchored", "progressive"])
def test_share_of_steps_that_train_the_largest(rule: str) -> None:
    space, config = tiny.space(), tiny.config(rule=rule, full_share=0.0, largest_share=0.2)
    drawn = [step_archs(space, 5, step, 800, config) for step in range(400, 800)]
    full = [arch == space.largest().replace(resolution=resolution) for resolution, (arch,) in drawn]
    assert sum(full) / 400 == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 400))


def test_progressive_with_nothing_alone_starts_to_shrink_at_once() -> None:
    space, config = tiny.space(), tiny.config(rule="progressive", full_share=0.0)
    assert len({step_archs(space, 0, step, 40, config)[1][0] for step in range(40)}) > 10


def test_archs_that_coincide_are_trained_once() -> None:
    space = tiny.space(multipliers=[1], deconv_kernels=[4])
    assert space.count() == 2  # two resolutions of one network
    _, archs = step_archs(space, 0, 0, 1, tiny.config(rule="sandwich", random_archs=5))
    assert len(archs) == 1


@pytest.mark.parametrize(
    ("rule", "runs"), [("uniform", 1), ("anchored", 1), ("progressive", 1), ("sandwich", 4)]
)
def test_a_step_runs_its_archs_and_no_others(tmp_path: Path, rule: str, runs: int) -> None:
    trainer = tiny.trainer(tmp_path, rule=rule, random_archs=2, epochs=1, validate_every=9)
    ran: list[tuple[int, Arch]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, Arch]) -> None:
        assert inputs[0].shape[2] == inputs[0].shape[3]
        ran.append((inputs[0].shape[2], inputs[1]))

    trainer.network.register_forward_pre_hook(note)
    trainer.run()
    drawn = [step_archs(trainer.space, 0, step, trainer.steps, trainer.config) for step in range(3)]
    assert ran == [(resolution, arch) for resolution, archs in drawn for arch in archs]
    assert len(ran) == 3 * runs


def last_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Train to the end; return every parameter's gradient of the last step, 0 where it had none."""
    found: dict[str, Tensor] = {}

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        for name, p in trainer.network.named_parameters():
            found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.run()
    return found


def assert_gradients(network: nn.Module, found: dict[str, Tensor]) -> None:
    for name, p in network.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        scale = float(expected.abs().max()) + 1e-9
        assert torch.allclose(found[name] / scale, expected / scale, atol=1e-4), name
    assert any(float(g.abs().max()) > 0 for g in found.values())


def test_gradients_of_a_sandwich_are_the_mean_over_its_archs(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, rule="sandwich", random_archs=1, images=2, epochs=1)
    found = last_gradients(trainer)
    network: Any = tiny.supernet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    resolution, archs = step_archs(trainer.space, 0, 0, trainer.steps, trainer.config)
    order = np.random.default_rng([0, 3, 0]).permutation(2).tolist()
    batch = collate(trainer.dataset, order, resolution, trainer.config.augmentation, 0, 0)
    assert len(archs) == 3
    total = sum(pose_loss(network(batch.images, arch), batch, trainer.config.loss)["total"] for arch in archs)
    assert isinstance(total, Tensor)
    (total / 3).backward()  # type: ignore[no-untyped-call]
    assert_gradients(network, found)


def test_gradients_of_shards_are_the_batch_s_where_each_shard_normalises_alone(tmp_path: Path) -> None:
    """Against the definition: the parts one after the other, weighed by their sizes."""
    trainer = tiny.trainer(tmp_path, images=5, batch_size=5, shards=2, rule="uniform", epochs=1)
    found = last_gradients(trainer)
    network: Any = tiny.supernet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    resolution, (arch,) = step_archs(trainer.space, 0, 0, 1, trainer.config)
    order = np.random.default_rng([0, 3, 0]).permutation(5).tolist()
    total = torch.zeros(())
    for part in (order[:3], order[3:]):
        batch = collate(trainer.dataset, part, resolution, trainer.config.augmentation, 0, 0)
        total = total + pose_loss(network(batch.images, arch), batch, trainer.config.loss)["total"] * (
            len(part) / 5
        )
    total.backward()  # type: ignore[no-untyped-call]
    assert_gradients(network, found)
    assert float(rows(tmp_path / "metrics.csv")[0]["total"]) == pytest.approx(float(total.detach()), rel=1e-4)


def test_shards_on_threads_give_the_same_bits_every_time_and_leave_torch_s_threads_alone(
    tmp_path: Path,
) -> None:
    threads = torch.get_num_threads()
    for name in ("one", "two"):
        tiny.trainer(tmp_path / name, images=6, batch_size=3, shards=2, ema=0.9).run()
    one, two = (tmp_path / name / "checkpoints" / "last.safetensors" for name in ("one", "two"))
    assert tiny.same_checkpoint(one, two)
    assert torch.get_num_threads() == threads


def test_weights_stay_shared_by_all_shards_through_validation(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, images=4, batch_size=2, shards=2, ema=0.5, epochs=3, validate=lambda network: {"AP": 0.0}
    )
    trainer.run()
    own, replica = trainer._shards.networks
    for (name, p), q in zip(own.named_parameters(), replica.parameters(), strict=True):
        assert p.data_ptr() == q.data_ptr(), name
        assert q.grad is None
    assert own.training and replica.training


def test_batches_smaller_than_the_shards(tmp_path: Path) -> None:
    report = tiny.trainer(tmp_path, images=2, batch_size=4, shards=4, epochs=1).run()
    assert report.finished


def test_an_image_that_no_epoch_repeats(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, images=13, batch_size=4, epochs=2)
    jobs = list(trainer._schedule())
    assert len(jobs) == trainer.steps == 6  # 13 images are 3 full batches
    for epoch in (0, 1):
        shown = [index for indices, _, at in jobs if at == epoch for index in indices]
        assert len(shown) == len(set(shown)) == 12
    assert jobs[0][0] != jobs[3][0]


def test_data_sets_smaller_than_a_batch(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, images=3, batch_size=16, epochs=2)
    sizes: list[int] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    report = trainer.run()
    assert (report.steps, report.finished) == (2, True)
    assert set(sizes) == {3}


# -- the optimiser -----------------------------------------------------------------------------------------


def test_weight_decay_shrinks_convolutions_and_nothing_else(tmp_path: Path) -> None:
    nothing = LossWeights(0.0, 0.0, 0.0, 0.0)
    trainer = tiny.trainer(
        tmp_path, loss=nothing, weight_decay=0.1, learning_rate=0.5, schedule="constant", warmup=0.0, epochs=1
    )
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.run()
    convolutions = {
        f"{name}.weight"
        for name, module in trainer.network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    assert 0 < len(convolutions) < len(before)
    for name, p in trainer.network.named_parameters():
        if name in convolutions:
            assert torch.allclose(p, before[name] * (1 - 0.5 * 0.1) ** 3, rtol=1e-4, atol=0), name
        else:
            assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_what_a_step_did_not_use_and_what_it_used_in_part(tmp_path: Path, optimizer: str) -> None:
    """Under Adam: an unused weight rests; the unused part of a used one goes on by momentum and decay."""
    space = tiny.space(base={**tiny.SPACE["base"], "depths": [2, 2, 2, 2]}, depths=[1, 2])
    network = build_supernet(space, torch.Generator().manual_seed(0))
    rate, decay = 0.01, 0.1
    config = tiny.config(
        optimizer=optimizer, learning_rate=rate, schedule="constant", warmup=0.0, weight_decay=decay
    )
    trainer = Trainer(network, tiny.people(), config, seed=0, folder=tmp_path)
    archs = [arch.replace(resolution=64) for arch in (space.largest(), space.smallest())]
    batch = collate(trainer.dataset, [0, 1], 64, None, 0, 0)
    named = dict(network.named_parameters())
    trainer._update(0, batch, archs[:1], False)
    before = {name: p.detach().clone() for name, p in named.items()}
    moments = {
        name: {key: value.clone() for key, value in trainer.optimizer.state[p].items()}
        for name, p in named.items()
    }
    assert all("exp_avg" in kept for kept in moments.values())
    trainer._update(1, batch, archs[1:], False)

    unused = [name for name in named if re.match(r"stage\d\.block1\.", name)]
    assert unused and {name for name, p in named.items() if p.grad is None} == set(unused)
    for name in unused:
        assert torch.equal(named[name], before[name]), name
        for key, value in trainer.optimizer.state[named[name]].items():
            assert torch.equal(value, moments[name][key]), (name, key)

    plain = build_network(archs[1], space.joints)
    sliced = 0
    for name, used in plain.named_parameters():
        part = tuple(slice(size, None) for size in used.shape[:1])  # output channels beyond the active ones
        old, grad = before[name][part], named[name].grad
        if not old.numel():
            continue
        sliced += 1
        assert grad is not None and not grad[part].any(), name
        pull = decay * old if named[name].ndim > 1 else torch.zeros_like(old)
        late = pull if optimizer == "adam" else torch.zeros_like(old)
        first = 0.9 * moments[name]["exp_avg"][part] + 0.1 * late
        second = 0.999 * moments[name]["exp_avg_sq"][part] + 0.001 * late**2
        step = first / (1 - 0.9**2) / ((second / (1 - 0.999**2)).sqrt() + 1e-8)
        expected = old - rate * (step if optimizer == "adam" else step + pull)
        assert torch.allclose(named[name][part], expected, rtol=1e-4, atol=1e-7), name
        assert not torch.equal(named[name][part], old), name
    assert sliced > 20


def test_averages_are_of_parameters_not_of_running_statistics(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, ema=0.9, epochs=1)
    trainer.run()
    assert list(trainer.average.values) == [name for name, _ in trainer.network.named_parameters()]
    own = {name: buffer.clone() for name, buffer in trainer.network.named_buffers()}
    weight = trainer.network.get_parameter("stem.conv.weight").detach().clone()
    with trainer.average.swapped() as network:
        assert not torch.equal(network.get_parameter("stem.conv.weight"), weight)
        assert own and all(torch.equal(buffer, own[name]) for name, buffer in network.named_buffers())


def test_gradients_are_clipped_and_their_norm_before_is_told(tmp_path: Path) -> None:
    norms: list[float] = []
    trainer = tiny.trainer(tmp_path, clip_norm=1e-3, epochs=1)

    def measure(optimizer: Any, args: Any, kwargs: Any) -> None:
        squares = [float(p.grad.square().sum()) for p in trainer.network.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(squares)))

    trainer.optimizer.register_step_pre_hook(measure)
    trainer.run()
    told = [float(row["grad_norm"]) for row in rows(tmp_path / "metrics.csv")]
    assert all(norm == pytest.approx(1e-3, rel=1e-2) for norm in norms)
    assert all(value > 2e-3 for value in told)


def test_averaged_weights_follow_the_formula(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, ema=0.3, epochs=2)
    name = "stem.conv.weight"
    weight = dict(trainer.network.named_parameters())[name]
    expected = weight.detach().double().clone()

    def follow(step: int, steps: int, row: Any) -> None:
        nonlocal expected
        decay = min(0.3, step / (9 + step))  # the history of a young average is short
        expected = decay * expected + (1 - decay) * weight.detach().double()

    trainer.run(follow)
    assert trainer.average.values[name].double().numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    assert not torch.equal(trainer.average.values[name], weight)


def test_what_is_validated_and_kept_as_best_is_the_average(tmp_path: Path) -> None:
    validated: list[Tensor] = []

    def validate(network: nn.Module) -> dict[str, float]:
        validated.append(dict(network.named_parameters())["stem.conv.weight"].detach().clone())
        return {"score": 1.0}

    trainer = tiny.trainer(tmp_path, ema=0.9, validate=validate, validate_every=4)
    trainer.run()
    own = dict(trainer.network.named_parameters())["stem.conv.weight"]
    best, _ = read_tensors(tmp_path / "checkpoints" / "best.safetensors")
    assert len(validated) == 1
    assert torch.equal(validated[0], trainer.average.values["stem.conv.weight"])
    assert torch.equal(best["stem.conv.weight"], validated[0])
    assert not torch.equal(own, validated[0])
    last, _ = read_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert torch.equal(last["model.stem.conv.weight"], own)


def test_no_average_is_kept_unless_asked_for(tmp_path: Path) -> None:
    assert tiny.trainer(tmp_path).average.values == {}


def test_joints_that_the_data_lack_get_no_gradient(tmp_path: Path) -> None:
    drawn = tiny.people(8, 2)
    images = {image_id: drawn.load_image(i) for i, image_id in enumerate(drawn.ids)}
    skeleton = get_skeleton("crowdpose14")
    dataset = PoseDataset.from_dict(drawn.ground_truth(), images, skeleton)
    missing = ~dataset.labelled
    assert 0 < missing.sum() < 14
    space = space_from_config(tiny.SPACE, joints=14)
    network = build_supernet(space, torch.Generator().manual_seed(0))
    trainer = Trainer(network, dataset, tiny.config(epochs=1, batch_size=8), seed=0, folder=tmp_path)
    grads: dict[str, Tensor] = {}

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        grads.update({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.run()
    for i, copies in ((0, 2), (1, 1)):  # heatmaps and tags, then heatmaps
        for branch in ("refined", "raw"):
            moved = grads[f"head.output{i}.{branch}.project.weight"].abs().sum(dim=(1, 2, 3)).numpy() > 0
            assert not moved[np.tile(missing, copies)].any()
            assert moved[:14][~missing].all()


# -- validation and the best checkpoint --------------------------------------------------------------------


def test_best_is_the_best_and_not_the_last(tmp_path: Path) -> None:
    scores = iter([0.2, 0.7, 0.7, 0.4])
    trainer = tiny.trainer(
        tmp_path, validate=lambda network: {"score": next(scores), "other": 0.5}, validate_every=1
    )
    report = trainer.run()
    assert report.best == 0.7
    _, said = read_tensors(tmp_path / "checkpoints" / "best.safetensors")
    assert (said["step"], said["scores"]) == (6, {"score": 0.7, "other": 0.5})
    assert [row["score"] for row in rows(tmp_path / "validation.csv")] == ["0.2", "0.7", "0.7", "0.4"]


@pytest.mark.parametrize(("every", "at"), [(1, [3, 6, 9, 12]), (3, [9, 12]), (9, [12])])
def test_validation_comes_every_so_many_epochs_and_at_the_end(
    tmp_path: Path, every: int, at: list[int]
) -> None:
    tiny.trainer(tmp_path, validate=tiny.weights_sum, validate_every=every).run()
    assert [int(row["step"]) for row in rows(tmp_path / "validation.csv")] == at


def test_without_validation_the_last_weights_are_the_best(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, epochs=1)
    report = trainer.run()
    assert math.isnan(report.best)
    best, _ = read_tensors(tmp_path / "checkpoints" / "best.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in trainer.network.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_lost_best_checkpoint_is_written_anew_by_resuming(tmp_path: Path, damage: str) -> None:
    tiny.trainer(tmp_path, validate=tiny.weights_sum).run()
    best = tmp_path / "checkpoints" / "best.safetensors"
    scores = (tmp_path / "validation.csv").read_text()
    if damage == "missing":
        best.unlink()
    else:
        best.write_bytes(best.read_bytes()[:1000])
    again = tiny.trainer(tmp_path, validate=tiny.weights_sum)
    again.resume()
    assert again.run().finished
    assert read_tensors(best)[1]["step"] == 12
    assert (tmp_path / "validation.csv").read_text() == scores


def test_annotations_changed_in_place_are_another_training(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, epochs=1).run()
    other = Trainer(tiny.supernet(), tiny.people(6, seed=2), tiny.config(epochs=1), seed=0, folder=tmp_path)
    with pytest.raises(RunError, match=r"images: checkpoint 6 \(\w{12}\), now 6 \(\w{12}\)"):
        other.resume()


def test_training_goes_on_in_training_mode_after_a_validation(tmp_path: Path) -> None:
    def validate(network: nn.Module) -> dict[str, float]:
        network.eval()
        return {"score": 0.0}

    modes: list[bool] = []
    trainer = tiny.trainer(tmp_path, validate=validate, validate_every=1)
    trainer.network.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    trainer.run()
    assert modes and all(modes)


# -- stopped and resumed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, ema: float) -> None:
    settings: dict[str, Any] = {"ema": ema, "checkpoint_seconds": 1e-6, "validate": tiny.weights_sum}
    tiny.trainer(tmp_path / "whole", **settings).run()
    rng = np.random.default_rng(5)
    stops = sorted({*rng.integers(1, 12, 3).tolist(), 6})  # 6 is right before a validation
    for number, stop in enumerate(stops):
        trainer = tiny.trainer(tmp_path / "cut", workers=number % 3, **settings)
        begun = trainer.resume()
        assert begun == max(0, ([0, *stops][number]) - 1)  # the step at which it died was not saved
        with pytest.raises(Killed):
            trainer.run(killer(stop))
    trainer = tiny.trainer(tmp_path / "cut", **settings)
    trainer.resume()
    assert trainer.run().finished
    for name in ("last", "best"):
        file = Path("checkpoints") / f"{name}.safetensors"
        assert tiny.same_checkpoint(tmp_path / "whole" / file, tmp_path / "cut" / file), name
    for name in ("metrics.csv", "validation.csv"):
        assert rows(tmp_path / "cut" / name) == rows(tmp_path / "whole" / name)
    assert [int(row["step"]) for row in rows(tmp_path / "cut" / "metrics.csv")] == list(range(1, 13))


def test_bits_differ_where_the_seed_does(tmp_path: Path) -> None:
    for seed in (0, 1):
        tiny.trainer(tmp_path / str(seed), seed=seed, epochs=1).run()
    files = [tmp_path / str(seed) / "checkpoints" / "best.safetensors" for seed in (0, 1)]
    assert not tiny.same_checkpoint(*files)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_leaves_the_handlers_as_they_were(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    trainer = tiny.trainer(tmp_path)

    def interrupt(step: int, steps: int, row: Any) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(interrupt)
    assert signal.getsignal(number) is before
    assert tiny.trainer(tmp_path).resume() == 5


def test_a_finished_training_is_not_trained_further(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, epochs=1).run()
    last = tmp_path / "checkpoints" / "last.safetensors"
    before, _ = read_tensors(last)
    again = tiny.trainer(tmp_path, epochs=1)
    assert again.resume() == 3
    assert again.run().steps == 3
    after, _ = read_tensors(last)
    assert all(torch.equal(before[name], after[name]) for name in before)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def damage_foreign(path: Path) -> None:
    path.write_text("not a checkpoint at all")


DAMAGES = [damage_truncate, damage_empty, damage_header, damage_foreign]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    with pytest.raises(Killed):
        tiny.trainer(tmp_path, checkpoint_seconds=1e-6).run(killer(3))
    damage(tmp_path / "checkpoints" / "last.safetensors")
    assert tiny.trainer(tmp_path).resume() == 1


def test_a_damaged_checkpoint_never_pushes_out_the_good_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint_seconds": 1e-6, "epochs": 2}
    tiny.trainer(tmp_path / "whole", **settings).run()
    checkpoints = tmp_path / "cut" / "checkpoints"
    with pytest.raises(Killed):
        tiny.trainer(tmp_path / "cut", **settings).run(killer(4))
    damage_truncate(checkpoints / "last.safetensors")
    trainer = tiny.trainer(tmp_path / "cut", **settings)
    assert trainer.resume() == 2
    with pytest.raises(Killed):
        trainer.run(killer(3))
    trainer = tiny.trainer(tmp_path / "cut", **settings)
    assert trainer.resume() == 2
    with pytest.raises(Killed):
        trainer.run(killer(4))  # one more is saved
    for name in ("last", "previous"):
        read_tensors(checkpoints / f"{name}.safetensors")
    trainer = tiny.trainer(tmp_path / "cut", **settings)
    assert trainer.resume() == 3
    trainer.run()
    assert tiny.same_checkpoint(
        tmp_path / "whole" / "checkpoints" / "last.safetensors", checkpoints / "last.safetensors"
    )


def test_two_damaged_checkpoints_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tiny.trainer(tmp_path, checkpoint_seconds=1e-6).run(killer(4))
    for name in ("last", "previous"):
        damage_truncate(tmp_path / "checkpoints" / f"{name}.safetensors")
    with pytest.raises(
        RunError, match=r"no readable checkpoint.*last\.safetensors.*previous\.safetensors"
    ) as told:
        tiny.trainer(tmp_path).resume()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("seed", "changes", "told"),
    [
        (1, {}, "seed: checkpoint 0, now 1"),
        (0, {"epochs": 5}, "steps: checkpoint 12, now 15"),
        (0, {"learning_rate": 0.5}, "learning_rate: checkpoint 0.004, now 0.5"),
        (0, {"schedule": "step"}, "schedule: checkpoint cosine, now step"),
        (0, {"optimizer": "adam"}, "optimizer: checkpoint adamw, now adam"),
        (0, {"ema": 0.9}, "ema: checkpoint 0.0, now 0.9"),
        (0, {"images": 7}, "images: checkpoint 6 ("),
    ],
)
def test_another_training_is_refused_and_the_difference_named(
    tmp_path: Path, seed: int, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(Killed):
        tiny.trainer(tmp_path, checkpoint_seconds=1e-6).run(killer(3))
    with pytest.raises(RunError, match=re.escape(told)):
        tiny.trainer(tmp_path, seed=seed, **changes).resume()


def test_another_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tiny.trainer(tmp_path, checkpoint_seconds=1e-6).run(killer(3))
    other = Trainer(tiny.supernet(multipliers=[1]), tiny.people(), tiny.config(), seed=0, folder=tmp_path)
    with pytest.raises(RunError, match=r"belongs to another training .*space"):
        other.resume()


def test_settings_of_the_machine_may_change(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tiny.trainer(tmp_path, checkpoint_seconds=1e-6).run(killer(3))
    assert tiny.trainer(tmp_path, workers=2, checkpoint_seconds=7.0, device="auto").resume() == 2


def test_metrics_cut_in_the_middle_of_a_line_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with MetricLog(path, ("step", "loss"), 0) as log:
        for step in (1, 2, 3):
            log.add({"step": step, "loss": step / 7})
    path.write_bytes(path.read_bytes() + b"4")
    with MetricLog(path, ("step", "loss"), 2) as log:
        log.add({"step": 3, "loss": 0.5})
    assert path.read_text() == "step,loss\n1,0.142857\n2,0.285714\n3,0.5\n"


# -- what goes wrong ---------------------------------------------------------------------------------------


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batch-loader")]


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    opencv = cv2.getNumThreads()
    trainer = tiny.trainer(
        tmp_path, checkpoint_seconds=1e-6, workers=2, epochs=50, learning_rate=1e30, warmup=0.0
    )
    with pytest.raises(RunError, match=r"is (nan|inf) at step \d+.*learning_rate") as told:
        trainer.run()
    assert "\n" not in str(told.value)
    assert loader_threads() == []
    assert cv2.getNumThreads() == opencv
    tensors, said = read_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert said["step"] == trainer.step >= 1
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    weight = trainer.network.get_parameter("head.output1.refined.project.weight")
    weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
    before = weight.detach().clone()
    statistics = {name: b.clone() for name, b in trainer.network.named_buffers()}
    with pytest.raises(RunError, match=r"gradient's norm is inf at step 1 of 12 .*learning rate 0\.002"):
        trainer.run()
    assert torch.equal(weight, before)
    saved, said = read_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert said["step"] == 0  # all is as it was before the step, running statistics too
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"]), name
    for name, tensor in statistics.items():
        assert torch.equal(tensor, saved[f"model.{name}"]), name


def test_an_image_that_cannot_be_read_ends_the_run_and_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny.trainer(tmp_path, workers=2)

    def fail(index: int) -> Any:
        raise InputError("image 'x.jpg' is truncated")

    monkeypatch.setattr(trainer.dataset, "load_image", fail)
    with pytest.raises(InputError, match=r"x\.jpg"):
        trainer.run()
    assert loader_threads() == []


def test_no_images_at_all() -> None:
    with pytest.raises(InputError, match="no image"):
        Trainer(tiny.supernet(), tiny.people(1).subset([]), tiny.config(), seed=0, folder=Path("unused"))


@pytest.mark.parametrize("name", ["cuda:7", "cuda:63"])
def test_absent_gpus(name: str) -> None:
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has that many GPUs")
    with pytest.raises(UnavailableError, match=rf"'{name}'.*torch sees \d+ GPUs.*train\.device=cpu"):
        pick_device(name)


@pytest.mark.parametrize("name", ["tpu9", "meta", "", "cpu:x", "cuda:-1"])
def test_devices_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="auto, cpu, cuda or cuda:N"):
        pick_device(name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epochs", 0), ("batch_size", -1), ("random_archs", -1), ("validate_every", 0), ("workers", -1)),
        *(("rule", "sandwhich"), ("optimizer", "sgd"), ("schedule", "cosin")),
        *(
            ("learning_rate", 0.0),
            ("learning_rate", math.nan),
            ("checkpoint_seconds", math.inf),
            ("sigma", -2),
        ),
        *(
            ("weight_decay", -1e-9),
            ("clip_norm", math.nan),
            ("ema", 1.0),
            ("warmup", -0.1),
            ("final_rate", 2),
            ("full_share", 1.0),
            ("largest_share", -0.5),
            ("shards", 0),
            ("shards", 17),
        ),
        *(("milestones", (0.9, 0.2)), ("milestones", (0.0,)), ("milestones", (math.nan,))),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^train\.{field}") as told:
        TrainConfig(**{field: value})
    assert "\n" not in str(told.value)


def test_a_supernet_is_what_is_trained(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, epochs=1)
    assert isinstance(trainer.network, Supernet)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    losses: list[float] = []
    trainer.run(lambda step, steps, row: losses.append(row["total"]))
    moved = [name for name, p in trainer.network.named_parameters() if not torch.equal(p, before[name])]
    assert moved == list(before)
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
