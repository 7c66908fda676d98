"""``nas quantise``: a network in fewer bits, those layers in float that its AP asks for, and its figures."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.console import note, progress_bar
from nas.data import Datasets, check_annotations, open_datasets
from nas.evaluation import heatmap_sigma
from nas.recipe import EvaluateConfig, load_recipe
from nas.run import RunDirectory, environment
from nas.train import load_with_skeleton, network_file
from search_spaces import InputError, RunError
from search_spaces.errors import did_you_mean
from search_spaces.files import atomic_path, locked_folder, write_json
from search_spaces.jsonl import JsonLines, damaged, open_lines
from supernet.base import Subnet
from supernet.export import export_onnx
from supernet.paradigms import TOP_DOWN, paradigm_of
from supernet.pose.bootstrap import bootstrap_ap, compare_ap
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import scored_joints
from supernet.pose.finding import find_people, pictures_for
from supernet.pose.inference import FittedPictures, Inference, Pictures
from supernet.pose.maps import EvalConfig
from supernet.pose.matching import Matches, match_detections
from supernet.pose.skeleton import Skeleton
from supernet.pose.topdown import PersonPictures, TopDownConfig
from supernet.pose.transforms import letterbox, normalise, resize_for_eval
from supernet.quantise import (
    METHODS,
    OnnxMaps,
    Quantiser,
    calibrate,
    executed_in,
    half_precision,
    layer_macs,
    open_shapes,
    saturates,
)
from supernet.sensitivity import (
    GROUPINGS,
    Choice,
    Probe,
    Sensitivity,
    Trials,
    choose,
    decibels,
    kinds_of,
    units_of,
)
from supernet.subpixel import subpixel_deconvs

if TYPE_CHECKING:
    import onnx

__all__ = [
    "DECONVS",
    "PRECISIONS",
    "SCORES",
    "Images",
    "Job",
    "QuantiseSettings",
    "Scorer",
    "choose_int8",
    "kept_layers",
    "network_inputs",
    "open_images",
    "quantise_model",
    "time_models",
]

Array = NDArray[np.float32]
PRECISIONS: Final = ("int8", "fp16")
SCORES: Final = ("ap", "heatmap")
DECONVS: Final = ("convolution", "transposed")
_ROUNDS: Final = 15
"""Visits to each model when they are timed in turn."""


@dataclass(frozen=True)
class QuantiseSettings:
    """How ``nas quantise`` works.

    Attributes
    ----------
    precision
        One of :data:`PRECISIONS`.
    tolerance
        Most AP that may be lost; with ``score`` heatmap, most error of the outputs relative to their
        spread (root of mean square).
    keep
        Layers, or blocks by the names that their layers begin with, that stay in float.
    method
        One of :data:`supernet.quantise.METHODS`.
    weight_bits
        8, or 7: what loses nothing on processors without VNNI either.
    by
        Whether layers or blocks are kept in float.
    score
        ``ap``, or ``heatmap``: the error of the outputs alone, for want of an AP.
    unit_scores
        Whether the score of each layer or block is measured, too, alone and left out.
    deconvs
        ``convolution`` (see :mod:`supernet.subpixel`), or ``transposed`` as they are.
    calibration_images, probe_images
        Training images for ranges, and for the error of each layer (of a top-down network: people in them).
    search_images, val_images
        Most images that AP is measured on to choose, and to report; None: all.
    resamples
        Of the bootstrap for intervals.
    seed
        Draws images.
    """

    precision: str = "int8"
    tolerance: float = 0.005
    keep: tuple[str, ...] = ()
    method: str = "minmax"
    weight_bits: int = 7
    by: str = "block"
    score: str = "ap"
    unit_scores: bool = False
    deconvs: str = "convolution"
    calibration_images: int = 32
    probe_images: int = 4
    search_images: int | None = None
    val_images: int | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        named = (
            ("--precision", self.precision, PRECISIONS),
            ("--method", self.method, METHODS),
            ("--by", self.by, GROUPINGS),
            ("--score", self.score, SCORES),
            ("--deconvs", self.deconvs, DECONVS),
        )
        for option, value, known in named:
            if value not in known:
                raise InputError(
                    f"{option}: unknown '{value}'{did_you_mean(value, known)}; {' or '.join(known)}"
                )
        if not 0 <= self.tolerance < float("inf"):
            raise InputError(f"--tolerance is what may be lost, finite and at least 0, not {self.tolerance}")
        for option, count in (
            ("--calibration-images", self.calibration_images),
            ("--probe-images", self.probe_images),
            ("--search-images", self.search_images),
            ("--val-images", self.val_images),
            ("--bootstrap", self.resamples),
        ):
            if count is not None and count < 1:
                raise InputError(f"{option} is at least 1, not {count}")


@dataclass(frozen=True)
class Images:
    """The three sets of images, and how AP is measured on them."""

    calibrate: PoseDataset
    search: PoseDataset
    val: PoseDataset
    settings: EvaluateConfig
    where: str
    val_boxes: str | Path = "annotated"

    @property
    def fingerprint(self) -> str:
        """Tells those that are measured on before the report from others."""
        told = [part.fingerprint for part in (self.calibrate, self.search)]
        return hashlib.blake2b(repr((told, self.settings)).encode(), digest_size=12).hexdigest()


def _limited(part: PoseDataset, most: int | None) -> PoseDataset:
    return part if most is None or most >= len(part) else part.subset(part.ids[:most])


def open_images(
    text: str, images: Path | None, skeleton: Skeleton, settings: QuantiseSettings, sets: list[str] | None
) -> Images:
    """Return the images of a recipe or run; of a COCO file, three parts of it.

    Raises
    ------
    InputError
        If they cannot be read, or are of other joints than ``skeleton``.
    """
    path = Path(text)
    val_boxes: str | Path = "annotated"
    if RunDirectory.is_run(path) or path.suffix in (".yaml", ".yml"):
        recipe = RunDirectory.open(path, sets).recipe if path.is_dir() else load_recipe(path, sets)
        data: Datasets = open_datasets(recipe)
        parts = data.calibrate, data.search, data.val
        how, where, val_boxes = recipe.evaluate, f"recipe {recipe.name}", recipe.data.val.boxes
    else:
        check_annotations(text, images)
        if sets:
            raise InputError(
                f"--set changes a recipe's or a run's settings; '{text}' is neither: leave it out"
            )
        whole = PoseDataset(path, images, skeleton).with_people()
        third = whole.split({"calibrate": 0.2, "search": 0.4, "val": 0.4}, settings.seed)
        parts = third["calibrate"], third["search"], third["val"]
        how, where = EvaluateConfig(), f"{path.name}, split 20:40:40"
    if parts[0].skeleton.joints != skeleton.joints:
        raise InputError(
            f"the model finds {', '.join(skeleton.joints)}, but the data"
            f" {', '.join(parts[0].skeleton.joints)}; read the data with the model's joints:"
            f" --set data.skeleton={skeleton.name}"
        )
    calibration, search, val = parts
    return Images(
        _limited(calibration, settings.calibration_images),
        _limited(search.with_people(), settings.search_images),
        _limited(val, settings.val_images),
        how,
        where,
        val_boxes,
    )


@dataclass
class Scorer:
    """AP of ONNX models on a set of images, as the torch network's would be measured.

    Attributes
    ----------
    dataset, config, protocol
        The images, and how AP is measured.
    simulated
        See :class:`supernet.quantise.OnnxMaps`.
    size
        Height and width into which whole pictures are fitted; None: they keep their shape.
    """

    dataset: PoseDataset
    config: EvalConfig | TopDownConfig
    protocol: Literal["coco", "crowdpose"]
    simulated: bool
    size: tuple[int, int] | None = None
    pictures: Pictures = field(init=False)

    def __post_init__(self) -> None:
        fitted = self.size is not None and isinstance(self.config, EvalConfig)
        self.pictures = (
            FittedPictures(self.dataset, self.size)
            if fitted and self.size is not None
            else pictures_for(self.config, self.dataset)
        )

    def matches(self, model: onnx.ModelProto, progress: Callable[[int, int], None] | None = None) -> Matches:
        """Return a model's detections matched to people."""
        network = OnnxMaps(open_shapes(model), 1, self.simulated)
        return self.matches_of(network, progress, side_by_side=max(2, torch.get_num_threads()))

    def matches_of(
        self,
        network: nn.Module,
        progress: Callable[[int, int], None] | None = None,
        *,
        side_by_side: int = 1,
        batch_size: int = 1,
    ) -> Matches:
        """Return the detections of what is called like a network matched to people."""
        inference = Inference(side_by_side=side_by_side, pictures=self.pictures)
        config = replace(self.config, batch_size=batch_size)
        found = find_people(network, self.dataset, config, inference=inference, progress=progress)
        return match_detections(
            self.dataset.ground_truth(),
            found.detections,
            self.dataset.skeleton.sigmas,
            scored_joints(self.dataset),
            self.protocol,
            config.max_detections,
        )

    def ap(self, model: onnx.ModelProto) -> float:
        """Return a model's AP."""
        return float(self.matches(model).values("AP")[0])


