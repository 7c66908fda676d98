"""Downloads against a real server that misbehaves: what arrives is the file, or nothing."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.download import Patience, _Redirects, download, part_of, require_room
from search_spaces import RunError, UnavailableError
from search_spaces.files import write_json
from tests.nas.web import Fault, Web

BODY = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
QUICK = Patience(timeout_s=5, attempts=3, first_wait_s=0.001, longest_wait_s=0.002)
CHANGED = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.zip"


def begun(target: Path, have: bytes, url: str, version: str | None, size: int | None = len(BODY)) -> None:
    """Leave what a killed download leaves."""
    target.parent.mkdir()
    part_of(target).write_bytes(have)
    notes = {"url": url, "version": version, "size_bytes": size}
    write_json(part_of(target).with_name(part_of(target).name + ".json"), notes)


def ends_clean(target: Path, body: bytes) -> None:
    """Nothing but the file is left."""
    assert target.read_bytes() == body
    assert list(target.parent.iterdir()) == [target]


# -- the plain way -------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_progress_is_told(web: Web, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    download(web.put("/f", BODY), target, progress=lambda done, total: told.append((done, total)))
    ends_clean(target, BODY)
    assert told == sorted(told) and told[0] == (0, len(BODY)) and told[-1] == (len(BODY), len(BODY))
    assert [(r.range, r.status) for r in web.log] == [(None, 200)]


def test_a_server_that_tells_no_length(web: Web, target: Path) -> None:
    web.always = Fault(silent=True)
    download(web.put("/f", BODY), target)
    ends_clean(target, BODY)


def test_redirects_are_followed_with_the_range(web: Web, target: Path) -> None:
    final = web.put("/f", BODY)
    web.put("/moved", b"", redirect=final)
    web.faults = [Fault(), Fault(cut=100_000)]
    download(web.url + "/moved", target, patience=QUICK)
    ends_clean(target, BODY)
    assert [(r.path, r.range) for r in web.log] == [
        ("/moved", None),
        ("/f", None),
        ("/moved", "bytes=100000-"),
        ("/f", "bytes=100000-"),
    ]


# -- going on ------------------------------------------------------------------------------------------------


def test_after_cuts_only_what_is_missing_is_asked_for(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000), Fault(cut=120_000), Fault(cut=1)]
    download(web.put("/f", BODY), target, patience=QUICK)
    ends_clean(target, BODY)
    assert [r.range for r in web.log] == [None, "bytes=50000-", "bytes=170000-", "bytes=170001-"]
    assert web.sent() == len(BODY)
    assert {r.if_range for r in web.log[1:]} == {web.files["/f"].etag}


def test_a_cut_that_tells_no_length_shows_by_the_size_expected(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000, silent=True)]
    download(web.put("/f", BODY), target, size_bytes=len(BODY), patience=QUICK)
    ends_clean(target, BODY)
    assert web.sent() == len(BODY)


def test_a_line_that_falls_silent_is_taken_up_again(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000, stall_s=1.0)]
    download(web.put("/f", BODY), target, patience=Patience(timeout_s=0.2, first_wait_s=0.001))
    ends_clean(target, BODY)
    assert web.sent() == len(BODY)


def test_a_later_call_goes_on(web: Web, target: Path) -> None:
    url = web.put("/f", BODY)
    begun(target, BODY[:200_000], url, web.files["/f"].etag)
    download(url, target)
    ends_clean(target, BODY)
    assert [(r.range, r.status, r.sent) for r in web.log] == [("bytes=200000-", 206, 100_000)]


@pytest.mark.parametrize("expected", [None, len(BODY)])
def test_what_was_complete_but_not_renamed_is_not_asked_for_again(
    web: Web, target: Path, expected: int | None
) -> None:
    url = web.put("/f", BODY)
    begun(target, BODY, url, web.files["/f"].etag)
    download(url, target, size_bytes=expected)
    ends_clean(target, BODY)
    assert web.log == []


def test_a_weak_etag_does_not_vouch_for_bytes_but_a_date_does(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000)]
    download(web.put("/f", BODY, etag='W/"x"', last_modified=CHANGED), target, patience=QUICK)
    ends_clean(target, BODY)
    assert [(r.range, r.if_range) for r in web.log] == [(None, None), ("bytes=50000-", CHANGED)]


@pytest.mark.parametrize("verified_later", [False, True])
def test_without_a_version_only_a_checksum_to_come_allows_going_on(
    web: Web, target: Path, verified_later: bool
) -> None:
    web.faults = [Fault(cut=50_000)]
    url = web.put("/f", BODY, etag=None)
    download(url, target, verified_later=verified_later, patience=QUICK)
    ends_clean(target, BODY)
    assert [r.range for r in web.log] == [None, "bytes=50000-" if verified_later else None]


@pytest.mark.parametrize("verified_later", [False, True])
def test_a_part_from_another_host_goes_on_only_if_a_checksum_will_tell(
    web: Web, target: Path, verified_later: bool
) -> None:
    begun(target, BODY[:200_000], "http://elsewhere.test/f", '"theirs"')
    download(web.put("/f", BODY), target, verified_later=verified_later)
    ends_clean(target, BODY)
    assert [(r.range, r.if_range) for r in web.log] == [("bytes=200000-" if verified_later else None, None)]


# -- another file than before ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Fault(), Fault(whole=True), Fault(stubborn=True)],
    ids=["as it should", "no ranges", "ignoring If-Range"],
)
@pytest.mark.parametrize("size", [len(BODY), len(OTHER)], ids=["same size", "other size"])
def test_a_file_that_changed_is_begun_anew(web: Web, target: Path, fault: Fault, size: int) -> None:
    url = web.put("/f", OTHER[:size])
    begun(target, BODY[:200_000], url, '"of BODY"')
    web.faults = [fault]
    download(url, target, patience=QUICK)
    ends_clean(target, OTHER[:size])


def test_a_file_that_changed_while_it_was_cut(web: Web, target: Path) -> None:
    url = web.put("/f", BODY)
    web.faults = [Fault(cut=100_000), Fault(status=500)]

    def change(done: int, total: int | None) -> None:
        if done == 100_000:
            web.put("/f", OTHER)

    download(url, target, progress=change, patience=QUICK)
    ends_clean(target, OTHER)
    assert web.log[2].status == 200, "If-Range made the server send all of it"


def test_a_server_without_ranges_sends_all_of_it_again(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000)]
    web.always = Fault(whole=True)
    download(web.put("/f", BODY), target, patience=QUICK)
    ends_clean(target, BODY)


def test_a_wrong_range_is_not_appended(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000), Fault(shift=7)]
    download(web.put("/f", BODY), target, patience=QUICK)
    ends_clean(target, BODY)


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_longer_than_the_file_is_begun_anew(web: Web, target: Path, size: int | None) -> None:
    url = web.put("/f", BODY)
    begun(target, OTHER, url, web.files["/f"].etag, size=None)
    download(url, target, size_bytes=size, patience=QUICK)
    ends_clean(target, BODY)


def test_damaged_notes_are_as_good_as_none(web: Web, target: Path) -> None:
    url = web.put("/f", BODY)
    begun(target, OTHER[:1000], url, web.files["/f"].etag)
    target.with_name("file.zip.part.json").write_text('{"url": "htt')
    download(url, target, patience=QUICK)
    ends_clean(target, BODY)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(
        st.one_of(
            st.builds(Fault, cut=st.integers(0, 5000), silent=st.booleans()),
            st.builds(Fault, whole=st.just(True), cut=st.integers(0, 5000)),
            st.builds(Fault, status=st.sampled_from([500, 503, 429])),
            st.builds(Fault, shift=st.integers(1, 9)),
            st.builds(Fault, stubborn=st.just(True)),
        ),
        max_size=6,
    ),
    change_at=st.integers(0, 6),
    cut_before=st.integers(0, 4000),
)
def test_whatever_happens_it_is_the_file_or_an_error(
    web: Web, tmp_path_factory: pytest.TempPathFactory, faults: list[Fault], change_at: int, cut_before: int
) -> None:
    """No order of misfortunes leads to a mixture, and none makes it run for ever."""
    folder = tmp_path_factory.mktemp("any")
    first, second = BODY[:4000], OTHER[:4500]
    url = web.put("/f", first)
    begun(folder / "x" / "file.zip", first[:cut_before], url, web.files["/f"].etag, None)
    web.log.clear()
    web.faults = list(faults)

    def change(done: int, total: int | None) -> None:
        if len(web.log) >= change_at:
            web.put("/f", second)

    target = folder / "x" / "file.zip"
    try:
        download(url, target, size_bytes=None, patience=QUICK, progress=change)
    except UnavailableError:
        assert not target.exists()
        assert len(faults) >= QUICK.attempts
    else:
        # A server that tells no length and cuts cannot be seen through without knowing the size.
        blind = any(fault.silent for fault in faults)
        assert target.read_bytes() in (first, second) or blind
    assert len(web.log) <= 30


# -- refusals ------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_told_at_once_with_the_way_out(web: Web, target: Path) -> None:
    with pytest.raises(UnavailableError, match=r"/nothing': the server answers 404 .*--mirror; by hand"):
        download(web.url + "/nothing", target, by_hand="; by hand", patience=QUICK)
    assert len(web.log) == 1
    assert not target.exists()


def test_a_server_in_trouble_is_asked_again(web: Web, target: Path) -> None:
    web.faults = [Fault(status=500), Fault(status=503, retry_after="0"), Fault(cut=9), Fault(status=429)]
    download(web.put("/f", BODY), target, patience=QUICK)
    ends_clean(target, BODY)
    assert [r.status for r in web.log] == [500, 503, 200, 429, 206]


def test_a_server_that_asks_to_wait_is_waited_for(
    web: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("nas.download.time.sleep", slept.append)
    web.faults = [Fault(status=503, retry_after="7"), Fault(status=500), Fault(status=503, retry_after="999")]
    download(web.put("/f", BODY), target, patience=Patience(first_wait_s=1.0, longest_wait_s=60.0))
    assert slept == [7.0, 2.0, 60.0]


def test_patience_ends_and_what_came_is_kept(web: Web, target: Path) -> None:
    web.faults = [Fault(cut=50_000)]
    web.always = Fault(status=502)
    url = web.put("/f", BODY)
    with pytest.raises(UnavailableError, match=r"answers 502 .*3 times in a row; the 50,000 bytes .* kept"):
        download(url, target, patience=QUICK)
    web.always = Fault()
    web.log.clear()
    download(url, target, patience=QUICK)
    ends_clean(target, BODY)
    assert [r.range for r in web.log] == ["bytes=50000-"]


def test_as_long_as_it_grows_it_is_not_given_up(web: Web, target: Path) -> None:
    web.always = Fault(cut=25_000)
    download(web.put("/f", BODY), target, patience=QUICK)
    ends_clean(target, BODY)
    assert len(web.log) == 12


def test_a_server_that_begins_anew_for_ever_is_given_up(web: Web, target: Path) -> None:
    web.always = Fault(whole=True, cut=100_000)
    with pytest.raises(UnavailableError, match="3 times in a row"):
        download(web.put("/f", BODY), target, patience=QUICK)
    assert len(web.log) == 3


@pytest.mark.parametrize("declared", [True, False])
def test_a_file_of_another_size_is_refused(web: Web, target: Path, declared: bool) -> None:
    web.always = Fault(silent=not declared)
    with pytest.raises(RunError, match=r"bytes long and 299,999 are expected: it is another file"):
        download(web.put("/f", BODY), target, size_bytes=299_999, patience=QUICK)
    assert not target.exists()
    assert len(web.log) == 1


def test_a_length_that_is_not_kept_is_no_whole_file(web: Web, target: Path) -> None:
    web.always = Fault(declared=len(BODY) + 5)
    with pytest.raises(UnavailableError, match="times in a row"):
        download(web.put("/f", BODY), target, patience=QUICK)
    assert not target.exists()


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    with pytest.raises(
        UnavailableError, match=r"cannot be reached \(Connection refused\): check the network"
    ):
        download(url, tmp_path / "f")


def test_no_such_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnavailableError, match=r"cannot be reached \(Name or service not known\)"):
        download("http://nowhere.test/f", tmp_path / "f")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("https://a.test/f", "http://a.test/f"),
        ("http://a.test/f", "file:///etc/passwd"),
        ("http://a.test", "ftp://b/f"),
    ],
)
def test_redirects_that_give_up_security_are_refused(before: str, after: str) -> None:
    with pytest.raises(UnavailableError, match="not secured"):
        _Redirects().redirect_request(urllib.request.Request(before), None, 302, "", {}, after)


def test_redirects_round_and_round(web: Web, target: Path) -> None:
    web.put("/a", b"", redirect=web.url + "/a")
    with pytest.raises(UnavailableError, match="302"):
        download(web.url + "/a", target, patience=QUICK)


# -- pages in place of files -------------------------------------------------------------------------------

CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="search" action="/elsewhere"><input type="hidden" name="q" value="1"></form>
<p>images.zip (2.2G) is too large for Google to scan for viruses.</p>
<form id="download-form" action="{action}" method="get">
<input type="submit" id="uc-download-link" value="Download anyway"/>
<input type="hidden" name="id" value="1Vpr"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="a&amp;b">
</form></body></html>"""
QUOTA = """<html><head><title>Google Drive - Quota exceeded</title></head><body>
<p>Too many users have viewed or downloaded this file recently.</p></body></html>"""


