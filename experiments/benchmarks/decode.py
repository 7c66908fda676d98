"""From maps to people: ours against the straightforward way, on maps of drawn crowds and of photos.

The drawn maps are :mod:`supernet.pose.crowd`'s. The same crowd is also shown at the three sizes that matter:
128 (1/4 of the input), 256 (1/2) and 512 (projected to the input).

With ``--model`` and ``--images`` the maps of a network on the first pictures of a folder are added.

Run: python experiments/benchmarks/decode.py [--record]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from _common import Case, parser, tell
from _plain_decode import plain_decode
from numpy.typing import NDArray

from nas.evaluation import load_model
from supernet.pose.crowd import crowd_maps, draw_crowd
from supernet.pose.decode import GroupingConfig, decode
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.skeleton import CROWDPOSE14
from supernet.pose.transforms import normalise, resize_for_eval

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]
People = tuple[NDArray[np.float32], NDArray[np.floating]]


def drawn_maps(people: int, side: int, sigma: float, seed: int = 5) -> Maps:
    """Return heatmaps (14, side, side) and tags (14, side, side, 1) of a crowd."""
    rng = np.random.default_rng([seed, people, side])
    return crowd_maps(draw_crowd(CROWDPOSE14, people, (side, side), rng), (side, side), sigma, rng)


def photo_maps(model: Path, folder: Path, count: int, project: bool) -> tuple[list[Maps], tuple[int, ...]]:
    """Return the maps of the first pictures of a folder, and the joints' order of grouping."""
    network, skeleton, resolution = load_model(model)
    config = EvalConfig(resolution, project=project)
    network.eval()
    found = []
    for path in islice(sorted(folder.glob("*.jpg")), count):
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        image, _ = resize_for_eval(np.asarray(picture, np.uint8), *config.input_grid)
        det, tags = predict_maps(network, normalise(image[None]), None, config)
        found.append((det[0].numpy(), tags[0].numpy()))
    return found, tuple(skeleton.grouping_order)


def agree(plain: Sequence[People], ours: Sequence[People]) -> str | None:
    """Return None where all people are equal to a thousandth of a pixel, of a value and of a score."""
    for number, (a, b) in enumerate(zip(plain, ours, strict=True)):
        if a[0].shape != b[0].shape:
            return f"maps {number}: {len(a[0])} and {len(b[0])} people"
        off = max(float(np.abs(x - y).max(initial=0.0)) for x, y in zip(a, b, strict=True))
        if not off <= 1e-3:
            return f"maps {number}: by {off:.3g}"
    return None


def compared(name: str, maps: Sequence[Maps], config: GroupingConfig, order: Sequence[int]) -> Case:
    """Return the case of some maps, one after the other."""
    return Case(
        name,
        lambda: [plain_decode(det, tags, config, order) for det, tags in maps],
        lambda: [decode(det, tags, config, order) for det, tags in maps],
        agree,
        len(maps),
    )


NOTES = (
    "Baseline: max-pooling and top-k over whole maps, loops over joints, peaks and people for groups (with"
    " scipy's assignment) and shifts, and a search of the whole map for every joint that a person lacks. Both"
    " give the same people, to 0.001 pixels.",
)


def main() -> None:
    """Time, tell and record."""
    options = parser("decode", __doc__ or "", repeats=7)
    options.add_argument("--sizes", default="128/30,256/10,512/10,256/100", help="SIDE/PEOPLE,...")
    options.add_argument("--model", type=Path, help="network whose maps are decoded, too")
    options.add_argument("--images", type=Path, help="folder of photos for it")
    options.add_argument("--photos", type=int, default=8)
    given = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    order = CROWDPOSE14.grouping_order
    cases = []
    for text in given.sizes.split(","):
        side, people = map(int, text.split("/"))
        config = GroupingConfig(max_people=max(30, people))
        maps = [drawn_maps(people, side, sigma=2.0 * (side / 128) ** 0.75)]
        cases.append(compared(f"{side}x{side} maps, {people} people", maps, config, order))
    if (given.model is None) != (given.images is None):
        options.error("--model and --images go together")
    if given.model is not None:
        for project in (False, True):
            found, order = photo_maps(given.model, given.images, given.photos, project)
            size = "input size" if project else "1/2"
            cases.append(compared(f"{len(found)} photos, maps at {size}", found, GroupingConfig(), order))
    title = "People from the maps of 14 joints, one thread, per image"
    tell("decode", "Decoding", title, cases, options, given, NOTES)


if __name__ == "__main__":
    main()
