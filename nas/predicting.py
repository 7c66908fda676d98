"""``nas predict``: people in pictures, in videos and before a camera; drawn, and as COCO JSON."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import cv2
import torch

from nas.console import print_table
from nas.evaluation import heatmap_sigma, load_model
from nas.inputs import PARTIAL, PREDICTIONS, Input, find_inputs
from nas.person_boxes import WHOLE_IMAGE, read_person_boxes
from nas.watching import PredictSettings, Watch
from nas.written import WrittenNetwork
from search_spaces import InputError, UnavailableError
from search_spaces.files import remove_leftovers, write_json
from search_spaces.jsonl import open_lines
from supernet.base import Subnet
from supernet.export import fold_batchnorm
from supernet.paradigms import TOP_DOWN, paradigm_of
from supernet.pose.coco_json import write_dataset_json, write_results_json
from supernet.pose.finding import as_picked
from supernet.pose.maps import EvalConfig
from supernet.pose.predictor import PersonPredictor, PosePredictor
from supernet.pose.topdown import TopDownConfig
from supernet.pose.video import choose_codec, quiet_opencv
from supernet.training import pick_device

__all__ = ["PredictSettings", "cpu_threads", "failure", "open_model", "predict_inputs", "time_table"]

RESULTS: Final = "results.json"
SUMMARY: Final = "summary.json"


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch and OpenCV use that many CPU threads meanwhile; None leaves it to them."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        if count is not None:
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _digest(model: Path) -> str:
    """Return the beginning of the SHA-256 of a model's weights."""
    file = model / "model.safetensors" if model.is_dir() else model
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def open_model(
    model: Path, settings: PredictSettings, *, boxes_with_pictures: bool = False
) -> PosePredictor | PersonPredictor:
    """Return what finds people by a model: as :func:`~nas.evaluation.load_model` takes it, set as asked.

    ``boxes_with_pictures`` says that whoever calls it knows where people are, so that a top-down network need
    not be told here.

    Raises
    ------
    InputError, UnavailableError
        If the model cannot be read, or it and the settings do not fit.
    """
    network, skeleton, own = load_model(model, settings.skeleton, settings.threads or 0)
    top_down = paradigm_of(network) is TOP_DOWN
    if top_down and boxes_with_pictures:
        settings = replace(settings, boxes=WHOLE_IMAGE)
    if not isinstance(network, WrittenNetwork) and top_down:
        height, device = settings.resolution or own, pick_device(settings.device)
        if isinstance(network, Subnet):
            network = fold_batchnorm(network)
        return PersonPredictor(
            network.to(device), skeleton, settings.top_down(height, heatmap_sigma(network)), device=device
        )
    if not isinstance(network, WrittenNetwork):
        config = settings.evaluation(settings.resolution or own)
        device = pick_device(settings.device)
        if isinstance(network, Subnet):
            network = fold_batchnorm(network)  # equal but for rounding, and a quarter faster on a CPU
        return PosePredictor(network.to(device), skeleton, config, device=device)
    if settings.device not in ("auto", "cpu"):
        raise UnavailableError(
            f"--device: {'an' if model.suffix == '.onnx' else 'a'} {model.suffix} runs on the CPU here, not"
            f" on '{settings.device}'"
        )
    if settings.resolution not in (None, own):
        raise InputError(
            f"--resolution: '{model}' was exported for {network.size[0]}x{network.size[1]} pixels only;"
            " take the .safetensors for another resolution"
        )
    how: EvalConfig | TopDownConfig
    how = settings.top_down(own, heatmap_sigma(network)) if top_down else settings.evaluation(own)
    if network.peaks is not None:
        how = as_picked(how, network.peaks)
    if isinstance(how, TopDownConfig):
        return PersonPredictor(network, skeleton, how)
    return PosePredictor(network, skeleton, how, size=network.size)


def _check_output(output: Path) -> None:
    """Refuse a folder in which a file of somebody else's would be overwritten."""
    if (output / SUMMARY).exists() or (output / PARTIAL).exists():
        return
    for name in (PREDICTIONS, RESULTS):
        if (output / name).exists():
            raise InputError(
                f"folder '{output}' holds a {name} that this command has not written; take another --output"
            )


def _header(
    model: Path, predictor: PosePredictor | PersonPredictor, settings: PredictSettings
) -> dict[str, Any]:
    """Return what a journal's records hold for, as plain JSON values."""
    config = asdict(predictor.config)
    wanted = ("min_score", "draw", "labels", "every", "max_frames", "fps", "codec")
    return {
        "weights": _digest(model),
        "joints": list(predictor.skeleton.joints),
        **config.pop("grouping", {}),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        **{name: getattr(settings, name) for name in wanted},
        **_boxes_header(settings.boxes),
    }


def _boxes_header(boxes: str | None) -> dict[str, Any]:
    """Return where people were looked for: a file by what it holds."""
    if boxes is None or boxes == WHOLE_IMAGE:
        return {} if boxes is None else {"boxes": boxes}
    return {"boxes": hashlib.sha256(Path(boxes).read_bytes()).hexdigest()[:16]}


