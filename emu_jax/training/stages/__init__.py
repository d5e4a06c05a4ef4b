"""What the loop can train: one small file per stage."""
