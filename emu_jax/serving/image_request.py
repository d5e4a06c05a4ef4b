"""The bodies of /v1/images/generations and /v1/images/edits as checked requests."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from emu_jax.diffusion.samplers import Sampler
from emu_jax.generation.options import ImageOptions
from emu_jax.serving.errors import bad_field
from emu_jax.serving.fields import Fields, json_object

SAMPLER_FIELDS = ("sampler", "num_inference_steps", "guidance_scale", "seed", "height", "width")
_WITHOUT_EFFECT = ("user", "quality", "style", "background", "moderation", "input_fidelity", "output_compression")
_FIELDS = (
    "model", "prompt", "n", "size", "response_format", "output_format", "steps", "guidance", "image", "image[]",
    "mask", "stream", "partial_images", *SAMPLER_FIELDS, *_WITHOUT_EFFECT,
)  # fmt: skip
_MAX_COPIES = 10
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class SamplerFields:
    """Options of the sampler; None: the server's default."""

    sampler: str
    steps: int
    guidance_scale: float
    seed: int | None
    height: int | None
    width: int | None

    def size(self, default: tuple[int, int]) -> tuple[int, int]:
        """Return `(height, width)` in pixels."""
        return (
            default[0] if self.height is None else self.height,
            default[1] if self.width is None else self.width,
        )

    def options(self, *, seed: int, size: tuple[int, int]) -> ImageOptions:
        """Return the options for a seed and a `(height, width)` that are served."""
        return ImageOptions(
            sampler=self.sampler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=seed % 2**32,
            height=size[0],
            width=size[1],
        )


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """A checked body: `copies` images of one prompt."""

    model: str | None
    prompt: str
    copies: int
    sampler: SamplerFields


def sampler_fields(fields: Fields) -> SamplerFields:
    """Read the options of the visual decoder, under vllm-omni's names."""
    default = ImageOptions()
    return SamplerFields(
        sampler=fields.choice("sampler", [one.value for one in Sampler], Sampler(default.sampler).value),
        steps=fields.integer("num_inference_steps", default.steps, least=1),
        guidance_scale=fields.number("guidance_scale", default.guidance_scale, least=0, most=1000),
        seed=fields.integer("seed"),
        height=fields.integer("height", least=1),
        width=fields.integer("width", least=1),
    )


def parse_image_request(body: Any, *, form: bool = False) -> ImageRequest:
    """Check a body: a JSON object, or the texts of a form.

    Raises:
      ApiError: a field of the wrong type or value, or one that asks for what is not served.
    """
    values: Mapping[str, Any] = json_object(body)
    fields = Fields(values, known=_FIELDS, form=form)
    fields.refuse("response_format", unless=("b64_json",), why="must be b64_json")
    fields.refuse("output_format", unless=("png",), why="must be png")
    fields.refuse("mask", unless=(), why="is not served; say in the prompt what to change")
    if fields.flag("stream"):
        raise bad_field("stream", "is not served for images.")
    prompt = fields.text("prompt")
    if prompt is None:
        raise bad_field("prompt", "is missing.")
    height, width = _size(fields)
    sampler = sampler_fields(fields)
    return ImageRequest(
        model=fields.text("model"),
        prompt=prompt,
        copies=fields.integer("n", 1, least=1, most=_MAX_COPIES),
        sampler=dataclasses.replace(
            sampler,
            steps=fields.integer("steps", sampler.steps, least=1),
            guidance_scale=fields.number("guidance", sampler.guidance_scale, least=0, most=1000),
            height=height if sampler.height is None else sampler.height,
            width=width if sampler.width is None else sampler.width,
        ),
    )


def _size(fields: Fields) -> tuple[int | None, int | None]:
    """Height and width of `size`, "512x512" (width first)."""
    size = fields.text("size", "auto")
    if size == "auto":
        return None, None
    match = _SIZE.fullmatch(size)
    if match is None:
        raise bad_field("size", f"must be WIDTHxHEIGHT, such as 512x512, not {size!r}.")
    return int(match[2]), int(match[1])
