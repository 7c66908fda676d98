"""Target: the one thing a latency table is about, device x processor x runtime x precision x threads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from latency_tables.machine import available_threads, processor_name, system_name
from search_spaces.errors import InputError
from search_spaces.files import check_keys, read_yaml, write_yaml

_WORD = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
_LOCAL_DEVICE = "this-machine"


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how networks run; milliseconds of different targets are never mixed.

    Attributes
    ----------
    device
        Lower-case words joined by dashes, e.g. ``raspberry-pi-4``; ``this-machine`` for the one at hand.
    processor
        What executes the layers, in words, e.g. ``Cortex-A72 1.5 GHz``.
    runtime
        Name of the runtime, e.g. ``onnxruntime`` (see :data:`latency_tables.RUNTIMES`).
    precision
        Number format of weights and activations, e.g. ``fp32``.
    threads
        Threads that one network uses; 0 where the source of the numbers does not say.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    device: str
    processor: str
    runtime: str
    precision: str = "fp32"
    threads: int = 1

    def __post_init__(self) -> None:
        for what in ("device", "runtime", "precision"):
            value = getattr(self, what)
            if not isinstance(value, str) or not _WORD.fullmatch(value):
                raise InputError(
                    f"a target's {what} is lower-case letters and digits joined by '-' or '.', not {value!r}"
                )
        if not isinstance(self.processor, str) or not self.processor.strip() or "\n" in self.processor:
            raise InputError(f"a target's processor is one line of text, not {self.processor!r}")
        if not isinstance(self.threads, int) or isinstance(self.threads, bool) or self.threads < 0:
            raise InputError(
                f"a target's threads is a whole number from 1 (0: not known), not {self.threads!r}"
            )

    @property
    def name(self) -> str:
        """How commands and files call the target, e.g. ``this-machine-onnxruntime-fp32-2t``."""
        threads = f"-{self.threads}t" if self.threads else ""
        return f"{self.device}-{self.runtime}-{self.precision}{threads}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for YAML and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object, where: str = "target") -> Target:
        """Return the target that a mapping describes.

        Raises
        ------
        InputError
            Naming ``where`` and the key that is missing, unknown or wrong.
        """
        given = check_keys(value, {field.name for field in fields(cls)}, where)
        for key in ("device", "processor", "runtime"):
            if key not in given:
                raise InputError(f"{where} lacks '{key}'")
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def read_target(path: str | Path) -> Target:
    """Return the target described by a YAML file with the fields of :class:`Target`.

    A file that also says how to get there is read by :func:`latency_tables.links.read_linked_target`.
    """
    return Target.from_dict(read_yaml(path, "target file"), f"target file '{path}'")


def write_target(path: str | Path, target: Target) -> None:
    """Write the target to a YAML file, atomically."""
    write_yaml(path, target.to_dict())


def processors_differ(one: str, other: str) -> bool:
    """Return whether two descriptions of processors are of different ones: neither is within the other."""
    a, b = (" ".join(text.lower().split()) for text in (one, other))
    return a not in b and b not in a


def elsewhere(target: Target, sessions: Sequence[Mapping[str, Any]]) -> str:
    """Return why a target called ``this-machine`` is not the machine at hand; empty where nothing tells so.

    Parameters
    ----------
    target
        A table's target; other devices are never the machine at hand.
    sessions
        The table's sessions, whose ``processor`` and ``system`` say where it was measured. An update of the
        system makes no other machine: only its name and architecture count.
    """
    if target.device != _LOCAL_DEVICE:
        return ""
    here, system = processor_name(), system_name()
    processors = [target.processor, *(str(each["processor"]) for each in sessions if "processor" in each)]
    for processor in processors:
        if processors_differ(processor, here):
            return f"it was measured on '{processor}', and here is '{here}'"
    for each in sessions:
        if "system" in each and system_kind(str(each["system"])) != system_kind(system):
            return f"it was measured on '{each['system']}', and here is '{system}'"
    if target.threads > (most := available_threads()):
        return f"it is of {target.threads} threads, and here are {most} processors"
    return ""


def system_kind(system: str) -> str:
    """Return name and architecture of ``Linux 6.6.31 aarch64``: an update makes no other machine."""
    words = system.split() or [""]
    return f"{words[0]} {words[-1]}"


def local_target(
    runtime: str, threads: int | None = None, device: str = _LOCAL_DEVICE, precision: str = "fp32"
) -> Target:
    """Return the target that this very machine is.

    Parameters
    ----------
    runtime
        Name of a runtime.
    threads
        Threads per network; by default all that this process may use.
    device
        Name to give the machine.
    precision
        Number format.

    Raises
    ------
    InputError
        If there are fewer processors than threads: timings would measure the queue.
    """
    most = available_threads()
    target = Target(device, processor_name(), runtime, precision, most if threads is None else threads)
    if target.threads > most:
        raise InputError(
            f"this process may use {most} processors, so a target here has at most {most} threads,"
            f" not {target.threads}"
        )
    return target
