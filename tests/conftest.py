"""What several tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline import cluster
from pipeline.machine import Machine


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests; stages that are run find it and use it."""
    with cluster.connected(Machine()):
        yield
