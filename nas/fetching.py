"""``nas data fetch``: public data sets, downloaded, verified and unpacked so that a recipe can name them.

What is fetched from where is data, see :mod:`nas.public_data`. Below the output folder::

    annotations/, train2017/, ...   what was asked for; appears whole or not at all
    fetched.json                    what was fetched, from where, with which checksums
    downloads/                      archives, and parts of them, until they are unpacked
    .fetch-PART/                    a part on its way out of its archive

Every step can be killed. Downloads go on where they were cut; a part that was not unpacked to its end is
unpacked anew; once everything is on the disk, ``fetched.json`` says so, and only then are files moved to
their places, which the next run finishes if this one cannot.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from nas.archives import members, unpack
from nas.console import note, print_json, print_table, progress_bar
from nas.download import Patience, download, part_of, require_room
from nas.public_data import Part, PublicData, find_public_data, is_web_address
from search_spaces.errors import InputError, RunError, did_you_mean
from search_spaces.files import locked, make_folder, read_json, write_json

__all__ = ["Fetched", "PartStatus", "fetch", "run_fetch", "survey"]

_CHUNK: Final = 1 << 20
_RECORD: Final = "fetched.json"
_FIRST_USE: Final = "nothing: none is published, so this one is noted and later downloads are held against it"

State = Literal["complete", "unpacked", "downloaded", "partly downloaded", "missing"]


@dataclass(frozen=True)
class PartStatus:
    """How far one part is.

    Attributes
    ----------
    name, part
        Which.
    state
        ``unpacked``: all is on the disk, only the last renaming is missing.
    have_bytes
        Bytes of the download that are there.
    """

    name: str
    part: Part
    state: State
    have_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes yet to download; 0 where the size is not known."""
        if self.state in ("complete", "unpacked"):
            return 0
        return max(0, (self.part.size_bytes or 0) - self.have_bytes)


@dataclass(frozen=True)
class Fetched:
    """What a folder holds after :func:`fetch`.

    Attributes
    ----------
    folder
        Where.
    record
        What ``fetched.json`` says of each part: URL, size, checksums, what they were held against.
    anew
        Parts that were fetched by this very call.
    """

    folder: Path
    record: dict[str, Any]
    anew: tuple[str, ...]


def survey(
    source: PublicData, name: str, folder: Path, parts: Sequence[str] | None = None
) -> list[PartStatus]:
    """Return how far each part is; write nothing. Parameters as of :func:`fetch`.

    Raises
    ------
    InputError
        If a part is unknown.
    RunError
        If what stands in the folder is not what was fetched.
    """
    record = _read_record(folder, name)
    found = []
    for short, part in _chosen(source, name, parts).items():
        noted = record.get(short, {})
        archive = folder / "downloads" / part.name
        state: State = "missing"
        have = 0
        places = (folder, _staging(folder, short))
        if noted.get("state") == "unpacked" and all(
            any((place / path).exists() for place in places) for path in part.makes
        ):
            state, have = "unpacked", noted["size_bytes"]
        elif noted.get("state") == "complete" and _stands(folder, noted["makes"]):
            state, have = "complete", noted["size_bytes"]
        elif archive.is_file():
            state, have = "downloaded", archive.stat().st_size
        elif part_of(archive).is_file():
            state, have = "partly downloaded", part_of(archive).stat().st_size
        found.append(PartStatus(short, part, state, have))
    return found


def _chosen(source: PublicData, name: str, parts: Sequence[str] | None) -> dict[str, Part]:
    for wanted in parts or ():
        if wanted not in source.parts:
            raise InputError(f"'{name}' has no part '{wanted}'{did_you_mean(wanted, source.parts)}")
    return {short: part for short, part in source.parts.items() if parts is None or short in parts}


