"""The search: propose, price, then evaluate only what is new and within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from nas.pareto import pareto_front
from nas.search.evaluator import Evaluation, Evaluator, StoppingEvaluator, checked
from nas.search.executors import Executor, InProcess, Session
from nas.search.objectives import AP, MACS, PARAMS, Constraint, Objective, latency
from nas.search.pricing import LatencyPricer, Pricing, key
from nas.search.result import Record, SearchResult, Stopped
from nas.search.sampler import Estimates, Floats, Known, Sampler
from nas.search.samplers import SAMPLERS
from nas.search.shared import EARLY_STOP, Account, SharedEvaluations
from nas.search.store import Candidate, Store, by_objective, exclusive, open_store, quiet_optuna
from search_spaces import Arch, Genotypes, InputError, RunError, SearchSpace
from search_spaces.errors import did_you_mean

_PROBES = 64
_SAME_PRICE = 1e-9
_MUTATION_ROUNDS = 8
_MUTANTS_PER_NEED = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the search stands, after each evaluation and once at the start.

    Attributes
    ----------
    evaluated
        Networks evaluated so far, those of an earlier run that is continued and reused ones included.
    trials
        How many will be evaluated at most.
    generation
        The generation at work, from 0.
    latest
        The network just evaluated; None at the start.
    best_ap
        Highest AP so far; None before the first evaluation.
    """

    evaluated: int
    trials: int
    generation: int
    latest: Record | None
    best_ap: float | None


