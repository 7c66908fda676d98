"""``nas export``: files of every engine that equal torch, their certificates, what is refused, going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml

from latency_tables import get_runtime
from latency_tables.runtimes.base import file_digest
from nas.evaluation import EvalOptions, evaluate_model
from nas.exporting import FORMATS, ExportSettings, certificate, export_model
from nas.exporting.command import _Work
from nas.exporting.formats import Export, plan_exports
from nas.exporting.peaks import PeakErrors
from nas.exporting.sources import Sources
from nas.model_card import read_card, write_card
from nas.written import open_written, sidecar_of
from search_spaces import InputError, RunError, UnavailableError
from search_spaces.deconv import DECONV_MBV3, deconv_arch
from search_spaces.files import locked
from supernet.base import Subnet
from supernet.checkpoint import load_network, save_network
from supernet.onnx_peaks import PEAK_OUTPUTS
from supernet.pose.bootstrap import Comparison
from supernet.pose.decode import adjust, find_peaks
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.peaks import PickedPeaks, picked_by
from supernet.pose.skeleton import COCO17
from supernet.registry import build_network
from tests.conftest import single_thread
from tests.full_disk import room_for
from tests.nas import tiny, top_down
from tests.nas.conftest import Outcome
from tests.supernet.networks import images, randomise, relative_error

HERE = tuple(name for name, each in FORMATS.items() if get_runtime(each.runtime).unavailable() is None)
FEW = ExportSettings(
    calibration_images=2, search_images=1, limit=3, pictures=2, resamples=20, tolerance_ap=0.01
)
MOST = {"fp32": 2e-5, "fp16": 2e-2, "int8": 1.0}
"""Error of a file's outputs over their largest value, by precision; random weights are the worst case."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def everything(formats: tuple[str, ...]) -> Iterator[ExportSettings]:
    """Yield the commands that make every file of these formats, each reading network and pictures once."""
    alike: dict[tuple[str, ...], tuple[str, ...]] = {}
    for name in formats:
        alike[FORMATS[name].precisions] = (*alike.get(FORMATS[name].precisions, ()), name)
    for precisions, names in alike.items():
        yield replace(FEW, formats=names, precisions=precisions)
    yield replace(FEW, formats=("onnx", "openvino") if "openvino" in formats else ("onnx",), batch=None)


@pytest.fixture(scope="module")
def bottom_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like an emitted one, all its exports, and the recipe of its images."""
    folder = tmp_path_factory.mktemp("bottom-up")
    arch = tiny.recipe(folder).build_space(COCO17).smallest()
    network = randomise(build_network(arch, 17, torch.Generator().manual_seed(0)))
    (folder / "net").mkdir()
    save_network(folder / "net" / "model.safetensors", network, {"skeleton": COCO17.to_json()})
    card = {"id": arch.id, "notices": ["a note"], "exports": [{"file": "elsewhere/model-fp32.onnx"}]}
    write_card(folder / "net", card)
    for settings in everything(HERE):
        export_model(folder / "net", str(folder / "tiny.yaml"), None, settings)
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a top-down network with gates, whose picture has odd sizes on the way."""
    folder = tmp_path_factory.mktemp("top-down")
    arch = deconv_arch(
        *(DECONV_MBV3, 96, (8, 8)),
        **{"stem": 8, "stages": (8, 8, 8, 8, 8, 8), "depths": 1, "last": 16, "deconv_kernels": (4, 2)},
    )
    network = randomise(build_network(arch, 17, torch.Generator().manual_seed(0)))
    (folder / "net").mkdir()
    told = {"skeleton": COCO17.to_json(), "sigma": 1.25}
    save_network(folder / "net" / "model.safetensors", network, told)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(top_down.RECIPE))
    for settings in everything(HERE):
        export_model(folder / "net", str(folder / "tiny.yaml"), None, settings)
    return folder


