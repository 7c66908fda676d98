"""What a run can tell at present, read without its lock: what is missing or damaged is said, not raised."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nas.data import Datasets, open_datasets
from nas.drawing import Together, put_together
from nas.known import find_arch, load_result, search_context, try_choose
from nas.run import RunDirectory
from nas.search import SearchResult
from nas.search.result import Record
from nas.trust.standing import Standing, standing
from search_spaces import Arch, InputError, LitePoseNasError, arch_from_json, space_from_config
from search_spaces.files import read_json

__all__ = ["UNREADABLE", "Card", "Facts", "Subject", "gather", "read_rows", "sha256_of"]

UNREADABLE: Final = (
    *(LitePoseNasError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
)
"""What damaged files of a run may raise, whoever reads them."""


@dataclass(frozen=True)
class Card:
    """An emitted network.

    Attributes
    ----------
    folder
        Where it lies.
    arch
        The network.
    values
        What its ``card.json`` says.
    """

    folder: Path
    arch: Arch
    values: Mapping[str, Any]

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a mapping of the card; empty where there is none of that name."""
        found = self.values.get(name)
        return found if isinstance(found, Mapping) else {}

    def rows(self, name: str) -> list[Mapping[str, Any]]:
        """Return a list of mappings of the card, such as its exports; empty where there is none."""
        found = self.values.get(name)
        return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []

    @property
    def date(self) -> str:
        """When it was emitted, UTC."""
        return str(self.part("environment").get("date", ""))


