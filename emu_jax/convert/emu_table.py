"""The table of names between the PyTorch release and our parameters: it is the conversion.

One row for each parameter: its name and shape in the release, our path and shape, and the permutation between them.
A tensor becomes ours by padding the vocabulary with zero rows, permuting its axes, and reshaping; backwards it is the
same in reverse, so nothing is lost either way. `{layer}` in a name stands for the layers that we keep stacked.

Names are the release's (BAAI/Emu, `pytorch_model.bin`). Other layouts are the same tensors under other names:

    release        decoder.lm.model.layers.0.self_attn.q_proj.weight    visual.blocks.0.norm1.weight
    Emu-I (peft)   decoder.lm.base_model.model.model.layers.0. ...      visual.blocks.0.norm1.weight
    LLaMA          model.layers.0.self_attn.q_proj.weight
    EVA-CLIP                                                            visual.blocks.0.norm1.weight, or without visual.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig

DECODER = "decoder.lm."
PEFT_DECODER = "decoder.lm.base_model.model."
T5_VOCABULARY = 32128  # rows of the T5 table that the release carries along
CLIP_WIDTH = 1024  # of EVA-01-CLIP-g's projection, which the release carries along

_TRANSPOSED = (1, 0)  # torch keeps Linear weights as [out, in]


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter.

    Attributes:
      name: in the release; `{layer}` where `layers` is given.
      shape: of one layer's torch tensor.
      path: ours, "/"-joined.
      ours: shape of one layer of ours.
      permutation: of the torch axes, before the reshape to `ours`.
      layers: how many are stacked along our leading axis; None: not stacked.
      padded_rows: the first torch axis is padded to this with zeros (vocabulary tables).
    """

    name: str
    shape: tuple[int, ...]
    path: str
    ours: tuple[int, ...]
    permutation: tuple[int, ...]
    layers: int | None = None
    padded_rows: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The torch names, layer by layer."""
        if self.layers is None:
            return (self.name,)
        return tuple(self.name.format(layer=layer) for layer in range(self.layers))

    @property
    def stacked(self) -> tuple[int, ...]:
        """Shape of our whole parameter."""
        return self.ours if self.layers is None else (self.layers, *self.ours)


def to_ours(row: Row, tensor: np.ndarray) -> np.ndarray:
    """One layer of our parameter (a view where it can be) from one torch tensor of `row.shape`."""
    if row.padded_rows is not None:
        tensor = np.pad(tensor, [(0, row.padded_rows - tensor.shape[0])] + [(0, 0)] * (tensor.ndim - 1))
    return tensor.transpose(row.permutation).reshape(row.ours)


def to_torch(row: Row, layer: np.ndarray) -> np.ndarray:
    """The torch tensor of `row.shape` from one layer of our parameter."""
    first = row.shape[0] if row.padded_rows is None else row.padded_rows
    whole = (first, *row.shape[1:])
    permuted = layer.reshape(tuple(whole[axis] for axis in row.permutation))
    return permuted.transpose(tuple(np.argsort(row.permutation)))[: row.shape[0]]


def emu_rows(config: EmuConfig) -> tuple[Row, ...]:
    """Every parameter of an Emu, in the release's order."""
    return (
        *vision_rows(config.vision),
        *visual_norm_rows(config.vision),
        *causal_former_rows(config.causal_former, features=config.vision.width, out_features=config.decoder.width),
        *decoder_rows(config.decoder),
        *(lora_rows(config.decoder, rank=config.lora.rank) if config.lora is not None else ()),
        *regression_rows(config.decoder),
    )


def vision_rows(config: VisionConfig) -> tuple[Row, ...]:
    """EVA-01-CLIP's tower, as far as Emu uses it."""
    D, M, L, N = config.width, config.mlp_dim, config.num_layers, config.num_heads
    H, P, size = D // N, config.num_tokens, config.patch_size
    block, ours = "visual.blocks.{layer}.", "vision_encoder/blocks/"
    return (
        _same("visual.cls_token", (1, 1, D), "vision_encoder/class_token", (D,)),
        _same("visual.pos_embed", (1, P, D), "vision_encoder/position_embedding", (P, D)),
        Row("visual.patch_embed.proj.weight", (D, 3, size, size), "vision_encoder/patch_embed/kernel",
            (size * size * 3, D), (2, 3, 1, 0)),
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


def visual_norm_rows(config: VisionConfig) -> tuple[Row, ...]:
    """The norm between tower and causal former."""
    D = config.width
    return (
        _same("ln_visual.weight", (D,), "visual_norm/scale", (D,)),
        _same("ln_visual.bias", (D,), "visual_norm/bias", (D,)),
    )


def causal_former_rows(config: CausalFormerConfig, *, features: int, out_features: int) -> tuple[Row, ...]:
    """T5 decoder blocks. The relative bias stands in the release's first block, and all blocks read it."""
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
        _linear(block + "1.EncDecAttention.k.weight", (inner, features), ours + "cross_attention/key/kernel",
                (features, N, H), L),
        _linear(block + "1.EncDecAttention.v.weight", (inner, features), ours + "cross_attention/value/kernel",
                (features, N, H), L),
        _linear(block + "1.EncDecAttention.o.weight", (D, inner), ours + "cross_attention/out/kernel", (N, H, D), L),
        _same(block + "1.layer_norm.weight", (D,), ours + "cross_attention_norm/scale", (D,), L),
        _linear(block + "2.DenseReluDense.wi.weight", (M, D), ours + "mlp/up/kernel", (D, M), L),
        _linear(block + "2.DenseReluDense.wo.weight", (D, M), ours + "mlp/down/kernel", (M, D), L),
        _same(block + "2.layer_norm.weight", (D,), ours + "mlp_norm/scale", (D,), L),
        _same("cformer.cformer.final_layer_norm.weight", (D,), "causal_former/final_norm/scale", (D,)),
        _linear("cformer.projection.weight", (out_features, D), "causal_former/projection/kernel", (D, out_features)),
        _same("cformer.projection.bias", (out_features,), "causal_former/projection/bias", (out_features,)),
    )  # fmt: skip


