"""Outs of a DVC experiment or of a git revision, from DVC's cache or its remote storage; the working copy does not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import dvc.api
from dvc.exceptions import DvcException
from dvc.scm import RevError
from dvc_data.index import DataIndexDirError

from pipeline import recipe
from pipeline.runtime import git

ABSENT = (DvcException, DataIndexDirError, OSError)
"""What DVC raises for an out that is nowhere."""


@contextmanager
def opened(name: str, out: str, stage: str) -> Iterator[BinaryIO]:
    """Opens an out of the revision `name`; `ValueError`, with what to do, if there is no such revision or out.

    The file is read from DVC's cache if it is there, else by range from the remote storage. `stage`: the stage that makes it.
    """
    recipe.keep_here()
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(dvc.api.open(out, rev=name, mode="rb"))
        except RevError as error:
            raise ValueError(f"{name}: not a path, an experiment or a revision ({error}). See: dvc exp list") from None
        except ABSENT as error:
            raise ValueError(
                f"{name}: its {out} is neither in DVC's cache nor in its remote storage ({error}). If it was pushed: "
                f"dvc exp pull, or dvc pull --all-commits; else: dvc exp apply {name}, and dvc repro {stage}"
            ) from None
        yield handle


def read(name: str, out: str) -> bytes | None:
    """The bytes of a file of the revision, tracked by git or by DVC; None if it is nowhere."""
    recipe.keep_here()
    try:
        data: bytes = dvc.api.read(out, rev=name, mode="rb")
    except ABSENT:
        return None
    return data


def commit(name: str) -> str:
    """The commit of an experiment or a revision, in hexadecimal; empty if there is none. `ValueError` for several."""
    if found := git.output("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"):
        return found
    if any(letter in name for letter in "*?[\\ ~^:"):  # a pattern for git
        return ""
    experiments = git.output("for-each-ref", "--format=%(objectname) %(refname)", f"refs/exps/**/{name}").splitlines()
    if len(experiments) > 1:
        raise ValueError(f"{name}: {len(experiments)} experiments have this name: give one's commit, of {experiments}")
    return experiments[0].split()[0] if experiments else ""
