"""Where a network comes from, for its card: the data with their terms, and the commands that made it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nas.data import Datasets
from nas.known import load_result
from nas.recipe import DataSource, Recipe
from nas.run import RunDirectory
from nas.search import AP, Objective, SearchResult
from search_spaces import InputError, LitePoseNasError
from search_spaces.files import read_json

__all__ = ["data_terms", "reproduction", "search_command"]

_MOST_LICENCES: Final = 12
"""Named in full; a file that lists more is not read to its end by anybody."""


def data_terms(recipe: Recipe, data: Datasets) -> dict[str, Any]:
    """Return what a card tells of the images: where they are from, how many, and under which terms.

    A licence is what the recipe says (``licence``), or else what the annotation file lists as ``licenses``;
    where neither does, it is None, and nothing is guessed.
    """
    named = {f"data.{name}": source for name, source in recipe.data.training.items()}
    if recipe.data.search is not None:
        named["data.search"] = recipe.data.search
    named["data.val"] = recipe.data.val
    return {
        "images": {
            name: len(part)
            for name, part in (("train", data.train), ("search", data.search), ("val", data.val))
        },
        "sources": [{"name": name, **_source(source)} for name, source in named.items()],
        "weights": None if recipe.init is None else recipe.init.name,
    }


def _source(source: DataSource) -> dict[str, Any]:
    if source.synthetic is not None:
        own = f"{source.synthetic.images} pictures drawn from seed {source.synthetic.seed}"
        none = "none needed: drawn by this toolkit, no photograph is in it"
        return {"where": own, "licence": source.licence or none, "description": None}
    if source.annotations is None:
        raise InputError("a data source names both 'annotations' and 'images', or 'synthetic' alone")
    content = read_json(source.annotations, "annotation file")
    info = content.get("info") if isinstance(content, dict) else None
    info = info if isinstance(info, dict) else {}
    said = [info.get(key) for key in ("description", "url", "contributor", "license", "licence")]
    listed = _listed(content.get("licenses") if isinstance(content, dict) else None)
    return {
        "where": f"annotation file '{source.annotations}'",
        "licence": source.licence or listed,
        "description": "; ".join(text for text in said if isinstance(text, str) and text.strip()) or None,
    }


def _listed(licences: object) -> str | None:
    """Return the licences that an annotation file lists, in words; None where it lists none."""
    found: list[str] = []
    for each in licences if isinstance(licences, list) else ():
        name, url = (each.get(key) for key in ("name", "url")) if isinstance(each, dict) else (None, None)
        words = [text for text in (name, url) if isinstance(text, str) and text.strip()]
        if words:
            found.append(words[0] if len(words) == 1 else f"{words[0]} ({words[1]})")
    if not found:
        return None
    more = f"; {len(found) - _MOST_LICENCES} more" if len(found) > _MOST_LICENCES else ""
    each_its_own = "each image has one of these: " if len(found) > 1 else ""
    return each_its_own + "; ".join(found[:_MOST_LICENCES]) + more


def reproduction(run: RunDirectory, emit: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the commands that made a network, and the digest of the recipe that they rest on.

    Parameters
    ----------
    run
        The run; its ``recipe.yaml`` holds every setting, so training from it is the training that was.
    emit
        The last command, as words after ``nas``.
    chosen
        How the network was chosen, as the card says it.
    """
    recipe = run.folder / "recipe.yaml"
    digest = hashlib.sha256(recipe.read_bytes()).hexdigest()
    commands = [["train", str(recipe), "--output", "NEW-RUN"]]
    notes = []
    if (study := chosen.get("found_in")) is not None:
        try:
            commands.append(search_command(run, str(study), load_result(run, str(study))))
        except LitePoseNasError:
            notes.append(f"The search '{study}', which found it, has no result that says how it was started.")
    commands.append(list(emit))
    return {
        "recipe_sha256": digest,
        "seed": run.recipe.seed,
        "trained_with": _trained_with(run.folder / "environment.json"),
        "commands": [shlex.join(["nas", *words]) for words in commands],
        "notes": [*notes, "Given NEW-RUN instead of the run, the later commands begin from the very start."],
    }


def _trained_with(path: Path) -> str | None:
    """Return the command that the training was first started by."""
    try:
        told = read_json(path)
    except LitePoseNasError:
        return None
    command = told.get("command") if isinstance(told, dict) else None
    return command if isinstance(command, str) else None


def search_command(run: RunDirectory, study: str, result: SearchResult) -> list[str]:
    """Return the words after ``nas`` that search as a study did: its bounds, and how it went about it.

    Bounds are those that were settled then, also where a network was named. What the result does not say is
    taken from the request that the search was begun with, where there is one.
    """
    asked = _asked(run, study)
    words = ["search", str(run.folder)]
    for bound in result.constraints:
        on = bound.objective.target
        value = _number(bound.upper) + ("" if on is None else f"ms@{on}")
        words += [f"--max-{bound.objective.kind}", value]
    if result.min_ap is not None:
        words += ["--min-ap", _number(result.min_ap)]
    traded = [_budget_name(objective) for objective in result.objectives if objective != AP]
    for name in traded or ["ap"]:
        words += ["--objective", name]
    words += ["--evaluations", str(result.trials), "--sampler", result.sampler, "--seed", str(result.seed)]
    if isinstance(asked.get("population"), int):
        words += ["--population", str(asked["population"])]
    for option, key in (("--tables", "tables"), ("--set", "overrides")):
        given = asked.get(key)
        for value in given if isinstance(given, list) else ():
            words += [option, str(value)]
    words += ["--strict-tables"] if asked.get("strict_tables") is True else []
    return [*words, "--name", study]


def _asked(run: RunDirectory, study: str) -> dict[str, Any]:
    """Return what a search was begun with; empty where that is not known."""
    try:
        told = read_json(run.study(study) / "request.json", "search request")
    except LitePoseNasError:
        return {}
    return told if isinstance(told, dict) else {}


def _number(value: float) -> str:
    """Return a number in as few digits as give it back."""
    return next(text for digits in (12, 17) if float(text := f"{value:.{digits}g}") == value or digits == 17)


def _budget_name(objective: Objective) -> str:
    """Return an objective as the commands' options write it."""
    return objective.kind if objective.target is None else f"{objective.kind}@{objective.target}"
