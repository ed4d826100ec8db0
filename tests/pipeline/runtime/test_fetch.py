"""Files over HTTP from a server that cuts, lies, forgets, refuses and changes its mind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runtime import waiting, web
from pipeline.runtime.fetch import Remote, fetch
from tests.pipeline.server import File, Server, serving

ROOT = Path(__file__).parents[3]
DATA = hashlib.shake_256(b"an archive").digest(700_000)
OTHER = hashlib.shake_256(b"another one").digest(700_000)
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and nothing of this machine's settings."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("ALEXNET_MACHINE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "WAIT", 0.001)
    with serving() as state:
        yield state


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store/set/archive.tar"


def remote(server: Server, **known: object) -> Remote:
    return Remote(url=f"{server.url}/archive.tar", **known)  # type: ignore[arg-type]


def left(place: Path) -> set[str]:
    """What lies in the file's folder but for the lock."""
    return {path.name for path in place.parent.iterdir()} - {f"{place.name}.lock"}


def test_a_file_is_fetched_once(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA)
    for _ in range(2):
        fetch(remote(server, bytes=len(DATA), md5=MD5, sha256=SHA256), place)
    assert place.read_bytes() == DATA
    assert left(place) == {place.name}
    assert len(server.asked) == 1


@pytest.mark.parametrize("known", [{}, {"md5": MD5}], ids=["nothing known", "checksum known"])
def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, place: Path, known: dict[str, str]) -> None:
    server.files["/archive.tar"] = File(DATA, cut=lambda _: 100_000)
    fetch(remote(server, **known), place)
    assert place.read_bytes() == DATA
    assert len(server.asked) == 7
    assert server.sent == len(DATA)
    assert [headers.get("Range") for _, headers in server.asked[:2]] == [None, "bytes=100000-"]


@pytest.mark.slow
def test_many_cuts_are_no_failure_as_long_as_something_comes(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, cut=lambda request: 0 if request % 5 else 50_000)
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert len(server.asked) == 5 * 14


@pytest.mark.parametrize("etag", [True, False])
def test_a_server_that_ignores_ranges_begins_anew(server: Server, place: Path, etag: bool) -> None:
    server.files["/archive.tar"] = File(
        DATA, ranges=False, etag=etag, cut=lambda request: 300_000 if request < 4 else None
    )
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA
    assert server.sent == 3 * 300_000 + len(DATA)


def test_a_server_that_never_gets_past_a_place_is_given_up_and_the_part_is_kept(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, cut=lambda request: 300_000 if request == 1 else 0)
    message = rf"archive\.tar: broke off after 300,000 of 700,000 bytes .*\. Gave up after {web.TRIES} tries in a row"
    with pytest.raises(OSError, match=message):
        fetch(remote(server, md5=MD5), place)
    assert left(place) == {"archive.tar.part", "archive.tar.part.json"}
    server.files["/archive.tar"].cut = lambda _: None
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA
    assert server.sent == len(DATA)
    assert left(place) == {place.name}


def test_a_length_that_is_too_great_is_no_whole_file(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, length=len(DATA) + 5, ranges=False)
    with pytest.raises(OSError, match=r"broke off after 700,000 .*Gave up"):
        fetch(remote(server), place)
    assert place.name not in left(place)


def test_a_length_that_is_too_small_is_seen_by_the_published_one(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, length=len(DATA) - 5)
    with pytest.raises(ValueError, match=r"has 699,995 bytes, the published file 700,000"):
        fetch(remote(server, bytes=len(DATA)), place)
    assert left(place) == set()


def test_a_length_that_is_too_small_is_seen_by_the_checksum(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, length=len(DATA) - 5)
    with pytest.raises(ValueError, match=rf"complete, but its MD5 is [0-9a-f]{{32}}, that of the published file {MD5}"):
        fetch(remote(server, md5=MD5), place)
    assert left(place) == set()


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_another_file_is_not_taken(server: Server, place: Path, name: str) -> None:
    server.files["/archive.tar"] = File(OTHER)
    with pytest.raises(
        ValueError, match=rf"its {name.upper()} is .* The server has another file than the published one"
    ):
        fetch(remote(server, bytes=len(DATA), **{name: {"md5": MD5, "sha256": SHA256}[name]}), place)
    assert left(place) == set()
    assert len(server.asked) == 1


