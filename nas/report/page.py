"""``nas report``: everything that a run can tell as one page, which holds all it shows and loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nas.beside import Beside, beside, landmarks, published_data, same_images
from nas.console import note_once
from nas.drawing import tables_of
from nas.markup import Markup, join, tag
from nas.plot import View
from nas.plot_page import fill_page, front_json, page_part, page_policy
from nas.report.elements import ms_of, sides
from nas.report.facts import UNREADABLE, Facts, gather
from nas.report.headline import headline
from nas.report.latencies import Breakdown, breakdowns
from nas.report.pictures import Picture, sample_pictures
from nas.report.sections import Section, sections
from nas.run import RunDirectory
from nas.search import MACS, SearchResult
from search_spaces import InputError, LitePoseNasError, listed_networks, named_archs
from search_spaces.files import write_text
from supernet.paradigms import TOP_DOWN

__all__ = ["write_report"]

_TOP_DOWN_RULES = "hrnet"
"""By which rules listed networks are made that see one person at a time."""
_STEPS = "gradual-shrinking"
"""Listed networks that are steps of a study, and no networks that anybody ships."""
_TARGETS_SHOWN = 4
"""Targets that published networks are priced on at most: a table of more is not read."""


def write_report(
    run: RunDirectory,
    output: Path | None = None,
    *,
    study: str | None = None,
    network: str | None = None,
    tables: Sequence[Path] | None = None,
    pictures: bool = True,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Write a run's report; nothing but the date in it changes while the run does not.

    The run's lock is not taken: a search or a training may be at work meanwhile.

    Parameters
    ----------
    run
        The run, in whatever state.
    output
        An ``.html`` file; by default ``report.html`` in the run.
    study, network, tables
        As of :func:`nas.report.facts.gather`.
    pictures
        Whether val images are shown, with what the emitted network finds in them.
    now
        The date that the report bears; by default the present one.

    Returns
    -------
    dict
        ``file``, ``bytes``, ``network`` (its id), ``sections`` and ``problems``, JSON-able.

    Raises
    ------
    InputError
        If there is no such study or network, or the file has another suffix.
    RunError
        If the file cannot be written.
    """
    path = run.folder / "report.html" if output is None else Path(output)
    path = path.with_suffix(".html") if path.suffix == "" else path
    if path.suffix.lower() != ".html":
        raise InputError(f"a report is written as .html, not as '{path.name}'")
    facts = gather(run, study, network, tables)
    problems = list(facts.problems)
    subject, joints = facts.subject, facts.joints
    blocks = () if subject is None or joints is None else subject.arch.blocks(joints)
    times: list[Breakdown] = []
    silent: list[str] = []
    if blocks and subject is not None:
        told = {} if subject.card is None else subject.card.part("latency")
        shown = () if facts.shown is None else facts.shown.targets
        try:
            family, first = subject.arch.family.name, list(dict.fromkeys((*shown, *told)))
            times, silent = breakdowns(run, blocks, family, tables, first)
        except LitePoseNasError as error:
            problems.append(str(error))
    drawn = _pictures(facts, pictures, problems)
    front, data = _front(facts, tables, problems)
    parts = sections(facts, blocks, times, silent, drawn, front, _published(facts, times))
    bodies = [_section(part, problems) for part in parts]
    date = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    head = _head(facts, times, date, problems)
    links = [tag("a", part.short, href=f"#{part.key}") for part in parts]
    body = join(head, tag("nav", links, aria_label="Parts of this report"), tag("main", bodies))
    style = (
        page_part("base.css")
        + (page_part("pareto.css") if front is not None else "")
        + page_part("report.css")
    )
    script = page_part("pareto.js") if front is not None else ""
    scripts = f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>'
    page = fill_page(
        "report.html",
        {
            "policy": page_policy(style, script, "data:"),
            "title": html.escape(f"{run.recipe.name}: report"),
            "style": style,
            "body": body,
            "scripts": scripts if front is not None else "",
        },
    )
    write_text(path, page)
    return {
        "file": str(path),
        "bytes": len(page.encode()),
        "network": None if subject is None else subject.arch.id,
        "sections": [part.key for part in parts],
        "problems": problems,
    }


def _head(facts: Facts, times: Sequence[Breakdown], date: str, problems: Sequence[str]) -> Markup:
    told = None
    if problems:
        told = tag(
            "section",
            tag("h2", "What could not be read"),
            tag("ul", [tag("li", line) for line in problems]),
            class_="problems",
        )
    return tag(
        "header",
        tag("p", f"litepose-nas report, {date}", class_="date"),
        tag("h1", facts.run.recipe.name),
        headline(facts, times),
        told,
    )


