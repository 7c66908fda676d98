"""The data sets of a recipe: what is trained on, chosen by and reported on, kept apart."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from nas.recipe import DataSource, Recipe
from search_spaces import InputError
from supernet.pose.dataset import PoseDataset
from supernet.pose.skeleton import Skeleton, get_skeleton
from supernet.pose.synthetic import SyntheticPeople

__all__ = ["Datasets", "open_datasets", "open_source"]


@dataclass(frozen=True)
class Datasets:
    """The three parts of a recipe's data.

    Attributes
    ----------
    train
        For training and BN recalibration.
    search
        For choosing checkpoints and networks; shares no image with ``train``.
    val
        For the figures reported.
    """

    train: PoseDataset
    search: PoseDataset
    val: PoseDataset

    @property
    def skeleton(self) -> Skeleton:
        """The joints that networks predict."""
        return self.train.skeleton


def open_source(source: DataSource, skeleton: Skeleton | None = None) -> PoseDataset:
    """Return the data set of one source, its joints mapped to ``skeleton`` where one is given."""
    if source.synthetic is not None:
        s = source.synthetic
        drawn = SyntheticPeople(s.images, s.seed, size=s.size, people=s.people)
        if skeleton is None or skeleton == drawn.skeleton:
            return drawn
        images = {image_id: drawn.load_image(i) for i, image_id in enumerate(drawn.ids)}
        return PoseDataset.from_dict(drawn.ground_truth(), images, skeleton, where=drawn.where)
    if source.annotations is None or source.images is None:
        raise InputError("a data source names both 'annotations' and 'images', or 'synthetic' alone")
    return PoseDataset(source.annotations, source.images, skeleton, category=source.category)


def open_datasets(recipe: Recipe) -> Datasets:
    """Return the recipe's data sets.

    Raises
    ------
    InputError
        If a file is missing or malformed, or the parts do not fit together.
    """
    wanted = None if recipe.data.skeleton is None else get_skeleton(recipe.data.skeleton)
    train = open_source(recipe.data.train, wanted)
    if recipe.data.search is not None:
        search = open_source(recipe.data.search, train.skeleton)
    else:
        held = recipe.data.search_fraction
        parts = train.split({"train": 1 - held, "search": held}, recipe.seed)
        train, search = parts["train"], parts["search"]
    limit = recipe.evaluate.images
    search = search.with_people()
    if limit is not None and limit < len(search):
        search = search.subset(search.ids[:limit])
    train = train.with_people()
    for name, part in (("train", train), ("search", search)):
        if len(part) == 0:
            raise InputError(f"the {name} images show no person with keypoints")
    val = open_source(recipe.data.val, train.skeleton)
    if len(val.with_people()) == 0:
        raise InputError(f"data.val: {val.where} shows no person with keypoints, so AP is undefined")
    parts = {"train": train, "search": search, "val": val}
    for (one, first), (other, second) in itertools.combinations(parts.items(), 2):
        files = first.files()
        both = sorted(files[path] for path in files.keys() & second.files().keys())
        if both:
            raise InputError(
                f"the {one} and the {other} data share {len(both)} image files (first '{both[0]}'):"
                " AP would be measured on images that were learned from; keep them apart"
            )
    return Datasets(train, search, val)
