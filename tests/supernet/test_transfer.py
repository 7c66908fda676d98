"""A supernet started from a pretrained network: the same function where it covers, fresh elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_spaces import Arch, InputError, SearchSpace, litepose_arch, litepose_extended
from search_spaces.deconv import DECONV_MBV2, DECONV_MBV3, deconv_arch, deconv_mbv2
from supernet.base import Subnet, Supernet
from supernet.elastic import KERNEL_SHARING
from supernet.mobilenet import import_mobilenet_v2, in_backbone, is_mobilenet_v2
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton
from supernet.registry import build_network, build_supernet
from supernet.transfer import cut_to, start_from
from tests.supernet.networks import DECONVS, SPACES, images, randomise, relative_error, with_kernels_of

SPACE = SPACES["extended"]


def smaller(space: SearchSpace, seed: int) -> Arch:
    """Return an arch that fits into the widest one; most of its values are not on offer in the space.

    What a top-down network may lack, every second one lacks, where some of the space do.
    """
    rng, found = np.random.default_rng(seed), {}
    for name, most in space.largest().values:
        assert isinstance(most, int)
        least = 64 if name == "resolution" else 2 if "head" in name and "kernel" in name else 1
        if most == 100 and name.endswith("expansion"):  # percent
            least = 10
        value = int(rng.integers(least, most + 1)) if most else 0
        found[name] = value - (value % 2 == 0) if name.startswith("stage") and "kernel" in name else value
    if space.family.name in DECONVS:
        found |= {"resolution": 64, "stage0.expansion": space.largest().number("stage0.expansion")}
        least = space.smallest()
        for names in (("last_width",), ("head.deconv2.width", "head.deconv2.kernel")):
            if least[names[0]] == 0 and rng.random() < 0.5:
                found |= dict.fromkeys(names, 0)
    return space.family.arch(found)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("kernels", KERNEL_SHARING)
@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_a_smaller_network_is_found_again_in_the_supernet(name: str, kernels: str, seed: int) -> None:
    space = SPACES[name]
    arch, x = smaller(space, seed), images(1, 45, 64).double()
    net = randomise(build_network(arch, space.joints), seed % 999).double().eval()
    supernet = build_supernet(space, torch.Generator().manual_seed(1), kernels).double().eval()
    fresh = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    told = start_from(supernet, net)
    larger = with_kernels_of(arch, supernet.widest)
    with torch.no_grad():
        assert relative_error(supernet(x, arch), net(x)) < 1e-12
        assert relative_error(supernet(x, larger), net(x)) < 1e-12  # zeros around the smaller kernels
    # Nothing outside of the part that it covers has changed, and that part is what is told.
    touched = {name for name, part in supernet.state_dict().items() if not torch.equal(part, fresh[name])}
    assert touched <= {supernet.place(name, arch) for name in net.state_dict()}  # such a layer it has
    assert told.weights == sum(p.numel() for p in net.parameters())
    assert told.of == sum(p.numel() for p in supernet.parameters())
    # Whether there is a last convolution or a third step is no matter of how much of it is covered.
    assert len(told.covered) == sum(
        value not in (0, supernet.widest[name]) for name, value in arch.values if name != "resolution"
    )
    assert told.cut == ()


def test_what_the_network_lacks_stays_fresh() -> None:
    net = randomise(build_network(smaller(SPACE, 3), SPACE.joints))
    supernet = build_supernet(SPACE, torch.Generator().manual_seed(1))
    before = supernet.stem.project.weight.clone()  # type: ignore[union-attr, operator]
    start_from(supernet, net)
    width = net.arch.number("stem_width")
    after = supernet.stem.project.weight  # type: ignore[union-attr]
    assert torch.equal(after[width:], before[width:])
    assert not torch.equal(after[:width], before[:width])


def test_channels_stay_where_they_are_if_so_asked() -> None:
    net = randomise(build_network(SPACE.largest(), SPACE.joints), 5).eval()
    kept, ordered = build_supernet(SPACE), build_supernet(SPACE)
    start_from(kept, net, by="kept")
    start_from(ordered, net, by="scale")
    for name, own in net.state_dict().items():
        assert torch.equal(kept.state_dict()[name], own), name
    assert not torch.equal(
        ordered.state_dict()["stem.project.weight"], net.state_dict()["stem.project.weight"]
    )
    x = images(1, 45, 64)
    assert relative_error(ordered.eval()(x, net.arch), net(x)) < 1e-5


def test_a_larger_network_is_refused_unless_it_may_be_cut() -> None:
    net = randomise(build_network(SPACE.largest().replace(stage1__width=40), SPACE.joints)).eval()
    supernet = build_supernet(SPACE).eval()
    with pytest.raises(InputError, match=r"stage1\.width = 40 > 16"):
        start_from(supernet, net)
    told = start_from(supernet, net, may_cut=True)
    assert told.cut == ("stage1.width 40 to 16",)
    assert "cut to the most important channels" in "\n".join(told.lines())


def test_a_cut_network_keeps_first_channels_first_blocks_and_the_middle_of_kernels() -> None:
    net = randomise(build_network(SPACE.largest(), SPACE.joints)).eval()
    assert cut_to(net, SPACE.largest()) is net
    small = cut_to(net, SPACE.smallest())
    assert small.arch.replace(resolution=64) == SPACE.smallest().replace(resolution=64)
    theirs = net.get_submodule("stage0.block0.depthwise").weight
    mine = small.get_submodule("stage0.block0.depthwise").weight
    assert torch.equal(mine, theirs[: len(mine), :, 3:6, 3:6])


# -- other joints --------------------------------------------------------------------------------------------


def crowdpose_network(arch: Arch) -> Subnet:
    return randomise(build_network(arch, len(CROWDPOSE14)), 2).eval()


def test_joints_are_matched_by_name() -> None:
    space = litepose_extended(17, base=SPACE.largest(), resolutions=(64,), expansions=(1, 2), kernels=(3, 9))
    net, x = crowdpose_network(space.smallest()), images(1, 64, 64)
    supernet = build_supernet(space, torch.Generator().manual_seed(1)).eval()
    fresh = {name: supernet.get_parameter(f"{name}.weight").clone() for name in supernet.output_layers}
    told = start_from(supernet, net, joints=(CROWDPOSE14, COCO17))
    assert told.joints == "joints: 12 by name; fresh: nose, left_eye, right_eye, left_ear, right_ear"
    shared = [
        (i, CROWDPOSE14.joints.index(j)) for i, j in enumerate(COCO17.joints) if j in CROWDPOSE14.joints
    ]
    assert len(shared) == 12
    with torch.no_grad():
        (quarter, half), (given, fine) = supernet(x, space.smallest()), net(x)
    scale = float(given.abs().max())
    for mine, theirs in shared:
        for a, b in ((half[:, mine], fine[:, theirs]), (quarter[:, mine], given[:, theirs]),
                     (quarter[:, 17 + mine], given[:, 14 + theirs])):  # fmt: skip
            assert float((a - b).abs().max()) < 1e-5 * scale
    for name, before in fresh.items():  # the nose's heatmap, and its tag
        rows = [0, 17] if "output0" in name else [0]
        assert torch.equal(supernet.get_parameter(f"{name}.weight")[rows], before[rows])


def test_other_joints_need_names() -> None:
    space = litepose_extended(17, base=SPACE.largest(), resolutions=(64,), expansions=(1,), kernels=(3,))
    net, supernet = crowdpose_network(space.smallest()), build_supernet(space)
    with pytest.raises(InputError, match="predicts 17 joints, the network 14"):
        start_from(supernet, net)
    wings = Skeleton("bird", ("left_wing", "right_wing"), (), (0.1, 0.1), ())
    other = build_network(space.smallest(), 2)
    before = [p.clone() for p in supernet.parameters()]
    with pytest.raises(InputError, match=r"none of the network's joints \(left_wing, right_wing\)"):
        start_from(supernet, other, joints=(wings, COCO17))
    assert all(torch.equal(a, b) for a, b in zip(before, supernet.parameters(), strict=True))


# -- MobileNetV2 ---------------------------------------------------------------------------------------------

BLOCKS = [(16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), *[(64, 64, 1)] * 3,
          (64, 96, 1), *[(96, 96, 1)] * 2, (96, 160, 2), *[(160, 160, 1)] * 2, (160, 320, 1)]  # fmt: skip
"""Channels in and out, and stride, of features.2 to features.17."""


def imagenet(seed: int = 0) -> dict[str, Tensor]:
    """Return tensors of MobileNetV2's names and shapes, and a classifier's of ten classes."""
    generator, found = torch.Generator().manual_seed(seed), {}

    def conv(name: str, c_out: int, c_in: int, kernel: int) -> None:
        found[f"{name}.weight"] = (
            torch.randn(c_out, c_in, kernel, kernel, generator=generator) * (2 / (c_in * kernel**2)) ** 0.5
        )
        room, _, place = name.rpartition(".")
        norm = f"{room}.{int(place) + 1}"
        found[f"{norm}.weight"] = 0.5 + torch.rand(c_out, generator=generator)
        found[f"{norm}.bias"] = 0.2 * torch.randn(c_out, generator=generator)
        found[f"{norm}.running_mean"] = 0.2 * torch.randn(c_out, generator=generator)
        found[f"{norm}.running_var"] = 0.5 + torch.rand(c_out, generator=generator)
        found[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    conv("features.0.0", 32, 3, 3)
    conv("features.1.conv.0.0", 32, 1, 3)
    conv("features.1.conv.1", 16, 32, 1)
    for number, (c_in, c_out, _) in enumerate(BLOCKS, start=2):
        conv(f"features.{number}.conv.0.0", 6 * c_in, c_in, 1)
        conv(f"features.{number}.conv.1.0", 6 * c_in, 1, 3)
        conv(f"features.{number}.conv.2", c_out, 6 * c_in, 1)
    conv("features.18.0", 1280, 320, 1)
    found["classifier.1.weight"] = torch.randn(10, 1280, generator=generator)
    found["classifier.1.bias"] = torch.zeros(10)
    return found


def features(tensors: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Return MobileNetV2's features at 1/2, 1/4, 1/8, 1/16 (two) and 1/32 (three), from the paper."""

    def layer(x: Tensor, conv: str, stride: int = 1, groups: int = 1, relu6: bool = True) -> Tensor:
        weight = tensors[f"{conv}.weight"]
        room, _, place = conv.rpartition(".")
        norm = f"{room}.{int(place) + 1}"
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var, scale, shift = (
            tensors[f"{norm}.{each}"].view(-1, 1, 1)
            for each in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        return x.clamp(0, 6) if relu6 else x

    x = layer(x, "features.0.0", 2)
    x = layer(layer(x, "features.1.conv.0.0", groups=32), "features.1.conv.1", relu6=False)
    found = [x]
    for number, (c_in, c_out, stride) in enumerate(BLOCKS, start=2):
        at = f"features.{number}.conv"
        y = layer(layer(x, f"{at}.0.0"), f"{at}.1.0", stride, 6 * c_in)
        y = layer(y, f"{at}.2", relu6=False)
        x = x + y if stride == 1 and c_in == c_out else y
        if number in (3, 6, 10, 13, 16, 17):
            found.append(x)
        elif number in (2, 4, 5):
            assert x.shape[1] == c_out
    return [*found, layer(x, "features.18.0")]


def backbone(supernet: Supernet, arch: Arch, x: Tensor) -> list[Tensor]:
    """Return the features of what corresponds to those that :func:`features` returns."""
    seen: list[Tensor] = []
    net = supernet.extract(arch).eval()
    for name, _ in net.named_children():
        if name == "head" or (name == "stem" and arch.family.name in DECONVS):
            continue
        net.get_submodule(name).register_forward_hook(lambda _, given, out: seen.append(out))
    with torch.no_grad():
        net(x)
    return seen


def sorted_channels(x: Tensor) -> Tensor:
    """Return features with their channels in an order that does not depend on how they were numbered."""
    flat = x[0].flatten(1)
    return flat[torch.argsort(flat @ torch.arange(1, 1 + flat.shape[1]).to(flat).sin())]


MOBILE = litepose_arch(
    64, 16, (24, 32, 64, 96), (16, 16, 16), depths=(2, 3, 4, 3), kernels=3, expansions=6, deconv_kernels=2
)


def wide_space(joints: int = 5) -> SearchSpace:
    """Return a space around MobileNetV2's backbone with larger kernels, more blocks and wider stages."""
    base = MOBILE.replace(**{f"stage{i}__kernel": 7 for i in range(4)}, stage2__width=72, stem_width=24)
    return litepose_extended(
        joints, base=base, resolutions=(64,), multipliers=(1,), depths=(2, 3, 4), kernels=(3, 7),
        expansions=(6,), deconv_kernels=(2, 4),
    )  # fmt: skip


def check_backbone(path: Path, kernels: str) -> None:
    """The space's part of MobileNetV2's widths computes MobileNetV2's features, in kernels of 3 and of 7."""
    raw = torch.load(path, weights_only=True)
    prefix = "" if "0.0.weight" in raw else "features."
    tensors = {
        f"features.{k.removeprefix(prefix)}": v.double() for k, v in raw.items() if k.startswith(prefix)
    }
    net, unused = import_mobilenet_v2(path, 5)
    assert "features.14" in unused
    supernet = build_supernet(wide_space(), torch.Generator().manual_seed(3), kernels).double()
    head = {name: p.clone() for name, p in supernet.named_parameters() if name.startswith("head.")}
    told = start_from(supernet, net.double(), layers=in_backbone, may_cut=True)
    assert told.cut == ()
    assert {
        "stem_width 16 of 24",
        "stage0.depth 2 of 4",
        "stage2.width 64 of 72",
        "stage1.kernel 3 of 7",
    } <= set(told.covered)
    assert not any("head" in each for each in told.covered)
    assert all(torch.equal(supernet.get_parameter(name), before) for name, before in head.items())
    x = images(1, 64, 96).double()
    expected = features(tensors, x)
    for kernel in (3, 7):
        arch = MOBILE.replace(**{f"stage{i}__kernel": kernel for i in range(4)})
        for mine, theirs in zip(backbone(supernet, arch, x), expected[:5], strict=True):
            assert mine.shape == theirs.shape
            assert float((sorted_channels(mine) - sorted_channels(theirs)).abs().max()) < 1e-9 * float(
                theirs.abs().max()
            )


@pytest.mark.parametrize("kernels", KERNEL_SHARING)
def test_the_backbone_computes_mobilenets_features(tmp_path: Path, kernels: str) -> None:
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    check_backbone(tmp_path / "mobilenet.pth", kernels)


def test_the_published_weights(shared: Path) -> None:
    check_backbone(shared / "weights" / "mobilenet-v2-imagenet.torchvision.pth", "crop")


# -- MobileNetV2 as the encoder of a top-down network --------------------------------------------------------


def encoder_space(joints: int = 5, **changes: Any) -> SearchSpace:
    """Return a space around MobileNetV2 with larger kernels, more blocks, wider stages, and any head."""
    base = deconv_arch(
        DECONV_MBV2,
        64,
        (16, 16, 16),
        stages=(16, 24, 32, 72, 96, 160, 320),
        depths=(2, 2, 3, 5, 3, 3, 1),
    )
    options: dict[str, Any] = {
        "base": base,
        "resolutions": (64,),
        "multipliers": (1,),
        "depths": [[1, 2], [2], [3], [4, 5], [3], [3], [1]],
        "kernels": (3, 7),
        "expansions": (6,),
        "last_widths": (0, 1280),
        "deconvs": (2, 3),
        "deconv_widths": (16,),
        "deconv_kernels": (2, 4),
    }
    return deconv_mbv2(joints, **{**options, **changes})


def check_encoder(path: Path, kernels: str) -> None:
    """MobileNetV2's part of the space computes all of its features, in kernels of 3 and of 7."""
    raw = torch.load(path, weights_only=True)
    whole = "classifier.1.weight" in raw  # else the features alone, which have no prefix
    tensors = {name if whole else f"features.{name}": tensor.double() for name, tensor in raw.items()}
    net, unused = import_mobilenet_v2(path, 5, DECONV_MBV2)
    assert unused == (("classifier",) if whole else ())
    assert net.arch.as_dict() == {
        **deconv_arch(DECONV_MBV2, 256, (1, 1, 1), deconv_kernels=2).as_dict(),  # MobileNetV2 as published
    }
    space = encoder_space()
    supernet = build_supernet(space, torch.Generator().manual_seed(3), kernels).double()
    head = {name: p.clone() for name, p in supernet.named_parameters() if name.startswith("head.")}
    told = start_from(supernet, net.double(), layers=in_backbone, may_cut=True)
    assert told.cut == ()
    assert {"stage0.depth 1 of 2", "stage3.width 64 of 72", "stage6.kernel 3 of 7"} <= set(told.covered)
    assert not any("head" in each for each in told.covered)
    assert told.weights == sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if name.startswith("features.") and name.rpartition(".")[2] in ("weight", "bias")
    )
    assert all(torch.equal(supernet.get_parameter(name), before) for name, before in head.items())
    x = images(1, 64, 96).double()
    expected = features(tensors, x)
    assert len(expected) == 8
    for kernel in (3, 7):
        for last in (0, 1280):
            arch = net.arch.replace(
                **{f"stage{i}__kernel": kernel for i in range(7)},
                **{f"head__deconv{i}__width": 16 for i in range(3)},
                last_width=last,
            )
            found = backbone(supernet, arch, x)
            assert len(found) == (8 if last else 7)
            for mine, theirs in zip(found, expected, strict=False):
                assert mine.shape == theirs.shape
                difference = (sorted_channels(mine) - sorted_channels(theirs)).abs().max()
                assert float(difference) < 1e-9 * float(theirs.abs().max())