@pytest.fixture(params=["bottom_up", "people"])
def shop(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def record_of(shop: Path) -> dict[str, dict[str, Any]]:
    told = json.loads((shop / "net" / "exports" / "exports.json").read_text())
    return {each["file"]: each for each in told["exports"]}


def network_of(shop: Path) -> Subnet:
    return load_network(shop / "net" / "model.safetensors")[0]


def copied(shop: Path, to: Path) -> Path:
    """Return a copy of a shop that may be changed."""
    shutil.copytree(shop, to / "shop")
    return to / "shop"


def test_every_file_is_there_and_equals_torch(shop: Path) -> None:
    """Read back and run on pictures that the certificate did not see."""
    network, record = network_of(shop), record_of(shop)
    wanted = {
        f"model-{precision}{FORMATS[name].suffixes[0]}"
        for name in HERE
        for precision in FORMATS[name].precisions
    }
    assert wanted <= set(record)
    height, width = network.arch.size
    pictures = images(2, height, width, seed=7)
    with torch.no_grad():
        expected = network(pictures)
    for file, entry in record.items():
        opened = open_written(shop / "net" / "exports" / file, 1)
        assert (opened.size, opened.paradigm, opened.sigma) == (
            (height, width),
            network.paradigm,
            network.sigma,
        )
        assert relative_error(opened(pictures), expected) < MOST[entry["precision"]], file
        assert set(entry["sha256"]) == {path.name for path in files_of(shop, entry)}


def files_of(shop: Path, entry: dict[str, Any]) -> list[Path]:
    format_ = FORMATS[entry["format"]]
    stem = entry["file"].removesuffix(format_.suffixes[0])
    found = [shop / "net" / "exports" / f"{stem}{suffix}" for suffix in format_.suffixes]
    found += [] if format_.carries else [sidecar_of(found[0])]
    assert all(path.is_file() for path in found)
    return found


def test_what_the_record_and_the_card_say(shop: Path) -> None:
    for file, entry in record_of(shop).items():
        assert entry["status"] == "certified", entry["why"]
        outputs, ap = entry["certificate"]["outputs"], entry["certificate"]["ap"]
        assert set(outputs["by_output"]) == set(network_of(shop).output_names)
        assert 0 < outputs["max_rel_val"] <= outputs["max_rel"] < MOST[entry["precision"]]
        assert (outputs["tolerance"] is None) == (entry["precision"] != "fp32")
        assert ap["difference"]["value"] == pytest.approx(ap["file"]["value"] - ap["torch"]["value"])
        assert ap["within"] and ap["torch"]["resamples"] <= 20
        assert ap["on"].startswith("3 images")
        assert ap["telling"] is False  # the network is untrained
        if entry["precision"] == "int8":
            assert isinstance(entry["kept_in_float"], list), file
    if (shop / "net" / "card.json").exists():
        card = read_card(shop / "net")
        listed = [each["file"] for each in card["exports"]]
        assert listed == ["elsewhere/model-fp32.onnx", *(f"exports/{file}" for file in record_of(shop))]
        assert card["notices"] == ["a note"]
        assert card["exports"][1]["ap"]["confidence"] == 0.95
        assert "exports/model-int8.onnx" in (shop / "net" / "README.md").read_text()


def test_a_free_batch_takes_any_number(shop: Path) -> None:
    network = network_of(shop)
    for file in (name for name in record_of(shop) if "-free" in name):
        opened = open_written(shop / "net" / "exports" / file, 1)
        assert opened.batch is None
        for count in (1, 5):
            pictures = images(count, *network.arch.size, seed=count)
            with torch.no_grad():
                assert relative_error(opened(pictures), network(pictures)) < MOST["fp32"]


def test_a_fixed_batch_is_filled_up(bottom_up: Path, tmp_path: Path) -> None:
    shop = copied(bottom_up, tmp_path)
    export_model(shop / "net", str(shop / "tiny.yaml"), None, replace(FEW, batch=3))
    opened = open_written(shop / "net" / "exports" / "model-fp32-batch3.onnx", 1)
    assert opened.batch == 3
    pictures = images(4, *opened.size)
    with torch.no_grad():
        assert relative_error(opened(pictures), network_of(shop)(pictures)) < MOST["fp32"]


def test_operators_are_chosen_for_the_runtime_and_the_processor(bottom_up: Path, tmp_path: Path) -> None:
    """A file with other operators is another file: it is made and certified anew, and says what it holds."""
    shop = copied(bottom_up, tmp_path)
    path = shop / "net" / "exports" / "model-fp32.onnx"

    def rewrites() -> dict[str, int]:
        told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        found: dict[str, int] = json.loads(told.get("rewrites", "{}"))
        return found

    by_default = rewrites()
    assert by_default["phases"] > 0 and by_default["interleave"] > 0 and not by_default.get("padding")
    for settings, wanted in ((replace(FEW, x86=True), {"padding"}), (replace(FEW, plain=True), set())):
        export_model(shop / "net", str(shop / "tiny.yaml"), None, settings)
        assert wanted <= {name for name, count in rewrites().items() if count}
        assert bool(rewrites()) == bool(wanted)
        assert record_of(shop)[path.name]["status"] == "certified"
    with pytest.raises(InputError, match="one of them"):
        replace(FEW, plain=True, x86=True)


def test_onnx_files_tell_what_they_are(people: Path) -> None:
    model = onnx.load(people / "net" / "exports" / "model-int8.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["skeleton"])["joints"] == list(COCO17.joints)
    assert json.loads(told["quantisation"])["precision"] == "int8"
    assert told["sigma"] == "1.25"


@pytest.mark.parametrize("suffix", [FORMATS[name].suffixes[0] for name in HERE])
def test_eval_and_predict_take_the_files(
    bottom_up: Path, tmp_path: Path, suffix: str, nas_: Callable[..., Outcome]
) -> None:
    """The AP is that of the certificate: pictures of any shape are fitted into the file's size."""
    exports, recipe = bottom_up / "net" / "exports", bottom_up / "tiny.yaml"
    told = nas_("eval", exports / f"model-fp32{suffix}", recipe, "--limit", 3, "--bootstrap", 20, "--json")
    assert told.code == 0, told.err
    found, entry = json.loads(told.out), record_of(bottom_up)[f"model-fp32{suffix}"]
    assert found["stats"]["AP"] == pytest.approx(entry["certificate"]["ap"]["file"]["value"])
    assert found["fitted_into"] == entry["certificate"]["ap"]["fitted_into"] == entry["size"]
    assert found["people_found"] > 0
    import cv2

    cv2.imwrite(str(tmp_path / "wide.png"), np.full((60, 200, 3), 90, np.uint8))
    seen = nas_("predict", exports / f"model-fp32{suffix}", tmp_path / "wide.png", "-o", tmp_path / "seen")
    assert seen.code == 0, seen.err
    if suffix != ".onnx":
        gpu = ("--device", "cuda", "-o", tmp_path / "gpu")
        again = nas_("predict", exports / f"model-fp32{suffix}", tmp_path / "wide.png", *gpu)
        assert again.code == 2 and "runs on the CPU here" in again.err


def test_a_file_without_the_one_beside_it_is_made_again(tmp_path: Path) -> None:
    work = _Work.__new__(_Work)
    work.folder, work.settings = tmp_path, FEW
    export = Export(FORMATS["litert"], "fp32")
    (tmp_path / export.file).write_bytes(b"TFL3")
    beside = sidecar_of(tmp_path / export.file)
    beside.write_text("{}")
    digests = {name: file_digest(tmp_path / name) for name in (export.file, beside.name)}
    entry = {"status": "certified", "made_from": "this", "sha256": digests}
    assert work._stands(entry, export, "this") and not work._stands(entry, export, "other")
    beside.write_text("{ }")
    assert not work._stands(entry, export, "this")
    beside.unlink()
    assert not work._stands(entry, export, "this")
    # What was measured and refused stays so; what could not even be measured may have come right since.
    assert work._stands({**entry, "status": "refused", "certificate": {}}, export, "this")
    assert not work._stands({**entry, "status": "refused"}, export, "this")


def test_what_is_certified_is_not_made_again(
    bottom_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = copied(bottom_up, tmp_path)
    exports, made = shop / "net" / "exports", []
    write = Sources.write
    monkeypatch.setattr(Sources, "write", lambda *a: made.append(a[1].file) or write(*a))
    asked = replace(FEW, precisions=("fp32", "fp16"))
    before = record_of(shop)
    export_model(shop / "net", str(shop / "tiny.yaml"), None, asked)
    assert not made
    assert "model-fp16.onnx: certified already; --again makes it anew" in capsys.readouterr().err
    (exports / "model-fp16.onnx").write_bytes(b"damaged since")
    export_model(shop / "net", str(shop / "tiny.yaml"), None, asked)
    assert made == ["model-fp16.onnx"]
    export_model(shop / "net", str(shop / "tiny.yaml"), None, replace(asked, limit=2))
    assert made[1:] == ["model-fp32.onnx", "model-fp16.onnx"]  # on other images
    after = record_of(shop)
    assert after.keys() == before.keys()
    assert after["model-fp32.onnx"]["certificate"]["ap"]["on"].startswith("2 images")
    card = json.loads((shop / "net" / "card.json").read_text())
    assert len(card["exports"]) == 1 + len(after)  # each once


def test_a_file_that_misses_a_tolerance_is_not_left(
    bottom_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nas_: Callable[..., Outcome]
) -> None:
    """Not even the one of an earlier command; the others are made, and the exit code tells."""
    shop = copied(bottom_up, tmp_path)
    exports = shop / "net" / "exports"
    common = ("--data", shop / "tiny.yaml", "--limit", 3, "--bootstrap", 20)
    told = nas_(
        "export",
        shop / "net",
        *common,
        "--precision",
        "fp32",
        "--precision",
        "fp16",
        "--tolerance-outputs",
        0,
    )
    assert told.code == 2
    assert "error: 1 of 2 files refused, the other one is there" in told.err
    assert "more than the tolerance of 0" in told.err
    assert not (exports / "model-fp32.onnx").exists()
    assert (exports / "model-fp16.onnx").is_file()
    entry = record_of(shop)["model-fp32.onnx"]
    assert entry["status"] == "refused" and entry["certificate"]["outputs"]["max_rel"] > 0
    card = json.loads((shop / "net" / "card.json").read_text())
    assert "exports/model-fp32.onnx" not in [each["file"] for each in card["exports"]]

    lost = Comparison(-0.3, -0.4, -0.2, 0.95, 20, 0.0)
    monkeypatch.setattr(certificate, "compare_ap", lambda *arguments: lost)
    told = nas_("export", shop / "net", *common, "--precision", "fp16", "--again", "--json")
    assert told.code == 2
    assert json.loads(told.out)["refused"] == ["model-fp16.onnx"]
    assert "loses 0.3000 AP on 3 images" in told.err
    assert not (exports / "model-fp16.onnx").exists()


def test_outputs_that_are_no_numbers_are_refused(
    bottom_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(out * torch.nan for out in network_of(bottom_up)(x))

    monkeypatch.setattr("nas.exporting.command.open_written", lambda path: Broken())
    report = export_model(bottom_up / "net", str(bottom_up / "tiny.yaml"), tmp_path / "x", FEW)
    (entry,) = report["exports"]
    assert entry["why"] == "its outputs are no numbers, or of other shapes than torch's"
    assert not (tmp_path / "x" / "model-fp32.onnx").exists()


def test_a_full_disk_refuses_no_file_and_takes_none_away(
    bottom_up: Path, tmp_path: Path, nas_: Callable[..., Outcome]
) -> None:
    """It ends the command; a file that was certified stays, and the same command goes on later."""
    shop = copied(bottom_up, tmp_path)
    before = {path.name: path.read_bytes() for path in (shop / "net" / "exports").glob("model-fp16*")}
    words = ("export", shop / "net", "--data", shop / "tiny.yaml", "--limit", 3, "--bootstrap", 20)
    with room_for(20_000):
        told = nas_(*words, "--precision", "fp16", "--again")
    assert told.code == 2
    assert "File too large" in told.err.splitlines()[-1], told.err
    after = {path.name: path.read_bytes() for path in (shop / "net" / "exports").glob("model-fp16*")}
    assert after == before and record_of(shop)["model-fp16.onnx"]["status"] == "certified"
    assert not (shop / "net" / "exports" / ".making").exists()
    assert nas_(*words, "--precision", "fp16", "--again").code == 0


def test_a_network_without_numbers_is_refused_before_anything_is_made(
    bottom_up: Path, tmp_path: Path
) -> None:
    network = network_of(bottom_up)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e30)
    save_network(tmp_path / "huge.safetensors", network, {"skeleton": COCO17.to_json()})
    with pytest.raises(
        InputError, match=r"the network itself gives no numbers in torch \('.*' of the picture"
    ):
        export_model(tmp_path / "huge.safetensors", str(bottom_up / "tiny.yaml"), tmp_path / "x", FEW)
    assert {path.name for path in (tmp_path / "x").iterdir()} <= {".lock"}


def test_other_weights_under_a_card_are_not_exported_under_its_name(bottom_up: Path, tmp_path: Path) -> None:
    shop = copied(bottom_up, tmp_path)
    weights = shop / "net" / "model.safetensors"
    write_card(shop / "net", {**read_card(shop / "net"), "sha256": {weights.name: file_digest(weights)}})
    save_network(weights, randomise(network_of(shop), seed=1), {"skeleton": COCO17.to_json()})
    with pytest.raises(InputError, match=r"model\.safetensors' is not the file that was certified"):
        export_model(shop / "net", str(shop / "tiny.yaml"), None, FEW)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stopped_in_the_middle(
    bottom_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any
) -> None:
    """Nothing that was not certified lies there; what was is not made again, what a kill left goes."""
    whole = Sources.write

    def write(self: Sources, export: Any, folder: Path) -> Path:
        path = whole(self, export, folder)
        if export.precision == "fp16":
            raise stopped
        return path

    data = str(bottom_up / "tiny.yaml")
    asked = replace(FEW, precisions=("fp32", "fp16"))
    with monkeypatch.context() as patched:
        patched.setattr(Sources, "write", write)
        with pytest.raises((KeyboardInterrupt, OSError)):
            export_model(bottom_up / "net", data, tmp_path / "x", asked)
    names = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert names == [".lock", "exports.json", "model-fp32.onnx"]
    stamp = (tmp_path / "x" / "model-fp32.onnx").stat().st_mtime_ns
    (tmp_path / "x" / ".making").mkdir()
    (tmp_path / "x" / ".making" / "model-fp16.onnx").write_bytes(b"half of it")
    report = export_model(bottom_up / "net", data, tmp_path / "x", asked)
    assert not report["refused"] and not (tmp_path / "x" / ".making").exists()
    assert (tmp_path / "x" / "model-fp32.onnx").stat().st_mtime_ns == stamp
    assert (tmp_path / "x" / "model-fp16.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"formats": ("tflite",)}, "--format: unknown 'tflite'"),
        ({"precisions": ("int4",)}, "--precision: unknown 'int4'"),
        ({"formats": ("ncnn",), "batch": None}, "--format ncnn takes one picture at a time"),
        ({"batch": 0}, "--batch is a number of pictures"),
        ({"formats": ()}, "nothing is asked for"),
    ],
)
def test_what_cannot_be_had_is_refused_before_work_begins(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan_exports(**{"formats": ("onnx",), "precisions": ("fp32",), **arguments})


def test_a_runtime_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_runtime("ncnn")), "unavailable", lambda self: "it is away")
    with pytest.raises(UnavailableError, match=r"--format ncnn: .* it is away; install it with"):
        plan_exports(("onnx", "ncnn"), ("fp32",))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tolerance_ap": -1}, "--tolerance-ap"),
        ({"tolerance_ap": float("nan")}, "--tolerance-ap"),
        ({"tolerance_ap": float("inf")}, "--tolerance-ap"),
        ({"tolerance_outputs": float("inf")}, "--tolerance-outputs"),
        ({"tolerance_outputs": -1}, "--tolerance-outputs"),
        ({"limit": 0}, "--limit is at least 1"),
        ({"method": "mean"}, "--method: unknown 'mean'"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ExportSettings(**changes)


def test_what_is_refused_of_folders_and_files(bottom_up: Path, tmp_path: Path) -> None:
    shop = copied(bottom_up, tmp_path)
    net, exports, data = shop / "net", shop / "net" / "exports", str(shop / "tiny.yaml")
    with pytest.raises(InputError, match="is an exported file; export the folder"):
        export_model(exports / "model-fp32.onnx", data, None, FEW)
    with pytest.raises(InputError, match=r"--keep: the network has no layer or block 'head\.deconv7'"):
        export_model(net, data, None, replace(FEW, keep=("head.deconv7",)))
    with (
        locked(exports / ".lock", "busy"),
        pytest.raises(RunError, match="another command is at work in"),
    ):
        export_model(net, data, None, FEW)
    network = randomise(network_of(shop), seed=1)
    save_network(tmp_path / "other.safetensors", network, {"skeleton": COCO17.to_json()})
    with pytest.raises(RunError, match="holds exports of other weights"):
        export_model(tmp_path / "other.safetensors", data, exports, FEW)
    told = json.loads((exports / "exports.json").read_text())
    without = [{k: v for k, v in each.items() if k != "certificate"} for each in told["exports"]]
    for damaged in ([], {**told, "exports": without}, {**told, "exports": [{"file": "x"}]}):
        (exports / "exports.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"exports\.json' is no record of exports; delete it"):
            export_model(net, data, None, FEW)
    (net / "card.json").write_text("{")
    with pytest.raises(InputError, match=r"card\.json' is not valid JSON"):
        export_model(net, data, None, FEW)


def test_a_size_of_ones_own(bottom_up: Path, people: Path, tmp_path: Path) -> None:
    data = str(bottom_up / "tiny.yaml")
    export_model(bottom_up / "net", data, tmp_path / "x", replace(FEW, size=(64, 128)))
    assert open_written(tmp_path / "x" / "model-fp32.onnx", 1).size == (64, 128)
    with pytest.raises(InputError, match="a top-down network sees people at its own size, 96x72"):
        export_model(people / "net", str(people / "tiny.yaml"), tmp_path / "y", replace(FEW, size=(64, 128)))


@pytest.mark.skipif("openvino" not in HERE, reason="OpenVINO is not installed")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, r"has no 'model-fp32\.xml\.json' beside it"),
        ({"kind": "shopping list"}, "does not tell of a network"),
        ({"size": [64]}, r"'size' cannot be \[64\]"),
        ({"size": [64, True]}, "'size' cannot be"),
        ({"joints": 16}, "returns .* maps, not those of a bottom-up network of 16 joints"),
        ({"sigma": "wide"}, "'sigma' is a number of cells"),
        ({"paradigm": "sideways"}, "'paradigm' cannot be"),
        ({"batch": 4.5}, "'batch' cannot be"),
        ({"size": [1 << 19, 1 << 19]}, r"model-fp32\.xml\.json': 1 images of 524288x524288 are more than"),
        ({"sha256": None}, r"'sha256' cannot be None"),
        ({"sha256": {"model-fp32.bin": "0"}}, r"'sha256' cannot be {'model-fp32\.bin': '0'}"),
        ({"sha256": {"model-fp32.xml": "0"}}, r"model-fp32\.xml' is not the file that .* \('sha256'\)"),
        ({"sha256": {"../../gone.bin": "0", "model-fp32.xml": "0"}}, r"has no 'gone\.bin' beside it"),
    ],
)
def test_a_damaged_file_beside_is_named(
    bottom_up: Path, tmp_path: Path, change: dict[str, Any] | None, told: str
) -> None:
    path = tmp_path / "model-fp32.xml"
    for suffix in (".xml", ".bin", ".xml.json"):
        shutil.copy(bottom_up / "net" / "exports" / f"model-fp32{suffix}", tmp_path)
    beside = sidecar_of(path)
    if change is None:
        beside.unlink()
    else:
        beside.write_text(json.dumps({**json.loads(beside.read_text()), **change}))
    with pytest.raises(InputError, match=told):
        open_written(path, 1)


