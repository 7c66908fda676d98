"""``nas verify``: what an emitted network really takes on its target, against what was promised.

The very file is timed by the target's own runtime, here or over the link of a target file, in rounds with the
profiler's canaries around and amid them. Nothing is taken out of what is measured: it is what users will see.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from latency_tables import (
    LatencyPredictor,
    LatencyTable,
    Target,
    available_tables,
    find_table,
    get_runtime,
    local_target,
)
from latency_tables.links import LinkDescription
from latency_tables.profiler import MeasuredRounds, measure_rounds
from latency_tables.runtimes.base import check_contained, file_digest
from latency_tables.table import device_table
from nas.console import note, progress_bar
from nas.end_to_end import TimeSettings, measure_frames
from nas.latency import (
    bench_of,
    described_target,
    prediction_json,
    runnable,
    table_folders,
    why_not_here,
)
from nas.latency_report import prediction_line
from nas.loading import EXPORTS, WEIGHTS, check_model, describe_model, open_predictor
from nas.model_card import CARD, changing_card, check_told, folder_of, read_card
from nas.predicting import cpu_threads
from nas.run import RunDirectory
from nas.train import load_plain_network, network_file
from search_spaces import Arch, InputError, LitePoseNasError, RunError, UnavailableError, arch_from_json
from search_spaces.errors import did_you_mean, shown
from supernet.paradigms import TOP_DOWN, paradigm_of
from supernet.pose.boxes import Box
from supernet.pose.predictor import PersonPredictor
from supernet.registry import NETWORKS

__all__ = ["VerifySettings", "verified_lines", "verify"]

FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": (".onnx",),
    "openvino": (".xml", ".onnx"),
    "ncnn": (".param",),
    "litert": (".tflite",),
}
"""By runtime: what the files end in that it is given, the best first. Torch is given none: its ``.pt2`` holds
pickles, which are code, so that one from elsewhere is never opened, and it is written from the weights."""
_EXPORT_AS: Final = {"onnxruntime": "onnx", "openvino": "openvino", "ncnn": "ncnn", "litert": "litert"}
_DRIFT: Final = 0.15
_DECODE_S: Final = 0.5
_CROPS: Final = 64


@dataclass(frozen=True)
class VerifySettings:
    """How a network is verified.

    Attributes
    ----------
    max_ms
        Budget for the network, milliseconds; None takes the card's for that target.
    people
        People in a frame, for fps with decoding; 0: an empty frame.
    seconds, rounds
        Time for the network, all rounds together; how many rounds.
    """

    max_ms: float | None = None
    people: int = 1
    seconds: float = 5.0
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.max_ms is not None and not 0 < self.max_ms < float("inf"):
            raise InputError(f"--max-ms is a positive number of milliseconds, not {self.max_ms}")
        if not 0 < self.seconds < float("inf") or self.rounds < 1:
            raise InputError(
                f"--seconds is positive and --rounds at least 1, not {self.seconds} and {self.rounds}"
            )
        if not 0 <= self.people <= 30:
            raise InputError(f"--people is a number from 0 to 30, not {self.people}")


@dataclass(frozen=True)
class _Model:
    """A network as it is emitted, and the file of it that is timed.

    Attributes
    ----------
    arch, joints
        The network.
    folder
        The emitted folder, where the file is of one.
    file
        What is timed; None: it must be written from ``weights``.
    weights
        What the decoding part is timed with, where it is known.
    quantised
        Whether the file itself is in the target's precision.
    converted
        Whether the file is in fp16, which the runtime turns into the target's fp32 as it can.
    """

    arch: Arch
    joints: int
    folder: Path | None
    file: Path | None
    weights: Path | None
    quantised: bool = False
    converted: bool = False


# -- which target, which table -------------------------------------------------------------------------------


def _target_of(
    text: str,
    runtime: str | None,
    precision: str | None,
    threads: int | None,
    folders: Sequence[Path],
) -> tuple[Target, LinkDescription | None]:
    """Return the target that a text names: this machine, a target file, a table's target, or a local name."""
    if text == "this-machine" or Path(text).suffix in (".yaml", ".yml"):
        try:
            return described_target(text, runtime, precision, threads)
        except UnavailableError as error:
            if precision != "fp16":
                raise
            way = "name the file in fp16 itself, and a target in fp32: it is timed as it is"
            raise UnavailableError(f"{error}; {way}") from None
    for option, given in (("--runtime", runtime), ("--precision", precision), ("--threads", threads)):
        if given is not None:
            raise InputError(f"{option}: the target '{text}' says that itself; leave the option out")
    known = available_tables(folders)
    own = re.fullmatch(r"this-machine-([a-z0-9]+)-([a-z0-9]+)-([1-9][0-9]{0,3})t", text)
    if text not in known and (full := device_table(text, folders)) is not None:
        text = full.stem
    if text in known:
        target = find_table(text, folders).target
        if target.device == "this-machine" and (why := why_not_here(target)) is not None:
            raise UnavailableError(f"'{text}' cannot be measured here: {why}")
        if target.device != "this-machine":
            raise InputError(
                f"the table '{text}' is of another device: name its target file, such as"
                f" {target.device}.yaml, whose 'link' says how to get there ('nas profile ssh:user@host"
                " --describe' prints one)"
            )
        return target, None
    if own is not None:
        return described_target("this-machine", own[1], own[2], int(own[3]))
    raise InputError(
        f"there is no target '{text}'{did_you_mean(text, ['this-machine', *known])}; name this-machine, a"
        " target file (.yaml) or a target that has a table ('nas tables list')"
    )


