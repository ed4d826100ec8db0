"""Flipping bytes of a file: reading it has to give an error that names the file, or the original contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

MOST = 100
"""Number of evenly spaced bytes to flip if `places` is None, so that a test takes tenths of a second."""


def unsaid(
    file: Path,
    read: Callable[[], object],
    places: Iterable[int] | None = None,
    mask: int = 0x11,
    *,
    always: bool = False,
) -> list[str]:
    """Flips the bytes at `places` one at a time; returns those where reading gives neither the old contents nor an error.

    `always`: the original contents are a fault, too, since every flip has to be detected.
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
