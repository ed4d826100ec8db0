"""A library's error becomes three lines at most: each is raised here by its library, and not made up."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
import resource
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.runtime import edges, files

ROOT = Path(__file__).parents[3]


def words(act: Callable[[], object]) -> str | None:
    """What is said of the error that an act raises."""
    try:
        act()
    except Exception as error:
        return edges.message(error)
    raise AssertionError("no error was raised")


def told(act: Callable[[], object], *parts: str) -> str:
    """The same, as lines for a user: few, plain, with the parts."""
    said = words(act)
    assert said is not None, "a raw traceback"
    lines = said.splitlines()
    assert 1 <= len(lines) <= 3, said
    assert max(map(len, lines)) < 400
    assert "Traceback" not in said
    for part in parts:
        assert part in said
    return said


# Files


def test_a_zip_a_gz_and_a_tar_that_are_no_such_thing(tmp_path: Path) -> None:
    file = tmp_path / "pictures"
    file.write_bytes(b"no archive at all" * 99)
    told(lambda: zipfile.ZipFile(file), "damaged", "not a zip file")
    told(lambda: gzip.decompress(file.read_bytes()), "damaged", "Not a gzipped file")
    told(lambda: tarfile.TarFile(file), "damaged")
    told(lambda: zlib.decompress(b"xx"), "damaged", "while decompressing")
    told(lambda: pickle.loads(b"\x80"), "damaged", "make")
    told(lambda: pickle.loads(b""), "not whole", "make")  # EOFError, which says nothing itself


def test_a_member_of_a_zip_with_a_wrong_checksum(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"hello hello hello")
    data = bytearray(file.read_bytes())
    data[data.index(b"hello")] ^= 1
    file.write_bytes(data)
    told(lambda: zipfile.ZipFile(file).read("a"), "Bad CRC-32")


def test_what_torch_cannot_read(tmp_path: Path) -> None:
    import torch

    whole = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, whole)
    for name, data in {"cut": whole.getvalue()[:900], "text": b"no checkpoint", "empty": b""}.items():
        file = tmp_path / name
        file.write_bytes(data)
        told(lambda file=file: torch.load(file, weights_only=True), "Bring it back" if data else "make")  # type: ignore[misc]
    bomb = tmp_path / "bomb"
    torch.save({"run": Path("x")}, bomb)
    told(lambda: torch.load(bomb, weights_only=True), "Weights only load failed")


def test_what_arrow_cannot_read_or_hold(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1 no table PAR1")
    told(lambda: pq.read_table(file), "table")
    told(lambda: pa.array([1]).cast(pa.list_(pa.int8())), "table")
    told(lambda: pa.allocate_buffer(2**60), "memory", "batch_size")


def test_a_document_that_is_none() -> None:
    told(lambda: json.loads("{"), "JSON")
    told(lambda: json.loads("[" * 100_000), "nested too deeply")
    told(lambda: b"\xff".decode(), "UTF-8")


# The system


def test_a_disk_that_is_full_is_said_with_the_place_although_the_error_names_none(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    def write() -> None:
        with Path("/dev/full").open("wb") as out:
            out.write(b"x" * 10)

    told(write, "No space left", "Make room", "machine.yaml")
    with pytest.MonkeyPatch.context() as patched:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(os, "fsync", full)
        made = tmp_path / "made"
        made.touch()
        told(lambda: files.put(made, tmp_path / "out"), str(made), "No space left", "Make room")


def test_too_many_files_and_what_is_not_allowed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []

    def open_all() -> None:
        while True:
            held.append((tmp_path / "x").open("w"))

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        told(open_all, "Too many open files", "ulimit -n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in held:
            each.close()
    told(lambda: Path("/proc/version").write_text("x"), os.strerror(errno.EIO) if os.geteuid() == 0 else "Permission")
    told(lambda: (tmp_path / ("n" * 300)).touch(), "too long", "shorter")
    told(lambda: Path(tmp_path / "not there").read_text(), "not there", "No such file")


def test_memory_that_cannot_be_had() -> None:
    import torch

    told(lambda: bytearray(2**62), "memory ran out", "batch_size")
    told(lambda: torch.empty(2**55), "memory", "batch_size")


def test_a_program_that_fails_or_is_not_there() -> None:
    told(lambda: subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=True), "exit status 3")
    told(lambda: subprocess.run(["no-such-program"], check=True), "no-such-program")
    told(lambda: subprocess.run(["sleep", "9"], check=True, timeout=0.05), "timed out")
    told(lambda: __import__("no_such_module"), "environment", "no_such_module")


# Databases and servers


def test_a_database_that_is_held_or_is_none(tmp_path: Path) -> None:
    import sqlalchemy as sa

    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as first:
        first.execute("create table runs (x)")
        first.execute("begin exclusive")
        engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.05})
        try:
            insert = sa.text("insert into runs values (1)")
            said = told(lambda: engine.connect().execute(insert), "database is locked", "machine.yaml: tracking")
            assert "insert" not in said, "SQL is no word for a user"
        finally:
            engine.dispose()
    file.write_bytes(b"no database" * 99)
    with closing(sqlite3.connect(file)) as none:
        told(lambda: none.execute("select * from runs"), "not a database")


@pytest.mark.slow
def test_an_object_store_that_does_not_answer_or_has_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    botocore = pytest.importorskip("botocore.session")
    from botocore.config import Config

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    quick = Config(connect_timeout=0.2, retries={"total_max_attempts": 1})

    def listed(**login: str) -> object:
        session = botocore.get_session()
        client = session.create_client(
            "s3", endpoint_url="http://127.0.0.1:9", region_name="us-east-1", config=quick, **login
        )
        return client.list_buckets()

    told(
        lambda: listed(aws_access_key_id="a", aws_secret_access_key="b"),
        "object store",
        "127.0.0.1:9",
        "AWS_ENDPOINT_URL",
    )
    told(listed, "credentials", "AWS_ACCESS_KEY_ID")


def test_a_server_that_is_not_there() -> None:
    import requests
    import urllib3

    told(lambda: requests.get("http://127.0.0.1:9/x", timeout=1), "network", "Is the server up")
    told(lambda: urllib3.PoolManager(retries=False).request("GET", "http://127.0.0.1:9/x"), "network")
    told(lambda: requests.get("nonsense://", timeout=1), "network")


@pytest.mark.slow
def test_mlflow_s_own_error() -> None:
    from mlflow.exceptions import MlflowException

    told(lambda: (_ for _ in ()).throw(MlflowException("no such run\nTraceback: much more")), "MLflow", "no such run")


# Ray


def test_ray_s_errors_are_said_by_what_was_lost_and_what_to_do() -> None:
    from ray import exceptions

    for error, parts in {
        exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory was 21GB / 22GB"): (
            "memory monitor",
            "learning.batch_size",
            "RAY_memory_usage_threshold",
        ),
        exceptions.WorkerCrashedError(): ("a worker or its node was lost", "dvc repro goes on"),
        exceptions.ActorDiedError(): ("lost",),
        exceptions.LocalRayletDiedError(): ("no longer answers", "ray status"),
        exceptions.RpcError("rpc error: 14 the GCS is gone"): ("no longer answers",),
        exceptions.RaySystemError("System error: broken"): ("no longer answers",),
        exceptions.GetTimeoutError("Get timed out"): ("no longer answers",),
        exceptions.OutOfDiskError("disk full"): ("no room", "RAY_TMPDIR"),
        exceptions.ObjectStoreFullError("full"): ("object store", "RAY_TMPDIR"),
        exceptions.RuntimeEnvSetupError("too large"): ("get this code",),
        exceptions.TaskUnschedulableError("no node"): ("no node", "machine.yaml"),
    }.items():
        said = edges.message(error)
        assert said is not None
        assert len(said.splitlines()) <= 3, said
        for part in parts:
            assert part in said


def test_another_version_of_ray_or_python_on_the_cluster() -> None:
    from ray._private.utils import check_version_info

    def joined() -> None:
        check_version_info({"ray_version": "2.40.0", "python_version": "3.9.1"}, "This process")  # type: ignore[arg-type]

    told(joined, "another version of Ray or Python", "2.40.0", "requirements.lock")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_what_a_worker_says_is_said_and_its_own_faults_keep_their_traceback() -> None:
    import ray

    @ray.remote(max_retries=0)
    def fails(what: str) -> None:
        if what == "user":
            raise ValueError("params.yaml: x: is 3")
        if what == "ours":
            raise AssertionError("ours")
        os._exit(1)

    assert words(lambda: ray.get(fails.remote("user"))) == "params.yaml: x: is 3"
    assert words(lambda: ray.get(fails.remote("ours"))) is None
    told(lambda: ray.get(fails.remote("dies")), "a worker or its node was lost")


@pytest.mark.slow
def test_processes_that_cannot_reach_each_other() -> None:
    from datetime import timedelta

    import torch.distributed as dist

    def alone() -> None:
        dist.TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=timedelta(milliseconds=50), wait_for_workers=True)

    told(alone)

    def refused() -> None:
        dist.TCPStore("127.0.0.1", 9, 2, is_master=False, timeout=timedelta(milliseconds=300))

    told(refused, "127.0.0.1", "GLOO_SOCKET_IFNAME")


LINKED = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from pipeline.runtime import edges; from pipeline.driver import faults

rank, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
limit = timedelta(seconds=3)
start = timedelta(seconds=60)  # until both have imported torch
store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, start)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=start)
both = dist.new_group(timeout=limit)
dist.all_reduce(torch.ones(3), group=both)
store.set_timeout(limit)
if rank == 0:
    print("linked", flush=True)
    if how == "silent":
        sys.stdin.read()
    os.kill(os.getpid(), 9)
try:
    if how == "store":
        store.get("a key that nobody sets")
    dist.all_gather([torch.ones(2**20), torch.ones(2**20)], torch.ones(2**20), group=both)
except Exception as error:
    print(type(error).__name__, faults.from_outside(error), edges.message(error), sep="\\n", flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "silent", "store"])
def test_a_peer_that_is_killed_or_silent_in_the_middle_of_its_work(how: str) -> None:
    from tests.test_workflow import free_ports

    (port,) = free_ports(1)
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", LINKED, str(rank), port, how],
            cwd=ROOT,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said, noise = pair[1].communicate(timeout=60)
        name, outside, *lines = said.splitlines()
        assert outside == "True", said
        assert 1 <= len(lines) <= 3, (said, noise)
        assert max(map(len, lines)) < 400
        assert lines[0].startswith("the processes of the training lost each other"), (name, said)
        assert "GLOO_SOCKET_IFNAME" in said
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def test_a_template_that_is_broken() -> None:
    import jinja2

    told(lambda: jinja2.Template("{{ x"), "template")
    told(lambda: jinja2.Template("{{ x.y.z }}", undefined=jinja2.StrictUndefined).render(), "'x' is undefined")


# Ours


def test_a_fault_of_ours_stays_a_traceback_whatever_it_met() -> None:
    def met() -> None:
        try:
            json.loads("{")
        except ValueError:
            raise TypeError("ours")  # noqa: B904

    assert words(met) is None
    assert words(lambda: {}["key"]) is None
    assert words(lambda: None.x) is None  # type: ignore[attr-defined]
    assert words(lambda: (_ for _ in ()).throw(AssertionError())) is None


def test_words_of_our_own_stay_as_they_are_and_a_wrapped_error_is_found() -> None:
    assert words(lambda: (_ for _ in ()).throw(ValueError("a: is 3\nb: is 4"))) == "a: is 3\nb: is 4"
    assert (
        words(lambda: (_ for _ in ()).throw(OSError("s3://x: no answer ([errno 111])")))
        == "s3://x: no answer ([errno 111])"
    )

    def wrapped() -> None:
        try:
            zlib.decompress(b"xx")
        except zlib.error as error:
            raise RuntimeError("while loading") from error

    told(wrapped, "damaged")


def test_no_library_is_imported_to_know_its_errors() -> None:
    code = "import sys; from pipeline.runtime import edges; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "pyarrow", "requests", "sqlalchemy", "botocore", "mlflow"} & set(done.stdout.split())
