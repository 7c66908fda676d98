"""Recipes: one YAML file that says everything about a run, checked before anything begins."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nas.config import apply_overrides, build, to_plain
from search_spaces import InputError, SearchSpace, get_arch, space_from_config
from search_spaces.files import check_keys, read_yaml
from supernet.paradigms import TOP_DOWN, Paradigm, paradigm_of
from supernet.pose.decode import GroupingConfig
from supernet.pose.maps import EvalConfig
from supernet.pose.skeleton import Skeleton
from supernet.pose.synthetic import MAX_FIGURES
from supernet.pose.topdown import TopDownConfig
from supernet.registry import NETWORKS
from supernet.training import TrainConfig

__all__ = [
    "DataConfig",
    "DataSource",
    "EvaluateConfig",
    "Recipe",
    "SearchConfig",
    "SyntheticData",
    "TopDownSettings",
    "TrustConfig",
    "load_recipe",
    "recipe_from_mapping",
]


@dataclass(frozen=True)
class SyntheticData:
    """Procedurally drawn people, made in memory.

    Attributes
    ----------
    images
        How many.
    seed
        Another seed draws other people.
    size
        Height and width, pixels.
    people
        Fewest and most people per image.
    """

    images: int
    seed: int = 0
    size: tuple[int, int] = (192, 192)
    people: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        if self.images < 1 or self.seed < 0:
            raise InputError(f"at least 1 image and seed 0 are needed, not {self.images} and {self.seed}")
        if min(self.size) < 32:
            raise InputError(f"'size' is height and width, at least 32 pixels each, not {list(self.size)}")
        if not 1 <= self.people[0] <= self.people[1] <= MAX_FIGURES:
            raise InputError(
                f"'people' is the least and the largest number, 1 to {MAX_FIGURES}, not {list(self.people)}"
            )


@dataclass(frozen=True)
class DataSource:
    """Where images and annotations come from: a COCO-format file and its image folder, or ``synthetic``.

    Attributes
    ----------
    annotations, images
        The JSON file, and the folder of its images. Relative paths start at the recipe's folder.
    category
        Name of the category to take, where several have keypoints.
    synthetic
        Drawn people instead of files.
    labels
        Which annotations are reliable: ``all``, ``none``, or a list of joints. The others count as not
        annotated, and are a teacher's to tell.
    complete
        Whether everybody in the images is annotated, with every joint that is seen. Where not, what is not
        annotated is masked, and no AP is measured on these images.
    share
        How much of the images seen in training come from this source of several, in any unit. Either all
        sources have one, or every image is seen equally often.
    boxes
        Where a top-down network looks for people in images that are scored: ``annotated`` boxes,
        ``whole-image`` for pictures of one person each, or a detector's: the path of a JSON file of COCO
        results (``image_id``, ``bbox``, ``score``).
    licence
        Terms under which images and annotations may be used, in your words, for the cards of networks; by
        default what the annotation file lists.
    """

    annotations: Path | None = None
    images: Path | None = None
    category: str | None = None
    synthetic: SyntheticData | None = None
    labels: Literal["all", "none"] | tuple[str, ...] = "all"
    complete: bool = True
    share: float | None = None
    boxes: Literal["annotated", "whole-image"] | Path = "annotated"
    licence: str | None = None

    @property
    def scorable(self) -> bool:
        """Whether AP can be measured on the images: no person is missed in the annotations."""
        return self.complete and self.labels != "none"

    def shows_images_of(self, other: DataSource) -> bool:
        """Whether images of ``other`` are shown: it is the same file, or people drawn from the same seed."""
        if self.synthetic is not None and other.synthetic is not None:
            return self.synthetic.seed == other.synthetic.seed
        if self.annotations is None or other.annotations is None:
            return False
        mine, theirs = self.annotations.resolve(), other.annotations.resolve()
        return mine == theirs and self.category == other.category

    def __post_init__(self) -> None:
        files = self.annotations is not None and self.images is not None
        if (self.synthetic is not None) == files or (self.annotations is None) != (self.images is None):
            raise InputError("a data source names both 'annotations' and 'images', or 'synthetic' alone")
        if not self.labels or (len(set(self.labels)) < len(self.labels) and not isinstance(self.labels, str)):
            raise InputError(f"'labels' is all, none or a list of different joints, not {list(self.labels)}")
        if self.share is not None and not 0 < self.share < math.inf:
            raise InputError(f"'share' is positive, not {self.share}")
        if self.licence is not None and not self.licence.strip():
            raise InputError("'licence' is empty; leave it out where the terms are not known")


@dataclass(frozen=True)
class DataConfig:
    """The images of a run.

    Attributes
    ----------
    train
        For training and, held out of it, BN recalibration and choosing: one source, or a list of sources.
    val
        For the figures that are reported; nothing is ever chosen by them.
    search
        For choosing checkpoints and networks. By default ``search_fraction`` of ``train`` is held out for it.
    search_fraction
        Share of ``train`` held out where ``search`` is not given.
    calibrate_fraction
        Share of ``train`` held out for BN recalibration. Where that is fewer than
        ``evaluate.calibration_images``, training images fill up; 0 takes training images alone.
    skeleton
        Name or file of the joints that the network predicts; by default those of ``train``. Joints that a
        data set lacks are masked in loss and evaluation.
    """

    train: DataSource | tuple[DataSource, ...]
    val: DataSource
    search: DataSource | None = None
    search_fraction: float = 0.2
    calibrate_fraction: float = 0.05
    skeleton: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.search_fraction < 1:
            raise InputError(f"data.search_fraction lies between 0 and 1, not {self.search_fraction}")
        if not 0 <= self.calibrate_fraction < 1:
            raise InputError(
                f"data.calibrate_fraction lies in 0..1 (1 excluded), not {self.calibrate_fraction}"
            )
        if self.search is None and self.search_fraction + self.calibrate_fraction >= 1:
            raise InputError(
                f"data.search_fraction ({self.search_fraction}) and data.calibrate_fraction"
                f" ({self.calibrate_fraction}) leave no images to train on"
            )
        self._check_sources()

    @property
    def training(self) -> dict[str, DataSource]:
        """The sources of ``train`` by their names: ``train``, or ``train[0]`` and so on."""
        if isinstance(self.train, DataSource):
            return {"train": self.train}
        return {f"train[{place}]": source for place, source in enumerate(self.train)}

    def _check_sources(self) -> None:
        if not self.training:
            raise InputError("data.train is a source or a list of sources, not an empty list")
        without = [name for name, source in self.training.items() if source.share is None]
        if 0 < len(without) < len(self.training):
            raise InputError(
                f"data.{without[0]} has no 'share' but others have; give all of them one, or none"
            )
        scored = {"search": self.search, "val": self.val}
        for name, source in scored.items():
            if source is not None and not source.scorable:
                raise InputError(
                    f"data.{name} is scored: it needs 'complete' annotations and reliable 'labels'"
                )
            if source is not None and source.share is not None:
                raise InputError(f"data.{name}.share: only sources of data.train are mixed")
        for name, source in self.training.items():
            if source.boxes != "annotated":
                raise InputError(
                    f"data.{name}.boxes: people are learned from their annotated boxes; boxes are for"
                    " data.search and data.val"
                )
        if self.search is None and not any(source.scorable for source in self.training.values()):
            raise InputError(
                "data.search is needed: no source of data.train has 'complete' annotations and reliable"
                " 'labels', so AP cannot be measured on what is held out of it"
            )
        sources = {**self.training, **scored}
        for (name, first), (other, second) in itertools.combinations(sources.items(), 2):
            if first is not None and second is not None and first.shows_images_of(second):
                way = "file" if first.synthetic is None else "seed"
                why = (
                    "AP on them would be no evidence"
                    if other in scored
                    else "a 'share' says how often they are seen"
                )
                raise InputError(
                    f"data.{name} and data.{other} show the same images; {why}: give each its own {way}"
                )


@dataclass(frozen=True)
class TopDownSettings:
    """How a top-down network's heatmaps become people (``evaluate.top_down``).

    Attributes
    ----------
    decoding
        ``dark`` (a Newton step on the blurred heatmap's logarithm), ``quarter`` (a quarter cell towards the
        higher neighbour) or ``argmax``.
    suppression
        What becomes of people found twice: ``oks`` drops those that are too similar to a better one, ``soft``
        lowers their scores, ``none`` keeps all.
    suppression_threshold
        OKS above which two are too similar.
    box_threshold
        Boxes of a detector with a lower score are passed over.
    """

    decoding: Literal["dark", "quarter", "argmax"] = "dark"
    suppression: Literal["oks", "soft", "none"] = "oks"
    suppression_threshold: float = 0.9
    box_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("suppression_threshold", "box_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"evaluate.top_down.{name} lies in 0..1, not at {getattr(self, name)}")
        if not self.suppression_threshold:
            raise InputError(
                "evaluate.top_down.suppression_threshold lies above 0 (at 0 a picture would keep one person);"
                " suppression: none keeps everybody"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """How AP is measured, in validation, search and the final report alike.

    Attributes
    ----------
    flip, scales, project, batch_size, multiple, max_detections, grouping
        See :class:`supernet.pose.maps.EvalConfig`.
    protocol
        ``coco`` or ``crowdpose``.
    images
        Most images of the search split used per evaluation (the first by id); null takes all.
    calibration_images
        Training images from which BN statistics are recomputed for every network.
    early_stop
        Whether a search ends an evaluation once the network is sure (with 99%) to be below another one that
        costs no more; see :class:`supernet.evaluator.EarlyStop`.
    decode_workers
        Processes that group people while the network runs on; null takes none on a CPU and up to 8 beside a
        GPU.
    top_down
        What holds for top-down networks alone. They heed ``flip``, ``batch_size``, ``max_detections``,
        ``protocol``, ``images`` and ``calibration_images``, too; the others concern bottom-up ones.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    project: bool = False
    batch_size: int = 8
    multiple: int = 64
    max_detections: int = 20
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    protocol: Literal["coco", "crowdpose"] = "coco"
    images: int | None = None
    calibration_images: int = 128
    early_stop: bool = False
    decode_workers: int | None = None
    top_down: TopDownSettings = field(default_factory=TopDownSettings)

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise InputError(f"evaluate.images is at least 1 or null, not {self.images}")
        if self.calibration_images < 1:
            raise InputError(f"evaluate.calibration_images is at least 1, not {self.calibration_images}")
        if self.decode_workers is not None and self.decode_workers < 0:
            raise InputError(f"evaluate.decode_workers is at least 0 or null, not {self.decode_workers}")
        self.at(64)

    def top_down_at(
        self, resolution: int, boxes: str | Path = "annotated", sigma: float = 2.0
    ) -> TopDownConfig:
        """Return the settings for a top-down network whose input is ``resolution`` high.

        ``sigma`` is the standard deviation of the Gaussians that it was trained with, in cells.
        """
        return TopDownConfig(
            resolution=resolution,
            flip=self.flip,
            batch_size=self.batch_size,
            max_detections=self.max_detections,
            decoding=self.top_down.decoding,
            suppression=self.top_down.suppression,
            suppression_threshold=self.top_down.suppression_threshold,
            boxes=None if boxes == "annotated" else Path(boxes),
            box_threshold=self.top_down.box_threshold,
            sigma=sigma,
        )

    def at(self, resolution: int) -> EvalConfig:
        """Return the settings for a bottom-up network whose input's short side is ``resolution``."""
        return EvalConfig(
            resolution=resolution,
            flip=self.flip,
            scales=self.scales,
            project=self.project,
            batch_size=self.batch_size,
            grouping=self.grouping,
            multiple=self.multiple,
            max_detections=self.max_detections,
        )


