"""A web server of our own, whose files, manners and misfortunes a test chooses."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class File:
    """What lies under one path.

    Attributes
    ----------
    body
        Its bytes.
    etag, last_modified
        Sent if given.
    kind
        Content type.
    redirect
        Where the path leads to instead.
    """

    body: bytes = b""
    etag: str | None = None
    last_modified: str | None = None
    kind: str = "application/octet-stream"
    redirect: str | None = None


@dataclass(frozen=True)
class Fault:
    """What befalls one request.

    Attributes
    ----------
    cut
        Bytes of the body after which the connection is closed.
    stall_s
        Seconds for which nothing is sent after those bytes.
    status
        Answer this instead, with ``retry_after``.
    whole
        Ignore the range.
    stubborn
        Send the range although the file is another one than that of If-Range.
    shift
        Send a range that begins so much later.
    declared
        Content-Length that is told, with a connection that is closed after the body.
    silent
        Tell no length at all.
    """

    cut: int | None = None
    stall_s: float = 0.0
    status: int | None = None
    retry_after: str | None = None
    whole: bool = False
    stubborn: bool = False
    shift: int = 0
    declared: int | None = None
    silent: bool = False


@dataclass
class Request:
    """What was asked for, and what was sent so far."""

    path: str
    range: str | None
    if_range: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Web:
    """A running server.

    Attributes
    ----------
    url
        Its root, without a slash.
    files
        By path, with the query if there is one.
    faults
        For the next requests, in their order.
    always
        For all requests once ``faults`` is empty.
    bytes_per_s
        Speed of every answer.
    log
        All requests so far.
    """

    url: str
    files: dict[str, File] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    always: Fault = field(default_factory=Fault)
    bytes_per_s: float | None = None
    log: list[Request] = field(default_factory=list)

    def put(self, path: str, body: bytes, **facts: str | None) -> str:
        """Add a file; return its URL. Without other facts its ETag follows from its content."""
        self.files[path] = File(body, **({"etag": f'"{hash(body):x}"'} | facts))
        return self.url + path

    def sent(self) -> int:
        """Return how many bytes of bodies were sent in all."""
        return sum(request.sent for request in self.log)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        web = self.web
        fault = web.faults.pop(0) if web.faults else web.always
        file = web.files.get(self.path)
        entry = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        web.log.append(entry)
        entry.status = fault.status or (404 if file is None else 302 if file.redirect else 200)
        try:
            if entry.status == 200 and file is not None:
                self._send(file, fault, entry)
                return
            self.send_response(entry.status)
            if file is not None and file.redirect and fault.status is None:
                self.send_header("Location", file.redirect)
            if fault.retry_after is not None:
                self.send_header("Retry-After", fault.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send(self, file: File, fault: Fault, entry: Request) -> None:
        size, start = len(file.body), 0
        unchanged = self.headers["If-Range"] in (None, file.etag, file.last_modified) or fault.stubborn
        if self.headers["Range"] and unchanged and not fault.whole:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            entry.status = 206 if start < size else 416
            start = min(start + fault.shift, size - 1)
        self.send_response(entry.status)
        if entry.status == 416:
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = file.body[start:]
        self.send_header("Content-Type", file.kind)
        if entry.status == 206:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, value in (("ETag", file.etag), ("Last-Modified", file.last_modified)):
            if value is not None:
                self.send_header(name, value)
        if fault.silent:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(fault.declared or len(body)))
        self.end_headers()
        end = len(body) if fault.cut is None else min(fault.cut, len(body))
        while entry.sent < end:
            chunk = body[entry.sent : min(end, entry.sent + 16384)]
            entry.sent += len(chunk)  # before the client can have it, so that a test may count
            self.wfile.write(chunk)
            if self.web.bytes_per_s:
                self.wfile.flush()
                time.sleep(len(chunk) / self.web.bytes_per_s)
        if end < len(body) or fault.declared:
            self.wfile.flush()
            time.sleep(fault.stall_s)
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Web]:
    """Run a server on a free port of this machine while the block runs."""
    handler = type("Handler", (_Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.web = Web(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield handler.web  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
