"""The parts of a report, each made of facts alone: where these are missing it says what makes them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nas.config import to_plain
from nas.latency_report import emitted_lines, prediction_line
from nas.markup import Markup, join, tag
from nas.model_card import outdated
from nas.network_diagram import block_words, network_svg
from nas.page_charts import Bar, Line, bars, lines, thinned
from nas.provenance import search_command
from nas.report.elements import (
    ap_of,
    in_parentheses,
    missing,
    more,
    ms_of,
    number_of,
    pairs,
    plain,
    size_of,
    table,
    with_ends,
)
from nas.report.facts import Card, Facts, sha256_of
from nas.report.latencies import Breakdown
from nas.report.pictures import Picture
from nas.run import RunDirectory
from nas.search import MACS, Objective, SearchResult
from nas.trust.standing import interval_words
from search_spaces.files import yaml_text
from search_spaces.layers import Block
from supernet.pose.dataset import PoseDataset

__all__ = ["Section", "sections"]


_ENVIRONMENT: Final = ("date", "python", "platform", "machine", "cpus", "torch_threads", "gpu")


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes
    ----------
    key
        What it is called in the page's addresses.
    title, short
        Its heading, and what leads to it.
    make
        Makes what stands below the heading.
    """

    key: str
    title: str
    short: str
    make: Callable[[], Markup]


def sections(
    facts: Facts,
    blocks: Sequence[Block],
    times: Sequence[Breakdown],
    silent: Sequence[str],
    pictures: Sequence[Picture] | str,
    front: Markup | None,
    published: Mapping[str, Any],
) -> list[Section]:
    """Return the parts of a report, in order.

    Parameters
    ----------
    facts
        Of the run.
    blocks
        Of the network in the middle; none where there is none.
    times, silent
        What tables say of it, and which say nothing (:func:`nas.report.latencies.breakdowns`).
    pictures
        What it finds in val images, or why that is not shown.
    front
        The interactive front, where anything was searched.
    published
        What stands beside it (:func:`nas.report.page.published_rows`).
    """
    return [
        Section("front", "What was searched", "Search", lambda: _front(facts, front)),
        Section("network", "The network", "Network", lambda: _network(facts, blocks, times)),
        Section("latency", "Where the time goes", "Latency", lambda: _latency(facts, blocks, times, silent)),
        Section("predictions", "What it finds", "Predictions", lambda: _pictures(pictures)),
        Section("trust", "How far the ranking can be trusted", "Trust", lambda: _trust(facts)),
        Section("training", "How training and search went", "Training", lambda: _training(facts)),
        Section("published", "Beside published networks", "Published", lambda: _published(facts, published)),
        Section("exports", "Exported files", "Exports", lambda: _exports(facts)),
        Section("images", "Data", "Data", lambda: _data(facts)),
        Section("reproduce", "Make it again", "Reproduce", lambda: _reproduce(facts)),
    ]


def _front(facts: Facts, front: Markup | None) -> Markup:
    run = shlex.quote(str(facts.run.folder))
    if front is None:
        command = (
            f"nas search {run} --max-macs 1G" if facts.run.best.is_file() else f"nas train {run}/recipe.yaml"
        )
        return missing("Nothing was searched yet, so there is no front.", command)
    rows = []
    for name, result in facts.studies.items():
        best = max(result.evaluated, key=lambda r: r.require_ap(), default=None)
        rows.append(
            (
                name,
                ", ".join(map(str, result.constraints)) or "none",
                str(len(result.evaluated)),
                str(len(result.infeasible)),
                "-" if best is None else f"{best.require_ap():.4f}",
                f"{result.sampler}, seed {result.seed}",
            )
        )
    columns = ("study", "budget", "evaluated", "priced only", "highest AP", "sampler")
    return join(front, table("The searches of this run", columns, rows), _emitted(facts))


