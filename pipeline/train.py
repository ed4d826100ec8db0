"""Shards and mean → a trained network (§3–§5).

Run:    dvc repro train
Reads:  data/shards/, data/mean.npz, and the network that `start` names
Writes: data/model.pt, data/history/{steps.csv,epochs.csv,SHA256SUMS}; work in progress in runs/<fingerprint>/
Takes:  model, start, augmentation, learning
Expect: the sample, 4 million parameters: 3 minutes on 2 cores
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes long to import
    from pipeline.__main__ import main as enter

    enter("train")

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.augmentation import Augmentation, mean_to_subtract
from alexnet.build import build, save
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline.runtime import cluster, digests, files, machine, params, stage, waiting
from pipeline.runtime.machine import Machine
from pipeline.runtime.progress import Progress
from pipeline.shards import artifacts
from pipeline.shards.tables import Manifest
from pipeline.supervision import provenance
from pipeline.tracking import runs
from pipeline.training import checkpoints, initial
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.initial import Origin, Start

if TYPE_CHECKING:
    from pipeline.supervision.listening import Listener
    from pipeline.training.worker import Task

MODEL = Path("data/model.pt")
HISTORY = Path("data/history")

TABLES = ("steps.csv", "epochs.csv")
MADE = ("model.pt", *TABLES)
"""What a finished run has made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """All that decides the result of the training."""

    model: Model
    augmentation: Augmentation
    learning: Learning
    manifest: Manifest
    mean: Mean
    mean_digest: str
    start: Start
    origin: Origin

    @property
    def params(self) -> dict[str, Any]:
        """The sections, nested."""
        return {
            name: dataclasses.asdict(getattr(self, name)) for name in ("model", "start", "augmentation", "learning")
        }

    @property
    def fingerprint(self) -> str:
        """Names the run: 16 hexadecimal digits of the hash of parameters and data."""
        sections = self.params
        sections["start"]["network"] = self.origin.digest  # whatever it is called, and wherever it lies
        decides = [sections, self.manifest.digest, self.mean_digest]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """That a run is finished, and what it made: finished.json."""

    id: str
    """Tells two runs of the same fingerprint apart."""
    digests: dict[str, str]
    """SHA-256 of each file."""
    code: Any
    """The record of the code that ended it; None before there was one."""

    def text(self) -> str:
        """As JSON, with a digest of itself."""
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "digest": _check(json.dumps(fields, sort_keys=True))}, indent=1)

    @classmethod
    def read(cls, file: Path) -> Word:
        """What `text` gave; `ValueError` if it is damaged. Before it had a digest, it had no record of the code either."""
        try:
            fields = json.loads(file.read_bytes())
            seal = fields.pop("digest", None)
            if seal is None and fields.keys() == {"id", "digests"}:
                fields["code"] = None
            elif seal != _check(json.dumps(fields, sort_keys=True)):
                raise ValueError("its digest is another")
            word = cls(**fields)
            if not isinstance(word.id, str) or word.digests.keys() != set(MADE):
                raise TypeError("other names")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file}: damaged ({type(error).__name__})") from None
        return word


def main() -> None:
    """The stage, as a program."""
    stage.main("train", run)


def run() -> None:
    """Trains, or takes over what a run with the same fingerprint has left."""
    settings = machine.read()
    inputs = read_inputs(settings)
    folder = machine.runs(settings) / inputs.fingerprint
    with _held(folder, settings):
        done = _taken_over(folder)
        last = None if done else checkpoints.newest(folder, inputs.fingerprint, _say)
        went_on = _other_code(folder, done, last, settings)
        with runs.run(
            settings, inputs.fingerprint, inputs.params, inputs.manifest, "train", adopt=done is not None
        ) as record:
            record.tag("start", inputs.origin.said or "drawn")
            record.tag("code.resumed_with" if went_on else "code", went_on or provenance.here().digest)
            if done:
                print(f"train: run {inputs.fingerprint} is finished, in {folder}; its results are taken over")
                record.log_all(_metrics(row) for row in _rows(folder))
            else:
                fit(inputs, settings, folder, record, last)
        if cluster.in_job() and "DVC_STAGE" not in os.environ:
            print(f"train: the results are in {folder}; dvc repro takes them over")
        else:
            deliver(folder)


