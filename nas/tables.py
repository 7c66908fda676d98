"""``nas tables``: what tables there are, what is in them, whether to believe them; compared and merged.

Nothing here needs torch, except the layers of a recipe or a run that ``validate --for`` asks for.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from typing import Any

from latency_tables.catalogue import TableEntry, catalogue, describe, latest
from latency_tables.compare import Change, Difference, Merged, Ratios, compare_tables, merge_tables
from latency_tables.fit import FitRecord
from latency_tables.holding import held_table
from latency_tables.predictor import is_fitted
from latency_tables.roofline import Roofline
from latency_tables.table import TRUST, Calibration, LatencyTable, csv_path, is_packaged, locate_table
from latency_tables.validate import Finding, validate_table
from nas.console import print_json, print_table, show
from nas.table_folders import given_folders
from search_spaces import InputError, Piece

__all__ = [
    "list_tables",
    "refuse_overwriting",
    "run_diff",
    "run_merge",
    "run_validate",
    "show_table",
]

_FEW_NETWORKS = 19
"""Of fewer, an interval of 90% is as wide as the worst error of a network left out."""
_LISTED = 5
"""Findings of one rule that people are told; the others are counted."""


def clean(value: object) -> str:
    """Return a text as a terminal may show it: what is not printable, such as a newline, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _n(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- list ----------------------------------------------------------------------------------------------------


def list_tables(tables: Sequence[Path] | None, *, as_json: bool) -> None:
    """Carry out ``nas tables list``."""
    folders = given_folders(tables)
    entries = catalogue(folders)
    if as_json:
        print_json({"folders": [str(folder) for folder in folders], "tables": list(map(_entry, entries))})
        return
    if not entries:
        places = ", ".join(f"'{clean(folder)}'" for folder in folders)
        print(f"no latency tables in {places}; 'nas profile' makes one")
        return
    rows = [_line(entry, entry.table) for entry in entries if entry.table is not None]
    if rows:
        columns = ("table", "rows", "error: median, worst", "interval", "measured")
        print_table(_n(len(rows), "latency table"), columns, rows)
    for entry in entries:
        if entry.problem is not None:
            print(clean(f"damaged: {entry.problem}"))
    for entry in entries:
        if entry.hidden:
            print(clean(f"hidden: '{entry.path}', by a table of the same name found before"))


def _entry(entry: TableEntry) -> dict[str, Any]:
    table = entry.table
    found: dict[str, Any] = {
        **{"name": entry.path.stem, "file": str(entry.path)},
        **{"hidden": entry.hidden, "packaged": entry.packaged},
    }
    if table is None:
        return {**found, "damaged": entry.problem}
    return {
        **found,
        "damaged": None,
        "target": table.target.to_dict(),
        "rows": len(table),
        "provenance": {kind: table.provenances.get(kind, 0) for kind in TRUST},
        "calibration": None if table.calibration is None else _error_bar(table.calibration),
        "date": latest(table.sessions),
    }


def _error_bar(calibration: Calibration) -> dict[str, Any]:
    return {
        "networks": calibration.networks,
        "median_error": calibration.median_error,
        "worst_error": calibration.worst_error,
        "interval_factor": exp(calibration.half_width),
        "coverage": calibration.coverage,
    }


def _line(entry: TableEntry, table: LatencyTable) -> list[str]:
    c = table.calibration
    return [
        clean(entry.path.stem),
        _provenances(table),
        "not calibrated" if c is None else f"{c.median_error:.1%}, {c.worst_error:.1%}",
        "-" if c is None else _interval(c),
        "comes with the package" if entry.packaged else latest(table.sessions) or "-",
    ]


def _provenances(table: LatencyTable) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in table.provenances.items())


def _interval(c: Calibration) -> str:
    factor = exp(c.half_width)
    return f"{1 / factor - 1:+.0%} to {factor - 1:+.0%} ({c.coverage:.0%})"


def _roofline(roofline: Roofline) -> str:
    """Return what estimates layers without a row, in one line."""
    factor = exp(roofline.half_width)
    told = ", ".join(f"{value:.4g} {name}" for name, value in roofline.coefficients.items() if value)
    return (
        f"estimated from a roofline fitted on {_n(roofline.samples, roofline.fitted_on.removesuffix('s'))}"
        f" (ms per unit: {told}); error left out {roofline.median_error:.1%} (median), interval"
        f" {1 / factor - 1:+.0%} to {factor - 1:+.0%} ({roofline.coverage:.0%})"
    )


