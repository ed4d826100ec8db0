"""A full disk while an archive is fetched, drawn or repacked: the messages, and the files that are left."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import resource
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.archives import repacked, tars
from pipeline.archives.store import StorePath
from pipeline.runtime import web
from pipeline.runtime.fetch import Remote, fetch
from pipeline.sources import huggingface, sample
from tests.pipeline.server import File, Server, serving

DATA = hashlib.shake_256(b"a picture").digest(300_000)
TODO = (
    "Make room there, or name a folder on another disk in machine.yaml (store, or storage for all that is written).\n"
    "Then run again: dvc repro goes on where it was"
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("ALEXNET_MACHINE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "WAIT", 0.001)
    with serving() as state:
        yield state


@pytest.fixture
def limited() -> Iterator[None]:
    """Limits every file to 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def packed(file: Path, names: int = 1) -> Path:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for number in range(names):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(DATA)
            tar.addfile(member, io.BytesIO(DATA))
    file.write_bytes(gzip.compress(whole.getvalue(), 1))
    return file


def zipped(file: Path, names: int = 1) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipping:
        for number in range(names):
            zipping.writestr(f"{number}.jpg", bytes(300_000))
    return file


def repack(file: Path, unpack: Callable[[Path], repacked.Files]) -> None:
    stored = StorePath(file.parent) / file.name
    repacked.tree_of(stored, tars.hash_file(stored), unpack)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_is_repacked_and_finds_no_room_leaves_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = packed(tmp_path / "a.tgz")
    request.getfixturevalue("limited")
    with pytest.raises(
        OSError, match=rf"^{tmp_path}/repacked: no room for a\.tgz-\w+\.tar: File too large after"
    ) as caught:
        repack(file, repacked.untar)
    assert str(caught.value).endswith(f"free\n{TODO}")
    assert files(tmp_path) == {"a.tgz"}


def test_what_is_fetched_and_finds_no_room_is_tried_once_and_kept(
    server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server.files["/a.tar"] = File(DATA)
    request.getfixturevalue("limited")
    with pytest.raises(
        OSError, match=r"no room for a\.tar: File too large after 0\.1 MiB, with .* free; that is kept\n"
    ):
        fetch(Remote(url=f"{server.url}/a.tar"), tmp_path / "set/a.tar")
    assert len(server.asked) == 1
    assert files(tmp_path / "set") == {"a.tar.part", "a.tar.part.json"}


def test_so_is_a_sample_that_is_drawn(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("limited")
    with pytest.raises(OSError, match=r"no room for ILSVRC2012_img_train\.tar: File too large after"):
        sample.make(tmp_path / "sample", 0, 20, 10, "easy")
    assert not files(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_an_archive_that_does_not_fit_unpacked_is_refused_before_it_is_repacked(disk: Path, kind: str) -> None:
    file = (zipped if kind == "zip" else packed)(disk / f"a.{kind}", 4 if kind == "zip" else 2)
    said = (
        rf"^{disk}/repacked: no room for a\.{kind}-\w+\.tar: (1\.1|0\.6) MiB are needed, and (1\.0|0\.4) MiB are free\n"
    )
    with pytest.raises(OSError, match=said):
        repack(file, repacked.unzip if kind == "zip" else repacked.untar)
    assert files(disk) == {file.name}


@pytest.mark.faults
def test_a_disk_that_fills_while_it_is_repacked_leaves_nothing(disk: Path) -> None:
    file = packed(disk / "a.tgz", 2)
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))  # it says that nothing comes out
    with pytest.raises(
        OSError, match=rf"^{disk}/repacked: no room for .*\.tar: 0\.3 MiB are needed, and 0\.1 MiB are free"
    ):
        repack(file, repacked.untar)
    assert files(disk) == {"a.tgz"}


@pytest.mark.faults
def test_files_of_the_hub_that_do_not_fit_together_are_refused_before_the_first(
    server: Server, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    names = [f"train-{number:05}-of-00004.parquet" for number in range(4)]
    listed = [{"type": "file", "path": f"data/{name}", "size": len(DATA), "oid": "1"} for name in names]
    server.files["/api/datasets/me/pets/tree/main"] = File(json.dumps(listed).encode())
    section = huggingface.HuggingFace(
        name="huggingface", dataset="me/pets", revision="main", classes="all", complete=True
    )
    with pytest.raises(
        OSError, match=rf"^{disk}/huggingface/me/pets: no room for {names[0]}: 1\.1 MiB are needed, and 1\.0"
    ):
        section.contents(disk)
    assert len(server.asked) == 1
    assert not files(disk)
