"""``nas search`` and ``nas plot``: studies in a run directory, from budgets to results and pictures."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from latency_tables import LatencyPredictor
from nas.config import to_plain
from nas.console import note, progress_bar
from nas.data import Datasets, open_datasets
from nas.latency import UpperEnd, full_bounds, known_targets, load_predictors, quantised_promise
from nas.pareto import choose
from nas.plot import plot_front, plot_progress
from nas.run import RunDirectory
from nas.search import (
    Budget,
    BudgetText,
    Constraint,
    Evaluation,
    InProcess,
    Objective,
    Pricing,
    RayExecutor,
    SearchResult,
    analyse,
    open_shared,
    parse_budget,
    parse_objectives,
    search,
)
from nas.search.analysis import seconds_of
from nas.search.executors import Executor
from nas.search.noise import pack, resampled, unpack
from nas.search.result import Record
from nas.search.shared import SharedEvaluations
from nas.search_report import Neighbours, caveats, claims_json, error_bar, neighbours, shortfall
from nas.train import make_evaluator, open_supernet
from nas.trust.standing import Standing, standing
from search_spaces import Arch, BudgetError, InputError, SearchSpace, get_arch
from search_spaces.errors import did_you_mean
from search_spaces.files import read_json, write_json, write_text
from supernet.evaluator import SubnetEvaluator, SubnetResult
from supernet.racing import Look, Rival, Verdict

__all__ = [
    "Answer",
    "SearchEvaluator",
    "SearchOptions",
    "Studies",
    "Study",
    "draw_study",
    "load_result",
    "run_search",
    "run_searches",
    "search_context",
    "united",
]

EXECUTORS = ("in-process", "ray")


@dataclass(frozen=True)
class Study:
    """A finished (or interrupted) search, the folder that holds it, and what is known of its ranking.

    Attributes
    ----------
    folder, result
        See above.
    trust
        What is known of the supernet's ranking.
    budget
        What it was held to.
    notes
        What has to be known of the budget, such as that it lies within a table's error bar.
    """

    folder: Path
    result: SearchResult
    trust: Standing
    budget: Budget
    notes: tuple[str, ...] = ()

    @cached_property
    def chosen(self) -> Record | None:
        """The network that answers the search; None where none reaches the AP asked for."""
        return _chosen(self.result)[0]

    def caveats(self) -> list[str]:
        """Return what has to be said beside the front: of budget and ranking, and which steps are ties."""
        own = [*self.notes, *shortfall(self.result)]
        return [*own, *caveats(self.result.front(), self.trust)]

    def summary(self) -> dict[str, Any]:
        """Return what ``nas search --json`` prints."""
        chosen, why = _chosen(self.result)
        front = self.result.front()
        claims = claims_json(front, self.trust)
        beside = None if chosen is None else neighbours(chosen, front, self.result.axis()).to_json()
        return {
            "budget": str(self.budget),
            "stopped": self.result.stopped,
            "evaluated": len(self.result.evaluated),
            "ended_early": len(self.result.partial),
            "priced_only": len(self.result.infeasible),
            "duplicates": self.result.duplicates,
            "evaluations": seconds_of(self.result),
            "best": None if chosen is None else chosen.to_json(),
            "no_answer": why or None,
            "neighbours": beside,
            "front": [record.to_json() for record in front],
            **{**claims, "caveats": self.caveats()},
        }


@dataclass(frozen=True)
class Answer:
    """What several studies together say to one budget.

    Attributes
    ----------
    study
        The budget's own.
    chosen
        The network chosen for it among all that the studies evaluated; None where there is none.
    why
        Why there is none.
    found_in
        Name of the (first) study that looked at it.
    neighbours
        What is next to it on the front of all that the studies evaluated.
    """

    study: Study
    chosen: Record | None
    why: str
    found_in: str
    neighbours: Neighbours | None


@dataclass(frozen=True)
class Studies:
    """Searches under several budgets that shared their evaluations.

    Attributes
    ----------
    studies
        One per budget, in the order given.
    together
        Every network that any of them evaluated, priced on every target.
    """

    studies: tuple[Study, ...]
    together: SearchResult

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """The network chosen for each budget, among all that were evaluated for any of them."""
        return tuple(map(self._answer, self.studies))

    def _answer(self, study: Study) -> Answer:
        bounds = study.result.constraints
        pool = replace(self.together, objectives=study.result.objectives, min_ap=study.result.min_ap)
        chosen, why = _chosen(pool, bounds)
        if chosen is None:
            return Answer(study, None, why, "", None)
        axis = pool.axis()
        # What a little more of the traded cost would buy, the other bounds held.
        others = [bound for bound in bounds if bound.objective != axis]
        where = next(s for s in self.studies if any(r.arch == chosen.arch for r in s.result.evaluated))
        beside = neighbours(chosen, pool.front(axis, others), axis)
        return Answer(study, chosen, "", where.folder.name, beside)

    def seconds(self) -> dict[str, Any]:
        """Return what the evaluations of all of them cost; see :func:`nas.search.analysis.seconds_of`."""
        return seconds_of(*(study.result for study in self.studies))

    def summary(self) -> dict[str, Any]:
        """Return what ``nas search --json`` prints for several budgets."""
        return {
            "budgets": [
                {
                    "study": str(answer.study.folder),
                    **answer.study.summary(),
                    "chosen": None if answer.chosen is None else answer.chosen.to_json(),
                    "no_answer": answer.why or None,
                    "found_in": answer.found_in or None,
                    "neighbours": None if answer.neighbours is None else answer.neighbours.to_json(),
                }
                for answer in self.answers
            ],
            "networks": len(self.together.evaluated),
            "evaluations": self.seconds(),
        }


def _chosen(result: SearchResult, constraints: Sequence[Constraint] = ()) -> tuple[Record | None, str]:
    """Return the network chosen, or None and why there is none."""
    try:
        return choose(result, constraints), ""
    except BudgetError as error:
        return None, str(error)


def united(
    results: Sequence[SearchResult], space: SearchSpace, predictors: Mapping[str, LatencyPredictor]
) -> SearchResult:
    """Return one result with every network that one of several evaluated, each once, priced on every target.

    Its records are in the order of the results and their trials, and numbered so; it has no constraints.

    Parameters
    ----------
    results
        Of the same space and context.
    space
        Their space.
    predictors
        By target.
    """
    known: dict[str, Record] = {}
    for result in results:
        for record in result.evaluated:
            known.setdefault(record.arch.id, record)
    genotypes = np.array([space.encode(record.arch) for record in known.values()], dtype=np.int64)
    genotypes = genotypes.reshape(-1, len(space.shape))
    prices = {
        name: UpperEnd(predictor).latency_ms(space, genotypes) if known else np.empty(0)
        for name, predictor in predictors.items()
    }
    records = tuple(
        replace(
            record,
            trial=i,
            latency_ms={name: float(values[i]) for name, values in prices.items()},
            feasible=True,
        )
        for i, record in enumerate(known.values())
    )
    return replace(
        results[0], study="united", targets=tuple(prices), constraints=(), min_ap=None, records=records
    )


class SearchEvaluator:
    """The search's view of :class:`SubnetEvaluator`: AP on the search split."""

    def __init__(self, evaluator: SubnetEvaluator) -> None:
        self.evaluator = evaluator

    @property
    def rule(self) -> str:
        """The rule by which evaluations end early, as text."""
        return str(self.evaluator.early_stop)

    def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
        """Return the arch's AP on the search images, or an estimate once it is sure to lose to its rival."""
        began = time.perf_counter()
        result = self.evaluator.evaluate(arch, rival=None if rival is None else _as_rival(rival))
        found = self.evaluation(result)
        return replace(found, seconds=time.perf_counter() - began)

    def evaluation(self, result: SubnetResult) -> Evaluation:
        """Return a result as the search keeps it."""
        looks = {name: pack(look.resampled) for name, look in result.looks.items()}
        if result.verdict is not None:
            return _lost(result.verdict, {name: look.ap for name, look in result.looks.items()}, looks)
        stats = dict(result.stats)
        if self.evaluator.early_stop is not None:
            stats["images"] = result.images
        resamples = resampled(self.evaluator.matches(result))
        return Evaluation(max(result.estimate, 0.0), stats, resamples=resamples, looks=looks)

    def against(self, evaluation: Evaluation, rival: Evaluation | None) -> Evaluation | None:
        """Return what evaluating a network against this rival would give, where that is known already."""
        own = _as_rival(evaluation).looks
        verdict = None if rival is None else self.evaluator.verdict(own, _as_rival(rival))
        if verdict is None:
            return None if evaluation.partial else evaluation
        until = list(own)[: list(own).index(verdict.look) + 1]
        points = {name: evaluation.stats[name] for name in until}
        looks = {name: evaluation.looks[name] for name in until}
        lost = _lost(verdict, points, looks)
        return replace(lost, seconds=evaluation.seconds, reused=evaluation.reused)


