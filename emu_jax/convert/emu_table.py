"""Conversion table of Emu, with the names of the release (BAAI/Emu, `pytorch_model.bin`).

Other layouts have the same tensors under other names (`sources.release_name` translates them):

    release        decoder.lm.model.layers.0.self_attn.q_proj.weight    visual.blocks.0.norm1.weight
    Emu-I (peft)   decoder.lm.base_model.model.model.layers.0. ...      visual.blocks.0.norm1.weight
    LLaMA          model.layers.0.self_attn.q_proj.weight
    EVA-CLIP                                                            visual.blocks.0.norm1.weight, or without visual.
"""

import math
import re

import numpy as np

from emu_jax.checkpoints.shapes import Shape
from emu_jax.convert.table import KERNEL, MATRIX, Row, Table
from emu_jax.io.tensors import Tensor, tensor_of
from emu_jax.layers.linear import LoraConfig
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig

DECODER = "decoder.lm."
PEFT_DECODER = "decoder.lm.base_model.model."
T5_VOCABULARY = 32128  # rows of the T5 embedding in the release, which Emu does not use
CLIP_WIDTH = 1024  # width of EVA-01-CLIP-g's projection in the release, which Emu does not use


def emu_table(config: EmuConfig) -> Table:
    """Return the rows of all parameters of an Emu, in the order of the release."""
    table = (
        *vision_rows(config.vision),
        *visual_norm_rows(config.vision),
        *causal_former_rows(config.causal_former, source_width=config.vision.width, out_width=config.decoder.width),
        *decoder_rows(config.decoder),
    )
    adapters = () if config.lora is None else lora_rows(table, config.lora)
    return (*table, *adapters, *regression_rows(config.decoder))


def vision_rows(config: VisionConfig) -> Table:
    """Return the rows of the vision encoder (EVA-01-CLIP), without its final norm and head, which Emu does not use."""
    D, M, L, N = config.width, config.mlp_dim, config.num_layers, config.num_heads
    H, P, size = D // N, config.num_tokens, config.patch_size
    block, ours = "visual.blocks.{layer}.", "vision_encoder/blocks/"
    return (
        _same("visual.cls_token", (1, 1, D), "vision_encoder/class_token", (D,)),
        _same("visual.pos_embed", (1, P, D), "vision_encoder/position_embedding", (P, D)),
        Row("visual.patch_embed.proj.weight", (D, 3, size, size), "vision_encoder/patch_embed/kernel",
            (size * size * 3, D), KERNEL),
        _same("visual.patch_embed.proj.bias", (D,), "vision_encoder/patch_embed/bias", (D,)),
        _same(block + "norm1.weight", (D,), ours + "attention_norm/scale", (D,), L),
        _same(block + "norm1.bias", (D,), ours + "attention_norm/bias", (D,), L),
        _same(block + "attn.q_bias", (D,), ours + "attention/query_bias", (N, H), L),
        _same(block + "attn.v_bias", (D,), ours + "attention/value_bias", (N, H), L),
        _linear(block + "attn.qkv.weight", (3 * D, D), ours + "attention/qkv/kernel", (D, 3, N, H), L),
        _linear(block + "attn.proj.weight", (D, D), ours + "attention/out/kernel", (N, H, D), L),
        _same(block + "attn.proj.bias", (D,), ours + "attention/out/bias", (D,), L),
        _same(block + "norm2.weight", (D,), ours + "mlp_norm/scale", (D,), L),
        _same(block + "norm2.bias", (D,), ours + "mlp_norm/bias", (D,), L),
        _linear(block + "mlp.fc1.weight", (M, D), ours + "mlp/up/kernel", (D, M), L),
        _same(block + "mlp.fc1.bias", (M,), ours + "mlp/up/bias", (M,), L),
        _linear(block + "mlp.fc2.weight", (D, M), ours + "mlp/down/kernel", (M, D), L),
        _same(block + "mlp.fc2.bias", (D,), ours + "mlp/down/bias", (D,), L),
    )  # fmt: skip


