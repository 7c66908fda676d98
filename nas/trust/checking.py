"""``nas trust``: stand-alone trainings, the supernet's scores of the same networks, and what both say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.config import to_plain
from nas.console import note, progress_bar
from nas.context import placeless
from nas.data import Datasets, open_datasets
from nas.known import search_context
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet
from nas.trust.jobs import train_all, usual_jobs
from nas.trust.report import ArchTrust, StandaloneAP, TrustReport, verdict_of
from nas.trust.scores import Score
from nas.trust.standalone import StandaloneFolder, Task, draw_archs, standalone_identity, tasks_of
from nas.trust.statistics import Measured, statistics
from search_spaces import Arch, RunError, SearchSpace
from search_spaces.files import locked, make_folder
from supernet.base import Supernet
from supernet.pose.bootstrap import Interval, bootstrap_ap

__all__ = ["Standalone", "check_trust", "judged", "train_standalone"]


@dataclass(frozen=True)
class Standalone:
    """The finished stand-alone trainings of a recipe.

    Attributes
    ----------
    archs
        The networks, by rising MACs.
    scores
        What each training reached.
    identity
        What they rest on.
    """

    archs: tuple[Arch, ...]
    scores: dict[Task, Score]
    identity: dict[str, Any]

    def of(self, arch: Arch) -> list[Score]:
        """Return the scores of a network, by seed."""
        return [score for task, score in sorted(self.scores.items(), key=_seed) if task.arch == arch]


def _seed(item: tuple[Task, Score]) -> int:
    return item[0].seed


def train_standalone(
    run: RunDirectory,
    folder: Path | None = None,
    *,
    jobs: int | None = None,
    data: Datasets | None = None,
) -> Standalone:
    """Train the networks of the run's recipe stand-alone, as far as the folder does not hold them yet.

    Parameters
    ----------
    run
        Only its recipe is read; there need be no trained supernet.
    folder
        Where the trainings are kept; by default within the run.
    jobs
        How many run at a time; by default one per core.
    data
        The recipe's data, if it is open already.

    Raises
    ------
    RunError
        If the folder's trainings rest on other settings, another command is at work in it, or one fails.
    """
    recipe = run.recipe
    kept = StandaloneFolder(folder or run.folder / "trust" / "standalone")
    data = data or open_datasets(recipe)
    space = recipe.build_space(data.skeleton)
    archs = draw_archs(space, recipe.trust.archs, recipe.trust.seed)
    identity = standalone_identity(recipe, data, space)
    kept.check(identity, write=False)
    tasks = tasks_of(recipe, archs)
    scores = {task: kept.score(task) for task in tasks}
    lacking = [task for task, score in scores.items() if score is None]
    if lacking:
        make_folder(kept.folder)
        busy = f"another command trains into '{kept.folder}'; wait for it or stop it"
        with locked(kept.folder / ".lock", busy):
            kept.check(identity)
            number = jobs or usual_jobs(recipe)
            note(f"{len(lacking)} of {len(tasks)} networks are to be trained stand-alone, {number} at a time")
            _train(run, kept, space, tasks, number, data)
    found = {task: kept.score(task) for task in tasks}
    whole = {task: score for task, score in found.items() if score is not None}
    if len(whole) < len(tasks):
        raise RunError(f"stand-alone trainings in '{kept.folder}' vanished meanwhile; start again")
    return Standalone(tuple(archs), whole, identity)


def _train(
    run: RunDirectory,
    kept: StandaloneFolder,
    space: SearchSpace,
    tasks: list[Task],
    jobs: int,
    data: Datasets,
) -> None:
    """Train what is lacking; show how far all trainings are together, and each one's result."""
    finished = sum(kept.score(task) is not None for task in tasks)
    steps_done: dict[Task, int] = {}
    first: dict[Task, int] = {}
    began = time.monotonic()
    with progress_bar("stand-alone trainings") as bar:

        def told(task: Task, done: int, steps: int) -> None:
            nonlocal finished
            first.setdefault(task, 0 if done == steps else done)
            steps_done[task] = done
            over = sum(steps_done.values())
            total = (len(tasks) - before) * steps
            worked = over - sum(first.values())
            left = (total - over) * (time.monotonic() - began) / worked if worked else None
            about = "" if left is None else f", about {duration(left)} left"
            if done == steps:
                finished += 1
                score = kept.score(task)
                if score is not None:
                    macs = space.cost(task.arch).macs / 1e6
                    note(
                        f"{task.name}: AP {score.ap:.4f} at {macs:.1f} M MACs"
                        f" ({duration(score.about['seconds'])}); {finished} of {len(tasks)} trained{about}"
                    )
            bar.update(over, total, f"{finished} of {len(tasks)} trained{about}")

        before = finished
        train_all(run.recipe, kept, tasks, jobs, told, data)


