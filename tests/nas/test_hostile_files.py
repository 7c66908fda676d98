"""Files that are meant to do harm, through the command itself: one line, exit 2, and nothing else happens."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from latency_tables import local_target
from latency_tables.links.description import read_linked_target
from nas.cli import main
from nas.console import printable
from nas.plot_style import STYLE, save_figure
from nas.pruning import removable
from nas.recipe import load_recipe
from nas.run import RunDirectory
from nas.search.shared import open_shared
from nas.search.store import Journal
from nas.verifying import _open
from nas.written import SIDECAR
from search_spaces import get_arch, named_archs
from search_spaces.errors import InputError, LitePoseNasError, RunError
from search_spaces.files import locked, read_json
from supernet.checkpoint import save_network
from supernet.pose.boxes import read_boxes
from supernet.pose.dataset import PoseDataset, read_image
from supernet.pose.skeleton import Skeleton, get_skeleton
from supernet.registry import build_network
from supernet.state import load_state, write_tensors
from tests.nas import tiny

_PATIENCE_S = 60


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Turn a wait without an end into a failure."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits, or computes, without an end")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def refusal(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line that the command ends with, after checking that it is one and can be shown."""
    with in_time(), pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    told = capfd.readouterr().err
    assert ended.value.code == 2, told
    assert told.startswith("error: ") and told.count("\n") == 1
    assert told[:-1].isprintable() and len(told) < 5000
    return told


def bomb(merge: bool = False) -> str:
    """Return YAML of a few lines that stands for hundreds of millions of values."""
    lines = ["a: &a {x: 1}" if merge else "a: &a [x, x, x, x, x, x, x, x, x]"]
    for former, name in zip("abcdefgh", "bcdefghi", strict=True):
        nine = ", ".join([f"*{former}"] * 9)
        lines.append(f"{name}: &{name} {{<<: [{nine}]}}" if merge else f"{name}: &{name} [{nine}]")
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_in_recipes_cannot_grow_without_bounds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], merge: bool
) -> None:
    recipe = tmp_path / "bomb.yaml"
    recipe.write_text(bomb(merge))
    assert "aliases make" in refusal(capfd, "train", recipe, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


READERS: list[tuple[Any, ...]] = [
    ("cost", "{file}"),
    ("train", "{file}", "-o", "{folder}/run"),
    ("data", "check", "{file}"),
    ("eval", "{file}", "synthetic"),
    ("profile", "{file}", "-o", "{folder}/tables"),
    ("predict", "{file}", "{file}", "-o", "{folder}/out"),
    ("import-checkpoint", "{file}"),
    ("tables", "check", "{file}"),
    ("time", "{file}"),
    ("load", "{file}"),
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: " ".join(reader[:2]).replace("{file}", ""))
def test_pipes_devices_and_loops_are_refused_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], reader: tuple[str, ...]
) -> None:
    """A pipe nobody writes into would be waited for for ever, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("json", "yaml", "pth"):
        (tmp_path / f"pipe.{name}").symlink_to("pipe")
        (tmp_path / f"zero.{name}").symlink_to("/dev/zero")
        (tmp_path / f"loop.{name}").symlink_to(f"loop.{name}")
        for what in ("pipe", "zero", "loop"):
            words = [each.format(file=tmp_path / f"{what}.{name}", folder=tmp_path) for each in reader]
            refusal(capfd, *words)


@pytest.mark.parametrize("key", [r"\e[31mname", r"\e]0;title\a", r"\x9b2J", r"\u202ename", "na\\nme", "\\0"])
def test_names_in_files_cannot_steer_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'"{key}": 1\n')
    refusal(capfd, "train", recipe, "-o", tmp_path / "run")


def test_what_is_printable_stays_as_it_is() -> None:
    text = "Größe 30 °C, 人\tπ\n"
    assert printable(text) == text
    assert printable("a\x1b[2Jb\x9b\udcff\u202e\x00") == "a\\x1b[2Jb\\x9b\\udcff\\u202e\\x00"


def test_errors_do_not_repeat_endless_values(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arch = tmp_path / "arch.json"
    arch.write_text('{"family": "%s"}' % ("x" * 3_000_000))
    assert "arch.json" in refusal(capfd, "cost", arch)


# -- checkpoints ---------------------------------------------------------------------------------------------


class Harm:
    """What unpickling would execute."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_no_pickle_is_executed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mark, file = tmp_path / "executed", tmp_path / "harm.pth"
    torch.save({"state_dict": Harm(mark)}, file)
    assert "never code" in refusal(capfd, "import-checkpoint", file)
    file.write_bytes(pickle.dumps({"state_dict": Harm(mark)}))
    assert "never code" in refusal(capfd, "import-checkpoint", file)
    assert not mark.exists()


