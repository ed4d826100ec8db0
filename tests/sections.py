"""Sections of params.yaml for tests: the network as run in 2012, trained for few steps."""

from alexnet.augmentation import Augmentation
from alexnet.learning import Learning
from alexnet.network import Model
from alexnet.preparation import Preparation

PAPER = Model(
    network="alexnet",
    columns=2,
    kernels=(96, 256, 384, 384, 256, 0),
    units=(4096, 4096, 0),
    width=1.0,
    border="overhang",
    deviation=(1.0, 1.0, 1.0),
    activation="relu",
    normalization="original",
    pooling="overlapping",
    dropout=0.5,
    dropout_layers=(6, 7),
    dropout_scale="test",
    first_weights="normal",
    first_std=(0.01, 0.01, 0.03, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01, 0.01),
    first_bias=(0, 1, 0, 1, 1, 1, 1, 1, 0, 0),
)

PREPARATION = Preparation(side=256, fit="crop", filter="bilinear", quality=95, max_megapixels=200.0, damaged="keep")

AUGMENTATION = Augmentation(
    patches="random", chunk=1, reflections=True, mean="centre", colour="deviations", colour_std=0.1, colour_epochs=9
)

LEARNING = Learning(
    seed=0,
    batch_size=4,
    epochs=5,
    rate=0.01,
    bias_rate=2.0,
    rate_falls=(2, 4),
    rate_divisor=10,
    plateau_epochs=0,
    plateau_falls=3,
    watched="validation",
    held_out=0.0,
    rate_changes=(),
    momentum=0.9,
    velocity="with rate",
    decay=0.0005,
    bias_decay=0.0,
    precision="float32",
    order="shuffled",
    log_steps=1,
    streams=2,
)
