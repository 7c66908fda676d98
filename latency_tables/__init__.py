"""Latency tables: milliseconds per layer or block on one target, each with its provenance.

Measure this machine's layers, then ask what a network takes::

    from latency_tables import LatencyPredictor, local_target, profile
    from search_spaces import get_arch, litepose_native

    space = litepose_native(joints=14, resolutions=[256])
    table = profile(local_target("onnxruntime", threads=2), space.distinct_blocks(), out="tables")
    LatencyPredictor(table).predict(get_arch("litepose-xs").blocks(joints=14))

Importing this package imports no inference engine.
"""

from latency_tables.bench import Bench, LocalBench
from latency_tables.compare import Difference, Merged, compare_tables, merge_tables
from latency_tables.predictor import LatencyPredictor, Prediction, Predictions, calibrate, fill_table
from latency_tables.profiler import (
    MeasuredRounds,
    NetworkJob,
    ProfileSettings,
    measure_against,
    measure_model,
    measure_rounds,
    profile,
)
from latency_tables.runtimes import RUNTIMES, Runtime, get_runtime
from latency_tables.selection import select_pieces
from latency_tables.table import (
    Calibration,
    LatencyTable,
    MeasuredNetwork,
    Provenance,
    Row,
    available_tables,
    find_table,
)
from latency_tables.target import Target, local_target, read_target, write_target
from latency_tables.timing import Timing
from latency_tables.validate import Finding, validate_table

__all__ = [
    "RUNTIMES",
    "Bench",
    "Calibration",
    "Difference",
    "Finding",
    "LatencyPredictor",
    "LatencyTable",
    "LocalBench",
    "MeasuredNetwork",
    "MeasuredRounds",
    "Merged",
    "NetworkJob",
    "Prediction",
    "Predictions",
    "ProfileSettings",
    "Provenance",
    "Row",
    "Runtime",
    "Target",
    "Timing",
    "available_tables",
    "calibrate",
    "compare_tables",
    "fill_table",
    "find_table",
    "get_runtime",
    "local_target",
    "measure_against",
    "measure_model",
    "measure_rounds",
    "merge_tables",
    "profile",
    "read_target",
    "select_pieces",
    "validate_table",
    "write_target",
]
