"""Where a training's time went, what bound it, and which key of machine.yaml may help. It reads a run's record."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.runtime.clock import PARTS
from pipeline.runtime.run_record import RunRecord

WORDS = {
    "waiting": "waiting for data",
    "computing": "computing",
    "exchanging": "exchanging between processes",
    "validating": "testing on validation pictures",
    "checkpoints": "writing checkpoints",
    "other": "the rest",
}
"""The clock's parts in words."""

MUCH = 0.2
"""The least share of the time that makes a part what binds the training: without it, it would be 1.25 times as fast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A part of the time."""

    words: str
    seconds: float
    share: float
    """From 0 to 1."""


def shares(record: RunRecord) -> list[Share]:
    """The shares of the measured epochs' time, in the order of the clock's parts; none if nothing was measured."""
    whole = record.total(*PARTS)
    if whole <= 0:
        return []
    spent = {part: record.total(part) for part in PARTS}
    return [Share(words=WORDS[part], seconds=spent[part], share=spent[part] / whole) for part in PARTS]


def bound(record: RunRecord) -> str:
    """The clock's part that binds the training; "computing" if no other takes much; "" if nothing was measured."""
    whole = record.total(*PARTS)
    if whole <= 0:
        return ""
    taking = {part: record.total(part) / whole for part in ("waiting", "exchanging", "checkpoints")}
    most = max(taking, key=lambda part: taking[part])
    return most if taking[most] >= MUCH else "computing"


def verdict(record: RunRecord) -> tuple[str, str]:
    """What bound the training, in one or two words, and a text on what to change; both empty if nothing was measured."""
    gpu = bool(record.facts.get("gpu"))
    threads = record.facts.get("threads")
    match bound(record):
        case "waiting":
            reading = f", which read and decode on {threads} CPU threads for each process" if threads else ""
            return "data-bound", (
                f"The computation waits for pictures{reading}. More CPU cores for each process help; so does a fast local disk "
                "for the shards (shards in machine.yaml)"
                + (". More GPUs would wait more: devices takes the number to use." if gpu else ".")
            )
        case "exchanging":
            return "bound by exchanges", (
                "The processes wait for each other, or for the network between them. With placement: one in machine.yaml one "
                "process has both columns and exchanges nothing; with replicas, processes exchange gradients once a step."
            )
        case "checkpoints":
            return "bound by checkpoints", (
                "A larger checkpoint_steps in machine.yaml writes fewer of them within an epoch; storage may name a faster disk."
            )
        case "computing":
            more = (
                "More GPUs help (devices: auto in machine.yaml takes all that there are; placement says how they share the work)"
                if gpu
                else "A GPU helps (devices: auto in machine.yaml takes all that there are), or more CPU cores"
            )
            return "compute-bound", f"{more}. A faster disk, or more cores for decoding, would change little."
    return "", ""


def without(record: RunRecord) -> float:
    """The share of the time, from 0 to 1, that the part which binds the training takes."""
    whole, part = record.total(*PARTS), bound(record)
    return record.total(part) / whole if part else 0.0
