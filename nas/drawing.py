"""``nas plot``: which pictures and pages a run's studies get, and what is shown in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from latency_tables import LatencyPredictor
from nas.beside import Beside, beside
from nas.console import note, note_once
from nas.known import KnownNetworks, load_result, try_choose
from nas.latency import known_targets, load_predictors
from nas.plot import View, plot_front, plot_progress
from nas.plot_choices import choice_marginals, plot_choices
from nas.plot_page import write_page
from nas.run import RunDirectory
from nas.search.objectives import MACS
from nas.search.result import Record, SearchResult
from nas.trust.standing import standing
from search_spaces import space_from_config

__all__ = ["Together", "draw_result", "draw_study", "draw_together", "put_together", "tables_of"]


def draw_study(
    run: RunDirectory,
    study: str,
    output: Path | None = None,
    tables: Sequence[Path] | None = None,
    reference: str = "costs",
    *,
    choices: bool = True,
) -> list[Path]:
    """Draw a study; return the files: front (``pareto``), ``progress`` and ``choices``.

    Parameters
    ----------
    run, study
        The study's run, and its name.
    output
        In which folder a folder of the study's name is made; by default the study's own is taken.
    tables
        Further folders of latency tables.
    reference
        What is shown of published networks; see :func:`nas.beside.beside`.
    choices
        Whether choices are drawn, too.

    Raises
    ------
    InputError
        If the study has no result, or ``reference`` is unknown.
    RunError
        If nothing was evaluated in it.
    """
    result = load_result(run, study)
    chosen, _ = try_choose(result)
    folder = output / study if output is not None else run.study(study)
    names: dict[str, Record] = {} if chosen is None else {"chosen": chosen}
    made = draw_result(run, result, folder, names, tables=tables, reference=reference, choices=choices)
    return [*made, *plot_progress(result, folder / "progress")]


def draw_together(
    run: RunDirectory,
    studies: Sequence[str],
    output: Path | None = None,
    tables: Sequence[Path] | None = None,
    reference: str = "costs",
) -> list[Path]:
    """Draw several studies as one search; return the files, none where there are no two to be put together.

    Every network that one of them evaluated is shown, on every target that they priced and that has a table,
    and the one chosen for each study's budget among all of them. Studies whose APs rest on something else
    than those of the latest one are left out, with a note.

    Parameters
    ----------
    run, output, tables, reference
        As of :func:`draw_study`; by default the folder of all studies is taken.
    studies
        Their names, the oldest first.
    """
    together = put_together(run, studies, tables)
    if together is None:
        return []
    result, count = together.result, together.studies
    return draw_result(
        run, result, run.folder / "search" if output is None else output, together.chosen, tables=tables,
        reference=reference, own_budgets=True,
        heading=f"{count} searches, {len(result.evaluated)} networks evaluated",
    )  # fmt: skip


@dataclass(frozen=True)
class Together:
    """Several studies as one search.

    Attributes
    ----------
    result
        Every network that one of them evaluated.
    chosen
        The best for each study's budget among all of them, by that budget in words.
    studies
        How many they are.
    """

    result: SearchResult
    chosen: Mapping[str, Record]
    studies: int


def put_together(
    run: RunDirectory, studies: Sequence[str], tables: Sequence[Path] | None = None
) -> Together | None:
    """Return several studies, named from the oldest on, as one search; None where there are no two.

    Studies whose APs rest on something else than those of the latest one are left out, with a note.
    """
    results = {name: load_result(run, name) for name in studies}
    results = {name: result for name, result in results.items() if result.evaluated}
    latest = next(reversed(results.values()), None)
    for name, result in list(results.items()):
        if latest is not None and result.context != latest.context:
            note(
                f"the study '{name}' rests on other weights, images or settings than the latest one, so the"
                " picture of all leaves it out"
            )
            del results[name]
    if latest is None or len(results) < 2:
        return None
    targets = dict.fromkeys(target for result in results.values() for target in result.targets)
    predictors = tables_of(run, tuple(targets), tables)
    space = space_from_config(run.recipe.space, "space", joints=latest.joints)
    records: dict[str, Record] = {}
    for result in results.values():
        for record in result.evaluated:
            records.setdefault(record.arch.id, record)
    known = KnownNetworks(run, space, latest.context, tuple(records.values()), {})
    found = known.priced(predictors)
    bounds = [c for result in results.values() for c in result.constraints]
    held = tuple(c for c in dict.fromkeys(bounds) if c.objective.target in (None, *predictors))
    chosen: dict[str, Record] = {}
    for result in results.values():
        asked = {*result.objectives, *(bound.objective for bound in result.constraints)}
        if all(objective.target in (None, *predictors) for objective in asked):
            pool = replace(found, objectives=result.objectives, min_ap=result.min_ap)
            best, _ = try_choose(pool, result.constraints)
            if best is not None:
                chosen.setdefault(f"best{_under(result)}", best)
    together = replace(found, study=f"{len(results)} studies", constraints=held)
    return Together(together, chosen, len(results))


def _under(result: SearchResult) -> str:
    """Return a study's budget in words: `` under 80 ms on raspberry-pi-4 and 1.5 GMACs``."""
    bounds = [
        c.objective.format(c.upper) + (f" on {c.objective.target}" if c.objective.target else "")
        for c in result.constraints
    ]
    least = [] if result.min_ap is None else [f"from AP {result.min_ap:g}"]
    return " under " + " and ".join([*bounds, *least]) if bounds or least else " of all"


