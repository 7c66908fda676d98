"""One candidate of a search: extracted, recalibrated, scored. The naive loop against ``SubnetEvaluator``.

The naive loop keeps nothing between candidates and takes one picture at a time: it reads and resizes the
file, runs the eager network on it, groups people with whole-map operations per joint and person, and scores
with pycocotools. It recalibrates batch norm on the same pictures in the same batches as ours (a subnet's
statistics are those of large batches), layer by layer in torch's default layout.

Three cases: networks that have nothing in common with those before; a generation of a search, whose networks
are crossed and mutated from parents that were evaluated before (LitePose's way: half and half, genes mutate
with probability 0.1) and so begin like one of them or like each other; and a whole search from nothing, as
``nas search`` runs it with ``evaluate.early_stop``, against the loop over the same networks. There the front
must be the same, and whoever was stopped early must lose to a network that costs no more when all pictures
are looked at.

With ``--run`` the networks are those of a trained supernet. Without data of one's own, people are drawn into
JPEG files, and the supernet is a random one that is built to behave like a trained one: the heads are scaled
so that some people are found in each picture, later channels matter less, so that narrow networks resemble
the widest, and what that one finds, shaken, is the truth.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from _common import Case, finish, parser, tell
from _plain_decode import plain_decode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from nas.run import RunDirectory
from nas.search.engine import search
from nas.search.result import Record, SearchResult
from nas.searching import SearchEvaluator
from nas.train import open_supernet
from search_spaces import Arch, SearchSpace, get_arch, litepose_native
from supernet.base import Supernet
from supernet.checkpoint import import_research
from supernet.evaluator import CalibrationImages, SubnetEvaluator
from supernet.importance import order_channels_by_importance
from supernet.pose.dataset import PoseDataset
from supernet.pose.decode import GroupingConfig
from supernet.pose.evaluate import scored_joints
from supernet.pose.maps import EvalConfig
from supernet.pose.skeleton import get_skeleton
from supernet.pose.synthetic import SyntheticPeople
from supernet.pose.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, resize_for_eval
from supernet.racing import EarlyStop
from supernet.registry import build_supernet

SIZE = (480, 640)
PARENTS = 6
TOLERANCE, WORST = 1e-3, 5e-3
"""By how much APs may differ on the average and at most: ONNX Runtime rounds differently, so where two pixels
tie a joint moves a quarter of one, and a person near the threshold of grouping may come or go."""
NOTES = (
    "*Baseline*: per candidate the naive loop: extraction, recalibration, then one picture at a time: file"
    " read and resized, eager network in torch's default layout, grouping with whole-map operations,"
    " pycocotools. Recalibration sees the same pictures in the same batches both ways (a subnet's statistics"
    " are those of large batches). The loop keeps nothing between candidates. *Ours*: `SubnetEvaluator` in"
    " the state of a search that has evaluated candidates of the resolution before, so that resized pictures"
    " are there; the backbone runs in ONNX Runtime, its graph written anew for each candidate. Settings of"
    " the evaluation are the defaults.",
    "*Alone*: nothing else is kept. *In a search*: the candidates are children of networks that were"
    " evaluated before (the widest and its nearest neighbours), half of them crossed, half mutated; outputs"
    " of first stages are kept from the parents and from child to child. After every repeat the evaluator"
    " forgets what the children added.",
    "*A whole search*: NSGA-II for AP and MACs by `nas.search` from"
    " scratch (nothing is read or kept before), beginning with the largest network; an evaluation ends early"
    " once the network is sure (99%) to lose to one that costs no more. The front is that of the loop, and"
    " who ended early is not on it (APs that differ by at most 0.005 being equal).",
)


# -- The naive loop ------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_recalibrate(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Replace running statistics by those of all images, pooled over the batches."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    sums = {layer: [0.0, torch.zeros(()), torch.zeros(())] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None and layer.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        mean, variance = layer.running_mean.double(), layer.running_var.double() * (count - 1) / count
        total = sums[layer]
        sums[layer] = [total[0] + count, total[1] + mean * count, total[2] + (variance + mean**2) * count]

    hooks = [layer.register_forward_hook(note) for layer in layers]
    network.eval()
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    for batch in batches:
        network(batch.contiguous())
    for layer, (count, first, second) in sums.items():
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(first / count)
        layer.running_var.copy_((second / count - (first / count) ** 2) * count / (count - 1))
    for hook in hooks:
        hook.remove()
    network.eval()


def plain_ap(dataset: PoseDataset, detections: list[dict[str, Any]]) -> float:
    """Return pycocotools' AP over the joints that the data set annotates."""
    joints = scored_joints(dataset) or list(range(len(dataset.skeleton)))
    truth = copy.deepcopy(dataset.ground_truth())
    for annotation in truth["annotations"]:
        points = np.array(annotation["keypoints"]).reshape(-1, 3)[joints]
        labelled = 0 if annotation["num_keypoints"] == 0 else int((points[:, 2] > 0).sum())
        annotation.update(keypoints=points.ravel().tolist(), num_keypoints=labelled, ignore=labelled == 0)
    for detection in detections:
        detection["keypoints"] = np.array(detection["keypoints"]).reshape(-1, 3)[joints].ravel().tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if not detections:
            return 0.0
        runner = COCOeval(coco, coco.loadRes(detections), "keypoints")
        runner.params.kpt_oks_sigmas = np.array(dataset.skeleton.sigmas)[joints]
        runner.evaluate()
        runner.accumulate()
        runner.summarize()
    return float(runner.stats[0])


