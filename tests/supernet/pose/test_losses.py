"""Losses: equality with per-person loops, gradients, masks, and batches without people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import SPACES
from search_spaces.errors import InputError
from supernet.pose.crops import RawPeople
from supernet.pose.heatmaps import decode_heatmaps
from supernet.pose.loader import STRIDES, Batch, collate, map_size
from supernet.pose.losses import (
    LossWeights,
    associative_embedding_loss,
    heatmap_loss,
    heatmap_mse,
    pose_loss,
    teach_heatmaps,
)
from supernet.pose.targets import draw_heatmaps, tag_indices
from supernet.pose.transforms import Augmentation
from tests.supernet import tiny

JOINTS, HEIGHT, WIDTH = 4, 5, 6


def make_tags(
    seed: int, images: int, people: int, *, visible: float = 0.6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 tag maps and indices in which some joints, and so some people, are not visible."""
    rng = np.random.default_rng(seed)
    tags = torch.from_numpy(rng.normal(0.0, 1.5, (images, JOINTS, HEIGHT, WIDTH)))
    indices = np.zeros((images, people, JOINTS, 2), np.int64)
    cells = rng.integers(0, HEIGHT * WIDTH, (images, people, JOINTS))
    indices[..., 0] = np.arange(JOINTS) * HEIGHT * WIDTH + cells
    indices[..., 1] = rng.random((images, people, JOINTS)) < visible
    return tags, torch.from_numpy(indices)


def reference(tags: torch.Tensor, indices: torch.Tensor) -> tuple[float, float]:
    """Push and pull, one person at a time, in plain Python."""
    pushes, pulls = [], []
    for image, people in zip(tags.numpy(), indices.numpy()):
        means, spreads = [], []
        for person in people:
            read = [image.ravel()[flat] for flat, visible in person if visible]
            if read:
                means.append(np.mean(read))
                spreads.append(np.mean([(value - means[-1]) ** 2 for value in read]))
        count = len(means)
        near = [np.exp(-((a - b) ** 2)) for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
        pushes.append(0.5 * sum(near) / (count * (count - 1)) if count > 1 else 0.0)
        pulls.append(sum(spreads) / count if count else 0.0)
    return float(np.mean(pushes)), float(np.mean(pulls))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    people=st.integers(1, 6),
    visible=st.sampled_from([0.0, 0.15, 0.6, 1.0]),
)
def test_embedding_loss_equals_a_loop_over_people(
    seed: int, images: int, people: int, visible: float
) -> None:
    tags, indices = make_tags(seed, images, people, visible=visible)
    push, pull = associative_embedding_loss(tags, indices)
    expected_push, expected_pull = reference(tags, indices)
    assert push.item() == pytest.approx(expected_push, abs=1e-12)
    assert pull.item() == pytest.approx(expected_pull, abs=1e-12)


def test_embedding_loss_has_the_right_gradient() -> None:
    tags, indices = make_tags(3, 2, 4)
    indices[1, 1:] = 0  # a second image with one person only
    assert torch.autograd.gradcheck(
        lambda each: torch.stack(associative_embedding_loss(each, indices)), tags.requires_grad_()
    )


def test_images_with_nobody_or_one_person() -> None:
    tags, indices = make_tags(5, 1, 3, visible=1.0)
    tags.requires_grad_()
    push, pull = associative_embedding_loss(tags, torch.zeros_like(indices))
    assert push.item() == 0.0 and pull.item() == 0.0
    (push + pull).backward()
    assert tags.grad is not None and torch.equal(tags.grad, torch.zeros_like(tags))

    indices[:, 1:] = 0
    push, pull = associative_embedding_loss(tags, indices)
    assert push.item() == 0.0
    assert pull.item() > 0.0


def test_tags_far_apart_and_equal_within_a_person_cost_nothing() -> None:
    _, indices = make_tags(0, 1, 2, visible=1.0)
    tags = torch.zeros(1, JOINTS, HEIGHT, WIDTH)
    for person in range(2):
        tags.view(-1)[indices[0, person, :, 0]] = 30.0 * person
    push, pull = associative_embedding_loss(tags, indices)
    assert push.item() == 0.0 and pull.item() == 0.0
    push, _ = associative_embedding_loss(torch.zeros_like(tags), indices)
    assert push.item() == pytest.approx(0.5)


