"""Shards and mean → a trained network (§3–§5).

Run:    dvc repro train
Reads:  data/shards/, data/mean.npz, and the network that `start` names
Writes: data/model.pt, data/history/{steps,epochs}.csv; work in progress in runs/<fingerprint>/
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
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from alexnet.augmentation import Augmentation, subtracted
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.model import Model, build, save
from pipeline import cluster, machine, params, shards, stage, start, tracking
from pipeline.machine import Machine
from pipeline.progress import Progress
from pipeline.start import Origin, Start
from pipeline.tables import Manifest

MODEL = Path("data/model.pt")
HISTORY = Path("data/history")


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


def run() -> None:
    """Trains, or takes over what a run with the same fingerprint has left."""
    settings = machine.read()
    inputs = read_inputs(settings)
    folder = machine.runs(settings) / inputs.fingerprint
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if finished(folder) and _delivered(folder):
            # what it made was here once; that the stage runs again means that it is to be made anew
            print(f"train: {folder} was finished and had its results here; it is removed, and made anew")
            shutil.rmtree(folder)
        _say_code(folder)
        done = finished(folder)
        with tracking.run(settings, inputs.fingerprint, inputs.params, inputs.manifest, "train", adopt=done) as record:
            record.tag("start", inputs.origin.said or "drawn")
            if done:
                print(f"train: run {inputs.fingerprint} is finished, in {folder}; its results are taken over")
                record.log_all(_metrics(row) for row in _rows(folder))
            else:
                fit(inputs, settings, folder, record)
        if cluster.in_job() and "DVC_STAGE" not in os.environ:
            print(f"train: the results are in {folder}; dvc repro takes them over")
        else:
            deliver(folder)


def read_inputs(settings: Machine) -> Inputs:
    """Reads and checks everything before any work is done."""
    model, section = params.read("model", Model), params.read("start", Start)
    augmentation, learning = params.read("augmentation", Augmentation), params.read("learning", Learning)
    manifest, mean = shards.inputs(settings)
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
        origin=start.origin(section, model, manifest, settings),
    )


def fit(inputs: Inputs, settings: Machine, folder: Path, record: tracking.Run) -> None:
    """Launches the workers and leaves a finished run in `folder`."""
    with cluster.connected(settings):
        import ray
        from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from pipeline.batches import held_out
        from pipeline.rendezvous import Rendezvous
        from pipeline.train_loop import Mailbox, Task, loop, mend, read, refuse_others

        refuse_others(folder, inputs.fingerprint)
        placement = cluster.placement(settings, inputs.model.divisible)
        if placement.replicas > inputs.learning.streams:
            raise ValueError(
                f"params.yaml: learning.streams: {inputs.learning.streams} streams cannot feed "
                f"{placement.replicas} replicas; it has to be at least as many"
            )
        print(f"train: run {inputs.fingerprint}, {placement}")
        if inputs.origin.said:
            print(f"train: begins with {inputs.origin.said}")
        place = shards.locate(inputs.manifest, settings)
        first = inputs.origin.weights or start.found(
            inputs.start,
            inputs.model,
            inputs.augmentation,
            inputs.learning,
            inputs.manifest,
            inputs.mean,
            place,
        )
        mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        task = Task(
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
            start=mend(folder),
            mailbox=mailbox,
        )
        trainer = TorchTrainer(
            loop,
            train_loop_config={"task": task},
            torch_config=Rendezvous(),
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=placement.gpu,
                resources_per_worker={"CPU": placement.threads, **({"GPU": 1} if placement.gpu else {})},
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # (the types are those of Ray Train before its second version)
                name=folder.name,
                storage_path=str(folder.parent),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                failure_config=FailureConfig(max_failures=3, controller_failure_limit=3),  # type: ignore[call-arg]
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        stored = inputs.manifest.rows("train")
        images = inputs.learning.epochs * (stored - int(held_out(stored, inputs.learning).sum()))
        with _listening(mailbox, record, images), _plainly():
            result = trainer.fit()
        if result.checkpoint is None:
            raise RuntimeError(f"{folder}: the training ended without a checkpoint")
        contents = read(result.checkpoint)
    finish(contents, inputs, folder)
    record.log_all(_metrics(row) for row in _rows(folder))


def finish(contents: dict[str, Any], inputs: Inputs, folder: Path) -> None:
    """From the last checkpoint's contents: the model, the history, and last the word that they are whole."""
    network = build(inputs.model, len(inputs.manifest.classes))
    network.load_state_dict(contents["weights"])
    made = folder / "model.pt.part"
    with made.open("wb") as handle:
        save(
            handle,
            network,
            fingerprint=inputs.fingerprint,
            classes=[[synset.wnid, synset.words] for synset in inputs.manifest.classes],
            drawn=inputs.manifest.drawn,
            manifest=inputs.manifest.digest,
            mean=subtracted(_tensor(inputs.mean), inputs.augmentation),
            mean_kind=inputs.augmentation.mean,
        )
    stage.put(made, folder / "model.pt")
    for name in ("steps", "epochs"):
        _write_csv(contents["progress"][name], folder / f"{name}.csv")
    digests = {name: _digest(folder / name) for name in ("model.pt", "steps.csv", "epochs.csv")}
    made = folder / "finished.json.part"
    made.write_text(json.dumps({"id": uuid.uuid4().hex, "digests": digests}, indent=1))
    stage.put(made, folder / "finished.json")


