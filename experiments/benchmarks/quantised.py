"""What fewer bits cost a trained network: AP in int8, mixed and fp16, by block and kind of layer; its speed.

Does what ``nas quantise`` does, twice (int8 with blocks kept in float, and fp16), and times in turn what
there is: deconvolutions as they are and as convolutions, in float and in 8 bits. What was measured in the
work folder before is taken up. By default the published LitePose-M on photographs, which are not part of the
project.

Run: python experiments/benchmarks/quantised.py --work FOLDER [--record]
"""

from __future__ import annotations

import argparse
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import torch
from _common import RESULTS, finish, machine, record_page

from nas.console import print_table
from nas.evaluation import import_model
from nas.quantise_report import KIND_COLUMNS, UNIT_COLUMNS, kind_rows, unit_rows
from nas.quantising import QuantiseSettings, quantise_model, time_models
from search_spaces import RunError
from search_spaces.files import read_json, write_json, write_text
from search_spaces.jsonl import read_lines
from supernet.quantise import Quantiser, half_precision
from supernet.subpixel import subpixel_deconvs

HERE = Path(__file__).resolve().parents[1]
SHARED = HERE.parents[1] / "shared"
SETS = ["data.search_fraction=0.5", "data.calibrate_fraction=0.2"]
COLUMNS = ("model", "AP (val)", "95% interval", "difference", "95% interval", "MB")


