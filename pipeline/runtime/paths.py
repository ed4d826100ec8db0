"""Files and folders on a disk or on an object store: what the stages do with either, and in the same words.

A path of an object store goes to other nodes with its endpoint and region, and without credentials: each process takes
those that AWS's tools would take (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, the machine's role).
"""

from __future__ import annotations

import errno
import functools
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.runtime import edges, stage, waiting

TRIES = 8
"""Attempts at a request to an object store, over some two minutes, before the work is given up."""

PATIENCE = 3600.0
"""Seconds in which another working copy may fetch or repack what this one needs as well."""

BLOCK, AHEAD = 8 * 2**20, 4
"""Bytes that are asked for at once of a file that is read from front to back, and such blocks on the way."""


@dataclass(frozen=True, order=True, slots=True)
class S3Path:
    """A file or folder of an object store, with as much of the manners of a Path as is needed here."""

    key: PurePosixPath
    """The bucket, and what is below it."""
    endpoint: str | None
    """None: Amazon's."""
    region: str | None

    def __str__(self) -> str:
        return f"s3://{self.key}"

    def __truediv__(self, below: str | PurePosixPath) -> S3Path:
        return replace(self, key=self.key / below)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.name

    @property
    def stem(self) -> str:
        """The last part, without its ending."""
        return self.key.stem

    @property
    def parent(self) -> S3Path:
        """The folder it is in."""
        return replace(self, key=self.key.parent)

    def with_name(self, name: str) -> S3Path:
        """Another file of the same folder."""
        return replace(self, key=self.key.with_name(name))

    def exists(self) -> bool:
        """Whether there is such a file, or one below such a folder."""
        return bool(self._info().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return bool(self._info().type == fs.FileType.File)

    def is_dir(self) -> bool:
        """Whether a file lies below it."""
        return bool(self._info().type == fs.FileType.Directory)

    def files(self) -> list[tuple[str, int]]:
        """Path from here and bytes of every file below, in the order of their paths."""
        found = self.system.get_file_info(fs.FileSelector(str(self.key), recursive=True, allow_not_found=True))
        files = (info for info in found if info.type == fs.FileType.File)
        return sorted((PurePosixPath(info.path).relative_to(self.key).as_posix(), info.size) for info in files)

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """The files in this folder whose names fit."""
        return (path for path in self.rglob(pattern) if path.parent == self)

    def rglob(self, pattern: str) -> Iterator[S3Path]:
        """The files below this folder whose names fit."""
        return (self / name for name, _ in self.files() if PurePosixPath(name).match(pattern))

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """The file, to be read from front to back."""
        assert mode == "rb", mode
        return io.BufferedReader(_Ahead(opened(self)))

    def read_bytes(self) -> bytes:
        """All of a file."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """All of a file of text."""
        return self.read_bytes().decode(encoding, errors)

    @property
    def system(self) -> fs.S3FileSystem:
        """What reads and writes it; `OSError` that says why where it cannot."""
        return _connected(self.endpoint, self.region, self.key.parts[0])

    def _info(self) -> fs.FileInfo:
        return self.system.get_file_info(str(self.key))


AnyPath: TypeAlias = Path | S3Path


def at(text: str) -> AnyPath:
    """What a text names: s3://bucket/folder, or a path. Nothing is asked of the object store.

    Behind a question mark may stand endpoint_override, scheme and region, as in Arrow's own addresses; otherwise they
    are those of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and of AWS_REGION or AWS_DEFAULT_REGION.
    """
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme != "s3":
        raise ValueError(f"{parts.scheme}:// is no address that is known here; it may be s3://bucket/folder, or a path")
    if "@" in parts.netloc:
        raise ValueError(
            f"s3://…@{parts.netloc.rpartition('@')[2]}: credentials do not belong here. Put them into {LOGIN}"
        )
    if not parts.netloc:
        raise ValueError(f"{text}: names no bucket; it has to be like s3://bucket/folder")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(query.keys() - {"endpoint_override", "scheme", "region"})
    if unknown or parts.fragment:
        raise ValueError(
            f"s3://{parts.netloc}{parts.path}: '{[*unknown, '#'][0]}' is not known; behind a question mark may stand "
            f"endpoint_override, scheme and region. Credentials belong into {LOGIN}"
        )
    endpoint = query.get("endpoint_override") or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    if endpoint and "@" in endpoint:
        raise ValueError(
            f"s3://{parts.netloc}{parts.path}: its endpoint has a login before {endpoint.rpartition('@')[2]} "
            f"(endpoint_override here, or AWS_ENDPOINT_URL), which no object store takes. Put it into {LOGIN}"
        )
    region = query.get("region") or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
    # without one Arrow would look for it on the network; servers other than Amazon's take this name for any
    return S3Path(
        key=PurePosixPath(parts.netloc + parts.path),
        endpoint=endpoint.rstrip("/") if endpoint else None,
        region=region or ("us-east-1" if endpoint else None),
    )


LOGIN = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or into a profile in ~/.aws (AWS_PROFILE)"


def _environment(*names: str) -> str | None:
    return next(filter(None, map(os.environ.get, names)), None)


@functools.cache
def _connected(endpoint: str | None, region: str | None, bucket: str) -> fs.S3FileSystem:
    """The object store, asked once whether it has the bucket: else every error would be one of its first file."""
    where = f"s3://{bucket} at {endpoint or 'Amazon S3'}"
    try:
        # a wrong address is not tried for minutes
        found = fs.S3FileSystem(endpoint_override=endpoint, region=region).get_file_info(bucket)
    except OSError as error:
        if "ACCESS_DENIED" in str(error) or "403" in str(error):
            raise OSError(
                f"{where}: refused. The environment has no credentials for it, or others: put them into {LOGIN}, on each "
                "node before Ray starts; they have to allow listing the bucket"
            ) from None
        raise OSError(f"{where}: no answer ({error}). Is AWS_ENDPOINT_URL, or the region, the right one?") from None
    if found.type == fs.FileType.NotFound:
        raise OSError(f"{where}: there is no such bucket. Make it, or name another in machine.yaml")
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=TRIES)
    return fs.S3FileSystem(endpoint_override=endpoint, region=region, retry_strategy=retries)


def opened(path: AnyPath) -> pa.NativeFile:
    """The file, for `read_at` by any number of threads; `FileNotFoundError` if it is not there."""
    return pa.OSFile(str(path)) if isinstance(path, Path) else path.system.open_input_file(str(path.key))


def size(path: AnyPath) -> int | None:
    """The bytes of a file; None if it is not there."""
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    info = path._info()
    return int(info.size) if info.type == fs.FileType.File else None


def below(folder: AnyPath, path: AnyPath) -> str:
    """The way from a folder to what lies below it, with slashes."""
    assert str(path).startswith(f"{folder}/"), (path, folder)
    return str(path).removeprefix(f"{folder}/")


def at_once(path: AnyPath) -> int:
    """How many reads at once keep it busy: of a disk some, of an object store many, since each waits for its answer."""
    return 4 if isinstance(path, Path) else 32


def files(folder: AnyPath) -> list[tuple[str, int]]:
    """Path from there and bytes of every file below a folder, in the order of their paths; links are followed."""
    return sorted(_walk(str(folder), "", ())) if isinstance(folder, Path) else folder.files()


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


@contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """Gives a path on a disk to write a file at, and puts it in place at the end; after an error nothing is there."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{uuid.uuid4().hex}.partial")
        try:
            yield partial
            stage.put(partial, path)
        finally:
            stage.discard(partial)
    else:
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / path.name
            yield partial
            # in a thread of its own, which no signal interrupts: Arrow puts in place what came before an exception
            with ThreadPoolExecutor(1) as uploader:
                uploader.submit(_upload, partial, path).result()


