"""The interface behind which the dear part of the search lies: measuring a candidate's AP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast

from search_spaces import Arch, RunError


@dataclass(frozen=True)
class Evaluation:
    """What evaluating one arch gave.

    Attributes
    ----------
    ap
        Average precision, higher is better; at least 0.
    stats
        Further finite numbers worth keeping (AP50, AR, ...).
    seconds
        Wall-clock time that it took.
    partial
        Whether it ended early, since a rival was sure to be better: ``ap`` is then an estimate.
    deviation
        Standard error of that estimate; 0 where the AP was measured on all images.
    looks
        The AP on resamples of the first images by look, each packed as ``resamples``; the AP on the images
        themselves is in ``stats`` under the same name. Other networks are held against it by them; empty
        where the evaluator does not end early.
    resamples
        The AP on resamples of the images, see :func:`nas.search.noise.pack`; empty where it is not known. It
        tells noise from differences and guides no search.
    reused
        Whether it was taken from another study (see :mod:`nas.search.shared`); ``seconds`` are then those
        that it took there.
    """

    ap: float
    stats: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    partial: bool = False
    resamples: str = ""
    reused: bool = False
    deviation: float = 0.0
    looks: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON-able mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evaluation:
        """Return what :meth:`to_json` described."""
        return cls(  # older studies lack some fields
            float(value["ap"]),
            dict(value["stats"]),
            float(value["seconds"]),
            partial=bool(value.get("partial", False)),
            resamples=str(value.get("resamples", "")),
            reused=bool(value.get("reused", False)),
            deviation=float(value.get("deviation", 0.0)),
            looks={str(name): str(text) for name, text in value.get("looks", {}).items()},
        )


class Evaluator(Protocol):
    """Measures archs. It must give the same AP for the same arch, whatever was evaluated before.

    To run on Ray an evaluator must be picklable.
    """

    def evaluate(self, arch: Arch) -> Evaluation:
        """Return the arch's AP (and what else was measured)."""
        ...


class StoppingEvaluator(Evaluator, Protocol):
    """An evaluator that can end early: what a search with ``early_stop`` needs."""

    @property
    def rule(self) -> str:
        """When it ends early, in a few words; evaluators of different rules share no evaluation."""
        ...

    def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
        """Return the arch's AP, or an estimate once it is sure to be below its rival's.

        Parameters
        ----------
        arch
            What is evaluated.
        rival
            What evaluating a network that costs no more gave.
        """
        ...

    def against(self, evaluation: Evaluation, rival: Evaluation | None) -> Evaluation | None:
        """Return what :meth:`evaluate` would return for a network of which an evaluation is known.

        It was made against another rival, or against none. None where it does not tell: it ended early, but
        would have gone on against this rival.
        """
        ...


def evaluated(evaluator: Evaluator, arch: Arch, rival: Evaluation | None) -> Evaluation:
    """Return what the evaluator says; only one that can end early is ever given a rival."""
    if rival is None:
        return evaluator.evaluate(arch)
    return cast(StoppingEvaluator, evaluator).evaluate(arch, rival)


def checked(arch: Arch, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation after checking that its numbers can be compared and stored.

    Raises
    ------
    RunError
        If AP is negative (COCO's evaluation gives -1 where there is nothing to find), or a number is not
        finite.
    """
    if not math.isfinite(evaluation.ap) or evaluation.ap < 0:
        raise RunError(
            f"evaluating {arch.id} gave AP {evaluation.ap}, but AP is a number from 0 up; check that the"
            " evaluation split has annotated people and that the supernet's weights are finite"
        )
    numbers = {**evaluation.stats, "seconds": evaluation.seconds, "deviation": evaluation.deviation}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise RunError(f"evaluating {arch.id} gave {name} = {value}, which is not a finite number")
    return replace(
        evaluation,
        ap=float(evaluation.ap),
        stats={str(name): float(value) for name, value in evaluation.stats.items()},
        seconds=float(evaluation.seconds),
        deviation=float(evaluation.deviation),
        reused=False,
    )
