"""Everything that a run knows of its networks, and which of them answers a budget best.

An AP belongs to what it was measured with (weights, images, settings), not to the study that asked for it. So
a budget is answered by all networks that any study of the run evaluated to the end under the present context;
what was measured under another one, or ended early, is never among them.

>>> from nas.known import known_networks
>>> from nas.run import RunDirectory
>>> known = known_networks(RunDirectory.open("runs/mine"))  # doctest: +SKIP
>>> known.answer("macs<=800M").arch  # doctest: +SKIP
>>> pandas.DataFrame(known.rows("latency@raspberry-pi-4<=80ms"))  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import LatencyPredictor
from nas.asked import Asked, read_asked
from nas.config import to_plain
from nas.context import images_told
from nas.data import Datasets, open_datasets
from nas.latency import UpperEnd
from nas.run import RunDirectory
from nas.search import (
    AP,
    MACS,
    SIZE,
    Budget,
    BudgetText,
    Constraint,
    Objective,
    Record,
    SearchResult,
    latency,
    parse_budget,
)
from nas.search.noise import Step, compare, interval
from nas.search.shared import EARLY_STOP, Made, read_shared
from nas.search_report import Neighbours, gain_words, neighbours
from search_spaces import (
    Arch,
    BudgetError,
    InputError,
    LitePoseNasError,
    RunError,
    SearchSpace,
    arch_from_json,
    get_arch,
)
from search_spaces.errors import did_you_mean
from search_spaces.files import read_json
from supernet.paradigms import TOP_DOWN

__all__ = [
    "Answer",
    "Found",
    "KnownNetworks",
    "find_arch",
    "known_networks",
    "load_result",
    "own_answer",
    "search_context",
    "try_choose",
]


def search_context(run: RunDirectory, data: Datasets) -> dict[str, str]:
    """Return what the APs of a search rest on; those of different contexts are not comparable."""
    settings = to_plain(run.recipe.evaluate)
    # No AP of all images depends on them; that a study stops early is kept with the study.
    for name in ("decode_workers", "early_stop"):
        del settings[name]
    boxes = {}
    if run.recipe.paradigm is not TOP_DOWN:
        del settings["top_down"]
    elif run.recipe.data.search is not None and isinstance(run.recipe.data.search.boxes, Path):
        boxes = {"boxes": _fingerprint(run.recipe.data.search.boxes)}
    return {
        "supernet": _fingerprint(run.best),
        "evaluation": str(settings),
        **boxes,
        "images": images_told(len(data.search), data.search.fingerprint),
        "calibration": images_told(len(data.calibrate), data.calibrate.fingerprint),
    }


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def load_result(run: RunDirectory, study: str) -> SearchResult:
    """Return the result of one of the run's studies.

    Raises
    ------
    InputError
        If there is no such study.
    RunError
        If its file is damaged.
    """
    names = run.studies()
    if study not in names:
        raise InputError(f"'{run.folder}' has no study '{study}'{did_you_mean(study, names)}")
    path = run.study(study) / "result.json"
    return SearchResult.from_json(read_json(path, "search result"), f"search result '{path}'")


def find_arch(run: RunDirectory, text: str) -> Arch:
    """Return the arch that a text names: an id of a network that a study of the run has looked at, or what
    :func:`search_spaces.get_arch` knows.

    Raises
    ------
    InputError
        If it is neither.
    """
    if re.fullmatch("[0-9a-f]{12}", text) is None or Path(text).exists():
        try:
            return get_arch(text)
        except InputError as error:
            if re.fullmatch("[0-9a-f]{4,}", text) is None:
                raise
            raise InputError(f"{error}; an id of a searched network has 12 of the digits 0 to f") from None
    for name in reversed(run.studies()):
        for record in load_result(run, name).records:
            if record.arch.id == text:
                return record.arch
    raise InputError(f"no search of '{run.folder}' has looked at a network with the id '{text}'")


def try_choose(result: SearchResult, constraints: Sequence[Constraint] = ()) -> tuple[Record | None, str]:
    """Return the network chosen (:meth:`~nas.search.SearchResult.best`), or None and why there is none."""
    try:
        return result.best(constraints), ""
    except BudgetError as error:
        return None, str(error)


@dataclass(frozen=True)
class Found:
    """Where a network's AP comes from.

    Attributes
    ----------
    study
        The study that evaluated it; it may have been deleted since.
    trial
        Number of its trial there; None where that study has no result.
    studies
        Every study that looked at it, that one first.
    """

    study: str
    trial: int | None
    studies: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What the known networks say to a budget.

    Attributes
    ----------
    budget
        The budget, in bounds.
    chosen
        The network chosen; None where there is none.
    why
        Why there is none.
    found
        Where the chosen network's AP comes from.
    neighbours
        What is next to it among the known networks by the cost that is traded off, the other bounds held.
    networks, within_budget, studies
        How many networks are known, how many of them are within the bounds, how many studies looked at them.
    """

    budget: Budget
    chosen: Record | None
    why: str
    found: Found | None
    neighbours: Neighbours | None
    networks: int
    within_budget: int
    studies: int

    @property
    def record(self) -> Record:
        """The network chosen, with AP and costs.

        Raises
        ------
        BudgetError
            If there is none.
        """
        if self.chosen is None:
            raise BudgetError(self.why)
        return self.chosen

    @property
    def arch(self) -> Arch:
        """The arch of the network chosen; raises as :attr:`record`."""
        return self.record.arch

    def beside(self, own: Record | None) -> str:
        """Return in words that not a study's ``own`` network is chosen but another's; empty where it is."""
        if self.chosen is None or self.found is None or (own is not None and own.arch == self.chosen.arch):
            return ""

        def figures(record: Record) -> str:
            costs = dict.fromkeys(
                (*([] if self.neighbours is None else [self.neighbours.cost]), *self._bounded)
            )
            told = ", ".join(cost.format(record.value(cost)) for cost in costs)
            return f"AP {record.require_ap():.4f} at {told}"

        told = "none"
        if own is not None:
            gain = gain_words(Step(own, self.chosen, compare(self.chosen, own)))
            told = f"the best has {figures(own)} ({gain})"
        return (
            f"the study '{self.found.study}' found a better network for this budget: {self.chosen.arch.id}"
            f" with {figures(self.chosen)}; of this one {told}: 'nas emit' with this budget takes the better"
        )

    @property
    def _bounded(self) -> tuple[Objective, ...]:
        return tuple(bound.objective for bound in self.budget.constraints)

    def known_json(self) -> dict[str, int]:
        """Return how much was looked at."""
        return {
            "networks": self.networks,
            "within_budget": self.within_budget,
            "studies": self.studies,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the answer as ``nas search --json`` prints it."""
        return {
            "chosen": None if self.chosen is None else _network_json(self.chosen),
            "found_in": None if self.found is None else self.found.study,
            "trial": None if self.found is None else self.found.trial,
            "no_answer": self.why or None,
            "neighbours": None if self.neighbours is None else self.neighbours.to_json(),
            "known": self.known_json(),
        }


def _network_json(record: Record) -> dict[str, Any]:
    """Return what is known of a network, without what only its study knows."""
    of_study = ("trial", "generation", "origin", "feasible", "partial", "reused")
    return {name: value for name, value in record.to_json().items() if name not in of_study}


@dataclass(frozen=True)
class KnownNetworks:
    """Every network of a run whose AP is known, each once; see :func:`known_networks`.

    Attributes
    ----------
    run, space, context
        Of which run, from which space, and what its APs rest on.
    records
        In the order in which they were evaluated; without latencies, which :meth:`priced` adds.
    found
        By a network's id, where its AP comes from.
    left_out
        Studies whose networks are not among them, and why.
    tables, strict_tables
        Folders of latency tables; whether these may hold no estimates.
    """

    run: RunDirectory
    space: SearchSpace
    context: Mapping[str, str]
    records: tuple[Record, ...]
    found: Mapping[str, Found]
    left_out: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Path] | None = None
    strict_tables: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def answer(self, budget: str | BudgetText = "", objectives: Sequence[str] = ()) -> Answer:
        """Return the network that answers a budget best, and what is next to it.

        Parameters
        ----------
        budget
            In the words of ``--budget`` (``macs<=800M, latency@TARGET<=40ms, ap>=0.4, like litepose-s``), or
            its parts; empty: the highest AP of all.
        objectives
            Costs to trade off, as of ``--objective``: the cheapest by the first of them is chosen where an AP
            is asked for. By default those of the budget.

        Raises
        ------
        InputError
            If the words are malformed, or name a target without a table.
        MissingLayerError
            If a table does not answer for a network.
        """
        asked, settled, traded = self._read(budget, objectives)
        return self.answer_to(settled, traded, asked.predictors)

    def answer_to(
        self, budget: Budget, objectives: Sequence[Objective], predictors: Mapping[str, LatencyPredictor]
    ) -> Answer:
        """Return the same for a budget in bounds; ``predictors`` of every target in it and ``objectives``."""
        pool = replace(self.priced(predictors), objectives=tuple(objectives), min_ap=budget.min_ap)
        answer = _answer(pool, budget, self.found)
        if self.records:
            return answer
        hint = "".join(f"; {why} (--study takes it)" for why in self.left_out.values())
        return replace(
            answer,
            why=f"no network of '{self.run.folder}' was evaluated with its present weights, images and"
            f" settings: run 'nas search {self.run.folder}'{hint}",
        )

    def priced(self, predictors: Mapping[str, LatencyPredictor]) -> SearchResult:
        """Return all of them as one result without bounds, each priced on every target by the present tables.

        Its trials count the networks. Latencies are those that budgets are held against: the upper ends.
        """
        genotypes = np.array([self.space.encode(r.arch) for r in self.records], dtype=np.int64)
        genotypes = genotypes.reshape(-1, len(self.space.shape))
        prices = {
            name: UpperEnd(predictor).latency_ms(self.space, genotypes) if self.records else np.empty(0)
            for name, predictor in predictors.items()
        }
        records = tuple(
            replace(record, trial=i, latency_ms={name: float(ms[i]) for name, ms in prices.items()})
            for i, record in enumerate(self.records)
        )
        return SearchResult(
            study="known",
            space=self.space.name,
            joints=self.space.joints,
            objectives=(AP, MACS),
            constraints=(),
            targets=tuple(prices),
            sampler="",
            seed=self.run.recipe.seed,
            trials=len(records),
            stopped="budget",
            duplicates=0,
            records=records,
            context=dict(self.context),
        )

    def rows(self, budget: str | BudgetText = "", objectives: Sequence[str] = ()) -> list[dict[str, object]]:
        """Return a row per network that meets a budget, best AP first: what ``pandas.DataFrame`` takes.

        ``ap_low`` and ``ap_high`` are the 95% interval, latencies the upper ends on the targets that the
        budget or the objectives name, ``chosen`` and ``on_front`` 0 or 1. Parameters and errors are those of
        :meth:`answer`.
        """
        asked, settled, traded = self._read(budget, objectives)
        pool = replace(self.priced(asked.predictors), objectives=traded, min_ap=settled.min_ap)
        least = settled.min_ap or 0.0
        meeting = [r for r in pool.evaluated if _within(r, settled.constraints) and r.require_ap() >= least]
        chosen, _ = try_choose(pool, settled.constraints)
        front = {record.trial for record in pool.front(None, settled.constraints)}
        stats = sorted({name for record in meeting for name in record.stats})
        rows: list[dict[str, object]] = []
        for r in sorted(meeting, key=lambda r: (-r.require_ap(), r.macs, r.params, r.trial)):
            known, found = interval(r), self.found[r.arch.id]
            rows.append(
                {
                    **{"id": r.arch.id, "ap": r.ap},
                    "ap_low": None if known is None else known.low,
                    "ap_high": None if known is None else known.high,
                    **{"macs": r.macs, "params": r.params, "size": r.value(SIZE)},
                    **{str(latency(target)): r.latency_ms[target] for target in pool.targets},
                    "chosen": int(chosen is not None and r.trial == chosen.trial),
                    "on_front": int(r.trial in front),
                    **{"found_in": found.study, "studies": len(found.studies), "seconds": r.seconds},
                    **{name: r.arch[name] for name in r.arch},
                    **{name: r.stats.get(name) for name in stats},
                }
            )
        return rows

    def _read(
        self, budget: str | BudgetText, objectives: Sequence[str]
    ) -> tuple[Asked, Budget, tuple[Objective, ...]]:
        """Return what is asked for, with the one budget in bounds and what is traded off."""
        if isinstance(budget, str):
            budget = parse_budget(budget) if budget.strip() else BudgetText()
        asked = read_asked({"": budget}, objectives, self.run, self.tables, strict=self.strict_tables)
        return asked, *asked.settled("", self.space)


def own_answer(result: SearchResult) -> Answer:
    """Return what a study's own networks say to its own budget, with the latencies that it priced."""
    found = {r.arch.id: Found(result.study, r.trial, (result.study,)) for r in result.evaluated}
    return _answer(result, Budget(result.constraints, result.min_ap), found)


def _answer(pool: SearchResult, budget: Budget, found: Mapping[str, Found]) -> Answer:
    """Return what a result's networks say to a budget; its objectives and ``min_ap`` are those asked for."""
    bounds = budget.constraints
    chosen, why = try_choose(pool, bounds)
    beside = None
    if chosen is not None:
        axis = pool.axis()
        # What a little more of the traded cost would buy, the other bounds held.
        others = [bound for bound in bounds if bound.objective != axis]
        beside = neighbours(chosen, pool.front(axis, others), axis)
    return Answer(
        budget,
        chosen,
        why,
        None if chosen is None else found[chosen.arch.id],
        beside,
        len(pool.evaluated),
        sum(_within(record, bounds) for record in pool.evaluated),
        len({name for each in found.values() for name in each.studies}),
    )


def _within(record: Record, bounds: Sequence[Constraint]) -> bool:
    return all(bound.holds(record.value(bound.objective)) for bound in bounds)


def known_networks(
    run: RunDirectory,
    *,
    study: str | None = None,
    tables: Sequence[Path] | None = None,
    strict_tables: bool = False,
    data: Datasets | None = None,
) -> KnownNetworks:
    """Return every network of a run whose AP is known under the present weights, images and settings.

    They come from the evaluations that its studies share and from its studies' results; those of a study that
    was killed, or deleted since, are among them. A search may be at work meanwhile.

    Parameters
    ----------
    run
        A trained run.
    study
        Only the networks that this study looked at, whatever its APs rest on.
    tables, strict_tables
        Folders of latency tables, for budgets; whether these may hold no estimates.
    data
        The run's data sets, where they are open already.

    Raises
    ------
    InputError
        If the run has no such study.
    RunError
        If the run is not trained, or the file of evaluations is damaged.
    """
    if not run.best.is_file():
        raise RunError(
            f"'{run.folder}' has no trained supernet, so no AP of its networks is known; run 'nas train'"
        )
    result = None if study is None else load_result(run, study)
    opened = data or open_datasets(run.recipe)
    space = run.recipe.build_space(opened.skeleton)
    context = search_context(run, opened)
    if study is not None and result is not None:
        differs = _differs(study, result, context)
        found = {r.arch.id: Found(study, r.trial, (study,)) for r in result.evaluated}
        left_out = {} if differs is None else {study: differs}
        return KnownNetworks(
            run, space, result.context, result.evaluated, found, left_out, tables, strict_tables
        )
    results, left_out = _comparable(run, context)
    records: dict[str, Record] = {}
    studies: dict[str, list[str]] = {}
    for facts, made in read_shared(run.evaluations):
        same = {k: v for k, v in facts.items() if k != EARLY_STOP} == context
        if same and not made.evaluation.partial:
            record = _record(made, space)
            if records.setdefault(record.arch.id, record) is record:
                studies[record.arch.id] = [made.study]
    for name, result in results.items():
        for record in result.evaluated:
            records.setdefault(record.arch.id, replace(record, reused=False))
            studies.setdefault(record.arch.id, []).append(name)
    trials = {name: {r.arch.id: r.trial for r in result.evaluated} for name, result in results.items()}
    found = {
        network: Found(names[0], trials.get(names[0], {}).get(network), tuple(dict.fromkeys(names)))
        for network, names in studies.items()
    }
    return KnownNetworks(run, space, context, tuple(records.values()), found, left_out, tables, strict_tables)


def _comparable(
    run: RunDirectory, context: Mapping[str, str]
) -> tuple[dict[str, SearchResult], dict[str, str]]:
    """Return the studies whose APs rest on the context, by name, and why the others are left out."""
    results: dict[str, SearchResult] = {}
    left_out: dict[str, str] = {}
    for name in sorted(run.studies()):
        try:
            result = load_result(run, name)
        except LitePoseNasError as error:
            left_out[name] = str(error)
            continue
        differs = _differs(name, result, context)
        if differs is None:
            results[name] = result
        else:
            left_out[name] = differs
    return results, left_out


def _differs(study: str, result: SearchResult, context: Mapping[str, str]) -> str | None:
    """Return in words why a study's APs cannot be compared with those of the context; None where they can."""
    if not result.context:
        return f"the study '{study}' does not say what its APs rest on"
    changed = sorted(k for k in {*context, *result.context} if result.context.get(k) != context.get(k))
    return f"the study '{study}' was made with another {', another '.join(changed)}" if changed else None


def _record(made: Made, space: SearchSpace) -> Record:
    """Return a shared evaluation as a record; its trial is its study's affair."""
    arch = arch_from_json(made.arch, f"an arch evaluated by the study '{made.study}'")
    cost = space.cost(arch)
    known = made.evaluation
    return Record(
        arch=arch,
        macs=cost.macs,
        params=cost.params,
        latency_ms={},
        feasible=True,
        trial=0,
        generation=0,
        origin="known",
        ap=known.ap,
        stats=known.stats,
        seconds=known.seconds,
        resamples=known.resamples,
    )
