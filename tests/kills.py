"""Kills every stage again and again, at random moments, and compares its outs with those of an undisturbed run.

`make kills`, or `python tests/kills.py --kills 30 --seed 0 [--stage train]`. In a temporary copy of this working copy,
with the smallest sample, every stage runs once undisturbed. Then, for every kill: what the stage made and all its work in
progress is deleted, and dvc.lock forgets it, so that it is as if it had never run; `dvc repro` starts it; after a random
share of the time that it took, one of these is ended by SIGKILL:

    stage    the stage's own process
    dvc      the dvc above it
    worker   a Ray worker below it, for stages that have some
    tree     all of them at once

Then `dvc repro` again, until it ends well, `TRIES` times at most. Now dvc.lock has to be as it was, hash for hash; soon
after, no process of all this may be there (`PATIENCE`); and no MLflow run may be left RUNNING.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]

STAGES = ("download", "resize", "mean", "train", "evaluate", "report")
WITH_WORKERS = ("resize", "mean", "train", "evaluate")

TRIES = 3
"""Most reruns after a kill; the first may fail with a message because of the killed run's remains."""

PATIENCE, AGENTS = 15.0, 75.0
"""Seconds after the rerun in which processes may still end. Ray's two agents of a node try for a minute to tell the dead
driver that the node is dead, which cannot be set; they hold nothing."""

LIMIT = 900.0
"""Seconds after which a command counts as hanging."""

CHANGES = {
    "source": {"train_images": 20, "val_images": 10},
    "resize": {"images_per_shard": 8, "max_rejected": 0.9},
    "model": {"width": 0.0625},
    "learning": {"epochs": 3, "batch_size": 6, "log_steps": 1, "streams": 3, "rate_falls": [2]},
    "results": {"neighbours": 2},
    "report": {"pictures": 2, "queries": 2},
}
"""Changes to params.yaml: the fewest pictures, the smallest network."""

MACHINE = "devices: cpu\nworkers: 2\ncheckpoint_steps: 2\n"

ALSO = {
    "download": ["data/store"],
    "train": ["runs", "work/delivered"],
}
"""Stage → its files outside its outs and work/."""


RECORD = re.compile(rb'<section class="record">.*?</section>', re.DOTALL)
"""The sections of the report's page that differ from run to run: when, where, how fast, and the run before."""


class WrongError(Exception):
    """The outs differ from those of the undisturbed run, or something is left over."""


@dataclass
class Timing:
    """The times of an undisturbed stage, in seconds from the start of dvc."""

    stage: float = 0.0
    """Seconds until the stage's process started."""
    worker: float = 0.0
    """Seconds until the stage's first Ray worker started; 0: it has none."""
    end: float = 0.0


