"""Files: atomic writes, weight files in PyTorch's layouts, and a mirror of an object store."""
