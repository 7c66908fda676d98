"""Reading and writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO

import yaml

from search_spaces.errors import InputError, RunError, did_you_mean, shown

__all__ = [
    "MOST_BYTES",
    "MOST_PIXELS",
    "append_whole",
    "atomic_folder",
    "atomic_path",
    "check_keys",
    "check_no_link",
    "is_free",
    "leftovers",
    "locked",
    "locked_folder",
    "make_folder",
    "parse_yaml",
    "put_in_place",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "remove_leftovers",
    "room_for_it",
    "size_of",
    "sweep",
    "write_bytes",
    "write_json",
    "write_text",
    "write_texts",
    "write_yaml",
    "yaml_text",
]

MOST_BYTES: Final = 2 << 30
"""Largest file that is read at once; annotation files of public data sets have half a gigabyte at most."""
MOST_PIXELS: Final = 1 << 28
"""Most pixels of a picture that is decoded, 16,384 x 16,384: files of a few bytes may claim any number."""
_MOST_YAML_BYTES: Final = 16 << 20
_MOST_YAML_NODES: Final = 1_000_000
"""Most values in a YAML file, those behind aliases counted each time they are named."""


def make_folder(path: str | Path) -> Path:
    """Make the folder ``path`` and those above it, where they are missing; return it.

    Raises
    ------
    RunError
        If that is not possible.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write to {path}: {error.strerror}; check that it is a folder and writable"
        ) from None
    return path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block succeeds it is synced and renamed to ``path``.

    When the block raises, the temporary file is removed and ``path`` keeps its former content. The
    temporary name keeps the suffix of ``path``, for writers that choose a format by it. It is held while the
    block runs, so that :func:`sweep` tells it from what a kill has left.

    Raises
    ------
    RunError
        If the directory cannot be written to.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:80]}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise RunError(
            f"cannot write to {path.parent}: {error.strerror}; check that it exists and is writable"
        ) from None
    temporary = Path(name)
    try:
        _hold(handle)
        yield temporary
        put_in_place(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from None
    finally:
        os.close(handle)
        with suppress(OSError):  # what went wrong first is told
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; when the block succeeds it takes the place of ``path``.

    When the block raises, the temporary folder is removed and ``path`` stays as it was. A kill at any moment
    leaves the former folder or the new one; what else it leaves, :func:`sweep` removes.

    Raises
    ------
    RunError
        If the folder around it cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        building = Path(tempfile.mkdtemp(prefix=f".{path.name[:80]}-", dir=path.parent))
    except OSError as error:
        raise RunError(
            f"cannot write to '{path.parent}': {error.strerror}; see that it can be written, or choose"
            " another folder"
        ) from None
    former = building.with_name(f"{building.name}{_FORMER}{path.name}")
    try:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, building, ignore_errors=True)
            handle = os.open(building, os.O_RDONLY)
            stack.callback(os.close, handle)
            _hold(handle)
            yield building
            umask = os.umask(0)
            os.umask(umask)
            building.chmod(0o777 & ~umask)
            if path.exists():
                path.replace(former)
            try:
                building.replace(path)
            except BaseException:
                if former.exists() and not path.exists():
                    former.replace(path)
                raise
            shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from None


def _hold(handle: int) -> None:
    with suppress(OSError):  # a file system without locks: sweep() cannot hold it either, and leaves it alone
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_DRAWN: Final = 8
"""Letters that a temporary name ends with."""

_FORMER: Final = ".former-"
_TEMPORARY: Final = re.compile(r"\..*-[a-z0-9_]{8}(\.[^.]+)?")


def leftovers(folder: Path) -> list[Path]:
    """Return what kills have left in a folder, not those below it: temporary files and folders of nobody.

    They are those that :func:`atomic_path` and :func:`atomic_folder` make and no process holds.
    """
    found = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            name = path.name.partition(_FORMER)[0]
            ours = _TEMPORARY.fullmatch(name) is not None and path.suffix != ".lock"
            if ours and not path.is_symlink() and is_free(path):
                found.append(path)
    return found


