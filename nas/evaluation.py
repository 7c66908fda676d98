"""``nas eval`` and ``nas import-checkpoint``: models that exist already, and data sets to score them on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nas.console import progress_bar
from nas.data import check_annotations, note_empty_boxes, open_source
from nas.recipe import DataSource, EvaluateConfig, SyntheticData, load_recipe
from nas.run import RunDirectory
from nas.train import load_with_skeleton, skeleton_of
from nas.written import SUFFIXES, OnnxNetwork, WrittenNetwork, open_written
from search_spaces import InputError
from search_spaces.errors import did_you_mean
from search_spaces.files import read_json, write_json
from supernet.base import DEFAULT_SIGMA
from supernet.checkpoint import import_research, save_network
from supernet.paradigms import TOP_DOWN, paradigm_of
from supernet.pose.bootstrap import bootstrap_ap, compare_ap
from supernet.pose.dataset import PoseDataset
from supernet.pose.diagnosis import diagnose
from supernet.pose.evaluate import evaluate, scored_joints
from supernet.pose.finding import as_picked
from supernet.pose.heatmaps import read_decoding
from supernet.pose.inference import FittedPictures, Inference
from supernet.pose.maps import EvalConfig
from supernet.pose.matching import match_detections
from supernet.pose.metrics import ScoringProtocol, keypoint_ap
from supernet.pose.peaks import picked_by
from supernet.pose.skeleton import Skeleton, get_skeleton
from supernet.pose.topdown import TopDownConfig

__all__ = [
    "EvalOptions",
    "OnnxNetwork",
    "evaluate_model",
    "heatmap_sigma",
    "how_measured",
    "import_model",
    "load_model",
    "parse_scales",
]

PROTOCOLS = ("coco", "crowdpose")


def load_model(path: Path, skeleton: str | None = None, threads: int = 0) -> tuple[nn.Module, Skeleton, int]:
    """Return a model, the joints that it predicts, and its resolution, pixels.

    That is the short side of the input, and its height where the network is a top-down one.

    Parameters
    ----------
    path
        An emitted folder, a ``.safetensors``, a research ``.pth``, or a file that ``nas export`` wrote:
        ``.onnx``, ``.xml`` (OpenVINO), ``.param`` (ncnn), ``.tflite`` (LiteRT).
    skeleton
        Joints that it predicts, where the file does not say.
    threads
        Threads of what runs an exported file; 0 leaves it to the runtime. The others take torch's.

    Raises
    ------
    InputError
        If the file cannot be read, or its joints are unknown.
    """
    if path.suffix in SUFFIXES:
        network = open_written(path, threads)
        told = network.told.get("skeleton", "null")
        try:
            joints = int(network.told["joints"])
            metadata = {"skeleton": json.loads(told) if isinstance(told, str) else told}
        except (KeyError, TypeError, ValueError, RecursionError):
            raise InputError(
                f"model '{path}' does not say what it predicts; was it written by 'nas emit'?"
            ) from None
        side = network.size[0] if paradigm_of(network) is TOP_DOWN else min(network.size)
        try:
            return network, skeleton_of(joints, metadata, skeleton), side
        except InputError as error:
            raise InputError(f"model '{path}': {error}") from None
    plain, known = load_with_skeleton(path, skeleton)
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # quicker on a CPU
    return plain, known, plain.arch.number("resolution")


def _dataset(
    text: str, images: Path | None, skeleton: Skeleton | None, pictures: bool = True
) -> tuple[PoseDataset, EvaluateConfig | None, str | Path]:
    """Return the data set, how AP is measured on it where a recipe says so, and where its people are."""
    path = Path(text)
    if text == "synthetic":
        return (
            open_source(DataSource(synthetic=SyntheticData(images=200, seed=10_001)), skeleton),
            None,
            "annotated",
        )
    if RunDirectory.is_run(path) or path.suffix in (".yaml", ".yml"):
        recipe = RunDirectory.open(path).recipe if path.is_dir() else load_recipe(path)
        return open_source(recipe.data.val, skeleton), recipe.evaluate, recipe.data.val.boxes
    check_annotations(text, images, pictures)
    return PoseDataset(path, images, skeleton), None, "annotated"


def parse_scales(text: str) -> tuple[float, ...]:
    """Return the numbers of ``0.5,1,1.5``.

    Raises
    ------
    InputError
        If they are no numbers.
    """
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise InputError(
            f"--scales are numbers with commas between, such as 0.5,1,1.5, not '{text}'"
        ) from None


@dataclass(frozen=True)
class EvalOptions:
    """How ``nas eval`` measures; None and False leave it to the recipe, or to the model.

    Attributes
    ----------
    resolution
        Short side of the input, pixels.
    flip, project, scales
        See :class:`supernet.pose.maps.EvalConfig`.
    protocol
        ``coco`` or ``crowdpose``.
    limit
        Only so many of the data set's images.
    resamples
        Of the bootstrap, for intervals; 0 leaves them out.
    boxes
        Where a top-down network looks for people: ``annotated``, ``whole-image``, or a detector's results.
    decoding
        How a top-down network's heatmaps are read: ``dark``, ``quarter`` or ``argmax``.
    """

    resolution: int | None = None
    flip: bool = False
    project: bool = False
    protocol: str | None = None
    limit: int | None = None
    resamples: int = 1000
    scales: tuple[float, ...] | None = None
    boxes: str | None = None
    decoding: str | None = None

    def __post_init__(self) -> None:
        if self.decoding is not None:
            read_decoding(self.decoding, "--decoding")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise InputError(f"--protocol: unknown '{self.protocol}'{did_you_mean(self.protocol, PROTOCOLS)}")
        if self.resolution is not None and self.resolution % 16:
            raise InputError(f"--resolution is a multiple of 16 pixels, not {self.resolution}")
        if self.resamples < 0:
            raise InputError(f"--bootstrap is a number of resamples, 0 for none, not {self.resamples}")


def _top_down(
    options: EvalOptions, settings: EvaluateConfig, side: int, boxes: str | Path, sigma: float
) -> TopDownConfig:
    for name in ("project", "scales"):
        if getattr(options, name):
            raise InputError(
                f"--{name} is for bottom-up networks; a top-down one sees one person at one scale"
            )
    chosen = boxes if options.boxes is None else read_boxes_option(options.boxes)
    config = settings.top_down_at(side, chosen, sigma)
    return replace(
        config,
        flip=options.flip or config.flip,
        decoding=config.decoding if options.decoding is None else read_decoding(options.decoding),
        batch_size=1,
    )


def heatmap_sigma(network: nn.Module | None) -> float:
    """Return the standard deviation of the Gaussians that a network gives, in cells."""
    return float(getattr(network, "sigma", DEFAULT_SIGMA))


def read_boxes_option(text: str) -> str | Path:
    """Return what ``--boxes`` says: ``annotated``, ``whole-image``, or a file."""
    return text if text in ("annotated", "whole-image") else Path(text)


@dataclass(frozen=True)
class _Contender:
    """A model, or what it detected before: COCO results."""

    name: str
    network: nn.Module | None
    resolution: int
    found: list[dict[str, Any]]

    @property
    def sigma(self) -> float:
        """Of the Gaussians that the network gives, in cells."""
        return heatmap_sigma(self.network)

    @classmethod
    def open(cls, path: Path, wanted: str | None) -> tuple[_Contender, Skeleton | None]:
        """Return it with the joints of its people; None if the file leaves that to the data set."""
        if path.suffix != ".json":
            network, skeleton, resolution = load_model(path, wanted)
            return cls(str(path), network.eval(), resolution, []), skeleton
        found = read_json(path, "detections")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise InputError(f"detections '{path}' are no COCO results: a list of people was expected")
        known = None if wanted is None else get_skeleton(wanted)
        return cls(str(path), None, 0, found), known

    def report(
        self,
        data: PoseDataset,
        config: EvalConfig | TopDownConfig,
        protocol: ScoringProtocol,
        left_out: frozenset[int],
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return stats and times, and the detections; results on images that are left out do not count."""
        scored = scored_joints(data)
        if self.network is None:
            ids = (each.get("image_id") for each in self.found)
            kept = [not isinstance(i, int) or i not in left_out for i in ids]  # no id at all is told later
            found = [each for each, keep in zip(self.found, kept, strict=True) if keep]
            flat = found[0].get("keypoints") if found else None
            if isinstance(flat, list) and len(flat) % 3 == 0 and len(flat) != 3 * len(data.skeleton):
                raise InputError(
                    f"the people in '{self.name}' have {len(flat) // 3} joints, those of skeleton"
                    f" '{data.skeleton.name}' {len(data.skeleton)}; name theirs with --skeleton"
                )
            sides = data.ground_truth(), found, data.skeleton.sigmas, scored, protocol, config.max_detections
            return {"stats": keypoint_ap(*sides), "images": len(data), "people_found": len(found)}, found
        if isinstance(config, TopDownConfig):
            note_empty_boxes(data, config.boxes)
        fitted, picked = None, picked_by(self.network)
        if picked is not None:
            config = as_picked(config, picked)
        if isinstance(self.network, WrittenNetwork) and isinstance(config, EvalConfig):
            fitted = self.network.size
        with progress_bar(f"evaluating {self.name}", len(data)) as bar:
            result = evaluate(
                self.network,
                data,
                config,
                protocol=protocol,
                progress=lambda done, total: bar.update(done, total),
                inference=None if fitted is None else Inference(pictures=FittedPictures(data, fitted)),
            )
        network, decode = (1e3 * s / len(data) for s in (result.seconds_network, result.seconds_decode))
        measured = {
            "stats": result.stats,
            "images": result.images,
            "people_found": len(result.detections),
            "resolution": config.resolution,
            "flip": config.flip,
            **how_measured(config),
            **({} if picked is None else {"peaks": "picked by the network; missing joints not filled in"}),
            **({} if fitted is None else {"fitted_into": list(fitted)}),
            "network_ms_per_image": round(network, 2),
            "decode_ms_per_image": round(decode, 2),
            "images_per_second": round(1e3 / (network + decode), 2),
        }
        return measured, result.detections


