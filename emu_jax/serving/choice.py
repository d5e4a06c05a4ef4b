"""The next token of each slot, with options that differ from slot to slot and are not compiled in."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emu_jax.generation.sampling import Controls, Search, choose, process_scores
from emu_jax.typing import Array, Float, Int


def next_scores(
    scores: Float[Array, "S V"],
    tokens: Int[Array, "S T"],
    length: Int[Array, " S"],
    controls: Controls,
    search: Search,
) -> Float[Array, "S V"]:
    """Return `process_scores` of each row by its own length and controls."""

    def process(penalized: bool) -> Callable[[], jax.Array]:
        one = dataclasses.replace(search, penalized=penalized)
        row = lambda s, t, n, c: process_scores(s[None], t[None], n, c, one)[0]
        return lambda: jax.vmap(row)(scores, tokens, length, controls)

    return jax.lax.cond(jnp.any(controls.repetition_penalty != 1), process(True), process(False))


def next_tokens(
    scores: Float[Array, "S V"], length: Int[Array, " S"], controls: Controls, search: Search
) -> Int[Array, " S"]:
    """Return `choose` of each row: the likeliest token at temperature 0, else one drawn by the row's seed.

    Sorting for top-k and top-p, and drawing, run only while some row needs them.
    """
    draws, filters = controls.temperature > 0, (controls.top_k > 0) | (controls.top_p < 1)
    safe = dataclasses.replace(controls, temperature=jnp.where(draws, controls.temperature, 1.0))

    def draw(filtered: bool) -> jax.Array:
        one = dataclasses.replace(search, sample=True, filtered=filtered)
        return jax.vmap(lambda s, n, c: choose(s[None], n, c, one)[0])(scores, length, safe)

    def drawn() -> jax.Array:
        plain = draw(False)
        return jax.lax.cond(jnp.any(draws & filters), lambda: jnp.where(filters, draw(True), plain), lambda: plain)

    likeliest = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jax.lax.cond(jnp.any(draws), lambda: jnp.where(draws, drawn(), likeliest), lambda: likeliest)
