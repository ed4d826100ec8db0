"""Archives of a few kilobytes that claim gigabytes, or places outside of them, are refused, and what is said."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import operator
import os
import signal
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import loadmat

from pipeline.archives import apart, bounds, ilsvrc, label_files, matlab, parquet, repacked, tars, tree
from pipeline.archives.apart import Apart
from pipeline.archives.parquet import Columns
from pipeline.archives.store import StorePath
from pipeline.sources import cifar10, huggingface
from tests import fuzz
from tests.pipeline import layouts
from tests.pipeline.archives.test_ilsvrc import meta


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data) if size is None else size, "elsewhere"
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


END = bytes(1024)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ALLOWANCE", 2**20)
    monkeypatch.setattr(bounds, "MEMBER", 2**19)


BAD_TARS = {
    "too much in all": (b"".join(member(f"{n}", bytes(2**19)) for n in range(9)), "more than .* bytes come out of"),
    "a tail of noughts": (member("a", b"x") + bytes(2**25), "more than .* bytes come out of"),
    "members without end": (member("a") * 2**15, "more than .* bytes come out of|is there twice"),
    "a large member": (member("a", b"x", size=2**33), "member 'a' has 8,589,934,592 bytes, more than 524,288"),
    "a name of gigabytes": (member("x", b"x", tarfile.GNUTYPE_LONGNAME, 2**33), "a header claims 8,589,934,592 bytes"),
    "words of gigabytes": (member("x", b"x", tarfile.XHDTYPE, 2**33), "a header claims 8,589,934,592 bytes"),
    "sparse": (member("x", b"x", tarfile.GNUTYPE_SPARSE), "sparse"),
    "headers in headers": (member("x", b"y\0", tarfile.GNUTYPE_LONGNAME) * 2000, "recursion"),
    "an absolute name": (member("/etc/passwd", b"x"), "'/etc/passwd' lies outside"),
    "a way out": (member("a/../../b", b"x"), "lies outside"),
    "a drive": (member("C:b", b"x"), "lies outside"),
    "a backslash": (member("..\\b", b"x"), "lies outside"),
    "a symbolic link": (member("a", b"", tarfile.SYMTYPE), "member 'a' is no plain file"),
    "a hard link": (member("a", b"", tarfile.LNKTYPE), "member 'a' is no plain file"),
    "a device": (member("a", b"", tarfile.BLKTYPE), "member 'a' is no plain file"),
    "a pipe": (member("a", b"", tarfile.FIFOTYPE), "member 'a' is no plain file"),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_a_packed_tar_that_claims_too_much_or_leads_out_is_refused(tmp_path: Path, case: str) -> None:
    data, said = BAD_TARS[case]
    file = tmp_path / "a.tgz"
    file.write_bytes(gzip.compress(data + END, 9))
    stored = StorePath(tmp_path) / file.name
    with pytest.raises(ValueError, match=said) as caught:
        repacked.tree_of(stored, tars.hash_file(stored), repacked.untar)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("case", [case for case in BAD_TARS if case[:2] in ("a ", "an", "wo", "sp", "he")])
def test_so_is_a_tar_that_is_read_where_it_is(tmp_path: Path, case: str) -> None:
    data, said = BAD_TARS[case]
    if case == "a large member":
        said = "ends inside member a"
    file = tmp_path / "a.tar"
    file.write_bytes(data + END)
    if case == "a tail of noughts":
        assert tree.of_tar(StorePath(tmp_path) / file.name).files.keys() == {"a"}
        return
    with pytest.raises(ValueError, match=said) as caught:
        tree.of_tar(StorePath(tmp_path) / file.name)
    assert str(file) in str(caught.value)


def zipped(
    name: str = "a", data: bytes = b"x", kind: int = zipfile.ZIP_DEFLATED, mode: int = 0, many: int = 1
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as packed:
        for number in range(many):
            info = zipfile.ZipInfo(name + "x" * number)
            info.external_attr, info.compress_type = mode << 16, kind
            packed.writestr(info, data)
    return file.getvalue()


BAD_ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "too much in all": (lambda: zipped(data=bytes(2**19), many=9), "more than .* bytes come out of"),
    "a large member": (lambda: zipped(data=bytes(2**19 + 1)), "member 'a' has 524,289 bytes, more than 524,288"),
    "more than is said": (
        lambda: (lambda data: data.replace(struct.pack("<L", 9000), struct.pack("<L", 90)))(zipped(data=bytes(9000))),
        "not a whole zip",
    ),
    "a way out": (lambda: zipped("../a"), "lies outside"),
    "an absolute name": (lambda: zipped("/a"), "lies outside"),
    "a link": (lambda: zipped(mode=0o120777), "is no plain file"),
    "a dictionary": (lambda: zipped(kind=zipfile.ZIP_LZMA), "neither stored nor deflated"),
}


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_a_zip_that_claims_too_much_or_leads_out_is_refused(tmp_path: Path, case: str) -> None:
    make, said = BAD_ZIPS[case]
    file = tmp_path / "a.zip"
    file.write_bytes(make())
    stored = StorePath(tmp_path) / file.name
    with pytest.raises(ValueError, match=said) as caught:
        repacked.tree_of(stored, tars.hash_file(stored), repacked.unzip)
    assert str(file) in str(caught.value)


def test_a_meta_mat_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SMALL", 2**16)
    whole = meta()
    assert ilsvrc._synsets(tmp_path, whole, "ILSVRC2012_ID")[0]
    packed = zlib.compress(bytes(2**26))
    bomb = whole[:128] + struct.pack("<LL", matlab.COMPRESSED, len(packed)) + packed
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"meta\.mat: no list of synsets in it .*more than 65,536 bytes come out"):
        ilsvrc._synsets(tmp_path, bomb, "ILSVRC2012_ID")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 2**22, "it was unpacked first"


def test_what_is_kept_of_cifar_s_archive_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cifar-10-binary.tar.gz"
    file.write_bytes(gzip.compress(member("a", bytes(5000)) + member("b", bytes(5000)) + END))
    monkeypatch.setattr(cifar10, "WHOLE", 10_000)
    with pytest.raises(
        ValueError, match=rf"^{file}: more than 10,000 bytes come out\. Is this cifar-10-binary\.tar\.gz\?"
    ):
        list(cifar10._pictures(file))


def test_a_list_of_words_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SMALL", 100)
    (tmp_path / "words.txt").write_bytes(b"x" * 101)
    with pytest.raises(ValueError, match=r"member 'words\.txt' has 101 bytes, more than 100"):
        bounds.read_small(tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"member 'words\.txt' has 101 bytes, more than 100"):
        tree.of_folder(StorePath(tmp_path.parent) / tmp_path.name).read("words.txt")


@pytest.mark.parametrize(("limit", "said"), [("MOST_ROWS", "claims 9 rows"), ("GROUP", "row group 0 claims")])
def test_a_parquet_file_that_claims_too_much_is_refused(
    tmp_path: Path, limit: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"label": list(range(9))}), tmp_path / "a.parquet")
    assert list(parquet.labelled(tmp_path / "a.parquet", Columns(), "train")) == [True]
    monkeypatch.setattr(parquet, limit, 8)
    with pytest.raises(ValueError, match=said):
        list(parquet.labelled(tmp_path / "a.parquet", Columns(), "train"))


HUB = huggingface.HuggingFace(name="huggingface", dataset="a/b", revision="main", classes="all", complete=False)


def of_hub(store: Path, value: pa.Array, labels: pa.Array | None = None) -> Path:
    """A file of 16 pictures that are all the same, packed so that they take up next to nothing."""
    file = store / "huggingface/a/b/train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 16, pa.int32()), value)
    names = [f"{number}_n00000001.JPEG" for number in range(16)]
    image = pa.StructArray.from_arrays([values, pa.array(names)], ["bytes", "path"])
    features = {"label": {"names": ["a cat"], "_type": "ClassLabel"}}
    table = pa.table({"image": image, "label": pa.array([0] * 16) if labels is None else labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, compression="zstd", dictionary_pagesize_limit=2**30, write_statistics=False)
    return file


def many_columns() -> bytes:
    """A footer that says nothing but how many columns there are: a byte of each becomes some 500."""
    count = b"\xc0\x9a\x0c"  # 200,000
    schema = b"\x19\x1c\x48\x01a\x15\x00\x00"
    footer = b"\x15\x02" + schema + b"\x16\x00\x19\x1c\x19\xfc" + count + bytes(200_000) + b"\x00\x00"
    return b"PAR1" + footer + struct.pack("<L", len(footer)) + b"PAR1"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["a large picture", "a large label", "many columns"])
def test_a_parquet_file_of_the_hub_that_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = 2**26 if case == "a large picture" else 1
    row = pa.array(["x" * 2**26] + ["x"] * 15) if case == "a large label" else None
    file = of_hub(tmp_path, pa.array([bytes(large)]), row)
    if case == "many columns":
        file.write_bytes(many_columns())
    assert file.stat().st_size < 250_000
    monkeypatch.setattr(apart, "LIMIT", 2**26)
    said = rf"{file}: takes more than 0\.062 GiB of memory to unpack\. Is it the file it should be\? Fetch it again"
    with pytest.raises(ValueError, match=said):
        HUB.contents(tmp_path)
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.slow
def test_pictures_that_are_all_one_large_one_are_unpacked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MEMBER", 2**24)
    file = of_hub(tmp_path, pa.array([bytes(2**23)]))
    monkeypatch.setattr(apart, "LIMIT", 2**26)  # half of them at once are more
    with Apart() as process:
        assert (
            len([*process.items(parquet.pictures, file, (Columns(), "train"))]) == 18
        )  # with the two files that follow


@pytest.mark.slow
def test_what_ends_the_process_that_unpacks_is_said_and_the_stage_lives() -> None:
    for function, how in ((signal.raise_signal, "SIGTRAP"), (os._exit, "exit code 5")):
        with Apart() as process, pytest.raises(ValueError, match=rf"5: damaged: it ended the process .* \({how}\)"):
            list(process.items(function, 5))
    with Apart() as process:
        with pytest.raises(ZeroDivisionError):
            list(process.items(operator.truediv, 1, (0,)))
        for file in (Path("x"), Path("y")):
            assert list(process.items(itertools.repeat, file, (2,))) == [file, file]


def test_meta_mat_is_read_as_scipy_reads_it() -> None:
    for data in (meta(), layouts.meta(2010, dict.fromkeys(layouts.WNIDS, (5, 4)))):
        ours, theirs = matlab.read(data)["synsets"], loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert set(one) == set(other.dtype.names)
            for name, value in one.items():
                assert np.array_equal(value if isinstance(value, str) else np.squeeze(value), other[name])


def test_no_damage_of_a_meta_mat_crashes_or_is_another_error() -> None:
    """SciPy's reader ended the process at one of three hundred."""
    lots, whole = np.random.default_rng(0), meta()
    for _ in range(500):
        with contextlib.suppress(ValueError):
            ilsvrc._synsets(Path("devkit"), fuzz.damaged(whole, whole, lots), "ILSVRC2012_ID")


def test_a_list_of_kaggle_s_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "set/val").mkdir(parents=True)
    (tmp_path / "set/val/a.JPEG").write_bytes(b"x")
    (tmp_path / "set/LOC_val_solution.csv").write_bytes(b'ImageId,PredictionString\n"' + b"x" * 200_000)
    with pytest.raises(
        ValueError, match=r"LOC_val_solution\.csv: no list of pictures and their classes \(field larger"
    ):
        label_files.find(tree.of_folder(StorePath(tmp_path) / "set"), "val", ["cat", "dog"], None)
