"""What an evaluation asks of an Emu and of what paints its pictures, and a model that has learnt nothing."""

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


class Reader(Protocol):
    """The part of an `EmuPipeline` that evaluations use."""

    tokenizer: Tokenizer

    def generate_text_batch(self, prompts: Sequence[Prompt], **options: Any) -> list[str]:
        """What each prompt goes on with; options as in `generation.sampling.TextOptions`."""
        ...

    def generate_embeddings_batch(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """The N embeddings of the picture that follows each prompt, float32 [n, N, D]."""
        ...

    def visual_embeddings(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The N embeddings of each picture, float32 [n, N, D]."""
        ...


class ImageGenerator(Protocol):
    """Turns embeddings into pictures."""

    def paint(self, embeddings: np.ndarray) -> np.ndarray:
        """float32 [n, N, D] -> uint8 [n, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Models:
    """What is evaluated; without a painter no pictures are."""

    emu: Reader
    painter: ImageGenerator | None = None


@dataclass(frozen=True)
class DiffusionImageGenerator:
    """An Emu's visual decoder and how it samples; each call makes `batch_size` pictures, so one program serves all."""

    emu: EmuPipeline
    sampler: str = "dpm-solver++"
    steps: int = 20
    guidance_scale: float = 2.0
    seed: int = 0
    batch_size: int = 32

    @typechecked
    def paint(self, embeddings: Float[np.ndarray, "n Q D"]) -> UInt8[np.ndarray, "n H W 3"]:
        """The pictures; each batch has noise of its own."""
        batches = iter(range(len(embeddings)))

        def one_batch(rows: Sequence[np.ndarray]) -> np.ndarray:
            made = self.emu.decode_embeddings(
                np.stack(rows),
                sampler=self.sampler,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                seed=self.seed + next(batches),
            )
            return np.stack([np.asarray(picture) for picture in made])

        return in_batches(one_batch, list(embeddings), size=self.batch_size)


def untrained_like(emu: EmuPipeline, *, seed: int = 0) -> EmuPipeline:
    """An Emu of the same sizes (and tokenizer) with new parameters, its visual decoder too where `emu` has one."""
    vision, length = emu.config.vision, emu.config.causal_former.num_image_tokens
    model = Emu(emu.config, image_token_id=emu.tokenizer.image_token_id)
    images = jnp.zeros((1, 1, vision.image_size, vision.image_size, 3))
    init = jax.jit(lambda key: unbox(model.init(key, jnp.zeros((1, length), jnp.int32), images)["params"]))
    decoder = None
    # Any draw will do, and with this generator the many small initializers compile three times as fast.
    with jax.default_prng_impl("unsafe_rbg"):
        params = init(jax.random.key(seed))
        if emu.has_visual_decoder:
            known = emu.visual_decoder
            decoder = VisualDecoder.create(known.unet.config, known.vae.config, schedule=known.schedule, seed=seed)
    return EmuPipeline(emu.config, params, tokenizer=emu.tokenizer, visual_decoder=decoder)


def in_batches(function: Callable[[Sequence[Any]], Any], items: Sequence[Any], *, size: int) -> np.ndarray:
    """`function` of `size` items at a time, the last batch filled up with its last item so that all look the same."""
    results = []
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        filled = batch + batch[-1:] * (size - len(batch))
        results.append(np.asarray(function(filled))[: len(batch)])
    return np.concatenate(results)
