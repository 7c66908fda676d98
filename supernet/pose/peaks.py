"""People from the peaks that a network itself picks (:mod:`supernet.onnx_peaks`), without any maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search_spaces.errors import InputError, shown
from supernet.pose.decode import FloatArray, GroupingConfig, match, person_scores

__all__ = ["PickedPeaks", "people_of", "picked_by", "refuse_passes"]


@dataclass(frozen=True)
class PickedPeaks:
    """How a network picks peaks itself, as its file says.

    Attributes
    ----------
    maps
        Height and width of the maps that they are picked in: the frame of places.
    most
        Peaks of each joint; of a top-down network 1.
    kernel, threshold
        The window in which a peak is the maximum, pixels, and what it is above.
    """

    maps: tuple[int, int]
    most: int
    kernel: int
    threshold: float

    def to_json(self) -> dict[str, Any]:
        """Return it as :meth:`from_json` reads it."""
        return {**asdict(self), "maps": list(self.maps)}

    @classmethod
    def from_json(cls, told: object, where: str) -> PickedPeaks:
        """Return what a file says.

        Raises
        ------
        InputError
            Naming ``where``, if it is not what :meth:`to_json` gives.
        """
        fields = told if isinstance(told, dict) else {}
        maps, threshold = fields.get("maps"), fields.get("threshold")
        most, kernel = fields.get("most"), fields.get("kernel")
        sides = maps if isinstance(maps, list) and len(maps) == 2 else [None, None]
        sound = all(type(n) is int and 0 < n < 1 << 20 for n in (*sides, most, kernel))
        sound = sound and isinstance(threshold, int | float) and 0 <= threshold <= 1e9
        if not sound or threshold is None or not int(kernel or 0) % 2:
            raise InputError(f"{where}: 'peaks' cannot be {shown(told)}; export it anew")
        height, width = (int(side or 0) for side in sides)
        return cls((height, width), int(most or 0), int(kernel or 0), float(threshold))


def picked_by(network: object) -> PickedPeaks | None:
    """Return how a network picks peaks itself (its attribute ``peaks``); None if it returns maps."""
    found = getattr(network, "peaks", None)
    return found if isinstance(found, PickedPeaks) else None


def refuse_passes(*, flip: bool, scales: Sequence[float] = (1.0,), project: bool = False) -> None:
    """Refuse settings that need the maps of a network that gives none.

    Raises
    ------
    InputError
        Naming the first of them.
    """
    asked = {"the flip test": flip, "several scales": len(scales) > 1, "projection": project}
    for name, wanted in asked.items():
        if wanted:
            raise InputError(
                f"{name} needs maps, and a network that picks peaks itself gives none: leave it out, or take"
                " the file that was exported without --peaks"
            )


def people_of(
    values: FloatArray,
    places: FloatArray,
    tags: FloatArray,
    config: GroupingConfig | None = None,
    joint_order: Sequence[int] | None = None,
    most: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return the people in one image's peaks.

    They equal those of :func:`supernet.pose.decode.decode` with ``adjust`` quarter and without ``refine``:
    joints that a person lacks would be filled in from maps, which are not there, so they stay 0.

    Parameters
    ----------
    values
        Peaks' values (J, K), falling; 0 where there is none.
    places
        Where they lie, (J, K, 2): x, y in map pixels, pixel ``i`` covering ``[i, i + 1)``.
    tags
        Their tags (J, K).
    config
        Its thresholds are used; ``detection_threshold`` is no lower than that by which peaks were picked.
    joint_order, most
        As of :func:`supernet.pose.decode.decode`.

    Returns
    -------
    people, scores
        As of :func:`supernet.pose.decode.decode`.

    Raises
    ------
    InputError
        If shapes disagree, or ``joint_order`` is not a permutation of the joints.
    """
    if values.ndim != 2 or places.shape != (*values.shape, 2) or tags.shape != values.shape:
        raise InputError(
            f"peaks are values (J, K), places (J, K, 2) and tags (J, K), not {values.shape}, {places.shape}"
            f" and {tags.shape}"
        )
    # Grouping looks at places never; they are found again by the number of the peak.
    numbers = np.zeros((*values.shape, 2), np.int64)
    numbers[..., 0] = np.arange(values.shape[1])
    people = match(values, numbers, tags[..., None], config, joint_order)
    found = people[:, :, 2] > 0
    person, joint = np.nonzero(found)
    people[person, joint, :2] = places[joint, people[person, joint, 0].astype(np.int64)]
    scores = person_scores(people)
    if most is not None:
        best = np.argsort(-scores, kind="stable")[:most]
        people, scores = people[best], scores[best]
    return people, scores
