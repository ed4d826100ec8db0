"""The stage `train` as users run it: after a kill it gives the same result under any placement; reuse of finished runs."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ruamel.yaml import YAML

from alexnet import sealed
from alexnet.appearance import Appearance, measure
from alexnet.build import load, save
from alexnet.learning import RateChange
from alexnet.model import AlexNet
from alexnet.network import Model
from alexnet.pictures import decode
from pipeline import train
from pipeline.driver import provenance
from pipeline.runtime import digests, params, run_record, waiting
from pipeline.runtime.clock import PARTS
from pipeline.runtime.machines import Machine
from pipeline.shards.batches import held_out
from pipeline.training import checkpoints, initial, looks, run_folder
from pipeline.training.spec import Start, TrainingSpec
from tests.pipeline import miniature
from tests.sections import AUGMENTATION, LEARNING, PAPER

ROOT = Path(__file__).parents[2]

EPOCHS = 4

SECTIONS: dict[str, dict[str, Any]] = {
    "model": dataclasses.asdict(PAPER) | {"width": 0.0625},
    "start": {
        "network": "none",
        "layers": "fitting",
        "unsupervised": "none",
        "unsupervised_layers": 1,
        "unsupervised_patches": 200,
        "unsupervised_iterations": 2,
    },
    "augmentation": dataclasses.asdict(AUGMENTATION) | {"colour_epochs": 3},
    "learning": dataclasses.asdict(LEARNING)
    | {
        "batch_size": 10,  # 24 pictures: the last batch of an epoch is short
        "epochs": EPOCHS,
        "rate": 0.002,
        "rate_falls": [2],
        "held_out": 0.2,
        "watched": "held_out",
        "plateau_epochs": 1,
        "log_steps": 2,
        "streams": 4,
    },
}

OTHERS: dict[str, Any] = {
    "network": "vgg16",
    "columns": 1,
    "kernels": (96, 256, 0, 384, 256, 256),
    "units": (4096, 2048, 0),
    "width": 0.125,
    "border": "padded",
    "deviation": (1.0, 2.0, 3.0),
    "activation": "tanh",
    "normalization": "none",
    "pooling": "disjoint",
    "dropout": 0.4,
    "dropout_layers": (5, 6),
    "dropout_scale": "training",
    "first_weights": "uniform",
    "first_std": (0.02,) * 10,
    "first_bias": (0.5,) * 10,
    "layers": ("conv1",),
    "unsupervised": "kmeans",
    "unsupervised_layers": 2,
    "unsupervised_patches": 300,
    "unsupervised_iterations": 3,
    "patches": "centre",
    "chunk": 2,
    "reflections": False,
    "mean": "patch",
    "colour": "none",
    "colour_std": 0.2,
    "colour_epochs": 2,
    "seed": 1,
    "batch_size": 9,
    "epochs": 5,
    "rate": 0.003,
    "bias_rate": 1.0,
    "rate_falls": (1,),
    "rate_divisor": 9.0,
    "plateau_epochs": 2,
    "plateau_falls": 1,
    "watched": "validation",
    "held_out": 0.3,
    "rate_changes": (RateChange(epoch=1, layers=("conv1",), weights=0.0, biases=None),),
    "momentum": 0.8,
    "velocity": "without rate",
    "decay": 0.0,
    "bias_decay": 0.1,
    "precision": "float64",
    "order": "cyclic",
    "log_steps": 3,
    "streams": 5,
}
"""A different value for every parameter above."""


def copy(folder: Path) -> Path:
    """A working copy with a miniature data set, ready for `train`."""
    miniature.prepared(folder, train=24, val=12, classes=3)
    for name in ("alexnet", "pipeline"):
        (folder / name).symlink_to(ROOT / name)
    write(folder, SECTIONS)
    (folder / "machine.yaml").write_text("devices: cpu\nplacement: columns\nworkers: 2\n")
    return folder


def write(folder: Path, sections: dict[str, dict[str, Any]]) -> None:
    with (folder / "params.yaml").open("w") as handle:
        YAML().dump(params.load(ROOT / "params.yaml") | sections, handle)


def outs(folder: Path) -> dict[str, str]:
    files = [folder / "data/model.pt", *sorted((folder / "data/history").iterdir())]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copytree(prepared, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recorded(folder: Path) -> None:
    """Writes a dvc.lock with the model's hash."""
    md5 = hashlib.md5((folder / "data/model.pt").read_bytes(), usedforsecurity=False).hexdigest()
    (folder / "dvc.lock").write_text(f"stages:\n  train:\n    outs:\n    - path: data/model.pt\n      md5: {md5}\n")