def _say(line: str) -> None:
    print(f"train: {line}", file=sys.stderr, flush=True)


@contextmanager
def _held(folder: Path, settings: Machine) -> Iterator[None]:
    """The run's folder is this process's alone while the block runs. Says, and ends, a wait for another that has it."""
    owner = folder.with_suffix(".owner")
    whose = owner.read_text().strip() if owner.is_file() else "another process"
    limit = 3 * settings.patience
    with waiting.locked(folder.with_suffix(".lock"), "train", f"{folder}, which {whose} is at work in", limit):
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


def _taken_over(folder: Path) -> Word | None:
    """The word of a run that is finished and to be taken over; None if it is to be trained, whatever is there of it."""
    word = finished(folder)
    if word is not None and _delivered(folder, word):
        # what it made was here once; that the stage runs again means that it is to be made anew
        print(f"train: {folder} was finished and had its results here; it is removed, and made anew")
        shutil.rmtree(folder)
        return None
    return word


def _other_code(folder: Path, done: Word | None, last: Checkpoint | None, settings: Machine) -> str:
    """What MLflow is told of the code where it is not what began the run; nothing if it is. `ValueError` to refuse it."""
    if done is None and last is None:
        return ""
    record, at = (done.code, "its end") if done else (last.code, f"step {last.step}") if last else (None, "")
    before, now = provenance.of(record), provenance.here()
    if before is None:
        _say(f"{folder} was begun before runs recorded their code, and is gone on with from {at}")
        return f"{now.digest} from {at}, after code that was not recorded"
    if not (others := provenance.differences(before, now)):
        return ""
    if settings.other_code == "refuse":
        raise ValueError(
            f"{folder} was begun by other code than this, and is at {at}. Other is: {others}\n"
            f"To begin anew: rm -r {folder}\n"
            "To go on with it all the same: other_code: continue in machine.yaml, and MLflow will say so"
        )
    _say(f"{folder} was begun by other code, and is gone on with from {at}. Other is: {others}")
    return f"{now.digest} from {at}, after {before.digest}. Other is: {others}"


def read_inputs(settings: Machine) -> Inputs:
    """Reads and checks everything before any work is done."""
    model, section = params.read("model", Model), params.read("start", Start)
    augmentation, learning = params.read("augmentation", Augmentation), params.read("learning", Learning)
    manifest, mean = artifacts.inputs(settings)
    if manifest.rows("train") == 0:
        raise ValueError("data/shards has no training picture. Run: dvc repro --force --single-item resize")
    digest = hashlib.sha256(mean.read_bytes()).hexdigest()
    return Inputs(
        model=model,
        start=section,
        augmentation=augmentation,
        learning=learning,
        manifest=manifest,
        mean=Mean.load(mean),
        mean_digest=digest,
        origin=initial.origin(section, model, manifest, settings),
    )


def fit(inputs: Inputs, settings: Machine, folder: Path, record: runs.Run, last: Checkpoint | None) -> None:
    """Launches the workers and leaves a finished run in `folder`."""
    with cluster.connected(settings):
        placement = cluster.placement(settings, inputs.model.divisible)
        if placement.replicas > inputs.learning.streams:
            raise ValueError(
                f"params.yaml: learning.streams: {inputs.learning.streams} streams cannot feed "
                f"{placement.replicas} replicas; it has to be at least as many"
            )
        print(f"train: run {inputs.fingerprint}, {placement}")
        if inputs.origin.said:
            print(f"train: begins with {inputs.origin.said}")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.clear(folder)
        last = _attempts(inputs, settings, folder, record, last, placement)
    finish(checkpoints.read(last.folder), inputs, folder)
    record.log_all(_metrics(row) for row in _rows(folder))


