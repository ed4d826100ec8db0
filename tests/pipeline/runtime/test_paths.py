"""Files and folders on a real S3 server, against the same on a disk: stores, shards, and what goes wrong there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipeline import download, mean, resize
from pipeline.runtime import digests, files, params, paths, read_ahead, stage, waiting
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import AnyPath, S3Path
from pipeline.shards import artifacts, tables
from pipeline.shards.batches import Pictures, batches, order
from pipeline.shards.manifest import Manifest
from tests.pipeline import layouts, sections
from tests.pipeline.object_store import CREDENTIALS, ObjectStore, serving
from tests.sections import LEARNING

ROOT = Path(__file__).parents[3]
RESIZE = dataclasses.replace(sections.RESIZE, side=32, shuffle_seed=3, images_per_shard=4)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with serving() as store:
        yield store


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server, as a user's environment names it. Ray's workers began before it and know nothing of it."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("DVC_ROOT", "DVC_STAGE", "ALEXNET_MACHINE", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "TRIES", 2)  # else a failure of the server takes minutes
    paths._connected.cache_clear()
    server.asked.clear()
    yield server
    server.fails = lambda _method, _path: False
    paths._connected.cache_clear()


def working_copy(folder: Path, source: dict[str, Any], **machine: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(json.dumps({"source": source, "resize": dataclasses.asdict(RESIZE)}))
    (folder / "machine.yaml").write_text(json.dumps({"workers": 2, **machine}))
    return folder


def outs(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for name in ("index", "shards", "mean.npz")
        for file in sorted([folder / "data" / name, *(folder / "data" / name).rglob("*")])
        if file.is_file()
    }


def run(folder: Path) -> None:
    with contextlib.chdir(folder):
        download.run()
        resize.run()
        mean.run()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A working copy without any object store, after download, resize and mean."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ALEXNET_MACHINE", raising=False)
        run(working_copy(folder, layouts.ilsvrc(folder / "data/store", 2012).section))
    return folder


def section(folder: Path) -> dict[str, Any]:
    return dict(params.load(folder / "params.yaml")["source"])


# The whole of it


@pytest.mark.slow
def test_with_store_and_shards_on_s3_all_bytes_are_those_of_a_disk(
    local: Path, s3: ObjectStore, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    s3.fill(local / "data/store", f"{bucket}/deep/store")
    before = s3.contents(f"{bucket}/deep/store")
    places = {"store": f"s3://{bucket}/deep/store", "shards": f"s3://{bucket}/shards"}
    run(working_copy(tmp_path, section(local), **places))
    here, there = outs(tmp_path), outs(local)
    assert {name: there[name] for name in here} == here
    assert there.keys() - here.keys() == {name for name in there if "-of-" in name}
    with contextlib.chdir(tmp_path):
        digest = Manifest.read(artifacts.SHARDS).digest
    wanted = {Path(name).name: data for name, data in there.items() if name.startswith("data/shards/")}
    stored = s3.contents(f"{bucket}/shards")
    assert stored == {f"{digest}/{name}": data for name, data in wanted.items()}
    assert s3.contents(f"{bucket}/deep/store") == before
    assert not (tmp_path / "work/resize").exists()
    # the manifest is what DVC holds, so it says nothing of where and with what the shards were written
    assert all(word not in here["data/shards/manifest.json"].decode() for word in (bucket, *CREDENTIALS.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", layouts.ALL)
def test_each_source_is_read_where_it_is_or_says_what_to_do(name: str, s3: ObjectStore, tmp_path: Path) -> None:
    layout = layouts.ALL[name](tmp_path / "store")
    source = params.check(layout.section, download.SOURCES, Path("params.yaml"), "source")
    bucket = s3.bucket()
    s3.fill(tmp_path / "store", bucket)
    on_disk = source.contents(tmp_path / "store")
    if (tmp_path / "store/repacked").exists():
        before = s3.contents(bucket)
        with pytest.raises(
            ValueError, match=r"^s3://bucket-\d+/repacked/\S+\.tar: not there, .*aws s3 sync data/store"
        ):
            source.contents(paths.parse(f"s3://{bucket}"))
        assert s3.contents(bucket) == before
        s3.fill(tmp_path / "store", bucket)
    on_s3 = source.contents(paths.parse(f"s3://{bucket}"))
    assert (on_s3.pictures, on_s3.archives, on_s3.classes) == (on_disk.pictures, on_disk.archives, on_disk.classes)
    said = [note.replace(str(tmp_path / "store"), f"s3://{bucket}") for note in on_disk.notes]
    assert list(on_s3.notes) == said


@pytest.mark.slow
def test_the_sample_is_not_drawn_on_s3_but_used_there(s3: ObjectStore, tmp_path: Path) -> None:
    bucket = s3.bucket()
    asked = {"name": "sample", "seed": 0, "train_images": 20, "val_images": 10, "level": "easy"}
    source = params.check(asked, download.SOURCES, Path("params.yaml"), "source")
    with pytest.raises(ValueError, match=r"s3://\S+/sample-\w+: not there, .* Do that on a disk"):
        source.contents(paths.parse(f"s3://{bucket}"))
    on_disk = source.contents(tmp_path)
    s3.fill(tmp_path, bucket)
    assert source.contents(paths.parse(f"s3://{bucket}")).pictures == on_disk.pictures


def test_what_is_missing_is_not_fetched_to_s3(s3: ObjectStore) -> None:
    asked = {"name": "ilsvrc2012", "classes": "all", "complete": True}
    source = params.check(asked, download.SOURCES, Path("params.yaml"), "source")
    with pytest.raises(
        ValueError, match=r"ilsvrc2012/ILSVRC2012_devkit_t12\.tar\.gz: not there, .* nothing is fetched"
    ):
        source.contents(paths.parse(f"s3://{s3.bucket()}"))


def test_batches_from_s3_are_those_from_a_disk(local: Path, s3: ObjectStore) -> None:
    manifest = Manifest.read(local / "data/shards")
    bucket = s3.bucket()
    s3.fill(local / "data/shards", bucket)
    learning = dataclasses.replace(LEARNING, batch_size=5, streams=3)
    folders: list[AnyPath] = [local / "data/shards", paths.parse(f"s3://{bucket}")]
    read = []
    for folder in folders:
        stored = Pictures(folder, manifest.shards["train"])
        read.append(list(batches(stored, order(stored, learning, 1), 5, threads=2)))
    assert sum(batch.count for batch in read[0]) == manifest.rows("train")
    for here, there in zip(*read, strict=True):
        assert (here.positions_B == there.positions_B).all()
        assert (here.images_BCHW == there.images_BCHW).all()
        assert (here.labels_B == there.labels_B).all()


def test_a_folder_is_sealed_there_as_on_a_disk(s3: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a b.json").write_text("{}")
    bucket = s3.bucket()
    s3.fill(tmp_path, f"{bucket}/deep")
    there = paths.parse(f"s3://{bucket}/deep")
    for folder in (tmp_path, there):
        digests.seal(folder)
    assert (there / digests.SUMS).read_bytes() == (tmp_path / digests.SUMS).read_bytes()
    assert digests.read(there / "a b.json", "resize") == b"{}"
    with s3.system.open_output_stream(f"{bucket}/deep/a b.json") as out:
        out.write(b"[]")
    with pytest.raises(ValueError, match=r"^s3://\S+/deep/a b\.json: not as 'resize' wrote it"):
        digests.check(there / "a b.json", "resize")
    with pytest.raises(FileNotFoundError, match=r"^s3://\S+/none: not there\. Run: dvc repro resize"):
        digests.check(there / "none", "resize")


# Whole or not at all


def begun(local: Path, folder: Path, bucket: str) -> tuple[Machine, AnyPath, list[resize.Task], resize.Index]:
    """What `resize` has before its first shard."""
    places = {"store": f"{local}/data/store", "shards": f"s3://{bucket}/shards"}
    working_copy(folder, section(local), **places)
    settings = Machine(**places)
    index = resize.read_index(local / resize.INDEX)
    work = resize.prepare_work(resize.key(RESIZE, index), settings)
    return settings, work, resize.plan(RESIZE, index, work, local / "data/store"), index


def test_a_shard_that_fails_leaves_nothing_and_a_rerun_takes_over_the_others(
    local: Path, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = s3.bucket()
    settings, work, tasks, index = begun(local, tmp_path, bucket)
    s3.fails = lambda method, path: method in ("PUT", "POST") and tasks[1].file in path
    done = [resize.make_shard(tasks[0])]
    with pytest.raises(OSError, match="CreateMultipartUpload"):
        resize.make_shard(tasks[1])
    staged = s3.contents(f"{bucket}/shards/work")
    assert [name.split("/", 1)[1] for name in staged] == [f"done/{tasks[0].file}.json", f"shards/{tasks[0].file}"]
    s3.fails = lambda _method, _path: False
    with s3.system.open_output_stream(f"{work}".removeprefix("s3://") + "/shards/of-other-code") as out:
        out.write(b"PAR1")
    s3.asked.clear()
    resize.prepare_work(work.name, settings)
    done = [resize.make_shard(task) for task in tasks]
    written = {path.partition("?")[0] for method, path in s3.asked if method in ("PUT", "POST")}
    assert len(written) == 2 * (len(tasks) - 1)
    assert not any(tasks[0].file in path for path in written)
    made = {task.file: each for task, each in zip(tasks, done, strict=True)}
    resize.publish(made, RESIZE, index, work, settings)
    wanted = {name.name: name.read_bytes() for name in (local / "data/shards").iterdir()}
    stored = {name.split("/")[1]: data for name, data in s3.contents(f"{bucket}/shards").items()}
    assert stored == wanted


def test_the_manifest_is_the_last_to_appear_beside_the_shards(local: Path, s3: ObjectStore, tmp_path: Path) -> None:
    bucket = s3.bucket()
    s3.fill(local / "data/shards", f"{bucket}/made")
    s3.asked.clear()
    files.put(paths.parse(f"s3://{bucket}/made"), paths.parse(f"s3://{bucket}/out"), "manifest.json")
    put = [path.partition("?")[0] for method, path in s3.asked if method == "PUT"]
    assert len(put) == len(list((local / "data/shards").iterdir()))
    assert put[-1] == f"/{bucket}/out/manifest.json"


def test_what_is_finished_is_taken_over_only_if_its_bytes_are_still_those(
    local: Path, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, work, (task, *_), _ = begun(local, tmp_path, s3.bucket())
    resize.make_shard(task)
    file = work / "shards" / task.file
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    with files.atomic(file) as made:
        made.write_bytes(data)
    resize.make_shard(task)
    assert file.read_bytes() == (local / "data/shards" / task.file).read_bytes()


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_file_is_there_when_it_is_whole_and_not_before(where: str, s3: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "made" if where == "disk" else paths.parse(f"s3://{s3.bucket()}")
    with pytest.raises(KeyError), files.atomic(folder / "deep/file") as made:
        made.write_bytes(b"a part")
        raise KeyError
    assert not (folder / "deep").is_dir() or files.listed(folder) == []
    with files.atomic(folder / "deep/file") as made:
        made.write_bytes(b"all of it")
    assert (folder / "deep/file").read_bytes() == b"all of it"
    assert (folder / "deep/file").read_text() == "all of it"
    assert files.listed(folder)[-1] == ("deep/file", 9)


@pytest.mark.slow
def test_an_upload_that_breaks_off_leaves_nothing(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    s3.fails = lambda method, path: method == "PUT" and "partNumber=2" in path
    with pytest.raises(OSError, match="UploadPart"), files.atomic(paths.parse(f"s3://{bucket}/large")) as made:
        made.write_bytes(random.Random(0).randbytes(25 * 2**20))
    assert s3.contents(bucket) == {}


@pytest.mark.slow
def test_a_signal_during_an_upload_leaves_no_part_of_it(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    data = random.Random(0).randbytes(12 * 2**20)
    monkeypatch.setattr(s3, "latency", 0.1)

    def stop(*_: object) -> None:
        raise stage.Stopped(143)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(stage.Stopped), files.atomic(paths.parse(f"s3://{bucket}/large")) as made:
            made.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, 0.15)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert list(s3.contents(bucket).values()) in ([], [data])


@pytest.mark.slow
def test_killed_while_it_uploads_a_rerun_ends_with_the_same_shards(
    local: Path, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process in place of Ray's workers: what a worker that is killed leaves does not depend on who started it."""
    monkeypatch.chdir(tmp_path)
    bucket = s3.bucket()
    settings, work, tasks, index = begun(local, tmp_path, bucket)
    (tmp_path / "tasks").write_bytes(pickle.dumps(tasks))
    program = (
        "import pickle, pathlib; from pipeline import resize\n"
        "for task in pickle.loads(pathlib.Path('tasks').read_bytes()): resize.make_shard(task)"
    )
    killed = []

    def kill(method: str, path: str) -> bool:
        if method in ("PUT", "POST") and f"shards/{tasks[2].file}" in path and not killed:
            killed.append(path)
            process.kill()
        return bool(killed)

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    s3.fails = kill
    assert process.wait(60) == -9
    s3.fails = lambda _method, _path: False
    staged = [name.split("/", 1)[1] for name in s3.contents(f"{bucket}/shards/work")]
    assert sorted(staged) == sorted(
        name for task in tasks[:2] for name in (f"shards/{task.file}", f"done/{task.file}.json")
    )
    made = {task.file: resize.make_shard(task) for task in tasks}
    resize.publish(made, RESIZE, index, work, settings)
    wanted = {name.name: name.read_bytes() for name in (local / "data/shards").iterdir()}
    assert {name.split("/")[1]: data for name, data in s3.contents(f"{bucket}/shards").items()} == wanted


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_shard_that_is_not_what_the_manifest_says_is_named(local: Path, s3: ObjectStore, how: str) -> None:
    manifest = Manifest.read(local / "data/shards")
    bucket = s3.bucket()
    settings = Machine(shards=f"s3://{bucket}/x")
    s3.fill(local / "data/shards", f"{bucket}/x/{manifest.digest}")
    assert artifacts.locate(manifest, settings) == paths.parse(f"s3://{bucket}/x/{manifest.digest}")
    shard = manifest.shards["train"][1]
    key = f"{bucket}/x/{manifest.digest}/{shard.file}"
    s3.system.delete_file(key)
    if how == "cut":
        with s3.system.open_output_stream(key) as out:
            out.write(b"PAR1")
    said = "not there" if how == "gone" else f"has 4 bytes, was made with {shard.bytes}"
    with pytest.raises(ValueError, match=rf"^s3://{key}: {said}\. Run: dvc repro --force --single-item resize$"):
        artifacts.locate(manifest, settings)


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_an_archive_that_is_not_what_was_indexed_is_named(local: Path, s3: ObjectStore, how: str) -> None:
    bucket = s3.bucket()
    s3.fill(local / "data/store", bucket)
    index = resize.read_index(local / resize.INDEX)
    resize.check_store(index, paths.parse(f"s3://{bucket}"))
    key = f"{bucket}/ilsvrc2012/ILSVRC2012_img_val.tar"
    s3.system.delete_file(key)
    if how == "cut":
        with s3.system.open_output_stream(key) as out:
            out.write(b"tar")
    with pytest.raises(ValueError, match=f"s3://{key}: {'missing' if how == 'gone' else 'has 3 bytes, had '}"):
        resize.check_store(index, paths.parse(f"s3://{bucket}"))


