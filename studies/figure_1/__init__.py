"""Figure 1 of the paper: relu against tanh on CIFAR-10 (§3.1); a study with a network and a program of its own."""
