"""`emu_jax.load`: read a model from disk, ready to use."""

import os
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from emu_jax.checkpoints.adapter import adapt, check_base, read_adapter
from emu_jax.checkpoints.model_directory import ModelParts
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
    adapter: str | os.PathLike | None = None,
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
      adapter: an adapter directory that `export-adapter` wrote, trained on this model. Default: none.

    Raises:
      UserError: there is no model or no tokenizer, they do not match, or the adapter was trained on another model.
    """
    adapters = {} if adapter is None else {"": adapter}
    options: dict[str, Any] = {"tokenizer": tokenizer, "dtype": dtype, "mesh": mesh, "quantization": quantization}
    return next(reversed(load_adapters(directory, adapters, **options).values()))


def load_adapters(
    directory: str | os.PathLike,
    adapters: Mapping[str, str | os.PathLike],
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    quantization: Quantization | str | None = None,
) -> dict[str | None, EmuPipeline]:
    """Read a base model once, and several adapters.

    Args:
      directory: the base model.
      adapters: name -> adapter directory.
      tokenizer, dtype, mesh, quantization: see `load`.

    Returns:
      A pipeline by the name of its adapter, and the base itself by None. They share the arrays of the base.

    Raises:
      UserError: as `load`.
    """
    if isinstance(quantization, str):
        quantization = Quantization.named(quantization)
    opened = {name: read_adapter(local_path(path)) for name, path in adapters.items()}
    for name, one in opened.items():
        check_base(one, local_path(directory), source=adapters[name])
    parts = load_model(directory, mesh=mesh, dtype=dtype, quantization=quantization)
    tuned = {name: adapt(parts, one, mesh=mesh) for name, one in opened.items()}
    models = [(None, parts), *tuned.items()]
    return {name: _pipeline(one, directory, tokenizer=tokenizer, mesh=mesh) for name, one in models}


def _pipeline(
    parts: ModelParts, directory: str | os.PathLike, *, tokenizer: str | os.PathLike | None, mesh: Mesh | None
) -> EmuPipeline:
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
