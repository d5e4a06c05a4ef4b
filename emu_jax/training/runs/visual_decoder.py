"""Training runs of a U-Net: the stage `visual_decoder`, on examples that are stored, or computed in each step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.bounds import Checked, Count, Tokens
from emu_jax.config import from_config_dict
from emu_jax.convert.visual_decoder import load_visual_decoder, save_visual_decoder
from emu_jax.data.loader.divided import DividedBatches
from emu_jax.data.loader.visual_decoder_examples import Condition, DecoderExamples, WeightedSet, load_examples
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.captioned_images import CaptionedImages
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import pad_prompts
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.config import TrainConfig
from emu_jax.training.evaluation import EvaluationConfig, HeldOutSet, held_out_losses
from emu_jax.training.loop import InitialParameters, TrainResult
from emu_jax.training.prefetch import Data
from emu_jax.training.runs.run import Run, data_factory, trained_part
from emu_jax.training.stages.frozen import EMU_PARTS, FrozenModels
from emu_jax.training.stages.visual_decoder import VisualDecoderStage, VisualDecoderTrainingConfig

VISUAL_DECODER = "visual_decoder"


@dataclasses.dataclass(frozen=True)
class ComputedExamples(Checked):
    """Captioned images whose conditioning and latents are computed in each step.

    Attributes:
      emu: Emu that computes the conditioning: a model directory, or the workdir of a run.
      sets: folders of image-text pairs, from prepare-data, with their sampling weights.
      condition: Emu's predictions from the caption, or the embeddings of the image itself.
      max_caption_length: maximum number of characters; pairs with a longer caption are dropped.
      prompt_length: maximum number of tokens of a caption, including `<s>` and `[IMG]`; longer pairs are dropped. Only
        for predictions from the caption.
      allow_upscale: enlarge stored images that are smaller than the autoencoder's input, instead of refusing them.
    """

    emu: str
    sets: tuple[WeightedSet, ...]
    condition: Condition = Condition.PREDICTED
    max_caption_length: Count = 150
    prompt_length: Tokens = 64
    allow_upscale: bool = False


@dataclasses.dataclass(frozen=True)
class VisualDecoderRunConfig(Checked):
    """Complete configuration of a run, which leaves the trained U-Net in WORKDIR/visual_decoder.

    Set either `examples` or `computed`.

    Attributes:
      stage: `visual_decoder`.
      decoder: diffusers folder with the initial U-Net (Stable Diffusion v1.5, or the result of the stage `vae`), the
        autoencoder and the noise schedule. If the U-Net expects embeddings of another width than Emu's, its key and
        value projections are newly initialized, and listed.
      batch_size: rows of a global batch.
      train: length, optimizer, mesh, checkpoints.
      examples: folder written by `prepare-decoder-data`, or several with weights.
      computed: images and models to compute the examples from.
      training: condition dropout, loss weighting and dtype.
      evaluation: held-out sets: folders of examples, or of image-text pairs if `computed`.
    """

    stage: str
    decoder: str
    batch_size: Count
    train: TrainConfig
    examples: str | tuple[WeightedSet, ...] = ()
    computed: ComputedExamples | None = None
    training: VisualDecoderTrainingConfig = dataclasses.field(default_factory=VisualDecoderTrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.examples) == (self.computed is not None):
            raise UserError("The stage visual_decoder requires either config.examples or config.computed, not both.")
        self.evaluation.check_no_tasks(self.stage)


def open_visual_decoder_run(config: Mapping[str, Any] | Any) -> Run:
    """Return the run of a config.

    Raises:
      UserError: invalid fields, or models and examples that are missing or do not fit each other.
    """
    run = from_config_dict(VisualDecoderRunConfig, config)
    source: StoredSource | ComputedSource
    if run.computed is None:
        source = StoredSource.open(run.examples)
    else:
        source = ComputedSource.open(run.computed, mesh=run.train.mesh)
    width, seed = source.unconditional.shape[-1], run.train.seed
    decoder = _on_host(load_visual_decoder(run.decoder, cross_attention_dim=width, seed=seed))
    stage = VisualDecoderStage(
        model=decoder.unet.config,
        batch_size=run.batch_size,
        unconditional=source.unconditional,
        scaling_factor=decoder.vae.config.scaling_factor,
        schedule=decoder.schedule,
        config=run.training,
        frozen=source.frozen(decoder),
    )

    def finish(workdir: Path, result: TrainResult) -> None:
        params = decoder.params | {"unet": trained_part(result, "unet")}
        if jax.process_index() == 0:
            save_visual_decoder(dataclasses.replace(decoder, params=params), workdir / VISUAL_DECODER)

    def held_out(one: HeldOutSet) -> Data:
        make = source.of(one.path).loader(decoder, batch_size=run.batch_size, seed=0)
        return make(process_index=jax.process_index(), process_count=jax.process_count())

    return Run(
        config=run,
        train=run.train,
        stage=stage,
        data=data_factory(source.loader(decoder, batch_size=run.batch_size, seed=seed)),
        evaluations=held_out_losses(run.evaluation, stage, held_out, mesh=run.train.mesh),
        initialize=lambda: _initial_parameters(decoder, source, folder=run.decoder),
        finish=finish,
    )


@dataclasses.dataclass(frozen=True)
class StoredSource:
    """Examples that `prepare-decoder-data` wrote."""

    sets: tuple[DecoderExamples, ...]
    weights: tuple[float, ...]

    @classmethod
    def open(cls, examples: str | Sequence[WeightedSet]) -> "StoredSource":
        """Open the folders of examples.

        Raises:
          UserError: a folder has no examples.
        """
        chosen = [WeightedSet(examples)] if isinstance(examples, str) else list(examples)
        return cls(tuple(DecoderExamples.open(one.path) for one in chosen), tuple(one.weight for one in chosen))

    def of(self, path: str) -> "StoredSource":
        """Return the examples of another folder."""
        return StoredSource.open(path)

    @property
    def unconditional(self) -> np.ndarray:
        """Embeddings of the empty prompt, `[Q D]`."""
        return self.sets[0].unconditional

    @property
    def emu_params(self) -> None:
        """None: the step needs no Emu."""

    def frozen(self, decoder: VisualDecoder) -> None:
        """Check the examples against the decoder; the step needs no frozen models.

        Raises:
          UserError: the latents do not have the size of this decoder.
        """
        latents = (*(2 * [decoder.unet.config.sample_size]), decoder.unet.config.in_channels)
        for one in self.sets:
            if one.shapes["latent_mean"] != latents:
                raise UserError(
                    f"The latents in {one.directory} have the shape {one.shapes['latent_mean']}, not {latents}."
                )

    def loader(self, decoder: VisualDecoder, *, batch_size: int, seed: int) -> Callable[..., DividedBatches]:
        """Return a function that makes the loader of one process."""
        return functools.partial(load_examples, self.sets, weights=self.weights, batch_size=batch_size, seed=seed)


@dataclasses.dataclass(frozen=True)
class ComputedSource:
    """A loaded Emu, and the examples to compute with it."""

    config: ComputedExamples
    emu: EmuPipeline
    unconditional: np.ndarray

    @classmethod
    def open(cls, config: ComputedExamples, *, mesh: MeshConfig) -> "ComputedSource":
        """Load the Emu onto the mesh of the run.

        Raises:
          UserError: there is no Emu, or its context is too short for the prompts.
        """
        devices = make_mesh(mesh)
        emu = load(config.emu, mesh=devices)
        longest = emu.config.decoder.max_length - emu.config.causal_former.num_image_tokens
        if not 2 < config.prompt_length <= longest:
            raise UserError(f"computed.prompt_length must be between 3 and {longest}, not {config.prompt_length}.")
        prompts = pad_prompts([emu.build_prompt("", open_image=True)], pad_id=emu.tokenizer.pad_id, max_length=longest)
        generate = functools.partial(generate_embeddings, prompts=prompts, model=emu.model)
        with jax.set_mesh(devices):
            replicated = jax.jit(generate, out_shardings=NamedSharding(devices, PartitionSpec()))(emu.params)
        return cls(config, emu, np.asarray(replicated)[0])

    def of(self, path: str) -> "ComputedSource":
        """Return the same Emu with another set."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, sets=(WeightedSet(path),)))

    @property
    def emu_params(self) -> dict[str, Any]:
        """Parameters of the parts that the step needs."""
        return {part: self.emu.params[part] for part in EMU_PARTS[self.config.condition]}

    def frozen(self, decoder: VisualDecoder) -> FrozenModels:
        """Return the models that the step needs in addition to the U-Net."""
        return FrozenModels(
            emu=self.emu.config,
            vae=decoder.vae.config,
            image_token_id=self.emu.tokenizer.image_token_id,
            condition=self.config.condition,
            prompt_length=self.config.prompt_length,
        )

    def loader(self, decoder: VisualDecoder, *, batch_size: int, seed: int) -> Callable[..., DividedBatches]:
        """Return a function that makes the loader of one process."""
        images = CaptionedImages(
            sets=self.config.sets,
            tokenizer=self.emu.tokenizer,
            condition=self.config.condition,
            target_size=decoder.unet.config.sample_size * decoder.vae.config.factor,
            image_size=self.emu.config.vision.image_size,
            prompt_length=self.config.prompt_length,
            max_caption_length=self.config.max_caption_length,
            allow_upscale=self.config.allow_upscale,
        )
        return functools.partial(images.loader, batch_size=batch_size, seed=seed)


def _initial_parameters(
    decoder: VisualDecoder, source: StoredSource | ComputedSource, *, folder: str
) -> InitialParameters:
    """Return the folder's U-Net and, if the step computes the examples, its autoencoder and the Emu."""
    parts = {"unet": decoder.params["unet"]}
    if source.emu_params is not None:
        parts |= {"vae": decoder.params["vae"], "emu": source.emu_params}
    description = f"the U-Net starts from the weights in {folder}"
    if decoder.initialized:
        width = decoder.unet.config.cross_attention_dim
        names = "".join(f"\n  {name}" for name in decoder.initialized)
        description += (
            f"; its conditioning width is not {width}, so {len(decoder.initialized)} projections are newly "
            f"initialized:{names}"
        )
    return InitialParameters(parts, description)


def _on_host(decoder: VisualDecoder) -> VisualDecoder:
    """Return the decoder with its parameters in host memory, where they stay until the end of the run."""
    return dataclasses.replace(decoder, params=jax.device_get(decoder.params))
