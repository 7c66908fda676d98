"""LitePose-M's published weights through our pipeline, against the research pipeline on the same pictures.

Three settings of the test: with flip test and maps projected to the input's size, without the flip test, and
without both. Each is what ``nas eval WEIGHTS ANNOTATIONS --images FOLDER --resolution 448`` does, with
``--flip`` and ``--project`` as the setting says; the joints that the annotations lack are not scored. The
file of recorded figures holds the research pipeline's AP per setting, on all pictures.

The pictures and weights are not part of the project; by default they are looked for in a folder ``shared``
beside the repository. The exit code is 1 if AP is below the recorded one in some setting.

Run: python experiments/reference_ap.py [--record]
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import torch

from nas.console import print_table
from nas.evaluation import EvalOptions, evaluate_model
from search_spaces.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, machine, record_page  # noqa: E402

SHARED = HERE.parents[1] / "shared"
SETTINGS = {
    "flip+project-to-image": {"flip": True, "project": True},
    "no-flip+project-to-image": {"flip": False, "project": True},
    "no-flip+map-resolution": {"flip": False, "project": False},
}
COLUMNS = (
    "setting",
    "research AP",
    "AP",
    "95% interval",
    "AP50",
    "AP75",
    "AR",
    "network ms",
    "decode ms",
    "images/s",
)


def row_of(name: str, recorded: float | None, report: dict[str, Any]) -> tuple[str, ...]:
    """Return a table's row."""
    stats, interval = report["stats"], report["interval"]
    return (
        name,
        "-" if recorded is None else f"{recorded:.4f}",
        *(f"{stats['AP']:.4f}", f"{interval['low']:.4f} to {interval['high']:.4f}"),
        *(f"{stats[key]:.4f}" for key in ("AP50", "AP75", "AR")),
        f"{report['network_ms_per_image']:.0f}",
        f"{report['decode_ms_per_image']:.1f}",
        f"{report['images_per_second']:.2f}",
    )


def page(title: str, rows: list[tuple[str, ...]], report: dict[str, Any]) -> str:
    """Return the record for people."""
    return record_page(
        "The published LitePose-M through our pipeline",
        f"{title}.",
        COLUMNS,
        rows,
        (
            "*research AP* is the research pipeline's, recorded with the same weights, pictures and settings"
            " (its speed was not). The interval is a bootstrap over pictures. Times are per picture at batch"
            " 1; reading and resizing are not in them.",
        ),
        {**report, "command": "python experiments/reference_ap.py --record"},
    )


def main() -> int:
    """Measure, tell and record."""
    options = argparse.ArgumentParser(prog="python experiments/reference_ap.py", description=__doc__)
    coco = SHARED / "data/coco"
    options.add_argument("--model", type=Path, default=SHARED / "weights/litepose-m-crowdpose.reference.pth")
    options.add_argument("--annotations", type=Path, default=coco / "annotations/person_keypoints_val.json")
    options.add_argument("--images", type=Path, default=coco / "images/val")
    options.add_argument("--recorded", type=Path, default=SHARED / "golden/reference-ap.json")
    options.add_argument("--limit", type=int, help="only the first pictures: nothing is compared then")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--record", action="store_true", help="write reference-ap.json and reference-ap.md")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    golden = read_json(given.recorded, "recorded figures")
    rows, settings, below = [], {}, []
    for name, how in SETTINGS.items():
        recorded = None if given.limit else float(golden[name]["stats"]["AP"])
        report = evaluate_model(
            given.model,
            str(given.annotations),
            EvalOptions(resolution=448, limit=given.limit, **how),
            images=given.images,
        )
        report["model"] = given.model.name
        settings[name] = {"research_AP": recorded, **report}
        rows.append(row_of(name, recorded, report))
        # Recorded with five digits.
        if recorded is not None and report["stats"]["AP"] < recorded - 5e-6:
            below.append(name)
    title = (
        f"{given.model.name} on {report['images']} pictures, {len(report['joints_scored'])} joints scored,"
        " short side 448 px"
    )
    print_table(title, COLUMNS, rows)
    if given.record:
        record = {
            "settings": settings,
            "machine": machine(),
            "threads": given.threads,
            "date": datetime.now(UTC).date().isoformat(),
        }
        write_json(given.results / "reference-ap.json", record)
        write_text(given.results / "reference-ap.md", page(title, rows, record))
        print("recorded in reference-ap.json and .md")
    if below:
        print(f"below the recorded AP: {', '.join(below)}", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