def _emitted(facts: Facts) -> Markup | None:
    """Return all emitted networks as a table."""
    if not facts.cards or facts.joints is None:
        return None
    rows = []
    for card in facts.cards:
        cost = card.arch.cost(facts.joints)
        rows.append(
            (
                card.folder.name,
                card.arch.id,
                in_parentheses(*ap_of(card)) or "-",
                MACS.format(cost.macs),
                f"{cost.params:,}",
            )
        )
    columns = ("folder", "network", "AP on the val images", "MACs", "parameters")
    return table("Emitted networks", columns, rows)


def _drawing(said: str, drawn: Markup) -> Markup:
    """Return a drawing that may be wider than the page: then it scrolls, by keys too."""
    return tag("div", drawn, class_="drawing", tabindex="0", role="region", aria_label=said)


def _network(facts: Facts, blocks: Sequence[Block], times: Sequence[Breakdown]) -> Markup:
    subject = facts.subject
    if subject is None or facts.joints is None:
        return missing("There is no network to draw.", "nas train RECIPE")
    name = subject.arch.id if subject.card is None else subject.card.folder.name
    drawn = [
        tag(
            "figure",
            _drawing("Diagram of the network", network_svg(subject.arch, facts.joints, name=name, page=True)),
            tag("figcaption", "Each slab is a block: as wide as it has channels, as high as its outputs (on a"
                " logarithmic scale), darker the more it computes. Point at one for its figures."),
        )
    ]  # fmt: skip
    if times:
        costs = dict(zip((b.name for b in blocks), times[0].block_ms(), strict=True))
        drawing = network_svg(subject.arch, facts.joints, costs, "ms", name=name, page=True)
        drawn.append(
            more(
                f"The same by milliseconds on {times[0].name}",
                _drawing("Diagram of the network by time", drawing),
            )
        )
    values = [(choice, str(subject.arch[choice])) for choice in subject.arch]
    rows = [
        (
            b.name,
            block_words(b),
            f"{sum(x.macs for x in b.layers) / 1e6:.3g}",
            f"{sum(x.params for x in b.layers):,}",
        )
        for b in blocks
    ]
    return join(
        *drawn,
        more("Its values", table("What describes this network", ("value", "is"), values, texts=True)),
        more(
            "Its blocks",
            table("Every block, in order", ("block", "what it is", "MMACs", "parameters"), rows, texts=True),
        ),
    )


def _latency(
    facts: Facts, blocks: Sequence[Block], times: Sequence[Breakdown], silent: Sequence[str]
) -> Markup:
    if not blocks:
        return missing("There is no network to price.", "nas train RECIPE")
    macs = [sum(layer.macs for layer in block.layers) / 1e6 for block in blocks]
    run = shlex.quote(str(facts.run.folder))
    parts: list[Markup] = []
    card = None if facts.subject is None else facts.subject.card
    told = {} if card is None else card.part("latency")
    for place, each in enumerate(times):
        parts.append(_breakdown(each, blocks, macs, told.get(each.name), opened=place == 0))
    if not times:
        rows = [Bar(b.name, [m], (), f"{b.name}: {m:.3g} MMACs") for b, m in zip(blocks, macs, strict=True)]
        said = "No latency table answers for this network, so only its operations are known."
        parts += [
            missing(said, f"nas profile this-machine --for {run}"),
            bars("MACs of each block", ["MMACs"], rows),
        ]
    if silent:
        parts.append(
            more(f"{len(silent)} tables do not answer", tag("ul", [tag("li", line) for line in silent]))
        )
    return join(*parts)


