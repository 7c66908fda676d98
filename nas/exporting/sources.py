"""What the files of an export are made of: the network as ONNX and as a program, its int8 layers, ranges."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latency_tables.networks import network_program
from latency_tables.runtimes import Program, litert_runtime, ncnn_runtime, openvino_runtime
from latency_tables.runtimes.base import file_digest
from latency_tables.runtimes.ranges import Range, value_ranges
from nas.console import note, progress_bar
from nas.exporting.formats import Export
from nas.latency import trained_weights
from nas.quantising import Job, choose_int8, network_inputs
from nas.written import SIDECAR, sidecar_of
from search_spaces.files import make_folder, write_bytes, write_json
from supernet.export import export_onnx
from supernet.fusing import rewritten
from supernet.onnx_peaks import PEAK_OUTPUTS, with_peaks
from supernet.pose.maps import EvalConfig
from supernet.quantise import half_precision

if TYPE_CHECKING:
    import onnx

    from latency_tables.runtimes.base import Array

__all__ = ["Sources", "with_batch"]


def with_batch(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """Return a model that takes so many pictures at once; None: any number.

    Parameters
    ----------
    model
        For one picture; no size of its batch is part of the graph.
    batch
        How many.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for info in (*copy.graph.input, *copy.graph.output):
        first = info.type.tensor_type.shape.dim[0]
        if batch is None:
            first.dim_param = "batch"
        else:
            first.dim_value = batch
    return copy


def _told(model: onnx.ModelProto, key: str) -> str:
    """Return an entry of a model's metadata."""
    return next(str(entry.value) for entry in model.metadata_props if entry.key == key)


