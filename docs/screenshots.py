"""Takes the pictures of the pages: the report, a comparison, MLflow's runs and what commands print, as Chromium shows them.

Run:    python docs/screenshots.py FOLDER
Reads:  FOLDER, a working copy with a finished run and an experiment beside it; chromium
Writes: docs/pictures/*.png, at most 150 kB each. Look at each before you commit it
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python docs/screenshots.py")
    parser.add_argument("folder", type=usage.existing_path)
    parser.parse_args()

import contextlib
import html
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"

LARGEST = 150_000
"""The most bytes of a picture."""

WIDTH = 1200
"""Width of a picture, in pixels."""

LONGEST = 120
"""Seconds that Chromium, or a server, may take."""

LINE = 19
"""Height of a line of a terminal, in pixels."""

TERMINAL = """<!doctype html><meta charset="utf-8"><style>body {{margin: 0; padding: 16px 20px; background: #fff; color: #222}}
pre {{margin: 0; font: 14px/19px "DejaVu Sans Mono", monospace}} b {{color: #06c; font-weight: normal}}</style><pre><b>$ {}</b>
{}</pre>"""
"""A page that shows a command and what it printed."""


EXPERIMENTS = [
    *("dvc", "exp", "show", "--only-changed", "--hide-workspace"),
    *("--drop", ".*(low|high|centre|neighb|/).*|Created|metrics.json|recipes"),
]
"""The command that docs/changing.md shows, with columns that fit."""


def main(folder: Path) -> None:
    """Takes all pictures of a working copy."""
    PICTURES.mkdir(exist_ok=True)
    experiment = experiments(folder)[0]
    with tempfile.TemporaryDirectory() as work:
        pages = {
            "report": ((folder / "report/index.html").resolve(), 1000),
            "compared": (printed_page(folder, work, ["compare", "here", experiment, "--html"]), 1100),
            "confused": (printed_page(folder, work, ["confused", "--html"]), 900),
            "runs": terminal(folder, work, ["alexnet", "runs"]),
            "experiments": terminal(folder, work, EXPERIMENTS),
        }
        for name, (page, height) in pages.items():
            take(page.as_uri(), PICTURES / f"{name}.png", height)
    with serving(folder) as address:
        take(address, PICTURES / "mlflow.png", 620, beside=408)


def experiments(folder: Path) -> list[str]:
    """The experiments of a working copy; `ValueError` if there is none to compare with."""
    names = run(folder, ["dvc", "exp", "list", "--name-only"]).split()
    if not names:
        raise ValueError(f"{folder}: has no experiment. Run there: alexnet run -S model.normalization=none")
    return names


def run(folder: Path, words: list[str]) -> str:
    """What a command prints in a working copy, by the code of that copy."""
    beside = Path(sys.executable).parent
    path = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "118", "NO_COLOR": "1"}
    program = [sys.executable, "-m", "pipeline"] if words[0] == "alexnet" else [words[0]]
    done = subprocess.run(
        [*program, *words[1:]],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LONGEST,
    )
    return done.stdout


def printed_page(folder: Path, work: str, words: list[str]) -> Path:
    """The page that a command writes to the file named behind its words."""
    page = Path(work) / f"{words[0]}.html"
    run(folder, ["alexnet", *words, str(page)])
    return page


def terminal(folder: Path, work: str, words: list[str]) -> tuple[Path, int]:
    """A page with what a command prints, and its height."""
    page = Path(work) / f"{words[0]}-{words[1]}.html"
    said = "\n".join(line.rstrip() for line in run(folder, words).strip("\n").splitlines())
    page.write_text(TERMINAL.format(html.escape(shlex.join(words)), html.escape(said)), encoding="utf-8")
    return page, 2 * 16 + LINE * (len(said.splitlines()) + 1)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of MLflow's page on the runs, which is served meanwhile."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = tried.getsockname()[1]
    words = [sys.executable, "-m", "pipeline", "tracking", "ui", "--port", str(port)]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "http://" in line)
            address = line[line.index("http://") :].split()[0]
            wait(address)
            yield address
        finally:
            server.terminate()


def wait(address: str) -> None:
    """Waits until a server answers; `TimeoutError` if it does not."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(address.partition("#")[0], timeout=5):  # noqa: S310
            return
        time.sleep(0.5)
    raise TimeoutError(f"{address}: no answer in {LONGEST} s")


def take(address: str, file: Path, height: int, beside: int = 0) -> None:
    """A picture of a page's left `WIDTH` pixels, in a window that is `beside` wider, as a PNG of few colours.

    `ValueError` if it is larger than `LARGEST`.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed. On Debian and Ubuntu: apt install chromium")
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        words = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
            f"--user-data-dir={profile}", f"--window-size={WIDTH + beside},{height}", "--virtual-time-budget=20000",
            f"--screenshot={shot}", address,
        ]  # fmt: skip
        subprocess.run(words, check=True, capture_output=True, timeout=LONGEST)
        with Image.open(shot) as picture:
            picture.convert("RGB").crop((0, 0, WIDTH, height)).quantize(128, dither=Image.Dither.NONE).save(
                file, optimize=True
            )
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file}: has {file.stat().st_size:,} bytes, more than {LARGEST:,}. Take a smaller window")
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(parser.parse_args().folder)