def network_inputs(
    dataset: PoseDataset,
    config: EvalConfig | TopDownConfig,
    most: int,
    size: tuple[int, int] | None = None,
) -> list[Array]:
    """Return a data set's pictures, or the people in them, as networks see them: batches of one.

    With ``size``, height and width, whole pictures are fitted into it.
    """
    pictures: Iterator[NDArray[np.uint8]]
    if isinstance(config, TopDownConfig):
        people = PersonPictures(dataset, 0)
        pictures = (crop.image for i in dataset.ids for crop in people.crops(i, config))
    elif size is not None:
        pictures = (letterbox(dataset.load_image(i), size)[0] for i in range(len(dataset)))
    else:
        grid = config.resolution, config.multiple
        pictures = (resize_for_eval(dataset.load_image(i), *grid)[0] for i in range(len(dataset)))
    return [
        np.ascontiguousarray(normalise(picture[None]).numpy()) for picture in itertools.islice(pictures, most)
    ]


def time_models(
    models: dict[str, onnx.ModelProto], size: tuple[int, int], threads: int, rounds: int = _ROUNDS
) -> dict[str, dict[str, float]]:
    """Return milliseconds of models at batch 1 on ONNX Runtime, timed in turn: median, least and most.

    Parameters
    ----------
    models
        By name.
    size
        Height and width of the image, pixels.
    threads
        Threads of ONNX Runtime.
    rounds
        Visits to each model, after one that does not count.
    """
    networks = {name: OnnxMaps(model, threads) for name, model in models.items()}
    image = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, network in networks.items():
            start = time.perf_counter()
            network(image)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": statistics.median(each), "least_ms": min(each), "most_ms": max(each)}
        for name, each in times.items()
    }


