"""Where the network is put for what the machine has, and addresses that are no cluster's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from pipeline.runtime import cluster
from pipeline.runtime.machines import Machine

Wish = Literal["auto", "one", "columns", "replicas"]


def having(monkeypatch: pytest.MonkeyPatch, gpus: int, *cpus: int) -> None:
    """A cluster with so many GPUs, and nodes with so many CPU cores."""
    nodes = [{"Alive": True, "Resources": {"CPU": float(cores)}} for cores in cpus]
    nodes.append({"Alive": False, "Resources": {"CPU": 1000.0}})
    whole = {"CPU": float(sum(cpus)), **({"GPU": float(gpus)} if gpus else {})}
    monkeypatch.setattr(ray, "cluster_resources", lambda: whole)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


# gpus, CPU cores, columns of the network, what machine.yaml wishes → processes, a column each, on GPUs, cores of each
TABLE: list[tuple[int, int, int, Wish, tuple[int, bool, bool, int]]] = [
    (0, 1, 2, "auto", (1, False, False, 1)),
    (0, 2, 2, "auto", (2, True, False, 1)),
    (0, 5, 2, "auto", (2, True, False, 2)),
    (0, 64, 2, "auto", (2, True, False, 32)),
    (0, 8, 1, "auto", (1, False, False, 8)),
    (1, 8, 2, "auto", (1, False, True, 8)),
    (1, 64, 2, "auto", (1, False, True, 16)),
    (2, 8, 2, "auto", (2, True, True, 4)),
    (3, 12, 2, "auto", (2, True, True, 6)),
    (4, 16, 2, "auto", (4, True, True, 4)),
    (8, 64, 2, "auto", (8, True, True, 8)),
    (1, 8, 1, "auto", (1, False, True, 8)),
    (4, 16, 1, "auto", (4, False, True, 4)),
    (0, 8, 2, "one", (1, False, False, 8)),
    (4, 16, 2, "one", (1, False, True, 16)),
    (0, 2, 2, "columns", (2, True, False, 1)),
    (5, 20, 2, "columns", (4, True, True, 5)),
    (0, 8, 2, "replicas", (2, False, False, 4)),
    (0, 1, 2, "replicas", (1, False, False, 1)),
    (3, 12, 2, "replicas", (3, False, True, 4)),
    (1, 8, 2, "replicas", (1, False, True, 8)),
]


@pytest.mark.parametrize(("gpus", "cpus", "columns", "wish", "expected"), TABLE)
def test_placement(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    cpus: int,
    columns: int,
    wish: Wish,
    expected: tuple[int, bool, bool, int],
) -> None:
    having(monkeypatch, gpus, cpus)
    place = cluster.placement(Machine(placement=wish), columns == 2)
    assert (place.workers, place.apart, place.gpu, place.threads) == expected


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("wish", ["one", "columns", "replicas", "auto"])
def test_no_placement_asks_for_more_than_there_is(monkeypatch: pytest.MonkeyPatch, columns: int, wish: Wish) -> None:
    had = 0
    for gpus in range(9):
        for cpus in [(1,), (2,), (3,), (8,), (64,), (4, 4), (3, 5), (1, 1, 1), (16, 2)]:
            having(monkeypatch, gpus, *cpus)
            with contextlib.suppress(ValueError):
                place = cluster.placement(Machine(placement=wish), columns == 2)
                had += 1
                assert sum(cores // place.threads for cores in cpus) >= place.workers
                assert place.gpu == (gpus > 0)
                assert place.workers <= max(gpus, 2)
                assert place.replicas * (2 if place.apart else 1) == place.workers
                assert not place.apart or columns == 2
    assert had or (wish, columns) == ("columns", 1)


@pytest.mark.parametrize(
    ("gpus", "cpus", "threads"),
    [(2, (3, 5), 3), (2, (8, 1), 4), (4, (8, 8), 4), (4, (2, 7), 2), (0, (1, 1), 1), (0, (2, 6), 3)],
)
def test_no_process_needs_cores_of_two_nodes(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cpus: tuple[int, ...], threads: int
) -> None:
    having(monkeypatch, gpus, *cpus)
    assert cluster.placement(Machine(), True).threads == threads


def test_gpus_without_enough_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, 8, 4)
    with pytest.raises(ValueError, match="8 GPUs need a CPU core each, the cluster has 4"):
        cluster.placement(Machine(), True)
    assert cluster.placement(Machine(devices=4), True).workers == 4


@pytest.mark.parametrize(
    ("gpus", "cpus", "columns", "words"),
    [
        (0, 1, 2, "'columns' needs 2 CPU cores, the cluster has 1"),
        (1, 8, 2, "'columns' needs 2 GPUs, since a GPU takes one process; there is 1"),
        (4, 8, 1, "'columns' needs a network of 2 columns (params.yaml: model.columns)"),
    ],
)
def test_columns_that_cannot_be_had_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cpus: int, columns: int, words: str
) -> None:
    having(monkeypatch, gpus, cpus)
    with pytest.raises(ValueError, match=r"machine\.yaml: placement") as caught:
        cluster.placement(Machine(placement="columns"), columns == 2)
    assert words in str(caught.value)


def test_gpus_are_as_many_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, 4, 16)
    assert cluster.gpus(Machine()) == 4
    assert cluster.gpus(Machine(devices=3)) == 3
    assert cluster.gpus(Machine(devices="cpu")) == 0
    assert cluster.placement(Machine(devices="cpu"), True).gpu is False
    assert cluster.placement(Machine(devices=1), True).workers == 1
    with pytest.raises(ValueError, match="devices: 5 GPUs asked for, the cluster has 4"):
        cluster.gpus(Machine(devices=5))


def test_workers_are_as_many_as_tasks_cores_and_settings_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, 0, 4)
    assert cluster.workers(Machine(), 100) == 4
    assert cluster.workers(Machine(), 3) == 3
    assert cluster.workers(Machine(), 0) == 1
    assert cluster.workers(Machine(workers=2), 100) == 2


@pytest.mark.parametrize("address", ["http://head:8265", "https://head:8265"])
def test_a_dashboards_address_is_refused_and_both_variables_named(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this session may have started it
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"RAY_ADDRESS={address}") as caught, cluster.connected(Machine()):
        pass
    assert "RAY_API_SERVER_ADDRESS" in str(caught.value)


def test_a_dashboards_address_in_the_settings_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = Machine(ray_address="http://head:8265")
    with (
        pytest.raises(ValueError, match=r"machine\.yaml: ray_address: http://head:8265 is a .* own, host:6379"),
        cluster.connected(machine),
    ):
        pass


def test_a_placement_says_what_it_is() -> None:
    whole: dict[str, Any] = {"apart": False, "gpu": False, "threads": 1}
    assert str(cluster.Placement(workers=1, **whole)) == "1 process, the whole network, with 1 CPU core"
    apart = cluster.Placement(workers=2, apart=True, gpu=True, threads=4)
    assert str(apart) == "2 processes, a column each, on a GPU"


def faults() -> int:
    """Pages that the system has to fill anew for 64 MB that were there before, in a thread such as Ray Train's."""
    import resource
    import threading

    import torch

    counts: list[int] = []

    def steps() -> None:
        for _ in range(30):  # glibc needs some to find out what will be asked for
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(2**24)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
    return counts[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="they are glibc's settings")
