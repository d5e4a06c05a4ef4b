"""Beam search compared with a simple implementation of its rules, on small models where `</s>` is frequent."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.generation.beam import beam_search
from emu_jax.generation.options import TextOptions
from emu_jax.generation.sampling import compile_options
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import KVCache

V, BEAMS, CAPACITY, BATCH = 9, 3, 8, 4
BOS, EOS = 1, 2


@dataclasses.dataclass(frozen=True)
class Chain:
    """A model with the interface of Emu. Its cached state is a decaying sum of all tokens, so wrong beams differ."""

    @dataclasses.dataclass(frozen=True)
    class config:
        class decoder:
            vocab_size = V
            num_layers = 99  # too many to be unstacked

    def apply(self, variables: Any, *inputs: Any, method: Any) -> Any:
        table = variables["params"]
        if method is Emu.embed:
            return jax.nn.one_hot(inputs[0], V)
        if method is Emu.next_logits:
            return inputs[0] @ table
        embedding, cache = inputs
        assert method is Emu.extend_step
        state = 0.7 * cache.key[0, :, 0, 1] + embedding
        return state, dataclasses.replace(cache, key=cache.key.at[0, :, 0, 1].set(state))


def _expected(table: np.ndarray, start: np.ndarray, options: TextOptions) -> list[int]:
    """Return the result of beam search by the rules of transformers 4.29, for one row."""
    beams = [([BOS], 0.0 if k == 0 else -1e9, np.zeros(V)) for k in range(BEAMS)]
    hypotheses: list[tuple[float, list[int]]] = []
    done = False

    def add(tokens: list[int], score: float) -> None:
        normal = score / len(tokens) ** options.length_penalty
        if len(hypotheses) < BEAMS or normal > min(hypotheses)[0]:
            hypotheses.append((normal, tokens))
            if len(hypotheses) > BEAMS:
                hypotheses.remove(min(hypotheses, key=lambda one: one[0]))

    while len(beams[0][0]) <= options.max_new_tokens and not done:
        length = len(beams[0][0])
        candidates = []
        for k, (tokens, score, state) in enumerate(beams):
            state = 0.7 * state + (start if length == 1 else np.eye(V)[tokens[-1]])
            logits = state @ table
            log_probs = logits - math.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
            for token in set(tokens):
                log_probs[token] *= options.repetition_penalty  # all are negative
            if length < options.min_length:
                log_probs[EOS] = -np.inf
            candidates += [(score + log_probs[token], k, token, state) for token in range(V)]
        candidates = sorted(candidates, key=lambda one: -one[0])[: 2 * BEAMS]
        following = []
        for rank, (score, k, token, state) in enumerate(candidates):
            if token == EOS:
                if rank < BEAMS:
                    add(beams[k][0], score)
            else:
                following.append(([*beams[k][0], token], score, state))
            if len(following) == BEAMS:
                break
        if len(hypotheses) == BEAMS:
            best = candidates[0][0] / (length + 1) ** options.length_penalty
            if options.early_stopping == "never" and options.length_penalty > 0:
                best = candidates[0][0] / (options.max_new_tokens + 1) ** options.length_penalty
            done = options.early_stopping is True or min(hypotheses)[0] >= best
        beams = following
    if not done:
        for tokens, score, _ in beams:
            add(tokens, score)
    winner = max(hypotheses, key=lambda one: one[0])[1]
    return [*winner, EOS] if len(winner) <= options.max_new_tokens else winner


@functools.partial(jax.jit, static_argnames="search")
def _search(table: jax.Array, start: jax.Array, controls: Any, search: Any) -> tuple[jax.Array, jax.Array]:
    cache = KVCache(
        key=jnp.zeros((1, BATCH, 1, 1 + CAPACITY, V)),
        value=jnp.zeros((1, BATCH, 1, 1 + CAPACITY, 1)),
        valid=jnp.zeros((BATCH, 1 + CAPACITY), bool),
        index=jnp.int32(0),
        positions=jnp.zeros(BATCH, jnp.int32),
    )
    return beam_search(Chain(), table, start, cache, jnp.zeros(BATCH, bool), controls, search)


@pytest.mark.parametrize(
    "fixed",
    [{}, {"early_stopping": True}, {"early_stopping": "never"}, {"repetition_penalty": 1.3}],
    ids=["default", "early", "never", "penalty"],
)
def test_beams_follow_the_rules(fixed: dict) -> None:
    rng = np.random.default_rng(1)
    ended = 0
    for length_penalty in (0.0, 1.0, -1.0, 2.0):
        for min_length, max_new_tokens in ((0, CAPACITY), (4, CAPACITY), (0, 3)):
            options = TextOptions(
                num_beams=BEAMS,
                length_penalty=length_penalty,
                min_length=min_length,
                max_new_tokens=max_new_tokens,
                **fixed,
            )
            search, controls = compile_options(
                options, capacity=CAPACITY, max_new_tokens=max_new_tokens, bos_id=BOS, eos_id=EOS, pad_id=0
            )
            table = rng.normal(scale=1.5, size=(V, V)).astype(np.float32)
            start = rng.normal(size=(BATCH, V)).astype(np.float32)
            tokens, lengths = map(np.asarray, _search(table, start, controls, search))
            for row in range(BATCH):
                expected = _expected(table.astype(np.float64), start[row].astype(np.float64), options)
                assert tokens[row, : lengths[row]].tolist() == expected
                ended += expected[-1] == EOS
    assert ended > 10  # the rules for the end were used
