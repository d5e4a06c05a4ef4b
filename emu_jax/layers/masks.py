"""Attention masks. True: the query may attend to the key."""

import dataclasses

import jax
import jax.numpy as jnp

from emu_jax.typing import Array, Bool, Int, typechecked


@dataclasses.dataclass(frozen=True)
class PackedCausal:
    """The mask of `packed_causal_mask`, given by `segment_ids` `[B, L]`. `attend` builds the array only if needed."""

    segment_ids: jax.Array


jax.tree_util.register_dataclass(PackedCausal, data_fields=["segment_ids"], meta_fields=[])


@typechecked
def packed_causal_mask(segment_ids: Int[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Return a causal mask within each document. Padding (segment 0) attends to padding; its outputs are not used.

    segment_ids 1 1 2 2 0:

               key 1 1 2 2 0
        query 1    x . . . .
              1    x x . . .
              2    . . x . .
              2    . . x x .
              0    . . . . x
    """
    length = segment_ids.shape[1]
    causal = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    return causal[None] & (segment_ids[:, :, None] == segment_ids[:, None, :])


@typechecked
def cached_causal_mask(valid: Bool[Array, "B S"], start: Int[Array, ""], query_length: int) -> Bool[Array, "B T S"]:
    """Return a mask where the queries at cache slots start, start + 1, ... attend to valid slots up to their own.

    valid 0 1 1 1 (the first row is left-padded by one), start 2, two queries:

              slot 0 1 2 3
        query 2    . x x .
              3    . x x x
    """
    slots = jnp.arange(valid.shape[1])
    queries = start + jnp.arange(query_length)
    return valid[:, None, :] & (slots[None, None, :] <= queries[None, :, None])