def test_a_file_that_changed_between_two_pieces_is_fetched_anew(server: Server, place: Path) -> None:
    def change(file: File) -> None:
        file.data = DATA

    server.files["/archive.tar"] = File(OTHER, cut=lambda request: 300_000 if request == 1 else None, after=change)
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert [headers.get("Range") for _, headers in server.asked] == [None, "bytes=300000-"]


def test_pieces_of_two_versions_are_seen_by_the_checksum_and_all_is_fetched_anew(server: Server, place: Path) -> None:
    def change(file: File) -> None:
        file.data = DATA

    cut = File(OTHER, etag=False, cut=lambda request: 300_000 if request == 1 else None, after=change)
    server.files["/archive.tar"] = cut
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA
    assert [headers.get("Range") for _, headers in server.asked] == [None, "bytes=300000-", None]


def test_without_a_sign_of_the_version_or_a_checksum_nothing_is_resumed(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, etag=False, cut=lambda request: 300_000 if request == 1 else None)
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert [headers.get("Range") for _, headers in server.asked] == [None, None]


def test_a_part_that_is_whole_is_finished(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA)
    place.parent.mkdir(parents=True)
    place.with_name("archive.tar.part").write_bytes(DATA)
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA
    assert server.sent == 0


def test_a_part_that_is_too_long_is_fetched_anew(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA)
    place.parent.mkdir(parents=True)
    place.with_name("archive.tar.part").write_bytes(DATA + b"more")
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA


@pytest.mark.parametrize(
    "page",
    [
        File(b"<!DOCTYPE html><title>Log in</title>", kind="text/html; charset=utf-8"),
        File(b"\n <!doctype HTML><title>Log in</title>"),
        File(b"<html><body>Log in</body></html>", kind="application/x-tar"),
    ],
    ids=["it says so", "it does not say so", "it says otherwise"],
)
@pytest.mark.parametrize("redirected", [False, True])
def test_a_page_to_log_in_is_no_archive(server: Server, place: Path, page: File, redirected: bool) -> None:
    server.files["/archive.tar"] = File(status=302, headers={"Location": "/login"}) if redirected else page
    server.files["/login"] = page
    with pytest.raises(ValueError, match=r"archive\.tar: an HTML page came, not the file\. Is it a login page\?"):
        fetch(remote(server), place)
    assert {name for name in left(place) if (place.parent / name).stat().st_size} <= {"archive.tar.part.json"}


def test_a_page_in_place_of_the_rest_does_not_spoil_what_came(server: Server, place: Path) -> None:
    page = File(b"<html>session expired</html>", kind="text/html")
    server.files["/archive.tar"] = File(
        DATA, cut=lambda _: 300_000, after=lambda _: server.files.__setitem__("/archive.tar", page)
    )
    with pytest.raises(ValueError, match="an HTML page came"):
        fetch(remote(server), place)
    server.files["/archive.tar"] = File(DATA)
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert server.asked[-1][1]["Range"] == "bytes=300000-"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "wants a login"),
        (403, "wants a login"),
        (404, "mirrors can say where to"),
        (410, "mirrors"),
        (451, "mirrors"),
    ],
)
def test_a_refusal_is_said_at_once(server: Server, place: Path, status: int, said: str) -> None:
    server.files["/archive.tar"] = File(b"no", status=status)
    with pytest.raises(ValueError, match=rf"archive\.tar: answered {status} .*{said}"):
        fetch(remote(server), place)
    assert len(server.asked) == 1
    assert left(place) == set()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_answer_that_may_be_another_one_in_a_moment_is_asked_again(server: Server, place: Path, status: int) -> None:
    server.files["/archive.tar"] = File(DATA, status=status, failures=3)
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert len(server.asked) == 4


def test_the_pauses_double_and_a_server_may_ask_for_longer_ones(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(web, "WAIT", 1.0)
    monkeypatch.setattr(web.time, "sleep", pauses.append)
    server.files["/archive.tar"] = File(DATA, status=503, failures=4)
    fetch(remote(server), place)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert "answered 503 Service Unavailable; again in 4 s" in capsys.readouterr().err
    place.unlink()
    pauses.clear()
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 20))
    for said in ("7", later, "soon", "99999"):
        server.files["/archive.tar"] = File(DATA, status=429, failures=1, headers={"Retry-After": said})
        fetch(remote(server), place)
        place.unlink()
    assert pauses == [7.0, pytest.approx(19.5, abs=1.5), 1.0, web.LONGEST_WAIT]