def _fit(fit: FitRecord) -> str:
    """Return how far fitted rows can be believed, in one line."""
    factor = exp(fit.half_width)
    checks = "drawn at random" if fit.random else "most of them chosen, so that of the others it is a guess"
    return (
        f"fitted on {_n(fit.samples, 'measured piece')}; {fit.checks} of them left out in turn, {checks}:"
        f" median error {fit.median_error:.1%}, interval {1 / factor - 1:+.0%} to {factor - 1:+.0%}"
        f" ({fit.coverage:.0%})"
    )


# -- show ----------------------------------------------------------------------------------------------------


def show_table(name: str, tables: Sequence[Path] | None, *, slowest: int, as_json: bool) -> None:
    """Carry out ``nas tables show``."""
    path = locate_table(name, given_folders(tables))
    table = LatencyTable.load(path)
    found = describe(table, slowest)
    if as_json:
        print_json({"file": str(path), "packaged": is_packaged(path), **found})
        return
    target = table.target
    lines = {
        "table": f"{table.name} ({path}{', comes with the package' if is_packaged(path) else ''})",
        "target": f"{target.device}, {target.processor}, {target.runtime} {target.precision},"
        f" {_n(target.threads, 'thread') if target.threads else 'threads not known'}",
        "rows": _provenances(table),
        "sources": ", ".join(f"{source} ({n})" for source, n in list(found["sources"].items())[:_LISTED]),
        "calibration": "none: whole networks are predicted as plain sums of layers",
    }
    if (c := table.calibration) is not None:
        lines["calibration"] = (
            f"{c.a_ms:.3g} ms + {c.b:.3f} x sum of layers, fitted on {c.networks} whole networks; left out in"
            f" turn, their error is {c.median_error:.1%} (median), {c.worst_error:.1%} (worst), against"
            f" {c.raw_error:.1%} of plain sums; interval {_interval(c)}{_support(c)}"
        )
    if (networks := found["networks"]) is not None:
        lines["whole networks"] = _whole(networks)
    if table.fit is not None:
        lines["fitted rows"] = _fit(table.fit)
    if table.roofline is not None:
        lines["other layers"] = _roofline(table.roofline)
    for i, session in enumerate(found["sessions"]):
        lines[f"session {i + 1}"] = _session(session)
    show({key: clean(value) for key, value in lines.items()})
    kinds = [
        (kind["kind"], kind["rows"], f"{kind['sum_ms']:.3f}", f"{kind['share']:.1%}")
        for kind in found["kinds"]
    ]
    print_table(
        f"{found['total_ms']:.3f} ms, each layer once",
        ("kind", "rows", "sum, ms", "share"),
        kinds,
    )
    if found["slowest"]:
        rows = [
            (r["key"], *_times(r), r["runs"], r["provenance"], clean(r["source"])) for r in found["slowest"]
        ]
        columns = ("layer", "median, ms", "p10", "p90", "runs", "provenance", "source")
        print_table(f"the {len(rows)} slowest rows", columns, rows)


def _support(c: Calibration) -> str:
    """Return what the width of a calibration's intervals rests on."""
    few = (
        ", as wide as the worst of their errors: so few support no more" if c.networks < _FEW_NETWORKS else ""
    )
    if c.least_ms is None:
        return few and f", from {c.networks} networks{few}"
    reach = f"of {c.least_ms:.4g} to {c.most_ms:.4g} ms (nothing supports it far beyond)"
    return f", from {c.networks} networks {reach}{few}"


def _whole(networks: Mapping[str, Any]) -> str:
    """Return what the whole networks of a table tell of it, in one line."""
    told = (
        f"{networks['count']} measured, {networks['least_ms']:.4g} to {networks['most_ms']:.4g} ms (median"
        f" {networks['median_ms']:.4g}); p90 is {networks['spread']:.2f} times p10 (worst"
        f" {networks['worst_spread']:.2f})"
    )
    if (worst := networks["worst"]) is not None:
        off = worst["predicted_ms"] / worst["measured_ms"] - 1
        told += (
            f"; predicted worst: {worst['name']}, {worst['predicted_ms']:.4g} instead of"
            f" {worst['measured_ms']:.4g} ms ({off:+.1%})"
        )
    if lacking := networks["count"] - networks["predictable"]:
        told += f"; the rows do not tell {lacking} of them"
    return told


def _times(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['median_ms']:.4f}", f"{row['p10_ms']:.4f}", f"{row['p90_ms']:.4f}"


_STATE = (
    ("load", "load_1min", ""),
    ("governor", "governor", ""),
    ("clock", "mhz", " MHz"),
    ("temperature", "celsius", " °C"),
)


