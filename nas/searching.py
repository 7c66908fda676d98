"""``nas search`` and ``nas plot``: a study in a run directory, from budget to result and pictures."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.config import to_plain
from nas.console import note, progress_bar
from nas.data import Datasets, open_datasets
from nas.latency import UpperEnd, full_bounds, known_targets, load_predictors, quantised_promise
from nas.plot import plot_front, plot_progress
from nas.run import RunDirectory
from nas.search import (
    AP,
    MACS,
    Constraint,
    Evaluation,
    InProcess,
    Objective,
    RayExecutor,
    SearchResult,
    latency,
    parse_constraints,
    search,
)
from nas.search.executors import Executor
from nas.search.noise import resampled
from nas.search.result import Record
from nas.search_report import caveats, claims_json
from nas.train import make_evaluator, open_supernet
from nas.trust.standing import Standing, standing
from search_spaces import Arch, InputError, get_arch
from search_spaces.errors import did_you_mean
from search_spaces.files import read_json, write_json, write_text
from supernet.evaluator import SubnetEvaluator

__all__ = ["SearchEvaluator", "Study", "draw_study", "load_result", "run_search", "search_context"]

EXECUTORS = ("in-process", "ray")


@dataclass(frozen=True)
class Study:
    """A finished (or interrupted) search, the folder that holds it, and what is known of its ranking."""

    folder: Path
    result: SearchResult
    trust: Standing

    def caveats(self) -> list[str]:
        """Return what has to be said beside the front: how far the ranking is known, which steps are ties."""
        return caveats(self.result.front(), self.trust)

    def summary(self) -> dict[str, Any]:
        """Return what ``nas search --json`` prints."""
        best = self.result.best() if self.result.evaluated else None
        return {
            "stopped": self.result.stopped,
            "evaluated": len(self.result.evaluated),
            "ended_early": len(self.result.partial),
            "priced_only": len(self.result.infeasible),
            "duplicates": self.result.duplicates,
            "best": None if best is None else best.to_json(),
            "front": [record.to_json() for record in self.result.front()],
            **claims_json(self.result.front(), self.trust),
        }


class SearchEvaluator:
    """The search's view of :class:`SubnetEvaluator`: AP on the search split."""

    def __init__(self, evaluator: SubnetEvaluator) -> None:
        self.evaluator = evaluator

    def evaluate(self, arch: Arch, rival: Mapping[str, float] | None = None) -> Evaluation:
        """Return the arch's AP on the search images, or an estimate once it is sure to lose to its rival."""
        began = time.perf_counter()
        result = self.evaluator.evaluate(arch, rival=rival)
        stats = dict(result.stats)
        if self.evaluator.early_stop is not None:
            stats["images"] = result.images
        known = "" if result.partial else resampled(self.evaluator.matches(result))
        seconds = time.perf_counter() - began
        return Evaluation(max(result.estimate, 0.0), stats, seconds, result.partial, known)


def study_name(constraints: Sequence[Constraint], sampler: str, seed: int) -> str:
    """Return a folder name that says the budget, e.g. ``macs-300M_nsga2_0``."""
    parts = []
    for c in constraints:
        value = c.objective.format(c.upper).split("MACs")[0].split(" parameters")[0].replace(" ", "")
        parts.append("-".join(filter(None, (c.objective.kind, value, c.objective.target))))
    text = "_".join([*(parts or ["unbounded"]), sampler, str(seed)])
    return re.sub(r"[^A-Za-z0-9.@_-]", "-", text)


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def search_context(run: RunDirectory, data: Datasets) -> dict[str, str]:
    """Return what the APs of a search rest on; those of different contexts are not comparable."""
    settings = to_plain(run.recipe.evaluate)
    # No AP of all images depends on them; that a study stops early is kept with the study.
    for name in ("decode_workers", "early_stop"):
        del settings[name]
    return {
        "supernet": _fingerprint(run.best),
        "evaluation": str(settings),
        "images": f"{len(data.search)} of {data.search.where} ({data.search.fingerprint})",
        "calibration": f"{len(data.calibrate)} of {data.calibrate.where} ({data.calibrate.fingerprint})",
    }


