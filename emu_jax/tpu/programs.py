"""The programs that can be compiled for a pod: the train step of a config, and what uses the trained model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from emu_jax.config import from_config_dict
from emu_jax.diffusion.config import UNetConfig
from emu_jax.diffusion.decoder import sample_latents, unet_inputs
from emu_jax.diffusion.samplers import Sampler, sampler_table
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.diffusion.unet import UNet
from emu_jax.errors import UserError
from emu_jax.generation.decode import make_step, next_logits, prefill
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.emu import Emu
from emu_jax.models.llama import empty_cache
from emu_jax.sharding import axes
from emu_jax.sharding.mesh import MeshConfig
from emu_jax.sharding.specs import activation_spec, shardings, unbox
from emu_jax.training.compilation import compile_train_step, compiler_options
from emu_jax.training.config import TrainConfig
from emu_jax.training.flops import forward_flops
from emu_jax.training.jobs import VisualDecoderRun
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.run import RunConfig, make_stage, read_run_config
from emu_jax.training.stage import CountsFlops, Stage
from emu_jax.training.stages.visual_decoder import VisualDecoderStage
from emu_jax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Program:
    """One program, not compiled yet.

    Attributes:
      name: of the program.
      mesh: over which it is laid out, where the user names none.
      compile: under `jax.set_mesh`, for the mesh's devices.
      flops: useful operations of one run on all chips; None where nobody has counted them.
      tokens: decoder places in one run.
      images: read or made in one run.
    """

    name: str
    mesh: MeshConfig
    compile: Callable[[Mesh], jax.stages.Compiled]
    flops: float | None
    tokens: int
    images: int


@dataclasses.dataclass(frozen=True)
class Load:
    """How much a program of generation does at once.

    Attributes:
      rows: prompts, or pictures to be sampled.
      prompt: places in a row's prompt.
      new_tokens: room for what is written after it.
      steps: of the sampler.
    """

    rows: int = 8
    prompt: int = 512
    new_tokens: int = 128
    steps: int = 50


def train_step(config: Any, load: Load) -> Program:
    """The very step that `train` runs; all places and image slots of its rows are taken to be in use."""
    del load
    stage, train = _stage(config)
    spec = stage.batch_spec()
    tokens = spec["tokens"].size if "tokens" in spec else 0
    images = math.prod(spec["images"].shape[:2]) if "images" in spec else next(iter(spec.values())).shape[0]

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        optimizer = make_optimizer(train.optimizer, steps=train.steps)
        state = abstract_state(stage, optimizer, config=train.optimizer, mesh=mesh)
        return compile_train_step(train, stage=stage, state=state, mesh=mesh)

    flops = stage.step_flops(tokens=tokens, images=images) if isinstance(stage, CountsFlops) else None
    return Program("train", train.mesh, compile_for, flops, tokens, images)


def prefill_prompts(config: Any, load: Load) -> Program:
    """Reading prompts with an image each into the cache."""
    run, emu = _emu(config)

    def program(params: Any, prompts: PromptBatch) -> Any:
        return prefill(emu, params, prompts, room=load.new_tokens)

    flops = forward_flops(run.model, context=load.prompt / 2)
    return Program(
        "prefill",
        _whole_heads(run),
        lambda mesh: _compile(program, mesh, (_emu_params(emu, run, mesh), _by_rows(_prompts(run, load), mesh))),
        load.rows * load.prompt * flops.decoder,
        load.rows * load.prompt,
        load.rows,
    )


def decode_step(config: Any, load: Load) -> Program:
    """One more token for each row, from the cache to its scores."""
    run, emu = _emu(config)
    decoder = run.model.decoder

    def program(params: Any, embedding: jax.Array, cache: Any) -> Any:
        extend_step, cache = make_step(emu, params, cache)
        hidden, cache = extend_step(embedding, cache)
        return next_logits(emu, params, hidden), cache

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        slots = load.prompt + load.new_tokens
        cache = jax.eval_shape(lambda: empty_cache(decoder, batch=load.rows, slots=slots, dtype=run.model.dtype))
        heads = (None, axes.ACT_BATCH, None, axes.ACT_HEADS, None)
        cache = dataclasses.replace(
            _by_rows(cache, mesh), key=_laid(cache.key, heads, mesh), value=_laid(cache.value, heads, mesh)
        )
        embedding = _by_rows(jax.ShapeDtypeStruct((load.rows, decoder.width), run.model.dtype), mesh)
        return _compile(program, mesh, (_emu_params(emu, run, mesh), embedding, cache), donated=(2,))

    flops = forward_flops(run.model, context=load.prompt + load.new_tokens / 2)
    heads = 2 * decoder.width * decoder.vocab_size
    return Program("decode", _whole_heads(run), compile_for, load.rows * (flops.decoder + heads), load.rows, 0)


def image_embeddings(config: Any, load: Load) -> Program:
    """Prompts that end in `[IMG]` to the embeddings of an image each: the prompt, then one step for each embedding."""
    run, emu = _emu(config)
    steps = run.model.causal_former.num_image_tokens
    read, written = load.rows * load.prompt, load.rows * steps
    flops = forward_flops(run.model, context=load.prompt / 2).decoder * read
    flops += (forward_flops(run.model, context=load.prompt).decoder + 2 * run.model.decoder.width**2) * written

    def program(params: Any, prompts: PromptBatch) -> jax.Array:
        return generate_embeddings(params, prompts, model=emu)

    return Program(
        "images",
        _whole_heads(run),
        lambda mesh: _compile(program, mesh, (_emu_params(emu, run, mesh), _by_rows(_prompts(run, load), mesh))),
        flops,
        read + written,
        load.rows,
    )


def sample_pictures(config: Any, load: Load) -> Program:
    """Latents of 512-pixel pictures from embeddings: all of the sampler's steps, both halves of the guidance."""
    run, _ = _emu(config)
    queries, width = run.model.causal_former.num_image_tokens, run.model.decoder.width
    unet = UNet(UNetConfig(cross_attention_dim=width), dtype=jnp.bfloat16)
    size, channels = unet.config.sample_size, unet.config.in_channels
    table = sampler_table(Sampler.PNDM, NoiseSchedule(), load.steps)

    def program(params: Any, noise: jax.Array, conditioning: jax.Array, unconditional: jax.Array) -> jax.Array:
        scale = jnp.float32(7.5)
        return sample_latents(unet, params, noise, conditioning, unconditional, scale, table, return_steps=False)

    def compile_for(mesh: Mesh) -> jax.stages.Compiled:
        boxed = jax.eval_shape(unet.init, jax.random.key(0), *unet_inputs(unet.config))["params"]
        noise = jax.ShapeDtypeStruct((load.rows, size, size, channels), jnp.float32)
        embeddings = jax.ShapeDtypeStruct((load.rows, queries, width), jnp.float32)
        arguments = (_placed(boxed, mesh, jnp.bfloat16), *_by_rows((noise, embeddings, embeddings), mesh))
        return _compile(program, mesh, arguments)

    return Program("sampling", MeshConfig(data=-1, fsdp=1), compile_for, None, 0, load.rows)