def test_a_network_for_another_size_is_refused(bottom_up: Path) -> None:
    for name in HERE:
        opened = open_written(bottom_up / "net" / "exports" / f"model-fp32{FORMATS[name].suffixes[0]}", 1)
        with pytest.raises(InputError, match="takes images of"):
            opened(images(1, 32, 32))


WITH_PEAKS = tuple(name for name in HERE if FORMATS[name].peaks)


def test_files_that_pick_peaks(shop: Path, tmp_path: Path) -> None:
    """Made of both kinds of networks, certified, read back; people are found with them."""
    shop = copied(shop, tmp_path)
    settings = replace(FEW, formats=WITH_PEAKS, peaks=True, tolerance_ap=1.0)
    report = export_model(shop / "net", str(shop / "tiny.yaml"), None, settings)
    assert [each["file"] for each in report["exports"]] == [
        f"model-fp32-peaks{FORMATS[name].suffixes[0]}" for name in WITH_PEAKS
    ]
    assert report["tensorrt"] is None  # which would be told to read peaks
    network = network_of(shop)
    names = PEAK_OUTPUTS[network.paradigm]
    for entry in report["exports"]:
        assert (entry["status"], entry["peaks"]) == ("certified", True)
        outputs = entry["certificate"]["outputs"]
        assert tuple(outputs["by_output"]) == names
        assert outputs["peaks"]["equal"] == outputs["peaks"]["torch"] == outputs["peaks"]["file"] > 0
        assert "not filled in" in entry["certificate"]["ap"]["peaks"]
        path = shop / "net" / "exports" / entry["file"]
        opened = open_written(path)
        picked = picked_by(opened)
        assert picked is not None
        assert opened.paradigm == network.paradigm
        assert len(opened(images(1, *opened.size))) == len(names)
        found = evaluate_model(path, str(shop / "tiny.yaml"), EvalOptions(limit=2, resamples=0))
        assert "not filled in" in found["peaks"]
        with pytest.raises(InputError, match="the flip test needs maps"):
            evaluate_model(path, str(shop / "tiny.yaml"), EvalOptions(limit=2, resamples=0, flip=True))
    record = record_of(shop)
    assert record["model-fp32-peaks.onnx"]["peaks"]
    assert not record["model-fp32.onnx"]["peaks"]  # the file of maps stays


