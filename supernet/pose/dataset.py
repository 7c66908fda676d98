"""Pictures of people with annotated joints, in COCO's file format and in any skeleton."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from search_spaces.errors import InputError, did_you_mean
from search_spaces.files import read_json
from supernet.pose.skeleton import Skeleton, joint_map

__all__ = ["BOX_AREA", "PoseDataset", "PoseSample", "read_image"]

_FARTHEST: Final = 1e6
"""Pixels from the origin beyond which a joint is an error of the file."""
BOX_AREA: Final = 0.53
"""Area of a person as share of its box where a file gives no area (CrowdPose's evaluation)."""


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


def read_image(path: str | Path, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
    """Decode an image file as RGB, uint8 (H, W, 3).

    Pixels are taken as stored, since COCO-style files annotate those; when that contradicts the size expected
    and the orientation noted in the file explains it, the orientation is applied.

    Raises
    ------
    InputError
        If the file is missing, is not a complete image, or has another size than expected.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"image '{path}' cannot be read: {error.strerror or error}") from None
    size: tuple[int, int] | None = None
    for flags in (cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, cv2.IMREAD_COLOR_RGB):
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
        tables = _tables(content, where)
        chosen = _choose_category(tables["categories"], category, where)
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
            missing = [i for i in self.ids if not (self._source / self._index[i].file_name).is_file()]
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
        return digest.hexdigest()[:12]

    def files(self) -> dict[Path, str]:
        """Return the file names of the data set by their paths; empty for images in memory."""
        if not isinstance(self._source, Path):
            return {}
        folder = self._source.resolve()
        return {folder / self.file_name(i): self.file_name(i) for i in range(len(self))}

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

    def load(self, index: int) -> PoseSample:
        """Return the ``index``-th picture with its people; see :class:`PoseSample` and :meth:`load_image`."""
        image_id = self.ids[index]
        entry = self._index[image_id]
        mask = np.ones((entry.height, entry.width), dtype=np.bool_)
        for annotation in entry.annotations:
            if annotation["iscrowd"] or annotation["num_keypoints"] == 0:
                mask &= ~_region(annotation, entry.height, entry.width, self.where)
        return PoseSample(self.load_image(index), self.joints(index), mask, image_id)

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return COCO-format ground truth in the target skeleton, for evaluation.

        Unlabelled joints are 0; a person without labelled joints has ``num_keypoints`` 0, which COCO's
        evaluation ignores. Boxes and areas are the file's. Where a person has no area it is 0.53 of the box
        (CrowdPose's rule); where it has no box, the box is that of its joints.

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
                kept["num_keypoints"] = annotation["num_keypoints"]
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


def _tables(content: object, where: str) -> dict[str, list[dict[str, Any]]]:
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must be a COCO-format mapping, not {type(content).__name__}")
    tables: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        rows = content.get(key)
        if rows is None:
            raise InputError(
                f"{where} lacks '{key}'; COCO keypoint files have images, annotations and categories"
            )
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{where}: '{key}' must be a list of mappings")
        tables[key] = rows
    return tables


def _choose_category(categories: list[dict[str, Any]], name: str | None, where: str) -> dict[str, Any]:
    posed = {str(each.get("name", "")): each for each in categories if each.get("keypoints")}
    if not posed:
        raise InputError(f"{where}: no category has 'keypoints'; a keypoint file is needed, not one of boxes")
    if name is not None:
        if name not in posed:
            raise InputError(f"{where} has no category '{name}' with keypoints{did_you_mean(name, posed)}")
        chosen = posed[name]
    elif len(posed) > 1:
        raise InputError(
            f"{where} has several categories with keypoints ({', '.join(posed)}); name the one to use"
        )
    else:
        chosen = next(iter(posed.values()))
    if not _is_int(chosen.get("id")):
        raise InputError(
            f"{where}: category '{chosen.get('name')}' needs an integer 'id', got {chosen.get('id')!r}"
        )
    return chosen


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _build_index(
    tables: Mapping[str, list[dict[str, Any]]],
    category_id: int,
    mapping: NDArray[np.int64],
    source_joints: int,
    where: str,
) -> dict[int, _Image]:
    records: dict[int, dict[str, Any]] = {}
    people: dict[int, list[dict[str, Any]]] = {}
    for record in tables["images"]:
        image_id = record.get("id")
        if not isinstance(image_id, int) or isinstance(image_id, bool):
            raise InputError(f"{where}: an image needs an integer 'id', got {image_id!r}")
        if image_id in records:
            raise InputError(f"{where}: image id {image_id} is there more than once")
        if not isinstance(record.get("file_name"), str):
            raise InputError(
                f"{where}: image {image_id} needs a 'file_name', got {record.get('file_name')!r}"
            )
        for key in ("height", "width"):
            if not _is_int(record.get(key)) or record[key] < 1:
                raise InputError(
                    f"{where}: image {image_id} needs a positive integer '{key}', got {record.get(key)!r}"
                )
        records[image_id] = record
        people[image_id] = []
    seen: set[int] = set()
    for annotation in tables["annotations"]:
        if annotation.get("category_id") != category_id:
            continue
        number = annotation.get("id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{where}: an annotation needs an integer 'id', got {number!r}")
        if number in seen:
            raise InputError(f"{where}: annotation id {number} is there more than once")
        seen.add(number)
        if annotation.get("image_id") not in people:
            raise InputError(
                f"{where}: annotation {number} is of unknown image_id {annotation.get('image_id')!r}"
            )
        people[annotation["image_id"]].append(annotation)
    index: dict[int, _Image] = {}
    for image_id, record in records.items():
        kept: list[dict[str, Any]] = []
        joints = np.zeros((len(people[image_id]), len(mapping), 3), dtype=np.float32)
        for row, annotation in zip(joints, people[image_id], strict=True):
            source = _keypoints(annotation, source_joints, where)
            row[:] = np.where((mapping >= 0)[:, None], source[mapping], 0)
            kept.append(_checked(annotation, source, row, where))
        joints.flags.writeable = False
        index[image_id] = _Image(
            record["file_name"], record["height"], record["width"], record, tuple(kept), joints
        )
    return index


def _keypoints(annotation: Mapping[str, Any], joints: int, where: str) -> NDArray[np.float64]:
    """Return the annotation's keypoints, (J, 3); all 0 where it has none."""
    label = f"{where}: annotation {annotation['id']}"
    values = annotation.get("keypoints")
    if values is None:
        return np.zeros((joints, 3))
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{label} has 'keypoints' that are not numbers") from None
    if array.shape != (3 * joints,):
        raise InputError(
            f"{label} needs {3 * joints} keypoint values (x, y, v of {joints} joints), got {array.size}"
        )
    array = array.reshape(joints, 3)
    if not np.isfinite(array).all():
        raise InputError(
            f"{label} has a keypoint that is not a finite number: joint {_first(~np.isfinite(array))}"
        )
    far = np.abs(array[:, :2]).max(axis=1, initial=0.0) > _FARTHEST
    if far.any():
        joint = int(np.flatnonzero(far)[0])
        raise InputError(f"{label} has joint {joint} at {array[joint, :2].tolist()}, far outside any image")
    wrong = ~np.isin(array[:, 2], (0, 1, 2))
    if wrong.any():
        joint = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{label} has visibility {array[joint, 2]:g} at joint {joint}; 0, 1 or 2 is needed")
    return np.where(array[:, 2:] > 0, array, 0.0)


def _first(flags: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(flags.any(axis=-1))[0])


def _checked(
    annotation: Mapping[str, Any],
    source: NDArray[np.float64],
    joints: NDArray[np.float32],
    where: str,
) -> dict[str, Any]:
    """Return the annotation with a sound box, area, crowd flag and count of labelled target joints."""
    label = f"{where}: annotation {annotation['id']}"
    box = annotation.get("bbox")
    if box is None:
        known = source[source[:, 2] > 0, :2]
        if not len(known) and not annotation.get("segmentation"):
            raise InputError(f"{label} has neither keypoints, nor 'bbox', nor 'segmentation'")
        low, high = (known.min(axis=0), known.max(axis=0)) if len(known) else (np.zeros(2), np.zeros(2))
        box = [float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])]
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(value, int | float) and math.isfinite(value) for value in box)
        or min(box[2:]) < 0
    ):
        raise InputError(f"{label} needs a 'bbox' of x, y, width, height, got {box!r}")
    area = annotation.get("area", box[2] * box[3] * BOX_AREA)
    if not isinstance(area, int | float) or not math.isfinite(area) or area < 0:
        raise InputError(f"{label} needs an 'area' of at least 0, got {area!r}")
    return {
        **annotation,
        "bbox": box,
        "area": area,
        "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        "num_keypoints": int((joints[:, 2] > 0).sum()),
    }


