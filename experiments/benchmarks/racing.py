"""What racing saves in a search, and what it risks.

Two questions, on a trained run:

1. *Search*: the same search with the evaluation of losers ended early (``evaluate.early_stop``) and without:
   images looked at, seconds, networks stopped, the hypervolume of the fronts, the networks chosen for a few
   budgets. Each network is evaluated once, to the end, and what a race would have seen of it is read off that
   (``SearchEvaluator.against``; a test holds that it is the same). So both searches rest on the very same
   measurements.
2. *Risk*: the networks that were evaluated, raced against each other over and over with the images in other
   orders: how often is one stopped that is no worse than its rival on all images, and how often one that is?
   By the rule as it is, and by others with the same nominal risk.

Run: python experiments/benchmarks/racing.py RUN [--record]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import command, finish, machine, parser, record_page
from scipy import stats

from nas.console import print_table, progress_bar
from nas.data import open_datasets
from nas.run import RunDirectory
from nas.search import MACS, Constraint, Evaluation, SearchResult, search
from nas.search.noise import compare
from nas.searching import SearchEvaluator
from nas.train import make_evaluator, open_supernet
from search_spaces import Arch, SearchSpace
from search_spaces.files import write_json, write_text
from supernet.evaluator import SubnetEvaluator
from supernet.pose.matching import Matches
from supernet.racing import EarlyStop, Look, Rival

BUDGETS = (0.25, 0.5, 0.75)
NEAR = 0.01


# -- searching with and without ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A network evaluated to the end.

    Attributes
    ----------
    evaluation
        What was found.
    seconds
        After how many seconds so many images had been looked at.
    matches
        Its detections matched to people.
    macs, params
        Its costs.
    """

    evaluation: Evaluation
    seconds: Mapping[int, float]
    matches: Matches
    macs: int
    params: int


@dataclass
class Once:
    """Evaluates each network once, to the end, and tells what a race would have seen of it."""

    evaluator: SubnetEvaluator
    space: SearchSpace
    known: dict[str, Seen] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """The rule of the race."""
        return self._search.rule

    @property
    def _search(self) -> SearchEvaluator:
        return SearchEvaluator(self.evaluator)

    def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
        """Return what a search would be told, and the seconds up to there."""
        if arch.id not in self.known:
            self.known[arch.id] = self._whole(arch)
        seen = self.known[arch.id]
        found = self.against(seen.evaluation, rival)
        if found is None:
            raise RuntimeError("a network that was evaluated to the end is known against any rival")
        return replace(found, seconds=seen.seconds[int(found.stats["images"])])

    def against(self, evaluation: Evaluation, rival: Evaluation | None) -> Evaluation | None:
        """Return what this evaluation is against a rival."""
        return self._search.against(evaluation, rival)

    def _whole(self, arch: Arch) -> Seen:
        moments: dict[int, float] = {}
        began = time.perf_counter()

        def note(done: int, total: int) -> None:
            moments[done] = time.perf_counter() - began

        result = self.evaluator.evaluate(arch, note)
        matches = self.evaluator.matches(result)
        cost = self.space.cost(arch)
        return Seen(self._search.evaluation(result), moments, matches, cost.macs, cost.params)


def told_of(result: SearchResult, images: int) -> dict[str, Any]:
    """Return the figures of one search."""
    looked_at = [*result.evaluated, *result.partial]
    return {
        "evaluated": len(looked_at),
        "ended_early": len(result.partial),
        "ended_after": sorted(int(r.stats["images"]) for r in result.partial),
        "images": sum(int(r.stats["images"]) for r in looked_at),
        "of_images": len(looked_at) * images,
        "seconds": sum(r.seconds for r in looked_at),
    }


