"""`emu_jax.load`: read a model from disk, ready to use."""

import os
from typing import Any

from jax.sharding import Mesh

from emu_jax.convert.load import Quantization, load_model
from emu_jax.data.tokenizer import fitting_tokenizer
from emu_jax.errors import UserError
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.io.paths import local_path


def load(
    directory: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    quantization: Quantization | str | None = None,
) -> EmuPipeline:
    """Read a model.

    Args:
      directory: a model directory, the workdir of a training run (its newest checkpoint is used), or a folder in the
        release's layout: safetensors, config.json and, unless `tokenizer` is set, tokenizer.model.
      tokenizer: path of a SentencePiece model. Default: DIR/tokenizer.model.
      dtype: of the parameters and the computation, such as "bfloat16". Default: as saved.
      mesh: devices over which the parameters are sharded and on which all programs run. Default: one device. On several
        processes, each makes the same calls and gets the same results.
      quantization: "int8" stores the kernels in eight bits. Default: in the dtype of the computation.

    Raises:
      UserError: there is no model or no tokenizer, or they do not match.
    """
    if isinstance(quantization, str):
        quantization = Quantization.named(quantization)
    parts = load_model(directory, mesh=mesh, dtype=dtype, quantization=quantization)
    path = parts.tokenizer if tokenizer is None else local_path(tokenizer)
    if path is None:
        raise UserError(f"{directory} has no tokenizer.model; set `tokenizer` to the path of a SentencePiece model.")
    return EmuPipeline(
        parts.config,
        parts.params,
        tokenizer=fitting_tokenizer(path, vocab_size=parts.config.decoder.vocab_size),
        mesh=mesh,
        visual_decoder=parts.visual_decoder,
    )
