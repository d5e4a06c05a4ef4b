"""Initialize the parameters that no source has, as `Emu.init` does, one layer at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emu_jax.checkpoints.streaming import LazyParameter
from emu_jax.convert.table import Row
from emu_jax.models.config import EmuConfig
from emu_jax.models.emu import Emu
from emu_jax.sharding.specs import unbox


def initial_parameter(config: EmuConfig, row: Row, *, dtype: np.dtype, seed: int) -> LazyParameter:
    """Return the initial value of one parameter. No more than one layer is in memory."""
    init, paths = _traced_init(config)
    index = paths.index(row.path)
    draw = jax.jit(lambda key: jaxpr_as_fun(init)(key)[index])  # the compiler drops the other parameters

    def layer(i: int) -> np.ndarray:
        drawn = np.asarray(draw(jax.random.fold_in(jax.random.key(seed), i)))
        return (drawn[0] if row.layers is not None else drawn).astype(dtype)

    return LazyParameter(row.stacked_shape, dtype, row.layers is not None, layer)


@functools.lru_cache(maxsize=1)
def _traced_init(config: EmuConfig) -> tuple[ClosedJaxpr, tuple[str, ...]]:
    """Trace `Emu.init` with one layer in each stack. Return it and the paths of its parameters, in its order."""
    shallow = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, num_layers=1),
        causal_former=dataclasses.replace(config.causal_former, num_layers=1),
        decoder=dataclasses.replace(config.decoder, num_layers=1),
    )
    model = Emu(shallow, image_token_id=0)
    tokens = jnp.zeros((1, config.causal_former.num_image_tokens), jnp.int32)
    images = jnp.zeros((1, 1, config.vision.image_size, config.vision.image_size, 3), jnp.float32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return traverse_util.flatten_dict(unbox(model.init(key, tokens, images)["params"]), sep="/")

    traced, shapes = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0))
    return traced, tuple(sorted(shapes))