def test_memory_layout_and_half_precision_change_nothing() -> None:
    tags, indices = make_tags(8, 2, 4)
    wide = torch.zeros(2, 2 * JOINTS, HEIGHT, WIDTH, dtype=torch.float64)
    wide[:, JOINTS:] = tags
    view = wide.to(memory_format=torch.channels_last)[:, JOINTS:]
    expected = associative_embedding_loss(tags, indices)
    for got, want in zip(associative_embedding_loss(view, indices), expected):
        assert got.item() == want.item()
    half = tags.to(torch.bfloat16)
    exact = associative_embedding_loss(half.double(), indices)
    for got, want in zip(associative_embedding_loss(half, indices), exact):
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(want.item(), rel=1e-5)


Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_maps(seed: int, images: int, joints: int, *, layout: str = "joints", holes: float = 0.3) -> Maps:
    """Return float64 predictions (a part of wider maps), targets between 0 and 1, and a mask of 0 and 1."""
    rng = np.random.default_rng(seed)
    order = torch.channels_last if layout == "channels last" else torch.contiguous_format
    wide = torch.from_numpy(rng.normal(size=(images, joints + 2, HEIGHT, WIDTH))).to(memory_format=order)
    target = torch.from_numpy(rng.random((images, joints, HEIGHT, WIDTH)).clip(0.4) - 0.4)
    mask = torch.from_numpy((rng.random((images, HEIGHT, WIDTH)) >= holes).astype(float))
    return wide[:, 1:-1], target.to(memory_format=order), mask


