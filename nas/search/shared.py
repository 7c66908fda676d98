"""AP evaluations that all studies of a run share: none is made twice, whatever budget it was made for.

An AP belongs to what it rests on (weights, images, settings of the evaluation), not to the budget of the
study that asked for it. So every evaluation goes into one file, under a digest of those facts and the
network's id, and a study looks there before it evaluates.

A study must find the same networks whether it takes an evaluation or makes it: the same seed gives the same
candidates, and a search that was killed ends as if it had not been, whatever other studies did meanwhile.
What is taken therefore counts among a study's trials like what is made. And a study that stops evaluations
early holds what it takes against its own rival, look by look, as if it had made it: what was evaluated to the
end may turn out a loser here, and what was stopped elsewhere is made anew where it would have gone on.

The file grows by one line per evaluation, which is handed to the system before the study notes it. Where a
kill falls in between, the study that goes on finds its own evaluation there and takes it as its own. Which
are its own is told by an identifier that a study gets when it begins, not by its name: where a study was
deleted and another has begun under its name, what the first one made is another's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nas.context import placeless
from nas.search.evaluator import Evaluation
from search_spaces import Arch
from search_spaces.jsonl import JsonLines, damaged, open_lines, read_records

__all__ = ["EARLY_STOP", "Account", "Made", "SharedEvaluations", "digest_of", "open_shared", "read_shared"]

EARLY_STOP: Final = "early stop"
"""A fact beside those that APs rest on: evaluations that could be stopped keep more figures, in which others
are held against them. Their APs are those of evaluations that could not."""

_HEADER: Final = {"format": 1}
_WHAT: Final = "file of evaluations"


def digest_of(facts: Mapping[str, str]) -> str:
    """Return a short name of what APs rest on: equal for equal facts, on every machine."""
    text = json.dumps(dict(facts), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Made:
    """A network's evaluation and who made it.

    Attributes
    ----------
    study, maker
        Name of the study, and the identifier that it got when it began; lines from before there were such
        have the name for both.
    arch
        The network, as JSON has it (:func:`search_spaces.arch_from_json`).
    evaluation
        Not reused; partial where the network lost against a rival of that study.
    """

    study: str
    maker: str
    arch: Mapping[str, Any]
    evaluation: Evaluation


@dataclass
class _Contents:
    """What the lines of a file say: the evaluations by (context, network), the contexts by their digests.

    ``names`` holds the digests by those in the file, which older contexts with places in them were given.
    """

    known: dict[tuple[str, str], Made] = field(default_factory=dict)
    contexts: dict[str, dict[str, str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def read(self, path: Path, lines: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Take in numbered lines.

        Raises
        ------
        RunError
            If one is damaged.
        """
        for number, line in lines:
            try:
                self._read(line)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
                raise damaged(path, number) from None

    def _read(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "context":
            facts = placeless({str(k): str(v) for k, v in line["facts"].items()})
            self.names[str(line["digest"])] = digest_of(facts)
            self.contexts[digest_of(facts)] = facts
        elif line["kind"] == "evaluation":
            digest = str(line["context"])
            study, place = str(line["study"]), (self.names.get(digest, digest), str(line["id"]))
            evaluation = Evaluation.from_json(line["evaluation"])
            made = Made(study, str(line.get("maker", study)), dict(line["arch"]), evaluation)
            if self.lacks(place, evaluation):
                self.known[place] = made
        else:
            raise ValueError(line["kind"])

    def lacks(self, place: tuple[str, str], evaluation: Evaluation) -> bool:
        """Return whether this evaluation tells more than what is known, if anything is."""
        known = self.known.get(place)
        return known is None or (known.evaluation.partial and not evaluation.partial)


def read_shared(path: Path) -> list[tuple[Mapping[str, str], Made]]:
    """Return every evaluation in the file at ``path`` with what it rests on, in the order made; hold nothing.

    A search may be writing it meanwhile. No file is an empty one.

    Raises
    ------
    RunError
        If a line is damaged, or the file is of another format.
    """
    contents = _Contents()
    if path.exists():
        contents.read(path, read_records(path, _HEADER, _WHAT))
    return [(contents.contexts.get(digest, {}), made) for (digest, _), made in contents.known.items()]


@dataclass
class SharedEvaluations:
    """The open file; see :func:`open_shared`. Studies use it through an :meth:`account`."""

    lines: JsonLines
    contents: _Contents = field(default_factory=_Contents)

    def __post_init__(self) -> None:
        self.contents.read(self.lines.path, self.lines.records())

    @property
    def known(self) -> dict[tuple[str, str], Made]:
        """The evaluations, by the digest of what they rest on and the network's id."""
        return self.contents.known

    def account(self, study: str, facts: Mapping[str, str], maker: str | None = None) -> Account:
        """Return the view of one study, whose APs rest on these facts; ``maker`` as in :class:`Account`."""
        return Account(self, study, maker or study, dict(facts), digest_of(facts))


@dataclass(frozen=True)
class Account:
    """What one study takes from the shared evaluations, and gives.

    Attributes
    ----------
    shared
        The file.
    study
        Name of the study.
    maker
        What tells it from every other study that ever had its name; by default the name.
    facts, digest
        What its APs rest on, and the name of that.
    """

    shared: SharedEvaluations
    study: str
    maker: str
    facts: Mapping[str, str]
    digest: str

    def find(self, arch: Arch) -> Evaluation | None:
        """Return the network's evaluation if one is there, marked as reused unless this study made it.

        It may be partial: of a network that lost against a rival of the study that made it.
        """
        known = self.shared.known.get((self.digest, arch.id))
        if known is None:
            return None
        return replace(known.evaluation, reused=known.maker != self.maker)

    def add(self, arch: Arch, evaluation: Evaluation) -> None:
        """Write an evaluation that this study made, unless one that tells as much is there already.

        Raises
        ------
        RunError
            If the disk does not take it.
        """
        place = (self.digest, arch.id)
        if evaluation.reused or not self.shared.contents.lacks(place, evaluation):
            return
        contexts = self.shared.contents.contexts
        if self.digest not in contexts:
            self.shared.lines.write({"kind": "context", "digest": self.digest, "facts": dict(self.facts)})
            contexts[self.digest] = dict(self.facts)
        value = evaluation.to_json()
        del value["reused"]
        self.shared.lines.write(
            {
                "kind": "evaluation",
                "context": self.digest,
                "id": arch.id,
                "study": self.study,
                "maker": self.maker,
                "arch": arch.to_json(),
                "evaluation": value,
            }
        )
        self.shared.known[place] = Made(self.study, self.maker, arch.to_json(), evaluation)


@contextmanager
def open_shared(path: Path) -> Iterator[SharedEvaluations]:
    """Open the file of shared evaluations at ``path``, or begin one; one process at a time holds it.

    A file that was begun and got no evaluation is removed again.

    Raises
    ------
    RunError
        If another process holds it, a line of it is damaged, or it cannot be written. A last line that a kill
        has cut short is no damage: it is removed, and its evaluation is made again.
    """
    begun = not path.exists()
    with open_lines(path, _HEADER, doing="searching", what=_WHAT) as lines:
        shared = SharedEvaluations(lines)
        try:
            yield shared
        finally:
            if begun and not shared.known:
                lines.remove()
