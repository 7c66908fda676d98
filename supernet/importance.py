"""Re-ordering channels by importance, so that narrower subnets start from the most important ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from search_spaces.errors import InputError, did_you_mean
from supernet.base import Channels, Subnet

__all__ = ["CRITERIA", "order_channels_by_importance", "permute_channels"]

CRITERIA: Final = ("reading", "scale", "activation", "variance")
"""What makes a channel important; see :func:`order_channels_by_importance`."""


def order_channels_by_importance(net: Subnet, by: str = "reading", images: Iterable[Tensor] = ()) -> Subnet:
    """Return a copy of ``net`` that computes the same function with its channels in order of importance.

    Subnets take the first channels, so those of a supernet that starts from the copy take the most
    important ones. ``W`` is what a convolution reads a channel with, and a channel's importance adds up over
    the convolutions that read it:

    - ``reading``: the L1 norm of W, the criterion of once-for-all networks (arXiv 1908.09791, section 3.3),
      which LitePose's training recipe uses too;
    - ``activation``: that norm, times the mean absolute value of what is read, over ``images``;
    - ``variance``: how much of the variance of what the convolution writes comes from the channel, W^2 times
      the variance of what is read, over ``images``: its share in each channel that is written, averaged over
      them. Shares, since heatmaps are written with far smaller weights than tags, and matter no less. Means
      are no loss: the next normalisation puts them back; behind the last layers there is none, so there it
      is the mean square;
    - ``scale``: the same without images, for the variance the squared scale of the normalisation that the
      channel comes out of.

    Parameters
    ----------
    net
        A plain network, in evaluation mode where there are images.
    by
        One of :data:`CRITERIA`.
    images
        Batches of normalised images, each of shape (n, 3, H, W); needed by the last two criteria only.

    Raises
    ------
    InputError
        If the criterion is unknown, or needs images and has none.
    """
    if by not in CRITERIA:
        raise InputError(
            f"channels are ordered by {', '.join(CRITERIA)}, not '{by}'{did_you_mean(by, CRITERIA)}"
        )
    read = _observed(net, images) if by in ("activation", "variance") else {}
    ordered = copy.deepcopy(net)
    with torch.no_grad():
        for channels in ordered.channels():
            importance = sum(_importance(ordered, channels, name, by, read) for name in channels.read)
            permute_channels(
                ordered, channels, torch.argsort(torch.as_tensor(importance), descending=True, stable=True)
            )
    return ordered


def _input_axis(module: nn.Module) -> int:
    return 0 if isinstance(module, nn.ConvTranspose2d) else 1


def _weight(net: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
    module = net.get_submodule(name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return module, weight


class _Read:
    """What a convolution reads: sums over images and pixels of each channel's values, in double precision."""

    def __init__(self) -> None:
        self.count, self.sums = 0, torch.zeros(())

    def add(self, x: Tensor) -> None:
        x = x.detach().double()
        self.count += x.numel() // x.shape[1]
        self.sums = self.sums + torch.stack([each.sum((0, 2, 3)).cpu() for each in (x, x.abs(), x.square())])

    @property
    def magnitude(self) -> Tensor:
        """Mean absolute value, per channel."""
        return self.sums[1] / self.count

    @property
    def square(self) -> Tensor:
        """Mean square, per channel."""
        return self.sums[2] / self.count

    @property
    def variance(self) -> Tensor:
        """Variance, per channel."""
        return (self.square - (self.sums[0] / self.count).square()).clamp(min=0)


@torch.no_grad()
def _observed(net: Subnet, images: Iterable[Tensor]) -> Mapping[str, _Read]:
    found = {name: _Read() for channels in net.channels() for name in channels.read}
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(lambda _, given, read=read: read.add(given[0]))
        for name, read in found.items()
    ]
    try:
        seen = 0
        for batch in images:
            net(batch)
            seen += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if seen == 0:
        raise InputError("what channels carry is measured on images; at least one is needed, not 0")
    return found


def _importance(net: Subnet, channels: Channels, name: str, by: str, read: Mapping[str, _Read]) -> Tensor:
    """Return what the convolution ``name`` adds to the importance of each of the channels it reads."""
    module, weight = _weight(net, name)
    axis = _input_axis(module)
    if by in ("reading", "activation"):
        norm = weight.abs().sum([d for d in range(weight.dim()) if d != axis])
        return norm if by == "reading" else norm * read[name].magnitude.to(norm)
    if by == "scale":
        power = _scale(net, channels, name).double()
    else:
        # Nothing puts back the mean of what the network's outputs read.
        power = read[name].square if name in net.output_layers else read[name].variance
    shares = weight.detach().double().cpu().square().sum((2, 3)).movedim(axis, 1) * power.cpu()
    return (shares / shares.sum(1, keepdim=True).clamp(min=1e-300)).mean(0)


def _scale(net: Subnet, channels: Channels, reader: str) -> Tensor:
    """Return the squared scale of what is read: that of the branch's normalisation, or of all added up.

    Where nothing is normalised (between the two convolutions of a squeeze-and-excitation) it is 1.
    """
    room = reader.removesuffix("project").removesuffix("se.reduce")
    sources = [name for name in channels.kept if name.endswith("norm")]
    own = [f"{room}depthwise_norm"]
    if own[0] not in sources:  # what is added up comes out of no depthwise convolution
        own = [source for source in sources if not source.endswith("depthwise_norm")]
    if not own:
        weight = _weight(net, reader)[1]
        return torch.ones(weight.shape[_input_axis(net.get_submodule(reader))]).to(weight)
    return torch.stack([_weight(net, name)[1].square() for name in own]).sum(0)


def permute_channels(net: Subnet, channels: Channels, order: Tensor) -> None:
    """Put one of the network's sets of channels in another order, in place; its function stays the same."""
    for name in channels.written:
        module, weight = _weight(net, name)
        weight.copy_(weight.index_select(1 - _input_axis(module), order))
        if isinstance(module.bias, Tensor):
            module.bias.copy_(module.bias.index_select(0, order))
    for name in channels.read:
        module, weight = _weight(net, name)
        weight.copy_(weight.index_select(_input_axis(module), order))
    for name in channels.kept:
        for tensor in net.get_submodule(name).state_dict().values():
            if tensor.dim():  # all but the counter of batches
                tensor.copy_(tensor.index_select(0, order))
