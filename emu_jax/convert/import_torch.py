"""Import PyTorch checkpoints of an Emu as a model directory: open, describe, match, write.

The import streams: no more than a layer or two is in memory at a time.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from emu_jax.checkpoints.model_directory import PARAMS, finish_model, new_model, save_unused
from emu_jax.checkpoints.streaming import write_params
from emu_jax.convert.adapt import crop_vocabulary
from emu_jax.convert.describe import declared_vocabulary, describe
from emu_jax.convert.match import Match, match
from emu_jax.convert.sources import find_tokenizer, open_sources
from emu_jax.data.tokenizer import fitting_tokenizer, piece_count
from emu_jax.errors import UserError
from emu_jax.io.tensors import Progress, no_progress
from emu_jax.models.config import EmuConfig


@dataclasses.dataclass(frozen=True)
class PreparedImport:
    """An import whose names, shapes and sizes have been checked. `write` reads the tensors."""

    config: EmuConfig
    match: Match
    tokenizer: Path | None

    @property
    def nbytes(self) -> int:
        """Size of the parameters that `write` writes."""
        return sum(parameter.nbytes for parameter in self.match.parameters.values())

    def write(self, destination: Path, *, progress: Progress = no_progress) -> None:
        """Write the model directory, complete or not at all.

        Args:
          destination: the directory. It may contain a visual_decoder, but not a model.
          progress: called after each write.

        Raises:
          UserError: a value is NaN or infinite, or the destination cannot be written or contains a model.
        """
        with new_model(destination) as temporary:
            try:
                write_params(epath.Path(temporary) / PARAMS, self.match.parameters, progress=progress)
            except UserError:
                raise
            except (OSError, ValueError) as error:
                raise UserError(f"Cannot write {destination}: {str(error).splitlines()[0]}") from error
            save_unused(temporary, self.match.unused.values())
            finish_model(temporary, self.config, tokenizer=self.tokenizer)


def prepare_import(
    sources: Sequence[Path],
    *,
    config: str | None = None,
    tokenizer: Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> PreparedImport:
    """Open the sources and check everything that their headers contain.

    Args:
      sources: files or folders: one Emu, or a LLaMA and/or an EVA-CLIP to start a new Emu from.
      config: a config.json (ours or the release's) or the name of a preset. Default: see `describe`.
      tokenizer: a SentencePiece model. Default: tokenizer.model in or next to one of the sources.
      image_size: in pixels; learned positions are interpolated to it. Default: as in the config.
      seed: of the parameters that no source has.

    Raises:
      UserError: a source is not a checkpoint or does not fit, or its sizes are unknown.
    """
    opened = open_sources(sources)
    if tokenizer is None:
        tokenizer = find_tokenizer(sources)
    pieces = None if tokenizer is None else piece_count(tokenizer)
    declared = declared_vocabulary(sources, option=config)
    tensors, cropped = crop_vocabulary(opened.tensors, pieces=pieces, declared=declared)
    emu_config = describe(sources, tensors, option=config, image_size=image_size)
    matched = match(tensors, emu_config, resize=image_size is not None, seed=seed)
    matched = dataclasses.replace(matched, notes=(*opened.notes, *cropped, *matched.notes))
    compute, param = _dtypes(matched)
    emu_config = dataclasses.replace(emu_config, dtype=compute, param_dtype=param)
    if tokenizer is not None:
        fitting_tokenizer(tokenizer, vocab_size=emu_config.decoder.vocab_size)  # raises its error before any work
    return PreparedImport(emu_config, matched, tokenizer)


def _dtypes(matched: Match) -> tuple[str, str]:
    """Return the types for computation and parameters: half-precision files compute in bfloat16, others in float32."""
    dtypes = {np.dtype(parameter.dtype).name for parameter in matched.parameters.values()}
    if dtypes <= {"float16", "bfloat16"}:
        return "bfloat16", dtypes.pop() if len(dtypes) == 1 else "bfloat16"
    return "float32", "float32"
