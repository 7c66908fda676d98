"""The AP by which networks are chosen: that of the network as it will be shipped, and of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Arch, InputError, get_arch
from supernet.base import Supernet
from supernet.bn import recalibrate
from supernet.checkpoint import load_network, save_network
from supernet.evaluator import CalibrationImages, SubnetEvaluator
from supernet.export import export_onnx
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import evaluate
from supernet.pose.maps import EvalConfig
from supernet.pose.transforms import Augmentation
from tests.supernet import tiny
from tests.supernet.networks import randomise

CONFIG = EvalConfig(64, multiple=32, batch_size=4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    content = drawn.ground_truth()
    content["annotations"] = []
    for image_id in drawn.ids:
        for place, detection in enumerate([d for d in found if d["image_id"] == image_id][:3]):
            joints = np.array(detection["keypoints"]).reshape(-1, 3)
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
