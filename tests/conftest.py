"""Fixtures that the whole suite shares."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the optional provided data (goldens, weights, photos), which lies beside the repository."""
    path = (Path(__file__).resolve().parents[1] / ".." / "shared").resolve()
    if not path.is_dir():
        pytest.skip("the optional provided data (folder 'shared' beside the repository) is absent")
    return path
