"""The results of a run → figures, and one HTML page that can be read offline (§6).

Run:    dvc repro report
Reads:  metrics.json, data/evaluation/, data/history/, data/model.pt, data/shards/, params.yaml, recipes/; and, if they are
        there, the run's record in runs/<fingerprint>/ and the run before it in MLflow
Writes: report/index.html, with its figures and pictures embedded, and the figures as report/*.png
Takes:  report and results.split; prints source, resize, model, start, augmentation, learning and results
Expect: 2 MB, seconds. The figures have equal bytes for equal inputs; so has the page, but for its sections of the class
        `record`: they tell of one training (when, where, how fast) and of the run before it, and are equal for equal records
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports
    from pipeline.__main__ import main as enter

    enter("report")

import dataclasses
import hashlib
from pathlib import Path

from pipeline.comparing import before
from pipeline.evaluation.reporting import drawing, gallery, page, reading, settings
from pipeline.evaluation.reporting.page import Contents
from pipeline.evaluation.reporting.section import Report
from pipeline.evaluation.results import Results
from pipeline.evaluation.trained import METRICS, MODEL, load, read_model
from pipeline.runtime import files, machines, params, run_record
from pipeline.runtime.machines import Machine
from pipeline.shards import artifacts
from pipeline.tracking import description, runs

OUT = Path("report")

SECTIONS = ("source", "resize", "model", "start", "augmentation", "learning", "results", "report")
"""Sections of params.yaml, printed at the end of the page."""


def run() -> None:
    """Runs the stage."""
    section = params.read("report", Report)
    machine = machines.read()
    contents, fingerprint = read(section, machine)
    text = page.render(contents)
    sections = {"report": dataclasses.asdict(section)}
    with runs.run(machine, fingerprint, sections, contents.manifest, "report", adopt=True) as record:
        with files.atomic(OUT) as folder:
            folder.mkdir()
            for name, png in drawing.plots(contents.figures).items():
                (folder / f"{name}.png").write_bytes(png)
            (folder / "index.html").write_text(text, encoding="utf-8")
        record.artifact(OUT, "report")
    print(f"report: {OUT / 'index.html'}")


def read(section: Report, machine: Machine) -> tuple[Contents, str]:
    """Reads everything that the page shows, and the run's fingerprint."""
    manifest = artifacts.manifest(machine)
    metrics = reading.read_metrics(METRICS)
    split = params.read("results", Results).split
    model = read_model(MODEL)
    network, facts = load(model, manifest, split)
    fingerprint, document = str(facts["fingerprint"]), params.load(params.PARAMS)
    folder = artifacts.locate(manifest, machine)
    previous, why = before.find(fingerprint, machine)
    contents = Contents(
        metrics=metrics,
        split=split,
        manifest=manifest,
        source=str(document.get("source", {}).get("name", "")),
        figures=drawing.draw(section, split, manifest, folder, network, facts["mean"]),
        parameters={name: description.words(document[name]) for name in SECTIONS if name in document},
        weights=sum(weight.numel() for weight in network.parameters()),
        differences=settings.differences(
            {name: document[name] for name in SECTIONS if name in document}, settings.recipes()
        ),
        gallery=gallery.pick(section.pictures, split, manifest, folder),
        record=run_record.read(machines.runs(machine) / fingerprint, hashlib.sha256(model).hexdigest()),
        before=previous,
        no_run_before=why,
    )
    return contents, fingerprint
