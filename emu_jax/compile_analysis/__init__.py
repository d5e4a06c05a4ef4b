"""The real TPU compiler without a TPU: what a program costs on a pod that nobody has rented yet."""