def run_search(
    run: RunDirectory,
    *,
    max_macs: str | None = None,
    max_params: str | None = None,
    max_latency: Sequence[str] = (),
    tables: Sequence[Path] | None = None,
    strict_tables: bool = False,
    evaluations: int | None = None,
    population: int | None = None,
    sampler: str | None = None,
    seed: int | None = None,
    executor: str = "in-process",
    workers: int = 2,
    ray_address: str | None = None,
    name: str | None = None,
    data: Datasets | None = None,
) -> Study:
    """Search the run's supernet within a budget; the same call continues a search that was stopped.

    Cost is MACs, unless a latency is bounded and MACs are not: then it is that latency.

    Raises
    ------
    InputError
        If an option is malformed.
    BudgetError
        If no network of the space meets the budget.
    RunError
        If the supernet is not trained, or the study of that name is of other settings.
    """
    settings = run.recipe.search
    sampler = sampler or settings.sampler
    seed = run.recipe.seed if seed is None else seed
    constraints = parse_constraints(
        max_macs=max_macs,
        max_params=max_params,
        max_latency=full_bounds(max_latency, tables, run),
        targets=known_targets(tables, run),
    )
    targets = [c.objective.target for c in constraints if c.objective.target is not None]
    predictors = load_predictors(targets, tables, run, strict=strict_tables)
    objectives: list[Objective] = [AP]
    if max_macs is not None or not targets:
        objectives.append(MACS)
    objectives += [latency(target) for target in targets]
    with run.locked():
        supernet_data = data or open_datasets(run.recipe)
        space = run.recipe.build_space(supernet_data.skeleton)
        early_stop = run.recipe.evaluate.early_stop
        evaluator = make_evaluator(
            run, supernet_data, open_supernet(run, space), fixed=True, early_stop=early_stop
        )
        folder = run.study(name or study_name(constraints, sampler, seed))
        if not run.trained:
            note(f"training of '{run.folder}' is not finished; its best weights so far are searched")
        seeds = [get_arch(text) for text in settings.seed_archs]
        for text, arch in zip(settings.seed_archs, seeds, strict=True):
            if arch not in space:
                note(f"search.seed_archs: '{text}' is left out; it is not in the space")
        with progress_bar("searching", evaluations or settings.evaluations) as bar:
            result = search(
                space,
                SearchEvaluator(evaluator),
                storage=folder / "study.journal",
                trials=evaluations or settings.evaluations,
                objectives=objectives,
                constraints=constraints,
                pricers=[UpperEnd(predictor) for predictor in predictors.values()],
                population=population or settings.population,
                sampler=sampler,
                seed=seed,
                seeds=[arch for arch in seeds if arch in space],
                study_name=folder.name,
                executor=_executor(executor, workers, ray_address),
                context=search_context(run, supernet_data),
                early_stop=early_stop,
                progress=lambda p: bar.update(
                    p.evaluated, p.trials, "" if p.best_ap is None else f"best AP {p.best_ap:.4f}"
                ),
            )
        study = Study(folder, result, standing(run.folder, result.context))
        claims = claims_json(result.front(), study.trust)
        write_json(folder / "result.json", {**result.to_json(), "claims": claims})
        write_text(folder / "result.csv", result.to_csv())
        if result.evaluated:
            draw_study(run, folder.name)
    for predictor in predictors.values():
        if (promise := quantised_promise(predictor.table.target)) is not None:
            note(promise)
        if not predictor.calibrated:
            note(
                f"the latency table '{predictor.name}' is not calibrated on whole networks: its budget was"
                " held against sums of blocks, of unknown error; 'nas profile --networks 20' measures some"
            )
    if result.stopped == "exhausted":
        note("every network within the budget is known; the search ended early")
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    return study


def _executor(name: str, workers: int, address: str | None) -> Executor:
    if name == "in-process":
        return InProcess()
    if name == "ray":
        return RayExecutor(workers=workers, address=address)
    raise InputError(f"--executor: unknown '{name}'{did_you_mean(name, EXECUTORS)}")


def load_result(run: RunDirectory, study: str) -> SearchResult:
    """Return the result of one of the run's studies."""
    path = run.study(study) / "result.json"
    return SearchResult.from_json(read_json(path, "search result"), f"search result '{path}'")


def draw_study(run: RunDirectory, study: str, output: Path | None = None) -> list[Path]:
    """Draw a study's Pareto front (``pareto``) and progress (``progress``) as PNG and SVG; return the files.

    Raises
    ------
    InputError
        If the study has no result.
    RunError
        If nothing was evaluated in it.
    """
    result = load_result(run, study)
    folder = output / study if output is not None else run.study(study)
    names: dict[str, Record] = {"chosen": result.best()}
    title = f"{run.recipe.name}: {len(result.evaluated)} networks evaluated"
    caption = f"Supernet's ranking: {standing(run.folder, result.context).line()}"
    made = [*plot_front(result, folder / "pareto", chosen=names, title=title, caption=caption)]
    return [*made, *plot_progress(result, folder / "progress")]
