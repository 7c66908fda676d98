"""What is wrong with a keypoint data set, all of it at once, and what is in it.

:class:`~supernet.pose.dataset.PoseDataset` refuses a file at its first flaw. Here the raw content is walked
tolerantly and everything is listed, also what the reader takes but people would want to know. The two agree:
where no error is found the data set opens and every sample loads, and what is refused is an error here.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, shown
from supernet.pose.annotations import (
    FARTHEST,
    FieldError,
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
    runs_or_polygons,
)
from supernet.pose.census import RESOLUTIONS, Census, PersonFacts, PictureFacts
from supernet.pose.dataset import PoseDataset, decode_image, file_is_there, read_image_file
from supernet.pose.findings import Example, Finding, Gathered, ordered
from supernet.pose.likeness import Print, image_print, likeness
from supernet.pose.scoring import ScoringProtocol
from supernet.pose.skeleton import CROWDPOSE14, SKELETONS, Skeleton, canonical_joint, joint_map

__all__ = ["DatasetReport", "check_dataset", "shared_images"]

Images = Path | Mapping[int, NDArray[np.uint8]] | None
Progress = Callable[[int, int], None]
"""Called with the number of images looked at and of all."""

_STRAY: Final = 0.1
"""Share of its box's longer side by which a joint may lie outside the box: boxes follow outlines."""
_TWIN: Final = 0.03
"""Mean distance of two people's joints, as share of their size, below which they are one annotated twice."""
_SPLIT_CROWDPOSE: Final = frozenset({"crowd-index", "box-degenerate"})
"""Warnings that are errors where AP is CrowdPose's: it splits by crowdIndex, and takes areas from boxes."""


@dataclass(frozen=True)
class DatasetReport:
    """What :func:`check_dataset` found.

    Attributes
    ----------
    where
        What was checked, as messages name it.
    findings
        Errors, then warnings, then notes.
    census
        What is in the data set, as far as it could be read.
    skeleton
        The joints of the file; None where they cannot be told.
    prints
        What identifies each image, for :func:`shared_images`.
    """

    where: str
    findings: tuple[Finding, ...]
    census: Census
    skeleton: Skeleton | None
    prints: tuple[Print, ...] = field(repr=False, default=())

    @property
    def errors(self) -> int:
        """How many findings are errors; 0 says that it can be trained on and scored."""
        return sum(each.severity == "error" for each in self.findings)

    def with_findings(self, more: Iterable[Finding]) -> DatasetReport:
        """Return the report with further findings, in order."""
        return replace(self, findings=ordered([*self.findings, *more]))

    def to_json(self, resolutions: Sequence[int] = RESOLUTIONS) -> dict[str, Any]:
        """Return the report as JSON; ``resolutions`` as in :meth:`Census.to_json`."""
        return {
            "checked": self.where,
            "errors": self.errors,
            "warnings": sum(each.severity == "warning" for each in self.findings),
            "findings": [each.to_json() for each in self.findings],
            "skeleton": None if self.skeleton is None else self.skeleton.name,
            "contents": self.census.to_json(resolutions),
        }


# -- the walk ------------------------------------------------------------------------------------------------


