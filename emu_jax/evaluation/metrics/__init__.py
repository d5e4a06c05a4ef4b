"""Metrics of the public benchmarks, equal to what their official code computes."""