def _as_rival(evaluation: Evaluation) -> Rival:
    """Return what an evaluation says to those that are held against it."""
    looks = {
        name: Look(evaluation.stats[name], unpack(text))
        for name, text in evaluation.looks.items()
        if name in evaluation.stats
    }
    return Rival(evaluation.ap, looks)


def _lost(verdict: Verdict, points: Mapping[str, float], looks: Mapping[str, str]) -> Evaluation:
    """Return the evaluation of a network that lost: the AP at each look is all that is kept of it."""
    stats = {**points, "images": float(verdict.images)}
    return Evaluation(verdict.estimate, stats, partial=True, deviation=verdict.deviation, looks=looks)


def study_name(
    constraints: Sequence[Constraint],
    sampler: str,
    seed: int,
    wanted: Sequence[Objective] = (),
) -> str:
    """Return a folder name that says the budget, e.g. ``macs-300M_nsga2_0``.

    Costs that the user ``wanted`` to be traded off are named, too: ``macs-300M_over-params_nsga2_0``.
    """
    parts = []
    for c in constraints:
        value = c.objective.format(c.upper).split("MACs")[0].split(" parameters")[0].replace(" ", "")
        parts.append("-".join(filter(None, (c.objective.kind, value, c.objective.target))))
    over = [str(objective) for objective in wanted]
    named = [f"over-{'-'.join(over)}"] if over else []
    text = "_".join([*(parts or ["unbounded"]), *named, sampler, str(seed)])
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


