"""Knowledge distillation: archs that learn from another network's maps beside the annotations.

Two teachers are possible. *In place* the largest arch of a sandwich step teaches the step's other archs
(Yu & Huang, arXiv 1903.05134; BigNAS, Yu et al., arXiv 2003.11142): its outputs of the very same
pass are the teacher's, so that distillation costs no forward pass. An *external* teacher is a trained plain
network, run once per batch for all archs of the step.

Heatmaps. With a share ``a`` (0.5 in Zhang, Zhu & Ye, arXiv 1811.05419, who distil heatmaps for pose), the
loss ``(1 - a) (p - y)^2 + a (p - t)^2`` of a prediction ``p``, a drawn target ``y`` and a teacher's ``t`` is
``(p - b)^2`` with ``b = (1 - a) y + a t``, up to what does not depend on ``p``. So distillation is another
target, made once per step, and the loss of every arch is computed as without it, with the same scale, mask
and weights. Where a joint is not annotated there is no ``y``, and ``b = t``. Heatmaps lie in 0..1 by
construction, so what a teacher says beyond is cut.

Tags. Associative embedding determines tags only up to what grouping does not see: grouping reads differences
of tags within an image. Those are what is distilled, as relational distillation does (Park et al., arXiv
1904.05068): with errors ``e = tag - teacher's tag`` the mean square of ``e_i - e_j`` over all pairs of places
is twice the variance of ``e`` in the image, so it is computed without pairs. The places are where the target
heatmap is above the threshold of detection, weighed by its height.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from search_spaces.errors import InputError
from supernet.base import Subnet
from supernet.paradigms import BOTTOM_UP, Outputs, Paradigm, paradigm_of
from supernet.pose.losses import LossWeights, PoseTargets
from supernet.pose.skeleton import Skeleton, joint_map

__all__ = ["DistillConfig", "Distillation", "Teacher"]


@dataclass(frozen=True)
class DistillConfig:
    """What archs learn from beside the annotations (``train.distill``); see :mod:`supernet.distillation`.

    Attributes
    ----------
    source
        ``none``; ``largest``: the largest arch of a sandwich step teaches the step's other archs; or
        ``teacher``: the network in ``teacher`` teaches all archs.
    share
        Weight of the teacher's heatmaps against the annotations', 0 to 1. 1 is the in-place distillation of
        arXiv 1903.05134, where only the largest arch sees the truth; 0.5 is arXiv 1811.05419's. Joints that
        an image's annotations lack are learned from the teacher alone.
    tags
        Factor of the distance between the tags' differences and the teacher's; 0 distils no tags.
    teacher
        Checkpoint of a trained plain network: ``.safetensors`` (or an emitted folder), or a research
        ``.pth``. Its joints are matched by name; it sees the images of the step, at the step's resolution.
    start
        Share of the run's steps that pass before the teacher is heard, from 0 to below 1; until then
        annotations alone teach. In place the teacher is itself a beginner at first.
    """

    source: Literal["none", "largest", "teacher"] = "none"
    share: float = 0.5
    tags: float = 1e-3
    teacher: Path | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.source not in ("none", "largest", "teacher"):
            raise InputError(f"train.distill.source is none, largest or teacher, not '{self.source}'")
        if not 0 <= self.share <= 1:
            raise InputError(f"train.distill.share lies in 0..1, not at {self.share}")
        if not 0 <= self.tags < float("inf"):
            raise InputError(f"train.distill.tags is at least 0, not {self.tags}")
        if not 0 <= self.start < 1:
            raise InputError(f"train.distill.start lies in 0..1 (1 itself excluded), not at {self.start}")
        if self.source == "none" and self.start:
            raise InputError(
                "train.distill.start says when a teacher begins to be heard, but train.distill.source is none"
            )
        if self.source == "teacher" and self.teacher is None:
            raise InputError(
                "train.distill.source: teacher needs a checkpoint; name it in train.distill.teacher"
            )
        if self.source != "teacher" and self.teacher is not None:
            raise InputError(
                f"train.distill.teacher names '{self.teacher}', which train.distill.source: {self.source}"
                " would not use; set the source to teacher"
            )

    def in_folder(self, folder: Path) -> DistillConfig:
        """Return the settings with a relative path of the teacher taken to start at ``folder``."""
        return self if self.teacher is None else replace(self, teacher=folder / self.teacher)


class Teacher:
    """A trained plain network that answers for the joints of another skeleton.

    It is left in evaluation mode and without gradients, whatever is done with what it says. Calls change
    nothing, so that several threads may ask at once.

    Parameters
    ----------
    network
        The trained network; used as it is.
    joints
        The joints that it predicts.
    wanted
        The joints that are learned. Those that it lacks (by :func:`supernet.pose.skeleton.joint_map`) are
        learned from annotations alone.

    Raises
    ------
    InputError
        If its joints are not as many as it predicts, or none of them is wanted.
    """

    def __init__(self, network: Subnet, joints: Skeleton, wanted: Skeleton) -> None:
        if len(joints) != network.joints:
            raise InputError(
                f"the teacher predicts {network.joints} joints, but skeleton '{joints.name}' has"
                f" {len(joints)}; name the skeleton that it was trained for"
            )
        index = torch.from_numpy(joint_map(joints, wanted))
        if not bool((index >= 0).any()):
            raise InputError(
                f"none of the teacher's joints ({', '.join(joints.joints)}) is one of the data's"
                f" ({', '.join(wanted.joints)}); take a teacher that was trained for them"
            )
        self.network = network.eval().requires_grad_(False)
        self.known = index >= 0
        self._index, self._dtype = index.clamp(min=0), torch.float32
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.network.arch.id, self._index, self.known)).encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move the teacher to a device, where it computes in ``dtype`` (autocast); return it."""
        self._dtype = dtype
        self.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.known, self._index = self.known.to(device), self._index.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Return what a network of the wanted joints would; joints that are not :attr:`known` hold nonsense.

        Shapes are those of the network's family, such as :class:`supernet.litepose.LitePose`: (N, 2J, H/4,
        W/4) and (N, J, H/2, W/2).
        """
        narrow = self._dtype != torch.float32
        with torch.autocast(images.device.type, self._dtype) if narrow else nullcontext():
            outputs = self.network(images)
        joints = self.network.joints
        return tuple(
            maps[:, torch.cat([self._index + joints * part for part in range(maps.shape[1] // joints)])]
            for maps in outputs
        )


class Distillation:
    """What the archs of a step learn from, by the settings; holds no state of a step.

    Parameters
    ----------
    config
        The settings.
    teacher
        The external teacher, where they ask for one.
    paradigm
        That of the networks that learn.
    sigma
        Standard deviation of the targets' Gaussians, in cells.

    Raises
    ------
    InputError
        If the settings and the teacher disagree, or the teacher is of another paradigm or another sigma.
    """

    def __init__(
        self,
        config: DistillConfig | None = None,
        teacher: Teacher | None = None,
        paradigm: Paradigm = BOTTOM_UP,
        sigma: float = 2.0,
    ) -> None:
        self.config, self.teacher = config or DistillConfig(), teacher
        self.paradigm, self.sigma = paradigm, sigma
        if (self.config.source == "teacher") != (teacher is not None):
            given = "none was given" if teacher is None else "one was given"
            raise InputError(f"train.distill.source is {self.config.source}, but as a teacher {given}")
        if teacher is not None and paradigm_of(teacher.network) is not paradigm:
            raise InputError(
                f"the teacher is a {paradigm_of(teacher.network).name} network, but those that learn are"
                f" {paradigm.name}: their maps mean different things; take a {paradigm.name} teacher"
            )
        if teacher is not None and not math.isclose(teacher.network.sigma, sigma, rel_tol=1e-3):
            raise InputError(
                f"the teacher gives Gaussians of {teacher.network.sigma:g} cells, but train.sigma is"
                f" {sigma:g}: no network can learn both; set train.sigma to {teacher.network.sigma:g}, or"
                " take another teacher"
            )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what :meth:`loss` returns, ``total`` first."""
        return (*self.paradigm.loss_terms, "distill")

    @property
    def identity(self) -> str:
        """What a resumed training must have in common: the settings, and the teacher by its weights."""
        config = self.config
        if config.source == "none":
            return "none"
        who = config.source if self.teacher is None else f"teacher {self.teacher.fingerprint}"
        late = f", from {config.start} of the run on" if config.start else ""
        return f"{who}, share {config.share}, tags {config.tags}{late}"

    def at(self, done: float) -> Distillation:
        """Return what holds when this share of the run's steps is done: before the start, no teacher."""
        return self if done >= self.config.start else Distillation(paradigm=self.paradigm, sigma=self.sigma)

    def targets(self, batch: PoseTargets, images: Tensor) -> PoseTargets:
        """Return what the step's first arch learns from: the teacher's lesson, or the batch as it is."""
        if self.teacher is None:
            return batch
        said, known = self.teacher(images), self.teacher.known
        return self.paradigm.teach(batch, said, self.config.share, known, sigma=self.sigma)

    def later_targets(self, batch: PoseTargets, first: PoseTargets, outputs: Outputs) -> PoseTargets:
        """Return what the step's other archs learn from, given the outputs of the first, the largest one."""
        if self.config.source != "largest":
            return first
        return self.paradigm.teach(batch, outputs, self.config.share, sigma=self.sigma)

    def loss(self, outputs: Outputs, targets: PoseTargets, weights: LossWeights) -> dict[str, Tensor]:
        """Return the terms of the paradigm's loss, and ``distill``: what the teacher adds as a term.

        For bottom-up networks that is the tags' distance; ``total`` holds it with the factor of the settings.
        What is learned from a teacher's heatmaps is in the targets.
        """
        terms = self.paradigm.loss(outputs, targets, weights)
        distance = self.paradigm.lesson_distance(outputs, targets) if self.config.tags else None
        if distance is None:
            return {**terms, "distill": torch.zeros_like(terms["total"])}
        return {**terms, "distill": distance, "total": terms["total"] + self.config.tags * distance}
