"""Training losses of pose networks: masked heatmap regression, associative embedding, teachers' heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from search_spaces.errors import InputError

__all__ = [
    "HeatmapTargets",
    "LossWeights",
    "PoseTargets",
    "associative_embedding_loss",
    "heatmap_loss",
    "heatmap_mse",
    "pose_loss",
    "resize_heatmaps",
    "teach_heatmaps",
]


class PoseTargets(Protocol):
    """What :func:`pose_loss` needs of a batch; :class:`supernet.pose.loader.Batch` has it."""

    @property
    def heatmaps(self) -> Sequence[Tensor]:
        """Target heatmaps (N, J, h, w) at 1/4 and at 1/2 resolution."""

    @property
    def masks(self) -> Sequence[Tensor]:
        """Weights (N, h, w) of the pixels at 1/4 and at 1/2 resolution; 0 where nothing is learned."""

    @property
    def tags(self) -> Tensor:
        """Where each person's joints lie in the 1/4 map: int64 (N, P, J, 2), flat index and visibility."""

    @property
    def labelled(self) -> Tensor:
        """Which joints are annotated in each image: bool (N, J)."""


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms of :func:`pose_loss`; the defaults are LitePose's published recipe.

    Attributes
    ----------
    heatmap_quarter, heatmap_half, push, pull
        Factors of the terms.
    foreground
        Extra weight of a heatmap's error where its target is 1; see :func:`heatmap_loss`.
    """

    heatmap_quarter: float = 1.0
    heatmap_half: float = 1.0
    push: float = 1e-3
    pull: float = 1e-3
    foreground: float = 0.0


class _WeightedSquares(torch.autograd.Function):
    """Mean over images of the mean over (labelled joints, H, W) of ``mask * weight * (pred - target)**2``.

    ``weight`` is ``1 + foreground * target``. The composed formula keeps three maps of the output's size for
    the backward pass and writes a dozen; this one keeps one and writes three or four. Where the mask holds 0
    and 1 only, the gradients are the composed formula's to the bit.
    """

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, mask: Tensor, labelled: Tensor, foreground: float
    ) -> Tensor:
        errors = pred - target
        masked = errors * mask[:, None]
        squares = errors.mul_(masked)
        if foreground:
            squares.addcmul_(squares, target, value=foreground)
        which = labelled.to(pred.dtype)
        count = which.sum(dim=1, keepdim=True).clamp(min=1.0)
        ctx.save_for_backward(masked, target, which, count)
        ctx.foreground = foreground
        return (squares.mean(dim=(2, 3)) * which / count).sum() / len(pred)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        masked, target, which, count = ctx.saved_tensors
        per_joint = grad / count * which
        factor = (2.0 * per_joint / (masked.numel() // masked.shape[1]))[:, :, None, None]
        if not ctx.foreground:
            return masked * factor, None, None, None, None
        weight = torch.mul(target, ctx.foreground, out=torch.empty_like(masked))
        return weight.add_(1.0).mul_(factor).mul_(masked), None, None, None, None


def _wide(values: Tensor) -> Tensor:
    """Return half-precision values in float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def heatmap_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    labelled: Tensor | None = None,
    foreground: float = 0.0,
) -> Tensor:
    """Masked mean squared error of heatmaps.

    The mean runs over the pixels and labelled joints of an image, then over the images. Masked pixels are
    counted (with error 0), as in the HigherHRNet and LitePose recipes: loss scales stay comparable with
    theirs. Images count alike however many of their joints are labelled, so the loss of a batch is the mean
    of its images' losses, in however many parts it is computed.

    Parameters
    ----------
    pred, target
        Heatmaps (N, J, H, W); the target is a constant. Fastest where both have one memory layout.
    mask
        Weights (N, H, W); 0 where nothing is known about people.
    labelled
        bool (N, J), or (J,) for all images alike: joints that are annotated; the others do not count, and an
        image without any costs nothing. ``None``: all do.
    foreground
        Squared errors are multiplied by ``1 + foreground * target``. Few of a target's pixels are not zero,
        so a short training from scratch otherwise finds the joints that vary most (wrists, ankles) last.

    Returns
    -------
    A scalar in float32 or better. It can be differentiated once, by ``pred``.

    Raises
    ------
    InputError
        If shapes disagree.
    """
    if pred.shape != target.shape or mask.shape != (pred.shape[0], *pred.shape[2:]):
        raise InputError(
            f"heatmaps, targets and mask must be (N, J, H, W), (N, J, H, W) and (N, H, W), "
            f"not {tuple(pred.shape)}, {tuple(target.shape)} and {tuple(mask.shape)}"
        )
    if labelled is None:
        labelled = torch.ones((), dtype=torch.bool, device=pred.device)
    elif labelled.shape not in (pred.shape[1:2], pred.shape[:2]):
        raise InputError(
            f"the labelled joints of heatmaps {tuple(pred.shape)} must be (N, J) or (J,),"
            f" not {tuple(labelled.shape)}"
        )
    loss: Tensor = _WeightedSquares.apply(  # type: ignore[no-untyped-call]
        _wide(pred), _wide(target), _wide(mask), labelled.expand(pred.shape[:2]), foreground
    )
    return loss