def test_where_nobody_listens_it_is_given_up(tmp_path: Path, place: Path, server: Server) -> None:
    with serving() as gone:
        pass
    with pytest.raises(OSError, match=r"no answer \(ConnectionError\)\. Gave up after 8 tries"):
        fetch(Remote(url=f"{gone.url}/archive.tar"), place)


def test_a_server_that_falls_silent_is_asked_again(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "TIMEOUT", (5.0, 0.2))
    waiting = threading.Event()

    def silent(_: File) -> None:
        if len(server.asked) == 1:
            waiting.wait(10)

    # it says more than it sends, and keeps the connection
    server.files["/archive.tar"] = File(DATA, length=None, cut=lambda n: 300_000 if n == 1 else None, after=silent)
    fetch(remote(server), place)
    waiting.set()
    assert place.read_bytes() == DATA
    assert server.sent == len(DATA)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that takes minutes takes a tenth of a second; 20 kB in a second have to come."""
    monkeypatch.setattr(web, "SLOWEST", 2000)
    monkeypatch.setattr(web, "WINDOW", 0.1)
    monkeypatch.setattr(web, "ANSWER", 0.3)
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.05)


@pytest.mark.slow
def test_a_server_that_drips_is_given_up_and_what_came_is_kept(
    server: Server, place: Path, hasty: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/archive.tar"] = File(DATA, drip=(10, 0.02))
    began = time.monotonic()
    said = (
        r"/archive\.tar: broke off after [0-9]{2,3} of 700,000 bytes \(only [0-9]{2,3} in 0 s\)\. Gave up after 8 tries"
    )
    with pytest.raises(OSError, match=said + r" .* Run it again, or name another server in machine\.yaml \(mirrors\)"):
        fetch(remote(server), place)
    assert time.monotonic() - began < 20
    assert len(server.asked) == web.TRIES
    told = capsys.readouterr().err
    assert re.search(
        rf"download: waiting for more of {server.url}/archive\.tar: [0-9]+ bytes came in 0\.05 s; tried again if it stays "
        r"below 2,000 in 0\.1 s",
        told,
    )
    assert re.search(r"archive\.tar: broke off after .*; again in 0 s", told)
    came = place.with_name("archive.tar.part").stat().st_size
    server.files["/archive.tar"].drip = None
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert server.asked[-1][1]["Range"] == f"bytes={came}-"


@pytest.mark.slow
def test_a_line_that_is_slow_goes_on(server: Server, place: Path, hasty: None) -> None:
    server.files["/archive.tar"] = File(DATA[:200_000], drip=(5000, 0.02))
    fetch(remote(server), place)
    assert place.read_bytes() == DATA[:200_000]
    assert len(server.asked) == 1


def test_a_server_that_cuts_after_a_few_bytes_again_and_again_is_given_up(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, cut=lambda _: 100)
    with pytest.raises(OSError, match=r"broke off after 800 of 700,000 bytes .*Gave up after 8 tries"):
        fetch(remote(server), place)


@pytest.mark.slow
def test_an_answer_that_never_begins_is_given_up(
    server: Server, place: Path, hasty: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/archive.tar"] = File(never_begins=0.01)
    with pytest.raises(OSError, match=r"/archive\.tar: no answer in 0 s\. Gave up after 8 tries"):
        fetch(remote(server), place)
    assert f"download: waiting for an answer to {server.url}/archive.tar, 0 s at most" in capsys.readouterr().err


@pytest.mark.slow
def test_a_list_that_drips_is_given_up(server: Server, hasty: None) -> None:
    server.files["/list"] = File(b"[" + b" " * 5000 + b"]", drip=(1, 0.01))
    with pytest.raises(
        OSError, match=r"/list: broke off after [0-9]+ bytes in 0 s, which is too slow\. Gave up after 8"
    ):
        web.page(f"{server.url}/list")


def test_a_file_of_unknown_length_needs_a_checksum(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, without_length=True)
    with pytest.raises(ValueError, match="does not say how long the file is, so a truncated file would not be noticed"):
        fetch(remote(server), place)
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA


def test_a_file_of_unknown_length_that_is_cut_is_not_taken(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, without_length=True, ranges=False, cut=lambda _: 300_000)
    with pytest.raises(ValueError, match="its MD5 is"):
        fetch(remote(server, md5=MD5), place)
    with pytest.raises(OSError, match="broke off after 300,000 of 700,000 bytes"):
        fetch(remote(server, bytes=len(DATA)), place)
    assert not place.exists()


def test_chunks_are_put_together_and_a_missing_one_is_noticed(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, chunked=True, cut=lambda request: 300_000 if request == 1 else None)
    fetch(remote(server, md5=MD5), place)
    assert place.read_bytes() == DATA
    assert len(server.asked) == 2


def test_a_full_disk_is_said_before_anything_comes(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, length=2**60)
    with pytest.raises(
        OSError, match=r"store/set: no room for archive\.tar: 1,073,741,824\.0 GiB are needed, and .* free\n"
    ):
        fetch(remote(server), place)


def test_a_mirror_stands_for_the_beginning_of_an_address(server: Server, place: Path) -> None:
    server.files["/near/2012/archive.tar"] = File(DATA)
    mirrors = {"https://image-net.example": f"{server.url}/far", "https://image-net.example/data": f"{server.url}/near"}
    Path("machine.yaml").write_text(json.dumps({"mirrors": mirrors}))
    fetch(Remote(url="https://image-net.example/data/2012/archive.tar"), place)
    assert place.read_bytes() == DATA


def test_a_proxy_of_the_environment_is_asked(server: Server, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/archive.tar"] = File(DATA)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    fetch(Remote(url="http://image-net.example/archive.tar"), place)
    assert server.asked[0][0] == "http://image-net.example/archive.tar"
    assert place.read_bytes() == DATA


def test_a_login_comes_from_netrc(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, wanted="Basic bWU6c2VjcmV0")
    with pytest.raises(ValueError, match=r"answered 401 .*Put one into ~/\.netrc"):
        fetch(remote(server), place)
    Path("netrc").write_text("machine 127.0.0.1 login me password secret\n")
    fetch(remote(server), place)
    assert place.read_bytes() == DATA


def test_a_token_stays_with_the_host_that_it_is_for(server: Server, place: Path) -> None:
    with serving() as other:
        other.files["/signed"] = File(DATA)
        elsewhere = f"http://localhost:{other.url.rpartition(':')[2]}/signed?signature=1"
        server.files["/archive.tar"] = File(status=302, headers={"Location": elsewhere}, wanted="Bearer hf_secret")
        fetch(remote(server), place, {"Authorization": "Bearer hf_secret"})
        assert place.read_bytes() == DATA
        assert "Authorization" not in other.asked[0][1]


def test_no_message_shows_a_password_or_a_signature(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = server.url.replace("://", "://me:secret@")
    with pytest.raises(ValueError, match="answered 404") as caught:
        fetch(Remote(url=f"{address}/gone?signature=abc"), place)
    said = str(caught.value) + capsys.readouterr().err
    assert "secret" not in said
    assert "abc" not in said


@pytest.mark.parametrize(
    "elsewhere",
    [
        "htps://host/x?Policy=hidden-one",
        "http://host:port/x?Policy=hidden-one",
        "http://me:hidden-one@host:port/x",
        "htps://me:hidden-one@host/x",
    ],
)
def test_a_library_s_words_on_a_redirect_show_no_login_and_no_query(
    server: Server, place: Path, elsewhere: str
) -> None:
    server.files["/archive.tar"] = File(status=302, headers={"Location": elsewhere})
    with pytest.raises(ValueError, match=rf"^{server.url}/archive.tar: ") as caught:
        fetch(remote(server), place)
    assert "hidden-one" not in str(caught.value)


def test_two_who_want_the_same_file_fetch_it_once(server: Server, place: Path) -> None:
    server.files["/archive.tar"] = File(DATA, cut=lambda _: 100_000)
    both = [threading.Thread(target=fetch, args=(remote(server, md5=MD5), place)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert place.read_bytes() == DATA
    assert server.sent == len(DATA)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_the_next_run_goes_on(server: Server, place: Path, sign: signal.Signals) -> None:
    waiting = threading.Event()

    def hold(_: File) -> None:
        if len(server.asked) == 1:
            waiting.wait(20)

    server.files["/archive.tar"] = File(DATA, cut=lambda request: 300_000 if request == 1 else None, after=hold)
    program = f"from pipeline.runtime.fetch import *; fetch(Remote(url={server.url + '/archive.tar'!r}), Path({str(place)!r}))"
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        part = place.with_name("archive.tar.part")
        while process.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        process.send_signal(sign)
    waiting.set()
    assert not place.exists()
    came = part.stat().st_size
    assert 0 < came <= 300_000
    fetch(remote(server), place)
    assert place.read_bytes() == DATA
    assert server.asked[-1][1]["Range"] == f"bytes={came}-"
    assert left(place) == {place.name}
