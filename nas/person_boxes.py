"""``--boxes``: where a top-down network looks for people in the pictures and videos of ``nas predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nas.inputs import Input
from search_spaces import InputError
from search_spaces.errors import shown
from search_spaces.files import read_json
from supernet.pose.annotations import FARTHEST
from supernet.pose.boxes import Box, whole_image

__all__ = ["WHOLE_IMAGE", "PersonBoxes", "read_person_boxes"]

WHOLE_IMAGE: Final = "whole-image"
_FORMS: Final = (
    "a list of mappings with file_name, bbox (x, y, width, height in pixels) and score, or a COCO data set"
    " (images, annotations)"
)


@dataclass(frozen=True)
class PersonBoxes:
    """People's boxes by picture.

    Attributes
    ----------
    by_name
        Boxes by the picture's file name, or the end of its path; None: every picture shows one person.
    where
        The file, for messages.
    """

    by_name: Mapping[str, tuple[Box, ...]] | None = None
    where: str = ""

    def check(self, inputs: Sequence[Input]) -> None:
        """Raise :class:`InputError` where the boxes cannot be those of these inputs."""
        if self.by_name is None:
            return
        moving = [each for each in inputs if each.kind != "picture"]
        if moving:
            raise InputError(
                f"--boxes: {self.where} has boxes of pictures; of the {moving[0].kind} '{moving[0].path}' the"
                f" whole image can be taken (--boxes {WHOLE_IMAGE})"
            )
        if not any(self._key(each.path) for each in inputs):
            names = ", ".join(list(self.by_name)[:3])
            raise InputError(
                f"--boxes: none of the pictures is in {self.where}, which has boxes of {names or 'none'}"
            )

    def _key(self, path: Path) -> str | None:
        """Return the longest end of the path that there are boxes of."""
        parts = path.as_posix().split("/")
        for first in range(len(parts)):
            name = "/".join(parts[first:])
            if self.by_name is not None and name in self.by_name:
                return name
        return None

    def of(self, path: Path, height: int, width: int) -> tuple[Box, ...]:
        """Return the boxes of one picture of that size; of a picture that the file does not name, none."""
        if self.by_name is None:
            return (whole_image(height, width),)
        name = self._key(path)
        return () if name is None else self.by_name[name]


def read_person_boxes(text: str, threshold: float = 0.0) -> PersonBoxes:
    """Return what ``--boxes`` names: ``whole-image``, or a JSON file.

    Parameters
    ----------
    text
        The option's value. The file is a list of ``file_name``, ``bbox`` and ``score``, or a COCO data set
        with the boxes of its ``annotations`` (without a ``score`` they are certain). Of a data set crowds are
        left out and, where it has several categories, everything but people: those with keypoints or
        the name "person".
    threshold
        Boxes with a lower score are left out.

    Raises
    ------
    InputError
        Naming the file, the entry and the field.
    """
    if text == WHOLE_IMAGE:
        return PersonBoxes()
    where = f"box file '{text}'"
    content = read_json(Path(text), "box file")
    if isinstance(content, dict):
        names, rows = _of_dataset(content, where)
    elif isinstance(content, list):
        names, rows = {}, content
    else:
        raise InputError(f"{where} must be {_FORMS}, not {type(content).__name__}")
    kinds = _people(content, where) if isinstance(content, dict) else None
    found: dict[str, list[Box]] = {name: [] for name in names.values()}
    for place, row in enumerate(rows):
        at = f"{where}: entry {place}"
        if not isinstance(row, dict):
            raise InputError(f"{at} must be a mapping, got {shown(row)}; the file is {_FORMS}")
        if names and (row.get("iscrowd") or (kinds is not None and row.get("category_id") not in kinds)):
            continue
        image = row.get("image_id")
        name = (names.get(image) if isinstance(image, int) else None) if names else row.get("file_name")
        if not isinstance(name, str) or not name:
            field = "image_id" if names else "file_name"
            raise InputError(f"{at} has the {field} {shown(row.get(field))}, which is no picture's")
        box = _box(row, at)
        if box.score >= threshold:
            found.setdefault(name, []).append(box)
    by_name = {name: tuple(sorted(each, key=lambda box: -box.score)) for name, each in found.items()}
    return PersonBoxes(by_name, where)


def _of_dataset(content: Mapping[str, Any], where: str) -> tuple[dict[Any, str], list[Any]]:
    """Return the file names by image id, and the annotations, of a COCO data set."""
    images, rows = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(rows, list):
        raise InputError(f"{where} must be {_FORMS}; it lacks a list of images or annotations")
    names = {}
    for place, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise InputError(f"{where}: image {place} needs an 'id' and a 'file_name', got {shown(image)}")
        if not isinstance(image.get("id"), int):
            raise InputError(f"{where}: image {place} needs a whole 'id', got {shown(image.get('id'))}")
        names[image["id"]] = image["file_name"]
    if not names:
        raise InputError(f"{where} has no images")
    return names, rows


def _people(content: Mapping[str, Any], where: str) -> list[int] | None:
    """Return the ids of the categories that are people; None where there are not several categories."""
    categories = content.get("categories")
    if not isinstance(categories, list) or len(categories) < 2:
        return None
    known = [each for each in categories if isinstance(each, dict) and isinstance(each.get("id"), int)]
    people = [each["id"] for each in known if each.get("keypoints") or each.get("name") == "person"]
    if not people:
        raise InputError(
            f"{where} has {len(categories)} categories, of which none has keypoints or the name 'person';"
            " leave only people in it"
        )
    return people


def _box(row: Mapping[str, Any], at: str) -> Box:
    sides, score = row.get("bbox"), row.get("score", 1.0)
    if not isinstance(sides, list) or len(sides) != 4 or not all(map(_is_number, [*sides, score])):
        raise InputError(
            f"{at} needs a 'bbox' of x, y, width, height in pixels and a 'score', got {shown(sides)} and"
            f" {shown(score)}"
        )
    try:
        x, y, width, height = map(float, sides)
        return Box(x, y, width, height, float(score))
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or -FARTHEST <= value <= FARTHEST  # no float holds the largest integers
