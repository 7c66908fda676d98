"""Benches at the other end of a link that have Python: the agent times, and survives dropped links."""

from __future__ import annotations

import hashlib
import logging
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from latency_tables.bench import Bench
from latency_tables.links.agent import MODELS, PROTOCOL
from latency_tables.links.archive import agent_archive, agent_name
from latency_tables.links.link import Link, LinkDownError, device_path, told
from latency_tables.links.session import AgentEndedError, Session
from latency_tables.runtimes import RUNTIMES, get_runtime
from latency_tables.target import Target
from latency_tables.timing import Samples
from search_spaces.errors import InputError, LitePoseNasError, RunError, UnavailableError
from search_spaces.layers import Piece

__all__ = ["PATIENCE_S", "AgentHost", "RemoteBench", "insist"]

T = TypeVar("T")

PATIENCE_S = 180.0
"""Longest wait for one answer, beyond ten times the seconds that it was asked to measure."""

_WAITS_S = (1.0, 3.0, 10.0, 30.0)
_LEAST_PYTHON = (3, 11)
_CHECK_PYTHON = (
    f"import sys; sys.version_info < {_LEAST_PYTHON}"
    " and (sys.stderr.write(sys.version.split()[0]), sys.exit(70))"
)
_ABSENT, _NO_PYTHON, _OLD_PYTHON, _NO_FOLDER = 66, 69, 70, 74
"""Exit codes of the script that starts the agent."""

_START_S = 120.0
"""Longest wait for an agent to start, and to load its runtime."""


_log = logging.getLogger(__name__)


