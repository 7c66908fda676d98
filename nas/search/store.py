"""The Optuna study on disk: the one record of a search, from which a killed search continues.

A generation takes three steps, so that a kill at any moment leaves a state from which the search goes on as
if nothing had happened:

1. its trials are asked and priced; a trial that is left without a plan is given up on resume, and its
   generation is asked again with the same seed;
2. its plan, the list of its trials, becomes an attribute of the study: from now on its trials are final;
3. each evaluation becomes an attribute of its trial, then the trial is told; an evaluation that was stored
   but not told is told on resume, without evaluating again.

Steps 1 and 2 are written as one batch, and so is each evaluation.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import optuna
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from nas.context import placeless
from nas.search.evaluator import Evaluation
from nas.search.objectives import Constraint, Objective
from nas.search.pricing import Prices, key
from search_spaces import Genotypes, InputError, RunError, SearchSpace
from search_spaces.files import append_whole, check_no_link, locked, make_folder, room_for_it

Status = Literal["planned", "evaluated", "infeasible", "duplicate"]
_EVALUATED: tuple[Status, ...] = ("planned", "evaluated")

NOT_EVALUATED_AP = -1.0
"""The AP told to Optuna for a network that is not evaluated; COCO's evaluation, too, writes -1 where AP is
undefined. Constrained domination ranks such trials by their violation, so that the number weighs nothing; no
report of ours shows it."""

_IDENTITY = "identity"
_MAKER = "maker"
_PLAN = "plan:{:05d}"
_LOCK_GRACE_SECONDS = 3
_DAMAGE = (
    *(AssertionError, AttributeError, LookupError, OverflowError, TypeError, ValueError),
    *(optuna.exceptions.OptunaError, InputError),
)
"""What reading a journal raises whose lines are not those that a search wrote, in their order."""


@dataclass
class Candidate:
    """One trial of a planned generation.

    Attributes
    ----------
    number
        Of the trial in the study.
    genotype
        Shape (genes,).
    generation, origin
        Who proposed it and when.
    costs
        Every price, by objective.
    feasible
        Whether it meets the constraints.
    status
        ``planned`` until its evaluation is known.
    evaluation
        What evaluating it gave.
    told
        Whether the study knows its values.
    """

    number: int
    genotype: Genotypes
    generation: int
    origin: str
    costs: dict[Objective, float]
    feasible: bool
    status: Status
    evaluation: Evaluation | None = None
    told: bool = False

    @property
    def key(self) -> bytes:
        """The network's key; see :func:`nas.search.pricing.key`."""
        return key(self.genotype)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the search at ``path`` against other processes; released by the system even after kill -9.

    Raises
    ------
    RunError
        If another process holds it, or the directory cannot be written to.
    """
    make_folder(path.parent)
    busy = f"another process is searching in {path}: wait for it, or take another run"
    with locked(path.with_name(path.name + ".driver"), busy):
        yield


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's own progress lines and its notes on experimental parts; restored on leaving."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def repair(path: Path) -> int:
    """Cut an unfinished last line off a journal, and remove what a killed writer left; return the bytes cut.

    A journal line is written before its operation counts, so an unfinished one belongs to an operation that
    did not happen. Call it only while holding :func:`exclusive`.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*.rename"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return 0
    with path.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 4096)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            stream.truncate(end)
            os.fsync(stream.fileno())
        return size - end


class Journal(BaseJournalBackend):
    """Optuna's journal file, written in batches and kept in memory.

    One process searches at a time (:func:`exclusive`), so its own copy is the truth; Optuna's lock is still
    taken around each write, for the sake of a dashboard that writes a note. A batch reaches the disk as one
    piece: where a kill or a loss of power cuts it, a prefix of its lines survives, as if the search had been
    stopped there.

    Raises
    ------
    RunError
        If the file has a line that is no journal entry, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileSymlinkLock(str(path), grace_period=_LOCK_GRACE_SECONDS)
        self._entries: list[dict[str, Any]] = []
        self._pending: list[str] = []
        self._depth = 0
        check_no_link(path)
        with path.open("a+") as stream:
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                try:
                    self._entries.append(json.loads(line))
                except (ValueError, RecursionError):
                    raise RunError(
                        f"the study file {path} is damaged in line {number}; restore it, or start anew"
                    ) from None

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the entries from a number on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries; they reach the disk at once, or when the batch ends."""
        for log in logs:
            line = json.dumps(log, separators=(",", ":"))
            self._entries.append(json.loads(line))
            self._pending.append(line + "\n")
        if self._depth == 0:
            self._flush()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Collect what is appended, and force it to the disk on leaving the outermost batch."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._flush()

    def _flush(self) -> None:
        text, self._pending = "".join(self._pending).encode(), []
        if not text:
            return
        try:
            self._lock.acquire()
            try:
                self._write(text)
            finally:
                self._lock.release()
        except OSError as error:
            raise RunError(
                f"cannot write the study '{self._path}': {error.strerror or error}; what was evaluated before"
                f" is kept in it: {room_for_it(error)}, then run the same command again"
            ) from None

    def _write(self, text: bytes) -> None:
        with self._path.open("ab", buffering=0) as stream:
            append_whole(stream.fileno(), text)
            os.fsync(stream.fileno())


