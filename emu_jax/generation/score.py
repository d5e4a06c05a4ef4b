"""Log-likelihood of given answers after prompts: ranks options without generating any."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.buckets import power_of_two
from emu_jax.generation.decode import prefill, repeat_rows
from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.typing import Array, Float, Int


@functools.partial(jax.jit, static_argnames="model")
def score_candidates(
    params: Any, prompts: PromptBatch, candidates: Int[Array, "B n T"], lengths: Int[Array, "B n"], *, model: Emu
) -> Float[Array, "B n"]:
    """Return the log-likelihood of each candidate's first `lengths` tokens after its prompt, which is read once."""
    rows, count, length = candidates.shape
    candidates = candidates.reshape(rows * count, length)
    embedding, cache = prefill(model, params, prompts, capacity=length)
    cache = repeat_rows(cache, count)
    rest = model.apply({"params": params}, candidates[:, :-1], method=Emu.embed)
    inputs = jnp.concatenate([jnp.repeat(embedding, count, axis=0)[:, None], rest], axis=1)
    hidden, _ = model.apply({"params": params}, inputs, cache, method=Emu.extend)
    logits = model.apply({"params": params}, hidden, method=Emu.next_logits).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits[..., : model.config.decoder.vocab_size], axis=-1)
    taken = jnp.take_along_axis(log_probs, candidates[:, :, None], axis=2)[:, :, 0]
    counted = jnp.arange(length) < lengths.reshape(-1)[:, None]
    return jnp.sum(jnp.where(counted, taken, 0.0), axis=1).reshape(rows, count)


def candidate_ids(
    candidates: Sequence[Sequence[str]], tokenizer: Tokenizer, *, special_tokens: bool, end: bool
) -> list[list[list[int]]]:
    """Return the tokens of the candidates of each prompt, with `</s>` if `end`.

    The release ranks the options of VisDial without `</s>`. It divides the log-likelihood of an option's tokens by the
    length of prompt and option minus one, which is the same order as that of the sum for options of equal length.

    Raises:
      UserError: there is no candidate, or one is empty.
    """
    if not candidates or not all(candidates):
        raise UserError("There is no candidate to score.")
    closing = [tokenizer.eos_id] if end else []
    ids = [[tokenizer.encode(text.strip(), special_tokens=special_tokens) for text in some] for some in candidates]
    if not all(one for some in ids for one in some):
        raise UserError("A candidate is empty.")
    return [[[*one, *closing] for one in some] for some in ids]


def pad_candidates(ids: Sequence[Sequence[Sequence[int]]], *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right-padded `candidates` `[B n T]` and their `lengths` `[B n]`; rows and candidates are rounded up."""
    rows, count = power_of_two(len(ids)), power_of_two(max(map(len, ids)))
    candidates = np.zeros((rows, count, length), np.int32)
    lengths = np.zeros((rows, count), np.int32)
    for row, some in enumerate(ids):
        for column, one in enumerate(some):
            candidates[row, column, : len(one)] = one
            lengths[row, column] = len(one)
    return candidates, lengths
