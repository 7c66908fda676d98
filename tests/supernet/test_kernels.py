"""Kernels shared by learned transforms: what they compute, what they reach, what keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces import InputError, RunError
from supernet.base import Supernet
from supernet.elastic import KERNEL_SHARING, ElasticDepthwiseConv2d
from supernet.registry import build_network, build_supernet
from supernet.state import load_weights, save_weights
from supernet.training import Trainer
from tests.supernet import tiny
from tests.supernet.networks import DECONVS, SPACES, images, randomise, relative_error, with_kernels_of


def transformed(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every transform of a network a matrix that changes every tap."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".transforms." in f".{name}":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / len(parameter) ** 0.5)
    return net


def supernet(name: str, kernels: str, seed: int = 0) -> Supernet:
    net = build_supernet(SPACES[name], kernels=kernels)
    transformed(randomise(net, seed), seed)
    return net


# -- one layer -----------------------------------------------------------------------------------------------


def test_kernels_are_chained_through_the_matrices() -> None:
    layer = ElasticDepthwiseConv2d(4, 9, transformed=5)
    assert {name: tuple(p.shape) for name, p in layer.transforms.items()} == {"7": (49, 49), "5": (25, 25)}
    transformed(layer)
    weight = layer.weight.detach().numpy()[:3, 0].astype(np.float64)
    assert torch.equal(layer.active(3, 9), layer.weight[:3])
    for size, start in ((7, 1), (5, 1)):
        matrix = np.eye(size**2) + layer.transforms[str(size)].detach().numpy()
        centre = weight[:, start : start + size, start : start + size].reshape(3, -1)
        weight = np.einsum("ci,ij->cj", centre, matrix).reshape(3, size, size)
        np.testing.assert_allclose(layer.active(3, size).detach()[:, 0], weight, rtol=1e-4, atol=1e-5)
    # What no transform makes is the crop of the smallest that one makes.
    np.testing.assert_allclose(layer.active(3, 3).detach()[:, 0], weight[:, 1:4, 1:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_they_begin_as_the_crop_to_the_last_bit(name: str) -> None:
    space, x = SPACES[name], images(1, 64, 64)
    crop, learned = (
        build_supernet(space, torch.Generator().manual_seed(2), kernels).eval() for kernels in KERNEL_SHARING
    )
    names = [name for name, _ in learned.named_parameters()]
    assert sum(".transforms." in name for name in names) > 10
    assert [name for name in names if ".transforms." not in name] == [n for n, _ in crop.named_parameters()]
    for seed in range(4):
        arch = space.sample(np.random.default_rng(seed))
        with torch.no_grad():
            for one, other in zip(crop(x, arch), learned(x, arch), strict=True):
                assert torch.equal(one, other)


def test_only_kernels_that_a_space_varies_have_transforms() -> None:
    native = build_supernet(SPACES["native"], kernels="transform")
    assert not any("transforms" in name for name, _ in native.named_parameters())
    varied = build_supernet(SPACES["extended-small-kernels"], kernels="transform")
    found = {n.rpartition(".transforms.")[0]: n[-1] for n, _ in varied.named_parameters() if "transf" in n}
    assert found == {f"stage{i}.block{j}.depthwise": "1" for i in range(4) for j in range(2)}
    for name, stages in (("deconv-mbv2", 7), ("deconv-mbv3", 6)):
        net = build_supernet(SPACES[name], kernels="transform")
        found = {n.rpartition(".transforms.")[0]: n[-1] for n, _ in net.named_parameters() if "transf" in n}
        assert found == {f"stage{i}.block{j}.depthwise": "3" for i in range(stages) for j in range(2)}


def test_half_precision_of_the_convolution_is_not_that_of_the_kernel() -> None:
    layer = transformed(ElasticDepthwiseConv2d(4, 7, transformed=3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.active(4, 3).dtype == torch.float32
        assert layer(images(1, 8, 8)[:, :1].expand(-1, 4, -1, -1), 3).dtype == torch.bfloat16


def test_an_unknown_sharing_is_refused() -> None:
    with pytest.raises(InputError, match=r"crop or transform, not 'transfrom'.*transform"):
        build_supernet(SPACES["native"], kernels="transfrom")
    with pytest.raises(InputError, match=r"train\.kernels: unknown 'centre'"):
        tiny.config(kernels="centre")


# -- per-arch arithmetic is exact, in both ways of sharing ---------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("kernels", KERNEL_SHARING)
@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_extracted_equals_supernet_in_evaluation_and_in_training(name: str, kernels: str, seed: int) -> None:
    space, net = SPACES[name], supernet(name, kernels, seed % 100)
    arch, x = space.sample(np.random.default_rng(seed)), images(2, 40 + seed % 9, 64, seed % 1000)
    with torch.no_grad():
        net.eval()
        assert relative_error(net.extract(arch)(x), net(x, arch)) < 1e-5
        net.train()
        plain = net.extract(arch)
        # Both normalise by the batch, and both move their running statistics alike.
        assert relative_error(plain(x), net(x, arch)) < 1e-5
        for (key, own), theirs in zip(plain.named_buffers(), net.extract(arch).buffers(), strict=True):
            if "running" in key:
                torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5, msg=key)
    # Hidden channels are active inputs x expansion, and residuals are where the active widths agree.
    for layer in arch.layers(space.joints):
        module = plain.get_submodule(layer.name)
        if layer.kind == "se":
            module, expand = (module.get_submodule(each) for each in ("reduce", "expand"))
            assert (expand.in_channels, expand.out_channels) == (layer.squeeze, layer.c_out)  # type: ignore[union-attr]
        out = layer.squeeze or layer.c_out
        assert (module.in_channels, module.out_channels) == (layer.c_in, out)  # type: ignore[union-attr]
        if layer.name.startswith("stage") and layer.name.endswith("project"):
            assert plain.get_submodule(layer.name.rpartition(".")[0]).residual == layer.add


def filled(net: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
@pytest.mark.parametrize("kernels", KERNEL_SHARING)
@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_gradients_reach_exactly_the_active_parts(name: str, kernels: str, seed: int) -> None:
    space, net = SPACES[name], supernet(name, kernels, seed % 100)
    arch = space.sample(np.random.default_rng(seed))
    # At 1/32 a picture of 160 pixels has the 5 that every tap of a 5x5 kernel can reach one of.
    size = (160, 160) if name in DECONVS else (48, 64)
    sum(out.square().mean() for out in net(images(2, *size, 3), arch)).backward()
    # What a supernet of zeros takes of a network of ones is what the arch runs ...
    marks = filled(build_supernet(space, kernels=kernels), 0.0)
    marks.load_plain(filled(build_network(arch, space.joints), 1.0))
    masks = {name: parameter.detach() for name, parameter in marks.named_parameters()}
    for name, layer in net.named_modules():
        if isinstance(layer, ElasticDepthwiseConv2d) and layer.transforms and masks[f"{name}.weight"].any():
            mask = masks[f"{name}.weight"]
            kernel, channels = (
                arch.number(f"{name.split('.')[0]}.kernel"),
                int((mask.amax((1, 2, 3)) > 0).sum()),
            )
            for size in layer.transforms:
                masks[f"{name}.transforms.{size}"].fill_(float(int(size) >= kernel))
            # ... and where a transform makes the kernel, it reads all taps of the next one.
            if kernel < layer.kernel_size[0]:
                mask[:channels, :, 1:-1, 1:-1] = 1
    reached, held = 0, 0
    for name, parameter in net.named_parameters():
        mask = masks[name] == 1
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert not gradient[~mask].any(), name
        if ".transforms." in name:
            # Rows are taps that are read; of the taps written, a still smaller kernel reads the inner ones.
            assert bool((gradient != 0).any(1).all()) == bool(mask.any()), name
        else:
            reached, held = reached + int((gradient[mask] != 0).sum()), held + int(mask.sum())
    assert reached > 0.7 * held  # the rest: channels that no activation lets through


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4, deadline=None)
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("name", ["extended", *DECONVS])
def test_a_plain_network_is_itself_after_it_was_taken_over(name: str, seed: int, around: bool) -> None:
    """Whatever the transforms were before; with zeros around, in larger kernels too."""
    space, net = SPACES[name], supernet(name, "transform", seed % 100).eval()
    arch, x = space.sample(np.random.default_rng(seed)), images(1, 45, 64)
    plain = randomise(build_network(arch, space.joints), seed % 1000).eval()
    net.load_plain(plain, around=around)
    larger = with_kernels_of(arch, space.largest())
    with torch.no_grad():
        assert relative_error(net(x, arch), plain(x)) < 1e-5
        if around:
            assert relative_error(net(x, larger), plain(x)) < 1e-5


# -- training ------------------------------------------------------------------------------------------------

VARIED = {"kernels": [3, 5], "base": {**tiny.SPACE["base"], "kernels": 5}}


def trainer(folder: Path, **changes: object) -> Trainer:
    net = tiny.supernet(**VARIED) if changes.get("kernels") == "crop" else build_supernet(
        tiny.space(**VARIED), torch.Generator().manual_seed(0), "transform"
    )  # fmt: skip
    config = tiny.config(**{"kernels": "transform", "ema": 0.9, "epochs": 2, "weight_decay": 0.01, **changes})
    return Trainer(net, tiny.people(), config, seed=0, folder=folder, validate=tiny.weights_sum)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_stopped_training_ends_where_an_uninterrupted_one_does(tmp_path: Path, shards: int) -> None:
    whole = trainer(tmp_path / "whole", shards=shards)
    whole.run()
    moved = [p for name, p in whole.network.named_parameters() if ".transforms." in name and p.any()]
    assert len(moved) == 4  # one of each stage's only block
    stopped = trainer(tmp_path / "stopped", shards=shards)

    def stop(step: int, steps: int, row: object) -> None:
        if step == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        stopped.run(stop)
    stopped._save()
    again = trainer(tmp_path / "stopped", shards=shards)
    assert again.resume() == 3
    again.run()
    for name in ("last", "best"):
        ends = [tmp_path / run / "checkpoints" / f"{name}.safetensors" for run in ("whole", "stopped")]
        assert tiny.same_checkpoint(*ends), name


def test_a_training_goes_on_with_its_own_sharing_only(tmp_path: Path) -> None:
    trainer(tmp_path)._save()
    with pytest.raises(RunError, match="kernels: checkpoint transform, now crop"):
        trainer(tmp_path, kernels="crop").resume()
    with pytest.raises(
        InputError, match=r"train\.kernels is transform, but the supernet shares kernels by crop"
    ):
        Trainer(
            tiny.supernet(),
            tiny.people(),
            tiny.config(kernels="transform"),
            seed=0,
            folder=tmp_path / "other",
        )


def test_weights_are_of_one_sharing(tmp_path: Path) -> None:
    space = tiny.space(**VARIED)
    nets = {kernels: build_supernet(space, kernels=kernels) for kernels in KERNEL_SHARING}
    for kernels, net in nets.items():
        save_weights(tmp_path / kernels, transformed(net), space, 1, {})
        assert load_weights(tmp_path / kernels, net, space)["kernels"] == kernels
    for kernels, other in (KERNEL_SHARING, KERNEL_SHARING[::-1]):
        with pytest.raises(RunError, match=f"shares kernels by {other}, not by {kernels}; set train.kernels"):
            load_weights(tmp_path / other, nets[kernels], space)
