"""Which layers of a network may compute in 8 bits: measured one by one, and chosen by what was measured.

Every model that is tried is told by the layers that it keeps in float. What was measured of it goes into a
journal, so that a killed measurement goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import InputError
from search_spaces.jsonl import JsonLines, damaged
from supernet.quantise import LayerNodes, OnnxMaps, Quantiser, open_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["GROUPINGS", "Choice", "Probe", "Sensitivity", "Trials", "Unit", "choose", "kinds_of", "units_of"]

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called as ``progress(models done, models in all)``."""
GROUPINGS: Final = ("layer", "block")
_PRUNED: Final = 8
"""Layers or blocks that :func:`choose` tries to do without after all."""


@dataclass(frozen=True)
class Unit:
    """Layers that compute in 8 bits or in float together: one layer, or a block of them.

    Attributes
    ----------
    name
        The layer's or the block's.
    layers
        Names of the layers.
    macs
        Multiply-accumulates of one image.
    """

    name: str
    layers: tuple[str, ...]
    macs: int


def units_of(layers: Iterable[str], macs: Mapping[str, int], by: str = "layer") -> tuple[Unit, ...]:
    """Return a network's units in the order in which they run, by layer or by block.

    Raises
    ------
    InputError
        If ``by`` is neither.
    """
    if by not in GROUPINGS:
        raise InputError(f"layers are kept in float by {' or '.join(GROUPINGS)}, not by '{by}'")
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer if by == "layer" else _block(layer), []).append(layer)
    return tuple(Unit(name, tuple(own), sum(macs[each] for each in own)) for name, own in groups.items())


def _block(layer: str) -> str:
    """Return the block of ``stage0.block1.expand`` or ``stem.conv``."""
    parts = layer.split(".")
    return ".".join(parts[: min(2, len(parts) - 1)])


def kinds_of(layers: Mapping[str, LayerNodes]) -> dict[str, frozenset[str]]:
    """Return the layers of each kind, those that write the outputs as a kind of their own."""
    found: dict[str, set[str]] = {}
    for name, layer in layers.items():
        found.setdefault("output" if layer.output else layer.kind, set()).add(name)
    return {kind: frozenset(names) for kind, names in found.items()}


class Probe:
    """A few images on which models' outputs are held against those of the fp32 network.

    Parameters
    ----------
    reference
        The fp32 model.
    images
        Batches (n, 3, H, W), normalised.
    simulated
        See :class:`supernet.quantise.OnnxMaps`.

    Raises
    ------
    InputError
        If there is no image.
    """

    def __init__(self, reference: onnx.ModelProto, images: Sequence[Array], simulated: bool = False) -> None:
        if not images:
            raise InputError("a probe needs at least one image")
        self._images = [torch.from_numpy(np.ascontiguousarray(batch)) for batch in images]
        self._simulated = simulated
        self._names = [info.name for info in reference.graph.output]
        self._reference = self._outputs(reference)

    def _outputs(self, model: onnx.ModelProto) -> list[list[Array]]:
        network = OnnxMaps(open_shapes(model), torch.get_num_threads(), self._simulated)
        return [[maps.numpy() for maps in network(batch)] for batch in self._images]

    def noise(self, model: onnx.ModelProto) -> dict[str, float]:
        """Return the power of a model's error relative to the power of the fp32 output, by output.

        Of each channel the variance is the signal, not its mean square: a constant tells nothing. Channels
        count alike, so that large numbers (the tags) do not outweigh small ones (the heatmaps). An error that
        is no number is infinite.
        """
        found = self._outputs(model)
        noise = {}
        for place, name in enumerate(self._names):
            error = signal = np.float64(0)
            for theirs, ours in zip(found, self._reference, strict=True):
                axes = (0, 2, 3)
                error = error + np.square(theirs[place] - ours[place], dtype=np.float64).mean(axes)
                signal = signal + np.var(ours[place], axis=axes, dtype=np.float64)
            ratio = float(np.mean(error / np.maximum(signal, np.finfo(np.float32).tiny)))
            noise[name] = ratio if math.isfinite(ratio) else math.inf
        return noise


