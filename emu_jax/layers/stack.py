"""A stack of equal layers, scanned so that compile time does not grow with depth: nn.scan and nn.remat live here."""

import enum
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from emu_jax.layers.saved import CONTEXT
from emu_jax.sharding import axes


class Remat(enum.Enum):
    """What the backward pass finds of each layer without computing it again."""

    NONE = "none"  # everything
    DOTS = "dots"  # results of matrix products without batch dimensions, and of attention
    FULL = "full"  # the layer's input, and what is named beside it


def _policy(remat: Remat, saved_activations: tuple[str, ...]) -> Callable[..., bool]:
    policies = jax.checkpoint_policies
    if remat is Remat.FULL:
        return policies.save_only_these_names(*saved_activations)
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(CONTEXT)
    )


def remat_layer(layer: type[nn.Module], *, remat: Remat) -> type[nn.Module]:
    """`layer` under rematerialisation, for networks whose layers differ and so are not scanned."""
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
    """`length` copies of `layer(**fields)` under one scan; parameters gain a leading axis LAYERS.

    A layer is called as `layer(x, per_layer, shared)` and returns `(x, per_layer)`. `per_layer` is sliced along its
    leading axis when `cached` and handed to every layer as it is (None) when not; `shared` goes to every layer whole.
    `saved_activations`: names of `layers/saved.py` saved under Remat.FULL in addition to each layer's input.
    """
    if remat is not Remat.NONE:
        layer = nn.remat(layer, prevent_cse=False, policy=_policy(remat, saved_activations))
    per_layer = 0 if cached else nn.broadcast
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(per_layer, nn.broadcast),
        out_axes=0,
        length=length,
        metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )
    return scanned(name=name, **fields)
