"""``nas.load``, ``nas.predictor`` and ``nas load``: an emitted network comes back as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import nas
from search_spaces import Arch, InputError, space_from_config
from supernet.base import Subnet
from supernet.checkpoint import export_research, save_network
from supernet.export import export_onnx
from supernet.pose.predictor import PersonPredictor, PosePredictor
from supernet.pose.skeleton import get_skeleton
from supernet.registry import build_network
from tests.nas import top_down
from tests.nas.conftest import Outcome
from tests.supernet.tiny import space

TOLD = {"skeleton": get_skeleton("coco17").to_json(), "sigma": 1.5}


def bottom_up() -> Arch:
    return space().smallest()


def one_person() -> Arch:
    return space_from_config(top_down.SPACE, joints=17).smallest()


def emitted(folder: Path, arch: Arch) -> Subnet:
    """Write what loading needs of an emitted folder; return the network."""
    network = build_network(arch, 17, torch.Generator().manual_seed(3)).eval()
    folder.mkdir()
    save_network(folder / "model.safetensors", network, TOLD)
    return network


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An emitted folder of a bottom-up network, with its export."""
    folder = tmp_path_factory.mktemp("emitted") / "crowd"
    export_onnx(emitted(folder, bottom_up()), folder / "model.onnx", metadata=TOLD)
    return folder


@pytest.mark.parametrize("arch", [bottom_up(), one_person()], ids=["bottom-up", "top-down"])
def test_the_network_comes_back_equal_and_ready(tmp_path: Path, arch: Arch) -> None:
    network = emitted(tmp_path / "net", arch)
    images = torch.randn(2, 3, *arch.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(images)
    for model in (tmp_path / "net", str(tmp_path / "net" / "model.safetensors")):
        found = nas.load(model)
        assert not found.training and found.arch == arch and found.joints == 17 and found.sigma == 1.5
        with torch.no_grad():
            assert all(map(torch.equal, found(images), wanted))


def test_predictors_take_pictures_of_any_size(crowd: Path, tmp_path: Path) -> None:
    emitted(tmp_path / "one", one_person())
    picture = np.full((90, 130, 3), 127, np.uint8)
    for model in (crowd, crowd / "model.onnx"):
        people = nas.predictor(model, threads=1)
        assert isinstance(people, PosePredictor)
        found = people(picture)
        assert found.people.shape == (len(found.scores), 17, 3)
    one = nas.predictor(tmp_path / "one", flip=True)
    assert isinstance(one, PersonPredictor) and one.config.flip
    assert one(picture).people.shape == (1, 17, 3)


def test_a_research_checkpoint_is_a_model_too(tmp_path: Path) -> None:
    network = build_network(bottom_up(), 17, torch.Generator().manual_seed(3))
    torch.save(export_research(network), tmp_path / "theirs.pth")
    found = nas.load(tmp_path / "theirs.pth")
    assert found.joints == 17 and found.arch.replace(resolution=network.arch["resolution"]) == network.arch


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, nas; nas.load, nas.predictor; print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_command_tells_what_a_model_is(crowd: Path, box: Path, nas_: Callable[..., Outcome]) -> None:
    arch = bottom_up()
    shutil.copytree(crowd, box / "net")
    told = nas_("load", "net")
    assert told.code == 0
    assert f"{arch.id}, litepose (bottom-up)" in told.out
    assert "17 joints (coco17)" in told.out and 'nas.load("net")' in told.out
    plain, exported = (json.loads(nas_("load", name, "--json").out) for name in ("net", "net/model.onnx"))
    assert plain["macs"] == arch.cost(17).macs and plain["outputs"] == ["quarter", "half"]
    for name in ("id", "family", "paradigm", "height", "width", "skeleton", "joints", "macs", "arch"):
        assert exported[name] == plain[name], name
    names: dict[str, object] = {}
    exec(plain["python"], names)
    assert isinstance(names["network"], Subnet)


def test_what_is_no_model_is_named_with_the_way_out(trained: Path, box: Path) -> None:
    (box / "empty").mkdir()
    (box / "some.txt").write_text("text")
    (box / "model.tflite").write_bytes(b"TFL3")
    (box / "model.onnx").write_bytes(b"")
    (box / "cut.safetensors").write_bytes(b"\x00" * 12)
    for name, why in {
        "run": "holds many networks; 'nas emit run' writes one of them",
        "empty": "it holds no model.safetensors",
        "nowhere": "there is no model 'nowhere'; name an emitted folder, or a file that ends in .safetensors",
        "some.txt": "'some.txt' is no model; name an emitted folder",
        "model.tflite": "is an export, not a network for torch; take the folder",
        "model.onnx": "nas.predictor runs an .onnx",
        "cut.safetensors": "network file 'cut.safetensors'",
    }.items():
        with pytest.raises(InputError) as error:
            nas.load(name)
        assert why in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"no ONNX model that ONNX Runtime can load"):
        nas.predictor("model.onnx")