class Sources:
    """A network's forms, each made when it is first asked for.

    Parameters
    ----------
    job
        The network and its images.
    size
        Height and width of the pictures that its files take.
    told
        What every file is to say, such as the skeleton.
    journals
        Folder of what was measured on the way to int8; it is not measured again.
    rewrites
        By runtime the rewrites (:mod:`supernet.fusing`) of ONNX models in fp32; none where it is not named.
    """

    def __init__(
        self,
        job: Job,
        size: tuple[int, int],
        told: dict[str, Any],
        journals: Path,
        *,
        rewrites: Mapping[str, Sequence[str]],
    ) -> None:
        self.job, self.size, self.told = job, size, told
        self._journals, self.rewrites = journals, rewrites

    @cached_property
    def fp32(self) -> onnx.ModelProto:
        """The network in fp32, for one picture."""
        import onnx

        note("writing the network as ONNX")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            # Whether it is kept is for the certificate to say.
            export_onnx(self.job.network, path, self.size, metadata=self.told, tolerance=float("inf"))
            return onnx.load(path)

    @cached_property
    def int8(self) -> dict[str, Any]:
        """The network in 8 bits with some layers in float, and how these were chosen."""
        settings = self.job.settings
        key = json.dumps(
            {
                "network": hashlib.sha256(self.fp32.SerializeToString(deterministic=True)).hexdigest(),
                "images": self.job.images.fingerprint,
                "size": list(self.size),
                **{k: v for k, v in asdict(settings).items() if k not in ("tolerance", "keep")},
            }
        )
        name = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        journal = make_folder(self._journals) / f"int8-{name}.jsonl"
        return choose_int8(self.job, self.fp32, journal, kinds=False)

    @cached_property
    def program(self) -> Program:
        """The trained network as a program."""
        network = self.job.network
        return network_program(network.arch, network.joints, self.size, weights=trained_weights(network))

    @cached_property
    def ranges(self) -> dict[int, Range]:
        """The range of every value of the program over the calibration pictures."""
        job, most = self.job, self.job.settings.calibration_images
        if job.settings.method != "minmax":
            note(
                f"ncnn and LiteRT take ranges from least to largest value: --method {job.settings.method}"
                " is for ONNX and OpenVINO"
            )
        pictures = network_inputs(job.images.calibrate, job.config(), most, self.size)
        with progress_bar("calibrating", len(pictures)) as bar:

            def told() -> Iterator[Array]:
                for place, picture in enumerate(pictures, start=1):
                    yield picture
                    bar.update(place)

            return value_ranges(self.program, told(), max(1, torch.get_num_threads()))

    def _steps(self, kept: Sequence[str]) -> list[str]:
        """Return layers of ONNX models by a program's names: a gate is one there, not two convolutions."""
        names = {step.layer.name for step in self.program.steps}
        found = [name if name in names else name.rpartition(".")[0] for name in kept]
        return list(dict.fromkeys(found))

    def model(self, export: Export) -> onnx.ModelProto:
        """Return the ONNX model that an export is, or is converted from."""
        if export.precision == "int8":
            model = self.int8["model"]
        elif export.precision == "fp16" and export.format.name == "onnx":
            model = half_precision(self.fp32)
        else:
            model = self.fp32
            if wanted := self.rewrites.get(export.format.runtime):
                model, made = rewritten(model, wanted)
                entry = model.metadata_props.add()
                entry.key, entry.value = "rewrites", json.dumps(made)
        model = with_batch(model, export.batch)
        if export.peaks:
            model = with_peaks(model, **self.picking)
        if export.precision != "fp32":
            entry = model.metadata_props.add()
            told = {"precision": export.precision, "kept_in_float": self.kept_in_float(export)}
            entry.key, entry.value = "quantisation", json.dumps(told)
        return model

    @property
    def picking(self) -> dict[str, Any]:
        """How peaks are picked: as the pictures' evaluation does, parameters of ``with_peaks``."""
        config = self.job.config()
        if not isinstance(config, EvalConfig):
            return {}
        grouping = config.grouping
        return {
            "most": grouping.max_people,
            "kernel": grouping.nms_kernel,
            "threshold": grouping.detection_threshold,
        }

    def kept_in_float(self, export: Export) -> list[str] | None:
        """Return the layers of an export that compute in float though the others do not."""
        return list(self.int8["kept_in_float"]) if export.precision == "int8" else None

    def write(self, export: Export, folder: Path) -> Path:
        """Write an export's files into a folder; return the one that the engine is given.

        Raises
        ------
        InputError, UnavailableError, RunError
            If the engine's format cannot hold the network.
        """
        path, peaks = folder / export.file, None
        match export.format.name:
            case "onnx":
                write_bytes(path, self.model(export).SerializeToString())
            case "openvino":
                texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.told.items()}
                model = self.model(export)
                if export.peaks:
                    texts["peaks"] = _told(model, "peaks")
                    peaks = json.loads(texts["peaks"])
                half = export.precision == "fp16"
                openvino_runtime.write_network(model.SerializeToString(), path, texts, half=half)
            case "ncnn" | "litert":
                modules: dict[str, Any] = {"ncnn": ncnn_runtime, "litert": litert_runtime}
                write = modules[export.format.name].write_network
                if export.precision == "fp32":
                    write(self.program, path)
                elif export.precision == "int8":
                    kept = self.kept_in_float(export) or []
                    write(self.program, path, "int8", self.ranges, self._steps(kept))
                else:
                    write(self.program, path, export.precision)
        if not export.format.carries:
            digests = {name: file_digest(folder / name) for name in export.files}
            write_json(sidecar_of(path), {**self._sidecar(export, peaks), "sha256": digests})
        return path

    def _sidecar(self, export: Export, peaks: dict[str, Any] | None) -> dict[str, Any]:
        network = self.job.network
        names = network.output_names if peaks is None else PEAK_OUTPUTS[network.paradigm]
        return {
            "kind": SIDECAR,
            "format": export.format.name,
            "precision": export.precision,
            "runs_as": "fp32" if export.format.name == "openvino" else export.precision,
            "size": list(self.size),
            "batch": export.batch,
            "paradigm": network.paradigm,
            "joints": network.joints,
            "outputs": list(names),
            "peaks": peaks,
            "arch": network.arch.to_json(),
            "input": {"colour": "RGB", "normalised": "ImageNet"},
            **self.told,
        }