def _breakdown(
    each: Breakdown, blocks: Sequence[Block], macs: Sequence[float], told: object, *, opened: bool
) -> Markup:
    """Return the bars of one target."""
    guessed = each.guessed()
    ms = each.block_ms()
    rows = []
    for block, m, t, guess, time in zip(blocks, macs, ms, guessed, each.times, strict=True):
        words = f"{block.name}: {block_words(block)}; {m:.3g} MMACs, {t:.3g} ms, {time.provenance}"
        rows.append(Bar(block.name, [m, t], [False, guess], words + (", fitted" if time.fitted_ms else "")))
    p, target = each.prediction, each.predictor.table.target
    lines_ = {"predicted": prediction_line({**_as_json(p), "target": target.to_dict()})}
    if isinstance(told, Mapping) and {"budget", "measured_here", "target", "high_ms"} <= told.keys():
        further = {k.rsplit(" on ", 1)[0]: v for k, v in emitted_lines(each.name, told).items()}
        lines_ |= {name: line for name, line in further.items() if name != "latency"}
    besides, factor = each.scale
    if p.calibrated:
        lines_["besides the blocks"] = (
            f"{ms_of(besides)} ms; blocks are multiplied by {factor:.3g}: both as whole networks took"
        )
    lines_["target"] = (
        f"{target.device}, {target.processor}, {target.runtime}, {target.precision}, {target.threads} threads"
    )
    share = sum(guessed)
    note = (
        f"Hollow bars are fitted or estimated, not measured: {share} of {len(blocks)} blocks."
        if share
        else "Every block was measured."
    )
    summary = f"{each.name}: {p.ms:.2f} ms ({p.low_ms:.2f} to {p.high_ms:.2f}), {p.provenance}"
    chart = tag("div", bars(f"MACs and milliseconds of each block on {each.name}", ["MMACs", "ms"], rows),
                class_="drawing", tabindex="0", role="region", aria_label=f"bars of {each.name}")  # fmt: skip
    return more(summary, pairs(lines_), chart, tag("p", note), opened=opened)


def _as_json(prediction: object) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in prediction.__dataclass_fields__}  # type: ignore[attr-defined]


def _pictures(pictures: Sequence[Picture] | str) -> Markup:
    if isinstance(pictures, str):
        return missing(pictures)
    figures = []
    for each in pictures:
        sides = [
            tag(
                "img", src=data, width=each.width, height=each.height,
                alt=f"{each.name}: {count} {'person' if count == 1 else 'people'} {word}",
            )
            for data, count, word in (
                (each.predicted, each.found, "found"), (each.truth, each.annotated, "annotated"),
            )
        ]  # fmt: skip
        words = f"{each.name}: {each.found} found (left), {each.annotated} annotated (right)"
        figures.append(tag("figure", tag("div", sides, class_="pair"), tag("figcaption", words)))
    said = (
        "Val images, taken evenly from all that show people: left what the network finds, right what is"
        " annotated."
    )
    return join(tag("p", said), tag("div", figures, class_="pictures"))


def _trust(facts: Facts) -> Markup:
    trust = facts.trust
    if not trust.known or trust.report is None:
        said = trust.line() if trust.problem or trust.stale else "Not measured."
        return missing(said, f"nas trust {shlex.quote(str(facts.run.folder))}")
    told = trust.report.statistics
    figures = {
        "Kendall tau": interval_words(told.supernet.kendall),
        "Spearman rho": interval_words(told.supernet.spearman),
        "tau by MACs alone": interval_words(told.macs.kendall),
        "networks trained alone": f"{told.networks}, {told.repeats} training each",
        "grade": told.grade,
    }
    return join(pairs(figures), tag("ul", [tag("li", line) for line in trust.report.verdict]))


def _training(facts: Facts) -> Markup:
    run, charts = facts.run, []
    steps = [row["step"] for row in facts.metrics if "total" in row]
    if steps:
        losses = [row["total"] for row in facts.metrics if "total" in row]
        each = thinned(steps, losses)[2]
        title = "Training loss" + (f", means of {each} steps" if each > 1 else "")
        charts.append(lines(title, [Line("loss", steps, losses)], "step", logarithmic=True))
    names = {"AP_largest": "largest network", "AP_mean": "mean", "AP_smallest": "smallest"}
    curves = [
        Line(
            word,
            [r["step"] for r in facts.validation if key in r],
            [r[key] for r in facts.validation if key in r],
        )
        for key, word in names.items()
    ]
    charts.append(lines("AP on the search images", curves, "step"))
    charts += _progress(facts.shown)
    drawn = [tag("figure", chart) for chart in charts if chart is not None]
    state = (
        f"{facts.metrics[-1]['step']:,.0f} steps were made; the training is"
        f" {'complete' if run.trained else 'not complete'}."
        if facts.metrics
        else ""
    )
    if not run.trained:
        state = join(
            tag("p", state or "It was not trained yet."),
            tag("code", f"nas train {_recipe_word(facts)} --resume"),
        )
    return join(state if isinstance(state, Markup) else tag("p", state), tag("div", drawn, class_="charts"))


