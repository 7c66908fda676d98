"""Links: a device profiled from the user's computer, over SSH (Raspberry Pi, Jetson) or ADB (phones).

The profiler stays on the computer and asks a :class:`~latency_tables.bench.Bench` for timings. Here are the
benches at the other end of a link: :class:`RemoteBench` talks to an agent, which needs Python and the
runtime on the device; :class:`BinaryBench` calls the runtime's own benchmark program, which needs neither.
Over ADB that was developed against a simulated phone, not run on a real one.
"""

from latency_tables.links.binary import BinaryBench, ModelWriter, parse_benchmark
from latency_tables.links.description import (
    LinkDescription,
    describe_device,
    open_bench,
    read_linked_target,
)
from latency_tables.links.link import AdbLink, Finished, Link, LinkDownError, LocalLink, SshLink
from latency_tables.links.remote import RemoteBench

__all__ = [
    "AdbLink",
    "BinaryBench",
    "Finished",
    "Link",
    "LinkDescription",
    "LinkDownError",
    "LocalLink",
    "ModelWriter",
    "RemoteBench",
    "SshLink",
    "describe_device",
    "open_bench",
    "parse_benchmark",
    "read_linked_target",
]
