"""AdamW out of optax pieces: a learning rate per part, a decay mask by path, moments in a chosen dtype, Muon by path.

Clipping is not here: the step needs the gradient's norm anyway, to find non-finite values, and clips with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emu_jax.errors import UserError
from emu_jax.training.config import OptimizerConfig, Schedule
from emu_jax.training.muon import muon
from emu_jax.training.partition import matcher, merge, path_name, split


def make_schedule(config: OptimizerConfig, *, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Share of the peak learning rate as a function of the step (0 .. steps - 1)."""
    warmup = int(config.warmup_steps if config.warmup_steps >= 1 else round(config.warmup_steps * steps))
    if warmup >= steps and warmup > 0:
        raise UserError(f"optimizer.warmup_steps is {warmup}, but the run has only {steps} steps.")
    after: optax.Schedule
    match config.schedule:
        case Schedule.COSINE:
            after = optax.cosine_decay_schedule(1.0, max(steps - warmup, 1), alpha=config.final_fraction)
        case Schedule.CONSTANT:
            after = optax.constant_schedule(1.0)
        case Schedule.WSD:
            cooldown = max(round(config.cooldown_fraction * steps), 1)
            after = optax.linear_schedule(1.0, config.final_fraction, cooldown, max(steps - warmup - cooldown, 0))
        case Schedule.PIECEWISE:
            # NumPy's: `compile` comes here without a device to put arrays on.
            starts, values = np.asarray(config.boundaries), np.asarray((1.0, *config.values), np.float32)
            after = lambda count: jnp.asarray(values)[jnp.sum(count + warmup >= starts)]
    if warmup == 0:
        return after
    # The first step already moves: (step + 1) / warmup, not a step of size 0.
    return lambda count: jnp.where(count < warmup, (count + 1) / warmup, after(count - warmup))


def peak_learning_rate(config: OptimizerConfig, path: str) -> float:
    """Peak learning rate of the parameter at `path`."""
    for pattern, peak in config.part_learning_rates:
        if matcher((pattern,))(path):
            return peak
    return config.learning_rate


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    """The update for the trainable parameters; its state holds nothing but their moments and two counts."""
    schedule = make_schedule(config, steps=steps)
    decays = matcher(config.no_decay)

    def add_decay(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, u, p: u if decays(path_name(path)) else u + config.weight_decay * p, updates, params
        )

    def to_peaks(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * -peak_learning_rate(config, path_name(path)), updates
        )

    return optax.chain(
        _direction(config),
        optax.stateless(add_decay),
        optax.stateless(to_peaks),
        optax.scale_by_schedule(schedule),
    )


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's, and Muon's for the parameters that it steps."""
    adam = _adam(config)
    if not config.muon:
        return adam
    orthogonal = muon(moment_dtype=config.moment_dtype)

    def init(params: Any) -> dict[str, Any]:
        matrices, rest = split(params, config.muon)
        return {"muon": orthogonal.init(matrices), "adam": adam.init(rest)}

    def update(updates: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        del params  # neither looks at them
        matrices, rest = split(updates, config.muon)
        matrices, of_muon = orthogonal.update(matrices, state["muon"])
        rest, of_adam = adam.update(rest, state["adam"])
        return merge(matrices, rest), {"muon": of_muon, "adam": of_adam}

    return optax.GradientTransformation(init, update)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """`optax.scale_by_adam` that also keeps its second moment in `moment_dtype`."""
    dtype = config.moment_dtype
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)
    if dtype is None:
        return adam

    def init(params: Any) -> optax.ScaleByAdamState:
        return _with_second_moment(adam.init(params), lambda x: x.astype(dtype))

    def update(updates: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(updates, _with_second_moment(state, lambda x: x.astype(jnp.float32)), params)
        return updates, _with_second_moment(state, lambda x: x.astype(dtype))

    return optax.GradientTransformation(init, update)


def _with_second_moment(state: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    return state._replace(nu=jax.tree.map(change, state.nu))