def test_checkpoints_hold_what_they_claim(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tensors that repeat one value take no room in the file, and any amount of it in memory."""
    file, packed = tmp_path / "large.pth", tmp_path / "packed.pth"
    torch.save({"first.0.0.weight": torch.zeros(1, 1, 1, 1).expand(1 << 20, 1 << 20, 3, 3)}, file)
    assert "too few values" in refusal(capfd, "import-checkpoint", file)
    torch.save({"first.0.0.weight": torch.zeros(1 << 20)}, file)
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for member in whole.infolist():
            small.writestr(member.filename, whole.read(member))
    assert "is compressed" in refusal(capfd, "import-checkpoint", packed)


@pytest.mark.parametrize("joints", [10**30, 10**9, True, -1])
def test_networks_of_absurd_joints_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], joints: int
) -> None:
    file = tmp_path / "network.safetensors"
    arch = named_archs()["litepose-xs"].to_json()
    write_tensors(file, {}, {"kind": "network", "arch": arch, "joints": joints, "metadata": {}})
    assert "'joints'" in refusal(capfd, "load", file)


def test_headers_nested_without_end_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    header = json.dumps({"__metadata__": {"litepose_nas": "[" * 100_000}}).encode()
    file = tmp_path / "deep.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "nested too deeply" in refusal(capfd, "load", file)


@pytest.mark.parametrize("told", [{"step": "x"}, {}, {"step": 1, "identity": 3}, {"step": 1, "best": []}])
def test_training_states_of_unsound_headers_are_refused(tmp_path: Path, told: dict[str, Any]) -> None:
    write_tensors(tmp_path / "last.safetensors", {}, {"kind": "training", **told})
    with pytest.raises(RunError, match=r"no readable checkpoint: .*header is unsound"):
        load_state(tmp_path, {})


# -- models and pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_models_cannot_read_other_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], nested: bool
) -> None:
    """A tensor of an ONNX file may name any file of the disk as the place of its values."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(bytes(16))
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    helper = onnx.helper
    output = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4])
    graph = helper.make_graph([], "part", [], [output], [tensor])
    if nested:
        node = helper.make_node("If", ["c"], ["w"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "whole", [], [output])
    folder = tmp_path / "models"
    folder.mkdir()
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    assert "lie in another file" in refusal(capfd, "time", folder / "model.onnx")


def test_pictures_cannot_claim_any_size(tmp_path: Path) -> None:
    """A small PNG that says 20,000 x 20,000 pixels, in a process of its own: OpenCV asks once."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    (tmp_path / "large.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(20_001 * 20_000)))
        + chunk(b"IEND", b"")
    )
    program = (
        "import resource, sys; from supernet.pose.dataset import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, end=' ')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "large.png"], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["InputError", "True"]


def test_programs_of_torch_are_never_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A ``.pt2`` is opened by pickle: neither one that is named, nor one that a card lists."""
    arch = named_archs()["litepose-xs"]
    skeleton = get_skeleton("crowdpose14")
    network = build_network(arch, len(skeleton), torch.Generator().manual_seed(0))
    save_network(tmp_path / "model.safetensors", network, {"skeleton": skeleton.to_json()})
    listed = {"file": "net.pt2", "precision": "fp32", "runtime": "torch", "within_tolerance": True}
    card = {"id": arch.id, "arch": arch.to_json(), "skeleton": skeleton.to_json(), "exports": [listed]}
    (tmp_path / "card.json").write_text(json.dumps(card))
    mark = tmp_path / "executed"
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("serialized_state_dict.json", pickle.dumps(Harm(mark)))
    told = refusal(capfd, "verify", tmp_path / "net.pt2", "this-machine", "--runtime", "torch")
    assert "can hold code" in told
    found = _open(tmp_path, local_target("torch", 1))
    assert found.file is None, "it is written from the weights"
    assert not mark.exists()


def sidecar(**changes: Any) -> dict[str, Any]:
    """Return what stands beside a file of an inference engine, changed."""
    told = {"kind": SIDECAR, "size": [64, 64], "batch": 1, "joints": 17, "paradigm": "bottom-up"}
    return {**told, "outputs": ["a", "b"], "runs_as": "fp32", "peaks": None, **changes}


PEAKS = {"maps": [16, 16], "most": 30, "kernel": 5, "threshold": 0.1}


@pytest.mark.parametrize(
    "change",
    [
        *({"paradigm": odd} for odd in ([], {}, None, "x\x1b[2J")),
        *({"size": odd} for odd in ([1 << 19, 1 << 19], [64], "64", [64, 10**400], [{}, []])),
        *({"batch": odd} for odd in (1 << 18, [], 0, True, 10**400)),
        *({"peaks": {**PEAKS, name: odd}} for name in PEAKS for odd in (10**400, -1, None, [], "x", {})),
        *({"peaks": odd} for odd in ([], "x", 3)),
    ],
    ids=lambda change: " ".join(map(str, change)),
)
def test_what_stands_beside_a_network_is_checked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    """Before memory is taken for it, and whatever it is: also what no set can be asked for."""
    (tmp_path / "net.tflite").write_bytes(b"TFL3")
    (tmp_path / "net.tflite.json").write_text(json.dumps(sidecar(**change)))
    assert "net.tflite.json" in refusal(capfd, "load", tmp_path / "net.tflite")


def test_onnx_files_of_no_size_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    for sides in (("height", "width"), (1 << 15, 1 << 15)):
        shape = [1, 3, *sides]
        ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("image", "maps")]
        graph = helper.make_graph([helper.make_node("Relu", ["image"], ["maps"])], "g", ends[:1], ends[1:])
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.save(model, tmp_path / "model.onnx")
        told = refusal(capfd, "load", tmp_path / "model.onnx")
        assert "one size" in told or "pixels" in told


