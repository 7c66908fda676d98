"""The command: every file that is asked for, made, certified, put in place; the record of them all."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from latency_tables import get_runtime
from latency_tables.networks import weight_names
from latency_tables.runtimes.base import file_digest
from nas.console import note
from nas.evaluation import heatmap_sigma
from nas.exporting.certificate import Reference, Tolerances, refusal
from nas.exporting.formats import Export, plan_exports
from nas.exporting.peaks import check_peaks
from nas.exporting.sources import Sources
from nas.model_card import CARD, changing_card, check_told
from nas.quantising import Images, Job, QuantiseSettings, kept_layers, open_images
from nas.run import environment
from nas.train import load_with_skeleton, network_file
from nas.written import SUFFIXES, RuntimeNetwork, open_written, sidecar_of
from search_spaces import InputError, RunError, UnavailableError
from search_spaces.files import (
    locked,
    make_folder,
    put_in_place,
    read_json,
    remove_leftovers,
    write_json,
)
from supernet.fusing import FOR_RUNTIME, FOR_X86
from supernet.paradigms import TOP_DOWN, paradigm_of

__all__ = ["RECORD", "ExportSettings", "export_model"]

RECORD: Final = "exports.json"
"""In the folder of the files: what each is and was measured to give."""
_VERSION: Final = 1
_MAKING: Final = ".making"


@dataclass(frozen=True)
class ExportSettings:
    """What ``nas export`` makes, and how it judges it.

    Attributes
    ----------
    formats, precisions
        Names in :data:`nas.exporting.formats.FORMATS` and ``PRECISIONS``; every format comes in every one.
    batch
        Pictures of one run; None leaves it free.
    size
        Height and width of the pictures; by default the network's own.
    tolerance_ap
        Most AP that a file may lose.
    tolerance_outputs
        Most error of an fp32 file's outputs over their largest value; by default the format's.
    keep
        Layers or blocks that stay in float in int8.
    method
        Of int8's ranges, one of :data:`supernet.quantise.METHODS`.
    calibration_images, search_images
        Training images for ranges; images by which int8's float layers are chosen, None: all.
    limit
        Most val images; None: all.
    pictures
        Val images on which outputs are compared.
    resamples
        Of the bootstrap for intervals.
    again
        Whether files are made again that are certified already.
    plain, x86
        Whether ONNX files in fp32 keep the network's own operators, where a runtime computes others faster;
        whether operators are chosen for x86 processors.
    peaks
        Whether files return the peaks of their maps in the maps' place.
    """

    formats: tuple[str, ...] = ("onnx",)
    precisions: tuple[str, ...] = ("fp32",)
    batch: int | None = 1
    size: tuple[int, int] | None = None
    tolerance_ap: float = 0.01
    tolerance_outputs: float | None = None
    keep: tuple[str, ...] = ()
    method: str = "minmax"
    calibration_images: int = 32
    search_images: int | None = None
    limit: int | None = None
    pictures: int = 4
    resamples: int = 1000
    again: bool = False
    plain: bool = False
    x86: bool = False
    peaks: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance_ap < float("inf"):
            raise InputError(
                f"--tolerance-ap is what may be lost, finite and at least 0, not {self.tolerance_ap}"
            )
        if self.tolerance_outputs is not None and not 0 <= self.tolerance_outputs < float("inf"):
            raise InputError(
                f"--tolerance-outputs is an error relative to the largest value, finite and at least 0, not"
                f" {self.tolerance_outputs}"
            )
        for option, count in (("--limit", self.limit), ("--pictures", self.pictures)):
            if count is not None and count < 1:
                raise InputError(f"{option} is at least 1, not {count}")
        if self.plain and self.x86:
            raise InputError("--plain keeps the network's operators, --x86 chooses others: give one of them")
        self.quantising()

    @property
    def rewrites(self) -> Mapping[str, Sequence[str]]:
        """By runtime the rewrites (:mod:`supernet.fusing`) of ONNX models in fp32."""
        return {} if self.plain else FOR_X86 if self.x86 else FOR_RUNTIME

    @property
    def asked(self) -> tuple[Export, ...]:
        """The files, each possible here."""
        return plan_exports(self.formats, self.precisions, self.batch, peaks=self.peaks)

    def quantising(self) -> QuantiseSettings:
        """Return how int8 is made.

        Float layers are chosen by half of the tolerance on the search images: chosen by all of it, about half
        of the networks would miss it on the val images.
        """
        return QuantiseSettings(
            tolerance=self.tolerance_ap / 2,
            keep=self.keep,
            method=self.method,
            calibration_images=self.calibration_images,
            search_images=self.search_images,
            val_images=self.limit,
            resamples=self.resamples,
        )


def export_model(
    model: Path,
    data: str,
    output: Path | None = None,
    settings: ExportSettings | None = None,
    *,
    images: Path | None = None,
    skeleton: str | None = None,
    sets: list[str] | None = None,
) -> dict[str, Any]:
    """Carry out ``nas export``; return what was made, what was refused, and why.

    Each file is made in a folder of its own, loaded by its engine from there, held against torch, and put in
    place only if it is within the tolerances. ``exports.json`` beside the files tells of all, also of those
    that were refused; the card of an emitted folder of those that are there. Files that the same command, on
    the same network and data, has certified before are not made again.

    Parameters
    ----------
    model
        An emitted folder, a ``.safetensors`` or a research ``.pth``.
    data
        A recipe or run; or a COCO-format ``.json``, of which a fifth calibrates, two fifths choose and two
        fifths report.
    output
        Folder of the files; by default ``exports`` in the emitted folder.
    settings
        What, and how.
    images
        Folder of the images, for a ``.json``.
    skeleton
        Joints of the model, where it does not say.
    sets
        Changes of the recipe's settings.

    Raises
    ------
    InputError, UnavailableError
        Before anything is made: if the model or the data cannot be read, do not fit each other, or something
        cannot be exported as asked.
    RunError
        If the folder holds exports of another network, another command is at work in it, or it cannot be
        written.
    """
    settings = settings or ExportSettings()
    asked = settings.asked
    if model.suffix in SUFFIXES:
        raise InputError(
            f"'{model}' is an exported file; export the folder or the .safetensors that it came from"
        )
    file = network_file(model)
    network, joints = load_with_skeleton(file, skeleton)
    card = model.is_dir() and (model / CARD).is_file()
    if card:
        check_told(file)
    opened = open_images(data, images, joints, settings.quantising(), sets)
    size = settings.size or network.arch.size
    network.arch.layers(network.joints, size)  # raises where the network cannot take the size
    top_down = paradigm_of(network) is TOP_DOWN
    if top_down and size != network.arch.size:
        raise InputError(
            f"--size: a top-down network sees people at its own size, {network.arch.size[0]}x"
            f"{network.arch.size[1]} pixels; leave the option out"
        )
    names = [name for layer in network.arch.layers(network.joints) for name in weight_names(layer)]
    kept_layers(settings.keep, names)
    job = Job(network.eval(), joints, opened, settings.quantising(), False, None if top_down else size)
    if settings.peaks:
        check_peaks(job)
    folder = output or _default_folder(model)
    make_folder(folder)
    busy = f"another command is at work in '{folder}'; wait for it or stop it"
    with locked(folder / ".lock", busy):
        work = _Work(folder, file, job, size, settings)
        try:
            for export in asked:
                work.make(export)
                if card:
                    _tell_card(model, folder, work.record)
        finally:
            work.clean()
        return work.report(asked, model)


def _default_folder(model: Path) -> Path:
    return model / "exports" if model.is_dir() else model.with_name(f"{model.stem}-exports")


def _tell_card(model: Path, folder: Path, record: Mapping[str, Any]) -> None:
    """Let an emitted network's card list what is in the folder now; what it lists elsewhere stays."""
    where = Path(os.path.relpath(folder, model))
    own = [_short(each, where) for each in record["exports"] if each["status"] == "certified"]
    with changing_card(model) as card:
        if file_digest(network_file(model)) != record["weights"]:
            raise RunError(f"'{model}' was made anew while it was exported: export it again")
        listed = card.get("exports") or []
        card["exports"] = [each for each in listed if Path(str(each.get("file"))).parent != where] + own


