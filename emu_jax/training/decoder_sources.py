"""Where the examples of the stage `visual_decoder` come from: stored, or computed in every step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.data.loader.decoder_examples import Condition, DecoderExamples, WeightedSet, load_examples
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.captioned_images import CaptionedImages
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import pad_prompts
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.prefetch import Data
from emu_jax.training.stages.frozen import EMU_PARTS, FrozenModels


@dataclasses.dataclass(frozen=True)
class ComputedExamples:
    """Captioned pictures whose conditions and latents are computed in every step.

    Attributes:
      emu: the Emu that makes the conditions: a model directory, or a run's workdir.
      sets: folders of image-text pairs, from prepare-data, drawn by their weights.
      condition: what Emu predicts from the caption, or the encoder's own embeddings of the picture.
      max_caption_length: characters; pairs with a longer caption are left out.
      prompt_length: tokens of a caption with `<s>` and `[IMG]` around it; pairs with more are left out. Counts only
        where the caption makes the condition.
    """

    emu: str
    sets: tuple[WeightedSet, ...]
    condition: Condition = Condition.PREDICTED
    max_caption_length: int = 150
    prompt_length: int = 64


@dataclasses.dataclass(frozen=True)
class StoredSource:
    """What `prepare-decoder-data` wrote."""

    sets: tuple[DecoderExamples, ...]
    weights: tuple[float, ...]

    @classmethod
    def open(cls, examples: str | Sequence[WeightedSet]) -> "StoredSource":
        """Raises UserError where there are none."""
        chosen = [WeightedSet(examples)] if isinstance(examples, str) else examples
        return cls(tuple(DecoderExamples.open(one.path) for one in chosen), tuple(one.weight for one in chosen))

    @property
    def unconditional(self) -> np.ndarray:
        """Embeddings of the empty prompt, `[Q, D]`."""
        return self.sets[0].unconditional

    @property
    def emu_params(self) -> None:
        """No Emu is needed."""

    def frozen(self, decoder: VisualDecoder) -> None:
        """No model is needed.

        Raises:
          UserError: the latents are not of this decoder's size.
        """
        latents = (*(2 * [decoder.unet.config.sample_size]), decoder.unet.config.in_channels)
        for one in self.sets:
            if one.shapes["latent_mean"] != latents:
                raise UserError(
                    f"The latents in {one.directory} have the shape {one.shapes['latent_mean']}, not {latents}."
                )

    def loader(self, decoder: VisualDecoder, *, batch_size: int, seed: int) -> Callable[..., Data]:
        """Makes the loader of a process."""
        return lambda **where: load_examples(self.sets, weights=self.weights, batch_size=batch_size, seed=seed, **where)


@dataclasses.dataclass(frozen=True)
class ComputedSource:
    """An Emu that has been read, and what is to be computed with it."""

    config: ComputedExamples
    emu: EmuPipeline
    unconditional: np.ndarray

    @classmethod
    def open(cls, config: ComputedExamples, *, mesh: MeshConfig) -> "ComputedSource":
        """Reads the Emu onto the run's mesh.

        Raises:
          UserError: there is none, or it does not read prompts so long.
        """
        on = make_mesh(mesh)
        emu = load(config.emu, mesh=on)
        longest = emu.config.decoder.max_length - emu.config.causal_former.num_image_tokens
        if not 2 < config.prompt_length <= longest:
            raise UserError(f"computed.prompt_length must lie between 3 and {longest}, not {config.prompt_length}.")
        prompts = pad_prompts([emu.build_prompt("", open_image=True)], pad_id=emu.tokenizer.pad_id, max_length=longest)
        generate = functools.partial(generate_embeddings, prompts=prompts, model=emu.model)
        with jax.set_mesh(on):
            whole = jax.jit(generate, out_shardings=NamedSharding(on, PartitionSpec()))(emu.params)
        return cls(config, emu, np.asarray(whole)[0])  # every process has all of it

    @property
    def emu_params(self) -> dict[str, Any]:
        """Those that the step needs."""
        return {part: self.emu.params[part] for part in EMU_PARTS[self.config.condition]}

    def frozen(self, decoder: VisualDecoder) -> FrozenModels:
        """The models that the step needs beside the U-Net."""
        return FrozenModels(
            emu=self.emu.config,
            vae=decoder.vae.config,
            image_token_id=self.emu.tokenizer.image_token_id,
            condition=self.config.condition,
            prompt_length=self.config.prompt_length,
        )

    def loader(self, decoder: VisualDecoder, *, batch_size: int, seed: int) -> Callable[..., Data]:
        """Makes the loader of a process."""
        pictures = CaptionedImages(
            sets=self.config.sets,
            tokenizer=self.emu.tokenizer,
            condition=self.config.condition,
            picture_size=decoder.unet.config.sample_size * decoder.vae.config.factor,
            image_size=self.emu.config.vision.image_size,
            prompt_length=self.config.prompt_length,
            max_caption_length=self.config.max_caption_length,
        )
        return lambda **where: pictures.loader(batch_size=batch_size, seed=seed, **where)


def start_with(
    decoder: VisualDecoder, source: StoredSource | ComputedSource, *, folder: str
) -> Callable[[], tuple[dict[str, Any], str]]:
    """What a run begins with: the folder's U-Net and, where the step computes, its autoencoder and the Emu."""

    def start() -> tuple[dict[str, Any], str]:
        parts = {"unet": decoder.params["unet"]}
        if source.emu_params is not None:
            parts |= {"vae": decoder.params["vae"], "emu": source.emu_params}
        said = f"the U-Net begins with the weights in {folder}"
        if decoder.initialized:
            width = decoder.unet.config.cross_attention_dim
            listed = "".join(f"\n  {name}" for name in decoder.initialized)
            said += f", which is of another width than {width}; {len(decoder.initialized)} projections are new:{listed}"
        return parts, said

    return start


def on_host(decoder: VisualDecoder) -> VisualDecoder:
    """The decoder with its parameters in the host's memory, where they wait for the end of a run."""
    return dataclasses.replace(decoder, params=jax.device_get(decoder.params))
