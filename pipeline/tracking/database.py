"""MLflow's database in a file: its address, who locks it, and its artifacts after it was moved or copied."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.runtime import waiting

SCHEME = "sqlite:///"

ARTIFACTS = "mlartifacts"
"""The folder of the artifacts, beside the database."""

PATIENCE = 60.0
"""Seconds to wait, before any work, for a database that another process has locked."""

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps locations of artifacts."""


def address(file: Path) -> str:
    """The address of a database, as SQLAlchemy reads it: whatever the path holds."""
    return SCHEME + quote(str(file))


def path(uri: str) -> Path | None:
    """The file of a database's address; None for other addresses."""
    if not uri.startswith(SCHEME):
        return None
    name, query, _ = uri.removeprefix(SCHEME).partition("?")
    if query:
        raise ValueError(f"tracking: {uri} has a question mark. In a path write %3F for it; MLflow takes no query here")
    if name in ("", ":memory:"):
        raise ValueError(
            f"tracking: {uri} is a database in memory, gone with its process. Give sqlite:////path/mlflow.db"
        )
    return Path(unquote(name))


def holder(file: Path) -> str | None:
    """The processes that lock the database, in words; None if none does. `OSError` if the file is not a database."""
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=0.05)) as database:
            database.isolation_level = None
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise OSError(f"{file}: {error}. It has to be a database that this user may write") from None
        return _processes(file)
    except sqlite3.DatabaseError as error:
        raise OSError(f"{file}: {error}. Move it away, and a new one is made") from None
    return None


def _processes(file: Path) -> str:
    """The processes with a lock on the file, as Linux lists them."""
    inode = f":{file.stat().st_ino} "
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    numbers = sorted({line.split()[4] for line in lines if inode in line and "->" not in line})
    return f"process {' and '.join(numbers)}" if numbers else "another process"


def wait_until_free(file: Path, name: str) -> None:
    """Waits while another process locks the database; `TimeoutError` with what to do after `PATIENCE` seconds."""
    held = holder(file)
    if held is None:
        return
    try:
        waiting.until(lambda: holder(file) is None or None, name, f"{file}, which {held} holds", PATIENCE)
    except TimeoutError:
        raise TimeoutError(
            f"MLflow's database {file} is held by {holder(file) or held}. Wait for it, or end it; then run this again"
        ) from None


def settle(file: Path) -> str:
    """Points a database that was moved or copied to the artifacts beside it, and returns a line that says so, or nothing.

    MLflow stores absolute paths: without this, artifacts would be written to the old folder, or mixed with those of the
    working copy that this one was copied from. Only paths of our own folders are changed, in one transaction; files are
    not moved.
    """
    if not file.exists():
        return ""
    here = file.parent / ARTIFACTS
    with _changing(file) as database:
        there = [folder for folder in _folders(database) if not _same(folder, here)]
        for folder in there:
            _replace(database, folder.as_uri(), here.as_uri())
            _replace(database, str(folder), here.as_uri())
    if not there:
        return ""
    others = " and ".join(str(folder) for folder in there)
    return f"{file} was moved or copied: what it knew in {others} is looked for in {here} from now on"


@contextmanager
def _changing(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, timeout=PATIENCE, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


def _folders(database: sqlite3.Connection) -> list[Path]:
    """The artifact folders of our experiments: on a disk, with the name that we give."""
    if not _columns(database, "experiments"):
        return []
    found = []
    for (location,) in database.execute("SELECT DISTINCT artifact_location FROM experiments"):
        parts = urlsplit(location or "")
        folder = Path(unquote(parts.path) if parts.scheme == "file" else location or "")
        if parts.scheme in ("", "file") and folder.is_absolute() and folder.name == ARTIFACTS:
            found.append(folder)
    return sorted(set(found))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one folder, which may be mounted twice or linked."""
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _replace(database: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in PLACES:
        if column in _columns(database, table):
            words = f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '  # noqa: S608  # (names of ours)
            where = f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?'
            database.execute(words + where, (new, len(old) + 1, old, len(old) + 1, f"{old}/"))


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f'PRAGMA table_info("{table}")')}
