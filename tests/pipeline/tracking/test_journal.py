"""The journal: whole lines in their order, whatever kills their writer; nothing that it holds is lost or sent twice."""

from __future__ import annotations

import errno
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from pipeline.tracking import journal
from pipeline.tracking.journal import ROWS, Journal, Reader

ABOUT = {"run_id": "1", "to": "http://there", "stage": "train"}


def records(reader: Reader, most: int = 1000) -> list[Any]:
    return [record.get("step") for _, record in reader.unsent(ROWS, most)]


def test_lines_are_read_in_order_and_each_once(tmp_path: Path) -> None:
    book = Journal.begin(tmp_path, ABOUT)
    for step in range(5):
        book.write({"step": step, "metrics": {"loss": math.nan if step == 2 else 0.1 * step}})
    (reader,) = journal.pending(tmp_path)
    assert reader.about["run_id"] == "1"
    first = reader.unsent(ROWS, most=2)
    assert [record["step"] for _, record in first] == [0, 1]
    reader.sent(ROWS, first[-1][0])
    assert records(Reader(book.folder)) == [2, 3, 4]
    assert math.isnan(reader.unsent(ROWS)[0][1]["metrics"]["loss"])
    assert reader.left() == "3 values"


def test_a_line_that_was_not_finished_waits_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    book = Journal.begin(tmp_path, ABOUT)
    book.write({"step": 0, "metrics": {"a": 1}})
    with (book.folder / ROWS).open("a") as file:
        file.write('{"step": 1, "metr')
    reader = Reader(book.folder)
    assert records(reader) == [0]
    assert not reader.ended
    with (book.folder / ROWS).open("a") as file:
        file.write('\n[1]\n\x00\x00\n{"step": 2, "end": "FINISHED"}\n')
    assert [step for step in records(reader) if step is not None] == [0, 2]
    assert reader.ended


WRITER = """
import sys
from pathlib import Path
from pipeline.tracking.journal import Journal
book = Journal.begin(Path(sys.argv[1]), {"run_id": "1", "to": "x", "stage": "train"})
print("ready", flush=True)
step = 0
while True:
    book.write({"step": step, "metrics": {"loss": 1.0}})
    step += 1
"""


def test_what_a_sigkill_leaves_is_whole_and_without_a_gap(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (reader,) = journal.pending(tmp_path)
        assert not reader.over, "its writer is there"
        while len(reader.unsent(ROWS, most=300)) < 300:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert reader.over
    found = records(reader, most=10**9)
    assert found == list(range(len(found)))
    with (reader.folder / ROWS).open("ab") as file:
        file.write(b'{"time": 1, "step": 3')
    assert records(reader, most=10**9) == found, "half a line"


def test_a_full_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Journal.begin(tmp_path, ABOUT)
    opened = Path.open
    full = True

    class Torn:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_(path: Path, mode: str = "r", *words: Any, **named: Any) -> Any:
        file = opened(path, mode, *words, **named)
        return Torn(file) if full and mode == "ab" else file

    monkeypatch.setattr(Path, "open", open_)
    for step in range(3):
        book.write({"step": step, "metrics": {"a": 1}})
    full = False
    for step in range(3, 5):
        book.write({"step": step, "metrics": {"a": 1}})
    assert [step for step in records(Reader(book.folder)) if step is not None] == [3, 4]
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_files_are_kept_as_they_were(tmp_path: Path) -> None:
    book = Journal.begin(tmp_path / "journal", ABOUT)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/index.html").write_text("first")
    kept = book.keep(tmp_path / "report")
    (tmp_path / "report/index.html").write_text("second")
    assert (book.folder / kept / "index.html").read_text() == "first"
    assert (book.folder / book.keep_bytes("model.pt", b"weights")).read_bytes() == b"weights"


def test_what_was_refused_stays_and_the_rest_goes(tmp_path: Path) -> None:
    book = Journal.begin(tmp_path, ABOUT)
    book.keep_bytes("a", b"b")
    reader = Reader(book.folder)
    reader.put_aside({"tag": ["a", "b"]}, "too long")
    reader.remove()
    assert sorted(path.name for path in book.folder.iterdir()) == ["about.json", "refused.jsonl"]
    assert journal.pending(tmp_path) == []
    assert json.loads((book.folder / "refused.jsonl").read_text())["why"] == "too long"
