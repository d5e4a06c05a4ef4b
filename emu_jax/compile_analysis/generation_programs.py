"""Programs that use a trained model: prefill, decode step, image embeddings, and sampling of the visual decoder."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emu_jax.compile_analysis.program import (
    GenerationShape,
    Program,
    abstract_params,
    compile_program,
    read_emu,
    shard_rows,
    with_sharding,
)
from emu_jax.convert.load import Quantization
from emu_jax.diffusion.config import UNetConfig
from emu_jax.diffusion.decoder import sample_latents, unet_inputs
from emu_jax.diffusion.samplers import Sampler, sampler_table
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.generation.decode import make_step, next_logits, prefill
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.prompt import PromptBatch
from emu_jax.layers.int8 import kernel_dims, quantize_kernels
from emu_jax.models.emu import Emu
from emu_jax.models.llama import empty_cache
from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.training.flops import forward_flops
from emu_jax.training.runs.emu import EmuRunConfig, make_stage


def prefill_program(config: Any, shape: GenerationShape) -> Program:
    """Fill the KV cache with prompts of one image each."""
    run, emu = read_emu(config)

    def program(params: Any, prompts: PromptBatch) -> Any:
        return prefill(emu, params, prompts, capacity=shape.new_tokens)

    flops = forward_flops(run.model, context=shape.prompt / 2)
    return Program(
        name="prefill",
        mesh=_generation_mesh(run),
        compile=lambda mesh: compile_program(program, _emu_arguments(emu, run, shape, mesh)),
        flops=shape.rows * shape.prompt * flops.decoder,
        tokens=shape.rows * shape.prompt,
        images=shape.rows,
    )


def decode_program(config: Any, shape: GenerationShape) -> Program:
    """Compute the scores of the next token of each row from the KV cache."""
    run, emu = read_emu(config)
    decoder = run.model.decoder

    def program(params: Any, embedding: jax.Array, cache: Any) -> Any:
        extend_step, cache = make_step(emu, params, cache)
        hidden, cache = extend_step(embedding, cache)
        return next_logits(emu, params, hidden), cache

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        slots = shape.prompt + shape.new_tokens
        cache = jax.eval_shape(lambda: empty_cache(decoder, batch=shape.rows, slots=slots, dtype=run.model.dtype))
        heads = (None, axes.ACT_BATCH, axes.ACT_HEADS, None, None)
        cache = dataclasses.replace(
            shard_rows(cache, mesh),
            key=with_sharding(cache.key, heads, mesh),
            value=with_sharding(cache.value, heads, mesh),
        )
        embedding = shard_rows(jax.ShapeDtypeStruct((shape.rows, decoder.width), run.model.dtype), mesh)
        return compile_program(program, (_emu_params(emu, run, shape, mesh), embedding, cache), donated=(2,))

    flops = forward_flops(run.model, context=shape.prompt + shape.new_tokens / 2)
    heads = 2 * decoder.width * decoder.vocab_size
    return Program(
        name="decode",
        mesh=_generation_mesh(run),
        compile=compile_for,
        flops=shape.rows * (flops.decoder + heads),
        tokens=shape.rows,
        images=0,
    )


def image_program(config: Any, shape: GenerationShape) -> Program:
    """Generate the embeddings of one image per prompt: the prompt that ends in `[IMG]`, then one step per embedding."""
    run, emu = read_emu(config)
    steps = run.model.causal_former.num_image_tokens
    prompt_tokens, generated = shape.rows * shape.prompt, shape.rows * steps
    flops = forward_flops(run.model, context=shape.prompt / 2).decoder * prompt_tokens
    flops += (forward_flops(run.model, context=shape.prompt).decoder + 2 * run.model.decoder.width**2) * generated

    def program(params: Any, prompts: PromptBatch) -> jax.Array:
        return generate_embeddings(params, prompts, model=emu)

    return Program(
        name="images",
        mesh=_generation_mesh(run),
        compile=lambda mesh: compile_program(program, _emu_arguments(emu, run, shape, mesh)),
        flops=flops,
        tokens=prompt_tokens + generated,
        images=shape.rows,
    )


def sampling_program(config: Any, shape: GenerationShape) -> Program:
    """Sample the latents of 512-pixel images from embeddings: all steps, with classifier-free guidance."""
    run, _ = read_emu(config)
    queries, width = run.model.causal_former.num_image_tokens, run.model.decoder.width
    unet = UNet(UNetConfig(cross_attention_dim=width), dtype=jnp.bfloat16)
    size, channels = unet.config.sample_size, unet.config.in_channels
    table = sampler_table(Sampler.PNDM, NoiseSchedule(), shape.steps)

    def program(params: Any, noise: jax.Array, conditioning: jax.Array, unconditional: jax.Array) -> jax.Array:
        scale = jnp.float32(7.5)
        return sample_latents(unet, params, noise, conditioning, unconditional, scale, table, return_steps=False)

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        boxed = jax.eval_shape(lambda: unet.init(jax.random.key(0), *unet_inputs(unet.config))["params"])
        noise = jax.ShapeDtypeStruct((shape.rows, size, size, channels), jnp.float32)
        embeddings = jax.ShapeDtypeStruct((shape.rows, queries, width), jnp.float32)
        arguments = (abstract_params(boxed, mesh, jnp.bfloat16), *shard_rows((noise, embeddings, embeddings), mesh))
        return compile_program(program, arguments)

    return Program(
        name="sampling",
        mesh=MeshConfig(data=-1, fsdp=1),
        compile=compile_for,
        flops=None,
        tokens=0,
        images=shape.rows,
    )


def _generation_mesh(run: EmuRunConfig) -> MeshConfig:
    """Return tensor parallelism over up to eight chips that divide the heads, and data parallelism over the rest."""
    return MeshConfig(data=-1, fsdp=1, tensor=math.gcd(run.model.decoder.num_heads, 8))


def _emu_arguments(emu: Emu, run: EmuRunConfig, shape: GenerationShape, mesh: Mesh) -> tuple[Any, PromptBatch]:
    """Return abstract parameters and prompts with one image per row."""
    return _emu_params(emu, run, shape, mesh), shard_rows(_prompts(run, shape), mesh)


def _emu_params(emu: Emu, run: EmuRunConfig, shape: GenerationShape, mesh: Mesh) -> Any:
    stage = make_stage(run, image_token_id=emu.image_token_id)
    init = lambda: stage.init(jax.random.key(0))
    params = abstract_params(jax.eval_shape(init), mesh, jnp.dtype(run.model.dtype))
    return quantize_kernels(params, kernel_dims(init)) if shape.quantization is Quantization.INT8 else params


def _prompts(run: EmuRunConfig, shape: GenerationShape) -> PromptBatch:
    queries, width = run.model.causal_former.num_image_tokens, run.model.decoder.width
    return jax.eval_shape(
        lambda: PromptBatch(
            tokens=jnp.zeros((shape.rows, shape.prompt), jnp.int32),
            is_token=jnp.zeros((shape.rows, shape.prompt), bool),
            visual_embeddings=jnp.zeros((shape.rows, queries, width), run.model.dtype),
            slots=jnp.zeros((shape.rows, 1), jnp.int32),
        )
    )
