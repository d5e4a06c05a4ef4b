"""Tables that grow with the vocabulary: a model's new tokens begin as the mean of those it knew."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.convert.emu_config import find_config, read_config

_TABLES = {"decoder/token_embedding": 0, "lm_head/projection/kernel": 1}  # path -> axis of the vocabulary


def vocabulary_of(checkpoint: Path) -> int | None:
    """The true vocabulary of a model directory, a run, or one of its steps; None where no config tells it."""
    config = find_config(checkpoint)
    return None if config is None else read_config(config).decoder.vocab_size


def growing_tables(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, int]:
    """The tables of the vocabulary, path -> axis, whose saved and own shapes differ in nothing but its padded size."""
    others = lambda leaf, axis: (*leaf.shape[:axis], *leaf.shape[axis + 1 :])
    return {
        name: axis
        for name, axis in _TABLES.items()
        if name in saved and name in own and others(saved[name], axis) == others(own[name], axis)
    }


@functools.partial(jax.jit, static_argnames=("axis", "known", "vocab_size", "rows"))
def grow(table: jax.Array, *, axis: int, known: int, vocab_size: int, rows: int) -> jax.Array:
    """A table of `vocab_size` tokens along `axis`, padded with zeros to `rows`, from one of `known` tokens.

    Emu's release gives the rows that it adds to LLaMA the mean of the old ones, in the embeddings and in the head.

        grow([[1, 1], [3, 5], [0, 0]], axis=0, known=2, vocab_size=3, rows=4)  ->  [[1, 1], [3, 5], [2, 3], [0, 0]]
    """
    old = jax.lax.slice_in_dim(table, 0, known, axis=axis)
    mean = jnp.mean(old, axis=axis, keepdims=True, dtype=jnp.float32).astype(table.dtype)
    new = jnp.repeat(mean, vocab_size - known, axis=axis)
    padding = jnp.repeat(jnp.zeros_like(mean), rows - vocab_size, axis=axis)
    return jnp.concatenate([old, new, padding], axis=axis)
