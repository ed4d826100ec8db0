"""Fuzzing: damages small files of every kind that the project reads, and reads them with the project's code in a child process.

Run:    make fuzz, or python tests/fuzz.py --cases 20000 --seed 0 [--only KIND]; a stopped run resumes
Writes: work/fuzz/: state.json, and the file of each case that failed
Fails:  a crash, a hang, too much memory, an error other than ValueError or OSError with a message, and,
        for files with a digest (`sealed`), changed contents without an error
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WORK = Path("work/fuzz")

BATCH = 500
"""Number of cases that a child process reads."""

SECONDS, MEMORY = 30, 2 * 2**30
"""Limits for one case, in seconds and bytes; the memory is in addition to the child's before its first case."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: small undamaged samples, and the project's code that reads one and returns a comparable value."""

    name: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, bytes, Path], object]
    """Called with the damaged bytes, the undamaged bytes, and an empty folder."""
    sealed: bool = False
    """Whether a digest is stored with the file, so that changed contents have to be an error."""


def _pictures(_: Path) -> list[bytes]:
    from tests.alexnet.test_limits import gif_with, tiff, with_scans
    from tests.alexnet.test_pictures import AS_PILLOW, KINDS

    odd = [tiff(), gif_with(b"!\xfe\1x\0"), with_scans(3), b"P3\n2 2\n9\n" + b"1 " * 12, b"P6\n2 2\n9\n" + bytes(12)]
    return [*(data for all_of_it in KINDS.values() for data in all_of_it), *AS_PILLOW.values(), *odd]


def _picture(data: bytes, _: bytes, __: Path) -> object:
    from alexnet.pictures import decode, describe

    return decode(data).numpy().tobytes(), describe(data)


def _tars(_: Path) -> list[bytes]:
    from tests.pipeline import layouts

    files = {"train/a/1.JPEG": b"one", "x/" * 70 + "é.jpg": b"two" * 300, "empty": b"", "words.txt": b"a\tb\n"}
    return [layouts.tar(files, kind) for kind in (0, 1, 2) if kind or all(len(name) < 100 for name in files)]


def _tar(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.archives import tree
    from pipeline.archives.store import StorePath

    file = _written(folder / "a.tar", data)
    return [
        (name, place.length, place.crc32) for name, place in tree.of_tar(StorePath(folder) / file.name).files.items()
    ]


def _tgzs(folder: Path) -> list[bytes]:
    return [gzip.compress(data, mtime=0) for data in _tars(folder)]


def _tgz(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.archives import repacked

    return list(repacked.untar(_written(folder / "a.tgz", data)))


def _zips(_: Path) -> list[bytes]:
    from tests.pipeline import layouts

    return [layouts.zipped({"train/a/1.JPEG": b"one" * 99, "b.txt": b"two", "c": bytes(2000)})]


def _zip(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.archives import repacked

    return list(repacked.unzip(_written(folder / "a.zip", data)))


def _devkits(_: Path) -> list[bytes]:
    from tests.pipeline.archives.test_ilsvrc import devkit

    return [devkit()]


def _devkit(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.archives import ilsvrc
    from tests.pipeline.archives.test_ilsvrc import YEAR

    return ilsvrc.devkit(_written(folder / "devkit.tar.gz", data), YEAR)


def _metas(_: Path) -> list[bytes]:
    from tests.pipeline.archives.test_ilsvrc import meta

    return [meta()]


def _meta(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.archives import ilsvrc

    return ilsvrc._synsets(folder, data, "ILSVRC2012_ID")


def _shards(folder: Path) -> list[bytes]:
    from tests.pipeline import miniature

    miniature.shard(folder / "a.parquet", range(6), [0, 1, 0, 1, 0, 1], 16, 2)
    return [(folder / "a.parquet").read_bytes()]


def _shard(data: bytes, whole: bytes, folder: Path) -> object:
    from pipeline.shards.batches import Pictures
    from pipeline.shards.tables import Shard

    file = _written(folder / "a.parquet", data)
    known = Shard(file=file.name, rows=6, bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())
    pictures = Pictures(folder, [known])
    return [pictures.read(group) for group in range(len(pictures.groups))]


def _table(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.shards import tables

    file = _written(folder / "a.parquet", data)
    whole, by_groups = tables.read(file).to_pylist(), [group.to_pylist() for group in tables.groups(file)]
    return whole, by_groups


def _hubs(folder: Path) -> list[bytes]:
    from tests.pipeline import layouts

    layouts.huggingface(folder)
    return [file.read_bytes() for file in sorted(folder.rglob("*.parquet"))]


def _hub(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.archives import parquet

    file = _written(folder / "train-00000-of-00001.parquet", data)
    columns = parquet.Columns()
    return list(parquet.labelled(file, columns, "train")), list(parquet.pictures(file, columns, "train"))


def _manifests(folder: Path) -> list[bytes]:
    from tests.pipeline import miniature

    miniature.prepared(folder, 4, 2, 2, 16)
    return [(folder / "data/shards/manifest.json").read_bytes()]


def _manifest(data: bytes, whole: bytes, folder: Path) -> object:
    from pipeline.shards.manifest import Manifest

    _sealed(folder / "manifest.json", whole).write_bytes(data)
    return Manifest.read(folder).to_json()


def _means(folder: Path) -> list[bytes]:
    from tests.pipeline import miniature

    miniature.prepared(folder, 4, 2, 2, 16)
    return [(folder / "data/mean.npz").read_bytes()]


def _mean(data: bytes, whole: bytes, folder: Path) -> object:
    from alexnet.dataset import Mean

    mean = Mean.load(_written(folder / "mean.npz", data))
    return [np.asarray(value).tobytes() for value in (mean.image_CHW, mean.covariance_CC, mean.images)]


def _models(_: Path) -> list[bytes]:
    from alexnet.build import build, save
    from tests.sections import PAPER

    file = io.BytesIO()
    save(file, build(replace(PAPER, width=1 / 48), 3), fingerprint="f" * 12, classes=[["n1", "one"]])
    return [file.getvalue()]


def _model(data: bytes, _: bytes, __: Path) -> object:
    from alexnet.build import load

    network, facts = load(io.BytesIO(data))
    return [value.numpy().tobytes() for value in network.state_dict().values()], facts


def _checkpoints(_: Path) -> list[bytes]:
    import torch

    from alexnet import sealed

    file, weights = io.BytesIO(), {"a": torch.arange(999.0), "b": torch.ones(3)}
    known = {"fingerprint": "f" * 12, "classes": [["n1", "one"]], "progress": {"step": 7, "epoch": 1}}
    sealed.write(file, {**known, "weights": weights, "velocity": weights})
    return [file.getvalue()]


def _checkpoint(data: bytes, _: bytes, folder: Path) -> object:
    from pipeline.training import checkpoints

    _written(folder / checkpoints.FILE, data)
    return str(checkpoints.read(folder))


def _histories(_: Path) -> list[bytes]:
    head = "epoch,step,rate,train_loss,train_top1_error,val_loss,val_top1_error,val_top5_error\n"
    return [(head + "".join(f"{epoch},{epoch * 5 + 5},0.01,2.5,0.75,2.25,.5,0.25\n" for epoch in range(4))).encode()]


def _history(data: bytes, whole: bytes, folder: Path) -> object:
    from pipeline.evaluation.reporting import reading

    _sealed(folder / "epochs.csv", whole).write_bytes(data)
    return reading.history(folder / "epochs.csv")


def _answers(_: Path) -> list[bytes]:
    return [b"actual,predicted\r\n" + b'"a, b",c\r\nc,none\r\n"a, b","a, b"\r\n' * 3]


def _answer(data: bytes, whole: bytes, folder: Path) -> object:
    from pipeline.evaluation.reporting import reading

    _sealed(folder / "confusion.csv", whole).write_bytes(data)
    return reading.confusion(folder / "confusion.csv", ["a, b", "c"]).tolist()


def _lists(_: Path) -> list[bytes]:
    return [b"ImageId,PredictionString\nv1,n1 1 2 3 4\nv2,n2 5 6 7 8 n1 1 2 3 4\n"]


def _list(data: bytes, _: bytes, folder: Path) -> object:
    return _flat(_written(folder / "set/LOC_val_solution.csv", data))


def _lines(_: Path) -> list[bytes]:
    spaced = b'\xef\xbb\xbfpicture label\r\nval/v1.jpg n1\r\n"v2" "n2"\r\n'
    return [b"v2.jpg\t1\nv1.jpg\t0\n", b"n1\nn2\n", spaced, "v1 n1\nv2 n2".encode("utf-16")]


def _line(data: bytes, _: bytes, folder: Path) -> object:
    return _flat(_written(folder / "set/val.txt", data))


def _flat(file: Path) -> object:
    from pipeline.archives import label_files, tree
    from pipeline.archives.store import StorePath

    for name in ("v1.jpg", "v2.jpg"):
        _written(file.parent / "val" / name, b"x")
    return label_files.find(tree.of_folder(StorePath(file.parent.parent) / "set"), "val", ["n1", "n2"], None).wnids


def _foreigns(_: Path) -> list[bytes]:
    import torch

    from tests.pipeline.training.test_foreign import REFERENCES, THEIRS, safetensors

    few = {f"module.{name}": tensor.flatten()[:3].clone() for name, tensor in THEIRS.items()}
    made = [safetensors(few)]
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(REFERENCES | {"model": few}, file, _use_new_zipfile_serialization=zipped)
        made.append(file.getvalue())
    return made


def _foreign(data: bytes, _: bytes, __: Path) -> object:
    from pipeline.training import foreign, naming
    from tests.pipeline.training.test_foreign import PLAIN

    weights, whose = naming.under_our_names(foreign.state_dict(foreign.read(data, "a.pth"), "a.pth"), PLAIN, "alexnet")
    return whose, [(name, tensor.shape) for name, tensor in weights.items()]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("picture", _pictures, _picture),
        Kind("tar", _tars, _tar),
        Kind("tar.gz", _tgzs, _tgz, sealed=True),
        Kind("zip", _zips, _zip),
        Kind("devkit", _devkits, _devkit, sealed=True),
        Kind("meta.mat", _metas, _meta),
        Kind("shard", _shards, _shard, sealed=True),
        Kind("table", _shards, _table),
        Kind("parquet", _hubs, _hub),
        Kind("manifest", _manifests, _manifest, sealed=True),
        Kind("mean", _means, _mean, sealed=True),
        Kind("model", _models, _model, sealed=True),
        Kind("checkpoint", _checkpoints, _checkpoint, sealed=True),
        Kind("history", _histories, _history, sealed=True),
        Kind("confusion", _answers, _answer, sealed=True),
        Kind("csv", _lists, _list),
        Kind("labels", _lines, _line),
        Kind("weights", _foreigns, _foreign),
    )
}


def _written(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def _sealed(file: Path, whole: bytes) -> Path:
    """The undamaged file, next to the digest that its writer stores."""
    _written(file, whole)
    from pipeline.runtime import digests

    digests.seal(file.parent)
    return file


def damaged(data: bytes, other: bytes, lots: np.random.Generator) -> bytes:
    """Damages the bytes in one to four positions; the result always differs."""
    changed = bytearray(data)
    for _ in range(int(lots.integers(1, 5))):
        _damage(changed, other, lots)
    if changed == data:
        changed.append(int(lots.integers(256)))
    return bytes(changed)


def _damage(data: bytearray, other: bytes, lots: np.random.Generator) -> None:
    if not data:
        data += other
    start = int(lots.integers(len(data) + 1))
    end = min(len(data), start + int(2 ** lots.uniform(0, 12)))
    match int(lots.integers(8)):
        case 0 | 1 if start < len(data):
            data[start] ^= 1 << int(lots.integers(8))
        case 2 if start < len(data):
            data[start] = int(lots.choice([0, 1, 0x30, 0x39, 0x7F, 0x80, 0xFF]))
        case 3:
            del data[start:]
        case 4:
            del data[start:end]
        case 5:
            data[start:start] = lots.bytes(end - start) if lots.random() < 0.5 else bytes(data[start:end])
        case 6:
            place = int(lots.integers(len(other) + 1))
            data[start:end] = other[place : place + end - start]
        case _:
            value = int(lots.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            order = "little" if lots.random() < 0.5 else "big"
            length = int(lots.choice([2, 4]))
            data[start : start + length] = (
                value.to_bytes(8, order)[:length] if order == "little" else value.to_bytes(8, order)[-length:]
            )


def case(number: int, seed: int, kinds: list[str], seeds: dict[str, list[bytes]]) -> tuple[Kind, bytes, bytes]:
    """A case's kind, undamaged bytes and damaged bytes; equal numbers give equal cases."""
    kind = KINDS[kinds[number % len(kinds)]]
    lots = np.random.default_rng([seed, number, *kind.name.encode()])
    known = seeds[kind.name]
    whole = known[int(lots.integers(len(known)))]
    return kind, whole, damaged(whole, known[int(lots.integers(len(known)))], lots)


