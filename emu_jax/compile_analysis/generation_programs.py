"""What uses a trained model: reading prompts, writing words, foretelling an image's embeddings, painting it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu_jax.compile_analysis.program import Load, Program, by_rows, compile_program, laid, placed, read_emu
from emu_jax.diffusion.config import UNetConfig
from emu_jax.diffusion.decoder import sample_latents, unet_inputs
from emu_jax.diffusion.samplers import Sampler, sampler_table
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.generation.decode import make_step, next_logits, prefill
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.models.llama import empty_cache
from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.training.flops import forward_flops
from emu_jax.training.run import RunConfig, make_stage


def prefill_prompts(config: Any, load: Load) -> Program:
    """Reading prompts with an image each into the cache."""
    run, emu = read_emu(config)

    def program(params: Any, prompts: PromptBatch) -> Any:
        return prefill(emu, params, prompts, room=load.new_tokens)

    flops = forward_flops(run.model, context=load.prompt / 2)
    return Program(
        "prefill",
        _whole_heads(run),
        lambda mesh: compile_program(program, (_emu_params(emu, run, mesh), by_rows(_prompts(run, load), mesh))),
        load.rows * load.prompt * flops.decoder,
        load.rows * load.prompt,
        load.rows,
    )


def decode_step(config: Any, load: Load) -> Program:
    """One more token for each row, from the cache to its scores."""
    run, emu = read_emu(config)
    decoder = run.model.decoder

    def program(params: Any, embedding: jax.Array, cache: Any) -> Any:
        extend_step, cache = make_step(emu, params, cache)
        hidden, cache = extend_step(embedding, cache)
        return next_logits(emu, params, hidden), cache

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        slots = load.prompt + load.new_tokens
        cache = jax.eval_shape(lambda: empty_cache(decoder, batch=load.rows, slots=slots, dtype=run.model.dtype))
        heads = (None, axes.ACT_BATCH, axes.ACT_HEADS, None, None)
        cache = dataclasses.replace(
            by_rows(cache, mesh), key=laid(cache.key, heads, mesh), value=laid(cache.value, heads, mesh)
        )
        embedding = by_rows(jax.ShapeDtypeStruct((load.rows, decoder.width), run.model.dtype), mesh)
        return compile_program(program, (_emu_params(emu, run, mesh), embedding, cache), donated=(2,))

    flops = forward_flops(run.model, context=load.prompt + load.new_tokens / 2)
    heads = 2 * decoder.width * decoder.vocab_size
    return Program("decode", _whole_heads(run), compile_for, load.rows * (flops.decoder + heads), load.rows, 0)


def image_embeddings(config: Any, load: Load) -> Program:
    """Prompts that end in `[IMG]` to the embeddings of an image each: the prompt, then one step for each embedding."""
    run, emu = read_emu(config)
    steps = run.model.causal_former.num_image_tokens
    read, written = load.rows * load.prompt, load.rows * steps
    flops = forward_flops(run.model, context=load.prompt / 2).decoder * read
    flops += (forward_flops(run.model, context=load.prompt).decoder + 2 * run.model.decoder.width**2) * written

    def program(params: Any, prompts: PromptBatch) -> jax.Array:
        return generate_embeddings(params, prompts, model=emu)

    return Program(
        "images",
        _whole_heads(run),
        lambda mesh: compile_program(program, (_emu_params(emu, run, mesh), by_rows(_prompts(run, load), mesh))),
        flops,
        read + written,
        load.rows,
    )


def sample_images(config: Any, load: Load) -> Program:
    """Latents of 512-pixel pictures from embeddings: all of the sampler's steps, both halves of the guidance."""
    run, _ = read_emu(config)
    queries, width = run.model.causal_former.num_image_tokens, run.model.decoder.width
    unet = UNet(UNetConfig(cross_attention_dim=width), dtype=jnp.bfloat16)
    size, channels = unet.config.sample_size, unet.config.in_channels
    table = sampler_table(Sampler.PNDM, NoiseSchedule(), load.steps)

    def program(params: Any, noise: jax.Array, conditioning: jax.Array, unconditional: jax.Array) -> jax.Array:
        scale = jnp.float32(7.5)
        return sample_latents(unet, params, noise, conditioning, unconditional, scale, table, return_steps=False)

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        boxed = jax.eval_shape(lambda: unet.init(jax.random.key(0), *unet_inputs(unet.config))["params"])
        noise = jax.ShapeDtypeStruct((load.rows, size, size, channels), jnp.float32)
        embeddings = jax.ShapeDtypeStruct((load.rows, queries, width), jnp.float32)
        arguments = (placed(boxed, mesh, jnp.bfloat16), *by_rows((noise, embeddings, embeddings), mesh))
        return compile_program(program, arguments)

    return Program("sampling", MeshConfig(data=-1, fsdp=1), compile_for, None, 0, load.rows)


def _whole_heads(run: RunConfig) -> MeshConfig:
    """Tensor parallelism over as many chips as share the heads evenly, up to eight; the rest share the rows."""
    return MeshConfig(data=-1, fsdp=1, tensor=math.gcd(run.model.decoder.num_heads, 8))


def _emu_params(emu: Emu, run: RunConfig, mesh: Mesh) -> Any:
    stage = make_stage(run, image_token_id=emu.image_token_id)
    boxed = jax.eval_shape(lambda: stage.init(jax.random.key(0)))
    return placed(boxed, mesh, jnp.dtype(run.model.dtype))


def _prompts(run: RunConfig, load: Load) -> PromptBatch:
    """One image a row."""
    queries, width = run.model.causal_former.num_image_tokens, run.model.decoder.width
    return jax.eval_shape(
        lambda: PromptBatch(
            tokens=jnp.zeros((load.rows, load.prompt), jnp.int32),
            is_token=jnp.zeros((load.rows, load.prompt), bool),
            visual_embeddings=jnp.zeros((load.rows, queries, width), run.model.dtype),
            slots=jnp.zeros((load.rows, 1), jnp.int32),
        )
    )
