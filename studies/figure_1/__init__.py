"""Figure 1 of the paper: relu and tanh compared on CIFAR-10 (§3.1); a study with its own network and program."""
