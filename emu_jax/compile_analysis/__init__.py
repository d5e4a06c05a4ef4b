"""Compile programs for a TPU pod on a CPU, and analyze memory, communication and time of the result."""
