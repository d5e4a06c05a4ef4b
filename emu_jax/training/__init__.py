"""One training loop for every stage: what a step does, what is saved, what is watched."""
