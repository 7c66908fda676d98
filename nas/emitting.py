"""``nas emit``: from a chosen arch to a folder that runs: arch, weights, ONNX, and a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from latency_tables import LatencyTable, Target
from latency_tables.runtimes.base import file_digest
from nas.asked import Asked, read_asked
from nas.console import note, progress_bar
from nas.data import Datasets, open_datasets
from nas.evaluation import how_measured
from nas.fine_tuning import FineTuning, Tuned, fine_tune, paired
from nas.known import Answer, KnownNetworks, known_networks, load_result, own_answer, search_context
from nas.latency import (
    UpperEnd,
    known_targets,
    load_predictors,
    measure_emitted,
    prediction_json,
    quantised_promise,
    why_not_here,
)
from nas.model_card import CARD, CARD_FORMAT, PAGE, changing_card, write_card
from nas.provenance import data_terms, reproduction
from nas.run import RunDirectory, environment
from nas.search import BudgetText, Constraint, Pricing, parse_budget
from nas.search_report import ties_of
from nas.train import make_evaluator, open_supernet
from nas.trust.standing import standing
from search_spaces import (
    Arch,
    BudgetError,
    InputError,
    LitePoseNasError,
    MissingLayerError,
    RunError,
    to_research_config,
    write_arch,
)
from search_spaces.files import atomic_folder, is_free, write_json
from search_spaces.research import has_research_config
from supernet.base import Subnet
from supernet.checkpoint import load_network, save_network
from supernet.distillation import Teacher
from supernet.export import export_onnx
from supernet.pose.evaluate import EvalResult, evaluate

__all__ = ["Emitted", "emit", "emit_from_run"]

RESAMPLES: Final = 1000
"""For the interval of the AP on the card."""
_EXPORTS: Final = "exports"
_WRITTEN: Final = {
    *("arch.json", "arch.research.json", "model.safetensors", "model.onnx", CARD, PAGE, _EXPORTS),
}
"""What may lie in an emitted folder that is written anew."""


@dataclass(frozen=True)
class Emitted:
    """One emitted network.

    Attributes
    ----------
    folder
        Holds ``arch.json``, ``arch.research.json`` (where that format can say it), ``model.safetensors``,
        ``model.onnx``, ``card.json`` and ``README.md``, which says to people what the card says.
    card
        What ``card.json`` says.
    """

    folder: Path
    card: dict[str, Any]


def check_place(folder: Path) -> None:
    """Refuse to write a network over what is none, or over what only its owner can make again.

    Raises
    ------
    RunError
        If ``folder`` is no emitted network, holds files of somebody else's, or an export is at work in it.
    """
    if not folder.exists():
        return
    if not (folder / CARD).is_file() or not (folder / "model.safetensors").is_file():
        raise RunError(f"'{folder}' exists and is no emitted network; choose another --output")
    others = sorted(p.name for p in folder.iterdir() if p.name not in _WRITTEN and not p.name.startswith("."))
    if others:
        raise RunError(
            f"'{folder}' holds '{others[0]}'{' and more' if len(others) > 1 else ''}, which 'nas emit' did"
            " not write and would remove: move it away, or choose another --output"
        )
    lock = folder / _EXPORTS / ".lock"
    if lock.exists() and not is_free(lock):
        raise RunError(f"an export is at work in '{folder}'; wait for it, or choose another --output")


def emit(
    run: RunDirectory,
    data: Datasets,
    arch: Arch,
    folder: Path,
    *,
    latencies: Mapping[str, Any] | None = None,
    notices: Sequence[str] = (),
    found: Mapping[str, Any] | None = None,
    trust: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
    tuned: Tuned | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Emitted:
    """Extract the network from the run's supernet, recalibrate it, measure it on the val images, write it.

    AP is that of the file: the weights are read back from it before they are evaluated.

    Parameters
    ----------
    run, data
        A trained run and its data sets.
    arch
        A network of the run's space.
    folder
        Made anew; nothing is left of it if anything fails.
    latencies
        Predicted latencies by target, as they should stand in the card.
    notices
        What must be known before the network is used, for the card.
    found
        How the arch was chosen, for the card.
    trust
        What is known of the ranking that it was chosen by (:meth:`nas.trust.standing.Standing.to_json`).
    command
        The words after ``nas`` that emit it again, for the card.
    tuned
        The network trained on; its weights are taken if it was kept, and both are scored on the val images.
    progress
        Told about the evaluation, images done and in all.

    Raises
    ------
    InputError
        If the arch is not in the run's space.
    RunError
        As :func:`check_place`, or if the run is not trained.
    """
    folder = Path(folder)
    check_place(folder)
    space = run.recipe.build_space(data.skeleton)
    if arch not in space:
        raise InputError(f"the arch is not in this run's space: {'; '.join(space.differences(arch))}")
    evaluator = make_evaluator(run, data, open_supernet(run, space), on="val")
    with atomic_folder(folder) as building:
        weights, skeleton = building / "model.safetensors", data.skeleton.to_json()
        told = {"skeleton": skeleton, "sigma": run.recipe.train.sigma}
        extracted = evaluator.subnet(arch).to("cpu")
        network = tuned.network if tuned is not None and tuned.kept else extracted
        save_network(weights, network, {**told, "recipe": run.recipe.name})
        reloaded, _ = load_network(weights)
        export = export_onnx(reloaded, building / "model.onnx", metadata=told)
        config = replace(evaluator.config, resolution=arch.number("resolution"))

        def scored(subnet: Subnet, resamples: int) -> EvalResult:
            return evaluate(
                subnet.to(device=evaluator.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
                data.val,
                config,
                protocol=evaluator.protocol,
                device=evaluator.device,
                progress=progress,
                resamples=resamples,
                rng=np.random.default_rng(run.recipe.seed),
            )

        result = scored(reloaded, RESAMPLES)
        told_tuned = None
        if tuned is not None:
            other = scored(extracted if tuned.kept else tuned.network, 0)
            before, after = (other, result) if tuned.kept else (result, other)
            told_tuned = {
                **tuned.told,
                "val": {
                    "images": len(data.val),
                    "before": before.stats["AP"],
                    "after": after.stats["AP"],
                    "difference": paired(
                        data.val,
                        before.detections,
                        after.detections,
                        evaluator.protocol,
                        config.max_detections,
                        run.recipe.seed,
                    ).to_json(),
                },
            }
        write_arch(building / "arch.json", arch)
        if has_research_config(arch):
            write_json(building / "arch.research.json", to_research_config(arch))
        cost = space.cost(arch)
        joints = [name for name, given in zip(data.skeleton.joints, data.val.labelled) if given]
        card: dict[str, Any] = {
            "format": CARD_FORMAT,
            "id": arch.id,
            "paradigm": run.recipe.paradigm.name,
            "arch": arch.to_json(),
            "skeleton": skeleton,
            "input": {
                "height": arch.size[0],
                "width": arch.size[1],
                "colour": "RGB",
                "normalised": "ImageNet",
            },
            "cost": {"params": cost.params, "macs": cost.macs, "macs_paper": cost.macs_paper},
            "latency": dict(latencies or {}),
            "notices": list(notices),
            "ap": {
                "on": f"{len(data.val)} images of {data.val.where}",
                "protocol": evaluator.protocol,
                "flip": config.flip,
                **how_measured(config),
                "joints_scored": joints,
                "stats": result.stats,
                "interval": None if result.interval is None else result.interval.to_json(),
            },
            "chosen": dict(found or {}),
            "fine_tuned": told_tuned,
            "trust": dict(trust or {}),
            "supernet": {"run": run.recipe.name, "seed": run.recipe.seed, "space": space.config()},
            "calibration_images": len(evaluator.calibration),
            "onnx": {
                "opset": export.opset,
                "batch": export.batch,
                "max_abs_error": export.max_abs,
                "max_rel_error": export.max_rel,
            },
            "data": data_terms(run.recipe, data),
            "reproduce": reproduction(
                run, command or ["emit", str(run.folder), "--arch", str(folder / "arch.json")], found or {}
            ),
            "files": {path.name: path.stat().st_size for path in sorted(building.iterdir())},
            "sha256": {name: file_digest(building / name) for name in (weights.name, "model.onnx")},
            "environment": environment(["nas", "emit"]),
        }
        write_card(building, card)
    return Emitted(folder, card)


def _by_budget(known: KnownNetworks, asked: Asked) -> tuple[Answer, dict[str, dict[str, Any]]]:
    """Return what the known networks say to a command's budget, and the latency budgets of the card.

    Raises
    ------
    BudgetError
        If none answers; where no network of the space would, it says so and names the smallest budget that
        can be met.
    """
    budget, traded = asked.settled("", known.space)
    answer = known.answer_to(budget, traded, asked.predictors)
    if answer.found is None:
        if not answer.within_budget:
            pricers = [UpperEnd(asked.predictors[target]) for target in budget.targets]
            Pricing(known.space, budget.constraints, pricers).anchor  # noqa: B018 - refuses what cannot be met
        raise BudgetError(answer.why)
    own = () if answer.found.trial is None else load_result(known.run, answer.found.study).constraints
    return answer, {
        **_latency_budgets(own, f"search '{answer.found.study}'"),
        **_latency_budgets(budget.constraints, "this command"),
    }


def _chosen_json(answer: Answer, ties: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a network was chosen, for the card."""
    told = answer.to_json()
    return {
        "by": f"search '{told['found_in']}'",
        **{name: told[name] for name in ("found_in", "trial", "known")},
        "budget": list(answer.budget.parts),
        "search_ap": answer.record.ap,
        "within_noise": dict(ties),
    }


