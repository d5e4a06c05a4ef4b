"""Emu (Sun et al., ICLR 2024) in plain PyTorch, for `AutoModel.from_pretrained(DIR, trust_remote_code=True)`.

pixels -> visual -> ln_visual -> cformer -> visual embeddings, which replace the embeddings of the `<image>` tokens
tokens and visual embeddings -> decoder.lm.model -> lm_head (next token), stu_regress_head (next visual embedding)

Parameters have the names of the release. Letters in shapes: B batch, L length, D width, N heads, H head dimension,
S keys, V vocabulary, n images, P patches and class token, Q visual embeddings per image.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_emu import EmuConfig
from .generation_emu import TextGeneration

Cache = tuple[tuple[Tensor, Tensor], ...]  # keys and values [B, N, S, H] of each layer


@dataclass
class EmuModelOutput(ModelOutput):
    """Outputs of one forward pass.

    loss: mean cross-entropy of the labels, if there are labels.
    logits: scores of the next token, `[B, L, V]`.
    visual_predictions: predictions of the next visual embedding, `[B, L, D]`.
    last_hidden_state: states of the decoder, `[B, L, D]`.
    visual_embeddings: of the images, `[n, Q, D]`.
    past_key_values: keys and values of all positions so far.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    visual_predictions: Tensor | None = None
    last_hidden_state: Tensor | None = None
    visual_embeddings: Tensor | None = None
    past_key_values: Cache | None = None


class RMSNorm(nn.Module):
    """Return `x / sqrt(mean(x^2) + eps) * weight`, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


class VisionAttention(nn.Module):
    """Self-attention with one kernel for q, k and v, and biases for q and v only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (_split(y, self.heads) for y in (query + self.q_bias, key, value + self.v_bias))
        return self.proj(_merge(F.scaled_dot_product_attention(query, key, value)))


class VisionMlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """`x + attn(norm1(x))`, then `x + mlp(norm2(x))`."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, eps = sizes["width"], sizes["norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = VisionAttention(width, sizes["num_heads"])
        self.mlp = VisionMlp(width, sizes["mlp_dim"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Pixels `[n, 3, S, S]` to one vector per patch, row by row."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """EVA-CLIP without its final norm: pixels `[n, 3, S, S]` to `[n, P, C]`, the class token first."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        tokens = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = PatchEmbed(width, sizes["patch_size"])
        self.blocks = nn.ModuleList(VisionBlock(sizes) for _ in range(sizes["num_layers"]))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class FormerAttention(nn.Module):
    """T5's attention, whose scores are not scaled. `source` is the width of the keys' and values' input."""

    def __init__(self, sizes: dict[str, Any], source: int) -> None:
        super().__init__()
        width, self.heads = sizes["width"], sizes["num_heads"]
        inner = self.heads * sizes["head_dim"]
        self.q = nn.Linear(width, inner, bias=False)
        self.k, self.v = nn.Linear(source, inner, bias=False), nn.Linear(source, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        query, key, value = (_split(y, self.heads) for y in (self.q(x), self.k(source), self.v(source)))
        bias = None if bias is None else bias.to(query.dtype)
        return self.o(_merge(F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)))


