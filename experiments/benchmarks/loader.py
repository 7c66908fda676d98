"""Training batches from image files: our loader and a straightforward one; how long a training step waits.

1. *Batches*: reading, decoding, augmentation, targets, normalisation and collation of all pictures; one
   thread against one thread, and two threads against two processes of torch's DataLoader. Both ways draw the
   same random numbers; pictures agree to 1e-5 after normalisation, targets to the bit.
2. *Steps*: real training steps with the loader beside them (one thread, as by default) and, in turn, with the
   same batches prepared beforehand: how long the step waits for its next batch, and how much longer it takes.

The pictures are drawn people in JPEG files of 640 x 480 pixels, or those of --data and --images.

Run: python experiments/benchmarks/loader.py [--data ANNOTATIONS --images FOLDER] [--record]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import torch
from _common import Case, parser, tell
from _straightforward import PlainSamples
from torch import Tensor

from nas.console import print_table
from nas.recipe import load_recipe
from search_spaces import SearchSpace, get_arch
from search_spaces.litepose import litepose_native
from supernet import training
from supernet.pose.dataset import PoseDataset
from supernet.pose.loader import Batch, BatchLoader
from supernet.pose.synthetic import SyntheticPeople
from supernet.pose.transforms import Augmentation
from supernet.registry import build_supernet
from supernet.training import TrainConfig, Trainer

DEMO = Path(__file__).resolve().parents[2] / "nas/recipes/demo.yaml"
SEED, EPOCH = 0, 1
AUGMENTATION = Augmentation()
STEP_BATCH = 4
"""Pictures per step of the larger network."""


def drawn_files(folder: Path, count: int) -> PoseDataset:
    """Draw people, write the pictures as JPEG files, and return the data set of those files."""
    people = SyntheticPeople(count, seed=0, size=(480, 640), people=(1, 4))
    content = people.ground_truth()
    for index, record in enumerate(content["images"]):
        record["file_name"] = f"{index}.jpg"
        cv2.imwrite(str(folder / record["file_name"]), people.load_image(index)[..., ::-1])
    return PoseDataset.from_dict(content, folder, where="drawn people")


# -- batches -------------------------------------------------------------------------------------------------


def tensors(batch: Batch | dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Return a batch's pictures, and everything in it that must be the same to the bit."""
    got = batch if isinstance(batch, dict) else vars(batch)
    return got["images"], [*got["heatmaps"], *got["masks"], got["tags"]]


def agree(plain: list[dict[str, Any]], ours: list[Batch]) -> str | None:
    """Return None where both ways made the same batches."""
    if len(plain) != len(ours):
        return f"{len(plain)} batches against {len(ours)}"
    for place, (a, b) in enumerate(zip(plain, ours, strict=True)):
        (pixels, exact), (pixels_, exact_) = tensors(a), tensors(b)
        off = float((pixels - pixels_).abs().max())
        if not off <= 1e-5:
            return f"pixels of batch {place} by {off:.2g}"
        if not all(torch.equal(x, y) for x, y in zip(exact, exact_, strict=True)):
            return f"targets of batch {place}"
    return None


def batch_cases(data: PoseDataset, resolution: int, batch_size: int) -> list[Case]:
    """Return what is compared at one resolution."""
    places = [list(range(i, min(i + batch_size, len(data)))) for i in range(0, len(data), batch_size)]
    samples = PlainSamples(data, resolution, AUGMENTATION, SEED, EPOCH)

    def plain(workers: int) -> Callable[[], list[Any]]:
        loader: Iterable[Any] = torch.utils.data.DataLoader(
            samples, batch_sampler=places, num_workers=workers, persistent_workers=workers > 0
        )
        return lambda: list(loader)

    def ours(workers: int, cache_bytes: int = 0) -> Callable[[], list[Any]]:
        jobs = [(each, resolution, EPOCH) for each in places]
        loader = BatchLoader(data, jobs, AUGMENTATION, SEED, workers=workers, cache_bytes=cache_bytes)
        return lambda: list(loader)

    items, one = len(data), plain(0)
    return [
        Case(f"{resolution} px, one thread", one, ours(0), agree, items),
        Case(f"{resolution} px, one thread, decoded pictures kept", one, ours(0, 1 << 32), agree, items),
        Case(f"{resolution} px, two workers", plain(2), ours(2), agree, items),
    ]


# -- steps ---------------------------------------------------------------------------------------------------


def watched(marks: list[tuple[float, float]], *, beforehand: bool) -> type[BatchLoader]:
    """Return a loader that notes for each step how long it waited for its batch and how long it then worked.

    Parameters
    ----------
    marks
        Where seconds of waiting and of work are noted.
    beforehand
        Whether all batches are made before the first is handed out.
    """

    class Watched(BatchLoader):
        def __iter__(self) -> Generator[Batch, None, None]:
            made = super().__iter__()
            batches: Iterable[Batch] = list(made) if beforehand else made
            asked = time.perf_counter()
            for batch in batches:
                got = time.perf_counter()
                yield batch
                done = time.perf_counter()
                marks.append((got - asked, done - got))
                asked = done

    return Watched


def run_steps(
    space: SearchSpace, data: PoseDataset, config: TrainConfig, *, beforehand: bool
) -> list[tuple[float, float]]:
    """Train a fresh supernet for one epoch; return each step's seconds of waiting and of work."""
    marks: list[tuple[float, float]] = []
    network = build_supernet(space, torch.Generator().manual_seed(0))
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(training, "BatchLoader", watched(marks, beforehand=beforehand)),
    ):
        Trainer(network, data, config, seed=SEED, folder=Path(folder)).run()
    return marks


