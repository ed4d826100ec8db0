"""Error rates from the probabilities of all tested pictures, in all and by class, and the tables that show them (§6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from alexnet import errors
from alexnet.errors import Count, per_class, summary
from alexnet.names import NO_ANSWER
from pipeline.evaluation import neighbours, vectors
from pipeline.evaluation.results import Results
from pipeline.evaluation.trained import names
from pipeline.runtime import documents
from pipeline.shards.manifest import Manifest


def summarize(parts: dict[str, list[Path]], manifest: Manifest, section: Results, folder: Path) -> dict[str, Any]:
    """Writes the tables to `folder` and returns the contents of metrics.json; errors are sums of counts, divided once."""
    counts, classes = Counts(len(manifest.classes)), manifest.classes
    columns = ["id", "label", "probabilities", "centre"]
    vectors.concatenate(parts[section.split], columns, folder / "predictions.parquet", counts.add)
    vectors.concatenate(parts[section.split], ["id", "label", "features"], folder / f"features-{section.split}.parquet")
    nearest: dict[str, Any] = {}
    if section.neighbours:
        seen = vectors.concatenate(parts["train"], ["id", "label", "features"], folder / "features-train.parquet")
        assert seen == manifest.rows("train"), f"{seen} of {manifest.rows('train')} training pictures were seen"
        nearest["neighbours"] = neighbours.write(folder, section)
    tested = manifest.rows(section.split)
    assert counts.images == tested, f"{counts.images} of {tested} pictures were seen"
    words = names(classes)
    rows = [
        [label, synset.wnid, synset.words, one.images, _text(one.error), _text(five.error)]
        for label, (synset, one, five) in enumerate(zip(classes, *counts.by_class(), strict=True))
    ]
    documents.write_rows(
        folder / "per_class.csv", ["label", "wnid", "words", "images", "top1_error", "top5_error"], rows
    )
    errors = [[label, words[label], _text(one.error)] for label, one in enumerate(counts.by_class()[0])]
    documents.write_rows(folder / "errors.csv", ["label", "class", "top1_error"], errors)
    answers = [[words[label], words[guess] if guess >= 0 else NO_ANSWER] for label, guess in counts.answers]
    documents.write_rows(folder / "confusion.csv", ["actual", "predicted"], answers)
    return {
        "images": counts.images,
        "classes": len(classes),
        "ten_views": counts.summary("probabilities"),
        "centre": counts.summary("centre"),
        **nearest,
    }


class Counts:
    """Running counts over the tested pictures: top-1 and top-5 errors, in all and by class, and every answer."""

    def __init__(self, classes: int) -> None:

        self.classes, self.images = classes, 0
        self.credits: dict[tuple[str, int], list[Tensor]] = {
            (name, top): [] for name in ("centre", "probabilities") for top in (1, 5)
        }
        self.labels: list[Tensor] = []
        self.answers: list[tuple[int, int]] = []
        self._cat = torch.cat

    def add(self, table: pa.Table) -> None:
        """Counts the rows of a table of predictions."""
        labels = _tensor(table["label"])
        self.images += len(labels)
        self.labels.append(labels)
        for (name, top), shards in self.credits.items():
            shards.append(errors.topk_credit(vectors.to_matrix(table[name]), labels, top))
        guesses = errors.guesses(vectors.to_matrix(table["probabilities"]))
        self.answers += zip(labels.tolist(), guesses.tolist(), strict=True)

    def summary(self, name: str) -> dict[str, float]:
        """Error rates and their 95 % intervals, from the column `name`, for metrics.json."""
        return summary({top: Count(float(self._cat(self.credits[name, top]).sum()), self.images) for top in (1, 5)})

    def by_class(self) -> tuple[list[Count], list[Count]]:
        """Top-1 and top-5 counts of each class, over ten views."""
        labels = self._cat(self.labels)
        one, five = (per_class(self._cat(self.credits["probabilities", top]), labels, self.classes) for top in (1, 5))
        return one, five


def _tensor(column: pa.ChunkedArray) -> Tensor:

    return torch.from_numpy(column.to_numpy().copy())


def _text(error: float) -> str:
    return "" if math.isnan(error) else repr(error)  # a class without a picture has no error
