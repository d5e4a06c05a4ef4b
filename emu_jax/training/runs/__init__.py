"""Training runs: from the config of a stage to the arguments of the training loop, and to the files left at the end."""
