"""A stack of equal layers under one scan, so that compile time does not grow with depth.

`nn.scan` and `nn.remat` are used only here.
"""

import enum
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from emu_jax.hardware import on_cpu
from emu_jax.layers.saved import CONTEXT
from emu_jax.sharding import axes

MAX_UNROLLED = 8  # layers; compile time grows with each


class Remat(enum.Enum):
    """Activations of each layer that are saved for the backward pass; the others are recomputed."""

    NONE = "none"  # all
    DOTS = "dots"  # results of matmuls without batch dimensions, and of attention
    FULL = "full"  # the layer's input and the named `saved_activations`


def _policy(remat: Remat, saved_activations: tuple[str, ...]) -> Callable[..., bool]:
    policies = jax.checkpoint_policies
    if remat is Remat.FULL:
        return policies.save_only_these_names(*saved_activations)
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(CONTEXT)
    )


def remat_layer(layer: type[nn.Module], *, remat: Remat) -> type[nn.Module]:
    """Return `layer` with rematerialization, for networks of unequal layers, which are not scanned."""
    return layer if remat is Remat.NONE else nn.remat(layer, policy=_policy(remat, ()))


def stack(
    layer: type[nn.Module],
    *,
    length: int,
    remat: Remat = Remat.NONE,
    saved_activations: tuple[str, ...] = (),
    cached: bool = False,
    name: str = "layers",
    **fields: Any,
) -> nn.Module:
    """Return `length` copies of `layer(**fields)` under one scan. Parameters have an additional leading axis, LAYERS.

    Programs for CPUs run the layers one after the other without a loop where this is faster.

    A layer is called as `layer(x, per_layer, broadcast)` and returns `(x, per_layer)`. If `cached`, each layer gets
    its slice of `per_layer` along the leading axis; otherwise `per_layer` is None. Every layer gets the same
    `broadcast`.

    Args:
      layer: a module class.
      length: number of layers.
      remat: activations that are saved for the backward pass.
      saved_activations: names of `layers/saved.py` that are saved under Remat.FULL.
      cached: scan over `per_layer`, such as a KV cache.
      name: of the stack in the parameter tree.
      **fields: of each layer.
    """
    if remat is not Remat.NONE:
        layer = nn.remat(layer, prevent_cse=False, policy=_policy(remat, saved_activations))
    per_layer = 0 if cached else nn.broadcast
    # A loop on a CPU copies the saved activations of each layer into one array and out of it. The compiler would undo
    # the rematerialization of an unrolled loop.
    unrolled = on_cpu() and not cached and remat is Remat.NONE and length <= MAX_UNROLLED
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(per_layer, nn.broadcast),
        out_axes=0,
        length=length,
        unroll=length if unrolled else 1,
        metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )
    return scanned(name=name, **fields)
