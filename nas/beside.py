"""What pictures show beside a search's own figures: latency intervals, and networks that others published.

A published network's cost can be compared with any search: its MACs are those of its layers, and its latency
was measured by others on the device, or is predicted by the same table. Its published AP cannot, unless the
search measured APs on those very images: it was found on COCO val2017 or CrowdPose's test images, by networks
trained alone. So costs are drawn into the picture of a front, APs apart from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from latency_tables import LatencyPredictor
from latency_tables.predictor import Prediction
from latency_tables.published import published_for
from nas.recipe import Recipe
from nas.search.objectives import BYTES_PER_PARAMETER, MACS, PARAMS, SIZE, Objective
from nas.search.result import Record, SearchResult
from search_spaces import Arch, InputError, MissingLayerError, get_arch
from search_spaces.errors import did_you_mean

__all__ = [
    "Beside",
    "Landmark",
    "PublishedData",
    "ReferenceKind",
    "beside",
    "landmarks",
    "latency_spans",
    "published_data",
    "same_images",
]

ReferenceKind = Literal["costs", "published", "none"]
_SAME = 1e-6
"""Relative difference of two latencies that is rounding; another table gives more."""


@dataclass(frozen=True)
class PublishedData:
    """Images on which the APs of LitePose's networks were published.

    Attributes
    ----------
    name
        How people call them, such as ``COCO val2017``.
    file, images, protocol
        The annotation file's name, how many images it has, and by which protocol they are scored.
    ap
        Published AP by named arch, 0 to 1.
    source
        Citation.
    """

    name: str
    file: str
    images: int
    protocol: str
    ap: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Landmark:
    """A network that others published, on one axis of cost.

    Attributes
    ----------
    name
        The named arch.
    arch
        The network.
    cost
        Its cost, in the objective's stored unit.
    ap
        Its published AP, 0 to 1; None where none was published for so many joints.
    basis
        ``exact`` (counted), ``published`` (measured by others on the device) or ``predicted`` (by the table;
        the upper end, as of the search's own networks).
    """

    name: str
    arch: Arch
    cost: float
    ap: float | None
    basis: Literal["exact", "published", "predicted"]

    def words(self, objective: Objective) -> str:
        """Return name and cost: ``litepose-s, 76 ms published``."""
        told = "" if self.basis == "exact" else f" {self.basis}"
        return f"{self.name}, {objective.format(self.cost)}{told}"


@dataclass(frozen=True)
class Beside:
    """What is drawn beside the networks of a search.

    Attributes
    ----------
    latencies
        By target and id of the arch, what was predicted, with its interval.
    landmarks
        Published networks by cost.
    data
        The images of their APs; None where those are not to be shown.
    comparable
        Whether the search's APs were measured on the same images.
    """

    latencies: Mapping[str, Mapping[str, Prediction]] = field(default_factory=dict)
    landmarks: Mapping[Objective, tuple[Landmark, ...]] = field(default_factory=dict)
    data: PublishedData | None = None
    comparable: bool = False

    def prediction(self, record: Record, objective: Objective) -> Prediction | None:
        """Return what was predicted for a network on a latency axis, if that is known."""
        return self.latencies.get(objective.target or "", {}).get(record.arch.id)


@cache
def _published() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(
        resources.files("nas").joinpath("published_ap.json").read_text(encoding="utf-8")
    )
    return found


def published_data(joints: int) -> PublishedData | None:
    """Return the images on which networks of so many joints were published; None where there are none."""
    held = _published()
    name = held["joints"].get(str(joints))
    return None if name is None else PublishedData(**held["data"][name], source=held["source"])


def _published_archs(result: SearchResult) -> dict[str, Arch]:
    """Return the published networks of the family that was searched, by name."""
    families = {record.arch.family.name for record in result.records[:1]}
    names = next(iter(_published()["data"].values()))["ap"]
    return {name: arch for name in names if (arch := get_arch(name)).family.name in families}


def same_images(recipe: Recipe, result: SearchResult) -> bool:
    """Return whether a search measured its APs on all images of the published ones, by their protocol.

    That is told by the name of the annotation file and the number of its images. Networks of another family
    never do: those that see one person at a time are shown where people are.
    """
    data, source = published_data(result.joints), recipe.data.search
    if data is None or source is None or source.annotations is None or not _published_archs(result):
        return False
    return (
        source.annotations.name == data.file
        and result.context.get("images", "").split(" ")[0] == str(data.images)
        and recipe.evaluate.images is None
        and recipe.evaluate.protocol == data.protocol
    )


def latency_spans(
    result: SearchResult, predictors: Mapping[str, LatencyPredictor]
) -> tuple[dict[str, dict[str, Prediction]], tuple[str, ...]]:
    """Return the predicted latencies of the networks evaluated, by target and id, with their intervals.

    Of a target whose table has changed since the search there are none: they would not be about the
    latencies that the search saw. The second part names those targets.
    """
    found: dict[str, dict[str, Prediction]] = {}
    changed = []
    looked_at = [*result.evaluated, *result.partial]
    for target in result.targets:
        if target not in predictors:
            continue
        try:
            told = {
                r.arch.id: predictors[target].predict(r.arch.blocks(result.joints), r.arch.family.name)
                for r in looked_at
            }
        except MissingLayerError:
            changed.append(target)
            continue
        then = {r.arch.id: r.latency_ms[target] for r in looked_at}
        if all(math.isclose(told[name].high_ms, ms, rel_tol=_SAME) for name, ms in then.items()):
            found[target] = told
        else:
            changed.append(target)
    return found, tuple(changed)


def landmarks(
    objective: Objective, result: SearchResult, predictors: Mapping[str, LatencyPredictor]
) -> tuple[Landmark, ...]:
    """Return the published networks of the family that was searched, on an axis of cost.

    A latency is that published for the device, or else what the target's table predicts; without either the
    network is left out.
    """
    data = published_data(result.joints)
    found = []
    for name, arch in _published_archs(result).items():
        ap = None if data is None else data.ap[name]
        cost = arch.cost(result.joints)
        exact = {MACS: cost.macs, PARAMS: cost.params, SIZE: cost.params * BYTES_PER_PARAMETER}
        if objective in exact:
            found.append(Landmark(name, arch, float(exact[objective]), ap, "exact"))
        elif (predictor := predictors.get(objective.target or "")) is not None:
            measured = published_for(arch, predictor.table.target.device)
            if measured is not None:
                found.append(Landmark(name, arch, measured.ms, ap, "published"))
                continue
            try:
                high = predictor.predict(arch.blocks(result.joints)).high_ms
            except MissingLayerError:
                continue
            found.append(Landmark(name, arch, high, ap, "predicted"))
    return tuple(found)


def beside(
    result: SearchResult,
    recipe: Recipe,
    predictors: Mapping[str, LatencyPredictor],
    reference: str = "costs",
) -> tuple[Beside, tuple[str, ...]]:
    """Return what is drawn beside a search's networks, and the targets whose tables have changed since.

    Parameters
    ----------
    result, recipe
        The search, and the recipe of its run.
    predictors
        By target, as far as there are tables.
    reference
        ``costs``: where published networks lie on the axes, and their APs only if the search measured its own
        on the same images; ``published``: their APs in any case; ``none``: neither.

    Raises
    ------
    InputError
        If ``reference`` is another word, or nothing was published for so many joints, or of this family.
    """
    kinds = get_args(ReferenceKind)
    if reference not in kinds:
        raise InputError(
            f"--reference is one of {', '.join(kinds)}, not '{reference}'{did_you_mean(reference, kinds)}"
        )
    spans, changed = latency_spans(result, predictors)
    if reference == "none":
        return Beside(spans), changed
    data = published_data(result.joints)
    if reference == "published" and data is None:
        raise InputError(
            f"--reference published: APs of LitePose were published for 14 and 17 joints, not {result.joints}"
        )
    if reference == "published" and result.records and not _published_archs(result):
        raise InputError(
            "--reference published: APs of LitePose's networks were published, and this search is of"
            f" {result.records[0].arch.family.name}, whose APs mean something else; leave --reference out"
        )
    same = same_images(recipe, result)
    axes = (MACS, PARAMS, *(Objective("latency", target) for target in result.targets))
    places = {axis: landmarks(axis, result, predictors) for axis in axes}
    shown = data if reference == "published" or same else None
    return Beside(spans, {axis: found for axis, found in places.items() if found}, shown, same), changed