def emit_from_run(
    run: RunDirectory,
    *,
    max_macs: str | None = None,
    max_params: str | None = None,
    max_size: str | None = None,
    max_latency: Sequence[str] = (),
    min_ap: str | None = None,
    like: str | None = None,
    budget: str | None = None,
    objectives: Sequence[str] = (),
    arch: Arch | None = None,
    study: str | None = None,
    tables: Sequence[Path] | None = None,
    strict_tables: bool = False,
    folder: Path | None = None,
    data: Datasets | None = None,
    tuning: FineTuning | None = None,
) -> Emitted:
    """Carry out ``nas emit``: choose by budget (or take ``arch``), emit, measure where possible.

    The network is chosen among all that the run's studies evaluated to the end under the present weights,
    images and settings (:func:`nas.known.known_networks`), latencies priced by the present tables; the card
    says which study found it, and among how many networks it was chosen.

    The card's latency holds for each target the prediction with its interval and provenance and the budget:
    that of this command, or else that of the search which found the network. Where the target is this very
    machine, the network is timed as the target says (runtime, threads, precision) and held against both.

    Parameters
    ----------
    run
        A trained run.
    max_macs, max_params, max_size, max_latency, min_ap, like
        The budget; see :class:`~nas.search.budgets.BudgetText`. None at all: the highest AP.
    budget
        The same in one, in the words of ``--budget``; see :func:`~nas.search.budgets.parse_budget`.
    objectives
        What ``like`` bounds, and of what the cheapest that reaches ``min_ap`` is taken; as of a search.
    arch
        The network itself, searched or not.
    study
        Choose among this study's networks alone; without a budget, by the study's own.
    tables, strict_tables
        Folders of latency tables; whether these may hold no estimates.
    folder
        Where it goes; by default ``emitted/ID`` in the run.
    data
        The run's data sets, where they are open already.
    tuning
        Train the network on, alone, before it is written; see :mod:`nas.fine_tuning`.

    Raises
    ------
    InputError
        If options contradict each other or are malformed.
    MissingLayerError
        If the table of a bounded target does not answer; with ``strict_tables`` measurements alone do.
    BudgetError
        If no network known meets the budget.
    RunError
        If the run is not trained.
    """
    text = BudgetText(max_macs, max_params, max_size, tuple(max_latency), min_ap, like)
    if budget is not None:
        text = parse_budget(budget).with_common(text, f"--budget '{budget}'")
    if arch is not None and (text or study or objectives):
        raise InputError("--arch names the network itself; leave out the budget, --objective and --study")
    asked = read_asked({"": text}, objectives, run, tables, strict=strict_tables)
    own = None if study is None else load_result(run, study)
    opened = data or open_datasets(run.recipe)
    teacher = None if tuning is None else tuning.external(run.recipe, opened)
    named = arch
    found: dict[str, Any] = {"by": "hand"}
    budgets: dict[str, dict[str, Any]] = {}
    if arch is None:
        known = known_networks(run, study=study, tables=tables, strict_tables=strict_tables, data=opened)
        for why in known.left_out.values() if known.records else ():  # else the error tells
            note(why if study is not None else f"{why}; it is left out (--study takes it)")
        if own is not None and not text and not objectives:
            answer = own_answer(own)
            budgets = _latency_budgets(answer.budget.constraints, f"search '{study}'")
        else:
            answer, budgets = _by_budget(known, asked)
        arch = answer.arch
        found = _chosen_json(answer, ties_of(answer.record, known.records))
    context = search_context(run, opened) if run.best.is_file() else {}
    where = folder or run.folder / "emitted" / arch.id
    check_place(where)
    exported = (where / _EXPORTS).is_dir()
    with run.locked():
        blocks, family = arch.blocks(len(opened.skeleton)), arch.family.name
        latencies = {n: prediction_json(p, p.predict(blocks, family)) for n, p in asked.predictors.items()}
        answering = {predictor.name: predictor.table for predictor in asked.predictors.values()}
        for name in (name for name in known_targets(tables, run) if name not in latencies):
            try:  # what further tables say is told where they can say it
                further = load_predictors([name], tables, run, strict=strict_tables)[name]
                if name in budgets or not further.table.missing(blocks):
                    latencies[name] = prediction_json(further, further.predict(blocks, family))
                    answering[further.name] = further.table
            except (InputError, MissingLayerError) as error:
                note(f"latency table left out: {error}")
        notices = _promises(latencies, budgets)
        for line in notices:
            note(line)
        tuned = None if tuning is None else _tuned(run, opened, arch, tuning, teacher)
        with progress_bar("evaluating", len(opened.val)) as bar:
            emitted = emit(
                run,
                opened,
                arch,
                where,
                latencies=latencies,
                notices=notices,
                found=found,
                trust=standing(run.folder, context).to_json(),
                command=_command(run, text, objectives, study, named, tables, strict_tables, folder, tuning),
                tuned=tuned,
                progress=lambda d, n: bar.update(d, n),
            )
        for told in emitted.card["latency"].values():
            told |= _measured(emitted.folder, told, answering[Target.from_dict(told["target"]).name])
        with changing_card(emitted.folder) as card:
            card["latency"] = emitted.card["latency"]
    if exported:
        note(f"the exported files that '{where}' held are gone with the former network: 'nas export' again")
    if where.absolute().parent != (run.folder / "emitted").absolute():
        note(f"'{where}' is outside of '{run.folder}/emitted', where 'nas report' and 'nas runs' look")
    return emitted


