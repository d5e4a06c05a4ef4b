"""Emu (Sun et al., ICLR 2024): one autoregressive model over text tokens and visual embeddings.

images -> vision_encoder -> visual_norm -> causal_former -> visual_embeddings
                                                                  |
tokens -> token embedding --------- replaced at <image> ----------+-> decoder -> lm_head            next token
                                                                              -> regression_head    next embedding
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu_jax.layers.attention import LayerCache
from emu_jax.layers.masks import PackedCausal, cached_causal_mask
from emu_jax.layers.norms import LayerNorm
from emu_jax.models.causal_former import CausalFormer
from emu_jax.models.config import EmuConfig
from emu_jax.models.eva_clip import EvaVisionTransformer, normalize_pixels
from emu_jax.models.fusion import insert_visual_embeddings
from emu_jax.models.heads import LanguageModelHead, RegressionHead
from emu_jax.models.llama import LlamaDecoder
from emu_jax.models.outputs import EmuOutput, KVCache
from emu_jax.typing import Array, ArrayLike, Bool, Float, Int, Shaped, typechecked


class Emu(nn.Module):
    """The complete model. `image_token_id` is the id of `<image>`, which visual embeddings replace."""

    config: EmuConfig
    image_token_id: int

    def setup(self) -> None:
        config = self.config
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.vision_encoder = EvaVisionTransformer(config.vision, lora=config.lora, **dtypes)
        self.visual_norm = LayerNorm(eps=config.vision.norm_eps, **dtypes)
        self.causal_former = CausalFormer(
            config.causal_former, out_features=config.decoder.width, lora=config.lora, **dtypes
        )
        self.decoder = LlamaDecoder(config.decoder, lora=config.lora, **dtypes)
        self.lm_head = LanguageModelHead(config.decoder, **dtypes)
        self.regression_head = RegressionHead(**dtypes)

    @typechecked
    def __call__(
        self,
        tokens: Int[ArrayLike, "B L"],
        images: Shaped[ArrayLike, "B I H W C"] | None = None,
        *,
        positions: Int[ArrayLike, "B L"] | None = None,
        segment_ids: Int[ArrayLike, "B L"] | None = None,
        deterministic: bool = True,
    ) -> EmuOutput:
        """Run a forward pass over rows of one document each, or of several packed ones given by `segment_ids`.

        Args:
          tokens: ids with Q `<image>` tokens per image.
          images: uint8 pixels, or normalized float pixels, in the order of their tokens.
          positions: rotary positions. Default: 0, 1, 2, ...
          segment_ids: 0 for padding, 1, 2, ... for the documents of a row. Default: one document per row.
        """
        tokens = jnp.asarray(tokens)
        batch, length = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        if segment_ids is None:
            segment_ids = jnp.ones((batch, length), jnp.int32)
        visual_embeddings = None
        if images is not None:
            flat = images.reshape(-1, *images.shape[2:])
            embedded = self.embed_images(flat, deterministic=deterministic)
            visual_embeddings = embedded.reshape(batch, images.shape[1], *embedded.shape[1:])
        embeddings = self.embed(tokens, visual_embeddings)
        hidden, _ = self.decoder(
            embeddings,
            positions=jnp.asarray(positions),
            mask=PackedCausal(jnp.asarray(segment_ids)),
            deterministic=deterministic,
        )
        return EmuOutput(
            logits=self.lm_head(hidden),
            visual_predictions=self.regression_head(hidden),
            hidden=hidden,
            input_embeddings=embeddings,
            visual_embeddings=visual_embeddings,
        )

    @typechecked
    def image_features(
        self, images: Shaped[ArrayLike, "n H W C"], *, deterministic: bool = True
    ) -> Float[Array, "n P C2"]:
        """Return the vision encoder's tokens before any final norm, class token first."""
        return self.vision_encoder(normalize_pixels(images), deterministic=deterministic)

    @typechecked
    def embed_images(
        self, images: Shaped[ArrayLike, "n H W C"], *, deterministic: bool = True
    ) -> Float[Array, "n Q D"]:
        """Return the `visual_embeddings` of images that are flattened over rows."""
        features = self.visual_norm(self.image_features(images, deterministic=deterministic))
        return self.causal_former(features, deterministic=deterministic)

    @typechecked
    def embed(
        self, tokens: Int[ArrayLike, "B L"], visual_embeddings: Float[Array, "B I Q D"] | None = None
    ) -> Float[Array, "B L D"]:
        """Return the decoder's inputs: token embeddings, with `visual_embeddings` at the `<image>` tokens."""
        tokens = jnp.asarray(tokens)
        embeddings = self.decoder.embed(tokens)
        if visual_embeddings is None:
            return embeddings
        return insert_visual_embeddings(embeddings, visual_embeddings, tokens == self.image_token_id)

    @typechecked
    def extend(
        self, embeddings: Float[Array, "B T D"], cache: KVCache, *, is_token: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Run the decoder on the next T positions: a prompt (`prefill`) or one decode step (`extend_step`).

        Args:
          embeddings: from `embed`, or visual predictions of earlier steps.
          cache: from `models.llama.empty_cache`, or from the previous call.
          is_token: False at left padding. Default: no padding.

        Returns:
          hidden: states of the decoder, inputs of `lm_head` and `regression_head`.
          cache: with the keys and values of this call.
        """
        batch, length, _ = embeddings.shape
        if is_token is None:
            is_token = jnp.ones((batch, length), bool)
        valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, is_token, cache.index, axis=1)
        count = jnp.cumsum(is_token, axis=1)
        positions = cache.positions[:, None] + jnp.maximum(count - 1, 0)
        hidden, filled = self.decoder(
            embeddings,
            positions=positions,
            mask=cached_causal_mask(valid, cache.index, length),
            cache=dataclasses.replace(cache, valid=valid, positions=cache.positions + count[:, -1]),
        )
        return hidden, filled

    @typechecked
    def extend_step(
        self, embedding: Float[Array, "B D"], cache: KVCache, *, blocks: Sequence[Any] | None = None
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """Run the decoder on one position of each row, as in `extend`.

        Args:
          blocks: the parameters of each decoder layer, for a cache whose keys and values are tuples of one array per
            layer. Default: stacked parameters and cache, with a scan over layers.
        """
        if blocks is None:
            hidden, cache = self.extend(embedding[:, None], cache)
            return hidden[:, 0], cache
        is_token = jnp.ones((embedding.shape[0], 1), bool)
        valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, is_token, cache.index, axis=1)
        layers = tuple(LayerCache(key, value, cache.index) for key, value in zip(cache.key, cache.value, strict=True))
        hidden, layers = self.run_layers(
            embedding[:, None],
            layers,
            blocks,
            positions=cache.positions[:, None],
            mask=cached_causal_mask(valid, cache.index, 1),
        )
        cache = KVCache(
            key=tuple(layer.key for layer in layers),  # type: ignore[arg-type]
            value=tuple(layer.value for layer in layers),  # type: ignore[arg-type]
            valid=valid,
            index=cache.index + 1,
            positions=cache.positions + 1,
        )
        return hidden[:, 0], cache

    def run_layers(
        self, x: jax.Array, caches: Sequence[Any], blocks: Sequence[Any], *, positions: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Run the decoder's layers one after the other (see `LlamaDecoder.run_layers`)."""
        return self.decoder.run_layers(x, caches, blocks, positions=positions, mask=mask)

    @typechecked
    def next_logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Return the scores of the next token."""
        return self.lm_head(hidden)

    @typechecked
    def next_embedding(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return the predicted next visual embedding."""
        return self.regression_head(hidden)
