"""Answers to any number of pictures: Ray Data runs the network over parts of them, which become one Parquet table.

A part is a fixed slice of the list of pictures, and one row of Ray Data's data set; a worker answers it and writes its file. So
the rows that pass through Ray are few and small, and what Ray Data does not promise (file names, order, the last row) is not
asked of it. Finished parts stay beside the table until it is whole, so that a stopped run resumes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inference import answers, inputs
from pipeline.inference.inputs import Found, Item
from pipeline.runtime import cluster, digests, edges, files
from pipeline.runtime.machines import Machine
from pipeline.runtime.paths import AnyPath
from pipeline.runtime.progress import Progress
from pipeline.shards import tables

VERSION = 1
"""Increase this when a change of code changes an answer: parts of older code are then not reused."""

SMALL, LARGE, MANY = 32, 256, 8192
"""Pictures in a part; in a part of more than `MANY` pictures. It depends on their number alone, so that any machine resumes."""

GROUP = 128
"""Rows in a row group of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that decides the answers to one list of pictures, and where they are written."""

    items: Sequence[Item]
    model: bytes
    views: Any
    top: int
    table: AnyPath
    """The table: a Parquet file."""

    @property
    def key(self) -> str:
        """SHA-256 of what decides the bytes of the table. A file that was changed since is another picture."""
        pictures = [(item.name, item.size, item.changed) for item in self.items]
        decides = [VERSION, hashlib.sha256(self.model).hexdigest(), self.views, self.top, pictures]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    @property
    def work(self) -> AnyPath:
        """The folder of the finished parts, beside the table."""
        return self.table.parent / f"{self.table.name}.parts" / self.key[:16]

    def parts(self) -> list[dict[str, Any]]:
        """The parts, as rows of a data set: the number of a part, and its first item and the one behind its last."""
        size = LARGE if len(self.items) > MANY else SMALL
        edges = [*range(0, len(self.items), size), len(self.items)]
        return [{"part": number, "first": a, "end": b} for number, (a, b) in enumerate(itertools.pairwise(edges))]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many pictures of a table have answers, and how many were rejected."""

    kept: int
    rejected: int


def schema(top: int) -> pa.Schema:
    """The schema of the table: path and bytes of the file, `top` guesses, the reason if rejected, and warnings."""
    guesses = {
        f"{name}_{rank + 1}": kind
        for rank in range(top)
        for name, kind in (("wnid", pa.string()), ("name", pa.string()), ("probability", pa.float32()))
    }
    return pa.schema(
        {"path": pa.string(), "bytes": pa.int64()} | guesses | {"reason": pa.string(), "warnings": pa.string()}
    )


def write(found: Found, model: bytes, views: Any, top: int, table: AnyPath, machine: Machine) -> Counts:
    """Writes the table of the answers to all pictures found, in their order; one row each. Resumes a stopped run.

    `OSError` or `ValueError` if a worker cannot read what was found here, or the pictures' bytes cannot be read by others.
    """
    unsuited = next((item for item in found.items if item.where == inputs.STDIN), None)
    if unsuited is not None:
        raise ValueError("- cannot be read by workers. Give the picture as a file, or leave --parquet out")
    items = [dataclasses.replace(item, where=_absolute(item.where)) for item in found.items]
    job = Job(items=items, model=model, views=views, top=top, table=_absolute(table))
    _keep_only(job)
    done = {part["part"]: counts for part in job.parts() if (counts := finished(job.work, part["part"]))}
    with Progress("predict", len(items), "pictures") as progress:
        progress.begin(sum(counts.kept + counts.rejected for counts in done.values()))
        missing = [part for part in job.parts() if part["part"] not in done]
        if missing:
            with cluster.connected(machine):
                for number, counts in _each(job, missing, machine):
                    done[number] = counts
                    progress.add(counts.kept + counts.rejected)
    total = Counts(sum(each.kept for each in done.values()), sum(each.rejected for each in done.values()))
    assert total.kept + total.rejected == len(items), (total, len(items))
    _join(job)
    return total


def _absolute(where: Any) -> Any:
    return where.absolute() if isinstance(where, Path) else where


def _keep_only(job: Job) -> None:
    """Removes the parts of other lists of pictures, other networks and older code for the same table."""
    folder = job.work.parent
    names = {name.split("/")[0] for name, _ in files.listed(folder)} if folder.is_dir() else set()
    for name in names - {job.work.name}:
        files.discard(folder / name)


def finished(work: AnyPath, number: int) -> Counts | None:
    """The counts of a part that was finished earlier; None if there is none, or if its bytes have changed."""
    try:
        facts = json.loads(digests.unstamped(work / f"{number:06}.json"))
        sound = digests.of(work / f"{number:06}.parquet") == facts["sha256"]
        return Counts(facts["kept"], facts["rejected"]) if sound else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def work(part: dict[str, Any], job: list[Any], device: str) -> dict[str, Any]:
    """Answers one part, in a worker of Ray Data. It is idempotent: the part of a lost node is answered again elsewhere.

    `job`: a reference to the job in Ray's object store, in a list, since Ray would fetch a plain one for each part.
    """
    try:
        known, predictor = _loaded(job[0], device)
        counts = finished(known.work, part["part"]) or answer_part(known, predictor, part)
    except (OSError, ValueError) as error:  # what a user can mend; Ray Data would wrap it in pages
        return {"part": part["part"], "kept": 0, "rejected": 0, "error": str(error)}
    return {"part": part["part"], "kept": counts.kept, "rejected": counts.rejected, "error": ""}