def beside(plain: SearchResult, raced: SearchResult, images: int) -> dict[str, Any]:
    """Return how a search with racing came out beside the same one without."""
    most = max(plain.reference(), raced.reference())
    volumes = [float(each.hypervolumes(most=most)[-1]) for each in (plain, raced)]
    costs = [r.macs for result in (plain, raced) for r in result.evaluated]
    choices = []
    for share in BUDGETS:
        bound = Constraint(MACS, float(np.quantile(costs, share)))
        one, other = (each.best([bound]) for each in (plain, raced))
        apart = compare(other, one)
        choices.append(
            {
                "macs": bound.upper,
                "same": one.arch == other.arch,
                "ap": [one.require_ap(), other.require_ap()],
                "difference": None if apart is None else apart.to_json(),
            }
        )
    both = [{r.arch.id for r in (*each.evaluated, *each.partial)} for each in (plain, raced)]
    return {
        "plain": told_of(plain, images),
        "raced": told_of(raced, images),
        "hypervolume": volumes[1] / volumes[0],
        "shared_networks": len(both[0] & both[1]),
        "choices": choices,
    }


def searches(once: Once, samplers: Sequence[str], seeds: int, evaluations: int, population: int) -> Any:
    """Return the figures of every pair of searches, by sampler and seed."""
    images = len(once.evaluator.dataset)
    found: dict[str, list[dict[str, Any]]] = {sampler: [] for sampler in samplers}
    with tempfile.TemporaryDirectory() as folder:
        for sampler in samplers:
            for seed in range(seeds):
                results = []
                for early in (False, True):
                    called = f"{sampler} {seed} {'raced' if early else 'plain'}"
                    with progress_bar(called, evaluations) as bar:
                        results.append(
                            search(
                                once.space,
                                once,
                                storage=Path(folder, f"{sampler}-{seed}-{early}.journal"),
                                trials=evaluations,
                                population=population,
                                sampler=sampler,
                                seed=seed,
                                early_stop=early,
                                progress=lambda p, bar=bar: bar.update(p.evaluated, p.trials, ""),  # type: ignore[misc]
                            )
                        )
                found[sampler].append(beside(*results, images))
    return found


# -- the risk ------------------------------------------------------------------------------------------------

Judge = Callable[[EarlyStop, Mapping[str, Look], Rival, Mapping[str, int], int], int | None]
"""After how many images a network is stopped, if it is."""


def ours(
    rule: EarlyStop, own: Mapping[str, Look], rival: Rival, counts: Mapping[str, int], of: int
) -> int | None:
    """Judge by the rule as it is."""
    verdict = rule.verdict(own, rival, counts, of)
    return None if verdict is None else verdict.images


def differences(
    rule: EarlyStop, own: Mapping[str, Look], rival: Rival, counts: Mapping[str, int], of: int
) -> int | None:
    """Judge by percentiles of the difference, resample by resample, as of an endless supply of images."""
    for name, count in counts.items():
        apart = own[name].resampled - rival.looks[name].resampled
        if own[name].ap < rival.looks[name].ap and np.nanquantile(apart, 1 - rule.level / len(counts)) < 0:
            return count
    return None


def corrected(
    rule: EarlyStop, own: Mapping[str, Look], rival: Rival, counts: Mapping[str, int], of: int
) -> int | None:
    """Judge by the standard error of the difference and the finite population correction, without slope."""
    for name, count in counts.items():
        one, other = own[name], rival.looks[name]
        error = float(np.nanstd(one.resampled - other.resampled)) * np.sqrt(
            count / (count - 1) * (1 - count / of)
        )
        if one.ap - other.ap + stats.t.isf(rule.level / len(counts), count - 1) * error < 0:
            return count
    return None


def unpaired(
    rule: EarlyStop, own: Mapping[str, Look], rival: Rival, counts: Mapping[str, int], of: int
) -> int | None:
    """Judge by the upper end of the network's own interval alone."""
    for name, count in counts.items():
        high = np.nanquantile(own[name].resampled, 1 - rule.level / len(counts))
        if high < rival.looks[name].ap:
            return count
    return None


JUDGES: Mapping[str, Judge] = {
    "own interval against the rival's AP so far": unpaired,
    "differences, percentiles": differences,
    "differences, finite population": corrected,
    "regression on the rival (ours)": ours,
}


