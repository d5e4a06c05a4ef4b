"""Load prepared data sets: mix, pack, decode and batch."""