def _session(session: Mapping[str, Any]) -> str:
    """Return what a session tells of its circumstances, in one line; the rest is for ``--json``."""
    if "merged" in session:
        doubts = session.get("doubts")
        doubt = f"; doubt: {'; '.join(map(str, doubts))}" if isinstance(doubts, list) else ""
        return f"{session.get('date', 'no date')}: merged by '{session.get('command', '')}'{doubt}"
    told = [str(session.get("date", "no date"))]
    told.append(f"{session['layers']} layers" if "layers" in session else "")
    told.append(f"runtime version {session['runtime_version']}" if "runtime_version" in session else "")
    told.append(str(session.get("system", "")))
    before, after = (session.get(f"machine_{when}") for when in ("before", "after"))
    before, after = before if isinstance(before, dict) else {}, after if isinstance(after, dict) else {}
    for word, key, unit in _STATE:
        one, other = before.get(key), after.get(key)
        if one is not None or other is not None:
            same = one == other or other is None
            told.append(f"{word} {one}{unit}" if same else f"{word} {one} to {other}{unit}")
    speed = session.get("speed")
    if isinstance(speed, dict) and isinstance(followed := speed.get("exponents"), list):
        told.append(f"the machine's speed of the moment taken out (followed {sum(followed):.0%})")
        told.append("brought to the speed of another session" if "measured_at_ms" in speed else "")
    if isinstance(session.get("drift"), float):
        told.append(f"drift {session['drift']:.1%}{', too much' if session.get('drifted') is True else ''}")
    if session.get("command"):
        told.append(f"'{session['command']}'")
    return ", ".join(filter(None, told))


# -- validate ------------------------------------------------------------------------------------------------


def run_validate(
    names: Sequence[str],
    tables: Sequence[Path] | None,
    *,
    wanted: Sequence[str],
    joints: int,
    as_json: bool,
) -> None:
    """Carry out ``nas tables validate``.

    Raises
    ------
    InputError
        If a table has errors, after all of them were printed; or if something else that was given is wrong.
    """
    folders = given_folders(tables)
    paths = dict.fromkeys(locate_table(name, folders) for name in names)
    needed: tuple[Piece, ...] = ()
    if wanted:
        from nas.latency import work_list

        weights, _, _ = work_list(wanted, joints)
        needed = tuple(weights)
    found = {path: validate_table(path, needed) for path in paths}
    flawed = [path for path, findings in found.items() if _count(findings, "error")]
    if as_json:
        print_json(
            {
                "sound": not flawed,
                "tables": [
                    {
                        "file": str(path),
                        "errors": _count(findings, "error"),
                        "warnings": _count(findings, "warning"),
                        "findings": [finding.to_dict() for finding in findings],
                    }
                    for path, findings in found.items()
                ],
            }
        )
    else:
        for path, findings in found.items():
            _print_findings(path, findings)
    if flawed:
        errors = sum(_count(findings, "error") for findings in found.values())
        raise InputError(
            f"{_n(errors, 'error')} in {len(flawed)} of {len(found)} latency tables"
            f" ({', '.join(clean(path) for path in flawed[:_LISTED])}); they are listed on standard output"
        )


def _count(findings: Iterable[Finding], level: str) -> int:
    return sum(finding.level == level for finding in findings)


def _print_findings(path: Path, findings: Sequence[Finding]) -> None:
    errors, warnings = (_count(findings, level) for level in ("error", "warning"))
    if not findings:
        print(clean(f"{path}: nothing speaks against it"))
        return
    print(clean(f"{path}: {_n(errors, 'error')}, {_n(warnings, 'warning')}"))
    every = Counter((finding.level, finding.rule) for finding in findings)
    told: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        kind = (finding.level, finding.rule)
        told[kind] += 1
        if told[kind] <= _LISTED:
            print(clean(f"  {finding.level}: {_short(finding)}"))
        if told[kind] == every[kind] > _LISTED:
            print(
                f"  {finding.level}: and {every[kind] - _LISTED} more of '{finding.rule}' (--json lists all)"
            )


def _short(finding: Finding) -> str:
    """Return a finding's message below a heading that names the table."""
    named = f"latency table '{finding.file}'", f"latency table metadata '{finding.file}': "
    return finding.message.removeprefix(named[0]).removeprefix(named[1]).lstrip(": ")


# -- diff ----------------------------------------------------------------------------------------------------