def _tuning_words(tuning: FineTuning) -> Sequence[tuple[str, str | None]]:
    rate = tuning.learning_rate
    return (
        ("--fine-tune", str(tuning.epochs)),
        ("--teacher", tuning.teacher),
        ("--learning-rate", None if rate is None else f"{rate:.12g}"),
    )


def _tuned(
    run: RunDirectory, data: Datasets, arch: Arch, tuning: FineTuning, teacher: Teacher | None
) -> Tuned:
    """Train the network on, with a progress bar."""
    space = run.recipe.build_space(data.skeleton)
    if arch not in space:
        raise InputError(f"the arch is not in this run's space: {'; '.join(space.differences(arch))}")
    with progress_bar("fine-tuning") as bar:
        tuned = fine_tune(
            run,
            data,
            open_supernet(run, space),
            arch,
            tuning,
            teacher=teacher,
            progress=lambda step, steps, row: bar.update(step, steps, f"loss {row['total']:.5f}"),
            noticed=note,
        )
    told = tuned.told["search"]
    kept = "kept" if tuned.kept else "not kept: no higher, so the weights from the supernet stay"
    note(f"fine-tuned: AP {told['before']:.4f} to {told['after']:.4f} on the search images, {kept}")
    return tuned


def _command(
    run: RunDirectory,
    text: BudgetText,
    objectives: Sequence[str],
    study: str | None,
    named: Arch | None,
    tables: Sequence[Path] | None,
    strict_tables: bool,
    folder: Path | None,
    tuning: FineTuning | None,
) -> list[str]:
    """Return the words after ``nas`` that ask for the same again."""
    words = ["emit", str(run.folder)]
    for option, value in (
        ("--max-macs", text.max_macs),
        ("--max-params", text.max_params),
        ("--max-size", text.max_size),
        *(("--max-latency", each) for each in text.max_latency),
        ("--min-ap", text.min_ap),
        ("--like", text.like),
        *(("--objective", each) for each in objectives),
        (
            "--arch",
            None if named is None else str((folder or run.folder / "emitted" / named.id) / "arch.json"),
        ),
        ("--study", study),
        *(("--tables", str(each)) for each in tables or ()),
        ("--output", None if folder is None else str(folder)),
        *(_tuning_words(tuning) if tuning is not None else ()),
    ):
        words += [] if value is None else [option, value]
    return [*words, *(["--strict-tables"] if strict_tables else [])]


