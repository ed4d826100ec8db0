"""Supervision of a training: its attempts, its faults, its workers' messages, the code that began it. Decides no byte."""
