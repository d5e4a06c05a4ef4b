"""A stack of equal layers, scanned so that compile time does not grow with depth: nn.scan and nn.remat live here."""

import enum
from typing import Any

import flax.linen as nn
import jax

from emu_jax.sharding import axes


class Remat(enum.Enum):
    """What the backward pass keeps of each layer."""

    NONE = "none"  # everything
    DOTS = "dots"  # results of matrix products without batch dimensions
    FULL = "full"  # only the layer's input


_POLICIES = {
    Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}


def remat_layer(layer: type[nn.Module], *, remat: Remat) -> type[nn.Module]:
    """`layer` under rematerialisation, for networks whose layers differ and so are not scanned."""
    return layer if remat is Remat.NONE else nn.remat(layer, policy=_POLICIES[remat])


def stack(
    layer: type[nn.Module],
    *,
    length: int,
    remat: Remat = Remat.NONE,
    cached: bool = False,
    name: str = "layers",
    **fields: Any,
) -> nn.Module:
    """`length` copies of `layer(**fields)` under one scan; parameters gain a leading axis LAYERS.

    A layer is called as `layer(x, per_layer, shared)` and returns `(x, per_layer)`. `per_layer` is sliced along its
    leading axis when `cached` and handed to every layer as it is (None) when not; `shared` goes to every layer whole.
    """
    if remat is not Remat.NONE:
        layer = nn.remat(layer, prevent_cse=False, policy=_POLICIES[remat])
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
