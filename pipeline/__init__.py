"""The workflow: one module for each stage of dvc.yaml and each program, and a folder for each thing that they share."""
