"""``nas quantise``: a network's ONNX file in fewer bits, its figures, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
import yaml

from nas import quantising
from nas.evaluation import OnnxNetwork
from nas.quantising import QuantiseSettings, quantise_model, time_models
from nas.recipe import load_recipe
from nas.run import RunDirectory
from search_spaces import InputError, RunError
from search_spaces.files import locked_folder
from search_spaces.jsonl import JsonLines
from supernet.checkpoint import save_network
from supernet.pose.finding import find_people
from supernet.pose.skeleton import COCO17
from supernet.pose.synthetic import write_dataset
from supernet.quantise import OnnxMaps
from supernet.registry import build_network
from supernet.sensitivity import Trials
from tests.conftest import single_thread
from tests.nas import tiny
from tests.nas.conftest import Outcome
from tests.supernet.networks import randomise

ERROR = QuantiseSettings(score="heatmap", tolerance=0.2, calibration_images=3, probe_images=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a network of random weights, a COCO file, and the network quantised by its outputs' error."""
    folder = tmp_path_factory.mktemp("quantise")
    arch = tiny.recipe(folder).build_space(COCO17).largest()
    network = randomise(build_network(arch, 17, torch.Generator().manual_seed(0)))
    save_network(folder / "net.safetensors", network, {"skeleton": COCO17.to_json()})
    write_dataset(folder / "photos", 12, seed=7, size=(96, 96))
    quantise_model(folder / "net.safetensors", str(folder / "tiny.yaml"), folder / "int8", ERROR)
    return folder


def report_of(folder: Path, precision: str = "int8") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"quantisation-{precision}.json").read_text())
    return found


def test_the_file_and_what_is_told_of_it(shop: Path) -> None:
    report = report_of(shop / "int8")
    assert report["within_tolerance"] is True
    assert 0 < report["loss"] <= 0.2
    assert report["images"] == {"calibrate": 3, "search": len(report_search(shop)), "val": 6}
    model = onnx.load(shop / "int8" / "int8.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["quantisation"])["kept_in_float"] == report["kept_in_float"]
    assert json.loads(told["skeleton"])["joints"] == list(COCO17.joints)
    assert report["executed"].keys() >= set(report["kept_in_float"])
    floats = {layer for layer, kind in report["executed"].items() if kind == "float"}
    assert floats == set(report["kept_in_float"])  # deconvs run in 8 bits as convolutions
    assert report["size_bytes"]["int8"] < report["size_bytes"]["fp32"]
    assert {unit["name"] for unit in report["search"]["units"]} >= {"stem", "head.deconv0", "head.output1"}
    assert set(report["kinds"]) == {"conv", "dwconv", "pwconv", "deconv", "output"}
    for name in ("fp32", "int8"):
        assert 0 < report["latency_here"][name]["least_ms"] <= report["latency_here"][name]["median_ms"]


def report_search(shop: Path) -> tuple[int, ...]:
    from nas.data import open_datasets
    from nas.recipe import load_recipe

    return open_datasets(load_recipe(shop / "tiny.yaml")).search.ids


def test_the_loss_is_that_of_the_file(shop: Path) -> None:
    """Measured anew, by hand, on the same val pictures."""
    from nas.data import open_datasets
    from nas.recipe import load_recipe
    from supernet.pose.transforms import normalise, resize_for_eval

    val = open_datasets(load_recipe(shop / "tiny.yaml")).val
    networks = [OnnxMaps(onnx.load(shop / "int8" / f"{name}.onnx"), 1) for name in ("fp32", "int8")]
    pictures = [normalise(resize_for_eval(val.load_image(i), 96, 32)[0][None]) for i in range(2)]
    ratios = []
    for place in range(2):
        ours, theirs = (torch.stack([net(p)[place][0] for p in pictures]) for net in networks)
        error, signal = (ours - theirs).double().square(), ours.double().var((2, 3), correction=0).mean(0)
        ratios.append(float((error.mean((0, 2, 3)) / signal).mean()))
    assert np.sqrt(np.mean(ratios)) == pytest.approx(report_of(shop / "int8")["loss"], rel=1e-4)


def test_what_was_measured_is_not_measured_again(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("measured again")

    before = report_of(shop / "int8")
    journal = (shop / "int8" / "measured.jsonl").read_bytes()
    monkeypatch.setattr(quantising, "calibrate", never)
    monkeypatch.setattr("supernet.sensitivity.Quantiser.int8", lambda self, kept=(): before_int8(self, kept))
    quantise_model(shop / "net.safetensors", str(shop / "tiny.yaml"), shop / "int8", ERROR)
    after = report_of(shop / "int8")
    assert after["search"] == before["search"]
    assert after["loss"] == before["loss"]
    assert (shop / "int8" / "measured.jsonl").read_bytes() == journal


ODD_LINES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no model": lambda line: line.pop("model", None) or line.pop("value"),
    "a text": lambda line: line.update(value="x"),
    "texts": lambda line: line.update(value={"a": "x"}),
    "no number": lambda line: line.update(value=10**400),
    "another thing": lambda line: line.update(what="else"),
}


@pytest.mark.parametrize("what", ["ranges", "noise"])
@pytest.mark.parametrize("odd", ODD_LINES)
def test_a_damaged_journal_is_told(shop: Path, tmp_path: Path, what: str, odd: str) -> None:
    lines = (shop / "int8" / "measured.jsonl").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if f'"what": "{what}"' in line)
    record = json.loads(lines[at])
    ODD_LINES[odd](record)
    path = tmp_path / "measured.jsonl"
    path.write_text("\n".join([*lines[:at], json.dumps(record), *lines[at + 1 :], ""]))
    with path.open("a") as stream, pytest.raises(RunError, match=rf"damaged at line {at + 1}"):
        journal = JsonLines(path, stream)
        if what == "ranges" and odd != "another thing":
            quantising._ranges(journal, onnx.ModelProto(), [], "minmax")
        Trials(cast(Any, None), cast(Any, None), lambda model: 0.0, journal)