def _short(entry: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Return what a card says of a file."""
    outputs, ap = entry["certificate"]["outputs"], entry["certificate"]["ap"]
    told = ("format", "precision", "batch", "peaks", "size", "size_bytes", "sha256", "kept_in_float")
    return {
        "file": (where / entry["file"]).as_posix(),
        "date": entry.get("date"),
        **{name: entry[name] for name in told},
        "runtime": f"{entry['runtime']['name']} {entry['runtime']['version']}",
        "max_abs_error": outputs["max_abs"],
        "max_rel_error": outputs["max_rel"],
        "on": ap["on"],
        "images": ap["images"],
        "ap": ap["file"],
        "ap_torch": ap["torch"],
        "difference": ap["difference"],
        "tolerance": f"{ap['tolerance']:g} AP",
        "within_tolerance": ap["within"],
        "sure": ap["sure"],
    }


class _Work:
    """One command's files and their record.

    Parameters
    ----------
    folder
        Where files go.
    file
        The network's weights.
    job
        The network and its images.
    size
        Height and width of the pictures.
    settings
        Of the command.
    """

    def __init__(
        self, folder: Path, file: Path, job: Job, size: tuple[int, int], settings: ExportSettings
    ) -> None:
        self.folder, self.size, self.settings = folder, size, settings
        self._weights = file_digest(file)
        self.record = self._read_record()
        self._making = folder / _MAKING
        self.clean()
        self._job = job
        told = {"skeleton": job.skeleton.to_json(), "sigma": heatmap_sigma(job.network)}
        self._sources = Sources(job, size, told, folder / "journals", rewrites=settings.rewrites)
        self._reference = Reference(job, settings.pictures)

    def clean(self) -> None:
        """Remove what a killed command left half made."""
        shutil.rmtree(self._making, ignore_errors=True)
        remove_leftovers(self.folder / RECORD)

    def _read_record(self) -> dict[str, Any]:
        path = self.folder / RECORD
        if not path.exists():
            return {"version": _VERSION, "weights": self._weights, "exports": []}
        record = read_json(path, "record of exports")
        entries = record.get("exports") if isinstance(record, dict) else None
        sound = isinstance(entries, list) and all(map(_is_entry, entries))
        if not isinstance(record, dict) or not sound or record.get("version") != _VERSION:
            raise InputError(f"'{path}' is no record of exports; delete it to make them anew")
        if record.get("weights") != self._weights:
            raise RunError(
                f"'{self.folder}' holds exports of other weights; delete it, or choose another --output"
            )
        return record

    def _entry(self, file: str) -> dict[str, Any] | None:
        return next((each for each in self.record["exports"] if each["file"] == file), None)

    def _keep(self, file: str, entry: dict[str, Any] | None) -> None:
        """Put a file's entry in the place of its former one; None: there is none any more."""
        others = [each for each in self.record["exports"] if each["file"] != file]
        self.record["exports"] = others if entry is None else [*others, entry]
        write_json(self.folder / RECORD, self.record)

    def _made_from(self, export: Export) -> str:
        """Return what tells everything that a file and its certificate follow from."""
        images, settings = self._job.images, self.settings
        runtime = get_runtime(export.format.runtime)
        told: list[Any] = [
            _VERSION,
            self._weights,
            [export.told, export.batch, list(self.size)],
            [self._job.skeleton.to_json(), repr(images.settings), _boxes(images)],
            [images.val.fingerprint, settings.pictures, settings.resamples],
            [settings.tolerance_ap, settings.tolerance_outputs],
            [metadata.version(name) for name in ("litepose-nas", "torch", "onnx")],
            [runtime.name, runtime.version()],
        ]
        if export.precision == "fp32":
            told += ["rewrites", *settings.rewrites.get(runtime.name, ())]
        if export.peaks:
            told += ["peaks"]
        if export.precision == "int8":
            told += [images.fingerprint, list(settings.keep), settings.method, settings.calibration_images]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()

    def _stands(self, entry: Mapping[str, Any] | None, export: Export, made_from: str) -> bool:
        """Return whether a file needs not be made again."""
        if entry is None or self.settings.again or entry.get("made_from") != made_from:
            return False
        if entry["status"] == "refused":
            return "certificate" in entry  # else nothing was measured, and what was in the way may be gone
        digests = entry["sha256"]
        return all(
            (self.folder / name).is_file() and file_digest(self.folder / name) == digests.get(name)
            for name in self._names(export)
        )

    def make(self, export: Export) -> None:
        """Make one file, certify it, put it in place or refuse it; unless that was done before."""
        made_from = self._made_from(export)
        former = self._entry(export.file)
        if self._stands(former, export, made_from):
            note(f"{export.file}: {former['status'] if former else ''} already; --again makes it anew")
            return
        self._reference.outputs  # noqa: B018 - refuses a network that gives no numbers
        self._making.mkdir()
        entry: dict[str, Any] = {
            "file": export.file,
            "format": export.format.name,
            "precision": export.precision,
            "batch": export.batch,
            "peaks": export.peaks,
            "size": list(self.size),
            "made_from": made_from,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "runtime": {
                "name": export.format.runtime,
                "version": get_runtime(export.format.runtime).version(),
            },
        }
        try:
            entry |= self._certified(export)
        except (UnavailableError, _UnsoundError) as error:
            entry |= {"status": "refused", "why": str(error)}
        names = self._names(export)
        # A network's main file is removed first and put back last: what is there is never of two exports.
        for name in reversed(names):
            (self.folder / name).unlink(missing_ok=True)
        if former is not None:
            self._keep(export.file, None)
        if entry["status"] == "certified":
            for name in names:
                put_in_place(self._making / name, self.folder / name)
            note(f"{export.file}: {_figures(entry)}")
        else:
            note(f"{export.file}: refused: {entry['why']}")
        self._keep(export.file, {**entry, "environment": environment(["nas", "export"])})
        self.clean()

    def _names(self, export: Export) -> list[str]:
        """Return the names of all that is written of an export, what the engine is given last."""
        beside = [] if export.format.carries else [sidecar_of(Path(export.file)).name]
        return [*export.files[:-1], *beside, export.file]

    def _certified(self, export: Export) -> dict[str, Any]:
        """Write the files, measure them; return what the record says of it."""
        path = self._sources.write(export, self._making)
        outputs = None
        if export.precision == "fp32":
            outputs = self.settings.tolerance_outputs
            outputs = export.format.tolerance if outputs is None else outputs
        try:
            network = open_written(path)
        except InputError as error:  # it was written just now: that is no mistake of the user's
            raise _UnsoundError(str(error).replace(f"{self._making}{os.sep}", "")) from None
        try:
            certificate = self._reference.certify(
                network,
                Tolerances(self.settings.tolerance_ap, outputs),
                title=export.told,
                batch=export.batch,
            )
        finally:
            if isinstance(network, RuntimeNetwork):
                network.close()
        why = refusal(certificate)
        return {
            "status": "certified" if why is None else "refused",
            "why": why,
            "size_bytes": sum((self._making / name).stat().st_size for name in export.files),
            "sha256": {name: file_digest(self._making / name) for name in self._names(export)},
            "kept_in_float": self._sources.kept_in_float(export),
            "certificate": certificate,
        }

    def report(self, asked: Sequence[Export], model: Path) -> dict[str, Any]:
        """Return what the command tells."""
        entries = [entry for each in asked if (entry := self._entry(each.file)) is not None]
        return {
            "model": str(model),
            "folder": str(self.folder),
            "record": str(self.folder / RECORD),
            "data": self._job.images.where,
            "settings": asdict(self.settings),
            "exports": entries,
            "refused": [each["file"] for each in entries if each["status"] == "refused"],
            "tensorrt": _tensorrt(entries, self.folder),
        }


class _UnsoundError(RunError):
    """A file that was written just now cannot be run."""


def _is_entry(told: object) -> bool:
    """Return whether a part of the record says what is asked of it: the file, and its certificate."""
    if not isinstance(told, dict) or not isinstance(told.get("file"), str):
        return False
    if told.get("status") == "refused":
        return isinstance(told.get("why"), str) and isinstance(told.get("certificate", {}), dict)
    try:
        _short(told, Path())
    except (LookupError, TypeError, ValueError):
        return False
    return told.get("status") == "certified" and isinstance(told["sha256"], dict)


def _boxes(images: Images) -> str:
    """Return what tells where people are looked for: a file by what it holds."""
    boxes = Path(images.val_boxes)
    return file_digest(boxes) if boxes.is_file() else str(images.val_boxes)


def _figures(entry: Mapping[str, Any]) -> str:
    outputs, ap = entry["certificate"]["outputs"], entry["certificate"]["ap"]
    found, expected = ap["file"]["value"], ap["torch"]["value"]
    return f"AP {found:.4f}, torch {expected:.4f}; outputs within {outputs['max_rel']:.1e}"


def _tensorrt(entries: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """Return the command that makes a TensorRT engine of an fp32 ONNX file, where there is one."""
    for entry in entries:
        kind = entry["format"], entry["precision"], entry["status"]
        if kind == ("onnx", "fp32", "certified") and not entry["peaks"]:
            file = folder / entry["file"]
            height, width = entry["size"]
            shapes = [f"--{each}Shapes=image:{n}x3x{height}x{width}" for each, n in _BATCHES.items()]
            command = ["trtexec", f"--onnx={file}", "--fp16", f"--saveEngine={file.with_suffix('.engine')}"]
            return {
                "command": shlex.join(command + (shapes if entry["batch"] is None else [])),
                "run_here": False,
                "int8": "TensorRT takes symmetric ranges only, so not the int8 file that ONNX Runtime runs",
            }
    return None


_BATCHES: Final = {"min": 1, "opt": 1, "max": 8}