def insist(
    name: str,
    what: str,
    attempt: Callable[[], T],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return what ``attempt`` returns, trying a few more times while the link is down.

    Parameters
    ----------
    name, what
        The device and what is attempted, for the messages.
    attempt
        Raises :class:`LinkDownError` if another attempt may help.
    sleep
        Waits some seconds.

    Raises
    ------
    RunError
        If the device stays away.
    """
    for wait in _WAITS_S:
        try:
            return attempt()
        except LinkDownError as error:
            _log.warning("%s; trying again in %.0f s", error, wait)
            sleep(wait)
    try:
        return attempt()
    except LinkDownError as error:
        raise RunError(
            f"gave up {what} on {name} after {len(_WAITS_S) + 1} attempts: {error}; what was measured is"
            " kept: run the same command once the device is back, it goes on from there"
        ) from None


class AgentHost:
    """The agent on a device: pushed if it is not there, started, started again.

    Parameters
    ----------
    link
        The way to the device.
    python
        Its Python, 3.11 or newer: a name on its path, or a path (relative ones start at the home folder).
    folder
        Where the agent and what it times are put; relative ones start at the home folder.
    threads
        Threads that will be used: as many processors are needed.
    cores
        Processors to pin them to (``0-3``); ``all``: none; by default the ``threads`` fastest.
    """

    def __init__(self, link: Link, python: str, folder: str, threads: int, cores: str) -> None:
        self.link, self.folder = link, folder.rstrip("/")
        self.python = shlex.quote(python) if "/" not in python else device_path(python)
        self._arguments = ["--threads", str(threads), *(["--cores", cores] if cores else [])]
        # The same for every agent of this process: each may end its predecessor, and nobody else's.
        self._session = uuid.uuid4().hex
        self._archive = agent_archive()
        self.facts: dict[str, Any] = {}

    def start(self) -> Session:
        """Start the agent, pushed first if it is absent; it has answered once when this returns.

        Raises
        ------
        UnavailableError
            If Python is missing or too old, or the link refuses.
        RunError
            If the device's disk is full, or another profiler's agent runs there.
        LinkDownError
            If the link is down.
        """
        name = agent_name(self._archive)
        try:
            return self._started(name)
        except AgentEndedError as ended:
            if ended.code != _ABSENT:
                raise self._explained(ended) from None
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / name
            source.write_bytes(self._archive)
            self.link.push(source, f"{self.folder}/{name}")
        return self._started(name)

    def _started(self, name: str) -> Session:
        """Check, in the one connection that then is the agent's, what it needs; start it."""
        arguments = shlex.join(["--session", self._session, *self._arguments])
        folder = device_path(self.folder)
        session = Session(
            self.link,
            f"mkdir -p {folder} && cd {folder} || exit {_NO_FOLDER};"
            f" {self.python} -c {shlex.quote(_CHECK_PYTHON)};"
            f" case $? in 0) ;; {_OLD_PYTHON}) exit {_OLD_PYTHON};; *) exit {_NO_PYTHON};; esac;"
            f" test -f {name} || exit {_ABSENT}; exec {self.python} -u {name} {arguments}",
        )
        try:
            self.facts = session.ask("describe", _START_S)
        except BaseException:
            session.kill()
            raise
        return session

    def _explained(self, ended: AgentEndedError) -> LitePoseNasError:
        """Return what the checks before the agent's start have found."""
        least, way_out = (
            ".".join(map(str, _LEAST_PYTHON)),
            "there, and name it as 'python' in the target file",
        )
        if ended.code == _NO_FOLDER:
            return self.link.refused(f"the folder '{self.folder}'", ended.said)
        if ended.code == _NO_PYTHON:
            return UnavailableError(
                f"{self.link.name} has no Python as {self.python} ({told(ended.said)}): install Python"
                f" {least} or newer {way_out}"
            )
        if ended.code == _OLD_PYTHON:
            return UnavailableError(
                f"{self.python} on {self.link.name} is Python {told(ended.said, 1)}, the agent needs"
                f" {least} or newer: install one {way_out}"
            )
        return ended

    def push_model(self, path: Path, name: str) -> None:
        """Push a network to where the agent looks for it."""
        folder = f"{self.folder}/{MODELS}"
        done = self.link.run(f"mkdir -p {device_path(folder)}")
        if done.code != 0:
            raise self.link.refused(f"the folder '{folder}'", done.err)
        self.link.push(path, f"{folder}/{name}")


def _digest(files: Sequence[Path]) -> str:
    """Return what tells networks apart by their content.

    Raises
    ------
    InputError
        If a file is missing.
    """
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise InputError(f"the network '{file}' does not exist")
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


class RemoteBench(Bench):
    """Times on a device that has Python and the runtime, through the agent.

    A dropped link is taken up again a few times, and the request that was under way repeated: nothing is
    half measured. See :class:`AgentHost` for the parameters that are not here.

    Parameters
    ----------
    link
        The way to the device; closed with the bench.
    target
        What is measured there.
    patience
        Longest wait for one answer, in seconds, beyond ten times what it was asked to measure: a device that
        hangs is as one that stays away.
    sleep
        Waits some seconds.

    Raises
    ------
    UnavailableError
        If the device has no Python that is new enough, or not the runtime, or refuses the login.
    InputError
        If it has fewer processors than the target threads.
    RunError
        If it cannot be reached, its disk is full, or another profiler measures there.
    """

    def __init__(
        self,
        link: Link,
        target: Target,
        *,
        python: str = "python3",
        folder: str = ".cache/litepose-nas",
        cores: str = "",
        patience: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.runtime = target.runtime
        self._link, self._target, self._patience, self._sleep = link, target, patience, sleep
        self._host = AgentHost(link, python, folder, target.threads, cores)
        self._facts: dict[str, Any] = {}
        self._session: Session | None = None
        self._watched: list[str] = []
        self._connected()

    def version(self) -> str:
        return str(self._facts["version"])

    def system(self) -> Mapping[str, str]:
        facts = self._facts
        return {key: str(facts[key]) for key in ("processor", "system", "python", "pinned")}

    def machine(self) -> Mapping[str, Any]:
        return self._insist("asking for the machine's state", lambda: self._ask("machine"))

    def time(self, piece: Piece | None, seconds: float, min_runs: int) -> Samples:
        key = None if piece is None else piece.key

        def attempt() -> Samples:
            return Samples.from_dict(self._ask("time", key=key, seconds=seconds, min_runs=min_runs))

        return self._insist(f"timing {key or 'the empty call'}", attempt)

    def time_model(self, path: Path, size: tuple[int, int], seconds: float, min_runs: int) -> Samples:
        files = get_runtime(self.runtime).network_files(path)
        stem = _digest(files)
        values = {
            "file": f"{stem}{path.suffix}",
            "size": list(size),
            "seconds": seconds,
            "min_runs": min_runs,
        }

        def attempt() -> Samples:
            found = self._ask("model", **values)
            if "absent" in found:
                for file in files:
                    self._host.push_model(file, f"{stem}{file.suffix}")
                found = self._ask("model", **values)
            return Samples.from_dict(found)

        return self._insist(f"timing the network '{path.name}'", attempt)

    @contextmanager
    def watching(self, canaries: Sequence[Piece]) -> Iterator[None]:
        self._watched = [piece.key for piece in canaries]
        self._insist("preparing canaries", lambda: self._ask("watch", keys=self._watched))
        try:
            yield
        finally:
            self._watched = []

    def close(self) -> None:
        """Part from the agent, which removes the networks that were pushed; leave the link."""
        session, self._session = self._session, None
        if session is not None:
            try:
                session.ask("bye", _PARTING_S)
            except (RunError, InputError, UnavailableError):
                session.kill()
            else:
                session.close()
        self._link.close()

    def _insist(self, what: str, attempt: Callable[[], T]) -> T:
        return insist(self._link.name, what, attempt, sleep=self._sleep)

    def _ask(self, op: str, **values: Any) -> dict[str, Any]:
        """Ask the agent, which is started if there is none; after a failure there is none."""
        session = self._connected()
        try:
            return session.ask(op, self._patience + 10 * values.get("seconds", 0.0), **values)
        except LinkDownError:
            self._drop(session)
            raise

    def _connected(self) -> Session:
        if self._session is not None:
            return self._session
        session = self._host.start()
        target = self._target
        try:
            facts = session.ask(
                "hello",
                max(_START_S, self._patience),
                runtime=target.runtime,
                threads=target.threads,
                precision=target.precision,
            )
            self._check(facts)
            if self._watched:
                session.ask("watch", self._patience, keys=self._watched)
        except UnavailableError as error:
            self._drop(session)
            runtime, said = RUNTIMES.get(target.runtime), str(error)
            if runtime is not None and runtime.wheels:
                said = said.replace(runtime.install, f"install it with: pip install {runtime.wheels}")
            there = said.replace("pip install", f"{self._host.python} -m pip install")
            raise UnavailableError(f"{there} (there, on {self._link.name})") from None
        except BaseException:
            self._drop(session)
            raise
        self._facts, self._session = facts, session
        return session

    def _check(self, facts: Mapping[str, Any]) -> None:
        if facts["protocol"] != PROTOCOL:
            raise RunError(
                f"the agent on {self._link.name} speaks protocol {facts['protocol']}, not {PROTOCOL}:"
                f" delete the folder '{self._host.folder}' there"
            )
        before = self._facts.get("version", facts["version"])
        if facts["version"] != before:
            raise RunError(
                f"{self.runtime} on {self._link.name} was {before} when profiling began and is"
                f" {facts['version']} now: profile into another folder, or install the former version"
            )

    def _drop(self, session: Session) -> None:
        self._session = None
        session.kill()


_PARTING_S = 10.0
