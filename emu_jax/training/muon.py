"""Muon (Jordan et al. 2024) for the matrices of transformer blocks: momentum, made orthogonal.

Every direction of a matrix moves alike, also those in which the gradient is small. In a small Emu trained from scratch
the shape of things is such a direction: Adam leaves it at chance for a thousand steps, Muon for two hundred.
"""

from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from emu_jax.training.partition import path_name

_ADAM_RMS = 0.2  # of an entry of Adam's update, so that the rates of both mean the same (Liu et al. 2025)


def muon(*, moment_dtype: str | None) -> optax.GradientTransformation:
    """Directions of ascent for kernels of dense layers and convolutions; entries have a root mean square of 0.2.

    A kernel may be of several axes (heads apart) and stacked over layers: each layer's matrix is one by itself.
    """
    return optax.chain(
        scale_by_muon(mu_dtype=moment_dtype, weight_dimension_numbers=_matrices),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_to_adam_rms, updates)),
    )


def _matrices(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(_axes, params)


def _axes(path: Any, kernel: jax.Array) -> MuonDimensionNumbers:
    """Which axes of the kernel at `path` are read and which written; what is left in front counts its layers."""
    name, last = path_name(path), kernel.ndim - 1
    if name.endswith("attention/out/kernel"):  # heads, features of a head -> width
        return MuonDimensionNumbers((last - 2, last - 1), last)
    if "conv" in name.split("/")[-2]:  # height, width, channels -> channels
        return MuonDimensionNumbers(tuple(range(last)), last)
    if name.endswith("qkv/kernel"):  # width -> heads, features of a head; three times
        return MuonDimensionNumbers(last - 3, (last - 1, last))
    if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
        return MuonDimensionNumbers(last - 2, (last - 1, last))
    return MuonDimensionNumbers(last - 1, last)


def _to_adam_rms(path: Any, update: jax.Array) -> jax.Array:
    """An orthogonal [m, n] has a root mean square of 1 / sqrt(max(m, n))."""
    axes = _axes(path, update)
    read, written = (int(np.prod([update.shape[i] for i in np.atleast_1d(sides)])) for sides in axes)
    return update * (_ADAM_RMS * max(read, written) ** 0.5)
