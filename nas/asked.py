"""Budgets and objectives as commands take them, with the latency tables that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from latency_tables import LatencyPredictor
from nas.latency import UpperEnd, full_bounds, known_targets, load_predictors
from nas.run import RunDirectory
from nas.search import Budget, BudgetText, Objective, parse_objectives
from nas.search.objectives import unknown_target
from search_spaces import Arch, BudgetError, InputError, SearchSpace

__all__ = ["Asked", "naming", "read_asked"]


@dataclass(frozen=True)
class Asked:
    """What a command asks for; see :func:`read_asked`.

    Attributes
    ----------
    budgets
        By what names them in messages.
    wanted
        The objectives named; none where the budgets decide.
    predictors
        Of every target that a budget bounds or an objective names.
    """

    budgets: Mapping[str, Budget]
    wanted: tuple[Objective, ...]
    predictors: Mapping[str, LatencyPredictor]

    def settled(self, where: str, space: SearchSpace) -> tuple[Budget, tuple[Objective, ...]]:
        """Return a budget in which a network that it names is replaced by bounds, and what is traded off.

        Raises
        ------
        MissingLayerError
            If a table lacks a layer of the network named.
        """
        budget = self.budgets[where].settled(self.wanted, space.joints, self._upper_ends(space))
        return budget, budget.objectives(self.wanted)

    def _upper_ends(self, space: SearchSpace) -> dict[str, Callable[[Arch], float]]:
        """Return by target what tells the upper end of an arch's predicted latency, ms.

        To the bit as the space's networks are priced, so that a network is within its own cost.
        """

        def upper(predictor: LatencyPredictor) -> Callable[[Arch], float]:
            def told(arch: Arch) -> float:
                if arch in space:
                    return float(UpperEnd(predictor).latency_ms(space, space.encode(arch)[None])[0])
                return predictor.predict(arch.blocks(space.joints)).high_ms

            return told

        return {name: upper(predictor) for name, predictor in self.predictors.items()}


def read_asked(
    texts: Mapping[str, BudgetText],
    objectives: Sequence[str],
    run: RunDirectory,
    tables: Sequence[Path] | None = None,
    *,
    strict: bool = False,
) -> Asked:
    """Return what budgets and objectives in words mean, targets named in full, with their tables.

    Parameters
    ----------
    texts
        The budgets, by what names them in messages; empty for one that needs no name.
    objectives
        What is traded off: ``macs``, ``latency@TARGET``, ...
    run, tables
        Where tables are looked for; see :func:`nas.latency.table_folders`.
    strict
        Whether tables may hold no estimates.

    Raises
    ------
    InputError
        If one is malformed, names a target without a table, or states a bound twice.
    """
    wanted = parse_objectives([_full(text, tables, run) for text in objectives])
    targets = known_targets(tables, run)
    for objective in wanted:
        if objective.target is not None and objective.target not in targets:
            hint = unknown_target(objective.target, targets)
            raise InputError(f"--objective has the unknown target '{objective.target}'{hint}")
    budgets = {}
    for where, text in texts.items():
        with naming(where):
            bounds = tuple(full_bounds(text.max_latency, tables, run))
            budgets[where] = replace(text, max_latency=bounds).budget(targets)
            budgets[where].liked(wanted)
    priced = [target for budget in budgets.values() for target in budget.targets]
    priced += [objective.target for objective in wanted if objective.target is not None]
    return Asked(budgets, wanted, load_predictors(priced, tables, run, strict=strict))


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put which of several budgets it is about in front of an error."""
    try:
        yield
    except (InputError, BudgetError) as error:
        if not where or where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from None


def _full(text: str, tables: Sequence[Path] | None, run: RunDirectory) -> str:
    """Return an objective that names its target in full."""
    if not text.strip().lower().startswith("latency") or "[" in text:
        return text
    _, _, target = text.partition("@")
    bound = f"1ms@{target}" if target else "1ms"
    return f"latency@{full_bounds([bound], tables, run)[0].partition('@')[2]}".rstrip("@")
