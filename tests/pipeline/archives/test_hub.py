"""The Hub's list of files, over a server on loopback: what is asked, what is refused, and what never happens."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from pipeline.archives import hub
from pipeline.runtime import web
from tests.pipeline.server import File, Server, serving
from tests.pipeline.sources.test_sources import hub_entry

TREE = "/api/datasets/me/pets/tree/main"
NAME = "data/train-00000-of-00001.parquet"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("ALEXNET_MACHINE", raising=False)
    monkeypatch.chdir(tmp_path)
    with serving() as state:
        yield state


def listed(server: Server, folder: str = "", token: str | None = "hf_mine") -> dict[str, Any]:
    return dict(hub.listed(server.url, "me/pets", "main", folder, token))


def answer(server: Server, *entries: Any, **how: Any) -> None:
    server.files[TREE] = File(json.dumps(entries).encode(), **how)


def test_the_list_has_each_parquet_file_with_its_address_size_and_digest(server: Server) -> None:
    answer(
        server,
        hub_entry(NAME, b"abc"),
        hub_entry("README.md", b""),
        {"type": "directory", "path": "a.parquet", "oid": "1"},
    )
    ((path, remote),) = listed(server).items()
    assert (path, remote.bytes, remote.sha256) == (NAME, 3, hub_entry(NAME, b"abc")["lfs"]["oid"])
    assert remote.url == f"{server.url}/datasets/me/pets/resolve/main/{NAME}"
    ((asked, headers),) = server.asked
    assert asked == f"{TREE}?recursive=true&expand=false"
    assert headers["Authorization"] == "Bearer hf_mine"
    assert "torch" not in headers["User-Agent"]
    listed(server, token=None)
    assert "Authorization" not in server.asked[1][1]


def test_a_file_without_a_digest_or_a_size_that_can_be_is_fetched_all_the_same(server: Server) -> None:
    answer(server, {"type": "file", "path": NAME, "size": -1, "oid": "1"})
    assert (listed(server)[NAME].bytes, listed(server)[NAME].sha256) == (None, None)


@pytest.mark.parametrize(
    ("data", "headers", "said"),
    [
        (b"[" + b" " * 2000 + b"]", {}, "answers with more than 1,000 bytes"),
        (b'{"error": 1}', {}, "something else than a list"),
        (b"[1]", {}, "something else than a list"),
        (b"[" * 900, {}, "something else than a list"),
        (b"[{}]", {}, "something else than a list of files"),
        (b'[{"type": "file", "path": "a.parquet"}]', {}, "something else than a list of files"),
        (b"[]", {"Link": '<https://elsewhere.example/2>; rel="next"'}, "at https://elsewhere.example/2, another server"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_refused(
    server: Server, data: bytes, headers: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "LISTING", 1000)
    monkeypatch.setattr(web, "TRIES", 1)  # where the other server would be asked
    server.files[TREE] = File(data, headers=headers)
    with pytest.raises(ValueError, match=said) as told:
        listed(server)
    assert type(told.value) is ValueError
    assert "hf_mine" not in str(told.value)


def test_a_list_without_an_end_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PAGES", 3)
    answer(server, hub_entry(NAME, b"abc"), headers={"Link": f'<{TREE}?cursor=1>; rel="next"'})
    server.files[TREE].after = lambda file: file.headers.clear() if len(server.asked) == 5 else None
    with pytest.raises(ValueError, match="a list of more than 3 pages"):
        listed(server)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "", "answered 401: it wants a login, .*HF_TOKEN"),
        (
            401,
            "RepoNotFound",
            r"answered 401: there is no such data set \(params\.yaml: source\.dataset\), or .*HF_TOKEN",
        ),
        (403, "GatedRepo", "answered 403: its terms have to be accepted: .*me/pets.*HF_TOKEN"),
        (403, "", "answered 403: it wants a login"),
        (404, "RevisionNotFound", r"answered 404: it has no revision 'main'\..*source\.revision"),
        (404, "EntryNotFound", r"answered 404: it has no folder 'data'\..*source\.config"),
        (418, "", "answered 418: HF_ENDPOINT"),
    ],
)
def test_a_refusal_says_what_to_do(server: Server, status: int, code: str, said: str) -> None:
    server.files[f"{TREE}/data"] = File(status=status, headers={"X-Error-Code": code} if code else {})
    with pytest.raises(ValueError, match=rf"{server.url}: me/pets at main: {said}") as told:
        listed(server, "data")
    assert "hf_mine" not in str(told.value)
    assert len(server.asked) == 1


def test_a_server_that_fails_for_a_moment_is_asked_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(web, "WAIT", 0.01)
    answer(server, hub_entry(NAME, b"abc"), status=503, failures=2)
    with caplog.at_level(logging.WARNING):
        assert list(listed(server)) == [NAME]
    assert len(server.asked) == 3
    assert not caplog.records, "the library waited as well"


def test_a_mirror_of_machine_yaml_is_asked_and_may_name_the_next_page(server: Server) -> None:
    Path("machine.yaml").write_text(f"mirrors: {{'https://huggingface.co': '{server.url}'}}")
    answer(server, hub_entry(NAME, b"abc"), headers={"Link": f'<{server.url}/next>; rel="next"'})
    server.files["/next"] = File(json.dumps([hub_entry("b.parquet", b"x")]).encode())
    assert list(dict(hub.listed("https://huggingface.co", "me/pets", "main", "", "hf_mine"))) == [NAME, "b.parquet"]


def test_a_name_that_no_data_set_has_and_an_offline_machine_are_said(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"Correct params\.yaml: source\.dataset") as told:
        list(hub.listed(server.url, "me/a?b", "main", "", None))
    assert type(told.value) is ValueError
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set\. Unset it, or set source\.complete: false"):
        listed(server)
    assert not server.asked


def test_the_library_has_its_own_client_again_afterwards(server: Server) -> None:
    answer(server)
    assert listed(server) == {}
    assert not isinstance(get_session()._transport, hub._Transport)
    assert isinstance(get_session(), httpx2.Client)


def test_no_token_is_taken_from_the_home_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be refreshed, without a limit on the wait; and it is in no list of secrets here."""
    (tmp_path / "token").write_text("hf_of_the_home_folder")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    answer(server)
    listed(server, token=None)
    assert "Authorization" not in server.asked[0][1]


def test_nothing_is_written_to_the_home_folder_and_nothing_else_is_asked(server: Server, tmp_path: Path) -> None:
    answer(server, hub_entry(NAME, b"abc"))
    program = f"from pipeline.archives import hub; print(len(list(hub.listed({server.url!r}, 'me/pets', 'main', '', 'hf_mine'))))"
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "XDG_")) and "TELEMETRY" not in name
    }
    kept.pop("DO_NOT_TRACK", None)
    environment = {**kept, "HOME": str(home), "HF_ENDPOINT": server.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert len(server.asked) == 1
    assert not list(home.rglob("*"))