def visual_norm_rows(config: VisionConfig) -> Table:
    """Return the rows of the norm between vision encoder and causal former."""
    D = config.width
    return (
        _same("ln_visual.weight", (D,), "visual_norm/scale", (D,)),
        _same("ln_visual.bias", (D,), "visual_norm/bias", (D,)),
    )


def causal_former_rows(config: CausalFormerConfig, *, source_width: int, out_width: int) -> Table:
    """Return the rows of the T5 decoder blocks. The first block stores the relative bias that all blocks use."""
    D, M, L, N, H = config.width, config.mlp_dim, config.num_layers, config.num_heads, config.head_dim
    inner, queries = N * H, config.num_image_tokens
    block, ours = "cformer.cformer.block.{layer}.layer.", "causal_former/blocks/"
    return (
        _same("cformer.causal_tokens", (1, queries, D), "causal_former/causal_queries", (queries, D)),
        _same("cformer.cformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
              (config.relpos_buckets, N), "causal_former/relative_bias", (config.relpos_buckets, N)),
        _linear(block + "0.SelfAttention.q.weight", (inner, D), ours + "self_attention/query/kernel", (D, N, H), L),
        _linear(block + "0.SelfAttention.k.weight", (inner, D), ours + "self_attention/key/kernel", (D, N, H), L),
        _linear(block + "0.SelfAttention.v.weight", (inner, D), ours + "self_attention/value/kernel", (D, N, H), L),
        _linear(block + "0.SelfAttention.o.weight", (D, inner), ours + "self_attention/out/kernel", (N, H, D), L),
        _same(block + "0.layer_norm.weight", (D,), ours + "self_attention_norm/scale", (D,), L),
        _linear(block + "1.EncDecAttention.q.weight", (inner, D), ours + "cross_attention/query/kernel", (D, N, H), L),
        _linear(block + "1.EncDecAttention.k.weight", (inner, source_width), ours + "cross_attention/key/kernel",
                (source_width, N, H), L),
        _linear(block + "1.EncDecAttention.v.weight", (inner, source_width), ours + "cross_attention/value/kernel",
                (source_width, N, H), L),
        _linear(block + "1.EncDecAttention.o.weight", (D, inner), ours + "cross_attention/out/kernel", (N, H, D), L),
        _same(block + "1.layer_norm.weight", (D,), ours + "cross_attention_norm/scale", (D,), L),
        _linear(block + "2.DenseReluDense.wi.weight", (M, D), ours + "mlp/up/kernel", (D, M), L),
        _linear(block + "2.DenseReluDense.wo.weight", (D, M), ours + "mlp/down/kernel", (M, D), L),
        _same(block + "2.layer_norm.weight", (D,), ours + "mlp_norm/scale", (D,), L),
        _same("cformer.cformer.final_layer_norm.weight", (D,), "causal_former/final_norm/scale", (D,)),
        _linear("cformer.projection.weight", (out_width, D), "causal_former/projection/kernel", (D, out_width)),
        _same("cformer.projection.bias", (out_width,), "causal_former/projection/bias", (out_width,)),
    )  # fmt: skip


