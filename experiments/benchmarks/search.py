"""How many evaluations a search needs, and how fast it looks a space over.

Three questions:

1. *Evaluations*: after how many measured networks do those measured so far dominate 90, 95 and 99% of the
true
   hypervolume of (MACs, AP)? Random search, Optuna's NSGA-II as anybody would use it, our NSGA-II, and the
   guided sampler; each with the same seeds. The reference point is the largest MACs and the least AP on
   offer.
2. *Prediction*: how well do accuracy predictors know the networks that were not measured?
3. *Speed*: how many networks are priced and predicted a second, and what does a generation take?

The problems are analytic, so that their fronts are known (``_search_problems.py``), and every table of really
measured networks in ``results/tabular`` (``experiments/tabular.py`` records them).

Run: python experiments/benchmarks/search.py [--record]
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _common import RESULTS, command, finish, machine, parser, record_page
from _rival_predictors import Ensemble, Ridge
from _search_problems import Analytic, Course, Floats, Problem, Tabular
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from nas.console import print_table, progress_bar
from nas.plot_style import STYLE, save_figure
from nas.search import AP, MACS, SAMPLERS, Evaluation, Known, Pricing, search
from nas.search.accuracy import AccuracyPredictor
from nas.search.pricing import key
from nas.search.tabular import read_table
from search_spaces import Arch, Genotypes
from search_spaces.files import write_json, write_text

SHARES = (0.9, 0.95, 0.99)
CURVE = (*np.arange(0.5, 0.99, 0.01).round(2).tolist(), 0.99)
POPULATION = 12
MEASURED = (24, 48, 96, 192)
NOISE = 0.005
BUDGET = 3e9


# -- the ways of searching ---------------------------------------------------------------------------------


@dataclass
class Watched:
    """Measures networks of a problem, and stops the search once enough is found."""

    problem: Problem
    seed: int
    course: Course

    def evaluate(self, arch: Arch) -> Evaluation:
        """Return what measuring the network gives."""
        place = self.problem.find(self.problem.space.encode(arch))
        self.course.add(place)
        if self.course.done:
            raise KeyboardInterrupt
        return Evaluation(self.problem.measured(place, self.seed))


def ours(sampler: str) -> Callable[[Problem, int, Course, int], None]:
    """Return a search by one of our samplers, in generations of :data:`POPULATION`."""

    def go(problem: Problem, seed: int, course: Course, limit: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            search(
                problem.space,
                Watched(problem, seed, course),
                storage=Path(folder) / "study.journal",
                trials=limit,
                objectives=[AP, MACS],
                constraints=problem.constraints,
                pricers=problem.pricers,
                population=POPULATION,
                sampler=sampler,
                seed=seed,
            )

    return go


def optuna_s(population: int) -> Callable[[Problem, int, Course, int], None]:
    """Return Optuna's NSGA-II as its documentation uses it: every trial is an evaluation.

    In a table a proposal gets the network that is most like it; one that was measured is then not counted
    again.
    """

    def go(problem: Problem, seed: int, course: Course, limit: int) -> None:
        sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        known: dict[int, float] = {}
        table = isinstance(problem, Tabular)
        for _ in range(limit if not table else 20 * limit):
            trial = study.ask()
            genotype = np.zeros(len(problem.space.shape), dtype=np.int64)
            for gene, choice in enumerate(problem.space.choices):
                if len(choice.values) > 1:
                    genotype[gene] = choice.values.index(
                        trial.suggest_categorical(choice.name, choice.values)
                    )
            place = problem.find(genotype)
            if not table or place not in known:
                course.add(place)
                known[place] = problem.measured(place, seed)
            if not table:
                for constraint in problem.constraints:
                    trial.set_constraint("macs", constraint.violation(float(problem.macs[place])))
            study.tell(trial, [known[place], float(problem.macs[place])])
            if course.done or len(course.shares) == limit:
                return

    return go


def at_random(problem: Problem, seed: int, course: Course, limit: int) -> None:
    """Measure networks on offer, drawn without repetition."""
    for place in np.random.default_rng(seed).permutation(np.flatnonzero(problem.offered))[:limit]:
        course.add(int(place))
        if course.done:
            return


WAYS: Mapping[str, Callable[[Problem, int, Course, int], None]] = {
    "random": at_random,
    "Optuna NSGA-II, 50": optuna_s(50),
    f"Optuna NSGA-II, {POPULATION}": optuna_s(POPULATION),
    "nsga2": ours("nsga2"),
    "guided": ours("guided"),
}
PLAIN = "Optuna NSGA-II, 50"


def needed(problem: Problem, seeds: int, limit: int, tell: Callable[[], None]) -> dict[str, Any]:
    """Search a problem in every way with every seed; return what was needed."""
    most = limit if problem.limit is None else min(limit, problem.limit)
    ways = {}
    for name, go in WAYS.items():
        courses, seconds = [], []
        for seed in range(seeds):
            course, began = Course(problem, SHARES[-1]), time.perf_counter()
            go(problem, seed, course, most)
            courses.append(course)
            seconds.append(round(time.perf_counter() - began, 2))
            tell()
        ways[name] = {
            "evaluations": {f"{share:g}": [c.needed(share) for c in courses] for share in CURVE},
            "measured": [len(c.shares) for c in courses],
            "repeated": [c.repeated for c in courses],
            "outside": [c.outside for c in courses],
            "reached": [round(c.shares[-1], 5) for c in courses],
            "seconds": seconds,
        }
    networks, front = int(problem.offered.sum()), len(problem.front)
    return {"title": problem.title, "networks": networks, "front": front, "limit": most, "ways": ways}


def spread(values: Sequence[int | None]) -> tuple[float, float, float]:
    """Return median, 5th and 95th percentile over seeds; infinite where the limit came first."""
    known = [math.inf if value is None else float(value) for value in values]
    low, high = np.percentile(known, [5, 95], method="inverted_cdf")
    return statistics.median_low(known), float(low), float(high)


def count(value: float, limit: int) -> str:
    """Return a number of evaluations, or that there were not enough."""
    return f"{value:,.0f}" if math.isfinite(value) else f"> {limit:,}"


def evaluation_rows(problem: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per way of searching one problem."""
    limit, rows = problem["limit"], []
    plain = spread(problem["ways"][PLAIN]["evaluations"][f"{SHARES[-1]:g}"])[0]
    for name, found in problem["ways"].items():
        row = [name]
        for share in SHARES:
            middle, low, high = spread(found["evaluations"][f"{share:g}"])
            row.append(f"{count(middle, limit)} ({count(low, limit)} to {count(high, limit)})")
        wasted = [
            100.0 * (repeated + outside) / measured
            for repeated, outside, measured in zip(
                found["repeated"], found["outside"], found["measured"], strict=True
            )
        ]
        row.append(f"{statistics.median(wasted):.0f}%")
        mine = spread(found["evaluations"][f"{SHARES[-1]:g}"])[0]
        if not math.isfinite(mine):
            row.append("-")
        else:
            row.append(f"{plain / mine:.1f}" if math.isfinite(plain) else f"> {limit / mine:.1f}")
        rows.append(row)
    return rows