def composed(
    pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, labelled: torch.Tensor, foreground: float
) -> torch.Tensor:
    """Return the heatmap loss as its formula reads where all images have the same labelled joints (J,)."""
    errors = (pred - target).square() * mask[:, None]
    if foreground:
        errors = errors * (1.0 + foreground * target)
    per_joint, weight = errors.mean(dim=(0, 2, 3)), labelled.to(pred.dtype)
    return (per_joint * weight).sum() / weight.sum().clamp(min=1.0)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    labelled=st.lists(st.booleans(), min_size=1, max_size=5),
    foreground=st.sampled_from([0.0, 1.0, 9.7]),
    layout=st.sampled_from(["joints", "channels last"]),
    holes=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_heatmap_loss_and_its_gradient_are_the_formula_s(
    seed: int,
    images: int,
    labelled: list[bool],
    foreground: float,
    layout: str,
    holes: float,
    dtype: torch.dtype,
) -> None:
    maps = make_maps(seed, images, len(labelled), layout=layout, holes=holes)
    pred, target, mask = (each.to(dtype) for each in maps)
    which = torch.tensor(labelled)
    found, grads = [], []
    for loss in (heatmap_loss, composed):
        leaf = pred.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        value = loss(leaf, target, mask, which, foreground)
        (0.37 * value).backward()
        found.append(value.item())
        grads.append(leaf.grad)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert torch.equal(grads[0], grads[1])
    # Term by term, in plain Python.
    total = 0.0
    for joint in np.flatnonzero(labelled):
        for image in range(images):
            for p, t, m in zip(pred[image, joint].ravel(), target[image, joint].ravel(), mask[image].ravel()):
                total += float(m * (p - t) ** 2 * (1 + foreground * t))
    count = max(1, sum(labelled)) * images * HEIGHT * WIDTH
    assert found[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("foreground", [0.0, 3.0])
@pytest.mark.parametrize("layout", ["joints", "channels last"])
def test_heatmap_loss_has_the_right_gradient(foreground: float, layout: str) -> None:
    pred, target, mask = make_maps(4, 2, 3, layout=layout)
    mask = mask * 0.7  # a weight need not be 0 or 1
    labelled = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(
        lambda each: heatmap_loss(each, target, mask, labelled, foreground), pred.clone().requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_cost_what_their_values_cost(dtype: torch.dtype) -> None:
    (quarter, half), batch = make_batch()
    targets = Targets(
        tuple(each.float() for each in batch.heatmaps),  # type: ignore[arg-type]
        tuple(each.float() for each in batch.masks),  # type: ignore[arg-type]
        batch.tags,
        batch.labelled,
    )
    # Errors of 400 are squared to more than float16 holds.
    maps = [(400 * each).to(dtype).requires_grad_() for each in (quarter, half)]
    exact = [each.detach().double().requires_grad_() for each in maps]
    found, expected = pose_loss((maps[0], maps[1]), targets), pose_loss((exact[0], exact[1]), batch)
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    found["total"].backward()
    expected["total"].backward()
    for mine, theirs in zip(maps, exact):
        assert mine.grad is not None and mine.grad.dtype == dtype and theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        assert float((mine.grad.double() - theirs.grad).abs().max()) < 0.01 * scale


def test_an_unlabelled_or_wholly_masked_batch_costs_nothing() -> None:
    pred, target, mask = make_maps(1, 2, 3)
    none = torch.zeros(3, dtype=torch.bool)
    for loss in (
        heatmap_loss(pred.clone().requires_grad_(), target, mask, none),
        heatmap_loss(pred.clone().requires_grad_(), target, torch.zeros_like(mask)),
    ):
        assert loss.item() == 0
        loss.backward()


def test_foreground_weighs_errors_by_their_target() -> None:
    target = torch.tensor([0.0, 0.5, 1.0, 1.0]).reshape(1, 1, 2, 2)
    pred, mask = torch.zeros_like(target), torch.ones(1, 2, 2)
    assert heatmap_loss(pred, target, mask).item() == pytest.approx((0.25 + 1 + 1) / 4)
    weighed = heatmap_loss(pred, target, mask, foreground=4.0).item()
    assert weighed == pytest.approx((0.25 * 3 + 5 + 5) / 4)


def test_heatmap_loss_is_the_mean_over_pixels_and_labelled_joints() -> None:
    rng = np.random.default_rng(1)
    pred, target = rng.normal(size=(2, 3, JOINTS, HEIGHT, WIDTH))
    mask = (rng.random((3, HEIGHT, WIDTH)) < 0.7).astype(float)
    labelled = np.array([True, False, True, True])
    maps, goal, weight = (torch.from_numpy(array) for array in (pred, target, mask))

    error = (pred - target) ** 2 * mask[:, None]
    assert heatmap_loss(maps, goal, weight).item() == pytest.approx(error.mean())
    got = heatmap_loss(maps, goal, weight, torch.from_numpy(labelled)).item()
    assert got == pytest.approx(error[:, labelled].mean())


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    labelled=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5),
    foreground=st.sampled_from([0.0, 4.0]),
)
def test_a_batch_costs_the_mean_of_what_its_images_cost(
    seed: int, labelled: list[list[bool]], foreground: float
) -> None:
    pred, target, mask = make_maps(seed, len(labelled), 3)
    which = torch.tensor(labelled)
    leaf = pred.detach().clone().requires_grad_()
    loss = heatmap_loss(leaf, target, mask, which, foreground)
    loss.backward()
    assert leaf.grad is not None
    alone, grads = [], []
    for row in range(len(labelled)):
        one = slice(row, row + 1)
        part = pred[one].detach().clone().requires_grad_()
        value = composed(part, target[one], mask[one], which[row], foreground)
        value.backward()
        alone.append(value.item())
        grads.append(part.grad)
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-12)
    torch.testing.assert_close(leaf.grad, torch.cat(grads) / len(labelled), rtol=1e-12, atol=0)
    # In parts, weighed by their sizes, it is the same: shards and ranks may cut a batch anywhere.
    cut = len(labelled) // 2
    parts = [
        heatmap_loss(pred[rows], target[rows], mask[rows], which[rows], foreground).item() * len(which[rows])
        for rows in (slice(0, cut), slice(cut, None))
        if len(which[rows])
    ]
    assert loss.item() == pytest.approx(sum(parts) / len(labelled), rel=1e-12)


def test_joints_labelled_in_all_images_or_in_each_are_one_and_the_same() -> None:
    maps = make_maps(3, 4, 3)
    labelled = torch.tensor([True, False, True])
    expected = heatmap_loss(*maps, labelled, 2.0)
    assert torch.equal(heatmap_loss(*maps, labelled.repeat(4, 1), 2.0), expected)
    assert torch.equal(heatmap_loss(*maps, torch.ones(4, 3, dtype=torch.bool)), heatmap_loss(*maps))
    with pytest.raises(InputError, match=r"must be \(N, J\) or \(J,\), not \(3, 4\)"):
        heatmap_loss(*maps, torch.ones(3, 4, dtype=torch.bool))


