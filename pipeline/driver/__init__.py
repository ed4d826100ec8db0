"""The driver of a training, in Ray's sense: it launches the workers, listens to them, tries again. It does not affect outputs."""
