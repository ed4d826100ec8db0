"""Outs of DVC experiments and git revisions, read from DVC's cache or its remote storage, without a checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.runtime import digests

SITE = Path(".dvc/site")


def keep_here() -> None:
    """Makes DVC keep its databases in this working copy: they contain pickles, and the default folder is world-writable.

    The path is absolute, since DVC changes its folder for `exp run --temp`, and can therefore not be in .dvc/config.
    """
    if not os.environ.get("DVC_SITE_CACHE_DIR"):
        os.environ["DVC_SITE_CACHE_DIR"] = str(SITE.absolute())


@contextmanager
def opened(name: str, out: str | Path, stage: str) -> Iterator[BinaryIO]:
    """Opens the out of a DVC experiment or a git revision. `stage`: the stage that makes it, for messages.

    `ValueError` if there is no such experiment or revision, or its out is neither in DVC's cache nor in its remote storage.
    """
    import dvc.api  # it takes a second, and most callers read a file here
    from dvc.exceptions import DvcException
    from dvc.scm import RevError
    from dvc_data.index import DataIndexDirError

    keep_here()
    try:
        # from DVC's cache if it is there, else from the remote storage, read by range
        with dvc.api.open(Path(out).as_posix(), rev=name, mode="rb") as handle:
            yield handle
    except RevError as error:
        raise ValueError(f"{name}: not a path, an experiment or a revision ({error}). See: dvc exp list") from None
    except (DvcException, DataIndexDirError, OSError) as error:
        raise ValueError(
            f"{name}: its {out} is neither in DVC's cache nor in its remote storage ({error}). If it was pushed: "
            f"dvc exp pull, or dvc pull --all-commits; else: dvc exp apply {name}, and dvc repro {stage}"
        ) from None


def read(name: str, out: str | Path) -> bytes | None:
    """The bytes of a file of an experiment or a revision, tracked by git or by DVC; None if it is nowhere."""
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError

    keep_here()
    try:
        data: bytes = dvc.api.read(Path(out).as_posix(), rev=name, mode="rb")
    except (DvcException, DataIndexDirError, OSError):
        return None
    return data


def recorded(name: str, folder: Path) -> dict[str, str]:
    """The digests in SHA256SUMS of a folder of an experiment or revision, by file name; none if it has no such file."""
    return digests.parse(read(name, folder / digests.SUMS) or b"")
