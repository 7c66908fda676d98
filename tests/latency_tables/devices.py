"""Devices that tests measure on: this machine behind an SSH server of its own, and a simulated phone."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest

from latency_tables import Bench, LatencyTable, ProfileSettings, Target, profile
from latency_tables.links import RemoteBench, SshLink
from latency_tables.profiler import Progress
from search_spaces import Layer

TARGET = Target("test-device", "a processor", "onnxruntime", threads=1)

LAYERS = tuple(Layer("conv", 8 * (i + 1), 16, 1, 1, 1, 8, 8, norm=True) for i in range(6))

QUICK = ProfileSettings(
    seconds_per_layer=0.01, rounds=3, max_rounds=3, min_runs=3, tightness=10.0, on_drift="warn"
)

NEEDED = ("numpy", "numpy.libs", "onnx", "onnxruntime", "google", "ml_dtypes", "typing_extensions.py")
"""What a device has in its site-packages: NumPy, the runtime, and what those two need."""

VISITS = QUICK.rounds * len(LAYERS)


@dataclass(frozen=True)
class SshDevice:
    """A machine behind an SSH server: this one, on loopback, with keys and a client configuration of its own.

    Attributes
    ----------
    folder
        Everything of it.
    server
        Process number of the server.
    """

    folder: Path
    server: int

    @property
    def home(self) -> Path:
        """Where the agent is put."""
        return self.folder / "agent"

    def link(self, host: str = "device") -> SshLink:
        """Return the link to one of the hosts of the client's configuration."""
        return SshLink(host)

    def bench(self, host: str = "device", target: Target = TARGET, **settings: Any) -> RemoteBench:
        """Return a bench on it that does not wait before it tries again."""
        given = {"folder": self.home, "python": sys.executable, "sleep": lambda seconds: None, **settings}
        texts = {name: str(given[name]) for name in ("folder", "python")}
        return RemoteBench(self.link(host), target, **{**given, **texts})

    def connections(self) -> list[int]:
        """Return the process numbers of the server's open connections."""
        return [
            int(pid) for pid in Path(f"/proc/{self.server}/task/{self.server}/children").read_text().split()
        ]

    def agent(self) -> int:
        """Return the process number of the agent that holds the folder."""
        return int((self.home / "agent.lock").read_text())


def python_with(folder: Path, packages: tuple[str, ...]) -> Path:
    """Return a Python that knows the standard library and these packages, as a device's."""
    site = folder / "site"
    site.mkdir(parents=True)
    here = Path(numpy.__file__).parents[1]
    for name in packages:
        if (here / name).exists():
            (site / name).symlink_to(here / name)
    return script(folder / "python", f'PYTHONPATH={site} exec {sys.executable} -S "$@"')


def script(path: Path, text: str) -> Path:
    """Write a shell script that can be executed."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@contextmanager
def ssh_device(folder: Path) -> Iterator[SshDevice]:
    """Start an SSH server on loopback; ``ssh``, on the path meanwhile, knows it as several hosts."""
    server, client = _program("sshd"), _program("ssh")
    for name in ("host", "other", "user", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True
        )
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    port, closed = _free_port(), _free_port()
    for known, key in (("known", "host"), ("wrong", "other")):
        (folder / known).write_text(f"[127.0.0.1]:{port} {(folder / f'{key}.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nAuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    hosts = {
        "device": (port, "known", "user"),
        "imposter": (port, "wrong", "user"),
        "unknown": (port, "none", "user"),
        "locked": (port, "known", "stranger"),
        "gone": (closed, "known", "user"),
    }
    (folder / "ssh_config").write_text(
        "".join(
            f"Host {host}\n  HostName 127.0.0.1\n  Port {at}\n  User {getpass.getuser()}\n"
            f"  IdentitiesOnly yes\n  IdentityFile {folder}/{key}\n  UserKnownHostsFile {folder}/{known}\n"
            "  GlobalKnownHostsFile /dev/null\n  IdentityAgent none\n"
            for host, (at, known, key) in hosts.items()
        )
    )
    (folder / "bin").mkdir()
    script(folder / "bin" / "ssh", f'exec {client} -F {folder}/ssh_config "$@"')
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # the server's own start script makes it
    with (
        subprocess.Popen(
            [server, "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "sshd.log").open("wb")
        ) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        device = SshDevice(folder, process.pid)
        try:
            _await(device)
            yield device
        finally:
            process.terminate()


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"'{name}' is not installed (Debian: apt-get install openssh-server)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(device: SshDevice) -> None:
    deadline = time.monotonic() + 20
    while subprocess.run(["ssh", "device", "true"], capture_output=True).returncode != 0:
        assert time.monotonic() < deadline, (device.folder / "sshd.log").read_text()
        time.sleep(0.1)


def measure(bench: Bench, out: Path, progress: Progress | None = None) -> LatencyTable:
    """Profile the few layers over a link."""
    with bench:
        return profile(TARGET, LAYERS, out=out, settings=QUICK, bench=bench, progress=progress)


def profile_and_die(out: str, home: str, after: int) -> None:
    """Profile until ``after`` visits have been made, then be killed the hard way."""

    def progress(done: int, total: int, text: str) -> None:
        if done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    bench = RemoteBench(SshLink("device"), TARGET, python=sys.executable, folder=home)
    measure(bench, Path(out), progress)


if __name__ == "__main__":
    profile_and_die(sys.argv[1], sys.argv[2], int(sys.argv[3]))