def run_diff(first: str, second: str, tables: Sequence[Path] | None, *, most: int, as_json: bool) -> bool:
    """Carry out ``nas tables diff``; return whether both tables say the same."""
    folders = given_folders(tables)
    paths = [locate_table(name, folders) for name in (first, second)]
    found = compare_tables(*map(LatencyTable.load, paths))
    if as_json:
        print_json({"first": str(paths[0]), "second": str(paths[1]), **found.to_dict()})
    elif found.same:
        both = f"{found.common} rows, {_n(found.networks.common, 'whole network')}"
        print(clean(f"'{paths[0]}' and '{paths[1]}' are the same: {both}"))
    else:
        _print_difference(paths, found, most)
    return found.same


def _print_difference(paths: Sequence[Path], found: Difference, most: int) -> None:
    if not found.comparable:
        told = ", ".join(f"{name} '{a}' and '{b}'" for name, (a, b) in found.target.items())
        print(clean(f"the targets differ, so the times are not comparable: {told}"))
    lines = {
        "first": paths[0],
        "second": paths[1],
        "rows in both": _counts(found.common, found.changes, found.beyond),
        "only in first": _some([layer.key for layer in found.only_first]),
        "only in second": _some([layer.key for layer in found.only_second]),
    }
    if found.ratios is not None:
        lines["second / first"] = _spread(found.ratios, "the rows in both")
    whole = found.networks
    if whole.common or whole.only_first or whole.only_second:
        lines |= {
            "networks in both": _counts(whole.common, whole.changes, whole.beyond),
            "networks only in first": _some(whole.only_first),
            "networks only in second": _some(whole.only_second),
        }
    if whole.ratios is not None:
        lines["networks, second / first"] = _spread(whole.ratios, "the networks in both")
    if found.predicted is not None:
        lines["predictions, second / first"] = _spread(found.predicted, "the networks of either")
    show({key: clean(value) for key, value in lines.items()})
    if found.metadata:
        print_table(
            "metadata",
            ("key", "first", "second"),
            [(clean(key), clean(a), clean(b)) for key, (a, b) in found.metadata.items()],
        )
    for what, column, every in (("rows", "layer", found.beyond), ("networks", "network", whole.beyond)):
        if beyond := every[:most]:
            rows = [(c.key, _span(c.first), _span(c.second), f"{c.ratio:.3f}") for c in beyond]
            title = f"{len(beyond)} of {len(every)} {what} that differ beyond their intervals"
            print_table(title, (column, "first, ms", "second, ms", "second / first"), rows)


def _counts(common: int, changes: Sequence[Change], beyond: Sequence[Change]) -> str:
    equal, within = common - len(changes), len(changes) - len(beyond)
    return f"{common}; {equal} equal, {within} within their intervals, {len(beyond)} beyond"


def _spread(ratios: Ratios, of: str) -> str:
    low, middle, high = ratios
    return f"median {middle:.3f}, p10 {low:.3f}, p90 {high:.3f} of {of}"


def _span(row: Any) -> str:
    return f"{row.median_ms:.4f} ({row.p10_ms:.4f} to {row.p90_ms:.4f})"


def _some(names: Sequence[str]) -> str:
    named = ", ".join(names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)}{': ' if names else ''}{named}{more}"


# -- merge ---------------------------------------------------------------------------------------------------


