"""One file from a web server to the disk: resumed where it was cut, never mixed from two versions.

What has arrived lies in ``NAME.part``; ``NAME.part.json`` says of which URL and which version of the file it
is. A range is asked for with ``If-Range`` (RFC 9110, section 13.1.5), so that a server whose file has
changed sends all of it, and then it is begun anew.
"""

from __future__ import annotations

import errno
import http.client
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from search_spaces.errors import InputError, RunError, UnavailableError
from search_spaces.files import make_folder, read_json, write_json

__all__ = ["Patience", "Progress", "download", "part_of", "require_room"]

Progress = Callable[[int, int | None], None]
"""Told how many bytes there are, of how many (None: the server does not say)."""

_CHUNK: Final = 1 << 18
_PAGE: Final = 1 << 18
"""Most bytes of a web page that are read to see what it says."""
_WORTH_RETRYING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes
    ----------
    timeout_s
        Seconds without a byte after which a connection counts as broken.
    attempts
        Failures in a row, without the file growing, after which it is given up.
    first_wait_s, longest_wait_s
        Seconds before the second attempt; they double from attempt to attempt up to the longest.
    """

    timeout_s: float = 30.0
    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0


class _BrokenError(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, problem: str, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


def part_of(target: Path) -> Path:
    """Return the path of what has arrived of ``target`` so far."""
    return target.with_name(target.name + ".part")


def require_room(folder: Path, size_bytes: int, what: str) -> None:
    """Refuse what the disk of ``folder`` (or of the first folder above that exists) has no room for.

    Raises
    ------
    RunError
        Saying what is needed and what is free.
    """
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size_bytes > free:
        raise RunError(
            f"{what} needs {size_bytes / 1e9:.2f} GB below '{folder}' and {free / 1e9:.2f} GB are free;"
            " make room, or take a folder on another disk with --output"
        )


def download(
    url: str,
    target: Path,
    *,
    size_bytes: int | None = None,
    verified_later: bool = False,
    by_hand: str = "",
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> None:
    """Download ``url`` to ``target``, going on where an earlier call was cut.

    Parameters
    ----------
    url
        http or https. Redirects are followed, but not from https to http. Where a page comes that only asks
        to confirm (Google Drive, on files too large for its virus scan), it is confirmed.
    target
        Appears only once it is complete.
    size_bytes
        Exact size, where it is known: a server that offers another one is refused.
    verified_later
        Whether a published checksum will be compared. Without one, a part is continued only if the server
        says that its file is still the same.
    by_hand
        What to do where the server does not hand out the file, for error messages.
    patience
        When to give up.
    progress
        Told of every chunk.

    Raises
    ------
    UnavailableError
        If the server cannot be reached, refuses, or breaks off too often.
    RunError
        If the file cannot be written, or has another size than expected.
    """
    patience = patience or Patience()
    make_folder(target.parent)
    one = _Download(url, target, size_bytes, verified_later, by_hand, patience, progress or (lambda *_: None))
    farthest, failures = one.have(), 0
    while True:
        try:
            one.attempt()
            break
        except _BrokenError as problem:
            have = one.have()
            failures = 1 if have > farthest else failures + 1
            farthest = max(have, farthest)
            if failures >= patience.attempts:
                raise UnavailableError(
                    f"'{url}': {problem}, {failures} times in a row; the {have:,} bytes that came are kept:"
                    f" run the same command again later, or name a mirror with --mirror{by_hand}"
                ) from None
            wait = patience.first_wait_s * 2.0 ** (failures - 1)
            time.sleep(min(max(wait, problem.wait_s), patience.longest_wait_s))
        except OSError as error:
            what = "the disk is full" if error.errno in _NO_ROOM else (error.strerror or str(error))
            raise RunError(
                f"cannot write '{one.part}': {what}; what came so far is kept: mend that, and run the same"
                " command again"
            ) from None
    try:
        one.part.replace(target)
        one.notes.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write '{target}': {error.strerror}") from None


class _Download:
    """One download: where its part lies, and how one attempt to complete it goes."""

    def __init__(
        self,
        url: str,
        target: Path,
        size_bytes: int | None,
        verified_later: bool,
        by_hand: str,
        patience: Patience,
        progress: Progress,
    ) -> None:
        self.url, self.target, self.size_bytes = url, target, size_bytes
        self.verified_later, self.by_hand = verified_later, by_hand
        self.patience, self.progress = patience, progress
        self.part = part_of(target)
        self.notes = self.part.with_name(self.part.name + ".json")
        self.reached = False
        self.opener = urllib.request.build_opener(_Redirects, urllib.request.HTTPCookieProcessor)
        self.opener.addheaders = [("User-Agent", f"litepose-nas/{metadata.version('litepose-nas')}")]

    def have(self) -> int:
        """Return how many bytes lie in the part."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def attempt(self) -> None:
        """Ask for what is missing, once.

        Raises
        ------
        _BrokenError
            If another attempt may succeed.
        """
        have, known = self.have(), self._known()
        same_place = known.get("url") == self.url
        version = known.get("version") if same_place else None
        whole = self.size_bytes or (known.get("size_bytes") if same_place else None)
        if have and have == whole:
            return
        if not (version or self.verified_later) or (whole is not None and have > whole):
            have = 0  # nothing says that it is a part of this very file
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and version:
            headers["If-Range"] = version
        with self._open(headers) as response:
            total = _length(response)
            offset = 0
            if response.status == 206:
                offset, total = _range(response)
                now = _version(response)
                if (
                    offset != have
                    or (version and now and now != version)
                    or (whole and total not in (None, whole))
                ):
                    self._forget()
                    raise _BrokenError("the server sends another range or another file than was asked for")
            self._check_size(total)
            if total is not None:
                require_room(self.part.parent, total - offset, f"'{self.target.name}'")
            with self.part.open("ab" if offset else "wb") as stream:
                # Only once the part is empty may the notes speak of another version.
                write_json(self.notes, {"url": self.url, "version": _version(response), "size_bytes": total})
                done = self._receive(response, stream, offset, total)
        whole = self.size_bytes if total is None else total
        if whole is not None and done < whole:
            raise _BrokenError(f"the connection was cut after {done:,} of {whole:,} bytes")

    def _receive(self, response: http.client.HTTPResponse, stream: Any, done: int, total: int | None) -> int:
        self.progress(done, total)
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(f"the connection was cut after {done:,} bytes ({_say(error)})") from None
            if not chunk:
                return done
            stream.write(chunk)
            done += len(chunk)
            if self.size_bytes is not None and done > self.size_bytes:
                self._check_size(done)
            self.progress(done, total)

    def _check_size(self, size: int | None) -> None:
        if size is not None and self.size_bytes is not None and size != self.size_bytes:
            raise RunError(
                f"'{self.url}' is {size:,} bytes long and {self.size_bytes:,} are expected: it is another"
                f" file; name a place that has the right one with --mirror{self.by_hand}"
            )

    def _known(self) -> dict[str, Any]:
        """Return what is noted about the part; nothing where that was cut, too."""
        try:
            found = read_json(self.notes) if self.notes.exists() else {}
        except InputError:
            return {}
        return found if isinstance(found, dict) else {}

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    # -- the server's answer --------------------------------------------------------------------------------

    def _open(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Return the response that carries the file, past a page that asks to confirm."""
        response = self._ask(self.url, headers)
        if not _is_page(response) or self.target.suffix in (".html", ".htm"):
            return response
        page = _Page(response)
        if page.confirm is not None:
            response = self._ask(urllib.parse.urljoin(response.url, page.confirm), headers)
            if not _is_page(response):
                return response
            page = _Page(response)
        told = f" titled '{page.title}'" if page.title else ""
        raise UnavailableError(
            f"'{self.url}' answers with a web page{told} in place of the file; name a mirror with"
            f" --mirror{self.by_hand}"
        )

    def _ask(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, headers=headers)
        try:
            response: http.client.HTTPResponse = self.opener.open(request, timeout=self.patience.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
            raise AssertionError from None
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UnavailableError(
                    f"'{url}': the server's certificate is not valid ({reason.verify_message}); name a mirror"
                    f" with --mirror{self.by_hand}"
                ) from None
            if not self.reached and isinstance(reason, socket.gaierror | ConnectionRefusedError):
                raise UnavailableError(
                    f"'{url}' cannot be reached ({_say(reason)}): check the network, or name a mirror with"
                    f" --mirror{self.by_hand}"
                ) from None
            raise _BrokenError(f"no answer ({_say(reason)})") from None
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(f"no answer ({_say(error)})") from None
        self.reached = True
        return response

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Tell an answer that is no success: worth another attempt, or final."""
        self.reached = True
        if error.code == 416:  # there is nothing behind what we have: it is not a part of that file
            self._forget()
            raise _BrokenError("the server's file is shorter than what had come")
        if error.code in _WORTH_RETRYING:
            after = error.headers.get("Retry-After", "")
            wait = float(after) if after.isdecimal() else 0.0
            raise _BrokenError(f"the server answers {error.code} {error.reason}", wait)
        raise UnavailableError(
            f"'{error.url}': the server answers {error.code} {error.reason}; name a mirror with"
            f" --mirror{self.by_hand}"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects within the web that give up no encryption."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise UnavailableError(
                f"'{req.full_url}' leads to '{newurl}', where the connection is not secured"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Page(HTMLParser):
    """A web page that came in place of a file: its title, and where its ``download-form`` leads."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__()
        self.title = ""
        self._action: str | None = None
        self._fields: list[tuple[str, str]] = []
        self._inside = ""
        with response:
            try:
                self.feed(response.read(_PAGE).decode("utf-8", "replace"))
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(f"the connection was cut ({_say(error)})") from None
        self.title = " ".join(self.title.split())[:120]

    @property
    def confirm(self) -> str | None:
        """The URL to which the form leads; None where there is no such form."""
        if self._action is None:
            return None
        return self._action + ("&" if "?" in self._action else "?") + urllib.parse.urlencode(self._fields)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See the form and its hidden fields."""
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and given.get("id") == "download-form":
            self._action, self._inside = given.get("action", ""), "form"
        elif tag == "input" and self._inside == "form" and given.get("type") == "hidden":
            self._fields.append((given.get("name", ""), given.get("value", "")))
        elif tag == "title":
            self._inside = "title"

    def handle_endtag(self, tag: str) -> None:
        """Leave the form or the title."""
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        """Collect the title."""
        if self._inside == "title":
            self.title += data


def _is_page(response: http.client.HTTPResponse) -> bool:
    return response.headers.get_content_type() in ("text/html", "application/xhtml+xml")


def _version(response: http.client.HTTPResponse) -> str | None:
    """Return what tells one version of the file from another: a strong ETag, or the date of change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _length(response: http.client.HTTPResponse) -> int | None:
    given = response.headers.get("Content-Length", "")
    return int(given) if given.isdecimal() and "Content-Encoding" not in response.headers else None


def _range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return the first byte and the size of the whole file, from a line like ``bytes 7-99/100``."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        return -1, None
    return int(first), int(total) if total.isdecimal() else None


def _say(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    strerror = getattr(error, "strerror", None)
    return str(strerror or error) or type(error).__name__
