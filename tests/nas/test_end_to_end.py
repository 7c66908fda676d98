"""``nas time``: the stages are the predictor's, the people are there, the figures add up."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latency_tables import RUNTIMES, LatencyTable, Prediction, Target, Timing, get_runtime
from latency_tables.runtimes import OnnxRuntime, Prepared
from latency_tables.table import Row
from latency_tables.timing import Samples
from nas import end_to_end
from nas.end_to_end import STAGES, FrameTimes, TimeSettings, measure_frames
from search_spaces import InputError, UnavailableError
from search_spaces.deconv import DECONV_MBV3, deconv_arch
from supernet.base import Subnet
from supernet.checkpoint import load_network, save_network
from supernet.export import export_onnx
from supernet.pose.dataset import read_image
from supernet.pose.skeleton import COCO17
from supernet.pose.synthetic import render
from supernet.registry import build_network
from tests.nas.conftest import Outcome
from tests.supernet import tiny

SIZE = (96, 128)
QUICK = TimeSettings(people=(0, 1, 3), frame=(90, 150), size=SIZE, threads=1, seconds=0.01, rounds=2)
OPTIONS = "--size 96x128 --frame 150x90 --threads 1 --seconds 0.01 --rounds 2"


@pytest.fixture(scope="module")
def network() -> Subnet:
    supernet = tiny.supernet()
    return supernet.extract(supernet.space.smallest()).eval()


@pytest.fixture(scope="module")
def models(network: Subnet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network in every form: ``emitted/``, ``net.safetensors``, ``net.onnx``."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "emitted").mkdir()
    told = {"skeleton": COCO17.to_json()}
    for stem in (folder / "net", folder / "emitted" / "model"):
        save_network(stem.with_suffix(".safetensors"), network, told)
    export_onnx(network, folder / "net.onnx", SIZE, metadata=told)
    (folder / "emitted" / "model.onnx").write_bytes((folder / "net.onnx").read_bytes())
    return folder


@pytest.fixture
def shop(box: Path, models: Path) -> Path:
    """The box, with the models, damaged ones, and a folder of two pictures."""
    for path in models.iterdir():
        (box / path.name).symlink_to(path)
    (box / "cut.onnx").write_bytes((models / "net.onnx").read_bytes()[:-100])
    (box / "cut.safetensors").write_bytes((models / "net.safetensors").read_bytes()[:-100])
    (box / "empty").mkdir()
    (box / "photos").mkdir()
    for folder in ("broken", "run"):
        (box / folder).mkdir()
    (box / "broken" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (box / "run" / "recipe.yaml").touch()
    for index in range(2):
        image, _ = render(3, index, (80, 100 + 20 * index))
        cv2.imwrite(str(box / "photos" / f"{index}.png"), image)
    return box


# -- the chain -----------------------------------------------------------------------------------------------


@pytest.fixture(params=sorted(RUNTIMES))
def chain(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Iterator[end_to_end._Chain]:
    settings = replace(QUICK, runtime=request.param)
    runtime = get_runtime(request.param)
    if reason := runtime.unavailable():
        pytest.skip(reason)
    model = end_to_end._Model.open(str(models / "net.safetensors"), settings, tmp_path)
    with runtime.prepare_model(model.file, model.size, 1) as prepared:
        if prepared.feed is None:
            pytest.skip(f"the runtime '{request.param}' cannot be fed")
        yield end_to_end._Chain(prepared, model, settings)


def test_the_runtime_sees_the_picture_that_it_is_fed(chain: end_to_end._Chain, network: Subnet) -> None:
    for seed in range(2):
        images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        chain.feed(images)
        chain.run()
        with torch.no_grad():
            for ours, theirs in zip(chain.handed(images), network(images), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("drawn", [False, True])
def test_the_stages_are_those_of_the_predictor(chain: end_to_end._Chain, drawn: bool) -> None:
    frame, _ = render(0, 0, (90, 150))
    chain.run()
    (crowd,) = end_to_end._draw(chain, 3, 1)
    with end_to_end._showing(chain, crowd.outputs if drawn else None):
        whole = chain.predictor(frame)
        back = chain.prepare(frame)
        chain.run()
        det, tags = chain.merge()
        people, scores = chain.place(chain.decode(det, tags), det, back)
    np.testing.assert_array_equal(people, whole.people)
    np.testing.assert_array_equal(scores, whole.scores)
    if drawn:
        assert (scores >= end_to_end.MIN_SCORE).sum() == 3


def test_a_runtime_that_cannot_be_fed_is_refused(models: Path, tmp_path: Path) -> None:
    model = end_to_end._Model.open(str(models / "net.onnx"), QUICK, tmp_path)
    with pytest.raises(UnavailableError, match="take --runtime onnxruntime"):
        end_to_end._Chain(Prepared(lambda: None, lambda: ()), model, QUICK)


def test_an_emitted_network_is_timed_in_the_file_that_is_shipped(models: Path, tmp_path: Path) -> None:
    def opened(name: str, size: tuple[int, int] | None) -> end_to_end._Model:
        return end_to_end._Model.open(str(models / name), replace(QUICK, size=size), tmp_path)

    shipped = opened("emitted", None)
    assert shipped.file == models / "emitted" / "model.onnx"
    assert shipped.size == SIZE
    other = opened("emitted", (64, 64))
    assert other.file.parent == tmp_path and other.size == (64, 64)
    plain = opened("net.safetensors", None)
    assert plain.size == plain.arch.size
    assert shipped.arch == other.arch == plain.arch and plain.skeleton.joints == COCO17.joints


# -- the figures ---------------------------------------------------------------------------------------------


def timing(ms: float) -> Timing:
    return Timing(ms, 0.9 * ms, 1.1 * ms, 10)


def test_figures_of_a_frame() -> None:
    stages = dict(zip(STAGES, map(timing, (1.0, 2.0, 10.0, 3.0, 3.5, 0.5)), strict=True))
    frame = FrameTimes(4, 4.0, stages, timing(25.0))
    assert frame.sum_ms == 20.0
    assert frame.fps == 40.0
    assert frame.other_share == 0.5
    there = frame.on_target(Prediction(90.0, 80.0, 110.0, 0.9, "calibrated-estimate", True))
    assert there == {"ms": 100.0, "low_ms": 90.0, "high_ms": 120.0, "fps": 10.0, "here_ms": 10.0}


def test_it_measures_every_stage(models: Path) -> None:
    report = measure_frames(str(models / "net.onnx"), replace(QUICK, size=None))
    assert [each.people for each in report.frames] == [0, 1, 3]
    for frame in report.frames:
        assert set(frame.stages) == set(STAGES)
        assert all(0 < t.p10_ms <= t.median_ms <= t.p90_ms for t in (*frame.stages.values(), frame.total))
        # In one piece it has everything to do that its dearest stage has, and nothing that takes a second.
        assert max(t.p10_ms for t in frame.stages.values()) < frame.total.p90_ms < 1000
    nobody, *others = report.frames
    assert all(each.stages["network"] == nobody.stages["network"] for each in others)
    assert nobody.groups == 0 < others[0].groups <= others[1].groups
    assert others[1].stages["decode"].median_ms > nobody.stages["decode"].median_ms


def test_a_speed_that_drifts_is_told() -> None:
    steady = [Samples((ms,), 1) for ms in (1.0, 1.02, 0.99)]
    assert end_to_end._drift(steady) == pytest.approx(0.02)
    assert end_to_end._drift([*steady, Samples((2.0,), 1)]) > end_to_end._DRIFT


def test_what_the_command_tells_and_writes(shop: Path, nas_: Callable[..., Outcome]) -> None:
    arch = load_network(shop / "net.safetensors")[0].arch
    target = Target("test-phone", "a chip", "onnxruntime")
    rows = dict.fromkeys(arch.layers(17, SIZE), Row(1.0, 0.9, 1.1, 9, "measured-by-others", "a test"))
    LatencyTable(target=target, rows=rows).save(shop / "tables" / f"{target.name}.csv")
    line = f"time net.safetensors --people 2,0 {OPTIONS} --images photos --latency {target.name} -o out"
    told = nas_(*line.split())
    assert told.code == 0, told.err
    assert "the rest, HERE" in told.out and "2 pictures, the network's own maps" in told.out
    assert "were measured on this machine and will take another time there" in " ".join(told.err.split())
    data = json.loads((shop / "out" / "time.json").read_text())
    assert data["input"] == {"height": 96, "width": 128} and data["frame"] == {"height": 90, "width": 150}
    assert data["target"]["name"] == "this-machine-onnxruntime-fp32-1t"
    assert data["provenance"] == "measured-here" and data["trained"]
    predicted = data["predictions"][target.name]
    assert predicted["ms"] == pytest.approx(len(arch.layers(17, SIZE)))
    for frame in data["frames"]:
        medians = {name: each["median_ms"] for name, each in frame["stages"].items()}
        assert frame["sum_ms"] == pytest.approx(math.fsum(medians.values()), abs=1e-3)
        here = frame["sum_ms"] - medians["network"]
        assert frame["on"][target.name]["high_ms"] == pytest.approx(here + predicted["high_ms"], abs=1e-3)
    assert [each["people"] for each in data["frames"]] == [0, 2]
    assert sorted(each["name"] for each in data["photos"]) == ["0.png", "1.png"]
    assert sum(each["pictures"] for each in data["photos_by_people"]) == 2
    with (shop / "out" / "time.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(each["people"], each["stage"]) for each in found] == [
        (people, stage) for people in ("0", "2") for stage in (*STAGES, "total")
    ]
    assert (shop / "out" / "time.svg").read_text().count("in one piece") >= 1
    assert read_image(shop / "out" / "time.png").std() > 10


def test_pictures_that_show_nobody_or_nothing_are_told(shop: Path, models: Path) -> None:
    (shop / "photos" / "cut.png").write_bytes(b"")
    cv2.imwrite(str(shop / "broken" / "black.png"), np.zeros((80, 90, 3), np.uint8))
    quick = replace(QUICK, people=(0,), rounds=1)
    both = measure_frames(str(models / "net.onnx"), quick, images=shop / "photos")
    assert [each.name for each in both.photos] == ["0.png", "1.png"]
    assert "cut.png" in both.notices[0] and both.notices[0].startswith("picture left out: image ")
    nobody = measure_frames(str(models / "net.onnx"), quick, images=shop / "broken")
    assert [each.people for each in nobody.photos] == [0]
    assert "nobody was found in any picture, so their times are those of empty frames" in nobody.notices


def test_an_arch_gets_random_weights(nas_: Callable[..., Outcome], box: Path, network: Subnet) -> None:
    (box / "arch.json").write_text(json.dumps(network.arch.to_json()))
    told = nas_(*f"time arch.json --people 1 {OPTIONS} --json".split())
    assert told.code == 0, told.err
    data = json.loads(told.out)
    assert not data["trained"] and data["skeleton"] == "crowdpose14" and data["joints"] == 14
    assert data["frames"][0]["people"] == 1


def test_default_numbers_that_do_not_fit_are_left_out(models: Path) -> None:
    settings = replace(QUICK, people=None, size=(64, 64), rounds=1)
    report = measure_frames(str(models / "net.safetensors"), settings)
    assert [each.people for each in report.frames][:3] == [0, 1, 2]
    assert report.frames[-1].people < 30
    assert any("30 people cannot be told apart" in line for line in report.notices)


FAULTS = [
    ("litepose-xss", "did you mean 'litepose-xs'?"),
    ("gone.onnx", "model 'gone.onnx' does not exist"),
    ("gone.safetensors", "'gone.safetensors' does not exist"),
    ("cut.onnx", "'cut.onnx'"),
    ("cut.safetensors", "'cut.safetensors'"),
    ("empty", "'empty/model.safetensors' does not exist"),
    ("net.onnx --people -1", "--people are whole numbers from 0, not -1"),
    (
        "net.onnx --people 31",
        "30 people at most, so 31 cannot be timed; raise its limit with --max-people 31",
    ),
    ("net.onnx --people 1,two", "--people are whole numbers with commas between, such as 0,1,5, not '1,two'"),
    ("net.safetensors --size 64x64 --people 30", "30 people cannot be told apart"),
    ("net.onnx --frame 640", "--frame is WIDTHxHEIGHT in pixels such as 640x480, not '640'"),
    ("net.onnx --frame 640x8", "--frame has sides from 32 to 16384 pixels, not 640x8"),
    ("net.onnx --size 64x64", "was exported for 96x128 pixels only; take the .safetensors"),
    ("net.onnx --seconds 0", "--seconds is positive"),
    ("net.onnx --threads 4096", "at most"),
    ("net.onnx --runtime onnxruntim", "did you mean 'onnxruntime'?"),
    ("net.onnx --latency no-such-target", "no-such-target"),
    ("net.onnx --images nowhere", "--images: 'nowhere' is no folder"),
    ("net.onnx --images empty", "'empty'"),
    ("net.onnx --images net.onnx", "'net.onnx' is no folder; a film's frames are timed by 'nas predict"),
    ("net.onnx --images broken", "no picture of 'broken' can be read (picture left out: image "),
    ("net.onnx --latency raspberry-pi-4 --strict-tables", "'raspberry-pi-4-unstated-unstated' lacks"),
    ("net.onnx --limit 3", "--limit is for the pictures of --images"),
    ("run", "'run' is a run, which holds many networks; 'nas emit run' writes one of them"),
    ("litepose-xs --images photos", "--images: 'litepose-xs' has random weights"),
    ("net.safetensors --skeleton crowdpose14", "17 joints, but skeleton 'crowdpose14' has 14"),
]


@pytest.mark.parametrize(("line", "reason"), FAULTS, ids=[line for line, _ in FAULTS])
def test_mistakes_are_told_in_one_line(
    line: str, reason: str, shop: Path, nas_: Callable[..., Outcome]
) -> None:
    told = nas_("time", *line.split(), "--rounds", 1, *([] if "--threads" in line else ["--threads", 1]))
    assert told.code == 2
    assert told.out == ""
    errors = [each for each in told.err.splitlines() if each.startswith("error: ")]
    assert len(errors) == 1 and told.err.splitlines()[-1] == errors[0]
    assert reason in errors[0]


def test_a_runtime_that_is_not_installed(shop: Path, nas_: Callable[..., Outcome]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "unavailable", lambda self: "the package 'onnxruntime' is not installed")
        told = nas_("time", "net.safetensors")
    assert told.code == 2
    assert "the package 'onnxruntime' is not installed; install it with: pip install" in told.err


def test_no_numbers_of_people_are_refused() -> None:
    with pytest.raises(InputError, match="at least one number"):
        TimeSettings(people=())


def test_top_down_networks_are_refused(tmp_path: Path) -> None:
    """By name, as weights and as ONNX: none has tags that could be grouped."""
    arch = deconv_arch(
        *(DECONV_MBV3, 64, (8, 8)),
        **{"stem": 8, "stages": (8, 8, 8, 8, 8, 8), "depths": 1, "last": 16, "deconv_kernels": (4, 2)},
    )
    network = build_network(arch, 17, torch.Generator().manual_seed(0)).eval()
    told = {"skeleton": COCO17.to_json()}
    save_network(tmp_path / "net.safetensors", network, told)
    export_onnx(network, tmp_path / "net.onnx", metadata=told)
    for name in ("simplebaseline-mbv2", str(tmp_path / "net.safetensors"), str(tmp_path / "net.onnx")):
        with pytest.raises(InputError, match="is a top-down network"):
            measure_frames(name, replace(QUICK, size=None))
