"""One conversation with an agent: requests out, replies in, a limit on every wait."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import IO, Any

from latency_tables.links.link import Link, LinkDownError, end, told
from search_spaces import errors
from search_spaces.errors import LitePoseNasError, RunError

__all__ = ["AgentEndedError", "Session"]

_REMEMBERED = 20
_LAST_WORDS_S = 5.0
_KINDS: Mapping[str, type[LitePoseNasError]] = {
    kind.__name__: kind for kind in (errors.InputError, errors.UnavailableError, errors.RunError)
}


class AgentEndedError(LinkDownError):
    """An agent, or what should have started it, ended: with which exit code, and what was said."""

    def __init__(self, name: str, code: int, said: str) -> None:
        super().__init__(f"the agent on {name} ended with code {code}: {told(said)}")
        self.code, self.said = code, said


class Session:
    """A running agent.

    Lines on its standard output that are no replies (greetings of login scripts, say) are left aside, and
    told if the agent ends.

    Parameters
    ----------
    link
        The way to the device.
    script
        What starts the agent there.
    """

    def __init__(self, link: Link, script: str) -> None:
        self._link = link
        self._process = link.start(script)
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=_REMEMBERED)
        self._noise: deque[str] = deque(maxlen=_REMEMBERED)
        self._number = 0
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._read, self._process.stdout), (self._listen, self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def ask(self, op: str, limit: float, **values: Any) -> dict[str, Any]:
        """Send a request and return what its reply says.

        Parameters
        ----------
        op, values
            The request; see :mod:`latency_tables.links.agent`.
        limit
            Longest wait, in seconds.

        Raises
        ------
        LinkDownError
            If the agent or the link to it ended, or no reply came in time.
        LitePoseNasError
            What the agent raised, naming the device; or what the link says of a connection that it refuses.
        """
        self._number += 1
        line = json.dumps({"id": self._number, "op": op, **values}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        deadline = time.monotonic() + limit
        while True:
            try:
                reply = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise LinkDownError(f"{self._link.name} did not answer '{op}' within {limit:.0f} s") from None
            if reply is None:
                raise self._ended()
            if reply.get("id") != self._number:
                continue
            if "error" in reply:
                error = reply["error"]
                raise _KINDS.get(error["kind"], RunError)(f"on {self._link.name}: {error['message']}")
            found: dict[str, Any] = reply["ok"]
            return found

    def close(self) -> None:
        """End the conversation: the agent sees the end of its input and ends too."""
        _quietly_close(self._process.stdin)
        try:
            self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            end(self._process)
            self._process.wait()
        for reader in self._readers:
            reader.join(_LAST_WORDS_S)
        _quietly_close(self._process.stdout)
        _quietly_close(self._process.stderr)

    def kill(self) -> None:
        """End this end of the conversation at once."""
        end(self._process)
        self.close()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                reply = json.loads(line)
            except ValueError:
                reply = None
            if isinstance(reply, dict) and "id" in reply:
                self._replies.put(reply)
            elif line.strip():
                self._noise.append(line.decode("utf-8", "replace"))
        self._replies.put(None)

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._said.append(line.decode("utf-8", "replace"))

    def _ended(self) -> LitePoseNasError:
        """Return the error of a conversation that is over."""
        self.close()
        code = self._process.returncode
        said = "".join(self._said)
        trouble = self._link.trouble(code, said)
        return trouble or AgentEndedError(self._link.name, code, said or "".join(self._noise))


def _quietly_close(stream: IO[bytes] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except OSError:  # what was not sent any more
        pass