def decoder_rows(config: DecoderConfig) -> tuple[Row, ...]:
    """LLaMA with its language head, as in Hugging Face's LlamaForCausalLM under `decoder.lm.`."""
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
        Row(DECODER + "lm_head.weight", (V, D), "lm_head/projection/kernel", (D, padded), _TRANSPOSED,
            padded_rows=padded),
    )  # fmt: skip


def lora_rows(config: DecoderConfig, *, rank: int) -> tuple[Row, ...]:
    """peft's low-rank adapters (its name `default`) on q, k, v and o of the decoder."""
    D, N, K, H, L = config.width, config.num_heads, config.num_kv_heads, config.head_dim, config.num_layers
    sides = (
        ("q_proj", "query", (D,), (N, H)),
        ("k_proj", "key", (D,), (K, H)),
        ("v_proj", "value", (D,), (K, H)),
        ("o_proj", "out", (N, H), (D,)),
    )
    rows = []
    for short, long, inputs, outputs in sides:
        name, path = DECODER + "model.layers.{layer}.self_attn." + short, f"decoder/blocks/attention/{long}/"
        down, up = (rank, math.prod(inputs)), (math.prod(outputs), rank)
        rows.append(_linear(name + ".lora_A.default.weight", down, path + "lora_a", (*inputs, rank), L))
        rows.append(_linear(name + ".lora_B.default.weight", up, path + "lora_b", (rank, *outputs), L))
    return tuple(rows)


def regression_rows(config: DecoderConfig) -> tuple[Row, ...]:
    """The head that predicts the next visual embedding."""
    D = config.width
    return (_linear(DECODER + "stu_regress_head.weight", (D, D), "regression_head/projection/kernel", (D, D)),)


def unused_shapes(config: EmuConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of the release that Emu itself never reads; carried along so that the way out is complete."""
    D = config.vision.width
    return {
        "visual.norm.weight": (D,),
        "visual.norm.bias": (D,),
        "visual.head.weight": (CLIP_WIDTH, D),
        "visual.head.bias": (CLIP_WIDTH,),
        "cformer.cformer.embed_tokens.weight": (T5_VOCABULARY, config.causal_former.width),
    }


_EVA_BARE = re.compile(r"(blocks\.|patch_embed\.|cls_token$|pos_embed$|norm\.|head\.)")
_BUFFER = re.compile(r".*\.(rotary_emb\.inv_freq|relative_position_index)$")  # computed, not learned
_ADAPTER = re.compile(r"\.lora_([AB])\.weight$")  # as `get_peft_model_state_dict` says it, without the adapter's name
_OTHER_TOWER = re.compile(r"(text\.|logit_scale$)")  # CLIP's text side, in a whole EVA-CLIP checkpoint


def release_name(name: str) -> str | None:
    """The release's name of a tensor of any known layout; None for what no Emu ever reads.

    release_name("model.norm.weight")                  -> "decoder.lm.model.norm.weight"
    release_name("blocks.3.norm1.bias")                -> "visual.blocks.3.norm1.bias"
    release_name("decoder.lm.base_model.model.lm_head.weight") -> "decoder.lm.lm_head.weight"
    release_name("decoder.lm.base_model.model.model.norm.base_layer.weight") -> "decoder.lm.model.norm.weight"
    release_name("logit_scale")                        -> None
    """
    name = name.removeprefix("module.")
    if _BUFFER.match(name) or _OTHER_TOWER.match(name):
        return None
    if name.startswith(PEFT_DECODER):
        name = _ADAPTER.sub(r".lora_\1.default.weight", name.replace(".base_layer.", "."))
        return DECODER + name.removeprefix(PEFT_DECODER)
    if name.startswith("model.") or name == "lm_head.weight":
        return DECODER + name
    if _EVA_BARE.match(name):
        return "visual." + name
    return name


def peft_name(name: str) -> str:
    """The name in Emu-I's file of a tensor of the release."""
    return PEFT_DECODER + name.removeprefix(DECODER) if name.startswith(DECODER) else name


def lora_rank(names_and_shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int | None:
    """The adapters' rank; None where there are none."""
    for name, shape in names_and_shapes:
        if name.endswith(".lora_A.default.weight"):
            return shape[0]
    return None


def _same(name: str, shape: tuple[int, ...], path: str, ours: tuple[int, ...], layers: int | None = None) -> Row:
    return Row(name, shape, path, ours, tuple(range(len(shape))), layers)


def _linear(name: str, shape: tuple[int, ...], path: str, ours: tuple[int, ...], layers: int | None = None) -> Row:
    return Row(name, shape, path, ours, _TRANSPOSED, layers)
