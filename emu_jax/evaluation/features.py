"""Image features of media files, computed once per network and stored."""

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.data.images import decode, preprocess
from emu_jax.data.media_paths import VIDEO_SUFFIXES
from emu_jax.data.video import take_frames
from emu_jax.errors import UserError
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import VIDEO_FRAMES
from emu_jax.io.files import atomic_file
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import fetch

log = logging.getLogger(__name__)

Encoder = Callable[[Sequence[np.ndarray]], np.ndarray]  # uint8 images [H, W, 3] -> features [n, D]

_AT_ONCE = 32


def emu_encoder(emu: EmuPipeline) -> Encoder:
    """Return an encoder by Emu's own vision encoder: the mean of its tokens, `[n, D]`."""
    size = emu.config.vision.image_size

    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = np.stack([preprocess(image, size) for image in images])
        filled = np.concatenate([pixels, np.zeros((_AT_ONCE - len(pixels), *pixels.shape[1:]), np.uint8)])
        with contextlib.nullcontext() if emu.mesh is None else jax.set_mesh(emu.mesh):
            features = _mean_features(emu.params, filled, model=emu.model)
        return fetch(features)[: len(pixels)]

    return encode


@partial(jax.jit, static_argnames="model")
def _mean_features(params: Any, images: jax.Array, *, model: Emu) -> jax.Array:
    features = model.apply({"params": params}, images, method=Emu.image_features)
    return jnp.mean(features.astype(jnp.float32), axis=1)


def media_features(paths: Sequence[Path], encode: Encoder, *, network: str, store: Path) -> np.ndarray:
    """Return unit-length features `[n, D]` of images and videos (the mean over 8 frames), from `store` if there.

    Args:
      network: identifies the weights of `encode`.
      store: folder of .npz files.

    Raises:
      UserError: an image or video cannot be read.
    """
    name = hashlib.sha256("\n".join([network, *map(str, paths)]).encode()).hexdigest()[:16]
    file = store / f"features-{name}.npz"
    if file.is_file():
        with np.load(file) as saved:
            return saved["features"]
    log.info("computing the features of %d images; they are stored in %s", len(paths), file)
    counts = [VIDEO_FRAMES if path.suffix.lower() in VIDEO_SUFFIXES else 1 for path in paths]
    rows = np.concatenate([encode(some) for some in chunks(decoded(paths))])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    features = np.add.reduceat(rows.astype(np.float32), starts, axis=0)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, features=features)
    return features


def decoded(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield the pixels `[H, W, 3]` of images, and of 8 frames of each video.

    Raises:
      UserError: an image or video cannot be read.
    """
    for path in paths:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                yield from take_frames(path, frames=VIDEO_FRAMES)
            else:
                yield decode(path)
        except UserError as error:
            raise UserError(f"{path}: {error}.") from None


def chunks(images: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield lists of at most 32 images."""
    while chunk := list(itertools.islice(images, _AT_ONCE)):
        yield chunk
