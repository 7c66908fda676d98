"""Measure several hundred networks of a trained supernet once, as a table that searches can be tried on.

Networks are drawn over the whole range of MACs: the smallest, the largest, and one at random from each of
equal steps of log MACs between them. Each is scored as a search scores it, on the run's search images. Every
AP is kept as soon as it is there; the same command goes on where it was stopped. When all are measured, the
table is written to ``NAME.jsonl.gz`` (its format: ``nas/search/tabular.py``), and
``experiments/benchmarks/search.py`` finds it.

With ``--space`` the table is of a part of the run's space; a part that is small enough can be measured whole
(``--networks all``), so that a search's every proposal has its own answer.

Run: python experiments/tabular.py RUN [--networks 400] [--space multipliers=[1,0.5] ...] [--name NAME]
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from nas.config import apply_overrides
from nas.console import progress_bar
from nas.data import open_datasets
from nas.known import search_context
from nas.run import RunDirectory
from nas.search import Evaluation, Evaluator, Pricing
from nas.search.tabular import Table, header_of, read_table, row_of, write_table
from nas.searching import SearchEvaluator
from nas.train import make_evaluator, open_supernet
from search_spaces import Genotypes, InputError, RunError, SearchSpace, space_from_config
from search_spaces.jsonl import JsonLines, open_lines

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine  # noqa: E402

POOL = 2**20
"""From so many random networks the sample is drawn where the space is too large to be listed."""

PATHS = re.compile(r"(?:/[^/\s,'\"]+)+/(?=[^/\s,'\"])")
"""The folders of an absolute path."""


def stratified(space: SearchSpace, n: int, seed: int) -> Genotypes:
    """Return ``n`` distinct networks spread over log MACs, shape (n, genes), in random order.

    The smallest and the largest network are among them. Steps without a network of their own, at the ends of
    the range, leave their share to networks drawn from the whole space.

    Raises
    ------
    InputError
        If the space has fewer networks.
    """
    if not 2 <= n <= space.count():
        raise InputError(f"--networks lies in 2..{space.count()} for this space, not {n}")
    rng = np.random.default_rng(seed)
    exact = Pricing(space).exact
    pool = space.genotypes() if exact else np.unique(space.sample_genotypes(rng, POOL), axis=0)
    ends = np.stack([space.encode(space.smallest()), space.encode(space.largest())])
    pool = pool[(pool[:, None] != ends).any(axis=2).all(axis=1)]
    logs, (low, high) = np.log(space.costs(pool).macs), np.log(space.costs(ends).macs)
    order = rng.permutation(len(pool))
    step = np.clip(((logs[order] - low) / (high - low) * (n - 2)).astype(np.int64), 0, max(n - 3, 0))
    _, first = np.unique(step, return_index=True)
    first = first[: n - 2]
    others = np.setdiff1d(np.arange(len(order)), first)[: n - 2 - len(first)]
    chosen = np.concatenate([ends, pool[order[np.concatenate([first, others])]]])
    return np.asarray(rng.permutation(chosen))


def part_of(space: SearchSpace, config: dict[str, object], changes: list[str]) -> SearchSpace:
    """Return the part of a space that its configuration describes with some settings changed.

    Raises
    ------
    InputError
        If it is no part: a choice has a value there that it has not in the space.
    """
    part = space_from_config(apply_overrides(config, changes), "--space", space.joints)
    for own, whole in zip(part.choices, space.choices, strict=True):
        if strange := [value for value in own.values if value not in whole.values]:
            raise InputError(
                f"--space: '{own.name}' would be {strange}, but the run's space has {list(whole.values)}"
            )
    return part


def drawn(space: SearchSpace, networks: str, seed: int) -> Genotypes:
    """Return a sample, or the whole space in its order: networks that begin alike follow each other."""
    if networks == "all":
        return space.genotypes()
    if not networks.isdecimal():
        raise InputError(f"--networks is a number or 'all', not '{networks}'")
    return stratified(space, int(networks), seed)


def measured(lines: JsonLines) -> dict[str, Evaluation]:
    """Return what is measured already, by the id of the network."""
    return {
        str(row["id"]): Evaluation(float(row["ap"]), dict(row["stats"]), float(row["seconds"]))
        for _, row in lines.records()
    }


def missing(space: SearchSpace, genotypes: Genotypes, known: dict[str, Evaluation]) -> Iterator[Genotypes]:
    """Yield the networks that are not measured yet."""
    for genotype in genotypes:
        if space.decode(genotype).id not in known:
            yield genotype


def record(
    path: Path, name: str, space: SearchSpace, genotypes: Genotypes, context: dict[str, str],
    settings: dict[str, object], evaluator: Evaluator,
) -> Table:  # fmt: skip
    """Measure what is missing, one after the other, and write the table; return it."""
    header = header_of(name, space, context, settings)
    journal = path.with_name(f"{name}.jsonl")
    with open_lines(journal, header, doing="recording", what="table") as lines:
        known = measured(lines)
        with progress_bar("networks", len(genotypes)) as bar:
            bar.update(len(known))
            for genotype in missing(space, genotypes, dict(known)):
                arch = space.decode(genotype)
                known[arch.id] = evaluator.evaluate(arch)
                lines.write(row_of(space, genotype, known[arch.id]))
                bar.update(len(known))
        evaluations = tuple(known[space.decode(genotype).id] for genotype in genotypes)
        about = {**settings, "machine": machine(), "date": datetime.now(UTC).date().isoformat()}
        write_table(path, Table(name, space, context, about, genotypes, evaluations))
        lines.remove()
    return read_table(path)


def main() -> None:
    """Record a table."""
    options = argparse.ArgumentParser(prog="python experiments/tabular.py", description=__doc__)
    options.add_argument("run", type=Path, help="a run directory with a trained supernet")
    options.add_argument("--networks", default="400", help="how many, or 'all' (default: %(default)s)")
    options.add_argument(
        "--space", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the recipe's space, changed"
    )
    options.add_argument("--seed", type=int, default=0, help="draws the networks")
    options.add_argument("--name", help="of the table (default: the recipe's name)")
    options.add_argument("--results", type=Path, default=RESULTS / "tabular", help="folder of the table")
    given = options.parse_args()
    run = RunDirectory.open(given.run)
    name = given.name or run.recipe.name
    path = given.results / f"{name}.jsonl.gz"
    if path.exists():
        raise RunError(f"'{path}' is recorded already; delete it, or take another --name")
    with run.locked():
        data = open_datasets(run.recipe)
        whole = run.recipe.build_space(data.skeleton)
        space = part_of(whole, run.recipe.space, given.space)
        genotypes = drawn(space, given.networks, given.seed)
        evaluator = make_evaluator(run, data, open_supernet(run, whole), fixed=True)
        try:
            settings: dict[str, object] = {
                "command": f"python experiments/tabular.py RUN --networks {given.networks}"
                f" --seed {given.seed} --name {name}"
                + (" --space " + shlex.join(given.space) if given.space else ""),
                "recipe": hashlib.sha256(str(run.recipe.to_plain()).encode()).hexdigest()[:12],
            }
            # A table travels: of paths the last part is enough, and digests tell files apart.
            context = {key: PATHS.sub("", value) for key, value in search_context(run, data).items()}
            table = record(path, name, space, genotypes, context, settings, SearchEvaluator(evaluator))
        finally:
            evaluator.close()
    aps, seconds = table.aps, sum(each.seconds for each in table.evaluations)
    print(
        f"{len(aps)} networks of {space.costs(genotypes).macs.min() / 1e9:.3g} to"
        f" {space.costs(genotypes).macs.max() / 1e9:.3g} GMACs, AP {aps.min():.4f} to {aps.max():.4f},"
        f" {seconds / len(aps):.2f} s each: {path.name}"
    )


if __name__ == "__main__":
    finish(main)
