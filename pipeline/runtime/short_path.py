"""A short path for Ray's temporary folder: the path of a Unix socket has at most 107 bytes on Linux, and TMPDIR may be long."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir

SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of the longest path of a Unix socket."""

SESSION = len("/session_2026-11-27_07-52-04_204063_4194304/sockets/plasma_store.1")
"""Bytes that Ray appends to its temporary folder, at most."""

SHORT = Path("/tmp")  # noqa: S108 - only a link is made in it, in a new folder that nobody else can write to
"""The folder in which a link is made."""


@contextmanager
def ray_folder() -> Iterator[str | None]:
    """Yields a path for Ray's temporary folder, or None if Ray's own choice is short enough.

    Otherwise the path is a link, removed afterwards, to the folder that `RAY_TMPDIR` or `TMPDIR` names, so that what Ray writes
    is still there. `OSError` if no link can be made.
    """
    folder, longest = Path(get_default_ray_temp_dir()), SOCKET - SESSION  # type: ignore[no-untyped-call]
    if len(os.fsencode(folder)) <= longest:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="ray-", dir=SHORT))
        (made / "ray").symlink_to(folder.resolve())
    except OSError as error:
        raise OSError(
            f"{folder}: has {len(os.fsencode(folder))} bytes, too many for the path of a Unix socket ({SOCKET}), and no link "
            f"to it can be made in {SHORT} ({error.strerror}). Set RAY_TMPDIR to a folder whose path has at most "
            f"{longest - len('/ray')} bytes"
        ) from None
    try:
        yield str(made / "ray")
    finally:
        shutil.rmtree(made, ignore_errors=True)
