"""The paper: the network of 2012, its data, its rule and its measures. Knows torch, and nothing of the pipeline."""
