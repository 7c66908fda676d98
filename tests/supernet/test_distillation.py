"""Distillation: losses and gradients against written-out formulas, teachers, and whole trainings."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces import Arch, InputError, RunError
from supernet.base import Subnet
from supernet.distillation import Distillation, DistillConfig, Teacher
from supernet.passes import Shards
from supernet.pose.lessons import Lesson, tag_distance, teach
from supernet.pose.loader import Batch, collate
from supernet.pose.losses import LossWeights, associative_embedding_loss, pose_loss
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton
from supernet.registry import build_network
from supernet.training import TrainConfig
from tests.supernet import tiny
from tests.supernet.test_training import Killed, killer, rows

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = Path("teacher.safetensors")
IN_PLACE = DistillConfig("largest", share=0.3, tags=0.7)
BY_TEACHER = DistillConfig("teacher", share=0.3, tags=0.7, teacher=PATH)


def batch(count: int = 3, side: int = 64) -> Batch:
    """Return drawn people with holes in the masks and, in some images, joints that are not labelled."""
    made = collate(tiny.people(), range(count), side, None, 0, 0)
    rng = np.random.default_rng(3)
    masks = tuple(each * torch.from_numpy(rng.random(each.shape) > 0.2) for each in made.masks)
    labelled = torch.from_numpy(rng.random((count, 17)) > 0.3)
    return replace(made, masks=masks, labelled=labelled)


def outputs_like(made: Batch, seed: int, joints: int = 17) -> tuple[Tensor, Tensor]:
    """Return what a network might say: values beyond 0..1 among them."""
    rng = torch.Generator().manual_seed(seed)
    (n, _, h, w), (_, _, height, width) = (each.shape for each in made.heatmaps)
    quarter = torch.randn(n, 2 * joints, h, w, generator=rng) * 0.5 + 0.3
    return quarter, torch.randn(n, joints, height, width, generator=rng) * 0.5 + 0.3


def skilled(arch: Arch, seed: int, joints: int = 17) -> Subnet:
    """Return a network whose heatmaps reach far beyond the threshold of detection."""
    net = build_network(arch, joints, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name in net.output_layers:
            net.get_submodule(name).weight.mul_(300.0)  # type: ignore[operator]
    return net


def teacher(seed: int = 9, joints: Skeleton = COCO17, wanted: Skeleton = COCO17) -> Teacher:
    """Return a teacher that is none of the tiny space's networks."""
    arch = tiny.space().largest().replace(resolution=128)
    return Teacher(skilled(arch, seed, len(joints)), joints, wanted)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    most = max(float(each.abs().max()) for each in expected.values())
    assert most > 0
    for name, value in expected.items():
        # What a normalisation behind takes back has no gradient but rounding.
        scale = max(float(value.abs().max()), 1e-3 * most)
        assert torch.allclose(found[name] / scale, value / scale, atol=2e-4), name


# -- targets -------------------------------------------------------------------------------------------------


def two_losses(
    pred: Tensor, truth: Tensor, said: Tensor, mask: Tensor, labelled: Tensor, told: Tensor, share: float
) -> Tensor:
    """The loss as the papers write it, joint by joint and image by image."""
    said, total = said.clamp(0, 1), torch.zeros(())
    for i in range(len(pred)):
        costs = []
        for j in range(pred.shape[1]):
            own = ((pred[i, j] - truth[i, j]) ** 2 * mask[i]).mean()
            theirs = ((pred[i, j] - said[i, j]) ** 2 * mask[i]).mean()
            if labelled[i, j] and told[j]:
                costs.append((1 - share) * own + share * theirs)
            elif labelled[i, j] or told[j]:
                costs.append(own if labelled[i, j] else theirs)
        total = total + torch.stack(costs).mean() / len(pred)
    return total


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 100), partly=st.booleans())
def test_one_blended_target_has_the_gradients_of_both_losses(share: float, seed: int, partly: bool) -> None:
    made = batch()
    told = torch.ones(17, dtype=torch.bool)
    if partly:
        told = torch.from_numpy(np.random.default_rng(seed).random(17) > 0.4)
        told[0] = True
    said, preds = outputs_like(made, seed + 1), outputs_like(made, seed + 2)
    lesson = teach(made, said, share, told if partly else None)
    heats = [preds[0][:, :17].clone().requires_grad_(), preds[1].clone().requires_grad_()]
    only = LossWeights(1.0, 1.0, 0.0, 0.0)
    ours = pose_loss((torch.cat([heats[0], preds[0][:, 17:]], dim=1), heats[1]), lesson, only)["total"]
    theirs = sum(
        two_losses(pred, truth, heat, mask, made.labelled, told, share)
        for pred, truth, heat, mask in zip(
            heats, made.heatmaps, (said[0][:, :17], said[1]), made.masks, strict=True
        )
    )
    assert isinstance(theirs, Tensor)
    for mine, other in zip(torch.autograd.grad(ours, heats), torch.autograd.grad(theirs, heats), strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=float(other.abs().max()) * 1e-4)
    assert float(ours.detach()) <= float(theirs.detach()) * (1 + 1e-5)  # less what no prediction changes