def kept_layers(keep: Sequence[str], layers: Sequence[str]) -> frozenset[str]:
    """Return the layers that ``--keep`` names, by themselves or by the beginning of their names."""
    found: set[str] = set()
    for name in keep:
        own = [layer for layer in layers if layer == name or layer.startswith(f"{name}.")]
        if not own:
            raise InputError(
                f"--keep: the network has no layer or block '{name}'{did_you_mean(name, layers)}"
            )
        found.update(own)
    return frozenset(found)


@dataclass(frozen=True)
class Job:
    """What the steps of one command have in common.

    Attributes
    ----------
    network, skeleton
        In evaluation mode, and its joints.
    images, settings
        What it is calibrated and measured on, and how.
    simulated
        See :class:`supernet.quantise.OnnxMaps`.
    size
        Height and width into which whole pictures are fitted; None: they keep their shape.
    """

    network: Subnet
    skeleton: Skeleton
    images: Images
    settings: QuantiseSettings
    simulated: bool
    size: tuple[int, int] | None = None

    def config(self, boxes: str | Path = "annotated") -> EvalConfig | TopDownConfig:
        """Return how AP is measured at the network's resolution."""
        side, settings = self.network.arch.number("resolution"), self.images.settings
        if paradigm_of(self.network) is TOP_DOWN:
            return settings.top_down_at(side, boxes, heatmap_sigma(self.network))
        config = settings.at(side)
        if side % config.multiple:
            config = replace(config, multiple=next(m for m in (64, 32, 16) if side % m == 0))
        return config if self.size is None else replace(config, resolution=min(self.size), multiple=1)

    def scorer(self, dataset: PoseDataset, boxes: str | Path = "annotated") -> Scorer:
        """Return what measures AP on a part of the images."""
        return Scorer(dataset, self.config(boxes), self.images.settings.protocol, self.simulated, self.size)


