"""Compare text generation, embeddings and forward passes with PyTorch and transformers: equal weights, in turn.

    make parity                                                        # makes .venv-parity, with JAX and torch
    .venv-parity/bin/python experiments/benchmarks/generation.py

Width 512, 8 layers, 8 heads, LLaMA's vocabulary, a prompt of 256 tokens, batch 1, float32. Prints a table in Markdown:
medians in milliseconds, the ratio torch / ours (above 1: ours is faster), and the agreement of both results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import traverse_util

from emu_jax.checkpoints.model_directory import boxed_shapes
from emu_jax.convert.emu_table import DECODER, decoder_rows, regression_rows
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.options import TextOptions
from emu_jax.generation.prompt import PromptBatch
from emu_jax.generation.sampling import compile_options
from emu_jax.generation.text import generate_tokens
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import unbox

PROMPT, TOKENS, VOCABULARY = 256, 64, 32004
BOS, EOS, PAD, IMAGE = 1, 2, 32000, 32003
# Of 32 embeddings: with random weights the recursion is chaotic, and two methods in torch differ after about 12 steps.
COMPARED = 4
_MIN_MILLISECONDS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="minimum number of timed runs, and ten seconds")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    llama = make_llama()
    head = torch.nn.Linear(512, 512, bias=False)
    model, params = make_emu(llama, head)
    tokens = np.random.default_rng(0).integers(3, 32000, (1, PROMPT)).astype(np.int32)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}, "
          f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}; medians of at least {repeats}\n")  # fmt: skip
    print("| | torch ms | ours ms | torch / ours | agreement |")
    print("|---|---:|---:|---:|---|")
    for name, theirs, ours in cases(llama, head, model, params, tokens):
        report(name, theirs, ours, repeats=repeats)


def make_llama() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.05,
    )
    return transformers.LlamaForCausalLM(config).eval()


def make_emu(llama: transformers.LlamaForCausalLM, head: torch.nn.Linear) -> tuple[Emu, Any]:
    """Return our Emu with the decoder and the head of torch, and an unused vision encoder."""
    config = EmuConfig(
        vision=VisionConfig(image_size=28, patch_size=14, width=32, num_layers=1, num_heads=2, mlp_dim=64),
        causal_former=CausalFormerConfig(
            num_image_tokens=32, width=32, num_layers=1, num_heads=2, head_dim=16, mlp_dim=64
        ),
        decoder=DecoderConfig(
            vocab_size=VOCABULARY, width=512, num_layers=8, num_heads=8, num_kv_heads=8, mlp_dim=1376
        ),
    )
    weights = {DECODER + name: tensor.numpy() for name, tensor in llama.state_dict().items()}
    weights[DECODER + "stu_regress_head.weight"] = head.weight.detach().numpy()
    params = traverse_util.flatten_dict(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), unbox(boxed_shapes(config))), sep="/"
    )
    for row in (*decoder_rows(config.decoder), *regression_rows(config.decoder)):
        layers = [row.to_ours(weights[name]) for name in row.names]
        params[row.path] = jnp.asarray(layers[0] if row.layers is None else np.stack(layers))
    return Emu(config, image_token_id=IMAGE), traverse_util.unflatten_dict(params, sep="/")


def cases(
    llama: transformers.LlamaForCausalLM, head: torch.nn.Linear, model: Emu, params: Any, tokens: np.ndarray
) -> list[tuple[str, Callable[[], np.ndarray], Callable[[], np.ndarray]]]:
    """Return for each case its name, the function in torch and ours; both return an array to compare."""
    prompts = PromptBatch(
        tokens=jnp.asarray(tokens), is_token=jnp.ones_like(tokens, dtype=bool), visual_embeddings=None, slots=None
    )
    ids = torch.from_numpy(tokens).long()
    forward = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens).logits[..., :VOCABULARY])

    @torch.no_grad()
    def torch_text(**options: Any) -> np.ndarray:
        embeddings = llama.model.embed_tokens(ids)
        generated = llama.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            **options,
        )
        return generated.numpy()

    def our_text(**options: Any) -> np.ndarray:
        chosen = TextOptions(max_new_tokens=TOKENS, min_length=TOKENS + 2, **options)
        search, controls = compile_options(
            chosen, capacity=TOKENS, max_new_tokens=TOKENS, bos_id=BOS, eos_id=EOS, pad_id=PAD
        )
        return np.asarray(generate_tokens(params, prompts, controls, model=model, search=search).tokens)[:, 1:]

    @torch.no_grad()
    def regress_without_cache() -> np.ndarray:
        """Run the complete sequence in each step, as the release does."""
        inputs = llama.model.embed_tokens(ids)
        for _ in range(32):
            hidden = llama.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            inputs = torch.cat([inputs, head(hidden[:, -1:])], dim=1)
        return inputs[:, PROMPT:][:, :COMPARED].numpy()

    @torch.no_grad()
    def regress_cached() -> np.ndarray:
        inputs, cache, found = llama.model.embed_tokens(ids), None, []
        for _ in range(32):
            output = llama.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            inputs, cache = head(output.last_hidden_state[:, -1:]), output.past_key_values
            found.append(inputs)
        return torch.cat(found, dim=1)[:, :COMPARED].numpy()

    @torch.no_grad()
    def torch_forward() -> np.ndarray:
        return llama(inputs_embeds=llama.model.embed_tokens(ids)).logits.numpy()

    our_embeddings = lambda: np.asarray(generate_embeddings(params, prompts, model=model))[:, :COMPARED]
    return [
        ("forward pass, 256 tokens", torch_forward, lambda: np.asarray(forward(params, tokens))),
        ("text, greedy, 64 new tokens", torch_text, our_text),
        (
            "text, 5 beams, 64 new tokens",
            lambda: torch_text(num_beams=5, length_penalty=0.0),
            lambda: our_text(num_beams=5),
        ),
        ("32 embeddings, as the release does", regress_without_cache, our_embeddings),
        ("32 embeddings, torch with a cache", regress_cached, our_embeddings),
    ]


def report(name: str, theirs: Callable[[], np.ndarray], ours: Callable[[], np.ndarray], *, repeats: int) -> None:
    """Run both once, compare the results, then time them in turn; fast cases run more often, as they vary more."""
    expected, actual = theirs(), ours()
    if np.issubdtype(expected.dtype, np.integer):
        agreement = "ids" if np.array_equal(expected, actual) else f"{np.mean(expected == actual):.0%} of ids"
    else:
        agreement = f"{np.abs(expected - actual).max() / np.abs(expected).max():.0e} difference"
    times: dict[str, list[float]] = {"torch": [], "ours": []}
    while len(times["ours"]) < repeats or sum(times["torch"]) + sum(times["ours"]) < _MIN_MILLISECONDS:
        for library, run in (("torch", theirs), ("ours", ours)):
            start = time.perf_counter()
            run()
            times[library].append(1000 * (time.perf_counter() - start))
    medians = {library: statistics.median(all_times) for library, all_times in times.items()}
    ratio = medians["torch"] / medians["ours"]
    print(f"| {name} | {medians['torch']:.1f} | {medians['ours']:.1f} | {ratio:.2f} | {agreement} |", flush=True)


if __name__ == "__main__":
    main()