def _table_of(target: Target, folders: Sequence[Path]) -> LatencyTable | None:
    """Return the target's table; None where there is none, or one of another processor under its name."""
    if target.name not in available_tables(folders):
        return None
    table = find_table(target.name, folders)
    if table.target != target:
        note(
            f"the table '{target.name}' is of {table.target.processor}, not of {target.processor}: nothing is"
            " predicted"
        )
        return None
    return table


# -- which file ----------------------------------------------------------------------------------------------


def _open(model: Path, target: Target) -> _Model:
    """Return the network called so, and its file for the target.

    Raises
    ------
    InputError
        If there is none, or no file of it fits the target; the message names the command that makes one.
    """
    check_model(model, (*WEIGHTS, *EXPORTS))
    folder = folder_of(model)
    if model.is_file() and model.suffix not in WEIGHTS:
        return _given(model, folder, target)
    check_told(network_file(model))
    network = load_plain_network(model, 448)
    found = _Model(network.arch, network.joints, folder, None, model)
    exported = _exported(folder, network.arch, target) if model.is_dir() and folder is not None else None
    if exported is not None:
        return replace(found, file=exported, quantised=True)
    if target.precision == "fp32" and target.runtime in ("onnxruntime", "openvino"):
        shipped = model / "model.onnx"
        if shipped.is_file():
            check_told(shipped)
            return replace(found, file=shipped)
    if target.precision == "fp32" and target.runtime in ("onnxruntime", "openvino", "torch"):
        return found
    form = _EXPORT_AS.get(target.runtime, target.runtime)
    raise InputError(
        f"'{model}' has no {target.precision} file for {target.runtime}; 'nas export {model} --data RECIPE"
        f" --format {form} --precision {target.precision}' makes one"
    )


def _given(file: Path, folder: Path | None, target: Target) -> _Model:
    """Return what a file is that was named itself."""
    fitting = FORMS.get(target.runtime, ())
    if target.runtime == "torch":
        raise InputError(
            f"'{file}' is not opened for torch, whose programs (.pt2) can hold code: name the emitted folder"
            " or the .safetensors, from which one is written"
        )
    if file.suffix not in fitting:
        raise InputError(
            f"'{file}' is no file for {target.runtime}, which takes {' or '.join(fitting)}; name another"
            " file, the emitted folder, or a target of the file's runtime"
        )
    if folder is None and file.suffix == ".onnx":
        told = describe_model(file)  # its metadata say what it is, though not in which precision
        arch = arch_from_json(told["arch"], f"model '{file}': its metadata 'arch'")
        return _Model(arch, told["joints"], None, file, file, quantised=True)
    if folder is None:
        raise InputError(
            f"what '{file}' is nobody says: it lies in no emitted folder (with a {CARD}); verify it there"
        )
    card = read_card(folder)
    arch = arch_from_json(card.get("arch"), f"model card '{folder / CARD}': 'arch'")
    joints = card.get("skeleton", {}).get("joints", ())
    if not isinstance(joints, list):
        raise InputError(f"model card '{folder / CARD}': 'joints' is a list of names, not {shown(joints)}")
    entry = _entry(card, folder, file)
    check_told(file, entry)
    stated = "fp32" if entry is None and file.name == "model.onnx" else (entry or {}).get("precision")
    # Runtimes that have no fp16 of their own run such files as they are, beside their fp32.
    converted = (stated, target.precision) == ("fp16", "fp32")
    converted = converted and "fp16" not in get_runtime(target.runtime).precisions
    if stated not in (None, target.precision) and not converted:
        raise InputError(
            f"'{file}' is in {stated}, but the target '{target.name}' in {target.precision}; name a target in"
            f" {stated if stated in get_runtime(target.runtime).precisions else 'fp32'}, or another file"
        )
    own = entry is not None or stated is None
    return _Model(arch, len(joints), folder, file, folder, quantised=own, converted=converted)