def duration(seconds: float) -> str:
    """Return a time as people say it: ``42 s``, ``17 min``, ``2 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


# -- the supernet, and both together -------------------------------------------------------------------------


def check_trust(
    run: RunDirectory,
    folder: Path | None = None,
    *,
    jobs: int | None = None,
    data: Datasets | None = None,
) -> TrustReport:
    """Compare the supernet's ranking with stand-alone trainings; return the report, which is kept in the run.

    What is there already, trainings and scores of the supernet as it is, is not made again.

    Parameters
    ----------
    run
        A run with a trained supernet.
    folder, jobs, data
        As for :func:`train_standalone`.

    Raises
    ------
    RunError
        If the supernet is not trained, another command is at work on the run, and as
        :func:`train_standalone`.
    """
    with run.locked():
        return judged(run, folder, jobs=jobs, data=data)


def judged(
    run: RunDirectory,
    folder: Path | None = None,
    *,
    jobs: int | None = None,
    data: Datasets | None = None,
) -> TrustReport:
    """Do what :func:`check_trust` does, in a run that is held already."""
    data = data or open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    open_supernet(run, space)  # what is wrong with it is told before hours of training
    if not run.trained:
        note(f"training of '{run.folder}' is not finished; its best weights so far are judged")
    alone = train_standalone(run, folder, jobs=jobs, data=data)
    supernet = open_supernet(run, space)  # somebody may have put other weights there meanwhile
    context = search_context(run, data)
    found = _supernet_scores(run, data, supernet, alone.archs, context)
    report = _report(run, space, alone, found, context)
    report.save(run.folder)
    return report


def _supernet_scores(
    run: RunDirectory,
    data: Datasets,
    supernet: Supernet,
    archs: tuple[Arch, ...],
    context: dict[str, str],
) -> list[Score]:
    """Return the scores of the supernet's subnets; those that were made of other weights are made anew."""
    place = run.folder / "trust" / "supernet"
    kept = {arch: Score.load(place / arch.id) for arch in archs}
    scores = {a: s for a, s in kept.items() if s is not None and _context_of(s) == context}
    if len(scores) < len(archs):
        evaluator = make_evaluator(run, data, supernet, fixed=True)
        with progress_bar("scoring the supernet's networks", len(archs)) as bar:
            for arch in archs:
                if arch not in scores:
                    scores[arch] = Score.measure(evaluator, arch, context=context)
                    scores[arch].save(place / arch.id)
                bar.update(len(scores))
        evaluator.close()
    return [scores[arch] for arch in archs]


def _context_of(score: Score) -> dict[str, str]:
    told = score.about.get("context")
    return placeless(told) if isinstance(told, dict) else {}


def _report(
    run: RunDirectory, space: SearchSpace, alone: Standalone, found: list[Score], context: dict[str, str]
) -> TrustReport:
    settings = run.recipe.trust
    trained = [alone.of(arch) for arch in alone.archs]
    images = {
        tuple(score.matches.image_ids.tolist()) for score in [*found, *(s for each in trained for s in each)]
    }
    if len(images) > 1:
        raise RunError(
            "stand-alone and supernet APs are of different images; delete RUN/trust and start again"
        )

    def interval(score: Score) -> Interval:
        # Every network on the same draws of the images.
        return bootstrap_ap(score.matches, settings.resamples, np.random.default_rng([settings.seed, 1]))

    archs = []
    for arch, subnet, trainings in zip(alone.archs, found, trained, strict=True):
        cost = space.cost(arch)
        aps = tuple(
            StandaloneAP(
                int(each.about["seed"]),
                interval(each),
                int(each.about["steps"]),
                float(each.about["seconds"]),
            )
            for each in trainings
        )
        archs.append(ArchTrust(arch, cost.macs, cost.params, interval(subnet), aps))
    measured = Measured(
        macs=np.array([each.macs for each in archs], np.float64),
        supernet=np.array([each.supernet.value for each in archs]),
        standalone=np.array([[ap.ap.value for ap in each.standalone] for each in archs]).T,
        supernet_matches=[score.matches for score in found],
        standalone_matches=[[each[i].matches for each in trained] for i in range(settings.repeats)],
    )
    told = statistics(measured, settings.resamples, np.random.default_rng([settings.seed, 2]))
    return TrustReport(
        tuple(archs), told, verdict_of(told), context, alone.identity, dict(to_plain(settings))
    )
