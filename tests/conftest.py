"""Fixtures that the whole suite shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch


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


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the optional provided data (goldens, weights, photos), which lies beside the repository."""
    path = (Path(__file__).resolve().parents[1] / ".." / "shared").resolve()
    if not path.is_dir():
        pytest.skip("the optional provided data (folder 'shared' beside the repository) is absent")
    return path