def _place(folder: Path, name: str) -> Path | None:
    """Return the file that an export's entry names, within the folder only."""
    for place in (folder / name, folder / "exports" / name):
        inside = place.resolve().is_relative_to(folder.resolve())
        if inside and place.is_file():
            return place
    return None


def _entry(card: Mapping[str, Any], folder: Path, file: Path) -> Mapping[str, Any] | None:
    """Return the card's certificate of a file."""
    for each in card.get("exports") or ():
        place = _place(folder, str(each.get("file")))
        if place is not None and place.resolve() == file.resolve():
            found: Mapping[str, Any] = each
            return found
    return None


def _exported(folder: Path, arch: Arch, target: Target) -> Path | None:
    """Return the folder's export for the target's runtime and precision that passed, the newest one.

    Of those of one second, and of those of which no date is told, it is the last in the card. One that takes
    several pictures, or of another size, or that gives peaks in place of maps, is none.

    Raises
    ------
    InputError
        If it is not the file that was certified.
    """
    fitting = FORMS.get(target.runtime, ())
    found: list[tuple[str, int, Path, Mapping[str, Any]]] = []
    for number, each in enumerate(read_card(folder).get("exports") or ()):
        words = str(each.get("runtime") or target.runtime).split()  # the version may follow
        usual = each.get("batch") in (None, 1) and not each.get("peaks")
        usual = usual and each.get("size") in (None, list(arch.size))
        passed = each.get("within_tolerance") is not False and each.get("precision") == target.precision
        place = _place(folder, str(each.get("file")))
        if passed and usual and place is not None and place.suffix in fitting and words[0] == target.runtime:
            found.append((str(each.get("date") or ""), number, place, each))
    if not found:
        return None
    *_, newest, entry = max(found, key=lambda each: each[:2])
    check_told(newest, entry)
    return newest


# -- decoding ------------------------------------------------------------------------------------------------


def _decode(model: _Model, target: Target, settings: VerifySettings) -> tuple[float, float]:
    """Return milliseconds around the network for a frame: preparing it, and making people of the maps.

    Timed on this machine, on as many threads as the target has where there are so many.
    """
    if model.weights is None:
        raise UnavailableError("the file tells no weights that decoding could be timed with")
    threads = min(max(1, target.threads), local_target("onnxruntime").threads)
    if paradigm_of(NETWORKS[model.arch.family.name]) is not TOP_DOWN:
        report = measure_frames(
            str(model.weights),
            TimeSettings(
                people=(settings.people,), threads=threads, seconds=_DECODE_S, rounds=settings.rounds
            ),
        )
        stages = report.frames[0].stages
        return stages["prepare"].median_ms, sum(stages[k].median_ms for k in ("merge", "decode", "place"))
    with cpu_threads(threads):
        predictor = open_predictor(model.weights, threads=threads)
        if not isinstance(predictor, PersonPredictor):
            raise TypeError("a top-down network is predicted with in boxes")
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        boxes = [Box(20.0 * k, 30.0, 120.0, 360.0) for k in range(settings.people)]
        took = [predictor(picture, boxes).seconds for _ in range(settings.rounds + 1)][1:]
    prepare, decode = (1e3 * float(np.median([each[k] for each in took])) for k in ("prepare", "decode"))
    return prepare, decode


def _with_decode(
    model: _Model, target: Target, network_ms: float, remote: bool, settings: VerifySettings
) -> dict[str, Any]:
    """Return frames per second with decoding, and in words where that was timed."""
    people = settings.people
    passes = people if paradigm_of(NETWORKS[model.arch.family.name]) is TOP_DOWN else 1
    with progress_bar("timing the decoding"):
        prepare, decode = _decode(model, target, settings)
    total = passes * network_ms + prepare + decode
    each = "person" if people == 1 else "people"
    runs = "" if passes == 1 else f", the network once for each of them ({passes} times)"
    says = (
        f"With {people} {each} in the frame: {1e3 / total:.1f} frames per second ({total:.2f} ms:"
        f" network {passes * network_ms:.2f}, preparing {prepare:.2f}, decoding {decode:.2f}{runs})."
    )
    if remote:
        says += (
            " Preparing and decoding were timed on THIS machine, not on the device, where they may take much"
            " longer: the sum is no figure of the device."
        )
    return {
        "people": people,
        "network_passes": passes,
        "prepare_ms": prepare,
        "decode_ms": decode,
        "total_ms": total,
        "fps": 1e3 / total,
        "timed_here": True,
        "figure_of_target": not remote,
        "says": says,
    }


