"""Shards and mean → a trained network (§3–§5).

Run:    dvc repro train
Reads:  data/shards/, data/mean.npz, and the network that `start` names
Writes: data/model.pt, data/history/{steps.csv,epochs.csv,SHA256SUMS}; work in progress in runs/<fingerprint>/
Takes:  model, start, augmentation, learning
Expect: the sample, 4 million parameters: 3 minutes on 2 cores
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("train")

import hashlib
import os
from pathlib import Path
from typing import Any

import ray

from alexnet.augmentation import Augmentation
from alexnet.dataset import Mean
from alexnet.learning import Learning
from alexnet.network import Model
from pipeline.driver import launch, provenance, session
from pipeline.runtime import cluster, machines, params, stage
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts
from pipeline.shards.batches import held_out
from pipeline.tracking import runs
from pipeline.training import checkpoints, history, initial, looks, run_folder, worker
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.run_folder import say
from pipeline.training.spec import Start, TrainingSpec


def main() -> None:
    """Runs the stage as a program."""
    stage.main("train", run)


def run() -> None:
    """Trains, or resumes or reuses the run with the same fingerprint."""
    machine = machines.read()
    spec = read_spec(machine)
    folder = machines.runs(machine) / spec.fingerprint
    with run_folder.locked(folder, limit=3 * machine.patience):
        finished = run_folder.reusable(folder, spec, lambda: _looks(spec, machine))
        last = None if finished else checkpoints.newest_whole_checkpoint(folder, spec.fingerprint, say)
        reached = (finished.code, "its end") if finished else (last.code, f"step {last.step}") if last else None
        policy = machine.other_code
        resumed = provenance.resumed_by_other_code(*reached, folder, policy, say) if reached else ""
        adopt = finished is not None
        with runs.run(machine, spec.fingerprint, spec.params, spec.manifest, "train", adopt=adopt) as record:
            record.tag("start", spec.first.summary or "drawn")
            record.tag("code.resumed_with" if resumed else "code", resumed or provenance.here().digest)
            if finished:
                print(f"train: run {spec.fingerprint} is finished, in {folder}; its results are taken over")
            else:
                fit(spec, machine, folder, record, last)
            record.log_all(map(history.metrics, history.read(folder)))
        if cluster.in_job() and "DVC_STAGE" not in os.environ:
            print(f"train: the results are in {folder}; dvc repro takes them over")
        else:
            run_folder.deliver(folder)


def read_spec(machine: Machine) -> TrainingSpec:
    """Reads and checks params.yaml, the manifest, the mean and first weights. `ValueError` or `OSError` if one is unusable."""
    model, start = params.read("model", Model), params.read("start", Start)
    augmentation, learning = params.read("augmentation", Augmentation), params.read("learning", Learning)
    manifest, mean = artifacts.inputs(machine)
    for split, kind in (("train", "training"), ("val", "validation")):
        if manifest.rows(split) == 0:
            raise ValueError(f"data/shards has no {kind} picture. Run: dvc repro --force --single-item resize")
    return TrainingSpec(
        model=model,
        start=start,
        augmentation=augmentation,
        learning=learning,
        manifest=manifest,
        mean_digest=hashlib.sha256(mean.read_bytes()).hexdigest(),
        mean=Mean.load(mean),
        first=initial.read_pretrained(start, model, manifest, machine),
    )


def fit(spec: TrainingSpec, machine: Machine, folder: Path, record: runs.Run, last: Checkpoint | None) -> None:
    """Trains on the cluster, resuming from the checkpoint `last` if there is one, and writes the results to `folder`."""
    with cluster.connected(machine):
        placement = cluster.placement(machine, spec.model.divisible)
        if placement.replicas > spec.learning.streams:
            raise ValueError(
                f"params.yaml: learning.streams: {spec.learning.streams} streams cannot feed "
                f"{placement.replicas} replicas; it has to be at least as many"
            )
        print(f"train: run {spec.fingerprint}, {placement}")
        if spec.first.summary:
            print(f"train: begins with {spec.first.summary}")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.clear(folder)
        with session.recorded(folder, record.run_id, placement):
            last = _launch(spec, machine, folder, record, last, placement)
            run_folder.finish(checkpoints.read(last.folder), spec, folder, _looks(spec, machine))


def _looks(spec: TrainingSpec, machine: Machine) -> dict[str, Any] | None:
    return looks.of_training(spec.manifest, artifacts.locate(spec.manifest, machine))


def _launch(
    spec: TrainingSpec,
    machine: Machine,
    folder: Path,
    record: runs.Run,
    last: Checkpoint | None,
    placement: cluster.Placement,
) -> Checkpoint:
    shards = artifacts.locate(spec.manifest, machine)
    task = worker.Task(
        spec=ray.put(initial.with_clusters(spec, shards)),
        columns=spec.model.columns,
        apart=placement.apart,
        shards=shards,
        threads=placement.threads,
        checkpoint_steps=machine.checkpoint_steps,
        run=folder,
        code=provenance.here().record(),
    )
    stored = spec.manifest.rows("train")
    return launch.until_the_last_checkpoint(
        worker.loop,
        task,
        last,
        placement,
        fingerprint=spec.fingerprint,
        epochs=spec.learning.epochs,
        images=spec.learning.epochs * (stored - int(held_out(stored, spec.learning).sum())),
        log=lambda rows: record.log_all(map(history.metrics, rows)),
        patience=machine.patience,
        say=say,
    )