def risks(networks: Sequence[Seen], rule: EarlyStop, orders: int) -> list[dict[str, Any]]:
    """Return how often each rule stops whom, over orders of the images.

    ``wrong`` is of pairs of which the first is no worse on all images; ``near`` of those that are so by less
    than :data:`NEAR`; ``stopped`` and ``images`` are of every network against the best one that costs no
    more, where there is one.
    """
    aps = np.array([each.evaluation.ap for each in networks])
    ids = networks[0].matches.image_ids.tolist()
    counts = rule.looks(len(ids))
    best = [_best_rival(networks, i) for i in range(len(networks))]
    sums = {name: np.zeros(4) for name in JUDGES}
    pairs = [(i, j) for i in range(len(aps)) for j in range(len(aps)) if i != j and aps[i] >= aps[j]]
    near = sum(aps[i] - aps[j] < NEAR for i, j in pairs)
    with progress_bar("racing", orders) as bar:
        for number in range(orders):
            drawn = replace(rule, seed=1000 + number)
            order = drawn.order(ids)
            looks = [
                {name: drawn.look(each.matches.subset(order[:n])) for name, n in counts.items()}
                for each in networks
            ]
            for name, judge in JUDGES.items():
                sums[name] += _tally(drawn, judge, aps, looks, pairs, best, counts, len(ids))
            bar.update(number + 1, orders, "")
    with_rival = sum(j is not None for j in best)
    return [
        {
            "rule": name,
            "wrong": wrong / len(pairs) / orders,
            "wrong_near": near_wrong / max(near, 1) / orders,
            "stopped": stopped / max(with_rival, 1) / orders,
            "images": images / max(with_rival, 1) / orders / len(ids),
            **{"networks": len(networks), "with_rival": with_rival, "orders": orders},
            **{"pairs": len(pairs), "pairs_near": int(near)},
        }
        for name, (wrong, near_wrong, stopped, images) in sums.items()
    ]


def _best_rival(networks: Sequence[Seen], place: int) -> int | None:
    own = networks[place]
    cheaper = [
        j
        for j, other in enumerate(networks)
        if other.macs <= own.macs and other.params <= own.params and other.evaluation.ap > own.evaluation.ap
    ]
    return max(cheaper, key=lambda j: networks[j].evaluation.ap, default=None)


def _tally(
    rule: EarlyStop,
    judge: Judge,
    aps: np.ndarray[Any, Any],
    looks: Sequence[Mapping[str, Look]],
    pairs: Sequence[tuple[int, int]],
    best: Sequence[int | None],
    counts: Mapping[str, int],
    of: int,
) -> np.ndarray[Any, Any]:
    """Return wrong stops, those of near pairs, right stops, and images looked at, in one order."""
    rivals = [Rival(float(ap), seen) for ap, seen in zip(aps, looks, strict=True)]
    found = np.zeros(4)
    for i, j in pairs:
        if judge(rule, looks[i], rivals[j], counts, of) is not None:
            found += (1, aps[i] - aps[j] < NEAR, 0, 0)
    for i, j in enumerate(best):
        if j is not None:
            until = judge(rule, looks[i], rivals[j], counts, of)
            found += (0, 0, until is not None, of if until is None else until)
    return found


# -- telling -------------------------------------------------------------------------------------------------

COLUMNS = (
    *("sampler", "seed", "ended early", "images", "images saved", "seconds", "hypervolume"),
    "same network chosen",
)
RULES = ("rule", "stopped", "images", "wrong, all pairs", f"wrong, apart by less than {NEAR:g} AP")


def rows_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Sequence[str]]:
    """Return a row per pair of searches."""
    rows: list[Sequence[str]] = []
    for sampler, pairs in found.items():
        for seed, pair in enumerate(pairs):
            plain, raced = pair["plain"], pair["raced"]
            same = sum(choice["same"] for choice in pair["choices"])
            worst = min(choice["ap"][1] - choice["ap"][0] for choice in pair["choices"])
            rows.append(
                (
                    *(sampler, str(seed), f"{raced['ended_early']} of {raced['evaluated']}"),
                    f"{plain['images']:,} → {raced['images']:,}",
                    f"{1 - raced['images'] / plain['images']:.1%}",
                    f"{plain['seconds']:.0f} → {raced['seconds']:.0f}",
                    f"{pair['hypervolume']:.4f}",
                    f"{same} of {len(pair['choices'])} (AP {worst:+.4f} at worst)",
                )
            )
    return rows


