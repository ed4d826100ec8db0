"""Outs of DVC experiments and git revisions, read from DVC's cache or its remote storage, without a checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.runtime import digests, git

SITE = Path(".dvc/site")


def keep_here() -> None:
    """Makes DVC keep its databases in this working copy: they contain pickles, and the default folder is world-writable.

    The path is absolute, since DVC changes its folder for `exp run --temp`, and can therefore not be in .dvc/config.
    """
    if not os.environ.get("DVC_SITE_CACHE_DIR"):
        os.environ["DVC_SITE_CACHE_DIR"] = str(SITE.absolute())


def is_known(name: str) -> bool:
    """Whether the name is a DVC experiment or a git revision of this working copy; a name that is a pattern is none."""
    try:
        return bool(commit(name))
    except ValueError:
        return True  # of several experiments: which is meant, `commit` asks


def commit(name: str) -> str:
    """The commit of an experiment or a revision, in hexadecimal; empty if there is none. `ValueError` for several."""
    if not name or set(name) & set("*?[\\"):  # a pattern for git
        return ""
    if found := git.output("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"):
        return found
    same = git.output("for-each-ref", "--format=%(objectname) %(refname)", f"refs/exps/**/{name}").splitlines()
    if len(same) > 1:
        raise ValueError(f"{name}: {len(same)} experiments have this name: give one's commit, of {', '.join(same)}")
    return same[0].split()[0] if same else ""


def experiments() -> list[str]:
    """The names of the DVC experiments of this working copy, the newest first."""
    return git.output("for-each-ref", "--sort=-creatordate", "--format=%(refname:lstrip=-1)", "refs/exps").split()


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
