"""Pictures of people with annotated joints, in COCO's file format and in any skeleton.

Several sources can be put together (:meth:`PoseDataset.combine`). What each of them annotates differs: in
joints, in how far they can be trusted, in whether everybody is annotated. So each picture knows which joints
are labelled in it.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, did_you_mean
from search_spaces.files import read_bytes, read_json
from supernet.pose.annotations import (
    BOX_AREA,
    check_below,
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
    "repeated_order",
]

REACH: Final = 0.1
"""How far around its box an annotated person is known to be the only one, as a share of the longer side."""


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
        bool (H, W): True where the loss counts; False on crowds and on people without labelled joints, and
        away from people where only some are annotated. Where no joint is labelled it says nothing: True.
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
    labelled: NDArray[np.bool_]
    """(J,)"""
    origin: _Origin


@dataclass(frozen=True, eq=False)
class _Origin:
    """Where a picture comes from, and how far the annotations there can be trusted."""

    where: str
    images: Path | Mapping[int, NDArray[np.uint8]] | None
    complete: bool = True
    labelled: bool = True
    """Whether any joint's annotations are reliable."""
    first_id: int = 0
    """What was added to the ids of its pictures when it was combined with others."""
    place: int = 0
    """Its number among the sources of a combined data set."""


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
    return read_bytes(path, "image")


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
    labels
        Joints of ``skeleton`` whose annotations are reliable; the others count as not annotated. By default
        all; where it is empty, the images serve a teacher only.
    complete
        Whether everybody is annotated, with every joint that is seen. Otherwise what is not annotated is
        unknown: the image away from annotated people (more than :data:`REACH`) is masked, and a joint that
        one of them lacks is not labelled in that image.

    Attributes
    ----------
    skeleton
        The joints of everything handed out.
    source_skeleton
        The joints of the file; of several sources, those wanted.
    labelled
        bool (J,): which joints of ``skeleton`` are annotated at all; see :meth:`labelled_joints`.
    ids
        Ids of the images, ascending.
    shares
        Shares of the sources in what :meth:`epoch_order` draws; None: every image once.

    Raises
    ------
    InputError
        If a file is missing or malformed, or no joint of ``skeleton`` is annotated; one line says which.
    """

    skeleton: Skeleton
    source_skeleton: Skeleton
    labelled: NDArray[np.bool_]
    ids: tuple[int, ...]
    shares: tuple[float, ...] | None
    _category: dict[str, Any]
    _sources: int = 1

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None,
        skeleton: Skeleton | None = None,
        *,
        category: str | None = None,
        labels: Collection[str] | None = None,
        complete: bool = True,
    ) -> None:
        content = read_json(annotations, "annotation file")
        folder = None if images is None else Path(images)
        if folder is not None and not folder.is_dir():
            raise InputError(f"image folder '{folder}' does not exist or is not a folder")
        where = f"annotation file '{annotations}'"
        self._setup(content, folder, skeleton, category, where, labels, complete)

    @classmethod
    def from_dict(
        cls,
        content: Mapping[str, Any],
        images: str | Path | Mapping[int, NDArray[np.uint8]] | None,
        skeleton: Skeleton | None = None,
        *,
        category: str | None = None,
        labels: Collection[str] | None = None,
        complete: bool = True,
        where: str = "annotations",
    ) -> PoseDataset:
        """Build a data set from parsed annotations and a folder of images, or the images by id.

        Parameters
        ----------
        content
            What a COCO annotation file holds: ``images``, ``annotations``, ``categories``.
        images
            A folder, or RGB uint8 (H, W, 3) by image id; None: annotations alone.
        skeleton, category, labels, complete
            As of the class.
        where
            What errors call the annotations.

        Raises
        ------
        InputError
            If the annotations are malformed, or no joint of ``skeleton`` is annotated.
        """
        self = PoseDataset.__new__(PoseDataset)
        source = Path(images) if isinstance(images, str) else images
        self._setup(content, source, skeleton, category, where, labels, complete)
        return self

    @classmethod
    def combine(cls, sources: Sequence[PoseDataset], shares: Sequence[float] | None = None) -> PoseDataset:
        """Put data sets of one skeleton together; every image keeps what its source says of it.

        The first one keeps its image ids. To those of the n-th n times a power of ten is added that is beyond
        all ids: image 17 of source 2 becomes 2000017, say. Annotations get new ids. A split divides the
        images of every source as it divides the source alone.

        Parameters
        ----------
        sources
            Data sets whose ``skeleton`` has the same joints.
        shares
            How much of what is trained on comes from each, in any unit; see :meth:`epoch_order`. By default
            every image is seen equally often.

        Raises
        ------
        InputError
            If there are none, their joints differ, or shares are not positive or not as many.
        """
        if not sources:
            raise InputError("combining data sets needs at least one, got none")
        skeleton = sources[0].skeleton
        for each in sources[1:]:
            if each.skeleton.joints != skeleton.joints:
                raise InputError(
                    f"data sets are combined in one skeleton: {sources[0].where} is in '{skeleton.name}'"
                    f" ({len(skeleton)} joints), {each.where} in '{each.skeleton.name}' ({len(each.skeleton)}"
                    " joints); open them with the same one"
                )
        if shares is not None and (len(shares) != len(sources) or not all(0 < s < math.inf for s in shares)):
            raise InputError(
                f"each of {len(sources)} combined data sets needs a positive share, got {list(shares)}"
            )
        self = PoseDataset.__new__(PoseDataset)
        self.skeleton = self.source_skeleton = skeleton
        self.where = f"{len(sources)} sources ({', '.join(each.where for each in sources)})"
        self.shares = None if shares is None else tuple(float(share) for share in shares)
        self._category = sources[0]._category
        self._terms = repr((self.shares, [each._terms for each in sources]))
        self._sources = len(sources)
        self.labelled = np.logical_or.reduce([each.labelled for each in sources])
        self._index = _join([each._index for each in sources], self._category["id"])
        self.ids = tuple(sorted(self._index))
        return self

    def _setup(
        self,
        content: object,
        images: Path | Mapping[int, NDArray[np.uint8]] | None,
        skeleton: Skeleton | None,
        category: str | None,
        where: str,
        labels: Collection[str] | None = None,
        complete: bool = True,
    ) -> None:
        self.where = where
        self.shares = None
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
        if labels is not None:
            mapping = _reliable(mapping, labels, self.skeleton, where)
            self.labelled = mapping >= 0
        self._terms = "" if labels is None and complete else repr((self.labelled.tolist(), complete))
        category_id = int(chosen["id"])
        self._category = {"id": category_id, "name": str(chosen.get("name", "person"))}
        origin = _Origin(where, images, complete, bool(self.labelled.any()))
        self._index = _build_index(tables, category_id, mapping, len(self.source_skeleton), origin)
        self.ids = tuple(sorted(self._index))
        self._check_images(images)

    def _check_images(self, images: Path | Mapping[int, NDArray[np.uint8]] | None) -> None:
        if isinstance(images, Path):
            for i in self.ids:
                check_below(images, self._index[i].file_name, f"{self.where}: image {i}")
            missing = [i for i in self.ids if not file_is_there(images / self._index[i].file_name)]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(self.ids)} images of {self.where} are not in folder "
                    f"'{images}': first '{self._index[missing[0]].file_name}'"
                )
        elif images is not None:
            missing = [i for i in self.ids if i not in images]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(self.ids)} images of {self.where} are not given: id {missing[0]}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the image ids, file names, sizes, people (boxes, areas, joints), not of the pixels."""
        digest = hashlib.sha256(repr(self.skeleton.joints).encode() + self._terms.encode())
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
        folders: dict[Path, Path] = {}
        files: dict[Path, str] = {}
        for entry in self._index.values():
            if not isinstance(entry.origin.images, Path):
                continue
            name = entry.file_name
            path = entry.origin.images / name
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
        where, source = entry.origin.where, entry.origin.images
        if source is None:
            raise InputError(f"{where} was opened without an image folder; name one to load images")
        if isinstance(source, Path):
            return read_image(source / entry.file_name, entry.height, entry.width)
        image = source[image_id - entry.origin.first_id]
        if image.dtype != np.uint8 or image.shape != (entry.height, entry.width, 3):
            raise InputError(
                f"image {image_id - entry.origin.first_id} of {where} must be uint8 "
                f"({entry.height}, {entry.width}, 3), not {image.dtype} {image.shape}"
            )
        return image

    def joints(self, index: int) -> NDArray[np.float32]:
        """Return the labelled people of the ``index``-th image, float32 (P, J, 3), without loading it."""
        entry = self._index[self.ids[index]]
        keep = [place for place, annotation in enumerate(entry.annotations) if _is_labelled(annotation)]
        return entry.joints[keep]

    def labelled_joints(self, index: int) -> NDArray[np.bool_]:
        """Return which joints are annotated in the ``index``-th image wherever they are seen, bool (J,)."""
        return self._index[self.ids[index]].labelled

    def load(self, index: int) -> PoseSample:
        """Return the ``index``-th picture with its people; see :class:`PoseSample` and :meth:`load_image`."""
        image_id = self.ids[index]
        entry = self._index[image_id]
        image = self.load_image(index)  # first: it shows that the size is real
        return PoseSample(image, self.joints(index), _mask(entry), image_id)

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return COCO-format ground truth in the target skeleton, for evaluation.

        Unlabelled joints are 0; a person without labelled joints has ``num_keypoints`` 0, which COCO's
        evaluation ignores. So has one whose ``num_keypoints`` is 0 in the file: CrowdPose's do not count head
        and neck, and its evaluation ignores people who show nothing else. Boxes and areas are the file's.
        Where a person has no area it is 0.53 of the box (CrowdPose's rule); where it has no box, the box is
        that of its joints, and ``box_of_joints`` says so.

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
                if annotation["box_of_joints"]:
                    kept["box_of_joints"] = True
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

    def trainable(self) -> Self:
        """Return :meth:`with_people`, and the images of sources that have no reliable label at all.

        From the latter a network learns with a teacher, who says himself where people are.
        """
        return self.subset(
            image_id
            for index, image_id in enumerate(self.ids)
            if len(self.joints(index)) or not self._index[image_id].origin.labelled
        )

    def scorable(self) -> Self:
        """Return the data set of the images on which AP can be measured: those of complete annotations."""
        origins = ((image_id, self._index[image_id].origin) for image_id in self.ids)
        return self.subset(image_id for image_id, origin in origins if origin.complete and origin.labelled)

    def sources(self) -> list[Self]:
        """Return the images of each source of a combined data set, in order; some may be empty."""
        parts: list[list[int]] = [[] for _ in range(self._sources)]
        for image_id in self.ids:
            parts[self._index[image_id].origin.place].append(image_id)
        return [self.subset(part) for part in parts]

    def original_ids(self) -> set[int]:
        """Return the ids that the images have in the file of their source."""
        return {image_id - self._index[image_id].origin.first_id for image_id in self.ids}

    def epoch_order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return as many positions as there are images, in random order: what is seen in an epoch.

        Without ``shares`` every image comes once. With them every source comes as often as its share says:
        all its images, as many times as it takes, then some at random. The k-th repetition (from 0) of an
        image is told by ``position + k * len(self)``, so that each can be varied in its own way.
        """
        return repeated_order(self.source_places(), self.shares, rng)

    def source_places(self) -> NDArray[np.int64]:
        """Return for every image the number of its source in a combined data set, else 0."""
        return np.array([self._index[image_id].origin.place for image_id in self.ids], dtype=np.int64)

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
            own = image_id - self._index[image_id].origin.first_id
            digest = hashlib.blake2b(f"{seed}:{own}".encode(), digest_size=8).digest()
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


def repeated_order(
    place: NDArray[np.int64], shares: Sequence[float] | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return what is seen in an epoch, given every entry's source; see :meth:`PoseDataset.epoch_order`."""
    if shares is None:
        return rng.permutation(len(place))
    sizes = np.bincount(place, minlength=len(shares))
    wanted = np.where(sizes > 0, shares, 0.0)
    # Rounded so that the sum is exact: each source ends where its share of the whole does.
    ends = np.round(np.cumsum(wanted) / max(wanted.sum(), 1e-300) * len(place)).astype(np.int64)
    chosen: list[NDArray[np.int64]] = []
    for source, count in enumerate(np.diff(ends, prepend=0)):
        mine = np.flatnonzero(place == source)
        times = -(-count // max(1, len(mine)))
        for time in range(times):
            few = min(len(mine), count - time * len(mine))
            some = mine if few == len(mine) else rng.permutation(mine)[:few]
            chosen.append(some + time * len(place))
    return rng.permutation(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


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
    origin: _Origin,
) -> dict[int, _Image]:
    where = origin.where
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
                    "box_of_joints": annotation.get("bbox") is None
                    or annotation.get("box_of_joints") is True,
                }
            )
        joints.flags.writeable = False
        name, (height, width) = read_file_name(record, where), read_image_size(record, where)
        shown = [each for each, a in zip(joints, kept, strict=True) if _is_labelled(a)]
        labelled = mapping >= 0
        if not origin.complete:
            labelled = np.logical_and.reduce([labelled, *(each[:, 2] > 0 for each in shown)])
        index[image_id] = _Image(name, height, width, dict(record), tuple(kept), joints, labelled, origin)
    return index


