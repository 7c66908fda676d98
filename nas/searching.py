"""``nas search`` and ``nas plot``: studies in a run directory, from budgets to results and pictures."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from latency_tables import LatencyPredictor
from nas.asked import Asked, naming, read_asked
from nas.console import note, progress_bar
from nas.data import Datasets, open_datasets
from nas.drawing import draw_study
from nas.known import Answer, KnownNetworks, known_networks, search_context, try_choose
from nas.latency import UpperEnd, quantised_promise
from nas.run import RunDirectory
from nas.search import (
    Budget,
    BudgetText,
    Constraint,
    Evaluation,
    InProcess,
    Kept,
    Objective,
    Pricing,
    Progress,
    RayExecutor,
    SearchResult,
    analyse,
    open_shared,
    parse_budget,
    search,
)
from nas.search.analysis import seconds_of
from nas.search.executors import Executor
from nas.search.noise import pack, resampled, unpack
from nas.search.ray_executor import require_ray
from nas.search.result import Record
from nas.search.shared import SharedEvaluations
from nas.search_report import caveats, claims_json, error_bar, out_of_reach, shortfall
from nas.train import make_evaluator, open_supernet
from nas.trust.standing import Standing, standing
from search_spaces import Arch, InputError, SearchSpace, get_arch
from search_spaces.errors import did_you_mean
from search_spaces.files import write_json, write_text
from supernet.evaluator import SubnetEvaluator, SubnetResult
from supernet.racing import Look, Rival, Verdict

__all__ = [
    "REQUEST",
    "SearchEvaluator",
    "SearchOptions",
    "Studies",
    "Study",
    "run_search",
    "run_searches",
]

EXECUTORS = ("in-process", "ray")

REQUEST = "request.json"
"""In a study's folder: what the search was asked for."""


@dataclass(frozen=True)
class Study:
    """A finished (or interrupted) search, the folder that holds it, and what is known of its ranking.

    Attributes
    ----------
    folder, result
        See above. The result depends on no other study; what all of them know is in :attr:`answer`.
    trust
        What is known of the supernet's ranking.
    budget
        What it was held to.
    answer
        What all networks that the run knows say to the budget, those of other studies included.
    notes
        What has to be known of the budget, such as that it lies within a table's error bar.
    """

    folder: Path
    result: SearchResult
    trust: Standing
    budget: Budget
    answer: Answer
    notes: tuple[str, ...] = ()

    @cached_property
    def chosen(self) -> Record | None:
        """The network that answers the budget best among those of this study alone; None where none does."""
        return try_choose(self.result)[0]

    def caveats(self) -> list[str]:
        """Return what has to be said beside the front: of budget and ranking, and which steps are ties."""
        return _caveats(self.result, self.trust, self.notes)

    def summary(self) -> dict[str, Any]:
        """Return what ``nas search --json`` prints.

        ``chosen``, ``found_in``, ``trial``, ``no_answer``, ``neighbours`` and ``known`` are the
        :attr:`answer`; all else is of the study itself, ``best`` what it would choose.
        """
        front = self.result.front()
        return {
            "study": str(self.folder),
            "budget": str(self.budget),
            "objectives": [str(objective) for objective in self.result.objectives],
            "stopped": self.result.stopped,
            "evaluated": len(self.result.evaluated),
            "ended_early": len(self.result.partial),
            "priced_only": len(self.result.infeasible),
            "duplicates": self.result.duplicates,
            "evaluations": seconds_of(self.result),
            **self.answer.to_json(),
            "best": None if self.chosen is None else self.chosen.to_json(),
            "front": [record.to_json() for record in front],
            **{**claims_json(front, self.trust), "caveats": self.caveats()},
        }