def test_blended_targets_stay_heatmaps_and_what_the_teacher_lacks_stays_as_it_was() -> None:
    made, told = batch(), torch.arange(17) % 2 == 0
    said = outputs_like(made, 1)
    lesson = teach(made, said, 1.0, told)
    for truth, blend, heat in zip(made.heatmaps, lesson.heatmaps, (said[0][:, :17], said[1]), strict=True):
        assert torch.equal(blend[:, ~told], truth[:, ~told])
        assert torch.allclose(blend[:, told], heat[:, told].clamp(0, 1), atol=1e-6)
        assert float(blend.min()) >= 0 and float(blend.max()) <= 1
    assert torch.equal(lesson.labelled, made.labelled | told)
    assert lesson.masks is made.masks and lesson.tags is made.tags
    assert float(lesson.places[:, ~told].abs().max()) == 0


def test_labels_of_a_whole_data_set_are_as_good_as_those_of_its_images() -> None:
    made = batch()
    row = made.labelled[0]
    said = outputs_like(made, 1)
    whole = teach(replace(made, labelled=row), said, 0.4)
    single = teach(replace(made, labelled=row.expand(3, 17)), said, 0.4)
    for one, other in zip(whole.heatmaps, single.heatmaps, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.places, single.places)
    assert torch.equal(whole.labelled.expand(3, 17), single.labelled)


def test_maps_of_another_size_are_refused() -> None:
    made = batch()
    with pytest.raises(
        InputError, match=r"as large as the targets, \(3, 17, 16, 16\), not \(3, 17, 24, 24\)"
    ):
        teach(made, outputs_like(batch(side=96), 1), 0.5)


# -- tags ----------------------------------------------------------------------------------------------------


def test_tags_are_compared_by_their_differences_within_an_image() -> None:
    """Against all pairs of places, written out."""
    made = batch()
    said, tags = outputs_like(made, 4), outputs_like(made, 5)[0][:, 17:].requires_grad_()
    lesson = teach(made, said, 0.5)
    expected = torch.zeros(())
    for i in range(3):
        at = lesson.places[i] > 0
        weight = lesson.places[i][at]
        assert len(weight) > 20
        assert float(weight.sum()) == pytest.approx(1.0, rel=1e-5)
        own, theirs = tags[i][at], said[0][i, 17:][at]
        apart = (own[:, None] - own[None]) - (theirs[:, None] - theirs[None])
        expected = expected + (apart**2 * weight[:, None] * weight[None]).sum() / 2 / 3
    found = tag_distance(tags, lesson)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    one, other = (torch.autograd.grad(each, tags)[0] for each in (found, expected))
    assert torch.allclose(one, other, atol=float(other.abs().max()) * 1e-4)
    shifted = tags + torch.tensor([3.0, -2.0, 0.5])[:, None, None, None]
    assert tag_distance(shifted, lesson).item() == pytest.approx(found.item(), rel=1e-4)
    assert float(tag_distance(said[0][:, 17:] + 4.0, lesson)) == pytest.approx(0.0, abs=1e-9)


def test_tags_are_read_where_a_target_is_high_and_the_mask_allows() -> None:
    made = batch()
    lesson = teach(made, outputs_like(made, 4), 0.0)
    seen = (lesson.heatmaps[0] > 0.1) & (made.masks[0][:, None] > 0)
    assert torch.equal(lesson.places > 0, seen)
    ratio = lesson.places[0][seen[0]] / lesson.heatmaps[0][0][seen[0]]
    assert float(ratio.max() / ratio.min()) == pytest.approx(1.0, rel=1e-4)