def how_measured(config: EvalConfig | TopDownConfig) -> dict[str, Any]:
    """Return what reports tell of the settings that one paradigm alone has."""
    if isinstance(config, EvalConfig):
        return {"scales": list(config.scales), "project": config.project}
    return {
        "boxes": "annotated" if config.boxes is None else str(config.boxes),
        "decoding": config.decoding,
        "suppression": config.suppression,
    }


def _check_written(options: EvalOptions, network: WrittenNetwork, own: int) -> None:
    """Refuse what a file for one size of pictures cannot do."""
    if options.resolution not in (None, own):
        raise InputError(
            f"--resolution: '{network.path}' was exported for {network.size[0]}x{network.size[1]} pixels"
            " only; take the .safetensors for another resolution"
        )
    if options.scales not in (None, (1.0,)):
        raise InputError(
            f"--scales: '{network.path}' was exported for one size of pictures; take the .safetensors"
        )


def _config(
    options: EvalOptions,
    settings: EvaluateConfig | None,
    contender: _Contender,
    boxes: str | Path,
) -> EvalConfig | TopDownConfig:
    side = options.resolution or contender.resolution or 448
    if isinstance(contender.network, WrittenNetwork):
        _check_written(options, contender.network, contender.resolution)
    if contender.network is not None and paradigm_of(contender.network) is TOP_DOWN:
        return _top_down(options, settings or EvaluateConfig(), side, boxes, contender.sigma)
    if options.boxes is not None or options.decoding is not None:
        raise InputError(
            f"--boxes and --decoding are for top-down networks; '{contender.name}' is none: it looks at whole"
            " pictures"
        )
    config = EvalConfig(side) if settings is None else settings.at(side)
    if side % config.multiple:
        config = replace(config, multiple=next(m for m in (64, 32, 16) if side % m == 0))
    # One image at a time, as the network will run: its time is then that of batch 1.
    return replace(
        config,
        flip=options.flip or config.flip,
        project=options.project or config.project,
        scales=options.scales or config.scales,
        batch_size=1,
    )