@torch.no_grad()
def plain_evaluate(
    supernet: Supernet, train: PoseDataset, count: int, dataset: PoseDataset, arch: Arch
) -> float:
    """Return the AP of one candidate, a picture at a time; ``count`` training pictures give BN statistics."""
    resolution = arch.number("resolution")
    network = supernet.extract(arch)
    calibration = CalibrationImages(train, count, 0, Augmentation())  # read and varied anew
    plain_recalibrate(network, list(calibration.batches(resolution)))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    joints = len(dataset.skeleton)
    detections = []
    for index, image_id in enumerate(dataset.ids):
        image, back = resize_for_eval(dataset.load_image(index), resolution)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        quarter, half = network(((pixels - mean) / std)[None])
        quarter = F.interpolate(quarter, size=half.shape[2:], mode="bilinear", align_corners=False)
        det = ((quarter[:, :joints] + half) / 2)[0]
        tags = quarter[0, joints:, :, :, None]
        people, scores = plain_decode(
            det.numpy(), tags.numpy(), GroupingConfig(), dataset.skeleton.grouping_order
        )
        zoom = np.array(image.shape[1::-1]) / np.array(half.shape[:1:-1])
        for at in np.argsort(-scores, kind="stable")[:20]:
            points = people[at, :, :3].astype(np.float64)
            points[:, :2] = back(points[:, :2] * zoom)
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "keypoints": points.ravel().tolist(),
                    "score": float(scores[at]),
                }
            )
    return plain_ap(dataset, detections)


# -- What is evaluated ---------------------------------------------------------------------------------------


def drawn(count: int, seed: int, folder: Path) -> PoseDataset:
    """Return drawn people in JPEG files, as photographs come."""
    people = SyntheticPeople(count, seed, size=SIZE, people=(1, 5))
    folder.mkdir(parents=True)
    content = people.ground_truth()
    for index, record in enumerate(content["images"]):
        record["file_name"] = f"{record['id']}.jpg"
        image = cv2.cvtColor(people.load_image(index), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / record["file_name"]), image)
    return PoseDataset.from_dict(content, folder)


