"""Model cards: ``card.json`` of an emitted network, and the ``README.md`` that says the same to people.

``card.json`` is the truth. Whoever changes it goes through :func:`write_card` or :func:`changing_card`, so
that the page beside it is never older.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from latency_tables.runtimes.base import file_digest
from search_spaces import InputError
from search_spaces.errors import shown
from search_spaces.files import locked, read_json, remove_leftovers, write_json, write_text

__all__ = [
    "CARD",
    "CARD_FORMAT",
    "PAGE",
    "changing_card",
    "check_told",
    "folder_of",
    "outdated",
    "read_card",
    "render",
    "write_card",
]

CARD: Final = "card.json"
PAGE: Final = "README.md"
CARD_FORMAT: Final = 1
"""Of ``card.json``. Cards without a number are of before there was one; what they lack is left out."""

_PROVENANCES: Final = {
    "measured-here": "measured on this target, with this toolkit",
    "measured-by-others": "measured on this target by others",
    "calibrated-estimate": "an estimate: nothing was measured on this target with this toolkit",
}
_NOT_STATED: Final = "not stated"
_PATIENCE_S: Final = 10.0
"""For whoever else writes the card: what was measured for an hour is not to be lost by that."""
_MAPPINGS: Final = ("arch", "skeleton", "input", "cost", "latency", "files", "sha256", "environment")
_ROWS: Final = ("exports", "verified")


# -- the files -----------------------------------------------------------------------------------------------


def read_card(folder: Path) -> dict[str, Any]:
    """Return what the card of an emitted network says.

    Raises
    ------
    InputError
        If the folder holds none, or it is damaged or of a newer version.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise InputError(f"'{folder}' is no emitted network: it holds no {CARD}; make one with 'nas emit'")
    card = read_json(path, "model card")
    if not isinstance(card, dict):
        raise InputError(f"model card '{path}' is a mapping of names to values, not {type(card).__name__}")
    version = card.get("format", 0)
    if type(version) is not int or version < 0:
        raise InputError(f"model card '{path}': 'format' is a whole number, not {version!r}")
    if version > CARD_FORMAT:
        raise InputError(
            f"model card '{path}' has format {version}, this version knows {CARD_FORMAT}: update litepose-nas"
        )
    for name in _MAPPINGS:
        if not isinstance(card.get(name, {}), dict):
            raise InputError(
                f"model card '{path}': '{name}' is a mapping of names to values, not {shown(card[name])}"
            )
    for name in _ROWS:
        rows = card.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
            raise InputError(f"model card '{path}': '{name}' is a list of mappings, not {shown(rows)}")
    return card


def folder_of(path: Path) -> Path | None:
    """Return the emitted folder that a path is, or that a file lies in or below; None: there is none."""
    places = [path] if path.is_dir() else [path.parent, path.parent.parent]
    return next((place for place in places if (place / CARD).is_file()), None)


def _digests(card: Mapping[str, Any]) -> dict[str, object]:
    """Return what the files of an emitted folder are known by, by their paths; damaged cards tell less."""
    told, rows = card.get("sha256"), card.get("exports")
    found: dict[str, object] = dict(told) if isinstance(told, Mapping) else {}
    for each in rows if isinstance(rows, list) else ():
        digests = each.get("sha256") if isinstance(each, Mapping) else None
        for name, digest in digests.items() if isinstance(digests, Mapping) else ():
            found[(Path(str(each.get("file"))).parent / str(name)).as_posix()] = digest
    return found


