"""Where a network's time goes: milliseconds of each block on each target that has a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latency_tables import LatencyPredictor, Prediction, available_tables
from latency_tables.predictor import PieceTime
from latency_tables.table import is_packaged
from nas.latency import known_targets, load_predictors, table_folders
from nas.run import RunDirectory
from search_spaces import LitePoseNasError
from search_spaces.layers import Block

__all__ = ["Breakdown", "breakdowns"]


@dataclass(frozen=True)
class Breakdown:
    """What a table says of one network.

    Attributes
    ----------
    predictor
        Of the table.
    prediction
        Of the network.
    times
        Of its blocks, in order, before the affine fix.
    own
        Whether the table is the user's, rather than one that comes with the package.
    asked
        Whether its target was asked for: priced by a search, or told in a card.
    """

    predictor: LatencyPredictor
    prediction: Prediction
    times: Sequence[PieceTime]
    own: bool
    asked: bool

    @property
    def name(self) -> str:
        """The target's name."""
        return self.predictor.name

    @property
    def scale(self) -> tuple[float, float]:
        """What the sum of blocks is corrected by: milliseconds besides the blocks, and a factor."""
        calibration = self.predictor.table.calibration
        return (0.0, 1.0) if calibration is None else (calibration.a_ms, calibration.b)

    def block_ms(self) -> list[float]:
        """Return what each block takes of the prediction, milliseconds."""
        _, factor = self.scale
        return [factor * time.ms for time in self.times]

    def guessed(self) -> list[bool]:
        """Return which blocks' times are fitted or estimated rather than measured."""
        return [time.fitted_ms > 0 or time.provenance == "calibrated-estimate" for time in self.times]


def breakdowns(
    run: RunDirectory,
    blocks: Sequence[Block],
    family: str,
    tables: Sequence[Path] | None,
    first: Sequence[str] = (),
) -> tuple[list[Breakdown], list[str]]:
    """Return what every table says that answers for a network, and of which targets none does.

    Parameters
    ----------
    run, blocks, family
        The run, what the network executes, and of which family it is.
    tables
        Further folders of tables.
    first
        Targets to begin with; then come the user's own tables, then those of the package.

    Returns
    -------
    tuple of lists
        The breakdowns; and a line for each table that is damaged or lacks a block.
    """
    found, silent = [], []
    packaged = _packaged(run, tables)
    for name in known_targets(tables, run):
        try:
            predictor = load_predictors([name], tables, run)[name]
            prediction = predictor.predict(blocks, family)
            times = predictor.times(blocks)
            found.append(Breakdown(predictor, prediction, times, name not in packaged, name in first))
        except LitePoseNasError as error:
            silent.append(f"{name}: {error}")
    order = {name: place for place, name in enumerate(first)}
    found.sort(key=lambda each: (order.get(each.name, len(order)), not each.own, each.name))
    return found, silent


def _packaged(run: RunDirectory, tables: Sequence[Path] | None) -> set[str]:
    return {name for name, path in available_tables(table_folders(tables, run)).items() if is_packaged(path)}
