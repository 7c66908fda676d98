"""What a report says first: the network in one sentence, and its figures large."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.markup import Markup, join, tag
from nas.model_card import outdated
from nas.report.elements import (
    ap_of,
    brief,
    in_parentheses,
    missing,
    number_of,
    plain,
    sides,
    size_of,
    with_ends,
)
from nas.report.facts import Facts, Subject
from nas.report.latencies import Breakdown
from nas.search import MACS
from nas.search.noise import interval

__all__ = ["headline"]


def headline(facts: Facts, times: Sequence[Breakdown]) -> Markup:
    """Return what the report says in one sentence, and its figures large."""
    subject = facts.subject
    if subject is None or facts.joints is None:
        return missing(
            "There is no network to show yet.", f"nas train {shlex.quote(facts.run.recipe.name)}.yaml"
        )
    cost = subject.arch.cost(facts.joints)
    params = f"{cost.params / 1e6:.3g} M" if cost.params >= 1e5 else f"{cost.params:,}"
    tiles = [
        *filter(None, [_ap_tile(subject)]),
        _Tile("operations", MACS.format(cost.macs), "", "counted from the layers"),
        _Tile("parameters", params, "", f"{size_of(4 * cost.params)} as 32-bit floats"),
        *filter(None, [_ms_tile(subject, times)]),
    ]
    told = {tile.name: f"{in_parentheses(tile.value, tile.interval)} {tile.note}" for tile in tiles}
    said = [f"does {MACS.format(cost.macs)} with {params} parameters"]
    if "AP" in told:
        said.append(f"reaches AP {told['AP']}")
    if "latency" in told:
        said.append(f"takes {told['latency']}")
    figures = [
        tag(
            "div",
            tag("dt", tile.name),
            tag("dd", tag("b", tile.value), tag("span", f"95%: {tile.interval}" if tile.name == "AP" else
                f"from {tile.interval}") if tile.interval else None, tag("span", tile.note)),
        )
        for tile in tiles
    ]  # fmt: skip
    return join(
        tag("p", f"{_what(subject)} {_listed(said)}.", class_="sentence"),
        tag("p", " ".join(filter(None, [subject.why, _budget(subject, facts), _tuned(subject)]))),
        tag("dl", figures, class_="tiles"),
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True)
class _Tile:
    """A figure shown large: its name, the figure, its interval, and what it rests on."""

    name: str
    value: str
    interval: str
    note: str


def _what(subject: Subject) -> str:
    name = subject.arch.id if subject.card is None else subject.card.folder.name
    named = f"'{name}' ({subject.arch.id})" if name != subject.arch.id else name
    family, size = subject.arch.family.name, sides(subject.arch.size)
    return f"The network {named} of the family {family} takes {size} pixels,"


def _ap_tile(subject: Subject) -> _Tile | None:
    if subject.card is not None:
        value, ends = ap_of(subject.card)
        if value:
            return _Tile(
                "AP", value, ends, f"on {brief(str(subject.card.part('ap').get('on', 'val images')))}"
            )
    if subject.record is not None and subject.record.ap is not None:
        known = interval(subject.record)
        ends = "" if known is None else f"{known.low:.3f} to {known.high:.3f}"
        return _Tile(
            "AP", f"{subject.record.ap:.3f}", ends, "on the search images, with the supernet's weights"
        )
    return None


def _ms_tile(subject: Subject, times: Sequence[Breakdown]) -> _Tile | None:
    """Return its latency: of a file verified, else measured when emitted, else by a table of the user's."""
    card = subject.card
    told = {} if card is None else card.part("latency")
    for each in () if card is None else card.rows("verified"):
        measured, target = each.get("measured"), each.get("target")
        if isinstance(target, Mapping) and card is not None and not outdated(card.values, each):
            tile = _measured(measured, f"verified on {target.get('name')} with {each.get('file')}")
            if tile is not None:
                return tile
    for name, value in told.items():
        measured = value.get("measured_here") if isinstance(value, Mapping) else None
        tile = _measured(measured, f"measured on {name}")
        if tile is not None:
            return tile
    # What comes with the package are estimates for other devices: told below, not up here, unless asked for.
    for time in times:
        if time.own or time.asked:
            p = time.prediction
            note = f"predicted on {time.name}, {p.provenance}"
            return _Tile("latency", f"{p.ms:.2f} ms", f"{p.low_ms:.2f} to {p.high_ms:.2f}", note)
    return None


def _measured(measured: object, what: str) -> _Tile | None:
    """Return the tile of a measurement as a card keeps it; None where it holds no figure."""
    if not isinstance(measured, Mapping) or not isinstance(measured.get("median_ms"), int | float):
        return None
    ends = [number_of(measured.get(end), 2) for end in ("p10_ms", "p90_ms")]
    note = f"{what} (10th to 90th percentile)"
    return _Tile("latency", f"{measured['median_ms']:.2f} ms", " to ".join(ends), note)


def _tuned(subject: Subject) -> str:
    """Return what fine-tuning came to, which tells the emitted network from the one in the front."""
    told = {} if subject.card is None else subject.card.part("fine_tuned")
    if not told:
        return ""
    if told.get("kept") is not True:
        return "Fine-tuning did not raise its AP on the search images, so its weights are the supernet's."
    val = told.get("val")
    if not isinstance(val, Mapping):
        return "Its weights are fine-tuned."
    ends = [number_of(val.get(end), 3) for end in ("before", "after")]
    return (
        f"Its weights are fine-tuned, {plain(told.get('epochs'))} epochs: AP on the val images from {ends[0]}"
        f" to {ends[1]}, a difference of {with_ends(val.get('difference'), 3)}."
    )


def _budget(subject: Subject, facts: Facts) -> str:
    """Return under which budget it was chosen, and among how many networks."""
    chosen = {} if subject.card is None else subject.card.part("chosen")
    budget = chosen.get("budget")
    if isinstance(budget, list) and budget:
        known = chosen.get("known")
        among = (
            f" among {known['networks']} networks"
            if isinstance(known, Mapping) and "networks" in known
            else ""
        )
        return f"It was chosen by {chosen.get('by', 'a search')}{among} under {', '.join(map(str, budget))}."
    names = [name for name, record in facts.marked.items() if record.arch == subject.arch]
    bounds = () if facts.shown is None else facts.shown.constraints
    if names and names != ["chosen"]:
        return f"It is the {' and the '.join(names)}."
    return f"Budget: {', '.join(map(str, bounds))}." if names and bounds else ""