def evaluate_model(
    model: Path,
    dataset: str,
    options: EvalOptions | None = None,
    *,
    images: Path | None = None,
    skeleton: str | None = None,
    compare: Path | None = None,
    detections: Path | None = None,
) -> dict[str, Any]:
    """Carry out ``nas eval``; return the figures and how they were measured.

    On the val images of a recipe or run, what is not asked for is done as the recipe says. The resamples of
    the bootstrap are the same every time.

    Parameters
    ----------
    model
        See :func:`load_model`; or a ``.json`` of COCO results, which is scored as it is.
    dataset
        A COCO-format ``.json``, a recipe or run (its val images), or ``synthetic``.
    options
        How it is measured.
    images
        Folder of the images, for a ``.json`` and a model.
    skeleton
        Joints of the people found, where the model does not say; for results the data set's own by default.
    compare
        Another one, measured on the same images.
    detections
        Where the people found are written as COCO results.

    Raises
    ------
    InputError
        If the model or the data set cannot be read, or they do not fit each other.
    """
    options = options or EvalOptions()
    if compare is not None and not options.resamples:
        raise InputError(
            "--compare needs resamples to tell a difference from chance; leave out --bootstrap 0"
        )
    first, joints = _Contender.open(model, skeleton)
    other, others = (None, None) if compare is None else _Contender.open(compare, skeleton)
    joints = joints or others
    needed = first.network is not None or (other is not None and other.network is not None)
    data, settings, boxes = _dataset(dataset, images, joints, needed)
    if others is not None and others.joints != data.skeleton.joints:
        raise InputError(
            f"'{compare}' finds {', '.join(others.joints)}, but '{model}' {', '.join(data.skeleton.joints)};"
            " only models of the same joints can be compared"
        )
    left_out: frozenset[int] = frozenset()
    if options.limit is not None and options.limit < len(data):
        left_out = frozenset(data.ids[options.limit :])
        data = data.subset(data.ids[: options.limit])
    named = options.protocol or (settings.protocol if settings is not None else "coco")
    protocol: ScoringProtocol = "crowdpose" if named == "crowdpose" else "coco"
    truth, scored = data.ground_truth(), scored_joints(data)
    config = _config(options, settings, first, boxes)
    report, found = first.report(data, config, protocol, left_out)
    sigmas, most = data.skeleton.sigmas, config.max_detections
    report |= {
        "model": first.name,
        "protocol": protocol,
        "joints_scored": [name for name, given in zip(data.skeleton.joints, data.labelled) if given],
    }
    diagnosis = diagnose(truth, found, data.skeleton, scored, protocol, most)
    report["pck"], report["errors"] = diagnosis.accuracy.to_json(), diagnosis.errors.to_json()
    if detections is not None:
        write_json(detections, found)
        report["detections"] = str(detections)
    if options.resamples:
        matches = match_detections(truth, found, sigmas, scored, protocol, most)
        report["interval"] = bootstrap_ap(matches, options.resamples, np.random.default_rng(0)).to_json()
        if other is not None:
            config = _config(options, settings, other, boxes)
            theirs, people = other.report(data, config, protocol, left_out)
            rivals = match_detections(truth, people, sigmas, scored, protocol, most)
            found_out = compare_ap(matches, rivals, options.resamples, np.random.default_rng(0))
            report["compare"] = {"model": other.name, **theirs, "difference": found_out.to_json()}
    return report


def import_model(
    file: Path, output: Path | None, resolution: int | None, skeleton: str | None
) -> dict[str, Any]:
    """Carry out ``nas import-checkpoint``; return what was found and written.

    Raises
    ------
    InputError
        If the file is no research checkpoint, or its resolution or joints cannot be inferred.
    """
    network = import_research(file, resolution)
    joints = skeleton_of(network.joints, {}, skeleton)
    target = output or file.with_suffix(".safetensors")
    save_network(target, network, {"skeleton": joints.to_json(), "source": file.name})
    cost = network.arch.cost(network.joints)
    return {
        "written": str(target),
        "joints": network.joints,
        "skeleton": joints.name,
        "resolution": network.arch["resolution"],
        "params": cost.params,
        "macs": cost.macs,
        "arch": network.arch.to_json(),
    }
