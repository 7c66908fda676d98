"""Tables of networks whose AP was measured once: search problems that can be solved again and again for
nothing.

A table is a file of one JSON object per line, ``.jsonl`` or ``.jsonl.gz``. The first line is the header:
``kind`` (``header``), ``format``, ``name``, the ``space`` (as in a recipe) with its ``joints`` and
``fingerprint``, the ``context`` that the APs rest on, and ``record``, what else is worth knowing. Every other
line is a network: ``genotype``, ``id`` of the arch, ``ap``, ``seconds`` that the evaluation took, ``stats``.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nas.search.evaluator import Evaluation
from nas.search.objectives import Constraint, latency
from search_spaces import Arch, Genotypes, InputError, SearchSpace
from search_spaces.files import write_bytes
from search_spaces.registry import space_from_config

__all__ = ["Listed", "Table", "TabularEvaluator", "header_of", "read_table", "row_of", "write_table"]

_FORMAT: Final = 1


@dataclass(frozen=True)
class Table:
    """Networks of one space with their APs.

    Attributes
    ----------
    name
        Of the table.
    space
        Whose networks they are.
    context
        What the APs rest on (weights, images, settings), by name.
    record
        What else is known: machine, command, date.
    genotypes
        Shape (networks, genes).
    evaluations
        What was measured, in the same order.
    """

    name: str
    space: SearchSpace
    context: Mapping[str, str]
    record: Mapping[str, Any]
    genotypes: Genotypes
    evaluations: tuple[Evaluation, ...]

    @property
    def aps(self) -> npt.NDArray[np.float64]:
        """The APs, shape (networks,)."""
        return np.array([evaluation.ap for evaluation in self.evaluations])

    def places(self, genotypes: Genotypes) -> npt.NDArray[np.int64]:
        """Return where in the table genotypes stand, shape (n,); -1: it lacks the network."""
        order, numbers = self._sorted
        asked = self._numbers(genotypes)
        at = np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)
        found: npt.NDArray[np.int64] = np.where(numbers[at] == asked, order[at], -1)
        return found

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        numbers = self._numbers(self.genotypes)
        order = numbers.argsort()
        return order, numbers[order]

    def _numbers(self, genotypes: Genotypes) -> npt.NDArray[np.int64]:
        return np.asarray(np.ravel_multi_index(tuple(genotypes.T), self.space.shape), dtype=np.int64)


@dataclass(frozen=True)
class TabularEvaluator:
    """Looks APs up instead of measuring them."""

    table: Table

    def evaluate(self, arch: Arch) -> Evaluation:
        """Return what was measured once.

        Raises
        ------
        InputError
            If the table lacks the network; a search stays within it by :class:`Listed`.
        """
        place = int(self.table.places(self.table.space.encode(arch)[None])[0])
        if place < 0:
            raise InputError(
                f"the table '{self.table.name}' lacks the network {arch.id}: search within it, by the pricer"
                " and the constraint of nas.search.tabular.Listed"
            )
        return self.table.evaluations[place]


@dataclass(frozen=True)
class Listed:
    """Keeps a search within a table: to its networks a made-up target gives 1 ms, to all others 2 ms.

    Pass it as a pricer together with :attr:`constraint`; the search then treats what the table lacks like
    networks over the budget.
    """

    table: Table

    @property
    def name(self) -> str:
        """Name of the made-up target."""
        return "listed"

    @property
    def constraint(self) -> Constraint:
        """The bound that only networks of the table meet."""
        return Constraint(latency(self.name), 1.0)

    def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> npt.NDArray[np.float64]:
        """Return 1 for networks of the table, 2 for others, shape (n,)."""
        del space
        return np.where(self.table.places(genotypes) < 0, 2.0, 1.0)


# -- files -------------------------------------------------------------------------------------------------


def header_of(
    name: str, space: SearchSpace, context: Mapping[str, str], record: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a table's first line, without its ``kind``."""
    return {
        "format": _FORMAT,
        "name": name,
        "space": space.config(),
        "joints": space.joints,
        "fingerprint": space.fingerprint,
        "context": dict(context),
        "record": dict(record),
    }


def row_of(space: SearchSpace, genotype: Genotypes, evaluation: Evaluation) -> dict[str, Any]:
    """Return a network's line."""
    return {
        "genotype": genotype.tolist(),
        "id": space.decode(genotype).id,
        "ap": evaluation.ap,
        "seconds": round(evaluation.seconds, 3),
        "stats": evaluation.stats,
    }


def write_table(path: Path, table: Table) -> None:
    """Write a table atomically, compressed where the name ends in ``.gz``; equal tables give equal files."""
    lines = [{"kind": "header", **header_of(table.name, table.space, table.context, table.record)}]
    for genotype, evaluation in zip(table.genotypes, table.evaluations, strict=True):
        lines.append(row_of(table.space, genotype, evaluation))
    data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_table(path: Path) -> Table:
    """Return the table in a file.

    Raises
    ------
    InputError
        If the file is missing, damaged or no table, or a line is not what it says; the message names the
        line.
    """
    lines = list(_lines(path))
    if not lines or lines[0].get("kind") != "header" or lines[0].get("format") != _FORMAT:
        raise InputError(f"'{path}' is no table of networks of format {_FORMAT}; record one anew")
    header, rows = lines[0], lines[1:]
    try:
        space = space_from_config(header["space"], f"the space of '{path}'", int(header["joints"]))
        table = Table(
            str(header["name"]),
            space,
            {str(name): str(value) for name, value in header["context"].items()},
            dict(header["record"]),
            np.array([row["genotype"] for row in rows], dtype=np.int64).reshape(-1, len(space.shape)),
            tuple(Evaluation(float(row["ap"]), dict(row["stats"]), float(row["seconds"])) for row in rows),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"the table '{path}' is damaged ({type(error).__name__}: {error})") from None
    if space.fingerprint != header["fingerprint"]:
        raise InputError(
            f"the table '{path}' is of another space than its header describes"
            f" ({header['fingerprint']} there, {space.fingerprint} here): record it anew with this version"
        )
    seen: dict[str, int] = {}
    for number, (row, genotype, evaluation) in enumerate(
        zip(rows, table.genotypes, table.evaluations, strict=True), start=2
    ):
        wrong = _wrong(space, row, genotype, evaluation)
        if wrong is None and row["id"] in seen:
            wrong = f"the network {row['id']} stands in line {seen[row['id']]} already"
        if wrong is not None:
            raise InputError(f"the table '{path}', line {number}: {wrong}")
        seen[row["id"]] = number
    if not seen:
        raise InputError(f"the table '{path}' holds no network; record it to the end")
    return table


def _wrong(
    space: SearchSpace, row: Mapping[str, Any], genotype: Genotypes, evaluation: Evaluation
) -> str | None:
    """Return in words what is wrong with a line, if anything."""
    if not math.isfinite(evaluation.ap) or evaluation.ap < 0:
        return f"AP is a number from 0 up, not {evaluation.ap}"
    try:
        arch = space.decode(genotype)
    except InputError as error:
        return str(error)
    if arch.id != row.get("id"):
        return f"the genotype builds {arch.id}, but the line is said to be of {row.get('id')}"
    return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the table '{path}': {reason}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InputError(f"the table '{path}', line {number}: not a JSON object; restore the file")
        yield value
