"""However the machine is used, the same people are found; and nothing is left running."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import InputError, RunError
from supernet.pose import inference as inference_module
from supernet.pose import workers as workers_module
from supernet.pose.dataset import PoseDataset
from supernet.pose.decode import GroupingConfig, decode
from supernet.pose.inference import Inference, Pictures, predict
from supernet.pose.maps import EvalConfig
from supernet.pose.synthetic import SyntheticPeople
from supernet.pose.workers import DecodeWorkers, decode_maps
from tests.supernet import tiny
from tests.supernet.networks import randomise

CONFIG = EvalConfig(64, multiple=32, batch_size=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    supernet = randomise(tiny.supernet(), 3)
    plain: nn.Module = supernet.extract(tiny.space().largest()).eval().to(memory_format=torch.channels_last)
    return plain


@pytest.fixture(scope="module")
def data() -> PoseDataset:
    """Nine pictures of three shapes, one after the other."""
    images, content = {}, None
    for place, size in enumerate(((96, 96), (96, 150), (160, 96))):
        drawn = SyntheticPeople(3, place, size=size, people=(1, 2))
        part = drawn.ground_truth()
        for record in part["images"]:
            record["id"] = 3 * record["id"] + place
        for annotation in part["annotations"]:
            annotation["image_id"] = 3 * annotation["image_id"] + place
            annotation["id"] = 10 * annotation["id"] + place
        images |= {3 * image_id + place: drawn.load_image(i) for i, image_id in enumerate(drawn.ids)}
        if content is None:
            content = part
        else:
            content["images"] += part["images"]
            content["annotations"] += part["annotations"]
    assert content is not None
    return PoseDataset.from_dict(content, images)


def near(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [each["image_id"] for each in found] == [each["image_id"] for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        a, b = (np.reshape(each["keypoints"], (-1, 3)) for each in (ours, theirs))
        assert np.abs(a[:, :2] - b[:, :2]).max() < 1e-4
        assert np.abs(a[:, 2] - b[:, 2]).max() < 1e-5


@pytest.fixture(scope="module")
def plain(network: nn.Module, data: PoseDataset) -> list[dict[str, Any]]:
    """What is found one picture at a time."""
    found = predict(network, data, EvalConfig(64, multiple=32, batch_size=1)).detections
    assert len(found) > 2 * len(data)
    assert len({each["image_id"] for each in found}) == 9
    return found


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_same_people_whatever_runs_at_once(
    network: nn.Module, data: PoseDataset, plain: list[dict[str, Any]], side_by_side: int, batch_size: int
) -> None:
    config = EvalConfig(64, multiple=32, batch_size=batch_size)
    told: list[tuple[int, int]] = []
    inference = Inference(side_by_side, pictures=Pictures(data))
    for _ in range(2):  # the second time with the pictures that were kept
        result = predict(network, data, config, inference=inference, progress=lambda *each: told.append(each))
        near(result.detections, plain)
        assert result.images == 9
        assert told[-1] == (9, 9)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        told.clear()


def test_the_same_bits_whatever_the_number_of_threads(network: nn.Module, data: PoseDataset) -> None:
    two, five = (predict(network, data, CONFIG, inference=Inference(count)).detections for count in (2, 5))
    assert two == five


def test_processes_decode_the_same(network: nn.Module, data: PoseDataset) -> None:
    config = EvalConfig(64, multiple=32, batch_size=2, flip=True)
    alone = predict(network, data, config)
    with DecodeWorkers(2) as workers:
        for side_by_side in (1, 2):
            for _ in range(2):
                result = predict(network, data, config, inference=Inference(side_by_side, workers))
                near(result.detections, alone.detections)
                assert result.seconds_decode > 0
        assert predict(network, data, config, inference=Inference(1, workers)).detections == alone.detections


def test_a_batch_is_cut_where_batches_run_side_by_side(
    network: nn.Module, data: PoseDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_module, "SIDE_PIXELS", 2 * 64 * 64)
    seen: list[tuple[int, ...]] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    predict(network, data, CONFIG, inference=Inference(2))
    hook.remove()
    assert Counter(shape[2:] for shape in seen)[(64, 64)] == 2  # 2 + 1 of 3
    assert all(shape[0] == 1 for shape in seen if shape[2:] != (64, 64))
    assert sum(shape[0] for shape in seen) == 9


# -- pictures ----------------------------------------------------------------------------------------------


class Counted(PoseDataset):
    """Counts which of its images are read."""

    read: Counter[int]

    @classmethod
    def of(cls, data: PoseDataset) -> Counted:
        self = cls.__new__(cls)
        self.__dict__.update(data.__dict__)
        self.read = Counter()
        return self

    def load_image(self, index: int) -> Any:
        self.read[index] += 1
        return super().load_image(index)


def test_pictures_are_read_once_per_resolution(data: PoseDataset) -> None:
    counted = Counted.of(data)
    pictures = Pictures(counted)
    first = [pictures.get(i, CONFIG) for i in range(9)]
    assert all(pictures.get(i, CONFIG)[0] is first[i][0] for i in range(9))
    assert set(counted.read.values()) == {1}
    assert pictures.held_bytes == sum(image.nbytes for image, _ in first)
    pictures.get(0, EvalConfig(96, multiple=32))
    assert counted.read[0] == 2
    with pytest.raises(ValueError, match="read-only"):
        first[0][0][0, 0, 0] = 1


def test_memory_is_bounded_and_the_least_used_resolution_goes_first(data: PoseDataset) -> None:
    counted = Counted.of(data)
    size = Pictures(data).get(0, CONFIG)[0].nbytes
    pictures = Pictures(counted, int(2.5 * size))
    for resolution in (64, 96, 64):  # 96 px: 2.25 times the pixels
        for _ in range(2):
            pictures.get(0, EvalConfig(resolution, multiple=32))
            assert pictures.held_bytes <= pictures.limit_bytes
    assert counted.read[0] == 3  # each time the resolution changed
    nothing = Pictures(counted, 0)
    expected, _ = nothing.get(1, CONFIG)
    np.testing.assert_array_equal(nothing.get(1, CONFIG)[0], expected)
    assert nothing.held_bytes == 0


def test_pictures_are_left_behind_when_packed(data: PoseDataset) -> None:
    pictures = Pictures(data, 10**6)
    pictures.get(0, CONFIG)
    other = pickle.loads(pickle.dumps(pictures))
    assert (other.limit_bytes, other.held_bytes) == (10**6, 0)
    np.testing.assert_array_equal(other.get(0, CONFIG)[0], pictures.get(0, CONFIG)[0])


# -- errors ------------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """Breaks at the third batch."""

    def __init__(self, network: nn.Module, kind: type[BaseException]) -> None:
        super().__init__()
        self.network, self.kind, self.calls = network, kind, 0

    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise self.kind("the third batch")
        return self.network(images)


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_errors_of_the_network_reach_the_caller(
    network: nn.Module, data: PoseDataset, side_by_side: int, kind: type[BaseException]
) -> None:
    failing = Failing(network, kind).train()
    before = threading.active_count()
    config = EvalConfig(64, multiple=32, batch_size=1)
    with pytest.raises(kind, match="the third batch"):
        predict(failing, data, config, inference=Inference(side_by_side))
    assert threading.active_count() == before
    assert torch.get_num_threads() == 1
    assert failing.training
    assert failing.calls < 9


def test_an_unreadable_picture_is_named_also_side_by_side(network: nn.Module, data: PoseDataset) -> None:
    class Broken(Counted):
        def load_image(self, index: int) -> Any:
            if index == 4:
                raise InputError("image 'x.jpg' is truncated")
            return super().load_image(index)

    with pytest.raises(InputError, match=r"x\.jpg"):
        predict(network, Broken.of(data), CONFIG, inference=Inference(2))


def maps(count: int = 3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    det = np.maximum(rng.random((count, 4, 24, 20), np.float32) - 0.9, 0) * 8
    return det, rng.random((count, 4, 24, 20, 2), np.float32)


def test_workers_give_what_decode_gives_in_any_order_of_submission() -> None:
    config = GroupingConfig()
    with DecodeWorkers(2) as workers:
        batches = [maps(1 + i % 3, i) for i in range(9)]  # more than there is memory for at once
        jobs = [workers.submit(det, tags, config, [3, 1, 0, 2]) for det, tags in batches]
        for (det, tags), job in zip(batches, jobs, strict=True):
            decoded = workers.result(job)
            for (people, scores), heat, tag in zip(decoded.people, det, tags, strict=True):
                expected = decode(heat, tag, config, [3, 1, 0, 2])
                np.testing.assert_array_equal(people, expected[0])
                np.testing.assert_array_equal(scores, expected[1])
        larger = np.zeros((2, 4, 200, 200), np.float32), np.zeros((2, 4, 200, 200, 1), np.float32)
        assert workers.result(workers.submit(*larger, config, None)).people[0][0].shape == (0, 4, 4)
    assert decode_maps(*maps(), config, None).seconds > 0


@pytest.mark.parametrize("most", [0, 1, 5, None])
@pytest.mark.parametrize("fill", [True, False])
def test_the_best_people_are_what_they_are_among_all(most: int | None, fill: bool) -> None:
    config = GroupingConfig(refine=fill)
    det, tags = maps(2, 5)
    for (people, scores), heat, tag in zip(decode_maps(det, tags, config, None, most).people, det, tags):
        all_people, all_scores = decode(heat, tag, config)
        falling = np.argsort(-all_scores, kind="stable")
        best = slice(None) if most is None else falling[:most]
        assert len(all_scores) > 5
        np.testing.assert_array_equal(people, all_people[best])
        np.testing.assert_array_equal(scores, all_scores[best])


def test_errors_of_a_worker_reach_the_caller_and_it_works_on() -> None:
    det, tags = maps()
    with DecodeWorkers(1) as workers:
        for _ in range(5):  # a slot that is lost would block
            with pytest.raises(InputError, match="joint order"):
                workers.result(workers.submit(det, tags, GroupingConfig(), [0, 0, 1, 2]))
        assert len(workers.result(workers.submit(det, tags, GroupingConfig(), None)).people) == 3


def test_a_worker_that_dies_is_told_in_a_line() -> None:
    det, tags = maps()
    with DecodeWorkers(1) as workers:
        workers.result(workers.submit(det, tags, GroupingConfig(), None))
        (pid,) = workers._pool._processes
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RunError, match="process that groups people died") as caught:
            for _ in range(50):
                workers.result(workers.submit(det, tags, GroupingConfig(), None))
                time.sleep(0.02)
    assert "\n" not in str(caught.value)


def test_workers_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="at least 1 process decodes maps, not 0"):
        DecodeWorkers(0)
    process = type("Process", (), {"daemon": True})()
    monkeypatch.setattr(workers_module.multiprocessing, "current_process", lambda: process)
    with pytest.raises(InputError, match="daemonic process"):
        DecodeWorkers(1)
    with pytest.raises(InputError, match="at least 1 batch"):
        Inference(0)


# -- nothing is left ---------------------------------------------------------------------------------------

_DRIVER = """
import sys, time
import numpy as np
from supernet.pose.decode import GroupingConfig
from supernet.pose.workers import DecodeWorkers
if __name__ == "__main__":
    det = np.zeros((2, 17, 128, 128), np.float32)
    tags = np.zeros((2, 17, 128, 128, 1), np.float32)
    with DecodeWorkers(2) as workers:
        for job in [workers.submit(det, tags, GroupingConfig(), None) for _ in range(2)]:
            workers.result(job)
        print(*workers._pool._processes, *(s._memory.name for s in workers._slots if s._memory), flush=True)
        while True:
            workers.result(workers.submit(det, tags, GroupingConfig(), None))
"""


def gone(pid: str) -> bool:
    """Return whether a process has ended (a zombie has: only its parent's question is open)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans_and_no_memory_are_left(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C goes to the whole group of processes, as a terminal sends it; kill -9 to the parent alone."""
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    pids = [word for word in words if word.isdigit()]
    names = [word for word in words if not word.isdigit()]
    assert len(pids) == 2 and names
    assert not any(gone(pid) for pid in pids)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert wait_until(lambda: all(gone(pid) for pid in pids)), "workers outlive their parent"
    assert wait_until(lambda: not any(Path("/dev/shm", name.lstrip("/")).exists() for name in names))
    if number == signal.SIGINT:
        assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