def sweep(folder: Path, name: str = "") -> int:
    """Remove :func:`leftovers`, those of one ``name`` alone where it is given; return the number of bytes.

    Where a kill fell between the two renamings of :func:`atomic_folder`, the former folder is put back.
    """
    freed = 0
    for path in leftovers(folder):
        temporary, mark, former = path.name.partition(_FORMER)
        if name and temporary[:-_DRAWN] != f".{name[:80]}-":
            continue
        with suppress(OSError):
            if mark and former and not (folder / former).exists():
                path.replace(folder / former)
                continue
            freed += size_of(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return freed


def is_free(path: Path) -> bool:
    """Return whether no process holds a file or folder (see :func:`locked`); what cannot be asked is held."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            return path.lstat().st_size
        return 0
    total = 0
    for around, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += (Path(around) / name).lstat().st_size
    return total


def put_in_place(temporary: Path, path: Path) -> None:
    """Force a complete file to the disk, and rename it to ``path`` with the rights of any new file.

    Raises
    ------
    OSError
        If the system refuses.
    """
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files that a kill during :func:`atomic_path` of ``path`` has left beside it.

    Nobody else may be writing it meanwhile.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.stem[:80])}-????????{glob.escape(path.suffix)}"):
        left.unlink(missing_ok=True)


_TO_HOLD: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
)
"""No link is followed, since what it leads to would be written; no pipe is waited for."""


def check_no_link(path: Path) -> None:
    """Refuse to write through a link.

    Raises
    ------
    RunError
        If ``path`` is one.
    """
    if path.is_symlink():
        raise RunError(f"'{path}' is a link, which could lead anywhere; delete it")


@contextmanager
def locked(path: str | Path, busy: str, patience_s: float = 0.0) -> Iterator[TextIO]:
    """Hold the file ``path``, open to append and made if absent, against every other holder.

    However the process ends, kill -9 included, the system releases it. The file stays: deleting it could
    leave two processes holding two files of one name.

    Parameters
    ----------
    path
        The file; its folder must be there.
    busy
        What the error says while somebody else holds it.
    patience_s
        For how long it is waited for, seconds.

    Raises
    ------
    RunError
        If it is held, is a link, or cannot be opened.
    """
    path = Path(path)
    try:
        stream = os.fdopen(os.open(path, _TO_HOLD, 0o666), "a", encoding="utf-8")
    except OSError as error:
        check_no_link(path)
        raise RunError(
            f"cannot write to '{path}': {error.strerror}; check that its folder exists and is writable"
        ) from None
    with stream:
        _lock(stream.fileno(), path, busy, patience_s)
        yield stream


@contextmanager
def locked_folder(folder: str | Path, busy: str) -> Iterator[None]:
    """Hold a folder against every other command that would write into it; no file is left in it.

    Raises
    ------
    RunError
        As :func:`locked`.
    """
    folder = make_folder(folder)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"cannot read '{folder}': {error.strerror}; check its rights") from None
    try:
        _lock(handle, folder, busy)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path, busy: str, patience_s: float = 0.0) -> None:
    attempts = max(_ATTEMPTS, round(patience_s / _PATIENCE_S))
    for attempt in range(attempts):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt < attempts - 1:  # is_free() holds a file for an instant
                time.sleep(_PATIENCE_S)
        except OSError as error:
            raise RunError(f"cannot lock '{path}': {error.strerror}; take a folder on a local disk") from None
    raise RunError(busy)


_ATTEMPTS: Final = 4
_PATIENCE_S: Final = 0.03


def append_whole(handle: int, data: bytes) -> None:
    """Append ``data`` to an open file, all of it or nothing: what a full disk took of it is cut off again.

    Nothing is kept in memory for later, so that closing the file cannot fail for it.

    Parameters
    ----------
    handle
        Descriptor of a file opened to append; nobody else may be writing it meanwhile.
    data
        What to append.

    Raises
    ------
    OSError
        If the system does not take it.
    """
    before = os.fstat(handle).st_size
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(handle, left) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, before)
        raise


def room_for_it(error: OSError) -> str:
    """Return what to do about a file that could not be written, before the same command runs again."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free space there" if full else "see that it can be written"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write several files that belong together: all are on the disk before the first one is renamed.

    So a full disk changes none of them; they are renamed one after the other, in the order given.
    """
    with ExitStack() as stack:
        for path, text in reversed(list(texts.items())):
            temporary = stack.enter_context(atomic_path(path))
            with temporary.open("wb") as stream:
                stream.write(text.encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_yaml(path: str | Path, value: object) -> None:
    """Write ``value`` to ``path`` as YAML in the order given, atomically."""
    write_text(path, yaml_text(value))


def yaml_text(value: object) -> str:
    """Return ``value`` as YAML in the order given."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text


def read_bytes(path: str | Path, what: str = "file", most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Nothing is waited for: a pipe or a device, which may never end or never begin, is refused.

    Raises
    ------
    InputError
        If the file is missing, is a directory, a pipe or a device, is too large or cannot be read. ``what``
        names its role.
    """
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{what} '{path}' is a pipe or a device; a regular file is needed")
            content = stream.read(most + 1) if facts.st_size <= most else b""
    except FileNotFoundError:
        raise InputError(f"{what} '{path}' does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{what} '{path}' is a directory; a file is needed") from None
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{what} {str(path)!r} cannot be read: {error}") from None
    size = max(facts.st_size, len(content))
    if size > most:
        raise InputError(f"{what} '{path}' has {size:,} bytes or more; at most {most:,} are read")
    return content


def read_text(path: str | Path, what: str = "file", most: int = MOST_BYTES) -> str:
    """Return the text of ``path``.

    Raises
    ------
    InputError
        As :func:`read_bytes`, or if it is not UTF-8.
    """
    content = read_bytes(path, what, most)
    try:
        text = content.decode("utf-8-sig")  # Windows tools put a mark in front
    except UnicodeDecodeError as error:
        raise InputError(f"{what} '{path}' is not a UTF-8 text file (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, what: str = "file") -> Any:
    """Return the JSON value in ``path``; errors name the file, line and column (:class:`InputError`)."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{what} '{path}' is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{what} '{path}' is not usable JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{what} '{path}' is not usable JSON: it is nested too deeply") from None


def read_yaml(path: str | Path, what: str = "file") -> Any:
    """Return the YAML value in ``path`` (safe subset); an :class:`InputError` names file and line."""
    return parse_yaml(read_text(path, what, _MOST_YAML_BYTES), f"{what} '{path}'")


class _Loader(yaml.SafeLoader):
    """The safe subset, without what would be lost or could not be shown: keys twice, endless numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' stands there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if value.bit_length() > _MOST_BITS:
            raise yaml.constructor.ConstructorError(None, None, "a number is too large", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_MOST_BITS = 4096


def _check_size(root: yaml.Node, where: str) -> None:
    """Refuse a document that its aliases make endless, or larger than memory and patience."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in open_nodes:
            raise InputError(f"{where} contains itself through a YAML alias")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            pairs = node.value if isinstance(node, yaml.MappingNode) else ((each,) for each in node.value)
            sizes[id(node)] = 1 + sum(size(each) for pair in pairs for each in pair)
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (found := size(root)) > _MOST_YAML_NODES:
        raise InputError(
            f"{where} is not usable YAML: its aliases make {shown(found)} values of it; at most"
            f" {_MOST_YAML_NODES:,} are read"
        )


def parse_yaml(text: str, where: str) -> Any:
    """Return the YAML value in ``text`` (safe subset); errors name ``where`` and the line (InputError)."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or "cannot be parsed").split())
        raise InputError(f"{where} is not valid YAML: {problem}{line}") from None
    except RecursionError:
        raise InputError(f"{where} is not usable YAML: it is nested too deeply") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML lets its constructors' errors through: '2024-13-45' is no date, '!!bool x' no boolean.
        raise InputError(f"{where} is not usable YAML: a value does not fit its tag ({error})") from None


def check_keys(mapping: object, known: Mapping[str, object] | set[str], where: str) -> dict[str, Any]:
    """Return ``mapping`` as a dict after checking that it is one and that all its keys are known.

    Raises
    ------
    InputError
        Naming ``where``, the unknown key and the nearest known one.
    """
    if not isinstance(mapping, dict):
        raise InputError(f"{where} must be a mapping of names to values, not {type(mapping).__name__}")
    for key in mapping:
        if key not in known:
            raise InputError(f"{where} has an unknown key '{key}'{did_you_mean(str(key), known)}")
    return mapping
