"""The ladder's first rung: typed, sharded building blocks that know nothing of Emu."""
