"""Bytes that flip in a file which is read back: an error that names it, or what was written; never anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

MOST = 100
"""Places that are tried in a file, evenly, if none are named: a test takes tenths of a second."""


def unsaid(
    file: Path,
    read: Callable[[], object],
    places: Iterable[int] | None = None,
    mask: int = 0x11,
    *,
    always: bool = False,
) -> list[str]:
    """Flips the bytes at `places` one by one; where reading then is neither as before nor refused plainly.

    `always`: as before is a fault too. A byte that `read` gives nothing of may change nothing, and is to be seen.
    """
    data, expected, faults = file.read_bytes(), read(), []
    assert read() == expected, "it does not compare"
    for place in range(0, len(data), -(-len(data) // MOST)) if places is None else places:
        file.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        try:
            if read() != expected:
                faults.append(f"byte {place}: something else, without a word")
            elif always:
                faults.append(f"byte {place}: read as if nothing were")
        except (ValueError, OSError) as error:
            said = str(error)
            if (
                not (str(file) in said or str(file.parent) in said)
                or "Run: dvc repro" not in said
                or said.count("\n") > 2
            ):
                faults.append(f"byte {place}: {type(error).__name__}: {said}")
        except Exception as error:
            faults.append(f"byte {place}: raw {type(error).__name__}: {error}")
    file.write_bytes(data)
    return faults
