"""How AP depends on the number of images from which BN statistics are recomputed.

A network's AP varies with the training images that its statistics happen to be of: more with fewer. Here a
few networks of a run are scored with statistics of several draws of images, for several numbers of them. That
tells how many are enough, and how much of a difference between two networks may be an accident of the draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from nas.context import placeless
from nas.data import Datasets, open_datasets
from nas.known import search_context
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet
from search_spaces import Arch, InputError, RunError, SearchSpace, arch_from_json
from search_spaces.files import read_json, write_json
from search_spaces.jsonl import JsonLines, damaged, open_lines
from supernet.evaluator import CalibrationImages, SubnetEvaluator
from supernet.pose.bootstrap import resample_ap
from supernet.pose.dataset import PoseDataset

__all__ = ["FACTORS", "Sensitivity", "draws_of", "measure_sensitivity", "probe_archs"]

FACTORS: Final = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Numbers of images that are tried, as multiples of ``evaluate.calibration_images``."""
_FORMAT: Final = 1
_RESAMPLES: Final = 200
_TOLERATED: Final = 2.0
"""Standard deviations of the largest number's AP that count as its noise: 95% of its draws lie within."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Sensitivity:
    """AP of some networks by the number of calibration images.

    Attributes
    ----------
    archs, macs
        The networks and their MACs, by rising MACs.
    counts
        Numbers of calibration images, ascending.
    aps
        (networks, counts, draws): AP with the statistics of each draw of images.
    given
        The run's own ``evaluate.calibration_images``.
    pool
        How many images the draws are from: where that is fewer than draws x count, they overlap, and the
        spread of that number is rather larger than it appears.
    image_noise
        Standard error of the APs from the choice of the *scored* images, for comparison: the root mean square
        over all evaluations.
    """

    archs: tuple[Arch, ...]
    macs: tuple[int, ...]
    counts: tuple[int, ...]
    aps: FloatArray
    given: int
    pool: int
    image_noise: float

    COLUMNS: ClassVar = ("calibration images", "mean AP", "change", "spread among draws", "error of one", "")
    """Headings of :meth:`rows`."""

    @property
    def draws(self) -> int:
        """How many draws of images there were of each number."""
        return int(self.aps.shape[2])

    @cached_property
    def means(self) -> FloatArray:
        """(networks, counts): the mean AP over the draws."""
        return np.asarray(self.aps.mean(axis=2))

    @cached_property
    def spreads(self) -> FloatArray:
        """(counts,): standard deviation of AP among the draws, pooled over the networks."""
        return np.asarray(np.sqrt(self.aps.var(axis=2, ddof=1).mean(axis=0)))

    @cached_property
    def deviations(self) -> FloatArray:
        """(counts,): how far a single AP lies from the mean with most images, root mean square."""
        offsets = self.aps - self.means[:, -1:, None]
        return np.asarray(np.sqrt((offsets**2).mean(axis=(0, 2))))

    @property
    def tolerance(self) -> float:
        """The noise of AP with most images: twice its standard deviation."""
        return float(_TOLERATED * self.spreads[-1])

    @property
    def enough(self) -> int:
        """The smallest number from which on AP lies within the noise of that with most images."""
        beyond = np.flatnonzero(self.deviations > self.tolerance + 1e-12)
        # With most images it lies within by construction.
        return self.counts[min(int(beyond[-1]) + 1, len(self.counts) - 1)] if len(beyond) else self.counts[0]

    def overlapping(self, count: int) -> bool:
        """Return whether the draws of so many images share some."""
        return self.draws * count > self.pool

    def line(self) -> str:
        """Return the gist in one line."""
        if not self.aps.any():
            return "AP is 0 throughout: how it depends on the calibration images is not to be seen"
        most, noise = self.counts[-1], f"the noise of {self.counts[-1]} calibration images"
        gist = f"AP is within {noise} (2 x {self.spreads[-1]:.4f}) from {self.enough} up"
        if self.enough == most:
            gist = f"AP with fewer is not within {noise} (2 x {self.spreads[-1]:.4f}), and more may do better"
        own = ""
        if self.given in self.counts:
            spread = self.spreads[self.counts.index(self.given)]
            own = f"; with the run's {self.given} it varies by {spread:.4f}"
        return f"{gist}{own} (by the choice of scored images: {self.image_noise:.4f})"

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table: images, mean AP, its change against most images, spread among draws, error."""
        change = self.means - self.means[:, -1:]
        rows: list[tuple[str, ...]] = []
        for place, count in enumerate(self.counts):
            mark = ", ".join(
                text
                for text, holds in (
                    ("the run's", count == self.given),
                    ("enough", count == self.enough and bool(self.aps.any())),
                    (f"all {self.pool} there are", count >= self.pool),
                    ("draws overlap", self.overlapping(count) and count < self.pool),
                )
                if holds
            )
            rows.append(
                (
                    str(count),
                    f"{self.means[:, place].mean():.4f}",
                    f"{change[:, place].mean():+.4f}",
                    f"{self.spreads[place]:.4f}",
                    f"{self.deviations[place]:.4f}",
                    mark,
                )
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON-able mapping that :meth:`from_json` reads back without loss."""
        return {
            "format": _FORMAT,
            "archs": [arch.to_json() for arch in self.archs],
            "macs": list(self.macs),
            "counts": list(self.counts),
            "aps": self.aps.tolist(),
            "given": self.given,
            "pool": self.pool,
            "image_noise": self.image_noise,
            "spreads": self.spreads.tolist(),
            "deviations": self.deviations.tolist(),
            "enough": self.enough,
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "sensitivity") -> Sensitivity:
        """Return what :meth:`to_json` described.

        Raises
        ------
        RunError
            If the value is no such description.
        """
        try:
            if value["format"] != _FORMAT:
                raise RunError(f"{where} is not of format {_FORMAT}; run 'nas trust' again")
            found = cls(
                tuple(arch_from_json(arch, where) for arch in value["archs"]),
                tuple(int(macs) for macs in value["macs"]),
                tuple(int(count) for count in value["counts"]),
                np.array(value["aps"], np.float64),
                int(value["given"]),
                int(value["pool"]),
                float(value["image_noise"]),
            )
            if found.aps.ndim != 3 or found.aps.shape[:2] != (len(found.archs), len(found.counts)):
                raise ValueError(f"APs of shape {found.aps.shape}")
        except (KeyError, TypeError, ValueError, OverflowError, InputError) as error:
            raise RunError(f"{where} is damaged ({error}); delete it and run 'nas trust' again") from None
        return found


def probe_archs(space: SearchSpace, count: int, seed: int) -> tuple[Arch, ...]:
    """Return the smallest and the largest arch of a space and random ones between, by rising MACs.

    Raises
    ------
    InputError
        If fewer than 2 are asked for, or the space does not hold so many.
    """
    if not 2 <= count <= space.count():
        raise InputError(f"2 to {space.count()} networks of the space can be probed, not {count}")
    rng = np.random.default_rng([seed, 7])
    chosen = dict.fromkeys((space.smallest(), space.largest()))
    while len(chosen) < count:
        chosen[space.sample(rng)] = None
    return tuple(sorted(chosen, key=lambda arch: (space.cost(arch).macs, arch.id)))


def draws_of(pool: PoseDataset, count: int, draws: int, seed: int) -> Iterator[PoseDataset]:
    """Yield ``draws`` choices of ``count`` images: disjoint where there are enough, else independent.

    Of a pool that holds fewer than ``count``, each is the whole pool.
    """
    ids = np.array(pool.ids)
    shuffled = np.random.default_rng([seed, len(ids)]).permutation(ids)
    for draw in range(draws):
        chosen = shuffled[draw * count : (draw + 1) * count]
        if draws * count > len(ids):
            rng = np.random.default_rng([seed, count, draw])
            chosen = rng.choice(ids, min(count, len(ids)), replace=False)
        yield pool.subset(chosen.tolist())


def measure_sensitivity(
    run: RunDirectory,
    data: Datasets | None = None,
    *,
    networks: int = 4,
    factors: Sequence[float] = FACTORS,
    draws: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Score networks of a trained run with BN statistics of several numbers and draws of images.

    Every score is kept at once: stopped or killed, the same call goes on. What was measured with the present
    weights and settings is not measured again. The result is ``trust/sensitivity.json`` in the run.

    Parameters
    ----------
    run
        A trained run; call this within its lock.
    data
        Its data sets, if they are open already.
    networks
        How many: the smallest and the largest of the space, and random ones.
    factors
        Numbers of images, as multiples of the run's ``evaluate.calibration_images``.
    draws
        Draws of each number, at least 2. The images are those that the run itself would take, and where these
        do not suffice, further training images.
    progress
        Told about the scores, done and in all.

    Raises
    ------
    InputError
        If an argument is out of its range.
    RunError
        If the run is not trained.
    """
    if draws < 2 or not factors or min(factors) <= 0:
        raise InputError(
            f"a spread needs at least 2 draws and positive factors, not {draws} and {list(factors)}"
        )
    data = data or open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    supernet = open_supernet(run, space)
    given = run.recipe.evaluate.calibration_images
    counts = tuple(sorted({max(1, round(given * factor)) for factor in factors}))
    archs = probe_archs(space, networks, run.recipe.seed)
    about = {
        **search_context(run, data),
        "archs": [arch.id for arch in archs],
        "counts": list(counts),
        "draws": draws,
    }
    folder = run.folder / "trust"
    known = _known(folder / "sensitivity.json", about)
    if known is not None:
        return known
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    with open_lines(
        folder / f"sensitivity-{digest}.partial.jsonl", about, doing="measuring", what="sensitivity"
    ) as journal:
        pool = _pool(run, counts[-1] * draws)
        # Weights that count as not fixed: nothing that rests on other statistics is taken over.
        evaluator = make_evaluator(run, data, supernet, keep_statistics=False)
        try:
            figures = _scores(evaluator, pool, archs, counts, draws, run.recipe.seed, journal, progress)
        finally:
            evaluator.close()
        aps = np.array(
            [
                [[figures[arch.id, count, draw][0] for draw in range(draws)] for count in counts]
                for arch in archs
            ]
        )
        noise = float(np.sqrt(np.mean([error**2 for _, error in figures.values()])))
        macs = tuple(space.cost(arch).macs for arch in archs)
        found = Sensitivity(archs, macs, counts, aps, given, len(pool), noise)
        write_json(folder / "sensitivity.json", {**found.to_json(), "about": about})
        for path in folder.glob("sensitivity-*.partial.jsonl"):  # those of weights that are gone, too
            path.unlink(missing_ok=True)
    return found


def _known(path: Path, about: Mapping[str, Any]) -> Sensitivity | None:
    """Return the finished measurement if it is the one that is asked for."""
    if not path.is_file():
        return None
    value = read_json(path, "sensitivity")
    told = value.get("about") if isinstance(value, dict) else None
    if not isinstance(told, dict) or placeless(told) != dict(about):
        return None
    return Sensitivity.from_json(value, f"'{path}'")


def _pool(run: RunDirectory, count: int) -> PoseDataset:
    """Return up to ``count`` images for BN statistics, chosen as the run itself chooses them."""
    evaluate = replace(run.recipe.evaluate, calibration_images=count)
    return open_datasets(replace(run.recipe, evaluate=evaluate)).calibrate


def _scores(
    evaluator: SubnetEvaluator,
    pool: PoseDataset,
    archs: Sequence[Arch],
    counts: Sequence[int],
    draws: int,
    seed: int,
    journal: JsonLines,
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Return AP and its standard error by network, number of images and draw; take known ones over."""
    found: dict[tuple[str, int, int], tuple[float, float]] = {}
    for number, record in journal.records():
        try:
            place = str(record["arch"]), int(record["images"]), int(record["draw"])
            found[place] = float(record["ap"]), float(record["error"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise damaged(journal.path, number) from None
    total = len(archs) * len(counts) * draws
    augmentation = evaluator.calibration.augmentation
    for count in counts:
        for draw, images in enumerate(draws_of(pool, count, draws, seed)):
            lacking = [arch for arch in archs if (arch.id, count, draw) not in found]
            if lacking:
                evaluator.calibration = CalibrationImages(
                    images, count, seed + 1 + draw, augmentation, paradigm=evaluator.calibration.paradigm
                )
            for arch in lacking:
                if progress is not None:
                    progress(len(found), total)
                result = evaluator.evaluate(arch)
                rng = np.random.default_rng([seed, len(evaluator.dataset)])
                resamples = resample_ap(evaluator.matches(result), _RESAMPLES, rng)
                ap, error = max(0.0, result.stats["AP"]), float(np.nanstd(resamples))
                found[arch.id, count, draw] = ap, error
                journal.write({"arch": arch.id, "images": count, "draw": draw, "ap": ap, "error": error})
    if progress is not None:
        progress(total, total)
    return found
