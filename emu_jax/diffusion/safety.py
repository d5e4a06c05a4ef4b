"""The safety checker of Stable Diffusion: pictures too near to seventeen hidden concepts are to be blacked out.

The published checker compares CLIP's embedding of a picture with the embeddings of the concepts; each has a threshold
of its own, and a picture near to one of three special concepts meets stricter ones. See Rando et al. 2022, "Red-Teaming
the Stable Diffusion Safety Filter".
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image

from emu_jax.diffusion.clip_vision import ClipVision
from emu_jax.errors import UserError
from emu_jax.pixels import CLIP_MEAN, CLIP_STD

STRICTER = np.float32(0.01)  # what a special concept adds to the score of every concept


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """CLIPImageProcessor: the shorter side to `size` by bicubic resizing, the middle `crop_size`, normalised."""

    size: int = 224
    crop_size: int = 224
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Reads `preprocessor_config.json`, old or new.

        Raises:
          UserError: an option that would change the pixels and is not built.
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

    def __call__(self, picture: PIL.Image.Image) -> np.ndarray:
        """Float32 `[crop_size, crop_size, 3]`."""
        picture = picture.convert("RGB")
        shorter, longer = min(picture.size), max(picture.size)
        sides = (self.size, int(self.size * longer / shorter))
        width, height = sides if picture.width <= picture.height else sides[::-1]
        picture = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
        left, top = (width - self.crop_size) // 2, (height - self.crop_size) // 2
        picture = picture.crop((left, top, left + self.crop_size, top + self.crop_size))
        pixels = np.asarray(picture, np.float32) / np.float32(255)
        return (pixels - np.asarray(self.image_mean, np.float32)) / np.asarray(self.image_std, np.float32)


@dataclasses.dataclass(frozen=True)
class Concepts:
    """Embeddings that pictures are compared with, and the cosine from which on one is too near."""

    embeddings: np.ndarray  # [n, D]
    thresholds: np.ndarray  # [n]


@dataclasses.dataclass(frozen=True)
class SafetyChecker:
    """`checker(pictures)` gives True for each PIL image that must not be shown: what `safety=` takes."""

    tower: ClipVision
    params: dict[str, Any]
    concepts: Concepts
    special: Concepts
    preprocessing: Preprocessing

    def __call__(self, pictures: Sequence[PIL.Image.Image]) -> list[bool]:
        if not pictures:
            return []
        pixels = np.stack([self.preprocessing(picture) for picture in pictures])
        return [bool((row > 0).any()) for row in self.scores(self.embed(pixels))]

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """CLIP's embeddings of preprocessed pictures `[n, S, S, 3]`: float32 `[n, D]`."""
        return np.asarray(_embed(self.tower, self.params, pixels))

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """How far each picture lies beyond each concept's threshold, float32 `[n, concepts]`; above 0 is too near."""
        special = _beyond(embeddings, self.special)
        stricter = STRICTER * (special > 0).any(axis=1, keepdims=True)
        return _beyond(embeddings, self.concepts, stricter)


@functools.partial(jax.jit, static_argnames="tower")
def _embed(tower: ClipVision, params: Any, pixels: jax.Array) -> jax.Array:
    return tower.apply({"params": params}, pixels)


def _beyond(embeddings: np.ndarray, concepts: Concepts, stricter: Any = 0.0) -> np.ndarray:
    """Cosine less threshold, rounded to three places as the published checker does, in float32."""
    cosines = _unit(embeddings) @ _unit(concepts.embeddings).T
    return np.round(cosines - concepts.thresholds + np.asarray(stricter, np.float32), 3)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def _side(value: Any, name: str) -> int:
    """`224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`."""
    sides = set(value.values()) if isinstance(value, Mapping) else {value}
    if name == "size" and isinstance(value, Mapping) and "shortest_edge" not in value:
        raise UserError("The feature extractor must resize the shortest_edge.")
    if len(sides) != 1:
        raise UserError(f"The feature extractor's {name} must be square, not {dict(value)}.")
    return int(sides.pop())
