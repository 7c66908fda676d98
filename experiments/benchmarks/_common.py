"""What every side-by-side benchmark shares: timing in turn, checking that both ways agree, recording.

A benchmark is a list of :class:`Case`; :func:`main` times and tells them. The baseline and ours run in turn
within each repeat, the ratio is taken per repeat, and medians over the repeats are told. Before anything is
timed both run once, untimed, and what they return must agree, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from latency_tables.machine import processor_name
from nas.console import print_table
from search_spaces import LitePoseNasError
from search_spaces.files import write_json, write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ("case", "baseline (ms)", "ours (ms)", "ratio", "CPU / wall")


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes
    ----------
    name
        What is timed.
    baseline, ours
        The two ways; each does ``items`` pieces of the same work.
    agree
        Given what both returned: None, or in words how they disagree.
    items
        Pieces of work per call; times are told per piece.
    """

    name: str
    baseline: Callable[[], Any]
    ours: Callable[[], Any]
    agree: Callable[[Any, Any], str | None]
    items: int = 1


def finish(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and exit with its code; with 2 and one line on a mistake of the user's."""
    try:
        code = main()
    except LitePoseNasError as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    packages = ("numpy", "torch", "opencv-python-headless", "scipy", "faster-coco-eval", "litepose-nas")
    return {
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds of wall clock and of processor time that a call took."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": _short(statistics.median(values)), "all": [*map(_short, values)]}


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Return the figures of one case: milliseconds per piece both ways, and how many times faster ours is.

    Raises
    ------
    SystemExit
        If the two ways disagree.
    """
    wrong = case.agree(case.baseline(), case.ours())
    if wrong is not None:
        raise SystemExit(f"{case.name}: the two ways disagree: {wrong}")
    slow, quick, threads = [], [], []
    for _ in range(repeats):
        slow.append(_timed(case.baseline)[0])
        wall, cpu = _timed(case.ours)
        quick.append(wall)
        threads.append(cpu / wall)
    return {
        "items": case.items,
        "baseline_ms": _spread([1e3 * each / case.items for each in slow]),
        "ours_ms": _spread([1e3 * each / case.items for each in quick]),
        "ratio": _spread([a / b for a, b in zip(slow, quick, strict=True)]),
        "cpu_per_wall": _spread(threads),
    }


def rows_of(report: dict[str, Any]) -> list[Sequence[str]]:
    """Return the table's rows: medians, and the range of the ratios."""
    rows: list[Sequence[str]] = []
    for name, figures in report["cases"].items():
        ratio = figures["ratio"]
        rows.append(
            (
                name,
                f"{figures['baseline_ms']['median']:.3g}",
                f"{figures['ours_ms']['median']:.3g}",
                f"{ratio['median']:.3g} ({min(ratio['all']):.3g} to {max(ratio['all']):.3g})",
                f"{figures['cpu_per_wall']['median']:.2f}",
            )
        )
    return rows


def markdown(report: dict[str, Any], heading: str, notes: Sequence[str]) -> str:
    """Return the record for people."""
    where = report["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in list(where)[4:])
    lines = [
        f"# {heading}",
        "",
        f"{report['title']}; medians of {report['repeats']} repeats.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *("| " + " | ".join(row) + " |" for row in rows_of(report)),
        "",
        *(line for note in notes for line in (note, "")),
        "Both ways run in turn within each repeat, after one untimed run whose results must agree. *Ratio*:"
        " baseline over ours, median (least to most). *CPU / wall* tells how many cores ours kept busy.",
        "",
        f"Machine: {where['processor']}, {where['cpus']} logical processors, {where['system']};"
        f" Python {where['python']}, {versions}; {report['date']}.",
        "",
        f"Command: `{report['command']}`",
    ]
    return "\n".join(lines) + "\n"


def record_page(
    heading: str,
    before: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    after: Sequence[str],
    report: Mapping[str, Any],
) -> str:
    """Return the record of an experiment for people: a table between paragraphs.

    ``report`` tells ``machine``, ``date`` and ``command``, and ``threads`` where that matters.
    """
    where = report["machine"]
    threads = f" {report['threads']} thread(s)," if "threads" in report else ""
    lines = [
        *(f"# {heading}", "", before, ""),
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(line for paragraph in after for line in (paragraph, "")),
        f"Machine: {where['processor']}, {where['cpus']} logical processors,{threads} {where['system']};"
        f" Python {where['python']}, torch {where['torch']}; {report['date']}.",
        "",
        f"Command: `{report['command']}`",
    ]
    return "\n".join(lines) + "\n"


def parser(name: str, description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; a benchmark adds its own."""
    made = argparse.ArgumentParser(prog=f"python experiments/benchmarks/{name}.py", description=description)
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--record", action="store_true", help="write the results as JSON and as a page")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return made


def command(options: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """Return what measures the same again: every option that is not the default, folders by their name."""
    words = [options.prog]
    for name, value in vars(given).items():
        if name in ("record", "results") or value == options.get_default(name):
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *(v.name if isinstance(v, Path) else str(v) for v in values)]
    return " ".join(words)


def record(given: argparse.Namespace, name: str, report: Mapping[str, Any], page: str) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into ``given.results``, and say so."""
    write_json(given.results / f"{name}.json", report)
    write_text(given.results / f"{name}.md", page)
    print(f"recorded in {given.results / name}.json and .md")


def tell(
    name: str,
    heading: str,
    title: str,
    cases: Sequence[Case],
    options: argparse.ArgumentParser,
    given: argparse.Namespace,
    notes: Sequence[str] = (),
    further: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time the cases, print the table and, with ``--record``, write ``NAME.json`` and ``NAME.md``.

    Parameters
    ----------
    name, heading, title
        The files' name; the page's heading; in a line what was measured on what.
    cases
        What is compared.
    options, given
        The parser, and what it read.
    notes
        Paragraphs under the table: what baseline and ours are.
    further
        Added to the JSON.
    """
    if given.repeats < 1:
        options.error("--repeats is at least 1")
    report = {
        "benchmark": name,
        "title": title,
        "repeats": given.repeats,
        "cases": {case.name: measure(case, given.repeats) for case in cases},
        **(further or {}),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": command(options, given),
    }
    print_table(title, COLUMNS, rows_of(report))
    if given.record:
        record(given, name, report, markdown(report, heading, notes))
    return report