@torch.no_grad()
def as_if_trained(supernet: Supernet, calibration: CalibrationImages, arch: Arch) -> None:
    """Scale a random supernet so that later channels matter less and a few peaks per joint are found."""
    for layer in supernet.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.mul_(torch.linspace(1.5, 0.1, layer.num_features))
    joints = supernet.space.joints
    network = supernet.extract(arch)
    images = next(iter(calibration.batches(arch.number("resolution"))))
    plain_recalibrate(network, [images])
    quarter, half = network(images[:8])
    det = (F.interpolate(quarter[:, :joints], size=half.shape[2:], mode="bilinear") + half) / 2
    peaks = (det * (F.max_pool2d(det, 5, 1, 2) == det)).transpose(0, 1).flatten(1)
    level = peaks.topk(max(1, len(images[:8]) // 2), dim=1).values[:, -1]  # a peak in every other picture
    heat = (0.1 / level)[:, None, None, None]
    tags = 0.2 / quarter[:, joints:].transpose(0, 1).flatten(1).std(dim=1)[:, None, None, None]
    for name in supernet.output_layers:
        weight = supernet.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight[:joints].mul_(heat)
        weight[joints:].mul_(tags[: max(0, len(weight) - joints)])


def with_truth(evaluator: SubnetEvaluator, arch: Arch, folder: Path) -> PoseDataset:
    """Return the evaluator's pictures with what ``arch`` finds in them, shaken, as their people."""
    rng = np.random.default_rng(0)
    content = evaluator.dataset.ground_truth()
    content["annotations"] = []
    found = evaluator.evaluate(arch).detections
    for image_id in evaluator.dataset.ids:
        for detection in [d for d in found if d["image_id"] == image_id][:5]:
            points = np.array(detection["keypoints"]).reshape(-1, 3)
            points[:, 2] = 2
            low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
            points[:, :2] += rng.normal(0, 4, points[:, :2].shape)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": content["categories"][0]["id"],
                    "iscrowd": 0,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": 0.5 * float(np.prod(high - low)),
                    "keypoints": points.ravel().tolist(),
                }
            )
    return PoseDataset.from_dict(content, folder)


def parents(space: SearchSpace, count: int) -> list[Arch]:
    """Return the widest network, and those with one of its values a step smaller, from the head backwards."""
    widest = space.encode(space.largest())
    found = [space.largest()]
    for gene in reversed(range(len(widest))):
        if widest[gene] > 0:
            smaller = widest.copy()
            smaller[gene] -= 1
            found.append(space.decode(smaller))
    return found[:count]


def children(space: SearchSpace, generation: list[Arch], count: int) -> list[Arch]:
    """Return new networks, in turn crossed and mutated from a generation."""
    rng, found = np.random.default_rng(0), list[Arch]()
    while len(found) < count:
        first, second = (generation[int(rng.integers(len(generation)))] for _ in range(2))
        crossed = len(found) % 2 == 0
        child = space.crossover(first, second, rng) if crossed else space.mutate(first, rng)
        if child not in (*generation, *found):
            found.append(child)
        elif crossed and rng.random() < 0.5:  # neighbours cross to few different networks
            generation = [*generation, space.mutate(first, rng)]
    return found


def disagreement(baseline: Sequence[float], ours: Sequence[float]) -> str | None:
    """Return None if the APs agree; else in words how they do not."""
    print(
        "AP, baseline and ours:", ", ".join(f"{a:.5f} {b:.5f}" for a, b in zip(baseline, ours, strict=True))
    )
    apart = [abs(a - b) for a, b in zip(baseline, ours, strict=True)]
    if max(apart, default=0.0) <= WORST and sum(apart) <= TOLERANCE * len(apart):
        return None
    return f"APs differ by {max(apart):.5f}, by {sum(apart) / len(apart):.5f} on the average"


def front(costs: Sequence[float], aps: Sequence[float]) -> list[int]:
    """Return which networks no other beats in AP without costing more."""
    pairs = list(zip(costs, aps, strict=True))
    return [
        place
        for place, (cost, ap) in enumerate(pairs)
        if not any(c <= cost and a >= ap and (c, a) != (cost, ap) for c, a in pairs)
    ]


