"""The entry point of every stage and command, `python -m pipeline NAME`, which checks its words before anything else.

`python -m pipeline.STAGE` is the same. The module is imported by its name, by which Ray's workers look up its functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands import alexnet, set_typed_in
from pipeline.runtime import guard, redaction


def main(name: str | None = None, words: Sequence[str] | None = None) -> None:
    """Runs a stage or command: `name`, or the first of `words`. Exits with code 2 for words that it does not know."""
    guard.hold_signals()
    words = sys.argv[1:] if words is None else words
    # from the launcher, .dvc/alexnet; not for the programs that are started here
    typed = os.environ.pop("ALEXNET_TYPED_IN", "")
    if typed:
        set_typed_in(Path(typed))
    with redaction.guarded():
        alexnet.main(
            [*([] if name is None else [name]), *words],
            prog_name="alexnet" if typed else "python -m pipeline",
            complete_var="_ALEXNET_COMPLETE",
        )


if __name__ == "__main__":
    main()