def test_unlabelled_joints_and_masked_pixels_get_no_gradient() -> None:
    pred = torch.ones(1, JOINTS, HEIGHT, WIDTH, requires_grad=True)
    mask = torch.ones(1, HEIGHT, WIDTH)
    mask[:, :, 0] = 0.0
    labelled = torch.tensor([True, False, True, False])
    heatmap_loss(pred, torch.zeros_like(pred), mask, labelled).backward()
    assert pred.grad is not None
    learned = pred.grad[0] != 0.0
    expected = (labelled[:, None, None] & (mask[0] > 0)).expand_as(learned)
    assert torch.equal(learned, expected)


@dataclass
class Targets:
    heatmaps: tuple[torch.Tensor, torch.Tensor]
    masks: tuple[torch.Tensor, torch.Tensor]
    tags: torch.Tensor
    labelled: torch.Tensor


def make_batch() -> tuple[tuple[torch.Tensor, torch.Tensor], Targets]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    _, indices = make_tags(4, 2, 3)
    size, double = (HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH)
    outputs = (draw(2, 2 * JOINTS, *size), draw(2, JOINTS, *double))
    targets = Targets(
        (draw(2, JOINTS, *size), draw(2, JOINTS, *double)),
        (draw(2, *size).round(), draw(2, *double).round()),
        indices,
        torch.tensor([True, True, False, True]),
    )
    return outputs, targets


def test_pose_loss_is_the_weighted_sum_of_its_terms() -> None:
    outputs, batch = make_batch()
    terms = pose_loss(outputs, batch)
    quarter, half = outputs
    assert torch.equal(
        terms["heatmap_quarter"],
        heatmap_loss(quarter[:, :JOINTS], batch.heatmaps[0], batch.masks[0], batch.labelled),
    )
    assert torch.equal(
        terms["heatmap_half"], heatmap_loss(half, batch.heatmaps[1], batch.masks[1], batch.labelled)
    )
    push, pull = associative_embedding_loss(quarter[:, JOINTS:], batch.tags)
    assert torch.equal(terms["push"], push) and torch.equal(terms["pull"], pull)
    total = terms["heatmap_quarter"] + terms["heatmap_half"] + 1e-3 * (push + pull)
    assert terms["total"].item() == pytest.approx(total.item())

    weights = LossWeights(heatmap_quarter=0.0, heatmap_half=2.0, push=3.0, pull=5.0)
    total = 2.0 * terms["heatmap_half"] + 3.0 * push + 5.0 * pull
    assert pose_loss(outputs, batch, weights)["total"].item() == pytest.approx(total.item())


