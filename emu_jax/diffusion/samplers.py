"""Samplers: from noise to latents. A sampler is a precomputed table of coefficients, and one scan runs any of them.

Every sampler is a linear multistep method: the next latents are a weighted sum of the current latents and of the
last few model outputs. PNDM and DDIM store the outputs, DPM-Solver++ the clean latents computed from them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.diffusion.options import Sampler
from emu_jax.diffusion.schedule import NoiseSchedule, Prediction, Spacing
from emu_jax.errors import UserError
from emu_jax.typing import Array, Float, typechecked

HISTORY = 4  # outputs in one weighted sum, newest first
Predict = Callable[[Array, Array], Array]  # latents [B h w C], timestep (int32 scalar) -> model output [B h w C]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """One row per model call S. With `x` the latents, `o` the model's output and `h` the stored outputs, newest first:

    o' = from_latents * x + from_output * o
    x' = base * (first latents if restart else x) + sum_k outputs[k] * (o', h0, h1, h2)[k]

    All columns are float32 `[S]`, except `timesteps`, int32 `[S]`, and `outputs`, float32 `[S, 4]`.
    """

    timesteps: Array
    from_latents: Array
    from_output: Array
    base: Array
    outputs: Array
    store: Array  # 1: o' is stored
    restart: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The result of sampling.

    Attributes:
      latents: `[B, height, width, C]`.
      steps: the latents after each model call, `[S, B, height, width, C]`, if requested.
    """

    latents: Array
    steps: Array | None


@typechecked
def run_sampler(
    predict: Predict, table: SamplerTable, latents: Float[Array, "B height width C"], *, return_steps: bool = False
) -> Trajectory:
    """Scan `table` from `latents` (standard normal noise), with one call of `predict` per row."""

    def step(carry: tuple[Array, tuple[Array, ...]], row: SamplerTable) -> tuple[tuple, Array | None]:
        x, stored = carry
        output = row.from_latents * x + row.from_output * predict(x, row.timesteps)
        candidates = (output, *stored)
        moved = row.base * jnp.where(row.restart > 0, latents, x)
        moved += sum(row.outputs[k] * candidate for k, candidate in enumerate(candidates))
        stored = tuple(jnp.where(row.store > 0, new, old) for new, old in zip(candidates, stored, strict=False))
        return (moved, stored), moved if return_steps else None

    stored = (jnp.zeros_like(latents),) * (HISTORY - 1)
    (final, _), steps = jax.lax.scan(step, (latents, stored), table)
    return Trajectory(latents=final, steps=steps)


@typechecked
def guided(
    predict: Callable[[Array, Array, Array], Array],
    *,
    conditioning: Float[Array, "B Q D"],
    unconditional: Float[Array, "B Q D"],
    guidance_scale: Array | float,
) -> Predict:
    """Add classifier-free guidance (Ho & Salimans 2022): `u + scale (c - u)`, both halves in one model call.

    `predict` accepts latents, timestep and conditioning. Scale 1 uses the conditioning only, 0 the unconditional only.
    """

    def both(latents: Array, timestep: Array) -> Array:
        halves = jnp.concatenate([unconditional, conditioning])
        without, within = jnp.split(predict(jnp.concatenate([latents, latents]), timestep, halves), 2)
        return without + guidance_scale * (within - without)

    return both


def sampler_table(sampler: Sampler, schedule: NoiseSchedule, steps: int) -> SamplerTable:
    """Return the coefficients of `steps` steps. PNDM calls the model once more than that, as in diffusers.

    Raises:
      UserError: there are more steps than the schedule's timesteps allow.
    """
    make = {Sampler.PNDM: _pndm, Sampler.DDIM: _ddim, Sampler.DPM_SOLVER_PP: _dpm_solver_pp}[sampler]
    return make(schedule, steps)


def _pndm(schedule: NoiseSchedule, steps: int) -> SamplerTable:
    """Liu et al. 2022 without its Runge-Kutta start (`skip_prk_steps`), as diffusers' PNDMScheduler.

    The second timestep is visited twice. The first visit only repeats the first step with the mean of two outputs, and
    is not stored. After that, Adams-Bashforth of order 2, 3, 4, 4, ...
    """
    visited = _timesteps(schedule, steps)
    stride = schedule.num_train_timesteps // steps
    timesteps = np.concatenate([visited[:2], visited[1:]]) if steps > 1 else visited
    count = len(timesteps)
    start, end = timesteps.copy(), timesteps - stride
    weights = np.zeros((count, HISTORY))
    store, restart = np.ones(count), np.zeros(count)
    weights[0] = _ADAMS_BASHFORTH[0]
    if count > 1:
        start[1], end[1] = timesteps[1] + stride, timesteps[1]
        weights[1], store[1], restart[1] = (1 / 2, 1 / 2, 0, 0), 0, 1
    for row in range(2, count):
        weights[row] = _ADAMS_BASHFORTH[min(row - 1, HISTORY - 1)]
    latents, noise = _transfer(schedule, start, end)
    # The weighted sum of outputs is used as one output at the start of the step.
    if schedule.prediction_type is Prediction.VELOCITY:
        a = schedule.alphas_cumprod[start]
        latents, noise = latents + noise * np.sqrt(1 - a), noise * np.sqrt(a)
    return _table(timesteps, base=latents, outputs=noise[:, None] * weights, store=store, restart=restart)


_ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _ddim(schedule: NoiseSchedule, steps: int) -> SamplerTable:
    """Song et al. 2021 with eta 0: mix the clean latents and the noise of the output for the next timestep."""
    timesteps = _timesteps(schedule, steps)
    latents, noise = _transfer(schedule, timesteps, timesteps - schedule.num_train_timesteps // steps)
    if schedule.prediction_type is Prediction.VELOCITY:
        a = schedule.alphas_cumprod[timesteps]
        latents, noise = latents + noise * np.sqrt(1 - a), noise * np.sqrt(a)
    outputs = np.zeros((steps, HISTORY))
    outputs[:, 0] = noise
    return _table(timesteps, base=latents, outputs=outputs)


def _dpm_solver_pp(schedule: NoiseSchedule, steps: int) -> SamplerTable:
    """Lu et al. 2022, DPM-Solver++(2M), midpoint: the first and the last step are of first order.

    As in diffusers' DPMSolverMultistepScheduler, whose last step ends without noise.
    """
    timesteps = _timesteps(schedule, steps, with_end=True)
    a = schedule.alphas_cumprod[timesteps]
    signal, deviation = np.sqrt(np.append(a, 1.0)), np.sqrt(np.append(1 - a, 0.0))
    if schedule.prediction_type is Prediction.EPSILON:
        from_latents, from_output = 1 / signal[:-1], -deviation[:-1] / signal[:-1]
    else:
        from_latents, from_output = signal[:-1], -deviation[:-1]
    shrink = deviation[1:] / deviation[:-1]
    clean = signal[1:] - shrink * signal[:-1]
    outputs = np.zeros((steps, HISTORY))
    outputs[:, 0] = clean
    if steps > 2:
        log_snr = np.log(signal[:-1] / deviation[:-1])
        h = np.diff(log_snr)
        slope = 0.5 * clean[1:-1] * h[1:] / h[:-1]
        outputs[1:-1, 0] += slope
        outputs[1:-1, 1] = -slope
    return _table(timesteps, from_latents=from_latents, from_output=from_output, base=shrink, outputs=outputs)


def _transfer(schedule: NoiseSchedule, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of the latents and of their noise for the step from timestep `start` to `end`."""
    a, final = schedule.alphas_cumprod, 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    before, after = a[start], np.where(end >= 0, a[np.maximum(end, 0)], final)
    latents = np.sqrt(after / before)
    return latents, np.sqrt(1 - after) - latents * np.sqrt(1 - before)


def _timesteps(schedule: NoiseSchedule, steps: int, *, with_end: bool = False) -> np.ndarray:
    """Return the timesteps, noisiest first. `with_end` (DPM-Solver++) counts the end as one of the points."""
    total, points = schedule.num_train_timesteps, steps + with_end
    if schedule.timestep_spacing is Spacing.LEADING:
        timesteps = np.arange(points)[::-1] * (total // points) + schedule.steps_offset
    elif schedule.timestep_spacing is Spacing.LINSPACE:
        timesteps = np.linspace(0, total - 1, points).round()[::-1].astype(int)
    else:
        timesteps = np.round(np.arange(total, 0, -total / steps)).astype(int) - 1
    timesteps = timesteps[:steps]
    if timesteps[0] >= total or (np.diff(timesteps) >= 0).any():
        raise UserError(f"{steps} steps are more than this schedule of {total} timesteps allows. Use fewer.")
    return timesteps


def _table(
    timesteps: np.ndarray,
    *,
    base: np.ndarray,
    outputs: np.ndarray,
    from_latents: np.ndarray | float = 0.0,
    from_output: np.ndarray | float = 1.0,
    store: np.ndarray | float = 1.0,
    restart: np.ndarray | float = 0.0,
) -> SamplerTable:
    def column(values: np.ndarray | float) -> np.ndarray:
        return np.broadcast_to(np.asarray(values, np.float32), timesteps.shape)

    columns: dict[str, Any] = {  # NumPy arrays, so that a table needs no device
        "timesteps": timesteps.astype(np.int32),
        "from_latents": column(from_latents),
        "from_output": column(from_output),
        "base": column(base),
        "outputs": outputs.astype(np.float32),
        "store": column(store),
        "restart": column(restart),
    }
    return SamplerTable(**columns)
