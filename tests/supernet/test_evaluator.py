"""The AP by which networks are chosen: that of the network as it will be shipped, and of nothing else."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Arch, InputError, get_arch
from supernet import evaluator as evaluator_module
from supernet import litepose
from supernet.base import Supernet
from supernet.bn import recalibrate
from supernet.checkpoint import load_network, save_network
from supernet.evaluator import CalibrationImages, SubnetEvaluator, SubnetResult
from supernet.export import export_onnx
from supernet.onnx_modules import OnnxModule
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import evaluate
from supernet.pose.maps import EvalConfig
from supernet.pose.metrics import keypoint_ap
from supernet.pose.transforms import Augmentation
from supernet.racing import EarlyStop, Rival
from supernet.shared import SharedStages
from tests.supernet import tiny
from tests.supernet.networks import randomise

CONFIG = EvalConfig(64, multiple=32, batch_size=4)


pytestmark = pytest.mark.usefixtures("one_thread")


class Spy(PoseDataset):
    """A data set that counts which of its images are looked at."""

    looked: Counter[int]

    @classmethod
    def of(cls, count: int, seed: int) -> Spy:
        drawn = tiny.people(count, seed)
        images = {image_id: drawn.load_image(i) for i, image_id in enumerate(drawn.ids)}
        self = cls.__new__(cls)
        self._setup(drawn.ground_truth(), images, None, None, f"spy {seed}")
        self.looked = Counter()
        return self

    def load_image(self, index: int) -> np.ndarray[Any, Any]:
        self.looked[self.ids[index]] += 1
        return super().load_image(index)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    network = tiny.supernet()
    randomise(network, 3)
    return network.eval()


def archs() -> list[Arch]:
    space, rng = tiny.space(), np.random.default_rng(11)
    return [space.largest(), space.smallest(), space.sample(rng), space.sample(rng)]


@pytest.fixture(scope="module")
def truth(supernet: Supernet) -> PoseDataset:
    """Pictures whose people are what the first arch finds in them: AP of random weights that is not 0."""
    drawn = tiny.people(6, 2)
    calibration = CalibrationImages(tiny.people(6, 1), 6, 0)
    arch = archs()[0]
    found = SubnetEvaluator(supernet, calibration, drawn, CONFIG).evaluate(arch).detections
    return with_people(drawn, found)


def with_people(drawn: PoseDataset, found: list[dict[str, Any]], shaken: float = 0.0) -> PoseDataset:
    """Return a data set whose people are those found in its pictures, joints off by so many pixels."""
    rng = np.random.default_rng(0)
    content = drawn.ground_truth()
    content["annotations"] = []
    for image_id in drawn.ids:
        for place, detection in enumerate([d for d in found if d["image_id"] == image_id][:3]):
            joints = np.array(detection["keypoints"]).reshape(-1, 3)
            joints[:, :2] += rng.normal(0, shaken, joints[:, :2].shape)
            joints[:, 2] = 2
            low, high = joints[:, :2].min(axis=0), joints[:, :2].max(axis=0)
            content["annotations"].append(
                {
                    **{"id": 10 * image_id + place, "image_id": image_id, "category_id": 1, "iscrowd": 0},
                    **{"bbox": [*low.tolist(), *(high - low).tolist()], "area": 2500.0},
                    "keypoints": joints.ravel().tolist(),
                }
            )
    assert len(content["annotations"]) >= 12
    images = {image_id: drawn.load_image(i) for i, image_id in enumerate(drawn.ids)}
    return PoseDataset.from_dict(content, images)


@pytest.fixture
def evaluator(supernet: Supernet, truth: PoseDataset) -> SubnetEvaluator:
    return SubnetEvaluator(supernet, CalibrationImages(tiny.people(6, 1), 6, 0), truth, CONFIG)


class OnnxModel(nn.Module):
    """An exported file with the call of a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (self.entry,) = self.session.get_inputs()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.session.run(None, {self.entry.name: images.contiguous().numpy()})
        return torch.from_numpy(maps[0]), torch.from_numpy(maps[1])


def test_the_stand_in_for_truth_tells_networks_apart(evaluator: SubnetEvaluator) -> None:
    scores = [evaluator.evaluate(arch).stats["AP"] for arch in archs()[:2]]
    assert scores[0] > 0.5 > scores[1] + 0.2


def test_the_same_arch_scores_the_same_whatever_was_evaluated_before(evaluator: SubnetEvaluator) -> None:
    first, other, again = (evaluator.evaluate(archs()[i]) for i in (2, 0, 2))
    assert first.detections == again.detections
    assert first.stats == again.stats
    assert other.detections != first.detections


