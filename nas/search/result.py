"""What a search found: every network that was priced or evaluated, and views on them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from nas.context import placeless
from nas.pareto import hypervolume, pareto_front
from nas.search.objectives import (
    AP,
    BYTES_PER_PARAMETER,
    MACS,
    PARAMS,
    SIZE,
    Constraint,
    Direction,
    Objective,
    latency,
)
from search_spaces import Arch, BudgetError, InputError, RunError, arch_from_json

Stopped = Literal["budget", "exhausted", "interrupted"]
_FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One network that the search looked at.

    Attributes
    ----------
    arch
        The network.
    macs, params
        Its exact costs.
    latency_ms
        Predicted latency per target, at the upper end of the error bar.
    feasible
        Whether it meets the search's constraints. What does not is priced only.
    trial
        Number of its trial in the Optuna study.
    generation
        Number of the generation that proposed it, from 0.
    origin
        ``seed`` (given), ``sample`` (drawn), ``guided`` (by the accuracy predictor), ``offspring`` (crossover
        and mutation), ``mutation`` (of the front) or ``enumeration``.
    ap
        Measured AP; None if the network was not evaluated; an estimate if its evaluation is partial.
    stats
        What else the evaluation measured.
    seconds
        How long the evaluation took.
    partial
        Whether the evaluation ended early, since a network that costs no more was sure to be better;
        ``stats`` are then those of the images looked at. Such a network is on no front and is never chosen.
    resamples
        The AP on resamples of the images (see :mod:`nas.search.noise`), empty where it was not kept.
    reused
        Whether the evaluation was taken from another study of the run, where it took ``seconds``.
    """

    arch: Arch
    macs: int
    params: int
    latency_ms: Mapping[str, float]
    feasible: bool
    trial: int
    generation: int
    origin: str
    ap: float | None = None
    stats: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    partial: bool = False
    resamples: str = ""
    reused: bool = False

    def require_ap(self) -> float:
        """Return the AP of an evaluated network.

        Raises
        ------
        RunError
            If the network was not evaluated.
        """
        if self.ap is None:
            raise RunError(f"the network {self.arch.id} was priced only, so it has no AP")
        return self.ap

    def value(self, objective: Objective) -> float:
        """Return the network's value of an objective, in its stored unit.

        Raises
        ------
        InputError
            If the latency on a target that was not priced is asked for.
        RunError
            If AP is asked of a network that was not evaluated.
        """
        if objective == AP:
            return self.require_ap()
        if objective == MACS:
            return float(self.macs)
        if objective == PARAMS:
            return float(self.params)
        if objective == SIZE:
            return float(self.params) * BYTES_PER_PARAMETER
        if objective.target is None or objective.target not in self.latency_ms:
            known = ", ".join(self.latency_ms) or "none"
            raise InputError(f"the search priced no {objective}; targets priced: {known}")
        return self.latency_ms[objective.target]

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON-able mapping."""
        return {
            "trial": self.trial,
            "generation": self.generation,
            "origin": self.origin,
            "id": self.arch.id,
            "arch": self.arch.to_json(),
            "macs": self.macs,
            "params": self.params,
            "latency_ms": dict(self.latency_ms),
            "feasible": self.feasible,
            "ap": self.ap,
            "stats": dict(self.stats),
            "seconds": self.seconds,
            "partial": self.partial,
            "resamples": self.resamples,
            "reused": self.reused,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Return the record that :meth:`to_json` described."""
        return cls(
            arch=arch_from_json(value["arch"], f"the arch of trial {value['trial']}"),
            macs=int(value["macs"]),
            params=int(value["params"]),
            latency_ms={str(k): float(v) for k, v in value["latency_ms"].items()},
            feasible=bool(value["feasible"]),
            trial=int(value["trial"]),
            generation=int(value["generation"]),
            origin=str(value["origin"]),
            ap=None if value["ap"] is None else float(value["ap"]),
            stats={str(k): float(v) for k, v in value["stats"].items()},
            seconds=float(value["seconds"]),
            partial=bool(value.get("partial", False)),
            resamples=str(value.get("resamples", "")),
            reused=bool(value.get("reused", False)),
        )