def test_an_image_without_anybody_has_no_tags_to_learn() -> None:
    made = batch()
    nobody = replace(
        made,
        heatmaps=tuple(torch.zeros_like(each) for each in made.heatmaps),
        labelled=torch.ones_like(made.labelled),
    )
    tags = outputs_like(made, 5)[0][:, 17:].requires_grad_()
    distance = tag_distance(tags, teach(nobody, outputs_like(made, 4), 0.0))
    assert float(distance) == 0
    assert float(torch.autograd.grad(distance, tags)[0].abs().max()) == 0


# -- teachers ------------------------------------------------------------------------------------------------


def test_joints_are_matched_by_name() -> None:
    asked = teacher(joints=COCO17, wanted=CROWDPOSE14)
    images = batch(2).images
    quarter, half = asked(images)
    own_quarter, own_half = asked.network(images)
    names = list(COCO17.joints)
    assert [bool(known) for known in asked.known] == [name in names for name in CROWDPOSE14.joints]
    assert quarter.shape[1] == 28 and half.shape[1] == 14
    for place, name in enumerate(CROWDPOSE14.joints):
        if name in names:
            j = names.index(name)
            assert torch.equal(half[:, place], own_half[:, j])
            assert torch.equal(quarter[:, place], own_quarter[:, j])
            assert torch.equal(quarter[:, 14 + place], own_quarter[:, 17 + j])
    assert not quarter.requires_grad


def test_teachers_of_other_joints_are_refused() -> None:
    strange = Skeleton.from_json({"name": "hand", "joints": ["wrist_root", "thumb_tip"]}, "test")
    with pytest.raises(InputError, match=r"none of the teacher's joints \(wrist_root, thumb_tip\)") as told:
        teacher(joints=strange)
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="the teacher predicts 17 joints, but skeleton 'crowdpose14' has 14"):
        Teacher(teacher().network, CROWDPOSE14, COCO17)


def test_a_teacher_of_another_sigma_is_refused() -> None:
    config, wise = DistillConfig("teacher", teacher=Path("there.pth")), teacher()
    wise.network.sigma = 1.5
    with pytest.raises(InputError, match=r"Gaussians of 1.5 cells, but train.sigma is 2: .* to 1.5"):
        Distillation(config, wise, sigma=2.0)
    assert Distillation(config, wise, sigma=1.5).teacher is wise


def test_a_teacher_is_known_by_its_weights() -> None:
    assert teacher(1).fingerprint == teacher(1).fingerprint != teacher(2).fingerprint
    changed = copy.deepcopy(teacher(1).network)
    dict(changed.named_buffers())["stem.conv_norm.running_mean"][0] += 1e-3
    assert Teacher(changed, COCO17, COCO17).fingerprint != teacher(1).fingerprint


def test_a_teacher_computes_in_the_precision_of_the_training(tmp_path: Path) -> None:
    images, exact = batch(2).images, teacher()
    narrow = teacher().to("cpu", torch.bfloat16)
    for one, other in zip(narrow(images), exact(images), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.float(), other, atol=0.05 * float(other.abs().max()))
        assert not torch.equal(one.float(), other)
    lesson = teach(batch(2), narrow(images), 0.5)
    assert {each.dtype for each in (*lesson.heatmaps, lesson.teacher_tags)} == {torch.float32}
    tiny.trainer(tmp_path, teacher=narrow, distill=BY_TEACHER)
    assert narrow(images)[0].dtype == torch.float32


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "both"}, "source is none, largest or teacher, not 'both'"),
        ({"share": 1.2}, "share lies in 0..1, not at 1.2"),
        ({"share": float("nan")}, "share lies in 0..1, not at nan"),
        ({"tags": -1.0}, "tags is at least 0, not -1.0"),
        ({"source": "largest", "start": 1.0}, r"start lies in 0..1 \(1 itself excluded\), not at 1.0"),
        ({"source": "largest", "start": float("nan")}, "start lies in 0..1 .* not at nan"),
        ({"start": 0.5}, "start says when a teacher begins .*source is none"),
        ({"source": "teacher"}, "needs a checkpoint; name it in train.distill.teacher"),
        (
            {"source": "largest", "teacher": PATH},
            "names 'teacher.safetensors', which .* largest would not use",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        DistillConfig(**fields)
    assert str(told.value).startswith("train.distill.") and "\n" not in str(told.value)


@pytest.mark.parametrize("rule", ["uniform", "anchored", "progressive"])
def test_in_place_distillation_needs_a_step_with_the_largest_and_others(rule: str) -> None:
    with pytest.raises(InputError, match=f"source: largest needs train.rule: sandwich.* not '{rule}'"):
        TrainConfig(rule=rule, distill=IN_PLACE)


def test_the_trainer_wants_the_teacher_that_is_named_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="source is teacher, but as a teacher none was given"):
        tiny.trainer(tmp_path, distill=BY_TEACHER)
    with pytest.raises(InputError, match="source is none, but as a teacher one was given"):
        tiny.trainer(tmp_path, teacher=teacher())