@dataclass(frozen=True)
class Subject:
    """The network that the report is about.

    Attributes
    ----------
    arch
        The network.
    why
        How it came to be shown, in words.
    card
        What was emitted of it, if anything.
    record
        What a study knows of it, if one has looked at it.
    """

    arch: Arch
    why: str
    card: Card | None = None
    record: Record | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that a report tells.

    Attributes
    ----------
    run
        The run.
    environment
        Of its first start.
    metrics, validation
        Rows of its training.
    data
        Its data sets; None where they cannot be opened, and ``problems`` say why.
    joints
        How many keypoints its networks predict; None where nothing says so.
    studies
        Results by name, oldest first.
    shown, marked
        The result whose front is drawn, and the networks marked in it; several studies may be put together.
    own_budgets
        Whether each axis of that front has budgets of its own.
    cards
        What was emitted, oldest first.
    subject
        The network in the middle; None where there is none at all.
    trust
        How far the ranking can be trusted.
    problems
        What could not be read, a line each.
    """

    run: RunDirectory
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    validation: Sequence[Mapping[str, float]]
    data: Datasets | None
    joints: int | None
    studies: Mapping[str, SearchResult]
    shown: SearchResult | None
    marked: Mapping[str, Record]
    own_budgets: bool
    cards: Sequence[Card]
    subject: Subject | None
    trust: Standing
    problems: Sequence[str] = field(default_factory=tuple)


@contextmanager
def _said(problems: list[str], what: str) -> Iterator[None]:
    """Note what goes wrong within, instead of raising it."""
    try:
        yield
    except UNREADABLE as error:
        told = str(error) or type(error).__name__
        problems.append(told if isinstance(error, LitePoseNasError) else f"{what}: {told}")


def gather(
    run: RunDirectory,
    study: str | None = None,
    network: str | None = None,
    tables: Sequence[Path] | None = None,
) -> Facts:
    """Return what a run can tell; a search or a training may be at work on it meanwhile.

    Parameters
    ----------
    run
        The run.
    study
        The study whose front is shown; by default all that can be put together.
    network
        The network in the middle: the name of an emitted folder, the id of a network that was emitted or
        searched, a named arch or an arch file. By default the best chosen; where that is not emitted and no
        study was named, the one emitted last.
    tables
        Further folders of latency tables.

    Raises
    ------
    InputError
        If there is no such study, or no such network.
    """
    problems: list[str] = []
    environment: Mapping[str, Any] = {}
    with _said(problems, "environment.json"):
        found = read_json(run.folder / "environment.json", "environment of the run")
        environment = found if isinstance(found, dict) else {}
    data: Datasets | None = None
    with _said(problems, "the data"):
        data = open_datasets(run.recipe)
    if study is not None:
        load_result(run, study)  # refuses what is not there
    studies: dict[str, SearchResult] = {}
    for name in run.studies():
        with _said(problems, f"study '{name}'"):
            studies[name] = load_result(run, name)
    cards = _cards(run, problems)
    joints = _joints(data, studies, cards)
    together: Together | None = None
    if study is None:
        with _said(problems, "the studies put together"):
            together = put_together(run, list(studies), tables)
    shown: SearchResult | None
    if together is not None:
        shown, marked = together.result, dict(together.chosen)
    else:
        shown, marked = _one_study(studies, study)
    subject = _subject(run, network, study, cards, shown, marked, joints)
    context = {} if shown is None else dict(shown.context)
    if not context and data is not None and run.best.is_file():
        context = search_context(run, data)
    return Facts(
        run=run,
        environment=environment,
        metrics=read_rows(run.folder / "metrics.csv"),
        validation=read_rows(run.folder / "validation.csv"),
        data=data,
        joints=joints,
        studies=studies,
        shown=shown,
        marked=marked,
        own_budgets=together is not None,
        cards=cards,
        subject=subject,
        trust=standing(run.folder, context),
        problems=tuple(dict.fromkeys(problems)),
    )


def _cards(run: RunDirectory, problems: list[str]) -> list[Card]:
    """Return the emitted networks, oldest first; of a damaged card it is noted."""
    cards = []
    for path in sorted((run.folder / "emitted").glob("*/card.json")):
        with _said(problems, f"the card '{path}'"):
            values = read_json(path, "card")
            if not isinstance(values, dict):
                raise InputError(f"card '{path}' is no mapping; 'nas emit' writes it anew")
            cards.append(Card(path.parent, arch_from_json(values["arch"], f"card '{path}'"), values))
    return sorted(cards, key=lambda card: (card.date, card.folder.name))


def _joints(data: Datasets | None, studies: Mapping[str, SearchResult], cards: Sequence[Card]) -> int | None:
    if data is not None:
        return len(data.skeleton)
    told = [result.joints for result in studies.values()]
    told += [len(names) for card in cards if isinstance(names := card.part("skeleton").get("joints"), list)]
    return told[-1] if told else None


def _one_study(
    studies: Mapping[str, SearchResult], study: str | None
) -> tuple[SearchResult | None, dict[str, Record]]:
    """Return one study, the latest that has evaluated anything, and the network chosen in it."""
    evaluated = [name for name, result in studies.items() if result.evaluated and study in (None, name)]
    if not evaluated:
        return None, {}
    result = studies[evaluated[-1]]
    chosen, _ = try_choose(result)
    return result, {} if chosen is None else {"chosen": chosen}


def _subject(
    run: RunDirectory,
    network: str | None,
    study: str | None,
    cards: Sequence[Card],
    shown: SearchResult | None,
    marked: Mapping[str, Record],
    joints: int | None,
) -> Subject | None:
    """Return the network in the middle."""
    records = {} if shown is None else {record.arch.id: record for record in shown.evaluated}
    emitted = {card.folder.name: card for card in cards}
    if network is not None:
        card = emitted.get(network) or next((c for c in reversed(cards) if c.arch.id == network), None)
        arch = find_arch(run, network) if card is None else card.arch
        card = card or next((c for c in reversed(cards) if c.arch == arch), None)
        return Subject(arch, "Shown because it was asked for.", card, records.get(arch.id))
    best = max(marked.values(), key=lambda record: record.require_ap(), default=None)
    chosen = [c for c in cards if best is not None and c.arch == best.arch]
    if chosen or (cards and study is None):
        card = (chosen or list(cards))[-1]
        why = "The network emitted last." if not chosen else "The best network chosen, as it was emitted."
        return Subject(card.arch, why, card, records.get(card.arch.id))
    if best is not None:
        return Subject(best.arch, "The best network chosen; it is not emitted yet.", None, best)
    if shown is None and joints is not None:
        try:
            space = space_from_config(run.recipe.space, "space", joints=joints)
        except LitePoseNasError:
            return None
        return Subject(space.largest(), "Nothing is chosen yet: this is the largest network of the space.")
    return None


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of a table of figures that may be growing; what is no number is left out."""
    rows: list[dict[str, float]] = []
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            for row in csv.DictReader(stream):
                figures = {}
                for name, text in row.items():
                    try:
                        figures[str(name)] = float(text)
                    except (TypeError, ValueError):
                        continue
                if "step" in figures:
                    rows.append(figures)
    except (OSError, csv.Error):
        return rows
    return rows


def sha256_of(path: Path) -> str:
    """Return the SHA-256 digest of a file, hexadecimal; empty where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()
