"""`emu_jax.load`: a model from disk, ready to use."""

import os
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from emu_jax.convert.load import load_model
from emu_jax.data.tokenizer import fitting_tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.pipeline import EmuPipeline


def load(
    directory: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> EmuPipeline:
    """Reads a model.

    Args:
      directory: a model directory of ours, a training run's workdir (its newest checkpoint is taken), or a folder in
        the release's layout: safetensors, config.json and, unless named by `tokenizer`, tokenizer.model.
      tokenizer: path of a SentencePiece model; default: DIR/tokenizer.model.
      dtype: computes in it and casts the parameters to it, "bfloat16" for one; default: as saved.
      mesh: parameters are laid out over it and all programs run on it; default: one device.

    Raises:
      UserError: there is no model or no tokenizer, or they do not fit each other.
    """
    parts = load_model(directory, mesh=mesh, dtype=dtype)
    path = parts.tokenizer if tokenizer is None else Path(tokenizer)
    if path is None:
        raise UserError(f"{directory} has no tokenizer.model; name a SentencePiece model with tokenizer=.")
    return EmuPipeline(
        parts.config,
        parts.params,
        tokenizer=fitting_tokenizer(path, vocab_size=parts.config.decoder.vocab_size),
        mesh=mesh,
        visual_decoder=parts.visual_decoder,
    )