def quantise_model(
    model: Path,
    data: str,
    output: Path,
    settings: QuantiseSettings | None = None,
    *,
    images: Path | None = None,
    skeleton: str | None = None,
    sets: list[str] | None = None,
) -> dict[str, Any]:
    """Carry out ``nas quantise``; return what ``quantisation.json`` says.

    Ranges come from training images, layers are chosen by AP on the search images, and the AP that is
    reported is measured on the val images, from the file written. A model that loses more than the tolerance
    there is not left behind; what was measured is.

    Parameters
    ----------
    model
        An emitted folder or a ``.safetensors``.
    data
        A recipe or run; or a COCO-format ``.json``, of which a fifth calibrates, two fifths choose and two
        fifths report.
    output
        Folder; what was measured before in it is not measured again.
    settings
        How.
    images
        Folder of the images, for a ``.json``.
    skeleton
        Joints of the model, where it does not say.
    sets
        Changes of the recipe's settings.

    Raises
    ------
    InputError
        If the model or the data cannot be read, or do not fit each other.
    RunError
        If the tolerance is missed on the val images, the folder holds another measurement, or another command
        is at work in it.
    """
    settings = settings or QuantiseSettings()
    network, joints = load_with_skeleton(network_file(model), skeleton)
    opened = open_images(data, images, joints, settings, sets)
    cut_off = settings.precision == "int8" and settings.weight_bits == 8 and saturates()
    if cut_off:
        note(
            "this processor's int8 kernels cut off sums of 8-bit weights: AP is that of exact kernels,"
            " simulated in float (--weight-bits 7 runs the same everywhere)"
        )
    job = Job(network.eval(), joints, opened, settings, cut_off)
    with locked_folder(output, f"another command is at work in '{output}'; wait for it or stop it"):
        return _made_and_measured(job, model, output)


def _made_and_measured(job: Job, model: Path, output: Path) -> dict[str, Any]:
    """Write the model and its figures into a folder that is held; return the figures."""
    import onnx

    opened, settings = job.images, job.settings
    fp32_file = output / "fp32.onnx"
    told = {"skeleton": job.skeleton.to_json(), "sigma": heatmap_sigma(job.network)}
    export_onnx(job.network, fp32_file, metadata=told)
    original = onnx.load(fp32_file)
    if settings.precision == "fp16":
        report: dict[str, Any] = {"model": half_precision(original), "kept_in_float": None}
    else:
        report = choose_int8(job, original, output / "measured.jsonl")
    target = output / f"{settings.precision}.onnx"
    report_file = output / f"quantisation-{settings.precision}.json"
    made, beside = report.pop("model"), report.pop("beside", {})
    with atomic_path(target) as temporary:
        temporary.write_bytes(_described(made, report, settings).SerializeToString())
        report |= _certified(job, fp32_file, temporary, beside)
        _doubted(report, settings)
        report |= {
            "model": str(model),
            "file": target.name,
            "size_bytes": {"fp32": fp32_file.stat().st_size, settings.precision: temporary.stat().st_size},
            "data": opened.where,
            "images": {
                "calibrate": len(opened.calibrate),
                "search": len(opened.search),
                "val": len(opened.val),
            },
            "settings": asdict(settings),
            "environment": environment(["nas", "quantise"]),
        }
        write_json(report_file, report)
        if not report["within_tolerance"]:
            target.unlink(missing_ok=True)
            raise RunError(
                f"the {settings.precision} model loses {report['loss']:.4f} on the val images, more than the"
                f" tolerance of {settings.tolerance:g}; it was not kept ('{report_file}' tells what was"
                " measured): allow more with --tolerance, choose by more images, or --keep further layers"
            )
    return report


