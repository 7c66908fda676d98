"""Pictures of people with annotated joints, in COCO's file format and in any skeleton."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from search_spaces.files import read_json
from supernet.pose.annotations import (
    BOX_AREA,
    choose_category,
    person_area,
    person_box,
    read_crowd_flag,
    read_file_name,
    read_id,
    read_image_size,
    read_keypoints,
    read_reference,
    read_table,
    region,
)
from supernet.pose.skeleton import Skeleton, joint_map

__all__ = [
    "BOX_AREA",
    "PoseDataset",
    "PoseSample",
    "decode_image",
    "file_is_there",
    "read_image",
    "read_image_file",
]


@dataclass(frozen=True)
class PoseSample:
    """One picture and what is known about the people in it.

    Attributes
    ----------
    image
        RGB, uint8 (H, W, 3).
    joints
        float32 (P, J, 3): x, y in pixels (pixel centres at integers) and v: 0 unlabelled, 1 occluded,
        2 visible. Only people with at least one labelled joint are listed.
    mask
        bool (H, W): True where the loss counts; False on crowds and on people without labelled joints.
    image_id
        The picture's id in its data set.
    """

    image: NDArray[np.uint8]
    joints: NDArray[np.float32]
    mask: NDArray[np.bool_]
    image_id: int


@dataclass(frozen=True)
class _Image:
    """One picture of the index: its file, size, and annotations in the target skeleton."""

    file_name: str
    height: int
    width: int
    record: dict[str, Any]
    annotations: tuple[dict[str, Any], ...]
    joints: NDArray[np.float32]
    """(annotations, J, 3)"""


def file_is_there(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is not an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_image(
    path: str | Path, height: int | None = None, width: int | None = None, *, upright: bool = False
) -> NDArray[np.uint8]:
    """Decode an image file as RGB, uint8 (H, W, 3).

    Pixels are taken as stored, since COCO-style files annotate those; when that contradicts the size expected
    and the orientation noted in the file explains it, the orientation is applied. With ``upright`` it always
    is: the picture as people see it. Gray becomes RGB, 16 bits become 8, transparency is left out.

    Raises
    ------
    InputError
        If the file is missing, is not a complete image, or has another size than expected.
    """
    return decode_image(read_image_file(path), path, height, width, upright=upright)


def read_image_file(path: str | Path) -> bytes:
    """Return the content of an image file; :class:`InputError` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"image '{path}' cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise InputError(f"image {str(path)!r} cannot be read: {error}") from None


def decode_image(
    data: bytes,
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    upright: bool = False,
) -> NDArray[np.uint8]:
    """Decode the content of the image file ``path`` as :func:`read_image` does."""
    size: tuple[int, int] | None = None
    readings = (cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, cv2.IMREAD_COLOR_RGB)
    for flags in readings[1:] if upright else readings:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
        except cv2.error:
            image = None
        if image is None:
            raise InputError(
                f"image '{path}' ({len(data)} bytes) is truncated or not an image; fetch it again"
            )
        size = (image.shape[0], image.shape[1])
        if height is None or width is None or size == (height, width):
            return np.asarray(image, dtype=np.uint8)
    assert size is not None
    raise InputError(
        f"image '{path}' is {size[1]}x{size[0]} pixels but its annotations are for {width}x{height}; "
        "use the original image"
    )