def associative_embedding_loss(tags: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Push and pull terms of associative embedding (arXiv 1611.05424, equation 1).

    A person's reference tag is the mean of the tags read at its visible joints. *Pull* is the squared
    distance of a joint's tag to its person's reference, averaged over joints, then people. *Push* is
    ``exp(-d**2)`` of the distance between two references, summed over ordered pairs of different people
    and divided by ``2 * n * (n - 1)`` (HigherHRNet's convention, sigma 1). Both are averaged over the
    batch; images with no person add nothing to either, with one person nothing to push.

    Parameters
    ----------
    tags
        Tag maps (N, J, H, W).
    indices
        int64 (N, P, J, 2): flat index into (J, H, W) and visibility (0: ignored) of each person's joints;
        rows without a visible joint are no people.

    Returns
    -------
    push, pull
        Scalars, in float32 or better.

    Raises
    ------
    InputError
        If shapes disagree.
    """
    if indices.ndim != 4 or indices.shape[::2] != tags.shape[:2] or indices.shape[3] != 2:
        raise InputError(
            f"tags and their indices must be (N, J, H, W) and (N, P, J, 2), "
            f"not {tuple(tags.shape)} and {tuple(indices.shape)}"
        )
    visible = indices[..., 1] > 0
    place = indices[..., 0] * visible
    width, cells = tags.shape[3], tags.shape[2] * tags.shape[3]
    image = torch.arange(len(tags), device=tags.device)[:, None, None]
    # Reading by four coordinates spares a copy of the maps, which are a strided part of the output.
    read = _wide(tags[image, place // cells, place % cells // width, place % width])
    weight = visible.to(read.dtype)

    joints = weight.sum(dim=2)  # (N, P)
    present = (joints > 0).to(read.dtype)
    people = present.sum(dim=1)  # (N,)
    joints = joints.clamp(min=1.0)
    reference = (read * weight).sum(dim=2) / joints
    spread = ((read - reference[..., None]).square() * weight).sum(dim=2) / joints
    pull = (spread.sum(dim=1) / people.clamp(min=1.0)).mean()

    pairs = present[:, :, None] * present[:, None, :]
    pairs = pairs - torch.diag_embed(present)
    near = torch.exp(-(reference[:, :, None] - reference[:, None, :]).square()) * pairs
    push = (near.sum(dim=(1, 2)) / (2.0 * people * (people - 1.0)).clamp(min=1.0)).mean()
    return push, pull


def pose_loss(
    outputs: tuple[Tensor, Tensor], batch: PoseTargets, weights: LossWeights | None = None
) -> dict[str, Tensor]:
    """All terms of the bottom-up training loss.

    Parameters
    ----------
    outputs
        What the network returns: (N, 2J, H/4, W/4), J heatmaps then J tags, and (N, J, H/2, W/2) heatmaps.
    batch
        Targets, masks and tag indices at the same sizes.
    weights
        Factors of the terms; by default :class:`LossWeights`.

    Returns
    -------
    dict
        ``heatmap_quarter``, ``heatmap_half``, ``push``, ``pull`` (unweighted) and ``total`` (weighted sum).

    Raises
    ------
    InputError
        If the network's joints or map sizes are not the batch's.
    """
    weights = weights or LossWeights()
    quarter, half = outputs
    joints = batch.heatmaps[0].shape[1]
    labelled = batch.labelled
    if quarter.shape[1] != 2 * joints or half.shape[1] != joints:
        raise InputError(
            f"a network for {joints} joints gives {2 * joints} and {joints} maps, "
            f"not {quarter.shape[1]} and {half.shape[1]}; build it for the data's skeleton"
        )
    heat, tags = torch.split(quarter, joints, dim=1)
    push, pull = associative_embedding_loss(tags, batch.tags)
    terms = {
        "heatmap_quarter": heatmap_loss(
            heat, batch.heatmaps[0], batch.masks[0], labelled, weights.foreground
        ),
        "heatmap_half": heatmap_loss(half, batch.heatmaps[1], batch.masks[1], labelled, weights.foreground),
        "push": push,
        "pull": pull,
    }
    total = (
        weights.heatmap_quarter * terms["heatmap_quarter"]
        + weights.heatmap_half * terms["heatmap_half"]
        + weights.push * push
        + weights.pull * pull
    )
    return {**terms, "total": total}


# -- top-down networks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatmapTargets:
    """Targets that do not come from annotations alone; see :func:`teach_heatmaps` and :class:`PoseTargets`.

    Attributes
    ----------
    heatmaps, masks, tags, labelled
        As in :class:`supernet.pose.loader.Batch`.
    """

    heatmaps: tuple[Tensor, ...]
    masks: Sequence[Tensor]
    tags: Tensor
    labelled: Tensor


def heatmap_mse(
    output: Tensor | Sequence[Tensor], batch: PoseTargets, weights: LossWeights | None = None
) -> dict[str, Tensor]:
    """Return the training loss of a top-down network: the squared error of its only heatmaps.

    Joints without a target (:attr:`PoseTargets.labelled`) do not count; see :func:`heatmap_loss`.

    Parameters
    ----------
    output
        Heatmaps (N, J, h, w), or the tuple of them alone that the network returns.
    batch
        Targets of one or several sizes; those of the output's size are taken.
    weights
        Only ``foreground`` is used: there is one term.

    Returns
    -------
    dict
        ``heatmap`` and ``total``, which is the same.

    Raises
    ------
    InputError
        If there are several outputs, or no target has the size of the output.
    """
    (maps,) = (output,) if isinstance(output, Tensor) else _only(output)
    for target, mask in zip(batch.heatmaps, batch.masks, strict=True):
        if target.shape == maps.shape:
            foreground = 0.0 if weights is None else weights.foreground
            loss = heatmap_loss(maps, target, mask, batch.labelled, foreground)
            return {"heatmap": loss, "total": loss}
    sizes = ", ".join(str(tuple(target.shape)) for target in batch.heatmaps)
    raise InputError(
        f"a network's heatmaps must have the shape of one of the targets ({sizes}), not {tuple(maps.shape)}"
    )


def _only(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(outputs) != 1:
        raise InputError(f"a top-down network gives heatmaps alone, one tensor, not {len(outputs)}")
    return outputs


@torch.no_grad()
def teach_heatmaps(
    batch: PoseTargets,
    teacher_maps: Tensor,
    share: float,
    known: Tensor | None = None,
    *,
    sigma: float = 2.0,
) -> HeatmapTargets:
    """Return the targets of a batch with a teacher's heatmaps worked in (see :mod:`supernet.distillation`).

    The loss against them is ``(1 - share) (p - y)^2 + share (p - t)^2``, up to what does not depend on the
    prediction ``p``. Joints without a target ``y`` are learned from the teacher's ``t`` alone.

    Parameters
    ----------
    batch
        What the annotations tell, at one or several sizes.
    teacher_maps
        (N, J, h, w). Where targets have another size they are resized, and their Gaussians made as wide, in
        cells, as the targets' are; see :func:`resize_heatmaps`. What lies beyond 0..1 is cut.
    share
        Weight of the teacher, 0 to 1, where the annotations tell of the joint.
    known
        bool (J,): joints that the teacher tells of; None: all.
    sigma
        Standard deviation of the Gaussians in all heatmaps, in cells of theirs.

    Raises
    ------
    InputError
        If the teacher's people or joints are not the batch's, or the share is out of its range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"a teacher's share lies in 0..1, not at {share}")
    if teacher_maps.ndim != 4 or teacher_maps.shape[:2] != batch.labelled.shape:
        raise InputError(
            f"a teacher's heatmaps must be of the batch's {tuple(batch.labelled.shape)} people and joints,"
            f" not {tuple(teacher_maps.shape)}"
        )
    told = torch.ones_like(batch.labelled) if known is None else known.expand_as(batch.labelled)
    shares = (torch.where(batch.labelled, share, 1.0) * told)[:, :, None, None]
    said = _wide(teacher_maps)
    blends = []
    for truth in batch.heatmaps:
        sized = resize_heatmaps(said, (truth.shape[2], truth.shape[3]), sigma)
        blends.append(truth.lerp(sized.to(truth.dtype).clamp(0.0, 1.0), shares.to(truth.dtype)))
    return HeatmapTargets(tuple(blends), batch.masks, batch.tags, batch.labelled | told)


def resize_heatmaps(maps: Tensor, size: tuple[int, int], sigma: float = 2.0) -> Tensor:
    """Return heatmaps of another size whose Gaussians are again ``sigma`` cells wide, of the new cells.

    On maps of half the size a Gaussian takes half the cells, and is widened by a blur, which keeps its place;
    heights are restored. On larger maps it takes more cells, and is narrowed by a power of the map's values
    relative to its highest. Cells cover the same part of the input, so nothing is shifted.

    Parameters
    ----------
    maps
        (N, J, h, w); negative values count as 0 where the size changes.
    size
        Height and width wanted.
    sigma
        Standard deviation of the Gaussians before and after, in cells.

    Raises
    ------
    InputError
        If sigma is not positive.
    """
    if not 0 < sigma < float("inf"):
        raise InputError(f"heatmaps have a positive sigma, not {sigma}")
    if tuple(maps.shape[2:]) == size:
        return maps
    ratio, maps = size[0] / maps.shape[2], maps.clamp(min=0.0)
    if ratio < 1:
        maps = _blurred(maps, sigma * (ratio**-2 - 1) ** 0.5) / ratio**2
    resized = functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    if ratio > 1:
        highest = resized.amax(dim=(2, 3), keepdim=True)
        resized = (resized / highest.clamp(min=1e-6)).pow(ratio**2) * highest
    return resized


def _blurred(maps: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of ``sigma`` cells; what lies beyond the border is the mirror image."""
    height, width = maps.shape[2:]
    kernels = [_gaussian_matrix(side, sigma).to(maps) for side in (height, width)]
    return kernels[0] @ maps @ kernels[1].T


@lru_cache(maxsize=16)
def _gaussian_matrix(side: int, sigma: float) -> Tensor:
    """Return the matrix (side, side) that blurs a line of cells, mirrored at both ends."""
    places = torch.arange(side, dtype=torch.float64)
    offsets = [places[:, None] - other for other in (places, -1 - places, 2 * side - 1 - places)]
    matrix = sum((torch.exp(-each.square() / (2 * sigma**2)) for each in offsets), torch.zeros(side, side))
    return (matrix / matrix.sum(dim=1, keepdim=True)).float()
