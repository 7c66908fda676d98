"""From maps to people: ours against the straightforward way, on maps of drawn crowds and of photos.

The drawn maps hold what a network's hold: a Gaussian per joint with one person's tag around it, one joint in
seven too weak to be a peak, bumps where nobody is, and a background whose values span five orders of
magnitude. How those values are spread was read off LitePose-M's maps of photographs. The same crowd is also
shown at the three sizes that matter: 128 (1/4 of the input), 256 (1/2) and 512 (projected to the input).

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
from supernet.pose.decode import GroupingConfig, decode
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.skeleton import COCO17, CROWDPOSE14, joint_map
from supernet.pose.synthetic import generate
from supernet.pose.transforms import normalise, resize_for_eval

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]
People = tuple[NDArray[np.float32], NDArray[np.floating]]


def crowd(people: int, side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the joints (P, 14, 2) of drawn people strewn over a square."""
    source = joint_map(COCO17, CROWDPOSE14)
    placed = np.zeros((people, len(CROWDPOSE14), 2))
    for person, (_, _, drawn) in zip(placed, generate(people, seed=11, people=(1, 1)), strict=True):
        coco = np.reshape(drawn[0]["keypoints"], (17, 3))[:, :2]
        shoulders = coco[5:7].mean(axis=0)
        person[:12], person[12], person[13] = coco[source[:12]], 2 * coco[0] - shoulders, shoulders
        person -= person.min(axis=0)
        person *= side * rng.uniform(0.25, 0.5) / person.max()
        person += rng.uniform(0, side - 1 - person.max(axis=0))
    return placed


def drawn_maps(people: int, side: int, sigma: float, seed: int = 5) -> Maps:
    """Return heatmaps (14, side, side) and tags (14, side, side, 1) of a crowd."""
    rng = np.random.default_rng([seed, people, side])
    joints = crowd(people, side, rng)
    own = rng.permutation(people) * 12.0 / people - 6.0
    y, x = np.mgrid[:side, :side].astype(np.float32)
    rough = rng.normal(size=(len(CROWDPOSE14), side, side)).astype(np.float32)
    det, tags = np.zeros_like(rough), np.zeros_like(rough)
    for joint in range(len(det)):
        field = cv2.GaussianBlur(rough[joint], (0, 0), sigma)
        field = (field - field.mean()) / field.std()
        # A sixteenth of the pixels above .0003, a sixty-fourth above .003, a few bumps above .1.
        bumps = 3e-4 * np.exp(3.7 * (field - 1.53))
        heat = bumps / (1 + 2.5 * bumps)
        nearest = np.full((side, side), np.inf, np.float32)
        for person in range(people):
            px, py = joints[person, joint]
            square = (x - px) ** 2 + (y - py) ** 2
            top = rng.uniform(0.01, 0.09) if rng.random() < 1 / 7 else rng.uniform(0.3, 0.95)
            heat = np.maximum(heat, top * np.exp(-square / (2 * sigma**2)))
            closer = square < nearest
            tags[joint][closer], nearest[closer] = own[person], square[closer]
        det[joint] = heat - 1e-5
        tags[joint] = cv2.GaussianBlur(tags[joint], (0, 0), sigma / 2)
    tags += rng.normal(0, 0.05, tags.shape).astype(np.float32)
    return det, tags[..., None]


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