def _recipe_word(facts: Facts) -> str:
    return shlex.quote(f"{facts.run.folder}/recipe.yaml") + f" --output {shlex.quote(str(facts.run.folder))}"


def _progress(result: SearchResult | None) -> list[Markup | None]:
    """Return charts of the best AP and the hypervolume over a search's evaluations."""
    if result is None or len(result.evaluated) < 2:
        return []
    best, values = 0.0, []
    for record in result.evaluated:
        best = max(best, record.require_ap())
        values.append(best)
    count = list(range(1, len(values) + 1))
    objective = result.axis()
    volumes = [float(value) for value in result.hypervolumes(objective)]
    share = [value / volumes[-1] for value in volumes] if volumes and volumes[-1] > 0 else []
    return [
        lines("Highest AP of the search", [Line("AP", count, values, steps=True)], "networks evaluated"),
        lines(
            f"Hypervolume of AP and {_short(objective)}, share of the last",
            [Line("hypervolume", count[: len(share)], share, steps=True)],
            "networks evaluated",
        ),
    ]


def _short(objective: Objective) -> str:
    return {"macs": "MACs", "params": "parameters", "size": "size"}.get(objective.kind, "latency")


def _published(facts: Facts, published: Mapping[str, Any]) -> Markup:
    rows, targets = published.get("rows") or [], published.get("targets") or []
    if not rows:
        return missing("No published network of this family is known to this toolkit.")
    columns = ("network", "input", "MACs", "parameters", *(f"ms on {name}" for name in targets))
    cells = [
        (row["name"], row["input"], MACS.format(row["macs"]), f"{row['params']:,}",
         *(row["ms"].get(name, "-") for name in targets))
        for row in rows
    ]  # fmt: skip
    parts = [table("Costs, of networks with as many joints", columns, cells)]
    aps = published.get("ap") or []
    if aps:
        where = published["on"]
        same = published["same"]
        caption = (
            f"AP published on {where}"
            if same
            else f"AP published on {where}: on other images than here, so not comparable"
        )
        parts.append(table(caption, ("network", "AP"), [(name, f"{ap:.3f}") for name, ap in aps]))
        parts.append(tag("p", f"Source: {published['source']}."))
    else:
        parts.append(
            tag(
                "p", "No AP of these networks was published for this skeleton and this way of finding people."
            )
        )
    return join(*parts)


