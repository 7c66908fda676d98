"""A table of a training's figures, one row per step."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from search_spaces.files import write_text

__all__ = ["MetricLog"]


class MetricLog:
    """A CSV that a resumed run continues exactly: rows beyond the checkpoint's step are dropped."""

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int) -> None:
        self.path, self.columns = path, tuple(columns)
        kept: list[Mapping[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    step = row.get("step") or ""
                    if step.isdigit() and int(step) <= keep_until and None not in row.values():
                        kept.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())
        self._stream = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, self.columns, lineterminator="\n")

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row, rounded to six significant digits."""
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
