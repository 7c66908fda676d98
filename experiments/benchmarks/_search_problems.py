"""Search problems whose exact front is known, for the benchmark of samplers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nas.search import Evaluation
from search_spaces import Arch, Genotypes, SearchSpace, litepose_native

Floats = npt.NDArray[np.float64]

STAGES = (32, 64, 96, 160)
DEPTHS = (6, 8, 10, 10)
STEPS = (64, 48, 32)


def made_up_ap(values: Mapping[str, Floats]) -> Floats:
    """Return an AP that behaves as networks do, though it is made up; roughly LitePose's own figures.

    Widths and depths have diminishing returns. The backbone is as good as its weaker stages (a power mean of
    exponent -2), and what resolution brings depends on the backbone; later deconv steps matter more at high
    resolution; a kernel fits a resolution best and loses on both sides. Everything is multiplied, so no sum
    over single values or pairs of values is exact.

    Parameters
    ----------
    values
        Columns by name, as in :attr:`Arch.values`, each of shape (n,).
    """
    resolution = values["resolution"]
    quality = [
        1.0 - np.exp(-1.6 * (values[f"stage{i}.width"] / width) * np.sqrt(values[f"stage{i}.depth"] / depth))
        for i, (width, depth) in enumerate(zip(STAGES, DEPTHS, strict=True))
    ]
    weights = (0.15, 0.2, 0.3, 0.35)
    backbone = sum(w * q**-2.0 for w, q in zip(weights, quality, strict=True)) ** -0.5
    pixels = 1.0 - np.exp(-(resolution / 256.0) * (0.4 + 0.9 * backbone))
    finer = resolution / 512.0
    steps = [1.0 - np.exp(-1.5 * values[f"head.deconv{i}.width"] / width) for i, width in enumerate(STEPS)]
    head = 0.72 + 0.28 * (0.45 * steps[0] + 0.35 * steps[1] + 0.3 * finer * steps[2])
    stem = 1.0 - 0.12 * np.exp(-values["stem_width"] / 9.0)
    best_kernel = 7.0 * np.sqrt(resolution / 448.0)
    misfit = sum(np.log2(values[f"stage{i}.kernel"] / best_kernel) ** 2 for i in range(4)) / 4
    ap: Floats = 0.87 * backbone**0.5 * pixels * head * stem * (1.0 - 0.12 * misfit)
    return ap


@dataclass(frozen=True)
class Analytic:
    """A made-up AP over the native space: 245,760 networks, all of them known.

    Attributes
    ----------
    noise
        Standard deviation of what is added to a network's AP when it is measured. It is the same whenever the
        network is measured again, as on the same images.
    seed
        Which noise.
    max_macs
        Networks above it are none of the problem; None: there are none.
    """

    noise: float = 0.0
    seed: int = 0
    max_macs: float | None = None

    @cached_property
    def space(self) -> SearchSpace:
        return litepose_native(joints=14)

    @cached_property
    def true_aps(self) -> Floats:
        """Of every network, in the space's fixed order."""
        genotypes = self.space.genotypes()
        columns = {
            choice.name: np.array(choice.values, dtype=np.float64)[genotypes[:, gene]]
            for gene, choice in enumerate(self.space.choices)
        }
        return made_up_ap(columns)

    @cached_property
    def macs(self) -> Floats:
        return self.space.costs(self.space.genotypes()).macs.astype(np.float64)

    def number(self, genotypes: Genotypes) -> npt.NDArray[np.int64]:
        return np.asarray(np.ravel_multi_index(tuple(genotypes.T), self.space.shape))

    def evaluate(self, arch: Arch) -> Evaluation:
        number = int(self.number(self.space.encode(arch)[None])[0])
        noise = np.random.default_rng([self.seed, number]).normal(0.0, self.noise)
        return Evaluation(max(0.0, float(self.true_aps[number]) + float(noise)))
