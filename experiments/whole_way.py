"""The whole way as a new user goes it, timed: from ``git clone`` to verified int8 models for this machine.

Every step is a shell command of the page that it writes (``docs/whole-way.md``), run in a fresh clone, in
order, with the clone's own environment first on the path. Nothing is measured here but seconds: what the
models take and reach is what the commands print. A step that fails ends the script, and nothing is recorded.

The latency budgets are set as by a user who has looked at the tables: such that a share of the networks of
the space is within each.

Run: python experiments/whole_way.py FOLDER [--repository URL] [--recipe FILE] [--share .4] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import LatencyPredictor, LatencyTable
from nas.console import note
from nas.latency import UpperEnd
from nas.run import RunDirectory
from search_spaces import RunError
from search_spaces.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine  # noqa: E402

ROOT = HERE.parent
PAGE = ROOT / "docs" / "whole-way.md"
RECIPE = "nas/recipes/demo.yaml"
RUN, EMITTED = "runs/first", "runs/first/emitted/mine"
BRIEFLY = "--seconds-per-layer 0.1 --on-drift warn"
SLOWED = "the machine's speed changed"
"""How the remark begins that a measurement is to be read with care."""
LINES = 14
"""Most lines of a command's output that the page shows, the last ones."""


@dataclass(frozen=True)
class Step:
    """One step of the way.

    Attributes
    ----------
    title, told
        Heading and text before the command.
    commands
        Shell lines; what is in braces is filled in.
    shown
        Whether the page shows what the last command printed.
    """

    title: str
    told: str
    commands: tuple[str, ...]
    shown: bool = True


STEPS: tuple[Step, ...] = (
    Step(
        "Get it",
        "Python 3.11 or newer, `git` and `make` are all that has to be there. Everything goes into `.venv`.",
        ("git clone {repository} litepose-nas", "cd litepose-nas", "make install"),
        shown=False,
    ),
    Step(
        "Train the supernet, once",
        "The recipe is that of `nas demo`: small networks on drawn people, so that nothing has to be"
        " downloaded. With [your own data](own-data.md) this step alone becomes longer.",
        (f"nas train {{recipe}} --output {RUN}",),
    ),
    Step(
        "Measure this machine",
        "Two targets: ONNX Runtime and ncnn, both in int8, two threads. Each table says how far it can be"
        " believed. The machine is a shared one, so it is measured briefly, and a drift of its speed is"
        " noted in the table (`warn`) instead of refused.",
        (
            f"nas profile this-machine --for {RUN} --precision int8 --threads {{threads}} {BRIEFLY}",
            f"nas profile this-machine --for {RUN} --runtime ncnn --precision int8 --threads {{threads}}"
            f" {BRIEFLY}",
        ),
    ),
    Step(
        "Search under the budget",
        "Both budgets hold at once; each is held against the upper end of the predicted interval.",
        (f"nas search {RUN} --max-latency {{onnx_budget}} --max-latency {{ncnn_budget}}",),
    ),
    Step(
        "Emit the network, trained on",
        "The network that was found is cut out of the supernet and trained alone for a few more epochs,"
        " taught by the supernet's largest. It is kept if it is better on the search images.",
        (
            f"nas emit {RUN} --max-latency {{onnx_budget}} --max-latency {{ncnn_budget}}"
            f" --fine-tune {{epochs}} --output {EMITTED}",
        ),
    ),
    Step(
        "Export it, quantised and certified",
        "Layers that lose too much in 8 bits stay in float. Every file is read back by its own runtime and"
        " held against PyTorch: outputs, and AP on the val images.",
        (f"nas export {EMITTED} --data {RUN} --format onnx --format ncnn --precision int8 --precision fp32",),
    ),
    Step(
        "Verify it on the target",
        "The file itself, in its runtime, beside what the table predicted and the budget.",
        (
            f"nas verify {EMITTED} {{onnx_target}}",
            f"nas verify {EMITTED} {{ncnn_target}}",
        ),
    ),
    Step(
        "Look at it",
        "One page with everything: front, network, latency by block, predictions, certificates.",
        (f"nas report {RUN}",),
    ),
)


