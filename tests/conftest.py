"""Fixtures and options that several tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from pipeline.runtime import cluster
from pipeline.runtime.machines import Machine
from tests.pipeline.object_store import CREDENTIALS

# the same cases each time, and no folder of examples in the working copy
settings.register_profile(
    "test", derandomize=True, database=None, deadline=None, max_examples=130, suppress_health_check=list(HealthCheck)
)
settings.register_profile("fuzz", settings.get_profile("test"), max_examples=2_500)
settings.load_profile("test")

LONGEST = ("test_workflow.py", "test_train.py", "test_sources.py")
"""Test files that take minutes. They run first, so that the other processes stay busy until the end."""


def pytest_configure() -> None:
    """Restores SIGHUP's default, so that programs started by tests receive it even if pytest runs under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of `make whole` and `make faults`, for tests that take many minutes."""
    parser.addoption("--whole", action="store_true", help="also each source and each recipe through all stages")
    parser.addoption("--faults", action="store_true", help="also the faults that take long or need network namespaces")


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs the longest files first, without reordering tests within a file; marks tests that need Ray as slow."""
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
    """One Ray for all tests, which stages started by tests use, too. Its workers have credentials for the tests' object store."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        with cluster.connected(Machine()):
            yield
