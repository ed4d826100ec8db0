"""Training: the specification, first weights, the trainer, Ray Train's worker, checkpoints, the run's folder."""