class _Walk:
    """One tolerant pass over a file's content."""

    def __init__(self, where: str, wanted: Skeleton | None) -> None:
        self.where = where
        self.wanted = wanted
        self.found = Gathered()
        self.skeleton: Skeleton | None = None
        self.mapping: NDArray[np.int64] | None = None
        self.pictures: dict[int, PictureFacts] = {}
        self.people: list[PersonFacts] = []

    def tell(self, error: InputError, code: str | None = None, **place: Any) -> None:
        """Note what a reader of fields refused."""
        text = str(error).removeprefix(self.where).lstrip(": ")
        found = code or (error.code if isinstance(error, FieldError) else "refused")
        self.found.add(found, Example(text, **place))

    def tables(self, content: object) -> dict[str, list[Mapping[str, Any]]]:
        """Return the rows that are mappings."""
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for key in ("images", "annotations", "categories"):
            try:
                table = read_table(content, key, self.where)
            except FieldError as error:
                self.tell(error)
                table = []
                if not isinstance(content, Mapping):
                    return {"images": [], "annotations": [], "categories": []}
            tables[key] = [row for row in table if isinstance(row, dict)]
            for place, row in enumerate(table):
                if not isinstance(row, dict):
                    self.found.add("row", Example(f"{key}[{place}] is {shown(row)}", value=shown(row)))
        return tables

    # -- categories

    def category(self, categories: Sequence[Mapping[str, Any]], name: str | None) -> int | None:
        """Settle the joints; return the id of the category whose annotations are people."""
        try:
            chosen = choose_category(categories, name, self.where)
        except FieldError as error:
            self.tell(error)
            posed = [each for each in categories if each.get("keypoints") and _is_id(each.get("id"))]
            if not posed:
                return None
            chosen = posed[0]  # so that its people are looked at all the same
        number = int(chosen["id"])
        try:
            self.skeleton = Skeleton.from_category(chosen, self.where)
        except InputError as error:
            self.tell(error, "joints")
            return number
        self._limbs(chosen, self.skeleton)
        target = self.wanted or self.skeleton
        self.mapping = joint_map(self.skeleton, target)
        self._joints(self.skeleton, target, self.mapping)
        self._pairs(target)
        return number

    def _limbs(self, category: Mapping[str, Any], skeleton: Skeleton) -> None:
        if skeleton not in SKELETONS.values():
            return
        given = category.get("skeleton")
        limbs = given if isinstance(given, list) else []
        wrong = [
            limb
            for limb in limbs
            if not isinstance(limb, list | tuple)
            or not all(_is_id(end) and 1 <= end <= len(skeleton) for end in limb)
        ]
        if wrong:
            text = f"limb {shown(wrong[0])} of {len(skeleton)} joints (1-based)"
            self.found.add("limbs", Example(text, value=shown(wrong[0])), len(wrong))

    def _joints(self, skeleton: Skeleton, target: Skeleton, mapping: NDArray[np.int64]) -> None:
        if (mapping < 0).all():
            text = f"wanted are {', '.join(target.joints)}; the file has {', '.join(skeleton.joints)}"
            self.found.add("skeleton", Example(text))
            return
        masked = [name for name, source in zip(target.joints, mapping, strict=True) if source < 0]
        unused = [name for joint, name in enumerate(skeleton.joints) if joint not in mapping]
        for code, names in (("joints-masked", masked), ("joints-unused", unused)):
            if names:
                self.found.add(code, Example(", ".join(names)), len(names))

    def _pairs(self, skeleton: Skeleton) -> None:
        paired = {joint for pair in skeleton.flip_pairs for joint in pair}
        sided = [
            name
            for joint, name in enumerate(skeleton.joints)
            if joint not in paired and canonical_joint(name).startswith(("left_", "right_"))
        ]
        if not paired and len(skeleton) > 1:
            text = "no joint is named left or right; name flip_pairs in a skeleton file"
            self.found.add("flip-pairs", Example(text), len(skeleton))
        elif sided:
            self.found.add("flip-pairs", Example(", ".join(sided)), len(sided))

    # -- images

    def images(self, records: Sequence[Mapping[str, Any]]) -> set[int]:
        """Look at the images' records; return their ids."""
        ids: set[int] = set()
        names: dict[str, int] = {}
        graded = any("crowdIndex" in record for record in records)
        for record in records:
            try:
                image_id = read_id(record, "an image", self.where)
            except FieldError as error:
                self.tell(error, value=shown(record.get("id")))
                continue
            if image_id in ids:
                self.found.add("image-id-twice", Example(f"image {image_id}", image_id=image_id))
                continue
            ids.add(image_id)
            name, size = "", (0, 0)
            try:
                name = read_file_name(record, self.where)
            except FieldError as error:
                self.tell(error, image_id=image_id)
            try:
                size = read_image_size(record, self.where)
            except FieldError as error:
                self.tell(error, image_id=image_id, file_name=name or None)
            if name and name in names:
                text = f"'{name}' is image {names[name]} and image {image_id}"
                self.found.add("file-name-twice", Example(text, image_id=image_id, file_name=name))
            names.setdefault(name, image_id)
            index = self._crowd_index(record, image_id) if graded else None
            if name and size[0]:
                self.pictures[image_id] = PictureFacts(image_id, name, *size, index)
        return ids

    def _crowd_index(self, record: Mapping[str, Any], image_id: int) -> float | None:
        value = record.get("crowdIndex")
        text = f"image {image_id} has crowdIndex {shown(value)}"
        example = Example(text, image_id=image_id, value=shown(value))
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= FARTHEST:
            self.found.add("crowd-index", example)
            return None
        if not 0 <= value <= 1:
            self.found.add("crowd-index-range", replace(example, weight=abs(value)))
        return float(value)

    # -- annotations

    def annotations(
        self, rows: Sequence[Mapping[str, Any]], category: int, categories: set[int], images: set[int]
    ) -> None:
        """Look at every annotation."""
        seen: set[int] = set()
        others: Counter[int] = Counter()
        for row in rows:
            try:
                number = read_reference(row, "category_id", categories, "category", self.where)
                if number != category:
                    others[number] += 1
                    continue
                read_id(row, "an annotation", self.where)
            except FieldError as error:
                self.tell(error)
                continue
            if row["id"] in seen:
                self.found.add(
                    "annotation-id-twice", Example(f"annotation {row['id']}", annotation_id=row["id"])
                )
            seen.add(row["id"])
            picture = None
            try:
                picture = self.pictures.get(read_reference(row, "image_id", images, "image", self.where))
            except FieldError as error:
                self.tell(error, annotation_id=row["id"], value=shown(row.get("image_id")))
            self._annotation(row, picture)
        for number, count in others.items():
            self.found.add("category-other", Example(f"{count} of category {number}"), count)
        self._nobody()
        self._joints_never()
        self._fractions()
        self._corners()
        self._twins()
        self._empty()

    def _annotation(self, row: Mapping[str, Any], picture: PictureFacts | None) -> None:
        if self.skeleton is None or self.mapping is None:
            return
        place: dict[str, Any] = {"annotation_id": row["id"]}
        if picture is not None:
            place |= {"image_id": picture.image_id, "file_name": picture.file_name}
        crowd = 0
        try:
            crowd = read_crowd_flag(row, self.where)
        except FieldError as error:
            self.tell(error, **place)
        try:
            keypoints = read_keypoints(row, len(self.skeleton), self.where)
        except FieldError as error:
            self.tell(error, **place)
            return
        area = box = None
        try:
            box = person_box(row, keypoints, self.where)
            area = person_area(row, box, self.where)
        except FieldError as error:
            self.tell(error, **place)
        wanted = self.mapping[self.mapping >= 0]
        masked = bool(crowd) or not (keypoints[wanted, 2] > 0).any()
        if picture is not None:
            try:
                runs_or_polygons(row, picture.height, picture.width, self.where)
            except FieldError as error:
                self.tell(error, None if masked else "segmentation-unused", **place)
        labelled = int((keypoints[:, 2] > 0).sum())
        about = f"annotation {row['id']}" + ("" if picture is None else f" ({picture.file_name})")
        if not crowd:
            self._stated(row, keypoints, about, place)
        if crowd:
            self.found.add("crowd", Example(about, **place))
        elif not labelled:
            self.found.add("people-unlabelled", Example(about, **place))
        if box is None or area is None or picture is None:
            return
        person = PersonFacts(
            row["id"],
            picture.image_id,
            keypoints,
            (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            float(area),
            bool(crowd),
        )
        self.people.append(person)
        self._box(row, person, picture, about, place)
        if person.labelled:
            self._placement(row, person, picture, about, place)

    def _stated(
        self, row: Mapping[str, Any], keypoints: NDArray[np.float64], about: str, place: Mapping[str, Any]
    ) -> None:
        """Hold num_keypoints against the labelled joints; CrowdPose's leave out head and neck."""
        stated, known = row.get("num_keypoints"), keypoints[:, 2] > 0
        counts = [int(known.sum())]
        if self.skeleton is CROWDPOSE14:
            counts.append(int(known[: CROWDPOSE14.joints.index("head")].sum()))
        text = f"{about} says {shown(stated)}, {known.sum()} are labelled"
        if stated is not None and stated not in counts:
            self.found.add("num-keypoints", Example(text, value=shown(stated), **place))
        if stated == 0 and known.any():
            self.found.add("num-keypoints-zero", Example(text, value="0", **place))

    def _box(
        self,
        row: Mapping[str, Any],
        person: PersonFacts,
        picture: PictureFacts,
        about: str,
        place: Mapping[str, Any],
    ) -> None:
        x, y, width, height = person.box
        if person.labelled:
            if row.get("bbox") is None:
                self.found.add("box-missing", Example(about, **place))
            elif width == 0 or height == 0:
                self.found.add("box-degenerate", Example(f"{about}: {shown(row['bbox'])}", **place))
            if row.get("area") is None:
                self.found.add("area-missing", Example(about, **place))
            if person.area == 0:
                self.found.add("area-zero", Example(about, value="0", **place))
        if row.get("bbox") is None:
            return
        beyond = max(-x, -y, x + width - picture.width, y + height - picture.height)
        if beyond > 1:
            text = f"{about}: {shown(row['bbox'])} on {picture.width}x{picture.height}"
            self.found.add(
                "box-outside-image", Example(text, value=shown(row["bbox"]), weight=beyond, **place)
            )
        if width * height > 0 and person.area > 1.01 * width * height + 1:
            text = f"{about}: area {person.area:.6g} of a box of {width * height:.6g}"
            weight = person.area / (width * height)
            self.found.add("area-over-box", Example(text, value=shown(row["area"]), weight=weight, **place))

    def _placement(
        self,
        row: Mapping[str, Any],
        person: PersonFacts,
        picture: PictureFacts,
        about: str,
        place: Mapping[str, Any],
    ) -> None:
        assert self.skeleton is not None
        names = self.skeleton.joints
        points = [(joint, x, y) for joint, (x, y, v) in enumerate(person.keypoints.tolist()) if v > 0]

        def worst(code: str, beyond: Callable[[float, float], float], least: float, what: str) -> None:
            joint, x, y = max(points, key=lambda point: beyond(point[1], point[2]))
            weight = beyond(x, y)
            if weight > least:
                spot = f"{x:g}, {y:g}"
                text = f"{about}: {names[joint]} at {spot}{what}"
                self.found.add(code, Example(text, value=spot, weight=weight, **place))

        wide, high = picture.width, picture.height
        worst(
            "joint-outside-image",
            lambda x, y: max(-x, -y, x - wide, y - high),
            1.0,
            f" on {wide}x{high}",
        )
        left, top, width, height = person.box
        if row.get("bbox") is not None and min(width, height) > 0:
            worst(
                "joint-outside-box",
                lambda x, y: max(left - x, top - y, x - left - width, y - top - height) / max(width, height),
                _STRAY,
                f", box {shown(row['bbox'])}",
            )
        worst("joint-at-origin", lambda x, y: float(x == y == 0), 0.5, "")
        ((x, y), count), *_ = Counter((x, y) for _, x, y in points).most_common(1)
        if count > 1:
            stacked = ", ".join(names[joint] for joint, *spot in points if spot == [x, y])
            text = f"{about}: {stacked} at {x:g}, {y:g}"
            self.found.add("joints-stacked", Example(text, weight=float(count), **place))

    # -- what only the whole shows

    def _nobody(self) -> None:
        if self.mapping is None or self.found.has_errors():  # which may be why nobody is left
            return
        wanted = self.mapping[self.mapping >= 0]
        if not any(each.labelled and (each.keypoints[wanted, 2] > 0).any() for each in self.people):
            text = f"{len(self.pictures):,} images, {len(self.people):,} annotations of people"
            self.found.add("nobody", Example(text))

    def _joints_never(self) -> None:
        labelled = [each.keypoints for each in self.people if each.labelled]
        if self.skeleton is None or not labelled:
            return
        most = np.stack(labelled)[..., 2].max(axis=0)
        names = [name for name, value in zip(self.skeleton.joints, most, strict=True) if value == 0]
        if names:
            self.found.add("joint-never", Example(", ".join(names)), len(names))

    def _fractions(self) -> None:
        labelled = [each for each in self.people if each.labelled]
        if not labelled or max(float(each.keypoints[:, :2].max()) for each in labelled) > 1:
            return
        first = labelled[0]
        spot = first.keypoints[np.argmax(first.keypoints[:, 2] > 0), :2].tolist()
        text = f"no joint is beyond 1, 1; annotation {first.annotation_id} has one at {spot}"
        example = Example(text, image_id=first.image_id, annotation_id=first.annotation_id)
        self.found.add("fractions", example, len(labelled))

    def _corners(self) -> None:
        """Boxes as two corners: most would end outside the image, and none does as corners."""
        boxes = [
            (each, self.pictures[each.image_id]) for each in self.people if each.box[2] * each.box[3] > 0
        ]
        as_corners = [
            each
            for each, picture in boxes
            if each.box[0] < each.box[2] <= picture.width + 1
            and each.box[1] < each.box[3] <= picture.height + 1
        ]
        beyond = [
            each
            for each, picture in boxes
            if each.box[0] + each.box[2] > picture.width + 1 or each.box[1] + each.box[3] > picture.height + 1
        ]
        if len(as_corners) == len(boxes) and 2 * len(beyond) > len(boxes):
            first = beyond[0]
            text = f"annotation {first.annotation_id} has {list(first.box)}"
            self.found.add("box-corners", Example(text, annotation_id=first.annotation_id), len(beyond))

    def _twins(self) -> None:
        """People of one image with nearly the same joints."""
        together: defaultdict[int, list[PersonFacts]] = defaultdict(list)
        for person in self.people:
            if person.labelled:
                together[person.image_id].append(person)
        for image_id, people in together.items():
            joints = np.stack([each.keypoints for each in people])
            known = joints[..., 2] > 0
            for one in range(1, len(people)):
                both = known[:one] & known[one]
                common = both.sum(axis=1)
                apart = np.linalg.norm(joints[:one, :, :2] - joints[one, :, :2], axis=2)
                mean = np.where(both, apart, 0).sum(axis=1) / np.maximum(1, common)
                sizes = np.sqrt([max(each.area, people[one].area) for each in people[:one]])
                most = np.maximum(known[:one].sum(axis=1), known[one].sum())
                twins = (common >= 3) & (common >= 0.6 * most) & (mean <= _TWIN * sizes)
                if twins.any():
                    other = people[int(np.argmax(twins))]
                    name = self.pictures[image_id].file_name
                    ids = f"{other.annotation_id} and {people[one].annotation_id}"
                    place: dict[str, Any] = {"image_id": image_id, "file_name": name}
                    example = Example(
                        f"annotations {ids} ({name})", annotation_id=people[one].annotation_id, **place
                    )
                    self.found.add("people-twice", example)

    def _empty(self) -> None:
        shown = {each.image_id for each in self.people if each.labelled}
        for image_id, picture in self.pictures.items():
            if image_id not in shown:
                name = picture.file_name
                self.found.add("image-empty", Example(name, image_id=image_id, file_name=name))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# -- pixels --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What one image's file told: its print, and what is wrong with it as (code, example)."""

    print: Print
    told: tuple[tuple[str, Example], ...] = ()


def _look(picture: PictureFacts, images: Path | Mapping[int, NDArray[np.uint8]], decode: bool) -> _Look:
    name = picture.file_name
    relative = Print(picture.image_id, Path(name))
    known: dict[str, Any] = {"image_id": picture.image_id, "file_name": name}

    def flaw(code: str, text: str) -> _Look:
        return _Look(relative, ((code, Example(text, **known)),))

    if not isinstance(images, Path):
        image = images.get(picture.image_id)
        if image is None:
            return flaw("image-missing", f"image {picture.image_id} is not given")
        if image.dtype != np.uint8 or image.shape != (picture.height, picture.width, 3):
            return flaw("image-other-size", f"image {picture.image_id} is {image.dtype} {image.shape}")
        return (
            _Look(image_print(picture.image_id, Path(name), image.tobytes(), image))
            if decode
            else _Look(relative)
        )
    try:
        check_below(images, name, f"image {picture.image_id}")
    except FieldError as error:
        return flaw(error.code, str(error))
    path = images / name
    if not file_is_there(path):
        return flaw("image-missing", f"'{name}' (image {picture.image_id})")
    path = path.resolve()
    if not decode:
        return _Look(Print(picture.image_id, path, path.stat().st_size))
    try:
        data = read_image_file(path)
        image = decode_image(data, path)
    except InputError as error:
        return flaw("image-unreadable", str(error).replace(str(path), name))
    told: list[tuple[str, Example]] = []
    size = image.shape[:2]
    wanted = (picture.height, picture.width)
    turned = _upright(data, path, image)
    if size != wanted and (turned is None or turned.shape[:2] != wanted):
        noted = ", and notes a rotation that does not explain it" if turned is not None else ""
        text = (
            f"'{name}' is {size[1]}x{size[0]}, annotated as {picture.width}x{picture.height} "
            f"(image {picture.image_id}){noted}"
        )
        told.append(("image-other-size", Example(text, value=f"{picture.width}x{picture.height}", **known)))
    elif turned is not None:
        code = (
            "image-turned"
            if size != wanted
            else "image-turn-unclear"
            if turned.shape == image.shape
            else "image-rotation-ignored"
        )
        text = f"'{name}' is stored as {size[1]}x{size[0]}, annotated as {picture.width}x{picture.height}"
        told.append((code, Example(text, **known)))
    return _Look(image_print(picture.image_id, path, data, image), tuple(told))


def _upright(data: bytes, path: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the picture as its file says that it is to be turned, None where it says nothing of it."""
    if b"Exif\0\0" not in data[: 1 << 16] and b"eXIf" not in data[: 1 << 16]:
        return None
    turned = decode_image(data, path, upright=True)
    return None if np.array_equal(turned, image) else turned


def _look_at_all(
    walk: _Walk,
    images: Path | Mapping[int, NDArray[np.uint8]],
    decode: bool,
    workers: int,
    progress: Progress | None,
) -> list[Print]:
    pictures = list(walk.pictures.values())
    prints: list[Print] = []
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data-check")
    try:
        for look in pool.map(lambda picture: _look(picture, images, decode), pictures):
            for code, example in look.told:
                walk.found.add(code, example)
            prints.append(look.print)
            if progress is not None:
                progress(len(prints), len(pictures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(opencv_threads)
    return prints


# -- reports -------------------------------------------------------------------------------------------------


def check_dataset(
    content: object,
    images: Images,
    *,
    skeleton: Skeleton | None = None,
    category: str | None = None,
    where: str = "annotations",
    protocol: ScoringProtocol = "coco",
    decode: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DatasetReport:
    """Look over a data set: everything that is wrong with it, and what is in it.

    Parameters
    ----------
    content
        The annotation file's content, whatever it is.
    images
        Folder of the images, the images (RGB) by id, or None: they are not looked at then.
    skeleton
        Joints wanted; by default those of the file.
    category
        Name of the category to take, needed where several have keypoints.
    where
        What is checked, for messages.
    protocol
        How AP will be measured: what makes CrowdPose's wrong is an error under ``crowdpose`` only.
    decode
        Decode every image; else only see that it is there.
    workers
        Threads that decode; by default one per core.
    progress
        Called after every image.

    Returns
    -------
    DatasetReport
        Without errors in it, :class:`~supernet.pose.dataset.PoseDataset` opens the data set, and where the
        images were decoded every sample loads.
    """
    walk = _Walk(where, skeleton)
    tables = walk.tables(content)
    number = walk.category(tables["categories"], category)
    known = walk.images(tables["images"])
    if number is not None:
        ids = {each["id"] for each in tables["categories"] if _is_id(each.get("id"))}
        walk.annotations(tables["annotations"], number, ids, known)
    if images is None:
        prints = [Print(each.image_id, Path(each.file_name)) for each in walk.pictures.values()]
        unseen = "images-unseen"
    else:
        count = workers or os.cpu_count() or 1
        prints = _look_at_all(walk, images, decode, count, progress)
        unseen = "" if decode else "pixels-unseen"
    if unseen and prints:
        walk.found.add(unseen, Example("all of them"), len(prints))
    codes = {"path": "file-name-twice", "bytes": "images-equal", "pixels": "images-alike"}
    for match in likeness(prints):
        first, second = (prints[place] for place in (match.first, match.second))
        names = [walk.pictures[each.image_id].file_name for each in (first, second)]
        if match.kind in codes and names[0] != names[1]:
            text = f"'{names[0]}' and '{names[1]}'"
            example = Example(text, image_id=first.image_id, file_name=names[0], other_id=second.image_id)
            walk.found.add(codes[match.kind], example)
    if not walk.found.has_errors():  # the reader itself has the last word
        try:
            PoseDataset.from_dict(content, images, skeleton, category=category, where=where)  # type: ignore[arg-type]
        except InputError as error:
            walk.tell(error, "refused")
    return DatasetReport(
        where,
        walk.found.findings(_SPLIT_CROWDPOSE if protocol == "crowdpose" else frozenset()),
        Census(
            walk.skeleton.joints if walk.skeleton else (), tuple(walk.pictures.values()), tuple(walk.people)
        ),
        walk.skeleton,
        tuple(prints),
    )


def shared_images(first: DatasetReport, second: DatasetReport) -> tuple[Finding, ...]:
    """Return what two data sets show both, such as train and val: AP would be of images learned from.

    Equal files are errors; pictures that look nearly the same are a suspicion, see
    :func:`supernet.pose.likeness.likeness`.
    """
    codes = {"path": "leak-file", "bytes": "leak-bytes", "name": "leak-name", "pixels": "leak-pixels"}
    names = [{each.image_id: each.file_name for each in report.census.pictures} for report in (first, second)]
    found = Gathered()
    for match in likeness(first.prints, second.prints):
        ids = first.prints[match.first].image_id, second.prints[match.second].image_id
        here, there = names[0][ids[0]], names[1][ids[1]]
        text = f"'{here}' (image {ids[0]}) and '{there}' (image {ids[1]})"
        found.add(codes[match.kind], Example(text, image_id=ids[0], file_name=here, other_id=ids[1]))
    return found.findings()
