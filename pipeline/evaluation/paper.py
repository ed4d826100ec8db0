"""The paper's errors of one network, and whether a run was tested on the paper's pictures."""

from __future__ import annotations

PAPER = {
    "ILSVRC-2010": [("ten views (Table 1)", 0.375, 0.170), ("centre patch only (§6, footnote)", 0.390, 0.183)],
    "ILSVRC-2012": [("ten views (Table 2)", 0.407, 0.182)],
}
"""The paper's top-1 and top-5 errors of one network, on the test set of 2010 and the validation set of 2012."""

TESTED = {"ILSVRC-2010": ("test", 149_000), "ILSVRC-2012": ("val", 49_000)}
"""The paper's split, and the least number of pictures for a comparison; it allows for some unreadable ones."""

CLASSES = 1000


def contest(source: str) -> str:
    """The contest whose pictures a source has. `source`: `source.name` of params.yaml."""
    return "ILSVRC-2010" if source == "ilsvrc2010" else "ILSVRC-2012"


def comparable(source: str, split: str, images: int, classes: int, drawn: bool) -> bool:
    """Whether a test was on photographs of the paper's 1,000 classes, of its split, and on enough of them."""
    paper_split, least = TESTED[contest(source)]
    same = not drawn and classes == CLASSES and split == paper_split
    return same and images >= least
