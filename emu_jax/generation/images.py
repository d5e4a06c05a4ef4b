"""Generation of visual embeddings: prefill, then N regression steps whose predictions are the next inputs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.generation.decode import make_step, next_embedding, prefill
from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache


@functools.partial(jax.jit, static_argnames="model")
def generate_embeddings(params: Any, prompts: PromptBatch, *, model: Emu) -> jax.Array:
    """Return the N embeddings after prompts that end in `[IMG]`, float32 `[B, N, D]`, in one compiled program.

    The release runs the complete sequence again in each step; with causal attention the cache gives the same result.
    """
    steps = model.config.causal_former.num_image_tokens
    embedding, cache = prefill(model, params, prompts, capacity=steps)
    extend_step, cache = make_step(model, params, cache)

    def step(carry: tuple[jax.Array, KVCache], _: None) -> tuple[tuple[jax.Array, KVCache], jax.Array]:
        hidden, cache = extend_step(*carry)
        embedding = next_embedding(model, params, hidden)
        return (embedding, cache), embedding

    _, embeddings = jax.lax.scan(step, (embedding, cache), length=steps)
    return embeddings.swapaxes(0, 1).astype(jnp.float32)