def _is_labelled(annotation: Mapping[str, Any]) -> bool:
    """Whether it is one person, with labelled joints."""
    return not annotation["iscrowd"] and annotation["num_keypoints"] > 0


def _mask(entry: _Image) -> NDArray[np.bool_]:
    """Return where the loss counts; see :class:`PoseSample`."""
    size, where = (entry.height, entry.width), entry.origin.where
    if not entry.labelled.any():
        return np.ones(size, dtype=np.bool_)
    mask = np.full(size, entry.origin.complete, dtype=np.bool_)
    if not entry.origin.complete:
        for annotation, joints in zip(entry.annotations, entry.joints, strict=True):
            if _is_labelled(annotation):
                mask |= region({}, _surroundings(annotation["bbox"], joints), *size, where)
    for annotation in entry.annotations:
        if not _is_labelled(annotation):
            mask &= ~region(annotation, annotation["bbox"], *size, where)
    return mask


def _surroundings(box: Sequence[float], joints: NDArray[np.float32]) -> list[float]:
    """Return the box around a person's box and labelled joints, :data:`REACH` of its longer side wider."""
    points = joints[joints[:, 2] > 0, :2].astype(np.float64)
    low = np.minimum(points.min(axis=0), box[:2])
    high = np.maximum(points.max(axis=0), np.add(box[:2], box[2:]))
    margin = REACH * float((high - low).max())
    return [*(low - margin).tolist(), *(high - low + 2 * margin).tolist()]