class SearchOptions(TypedDict, total=False):
    """How a search is carried out; what is left out is as the run's recipe says.

    Attributes
    ----------
    objectives
        What is traded off against AP (``macs``, ``latency@TARGET``, ...); by default MACs, unless a latency
        is bounded and MACs are not: then that latency.
    tables, strict_tables
        Folders of latency tables; whether these may hold no estimates.
    evaluations
        How many networks a search looks at, reused evaluations included.
    population, sampler, seed
        How candidates are proposed.
    executor, workers, ray_address
        Where evaluations run: ``in-process`` (the default) or ``ray``.
    data
        The run's data sets, where they are open already.
    """

    objectives: Sequence[str]
    tables: Sequence[Path] | None
    strict_tables: bool
    evaluations: int | None
    population: int | None
    sampler: str | None
    seed: int | None
    executor: str
    workers: int
    ray_address: str | None
    data: Datasets | None


def run_search(
    run: RunDirectory,
    *,
    max_macs: str | None = None,
    max_params: str | None = None,
    max_size: str | None = None,
    max_latency: Sequence[str] = (),
    min_ap: str | None = None,
    like: str | None = None,
    name: str | None = None,
    **options: Unpack[SearchOptions],
) -> Study:
    """Search the run's supernet within a budget; the same call continues a search that was stopped.

    Evaluations that another study of the run has made are taken from there.

    Parameters
    ----------
    run
        A trained run.
    max_macs, max_params, max_size, max_latency, min_ap, like
        The budget; see :class:`~nas.search.budgets.BudgetText`.
    name
        Of the study; by default made from the budget.
    options
        See :class:`SearchOptions`.

    Raises
    ------
    InputError
        If an option is malformed.
    BudgetError
        If no network of the space meets the budget.
    RunError
        If the supernet is not trained, or the study of that name is of other settings.
    """
    text = BudgetText(max_macs, max_params, max_size, tuple(max_latency), min_ap, like)
    return _Plan(run, **options).carry_out({"": text}, name).studies[0]