def rule_rows(found: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    """Return a row per rule."""
    return [
        (
            *(each["rule"], f"{each['stopped']:.1%}", f"{each['images']:.1%}"),
            *(f"{each['wrong']:.3%}", f"{each['wrong_near']:.2%}"),
        )
        for each in found
    ]


def main() -> None:
    """Race, tell, and record."""
    options = parser("racing", str(__doc__).splitlines()[0], 1)
    options.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a trained run directory")
    options.add_argument("--samplers", nargs="+", default=["guided", "nsga2"])
    options.add_argument("--evaluations", type=int, default=48)
    options.add_argument("--population", type=int, default=12)
    options.add_argument("--images", type=int, default=0, help="only so many of the search images")
    options.add_argument("--orders", type=int, default=20, help="orders of the images in which is raced")
    options.add_argument("--networks", type=int, default=40, help="networks that are raced in them")
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    if given.run is None:
        print("racing: nothing to race; give the directory of a trained run")
        return
    torch.set_num_threads(given.threads)
    run = RunDirectory.open(given.run)
    data = open_datasets(run.recipe)
    if given.images:
        data = replace(data, search=data.search.subset(data.search.ids[: given.images]))
    space = run.recipe.build_space(data.skeleton)
    supernet = open_supernet(run, space)
    evaluator = make_evaluator(run, data, supernet, fixed=True, early_stop=True, keep_statistics=False)
    once = Once(evaluator, space)
    found = searches(once, given.samplers, given.repeats, given.evaluations, given.population)
    rule = EarlyStop()
    title = f"{run.recipe.name}: searches of {given.evaluations} networks on {len(data.search)} images"
    print_table(title, COLUMNS, rows_of(found))
    raced = risks(list(once.known.values())[: given.networks], rule, given.orders)
    print_table("the risk", RULES, rule_rows(raced))
    report = {
        **{"benchmark": "racing", "title": title, "rule": str(rule), "threads": given.threads},
        **{"networks": len(once.known), "searches": found, "risk": raced},
        **{"machine": machine(), "date": datetime.now(UTC).date().isoformat()},
        "command": command(options, given).replace("--run ", ""),
    }
    if given.record:
        write_json(given.results / "racing.json", report)
        write_text(given.results / "racing.md", page(report))
        print(f"recorded in {given.results / 'racing'}.json and .md")


def page(report: Mapping[str, Any]) -> str:
    """Return the record for people."""
    risk = report["risk"][0]
    table = [
        "| " + " | ".join(RULES) + " |",
        "|---|" + "---:|" * (len(RULES) - 1),
        *("| " + " | ".join(row) + " |" for row in rule_rows(report["risk"])),
    ]
    return record_page(
        "Ending the evaluation of losers early",
        f"{report['title']}, each with racing and without, from the same seed. Rule: {report['rule']}."
        f" {report['networks']} networks were evaluated, each once and to the end; what a race would have"
        " seen is read off that, so image counts are exact. Seconds are rough: the two searches evaluate"
        " other networks in part, and the machine did other work. *Hypervolume*: with racing over without, of"
        " (AP, MACs). *Same network chosen*: for budgets at the"
        f" {', '.join(f'{share:.0%}' for share in BUDGETS)} quantiles of the MACs looked at; *AP*: with"
        " racing less without. The two searches part after the first loser, whose AP is an estimate: so what"
        " a front gains or loses in a seed is mostly chance.",
        COLUMNS,
        rows_of(report["searches"]),
        (
            f"## The risk\n\n{risk['networks']} of these networks raced against each other with the images in"
            f" {risk['orders']} other orders, by rules of the same nominal risk (1% over all looks)."
            f" *Stopped* and *images*: each of the {risk['with_rival']} networks that have a better one that"
            " costs no more, against the best of those. *Wrong*: how often a network is stopped that is no"
            f" worse than its rival on all images, over all {risk['pairs']:,} such pairs, whatever they cost,"
            f" and over the {risk['pairs_near']:,} that are hard to tell apart.",
            "\n".join(table),
        ),
        report,
    )


if __name__ == "__main__":
    finish(main)
