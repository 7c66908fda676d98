"""Which joints a person has: names, mirror pairs, OKS sigmas, limbs and the order of grouping, as data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, did_you_mean, shown
from search_spaces.files import check_keys, read_json, read_yaml

__all__ = [
    "COCO17",
    "CROWDPOSE14",
    "DEFAULT_SIGMA",
    "SKELETONS",
    "Skeleton",
    "canonical_joint",
    "get_skeleton",
    "joint_map",
]

DEFAULT_SIGMA: Final = 0.08
"""OKS sigma of a joint that no published skeleton names: about the mean of COCO's body joints."""

_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"top_head": "head", "head_top": "head", "top_of_head": "head", "upper_neck": "neck", "thorax": "neck"}
)
"""Other names of a joint; where a skeleton has several of them, the first is the joint."""


def canonical_joint(name: str) -> str:
    """Return the name under which joints of different data sets are compared.

    Lower case, underscores for blanks and dashes, ``left``/``right`` in full and in front; the head's top
    is ``head`` (CrowdPose calls it ``head``, others ``top_head``).

    >>> canonical_joint("R-Elbow"), canonical_joint("top_head"), canonical_joint("kneeLeft")
    ('right_elbow', 'head', 'left_knee')
    """
    word = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    parts = [part for part in re.split(r"[\s_\-.]+", word.lower()) if part]
    sides = {"l": "left", "left": "left", "r": "right", "right": "right"}
    side = [sides[part] for part in parts if part in sides]
    rest = "_".join(part for part in parts if part not in sides)
    rest = _ALIASES.get(rest, rest)
    return f"{side[0]}_{rest}" if len(side) == 1 and rest else _ALIASES.get("_".join(parts), "_".join(parts))


_LARGEST_SIGMA = 1e300
"""Integers of a file may be too large for a float."""


