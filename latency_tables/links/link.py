"""Links to devices: run a command there with streams, push and pull files. SSH, ADB, and this machine.

A link adds nothing to what the system's own client does: ``ssh`` reads the user's configuration, keys, jump
hosts and known hosts, and decides whom to trust; ``adb`` speaks to the phone. What they say when they fail
is turned into errors that name the device and the way out.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from search_spaces.errors import InputError, LitePoseNasError, RunError, UnavailableError

__all__ = [
    "AdbLink",
    "Finished",
    "Link",
    "LinkDownError",
    "LocalLink",
    "SshLink",
    "device_path",
    "end",
    "told",
]

_SLOWEST_BYTES_PER_S = 50_000
_PATIENCE_S = 60.0


class LinkDownError(RunError):
    """A device cannot be reached, or what ran there ended: trying again may help."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command on the device left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Link(ABC):
    """A way to a device: shell commands, files.

    Scripts are for a POSIX ``sh``; messages of the device's tools are in English (``LC_ALL=C``).
    """

    name: str
    """How errors call the device."""

    @abstractmethod
    def argv(self, script: str) -> list[str]:
        """Return the command line, here, that runs a script there."""

    @abstractmethod
    def trouble(self, code: int, said: str) -> LitePoseNasError | None:
        """Return the error of a link that failed; None if it was the command that ended with the code.

        Parameters
        ----------
        code
            How the client ended.
        said
            What it, and the command, said on standard error.
        """

    @abstractmethod
    def by_hand(self, file: str, target: str) -> str:
        """Return what the user types to put a program of theirs onto the device."""

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """Start a script there, its streams at this end of the pipe.

        Raises
        ------
        UnavailableError
            If the client is not installed here.
        """
        return self._popen(self.argv(script), subprocess.PIPE)

    def run(self, script: str, *, timeout: float = _PATIENCE_S, feed: Path | None = None) -> Finished:
        """Run a script there to its end; ``feed``, a file here, is its standard input.

        Raises
        ------
        LinkDownError
            If the link is down, or nothing came of it within ``timeout`` seconds.
        LitePoseNasError
            If the client refuses to connect (see :meth:`trouble`).
        """
        return self._finish(self.argv(script), timeout, feed)

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the device; ``target`` is as it was, or complete.

        Raises
        ------
        RunError
            If it does not fit there, or cannot be written.
        LinkDownError
            If the link is down.
        """
        part, size = device_path(f"{target}.part"), source.stat().st_size
        # Where the link is lost on the way, what runs there sees but the end of its input: hence the count.
        script = (
            f"cat > {part} && if test $(wc -c < {part}) -eq {size}; then mv -f {part} {device_path(target)};"
            f" else echo 'it did not arrive whole' >&2; exit 75; fi || {{ rm -f {part}; exit 74; }}"
        )
        done = self.run(script, timeout=self._transfer_s(size), feed=source)
        if done.code != 0:
            raise self.refused(f"'{target}'", done.err or done.out)

    def pull(self, source: str, target: Path) -> None:
        """Copy a file from the device.

        Raises
        ------
        RunError
            If it cannot be read there.
        LinkDownError
            If the link is down.
        """
        with target.open("wb") as stream:
            process = self._popen(self.argv(f"cat {device_path(source)}"), subprocess.DEVNULL, stream)
            done = self._wait(process, _PATIENCE_S)
        if done.code != 0:
            target.unlink()
            raise RunError(f"cannot read '{source}' on {self.name}: {told(done.err)}")

    def close(self) -> None:  # noqa: B027  (every command is a process of its own)
        """Let go of what is held."""

    def refused(self, what: str, said: str) -> RunError:
        """Return the error of a device that would not write ``what``, from what its tools said."""
        if "No space left" in said:
            return RunError(
                f"the disk of {self.name} is full: no room for {what}; free some, or name a folder on another"
                " disk as 'folder' in the target file"
            )
        return RunError(f"cannot write {what} on {self.name}: {told(said)}")

    def _transfer_s(self, size: int) -> float:
        return _PATIENCE_S + size / _SLOWEST_BYTES_PER_S

    def _finish(self, argv: Sequence[str], timeout: float, feed: Path | None = None) -> Finished:
        if feed is None:
            return self._wait(self._popen(argv, subprocess.DEVNULL), timeout)
        with feed.open("rb") as stream:
            return self._wait(self._popen(argv, stream), timeout)

    def _popen(
        self, argv: Sequence[str], stdin: int | IO[bytes], stdout: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        try:
            # A session of its own: Ctrl-C is for this process, which then ends the other in good order.
            return subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, start_new_session=True
            )
        except FileNotFoundError:
            raise UnavailableError(f"{self.name} needs the program '{argv[0]}' here: install it") from None

    def _wait(self, process: subprocess.Popen[bytes], timeout: float) -> Finished:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise LinkDownError(f"{self.name} did not answer within {timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                end(process)
                process.communicate()
        done = Finished(process.returncode, _text(out), _text(err))
        if done.code != 0 and (error := self.trouble(done.code, done.err)) is not None:
            raise error
        return done


class LocalLink(Link):
    """The same machine, through a shell: another process of it, timed as a device is."""

    def __init__(self, name: str = "this machine") -> None:
        self.name = name

    def argv(self, script: str) -> list[str]:
        return ["env", "LC_ALL=C", "sh", "-c", script]

    def trouble(self, code: int, said: str) -> LitePoseNasError | None:
        return None

    def by_hand(self, file: str, target: str) -> str:
        return shlex.join(["install", "-m", "755", file, target])


class SshLink(Link):
    """A device over SSH, through the system's OpenSSH client and with the user's configuration.

    Nothing is asked on the terminal (``BatchMode``), and no host is trusted that the user's known hosts do
    not name.

    Parameters
    ----------
    host
        As ``ssh`` takes it: ``pi@kitchen.local``, or a name from the user's ``~/.ssh/config``.
    port
        Port; by default what the configuration says.

    Raises
    ------
    InputError
        If the host is none.
    """

    def __init__(self, host: str, port: int | None = None) -> None:
        if not re.fullmatch(r"[^\s-][^\s]*", host):
            raise InputError(f"an SSH host is user@host or a name from ~/.ssh/config, not {host!r}")
        self.name, self._host, self._port = host, host, port

    def argv(self, script: str) -> list[str]:
        command = shlex.join(["env", "LC_ALL=C", "sh", "-c", script])
        options = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
        settings = [word for option in (*options, "RemoteCommand=none") for word in ("-o", option)]
        port = [] if self._port is None else ["-p", str(self._port)]
        return ["ssh", "-T", *settings, *port, "--", self._host, command]

    def trouble(self, code: int, said: str) -> LitePoseNasError | None:
        if code != 255:
            return None
        host = self.name
        by_hand = f"ssh {'' if self._port is None else f'-p {self._port} '}{host}"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
            place = re.search(r"Offending .*?key in (\S+)", said)
            where = f" ({place[1].rstrip('.')})" if place else ""
            return UnavailableError(
                f"{host} shows another host key than the known one{where}: somebody may be in between, or the"
                f" device was set up anew; only if you know that it was, remove the old key (ssh-keygen -R)"
                f" and check the new one with: {by_hand}"
            )
        if "Host key verification failed" in said:
            return UnavailableError(
                f"the host key of {host} is not known here: connect once by hand and check it: {by_hand}"
            )
        if "Permission denied" in said or "Too many authentication failures" in said:
            return UnavailableError(
                f"{host} refuses the login without a password: install your key there (ssh-copy-id {host}),"
                f" load it into ssh-agent, and try: {by_hand}"
            )
        if "Could not resolve" in said:
            return LinkDownError(
                f"the name of {host} is not known: check it, and that the device is on the net ({told(said)})"
            )
        unreachable = ("refused", "No route", "timed out", "unreachable", "closed", "reset", "not responding")
        if any(word in said for word in unreachable):
            return LinkDownError(
                f"{host} cannot be reached: is it on, on the net, and its SSH server running? ({told(said)})"
            )
        if not said.strip():
            return LinkDownError(f"the SSH connection to {host} was lost, or what ran there was killed")
        return LinkDownError(f"the SSH connection to {host} failed: {told(said)}")

    def by_hand(self, file: str, target: str) -> str:
        port = [] if self._port is None else ["-P", str(self._port)]
        return shlex.join(["scp", "-p", *port, file, f"{self._host}:{target}"])


class AdbLink(Link):
    """A phone over ADB, Android's debug bridge, through the system's ``adb``.

    Parameters
    ----------
    serial
        As ``adb devices`` shows it; ``any``: the only device that is attached.

    Raises
    ------
    InputError
        If the serial is none.
    """

    def __init__(self, serial: str = "any") -> None:
        if not re.fullmatch(r"[^\s-][^\s]*", serial):
            raise InputError(f"an ADB serial is as 'adb devices' shows it, not {serial!r}")
        self.name = "the phone" if serial == "any" else f"the phone {serial}"
        self._client = ["adb"] if serial == "any" else ["adb", "-s", serial]

    def argv(self, script: str) -> list[str]:
        return [*self._client, "shell", script]

    def push(self, source: Path, target: str) -> None:
        size = source.stat().st_size
        done = self._finish([*self._client, "push", str(source), target], self._transfer_s(size))
        if done.code != 0:
            raise self.refused(f"'{target}'", done.err or done.out)

    def pull(self, source: str, target: Path) -> None:
        done = self._finish([*self._client, "pull", source, str(target)], _PATIENCE_S)
        if done.code != 0:
            raise RunError(f"cannot read '{source}' on {self.name}: {told(done.err or done.out)}")

    def trouble(self, code: int, said: str) -> LitePoseNasError | None:
        if "unauthorized" in said:
            return UnavailableError(
                f"{self.name} has not authorised this computer: unlock it and confirm what its screen asks"
            )
        if "more than one device" in said:
            return InputError(
                "more than one phone is attached: name one as 'adb: SERIAL' in the target file (adb devices)"
            )
        if re.search(r"no devices/emulators found|device '.*' not found|no devices found", said):
            return LinkDownError(
                f"{self.name} is not attached: plug it in, switch on USB debugging, and see that"
                " 'adb devices' lists it"
            )
        if re.search(r"device offline|error: closed|cannot connect to daemon|protocol fault", said):
            return LinkDownError(f"the ADB link to {self.name} is down ({told(said)}): plug it in again")
        if code == 255 and not said.strip():  # what a shell that lost its phone ends with
            return LinkDownError(f"the ADB link to {self.name} ended: plug it in again")
        return None

    def by_hand(self, file: str, target: str) -> str:
        adb = shlex.join(self._client)
        return f"{adb} push {file} {target} && {adb} shell chmod 755 {target}"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a client and what it has started (jump hosts' clients, say), which would hold its pipes open."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def device_path(path: str) -> str:
    """Return a path on the device for a script: relative ones, and ``~/``, start at the home folder."""
    if path.startswith("/"):
        return shlex.quote(path)
    return '"$HOME"/' + shlex.quote(path.removeprefix("~/"))


def told(text: str, most: int = 3) -> str:
    """Return the last lines of what a program said, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-most:]) or "it said nothing"


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