def environment(clone: Path) -> dict[str, str]:
    """Return the environment of a new user who has activated the clone's own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return kept | {"PATH": f"{clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "110"}


def run_line(line: str, where: Path, clone: Path) -> dict[str, Any]:
    """Run one shell line; return it with its seconds and what it printed.

    Raises
    ------
    RunError
        If it fails.
    """
    note(f"$ {line}")
    began = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=where,
        env=environment(clone),
        text=True,
        capture_output=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RunError(f"'{line}' ended with {done.returncode} after {seconds:.0f} s: {done.stderr[-400:]}")
    note(f"  {seconds:.1f} s")
    noted = [each for each in done.stderr.splitlines() if each.startswith(SLOWED)]
    return {
        "command": line,
        "seconds": round(seconds, 1),
        "output": without_folders(done.stdout),
        "noted": noted,
    }


def budgets(clone: Path, share: float) -> dict[str, str]:
    """Return targets and budgets such that this share of the space's networks is within each."""
    recipe = RunDirectory.open(clone / RUN).recipe
    from nas.data import open_datasets

    space = recipe.build_space(open_datasets(recipe).skeleton)
    drawn = space.sample_genotypes(np.random.default_rng(0), 2000)
    found = {}
    for name, pattern in (("onnx", "*-onnxruntime-int8-*.csv"), ("ncnn", "*-ncnn-int8-*.csv")):
        (table,) = (clone / "tables").glob(pattern)
        predictor = LatencyPredictor(LatencyTable.load(table))
        ms = float(np.quantile(UpperEnd(predictor).latency_ms(space, drawn), share))
        found |= {f"{name}_target": predictor.name, f"{name}_budget": f"{ms:.2f}ms@{predictor.name}"}
    return found


def without_folders(text: str) -> str:
    """Return what a command printed without the names of this machine's folders."""
    return "\n".join(re.sub(r"(?<![\w.])/(?:[\w.-]+/)+", ".../", line.rstrip()) for line in text.splitlines())


def cleaned(text: str) -> str:
    """Return a command's last lines."""
    return "\n".join(without_folders(text).splitlines()[-LINES:])


def page(report: dict[str, Any]) -> str:
    """Return the page of a recorded way."""
    total = sum(each["seconds"] for step in report["steps"] for each in step["commands"])
    here = report["machine"]
    parts = [
        "# The whole way, timed\n",
        "From `git clone` to an int8 ONNX and an int8 ncnn model that were verified under a latency budget of"
        f" the machine they ran on: {total / 60:.0f} minutes in all, on {here['cpus']} processors"
        f" ({here['processor']}), {here['system']}, {report['date'][:10]}. Recorded by"
        " `experiments/whole_way.py`, which runs these very commands in a fresh clone and writes this page;"
        " figures and outputs are those of that run.\n",
        "| step | seconds |\n|---|---:|",
        *(f"| {s['title']} | {sum(c['seconds'] for c in s['commands']):.0f} |" for s in report["steps"]),
        "",
    ]
    for number, (step, done) in enumerate(zip(STEPS, report["steps"], strict=True), start=1):
        commands = [each["command"] for each in done["commands"]]
        if number == 1:
            commands = [*commands, "source .venv/bin/activate"]
        parts += [f"## {number}. {step.title}\n", f"{step.told}\n", "```sh", *commands, "```\n"]
        if step.shown:
            for each in done["commands"]:
                if each["output"]:
                    noted = [f"note: {line}" for line in each.get("noted", ())]
                    parts += ["```text", cleaned(each["output"]), *noted, "```\n"]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def go(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Go the whole way in an empty folder; return what was measured."""
    clone = folder / "litepose-nas"
    folder.mkdir(parents=True, exist_ok=True)
    filled = {
        "repository": options.repository,
        "recipe": options.recipe,
        "threads": str(options.threads),
        "epochs": str(options.epochs),
    }
    steps: list[dict[str, Any]] = []
    for step in STEPS:
        if any("_budget}" in line for line in step.commands) and "onnx_budget" not in filled:
            filled |= budgets(clone, options.share)
        done = []
        for line in step.commands:
            text = line.format(**filled)
            if text.startswith("cd "):
                done.append({"command": text, "seconds": 0.0, "output": ""})
                continue
            done.append(run_line(text, folder if text.startswith("git clone") else clone, clone))
        steps.append({"title": step.title, "commands": done})
    shown = filled["repository"]
    for each in steps[0]["commands"]:
        each["command"] = each["command"].replace(shown, options.shown)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "steps": steps,
        "card": read_json(clone / EMITTED / "card.json", "card"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Go, tell, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="empty or new; everything happens below it")
    parser.add_argument("--repository", default=str(ROOT), help="what is cloned; by default this repository")
    parser.add_argument(
        "--shown", default="https://.../litepose-nas", help="its address as the page shows it"
    )
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning")
    parser.add_argument("--share", type=float, default=0.4, help="of the networks within each budget")
    parser.add_argument("--record", action="store_true", help=f"write {PAGE.name} and the results")
    options = parser.parse_args(arguments)
    if options.folder.exists() and any(options.folder.iterdir()):
        raise RunError(f"'{options.folder}' is not empty; the way begins in an empty folder")
    report = go(options.folder, options)
    print(
        json.dumps(
            {step["title"]: sum(c["seconds"] for c in step["commands"]) for step in report["steps"]}, indent=1
        )
    )
    if options.record:
        write_json(RESULTS / "whole-way.json", report)
        write_text(PAGE, page(report))


if __name__ == "__main__":
    finish(lambda: main())
