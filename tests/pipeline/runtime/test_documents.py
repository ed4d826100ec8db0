"""CSV as it is written and read back; tests of names and of tables have what else documents.py promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime import documents


def test_records_are_written_whole_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    documents.write_records(file, ["step", "loss"], [{"step": 1, "loss": 0.1}, {"step": 2}])
    assert file.read_bytes() == b"step,loss\n1,0.1\n2,\n"
    with pytest.raises(ValueError, match=r"a\.csv: has no column rate"):
        documents.write_records(file, ["step", "loss"], [{"step": 1, "rate": 0.1}])
