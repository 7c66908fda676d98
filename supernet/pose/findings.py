"""Kinds of findings about a data set, and how they are gathered: counted, with the worst examples kept."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final, Literal

__all__ = ["EXAMPLES", "RULES", "Example", "Finding", "Gathered", "Rule", "Severity", "ordered"]

Severity = Literal["error", "warning", "note"]
"""Training or AP would be refused or wrong; worth a look; worth knowing."""
_SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")

EXAMPLES: Final = 12
"""Examples kept of each kind of finding."""


@dataclass(frozen=True)
class Rule:
    """One kind of finding.

    Attributes
    ----------
    severity
        How bad it is.
    field
        The field of the file that it is about, empty for files of images.
    text
        What was found, for people.
    """

    severity: Severity
    field: str
    text: str


def _read_rules() -> Mapping[str, Rule]:
    text = resources.files(__package__).joinpath("check_rules.json").read_text(encoding="utf-8")
    return MappingProxyType({code: Rule(**fields) for code, fields in json.loads(text).items()})


RULES: Final[Mapping[str, Rule]] = _read_rules()
"""Every kind of finding by its code, worst first."""


@dataclass(frozen=True)
class Example:
    """One place where something was found.

    Attributes
    ----------
    text
        What is there, for people; names the image or the annotation, and the value.
    image_id, annotation_id, file_name
        Where, as far as it is known.
    value
        What the field holds, shortened.
    other_id
        The image (of the other data set, where two are compared) that the first is compared with.
    weight
        How bad it is, beside others of its kind.
    """

    text: str
    image_id: int | None = None
    annotation_id: int | None = None
    file_name: str | None = None
    value: str | None = None
    other_id: int | None = None
    weight: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what is known as JSON."""
        named = {
            "image_id": self.image_id,
            "annotation_id": self.annotation_id,
            "file_name": self.file_name,
            "value": self.value,
            "other_image_id": self.other_id,
        }
        return {"text": self.text, **{key: value for key, value in named.items() if value is not None}}


@dataclass(frozen=True)
class Finding:
    """One kind of thing found in a data set.

    Attributes
    ----------
    code
        See :data:`RULES`.
    severity
        As in the rule, or worse where the AP wanted makes it so.
    count
        How often.
    examples
        The worst of them, else the first, at most :data:`EXAMPLES`.
    """

    code: str
    severity: Severity
    count: int
    examples: tuple[Example, ...]

    @property
    def rule(self) -> Rule:
        """What it means."""
        return RULES[self.code]

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "field": self.rule.field,
            "meaning": self.rule.text,
            "examples": [each.to_json() for each in self.examples],
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    codes = list(RULES)
    return tuple(sorted(findings, key=lambda f: (_SEVERITIES.index(f.severity), codes.index(f.code))))


class Gathered:
    """Findings on the way: counts, and the examples worth keeping."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[Example]] = defaultdict(list)

    def add(self, code: str, example: Example, times: int = 1) -> None:
        self._counts[code] += times
        kept = self._examples[code]
        kept.append(example)
        if len(kept) >= 4 * EXAMPLES:
            self._examples[code] = sorted(kept, key=_weight)[:EXAMPLES]

    def has_errors(self) -> bool:
        return any(RULES[code].severity == "error" for code in self._counts)

    def findings(self, worse: frozenset[str] = frozenset()) -> tuple[Finding, ...]:
        return ordered(
            Finding(
                code,
                "error" if code in worse else RULES[code].severity,
                count,
                tuple(sorted(self._examples[code], key=_weight)[:EXAMPLES]),
            )
            for code, count in self._counts.items()
        )


def _weight(example: Example) -> float:
    return -example.weight