class FormerMlp(nn.Module):
    """Two linear layers without biases, with ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.relu(self.wi(x)))


class FormerBlock(nn.Module):
    """Causal self-attention, cross-attention to the image, MLP; with a norm before and dropout after each."""

    def __init__(self, sizes: dict[str, Any], source: int, *, first: bool) -> None:
        super().__init__()
        width, eps = sizes["width"], sizes["norm_eps"]
        self.layer = nn.ModuleList(nn.ModuleDict({"layer_norm": RMSNorm(width, eps)}) for _ in range(3))
        self.layer[0]["SelfAttention"] = FormerAttention(sizes, width)
        if first:  # all blocks use its table
            table = nn.Embedding(sizes["relpos_buckets"], sizes["num_heads"])
            self.layer[0]["SelfAttention"].relative_attention_bias = table
        self.layer[1]["EncDecAttention"] = FormerAttention(sizes, source)
        self.layer[2]["DenseReluDense"] = FormerMlp(width, sizes["mlp_dim"])
        self.dropout = nn.Dropout(sizes["dropout"])

    def forward(self, x: Tensor, features: Tensor, bias: Tensor) -> Tensor:
        self_attention, cross_attention, mlp = self.layer
        normed = self_attention["layer_norm"](x)
        x = x + self.dropout(self_attention["SelfAttention"](normed, normed, bias))
        x = x + self.dropout(cross_attention["EncDecAttention"](cross_attention["layer_norm"](x), features))
        return x + self.dropout(mlp["DenseReluDense"](mlp["layer_norm"](x)))


class FormerStack(nn.Module):
    """The blocks of the causal former, with the relative bias of the first block."""

    def __init__(self, sizes: dict[str, Any], source: int) -> None:
        super().__init__()
        self.buckets, self.max_distance = sizes["relpos_buckets"], sizes["relpos_max_distance"]
        self.block = nn.ModuleList(FormerBlock(sizes, source, first=i == 0) for i in range(sizes["num_layers"]))
        self.final_layer_norm = RMSNorm(sizes["width"], sizes["norm_eps"])

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        bias = self._bias(x.shape[1], x.device)
        for block in self.block:
            x = block(x, features, bias)
        return self.final_layer_norm(x)

    def _bias(self, length: int, device: torch.device) -> Tensor:
        """Return `[1, N, Q, Q]`: T5's causal relative bias (Raffel et al. 2020), -inf for later keys."""
        index = torch.arange(length, device=device)
        distance = (index[:, None] - index[None, :]).clamp(min=0)
        exact = self.buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (self.buckets - exact)).long()).clamp(max=self.buckets - 1)
        table = self.block[0].layer[0]["SelfAttention"].relative_attention_bias
        bias = table(torch.where(distance < exact, distance, far)).permute(2, 0, 1)[None]
        later = index[None, :] > index[:, None]
        return bias.masked_fill(later.to(bias.device), -math.inf)


class CausalFormer(nn.Module):
    """Image features `[n, P, C]` to visual embeddings `[n, Q, D]`."""

    def __init__(self, sizes: dict[str, Any], source: int, out: int) -> None:
        super().__init__()
        self.causal_tokens = nn.Parameter(torch.zeros(1, sizes["num_image_tokens"], sizes["width"]))
        self.cformer = FormerStack(sizes, source)
        self.projection = nn.Linear(sizes["width"], out)
        self.dropout = nn.Dropout(sizes["dropout"])

    def forward(self, features: Tensor) -> Tensor:
        queries = self.causal_tokens.expand(len(features), -1, -1)
        return self.projection(self.dropout(self.cformer(self.dropout(queries), features)))


