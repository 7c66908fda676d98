"""What goes wrong in which joint: PCK per joint, and the errors that keep an AP from being 1.

The kinds of error are those of Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose
Estimation" (ICCV 2017). A detection belongs to a person from an OKS of .1, by COCO's greedy
assignment. With the similarity ``ks = exp(-d^2 / (2 s^2 k^2))`` of one joint (OKS is its mean; d: distance,
s^2: the person's area, k = 2 sigma), a labelled joint of a person who was found is

- *good* from a ks of .85;
- *jitter* from .5: near the right place;
- *inversion* below that, where it lies (ks from .5) at the same person's mirror joint: left for right;
- *swap*, where it lies at this or the mirror joint of another person in the image;
- *miss* else. Where it could be an inversion and a swap, the more similar place decides.

A person to whom no detection belongs is *missed*. A detection that belongs to nobody is a *duplicate* if it
is similar (OKS from .1) to a person whom another detection has taken, else *background*; detections on people
who do not count are neither. *Scoring* is what the order of the detections costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from search_spaces.errors import InputError
from supernet.pose.matching import Pairs, assign, matches_of, pair_people
from supernet.pose.scoring import (
    BoolArray,
    DetectedPeople,
    FloatArray,
    IntArray,
    ScoringProtocol,
    TruePeople,
    read_people,
)
from supernet.pose.skeleton import Skeleton, canonical_joint

__all__ = ["JOINT_ERRORS", "Diagnosis", "ErrorBreakdown", "JointAccuracy", "diagnose"]

JOINT_ERRORS: Final = ("jitter", "inversion", "swap", "miss")
_BELONGS, _GOOD, _NEAR = 0.1, 0.85, 0.5
Reference = Literal["box", "torso"]


def _share(part: IntArray, whole: IntArray) -> FloatArray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _plain(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


@dataclass(frozen=True)
class JointAccuracy:
    """Percentage of correct keypoints (PCK), per joint.

    Yang and Ramanan (TPAMI 2013): a joint is right if it is no farther from its place than
    ``fraction`` of the person's ``reference``. Only labelled joints of people who count are asked for.

    Attributes
    ----------
    joints
        Names of the J joints scored.
    fraction, reference
        ``box``: the longer side of the person's box. ``torso``: the distance from left shoulder to right hip
        (Sapp and Taskar, CVPR 2013); people without these two labelled are left out.
    labelled
        (J,): joints asked for.
    found
        (J,): those of people to whom a detection belongs.
    right
        (J,): those of them that are right.
    """

    joints: tuple[str, ...]
    fraction: float
    reference: Reference
    labelled: IntArray
    found: IntArray
    right: IntArray

    @property
    def of_found(self) -> FloatArray:
        """(J,): share of right ones among people who were found; NaN without any."""
        return _share(self.right, self.found)

    @property
    def of_all(self) -> FloatArray:
        """(J,): share of right ones where all joints of a missed person are wrong; NaN without any."""
        return _share(self.right, self.labelled)

    def mean(self, values: FloatArray) -> float:
        """Return the mean over the joints that occur; each counts the same."""
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return everything as a mapping, the shares included."""
        return {
            "fraction": self.fraction,
            "reference": self.reference,
            "joints": list(self.joints),
            "labelled": self.labelled.tolist(),
            "found": self.found.tolist(),
            "right": self.right.tolist(),
            "of_found": _plain(self.of_found),
            "of_all": _plain(self.of_all),
            "mean_of_found": _plain(np.array([self.mean(self.of_found)]))[0],
            "mean_of_all": _plain(np.array([self.mean(self.of_all)]))[0],
        }