def _latency_budgets(constraints: Sequence[Constraint], by: str) -> dict[str, dict[str, Any]]:
    """Return the latency budgets among constraints, by target, with who set them."""
    return {
        c.objective.target: {"ms": c.upper, "by": by} for c in constraints if c.objective.target is not None
    }


def _promises(latencies: dict[str, Any], budgets: Mapping[str, dict[str, Any]]) -> list[str]:
    """Put each budget beside its prediction; return what has to be said of budgets, a line each."""
    lines = []
    for name, told in latencies.items():
        budget = budgets.get(name)
        within = budget and {"upper_end_within": told["high_ms"] <= budget["ms"], "measured_within": None}
        told["budget"] = budget and {**budget, **(within or {})}
        promise = quantised_promise(Target.from_dict(told["target"]))
        if budget is not None and promise is not None:
            lines.append(promise)
    lines += [
        f"the budget on '{name}', by {budget['by']}, could not be checked: no table answers for it any more"
        for name, budget in budgets.items()
        if name not in latencies
    ]
    return lines


def _measured(folder: Path, told: Mapping[str, Any], table: LatencyTable) -> dict[str, Any]:
    """Return the measurement of an emitted network on a prediction's target, or why there is none.

    ``pace`` says how many times as long as when it was profiled the machine takes now, where that is known;
    nothing is taken out of the measurement.
    """
    target, budget = Target.from_dict(told["target"]), told["budget"]
    reason = why_not_here(target)
    if reason is None:
        try:
            timing, pace = measure_emitted(folder, table)
        except LitePoseNasError as error:
            reason = str(error)
        else:
            ms = timing.median_ms
            inside = {"within_interval": told["low_ms"] <= ms <= told["high_ms"]}
            return {
                "measured_here": {**asdict(timing), **inside, "pace": pace},
                "not_measured": None,
                "budget": budget and {**budget, "measured_within": ms <= budget["ms"]},
            }
    return {"measured_here": None, "not_measured": reason}
