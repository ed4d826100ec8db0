"""Files and folders on a disk or on an object store, in the same words: written whole or not at all, read, listed, removed.

A disk and an object store are two classes with the same methods, and `_of` is the one place that asks which of them a path
belongs to.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import pyarrow as pa
from pyarrow import fs

from pipeline.runtime import edges, waiting
from pipeline.runtime.paths import AnyPath, S3Path
from pipeline.runtime.stage import WORK

Where = TypeVar("Where", contravariant=True)

PATIENCE = 3600.0
"""Seconds in which another working copy may fetch or repack what this one needs as well."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def atomic(path: AnyPath) -> AbstractContextManager[Path]:
    """Gives a path on a disk to write a file or a folder at, and puts that in place of `path` when the block ends.

    After an error, a kill or a full disk `path` is as it was. On a disk it is moved, after an fsync; to an object store,
    which takes files alone, it is uploaded. `OSError` that says what to do where a disk has no room.
    """
    return _of(path).atomic(path)


def put(made: AnyPath, path: AnyPath, last: str = "") -> None:
    """Moves a finished file or folder of the same disk or object store to `path`, in place of what is there.

    In an object store a folder's files come one by one, and the one named `last` comes last.
    """
    assert type(_of(made)) is type(_of(path)), (made, path)
    _of(made).put(made, path, last)


def discard(path: AnyPath) -> None:
    """Removes a file, or a folder with all that is in it; neither has to be there."""
    _of(path).discard(path)


def opened(path: AnyPath) -> pa.NativeFile:
    """The file, for `read_at` by any number of threads; `FileNotFoundError` if it is not there."""
    return _of(path).opened(path)


def size(path: AnyPath) -> int | None:
    """The bytes of a file; None if it is not there."""
    return _of(path).size(path)


def listed(folder: AnyPath) -> list[tuple[str, int]]:
    """Path from there and bytes of every file below a folder, in the order of their paths; links are followed."""
    return _of(folder).listed(folder)


def at_once(path: AnyPath) -> int:
    """How many reads at a time keep the disk or the object store busy."""
    return _of(path).at_once


def locked(path: AnyPath) -> AbstractContextManager[None]:
    """Holds off others that would make the same file or folder: several working copies may share a data store.

    What a killed one has left of it in `atomic` is removed. Waits `PATIENCE` and says so, then raises `TimeoutError`.
    """
    return _of(path).locked(path)


def on_disk(path: AnyPath) -> Path:
    """The path, for what is fetched, drawn or repacked to it; `ValueError` with what to do if it is on an object store."""
    return _of(path).on_disk(path)


class _Files(Protocol[Where]):
    """The functions of these names say what each method promises."""

    at_once: int

    def atomic(self, path: Where) -> AbstractContextManager[Path]: ...
    def put(self, made: Where, path: Where, last: str, /) -> None: ...
    def discard(self, path: Where) -> None: ...
    def opened(self, path: Where) -> pa.NativeFile: ...
    def size(self, path: Where) -> int | None: ...
    def listed(self, folder: Where) -> list[tuple[str, int]]: ...
    def locked(self, path: Where, /) -> AbstractContextManager[None]: ...
    def on_disk(self, path: Where) -> Path: ...


def _of(path: AnyPath) -> _Files[Any]:
    """The files of the disk, or of the object store, that a path belongs to."""
    return _ObjectStore() if isinstance(path, S3Path) else _Disk()