class PoseDataset:
    """A COCO-format keypoint file and its folder of images.

    Parameters
    ----------
    annotations
        JSON file with ``images``, ``annotations`` and ``categories``.
    images
        Folder of the images, or None where only :meth:`ground_truth` is wanted.
    skeleton
        Joints wanted. By default those of the file's category; otherwise joints are matched by name, and
        those that the file lacks are unlabelled.
    category
        Name of the category to take, needed where several have keypoints.

    Attributes
    ----------
    skeleton
        The joints of everything handed out.
    source_skeleton
        The joints of the file.
    labelled
        bool (J,): which joints of ``skeleton`` the file annotates.
    ids
        Ids of the images, ascending.

    Raises
    ------
    InputError
        If a file is missing or malformed, or no joint of ``skeleton`` is annotated; one line says which.
    """

    skeleton: Skeleton
    source_skeleton: Skeleton
    labelled: NDArray[np.bool_]
    ids: tuple[int, ...]

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None,
        skeleton: Skeleton | None = None,
        *,
        category: str | None = None,
    ) -> None:
        content = read_json(annotations, "annotation file")
        folder = None if images is None else Path(images)
        if folder is not None and not folder.is_dir():
            raise InputError(f"image folder '{folder}' does not exist or is not a folder")
        self._setup(content, folder, skeleton, category, f"annotation file '{annotations}'")

    @classmethod
    def from_dict(
        cls,
        content: Mapping[str, Any],
        images: str | Path | Mapping[int, NDArray[np.uint8]] | None,
        skeleton: Skeleton | None = None,
        *,
        category: str | None = None,
        where: str = "annotations",
    ) -> PoseDataset:
        """Build a data set from parsed annotations and a folder of images, or the images (RGB) by id."""
        self = PoseDataset.__new__(PoseDataset)
        source = Path(images) if isinstance(images, str) else images
        self._setup(content, source, skeleton, category, where)
        return self

    def _setup(
        self,
        content: object,
        images: Path | Mapping[int, NDArray[np.uint8]] | None,
        skeleton: Skeleton | None,
        category: str | None,
        where: str,
    ) -> None:
        self.where = where
        self._source = images
        tables = {key: _rows(content, key, where) for key in ("images", "annotations", "categories")}
        chosen = choose_category(tables["categories"], category, where)
        self.source_skeleton = Skeleton.from_category(chosen, where)
        self.skeleton = skeleton or self.source_skeleton
        mapping = joint_map(self.source_skeleton, self.skeleton)
        self.labelled = mapping >= 0
        if not self.labelled.any():
            theirs, ours = ", ".join(self.source_skeleton.joints), ", ".join(self.skeleton.joints)
            raise InputError(
                f"{where} annotates no joint of skeleton '{self.skeleton.name}' ({ours}); it has {theirs}"
            )
        category_id = int(chosen["id"])
        self._category = {"id": category_id, "name": str(chosen.get("name", "person"))}
        self._index = _build_index(tables, category_id, mapping, len(self.source_skeleton), where)
        self.ids = tuple(sorted(self._index))
        self._check_images()

    def _check_images(self) -> None:
        if isinstance(self._source, Path):
            missing = [i for i in self.ids if not file_is_there(self._source / self._index[i].file_name)]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(self.ids)} images of {self.where} are not in folder "
                    f"'{self._source}': first '{self._index[missing[0]].file_name}'"
                )
        elif self._source is not None:
            missing = [i for i in self.ids if i not in self._source]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(self.ids)} images of {self.where} are not given: id {missing[0]}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the image ids, file names, sizes and people (boxes, areas, joints), not of the pixels."""
        digest = hashlib.sha256(repr(self.skeleton.joints).encode())
        for image_id in self.ids:
            entry = self._index[image_id]
            boxes = [(a["bbox"], a["area"], a["iscrowd"]) for a in entry.annotations]
            digest.update(repr((image_id, entry.file_name, entry.height, entry.width, boxes)).encode())
            digest.update(entry.joints.tobytes())
            unscored = [a["id"] for a in entry.annotations if a["unscored"] and a["num_keypoints"]]
            digest.update(repr(unscored).encode() if unscored else b"")
        return digest.hexdigest()[:12]

    def files(self) -> dict[Path, str]:
        """Return the file names of the data set by their true paths; empty for images in memory."""
        if not isinstance(self._source, Path):
            return {}
        folders: dict[Path, Path] = {}
        files: dict[Path, str] = {}
        for name in map(self.file_name, range(len(self))):
            path = self._source / name
            if path.parent not in folders:
                folders[path.parent] = path.parent.resolve()
            files[path.resolve() if path.is_symlink() else folders[path.parent] / path.name] = name
        return files

    def file_name(self, index: int) -> str:
        """Return the file name of the ``index``-th image."""
        return self._index[self.ids[index]].file_name

    def load_image(self, index: int) -> NDArray[np.uint8]:
        """Return the ``index``-th image, RGB uint8 (H, W, 3); read-only where it is held in memory.

        Raises
        ------
        InputError
            If there are no images, or the file is not a complete image of the annotated size.
        """
        image_id = self.ids[index]
        entry = self._index[image_id]
        if self._source is None:
            raise InputError(f"{self.where} was opened without an image folder; name one to load images")
        if isinstance(self._source, Path):
            return read_image(self._source / entry.file_name, entry.height, entry.width)
        image = self._source[image_id]
        if image.dtype != np.uint8 or image.shape != (entry.height, entry.width, 3):
            raise InputError(
                f"image {image_id} of {self.where} must be uint8 ({entry.height}, {entry.width}, 3), "
                f"not {image.dtype} {image.shape}"
            )
        return image

    def joints(self, index: int) -> NDArray[np.float32]:
        """Return the labelled people of the ``index``-th image, float32 (P, J, 3), without loading it."""
        entry = self._index[self.ids[index]]
        keep = [k for k, a in enumerate(entry.annotations) if not a["iscrowd"] and a["num_keypoints"] > 0]
        return entry.joints[keep]

    def labelled_joints(self, index: int) -> NDArray[np.bool_]:
        """Return which joints are annotated in the ``index``-th image wherever they are seen, bool (J,)."""
        return self.labelled

    def load(self, index: int) -> PoseSample:
        """Return the ``index``-th picture with its people; see :class:`PoseSample` and :meth:`load_image`."""
        image_id = self.ids[index]
        entry = self._index[image_id]
        image = self.load_image(index)  # first: it shows that the size is real
        mask = np.ones((entry.height, entry.width), dtype=np.bool_)
        for annotation in entry.annotations:
            if annotation["iscrowd"] or annotation["num_keypoints"] == 0:
                mask &= ~region(annotation, annotation["bbox"], entry.height, entry.width, self.where)
        return PoseSample(image, self.joints(index), mask, image_id)

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return COCO-format ground truth in the target skeleton, for evaluation.

        Unlabelled joints are 0; a person without labelled joints has ``num_keypoints`` 0, which COCO's
        evaluation ignores. So has one whose ``num_keypoints`` is 0 in the file: CrowdPose's do not count head
        and neck, and its evaluation ignores people who show nothing else. Boxes and areas are the file's.
        Where a person has no area it is 0.53 of the box (CrowdPose's rule); where it has no box, the box is
        that of its joints.

        Raises
        ------
        InputError
            If an id is not in the data set.
        """
        chosen = self.ids if ids is None else tuple(ids)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in chosen:
            entry = self._entry(image_id)
            images.append(dict(entry.record))
            for annotation, joints in zip(entry.annotations, entry.joints, strict=True):
                kept = {key: annotation[key] for key in ("id", "image_id", "category_id", "bbox", "area")}
                kept["iscrowd"] = annotation["iscrowd"]
                kept["num_keypoints"] = 0 if annotation["unscored"] else annotation["num_keypoints"]
                kept["keypoints"] = [float(value) for value in joints.astype(np.float64).ravel()]
                annotations.append(kept)
        category = {
            **self._category,
            "supercategory": "person",
            "keypoints": list(self.skeleton.joints),
            "skeleton": [[a + 1, b + 1] for a, b in self.skeleton.limbs],
        }
        return {"info": {}, "images": images, "annotations": annotations, "categories": [category]}

    def _entry(self, image_id: int) -> _Image:
        if image_id not in self._index:
            raise InputError(f"image id {image_id} is not in {self.where}")
        return self._index[image_id]

    def subset(self, ids: Iterable[int]) -> Self:
        """Return the data set of these images only.

        Raises
        ------
        InputError
            If an id is not in the data set.
        """
        chosen = set(ids)
        for image_id in chosen:
            if image_id not in self._index:
                raise InputError(f"image id {image_id} is not in {self.where}")
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other.ids = tuple(sorted(chosen))
        other._index = {image_id: self._index[image_id] for image_id in other.ids}
        return other

    def with_people(self) -> Self:
        """Return the data set of the images that show at least one labelled person."""
        return self.subset(image_id for index, image_id in enumerate(self.ids) if len(self.joints(index)))

    def split(
        self, fractions: Mapping[str, float], seed: int, may_be_empty: Collection[str] = ()
    ) -> dict[str, Self]:
        """Divide the images at random; an image's part depends on its id and the seed only.

        Adding or removing images never moves others. The sizes are therefore near the fractions, not equal.

        Parameters
        ----------
        fractions
            Share of each part; where the sum is below 1 the rest is left out.
        seed
            Another seed divides differently.
        may_be_empty
            Parts for which no image at all is no error.

        Raises
        ------
        InputError
            If a fraction is not positive, their sum exceeds 1, or another part would be empty.
        """
        total = math.fsum(fractions.values())
        if not fractions or not all(share > 0 for share in fractions.values()) or total > 1 + 1e-9:
            raise InputError(f"split needs positive fractions with a sum of at most 1, got {dict(fractions)}")
        bounds = np.cumsum(list(fractions.values()))
        if total > 1 - 1e-9:
            bounds[-1] = 1.0
        parts: dict[str, list[int]] = {name: [] for name in fractions}
        names = list(fractions)
        for image_id in self.ids:
            digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
            place = int(np.searchsorted(bounds, int.from_bytes(digest, "big") / 2**64, side="right"))
            if place < len(names):
                parts[names[place]].append(image_id)
        for name, ids in parts.items():
            if not ids and name not in may_be_empty:
                raise InputError(
                    f"split part '{name}' ({fractions[name]:g} of {len(self.ids)} images of {self.where}) "
                    "is empty; give it more, or take another seed"
                )
        return {name: self.subset(ids) for name, ids in parts.items()}