class DecoderAttention(nn.Module):
    """Causal self-attention with rotary positions and a cache of keys and values."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = sizes["width"], sizes["num_heads"], sizes["num_kv_heads"]
        inner = width // self.heads * self.kv_heads
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        query = _rotate(_split(self.q_proj(x), self.heads), *rotary)
        key = _rotate(_split(self.k_proj(x), self.kv_heads), *rotary)
        value = _split(self.v_proj(x), self.kv_heads)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        groups = self.heads // self.kv_heads
        out = F.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=mask
        )
        return self.o_proj(_merge(out)), (key, value)


class DecoderMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """`x + self_attn(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, eps = sizes["width"], sizes["norm_eps"]
        self.self_attn = DecoderAttention(sizes)
        self.mlp = DecoderMlp(width, sizes["mlp_dim"])
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width, eps), RMSNorm(width, eps)

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], past: Any) -> tuple[Tensor, Any]:
        attended, cache = self.self_attn(self.input_layernorm(x), mask, rotary, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nn.Module):
    """LLaMA without its head: inputs `[B, L, D]` to states `[B, L, D]`."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.head_dim, self.theta = sizes["width"] // sizes["num_heads"], sizes["rope_theta"]
        self.embed_tokens = nn.Embedding(sizes["vocab_size"], sizes["width"])
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes["num_layers"]))
        self.norm = RMSNorm(sizes["width"], sizes["norm_eps"])

    def forward(self, x: Tensor, attention_mask: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        length = x.shape[1]
        attended = attention_mask.to(x.device).bool()
        positions = (attended.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        key = torch.arange(attended.shape[1], device=x.device)
        query = key[-length:, None]
        mask = ((key <= query) & attended[:, None, :] | (key == query))[:, None]  # no row without any key
        frequencies = self.theta ** (-torch.arange(0, self.head_dim, 2, device=x.device).float() / self.head_dim)
        angles = positions[:, None, :, None].float() * frequencies
        rotary, cache = (angles.cos(), angles.sin()), []
        for i, layer in enumerate(self.layers):
            x, layer_cache = layer(x, mask, rotary, None if past is None else past[i])
            cache.append(layer_cache)
        return self.norm(x), tuple(cache)


class LanguageModel(nn.Module):
    """The decoder and its two heads."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width = sizes["width"]
        self.model = Decoder(sizes)
        self.lm_head = nn.Linear(width, sizes["vocab_size"], bias=False)
        self.stu_regress_head = nn.Linear(width, width, bias=False)


class EmuModel(TextGeneration, PreTrainedModel):
    """The complete Emu: reads text and images, generates text and visual embeddings."""

    config_class = EmuConfig
    _auto_class = "AutoModel"  # `save_pretrained` writes the code too
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _no_split_modules = ["VisionEncoder", "CausalFormer", "DecoderLayer"]  # noqa: RUF012  as transformers defines it
    _supports_sdpa = True
    _tied_weights_keys = None

    def __init__(self, config: EmuConfig) -> None:
        super().__init__(config)
        vision, former, language = config.vision, config.causal_former, config.language_model
        self.visual = VisionEncoder(vision)
        self.ln_visual = nn.LayerNorm(vision["width"], eps=vision["norm_eps"])
        self.cformer = CausalFormer(former, vision["width"], language["width"])
        self.decoder = nn.Module()
        self.decoder.lm = LanguageModel(language)
        self.post_init()

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: `generate` is this model's own, without transformers' GenerationConfig."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.decoder.lm.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.decoder.lm.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the language head."""
        return self.decoder.lm.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language head."""
        self.decoder.lm.lm_head = value

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return the visual embeddings `[n, Q, D]` of normalized pixels `[n, 3, S, S]`."""
        dtype, device = self.visual.patch_embed.proj.weight.dtype, self.device
        pixels = pixel_values.to(device if device.type != "meta" else pixel_values.device, dtype)
        return self.cformer(self.ln_visual(self.visual(pixels)))

    def embed(self, input_ids: Tensor, visual_embeddings: Tensor | None = None) -> Tensor:
        """Return the inputs `[B, L, D]` of the decoder; the images are in the order of their `<image>` tokens."""
        embeddings = self.decoder.lm.model.embed_tokens(input_ids)
        is_image = (input_ids == self.config.image_token_id).to(embeddings.device)
        count = 0 if visual_embeddings is None else visual_embeddings.shape[0] * visual_embeddings.shape[1]
        if int(is_image.sum()) != count:
            raise ValueError(f"There are {int(is_image.sum())} <image> tokens, but {count} embeddings of images.")
        if visual_embeddings is None:
            return embeddings
        flat = visual_embeddings.flatten(0, 1).to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(is_image[..., None], flat)

    def extend(self, embeddings: Tensor, attention_mask: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Return the states of `embeddings` `[B, L, D]` and the cache; `attention_mask` is `[B, past + L]`."""
        return self.decoder.lm.model(embeddings, attention_mask, past)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = True,
        **_unused: Any,
    ) -> EmuModelOutput | tuple[Any, ...]:
        """Run the model.

        Args:
          input_ids: `[B, L]`, with Q `<image>` tokens per image.
          attention_mask: 1 for tokens, 0 for padding, of all positions including the cached ones.
          pixel_values: normalized images `[n, 3, S, S]` in the order of their tokens.
          inputs_embeds: inputs of the decoder `[B, L, D]`, instead of ids and pixels.
          past_key_values: from the previous call.
          labels: ids `[B, L]`, -100 where there is no loss; position i is the label of the state at i - 1.
          return_dict: False returns a tuple of the outputs.
        """
        visual = None if pixel_values is None else self.encode_images(pixel_values)
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Pass input_ids or inputs_embeds.")
            inputs_embeds = self.embed(input_ids, visual)
        if attention_mask is None:
            past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
            attention_mask = torch.ones(len(inputs_embeds), past + inputs_embeds.shape[1], device=inputs_embeds.device)
        hidden, cache = self.extend(inputs_embeds, attention_mask, past_key_values)
        logits = self.decoder.lm.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device))
        output = EmuModelOutput(
            loss=loss,
            logits=logits,
            visual_predictions=self.decoder.lm.stu_regress_head(hidden),
            last_hidden_state=hidden,
            visual_embeddings=visual,
            past_key_values=cache,
        )
        return output if return_dict is not False else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, VisionEncoder):
            nn.init.normal_(module.cls_token, std=0.02)
            nn.init.normal_(module.pos_embed, std=0.02)
        elif isinstance(module, VisionAttention):
            nn.init.zeros_(module.q_bias)
            nn.init.zeros_(module.v_bias)
        elif isinstance(module, CausalFormer):
            nn.init.normal_(module.causal_tokens, std=0.02)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def _split(x: Tensor, heads: int) -> Tensor:
    """Return `[B, N, L, H]` for `[B, L, N H]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """Return `[B, L, N H]` for `[B, N, L, H]`."""
    return x.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs `(x[i], x[i + H/2])` in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