def test_a_few_steps_of_descent_lower_every_term() -> None:
    outputs, batch = make_batch()
    maps = [each.clone().requires_grad_() for each in outputs]
    weights = LossWeights(push=1.0, pull=1.0)
    before = pose_loss((maps[0], maps[1]), batch, weights)
    optimiser = torch.optim.Adam(maps, lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        pose_loss((maps[0], maps[1]), batch, weights)["total"].backward()
        optimiser.step()
    after = pose_loss((maps[0], maps[1]), batch, weights)
    for term, value in before.items():
        assert after[term] < 0.7 * value, term


@pytest.mark.parametrize("change", ["joints", "size", "mask", "people"])
def test_shapes_that_do_not_fit_are_named(change: str) -> None:
    (quarter, half), batch = make_batch()
    call: dict[str, Any] = {
        "joints": lambda: pose_loss((quarter[:, 1:], half), batch),
        "size": lambda: pose_loss((quarter, half[:, :, 1:]), batch),
        "mask": lambda: heatmap_loss(half, half, torch.ones(2, 3, 3)),
        "people": lambda: associative_embedding_loss(quarter, batch.tags),
    }
    with pytest.raises(InputError, match=r"not .*\d") as caught:
        call[change]()
    assert "\n" not in str(caught.value)


def sides() -> list[int]:
    """Return the sides of both spaces, and such as no stride divides."""
    spaces = [space(17) for space in SPACES.values()]
    found = {int(v) for space in spaces for c in space.choices if c.name == "resolution" for v in c.values}
    return sorted({*found, 65, 66, 67, 99, 130})


@pytest.mark.parametrize("side", sides())
def test_batches_fit_the_network_at_every_resolution(side: int) -> None:
    network: Any = tiny.supernet()
    batch = collate(tiny.people(), [0, 1], side, Augmentation(), 0, 0)
    outputs = network(batch.images, network.space.smallest())
    assert [map_size(side, stride) for stride in STRIDES] == [each.shape[-1] for each in outputs]
    terms = pose_loss(outputs, batch)
    quarter, half = (each.detach() for each in outputs)
    assert torch.equal(terms["heatmap_half"], heatmap_loss(half, batch.heatmaps[1], batch.masks[1]))
    # What the tags pull together is read where the heatmaps have their peaks.
    push, pull = reference(quarter[:, 17:].double(), batch.tags)
    assert terms["push"].item() == pytest.approx(push, rel=1e-4)
    assert terms["pull"].item() == pytest.approx(pull, rel=1e-4, abs=1e-9)
    flat, visible = batch.tags.unbind(-1)
    for image in range(2):
        assert (batch.heatmaps[0][image].flatten()[flat[image][visible[image] > 0]] == 1).all()
    terms["total"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(("height", "width"), [(96, 64), (67, 130), (128, 99)])
def test_maps_that_are_not_square(height: int, width: int) -> None:
    network: Any = tiny.supernet()
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    quarter, half = network(images, network.space.smallest())
    rng = np.random.default_rng(0)
    joints = rng.uniform(-4, (width + 4, height + 4, 3), (2, 3, 17, 3)).astype(np.float32)
    maps, tags = [], None
    for stride, each in zip(STRIDES, (quarter, half)):
        size = map_size(height, stride), map_size(width, stride)
        assert size == tuple(each.shape[2:])
        scaled = joints / np.float32([stride, stride, 1])
        maps.append(draw_heatmaps(scaled, *size))
        tags = tag_indices(scaled, *size) if tags is None else tags
    masks = [torch.ones(2, *each.shape[2:]) for each in maps]
    assert tags is not None
    batch = Targets((maps[0], maps[1]), (masks[0], masks[1]), torch.from_numpy(tags), torch.ones(17) > 0)
    terms = pose_loss((quarter, half), batch)
    # The same, read from the joints themselves.
    pulls = []
    for image in range(2):
        spreads = []
        for person in joints[image]:
            read = [
                float(quarter[image, 17 + joint, int(y / 4), int(x / 4)].detach())
                for joint, (x, y, v) in enumerate(person)
                if v > 0 and x > -4 and y > -4 and x / 4 < size_of(width) and y / 4 < size_of(height)
            ]
            spreads += [np.var(read)] if read else []
        pulls.append(np.mean(spreads))
    assert terms["pull"].item() == pytest.approx(np.mean(pulls), rel=1e-3)


def size_of(side: int) -> int:
    return map_size(side, STRIDES[0])


# -- top-down networks ---------------------------------------------------------------------------------------


def top_down_batch(count: int = 3, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    joints = generator.uniform(10, 80, (count, 5, 3)).astype(np.float32)
    joints[..., 2] = generator.integers(0, 3, (count, 5))
    joints[0, 0, 2], joints[0, 1, 2] = 0, 2
    images = torch.zeros((count, 128, 96, 3), dtype=torch.uint8)
    return RawPeople(images, joints).draw()


@pytest.mark.parametrize("scale", [0, 1])
def test_heatmap_mse_is_the_squared_error_of_labelled_joints(scale: int) -> None:
    batch = top_down_batch()
    maps = torch.randn(batch.heatmaps[scale].shape, generator=torch.Generator().manual_seed(0))
    maps.requires_grad_()
    terms = heatmap_mse((maps,), batch)
    squares = (maps - batch.heatmaps[scale]).square().mean(dim=(2, 3))
    each = [
        squares[n][batch.labelled[n]].mean() if batch.labelled[n].any() else torch.zeros(())
        for n in range(len(batch))
    ]
    assert set(terms) == {"heatmap", "total"}
    assert torch.allclose(terms["total"], torch.stack(each).mean())
    assert torch.equal(terms["heatmap"], terms["total"])
    terms["total"].backward()
    assert maps.grad is not None
    assert not maps.grad[~batch.labelled].any()
    assert maps.grad[batch.labelled].abs().sum() > 0
    assert torch.equal(heatmap_mse(maps, batch)["total"], terms["total"])
    heavy = heatmap_mse((maps,), batch, LossWeights(foreground=5.0))["total"]
    assert heavy > terms["total"]


def test_heatmap_mse_takes_one_output_of_a_known_size() -> None:
    batch = top_down_batch()
    with pytest.raises(InputError, match="one tensor, not 2"):
        heatmap_mse(batch.heatmaps, batch)
    with pytest.raises(InputError, match="shape of one of the targets"):
        heatmap_mse(torch.zeros(3, 5, 64, 48), batch)


def test_a_teacher_of_heatmaps_mixes_both_errors() -> None:
    """The gradient of the loss against the lesson is that of (1 - a) MSE(truth) + a MSE(teacher)."""
    batch, share = top_down_batch(), 0.3
    generator = torch.Generator().manual_seed(1)
    said = torch.rand(batch.heatmaps[0].shape, generator=generator)
    maps = torch.randn(said.shape, generator=generator, requires_grad=True)
    lesson = teach_heatmaps(batch, said, share)
    assert lesson.labelled.all()
    heatmap_mse((maps,), lesson)["total"].backward()
    mixed = (1 - share) * (maps - batch.heatmaps[0]).square() + share * (maps - said).square()
    alone = (maps - said).square()
    by_joint = torch.where(batch.labelled[:, :, None, None], mixed, alone)
    (expected,) = torch.autograd.grad(by_joint.mean(), maps)
    assert maps.grad is not None
    assert torch.allclose(maps.grad, expected, atol=1e-8)


def test_a_teacher_tells_of_its_own_joints_only() -> None:
    batch = top_down_batch()
    said = torch.full(batch.heatmaps[0].shape, 3.0)
    known = torch.tensor([True, False, True, True, True])
    lesson = teach_heatmaps(batch, said, 1.0, known)
    assert torch.equal(lesson.heatmaps[0][:, 1], batch.heatmaps[0][:, 1])
    assert lesson.heatmaps[0][:, 0].eq(1).all()  # heatmaps lie in 0..1
    assert (lesson.labelled == (batch.labelled | known)).all()
    assert not lesson.heatmaps[0].requires_grad
    none = teach_heatmaps(batch, said, 0.0, known)
    assert torch.equal(none.heatmaps[0][batch.labelled], batch.heatmaps[0][batch.labelled])


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("height", [1.0, 0.4])
def test_a_teacher_of_another_size_says_what_one_of_this_size_would(
    source: int, target: int, height: float
) -> None:
    """Neither shifted, nor wider, nor lower than Gaussians drawn at the size; less so at the border."""
    joints = np.random.default_rng(0).uniform((36, 36, 2), (60, 92, 2), (20, 5, 3)).astype(np.float32)
    batch = RawPeople(torch.zeros((20, 128, 96, 3), dtype=torch.uint8), joints).draw()
    lesson = teach_heatmaps(batch, height * batch.heatmaps[source], 1.0)
    assert [each.shape for each in lesson.heatmaps] == [each.shape for each in batch.heatmaps]
    expected = height * batch.heatmaps[target]
    assert (lesson.heatmaps[target] - expected).abs().max() < 0.1 * height
    assert (lesson.heatmaps[target] - expected).mean().abs() < 0.005 * height
    found, true = (
        decode_heatmaps(np.ascontiguousarray(each.numpy()))[..., :2]
        for each in (lesson.heatmaps[target], expected)
    )
    assert np.abs(found - true).max() < 0.25
    assert np.abs((found - true).mean(axis=(0, 1))).max() < 0.03
    plain = torch.nn.functional.interpolate(
        height * batch.heatmaps[source], expected.shape[2:], mode="bilinear"
    )
    assert (plain - expected).square().mean() > 20 * (lesson.heatmaps[target] - expected).square().mean()


def test_a_teacher_that_does_not_fit() -> None:
    batch = top_down_batch()
    with pytest.raises(InputError, match="people and joints"):
        teach_heatmaps(batch, torch.zeros(3, 4, 32, 24), 0.5)
    with pytest.raises(InputError, match="share"):
        teach_heatmaps(batch, torch.zeros(3, 5, 32, 24), 1.5)
    with pytest.raises(InputError, match="sigma"):
        teach_heatmaps(batch, torch.zeros(3, 5, 32, 24), 0.5, sigma=0.0)
