"""``nas runs compare``: what several runs were made with, and what came of it, as far as that compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nas.config import to_plain
from nas.known import load_result
from nas.pareto import pareto_front
from nas.run import RunDirectory
from nas.runs import images_of, look_at, metric_rows
from search_spaces import InputError, LitePoseNasError

__all__ = ["Comparison", "Outcome", "compare_runs"]

LAST_STEPS: Final = 50
"""The loss told is the mean over so many last steps: that of a single step is mostly chance."""

_UNASKED: Final = ("batch_size", "decode_workers", "early_stop")
"""Settings of the evaluation on which no AP of a whole evaluation depends."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes
    ----------
    run, state
        Its folder and state.
    step, loss
        Steps done, and the mean loss of the last :data:`LAST_STEPS`; None where nothing was trained.
    ap_largest, ap_smallest
        AP of the largest and the smallest network in the last validation, on the search images.
    studies, networks, front
        Searches with a result, networks whose AP they know, how many of those are on the front (AP, MACs).
    best_search_ap
        The highest of those APs.
    images
        Number and digest of the search images; None where the run has not noted them.
    measured
        What APs depend on beside images and weights, as text.
    """

    run: str
    state: str
    step: int | None
    loss: float | None
    ap_largest: float | None
    ap_smallest: float | None
    studies: int
    networks: int
    front: int
    best_search_ap: float | None
    images: str | None
    measured: str


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes
    ----------
    outcomes
        Of each run.
    differences
        Every setting in which their recipes differ, with the value of each run in their order.
    comparable
        Whether their APs were measured alike, on the same images.
    why_not
        What stands against it, in words; empty where nothing does.
    """

    outcomes: tuple[Outcome, ...]
    differences: Mapping[str, tuple[Any, ...]]
    comparable: bool
    why_not: str

    def to_json(self) -> dict[str, Any]:
        """Return it as ``nas runs compare --json`` prints it."""
        return {
            "runs": [to_plain(outcome) for outcome in self.outcomes],
            "recipe_differences": {name: list(values) for name, values in self.differences.items()},
            "aps_comparable": self.comparable,
            "why_not": self.why_not or None,
        }


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Hold runs against each other.

    Raises
    ------
    InputError
        If there are fewer than two, or one of them is no run that can be read.
    """
    if len({folder.resolve() for folder in folders}) < 2:
        raise InputError("a comparison is of two different runs or more")
    runs = [RunDirectory.open(folder) for folder in folders]
    outcomes = tuple(_outcome(run) for run in runs)
    recipes = [_flat(run.recipe.to_plain()) for run in runs]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    settings = {name: tuple(recipe.get(name) for recipe in recipes) for name in names}
    differences = {n: given for n, given in settings.items() if any(each != given[0] for each in given)}
    why_not = _why_not(outcomes)
    return Comparison(outcomes, differences, not why_not, why_not)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a plain recipe by their dotted names; several sources by their places."""
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}").items()}
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return {
            k: v for place, each in enumerate(value) for k, v in _flat(each, f"{prefix}[{place}]").items()
        }
    return {prefix.lstrip("."): value}


def _outcome(run: RunDirectory) -> Outcome:
    status = look_at(run.folder)
    rows = [row["total"] for row in metric_rows(run.folder / "metrics.csv") if "total" in row][-LAST_STEPS:]
    validation = next(iter(reversed(metric_rows(run.folder / "validation.csv"))), {})
    images = images_of(run.folder).get("search")
    known: dict[str, tuple[float, int]] = {}
    for name in run.studies():
        try:
            result = load_result(run, name)
        except LitePoseNasError:
            continue  # look_at() tells of it
        images = images or result.context.get("images")
        for record in result.evaluated:
            known[record.arch.id] = (record.require_ap(), record.macs)
    evaluate = to_plain(run.recipe.evaluate)
    measured = {name: value for name, value in evaluate.items() if name not in _UNASKED}
    return Outcome(
        run=str(run.folder),
        state=status.progress,
        step=status.step,
        loss=sum(rows) / len(rows) if rows else None,
        ap_largest=validation.get("AP_largest"),
        ap_smallest=validation.get("AP_smallest"),
        studies=len(run.studies()),
        networks=len(known),
        front=len(pareto_front([list(each) for each in known.values()], ("maximize", "minimize")))
        if known
        else 0,
        best_search_ap=max((ap for ap, _ in known.values()), default=None),
        images=images,
        measured=str(measured),
    )


def _why_not(outcomes: Sequence[Outcome]) -> str:
    """Return why the runs' APs say nothing about each other; empty where they do."""
    unknown = [outcome.run for outcome in outcomes if outcome.images is None]
    if unknown:
        return f"which images the APs of '{unknown[0]}' were measured on is not noted"
    first = outcomes[0]
    for other in outcomes[1:]:
        if other.images != first.images:
            return (
                f"the APs were measured on different images: {first.images} in '{first.run}', {other.images}"
                f" in '{other.run}'"
            )
        if other.measured != first.measured:
            return f"'{first.run}' and '{other.run}' measure AP in different ways (section evaluate)"
    return ""
