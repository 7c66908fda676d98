"""Public data sets as data: what they are made of, where that is, and how it is recognised.

The known ones are described in ``public_data.json``; a file of the user's of the same form describes another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nas.archives import safe_path
from nas.config import build
from search_spaces.errors import InputError, did_you_mean
from search_spaces.files import read_json, read_yaml

__all__ = ["Part", "PublicData", "find_public_data", "is_web_address"]


def is_web_address(text: str) -> bool:
    """Whether it is the URL of a web server: http or https, and a host."""
    try:
        parts = urlsplit(text)
    except ValueError:  # such as half of an IPv6 address
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


@dataclass(frozen=True)
class Part:
    """One file of a public data set, and what becomes of it.

    Attributes
    ----------
    url
        Where it is officially handed out.
    makes
        Paths that it becomes: members of the archive (files, or folders with all below them) of just these
        names, or, where the file is no ``.zip``, the one place where it goes.
    files
        How many files those are at least.
    most_bytes
        Most bytes that they may be: more is refused.
    size_bytes, md5, sha256
        Of the file that is downloaded, where they are known.
    images
        How many images a JSON file lists; checked where no checksum is known.
    file
        Name of the download, where the URL does not end in one.
    page
        Page from which a person can download it.
    sources
        Where URL, size and checksums are from.
    """

    url: str
    makes: tuple[str, ...]
    files: int
    most_bytes: int
    size_bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None
    images: int | None = None
    file: str = ""
    page: str | None = None
    sources: str = ""

    def __post_init__(self) -> None:
        if not is_web_address(self.url):
            raise InputError(f"'url' is a web address (http or https), not '{self.url}'")
        for path in (*self.makes, self.name):
            if safe_path(path) is None:
                raise InputError(f"a path below the folder is needed, not '{path}'")
        if "/" in self.name or not self.makes or (not self.zipped and len(self.makes) != 1):
            raise InputError("a part makes at least one path, and one that is no .zip exactly one")
        for kind, digest in self.published.items():
            if len(digest) != 2 * hashlib.new(kind).digest_size or not set(digest) <= set("0123456789abcdef"):
                raise InputError(f"'{kind}' is no such checksum in lower-case hexadecimal: '{digest}'")

    @property
    def name(self) -> str:
        """The download's file name."""
        return self.file or urlsplit(self.url).path.rpartition("/")[2]

    @property
    def zipped(self) -> bool:
        """Whether it is an archive."""
        return self.name.endswith(".zip")

    @property
    def published(self) -> dict[str, str]:
        """The checksums that are known beforehand, by the algorithm's name."""
        return {kind: value for kind, value in (("sha256", self.sha256), ("md5", self.md5)) if value}

    def address(self, mirror: str | None) -> str:
        """Return the URL, or that of the same file on a mirror."""
        if mirror is None:
            return self.url
        parts = urlsplit(self.url)
        return f"{mirror.rstrip('/')}/{self.name if parts.query else parts.path.lstrip('/')}"


@dataclass(frozen=True)
class PublicData:
    """A public data set.

    Attributes
    ----------
    title, homepage, licence
        For people.
    parts
        Its files by short names, in the order in which they are fetched.
    recipe
        The part of a recipe that uses it, with paths below the folder.
    """

    title: str
    homepage: str
    licence: str
    parts: dict[str, Part]
    recipe: dict[str, Any]

    def __post_init__(self) -> None:
        for name in self.parts:
            if safe_path(name) is None or "/" in name or "," in name:
                raise InputError(f"'{name}' is no name of a part: no slash and no comma")
        for which, source in self._sources():
            for field in ("annotations", "images"):
                if safe_path(str(source.get(field, ""))) is None:
                    raise InputError(f"recipe.data.{which}.{field} is a path below the folder")

    def _sources(self) -> list[tuple[str, dict[str, Any]]]:
        data = self.recipe.get("data", {})
        if not isinstance(data, dict) or not all(isinstance(source, dict) for source in data.values()):
            raise InputError("recipe.data is a mapping of train and val to annotations and images")
        return list(data.items())

    def recipe_in(self, folder: Path) -> dict[str, Any]:
        """Return the part of a recipe that uses what stands in ``folder``; empty while something lacks."""
        data = {
            which: {key: str(folder.resolve() / path) for key, path in source.items()}
            for which, source in self._sources()
        }
        paths = [Path(path) for source in data.values() for path in source.values()]
        if not paths or not all(path.exists() for path in paths):
            return {}
        return {**self.recipe, "data": data}


def find_public_data(name: str) -> tuple[str, PublicData]:
    """Return the short name and the description of a known data set, or those in a .json or .yaml file.

    Raises
    ------
    InputError
        If there is none of that name, or the file is malformed.
    """
    if name.endswith((".json", ".yaml", ".yml")):
        values = read_json(name, "data set") if name.endswith(".json") else read_yaml(name, "data set")
        return Path(name).stem, build(PublicData, values, f"data set '{name}'")
    text = resources.files("nas").joinpath("public_data.json").read_text(encoding="utf-8")
    known = json.loads(text)
    if name not in known:
        raise InputError(f"no data set '{name}' can be fetched{did_you_mean(name, known)}")
    return name, build(PublicData, known[name], name)
