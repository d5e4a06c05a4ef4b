"""A CLIP from a folder in the layout of transformers: embeddings of images and texts, of unit length."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from emu_jax.convert.clip_table import clip_table
from emu_jax.convert.table import check_tensors, read_params
from emu_jax.diffusion.clip_vision import ClipVision, ClipVisionConfig
from emu_jax.diffusion.safety import Preprocessing
from emu_jax.errors import UserError
from emu_jax.evaluation.image_metrics.clip_text import ClipText, ClipTextConfig, clip_text_table, end_positions
from emu_jax.io.files import read_json
from emu_jax.io.tensor_files import open_tensors

_ROWS = 32
_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")
_BUFFERS = ("position_ids", "logit_scale")


class Clip:
    """`Clip(folder)` reads config.json, preprocessor_config.json, tokenizer.json and the weights.

    Attributes:
      name: of the folder, for reports.
      fingerprint: identifies the weights' file.

    Raises:
      UserError: a file is missing, or the weights do not fit the config.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} is no CLIP in the layout of transformers: {', '.join(missing)} is missing.")
        config = read_json(folder / "config.json")
        vision, text = ClipVisionConfig.from_transformers(config), ClipTextConfig.from_transformers(config)
        tensors = {n: t for n, t in open_tensors(folder).items() if not n.endswith(_BUFFERS)}
        is_text = lambda name: name.startswith(("text_model.", "text_projection."))
        towers = {
            "vision": {n.removeprefix("vision_model."): t for n, t in tensors.items() if not is_text(n)},
            "text": {n: t for n, t in tensors.items() if is_text(n)},
        }
        tables = {"vision": clip_table(vision), "text": clip_text_table(text)}
        for tower, table in tables.items():
            check_tensors(table, towers[tower], source=f"{folder} ({tower})")
        params = {tower: read_params(table, towers[tower]) for tower, table in tables.items()}
        self._params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)
        self._vision, self._text, self._length = ClipVision(vision), ClipText(text), text.max_position_embeddings
        self._preprocess = Preprocessing.from_transformers(read_json(folder / "preprocessor_config.json"))
        self._tokenizer = _tokenizer(folder / "tokenizer.json", self._length)
        self._end = _end_id(self._tokenizer)
        self.name = folder.name
        self.fingerprint = _fingerprint(params)

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return embeddings `[n, D]` of uint8 images `[H, W, 3]`."""
        pixels = np.stack([self._preprocess(PIL.Image.fromarray(image)) for image in images])
        return _in_rows(lambda some: self._embed_images(self._params["vision"], some), pixels)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return embeddings `[n, D]` of texts, truncated to the length that the tower reads."""
        ids = np.zeros((len(texts), self._length), np.int32) + self._end
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            ids[row, : len(encoding.ids)] = encoding.ids
        return _in_rows(lambda some: self._embed_texts(self._params["text"], some), ids)

    @functools.cached_property
    def _embed_images(self) -> Any:
        return jax.jit(lambda params, pixels: _unit(self._vision.apply({"params": params}, pixels)))

    @functools.cached_property
    def _embed_texts(self) -> Any:
        def embed(params: Any, ids: jax.Array) -> jax.Array:
            return _unit(self._text.apply({"params": params}, ids, end_positions(ids, self._end)))

        return jax.jit(embed)


def _in_rows(function: Any, rows: np.ndarray) -> np.ndarray:
    """Apply a program to `_ROWS` rows at a time, the last ones filled up."""
    found = []
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        filled = np.concatenate([some, np.repeat(some[-1:], _ROWS - len(some), axis=0)])
        found.append(np.asarray(function(filled))[: len(some)])
    return np.concatenate(found)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _tokenizer(path: Path, length: int) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("CLIP's texts require the tokenizers package: pip install 'emu-jax[eval]'.") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{path} is not a tokenizer ({error}).") from None
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    return tokenizer


def _end_id(tokenizer: Any) -> int:
    return int(tokenizer.encode("a").ids[-1])


def _fingerprint(params: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