def run_merge(
    names: Sequence[str], output: Path, tables: Sequence[Path] | None, *, force: bool, as_json: bool
) -> None:
    """Carry out ``nas tables merge``.

    Raises
    ------
    InputError
        If fewer than two tables are given, their targets differ, or the result would overwrite something.
    """
    if len(names) < 2:
        raise InputError(f"merging takes at least two tables, not '{names[0]}' alone")
    folders = given_folders(tables)
    paths = [locate_table(name, folders) for name in names]
    for i, path in enumerate(paths):
        if _same(path, paths[:i]):
            raise InputError(f"'{path}' is named twice; merging takes different tables")
    loaded = [LatencyTable.load(path) for path in paths]
    path = output / f"{loaded[0].name}.csv" if output.is_dir() else csv_path(output)
    refuse_overwriting(path, force, paths)
    called = [str(path) for path in paths]
    found = merge_tables(loaded, called)
    with held_table(path):
        refuse_overwriting(path, force, paths)  # it may be there since
        if _same(path, paths):  # it may have changed until now
            loaded = [LatencyTable.load(each) for each in paths]
            found = merge_tables(loaded, called)
        record = _merge_record(paths, loaded, found)
        table = replace(found.table, sessions=(*found.table.sessions, record))
        table.save(path)
    dropped, rooflines = ([str(paths[i]) for i in of] for of in (found.dropped, found.rooflines_dropped))
    if as_json:
        print_json(
            {
                "table": str(path),
                "rows": len(table),
                "provenance": dict(table.provenances),
                "sources": record["merged"],
                "fitted": record["fitted"],
                "networks": len(table.networks),
                "calibration": None if table.calibration is None else _error_bar(table.calibration),
                "uncalibrated": found.uncalibrated or None,
                "calibrations_dropped": dropped,
                "rooflines_dropped": rooflines,
                "doubts": list(found.doubts),
            }
        )
        return
    lines = {"table": str(path), "rows": _provenances(table)}
    for source in record["merged"]:
        first = ", first where nothing else decides" if source["rank"] == 0 else ""
        lines[f"from {source['table']}"] = (
            f"{source['taken']} of {_n(source['rows'], 'row')} that are not fitted,"
            f" {source['networks_taken']} of {_n(source['networks'], 'whole network')}{first}"
            f"{_brought(source.get('brought'))}"
        )
    if found.outdated:
        lines["fitted"] = (
            f"{found.refitted} rows, anew on what is measured in all of them;"
            f" {_n(found.outdated, 'fitted row')} of the tables left out"
        )
    if (c := table.calibration) is not None:
        lines["calibration"] = (
            f"fitted anew on {c.networks} whole networks: left out in turn, their error is"
            f" {c.median_error:.1%} (median), {c.worst_error:.1%} (worst); interval {_interval(c)}"
        )
    else:
        lines["calibration"] = f"none: {found.uncalibrated}"
    show({clean(key): clean(value) for key, value in lines.items()})
    if dropped:
        renamed = "" if path.stem == table.name else f", once it is called {table.name},"
        print(
            clean(
                f"the calibration of {', '.join(dropped)} was dropped: it was fitted on other rows;"
                f" 'nas profile' into this table's folder{renamed} measures whole networks for a new one"
            )
        )
    if rooflines:
        print(clean(f"the roofline of {', '.join(rooflines)} was dropped: it was fitted on other rows"))
    if found.unfitted:
        print(f"{_n(found.unfitted, 'fitted row')} dropped: what is measured does not tell them any more")
    for doubt in found.doubts:
        print(clean(f"doubt: {doubt}"))


def refuse_overwriting(path: Path, force: bool, tables: Sequence[Path] = ()) -> None:
    """Refuse to write a table where one of its files is already.

    Raises
    ------
    InputError
        Naming the file; ``tables`` are those that are read for it.
    """
    for file in () if force else (path, path.with_suffix(".yaml")):
        if file.exists():
            role = "is one of the tables to merge" if _same(path, tables) else "exists already"
            raise InputError(f"'{file}' {role}; choose another --output, or overwrite it with --force")


def _merge_record(paths: Sequence[Path], loaded: Sequence[LatencyTable], found: Merged) -> dict[str, Any]:
    """Return what the merged table keeps of how it was made, as a session."""
    each = zip(paths, loaded, found.taken, found.networks_taken, found.ranks, strict=True)
    entries = []
    for i, (path, table, taken, networks, rank) in enumerate(each):
        entry: dict[str, Any] = {
            "table": str(path),
            "rows": sum(not is_fitted(row) for row in table.rows.values()),
            "taken": taken,
            "networks": len(table.networks),
            "networks_taken": networks,
            "rank": rank,
        }
        if i in found.brought:
            entry["brought"] = {what: round(by, 5) for what, by in asdict(found.brought[i]).items()}
        if not taken + networks:  # its circumstances are those of nothing that is here
            entry["sessions"] = [
                {key: session[key] for key in _KEPT if _is_plain(session.get(key))}
                for session in table.sessions
                if "merged" not in session
            ]
        entries.append(entry)
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["nas", *sys.argv[1:]]),
        "merged": entries,
        "fitted": {"left_out": found.outdated, "anew": found.refitted, "dropped": found.unfitted},
        "calibration": found.uncalibrated or f"fitted anew on {len(found.table.networks)} whole networks",
    }
    return {**record, "doubts": list(found.doubts)} if found.doubts else record


_KEPT = (
    "date",
    "command",
    "runtime_version",
    "processor",
    "system",
    "canary",
    "canary_ms",
    "drift",
    "drifted",
)
"""What a merged table keeps of the sessions of a table that gave it nothing."""


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _brought(by: Mapping[str, float] | None) -> str:
    """Return what a merge multiplied a table's times by, in words."""
    if by is None:
        return ""
    return (
        f"; brought to the first one's speed, as their canaries tell it: rows times {by['rows']:.3f},"
        f" whole networks times {by['networks']:.3f}"
    )


def _same(path: Path, paths: Iterable[Path]) -> bool:
    return any(each.resolve() == path.resolve() for each in paths)