@pytest.mark.parametrize("kernels", KERNEL_SHARING)
def test_the_encoder_computes_all_of_mobilenets_features(tmp_path: Path, kernels: str) -> None:
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    check_encoder(tmp_path / "mobilenet.pth", kernels)


def test_the_published_weights_as_an_encoder(shared: Path) -> None:
    check_encoder(shared / "weights" / "mobilenet-v2-imagenet.torchvision.pth", "crop")


@pytest.mark.parametrize("by", ["reading", "scale"])
def test_a_narrow_encoder_takes_the_most_important_channels(tmp_path: Path, by: str) -> None:
    """Of the last convolution what the classifier reads; it tells also where it is cut what it reads."""
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    net, _ = import_mobilenet_v2(tmp_path / "mobilenet.pth", 5, DECONV_MBV2)
    classifier = imagenet()["classifier.1.weight"].abs().sum(0)
    narrow: dict[str, Any] = {"multipliers": (0.5,), "kernels": (3,), "depths": (1,), "expansions": (3,)}
    for last in (640, 0):
        space = encoder_space(**narrow, last_widths=(last,), deconvs=2)
        supernet = build_supernet(space)
        told = start_from(supernet, net, layers=in_backbone, may_cut=True, by=by)
        assert {"stem_width 32 to 16", "stage6.width 320 to 160", f"last_width 1280 to {last}"} <= set(
            told.cut
        )
        assert not any("head" in each for each in told.cut)
        taken = supernet.get_parameter("stage6.block0.project_norm.weight").detach()
        if by == "reading":
            reading = net.get_submodule("last.conv").weight.abs().sum((0, 2, 3))
            best = torch.argsort(reading, descending=True)[:160]
            theirs = net.get_parameter("stage6.block0.project_norm.weight").detach()
            assert torch.equal(taken, theirs[best])
        if last and by == "reading":
            best = torch.argsort(classifier, descending=True)[:640]
            mine, theirs = (
                supernet.get_parameter("last.conv_norm.weight"),
                net.get_parameter("last.conv_norm.weight"),
            )
            assert torch.equal(mine, theirs[best])
        with torch.no_grad():
            assert all(out.isfinite().all() for out in supernet.eval()(images(1, 64, 64), space.largest()))


