"""A search as one interactive page: a file that holds everything it shows, and loads nothing.

The page is drawn by a script of its own (``pages/``) rather than by a plotting library: those weigh megabytes
in every file, and what is special here, commands to copy and networks to look into, would be written anyway.
Fronts, ties and budgets are decided here, so that the page and the pictures cannot disagree.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nas.plot import View, resolution
from nas.plot_style import MUTED
from nas.search import noise
from nas.search.objectives import MACS, Constraint, Objective
from search_spaces import InputError
from search_spaces.files import write_text
from search_spaces.registry import named_archs

if TYPE_CHECKING:
    from nas.beside import Beside
    from nas.search.result import Record, SearchResult

__all__ = ["fill_page", "front_json", "page_data", "page_part", "page_policy", "write_page"]

_READING: Final = (
    "Bars on the front: AP's 95% interval over the search images; a latency's predicted interval, with a"
    " stroke at the expectation. A spot stands at the interval's upper end, which budgets are held against. A"
    " dotted step of the front gains no more than the noise of the images: a tie is not a win."
)
_MILLION: Final = 1e6
_FEW_MACS: Final = 1e8


def write_page(
    result: SearchResult,
    path: str | Path,
    *,
    chosen: Record | Mapping[str, Record] | None = None,
    budgets: Sequence[Constraint] | None = None,
    beside: Beside | None = None,
    title: str | None = None,
    caption: str = "",
    own_budgets: bool = False,
    run: str | Path | None = None,
) -> Path:
    """Write a search as an interactive page that opens without any network.

    It shows what :func:`nas.plot.plot_front` draws, over each cost in turn, and of every network its figures,
    its values, and the command that emits it.

    Parameters
    ----------
    result, chosen, budgets, beside, title, caption, own_budgets
        As of :func:`nas.plot.plot_front`.
    path
        An ``.html`` file; without a suffix, that is added.
    run
        The run directory, for the command that emits a network; without it no command is shown.

    Raises
    ------
    InputError
        If the suffix is another one.
    RunError
        If no network was evaluated yet, or the file cannot be written.
    """
    path = Path(path)
    path = path.with_suffix(".html") if path.suffix == "" else path
    if path.suffix.lower() != ".html":
        raise InputError(f"a page is written as .html, not as '{path.name}'")
    view = View.of(result, chosen=chosen, budgets=budgets, beside=beside, own_budgets=own_budgets)
    heading = title or f"{result.space}: {len(result.evaluated)} networks evaluated"
    style, script = page_part("base.css") + page_part("pareto.css"), page_part("pareto.js")
    parts = {
        "policy": page_policy(style, script),
        "title": html.escape(heading),
        "style": style,
        "front": page_part("front.html"),
        "script": script,
        "data": front_json(view, run, heading, caption),
    }
    write_text(path, fill_page("pareto.html", parts))
    return path


def front_json(view: View, run: str | Path | None, heading: str, caption: str = "") -> str:
    """Return what the script of a front draws, as it stands in a page's element of data."""
    return _json({**page_data(view, run), "title": heading, "caption": caption, "reading": _READING})


