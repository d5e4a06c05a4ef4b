"""Merge low-rank adapters into the kernels that they adapt, and take them out again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

Tree = dict[str, Any]
_DOWN, _UP, _KERNEL = "lora_a", "lora_b", "kernel"


def add_product(kernel: Any, down: Any, up: Any, *, scale: float) -> Any:
    """Return `kernel + scale * down @ up`, computed in float32, in the dtype of the kernel.

    Args:
      kernel: `[*in, *out]`, or `[layers, *in, *out]` for stacked layers.
      down: `[*in, rank]`, stacked like the kernel.
      up: `[rank, *out]`, stacked like the kernel.
      scale: `alpha / rank`; negative to subtract.
    """
    layers = (kernel.shape[0],) if down.ndim + up.ndim - 2 > kernel.ndim else ()
    rank = down.shape[-1]
    product = down.reshape(*layers, -1, rank).astype(np.float32) @ up.reshape(*layers, rank, -1).astype(np.float32)
    return (kernel.astype(np.float32) + scale * product.reshape(kernel.shape)).astype(kernel.dtype)


def split_adapters(params: Tree) -> tuple[Tree, Tree]:
    """Return the parameters without adapters, and the adapters."""
    flat = traverse_util.flatten_dict(params)
    adapters = {path: value for path, value in flat.items() if path[-1] in (_DOWN, _UP)}
    rest = {path: value for path, value in flat.items() if path not in adapters}
    return traverse_util.unflatten_dict(rest), traverse_util.unflatten_dict(adapters)


def merge_adapters(params: Tree, *, scale: float) -> Tree:
    """Return the parameters without adapters, whose kernels include them."""
    rest, adapters = split_adapters(params)
    return _add(rest, adapters, scale)


def unmerge_adapters(merged: Tree, adapters: Tree, *, scale: float) -> Tree:
    """Invert `merge_adapters`, up to the rounding of the kernels."""
    rest = traverse_util.flatten_dict(_add(merged, adapters, -scale))
    return traverse_util.unflatten_dict(rest | traverse_util.flatten_dict(adapters))


def _add(params: Tree, adapters: Tree, scale: float) -> Tree:
    flat: Mapping[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    pairs = traverse_util.flatten_dict(adapters)
    changed = {
        (*path[:-1], _KERNEL): add_product(flat[(*path[:-1], _KERNEL)], down, pairs[(*path[:-1], _UP)], scale=scale)
        for path, down in pairs.items()
        if path[-1] == _DOWN
    }
    return traverse_util.unflatten_dict({**flat, **changed})
