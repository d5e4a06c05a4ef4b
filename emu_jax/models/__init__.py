"""Emu: EVA-CLIP, causal former, LLaMA, and how they are joined."""