def looked_at(found: SearchResult) -> list[Record]:
    """Return what a search measured or began to measure, in the order of its trials."""
    return [record for record in found.records if record.ap is not None]


def same_finding(baseline: Mapping[Arch, float], ours: SearchResult) -> str | None:
    """Return None if a search found what looking at all pictures finds; else in words what it did not.

    APs that differ by at most :data:`WORST` are equal. Of the networks that were looked at to the end, the
    same ones must be on the front both ways; one that was stopped must lose to a cheaper one in the loop.
    """
    records = looked_at(ours)
    if [record.arch for record in records] != list(baseline):
        return "the search looked at other networks than before"
    costs, plain = [float(record.macs) for record in records], list(baseline.values())
    for record, cost, ap in zip(records, costs, plain, strict=True):
        others = [
            b for other, c, b in zip(records, costs, plain, strict=True) if c <= cost and other is not record
        ]
        if record.partial and ap > max(others, default=0.0) + WORST:
            return f"{record.arch.id} was stopped, but is on the front of the loop"
    whole = [place for place, record in enumerate(records) if not record.partial]
    costs, plain = [costs[place] for place in whole], [plain[place] for place in whole]
    aps = [float(records[place].ap or 0) for place in whole]
    wrong = disagreement(plain, aps)
    if wrong is not None:
        return wrong
    for mine, theirs in ((aps, plain), (plain, aps)):
        for place in front(costs, mine):
            others = [ap for each, ap in enumerate(theirs) if costs[each] <= costs[place] and each != place]
            if max(others, default=0.0) > theirs[place] + WORST:
                return f"{records[whole[place]].arch.id} is on one front alone"
    return None


