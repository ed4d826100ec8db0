"""The code that a served model needs, packed as a package of its own name, so that it meets no other code where it is loaded."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]

ROOMS = ("alexnet", "pipeline.inference")
"""The packages whose modules become modules of the one package."""

OTHERS = ("pipeline/inference/predictor.py", "pipeline/inference/served.py")
"""The files that are packed besides those of alexnet/."""

LOADER = "served"
"""The module with `_load_pyfunc`."""


def pack(folder: Path) -> tuple[Path, str]:
    """Writes the package to `folder`; returns its path, and the name of the module that MLflow calls.

    The package's name has the digest of its code, and its modules import each other by that name. A process may therefore
    hold models of different code, and other packages that are called alexnet or pipeline, or none.
    """
    files = [*sorted((ROOT / "alexnet").glob("*.py")), *(ROOT / name for name in OTHERS)]
    sources = {file.name: file.read_text(encoding="utf-8") for file in files}
    assert len(sources) == len(files), "two modules of one name"
    digest = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in sources.items()).encode()).hexdigest()
    package = folder / f"alexnet_{digest[:16]}"
    package.mkdir()
    for name, text in sources.items():
        (package / name).write_text(renamed(text, package.name), encoding="utf-8")
    return package, f"{package.name}.{LOADER}"


def renamed(text: str, package: str) -> str:
    """A module's text, in which imports of `ROOMS` are imports of `package`."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] in ("alexnet", "pipeline") for alias in node.names), "use from"
        elif isinstance(node, ast.ImportFrom) and node.module:
            for room in ROOMS:
                if node.module == room or node.module.startswith(f"{room}."):
                    line = lines[node.lineno - 1]
                    lines[node.lineno - 1] = line.replace(f"from {room}", f"from {package}", 1)
    return "".join(lines)