@dataclass(frozen=True)
class Skeleton:
    """The joints of a person and how they belong together. Indices are 0-based.

    Attributes
    ----------
    name
        Name shown to the user and stored with checkpoints.
    joints
        One distinct name per joint; J of them.
    flip_pairs
        Pairs of joints that change places when the image is mirrored; the other joints stay.
    sigmas
        Falloff of object keypoint similarity per joint, as fraction of the person's size (COCO's ``sigmas``).
    limbs
        Pairs of joints that are drawn as connected.
    order
        Order in which joint-by-joint grouping visits the joints; when empty it is derived from the limbs
        (see :attr:`grouping_order`).

    Raises
    ------
    InputError
        If names repeat, an index is out of range, a sigma is not positive, or a joint is paired twice.
    """

    name: str
    joints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    limbs: tuple[tuple[int, int], ...]
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where, count = f"skeleton '{self.name}'", len(self.joints)
        if count == 0:
            raise InputError(f"{where} needs at least one joint")
        for joint in self.joints:
            if self.joints.count(joint) > 1:
                raise InputError(
                    f"{where}: joint names must be distinct; {shown(joint)} is there more than once"
                )
        for what, pairs in (("flip_pairs", self.flip_pairs), ("limbs", self.limbs)):
            for pair in pairs:
                if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= joint < count for joint in pair):
                    raise InputError(
                        f"{where}: {what} must be pairs of two different joints 0..{count - 1}, "
                        f"not {shown(list(pair))}"
                    )
        paired = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(paired)) != len(paired):
            raise InputError(
                f"{where}: a joint may be in one of the flip_pairs only, got {shown(list(self.flip_pairs))}"
            )
        if len(self.sigmas) != count or not all(math.isfinite(s) and s > 0 for s in self.sigmas):
            raise InputError(
                f"{where}: sigmas must be {count} positive numbers, got {shown(list(self.sigmas))}"
            )
        if self.order and sorted(self.order) != list(range(count)):
            raise InputError(
                f"{where}: order must name every joint 0..{count - 1} once, got {shown(list(self.order))}"
            )

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def flip_index(self) -> NDArray[np.int64]:
        """Joint that each joint becomes in the mirrored image, shape (J,); its own inverse."""
        index = np.arange(len(self.joints), dtype=np.int64)
        for a, b in self.flip_pairs:
            index[a], index[b] = b, a
        return index

    @property
    def grouping_order(self) -> tuple[int, ...]:
        """Order of joint-by-joint grouping: from the head or torso outward, each joint once.

        Known skeletons have theirs as data (:attr:`order`). COCO's is the published one; CrowdPose's goes
        from the torso outward. Whoever is found first decides with whose tags the others are compared, and
        head top and neck are poor beginnings: on 191 COCO train photos and LitePose-M's maps, over 150 orders
        at random, those that begin there reach .510 and .512 AP (.533 and .530 with flip test), those that
        begin at the shoulders or hips .512 (.535). What comes after the torso makes no difference that shows.

        Otherwise the walk is breadth-first along the limbs, from the unpaired joints (head, neck, pelvis) or,
        when all are paired, from the joints with most limbs.
        """
        if self.order:
            return self.order
        count = len(self.joints)
        neighbours: list[list[int]] = [[] for _ in range(count)]
        for a, b in self.limbs:
            neighbours[a].append(b)
            neighbours[b].append(a)
        paired = {joint for pair in self.flip_pairs for joint in pair}
        most = max(len(each) for each in neighbours)
        start = [joint for joint in range(count) if joint not in paired and neighbours[joint]]
        start = start or [joint for joint in range(count) if len(neighbours[joint]) == most]
        distance = dict.fromkeys(start, 0)
        queue = list(start)
        for joint in queue:
            for other in neighbours[joint]:
                if other not in distance:
                    distance[other] = distance[joint] + 1
                    queue.append(other)
        return tuple(sorted(range(count), key=lambda joint: (distance.get(joint, count), joint)))

    @classmethod
    def from_json(cls, value: object, where: str = "skeleton") -> Skeleton:
        """Build a skeleton from a JSON or YAML mapping; pairs may name joints or give 0-based indices.

        ``joints`` is needed; ``flip_pairs`` default to the joints whose names differ in left/right only,
        ``sigmas`` to the published value of the joint of that name (else :data:`DEFAULT_SIGMA`).
        """
        fields = check_keys(value, {"name", "joints", "flip_pairs", "sigmas", "limbs", "order"}, where)
        joints = fields.get("joints")
        if not isinstance(joints, list) or not joints or not all(isinstance(joint, str) for joint in joints):
            raise InputError(f"{where}: 'joints' must be a list of joint names, got {shown(joints)}")
        name = str(fields.get("name", where))

        def indices(what: str, row: object) -> tuple[int, ...]:
            if not isinstance(row, list | tuple):
                raise InputError(
                    f"{where}: '{what}' must hold joint names or 0-based indices, got {shown(row)}"
                )
            found: list[int] = []
            for joint in row:
                if isinstance(joint, str):
                    if joint not in joints:
                        raise InputError(
                            f"{where}: '{what}' names joint {shown(joint)}{did_you_mean(joint, joints)}"
                        )
                    found.append(joints.index(joint))
                elif isinstance(joint, int) and not isinstance(joint, bool):
                    found.append(joint)
                else:
                    raise InputError(
                        f"{where}: '{what}' must hold joint names or 0-based indices, got {shown(joint)}"
                    )
            return tuple(found)

        def pairs(what: str) -> tuple[tuple[int, int], ...]:
            rows = fields.get(what) or []
            if not isinstance(rows, list):
                raise InputError(f"{where}: '{what}' must be a list of pairs of joints, got {shown(rows)}")
            out: list[tuple[int, int]] = []
            for row in rows:
                pair = indices(what, row)
                if len(pair) != 2:
                    raise InputError(f"{where}: '{what}' must be a list of pairs of joints, got {shown(row)}")
                out.append((pair[0], pair[1]))
            return tuple(out)

        sigmas = fields.get("sigmas")
        if sigmas is None:
            sigmas = [_published_sigma(joint) for joint in joints]
        if not isinstance(sigmas, list | tuple) or not all(
            isinstance(s, int | float) and not isinstance(s, bool) and not abs(s) > _LARGEST_SIGMA
            for s in sigmas
        ):
            raise InputError(f"{where}: 'sigmas' must be a list of numbers, got {shown(sigmas)}")
        flip_pairs = pairs("flip_pairs") if "flip_pairs" in fields else _mirror_pairs(joints)
        limbs, order = pairs("limbs"), indices("order", fields.get("order") or [])
        try:
            return cls(name, tuple(joints), flip_pairs, tuple(float(s) for s in sigmas), limbs, order)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that :meth:`from_json` reads."""
        return {
            "name": self.name,
            "joints": list(self.joints),
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
            "limbs": [list(pair) for pair in self.limbs],
            "order": list(self.grouping_order),
        }

    @classmethod
    def from_category(cls, category: Mapping[str, Any], where: str) -> Skeleton:
        """Return the skeleton of a COCO ``categories`` entry (``keypoints``, 1-based ``skeleton``).

        When the joints are those of a registered skeleton, in its order, that one is returned: its sigmas
        and limbs are known, while a published file can be wrong about limbs (CrowdPose's has COCO's).
        """
        joints = category.get("keypoints")
        if not isinstance(joints, list) or not joints or not all(isinstance(joint, str) for joint in joints):
            raise InputError(
                f"{where}: a category's 'keypoints' must be a list of joint names, got {shown(joints)}"
            )
        names = tuple(canonical_joint(joint) for joint in joints)
        for known in SKELETONS.values():
            if names == tuple(canonical_joint(joint) for joint in known.joints):
                return known
        limbs = category.get("skeleton") or []
        if not isinstance(limbs, list) or not all(
            isinstance(limb, list | tuple) and all(isinstance(end, int) for end in limb) for limb in limbs
        ):
            raise InputError(
                f"{where}: a category's 'skeleton' must be pairs of 1-based joints, got {shown(limbs)}"
            )
        return cls.from_json(
            {
                "name": str(category.get("name", "person")),
                "joints": list(joints),
                "limbs": [[end - 1 for end in limb] for limb in limbs],
            },
            where,
        )


def _mirror_pairs(joints: Sequence[str]) -> tuple[tuple[int, int], ...]:
    names = [canonical_joint(joint) for joint in joints]
    return tuple(
        (index, names.index("right_" + name.removeprefix("left_")))
        for index, name in enumerate(names)
        if name.startswith("left_") and "right_" + name.removeprefix("left_") in names
    )


def _published_sigma(joint: str) -> float:
    name = canonical_joint(joint)
    for skeleton in SKELETONS.values():
        for known, sigma in zip(skeleton.joints, skeleton.sigmas, strict=True):
            if canonical_joint(known) == name:
                return sigma
    return DEFAULT_SIGMA


def _read_registry() -> Mapping[str, Skeleton]:
    text = resources.files(__package__).joinpath("skeletons.json").read_text(encoding="utf-8")
    return MappingProxyType(
        {
            name: Skeleton.from_json({"name": name, **fields}, f"skeletons.json: {name}")
            for name, fields in json.loads(text).items()
        }
    )


SKELETONS: Final[Mapping[str, Skeleton]] = _read_registry()
"""Skeletons known by name. Sigmas: COCO's evaluation code; CrowdPose's evaluation code."""
COCO17: Final = SKELETONS["coco17"]
CROWDPOSE14: Final = SKELETONS["crowdpose14"]


def get_skeleton(name_or_path: str | Path) -> Skeleton:
    """Return a registered skeleton, or the one that a JSON or YAML file describes.

    Raises
    ------
    InputError
        If the name is unknown (with the nearest known one) or the file is not a skeleton.
    """
    name = str(name_or_path)
    if name in SKELETONS:
        return SKELETONS[name]
    path = Path(name_or_path)
    if path.suffix in {".json", ".yaml", ".yml"}:
        value = (
            read_json(path, "skeleton file") if path.suffix == ".json" else read_yaml(path, "skeleton file")
        )
        if isinstance(value, dict):
            value = {"name": path.stem, **value}
        return Skeleton.from_json(value, f"skeleton file '{path}'")
    raise InputError(
        f"skeleton must be a registered name or a .json/.yaml file, not '{name}'"
        f"{did_you_mean(name, SKELETONS)}"
    )


def joint_map(source: Skeleton, target: Skeleton) -> NDArray[np.int64]:
    """Return for each joint of ``target`` its index in ``source`` or -1, shape (len(target),).

    Joints of the same name belong together, then those of the same :func:`canonical_joint`; COCO's joints
    5..16 are CrowdPose's 0..11. No joint is used twice: of MPII's ``upper_neck`` and ``thorax`` the first is
    another skeleton's ``neck``.
    """
    index = np.full(len(target), -1, dtype=np.int64)
    ranks = {name: rank for rank, name in enumerate(_ALIASES, start=1)}

    def ranked(skeleton: Skeleton) -> list[int]:
        return sorted(range(len(skeleton)), key=lambda joint: ranks.get(skeleton.joints[joint], 0))

    free = ranked(source)
    for same in (str, canonical_joint):
        for place in ranked(target):
            found = [each for each in free if same(source.joints[each]) == same(target.joints[place])]
            if found and index[place] < 0:
                index[place] = found[0]
                free.remove(found[0])
    return index
