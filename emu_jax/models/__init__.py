"""Emu: EVA-CLIP, causal former, LLaMA, and the model that combines them."""
