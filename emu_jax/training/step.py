"""The train step: one jitted function for all stages, meshes and numbers of microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Average

from emu_jax.sharding.axes import ACT_BATCH
from emu_jax.sharding.specs import logical_constraint
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.metrics import Metrics, pack
from emu_jax.training.optimizer import make_optimizer, make_schedule
from emu_jax.training.partition import Tree, by_part, merge, split
from emu_jax.training.stage import Batch, Stage, UsesBatchStatistics
from emu_jax.training.state import TrainState
from emu_jax.typing import ArrayLike

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(stage: Stage, *, config: OptimizerConfig, steps: int, accumulation: int = 1) -> TrainStep:
    """Return the pure step `(state, batch) -> (state, metrics)`; jit it with `donate_argnums=0`.

    The gradient is that of sum_k weight_k * sum_k / denominator_k over the full batch, for any number of microbatches
    (which only draw different dropout masks).

    Args:
      stage: stage to train.
      config: of the optimizer.
      steps: total number of steps of the run, for the schedule.
      accumulation: number of microbatches.
    """
    optimizer = make_optimizer(config, steps=steps)
    schedule = make_schedule(config, steps=steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trainable, frozen = split(state.params, stage.trainable)
        grads, loss, metrics = _gradients(stage, trainable, frozen, batch, rng, accumulation)

        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        metrics |= {"loss": _scalar(loss), "gradient_norm": _scalar(norm)}
        metrics |= {f"gradient_norm/{part}": _scalar(optax.global_norm(x)) for part, x in by_part(grads).items()}
        if config.clip_norm is not None:
            factor = jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-12))
            grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        metrics |= {f"update_norm/{part}": _scalar(optax.global_norm(x)) for part, x in by_part(updates).items()}
        metrics["learning_rate_fraction"] = _scalar(schedule(state.step - state.skipped))

        # Select the old values after a non-finite gradient; multiplying the update by 0 would leave NaN.
        if_finite = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        new_trainable = if_finite(optax.apply_updates(trainable, updates), trainable)
        ema = state.ema
        if config.ema_decay is not None:
            ema = if_finite(optax.incremental_update(new_trainable, state.ema, 1.0 - config.ema_decay), state.ema)
        skipped = jnp.logical_not(finite).astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=merge(new_trainable, frozen),
            opt_state=if_finite(opt_state, state.opt_state),
            ema=ema,
            rng=state.rng,
            skipped=state.skipped + skipped,
            skipped_in_row=(state.skipped_in_row + 1) * skipped,
        )
        # Give a skipped step weight 0 in all means but `skipped`, or it would make its log line NaN.
        metrics = if_finite(metrics, jax.tree.map(jnp.zeros_like, metrics))
        metrics["skipped"] = _scalar(skipped)
        metrics["skipped_in_row"] = _scalar(new_state.skipped_in_row)
        return new_state, pack(metrics)

    return train_step


def _scalar(value: ArrayLike) -> Average:
    return Average(jnp.asarray(value, jnp.float32), jnp.ones(()))


def _gradients(
    stage: Stage, trainable: Tree, frozen: Tree, batch: Batch, rng: jax.Array, accumulation: int
) -> tuple[Tree, jax.Array, dict[str, Average]]:
    """Return the gradient of the total loss by the trainable parameters, the total loss and the metrics."""
    denominators = stage.loss_denominators(batch)
    # A term that counts nothing in this batch has sum 0; its factor must not be 0 / 0. Leave out terms with weight 0,
    # so that their gradient is not computed.
    factors = {name: w / jnp.maximum(denominators[name], 1e-6) for name, w in stage.loss_weights.items() if w}

    statistics: dict[str, Any] = {}  # keyword arguments of `losses`

    def objective(params: Tree, microbatch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Average]]:
        output = stage.losses(merge(params, frozen), microbatch, key, deterministic=False, **statistics)
        counts = stage.loss_denominators(microbatch)
        metrics = output.metrics | {
            f"loss/{name}": Average(value.astype(jnp.float32), counts[name].astype(jnp.float32))
            for name, value in output.sums.items()
        }
        total = sum((factors[name] * output.sums[name] for name in factors), jnp.float32(0.0))
        return total, metrics

    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if accumulation == 1:
        (loss, metrics), grads = value_and_grad(trainable, batch, rng)
        return grads, loss, metrics

    microbatches = jax.tree.map(lambda x: _split_rows(x, accumulation), dict(batch))
    keys = jax.random.split(rng, accumulation)
    if isinstance(stage, UsesBatchStatistics) and stage.uses_batch_statistics:
        params, measure = merge(trainable, frozen), stage.batch_statistics
        stacked = jax.lax.map(lambda inputs: measure(params, *inputs), (microbatches, keys))
        statistics["statistics"] = stage.combine_statistics(stacked)

    def add(total: Any, inputs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(trainable, *inputs)), None

    first = jax.tree.map(lambda x: x[0], (microbatches, keys))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, trainable, *first))
    ((loss, metrics), grads), _ = jax.lax.scan(add, zeros, (microbatches, keys))
    return grads, loss, metrics


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """Reshape [B ...] to [parts, B / parts, ...].

    Microbatch a gets the rows a, a + parts, ..., so that each row stays on its device.
    """
    size = x.shape[0] // parts
    microbatches = jnp.moveaxis(x.reshape(size, parts, *x.shape[1:]), 1, 0)
    return logical_constraint(microbatches, (None, ACT_BATCH) + (None,) * (x.ndim - 1))
