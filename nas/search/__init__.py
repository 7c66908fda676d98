"""The search engine: which networks to try, where to try them, and what came out.

>>> from nas.search import AP, MACS, Constraint, search  # doctest: +SKIP
>>> result = search(space, evaluator, storage=Path("run/study.journal"), trials=200,
...                 constraints=[Constraint(MACS, 1.5e9)])  # doctest: +SKIP
>>> result.best().arch  # doctest: +SKIP
"""

from nas.search.analysis import analyse
from nas.search.budgets import Budget, BudgetText, parse_budget, parse_objectives
from nas.search.engine import Progress, search
from nas.search.evaluator import Evaluation, Evaluator, StoppingEvaluator
from nas.search.executors import Executor, InProcess, Kept
from nas.search.objectives import (
    AP,
    MACS,
    PARAMS,
    SIZE,
    Constraint,
    Objective,
    latency,
    parse_constraints,
    parse_latency,
    parse_quantity,
    parse_size,
)
from nas.search.pricing import LatencyPricer, Pricing
from nas.search.ray_executor import RayExecutor
from nas.search.result import Record, SearchResult
from nas.search.sampler import Known, Sampler
from nas.search.samplers import SAMPLERS
from nas.search.shared import SharedEvaluations, open_shared

__all__ = [
    "AP",
    "MACS",
    "PARAMS",
    "SAMPLERS",
    "SIZE",
    "Budget",
    "BudgetText",
    "Constraint",
    "Evaluation",
    "Evaluator",
    "Executor",
    "InProcess",
    "Kept",
    "Known",
    "LatencyPricer",
    "Objective",
    "Pricing",
    "Progress",
    "RayExecutor",
    "Record",
    "Sampler",
    "SearchResult",
    "SharedEvaluations",
    "StoppingEvaluator",
    "analyse",
    "latency",
    "open_shared",
    "parse_budget",
    "parse_constraints",
    "parse_latency",
    "parse_objectives",
    "parse_quantity",
    "parse_size",
    "search",
]