def test_mobilenets_weights_have_no_place_in_mobilenet_v3(tmp_path: Path) -> None:
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    with pytest.raises(
        InputError, match="backbone of litepose, litepose-unfused, deconv-mbv2; deconv-mbv3 has another"
    ):
        import_mobilenet_v2(tmp_path / "mobilenet.pth", 5, DECONV_MBV3)


def test_what_outputs_rest_on_is_not_cut_away() -> None:
    space = SPACES["deconv-mbv2"]
    net = randomise(build_network(space.largest(), 5))
    without = build_supernet(
        deconv_mbv2(5, base=space.largest(), multipliers=(1,), last_widths=(0,), kernels=(5,))
    )
    with pytest.raises(InputError, match="lacks what the network's outputs rest on: last_width = 0, not 24"):
        start_from(without, net, may_cut=True)


def test_a_narrow_space_takes_the_most_important_channels(tmp_path: Path) -> None:
    torch.save(imagenet(), tmp_path / "mobilenet.pth")
    net, _ = import_mobilenet_v2(tmp_path / "mobilenet.pth", 5)
    supernet = build_supernet(
        litepose_extended(5, base=MOBILE.replace(stage1__width=16), resolutions=(64,), multipliers=(1,),
                          depths=(2,), kernels=(3,), expansions=(4,), deconv_kernels=(2,))
    )  # fmt: skip
    told = start_from(supernet, net, layers=in_backbone, may_cut=True, by="reading")
    assert "stage1.width 32 to 16" in told.cut
    assert "stage3.expansion 6 to 4" in told.cut
    reading = sum(
        net.get_submodule(f"{at}.expand").weight.abs().sum((0, 2, 3))
        for at in ("stage1.block1", "stage1.block2", "stage2.block0")
    )
    best = torch.argsort(reading, descending=True)[:16]
    taken = supernet.get_parameter("stage1.block0.project_norm.weight")
    assert torch.equal(taken, net.get_parameter("stage1.block0.project_norm.weight")[best])