def test_peaks_that_lose_too_much_are_not_kept(
    bottom_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> Comparison:
        return Comparison(-0.5, -0.6, -0.4, 0.95, 20, 0.0)

    monkeypatch.setattr(certificate, "compare_ap", lost)
    shop = copied(bottom_up, tmp_path)
    report = export_model(shop / "net", str(shop / "tiny.yaml"), None, replace(FEW, peaks=True))
    assert report["refused"] == ["model-fp32-peaks.onnx"]
    assert "loses 0.5000 AP" in report["exports"][0]["why"]
    assert "allow that by --tolerance-ap, or leave --peaks out" in report["exports"][0]["why"]
    assert not (shop / "net" / "exports" / "model-fp32-peaks.onnx").exists()
    assert (shop / "net" / "exports" / "model-fp32.onnx").exists()


@pytest.mark.parametrize("name", ["ncnn", "litert"])
def test_peaks_of_other_formats_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"--format {name} has no networks that pick peaks"):
        plan_exports(("onnx", name), ("fp32",), peaks=True)


def test_errors_of_peaks_are_what_explains_them() -> None:
    """A peak moved, left out or of another height is an error of that height; a tie is none."""
    half = torch.zeros(1, 1, 12, 12)
    half[0, 0, 3, 3], half[0, 0, 8, 8], half[0, 0, 8, 9] = 1.0, 0.8, 0.4
    maps = torch.nn.functional.avg_pool2d(half, 2).repeat(1, 2, 1, 1), half
    det, tags = predict_maps(lambda _: maps, torch.zeros(1, 3, 24, 24), None, EvalConfig(64))  # type: ignore[arg-type]
    values, places, own = find_peaks(det[0].numpy(), tags[0].numpy())
    there = people_places(det[0].numpy(), places)
    picked = PickedPeaks((12, 12), 30, 5, 0.1)

    def errors(values: Any, places: Any) -> dict[str, float]:
        given = [torch.from_numpy(np.array(each)[None]) for each in (values, places, own[..., 0])]
        return {name: error for name, (error, _) in PeakErrors(picked).of(maps, given).items()}

    assert max(errors(values, there).values()) == 0
    higher = values.copy()
    higher[0, 0] += 0.25
    assert errors(higher, there)["peak_values"] == pytest.approx(0.25)
    gone = values.copy()
    gone[0, 1] = 0
    heat = float(det[0, 0, 8, 8])
    assert errors(gone, there)["peak_places"] == pytest.approx(
        min(heat - 0.1, heat - float(det[0, 0, 8, 9])) / 2
    )
    moved = there.copy()
    moved[0, 0] = (0.25, 11.25)
    assert errors(values, moved)["peak_places"] > 0.05
    other_step = there.copy()
    other_step[0, 1, 0] -= 0.5
    assert errors(values, other_step)["peak_places"] > 0.05
    broken = values.copy()
    broken[0, 0] = np.nan
    assert errors(broken, there)["peak_values"] == float("inf")


def people_places(det: Any, places: Any) -> Any:
    """Return where peaks lie within their pixels, (J, K, 2)."""
    joints, most, _ = places.shape
    rows = np.zeros((joints * most, joints, 4), np.float32)
    flat = rows.reshape(joints, most, joints, 4)
    for joint in range(joints):
        flat[joint, :, joint, :2], flat[joint, :, joint, 2] = places[joint], 1.0
    moved = adjust(rows, det).reshape(joints, most, joints, 4)
    return np.stack([moved[joint, :, joint, :2] for joint in range(joints)])


@pytest.mark.parametrize(
    "told", [None, [], {"maps": [8]}, {"maps": [8, 8], "most": 30, "kernel": 4, "threshold": 0.1}, 7]
)
def test_damaged_words_on_peaks_are_refused(told: object) -> None:
    with pytest.raises(InputError, match="a file: 'peaks' cannot be"):
        PickedPeaks.from_json(told, "a file")
    sound = PickedPeaks((8, 6), 30, 5, 0.1)
    assert PickedPeaks.from_json(sound.to_json(), "a file") == sound
