"""A run's studies after their searches: read back, put together, and what is chosen in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from latency_tables import LatencyPredictor
from nas.latency import UpperEnd
from nas.pareto import choose
from nas.run import RunDirectory
from nas.search.objectives import Constraint
from nas.search.result import Record, SearchResult
from search_spaces import Arch, BudgetError, InputError, SearchSpace, get_arch
from search_spaces.files import read_json

__all__ = ["chosen_in", "find_arch", "load_result", "united"]


def load_result(run: RunDirectory, study: str) -> SearchResult:
    """Return the result of one of the run's studies."""
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
        return get_arch(text)
    for name in reversed(run.studies()):
        for record in load_result(run, name).records:
            if record.arch.id == text:
                return record.arch
    raise InputError(f"no search of '{run.folder}' has looked at a network with the id '{text}'")


def chosen_in(result: SearchResult, constraints: Sequence[Constraint] = ()) -> tuple[Record | None, str]:
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
