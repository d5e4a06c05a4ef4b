"""A plain PyTorch Emu for comparisons: torch modules, transformers' LLaMA, the tensor names of the release."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from emu_jax.convert.emu_table import emu_table
from emu_jax.convert.table import tree_to_tensors
from emu_jax.models.config import CausalFormerConfig, EmuConfig, VisionConfig
from emu_jax.pixels import CLIP_MEAN, CLIP_STD


class EvaAttention(nn.Module):
    """Self-attention with biases for queries and values only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = functional.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).flatten(2))


class EvaBlock(nn.Module):
    """A pre-norm block of the vision encoder."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = EvaAttention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(config.width, config.mlp_dim), "fc2": nn.Linear(config.mlp_dim, config.width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Vision(nn.Module):
    """The vision encoder: uint8 images [n H W 3] to features [n P C]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.width))
        patch = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": patch})
        self.blocks = nn.Sequential(*(EvaBlock(config) for _ in range(config.num_layers)))
        self.register_buffer("mean", torch.tensor(CLIP_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed)


class CausalFormer(nn.Module):
    """transformers' T5 decoder over learned queries, with keys and values of the vision encoder's width."""

    def __init__(self, config: CausalFormerConfig, *, source_width: int, out_width: int) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.causal_tokens = nn.Parameter(torch.zeros(1, config.num_image_tokens, config.width))
        self.cformer = transformers.models.t5.modeling_t5.T5Stack(
            transformers.T5Config(
                is_decoder=True,
                use_cache=False,
                is_encoder_decoder=False,
                d_model=config.width,
                d_kv=config.head_dim,
                d_ff=config.mlp_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                vocab_size=1,
                feed_forward_proj="relu",
                relative_attention_num_buckets=config.relpos_buckets,
                relative_attention_max_distance=config.relpos_max_distance,
                dropout_rate=config.dropout,
            )
        )
        for block in self.cformer.block:
            attention = block.layer[1].EncDecAttention
            attention.k = nn.Linear(source_width, inner, bias=False)
            attention.v = nn.Linear(source_width, inner, bias=False)
        self.projection = nn.Linear(config.width, out_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        queries = self.causal_tokens.expand(len(features), -1, -1)
        output = self.cformer(inputs_embeds=queries, encoder_hidden_states=features, use_cache=False)
        return self.projection(output.last_hidden_state)


class TorchEmu(nn.Module):
    """The complete model; `forward` returns the two losses of a batch of packed rows."""

    def __init__(self, config: EmuConfig, *, image_token_id: int) -> None:
        super().__init__()
        self.config, self.image_token_id = config, image_token_id
        decoder = config.decoder
        self.visual = Vision(config.vision)
        self.ln_visual = nn.LayerNorm(config.vision.width, eps=config.vision.norm_eps)
        self.cformer = CausalFormer(config.causal_former, source_width=config.vision.width, out_width=decoder.width)
        lm = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=decoder.vocab_size,
                hidden_size=decoder.width,
                intermediate_size=decoder.mlp_dim,
                num_hidden_layers=decoder.num_layers,
                num_attention_heads=decoder.num_heads,
                num_key_value_heads=decoder.num_kv_heads,
                max_position_embeddings=decoder.max_length,
                rms_norm_eps=decoder.norm_eps,
                rope_theta=decoder.rope_theta,
                pad_token_id=None,
                attn_implementation="sdpa",
            )
        )
        lm.stu_regress_head = nn.Linear(decoder.width, decoder.width, bias=False)
        self.decoder = nn.ModuleDict({"lm": lm})

    def load(self, params: Any) -> None:
        """Copy the parameters of our model."""
        state = {t.name: torch.from_numpy(t.read().copy()) for t in tree_to_tensors(emu_table(self.config), params)}
        result = self.load_state_dict(state, strict=False)
        assert not result.unexpected_keys, result.unexpected_keys
        assert set(result.missing_keys) == {"cformer.cformer.embed_tokens.weight"}, result.missing_keys

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean text loss and the mean regression loss."""
        lm, tokens = self.decoder["lm"], batch["tokens"]
        visual = self.cformer(self.ln_visual(self.visual(batch["images"].flatten(0, 1))))
        is_image = tokens == self.image_token_id
        inputs = lm.model.embed_tokens(tokens)
        inputs = inputs.masked_scatter(is_image[..., None], visual.flatten(0, 1)[: is_image.sum()])
        segment_ids = batch["segment_ids"]
        causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        mask = causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
        hidden = lm.model(
            inputs_embeds=inputs, attention_mask=mask[:, None], position_ids=batch["positions"], use_cache=False
        ).last_hidden_state
        logits = lm.lm_head(hidden)[:, :-1]
        text_mask = batch["text_loss_mask"][:, :-1]
        text = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        errors = (lm.stu_regress_head(hidden[:, :-1]) - inputs[:, 1:].detach()).square().mean(-1)
        regression_mask = batch["regression_mask"][:, :-1]
        return (
            (text * text_mask.flatten()).sum() / text_mask.sum(),
            (errors * regression_mask).sum() / regression_mask.sum(),
        )


def to_torch(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the batch as tensors."""
    return {
        name: torch.from_numpy(np.array(x)).long() if x.dtype == np.int32 else torch.from_numpy(np.array(x))
        for name, x in batch.items()
    }