def before_int8(self: Any, kept: Any) -> Any:
    """Models are made for the file alone, not to be measured."""
    import inspect

    assert not any(frame.function == "_measured" for frame in inspect.stack())
    return self._whole.part(
        self.fp32,
        {n for layer, found in self.layers.items() if layer not in kept for n in found.nodes},
    )


def test_another_measurement_in_the_folder_is_not_mixed(shop: Path) -> None:
    other = QuantiseSettings(score="heatmap", tolerance=0.2, calibration_images=2, probe_images=2)
    with pytest.raises(RunError, match="calibration_images 3 there, 2 now"):
        quantise_model(shop / "net.safetensors", str(shop / "tiny.yaml"), shop / "int8", other)


def test_a_tighter_tolerance_keeps_more_in_float(shop: Path) -> None:
    loose = report_of(shop / "int8")
    tight = QuantiseSettings(
        score="heatmap",
        tolerance=0.6 * loose["search"]["score_int8_everywhere"] * -1,
        calibration_images=3,
        probe_images=2,
        by="layer",
        keep=("stem",),
    )
    folder = shop / "tight"
    try:
        quantise_model(shop / "net.safetensors", str(shop / "tiny.yaml"), folder, tight)
    except RunError:  # the val pictures' error may lie on the other side
        assert not (folder / "int8.onnx").exists()
    report = report_of(folder)
    assert set(report["kept_in_float"]) > {"stem.conv", "stem.depthwise", "stem.project"}
    assert report["search"]["loss"] <= tight.tolerance
    assert "int8 everywhere" in report["latency_here"]


def test_a_file_that_misses_the_tolerance_is_not_left(shop: Path) -> None:
    """Even with every layer in float the rewritten deconvs round otherwise than fp32."""
    none = QuantiseSettings(score="heatmap", tolerance=0, calibration_images=2, probe_images=2)
    folder = shop / "missed"
    folder.mkdir()
    (folder / "int8.onnx").write_bytes(b"of an earlier command")
    with pytest.raises(RunError, match=r"more than the tolerance of 0; it was not kept"):
        quantise_model(shop / "net.safetensors", str(shop / "tiny.yaml"), folder, none)
    assert not (folder / "int8.onnx").exists()
    assert report_of(folder)["within_tolerance"] is False


def test_ap_is_measured_on_search_and_val_images(shop: Path, nas_: Callable[..., Outcome]) -> None:
    outcome = nas_(
        *("quantise", shop / "net.safetensors", "--data", shop / "tiny.yaml", "-o", shop / "ap"),
        *("--tolerance", "1", "--calibration-images", "2", "--probe-images", "1", "--bootstrap", "50"),
        *("--search-images", "2", "--deconvs", "transposed", "--method", "percentile"),
    )
    assert outcome.code == 0, outcome.err
    report = report_of(shop / "ap")
    assert report["kept_in_float"] == []
    assert report["difference"]["int8"]["value"] == pytest.approx(
        report["val"]["int8"]["value"] - report["val"]["fp32"]["value"]
    )
    assert report["loss"] == pytest.approx(-report["difference"]["int8"]["value"])
    floats = {layer for layer, kind in report["executed"].items() if kind == "float"}
    assert floats == {f"head.deconv{i}.{branch}" for i in range(3) for branch in ("refined", "raw")}
    for text in ("head.deconv0", "AP, int8 - fp32", "ONNX Runtime runs in 8 bits", "0 of"):
        assert text in outcome.out


