"""Paths of files and folders on a disk or an object store; `files` has the operations on them.

A path on an object store is sent to other nodes with its endpoint and region, but without credentials: each process uses
those that AWS's tools find (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, the machine's role).
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs

from pipeline.runtime import read_ahead

TRIES = 8
"""Attempts at a request to an object store, over some two minutes, before it fails."""


@dataclass(frozen=True, order=True, slots=True)
class S3Path:
    """The path of a file or folder on an object store, with the methods of pathlib.Path that are used here."""

    key: PurePosixPath
    """The bucket and the path in it."""
    endpoint: str | None
    """The server's address; None for Amazon's."""
    region: str | None
    """None if Arrow has to find it out."""

    def __str__(self) -> str:
        return f"s3://{self.key}"

    def __truediv__(self, below: str | PurePosixPath) -> S3Path:
        return replace(self, key=self.key / below)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.key.name

    @property
    def stem(self) -> str:
        """The last part of the path, without its suffix."""
        return self.key.stem

    @property
    def parent(self) -> S3Path:
        """The folder that contains it."""
        return replace(self, key=self.key.parent)

    def with_name(self, name: str) -> S3Path:
        """The path with another last part."""
        return replace(self, key=self.key.with_name(name))

    def exists(self) -> bool:
        """Whether there is a file at this path or below it."""
        return bool(self.info().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is a file at this path."""
        return bool(self.info().type == fs.FileType.File)

    def is_dir(self) -> bool:
        """Whether there is a file below this path."""
        return bool(self.info().type == fs.FileType.Directory)

    def listed(self) -> list[tuple[str, int]]:
        """Relative path and bytes of every file below, sorted by path."""
        infos = self.system.get_file_info(fs.FileSelector(str(self.key), recursive=True, allow_not_found=True))
        files = (info for info in infos if info.type == fs.FileType.File)
        return sorted((PurePosixPath(info.path).relative_to(self.key).as_posix(), info.size) for info in files)

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """The files in this folder whose names match the pattern."""
        return (path for path in self.rglob(pattern) if path.parent == self)

    def rglob(self, pattern: str) -> Iterator[S3Path]:
        """The files below this folder whose relative paths match the pattern."""
        return (self / name for name, _ in self.listed() if PurePosixPath(name).match(pattern))

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Opens the file for reading; fastest from front to back."""
        assert mode == "rb", mode
        return read_ahead.stream(self.system.open_input_file(str(self.key)))

    def read_bytes(self) -> bytes:
        """The bytes of the file."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The text of the file."""
        return self.read_bytes().decode(encoding, errors)

    @property
    def system(self) -> fs.S3FileSystem:
        """Arrow's client of the object store; `OSError` with the reason if the bucket cannot be used."""
        return _connected(self.endpoint, self.region, self.key.parts[0])

    def info(self) -> fs.FileInfo:
        """The object store's record of it: file, folder or neither, and a file's size in bytes."""
        return self.system.get_file_info(str(self.key))


AnyPath: TypeAlias = Path | S3Path


def parse(text: str) -> AnyPath:
    """Parses s3://bucket/folder, or a path on a disk, without a request to the object store.

    The query of an address may have endpoint_override, scheme and region, as in Arrow's addresses; otherwise they are taken
    from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION or AWS_DEFAULT_REGION. Raises `ValueError` for another scheme,
    an unknown key, no bucket, or credentials in the address or endpoint.
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
    # without a region Arrow asks the network for it; servers other than Amazon's accept this name
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
    """The client of an object store; checks once that the bucket exists, so that the error does not name a file in it."""
    where = f"s3://{bucket} at {endpoint or 'Amazon S3'}"
    try:
        # without retries, so that a wrong address fails at once
        info = fs.S3FileSystem(endpoint_override=endpoint, region=region).get_file_info(bucket)
    except OSError as error:
        if "ACCESS_DENIED" in str(error) or "403" in str(error):
            raise OSError(
                f"{where}: refused. The environment has no credentials for it, or others: put them into {LOGIN}, on each "
                "node before Ray starts; they have to allow listing the bucket"
            ) from None
        raise OSError(f"{where}: no answer ({error}). Is AWS_ENDPOINT_URL, or the region, the right one?") from None
    if info.type == fs.FileType.NotFound:
        raise OSError(f"{where}: there is no such bucket. Make it, or name another in machine.yaml")
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=TRIES)
    return fs.S3FileSystem(endpoint_override=endpoint, region=region, retry_strategy=retries)


def below(folder: AnyPath, path: AnyPath) -> str:
    """The path relative to a folder above it, with slashes."""
    assert str(path).startswith(f"{folder}/"), (path, folder)
    return str(path).removeprefix(f"{folder}/")