def _section(part: Section, problems: list[str]) -> Markup:
    """Return a part under its heading; what is wrong with its facts stands in its place."""
    try:
        inside = part.make()
    except UNREADABLE as error:
        said = f"{part.title}: {error or type(error).__name__}"
        problems.append(said)
        inside = tag("p", f"This cannot be shown: {said}", class_="missing")
    return tag("section", tag("h2", part.title), inside, id=part.key)


def _pictures(facts: Facts, wanted: bool, problems: list[str]) -> list[Picture] | str:
    """Return what is shown of the val images, or why nothing is."""
    if not wanted:
        return "Pictures were left out (--no-pictures)."
    card = None if facts.subject is None else facts.subject.card
    if card is None:
        return f"The network is not emitted yet; 'nas emit {facts.run.folder}' makes one that can be tried."
    if facts.data is None:
        return "The val images are not at hand."
    try:
        return sample_pictures(facts.run, facts.data.val, card.folder / "model.safetensors")
    except (LitePoseNasError, OSError) as error:
        problems.append(str(error))
        return f"No pictures: {error}"


def _front(facts: Facts, tables: Sequence[Path] | None, problems: list[str]) -> tuple[Markup | None, str]:
    """Return the interactive front and the data of its script; None where nothing was evaluated."""
    if facts.shown is None or not facts.shown.evaluated:
        return None, ""
    around = Beside()
    try:
        predictors = tables_of(facts.run, facts.shown.targets, tables)
        around, changed = beside(facts.shown, facts.run.recipe, predictors)
        for target in changed:
            note_once(
                f"the latency table '{target}' has changed since the search; its intervals are left out"
            )
    except LitePoseNasError as error:
        problems.append(str(error))
    try:
        view = View.of(facts.shown, chosen=facts.marked, beside=around, own_budgets=facts.own_budgets)
        data = front_json(view, facts.run.folder, facts.run.recipe.name)
    except LitePoseNasError as error:
        problems.append(str(error))
        return None, ""
    count = len(facts.shown.evaluated)
    said = f"{count} networks evaluated; AP is on the search images, with the supernet's weights."
    return join(tag("p", said), Markup(page_part("front.html"))), data


def _published(facts: Facts, times: Sequence[Breakdown]) -> Mapping[str, Any]:
    """Return what published networks of the family cost, and their APs where those were published."""
    subject, joints = facts.subject, facts.joints
    if subject is None or joints is None:
        return {}
    family = subject.arch.family.name
    archs = {name: arch for name, arch in named_archs().items() if arch.family.name == family}
    shown = times[:_TARGETS_SHOWN]
    own = subject.arch.id if subject.card is None else subject.card.folder.name
    rows = []
    for name, arch in {f"{own} (this one)": subject.arch, **archs}.items():
        cost = arch.cost(joints)
        ms = {}
        for each in shown:
            try:
                p = each.predictor.predict(arch.blocks(joints), family)
            except LitePoseNasError:
                continue
            ms[each.name] = f"{ms_of(p.ms)} ({ms_of(p.low_ms)} to {ms_of(p.high_ms)})"
        size = sides(arch.size)
        rows.append({"name": name, "input": size, "macs": cost.macs, "params": cost.params, "ms": ms})
    rows += _listed(facts, joints, shown)
    found: dict[str, Any] = {"rows": rows if len(rows) > 1 else [], "targets": [each.name for each in shown]}
    data = published_data(joints)
    marks = () if facts.shown is None else landmarks(MACS, facts.shown, {})
    if data is not None and (marks or any(name in data.ap for name in archs)):
        found |= {
            "ap": [(name, ap) for name, ap in data.ap.items() if name in archs],
            "on": data.name,
            "same": _same(facts, facts.shown),
            "source": data.source,
        }
    return found


def _listed(facts: Facts, joints: int, shown: Sequence[Breakdown]) -> list[dict[str, Any]]:
    """Return the networks of others, known by their layers alone, that find people in the same way."""
    top_down = facts.run.recipe.paradigm is TOP_DOWN
    rows = []
    for network in listed_networks().values():
        if (network.rules == _TOP_DOWN_RULES) is not top_down or network.name.startswith(_STEPS):
            continue
        cost, ms = network.cost(joints), {}
        for each in shown:
            try:
                p = each.predictor.predict_layout(network.layout(joints), network.rules)
            except LitePoseNasError:
                continue
            ms[each.name] = f"{ms_of(p.ms)} ({ms_of(p.low_ms)} to {ms_of(p.high_ms)})"
        told = {"name": network.title, "input": sides(network.size), "ms": ms}
        rows.append({**told, "macs": cost.macs, "params": cost.params})
    return rows


def _same(facts: Facts, result: SearchResult | None) -> bool:
    return result is not None and same_images(facts.run.recipe, result)
