"""Fixtures that the whole suite shares."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import nas.data
import supernet.export
from search_spaces.files import write_bytes
from supernet.base import Subnet

# A suite begun by `nohup` or behind `&` is deaf to these signals, and so is every command that tests start.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@contextmanager
def single_thread() -> Iterator[None]:
    """Torch with one thread, for speed on small networks and for equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The tests of the module run with one thread of torch; see :func:`single_thread`."""
    with single_thread():
        yield


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let torch's exporter, which takes seconds, trace equal networks once for all workers of the suite.

    Everything else of an export is done each time: the folding of normalisations before it, the comparison
    with torch after it.
    """
    # Workers' folders lie side by side in the one of the whole suite.
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if base.name.startswith("popen-") else base) / "traced"
    trace = supernet.export._write

    def write(net: Subnet, path: Path, shape: tuple[int, int, int, int], free: bool, opset: int) -> None:
        kind = (type(net), net, net.arch.id, net.output_names, shape, free, opset)
        told = hashlib.blake2b(repr(kind).encode())
        for name, values in net.state_dict().items():
            told.update(repr((name, values.dtype, values.shape)).encode())
            told.update(values.contiguous().numpy().tobytes())
        known = kept / told.hexdigest()[:32]
        if known.exists():
            path.write_bytes(known.read_bytes())
            return
        trace(net, path, shape, free, opset)
        kept.mkdir(exist_ok=True)
        write_bytes(known, path.read_bytes())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(supernet.export, "_write", write)
        yield


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    """Let recipes' people be drawn once in a process: commands open the same data sets over and over."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nas.data, "SyntheticPeople", lru_cache(16)(nas.data.SyntheticPeople))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the optional provided data (goldens, weights, photos), which lies beside the repository."""
    path = (Path(__file__).resolve().parents[1] / ".." / "shared").resolve()
    if not path.is_dir():
        pytest.skip("the optional provided data (folder 'shared' beside the repository) is absent")
    return path
