"""Reports that nobody measured, for tests of what is shown of them."""

from __future__ import annotations

import numpy as np

from nas.trust.report import ArchTrust, StandaloneAP, TrustReport
from nas.trust.sensitivity import Sensitivity
from nas.trust.statistics import Ceiling, Ranking, TrustStatistics, kendall_tau, spearman_rho, top_regret
from search_spaces import Arch, SearchSpace
from supernet.pose.bootstrap import Comparison, Interval
from tests.nas.problems import analytic_ap, small_space

CONTEXT = {"supernet": "abc", "evaluation": "as usual", "images": "40 drawn", "calibration": "8 drawn"}


def archs(count: int, seed: int = 0) -> tuple[SearchSpace, list[Arch]]:
    """Return archs of a space of 512 networks, by rising MACs."""
    space = small_space()
    rng = np.random.default_rng(seed)
    chosen = list(dict.fromkeys(space.sample(rng) for _ in range(3 * count)))[:count]
    return space, sorted(chosen, key=lambda arch: space.cost(arch).macs)


def around(value: float, half: float) -> Interval:
    """Return an interval."""
    return Interval(value, max(-1.0, value - half), min(1.0, value + half), 0.95, 1000)


def report(count: int = 20, noise: float = 0.01, seed: int = 0, repeats: int = 1) -> TrustReport:
    """Return a report whose supernet scores the true AP with some noise."""
    space, chosen = archs(count, seed)
    rng = np.random.default_rng(seed)
    truth = np.array([analytic_ap(arch) for arch in chosen]) + rng.normal(0, 0.01, count)
    score = truth - 0.05 + rng.normal(0, noise, count)
    macs = np.array([space.cost(arch).macs for arch in chosen], np.float64)

    def ranking(values: np.ndarray) -> Ranking:
        regret = {top: top_regret(truth, values, top) for top in (1, 3, 5) if top <= count}
        kendall, spearman = float(kendall_tau(truth, values)[0]), float(spearman_rho(truth, values)[0])
        return Ranking(around(kendall, 0.12), around(spearman, 0.07), regret)

    supernet, alone = ranking(score), ranking(macs)
    gain = supernet.kendall.value - alone.kendall.value
    return TrustReport(
        archs=tuple(
            ArchTrust(
                arch=arch,
                macs=space.cost(arch).macs,
                params=space.cost(arch).params,
                supernet=around(float(score[i]), 0.03),
                standalone=tuple(
                    StandaloneAP(repeat, around(float(truth[i]), 0.025), 600, 40.0)
                    for repeat in range(repeats)
                ),
            )
            for i, arch in enumerate(chosen)
        ),
        statistics=TrustStatistics(
            networks=count,
            repeats=repeats,
            supernet=supernet,
            macs=alone,
            gain=Comparison(gain, gain - 0.1, gain + 0.1, 0.95, 1000, probability=0.9),
            images=around(supernet.kendall.value, 0.05),
            ceiling=Ceiling(around(0.92, 0.05), "images"),
            shift=-0.05,
            spread=noise,
            trusted_difference=0.02,
        ),
        verdict=("The ranking can be trusted.",),
        context=CONTEXT,
        standalone={"epochs": 4},
        settings={"archs": count},
    )


def sensitivity(
    networks: int = 5, draws: int = 4, given: int = 64, pool: int = 2000, noise: float = 0.05
) -> Sensitivity:
    """Return a sensitivity whose noise falls with the root of the number of images."""
    space, chosen = archs(networks)
    counts = tuple(given * part // 8 for part in (1, 2, 4, 8, 16))
    rng = np.random.default_rng(3)
    true = np.array([analytic_ap(arch) for arch in chosen])
    drawn = rng.normal(0, 1, (networks, len(counts), draws))
    aps = true[:, None, None] - 0.5 / np.array(counts)[:, None] + drawn * noise / np.array(counts)[:, None]
    return Sensitivity(
        tuple(chosen), tuple(space.cost(arch).macs for arch in chosen), counts, aps, given, pool, 0.013
    )
