"""What a written file gives, held against torch: largest error of its outputs, and AP on the val pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from nas.console import progress_bar
from nas.evaluation import how_measured
from nas.exporting.peaks import PeakErrors
from nas.quantising import Job, Scorer, network_inputs
from search_spaces import InputError
from supernet.onnx_peaks import PEAK_OUTPUTS
from supernet.pose.bootstrap import bootstrap_ap, compare_ap
from supernet.pose.evaluate import scored_joints
from supernet.pose.finding import as_picked
from supernet.pose.matching import Matches
from supernet.pose.peaks import picked_by

__all__ = ["ODD", "Reference", "Tolerances", "refusal"]

ODD: Final = ("grey", "white", "noise")
"""Pictures besides those of the val set: constant, brighter than any mean, and nothing that is smooth."""


@dataclass(frozen=True)
class Tolerances:
    """What a file may differ by.

    Attributes
    ----------
    ap
        Most AP that may be lost.
    outputs
        Most error of the outputs relative to their largest value; None: it is told, and AP alone decides.
    """

    ap: float
    outputs: float | None = None


class Reference:
    """The torch network on the val pictures, which files are held against; measured once.

    Parameters
    ----------
    job
        The network, the pictures, and how AP is measured.
    pictures
        How many val pictures (people in them, of a top-down network) the outputs are compared on.
    """

    def __init__(self, job: Job, pictures: int = 4) -> None:
        self.job, self._pictures = job, pictures
        self._network = job.network.eval()
        self._boxes = job.images.val_boxes

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Pictures by name, each (1, 3, H, W), normalised: some of val, and :data:`ODD` ones."""
        job = self.job
        real = network_inputs(job.images.val, job.config(self._boxes), self._pictures, job.size)
        found = {f"val {place}": torch.from_numpy(each) for place, each in enumerate(real)}
        shape = (1, 3, *(job.size or job.network.arch.size))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        odd = (torch.zeros(shape), torch.full(shape, 2.5), noise)
        return found | dict(zip(ODD, odd, strict=True))

    @cached_property
    def outputs(self) -> dict[str, tuple[Tensor, ...]]:
        """What torch returns for :attr:`inputs`.

        Raises
        ------
        InputError
            If that is no number somewhere: no file could be held against it.
        """
        with torch.no_grad():
            found = {name: tuple(self._network(each)) for name, each in self.inputs.items()}
        for name, maps in found.items():
            for output, each in zip(self._network.output_names, maps, strict=True):
                if not bool(each.isfinite().all()):
                    raise InputError(
                        f"the network itself gives no numbers in torch ('{output}' of the picture '{name}'"
                        " holds NaN or infinity): its weights are spoilt, so nothing is exported"
                    )
        return found

    @cached_property
    def scorer(self) -> Scorer:
        """Measures AP on the val pictures."""
        return self.job.scorer(self.job.images.val, self._boxes)

    @cached_property
    def matches(self) -> Matches:
        """What torch finds in the val pictures, matched to people."""
        with progress_bar("evaluating torch", len(self.job.images.val)) as bar:
            found = self.scorer.matches_of(
                self._network, bar.update, side_by_side=max(2, torch.get_num_threads())
            )
        if np.isnan(found.values("AP")[0]):
            raise InputError(
                f"{self.job.images.where}: there is nobody to find in the {len(self.job.images.val)} val"
                " pictures, so AP says nothing; take more of them (--limit), or other data"
            )
        return found

    def certify(
        self,
        network: nn.Module,
        tolerances: Tolerances,
        *,
        title: str,
        batch: int | None = 1,
        names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Return what a file gives beside what torch does, and whether that is within the tolerances.

        Parameters
        ----------
        network
            The file, called like the torch network.
        tolerances
            What it may differ by.
        title
            What the progress bar calls it.
        batch
            Pictures of one run; None: any number, and several at once are compared, too.
        names
            Of the outputs; by default the network's.
        """
        picked = picked_by(network)
        if names is None:
            names = self._network.output_names if picked is None else PEAK_OUTPUTS[self._network.paradigm]
        outputs = self._errors(network, names, batch)
        outputs["tolerance"] = tolerances.outputs
        outputs["within"] = np.isfinite(outputs["max_rel"]) and (
            tolerances.outputs is None or outputs["max_rel"] <= tolerances.outputs
        )
        outputs["within"] = bool(outputs["within"])
        if not outputs["within"]:  # its AP would be that of a broken file
            return {"outputs": _finite(outputs), "ap": None}
        scorer = self.scorer
        if picked is not None:
            scorer = replace(scorer, config=as_picked(scorer.config, picked))
            scorer.pictures = self.scorer.pictures  # which are the same
        with progress_bar(f"evaluating {title}", len(self.job.images.val)) as bar:
            found = scorer.matches_of(network, bar.update, batch_size=batch or 1)
        ap = self._ap(found, tolerances.ap)
        if picked is not None:
            ap["peaks"] = "people of peaks: joints that nobody's peak shows are not filled in, no 'dark'"
        return {"outputs": outputs, "ap": ap}

    def _ap(self, found: Matches, tolerance: float) -> dict[str, Any]:
        job, settings = self.job, self.job.settings

        def draws() -> np.random.Generator:
            return np.random.default_rng(settings.seed)  # the same resamples for all

        difference = compare_ap(found, self.matches, settings.resamples, draws())
        loss = -difference.value
        val = job.images.val
        scored = scored_joints(val)
        return {
            "on": f"{len(val)} images of {val.where}",
            "images": len(val),
            "protocol": job.images.settings.protocol,
            "fitted_into": None if job.size is None else list(job.size),
            **how_measured(self.scorer.config),
            "joints_scored": [val.skeleton.joints[i] for i in scored]
            if scored
            else list(val.skeleton.joints),
            "torch": bootstrap_ap(self.matches, settings.resamples, draws()).to_json(),
            "file": bootstrap_ap(found, settings.resamples, draws()).to_json(),
            "difference": difference.to_json(),
            "loss": loss,
            "tolerance": tolerance,
            "within": bool(loss <= tolerance),
            # Whether the worst that the interval allows is within the tolerance, too.
            "sure": bool(-difference.low <= tolerance),
            "telling": bool(self.matches.values("AP")[0] > tolerance),
        }

    def _errors(self, network: nn.Module, names: Sequence[str], batch: int | None) -> dict[str, Any]:
        worst: dict[str, dict[str, float]] = {
            name: {"max_abs": 0.0, "largest": 0.0, "max_rel": 0.0} for name in names
        }
        calls: list[tuple[Tensor, Sequence[str]]] = [(x, (key,)) for key, x in self.inputs.items()]
        if batch != 1:
            together = list(self.inputs)[: batch or 3]
            calls.append((torch.cat([self.inputs[key] for key in together]), together))
        real = {name: dict(each) for name, each in worst.items()}
        picked = picked_by(network)
        peaks = None if picked is None else PeakErrors(picked)
        with torch.no_grad():
            for images, keys in calls:
                found = network(images)
                if peaks is not None:
                    count = range(len(self.outputs[keys[0]]))
                    maps = [torch.cat([self.outputs[key][i] for key in keys]) for i in count]
                    seen = len(keys) == 1 and keys[0] not in ODD
                    for name, told in peaks.of(maps, found).items():
                        _grow(worst[name], *told)
                        if seen:
                            _grow(real[name], *told)
                    continue
                for place, name in enumerate(names):
                    ours = torch.cat([self.outputs[key][place] for key in keys]).double()
                    _widen(worst[name], ours, found[place].double())
                    if len(keys) == 1 and keys[0] not in ODD:
                        _widen(real[name], ours, found[place].double())
        return {
            "pictures": {"val": len(self.inputs) - len(ODD), "odd": list(ODD)},
            "max_abs": _most(each["max_abs"] for each in worst.values()),
            # Odd pictures may have the largest values, which must not make errors on real ones look small.
            "max_rel": _most(each["max_rel"] for each in (*worst.values(), *real.values())),
            "max_rel_val": _most(each["max_rel"] for each in real.values()),
            "by_output": worst,
            **({} if peaks is None else {"peaks": peaks.counts}),
        }


def _widen(worst: dict[str, float], ours: Tensor, theirs: Tensor) -> None:
    """Let the worst so far grow by one picture's outputs; what has another shape is infinitely wrong.

    Errors are relative to the largest value in any picture: where nobody is, heatmaps are next to 0, and so
    would every error be large.
    """
    if ours.shape != theirs.shape:
        worst["max_abs"] = worst["max_rel"] = float("inf")
        return
    _grow(worst, float((ours - theirs).abs().max()), float(ours.abs().max()))


def _grow(worst: dict[str, float], error: float, largest: float) -> None:
    """Let the worst so far grow by an error, and by the largest value of what has it."""
    worst["max_abs"] = _most((worst["max_abs"], error))
    worst["largest"] = _most((worst["largest"], largest))
    worst["max_rel"] = worst["max_abs"] / worst["largest"] if worst["largest"] > 0 else worst["max_abs"]


def _most(values: Any) -> float:
    """Return the largest; infinite where one is no number."""
    found = list(values)
    return float(max(found)) if all(np.isfinite(found)) else float("inf")


def _finite(value: Any) -> Any:
    """Return it with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def refusal(certificate: dict[str, Any]) -> str | None:
    """Return why a file is not to be kept, or None."""
    outputs, ap = certificate["outputs"], certificate["ap"]
    if not outputs["within"]:
        if outputs["max_rel"] is None:
            return "its outputs are no numbers, or of other shapes than torch's"
        return (
            f"its outputs differ from torch's by {outputs['max_rel']:.2g} of the largest value, more than the"
            f" tolerance of {outputs['tolerance']:g}"
        )
    if not ap["within"]:
        why = f"it loses {ap['loss']:.4f} AP on {ap['on']}, more than the tolerance of {ap['tolerance']:g}"
        if "peaks" in ap:  # which is no fault of the file's
            why += "; peaks do without what maps fill in: allow that by --tolerance-ap, or leave --peaks out"
        return why
    return None


Certify = Callable[[nn.Module], dict[str, Any]]