@dataclass
class Store:
    """A study and the candidates planned in it so far. Open one with :func:`open_store`."""

    study: optuna.Study
    journal: Journal
    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    candidates: list[Candidate] = field(default_factory=list)
    generations: int = 0

    def __post_init__(self) -> None:
        self.storage = self.study._storage
        self.study_id = self.study._study_id
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            choice.name: optuna.distributions.CategoricalDistribution(choice.values)
            for choice in self.space.searched
        }
        self._by_key: dict[bytes, Candidate] = {}
        self._load()

    # -- reading ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        attributes = self.study.user_attrs
        planned: set[int] = set()
        while (name := _PLAN.format(self.generations)) in attributes:
            for number in attributes[name]:
                planned.add(number)
                self._register(self._candidate(trials[number]))
            self.generations += 1
        for trial in trials:
            if trial.number not in planned and not trial.state.is_finished():
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        attributes = trial.user_attrs
        result, status, told = attributes.get("result"), attributes["status"], trial.state.is_finished()
        if status not in get_args(Status) or (status in _EVALUATED and told and result is None):
            raise ValueError(f"trial {trial.number} is '{status}', its result {result}")
        return Candidate(
            number=trial.number,
            genotype=self.genotype(trial.params),
            generation=attributes["generation"],
            origin=attributes["origin"],
            costs={Objective.parse(name): value for name, value in attributes["costs"].items()},
            feasible=all(value <= 0 for value in trial.constraints.values()),
            status=status,
            evaluation=None if result is None else Evaluation.from_json(result),
            told=told,
        )

    def _register(self, candidate: Candidate) -> None:
        self.candidates.append(candidate)
        if candidate.status in _EVALUATED:
            self._by_key[candidate.key] = candidate

    def genotype(self, params: Mapping[str, Any]) -> Genotypes:
        """Return the genotype of a trial's parameters, shape (genes,)."""
        genes = [
            choice.values.index(params[choice.name]) if choice.name in params else 0
            for choice in self.space.choices
        ]
        return np.array(genes, dtype=np.int64)

    def known(self, genotype: Genotypes) -> Candidate | None:
        """Return the candidate whose network this is, if it is evaluated or about to be."""
        return self._by_key.get(key(genotype))

    @property
    def keys(self) -> set[bytes]:
        """The networks that are evaluated or about to be."""
        return set(self._by_key)

    @property
    def to_evaluate(self) -> list[Candidate]:
        """Every candidate that was or will be evaluated, in trial order."""
        return [c for c in self.candidates if c.status in _EVALUATED]

    @property
    def measured(self) -> list[Candidate]:
        """Every candidate whose AP was measured to the end, in trial order."""
        return [c for c in self.to_evaluate if c.evaluation is not None and not c.evaluation.partial]

    @property
    def maker(self) -> str:
        """What tells this study from every other one, even of the same name; its name if it is an old one."""
        return str(self.study.user_attrs.get(_MAKER, self.study.study_name))

    @property
    def ended(self) -> list[Candidate]:
        """Every candidate whose evaluation ended early, in trial order."""
        return [c for c in self.to_evaluate if c.evaluation is not None and c.evaluation.partial]

    # -- planning ---------------------------------------------------------------------------------------

    def enqueue(self, genotype: Genotypes) -> tuple[optuna.Trial, Genotypes]:
        """Ask a trial for exactly this network."""
        values = zip(self.space.choices, genotype.tolist(), strict=True)
        params = {choice.name: choice.values[gene] for choice, gene in values if len(choice.values) > 1}
        self.study.enqueue_trial(params)
        return self.ask()

    def ask(self) -> tuple[optuna.Trial, Genotypes]:
        """Ask a trial of the study's sampler."""
        trial = self.study.ask(fixed_distributions=self._distributions)
        return trial, self.genotype(trial.params)

    def plan(
        self, trial: optuna.Trial, genotype: Genotypes, origin: str, costs: Mapping[Objective, float]
    ) -> Candidate:
        """Price a trial and decide what becomes of it: to be evaluated, infeasible, or a duplicate."""
        feasible = True
        for constraint in self.constraints:
            trial.set_constraint(str(constraint.objective), constraint.violation(costs[constraint.objective]))
            feasible &= constraint.holds(costs[constraint.objective])
        known = self.known(genotype)
        status: Status = "infeasible" if not feasible else "duplicate" if known is not None else "planned"
        candidate = Candidate(trial.number, genotype, self.generations, origin, dict(costs), feasible, status)
        trial.set_user_attr("arch", self.space.decode(genotype).id)
        trial.set_user_attr("generation", self.generations)
        trial.set_user_attr("origin", origin)
        trial.set_user_attr("costs", {str(objective): value for objective, value in costs.items()})
        trial.set_user_attr("status", status)
        if status == "duplicate" and known is not None:
            trial.set_user_attr("duplicate_of", known.number)
        self._register(candidate)
        return candidate

    def commit(self, generation: Sequence[Candidate]) -> None:
        """Make the generation final, and tell what needs no evaluation."""
        self.study.set_user_attr(_PLAN.format(self.generations), [c.number for c in generation])
        self.generations += 1
        self.settle()

    # -- telling ----------------------------------------------------------------------------------------

    def record(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Store an evaluation; from now on it is never repeated."""
        with self.journal.batch():
            self.storage.set_trial_user_attr(self._trial_id(candidate), "result", evaluation.to_json())
            candidate.evaluation = evaluation
            self.settle()

    def settle(self) -> None:
        """Tell every trial whose outcome is known, in the order of asking, up to the first that is not."""
        blocked = False
        for candidate in self.candidates:
            if candidate.told:
                continue
            if candidate.status == "infeasible":
                self.study.tell(candidate.number, self._values(candidate, NOT_EVALUATED_AP))
            elif candidate.status == "duplicate":
                # Pruned trials stay out of the population: each network breeds once, under its own trial.
                self.study.tell(candidate.number, state=TrialState.PRUNED)
            elif candidate.evaluation is None or blocked:
                blocked = True
                continue
            else:
                self.storage.set_trial_user_attr(self._trial_id(candidate), "status", "evaluated")
                self.study.tell(candidate.number, self._values(candidate, candidate.evaluation.ap))
                candidate.status = "evaluated"
            candidate.told = True

    def _values(self, candidate: Candidate, ap: float) -> list[float]:
        return [candidate.costs[o] if o.is_cost else ap for o in self.objectives]

    def _trial_id(self, candidate: Candidate) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, candidate.number)


def open_store(
    path: Path,
    study_name: str,
    space: SearchSpace,
    objectives: tuple[Objective, ...],
    constraints: tuple[Constraint, ...],
    identity: Mapping[str, Any],
) -> Store:
    """Open the study at ``path``, or create it. Call it while holding :func:`exclusive`.

    Parameters
    ----------
    path
        The journal file.
    study_name
        Which study in it.
    space, objectives, constraints
        What is searched.
    identity
        JSON-able facts that a continued search must share with the one that began it.

    Raises
    ------
    RunError
        If the file is damaged, or holds a study of the same name that searches something else; the message
        lists the differences.
    """
    where = f"the study '{study_name}' in {path}"
    try:
        repair(path)
        journal = Journal(path)
        with journal.batch():
            study = optuna.create_study(
                storage=optuna.storages.JournalStorage(journal),
                study_name=study_name,
                directions=[objective.direction for objective in objectives],
                load_if_exists=True,
            )
            recorded = study.user_attrs.get(_IDENTITY)
            if recorded is None and not study.get_trials(deepcopy=False):
                recorded = dict(identity)
                study.set_user_attr(_MAKER, uuid.uuid4().hex)
                study.set_user_attr(_IDENTITY, recorded)
                study.set_metric_names([str(objective) for objective in objectives])
        if recorded is None:
            raise RunError(f"{where} was not made by this search; take another name")
        _compare(recorded, identity, where)
        with journal.batch():
            return Store(study, journal, space, objectives, constraints)
    except OSError as error:
        raise RunError(f"cannot use the study file {path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        why = f"{type(error).__name__}: {error}"
        raise RunError(f"the study file {path} is damaged ({why}); restore it, or start anew") from None


def _compare(recorded: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    recorded, wanted = placeless(recorded), placeless(wanted)
    differences = [
        f"{name} is {recorded.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted({*recorded, *wanted})
        if recorded.get(name) != wanted.get(name)
    ]
    if differences:
        raise RunError(
            f"{where} belongs to another search: {'; '.join(differences)};"
            " continue with the settings it was begun with, or take another run or study name"
        )


def by_objective(prices: Prices, index: int) -> dict[Objective, float]:
    """Return the prices of one arch."""
    return {objective: float(values[index]) for objective, values in prices.items()}
