"""From checked bodies to engine requests: chat layout, decoded media, space in the context."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from emu_jax.data.document import Role
from emu_jax.data.media_paths import PlainText
from emu_jax.errors import UserError
from emu_jax.generation.chat import ChatStyle, Turn, chat_prompt
from emu_jax.generation.mixed import OpenImage
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Part, Prompt
from emu_jax.generation.sampling import TextOptions
from emu_jax.serving.chat_request import ChatRequest, MediaPart, Message
from emu_jax.serving.config import Limits
from emu_jax.serving.engine import Engine
from emu_jax.serving.errors import ApiError, bad_field
from emu_jax.serving.image_request import ImageRequest, SamplerFields
from emu_jax.serving.jobs import ImagePlan, Request
from emu_jax.serving.media import read_image, read_url, read_video
from emu_jax.serving.slots import image_digest
from emu_jax.serving.usage import image_tokens, prompt_usage


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Turn bodies into requests. The methods decode images, so they run outside the event loop."""

    emu: EmuPipeline
    engine: Engine
    limits: Limits
    system: str  # the system message of chats that bring none
    style: ChatStyle = ChatStyle.TRAINING

    def chat(self, body: ChatRequest, *, model: str) -> Request:
        """Return the engine's request of a chat.

        Raises:
          ApiError: media that cannot be read, options that do not fit together, or too little space in the context.
        """
        seed = body.options["seed"]
        seed = secrets.randbits(32) if seed is None else seed
        plan = None
        if body.images is not None:
            fields = body.images
            options = self._image_options(fields.sampler, seed)
            plan = ImagePlan(fields.max_images, fields.when, fields.only_image, copies=1, options=options)
            if body.options["num_beams"] > 1:
                raise ApiError(400, "num_beams must be 1 with images in the answer.", param="num_beams")
        opens = plan is not None and plan.when is OpenImage.FIRST
        prompt = self.chat_prompt(body.messages, open_image=opens, prefill=body.prefill)
        limit = 1 if plan is not None and plan.only_image else body.max_tokens
        limit = self._text_limit(prompt, plan, limit)
        beams = body.options["num_beams"]
        if beams > self.engine.config.max_beams:
            raise ApiError(400, f"num_beams is at most {self.engine.config.max_beams} here.", param="num_beams")
        try:
            text = TextOptions(**{**body.options, "seed": seed % 2**32, "max_new_tokens": limit})
        except UserError as error:
            raise ApiError(400, str(error)) from None
        return Request(model, prompt, tuple(map(image_digest, prompt.images)), text, plan)

    def images(self, body: ImageRequest, files: Sequence[bytes], *, model: str) -> Request:
        """Return the engine's request of images: from a text, or edits of `files` by a text."""
        size = self.emu.config.vision.image_size
        pixels = [read_image(data, size, field=f"image[{i}]", limits=self.limits) for i, data in enumerate(files)]
        seed = secrets.randbits(32) if body.sampler.seed is None else body.sampler.seed
        options = self._image_options(body.sampler, seed)
        plan = ImagePlan(1, OpenImage.FIRST, only_image=True, copies=body.copies, options=options)
        prompt = self.emu.build_prompt([*pixels, PlainText(body.prompt)], open_image=True)
        text = TextOptions(max_new_tokens=self._text_limit(prompt, plan, 1))
        return Request(model, prompt, tuple(map(image_digest, prompt.images)), text, plan)

    def chat_prompt(self, messages: Sequence[Message], *, open_image: bool = False, prefill: str = "") -> Prompt:
        """Return a chat's prompt in the `style`, up to `prefill`, the start of the answer."""
        media = [part for message in messages for part in message.parts if isinstance(part, MediaPart)]
        if len(media) > self.limits.max_media:
            raise ApiError(
                400, f"messages hold {len(media)} images and videos; at most {self.limits.max_media} are allowed.",
                param="messages",
            )  # fmt: skip
        system = [part for message in messages if message.role is Role.SYSTEM for part in message.parts]
        turns = [
            Turn(message.role, tuple(piece for part in message.parts for piece in self._pieces(part)))
            for message in messages
            if message.role is not Role.SYSTEM
        ]
        text = "\n".join(map(str, system)) if system else self.system
        parts = chat_prompt(turns, tokenizer=self.emu.tokenizer, system=text, style=self.style, prefill=prefill)
        return self.emu.build_prompt(parts, open_image=open_image)

    def text_prompt(self, text: str) -> Prompt:
        """Return a plain text's prompt."""
        return self.emu.build_prompt([PlainText(text)])

    def _pieces(self, part: str | MediaPart) -> list[Part]:
        """A text, an image, or the frames of a video."""
        if isinstance(part, str):
            return [PlainText(part)]
        data = read_url(part.url, field=part.field, kind=part.kind, limits=self.limits)
        size = self.emu.config.vision.image_size
        if part.kind == "image":
            return [read_image(data, size, field=part.field, limits=self.limits)]
        return list(read_video(data, size, field=part.field, limits=self.limits))

    def _image_options(self, fields: SamplerFields, seed: int) -> Any:
        config = self.engine.config
        if not config.image_sizes:
            raise ApiError(400, "This model generates no images: it has no visual decoder.", param="model")
        size = fields.size(config.image_sizes[0])
        if size not in config.image_sizes:
            sizes = " or ".join(f"{width}x{height}" for height, width in config.image_sizes)
            raise bad_field("size", f"{size[1]}x{size[0]} is not served; choose {sizes}.")
        if fields.steps > config.max_sampler_steps:
            raise bad_field("num_inference_steps", f"is at most {config.max_sampler_steps} here, not {fields.steps}.")
        options = fields.options(seed=seed, size=size)
        try:
            self.engine.check_sampler(options)
        except UserError as error:
            raise ApiError(400, str(error), param="num_inference_steps") from None
        return options

    def _text_limit(self, prompt: Prompt, plan: ImagePlan | None, requested: int | None) -> int:
        """Text tokens that may follow: `requested`, or all that fit.

        Raises:
          ApiError: the prompt and what must follow exceed the context; the message says by how much.
        """
        N = self.emu.config.causal_former.num_image_tokens
        opens = plan is not None and plan.when is OpenImage.FIRST
        used = prompt_usage(prompt, num_image_tokens=N, opens_image=opens).tokens
        images = image_tokens(plan.max_images, num_image_tokens=N) if plan is not None else 0
        context = self.engine.config.context
        space = context - used - images
        if space < (requested or 1):
            answer = f"{requested or 1} of text" + (f" and {images} of images" if images else "")
            raise ApiError(
                400,
                f"The context has {context} tokens; the prompt has {used} and the answer needs {answer}, "
                f"{(requested or 1) - space} too many. Shorten the messages, give fewer images or lower max_tokens.",
                param="messages",
                code="context_length_exceeded",
            )
        return space if requested is None else requested
