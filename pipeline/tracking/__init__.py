"""A run's life in MLflow; no byte is decided here, and no room but `runtime` is known."""
