"""Linear layers. Each kernel dimension is a named axis: `[embed, heads, kv]` instead of `[embed, heads * kv]`."""

import dataclasses
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from emu_jax.bounds import Checked, Fraction, NonNegative, Size
from emu_jax.layers.contract import contract
from emu_jax.layers.materialize import activation_matmul
from emu_jax.sharding import axes

# Standard deviation 1/sqrt(fan_in); `DenseGeneral` counts all input dimensions in fan_in.
lecun_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


DECODER_ATTENTION = (r"^decoder/blocks/attention/(query|key|value|out)$",)


@dataclasses.dataclass(frozen=True)
class LoraConfig(Checked):
    """Low-rank adaptation (Hu et al. 2021): `x W + (alpha / rank) dropout(x) A B`, where the stage freezes W.

    Attributes:
      rank: columns of A, rows of B.
      alpha: the product is scaled by `alpha / rank`.
      dropout: rate on the adapter's input in training.
      targets: regexes that are searched in the paths of the linear layers, such as `decoder/blocks/mlp/gate`,
        `causal_former/blocks/cross_attention/value` or `vision_encoder/blocks/attention/qkv`; layers that one of them
        matches get an adapter. The default is the release's: the attention of the decoder.
    """

    rank: Size = 16
    alpha: NonNegative = 16.0
    dropout: Fraction = 0.05
    targets: tuple[str, ...] = DECODER_ATTENTION

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def adapts(self, path: str) -> bool:
        """Return True if the linear layer at `path` has an adapter."""
        return any(re.search(pattern, path) for pattern in self.targets)


class DenseGeneral(nn.Module):
    """Contract the last `len(in_axes)` dimensions of the input with a kernel `[*input_shape, *features]`.

    `in_axes` and `out_axes` are the logical axes of the kernel's input and output dimensions, in order.
    """

    features: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    use_bias: bool = False
    lora: LoraConfig | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = lecun_normal

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        inputs = x.shape[x.ndim - len(self.in_axes) :]
        kernel = self._kernel("kernel", inputs, self.features, self.in_axes + self.out_axes, self.kernel_init)
        x = jnp.asarray(x, self.dtype)
        y = self._matmul(x, kernel, inputs)
        if (lora := self._adapter()) is not None:
            y += self._low_rank(x, inputs, lora, deterministic)
        return self._with_bias(y)

    def _adapter(self) -> LoraConfig | None:
        """Return the settings of this layer's adapter; None if it has none.

        The patterns decide when parameters are initialized. Later their presence does: a decoder that runs its layers
        one by one does not know their complete paths.
        """
        if self.lora is None:
            return None
        adapted = (
            self.lora.adapts("/".join(self.path)) if self.is_initializing() else self.has_variable("params", "lora_a")
        )
        return self.lora if adapted else None

    def _matmul(self, x: jax.Array, kernel: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
        return contract(x, kernel, dims=len(inputs))

    def _with_bias(self, y: jax.Array) -> jax.Array:
        if not self.use_bias:
            return y
        init = nn.with_logical_partitioning(nn.initializers.zeros, self.out_axes)
        return y + jnp.asarray(self.param("bias", init, self.features, self.param_dtype), self.dtype)

    def _low_rank(self, x: jax.Array, inputs: tuple[int, ...], lora: LoraConfig, deterministic: bool) -> jax.Array:
        rank = (lora.rank,)
        down = self._kernel("lora_a", inputs, rank, (*self.in_axes, axes.LORA_RANK), lecun_normal)
        up = self._kernel("lora_b", rank, self.features, (axes.LORA_RANK, *self.out_axes), nn.initializers.zeros)
        x = nn.Dropout(lora.dropout)(x, deterministic=deterministic)
        return lora.scale * contract(contract(x, down, dims=len(inputs)), up)

    def _kernel(
        self, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], names: tuple[str, ...], init: Initializer
    ) -> jax.Array:
        def flat_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            return init(key, (math.prod(inputs), math.prod(outputs)), dtype).reshape(shape)

        boxed = nn.with_logical_partitioning(flat_init, names)
        return jnp.asarray(self.param(name, boxed, (*inputs, *outputs), self.param_dtype), self.dtype)


class ActivationDense(DenseGeneral):
    """Return `activation(*inputs) @ kernel` by `activation_matmul`, for one or more inputs `[..., width]`."""

    activation: Callable[..., jax.Array] = nn.relu

    @nn.compact
    def __call__(self, *inputs: jax.Array, deterministic: bool = True) -> jax.Array:
        width = inputs[0].shape[-1:]
        kernel = self._kernel("kernel", width, self.features, self.in_axes + self.out_axes, self.kernel_init)
        y = activation_matmul(self.activation, inputs, kernel)
        if (lora := self._adapter()) is not None:
            y += self._low_rank(self.activation(*inputs), width, lora, deterministic)
        return self._with_bias(y)


class QKVProjection(DenseGeneral):
    """Queries, keys and values from one kernel `[width, 3, heads, kv]`, by one matmul each.

    The matmuls treat `heads * kv` as one dimension: heads whose width is not a multiple of 128, such as EVA's 88, would
    leave TPU lanes empty.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> tuple[jax.Array, ...]:
        kernel = self._kernel("kernel", x.shape[-1:], self.features, self.in_axes + self.out_axes, self.kernel_init)
        x = jnp.asarray(x, self.dtype)
        outputs = [contract(x, kernel[:, i].reshape(x.shape[-1], -1)) for i in range(self.features[0])]
        outputs = [y.reshape(*x.shape[:-1], *self.features[1:]) for y in outputs]
        if (lora := self._adapter()) is not None:
            changes = self._low_rank(x, x.shape[-1:], lora, deterministic)
            outputs = [y + jnp.take(changes, i, axis=x.ndim - 1) for i, y in enumerate(outputs)]
        return tuple(outputs)


class OutputProjection(DenseGeneral):
    """Output projection with a kernel `[heads, kv, width]`. The matmul treats `heads * kv` as one dimension."""

    def _matmul(self, x: jax.Array, kernel: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
        size = math.prod(inputs)
        return contract(x.reshape(*x.shape[:-2], size), kernel.reshape(size, -1))
