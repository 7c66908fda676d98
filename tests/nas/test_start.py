"""What ``init`` names in a recipe, and what the supernet then begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas.train import start
from search_spaces import InputError
from search_spaces.deconv import deconv_mbv3
from supernet.checkpoint import save_network
from supernet.pose.skeleton import COCO17, CROWDPOSE14
from supernet.registry import build_network
from tests.nas import tiny
from tests.supernet.networks import images, randomise, relative_error
from tests.supernet.test_transfer import encoder_space, imagenet


@pytest.mark.parametrize("kernels", ["crop", "transform"])
def test_a_smaller_network_of_other_joints(tmp_path: Path, kernels: str) -> None:
    recipe = tiny.recipe(tmp_path, train__kernels=kernels, space__kernels=[1, 3], init="start.safetensors")
    space = recipe.build_space(COCO17)
    arch = space.smallest()
    net = randomise(build_network(arch, 14)).eval()
    save_network(tmp_path / "start.safetensors", net, {"skeleton": CROWDPOSE14.to_json()})
    supernet, told = start(recipe, space, COCO17)
    assert supernet.kernels == kernels
    assert told[0].startswith("starting from '") and "the rest is fresh" in told[0]
    assert "stem_width 8" not in told[1] and "stage1.width 8 of 16" in told[1]
    assert told[-1] == "joints: 12 by name; fresh: nose, left_eye, right_eye, left_ear, right_ear"
    x = images(1, 64, 64)
    with torch.no_grad():
        mine, theirs = supernet.eval()(x, arch)[1][:, 5:], net(x)[1][:, :12]
    assert relative_error((mine,), (theirs,)) < 1e-5


def test_joints_that_a_file_does_not_name_are_the_recipes_if_as_many(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, init="start.safetensors")
    space = recipe.build_space(COCO17)
    net = randomise(build_network(space.largest(), 17)).eval()
    save_network(tmp_path / "start.safetensors", net)
    supernet, told = start(recipe, space, COCO17)
    assert len(told) == 1 and "(100%)" in told[0]
    with torch.no_grad():
        assert (
            relative_error(supernet.eval()(images(1, 64, 64), space.largest()), net(images(1, 64, 64))) < 1e-5
        )


def test_mobilenet(tmp_path: Path) -> None:
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    recipe = tiny.recipe(tmp_path, init="mobilenet.pth")
    space = recipe.build_space(COCO17)
    _, told = start(recipe, space, COCO17)
    assert told[0].startswith("starting from MobileNetV2 in '")
    assert "stage1.width 32 to 16" in told[1]
    assert told[-1] == (
        "fresh: the head; no place for features.14, features.15, features.16, features.17, features.18,"
        " classifier"
    )


def test_mobilenet_as_an_encoder(tmp_path: Path) -> None:
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    recipe = tiny.recipe(tmp_path, init="mobilenet.pth")
    supernet, told = start(recipe, encoder_space(17), COCO17)
    assert told[0].startswith("starting from MobileNetV2 in '")
    assert "stage0.depth 1 of 2" in told[1] and "head" not in told[1]
    assert told[-1] == "fresh: the head; no place for classifier"
    stem = imagenet()["features.0.1.weight"].sort()[0]
    assert torch.equal(supernet.get_parameter("stem.conv_norm.weight").detach().sort()[0], stem)
    with pytest.raises(
        InputError, match="of litepose, litepose-unfused, deconv-mbv2; deconv-mbv3 has another"
    ):
        start(recipe, deconv_mbv3(17, deconv_widths=(8,)), COCO17)


def test_nothing_is_told_of_a_fresh_start(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path)
    assert start(recipe, recipe.build_space(COCO17), COCO17)[1] == ()


def test_a_sharing_of_kernels_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.kernels: unknown 'transfrom'; did you mean 'transform'"):
        tiny.recipe(tmp_path, train__kernels="transfrom")