# -- the command ---------------------------------------------------------------------------------------------


def verify(
    model: Path,
    target: str,
    settings: VerifySettings | None = None,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    tables: Sequence[Path] | None = None,
) -> dict[str, Any]:
    """Carry out ``nas verify``: measure a network on its target; return and keep what was found.

    Of an emitted folder the card gets the result (``verified``), one for each file and target.

    Parameters
    ----------
    model
        An emitted folder, a file of one (exports too), or a ``.safetensors`` by itself.
    target
        ``this-machine``, a target file (``.yaml``), or a target that has a table.
    settings
        Budget, people, how thoroughly.
    runtime, precision, threads
        Of ``this-machine``.
    tables
        Folders of latency tables.

    Raises
    ------
    InputError
        If model or target are not there or do not fit; the message names the command that helps.
    UnavailableError
        If the runtime is not there.
    RunError
        If the device cannot be reached, or the card not be written.
    """
    settings = settings or VerifySettings()
    folder = folder_of(model)
    run_folder = None if folder is None else folder.resolve().parent.parent
    run = (
        RunDirectory.open(run_folder) if run_folder is not None and RunDirectory.is_run(run_folder) else None
    )
    folders = table_folders(tables, run)
    aim, link = _target_of(target, runtime, precision, threads, folders)
    opened = _open(model, aim)
    table = _table_of(aim, folders)
    blocks = opened.arch.blocks(opened.joints)
    predicted = None
    if table is not None:
        predictor = LatencyPredictor(table)
        try:
            predicted = prediction_json(predictor, predictor.predict(blocks, opened.arch.family.name))
        except LitePoseNasError as error:
            note(f"nothing is predicted: {error}")
    card = None if folder is None else read_card(folder)
    budget = _budget(card, aim, settings)
    notices = []
    if opened.converted:
        notices.append(
            f"the file is in fp16, in which {aim.runtime} has no targets: it is timed as it is, and held"
            " against what holds for fp32"
        )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = opened.file
        if file is not None and file.suffix == ".onnx":
            check_contained(file)
        if file is None:
            note(f"writing the network for {aim.runtime}")
            file = runnable(aim.runtime, load_plain_network(model, 448), scratch / "model")
            notices.append(f"the file was written for {aim.runtime} from the weights, and is not kept")
        parts = get_runtime(aim.runtime).network_files(file)
        digests = _digests(parts)
        timed_as = replace(aim, precision=_timed_in(opened, aim))
        bench = stack.enter_context(bench_of(timed_as, link))
        bar = stack.enter_context(progress_bar("timing rounds", settings.rounds))
        found = measure_rounds(
            bench,
            file,
            opened.arch.size,
            table=table if timed_as == aim else None,
            seconds=settings.seconds,
            rounds=settings.rounds,
            progress=lambda done, total, _: bar.update(done, total),
        )
        circumstances = {"runtime_version": bench.version(), **bench.system()}
        if _digests(parts) != digests:
            raise RunError(
                f"'{file}' was changed while it was timed, so nothing is known of it; verify it again"
            )
    report = _report(aim, link, opened, found, predicted, budget)
    report |= {"file_sha256": digests[-1], "circumstances": circumstances}
    if found.drift > _DRIFT:
        notices.append(
            "the machine's speed changed while it was timed: rounds left their median by up to"
            f" {found.drift:.0%}; free it and verify again"
        )
    decoded: list[dict[str, Any]] = []
    try:
        ms = found.timing.median_ms
        decoded = [_with_decode(opened, aim, ms, link is not None, settings)]
    except LitePoseNasError as error:
        notices.append(f"decoding was not timed: {error}")
    report |= {"decode": decoded, "notices": notices}
    if folder is not None:
        with changing_card(folder) as changed:
            same = (report["file"], aim.name)
            former = changed.get("verified") or ()
            changed["verified"] = [*(each for each in former if _of(each) != same), report]
    return report


