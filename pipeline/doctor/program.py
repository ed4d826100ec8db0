"""The doctor's program: asks all at once, each within its limit, and prints a line for each finding."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipeline.doctor import here, servers
from pipeline.doctor.finding import Finding, Probe
from pipeline.runtime import edges, redaction
from pipeline.runtime.printing import say

LIMIT = 12.0
"""Seconds after which what has not answered is left; each probe has shorter limits of its own."""


def examine(as_json: bool) -> None:
    """Prints what was found, and exits with code 1 if there is a fault."""
    found = ask(here.PROBES | servers.PROBES, LIMIT)
    if as_json:
        # a secret may end in a quote, so the values are made secret and not the text
        print(json.dumps([{key: redaction.redact(value) for key, value in asdict(each).items()} for each in found]))
    else:
        for each in found:
            say(f"{each.state:8} {each.about:10} {each.seen}", *([f"{'':20}{each.todo}"] if each.todo else []))
        faults, warnings = (sum(each.state == state for each in found) for state in ("fault", "warning"))
        say(f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    sys.stdout.flush()
    # what still waits in a thread, or in a library that it has loaded, is not waited for
    os._exit(any(each.state == "fault" for each in found))


def ask(probes: Mapping[str, Probe], limit: float) -> Sequence[Finding]:
    """Asks all at once, and returns their findings in the order of `probes`: one that fails or hangs is a finding."""
    found: dict[str, Sequence[Finding]] = {}

    def run(name: str, probe: Probe) -> None:
        try:
            found[name] = probe()
        except Exception as error:
            words = edges.message(error) or f"{type(error).__name__}: {error}"
            what, _, todo = words.partition("\n")
            found[name] = [Finding(name, "fault", what, todo or "alexnet doctor --verbose says more")]

    threads = {
        name: threading.Thread(target=run, args=(name, probe), daemon=True, name=name) for name, probe in probes.items()
    }
    end = time.monotonic() + limit
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    return [each for name in probes for each in (found[name] if name in found else [_late(name, limit)])]


def _late(name: str, limit: float) -> Finding:
    what = f"no answer in {limit:g} s"
    if name in servers.PROBES:
        return Finding(name, "fault", what, "Is the network, and the server, in order?")
    # on a machine that has just started, importing torch alone may take longer
    return Finding(name, "warning", what, "Is the disk slow, or this the first time today? Then again: alexnet doctor")