def _exports(facts: Facts) -> Markup:
    card = None if facts.subject is None else facts.subject.card
    if card is None:
        return missing(
            "The network is not emitted yet, so there are no files.",
            f"nas emit {shlex.quote(str(facts.run.folder))}",
        )
    parts: list[Markup] = []
    rows: list[tuple[str, ...]] = []
    onnx = card.part("onnx")
    if onnx and (card.folder / "model.onnx").is_file():
        size = (card.folder / "model.onnx").stat().st_size
        rows.append(
            (
                "model.onnx",
                "ONNX",
                "fp32",
                size_of(size),
                f"{onnx.get('max_rel_error', 0):.2g}",
                "not measured by itself",
                "-",
                "yes",
            )
        )
    for each in card.rows("exports"):
        rows.append(_export_row(each))
    columns = (
        "file",
        "format",
        "precision",
        "size",
        "largest error",
        "AP",
        "difference from PyTorch",
        "within tolerance",
    )
    parts.append(
        table(
            "Files, each checked against the network in PyTorch (error relative to the largest output)",
            columns,
            rows,
        )
    )
    if not card.rows("exports"):
        parts.append(missing("No further formats were exported."))
    verified = card.rows("verified")
    if verified:
        titles = ("file", "target", "measured", "predicted", "within the interval", "budget", "date")
        parts.append(table("Measured on targets", titles, [_verified_row(each, card) for each in verified]))
        said = [str(line) for each in verified for line in each.get("notices") or ()]
        said += [str(d["says"]) for each in verified for d in each.get("decode") or () if "says" in d]
        parts.append(tag("ul", [tag("li", line) for line in said]))
    elif not any(isinstance(v, Mapping) and v.get("measured_here") for v in card.part("latency").values()):
        parts.append(missing("No file was measured on a target."))
    notices = card.values.get("notices")
    if isinstance(notices, list) and notices:
        parts.append(tag("ul", [tag("li", str(line)) for line in notices]))
    return join(*parts)


def _verified_row(each: Mapping[str, Any], card: Card) -> tuple[str, ...]:
    """Return what was measured of one file on one target, as far as the card says it."""
    again = " (made again since: verify again)" if outdated(card.values, each) else ""
    target, measured, predicted = each.get("target"), each.get("measured"), each.get("predicted")
    budget = each.get("budget")
    ms = "-"
    if isinstance(measured, Mapping):
        ends = [number_of(measured.get(end), 2) for end in ("p10_ms", "p90_ms")]
        ms = f"{number_of(measured.get('median_ms'), 2)} ms (p10 {ends[0]}, p90 {ends[1]})"
    told = "-"
    if isinstance(predicted, Mapping):
        ends = [number_of(predicted.get(end), 2) for end in ("low_ms", "high_ms")]
        told = f"{number_of(predicted.get('ms'), 2)} ms ({ends[0]} to {ends[1]})"
    bound = "-"
    if isinstance(budget, Mapping):
        bound = f"{plain(budget.get('ms'))} ms, met: {plain(budget.get('met'))}"
    return (
        f"{each.get('file', '-')}{again}",
        str(target.get("name", plain(target)) if isinstance(target, Mapping) else plain(target)),
        ms,
        told,
        plain(each.get("within_interval")),
        bound,
        str(each.get("date", "-")),
    )


