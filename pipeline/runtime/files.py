"""Files and folders on a disk or an object store, behind one interface: atomic writes, reading, listing, removing.

The disk and the object store are two classes with the same methods; only `_of` decides between them.
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
"""Seconds to wait for another working copy that fetches or repacks the same file."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def atomic(path: AnyPath) -> AbstractContextManager[Path]:
    """Yields a temporary path at which to write a file or a folder, and puts it in place of `path` when the block ends.

    After an error, a kill or a full disk `path` is unchanged. On a disk the result is moved, after an fsync; to an object
    store, which takes only files, it is uploaded. Raises `OSError` that says what to do if a disk has no room.
    """
    return _of(path).atomic(path)


def put(temporary: AnyPath, path: AnyPath, last: str = "") -> None:
    """Moves a finished file or folder to `path` on the same disk or object store, and replaces what `path` was.

    In an object store a folder's files are copied one by one, the one named `last` at the end.
    """
    assert type(_of(temporary)) is type(_of(path)), (temporary, path)
    _of(temporary).put(temporary, path, last)


def discard(path: AnyPath) -> None:
    """Removes a file, or a folder with its contents; does nothing if there is none."""
    _of(path).discard(path)


def opened(path: AnyPath) -> pa.NativeFile:
    """Opens a file for `read_at` by any number of threads; `FileNotFoundError` if there is none."""
    return _of(path).opened(path)


def size(path: AnyPath) -> int | None:
    """The size of a file in bytes; None if there is no such file."""
    return _of(path).size(path)


def listed(folder: AnyPath) -> list[tuple[str, int]]:
    """Relative path and bytes of every file below a folder, sorted by path; links are followed."""
    return _of(folder).listed(folder)


def at_once(path: AnyPath) -> int:
    """The number of concurrent reads that keeps the disk or the object store busy."""
    return _of(path).at_once


def locked(path: AnyPath) -> AbstractContextManager[None]:
    """Locks a file or folder while it is written, since several working copies may share a data store.

    Removes the temporary files of killed writers. Waits up to `PATIENCE` seconds, with a message, then raises `TimeoutError`.
    """
    return _of(path).locked(path)


def on_disk(path: AnyPath) -> Path:
    """Returns `path` if it is on a disk, where files can be fetched, drawn or repacked; `ValueError` for an object store."""
    return _of(path).on_disk(path)


class _Files(Protocol[Where]):
    """The methods are documented at the functions of the same names."""

    at_once: int

    def atomic(self, path: Where) -> AbstractContextManager[Path]: ...
    def put(self, temporary: Where, path: Where, last: str, /) -> None: ...
    def discard(self, path: Where) -> None: ...
    def opened(self, path: Where) -> pa.NativeFile: ...
    def size(self, path: Where) -> int | None: ...
    def listed(self, folder: Where) -> list[tuple[str, int]]: ...
    def locked(self, path: Where, /) -> AbstractContextManager[None]: ...
    def on_disk(self, path: Where) -> Path: ...


def _of(path: AnyPath) -> _Files[Any]:
    """The implementation for the disk or the object store of a path."""
    return _ObjectStore() if isinstance(path, S3Path) else _Disk()


class _Disk:
    """Files on a disk or a network drive."""

    at_once = 4

    @contextmanager
    def atomic(self, path: Path) -> Iterator[Path]:
        temporary = _unfinished(path)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with room_for(path, temporary):
                yield temporary
                self.put(temporary, path)
        finally:
            self.discard(temporary)

    def put(self, temporary: Path, path: Path, _last: str = "") -> None:
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or temporary.is_dir():
            self.discard(path)
        temporary.replace(path)

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
    """Files on an object store; each appears when its upload is complete."""

    at_once = 32  # each read waits for a response

    @contextmanager
    def atomic(self, path: S3Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            # in a thread, because signals interrupt only the main one: after an exception Arrow would store a truncated file
            with ThreadPoolExecutor(1) as uploader:
                uploader.submit(_upload, temporary, path).result()

    def put(self, temporary: S3Path, path: S3Path, last: str) -> None:
        system, source, target = path.system, temporary.key, path.key
        names = [name for name, _ in temporary.listed() if name != last]
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
        return nullcontext()  # a store on S3 is only read, see `on_disk`

    def on_disk(self, path: S3Path) -> NoReturn:
        raise ValueError(
            f"{path}: not there, and to a store on S3 nothing is fetched, drawn or repacked. Do that on a disk (machine."
            "yaml: store: auto, then dvc repro download), and copy all of data/store to where the store is to be: "
            "aws s3 sync data/store s3://bucket/folder"
        )


UNFINISHED = ".part"


def _unfinished(path: Path) -> Path:
    """The temporary path for a file or folder that will be moved to `path`, on the same disk.

    For a relative path, such as a stage's out, it is below `work/`, so that it cannot be mistaken for an out. Otherwise it is
    beside `path`, with a unique name, since two workers may write the same file.
    """
    if path.is_absolute() or path.is_relative_to(WORK):
        return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    temporary = WORK / "outs" / path
    discard(temporary)  # a kill may have left it
    return temporary


def _upload(file: Path, path: S3Path) -> None:
    with path.system.open_output_stream(str(path.key), compression=None) as out:
        out.write(file.read_bytes())


def _walk(folder: str, above: str, within: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Yields path and bytes of every file. `within`: device and inode of the folders above, to detect links that lead back."""
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
    """Raises `OSError` that says what to do if the disk of `file` has fewer than `wanted` bytes free."""
    free = shutil.disk_usage(file.parent).free
    if wanted > free:
        raise _no_room(file, f"{_words(wanted)} are needed, and {_words(free)} are free")


@contextmanager
def room_for(path: Path, temporary: Path, *, kept: bool = False) -> Iterator[None]:
    """Adds what to do to an `OSError` about a full disk, a quota or a limit. `temporary`: the temporary path of `path`.

    `kept`: whether the temporary file stays for the next try.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        written = (
            sum(length for _, length in _walk(str(temporary), "", ())) if temporary.is_dir() else size(temporary) or 0
        )
        free = shutil.disk_usage(temporary.parent).free
        why = f"{os.strerror(error.errno)} after {_words(written)}, with {_words(free)} free"
        raise _no_room(path, f"{why}; that is kept" if kept and written else why) from None


def _no_room(file: Path, why: str) -> OSError:
    return OSError(
        f"{file.absolute().parent}: no room for {file.name}: {why}\n"
        "Make room there, or name a folder on another disk in machine.yaml (store, or storage for all that is written).\n"
        f"{edges.AGAIN}"
    )


def _words(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
