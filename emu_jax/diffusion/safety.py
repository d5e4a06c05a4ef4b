"""The safety checker of Stable Diffusion: it flags images that are too similar to one of seventeen hidden concepts.

It compares CLIP's embedding of an image with the embeddings of the concepts. Each concept has its threshold, and all
thresholds are lower for an image that is similar to one of three special concepts. See Rando et al. 2022, "Red-Teaming
the Stable Diffusion Safety Filter".
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import PIL.Image

from emu_jax.bounds import Between, Checked, Pixels, Positive
from emu_jax.diffusion.clip_vision import ClipVision
from emu_jax.errors import UserError
from emu_jax.pixels import CLIP_MEAN, CLIP_STD

SPECIAL_MARGIN = np.float32(0.01)  # a special concept adds this to the scores of all concepts


@dataclasses.dataclass(frozen=True)
class Preprocessing(Checked):
    """CLIPImageProcessor: resize the shorter side to `size` (bicubic), crop the center to `crop_size`, normalize."""

    size: Pixels = 224
    crop_size: Pixels = 224
    image_mean: tuple[Annotated[float, Between(-1e6, 1e6)], ...] = CLIP_MEAN
    image_std: tuple[Positive, ...] = CLIP_STD

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read an old or a new `preprocessor_config.json`.

        Raises:
          UserError: an option that would change the pixels is not supported.
        """
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not config.get(name, True):
                raise UserError(f"The feature extractor's {name} must be true.")
        if config.get("resample", 3) != 3:
            raise UserError("The feature extractor's resample must be 3, bicubic.")
        return cls(
            size=_side(config.get("size", cls.size), "size"),
            crop_size=_side(config.get("crop_size", cls.crop_size), "crop_size"),
            image_mean=tuple(config.get("image_mean", cls.image_mean)),
            image_std=tuple(config.get("image_std", cls.image_std)),
        )

    def __call__(self, image: PIL.Image.Image) -> np.ndarray:
        """Return float32 pixels `[crop_size, crop_size, 3]`."""
        image = image.convert("RGB")
        shorter, longer = min(image.size), max(image.size)
        sides = (self.size, int(self.size * longer / shorter))
        width, height = sides if image.width <= image.height else sides[::-1]
        image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        left, top = (width - self.crop_size) // 2, (height - self.crop_size) // 2
        image = image.crop((left, top, left + self.crop_size, top + self.crop_size))
        pixels = np.asarray(image, np.float32) / np.float32(255)
        return (pixels - np.asarray(self.image_mean, np.float32)) / np.asarray(self.image_std, np.float32)


@dataclasses.dataclass(frozen=True)
class Concepts:
    """Embeddings that images are compared with, and the largest permitted cosine similarity for each.

    Attributes:
      embeddings: `[n, D]`.
      thresholds: `[n]`.
    """

    embeddings: np.ndarray
    thresholds: np.ndarray


@dataclasses.dataclass(frozen=True)
class SafetyChecker:
    """`checker(images)` returns True for each PIL image that must not be displayed. Pass it as `safety=`."""

    encoder: ClipVision
    params: dict[str, Any]
    concepts: Concepts
    special: Concepts
    preprocessing: Preprocessing

    def __call__(self, images: Sequence[PIL.Image.Image]) -> list[bool]:
        if not images:
            return []
        pixels = np.stack([self.preprocessing(image) for image in images])
        return [bool((row > 0).any()) for row in self.scores(self.embed(pixels))]

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return CLIP's embeddings, float32 `[n, D]`, of preprocessed images `[n, S, S, 3]`."""
        return np.asarray(_embed(self.encoder, self.params, pixels))

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the excess over each concept's threshold, float32 `[n, concepts]`. A positive one flags the image."""
        special = _excess(embeddings, self.special)
        margins = SPECIAL_MARGIN * (special > 0).any(axis=1, keepdims=True)
        return _excess(embeddings, self.concepts, margins)


@functools.partial(jax.jit, static_argnames="encoder")
def _embed(encoder: ClipVision, params: Any, pixels: jax.Array) -> jax.Array:
    return encoder.apply({"params": params}, pixels)


def _excess(embeddings: np.ndarray, concepts: Concepts, margins: Any = 0.0) -> np.ndarray:
    """Return cosine - threshold + margin, rounded to three decimal places as in the published checker; float32."""
    cosines = _unit(embeddings) @ _unit(concepts.embeddings).T
    return np.round(cosines - concepts.thresholds + np.asarray(margins, np.float32), 3)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def _side(value: Any, name: str) -> int:
    """Read `224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`."""
    sides = set(value.values()) if isinstance(value, Mapping) else {value}
    if name == "size" and isinstance(value, Mapping) and "shortest_edge" not in value:
        raise UserError("The feature extractor must resize the shortest_edge.")
    if len(sides) != 1:
        raise UserError(f"The feature extractor's {name} must be square, not {dict(value)}.")
    return int(sides.pop())
