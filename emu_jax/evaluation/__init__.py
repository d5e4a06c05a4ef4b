"""Evaluation on the public benchmarks: tasks, metrics, and the runner that takes a model through them."""
