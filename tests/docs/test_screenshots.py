"""The pictures of the pages: small, of pages as Chromium shows them, and each on a page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from docs import screenshots, typed


def test_each_picture_is_small_and_on_a_page() -> None:
    on_pages = {
        name
        for page in typed.pages()
        for name in re.findall(r"\]\((?:docs/)?pictures/([\w-]+\.png)\)", page.read_text())
    }
    assert {file.name for file in screenshots.PICTURES.iterdir()} == on_pages
    for name in on_pages:
        file = screenshots.PICTURES / name
        assert file.stat().st_size <= screenshots.LARGEST
        with Image.open(file) as picture:
            assert picture.width == screenshots.WIDTH


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_page_is_taken_as_chromium_shows_it_and_a_large_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, height = screenshots.terminal(tmp_path, str(tmp_path), ["git", "--version"])
    assert "<b>$ git --version</b>\ngit version" in page.read_text()
    assert height == 32 + 2 * screenshots.LINE
    page.write_text(page.read_text().replace("background: #fff", "background: #f00"))
    screenshots.take(page.as_uri(), tmp_path / "shot.png", 120)
    with Image.open(tmp_path / "shot.png") as picture:
        assert picture.size == (screenshots.WIDTH, 120)
        red, green, blue = picture.convert("RGB").getpixel((1100, 100))
    assert red > 200 and green < 60 and blue < 60
    monkeypatch.setattr(screenshots, "LARGEST", 10)
    with pytest.raises(ValueError, match=r"shot\.png: has .* bytes, more than 10\. Take a smaller window"):
        screenshots.take(page.as_uri(), tmp_path / "shot.png", 120)