def _upload(file: Path, path: S3Path) -> None:
    with path.system.open_output_stream(str(path.key), compression=None) as out:
        out.write(file.read_bytes())


def put(made: AnyPath, out: AnyPath, last: str) -> None:
    """Puts a finished folder where it belongs; where its files come one by one, the one of that name comes last."""
    if isinstance(made, Path) or isinstance(out, Path):
        assert isinstance(made, Path)
        assert isinstance(out, Path)
        stage.put(made, out)
        return
    system, source, target = out.system, made.key, out.key
    names = [name for name, _ in made.files() if name != last]
    with ThreadPoolExecutor(at_once(out)) as copiers:
        list(copiers.map(lambda name: system.copy_file(str(source / name), str(target / name)), names))
    system.copy_file(str(source / last), str(target / last))


def discard(path: AnyPath) -> None:
    """Removes a file or a folder, if it is there."""
    if isinstance(path, Path):
        stage.discard(path)
    elif path.is_file():
        path.system.delete_file(str(path.key))
    elif path.is_dir():
        path.system.delete_dir(str(path.key))


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_room(file: Path, wanted: int) -> None:
    """`OSError` that says what to do, if the disk on which `file` will be written has fewer than `wanted` bytes free."""
    free = shutil.disk_usage(file.parent).free
    if wanted > free:
        raise _no_room(file, f"{_size(wanted)} are needed, and {_size(free)} are free")