# Reading


def test_reading_front_to_back_gives_the_bytes_wherever_one_goes_back(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "BLOCK", 1000)
    data = random.Random(1).randbytes(12_345)
    path = paths.parse(f"s3://{s3.bucket()}/file")
    with files.atomic(path) as made:
        made.write_bytes(data)
    s3.asked.clear()
    assert path.read_bytes() == data
    assert sum(method == "GET" for method, _ in s3.asked) == 13  # each block once
    with path.open("rb") as file:
        assert file.seek(0, os.SEEK_END) == len(data)
        for start, length in ((0, 10), (10, 2500), (2000, 512), (11_999, 9999), (0, 3), (20_000, 5)):
            file.seek(start)
            assert file.read(length) == data[start : start + length]


def test_a_tar_is_indexed_by_few_large_reads(local: Path, s3: ObjectStore) -> None:
    bucket = s3.bucket()
    s3.fill(local / "data/store", bucket)
    source = params.check(section(local), download.SOURCES, Path("params.yaml"), "source")
    s3.asked.clear()
    source.contents(paths.parse(f"s3://{bucket}"))
    read = [path for method, path in s3.asked if method == "GET"]
    assert len(read) == 4  # the devkit twice, and each archive once


def test_a_row_group_is_two_requests_and_no_shard_is_opened_for_its_end_twice(local: Path, s3: ObjectStore) -> None:
    manifest = Manifest.read(local / "data/shards")
    bucket = s3.bucket()
    s3.fill(local / "data/shards", bucket)
    stored = Pictures(paths.parse(f"s3://{bucket}"), manifest.shards["train"])
    stored.read(0)  # compares the shard's sha256, once
    s3.asked.clear()
    stored.read(0)
    assert [method for method, _ in s3.asked].count("HEAD") == 1
    assert len(s3.asked) <= 3