def _attempts(
    inputs: Inputs,
    settings: Machine,
    folder: Path,
    record: runs.Run,
    last: Checkpoint | None,
    placement: cluster.Placement,
) -> Checkpoint:
    """Tries until there is the last checkpoint of all, which it gives, or until it is no use to try again."""
    from pipeline.shards.batches import held_out
    from pipeline.supervision.attempts import Attempts
    from pipeline.supervision.faults import Fault, explained
    from pipeline.supervision.listening import Listener

    def log(rows: list[dict[str, float]]) -> None:
        record.log_all(_metrics(row) for row in rows)

    stored = inputs.manifest.rows("train")
    images = inputs.learning.epochs * (stored - int(held_out(stored, inputs.learning).sum()))
    task, attempts = _task(inputs, settings, folder, placement), Attempts(folder, last)
    with Progress("train", images, "images") as progress:
        listener = Listener(placement, progress, log, settings.patience)
        while True:
            fault, raised = None, None
            try:
                _attempt(task, last, placement, listener)
            except Exception as error:  # Ray Train raises what its workers raise, and much of its own
                fault, raised = explained(error), error
            last = checkpoints.newest(folder, inputs.fingerprint, _say)
            if last and last.epoch == inputs.learning.epochs:
                return last
            if listener.ended:
                fault = Fault(listener.ended, "", outside=not listener.hopeless)
            attempts.again(fault or Fault(f"{folder}: the training ended without its last checkpoint"), last, raised)


def _task(inputs: Inputs, settings: Machine, folder: Path, placement: cluster.Placement) -> Task:
    """What every worker is told, but for where it goes on from."""
    import ray

    from pipeline.training.worker import Task

    place = artifacts.locate(inputs.manifest, settings)
    first = inputs.origin.weights or initial.found(
        inputs.start, inputs.model, inputs.augmentation, inputs.learning, inputs.manifest, inputs.mean, place
    )
    return Task(
        model=inputs.model,
        augmentation=inputs.augmentation,
        learning=inputs.learning,
        manifest=inputs.manifest,
        mean=inputs.mean,
        shards=place,
        fingerprint=inputs.fingerprint,
        apart=placement.apart,
        threads=placement.threads,
        checkpoint_steps=settings.checkpoint_steps,
        first=ray.put(first),
        run=folder,
        code=provenance.here().record(),
    )


