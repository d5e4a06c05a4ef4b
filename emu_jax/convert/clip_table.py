"""Conversion table of CLIP's vision encoder in the layout of transformers."""

from emu_jax.checkpoints.shapes import Shape
from emu_jax.convert.table import KERNEL, MATRIX, VECTOR, Row, Table
from emu_jax.diffusion.clip_vision import ClipVisionConfig


def clip_table(config: ClipVisionConfig) -> Table:
    """Return the rows of all parameters of `ClipVision`, without the prefix `vision_model.` of most names."""
    D, M, size, out = config.hidden_size, config.intermediate_size, config.patch_size, config.projection_dim
    N, layers = config.num_attention_heads, config.num_hidden_layers
    H, tokens = D // N, (config.image_size // size) ** 2 + 1
    block, ours, pixels = "encoder.layers.{layer}.", "blocks/", 3 * size * size

    def linear(name: str, path: str, inputs: Shape, outputs: Shape, torch_shape: Shape) -> tuple[Row, Row]:
        return (
            Row(f"{block}{name}.weight", torch_shape, f"{ours}{path}/kernel", (*inputs, *outputs), MATRIX, layers),
            Row(f"{block}{name}.bias", torch_shape[:1], f"{ours}{path}/bias", outputs, VECTOR, layers),
        )

    def norm(name: str, path: str, count: int | None = None) -> tuple[Row, Row]:
        return (
            Row(f"{name}.weight", (D,), f"{path}/scale", (D,), VECTOR, count),
            Row(f"{name}.bias", (D,), f"{path}/bias", (D,), VECTOR, count),
        )

    return (
        Row("embeddings.patch_embedding.weight", (D, 3, size, size), "patch_embed/kernel", (pixels, D), KERNEL),
        Row("embeddings.class_embedding", (D,), "class_token", (D,), VECTOR),
        Row("embeddings.position_embedding.weight", (tokens, D), "position_embedding", (tokens, D), (0, 1)),
        *norm("pre_layrnorm", "pre_norm"),  # transformers' own spelling
        *norm(block + "layer_norm1", ours + "attention_norm", layers),
        *linear("self_attn.q_proj", "attention/query", (D,), (N, H), (D, D)),
        *linear("self_attn.k_proj", "attention/key", (D,), (N, H), (D, D)),
        *linear("self_attn.v_proj", "attention/value", (D,), (N, H), (D, D)),
        *linear("self_attn.out_proj", "attention/out", (N, H), (D,), (D, D)),
        *norm(block + "layer_norm2", ours + "mlp_norm", layers),
        *linear("mlp.fc1", "mlp/up", (D,), (M,), (M, D)),
        *linear("mlp.fc2", "mlp/down", (M,), (D,), (D, M)),
        *norm("post_layernorm", "post_norm"),
        Row("visual_projection.weight", (out, D), "projection/kernel", (D, out), MATRIX),
    )  # fmt: skip