def fault(kind: Kind, whole: bytes, data: bytes, folder: Path) -> str:
    """The fault in reading a damaged file; empty if there is none."""
    try:
        found = kind.read(data, whole, folder)
    except (ValueError, OSError) as error:
        return "" if str(error) else f"{type(error).__name__} without a message"
    except MemoryError:
        return "too much memory"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if kind.sealed:
        with tempfile.TemporaryDirectory() as beside:
            if found != kind.read(whole, whole, Path(beside)):
                return "read as other contents, without an error"
    return ""


def child(kinds: list[str], seed: int, first: int, last: int) -> None:
    """The child process: reads cases, and reports each case's start and fault."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        seeds = {}
        for name in kinds:
            (Path(scratch) / name).mkdir()
            seeds[name] = KINDS[name].seeds(Path(scratch) / name)
            whole = seeds[name][0]
            (Path(scratch) / f"{name}-whole").mkdir()
            KINDS[name].read(whole, whole, Path(scratch) / f"{name}-whole")  # it is read, and what it needs is loaded
    limit = _peak() + MEMORY
    for number in range(first, last):
        print(json.dumps({"begins": number}), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            said = fault(*case(number, seed, kinds, seeds), Path(folder))
        if _peak() > limit:
            said, limit = f"too much memory: {_peak() - limit + MEMORY:,} bytes", _peak() + MEMORY
        print(json.dumps({"ends": number, "fault": said}), flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def watch(kinds: list[str], seed: int, first: int, last: int) -> tuple[int, dict[int, str]]:
    """Runs a child process over cases; returns the first case that it did not read, and case → fault."""
    faults, at = {}, first - 1
    words = ["--child", str(first), str(last), "--seed", str(seed), *(f"--only={name}" for name in kinds)]
    program = [sys.executable, Path(__file__).resolve(), *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        why, ended = "", first
        while not why and ended < last:
            patience = SECONDS if at >= ended else 10 * SECONDS  # it imports, before the first
            if not select.select([process.stdout], [], [], patience)[0]:
                why = f"hangs for {SECONDS} s"
            elif not (line := process.stdout.readline()):
                why = f"crashes: {process.wait()}"
            elif "begins" in (said := json.loads(line)):
                at = said["begins"]
            else:
                ended = said["ends"] + 1
                if said["fault"]:
                    faults[said["ends"]] = said["fault"]
        process.kill()
    if why and at < ended:
        raise RuntimeError(f"the child {why} before its first case: {' '.join(map(str, program))}")
    return (ended, faults) if not why else (at + 1, faults | {at: why})


def main() -> None:
    """Reads all cases that the state does not list; exits with 1 if any case has a fault."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="a kind of file; all, if none is named")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    kinds = words.only or list(KINDS)
    if words.child:
        child(kinds, words.seed, *words.child)
        return
    file, of = WORK / "state.json", {"seed": words.seed, "kinds": kinds, "code": _code()}
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if state.get("of") != of:
        state = {"of": of, "next": 0, "faults": {}}
    start, first = time.monotonic(), state["next"]
    while state["next"] < words.cases:
        reached, faults = watch(kinds, words.seed, state["next"], min(words.cases, state["next"] + BATCH))
        state["next"] = reached
        state["faults"] |= {str(number): f"{kinds[number % len(kinds)]}: {said}" for number, said in faults.items()}
        _written(file.with_suffix(".new"), json.dumps(state, indent=1).encode()).replace(file)
        print(f"fuzz: {reached:,} of {words.cases:,}, {len(state['faults'])} faults", file=sys.stderr, flush=True)
    _keep(state["faults"], kinds, words.seed)
    for number, said in state["faults"].items():
        print(f"case {number}: {said}")
    print(f"fuzz: {words.cases - first:,} cases in {time.monotonic() - start:.0f} s, {len(state['faults'])} faults")
    sys.exit(bool(state["faults"]))


def _code() -> str:
    """A digest of all code that is run; if it changes, the cases start again."""
    files = sorted(path for part in ("alexnet", "pipeline", "tests") for path in (ROOT / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _keep(faults: dict[str, str], kinds: list[str], seed: int) -> None:
    """Writes the damaged files of the faulty cases, for debugging."""
    if not faults:
        return
    with tempfile.TemporaryDirectory() as scratch:
        seeds = {}
        for name in {kinds[int(number) % len(kinds)] for number in faults}:
            (Path(scratch) / name).mkdir()
            seeds[name] = KINDS[name].seeds(Path(scratch) / name)
        for number in faults:
            _written(WORK / f"{number}.bin", case(int(number), seed, kinds, seeds)[2])


if __name__ == "__main__":
    main()