def _attempt(task: Task, last: Checkpoint | None, placement: cluster.Placement, listener: Listener) -> None:
    """Launches the workers once, and waits for them while the listener listens."""
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.runtime.rendezvous import Rendezvous
    from pipeline.supervision.listening import mailbox, release
    from pipeline.training.worker import loop

    class Trainer(TorchTrainer):
        """Ray's, but that SIGINT stays ours; and it can be ended from outside."""

        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

        def end(self) -> None:
            if self.controller is not None:
                ray.kill(self.controller)

    box = mailbox()
    known = [folder for folder in checkpoints.every(task.run) if last and folder.name <= last.folder.name]
    told = dataclasses.replace(task, mailbox=box, start=last.folder if last else None, known=tuple(reversed(known)))
    trainer = Trainer(
        loop,
        train_loop_config={"task": told},
        torch_config=Rendezvous(),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpu,
            resources_per_worker={"CPU": placement.threads, **({"GPU": 1} if placement.gpu else {})},
        ),
        run_config=RunConfig(  # (the types are those of Ray Train before its second version)
            name="ray",
            storage_path=str(task.run),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        with listener.attempt(box, trainer.end):
            trainer.fit()
    finally:
        release()
        ray.kill(box)


def finish(contents: dict[str, Any], inputs: Inputs, folder: Path) -> None:
    """From the last checkpoint's contents: the model, the history, and last the word that they are whole."""
    network = build(inputs.model, len(inputs.manifest.classes))
    network.load_state_dict(contents["weights"])
    with files.atomic(folder / "model.pt") as made, made.open("wb") as handle:
        save(
            handle,
            network,
            fingerprint=inputs.fingerprint,
            classes=[[synset.wnid, synset.words] for synset in inputs.manifest.classes],
            drawn=inputs.manifest.drawn,
            manifest=inputs.manifest.digest,
            mean=mean_to_subtract(_tensor(inputs.mean), inputs.augmentation),
            mean_kind=inputs.augmentation.mean,
        )
    for name in TABLES:
        _write_csv(contents["progress"][name.removesuffix(".csv")], folder / name)
    word = Word(
        id=uuid.uuid4().hex, digests={name: digests.of(folder / name) for name in MADE}, code=contents.get("code")
    )
    with files.atomic(folder / "finished.json") as made:
        made.write_text(word.text())


def finished(folder: Path) -> Word | None:
    """The word that the run in `folder` is finished; None if it is not, or what it made is not as it made it, and says so."""
    file = folder / "finished.json"
    if not file.exists():
        return None
    try:
        word = Word.read(file)
    except (ValueError, OSError) as error:
        _say(f"{error}; what it speaks of is made again from the last checkpoint")
        return None
    for name, digest in word.digests.items():
        if not (folder / name).exists() or digests.of(folder / name) != digest:
            _say(f"{folder / name}: gone, or not what the run made; it is made again from the last checkpoint")
            return None
    return word


def deliver(folder: Path) -> None:
    """Copies a finished run's results to where DVC expects them."""
    with files.atomic(MODEL) as file:
        shutil.copyfile(folder / "model.pt", file)
    with files.atomic(HISTORY) as made:
        made.mkdir()
        for name in TABLES:
            shutil.copyfile(folder / name, made / name)
        digests.seal(made)
    word = Word.read(folder / "finished.json")
    mark = _mark(folder)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{word.id} {_check(word.id)}\n")
    last = _rows(folder)[-1]
    print(f"train: {last['epoch'] + 1:.0f} epochs, top-1 error on the centre patches {last['val_top1_error']:.1%}")


def _delivered(folder: Path, word: Word) -> bool:
    """Whether this very run's results were put into the working copy before, and DVC has recorded them."""
    if not (_marked(_mark(folder)) == word.id and Path("dvc.lock").exists()):
        return False
    outs = params.load(Path("dvc.lock"))["stages"].get("train", {}).get("outs", [])
    with (folder / "model.pt").open("rb") as handle:
        md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return any(out["path"] == str(MODEL) and out.get("md5") == md5 for out in outs)


def _mark(folder: Path) -> Path:
    return machine.home() / stage.WORK / "delivered" / folder.name


def _marked(mark: Path) -> str:
    """The id in a mark; nothing if there is none, or it is damaged, which is said."""
    if not mark.is_file():
        return ""
    word, _, check = mark.read_bytes().decode(errors="replace").strip().partition(" ")
    if check not in ("", _check(word)):  # a mark of before has none
        _say(f"{mark}: damaged; the run's results are taken over as if they had never been here")
        return ""
    return word


def _check(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def _metrics(row: dict[str, float]) -> tuple[int, dict[str, float]]:
    """A row of history as MLflow's step and metrics; by epoch val/, by step train/."""
    names = {"loss": "train/loss", "top1_error": "train/top1_error", "images_per_second": "train/images_per_second"}
    metrics = {}
    for key, value in row.items():
        if split := next((split for split in ("val", "held_out") if key.startswith(f"{split}_")), ""):
            metrics[f"{split}/{key.removeprefix(f'{split}_')}"] = value
        elif key in names:
            metrics[names[key]] = value
        elif key in ("rate", "epoch"):
            metrics[key] = value
    return int(row["step"]), metrics


def _rows(folder: Path) -> list[dict[str, float]]:
    """The history of a finished run, by step and then by epoch."""
    rows = []
    for name in TABLES:
        with (folder / name).open(newline="") as handle:
            rows += [{key: float(value) for key, value in row.items()} for row in csv.DictReader(handle)]
    return rows


def _write_csv(rows: list[dict[str, float]], file: Path) -> None:
    with files.atomic(file) as made, made.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]) if rows else ["step"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _tensor(mean: Mean) -> Any:
    import torch

    return torch.from_numpy(mean.image_CHW)
