"""Git, asked about the working copy that this process is in."""

from __future__ import annotations

import subprocess

LIMIT = 60.0
"""Seconds for an answer: a working copy on a network drive may be slow."""


def says(*words: str) -> str:
    """What `git WORDS` prints, without the spaces around it; nothing where git fails, is not installed, or takes too long."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=LIMIT).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> str:
    """The commit that is checked out, in hexadecimal; nothing outside of git."""
    return says("rev-parse", "HEAD")