@dataclass(frozen=True)
class SearchConfig:
    """Defaults of ``nas search`` for this recipe; the command line overrides them.

    Attributes
    ----------
    evaluations
        Networks that a search looks at, in all: evaluated, or known from another search of the run.
    population
        Networks per generation.
    sampler
        Who proposes networks: ``guided`` (an accuracy predictor that learns from what was measured),
        ``nsga2``, ``random``, or ``exhaustive`` (all of them by rising cost).
    seed_archs
        Named archs or arch files evaluated first, where they fit the space and the budget.
    """

    evaluations: int = 64
    population: int = 16
    sampler: Literal["guided", "nsga2", "random", "exhaustive"] = "guided"
    seed_archs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("evaluations", 1), ("population", 2)):
            if getattr(self, name) < least:
                raise InputError(f"search.{name} is at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class TrustConfig:
    """How far the supernet's ranking can be trusted is found out with these (``nas trust``).

    Attributes
    ----------
    archs
        Networks that are trained stand-alone, the largest and the smallest of the space among them.
    epochs
        Passes over the training images for each; by default as many as the supernet's.
    repeats
        Trainings of each network, with different seeds: two or more tell how well two trainings agree.
    seed
        Draws the networks; the trainings' seeds are this one and those that follow it.
    learning_rate
        Peak learning rate of the stand-alone trainings; by default the supernet's.
    resamples
        Bootstrap resamples for each interval.
    probes
        Networks whose AP is measured with BN statistics of several numbers of calibration images; 0 for none.
    """

    archs: int = 20
    epochs: int | None = None
    repeats: int = 1
    seed: int = 0
    learning_rate: float | None = None
    resamples: int = 2000
    probes: int = 4

    def __post_init__(self) -> None:
        if self.probes < 0 or self.probes == 1:
            raise InputError(f"trust.probes is 0 or at least 2, not {self.probes}")
        for name, least in (("archs", 3), ("repeats", 1), ("seed", 0), ("resamples", 100)):
            if getattr(self, name) < least:
                raise InputError(f"trust.{name} is at least {least}, not {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"trust.epochs is at least 1 or null, not {self.epochs}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"trust.learning_rate is positive or null, not {self.learning_rate}")


@dataclass(frozen=True)
class Recipe:
    """Everything about a run.

    Attributes
    ----------
    name
        Names the run directory.
    data, space, train, evaluate, search, trust
        See the classes of those names; ``space`` is what :func:`search_spaces.space_from_config` takes.
    seed
        Everything random in the run is derived from it.
    init
        Checkpoint that the supernet starts from: a plain network's ``.safetensors`` or a research ``.pth``.
    init_order
        Which channels of it come first, so that narrow networks have them: ``reading`` or ``scale`` (see
        :func:`supernet.importance.order_channels_by_importance`), or ``kept``: those that come first in it.
        A network that was cut out of a supernet has its channels in order already.
    """

    name: str
    data: DataConfig
    space: dict[str, Any]
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    seed: int = 0
    init: Path | None = None
    init_order: Literal["reading", "scale", "kept"] = "reading"

    @cached_property
    def paradigm(self) -> Paradigm:
        """How the space's networks find people."""
        return paradigm_of(NETWORKS[space_from_config(self.space).family.name])

    def evaluation(self, resolution: int, source: DataSource | None = None) -> EvalConfig | TopDownConfig:
        """Return how AP is measured at one resolution, on a source of images: by default the val images."""
        if self.paradigm is not TOP_DOWN:
            return self.evaluate.at(resolution)
        return self.evaluate.top_down_at(resolution, (source or self.data.val).boxes, self.train.sigma)

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "/\\\0") or self.name.startswith("."):
            raise InputError(f"the recipe's 'name' names a folder; '{self.name}' cannot")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"the recipe's 'seed' lies between 0 and {2**32 - 1}, not at {self.seed}")
        if self.init is None and self.init_order != Recipe.init_order:
            raise InputError(
                f"'init_order: {self.init_order}' is about the network that training starts from, but the"
                " recipe names none in 'init'"
            )
        for name, source in self.data.training.items():
            if source.labels == "none" and self.train.distill.source != "teacher":
                raise InputError(
                    f"data.{name}.labels is none, so nothing is learned from its images without a teacher:"
                    " name one (train.distill.source: teacher)"
                )
            if source.labels == "none" and self.train.distill.start:
                raise InputError(
                    f"data.{name}.labels is none, so nothing is learned from its images until the teacher is"
                    f" heard: leave out train.distill.start ({self.train.distill.start})"
                )

    def build_space(self, skeleton: Skeleton) -> SearchSpace:
        """Return the search space for the skeleton's joints."""
        return space_from_config(self.space, "space", joints=len(skeleton))

    def to_plain(self) -> dict[str, Any]:
        """Return the recipe with every default written out, as it is kept in the run directory."""
        plain = to_plain(self)
        return dict(sorted(plain.items(), key=lambda item: _ORDER.index(item[0])))


