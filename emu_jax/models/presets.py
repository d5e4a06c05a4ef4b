"""Model sizes by name."""

from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig


def emu_14b(*, vocab_size: int = 32004) -> EmuConfig:
    """Return the released Emu: EVA-01-CLIP-g, causal former (T5-base), LLaMA-13B. Emu-I has a `vocab_size` of 32006."""
    return EmuConfig(
        vision=VisionConfig(image_size=224, patch_size=14, width=1408, num_layers=40, num_heads=16, mlp_dim=6144),
        causal_former=CausalFormerConfig(
            num_image_tokens=32, width=768, num_layers=12, num_heads=12, head_dim=64, mlp_dim=3072
        ),
        decoder=DecoderConfig(
            vocab_size=vocab_size, width=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_dim=13824
        ),
    )


def emu_tiny(*, vocab_size: int) -> EmuConfig:
    """Return the demo's Emu for images of 32 x 32 pixels.

    Positions and queries are initialized on the scale of the activations. With the released 0.02, a run of minutes ends
    before the model has learned where a patch is. Token embeddings are initialized smaller than the visual embeddings.
    """
    return EmuConfig(
        vision=VisionConfig(
            image_size=32, patch_size=8, width=96, num_layers=2, num_heads=4, mlp_dim=384, embedding_std=0.5
        ),
        causal_former=CausalFormerConfig(
            num_image_tokens=4,
            width=96,
            num_layers=1,
            num_heads=4,
            head_dim=24,
            mlp_dim=384,
            dropout=0.0,
            embedding_std=1.0,
        ),
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            width=128,
            num_layers=3,
            num_heads=8,
            num_kv_heads=8,
            mlp_dim=352,
            max_length=512,
            embedding_std=0.2,
        ),
    )


PRESETS = {"emu_14b": emu_14b, "emu_tiny": emu_tiny}
