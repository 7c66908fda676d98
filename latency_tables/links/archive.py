"""The agent as one file: the two packages that it needs, zipped so that Python runs them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import latency_tables
import search_spaces

__all__ = ["agent_archive", "agent_name"]

_START = "import sys\n\nfrom latency_tables.links.agent import main\n\nsys.exit(main())\n"
_EMPTY = frozenset(
    {"search_spaces/__init__.py", "latency_tables/__init__.py", "latency_tables/links/__init__.py"}
)
"""These gather names for users, and would need packages that the device does not have."""


def agent_archive() -> bytes:
    """Return the archive; equal sources give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [("__main__.py", _START.encode()), *_modules()]:
            # No times, no rights: nothing but names and sources goes into the digest.
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def agent_name(archive: bytes) -> str:
    """Return the file's name on the device: another one for every version."""
    return f"agent-{hashlib.sha256(archive).hexdigest()[:16]}.pyz"


def _modules() -> Iterator[tuple[str, bytes]]:
    for package in (latency_tables, search_spaces):
        (root,) = map(Path, package.__path__)
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent).as_posix()
            yield name, b"" if name in _EMPTY else path.read_bytes()
