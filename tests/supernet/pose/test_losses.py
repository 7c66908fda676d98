"""Losses: equality with per-person loops, gradients, masks, and batches without people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.losses import LossWeights, associative_embedding_loss, heatmap_loss, pose_loss

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