# -- names that lead elsewhere -------------------------------------------------------------------------------


def test_links_in_a_run_are_not_written_through(tmp_path: Path) -> None:
    """Runs come from others: their locks and journals would be emptied, or written on, at the link's end."""
    run = RunDirectory(tmp_path / "run", load_recipe(tiny.write(tmp_path)))
    run.folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious, without a line's end")
    for name in (".lock", "evaluations.jsonl", "study.journal"):
        (run.folder / name).symlink_to(victim)
    with pytest.raises(RunError, match=r"'.*lock' is a link"), run.locked():
        pass
    with pytest.raises(RunError, match=r"'.*evaluations.jsonl' is a link"), open_shared(run.evaluations):
        pass
    with pytest.raises(RunError, match=r"'.*study.journal' is a link"):
        Journal(run.folder / "study.journal")
    assert victim.read_text() == "precious, without a line's end"
    os.mkfifo(run.folder / "pipe")
    with in_time(), pytest.raises(RunError, match="cannot write"), locked(run.folder / "pipe", "busy"):
        pass


def test_folders_behind_links_are_not_cleared(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "pictures").mkdir(parents=True)
    (home / "pictures" / "cat.png").touch()
    (home / ".cache-abcdefgh").touch()
    run = RunDirectory(tmp_path / "run", load_recipe(tiny.write(tmp_path)))
    run.folder.mkdir()
    (run.folder / "search").symlink_to(home)
    (run.folder / "emitted").symlink_to(home)
    with run.locked():
        pass
    assert removable(run) == []
    assert (home / "pictures" / "cat.png").exists() and (home / ".cache-abcdefgh").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "{folder}/../a.png"])