PROGRAMS: dict[str, Callable[[Any, Load], Program]] = {
    "train": train_step,
    "prefill": prefill_prompts,
    "decode": decode_step,
    "images": image_embeddings,
    "sampling": sample_pictures,
}


def _stage(config: Any) -> tuple[Stage, TrainConfig]:
    """The stage as `train` makes it, from the config alone: no tokenizer and no data are read."""
    match config.get("stage", "pretrain"):
        case "pretrain":
            run, emu = _emu(config)
            return make_stage(run, image_token_id=emu.image_token_id), run.train
        case "visual_decoder":
            decoder = from_config_dict(VisualDecoderRun, config)
            return _visual_decoder_stage(decoder), decoder.train
    raise UserError(f"compile knows the stages pretrain and visual_decoder, not {config.stage!r}.")


def _visual_decoder_stage(run: VisualDecoderRun) -> VisualDecoderStage:
    """Stable Diffusion v1.5's U-Net, reading the released Emu's 32 embeddings of width 5120."""
    model = UNetConfig(cross_attention_dim=5120)
    return VisualDecoderStage(
        model=model,
        batch_size=run.batch_size,
        unconditional=np.zeros((32, model.cross_attention_dim), np.float32),
        scaling_factor=0.18215,
        config=run.training,
    )


def _emu(config: Any) -> tuple[RunConfig, Emu]:
    run = read_run_config(config)
    vocabulary = run.model.decoder.vocab_size
    if vocabulary == 0:
        raise UserError(
            "This config takes its vocabulary from the tokenizer, which compile does not read; give its size, as in "
            "--config.model.decoder.vocab_size=32004."
        )
    # The special ids end the vocabulary: ..., <image>, and for instructions [USER] and [ASSISTANT].
    return run, Emu(run.model, image_token_id=vocabulary - (3 if run.instruct else 1))


def _whole_heads(run: RunConfig) -> MeshConfig:
    """Tensor parallelism over as many chips as share the heads evenly, up to eight; the rest share the rows."""
    return MeshConfig(data=-1, fsdp=1, tensor=math.gcd(run.model.decoder.num_heads, 8))


def _emu_params(emu: Emu, run: RunConfig, mesh: Mesh) -> Any:
    boxed = jax.eval_shape(make_stage(run, image_token_id=emu.image_token_id).init, jax.random.key(0))
    return _placed(boxed, mesh, jnp.dtype(run.model.dtype))


def _placed(boxed: Any, mesh: Mesh, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        unbox(boxed),
        shardings(boxed, mesh),
    )


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


def _by_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays cut along their first dimension."""
    return jax.tree.map(lambda x: _laid(x, ((axes.ACT_BATCH,) + (None,) * x.ndim)[: x.ndim], mesh), tree)


def _laid(array: jax.ShapeDtypeStruct, names: tuple[str | None, ...], mesh: Mesh) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, activation_spec(names, array.shape))
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _compile(
    program: Callable[..., Any], mesh: Mesh, arguments: tuple[Any, ...], *, donated: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    lowered = jax.jit(program, donate_argnums=donated).lower(*arguments)
    return lowered.compile(compiler_options=compiler_options(mesh))