def search(
    space: SearchSpace,
    evaluator: Evaluator,
    *,
    storage: Path,
    trials: int,
    objectives: Sequence[Objective] = (AP, MACS),
    constraints: Sequence[Constraint] = (),
    pricers: Sequence[LatencyPricer] = (),
    population: int = 12,
    sampler: str | Sampler = "guided",
    seed: int = 0,
    seeds: Sequence[Arch] = (),
    study_name: str = "search",
    executor: Executor | None = None,
    context: Mapping[str, str] | None = None,
    early_stop: bool = False,
    shared: SharedEvaluations | None = None,
    pricing: Pricing | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Find the networks that trade AP against cost best, within the constraints.

    Every candidate is priced before anything is evaluated; what exceeds a constraint, or was seen before, is
    never evaluated. Calling again with the same arguments continues a search that was interrupted or killed;
    with more ``trials`` it goes on from where it ended. In-process, a continued search ends with the same
    result as an uninterrupted one.

    Parameters
    ----------
    space
        Where candidates come from.
    evaluator
        Measures AP.
    storage
        Journal file of the Optuna study (``optuna-dashboard`` opens it).
    trials
        How many networks are looked at: evaluated, or known from ``shared``. Pricing is free of charge.
    objectives
        What is traded off: ``ap`` and any number of costs.
    constraints
        Upper bounds on costs, each cost bounded at most once.
    pricers
        One per latency target that an objective or a constraint names (further ones are priced and recorded).
    population
        New networks per generation, at least 2. Small generations learn sooner, large ones keep more workers
        busy.
    sampler
        A name of :data:`~nas.search.samplers.SAMPLERS` (``guided``, ``nsga2``, ``random`` or ``exhaustive``),
        or a sampler of one's own.
    seed
        From which all randomness derives, at least 0.
    seeds
        Archs to start with (named networks, say); those that exceed a constraint are priced only, the others
        count among ``trials``.
    study_name
        Name of the study in the file.
    executor
        Where evaluations run; in this process by default.
    context
        Further facts that a continued search must share (checkpoint, evaluation split, ...), by name.
    early_stop
        Whether each network is evaluated against a rival: of the networks of earlier generations that cost no
        more in anything, the one with the highest AP. The evaluator (a
        :class:`~nas.search.evaluator.StoppingEvaluator`) may end once the network is sure to lose. Since a
        generation waits for the one before, the rivals depend on no executor and on no kill.
    shared
        Evaluations of other studies; those of the same ``context`` are taken instead of made again. They
        count among ``trials``: the same seed finds the same networks with them and without.
    pricing
        Of this space, instead of ``constraints`` and ``pricers``: so that what was priced to check a budget
        is not priced again.
    progress
        Called at the start and after each evaluation.

    Returns
    -------
    SearchResult
        Complete, or with ``stopped="interrupted"`` after Ctrl-C.

    Raises
    ------
    InputError
        If an argument is out of range, or a seed lies outside the space.
    BudgetError
        If no network meets the constraints; raised before anything is evaluated or written.
    MissingLayerError
        If a latency table lacks a layer that a network of the space executes.
    RunError
        If the file belongs to another search, its networks were priced by another table, it is damaged or in
        use, or an evaluation failed.
    UnavailableError
        If the executor lacks something on this machine.
    """
    chosen = _check(trials, population, seed, sampler, objectives)
    pricing = pricing or Pricing(space, constraints, pricers)
    chosen.check(pricing)
    for objective in objectives:
        if objective.is_cost:
            pricing.require(objective)
    given = np.array([space.encode(arch) for arch in seeds], dtype=np.int64).reshape(-1, len(space.shape))
    pricing.anchor  # noqa: B018 - refuses an impossible budget before anything is written
    identity = _identity(pricing, objectives, population, chosen.name, seed, seeds, context or {})
    # Evaluations that could be stopped keep more figures, which others' rivals are compared in.
    rule = {EARLY_STOP: cast(StoppingEvaluator, evaluator).rule} if early_stop else {}
    identity.update(rule)
    with quiet_optuna(), exclusive(storage):
        store = open_store(storage, study_name, space, tuple(objectives), pricing.constraints, identity)
        _check_prices(store, pricing, storage)
        account = None
        if shared is not None:
            account = shared.account(study_name, {**(context or {}), **rule}, store.maker)
        run = _Search(
            store,
            pricing,
            chosen,
            evaluator,
            executor or InProcess(),
            trials,
            population,
            seed,
            given,
            early_stop,
            account,
            progress,
        )
        stopped = run.go()
    return SearchResult(
        study=study_name,
        space=space.name,
        joints=space.joints,
        objectives=tuple(objectives),
        constraints=pricing.constraints,
        targets=pricing.targets,
        sampler=chosen.name,
        seed=seed,
        trials=trials,
        stopped=stopped,
        duplicates=sum(c.status == "duplicate" for c in store.candidates),
        records=run.records(),
        context=dict(context or {}),
    )


def _check(
    trials: int, population: int, seed: int, sampler: str | Sampler, objectives: Sequence[Objective]
) -> Sampler:
    for name, value, least in (("trials", trials, 1), ("population", population, 2), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"a search's {name} is a whole number from {least} up, not {value}")
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise InputError(f"unknown sampler '{sampler}'{did_you_mean(sampler, SAMPLERS)}")
    if AP not in objectives or len(set(objectives)) != len(objectives):
        named = ", ".join(map(str, objectives)) or "none"
        raise InputError(f"a search's objectives are ap and any costs, each once, not: {named}")
    return SAMPLERS[sampler] if isinstance(sampler, str) else sampler


def _identity(
    pricing: Pricing,
    objectives: Sequence[Objective],
    population: int,
    sampler: str,
    seed: int,
    seeds: Sequence[Arch],
    context: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a continued search must have in common with the one that began it."""
    facts: dict[str, Any] = {
        "space": f"{pricing.space.name} {pricing.space.fingerprint}",
        "objectives": ", ".join(map(str, objectives)),
        "constraints": ", ".join(f"{c.objective} <= {c.upper!r}" for c in pricing.constraints) or "none",
        "population": population,
        "sampler": sampler,
        "seed": seed,
        "seeds": ", ".join(arch.id for arch in seeds) or "none",
    }
    # A table that was measured anew prices these networks differently.
    probes = pricing.space.sample_genotypes(np.random.default_rng(0), _PROBES)
    prices = pricing.prices(probes)
    for target in pricing.targets:
        facts[f"latency[{target}] of {_PROBES} probe networks"] = f"{prices[latency(target)].sum():.6g} ms"
    return {**facts, **{f"context {name}": value for name, value in context.items()}}


def _check_prices(store: Store, pricing: Pricing, storage: Path) -> None:
    """Check that the study's networks still cost what it says, so that its prices are all of one table.

    Raises
    ------
    RunError
        If one does not: its latency table was changed where the probe networks do not look.
    """
    if not store.candidates:
        return
    prices = pricing.prices(np.array([candidate.genotype for candidate in store.candidates]))
    for objective in pricing.objectives:
        told = np.array([candidate.costs[objective] for candidate in store.candidates])
        differing = np.flatnonzero(~np.isclose(told, prices[objective], rtol=_SAME_PRICE, atol=0.0))
        if len(differing):
            at = int(differing[0])
            raise RunError(
                f"{objective} of the network {store.space.decode(store.candidates[at].genotype).id} is"
                f" {told[at]:.6g} in the study {storage}, {prices[objective][at]:.6g} now: restore the table"
                " that it was begun with, or take another run or study name"
            )


@dataclass
class _Search:
    store: Store
    pricing: Pricing
    sampler: Sampler
    evaluator: Evaluator
    executor: Executor
    trials: int
    population: int
    seed: int
    given: Genotypes
    early_stop: bool
    account: Account | None
    progress: Callable[[Progress], None] | None

    def go(self) -> Stopped:
        """Run generation after generation until the budget is used, or nothing new is left."""
        with self.store.journal.batch():
            self.store.settle()
        self._share()
        self._report(None)
        with ExitStack() as stack:
            session: Session | None = None
            try:
                while True:
                    pending = self._take_known([c for c in self.store.to_evaluate if c.evaluation is None])
                    if pending:
                        session = session or stack.enter_context(self.executor.session(self.evaluator))
                        self._evaluate(session, pending)
                    left = self.trials - len(self.store.to_evaluate)
                    if left <= 0:
                        return "budget"
                    with self.store.journal.batch():
                        found = self._plan(left)
                    if not found:
                        return "exhausted"
            except KeyboardInterrupt:
                return "interrupted"

    # -- one generation ---------------------------------------------------------------------------------

    def _plan(self, left: int) -> bool:
        """Ask and price a generation of at most ``left`` new networks; return whether there are any."""
        store, number = self.store, self.store.generations
        rng = np.random.default_rng([self.seed, number])
        first = number == 0
        want = min(left, max(self.population, len(self.given)) if first else self.population)
        store.study.sampler = self.sampler.optuna_sampler(
            self.population, int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        )
        generation = self._take(self._given(want), "seed")

        def need() -> int:
            return want - sum(c.status == "planned" for c in generation)

        if not first and self.sampler.breeds and need() > 0:
            asked = [store.ask() for _ in range(need())]
            prices = self.pricing.prices(np.array([genotype for _, genotype in asked]))
            for i, (trial, genotype) in enumerate(asked):
                generation.append(store.plan(trial, genotype, "offspring", by_objective(prices, i)))
        if not self.sampler.breeds and need() > 0:
            known = self._known()
            proposed = self.sampler.propose(known, rng, need())
            generation += self._take(proposed, self.sampler.origin(known))
        if not first and need() > 0:
            generation += self._take(self._mutants(rng, need()), "mutation")
        if need() > 0:
            generation += self._take(self.pricing.sample(rng, need(), store.keys), "sample")
        found = any(c.status == "planned" for c in generation)
        if generation:
            store.commit(generation)
        return found

    def _given(self, want: int) -> Genotypes:
        """Return the given networks not looked at yet, so many that ``want`` at most are to be evaluated."""
        seen = {c.key for c in self.store.candidates}
        fresh = self.given[[key(genotype) not in seen for genotype in self.given]]
        if len(fresh) == 0:
            return fresh
        within = np.cumsum(self.pricing.feasible(self.pricing.prices(fresh))) <= want
        return fresh[within]

    def _known(self) -> Known:
        store = self.store
        whole, ended = self._evaluations(store.measured), self._evaluations(store.ended)
        return Known(
            self.pricing,
            store.objectives,
            *whole[:2],
            store.keys,
            Estimates(*ended),
        )

    def _evaluations(self, candidates: Sequence[Candidate]) -> tuple[Genotypes, Floats, Floats]:
        """Return genotypes, APs and their standard errors."""
        genotypes = np.array([c.genotype for c in candidates], dtype=np.int64)
        found = [c.evaluation for c in candidates if c.evaluation is not None]
        return (
            genotypes.reshape(-1, len(self.store.space.shape)),
            np.array([evaluation.ap for evaluation in found]),
            np.array([evaluation.deviation for evaluation in found]),
        )

    def _take(self, genotypes: Genotypes, origin: str) -> list[Candidate]:
        if len(genotypes) == 0:
            return []
        prices = self.pricing.prices(genotypes)
        return [
            self.store.plan(*self.store.enqueue(genotype), origin, by_objective(prices, i))
            for i, genotype in enumerate(genotypes)
        ]

    def _mutants(self, rng: np.random.Generator, n: int) -> Genotypes:
        """Return up to ``n`` new networks within the budget, each a mutant of the present Pareto front."""
        store = self.store
        done = store.measured
        values = [
            [c.costs[o] if o.is_cost else c.evaluation.ap for o in store.objectives]
            for c in done
            if c.evaluation is not None
        ]
        front = pareto_front(values, [o.direction for o in store.objectives])
        parents = np.array([done[i].genotype for i in front])
        taken, found = store.keys, list[Genotypes]()
        for _ in range(_MUTATION_ROUNDS):
            mutants = self.pricing.neighbours(parents, rng, n * _MUTANTS_PER_NEED)
            for mutant in mutants[self.pricing.feasible(self.pricing.prices(mutants))]:
                if len(found) < n and mutant.tobytes() not in taken:
                    taken.add(mutant.tobytes())
                    found.append(mutant)
            if len(found) == n:
                break
        return np.array(found, dtype=np.int64).reshape(-1, parents.shape[1])

    def _rival(self, candidate: Candidate) -> Evaluation | None:
        """Return what is known of the best network of earlier generations that costs no more in anything."""
        if not self.early_stop:
            return None
        best: Evaluation | None = None
        for other in self.store.measured:
            if other.evaluation is None or other.generation >= candidate.generation:
                continue
            cheaper = all(other.costs[objective] <= cost for objective, cost in candidate.costs.items())
            if cheaper and (best is None or other.evaluation.ap > best.ap):
                best = other.evaluation
        return best

    def _evaluate(self, session: Session, pending: Sequence[Candidate]) -> None:
        archs = [self.store.space.decode(candidate.genotype) for candidate in pending]
        for index, evaluation in session.run(archs, [self._rival(candidate) for candidate in pending]):
            made = checked(archs[index], evaluation)
            if self.account is not None:
                self.account.add(archs[index], made)
            self.store.record(pending[index], made)
            self._report(pending[index])

    # -- what other studies know ------------------------------------------------------------------------

    def _share(self) -> None:
        """Give what this study evaluated before it shared, or before the file was lost."""
        if self.account is not None:
            for candidate in self.store.measured:
                if candidate.evaluation is not None:
                    self.account.add(self.store.space.decode(candidate.genotype), candidate.evaluation)

    def _take_known(self, pending: Sequence[Candidate]) -> list[Candidate]:
        """Record what is known of these networks already; return the others."""
        if self.account is None:
            return list(pending)
        unknown = []
        with self.store.journal.batch():
            for candidate in pending:
                known = self.account.find(self.store.space.decode(candidate.genotype))
                if known is not None and self.early_stop:
                    judge = cast(StoppingEvaluator, self.evaluator)
                    known = judge.against(known, self._rival(candidate))
                if known is None:
                    unknown.append(candidate)
                else:
                    self.store.record(candidate, known)
                    self._report(candidate)
        return unknown

    # -- what came out ----------------------------------------------------------------------------------

    def _report(self, latest: Candidate | None) -> None:
        if self.progress is None:
            return
        aps = [c.evaluation.ap for c in self.store.measured if c.evaluation is not None]
        self.progress(
            Progress(
                evaluated=sum(c.evaluation is not None for c in self.store.to_evaluate),
                trials=self.trials,
                generation=max(0, self.store.generations - 1),
                latest=None if latest is None else self._record(latest),
                best_ap=max(aps, default=None),
            )
        )

    def _record(self, c: Candidate) -> Record:
        evaluation = c.evaluation
        return Record(
            arch=self.store.space.decode(c.genotype),
            macs=int(c.costs[MACS]),
            params=int(c.costs[PARAMS]),
            latency_ms={target: c.costs[latency(target)] for target in self.pricing.targets},
            feasible=c.feasible,
            trial=c.number,
            generation=c.generation,
            origin=c.origin,
            ap=None if evaluation is None else evaluation.ap,
            stats={} if evaluation is None else evaluation.stats,
            seconds=0.0 if evaluation is None else evaluation.seconds,
            partial=evaluation is not None and evaluation.partial,
            resamples="" if evaluation is None else evaluation.resamples,
            reused=evaluation is not None and evaluation.reused,
        )

    def records(self) -> tuple[Record, ...]:
        """Return the networks evaluated and those that exceed a constraint, each once, in trial order."""
        distinct: dict[bytes, Candidate] = {}
        for candidate in self.store.candidates:
            if candidate.status == "infeasible" or candidate.evaluation is not None:
                distinct.setdefault(candidate.key, candidate)
        return tuple(map(self._record, sorted(distinct.values(), key=lambda c: c.number)))
