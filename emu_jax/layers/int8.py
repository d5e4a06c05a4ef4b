"""Kernels in eight bits with one scale per output channel: half the memory of bfloat16 for a model that only generates.

A kernel is replaced by an `Int8Kernel` in the parameter tree. The layers do not know of it: Flax unboxes a parameter
when a module reads it, and to unbox this one is to multiply it by its scale, which XLA fuses into the matmul.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from emu_jax.layers.linear import DenseGeneral
from emu_jax.typing import Array, Float, Int

_LARGEST = 127


class Int8Kernel(flax.struct.PyTreeNode, meta.AxisMetadata[jax.Array]):
    """A kernel `values * scale` whose rounding error is at most half a scale.

    values: int8, in the shape of the kernel.
    scale: float32, of size 1 along the input dimensions.
    dtype: of the product.
    """

    values: Int[Array, "..."]
    scale: Float[Array, "..."]
    dtype: str = flax.struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        """Return the kernel."""
        return self.values.astype(self.dtype) * self.scale.astype(self.dtype)

    def replace_boxed(self, val: Any) -> Any:
        """Return `val`: a new kernel is not in eight bits."""
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Int8Kernel":
        """Return self; a stack of layers is a leading dimension of both arrays."""
        del index, params
        return self

    remove_axis = add_axis


@dataclasses.dataclass(frozen=True)
class KernelDims:
    """Numbers of input and output dimensions of a kernel `[*inputs, *outputs]`."""

    inputs: int
    outputs: int


def kernel_dims(run: Callable[[], Any]) -> dict[tuple[str, ...], KernelDims]:
    """Return the dimensions of each kernel of a `DenseGeneral` that `run` calls, by its path. `run` is only traced."""
    found: dict[tuple[str, ...], KernelDims] = {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, DenseGeneral) and context.method_name == "__call__":
            found[(*module.path, "kernel")] = KernelDims(len(module.in_axes), len(module.features))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda: run())  # a new function, or JAX would use an earlier trace of `run`
    return found


def quantize_kernels(params: Any, dims: dict[tuple[str, ...], KernelDims]) -> Any:
    """Return `params` with the kernels at the paths of `dims` as `Int8Kernel`, in the same shardings.

    Args:
      params: arrays, which are replaced one at a time; or ShapeDtypeStructs.
      dims: from `kernel_dims`. A kernel may have more dimensions in front, for a stack of layers.
    """
    flat = traverse_util.flatten_dict(params)
    for path, own in dims.items():
        kernel = flat[path]
        first = kernel.ndim - own.inputs - own.outputs
        flat[path] = _quantize(kernel, tuple(range(first, first + own.inputs)))
    return traverse_util.unflatten_dict(flat)


def _quantize(kernel: Any, dims: tuple[int, ...]) -> Int8Kernel:
    dtype = jnp.dtype(kernel.dtype).name

    def quantize(kernel: jax.Array) -> Int8Kernel:
        largest = jnp.max(jnp.abs(kernel.astype(jnp.float32)), axis=dims, keepdims=True)
        scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
        return Int8Kernel(jnp.round(kernel.astype(jnp.float32) / scale).astype(jnp.int8), scale, dtype)

    values: Any = None  # shardings
    scale: Any = None
    if isinstance(kernel.sharding, NamedSharding):
        mesh, spec = kernel.sharding.mesh, kernel.sharding.spec
        names = (*spec, *[None] * (kernel.ndim - len(spec)))
        values = kernel.sharding
        scale = NamedSharding(mesh, PartitionSpec(*(None if i in dims else name for i, name in enumerate(names))))
    layout = Int8Kernel(values, scale, dtype)
    if isinstance(kernel, jax.Array):
        return jax.jit(quantize, out_shardings=layout)(kernel)
    with_layout = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(with_layout, jax.eval_shape(quantize, kernel), layout)