@pytest.mark.parametrize("absolute", [False, True])
def test_the_page_that_asks_to_confirm_is_confirmed_also_when_going_on(
    web: Web, target: Path, absolute: bool
) -> None:
    action = (web.url if absolute else "") + "/download"
    web.put("/download?id=1Vpr", CONFIRM.format(action=action).encode(), kind="text/html; charset=utf-8")
    web.put("/download?id=1Vpr&export=download&confirm=t&uuid=a%26b", BODY)
    web.faults = [Fault(), Fault(cut=60_000)]
    download(web.url + "/download?id=1Vpr", target, patience=QUICK)
    ends_clean(target, BODY)
    assert [(r.range, r.sent) for r in web.log][1::2] == [(None, 60_000), ("bytes=60000-", 240_000)]


@pytest.mark.parametrize("page", [QUOTA, CONFIRM.format(action="/download"), "<html><body>Sign in"])
def test_any_other_page_is_an_error_that_tells_the_way_by_hand(web: Web, target: Path, page: str) -> None:
    web.put("/download?id=1Vpr", page.encode(), kind="text/html")
    web.put("/download?id=1Vpr&export=download&confirm=t&uuid=a%26b", QUOTA.encode(), kind="text/html")
    title = "" if "Sign in" in page else " titled 'Google Drive - Quota exceeded'"
    with pytest.raises(UnavailableError, match=f"answers with a web page{title} in place of .*; by hand"):
        download(web.url + "/download?id=1Vpr", target, by_hand="; by hand", patience=QUICK)
    assert not target.exists() and not part_of(target).exists()