def _rows(content: object, key: str, where: str) -> list[Mapping[str, Any]]:
    table = read_table(content, key, where)
    rows: list[Mapping[str, Any]] = [row for row in table if isinstance(row, dict)]
    if len(rows) < len(table):
        raise InputError(f"{where}: '{key}' must be a list of mappings")
    return rows


def _build_index(
    tables: Mapping[str, list[Mapping[str, Any]]],
    category_id: int,
    mapping: NDArray[np.int64],
    source_joints: int,
    where: str,
) -> dict[int, _Image]:
    records: dict[int, Mapping[str, Any]] = {}
    for record in tables["images"]:
        image_id = read_id(record, "an image", where)
        if image_id in records:
            raise InputError(f"{where}: image id {image_id} is there more than once")
        records[image_id] = record
    people: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in records}
    categories = {each["id"] for each in tables["categories"] if isinstance(each.get("id"), int)}
    seen: set[int] = set()
    for annotation in tables["annotations"]:
        if read_reference(annotation, "category_id", categories, "category", where) != category_id:
            continue
        number = read_id(annotation, "an annotation", where)
        if number in seen:
            raise InputError(f"{where}: annotation id {number} is there more than once")
        seen.add(number)
        people[read_reference(annotation, "image_id", people, "image", where)].append(annotation)
    index: dict[int, _Image] = {}
    for image_id, record in records.items():
        kept: list[dict[str, Any]] = []
        joints = np.zeros((len(people[image_id]), len(mapping), 3), dtype=np.float32)
        for row, annotation in zip(joints, people[image_id], strict=True):
            source = read_keypoints(annotation, source_joints, where)
            row[:] = np.where((mapping >= 0)[:, None], source[mapping], 0)
            box = person_box(annotation, source, where)
            kept.append(
                {
                    **annotation,
                    "bbox": box,
                    "area": person_area(annotation, box, where),
                    "iscrowd": read_crowd_flag(annotation, where),
                    "num_keypoints": int((row[:, 2] > 0).sum()),
                    "unscored": annotation.get("num_keypoints") == 0,
                }
            )
        joints.flags.writeable = False
        name, (height, width) = read_file_name(record, where), read_image_size(record, where)
        index[image_id] = _Image(name, height, width, dict(record), tuple(kept), joints)
    return index
