"""People that were found, written in COCO's formats: as a list of results, and as a complete data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from search_spaces.files import atomic_path
from supernet.pose.dataset import BOX_AREA
from supernet.pose.skeleton import Skeleton

__all__ = ["CATEGORY", "FoundPicture", "person_boxes", "write_dataset_json", "write_results_json"]

CATEGORY: Final = 1
"""Id of the category ``person``, as in COCO."""


@dataclass(frozen=True)
class FoundPicture:
    """A picture and the people found in it.

    Attributes
    ----------
    id, file_name, height, width
        Its COCO record.
    people
        (P, J, 3): x, y in pixels and the heatmap's value; all of them.
    scores
        (P,).
    shown
        bool (P, J): joints that are sure enough to be called found; a person without any is not.
    extra
        Further fields of its record.
    """

    id: int
    file_name: str
    height: int
    width: int
    people: NDArray[np.float64]
    scores: NDArray[np.float64]
    shown: NDArray[np.bool_]
    extra: Mapping[str, Any] = field(default_factory=dict)


def person_boxes(people: NDArray[np.float64], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the boxes around people's shown joints and their areas: x, y, width, height, area, (P, 5).

    Boxes are at least a pixel wide and high; the area is :data:`~supernet.pose.dataset.BOX_AREA` of the box.
    People without a shown joint get zeros.
    """
    boxes = np.zeros((len(people), 5))
    for row, joints, known in zip(boxes, people, shown, strict=True):
        if known.any():
            low, high = joints[known, :2].min(axis=0), joints[known, :2].max(axis=0)
            size = np.maximum(high - low, 1.0)
            row[:] = *low, *size, BOX_AREA * size.prod()
    return boxes


def write_results_json(path: Path, pictures: Iterable[FoundPicture]) -> None:
    """Write COCO *results*, atomically: one entry per person with all joints, as evaluation takes them."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        _write_list(stream, (row for picture in pictures for row in _results(picture)))
        stream.write("\n")


def write_dataset_json(
    path: Path,
    pictures: Sequence[FoundPicture],
    skeleton: Skeleton,
    info: Mapping[str, Any],
    videos: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a COCO *data set*, atomically: images, people as annotations, the category with its skeleton.

    Annotation tools read it, and so does :class:`~supernet.pose.dataset.PoseDataset`. Shown joints have
    visibility 2, the others are zeros; the values of all joints are in ``keypoint_scores``.

    Parameters
    ----------
    path
        The file.
    pictures
        What was found.
    skeleton
        The joints.
    info
        The file's ``info``.
    videos
        Records of the videos that pictures are frames of, if any.
    """
    category = {
        "id": CATEGORY,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
    }
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"info": {_line(info)},\n"categories": [{_line(category)}],\n')
        if videos:
            stream.write('"videos": ')
            _write_list(stream, videos)
            stream.write(",\n")
        stream.write('"images": ')
        _write_list(stream, map(_image, pictures))
        stream.write(',\n"annotations": ')
        people = (row for picture in pictures for row in _annotations(picture))
        _write_list(stream, ({"id": number, **row} for number, row in enumerate(people, start=1)))
        stream.write("}\n")


def _image(picture: FoundPicture) -> dict[str, Any]:
    return {
        "id": picture.id,
        "file_name": picture.file_name,
        "width": picture.width,
        "height": picture.height,
        **picture.extra,
    }


def _results(picture: FoundPicture) -> Iterator[dict[str, Any]]:
    for joints, score in zip(picture.people, picture.scores, strict=True):
        yield {
            "image_id": picture.id,
            "category_id": CATEGORY,
            "keypoints": joints.ravel().tolist(),
            "score": float(score),
        }


def _annotations(picture: FoundPicture) -> Iterator[dict[str, Any]]:
    boxes = np.round(person_boxes(picture.people, picture.shown), 4)
    for joints, score, known, box in zip(
        picture.people, picture.scores, picture.shown, boxes.tolist(), strict=True
    ):
        if known.any():
            keypoints = np.where(known[:, None], np.column_stack([joints[:, :2], np.full(len(joints), 2)]), 0)
            yield {
                "image_id": picture.id,
                "category_id": CATEGORY,
                "iscrowd": 0,
                "bbox": box[:4],
                "area": box[4],
                "num_keypoints": int(known.sum()),
                "keypoints": [int(v) if v == int(v) else v for v in keypoints.ravel().tolist()],
                "score": float(score),
                "keypoint_scores": joints[:, 2].tolist(),
            }


def _line(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _write_list(stream: TextIO, rows: Iterable[object]) -> None:
    """Write a JSON list with one entry a line, entry by entry: videos have many."""
    separator = "[\n"
    for row in rows:
        stream.write(separator + _line(row))
        separator = ",\n"
    stream.write("[]" if separator == "[\n" else "\n]")