# -- prediction -----------------------------------------------------------------------------------------


class Guesses:
    """Our predictor, asked like the others."""

    def __init__(self, choices: Any, genotypes: Genotypes, aps: Floats) -> None:
        self.predictor = AccuracyPredictor.fit(choices, genotypes, aps)

    def predict(self, genotypes: Genotypes) -> tuple[Floats, Floats]:
        """Return expectation and standard deviation, shape (n,) each."""
        return self.predictor.expected().at(genotypes), self.predictor.deviation(genotypes)


PREDICTORS: Mapping[str, Any] = {
    "Bayesian ridge on one-hot choices": Ridge,
    "ensemble of 10 neural networks": Ensemble,
    "Gaussian process (ours)": Guesses,
}


def predicted(problem: Analytic, repeats: int) -> list[dict[str, Any]]:
    """Return how well each predictor does after so many networks measured at random, with noise."""
    everything, found = problem.space.genotypes(), []
    on_front = np.flatnonzero(
        np.isin(problem.macs + 1j * problem.aps, problem.front[:, 0] + 1j * problem.front[:, 1])
    )
    for measured in MEASURED:
        for name, make in PREDICTORS.items():
            figures: dict[str, list[float]] = {}
            for seed in range(repeats):
                rng = np.random.default_rng(seed)
                chosen = rng.choice(len(everything), measured, replace=False)
                asked = np.concatenate([rng.choice(len(everything), 1000, replace=False), on_front])
                aps = np.array([problem.measured(int(place), seed) for place in chosen])
                began = time.perf_counter()
                predictor = make(problem.space.choices, everything[chosen], aps)
                taken = time.perf_counter() - began
                expected, deviation = predictor.predict(everything[asked])
                off = expected - problem.aps[asked]
                for figure, value in (
                    ("rmse", math.sqrt(np.mean(off[:1000] ** 2))),
                    ("rmse_front", math.sqrt(np.mean(off[1000:] ** 2))),
                    ("tau", kendalltau(expected[:1000], problem.aps[asked[:1000]]).statistic),
                    ("inside_90", np.mean(np.abs(off[:1000]) < 1.645 * deviation[:1000])),
                    ("fit_ms", 1e3 * taken),
                ):
                    figures.setdefault(figure, []).append(round(float(value), 5))
            found.append({"measured": measured, "predictor": name, **figures})
    return found


