"""Queries to git about the working copy in the current folder."""

from __future__ import annotations

import subprocess

LIMIT = 60.0
"""Seconds that a query may take: a working copy on a network drive may be slow."""


def output(*words: str) -> str:
    """The output of `git WORDS`, stripped; empty if git fails, is not installed, or takes too long."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=LIMIT).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> str:
    """The commit that is checked out, in hexadecimal; empty outside of a repository."""
    return output("rev-parse", "HEAD")


def is_known(name: str) -> bool:
    """Whether the name is a DVC experiment or a git revision of this working copy; a name that is a pattern is none."""
    try:
        return bool(commit_of(name))
    except ValueError:
        return True  # of several experiments: which is meant, `commit_of` asks


def commit_of(name: str) -> str:
    """The commit of an experiment or a revision, in hexadecimal; empty if there is none. `ValueError` for several."""
    if not name or set(name) & set("*?[\\"):  # a pattern for git
        return ""
    if found := output("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"):
        return found
    same = output("for-each-ref", "--format=%(objectname) %(refname)", f"refs/exps/**/{name}").splitlines()
    if len(same) > 1:
        raise ValueError(f"{name}: {len(same)} experiments have this name: give one's commit, of {', '.join(same)}")
    return same[0].split()[0] if same else ""


def experiments() -> list[str]:
    """The names of the DVC experiments of this working copy, the newest first."""
    return output("for-each-ref", "--sort=-creatordate", "--format=%(refname:lstrip=-1)", "refs/exps").split()