def _of(verified: Mapping[str, Any]) -> tuple[object, object]:
    """Return of which file and target a verification in a card is."""
    target = verified.get("target")
    return verified.get("file"), target.get("name") if isinstance(target, Mapping) else None


def _digests(parts: Sequence[Path]) -> list[str]:
    """Return what tells a network's files from others; nothing of one that is not there."""
    return [file_digest(part) if part.is_file() else "" for part in parts]


def _timed_in(model: _Model, target: Target) -> str:
    """Return the precision that the bench is told: fp32 runs a file as it is, without converting it first.

    An .onnx in 8 bits would be quantised again; and fp16 may be a matter of the file alone.
    """
    onnx = model.file is not None and model.file.suffix == ".onnx"
    own = target.precision in get_runtime(target.runtime).precisions
    return "fp32" if not own or (onnx and model.quantised) else target.precision


def _budget(
    card: Mapping[str, Any] | None, target: Target, settings: VerifySettings
) -> dict[str, Any] | None:
    """Return the budget to be held against: the command's, or else the card's for that target."""
    if settings.max_ms is not None:
        return {"ms": settings.max_ms, "by": "this command (--max-ms)"}
    latency = (card or {}).get("latency", {}).get(target.name)
    told = latency.get("budget") if isinstance(latency, Mapping) else None
    if not told:
        return None
    ms = told.get("ms") if isinstance(told, Mapping) else None
    if not isinstance(ms, int | float) or not 0 < ms < float("inf"):
        raise InputError(
            f"the model card says that the budget on '{target.name}' is {shown(told)}, which is no number of"
            " milliseconds ('ms'); say one with --max-ms"
        )
    by = str(told.get("by"))
    return {"ms": float(ms), "by": "nas emit" if by == "this command" else by}


def _report(
    target: Target,
    link: LinkDescription | None,
    model: _Model,
    found: MeasuredRounds,
    predicted: dict[str, Any] | None,
    budget: dict[str, Any] | None,
) -> dict[str, Any]:
    ms = found.timing.median_ms
    file = model.file
    if file is None:
        name = f"model.safetensors, by {target.runtime}"
    elif model.folder is not None:
        name = str(file.resolve().relative_to(model.folder.resolve()))
    else:
        name = file.name
    return {
        "file": name,
        "network": model.arch.id,
        "target": {**target.to_dict(), "name": target.name},
        "over": None if link is None else link.ssh or f"adb {link.adb}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured": asdict(found.timing),
        "rounds_ms": list(found.medians),
        "drift": found.drift,
        "pace": found.pace,
        "fps": 1e3 / ms,
        "predicted": predicted,
        "within_interval": None if predicted is None else predicted["low_ms"] <= ms <= predicted["high_ms"],
        "budget": budget and {**budget, "met": ms <= budget["ms"]},
    }


def verified_lines(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what was found, in words, as ``nas verify`` prints it."""
    measured, predicted, budget = report["measured"], report["predicted"], report["budget"]
    over = "" if report["over"] is None else f", over {report['over']}"
    lines = {
        "network": f"{report['network']}, {report['file']}",
        "target": f"{report['target']['name']} ({report['target']['processor']}){over}",
        "measured": f"median {measured['median_ms']:.2f} ms (p10 {measured['p10_ms']:.2f}, p90"
        f" {measured['p90_ms']:.2f}; {measured['runs']} runs in {len(report['rounds_ms'])} rounds),"
        f" {report['fps']:.1f} networks per second",
    }
    if report["pace"] is not None:
        word = "slower" if report["pace"] > 1 else "faster"
        lines["the machine"] = (
            f"{abs(report['pace'] - 1):.0%} {word} than when it was profiled, its canaries say"
        )
    if predicted is None:
        lines["predicted"] = "nothing: no table answers for this network ('nas profile' measures one)"
    else:
        where = "within" if report["within_interval"] else "OUTSIDE of"
        lines["predicted"] = f"{prediction_line(predicted)}: measured {where} the interval"
    if budget is None:
        lines["budget"] = "none: neither the card nor --max-ms says one"
    else:
        met = (
            "met" if budget["met"] else f"NOT met: over it by {measured['median_ms'] / budget['ms'] - 1:.1%}"
        )
        lines["budget"] = f"{budget['ms']:g} ms, by {budget['by']}: {met}"
    for each in report["decode"]:
        lines["with decoding"] = each["says"]
    return lines