PREDICTION_COLUMNS = (
    "measured", "predictor", "error of AP", "on the front", "Kendall's tau", "in the 90% interval", "fit (ms)"
)  # fmt: skip


def prediction_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table's rows: medians over repeats."""
    return [
        [
            str(each["measured"]),
            each["predictor"],
            f"{statistics.median(each['rmse']):.4f}",
            f"{statistics.median(each['rmse_front']):.4f}",
            f"{statistics.median(each['tau']):.3f}",
            f"{100 * statistics.mean(each['inside_90']):.0f}%",
            f"{statistics.median(each['fit_ms']):.0f}",
        ]
        for each in found
    ]


# -- speed -------------------------------------------------------------------------------------------------


def timed(problem: Analytic, measured: int, repeats: int) -> dict[str, Any]:
    """Return how fast the guided sampler's parts are on a whole space, seconds and networks per second."""
    rng = np.random.default_rng(0)
    everything = problem.space.genotypes()
    chosen = rng.choice(len(everything), measured, replace=False)
    aps = np.array([problem.measured(int(place), 0) for place in chosen])
    pricing = Pricing(problem.space)
    seen = {key(genotype) for genotype in everything[chosen]}
    known, choices = Known(pricing, (AP, MACS), everything[chosen], aps, seen), problem.space.choices
    seconds: dict[str, list[float]] = {}

    def clock(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        seconds.setdefault(name, []).append(time.process_time() - began)
        return result

    for repeat in range(repeats + 1):  # the first builds tables and is left out
        clock("price", lambda: pricing.prices(everything))
        predictor = clock("fit", lambda: AccuracyPredictor.fit(choices, everything[chosen], aps))
        sample = predictor.sample(np.random.default_rng(repeat))
        clock("predict", sample.everywhere)
        generator = np.random.default_rng(repeat)
        clock("generation", lambda g=generator: SAMPLERS["guided"].propose(known, g, POPULATION))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    n = len(everything)
    return {
        "measured": measured,
        "networks": n,
        "cpu_seconds": {name: float(f"{value:.4g}") for name, value in medians.items()},
        "priced_per_second": float(f"{n / medians['price']:.4g}"),
        "predicted_per_second": float(f"{n / medians['predict']:.4g}"),
        "considered_per_second": float(f"{POPULATION * n / medians['generation']:.4g}"),
    }


SPEED_COLUMNS = (
    "measured", "priced (networks/s)", "predicted (networks/s)", "fit (ms)",
    f"generation of {POPULATION} (s)", "considered in it (networks/s)",
)  # fmt: skip


def speed_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table's rows."""
    return [
        [
            str(each["measured"]),
            f"{each['priced_per_second']:,.0f}",
            f"{each['predicted_per_second']:,.0f}",
            f"{1e3 * each['cpu_seconds']['fit']:.0f}",
            f"{each['cpu_seconds']['generation']:.2f}",
            f"{each['considered_per_second']:,.0f}",
        ]
        for each in found
    ]


# -- what is told ------------------------------------------------------------------------------------------

COLORS = ("#9aa5b1", "#d08c2e", "#8c5a2b", "#4c9f70", "#2364aa")


def draw(problems: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw how the hypervolume grows: medians over seeds, and from the 5th to the 95th percentile."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(problems), 3.9), layout="constrained")
        for place, problem in enumerate(problems.values()):
            axes = figure.add_subplot(1, len(problems), place + 1)
            for (name, found), color in zip(problem["ways"].items(), COLORS, strict=True):
                spreads = np.array([spread(found["evaluations"][f"{share:g}"]) for share in CURVE])
                spreads = np.where(np.isinf(spreads), problem["limit"], spreads)
                percent, reached = 100 * np.array(CURVE), spreads[:, 0] < problem["limit"]
                axes.plot(spreads[reached, 0], percent[reached], color=color, label=name, linewidth=1.8)
                axes.fill_betweenx(
                    percent, spreads[:, 1], spreads[:, 2], color=color, alpha=0.15, linewidth=0
                )
            axes.axhline(99, color=COLORS[0], linewidth=0.6, linestyle=":")
            axes.set(xscale="log", ylim=(60, 100), xlim=(4, problem["limit"]))
            axes.set(xlabel="networks evaluated", title=problem["title"])
            axes.title.set_fontsize(9)
            if place == 0:
                axes.set_ylabel("true hypervolume reached (%)")
                axes.legend(frameon=False, fontsize=8, loc="lower right")
        save_figure(figure, [path])


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


EVALUATION_COLUMNS = ("search", *(f"{share:.0%}" for share in SHARES), "wasted", "fewer")


def page(report: Mapping[str, Any]) -> str:
    """Return the record for people."""
    first, *others = report["problems"].values()

    def heading(problem: Mapping[str, Any]) -> str:
        return (
            f"**{problem['title'][0].upper()}{problem['title'][1:]}**: {problem['networks']:,} networks,"
            f" {problem['front']} on the true front; at most {problem['limit']:,} evaluations."
        )

    after = []
    for problem in others:
        after += [heading(problem), table_of(EVALUATION_COLUMNS, evaluation_rows(problem))]
    after += [
        "*fewer*: how many times the evaluations of Optuna's NSGA-II with its default population (medians, to"
        " 99%). *wasted*: evaluations that repeat a network or exceed the budget. *random*: networks within"
        " the budget, without repetition. *Optuna NSGA-II*: `NSGAIISampler` with populations of 50 (its"
        f" default) and {POPULATION}, a constraint set on each trial, every trial evaluated; in a recorded"
        " table a proposal is answered by the network most like it, and only networks that are new count."
        f" *nsga2*, *guided*: our samplers, {POPULATION} networks per generation. The noise belongs to the"
        " network: measuring it again would give the same AP. What counts is the true AP of the networks"
        " measured, and the hypervolume up to the largest MACs and the least AP on offer.",
        "![hypervolume against evaluations](search.png)",
        f"**Prediction**, from networks measured at random with noise of sd {NOISE:g}; medians of"
        f" {report['seeds']} repeats. *error*: root mean square over 1,000 random networks, and over the"
        " networks of the true front. *in the 90% interval*: of the random networks' true APs.",
        table_of(PREDICTION_COLUMNS, prediction_rows(report["prediction"])),
        f"**Speed** over the {report['speed'][0]['networks']:,} networks of the native space, on one core:"
        " processor time, medians. *priced*: all costs of every network. *predicted*: a sample of the"
        " posterior for every network. *generation*: the predictor learned anew, a sample of everything and"
        " the network that adds most for each candidate.",
        table_of(SPEED_COLUMNS, speed_rows(report["speed"])),
    ]
    before = (
        "Evaluations until the networks measured dominate a share of the true hypervolume of (MACs, AP):"
        f" median (5th to 95th percentile) of {report['seeds']} seeds.\n\n{heading(first)}"
    )
    return record_page(
        "Sample efficiency of the search", before, EVALUATION_COLUMNS, evaluation_rows(first), after, report
    )


def problems_of(folder: Path) -> dict[str, Problem]:
    """Return every problem by its name: the analytic ones, and the tables in a folder."""
    found: list[Problem] = [Analytic(), Analytic(NOISE), Analytic(NOISE, BUDGET)]
    found += [Tabular(read_table(path)) for path in sorted(folder.glob("*.jsonl.gz"))]
    return {problem.name: problem for problem in found}


def main() -> None:
    """Measure, tell and record."""
    options = parser("search", "Evaluations that searches need, and their speed.", repeats=5)
    options.add_argument("--seeds", type=int, default=10, help="searches of each kind (default: %(default)s)")
    options.add_argument("--limit", type=int, default=2000, help="most evaluations of a search")
    options.add_argument("--problems", nargs="+", help="names (default: all)")
    options.add_argument("--tables", type=Path, default=RESULTS / "tabular", help="folder of recorded tables")
    given = options.parse_args()
    if min(given.seeds, given.limit, given.repeats) < 1:
        options.error("--seeds, --limit and --repeats are at least 1")
    known = problems_of(given.tables)
    names = given.problems or list(known)
    if unknown := sorted(set(names) - set(known)):
        options.error(f"--problems: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report: dict[str, Any] = {"benchmark": "search", "seeds": given.seeds, "problems": {}}
    done = 0
    with progress_bar("searches", len(names) * len(WAYS) * given.seeds) as bar:

        def tell() -> None:
            nonlocal done
            done += 1
            bar.update(done)

        for name in names:
            report["problems"][name] = needed(known[name], given.seeds, given.limit, tell)
    noisy = known["analytic-noisy"]
    assert isinstance(noisy, Analytic)
    report["prediction"] = predicted(noisy, given.seeds)
    report["speed"] = [timed(noisy, measured, given.repeats) for measured in (48, 300)]
    report["machine"] = machine()
    report["date"] = datetime.now(UTC).date().isoformat()
    report["command"] = command(options, given)
    for problem in report["problems"].values():
        print_table(problem["title"], EVALUATION_COLUMNS, evaluation_rows(problem))
    print_table("prediction", PREDICTION_COLUMNS, prediction_rows(report["prediction"]))
    print_table("speed", SPEED_COLUMNS, speed_rows(report["speed"]))
    if given.record:
        write_json(given.results / "search.json", report)
        write_text(given.results / "search.md", page(report))
        draw(report["problems"], given.results / "search.png")
        print(f"recorded in {given.results / 'search'}.json, .md and .png")


if __name__ == "__main__":
    finish(main)