def run_searches(
    run: RunDirectory,
    budgets: Sequence[str],
    *,
    common: BudgetText | None = None,
    **options: Unpack[SearchOptions],
) -> Studies:
    """Search under several budgets, one after the other; no network is evaluated for two of them.

    All budgets are checked before the first search begins. The same call continues what was stopped.

    Parameters
    ----------
    run
        A trained run.
    budgets
        In words, such as ``macs<=1G, latency@TARGET<=40ms``; see :func:`~nas.search.budgets.parse_budget`.
    common
        What holds for every one of them.
    options
        See :class:`SearchOptions`; of each of the searches.

    Raises
    ------
    InputError
        If a budget is malformed, or stands twice.
    BudgetError
        If no network of the space meets one of them.
    RunError
        As :func:`run_search`.
    """
    texts: dict[str, BudgetText] = {}
    for text in budgets:
        where = f"--budget '{text}'"
        if where in texts:
            raise InputError(f"{where} stands twice")
        texts[where] = parse_budget(text).with_common(common or BudgetText(), where)
    if not texts:
        raise InputError("several searches need budgets; none was given")
    return _Plan(run, **options).carry_out(texts)


@dataclass(frozen=True)
class _Job:
    """One budget, checked and ready to be searched under."""

    budget: Budget
    objectives: tuple[Objective, ...]
    pricing: Pricing
    folder: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """Searches in a run: what the commands' options say."""

    run: RunDirectory
    objectives: Sequence[str] = ()
    tables: Sequence[Path] | None = None
    strict_tables: bool = False
    evaluations: int | None = None
    population: int | None = None
    sampler: str | None = None
    seed: int | None = None
    executor: str = "in-process"
    workers: int = 2
    ray_address: str | None = None
    data: Datasets | None = None

    def carry_out(self, texts: Mapping[str, BudgetText], name: str | None = None) -> Studies:
        """Search under each budget (by what names it in messages); return the studies."""
        run = self.run
        executor = _executor(self.executor, self.workers, self.ray_address)
        wanted = parse_objectives([self._full(text) for text in self.objectives])
        targets = known_targets(self.tables, run)
        for objective in wanted:
            if objective.target is not None and objective.target not in targets:
                hint = did_you_mean(objective.target, targets)
                raise InputError(f"--objective has the unknown target '{objective.target}'{hint}")
        budgets = {}
        for where, text in texts.items():
            bounds = tuple(full_bounds(text.max_latency, self.tables, run))
            with _naming(where):
                budgets[where] = replace(text, max_latency=bounds).budget(targets)
        asked = [t for budget in budgets.values() for t in budget.targets]
        asked += [objective.target for objective in wanted if objective.target is not None]
        predictors = load_predictors(asked, self.tables, run, strict=self.strict_tables)
        with run.locked():
            opened = self.data or open_datasets(run.recipe)
            space = run.recipe.build_space(opened.skeleton)
            jobs = self._jobs(budgets, wanted, space, predictors, name)
            early_stop = run.recipe.evaluate.early_stop
            supernet = open_supernet(run, space)
            evaluator = make_evaluator(run, opened, supernet, fixed=True, early_stop=early_stop)
            if not run.trained:
                note(f"training of '{run.folder}' is not finished; its best weights so far are searched")
            seeds = self._seeds(space)
            context = search_context(run, opened)
            with open_shared(run.evaluations) as shared:
                studies = [
                    self._search(job, space, evaluator, seeds, executor, context, shared) for job in jobs
                ]
        for predictor in predictors.values():
            if (promise := quantised_promise(predictor.table.target)) is not None:
                note(promise)
            if not predictor.calibrated:
                note(
                    f"the latency table '{predictor.name}' is not calibrated on whole networks: its budget"
                    " was held against sums of blocks, of unknown error; 'nas profile --networks 20' measures"
                    " some"
                )
        return Studies(tuple(studies), united([study.result for study in studies], space, predictors))

    def _full(self, text: str) -> str:
        """Return an objective that names its target in full."""
        if not text.strip().lower().startswith("latency") or "[" in text:
            return text
        _, _, target = text.partition("@")
        bound = f"1ms@{target}" if target else "1ms"
        return f"latency@{full_bounds([bound], self.tables, self.run)[0].partition('@')[2]}".rstrip("@")

    def _jobs(
        self,
        budgets: Mapping[str, Budget],
        wanted: Sequence[Objective],
        space: SearchSpace,
        predictors: Mapping[str, LatencyPredictor],
        name: str | None,
    ) -> list[_Job]:
        """Return a job per budget, after checking that each can be met; nothing is written."""
        settings = self.run.recipe.search
        sampler, seed = self.sampler or settings.sampler, self._seed
        jobs: dict[str, _Job] = {}
        for where, text in budgets.items():
            with _naming(where):
                budget = text.settled(wanted, space.joints, _upper_ends(predictors, space.joints))
                objectives = budget.objectives(wanted)
                used = dict.fromkeys(
                    o.target for o in (*objectives, *(c.objective for c in budget.constraints))
                )
                pricing = Pricing(
                    space, budget.constraints, [UpperEnd(predictors[t]) for t in used if t is not None]
                )
                notes = [error_bar(c, pricing, predictors) for c in budget.constraints]
                told = tuple(text for text in notes if text)
                for line in told:
                    note(line)
                pricing.anchor  # noqa: B018 - refuses what cannot be met
            called = name or study_name(budget.constraints, sampler, seed, wanted)
            if called in jobs:
                raise InputError(
                    f"{where} and another budget are the same to four digits ({called}); give one of them, or"
                    " search under one after the other with --name"
                )
            jobs[called] = _Job(budget, objectives, pricing, self.run.study(called), told)
        return list(jobs.values())

    @property
    def _seed(self) -> int:
        return self.run.recipe.seed if self.seed is None else self.seed

    def _seeds(self, space: SearchSpace) -> list[Arch]:
        found = []
        for text in self.run.recipe.search.seed_archs:
            arch = get_arch(text)
            if arch in space:
                found.append(arch)
            else:
                note(f"search.seed_archs: '{text}' is left out; it is not in the space")
        return found

    def _search(
        self,
        job: _Job,
        space: SearchSpace,
        evaluator: SubnetEvaluator,
        seeds: Sequence[Arch],
        executor: Executor,
        context: Mapping[str, str],
        shared: SharedEvaluations,
    ) -> Study:
        run, settings = self.run, self.run.recipe.search
        trials = self.evaluations or settings.evaluations
        with progress_bar("searching", trials) as bar:
            result = search(
                space,
                SearchEvaluator(evaluator),
                storage=job.folder / "study.journal",
                trials=trials,
                objectives=job.objectives,
                pricing=job.pricing,
                population=self.population or settings.population,
                sampler=self.sampler or settings.sampler,
                seed=self._seed,
                seeds=seeds,
                study_name=job.folder.name,
                executor=executor,
                context=context,
                early_stop=run.recipe.evaluate.early_stop,
                shared=shared,
                progress=lambda p: bar.update(
                    p.evaluated, p.trials, "" if p.best_ap is None else f"best AP {p.best_ap:.4f}"
                ),
            )
        result = replace(result, min_ap=job.budget.min_ap)
        study = Study(job.folder, result, standing(run.folder, result.context), job.budget, job.notes)
        claims = {**claims_json(result.front(), study.trust), "caveats": study.caveats()}
        written = {**result.to_json(), "claims": claims, "analysis": analyse(result)}
        write_json(job.folder / "result.json", written)
        write_text(job.folder / "result.csv", result.to_csv())
        if result.evaluated:
            draw_study(run, job.folder.name)
        if result.stopped == "exhausted":
            note("every network within the budget is known; the search ended early")
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return study


def _upper_ends(
    predictors: Mapping[str, LatencyPredictor], joints: int
) -> dict[str, Callable[[Arch], float]]:
    """Return by target what tells the upper end of an arch's predicted latency, ms."""

    def upper(predictor: LatencyPredictor) -> Callable[[Arch], float]:
        return lambda arch: predictor.predict(arch.blocks(joints)).high_ms

    return {name: upper(predictor) for name, predictor in predictors.items()}


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put which of several budgets it is about in front of an error."""
    try:
        yield
    except (InputError, BudgetError) as error:
        if not where or where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from None


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
    chosen, _ = _chosen(result)
    names: dict[str, Record] = {} if chosen is None else {"chosen": chosen}
    title = f"{run.recipe.name}: {len(result.evaluated)} networks evaluated"
    caption = f"Supernet's ranking: {standing(run.folder, result.context).line()}"
    made = [*plot_front(result, folder / "pareto", chosen=names, title=title, caption=caption)]
    return [*made, *plot_progress(result, folder / "progress")]
