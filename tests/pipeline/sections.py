"""Sections of params.yaml that belong to stages; those of the network are in tests/sections.py, which needs no pipeline."""

from pipeline.resize import Resize

RESIZE = Resize(
    side=256,
    fit="crop",
    filter="bilinear",
    quality=95,
    shuffle_seed=0,
    images_per_shard=5000,
    max_rejected=0.0,
    max_megapixels=200.0,
    damaged="keep",
)
