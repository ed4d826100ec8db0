"""Pages as a browser shows them, without network: Chromium measures them at any width, and prints them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PROGRAM = next(filter(None, map(shutil.which, NAMES)), "")

needed = pytest.mark.skipif(not PROGRAM, reason=f"no browser is installed: none of {', '.join(NAMES)}")

LIMIT = 90
"""Seconds for one start of the browser."""

MEASURE = """
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, width = page.documentElement.clientWidth;
  for (const each of page.querySelectorAll("details")) each.open = true;
  const named = each => each.tagName + "." + each.className + " " + each.textContent.trim().slice(0, 40);
  const all = [...page.body.querySelectorAll("*")];
  const pictures = [...page.images].map(each => each.complete && each.naturalWidth > 0 && each.getBoundingClientRect().width > 1);
  const result = JSON.stringify({
    width: width,
    scroll: page.documentElement.scrollWidth,
    wider: all.filter(each => each.getBoundingClientRect().right > width + 0.5).map(named),
    cut: all.filter(each => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX == "hidden").map(named),
    pictures: pictures.length,
    drawn: pictures.filter(Boolean).length,
    scripts: page.scripts.length,
    background: getComputedStyle(page.body).backgroundColor,
    ink: getComputedStyle(page.body).color,
  });
  document.body.innerHTML = "";
  document.body.append(result);
});
</script>
"""
"""A frame is as narrow as a phone, which a window of the browser cannot be; a frame of this page can be looked into."""


def start(folder: Path, *words: str) -> str:
    """Runs the browser without network, with its files in `folder`; returns what it prints."""
    options = [
        "--headless=new",
        "--no-sandbox",  # in a container, as root; it opens our own pages alone
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--allow-file-access-from-files",
    ]
    done = subprocess.run([PROGRAM, *options, *words], check=True, capture_output=True, text=True, timeout=LIMIT)
    return done.stdout


def measured(page: Path, width: int, folder: Path, *words: str) -> dict[str, Any]:
    """What the browser measures of a page of this width in pixels, with all that is folded opened."""
    harness = folder / "harness.html"
    text = page.read_text(encoding="utf-8").replace("<head>", f'<head><base href="{page.as_uri()}">', 1)
    frame = f'<iframe style="border:0;width:{width}px;height:3000px" srcdoc="{html.escape(text)}"></iframe>'
    harness.write_text(f'<!doctype html><meta charset="utf-8"><body>{frame}{MEASURE}</body>', encoding="utf-8")
    shown = start(folder, *words, "--virtual-time-budget=20000", "--dump-dom", harness.as_uri())
    found = re.search(r"<body>(\{.*\})</body>", shown, re.S)
    assert found, shown[:2000]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


def printed(page: Path, folder: Path) -> bytes:
    """The page printed as PDF."""
    file = folder / "printed.pdf"
    start(folder, "--no-pdf-header-footer", f"--print-to-pdf={file}", page.as_uri())
    return file.read_bytes()
