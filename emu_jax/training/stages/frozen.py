"""The frozen Emu and autoencoder of a U-Net's training: captioned images to conditioning and latents, in each step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from emu_jax.data.loader.visual_decoder_examples import Condition
from emu_jax.diffusion.config import VAEConfig
from emu_jax.diffusion.decoder import vae_inputs
from emu_jax.diffusion.vae import VAE, Posterior
from emu_jax.generation.forward import embed_images
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.prompt import PromptBatch
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.training.stage import Batch
from emu_jax.training.stages.vae import to_unit_range

# Parts of an Emu that each condition needs; the others are not loaded.
EMU_PARTS = {
    Condition.PREDICTED: ("decoder", "regression_head"),
    Condition.ENCODED: ("vision_encoder", "visual_norm", "causal_former"),
}


@dataclasses.dataclass(frozen=True)
class FrozenModels:
    """Compute on the batches of `generation.captioned_images`; the parameters are under `emu` and `vae`.

    Attributes:
      emu: sizes and dtypes of the Emu.
      vae: sizes of the autoencoder, which computes in float32.
      image_token_id: id of `<image>`.
      condition: source of the conditioning.
      prompt_length: tokens per row of prompts.
    """

    emu: EmuConfig
    vae: VAEConfig
    image_token_id: int
    condition: Condition
    prompt_length: int

    def batch_spec(self, *, batch_size: int, target_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a global batch; `target_size` is the size of the images for the autoencoder."""

        def pixels(size: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)

        spec = {"target_images": pixels(target_size)}
        if self.condition is Condition.ENCODED:
            return spec | {"images": pixels(self.emu.vision.image_size)}
        prompts = (batch_size, self.prompt_length)
        return spec | {
            "prompt_tokens": jax.ShapeDtypeStruct(prompts, jnp.int32),
            "prompt_is_token": jax.ShapeDtypeStruct(prompts, jnp.bool_),
        }

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Return boxed parameters of the parts that are needed."""
        size, queries = self.emu.vision.image_size, self.emu.causal_former.num_image_tokens
        tokens, images = jnp.zeros((1, queries), jnp.int32), jnp.zeros((1, 1, size, size, 3))
        emu = Emu(self.emu, image_token_id=self.image_token_id).init(rng, tokens, images)["params"]
        vae = VAE(self.vae).init(rng, *vae_inputs(self.vae))["params"]
        return {"emu": {part: emu[part] for part in EMU_PARTS[self.condition]}, "vae": vae}

    def conditioning(self, params: Any, batch: Batch) -> jax.Array:
        """Return the conditioning of each image, float32 `[B Q D]`."""
        model = Emu(self.emu, image_token_id=self.image_token_id)
        if self.condition is Condition.ENCODED:
            return embed_images(params["emu"], batch["images"], model=model).astype(jnp.float32)
        prompts = PromptBatch(batch["prompt_tokens"], batch["prompt_is_token"], visual_embeddings=None, slots=None)
        return generate_embeddings(params["emu"], prompts, model=model)

    def posterior(self, params: Any, batch: Batch) -> Posterior:
        """Return the autoencoder's Gaussian over the latents of each image."""
        return VAE(self.vae).apply({"params": params["vae"]}, to_unit_range(batch["target_images"]), method="encode")