@dataclass(frozen=True)
class ErrorBreakdown:
    """Joints and people by what became of them; the module says what the words mean.

    Attributes
    ----------
    joints
        Names of the J joints scored.
    good
        (J,): joints of people who were found.
    errors
        Of those people, by kind of :data:`JOINT_ERRORS`, (J,) each.
    unfound
        (J,): joints of missed people.
    people, missed
        People who count, and those of them to whom no detection belongs.
    detections, duplicates, background
        Detections that count (the best of each image), and those that belong to nobody.
    ap
        As it is.
    repaired
        What the AP would be without one kind of error: joints of that kind put where they belong, or
        ``missed`` people not asked for, ``duplicates`` or ``background`` left out, or (``scoring``) each
        person's best detection scored by its OKS, the others by 0. Without duplicates the AP is lower where
        they are the better ones.
    """

    joints: tuple[str, ...]
    good: IntArray
    errors: Mapping[str, IntArray]
    unfound: IntArray
    people: int
    missed: int
    detections: int
    duplicates: int
    background: int
    ap: float
    repaired: Mapping[str, float]

    @property
    def found(self) -> IntArray:
        """(J,): labelled joints of people who were found."""
        return self.good + sum(self.errors.values(), np.zeros(len(self.joints), np.int64))

    def to_json(self) -> dict[str, Any]:
        """Return everything as a mapping; ``share`` is of the joints of people who were found."""
        total = max(int(self.found.sum()), 1)
        kinds = {"good": self.good, **self.errors}
        return {
            "joints": list(self.joints),
            "counts": {kind: values.tolist() for kind, values in kinds.items()},
            "share": {kind: float(values.sum() / total) for kind, values in kinds.items()},
            "unfound": self.unfound.tolist(),
            "people": self.people,
            "missed": self.missed,
            "detections": self.detections,
            "duplicates": self.duplicates,
            "background": self.background,
            "AP": self.ap,
            "AP_repaired": dict(self.repaired),
        }


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found."""

    accuracy: JointAccuracy
    errors: ErrorBreakdown


def diagnose(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    joints: Sequence[int] | None = None,
    protocol: ScoringProtocol = "coco",
    max_detections: int = 20,
    *,
    fraction: float = 0.2,
    reference: Reference = "box",
) -> Diagnosis:
    """Tell per joint how often it is right, and how it is wrong where it is.

    Parameters
    ----------
    ground_truth, detections, joints, protocol, max_detections
        As for :func:`supernet.pose.metrics.keypoint_ap`.
    skeleton
        Names, sigmas and mirror pairs of the annotations' joints.
    fraction, reference
        See :class:`JointAccuracy`.

    Raises
    ------
    InputError
        As :func:`supernet.pose.metrics.keypoint_ap` does, and if the torso is the reference where the joints
        scored have none.
    """
    if not fraction > 0:
        raise InputError(f"PCK needs a fraction above 0, not {fraction}")
    truth, found, scored = read_people(ground_truth, detections, skeleton.sigmas, joints, protocol)
    sigmas = np.asarray(skeleton.sigmas, np.float64)[scored]
    names = tuple(skeleton.joints[joint] for joint in scored)
    mirrored = [int(skeleton.flip_index[joint]) for joint in scored]
    mirror = np.array([scored.index(m) if m in scored else at for at, m in enumerate(mirrored)])
    pairs = pair_people(truth, found, sigmas, max_detections)
    partner = assign(truth, pairs, np.array([_BELONGS]))[0, 0].astype(np.int64)
    # Detections of people who count, and who these are.
    places = np.flatnonzero(partner >= 0)
    places = places[~truth.ignored[partner[places]]]
    people = partner[places]
    points = found.keypoints[pairs.order[places]]
    accuracy = _accuracy(truth, people, points, names, fraction, _lengths(truth, reference, names), reference)
    kinds = _kinds(truth, people, points, sigmas, mirror)
    missed = ~truth.ignored
    missed[people] = False
    labelled = truth.keypoints[..., 2] > 0
    nobody = partner < 0
    taken = np.zeros(len(truth.image), np.bool_)
    taken[people] = True
    similar = np.zeros(len(nobody), np.bool_)
    similar[pairs.detection[(pairs.oks >= _BELONGS) & taken[pairs.person]]] = True
    stray = {"duplicates": nobody & similar, "background": nobody & ~similar}
    sides = _Sides(truth, found, pairs, sigmas, protocol, max_detections)
    repaired = {
        kind: sides.with_joints(places, people, kinds == number)
        for number, kind in enumerate(JOINT_ERRORS, start=1)
    }
    repaired["missed"] = sides.without_people(missed)
    repaired |= {kind: sides.without_detections(which) for kind, which in stray.items()}
    repaired["scoring"] = sides.with_true_scores()
    errors = ErrorBreakdown(
        joints=names,
        good=(kinds == 0).sum(axis=0),
        errors={kind: (kinds == n).sum(axis=0) for n, kind in enumerate(JOINT_ERRORS, start=1)},
        unfound=labelled[missed].sum(axis=0),
        people=int((~truth.ignored).sum()),
        missed=int(missed.sum()),
        detections=len(pairs.order),
        duplicates=int(stray["duplicates"].sum()),
        background=int(stray["background"].sum()),
        ap=sides.ap(),
        repaired=repaired,
    )
    return Diagnosis(accuracy, errors)


def _lengths(truth: TruePeople, reference: Reference, names: Sequence[str]) -> FloatArray:
    """Return each person's reference length (P,), NaN where it is unknown."""
    if reference == "box":
        return np.maximum(truth.box[:, 2], truth.box[:, 3])
    known = [canonical_joint(name) for name in names]
    ends = ("left_shoulder", "right_hip")
    if any(end not in known for end in ends):
        raise InputError(f"PCK by the torso needs {' and '.join(ends)} among the joints; take the box")
    first, last = (truth.keypoints[:, known.index(end)] for end in ends)
    length = np.hypot(first[:, 0] - last[:, 0], first[:, 1] - last[:, 1])
    return np.where((first[:, 2] > 0) & (last[:, 2] > 0), length, np.nan)


def _accuracy(
    truth: TruePeople,
    people: IntArray,
    points: FloatArray,
    names: tuple[str, ...],
    fraction: float,
    lengths: FloatArray,
    reference: Reference,
) -> JointAccuracy:
    asked = (truth.keypoints[..., 2] > 0) & (~truth.ignored & ~np.isnan(lengths))[:, None]
    distance = np.linalg.norm(points - truth.keypoints[people, :, :2], axis=2)
    right = asked[people] & (distance <= fraction * lengths[people, None])
    return JointAccuracy(
        names, fraction, reference, asked.sum(axis=0), asked[people].sum(axis=0), right.sum(axis=0)
    )


