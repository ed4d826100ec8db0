"""A training's attempts: after an external fault it resumes from the newest whole checkpoint, a limited number of times."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.driver.faults import PAUSES, Fault
from pipeline.training.checkpoints import Checkpoint


class Attempts:
    """Counts the attempts after external faults; a checkpoint at a later step resets the count."""

    def __init__(self, run: Path, last: Checkpoint | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.run, self.sleep = run, sleep
        self.step = last.step if last else 0
        self.failed = 0

    def again(self, fault: Fault, last: Checkpoint | None, error: BaseException | None = None) -> None:
        """Waits before another attempt, or raises the error that ends the training, with the fault and the last checkpoint.

        `error`: the exception behind the fault, if there was one.
        """
        reached = last.step if last else 0
        if reached > self.step:
            self.step, self.failed = reached, 0
        if not fault.outside:
            raise _ended(fault.what, fault, self.where(last)) from error
        if self.failed == len(PAUSES):
            raise _ended(
                f"{fault.what}; {len(PAUSES)} more attempts came no further", fault, self.where(last)
            ) from error
        pause = PAUSES[self.failed]
        self.failed += 1
        print(
            f"train: {fault.what}; trying again from step {reached} in {pause:g} s, {self.failed} of {len(PAUSES)}",
            file=sys.stderr,
            flush=True,
        )
        self.sleep(pause)

    def where(self, last: Checkpoint | None) -> str:
        """A sentence that says which checkpoint is the last whole one and how to resume."""
        if last is None:
            return f"There is no checkpoint in {self.run} yet: dvc repro starts from the beginning"
        return f"The last whole checkpoint is {last.folder}, step {last.step}: dvc repro goes on from there"


def _ended(what: str, fault: Fault, where: str) -> BaseException:
    if fault.bug is not None:
        fault.bug.add_note(where)
        return fault.bug
    return OSError("\n".join(line for line in (what, fault.advice, where) if line))
