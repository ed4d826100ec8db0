"""The paper: the network of 2012, its data, its update rule and its error rates. Imports torch, nothing of the pipeline."""