def test_fp16(shop: Path, nas_: Callable[..., Outcome]) -> None:
    outcome = nas_(
        *("quantise", shop / "net.safetensors", "--data", shop / "photos/annotations.json"),
        *("--images", shop / "photos/images", "-o", shop / "half", "--precision", "fp16"),
        *("--score", "heatmap", "--json"),
    )
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report == report_of(shop / "half", "fp16")
    assert 0 < report["loss"] < 0.005
    assert 0 < max(report["max_error"].values()) < 0.01
    assert report["data"] == "annotations.json, split 20:40:40"
    assert (shop / "half" / "fp16.onnx").is_file()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"precision": "int4"}, "--precision: unknown 'int4'"),
        ({"method": "minmx"}, "did you mean 'minmax'"),
        ({"by": "stage"}, "--by: unknown 'stage'"),
        ({"tolerance": -1}, "at least 0, not -1"),
        ({"search_images": 0}, "--search-images is at least 1, not 0"),
    ],
    ids=["precision", "method", "by", "tolerance", "images"],
)
def test_settings_are_checked(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        QuantiseSettings(**changes)


def test_what_is_refused(shop: Path) -> None:
    net, data = shop / "net.safetensors", str(shop / "tiny.yaml")
    with pytest.raises(InputError, match=r"no layer or block 'head\.deconv7'"):
        quantise_model(net, data, shop / "x", QuantiseSettings(score="heatmap", keep=("head.deconv7",)))
    with pytest.raises(InputError, match="needs the folder of its images"):
        quantise_model(net, str(shop / "photos/annotations.json"), shop / "y")
    with pytest.raises(InputError, match=r"--set data\.skeleton=coco17"):
        quantise_model(net, data, shop / "z", sets=["data.skeleton=crowdpose14"])
    RunDirectory.create(shop / "run", load_recipe(data))
    with pytest.raises(InputError, match=r"--set data\.skeleton=coco17"):
        quantise_model(net, str(shop / "run"), shop / "z", sets=["data.skeleton=crowdpose14"])
    file, photos = str(shop / "photos/annotations.json"), shop / "photos/images"
    with pytest.raises(InputError, match="--set changes a recipe's or a run's settings"):
        quantise_model(net, file, shop / "z", images=photos, sets=["evaluate.flip=false"])


def test_of_two_commands_in_a_folder_one_is_refused(shop: Path) -> None:
    with locked_folder(shop / "held", "busy"):
        with pytest.raises(RunError, match=r"another command is at work in '.*held'"):
            quantise_model(shop / "net.safetensors", str(shop / "tiny.yaml"), shop / "held", ERROR)
        assert list((shop / "held").iterdir()) == []


def test_models_are_timed_in_turn(shop: Path) -> None:
    model = onnx.load(shop / "int8" / "fp32.onnx")
    found = time_models({"a": model, "b": model}, (96, 96), 1, rounds=5)
    assert set(found) == {"a", "b"}
    for told in found.values():
        assert 0 < told["least_ms"] <= told["median_ms"] <= told["most_ms"]


@pytest.mark.parametrize("height", [128, 192])
def test_a_top_down_network(
    height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranges and error from people cut out of training pictures, AP from those in the val pictures.

    192x144 is 6x5 where the encoder ends: a deconv step's output is cut, so the file is for this size alone.
    """
    from search_spaces.deconv import DECONV_MBV3, deconv_arch
    from tests.nas import top_down

    arch = deconv_arch(
        *(DECONV_MBV3, height, (16, 8)),
        **{"stem": 8, "stages": (8, 8, 16, 16, 16, 16), "depths": 1, "last": 32, "deconv_kernels": (4, 2)},
    )
    network = randomise(build_network(arch, 17, torch.Generator().manual_seed(0)))
    save_network(tmp_path / "net.safetensors", network, {"skeleton": COCO17.to_json(), "sigma": 1.25})
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(top_down.RECIPE))
    data = str(tmp_path / "people.yaml")
    settings = QuantiseSettings(
        tolerance=1, calibration_images=2, probe_images=1, search_images=1, val_images=2, resamples=20
    )
    seen = []
    monkeypatch.setattr(
        quantising, "find_people", lambda *a, **o: seen.append(a[2].sigma) or find_people(*a, **o)
    )
    report = quantise_model(tmp_path / "net.safetensors", data, tmp_path / "int8", settings)
    for name in ("fp32", "int8"):
        assert OnnxNetwork(tmp_path / "int8" / f"{name}.onnx", 1).sigma == 1.25
    assert set(seen) == {1.25}  # heatmaps are read as Gaussians of the width that they were trained with
    assert report["val"]["fp32"]["value"] == 0.0
    assert "AP of the network in float is 0.0000 on the val images" in capsys.readouterr().err
    assert set(report["executed"].values()) == {"int8"}
    assert report["search"]["snr_int8_everywhere_db"].keys() == {"heatmaps"}
    assert report["difference"]["int8"]["value"] == pytest.approx(-report["loss"])
