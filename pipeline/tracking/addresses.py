"""MLflow's address as people type it: what is meant is taken, or the message says what to type."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from urllib.parse import quote, urlsplit

from pipeline.runtime import redaction
from pipeline.tracking import database

SCHEMES = ("http", "https", "postgresql", "mysql", "mssql", "sqlite", "databricks", "databricks-uc", "uc")
"""How addresses of servers and databases begin; plugins of MLflow add others."""

SERVER = re.compile(r"(?P<host>\w[\w.-]*|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})(?P<path>/\S*)?")
"""A server's address without its scheme: localhost:5000, or [::1]:5000/path."""

HOST = re.compile(r"localhost|[\w-]+(\.[\w-]+)+")
"""A host's name or number without its port; a file may have such a name, too."""

OF_MODELS = ("models:/", "runs:/")
"""How MLflow's own names of models begin."""

DATABASE = (".db", ".sqlite", ".sqlite3")

ADVICE = "Give a server's address (http://host:5000) or a database (sqlite:////path/mlflow.db)"


def parse(typed: str) -> str:
    """The address that is meant, as MLflow and SQLAlchemy read it; paths are left relative. `ValueError` with what to type."""
    uri = typed.strip()
    server = SERVER.fullmatch(uri)
    if server and server["host"] not in SCHEMES:
        uri = f"http{'s' * (server['port'] == '443')}://{uri}"
    shown = redaction.redact(uri)
    if uri in ("databricks", "databricks-uc"):
        return uri
    if uri.startswith("sqlite:"):
        return _database(uri)
    if (broken := re.match(r"(https?)(?!://\w|://\[|://[^/\s]+@)[:/]+(.*)", uri)) is not None:
        kind, rest = broken.groups()
        raise ValueError(
            f"tracking: {shown} is no server's address. Write {kind}://{redaction.redact(rest) or 'host:5000'}"
        )
    try:
        parts = urlsplit(re.sub(r"://\S*@", "://", uri))  # a database's password may have any character
        if parts.port == 0:
            raise ValueError("port 0")
    except ValueError:
        raise ValueError(f"tracking: {shown}: its port is not a number from 1 to 65535") from None
    if len(parts.scheme) < 2 or parts.scheme == "file":  # one letter: a disk of Windows
        if not parts.scheme and not uri.startswith("//") and uri.endswith(DATABASE):
            return database.address(Path(uri).expanduser())
        raise ValueError(f"tracking: {shown} {_folder(uri)}. {ADVICE}")
    known = (*SCHEMES, *(plugin.name for plugin in metadata.entry_points(group="mlflow.tracking_store")))
    if parts.scheme.partition("+")[0] not in known:
        raise ValueError(
            f"tracking: {shown} is neither a server nor a database that MLflow knows: an address of one begins with "
            f"{', '.join(SCHEMES)}"
        )
    # as a browser shows it: http://host:5000/#/experiments/1
    return re.sub(r"/?#/.*", "", uri) if parts.scheme in ("http", "https") else uri


def _database(uri: str) -> str:
    """An SQLite address with three slashes before the path: `sqlite:a.db`, `sqlite://a.db` and `sqlite:/path/a.db` lack some."""
    rest = uri.removeprefix("sqlite:")
    if not rest.startswith("///"):
        rest = f"///{rest.removeprefix('//')}"
    return f"sqlite:{rest}"


def _folder(uri: str) -> str:
    """What is wrong with an address that is no server's and no database's."""
    if uri.startswith("//"):
        return f"has no http: before it. Write http:{redaction.redact(uri)}"
    if HOST.fullmatch(uri):
        return f"has no port. If it is a server, write http://{uri}:5000"
    version = metadata.version("mlflow")
    return (
        f"is a folder, which MLflow {version} no longer takes; its runs can be moved: mlflow migrate-filestore --help"
    )


def absolute(uri: str, home: Path) -> str:
    """The address with an absolute path if it is of an SQLite database, relative ones being below `home`.

    `ValueError` if there is no such folder below `home`, but there is below /: MLflow's addresses of absolute paths have four
    slashes.
    """
    file = database.path(uri)
    if file is None:
        return uri
    if not file.is_absolute() and not (home / file).parent.is_dir() and Path("/", file).parent.is_dir():
        raise ValueError(
            f"tracking: {uri} is a path below {home}, which has no such folder. "
            f"An absolute path has four slashes: sqlite:////{quote(str(file))}"
        )
    return database.address(home / file)