@functools.lru_cache(maxsize=1)
def _loaded(job: Any, device: str) -> tuple[Job, Any]:
    """The job and its network, which a worker loads once."""
    import ray
    import torch

    from pipeline.inference.predictor import Predictor

    torch.set_num_threads(1)  # there is a worker for each core, and the number of threads affects the last bits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    known: Job = ray.get(job)
    return known, Predictor.load(known.model, device=device)


def answer_part(job: Job, predictor: Any, part: dict[str, Any]) -> Counts:
    """Answers the pictures of one part, writes its file and then its mark, and returns the counts."""
    size = LARGE if predictor.mean_CHW.device.type == "cuda" else SMALL
    some = job.items[part["first"] : part["end"]]
    replies = [
        reply if isinstance(reply, answers.Answer) else reply.answer
        for reply in answers.each(some, _seen_here, predictor, job.views, job.top, size)
    ]
    rows = pa.Table.from_pylist([answers.row(reply, job.top) for reply in replies], schema=schema(job.top))
    assert rows.num_rows == len(some), (rows.num_rows, part)
    kept = sum(not reply.reason for reply in replies)
    number, written = part["part"], io.BytesIO()
    pq.write_table(rows, written, compression="zstd", write_page_checksum=True)
    facts = {"kept": kept, "rejected": len(replies) - kept, "sha256": hashlib.sha256(written.getvalue()).hexdigest()}
    with files.atomic(job.work / f"{number:06}.parquet") as partial:
        partial.write_bytes(written.getvalue())
    # written last: this file marks the part as finished
    with files.atomic(job.work / f"{number:06}.json") as partial:
        partial.write_text(digests.stamped(json.dumps(facts)))
    return Counts(kept, len(replies) - kept)


def _seen_here(item: Item) -> bytes:
    """The bytes of an item; `OSError` if a file that was found is not seen by this worker's node."""
    if isinstance(item.where, Path) and item.size is not None and not item.where.parent.exists():
        raise OSError(
            f"{item.where.parent}: not there on the node {os.uname().nodename}. On a cluster, pictures and table have to lie "
            "where all nodes see them: a shared folder, or s3://bucket/folder"
        )
    return inputs.read(item)


def _each(job: Job, missing: Sequence[dict[str, Any]], machine: Machine) -> Iterator[tuple[int, Counts]]:
    """Answers the missing parts on the cluster; yields each part's number and counts as it is done.

    Raises `OSError` with what a worker could not do; `TimeoutError` if no part is done in ten times the patience of machine.yaml.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = cluster.gpus(machine)
    workers = min(len(missing), gpus) if gpus else cluster.workers(machine, len(missing))
    answer: Any = work  # Ray's types know no function with more arguments
    # Tasks, not actors: Ray's core calls it an error that actors of Ray Data have their arguments in its object store. With
    # max_calls=0 a worker goes on with its network; by default Ray ends it after each task on a GPU
    done = ray.data.from_items(list(missing), override_num_blocks=len(missing)).map(
        answer,
        fn_kwargs={"job": [ray.put(job)], "device": "cuda" if gpus else "cpu"},
        compute=ray.data.TaskPoolStrategy(size=workers),
        num_cpus=0 if gpus else min(1.0, cluster.cpus() / workers),
        num_gpus=1 if gpus else 0,
        max_calls=0,
    )
    for row in _in_time(done, 10 * machine.patience):
        if row["error"]:
            raise OSError(f"{row['error']}. Finished parts are kept")
        yield int(row["part"]), Counts(int(row["kept"]), int(row["rejected"]))


def _in_time(rows: Any, limit: float) -> Iterator[dict[str, Any]]:
    """The rows of a data set; `TimeoutError` if the next one does not come in `limit` seconds, which Ray Data does not limit."""
    arrived: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()

    def consume() -> None:
        try:
            for row in rows.iter_rows():
                arrived.put(row)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=consume, daemon=True).start()
    while True:
        try:
            row = arrived.get(timeout=limit)
        except queue.Empty:
            raise TimeoutError(
                f"no part of the pictures was done in {limit:g} s. Finished parts are kept: try again"
            ) from None
        if row is None:
            return
        if isinstance(row, BaseException):
            raise _cause(row)
        yield row


def _cause(error: BaseException) -> BaseException:
    """The error of a data set in plain words, if it came from outside: memory that ran out, or a node that was lost."""
    from ray.exceptions import RayError, RayTaskError, UserCodeException

    if killed := cluster.out_of_memory(str(error)):
        return OSError("\n".join(killed))
    if isinstance(error, RayError) and not isinstance(error, RayTaskError | UserCodeException):  # those are bugs
        return OSError(f"Ray ended the work: {edges.essential(str(error))}. Finished parts are kept: try again")
    return error


def _join(job: Job) -> None:
    """Writes the table from the parts, in their order, by row groups; then removes the parts."""
    kind, waiting = schema(job.top), list[pa.Table]()
    with (
        files.atomic(job.table) as partial,
        pq.ParquetWriter(partial, kind, compression="zstd", write_page_checksum=True) as table,
    ):
        for part in job.parts():
            waiting.append(tables.read(job.work / f"{part['part']:06}.parquet"))
            if sum(each.num_rows for each in waiting) >= GROUP:
                table.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        if waiting:
            table.write_table(pa.concat_tables(waiting).combine_chunks())
    files.discard(job.work.parent)
