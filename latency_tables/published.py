"""Whole-network latencies that others have published: ``published.csv`` beside this module, with citation.

They are of provenance ``measured-by-others`` and stand beside predictions; nothing is computed from them.
``experiments/device_tables.py`` writes the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from search_spaces.arch import Arch
from search_spaces.errors import InputError, shown
from search_spaces.files import read_text
from search_spaces.listed import ListedNetwork
from search_spaces.registry import get_arch

__all__ = ["Published", "published_file", "published_for", "published_text", "read_published"]

Kind = Literal["table", "chart"]
_LONGEST_MS = 1e9


@dataclass(frozen=True, slots=True)
class Published:
    """One published latency of one network on one device.

    Attributes
    ----------
    model
        What its source calls the network.
    arch
        The same network as named arch of ours (``litepose-s``); empty where there is none.
    device
        Device as targets name it, e.g. ``raspberry-pi-4``.
    ms
        Milliseconds per image.
    kind
        ``table``: printed as a number; ``chart``: read off a chart.
    runtime
        What ran it, as far as the source says.
    source
        Citation.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    model: str
    arch: str
    device: str
    ms: float
    kind: Kind
    runtime: str
    source: str

    def __post_init__(self) -> None:
        for what in ("model", "device", "runtime", "source"):
            if not getattr(self, what).strip():
                raise InputError(f"{what} is a text, not {shown(getattr(self, what))}")
        if not isinstance(self.ms, float) or not 0 < self.ms <= _LONGEST_MS:
            raise InputError(f"ms is a positive number of milliseconds, not {shown(self.ms)}")
        if self.kind not in get_args(Kind):
            raise InputError(f"kind is one of {', '.join(get_args(Kind))}, not {shown(self.kind)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name and the provenance, for JSON."""
        return {**asdict(self), "provenance": "measured-by-others"}


def published_file() -> Path:
    """Return the packaged file."""
    return Path(str(resources.files("latency_tables"))) / "published.csv"


def published_text(figures: Iterable[Published]) -> str:
    """Return published latencies as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Published)]
    writer.writerow(names)
    writer.writerows([getattr(each, name) for name in names] for each in figures)
    return text.getvalue()


def read_published(path: str | Path | None = None) -> tuple[Published, ...]:
    """Return the published latencies in a file, by default the packaged one.

    Raises
    ------
    InputError
        Naming the file, the line, the field and the value that is wrong.
    """
    path = published_file() if path is None else Path(path)
    reader = csv.DictReader(io.StringIO(read_text(path, "published latencies"), newline=""), strict=True)
    names = [field.name for field in fields(Published)]
    found = []
    try:
        if list(reader.fieldnames or ()) != names:
            raise InputError(f"published latencies '{path}' line 1: the columns are {', '.join(names)}")
        for cells in reader:
            where = f"published latencies '{path}' line {reader.line_num}"
            if None in cells or None in cells.values():
                raise InputError(f"{where} has not {len(names)} fields")
            try:
                ms = float(cells["ms"])
            except ValueError:
                raise InputError(
                    f"{where}: ms is a number of milliseconds, not {shown(cells['ms'])}"
                ) from None
            try:
                found.append(Published(**{**cells, "ms": ms}))  # type: ignore[arg-type]
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
    except csv.Error as error:
        raise InputError(
            f"published latencies '{path}' line {reader.line_num} is not valid CSV: {error}"
        ) from None
    return tuple(found)


@cache
def _packaged() -> tuple[Published, ...]:
    return read_published()


def published_for(network: Arch | ListedNetwork, device: str) -> Published | None:
    """Return what was published for exactly this network, at its own resolution, on a device; else None."""
    for each in _packaged():
        if each.device != device:
            continue
        if isinstance(network, ListedNetwork):
            if each.model in (network.title, *network.also):
                return each
        elif each.arch and get_arch(each.arch) == network:
            return each
    return None
