"""Conversion tables: one row for each parameter, read in both directions.

A PyTorch tensor becomes our parameter in three steps: pad its vocabulary axis with zeros, permute its axes, reshape it.
The other direction inverts the steps, so no bit is lost. `{layer}` in a name stands for the layers that we stack.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from emu_jax.checkpoints.shapes import mismatches
from emu_jax.checkpoints.streaming import LazyParameter
from emu_jax.errors import UserError
from emu_jax.io.tensors import Tensor

VECTOR, MATRIX, KERNEL = (
    (0,),
    (1, 0),
    (2, 3, 1, 0),
)  # permutations: PyTorch stores [out, in] and [out, in, height, width]


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter.

    Attributes:
      torch: name in the state dict; it contains `{layer}` if `layers` is given.
      torch_shape: shape of one layer's tensor.
      path: our path, joined by "/".
      shape: shape of one layer of our parameter.
      permutation: of the axes of the tensor, before the reshape to `shape`.
      layers: number of layers that are stacked along our leading axis. None: not stacked.
      padded_rows: the first axis of the tensor is padded to this size with zeros (vocabulary tables).
    """

    torch: str
    torch_shape: tuple[int, ...]
    path: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    layers: int | None = None
    padded_rows: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the state dict, layer by layer."""
        if self.layers is None:
            return (self.torch,)
        return tuple(self.torch.format(layer=layer) for layer in range(self.layers))

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape of our parameter with all layers."""
        return self.shape if self.layers is None else (self.layers, *self.shape)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Return one layer of our parameter (a view if possible) from one tensor of `torch_shape`."""
        if self.padded_rows is not None:
            tensor = np.pad(tensor, [(0, self.padded_rows - len(tensor))] + [(0, 0)] * (tensor.ndim - 1))
        return tensor.transpose(self.permutation).reshape(self.shape)

    def to_torch(self, layer: np.ndarray) -> np.ndarray:
        """Return the tensor of `torch_shape` from one layer of our parameter."""
        padded = (self.padded_rows or self.torch_shape[0], *self.torch_shape[1:])
        permuted = layer.reshape(tuple(padded[axis] for axis in self.permutation))
        return permuted.transpose(tuple(np.argsort(self.permutation)))[: self.torch_shape[0]]


Table = tuple[Row, ...]


def check_tensors(table: Iterable[Row], tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Raise UserError if a tensor is missing, unknown, or of a different shape. The message lists all of them."""
    expected = {name: row.torch_shape for row in table for name in row.names}
    problems = mismatches(expected, {name: tensor.shape for name, tensor in tensors.items()})
    if problems:
        raise UserError(f"The tensors of {source} do not fit its config: {problems}.")


def check_params(table: Iterable[Row], shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Raise UserError if a parameter is missing, unknown, or of a different shape. The message lists all of them."""
    problems = mismatches({row.path: row.stacked_shape for row in table}, shapes)
    if problems:
        raise UserError(f"The parameters of {source} do not fit its config: {problems}.")


def lazy_parameter(row: Row, tensors: Mapping[str, Tensor]) -> LazyParameter:
    """Return our parameter, converted layer by layer when it is read; NaN and infinite values raise UserError."""
    layers = [tensors[name] for name in row.names]
    dtype = common_dtype(tensor.dtype for tensor in layers)

    def layer(i: int) -> np.ndarray:
        return row.to_ours(layers[i].read_finite())

    return LazyParameter(row.stacked_shape, dtype, row.layers is not None, layer)


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the smallest type that represents all of these exactly: float32 for float16 and bfloat16."""
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))


def read_params(table: Iterable[Row], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the parameter tree as NumPy arrays."""
    params = {row.path: lazy_parameter(row, tensors).materialize() for row in table}
    return traverse_util.unflatten_dict(params, sep="/")


def to_tensors(row: Row, read: Callable[[], np.ndarray], dtype: np.dtype) -> list[Tensor]:
    """Return the tensors of one parameter, layer by layer.

    Args:
      read: returns our parameter. It is called once if the tensors are read in order, and the array is released after
        the last of them.
      dtype: of the array that `read` returns.
    """
    stack = _Stack(read, row.layers or 1)

    def tensor(i: int, name: str) -> Tensor:
        def values() -> np.ndarray:
            array = stack.next_array()
            return np.ascontiguousarray(row.to_torch(array if row.layers is None else array[i]))

        return Tensor(name, row.torch_shape, dtype, values)

    return [tensor(i, name) for i, name in enumerate(row.names)]


def tree_to_tensors(table: Iterable[Row], params: Any) -> list[Tensor]:
    """Return the tensors of a parameter tree in memory.

    Raises:
      UserError: a parameter is missing, has no row, or has a different shape.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    table = tuple(table)
    check_params(table, {path: tuple(array.shape) for path, array in flat.items()}, source="the model")
    tensors = []
    for row in table:
        array = flat[row.path]
        tensors += to_tensors(row, functools.partial(np.asarray, array), np.dtype(array.dtype))
    return tensors


class _Stack:
    """A parameter that is read for its first layer and released after its last layer."""

    def __init__(self, read: Callable[[], np.ndarray], layers: int) -> None:
        self._read, self._layers = read, layers
        self._left = layers
        self._array: np.ndarray | None = None

    def next_array(self) -> np.ndarray:
        array = self._read() if self._array is None else self._array
        self._left = (self._left - 1) % self._layers
        self._array = array if self._left else None
        return array