def decoder_rows(config: DecoderConfig) -> Table:
    """Return the rows of LLaMA and its language head: Hugging Face's LlamaForCausalLM under `decoder.lm.`."""
    D, M, L, V = config.width, config.mlp_dim, config.num_layers, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    padded = config.padded_vocab_size
    block, ours = DECODER + "model.layers.{layer}.", "decoder/blocks/"
    return (
        Row(DECODER + "model.embed_tokens.weight", (V, D), "decoder/token_embedding", (padded, D), (0, 1),
            padded_rows=padded),
        _linear(block + "self_attn.q_proj.weight", (N * H, D), ours + "attention/query/kernel", (D, N, H), L),
        _linear(block + "self_attn.k_proj.weight", (K * H, D), ours + "attention/key/kernel", (D, K, H), L),
        _linear(block + "self_attn.v_proj.weight", (K * H, D), ours + "attention/value/kernel", (D, K, H), L),
        _linear(block + "self_attn.o_proj.weight", (D, N * H), ours + "attention/out/kernel", (N, H, D), L),
        _linear(block + "mlp.gate_proj.weight", (M, D), ours + "mlp/gate/kernel", (D, M), L),
        _linear(block + "mlp.down_proj.weight", (D, M), ours + "mlp/down/kernel", (M, D), L),
        _linear(block + "mlp.up_proj.weight", (M, D), ours + "mlp/up/kernel", (D, M), L),
        _same(block + "input_layernorm.weight", (D,), ours + "attention_norm/scale", (D,), L),
        _same(block + "post_attention_layernorm.weight", (D,), ours + "mlp_norm/scale", (D,), L),
        _same(DECODER + "model.norm.weight", (D,), "decoder/final_norm/scale", (D,)),
        Row(DECODER + "lm_head.weight", (V, D), "lm_head/projection/kernel", (D, padded), MATRIX,
            padded_rows=padded),
    )  # fmt: skip


def lora_rows(table: Table, lora: LoraConfig) -> Table:
    """Return the rows of the low-rank adapters, named `default` as in peft, of the linear layers in `table`."""
    rows = []
    for row in table:
        path = row.path.removesuffix("/kernel")
        if path == row.path or row.permutation != MATRIX or not lora.adapts(path):
            continue
        (out, inner), name, L, rank = row.torch_shape, row.torch.removesuffix(".weight"), row.layers, lora.rank
        split = next(i for i in range(1, len(row.shape)) if math.prod(row.shape[:i]) == inner)
        inputs, outputs = row.shape[:split], row.shape[split:]
        rows.append(_linear(name + ".lora_A.default.weight", (rank, inner), path + "/lora_a", (*inputs, rank), L))
        rows.append(_linear(name + ".lora_B.default.weight", (out, rank), path + "/lora_b", (rank, *outputs), L))
    return tuple(rows)


def is_adapter(row: Row) -> bool:
    """Return True for a row of `lora_rows`."""
    return "/lora_" in row.path


def regression_rows(config: DecoderConfig) -> Table:
    """Return the row of the head that predicts the next visual embedding."""
    D = config.width
    return (_linear(DECODER + "stu_regress_head.weight", (D, D), "regression_head/projection/kernel", (D, D)),)


def unused_shapes(config: EmuConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that the release has and Emu does not use. They are saved for the export."""
    D = config.vision.width
    return {
        "visual.norm.weight": (D,),
        "visual.norm.bias": (D,),
        "visual.head.weight": (CLIP_WIDTH, D),
        "visual.head.bias": (CLIP_WIDTH,),
        "cformer.cformer.embed_tokens.weight": (T5_VOCABULARY, config.causal_former.width),
    }


def peft_name(name: str) -> str:
    """Return the name in the file of Emu-I (peft) for a name of the release."""
    return PEFT_DECODER + name.removeprefix(DECODER) if name.startswith(DECODER) else name


def base_layer_name(name: str) -> str:
    """Return the name that peft 0.10 and later have for the weight of an adapted projection; others are unchanged."""
    return re.sub(r"(self_attn\.[qkvo]_proj)\.weight$", r"\1.base_layer.weight", name)


def rotary_frequencies(config: DecoderConfig) -> tuple[Tensor, ...]:
    """Return the buffers `rotary_emb.inv_freq` of all layers, which transformers up to 4.31 expects in a file."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    values = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    names = (f"{DECODER}model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.num_layers))
    return tuple(tensor_of(name, values) for name in names)


def _same(name: str, torch_shape: Shape, path: str, shape: Shape, layers: int | None = None) -> Row:
    return Row(name, torch_shape, path, shape, tuple(range(len(torch_shape))), layers)


def _linear(name: str, torch_shape: Shape, path: str, shape: Shape, layers: int | None = None) -> Row:
    return Row(name, torch_shape, path, shape, MATRIX, layers)
