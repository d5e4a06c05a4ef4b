"""Match the tensors of PyTorch checkpoints with the parameters of an Emu.

All names and shapes are checked before the first tensor is read. Then parameters are made one layer at a time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from emu_jax.checkpoints.shapes import Shape, mismatches
from emu_jax.checkpoints.streaming import LazyParameter
from emu_jax.convert.adapt import adapt_positions, add_vocabulary, untie_head
from emu_jax.convert.emu_table import CLIP_WIDTH, T5_VOCABULARY, emu_table, unused_shapes
from emu_jax.convert.initialize import initial_parameter
from emu_jax.convert.sources import is_release
from emu_jax.convert.table import Row, common_dtype, lazy_parameter
from emu_jax.errors import UserError
from emu_jax.io.tensors import Tensor
from emu_jax.models.config import EmuConfig


@dataclasses.dataclass(frozen=True)
class Match:
    """The parameters of an Emu and the tensors that they are made from.

    Attributes:
      parameters: every parameter of the Emu by its path.
      unused: tensors of the release that Emu does not read.
      initialized: paths of the parameters that are in no source and are initialized.
      notes: one line for each adaptation.
    """

    parameters: dict[str, LazyParameter]
    unused: dict[str, Tensor]
    initialized: tuple[str, ...]
    notes: tuple[str, ...]

    def read_params(self, dtype: Any = None) -> dict[str, Any]:
        """Return the parameter tree as NumPy arrays, cast to `dtype` unless that is None."""
        arrays = {}
        for path, parameter in self.parameters.items():
            array = parameter.materialize()
            arrays[path] = array if dtype is None else array.astype(dtype)
        return traverse_util.unflatten_dict(arrays, sep="/")


def match(tensors: Mapping[str, Tensor], config: EmuConfig, *, resize: bool = False, seed: int = 0) -> Match:
    """Match the tensors with the conversion table.

    A LLaMA and an EVA-CLIP may each be absent. They get Emu's special tokens and image size.

    Args:
      tensors: from `open_sources`.
      config: of the Emu.
      resize: interpolate the positions of a complete Emu too.
      seed: of the initialized parameters.

    Raises:
      UserError: a tensor is unknown, missing, or of a different shape. The message lists all of them.
    """
    notes: list[str] = []
    complete = is_release(tensors)
    if resize or not complete:
        tensors, notes = adapt_positions(tensors, config)
    if not complete:
        tensors, added = add_vocabulary(untie_head(tensors), config)
        notes += added
    table = emu_table(config)
    present = {_part(row) for row in table if any(name in tensors for name in row.names)}
    covered = [row for row in table if complete or _part(row) in present]
    unused = {name: tensors[name] for name in unused_shapes(config) if name in tensors}
    _check(covered, unused, tensors, config)

    dtypes = {tensors[name].dtype for row in covered for name in row.names} or {np.dtype(np.float32)}
    initialized = tuple(row.path for row in table if row not in covered)
    parameters = {
        row.path: initial_parameter(config, row, dtype=common_dtype(dtypes), seed=seed)
        if row.path in initialized
        else lazy_parameter(row, tensors)
        for row in table
    }
    return Match(parameters, unused, initialized, tuple(notes))


def _check(covered: list[Row], unused: Mapping[str, Tensor], tensors: Mapping[str, Tensor], config: EmuConfig) -> None:
    expected: dict[str, Shape] = {name: row.torch_shape for row in covered for name in row.names}
    expected |= {name: _unused_shape(unused_shapes(config)[name], tensor.shape) for name, tensor in unused.items()}
    problems = mismatches(expected, {name: tensor.shape for name, tensor in tensors.items()})
    if problems:
        raise UserError(f"The checkpoint does not fit the model: {problems}. Nothing was written.")


def _unused_shape(expected: Shape, found: Shape) -> Shape:
    """Accept any number of rows in CLIP's projection and T5's embedding, on which Emu does not depend."""
    return (*found[:1], *expected[1:]) if expected[0] in (CLIP_WIDTH, T5_VOCABULARY) else expected


def _part(row: Row) -> str:
    """Return the part of an Emu that is present or absent as a unit: the vision encoder, LLaMA with its head, ..."""
    if "lora_" in row.path:
        return "lora"
    top = row.path.split("/")[0]
    return "decoder" if top == "lm_head" else top