# -- the disk ------------------------------------------------------------------------------------------------


def test_room_is_looked_for_before_anything_is_written(
    web: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 299_999))
    with pytest.raises(RunError, match=r"'file.zip' needs 0.00 GB below .* 0.00 GB are free"):
        download(web.put("/f", BODY), target, patience=QUICK)
    assert list(target.parent.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 300_000))
    download(web.put("/f", BODY), target, patience=QUICK)
    ends_clean(target, BODY)


def test_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    require_room(tmp_path / "a" / "b", 1, "this")
    with pytest.raises(RunError, match=r"this needs .* GB below '.*a/b'.* make room"):
        require_room(tmp_path / "a" / "b", 10**18, "this")


class _Full(io.FileIO):
    """A file on a disk that is full after so many bytes."""

    room = 100_000

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_that_fills_up_keeps_what_came(
    web: Web, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return _Full(self, mode) if self.suffix == ".part" else opened(self, mode, *args, **kwargs)

    url = web.put("/f", BODY)
    web.bytes_per_s = 1e8
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        with pytest.raises(
            RunError, match=r"cannot write '.*\.part': the disk is full; what came so far is kept"
        ):
            download(url, target, patience=QUICK)
    kept = part_of(target).read_bytes()
    assert 0 < len(kept) <= 100_000 and BODY.startswith(kept)
    web.log.clear()
    download(url, target, patience=QUICK)
    ends_clean(target, BODY)
    assert [r.range for r in web.log] == [f"bytes={len(kept)}-"]


def test_a_folder_that_cannot_be_written_to(web: Web, tmp_path: Path) -> None:
    url = web.put("/f", BODY)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write to"):
        download(url, tmp_path / "file" / "f")
    (tmp_path / "f.part").mkdir()
    with pytest.raises(RunError, match=r"cannot write '.*f\.part': Is a directory"):
        download(url, tmp_path / "f")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RunError, match="cannot write"):
            download(url, tmp_path / "closed" / "f")