def quantised(given: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Return the report on a precision: that of the work folder, or a new one."""
    folder = given.work / precision
    report = folder / f"quantisation-{precision}.json"
    if not report.is_file():
        model = given.work / "model.safetensors"
        if not model.is_file():
            import_model(given.model, model, None, None)
        settings = QuantiseSettings(
            precision=precision,
            tolerance=given.tolerance,
            calibration_images=16,
            probe_images=2,
            search_images=given.search_images,
            val_images=given.val_images if precision == "int8" else given.fp16_images,
        )
        with contextlib.suppress(RunError):  # the tolerance was missed: the report tells it
            quantise_model(model, str(given.recipe), folder, settings, sets=SETS)
    found: dict[str, Any] = read_json(report, "report")
    return found


def models(work: Path, kept: list[str]) -> dict[str, onnx.ModelProto]:
    """Return the models that are timed, from the ranges that were measured."""
    fp32 = onnx.load(work / "int8" / "fp32.onnx")
    rewritten, _ = subpixel_deconvs(fp32)
    records = (record for _, record in read_lines(work / "int8" / "measured.jsonl"))
    ranges = {
        k: (v[0], v[1]) for k, v in next(r for r in records if r.get("what") == "ranges")["value"].items()
    }
    return {
        "fp32": fp32,
        "fp32, deconvs as convolutions": rewritten,
        "fp16": half_precision(fp32),
        "int8, deconvs in float": Quantiser(fp32, ranges).int8(),
        "int8 everywhere": Quantiser(rewritten, ranges).int8(),
        "int8, blocks in float": Quantiser(rewritten, ranges).int8(kept),
    }


def markdown_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table of a page."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def ap_rows(reports: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each model whose AP was measured."""
    rows = []
    for report in reports.values():
        for name, told in report["val"].items():
            other = report["difference"].get(name)
            size = report["size_bytes"].get(name)
            rows.append(
                (
                    _named(name, report),
                    f"{told['value']:.4f}",
                    f"{told['low']:.4f} to {told['high']:.4f}",
                    "-" if other is None else f"{other['value']:+.4f}",
                    "-" if other is None else f"{other['low']:+.4f} to {other['high']:+.4f}",
                    "-" if size is None else f"{size / 1e6:.2f}",
                )
            )
    return rows


def _named(name: str, report: dict[str, Any]) -> str:
    """Return a model's name in the table, with the number of pictures."""
    kept = f", {len(report['kept_in_float'])} layers in float" if name == "int8" else ""
    return f"{name}{kept} ({report['images']['val']} pictures)"


def main() -> None:
    """Measure, tell and record."""
    options = argparse.ArgumentParser(prog="python experiments/benchmarks/quantised.py", description=__doc__)
    options.add_argument("--work", type=Path, help="folder that keeps what is measured")
    options.add_argument("--model", type=Path, default=SHARED / "weights/litepose-m-crowdpose.reference.pth")
    options.add_argument("--recipe", type=Path, default=HERE / "recipes/coco-from-crowdpose.yaml")
    options.add_argument("--tolerance", type=float, default=0.01)
    options.add_argument("--search-images", type=int, default=40)
    options.add_argument("--val-images", type=int)
    options.add_argument(
        "--fp16-images", type=int, default=30, help="val pictures for fp16, which is slow here"
    )
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--load", default="not told", help="what else the machine was doing, for the record")
    options.add_argument("--record", action="store_true")
    given = options.parse_args()
    if given.work is None or not given.model.is_file():
        print(
            "left out: it takes the better part of an hour, --work FOLDER and LitePose-M's published weights"
        )
        return
    reports = {precision: quantised(given, precision) for precision in ("int8", "fp16")}
    report, threads = reports["int8"], torch.get_num_threads()
    height, width = 448, 448
    timed = time_models(models(given.work, report["kept_in_float"]), (height, width), threads, given.rounds)
    speed = [
        (n, f"{t['median_ms']:.0f}", f"{t['least_ms']:.0f}", f"{t['most_ms']:.0f}") for n, t in timed.items()
    ]
    times = ("model", "median ms", "least", "most")
    print_table("AP on the val images", COLUMNS, ap_rows(reports))
    print_table(f"{height}x{width}, batch 1, {threads} thread(s)", times, speed)
    if not given.record:
        return
    search, settings, images = report["search"], report["settings"], report["images"]
    executed = list(report["executed"].values())
    told = {
        "machine": machine(),
        "threads": threads,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"{options.prog} --work FOLDER --rounds {given.rounds} --record",
    }
    page = record_page(
        "LitePose-M in fewer bits",
        f"The published weights on photographs of COCO: {images['calibrate']} training pictures for ranges"
        f" ({settings['method']}), {images['search']} search pictures to choose the blocks that stay in float"
        f" (tolerance {settings['tolerance']:g} AP), {images['val']} val pictures for AP. Weights of"
        f" {settings['weight_bits']} bits; deconvolutions as convolutions.",
        COLUMNS,
        ap_rows(reports),
        (
            f"On the search pictures fp32 has {search['score_fp32']:.4f} AP, int8 everywhere"
            f" {search['score_int8_everywhere']:.4f}, the model chosen {search['score']:.4f}; in float stay"
            f" {', '.join(search['kept_units']) or 'none'}. ONNX Runtime computes"
            f" {executed.count('int8')} of {len(executed)} layers in 8 bits.",
            f"On the val pictures it loses {report['loss']:.4f}:"
            f" {'within' if report['within_tolerance'] else 'more than'} the tolerance"
            f"{'' if report['within_tolerance'] else ', so that nas quantise does not keep the file'}.",
            f"Time of a {height}x{width} picture at batch 1 on ONNX Runtime, models in turn, {given.rounds}"
            f" rounds (the machine meanwhile: {given.load}):",
            markdown_table(times, speed),
            "All layers of one kind in 8 bits and all others in float (*alone*), or the other way round (*all"
            " but*); signal-to-noise of the outputs on two pictures, AP lost on the search pictures:",
            markdown_table(KIND_COLUMNS, kind_rows(report)),
            "The same for each block:",
            markdown_table(UNIT_COLUMNS, unit_rows(report)),
        ),
        told,
    )
    for each in reports.values():
        each["model"] = given.model.name
        each.pop("environment", None)
    write_json(RESULTS / "quantisation-litepose-m.json", {**told, "reports": reports, "times": timed})
    write_text(RESULTS / "quantisation-litepose-m.md", page)
    print("recorded in quantisation-litepose-m.json and .md")


if __name__ == "__main__":
    finish(main)
