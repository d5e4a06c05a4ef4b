"""The model in use: prompts of text, images and videos in; text, embeddings, scores and pictures out."""

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
from emu_jax.generation.buckets import bucket, power_of_two
from emu_jax.generation.forward import embed_images, forward_pass
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.mixed import ImageTokens, OpenImage, generate_mixed, interleave
from emu_jax.generation.options import ImageOptions, image_options, text_options
from emu_jax.generation.pixels import SafetyCheck, screened, to_images
from emu_jax.generation.prompt import Part, Prompt, PromptBatch, build_prompt, load_images, only_image, pad_prompts
from emu_jax.generation.sampling import TextOptions, compile_options
from emu_jax.generation.score import candidate_ids, pad_candidates, score_candidates
from emu_jax.generation.text import generate_tokens
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.models.outputs import EmuOutput

_IMAGES_AT_ONCE = 64
_CANDIDATES_AT_ONCE = 64

Parts = Sequence[Part] | Part
Input = Parts | Prompt  # parts, or what `build_prompt` made of them


class EmuPipeline:
    """A loaded Emu.

    A prompt is a list of strings, PIL images, paths of images and videos, and arrays (uint8 `[H, W, 3]`, or float32
    taken as already resized and normalised), in any order. Text is text: `[IMG]` or `</s>` typed in a string are
    special tokens only with `special_tokens=True`. Programs are compiled at first use for each bucket of lengths.

    Attributes:
      config, model, params: what `model.apply({"params": params}, ...)` wants.
      tokenizer: text to ids and back.
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
        """`visual_decoder` is one, or the diffusers-layout folder to read it from at first use."""
        self.config, self.params, self.tokenizer, self.mesh = config, params, tokenizer, mesh
        self.model = Emu(config, image_token_id=tokenizer.image_token_id)
        self._visual_decoder = visual_decoder
        self._lock = threading.Lock()  # reads the decoder once

    # ---- text

    def generate_text(
        self, prompt: Parts, *, return_ids: bool = False, special_tokens: bool = False, **options: Any
    ) -> str | list[int]:
        """The text that follows a prompt, without `<s>`, `</s>` and the other special tokens.

        Args:
          return_ids: gives the new ids instead, special ones included (`</s>` where it came in time).
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
        """`generate_text` of many prompts, `batch_size` at once; each comes out as it would alone."""
        asked = text_options(**options)
        built = [self.build_prompt(prompt, special_tokens=special_tokens) for prompt in prompts]
        found: list[list[int]] = []
        for some in _chunks(built, batch_size):
            limit = min(asked.max_new_tokens, self._room(some))
            room = min(bucket(limit), max(limit, self._room(some)))
            search, controls = self._compile_options(asked, room=room, limit=limit)
            with self._on_mesh():
                output = generate_tokens(self.params, self._batch(some), controls, model=self.model, search=search)
            tokens, lengths = jax.device_get((output.tokens, output.lengths))
            found += [tokens[row, 1 : lengths[row]].tolist() for row in range(len(some))]
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

        `end` counts the `</s>` after a candidate too, as the release ranks complete answers.
        """
        ids = candidate_ids(candidates, self.tokenizer, special_tokens=special_tokens, end=end)
        built = [self.build_prompt(prompt, special_tokens=special_tokens) for prompt in prompts]
        longest = max(len(one) for some in ids for one in some)
        length = min(bucket(longest, smallest=4), self._room(built, wanted=longest))
        batch, scores = self._batch(built), []
        for columns in _chunks(range(len(ids[0])), max(1, _CANDIDATES_AT_ONCE // len(built))):
            padded, counts = pad_candidates([[some[i] for i in columns] for some in ids], length=length)
            with self._on_mesh():
                found = score_candidates(self.params, batch, padded, counts, model=self.model)
            scores.append(np.asarray(found)[: len(built), : len(columns)])
        return np.concatenate(scores, axis=1)

    # ---- embeddings

    def visual_embeddings(self, images: Sequence[Part] | Part) -> np.ndarray:
        """What the causal former makes of images (a video counts as 8): float32 `[n, N, D]`."""
        if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
            images = list(images)
        parts: Any = images if isinstance(images, list | tuple) else [images]
        pixels = [pixels for part in parts for pixels in load_images(part, self.config.vision.image_size)]
        if not pixels:
            raise UserError("There is no image to embed.")
        return np.asarray(self._embed(pixels), np.float32)[: len(pixels)]

    def generate_embeddings(self, prompt: Parts, *, special_tokens: bool = False) -> np.ndarray:
        """The embeddings of the image that would follow a prompt, float32 `[N, D]`, by N regression steps."""
        return self.generate_embeddings_batch([prompt], special_tokens=special_tokens)[0]

    def generate_embeddings_batch(
        self, prompts: Sequence[Input], *, special_tokens: bool = False, batch_size: int = 64
    ) -> np.ndarray:
        """`generate_embeddings` of many prompts, float32 `[n, N, D]`."""
        built = [self.build_prompt(prompt, special_tokens=special_tokens, open_image=True) for prompt in prompts]
        found = []
        for some in _chunks(built, batch_size):
            self._room(some, wanted=self.config.causal_former.num_image_tokens)
            with self._on_mesh():
                embeddings = generate_embeddings(self.params, self._batch(some), model=self.model)
            found.append(np.asarray(embeddings)[: len(some)])
        return np.concatenate(found)

    # ---- pictures

    @property
    def visual_decoder(self) -> VisualDecoder:
        """What turns embeddings into pictures; read at first use.

        Raises:
          UserError: the model has none, or it takes embeddings of another width.
        """
        with self._lock:
            if self._visual_decoder is None:
                raise UserError("This model makes no pictures: there is no visual_decoder/ in its directory.")
            if isinstance(self._visual_decoder, Path):
                self._visual_decoder = load_visual_decoder(self._visual_decoder)
        width, wanted = self._visual_decoder.unet.config.cross_attention_dim, self.config.decoder.width
        if width != wanted:
            raise UserError(f"The visual decoder takes embeddings of width {width}, but this Emu makes {wanted}.")
        return self._visual_decoder

    @functools.cached_property
    def safety_checker(self) -> SafetyChecker | None:
        """What to give as `safety`; None where there are no weights of one beside the visual decoder.

        Raises:
          UserError: they do not fit their config.
        """
        source = self.visual_decoder.source if self.has_visual_decoder else None
        return load_safety_checker(source) if source is not None and has_safety_checker(source) else None

    @property
    def has_visual_decoder(self) -> bool:
        return self._visual_decoder is not None

    def generate_image(
        self,
        prompt: Parts,
        *,
        num_images: int = 1,
        autoencode: bool = False,
        special_tokens: bool = False,
        safety: SafetyCheck | None = None,
        **options: Any,
    ) -> list[PIL.Image.Image]:
        """Pictures of a prompt: text to image, blending (two images), in context (text and images in any order).

        Args:
          autoencode: the prompt is one image, whose own embeddings are painted; nothing is predicted.
          num_images: pictures from one prompt, each from other noise.
          safety: screens the pictures, as `emu.safety_checker` does; those it flags come back black.
          options: fields of `ImageOptions`: sampler, steps, guidance_scale, seed, height, width.
        """
        if num_images < 1:
            raise UserError(f"num_images must be at least 1, not {num_images}.")
        asked = image_options(**options)
        self.visual_decoder.latent_size(asked.height, asked.width)  # errors before the work
        if autoencode:
            image = only_image(self.build_prompt(prompt), num_image_tokens=self.config.causal_former.num_image_tokens)
            embeddings = self.visual_embeddings(image)[0]
        else:
            embeddings = self.generate_embeddings(prompt, special_tokens=special_tokens)
        return self.decode_embeddings(np.repeat(embeddings[None], num_images, axis=0), safety=safety, **options)

    def autoencode_image(self, image: Part, *, safety: SafetyCheck | None = None, **options: Any) -> PIL.Image.Image:
        """An image through the encoder and the visual decoder: what the embeddings keep of it."""
        return self.generate_image([image], autoencode=True, safety=safety, **options)[0]

    def decode_embeddings(
        self, embeddings: np.ndarray, *, safety: SafetyCheck | None = None, **options: Any
    ) -> list[PIL.Image.Image]:
        """A picture of each `[n, N, D]`, guided away from what the empty prompt makes."""
        asked = image_options(**options)
        decoder = self.visual_decoder
        unconditional = None if asked.guidance_scale == 1 else self._empty_prompt[None]
        sampled = decoder.sample(np.asarray(embeddings, np.float32), unconditional, **dataclasses.asdict(asked))
        return screened(to_images(np.asarray(decoder.decode(sampled.latents))), safety)

    # ---- text and images in turn

    def generate(
        self,
        prompt: Parts,
        *,
        max_images: int = 1,
        open_image: OpenImage | str = OpenImage.MODEL,
        pictures: bool | None = None,
        picture: ImageOptions | None = None,
        special_tokens: bool = False,
        safety: SafetyCheck | None = None,
        **options: Any,
    ) -> list[str | np.ndarray | PIL.Image.Image]:
        """What follows a prompt, texts and images in turn.

        Args:
          max_images: at most so many images.
          open_image: when they begin: "model" (as it says `[IMG]`), "first" (with one), "alternate" (after each text).
          pictures: True gives PIL images, False their embeddings `[N, D]`; default: pictures where it can make them.
          picture: how they are painted; each image in turn takes the next seed.
          options: fields of `TextOptions`, without beams; max_new_tokens counts the text alone.
        """
        asked = text_options(**options)
        if asked.num_beams > 1:
            raise UserError("Beam search writes text alone; use num_beams=1 with images.")
        try:
            when = OpenImage(open_image)
        except ValueError:
            known = ", ".join(repr(one.value) for one in OpenImage)
            raise UserError(f"open_image must be one of {known}, not {open_image!r}.") from None
        pictures = self.has_visual_decoder if pictures is None else pictures
        picture = picture or ImageOptions()
        if pictures:
            self.visual_decoder.latent_size(picture.height, picture.width)  # errors before the work
        image_tokens = ImageTokens(
            self.tokenizer.boi_id, self.tokenizer.eoi_id, self.tokenizer.image_token_id, max_images, when
        )
        built = self.build_prompt(prompt, special_tokens=special_tokens, open_image=when is OpenImage.FIRST)
        images_room = max_images * (self.config.causal_former.num_image_tokens + 2)
        text_room = self._room([built], wanted=images_room + 1) - images_room
        limit = min(asked.max_new_tokens, text_room)
        room = min(bucket(limit), max(limit, text_room)) + images_room
        search, controls = self._compile_options(asked, room=room, limit=limit)
        with self._on_mesh():
            output = generate_mixed(
                self.params,
                self._batch([built]),
                controls,
                model=self.model,
                search=search,
                image_tokens=image_tokens,
            )
        tokens, length, embeddings = jax.device_get((output.tokens[0], output.lengths[0], output.embeddings[0]))
        found = interleave(tokens[1:length], embeddings, tokenizer=self.tokenizer)
        if not pictures:
            return list(found)
        return [
            part
            if isinstance(part, str)
            else self.decode_embeddings(
                part[None], safety=safety, **dataclasses.asdict(dataclasses.replace(picture, seed=picture.seed + i))
            )[0]
            for i, part in enumerate(found)
        ]

    # ---- beneath

    def forward(
        self,
        tokens: Any,
        images: Any = None,
        *,
        positions: Any = None,
        segment_ids: Any = None,
    ) -> EmuOutput:
        """A forward pass: tokens int `[B, L]`, images `[B, I, H, W, 3]` (uint8, or float already normalised) or None.

        Padding (the tokenizer's pad id) is not attended to. The logits end with the true vocabulary.
        """
        tokens = jnp.asarray(tokens, jnp.int32)
        if segment_ids is None:
            segment_ids = (tokens != self.tokenizer.pad_id).astype(jnp.int32)
        if images is not None:
            images = jnp.asarray(images)
            images = images if images.dtype == jnp.uint8 else images.astype(jnp.float32)
            wanted = int(images.shape[1]) * self.config.causal_former.num_image_tokens
            most = int(jnp.max(jnp.sum(tokens == self.tokenizer.image_token_id, axis=1)))
            if most > wanted:
                raise UserError(f"A row has {most} <image> tokens, but {images.shape[1]} images fill only {wanted}.")
        with self._on_mesh():
            return forward_pass(self.params, tokens, images, positions, segment_ids, model=self.model)

    def build_prompt(self, prompt: Input, *, special_tokens: bool = False, open_image: bool = False) -> Prompt:
        """The tokens and images of a prompt (see `generation.prompt.build_prompt`); a built one as it is."""
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
        """The unconditional branch of guidance: the embeddings generated from the empty prompt, `[N, D]`."""
        return self.generate_embeddings("")

    @property
    def _max_length(self) -> int:
        return self.config.decoder.max_length

    def _room(self, prompts: Sequence[Prompt], *, wanted: int = 1) -> int:
        """New tokens that the context has room for after the longest prompt; at least `wanted`."""
        longest = max(len(prompt.tokens) for prompt in prompts)
        room = self._max_length - longest
        if room < wanted:
            raise UserError(
                f"The prompt has {longest} tokens and {wanted} must follow, but the model reads at most "
                f"{self._max_length}; shorten the text or give fewer images."
            )
        return room

    def _compile_options(self, asked: TextOptions, *, room: int, limit: int) -> tuple[Any, Any]:
        special = self.tokenizer
        return compile_options(
            asked,
            capacity=room,
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
        """Visual embeddings, `[n rounded up, N, D]`."""
        found = []
        for some in _chunks(pixels, _IMAGES_AT_ONCE):
            blank = [np.zeros_like(some[0])] * (power_of_two(len(some)) - len(some))
            with self._on_mesh():
                found.append(embed_images(self.params, np.stack([*some, *blank]), model=self.model))
        embeddings = found[0] if len(found) == 1 else jnp.concatenate(found)
        missing = power_of_two(len(embeddings)) - len(embeddings)
        return jnp.pad(embeddings, ((0, missing), (0, 0), (0, 0))) if missing else embeddings

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