@dataclass
class Copy:
    """The temporary working copy."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A mark in the environment of every process that is started from the copy, and of its descendants."""

    def environment(self) -> dict[str, str]:
        """The environment, without the variables of this project, DVC, MLflow and Ray."""
        ours = ("ALEXNET_", "DVC_", "MLFLOW_", "RAY_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1", "ALEXNET_KILLS": self.mark}

    def start(self, *words: str) -> psutil.Popen:
        """Starts `dvc` with these arguments; its output goes to log.txt."""
        with (self.folder / "log.txt").open("ab") as log:
            log.write(f"\n$ dvc {' '.join(words)}\n".encode())
            log.flush()
            return psutil.Popen(
                [str(Path(sys.executable).with_name("dvc")), *words],
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def run(self, *words: str) -> bool:
        """Runs `dvc` with these arguments; whether it succeeded."""
        try:
            return bool(self.start(*words).wait(LIMIT) == 0)
        except psutil.TimeoutExpired:
            raise WrongError(f"dvc {' '.join(words)} has not ended after {LIMIT:g} seconds") from None

    def processes(self) -> list[psutil.Process]:
        """All live processes that were started from the copy, directly or not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ALEXNET_KILLS") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def outs(self) -> dict[str, dict[str, Any]]:
        """The outs of each stage in dvc.lock."""
        stages = self.lock()["stages"]
        outs = {name: {out["path"]: dict(out) for out in stages.get(name, {}).get("outs", [])} for name in STAGES}
        if "report" in outs["report"]:
            outs["report"]["report"] = self.report()
        return outs

    def report(self) -> dict[str, str]:
        """The digest of each file of the report; those sections of its page that tell of one training are left out."""
        files = {file.name: file.read_bytes() for file in sorted((self.folder / "report").iterdir())}
        files["index.html"] = RECORD.sub(b"", files["index.html"])
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    def lock(self) -> Any:
        """dvc.lock."""
        return YAML().load(self.folder / "dvc.lock")

    def forget(self, stage: str) -> None:
        """Removes the stage's outs, its work in progress, and its entry in dvc.lock."""
        lock = self.lock()
        paths = [out["path"] for out in lock["stages"].pop(stage)["outs"]]
        with (self.folder / "dvc.lock").open("w") as handle:
            YAML().dump(lock, handle)
        for path in [*paths, *ALSO.get(stage, []), f"work/{stage}", "work/outs", ".dvc/cache/runs"]:
            discard(self.folder / path)

    def running(self) -> int:
        """The MLflow runs with the status RUNNING."""
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            (count,) = database.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING'").fetchone()
        return int(count)


def main() -> int:
    """Runs the program; returns 1 if anything differed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=30, help="how many, over all stages")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the targets")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be given again")
    arguments = parser.parse_args()
    stages = tuple(arguments.stage or STAGES)
    lots = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="alexnet-kills-"))
    copy = Copy(folder)
    wrong: list[str] = []
    reruns = 0
    try:
        fill(folder)
        timings, outs = undisturbed(copy)
        for number in range(arguments.kills):
            stage = stages[number % len(stages)]
            line = f"kill {number + 1} of {arguments.kills}: {stage}"
            try:
                what, tries = one(copy, stage, timings[stage], outs, lots)
                reruns += tries
                print(f"{line}, {what}; {tries} rerun{'s' * (tries > 1)}, all equal", flush=True)
            except WrongError as error:
                wrong.append(f"{line}: {error}")
                print(f"{line}: WRONG: {error}", flush=True)
                if not recover(copy):
                    break
    finally:
        for process in copy.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
    print(
        f"kills: {arguments.kills} kills with seed {arguments.seed} in {', '.join(stages)}; {reruns} reruns; "
        + (f"{len(wrong)} WRONG, see {folder}" if wrong else "outs equal, no process and no RUNNING run left")
    )
    if not wrong:
        shutil.rmtree(folder)
    return bool(wrong)


def fill(folder: Path) -> None:
    """Copies all files that git tracks or would add, sets the smallest parameters, and makes the copy a repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if name and name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "machine.yaml").write_text(MACHINE)
    params = YAML().load(folder / "params.yaml")
    for section, changes in CHANGES.items():
        params[section].update(changes)
    with (folder / "params.yaml").open("w") as handle:
        YAML().dump(params, handle)
    with (folder / ".gitignore").open("a") as handle:
        handle.write("/log.txt\n")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "kills"]):
        names_of = ["-c", "user.name=kills", "-c", "user.email=kills@localhost"]
        subprocess.run(["git", *names_of, *words], cwd=folder, check=True)


def undisturbed(copy: Copy) -> tuple[dict[str, Timing], dict[str, dict[str, Any]]]:
    """Runs every stage once; returns the stages' times and outs."""
    timings = {}
    for stage in STAGES:
        begun, timing = time.monotonic(), Timing()
        process = copy.start("repro", "--single-item", stage)
        while process.poll() is None:
            now = time.monotonic() - begun
            if not timing.stage and stage_of(process, stage):
                timing.stage = now
            if not timing.worker and workers_of(process):
                timing.worker = now
            time.sleep(0.05)
        timing.end = time.monotonic() - begun
        if process.returncode != 0:
            raise SystemExit(f"kills: undisturbed, {stage} fails; see {copy.folder / 'log.txt'}")
        timings[stage] = timing
        print(f"undisturbed: {stage}, {timing.end:.1f} s", flush=True)
    if not copy.run("repro"):
        raise SystemExit(f"kills: undisturbed, dvc repro fails; see {copy.folder / 'log.txt'}")
    if copy.running() or left(copy):
        raise SystemExit("kills: undisturbed, a process or a RUNNING run is left")
    return timings, copy.outs()