def _doubted(report: dict[str, Any], settings: QuantiseSettings) -> None:
    """Say where a loss within the tolerance is no news: nothing more could have been lost."""
    best = None if settings.score == "heatmap" else report["val"]["fp32"]["value"]
    if best is not None and best <= settings.tolerance:
        note(
            f"the AP of the network in float is {best:.4f} on the val images, no more than the tolerance: any"
            " model keeps that; --score heatmap tells the error of the outputs"
        )


def _described(model: onnx.ModelProto, report: dict[str, Any], settings: QuantiseSettings) -> onnx.ModelProto:
    """Return a model that says in its metadata how it was made."""
    told = {
        "precision": settings.precision,
        "kept_in_float": report.get("kept_in_float"),
        "method": settings.method if settings.precision == "int8" else None,
        "weight_bits": settings.weight_bits if settings.precision == "int8" else None,
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = "quantisation", json.dumps(told)
    return model


def choose_int8(job: Job, original: onnx.ModelProto, journal: Path, *, kinds: bool = True) -> dict[str, Any]:
    """Calibrate, measure each unit, choose; return the model and what was found.

    Parameters
    ----------
    job
        The network, its images and how it is quantised.
    original
        The network as exported in fp32, for batches of one.
    journal
        Where what was measured is kept: it is not measured again.
    kinds
        Whether all layers of each kind are measured, too.

    Raises
    ------
    InputError
        If ``--keep`` names no layer of the network.
    RunError
        If the journal is of another measurement, or damaged.
    """
    settings = job.settings
    model, rewritten = (original, []) if settings.deconvs == "transposed" else subpixel_deconvs(original)
    asked = {
        name: value
        for name, value in asdict(settings).items()
        if name in ("method", "weight_bits", "score", "deconvs", "calibration_images", "probe_images", "seed")
    }
    digest = hashlib.blake2b(model.SerializeToString(deterministic=True), digest_size=12).hexdigest()
    header = {"network": digest, "images": job.images.fingerprint, "simulated": job.simulated, **asked}
    if job.size is not None:
        header["size"] = list(job.size)
    doing = {"doing": "quantising", "what": "quantisation"}
    with open_lines(journal, header, **doing) as lines:
        pictures = network_inputs(job.images.calibrate, job.config(), settings.calibration_images, job.size)
        ranges = _ranges(lines, open_shapes(model), pictures, settings.method)
        quantiser = Quantiser(model, ranges, settings.weight_bits)
        keep = kept_layers(settings.keep, list(quantiser.layers))
        probe = Probe(original, pictures[: settings.probe_images], job.simulated)

        def error(candidate: onnx.ModelProto) -> float:
            return -float(np.sqrt(np.mean(list(probe.noise(candidate).values()))))

        score = error if settings.score == "heatmap" else job.scorer(job.images.search).ap
        trials = Trials(quantiser, probe, score, lines)
        units = units_of(quantiser.layers, layer_macs(model), settings.by)
        with progress_bar(f"measuring each {settings.by}", len(units)) as bar:
            found = trials.sensitivities(
                units, scored=settings.unit_scores, progress=lambda done, total: bar.update(done, total)
            )
        every = frozenset(quantiser.layers)
        by_kind = {}
        groups = kinds_of(quantiser.layers) if kinds else {}
        with progress_bar("measuring each kind of layer", len(groups)) as bar:
            for place, (kind, own) in enumerate(groups.items(), start=1):
                by_kind[kind] = {
                    "layers": len(own),
                    "snr_alone_db": decibels(trials.noise(every - own)),
                    "loss_alone": trials.fp32() - trials.score(every - own),
                    "snr_all_but_db": decibels(trials.noise(own)),
                }
                bar.update(place, len(groups))
        choice = choose(
            trials,
            found,
            settings.tolerance,
            keep,
            progress=lambda kept, loss: note(f"{kept} {settings.by}s in float: loses {loss:.4f}"),
        )
        final = quantiser.int8(choice.kept)
        return {
            "model": final,
            "beside": {"int8 everywhere": quantiser.int8()} if choice.kept else {},
            "kept_in_float": sorted(choice.kept),
            "search": _search_report(trials, found, choice),
            "kinds": by_kind,
            "executed": executed_in(final, quantiser.layers),
            "rewritten_deconvs": rewritten,
            "simulated": job.simulated,
        }


def _ranges(
    lines: JsonLines, model: onnx.ModelProto, pictures: Sequence[Array], method: str
) -> dict[str, tuple[float, float]]:
    """Return the ranges of the journal, or measure them."""
    for number, record in lines.records():
        if record.get("what") == "ranges":
            try:
                told = {str(name): (float(low), float(high)) for name, (low, high) in record["value"].items()}
                if all(-math.inf < low <= high < math.inf for low, high in told.values()):
                    return told
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                pass
            raise damaged(lines.path, number)
    with progress_bar("calibrating", len(pictures)) as bar:
        ranges = calibrate(model, pictures, method, progress=bar.update)
    lines.write({"what": "ranges", "value": ranges})
    return ranges


def _search_report(trials: Trials, found: Sequence[Sensitivity], choice: Choice) -> dict[str, Any]:
    every = trials.quantiser.layers
    return {
        "score_fp32": trials.fp32(),
        "score_int8_everywhere": trials.score(()),
        "snr_int8_everywhere_db": {name: decibels(noise) for name, noise in trials.noises(()).items()},
        "snr_rewritten_db": decibels(trials.noise(every)),
        "score": choice.score,
        "loss": choice.loss,
        "kept_units": list(choice.units),
        "tried": list(choice.tried),
        "units": [each.to_json() for each in found],
    }


def _certified(job: Job, fp32: Path, file: Path, beside: dict[str, onnx.ModelProto]) -> dict[str, Any]:
    """Measure a written file, and models that it stands beside, against fp32: AP on the val images, time."""
    import onnx

    settings = job.settings
    reference, model = onnx.load(fp32), onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    if settings.score == "heatmap":
        parts = network_inputs(job.images.val, job.config(job.images.val_boxes), settings.probe_images)
        noises = Probe(reference, parts, job.simulated).noise(model)
        loss = float(np.sqrt(np.mean(list(noises.values()))))
        figures: dict[str, Any] = {"val": {"snr_db": {name: decibels(n) for name, n in noises.items()}}}
    else:
        scorer = job.scorer(job.images.val, job.images.val_boxes)
        matched: dict[str, Matches] = {}
        for name, each in {"fp32": reference, settings.precision: model, **beside}.items():
            with progress_bar(f"evaluating {name}", len(job.images.val)) as bar:
                matched[name] = scorer.matches(each, bar.update)
        fp32_matches = matched.pop("fp32")
        drawn = settings.resamples
        differences = {
            name: compare_ap(each, fp32_matches, drawn, np.random.default_rng(settings.seed))
            for name, each in matched.items()
        }
        loss = -differences[settings.precision].value
        figures = {
            "val": {
                name: bootstrap_ap(each, drawn, np.random.default_rng(settings.seed)).to_json()
                for name, each in {"fp32": fp32_matches, **matched}.items()
            },
            "difference": {name: each.to_json() for name, each in differences.items()},
        }
    pictures = network_inputs(job.images.calibrate, job.config(), settings.probe_images)
    threads = torch.get_num_threads()
    timed = time_models(
        {"fp32": reference, settings.precision: model, **beside}, job.network.arch.size, threads
    )
    return {
        **figures,
        "loss": loss,
        "within_tolerance": bool(loss <= settings.tolerance),
        "max_error": _max_error(reference, model, pictures),
        "latency_here": {"threads": threads, "runtime": "onnxruntime", **timed},
    }


def _max_error(
    reference: onnx.ModelProto, model: onnx.ModelProto, pictures: Sequence[Array]
) -> dict[str, float]:
    """Return the largest error of each output over its largest value."""
    networks = [OnnxMaps(open_shapes(each)) for each in (reference, model)]
    names = [info.name for info in reference.graph.output]
    error, most = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for picture in pictures:
        ours, theirs = (network(torch.from_numpy(picture)) for network in networks)
        for name, one, other in zip(names, ours, theirs, strict=True):
            error[name] = max(error[name], float((one - other).abs().max()))
            most[name] = max(most[name], float(one.abs().max()))
    return {name: error[name] / most[name] if most[name] else error[name] for name in names}
