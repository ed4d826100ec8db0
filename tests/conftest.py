"""What several tests need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pipeline.runtime import cluster
from pipeline.runtime.machines import Machine
from tests.pipeline.object_store import CREDENTIALS

LONGEST = ("test_workflow.py", "test_train.py", "test_sources.py")
"""Files that take minutes. Begun first, they leave the other processes enough to do until they end."""


def pytest_configure() -> None:
    """Programs that tests start heed SIGHUP, also where the tests themselves were started by nohup, which ignores it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make whole`: what takes more minutes than all other tests together may."""
    parser.addoption("--whole", action="store_true", help="also each source and each recipe through all stages")
    parser.addoption("--faults", action="store_true", help="also the faults that take long or need network namespaces")


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first, whatever their names; within a file nothing moves. What needs Ray is slow."""
    for marker in ("whole", "faults"):
        if not config.getoption(f"--{marker}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests; stages that are run find it and use it. Its workers can log in to the tests' object store."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        with cluster.connected(Machine()):
            yield
