"""MLflow's SQLite database: its address, the processes that lock it, and its artifact locations after it was moved."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.runtime import waiting

SCHEME = "sqlite:///"

ARTIFACTS = "mlartifacts"
"""The name of the artifacts' folder, beside the database."""

PATIENCE = 60.0
"""Seconds to wait for a database that another process has locked, before any work is done."""

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow stores artifact locations."""


def address(file: Path) -> str:
    """The address of a database file for SQLAlchemy; the path may have any character."""
    return SCHEME + quote(str(file))


def path(uri: str) -> Path | None:
    """The file of an SQLite address; None for other addresses. `ValueError` for a query or a database in memory."""
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


def experiment(file: Path, name: str) -> str | None:
    """The id of the experiment `name`; None if the database, or an experiment of that name, is not there."""
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=5)) as database:
            row = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return str(row[0]) if row else None


def holder(file: Path) -> str | None:
    """The processes that lock the database, in words; None if none does. `OSError` if it is not a database or not writable."""
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=0.05)) as database:
            database.isolation_level = None
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise OSError(
                f"{file}: {error}. It has to be a database that this user may read and write: chmod u+rw, or name another one in "
                "machine.yaml (tracking)"
            ) from None
        return _processes(file)
    except sqlite3.DatabaseError as error:
        raise OSError(f"{file}: {error}. Move it away, and a new one is made") from None
    return None


def _processes(file: Path) -> str:
    """The processes that lock the file, from Linux's /proc/locks, in words."""
    inode = f":{file.stat().st_ino} "
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    numbers = sorted({line.split()[4] for line in lines if inode in line and "->" not in line})
    return f"process {' and '.join(numbers)}" if numbers else "another process"


def wait_until_free(file: Path, name: str) -> None:
    """Waits while another process locks the database; `TimeoutError` that says what to do after `PATIENCE` seconds."""
    processes = holder(file)
    if processes is None:
        return
    try:
        waiting.until(lambda: holder(file) is None or None, name, f"{file}, which {processes} holds", PATIENCE)
    except TimeoutError:
        raise TimeoutError(
            f"MLflow's database {file} is held by {holder(file) or processes}. Wait for it, or end it; then run this again"
        ) from None


def repoint_artifacts(file: Path) -> str:
    """Changes the artifact locations in a moved or copied database to the folder beside it; returns a message or "".

    MLflow stores absolute paths: otherwise it would write artifacts to the old folder, or to that of the working copy from
    which this one was copied. Only locations that `runs` has set are changed, in one transaction; no file is moved.
    """
    if not file.exists():
        return ""
    new = file.parent / ARTIFACTS
    with _transaction(file) as database:
        old = [folder for folder in _folders(database) if not _same(folder, new)]
        for folder in old:
            _replace(database, folder.as_uri(), new.as_uri())
            _replace(database, str(folder), new.as_uri())
    if not old:
        return ""
    others = " and ".join(str(folder) for folder in old)
    return f"{file} was moved or copied: its artifacts of {others} are looked for in {new} from now on"


@contextmanager
def _transaction(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, timeout=PATIENCE, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


def _folders(database: sqlite3.Connection) -> list[Path]:
    """The artifact folders of the experiments that are on a disk and called `ARTIFACTS`, the name that `runs` gives them."""
    if not _columns(database, "experiments"):
        return []
    folders = []
    for (location,) in database.execute("SELECT DISTINCT artifact_location FROM experiments"):
        parts = urlsplit(location or "")
        folder = Path(unquote(parts.path) if parts.scheme == "file" else location or "")
        if parts.scheme in ("", "file") and folder.is_absolute() and folder.name == ARTIFACTS:
            folders.append(folder)
    return sorted(set(folders))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, which may be mounted twice or linked."""
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _replace(database: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in PLACES:
        if column in _columns(database, table):
            words = f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '  # noqa: S608  # (constants)
            where = f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?'
            database.execute(words + where, (new, len(old) + 1, old, len(old) + 1, f"{old}/"))


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f'PRAGMA table_info("{table}")')}
