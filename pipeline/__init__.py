"""The works: a stage of dvc.yaml or a program in each module, and rooms for what they share."""