def page_policy(style: str, script: str = "", images: str = "") -> str:
    """Return the policy of a page that allows one style, one script where it has one, and no other thing.

    ``images`` is where its images may come from, such as ``data:``.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_digest(style)}",
            *([f"script-src {_digest(script)}"] if script else []),
            *([f"img-src {images}"] if images else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def fill_page(name: str, parts: Mapping[str, str]) -> str:
    """Return one of the package's pages with its parts put in.

    That is done in one pass, so that nothing in a part is taken for the place of another one.
    """
    return re.sub(r"\{\{([a-z]+)\}\}", lambda found: parts[found[1]], page_part(name))


def page_data(view: View, run: str | Path | None = None) -> dict[str, Any]:
    """Return what the page's script draws, JSON-able."""
    result = view.result
    records = [record for record in result.records if record.ap is not None or not record.feasible]
    places = {record.trial: place for place, record in enumerate(records)}
    names = list(records[0].arch)
    different = [name for name in names if len({record.arch[name] for record in result.evaluated}) > 1]
    archs = {arch: name for name, arch in named_archs().items()}
    axes = view.every_axis()
    stars = {record.arch: names for names, record in view.stars}
    return {
        "keys": [*(f"{letter}: {name}" for name, letter in view.letters.items()), *_published_words(view)],
        "axes": [_axis(view, objective, places) for objective in axes],
        "first": axes.index(view.first_axis),
        "choices": different or names,
        "colours": [[f"{side} px" if side else "", colour] for side, colour in _colours(view)],
        "networks": [
            {
                "id": record.arch.id,
                "name": archs.get(record.arch, ""),
                "marks": list(stars.get(record.arch, ())),
                "label": _label(view, stars.get(record.arch, ())),
                "status": _status(record),
                "ap": record.ap,
                "interval": _interval(record),
                "costs": {str(objective): record.value(objective) for objective in axes},
                "latency": {
                    str(objective): [told.low_ms, told.ms, told.high_ms]
                    for objective in axes
                    if (told := view.beside.prediction(record, objective)) is not None
                },
                "colour": view.colours.get(resolution(record), MUTED),
                "values": [record.arch[name] for name in different or names],
                **{"origin": record.origin, "generation": record.generation},
                **{"seconds": None if record.ap is None else record.seconds, "reused": record.reused},
            }
            for record in records
        ],
        "emit": None if run is None else f"nas emit {shlex.quote(str(run))} --arch",
    }


def _axis(view: View, objective: Objective, places: Mapping[int, int]) -> dict[str, Any]:
    """Return what is shown on one axis of cost; networks are told by their places in the list."""
    across, up = view.limits(objective)
    front = view.front(objective)
    few = objective == MACS and across[1] * objective.scale <= _FEW_MACS
    scale = _MILLION if few else objective.scale
    zoom = objective.scale / scale
    label = "MACs (M)" if few else objective.label

    def at(records: Sequence[Record]) -> list[int]:
        return [places[record.trial] for record in records]

    return {
        "key": str(objective),
        "label": label + (", upper end" if objective.target else ""),
        "name": label.rsplit(" (", 1)[0],
        "unit": {"macs": "MMACs" if few else "GMACs", "params": "M"}.get(objective.kind, objective.unit),
        "scale": scale,
        "latency": objective.target is not None,
        "limits": [[end * zoom for end in across], list(up)],
        "reach": view.reach(objective) / scale,
        "budgets": [
            {"value": budget.upper / scale, "text": objective.format(budget.upper)}
            for budget in view.budgets
            if budget.objective == objective
        ],
        "front": at(front),
        "ties": [step.tie for step in noise.steps(front)],
        "over": at(view.outside(objective)),
        "barred": at(view.barred(objective)),
        "published": [
            {
                "value": mark.cost / scale,
                "text": mark.words(objective),
                "ap": mark.ap if view.beside.comparable else None,
            }
            for mark in view.shown_lines(objective)
        ],
    }


def _published_words(view: View) -> list[str]:
    """Return the published APs of the networks shown, in a line, if these are to be told."""
    data = view.beside.data
    shown = {m.name: m.ap for objective in view.every_axis() for m in view.shown_lines(objective)}
    told = ", ".join(f"{name} {ap:.3f}" for name, ap in shown.items() if ap is not None)
    if data is None or not told:
        return []
    images = "" if view.beside.comparable else ", other images than here, so not comparable"
    return [f"APs published on {data.name}{images}: {told} ({data.source})"]


def _colours(view: View) -> list[tuple[int | None, str]]:
    """Return what the colours tell, in order; one entry where they tell nothing."""
    told = list(view.colours.items())
    return told if len({colour for _, colour in told}) > 1 else told[:1]


def _label(view: View, names: Sequence[str]) -> str:
    """Return what stands at a chosen network: its letters, or its names where there is room for these."""
    return " ".join(view.letters[name] for name in names) if view.letters else ", ".join(names)


def _status(record: Record) -> str:
    if not record.feasible:
        return "priced"
    return "early" if record.partial else "evaluated"


def _interval(record: Record) -> list[float] | None:
    known = None if record.partial else noise.interval(record)
    return None if known is None else [known.low, known.high]


def page_part(name: str) -> str:
    """Return one of the files that pages are made of."""
    return resources.files("nas").joinpath("pages", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return how a page's policy names the one script, or style, that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _json(value: object) -> str:
    """Return JSON that may stand in a script element: no text in it can end the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