@dataclass(frozen=True)
class Studies:
    """Searches under several budgets that shared their evaluations.

    Attributes
    ----------
    studies
        One per budget, in the order given.
    known
        Every network that the run knows, those of earlier studies included.
    predictors
        Of the targets that the searches priced.
    """

    studies: tuple[Study, ...]
    known: KnownNetworks
    predictors: Mapping[str, LatencyPredictor]

    @cached_property
    def together(self) -> SearchResult:
        """Every network that the run knows, priced on every target, under the bounds of all the searches."""
        bounds = tuple(bound for study in self.studies for bound in study.result.constraints)
        return replace(self.known.priced(self.predictors), constraints=bounds)

    def seconds(self) -> dict[str, Any]:
        """Return what the evaluations of all of them cost; see :func:`nas.search.analysis.seconds_of`."""
        return seconds_of(*(study.result for study in self.studies))

    def summary(self) -> dict[str, Any]:
        """Return what ``nas search --json`` prints for several budgets."""
        return {
            "budgets": [study.summary() for study in self.studies],
            "networks": len(self.known),
            "evaluations": self.seconds(),
        }


def _caveats(result: SearchResult, trust: Standing, notes: Sequence[str]) -> list[str]:
    return [*notes, *shortfall(result), *caveats(result.front(), trust)]


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
    executor, workers, ray_address, cpus_per_worker, gpus_per_worker
        Where evaluations run: ``in-process`` (the default) or ``ray``; see
        :class:`~nas.search.ray_executor.RayExecutor`.
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
    cpus_per_worker: float
    gpus_per_worker: float | None
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
    text: BudgetText
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
    cpus_per_worker: float = 1
    gpus_per_worker: float | None = None
    data: Datasets | None = None

    def carry_out(self, texts: Mapping[str, BudgetText], name: str | None = None) -> Studies:
        """Search under each budget (by what names it in messages); return the studies."""
        run = self.run
        if self.executor not in EXECUTORS:
            raise InputError(f"--executor: unknown '{self.executor}'{did_you_mean(self.executor, EXECUTORS)}")
        if self.executor == "ray":
            require_ray()  # before a study is begun
        asked = read_asked(texts, self.objectives, run, self.tables, strict=self.strict_tables)
        with run.locked():
            opened = self.data or open_datasets(run.recipe)
            space = run.recipe.build_space(opened.skeleton)
            jobs = self._jobs(asked, texts, space, name)
            early_stop = run.recipe.evaluate.early_stop
            supernet = open_supernet(run, space)
            evaluator = make_evaluator(run, opened, supernet, fixed=True, early_stop=early_stop)
            if not run.trained:
                note(f"training of '{run.folder}' is not finished; its best weights so far are searched")
            seeds = self._seeds(space)
            context = search_context(run, opened)
            measured = SearchEvaluator(evaluator)
            with open_shared(run.evaluations) as shared, Kept(self._executor(evaluator)) as executor:
                results = [
                    self._search(job, space, measured, seeds, executor, context, shared) for job in jobs
                ]
            known = known_networks(run, tables=self.tables, strict_tables=self.strict_tables, data=opened)
        for predictor in asked.predictors.values():
            if (promise := quantised_promise(predictor.table.target)) is not None:
                note(promise)
            if not predictor.calibrated:
                note(
                    f"the latency table '{predictor.name}' is not calibrated on whole networks: its budget"
                    " was held against sums of blocks, of unknown error; 'nas profile --networks 20' measures"
                    " some"
                )
        studies = [
            Study(
                job.folder,
                result,
                standing(run.folder, result.context),
                job.budget,
                known.answer_to(job.budget, job.objectives, asked.predictors),
                job.notes,
            )
            for job, result in zip(jobs, results, strict=True)
        ]
        return Studies(tuple(studies), known, asked.predictors)

    def _jobs(
        self, asked: Asked, texts: Mapping[str, BudgetText], space: SearchSpace, name: str | None
    ) -> list[_Job]:
        """Return a job per budget, after checking that each can be met; nothing is written."""
        settings, predictors = self.run.recipe.search, asked.predictors
        sampler, seed = self.sampler or settings.sampler, self._seed
        jobs: dict[str, _Job] = {}
        for where in asked.budgets:
            with naming(where):
                budget, objectives = asked.settled(where, space)
                used = dict.fromkeys(
                    o.target for o in (*objectives, *(c.objective for c in budget.constraints))
                )
                pricing = Pricing(
                    space, budget.constraints, [UpperEnd(predictors[t]) for t in used if t is not None]
                )
                notes = [
                    say(c, pricing, predictors)
                    for c in budget.constraints
                    for say in (error_bar, out_of_reach)
                ]
                told = tuple(text for text in notes if text)
                for line in told:
                    note(line)
                pricing.anchor  # noqa: B018 - refuses what cannot be met
            called = name or study_name(budget.constraints, sampler, seed, asked.wanted)
            if called in jobs:
                raise InputError(
                    f"{where} and another budget are the same to four digits ({called}), but for an AP, on"
                    " which no search depends; give one of them: 'nas emit --budget' answers the other from"
                    " the same networks"
                )
            jobs[called] = _Job(budget, texts[where], objectives, pricing, self.run.study(called), told)
        return list(jobs.values())

    def _executor(self, evaluator: SubnetEvaluator) -> Executor:
        if self.executor == "in-process":
            return InProcess()
        on_gpu, gpus = evaluator.device.type == "cuda", self.gpus_per_worker
        if gpus and not on_gpu:
            raise InputError(
                f"--gpus-per-worker {gpus:g}: networks run on the device that is found here, the CPU;"
                " search from a machine that has a GPU"
            )
        if gpus is None:
            shared = 1.0 if self.ray_address else min(1.0, torch.cuda.device_count() / self.workers)
            gpus = shared if on_gpu else 0.0
        population = self.population or self.run.recipe.search.population
        if self.workers > population:
            note(
                f"a generation of {population} networks keeps no more than {population} of {self.workers}"
                f" workers busy; --population {2 * self.workers} would keep all of them so"
            )
        return RayExecutor(self.workers, self.ray_address, self.cpus_per_worker, gpus)

    def _request(self, job: _Job, trials: int) -> dict[str, Any]:
        """Return what was asked for, from which ``nas runs resume`` asks for it again."""
        settings = self.run.recipe.search
        return {
            "format": 1,
            "budget": {name: value for name, value in asdict(job.text).items() if value},
            "objectives": list(self.objectives),
            "trials": trials,
            "population": self.population or settings.population,
            "sampler": self.sampler or settings.sampler,
            "seed": self._seed,
            "tables": None if self.tables is None else [str(Path(t).resolve()) for t in self.tables],
            "strict_tables": self.strict_tables,
            "executor": self.executor,
            "workers": self.workers,
            "cpus_per_worker": self.cpus_per_worker,
            "gpus_per_worker": self.gpus_per_worker,
            "ray_address": self.ray_address,
            "overrides": list(self.run.overrides),
        }

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
        evaluator: SearchEvaluator,
        seeds: Sequence[Arch],
        executor: Executor,
        context: Mapping[str, str],
        shared: SharedEvaluations,
    ) -> SearchResult:
        run, settings = self.run, self.run.recipe.search
        trials = self.evaluations or settings.evaluations
        with progress_bar("searching", trials) as bar:
            noted = False

            def show(p: Progress) -> None:
                nonlocal noted
                if not noted:  # the study is open: it is this search's
                    write_json(job.folder / REQUEST, self._request(job, trials))
                    noted = True
                bar.update(p.evaluated, p.trials, "" if p.best_ap is None else f"best AP {p.best_ap:.4f}")

            result = search(
                space,
                evaluator,
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
                progress=show,
            )
        result = replace(result, min_ap=job.budget.min_ap)
        trust = standing(run.folder, result.context)
        claims = {**claims_json(result.front(), trust), "caveats": _caveats(result, trust, job.notes)}
        written = {**result.to_json(), "claims": claims, "analysis": analyse(result)}
        write_json(job.folder / "result.json", written)
        write_text(job.folder / "result.csv", result.to_csv())
        if result.evaluated:
            draw_study(run, job.folder.name, tables=self.tables, choices=False)
        if result.stopped == "exhausted":
            known = "every network within the budget is known"
            drawn = "what is drawn within the budget is all known (there may be more)"
            note(f"{known if job.pricing.exact else drawn}; the search ended early")
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return result