def check_told(path: Path, beside: Mapping[str, Any] | None = None) -> None:
    """Refuse a file of an emitted folder that is not the one that the folder's card tells of.

    Parameters
    ----------
    path
        The file. One that lies in no emitted folder, or that the card tells no digest of, is let pass.
    beside
        What the card says of an export: the files that belong to it are looked at, too.

    Raises
    ------
    InputError
        If it, or what belongs to it, is another file or gone; or the card is damaged.
    """
    folder = folder_of(path)
    if folder is None:
        return
    known = _digests(read_card(folder))
    belonging = (beside or {}).get("sha256")
    names = list(belonging) if isinstance(belonging, Mapping) else []
    for part in (*(path.parent / Path(str(name)).name for name in names), path):
        digest = known.get(part.relative_to(folder).as_posix())
        if digest is None or (part.is_file() and file_digest(part) == digest):
            continue
        again = "the same 'nas export'" if part.parent != folder else "the same 'nas emit'"
        what = "is not the file that was certified" if part.is_file() else "is gone"
        raise InputError(
            f"'{part}' {what}: what '{folder / CARD}' says of '{path.name}' does not hold; make it again by"
            f" {again}"
        )


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write a card and the page that says the same, each atomically; the page first.

    A card that cannot be told as a page is not written either.

    Raises
    ------
    InputError
        If the card is malformed.
    RunError
        If the folder cannot be written to.
    """
    told = {"format": CARD_FORMAT, **card}
    try:
        page = render(told)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"the model card of '{folder}' is malformed ({type(error).__name__}: {error}); it was changed by"
            " hand, or by another version: make the network anew with 'nas emit'"
        ) from None
    write_text(Path(folder) / PAGE, page)
    write_json(Path(folder) / CARD, told)


@contextmanager
def changing_card(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a folder's card to be changed in place; it is written when the block succeeds.

    The block is held against every other command that changes the card, and is not for measuring in.

    Raises
    ------
    InputError
        As :func:`read_card`.
    RunError
        If another command is writing it, or the folder cannot be written to.
    """
    read_card(folder)  # no lock is left in a folder that is none of ours
    busy = f"another command is writing the model card of '{folder}'; run this one again"
    with locked(Path(folder) / ".card.lock", busy, _PATIENCE_S):
        for name in (CARD, PAGE):
            remove_leftovers(Path(folder) / name)
        card = read_card(folder)
        yield card
        write_card(folder, card)


# -- in words ------------------------------------------------------------------------------------------------


def render(card: Mapping[str, Any]) -> str:
    """Return the page (Markdown) that says what a card says; what the card lacks is left out or said.

    Raises
    ------
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError
        If the card is malformed.
    """
    sections = (
        ("", _head(card)),
        ("Accuracy", _accuracy(card)),
        ("Fine-tuning", _fine_tuning(card)),
        ("Cost", _cost(card)),
        ("Latency", _latency(card)),
        ("Exports", _exports(card)),
        ("Verified on the target", _verified(card)),
        ("Mind", [f"- {_text(line)}" for line in card.get("notices", ())]),
        ("Training data", _data(card)),
        ("Intended use and limits", _limits(card)),
        ("In Python", _python(card)),
        ("Made by", _made(card)),
    )
    parts = ["\n".join([f"## {title}", "", *lines] if title else lines) for title, lines in sections if lines]
    return "\n\n".join(parts) + "\n"


