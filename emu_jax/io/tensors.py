"""Named tensors that are read on demand: the form in which weight files are read, converted, and written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emu_jax.errors import UserError

Progress = Callable[[int], None]  # called with the number of bytes just written


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor whose values are not in memory yet.

    Attributes:
      name: key in the state dict.
      shape, dtype: of the array that `read` returns.
      read: returns a new array on every call.
      file: the file that stores it; None if it is computed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read_finite(self) -> np.ndarray:
        """Return the values.

        Raises:
          UserError: a value is NaN or infinite.
        """
        array = self.read()
        if not np.issubdtype(array.dtype, np.integer) and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise UserError(f"{self.name} in {self.file} has {count} NaN or infinite values. The file is damaged.")
        return array

    def astype(self, dtype: np.dtype) -> Tensor:
        """Return the same tensor, cast to `dtype` when it is read."""
        return dataclasses.replace(self, dtype=dtype, read=lambda: self.read().astype(dtype, copy=False))


def no_progress(written: int) -> None:
    """Ignore the number of bytes written."""


def tensor_of(name: str, array: np.ndarray) -> Tensor:
    """Return a Tensor of an array in memory."""
    return Tensor(name, tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))