# Which run it is


def test_any_parameter_of_the_four_sections_makes_another_run(here: Path) -> None:
    spec = train.read_spec(Machine())
    seen = {spec.fingerprint}
    for name in ("model", "start", "augmentation", "learning"):
        section = getattr(spec, name)
        for field in dataclasses.fields(section):
            if field.name == "network":
                continue  # its bytes decide: see below
            changed = dataclasses.replace(section, **{field.name: OTHERS[field.name]})
            assert changed != section, field.name
            fingerprint = dataclasses.replace(spec, **{name: changed}).fingerprint
            assert fingerprint not in seen, field.name
            seen.add(fingerprint)


def test_other_pictures_or_another_mean_make_another_run(here: Path) -> None:
    spec = train.read_spec(Machine())
    shard = dataclasses.replace(spec.manifest.shards["train"][0], sha256="1" * 64)
    shards = {**spec.manifest.shards, "train": (shard, *spec.manifest.shards["train"][1:])}
    other = dataclasses.replace(spec, manifest=dataclasses.replace(spec.manifest, shards=shards))
    data = bytearray((here / "data/mean.npz").read_bytes())
    data[-1] ^= 1
    (here / "data/mean.npz").write_bytes(data[:-1] + data[-1:])
    again = dataclasses.replace(spec, mean_digest=hashlib.sha256(data).hexdigest())
    assert len({spec.fingerprint, other.fingerprint, again.fingerprint}) == 3


def test_the_bytes_of_the_network_to_begin_with_decide_and_not_its_name(
    here: Path, finished: tuple[Path, TrainingSpec, AlexNet]
) -> None:
    file, seen = finished[0] / "model.pt", [finished[1].fingerprint]
    data = file.read_bytes()
    for name in ("one.pt", str(here / "folder/other.pt")):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(data)
        write(here, {**SECTIONS, "start": {**SECTIONS["start"], "network": name}})
        seen.append(train.read_spec(Machine()).fingerprint)
    network = finished[2]
    with torch.no_grad():
        network.conv1.weight[0] += 1
    with file.open("wb") as handle:
        save(handle, network, fingerprint="", classes=[["n00000000", ""]])
    write(here, {**SECTIONS, "start": {**SECTIONS["start"], "network": str(file)}})
    seen.append(train.read_spec(Machine()).fingerprint)
    assert seen[1] == seen[2]
    assert len(set(seen)) == 3


def test_the_machine_and_the_way_a_number_is_written_make_no_other_run(here: Path) -> None:
    ours = train.read_spec(Machine()).fingerprint
    assert train.read_spec(Machine(workers=1, devices="cpu", placement="one", checkpoint_steps=1)).fingerprint == ours
    text = (here / "params.yaml").read_text()
    assert "rate: 0.002" in text
    (here / "params.yaml").write_text(text.replace("rate: 0.002", "rate: 2e-3").replace("first_bias:", "first_bias: "))
    assert train.read_spec(Machine()).fingerprint == ours


@pytest.mark.parametrize(("split", "kind"), [("train", "training"), ("val", "validation")])
def test_without_pictures_of_both_kinds_nothing_begins(here: Path, split: str, kind: str) -> None:
    manifest = train.read_spec(Machine()).manifest
    rows = sum(manifest.rows(each) for each in ("train", "val") if each != split)
    empty = dataclasses.replace(manifest, shards={**manifest.shards, split: ()}, indexed=rows, rejected=0)
    (here / "data/shards/manifest.json").write_text(empty.to_json())
    digests.seal(here / "data/shards")
    with pytest.raises(ValueError, match=f"no {kind} picture"):
        train.read_spec(Machine())


# What a finished run leaves


ROWS = {
    "steps": [{"step": 2, "epoch": 0, "rate": 0.002, "loss": 1 / 3, "top1_error": 0.5}],
    "epochs": [{"epoch": 0, "step": 3, "rate": 0.002, "train_loss": 1.5, "val_loss": 1e-9, "val_top1_error": 0.25}],
}


