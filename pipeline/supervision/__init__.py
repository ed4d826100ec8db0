"""How a training is watched: its attempts, its faults, what its workers say, which code began it; no byte is decided here."""
