"""Convert between PyTorch checkpoints and emu_jax models, in both directions."""
