"""The counts: every picture once, and the same in whatever order."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from alexnet.dataset import decode, look
from pipeline.census import Census
from tests.alexnet.test_dataset import KINDS, RGB, saved


def counted(pictures: list[bytes], side: int = 25) -> Census:
    census = Census()
    for data in pictures:
        height, width = decode(data).shape[1:]
        census.keep(*look(data), len(data), width, height, side)
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
        file_bytes=2010 * 110_000,
        pixels=2010 * 190_000,
    )
    assert census.lines() == [
        "2,011 pictures: 2,000 JPEG colour, 5 GIF palette, 5 JPEG grey",
        "rejected: 1 damaged",
        "as they came, 110 kB and 0.19 megapixels on average",
        "7 are smaller than what is stored, and were enlarged",
        "3 have an EXIF orientation, which is not applied",
    ]
    assert Census().lines() == ["0 pictures: none kept"]


def test_what_was_written_is_read_and_what_is_not_ours_is_named(tmp_path: Path) -> None:
    census = counted(list(itertools.chain(*KINDS.values())))
    file = tmp_path / "pictures.json"
    with pytest.raises(
        FileNotFoundError, match=r"pictures\.json: not there\. Run: dvc repro --force --single-item resize"
    ):
        Census.read(file)
    file.write_text(census.to_json())
    assert Census.read(file) == census
    for text in ("", "[]", '{"formats": {}, "colour": 3}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: no counts of ours .*Run: dvc repro"):
            Census.read(file)
