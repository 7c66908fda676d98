"""Zip archives from elsewhere, unpacked with distrust: nothing is written outside the folder named."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from search_spaces.errors import RunError

__all__ = ["members", "safe_path", "unpack"]

_CHUNK: Final = 1 << 20


def safe_path(name: str) -> PurePosixPath | None:
    """Return a relative path that stays below its folder, None where ``name`` is none."""
    if not name or "\\" in name or "\0" in name or name.startswith("/") or name[1:2] == ":":
        return None
    if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
        return None
    return PurePosixPath(name)


def members(archive: Path, wanted: Sequence[str], most_bytes: int) -> list[zipfile.ZipInfo]:
    """Return the files of an archive that are, or lie below, one of the paths ``wanted``.

    Raises
    ------
    RunError
        If it is no complete archive, if any member has a name that leads out of the folder, is a link or a
        device, is encrypted or stands there twice, if something wanted is missing, or if what is wanted would
        unpack to more than ``most_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            found = opened.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise RunError(
            f"'{archive}' is not a complete zip archive ({error}); delete it and run the same command again"
        ) from None
    chosen: dict[str, zipfile.ZipInfo] = {}
    for entry in found:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = None
        if safe_path(entry.filename) is None:
            problem = "leads out of the folder"
        elif kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a device"
        elif entry.flag_bits & 1:
            problem = "is encrypted"
        elif entry.filename in chosen:
            problem = "is there twice"
        if problem is not None:
            raise RunError(f"'{archive}' is refused: its member {entry.filename!r} {problem}")
        if not entry.is_dir() and _below(entry.filename, wanted):
            chosen[entry.filename] = entry
    for path in wanted:
        if not any(_below(name, (path,)) for name in chosen):
            raise RunError(f"'{archive}' is refused: it does not hold '{path}', so it is another archive")
    unpacked = sum(entry.file_size for entry in chosen.values())
    if unpacked > most_bytes:
        raise RunError(
            f"'{archive}' is refused: it would unpack to {unpacked:,} bytes, and at most {most_bytes:,} are"
            " expected"
        )
    return list(chosen.values())


def _below(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(path + "/") for path in paths)


def unpack(
    archive: Path,
    entries: Sequence[zipfile.ZipInfo],
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write ``entries`` (of :func:`members`) below ``folder``; each is held against its CRC and its size.

    Raises
    ------
    RunError
        If a member is damaged, or cannot be written.
    """
    made: set[Path] = set()
    try:
        with zipfile.ZipFile(archive) as opened:
            for done, entry in enumerate(entries):
                target = folder / entry.filename
                if target.parent not in made:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    made.add(target.parent)
                written = 0
                with opened.open(entry) as source, target.open("xb") as stream:
                    while chunk := source.read(_CHUNK):
                        written += len(chunk)
                        stream.write(chunk)
                if written != entry.file_size:
                    raise zipfile.BadZipFile(f"{entry.filename} ends after {written:,} bytes")
                progress(done + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:  # also of its names
        raise RunError(
            f"'{archive}' is damaged ({error}); delete it and run the same command again"
        ) from None
    except FileExistsError as error:
        raise RunError(f"'{archive}' is refused: '{error.filename}' is in it twice") from None
    except OSError as error:
        raise RunError(
            f"cannot unpack '{archive}' to '{folder}': {error.strerror or error}; the archive is kept: mend"
            " that, and run the same command again"
        ) from None