_ORDER = ["name", "seed", "data", "space", "init", "init_order", "train", "evaluate", "search", "trust"]


def _absolute(source: DataSource, folder: Path) -> DataSource:
    def there(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    boxes = folder / source.boxes if isinstance(source.boxes, Path) else source.boxes
    return replace(source, annotations=there(source.annotations), images=there(source.images), boxes=boxes)


def recipe_from_mapping(values: Any, where: str, folder: Path) -> Recipe:
    """Return the recipe that a mapping describes; relative paths start at ``folder``.

    Raises
    ------
    InputError
        Naming ``where``, the key and the value.
    """
    try:
        check_keys(values, set(_ORDER), "the recipe")
        recipe = build(Recipe, values, "")
        space = dict(recipe.space)
        base = space.get("base")
        if isinstance(base, str) and base.endswith(".json"):
            space["base"] = str(folder / base)
        # A mistake is told before any data is read.
        sides = next(c.values for c in space_from_config(space).choices if c.name == "resolution")
        odd = [side for side in sides if int(side) % recipe.evaluate.multiple]
        scored = {"search": recipe.data.search, "val": recipe.data.val}
        boxes = [name for name, source in scored.items() if source and source.boxes != "annotated"]
        if boxes and recipe.paradigm is not TOP_DOWN:
            raise InputError(
                f"data.{boxes[0]}.boxes: networks of the space '{space.get('kind')}' look at whole pictures;"
                " only top-down ones take boxes"
            )
        if odd and recipe.paradigm is not TOP_DOWN:
            raise InputError(
                f"evaluate.multiple is {recipe.evaluate.multiple}, so the space's resolution {odd[0]}"
                " would be evaluated larger than it costs; take a divisor of every resolution, such as 32"
            )
        seeds = tuple(str(folder / s) if s.endswith(".json") else s for s in recipe.search.seed_archs)
        for seed in seeds:
            get_arch(seed)
        data = replace(
            recipe.data,
            train=(
                _absolute(recipe.data.train, folder)
                if isinstance(recipe.data.train, DataSource)
                else tuple(_absolute(source, folder) for source in recipe.data.train)
            ),
            val=_absolute(recipe.data.val, folder),
            search=None if recipe.data.search is None else _absolute(recipe.data.search, folder),
        )
        skeleton = data.skeleton
        if skeleton is not None and skeleton.endswith((".json", ".yaml", ".yml")):
            data = replace(data, skeleton=str(folder / skeleton))
        return replace(
            recipe,
            data=data,
            space=space,
            search=replace(recipe.search, seed_archs=seeds),
            init=None if recipe.init is None else folder / recipe.init,
            train=replace(recipe.train, distill=recipe.train.distill.in_folder(folder)),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Return the recipe in a YAML file, with ``key=value`` overrides applied.

    Raises
    ------
    InputError
        Naming the file, the key and the value.
    """
    path = Path(path)
    values = read_yaml(path, "recipe")
    if not isinstance(values, dict):
        raise InputError(f"recipe '{path}' must be a mapping of names to values, not {type(values).__name__}")
    values.setdefault("name", path.stem)
    try:
        changed = apply_overrides(values, overrides or [])
    except RecursionError:
        raise InputError(f"recipe '{path}' contains itself through a YAML alias") from None
    return recipe_from_mapping(changed, f"recipe '{path}'", path.resolve().parent)
