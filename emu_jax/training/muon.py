"""Muon (Jordan et al. 2024) for kernels: momentum, orthogonalized.

All directions of a matrix get updates of similar size, including those with small gradients. In a small Emu trained
from scratch, the shape of objects is such a direction: its accuracy stays at chance for a thousand steps with Adam, and
for two hundred with Muon.
"""

from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from emu_jax.training.partition import path_name

_ADAM_RMS = 0.2  # typical RMS of Adam's updates, so that learning rates of both are comparable (Liu et al. 2025)


def muon(*, moment_dtype: str | None) -> optax.GradientTransformation:
    """Return Muon's update direction for kernels of dense layers and convolutions, with an RMS of 0.2.

    A kernel may have more than two axes (one per head) and may be stacked over layers; each layer is one matrix.
    """
    return optax.chain(
        scale_by_muon(mu_dtype=moment_dtype, weight_dimension_numbers=_matrices),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_to_adam_rms, updates)),
    )


def _matrices(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(_axes, params)


def _axes(path: Any, kernel: jax.Array) -> MuonDimensionNumbers:
    """Return the input and output axes of the kernel at `path`; the axes before them stack layers."""
    name, last = path_name(path), kernel.ndim - 1
    if name.endswith("attention/out/kernel"):  # heads, head dim -> width
        return MuonDimensionNumbers((last - 2, last - 1), last)
    if "conv" in name.split("/")[-2]:  # height, width, channels -> channels
        return MuonDimensionNumbers(tuple(range(last)), last)
    if name.endswith("qkv/kernel"):  # width -> heads, head dim; three matrices
        return MuonDimensionNumbers(last - 3, (last - 1, last))
    if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
        return MuonDimensionNumbers(last - 2, (last - 1, last))
    return MuonDimensionNumbers(last - 1, last)


def _to_adam_rms(path: Any, update: jax.Array) -> jax.Array:
    """Scale an orthogonal [m, n], whose RMS is 1 / sqrt(max(m, n))."""
    inputs, outputs = (
        int(np.prod([update.shape[axis] for axis in np.atleast_1d(axes)])) for axes in _axes(path, update)
    )
    return update * (_ADAM_RMS * max(inputs, outputs) ** 0.5)