def draw_result(
    run: RunDirectory,
    result: SearchResult,
    folder: Path,
    chosen: Mapping[str, Record],
    *,
    tables: Sequence[Path] | None = None,
    reference: str = "costs",
    choices: bool = True,
    own_budgets: bool = False,
    heading: str | None = None,
) -> list[Path]:
    """Draw a result's front as pictures and page (``pareto``), and its ``choices``; return the files.

    Parameters
    ----------
    run, result
        What was found, and in which run.
    folder
        Where the files go.
    chosen
        The networks to mark, by name.
    tables, reference, choices
        As of :func:`draw_study`.
    own_budgets
        As of :func:`nas.plot.plot_front`.
    heading
        What stands over the pictures, after the run's name.
    """
    around, changed = beside(result, run.recipe, tables_of(run, result.targets, tables), reference)
    for target in changed:
        note_once(
            f"the latency table '{target}' has changed since the search, so the pictures show no intervals of"
            " its predictions; 'nas search' with the same settings and another --name prices anew"
        )
    view = View.of(result, chosen=chosen, beside=around)
    if reference == "published" and not any(map(view.shown_lines, view.axes())):
        note_once("all published networks cost less or more than those evaluated, so none is shown")
    looked_at = heading or f"{len(result.evaluated)} networks evaluated"
    title = f"{run.recipe.name}: {looked_at}"
    caption = f"Supernet's ranking: {standing(run.folder, result.context).line()}"
    parts: _Drawn = {"chosen": chosen, "beside": around, "title": title, "caption": caption}
    made = [*plot_front(result, folder / "pareto", own_budgets=own_budgets, **parts)]
    made.append(write_page(result, folder / "pareto", own_budgets=own_budgets, run=run.folder, **parts))
    if not choices:
        return made
    cost = MACS if own_budgets else None
    if not choice_marginals(result):
        note_once("the networks evaluated do not differ, so there is no picture of choices")
        return made
    worth = f"{run.recipe.name}: what each choice is worth, {looked_at}"
    return [*made, *plot_choices(result, folder / "choices", cost, title=worth)]


class _Drawn(TypedDict):
    """What pictures and pages have in common."""

    chosen: Mapping[str, Record]
    beside: Beside
    title: str
    caption: str


def tables_of(
    run: RunDirectory, targets: Sequence[str], tables: Sequence[Path] | None
) -> dict[str, LatencyPredictor]:
    """Return a predictor for each target that has a table; of the others it is told that they have none."""
    known = known_targets(tables, run)
    for target in targets:
        if target not in known:
            note_once(
                f"there is no latency table for '{target}' here, so the pictures show no intervals of its"
                " predictions; --tables names the folder that has it"
            )
    return load_predictors([target for target in targets if target in known], tables, run)
