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