# -- gradients of a step -------------------------------------------------------------------------------------


def sandwich() -> list[Arch]:
    space = tiny.space()
    middle = space.sample(np.random.default_rng(4))
    return [each.replace(resolution=64) for each in (space.largest(), space.smallest(), middle)]


def step(
    distillation: Distillation | None, made: Batch, archs: Sequence[Arch], shards: int = 1, train: bool = True
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the terms and gradients of one step of a fresh network with visible heatmaps."""
    network = student()
    passes = Shards(network, shards, distillation)
    for each in passes.networks:
        each.train(train)
    terms = passes.backward(made, archs, LossWeights(push=0.2, pull=0.1))
    return terms, gradients(network)


def student() -> Any:
    network = tiny.supernet()
    with torch.no_grad():
        for name in network.output_layers:
            network.get_submodule(name).weight.mul_(200.0)  # type: ignore[operator]
    return network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def by_hand(config: DistillConfig, said: tuple[Tensor, Tensor], made: Batch, out: Any) -> Tensor:
    """The loss of one arch that is taught, without any of the code under test."""
    told = torch.ones(17, dtype=torch.bool)
    heats = (said[0][:, :17], said[1])
    preds = (out[0][:, :17], out[1])
    total = torch.zeros(())
    for pred, truth, heat, mask in zip(preds, made.heatmaps, heats, made.masks, strict=True):
        total = total + two_losses(pred, truth, heat, mask, made.labelled, told, config.share)
    push, pull = associative_embedding_loss(out[0][:, 17:], made.tags)
    share = torch.where(made.labelled, config.share, 1.0)[:, :, None, None]
    target = (1 - share) * made.heatmaps[0] + share * heats[0].clamp(0, 1)
    apart = torch.zeros(())
    for i in range(len(made)):
        at = (target[i] > 0.1) & (made.masks[0][i] > 0)
        if at.any():
            error, weight = (out[0] - said[0])[i, 17:][at], target[i][at] / target[i][at].sum()
            apart = apart + (weight * (error - (weight * error).sum()) ** 2).sum() / len(made)
    return total + 0.2 * push + 0.1 * pull + config.tags * apart


def test_in_place_the_largest_learns_from_the_truth_and_the_others_from_it() -> None:
    made, archs = batch(), sandwich()
    terms, found = step(Distillation(IN_PLACE), made, archs)
    network = student()
    outs = [network(made.images, arch) for arch in archs]
    said = tuple(each.detach() for each in outs[0])
    assert float(said[0][:, :17].max()) > 0.2  # or there would be nothing to distil
    weights = LossWeights(push=0.2, pull=0.1)
    own = pose_loss(outs[0], made, weights)["total"]
    total = own + sum(by_hand(IN_PLACE, (said[0], said[1]), made, out) for out in outs[1:])
    (total / 3).backward()  # type: ignore[no-untyped-call]
    assert_close(found, gradients(network))
    assert terms["distill"] > 0


def test_a_teacher_teaches_all_archs_of_the_step() -> None:
    made, archs = batch(), sandwich()
    asked = teacher()
    _, found = step(Distillation(BY_TEACHER, asked), made, archs)
    network = student()
    said = asked(made.images)
    total = sum(by_hand(BY_TEACHER, said, made, network(made.images, arch)) for arch in archs)
    assert isinstance(total, Tensor)
    (total / 3).backward()  # type: ignore[no-untyped-call]
    assert_close(found, gradients(network))


def test_the_teacher_s_own_weights_get_no_gradient_from_the_taught() -> None:
    """With nothing learned from the truth, the channels that only the largest has stay as they are."""
    made, archs = batch(), sandwich()
    network = student()
    passes = Shards(network, 1, Distillation(DistillConfig("largest", share=1.0, tags=1.0)))
    passes.train()
    passes.backward(made, [archs[0]], LossWeights())
    alone = gradients(network)
    network.zero_grad(set_to_none=True)
    passes.backward(made, archs[:2], LossWeights())
    both = gradients(network)
    name = "stage3.block0.project.weight"
    width = archs[1].number("stage3.width")
    assert width < both[name].shape[0]
    assert torch.allclose(both[name][width:], alone[name][width:] / 2, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(both[name][:width], alone[name][:width] / 2, rtol=1e-2)


def test_without_distillation_nothing_changes_to_the_bit() -> None:
    made, archs = batch(), sandwich()
    terms, found = step(None, made, archs)
    network = student()
    expected = dict.fromkeys(Distillation().terms, 0.0)
    for arch in archs:
        losses = pose_loss(network(made.images, arch), made, LossWeights(push=0.2, pull=0.1))
        (losses["total"] * (1.0 / 3)).backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            expected[name] += float(value.detach()) * 1.0 / 3
    assert terms == expected and terms["distill"] == 0.0
    for name, value in gradients(network).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("config", [IN_PLACE, BY_TEACHER])
def test_before_its_start_a_teacher_is_neither_heard_nor_asked(config: DistillConfig) -> None:
    made, archs = batch(), sandwich()
    asked = teacher() if config.teacher else None
    late = Distillation(replace(config, start=0.5), asked)
    assert late.at(0.49).teacher is None and late.at(0.5) is late
    network = student()
    passes = Shards(network, 1, late)
    passes.train()
    weights = LossWeights(push=0.2, pull=0.1)
    early = passes.backward(made, archs, weights, done=0.49)
    found = gradients(network)
    terms, plain = step(None, made, archs)
    assert early == terms
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    network.zero_grad(set_to_none=True)
    taught = passes.backward(made, archs, weights, done=0.5)
    assert taught["distill"] > 0 and taught["total"] != early["total"]


def test_a_late_teacher_is_heard_from_the_same_step_on_after_a_kill(tmp_path: Path) -> None:
    late = replace(IN_PLACE, start=0.5)

    def trainer(name: str) -> Any:
        return tiny.trainer(tmp_path / name, distill=late, rule="sandwich", epochs=2, checkpoint_seconds=1e-6)

    trainer("whole").run()
    heard = [float(row["distill"]) > 0 for row in rows(tmp_path / "whole" / "metrics.csv")]
    assert heard == [False] * 3 + [True] * 3
    with pytest.raises(Killed):
        trainer("cut").run(killer(2))
    last = trainer("cut")
    assert last.resume() == 1 and last.run().finished
    assert rows(tmp_path / "cut" / "metrics.csv") == rows(tmp_path / "whole" / "metrics.csv")


@pytest.mark.parametrize("config", [IN_PLACE, BY_TEACHER])
def test_two_shards_are_one_where_every_image_is_normalised_alike(config: DistillConfig) -> None:
    made, archs = batch(5), sandwich()
    asked = teacher() if config.teacher else None
    (one, found), (two, same) = (
        step(Distillation(config, asked), made, archs, shards, train=False) for shards in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-4)
    assert_close(same, found)


@pytest.mark.parametrize("archs", [1, 3])
def test_a_teacher_runs_once_per_part_of_a_batch(archs: int) -> None:
    asked, ran = teacher(), []
    asked.network.register_forward_pre_hook(lambda module, inputs: ran.append(len(inputs[0])))
    step(Distillation(BY_TEACHER, asked), batch(5), sandwich()[:archs], shards=2)
    assert sorted(ran) == [2, 3]


# -- trainings -----------------------------------------------------------------------------------------------


def test_training_leaves_the_teacher_as_it_was(tmp_path: Path) -> None:
    asked = teacher()
    before = {name: value.clone() for name, value in asked.network.state_dict().items()}
    trainer = tiny.trainer(
        tmp_path, teacher=asked, distill=BY_TEACHER, shards=2, validate=tiny.weights_sum, epochs=2
    )
    trainer.run()
    assert not asked.network.training
    for name, value in asked.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and not p.requires_grad for p in asked.network.parameters())
    assert all(float(row["distill"]) > 0 for row in rows(tmp_path / "metrics.csv"))


@pytest.mark.parametrize("config", [DistillConfig(), DistillConfig("largest", tags=0.0)])
def test_the_column_distill_is_0_where_no_tags_are_distilled(tmp_path: Path, config: DistillConfig) -> None:
    tiny.trainer(tmp_path, rule="sandwich", distill=config, epochs=1).run()
    assert {float(row["distill"]) for row in rows(tmp_path / "metrics.csv")} == {0.0}


def test_a_student_comes_to_say_what_its_teacher_says() -> None:
    made = collate(tiny.people(), range(2), 64, None, 0, 0)
    space = tiny.space()
    arch = space.largest().replace(resolution=64)
    asked = teacher()
    said = asked(made.images)
    network: Any = tiny.supernet()
    config = DistillConfig("teacher", share=1.0, tags=0.1, teacher=PATH)
    passes = Shards(network, 1, Distillation(config, asked))
    passes.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    lesson = teach(made, said, 1.0)

    def apart() -> tuple[float, float]:
        with torch.no_grad():
            quarter, half = network(made.images, arch)
        heat = (half - said[1].clamp(0, 1)).square().mean() + (
            quarter[:, :17] - said[0][:, :17].clamp(0, 1)
        ).square().mean()
        return float(heat), float(tag_distance(quarter[:, 17:], lesson))

    before = apart()
    for _ in range(80):
        network.zero_grad(set_to_none=True)
        passes.backward(made, [arch], LossWeights(push=0.0, pull=0.0))
        optimizer.step()
    after = apart()
    assert after[0] < before[0] / 3
    assert after[1] < before[1] / 3


@pytest.mark.parametrize("config", [IN_PLACE, BY_TEACHER])
def test_a_killed_distillation_ends_with_the_same_bits(tmp_path: Path, config: DistillConfig) -> None:
    def trainer(name: str, **changes: Any) -> Any:
        asked = teacher(**changes) if config.teacher else None
        return tiny.trainer(
            tmp_path / name,
            teacher=asked,
            distill=config,
            rule="sandwich",
            epochs=2,
            shards=1 + (config is BY_TEACHER),
            checkpoint_seconds=1e-6,
        )

    trainer("whole").run()
    for stop in (2, 5):
        cut = trainer("cut")
        cut.resume()
        with pytest.raises(Killed):
            cut.run(killer(stop))
    last = trainer("cut")
    assert last.resume() == 4
    assert last.run().finished
    file = Path("checkpoints") / "last.safetensors"
    assert tiny.same_checkpoint(tmp_path / "whole" / file, tmp_path / "cut" / file)
    assert rows(tmp_path / "cut" / "metrics.csv") == rows(tmp_path / "whole" / "metrics.csv")
    if config.teacher:
        with pytest.raises(
            RunError, match=r"distill: checkpoint teacher [0-9a-f]{16}, share 0\.3, tags 0\.7, now"
        ):
            trainer("cut", seed=5).resume()


def test_a_teacher_may_lie_elsewhere_when_a_training_is_resumed(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, teacher=teacher(), distill=BY_TEACHER, epochs=1).run()
    moved = replace(BY_TEACHER, teacher=Path("elsewhere.safetensors"))
    assert tiny.trainer(tmp_path, teacher=teacher(), distill=moved, epochs=1).resume() == 3


@pytest.mark.parametrize(
    "changed", [replace(IN_PLACE, share=0.4), replace(IN_PLACE, tags=0.1), DistillConfig()], ids=str
)
def test_a_training_is_not_resumed_with_another_distillation(tmp_path: Path, changed: DistillConfig) -> None:
    tiny.trainer(tmp_path, rule="sandwich", distill=IN_PLACE, epochs=1).run()
    with pytest.raises(RunError, match=r"distill: checkpoint largest, share 0\.3, tags 0\.7, now"):
        tiny.trainer(tmp_path, rule="sandwich", distill=changed, epochs=1).resume()


def test_lessons_are_what_losses_take() -> None:
    made = batch()
    lesson = teach(made, outputs_like(made, 1), 0.5)
    assert isinstance(lesson, Lesson)
    terms = Distillation(IN_PLACE).loss(outputs_like(made, 2), lesson, LossWeights())
    plain = pose_loss(outputs_like(made, 2), lesson, LossWeights())
    assert set(terms) == set(Distillation().terms)
    assert float(terms["total"]) == pytest.approx(float(plain["total"] + 0.7 * terms["distill"]), rel=1e-6)
    assert len(list(itertools.chain(lesson.heatmaps, lesson.masks))) == 4
