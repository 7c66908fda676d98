"""Target files with a ``link`` section: which device, and how to get there."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from latency_tables.bench import Bench
from latency_tables.cores import parse_cores
from latency_tables.links.agent import ALL_CORES
from latency_tables.links.binary import DELEGATES, PHONE_BINARY, BinaryBench, ModelWriter
from latency_tables.links.link import AdbLink, Link, SshLink
from latency_tables.links.remote import AgentHost, RemoteBench
from latency_tables.target import Target
from search_spaces.errors import InputError, UnavailableError, shown
from search_spaces.files import check_keys, read_yaml, yaml_text

__all__ = ["LinkDescription", "describe_device", "open_bench", "read_linked_target"]

_HOME_FOLDER = ".cache/litepose-nas"


@dataclass(frozen=True, slots=True)
class LinkDescription:
    """The ``link`` section of a target file; empty fields have their defaults.

    Attributes
    ----------
    ssh
        ``user@host``, or a name from the user's ``~/.ssh/config``.
    adb
        A phone's serial as ``adb devices`` shows it; ``any``: the only one attached.
    port
        SSH port; default: what the configuration says.
    python
        The device's Python (SSH): a name or a path.
    folder
        Where things are put on the device.
    cores
        Processors to pin to, such as ``4-7``; ``all``: none; default: the fastest ones.
    binary
        Path of the runtime's benchmark program on the device. Always used over ADB; over SSH if it is given.
    delegate
        What the benchmark program computes with: ``xnnpack``, ``gpu`` or ``none``.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    ssh: str = ""
    adb: str = ""
    port: int | None = None
    python: str = ""
    folder: str = ""
    cores: str = ""
    binary: str = ""
    delegate: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "port" and (not isinstance(value, str) or re.search(r"[\x00-\x1f]", value)):
                raise InputError(f"'{field.name}' is a line of text, not {shown(value)}")
        if self.port is not None and (type(self.port) is not int or not 0 < self.port < 65536):
            raise InputError(f"'port' is a whole number from 1 to 65535, not {shown(self.port)}")
        if bool(self.ssh) == bool(self.adb):
            raise InputError("a link names one way, 'ssh: user@host' or 'adb: SERIAL'")
        if self.adb and (self.port is not None or self.python):
            raise InputError("'port' and 'python' are for ssh: over adb the runtime's benchmark program runs")
        if self.delegate and not (self.adb or self.binary):
            raise InputError("'delegate' is for the benchmark program: name its path as 'binary'")
        if self.delegate and self.delegate not in DELEGATES:
            raise InputError(f"'delegate' is one of {', '.join(DELEGATES)}, not '{self.delegate}'")
        if self.cores not in ("", ALL_CORES):
            parse_cores(self.cores)

    @classmethod
    def from_dict(cls, value: object, where: str = "link") -> LinkDescription:
        """Return the link that a mapping describes; errors name ``where``."""
        given = dict(check_keys(value, {field.name for field in fields(cls)}, where))
        for key in ("adb", "cores"):  # a serial of digits, a single processor
            if type(given.get(key)) is int:
                given[key] = str(given[key])
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return what is not default, for YAML."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}

    def open(self) -> Link:
        """Return the link; nothing is connected before it is used."""
        return SshLink(self.ssh, self.port) if self.ssh else AdbLink(self.adb)


def read_linked_target(path: str | Path) -> tuple[Target, LinkDescription | None]:
    """Return the target described by a YAML file, and the link to it if the file has one.

    Raises
    ------
    InputError
        Naming the file and the field that is wrong.
    """
    where = f"target file '{path}'"
    given = read_yaml(path, "target file")
    if not isinstance(given, dict) or "link" not in given:
        return Target.from_dict(given, where), None
    rest = {key: value for key, value in given.items() if key != "link"}
    return Target.from_dict(rest, where), LinkDescription.from_dict(given["link"], f"{where}: link")


def open_bench(target: Target, link: LinkDescription, writer: ModelWriter | None = None) -> Bench:
    """Return the bench at the other end of a link: the agent's, or the benchmark program's.

    Parameters
    ----------
    target
        What is measured.
    link
        How to get there.
    writer
        Writes pieces as files for the benchmark program; needed where that runs.

    Raises
    ------
    UnavailableError
        If nothing writes files of the target's runtime, or the device lacks what it needs.
    RunError
        If the device cannot be reached.
    """
    if link.adb or link.binary:
        if writer is None:
            raise UnavailableError(
                f"no files of the runtime '{target.runtime}' can be written for a benchmark program:"
                " profile over 'adb' or with 'binary' is for the runtime 'litert'"
            )
        return BinaryBench(
            link.open(),
            target,
            writer,
            binary=link.binary or PHONE_BINARY,
            folder=link.folder,
            cores=link.cores,
            delegate=link.delegate or "xnnpack",
        )
    return RemoteBench(
        link.open(),
        target,
        python=link.python or "python3",
        folder=link.folder or _HOME_FOLDER,
        cores=link.cores,
    )


def describe_device(link: LinkDescription, runtime: str) -> str:
    """Return a target file for an SSH device as it is now: its processor, all its processors as threads.

    Raises
    ------
    RunError, UnavailableError
        If it cannot be reached, or has no Python that is new enough.
    """
    if link.adb:
        raise InputError("devices are described over ssh; for a phone the README has an example to fill in")
    python, folder = link.python or "python3", link.folder or _HOME_FOLDER
    way = link.open()
    host = AgentHost(way, python, folder, 1, ALL_CORES)
    host.start().close()
    way.close()
    facts = host.facts
    device = re.sub(r"[^a-z0-9]+", "-", str(facts["hostname"]).split(".")[0].lower()).strip("-")
    target = Target(device or "device", str(facts["processor"]), runtime, "fp32", int(facts["cores"]))
    return yaml_text({**target.to_dict(), "link": link.to_dict()})
