"""Parameters as the serving programs read them: the decoder's layers one by one instead of stacked."""

import contextlib
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jax.sharding import Mesh

from emu_jax.models.emu import Emu


@flax.struct.dataclass
class Weights:
    """One parameter set. A loop over separate layers updates their caches in place; a scan over a stack copies them.

    params: all parameters except the decoder's blocks.
    blocks: those of each decoder layer.
    """

    params: Any
    blocks: tuple[Any, ...]


def run_layers(model: Emu, weights: Weights, x: jax.Array, caches: Sequence[Any], **inputs: Any) -> tuple[Any, Any]:
    """Return the decoder's states and caches (see `models.llama.LlamaDecoder.run_layers`)."""
    return model.apply({"params": weights.params}, x, caches, weights.blocks, **inputs, method=Emu.run_layers)


def split_layers(params: Any, *, num_layers: int, mesh: Mesh | None = None) -> Weights:
    """Return `params` with the decoder's stacked blocks as one tree per layer; needs memory for both at once."""
    decoder = dict(params["decoder"])
    stacked = decoder.pop("blocks")
    split = jax.jit(lambda tree: tuple(jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(num_layers)))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        blocks = split(stacked)
    return Weights(params={**params, "decoder": decoder}, blocks=blocks)
