"""AdamW from optax parts: peak rates per part, weight decay by path, moments in a chosen dtype, Muon by path.

Clipping is not part of it: the train step computes the norm of the gradient anyway, to detect non-finite values, and
clips with it.
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
    """Return the learning rate, as a fraction of its peak, as a function of the step (0 to `steps` - 1).

    Raises:
      UserError: the warm-up takes all steps of the run.
    """
    warmup = round(config.warmup_fraction * steps) if config.warmup_steps is None else config.warmup_steps
    if warmup >= steps and warmup > 0:
        raise UserError(
            f"The warm-up takes {warmup} steps, but the run has only {steps}: lower optimizer.warmup_steps."
        )
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
            # NumPy arrays, because `compile` has no device to put JAX arrays on.
            starts, values = np.asarray(config.boundaries), np.asarray((1.0, *config.values), np.float32)
            after = lambda count: jnp.asarray(values)[jnp.sum(count + warmup >= starts)]
    if warmup == 0:
        return after
    # (step + 1) / warmup, so that the first step changes the parameters.
    return lambda count: jnp.where(count < warmup, (count + 1) / warmup, after(count - warmup))


def peak_learning_rate(config: OptimizerConfig, path: str) -> float:
    """Return the peak learning rate of the parameter at `path`."""
    for pattern, peak in config.part_learning_rates:
        if matcher((pattern,))(path):
            return peak
    return config.learning_rate


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    """Return the update of the trainable parameters; its state is their moments and two step counts."""
    schedule = make_schedule(config, steps=steps)
    is_exempt = matcher(config.no_decay)

    def add_decay(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, u, p: u if is_exempt(path_name(path)) else u + config.weight_decay * p, updates, params
        )

    def scale_by_peak(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * -peak_learning_rate(config, path_name(path)), updates
        )

    return optax.chain(
        _direction(config),
        optax.stateless(add_decay),
        optax.stateless(scale_by_peak),
        optax.scale_by_schedule(schedule),
    )


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adam's direction, with Muon's for the parameters that `config.muon` matches."""
    adam = _adam(config)
    if not config.muon:
        return adam
    orthogonal = muon(moment_dtype=config.moment_dtype)

    def init(params: Any) -> dict[str, Any]:
        matrices, rest = split(params, config.muon)
        return {"muon": orthogonal.init(matrices), "adam": adam.init(rest)}

    def update(updates: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        del params  # used by neither
        matrices, rest = split(updates, config.muon)
        matrices, muon_state = orthogonal.update(matrices, state["muon"])
        rest, adam_state = adam.update(rest, state["adam"])
        return merge(matrices, rest), {"muon": muon_state, "adam": adam_state}

    return optax.GradientTransformation(init, update)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return `optax.scale_by_adam` that stores its second moment in `moment_dtype` too."""
    dtype = config.moment_dtype
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)
    if dtype is None:
        return adam

    def init(params: Any) -> optax.ScaleByAdamState:
        return _map_second_moment(adam.init(params), lambda x: x.astype(dtype))

    def update(updates: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(updates, _map_second_moment(state, lambda x: x.astype(jnp.float32)), params)
        return updates, _map_second_moment(state, lambda x: x.astype(dtype))

    return optax.GradientTransformation(init, update)


def _map_second_moment(state: Any, function: Callable[[jax.Array], jax.Array]) -> Any:
    return state._replace(nu=jax.tree.map(function, state.nu))