def main() -> None:
    """Run the benchmark that the command line describes."""
    options = parser("evaluator", __doc__.splitlines()[0], repeats=2)
    options.add_argument("--images", type=int, default=16, help="pictures that AP is measured on")
    options.add_argument("--calibration", type=int, default=16, help="pictures for BN statistics")
    options.add_argument("--resolution", type=int, default=256)
    options.add_argument("--base", default="litepose-xs", help="named arch that the space is built around")
    options.add_argument("--candidates", type=int, default=2)
    options.add_argument("--evaluations", type=int, default=0, help="networks of a whole search; 0: none")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--weights", type=Path, help="research checkpoint (14 joints) of the base")
    options.add_argument("--run", type=Path, help="trained run (14 joints) instead of --base and --weights")
    options.add_argument(
        "--data",
        type=Path,
        help="folder with annotations/person_keypoints_{train,val}.json and images/{train,val}",
    )
    given = options.parse_args()
    counts = (given.images, given.calibration, given.candidates, given.threads)
    if min(counts) < 1 or given.evaluations < 0 or given.resolution % 64:
        options.error(
            "--images, --calibration, --candidates, --threads are at least 1, --evaluations at least 0,"
            " --resolution a multiple of 64"
        )
    own = ("base", "resolution", "weights")
    if given.run is not None and any(getattr(given, name) != options.get_default(name) for name in own):
        options.error("--run has its own networks: it goes without --base, --resolution and --weights")
    if (given.weights is None and given.run is None) != (given.data is None):
        options.error("--weights or --run go together with --data: others find nobody in photographs")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if given.data is None:
            joints = 17
            train = drawn(given.calibration, 1, Path(scratch, "train"))
            val = drawn(given.images, 2, Path(scratch, "val"))
        else:
            skeleton = get_skeleton("crowdpose14")
            joints = len(skeleton)
            train, val = (
                PoseDataset(
                    given.data / f"annotations/person_keypoints_{part}.json",
                    given.data / "images" / part,
                    skeleton,
                ).with_people()
                for part in ("train", "val")
            )
            val = val.subset(val.ids[: given.images])
        run = None if given.run is None else RunDirectory.open(given.run)
        if run is None:
            space = litepose_native(
                base=get_arch(given.base),
                joints=joints,
                resolutions=(given.resolution,),
                multipliers=(1.0, 0.75, 0.5),
            )
        else:
            space = run.recipe.build_space(val.skeleton)
        bred_from = parents(space, PARENTS)
        archs = children(space, bred_from, given.candidates)
        calibration = CalibrationImages(train, given.calibration, 0, Augmentation())
        config = EvalConfig(int(bred_from[0].number("resolution")))
        supernet = build_supernet(space, torch.Generator().manual_seed(0)).eval()
        if run is not None:
            supernet = open_supernet(run, space).eval()
        elif given.weights is not None:
            network = import_research(given.weights, given.resolution)
            supernet.load_plain(order_channels_by_importance(network))
        else:
            as_if_trained(supernet, calibration, bred_from[0])
            val = with_truth(
                SubnetEvaluator(supernet, calibration, val, config), bred_from[0], Path(scratch, "val")
            )
        alone = SubnetEvaluator(supernet, calibration, val, config)
        alone.evaluate(bred_from[0])
        searching = SubnetEvaluator(supernet, calibration, val, config, fixed=True)
        assert searching.shared is not None
        for arch in bred_from:
            searching.evaluate(arch)
        known = searching.shared.copy()
        found: dict[str, Any] = {"parents": len(bred_from), "bytes_kept": known.held_bytes}

        def plain() -> list[float]:
            return [plain_evaluate(supernet, train, given.calibration, val, arch) for arch in archs]

        def in_a_search() -> list[float]:
            searching.shared = known.copy()
            return [searching.evaluate(arch).stats["AP"] for arch in archs]

        def searched() -> SearchResult:
            evaluator = SubnetEvaluator(
                supernet, calibration, val, config, fixed=True, early_stop=EarlyStop()
            )
            with tempfile.TemporaryDirectory() as folder:
                return search(
                    space,
                    SearchEvaluator(evaluator),
                    storage=Path(folder, "journal"),
                    trials=given.evaluations,
                    population=max(2, given.evaluations // 3),
                    seeds=[space.largest()],
                    early_stop=True,
                )

        records = looked_at(searched()) if given.evaluations else []

        def plain_search() -> dict[Arch, float]:
            aps = {
                record.arch: plain_evaluate(supernet, train, given.calibration, val, record.arch)
                for record in records
            }
            found["search"] = [
                {
                    **{"id": record.arch.id, "macs": record.macs, "baseline": aps[record.arch]},
                    **{"ours": record.ap, "ended_early": record.partial},
                }
                for record in records
            ]
            return aps

        def agree(baseline: list[float], ours: list[float]) -> str | None:
            found["ap"] = [{"baseline": a, "ours": b} for a, b in zip(baseline, ours, strict=True)]
            found["largest_ap_difference"] = max(abs(a - b) for a, b in zip(baseline, ours, strict=True))
            return disagreement(baseline, ours)

        what = f"{given.base if run is None else run.recipe.name} at {config.resolution} px"
        cases = [
            Case(
                f"{what}, alone",
                plain,
                lambda: [alone.evaluate(arch).stats["AP"] for arch in archs],
                agree,
                len(archs),
            ),
            Case(f"{what}, in a search", plain, in_a_search, agree, len(archs)),
        ]
        more = f" (a whole search: {len(records)})" if records else ""
        if records:
            ended = sum(record.partial for record in records)
            whole = f"{what}, a whole search ({ended} of {len(records)} ended early)"
            cases.append(Case(whole, plain_search, searched, same_finding, len(records)))
        tell(
            f"evaluator-{given.base if run is None else run.recipe.name}",
            "One candidate of a search",
            f"{len(archs)} candidates{more}, {len(val)} pictures,"
            f" {given.calibration} for BN statistics, {given.threads} threads",
            cases,
            options,
            given,
            notes=NOTES if records else NOTES[:2],
            further=found,
        )


if __name__ == "__main__":
    finish(main)