def fetch(
    source: PublicData,
    name: str,
    folder: str | Path,
    *,
    parts: Sequence[str] | None = None,
    keep_archives: bool = False,
    mirror: str | None = None,
    patience: Patience | None = None,
) -> Fetched:
    """Fetch a data set, or what is missing of it, into ``folder``.

    Parameters
    ----------
    source, name
        Which; see :func:`nas.public_data.find_public_data`.
    folder
        Where; made if absent.
    parts
        Names of parts; all by default.
    keep_archives
        Leave the downloads in ``downloads/`` once they are unpacked.
    mirror
        URL under which another host has the same files.
    patience
        When to give up on a server.

    Raises
    ------
    InputError
        If a part or the mirror is no such thing.
    UnavailableError
        If a server cannot be reached or refuses.
    RunError
        If another fetch is at work, the disk is too small, the folder cannot be written to, something else
        is in the way, or what came is not what was expected; one line says which, and what to do.
    """
    folder = Path(folder)
    if mirror is not None and not is_web_address(mirror):
        raise InputError(f"--mirror takes a web address (http or https), not '{mirror}'")
    _chosen(source, name, parts)
    note(f"{source.title}\nlicence: {source.licence}\nfrom {source.homepage} to {folder}")
    make_folder(folder)
    anew = []
    with locked(folder / ".fetch.lock", f"another fetch is at work in '{folder}'; wait for it or stop it"):
        statuses = [s for s in survey(source, name, folder, parts) if s.state != "complete"]
        _require_room(statuses, folder, keep_archives)
        for status in statuses:
            _Fetch(name, status, folder, mirror, patience).run(keep_archives)
            anew.append(status.name)
        return Fetched(folder, _read_record(folder, name), tuple(anew))


def _require_room(statuses: Sequence[PartStatus], folder: Path, keep_archives: bool) -> None:
    """Refuse to begin what cannot end: pictures do not shrink in an archive, so each part counts twice."""
    used = peak = 0
    for status in statuses:
        used += status.missing_bytes
        size = 0 if status.state == "unpacked" else status.part.size_bytes or 0
        used += size
        peak = max(peak, used)
        used -= 0 if keep_archives else size
    require_room(folder, peak, "fetching and unpacking this")