@contextmanager
def writing(file: Path, keep: bool = False) -> Iterator[None]:
    """For a file that is written under a name of its own, and renamed: after an error nothing is left of it, or it is kept.

    `OSError` that says what to do where the disk, a quota or a limit has no room for it.
    """
    try:
        yield
    except BaseException as error:
        came = size(file) or 0
        if not keep:
            stage.discard(file)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            free = shutil.disk_usage(file.parent).free
            why = f"{os.strerror(error.errno)} after {_size(came)}, with {_size(free)} free"
            raise _no_room(file, f"{why}; that is kept" if keep and came else why) from None
        raise


def _no_room(file: Path, why: str) -> OSError:
    return OSError(
        f"{file.parent}: no room for {file.name.removesuffix('.part')}: {why}\n"
        "Make room there, or name a folder on another disk in machine.yaml (store, or storage for all that is written).\n"
        f"{edges.AGAIN}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


@contextmanager
def locked(path: AnyPath) -> Iterator[None]:
    """Holds off others that would make the same file or folder: several working copies may share a store.

    Waits as long as that may take, `PATIENCE`, and says so; then raises `TimeoutError`.
    """
    if isinstance(path, Path):
        with waiting.locked(path.with_name(path.name + ".lock"), "download", f"another that makes {path}", PATIENCE):
            yield
    else:  # it is only read there, see `on_disk`
        yield


def on_disk(path: AnyPath) -> Path:
    """The path, for something that is to be fetched, drawn or repacked to it; `ValueError` on an object store."""
    if isinstance(path, S3Path):
        raise ValueError(
            f"{path}: not there, and to a store on S3 nothing is fetched, drawn or repacked. Do that on a disk (machine."
            "yaml: store: auto, then dvc repro download), and copy all of data/store to where the store is to be: "
            "aws s3 sync data/store s3://bucket/folder"
        )
    return path


class _Ahead(io.RawIOBase):
    """A file read from front to back, a block at a time, while the next ones are on their way."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._size: int = file.size()
        self._place = 0
        self._readers = ThreadPoolExecutor(AHEAD + 1)
        self._blocks: dict[int, Future[bytes]] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        if self._place >= self._size:
            return 0
        number, start = divmod(self._place, BLOCK)
        into = memoryview(buffer).cast("B")
        part = self._block(number)[start : start + len(into)]
        into[: len(part)] = part
        self._place += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        # one behind stays: who reads a tar goes back by a header
        for other in [other for other in self._blocks if not number - 1 <= other <= number + AHEAD]:
            self._blocks.pop(other).cancel()
        for near in range(number, min(number + AHEAD + 1, -(-self._size // BLOCK))):
            if near not in self._blocks:
                length = min(BLOCK, self._size - near * BLOCK)
                self._blocks[near] = self._readers.submit(self._file.read_at, length, near * BLOCK)
        return self._blocks[number].result()

    def close(self) -> None:
        if not self.closed:
            self._readers.shutdown(cancel_futures=True)
            self._file.close()
        super().close()
