"""Read and write files: atomic writes, safetensors, guarded pickles, remote mirrors."""
