"""What was sealed is read as it was written, or refused with the command that makes it anew."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.runtime import digests
from tests.pipeline.flips import unsaid


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "a.csv").write_text("a,b\n")
    (made / "deep/b c.bin").write_bytes(bytes(range(256)))
    (tmp_path / "beside.json").write_text("{}")
    digests.seal(made, {"../beside.json": digests.of(tmp_path / "beside.json")})
    return made


def test_coreutils_checks_it_too(folder: Path) -> None:
    said = subprocess.run(["sha256sum", "-c", "--strict", digests.SUMS], cwd=folder, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["../beside.json: OK", "a.csv: OK", "deep/b c.bin: OK"]
    assert said.returncode == 0


def test_what_is_as_it_was_is_read(folder: Path) -> None:
    assert digests.read(folder / "a.csv", "evaluate") == b"a,b\n"
    assert digests.read(folder.parent / "beside.json", "evaluate", folder) == b"{}"
    digests.check(folder / "deep/b c.bin", "evaluate", folder)


def test_any_other_byte_is_refused_with_both_digests_and_the_command(folder: Path) -> None:
    for file in (folder / "a.csv", folder / digests.SUMS):
        assert unsaid(file, lambda: digests.read(folder / "a.csv", "evaluate")) == []
    (folder / "a.csv").write_text("a,b\nc,d\n")
    with pytest.raises(ValueError, match=r"a\.csv: not as 'evaluate' wrote it: its sha256 is \w{16}…, was \w{16}…"):
        digests.check(folder / "a.csv", "evaluate")


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv: not there\. Run: dvc repro evaluate"):
        digests.read(folder / "none.csv", "evaluate")
    (folder / "new.csv").write_text("")
    with pytest.raises(ValueError, match=r"SHA256SUMS: has no line for new\.csv\. Run: dvc repro --force"):
        digests.check(folder / "new.csv", "evaluate")
    (folder / digests.SUMS).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"SHA256SUMS: not there, so .*a\.csv .* older code wrote it\. Run: dvc"
    ):
        digests.check(folder / "a.csv", "evaluate")


def test_a_stamped_text_is_itself_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "done.json"
    text = '{"rows": 12}\nsecond line'
    file.write_text(digests.stamped(text))
    assert digests.unstamped(file) == text
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"done\.json: damaged"):
            digests.unstamped(file)


def test_a_marked_file_is_known_again(tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    assert not digests.marked(file)
    file.write_bytes(b"PAR1")
    assert not digests.marked(file), "a kill came between the two"
    digests.mark(file)
    assert digests.marked(file)
    file.write_bytes(b"PAR2")
    assert not digests.marked(file)