def decibels(noise: float) -> float | None:
    """Return a relative error power as a signal-to-noise ratio, dB; None where there is no error at all."""
    return None if noise <= 0 else -10 * math.log10(noise)


@dataclass(frozen=True)
class Sensitivity:
    """What a unit's rounding does.

    Attributes
    ----------
    unit
        The layers.
    alone
        Relative error power of the outputs (mean over outputs) when these layers alone are in 8 bits.
    all_but
        The same when all other layers are.
    score_alone, score_all_but
        Scores of the same two models, where they were measured.
    """

    unit: Unit
    alone: float
    all_but: float
    score_alone: float | None = None
    score_all_but: float | None = None

    def gain(self, whole: float) -> float:
        """Return the error power that goes when the unit is kept in float, by that of the whole in 8 bits."""
        return max(whole - self.all_but, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return it with signal-to-noise ratios in dB."""
        return {
            **asdict(self.unit),
            "noise_alone": self.alone,
            "noise_all_but": self.all_but,
            "snr_alone_db": decibels(self.alone),
            "snr_all_but_db": decibels(self.all_but),
            "score_alone": self.score_alone,
            "score_all_but": self.score_all_but,
        }


def _number(told: Any) -> float:
    value = float(told)
    if not math.isfinite(value):
        raise ValueError(told)
    return value


class Trials:
    """int8 models of one network, measured once each.

    Parameters
    ----------
    quantiser
        Makes them.
    probe
        Measures their error.
    score
        Measures what they are worth, such as AP: higher is better. It is given a model.
    lines
        The journal; what it holds is not measured again.
    """

    def __init__(
        self,
        quantiser: Quantiser,
        probe: Probe,
        score: Callable[[onnx.ModelProto], float],
        lines: JsonLines,
    ) -> None:
        self.quantiser, self._probe, self._score, self._lines = quantiser, probe, score, lines
        self._known: dict[tuple[str, str], Any] = {}
        for number, record in lines.records():
            if record.get("what") == "ranges":
                continue
            try:
                what, value = str(record["what"]), record["value"]
                if what not in ("noise", "score"):
                    raise ValueError(what)
                found = _number(value) if what == "score" else {str(k): _number(v) for k, v in value.items()}
                self._known[what, str(record["model"])] = found
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                raise damaged(lines.path, number) from None

    def _measured(self, what: str, kept: Collection[str], measure: Callable[[onnx.ModelProto], Any]) -> Any:
        names = sorted(self.quantiser.checked(kept))
        key = hashlib.blake2b("\n".join(names).encode(), digest_size=12).hexdigest()
        if (what, key) not in self._known:
            value = measure(self.quantiser.int8(names))
            self._lines.write({"what": what, "model": key, "kept": len(names), "value": value})
            self._known[what, key] = value
        return self._known[what, key]

    def noise(self, kept: Collection[str] = ()) -> float:
        """Return the relative error power (mean over outputs) of the model with these layers in float."""
        return float(np.mean(list(self.noises(kept).values())))

    def noises(self, kept: Collection[str] = ()) -> dict[str, float]:
        """Return the same by output."""
        found: dict[str, float] = self._measured("noise", kept, self._finite_noise)
        return found

    def _finite_noise(self, model: onnx.ModelProto) -> dict[str, float]:
        # A journal holds no infinity; nothing comes near this one.
        return {name: min(value, 1e30) for name, value in self._probe.noise(model).items()}

    def score(self, kept: Collection[str] = ()) -> float:
        """Return the score of the model that keeps these layers in float."""
        return float(self._measured("score", kept, self._score))

    def fp32(self) -> float:
        """Return the score of the network in float."""
        return self.score(self.quantiser.layers)

    def sensitivities(
        self, units: Sequence[Unit], *, scored: bool = False, progress: Progress | None = None
    ) -> list[Sensitivity]:
        """Return what each unit's rounding does, alone and together with all the others'.

        Parameters
        ----------
        units
            What is measured.
        scored
            Whether scores are measured, too: two for each unit.
        progress
            Told about the models measured.
        """
        every = frozenset(self.quantiser.layers)
        found = []
        for place, unit in enumerate(units, start=1):
            others, own = every.difference(unit.layers), frozenset(unit.layers)
            scores = (self.score(others), self.score(own)) if scored else (None, None)
            found.append(Sensitivity(unit, self.noise(others), self.noise(own), *scores))
            if progress is not None:
                progress(place, len(units))
        return found


@dataclass(frozen=True)
class Choice:
    """Which layers stay in float.

    Attributes
    ----------
    kept
        Their names.
    units
        Names of the units that were chosen, those that had to be kept not among them.
    score, loss
        Of the model, and what it loses against the network in float.
    tried
        Every model that was scored on the way: units kept, score, loss.
    """

    kept: frozenset[str]
    units: tuple[str, ...]
    score: float
    loss: float
    tried: tuple[dict[str, Any], ...] = field(repr=False)


def choose(
    trials: Trials,
    found: Sequence[Sensitivity],
    tolerance: float,
    keep: Collection[str] = (),
    progress: Callable[[int, float], None] | None = None,
) -> Choice:
    """Return a smallest set of units to keep in float such that the score's loss is within the tolerance.

    Units are taken in the order of what each saves (the error power that goes when it alone is kept) per
    multiply-accumulate. The shortest sufficient beginning of that order is found by doubling and halving,
    each length *scored*, not predicted. Then the costliest of its units are left out one by one where the
    score allows it. A smaller set may exist: scores of all 2^n sets are beyond measuring.

    Parameters
    ----------
    trials, found
        What measures, and what it measured of each unit.
    tolerance
        Most that the score may lose.
    keep
        Layers that stay in float in any case.
    progress
        Told how many units the model keeps that was just scored, and what it loses.

    Raises
    ------
    InputError
        If the tolerance is negative, or a layer is unknown.
    """
    if not tolerance >= 0:
        raise InputError(f"the tolerance is what the score may lose, at least 0, not {tolerance}")
    forced = trials.quantiser.checked(keep)
    whole, best = trials.noise(()), trials.fp32()
    free = [each for each in found if not forced.issuperset(each.unit.layers)]
    order = [e.unit for e in sorted(free, key=lambda e: (-e.gain(whole) / max(e.unit.macs, 1), -e.alone))]
    tried: list[dict[str, Any]] = []

    def kept(units: Sequence[Unit]) -> frozenset[str]:
        return forced.union(*(unit.layers for unit in units))

    def loss(units: Sequence[Unit]) -> float:
        score = trials.score(kept(units))
        tried.append({"kept": [unit.name for unit in units], "score": score, "loss": best - score})
        if progress is not None:
            progress(len(units), best - score)
        return best - score

    below, above = -1, 0  # lengths that do not suffice, and one that does
    while loss(order[:above]) > tolerance:
        if above == len(order):  # all in float: nothing is lost but by rewritten deconvolutions' rounding
            break
        below, above = above, min(max(1, 2 * above), len(order))
    while above - below > 1:
        middle = (below + above) // 2
        if loss(order[:middle]) > tolerance:
            below = middle
        else:
            above = middle
    units = order[:above]
    for unit in sorted(units, key=lambda unit: -unit.macs)[:_PRUNED]:
        fewer = [each for each in units if each is not unit]
        if loss(fewer) <= tolerance:
            units = fewer
    score = trials.score(kept(units))
    names = tuple(unit.name for unit in units)
    return Choice(kept(units), names, score, best - score, tuple(tried))
