"""What a training learns with: the trainer, Ray's workers, first weights, checkpoints."""