@pytest.fixture(scope="module")
def ended(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingSpec]:
    """The folder of a finished run, whose network has its first weights."""
    with contextlib.chdir(prepared):
        spec = train.read_spec(Machine())
    network = AlexNet(spec.model, 3)
    network.draw_first_weights(5)
    contents = {
        "weights": dict(network.named_parameters()),
        "progress": ROWS,
        "code": provenance.here().record(),
    }
    folder = tmp_path_factory.mktemp("ended") / spec.fingerprint
    folder.mkdir()
    run_folder.finish(contents, spec, folder, None)
    return folder, spec


@pytest.fixture
def finished(ended: tuple[Path, TrainingSpec], here: Path) -> tuple[Path, TrainingSpec, AlexNet]:
    """A copy of the finished run in the working copy, and its network."""
    made, spec = ended
    network = AlexNet(spec.model, 3)
    network.draw_first_weights(5)
    folder = here / "runs" / spec.fingerprint
    shutil.copytree(made, folder)
    return folder, spec, network


def test_the_model_and_the_history_are_those_of_the_last_checkpoint(
    finished: tuple[Path, TrainingSpec, AlexNet], here: Path
) -> None:
    folder, spec, network = finished
    assert run_folder.read_finished(folder)
    run_folder.deliver(folder)
    with (here / "data/model.pt").open("rb") as handle:
        read, facts = load(handle)
    for name, weight in network.named_parameters():
        assert torch.equal(dict(read.named_parameters())[name], weight), name
    assert facts["fingerprint"] == spec.fingerprint
    assert facts["manifest"] == spec.manifest.digest
    assert facts["drawn"] is True
    assert facts["classes"] == [[synset.wnid, synset.words] for synset in spec.manifest.classes]
    assert torch.equal(facts["mean"], torch.from_numpy(spec.mean.image_CHW))
    assert facts["mean_kind"] == spec.augmentation.mean
    assert facts["preparation"] == dataclasses.asdict(spec.manifest.preparation)
    with (here / "data/history/steps.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) == 1 / 3, "to the last bit"
    with (here / "data/history/epochs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["val_loss"]) == 1e-9


def test_the_appearance_is_that_of_the_first_pictures_of_each_shard(tmp_path: Path) -> None:
    manifest = miniature.prepared(tmp_path, 60, 4, 3, side=64)
    with contextlib.chdir(tmp_path):
        found = looks.of_training(manifest, Path("data/shards"))
    expected = Appearance.of(np.array([measure(decode(miniature.jpeg(number, 64))) for number in range(60)]))
    assert found is not None
    np.testing.assert_allclose(found["mean"], expected.mean_M)
    assert found["limit"] == pytest.approx(expected.limit)
    few = dataclasses.replace(manifest, shards={**manifest.shards, "train": manifest.shards["train"][:1]})
    assert looks.of_training(few, tmp_path) is None, "30 pictures are too few"


def test_a_model_of_older_code_is_written_anew_from_the_last_checkpoint(
    finished: tuple[Path, TrainingSpec, AlexNet], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was delivered, which else means that the run is trained anew; the record of its code stays."""
    folder, spec, network = finished
    whole = (folder / "model.pt").read_bytes()
    contents = {
        "fingerprint": spec.fingerprint,
        "classes": spec.classes,
        "weights": dict(network.named_parameters()),
        "velocity": {},
        "progress": {**ROWS, "step": 9, "epoch": spec.learning.epochs},
        "code": {"files": {}, "libraries": {}},
    }
    with (folder / "model.pt").open("wb") as handle:
        _, facts = load(io.BytesIO(whole))
        save(handle, network, **{name: fact for name, fact in facts.items() if name != "preparation"})
    checkpoint = checkpoints.write(folder, contents)
    sums = {name: digests.of(folder / name) for name in run_folder.RESULTS}
    (folder / "finished.json").write_text(run_folder.Finished(id="0", digests=sums, code=None).text())
    run = run_folder.reusable(folder, spec, lambda: None)
    assert run is not None
    assert run.code == contents["code"]
    assert (folder / "model.pt").read_bytes() == whole
    assert "does not say how pictures are prepared" in capsys.readouterr().err
    assert run_folder.reusable(folder, spec, lambda: None) == run, "once"

    with (folder / "model.pt").open("wb") as handle:
        save(handle, network, **{name: fact for name, fact in facts.items() if name != "preparation"})
    (folder / "finished.json").write_text(run_folder.Finished(id="0", digests=sums, code=None).text())
    shutil.rmtree(checkpoint)
    assert run_folder.reusable(folder, spec, lambda: None) is None, "without its last checkpoint it has to be trained"


def test_equal_contents_give_equal_bytes(finished: tuple[Path, TrainingSpec, AlexNet], here: Path) -> None:
    folder, _, _ = finished
    run_folder.deliver(folder)
    first = outs(here)
    run_folder.deliver(folder)
    assert outs(here) == first
    assert len(set(first.values())) == 4, "the model, two tables, and their digests"
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_the_history_goes_with_digests_that_sha256sum_reads(
    finished: tuple[Path, TrainingSpec, AlexNet], here: Path
) -> None:
    run_folder.deliver(finished[0])
    folder = here / "data/history"
    assert sorted(file.name for file in folder.iterdir()) == ["SHA256SUMS", "epochs.csv", "steps.csv"]
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, capture_output=True).stdout == b"epochs.csv: OK\nsteps.csv: OK\n"
    (folder / "steps.csv").write_text((folder / "steps.csv").read_text().replace("0.5", "0.4"))
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["model.pt", "steps.csv", "epochs.csv"])
@pytest.mark.parametrize("fault", ["altered", "cut", "gone"])
def test_a_run_whose_files_are_not_what_it_made_is_not_finished(
    finished: tuple[Path, TrainingSpec, AlexNet], name: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = finished[0] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(data if fault == "altered" else file.read_bytes()[:-1])
    assert not run_folder.read_finished(finished[0])
    assert f"{file}: gone, or not what the run made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[1]",
        lambda text: "{}",
        lambda text: text.replace('"model.pt"', '"model.pu"'),
        lambda text: re.sub('"id": "(.)', r'"id": "x\1', text),
        lambda text: text.replace('"digest"', '"digesu"'),
        lambda text: json.dumps({"id": 3, "digests": json.loads(text)["digests"]}),
        lambda text: json.dumps({"id": "3", "digests": ["model.pt"]}),
        lambda text: re.sub('(simplejpeg": ").', r"\g<1>7", text),
    ],
)
def test_a_word_that_is_damaged_is_named_and_counts_for_nothing(
    finished: tuple[Path, TrainingSpec, AlexNet], spoilt: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = finished[0] / "finished.json"
    file.write_text(spoilt(file.read_text()))
    assert run_folder.read_finished(finished[0]) is None
    assert re.fullmatch(
        rf"train: {file}: damaged \(\w+\); what it names is made again from the last checkpoint\n",
        capsys.readouterr().err,
    )


def test_a_word_of_before_is_heeded(finished: tuple[Path, TrainingSpec, AlexNet]) -> None:
    file = finished[0] / "finished.json"
    word = json.loads(file.read_text())
    file.write_text(json.dumps({"id": word["id"], "digests": word["digests"]}, indent=1))
    found = run_folder.read_finished(finished[0])
    assert found is not None
    assert (found.id, found.code) == (word["id"], None)


@pytest.mark.parametrize(("spoilt", "there"), [(False, True), (True, False)])
def test_a_mark_of_what_was_delivered_is_heeded_unless_it_is_damaged(
    finished: tuple[Path, TrainingSpec, AlexNet],
    here: Path,
    spoilt: bool,
    there: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = finished[0]
    run_folder.deliver(folder)
    recorded(here)
    mark = here / "work/delivered" / folder.name
    if spoilt:
        mark.write_text("0" + mark.read_text()[1:] if mark.read_text()[0] != "0" else "1" + mark.read_text()[1:])
    word = run_folder.read_finished(folder)
    assert word is not None
    assert run_folder.is_delivered(folder, word) is there
    assert ("damaged" in capsys.readouterr().err) is spoilt


def test_a_mark_of_before_is_heeded(finished: tuple[Path, TrainingSpec, AlexNet], here: Path) -> None:
    folder = finished[0]
    run_folder.deliver(folder)
    recorded(here)
    word = run_folder.read_finished(folder)
    assert word is not None
    (here / "work/delivered" / folder.name).write_text(word.id)
    assert run_folder.is_delivered(folder, word)


# Other code


def other_code(name: str = "pipeline/training/trainer.py") -> dict[str, Any]:
    """A record of the code that differs from the current one."""
    record = provenance.here().record()
    return {**record, "files": {**record["files"], name: "0" * 64}}


def note(run: Path, record: Any, at: str = "step 4", policy: str = "refuse") -> str:
    return provenance.resumed_by_other_code(record, at, run, policy, run_folder.say)


def test_a_run_of_this_code_is_resumed(tmp_path: Path) -> None:
    assert note(tmp_path, provenance.here().record()) == ""


def test_other_code_is_refused_with_the_two_ways_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        note(tmp_path, other_code())
    what, anew, on = str(caught.value).splitlines()
    assert (
        what
        == f"{tmp_path} was begun by other code than this, and is at step 4. Different: pipeline/training/trainer.py"
    )
    assert anew == f"To begin anew: rm -r {tmp_path}"
    assert on.startswith("To continue it all the same: other_code: continue in machine.yaml")


def test_other_code_goes_on_if_the_machine_says_so_and_mlflow_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = note(tmp_path, other_code(), policy="continue")
    before = provenance.of(other_code())
    assert before is not None
    now = provenance.here().digest
    assert told == f"{now} from step 4, after {before.digest}. Different: pipeline/training/trainer.py"
    assert "was begun by other code, and is continued from step 4" in capsys.readouterr().err


def test_a_run_of_before_is_gone_on_with_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert note(tmp_path, None).endswith("after code that was not recorded")
    assert "begun before runs recorded their code, and is continued from step 4" in capsys.readouterr().err


def test_a_finished_run_of_other_code_is_not_taken_over_in_silence(
    finished: tuple[Path, TrainingSpec, AlexNet], here: Path
) -> None:
    file = finished[0] / "finished.json"
    run = run_folder.read_finished(finished[0])
    assert run is not None
    file.write_text(dataclasses.replace(run, code=other_code("alexnet/model.py")).text())
    with pytest.raises(ValueError, match=r"is at its end\. Different: alexnet/model\.py"):
        train.run()
    assert not (here / "data/model.pt").exists()


@pytest.mark.slow
def test_a_run_that_another_process_has_is_waited_for_and_then_given_up_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "SAID_AFTER", 0.2)
    folder, own = tmp_path / "runs/one", f"process {os.getpid()} on {socket.gethostname()}"
    with (
        run_folder.locked(folder, 900),
        pytest.raises(TimeoutError, match=rf"{folder}, which {own} is at work in after 3 s"),
        run_folder.locked(folder, 3),
    ):
        pytest.fail("both have it")
    assert f"train: waiting for {folder}, which {own} is at work in" in capsys.readouterr().err
    with run_folder.locked(folder, 3):
        pass


def test_a_run_without_the_word_that_it_is_finished_is_not(finished: tuple[Path, TrainingSpec, AlexNet]) -> None:
    (finished[0] / "finished.json").unlink()
    assert not run_folder.read_finished(finished[0])


# Real trainings


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The outcome of a `python -m pipeline.train`."""

    code: int
    said: str
    outs: dict[str, str]
    went_on: bool = False
    """Whether the training resumed from a checkpoint."""


class Watch:
    """An outside view of a training: its processes, and the times of its checkpoints."""

    def __init__(self, folder: Path, process: psutil.Process) -> None:
        self.folder, self.process = folder, process
        # when each checkpoint was written, in ns; more than once if it was written again
        self.seen: dict[str, set[int]] = {}
        # the oldest before the kill
        self.marked: tuple[str, set[int]] = ("", set())

    def look(self) -> None:
        for file in self.folder.glob("runs/*/checkpoint-*/checkpoint.pt"):
            with contextlib.suppress(FileNotFoundError):
                self.seen.setdefault(file.parent.name, set()).add(file.stat().st_mtime_ns)

    def mark(self) -> None:
        """Records the oldest existing checkpoint, which is whole, and forgets earlier observations."""
        self.seen.clear()
        self.look()
        name = min(self.seen)
        self.marked = name, set(self.seen[name])

    def went_on(self) -> bool:
        """Whether the training resumed: no checkpoint as old as the marked one was written again."""
        name, times = self.marked
        return bool(name) and min(self.seen) == name and self.seen[name] == times

    def until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not happen in time: {self.text()}"
            assert runs(self.process), self.text()
            self.look()
            time.sleep(0.02)

    def saved(self) -> bool:
        """Whether a checkpoint exists."""
        return any(self.folder.glob("runs/*/checkpoint-*/checkpoint.pt"))

    def below(self) -> list[psutil.Process]:
        found: list[psutil.Process] = self.process.children(recursive=True)
        return found

    def workers(self) -> list[psutil.Process]:
        """The worker processes."""
        return [process for process in self.below() if "RayTrainWorker" in "".join(words(process))]

    def text(self) -> str:
        return ""


class Training(Watch):
    """`python -m pipeline.train` in a separate process."""

    def __init__(self, folder: Path, keep: tuple[str, ...] = ()) -> None:
        ours = ("DVC_", "ALEXNET_", "RAY_")
        kept = {key: value for key, value in os.environ.items() if key in keep or not key.startswith(ours)}
        self.log = (folder / "said.txt").open("wb")
        process = psutil.Popen(
            [sys.executable, "-m", "pipeline", "train"],
            cwd=folder,
            env=kept | {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        super().__init__(folder, process)

    def end(self, seconds: float = 240) -> Ran:
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, self.text()
            self.look()
            time.sleep(0.02)
        there = (self.folder / "data/model.pt").exists()
        made = outs(self.folder) if there else {}
        return Ran(code=self.process.returncode, said=self.text(), outs=made, went_on=self.went_on())

    def text(self) -> str:
        return (self.folder / "said.txt").read_text()


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def runs(process: psutil.Process) -> bool:
    """Whether a process runs, zombies excluded."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def trained(folder: Path) -> str:
    """Runs `train` in this process, with the Ray of all tests; returns its output."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.chdir(folder):
        for name in ("DVC_ROOT", "DVC_STAGE", "ALEXNET_MACHINE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        train.run()
    return said.getvalue()


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Training]]:
    """Starts trainings, and ends their remaining processes after the test."""
    begun: list[Training] = []

    def start(folder: Path) -> Training:
        begun.append(Training(folder))
        return begun[-1]

    yield start
    for training in begun:
        training.log.close()
        if training.process.poll() is None:
            for process in [*training.below(), training.process]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            training.process.wait()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def undisturbed(first: Path, ray_session: None) -> Ran:
    said = trained(first)
    # kept, for what comes after deletes it
    shutil.copyfile(first / "data/model.pt", first / "undisturbed.pt")
    (file,) = first.glob("runs/*/record.jsonl")
    shutil.copyfile(file, first / "record.jsonl")
    return Ran(code=0, said=said, outs=outs(first))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and MLflow, whose code runs here
def test_it_trains(undisturbed: Ran, first: Path) -> None:
    with (first / "data/history/epochs.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    learning = dataclasses.replace(LEARNING, **{**SECTIONS["learning"], "rate_falls": (2,), "rate_changes": ()})
    learned_from = 24 - int(held_out(24, learning).sum())
    assert learned_from < 24
    assert learned_from % 10, "the last batch of an epoch has to be a short one"
    steps = -(-learned_from // 10)
    assert [int(row["step"]) for row in epochs] == [steps * (epoch + 1) for epoch in range(EPOCHS)]
    watched = [float(row["held_out_top1_error"]) for row in epochs]
    assert all(0 <= error <= 1 for error in watched)
    rates = [learning.rates(epoch, watched[:epoch]).last for epoch in range(EPOCHS)]
    assert [float(row["rate"]) for row in epochs] == rates
    assert rates[-1] <= 0.0002
    with (first / "data/history/steps.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*range(2, steps * EPOCHS + 1, 2)]
    assert "2 processes, a column each" in undisturbed.said
    with (first / "undisturbed.pt").open("rb") as handle:
        network, _ = load(handle)
    start = AlexNet(network.model, 3)
    start.draw_first_weights(0)
    learned = dict(network.named_parameters())
    for name, weight in start.named_parameters():
        assert torch.isfinite(learned[name]).all()
        assert not torch.equal(learned[name], weight), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_records_where_its_time_went_and_on_what_it_ran(undisturbed: Ran, first: Path) -> None:
    record = run_record.read(first, undisturbed.outs["data/model.pt"])
    assert record is not None
    assert [row["epoch"] for row in record.epochs] == [*range(EPOCHS)]
    assert all(record.total(part) > 0 for part in ("waiting", "computing", "exchanging", "validating", "checkpoints"))
    assert 0 < record.total(*PARTS) < record.seconds
    assert (record.sessions, record.unended) == (1, 0)
    with contextlib.closing(sqlite3.connect(first / "mlflow.db")) as database:
        assert record.facts["run_id"] in {run for (run,) in database.execute("SELECT run_uuid FROM runs")}
    assert record.facts["placement"].startswith("2 processes, a column each")
    assert record.facts["libraries"]["torch"] == torch.__version__.partition("+")[0]
    assert record.facts["memory"] == psutil.virtual_memory().total


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_made_again_with_a_worker_killed_it_ends_the_same(undisturbed: Ran, first: Path) -> None:
    """DVC has recorded the outs and removed them, as after `dvc repro --force`, so the stage trains again."""
    recorded(first)
    shutil.rmtree(first / "data/history")
    (first / "data/model.pt").unlink()
    (word,) = first.glob("runs/*/finished.json")
    watch, ended = Watch(first, psutil.Process()), threading.Event()

    def kill() -> None:
        watch.until(lambda: not word.parent.exists() or not (word.exists() or watch.saved()))
        watch.until(watch.saved)
        watch.mark()
        assert not word.exists()
        watch.workers()[0].kill()
        while not ended.wait(0.02):
            watch.look()

    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill)
        try:
            said = trained(first)
        finally:
            ended.set()
        killed.result()
    assert "taken over" not in said
    assert outs(first) == undisturbed.outs
    assert watch.went_on()


@pytest.fixture(scope="module")
def resumed(second: Path, begin: Callable[[Path], Training]) -> Ran:
    """Kills the driver after the first checkpoint, and starts the training again."""
    training = begin(second)
    training.until(training.saved)
    training.mark()
    # Ray's two agents, and a worker that has only begun to start, stay for up to a minute, and hold nothing
    idle = ("Agent", "setup_worker.py", "default_worker.py")
    below = [process for process in training.below() if not any(name in "".join(words(process)) for name in idle)]
    assert len(below) >= 4, "two workers, their controller, and Ray"
    training.process.kill()
    training.process.wait()
    end = time.monotonic() + 30
    while alive := [process for process in below if runs(process)]:
        assert time.monotonic() < end, f"Ray's processes go with the driver: {alive}"
        time.sleep(0.1)
    assert not (second / "data/model.pt").exists()
    rerun = begin(second)
    rerun.seen, rerun.marked = training.seen, training.marked
    return rerun.end()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # it may be the first to need a training here
def test_killed_and_started_again_it_ends_the_same(undisturbed: Ran, resumed: Ran) -> None:
    assert resumed.code == 0, resumed.said
    assert resumed.outs == undisturbed.outs
    assert resumed.went_on


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # it may be the first to need a training here
def test_a_finished_run_is_taken_over(
    undisturbed: Ran, resumed: Ran, second: Path, begin: Callable[[Path], Training]
) -> None:
    """The working copy has not delivered the run before: no worker starts."""
    shutil.rmtree(second / "data/history")
    (second / "data/model.pt").unlink()
    shutil.rmtree(second / "work/delivered")
    training = begin(second)
    ray = []
    while training.process.poll() is None:
        ray += [process for process in training.below() if "raylet" in "".join(words(process))]
        time.sleep(0.1)
    ran = training.end()
    assert ran.code == 0, ran.said
    assert "is finished" in ran.said
    assert "taken over" in ran.said
    assert not ray
    assert ran.outs == undisturbed.outs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, str]:
    """The same training in one process."""
    folder = copy(tmp_path_factory.mktemp("whole"))
    (folder / "machine.yaml").write_text("devices: cpu\nplacement: one\nworkers: 2\n")
    return folder, trained(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_columns_in_one_process_give_the_same_weights(
    whole: tuple[Path, str], undisturbed: Ran, first: Path
) -> None:
    folder, said = whole
    assert "1 process, the whole network" in said
    with (first / "undisturbed.pt").open("rb") as ours, (folder / "data/model.pt").open("rb") as theirs:
        one, other = (dict(load(handle)[0].named_parameters()) for handle in (ours, theirs))
    for name, weight in one.items():
        assert (other[name] - weight).norm() <= 1e-5 * weight.norm(), name


@pytest.mark.slow
def test_a_checkpoint_is_a_network_to_begin_with(whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = whole
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    spec = train.read_spec(Machine())
    file = max(folder.glob("runs/*/checkpoint-*/checkpoint.pt"))
    section = Start(**{**SECTIONS["start"], "network": str(file)})
    found = initial.read_pretrained(section, spec.model, spec.manifest, Machine())
    last = learned(folder)
    assert found.weights.keys() == last.keys(), "the last layer too, since it tells the same classes apart"
    assert all(torch.equal(found.weights[name], weight) for name, weight in last.items())
    assert f"(run {spec.fingerprint})" in found.summary


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_another_run_is_refused(whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = whole
    (theirs,) = (file.parent for file in folder.glob("runs/*/finished.json"))
    write(folder, {**SECTIONS, "learning": {**SECTIONS["learning"], "seed": 1}})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    ours = train.read_spec(Machine()).fingerprint
    (theirs / "finished.json").unlink()
    theirs.rename(theirs.with_name(ours))
    with pytest.raises(ValueError, match=f"belongs to run {theirs.name}, this is {ours}"):
        trained(folder)


def begun_with(folder: Path, placement: str, **section: Any) -> AlexNet:
    """Sets up an epoch at learning rate 0, so that the last weights equal the first; returns the random first weights."""
    write(folder, {
        **SECTIONS,
        "start": {**SECTIONS["start"], **section},
        "learning": {**SECTIONS["learning"], "epochs": 1, "rate": 0, "rate_falls": []},
    })  # fmt: skip
    (folder / "machine.yaml").write_text(f"devices: cpu\nplacement: {placement}\nworkers: 2\n")
    drawn = AlexNet(Model(**SECTIONS["model"]), 3)
    drawn.draw_first_weights(0)
    return drawn


def learned(folder: Path) -> dict[str, torch.Tensor]:
    with (folder / "data/model.pt").open("rb") as handle:
        return load(handle)[0].state_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_begins_with_another_network_but_for_its_classes_and_a_checkpoint_goes_before_it(
    tmp_path: Path, ray_session: None
) -> None:
    folder, other = copy(tmp_path), AlexNet(Model(**SECTIONS["model"]), 3)
    other.draw_first_weights(9)
    with (folder / "other.pt").open("wb") as handle:
        save(handle, other, fingerprint="fall2011", classes=[[f"n1{label}", ""] for label in range(3)])
    drawn = begun_with(folder, "columns", network="other.pt")
    said = trained(folder)
    assert "train: begins with conv1, conv2, conv3, conv4, conv5, fc6, fc7 of " in said
    assert "(run fall2011); fc8 random: that network has other classes" in said
    for name, weight in learned(folder).items():
        assert torch.equal(weight, (drawn if name.startswith("fc8") else other).state_dict()[name]), name
    (checkpoint,) = folder.glob("runs/*/checkpoint-*/checkpoint.pt")
    contents = checkpoints.read(checkpoint.parent)
    contents["weights"]["conv2.weight"] += 1
    with checkpoint.open("wb") as handle:
        sealed.write(handle, contents)
    (folder / "data/model.pt").unlink()
    (checkpoint.parents[1] / "finished.json").unlink()
    trained(folder)
    assert torch.equal(learned(folder)["conv2.weight"], other.conv2.weight + 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_begins_with_clusters_in_the_first_layers(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(tmp_path)
    drawn = begun_with(folder, "one", unsupervised="kmeans", unsupervised_layers=2)
    assert "train: begins with conv1 and conv2 of 200 patches each, clustered" in trained(folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    spec = train.read_spec(Machine())
    found = initial.with_clusters(spec, folder / "data/shards").first.weights
    for name, weight in learned(folder).items():
        assert torch.equal(weight, found.get(name, drawn.state_dict()[name])), name
        assert (name in found) == (not torch.equal(weight, drawn.state_dict()[name]))
    from mlflow import MlflowClient

    (run,) = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"])
    assert run.data.tags["start"] == "conv1 and conv2 of 200 patches each, clustered"
    assert run.data.params["start.unsupervised"] == "kmeans"
    assert run.data.tags["code"] == provenance.here().digest
