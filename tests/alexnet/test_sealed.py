"""A file of tensors that was changed is told from one that was not, wherever it was changed."""

from __future__ import annotations

import dataclasses
import io
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alexnet import sealed
from alexnet.build import load, save
from alexnet.model import AlexNet
from tests.sections import PAPER

CONTENTS: dict[str, Any] = {
    "weights": {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(3), "c": torch.zeros(0)},
    "progress": {"step": 12, "rate": 0.01, "rows": [{"loss": 1 / 3}], "none": None, "yes": True},
    "words": "a word",
}


def packed(contents: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    sealed.write(buffer, contents)
    return buffer.getvalue()


def test_what_was_written_is_read_and_by_torch_and_zip_alone_as_well(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(packed(CONTENTS))
    with file.open("rb") as handle:
        ours = sealed.read(handle)
    for contents in (ours, torch.load(file, weights_only=True), torch.load(file, weights_only=True, mmap=True)):
        assert contents["progress"] == CONTENTS["progress"]
        assert all(torch.equal(contents["weights"][name], CONTENTS["weights"][name]) for name in "abc")
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256 ")


def test_equal_contents_have_equal_bytes() -> None:
    again = {**CONTENTS, "weights": {name: tensor.clone() for name, tensor in CONTENTS["weights"].items()}}
    assert packed(again) == packed(CONTENTS)


def test_a_changed_bit_anywhere_is_refused() -> None:
    whole, lots = packed(CONTENTS), np.random.default_rng(0)
    places = {*lots.choice(len(whole), 300, replace=False).tolist(), *range(len(whole) - 100, len(whole))}
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(lots.integers(8))
        with pytest.raises(ValueError, match="given: damaged"):
            sealed.read(io.BytesIO(bytes(data)), CONTENTS.keys(), name="given")


@pytest.mark.parametrize("keep", [0, 1, 22, 100, 0.5, 0.99, -1, -72])
def test_a_cut_file_is_refused(keep: float) -> None:
    whole = packed(CONTENTS)
    with pytest.raises(ValueError, match="given: damaged, or not a network saved here"):
        sealed.read(
            io.BytesIO(whole[: int(keep * len(whole) if 0 < keep < 1 else keep)]), CONTENTS.keys(), name="given"
        )


def test_what_follows_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="given: damaged"):
        sealed.read(io.BytesIO(packed(CONTENTS) + b"\0"), CONTENTS.keys(), name="given")


def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path) -> None:
    for number, made in enumerate(([1, 2], {"weights": 1, "more": 2}, {"a": 1})):
        file = tmp_path / f"{number}.pt"
        torch.save(made, file)
        with (
            file.open("rb") as handle,
            pytest.raises(ValueError, match=rf"{number}\.pt: damaged, or not a network saved here"),
        ):
            sealed.read(handle, frozenset(("weights",)))


def test_a_file_of_before_is_read_and_that_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    torch.save(CONTENTS, buffer)
    with caplog.at_level(logging.WARNING):
        contents = sealed.read(buffer, CONTENTS.keys(), name="old.pt")
    assert contents["progress"] == CONTENTS["progress"]
    assert [record.getMessage() for record in caplog.records] == [
        "old.pt: written before files had a digest, so it is read unchecked"
    ]


def test_a_network_whose_file_was_changed_is_refused_with_what_to_do() -> None:
    network = AlexNet(dataclasses.replace(PAPER, width=0.01), 3)
    network.draw_first_weights(0)
    buffer = io.BytesIO()
    save(buffer, network, fingerprint="one")
    data = buffer.getvalue()
    assert load(io.BytesIO(data))[1] == {"fingerprint": "one"}
    for place in (
        data.index(network.state_dict()["fc6.weight"].numpy().tobytes()) + 40,
        data.index(b"fingerprint") + 2,
    ):
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises(ValueError, match=r"data/model\.pt: damaged.*\. Restore a whole copy"):
            load(io.BytesIO(bytes(flipped)), "data/model.pt")


def test_a_network_of_another_version_of_the_code_is_told_as_such() -> None:
    buffer = io.BytesIO()
    sealed.write(buffer, {"model": {"sizes": 3}, "classes": 2, "weights": {}, "facts": {}})
    with pytest.raises(ValueError, match=r"old\.pt: not a network of this version of the code"):
        load(buffer, "old.pt")