def one(copy: Copy, stage: str, timing: Timing, outs: dict[str, Any], lots: random.Random) -> tuple[str, int]:
    """One kill and the reruns after it; returns a line on both. `WrongError` if the outs differ."""
    targets = ["stage", "dvc", "tree", *(["worker"] if stage in WITH_WORKERS else [])]
    for _ in range(10):  # a machine that is faster than before may be done too early
        target, share = lots.choice(targets), lots.random()
        copy.forget(stage)
        if kill(copy, stage, target, share, timing):
            break
    else:
        raise WrongError("the stage was always done before it was killed")
    tries = 1
    while not copy.run("repro"):
        tries += 1
        if tries > TRIES:
            raise WrongError(f"{target} at {share:.0%}: dvc repro still fails, see {copy.folder / 'log.txt'}")
    compare(outs, copy.outs(), f"{target} at {share:.0%}")
    if copy.running():
        raise WrongError(f"{target} at {share:.0%}: an MLflow run is left RUNNING")
    there = left(copy)
    if there:
        raise WrongError(f"{target} at {share:.0%}: left are {', '.join(there)}")
    return f"{target} at {share:.0%}", tries


def kill(copy: Copy, stage: str, target: str, share: float, timing: Timing) -> bool:
    """Starts the stage and kills the target after a share of its usual time; False if the stage ended before."""
    process = copy.start("repro", "--single-item", stage)
    find: dict[str, Callable[[], list[psutil.Process]]] = {
        "stage": lambda: stage_of(process, stage),
        "dvc": lambda: [process],
        "tree": lambda: [process],
        "worker": lambda: workers_of(process)[-1:],
    }
    first = {"stage": timing.stage, "worker": timing.worker}.get(target, 0.0)
    if not wait(process, find[target]):
        return False
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(share * (timing.end - first))
        return False
    if not wait(process, find[target]):
        return False
    victims = [*process.children(recursive=True), process] if target == "tree" else find[target]()
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    if target in ("dvc", "tree"):
        process.wait(LIMIT)
        return True  # and now, while what is below it may still be ending, dvc repro again
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(LIMIT)
    return True


def wait(process: psutil.Popen, find: Callable[[], list[psutil.Process]]) -> bool:
    """Waits until a condition holds; False if the process ended before."""
    while process.poll() is None:
        if find():
            return True
        time.sleep(0.02)
    return False


def below(process: psutil.Popen) -> Iterator[tuple[psutil.Process, list[str]]]:
    """The descendants of a process, with their command lines."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                yield child, child.cmdline()


def stage_of(process: psutil.Popen, stage: str) -> list[psutil.Process]:
    """The stage's guard and its own process; empty before they start."""
    return [child for child, words in below(process) if words[1:] == ["-m", "pipeline", stage]]


def workers_of(process: psutil.Popen) -> list[psutil.Process]:
    """The stage's Ray workers; those with a task or an actor come last."""
    named = [(words[0], child) for child, words in below(process) if words and words[0].startswith("ray::")]
    workers = [(name != "ray::IDLE", name, child.pid, child) for name, child in named if "Agent" not in name]
    return [child for *_, child in sorted(workers, key=lambda row: row[:3])]


def compare(before: dict[str, Any], after: dict[str, Any], when: str) -> None:
    """`WrongError` with the first out that differs."""
    for stage in STAGES:
        for path in before[stage].keys() | after[stage].keys():
            then, now = before[stage].get(path), after[stage].get(path)
            if then != now:
                raise WrongError(f"{when}: {path} is {now}, undisturbed {then}")


def left(copy: Copy) -> list[str]:
    """This copy's processes that still run after `PATIENCE`; returns early if none runs."""
    begun = time.monotonic()
    while there := {process: " ".join(words_of(process)) for process in copy.processes()}:
        late = time.monotonic() - begun
        long = [process for process, words in there.items() if late > (AGENTS if "Agent" in words else PATIENCE)]
        if long:
            return [f"{process.pid} {there[process][:80]}" for process in long]
        time.sleep(0.5)
    return []


def words_of(process: psutil.Process) -> list[str]:
    """A process's command line; empty if the process has ended."""
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def recover(copy: Copy) -> bool:
    """Ends all processes and runs all stages, for the next kill; False if that fails."""
    for process in copy.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    try:
        return any(copy.run("repro") for _ in range(TRIES))
    except WrongError:
        return False


def discard(path: Path) -> None:
    """Removes a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