def finished(folder: Path) -> bool:
    """Whether the run in `folder` is finished and what it made is as it made it."""
    word = folder / "finished.json"
    if not word.exists():
        return False
    digests: dict[str, str] = json.loads(word.read_text()).get("digests", {"": ""})
    return all((folder / name).exists() and _digest(folder / name) == digest for name, digest in digests.items())


def deliver(folder: Path) -> None:
    """Copies a finished run's results to where DVC expects them."""
    with stage.whole(MODEL) as file:
        shutil.copyfile(folder / "model.pt", file)
    with stage.whole(HISTORY) as made:
        made.mkdir()
        for name in ("steps.csv", "epochs.csv"):
            shutil.copyfile(folder / name, made / name)
    mark = _mark(folder)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(_id(folder))
    last = _rows(folder)[-1]
    print(f"train: {last['epoch'] + 1:.0f} epochs, top-1 error on the centre patches {last['val_top1_error']:.1%}")


def _id(folder: Path) -> str:
    """Of a finished run: two with the same fingerprint are told apart by it."""
    return str(json.loads((folder / "finished.json").read_text())["id"])


def _say_code(folder: Path) -> None:
    """Records which code began a run, and says so if other code goes on with it: that is no fault, but may be one."""
    files = [*sorted(Path("alexnet").glob("*.py")), Path("pipeline/batches.py"), Path("pipeline/train_loop.py")]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    record = folder / "code"
    if not record.exists():
        folder.mkdir(exist_ok=True)
        record.write_text(code)
    elif record.read_text() != code:
        print(f"train: {folder} was begun by other code than this, and is gone on with. Remove it to begin anew")


def _delivered(folder: Path) -> bool:
    """Whether this very run's results were put into the working copy before, and DVC has recorded them."""
    mark = _mark(folder)
    if not (mark.exists() and mark.read_text() == _id(folder) and Path("dvc.lock").exists()):
        return False
    outs = params.load(Path("dvc.lock"))["stages"].get("train", {}).get("outs", [])
    with (folder / "model.pt").open("rb") as handle:
        md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return any(out["path"] == str(MODEL) and out.get("md5") == md5 for out in outs)


def _mark(folder: Path) -> Path:
    return machine.home() / stage.WORK / "delivered" / folder.name


@contextmanager
def _listening(mailbox: Any, record: tracking.Run, images: int) -> Iterator[None]:
    """While the block runs, what the workers report goes to MLflow and to the terminal as it comes."""
    import ray

    over = threading.Event()
    faults: list[Exception] = []

    def listen() -> None:
        with Progress("train", images, "images") as progress:
            begun = False
            while True:
                last = over.wait(1.0)
                rows, done, first = ray.get(mailbox.take.remote())
                if first is not None and not begun:
                    begun = True
                    progress.begin(first)
                record.log_all(_metrics(row) for row in rows)
                loss = next((f"loss {row['loss']:.3f}" for row in reversed(rows) if "loss" in row), "")
                progress.add(done - progress.done, loss)
                if last:
                    return

    def guarded() -> None:
        try:
            listen()
        except Exception as error:  # it is raised where the training ends: the metrics are in the checkpoint as well
            faults.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    if faults:
        logging.getLogger(__name__).warning("while training, metrics were not logged: %s", faults[0])


@contextmanager
def _plainly() -> Iterator[None]:
    """Lets out what a worker said of the user's world, without Ray's account of how it came here."""
    from ray.train import WorkerGroupError

    try:
        yield
    except WorkerGroupError as error:
        for fault in error.worker_failures.values():
            if isinstance(fault, (ValueError, OSError, FloatingPointError)):
                raise ValueError(str(fault)) from error
        raise


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
    for name in ("steps.csv", "epochs.csv"):
        with (folder / name).open(newline="") as handle:
            rows += [{key: float(value) for key, value in row.items()} for row in csv.DictReader(handle)]
    return rows


def _write_csv(rows: list[dict[str, float]], file: Path) -> None:
    made = file.with_suffix(".part")
    with made.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]) if rows else ["step"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    stage.put(made, file)


def _tensor(mean: Mean) -> Any:
    import torch

    return torch.from_numpy(mean.image_CHW)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
