"""The counts: every picture once, and the same in whatever order."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from alexnet.pictures import decode, describe
from pipeline.runtime import digests
from pipeline.shards.census import Census
from tests.alexnet.test_pictures import KINDS, RGB, saved
from tests.pipeline.flips import unsaid


def counted(pictures: list[bytes], side: int = 25) -> Census:
    census = Census()
    for data in pictures:
        height, width = decode(data).shape[1:]
        census.keep(*describe(data), len(data), width, height, side, damaged=len(data) % 2 == 0)
    return census


def test_counts_are_the_same_in_any_order_and_parting() -> None:
    parts = [counted([data]) for all_of_it in KINDS.values() for data in all_of_it]
    lost = Census()
    for reason in ("the file is empty", "damaged: image file is truncated (3 bytes not processed)", "damaged: other"):
        lost.reject(reason)
    forwards, backwards = (sum(order, Census()) for order in ([*parts, lost], [lost, *parts[::-1]]))
    assert forwards == backwards
    assert forwards.to_json() == backwards.to_json()
    assert forwards.lines() == backwards.lines()
    assert forwards.formats == {kind: len(all_of_it) for kind, all_of_it in KINDS.items()}
    assert forwards.rejected == {"the file is empty": 1, "damaged": 2}
    assert (forwards.kept, forwards.indexed) == (len(parts), len(parts) + 3)
    assert 0 < forwards.damaged == sum(part.damaged for part in parts) < len(parts)


@pytest.mark.parametrize(("side", "smaller"), [(19, 0), (20, 0), (21, 3)])
def test_the_shorter_side_says_what_was_enlarged(side: int, smaller: int) -> None:
    pictures = [saved(picture, "PNG") for picture in (RGB.resize((20, 30)), RGB.resize((30, 20)), RGB.resize((20, 20)))]
    census = counted(pictures, side)
    assert census.smaller == smaller
    assert census.pixels == 20 * 30 * 2 + 20 * 20
    assert census.file_bytes == sum(map(len, pictures))


def test_the_lines_say_the_counts() -> None:
    census = Census(
        formats={"JPEG grey": 5, "JPEG colour": 2000, "GIF palette": 5},
        rejected={"damaged": 1},
        orientations={"6": 2, "8": 1},
        smaller=7,
        damaged=1200,
        duplicates={"test": 1, "val": 2000},
        file_bytes=2010 * 110_000,
        pixels=2010 * 190_000,
    )
    assert census.lines() == [
        "2,011 pictures: 2,000 JPEG colour, 5 GIF palette, 5 JPEG grey",
        "rejected: 1 damaged",
        "originals have 110 kB and 0.19 megapixels on average",
        "7 are smaller than the stored size, and were enlarged",
        "3 have an EXIF orientation, which is not applied",
        "damaged, kept: 1,200; damaged.parquet lists them",
        "pictures with the same bytes as a training picture: 2,000 val, 1 test; duplicates.parquet lists them",
    ]
    assert Census().lines() == ["0 pictures: none kept"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "pictures.json").write_text(counted(list(itertools.chain(*KINDS.values()))).to_json())
    digests.seal(tmp_path)
    return tmp_path / "pictures.json"


def test_what_was_written_is_read_and_any_other_byte_is_refused(file: Path) -> None:
    assert Census.read(file) == counted(list(itertools.chain(*KINDS.values())))
    assert unsaid(file, lambda: Census.read(file), always=True) == []
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"pictures\.json: not there\. Run: dvc repro resize"):
        Census.read(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"formats": []}, r"formats: .*object \(found \[\]\)"),
        ({"formats": {"JPEG": "3"}}, r"formats\.JPEG: .*integer \(found '3'\)"),
        ({"formats": {"JPEG": 0}}, r"formats\.JPEG: has to be 1 or more, is 0"),
        ({"duplicates": {"val": 0}}, r"duplicates\.val: has to be 1 or more, is 0"),
        ({"smaller": -1}, "smaller: has to be 0 or more, is -1"),
        ({"damaged": -1}, "damaged: has to be 0 or more, is -1"),
        ({"pixels": True}, r"pixels: .*integer \(found True\)"),
        ({"pixels": float("inf")}, "Infinity is no number"),
        ({"colour": 3}, "colour: unknown key"),
    ],
)
def test_counts_that_are_none_are_named(file: Path, change: dict[str, object], said: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    digests.seal(file.parent)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{said}.*Run: dvc repro --force"):
        Census.read(file)


@pytest.mark.parametrize("text", ["", "[]", '{"formats": {}, "colour": 3}', "{}"])
def test_what_is_no_counts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^pictures\.json: .*Run: dvc repro --force --single-item resize$"):
        Census.parse(text, Path("pictures.json"))