def _export_row(each: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a card says of an exported file: of one by ``nas export``, or told in fewer words."""
    told = each.get("ap")
    of_file = told.get("file", told) if isinstance(told, Mapping) else told
    inner = told if isinstance(told, Mapping) else {}
    difference = each.get("difference", inner.get("difference"))
    runtime = each.get("runtime")
    by = runtime.get("name", plain(runtime)) if isinstance(runtime, Mapping) else runtime
    size = each.get("size_bytes")
    error = each.get("max_rel_error")
    images = each.get("images")
    seen = f", {images} images" if of_file and isinstance(images, int) else ""
    return (
        str(each.get("file", "-")),
        " by ".join(str(word) for word in (each.get("format"), by) if word) or "-",
        str(each.get("precision", "-")),
        size_of(size) if isinstance(size, int) else "-",
        f"{error:.2g}" if isinstance(error, int | float) else "-",
        f"{with_ends(of_file, 3)}{seen}",
        with_ends(difference, 4),
        _within(each, difference, each.get("tolerance", inner.get("tolerance"))),
    )


def _within(each: Mapping[str, Any], difference: object, tolerance: object) -> str:
    """Return whether a file loses no more AP than it may, and how much that is."""
    within = each.get("within_tolerance")
    value = difference.get("value") if isinstance(difference, Mapping) else None
    limit = tolerance if isinstance(tolerance, int | float) else None
    if not isinstance(within, bool) and isinstance(value, int | float) and limit is not None:
        within = -value <= limit
    if not isinstance(within, bool):
        return "-"
    return ("yes" if within else "NO") + ("" if limit is None else f" (at most {limit:g} AP)")


def _data(facts: Facts) -> Markup:
    parts: list[Markup] = []
    data = facts.data
    if data is None:
        parts.append(missing("The data cannot be opened here, so what follows is what the recipe names."))
    else:
        uses = {
            "train": (data.train, "moves the weights"),
            "calibrate": (data.calibrate, "gives statistics of batch normalisation"),
            "search": (data.search, "chooses checkpoints and networks"),
            "val": (data.val, "gives the figures that are reported; nothing is chosen by it"),
        }
        rows = [
            (name, str(len(part)), str(_people(part)), use, part.fingerprint, part.where)
            for name, (part, use) in uses.items()
        ]
        parts.append(
            table(
                "Images, and what they are for",
                ("part", "images", "people", "use", "digest", "from"),
                rows,
                texts=True,
            )
        )
        skeleton = data.skeleton
        parts.append(
            pairs(
                {"skeleton": f"{skeleton.name}, {len(skeleton)} joints", "joints": ", ".join(skeleton.joints)}
            )
        )
    plain = to_plain(facts.run.recipe)["data"]
    parts.append(more("As the recipe says it", tag("pre", yaml_text({"data": plain}))))
    return join(*parts)


def _people(part: PoseDataset) -> int:
    return sum(1 for row in part.ground_truth()["annotations"] if row["num_keypoints"] > 0)


def _reproduce(facts: Facts) -> Markup:
    run = facts.run
    first = facts.environment.get("command")
    commands = [str(first) if first else f"nas train {_recipe_word(facts)}"]
    commands += [
        shlex.join(["nas", *search_command(run, name, result)]) for name, result in facts.studies.items()
    ]
    if facts.subject is not None and facts.subject.card is not None:
        commands.append(_emit_command(run, facts.subject.card))
    parts = [tag("pre", "\n".join(commands))]
    versions = facts.environment.get("versions")
    told = {key: plain(value) for key in _ENVIRONMENT if (value := facts.environment.get(key)) is not None}
    told["seed"] = str(run.recipe.seed)
    if isinstance(versions, Mapping):
        told |= {str(name): str(version) for name, version in versions.items()}
    parts.append(more("Environment of the first start", pairs(told)))
    parts.append(
        more(
            "Files and their digests (SHA-256)",
            table("Files", ("file", "size", "SHA-256"), _files(facts), texts=True),
        )
    )
    parts.append(more("The recipe, with every default", tag("pre", yaml_text(run.recipe.to_plain()))))
    return join(*parts)


def _emit_command(run: RunDirectory, card: Card) -> str:
    """Return the command that emits a network again where it lies now, fine-tuned if that was so."""
    words = ["nas", "emit", str(run.folder), "--arch", str(card.folder / "arch.json")]
    words += ["--output", str(card.folder)]
    made = card.part("reproduce").get("commands")
    if card.part("fine_tuned") and isinstance(made, list) and made:
        own = shlex.split(str(made[-1]))
        for option in ("--fine-tune", "--teacher", "--learning-rate"):
            words += own[own.index(option) : own.index(option) + 2] if option in own else []
    return shlex.join(words)


def _files(facts: Facts) -> list[tuple[str, str, str]]:
    """Return the files that matter most, with their sizes and digests."""
    run = facts.run.folder
    paths = [run / "recipe.yaml", facts.run.best]
    if facts.subject is not None and facts.subject.card is not None:
        folder = facts.subject.card.folder
        paths += sorted(p for p in folder.rglob("*") if p.is_file() and _lies_in(p, folder))
    rows = []
    for path in paths:
        if path.is_file():
            rows.append((_inside(path, run), size_of(path.stat().st_size), sha256_of(path)))
    return rows


def _lies_in(path: Path, folder: Path) -> bool:
    """Return whether a file lies below a folder, and is no link that leads out of it."""
    return path.resolve().is_relative_to(folder.resolve())


def _inside(path: Path, run: Path) -> str:
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)
