"""Writes docs/licences.csv: each package of requirements.lock that is installed, and the licence that it states.

Run:    make licences   (python docs/licences.py)

A licence is what the package's own metadata say, in SPDX's words where they can be told. GIVEN has those that say
nothing there, as their licence files have it; NOTES why one that asks for more than its notice is no hindrance.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before anything is written
    from pipeline.runtime import usage

    usage.parser_at(__file__, "python docs/licences.py").parse_args()

import csv
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK, OUT = ROOT / "requirements.lock", ROOT / "docs/licences.csv"

GIVEN = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "huey": "MIT",
    "skops": "MIT",
}

SPDX = {
    r"MIT( license)?|MIT License": "MIT",
    r"Apache( Software)? License|Apache(-| |, )?(License)?,?( Version)? ?2(\.0)?|Apache License,? (Version )?2\.0": "Apache-2.0",
    r"(3-Clause|New) BSD( License)?|BSD 3-Clause License.*": "BSD-3-Clause",
    r"BSD( License)?": "BSD",
    r"Python Software Foundation License|PSF-2\.0": "PSF-2.0",
    r"Mozilla Public License 2\.0 \(MPL 2\.0\)|MPL-2\.0": "MPL-2.0",
    r"Zope Public License|ZPL-2\.1": "ZPL-2.1",
    r"NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    r"GPLv2 \| EPLv1": "GPL-2.0-only OR EPL-1.0",
}
"""What stands in metadata in other words than SPDX's."""

NOTES = {
    "asyncssh": "EPL is the choice: the package is used as it is, and not given on",
    "certifi": "MPL binds its own files, which are used as they are",
    "docutils": "GPL binds its mode for Emacs alone, which is not used; the rest is in the public domain, BSD or PSF",
    "grandalf": "EPL is the choice: DVC imports it to draw `dvc dag`, and it is not given on",
    "hypothesis": "MPL binds its own files, which are used as they are",
    "orjson": "MPL binds its own files, which are used as they are",
    "pathspec": "MPL binds its own files, which are used as they are",
    "pygit2": "the exception lets any program link it, whatever its licence",
    "shtab": "MPL binds its own files, which are used as they are",
    "tqdm": "MPL binds its own files, which are used as they are",
}


def main() -> None:
    """Writes the list."""
    with OUT.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["package", "licence", "note"])
        writer.writerows(rows())


def rows() -> list[tuple[str, str, str]]:
    """Name, licence and note of each, by name."""
    found = {}
    for name in wanted(LOCK.read_text()):
        try:
            stated: Any = metadata(name)
        except PackageNotFoundError:
            continue
        licence = licence_of(name, stated)
        found[name] = name, licence, note(name, licence)
    return [found[name] for name in sorted(found)]


def wanted(lock: str) -> Iterator[str]:
    """The packages of a lock that this machine is to have."""
    for line in re.findall(r"^([\w.-]+==[^\\\n]+)", lock, re.M):
        requirement = Requirement(line.strip())
        if requirement.marker is None or requirement.marker.evaluate():
            yield canonicalize_name(requirement.name)


def licence_of(name: str, stated: Any) -> str:
    """What the metadata say, in SPDX's words if they can be told; empty if they say nothing."""
    if expression := stated.get("License-Expression"):
        return str(expression)
    if name in GIVEN:
        return GIVEN[name]
    known = [_spdx(words.strip()) for words in [str(stated.get("License") or "")] if "\n" not in words.strip()]
    kinds = [words.rpartition(" :: ")[2] for words in stated.get_all("Classifier") or () if "License ::" in words]
    known += sorted({_spdx(kind) for kind in kinds if kind not in ("OSI Approved", "DFSG approved")})
    classified = [licence for licence in known[1:] if licence]
    if known and known[0] == "Dual License":
        return " OR ".join(classified)
    return next((licence for licence in known if licence and licence != "BSD"), next(filter(None, known), ""))


def _spdx(words: str) -> str:
    return next((spdx for pattern, spdx in SPDX.items() if re.fullmatch(pattern, words, re.I)), words)


def note(name: str, licence: str) -> str:
    """Why the licence is no hindrance, where that has to be said."""
    if "NVIDIA" in licence:
        return "NVIDIA's own terms: fetched from its maker with torch, and not given on"
    return NOTES.get(name, "")


if __name__ == "__main__":
    main()
