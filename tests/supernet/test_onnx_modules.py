"""Parts of networks in ONNX Runtime against the same parts in torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from supernet.base import Subnet, crop_like
from supernet.export import fold_batchnorm
from supernet.onnx_modules import OnnxModule, through_onnx
from supernet.registry import build_supernet
from tests.supernet.networks import DECONVS, SPACES, images, randomise, relative_error, settle


def pair(name: str, seed: int, transposed: bool = False) -> tuple[Subnet, Subnet]:
    """Return a random network, and the same one for ONNX Runtime."""
    net = randomise(build_supernet(SPACES[name])).extract(SPACES[name].sample(np.random.default_rng(seed)))
    if name in DECONVS:
        settle(net, images(3, 96, 96, 1))
    net.eval()
    return net, through_onnx(fold_batchnorm(net), transposed=transposed)


@pytest.mark.parametrize("name", ["native", "extended", *DECONVS])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_outputs_are_torchs_at_any_size_and_batch(name: str, seed: int, transposed: bool) -> None:
    plain, ours = pair(name, seed, transposed)
    kinds = {child: type(module) is OnnxModule for child, module in ours.named_children()}
    assert kinds == {child: transposed or child != "head" for child, _ in plain.named_children()}
    for count, height, width in ((1, 64, 64), (3, 70, 101), (2, 33, 96)):
        x = images(count, height, width)
        found, expected = ours(x), plain(x)
        assert [each.shape for each in found] == [each.shape for each in expected]
        # Top-down networks are deeper, and these of made-up weights enlarge what was rounded.
        assert relative_error(found, expected) < (1e-4 if name in DECONVS else 1e-5)


@torch.no_grad()
def test_threads_share_a_part_and_get_the_same_bits() -> None:
    _, ours = pair("native", 0)
    pictures = [images(1 + place % 3, 64, 32 * (1 + place % 2)) for place in range(12)]
    # What stays in torch is summed in an order that depends on torch's threads, which each thread has its own
    # number of.
    one = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(4, initializer=one) as pool, ThreadPoolExecutor(1, initializer=one) as alone:
        found = list(pool.map(torch.no_grad()(ours), pictures))  # also the engines are made here
        again = list(alone.map(torch.no_grad()(ours), pictures))
    for first, second in zip(found, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Family(Subnet):
    """A network of any parts, by which the parts are told from what they do."""

    output_names: ClassVar[tuple[str, ...]] = ("sum", "small")

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        nn.Module.__init__(self)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.second([self.first(x), x])  # type: ignore[no-any-return]

    def norm_sources(self) -> dict[str, tuple[str, ...]]:
        return {}

    @property
    def strides(self) -> tuple[int, ...]:
        return 1, 1

    def channels(self) -> tuple[Any, ...]:
        return ()

    @property
    def output_layers(self) -> tuple[str, ...]:
        return ()


class Several(nn.Module):
    """A list of tensors in, two tensors out, one of which is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        small, like = features
        return self.same(small) + crop_like(like, small), small


class Unknown(nn.Module):
    """An operator that is not known."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Pooled(nn.Module):
    """Means of a part of the picture are not known, those of all of it are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, self.size) * nn.functional.hardsigmoid(x)


class Deciding(nn.Module):
    """What it does depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def convolution(**changes: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, **{"kernel_size": 3, "padding": 1, **changes})


@pytest.mark.parametrize(
    ("first", "written"),
    [
        (convolution(), [True, True]),
        (convolution(kernel_size=(3, 1), padding=(2, 0), stride=(2, 1), dilation=(2, 1)), [True, True]),
        (convolution(groups=3, bias=False, padding=0), [True, True]),
        (convolution(padding_mode="reflect"), [False, True]),
        (convolution(padding="same"), [False, True]),
        (Unknown(), [False, True]),
        (Pooled(1), [True, True]),
        (nn.BatchNorm2d(3), [False, True]),
        (nn.ConvTranspose2d(3, 3, 3, 1, 1), [False, True]),
        (Deciding(), [False, False]),
    ],
)
@torch.no_grad()
def test_what_is_not_known_stays_with_torch(first: nn.Module, written: list[bool]) -> None:
    torch.manual_seed(0)
    plain = Family(first, Several()).eval()
    x = images(2, 13, 18)
    expected = plain(x)
    ours = through_onnx(plain)
    assert [isinstance(part, OnnxModule) for part in ours.children()] == written
    assert relative_error(ours(x), expected) < 1e-5


@torch.no_grad()
def test_a_part_that_is_called_twice_stays_with_torch() -> None:
    class Twice(Family):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.second([self.first(self.first(x)), x])  # type: ignore[no-any-return]

    plain = Twice(convolution(), Several()).eval()
    expected = plain(images(1, 8, 8))
    ours = through_onnx(plain)
    assert [isinstance(part, OnnxModule) for part in ours.children()] == [False, True]
    assert relative_error(ours(images(1, 8, 8)), expected) < 1e-5