def _text(value: object) -> str:
    """Return a text as Markdown that shows it as it is."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def _code(value: object) -> str:
    """Return a name or path as Markdown code; also within a table."""
    line = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    gap = " " if "`" in line else ""
    return f"{fence}{gap}{line}{gap}{fence}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    every = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in every]


def _paradigm(card: Mapping[str, Any]) -> str:
    family = str(card.get("arch", {}).get("family", ""))
    return str(card.get("paradigm") or ("top-down" if family.startswith("deconv") else "bottom-up"))


def _head(card: Mapping[str, Any]) -> list[str]:
    skeleton, size, arch = card.get("skeleton", {}), card.get("input", {}), card.get("arch", {})
    whom = (
        "of one person, cut out of a picture by a box that something else must give"
        if _paradigm(card) == "top-down"
        else "of everybody in a picture, and tells people apart"
    )
    joints = skeleton.get("joints", ())
    supernet = card.get("supernet", {})
    by = f", found in the run {_code(supernet['run'])}" if "run" in supernet else ""
    lines = [f"# Pose network {_text(card.get('id', 'without a name'))}", ""]
    lines.append(
        f"A {_paradigm(card)} network of the family {_code(arch.get('family', 'unknown'))}{by}. It finds"
        f" {len(joints)} joints ({_text(skeleton.get('name', 'unnamed'))}) {whom}."
    )
    if size:
        lines += [
            "",
            f"Input: {size['height']} x {size['width']} pixels (height x width), {_text(size['colour'])},"
            f" normalised as for {_text(size['normalised'])}.",
        ]
    if joints:
        lines += ["", f"Joints, in order: {', '.join(map(_text, joints))}."]
    return lines


def _between(value: Mapping[str, Any], digits: int = 3, signed: bool = False) -> str:
    sign = "+" if signed else ""
    low, high = (f"{value[end]:{sign}.{digits}f}" for end in ("low", "high"))
    held = f"{100 * value['confidence']:g}% interval " if "confidence" in value else ""
    return f"{value['value']:{sign}.{digits}f} ({held}{low} to {high})"


def _figure(value: object, digits: int = 3) -> str:
    if not isinstance(value, int | float) or value != value:
        return "not known"
    return "none to find" if value == -1 else f"{value:.{digits}f}"  # so the evaluation says it


def _accuracy(card: Mapping[str, Any]) -> list[str]:
    ap = card.get("ap")
    if not ap:
        return ["Not measured."]
    stats, interval = ap["stats"], ap.get("interval")
    lines = [
        f"AP {_between(interval) if interval else _figure(stats['AP'])}, measured on {_text(ap['on'])}."
        " Nothing was chosen by these images.",
        "",
    ]
    lines += _table(list(stats), [[_figure(value) for value in stats.values()]])
    known = {"on", "protocol", "stats", "interval", "joints_scored"}
    how = ", ".join(f"{_text(key)} {_text(value)}" for key, value in ap.items() if key not in known)
    lines += ["", f"Protocol {_text(ap.get('protocol', 'unknown'))}; {how or 'no more is known'}."]
    scored, joints = ap.get("joints_scored"), card.get("skeleton", {}).get("joints")
    if scored is not None and joints is not None and len(scored) < len(joints):
        missing = [name for name in joints if name not in scored]
        lines += [
            "",
            f"Not scored, since these images do not annotate them: {', '.join(map(_text, missing))}.",
        ]
    if card.get("trust", {}).get("says"):
        lines += [
            "",
            f"How far the ranking that it was chosen by can be trusted: {_text(card['trust']['says'])}.",
        ]
    return lines


def _fine_tuning(card: Mapping[str, Any]) -> list[str]:
    tuned = card.get("fine_tuned")
    if not tuned:
        return []
    kept = "is kept" if tuned["kept"] else "was NOT kept: the weights are those before it"
    lines = [
        f"Trained alone for {tuned['epochs']} epochs ({tuned['steps']} steps), beginning with its part of the"
        f" supernet; teacher: {_text(tuned['teacher'])}. The result {kept}. That was decided on search images"
        " alone:",
        "",
    ]
    rows = [
        [
            where,
            _figure(told["before"]),
            _figure(told["after"]),
            _between(told["difference"], signed=True),
        ]
        for where, told in (("search (decides)", tuned["search"]), ("val (reported)", tuned["val"]))
        if told is not None
    ]
    return [*lines, *_table(("images", "AP before", "AP after", "paired difference"), rows)]


def _cost(card: Mapping[str, Any]) -> list[str]:
    cost, files = card.get("cost", {}), card.get("files", {})
    rows = []
    if cost:
        rows = [
            ["multiply-accumulates (MACs), every convolution once", f"{cost['macs'] / 1e9:.4f} G"],
            ["the same in the convention of LitePose's tables", f"{cost['macs_paper'] / 1e9:.4f} G"],
            ["parameters", f"{cost['params']:,}"],
            ["weights as 32-bit floats", f"{4 * cost['params'] / 1e6:.2f} MB"],
        ]
    rows += [[_code(name), f"{size:,} bytes"] for name, size in files.items()]
    return _table(("", ""), rows) if rows else []


def _provenance(value: Mapping[str, Any]) -> str:
    told = str(value.get("provenance", "unknown"))
    fitted = f"; {value['fitted']:.0%} of it fitted" if value.get("fitted") else ""
    calibrated = "" if value.get("calibrated", True) else "; a plain sum of blocks, not calibrated"
    return f"{told}: {_PROVENANCES.get(told, 'where it comes from is not known')}{fitted}{calibrated}"


def _yes(value: object) -> str:
    return "not known" if value is None else "yes" if value else "**NO**"


def _latency(card: Mapping[str, Any]) -> list[str]:
    latency = card.get("latency", {})
    if not latency:
        return ["No latency table answered for this network, so nothing is said of its speed."]
    rows = []
    notes = []
    for name, value in latency.items():
        budget, measured = value.get("budget"), value.get("measured_here")
        held = f" (holds with {value['coverage']:.0%})" if value.get("coverage") else ""
        rows.append(
            [
                _code(name),
                f"{value['ms']:.2f}",
                f"{value['low_ms']:.2f} to {value['high_ms']:.2f}{held}",
                _text(_provenance(value)),
                "none" if budget is None else f"{budget['ms']:g} ms: {_yes(budget['upper_end_within'])}",
                "no" if measured is None else f"{measured['median_ms']:.2f} (p90 {measured['p90_ms']:.2f})",
            ]
        )
        if value.get("beyond"):
            notes.append(f"- {_code(name)}: {_text(value['beyond'])}.")
        if measured is None and value.get("not_measured"):
            notes.append(f"- {_code(name)} was not measured by 'nas emit': {_text(value['not_measured'])}.")
        if budget is not None and measured is not None and not budget["measured_within"]:
            notes.append(f"- {_code(name)}: **measured, it is over the budget** of {budget['ms']:g} ms.")
    columns = ("target", "predicted ms", "interval", "what that rests on", "budget met", "measured ms")
    lines = [
        "One picture, the network alone. Predicted from tables of layer times; a budget is held against the"
        " upper end of the interval. Measured: this very network, where the target was at hand.",
        "",
        *_table(columns, rows),
    ]
    return [*lines, "", *notes] if notes else lines


def _ap_cell(value: Mapping[str, Any] | None) -> str:
    return "not measured" if not value else f"{_between({k: value[k] for k in ('value', 'low', 'high')})}"


def _exports(card: Mapping[str, Any]) -> list[str]:
    rows = []
    onnx = card.get("onnx")
    if onnx:
        error = f"{onnx['max_abs_error']:.1e} / {onnx['max_rel_error']:.1e}"
        same = "not measured by itself: its outputs are the network's but for rounding"
        rows.append(
            [_code("model.onnx"), "ONNX (fp32), any runtime that reads it", "", error, same, "", "yes"]
        )
    for each in card.get("exports") or ():
        size, images = each.get("size_bytes"), each.get("images")
        tolerance = each.get("tolerance")
        within = _yes(each.get("within_tolerance"))
        rows.append(
            [
                _code(each["file"]),
                _text(
                    f"{each.get('format', '?')} ({each.get('precision', '?')}), {each.get('runtime', '?')}"
                ),
                "" if size is None else f"{size / 1e6:.2f} MB",
                " / ".join(
                    "?" if each.get(key) is None else f"{each[key]:.1e}"
                    for key in ("max_abs_error", "max_rel_error")
                ),
                _ap_cell(each.get("ap")) + ("" if images is None else f" on {images} images"),
                ""
                if not each.get("difference")
                else _between({k: each["difference"][k] for k in ("value", "low", "high")}, signed=True),
                within if tolerance is None else f"{within} ({_text(tolerance)})",
            ]
        )
    columns = ("file", "format", "size", "largest error (absolute / relative)", "AP of the file")
    lines = _table((*columns, "AP less torch's", "within tolerance"), rows) if rows else []
    return ["Each file was run, and held against the network in PyTorch.", "", *lines] if lines else []


def outdated(card: Mapping[str, Any], verified: Mapping[str, Any]) -> bool:
    """Return whether a verification is of a file that the card now has another one in place of."""
    now = _digests(card).get(str(verified.get("file")))
    return None not in (now, verified.get("file_sha256")) and now != verified["file_sha256"]


def _verified(card: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for each in card.get("verified") or ():
        measured, predicted = each["measured"], each.get("predicted")
        lines.append(
            f"- {_code(each['file'])} on {_code(each['target']['name'])}, {_text(each['date'])}: median"
            f" {measured['median_ms']:.2f} ms (p10 {measured['p10_ms']:.2f}, p90 {measured['p90_ms']:.2f}),"
            f" {1e3 / measured['median_ms']:.1f} networks per second."
        )
        if predicted is not None:
            where = "within" if each["within_interval"] else "**outside of**"
            lines.append(
                f"  Predicted {predicted['ms']:.2f} ms ({predicted['low_ms']:.2f} to"
                f" {predicted['high_ms']:.2f}; {_text(_provenance(predicted))}): measured {where} the"
                " interval."
            )
        if each.get("budget") is not None:
            lines.append(f"  Budget {each['budget']['ms']:g} ms met: {_yes(each['budget']['met'])}.")
        if outdated(card, each):
            lines.append("  **The file was made again since: this is of the former one. Verify it again.**")
        for decode in each.get("decode") or ():
            lines.append(f"  {_text(decode['says'])}")
        lines += [f"  {_text(line)}" for line in each.get("notices", ())]
    return lines


def _data(card: Mapping[str, Any]) -> list[str]:
    data = card.get("data")
    if not data:
        return ["Not stated in this card."]
    images = data["images"]
    lines = [
        f"Trained on {images['train']} images; statistics of batch norm from"
        f" {card.get('calibration_images', '?')}; chosen by {images['search']} others; AP reported on"
        f" {images['val']} that neither saw.",
        "",
    ]
    rows = []
    for source in data["sources"]:
        terms = source.get("licence") or _NOT_STATED
        said = source.get("description")
        rows.append(
            [
                _code(source["name"]),
                _text(source["where"]),
                _text(terms),
                _text(said) if said else "",
            ]
        )
    lines += _table(("data", "from", "licence", "what the file says of itself"), rows)
    if any(not source.get("licence") for source in data["sources"]):
        lines += [
            "",
            "**A licence that is not stated is not a permission.** Find out under which terms the data and"
            " what was learned from it may be used before you ship this network; 'licence' in the recipe's"
            " data sources puts them here.",
        ]
    if data.get("weights"):
        lines += ["", f"Training began with the weights in {_code(data['weights'])}; their terms hold, too."]
    return lines


def _limits(card: Mapping[str, Any]) -> list[str]:
    lines = [
        "Finding joints of people in pictures like those that it was trained on. It was not made to tell who"
        " somebody is, and was not tested for anything that safety or health depends on.",
        "",
        "- AP is of the images named above; on other cameras, views, clothes or groups of people it may be"
        " anything. Measure it on your own pictures: `nas eval` and `nas predict`.",
        "- Milliseconds are of the targets named above and of no other device, runtime, precision or number"
        " of threads, and of the network alone unless decoding is named.",
    ]
    if _paradigm(card) == "top-down":
        lines.append("- It finds nobody by itself: boxes of people come from a detector, whose time adds up.")
    else:
        lines.append("- Time to tell people apart grows with their number: `nas time` measures it.")
    return lines


def _python(card: Mapping[str, Any]) -> list[str]:
    return [
        "```python",
        "import nas",
        "",
        'network = nas.load(".")            # a torch network; "." is the folder of this page',
        'find_people = nas.predictor(".")   # from a picture (RGB, uint8) to people',
        "```",
    ]


def _made(card: Mapping[str, Any]) -> list[str]:
    made, supernet = card.get("reproduce", {}), card.get("supernet", {})
    environment = card.get("environment", {})
    lines = []
    if made:
        lines += [
            f"The run's recipe has the SHA-256 `{_text(made['recipe_sha256'])}` and the seed"
            f" {made['seed']}; these commands made the network:",
            "",
            "```sh",
            *(" ".join(str(line).split()) for line in made["commands"]),
            "```",
            "",
        ]
        lines += [f"{_text(line)}\n" for line in made.get("notes", ())]
    elif supernet:
        lines += [f"Run {_code(supernet.get('run', '?'))}, seed {supernet.get('seed', '?')}.", ""]
    if environment:
        versions = ", ".join(f"{_text(k)} {_text(v)}" for k, v in environment.get("versions", {}).items())
        lines.append(
            f"{_text(environment.get('date', ''))}, {_text(environment.get('machine', ''))}, Python"
            f" {_text(environment.get('python', ''))}; {versions}."
        )
    lines += ["", "This page is written from `card.json`, which holds every figure in full."]
    return lines
