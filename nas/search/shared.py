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
kill falls in between, the study that goes on finds its own evaluation there and takes it as its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nas.search.evaluator import Evaluation
from search_spaces import Arch
from search_spaces.jsonl import JsonLines, damaged, open_lines

__all__ = ["Account", "SharedEvaluations", "digest_of", "open_shared"]

_HEADER: Final = {"format": 1}


def digest_of(facts: Mapping[str, str]) -> str:
    """Return a short name of what APs rest on: equal for equal facts, on every machine."""
    text = json.dumps(dict(facts), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Known:
    """A network's evaluation and the name of the study that made it."""

    study: str
    evaluation: Evaluation


@dataclass
class SharedEvaluations:
    """The open file; see :func:`open_shared`. Studies use it through an :meth:`account`."""

    lines: JsonLines
    known: dict[tuple[str, str], _Known] = field(default_factory=dict)
    contexts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for number, line in self.lines.records():
            try:
                self._read(line)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise damaged(self.lines.path, number) from None

    def _read(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "context":
            self.contexts.add(str(line["digest"]))
        elif line["kind"] == "evaluation":
            place = (str(line["context"]), str(line["id"]))
            evaluation = Evaluation.from_json(line["evaluation"])
            if self.lacks(place, evaluation):
                self.known[place] = _Known(str(line["study"]), evaluation)
        else:
            raise ValueError(line["kind"])

    def lacks(self, place: tuple[str, str], evaluation: Evaluation) -> bool:
        """Return whether this evaluation tells more than what is known, if anything is."""
        known = self.known.get(place)
        return known is None or (known.evaluation.partial and not evaluation.partial)

    def account(self, study: str, facts: Mapping[str, str]) -> Account:
        """Return the view of one study, whose APs rest on these facts."""
        return Account(self, study, dict(facts), digest_of(facts))


@dataclass(frozen=True)
class Account:
    """What one study takes from the shared evaluations, and gives.

    Attributes
    ----------
    shared
        The file.
    study
        Name of the study, unique among those that share the file.
    facts, digest
        What its APs rest on, and the name of that.
    """

    shared: SharedEvaluations
    study: str
    facts: Mapping[str, str]
    digest: str

    def find(self, arch: Arch) -> Evaluation | None:
        """Return the network's evaluation if one is there, marked as reused unless this study made it.

        It may be partial: of a network that lost against a rival of the study that made it.
        """
        known = self.shared.known.get((self.digest, arch.id))
        return None if known is None else replace(known.evaluation, reused=known.study != self.study)

    def add(self, arch: Arch, evaluation: Evaluation) -> None:
        """Write an evaluation that this study made, unless one that tells as much is there already.

        Raises
        ------
        RunError
            If the disk does not take it.
        """
        place = (self.digest, arch.id)
        if evaluation.reused or not self.shared.lacks(place, evaluation):
            return
        if self.digest not in self.shared.contexts:
            self.shared.lines.write({"kind": "context", "digest": self.digest, "facts": dict(self.facts)})
            self.shared.contexts.add(self.digest)
        value = evaluation.to_json()
        del value["reused"]
        self.shared.lines.write(
            {
                "kind": "evaluation",
                "context": self.digest,
                "id": arch.id,
                "study": self.study,
                "arch": arch.to_json(),
                "evaluation": value,
            }
        )
        self.shared.known[place] = _Known(self.study, evaluation)


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
    with open_lines(path, _HEADER, doing="searching", what="file of evaluations") as lines:
        shared = SharedEvaluations(lines)
        try:
            yield shared
        finally:
            if begun and not shared.known:
                lines.remove()