def _read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return what is noted of each part of the data set ``name``."""
    path = folder / _RECORD
    if not path.exists():
        return {}
    found = read_json(path)
    try:
        held, parts = found["data_set"], {str(part): dict(noted) for part, noted in found["parts"].items()}
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        raise RunError(f"'{path}' is damaged; delete it, and what was fetched, to start over") from None
    if held != name:
        raise RunError(f"'{folder}' holds the data set '{held}'; choose another --output for '{name}'")
    return parts


def _staging(folder: Path, part: str) -> Path:
    """Return where a part stands before it is moved to its places."""
    return folder / f".fetch-{part}"


def _count(path: Path) -> dict[str, int]:
    """Return how many files a path is, and of a single one the size."""
    if path.is_file():
        return {"files": 1, "bytes": path.stat().st_size}
    return {"files": sum(len(files) for _, _, files in os.walk(path))}


def _stands(folder: Path, makes: Mapping[str, Any]) -> bool:
    """Return whether everything that was fetched is still there; False if any of it was removed as a whole.

    Raises
    ------
    RunError
        If something of it is not as it was.
    """
    if not all((folder / path).exists() for path in makes):
        return False
    for path, noted in makes.items():
        found = _count(folder / path)
        if found["files"] < noted["files"] or found.get("bytes") != noted.get("bytes"):
            said = ", ".join(f"{noted[key]:,} {key} then and {found.get(key, 0):,} now" for key in noted)
            raise RunError(
                f"'{folder / path}' is not as it was fetched ({said}): move it away, and the same command"
                " fetches it anew"
            )
    return True


class _Fetch:
    """One part on its way."""

    def __init__(
        self, data_set: str, status: PartStatus, folder: Path, mirror: str | None, patience: Patience | None
    ) -> None:
        self.data_set, self.name, self.part, self.state = data_set, status.name, status.part, status.state
        self.folder, self.patience = folder, patience
        self.url = self.part.address(mirror)
        self.archive = folder / "downloads" / self.part.name
        self.staging = _staging(folder, self.name)

    def run(self, keep_archive: bool) -> None:
        """Bring the part from whatever state it is in to its place."""
        if self.state != "unpacked":
            shutil.rmtree(self.staging, ignore_errors=True)
            for path in self.part.makes:
                if (self.folder / path).exists():
                    raise RunError(
                        f"'{self.folder / path}' is in the way, and was not fetched by this command: move it"
                        " away, or choose another --output"
                    )
            if not self.archive.exists():
                self._download()
            noted = self._verify()
            try:
                self._unpack()
            except RunError:
                shutil.rmtree(self.staging, ignore_errors=True)
                raise
            if noted["held_against"] == _FIRST_USE:
                told = "no checksum is published; noted on first use"
                note(f"{self.part.name}: {told}: sha256 {noted['sha256']}")
            noted["makes"] = {path: _count(self.staging / path) for path in self.part.makes}
            os.sync()  # pictures by the thousand: one sync for all
            self._note({**noted, "state": "unpacked"})
        self._publish()
        self._note({**self._noted(), "state": "complete"})
        if not keep_archive:
            self.archive.unlink(missing_ok=True)
            downloads = self.archive.parent
            if downloads.is_dir() and not any(downloads.iterdir()):
                downloads.rmdir()

    def _noted(self) -> dict[str, Any]:
        return dict(_read_record(self.folder, self.data_set).get(self.name, {}))

    def _note(self, noted: Mapping[str, Any]) -> None:
        parts = {**_read_record(self.folder, self.data_set), self.name: noted}
        write_json(self.folder / _RECORD, {"data_set": self.data_set, "parts": parts})

    def _download(self) -> None:
        part = self.part
        page = part.page or part.url
        by_hand = (
            f"; or download it in a browser from {page} to '{self.archive}' and run the same command again:"
            " it is verified and used"
        )
        with progress_bar(f"{part.name} (MB)") as bar:
            begun, first = time.monotonic(), -1

            def show(done: int, total: int | None) -> None:
                nonlocal first
                first = done if first < 0 or done < first else first
                rate = (done - first) / 1e6 / max(time.monotonic() - begun, 1e-3)
                bar.update(done // 1_000_000, _megabytes(total), f"{rate:.1f} MB/s")

            download(
                self.url,
                self.archive,
                size_bytes=part.size_bytes,
                verified_later=bool(part.published),
                by_hand=by_hand,
                patience=self.patience,
                progress=show,
            )

    def _verify(self) -> dict[str, Any]:
        """Return what is to be noted of the download, after holding its checksums against those known."""
        part, earlier = self.part, self._noted()
        size = self.archive.stat().st_size
        kinds = {"sha256", *part.published}
        found = _digests(self.archive, kinds, size)
        for kind, expected in part.published.items():
            if found[kind] != expected:
                raise RunError(
                    f"'{self.archive}' has the {kind} {found[kind]}, and {expected} is published: it was"
                    " damaged on the way or is another file; delete it and run the same command again"
                )
        if part.published:
            held = f"published {' and '.join(part.published)}"
        elif "sha256" in earlier:
            held = "the sha256 of the first download"
            if found["sha256"] != earlier["sha256"]:
                raise RunError(
                    f"'{self.archive}' has the sha256 {found['sha256']}, and {earlier['sha256']} was noted"
                    " when it was first fetched: the file has changed; if you trust the new one, delete the"
                    f" entry '{self.name}' in '{self.folder / _RECORD}' and run the same command again"
                )
        else:
            held = _FIRST_USE
        return {
            "url": self.url,
            "size_bytes": size,
            **found,
            "held_against": held,
            "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _unpack(self) -> None:
        part = self.part
        if part.zipped:
            entries = members(self.archive, part.makes, part.most_bytes)
            files, unpacked = len(entries), sum(entry.file_size for entry in entries)
        else:
            files, unpacked = 1, self.archive.stat().st_size
        problem = ""
        if files < part.files:
            problem = f"it holds {files:,} files, and {part.files:,} are expected"
        elif unpacked > part.most_bytes:
            problem = f"it is {unpacked:,} bytes long, and at most {part.most_bytes:,} are expected"
        elif part.images is not None and not part.zipped:
            images = _listed_images(self.archive)
            if images != part.images:
                listed = "is no COCO-format file" if images is None else f"lists {images:,} images"
                problem = f"it {listed}, and {part.images:,} images are expected"
        if problem:
            raise RunError(
                f"'{self.archive}' is another file than expected: {problem}; delete it and run the same"
                " command again, with --mirror to take it from elsewhere"
            )
        require_room(self.folder, unpacked, f"unpacking '{part.name}'")
        make_folder(self.staging)
        if part.zipped:
            with progress_bar(f"{part.name}: unpack", files) as bar:
                unpack(self.archive, entries, self.staging, bar.update)
            return
        target = self.staging / part.makes[0]
        make_folder(target.parent)
        try:
            shutil.copyfile(self.archive, target)
        except OSError as error:
            raise RunError(f"cannot write '{target}': {error.strerror}; the download is kept") from None

    def _publish(self) -> None:
        """Move to their places what is not there yet."""
        try:
            for path in self.part.makes:
                if (self.staging / path).exists():
                    make_folder((self.folder / path).parent)
                    (self.staging / path).replace(self.folder / path)
        except OSError as error:
            raise RunError(
                f"cannot move what was unpacked to '{self.folder}': {error.strerror}: move away what is in"
                " the way, and run the same command again"
            ) from None
        shutil.rmtree(self.staging, ignore_errors=True)


def _digests(path: Path, kinds: set[str], size: int) -> dict[str, str]:
    """Return the checksums of a file by the algorithms' names."""
    hashes = {kind: hashlib.new(kind) for kind in sorted(kinds)}
    done = 0
    with path.open("rb") as stream, progress_bar(f"{path.name}: verify (MB)") as bar:
        while chunk := stream.read(_CHUNK):
            for one in hashes.values():
                one.update(chunk)
            done += len(chunk)
            bar.update(done // 1_000_000, _megabytes(size))
    return {kind: one.hexdigest() for kind, one in hashes.items()}


def _listed_images(path: Path) -> int | None:
    """Return how many images a COCO-format file lists; None if it is none."""
    try:
        content = read_json(path)
    except InputError:
        return None
    images = content.get("images") if isinstance(content, dict) else None
    return len(images) if isinstance(images, list) else None


def _megabytes(size: int | None) -> int | None:
    """Return a size for a progress bar, rounded up."""
    return None if size is None else max(1, -(-size // 1_000_000))


# -- the command -------------------------------------------------------------------------------------------


def run_fetch(
    data_set: str,
    *,
    output: Path | None,
    parts: str | None,
    keep_archives: bool,
    mirror: str | None,
    only_list: bool,
    as_json: bool,
) -> None:
    """Do what ``nas data fetch`` does; see there."""
    name, source = find_public_data(data_set)
    folder = output or Path("data") / name
    wanted = None if parts is None else [part.strip() for part in parts.split(",") if part.strip()]
    if wanted == []:
        raise InputError(f"--parts names no part; known: {', '.join(source.parts)}")
    if not only_list:
        fetched = fetch(source, name, folder, parts=wanted, keep_archives=keep_archives, mirror=mirror)
        note(
            f"fetched {', '.join(fetched.anew)}" if fetched.anew else "everything asked for is there already"
        )
    statuses = survey(source, name, folder, wanted)
    recipe = source.recipe_in(folder)
    checks = [
        shlex.join(["nas", "data", "check", data["annotations"], "--images", data["images"]])
        for data in recipe.get("data", {}).values()
    ]
    if as_json:
        record = _read_record(folder, name)
        listed = {status.name: _told(status, mirror, record.get(status.name)) for status in statuses}
        facts = {"data_set": name, "folder": str(folder), "homepage": source.homepage}
        print_json({**facts, "licence": source.licence, "parts": listed, "recipe": recipe, "check": checks})
        return
    _show(f"{name}, in {folder}", statuses)
    if only_list:
        print(f"{source.title}\n{source.homepage}\nlicence: {source.licence}")
        for status in statuses:
            digests = "".join(f"\n  {kind} {value}" for kind, value in status.part.published.items())
            told = f"\n  {status.part.sources}" if status.part.sources else ""
            print(f"\n{status.name}: {status.part.address(mirror)}{digests}{told}")
    if recipe:
        print(f"\nIn a recipe:\n\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}")
        print(
            "\n".join(["To see what is in it, and whether all is well:\n", *(f"  {line}" for line in checks)])
        )
    elif not only_list:
        lacking = [status.name for status in survey(source, name, folder) if status.state != "complete"]
        if lacking:
            print(f"\nA recipe needs the rest, too: run the command for {', '.join(lacking)}.")


def _told(status: PartStatus, mirror: str | None, noted: dict[str, Any] | None) -> dict[str, Any]:
    """Return one part for ``--json``."""
    part = status.part
    return {
        "state": status.state,
        "url": part.address(mirror),
        "have_bytes": status.have_bytes,
        "size_bytes": part.size_bytes,
        "published": part.published,
        "sources": part.sources,
        "makes": list(part.makes),
        "fetched": noted if status.state == "complete" else None,
    }


def _show(title: str, statuses: Sequence[PartStatus]) -> None:
    rows = []
    for status in statuses:
        part = status.part
        size = "?" if part.size_bytes is None else f"{part.size_bytes / 1e6:,.1f}"
        checksum = " and ".join(part.published) or "none published"
        far = f", {status.have_bytes / 1e6:,.1f} MB" if status.state == "partly downloaded" else ""
        rows.append((status.name, ", ".join(part.makes), size, checksum, status.state + far))
    print_table(title, ("part", "makes", "MB", "checksum", "state"), rows)
