"""Where a token stands: LLaMA's rotary tables and T5's relative buckets."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.typing import Array, Float, Int, typechecked


@dataclasses.dataclass(frozen=True)
class RotaryTables:
    """Cosines and sines `[B, L, 1, H/2]`, float32, ready to broadcast over heads."""

    cos: jax.Array
    sin: jax.Array


jax.tree_util.register_dataclass(RotaryTables, data_fields=["cos", "sin"], meta_fields=[])


@typechecked
def rotary_tables(positions: Int[Array, "B L"], *, head_dim: int, theta: float = 10000.0) -> RotaryTables:
    """Angles `position * theta^(-2i/H)` (Su et al. 2021), computed in float32."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return RotaryTables(cos=jnp.cos(angles), sin=jnp.sin(angles))


@typechecked
def apply_rotary(x: Float[Array, "B L N H"], tables: RotaryTables) -> Float[Array, "B L N H"]:
    """Rotates the pairs `(x[i], x[i + H/2])`: the half-split layout of the Hugging Face LLaMA weights."""
    half = x.shape[-1] // 2
    # The other of each pair with its sign, by an exact product: halves of a head would leave a TPU's lanes half empty.
    swap = np.eye(2 * half, k=half) - np.eye(2 * half, k=-half)
    other = jnp.matmul(x, jnp.asarray(swap, x.dtype), precision=jax.lax.Precision.HIGHEST)
    cos, sin = (jnp.concatenate([table, table], axis=-1) for table in (tables.cos, tables.sin))
    return (x.astype(jnp.float32) * cos + other.astype(jnp.float32) * sin).astype(x.dtype)


@typechecked
def relative_buckets(query_length: int, key_length: int, *, buckets: int, max_distance: int) -> Int[Array, "T S"]:
    """T5's causal relative-position buckets (Raffel et al. 2020, appendix; `bidirectional=False`).

    How far a key lies behind its query: the first half of the buckets count single steps, the second half grows
    with the logarithm of the distance up to `max_distance`; keys ahead of the query fall into bucket 0.

        buckets=4, max_distance=8:  distance 0 1 2 3 4 5 6 7 8+
                                    bucket   0 1 2 2 3 3 3 3 3
    """
    distance = jnp.maximum(jnp.arange(query_length)[:, None] - jnp.arange(key_length)[None, :], 0)
    exact = buckets // 2
    growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (growth * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return jnp.where(distance < exact, distance, far)