def _reliable(
    mapping: NDArray[np.int64], labels: Collection[str], skeleton: Skeleton, where: str
) -> NDArray[np.int64]:
    """Return the mapping of joints without those that are not in ``labels``."""
    for name in labels:
        if name not in skeleton.joints:
            raise InputError(
                f"labels of {where}: skeleton '{skeleton.name}' has no joint '{name}'"
                f"{did_you_mean(name, skeleton.joints)}"
            )
        if mapping[skeleton.joints.index(name)] < 0:
            raise InputError(f"labels of {where} name joint '{name}', which is not annotated there")
    return np.where([joint in labels for joint in skeleton.joints], mapping, -1)


def _join(indices: Sequence[Mapping[int, _Image]], category: int) -> dict[int, _Image]:
    """Return the images of several sources under ids of their own, all annotations in one category."""
    largest = max((abs(image_id) for index in indices for image_id in index), default=0)
    step = 10 ** len(str(2 * largest))
    joined: dict[int, _Image] = {}
    numbers = itertools.count(1)
    for place, index in enumerate(indices):
        origins: dict[_Origin, _Origin] = {}
        for image_id, entry in index.items():
            first = place * step
            old = entry.origin
            origin = origins.setdefault(old, replace(old, first_id=old.first_id + first, place=place))
            annotations = tuple(
                {**each, "id": next(numbers), "image_id": image_id + first, "category_id": category}
                for each in entry.annotations
            )
            joined[image_id + first] = replace(
                entry,
                record={**entry.record, "id": image_id + first},
                annotations=annotations,
                origin=origin,
            )
    return joined