# What goes wrong


@pytest.mark.parametrize(
    ("changes", "bucket", "said"),
    [
        (
            {},
            "no-such-bucket",
            r"^s3://no-such-bucket at http://127\S+: there is no such bucket\. Make it, or name another",
        ),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "bucket-1", "refused. The environment has no credent"),
        ({"AWS_ACCESS_KEY_ID": "somebody"}, "bucket-1", "refused. .* put them into AWS_ACCESS_KEY_ID"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "bucket-1",
            r"at http://127\.0\.0\.1:9: no answer .*AWS_ENDPOINT_URL",
        ),
    ],
    ids=["no bucket", "no credentials", "others", "no server"],
)
@pytest.mark.slow
def test_a_store_that_cannot_be_used_is_named_with_the_reason(
    s3: ObjectStore,
    tmp_path: Path,
    changes: dict[str, str],
    bucket: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.bucket()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in changes.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    working_copy(tmp_path, {"name": "ilsvrc2012", "classes": "all", "complete": False}, store=f"s3://{bucket}/set")
    with contextlib.chdir(tmp_path), pytest.raises(OSError, match=said) as caught:
        download.run()
    assert "\n" not in str(caught.value)
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_a_worker_s_error_names_the_file_and_no_secret(local: Path, s3: ObjectStore) -> None:
    bucket = s3.bucket()
    s3.fill(local / "data/shards", bucket)
    manifest = Manifest.read(local / "data/shards")
    shard = manifest.shards["train"][0]
    file = paths.parse(f"s3://{bucket}/{shard.file}")
    s3.fails = lambda method, path: method == "GET" and "train-" in path
    with pytest.raises(OSError, match=rf"^{file}: gone or damaged: .*GetObject") as caught:
        mean.of_shard(mean.Task(file=file, shard=shard))
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=rf"^s3://{bucket}/absent: not there$"):
        tables.read(paths.parse(f"s3://{bucket}/absent"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "s3://me:hidden@bucket/x",
            r"^s3://…@bucket: credentials do not belong here\. Put them into AWS_ACCESS_KEY_ID",
        ),
        (
            "s3://bucket/x?secret_key=hidden",
            r"^s3://bucket/x: 'secret_key' is not known; .* Credentials belong into AWS_",
        ),
        (
            "s3://bucket/x?endpoint_override=http://me:hidden@host:9000",
            r"^s3://bucket/x: its endpoint has a login before host:9000 .* Put it into AWS_ACCESS_KEY_ID",
        ),
        ("gs://bucket/x", r"^gs:// is no address that is known here"),
        ("s3:///x", r"^s3:///x: names no bucket"),
    ],
    ids=["credentials", "a secret", "a login", "another scheme", "no bucket"],
)
def test_an_address_that_cannot_be_is_refused_and_a_secret_not_repeated(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        paths.parse(text)
    assert "hidden" not in str(caught.value)
    for name in ("store", "shards", "storage"):
        with pytest.raises(ValueError, match=f"^{name}: {said.removeprefix('^')}"):
            Machine(**{name: text})


def test_the_endpoint_is_that_of_the_address_else_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)

    def found(text: str) -> tuple[str | None, str | None]:
        path = paths.parse(text)
        assert isinstance(path, S3Path)
        return path.endpoint, path.region

    assert found("s3://bucket/x") == (None, None)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert found("s3://bucket/x") == (None, "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    assert found("s3://bucket/x") == ("http://minio:9000", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://objects.example")
    assert found("s3://bucket/x") == ("https://objects.example", "eu-west-1")
    assert found("s3://bucket/x?endpoint_override=h:1&scheme=http&region=here") == ("http://h:1", "here")
    assert found("s3://bucket/x?endpoint_override=h") == ("https://h", "eu-west-1")


def test_shards_lie_here_in_the_storage_or_where_the_settings_say(tmp_path: Path) -> None:
    assert artifacts.elsewhere(Machine()) is None
    assert artifacts.elsewhere(Machine(storage=str(tmp_path))) == tmp_path / "shards"
    assert artifacts.elsewhere(Machine(storage="/nowhere", shards=str(tmp_path))) == tmp_path
    assert str(artifacts.elsewhere(Machine(shards="s3://bucket/x?region=here"))) == "s3://bucket/x"
    with pytest.raises(ValueError, match=r"^shards has to be an absolute path or s3://bucket/folder, is data/shards$"):
        Machine(shards="data/shards")
    with pytest.raises(ValueError, match=r"^storage has to be an absolute path, .* is s3://bucket/x$"):
        Machine(storage="s3://bucket/x")


# DVC


@pytest.mark.slow
def test_dvc_pushes_and_pulls_the_shards(local: Path, s3: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        with files.atomic(tmp_path / "data/shards" / name) as made:
            made.write_bytes(random.Random(name).randbytes(10_000))
    bucket = s3.bucket()

    def run(*words: str) -> None:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environment |= {"DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("dvc", "remote", "add", "-d", "objects", f"s3://{bucket}/dvc")
    run("dvc", "remote", "modify", "objects", "endpointurl", s3.endpoint)
    run("dvc", "add", "-q", "data/shards")
    run("dvc", "push")
    before = {file.name: file.read_bytes() for file in (tmp_path / "data/shards").iterdir()}
    assert set(before.values()) < set(s3.contents(f"{bucket}/dvc").values())
    files.discard(tmp_path / "data/shards")
    files.discard(tmp_path / ".dvc/cache")
    run("dvc", "pull")
    assert {file.name: file.read_bytes() for file in (tmp_path / "data/shards").iterdir()} == before


def test_who_waits_for_another_working_copy_says_so_and_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.05)
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    held = FileLock(tmp_path / "archive.tar.lock")
    target = tmp_path / "archive.tar"
    said = f"gave up waiting for another that makes {target} after 0 s"
    with held, pytest.raises(TimeoutError, match=re.escape(said)), files.locked(target):
        pass
    assert capsys.readouterr().err == f"download: waiting for another that makes {target}, 0 s at most\n"
