"""What all links have in common, over a shell of this machine; the agent's protocol."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from latency_tables.links import LinkDownError, LocalLink
from latency_tables.links.archive import agent_archive, agent_name
from latency_tables.links.link import device_path, told
from latency_tables.links.remote import AgentHost
from search_spaces import InputError, RunError


def test_files_travel_both_ways_whole(tmp_path: Path) -> None:
    link, here, there = LocalLink("bench"), tmp_path / "it's here", tmp_path / "over there"
    here.write_bytes(bytes(range(256)) * 500)
    link.push(here, str(there))
    assert there.read_bytes() == here.read_bytes()
    link.pull(str(there), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == here.read_bytes()
    with pytest.raises(RunError, match=r"cannot read '/absent' on bench: .*No such file"):
        link.pull("/absent", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(RunError, match=r"cannot write '/dev/null/x' on bench: .*/dev/null/x"):
        link.push(here, "/dev/null/x")


def test_a_push_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(bytes(100_000))
    there.write_text("former")
    (tmp_path / "there.part").symlink_to("/dev/full")
    with pytest.raises(RunError, match="the disk of bench is full"):
        LocalLink("bench").push(here, str(there))
    assert there.read_text() == "former"
    assert not (tmp_path / "there.part").is_symlink()


def test_a_push_that_is_cut_off_leaves_the_former_file(tmp_path: Path) -> None:
    """Where a connection drops, the device's end of it sees the end of the file, and nothing else."""

    class Dropped(LocalLink):
        def argv(self, script: str) -> list[str]:
            return ["sh", "-c", f"head -c 1000 | {shlex.join(super().argv(script))}"]

    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(bytes(100_000))
    there.write_text("former")
    with pytest.raises(RunError, match=r"cannot write '.*there' on bench: it did not arrive whole"):
        Dropped("bench").push(here, str(there))
    assert there.read_text() == "former"
    LocalLink("bench").push(here, str(there))
    assert there.stat().st_size == 100_000


def test_commands_that_do_not_end_are_ended() -> None:
    with pytest.raises(LinkDownError, match="bench did not answer within 0 s"):
        LocalLink("bench").run("sleep 60", timeout=0.2)


def test_scripts_see_their_input_and_tell_their_code(tmp_path: Path) -> None:
    (tmp_path / "feed").write_text("fed")
    done = LocalLink().run("cat; echo $LC_ALL >&2; exit 3", feed=tmp_path / "feed")
    assert (done.code, done.out, done.err) == (3, "fed", "C\n")


def test_paths_start_at_home() -> None:
    assert device_path("/a b") == "'/a b'"
    assert device_path("~/nas/bin/python") == device_path("nas/bin/python") == '"$HOME"/nas/bin/python'
    assert device_path("$(reboot)") == "\"$HOME\"/'$(reboot)'"


def test_last_words_are_one_line() -> None:
    assert told("a\n\n b \nc\nd\n") == "b | c | d"
    assert told("\n") == "it said nothing"


def test_equal_sources_make_equal_agents() -> None:
    assert agent_archive() == agent_archive()
    assert agent_name(agent_archive()) != agent_name(agent_archive() + b"\n")


def test_the_agent_answers_what_it_knows_and_goes_on_after_errors(tmp_path: Path) -> None:
    host = AgentHost(LocalLink("bench"), sys.executable, str(tmp_path), 1, "all")
    session = host.start()
    try:
        assert host.facts["pinned"] == "not pinned, as asked"
        with pytest.raises(InputError, match=r"on bench: the agent knows describe, hello, .*, not 'fly'"):
            session.ask("fly", 20)
        with pytest.raises(InputError, match=r"on bench: the agent times nothing before 'hello'"):
            session.ask("machine", 20)
        with pytest.raises(RunError, match=r"on bench: TypeError: .*'colour'"):
            session.ask("describe", 20, colour="red")
        with pytest.raises(InputError, match=r"on bench: there is no runtime .onnxruntimes.; did you mean"):
            session.ask("hello", 60, runtime="onnxruntimes", threads=1, precision="fp32")
        assert session.ask("describe", 20) == host.facts
    finally:
        session.close()
