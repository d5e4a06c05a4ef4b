"""How likely each of some answers is after a prompt: what ranks options without writing any."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.generation.decode import prefill, repeat_rows
from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.typing import Array, Float, Int


@functools.partial(jax.jit, static_argnames="model")
def score_candidates(
    params: Any, prompt: PromptBatch, candidates: Int[Array, "n T"], lengths: Int[Array, " n"], *, model: Emu
) -> Float[Array, " n"]:
    """Log-likelihood of each candidate's first `lengths` tokens after the one prompt, which is read once."""
    count, length = candidates.shape
    embedding, cache = prefill(model, params, prompt, capacity=length)
    cache = repeat_rows(cache, count)
    words = model.apply({"params": params}, candidates[:, :-1], method=Emu.embed)
    inputs = jnp.concatenate([jnp.repeat(embedding, count, axis=0)[:, None], words], axis=1)
    hidden, _ = model.apply({"params": params}, inputs, cache, method=Emu.extend)
    logits = model.apply({"params": params}, hidden, method=Emu.next_logits).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits[..., : model.config.decoder.vocab_size], axis=-1)
    taken = jnp.take_along_axis(log_probs, candidates[:, :, None], axis=2)[:, :, 0]
    return jnp.sum(jnp.where(jnp.arange(length) < lengths[:, None], taken, 0.0), axis=1)