def _similarity(
    truth: TruePeople, people: IntArray, points: FloatArray, sigmas: FloatArray, joints: IntArray
) -> FloatArray:
    """Return how well points (n, J) lie at those joints of people (n,); 0 where they are unlabelled."""
    where = truth.keypoints[people][:, joints]
    with np.errstate(over="ignore"):  # infinitely far is far
        squared = ((points - where[..., :2]) ** 2).sum(axis=2)
    scale = truth.area[people, None] + np.spacing(1)
    return np.where(where[..., 2] > 0, np.exp(-squared / (2 * scale * (2 * sigmas[joints]) ** 2)), 0.0)


def _kinds(
    truth: TruePeople, people: IntArray, points: FloatArray, sigmas: FloatArray, mirror: IntArray
) -> IntArray:
    """Return what each joint of people (n,) found at points (n, J, 2) is: 0 good, 1.. :data:`JOINT_ERRORS`.

    Joints that are not labelled are -1.
    """
    same = np.arange(len(sigmas))
    own = _similarity(truth, people, points, sigmas, same)
    inverted = np.where(mirror == same, 0.0, _similarity(truth, people, points, sigmas, mirror))
    swapped = np.zeros_like(own)
    doubtful = np.flatnonzero((own < _NEAR).any(axis=1))
    others = np.flatnonzero(~truth.crowd)
    others = others[np.argsort(truth.image[others], kind="stable")]
    image = truth.image[others]
    begin, end = (np.searchsorted(image, truth.image[people[doubtful]], side) for side in ("left", "right"))
    for step in range(int((end - begin).max(initial=0))):  # the step-th person of each image
        rows = doubtful[begin + step < end]
        other = others[(begin + step)[begin + step < end]]
        rows, other = rows[other != people[rows]], other[other != people[rows]]
        for joints in (same, mirror):
            near = _similarity(truth, other, points[rows], sigmas, joints)
            swapped[rows] = np.maximum(swapped[rows], near)
    elsewhere = np.where(inverted >= swapped, 2, 3)
    wrong = np.where(np.maximum(inverted, swapped) >= _NEAR, elsewhere, 4)
    kinds = np.where(own >= _GOOD, 0, np.where(own >= _NEAR, 1, wrong))
    return np.where(truth.keypoints[people, :, 2] > 0, kinds, -1)


@dataclass(frozen=True)
class _Sides:
    """Both sides of the comparison, to ask what the AP were if something were different."""

    truth: TruePeople
    found: DetectedPeople
    pairs: Pairs
    sigmas: FloatArray
    protocol: ScoringProtocol
    max_detections: int

    def ap(self) -> float:
        return float(matches_of(self.truth, self.found, self.pairs, self.protocol).ap()[0])

    def _anew(self, truth: TruePeople, found: DetectedPeople) -> float:
        pairs = pair_people(truth, found, self.sigmas, self.max_detections)
        return replace(self, truth=truth, found=found, pairs=pairs).ap()

    def _keeping(self, places: BoolArray) -> DetectedPeople:
        """Return the detections at those places, in the order of the pairs."""
        order, found = self.pairs.order[places], self.found
        return DetectedPeople(
            found.image[order], found.keypoints[order], found.score[order], found.box[order]
        )

    def with_joints(self, places: IntArray, people: IntArray, which: BoolArray) -> float:
        if not which.any():
            return self.ap()
        keypoints = self.found.keypoints.copy()
        rows = self.pairs.order[places]
        keypoints[rows] = np.where(which[..., None], self.truth.keypoints[people, :, :2], keypoints[rows])
        return self._anew(self.truth, replace(self.found, keypoints=keypoints))

    def without_people(self, which: BoolArray) -> float:
        """Nobody left to find is nothing left to do wrong: that has an AP of 1."""
        ignored = self.truth.ignored | which
        return 1.0 if ignored.all() else self._anew(replace(self.truth, ignored=ignored), self.found)

    def without_detections(self, which: BoolArray) -> float:
        return self._anew(self.truth, self._keeping(~which)) if which.any() else self.ap()

    def with_true_scores(self) -> float:
        """The best detection of each person first, the others last."""
        size = len(self.pairs.order)
        best, own = np.zeros((2, size))
        np.maximum.at(best, self.pairs.detection, self.pairs.oks)
        kept = replace(self._keeping(np.ones(size, np.bool_)), score=best)
        pairs = pair_people(self.truth, kept, self.sigmas, self.max_detections)
        partner = assign(self.truth, pairs, np.array([_BELONGS]))[0, 0]
        at_own = pairs.person == partner[pairs.detection]
        own[pairs.order[pairs.detection[at_own]]] = pairs.oks[at_own]
        return self._anew(self.truth, replace(kept, score=own))
