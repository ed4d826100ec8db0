"""Names of files and folders that desktops, file systems and tools leave among pictures, such as __MACOSX and Thumbs.db."""

from __future__ import annotations

SYSTEM = frozenset(
    (
        "$recycle.bin",
        "@eadir",
        "#recycle",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    )
)
"""Lower-case names. The thumbnails below some of them are pictures, but none that anybody put there."""


def is_leftover(path: str) -> bool:
    """Whether a part of the path is hidden (a leading dot, as in .ipynb_checkpoints or ._cat.jpg) or one of `SYSTEM`."""
    return any(part.startswith(".") or part.casefold() in SYSTEM for part in path.split("/") if part != ".")
