"""The data sets of a recipe: what is trained on, chosen by and reported on, kept apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from nas.console import note_once
from nas.recipe import DataConfig, DataSource, Recipe
from search_spaces import InputError
from supernet.pose.boxes import read_boxes
from supernet.pose.dataset import PoseDataset
from supernet.pose.skeleton import Skeleton, get_skeleton
from supernet.pose.synthetic import SyntheticPeople

__all__ = [
    "Datasets",
    "check_annotations",
    "note_empty_boxes",
    "open_datasets",
    "open_source",
    "open_training",
]


@dataclass(frozen=True)
class Datasets:
    """The four parts of a recipe's data.

    Attributes
    ----------
    train
        For training.
    calibrate
        For BN recalibration: images that were held out of training, filled up from it where they are fewer
        than ``evaluate.calibration_images``.
    search
        For choosing checkpoints and networks; shares no image with ``train``.
    val
        For the figures reported.
    """

    train: PoseDataset
    calibrate: PoseDataset
    search: PoseDataset
    val: PoseDataset

    @property
    def skeleton(self) -> Skeleton:
        """The joints that networks predict."""
        return self.train.skeleton


def check_annotations(text: str, images: Path | None, pictures: bool = True) -> None:
    """Refuse what an option or argument names, neither recipe nor run, unless it is a file with its images.

    Raises
    ------
    InputError
        If it does not exist, is a folder, or ``pictures`` are needed and their folder is not named.
    """
    path = Path(text)
    if not path.exists():
        raise InputError(
            f"the data set '{text}' does not exist: name a recipe, a run or a file of annotations"
        )
    if path.is_dir():
        raise InputError(f"the data set '{text}' is a folder, but no run directory; name the annotation file")
    if images is None and pictures:
        raise InputError(f"the data set '{text}' needs the folder of its images: --images FOLDER")


def note_empty_boxes(dataset: PoseDataset, boxes: Path | str | None) -> None:
    """Tell how many boxes of a detector's file are left out because they have no width or no height.

    Raises
    ------
    InputError
        As :func:`supernet.pose.boxes.read_boxes`.
    """
    if boxes is None or str(boxes) in ("annotated", "whole-image"):
        return
    category = int(dataset.ground_truth()["categories"][0]["id"])
    empty = read_boxes(boxes, dataset.ids, category=category, subset=True).empty
    if empty:
        plural = "es have" if empty > 1 else " has"
        note_once(f"detection file '{boxes}': {empty} box{plural} no width or no height; left out")


def open_source(source: DataSource, skeleton: Skeleton | None = None) -> PoseDataset:
    """Return the data set of one source, its joints mapped to ``skeleton`` where one is given."""
    labels = {"all": None, "none": ()}[source.labels] if isinstance(source.labels, str) else source.labels
    if source.synthetic is not None:
        s = source.synthetic
        drawn = SyntheticPeople(s.images, s.seed, size=s.size, people=s.people)
        if skeleton in (None, drawn.skeleton) and labels is None and source.complete:
            return drawn
        images = {image_id: drawn.load_image(i) for i, image_id in enumerate(drawn.ids)}
        return PoseDataset.from_dict(
            drawn.ground_truth(), images, skeleton, labels=labels, complete=source.complete, where=drawn.where
        )
    if source.annotations is None or source.images is None:
        raise InputError("a data source names both 'annotations' and 'images', or 'synthetic' alone")
    return PoseDataset(
        source.annotations,
        source.images,
        skeleton,
        category=source.category,
        labels=labels,
        complete=source.complete,
    )


def open_training(config: DataConfig) -> PoseDataset:
    """Return all images that are trained on, held out of that, or both; of several sources in one skeleton.

    Raises
    ------
    InputError
        If a file is missing or malformed, or a source annotates no joint of the skeleton.
    """
    skeleton = None if config.skeleton is None else get_skeleton(config.skeleton)
    parts: list[PoseDataset] = []
    for source in config.training.values():
        parts.append(open_source(source, skeleton))
        skeleton = parts[0].skeleton
    shares = [source.share for source in config.training.values() if source.share is not None]
    return parts[0] if len(parts) == 1 else PoseDataset.combine(parts, shares or None)


def _filled(part: PoseDataset, whole: PoseDataset, others: PoseDataset, count: int) -> PoseDataset:
    """Return ``part`` with images of ``others`` added up to ``count``; all are images of ``whole``.

    Of several sources each is filled up to its share.
    """
    sources = whole.sources()
    shares = whole.shares or [len(source) for source in sources]
    ids = [*part.ids]
    for share, held, more in zip(shares, part.sources(), others.sources(), strict=True):
        wanted = math.ceil(count * share / sum(shares))
        ids += more.ids[: max(0, wanted - len(held))]
    return whole.subset(ids)


def open_datasets(recipe: Recipe) -> Datasets:
    """Return the recipe's data sets.

    What is held out for choosing comes from the sources that can be scored on; of the others all images are
    trained on or held out for BN recalibration.

    Raises
    ------
    InputError
        If a file is missing or malformed, or the parts do not fit together.
    """
    whole = open_training(recipe.data)
    shares = {"calibrate": recipe.data.calibrate_fraction}
    if recipe.data.search is None:
        shares["search"] = recipe.data.search_fraction
    shares = {name: share for name, share in shares.items() if share > 0}
    # Of a few images a small share may be none; calibration then has the training images alone.
    parts = whole.split(
        {"train": 1 - sum(shares.values()), **shares}, recipe.seed, may_be_empty={"calibrate"}
    )
    train = parts["train"]
    if recipe.data.search is None:
        search = parts["search"].scorable()
        train = whole.subset([*train.ids, *set(parts["search"].ids).difference(search.ids)])
    else:
        search = open_source(recipe.data.search, whole.skeleton)
    limit = recipe.evaluate.images
    search = search.with_people()
    if limit is not None and limit < len(search):
        search = search.subset(search.ids[:limit])
    train = train.trainable()
    calibrate = _filled(
        parts.get("calibrate", whole.subset(())).trainable(),
        whole,
        train,
        recipe.evaluate.calibration_images,
    )
    for name, part in (("train", train), ("search", search)):
        if len(part) == 0:
            raise InputError(f"the {name} images show no person with keypoints")
    val = open_source(recipe.data.val, train.skeleton)
    if len(val.with_people()) == 0:
        raise InputError(f"data.val: {val.where} shows no person with keypoints, so AP is undefined")
    # What is learned from, in whatever way, against what is measured on.
    learned = {**train.files(), **calibrate.files()}
    named = (("train", learned), ("search", search.files()), ("val", val.files()))
    for (one, first), (other, second) in itertools.combinations(named, 2):
        both = sorted(first[path] for path in first.keys() & second.keys())
        if both:
            raise InputError(
                f"the {one} and the {other} data share {len(both)} image files (first '{both[0]}'):"
                " AP would be measured on images that were learned from; keep them apart"
            )
    return Datasets(train, calibrate, search, val)
