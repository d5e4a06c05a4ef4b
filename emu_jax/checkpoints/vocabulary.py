"""Grow the vocabulary tables of a model: a new token starts as the mean of the known ones, or of some of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from emu_jax.checkpoints.model_config import emu_config, find_config
from emu_jax.errors import UserError

TABLES = {"decoder/token_embedding": 0, "lm_head/projection/kernel": 1}  # path -> axis of the vocabulary

TokenSources = Mapping[int, tuple[int, ...]]  # new token -> the known tokens that it starts from


def vocabulary_of(checkpoint: epath.Path) -> int | None:
    """Return the true vocabulary size of a model directory, a run, or one of its steps; None if it has no config."""
    config = find_config(checkpoint)
    if config is None:
        return None
    try:
        values = json.loads(config.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} cannot be read ({error}).") from error
    return emu_config(values, source=Path(config.name)).decoder.vocab_size


def growing_tables(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, int]:
    """Return the vocabulary tables, path -> axis, whose saved and own shapes differ only in the padded vocabulary."""
    others = lambda leaf, axis: (*leaf.shape[:axis], *leaf.shape[axis + 1 :])
    return {
        name: axis
        for name, axis in TABLES.items()
        if name in saved and name in own and others(saved[name], axis) == others(own[name], axis)
    }


def grow(table: Any, *, axis: int, known: int, vocab_size: int, rows: int, sources: TokenSources | None = None) -> Any:
    """Return a table of `vocab_size` tokens along `axis`, padded with zeros to `rows`, from a table of `known` tokens.

    A new token gets the mean of its `sources`, or else of all known tokens, in the embeddings and in the head, as in
    the release of Emu. The rows of the known tokens are unchanged. The result is a NumPy array if `table` is one, and a
    JAX array otherwise.

        grow([[1, 1], [3, 5], [0, 0]], axis=0, known=2, vocab_size=3, rows=4)  ->  [[1, 1], [3, 5], [2, 3], [0, 0]]
    """
    xp = np if isinstance(table, np.ndarray) else jnp
    old = table[(slice(None),) * axis + (slice(known),)]
    mean = xp.mean(old, axis=axis, keepdims=True, dtype=xp.float32).astype(table.dtype)
    new = [mean] * (vocab_size - known)
    for token, ids in (sources or {}).items():
        if known <= token < vocab_size and ids and max(ids) < known:
            some = xp.take(old, xp.asarray(ids), axis=axis)
            new[token - known] = xp.mean(some, axis=axis, keepdims=True, dtype=xp.float32).astype(table.dtype)
    padding = xp.repeat(xp.zeros_like(mean), rows - vocab_size, axis=axis)
    return xp.concatenate([old, *new, padding], axis=axis)
