"""The interfaces that an evaluation requires of a model and of an image generator, and an untrained baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.demo.prompts import Prompt
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import unbox
from emu_jax.typing import Float, UInt8, typechecked


class EmuModel(Protocol):
    """The part of an `EmuPipeline` that the tasks use."""

    tokenizer: Tokenizer

    def build_prompt(self, prompt: Prompt) -> Any:
        """Return what `generate_text_batch` takes too, with its `tokens`."""
        ...

    def generate_text_batch(self, prompts: Sequence[Any], **options: Any) -> Any:
        """Return the text after each prompt; options are those of `generation.options.TextOptions`."""
        ...

    def generate_embeddings_batch(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return the N embeddings of the image after each prompt, float32 [n, N, D]."""
        ...

    def visual_embeddings(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the N embeddings of each image, float32 [n, N, D]."""
        ...


class ImageGenerator(Protocol):
    """Decodes embeddings to images."""

    def generate(self, embeddings: np.ndarray) -> np.ndarray:
        """Return uint8 [n, H, W, 3] for float32 [n, N, D]."""
        ...


@dataclass(frozen=True)
class Models:
    """The evaluated models; without an image generator the image tasks are left out."""

    emu: EmuModel
    image_generator: ImageGenerator | None = None


@dataclass(frozen=True)
class DiffusionImageGenerator:
    """The visual decoder of an Emu. Every call decodes `batch_size` images, so it compiles once."""

    emu: EmuPipeline
    sampler: str = "dpm-solver++"
    steps: int = 20
    guidance_scale: float = 2.0
    seed: int = 0
    batch_size: int = 32

    @typechecked
    def generate(self, embeddings: Float[np.ndarray, "n Q D"]) -> UInt8[np.ndarray, "n H W 3"]:
        """Return an image per row of embeddings; every batch has different noise."""
        batches = iter(range(len(embeddings)))

        def one_batch(rows: Sequence[np.ndarray]) -> np.ndarray:
            generated = self.emu.decode_embeddings(
                np.stack(rows),
                sampler=self.sampler,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                seed=self.seed + next(batches),
            )
            return np.stack([np.asarray(image) for image in generated])

        return in_batches(one_batch, list(embeddings), size=self.batch_size)


def untrained_like(emu: EmuPipeline, *, seed: int = 0) -> EmuPipeline:
    """Return an Emu with the config and tokenizer of `emu` and random parameters; also its visual decoder, if any."""
    vision, length = emu.config.vision, emu.config.causal_former.num_image_tokens
    model = Emu(emu.config, image_token_id=emu.tokenizer.image_token_id)
    images = jnp.zeros((1, 1, vision.image_size, vision.image_size, 3))
    init = jax.jit(lambda key: unbox(model.init(key, jnp.zeros((1, length), jnp.int32), images)["params"]))
    decoder = None
    # The random numbers only need to be reproducible; with this generator the initializers compile three times faster.
    with jax.default_prng_impl("unsafe_rbg"):
        params = init(jax.random.key(seed))
        if emu.has_visual_decoder:
            trained = emu.visual_decoder
            decoder = VisualDecoder.create(
                trained.unet.config, trained.vae.config, schedule=trained.schedule, seed=seed
            )
    return EmuPipeline(emu.config, params, tokenizer=emu.tokenizer, visual_decoder=decoder)


def in_batches(function: Callable[[Sequence[Any]], Any], items: Sequence[Any], *, size: int) -> np.ndarray:
    """Return the results of `function` on `size` items at a time; the last batch is padded with its last item."""
    results = []
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        padded = batch + batch[-1:] * (size - len(batch))
        results.append(np.asarray(function(padded))[: len(batch)])
    return np.concatenate(results)
