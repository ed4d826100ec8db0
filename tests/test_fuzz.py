"""Fuzzing with 500 damaged files of each kind; and that `make fuzz` finds faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import fuzz


@pytest.mark.slow
def test_five_hundred_damaged_files_are_read_or_refused_in_our_words(tmp_path: Path) -> None:
    program = [sys.executable, Path(fuzz.__file__).resolve(), "--cases", "500", "--seed", "1"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "500 cases in" in done.stdout


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_: (_ for _ in ()).throw(ValueError()), "ValueError without a message"),
        (lambda *_: (_ for _ in ()).throw(MemoryError()), "too much memory"),
        (lambda data, *_: data, "read as other contents, without an error"),
        (lambda *_: "the same", ""),
        (lambda *_: Path("/nowhere").read_bytes(), ""),
    ],
)
def test_what_is_wrong_with_a_reader_is_said(read: object, said: str, tmp_path: Path) -> None:
    kind = fuzz.Kind("any", lambda _: [b"a"], read, sealed=True)  # type: ignore[arg-type]
    assert fuzz.fault(kind, b"a", b"b", tmp_path) == said


def test_a_case_is_the_same_again_and_no_two_are() -> None:
    seeds = {"csv": [bytes(range(256)) * 4, b"other" * 99]}
    made = [fuzz.case(number, 0, ["csv"], seeds) for number in range(200)]
    assert made == [fuzz.case(number, 0, ["csv"], seeds) for number in range(200)]
    assert all(whole != data for _, whole, data in made)
    assert len({data for *_, data in made}) > 190
    assert fuzz.damaged(b"", b"", np.random.default_rng(0)) != b""


@pytest.mark.slow
@pytest.mark.parametrize(("ill", "said"), [("os.abort()", "crashes: -6"), ("time.sleep(99)", "hangs for 1 s")])
def test_a_child_that_crashes_or_hangs_is_one_case_s_fault(
    ill: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys, time\nfirst, last = map(int, sys.argv[2:4])\n"
        "for n in range(first, last):\n"
        "    print('{\"begins\": %d}' % n, flush=True)\n"
        f"    if n == 3: {ill}\n"
        '    print(\'{"ends": %d, "fault": ""}\' % n, flush=True)\n'
    )
    monkeypatch.setattr(fuzz, "__file__", os.fspath(script))
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert fuzz.watch(["csv"], 0, 0, 9) == (4, {3: said})
    assert fuzz.watch(["csv"], 0, 4, 9) == (9, {})
