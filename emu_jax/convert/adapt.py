"""Adapt tensors to an Emu of other sizes: interpolated positions, added vocabulary rows, an untied language head."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from emu_jax.checkpoints.vocabulary import grow
from emu_jax.convert.emu_config import CHAT_TOKENS, SPECIAL_TOKENS
from emu_jax.convert.positions import resize_positions
from emu_jax.convert.sources import is_release, lora_rank
from emu_jax.io.tensors import Tensor
from emu_jax.models.config import EmuConfig

EMBEDDING, HEAD = "decoder.lm.model.embed_tokens.weight", "decoder.lm.lm_head.weight"
POSITIONS = "visual.pos_embed"


def untie_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Use the token embedding as the language head, if a LLaMA has one table for both."""
    if EMBEDDING in tensors and HEAD not in tensors:
        return {**tensors, HEAD: tensors[EMBEDDING]}
    return dict(tensors)


def adapt_positions(tensors: Mapping[str, Tensor], config: EmuConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Interpolate the learned positions to the image size of `config`. Return the tensors and a note on the change."""
    new, old = config.vision.num_tokens, tensors.get(POSITIONS)
    if old is None or not _is_square_grid(old.shape) or old.shape[1] == new:
        return dict(tensors), []
    resized = _changed(old, (1, new, old.shape[2]), lambda array: resize_positions(array, new))
    return {**tensors, POSITIONS: resized}, [f"positions interpolated from {old.shape[1] - 1} to {new - 1} patches"]


def add_vocabulary(tensors: Mapping[str, Tensor], config: EmuConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Add rows for Emu's special tokens to the tables of a LLaMA. Return the tensors and notes on the changes."""
    changed, notes = dict(tensors), []
    size = config.decoder.vocab_size
    for name in (EMBEDDING, HEAD):
        table = tensors.get(name)
        if table is not None and len(table.shape) == 2 and table.shape[0] < size:
            known = table.shape[0]
            grown = lambda array, known=known: grow(array, axis=0, known=known, vocab_size=size, rows=size)
            changed[name] = _changed(table, (size, *table.shape[1:]), grown)
            notes.append(f"{name}: {size - known} rows added, each the mean of the others")
    return changed, notes


def crop_vocabulary(
    tensors: Mapping[str, Tensor], *, pieces: int | None, declared: int | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Remove rows of the vocabulary tables that no token has: tokens that others added to a LLaMA, or padding.

    Args:
      tensors: of all sources.
      pieces: number of pieces of the tokenizer. None: it is unknown.
      declared: vocabulary of a complete Emu in its config. None: unknown; the tokenizer and the adapters decide.

    Returns:
      The tensors and a note. A LLaMA keeps the pieces; an Emu keeps its special tokens too.
    """
    tables = {name: tensors[name] for name in (EMBEDDING, HEAD) if name in tensors}
    rows = max((tensor.shape[0] for tensor in tables.values()), default=0)
    if is_release(tensors):
        size, reason = _emu_vocabulary(tensors, rows, pieces, declared), "the vocabulary of this Emu"
    elif pieces is None:
        note = f"all {rows} rows of the vocabulary are used, as there is no tokenizer to compare with"
        return dict(tensors), ((note,) if rows else ())
    else:
        size, reason = pieces, "the pieces of the tokenizer"
    if rows <= size:
        return dict(tensors), ()
    cropped = {
        name: _changed(tensor, (min(size, tensor.shape[0]), *tensor.shape[1:]), lambda array: array[:size])
        for name, tensor in tables.items()
    }
    return {**tensors, **cropped}, (f"vocabulary cropped from {rows} to {size} rows, {reason}",)


def _emu_vocabulary(tensors: Mapping[str, Tensor], rows: int, pieces: int | None, declared: int | None) -> int:
    if declared is not None:
        return declared
    if pieces is None or rows <= pieces + SPECIAL_TOKENS + CHAT_TOKENS:
        return rows
    return pieces + SPECIAL_TOKENS + (CHAT_TOKENS if lora_rank(tensors) is not None else 0)


def _is_square_grid(shape: tuple[int, ...]) -> bool:
    """Return True for positions `[1, 1 + n * n, D]`."""
    return len(shape) == 3 and shape[1] > 1 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1


def _changed(tensor: Tensor, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return dataclasses.replace(tensor, shape=shape, read=lambda: change(tensor.read_finite()))
