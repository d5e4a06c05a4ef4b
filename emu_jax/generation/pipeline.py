"""A loaded Emu: from prompts of text, images and videos to text, embeddings, scores and images."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from emu_jax.convert.diffusion_folder import has_safety_checker
from emu_jax.convert.safety_checker import load_safety_checker
from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.diffusion.decoder import VisualDecoder
from emu_jax.diffusion.safety import SafetyChecker
from emu_jax.errors import UserError
from emu_jax.generation.buckets import bucket
from emu_jax.generation.forward import check_image_tokens, embed_in_batches, forward_pass
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.mixed import ImageTokens, OpenImage, generate_mixed, interleave, parse_open_image
from emu_jax.generation.options import MAX_IMAGES, ImageOptions, TextOptions, image_options, text_options
from emu_jax.generation.pixels import Safety, screened, to_images
from emu_jax.generation.prompt import Part, Prompt, PromptBatch, build_prompt, load_images, only_image, pad_prompts
from emu_jax.generation.sampling import compile_options
from emu_jax.generation.score import candidate_ids, pad_candidates, score_candidates
from emu_jax.generation.text import generate_tokens
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import EmuOutput
from emu_jax.sharding.specs import fetch

_CANDIDATE_BATCH = 64

Parts = Sequence[Part] | Part
Input = Parts | Prompt  # parts, or what `build_prompt` made of them


class EmuPipeline:
    """A loaded Emu.

    A prompt is a list of strings, PIL images, paths of images and videos, and arrays (uint8 `[H, W, 3]`, or float32
    that is already resized and normalized), in any order. `[IMG]` or `</s>` in a string are special tokens only with
    `special_tokens=True`. Programs are compiled at first use for each bucket of lengths.

    Attributes:
      config, model, params: the arguments of `model.apply({"params": params}, ...)`.
      tokenizer: converts text to ids and back.
    """

    def __init__(
        self,
        config: EmuConfig,
        params: Any,
        *,
        tokenizer: Tokenizer,
        mesh: Mesh | None = None,
        visual_decoder: VisualDecoder | Path | None = None,
    ) -> None:
        """Store the model. `visual_decoder` may be a folder in the diffusers layout, which is read at first use."""
        self.config, self.params, self.tokenizer, self.mesh = config, params, tokenizer, mesh
        self.model = Emu(config, image_token_id=tokenizer.image_token_id)
        self._visual_decoder = visual_decoder
        self._lock = threading.Lock()  # guards the first read of the visual decoder

    # ---- text

    def generate_text(
        self, prompt: Parts, *, return_ids: bool = False, special_tokens: bool = False, **options: Any
    ) -> str | list[int]:
        """Return the text after a prompt, without special tokens.

        Args:
          return_ids: return the new ids instead, with special tokens (and `</s>` unless the maximum length came first).
          options: fields of `TextOptions`: max_new_tokens, num_beams, length_penalty, min_length, temperature, ...
        """
        return self.generate_text_batch([prompt], return_ids=return_ids, special_tokens=special_tokens, **options)[0]

    def generate_text_batch(
        self,
        prompts: Sequence[Input],
        *,
        return_ids: bool = False,
        special_tokens: bool = False,
        batch_size: int = 64,
        **options: Any,
    ) -> list[str] | list[list[int]]:
        """Return `generate_text` of many prompts. A result does not depend on the other prompts of the batch.

        Args:
          batch_size: number of prompts per program call.
        """
        chosen = text_options(**options)
        built = [self.build_prompt(prompt, special_tokens=special_tokens) for prompt in prompts]
        found: list[list[int]] = []
        for chunk in _chunks(built, batch_size):
            limit = min(chosen.max_new_tokens, self._capacity(chunk))
            capacity = min(bucket(limit), max(limit, self._capacity(chunk)))
            search, controls = self._compile_options(chosen, capacity=capacity, limit=limit)
            with self._on_mesh():
                output = generate_tokens(self.params, self._batch(chunk), controls, model=self.model, search=search)
            tokens, lengths = fetch((output.tokens, output.lengths))
            found += [tokens[row, 1 : lengths[row]].tolist() for row in range(len(chunk))]
        return found if return_ids else [self.tokenizer.decode(ids) for ids in found]

    def score(self, prompt: Input, candidates: Sequence[str], **options: bool) -> np.ndarray:
        """Return `score_batch` of one prompt, float32 `[n]`."""
        return self.score_batch([prompt], [candidates], **options)[0]

    def score_batch(
        self,
        prompts: Sequence[Input],
        candidates: Sequence[Sequence[str]],
        *,
        special_tokens: bool = False,
        end: bool = False,
    ) -> np.ndarray:
        """Return log-likelihoods (natural, summed over tokens) of as many candidates after each prompt, `[B, n]`.

        `end` counts the `</s>` after a candidate too. The release never does (`candidate_ids`).
        """
        ids = candidate_ids(candidates, self.tokenizer, special_tokens=special_tokens, end=end)
        built = [self.build_prompt(prompt, special_tokens=special_tokens) for prompt in prompts]
        longest = max(len(one) for some in ids for one in some)
        length = min(bucket(longest, smallest=4), self._capacity(built, required=longest))
        batch, scores = self._batch(built), []
        for columns in _chunks(range(len(ids[0])), max(1, _CANDIDATE_BATCH // len(built))):
            padded, counts = pad_candidates([[some[i] for i in columns] for some in ids], length=length)
            with self._on_mesh():
                found = score_candidates(self.params, batch, padded, counts, model=self.model)
            scores.append(fetch(found)[: len(built), : len(columns)])
        return np.concatenate(scores, axis=1)

    # ---- embeddings

    def visual_embeddings(self, images: Sequence[Part] | Part) -> np.ndarray:
        """Return the embeddings of images (8 per video) after the causal former, float32 `[n, N, D]`."""
        if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
            images = list(images)
        parts: Any = images if isinstance(images, list | tuple) else [images]
        pixels = [pixels for part in parts for pixels in load_images(part, self.config.vision.image_size)]
        if not pixels:
            raise UserError("There is no image to embed.")
        return np.asarray(fetch(self._embed(pixels)), np.float32)[: len(pixels)]

    def generate_embeddings(self, prompt: Parts, *, special_tokens: bool = False) -> np.ndarray:
        """Return the embeddings of the image after a prompt, float32 `[N, D]`, by N regression steps."""
        return self.generate_embeddings_batch([prompt], special_tokens=special_tokens)[0]

    def generate_embeddings_batch(
        self, prompts: Sequence[Input], *, special_tokens: bool = False, batch_size: int = 64
    ) -> np.ndarray:
        """Return `generate_embeddings` of many prompts, float32 `[n, N, D]`."""
        built = [self.build_prompt(prompt, special_tokens=special_tokens, open_image=True) for prompt in prompts]
        found = []
        for chunk in _chunks(built, batch_size):
            self._capacity(chunk, required=self.config.causal_former.num_image_tokens)
            with self._on_mesh():
                embeddings = generate_embeddings(self.params, self._batch(chunk), model=self.model)
            found.append(fetch(embeddings)[: len(chunk)])
        return np.concatenate(found)

    # ---- images

    @property
    def visual_decoder(self) -> VisualDecoder:
        """The model that decodes embeddings to images; read at first use.

        Raises:
          UserError: there is none, or its embedding width differs from that of the Emu.
        """
        with self._lock:
            if self._visual_decoder is None:
                raise UserError("This model cannot decode images: there is no visual_decoder/ in its directory.")
            if isinstance(self._visual_decoder, Path):
                self._visual_decoder = load_visual_decoder(self._visual_decoder)
        width, own = self._visual_decoder.unet.config.cross_attention_dim, self.config.decoder.width
        if width != own:
            raise UserError(f"The visual decoder requires embeddings of width {width}; those of this Emu have {own}.")
        return self._visual_decoder

    @functools.cached_property
    def safety_checker(self) -> SafetyChecker | None:
        """The checker that screens images by default; None if the folder of the visual decoder has no weights of one.

        Raises:
          UserError: the weights do not match their config.
        """
        source = self.visual_decoder.source if self.has_visual_decoder else None
        return load_safety_checker(source) if source is not None and has_safety_checker(source) else None

    @property
    def has_visual_decoder(self) -> bool:
        """True if the model can decode images."""
        return self._visual_decoder is not None

    def generate_image(
        self,
        prompt: Parts,
        *,
        num_images: int = 1,
        autoencode: bool = False,
        special_tokens: bool = False,
        safety: Safety = True,
        **options: Any,
    ) -> list[PIL.Image.Image]:
        """Generate images: text to image, blending (two images), in context (text and images in any order).

        Args:
          num_images: images of the prompt, which differ in their noise.
          autoencode: decode the embeddings of the prompt's one image instead of predicted ones.
          safety: True screens with `emu.safety_checker`, False does not; or another check. Flagged images are black.
          options: fields of `ImageOptions`: sampler, steps, guidance_scale, seed, height, width.
        """
        if not 1 <= num_images <= MAX_IMAGES:
            raise UserError(f"num_images must be an integer from 1 to {MAX_IMAGES}, not {num_images}.")
        chosen = image_options(**options)
        self.visual_decoder.latent_size(chosen.height, chosen.width)  # raises errors before the work
        if autoencode:
            image = only_image(self.build_prompt(prompt), num_image_tokens=self.config.causal_former.num_image_tokens)
            embeddings = self.visual_embeddings(image)[0]
        else:
            embeddings = self.generate_embeddings(prompt, special_tokens=special_tokens)
        return self.decode_embeddings(np.repeat(embeddings[None], num_images, axis=0), safety=safety, **options)

    def autoencode_image(self, image: Part, *, safety: Safety = True, **options: Any) -> PIL.Image.Image:
        """Return an image after the encoder and the visual decoder."""
        return self.generate_image([image], autoencode=True, safety=safety, **options)[0]

    def decode_embeddings(
        self, embeddings: np.ndarray, *, safety: Safety = True, **options: Any
    ) -> list[PIL.Image.Image]:
        """Decode embeddings `[n, N, D]` to images, with guidance by the embeddings of the empty prompt."""
        chosen, decoder = image_options(**options), self.visual_decoder
        unconditional = None if chosen.guidance_scale == 1 else self._empty_prompt[None]
        sampled = decoder.sample(np.asarray(embeddings, np.float32), unconditional, **dataclasses.asdict(chosen))
        check = self.safety_checker if safety is True else safety or None
        return screened(to_images(np.asarray(decoder.decode(sampled.latents))), check)

    # ---- alternating text and images

    def generate(
        self,
        prompt: Parts,
        *,
        max_images: int = 1,
        open_image: OpenImage | str = OpenImage.MODEL,
        decode: bool | None = None,
        image: ImageOptions | None = None,
        special_tokens: bool = False,
        safety: Safety = True,
        **options: Any,
    ) -> list[str | np.ndarray | PIL.Image.Image]:
        """Generate alternating texts and images after a prompt.

        Args:
          max_images: maximum number of images.
          open_image: what starts an image: "model" (it generates `[IMG]`), "first" (the output starts with an image),
            "alternate" (the end of a text).
          decode: return PIL images (True) or embeddings `[N, D]` (False). Default: True if there is a visual decoder.
          image: options of the visual decoder; the seed of each further image is one larger.
          safety: screens the images, as in `generate_image`.
          options: fields of `TextOptions`, without beams; max_new_tokens limits the text tokens.
        """
        chosen = text_options(**options)
        if chosen.num_beams > 1:
            raise UserError("Beam search generates text only; use num_beams=1 with images.")
        condition = parse_open_image(open_image)
        decode = self.has_visual_decoder if decode is None else decode
        image = image or ImageOptions()
        if decode:
            self.visual_decoder.latent_size(image.height, image.width)  # raises errors before the work
        image_tokens = ImageTokens(
            self.tokenizer.boi_id, self.tokenizer.eoi_id, self.tokenizer.image_token_id, max_images, condition
        )
        built = self.build_prompt(prompt, special_tokens=special_tokens, open_image=condition is OpenImage.FIRST)
        image_capacity = max_images * (self.config.causal_former.num_image_tokens + 2)
        text_capacity = self._capacity([built], required=image_capacity + 1) - image_capacity
        limit = min(chosen.max_new_tokens, text_capacity)
        capacity = min(bucket(limit), max(limit, text_capacity)) + image_capacity
        search, controls = self._compile_options(chosen, capacity=capacity, limit=limit)
        with self._on_mesh():
            output = generate_mixed(
                self.params,
                self._batch([built]),
                controls,
                model=self.model,
                search=search,
                image_tokens=image_tokens,
            )
        tokens, lengths, embeddings = fetch((output.tokens, output.lengths, output.embeddings))
        parts = interleave(tokens[0, 1 : lengths[0]], embeddings[0], tokenizer=self.tokenizer)
        if not decode:
            return list(parts)
        options = dataclasses.asdict(image)
        return [
            part
            if isinstance(part, str)
            else self.decode_embeddings(part[None], safety=safety, **options | {"seed": (image.seed + i) % 2**32})[0]
            for i, part in enumerate(parts)
        ]

    # ---- the model itself

    def forward(
        self,
        tokens: Any,
        images: Any = None,
        *,
        positions: Any = None,
        segment_ids: Any = None,
    ) -> EmuOutput:
        """Return all outputs of a forward pass, with logits cropped to the unpadded vocabulary.

        Padding tokens (the tokenizer's pad id) are masked.

        Args:
          tokens: int `[B, L]`.
          images: `[B, I, H, W, 3]`, uint8 or normalized float, or None.
        """
        tokens = jnp.asarray(tokens, jnp.int32)
        if segment_ids is None:
            segment_ids = (tokens != self.tokenizer.pad_id).astype(jnp.int32)
        if images is not None:
            images = jnp.asarray(images)
            images = images if images.dtype == jnp.uint8 else images.astype(jnp.float32)
            check_image_tokens(tokens, images, model=self.model)
        with self._on_mesh():
            return forward_pass(self.params, tokens, images, positions, segment_ids, model=self.model)

    def build_prompt(self, prompt: Input, *, special_tokens: bool = False, open_image: bool = False) -> Prompt:
        """Return the tokens and images of a prompt (see `generation.prompt.build_prompt`); a `Prompt` as it is."""
        if isinstance(prompt, Prompt):
            return prompt
        return build_prompt(
            prompt,
            tokenizer=self.tokenizer,
            num_image_tokens=self.config.causal_former.num_image_tokens,
            image_size=self.config.vision.image_size,
            special_tokens=special_tokens,
            open_image=open_image,
        )

    @functools.cached_property
    def _empty_prompt(self) -> np.ndarray:
        """The embeddings generated from the empty prompt `[N, D]`, the unconditional input of guidance."""
        return self.generate_embeddings("")

    @property
    def _max_length(self) -> int:
        return self.config.decoder.max_length

    def _capacity(self, prompts: Sequence[Prompt], *, required: int = 1) -> int:
        """Return the number of new tokens that fit in the context after the longest prompt.

        Raises:
          UserError: fewer than `required` fit.
        """
        longest = max(len(prompt.tokens) for prompt in prompts)
        capacity = self._max_length - longest
        if capacity < required:
            raise UserError(
                f"The prompt has {longest} tokens and {required} must follow, but the context of the model has "
                f"{self._max_length}; shorten the text or pass fewer images."
            )
        return capacity

    def _compile_options(self, options: TextOptions, *, capacity: int, limit: int) -> tuple[Any, Any]:
        special = self.tokenizer
        return compile_options(
            options,
            capacity=capacity,
            max_new_tokens=limit,
            bos_id=special.bos_id,
            eos_id=special.eos_id,
            pad_id=special.pad_id,
        )

    def _batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        batch = pad_prompts(prompts, pad_id=self.tokenizer.pad_id, max_length=self._max_length)
        pixels = [pixels for prompt in prompts for pixels in prompt.images]
        return dataclasses.replace(batch, visual_embeddings=self._embed(pixels)) if pixels else batch

    def _embed(self, pixels: Sequence[np.ndarray]) -> jax.Array:
        with self._on_mesh():  # [n, N, D], n rounded up to a power of two
            return embed_in_batches(self.params, pixels, model=self.model)

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
