"""Which files ``nas export`` can write: formats, precisions, what each of them can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from latency_tables import get_runtime
from search_spaces import InputError, UnavailableError
from search_spaces.errors import did_you_mean

__all__ = ["FORMATS", "PRECISIONS", "Export", "Format", "plan_exports"]

PRECISIONS: Final = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Format:
    """One inference engine's files.

    Attributes
    ----------
    name
        What ``--format`` calls it.
    suffixes
        Of the files that make up a network, the one that is named to the engine first.
    runtime
        Name of the runtime that runs it, which its files are certified by.
    precisions
        Those that can be written.
    batches
        Whether it takes other than one picture at a time.
    tolerance
        Most error of an fp32 file's outputs, relative to their largest value, that is rounding. Of ncnn and
        LiteRT more, whose algorithms for 3x3 and 1x1 convolutions (Winograd's, indirect products) add in
        other orders.
    carries
        Whether a file itself tells joints and size; otherwise a file beside it does.
    peaks
        Whether a network in it can pick peaks itself.
    """

    name: str
    suffixes: tuple[str, ...]
    runtime: str
    precisions: tuple[str, ...]
    batches: bool
    tolerance: float
    carries: bool = False
    peaks: bool = False


FORMATS: Final[Mapping[str, Format]] = {
    each.name: each
    for each in (
        Format("onnx", (".onnx",), "onnxruntime", PRECISIONS, True, 1e-4, carries=True, peaks=True),
        Format("openvino", (".xml", ".bin"), "openvino", PRECISIONS, True, 1e-4, peaks=True),
        Format("ncnn", (".ncnn.param", ".ncnn.bin"), "ncnn", get_runtime("ncnn").precisions, False, 1e-3),
        Format("litert", (".tflite",), "litert", get_runtime("litert").precisions, False, 1e-3),
    )
}
"""Every format by name. ncnn's files are called as its own converter calls them."""


@dataclass(frozen=True)
class Export:
    """One network file that is asked for.

    Attributes
    ----------
    format
        Its format.
    precision
        One of :data:`PRECISIONS`.
    batch
        Pictures of one run; None leaves it free.
    peaks
        Whether it returns the peaks of its maps in their place.
    """

    format: Format
    precision: str
    batch: int | None = 1
    peaks: bool = False

    @property
    def stem(self) -> str:
        """What its files are called, but for their suffixes."""
        batch = {1: "", None: "-free"}.get(self.batch, f"-batch{self.batch}")
        return f"model-{self.precision}{batch}{'-peaks' if self.peaks else ''}"

    @property
    def file(self) -> str:
        """Name of the file that the engine is given."""
        return f"{self.stem}{self.format.suffixes[0]}"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all that the engine reads, :attr:`file` last."""
        return tuple(f"{self.stem}{suffix}" for suffix in reversed(self.format.suffixes))

    @property
    def told(self) -> str:
        """How it is called in what people read."""
        return f"{self.format.name} {self.precision}{' peaks' if self.peaks else ''}"


def _known(option: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise InputError(f"{option}: unknown '{name}'{did_you_mean(name, known)}")
    return tuple(dict.fromkeys(names))


def plan_exports(
    formats: Sequence[str], precisions: Sequence[str], batch: int | None = 1, *, peaks: bool = False
) -> tuple[Export, ...]:
    """Return every format in every precision, after making sure that each is possible here.

    With ``peaks`` the files return peaks in the place of maps.

    Raises
    ------
    InputError
        Naming a format or precision that is unknown, or cannot be had as asked.
    UnavailableError
        If the engine that would run one of them is not installed: what is not run is not certified.
    """
    if batch is not None and batch < 1:
        raise InputError(f"--batch is a number of pictures, at least 1, or 'free', not {batch}")
    known = _known("--precision", precisions, PRECISIONS)
    asked = [FORMATS[name] for name in _known("--format", formats, list(FORMATS))]
    if not asked or not known:
        raise InputError("nothing is asked for: name a --format and a --precision")
    found = []
    for each in asked:
        if batch != 1 and not each.batches:
            raise InputError(
                f"--format {each.name} takes one picture at a time, so there is no --batch"
                f" {'free' if batch is None else batch} of it; leave the option out, or the format"
            )
        if peaks and not each.peaks:
            able = " and ".join(other.name for other in FORMATS.values() if other.peaks)
            raise InputError(
                f"--format {each.name} has no networks that pick peaks: --peaks is for {able}; leave the"
                " option out, or the format"
            )
        try:
            get_runtime(each.runtime).check(1)
        except UnavailableError as error:
            raise UnavailableError(f"--format {each.name}: {error}") from None
        for precision in known:
            if precision not in each.precisions:
                raise InputError(
                    f"--format {each.name} is written in {', '.join(each.precisions)}, not in {precision};"
                    f" export {precision} of other formats in a command of its own"
                )
            found.append(Export(each, precision, batch, peaks))
    return tuple(found)