def predict_inputs(
    model: Path, arguments: Sequence[str], output: Path, settings: PredictSettings
) -> dict[str, Any]:
    """Carry out ``nas predict``; return the summary that is also written to ``OUTPUT/summary.json``.

    ``OUTPUT`` then holds ``drawn/`` with the pictures and videos, ``predictions.json`` (a COCO data set of
    what was drawn) and ``results.json`` (COCO results: everybody, with all joints). Interrupted, the same
    call continues with the first unfinished picture or video. Inputs that cannot be read are listed under
    ``failed``; the others are done all the same.

    Parameters
    ----------
    model
        As :func:`~nas.evaluation.load_model` takes it.
    arguments
        As :func:`~nas.inputs.find_inputs` takes them.
    output
        Folder for the results.
    settings
        How.

    Raises
    ------
    InputError, UnavailableError
        Before anything is written: if an input does not exist, or model, settings and inputs do not fit;
        and at the end if not one input could be read.
    RunError
        If the folder cannot be written, or holds an unfinished run with other settings.
    """
    with quiet_opencv(), cpu_threads(settings.threads):
        inputs, root = find_inputs(arguments)
        _check_output(output)
        predictor = open_model(model, settings)
        boxes = None if settings.boxes is None else read_person_boxes(settings.boxes)
        if boxes is not None:
            boxes.check(inputs)
        codec, remark = None, None
        if settings.draw and any(each.kind != "picture" for each in inputs):
            codec, remark = choose_codec(settings.codec)
        header = _header(model, predictor, settings)
        with open_lines(output / PARTIAL, header, doing="predicting", what="prediction") as lines:
            watch = Watch(predictor, settings, output, codec, lines, boxes)
            if remark:
                watch.tell(remark)
            try:
                seconds = watch.run(inputs)
                if not watch.seen:
                    reason = next(iter(watch.failed.values()))
                    raise InputError(f"not one of {len(inputs)} inputs could be read: {reason}")
            except BaseException:
                if not watch.seen and not watch.fresh:  # there is nothing to continue
                    lines.remove()
                    with contextlib.suppress(OSError):  # somebody else's files may lie there
                        output.rmdir()
                raise
            summary = _summary(watch, model, header, inputs, seconds)
            summary |= {"images": str(root), "output": str(output)}
            _write(watch, inputs, header, summary)
            lines.remove()
    return summary


def _summary(
    watch: Watch, model: Path, header: Mapping[str, Any], inputs: Sequence[Input], seconds: float
) -> dict[str, Any]:
    kinds = {each.name: each.kind for each in inputs}
    frames = sum(len(seen) for name, seen in watch.seen.items() if kinds[name] != "picture")
    pictures = sum(kinds[name] == "picture" for name in watch.seen)
    people = sum(int(watch.shown(seen).any(axis=1).sum()) for each in watch.seen.values() for seen in each)
    return {
        "model": model.name,
        "pictures": pictures,
        "videos": len(watch.videos),
        "frames": frames,
        "people": people,
        "resolution": header["resolution"],
        "flip": header["flip"],
        "project": header.get("project", False),
        "device": str(watch.predictor.device),
        "threads": torch.get_num_threads() if watch.settings.threads is None else watch.settings.threads,
        "ms": watch.times(),
        "fps": round(watch.fresh / seconds, 2) if watch.fresh else None,
        "seconds": round(seconds, 3),
        "taken_over": watch.resumed,
        "failed": [{"input": name, "reason": reason} for name, reason in watch.failed.items()],
        "notes": watch.notes,
    }


def _write(
    watch: Watch, inputs: Sequence[Input], header: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """Write what was found; the summary first, since it marks the folder as this command's."""
    pictures = watch.found(inputs)
    settings = {key: value for key, value in header.items() if key != "joints"}
    info = {"description": "people found by nas predict", "model": summary["model"], "settings": settings}
    videos = [{"id": number, **each} for number, each in enumerate(watch.clips(inputs).values(), start=1)]
    for name in (SUMMARY, RESULTS, PREDICTIONS):
        remove_leftovers(watch.output / name)
    write_json(watch.output / SUMMARY, summary)
    write_results_json(watch.output / RESULTS, pictures)
    write_dataset_json(watch.output / PREDICTIONS, pictures, watch.predictor.skeleton, info, videos)


def failure(summary: Mapping[str, Any]) -> str | None:
    """Return the line that says which inputs could not be read, or None if all could."""
    failed: Sequence[Mapping[str, str]] = summary["failed"]
    reasons = [each["reason"] for each in failed]
    if not reasons:
        return None
    done = summary["pictures"] + summary["videos"]
    return (
        f"{len(reasons)} of {len(reasons) + done} inputs could not be read, the others are done"
        f" (see '{summary['output']}'): {reasons[0]}"
    )


def time_table(summary: Mapping[str, Any]) -> None:
    """Print how long pictures or frames took, stage by stage."""
    rows = [(stage, f"{ms['median']:.1f}", f"{ms['p90']:.1f}") for stage, ms in summary["ms"].items()]
    print_table("milliseconds per picture or frame", ("stage", "median", "90th percentile"), rows)