def measure_steps(
    name: str, space: SearchSpace, data: PoseDataset, config: TrainConfig, repeats: int
) -> dict[str, Any]:
    """Return the figures of one training: medians over the repeats, the first step of each left out.

    The first step also builds what torch builds once, and its batch cannot be prepared during a step before.
    """
    found: dict[str, list[float]] = {"step_ms": [], "prepared_step_ms": [], "wait_ms": [], "wait_share": []}
    for _ in range(repeats):
        live = run_steps(space, data, config, beforehand=False)[1:]
        prepared = run_steps(space, data, config, beforehand=True)[1:]
        total, waited = sum(map(sum, live)), sum(wait for wait, _ in live)
        found["step_ms"].append(1e3 * total / len(live))
        found["prepared_step_ms"].append(1e3 * sum(map(sum, prepared)) / len(prepared))
        found["wait_ms"].append(1e3 * waited / len(live))
        found["wait_share"].append(waited / total)
    return {
        "training": name,
        "batch_size": config.batch_size,
        "workers": config.workers,
        "shards": config.shards,
        "torch_threads": torch.get_num_threads(),
        "steps": len(data) // config.batch_size - 1,
        **{key: {"median": statistics.median(values), "all": values} for key, values in found.items()},
    }


def step_measurements(data: PoseDataset, larger: Path, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Measure a step of the demo's supernet and one of a supernet of the size of the arch ``larger``."""
    joints = len(data.skeleton)
    demo = load_recipe(DEMO)
    config = replace(demo.train, epochs=1, validate_every=2, device="cpu")
    drawn = SyntheticPeople((4 * steps + 1) * config.batch_size, seed=1, size=(192, 192), people=(1, 2))
    found = [
        measure_steps("the demo's supernet, 96 px", demo.build_space(drawn.skeleton), drawn, config, repeats)
    ]
    arch = get_arch(larger)
    resolution = int(arch["resolution"])
    space = litepose_native(joints, base=arch, resolutions=[resolution], multipliers=[1])
    config = TrainConfig(
        epochs=1, batch_size=STEP_BATCH, shards=2, rule="uniform", validate_every=2, device="cpu"
    )
    enough = data.subset(data.ids[: (steps + 1) * STEP_BATCH])
    name = f"a supernet of the size of {larger.stem}, {resolution} px"
    return [*found, measure_steps(name, space, enough, config, repeats)]


def told(steps: list[dict[str, Any]]) -> list[str]:
    """Return a paragraph about the steps."""
    return [
        f"*Steps* of {each['training']}, batches of {each['batch_size']}, {each['workers']} loading thread:"
        f" {each['step_ms']['median']:.0f} ms with the loader beside it,"
        f" {each['prepared_step_ms']['median']:.0f} ms with batches prepared beforehand. A step waits"
        f" {each['wait_ms']['median']:.2f} ms for its batch,"
        f" {100 * each['wait_share']['median']:.2g}% of its time"
        f" (most in a run: {100 * max(each['wait_share']['all']):.2g}%)."
        for each in steps
    ]


def main() -> None:
    """Run the benchmark that the command line describes."""
    options = parser("loader", __doc__.splitlines()[0], repeats=5)
    options.add_argument("--data", type=Path, help="COCO-format annotations; by default drawn people")
    options.add_argument("--images", type=Path, help="folder of their images")
    options.add_argument("--count", type=int, default=40, help="pictures taken")
    options.add_argument("--resolutions", type=int, nargs="+", default=[256, 448])
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--steps", type=int, default=3, help="training steps of the larger network; 0: none")
    options.add_argument(
        "--arch", type=Path, default=Path("litepose-s"), help="the larger network: an arch's name or file"
    )
    given = options.parse_args()
    if (given.data is None) != (given.images is None):
        options.error("--data and --images go together")
    if min(given.repeats, given.count, given.batch_size, *given.resolutions) < 1 or given.steps < 0:
        options.error("--repeats, --count, --batch-size and --resolutions are at least 1, --steps at least 0")
    if given.count < STEP_BATCH * (given.steps + 1):
        options.error(f"--steps {given.steps} need --count {STEP_BATCH * (given.steps + 1)} at least")
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        if given.data is None:
            data, what = drawn_files(Path(folder), given.count), "drawn people, JPEG, 640 x 480"
        else:
            whole = PoseDataset(given.data, given.images).with_people()
            data, what = whole.subset(whole.ids[: given.count]), given.data.stem
        steps = step_measurements(data, given.arch, given.steps, min(given.repeats, 2)) if given.steps else []
        torch.set_num_threads(1)
        cases = [case for each in given.resolutions for case in batch_cases(data, each, given.batch_size)]
        if steps:
            print_table(
                "Training steps with the loader beside them",
                ("training", "step (ms)", "prepared (ms)", "waits (ms)", "share (%)"),
                [
                    (
                        each["training"],
                        f"{each['step_ms']['median']:.1f}",
                        f"{each['prepared_step_ms']['median']:.1f}",
                        f"{each['wait_ms']['median']:.3f}",
                        f"{100 * each['wait_share']['median']:.2g}",
                    )
                    for each in steps
                ],
            )
        tell(
            "loader",
            "The loader",
            f"Training batches of {len(data)} image files ({what}), ms per picture",
            cases,
            options,
            given,
            notes=[
                "*Baseline*: reading and decoding as ours; then a warp of the picture and one of the mask per"
                " scale, targets per scale in loops over people and joints, normalisation in floats, torch's"
                " DataLoader and its collation; *two workers* are two processes, kept between epochs. *Ours*:"
                " BatchLoader; *two workers* are two threads. The augmentation is LitePose's, with the same"
                " random numbers. Pictures agree to 1e-5 after normalisation, targets to the bit.",
                *told(steps),
            ],
            further={"images": len(data), "steps": steps},
        )


if __name__ == "__main__":
    main()
