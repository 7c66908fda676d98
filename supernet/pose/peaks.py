"""People from the peaks that a network itself picks (:mod:`supernet.onnx_peaks`), without any maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search_spaces.errors import InputError
from supernet.pose.decode import FloatArray, GroupingConfig, match, person_scores

__all__ = ["people_of"]


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