class _Disk:
    """Files of a disk, or of a network drive."""

    at_once = 4

    @contextmanager
    def atomic(self, path: Path) -> Iterator[Path]:
        made = _unfinished(path)
        made.parent.mkdir(parents=True, exist_ok=True)
        try:
            with room_for(path, made):
                yield made
                self.put(made, path)
        finally:
            self.discard(made)

    def put(self, made: Path, path: Path, _last: str = "") -> None:
        for file in made.rglob("*") if made.is_dir() else [made]:
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or made.is_dir():
            self.discard(path)
        made.replace(path)

    def discard(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def opened(self, path: Path) -> pa.NativeFile:
        return pa.OSFile(str(path))

    def size(self, path: Path) -> int | None:
        return path.stat().st_size if path.is_file() else None

    def listed(self, folder: Path) -> list[tuple[str, int]]:
        return sorted(_walk(str(folder), "", ()))

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        lock = path.with_name(f"{path.name}.lock")
        with waiting.locked(lock, "download", f"another that makes {path}", PATIENCE):
            for left in path.parent.glob(f"{path.name}.*{UNFINISHED}"):
                self.discard(left)
            yield

    def on_disk(self, path: Path) -> Path:
        return path


class _ObjectStore:
    """Files of an object store, each of which appears when all of it has come."""

    at_once = 32  # each read waits for its answer

    @contextmanager
    def atomic(self, path: S3Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            yield made
            # in a thread of its own, which no signal interrupts: Arrow puts in place what came before an exception
            with ThreadPoolExecutor(1) as uploader:
                uploader.submit(_upload, made, path).result()

    def put(self, made: S3Path, path: S3Path, last: str) -> None:
        system, source, target = path.system, made.key, path.key
        names = [name for name, _ in made.listed() if name != last]
        with ThreadPoolExecutor(self.at_once) as copiers:
            list(copiers.map(lambda name: system.copy_file(str(source / name), str(target / name)), names))
        system.copy_file(str(source / last), str(target / last))

    def discard(self, path: S3Path) -> None:
        if path.is_file():
            path.system.delete_file(str(path.key))
        elif path.is_dir():
            path.system.delete_dir(str(path.key))

    def opened(self, path: S3Path) -> pa.NativeFile:
        return path.system.open_input_file(str(path.key))

    def size(self, path: S3Path) -> int | None:
        info = path.info()
        return int(info.size) if info.type == fs.FileType.File else None

    def listed(self, folder: S3Path) -> list[tuple[str, int]]:
        return folder.listed()

    def locked(self, _path: S3Path) -> AbstractContextManager[None]:
        return nullcontext()  # it is only read there, see `on_disk`

    def on_disk(self, path: S3Path) -> NoReturn:
        raise ValueError(
            f"{path}: not there, and to a store on S3 nothing is fetched, drawn or repacked. Do that on a disk (machine."
            "yaml: store: auto, then dvc repro download), and copy all of data/store to where the store is to be: "
            "aws s3 sync data/store s3://bucket/folder"
        )


UNFINISHED = ".part"


def _unfinished(path: Path) -> Path:
    """Where a file or folder is written before it is moved to `path`, on the same disk.

    A relative path is one of this working copy, as a stage's out: below `work/`, where nothing is taken for an out. Else
    it is beside `path`, under a name that no other process has: two workers may make the same file.
    """
    if path.is_absolute() or path.is_relative_to(WORK):
        return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    made = WORK / "outs" / path
    discard(made)  # a kill may have left it
    return made


def _upload(file: Path, path: S3Path) -> None:
    with path.system.open_output_stream(str(path.key), compression=None) as out:
        out.write(file.read_bytes())


def _walk(folder: str, above: str, within: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Path and bytes of every file; `within`: the folders on the way here, against links that lead back."""
    status = os.stat(folder)  # noqa: PTH116 - a Path for each of a million files takes longer than the files
    here = (status.st_dev, status.st_ino)
    if here in within:
        raise ValueError(f"{folder}: a link that leads back to a folder above it. Remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{above}{entry.name}/", (*within, here))
            elif entry.is_file():
                yield f"{above}{entry.name}", entry.stat().st_size
            else:
                raise ValueError(f"{entry.path}: no file, or a link to nothing. Remove it, or mend the link")


# Room on a disk


def check_room(file: Path, wanted: int) -> None:
    """`OSError` that says what to do, if the disk on which `file` will be written has fewer than `wanted` bytes free."""
    free = shutil.disk_usage(file.parent).free
    if wanted > free:
        raise _no_room(file, f"{_words(wanted)} are needed, and {_words(free)} are free")


@contextmanager
def room_for(path: Path, made: Path, *, kept: bool = False) -> Iterator[None]:
    """Has an error that a disk, a quota or a limit has no room for `path` say what to do; `made`: what is written of it.

    `kept`: whether that stays for the next try.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        came = sum(length for _, length in _walk(str(made), "", ())) if made.is_dir() else size(made) or 0
        free = shutil.disk_usage(made.parent).free
        why = f"{os.strerror(error.errno)} after {_words(came)}, with {_words(free)} free"
        raise _no_room(path, f"{why}; that is kept" if kept and came else why) from None


def _no_room(file: Path, why: str) -> OSError:
    return OSError(
        f"{file.absolute().parent}: no room for {file.name}: {why}\n"
        "Make room there, or name a folder on another disk in machine.yaml (store, or storage for all that is written).\n"
        f"{edges.AGAIN}"
    )


def _words(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
