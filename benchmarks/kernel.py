"""Speed of decoding and resizing a picture to 256 × 256 on one core: the code of `resize` and Pillow with torchvision.

Run:    python benchmarks/kernel.py FOLDER
Reads:  the JPEGs below FOLDER, once, before the timing
Prints: pictures per second of CPU time for both, the ratios to raw pixels and to JPEG, and the difference of the pixels

The contender is the usual code: `Image.open`, `convert("RGB")`, `Resize(256)`, `CenterCrop(256)` on Pillow's pictures, which
is antialiased; then the raw bytes, or `save` as a JPEG of quality 95. Both read the same bytes from memory with one thread on
one core and take turns; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/kernel.py")
    parser.add_argument("folder", type=usage.existing_path)
    parser.add_argument("--pictures", type=int, default=200, help="number of pictures, first by name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.parse_args()

import io
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from alexnet import dataset
from alexnet.pictures import decode, encode
from pipeline.sources.ilsvrc import YEAR_2012

SIDE = 256
QUALITY = 95

usual = Compose([Resize(SIDE), CenterCrop(SIDE)])


def ours(data: bytes) -> NDArray[np.uint8]:
    """The pixels, H×W×3, by the code of `resize`."""
    return dataset.resize(decode(data), SIDE, "bilinear").permute(1, 2, 0).contiguous().numpy()


def theirs(data: bytes) -> NDArray[np.uint8]:
    """The pixels, H×W×3, by Pillow and torchvision."""
    return np.array(usual(Image.open(io.BytesIO(data)).convert("RGB")))


def our_jpeg(data: bytes) -> bytes:
    """A JPEG, by the code of `resize`."""
    return encode(dataset.resize(decode(data), SIDE, "bilinear"), QUALITY)


def their_jpeg(data: bytes) -> bytes:
    """A JPEG, by Pillow and torchvision."""
    file = io.BytesIO()
    usual(Image.open(io.BytesIO(data)).convert("RGB")).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


CONTENDERS: tuple[Callable[[bytes], object], ...] = (ours, theirs, our_jpeg, their_jpeg)
AT_A_TIME = 10


def main(arguments: argparse.Namespace) -> None:
    """Runs the benchmark and prints its results."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pictures = read(arguments.folder, arguments.pictures)
    print(described(pictures), flush=True)
    print(agreement(pictures), flush=True)
    rounds = [timed(pictures, turn) for turn in range(arguments.rounds + 1)][1:]  # the first warms up
    for name, mine, other in (("raw pixels", 0, 1), (f"JPEG of quality {QUALITY}", 2, 3)):
        ratios = [rates[mine] / rates[other] for rates in rounds]
        our_rate, their_rate = (statistics.median(rates[who] for rates in rounds) for who in (mine, other))
        print(
            f"to {name}: {our_rate:,.0f} against {their_rate:,.0f} pictures a second on one core: "
            f"{statistics.median(ratios):.2f} times as fast (median of {len(ratios)} rounds; {min(ratios):.2f} to "
            f"{max(ratios):.2f})",
            flush=True,
        )
    print(projection(our_rate, pictures))


def read(folder: Path, most: int) -> list[bytes]:
    """The bytes of the first `most` JPEGs below a folder, by name."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))[:most]
    if not files:
        raise SystemExit(f"{folder}: no file below it ends in .jpg or .jpeg")
    return [file.read_bytes() for file in files]


def described(pictures: list[bytes]) -> str:
    """A sentence on the number and size of the pictures."""
    sizes = [decode(data).shape[1:] for data in pictures]
    pixels = statistics.mean(height * width for height, width in sizes)
    return (
        f"{len(pictures):,} pictures of {sum(map(len, pictures)) / len(pictures) / 1000:,.0f} kB and {pixels / 1e6:.2f} "
        f"megapixels on average; {sum(min(size) < SIDE for size in sizes):,} with a shorter side under {SIDE}"
    )


def agreement(pictures: list[bytes]) -> str:
    """A sentence on the PSNR between our pixels and Pillow's."""
    errors = np.array([np.mean((ours(data).astype(float) - theirs(data).astype(float)) ** 2) for data in pictures])
    with np.errstate(divide="ignore"):
        each = 10 * np.log10(255**2 / errors)
        overall = 10 * np.log10(255**2 / errors.mean())
    return (
        f"against Pillow's antialiased pixels: PSNR {overall:.1f} dB over all pictures, "
        f"{each.min():.1f} dB for the farthest of them"
    )


def timed(pictures: list[bytes], turn: int) -> list[float]:
    """Pictures per second of CPU time for each contender. They take turns, and the first one rotates."""
    seconds = [0.0] * len(CONTENDERS)
    for first in range(0, len(pictures), AT_A_TIME):
        for number in range(len(CONTENDERS)):
            who = (number + turn + first // AT_A_TIME) % len(CONTENDERS)
            begun = time.process_time()
            for data in pictures[first : first + AT_A_TIME]:
                CONTENDERS[who](data)
            seconds[who] += time.process_time() - begun
    return [len(pictures) / spent for spent in seconds]


def projection(rate: float, pictures: list[bytes]) -> str:
    """A sentence on the core-hours for ILSVRC-2012 at `rate` pictures per second and core, measured with `pictures`."""
    count = YEAR_2012.counts["train"] + YEAR_2012.counts["val"]
    mean = sum(remote.bytes or 0 for remote in YEAR_2012.remotes) / count
    here = sum(map(len, pictures)) / len(pictures)
    return (
        f"ILSVRC-2012, {count:,} pictures: {count / rate / 3600:.2f} core-hours, if its pictures are like these; these have "
        f"{here / 1000:,.0f} kB on average, those {mean / 1000:,.0f} kB with their tar headers"
    )


if __name__ == "__main__":
    main(parser.parse_args())
