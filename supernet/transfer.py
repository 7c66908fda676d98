"""From a pretrained network to the weights that a supernet starts with.

A supernet holds the weights of its widest arch. A pretrained network covers a part of them: so many
channels, the first blocks of each stage, the middle of the kernels. :func:`start_from` puts it there, the
important channels first, so that ``supernet(x, net.arch)`` equals ``net(x)``; larger kernels begin with zeros
around the network's, which is the same function once more; everything else stays as fresh as it was.

Where the network predicts other joints, its output layers are taken row by row, by the names of the joints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces import Arch, InputError
from supernet.base import Subnet, Supernet, param_count
from supernet.elastic import first_part
from supernet.importance import order_channels_by_importance
from supernet.pose.skeleton import Skeleton, joint_map

__all__ = ["Started", "cut_to", "start_from", "with_joints"]


@dataclass(frozen=True)
class Started:
    """What a supernet took from a pretrained network.

    Attributes
    ----------
    weights, of
        How many weights it took, and how many it has; the others are fresh.
    covered
        In words, every value of which the network has less than the widest arch.
    cut
        In words, every value of which it has more.
    joints
        In words, which joints were taken, where they are not all.
    """

    weights: int
    of: int
    covered: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    joints: str = ""

    def lines(self) -> tuple[str, ...]:
        """Return the report for people."""
        found = [f"{self.weights:,} of {self.of:,} weights ({self.weights / self.of:.0%}); the rest is fresh"]
        if self.covered:
            found.append("covered: " + ", ".join(self.covered))
        if self.cut:
            found.append("cut to the most important channels and the first blocks: " + ", ".join(self.cut))
        if self.joints:
            found.append(self.joints)
        return tuple(found)


def start_from(
    supernet: Supernet,
    net: Subnet,
    *,
    joints: tuple[Skeleton, Skeleton] | None = None,
    layers: Callable[[str], bool] | None = None,
    may_cut: bool = False,
    by: str = "reading",
    images: Iterable[Tensor] = (),
) -> Started:
    """Start a fresh supernet from a pretrained plain network; return what was taken.

    Parameters
    ----------
    supernet
        Changed in place.
    net
        The pretrained network; left as it is.
    joints
        What the network predicts, and what the supernet is to predict; None where both are the same.
    layers
        Tells by name which layers are taken; by default all.
    may_cut
        Whether a network that is larger than the widest arch is cut to it, which changes its function. What a
        value of 0 stands for, a layer that is not there, is cut only where its outputs are not taken.
    by, images
        How its channels are ordered, see :func:`supernet.importance.order_channels_by_importance`; ``kept``
        leaves their order.

    Raises
    ------
    InputError
        If the network does not fit, or shares no joint with the supernet; nothing changes.
    """
    most = supernet.widest
    if not may_cut:
        supernet.check(net.arch)
    took = layers or (lambda name: True)
    given = net.arch
    gone = [name for name, value in given.values if value and most[name] == 0]
    if gone and any(took(layer) for layer in net.output_layers):
        raise InputError(
            "this supernet lacks what the network's outputs rest on: "
            + ", ".join(f"{name} = 0, not {given[name]}" for name in gone)
        )
    convolutions = [name for name in _convolutions(net) if took(name)]
    net = cut_to(net if by == "kept" else order_channels_by_importance(net, by, images), most)
    told = ""
    if joints is not None:
        source, target = joints
        index = joint_map(source, target)
        if not (index >= 0).any():
            raise InputError(
                f"none of the network's joints ({', '.join(source.joints)}) is one of the data's"
                f" ({', '.join(target.joints)})"
            )
        net = with_joints(net, index.tolist(), supernet.extract(net.arch))
        lacking = [name for name, at in zip(target.joints, index, strict=True) if at < 0]
        if lacking:
            told = f"joints: {len(target) - len(lacking)} by name; fresh: {', '.join(lacking)}"
    supernet.load_plain(net, layers, around=True)
    held = sum(p.numel() for name, p in net.named_parameters() if took(name.rpartition(".")[0]))
    less: list[str] = []
    more: list[str] = []
    for name, value in given.values:
        whole = most[name]
        room = name.rpartition(".")[0] or name.partition("_")[0]
        if (
            name == "resolution"
            or value == whole
            or not any(layer.startswith(room) for layer in convolutions)
        ):
            continue
        assert isinstance(value, int) and isinstance(whole, int)
        (less if value < whole else more).append(
            f"{name} {value} of {whole}" if value < whole else f"{name} {value} to {whole}"
        )
    return Started(held, param_count(supernet), tuple(less), tuple(more), told)


def _convolutions(net: Subnet) -> list[str]:
    return [name.removesuffix(".weight") for name, p in net.named_parameters() if p.dim() == 4]


def cut_to(net: Subnet, most: Arch) -> Subnet:
    """Return the network cut to what is nowhere larger than ``most``; itself where nothing is.

    Its first channels, first blocks and the middle of its kernels, as a supernet would take them. What only
    the cut network has (an output behind fewer deconv steps) is zero.
    """
    smaller = {name: min(int(value), most.number(name)) for name, value in net.arch.values}
    smaller["resolution"] = net.arch.number("resolution")
    arch = net.arch.family.arch(smaller)
    if arch == net.arch:
        return net
    like = next(net.parameters())
    with torch.device("meta"):
        cut = type(net)(arch, net.joints)
    cut.to_empty(device=like.device).to(like.dtype)
    wholes = dict(net.named_modules())
    with torch.no_grad():
        for name, module in cut.named_modules():
            own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            own |= module.named_buffers(recurse=False)
            parts = first_part(wholes[name], module) if own and name in wholes else {}
            for key, tensor in own.items():
                if key in parts:
                    tensor.copy_(parts[key])
                else:
                    tensor.zero_()
    return cut.train(net.training)


@torch.no_grad()
def with_joints(net: Subnet, index: Sequence[int], fresh: Subnet) -> Subnet:
    """Return a network that predicts other joints: ``net`` in all but its output layers.

    Parameters
    ----------
    net
        Predicts the joints that are known.
    index
        For each joint wanted, its place among them, or -1 (see :func:`supernet.pose.skeleton.joint_map`).
    fresh
        A network of the same arch that predicts ``len(index)`` joints; what it holds for those that ``net``
        lacks is kept. Changed in place and returned.
    """
    known = [place for place, at in enumerate(index) if at >= 0]
    taken = [index[place] for place in known]
    theirs = net.state_dict()
    for name, mine in fresh.state_dict().items():
        if name.rpartition(".")[0] in net.output_layers:
            # Rows come in groups of all joints: heatmaps, and where there are any, tags.
            own, given = mine.unflatten(0, (-1, len(index))), theirs[name].unflatten(0, (-1, net.joints))
            own[:, known] = given[:, taken]
        else:
            mine.copy_(theirs[name])
    return fresh