def test_a_worker_keeps_the_memory_that_it_frees(ray_session: None) -> None:
    assert faults() > 2**14 // 2, "as by itself: a page is 4 kB"
    assert ray.get(ray.remote(faults).remote()) < 100


@pytest.mark.slow
def test_a_worker_takes_one_task_on_a_gpu_after_another(tmp_path: Path) -> None:
    """Of a Ray that is told of a GPU: which process takes a task does not depend on there being one."""
    program = """
import os, pathlib, ray
from pipeline.runtime import access, cluster
from pipeline.runtime.machines import Machine
os.environ.update(cluster.ENVIRONMENT)
access.keep_private(pathlib.Path("work"))
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
def process(number):
    return os.getpid()
print(len({pid for _, pid in cluster.each(process, [1, 2, 3], Machine(), gpus=1)}), "process")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert "1 process" in done.stdout


OTHERS = {
    "Ray: 2.59.1": """
import sys, types
sys.modules["ray._version"] = version = types.ModuleType("ray._version")
version.version, version.commit = "2.59.1", "0" * 40
""",
    "Python: 3.11.99": """
import collections, sys
Info = collections.namedtuple("Info", "major minor micro releaselevel serial")
sys.version_info = Info(*sys.version_info[:2], 99, "final", 0)
""",
}
"""A sitecustomize.py for a Ray of another version, or on a Python of another."""

JOIN = """
from pipeline.runtime import cluster, stage
from pipeline.runtime.machines import Machine

