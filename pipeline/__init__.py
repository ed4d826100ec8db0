"""The works: one module for each stage of dvc.yaml, then what the stages share."""
