"""Position encodings: rotary tables of LLaMA and relative buckets of T5."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.typing import Array, Float, Int, typechecked


@dataclasses.dataclass(frozen=True)
class RotaryTables:
    """Cosines and sines `[B, L, 1, H/2]` in float32, to be broadcast over heads."""

    cos: jax.Array
    sin: jax.Array


jax.tree_util.register_dataclass(RotaryTables, data_fields=["cos", "sin"], meta_fields=[])


@typechecked
def rotary_tables(positions: Int[Array, "B L"], *, head_dim: int, theta: float = 10000.0) -> RotaryTables:
    """Return the tables of the angles `position * theta^(-2i/H)` (Su et al. 2021), computed in float32."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return RotaryTables(cos=jnp.cos(angles), sin=jnp.sin(angles))


@typechecked
def apply_rotary(x: Float[Array, "B L N H"], tables: RotaryTables) -> Float[Array, "B L N H"]:
    """Rotate the pairs `(x[i], x[i + H/2])`, the half-split layout of the Hugging Face LLaMA weights."""
    half = x.shape[-1] // 2
    # Swap each pair by an exact matmul with signed ones: slicing half heads would leave half of a TPU's lanes empty.
    swap = np.eye(2 * half, k=half) - np.eye(2 * half, k=-half)
    swapped = jnp.matmul(x, jnp.asarray(swap, x.dtype), precision=jax.lax.Precision.HIGHEST)
    cos, sin = (jnp.concatenate([table, table], axis=-1) for table in (tables.cos, tables.sin))
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


@typechecked
def relative_buckets(query_length: int, key_length: int, *, buckets: int, max_distance: int) -> Int[Array, "T S"]:
    """Return T5's causal relative-position buckets (Raffel et al. 2020, appendix; `bidirectional=False`).

    The distance is the query position minus the key position. The first half of the buckets hold one distance each, the
    second half grow logarithmically up to `max_distance`. Keys after the query are in bucket 0.

        buckets=4, max_distance=8:  distance 0 1 2 3 4 5 6 7 8+
                                    bucket   0 1 2 2 3 3 3 3 3
    """
    distance = jnp.maximum(jnp.arange(query_length)[:, None] - jnp.arange(key_length)[None, :], 0)
    exact = buckets // 2
    growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    logarithmic = jnp.minimum(exact + (growth * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return jnp.where(distance < exact, distance, logarithmic)
