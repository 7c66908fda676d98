"""Commands that are stopped from outside: by signals, and by streams that are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nas.searching
from nas.cli import main
from nas.console import open_streams
from nas.stopping import Stops
from tests.nas.conftest import Outcome

Nas = Callable[..., Outcome]

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_heeded_once_and_handlers_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stops() as stops:
        assert stops.code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stops.code == 128 + number
    assert signal.getsignal(number) == before


def test_what_nohup_set_aside_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stops():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_search_that_is_stopped_goes_on(
    asked: list[str], trained: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    evaluate = nas.searching.SearchEvaluator.evaluate

    def stopping(self: object, arch: object, rival: object = None) -> object:
        if len(asked) == 2:
            signal.raise_signal(number)
        return evaluate(self, arch, rival)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(nas.searching.SearchEvaluator, "evaluate", stopping)
        told = nas_("search", "run", "--evaluations", 4, "--name", "s")
    assert (told.code, told.out) == (code, "")
    assert told.err.splitlines()[-1].startswith("stopped; the same command continues")
    assert nas_("search", "run", "--evaluations", 4, "--name", "s").code == 0
    assert len(asked) == 4
    assert not [path for path in trained.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_training_tells_which_signal_stopped_it(
    box: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch, one_thread: None, number: int, code: int
) -> None:
    import nas.train_command
    from tests.nas import tiny

    tiny.write(box, train__epochs=3)
    update = nas.console.Bar.update

    def show(self: nas.console.Bar, done: int, total: int | None = None, text: str = "") -> None:
        if self.title == "training" and done == 2:
            signal.raise_signal(number)
        update(self, done, total, text)

    monkeypatch.setattr(nas.console.Bar, "update", show)
    assert nas_("train", "tiny.yaml", "-o", "run").code == code
    assert nas.train_command.is_first()
    assert "interrupted at step" in nas_("runs", "show", "run").out


# -- a whole process ---------------------------------------------------------------------------------------

HOLD = """
import sys, time
import nas.console
from nas.cli import main

def slow(value):
    print("at work", file=sys.stderr, flush=True)
    time.sleep(60)

nas.console.print_json = slow
main(["spaces", "--json"])
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_process_ends_with_the_code_of_its_signal(number: int, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None and process.stderr.readline() == "at work\n"
        process.send_signal(number)
        assert process.wait(30) == code
        assert process.stderr.read() == "stopped; the same command continues (nas train: with --resume)\n"
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_terminal_that_is_closed() -> None:
    """The session loses its terminal: SIGHUP comes, and nothing can be written any more."""
    pid, terminal = os.forkpty()
    if pid == 0:  # pragma: no cover - another process
        os.execv(sys.executable, [sys.executable, "-c", HOLD])
    told = b""
    while b"at work" not in told:
        told += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129


def test_closed_streams_are_opened_on_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom nas.cli import main\n"
        "try: main(['spaces', '--json'])\n"
        "except SystemExit as end: open(sys.argv[1], 'w').write(f'{end.code} {os.fstat(1).st_rdev}')"
    )
    said = tmp_path / "said"
    subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" "$2" >&- 2>&-', sys.executable, code, str(said)], check=True
    )
    assert said.read_text() == f"0 {os.stat(os.devnull).st_rdev}"  # noqa: PTH116
    open_streams()  # of streams that are open it changes nothing


def test_output_that_is_not_taken_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    code = "from nas.cli import main; main(['spaces', '--json'])"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 2
    assert ended.stderr == "error: No space left on device\n"


def test_any_surroundings_do(trained: Path) -> None:
    strange = os.fsdecode(b"run \xff 'quoted' \"twice\"")
    trained.rename(strange)
    settings = {"LANG": "C", "LC_ALL": "C", "COLUMNS": "3", "HOME": "/nonexistent", "TERM": "dumb"}
    code = "import sys; from nas.cli import main; main(sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, "runs", "show", strange],
        env=os.environ | settings,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0 and b"trained" in ended.stdout, ended.stderr
    assert b"Traceback" not in ended.stderr


def test_main_says_nothing_of_a_second_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(**named: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.cli.app", twice)
    with pytest.raises(SystemExit) as ended:
        main(["spaces"])
    assert ended.value.code == 130