def _region(annotation: Mapping[str, Any], height: int, width: int, where: str) -> NDArray[np.bool_]:
    """Return the pixels of an annotation: its segmentation, or its box where it has none."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x, y, box_width, box_height = annotation["bbox"]
        region = np.zeros((height, width), dtype=np.bool_)
        top, left = max(0, math.floor(y)), max(0, math.floor(x))
        # A box that ends left of or above the image must not count from its far side.
        bottom, right = max(0, math.ceil(y + box_height) + 1), max(0, math.ceil(x + box_width) + 1)
        region[top:bottom, left:right] = True
        return region
    try:
        if isinstance(segmentation, dict):
            if tuple(segmentation["size"]) != (height, width):
                raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
            counts = segmentation["counts"]
            rle = (
                coco_mask.frPyObjects(segmentation, height, width)
                if isinstance(counts, list)
                else segmentation
            )
        else:
            polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
            if not all(
                p.ndim == 1 and p.size >= 6 and p.size % 2 == 0 and np.isfinite(p).all() for p in polygons
            ):
                raise ValueError("a polygon is a list of at least three x, y")
            rle = coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], height, width))
        return np.asarray(coco_mask.decode(rle), dtype=np.bool_)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{where}: annotation {annotation['id']} has a 'segmentation' that is neither polygons nor a run "
            f"length code of the image: {error}"
        ) from None
