"""How all pictures of charts look, and how they are written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from search_spaces import InputError
from search_spaces.files import atomic_path

__all__ = ["CANVASES", "FAINT", "GRID", "INK", "MUTED", "STYLE", "picture_files", "save_figure"]

INK, MUTED, FAINT, GRID = "#1c2733", "#5c6b7a", "#b9c2cc", "#e8ecf0"
STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "text.parse_math": False,  # names of runs and files may hold a $
    "svg.fonttype": "none",
    "svg.hashsalt": "litepose-nas",
}
_DOTS_PER_INCH = 160
CANVASES: Final = {".png": FigureCanvasAgg, ".svg": FigureCanvasSVG}


def picture_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that a picture is written to: ``path``, or without a suffix a PNG and an SVG.

    Raises
    ------
    InputError
        If the suffix is another one.
    """
    path = Path(path)
    if path.suffix == "":
        return tuple(path.with_suffix(suffix) for suffix in CANVASES)
    if path.suffix.lower() not in CANVASES:
        raise InputError(f"a plot is written as {' or '.join(CANVASES)}, not as '{path.name}'")
    return (path,)


def save_figure(figure: Figure, files: Sequence[Path]) -> tuple[Path, ...]:
    """Write a figure to ``.png`` and ``.svg`` files, atomically; equal figures give equal files."""
    for path in files:
        canvas = CANVASES[path.suffix.lower()](figure)
        # A date would make two drawings of the same result differ.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        with atomic_path(path) as temporary, warnings.catch_warnings():
            # A run may be named in any script; a letter that the font lacks is drawn as a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.print_figure(str(temporary), dpi=_DOTS_PER_INCH, metadata=metadata, facecolor="white")
    return tuple(files)