def test_annotations_cannot_name_pictures_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    picture = np.zeros((8, 8, 3), np.uint8)
    for file in ("images/a.png", "secret.png"):
        cv2.imwrite(str(tmp_path / file), picture)
    joints = list(get_skeleton("coco17").joints)
    person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 9, "iscrowd": 0}
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a/../a.png", "height": 8, "width": 8}],
        "annotations": [{**person, "num_keypoints": 17, "keypoints": [1, 1, 2] * 17}],
        "categories": [{"id": 1, "name": "person", "keypoints": joints, "skeleton": []}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    assert len(PoseDataset(file, images)) == 1
    content["images"][0]["file_name"] = str(images / "a.png")
    assert PoseDataset.from_dict(content, images).load(0).image.shape == (8, 8, 3)
    content["images"][0]["file_name"] = name.format(folder=images)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"image 1 has the 'file_name' .* leads out of the image folder"):
        PoseDataset(file, images)
    with in_time(), pytest.raises(SystemExit) as ended:
        main(["data", "check", str(file), "--images", str(images)])
    assert ended.value.code == 1
    assert "leads out of the image folder" in capfd.readouterr().out


def test_pictures_that_are_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with in_time(), pytest.raises(InputError, match="is a pipe or a device"):
        read_image(tmp_path / "pipe.png")


def test_names_are_no_formulas_in_pictures(tmp_path: Path) -> None:
    figure = Figure()
    with rc_context(STYLE):
        figure.suptitle("a $\\frac{$ b")
        save_figure(figure, [tmp_path / "a.png", tmp_path / "a.svg"])
    assert "\\frac{" in (tmp_path / "a.svg").read_text()


# -- sound files, changed at random --------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    -0.0,
    1e308,
    "",
    "\x1b[2J",
    "../x",
    "\u202e",
    [],
    {},
    [[]],
    "NaN",
]


def changed(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one of its parts replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    at, holder = value, None
    while isinstance(at, dict | list) and at and (holder is None or rng.random() < 0.75):
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        holder, at = (at, key), at[key]
    if holder is None:
        return rng.choice(ODD)
    (inside, key), deed = holder, rng.randrange(4)
    if deed == 0:
        del inside[key]
    elif deed == 1 and isinstance(inside, dict):
        inside[str(key) + rng.choice(["", "\x1b[1m", "x"])] = inside.pop(key)
    else:
        inside[key] = copy.deepcopy(rng.choice(ODD))
    return value


RECIPE = {
    "name": "fuzzed",
    "space": {"kind": "native"},
    "data": {
        "train": {"synthetic": {"images": 4, "seed": 0, "size": 64}},
        "val": {"synthetic": {"images": 4, "seed": 1, "size": 64}},
    },
    "train": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3},
    "search": {"evaluations": 4, "seed": 0},
}
TARGET = {"device": "d", "processor": "p", "runtime": "onnxruntime", "precision": "fp32", "threads": 1}
SOUND: dict[str, tuple[Any, Any]] = {
    "arch.json": (lambda: named_archs()["litepose-xs"].to_json(), lambda file: get_arch(str(file))),
    "recipe.yaml": (lambda: RECIPE, load_recipe),
    "target.yaml": (lambda: {**TARGET, "link": {"ssh": "pi@kitchen", "port": 22}}, read_linked_target),
    "skeleton.json": (
        lambda: {
            "name": "s",
            "joints": ["a", "b"],
            "flip_pairs": [[0, 1]],
            "sigmas": [0.1, 0.1],
            "limbs": [[0, 1]],
        },
        lambda file: Skeleton.from_json(read_json(file), str(file)),
    ),
    "boxes.json": (
        lambda: [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        lambda file: read_boxes(file, [7]),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_changed_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """No other exception than the toolkit's own, whatever one to three changes make of a sound file."""
    made, read = SOUND[name]
    rng, file = random.Random(name), tmp_path / name
    for case in range(int(os.environ.get("HOSTILE_CASES", "120"))):
        value = made()
        for _ in range(rng.randint(1, 3)):
            value = changed(value, rng)
        text = json.dumps(value)
        if case % 3 == 0:  # bytes, too
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["", "\0", "'", "{", "&a ", "*a ", "\x85", "9" * 5000])
                + text[at + 1 :]
            )
        file.write_text(text, encoding="utf-8")
        with in_time(), contextlib.suppress(LitePoseNasError):
            read(file)


def test_sigmas_too_large_for_a_float_are_refused() -> None:
    told = {"name": "s", "joints": ["a", "b"], "sigmas": [0.1, 10**400]}
    with pytest.raises(InputError, match="'sigmas' must be a list of numbers"):
        Skeleton.from_json(told, "s.json")