def run():
    with cluster.connected(Machine()):
        import ray
        print(len(ray.nodes()), "node")
stage.main("mean", run)
"""


@pytest.mark.faults
@pytest.mark.parametrize("other", OTHERS)
def test_a_head_or_a_node_of_another_version_is_named_with_both_versions_and_what_to_do(
    tmp_path: Path, other: str
) -> None:
    from pipeline.runtime import access
    from tests.test_workflow import free_ports

    here = ".".join(map(str, sys.version_info[:3]))
    other = other.replace("3.11.99", f"{sys.version_info[0]}.{sys.version_info[1]}.99")
    ours = f"Ray: {ray.__version__} Python: {here}"
    kind = other.partition(":")[0]
    theirs = f"{other} Python: {here}" if kind == "Ray" else f"Ray: {ray.__version__} {other}"
    (tmp_path / "sitecustomize.py").write_text(next(text for name, text in OTHERS.items() if name.startswith(kind)))
    (tmp_path / "copy").mkdir()
    short = Path(tempfile.mkdtemp(prefix="alexnet-"))  # the path of Ray's sockets has to be short
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    kept |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(access.token(short)), "RAY_USAGE_STATS_ENABLED": "0"}
    changed, address = kept | {"PYTHONPATH": str(tmp_path)}, f"{ray.util.get_node_ip_address()}:{free_ports(1)[0]}"

    def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--block", "--num-cpus=1", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def joined() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", JOIN],
            cwd=tmp_path / "copy",
            env=kept | {"PYTHONPATH": str(Path(__file__).parents[3]), "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    as_head = ("--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false")
    head = start(changed, *as_head, f"--temp-dir={short}/a")
    try:
        done = joined()
    finally:
        head.terminate()
        head.communicate(timeout=60)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), lines[1]) == (1, 2, "Every node needs the environment of requirements.lock")
    assert re.fullmatch(
        rf"mean: the Ray cluster at {address} cannot be joined from here: another version of Ray or Python runs on the "
        rf"cluster: The cluster was started with: {theirs} This process on node \S+ was started with: {ours}",
        lines[0],
    )
    head = start(kept, *as_head, f"--temp-dir={short}/b")
    try:
        assert joined().stdout == "1 node\n", "the head alone is of our version"
        node = start(changed, f"--address={address}")
        said, _ = node.communicate(timeout=120)
        assert (node.returncode, "Version mismatch: " in said) == (1, True), "Ray's own word, to whoever starts it"
        assert joined().stdout == "1 node\n", "it has not joined"
    finally:
        head.terminate()
        head.communicate(timeout=60)
        shutil.rmtree(short, ignore_errors=True)


def test_nodes_get_the_code_of_a_working_copy_and_nothing_else_that_lies_in_it(tmp_path: Path) -> None:
    root, copy, package = Path(__file__).parents[3], tmp_path / "copy", tmp_path / "package.zip"
    code = ["alexnet/model.py", "dvc.yaml", "params.yaml", "pipeline/archives/tree.py", "pipeline/train.py"]
    for name in (
        *code,
        ".env",
        ".netrc",
        "kaggle.json",
        "key.pem",
        "dump/core",
        "data/index/a",
        "pipeline/__pycache__/a.pyc",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("a")
    for name in (".gitignore", ".rayignore"):
        (copy / name).write_text((root / name).read_text())
    packaging.create_package(
        str(copy), package, include_gitignore=True, excludes=list(get_runtime_env_default_excludes())
    )
    assert [name for name in sorted(zipfile.ZipFile(package).namelist()) if not name.endswith("/")] == code
