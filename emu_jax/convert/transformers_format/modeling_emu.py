"""Emu (Sun et al., ICLR 2024) in plain PyTorch, for `AutoModel.from_pretrained(DIR, trust_remote_code=True)`.

pixels -> visual -> ln_visual -> cformer -> visual embeddings, which replace the embeddings of the `<image>` tokens
tokens and visual embeddings -> decoder.lm.model -> lm_head (next token), stu_regress_head (next visual embedding)

Parameters have the names of the release. Letters in shapes: B batch, L length, D width, N heads, H head dimension,
S keys, V vocabulary, n images, P patches and class token, Q visual embeddings per image.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_emu import EmuConfig
from .generation_emu import TextGeneration
from .vision_emu import CausalFormer, RMSNorm, VisionAttention, VisionEncoder, merge_heads, split_heads

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
        query = _rotate(split_heads(self.q_proj(x), self.heads), *rotary)
        key = _rotate(split_heads(self.k_proj(x), self.kv_heads), *rotary)
        value = split_heads(self.v_proj(x), self.kv_heads)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        groups = self.heads // self.kv_heads
        out = F.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=mask
        )
        return self.o_proj(merge_heads(out)), (key, value)


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


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs `(x[i], x[i + H/2])` in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