def test_evaluating_leaves_the_supernet_as_it_was(evaluator: SubnetEvaluator, supernet: Supernet) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    evaluator.evaluate(archs()[2])
    assert not supernet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


@pytest.mark.parametrize("number", range(4))
def test_supernet_extracted_reloaded_and_exported_score_alike(
    evaluator: SubnetEvaluator, supernet: Supernet, tmp_path: Path, number: int
) -> None:
    arch = archs()[number]
    config = replace(CONFIG, resolution=arch.number("resolution"))
    chosen = evaluator.evaluate(arch)

    def score(network: nn.Module, **changes: Any) -> dict[str, float]:
        return evaluate(network, evaluator.dataset, replace(config, **changes)).stats

    network = evaluator.subnet(arch)
    assert score(network) == chosen.stats

    class Whole(nn.Module):
        """The supernet itself with the subnet's statistics."""

        def __init__(self) -> None:
            super().__init__()
            self.supernet = tiny.supernet()
            self.supernet.load_state_dict(supernet.state_dict())
            self.supernet.load_plain(network)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return self.supernet(images, arch)  # type: ignore[no-any-return]

    assert score(Whole().eval()) == pytest.approx(chosen.stats, abs=1e-3)
    save_network(tmp_path / "net.safetensors", network)
    reloaded, _ = load_network(tmp_path / "net.safetensors")
    assert score(reloaded.to(memory_format=torch.channels_last)) == chosen.stats  # type: ignore[call-overload]
    if number == 3:  # an export takes seconds
        export_onnx(reloaded, tmp_path / "net.onnx")
        exported = OnnxModel(tmp_path / "net.onnx")
        assert score(exported, batch_size=1) == pytest.approx(chosen.stats, abs=1e-3)


def test_statistics_come_from_training_images_only(supernet: Supernet) -> None:
    training, held_out = Spy.of(6, 1), Spy.of(5, 2)
    evaluator = SubnetEvaluator(supernet, CalibrationImages(training, 4, 0), held_out, CONFIG)
    evaluator.subnet(archs()[0])
    assert held_out.looked == Counter()
    assert len(training.looked) == 4
    evaluator.evaluate(archs()[0])
    assert held_out.looked == Counter(held_out.ids)


def test_statistics_are_the_subnets_own(evaluator: SubnetEvaluator, supernet: Supernet) -> None:
    arch = archs()[1]
    expected = supernet.extract(arch).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stale = {name: tensor.clone() for name, tensor in expected.state_dict().items()}
    recalibrate(expected, evaluator.calibration.batches(arch.number("resolution")))
    found = evaluator.subnet(arch)
    assert not found.training
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
        assert torch.equal(tensor, stale[name]) == (not name.endswith(("running_mean", "running_var"))), name


def test_resolution_is_the_archs(supernet: Supernet, truth: PoseDataset) -> None:
    seen: set[tuple[int, ...]] = set()

    class Watched(SubnetEvaluator):
        def subnet(self, arch: Arch) -> Any:
            network = super().subnet(arch)
            network.register_forward_pre_hook(lambda module, inputs: seen.add(tuple(inputs[0].shape[2:])))
            return network

    watched = Watched(supernet, CalibrationImages(tiny.people(6, 1), 2, 0), truth, CONFIG)
    watched.evaluate(archs()[0].replace(resolution=96))
    assert seen == {(96, 96)}


def test_progress_is_told(evaluator: SubnetEvaluator) -> None:
    told: list[tuple[int, int]] = []
    evaluator.evaluate(archs()[1], progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]


def test_an_arch_of_another_space_is_refused(evaluator: SubnetEvaluator) -> None:
    with pytest.raises(InputError, match="does not fit"):
        evaluator.evaluate(get_arch("litepose-s"))


# -- how the machine is used -------------------------------------------------------------------------------


def test_pictures_are_read_once_for_all_archs_of_a_resolution(supernet: Supernet) -> None:
    held_out = Spy.of(5, 2)
    evaluator = SubnetEvaluator(supernet, CalibrationImages(tiny.people(6, 1), 4, 0), held_out, CONFIG)
    for arch in archs():
        evaluator.evaluate(arch.replace(resolution=64))
    assert held_out.looked == Counter(held_out.ids)