@pytest.mark.parametrize(("change", "culprit"), [
    (lambda t: t.pop("features.5.conv.1.0.weight"), "lacks tensor 'features.5.conv.1.0.weight'"),
    (lambda t: t.pop("features.1.conv.0.0.weight"), "it is no MobileNetV2"),
    (lambda t: t.update({"features.0.0.weight": torch.zeros(48, 3, 3, 3)}), "begins with 48 channels"),
    (lambda t: t.update({"features.9.conv.2.weight": torch.zeros(64, 9, 1, 1)}), r"shape \(64, 9, 1, 1\)"),
    (lambda t: t["features.9.conv.3.bias"].fill_(float("nan")), "not finite"),
    (lambda t: t.update({"features.9.extra": torch.zeros(3)}), "unknown tensor 'features.9.extra'"),
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, change, culprit: str) -> None:  # type: ignore[no-untyped-def]
    tensors = imagenet()
    change(tensors)
    torch.save(tensors, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=culprit):
        import_mobilenet_v2(tmp_path / "odd.pth")


def test_nothing_else_is_taken_for_mobilenet(tmp_path: Path) -> None:
    assert is_mobilenet_v2(imagenet())
    assert not is_mobilenet_v2({"first.0.0.weight": torch.zeros(1)})
    torch.save({"hello": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="only tensors are read, never code"):
        import_mobilenet_v2(tmp_path / "code.pth")
