"""``nas data check``: data sets looked over, reported in tables, JSON and pictures."""

from __future__ import annotations

from pathlib import Path

from search_spaces import UnavailableError

__all__ = ["run_check"]


def run_check(
    source: Path,
    *,
    images: Path | None,
    skeleton: str | None,
    category: str | None,
    against: Path | None,
    against_images: Path | None,
    output: Path | None,
    pixels: bool,
    as_json: bool,
) -> None:
    """Check a data set, or all those of a recipe, and print what was found."""
    raise UnavailableError("checking data sets is being built")