def test_what_is_found_depends_on_no_threads_and_no_processes(
    evaluator: SubnetEvaluator, supernet: Supernet, truth: PoseDataset
) -> None:
    expected = evaluator.evaluate(archs()[2])
    torch.set_num_threads(2)
    try:
        assert evaluator.evaluate(archs()[2]).detections == expected.detections
    finally:
        torch.set_num_threads(1)
    other = SubnetEvaluator(supernet, evaluator.calibration, truth, CONFIG, decode_workers=1)
    assert other.evaluate(archs()[2]).detections == expected.detections
    other.close()
    assert other.evaluate(archs()[2]).stats == expected.stats  # new processes
    unpacked = pickle.loads(pickle.dumps(other))
    other.close()
    other.close()
    assert unpacked.decode_workers == 1
    unpacked.decode_workers = 0
    assert unpacked.evaluate(archs()[2]).detections == expected.detections


def test_an_evaluator_that_is_forgotten_leaves_no_process(supernet: Supernet, truth: PoseDataset) -> None:
    calibration = CalibrationImages(tiny.people(6, 1), 2, 0)
    forgotten = SubnetEvaluator(supernet, calibration, truth, CONFIG, decode_workers=1)
    forgotten.evaluate(archs()[1])
    assert forgotten._workers is not None
    (process,) = forgotten._workers._pool._processes.values()
    assert process.is_alive()
    del forgotten
    gc.collect()
    process.join(20)
    assert not process.is_alive()


def test_processes_where_they_pay(supernet: Supernet, truth: PoseDataset) -> None:
    assert SubnetEvaluator(supernet, CalibrationImages(truth, 2, 0), truth, CONFIG).decode_workers == 0
    cores = len(os.sched_getaffinity(0))
    assert evaluator_module._default_workers(torch.device("cuda")) == min(8, cores - 1)


# -- networks that begin alike -----------------------------------------------------------------------------


