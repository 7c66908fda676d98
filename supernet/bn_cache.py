"""BN statistics of subnets on disk: a network that was recalibrated before is not recalibrated again.

The same networks are met again and again: the largest and smallest, the one that a search chose and that is
then emitted, those whose ranking is checked. Statistics are filed under a digest of everything that they
follow from (the network's own weights, the training images, the kind of device, the version of the
algorithm), so what is found is what would be computed, whatever became of the supernet meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces import InputError, RunError
from supernet import bn
from supernet.base import Subnet
from supernet.state import read_tensors, write_tensors

__all__ = ["StatisticsCache"]

CACHE_BYTES: Final = 256 * 2**20
"""Most statistics that are kept by default, bytes; those of LitePose-M take a quarter of a megabyte."""
_KEPT: Final = ("running_mean", "running_var")


class StatisticsCache:
    """Recalibrated statistics in a folder; those not asked for longest are dropped.

    It is only ever a shortcut: a file that cannot be read is as good as none, and a folder that cannot be
    written to keeps nothing. Several processes may share it.

    Parameters
    ----------
    folder
        Where the files are; made with the first of them, if the folder around it exists.
    limit_bytes
        Most that is kept.
    """

    def __init__(self, folder: Path, limit_bytes: int = CACHE_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def key(self, network: Subnet, images: str) -> str:
        """Return the digest of what the statistics of ``network`` on training images follow from.

        Parameters
        ----------
        network
            As it was extracted: everything of it but its running statistics counts.
        images
            Tells the images, such as :attr:`supernet.evaluator.CalibrationImages.fingerprint`.
        """
        device = next(network.parameters()).device.type
        digest = hashlib.blake2b(digest_size=16)
        versions = (torch.__version__, bn.ALGORITHM)
        digest.update(repr((network.arch.id, network.joints, images, device, versions)).encode())
        for name, tensor in network.state_dict().items():
            if name.rpartition(".")[2] in (*_KEPT, "num_batches_tracked"):
                continue
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def restore(self, network: Subnet, key: str) -> bool:
        """Give the network the statistics under ``key``; return whether there were any."""
        path = self._path(key)
        try:
            tensors, _ = read_tensors(path, "statistics")
        except InputError:
            return False
        buffers = dict(_statistics(network))
        if {k: v.shape for k, v in buffers.items()} != {k: v.shape for k, v in tensors.items()}:
            return False
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name])
        with contextlib.suppress(OSError):
            path.touch()  # asked for just now
        return True

    def keep(self, network: Subnet, key: str) -> None:
        """Keep the statistics of a recalibrated network under ``key``."""
        try:
            if not self.folder.parent.is_dir():
                return
            self.folder.mkdir(exist_ok=True)
            write_tensors(self._path(key), dict(_statistics(network)), {"kind": "statistics"})
            self._trim()
        except (
            OSError,
            RunError,
        ):  # a full disk, a folder that is not ours: the next one computes them itself
            return

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _trim(self) -> None:
        """Drop the files not asked for longest until the others fit."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process dropped it
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:
            if held <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size


def _statistics(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the running statistics of every normalisation by name."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            for kept in _KEPT:
                yield f"{name}.{kept}", getattr(module, kept)
