"""A minimal stage with all features: two parts, two losses with separate denominators, and NaN on request."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average

from emu_jax.sharding.axes import EMBED, MLP
from emu_jax.training.stage import LossOutput


@dataclasses.dataclass(frozen=True)
class ToyStage:
    """Two targets from one input: `first` counts the rows with mask 1, `second` weights all rows by their target."""

    trainable: tuple[str, ...] = (r".*",)
    batch_size: int = 16
    width: int = 8
    nan_above: float | None = None  # a row whose first input is above this gives a NaN loss
    name: str = "toy"

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"first": 1.0, "second": 0.5}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        B, D = self.batch_size, self.width
        return {
            "x": jax.ShapeDtypeStruct((B, D), np.float32),
            "y": jax.ShapeDtypeStruct((B, 4), np.float32),
            "mask": jax.ShapeDtypeStruct((B,), np.float32),
        }

    def init(self, rng: jax.Array) -> Any:
        keys = jax.random.split(rng, 3)
        kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (EMBED, MLP))
        head = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (MLP, None))
        bias = nn.with_logical_partitioning(nn.initializers.zeros_init(), (MLP,))
        return {
            "tower": {"kernel": kernel(keys[0], (self.width, 16)), "bias": bias(keys[0], (16,))},
            "head": {"kernel": head(keys[1], (16, 4))},
        }

    def loss_denominators(self, batch):
        return {"first": batch["mask"].sum(), "second": jnp.abs(batch["y"]).sum()}

    def losses(self, params, batch, rng, *, deterministic):
        hidden = jnp.tanh(batch["x"] @ params["tower"]["kernel"] + params["tower"]["bias"])
        errors = jnp.square(hidden @ params["head"]["kernel"] - batch["y"])
        if self.nan_above is not None:
            errors = jnp.where(batch["x"][:, :1] > self.nan_above, jnp.nan, errors)
        rows = errors.mean(-1)
        sums = {"first": (rows * batch["mask"]).sum(), "second": (errors * jnp.abs(batch["y"])).sum()}
        return LossOutput(sums, {"rows": Average(rows.sum(), jnp.float32(rows.shape[0]))})


class ToyData:
    """Batch i is a function of i, so that runs can be compared; process `shard` of `shards` gets its rows."""

    def __init__(self, stage: ToyStage, *, bad: range = range(0), shard: int = 0, shards: int = 1) -> None:
        self.stage, self.bad, self.index, self.shard, self.shards = stage, bad, 0, shard, shards
        self.read: list[int] = []

    def __iter__(self):
        return self

    def __next__(self):
        batch = self.batch(self.index)
        self.read.append(self.index)
        self.index += 1
        rows = self.stage.batch_size // self.shards
        return {name: value[self.shard * rows : (self.shard + 1) * rows] for name, value in batch.items()}

    def batch(self, index: int):
        rng = np.random.default_rng(index)
        x = rng.standard_normal((self.stage.batch_size, self.stage.width)).astype(np.float32)
        if index in self.bad:
            x[0, 0] = 100.0
        y = np.sin(3 * x[:, :4]) + x[:, 4:8] ** 2
        mask = (rng.random(self.stage.batch_size) < 0.6).astype(np.float32)
        return {"x": x, "y": y.astype(np.float32), "mask": mask}

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]