def runs_of(evaluator: SubnetEvaluator, arch: Arch, monkeypatch: pytest.MonkeyPatch) -> int:
    """Evaluate, and return how many stages were computed, in all passes (a block each in the tiny space)."""
    ran = 0
    by_torch, by_onnx = litepose._Bottleneck.forward, OnnxModule.forward

    def block(self: nn.Module, x: Tensor) -> Tensor:
        nonlocal ran
        ran += isinstance(x, Tensor)  # else it is traced
        return by_torch(self, x)

    def part(self: OnnxModule, x: Tensor) -> Any:
        nonlocal ran
        ran += x.shape[1] != 3  # else it is the stem
        return by_onnx(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(litepose._Bottleneck, "forward", block)
        patch.setattr(OnnxModule, "forward", part)
        evaluator.evaluate(arch)
    return ran


def relatives() -> list[Arch]:
    """Archs that agree up to some stage, in an order in which each meets something known."""
    largest = tiny.space().largest()
    return [
        largest,
        largest.replace(**{"head.deconv1.width": 8}),
        largest.replace(**{"stage3.width": 16}),
        largest.replace(**{"stage1.width": 8}),
        tiny.space().smallest(),
        largest.replace(resolution=64),
        largest,
        largest.replace(**{"stage3.width": 16, "head.deconv1.width": 8}),
    ]


@pytest.mark.parametrize("limit", [2**30, 200_000, 0])
@pytest.mark.parametrize("flip", [False, True])
def test_networks_that_begin_alike_give_the_same_bits_as_alone(
    supernet: Supernet, truth: PoseDataset, limit: int, flip: bool
) -> None:
    calibration = CalibrationImages(tiny.people(6, 1), 6, 0, batch_pixels=4 * 96 * 96)
    config = replace(CONFIG, flip=flip, scales=(1.0, 0.5))
    alone = SubnetEvaluator(supernet, calibration, truth, config)
    sharing = SubnetEvaluator(supernet, calibration, truth, config, fixed=True)
    assert sharing.shared is not None
    sharing.shared.limit_bytes = limit
    for arch in relatives():
        expected, found = alone.evaluate(arch), sharing.evaluate(arch)
        assert found.detections == expected.detections
        assert found.stats == expected.stats
        theirs, ours = alone.subnet(arch).state_dict(), sharing.subnet(arch).state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        groups = sharing.shared._groups.values()
        held = sum(output.nbytes for group in groups for output in group.outputs.values())
        assert sharing.shared.held_bytes == held <= limit
    assert (sharing.shared.held_bytes > 0) == (limit > 0)


def test_known_stages_are_not_computed_again(
    supernet: Supernet, truth: PoseDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = CalibrationImages(tiny.people(6, 1), 4, 0)
    evaluator = SubnetEvaluator(supernet, calibration, truth, CONFIG, fixed=True)
    counts = [runs_of(evaluator, arch, monkeypatch) for arch in relatives()]
    each = counts[0] // 4  # passes: the training images' and the batches'
    # The fifth is of another resolution, the sixth as wide as the first but begins like the fifth.
    assert counts == [4 * each, 0, each, 3 * each, 4 * each, 3 * each, 0, 0]
    forgetful = pickle.loads(pickle.dumps(evaluator))
    assert forgetful.shared.held_bytes == 0
    assert runs_of(forgetful, relatives()[0], monkeypatch) == 4 * each


def test_weights_that_may_change_share_nothing(supernet: Supernet, truth: PoseDataset) -> None:
    """Training validates with one evaluator while the weights move on."""
    network = tiny.supernet()
    network.load_state_dict(supernet.state_dict())
    evaluator = SubnetEvaluator(network, CalibrationImages(tiny.people(6, 1), 4, 0), truth, CONFIG)
    before = evaluator.evaluate(archs()[0]).detections
    with torch.no_grad():
        for parameter in network.stage0.parameters():  # type: ignore[union-attr]
            parameter.mul_(1.5)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert evaluator.evaluate(archs()[0]).detections != before


def test_an_interrupted_evaluation_leaves_nothing_half_kept(supernet: Supernet, truth: PoseDataset) -> None:
    calibration = CalibrationImages(tiny.people(6, 1), 4, 0)
    evaluator = SubnetEvaluator(supernet, calibration, truth, CONFIG, fixed=True)
    expected = SubnetEvaluator(supernet, calibration, truth, CONFIG).evaluate(archs()[0])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(archs()[0], progress=interrupt)
    assert evaluator.shared is not None
    held = sum(group.held_bytes for group in evaluator.shared._groups.values())
    assert evaluator.shared.held_bytes == held > 0  # the training images' outputs; no longer the others'
    assert evaluator.evaluate(archs()[0]).detections == expected.detections


def test_the_bound_holds_while_a_network_adds_to_what_is_kept(
    supernet: Supernet, truth: PoseDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = CalibrationImages(tiny.people(6, 1), 4, 0)
    evaluator = SubnetEvaluator(supernet, calibration, truth, CONFIG, fixed=True)
    shared = evaluator.shared
    assert shared is not None
    evaluator.evaluate(relatives()[0])
    shared.limit_bytes = shared.held_bytes + 1000  # a second network fits only in place of the first
    seen: list[int] = []
    make_room = SharedStages._make_room

    def weighed(self: SharedStages, size: int, using: Collection[Any]) -> bool:
        fits = make_room(self, size, using)
        seen.append(self.held_bytes + fits * size)
        return fits

    monkeypatch.setattr(SharedStages, "_make_room", weighed)
    former = set(shared._groups)
    evaluator.evaluate(relatives()[4])
    assert max(seen) <= shared.limit_bytes
    assert former - set(shared._groups), "nothing was dropped"
    assert shared.held_bytes == sum(group.held_bytes for group in shared._groups.values())


# -- early stopping ----------------------------------------------------------------------------------------

HASTY = EarlyStop(shares=(0.25, 0.5), least=1, resamples=300)


@pytest.fixture(scope="module")
def many(supernet: Supernet) -> PoseDataset:
    """As many pictures as intervals need: what the first arch finds, with joints that are a little off."""
    drawn = tiny.people(48, 5)
    found = SubnetEvaluator(supernet, CalibrationImages(tiny.people(6, 1), 6, 0), drawn, CONFIG)
    return with_people(drawn, found.evaluate(archs()[0]).detections, 3.0)


def stopping(supernet: Supernet, data: PoseDataset, rule: EarlyStop | None) -> SubnetEvaluator:
    calibration = CalibrationImages(tiny.people(6, 1), 6, 0)
    return SubnetEvaluator(supernet, calibration, data, CONFIG, early_stop=rule)


def rival_of(result: SubnetResult) -> Rival:
    return Rival(result.stats["AP"], result.looks)


def test_without_a_rival_nothing_stops_and_the_looks_are_kept(supernet: Supernet, many: PoseDataset) -> None:
    plain = stopping(supernet, many, None).evaluate(archs()[0])
    assert plain.looks == {}
    evaluator = stopping(supernet, many, HASTY)
    told: list[tuple[int, int]] = []
    result = evaluator.evaluate(archs()[0], progress=lambda *each: told.append(each))
    assert told[-1] == (48, 48) and [done for done, _ in told] == sorted(done for done, _ in told)
    shares = {name: result.stats[name] for name in ("AP@0.25", "AP@0.5")}
    assert {name: value for name, value in result.stats.items() if name not in shares} == plain.stats
    assert result.detections == plain.detections
    assert (result.partial, result.images, result.estimate) == (False, 48, plain.stats["AP"])
    assert {name: look.ap for name, look in result.looks.items()} == shares
    # Each share is the AP of its images by the official evaluator, and the resamples are of these images.
    for name, share in shares.items():
        ids = HASTY.order(many.ids)[: round(48 * float(name.removeprefix("AP@")))]
        chosen = [each for each in plain.detections if each["image_id"] in set(ids)]
        official = keypoint_ap(many.ground_truth(ids), chosen, many.skeleton.sigmas)["AP"]
        assert share == pytest.approx(official, abs=1e-9)
        matches = evaluator.matches(plain).subset(ids)
        np.testing.assert_array_equal(result.looks[name].resampled, HASTY.look(matches).resampled)


def test_a_network_that_surely_loses_is_stopped_and_only_that(supernet: Supernet, many: PoseDataset) -> None:
    evaluator = stopping(supernet, many, HASTY)
    best = evaluator.evaluate(archs()[0])
    whole = evaluator.evaluate(archs()[1])
    assert best.stats["AP@0.25"] > whole.stats["AP@0.25"] + 0.3
    stopped = evaluator.evaluate(archs()[1], rival=rival_of(best))
    assert (stopped.partial, stopped.images) == (True, 12)
    assert stopped.verdict is not None and stopped.verdict.look == "AP@0.25"
    error = stopped.verdict.deviation
    assert stopped.estimate + 2 * error < best.stats["AP"]
    assert abs(stopped.estimate - whole.stats["AP"]) < 4 * error
    assert stopped.stats["AP"] == stopped.stats["AP@0.25"] == whole.stats["AP@0.25"]
    assert {each["image_id"] for each in stopped.detections} <= set(HASTY.order(many.ids)[:12])
    # The same is told afterwards of the network that was looked at to the end.
    assert evaluator.verdict(whole.looks, rival_of(best)) == stopped.verdict
    # Its equal and its better are not, nor one whose rival has no such figures, or others.
    equal = evaluator.evaluate(archs()[0], rival=rival_of(best))
    assert (equal.stats, equal.detections, equal.partial) == (best.stats, best.detections, False)
    assert not evaluator.evaluate(archs()[0], rival=rival_of(whole)).partial
    assert evaluator.verdict(whole.looks, Rival(0.9, {})) is None
    fewer = stopping(supernet, many, replace(HASTY, resamples=200)).evaluate(archs()[0])
    assert evaluator.verdict(whole.looks, rival_of(fewer)) is None
    assert stopping(supernet, many, None).verdict(whole.looks, rival_of(best)) is None
    assert not stopping(supernet, many, None).evaluate(archs()[1], rival=rival_of(best)).partial


# -- calibration images ------------------------------------------------------------------------------------


def test_calibration_images_are_the_same_every_time() -> None:
    def made(seed: int) -> Tensor:
        return torch.cat(list(CalibrationImages(tiny.people(), 4, seed, Augmentation()).batches(64)))

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    images = CalibrationImages(tiny.people(), 4, 1, Augmentation())
    assert torch.equal(torch.cat(list(images.batches(64))), torch.cat(list(images.batches(64))))


def test_more_calibration_images_than_there_are_vary_anew() -> None:
    images = CalibrationImages(tiny.people(3), 7, 0, Augmentation())
    assert len(images) == 7
    assert Counter(Counter(images.indices).values()) == {2: 2, 3: 1}
    made = torch.cat(list(images.batches(64)))
    assert len({image.numpy().tobytes() for image in made}) == 7


@pytest.mark.parametrize(("pixels", "sizes"), [(10**9, [5]), (3 * 64 * 64, [3, 2]), (1, [1] * 5)])
def test_batches_are_as_large_as_memory_allows_and_equal(pixels: int, sizes: list[int]) -> None:
    images = CalibrationImages(tiny.people(), 5, 0, batch_pixels=pixels)
    assert [len(batch) for batch in images.batches(64)] == sizes


def test_no_calibration_images() -> None:
    with pytest.raises(InputError, match="at least one training image; got 0 of 6"):
        CalibrationImages(tiny.people(), 0, 0)
    with pytest.raises(InputError, match="got 4 of 0"):
        CalibrationImages(tiny.people().subset([]), 4, 0)