@dataclass(frozen=True)
class SearchResult:
    """Everything that a search found.

    Attributes
    ----------
    study
        Name of the Optuna study.
    space
        Kind of the search space.
    joints
        Number of keypoints of its networks.
    objectives, constraints, targets
        What the search traded off, what bounded it, and the latency targets it priced.
    sampler, seed
        How candidates were proposed.
    trials
        How many networks could be looked at.
    stopped
        ``budget`` (all of it was used), ``exhausted`` (no further network meets the constraints) or
        ``interrupted`` (run the same search again to continue it).
    duplicates
        How many proposals repeated a network that was known already; none of them was evaluated.
    records
        The distinct networks looked at, in the order of their trials.
    context
        What else AP depends on (weights, images, settings of the evaluation), by name: APs of results that
        differ in it are not comparable.
    min_ap
        The AP that is good enough: networks below it are no answer, and of the others the cheapest is chosen.
        None: the highest AP is chosen. The search itself does not depend on it.
    """

    study: str
    space: str
    joints: int
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    targets: tuple[str, ...]
    sampler: str
    seed: int
    trials: int
    stopped: Stopped
    duplicates: int
    records: tuple[Record, ...]
    context: Mapping[str, str] = field(default_factory=dict)
    min_ap: float | None = None

    @cached_property
    def evaluated(self) -> tuple[Record, ...]:
        """The networks whose AP was measured on all images, here or in another study, in trial order."""
        return tuple(record for record in self.records if record.ap is not None and not record.partial)

    @cached_property
    def partial(self) -> tuple[Record, ...]:
        """The networks whose evaluation ended early, in the order of their trials."""
        return tuple(record for record in self.records if record.partial)

    @cached_property
    def infeasible(self) -> tuple[Record, ...]:
        """The networks that were priced only, because they exceed a constraint."""
        return tuple(record for record in self.records if not record.feasible)

    def axis(self, x: str | Objective | None = None) -> Objective:
        """Return the cost that ``x`` names, after checking that it was priced; by default the search's first.

        Raises
        ------
        InputError
            If it names no cost, or a target that was not priced.
        """
        if x is None:
            return next((objective for objective in self.objectives if objective.is_cost), MACS)
        objective = Objective.parse(x) if isinstance(x, str) else x
        if not objective.is_cost:
            raise InputError("a front is drawn over a cost (macs, params, size, latency[TARGET]), not ap")
        if objective.target is not None and objective.target not in self.targets:
            known = ", ".join(self.targets) or "none"
            raise InputError(f"the search priced no {objective}; targets priced: {known}")
        return objective

    def front(
        self, x: str | Objective | None = None, constraints: Sequence[Constraint] = ()
    ) -> tuple[Record, ...]:
        """Return the networks that no other evaluated network beats in both AP and the cost ``x``.

        In ascending order of the cost; of networks equal in both, the one evaluated first.

        Parameters
        ----------
        x
            The cost; by default the first that the search traded off.
        constraints
            Only networks that meet these are considered.
        """
        objective = self.axis(x)
        meeting = [r for r in self.evaluated if all(c.holds(r.value(c.objective)) for c in constraints)]
        points = [(r.value(objective), r.require_ap()) for r in meeting]
        front: dict[tuple[float, float], Record] = {}
        for i in pareto_front(points, ["minimize", "maximize"]):
            front.setdefault(points[i], meeting[i])
        return tuple(front[point] for point in sorted(front))

    def best(self, constraints: Sequence[Constraint] = ()) -> Record:
        """Return the evaluated network that answers the search best, among those that meet every constraint.

        That is the one with the highest AP; where the result has a ``min_ap``, the cheapest that reaches it,
        by the first cost that the search traded off. Ties go to the network with (then) the higher AP, fewer
        MACs, fewer parameters, the earlier trial.

        Raises
        ------
        BudgetError
            If no evaluated network meets the constraints; the message names the nearest one. Or if none of
            those that do reaches ``min_ap``; the message then names the best one and what it costs.
        InputError
            If a constraint bounds the latency on a target that was not priced.
        """
        if not self.evaluated:
            raise BudgetError("no network was evaluated, so none can be chosen; run the search first")
        meeting = [r for r in self.evaluated if all(c.holds(r.value(c.objective)) for c in constraints)]
        if not meeting:
            nearest = min(
                self.evaluated,
                key=lambda r: (max(c.violation(r.value(c.objective)) for c in constraints), r.trial),
            )
            costs = ", ".join(
                f"{c.objective.format(nearest.value(c.objective), up=True)}" for c in constraints
            )
            raise BudgetError(
                f"no evaluated network (of {len(self.evaluated)}) meets"
                f" {' and '.join(map(str, constraints))}; the nearest is {nearest.arch.id} with {costs}:"
                " loosen the budget, or search under it"
            )
        best = min(meeting, key=lambda r: (-r.require_ap(), r.macs, r.params, r.trial))
        least = self.min_ap
        if least is None:
            return best
        enough = [r for r in meeting if r.require_ap() >= least]
        if not enough:
            asked = dict.fromkeys(
                (*(o for o in self.objectives if o.is_cost), *(c.objective for c in constraints))
            )
            costs = ", ".join(o.format(best.value(o), up=True) for o in asked or [self.axis()])
            raise BudgetError(
                f"no evaluated network within the budget (of {len(meeting)}) reaches AP {least:g}: the best"
                f" has {best.require_ap():.4f} and costs {costs} ({best.arch.id}); search longer, ask for"
                " less, or loosen the budget"
            )
        cost = self.axis()
        return min(enough, key=lambda r: (r.value(cost), -r.require_ap(), r.macs, r.params, r.trial))

    def reference(self, x: str | Objective | None = None) -> float:
        """Return the largest cost evaluated, a little enlarged so that every network adds to hypervolumes."""
        objective = self.axis(x)
        return max(record.value(objective) for record in self.evaluated) * 1.01

    def hypervolumes(
        self, x: str | Objective | None = None, most: float | None = None
    ) -> np.ndarray[Any, Any]:
        """Return the hypervolume of (AP, cost) after each evaluation, shape (evaluated,).

        Parameters
        ----------
        x
            The cost; by default the first that the search traded off.
        most
            The reference cost; AP's reference is 0. By default :meth:`reference`.
        """
        objective = self.axis(x)
        points = [(r.value(objective), r.require_ap()) for r in self.evaluated]
        if not points:
            return np.empty(0)
        bound = self.reference(objective) if most is None else most
        directions: tuple[Direction, ...] = ("minimize", "maximize")
        front: list[tuple[float, float]] = []
        volumes = np.empty(len(points))
        for i, point in enumerate(points):
            front.append(point)
            front = [front[j] for j in pareto_front(front, directions)]
            volumes[i] = hypervolume(front, (bound, 0.0), directions)
        return volumes

    # -- files ------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-able mapping that :meth:`from_json` reads back without loss."""
        return {
            "format": _FORMAT,
            "study": self.study,
            "space": self.space,
            "joints": self.joints,
            "objectives": [str(objective) for objective in self.objectives],
            "constraints": {str(c.objective): c.upper for c in self.constraints},
            "targets": list(self.targets),
            "sampler": self.sampler,
            "seed": self.seed,
            "trials": self.trials,
            "stopped": self.stopped,
            "duplicates": self.duplicates,
            "context": dict(self.context),
            "min_ap": self.min_ap,
            "records": [record.to_json() for record in self.records],
        }

    @classmethod
    def from_json(cls, value: object, where: str = "search result") -> SearchResult:
        """Return the result that :meth:`to_json` described.

        Raises
        ------
        RunError
            If the value is not such a description; the message names ``where`` and what is missing or wrong.
        """
        try:
            if not isinstance(value, dict) or value["format"] != _FORMAT:
                raise RunError(f"{where} is not a search result of format {_FORMAT}; run the search again")
            if value["stopped"] not in get_args(Stopped):
                raise RunError(f"{where}: 'stopped' is one of {', '.join(get_args(Stopped))}")
            return cls(
                study=str(value["study"]),
                space=str(value["space"]),
                joints=int(value["joints"]),
                objectives=tuple(Objective.parse(text) for text in value["objectives"]),
                constraints=tuple(
                    Constraint(Objective.parse(k), float(v)) for k, v in value["constraints"].items()
                ),
                targets=tuple(map(str, value["targets"])),
                sampler=str(value["sampler"]),
                seed=int(value["seed"]),
                trials=int(value["trials"]),
                stopped=value["stopped"],
                duplicates=int(value["duplicates"]),
                records=tuple(Record.from_json(record) for record in value["records"]),
                context=placeless({str(k): str(v) for k, v in value.get("context", {}).items()}),
                min_ap=None if value.get("min_ap") is None else float(value["min_ap"]),
            )
        except KeyError as error:
            raise RunError(f"{where} lacks {error}: the file is damaged or of another kind") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RunError(f"{where} is damaged: {error}") from None

    def rows(self) -> list[dict[str, object]]:
        """Return a row per network, in trial order: what ``pandas.DataFrame`` takes, and the CSV file holds.

        Values are numbers, texts, 0 or 1 for no and yes, and None for what is not there. ``best_ap`` and
        ``hypervolume`` are those of the search after that network; the hypervolume is of AP and the first
        cost that the search traded off (:meth:`hypervolumes`). The arch's values and what the evaluation
        measured besides have columns of their own.
        """
        names = list(self.records[0].arch) if self.records else []
        stats = sorted({name for record in self.records for name in record.stats})
        volumes = dict(zip((r.trial for r in self.evaluated), self.hypervolumes().tolist(), strict=True))
        front = {record.trial for record in self.front()}
        best, rows = 0.0, []
        for r in self.records:
            known = r.trial in volumes
            best = max(best, r.require_ap()) if known else best
            rows.append(
                {
                    **{"trial": r.trial, "generation": r.generation, "origin": r.origin, "id": r.arch.id},
                    **{"ap": r.ap, "macs": r.macs, "params": r.params, "size": r.value(SIZE)},
                    **{str(latency(target)): r.latency_ms[target] for target in self.targets},
                    **{"feasible": int(r.feasible), "seconds": None if r.ap is None else r.seconds},
                    **{"partial": int(r.partial), "reused": int(r.reused), "on_front": int(r.trial in front)},
                    **{"best_ap": best if known else None, "hypervolume": volumes.get(r.trial)},
                    **{name: r.arch[name] for name in names},
                    **{name: r.stats.get(name) for name in stats},
                }
            )
        return rows

    def to_csv(self) -> str:
        """Return :meth:`rows` as CSV text with a header; what is not there is empty."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
